//! Faults 20 to 25 of the protocol on the real binary: sockets that are cut, a sink that is down for long, clocks that jump,
//! poison records, jobs that are edited while a plan is open, and stops under load.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tidemill_tests::{Daemon, Folder, Rows, Run, eventually, feed, free_address, root};

fn numbers(range: std::ops::Range<usize>) -> Rows {
    Rows::json(&range.map(|n| format!("{{\"n\": {n}}}")).collect::<Vec<_>>().join("\n"))
}

fn publish(folder: &Folder, name: &str, range: std::ops::Range<usize>) {
    let lines: Vec<_> = range.map(|n| format!("{{\"n\": {n}}}")).collect();
    folder.publish(format!("in/{name}.json"), lines.join("\n") + "\n");
}

fn table(folder: &Folder) -> Result<Rows, String> {
    Rows::try_sqlite(&folder.join("rows.db"), "SELECT * FROM rows ORDER BY rowid").map_err(|e| e.to_string())
}

/// Both sinks hold exactly these rows.
fn count(folder: &Folder, expected: &Rows) -> Result<(), String> {
    table(folder)?.compare(expected).map_err(|difference| format!("the table: {difference}"))?;
    Rows::files(&folder.join("out")).compare(expected).map_err(|difference| format!("the files: {difference}"))
}

const SINKS: &str =
    "sinks:\n  db: { type: sqlite, path: rows.db, table: rows }\n  out: { type: files, path: out, codec: json }\n";

fn directory_job(more: &str) -> String {
    format!(
        "job: faults\ntrigger: asap\nbatch: {{ max_records: 10 }}\nsources:\n  in: {{ type: directory, path: in, settle: 10ms, codec: json, \
         schema: {{ n: int64 }} }}\n{more}{SINKS}"
    )
}

fn socket_job(source: &str) -> String {
    format!(
        "job: faults\ntrigger: asap\nsources:\n  in: {{ type: socket, {source} }}\n{SINKS}\
         dead_letters: {{ type: files, path: dead, codec: json }}\n"
    )
}

/// Fault 20: many clients at once, each cut in the middle of a record. No record is merged with another client's, and what
/// was left unfinished is a reject that shows what came.
#[test]
fn fault_20_sockets_that_are_cut_in_mid_record_merge_nothing() {
    const CLIENTS: usize = 60;
    const RECORDS: usize = 30;
    let folder = Folder::new();
    let address = free_address();
    let job = socket_job(&format!("listen: \"{address}\", framing: {{ delimiter: \"__end\" }}, codec: text"));
    let _daemon = Run::new(&folder).job(&job).spawn();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                let mut stream = feed::connect(address);
                for n in 0..RECORDS {
                    // In two pieces, so that clients interleave within records, and the delimiter is cut too.
                    let record = format!("client {client} record {n}__end");
                    let cut = 1 + (client + n) % (record.len() - 1);
                    stream.write_all(&record.as_bytes()[..cut]).unwrap();
                    stream.flush().unwrap();
                    thread::yield_now();
                    stream.write_all(&record.as_bytes()[cut..]).unwrap();
                }
                // The cut: in the text, or in the delimiter.
                let half = if client % 2 == 0 { format!("half of {client}") } else { format!("half of {client}__en") };
                stream.write_all(half.as_bytes()).unwrap();
                if client % 3 == 0 {
                    stream.shutdown(Shutdown::Write).unwrap();
                }
            });
        }
    });
    let texts: Vec<_> = (0..CLIENTS)
        .flat_map(|client| (0..RECORDS).map(move |n| format!("{{\"text\": \"client {client} record {n}\"}}")))
        .collect();
    let expected = Rows::json(&texts.join("\n"));
    eventually("every whole record", || count(&folder, &expected));
    let rejects = eventually("every half", || {
        let rejects = Rows::files(&folder.join("dead"));
        if rejects.len() == CLIENTS { Ok(rejects) } else { Err(format!("{} rejects", rejects.len())) }
    });
    let mut found: Vec<_> = rejects.column("record");
    let half = |client| format!("half of {client}{}", if client % 2 == 0 { "" } else { "__en" });
    let mut wanted: Vec<String> = (0..CLIENTS).map(half).collect();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
    assert!(rejects.column("reason").iter().all(|reason| reason == "half_record"), "{:?}", rejects.column("reason"));
    // Each client's records are in its order.
    let stored = table(&folder).unwrap().column("text");
    for client in 0..CLIENTS {
        let prefix = format!("client {client} ");
        let mine: Vec<_> = stored.iter().filter(|text| text.starts_with(&prefix)).collect();
        let in_order = (0..RECORDS).map(|n| format!("client {client} record {n}"));
        assert!(mine.into_iter().eq(in_order.collect::<Vec<_>>().iter()), "client {client} is out of order");
    }
}

