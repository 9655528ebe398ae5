//! Rows that a table refuses: each is a dead letter once, all others are in the table once, whatever is killed.

use rusqlite::Connection;
use tidemill_tests::{Folder, Rows, Run, eventually};

const RECORDS: usize = 200;

/// Every 40th record has a number that was there before, every 50th none.
fn refused(n: usize) -> bool {
    n % 40 == 39 || n % 50 == 49
}

fn record(n: usize) -> String {
    match n {
        n if n % 50 == 49 => format!("{{\"n\": null, \"text\": \"none {n}\"}}\n"),
        n if n % 40 == 39 => format!("{{\"n\": {}, \"text\": \"again {n}\"}}\n", n - 1),
        n => format!("{{\"n\": {n}, \"text\": \"row {n}\"}}\n"),
    }
}

/// A table with a condition; `strict` is the anchor, `rows` follows it, or the other way round.
fn folder() -> Folder {
    let folder = Folder::new();
    for (part, name) in ["a", "b"].iter().enumerate() {
        let lines: String = (0..RECORDS).filter(|n| n * 2 / RECORDS == part).map(record).collect();
        folder.publish(format!("in/{name}.json"), lines);
    }
    let database = Connection::open(folder.join("strict.db")).unwrap();
    database.execute_batch("CREATE TABLE strict (n INTEGER PRIMARY KEY NOT NULL, text TEXT)").unwrap();
    database.execute_batch("CREATE TABLE other (n INTEGER NOT NULL UNIQUE, text TEXT)").unwrap();
    folder
}

fn job(sinks: &str) -> String {
    format!(
        "job: r\ntrigger: asap\nbatch: {{ max_records: 5 }}\nsources:\n  in: {{ type: directory, path: in, settle: 10ms, codec: json, \
         schema: {{ n: int64, text: string }} }}\nsinks:\n{sinks}dead_letters: {{ type: files, path: dead, codec: json }}\n"
    )
}

const STRICT: &str = "  strict: { type: sqlite, path: strict.db, table: other }\n";
const PLAIN: &str = "  plain: { type: sqlite, path: plain.db, table: rows }\n";
const OUT: &str = "  out: { type: files, path: out, codec: json }\n";

fn check(folder: &Folder) -> Result<(), String> {
    let rows = |keep: fn(usize) -> bool| Rows::json(&(0..RECORDS).filter(|n| keep(*n)).map(record).collect::<String>());
    Rows::try_sqlite(&folder.join("strict.db"), "SELECT n, text FROM other")
        .map_err(|e| e.to_string())?
        .compare(&rows(|n| !refused(n)))
        .map_err(|difference| format!("the table: {difference}"))?;
    Rows::files(&folder.join("out"))
        .compare(&rows(|_| true))
        .map_err(|difference| format!("the files: {difference}"))?;
    let dead = Rows::files(&folder.join("dead"));
    let texts = dead.column("record").concat();
    for n in (0..RECORDS).filter(|n| refused(*n)) {
        let text = if n % 50 == 49 { format!("\"none {n}\"") } else { format!("\"again {n}\"") };
        let count = texts.matches(&text).count();
        if count != 1 {
            return Err(format!("{text} is in the dead letters {count} times"));
        }
    }
    let expected = (0..RECORDS).filter(|n| refused(*n)).count();
    if dead.len() != expected || dead.0.iter().any(|row| row["step"] != "strict" || row["reason"] != "constraint") {
        return Err(format!("{} dead letters, not {expected}: {:?}", dead.len(), dead.0.first()));
    }
    Ok(())
}

#[test]
fn what_the_anchor_refuses_is_a_dead_letter_and_counted() {
    let folder = folder();
    let daemon = Run::new(&folder).job(&job(&[STRICT, OUT].concat())).spawn();
    eventually("all rows and dead letters", || check(&folder));
    let expected = (0..RECORDS).filter(|n| refused(*n)).count();
    let rejected = daemon.metric("tidemill_records_rejected_total", &["step=\"strict\"", "reason=\"constraint\""]);
    let written = daemon.metric("tidemill_records_written_total", &["sink=\"strict\""]);
    assert_eq!((rejected, written), (expected as f64, (RECORDS - expected) as f64));
    assert_eq!(daemon.metric("tidemill_records_received_total", &["source=\"in\""]), RECORDS as f64);
}

#[test]
fn what_a_follower_refuses_is_a_dead_letter_and_once_does_not_end_before() {
    let folder = folder();
    Run::new(&folder).job(&job(&[PLAIN, STRICT, OUT].concat())).once().expect_success();
    check(&folder).unwrap();
}

#[test]
fn killed_at_any_step_each_is_a_dead_letter_once() {
    for sinks in [[STRICT, OUT].concat(), [PLAIN, STRICT, OUT].concat()] {
        let folder = folder();
        let run = Run::new(&folder).job(&job(&sinks));
        let phases = ["plan", "compute", "before-anchor", "after-anchor", "after-sinks", "after-close"];
        let mut killed = 0;
        for (turn, phase) in phases.iter().cycle().take(21).enumerate() {
            let point = format!("{phase}:{}:kill", 1 + turn % 3);
            let mut daemon = run.clone().failpoint(&point).arg("--once").start();
            killed += usize::from(daemon.wait().code() != Some(0));
        }
        assert!(killed > 8, "only {killed} kills met a batch");
        run.once().expect_success();
        check(&folder).unwrap();
        println!("{killed} kills: 0 lost, 0 doubled, each refused row one dead letter");
    }
}
