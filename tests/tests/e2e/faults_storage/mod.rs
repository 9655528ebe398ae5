//! Faults of storage, each by its number in the list that the design gives: on the real binary, counted by code that is
//! not Tidemill's. The rows in each sink equal those of one uninterrupted run, dead letters included; where the daemon
//! stops instead, the command that it names is run, and what it costs is what it said.
//!
//! 8 ([`ledger`]), 9 ([`disk`]), 10 ([`batch`]), 12 ([`sinks`], [`ways`]), 17 ([`spool`]), 19 ([`folder`]).

mod batch;
mod disk;
mod folder;
mod ledger;
mod sinks;
mod spool;
mod ways;

use std::{ops::Range, path::Path};

use tidemill_tests::{Daemon, Folder, Rows, Run, daemon::tidemill, eventually, oracle};

/// Every so many-th record is broken: a dead letter.
const BROKEN: usize = 20;

const FILES: &str = "  files: { type: files, path: files, codec: json }\n";
const DB: &str = "  db: { type: sqlite, path: db/rows.db, table: rows }\n";

fn record(n: usize) -> String {
    if n % BROKEN == BROKEN - 1 {
        format!("{{\"n\": {n}, broken")
    } else {
        format!("{{\"n\": {n}, \"part\": \"p{}\"}}", n % 3)
    }
}

fn lines(numbers: Range<usize>) -> String {
    numbers.map(|n| record(n) + "\n").collect()
}

/// The rows that an uninterrupted run gives of these records.
fn rows(numbers: Range<usize>) -> Rows {
    let whole = numbers.filter(|n| n % BROKEN != BROKEN - 1);
    Rows::json(&whole.map(|n| format!("{{\"n\":{n},\"part\":\"p{}\"}}\n", n % 3)).collect::<String>())
}

/// The dead letters of these records.
fn letters(numbers: Range<usize>) -> Rows {
    let broken = numbers.filter(|n| n % BROKEN == BROKEN - 1);
    Rows(broken.map(|n| [("record".to_owned(), record(n).into())].into_iter().collect()).collect())
}

fn plus(a: Rows, b: Rows) -> Rows {
    Rows(a.0.into_iter().chain(b.0).collect())
}

/// The part of a job before its sinks: a folder that is watched.
fn directory(options: &str) -> String {
    format!(
        "  in: {{ type: directory, path: in, settle: 10ms, codec: json, schema: {{ n: int64, part: string }}{options} }}\n"
    )
}

/// A job in a folder of its own.
struct World {
    folder: Folder,
    yaml: String,
}

impl World {
    fn new(source: &str, sinks: &str) -> Self {
        let dead = "dead_letters: { type: files, path: dead, codec: json }\n";
        Self::with(source, &format!("{sinks}{dead}"), "asap")
    }

    fn with(source: &str, sinks: &str, trigger: &str) -> Self {
        let yaml = format!(
            "job: faults\ntrigger: {trigger}\ntakeover_after: 1s\nbatch: {{ max_records: 10 }}\nsources:\n{source}sinks:\n{sinks}"
        );
        let folder = Folder::new();
        std::fs::create_dir(folder.join("in")).unwrap();
        Self { folder, yaml }
    }

    /// A file of records, complete at once.
    fn publish(&self, numbers: Range<usize>) {
        self.folder.publish(format!("in/{:05}.json", numbers.start), lines(numbers));
    }

    fn run(&self) -> Run {
        Run::new(&self.folder).job(&self.yaml)
    }

    fn once(&self) {
        self.run().once().expect_success();
    }

    fn sink(&self, name: &str) -> Result<Rows, String> {
        match name {
            "files" | "more" => Ok(Rows::files(&self.folder.join(name))),
            "dead" => Ok(Rows::files(&self.folder.join("dead")).select(&["record"])),
            _ => {
                let file = self.folder.join(format!("{name}/rows.db"));
                Rows::try_sqlite(&file, "SELECT n, part FROM rows ORDER BY rowid").map_err(|error| error.to_string())
            }
        }
    }

    /// Whether the sinks hold exactly these rows, and the dead letters these.
    fn compare(&self, sinks: &[&str], expected: &Rows) -> Result<(), String> {
        sinks.iter().try_for_each(|name| self.sink(name)?.compare(expected).map_err(|what| format!("{name}: {what}")))
    }

    /// Whether the sinks hold the records up to `count`, each once and in order, and the dead letters theirs.
    fn count(&self, sinks: &[&str], count: usize) -> Result<(), String> {
        self.compare(sinks, &rows(0..count))?;
        self.compare(&["dead"], &letters(0..count))
    }

    #[track_caller]
    fn assert_count(&self, sinks: &[&str], count: usize, what: &str) {
        if let Err(difference) = self.count(sinks, count) {
            panic!("{what}: {difference}");
        }
        for name in sinks {
            match *name {
                "files" | "more" => in_batches(&self.folder.join(name)).assert_rising("n", None),
                _ => self.sink(name).unwrap().assert_rising("n", None),
            }
        }
        println!("{what}: {count} records in {}: 0 lost, 0 doubled", sinks.join(" + "));
    }

    #[track_caller]
    fn assert_rows(&self, name: &str, expected: &Rows, what: &str) {
        self.sink(name).unwrap().assert_same(expected, &format!("{what}: {name}"));
    }

    /// Runs with `--once`, which must end by a stop that says all of these.
    #[track_caller]
    fn stops(&self, words: &[&str]) -> String {
        let mut daemon = self.run().once();
        daemon.expect_code(1);
        says(&daemon.stderr(), words);
        daemon.stderr()
    }

    /// `tidemill checkpoint ... --yes` as a message names it.
    fn command(&self, arguments: &str) -> String {
        format!("`tidemill checkpoint --data-dir {} {arguments} --yes`", self.folder.join("data").display())
    }

    /// `tidemill checkpoint ... --yes`, which must go well; what it printed.
    #[track_caller]
    fn checkpoint(&self, arguments: &str) -> String {
        let (ok, said) = self.try_checkpoint(arguments);
        assert!(ok, "checkpoint {arguments}: {said}");
        said
    }

    fn try_checkpoint(&self, arguments: &str) -> (bool, String) {
        self.unconfirmed(&format!("{arguments} --yes"))
    }

    /// `tidemill checkpoint ...` as it stands here.
    fn unconfirmed(&self, arguments: &str) -> (bool, String) {
        let mut all = vec!["checkpoint"];
        all.extend(arguments.split(' '));
        all.extend(["--data-dir", "data"]);
        let done = tidemill(&self.folder, &all);
        let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        (done.status.success(), said)
    }
}

/// The rows of files, in the order of their batches.
fn in_batches(folder: &Path) -> Rows {
    let mut files = oracle::files(folder);
    files.sort_by_key(|path| path.file_name().unwrap().to_string_lossy().split('-').nth(3).map(str::to_owned));
    Rows(files.iter().flat_map(|path| Rows::file(path).0).collect())
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "should say {word:?}:\n{text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

/// Waits until `/ready` answers 503 with one of these words; returns the reason.
#[track_caller]
fn wait_reason(daemon: &mut Daemon, words: &[&str]) -> String {
    eventually(&format!("/ready to say one of {words:?}"), || {
        assert!(daemon.is_running(), "the daemon ended:\n{}", daemon.stderr());
        let answer = daemon.get("/ready").map_err(|error| error.to_string())?;
        let found = answer.status == 503 && words.iter().any(|word| answer.body.contains(word));
        if found { Ok(answer.body) } else { Err(answer.body) }
    })
}
