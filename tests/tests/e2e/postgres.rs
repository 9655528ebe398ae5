//! The daemon with PostgreSQL: owners that are stopped inside of its transactions, answers that are lost, a disk of the
//! server's that is full, rows that a table refuses, and what `validate --connect` says before anything runs.

use std::sync::atomic::{AtomicUsize, Ordering};

use tidemill_tests::{Folder, Rows, Run, daemon::tidemill, disk::Disk, eventually, proxy::Proxy, services};

const RECORDS: usize = 200;

/// A schema of the test's own.
struct Place {
    folder: Folder,
    server: services::Postgres,
    url: String,
    schema: String,
}

impl Place {
    fn new() -> Option<Self> {
        Some(Self::on(services::postgres()?))
    }

    fn on(server: services::Postgres) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let schema = format!("daemon_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst));
        let url = server.schema(&schema);
        let folder = Folder::new();
        for (part, name) in ["a", "b"].iter().enumerate() {
            let lines: String = (0..RECORDS).filter(|n| n * 2 / RECORDS == part).map(record).collect();
            folder.publish(format!("in/{name}.json"), lines);
        }
        Self { folder, server, url, schema }
    }

    fn sql(&self, sql: &str) -> String {
        self.server.psql_at(&self.url, sql)
    }

    fn run(&self, url: &str, more: &str) -> Run {
        Run::new(&self.folder).job(&job(url, more))
    }

