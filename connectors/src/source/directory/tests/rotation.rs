//! Logs that are rotated and compressed: each line is read once, under whatever name and in whatever packing its file lies.

use super::*;
use crate::source::directory::entry::{FileEntry, Role};

const ONE: Budget = Budget { records: 1, bytes: 1 << 20 };

#[derive(Clone, Copy, Debug, PartialEq)]
enum Packing {
    Gzip,
    Zstd,
}

impl Packing {
    fn ending(self) -> &'static str {
        if self == Self::Gzip { "gz" } else { "zst" }
    }
    fn pack(self, bytes: &[u8]) -> Vec<u8> {
        if self == Self::Gzip { gzip(&[bytes]) } else { zstandard(&[bytes]) }
    }
}

impl Rig {
    /// As gzip and zstd do: the archive gets the original's mtime, then the original goes.
    fn compress(&self, name: &str, packing: Packing) -> String {
        let to = format!("{name}.{}", packing.ending());
        let modified = fs::metadata(self.path(name)).unwrap().modified().unwrap();
        fs::write(self.path(&to), packing.pack(&fs::read(self.path(name)).unwrap())).unwrap();
        let file = fs::File::options().append(true).open(self.path(&to)).unwrap();
        file.set_times(FileTimes::new().set_modified(modified)).unwrap();
        fs::remove_file(self.path(name)).unwrap();
        to
    }

    /// As an earlier version would have written the list.
    fn age_the_list(&mut self) {
        for entry in &mut self.entries {
            let mut value: serde_json::Value = serde_json::from_str(&entry.text).unwrap();
            for key in ["head", "chain", "unpacked"] {
                value.as_object_mut().unwrap().remove(key);
            }
            entry.text = value.to_string();
        }
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }
}

/// Contents of less than a block, of several blocks, and of more than is unpacked to be looked at.
fn sizes() -> [usize; 3] {
    [3, 2_000, 30_000]
}

#[tokio::test]
async fn a_log_that_is_rotated_and_then_compressed_is_read_once() {
    for (lines_each, packing, restarts) in sizes()
        .into_iter()
        .flat_map(|n| [(n, Packing::Gzip, false), (n, Packing::Zstd, true), (n, Packing::Gzip, true)])
    {
        let mut rig = Rig::with(Codec::Text, |config| config.include = vec!["app.log*".to_owned()]).await;
        let day = |number: usize| format!("day {number}\n{}", lines(lines_each));
        let mut expected = 0;
        for number in 0..5 {
            // logrotate with `delaycompress`, every day: 2.gz to 3.gz, 1 to 2.gz, app.log to 1.
            for old in (2..5).rev() {
                let name = |old: usize| format!("app.log.{old}.{}", packing.ending());
                if rig.path(&name(old)).exists() {
                    rig.rename(&name(old), &name(old + 1));
                }
            }
            if rig.path("app.log.1").exists() {
                rig.rename("app.log.1", "app.log.2");
                rig.compress("app.log.2", packing);
            }
            if rig.path("app.log").exists() {
                rig.rename("app.log", "app.log.1");
            }
            rig.put("app.log", day(number), 1_000 - 100 * number as u64);
            if restarts {
                rig.restart().await;
            }
            expected += lines_each + 1;
            let got = rig.drain_texts().await;
            assert_eq!(got.len(), lines_each + 1, "{packing:?}, day {number}, restarts {restarts}");
            assert_eq!(got[0], format!("day {number}"));
        }
        assert!(expected > 0 && rig.path(&format!("app.log.4.{}", packing.ending())).exists());
        // After a restart, what was found out is in the list: nothing is opened for it.
        rig.restart().await;
        let opens = rig.opens();
        assert!(rig.drain_texts().await.is_empty());
        assert_eq!(rig.opens(), opens, "archives that are known are not unpacked again");
    }
}

