//! Lookups in the real binary, with tables of files and SQLite: what they join, that a replay joins the same, that a newer
//! table is taken and a broken one is not, and what is said where a table is missing.

use std::{fs, path::PathBuf};

use tidemill_tests::{Daemon, Folder, PATIENCE, Rows, Run, daemon::tidemill, eventually, oracle};

const HEAD: &str = "job: lookups\ntrigger: 50ms\nbatch: { max_records: 100 }\n\
    sources:\n  in: { type: directory, path: in, settle: 10ms, schema: { n: int64, country: string } }\n";
const LOOKUP: &str = "  - name: countries\n    lookup: { table: countries.csv, match: { country: code }, take: { name: country_name }, refresh: 100ms }\n";
const DB: &str = "  db: { type: sqlite, path: rows.db, table: rows }\n";
const FILES: &str = "  out: { type: files, path: out }\n";

fn job(steps: &str, sinks: &str) -> String {
    format!("{HEAD}steps:\n{steps}sinks:\n{sinks}")
}

fn records(numbers: std::ops::Range<usize>) -> String {
    numbers.map(|n| format!("{{\"n\": {n}, \"country\": \"{}\"}}\n", ["DE", "NO", "XX"][n % 3])).collect()
}

fn expected(numbers: std::ops::Range<usize>, names: [&str; 2]) -> Rows {
    let row = |n: usize| {
        let name = match n % 3 {
            2 => "null".to_owned(),
            known => format!("\"{}\"", names[known]),
        };
        format!("{{\"n\": {n}, \"country\": \"{}\", \"country_name\": {name}}}", ["DE", "NO", "XX"][n % 3])
    };
    Rows::json(&numbers.map(row).collect::<Vec<_>>().join("\n"))
}

const OLD: &str = "code,name\nDE,Germany\nNO,Norway\n";
const NEW: &str = "code,name\nDE,Deutschland\nNO,Norge\nFR,France\n";
const GERMANY: [&str; 2] = ["Germany", "Norway"];
const DEUTSCHLAND: [&str; 2] = ["Deutschland", "Norge"];

fn rows(folder: &Folder) -> Rows {
    Rows::sqlite(&folder.join("rows.db"), "SELECT n, country, country_name FROM rows ORDER BY n")
}

fn kept(folder: &Folder) -> Vec<PathBuf> {
    let folder = folder.join("data/lookups/lookups");
    if folder.is_dir() { oracle::files(&folder) } else { Vec::new() }
}

/// Waits until the table has so many rows.
fn wait_for(folder: &Folder, daemon: &mut Daemon, count: usize) {
    eventually(&format!("{count} rows"), || {
        let found = Rows::try_sqlite(&folder.join("rows.db"), "SELECT n, country, country_name FROM rows");
        let found = found.map_or(0, |rows| rows.len());
        if found == count { Ok(()) } else { Err(format!("{found} rows\n{}", daemon.stderr())) }
    });
    assert!(daemon.is_running());
}

/// The first batch is in the anchor, and nowhere else.
fn open_batch() -> Folder {
    let folder = Folder::new();
    folder.write("countries.csv", OLD);
    folder.publish("in/a.json", records(0..30));
    Run::new(&folder).job(&job(LOOKUP, &[DB, FILES].concat())).failpoint("after-anchor:1:kill").start().expect_killed();
    folder
}

fn check(folder: &Folder, names: [&str; 2]) {
    let expected = expected(0..30, names);
    rows(folder).assert_same(&expected, "the table");
    Rows::files(&folder.join("out")).select(&["n", "country", "country_name"]).assert_same(&expected, "the files");
}

#[test]
fn a_replay_joins_the_table_that_the_batch_joined() {
    let folder = open_batch();
    folder.publish("countries.csv", NEW);
    folder.publish("in/b.json", records(30..60));
    Run::new(&folder).job(&job(LOOKUP, &[DB, FILES].concat())).once().expect_success();
    let both: Vec<String> = rows(&folder).column("country_name");
    assert!(both.iter().filter(|name| name.contains("Germany")).count() == 10, "{both:?}");
    assert!(both.iter().filter(|name| name.contains("Deutschland")).count() == 10, "{both:?}");
    let files = Rows::files(&folder.join("out")).select(&["n", "country", "country_name"]);
    files.assert_same(&rows(&folder), "the files");
    // The older table is needed for as long as a plan names it, and not longer.
    assert_eq!(kept(&folder).len(), 1, "{:?}", kept(&folder));
}

