//! Whatever a job's text says: it is planned, or it is an error of the job. Nothing overflows a stack, nothing panics.

use serde_json::{Value, json};
use tidemill_steps::untyped;

use crate::common::{job, messages, plan, run};

/// Long conditions are as good as short ones.
#[test]
fn long_conditions_work() {
    for terms in [250, 1000, 5000] {
        let chain = |operator: &str, term: fn(usize) -> String| {
            (0..terms).map(term).collect::<Vec<_>>().join(&format!(" {operator} "))
        };
        let any = chain("OR", |term| format!("v = {term}"));
        let none = chain("AND", |term| format!("s NOT LIKE '%bot{term}%'"));
        let rows: Vec<Vec<Value>> =
            vec![vec![json!(3), json!("x")], vec![json!(-1), json!("x")], vec![json!(7), json!("bot9")]];
        let steps = format!("- filter: \"{any}\"\n- filter: \"{none}\"\n");
        let (_, applied) = run("v: int64, s: string", &steps, &rows);
        assert!(applied.rejects.is_empty(), "{:?}", applied.rejects);
        assert_eq!(applied.sinks[0].1.iter().map(|batch| batch.num_rows()).sum::<usize>(), 1, "{terms}");
        if terms <= 1000 {
            let steps = format!("- sql: \"SELECT count(*) AS n FROM batch WHERE ({any}) AND {none}\"\n");
            let (_, applied) = run("v: int64, s: string", &steps, &rows);
            assert_eq!(crate::common::values(&applied.sinks[0].1), vec![vec![json!(1)]], "{terms}");
        }
    }
}

/// What is deep by itself is computed up to a limit, and an error beyond it.
#[test]
fn deep_expressions_work_or_are_errors() {
    let sum = |terms: usize| format!("- add: {{ x: \"{}\" }}\n", vec!["v"; terms].join(" + "));
    let (_, applied) = run("v: int64", &sum(400), &[vec![json!(2)]]);
    assert_eq!(crate::common::values(&applied.sinks[0].1), vec![vec![json!(2), json!(800)]]);
    for terms in [600, 5000, 60_000] {
        let wrong = messages(plan("v: int64", &sum(terms)));
        assert!(wrong.len() == 1 && wrong[0].contains("levels deep"), "{terms}: {wrong:?}");
    }
    let nested = format!("- add: {{ x: \"{}v{}\" }}\n", "abs(".repeat(300), ")".repeat(300));
    let wrong = messages(plan("v: int64", &nested));
    assert!(wrong.len() == 1 && wrong[0].contains("nested too deeply"), "{wrong:?}");
}

/// Numbers of a fixed seed: the same jobs each time.
struct Dice(u64);

impl Dice {
    fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        of[(self.0 >> 33) as usize % of.len()]
    }
}

const LEAVES: [&str; 22] = [
    "a",
    "s",
    "t",
    "f",
    "b",
    "m",
    "l",
    "1",
    "-7",
    "1e400",
    "'x'",
    "'['",
    "NULL",
    "true",
    "now()",
    "9223372036854775807",
    "'2015-05-17T10:05:03Z'",
    "interval '1 day'",
    "random()",
    "'%#z'",
    "\"s\"",
    "zzz",
];

const FUNCTIONS: [&str; 34] = [
    "abs",
    "length",
    "regexp_match",
    "regexp_like",
    "to_char",
    "to_timestamp",
    "date_trunc",
    "date_part",
    "cast",
    "coalesce",
    "nullif",
    "upper",
    "repeat",
    "substr",
    "split_part",
    "array_length",
    "make_array",
    "named_struct",
    "map",
    "sum",
    "count",
    "extract",
    "encode",
    "decode",
    "digest",
    "to_hex",
    "chr",
    "concat_ws",
    "lpad",
    "strpos",
    "round",
    "power",
    "nothing_like_it",
    "date_bin",
];

fn expression(dice: &mut Dice, depth: usize) -> String {
    if depth == 0 {
        return dice.pick(&LEAVES).to_owned();
    }
    let mut part = || expression(dice, depth - 1);
    let (left, right, third) = (part(), part(), part());
    let operator = dice.pick(&[
        "+",
        "-",
        "*",
        "/",
        "%",
        "||",
        "=",
        "<>",
        "<",
        "AND",
        "OR",
        "~",
        "!~*",
        "LIKE",
        "IS DISTINCT FROM",
        "^",
        "&",
        ">>",
        "->",
        "SIMILAR TO",
        "@>",
    ]);
    let function = dice.pick(&FUNCTIONS);
    let kind = dice.pick(&[
        "int",
        "timestamp",
        "date",
        "decimal(5,2)",
        "text",
        "boolean",
        "bytea",
        "interval",
        "decimal(99,2)",
    ]);
    let shapes = [
        format!("({left} {operator} {right})"),
        format!("{function}({left})"),
        format!("{function}({left}, {right})"),
        format!("{function}({left}, {right}, {third})"),
        format!("cast({left} AS {kind})"),
        format!("CASE WHEN {left} THEN {right} ELSE {third} END"),
        format!("{left} BETWEEN {right} AND {third}"),
        format!("{left} NOT IN ({right}, {third})"),
        format!("({left})[{right}]"),
        format!("NOT {left}"),
        format!("{left} IS NULL"),
        format!("{left} AT TIME ZONE 'Europe/Berlin'"),
        format!("({left}, {right})"),
        format!("(SELECT {left})"),
        format!("extract(century FROM {left})"),
    ];
    let shapes: Vec<&str> = shapes.iter().map(String::as_str).collect();
    dice.pick(&shapes).to_owned()
}

