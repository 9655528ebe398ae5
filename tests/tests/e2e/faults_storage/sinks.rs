//! Fault 12: sinks restored from a backup, emptied, added, removed, added again; the anchor removed. The daemon goes on
//! rightly, or stops and names a command; the command is run, and what it costs is what it said.

use std::{fs, path::Path};

use tidemill_tests::{feed, free_address};

use super::*;

const BOTH: &[&str] = &["files", "db"];
/// Records of the first, second and third part of a job's life.
const A: Range<usize> = 0..40;
const B: Range<usize> = 40..80;
const C: Range<usize> = 80..120;

/// Where the command line does its work.
#[derive(Clone, Copy, Debug)]
pub enum Where {
    /// In itself: no daemon has the data dir.
    Here,
    /// In a running daemon, over the control socket.
    Daemon,
}
pub use Where::{Daemon as InDaemon, Here};

/// A directory job that has taken A, then B; what `names` were after A is under `backup/`.
pub fn lived(names: &[&str]) -> World {
    let world = World::new(&directory(""), &format!("{FILES}{DB}"));
    world.publish(A);
    world.once();
    names.iter().for_each(|name| _ = world.folder.copy(&world.folder.join(name), Path::new("backup").join(name)));
    world.publish(B);
    world.once();
    world
}

fn restore(world: &World, name: &str) {
    fs::remove_dir_all(world.folder.join(name)).unwrap();
    fs::rename(world.folder.join("backup").join(name), world.folder.join(name)).unwrap();
}

fn remove(world: &World, name: &str) {
    fs::remove_dir_all(world.folder.join(name)).unwrap();
}

/// The stop says these words and names this command, which leads out of it. What the command answered.
#[track_caller]
pub fn out(world: &World, at: Where, words: &[&str], command: &str) -> String {
    let named = world.command(command);
    match at {
        Where::Here => {
            let said = world.stops(words);
            says(&said, &["lane=all", &named]);
            let answer = world.checkpoint(command);
            world.once();
            answer
        }
        Where::Daemon => {
            let mut daemon = world.run().start();
            let said = wait_reason(&mut daemon, words);
            says(&said, words);
            says(&said, &["lane all", &named]);
            let answer = world.checkpoint(command);
            daemon.wait_ready();
            daemon.term();
            daemon.expect_success();
            answer
        }
    }
}

/// Goes on with C.
fn go_on(world: &World) {
    world.publish(C);
    world.once();
}

#[test]
fn a_follower_is_restored_from_a_backup() {
    for at in [Here, InDaemon] {
        let world = lived(&["files"]);
        restore(&world, "files");
        out(
            &world,
            at,
            &["files", "restored from a backup", "it stands at in 1:0", "the head in db at in 2:0"],
            "resolve --sink files --catch-up",
        );
        go_on(&world);
        world.compare(BOTH, &rows(0..120)).unwrap();
        world.assert_rows("dead", &letters(0..120), "a follower restored");
        println!("files restored from a backup, --catch-up {at:?}: 0 lost, 0 doubled");

        let world = lived(&["files"]);
        restore(&world, "files");
        out(&world, at, &["restored from a backup"], "resolve --sink files --accept-loss");
        go_on(&world);
        world.assert_rows("db", &rows(0..120), "accept-loss");
        world.assert_rows("files", &plus(rows(A), rows(C)), "accept-loss: what it lacked is not written to it");
        println!("files restored from a backup, --accept-loss {at:?}: lacks what lay between, as said; 0 doubled");
    }
}

#[test]
fn a_follower_is_emptied() {
    for at in [Here, InDaemon] {
        let world = lived(&[]);
        remove(&world, "files");
        out(
            &world,
            at,
            &["files holds no mark", "was emptied", "the head stands at in 2:0"],
            "resolve --sink files --catch-up",
        );
        go_on(&world);
        world.compare(BOTH, &rows(0..120)).unwrap();
        println!("files emptied, --catch-up {at:?}: 0 lost, 0 doubled");

        let world = lived(&[]);
        remove(&world, "files");
        out(&world, at, &["was emptied"], "resolve --sink files --join");
        go_on(&world);
        world.assert_rows("files", &rows(C), "it gets new rows only");
        world.assert_rows("db", &rows(0..120), "join");
        println!("files emptied, --join {at:?}: has new rows only, as said; 0 doubled");
    }
}