/// Fault 20, the other way round: the server that it connects to goes away in mid-record and comes back.
#[test]
fn fault_20_a_server_that_is_cut_in_mid_record_is_connected_to_again() {
    let folder = Folder::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        for text in ["one__endtw", "o__end", "three__end__e", "nd__endfour__end"] {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(text.as_bytes()).unwrap();
        }
        listener
    });
    let job = socket_job(&format!("connect: \"{address}\", framing: {{ delimiter: \"__end\" }}, codec: text"));
    let _daemon = Run::new(&folder).job(&job).spawn();
    let expected = Rows::json(
        "{\"text\":\"one\"}\n{\"text\":\"o\"}\n{\"text\":\"three\"}\n{\"text\":\"nd\"}\n{\"text\":\"four\"}",
    );
    eventually("what came whole", || count(&folder, &expected));
    let rejects = Rows::files(&folder.join("dead"));
    assert_eq!(rejects.column("record"), ["tw", "__e"]);
    drop(server.join().unwrap());
}

/// Resident memory of a process, in MiB.
fn resident_mib(daemon: &Daemon) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// Fault 21, as far as there are sinks: the database is locked by somebody for long. The spool fills to its bound, memory
/// stays flat, the sender is held back by TCP; then everything is caught up, each record once.
#[test]
fn fault_21_a_sink_that_is_down_for_long_holds_the_sender_back() {
    const SPOOL: u64 = 4 * 1024 * 1024;
    /// All that the kernel may keep between sender and daemon, and a group that is being written.
    const SLACK: usize = 24 * 1024 * 1024;
    let folder = Folder::new();
    let address = free_address();
    let source =
        format!("listen: \"{address}\", max_spool_bytes: 4MiB, codec: json, schema: {{ n: int64, text: string }}");
    let job = socket_job(&source).replace("trigger: asap", "trigger: asap\nbatch: { max_bytes: 1MiB }");
    let mut daemon = Run::new(&folder).job(&job).spawn();
    feed::send(address, &[b"{\"n\": 0, \"text\": \"first\"}".to_vec()], b"\n");
    eventually("the first row", || if table(&folder)?.len() == 1 { Ok(()) } else { Err("none".into()) });

    let lock = Connection::open(folder.join("rows.db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let before = resident_mib(&daemon);
    let (sent, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (counter, told) = (sent.clone(), stop.clone());
    let text = "x".repeat(1000);
    let sender = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        while !told.load(Ordering::SeqCst) {
            let n = counter.load(Ordering::SeqCst) + 1;
            stream.write_all(format!("{{\"n\": {n}, \"text\": \"{text}\"}}\n").as_bytes()).unwrap();
            counter.store(n, Ordering::SeqCst);
        }
    });
    // Held back: the sender gets nothing more away.
    let held = eventually("the sender to be held back", || {
        let before = sent.load(Ordering::SeqCst);
        thread::sleep(Duration::from_secs(2));
        let now = sent.load(Ordering::SeqCst);
        if now == before && now > 4000 { Ok(now) } else { Err(format!("{now} records sent, and going on")) }
    });
    assert!(held * 1000 < SPOOL as usize + SLACK, "{held} KB were taken: the spool's bound is {SPOOL} bytes");
    eventually("the failure to be visible", || {
        let (retries, lag) =
            (daemon.metric("tidemill_sink_retries_total", &[]), daemon.metric("tidemill_source_lag_records", &[]));
        let ready = daemon.get("/ready").unwrap();
        let told = ready.status == 503 && ready.body.contains("locked by another process");
        if retries >= 1.0 && lag > 1000.0 && told { Ok(()) } else { Err(format!("{retries} {lag} {}", ready.body)) }
    });
    let spool = daemon.metric("tidemill_spool_bytes", &[]);
    assert!(spool <= SPOOL as f64 * 1.6, "{spool} bytes in a spool of {SPOOL}");
    let grown = resident_mib(&daemon).saturating_sub(before);
    assert!(grown < 64, "memory grew by {grown} MiB while {held} KB waited");

    lock.execute_batch("ROLLBACK").unwrap();
    eventually("the sender to go on", || {
        let now = sent.load(Ordering::SeqCst);
        if now > held + 1000 { Ok(()) } else { Err(format!("{now}, held at {held}")) }
    });
    stop.store(true, Ordering::SeqCst);
    sender.join().unwrap();
    let total = sent.load(Ordering::SeqCst) + 1;
    let query = "SELECT count(*) AS n, count(DISTINCT n) AS d, min(n) AS first, max(n) AS last FROM rows";
    let wanted = Rows::json(&format!("{{\"n\": {total}, \"d\": {total}, \"first\": 0, \"last\": {}}}", total - 1));
    eventually("everything, once", || {
        Rows::try_sqlite(&folder.join("rows.db"), query).map_err(|e| e.to_string())?.compare(&wanted)
    });
    eventually("the files", || {
        let found = Rows::files(&folder.join("out")).len();
        if found == total { Ok(()) } else { Err(format!("{found} of {total}")) }
    });
    eventually("the lag to be gone", || match daemon.metric("tidemill_source_lag_records", &[]) {
        0.0 => Ok(()),
        lag => Err(lag.to_string()),
    });
    daemon.wait_ready();
    println!(
        "held back at {held} records of 1 KB, memory grew by {grown} MiB; {total} sent, {total} stored, each once"
    );
}

/// The clock that tests set, compiled once.
fn clock_shim() -> PathBuf {
    let to = std::env::temp_dir().join(format!("tidemill-clock-{}.so", std::process::id()));
    let source = root().join("tests/clock/shim.c");
    let status = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&to).arg(source).status().unwrap();
    assert!(status.success(), "the clock does not compile");
    to
}

