//! Folders as people have them: logs that are rotated and compressed, files that are not what they seem, and what of it is
//! seen in dead letters and by other tools.

use std::{fs, process::Command};

use serde_json::{Value, json};
use tidemill_tests::{Folder, Rows, Run, needs};

/// `gzip NAME`: the archive takes the original's place.
fn gzip(folder: &Folder, name: &str) {
    let done = Command::new("gzip").arg(folder.join(name)).status().unwrap();
    assert!(done.success(), "gzip {name}");
}

fn lines(day: &str, number: usize) -> (String, Vec<String>) {
    let lines: Vec<String> = (0..number).map(|n| format!("{day} line {n} {}", "x".repeat(n % 90))).collect();
    (lines.join("\n") + "\n", lines)
}

#[test]
fn logs_that_are_rotated_and_compressed_around_crashes_are_read_once() {
    const JOB: &str = "job: logs\ntrigger: asap\nsources: { in: { type: directory, path: in, include: [\"app.log*\"], settle: 10ms, codec: text } }\n\
                       sinks: { out: { type: sqlite, path: out.db, table: lines } }\n";
    let folder = Folder::new();
    let run = Run::new(&folder).job(JOB);
    let mut expected = Vec::new();
    let mut kills = ["compute:1:kill", "before-anchor:1:kill", "after-anchor:1:kill", "after-close:1:kill"].iter();
    for day in 1..=4 {
        // As logrotate does with `compress`, `delaycompress` and `rotate 9`; on even days with `copytruncate`.
        for old in (2..9).rev() {
            let name = |old: i32| folder.join(format!("in/app.log.{old}.gz"));
            if name(old).exists() {
                fs::rename(name(old), name(old + 1)).unwrap();
            }
        }
        if folder.join("in/app.log.1").exists() {
            fs::rename(folder.join("in/app.log.1"), folder.join("in/app.log.2")).unwrap();
            gzip(&folder, "in/app.log.2");
        }
        let (text, lines) = lines(&format!("day {day}"), 2_000 * day);
        if folder.join("in/app.log").exists() && day % 2 == 0 {
            fs::copy(folder.join("in/app.log"), folder.join("in/app.log.1")).unwrap();
            fs::write(folder.join("in/app.log"), text).unwrap();
        } else {
            if folder.join("in/app.log").exists() {
                fs::rename(folder.join("in/app.log"), folder.join("in/app.log.1")).unwrap();
            }
            folder.publish("in/app.log", text);
        }
        expected.extend(lines);
        let kill = kills.next().unwrap();
        let mut killed = run.clone().arg("--once").failpoint(kill).start();
        killed.expect_killed();
        if day == 3 {
            // The data dir is lost: what was read is known from the sink.
            fs::remove_dir_all(folder.join("data")).unwrap();
        }
        run.clone().take_over().once().expect_success();
        let found = Rows::sqlite(&folder.join("out.db"), "SELECT text FROM lines ORDER BY rowid").column("text");
        let (mut found, mut wanted) = (found, expected.clone());
        found.sort();
        wanted.sort();
        assert!(found == wanted, "day {day}, {kill}: {} lines for {}", found.len(), wanted.len());
    }
}

#[test]
fn a_file_that_was_not_all_read_is_set_aside_whenever_the_daemon_dies() {
    for kill in ["directory-before-aside:1:kill", "directory-after-aside:1:kill", "after-anchor:1:kill"] {
        let folder = Folder::new();
        let bad = format!("[{{\"n\": 1}}]\n{}", "{\"n\": 2}\n".repeat(20_000));
        folder.publish("in/bad.json", &bad);
        folder.publish("in/good.json", "{\"n\": 3}\n");
        let run = Run::new(&folder).job(
            "job: aside\ntrigger: asap\nsources: { in: { type: directory, path: in, settle: 10ms, on_done: delete, codec: json, schema: { n: int64 } } }\n\
             sinks: { out: { type: files, path: out, codec: json } }\ndead_letters: { type: files, path: dead, codec: json }\n",
        );
        run.clone().arg("--once").failpoint(kill).start().expect_killed();
        let mut again = run.clone().take_over().once();
        again.expect_success();
        // A file whose release was cut off is put away with the next batch.
        folder.publish("in/next.json", "{\"n\": 4}\n");
        let mut next = run.once();
        next.expect_success();
        let mut numbers = Rows::files(&folder.join("out")).column("n");
        numbers.sort();
        assert_eq!(numbers, ["1", "3", "4"], "{kill}");
        assert_eq!(Rows::files(&folder.join("dead")).column("reason").len(), 1, "{kill}");
        assert_eq!(fs::read_to_string(folder.join("in/_incomplete/bad.json")).unwrap(), bad, "{kill}");
        assert!(!folder.join("in/bad.json").exists() && !folder.join("in/good.json").exists(), "{kill}");
        let said = again.stderr() + &next.stderr();
        assert!(kill.contains("after-aside") || said.contains("not all of this file is in rows"), "{kill}: {said}");
    }
}