#[test]
fn two_followers_are_emptied_and_resolved_one_after_the_other() {
    let world = lived(&[]);
    remove(&world, "files");
    remove(&world, "dead");
    out_first(&world, "resolve --sink dead-letters --catch-up");
    out(&world, Here, &["files holds no mark"], "resolve --sink files --catch-up");
    go_on(&world);
    world.count(BOTH, 120).unwrap();
    println!("files and dead letters emptied, --catch-up each: 0 lost, 0 doubled");
}

/// A command that leads out of one stop into the next.
#[track_caller]
fn out_first(world: &World, command: &str) {
    let said = world.stops(&["lane all", command]);
    let (ok, answer) = world.try_checkpoint(command);
    assert!(ok || answer.contains("files"), "{command}: {answer}\nafter {said}");
}

#[test]
fn the_table_of_marks_is_gone() {
    let sinks = format!("{DB}  more: {{ type: sqlite, path: more/rows.db, table: rows }}\n");
    let world = World::new(&directory(""), &sinks);
    world.publish(0..80);
    world.once();
    let database = rusqlite::Connection::open(world.folder.join("more/rows.db")).unwrap();
    database.execute_batch("DROP TABLE tidemill_marks").unwrap();
    drop(database);
    out(&world, Here, &["more holds no mark", "was emptied"], "resolve --sink more --join");
    go_on(&world);
    let more = Rows::sqlite(&world.folder.join("more/rows.db"), "SELECT n, part FROM rows ORDER BY rowid");
    more.assert_same(&rows(0..120), "more");
    world.assert_count(&["db"], 120, "the marks of a follower dropped, --join");
}

#[test]
fn the_anchor_is_emptied() {
    for at in [Here, InDaemon] {
        let world = lived(&[]);
        remove(&world, "db");
        let answer = out(&world, at, &["the anchor db holds no mark", "stands at in 2:0"], "resolve --anchor files");
        says(&answer, &["lane all stands at", "files:in"]);
        go_on(&world);
        // The list of accepted files was in it: they are taken again.
        world.assert_rows("db", &rows(0..120), "the emptied anchor");
        world.assert_rows("files", &plus(rows(0..80), rows(0..120)), "files has them twice, as said");
        println!("the anchor emptied, --anchor files {at:?}: 0 lost; files were taken again, as said");

        let world = lived(&[]);
        remove(&world, "db");
        out(&world, at, &["the anchor db holds no mark"], "reset --sinks");
        go_on(&world);
        world.assert_rows("db", &rows(0..120), "the emptied anchor");
        world.assert_rows("files", &plus(rows(0..80), rows(0..120)), "files has them twice, as said");
        println!("the anchor emptied, reset --sinks {at:?}: 0 lost; append sinks hold rows twice, as said");
    }
}

#[test]
fn the_anchor_is_restored_from_a_backup() {
    // With all the others: rows and marks went back together.
    let world = lived(&["db", "files", "dead"]);
    ["db", "files", "dead"].iter().for_each(|name| restore(&world, name));
    let mut daemon = world.run().once();
    daemon.expect_success();
    says(&daemon.stderr(), &["rows and marks went back together"]);
    go_on(&world);
    world.assert_count(BOTH, 120, "all sinks restored from one backup");

    for at in [Here, InDaemon] {
        // Alone, and the others join: they get what lies between twice.
        let world = lived(&["db"]);
        restore(&world, "db");
        out_first(&world, "resolve --sink dead-letters --join");
        out(
            &world,
            at,
            &["files", "is beyond the head", "it stands at in 2:0", "the head in db at"],
            "resolve --sink files --join",
        );
        go_on(&world);
        world.assert_rows("db", &rows(0..120), "the restored anchor gets what it lacked");
        world.assert_rows("files", &plus(rows(0..120), rows(B)), "files gets some twice, as said");
        println!(
            "the anchor restored from a backup, --join {at:?}: 0 lost; what lay between is twice in files, as said"
        );

        // Alone, and another becomes the anchor.
        let world = lived(&["db"]);
        restore(&world, "db");
        let mut daemon = world.run().once();
        daemon.expect_code(1);
        let answer = world.checkpoint("resolve --anchor files");
        says(&answer, &["lane all stands at"]);
        go_on(&world);
        world.assert_rows("db", &rows(0..120), "the old anchor");
        world.assert_rows("files", &plus(rows(0..120), rows(B)), "files that only the new anchor knew are taken again");
        println!(
            "the anchor restored from a backup, --anchor files: 0 lost; files it did not list are taken again, as said"
        );
    }
}