/// Fault 22: the clock jumps forward by a year, back by two, and is right again; a restart in between. The jumps are held:
/// `now()` of the rows goes on, nothing is lost or doubled, and whoever stands by takes no notice.
#[test]
fn fault_22_a_clock_that_jumps_both_ways_loses_and_doubles_nothing() {
    const YEAR: i64 = 365 * 86400;
    let folder = Folder::new();
    fs::create_dir(folder.join("in")).unwrap();
    let job =
        directory_job("steps: [{ add: { at: now() } }]\n").replace("job: faults", "job: faults\ntakeover_after: 2s");
    let (shim, offset) = (clock_shim(), folder.write("offset", "0"));
    let run = Run::new(&folder).job(&job).env("LD_PRELOAD", shim).env("CLOCK_OFFSET", &offset);
    let mut daemon = run.spawn();
    let standby = run.clone().data_dir("data-2").start();
    let mut published = 0;
    let mut batch = |what: &str| {
        publish(&folder, &published.to_string(), published..published + 5);
        published += 5;
        eventually(&format!("rows after the clock {what}"), || {
            table(&folder)?.select(&["n"]).compare(&numbers(0..published))?;
            Rows::files(&folder.join("out")).select(&["n"]).compare(&numbers(0..published))
        });
    };
    let set = |seconds: i64| fs::rename(folder.write("offset.new", seconds.to_string()), &offset).unwrap();
    batch("was right");
    set(YEAR);
    batch("jumped forward by a year");
    assert_eq!(daemon.metric("tidemill_clock_behind_seconds", &[]), 0.0);
    set(-YEAR);
    batch("jumped back by two years");
    batch("stayed there");
    let behind = daemon.metric("tidemill_clock_behind_seconds", &[]);
    assert!((behind - YEAR as f64).abs() < 3600.0, "{behind}");
    // Once a minute, not with each batch.
    assert_eq!(daemon.stderr().matches("clock jumped by more than an hour").count(), 1, "{}", daemon.stderr());
    daemon.kill9();
    drop(daemon);
    // The one that stands by is told nothing by the clock: only by silence.
    let mut standby = standby;
    standby.wait_ready();
    batch("was set back, and another took over");
    set(0);
    batch("was right again");
    standby.term();
    standby.expect_success();
    let at = table(&folder).unwrap().column("at");
    assert!(at.windows(2).all(|pair| pair[0] <= pair[1]), "now() went back: {at:?}");
    assert!(at.first() < at.last(), "{at:?}");
    let year = |at: &String| at[..4].parse::<i64>().unwrap();
    assert!(year(at.last().unwrap()) - year(at.first().unwrap()) <= 1, "a jump was followed: {at:?}");
}

