//! Fault 17, as far as it needs no Kafka: the folder of a spool deleted before it was drained, an older copy of it put in
//! its place, the old one brought back.

use std::fs;

use tidemill_tests::{feed, free_address};

use super::*;

const SINKS: &[&str] = &["files", "db"];
const A: Range<usize> = 0..40;
const B: Range<usize> = 40..80;
const C: Range<usize> = 80..120;

struct Spool {
    world: World,
    address: std::net::SocketAddr,
}

impl Spool {
    fn new(options: &str) -> Self {
        let address = free_address();
        let source = format!(
            "  in: {{ type: socket, listen: \"{address}\", {options}, codec: json, schema: {{ n: int64, part: string }} }}\n"
        );
        Self { world: World::new(&source, &format!("{FILES}{DB}")), address }
    }

    fn folder(&self) -> std::path::PathBuf {
        self.world.folder.join("data/faults/spool/in")
    }

    fn send(&self, numbers: Range<usize>) {
        let records: Vec<_> = numbers.map(|n| record(n).into_bytes()).collect();
        feed::send(self.address, &records, b"\n");
    }

    /// Takes records and brings them to the sinks.
    fn takes(&self, numbers: Range<usize>) {
        let had = self.world.sink("files").unwrap_or_default();
        let mut daemon = self.world.run().spawn();
        self.send(numbers.clone());
        eventually("the rows", || self.world.compare(SINKS, &plus(had.clone(), rows(numbers.clone()))));
        daemon.term();
        daemon.expect_success();
    }

    /// Takes records into the spool and no further: every batch fails once it is planned, and the daemon is killed.
    fn spools(&self, numbers: Range<usize>) {
        let mut daemon = self.world.run().failpoint("plan:1:error+").start();
        // Before it listens it may put away segments that every sink has.
        drop(feed::connect(self.address));
        let before = self.bytes();
        self.send(numbers.clone());
        eventually("the records in the spool", || {
            // Each takes its text and 20 bytes.
            let wanted: usize = numbers.clone().map(|n| record(n).len() + 20).sum();
            let now = self.bytes();
            if now >= before + wanted { Ok(()) } else { Err(format!("{now} bytes, {before} before, {wanted} wanted")) }
        });
        daemon.kill9();
    }

    fn bytes(&self) -> usize {
        let entries = fs::read_dir(self.folder()).into_iter().flatten().flatten();
        let segments = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "seg"));
        segments.map(|entry| entry.metadata().map_or(0, |meta| meta.len() as usize)).sum()
    }

    fn put_away(&self) {
        fs::rename(self.folder(), self.world.folder.join("away")).unwrap();
    }

    fn bring_back(&self) {
        let _ = fs::remove_dir_all(self.folder());
        fs::rename(self.world.folder.join("away"), self.folder()).unwrap();
    }
}

#[test]
fn a_lost_spool_is_gone_on_without_and_said() {
    // Without acknowledgements, and where the job says so.
    for options in ["ack: none", "ack: line, on_lost_spool: continue"] {
        let spool = Spool::new(options);
        spool.spools(A);
        spool.put_away();
        let mut daemon = spool.world.run().spawn();
        says(&daemon.stderr(), &["its spool is not here", "going on without them"]);
        spool.send(B);
        eventually("the rows", || spool.world.compare(SINKS, &rows(B)));
        daemon.term();
        daemon.expect_success();
        // Said once.
        let mut again = spool.world.run().spawn();
        assert!(!again.stderr().contains("going on without them"), "{}", again.stderr());
        again.kill9();
        // It comes back, and goes on where it stood.
        spool.bring_back();
        let mut daemon = spool.world.run().spawn();
        eventually("the rows of the old spool", || spool.world.compare(SINKS, &rows(0..80)));
        daemon.term();
        daemon.expect_success();
        spool.takes(C);
        spool.world.count(SINKS, 120).unwrap();
        println!("spool lost undrained, {options}: gone on without, brought back: 0 lost, 0 doubled");
    }
}

