//! Files that are touched, moved, copied, changed, or vanish.

use super::*;

const ONE: Budget = Budget { records: 1, bytes: 1 << 20 };

fn dead_letter(config: &mut Directory) {
    config.on_changed = OnChanged::DeadLetter;
}

fn lost(error: &SourceError) -> &str {
    match error {
        SourceError::Lost { what, .. } => what,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_touched_file_is_known_and_a_rewritten_one_is_new() {
    let mut rig = Rig::new().await;
    rig.put("a", "1\n2\n", 60);
    assert_eq!(rig.drain_texts().await, ["1", "2"]);
    rig.age("a", 30);
    assert!(rig.drain_texts().await.is_empty());
    let opens = rig.opens();
    assert!(rig.drain_texts().await.is_empty());
    assert_eq!(rig.opens(), opens, "a touch is hashed once");
    rig.put("a", "1\n3\n", 20);
    assert_eq!(rig.drain_texts().await, ["1", "3"], "the same size, other content");
    rig.restart().await;
    assert!(rig.drain_texts().await.is_empty());
}

#[tokio::test]
async fn a_moved_file_is_known_by_its_inode_or_its_content() {
    let mut rig = Rig::new().await;
    rig.put("a", "1\n", 60);
    rig.put("b", "2\n", 60);
    rig.drain(ALL).await;
    let opens = rig.opens();
    fs::rename(rig.path("a"), rig.path("a2")).unwrap();
    assert!(rig.drain_texts().await.is_empty());
    assert_eq!(rig.opens(), opens, "the inode says so");
    fs::copy(rig.path("b"), rig.path("b2")).unwrap();
    fs::remove_file(rig.path("b")).unwrap();
    assert!(rig.drain_texts().await.is_empty());
    rig.restart().await;
    assert!(rig.drain_texts().await.is_empty());
    // The way back, and a copy beside the original: that one is new.
    fs::rename(rig.path("a2"), rig.path("a")).unwrap();
    assert!(rig.drain_texts().await.is_empty());
    fs::copy(rig.path("a"), rig.path("c")).unwrap();
    assert_eq!(rig.drain_texts().await, ["1"]);
}

#[tokio::test]
async fn a_rotated_log_is_known_under_its_new_name() {
    let mut rig = Rig::new().await;
    rig.put("app.log", "old\n", 60);
    rig.drain(ALL).await;
    fs::rename(rig.path("app.log"), rig.path("app.log.1")).unwrap();
    rig.put("app.log", "new\n", 30);
    assert_eq!(rig.drain_texts().await, ["new"]);
    fs::rename(rig.path("app.log.1"), rig.path("app.log.2")).unwrap();
    fs::rename(rig.path("app.log"), rig.path("app.log.1")).unwrap();
    rig.put("app.log", "newer\n", 20);
    rig.restart().await;
    assert_eq!(rig.drain_texts().await, ["newer"]);
}

#[tokio::test]
async fn a_file_that_grew_stops_the_lane_or_is_one_dead_letter() {
    let mut rig = Rig::new().await;
    rig.put("a", "1\n", 60);
    rig.drain(ALL).await;
    rig.put("a", "1\n2\n", 30);
    rig.put("b", "b\n", 20);
    let error = rig.try_plan(ALL).await.unwrap_err();
    assert!(lost(&error).contains("a grew from 2 to 4 bytes"), "{error}");

    let mut rig = Rig::with(Codec::Text, dead_letter).await;
    rig.put("a", "1\n", 60);
    rig.drain(ALL).await;
    rig.put("a", "1\n2\n", 30);
    rig.put("b", "b\n", 20);
    let batch = rig.batch(ALL).await.unwrap();
    assert_eq!((batch.rejects(), batch.texts()), (vec![("1:0".to_owned(), "changed_file")], vec!["b".to_owned()]));
    rig.restart().await;
    assert!(rig.batch(ALL).await.is_none(), "one dead letter, once");
}

#[tokio::test]
async fn growth_behind_a_part_that_is_being_read_does_not_disturb_it() {
    let mut rig = Rig::with(Codec::Text, dead_letter).await;
    rig.put("a", "1\n2\n3", 60);
    let first = rig.batch(ONE).await.unwrap();
    rig.put("a", "1\n2\n345\n6\n", 30);
    let mut rest = Vec::new();
    let mut rejects = Vec::new();
    while let Some(batch) = rig.batch(ONE).await {
        rest.extend(batch.texts());
        rejects.extend(batch.rejects());
    }
    assert_eq!((first.texts(), rest), (vec!["1".to_owned()], vec!["2".to_owned(), "3".to_owned()]));
    assert_eq!(rejects, [("1:0".to_owned(), "changed_file")]);
}

#[tokio::test]
async fn a_file_that_is_being_read_is_found_where_it_was_moved() {
    for copied in [false, true] {
        let mut rig = Rig::new().await;
        rig.put("a", "1\n2\n3\n", 60);
        let first = rig.batch(ONE).await.unwrap();
        if copied {
            fs::copy(rig.path("a"), rig.path("z")).unwrap();
            fs::remove_file(rig.path("a")).unwrap();
            rig.restart().await;
        } else {
            fs::rename(rig.path("a"), rig.path("z")).unwrap();
        }
        let rest = rig.drain(ALL).await;
        assert_eq!(rest.iter().map(|r| r.text.as_str()).collect::<Vec<_>>(), ["2", "3"]);
        assert!(rest.iter().all(|record| record.file == "a"), "the name is the listed one, as in a replay");
        let again = rig.replay(&first.proposal).await.unwrap();
        assert_eq!(records(&again), first.records());
    }
}

#[tokio::test]
async fn a_part_read_file_that_vanished_or_changed_is_an_error_with_a_way_out() {
    for change in ["vanish", "rewrite", "shorten"] {
        let mut rig = Rig::new().await;
        rig.put("a", "1\n2\n3\n", 60);
        rig.batch(ONE).await.unwrap();
        let kept = fs::read(rig.path("a")).unwrap();
        match change {
            "vanish" => fs::remove_file(rig.path("a")).unwrap(),
            "rewrite" => rig.put("a", "1\n9\n3\n", 30),
            _ => rig.put("a", "1\n", 30),
        }
        let error = rig.try_plan(ALL).await.unwrap_err();
        assert!(
            matches!(&error, SourceError::Lost { way_out, .. } if way_out.contains("resolve --shard in --accept-loss")),
            "{error}"
        );
        // Put back as it was, it goes on.
        rig.put("a", kept, 10);
        assert_eq!(rig.drain_texts().await, ["2", "3"], "{change}");
    }
}

#[tokio::test]
async fn with_dead_letter_the_rest_of_a_lost_file_is_one_reject_and_stays_one() {
    for rewritten in [false, true] {
        let mut rig = Rig::with(Codec::Text, dead_letter).await;
        rig.put("a", "1\n2\n3\n", 60);
        rig.put("b", "b\n", 50);
        rig.batch(ONE).await.unwrap();
        fs::remove_file(rig.path("a")).unwrap();
        if rewritten {
            rig.put("a", "7\n8\n9\n", 40);
        }
        let batch = rig.batch(ALL).await.unwrap();
        assert_eq!(batch.rejects(), [("1:0".to_owned(), "changed_file")]);
        assert_eq!(batch.texts(), if rewritten { vec!["b", "7", "8", "9"] } else { vec!["b"] });
        // The file comes back: the plan that gave it up gives the same again, and the file is known or new, never both.
        fs::remove_file(rig.path("a")).ok();
        rig.put("a", "1\n2\n3\n", 20);
        rig.restart().await;
        let again = rig.replay(&batch.proposal).await;
        if !rewritten {
            let again = again.unwrap();
            assert_eq!((records(&again), again.rejects), (batch.records(), batch.raw.rejects));
        }
    }
}

#[tokio::test]
async fn a_replay_of_a_file_that_is_gone_is_an_error() {
    let mut rig = Rig::with(Codec::Text, dead_letter).await;
    rig.put("a", "1\n2\n", 60);
    let batch = rig.batch(ALL).await.unwrap();
    fs::remove_file(rig.path("a")).unwrap();
    assert!(lost(&rig.replay(&batch.proposal).await.unwrap_err()).contains("a is gone"));
    rig.put("a", "1\n3\n", 60);
    rig.restart().await;
    assert!(lost(&rig.replay(&batch.proposal).await.unwrap_err()).contains("other content"));
}

#[tokio::test]
async fn a_file_deleted_between_the_look_and_the_plan_is_nothing() {
    let mut rig = Rig::new().await;
    rig.put("a", "1\n", 60);
    rig.source.run(|state, inner| state.look(inner.board.take(), &inner.board)).await.unwrap();
    fs::remove_file(rig.path("a")).unwrap();
    assert!(rig.source.plan(&lane(), &rig.at, ALL).await.unwrap().is_none());
    assert!(rig.drain_texts().await.is_empty());
}

#[tokio::test]
async fn a_folder_without_any_of_its_listed_files_is_waited_for() {
    let mut rig = Rig::new().await;
    for i in 0..12 {
        rig.put(&format!("f{i:02}"), format!("{i}a\n{i}b\n"), 100 - i);
    }
    rig.batch(Budget { records: 23, bytes: 1 << 20 }).await.unwrap();
    let away = rig.dir.path().join("away");
    fs::rename(&rig.config.path, &away).unwrap();
    fs::create_dir(&rig.config.path).unwrap();
    let error = rig.try_plan(ALL).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("is it mounted?"), "{error}");
    fs::remove_dir(&rig.config.path).unwrap();
    fs::rename(&away, &rig.config.path).unwrap();
    assert_eq!(rig.drain_texts().await, ["11b"]);

    // All read, all cleaned by hand: new files on the same device go on; on another device they wait.
    for i in 0..12 {
        fs::remove_file(rig.path(&format!("f{i:02}"))).unwrap();
    }
    rig.put("new", "new\n", 10);
    assert_eq!(rig.drain_texts().await, ["new"]);
    fs::remove_file(rig.path("new")).unwrap();
    for entry in &mut rig.entries {
        let mut value: serde_json::Value = serde_json::from_str(&entry.text).unwrap();
        value["dev"] = (value["dev"].as_u64().unwrap() + 1).into();
        entry.text = value.to_string();
    }
    rig.restart().await;
    rig.put("newer", "newer\n", 5);
    let error = rig.try_plan(ALL).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("is it mounted?"), "{error}");
}
