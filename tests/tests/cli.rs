//! The command line as a person meets it: the demo, and what a wrong job is told.

#![allow(clippy::unwrap_used)]

use tidemill_tests::{Folder, daemon::tidemill};

#[test]
fn the_demo_is_killed_once_and_loses_and_doubles_nothing() {
    let folder = Folder::new();
    let output = tidemill(&folder, &["demo", "--seconds", "6", "--dir", "demo"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let row = |name: &str| -> Vec<usize> {
        let line = said.lines().find(|line| line.trim_start().starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no line {name} in:\n{said}"));
        line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    };
    assert!(said.contains("kill -9"), "{said}");
    let (fed, stored, rejected) = (row("fed"), row("stored"), row("rejected"));
    assert!(fed[0] > 100 && rejected[0] > 0, "{said}");
    assert_eq!(stored, [fed[0] - rejected[0]; 2], "{said}");
    assert_eq!((row("lost"), row("doubled")), (vec![0, 0], vec![0, 0]), "{said}");
}

#[test]
fn a_wrong_job_is_told_everything_at_once_with_exit_code_78() {
    let folder = Folder::new();
    folder.write("wrong.yaml", "job: X\nsinks: { screen: { type: consle } }\n");
    let output = tidemill(&folder, &["validate", "wrong.yaml"]);
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8_lossy(&output.stderr);
    for part in ["wrong.yaml:1:6: job: `X` is not a name", "a job needs the key `sources`", "`console`"] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
}

/// A job whose texts come from a file that holds a secret; `where` is the condition of its sink.
fn secret_job(folder: &Folder, condition: &str) {
    folder.write("secret", "hunter2\n");
    let text = format!(
        r#"job: a
sources: {{ in: {{ type: directory, path: "in-${{file:secret}}", codec: json, schema: {{ b: string }} }} }}
sinks:
  db: {{ type: sqlite, path: "${{file:secret}}.db", table: "t-${{file:secret}}", where: "{condition} = '${{file:secret}}'" }}
  files: {{ type: files, path: out }}
"#
    );
    folder.write("job.yaml", text);
}

#[test]
fn explain_and_the_errors_of_planning_show_no_value_from_outside() {
    let folder = Folder::new();
    for (condition, code, part) in [
        ("b", 0, "to table t-${file:secret} of ${file:secret}.db"),
        ("c", 78, "sinks.db.where: `***` does not fit the rows that come here"),
    ] {
        secret_job(&folder, condition);
        for command in ["explain", "validate"] {
            let output = tidemill(&folder, &[command, "job.yaml"]);
            let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap()).concat();
            assert_eq!(output.status.code(), Some(code), "{command}: {said}");
            assert!(!said.contains("hunter2"), "{command}: {said}");
            assert!(said.contains(part) || (command, code) == ("validate", 0), "{command}: {said}");
        }
    }
}
