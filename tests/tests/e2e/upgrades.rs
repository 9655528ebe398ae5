//! Upgrades: data dirs and sinks that older versions left in the middle of a batch (`tests/upgrades`). This version goes on
//! from each of them, and every record is in every sink exactly once.

use std::{fs, ops::Range, path::PathBuf, process::Command};

use tidemill_tests::{Daemon, Folder, Rows, Run, eventually, feed, free_port, needs, root};

/// What each fixture has in its source, of which sinks have a part.
const BEFORE: usize = 60;

fn versions() -> Vec<PathBuf> {
    let folders = fs::read_dir(root().join("tests/upgrades")).unwrap().map(|entry| entry.unwrap().path());
    let folders: Vec<_> = folders.filter(|path| path.is_dir()).collect();
    assert!(!folders.is_empty(), "no fixture of any older version");
    folders
}

/// Runs `test` in the fixture of this name of every version.
fn of_each_version(name: &str, test: impl Fn(&Folder)) {
    for version in versions() {
        let folder = Folder::new();
        let archive = version.join(format!("{name}.tar.gz"));
        let mut tar = Command::new("tar");
        needs::output(tar.arg("-xzf").arg(&archive).arg("-C").arg(folder.path()));
        test(&folder);
        println!("{}: gone on from", archive.strip_prefix(root()).unwrap().display());
    }
}

fn publish(folder: &Folder, numbers: Range<usize>) {
    let name = format!("in/{:03}.json", numbers.start);
    folder.publish(name, numbers.map(|n| format!("{{\"n\":{n}}}\n")).collect::<String>());
}

fn rows(numbers: Range<usize>) -> Rows {
    Rows::json(&numbers.map(|n| format!("{{\"n\":{n}}}\n")).collect::<String>())
}

fn run(folder: &Folder) -> Run {
    Run::new(folder).job_file("job.yaml")
}

fn once(folder: &Folder) -> Daemon {
    let mut daemon = run(folder).once();
    daemon.expect_success();
    daemon
}

fn compare(folder: &Folder, sinks: &[&str], expected: &Rows) -> Result<(), String> {
    sinks.iter().try_for_each(|sink| {
        let held = match *sink {
            "files" => Rows::files(&folder.join("files")),
            _ => Rows::try_sqlite(&folder.join("out/rows.db"), "SELECT n FROM rows").map_err(|e| e.to_string())?,
        };
        held.compare(expected).map_err(|difference| format!("{sink}: {difference}"))
    })
}

#[track_caller]
fn assert_rows(folder: &Folder, sinks: &[&str], numbers: Range<usize>) {
    if let Err(difference) = compare(folder, sinks, &rows(numbers)) {
        panic!("{difference}");
    }
}

#[test]
fn a_folder_goes_on_into_each_kind_of_sink() {
    for (name, sinks) in [
        ("directory-to-sqlite", &["db"][..]),
        ("directory-to-files", &["files"]),
        ("directory-to-both", &["db", "files"]),
    ] {
        of_each_version(name, |folder| {
            once(folder);
            assert_rows(folder, sinks, 0..BEFORE);
            // What the new version wrote it goes on from too.
            publish(folder, BEFORE..BEFORE + 15);
            once(folder);
            assert_rows(folder, sinks, 0..BEFORE + 15);
            // The data dir is worth little, as ever.
            fs::remove_dir_all(folder.join("data")).unwrap();
            publish(folder, BEFORE + 15..BEFORE + 20);
            run(folder).take_over().once().expect_success();
            assert_rows(folder, sinks, 0..BEFORE + 20);
        });
    }
}

#[test]
fn a_spool_goes_on_with_what_was_acknowledged() {
    of_each_version("socket-to-both", |folder| {
        let sinks = &["db", "files"];
        let port = free_port();
        let run = run(folder).env("PORT", port.to_string());
        let send = |numbers: Range<usize>| {
            let lines: Vec<_> = numbers.map(|n| format!("{{\"n\":{n}}}").into_bytes()).collect();
            feed::send_acked(&feed::connect(([127, 0, 0, 1], port).into()), &lines);
        };
        let mut daemon = run.spawn();
        eventually("what the older version acknowledged", || compare(folder, sinks, &rows(0..BEFORE)));
        send(BEFORE..BEFORE + 15);
        eventually("what came later", || compare(folder, sinks, &rows(0..BEFORE + 15)));
        daemon.kill9();
        // A mark of the new version, and a spool of both.
        let mut daemon = run.spawn();
        send(BEFORE + 15..BEFORE + 20);
        eventually("what came at last", || compare(folder, sinks, &rows(0..BEFORE + 20)));
        daemon.term();
        daemon.expect_success();
        assert!(!daemon.stderr().contains("lost"), "{}", daemon.stderr());
    });
}

#[test]
fn the_ledger_as_the_anchor_goes_on_and_gives_its_place_to_a_sink() {
    of_each_version("ledger-as-anchor", |folder| {
        let said = once(folder).stderr();
        // The ledger has the mark of the second batch after its start, which nobody had closed.
        assert!(said.contains("records=15"), "{said}");
        let job = fs::read_to_string(folder.join("job.yaml")).unwrap();
        folder.write("job.yaml", job + "  db: { type: sqlite, path: out/rows.db, table: rows }\n");
        publish(folder, BEFORE..BEFORE + 15);
        once(folder);
        assert_rows(folder, &["db"], BEFORE..BEFORE + 15);
    });
}

/// Older versions stopped here: the new anchor was asked for entries that it did not have yet.
#[test]
fn an_anchor_whose_place_was_on_its_way_arrives() {
    of_each_version("anchor-on-its-way", |folder| {
        once(folder);
        // The sink joins where the ledger stood: what lay before is not its own.
        let first = Rows::sqlite(&folder.join("out/rows.db"), "SELECT min(n) AS n FROM rows").column("n");
        let first: usize = first[0].parse().unwrap();
        assert!((35..=45).contains(&first), "{first}");
        assert_rows(folder, &["db"], first..BEFORE);
        publish(folder, BEFORE..BEFORE + 15);
        once(folder);
        assert_rows(folder, &["db"], first..BEFORE + 15);
    });
}
