//! Which files are taken, when, in which order.

use super::*;

#[tokio::test]
async fn files_are_read_by_mtime_then_name_with_positions_and_their_name() {
    let mut rig = Rig::new().await;
    rig.put("b", "b1\nb2\n", 100);
    rig.put("c", "c1", 200);
    rig.put("a", "a1\n", 100);
    let mtime = fs::metadata(rig.path("b")).unwrap().modified().unwrap();
    fs::File::options().append(true).open(rig.path("a")).unwrap().set_modified(mtime).unwrap();
    let batch = rig.batch(ALL).await.unwrap();
    let got: Vec<_> = batch.records().into_iter().map(|r| (r.position, r.file, r.text)).collect();
    let want = [("0:0", "c", "c1"), ("1:0", "a", "a1"), ("2:0", "b", "b1"), ("2:3", "b", "b2")];
    assert_eq!(got, want.map(|(p, f, t)| (p.to_owned(), f.to_owned(), t.to_owned())));
    assert_eq!(batch.end(), "3:0");
    assert_eq!(batch.proposal.entries[&log()].len(), 3);
    assert!(rig.batch(ALL).await.is_none());
}

#[tokio::test]
async fn a_young_file_waits_for_settle_and_a_growing_one_longer() {
    let mut rig = Rig::with(Codec::Text, |config| config.settle = Duration::from_millis(200)).await;
    fs::write(rig.path("a"), "1\n").unwrap();
    assert!(rig.batch(ALL).await.is_none());
    tokio::time::sleep(Duration::from_millis(120)).await;
    fs::write(rig.path("a"), "1\n2\n").unwrap();
    assert!(rig.batch(ALL).await.is_none());
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert!(rig.batch(ALL).await.is_none(), "it grew 120 ms ago");
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert_eq!(rig.drain_texts().await, ["1", "2"]);
}

#[tokio::test]
async fn a_file_renamed_in_is_taken_at_once_and_wakes_the_loop() {
    let mut rig = Rig::with(Codec::Text, |config| config.settle = Duration::from_secs(3600)).await;
    rig.source.start().await.unwrap();
    // The first look puts the watch.
    let idle = tokio::time::timeout(Duration::from_millis(300), rig.source.event()).await;
    assert!(idle.is_err(), "nothing to do: {idle:?}");
    fs::write(rig.path("x.tmp"), "1\n").unwrap();
    fs::rename(rig.path("x.tmp"), rig.path("x")).unwrap();
    let event = tokio::time::timeout(Duration::from_secs(4), rig.source.event()).await.expect("the rename is a hint");
    assert_eq!(event.unwrap(), SourceEvent::Data);
    let proposal = rig.source.plan(&lane(), &rig.at, ALL).await.unwrap().unwrap();
    rig.commit(&proposal);
    assert_eq!(records(&rig.source.read(&lane(), &proposal).await.unwrap())[0].text, "1");
}

#[tokio::test]
async fn hidden_and_temporary_names_are_ignored_folders_too() {
    let mut rig = Rig::with(Codec::Text, |config| config.recursive = true).await;
    for folder in [".git", "_tmp", "day", "x.part"] {
        fs::create_dir(rig.path(folder)).unwrap();
        rig.put(&format!("{folder}/file"), folder, 60);
    }
    for name in [".hidden", "_SUCCESS", "a.tmp", "b.part", "c._COPYING_", "good"] {
        rig.put(name, name, 30);
    }
    assert_eq!(rig.drain_texts().await, ["day", "good"]);
}

#[tokio::test]
async fn include_exclude_and_recursive_choose_names() {
    let mut rig = Rig::with(Codec::Text, |config| {
        config.include = vec!["*.json".to_owned(), "logs/*.txt".to_owned()];
        config.exclude = vec!["bad*".to_owned()];
        config.recursive = true;
    })
    .await;
    fs::create_dir_all(rig.path("logs/deep")).unwrap();
    for name in ["a.json", "a.txt", "bad.json", "logs/l.txt", "logs/l.json", "logs/deep/d.txt", "logs/bad.txt"] {
        rig.put(name, name, 30);
    }
    let mut got = rig.drain_texts().await;
    got.sort();
    assert_eq!(got, ["a.json", "logs/l.json", "logs/l.txt"]);

    let mut flat = Rig::new().await;
    fs::create_dir(flat.path("sub")).unwrap();
    flat.put("sub/a", "sub", 30);
    flat.put("b", "top", 30);
    assert_eq!(flat.drain_texts().await, ["top"]);
}

#[tokio::test]
async fn links_to_files_are_followed_links_to_folders_are_not() {
    let mut rig = Rig::with(Codec::Text, |config| config.recursive = true).await;
    let outside = rig.dir.path().join("outside");
    fs::write(&outside, "linked").unwrap();
    symlink(&outside, rig.path("link")).unwrap();
    symlink(&rig.config.path, rig.path("loop")).unwrap();
    symlink(rig.path("nowhere"), rig.path("dangling")).unwrap();
    assert_eq!(rig.drain_texts().await, ["linked"]);
    // A folder that becomes a link is left; what was taken stays known.
    fs::create_dir(rig.path("day")).unwrap();
    rig.put("day/file", "once", 30);
    assert_eq!(rig.drain_texts().await, ["once"]);
    fs::rename(rig.path("day"), rig.dir.path().join("day")).unwrap();
    symlink(rig.dir.path().join("day"), rig.path("day")).unwrap();
    assert!(rig.drain_texts().await.is_empty());
}