const MORE: &str = "  more: { type: files, path: more, codec: json }\n";

#[test]
fn a_sink_is_added_removed_and_added_again() {
    let mut world = lived(&[]);
    let before = world.yaml.clone();
    world.yaml = before.replace(DB, &format!("{DB}{MORE}"));
    go_on(&world);
    world.assert_rows("more", &rows(C), "a new sink joins");
    world.yaml = before.clone();
    world.publish(120..160);
    world.once();
    world.yaml = before.replace(DB, &format!("{DB}{MORE}"));
    world.publish(160..200);
    world.once();
    world.assert_rows("more", &rows(80..200), "added again, it catches up by itself");
    world.assert_count(BOTH, 200, "a sink added (new rows only), removed, added again (caught up)");

    // A new one may be told to catch up after its first batches: it gets what came before, and nothing twice.
    for kill in [None, Some("mark:1:kill"), Some("mark:2:kill"), Some("catch-up:2:kill")] {
        let mut world = lived(&[]);
        world.yaml = world.yaml.replace(DB, &format!("{DB}{MORE}"));
        world.publish(C);
        let mut daemon = world.run().once();
        daemon.expect_success();
        says(&daemon.stderr(), &["this sink is new: it begins after batch 8", "resolve --sink more --catch-up --yes"]);
        world.assert_rows("more", &rows(C), "a new sink joins");
        says(&world.unconfirmed("resolve --sink more --catch-up --dry-run").1, &["more began at in at 2:0"]);
        if let Some(kill) = kill {
            let killed = std::process::Command::new(tidemill_tests::binary::tidemill())
                .args(["checkpoint", "resolve", "--sink", "more", "--catch-up", "--yes", "--data-dir", "data"])
                .current_dir(world.folder.path())
                .env("TIDEMILL_FAILPOINT", kill)
                .output()
                .unwrap();
            assert_eq!(killed.status.code(), None, "{kill}: {}", String::from_utf8_lossy(&killed.stderr));
        }
        // In between it was set back and the head did not know: a stop, and the same command.
        let done = world.try_checkpoint("resolve --sink more --catch-up");
        assert!(done.0 || kill == Some("catch-up:2:kill"), "{kill:?}: {}", done.1);
        world.publish(120..160);
        world.once();
        world.assert_rows("more", &rows(0..160), &format!("more, filled; {kill:?}"));
        world.assert_count(BOTH, 160, "a sink added, and filled later");
        let (ok, said) = world.try_checkpoint("resolve --sink more --catch-up");
        assert!(!ok && said.contains("there is nothing that it lacks"), "{kill:?}: {said}");
    }

    // A new one may be told to catch up before it joins.
    let mut world = lived(&[]);
    world.yaml = world.yaml.replace(DB, &format!("{DB}{MORE}"));
    fs::write(world.folder.join("job.yaml"), &world.yaml).unwrap();
    says(&world.checkpoint("resolve --sink more --catch-up"), &["more is at the head"]);
    go_on(&world);
    world.assert_rows("more", &rows(0..120), "told to catch up");
    world.assert_count(BOTH, 120, "a sink added and told to catch up");
}

#[test]
fn the_anchor_is_removed_from_a_directory_job() {
    // Put back, it goes on.
    let mut world = lived(&[]);
    let whole = world.yaml.clone();
    world.yaml = whole.replace(DB, "");
    world.stops(&["the anchor db is not in the job any more", "put the sink db back into the job"]);
    world.yaml = whole.clone();
    go_on(&world);
    world.assert_count(BOTH, 120, "the anchor removed and put back");
    for at in [Here, InDaemon] {
        let mut world = lived(&[]);
        world.yaml = whole.replace(DB, "");
        out(&world, at, &["the anchor db is not in the job any more", "in 2:0"], "resolve --anchor files");
        go_on(&world);
        world.assert_rows("files", &plus(rows(0..80), rows(0..120)), "files are taken again, as said");
        println!("the anchor removed, --anchor files {at:?}: 0 lost; files were taken again, as said");
    }
}

/// A socket's job that took A and B, and what sends to it.
struct Socket {
    world: World,
    address: std::net::SocketAddr,
}

