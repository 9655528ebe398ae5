//! Sinks under kills, stops and failing writes: at each failpoint, at its first, second and third passing, a child of
//! this test is killed, stopped or refused a write. After each the rows must be those of one uninterrupted run.

use std::{
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use crate::sinks::*;
use tidemill_checkpoint::Lane;
use tidemill_connectors::sink::SinkError;

const LAST: u64 = 6;
const PASSINGS: u64 = 3;
/// A start against a broker takes longer than all the rest.
const PASSINGS_OF_SERVERS: u64 = 2;
/// Where nothing is committed twenty times in a row, something is wrong.
const TRIES: u32 = 20;

const FILES: [&str; 13] = [
    "files.claim-before-rename",
    "files.claim-after-rename",
    "files.claim-after-folder-sync",
    "files.claim-after-log",
    "files.claim-after-renames",
    "files.before-data-sync",
    "files.after-data-sync",
    "files.before-folder-sync",
    "files.before-mark",
    "files.after-mark",
    "files.after-log-sync",
    "files.before-rename",
    "files.after-renames",
];
const SEALS: [&str; 2] = ["files.before-seal", "files.after-seal"];
const SQLITE: [&str; 7] = [
    "sqlite.claim-before-commit",
    "sqlite.claim-after-commit",
    "sqlite.before-begin",
    "sqlite.after-mark",
    "sqlite.after-rows",
    "sqlite.before-commit",
    "sqlite.after-commit",
];
const MYSQL: [&str; 7] = [
    "mysql.claim-before-commit",
    "mysql.claim-after-commit",
    "mysql.before-begin",
    "mysql.after-mark",
    "mysql.after-rows",
    "mysql.before-commit",
    "mysql.after-commit",
];

const POSTGRES: [&str; 8] = [
    "postgres.claim-before-commit",
    "postgres.claim-after-commit",
    "postgres.before-begin",
    "postgres.after-mark",
    "postgres.in-copy",
    "postgres.after-rows",
    "postgres.before-commit",
    "postgres.after-commit",
];

const KAFKA: [&str; 8] = [
    "kafka.before-init",
    "kafka.after-init",
    "kafka.claim-before-mark",
    "kafka.claim-after-mark",
    "kafka.before-rows",
    "kafka.after-rows",
    "kafka.before-commit",
    "kafka.after-commit",
];

fn passings(kind: Kind) -> u64 {
    if matches!(kind, Kind::Kafka | Kind::Postgres) { PASSINGS_OF_SERVERS } else { PASSINGS }
}

fn points(kind: Kind) -> Vec<&'static str> {
    match kind {
        Kind::Kafka => KAFKA.to_vec(),
        Kind::Files => FILES.to_vec(),
        Kind::Rolling => [&FILES[..], &SEALS[..]].concat(),
        Kind::Mariadb | Kind::Mysql => MYSQL.to_vec(),
        Kind::Postgres => POSTGRES.to_vec(),
        _ => SQLITE.to_vec(),
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Files => "files",
        Kind::Rolling => "rolling",
        Kind::Sqlite => "sqlite",
        Kind::Postgres => "postgres",
        Kind::Ledger => "ledger",
        Kind::Mariadb => "mariadb",
        Kind::Mysql => "mysql",
        Kind::Kafka => "kafka",
    }
}

/// What a runner does with a lane: claims it, then commits up to `LAST`, trying again what may pass.
async fn work(kind: Kind, dir: &Path, instance: u128) -> Result<(), SinkError> {
    let sink = make(kind, dir);
    let mut tries = 0;
    let mut passes = |error: SinkError| {
        tries += 1;
        if error.is_transient() && tries < TRIES { Ok(()) } else { Err(error) }
    };
    let mut runner = loop {
        match Runner::claim(sink.clone(), &Lane::single(), instance).await {
            Ok(runner) => break runner,
            Err(error) => passes(error)?,
        }
    };
    while runner.seq() != Some(LAST) {
        if let Err(error) = runner.step().await {
            passes(error)?;
        }
    }
    Ok(())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// The child: not a test of its own.
#[test]
#[ignore = "run by the others"]
fn child() {
    let kind = match std::env::var("SINK").unwrap().as_str() {
        "files" => Kind::Files,
        "rolling" => Kind::Rolling,
        "mariadb" => Kind::Mariadb,
        "mysql" => Kind::Mysql,
        "postgres" => Kind::Postgres,
        "kafka" => Kind::Kafka,
        _ => Kind::Sqlite,
    };
    let dir = std::env::var("DIR").unwrap();
    match runtime().block_on(work(kind, Path::new(&dir), 1)) {
        Ok(()) => {}
        Err(SinkError::Fenced { .. }) => std::process::exit(42),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(43);
        }
    }
}

