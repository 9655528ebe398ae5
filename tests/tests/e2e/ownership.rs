//! Who may write: faults 14 and 15, with real processes. Two daemons on one job neither fence each other for ever nor both
//! stop; a paused one that comes back writes nothing.

use std::time::{Duration, Instant};

use tidemill_tests::{Daemon, Folder, Rows, Run, eventually};

const RECORDS: usize = 200;

fn job(takeover: &str) -> String {
    format!(
        "job: owned\ntrigger: asap\ntakeover_after: {takeover}\nbatch: {{ max_records: 10 }}\nsources:\n  in: {{ type: directory, path: in, settle: 10ms, codec: json, \
         schema: {{ n: int64 }} }}\nsinks:\n  files: {{ type: files, path: files, codec: json }}\n  db: {{ type: sqlite, path: rows.db, table: rows }}\n  \
         rolling: {{ type: files, path: rolling, codec: json, roll: {{ bytes: 1KiB }} }}\n"
    )
}

fn expected(count: usize) -> Rows {
    Rows::json(&(0..count).map(|n| format!("{{\"n\": {n}}}")).collect::<Vec<_>>().join("\n"))
}

fn publish(folder: &Folder, name: &str, numbers: std::ops::Range<usize>) {
    let lines: Vec<_> = numbers.map(|n| format!("{{\"n\": {n}}}")).collect();
    folder.publish(format!("in/{name}.json"), lines.join("\n") + "\n");
}

fn count(folder: &Folder, records: usize) -> Result<(), String> {
    Rows::files(&folder.join("files")).compare(&expected(records))?;
    Rows::files(&folder.join("rolling")).compare(&expected(records))?;
    Rows::try_sqlite(&folder.join("rows.db"), "SELECT n FROM rows")
        .map_err(|e| e.to_string())?
        .compare(&expected(records))
}

fn reason(daemon: &Daemon) -> String {
    daemon.get("/ready").map(|answer| answer.body).unwrap_or_default()
}

#[test]
fn a_second_daemon_on_the_same_data_dir_is_refused() {
    let folder = Folder::new();
    publish(&folder, "a", 0..10);
    let run = Run::new(&folder).job(&job("30s"));
    let first = run.spawn();
    let mut second = run.start();
    second.expect_code(1);
    let (said, place) = (second.stderr(), folder.join("data"));
    let wanted = format!("the data dir {} is in use by process {}", place.display(), first.pid());
    assert!(said.contains(&wanted), "{said}\nshould say: {wanted}");
}

#[test]
fn who_waits_says_so_once_however_often_it_looks() {
    let folder = Folder::new();
    publish(&folder, "a", 0..10);
    let run = Run::new(&folder).job(&job("1s"));
    let _first = run.spawn();
    let second = run.clone().data_dir("data-2").start();
    // It looks four times a second.
    eventually(
        "the second to wait",
        || if reason(&second).contains("owned by") { Ok(()) } else { Err(second.stderr()) },
    );
    std::thread::sleep(Duration::from_secs(3));
    let said = second.stderr();
    assert_eq!(said.matches("waiting: owned by").count(), 1, "{said}");
}

#[test]
fn a_second_daemon_with_its_own_data_dir_waits_until_the_first_is_silent() {
    let folder = Folder::new();
    publish(&folder, "a", 0..50);
    let run = Run::new(&folder).job(&job("2s"));
    let mut first = run.spawn();
    eventually("the first to work", || count(&folder, 50));
    let mut second = run.clone().data_dir("data-2").start();
    second.wait_status("/ready", 503);
    std::thread::sleep(Duration::from_secs(5));
    assert!(reason(&second).contains("owned by"), "{}", reason(&second));
    assert_eq!(first.get("/ready").unwrap().status, 200, "the first is not disturbed: {}", reason(&first));
    publish(&folder, "b", 50..60);
    eventually("the first to go on", || count(&folder, 60));
    first.kill9();
    let begun = Instant::now();
    second.wait_ready();
    assert!(
        begun.elapsed() >= Duration::from_millis(1000),
        "taken over after {:?}: the first could not be known to be dead",
        begun.elapsed()
    );
    publish(&folder, "c", 60..70);
    eventually("the second to go on", || count(&folder, 70));
}

#[test]
fn a_clean_stop_is_taken_over_at_once() {
    let folder = Folder::new();
    publish(&folder, "a", 0..50);
    let run = Run::new(&folder).job(&job("1h"));
    let mut first = run.spawn();
    eventually("the first to work", || count(&folder, 50));
    first.term();
    first.expect_success();
    publish(&folder, "b", 50..60);
    let _second = run.data_dir("data-2").spawn();
    eventually("the second to go on", || count(&folder, 60));
}

