//! `memory:` bounds the process, whatever the rows are: the kernel's own high-water mark of the real binary is compared with
//! that of the same job with hardly a record. What does not fit is cut, down to one record, and that is a dead letter; no
//! row is lost or doubled by it.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use tidemill_tests::{Daemon, Folder, Rows, Run, daemon::tidemill, oracle};

const MIB: u64 = 1 << 20;

/// A job over the files of `in`.
struct Case {
    /// Under `sources.in`, beside type and path.
    source: &'static str,
    steps: &'static str,
    /// Under `sinks:`.
    sink: &'static str,
    memory: u64,
}

const SQLITE: &str = "db: { type: sqlite, path: rows.db, table: rows }";
const NOWHERE: &str = "out: { type: blackhole }";

impl Case {
    const fn new(source: &'static str, steps: &'static str, sink: &'static str) -> Self {
        Self { source, steps, sink, memory: 64 * MIB }
    }

    fn run(&self, folder: &Folder) -> Run {
        folder.write("daemon.yaml", format!("memory: {}B\n", self.memory));
        let steps = if self.steps.is_empty() { String::new() } else { format!("steps:\n{}", self.steps) };
        let job = format!(
            "job: hostile\nsources:\n  in: {{ type: directory, path: in, settle: 0s, {} }}\n{steps}sinks:\n  {}\n",
            self.source, self.sink
        );
        let limit = Duration::from_secs(300);
        Run::new(folder).job(&job).arg("--config").arg(folder.join("daemon.yaml")).limit(limit)
    }

    /// Runs it over a few records, then over many: the second may take the budget, and a fifth of it, more than the first.
    fn stays_within(&self, few: &str, many: impl FnOnce(&Folder)) -> Folder {
        let idle = Folder::new();
        idle.publish("in/a", few);
        let idle = peak(self.run(&idle));
        let folder = Folder::new();
        fs::create_dir_all(folder.join("in")).unwrap();
        many(&folder);
        let peak = peak(self.run(&folder));
        let most = idle + self.memory + self.memory / 5;
        eprintln!("peak {} MiB, idle {} MiB, budget {} MiB", peak / MIB, idle / MIB, self.memory / MIB);
        assert!(peak <= most, "a peak of {} MiB, {} MiB at rest", peak / MIB, idle / MIB);
        folder
    }
}

/// The high-water mark of a run to its end, as the kernel counts it.
fn peak(run: Run) -> u64 {
    let mut daemon = run.arg("--once").start();
    let (mut peak, begun) = (0, Instant::now());
    while daemon.poll().is_none() {
        peak = high_water(&daemon).unwrap_or(peak);
        assert!(begun.elapsed() < Duration::from_secs(300), "it does not end:\n{}", daemon.stderr());
        std::thread::sleep(Duration::from_millis(2));
    }
    daemon.expect_success();
    peak
}

fn high_water(daemon: &Daemon) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn count(folder: &Folder) -> usize {
    let rows = Rows::sqlite(&folder.join("rows.db"), "SELECT count(*) AS n FROM rows");
    rows.column("n")[0].parse().unwrap()
}

/// The letters as (step, reason, record).
fn letters(folder: &Folder) -> Vec<(String, String, String)> {
    let at: PathBuf = folder.join("data/hostile/dead-letters");
    if !at.is_dir() {
        return Vec::new();
    }
    let files = oracle::files(&at);
    let rows: Vec<serde_json::Value> = files
        .iter()
        .flat_map(|file| oracle::read_text(file).lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<_>>())
        .collect();
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    rows.iter().map(|row| (text(row, "step"), text(row, "reason"), text(row, "record"))).collect()
}

fn write_lines(folder: &Folder, lines: impl Iterator<Item = String>) {
    let mut file = std::io::BufWriter::new(fs::File::create(folder.join("in/.b")).unwrap());
    lines.for_each(|line| writeln!(file, "{line}").unwrap());
    file.into_inner().unwrap().sync_all().unwrap();
    fs::rename(folder.join("in/.b"), folder.join("in/b")).unwrap();
}

