//! Whatever stands in a file, reading it ends in a job or in errors with places in the file, and never in a panic.
use std::{collections::BTreeMap, path::Path};

use proptest::{prelude::*, test_runner::FileFailurePersistence};
use tidemill_config::{Daemon, Job};

const RIGHT: [&str; 4] = [
    include_str!("../../../examples/classic.yaml"),
    include_str!("../../../tests/golden/sql-aggregate/job.yaml"),
    include_str!("../../../deploy/systemd/tidemill.yaml"),
    r#"
job: all
lanes: single
batch: { max_records: 1_000, max_bytes: 64MiB }
takeover_after: 5s
sources:
  a: &base { type: directory, path: "${DIR:-in}", include: ["*.json", '*.gz'], on_done: { move: done }, metadata: [file] }
  b: { <<: *base, path: in2, codec: { type: csv, delimiter: ";", nulls: [NA], encoding: utf-8 } }
  c: { type: socket, listen: "0.0.0.0:1", framing: { delimiter: "__end" }, schema: { a: "list<struct<b: decimal(3, 1)>>" } }
steps:
  - name: one
    from: [a, b]
    cast: { x: int32, y: "decimal(10, 2)" }
    on_error: set_null
  - split: { column: x, by: "=", into: [k, v] }
  - sql: |
      SELECT *
      FROM batch
sinks:
  db: { type: sqlite, path: out.db, table: t, mode: upsert, key: [k], from: one, where: x > 1 }
  f: { type: files, path: out, codec: parquet, partition_by: [k], compression: zstd }
dead_letters: { type: files, path: "dead$$", roll: { bytes: 1MiB, after: 1h } }
"#,
];

/// Pieces that mean something to YAML, to the substitution, or to the schema.
const PIECES: [&str; 40] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ": ",
    ":",
    "- ",
    "\n",
    "\n  ",
    "\t",
    "\"",
    "'",
    "#",
    "&a ",
    "*a",
    "<<: *base",
    "!!x ",
    "---\n",
    "...",
    "|",
    ">",
    "? ",
    "%",
    "@",
    "${",
    "${X}",
    "${file:x}",
    "$$",
    "$",
    "~",
    "null",
    "1e9",
    "\u{0}",
    "\u{feff}",
    "\u{1f30a}",
    "\u{301}",
    "list<",
    "decimal(",
    "\r",
];

/// Cuts, doubles, swaps, and puts pieces into a text, at any character.
fn mutate(text: &str, edits: &[(u8, prop::sample::Index, prop::sample::Index, usize)]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for (what, one, two, piece) in edits {
        if chars.is_empty() {
            return String::new();
        }
        let (one, two) = (one.index(chars.len()), two.index(chars.len()));
        let (from, to) = (one.min(two), one.max(two).min(one.min(two) + 40));
        match what % 5 {
            0 => drop(chars.drain(from..to)),
            1 => drop(chars.splice(one..one, PIECES[*piece].chars())),
            2 => chars.swap(one, two),
            3 => {
                let copy = chars[from..to].to_vec();
                drop(chars.splice(from..from, copy));
            }
            _ => drop(chars.splice(from..to, PIECES[*piece].chars())),
        }
    }
    chars.into_iter().collect()
}

fn is_answered(text: &str) {
    let env = BTreeMap::from([("X".to_owned(), "hunter2: [{".to_owned())]);
    // A lone `\r` ends a line of YAML too.
    let lines = text.replace('\r', "\n").lines().count();
    let answers = [
        Job::parse(text, Path::new("no-folder/job.yaml"), &env).err(),
        Daemon::parse(text, Path::new("no-folder/tidemill.yaml"), &env).err(),
    ];
    for errors in answers.into_iter().flatten() {
        assert!(errors.count() > 0, "an error that says nothing");
        for error in errors.iter() {
            assert!(error.at.line <= lines.max(1), "line {} of {lines}", error.at.line);
            assert!(!error.message.is_empty() && !error.message.contains("an error in Tidemill"), "{error}");
            let shown = error.to_string();
            assert!(!shown.contains("hunter2") && !shown.contains("report it"), "{shown}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/mutated.regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn changed_jobs_are_answered(
        which in 0..RIGHT.len(),
        edits in prop::collection::vec((any::<u8>(), any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..PIECES.len()), 1..6),
    ) {
        is_answered(&mutate(RIGHT[which], &edits));
    }

    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}", pieces in prop::collection::vec(0..PIECES.len(), 0..30)) {
        is_answered(&text);
        is_answered(&pieces.iter().map(|piece| PIECES[*piece]).collect::<String>());
    }
}

#[test]
fn the_unchanged_are_right() {
    for text in RIGHT {
        let job = Job::parse(text, Path::new("job.yaml"), &BTreeMap::new());
        let daemon = Daemon::parse(text, Path::new("tidemill.yaml"), &BTreeMap::new());
        assert!(job.is_ok() != daemon.is_ok(), "{text}");
    }
}