#[test]
fn once_ends_where_the_path_is_a_file_or_is_not_there() {
    let folder = Folder::new();
    folder.publish("in/a.txt", "1\n");
    for (path, words) in [("in/a.txt", "is a file"), ("nowhere", "does not exist, and `--once` does not wait for it")] {
        let job = format!(
            "job: wrong\nsources: {{ in: {{ type: directory, path: {path}, codec: text }} }}\nsinks: {{ out: {{ type: files, path: out, codec: text }} }}\n"
        );
        let mut ended = Run::new(&folder).job(&job).once();
        ended.expect_code(1);
        let said = ended.stderr();
        assert!(said.contains(words) && said.contains(folder.join(path).to_str().unwrap()), "{path}: {said}");
    }
}

#[test]
fn a_dead_letter_says_file_and_line_and_holds_text_and_bytes() {
    let folder = Folder::new();
    let csv = b"id,name\n1,M\xfcller\nx,Sch\xf6n\n3,\"a\nb\"\ny,last\n";
    folder.publish("in/day/people.csv", csv);
    let run = Run::new(&folder).job(
        "job: letters\ntrigger: asap\nsources: { people: { type: directory, path: in, recursive: true, settle: 10ms, \
         codec: { type: csv, encoding: windows-1252 }, schema: { id: int64, name: string } } }\n\
         sinks: { out: { type: files, path: out, codec: json } }\ndead_letters: { type: files, path: dead, codec: json }\n",
    );
    run.once().expect_success();
    let letters = Rows::files(&folder.join("dead"));
    let picked = letters.select(&["source", "file", "line", "record", "record_base64", "step"]);
    let letter = |line: u64, record: &str, base64: Value| {
        let letter = json!({
            "source": "people", "file": "day/people.csv", "line": line, "record": record, "record_base64": base64, "step": "decode"
        });
        letter.as_object().unwrap().clone()
    };
    // The third record has a line break in it: lines are counted as an editor counts them.
    let expected = [letter(3, "x,Schön", json!("eCxTY2j2bg==")), letter(6, "y,last", Value::Null)];
    assert_eq!(picked.0, expected);
    assert!(letters.0.iter().all(|letter| letter.get("topic").is_none_or(Value::is_null)));
}

#[test]
fn a_table_of_dead_letters_that_was_made_by_an_earlier_version_goes_on() {
    let folder = Folder::new();
    folder.publish("in/a.json", "{\"n\": \"no\"}\n");
    let database = rusqlite::Connection::open(folder.join("dead.db")).unwrap();
    let columns = "job TEXT, source TEXT, shard TEXT, position TEXT, step TEXT, reason TEXT, detail TEXT, record TEXT, \
                   record_base64 TEXT, rejected_at TEXT, batch TEXT";
    database.execute_batch(&format!("CREATE TABLE dead ({columns})")).unwrap();
    let run = Run::new(&folder).job(
        "job: tables\ntrigger: asap\nsources: { in: { type: directory, path: in, settle: 10ms, codec: json, schema: { n: int64 } } }\n\
         sinks: { out: { type: files, path: out, codec: json } }\ndead_letters: { type: sqlite, path: dead.db, table: dead }\n",
    );
    let mut older = run.once();
    older.expect_success();
    assert!(older.stderr().contains("ALTER TABLE"), "{}", older.stderr());
    for (column, kind) in
        [("file", "TEXT"), ("topic", "TEXT"), ("line", "INTEGER"), ("partition", "INTEGER"), ("offset", "INTEGER")]
    {
        database.execute_batch(&format!("ALTER TABLE dead ADD COLUMN \"{column}\" {kind}")).unwrap();
    }
    folder.publish("in/b.json", "{\"n\": 1}\n{\"n\": \"nor\"}\n");
    run.once().expect_success();
    let found = Rows::sqlite(&folder.join("dead.db"), "SELECT file, line FROM dead ORDER BY rowid");
    assert_eq!(found.column("file"), ["null", "b.json"]);
    assert_eq!(found.column("line"), ["null", "2"]);
}

/// Values that mean something in paths, in URLs or to Hive.
const VALUES: [&str; 11] =
    ["a=b", "a+b", "50%", "a%3Db", "x/y", "a b", "2015-05-17 10:00:00", "ü", ".x", "", "a=b=c&d?"];

#[test]
fn partitions_are_read_back_as_they_were_written() {
    let Some(python) = needs::python_with("duckdb") else { return };
    let folder = Folder::new();
    let rows: String =
        VALUES.iter().enumerate().map(|(n, value)| json!({ "n": n, "k": value }).to_string() + "\n").collect();
    folder.publish("in/a.json", rows);
    Run::new(&folder)
        .job(
            "job: parts\nsources: { in: { type: directory, path: in, settle: 10ms, codec: json, schema: { n: int64, k: string } } }\n\
             sinks: { out: { type: files, path: out, codec: parquet, partition_by: [k] } }\n",
        )
        .once()
        .expect_success();
    let read = "import duckdb, json, sys\n\
                rows = duckdb.sql(f\"SELECT n, k FROM read_parquet('{sys.argv[1]}/*/*.parquet', hive_partitioning = true, hive_types_autocast = false) ORDER BY n\")\n\
                print(json.dumps([k for n, k in rows.fetchall()]))";
    let said = Command::new(python).args(["-c", read]).arg(folder.join("out")).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let found: Vec<String> = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(found, VALUES);
}
