//! `on_done` and `start`.

use super::*;

#[tokio::test]
async fn delete_waits_for_the_release_and_prunes_the_list() {
    let mut rig = Rig::with(Codec::Text, |config| config.on_done = OnDone::Delete).await;
    rig.put("a", "1\n", 60);
    rig.put("b", "2\n3\n", 50);
    rig.batch(Budget { records: 2, bytes: 1 << 20 }).await.unwrap();
    assert!(rig.path("a").exists(), "not released yet");
    rig.release().await;
    assert!(!rig.path("a").exists());
    assert!(rig.path("b").exists(), "read in part");
    let batch = rig.batch(ALL).await.unwrap();
    assert_eq!(batch.proposal.prune[&log()], 1);
    rig.release().await;
    rig.release().await;
    assert!(!rig.path("b").exists());
    // The same name again is a new file, the numbers go on.
    rig.restart().await;
    rig.put("a", "1\n", 60);
    let batch = rig.batch(ALL).await.unwrap();
    assert_eq!((batch.texts(), batch.end()), (vec!["1".to_owned()], "3:0".to_owned()));
    rig.release().await;
    assert_eq!(rig.source.inner.state.lock().unwrap().known.first(), 1, "the mark has forgotten what is gone");
    rig.put("d", "4\n", 60);
    assert_eq!(rig.batch(ALL).await.unwrap().proposal.prune[&log()], 3);
    rig.release().await;
    assert_eq!(rig.source.inner.state.lock().unwrap().known.first(), 3);
}

#[tokio::test]
async fn the_same_content_again_is_another_file_where_the_first_was_put_away() {
    let mut rig = Rig::with(Codec::Text, |config| config.on_done = OnDone::Delete).await;
    rig.put("a", "status ok\n", 60);
    rig.batch(ALL).await.unwrap();
    rig.release().await;
    assert!(!rig.path("a").exists());
    // The list still has the first one: no plan has pruned it yet.
    rig.put("b", "status ok\n", 50);
    assert_eq!(rig.drain_texts().await, ["status ok"]);
    rig.release().await;
    assert!(!rig.path("b").exists());
}

#[tokio::test]
async fn a_release_is_repeated_after_a_restart_and_spares_a_newer_file() {
    let mut rig = Rig::with(Codec::Text, |config| config.on_done = OnDone::Delete).await;
    rig.put("a", "1\n", 60);
    rig.put("b", "2\n", 50);
    rig.batch(ALL).await.unwrap();
    rig.put("b", "new\n", 40);
    rig.restart().await;
    rig.release().await;
    assert!(!rig.path("a").exists());
    assert_eq!(fs::read_to_string(rig.path("b")).unwrap(), "new\n");
    assert_eq!(rig.drain_texts().await, ["new"]);
}

#[tokio::test]
async fn move_keeps_folders_never_replaces_and_is_never_scanned() {
    let mut rig = Rig::unborn(Codec::Text, |config| {
        config.recursive = true;
        config.on_done = OnDone::Move(config.path.join("done"));
    });
    rig.begin().await;
    fs::create_dir_all(rig.path("done/day")).unwrap();
    fs::write(rig.path("done/day/a"), "other").unwrap();
    fs::create_dir(rig.path("day")).unwrap();
    rig.put("day/a", "1\n", 60);
    assert_eq!(rig.drain_texts().await, ["1"]);
    rig.release().await;
    assert!(!rig.path("day/a").exists());
    assert_eq!(fs::read_to_string(rig.path("done/day/a")).unwrap(), "other");
    assert_eq!(fs::read_to_string(rig.path("done/day/a.1")).unwrap(), "1\n");
    rig.restart().await;
    assert!(rig.drain_texts().await.is_empty());
}

#[tokio::test]
async fn a_move_that_was_copied_but_not_finished_is_finished() {
    let mut rig = Rig::unborn(Codec::Text, |config| config.on_done = OnDone::Move(config.path.with_file_name("done")));
    rig.begin().await;
    rig.put("a", "1\n", 60);
    rig.drain(ALL).await;
    fs::create_dir(rig.dir.path().join("done")).unwrap();
    fs::copy(rig.path("a"), rig.dir.path().join("done/a")).unwrap();
    rig.restart().await;
    rig.release().await;
    assert!(!rig.path("a").exists());
    assert_eq!(fs::read_dir(rig.dir.path().join("done")).unwrap().count(), 1, "not twice");
}