    /// Each record is in the table once.
    fn count(&self) -> Result<(), String> {
        if self.sql("SELECT to_regclass('rows') IS NOT NULL") != "t" {
            return Err("no table".into());
        }
        let found = Rows::json(&self.sql("SELECT json_build_object('n', n, 'text', text) FROM rows"));
        found.compare(&Rows::json(&(0..RECORDS).map(record).collect::<String>()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.server.psql(&format!("SET client_min_messages = error; DROP SCHEMA {} CASCADE", self.schema));
    }
}

fn record(n: usize) -> String {
    format!("{{\"n\": {n}, \"text\": \"row {n} ✓\"}}\n")
}

fn job(url: &str, more: &str) -> String {
    format!(
        "job: pg\ntrigger: asap\ntakeover_after: 1h\nbatch: {{ max_records: 10 }}\nsources:\n  in: {{ type: directory, path: in, settle: 10ms, \
         codec: json, schema: {{ n: int64, text: string }} }}\nsinks:\n  db: {{ type: postgres, url: \"{url}\", table: rows }}\n{more}\
         dead_letters: {{ type: files, path: dead, codec: json }}\n"
    )
}

/// A daemon that is stopped by SIGSTOP inside of its transaction holds the lane's row. Whoever takes over has the server end
/// it, and when it goes on it changes nothing.
#[test]
fn a_daemon_that_is_stopped_in_its_transaction_is_taken_over_and_changes_nothing_when_it_goes_on() {
    for failpoint in ["postgres.in-copy", "postgres.after-rows"] {
        let Some(place) = Place::new() else { return };
        let run = place.run(&place.url, "");
        let mut zombie = run.clone().failpoint(&format!("{failpoint}:4:stop")).start();
        let pid = zombie.pid();
        eventually(&format!("a stop at {failpoint}"), || {
            assert!(zombie.poll().is_none(), "ended:\n{}", zombie.stderr());
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| e.to_string())?;
            if status.contains("State:\tT") { Ok(()) } else { Err("it runs".into()) }
        });
        let second = run.data_dir("data-2").take_over().spawn();
        eventually("the second to do everything", || place.count());
        assert!(second.stderr().contains("the server was told to end it"), "{}", second.stderr());
        zombie.cont();
        let fenced = zombie.wait_status("/ready", 503).body;
        eventually("the first to know", || {
            let said = zombie.get("/ready").map(|answer| answer.body).unwrap_or_default();
            if said.contains("owned by") { Ok(()) } else { Err(format!("{fenced}\n{said}")) }
        });
        place.count().unwrap_or_else(|difference| panic!("{failpoint}: the zombie wrote: {difference}"));
    }
}

#[test]
fn commits_whose_answers_are_lost_are_neither_lost_nor_doubled() {
    let Some(place) = Place::new() else { return };
    let proxy = Proxy::start(([127, 0, 0, 1], place.server.port).into());
    let (from, to) = (format!(":{}/", place.server.port), format!(":{}/", proxy.address().port()));
    let url = place.url.replace(&from, &to) + "&sslmode=disable";
    let daemon = place.run(&url, "  out: { type: files, path: out, codec: json }\n").spawn();
    for lost in 1..=5 {
        // The end of a batch with rows; claims have a COMMIT too.
        proxy.drop_answers_after(b"attisdropped;COMMIT\0");
        eventually("an answer to be lost", || {
            let (dropped, all) = (proxy.dropped(), place.count().is_ok());
            if dropped >= lost || all { Ok(()) } else { Err(daemon.stderr()) }
        });
    }
    eventually("the files", || {
        Rows::files(&place.folder.join("out")).compare(&Rows::json(&(0..RECORDS).map(record).collect::<String>()))
    });
    place.count().unwrap();
    assert!(proxy.dropped() >= 3, "{} answers were lost\n{}", proxy.dropped(), daemon.stderr());
}

/// A tablespace on a small disk.
#[test]
fn a_full_disk_of_the_server_is_waited_for() {
    let dir = Folder::new();
    let small = dir.join("small");
    let Some(disk) = Disk::mount(&small, 1024) else { return };
    let Some(server) = services::Postgres::private(&dir.join("server")) else { return };
    let place = Place::on(server);
    let inside = small.join("space");
    std::fs::create_dir(&inside).unwrap();
    // The server may be somebody else.
    std::os::unix::fs::chown(&inside, Some(owner(&dir.join("server"))), None).unwrap();
    place.server.psql(&format!("CREATE TABLESPACE small LOCATION '{}'", inside.display()));
    place.sql("CREATE TABLE rows (n int8, text text, pad text DEFAULT repeat('x', 1900)) TABLESPACE small");
    disk.fill();
    let mut daemon = place.run(&place.url, "").start();
    eventually("the daemon to say it", || {
        let said = daemon.stderr();
        if said.contains("the server's disk is full") { Ok(()) } else { Err(said) }
    });
    assert!(daemon.is_running());
    disk.free();
    eventually("all rows", || place.count());
    daemon.term();
    daemon.expect_success();
}

fn owner(folder: &std::path::Path) -> u32 {
    use std::os::unix::fs::MetadataExt;
    let data = folder.join("postgres/data");
    std::fs::metadata(data).map_or_else(|e| panic!("the server's data: {e}"), |found| found.uid())
}

/// Rows that the table refuses are dead letters once, whatever is killed.
#[test]
fn refused_rows_are_dead_letters_once_and_all_others_are_written_once() {
    let Some(place) = Place::new() else { return };
    place.sql("CREATE TABLE rows (n int8 CHECK (n % 40 <> 39), text varchar(9) NOT NULL)");
    // `row 100 ✓` has nine characters.
    place.folder.publish("in/c.json", "{\"n\": 1000, \"text\": \"much too long\"}\n{\"n\": 1001}\n");
    let run = place.run(&place.url, "");
    let mut killed = 0;
    let phases = ["plan", "before-anchor", "postgres.after-rows", "postgres.after-commit", "after-close"];
    for (turn, phase) in phases.iter().cycle().take(10).enumerate() {
        let mut daemon = run.clone().failpoint(&format!("{phase}:{}:kill", 1 + turn % 3)).arg("--once").start();
        killed += usize::from(daemon.wait().code() != Some(0));
    }
    assert!(killed > 4, "only {killed} kills met a batch");
    run.once().expect_success();
    let bad = |n: usize| n % 40 == 39;
    let found = Rows::json(&place.sql("SELECT json_build_object('n', n, 'text', text) FROM rows"));
    found.compare(&Rows::json(&(0..RECORDS).filter(|n| !bad(*n)).map(record).collect::<String>())).unwrap();
    let dead = Rows::files(&place.folder.join("dead"));
    assert_eq!(dead.len(), (0..RECORDS).filter(|n| bad(*n)).count() + 2, "{dead:?}");
    let reasons = dead.column("reason");
    assert_eq!(reasons.iter().filter(|reason| *reason == "value").count(), 1, "{reasons:?}");
    let details = dead.column("detail").concat();
    for part in ["violates check constraint", "value too long for type character varying(9)", "violates not-null"] {
        assert!(details.contains(part), "{part}: {details}");
    }
}

#[test]
fn validate_connects_and_says_what_is_wrong_without_the_password() {
    let Some(place) = Place::new() else { return };
    let validate = |yaml: &str| {
        place.folder.write("job.yaml", yaml);
        std::fs::create_dir_all(place.folder.join("in")).unwrap();
        let done = tidemill(&place.folder, &["validate", "--connect", "job.yaml"]);
        let said = [&done.stdout[..], &done.stderr[..]].map(String::from_utf8_lossy).concat();
        assert!(!said.contains("s3cret") && !said.contains("hunter2"), "{said}");
        (done.status.code(), said)
    };
    let (code, said) = validate(&job(&place.url, ""));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("sink db: reached"), "{said}");
    assert_eq!(place.sql("SELECT count(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace"), "0");
    let unknown = place.url.replace("/tidemill?", "/nowhere?");
    let wrong = place.url.replace("s3cret", "hunter2");
    for (url, part) in [(&wrong, "password authentication failed"), (&unknown, "database \"nowhere\" does not exist")] {
        let (code, said) = validate(&job(url, ""));
        assert!(code == Some(1) && said.contains("sink db: connecting to") && said.contains(part), "{code:?} {said}");
    }
    place.sql("CREATE TABLE rows (n int8, text int8)");
    let (code, said) = validate(&job(&place.url, ""));
    assert!(code == Some(1) && said.contains("column `text` is bigint there and string in the job"), "{code:?} {said}");
    place.sql("DROP TABLE rows; CREATE TABLE rows (n int8)");
    let (code, said) = validate(&job(&place.url, ""));
    assert!(code == Some(1) && said.contains("ALTER TABLE \"rows\" ADD COLUMN \"text\" text"), "{code:?} {said}");
    let done = tidemill(&place.folder, &["explain", "job.yaml"]);
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(said.contains("anchor (commits first): db") && said.contains("rows appended to table rows"), "{said}");
    assert!(said.contains("postgres://tidemill@127.0.0.1") && !said.contains("s3cret"), "{said}");
}
