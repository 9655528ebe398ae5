//! Fault 8: the ledger torn, truncated, corrupt or deleted; the data dir deleted.

use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

const RECORDS: usize = 120;

/// What is done to the folder of the ledger.
type Damage = fn(&Path);

const DAMAGES: [(&str, Damage); 9] = [
    ("torn (the last 512 bytes that are no zeros gone)", |ledger| {
        let bytes = fs::read(ledger.join("db")).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        cut(&ledger.join("db"), end.saturating_sub(512) as u64);
    }),
    ("truncated to a half", |ledger| {
        let used = fs::read(ledger.join("db")).unwrap().iter().rposition(|byte| *byte != 0).unwrap_or(0);
        cut(&ledger.join("db"), used as u64 / 2);
    }),
    ("truncated to nothing", |ledger| cut(&ledger.join("db"), 0)),
    ("random bytes in every file", |ledger| files_in(ledger).iter().for_each(|file| scribble(file, 40))),
    ("random bytes in db", |ledger| scribble(&ledger.join("db"), 400)),
    ("all of db random", |ledger| scribble(&ledger.join("db"), 100_000)),
    ("db deleted", |ledger| fs::remove_file(ledger.join("db")).unwrap()),
    ("conf deleted", |ledger| fs::remove_file(ledger.join("conf")).unwrap()),
    ("deleted", |ledger| fs::remove_dir_all(ledger).unwrap()),
];

fn cut(file: &Path, length: u64) {
    OpenOptions::new().write(true).open(file).unwrap().set_len(length).unwrap();
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_in(&path)) } else { found.push(path) }
    }
    found
}

/// Random bytes at random places of the part of a file that is in use.
fn scribble(file: &Path, count: usize) {
    let mut chance = StdRng::seed_from_u64(8);
    let mut bytes = fs::read(file).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if used == 0 {
        return;
    }
    for _ in 0..count {
        bytes[chance.random_range(0..used)] = chance.random();
    }
    fs::write(file, bytes).unwrap();
}

/// A job of sinks with marks that was killed with an open batch.
fn killed() -> World {
    let world = World::new(&directory(""), &format!("{FILES}{DB}"));
    (0..RECORDS).step_by(30).for_each(|from| world.publish(from..from + 30));
    world.run().failpoint("after-anchor:4:kill").arg("--once").start().expect_killed();
    world
}

#[test]
fn a_damaged_ledger_is_rebuilt_from_the_sinks() {
    for (what, damage) in DAMAGES {
        let world = killed();
        damage(&world.folder.join("data/ledger"));
        let mut daemon = world.run().once();
        daemon.expect_success();
        // What looks like the unfinished end of a log is none to speak of; all else is said.
        let loud = ["truncated to nothing", "all of db random", "db deleted", "deleted"].contains(&what);
        says(&daemon.stderr(), if loud { &["rebuilt from the marks in the sinks"] } else { &[] });
        world.assert_count(&["files", "db"], RECORDS, &format!("ledger {what}"));
        // And it is whole again.
        says(&world.checkpoint("show"), &["ledger: closed batch 12"]);
    }
}

#[test]
fn without_its_data_dir_a_job_waits_and_goes_on() {
    let world = killed();
    fs::remove_dir_all(world.folder.join("data")).unwrap();
    let mut daemon = world.run().start();
    let waiting = wait_reason(&mut daemon, &["owned by"]);
    says(&waiting, &["taken over once it has been silent for", "--take-over"]);
    daemon.wait_ready();
    eventually("all rows", || world.count(&["files", "db"], RECORDS));
    world.assert_count(&["files", "db"], RECORDS, "data dir deleted, the daemon waited");
}

#[test]
fn without_its_data_dir_a_job_goes_on_at_once_when_told() {
    let world = killed();
    fs::remove_dir_all(world.folder.join("data")).unwrap();
    world.run().take_over().once().expect_success();
    world.assert_count(&["files", "db"], RECORDS, "data dir deleted, --take-over");
}

#[test]
fn a_data_dir_without_its_id_is_another_owner_and_waits() {
    let world = killed();
    fs::write(world.folder.join("data/id"), "no uuid").unwrap();
    let mut daemon = world.run().start();
    let waiting = wait_reason(&mut daemon, &["owned by"]);
    says(&(waiting + &daemon.stderr()), &["taken over once it has been silent for", "data/id was damaged"]);
    eventually("all rows", || world.count(&["files", "db"], RECORDS));
    world.assert_count(&["files", "db"], RECORDS, "id of the data dir damaged");
}

/// A job whose sinks keep no marks.
fn console() -> World {
    let sinks = "  screen: { type: console }\ndead_letters: { type: console }\n";
    let world = World::with(&directory(""), sinks, "asap");
    (0..RECORDS).step_by(30).for_each(|from| world.publish(from..from + 30));
    world
}

/// How often each record was printed.
fn printed(out: &str) -> Vec<usize> {
    let mut counts = vec![0; RECORDS];
    for line in out.lines() {
        let first = line.split_whitespace().next().and_then(|word| word.parse::<usize>().ok());
        let is_row = line.split_whitespace().nth(1).is_some_and(|word| word.starts_with('p'));
        if let Some(n) = first.filter(|n| is_row && *n < RECORDS) {
            counts[n] += 1;
        }
    }
    counts
}

#[test]
fn a_ledger_that_is_the_anchor_is_whole_or_refused_and_the_way_out_leads_on() {
    for (what, damage) in DAMAGES {
        let world = console();
        let mut first = world.run().failpoint("after-sinks:6:kill").arg("--once").start();
        first.expect_killed();
        let mut out = first.stdout();
        damage(&world.folder.join("data/ledger"));
        let mut second = world.run().once();
        let refused = second.wait().code() == Some(1);
        out += &second.stdout();
        if refused {
            says(
                &second.stderr(),
                &["the ledger in", "is damaged", "it is the anchor of", "lane all of job faults", "Way out"],
            );
            // The command line refuses as well, in the same words.
            let (ok, said) = world.try_checkpoint("show");
            assert!(!ok && said.contains("Way out"), "{said}");
            // The way out: delete the file in brackets; the lane starts over.
            let said = second.stderr();
            let file =
                said.split('(').find_map(|part| part.split(')').next().filter(|text| text.contains("/anchors/")));
            fs::remove_file(file.expect("a file in brackets")).unwrap();
            let mut third = world.run().once();
            third.expect_success();
            out += &third.stdout();
        } else {
            second.expect_success();
            says(&second.stderr(), &[]);
        }
        let counts = printed(&out);
        let lost: Vec<_> = (0..RECORDS).filter(|n| n % BROKEN != BROKEN - 1 && counts[*n] == 0).collect();
        assert!(lost.is_empty(), "ledger {what}: lost {lost:?}");
        let how = if refused { "refused; started over as told" } else { "went on" };
        println!("ledger as the anchor, {what}: {how}: 0 lost (at least once)");
    }
}
