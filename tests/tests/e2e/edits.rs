//! A job that is edited, moved and told to stop while a batch is open: what a replay reads and computes is what the plan
//! says, by the text that made it, or the lane stops and names what is missing.

use std::{fs, time::Duration};

use tidemill_tests::{Folder, Rows, Run};

fn rows(name: &str, range: std::ops::Range<usize>) -> String {
    range.map(|n| format!("{{\"{name}\": {n}}}\n")).collect()
}

fn job(sources: &str, sinks: &str) -> String {
    format!("job: edits\ntrigger: asap\nbatch: {{ max_records: 20 }}\nsources:\n{sources}sinks:\n{sinks}")
}

const NUMBERS: &str =
    "  numbers: { type: directory, path: numbers, settle: 10ms, codec: json, schema: { n: int64 } }\n";
const LETTERS: &str = "  letters: { type: directory, path: letters, settle: 10ms, codec: { type: csv, header: true }, schema: { letter: string } }\n";
const DB: &str = "  db: { type: sqlite, path: rows.db, table: rows }\n";
const FILES: &str = "  out: { type: files, path: out, codec: json }\n";

/// Both sources have input; the first batch is in the anchor, and nowhere else.
fn open_batch(sources: &str, sinks: &str, env: &[(&str, &str)]) -> (Folder, Rows) {
    let folder = Folder::new();
    folder.publish("numbers/a.json", rows("n", 0..10));
    let letters: Vec<String> = (0..10).map(|n| format!("letter {n}")).collect();
    folder.publish("letters/a.csv", format!("letter\n{}\n", letters.join("\n")));
    let mut run = Run::new(&folder).job(&job(sources, sinks)).failpoint("after-anchor:1:kill");
    for (name, value) in env {
        run = run.env(name, *value);
    }
    run.start().expect_killed();
    let numbers = (0..10).map(|n| format!("{{\"n\": {n}, \"letter\": null}}"));
    let letters = letters.iter().map(|letter| format!("{{\"n\": null, \"letter\": \"{letter}\"}}"));
    (folder, Rows::json(&numbers.chain(letters).collect::<Vec<_>>().join("\n")))
}

fn check(folder: &Folder, expected: &Rows) {
    Rows::sqlite(&folder.join("rows.db"), "SELECT * FROM rows").assert_same(expected, "the table");
    Rows::files(&folder.join("out")).select(&["n", "letter"]).assert_same(expected, "the files");
}

#[test]
fn a_sink_that_is_renamed_gets_the_batch_that_it_lacks() {
    let (folder, expected) = open_batch(&[NUMBERS, LETTERS].concat(), &[DB, FILES].concat(), &[]);
    let renamed = FILES.replace("out: {", "archive: { formerly: out,");
    Run::new(&folder).job(&job(&[NUMBERS, LETTERS].concat(), &[DB, &renamed].concat())).once().expect_success();
    check(&folder, &expected);
}

#[test]
fn sources_that_change_places_are_read_by_their_names() {
    let (folder, expected) = open_batch(&[NUMBERS, LETTERS].concat(), &[DB, FILES].concat(), &[]);
    Run::new(&folder).job(&job(&[LETTERS, NUMBERS].concat(), &[DB, FILES].concat())).once().expect_success();
    check(&folder, &expected);
}

#[test]
fn a_source_that_is_gone_while_its_batch_is_open_stops_the_lane_until_it_is_back() {
    let (folder, expected) = open_batch(&[NUMBERS, LETTERS].concat(), &[DB, FILES].concat(), &[]);
    let mut without = Run::new(&folder).job(&job(NUMBERS, &[DB, FILES].concat())).once();
    without.expect_code(1);
    let said = without.stderr();
    assert!(said.contains("letters") && said.contains("Way out: put the source back"), "{said}");
    Run::new(&folder).job(&job(&[NUMBERS, LETTERS].concat(), &[DB, FILES].concat())).once().expect_success();
    check(&folder, &expected);
}

