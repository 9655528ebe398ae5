//! Sources whose columns nobody has told: the schema is inferred from the first records, pinned, and kept, whatever comes
//! first, later, or under another name.

use std::io::Write;

use tidemill_tests::{Folder, Rows, Run, daemon::tidemill, eventually, feed, free_address};

fn dead(folder: &Folder) -> Vec<String> {
    Rows::files(&folder.join("dead")).column("reason")
}

#[test]
fn garbage_before_the_first_record_stops_nothing() {
    let folder = Folder::new();
    let address = free_address();
    let yaml = format!(
        "job: s\ntrigger: asap\nsources: {{ in: {{ type: socket, listen: \"{address}\", codec: json }} }}\nsteps:\n  - filter: n > 1\n\
         sinks: {{ db: {{ type: sqlite, path: rows.db, table: rows }} }}\ndead_letters: {{ type: files, path: dead, codec: json }}\n"
    );
    let run = Run::new(&folder).job(&yaml);
    let mut daemon = run.clone().spawn();
    let mut stream = feed::connect(address);
    for garbage in ["no json\n", "[1]\n", "{}\n"] {
        stream.write_all(garbage.as_bytes()).unwrap();
        let count = dead(&folder).len();
        eventually("the dead letter", || {
            let now = dead(&folder);
            if now.len() > count { Ok(()) } else { Err(format!("{now:?}")) }
        });
    }
    // A restart meets the same mark, and no schema.
    daemon.kill9();
    let daemon = run.spawn();
    let mut stream = feed::connect(address);
    stream.write_all(b"{\"n\": 1}\nno json\n{\"n\": 2}\n{\"n\": 3}\n").unwrap();
    eventually("the rows", || {
        let rows = Rows::try_sqlite(&folder.join("rows.db"), "SELECT n FROM rows").map_err(|e| e.to_string())?;
        rows.compare(&Rows::json("{\"n\": 2}\n{\"n\": 3}"))
    });
    eventually("the last dead letter", || {
        let reasons = dead(&folder);
        let wanted = ["json", "not_an_object", "no_schema", "json"];
        if reasons.len() == wanted.len() && wanted.iter().all(|reason| reasons.iter().any(|r| r == reason)) {
            Ok(())
        } else {
            Err(format!("{reasons:?}"))
        }
    });
    drop(daemon);
}

#[test]
fn a_file_without_records_comes_first() {
    let folder = Folder::new();
    folder.publish("in/a.csv", "name,age\n");
    folder.publish("in/b.csv", "");
    let yaml = "job: s\ntrigger: asap\nsources: { in: { type: directory, path: in, settle: 10ms, codec: csv } }\nsteps:\n  - filter: age > 30\n\
                sinks: { out: { type: files, path: out, codec: json } }\n";
    let run = Run::new(&folder).job(yaml);
    run.once().expect_success();
    folder.publish("in/c.csv", "name,age\nAda,36\nBob,7\n");
    run.once().expect_success();
    Rows::files(&folder.join("out")).assert_same(&Rows::json("{\"name\": \"Ada\", \"age\": 36}"), "the files");
}

#[test]
fn steps_that_need_a_silent_sources_columns_wait_for_it_and_others_do_not() {
    let folder = Folder::new();
    let job = |steps: &str| {
        format!(
            "job: s\ntrigger: asap\nsources:\n  a: {{ type: directory, path: a, settle: 10ms, codec: json }}\n  b: {{ type: directory, path: b, settle: 10ms, codec: json }}\n\
             {steps}sinks: {{ out: {{ type: files, path: out, codec: json }} }}\n"
        )
    };
    folder.publish("a/1.json", "{\"n\": 1}\n");
    folder.publish("b/.keep", "");
    // Without a step that names its columns the silent source is left out until it speaks.
    let daemon = Run::new(&folder).job(&job("")).spawn();
    eventually("the first row", || Rows::files(&folder.join("out")).select(&["n"]).compare(&Rows::json("{\"n\": 1}")));
    drop(daemon);
    let mut daemon = Run::new(&folder).job(&job("steps:\n  - filter: coalesce(m, n) > 0\n")).start();
    folder.publish("a/2.json", "{\"n\": 2}\n");
    daemon.wait_status("/ready", 503);
    eventually("what it waits for", || {
        let said = daemon.get("/ready").map(|answer| answer.body).unwrap_or_default();
        if said.contains("the columns of b are not known yet") { Ok(()) } else { Err(said) }
    });
    folder.publish("b/1.json", "{\"m\": 5}\n");
    let expected = Rows::json("{\"n\": 1, \"m\": null}\n{\"n\": 2, \"m\": null}\n{\"n\": null, \"m\": 5}");
    eventually("all rows", || Rows::files(&folder.join("out")).select(&["n", "m"]).compare(&expected));
}

