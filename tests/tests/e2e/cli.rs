//! The command line as a person meets it: the demo, and what a wrong job is told.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use tidemill_tests::{Folder, Rows, Run, binary, daemon::tidemill, eventually, feed, free_address, needs};

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
const JOB: &str = r#"job: shop
sources:
  orders: { type: directory, path: in, codec: json, schema: { id: int64, price: string, note: string }, settle: 10ms }
steps:
  - cast: { price: float64 }
  - { name: paid, filter: price > 0 }
  - add: { double: price * 2 }
sinks:
  screen: { type: console, first: 2 }
  db: { type: sqlite, path: out/shop.db, table: orders }
  files: { type: files, path: out/files, codec: csv, from: paid, where: price < 100 }
"#;

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn validate_checks_every_file_and_the_columns_of_steps() {
    let folder = Folder::new();
    folder.write("right.yaml", JOB);
    folder.write("column.yaml", JOB.replace("price > 0", "prize > 0"));
    folder.write("key.yaml", JOB.replace("first: 2", "frist: 2"));
    let (code, out, err) = said(&tidemill(&folder, &["validate", "right.yaml"]));
    assert_eq!((code, &*out), (Some(0), "right.yaml: job shop is valid\n"), "{err}");
    let (code, out, err) =
        said(&tidemill(&folder, &["validate", "key.yaml", "right.yaml", "column.yaml", "none.yaml"]));
    assert_eq!(code, Some(78));
    assert_has(&out, &["right.yaml: job shop is valid"]);
    assert_has(&err, &["key.yaml:9:", "`frist`", "`first`", "column.yaml:6:", "`prize`", "`price`", "none.yaml"]);
    // The same names as a file that is right has: who runs both is told.
    let (code, _, err) = said(&tidemill(&folder, &["run", "right.yaml", "column.yaml", "--once"]));
    assert_eq!(code, Some(78), "{err}");
}

#[test]
fn validate_connect_reaches_sinks_and_creates_nothing() {
    let folder = Folder::new();
    folder.write("job.yaml", JOB);
    let (code, out, err) = said(&tidemill(&folder, &["validate", "job.yaml", "--connect"]));
    assert_eq!(code, Some(0), "{err}");
    assert_has(&out, &["sink db: reached", "sink files: reached", "job shop is valid"]);
    assert!(!folder.join("out").exists() && !folder.join("tidemill-data").exists(), "nothing is created");
    // A file where the folder of a sink should be.
    folder.write("out", "in the way");
    let (code, _, err) = said(&tidemill(&folder, &["validate", "job.yaml", "--connect"]));
    assert_eq!(code, Some(1));
    assert_has(&err, &["job shop: sink db", "job shop: sink files"]);
    // What cannot be reached and what is wrong come together; what is wrong decides the code.
    folder.write("key.yaml", JOB.replace("first: 2", "frist: 2"));
    let (code, _, err) = said(&tidemill(&folder, &["validate", "job.yaml", "key.yaml", "--connect"]));
    assert_eq!(code, Some(78));
    assert_has(&err, &["sink db", "`frist`"]);
}

#[test]
fn validate_warns_of_two_jobs_of_one_name_which_run_refuses() {
    let folder = Folder::new();
    folder.write("a.yaml", JOB);
    folder.write("b.yaml", JOB);
    let (code, _, err) = said(&tidemill(&folder, &["validate", "a.yaml", "b.yaml"]));
    assert_eq!(code, Some(0));
    assert_has(&err, &["warning: b.yaml", "`shop`", "a.yaml"]);
    let (code, _, err) = said(&tidemill(&folder, &["run", "a.yaml", "b.yaml", "--once"]));
    assert_eq!(code, Some(78), "{err}");
}