/// Expressions of all kinds, right and wrong: planned and run, or refused, and looked at without schemas.
#[test]
fn no_expression_ends_the_process() {
    const COLUMNS: &str =
        "a: int64, s: string, t: timestamp, f: float64, b: boolean, m: decimal(10,2), l: list<string>";
    let (mut dice, mut planned) = (Dice(7), 0);
    let rounds = if std::env::var_os("STATES").is_some() { 20_000 } else { 200 };
    for round in 0..rounds {
        let text = expression(&mut dice, 1 + round % 3).replace('\'', "''");
        let verb = dice.pick(&[
            "filter: '{}'",
            "add: { x: '{}' }",
            "sql: 'SELECT {} AS x FROM batch'",
            "sql: 'SELECT sum({}) AS x FROM batch GROUP BY s'",
        ]);
        let steps = format!("- {}\n", verb.replace("{}", &text));
        let described = job(&["in"], &steps, &[("out", None, None)]);
        let untyped = untyped::check(&described);
        assert!(!untyped.iter().any(|error| error.message.contains("defect")), "{steps}{untyped:?}");
        match plan(COLUMNS, &steps) {
            Ok(pipeline) => {
                planned += 1;
                // What is right with the schema is not refused without it.
                assert!(untyped.is_empty(), "{steps}{untyped:?}");
                let schema = crate::common::schema(COLUMNS);
                let nulls = arrow::array::RecordBatch::try_new(
                    schema.clone(),
                    schema.fields().iter().map(|field| arrow::array::new_null_array(field.data_type(), 2)).collect(),
                );
                let chunks = crate::common::chunks(&nulls.unwrap(), 2, 0);
                let _ = pipeline.apply(&crate::common::CONTEXT, vec![("in".into(), chunks)]);
            }
            Err(errors) => {
                let wrong =
                    errors.iter().find(|error| error.message.contains("defect") || error.message.contains("bug"));
                assert!(wrong.is_none(), "{steps}{wrong:?}");
            }
        }
    }
    assert!(planned > rounds / 20, "{planned} of {rounds}");
}

/// What is wrong whatever the columns are is said before a schema is known; what may be right is not.
#[test]
fn steps_are_looked_at_without_schemas() {
    let check = |steps: &str| {
        let wrong = untyped::check(&job(&["in"], steps, &[("out", None, None)]));
        wrong.into_iter().map(|error| error.message).collect::<Vec<_>>()
    };
    for (steps, expected) in [
        ("- filter: amount >", "Expected"),
        ("- filter: lenght(b) > 1", "lenght"),
        ("- filter: name ~ '('", "`(` is no regular expression"),
        ("- filter: name", ""),
        ("- filter: length(name)", "a condition gives boolean"),
        ("- add: { day: \"date_trunc('foo', at)\" }", "foo"),
        ("- add: { n: count(*) }", "one row at a time"),
        ("- add: { n: \"cast('abc' as int)\" }", "fails whatever the row is"),
        ("- add: { n: uuid7() }", "uuid7"),
        ("- add: { n: a + 1 }\n  when: b >", "Expected"),
        ("- parse_timestamp: { column: at, format: '%Q' }", "strftime"),
        ("- parse_timestamp: { column: at, zone: Nowhere }", "no time zone"),
        ("- parse_timestamp: { column: at, format: '%Y-%m-%dT%H:%M:%S%#z' }", ""),
        ("- sql: SELECT a FROM", "Expected"),
        ("- sql: SELECT lenght(a) AS n FROM batch", "lenght"),
        ("- sql: SELECT a, count(*) AS n FROM batch WHERE s ~ '(' GROUP BY a", "`(` is no regular expression"),
        (
            "- sql: \"SELECT shop, sum(total / items) AS mean FROM batch WHERE at > '2015-01-01T00:00:00Z' GROUP BY shop ORDER BY mean\"",
            "",
        ),
        ("- sql: SELECT a.n, b.m FROM batch a JOIN batch b ON a.n = b.n", ""),
        ("- filter: \"at > '2015-05-17T10:05:03Z' AND amount > 12.5 AND name LIKE 'a%' AND tags[1] = 'x'\"", ""),
        ("- add: { class: \"concat(cast(response / 100 as string), 'xx')\" }", ""),
        ("- add: { x: \"point['x'] + 1\" }", ""),
        ("- filter: now() - at < interval '1 day'", ""),
    ] {
        let wrong = check(steps);
        match expected {
            "" => assert!(wrong.is_empty(), "{steps}: {wrong:?}"),
            expected => assert!(wrong.len() == 1 && wrong[0].contains(expected), "{steps}: {wrong:?}"),
        }
    }
}

#[test]
fn steps_that_gather_rows_are_known_by_their_text() {
    use untyped::Gathers::{Groups, Joins, Orders};
    for (text, expected) in [
        ("SELECT a, upper(b) AS b FROM batch WHERE a > 1", None),
        ("SELECT a, count(*) AS n FROM batch GROUP BY a", Some(Groups)),
        ("SELECT sum(a) AS n FROM batch", Some(Groups)),
        ("SELECT DISTINCT a FROM batch", Some(Groups)),
        ("SELECT l.a FROM l JOIN r ON l.a = r.a", Some(Joins)),
        ("SELECT a FROM l, r", Some(Joins)),
        ("SELECT a FROM batch WHERE a IN (SELECT b FROM batch)", Some(Joins)),
        ("SELECT a FROM batch ORDER BY a", Some(Orders)),
        ("SELECT a FROM batch LIMIT 3", Some(Orders)),
        ("SELECT a, row_number() OVER (ORDER BY a) AS n FROM batch", Some(Orders)),
        ("SELECT", None),
    ] {
        assert_eq!(untyped::gathers(text), expected, "{text}");
    }
}