#[tokio::test]
async fn a_log_that_is_copied_truncated_and_compressed_is_read_once() {
    for seen_between in [false, true] {
        let mut rig = Rig::new().await;
        rig.put("app.log", lines(3_000), 100);
        assert_eq!(rig.drain_texts().await.len(), 3_000);
        fs::copy(rig.path("app.log"), rig.path("app.log.1")).unwrap();
        rig.age("app.log.1", 90);
        rig.put("app.log", "new\n", 80);
        if seen_between {
            assert_eq!(rig.drain_texts().await, ["new"]);
        }
        rig.compress("app.log.1", Packing::Gzip);
        rig.restart().await;
        assert_eq!(rig.drain_texts().await, if seen_between { vec![] } else { vec!["new"] });
        assert!(rig.batch(ALL).await.is_none());
    }
}

#[tokio::test]
async fn a_list_of_an_earlier_version_knows_what_is_compressed_later() {
    for lines_each in sizes() {
        let mut rig = Rig::new().await;
        rig.put("app.log", lines(lines_each), 100);
        rig.put("other", "other\n", 90);
        rig.drain(ALL).await;
        rig.age_the_list();
        rig.rename("app.log", "app.log.1");
        rig.put("app.log", "new\n", 50);
        rig.compress("app.log.1", Packing::Zstd);
        rig.restart().await;
        assert_eq!(rig.drain_texts().await, ["new"], "{lines_each} lines");
        rig.restart().await;
        assert!(rig.batch(ALL).await.is_none());
    }
}

#[tokio::test]
async fn an_archive_that_is_unpacked_or_packed_anew_is_read_once() {
    for lines_each in sizes() {
        let mut rig = Rig::new().await;
        let text = lines(lines_each);
        rig.put("a.gz", gzip(&[text.as_bytes()]), 100);
        let batch = rig.drain(ALL).await;
        assert_eq!(batch.len(), lines_each);
        // gunzip, zstd, and zstd with another level in the same place.
        fs::remove_file(rig.path("a.gz")).unwrap();
        rig.put("a", &text, 100);
        rig.restart().await;
        assert!(rig.drain_texts().await.is_empty(), "{lines_each} lines, unpacked");
        rig.compress("a", Packing::Zstd);
        assert!(rig.drain_texts().await.is_empty(), "{lines_each} lines, packed by another");
        rig.put("a.zst", zstd::encode_all(text.as_bytes(), 12).unwrap(), 50);
        assert!(rig.drain_texts().await.is_empty(), "{lines_each} lines, packed better");
        rig.restart().await;
        assert!(rig.batch(ALL).await.is_none());
    }
}

#[tokio::test]
async fn equal_content_beside_its_first_file_is_another_file() {
    for lines_each in sizes() {
        let mut rig = Rig::new().await;
        let text = lines(lines_each);
        rig.put("day1.csv", &text, 100);
        assert_eq!(rig.drain_texts().await.len(), lines_each);
        rig.put("day2.csv.gz", gzip(&[text.as_bytes()]), 90);
        assert_eq!(rig.drain_texts().await.len(), lines_each, "both are there: two exports");
        // The first is compressed, and stays where it is: a third export is another file, also after a restart.
        rig.compress("day1.csv", Packing::Gzip);
        assert!(rig.drain_texts().await.is_empty());
        rig.restart().await;
        rig.put("day3.csv", &text, 80);
        assert_eq!(rig.drain_texts().await.len(), lines_each);
        rig.put("day4.csv.zst", zstandard(&[text.as_bytes()]), 70);
        assert_eq!(rig.drain_texts().await.len(), lines_each);
        rig.restart().await;
        assert!(rig.batch(ALL).await.is_none());
    }
    // Days without a record.
    let mut rig = Rig::new().await;
    rig.put("day1.csv", "", 100);
    rig.drain(ALL).await;
    fs::remove_file(rig.path("day1.csv")).unwrap();
    rig.put("day2.csv.gz", gzip(&[b""]), 90);
    assert_eq!(rig.batch(ALL).await.unwrap().proposal.entries[&log()].len(), 1, "it is listed for itself");
}