#[test]
fn explain_shows_the_columns_after_each_step_and_what_each_sink_guarantees() {
    let folder = Folder::new();
    folder.write("job.yaml", JOB);
    let (code, out, err) = said(&tidemill(&folder, &["explain", "job.yaml"]));
    assert_eq!(code, Some(0), "{err}");
    assert_has(
        &out,
        &[
            "job shop (job.yaml)",
            "a batch every 1s",
            "orders: files in",
            "columns: id int64, price string, note string",
            "columns: id int64, price float64, note string\n",
            "paid",
            "columns: id int64, price float64, note string, double float64",
            "the first 2 rows of each batch on standard output; at least once",
            "to table orders of",
            "exactly once (marks in its table tidemill_marks)",
            "rows of paid",
            "where price < 100",
            "dead-letters: files in <data dir>/shop/dead-letters",
            "anchor (commits first): db",
        ],
    );
    folder.write("open.yaml", JOB.replace(", schema: { id: int64, price: string, note: string }", ""));
    let (code, out, _) = said(&tidemill(&folder, &["explain", "open.yaml"]));
    assert_eq!(code, Some(0));
    assert_has(&out, &["inferred from the first batch, then pinned", "give `schema:` to see them here"]);
    let (code, _, err) = said(&tidemill(&folder, &["explain", "none.yaml"]));
    assert_eq!(code, Some(78));
    assert_has(&err, &["none.yaml"]);
}

/// Addresses and properties that nobody could use, told without a look at any server.
#[test]
fn validate_says_what_connectors_have_against_their_options() {
    const KAFKA: &str = "type: kafka, brokers: \"k:9092\"";
    let source = format!("{{ {KAFKA}, topics: t, codec: json, schema: {{ n: int64 }} }}");
    let folder = Folder::new();
    for (source, sink, part) in [
        (&*source, "{ type: blackhole }", ""),
        (
            &source,
            "{ type: postgres, url: \"postgres://h:99999/db\", table: t }",
            "the url cannot be read: write postgres://USER:PASSWORD@HOST",
        ),
        (&source, "{ type: postgres, url: \"postgres://h/db?currentSchema=x\", table: t }", "currentSchema"),
        (&source, "{ type: mysql, url: \"mysql://u:a#b@h/db\", table: t }", "this address cannot be read"),
        (&source, &format!("{{ {KAFKA}, topic: t2, marks_topic: t2 }}"), "marks need a topic of their own"),
        (
            &format!("{{ {KAFKA}, topics: t, codec: json, schema: {{ n: int64 }}, properties: {{ foo.bar: 1 }} }}"),
            "{ type: blackhole }",
            "foo.bar",
        ),
        (
            "{ type: sql, url: \"postgres://h:99999/db\", table: t, order_by: n, schema: { n: int64 } }",
            "{ type: blackhole }",
            "the url cannot be read",
        ),
    ] {
        folder.write("job.yaml", format!("job: a\nsources:\n  in: {source}\nsinks:\n  out: {sink}\n"));
        let (code, out, err) = said(&tidemill(&folder, &["validate", "job.yaml"]));
        assert_eq!(code, Some(if part.is_empty() { 0 } else { 78 }), "{source} {sink}: {out}{err}");
        assert!(err.contains(part) && !err.contains("a#b"), "{source} {sink}: {err}");
    }
}

