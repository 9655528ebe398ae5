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
