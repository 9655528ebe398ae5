//! Every `tidemill checkpoint` command, with and without a daemon.

use std::fs;

use super::{
    sinks::{Here, InDaemon, Where, lived},
    *,
};

const BOTH: &[&str] = &["files", "db"];

/// Runs `work` beside a daemon, or alone, then once more to the end.
fn with(world: &World, at: Where, work: impl FnOnce()) {
    match at {
        Here => work(),
        InDaemon => {
            let mut daemon = world.run().spawn();
            work();
            daemon.wait_ready();
            daemon.term();
            daemon.expect_success();
        }
    }
    world.once();
}

#[test]
fn show_and_export_tell_plans_positions_and_generations() {
    for at in [Here, InDaemon] {
        let world = lived(&[]);
        with(&world, at, || {
            let shown = world.checkpoint("show");
            says(
                &shown,
                &[
                    "job faults, lane all",
                    "db: generation",
                    "files: generation",
                    "dead-letters",
                    "in at 2:0",
                    "anchor db",
                    "ledger: closed batch 8",
                ],
            );
            for command in ["export", "show --json"] {
                let told: serde_json::Value = serde_json::from_str(&world.checkpoint(command)).unwrap();
                assert_eq!(told["sinks"]["db"]["mark"]["positions"]["in"], "2:0", "{told}");
                assert_eq!(told["sinks"]["db"]["mark"]["digest"], told["ledger"]["closed"]["digest"], "{told}");
                assert_eq!(told["sinks"]["files"]["claim"]["generation"], told["sinks"]["db"]["claim"]["generation"]);
            }
        });
        world.count(BOTH, 80).unwrap();
    }
}

#[test]
fn rewind_reads_again_from_there() {
    for at in [Here, InDaemon] {
        let world = lived(&[]);
        with(&world, at, || {
            let (ok, said) = world.try_checkpoint("rewind --to in=17");
            assert!(!ok && said.contains("17 is no position of in, which stands at 2:0"), "{said}");
            let (ok, said) = world.try_checkpoint("rewind --to out=1:0");
            assert!(!ok && said.contains("no shard out; the lane has in at 2:0"), "{said}");
            says(&world.checkpoint("rewind --to in=1:0"), &["lane all stands at in at 1:0"]);
        });
        world.compare(BOTH, &plus(rows(0..80), rows(40..80))).unwrap();
        println!("rewind {at:?}: what lies behind the position is there twice, as said; 0 lost");
    }
}

#[test]
fn forget_believes_the_sinks() {
    for at in [Here, InDaemon] {
        let world = lived(&[]);
        with(&world, at, || {
            says(&world.checkpoint("forget"), &["the ledger forgot job faults", "marks in sinks stay"]);
        });
        world.publish(80..120);
        world.once();
        world.assert_count(BOTH, 120, &format!("forget {at:?}"));
    }
}

#[test]
fn reset_starts_over() {
    for at in [Here, InDaemon] {
        let world = lived(&[]);
        let (ok, said) = world.try_checkpoint("reset");
        assert!(!ok && said.contains("--sinks"), "{said}");
        with(&world, at, || says(&world.checkpoint("reset --sinks"), &["starts over", "there twice"]));
        world.compare(BOTH, &plus(rows(0..80), rows(0..80))).unwrap();
        println!("reset --sinks {at:?}: every sink that appends holds its rows twice, as said; 0 lost");
    }
}

/// A file that is gone in mid-read: the shard goes on behind it.
#[test]
fn resolve_shard_leaves_a_file_out() {
    for at in [Here, InDaemon] {
        let world = World::new(&directory(""), &format!("{FILES}{DB}"));
        world.publish(0..40);
        world.publish(40..80);
        world.run().failpoint("after-release:2:kill").arg("--once").start().expect_killed();
        fs::remove_file(world.folder.join("in/00000.json")).unwrap();
        let (ok, said) = world.try_checkpoint("resolve --shard in");
        assert!(!ok && said.contains("say --accept-loss"), "{said}");
        let words = ["shard in", "00000.json is gone", "it was read up to offset"];
        sinks::out(&world, at, &words, "resolve --shard in --accept-loss");
        world.once();
        let done = world.sink("db").unwrap().len();
        let taken = rows(0..20);
        let more = rows(20..30);
        let expected = if done == rows(0..20).len() + rows(40..80).len() { taken } else { plus(taken, more) };
        world.compare(BOTH, &plus(expected, rows(40..80))).unwrap();
        println!("a file gone in mid-read, resolve --shard {at:?}: its rest is lost, as said; 0 doubled");
    }
}

/// Two sinks that do not fit are each resolved alone; what is not spoken of stays as it is.
#[test]
fn a_wrong_name_is_answered_with_the_right_ones() {
    let world = lived(&[]);
    let (ok, said) = world.try_checkpoint("resolve --sink postgres --join");
    assert!(!ok && said.contains("job faults has no marked sink postgres; it has files, db, dead-letters"), "{said}");
    let (ok, said) = world.try_checkpoint("resolve --sink db --catch-up");
    assert!(!ok && said.contains("db is the anchor"), "{said}");
    let (ok, said) = world.try_checkpoint("show --job other");
    assert!(!ok && said.contains("knows no job other; it knows faults"), "{said}");
    world.publish(80..120);
    world.once();
    world.assert_count(BOTH, 120, "wrong commands");
}

/// `show` looks at a job whose spool is in use.
#[test]
fn show_beside_a_daemon_with_a_spool() {
    let address = tidemill_tests::free_address();
    let source =
        format!("  in: {{ type: socket, listen: \"{address}\", codec: json, schema: {{ n: int64, part: string }} }}\n");
    let world = World::new(&source, DB);
    let mut daemon = world.run().spawn();
    says(&world.checkpoint("show"), &["db: generation 1", "in/"]);
    assert_eq!(daemon.get("/ready").unwrap().status, 200, "looking disturbs nobody");
    assert!(daemon.is_running());
}

/// Another daemon at work is not disturbed without being told.
#[test]
fn another_owner_is_respected() {
    let world = lived(&[]);
    let mut owner = world.run().data_dir("elsewhere").take_over().spawn();
    for command in ["rewind --to in=1:0", "reset --sinks", "resolve --sink files --join"] {
        let (ok, said) = world.try_checkpoint(command);
        assert!(!ok && said.contains("owned by") && said.contains("--take-over"), "{command}: {said}");
    }
    world.publish(80..120);
    eventually("the owner to go on", || world.count(BOTH, 120));
    world.checkpoint("rewind --to in=2:0 --take-over");
    let said = wait_reason(&mut owner, &["owned by", "newer generation"]);
    says(&said, &["lane all"]);
    println!("another owner: refused; fenced with --take-over");
}