/// A lane that moves to another daemon goes on from its mark. Where no daemon but this one sees any, there are no such lanes.
#[test]
fn lanes_by_partition_need_marks_that_other_daemons_can_see() {
    const PG: &str = "{ type: postgres, url: \"postgres://h/db\", table: t }";
    const SQLITE: &str = "{ type: sqlite, path: rows.db, table: t }";
    let unmarked = PG.replace(" }", ", guarantee: at_least_once }");
    let job = |lanes: &str, sinks: &str, more: &str| {
        format!(
            "job: a\n{lanes}sources:\n  in: {{ type: kafka, brokers: \"k:9092\", topics: t, codec: json, schema: {{ n: int64 }} }}\n\
             sinks:\n{sinks}{more}"
        )
    };
    let folder = Folder::new();
    let tried = |command: &str, yaml: &str| {
        folder.write("job.yaml", yaml);
        said(&tidemill(&folder, &[command, "job.yaml"]))
    };
    let console = "  a: { type: console }\n";
    let dead = format!("dead_letters: {PG}\n");
    // The sinks, the dead letters, what the job gets without `lanes:`, whether it may ask for lanes by partition, and whether
    // marks are in a file of one machine.
    for (sinks, more, is_partition, may, local) in [
        (format!("  a: {PG}\n"), "", true, true, false),
        (format!("{console}  b: {PG}\n"), "", true, true, false),
        ("  a: { type: files, path: out }\n".to_owned(), "", true, true, false),
        (console.to_owned(), &*dead, true, true, false),
        (format!("  a: {SQLITE}\n"), "", false, true, true),
        (format!("  a: {SQLITE}\n  b: {PG}\n"), "", true, true, true),
        (format!("  a: {SQLITE}\n"), &*dead, true, true, true),
        (console.to_owned(), "", false, false, false),
        ("  a: { type: blackhole }\n".to_owned(), "", false, false, false),
        (format!("{console}  b: {unmarked}\n"), "", false, false, false),
    ] {
        const WARNING: &str = "are in files of this machine alone (the sink `a`)";
        let (code, out, err) = tried("explain", &job("", &sinks, more));
        assert_eq!(code, Some(0), "{err}");
        let lanes = if is_partition { "lanes: partition" } else { "lanes: single" };
        assert_has(&out, &[lanes]);
        let warned = is_partition && local;
        assert_eq!(out.contains(WARNING), warned, "{out}");
        let (_, _, err) = tried("validate", &job("", &sinks, more));
        assert_eq!(err.contains(WARNING), warned, "{err}");
        let partition = job("lanes: partition\n", &sinks, more);
        let (code, _, err) = tried("validate", &partition);
        assert_eq!(code, Some(if may { 0 } else { 78 }), "{err}");
        if may {
            assert_eq!(err.contains(WARNING), local, "{err}");
            continue;
        }
        let words = ["job.yaml:6:3: sinks.a", "no sink of this job keeps marks", "`lanes: single`", "exactly_once"];
        assert_has(&err, &words);
        let (code, _, err) = tried("run", &partition);
        assert_eq!(code, Some(78), "{err}");
        assert_has(&err, &words);
        let (code, _, err) = tried("validate", &job("lanes: single\n", &sinks, more));
        assert_eq!((code, &*err), (Some(0), ""));
    }
}

#[test]
fn run_once_ends_with_0_where_all_is_done_1_where_a_lane_stopped_and_78_where_the_job_is_wrong() {
    let folder = Folder::new();
    folder.write("in/a.json", "{\"id\":1,\"price\":\"2\"}\n{\"id\":2,\"price\":\"x\"}\n{\"id\":3,\"price\":\"4\"}\n{\"id\":4,\"price\":\"0\"}\n");
    let mut done = Run::new(&folder).job(JOB).once();
    done.expect_success();
    assert_has(&done.stdout(), &["batch 1 · 2 rows", "double"]);
    assert_has(
        &done.stderr(),
        &["done in", "records=4", "rejected=1", "job=\"shop\"", "rows=\"db 2, files 2, screen 2\""],
    );
    let letters = folder.join("data/shop/dead-letters").display().to_string();
    assert_has(
        &done.stderr(),
        &[
            "WARN 1 of 4 records rejected: 1 cast (1-cast)",
            "; the first: ",
            "in `{\"id\":2,\"price\":\"x\"}`",
            &format!("See {letters}"),
            &format!("rejected records are in {letters}"),
        ],
    );
    let stored = Rows::sqlite(&folder.join("out/shop.db"), "SELECT id, double FROM orders");
    stored.assert_same(&Rows::json("{\"id\":1,\"double\":4.0}\n{\"id\":3,\"double\":8.0}"), "the table");
    assert_eq!(Rows::files(&folder.join("data/shop/dead-letters")).column("record"), ["{\"id\":2,\"price\":\"x\"}"]);

    folder.publish("in/b.json", "{\"id\":5,\"price\":\"y\"}\n");
    let strict = JOB.replace("cast: { price: float64 }", "{ cast: { price: float64 }, on_error: fail }");
    let mut failed = Run::new(&folder).job(&strict).once();
    failed.expect_code(1);
    assert_has(
        &failed.stderr(),
        &["on_error: fail", "job=\"shop\"", "WARN job shop failed after", "see the error above"],
    );
    assert!(!failed.stderr().contains("done in"), "{}", failed.stderr());
    Run::new(&folder).job(&JOB.replace("type: console", "type: consle")).once().expect_code(78);
    Run::new(&folder).job(JOB).once().expect_success();

    // Told to stop, with a peer that has not closed.
    let (listener, endless) = (free_address(), "sinks: { out: { type: files, path: out } }\n");
    let endless = format!("job: endless\nsources: {{ in: {{ type: socket, listen: \"{listener}\" }} }}\n{endless}");
    let mut told = Run::new(&folder).job(&endless).data_dir("endless").arg("--once").spawn();
    told.term();
    told.expect_code(1);
    assert_has(&told.stderr(), &["WARN job endless failed after", "job=\"endless\""]);

    // The data dir is somebody's file; a job that is nowhere; no job.
    folder.write("file", "");
    Run::new(&folder).job(JOB).data_dir("file").once().expect_code(1);
    let (code, _, err) = said(&tidemill(&folder, &["run", "none.yaml"]));
    assert_eq!(code, Some(78), "{err}");
    let (code, _, err) = said(&tidemill(&folder, &["run"]));
    assert_eq!(code, Some(1));
    assert_has(&err, &["no job: name one"]);
}