fn start(kind: Kind, dir: &Path, failpoint: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["sink_crash::child", "--exact", "--ignored", "--nocapture"])
        .env("SINK", name(kind))
        .env("DIR", dir)
        .env("TIDEMILL_FAILPOINT", failpoint)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn run(kind: Kind, dir: &Path, failpoint: &str) -> ExitStatus {
    start(kind, dir, failpoint).wait().unwrap()
}

/// Goes on after whatever happened, and counts.
fn finish(kind: Kind, dir: &Path, what: &str) {
    runtime().block_on(work(kind, dir, 2)).unwrap_or_else(|error| panic!("{kind:?} {what}: {error}"));
    assert_eq!(rows(kind, dir), expected(kind, LAST), "{kind:?} {what}");
}

/// The rows right after a crash, once a claim has put things in order: those up to the mark and no others.
fn recover(kind: Kind, dir: &Path, what: &str) {
    let runner = runtime().block_on(Runner::claim(make(kind, dir), &Lane::single(), 3));
    let runner = runner.unwrap_or_else(|error| panic!("{kind:?} {what}: {error}"));
    assert_eq!(rows(kind, dir), expected(kind, runner.seq().unwrap_or(0)), "{kind:?} {what}");
}

fn killed(kind: Kind) {
    if !is_there(kind) {
        return;
    }
    let mut kills = 0;
    for point in points(kind) {
        for passing in 1..=passings(kind) {
            let dir = tempfile::tempdir().unwrap();
            let what = format!("{point}:{passing}:kill");
            // Some steps are passed only by a claim that finds something to do.
            for _ in 0..if kind == Kind::Kafka { 1 } else { 3 } {
                kills += u32::from(!run(kind, dir.path(), &what).success());
                recover(kind, dir.path(), &what);
            }
            finish(kind, dir.path(), &what);
            forget(kind, dir.path());
        }
    }
    println!("{kind:?}: {kills} kills");
    let least = if kind == Kind::Kafka { 8 } else { points(kind).len() * 2 };
    assert!(kills as usize > least, "only {kills} kills");
}

fn refused(kind: Kind) {
    if !is_there(kind) {
        return;
    }
    for point in points(kind) {
        for passing in 1..=passings(kind) {
            // A server's disk is its own matter: what comes from there is in a test of its own.
            let has_no_disk = matches!(kind, Kind::Kafka | Kind::Postgres | Kind::Mariadb | Kind::Mysql);
            for action in if has_no_disk { &["error"][..] } else { &["error", "full"] } {
                let dir = tempfile::tempdir().unwrap();
                let what = format!("{point}:{passing}:{action}");
                let status = run(kind, dir.path(), &what);
                assert!(status.success(), "{kind:?} {what}: {status}");
                assert_eq!(rows(kind, dir.path()), expected(kind, LAST), "{kind:?} {what}");
                recover(kind, dir.path(), &what);
                forget(kind, dir.path());
            }
        }
    }
}

fn state(child: &Child) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()).unwrap_or('?')
}

/// The child stops in the middle; the lane is taken and finished; then the child goes on with what it has in hand.
fn paused(kind: Kind, points: &[&str]) {
    if !is_there(kind) {
        return;
    }
    let mut stops = 0;
    for point in points {
        for passing in 2..=passings(kind) {
            let dir = tempfile::tempdir().unwrap();
            let what = format!("{point}:{passing}:stop");
            let mut child = start(kind, dir.path(), &what);
            let began = Instant::now();
            while !matches!(state(&child), 'T' | 'Z' | '?') && began.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let stopped = state(&child) == 'T';
            finish(kind, dir.path(), &what);
            let pid = rustix::process::Pid::from_child(&child);
            if stopped {
                rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
            }
            let status = child.wait().unwrap();
            if stopped {
                stops += 1;
                assert_eq!(status.code(), Some(42), "{kind:?} {what}: the zombie was not fenced");
            }
            assert_eq!(rows(kind, dir.path()), expected(kind, LAST), "{kind:?} {what}: after the zombie went on");
            recover(kind, dir.path(), &what);
            forget(kind, dir.path());
        }
    }
    println!("{kind:?}: {stops} stops");
    assert!(stops >= points.len(), "only {stops} stops");
}

#[test]
fn files_survive_a_kill_at_every_step() {
    killed(Kind::Files);
}

#[test]
fn rolling_files_survive_a_kill_at_every_step() {
    killed(Kind::Rolling);
}

#[test]
fn sqlite_survives_a_kill_at_every_step() {
    killed(Kind::Sqlite);
}

#[test]
fn postgres_survives_a_kill_at_every_step() {
    killed(Kind::Postgres);
}