#[test]
fn a_lost_spool_whose_records_were_acknowledged_stops_the_job() {
    for options in ["ack: line", "ack: none, on_lost_spool: stop"] {
        let spool = Spool::new(options);
        spool.spools(A);
        let id = fs::read_to_string(spool.folder().join("id")).unwrap();
        let id = id.split_whitespace().last().unwrap();
        spool.put_away();
        let mut daemon = spool.world.run().start();
        let said = wait_reason(&mut daemon, &["its spool is not here"]);
        let command = format!("resolve --shard in/{id} --accept-loss");
        says(&said, &["lane all", "Bring its spool folder back", &spool.world.command(&command)]);
        daemon.kill9();
        // Brought back: nothing is lost.
        spool.bring_back();
        let mut daemon = spool.world.run().spawn();
        eventually("the rows", || spool.world.compare(SINKS, &rows(A)));
        daemon.term();
        daemon.expect_success();
        spool.takes(B);
        println!("spool lost undrained, {options}: stopped, brought back: 0 lost, 0 doubled");
        // Given up: what was in it is lost, no more.
        spool.spools(C);
        spool.put_away();
        let mut daemon = spool.world.run().start();
        wait_reason(&mut daemon, &["its spool is not here"]);
        spool.world.checkpoint(&command);
        daemon.wait_ready();
        spool.send(120..160);
        eventually("the rows", || spool.world.compare(SINKS, &plus(rows(0..80), rows(120..160))));
        daemon.term();
        daemon.expect_success();
        println!("spool lost undrained, {options}, --accept-loss: what was in it is lost, as said; 0 doubled");
    }
}

#[test]
fn an_older_copy_of_the_spool_gives_no_position_twice() {
    for options in ["ack: none", "ack: line"] {
        let spool = Spool::new(options);
        spool.takes(A);
        spool.world.folder.copy(&spool.folder(), "away");
        spool.takes(B);
        spool.bring_back();
        let stops = options == "ack: line";
        let mut daemon = if stops { spool.world.run().start() } else { spool.world.run().spawn() };
        if stops {
            let said = wait_reason(&mut daemon, &["it is an older copy"]);
            let command =
                said.split('`').find_map(|part| part.strip_prefix("tidemill checkpoint ")).unwrap().to_owned();
            says(&command, &["resolve --shard in/", "--accept-loss"]);
            spool.world.checkpoint(&command);
            daemon.wait_ready();
        } else {
            says(&daemon.stderr(), &["it is an older copy", "It is put aside"]);
        }
        spool.send(C);
        eventually("the rows", || spool.world.compare(SINKS, &rows(0..120)));
        daemon.term();
        daemon.expect_success();
        spool.world.count(SINKS, 120).unwrap();
        println!("an older copy of the spool, {options}: put aside: 0 lost, 0 doubled");
    }
}

#[test]
fn a_damaged_spool_stops_the_job_and_is_given_up_by_the_command() {
    let spool = Spool::new("ack: line");
    spool.takes(A);
    spool.spools(B);
    spool.spools(C);
    let segment = fs::read_dir(spool.folder()).unwrap().flatten().map(|entry| entry.path());
    let segment = segment.filter(|path| path.extension().is_some_and(|end| end == "seg")).min().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    // In the midst of B.
    let at: usize = 64 + (0..60).map(|n| record(n).len() + 20).sum::<usize>();
    bytes[at..at + 40].fill(0xA5);
    fs::write(&segment, bytes).unwrap();
    let mut daemon = spool.world.run().start();
    let said = wait_reason(&mut daemon, &["is damaged"]);
    says(&said, &["is damaged at byte", "behind which more was durable", ".seg"]);
    let command = said.split('`').find_map(|part| part.strip_prefix("tidemill checkpoint ")).unwrap().to_owned();
    let id = fs::read_to_string(spool.folder().join("id")).unwrap();
    says(&command, &[&format!("resolve --shard in/{} --accept-loss", id.split_whitespace().last().unwrap())]);
    spool.world.checkpoint(&command);
    daemon.wait_ready();
    spool.send(120..160);
    eventually("the rows", || spool.world.compare(SINKS, &plus(rows(A), rows(120..160))));
    daemon.term();
    daemon.expect_success();
    println!("a damaged spool, --accept-loss: what was in it is lost, as said; 0 doubled");
}