/// A daemon that starts believes its clock. When that was a year ahead, the lane would stay there for a year: one command,
/// with the daemon running or not, sets it to the machine's clock.
#[test]
fn a_lane_that_was_ahead_of_the_clock_is_set_back_by_a_command() {
    const YEAR: i64 = 365 * 86400;
    let folder = Folder::new();
    fs::create_dir(folder.join("in")).unwrap();
    let job = directory_job("steps: [{ add: { at: now() } }]\n");
    let (shim, offset) = (clock_shim(), folder.write("offset", YEAR.to_string()));
    let run = Run::new(&folder).job(&job).env("LD_PRELOAD", shim).env("CLOCK_OFFSET", &offset);
    let mut published = 0;
    let mut batch = || {
        publish(&folder, &published.to_string(), published..published + 5);
        published += 5;
        eventually("rows", || table(&folder)?.select(&["n"]).compare(&numbers(0..published)));
        table(&folder).unwrap().column("at").pop().unwrap()
    };
    let mut daemon = run.spawn();
    let ahead = batch();
    daemon.term();
    daemon.expect_success();
    folder.write("offset", "0");
    let mut daemon = run.spawn();
    let still = batch();
    assert!(still >= ahead, "{still} after {ahead}");
    batch();
    assert_eq!(daemon.stderr().matches("clock is behind").count(), 1, "{}", daemon.stderr());
    let data = folder.join("data");
    let resolve = ["checkpoint", "resolve", "--clock", "--yes", "--data-dir", data.to_str().unwrap()];
    let done = tidemill_tests::daemon::tidemill(&folder, &resolve);
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("goes on from the machine's clock"), "{said}");
    let right = batch();
    assert!(right < ahead, "{right} is not before {ahead}");
    assert!(daemon.metric("tidemill_clock_behind_seconds", &[]) < 60.0);
    daemon.term();
    daemon.expect_success();
    // A jump that is right: the machine was wrong before. With the daemon at rest it needs no command.
    Rows::files(&folder.join("out")).select(&["n"]).assert_same(&numbers(0..published), "files");
}

