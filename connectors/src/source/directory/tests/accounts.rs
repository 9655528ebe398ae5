//! `on_done` never deletes bytes that are nowhere else: a file that is not all in records and rejects is set aside.

use super::*;
use crate::source::{
    LINE,
    directory::{content::STEP_BYTES, done::INCOMPLETE},
};

fn delete(config: &mut Directory) {
    config.on_done = OnDone::Delete;
}

fn aside(rig: &Rig, name: &str) -> bool {
    rig.path(INCOMPLETE).join(name).exists()
}

/// A JSON array with more text behind it than a reject holds.
fn array_and_more() -> String {
    let more: String = (0..20_000).map(|i| format!("{{\"a\":{i}}}\n")).collect();
    format!("[{}{{\"a\":1}}]\n{more}", "{\"a\":1},\n".repeat(99))
}

#[tokio::test]
async fn a_file_that_was_not_all_read_is_never_deleted() {
    let whole = gzip(&[lines(5_000).as_bytes()]);
    let cases: [(&str, Codec, Vec<u8>); 4] = [
        ("text.gz", Codec::Text, b"plain one\nplain two\n".to_vec()),
        ("cut.gz", Codec::Text, whole[..whole.len() / 2].to_vec()),
        ("cut.zst", Codec::Text, zstandard(&[lines(5_000).as_bytes()])[..STEP_BYTES].to_vec()),
        ("array.json", Codec::Json, array_and_more().into_bytes()),
    ];
    for (name, codec, bytes) in cases {
        for restart in [false, true] {
            let mut rig = Rig::with(codec.clone(), delete).await;
            rig.put(name, &bytes, 100);
            rig.put("good", if matches!(codec, Codec::Json) { "{\"a\":1}\n" } else { "good\n" }, 50);
            let batch = rig.batch(ALL).await.unwrap();
            assert_eq!(batch.rejects().len(), 1, "{name}");
            if restart {
                rig.restart().await;
            }
            rig.release().await;
            assert!(!rig.path("good").exists(), "{name}: what is all in rows goes");
            assert!(aside(&rig, name), "{name} is set aside, restart {restart}");
            assert_eq!(fs::read(rig.path(INCOMPLETE).join(name)).unwrap(), bytes);
            // It is done with: nothing is tried again, and the list is pruned.
            rig.put("next", if matches!(codec, Codec::Json) { "{\"a\":2}\n" } else { "next\n" }, 20);
            assert_eq!(rig.batch(ALL).await.unwrap().proposal.prune[&log()], 2);
            rig.release().await;
            rig.restart().await;
            assert!(rig.batch(ALL).await.is_none());
        }
    }
}

#[tokio::test]
async fn a_file_that_was_not_all_read_is_not_moved_to_the_others() {
    let mut rig = Rig::unborn(Codec::Json, |config| {
        config.on_done = OnDone::Move(config.path.with_file_name("done"));
        config.recursive = true;
    });
    rig.begin().await;
    fs::create_dir(rig.path("day")).unwrap();
    rig.put("day/bad.json", array_and_more(), 100);
    rig.put("day/good.json", "{\"a\":1}\n", 50);
    rig.drain(ALL).await;
    rig.release().await;
    assert!(aside(&rig, "day/bad.json") && rig.dir.path().join("done/day/good.json").exists());
    assert!(!rig.dir.path().join("done/day/bad.json").exists());
}

#[tokio::test]
async fn rejects_that_have_all_the_bytes_let_a_file_go() {
    let mut rig = Rig::with(Codec::Json, delete).await;
    rig.put("a.json", "[{\"a\":1}]\nand something else\n", 100);
    let batch = rig.batch(ALL).await.unwrap();
    assert_eq!((batch.records().len(), batch.rejects().len()), (1, 1));
    rig.release().await;
    assert!(!rig.path("a.json").exists() && !rig.path(INCOMPLETE).exists());
}

#[tokio::test]
async fn a_file_read_in_parts_over_restarts_is_looked_at_once_more() {
    for (text, is_all) in [(array_and_more(), false), (lines(100), true)] {
        let mut rig = Rig::with(if is_all { Codec::Text } else { Codec::Json }, delete).await;
        rig.put("a", text, 100);
        let mut batches = 0;
        while rig.batch(Budget { records: 40, bytes: 1 << 20 }).await.is_some() {
            batches += 1;
            rig.restart().await;
        }
        assert!(batches > 1);
        rig.release().await;
        assert_eq!((rig.path("a").exists(), aside(&rig, "a")), (false, !is_all));
    }
}

#[tokio::test]
async fn the_rest_of_a_file_that_was_given_up_is_not_deleted_when_it_is_back() {
    let mut rig = Rig::with(Codec::Text, |config| {
        delete(config);
        config.on_changed = OnChanged::DeadLetter;
    })
    .await;
    rig.put("a", "1\n2\n3\n", 100);
    rig.batch(Budget { records: 1, bytes: 1 << 20 }).await.unwrap();
    rig.rename_out("a");
    assert_eq!(rig.batch(ALL).await.unwrap().rejects().len(), 1);
    rig.rename_in("a");
    rig.release().await;
    assert!(aside(&rig, "a"), "its lines 2 and 3 are nowhere else");
}

#[tokio::test]
async fn a_replaced_file_is_not_deleted_for_the_one_that_was_read() {
    let mut rig = Rig::with(Codec::Text, delete).await;
    rig.put("a", "1\n", 100);
    rig.batch(ALL).await.unwrap();
    let modified = fs::metadata(rig.path("a")).unwrap().modified().unwrap();
    fs::write(rig.path("b.tmp"), "2\n").unwrap();
    fs::File::options()
        .append(true)
        .open(rig.path("b.tmp"))
        .unwrap()
        .set_times(FileTimes::new().set_modified(modified))
        .unwrap();
    fs::rename(rig.path("b.tmp"), rig.path("a")).unwrap();
    rig.release().await;
    assert_eq!(rig.drain_texts().await, ["2"], "the same name, size and mtime, and another content");
    rig.release().await;
    assert!(!rig.path("a").exists());
}

impl Rig {
    fn rename_out(&self, name: &str) {
        fs::rename(self.path(name), self.dir.path().join(name)).unwrap();
    }
    fn rename_in(&self, name: &str) {
        fs::rename(self.dir.path().join(name), self.path(name)).unwrap();
    }
}

#[tokio::test]
async fn records_and_rejects_say_their_line_across_batches_and_restarts() {
    for archive in [false, true] {
        let mut rig = Rig::new().await;
        let text = lines(3_000);
        let (name, bytes) = if archive { ("a.gz", gzip(&[text.as_bytes()])) } else { ("a", text.into_bytes()) };
        rig.put(name, bytes, 100);
        let mut next = 1;
        while let Some(batch) = rig.batch(Budget { records: 700, bytes: 1 << 20 }).await {
            for slice in &batch.raw.slices {
                let value = |key: &str| slice.metadata.iter().find(|(name, _)| *name == key).unwrap().1.clone();
                assert_eq!((value(LINE), value("file")), (next.to_string(), name.to_owned()));
                next += slice.records.len();
            }
            rig.restart().await;
        }
        assert_eq!(next, 3_001);
    }
    let mut rig = Rig::with(Codec::Json, |_| {}).await;
    rig.put("a", "[{\"a\":1},\n{\"a\":2}]\n\nwhat is this\n", 100);
    let batch = rig.batch(ALL).await.unwrap();
    assert_eq!(batch.raw.rejects[0].metadata, [("file", "a".to_owned()), (LINE, "4".to_owned())]);
}