#[test]
fn once_on_a_terminal_shows_a_bar_and_a_summary() {
    let Some(script) = needs::tool("script") else { return };
    let folder = Folder::new();
    let lines: String = (0..20_000).map(|n| format!("{{\"id\":{n},\"price\":\"{n}\"}}\n")).collect();
    folder.write("in/a.json", lines);
    folder.write("job.yaml", JOB.replace("job: shop", "job: shop\nbatch: { max_records: 1000 }"));
    let command = format!("'{}' run job.yaml --once", binary::tidemill().display());
    let output = Command::new(script)
        .args(["-qefc", &command, "/dev/null"])
        .current_dir(folder.path())
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (code, out, err) = said(&output);
    assert_eq!(code, Some(0), "{out}\n{err}");
    assert_has(&out, &["records/s", "records in", "batches", "rejected", "done in"]);
    assert!(out.contains("\u{1b}["), "a terminal gets colours and a bar that is drawn in place: {out:?}");
    assert_eq!(Rows::sqlite(&folder.join("out/shop.db"), "SELECT count(*) AS n FROM orders").column("n"), ["19999"]);
}

/// A feed that was started, and the lines that it said on its way.
struct Feed(Child);

impl Drop for Feed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_feed(folder: &Folder, address: SocketAddr, arguments: &[&str]) -> Feed {
    let mut command = Command::new(binary::tidemill());
    command.args(["feed", "file", "--listen", &address.to_string()]).args(arguments).current_dir(folder.path());
    Feed(command.stderr(Stdio::null()).spawn().unwrap())
}