#[tokio::test]
async fn odd_names_are_kept_and_names_that_are_no_text_are_left_out() {
    use std::os::unix::ffi::OsStrExt;
    let mut rig = Rig::new().await;
    let names = ["new\nline", "täglich 日本 🌊", "quote\"back\\slash"];
    for name in names {
        rig.put(name, name.replace('\n', "_"), 30);
    }
    fs::write(rig.config.path.join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), "no").unwrap();
    let mut files: Vec<_> = rig.drain(ALL).await.into_iter().map(|record| record.file).collect();
    files.sort();
    let mut want = names.to_vec();
    want.sort_unstable();
    assert_eq!(files, want);
    rig.restart().await;
    assert!(rig.batch(ALL).await.is_none(), "the names survive the log");
}

#[tokio::test]
async fn an_empty_file_is_accepted_without_records_and_read_when_it_is_filled() {
    let mut rig = Rig::new().await;
    rig.put("a", "", 60);
    let batch = rig.batch(ALL).await.unwrap();
    assert_eq!((batch.records().len(), batch.end().as_str()), (0, "1:0"));
    assert!(rig.batch(ALL).await.is_none());
    rig.put("a", "now\n", 30);
    assert_eq!(rig.drain_texts().await, ["now"]);
}

#[tokio::test]
async fn a_missing_folder_is_waited_for() {
    let mut rig = Rig::new().await;
    fs::remove_dir(&rig.config.path).unwrap();
    let error = rig.try_plan(ALL).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("waiting for it"), "{error}");
    fs::create_dir(&rig.config.path).unwrap();
    rig.put("a", "a", 30);
    assert_eq!(rig.drain_texts().await, ["a"]);
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_set_aside_and_the_others_go_on() {
    use std::os::unix::fs::PermissionsExt;
    let mut rig = Rig::new().await;
    rig.put("a", "a", 60);
    rig.put("b", "b", 30);
    fs::set_permissions(rig.path("a"), fs::Permissions::from_mode(0o0)).unwrap();
    if fs::File::open(rig.path("a")).is_ok() {
        eprintln!("skipped: this user may read everything");
        return;
    }
    assert_eq!(rig.drain_texts().await, ["b"]);
    rig.source.finish();
    assert_eq!(rig.source.event().await.unwrap(), SourceEvent::Data);
    let error = rig.try_plan(ALL).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("read a"), "{error}");
    fs::set_permissions(rig.path("a"), fs::Permissions::from_mode(0o600)).unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(rig.drain_texts().await, ["a"]);
}

#[tokio::test]
async fn finish_ends_when_what_was_there_is_planned_settled_or_not() {
    let mut rig = Rig::with(Codec::Text, |config| config.settle = Duration::from_millis(300)).await;
    rig.put("old", "old", 3_600);
    fs::write(rig.path("young"), "young").unwrap();
    rig.source.finish();
    let begun = std::time::Instant::now();
    let mut got = Vec::new();
    while rig.source.event().await.unwrap() != SourceEvent::End {
        while let Some(proposal) = rig.source.plan(&lane(), &rig.at, ALL).await.unwrap() {
            got.extend(records(&rig.source.read(&lane(), &proposal).await.unwrap()).into_iter().map(|r| r.text));
            rig.commit(&proposal);
        }
    }
    assert_eq!(got, ["old", "young"]);
    assert!(begun.elapsed() >= Duration::from_millis(300), "the young file settled first");
    fs::write(rig.path("later"), "later").unwrap();
    assert_eq!(rig.source.event().await.unwrap(), SourceEvent::End);
}

#[tokio::test]
async fn an_empty_folder_finishes_at_once() {
    let rig = Rig::new().await;
    rig.source.finish();
    assert_eq!(rig.source.event().await.unwrap(), SourceEvent::End);
}

#[tokio::test]
async fn lag_tells_bytes_and_age_of_what_waits() {
    let mut rig = Rig::new().await;
    rig.put("a", "1234567\n", 60);
    rig.put("b", "1234567\n", 30);
    let one = Budget { records: 1, bytes: 1 << 20 };
    rig.batch(one).await.unwrap();
    let lag = rig.source.lag(&rig.at);
    assert_eq!(lag.bytes, Some(8));
    assert!((29..35).contains(&lag.oldest.unwrap().as_secs()), "{lag:?}");
    rig.drain(ALL).await;
    assert_eq!(
        rig.source.lag(&rig.at),
        Lag { bytes: Some(0), oldest: Some(std::time::Duration::ZERO), ..Lag::default() }
    );
}