#[test]
fn a_replay_without_its_table_stops_and_says_the_ways_out() {
    let folder = open_batch();
    let [snapshot] = &kept(&folder)[..] else { panic!("{:?}", kept(&folder)) };
    let bytes = fs::read(snapshot).unwrap();
    fs::remove_file(snapshot).unwrap();
    folder.publish("countries.csv", NEW);
    let run = Run::new(&folder).job(&job(LOOKUP, &[DB, FILES].concat()));
    let mut stopped = run.once();
    stopped.expect_code(1);
    let said = stopped.stderr();
    let name = snapshot.file_name().unwrap().to_str().unwrap();
    for part in [
        name,
        "lookup countries",
        "is another",
        "`on_lost_table: continue`",
        "resolve --sink out --accept-loss",
        "Put back what is gone",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // The way out that loses nothing: the table is put back.
    fs::write(snapshot, &bytes).unwrap();
    run.once().expect_success();
    check(&folder, GERMANY);
}

/// The job says so now, and did not when the batch began: each row is in both sinks, once, with the names that each has got.
#[test]
fn a_replay_may_go_on_with_the_table_of_now() {
    let folder = open_batch();
    kept(&folder).iter().for_each(|file| fs::remove_file(file).unwrap());
    folder.publish("countries.csv", NEW);
    let lookup = LOOKUP.replace("refresh:", "on_lost_table: continue, refresh:");
    let mut run = Run::new(&folder).job(&job(&lookup, &[DB, FILES].concat())).once();
    run.expect_success();
    assert!(run.stderr().contains("replayed with the table as it is now"), "{}", run.stderr());
    rows(&folder).assert_same(&expected(0..30, GERMANY), "the table");
    Rows::files(&folder.join("out"))
        .select(&["n", "country", "country_name"])
        .assert_same(&expected(0..30, DEUTSCHLAND), "the files");
}

#[test]
fn a_sink_may_do_without_a_batch_whose_table_is_gone() {
    let folder = open_batch();
    kept(&folder).iter().for_each(|file| fs::remove_file(file).unwrap());
    folder.publish("countries.csv", NEW);
    let resolved = tidemill(
        &folder,
        &[
            "checkpoint",
            "resolve",
            "--sink",
            "out",
            "--accept-loss",
            "--yes",
            "--job",
            "job.yaml",
            "--data-dir",
            "data",
        ],
    );
    let said = String::from_utf8_lossy(&resolved.stderr).into_owned();
    assert!(resolved.status.success(), "{said}");
    folder.publish("in/b.json", records(30..60));
    Run::new(&folder).job(&job(LOOKUP, &[DB, FILES].concat())).once().expect_success();
    assert_eq!(rows(&folder).len(), 60);
    Rows::files(&folder.join("out"))
        .select(&["n", "country", "country_name"])
        .assert_same(&expected(30..60, DEUTSCHLAND), "the files have the second batch");
}

#[test]
fn a_table_that_is_still_the_same_is_as_good_as_the_one_that_was_kept() {
    let folder = open_batch();
    kept(&folder).iter().for_each(|file| fs::remove_file(file).unwrap());
    Run::new(&folder).job(&job(LOOKUP, &[DB, FILES].concat())).once().expect_success();
    check(&folder, GERMANY);
}

#[test]
fn a_lookup_that_is_edited_while_its_batch_is_open_is_replayed_as_it_was() {
    let folder = open_batch();
    folder.publish("countries.csv", NEW);
    let steps = "  - name: other\n    lookup: { table: countries.csv, match: { country: code }, take: { code: country_name } }\n";
    Run::new(&folder).job(&job(steps, &[DB, FILES].concat())).once().expect_success();
    check(&folder, GERMANY);
}

#[test]
fn a_newer_table_is_taken_and_a_broken_one_is_not() {
    let folder = Folder::new();
    folder.write("countries.csv", OLD);
    folder.publish("in/a.json", records(0..30));
    let mut daemon = Run::new(&folder).job(&job(LOOKUP, DB)).spawn();
    let labels = ["job=\"lookups\"", "step=\"countries\""];
    wait_for(&folder, &mut daemon, 30);
    assert_eq!(daemon.metric("tidemill_lookup_rows", &labels), 2.0);
    assert!(daemon.metric("tidemill_lookup_bytes", &labels) > 0.0);
    let failures = |daemon: &Daemon| daemon.metric("tidemill_lookup_refresh_failures_total", &labels);
    assert_eq!(failures(&daemon), 0.0);
    // Twice the same key, columns that are not there, nothing, then not even a file.
    for broken in [Some("code,name\nDE,a\nDE,b\n"), Some("code,nmae\n"), Some(""), None] {
        let before = failures(&daemon);
        match broken {
            // In place, as a shell does it.
            Some(text) => drop(folder.write("countries.csv", text)),
            None => fs::remove_file(folder.join("countries.csv")).unwrap(),
        }
        eventually("a failure", || if failures(&daemon) > before { Ok(()) } else { Err("none".to_owned()) });
    }
    assert!(daemon.stderr().contains("the key code = \"DE\" is in it twice"), "{}", daemon.stderr());
    assert!(daemon.stderr().contains("it has no column `name`. There are: code, nmae; the one"), "{}", daemon.stderr());
    assert!(daemon.stderr().contains("it is empty: a CSV file without rows has its header"), "{}", daemon.stderr());
    assert!(daemon.stderr().contains("there is no such file; the one before is used on"), "{}", daemon.stderr());
    folder.publish("in/b.json", records(30..60));
    wait_for(&folder, &mut daemon, 60);
    rows(&folder).assert_same(&expected(0..60, GERMANY), "the old table");
    let age = daemon.metric("tidemill_lookup_refresh_timestamp_seconds", &labels);
    folder.publish("countries.csv", NEW);
    eventually("the new table", || {
        let count = daemon.metric("tidemill_lookup_rows", &labels);
        if count == 3.0 { Ok(()) } else { Err(format!("{count} rows")) }
    });
    assert!(daemon.metric("tidemill_lookup_refresh_timestamp_seconds", &labels) > age);
    folder.publish("in/c.json", records(60..90));
    wait_for(&folder, &mut daemon, 90);
    Rows::sqlite(&folder.join("rows.db"), "SELECT n, country, country_name FROM rows WHERE n >= 60")
        .assert_same(&expected(60..90, DEUTSCHLAND), "the new table");
    daemon.term();
    daemon.expect_success();
}

#[test]
fn the_first_batch_waits_for_a_table_that_is_not_there() {
    let folder = Folder::new();
    folder.publish("in/a.json", records(0..30));
    let run = Run::new(&folder).job(&job(LOOKUP, DB)).limit(PATIENCE);
    let mut once = run.once();
    once.expect_code(1);
    assert!(once.stderr().contains("countries.csv: there is no such file"), "{}", once.stderr());
    let mut daemon = run.start();
    eventually("the lane to say what it waits for", || {
        let ready = daemon.get("/ready").map_err(|error| error.to_string())?;
        if ready.status == 503 && ready.body.contains("countries.csv: there is no such file") {
            return Ok(());
        }
        Err(format!("{} {}", ready.status, ready.body))
    });
    folder.publish("countries.csv", OLD);
    wait_for(&folder, &mut daemon, 30);
    rows(&folder).assert_same(&expected(0..30, GERMANY), "the table");
}

/// A file without rows has them later. One without the columns is no table, with the types given or not, nor is one without
/// anything.
#[test]
fn a_file_without_rows_has_its_columns_all_the_same() {
    let typed = LOOKUP.replace("refresh", "schema: { code: string, name: string }, refresh");
    let once = |steps: &str, file: &str, text: &str| {
        let folder = Folder::new();
        folder.publish("in/a.json", records(0..3));
        folder.write(file, text);
        let mut once = Run::new(&folder).job(&job(&steps.replace("countries.csv", file), DB)).limit(PATIENCE).once();
        (once.wait().code(), once.stderr(), folder)
    };
    for steps in [LOOKUP, &typed] {
        for (file, text) in [("c.csv", "code,name\n"), ("c.json", "[]"), ("c.jsonl", "[]\n")] {
            let (code, said, folder) = once(steps, file, text);
            assert_eq!(code, Some(0), "{file} {text:?}: {said}");
            assert_eq!(rows(&folder).len(), 3, "{file}");
        }
        for (file, text, expected) in [
            ("c.csv", "", "it is empty"),
            ("c.jsonl", "\n", "it is empty"),
            ("c.csv.gz", "", "it is empty"),
            ("c.csv", "code,nmae\n", "no column `name`"),
            ("c.csv", "code,nmae\nDE,Germany\n", "no column `name`"),
        ] {
            let (code, said, _) = once(steps, file, text);
            assert!(code != Some(0) && said.contains(expected), "{file} {text:?}: {code:?} {said}");
        }
    }
}

#[test]
fn rows_without_one_go_to_the_dead_letters_once() {
    let folder = Folder::new();
    folder.write("countries.csv", OLD);
    folder.publish("in/a.json", records(0..30));
    let steps = LOOKUP.replace("refresh: 100ms", "on_missing: reject");
    let run = Run::new(&folder).job(&job(&steps, &[DB, FILES].concat()));
    run.clone().failpoint("after-anchor:1:kill").start().expect_killed();
    folder.publish("countries.csv", "code,name\nXX,nowhere\n");
    run.once().expect_success();
    let letters = Rows::files(&folder.join("data/lookups/dead-letters"));
    assert_eq!(letters.len(), 10);
    assert!(letters.column("step").iter().all(|step| step.contains("countries")));
    let detail = letters.column("detail");
    assert!(detail.iter().all(|text| text.contains("countries.csv has no row for country = ")), "{detail:?}");
    assert_eq!((rows(&folder).len(), Rows::files(&folder.join("out")).len()), (20, 20));
}

/// The trial in a process of its own has the tables of the batch, whole and asked: it gets as far as the daemon did, and dies
/// of the same.
#[test]
fn a_batch_that_kills_the_process_is_found_out_with_its_tables() {
    let folder = Folder::new();
    folder.write("countries.csv", OLD);
    let table = rusqlite::Connection::open(folder.join("shop.db")).unwrap();
    table.execute_batch("CREATE TABLE names (code TEXT, name TEXT)").unwrap();
    folder.publish("in/a.json", records(0..30));
    let more = "  - lookup: { database: shop, table: names, match: { country: code }, take: [name], mode: query }\n";
    let job = format!("databases: {{ shop: shop.db }}\n{}", job(&[LOOKUP, more].concat(), DB));
    let run = Run::new(&folder).job(&job).failpoint("computing:1:kill");
    for _ in 0..3 {
        run.start().expect_killed();
    }
    let mut stopped = run.once();
    stopped.expect_code(1);
    assert!(stopped.stderr().contains("a trial in a process of its own died too"), "{}", stopped.stderr());
    Run::new(&folder).job(&job).once().expect_success();
    rows(&folder).assert_same(&expected(0..30, GERMANY), "the table");
}

/// A table that is larger than what tables may have of the budget is refused by name, before all of it is in memory.
#[test]
fn a_table_beyond_its_part_of_the_memory_is_refused() {
    let folder = Folder::new();
    let more: String = (0..60_000).map(|n| format!("X{n},{}\n", "a name of some length ".repeat(4))).collect();
    folder.write("countries.csv", format!("{OLD}{more}"));
    folder.write("tidemill.yaml", "memory: 16MiB\n");
    folder.publish("in/a.json", records(0..250));
    let run = Run::new(&folder).job(&job(LOOKUP, &[DB, FILES].concat())).arg("--config").arg("tidemill.yaml");
    let mut once = run.once();
    once.expect_code(1);
    let said = once.stderr();
    assert!(said.contains("a quarter of the daemon's `memory`") && said.contains("mode: query"), "{said}");
    folder.write("countries.csv", OLD);
    run.once().expect_success();
    rows(&folder).assert_same(&expected(0..250, GERMANY), "the table");
}

#[test]
fn sqlite_is_asked_once_a_batch_and_answers_are_remembered() {
    let folder = Folder::new();
    let table = rusqlite::Connection::open(folder.join("shop.db")).unwrap();
    table.execute_batch("CREATE TABLE countries (code TEXT PRIMARY KEY, name TEXT); INSERT INTO countries VALUES ('DE', 'Germany'), ('NO', 'Norway')").unwrap();
    folder.publish("in/a.json", records(0..250));
    let steps = |cache: &str| {
        format!(
            "  - name: countries\n    lookup: {{ database: shop, table: countries, match: {{ country: code }}, take: {{ name: country_name }}, mode: query, cache: {cache} }}\n"
        )
    };
    let with = |cache: &str| format!("databases: {{ shop: shop.db }}\n{}", job(&steps(cache), DB));
    let labels = ["job=\"lookups\"", "step=\"countries\""];
    // Three batches, of three keys each.
    let mut daemon = Run::new(&folder).job(&with("{ entries: 0 }")).spawn();
    wait_for(&folder, &mut daemon, 250);
    assert_eq!(daemon.metric("tidemill_lookup_queries_total", &labels), 3.0);
    rows(&folder).assert_same(&expected(0..250, GERMANY), "the table");
    daemon.term();
    daemon.expect_success();
    // With a cache all keys are known after the first.
    let mut daemon = Run::new(&folder).job(&with("{ ttl: 1h }")).spawn();
    folder.publish("in/b.json", records(250..500));
    wait_for(&folder, &mut daemon, 500);
    assert_eq!(daemon.metric("tidemill_lookup_queries_total", &labels), 1.0);
    rows(&folder).assert_same(&expected(0..500, GERMANY), "the table");
    daemon.term();
    daemon.expect_success();
}

#[test]
fn explain_says_what_is_joined_and_what_a_replay_gives() {
    let folder = Folder::new();
    folder.write("countries.csv", OLD);
    let more = "  - name: people\n    lookup: { database: crm, sql: SELECT 1, match: { n: id }, take: [person], mode: query }\n";
    folder.write(
        "job.yaml",
        format!("databases: {{ crm: \"postgres://me:hunter2@db/crm\" }}\n{}", job(&[LOOKUP, more].concat(), DB)),
    );
    let explained = |with_schema: bool| {
        let text = fs::read_to_string(folder.join("job.yaml")).unwrap();
        if with_schema {
            folder.write(
                "job.yaml",
                text.replace("take: [person]", "take: [person], schema: { id: int64, person: string }"),
            );
        }
        let output = tidemill(&folder, &["explain", "job.yaml"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let text = explained(false);
    for part in [
        "joins the file",
        "the plan names the table",
        "a query of database crm (postgres://me@db/crm)",
        "a replay asks again",
        "once those of the lookups' tables are",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
    let text = explained(true);
    assert!(text.contains("columns: n int64, country string, country_name string, person string"), "{text}");
}

#[test]
fn validate_looks_into_files_and_with_connect_into_databases() {
    let folder = Folder::new();
    let validate = |arguments: &[&str]| {
        let output = tidemill(&folder, &[&["validate", "job.yaml"], arguments].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    folder.write("job.yaml", job(LOOKUP, DB));
    // It may be somewhere else, or come later.
    let (code, said) = validate(&[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains(&format!(
            "warning: job.yaml: step countries: there is no file {}",
            folder.join("countries.csv").display()
        )),
        "{said}"
    );
    let (code, said) = validate(&["--connect"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains(&format!("lookup countries: {}: there is no such file", folder.join("countries.csv").display())),
        "{said}"
    );
    folder.write("countries.csv", "code,name\n\"DE\nGermany\n");
    let (code, said) = validate(&[]);
    assert!(code == Some(78) && said.contains("job.yaml:") && said.contains("countries.csv"), "{said}");
    folder.write("countries.csv", "code,nmae\nDE,Germany\n");
    let (code, said) = validate(&[]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("countries.csv has no column `name`; did you mean `nmae`?"), "{said}");
    folder.write("countries.csv", OLD);
    assert_eq!(validate(&[]).0, Some(0));
    let shop = "  - lookup: { database: shop, table: items, match: { n: id }, take: [wieght] }\n";
    folder.write("job.yaml", format!("databases: {{ shop: shop.db }}\n{}", job(shop, DB)));
    assert_eq!(validate(&[]).0, Some(0), "only the database knows");
    let (code, said) = validate(&["--connect"]);
    assert!(code == Some(1) && said.contains("lookup 1-lookup") && said.contains("shop.db"), "{said}");
    assert!(!folder.join("shop.db").exists(), "nothing is made");
    let table = rusqlite::Connection::open(folder.join("shop.db")).unwrap();
    table.execute_batch("CREATE TABLE items (id INTEGER, weight REAL)").unwrap();
    let (code, said) = validate(&["--connect"]);
    assert!(code == Some(1) && said.contains("has no column `wieght`; did you mean `weight`?"), "{said}");
}