fn received(address: SocketAddr) -> String {
    let mut text = String::new();
    feed::connect(address).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn feed_serves_records_by_delimiter_by_field_at_a_pace_and_again_and_again() {
    let folder = Folder::new();
    folder.write("file", "one\ntwo\n\nthree");
    let address = free_address();
    let mut plain = start_feed(&folder, address, &["--delimiter", "\\n"]);
    assert_eq!(received(address), "one\ntwo\n\nthree\n");
    assert!(plain.0.wait().unwrap().success(), "it ends when a client has everything");

    let address = free_address();
    let _paced = start_feed(&folder, address, &["--delimiter", "__end", "--rate", "8"]);
    let begun = Instant::now();
    assert_eq!(received(address), "one__endtwo__end__endthree__end");
    assert!(begun.elapsed() >= Duration::from_millis(350), "four records at 8 a second: {:?}", begun.elapsed());

    let address = free_address();
    let mut looped = start_feed(&folder, address, &["--loop"]);
    let mut many = vec![0; 100_000];
    feed::connect(address).read_exact(&mut many).unwrap();
    assert!(String::from_utf8_lossy(&many).starts_with("one\ntwo\n\nthree\none\ntwo\n"));
    assert!(looped.0.try_wait().unwrap().is_none(), "it goes on for the next client");
    assert_eq!(&received_start(address, 8), "one\ntwo\n");

    // JSON: lines, an array, nested fields; what has none of the fields is not sent.
    folder.write("file", r#"[{"a":{"b":"x\ny"}},{"c":7},{"a":{"b":null},"c":"z"},{"d":1}]"#);
    let address = free_address();
    let _fields = start_feed(&folder, address, &["--field", "a.b,c", "--delimiter", "|"]);
    assert_eq!(received(address), "x\ny|7|z|");
}

#[test]
fn feed_gives_everything_to_every_client_that_is_connected() {
    let folder = Folder::new();
    // More than the kernel keeps for a client that does not read yet.
    let text: String = (0..400_000).map(|n| format!("record {n} of a long file\n")).collect();
    folder.write("file", &text);
    let address = free_address();
    let mut feed = start_feed(&folder, address, &[]);
    let (mut slow, mut fast) = (feed::connect(address), feed::connect(address));
    let mut first = vec![0; 8];
    slow.read_exact(&mut first).unwrap();
    let mut all = String::new();
    fast.read_to_string(&mut all).unwrap();
    assert!(all == text, "{} of {} bytes", all.len(), text.len());
    let mut rest = String::new();
    slow.read_to_string(&mut rest).unwrap();
    assert_eq!(8 + rest.len(), text.len());
    assert!(feed.0.wait().unwrap().success());
}

fn received_start(address: SocketAddr, length: usize) -> String {
    let mut bytes = vec![0; length];
    feed::connect(address).read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn feed_says_what_is_wrong() {
    let folder = Folder::new();
    folder.write("file", "{\"a\": 1}\n{broken\n");
    let run = |arguments: &[&str]| said(&tidemill(&folder, &[&["feed"], arguments].concat()));
    let (code, _, err) = run(&["none", "--listen", "127.0.0.1:0"]);
    assert_eq!(code, Some(1));
    assert_has(&err, &["reading none"]);
    let (code, _, err) = run(&["file", "--listen", "127.0.0.1:0", "--rate", "0"]);
    assert_eq!(code, Some(1));
    assert_has(&err, &["--rate 0", "more than 0"]);
    let (code, _, err) = run(&["file", "--listen", "127.0.0.1:0", "--field", "a"]);
    assert_eq!(code, Some(1));
    assert_has(&err, &["file: JSON at byte", "line 2"]);
    folder.write("typo", "{\"text\": 1}\n");
    let (code, _, err) = run(&["typo", "--listen", "127.0.0.1:0", "--field", "txet,b"]);
    assert_eq!(code, Some(1), "{err}");
    assert_has(&err, &["none of its 1 records has txet, b"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, _, err) = run(&["file", "--listen", &address]);
    assert_eq!(code, Some(1));
    assert_has(&err, &[&format!("listening on {address}")]);
    let (code, _, _) = run(&["file"]);
    assert_eq!(code, Some(2), "clap's own");
}

#[test]
fn an_interrupted_once_is_no_success_and_loses_nothing() {
    let folder = Folder::new();
    let address = free_address();
    let job = format!(
        "job: cut\nsources: {{ in: {{ type: socket, listen: \"{address}\", codec: text }} }}\nsinks: {{ out: {{ type: files, path: out, codec: json }} }}\n"
    );
    let mut daemon = Run::new(&folder).job(&job).arg("--once").start();
    let mut stream = feed::connect(address);
    stream.write_all(b"one\n").unwrap();
    eventually("the first record", || {
        if Rows::files(&folder.join("out")).len() == 1 { Ok(()) } else { Err(String::new()) }
    });
    daemon.interrupt();
    daemon.expect_code(1);
    // The peer of another run closes: done.
    drop(stream);
    let mut daemon = Run::new(&folder).job(&job).arg("--once").start();
    feed::send(address, &[b"two".to_vec()], b"\n");
    daemon.expect_success();
    assert_eq!(Rows::files(&folder.join("out")).len(), 2);
}

/// Columns that nobody knows are not compared with a table's, and that is said.
#[test]
fn validate_connect_says_what_it_could_not_compare() {
    let folder = Folder::new();
    let job = "job: plain\nsources: { in: { type: directory, path: in } }\nsinks: { db: { type: sqlite, path: out.db, table: t } }\n";
    folder.write("job.yaml", job);
    let (code, out, err) = said(&tidemill(&folder, &["validate", "job.yaml", "--connect"]));
    assert_eq!(code, Some(0), "{err}");
    assert_has(&out, &["sink db: reached", "sink db: columns not compared: source in has no `schema`"]);
    rusqlite::Connection::open(folder.join("out.db")).unwrap().execute_batch("CREATE TABLE t (id INTEGER)").unwrap();
    folder.write("job.yaml", job.replace("path: in }", "path: in, schema: { id: int64, a: string, b: date } }"));
    let (code, _, err) = said(&tidemill(&folder, &["validate", "job.yaml", "--connect"]));
    assert_eq!(code, Some(1), "{err}");
    assert_has(&err, &["it has no columns `a` (string), `b` (date): ALTER TABLE \"t\" ADD COLUMN \"a\" TEXT"]);
}
