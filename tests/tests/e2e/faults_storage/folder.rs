//! Fault 19: files of a watched folder that grow, are replaced, moved or removed after they were planned; the folder itself
//! gone, or another disk in its place.

use std::fs;

use tidemill_tests::Disk;

use super::*;

const SINKS: &[&str] = &["files", "db"];

/// A job that was killed in the midst of its only file of 40 records: after the anchor had its second batch (a replay
/// follows), or after the second batch was closed (it reads on).
fn killed(options: &str, open_plan: bool) -> World {
    let world = World::new(&directory(options), &format!("{FILES}{DB}"));
    world.publish(0..40);
    let point = if open_plan { "after-anchor:2:kill" } else { "after-release:2:kill" };
    world.run().failpoint(point).arg("--once").start().expect_killed();
    world
}

fn file(world: &World) -> std::path::PathBuf {
    world.folder.join("in/00000.json")
}

#[test]
fn a_file_grows_after_the_plan() {
    for open_plan in [true, false] {
        let world = killed("", open_plan);
        fs::write(file(&world), lines(0..50)).unwrap();
        world.stops(&["00000.json grew from", "Cut it back and put what was added into a new file"]);
        world.count(SINKS, 40).unwrap();
        fs::write(file(&world), lines(0..40)).unwrap();
        world.publish(40..50);
        world.once();
        world.assert_count(SINKS, 50, "a file grew, on_changed: fail: stopped, cut back as told");

        let world = killed(", on_changed: dead_letter", open_plan);
        fs::write(file(&world), lines(0..50)).unwrap();
        world.once();
        world.compare(SINKS, &rows(0..40)).unwrap();
        let letters = Rows::files(&world.folder.join("dead"));
        let grown = letters.column("reason").into_iter().filter(|reason| reason == "changed_file").count();
        assert_eq!((letters.len(), grown), (40 / BROKEN + 1, 1));
        // Once is enough, also over a restart.
        world.once();
        assert_eq!(Rows::files(&world.folder.join("dead")).len(), 40 / BROKEN + 1);
        println!("a file grew, on_changed: dead_letter: 0 lost, 0 doubled, one dead letter");
    }
}

#[test]
fn a_file_is_replaced_after_the_plan() {
    for open_plan in [true, false] {
        let world = killed("", open_plan);
        world.folder.publish("in/00000.json", lines(100..140));
        world.stops(&["00000.json has other content than when it was taken"]);
        // Put back as it was, and the other content under a name of its own.
        fs::rename(file(&world), world.folder.join("in/other.json")).unwrap();
        world.folder.publish("in/00000.json", lines(0..40));
        world.once();
        world.compare(SINKS, &plus(rows(0..40), rows(100..140))).unwrap();
        println!("a file replaced, put back as told: 0 lost, 0 doubled");
    }
    let world = killed(", on_changed: dead_letter", false);
    world.folder.publish("in/00000.json", lines(100..140));
    world.once();
    world.compare(SINKS, &plus(rows(0..20), rows(100..140))).unwrap();
    let letters = Rows::files(&world.folder.join("dead"));
    assert_eq!(letters.column("reason").iter().filter(|reason| *reason == "changed_file").count(), 1);
    println!("a file replaced, on_changed: dead_letter: one dead letter for its rest, the new one read; 0 doubled");
}

#[test]
fn a_file_is_moved_after_the_plan() {
    for open_plan in [true, false] {
        let world = killed("", open_plan);
        fs::rename(file(&world), world.folder.join("in/elsewhere.json")).unwrap();
        world.once();
        world.assert_count(SINKS, 40, "a file moved in mid-read");
        // A copy in its old place, with another inode and time, is a copy of a file that is there: read.
        world.folder.publish("in/next.json", lines(40..60));
        world.once();
        world.assert_count(SINKS, 60, "a file moved, another came");
    }
}

#[test]
fn a_file_is_removed_after_the_plan() {
    for open_plan in [true, false] {
        let world = killed("", open_plan);
        fs::rename(file(&world), world.folder.join("away.json")).unwrap();
        world.stops(&[
            "00000.json is gone",
            if open_plan { "Put back what is gone" } else { "Put the file back as it was" },
        ]);
        fs::rename(world.folder.join("away.json"), file(&world)).unwrap();
        world.once();
        world.assert_count(SINKS, 40, "a file removed in mid-read and put back");
    }
    // A sink that lacks a batch whose file is gone does without it.
    let world = killed("", true);
    fs::remove_file(file(&world)).unwrap();
    let said = world.stops(&["00000.json is gone", "lane=all", "resolve --sink files --accept-loss"]);
    says(&said, &["dead-letters"]);
    world.checkpoint("resolve --sink dead-letters --accept-loss");
    let (_, said) = world.try_checkpoint("resolve --sink files --accept-loss");
    says(&said, &["lane all stands at in at 0:"]);
    world.stops(&["resolve --shard in --accept-loss"]);
    world.checkpoint("resolve --shard in --accept-loss");
    world.publish(40..80);
    world.once();
    world.assert_rows("db", &plus(rows(0..20), rows(40..80)), "the anchor had the batch");
    world.assert_rows("files", &plus(rows(0..10), rows(40..80)), "files does without it, as said");
    println!("a file removed under an open plan, given up: what could not be read is lost, as said; 0 doubled");
}

