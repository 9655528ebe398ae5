//! Crash tests on the real binary: SIGKILL at every step of the protocol, for each pair of source and sinks, many times in
//! one job's life; afterwards the rows in each sink equal those of the input, each once.
//!
//! The steps are failpoints of the batch loop (`daemon/src/job/batch.rs`), of the files sink, of SQLite, of PostgreSQL and of
//! the spool; then kills at random instants. `KILLS=n` sets how many kills each phase gets per pair (default 20; an eighth
//! of that with a server).

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tidemill_tests::{Folder, Rows, Run, eventually, feed, free_address, oracle::files, services};

/// Records of a job. With ten a batch, every kill meets a batch.
const RECORDS: usize = 400;

/// The steps at which the batch loop is killed.
const PHASES: [&str; 9] = [
    "plan",
    "read",
    "computing",
    "compute",
    "before-anchor",
    "after-anchor",
    "after-sinks",
    "after-close",
    "after-release",
];

fn kills() -> usize {
    std::env::var("KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

#[derive(Clone, Copy)]
enum Source {
    Directory,
    Socket,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sink {
    Files,
    Rolling,
    Sqlite,
    Postgres,
}

/// The shared server, and the address of a folder's own schema in it, in which `rows` numbers its rows as they come.
fn postgres(folder: &Folder) -> (services::Postgres, String) {
    let server = services::postgres().expect("the test was to be skipped");
    let kept = folder.join("postgres-url");
    let url = std::fs::read_to_string(&kept).unwrap_or_else(|_| {
        static SCHEMAS: AtomicUsize = AtomicUsize::new(0);
        let name = format!("crash_{}_{}", std::process::id(), SCHEMAS.fetch_add(1, Ordering::SeqCst));
        let url = server.schema(&name);
        server.psql_at(&url, "CREATE TABLE rows (n bigint, text text, number bigserial)");
        std::fs::write(kept, &url).unwrap();
        url
    });
    (server, url)
}

impl Sink {
    fn yaml(self, folder: &Folder) -> String {
        match self {
            Self::Files => "  files: { type: files, path: files, codec: json }\n".into(),
            Self::Rolling => "  rolling: { type: files, path: rolling, codec: json, roll: { bytes: 4KiB } }\n".into(),
            Self::Sqlite => "  db: { type: sqlite, path: rows.db, table: rows }\n".into(),
            Self::Postgres => format!("  pg: {{ type: postgres, url: \"{}\", table: rows }}\n", postgres(folder).1),
        }
    }
    fn rows(self, folder: &Folder) -> Result<Rows, String> {
        match self {
            Self::Files => Ok(in_order(&folder.join("files"))),
            Self::Rolling => Ok(in_order(&folder.join("rolling"))),
            Self::Postgres => {
                let (server, url) = postgres(folder);
                let sql = "SELECT json_build_object('n', n, 'text', text) FROM rows ORDER BY number";
                Ok(Rows::json(&server.psql_at(&url, sql)))
            }
            Self::Sqlite => {
                Rows::try_sqlite(&folder.join("rows.db"), "SELECT n, text FROM rows").map_err(|e| e.to_string())
            }
        }
    }
}

/// The rows of a folder's files in the order of their batches: by the claim's generation, then by the batch's number, which
/// a name holds (`all-g12-5649e1b8-000001-d89cd8ee9823.json`).
fn in_order(folder: &Path) -> Rows {
    let mut found = files(folder);
    let place = |path: &PathBuf| -> (u64, u64) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let parts: Vec<_> = name.split('-').collect();
        (parts[1].trim_start_matches('g').parse().unwrap(), parts[3].parse().unwrap())
    };
    found.sort_by_key(place);
    Rows(found.iter().flat_map(|path| Rows::file(path).0).collect())
}

fn record(n: usize) -> String {
    if n % 50 == 49 {
        format!("{{\"n\": {n}, broken")
    } else {
        format!("{{\"n\": {n}, \"text\": \"Line {n} of the Job ✓\"}}")
    }
}

fn expected() -> Rows {
    let rows = (0..RECORDS).filter(|n| n % 50 != 49 && n % 7 != 3);
    let lines: Vec<_> = rows.map(|n| format!("{{\"n\": {n}, \"text\": \"line {n} of the job ✓\"}}")).collect();
    Rows::json(&lines.join("\n"))
}

fn job(folder: &Folder, source: &str, sinks: &[Sink]) -> String {
    let sinks: String = sinks.iter().map(|sink| sink.yaml(folder)).collect();
    format!(
        "job: crash\ntrigger: asap\nbatch: {{ max_records: 10 }}\nsources:\n  in:\n{source}    codec: json\n    schema: {{ n: int64, text: string }}\n\
         steps:\n  - lowercase: [text]\n  - filter: n % 7 <> 3\nsinks:\n{sinks}dead_letters: {{ type: files, path: dead, codec: json }}\n"
    )
}

/// One job's life: made, killed again and again, and counted.
struct Life {
    folder: Folder,
    yaml: String,
    sinks: Vec<Sink>,
    source: Source,
    name: String,
}

impl Drop for Life {
    fn drop(&mut self) {
        // Nothing is made anew for a life that has failed early: a second panic would hide the first.
        if self.folder.join("postgres-url").exists() {
            let (server, url) = postgres(&self.folder);
            let schema = url.rsplit("%3D").next().unwrap_or_default();
            server.psql(&format!("SET client_min_messages = error; DROP SCHEMA IF EXISTS {schema} CASCADE"));
        }
    }
}

impl Life {
    fn new(source: Source, sinks: &[Sink], name: &str) -> Self {
        let folder = Folder::new();
        let yaml = match source {
            Source::Directory => {
                for part in 0..4 {
                    let lines: Vec<_> = (0..RECORDS).filter(|n| n * 4 / RECORDS == part).map(record).collect();
                    folder.publish(format!("in/{part}.json"), lines.join("\n") + "\n");
                }
                job(&folder, "    type: directory\n    path: in\n    settle: 10ms\n", sinks)
            }
            Source::Socket => spooled(&folder, sinks),
        };
        Self { folder, yaml, sinks: sinks.to_vec(), source, name: name.to_owned() }
    }

    fn run(&self) -> Run {
        Run::new(&self.folder).job(&self.yaml)
    }

    /// Dies at the `nth` time that the phase is passed. False: the job was done before.
    fn dies_at(&self, phase: &str, nth: usize) -> bool {
        let run = self.run().failpoint(&format!("{phase}:{nth}:kill"));
        let mut daemon = match self.source {
            Source::Directory => run.arg("--once").start(),
            Source::Socket => run.start(),
        };
        eventually("the daemon to die, or to be done", || {
            if let Some(status) = daemon.poll() {
                return Ok(!status.success());
            }
            // A socket's job has no end: it is done where nothing waits.
            let done = matches!(self.source, Source::Socket) && self.count().is_ok();
            if done { Ok(false) } else { Err("neither".into()) }
        })
    }

    fn count(&self) -> Result<(), String> {
        for sink in &self.sinks {
            sink.rows(&self.folder)?.select(&["n", "text"]).compare(&expected())?;
        }
        let dead = Rows::files(&self.folder.join("dead")).len();
        if dead == RECORDS / 50 { Ok(()) } else { Err(format!("{dead} dead letters, not {}", RECORDS / 50)) }
    }

    /// Runs to the end, then counts every sink and the dead letters.
    fn finish(&self) {
        match self.source {
            Source::Directory => self.run().once().expect_success(),
            Source::Socket => {
                let daemon = self.run().spawn();
                eventually(&format!("{}: all rows", self.name), || self.count());
                daemon.term();
            }
        }
        if let Err(difference) = self.count() {
            panic!("{}: {difference}", self.name);
        }
        for sink in &self.sinks {
            let numbers: Vec<i64> =
                sink.rows(&self.folder).unwrap().column("n").iter().map(|n| n.parse().unwrap()).collect();
            assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{}: out of order within the shard", self.name);
        }
    }
}

/// Sends all records, waits until every one is acknowledged (it is in the spool), and kills the daemon before any batch.
fn spooled(folder: &Folder, sinks: &[Sink]) -> String {
    let address = free_address();
    let yaml = job(folder, &format!("    type: socket\n    listen: {address}\n    ack: line\n"), sinks);
    let mut daemon = Run::new(folder).job(&yaml.replace("trigger: asap", "trigger: 1h")).spawn();
    let mut stream = feed::connect(address);
    for n in 0..RECORDS {
        writeln!(stream, "{}", record(n)).unwrap();
    }
    let mut said = String::new();
    let mut buffer = [0; 4096];
    while said.trim_end().rsplit('\n').next() != Some(&RECORDS.to_string()) {
        let n = stream.read(&mut buffer).unwrap();
        assert!(n > 0, "the daemon closed the connection after {said:?}");
        said.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
    }
    daemon.kill9();
    yaml
}

/// Kills a job in each phase, `kills()` times each, over as many lives as that takes.
fn at_every_phase(source: Source, sinks: &[Sink], phases: &[&str], name: &str) {
    let remote = sinks.contains(&Sink::Postgres);
    if remote && services::postgres().is_none() {
        return;
    }
    let kills = || if remote { kills().div_ceil(8) } else { kills() };
    let mut table = BTreeMap::new();
    for phase in phases {
        let (mut died, mut lives) = (0, 0);
        while died < kills() {
            let life = Life::new(source, sinks, &format!("{name}, {phase}"));
            lives += 1;
            assert!(lives <= kills(), "{name}: the failpoint {phase} is never passed");
            // The first pass, then later ones: a batch that is open at the kill, and batches before it.
            while died < kills() && life.dies_at(phase, 1 + died % 3) {
                died += 1;
            }
            life.finish();
        }
        table.insert(*phase, (died, lives));
    }
    println!("{name}: killed, then each record counted in each sink");
    for (phase, (died, lives)) in table {
        println!("  {phase:<28} {died:>4} kills in {lives} lives: 0 lost, 0 doubled");
    }
}

#[test]
fn directory_to_files() {
    at_every_phase(Source::Directory, &[Sink::Files], &PHASES, "directory -> files");
}

#[test]
fn directory_to_rolling_files() {
    at_every_phase(Source::Directory, &[Sink::Rolling], &PHASES, "directory -> rolling files");
}

#[test]
fn directory_to_sqlite() {
    at_every_phase(Source::Directory, &[Sink::Sqlite], &PHASES, "directory -> sqlite");
}

/// The steps of the sink's own transaction.
const OF_POSTGRES: [&str; 5] = [
    "postgres.after-mark",
    "postgres.in-copy",
    "postgres.after-rows",
    "postgres.before-commit",
    "postgres.after-commit",
];

#[test]
fn directory_to_postgres() {
    let phases = [&PHASES[..], &OF_POSTGRES].concat();
    at_every_phase(Source::Directory, &[Sink::Postgres], &phases, "directory -> postgres");
}

#[test]
fn socket_to_postgres() {
    at_every_phase(Source::Socket, &[Sink::Postgres], &PHASES, "socket -> postgres");
}

#[test]
fn directory_to_postgres_and_files() {
    at_every_phase(
        Source::Directory,
        &[Sink::Files, Sink::Postgres],
        &["after-anchor", "after-sinks", "after-close"],
        "directory -> files + postgres",
    );
}

#[test]
fn directory_to_sqlite_and_files() {
    at_every_phase(
        Source::Directory,
        &[Sink::Sqlite, Sink::Files, Sink::Rolling],
        &PHASES,
        "directory -> sqlite + files + rolling files",
    );
}

#[test]
fn socket_to_sqlite_and_files() {
    at_every_phase(Source::Socket, &[Sink::Sqlite, Sink::Files], &PHASES, "socket -> sqlite + files");
}

#[test]
fn socket_to_files() {
    at_every_phase(Source::Socket, &[Sink::Files], &PHASES, "socket -> files");
}

#[test]
fn socket_to_sqlite() {
    at_every_phase(Source::Socket, &[Sink::Sqlite], &PHASES, "socket -> sqlite");
}

#[test]
fn socket_to_rolling_files() {
    at_every_phase(Source::Socket, &[Sink::Rolling], &PHASES, "socket -> rolling files");
}

/// Kills at random instants, whatever the daemon is doing.
fn at_random(source: Source, sinks: &[Sink], name: &str) {
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("{name}: SEED={seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    let (mut died, mut lives) = (0, 0);
    while died < kills() * 2 {
        let life = Life::new(source, sinks, name);
        lives += 1;
        for _ in 0..kills() {
            let mut daemon = life.run().start();
            thread::sleep(Duration::from_millis(chance.random_range(20..400)));
            assert!(daemon.is_running(), "{name}: ended by itself:\n{}", daemon.stderr());
            daemon.kill9();
            died += 1;
        }
        life.finish();
    }
    println!("{name}: {died} kills at random instants in {lives} lives: 0 lost, 0 doubled");
}

#[test]
fn random_kills_directory_to_sqlite_and_files() {
    at_random(
        Source::Directory,
        &[Sink::Sqlite, Sink::Files, Sink::Rolling],
        "directory -> sqlite + files + rolling files",
    );
}

#[test]
fn random_kills_socket_to_files_and_sqlite() {
    at_random(Source::Socket, &[Sink::Files, Sink::Sqlite], "socket -> files + sqlite");
}