#[test]
fn files_try_again_what_a_full_disk_refused() {
    refused(Kind::Files);
}

#[test]
fn rolling_files_try_again_what_a_full_disk_refused() {
    refused(Kind::Rolling);
}

#[test]
fn sqlite_tries_again_what_a_full_disk_refused() {
    refused(Kind::Sqlite);
}

#[test]
fn postgres_tries_again_what_was_refused() {
    refused(Kind::Postgres);
}

#[test]
fn kafka_survives_a_kill_at_every_step() {
    killed(Kind::Kafka);
}

#[test]
fn kafka_tries_again_what_failed_at_any_step() {
    refused(Kind::Kafka);
}

#[test]
fn a_paused_writer_of_kafka_changes_nothing_when_it_goes_on() {
    paused(Kind::Kafka, &KAFKA[4..]);
}

#[test]
fn a_paused_writer_of_files_changes_nothing_when_it_goes_on() {
    paused(Kind::Files, &FILES[5..]);
}

#[test]
fn a_paused_writer_of_rolling_files_changes_nothing_when_it_goes_on() {
    paused(Kind::Rolling, &FILES[5..]);
}

#[test]
fn a_writer_of_sqlite_paused_inside_its_transaction_holds_others_off_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = start(Kind::Sqlite, dir.path(), "sqlite.after-rows:3:stop");
    while state(&child) != 'T' {
        std::thread::sleep(Duration::from_millis(5));
    }
    let claim = runtime().block_on(Runner::claim(make(Kind::Sqlite, dir.path()), &Lane::single(), 2));
    assert!(claim.err().unwrap().is_transient());
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::CONT).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(rows(Kind::Sqlite, dir.path()), expected(Kind::Sqlite, LAST));
    recover(Kind::Sqlite, dir.path(), "after a pause in a transaction");
}

/// Inside a transaction SQLite's lock keeps everybody else waiting, so only the steps outside can be overtaken.
#[test]
fn a_paused_writer_of_sqlite_changes_nothing_when_it_goes_on() {
    paused(Kind::Sqlite, &["sqlite.before-begin", "sqlite.after-commit"]);
}

#[test]
fn mariadb_survives_a_kill_at_every_step() {
    if is_there(Kind::Mariadb) {
        killed(Kind::Mariadb);
    }
}

#[test]
fn mysql_survives_a_kill_at_every_step() {
    if is_there(Kind::Mysql) {
        killed(Kind::Mysql);
    }
}

/// Here the server has no part in it: one of the two is enough, as for the next one.
#[test]
fn mysql_tries_again_what_was_refused() {
    if is_there(Kind::Mysql) {
        refused(Kind::Mysql);
    }
}

#[test]
fn a_paused_writer_of_mysql_changes_nothing_when_it_goes_on() {
    if is_there(Kind::Mysql) {
        paused(Kind::Mysql, &["mysql.before-begin", "mysql.after-commit"]);
    }
}

/// A writer that is paused in its transaction holds the mark's row, until the server ends its session.
fn held_off_for_a_while(kind: Kind) {
    if !is_there(kind) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut child = start(kind, dir.path(), "mysql.after-rows:3:stop");
    let began = Instant::now();
    while state(&child) != 'T' && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let claim = || runtime().block_on(Runner::claim(make(kind, dir.path()), &Lane::single(), 2));
    let began = Instant::now();
    let first = claim().err().expect("the row is locked");
    assert!(first.is_transient() && first.to_string().contains("lock"), "{first}");
    while let Err(error) = claim() {
        assert!(error.is_transient() && began.elapsed() < Duration::from_secs(120), "{error}");
    }
    finish(kind, dir.path(), "while the zombie is paused");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::CONT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(42), "the zombie was not fenced");
    assert_eq!(rows(kind, dir.path()), expected(kind, LAST));
    forget(kind, dir.path());
}

#[test]
fn a_writer_of_mariadb_paused_inside_its_transaction_holds_others_off_for_a_while_and_is_then_fenced() {
    held_off_for_a_while(Kind::Mariadb);
}

#[test]
fn a_writer_of_mysql_paused_inside_its_transaction_holds_others_off_for_a_while_and_is_then_fenced() {
    held_off_for_a_while(Kind::Mysql);
}

/// Inside of its transaction a stopped writer holds the lane's row. The claim has the server end it: also in mid-COPY, where
/// the server waits for the client and its own limits do not reach.
#[test]
fn a_paused_writer_of_postgres_is_ended_by_the_new_owner_and_changes_nothing_when_it_goes_on() {
    if is_there(Kind::Postgres) {
        paused(
            Kind::Postgres,
            &["postgres.before-begin", "postgres.in-copy", "postgres.after-rows", "postgres.after-commit"],
        );
    }
}