#[tokio::test]
async fn a_log_compressed_while_it_is_being_read_is_read_on_after_a_crash_too() {
    for (restart, lines_each) in [(false, 5), (true, 5), (true, 2_000)] {
        let mut rig = Rig::new().await;
        let text = lines(lines_each);
        rig.put("app.log", &text, 100);
        let first = rig.batch(ONE).await.unwrap();
        rig.rename("app.log", "app.log.1");
        rig.compress("app.log.1", Packing::Gzip);
        rig.put("app.log", "new\n", 50);
        if restart {
            rig.restart().await;
        }
        let again = rig.replay(&first.proposal).await.unwrap();
        assert_eq!(records(&again), first.records(), "an open plan is read from the archive");
        let rest = rig.drain(ALL).await;
        assert_eq!(rest.len(), lines_each - 1 + 1);
        assert!(rest[..lines_each - 1].iter().all(|record| record.file == "app.log"), "the name is the listed one");
        assert_eq!(rest.last().unwrap().text, "new");
    }
}

#[tokio::test]
async fn a_log_compressed_before_it_is_put_away_is_put_away_as_it_is() {
    for (moves, restart) in [(false, false), (false, true), (true, true)] {
        let mut rig = Rig::unborn(Codec::Text, |config| {
            let target = OnDone::Move(config.path.with_file_name("done"));
            config.on_done = if moves { target } else { OnDone::Delete };
        });
        rig.begin().await;
        let text = lines(2_000);
        rig.put("app.log", &text, 100);
        rig.put("waits.gz", gzip(&[b"not yet"]), 50);
        assert_eq!(rig.batch(Budget { records: 2_000, bytes: 1 << 30 }).await.unwrap().records().len(), 2_000);
        rig.compress("app.log", Packing::Gzip);
        if restart {
            rig.restart().await;
        }
        rig.release().await;
        assert!(!rig.path("app.log.gz").exists());
        assert_eq!(rig.drain_texts().await, ["not yet"]);
        let moved = rig.dir.path().join("done/app.log.gz");
        assert_eq!(fs::read(moved).ok(), moves.then(|| gzip(&[text.as_bytes()])));
    }
}

#[tokio::test]
async fn what_start_latest_left_out_stays_left_out_when_it_is_compressed() {
    let mut rig = Rig::unborn(Codec::Text, |config| config.start = Start::Latest);
    rig.put("app.log", lines(2_000), 100);
    rig.begin().await;
    rig.rename("app.log", "app.log.1");
    rig.put("app.log", "new\n", 50);
    rig.compress("app.log.1", Packing::Gzip);
    assert_eq!(rig.drain_texts().await, ["new"]);
    rig.restart().await;
    assert!(rig.batch(ALL).await.is_none());
}

#[tokio::test]
async fn a_log_that_grew_and_was_rotated_has_grown() {
    let mut rig = Rig::with(Codec::Text, |config| config.on_changed = OnChanged::DeadLetter).await;
    rig.put("app.log", "1\n", 100);
    rig.drain(ALL).await;
    rig.put("app.log", "1\n2\n", 80);
    rig.rename("app.log", "app.log.1");
    rig.put("app.log", "new\n", 50);
    let batch = rig.batch(ALL).await.unwrap();
    assert_eq!((batch.rejects(), batch.texts()), (vec![("1:0".to_owned(), "changed_file")], vec!["new".to_owned()]));
}

