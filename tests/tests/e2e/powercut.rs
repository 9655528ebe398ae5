//! Power cuts (fault 7): what was not synced is gone, in any subset, torn at 512 bytes; under spool, ledger, file sink and
//! SQLite. One run is recorded call by call, then cut at many points, in many ways, and recovered from.
//!
//! `STATES=n` sets how many states each pair is recovered from (default 55, so 220 in `make test`).

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tidemill_tests::{
    Daemon, Folder, Rows, Run, eventually, feed, free_address, oracle::files, powercut::Record, root,
};

const RECORDS: usize = 60;
/// A removed sync must be found within so many states.
const FIND_WITHIN: usize = 300;

fn states() -> usize {
    std::env::var("STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(55)
}

/// The recorder, compiled once.
fn recorder() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let to = std::env::temp_dir().join(format!("tidemill-recorder-{}.so", std::process::id()));
        let source = root().join("tests/powercut/recorder.c");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&to)
            .arg(source)
            .arg("-ldl")
            .status()
            .unwrap();
        assert!(status.success(), "the recorder does not compile");
        to
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Directory,
    Socket,
}

struct Case {
    name: &'static str,
    source: Source,
    sinks: &'static [(&'static str, &'static str)],
}

const SQLITE: (&str, &str) = ("rows.db", "  db: { type: sqlite, path: rows.db, table: rows }\n");
const FILES: (&str, &str) = ("files", "  files: { type: files, path: files, codec: json }\n");
const ROLLING: (&str, &str) =
    ("rolling", "  rolling: { type: files, path: rolling, codec: json, roll: { bytes: 1KiB } }\n");

/// No sink keeps marks: the ledger is the anchor, and what was printed may be printed again.
const CONSOLE: (&str, &str) = ("standard output", "  screen: { type: console }\n");

const FILE_SINKS: Case =
    Case { name: "directory -> files + rolling files", source: Source::Directory, sinks: &[FILES, ROLLING] };
const SQLITE_SINK: Case =
    Case { name: "directory -> sqlite + files", source: Source::Directory, sinks: &[SQLITE, FILES] };
const SPOOL: Case =
    Case { name: "socket -> sqlite + rolling files", source: Source::Socket, sinks: &[SQLITE, ROLLING] };

const LEDGER: Case =
    Case { name: "socket -> console, the ledger as the anchor", source: Source::Socket, sinks: &[CONSOLE] };

/// A run, recorded.
struct Recorded {
    case: &'static Case,
    record: Record,
    yaml: String,
    /// Holds what the record refers to, and what is recovered.
    folder: Folder,
}

fn line(n: usize) -> String {
    format!("{{\"n\": {n}, \"text\": \"Number {n}\"}}")
}

fn expected(n: std::ops::Range<usize>) -> Rows {
    Rows::json(&n.map(|n| format!("{{\"n\": {n}, \"text\": \"number {n}\"}}")).collect::<Vec<_>>().join("\n"))
}

impl Recorded {
    /// Runs the case once, with every call recorded. `forget`: syncs of files with this in their path are left out.
    fn new(case: &'static Case, forget: &str) -> Self {
        let folder = Folder::new();
        let address = free_address();
        let input = folder.join("input");
        for part in 0..3 {
            let lines: Vec<_> = (0..RECORDS).filter(|n| n * 3 / RECORDS == part).map(line).collect();
            folder.publish(format!("input/{part}.json"), lines.join("\n") + "\n");
        }
        let source = match case.source {
            Source::Directory => format!("    type: directory\n    path: {}\n    settle: 10ms\n", input.display()),
            Source::Socket => format!("    type: socket\n    listen: {address}\n    ack: line\n"),
        };
        let sinks: String = case.sinks.iter().map(|(_, yaml)| *yaml).collect();
        let yaml = format!(
            "job: cut\ntrigger: asap\nbatch: {{ max_records: 6 }}\nsources:\n  in:\n{source}    codec: json\n    schema: {{ n: int64, text: string }}\n\
             steps:\n  - lowercase: [text]\nsinks:\n{sinks}"
        );
        fs::create_dir(folder.join("work")).unwrap();
        fs::create_dir(folder.join("before")).unwrap();
        let job = folder.write("work/job.yaml", &yaml);
        fs::copy(&job, folder.join("before/job.yaml")).unwrap();
        let log = folder.join("calls");
        let run = Run::new(&folder)
            .job_file(&job)
            .data_dir("work/data")
            .env("LD_PRELOAD", recorder())
            .env("RECORD_LOG", &log)
            .env("RECORD_ROOT", folder.join("work"))
            .env("RECORD_FORGET", forget);
        match case.source {
            Source::Directory => run.once().expect_success(),
            Source::Socket => {
                let daemon = run.spawn();
                send_all(address);
                eventually("all rows", || match case.sinks[0] {
                    CONSOLE => Some(()).filter(|()| printed(&daemon.stdout()).len() == RECORDS).ok_or("not all".into()),
                    (path, _) => rows(&folder.join("work"), path)?.compare(&expected(0..RECORDS)),
                });
                daemon.term();
                let mut daemon = daemon;
                daemon.expect_success();
            }
        }
        let record = Record::read(&log, &folder.join("work"), &folder.join("before"));
        assert!(record.len() > 100, "{}: only {} calls were recorded", case.name, record.len());
        Self { case, record, yaml, folder }
    }

