//! Fault 9: a full disk under each thing that is written. The daemon stops before the commit and says why, loses nothing,
//! and goes on by itself when there is space again.

use std::{
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tidemill_tests::{Disk, feed::send_acked, free_address};

use super::*;

/// What a full disk is called in a reason.
const FULL: [&str; 2] = ["No space left", "disk is full"];

/// The folder of `place` is a small disk, which is full from the second file on and freed later.
fn full_under(place: &str, kib: usize) {
    let world = World::new(&directory(""), &format!("{FILES}{DB}"));
    let Some(disk) = Disk::mount(&world.folder.join(place), kib) else { return };
    let mut daemon = world.run().spawn();
    world.publish(0..40);
    eventually("the first file's rows", || world.count(&["files", "db"], 40));
    disk.fill();
    world.publish(40..160);
    let said = wait_reason(&mut daemon, &FULL);
    says(&said, &[place]);
    // It keeps trying, and is never ready in between.
    let tries = |daemon: &Daemon| daemon.stderr().matches("tried again").count();
    let before = tries(&daemon);
    eventually("two more tries", || {
        assert_eq!(daemon.get("/ready").unwrap().status, 503, "ready on a full disk:\n{}", daemon.stderr());
        if tries(&daemon) >= before + 2 { Ok(()) } else { Err(daemon.stderr()) }
    });
    assert!(daemon.stderr().matches("tried again").count() < 30, "tries without a pause:\n{}", daemon.stderr());
    disk.free();
    eventually("all rows, by itself", || world.count(&["files", "db"], 160));
    daemon.wait_ready();
    assert!(!daemon.stderr().contains("panicked"), "{}", daemon.stderr());
    daemon.term();
    daemon.expect_success();
    world.assert_count(&["files", "db"], 160, &format!("{place} on a full disk, freed later"));
    drop(daemon);
}

#[test]
fn the_files_sinks_folder() {
    full_under("files", 4096);
}

#[test]
fn sqlites_folder() {
    full_under("db", 4096);
}

#[test]
fn the_dead_letters_folder() {
    full_under("dead", 4096);
}

/// The ledger is an account, not the truth: a full disk under it costs nothing as long as tries can be counted.
#[test]
fn the_data_dir() {
    full_under("data", 16 * 1024);
}

#[test]
fn a_data_dir_that_is_full_at_the_start_is_named() {
    let world = World::new(&directory(""), &format!("{FILES}{DB}"));
    let Some(disk) = Disk::mount(&world.folder.join("data"), 8192) else { return };
    world.publish(0..40);
    disk.fill();
    let mut daemon = world.run().start();
    daemon.expect_code(1);
    says(&daemon.stderr(), &["data", "No space left"]);
    disk.free();
    world.once();
    world.assert_count(&["files", "db"], 40, "data dir full at the start, freed, started again");
}

/// The ledger as the anchor: nothing is closed that is not on the disk.
#[test]
fn the_data_dir_of_a_job_without_marks() {
    let sinks = "  screen: { type: console }\ndead_letters: { type: console }\n";
    let world = World::with(&directory(""), sinks, "asap");
    let Some(disk) = Disk::mount(&world.folder.join("data"), 16 * 1024) else { return };
    let mut daemon = world.run().spawn();
    let shown = |daemon: &Daemon, from: usize, to: usize| {
        let out = daemon.stdout();
        let lacks = (from..to).find(|n| n % BROKEN != BROKEN - 1 && !out.contains(&format!("{n}  p{}", n % 3)));
        lacks.map_or(Ok(()), |n| Err(format!("{n} is not printed:\n{out}")))
    };
    world.publish(0..40);
    eventually("the first file's rows", || shown(&daemon, 0, 40));
    disk.fill();
    world.publish(40..80);
    let said = wait_reason(&mut daemon, &FULL);
    says(&said, &["data"]);
    disk.free();
    eventually("all rows", || shown(&daemon, 40, 80));
    daemon.wait_ready();
    println!("the ledger as the anchor on a full disk, freed later: 0 lost (at least once)");
    drop(daemon);
}

#[test]
fn the_spool() {
    const RECORDS: usize = 4000;
    let address = free_address();
    let source = format!(
        "  in: {{ type: socket, listen: \"{address}\", ack: line, codec: json, schema: {{ n: int64, part: string }} }}\n"
    );
    let mut world = World::new(&source, &format!("{FILES}{DB}"));
    world.yaml = world.yaml.replace("max_records: 10", "max_records: 500");
    let Some(disk) = Disk::mount(&world.folder.join("data/faults/spool/in"), 2048) else { return };
    let mut daemon = world.run().spawn();
    let stream = tidemill_tests::feed::connect(address);
    let first: Vec<Vec<u8>> = (0..100).map(|n| record(n).into_bytes()).collect();
    assert_eq!(send_acked(&stream, &first), 100);
    eventually("the first records", || world.count(&["files", "db"], 100));
    disk.fill();
    // One sender sends on: it is held back, and told of nothing that is not on the disk.
    let acked = Arc::new(AtomicUsize::new(0));
    let counter = acked.clone();
    let sender = thread::spawn(move || {
        let stream = tidemill_tests::feed::connect(address);
        let mut reader = stream.try_clone().unwrap();
        let listener = thread::spawn(move || {
            let (mut text, mut buffer) = (String::new(), [0; 4096]);
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
                let whole = text.rfind('\n').map_or("", |end| &text[..end]);
                if let Some(count) = whole.rsplit('\n').next().and_then(|line| line.parse().ok()) {
                    counter.store(count, Ordering::SeqCst);
                }
            }
        });
        let mut writer = stream;
        for n in 100..RECORDS {
            std::io::Write::write_all(&mut writer, (record(n) + "\n").as_bytes()).unwrap();
        }
        writer.shutdown(std::net::Shutdown::Write).unwrap();
        listener.join().unwrap();
    });
    let said = wait_reason(&mut daemon, &FULL);
    says(&said, &["senders are held back"]);
    let held = acked.load(Ordering::SeqCst);
    let until = std::time::Instant::now() + Duration::from_secs(3);
    while std::time::Instant::now() < until {
        assert_eq!(daemon.get("/ready").unwrap().status, 503, "ready on a full disk:\n{}", daemon.stderr());
        assert_eq!(acked.load(Ordering::SeqCst), held, "acknowledged on a full disk");
        thread::sleep(Duration::from_millis(50));
    }
    // What was acknowledged is there, also for a daemon that is killed on the full disk.
    daemon.kill9();
    drop(daemon);
    assert!(sender.join().is_err() || acked.load(Ordering::SeqCst) == held);
    disk.free();
    let mut daemon = world.run().spawn();
    // What was written but not acknowledged may be there or not, once: a sender would ask, and go on behind it.
    let there = eventually("what is in the spool", || {
        let waiting =
            daemon.get("/jobs/faults").map_err(|error| error.to_string())?.json()["lag"]["in"]["records"].as_u64();
        let there = world.sink("db")?.len() + world.sink("dead")?.len();
        world.count(&["files", "db"], there)?;
        if waiting == Some(0) && there >= 100 + held { Ok(there) } else { Err(format!("{there}, {waiting:?} wait")) }
    });
    let stream = tidemill_tests::feed::connect(address);
    let rest: Vec<Vec<u8>> = (there..RECORDS).map(|n| record(n).into_bytes()).collect();
    assert_eq!(send_acked(&stream, &rest), rest.len());
    eventually("all rows", || world.count(&["files", "db"], RECORDS));
    daemon.term();
    daemon.expect_success();
    world.assert_count(&["files", "db"], RECORDS, "spool on a full disk, killed there, freed later");
    drop(daemon);
}

#[test]
fn the_spool_goes_on_by_itself() {
    const RECORDS: usize = 1000;
    let address = free_address();
    let source = format!(
        "  in: {{ type: socket, listen: \"{address}\", ack: line, codec: json, schema: {{ n: int64, part: string }} }}\n"
    );
    let world = World::new(&source, &format!("{FILES}{DB}"));
    let Some(disk) = Disk::mount(&world.folder.join("data/faults/spool/in"), 2048) else { return };
    let mut daemon = world.run().spawn();
    disk.fill();
    let sender = thread::spawn(move || {
        let all: Vec<Vec<u8>> = (0..RECORDS).map(|n| record(n).into_bytes()).collect();
        send_acked(&tidemill_tests::feed::connect(address), &all)
    });
    wait_reason(&mut daemon, &FULL);
    disk.free();
    assert_eq!(sender.join().unwrap(), RECORDS, "all are acknowledged in the end");
    eventually("all rows", || world.count(&["files", "db"], RECORDS));
    daemon.wait_ready();
    daemon.term();
    daemon.expect_success();
    world.assert_count(&["files", "db"], RECORDS, "spool on a full disk, freed later");
    drop(daemon);
}