#[tokio::test]
async fn an_archive_is_unpacked_once_more_only_where_it_may_be_known() {
    let mut rig = Rig::new().await;
    rig.put("app.log", format!("known\n{}", lines(30_000)), 100);
    rig.drain(ALL).await;
    rig.put("other.gz", gzip(&[format!("other\n{}", lines(30_000)).as_bytes()]), 50);
    let batch = rig.batch(ALL).await.unwrap();
    let entries: Vec<_> = batch.proposal.entries[&log()].iter().map(|line| FileEntry::parse(line).unwrap()).collect();
    assert_eq!(
        entries[0].content.chain, None,
        "its first block is no listed file's: it was not unpacked to be compared"
    );
    assert!(entries[0].content.head.is_some());
    assert_eq!((entries[1].role, entries[1].content.unpacked.is_some()), (Role::Known { of: 1 }, true), "reading told");
    assert_eq!(batch.end(), "3:0");
}

#[tokio::test]
async fn a_link_and_its_file_are_one_file() {
    for on_done in [OnDone::Keep, OnDone::Delete] {
        let mut rig = Rig::with(Codec::Text, |config| config.on_done = on_done.clone()).await;
        rig.put("a", "1\n", 100);
        symlink("a", rig.path("b")).unwrap();
        fs::hard_link(rig.path("a"), rig.path("c")).unwrap();
        assert_eq!(rig.drain_texts().await, ["1"]);
        let opens = rig.opens();
        assert!(rig.drain_texts().await.is_empty());
        assert_eq!(rig.opens(), opens, "once known, a second name is not opened");
        rig.release().await;
        if on_done == OnDone::Keep {
            rig.restart().await;
            assert!(rig.drain_texts().await.is_empty());
            // A copy is no link.
            fs::copy(rig.path("a"), rig.path("d")).unwrap();
            assert_eq!(rig.drain_texts().await, ["1"]);
        } else {
            assert_eq!(fs::read_dir(&rig.config.path).unwrap().count(), 0, "all names go");
        }
    }
}

#[tokio::test]
async fn a_file_replaced_by_one_of_the_same_size_and_mtime_is_read() {
    let mut rig = Rig::new().await;
    rig.put("a", "1\n", 100);
    rig.put("b", "b\n", 100);
    rig.drain(ALL).await;
    let modified = fs::metadata(rig.path("a")).unwrap().modified().unwrap();
    let mut old = 0;
    let mut replace = |rig: &Rig, text: &str| {
        old += 1;
        fs::write(rig.path("a.tmp"), text).unwrap();
        let file = fs::File::options().append(true).open(rig.path("a.tmp")).unwrap();
        file.set_times(FileTimes::new().set_modified(modified)).unwrap();
        // The old one stays somewhere, so that its inode is not used again.
        fs::rename(rig.path("a"), rig.dir.path().join(format!("old{old}"))).unwrap();
        fs::rename(rig.path("a.tmp"), rig.path("a")).unwrap();
    };
    replace(&rig, "2\n");
    assert_eq!(rig.drain_texts().await, ["2"]);
    replace(&rig, "2\n");
    assert!(rig.drain_texts().await.is_empty(), "the same content again");
    replace(&rig, "3\n");
    rig.restart().await;
    assert_eq!(rig.drain_texts().await, ["3"]);
    // A folder that was restored has other inodes throughout: none of its files is opened.
    let mut rig = Rig::new().await;
    for i in 0..30 {
        rig.put(&format!("f{i:02}"), format!("{i}\n"), 100 + i);
    }
    assert_eq!(rig.drain_texts().await.len(), 30);
    let copy = rig.dir.path().join("copy");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(&rig.config.path).unwrap() {
        let entry = entry.unwrap();
        let to = copy.join(entry.file_name());
        fs::copy(entry.path(), &to).unwrap();
        let modified = entry.metadata().unwrap().modified().unwrap();
        fs::File::options().append(true).open(&to).unwrap().set_times(FileTimes::new().set_modified(modified)).unwrap();
    }
    fs::rename(&rig.config.path, rig.dir.path().join("old")).unwrap();
    fs::rename(&copy, &rig.config.path).unwrap();
    rig.restart().await;
    assert!(rig.drain_texts().await.is_empty());
    assert_eq!(rig.opens(), 0, "a restored folder is not read again");
}