    /// Cuts the power after `point` calls, recovers, and counts.
    fn recovers(&self, point: usize, seed: u64) -> Result<(), String> {
        let place = Folder::new();
        let crash = self.record.crash(point, seed);
        crash.materialise(place.path());
        let acked = acknowledged(&crash.sent);
        let run = Run::new(&place).job(&self.yaml).take_over();
        match self.case.source {
            Source::Directory => {
                let mut daemon = run.once();
                if daemon.wait().code() != Some(0) {
                    return Err(format!("it does not recover:\n{}", daemon.stderr()));
                }
                for (path, _) in self.case.sinks {
                    rows(place.path(), path)?
                        .compare(&expected(0..RECORDS))
                        .map_err(|difference| format!("{path}: {difference}"))?;
                }
                Ok(())
            }
            // Nobody sends again: what was acknowledged is there once, what was not at most once.
            Source::Socket => {
                let mut daemon = run.start();
                let result = settled(&mut daemon, |daemon| {
                    for sink in self.case.sinks {
                        let path = sink.0;
                        let counts = if *sink == CONSOLE {
                            printed(&(String::from_utf8_lossy(&crash.printed).into_owned() + &daemon.stdout()))
                        } else {
                            counts(rows(place.path(), path)?.column("n").into_iter())
                        };
                        if let Some(n) = (0..acked).find(|n| !counts.contains_key(n)) {
                            return Err(format!("{path}: record {n} of {acked} acknowledged ones is lost"));
                        }
                        if let Some((n, count)) = counts.iter().find(|(_, count)| **count > 1 && *sink != CONSOLE) {
                            return Err(format!("{path}: record {n} is there {count} times"));
                        }
                    }
                    Ok(())
                });
                daemon.kill9();
                result.map_err(|reason| format!("{reason}\n{}", daemon.stderr()))
            }
        }
    }

    /// The first of `count` states that is not recovered from.
    fn search(&self, count: usize) -> Option<String> {
        let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random::<u64>);
        let mut chance = StdRng::seed_from_u64(seed);
        for n in 0..count {
            // Evenly over the run, and every point equally likely in its part.
            let (from, to) = (n * self.record.len() / count, (n + 1) * self.record.len() / count);
            let point = chance.random_range(from..to.max(from + 1));
            let state = chance.random();
            if let Err(reason) = self.recovers(point, state) {
                return Some(format!(
                    "{}: SEED={seed}, cut after call {point} of {}, state {state}: {reason}",
                    self.case.name,
                    self.record.len()
                ));
            }
        }
        None
    }
}

/// How often each number is there.
fn counts(numbers: impl Iterator<Item = String>) -> BTreeMap<usize, usize> {
    let mut counts = BTreeMap::new();
    for n in numbers {
        *counts.entry(n.parse().unwrap_or_else(|_| panic!("n is {n}"))).or_default() += 1;
    }
    counts
}

/// The numbers of the records in what the console printed.
fn printed(text: &str) -> BTreeMap<usize, usize> {
    counts(text.split("number ").skip(1).map(|rest| rest.chars().take_while(char::is_ascii_digit).collect()))
}