#[test]
fn sparse_objects_with_very_many_names() {
    let case = Case::new("codec: json", "", NOWHERE);
    let line = |n: usize| format!("{{\"c{}\":1}}", n % 1_000);
    case.stays_within(&(0..1_000).map(|n| line(n) + "\n").collect::<String>(), |folder| {
        write_lines(folder, (0..8_000).map(line));
    });
}

#[test]
fn empty_objects_under_a_wide_schema() {
    const SOURCE: &str = concat!(
        "codec: json, schema: { a: int64, b: int64, c: int64, d: int64, e: int64, f: int64, g: int64, h: int64, ",
        "i: int64, j: int64, k: int64, l: int64, m: int64, n: int64, o: int64, p: int64, q: int64, r: int64, s: int64, ",
        "t: int64, u: int64, v: int64, w: int64, x: int64, y: int64, z: int64 }"
    );
    let case = Case::new(SOURCE, "", NOWHERE);
    case.stays_within("{}\n", |folder| write_lines(folder, (0..300_000).map(|_| "{}".to_owned())));
}

#[test]
fn lists_of_empty_objects_with_many_fields() {
    let source =
        "codec: json, schema: { l: 'list<struct<a: int64, b: int64, c: int64, d: int64, e: int64, f: int64>>' }";
    let case = Case::new(source, "", NOWHERE);
    let line = |items: usize| format!("{{\"l\":[{}]}}", vec!["{}"; items].join(","));
    case.stays_within(&(line(1) + "\n"), |folder| write_lines(folder, (0..40).map(|_| line(30_000))));
}

#[test]
fn very_many_records_that_are_rejects() {
    let case = Case::new("codec: json, schema: { a: int64 }", "", NOWHERE);
    let folder = case.stays_within("x\n", |folder| write_lines(folder, (0..150_000).map(|_| "x".to_owned())));
    assert_eq!(letters(&folder).len(), 150_000);
}

#[test]
fn joins_that_multiply_rows() {
    let case = Case::new(
        "codec: json, schema: { n: int64 }",
        "  - sql: SELECT a.n, b.n AS m FROM batch a CROSS JOIN batch b ORDER BY a.n\n",
        NOWHERE,
    );
    case.stays_within("{\"n\":1}\n", |folder| write_lines(folder, (0..2_500).map(|n| format!("{{\"n\":{n}}}"))));
}

#[test]
fn groups_of_very_many_keys() {
    let case = Case::new(
        "codec: json, schema: { k: string }",
        "  - sql: SELECT k, count(*) AS n, max(k) AS m FROM batch GROUP BY k\n",
        NOWHERE,
    );
    let line = |n: usize| format!("{{\"k\":\"key-{n:0>20}\"}}");
    case.stays_within(&(line(1) + "\n"), |folder| write_lines(folder, (0..120_000).map(line)));
}

#[test]
fn series_that_have_no_end() {
    let case = Case::new(
        "codec: json, schema: { n: int64 }",
        "  - sql: 'SELECT n, unnest(generate_series(1, n)) AS m FROM batch'\n",
        SQLITE,
    );
    let folder = case.stays_within("{\"n\":1}\n", |folder| {
        let numbers = [3, 300_000_000, 2, 40_000_000_000, 1];
        write_lines(folder, numbers.into_iter().map(|n: u64| format!("{{\"n\":{n}}}")));
    });
    assert_eq!(count(&folder), 6, "{:?}", letters(&folder));
    assert!(letters(&folder).iter().all(|(_, reason, _)| reason == "expression"));
    assert_eq!(letters(&folder).len(), 2);
}