/// Fault 23: one poison record in the middle of a batch, and a kill at each step of the protocol. Its neighbours are stored
/// once, and it is one dead letter, once.
#[test]
fn fault_23_a_poison_record_is_one_dead_letter_whatever_is_killed() {
    let phases =
        ["plan", "read", "compute", "before-anchor", "after-anchor", "after-sinks", "after-close", "after-release"];
    for phase in phases {
        let folder = Folder::new();
        publish(&folder, "a", 0..10);
        folder.publish("in/b.json", "{\"n\": 10}\n{\"n\": 11}\n{\"n\": poison}\n{\"n\": 12}\n");
        publish(&folder, "c", 13..20);
        let run = Run::new(&folder).job(
            &directory_job("")
                .replace(SINKS, &format!("{SINKS}dead_letters: {{ type: files, path: dead, codec: json }}\n")),
        );
        // The batch with the poison is the second: killed in it, then in its replay.
        run.clone().failpoint(&format!("{phase}:2:kill")).arg("--once").start().expect_killed();
        let mut again = run.clone().failpoint("replay:1:kill").arg("--once").start();
        let killed = again.wait().code().is_none();
        // In the phases before, it may have met the commit of the batch before: that one's replay is killed then.
        assert!(killed || phase != "after-anchor", "after the anchor there is something to replay");
        run.once().expect_success();
        count(&folder, &numbers(0..20)).unwrap_or_else(|difference| panic!("{phase}: {difference}"));
        let dead = Rows::files(&folder.join("dead"));
        assert_eq!(dead.column("record"), ["{\"n\": poison}"], "{phase}");
        assert_eq!(
            (dead.column("source"), dead.column("reason")),
            (vec!["in".to_owned()], vec!["json".to_owned()]),
            "{phase}"
        );
        assert_eq!(dead.column("position").len(), 1);
    }
}

/// Fault 24: killed after the anchor has a batch and before the second sink; then the job is edited. The replay is by the
/// old text, what follows by the new one; without the old text the lane stops and says so.
#[test]
fn fault_24_a_job_that_is_edited_while_a_plan_is_open_finishes_it_by_the_old_text() {
    let folder = Folder::new();
    publish(&folder, "a", 0..10);
    publish(&folder, "b", 10..20);
    let text = |version: &str| directory_job(&format!("steps: [{{ add: {{ version: \"'{version}'\" }} }}]\n"));
    Run::new(&folder).job(&text("old")).failpoint("after-anchor:2:kill").arg("--once").start().expect_killed();
    assert_eq!((table(&folder).unwrap().len(), Rows::files(&folder.join("out")).len()), (20, 10));
    publish(&folder, "c", 20..30);
    let texts = folder.join("data/faults/texts");
    let aside = folder.join("texts-aside");
    fs::rename(&texts, &aside).unwrap();
    let new = Run::new(&folder).job(&text("new"));
    let mut stopped = new.once();
    stopped.expect_code(1);
    let said = stopped.stderr();
    assert!(said.contains("another text of this job") && said.contains("put the older text back"), "{said}");
    assert_eq!(Rows::files(&folder.join("out")).len(), 10, "nothing was written by the wrong text");

    fs::remove_dir_all(&texts).unwrap();
    fs::rename(&aside, &texts).unwrap();
    new.once().expect_success();
    let expected: Vec<_> =
        (0..30).map(|n| format!("{{\"n\": {n}, \"version\": \"{}\"}}", if n < 20 { "old" } else { "new" })).collect();
    count(&folder, &Rows::json(&expected.join("\n"))).unwrap();
}

