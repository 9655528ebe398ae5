//! Cases as tables: `cases.md` beside this file, and every example of the user's `docs/steps.md`. A case is a heading, the
//! steps as YAML, a table of rows, and a table of what they give; `>` lines are rejects, or the errors of the plan. Where a
//! step is a `lookup`, its table comes first.
use std::fmt::Write;

use serde_json::Value;

#[derive(Default)]
struct Case {
    heading: String,
    yaml: String,
    /// Columns and rows, as they are written: of a lookup's table, then what goes in, then what comes out.
    tables: Vec<(String, Vec<Vec<Value>>)>,
    remarks: Vec<String>,
}

impl Case {
    fn has_lookup(&self) -> bool {
        self.yaml.contains("lookup:")
    }
}

fn read(text: &str) -> Vec<Case> {
    let (mut cases, mut case, mut heading, mut lines) = (Vec::new(), None::<Case>, "", text.lines().peekable());
    while let Some(line) = lines.next() {
        if line.starts_with('#') {
            // What follows is another case, or a table of words.
            cases.extend(case.take());
            heading = line;
        } else if line == "```yaml" {
            cases.extend(case.take());
            let yaml = lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect();
            case = Some(Case { heading: heading.to_owned(), yaml, ..Case::default() });
        } else if let (Some(case), true) = (&mut case, line.starts_with('|')) {
            let columns = cells(line).join(", ");
            lines.next();
            let mut rows = Vec::new();
            while let Some(row) = lines.next_if(|line| line.starts_with('|')) {
                rows.push(
                    cells(row)
                        .iter()
                        .map(|cell| serde_json::from_str(cell).unwrap_or_else(|_| panic!("{row}")))
                        .collect(),
                );
            }
            case.tables.push((columns, rows));
        } else if let (Some(case), Some(remark)) = (&mut case, line.strip_prefix("> ")) {
            case.remarks.push(remark.to_owned());
        }
    }
    cases.extend(case);
    cases.into_iter().filter(|case| !case.tables.is_empty()).collect()
}

fn cells(line: &str) -> Vec<String> {
    line.trim()
        .trim_matches('|')
        .split('|')
        .map(|cell| cell.trim().trim_matches('`').to_owned())
        .filter(|cell| !cell.is_empty())
        .collect()
}

/// The case's outcome as its text would have it.
fn outcome(case: &Case) -> (String, Vec<String>) {
    let (columns, rows) = &case.tables[usize::from(case.has_lookup())];
    if case.has_lookup() {
        let (names, table) = &case.tables[0];
        return match crate::common::run_with(
            columns,
            &case.yaml,
            rows,
            &crate::common::batch(&crate::common::schema(names), table),
        ) {
            Ok((schema, applied)) => written(&schema, &applied),
            Err(errors) => (String::new(), errors),
        };
    }
    if let Err(errors) = crate::common::plan(columns, &case.yaml) {
        return (String::new(), errors.into_iter().map(|error| error.message).collect());
    }
    let (schema, applied) = crate::common::run(columns, &case.yaml, rows);
    written(&schema, &applied)
}

fn written(schema: &arrow::datatypes::Schema, applied: &tidemill_steps::Applied) -> (String, Vec<String>) {
    let mut table = format!("{}\n", crate::common::columns_of(schema));
    for row in crate::common::values(&applied.sinks[0].1) {
        let cells: Vec<String> = row.iter().map(Value::to_string).collect();
        writeln!(table, "{}", cells.join(" | ")).unwrap();
    }
    let row = |origin: u32| if origin == u32::MAX { "no row".into() } else { format!("row {}", origin + 1) };
    let rejects = applied
        .rejects
        .iter()
        .map(|reject| format!("{}, {}, {}: {}", row(reject.origin), reject.step, reject.reason, reject.detail));
    (table, rejects.collect())
}

fn expected(case: &Case) -> String {
    let Some((columns, rows)) = case.tables.get(1 + usize::from(case.has_lookup())) else { return String::new() };
    let rows = rows.iter().map(|row| format!("{}\n", row.iter().map(Value::to_string).collect::<Vec<_>>().join(" | ")));
    format!("{columns}\n{}", rows.collect::<String>())
}

fn check(file: &str, at_least: usize) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let cases = read(&std::fs::read_to_string(&path).unwrap());
    assert!(cases.len() >= at_least, "{file} has {} cases", cases.len());
    let mut wrong = String::new();
    for case in &cases {
        let (table, remarks) = outcome(case);
        if table != expected(case) || remarks != case.remarks {
            write!(
                wrong,
                "\n{}\n{}expected:\n{}{}\n",
                case.heading,
                case.yaml,
                expected(case),
                case.remarks.join("\n")
            )
            .unwrap();
            write!(wrong, "got:\n{table}{}\n", remarks.join("\n")).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{file}:{wrong}");
}

#[test]
fn cases() {
    check("tests/cases.md", 40);
}

#[test]
fn examples_of_the_docs() {
    check("../docs/steps.md", 14);
}
