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

/// Nothing is changed without a word of consent, and what would be changed is said by its absolute paths.
#[test]
fn a_command_says_what_it_changes_and_waits_for_consent() {
    for at in [Here, InDaemon] {
        let world = lived(&[]);
        with(&world, at, || {
            let before = world.checkpoint("export");
            let here = world.folder.path().canonicalize().unwrap();
            let place = |name: &str| here.join(name).display().to_string();
            let places = [place("data"), place("job.yaml"), place("files"), place("db/rows.db"), place("dead")];
            for (command, words) in [
                ("rewind --to in=1:0", ["shard in", "from 2:0 back to 1:0, which is older"]),
                ("resolve --shard in --accept-loss", ["nothing waits in shard in", "there is nothing to give up"]),
                ("reset --sinks", ["all of the job", "marks of the job are removed; rows stay"]),
                ("resolve --sink files --accept-loss", ["shard in", "stays at 2:0"]),
                ("resolve --anchor files", ["shard in", "is the anchor from now on"]),
                ("forget", ["ledger", "marks and rows in sinks stay"]),
            ] {
                let (ok, said) = world.unconfirmed(&format!("{command} --dry-run"));
                says(&said, &words);
                if !said.contains("nothing to give up") {
                    assert!(ok && said.contains("nothing was changed: --dry-run"), "{command}: {said}");
                    // The ledger alone is asked to forget.
                    let named = if command == "forget" { &places[..2] } else { &places };
                    named.iter().for_each(|place| says(&said, &[place]));
                }
                let (ok, said) = world.unconfirmed(command);
                assert!(!ok, "{command}: {said}");
                if !said.contains("nothing to give up") {
                    says(&said, &["nothing was changed", "--yes"]);
                }
            }
            let after = world.checkpoint("export");
            assert_eq!(before, after, "a dry run, and one without consent, change nothing");
        });
        world.assert_count(BOTH, 80, "nothing was changed");
    }
}

/// A position is in the list of files and within its file; a lane and a shard are ones that are there.
#[test]
fn what_does_not_exist_is_refused() {
    for at in [Here, InDaemon] {
        let world = lived(&[]);
        with(&world, at, || {
            let before = world.checkpoint("export");
            for (command, words) in [
                ("rewind --to in=8:0", "has the numbers 0 to 2"),
                ("rewind --to in=18446744073709551615:0", "has the numbers 0 to 2"),
                ("rewind --to in=2:1", "has the numbers 0 to 2"),
                ("rewind --to in=1:99999999", "bytes, and 1:99999999 is beyond them"),
                ("rewind --to in=", "`` is no position of in"),
                ("rewind --to =1:0", "no shard ; the lane has in at 2:0"),
                ("resolve --shard= --accept-loss", "no shard ; the lane has in at 2:0"),
                ("resolve --sink= --join", "no marked sink ; it has files, db, dead-letters"),
                ("--lane nope reset --sinks", "job faults has no lane `nope`; this data dir has had all"),
                ("--lane= reset --sinks", "job faults has no lane ``; this data dir has had all"),
                ("--lane nope forget", "job faults has no lane `nope`"),
                ("--lane nope rewind --to in=1:0", "job faults has no lane `nope`"),
                ("--lane nope show", "job faults has no lane `nope`"),
                ("--lane all reset --sinks", "Leave out --lane all"),
            ] {
                let (ok, said) = world.try_checkpoint(command);
                assert!(!ok && said.contains(words), "{command}: {said}");
            }
            assert_eq!(before, world.checkpoint("export"), "what is refused changes nothing");
        });
        world.assert_count(BOTH, 80, "what does not exist is refused");
    }
}

/// A data dir that was copied or moved names the job file of its former place: nobody is led to the sinks of the original.
#[test]
fn a_copied_data_dir_leads_to_nobody_elses_sinks() {
    let world = lived(&[]);
    let before = world.checkpoint("export");
    let copy = Folder::new();
    for name in ["data", "job.yaml", "files", "db", "dead", "in"] {
        let done = std::process::Command::new("cp").arg("-r").arg(world.folder.join(name)).arg(copy.path()).status();
        assert!(done.unwrap().success());
    }
    let run = |arguments: &[&str]| {
        let done = tidemill(&copy, &[&["checkpoint"], arguments, &["--data-dir", "data"]].concat());
        let said = [done.stdout, done.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        (done.status.success(), said)
    };
    let here = copy.path().canonicalize().unwrap().join("job.yaml").display().to_string();
    for command in [&["show"][..], &["reset", "--sinks", "--yes"], &["rewind", "--to", "in=1:0", "--yes"]] {
        let (ok, said) = run(command);
        assert!(!ok, "{command:?}: {said}");
        says(&said, &["was moved or copied", "Name the file of the job", &format!("--job {here}")]);
    }
    assert_eq!(before, world.checkpoint("export"), "the original has its marks");
    // Named, it is the copy that is meant.
    let (ok, said) = run(&["reset", "--sinks", "--yes", "--job", "job.yaml"]);
    assert!(ok, "{said}");
    says(&said, &[&here, "starts over"]);
    assert_eq!(before, world.checkpoint("export"), "the original has its marks still");
    // A job that ran in its new place is at home there.
    Run::new(&copy).job(&world.yaml).once().expect_success();
    let (ok, said) = run(&["show"]);
    assert!(ok, "{said}");
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