/// Fault 25: SIGTERM while records stream in. The stop is quick and clean, every sink is at the head, and the next start
/// has nothing to replay.
#[test]
fn fault_25_a_stop_under_load_is_clean_and_leaves_nothing_to_replay() {
    let folder = Folder::new();
    let address = free_address();
    let job = socket_job(&format!("listen: \"{address}\", ack: line, codec: json, schema: {{ n: int64 }}"))
        .replace("trigger: asap", "trigger: asap\nbatch: { max_records: 20 }");
    let mut durable = 0;
    for round in 0..6 {
        let mut daemon = Run::new(&folder).job(&job).spawn();
        let replays = daemon.stderr().lines().filter(|line| line.contains("replaying")).count();
        assert_eq!(replays, 0, "round {round}: {}", daemon.stderr());
        let lines: Vec<Vec<u8>> = (durable..durable + 3000).map(|n| format!("{{\"n\": {n}}}").into_bytes()).collect();
        let stream = feed::connect(address);
        let acked = thread::scope(|scope| {
            let sender = scope.spawn(|| feed::send_acked(&stream, &lines));
            eventually("batches under load", || {
                let batches = daemon.metric("tidemill_batches_total", &[]);
                if batches >= 3.0 { Ok(()) } else { Err(format!("{batches} batches")) }
            });
            thread::sleep(Duration::from_millis(37 * round));
            let begun = Instant::now();
            daemon.term();
            daemon.expect_success();
            assert!(begun.elapsed() < Duration::from_secs(10), "a stop took {:?}", begun.elapsed());
            sender.join().unwrap()
        });
        let stored = table(&folder).unwrap().len();
        assert!(stored < durable + lines.len(), "the stop came when all was done");
        assert!(daemon.stderr().contains("stopped"), "{}", daemon.stderr());
        let show = tidemill_tests::daemon::tidemill(&folder, &["checkpoint", "show", "--data-dir", "data", "--json"]);
        let shown: serde_json::Value = serde_json::from_slice(&show.stdout).unwrap();
        let sinks = &shown["sinks"];
        let head = &sinks["db"]["mark"]["batch"];
        assert!(
            head.as_u64() >= Some(3) && sinks["out"]["mark"]["batch"] == *head,
            "both sinks are at the head: {shown}"
        );
        assert!(sinks.as_object().unwrap().values().all(|sink| sink["claim"]["released"] == true), "{shown}");
        // What was acknowledged is in the spool at least; more may be, sent and not acknowledged: it counts as sent.
        let mut reader = Run::new(&folder).job(&job).spawn();
        eventually("the spool to be worked off", || match reader.metric("tidemill_source_lag_records", &[]) {
            0.0 if reader.metric("tidemill_spool_bytes", &[]) >= 0.0 => Ok(()),
            lag => Err(lag.to_string()),
        });
        let next = eventually("what was acknowledged", || {
            let stored = table(&folder)?.len();
            if stored >= durable + acked { Ok(stored) } else { Err(format!("{stored} of {}", durable + acked)) }
        });
        reader.term();
        reader.expect_success();
        durable = table(&folder).unwrap().len().max(next);
        count(&folder, &numbers(0..durable)).unwrap_or_else(|difference| panic!("round {round}: {difference}"));
    }
    println!("6 stops under load, {durable} records: 0 lost, 0 doubled, nothing to replay");
}

/// A connection that is reset does not take other connections with it, nor the daemon.
#[test]
fn fault_20_a_reset_in_mid_record_harms_nobody_else() {
    let folder = Folder::new();
    let address = free_address();
    let job = socket_job(&format!("listen: \"{address}\", codec: text"));
    let mut daemon = Run::new(&folder).job(&job).spawn();
    let mut good = feed::connect(address);
    for round in 0..20 {
        let mut bad = feed::connect(address);
        bad.write_all(b"this is cut").unwrap();
        // Unread bytes at the close make it a reset.
        good.write_all(format!("whole {round}\n").as_bytes()).unwrap();
        let _ = bad.set_nonblocking(true);
        let _ = bad.read(&mut [0]);
        rustix::net::sockopt::set_socket_linger(&bad, Some(Duration::ZERO)).unwrap();
        drop(bad);
    }
    eventually("the good client's records", || {
        let found = table(&folder)?.column("text");
        if found.len() == 20 { Ok(()) } else { Err(format!("{found:?}")) }
    });
    assert!(daemon.is_running());
    let texts = table(&folder).unwrap().column("text");
    assert!(texts.iter().enumerate().all(|(n, text)| *text == format!("whole {n}")), "{texts:?}");
    let dead = Rows::files(&folder.join("dead")).column("record");
    assert!(dead.iter().all(|record| "this is cut".starts_with(record)), "{dead:?}");
}