/// So many that it is no cleaned folder.
const MANY: usize = 12;

fn many(world: &World) {
    (0..MANY).for_each(|n| world.publish(n * 10..n * 10 + 10));
}

#[test]
fn the_folder_is_emptied_in_mid_read() {
    let world = World::new(&directory(""), &format!("{FILES}{DB}"));
    many(&world);
    // The last batch is open in all but the anchor.
    world.run().failpoint(&format!("after-anchor:{MANY}:kill")).arg("--once").start().expect_killed();
    fs::rename(world.folder.join("in"), world.folder.join("away")).unwrap();
    fs::create_dir(world.folder.join("in")).unwrap();
    let mut daemon = world.run().start();
    wait_reason(&mut daemon, &["is it mounted?"]);
    fs::remove_dir(world.folder.join("in")).unwrap();
    wait_reason(&mut daemon, &["No such file"]);
    fs::rename(world.folder.join("away"), world.folder.join("in")).unwrap();
    eventually("all rows", || world.count(SINKS, MANY * 10));
    daemon.wait_ready();
    daemon.term();
    daemon.expect_success();
    world.assert_count(SINKS, MANY * 10, "the folder emptied, removed, and back");
}

#[test]
fn an_empty_disk_lies_over_the_folder() {
    let world = World::new(&directory(""), &format!("{FILES}{DB}"));
    many(&world);
    world.once();
    let Some(disk) = Disk::mount(&world.folder.join("in"), 1024) else { return };
    let mut daemon = world.run().spawn();
    eventually(
        "the warning",
        || if daemon.stderr().contains("is it mounted?") { Ok(()) } else { Err(daemon.stderr()) },
    );
    world.publish(500..510);
    let said = wait_reason(&mut daemon, &["on another device"]);
    says(&said, &["Waiting for them"]);
    drop(disk);
    world.publish(MANY * 10..MANY * 10 + 10);
    eventually("all rows", || world.count(SINKS, MANY * 10 + 10));
    daemon.wait_ready();
    daemon.term();
    daemon.expect_success();
    world.assert_count(SINKS, MANY * 10 + 10, "another disk over the folder, gone again");
}

#[test]
fn the_folder_is_not_there_at_first() {
    let world = World::new(&directory(""), &format!("{FILES}{DB}"));
    fs::remove_dir(world.folder.join("in")).unwrap();
    let mut daemon = world.run().start();
    let said = wait_reason(&mut daemon, &["No such file"]);
    says(&said, &["look into the folder", "waiting for it"]);
    let lines = daemon.stderr().lines().count();
    assert!(lines < 50, "{lines} lines for one folder:\n{}", daemon.stderr());
    world.publish(0..40);
    eventually("all rows", || world.count(SINKS, 40));
    daemon.wait_ready();
    daemon.term();
    daemon.expect_success();
    world.assert_count(SINKS, 40, "the folder came later");
}

/// Stopped by SIGSTOP between the plan and the read; the file is another one meanwhile.
#[test]
fn a_file_is_replaced_while_the_daemon_is_stopped() {
    for point in ["plan:1:stop", "read:1:stop", "before-anchor:1:stop"] {
        let mut world = World::new(&directory(""), &format!("{FILES}{DB}"));
        // The whole file is one batch: nothing of it is read after the stop.
        world.yaml = world.yaml.replace("max_records: 10", "max_records: 1000");
        world.publish(0..40);
        let daemon = world.run().failpoint(point).start();
        let pid = daemon.pid();
        eventually(&format!("a stop at {point}"), || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|error| error.to_string())?;
            if status.contains("State:\tT") { Ok(()) } else { Err("it runs".into()) }
        });
        world.folder.publish("in/00000.json", lines(40..80));
        daemon.cont();
        eventually("all rows", || world.count(SINKS, 80));
        daemon.term();
        println!("a file replaced while the daemon was stopped at {point}: 0 lost, 0 doubled");
    }
}