impl Socket {
    fn new() -> Self {
        let address = free_address();
        let source = format!(
            "  in: {{ type: socket, listen: \"{address}\", ack: line, max_spool_bytes: 64KiB, codec: json, schema: {{ n: int64, part: string }} }}\n"
        );
        let socket = Self { world: World::new(&source, &format!("{FILES}{DB}")), address };
        socket.takes(A, BOTH);
        socket
    }

    /// A daemon runs until these sinks have these records.
    fn takes(&self, numbers: Range<usize>, sinks: &[&str]) {
        let had: Vec<_> = sinks.iter().map(|name| self.world.sink(name).unwrap_or_default()).collect();
        let mut daemon = self.world.run().spawn();
        let records: Vec<_> = numbers.clone().map(|n| record(n).into_bytes()).collect();
        assert_eq!(feed::send_acked(&feed::connect(self.address), &records), records.len());
        for (name, had) in sinks.iter().zip(had) {
            let expected = plus(had, rows(numbers.clone()));
            eventually("the rows", || self.world.compare(&[name], &expected));
        }
        daemon.term();
        daemon.expect_success();
    }
}

#[test]
fn the_anchor_is_removed_from_a_sockets_job_and_added_again() {
    let mut socket = Socket::new();
    let whole = socket.world.yaml.clone();
    socket.world.yaml = whole.replace(DB, "");
    // More than stays in the spool once every sink has it.
    socket.takes(40..500, &["files"]);
    socket.takes(500..540, &["files"]);
    socket.world.assert_rows("files", &rows(0..540), "the anchor's place moved by itself");
    println!("the anchor of a socket's job removed: its place moved by itself: 0 lost, 0 doubled");
    // Back again it lacks what is in no spool any more.
    socket.world.yaml = whole;
    let mut daemon = socket.world.run().start();
    let said = wait_reason(&mut daemon, &["resolve --sink db --accept-loss"]);
    says(&said, &["lane all", "db", "stands at"]);
    socket.world.checkpoint("resolve --sink db --accept-loss");
    daemon.wait_ready();
    daemon.term();
    daemon.expect_success();
    socket.takes(540..580, BOTH);
    socket.world.assert_rows("files", &rows(0..580), "files");
    socket.world.assert_rows("db", &plus(rows(A), rows(540..580)), "db lacks what came without it, as said");
    println!("added again, --accept-loss: it lacks what came without it, as said; 0 doubled");
}

#[test]
fn the_anchor_of_a_sockets_job_is_restored_or_emptied() {
    for at in [Here, InDaemon] {
        let socket = Socket::new();
        let world = &socket.world;
        world.folder.copy(&world.folder.join("db"), "backup/db");
        socket.takes(B, BOTH);
        restore(world, "db");
        let words =
            ["the anchor db stands at", "but the ledger has closed", "a source of the job cannot be read again"];
        sockets_way_out(&socket, at, &words, "resolve --sink db --accept-loss");
        socket.takes(C, BOTH);
        world.assert_rows("files", &rows(0..120), "files");
        world.assert_rows("db", &plus(rows(A), rows(C)), "what lies between is not written again, as said");
        println!(
            "the anchor of a socket's job restored, --accept-loss {at:?}: db lacks what lay between, as said; 0 doubled"
        );

        let socket = Socket::new();
        let world = &socket.world;
        socket.takes(B, BOTH);
        remove(world, "db");
        sockets_way_out(&socket, at, &["the anchor db holds no mark"], "resolve --anchor files");
        socket.takes(C, BOTH);
        world.assert_rows("files", &rows(0..120), "files");
        world.assert_rows("db", &rows(C), "the emptied sink gets new rows only, as said");
        println!(
            "the anchor of a socket's job emptied, --anchor files {at:?}: files whole, db has new rows only, as said"
        );
    }
}

#[track_caller]
fn sockets_way_out(socket: &Socket, at: Where, words: &[&str], command: &str) {
    let world = &socket.world;
    let mut daemon = world.run().start();
    let said = wait_reason(&mut daemon, words);
    says(&said, words);
    says(&said, &[command]);
    if matches!(at, Here) {
        daemon.kill9();
        world.checkpoint(command);
        return;
    }
    world.checkpoint(command);
    daemon.wait_ready();
    daemon.term();
    daemon.expect_success();
}
