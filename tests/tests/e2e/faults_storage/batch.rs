//! Fault 10: killed between the renames of a batch of several files, and once more one batch later.

use super::*;

const RECORDS: usize = 120;

fn world(roll: &str) -> World {
    let sink = format!("  files: {{ type: files, path: files, codec: json, partition_by: [part]{roll} }}\n");
    let world = World::new(&directory(""), &format!("{sink}{DB}"));
    (0..RECORDS).step_by(30).for_each(|from| world.publish(from..from + 30));
    world
}

/// The partition is in the folder's name, not in the row.
fn count(world: &World) -> Result<(), String> {
    for part in ["p0", "p1", "p2"] {
        let expected = rows(0..RECORDS).0.into_iter().filter(|row| row["part"] == part).collect();
        let found = Rows::files(&world.folder.join(format!("files/part={part}")));
        found.compare(&Rows(expected).select(&["n"])).map_err(|what| format!("{part}: {what}"))?;
    }
    world.count(&["db"], RECORDS)
}

#[test]
fn killed_between_renames_and_one_batch_later() {
    let mut kills = 0;
    // Renames come in threes; the first batch's are 1 to 3.
    for (roll, name) in [("", "a file per batch"), (", roll: { bytes: 1KiB }", "rolling files")] {
        for rename in 1..=7 {
            let world = world(roll);
            let first = format!("files.before-rename:{rename}:kill");
            let mut daemon = world.run().failpoint(&first).arg("--once").start();
            if daemon.wait().success() {
                assert!(!roll.is_empty(), "{first} was not reached");
                continue;
            }
            kills += 1;
            // The renames that the mark promised are finished, the next batch begins, and is killed as well.
            for second in ["files.before-rename:1:kill", "files.after-mark:1:kill", "files.before-rename:5:kill"] {
                let mut daemon = world.run().failpoint(second).arg("--once").start();
                kills += usize::from(!daemon.wait().success());
            }
            world.once();
            count(&world).unwrap_or_else(|what| panic!("{name}, {first}: {what}"));
        }
    }
    assert!(kills > 30, "{kills} kills only");
    println!(
        "killed between the renames of a batch of three files, and in the batches after: {kills} kills: 0 lost, 0 doubled"
    );
}

#[test]
fn killed_at_every_step_around_the_mark_of_several_files() {
    for step in [
        "files.after-data-sync",
        "files.before-folder-sync",
        "files.before-mark",
        "files.after-mark",
        "files.after-log-sync",
        "files.after-renames",
        "files.claim-after-rename",
        "files.claim-after-log",
        "files.claim-after-renames",
    ] {
        let world = world("");
        for nth in [2, 1, 3] {
            let mut daemon = world.run().failpoint(&format!("{step}:{nth}:kill")).arg("--once").start();
            daemon.wait();
        }
        world.once();
        count(&world).unwrap_or_else(|what| panic!("{step}: {what}"));
        println!("killed three times at {step}, three files a batch: 0 lost, 0 doubled");
    }
}
