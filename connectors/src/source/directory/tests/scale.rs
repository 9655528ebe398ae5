//! Many files: what is known costs an entry, and no scan reads it.

use super::*;
use crate::source::directory::{
    entry::{FileEntry, Role},
    hash::ContentHash,
    known::Known,
    scan::Stamp,
};

#[tokio::test]
async fn a_hundred_thousand_known_files_cost_their_entries() {
    let mut rig = Rig::new().await;
    for number in 0..100_000u64 {
        let hash = Some(ContentHash::of(&number.to_le_bytes()));
        let stamp = Stamp { size: number, mtime_ns: number as i64, dev: 1, ino: number };
        let entry = FileEntry::of(&format!("gone/{number:06}.json"), stamp, hash, Role::Read);
        rig.entries.push(Entry { log: log(), number, text: entry.to_line() });
    }
    rig.next = 100_000;
    rig.at = Positions::from([(shard(), Position::pair(100_000, 0))]);
    // Of the listed files one is there, or the folder would be taken for a missing mount.
    for i in 0..1_000 {
        rig.put(&format!("new{i:04}"), format!("{i}\n"), 1_000);
    }
    let begun = std::time::Instant::now();
    rig.restart().await;
    let mut opens = Vec::new();
    let device = fs::metadata(&rig.config.path).unwrap();
    let dev = std::os::unix::fs::MetadataExt::dev(&device);
    for entry in &mut rig.entries {
        entry.text = entry.text.replace("\"dev\":1,", &format!("\"dev\":{dev},"));
    }
    rig.restart().await;
    let mut got = 0;
    while let Some(batch) = rig.batch(ALL).await {
        assert!(batch.proposal.entries[&log()].len() <= MAX_FILES_PER_BATCH);
        got += batch.records().len();
        opens.push(rig.opens());
    }
    // A batch reads each new file once; its replay, here in the test, opens each once more.
    assert_eq!((got, opens.as_slice()), (1_000, &[2_000][..]));
    for _ in 0..3 {
        assert!(rig.try_plan(ALL).await.unwrap().is_none());
    }
    assert_eq!(rig.opens(), 2_000, "a scan opens nothing that is known");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
fn what_is_known_of_a_file_is_small() {
    let entry = |number: u64| {
        let hash = Some(ContentHash::of(&number.to_le_bytes()));
        let stamp = Stamp { size: number, mtime_ns: number as i64, dev: 1, ino: number };
        FileEntry::of(&format!("day=2026-05-17/{number:06}.json"), stamp, hash, Role::Read)
    };
    const FILES: u64 = 200_000;
    let listed = Known::new(0, (0..FILES).map(entry).collect());
    assert!(
        listed.bytes() as u64 / FILES < 270,
        "{} bytes a file, docs/sources/directory.md says 250",
        listed.bytes() as u64 / FILES
    );
    // One by one, as they are taken.
    let mut grown = Known::default();
    (0..FILES).for_each(|number| _ = grown.push(&entry(number)));
    assert!(grown.bytes() as u64 / FILES < 280, "{} bytes a file", grown.bytes() as u64 / FILES);
    for number in [0, 7, FILES - 1] {
        assert_eq!(grown.at_path(&entry(number).path), Some(number));
        assert_eq!(grown.by_hash(entry(number).hash.unwrap()).collect::<Vec<_>>(), [number]);
        assert_eq!(grown.by_inode(&entry(number).stamp()), Some(number));
    }
}

/// Each new one does not look at all the earlier ones: 5,000 files of one content would be 12 million looks.
#[tokio::test]
async fn many_files_of_one_content_are_each_taken_once() {
    let mut rig = Rig::new().await;
    for i in 0..5_000 {
        rig.put(&format!("same{i:04}"), "the same\n", 1_000);
        rig.put(&format!("void{i:04}"), "", 1_000);
    }
    let begun = std::time::Instant::now();
    let mut got = 0;
    while let Some(batch) = rig.batch(ALL).await {
        got += batch.records().len();
    }
    assert_eq!(got, 5_000);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    // One that moves, with another inode, is still known by its content.
    fs::copy(rig.path("same0007"), rig.path("copy")).unwrap();
    fs::remove_file(rig.path("same0007")).unwrap();
    rig.restart().await;
    assert!(rig.drain_texts().await.is_empty(), "a file that was moved is read twice");
}

#[tokio::test]
async fn at_most_a_thousand_files_come_with_one_plan() {
    let mut rig = Rig::new().await;
    for i in 0..1_050 {
        rig.put(&format!("{i:04}"), format!("{i}\n"), 1_000);
    }
    let first = rig.batch(ALL).await.unwrap();
    assert_eq!(first.proposal.entries[&log()].len(), MAX_FILES_PER_BATCH);
    let second = rig.batch(ALL).await.unwrap();
    assert_eq!(second.proposal.entries[&log()].len(), 50);
    assert_eq!(first.records().len() + second.records().len(), 1_050);
}