#[test]
fn take_over_takes_at_once_and_the_first_is_fenced() {
    let folder = Folder::new();
    publish(&folder, "a", 0..50);
    let run = Run::new(&folder).job(&job("1h"));
    let mut first = run.spawn();
    eventually("the first to work", || count(&folder, 50));
    let second = run.clone().data_dir("data-2").take_over().spawn();
    publish(&folder, "b", 50..RECORDS);
    eventually("the second to go on", || count(&folder, RECORDS));
    let fenced = first.wait_status("/ready", 503).body;
    assert!(fenced.contains("owned by") || fenced.contains("newer generation"), "{fenced}");
    // The fenced one stays fenced: it does not claim back while the other lives.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(second.get("/ready").unwrap().status, 200, "{}", reason(&second));
    count(&folder, RECORDS).unwrap();
}

/// A daemon that is stopped by SIGSTOP at a failpoint, taken over meanwhile, and continued.
fn zombie(failpoint: &str, nth: usize) {
    let folder = Folder::new();
    publish(&folder, "a", 0..RECORDS);
    let run = Run::new(&folder).job(&job("1h"));
    let mut zombie = run.clone().failpoint(&format!("{failpoint}:{nth}:stop")).start();
    let pid = zombie.pid();
    eventually(&format!("a stop at {failpoint}"), || {
        assert!(zombie.poll().is_none(), "ended:\n{}", zombie.stderr());
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| e.to_string())?;
        if status.contains("State:\tT") { Ok(()) } else { Err("it runs".into()) }
    });
    let _second = run.data_dir("data-2").take_over().spawn();
    eventually("the second to do everything", || count(&folder, RECORDS));
    zombie.cont();
    zombie.wait_status("/ready", 503);
    std::thread::sleep(Duration::from_millis(500));
    count(&folder, RECORDS).unwrap_or_else(|difference| panic!("{failpoint}: the zombie wrote: {difference}"));
    println!("stopped at {failpoint}, taken over, continued: 0 lost, 0 doubled");
}

#[test]
fn a_zombie_between_check_and_write_is_fenced() {
    // While the first batch is computed no other one commits: a process that is stopped inside of a SQLite transaction
    // keeps the file's lock, and whoever takes over waits until it goes on or dies (docs/sinks/sqlite.md).
    zombie("compute", 1);
    for failpoint in ["before-anchor", "after-anchor", "after-sinks", "after-close"] {
        zombie(failpoint, 4);
    }
}

#[test]
fn three_daemons_settle_on_one() {
    let folder = Folder::new();
    publish(&folder, "a", 0..20);
    let run = Run::new(&folder).job(&job("1s"));
    let mut daemons: Vec<Daemon> = (0..3).map(|n| run.clone().data_dir(format!("data-{n}")).start()).collect();
    for round in 1..6 {
        let records = 20 * (round + 1);
        publish(&folder, &format!("r{round}"), records - 20..records);
        eventually("the rows of a round", || count(&folder, records));
        let ready =
            daemons.iter().filter(|daemon| daemon.get("/ready").is_ok_and(|answer| answer.status == 200)).count();
        assert!(ready <= 1, "{ready} daemons own the lane");
        if round == 3 {
            let owner = daemons.iter().position(|daemon| daemon.get("/ready").is_ok_and(|answer| answer.status == 200));
            daemons.remove(owner.expect("one owns the lane")).kill9();
        }
    }
}

#[test]
fn take_over_is_spent_by_the_start_and_not_by_a_reload() {
    let folder = Folder::new();
    publish(&folder, "a", 0..20);
    let run = Run::new(&folder).job(&job("1h"));
    let first = run.clone().take_over().spawn();
    eventually("the first to work", || count(&folder, 20));
    let second = run.clone().data_dir("data-2").take_over().spawn();
    publish(&folder, "b", 20..40);
    eventually("the second to go on", || count(&folder, 40));
    // The first is told to reload a job that has changed: it waits for the second, whatever it was started with.
    let text = std::fs::read_to_string(folder.join("job.yaml")).unwrap();
    std::fs::write(folder.join("job.yaml"), text + "# changed\n").unwrap();
    first.hup();
    eventually("the reload", || {
        let said = first.stderr();
        if said.contains("changed: started anew") { Ok(()) } else { Err(said) }
    });
    eventually("the first to wait", || {
        let said = reason(&first);
        if said.contains("owned by") { Ok(()) } else { Err(said) }
    });
    assert_eq!(second.get("/ready").unwrap().status, 200, "{}", reason(&second));
    count(&folder, 40).unwrap();
}