#[tokio::test]
async fn a_move_goes_to_another_file_system() {
    let shm = Path::new("/dev/shm");
    let Ok(other) = tempfile::tempdir_in(shm) else {
        eprintln!("skipped: no {}", shm.display());
        return;
    };
    let mut rig = Rig::unborn(Codec::Text, |config| config.on_done = OnDone::Move(other.path().join("deep/done")));
    rig.begin().await;
    rig.put("a", "1\n", 60);
    rig.drain(ALL).await;
    rig.release().await;
    assert!(!rig.path("a").exists());
    assert_eq!(fs::read_to_string(other.path().join("deep/done/a")).unwrap(), "1\n");
    assert_eq!(fs::read_dir(other.path().join("deep/done")).unwrap().count(), 1, "no partial copy is left");
}

#[tokio::test]
async fn moving_into_the_folder_itself_is_refused() {
    let mut config = directory(Path::new("/nonexistent"));
    config.on_done = OnDone::Move(config.path.clone());
    assert!(DirectorySource::open(&model_source(&config, &Codec::Text), &config).is_err());
    config.on_done = OnDone::Keep;
    config.include = vec!["a{".to_owned()];
    let error = DirectorySource::open(&model_source(&config, &Codec::Text), &config).err().unwrap();
    assert!(error.to_string().contains("a{"), "{error}");
}

#[tokio::test]
async fn latest_leaves_out_what_is_there_at_the_origin_for_good() {
    let mut rig = Rig::unborn(Codec::Text, |config| config.start = Start::Latest);
    rig.put("old", "old\n", 60);
    rig.put("old2", "old2\n", 60);
    rig.begin().await;
    assert_eq!(rig.at[&shard()], Position::pair(2, 0));
    assert_eq!(rig.opens(), 0, "nothing is read for it");
    rig.put("new", "new\n", 30);
    assert_eq!(rig.drain_texts().await, ["new"]);
    rig.restart().await;
    fs::rename(rig.path("old"), rig.path("older")).unwrap();
    assert!(rig.drain_texts().await.is_empty());
    rig.put("old2", "changed\n", 20);
    assert_eq!(rig.drain_texts().await, ["changed"], "it came after the start");
}

#[tokio::test]
async fn earliest_begins_at_the_beginning_without_entries() {
    let rig = Rig::unborn(Codec::Text, |_| {});
    rig.put("a", "1\n", 60);
    let origin = rig.source.origin(&lane()).await.unwrap();
    assert_eq!((origin.positions[&shard()].as_str(), origin.entries.len()), ("0:0", 0));
    // A mark that does not know the source: it begins at its beginning.
    let adopted = rig.source.adopt(&lane(), &Positions::new(), &History::default()).await.unwrap();
    assert_eq!(adopted.new_shards[&shard()], Position::pair(0, 0));
}

#[tokio::test]
async fn a_file_touched_moved_or_grown_before_it_is_put_away_does_not_become_new() {
    let mut rig = Rig::with(Codec::Text, |config| {
        config.on_done = OnDone::Delete;
        config.on_changed = OnChanged::DeadLetter;
    })
    .await;
    for name in ["touched", "moved", "copied", "grown"] {
        rig.put(name, format!("{name}\n"), 60);
    }
    assert_eq!(rig.drain_texts().await.len(), 4);
    rig.age("touched", 30);
    fs::rename(rig.path("moved"), rig.path("moved2")).unwrap();
    fs::copy(rig.path("copied"), rig.path("copied2")).unwrap();
    fs::remove_file(rig.path("copied")).unwrap();
    rig.put("grown", "grown\nmore\n", 20);
    rig.restart().await;
    rig.release().await;
    let left: Vec<_> = fs::read_dir(&rig.config.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["grown"], "what was not all read is not taken away");
    let batch = rig.batch(ALL).await.unwrap();
    assert_eq!((batch.texts().len(), batch.rejects()), (0, vec![("4:0".to_owned(), "changed_file")]));
    rig.release().await;
    rig.restart().await;
    rig.release().await;
    assert!(rig.path("grown").exists());
    assert!(rig.batch(ALL).await.is_none());
}