#[test]
fn a_value_of_the_environment_that_decides_rows_is_part_of_the_plan() {
    let sinks = [DB, &FILES.replace("codec: json", "codec: json, where: \"n >= ${FROM}\"")].concat();
    let sources = [NUMBERS, LETTERS].concat();
    let (folder, all) = open_batch(&sources, &sinks, &[("FROM", "5")]);
    let run = Run::new(&folder).job(&job(&sources, &sinks));
    let mut other = run.clone().env("FROM", "7").once();
    other.expect_code(1);
    assert!(other.stderr().contains("other values of the environment"), "{}", other.stderr());
    run.env("FROM", "5").once().expect_success();
    Rows::sqlite(&folder.join("rows.db"), "SELECT * FROM rows").assert_same(&all, "the table");
    let expected = Rows::json(&rows("n", 5..10));
    Rows::files(&folder.join("out")).select(&["n"]).assert_same(&expected, "the files");
}

#[test]
fn a_run_with_once_lets_go_so_that_the_next_one_starts_at_once_from_another_data_dir() {
    let folder = Folder::new();
    folder.publish("numbers/a.json", rows("n", 0..10));
    let yaml = job(NUMBERS, DB).replace("trigger: asap", "trigger: asap\ntakeover_after: 1h");
    Run::new(&folder).job(&yaml).once().expect_success();
    folder.publish("numbers/b.json", rows("n", 10..20));
    Run::new(&folder).job(&yaml).data_dir("another").limit(Duration::from_secs(20)).once().expect_success();
    let found = Rows::sqlite(&folder.join("rows.db"), "SELECT n FROM rows");
    found.assert_same(&Rows::json(&rows("n", 0..20)), "the table");
}

#[test]
fn a_run_with_once_that_is_told_to_stop_has_failed_and_a_hangup_starts_nothing_twice() {
    let folder = Folder::new();
    // Nobody listens there: the job waits for its server.
    let yaml = "job: edits\nsources: { in: { type: socket, connect: \"127.0.0.1:9\", codec: text } }\nsinks: { db: { type: sqlite, path: rows.db, table: rows } }\n";
    let mut daemon = Run::new(&folder).job(yaml).arg("--once").start();
    daemon.wait_ready();
    let jobs = daemon.get("/jobs").unwrap().body;
    assert!(jobs.contains("\"edits\""), "a job of --once is seen: {jobs}");
    daemon.hup();
    tidemill_tests::eventually("the answer to the hangup", || {
        let said = daemon.stderr();
        if said.contains("no reload") { Ok(()) } else { Err(said) }
    });
    daemon.term();
    daemon.expect_code(1);
    assert_eq!(daemon.stderr().matches("running: ").count(), 1, "{}", daemon.stderr());
}

#[test]
fn sinks_that_were_emptied_together_begin_anew_and_say_so() {
    let folder = Folder::new();
    folder.publish("numbers/a.json", rows("n", 0..10));
    let yaml = job(NUMBERS, &[DB, FILES].concat()) + "dead_letters: { type: files, path: dead, codec: json }\n";
    let run = Run::new(&folder).job(&yaml);
    run.once().expect_success();
    for path in ["rows.db", "rows.db-wal", "rows.db-shm"] {
        let _ = fs::remove_file(folder.join(path));
    }
    fs::remove_dir_all(folder.join("out")).unwrap();
    fs::remove_dir_all(folder.join("dead")).unwrap();
    // Killed between the new origin and all that follows it, it still knows that this is another life.
    run.clone().failpoint("mark:2:kill").arg("--once").start().expect_killed();
    let mut again = run.once();
    again.expect_success();
    let found = Rows::sqlite(&folder.join("rows.db"), "SELECT n FROM rows");
    found.assert_same(&Rows::json(&rows("n", 0..10)), "the table");
}