#[test]
fn a_renamed_source_keeps_its_schema_with_a_batch_open_too() {
    let folder = Folder::new();
    folder.publish("in/1.json", "{\"n\": 1, \"text\": \"one\"}\n");
    let job = |source: &str| {
        format!(
            "job: s\ntrigger: asap\nsources:\n  {source}\nsteps:\n  - add: {{ double: n * 2 }}\nsinks:\n  db: {{ type: sqlite, path: rows.db, table: rows }}\n  \
             out: {{ type: files, path: out, codec: json }}\n"
        )
    };
    let rest = "type: directory, path: in, settle: 10ms, codec: json }";
    let old = Run::new(&folder).job(&job(&format!("old: {{ {rest}")));
    old.failpoint("after-anchor:1:kill").start().expect_killed();
    // By its values alone `n` would be a decimal number now.
    folder.publish("in/2.json", "{\"n\": 2, \"text\": \"two\", \"more\": true}\n{\"n\": 2.5, \"text\": \"three\"}\n");
    Run::new(&folder).job(&job(&format!("new: {{ formerly: old, {rest}"))).once().expect_success();
    let expected = Rows::json("{\"n\": 1, \"double\": 2}\n{\"n\": 2, \"double\": 4}");
    Rows::sqlite(&folder.join("rows.db"), "SELECT n, double FROM rows").assert_same(&expected, "the table");
    Rows::files(&folder.join("out")).select(&["n", "double"]).assert_same(&expected, "the files");
    let more = Rows::files(&folder.join("out")).column("more");
    assert_eq!(more.iter().filter(|value| *value == "true").count(), 1, "{more:?}");
}

#[test]
fn csv_columns_that_come_later_are_kept() {
    let folder = Folder::new();
    folder.publish("in/1.csv", "name,age\nAda,36\n");
    let yaml = "job: s\ntrigger: asap\nsources: { in: { type: directory, path: in, settle: 10ms, codec: csv } }\n\
                sinks: { out: { type: files, path: out, codec: json } }\n";
    let run = Run::new(&folder).job(yaml);
    run.once().expect_success();
    folder.publish("in/2.csv", "age,town,name\n41,\"Ulm, \"\"am\"\" Fluss\",Eve\n");
    run.once().expect_success();
    let expected = Rows::json(
        "{\"name\": \"Ada\", \"age\": 36}\n{\"name\": \"Eve\", \"age\": 41, \"town\": \"Ulm, \\\"am\\\" Fluss\"}",
    );
    Rows::files(&folder.join("out")).assert_same(&expected, "the files");
}

/// One of three sources fills its own share of a batch: the next batch does not wait for the trigger. One batch a trigger
/// would take more than two minutes.
#[test]
fn a_source_that_fills_its_share_does_not_wait_for_the_trigger() {
    let folder = Folder::new();
    let lines: String = (0..600).map(|n| format!("{{\"n\": {n}}}\n")).collect();
    folder.publish("busy/1.json", lines);
    let source = |name: &str| {
        format!("  {name}: {{ type: directory, path: {name}, settle: 10ms, codec: json, schema: {{ n: int64 }} }}\n")
    };
    folder.publish("idle/.keep", "");
    folder.publish("quiet/.keep", "");
    let yaml = format!(
        "job: s\ntrigger: 5s\nbatch: {{ max_records: 60 }}\nsources:\n{}{}{}sinks: {{ db: {{ type: sqlite, path: rows.db, table: rows }} }}\n",
        source("busy"),
        source("idle"),
        source("quiet")
    );
    let _daemon = Run::new(&folder).job(&yaml).spawn();
    eventually("all rows within few triggers", || {
        let rows =
            Rows::try_sqlite(&folder.join("rows.db"), "SELECT count(*) AS n FROM rows").map_err(|e| e.to_string())?;
        let count = rows.column("n");
        if count == ["600"] { Ok(()) } else { Err(format!("{count:?}")) }
    });
}