#[test]
fn texts_that_functions_make() {
    for (expression, bad) in [
        ("repeat(s, n)", 4),
        ("lpad(s, n)", 4),
        ("rpad(s, n, 'ab')", 4),
        ("replace(repeat(s, 1000), 'x', repeat('y', n))", 5),
    ] {
        let steps = format!("  - add: {{ t: \"length({expression})\" }}\n");
        let case = Case {
            source: "codec: json, schema: { s: string, n: int64 }",
            steps: steps.leak(),
            sink: SQLITE,
            memory: 64 * MIB,
        };
        let folder = case.stays_within("{\"s\":\"x\",\"n\":1}\n", |folder| {
            let numbers = [1, 100_000_000, 7, 2_000_000_000, 20_000_000, 30_000_000, 5, 1_000_000];
            write_lines(folder, numbers.iter().map(|n| format!("{{\"s\":\"x\",\"n\":{n}}}")));
        });
        assert_eq!((count(&folder), letters(&folder).len()), (8 - bad, bad), "{expression}: {:?}", letters(&folder));
    }
}

#[test]
fn texts_that_fit_one_by_one_and_not_together() {
    let case = Case::new(
        "codec: json, schema: { s: string, n: int64 }",
        "  - add: { t: \"repeat(s, n)\" }\n  - add: { l: length(t) }\n  - select: [n, l]\n",
        SQLITE,
    );
    let folder = case.stays_within("{\"s\":\"x\",\"n\":1}\n", |folder| {
        write_lines(folder, (0..40).map(|n| format!("{{\"s\":\"x\",\"n\":{}}}", 4_000_000 + n)));
    });
    assert_eq!((count(&folder), letters(&folder)), (40, vec![]));
}

#[test]
fn a_record_whose_pieces_all_have_its_big_column() {
    let case = Case::new(
        "codec: json, schema: { big: string, t: string }",
        "  - split: { column: t, by: ',' }\n  - add: { b: length(big) }\n  - select: [t, b]\n",
        SQLITE,
    );
    let line = |big: usize, parts: usize| {
        format!("{{\"big\":\"{}\",\"t\":\"{}\"}}", "b".repeat(big), vec!["t"; parts].join(","))
    };
    let folder = case.stays_within(&(line(1, 2) + "\n"), |folder| {
        write_lines(folder, [(1, 3), (50_000, 25_000), (1, 2), (1_000, 8_000)].into_iter().map(|(b, p)| line(b, p)));
    });
    assert_eq!(count(&folder), 3 + 2 + 8_000);
    let letters = letters(&folder);
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].0.as_str(), letters[0].1.as_str()), ("1-split", "memory"));
    assert_eq!(letters[0].2, line(50_000, 25_000));
}

#[test]
fn the_same_in_sql() {
    let case = Case::new(
        "codec: json, schema: { big: string, t: string }",
        "  - sql: \"SELECT length(big) AS b, unnest(string_to_array(t, ',')) AS p, big FROM batch\"\n  - select: [b, p]\n",
        SQLITE,
    );
    let line = |big: usize, parts: usize| {
        format!("{{\"big\":\"{}\",\"t\":\"{}\"}}", "b".repeat(big), vec!["t"; parts].join(","))
    };
    let folder = case.stays_within(&(line(1, 2) + "\n"), |folder| {
        write_lines(folder, [(1, 3), (50_000, 25_000), (1, 2)].into_iter().map(|(b, p)| line(b, p)));
    });
    assert_eq!((count(&folder), letters(&folder).len()), (5, 1));
}

#[test]
fn a_lookup_that_adds_a_long_text_to_very_many_rows() {
    let case = Case::new(
        "codec: json, schema: { k: int64 }",
        "  - lookup: { table: table.csv, match: { k: k }, take: [text], schema: { k: int64, text: string } }\n",
        NOWHERE,
    );
    let table = |folder: &Folder| {
        folder.write("table.csv", format!("k,text\n1,{}\n2,{}\n", "a".repeat(3_000), "b".repeat(3_000)));
    };
    let line = |n: usize| format!("{{\"k\":{}}}", 1 + n % 2);
    let quiet = Folder::new();
    table(&quiet);
    quiet.publish("in/a", line(0) + "\n");
    let at_rest = peak(case.run(&quiet));
    let folder = Folder::new();
    table(&folder);
    fs::create_dir_all(folder.join("in")).unwrap();
    write_lines(&folder, (0..40_000).map(line));
    let peak = peak(case.run(&folder));
    eprintln!("peak {} MiB, idle {} MiB", peak / MIB, at_rest / MIB);
    assert!(peak <= at_rest + case.memory + case.memory / 5, "{} MiB, {} at rest", peak / MIB, at_rest / MIB);
}