/// A copy of the data dir beside its original: both take records under the same positions. What the original acknowledged is
/// not passed over because the copy's mark fits its positions: the job stops, and the command that it names reads them.
#[test]
fn a_copy_of_the_data_dir_does_not_make_records_of_the_original_vanish() {
    let spool = Spool::new("ack: line");
    let copy = |from: &str, to: &str| {
        let (from, to) = (spool.world.folder.join(from), spool.world.folder.join(to));
        let done = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
        assert!(done.success());
    };
    spool.takes(A);
    copy("data", "copy");
    let parted = position(&spool.world);
    // The original takes records that no sink gets yet; the copy takes as many, of the same size, and brings them there.
    let (original, other) = (40..80, 50..90);
    spool.spools(original.clone());
    let had = spool.world.sink("files").unwrap();
    let mut daemon = spool.world.run().data_dir("copy").take_over().spawn();
    spool.send(other.clone());
    eventually("the copy's rows", || spool.world.compare(SINKS, &plus(had.clone(), rows(other.clone()))));
    daemon.term();
    daemon.expect_success();
    let id = fs::read_to_string(spool.folder().join("id")).unwrap();
    let id = id.split_whitespace().last().unwrap();
    let mut daemon = spool.world.run().take_over().start();
    let said = wait_reason(&mut daemon, &["not those of the spool"]);
    says(&said, &[&spool.world.command(&format!("rewind --to in/{id}=POSITION")), "--accept-loss"]);
    spool.world.compare(SINKS, &plus(had.clone(), rows(other.clone()))).unwrap();
    daemon.term();
    daemon.wait();
    spool.world.checkpoint(&format!("rewind --to in/{id}={parted}"));
    let mut daemon = spool.world.run().take_over().spawn();
    let all = plus(plus(had, rows(other)), rows(original));
    eventually("the original's rows", || spool.world.compare(SINKS, &all));
    daemon.term();
    daemon.expect_success();
    // From now on the copy is the one that does not fit.
    let mut daemon = spool.world.run().data_dir("copy").take_over().start();
    wait_reason(&mut daemon, &["shard in/"]);
    println!("a copied data dir: stopped, rewound, 0 lost, 0 doubled");
}

/// The only shard's position, as `checkpoint show` has it.
fn position(world: &World) -> String {
    let data = world.folder.join("data").display().to_string();
    let shown = tidemill(&world.folder, &["checkpoint", "show", "--json", "--data-dir", &data]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let positions = shown["ledger"]["closed"]["positions"].as_object().unwrap();
    positions.values().next().unwrap().as_str().unwrap().to_owned()
}

/// The data dir goes away under a daemon that runs: what is acknowledged is in a file that will be found again.
#[test]
fn nothing_is_acknowledged_into_a_data_dir_that_is_gone() {
    let spool = Spool::new("ack: line");
    spool.takes(A);
    let mut daemon = spool.world.run().spawn();
    let lines = |numbers: Range<usize>| numbers.map(|n| record(n).into_bytes()).collect::<Vec<_>>();
    let acknowledged = feed::send_acked(&feed::connect(spool.address), &lines(B));
    assert_eq!(acknowledged, B.len());
    eventually("the rows", || spool.world.compare(SINKS, &rows(0..80)));
    let (data, away) = (spool.world.folder.join("data"), spool.world.folder.join("away"));
    fs::rename(&data, &away).unwrap();
    let stream = feed::connect(spool.address);
    stream.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
    assert_eq!(feed::send_acked(&stream, &lines(C)), 0, "acknowledged into a folder that is away");
    says(&daemon.stderr(), &["removed, moved or replaced"]);
    // In its place again, everything goes on.
    fs::rename(&away, &data).unwrap();
    let later = 120..140;
    assert_eq!(feed::send_acked(&feed::connect(spool.address), &lines(later.clone())), later.len());
    eventually("what was acknowledged", || {
        // What the sender was not told of may be there or not.
        let in_doubt = |n: &str| C.contains(&n.parse::<usize>().unwrap());
        SINKS.iter().try_for_each(|sink| {
            let held = spool.world.sink(sink)?;
            let numbers = held.column("n");
            let sure = held.0.into_iter().zip(numbers).filter(|(_, n)| !in_doubt(n)).map(|(row, _)| row);
            Rows(sure.collect()).compare(&plus(rows(0..80), rows(later.clone())))
        })
    });
    daemon.term();
    daemon.expect_success();
}