/// A job without steps can be planned over no columns at all: a sink has no use for such a row.
#[test]
fn an_object_without_fields_comes_first() {
    for (sink, metadata) in [
        ("type: sqlite, path: out/rows.db, table: rows", ""),
        ("type: sqlite, path: out/rows.db, table: rows", ", metadata: [position]"),
        ("type: files, path: out, codec: json", ""),
        ("type: files, path: out, codec: parquet", ""),
    ] {
        let folder = Folder::new();
        folder.publish("in/1.json", "{}\n");
        folder.publish("other/1.json", "{\"n\": 1}\n");
        let source = |name: &str, more: &str| {
            format!("  {name}: {{ type: directory, path: {name}, settle: 10ms, codec: json{more} }}\n")
        };
        let job = |sources: String| {
            format!(
                "job: s\ntrigger: asap\nsources:\n{sources}sinks: {{ out: {{ {sink} }} }}\n\
                 dead_letters: {{ type: files, path: dead, codec: json }}\n"
            )
        };
        let alone = Run::new(&folder).job(&job(source("in", metadata)));
        alone.once().expect_success();
        assert_eq!(dead(&folder), ["no_schema"], "{sink}{metadata}");
        folder.publish("in/2.json", "{\"n\": 2}\n{}\n");
        alone.once().expect_success();
        // Once the columns are known, they may all be missing.
        assert_eq!(dead(&folder), ["no_schema"], "{sink}{metadata}");
        if sink.contains("sqlite") {
            let rows = Rows::sqlite(&folder.join("out/rows.db"), "SELECT n FROM rows");
            rows.assert_same(&Rows::json("{\"n\": 2}\n{\"n\": null}"), sink);
        }
        // Beside a source with a schema it is no row of that one's columns either.
        let folder = Folder::new();
        folder.publish("in/1.json", "{}\n");
        folder.publish("other/1.json", "{\"n\": 1}\n");
        let both = source("in", metadata) + &source("other", ", schema: { n: int64 }");
        Run::new(&folder).job(&job(both)).once().expect_success();
        assert_eq!(dead(&folder), ["no_schema"], "{sink}{metadata}");
    }
}

/// The first plan has no rows: it can be brought to a sink that lacks it before any column is known.
#[test]
fn a_kill_between_the_first_marks_of_two_sinks_stops_no_job_without_a_schema() {
    let folder = Folder::new();
    folder.publish("in/1.json", "{\"n\": 1}\n{\"n\": 2}\n");
    let yaml = "job: s\ntrigger: asap\nsources: { in: { type: directory, path: in, settle: 10ms, codec: json } }\nsteps:\n  - filter: n > 1\n\
                sinks:\n  db: { type: sqlite, path: rows.db, table: rows }\n  out: { type: files, path: out, codec: json }\n";
    let run = Run::new(&folder).job(yaml);
    run.clone().failpoint("mark:2:kill").start().expect_killed();
    run.once().expect_success();
    let expected = Rows::json("{\"n\": 2}");
    Rows::sqlite(&folder.join("rows.db"), "SELECT n FROM rows").assert_same(&expected, "the table");
    Rows::files(&folder.join("out")).select(&["n"]).assert_same(&expected, "the files");
}

#[test]
fn a_sink_catches_up_with_batches_from_before_the_schema() {
    let folder = Folder::new();
    folder.publish("in/1.json", "no json\n");
    let job = |more: &str| {
        format!(
            "job: s\ntrigger: asap\nsources: {{ in: {{ type: directory, path: in, settle: 10ms, codec: json }} }}\nsteps:\n  - filter: n > 1\n\
             sinks:\n  out: {{ type: files, path: out, codec: json }}\n{more}dead_letters: {{ type: files, path: dead, codec: json }}\n"
        )
    };
    Run::new(&folder).job(&job("")).once().expect_success();
    let run = Run::new(&folder).job(&job("  db: { type: sqlite, path: rows.db, table: rows }\n"));
    run.once().expect_success();
    let done =
        tidemill(&folder, &["checkpoint", "resolve", "--sink", "db", "--catch-up", "--yes", "--data-dir", "data"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    folder.publish("in/2.json", "{\"n\": 1}\n{\"n\": 2}\n");
    run.once().expect_success();
    let expected = Rows::json("{\"n\": 2}");
    Rows::sqlite(&folder.join("rows.db"), "SELECT n FROM rows").assert_same(&expected, "the table");
    Rows::files(&folder.join("out")).select(&["n"]).assert_same(&expected, "the files");
    assert_eq!(dead(&folder), ["json"]);
}