/// Killed between the sinks, the record that did not fit is a dead letter in both, and a row in neither.
#[test]
fn what_did_not_fit_is_no_row_in_a_replay_either_whatever_the_budget_is_then() {
    let job = "job: hostile\nbatch: { max_records: 1 }\nsources:\n  in: { type: directory, path: in, settle: 0s, codec: json, \
        schema: { n: int64 } }\nsteps:\n  - add: { t: \"repeat('x', n)\" }\n  - add: { l: length(t) }\n  - select: [n, l]\n\
        sinks:\n  db: { type: sqlite, path: rows.db, table: rows }\n  out: { type: files, path: out }\n\
        dead_letters: { type: files, path: letters }\n";
    let folder = Folder::new();
    folder.publish("in/a", "{\"n\":1}\n{\"n\":12000000}\n{\"n\":3}\n");
    let run = |memory: &str| {
        folder.write("daemon.yaml", format!("memory: {memory}\n"));
        Run::new(&folder).job(job).arg("--config").arg(folder.join("daemon.yaml"))
    };
    run("16MiB").failpoint("after-anchor:2:kill").start().expect_killed();
    run("512MiB").once().expect_success();
    let expected = Rows::json("{\"n\":1,\"l\":1}\n{\"n\":3,\"l\":3}");
    Rows::sqlite(&folder.join("rows.db"), "SELECT n, l FROM rows ORDER BY n").assert_same(&expected, "the table");
    Rows::files(&folder.join("out")).select(&["n", "l"]).assert_same(&expected, "the files");
    let letters = Rows::files(&folder.join("letters"));
    assert_eq!(
        (letters.column("reason"), letters.column("step")),
        (vec!["memory".to_owned()], vec!["1-add".to_owned()])
    );
}

#[test]
fn a_batch_that_is_cut_gives_every_row_once() {
    let case = Case {
        memory: 16 * MIB,
        ..Case::new(
            "codec: json, schema: { n: int64 }",
            "  - add: { t: \"repeat('x', 20000)\" }\n  - add: { l: length(t) }\n",
            SQLITE,
        )
    };
    let folder = Folder::new();
    folder.publish("in/a", (0..2_000).map(|n| format!("{{\"n\":{n}}}\n")).collect::<String>());
    case.run(&folder).once().expect_success();
    let rows = Rows::sqlite(&folder.join("rows.db"), "SELECT n FROM rows ORDER BY n");
    rows.assert_same(&Rows::json(&(0..2_000).map(|n| format!("{{\"n\":{n}}}\n")).collect::<String>()), "the table");
}

#[test]
fn a_record_that_may_be_larger_than_an_eighth_of_the_budget_is_refused() {
    let folder = Folder::new();
    let job = "job: j\nsources:\n  in: { type: socket, listen: 127.0.0.1:0, max_record_bytes: 100MiB, schema: { a: int64 } }\n\
        sinks:\n  out: { type: blackhole }\n";
    folder.write("job.yaml", job);
    let refused = |arguments: &[&str]| {
        let done = tidemill(&folder, arguments);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        (done.status.code(), said)
    };
    let (code, said) = refused(&["validate", "job.yaml"]);
    assert!(code != Some(0) && said.contains("max_record_bytes") && said.contains("800MiB"), "{said}");
    folder.write("daemon.yaml", "memory: 1GiB\n");
    let (code, said) = refused(&["validate", "--config", "daemon.yaml", "job.yaml"]);
    assert_eq!(code, Some(0), "{said}");
    folder.write("daemon.yaml", "memory: 256MiB\n");
    let (code, said) = refused(&["run", "--once", "--config", "daemon.yaml", "job.yaml"]);
    assert!(code != Some(0) && said.contains("max_record_bytes"), "{said}");
}