fn rows(folder: &Path, path: &str) -> Result<Rows, String> {
    if path.ends_with(".db") {
        if !folder.join(path).exists() {
            return Ok(Rows::json(""));
        }
        return match Rows::try_sqlite(&folder.join(path), "SELECT n, text FROM rows") {
            Ok(rows) => Ok(rows),
            Err(error) if error.to_string().contains("no such table") => Ok(Rows::json("")),
            Err(error) => Err(error.to_string()),
        };
    }
    // Before its owner is back, the end of a rolling file may be anything.
    let mut rows = Vec::new();
    for file in files(&folder.join(path)) {
        let text = String::from_utf8_lossy(&fs::read(&file).map_err(|error| error.to_string())?).into_owned();
        for line in text.lines() {
            rows.push(serde_json::from_str(line).map_err(|error| format!("{}: {error}: {line:?}", file.display()))?);
        }
    }
    Ok(Rows(rows).select(&["n", "text"]))
}

/// The newest count in the acknowledgements, of the whole lines that were sent.
fn acknowledged(sent: &[u8]) -> usize {
    // HTTP answers go over TCP too: only lines that are a number are acknowledgements.
    let text = String::from_utf8_lossy(sent);
    text.lines().filter_map(|line| line.trim().parse().ok()).filter(|n| *n <= RECORDS).max().unwrap_or(0)
}

fn send_all(address: std::net::SocketAddr) {
    let mut stream = feed::connect(address);
    let mut reader = stream.try_clone().unwrap();
    for chunk in (0..RECORDS).collect::<Vec<_>>().chunks(5) {
        let lines: String = chunk.iter().map(|n| line(*n) + "\n").collect();
        stream.write_all(lines.as_bytes()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut buffer = [0; 1024];
    let mut said = String::new();
    while acknowledged(said.as_bytes()) < RECORDS {
        let n = reader.read(&mut buffer).unwrap();
        assert!(n > 0, "the daemon closed the connection");
        said.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}

/// Waits until nothing waits in the spool any more, then checks.
fn settled(daemon: &mut Daemon, check: impl Fn(&Daemon) -> Result<(), String>) -> Result<(), String> {
    let mut last = Err("never asked".to_owned());
    for _ in 0..500 {
        if daemon.poll().is_some() {
            return Err("the daemon ended".into());
        }
        last = check(daemon);
        if last.is_ok() {
            // One more batch would show a record twice.
            std::thread::sleep(std::time::Duration::from_millis(150));
            return check(daemon);
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    last
}

fn all_recovered(case: &'static Case) {
    let recorded = Recorded::new(case, "");
    let states = states();
    if let Some(failure) = recorded.search(states) {
        panic!("{failure}\nthe record is in {}", recorded.folder.path().display());
    }
    println!(
        "{}: {} calls recorded, {states} power cuts: 0 lost, 0 doubled, 0 stuck",
        case.name,
        recorded.record.len()
    );
}

fn removed_sync_is_found(case: &'static Case, part: &str) {
    let recorded = Recorded::new(case, part);
    let found = recorded.search(FIND_WITHIN);
    let found = found.unwrap_or_else(|| {
        panic!("{}: without syncs of *{part}* nothing was found in {FIND_WITHIN} states", case.name)
    });
    println!("without syncs of *{part}*: {}", found.lines().next().unwrap_or_default());
}

#[test]
fn power_cuts_under_files() {
    all_recovered(&FILE_SINKS);
}

#[test]
fn power_cuts_under_sqlite() {
    all_recovered(&SQLITE_SINK);
}

#[test]
fn power_cuts_under_a_spool() {
    all_recovered(&SPOOL);
}

#[test]
fn power_cuts_under_the_ledger_as_the_anchor() {
    all_recovered(&LEDGER);
}

#[test]
fn a_removed_sync_of_the_ledger_is_found() {
    removed_sync_is_found(&LEDGER, "/anchors");
}

#[test]
fn a_removed_sync_of_the_mark_log_is_found() {
    removed_sync_is_found(&FILE_SINKS, "/log-g");
}

#[test]
fn a_removed_sync_of_sqlite_is_found() {
    removed_sync_is_found(&SQLITE_SINK, "rows.db");
}

#[test]
fn a_removed_sync_of_the_spool_is_found() {
    removed_sync_is_found(&SPOOL, "/spool/");
}
