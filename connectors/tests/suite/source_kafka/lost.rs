//! Records that are gone: expired, overtaken, in a topic that was made again.

use super::*;

fn lost_text<T: std::fmt::Debug>(result: Result<T, SourceError>, shard: &str) -> String {
    let error = result.unwrap_err();
    assert!(matches!(error, SourceError::Lost { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&format!("`tidemill checkpoint resolve --shard {shard} --accept-loss`")), "{text}");
    text
}

#[test]
fn offsets_that_are_gone_stop_the_lane_or_it_goes_on_where_the_job_says() {
    let Some(topic) = Topic::new(1, &[]) else { return };
    run(async {
        let mut life = Life::begin(topic.config()).await;
        topic.send_values(0, &numbers(0..10));
        life.read_until(10, 10).await;
        let (shard, at) = (life.at.keys().next().unwrap().to_string(), life.at.clone());
        topic.send_values(0, &numbers(10..30));
        topic.delete_records(0, 20);
        drop(life);
        let life = |says| Life {
            source: open_with(KafkaSource { on_lost_offsets: says, ..topic.config() }, &[], false).unwrap(),
            lane: Lane::single(),
            at: at.clone(),
        };
        let stopped = life(OnLostOffsets::Stop);
        let text = lost_text(stopped.adopt().await, &shard);
        assert!(text.contains("begins at offset 20 now, and 10 records before it, from 10 on"), "{text}");
        let text = lost_text(Life::replayed(topic.config(), &stopped_span(&at)).await, &shard);
        assert!(text.contains("20 to 30"), "{text}");
        for (says, from, count) in [(OnLostOffsets::Earliest, 20, 10), (OnLostOffsets::Latest, 31, 0)] {
            let mut life = life(says);
            let adopted = life.adopt().await.unwrap();
            let word = if says == OnLostOffsets::Earliest { "earliest" } else { "latest" };
            assert_eq!(
                adopted.warnings,
                [format!(
                    "{}/0 begins at offset 20 now, and 10 records before it, from 10 on, were not read: its retention is shorter \
                     than the time that the job was away. As `on_lost_offsets: {word}` says, the job goes on at offset {from}",
                    topic.name
                )]
            );
            topic.send_values(0, &["end".to_owned()]);
            let mut read = Vec::new();
            while read.last().is_none_or(|text| text != "end") {
                read.extend(texts(&life.batch().await));
            }
            let ends = read.iter().filter(|text| *text == "end").count();
            assert_eq!(read.len() - ends, count, "{read:?}");
        }
    });
}

/// A lane that is stopped is read by nobody, and what waits in it is told all the same.
#[test]
fn records_that_wait_in_a_stopped_lane_are_counted() {
    for partitioned in [false, true] {
        let Some(topic) = Topic::new(1, &[]) else { return };
        run(async {
            topic.send_values(0, &numbers(0..30));
            let source = open_with(topic.config(), &[], partitioned).unwrap();
            source.start().await.unwrap();
            let lane = if partitioned { Lane::new(&format!("in/{}/0", topic.name)) } else { Lane::single() };
            if partitioned {
                let event = tokio::time::timeout(SOON, source.event()).await.unwrap().unwrap();
                assert_eq!(event, SourceEvent::Assigned(vec![lane.clone()]));
            }
            let mut at = source.origin(&lane).await.unwrap().positions;
            at.values_mut().for_each(|at| *at = Position::number(10));
            topic.delete_records(0, 20);
            let stopped = Life { source, lane, at };
            stopped.adopt().await.unwrap_err();
            let lag = async |wanted: u64| {
                let begun = Instant::now();
                while stopped.source.lag(&stopped.at).records != Some(wanted) {
                    assert!(begun.elapsed() < SOON, "{:?}, not {wanted}", stopped.source.lag(&stopped.at).records);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            lag(10).await;
            topic.send_values(0, &numbers(0..5));
            lag(15).await;
        });
    }
}

fn stopped_span(at: &Positions) -> Spans {
    let span = |from: &Position| Span { from: from.clone(), to: Position::number(25) };
    at.iter().map(|(shard, at)| (shard.clone(), span(at))).collect()
}

/// Offsets that go while the reader is behind: what it has is used, and then it stops.
#[test]
fn a_reader_that_is_overtaken_by_the_retention_stops() {
    let Some(topic) = Topic::new(1, &[]) else { return };
    run(async {
        let life = Life::begin(topic.config()).await;
        let shard = life.at.keys().next().unwrap().to_string();
        topic.send_values(0, &numbers(0..10));
        topic.delete_records(0, 5);
        // Behind what was fetched perhaps: put back, it has to ask.
        let begun = Instant::now();
        let lost = loop {
            match life.plan().await {
                Err(error) => break error,
                Ok(Some(proposal)) => {
                    // It was quicker: from its beginning then.
                    assert!(texts(&life.source.read(&life.lane, &proposal).await.unwrap()).contains(&"5".to_owned()));
                    break life.adopt().await.unwrap_err();
                }
                Ok(None) => assert!(begun.elapsed() < SOON, "nothing came"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        lost_text::<()>(Err(lost), &shard);
    });
}

#[test]
fn a_topic_that_was_made_again_is_another_one() {
    let Some(topic) = Topic::new(1, &[]) else { return };
    run(async {
        let mut life = Life::begin(topic.config()).await;
        topic.send_values(0, &numbers(0..10));
        life.read_until(10, 10).await;
        let shard = life.at.keys().next().unwrap().to_string();
        topic.delete();
        // It is gone: that may pass, and says what is missing.
        let begun = Instant::now();
        let error = loop {
            match life.adopt().await {
                Err(error) => break error,
                Ok(_) => assert!(begun.elapsed() < SOON, "the topic is still there"),
            }
        };
        assert!(error.is_transient() && error.to_string().contains("there is no topic"), "{error}");
        make_again(&topic).await;
        topic.send_values(0, &numbers(100..130));
        // Found out while it runs, though the new one has the old offsets too ...
        let begun = Instant::now();
        let error = loop {
            match life.plan().await {
                Err(error @ SourceError::Lost { .. }) => break error,
                Err(error) => assert!(error.is_transient(), "{error}"),
                Ok(None) => {}
                Ok(Some(plan)) => panic!("records of the new topic as those of the old one: {:?}", plan.spans),
            }
            assert!(begun.elapsed() < SOON, "it was not found out");
            tokio::task::yield_now().await;
        };
        assert!(error.to_string().contains("was deleted and made again"), "{error}");
        // ... and when a lane is adopted, and when a plan is read again.
        let text = lost_text(life.adopt().await, &shard);
        assert!(text.contains("was deleted and made again"), "{text}");
        lost_text(Life::replayed(topic.config(), &life.spans(0)).await, &shard);
        // The way out: the shard is taken out of the mark. Another begins at its beginning.
        let mut after = Life { at: Positions::new(), ..Life::begin(topic.config()).await };
        let adopted = after.adopt().await.unwrap();
        assert_eq!(adopted.new_shards.len(), 1);
        assert_eq!(texts(&after.batch().await).first(), Some(&"100".to_owned()));
        // Or the job says it.
        for (says, first) in [(OnLostOffsets::Earliest, "100"), (OnLostOffsets::Latest, "new")] {
            let source = open_with(KafkaSource { on_lost_offsets: says, ..topic.config() }, &[], false).unwrap();
            let mut life = Life { source, lane: Lane::single(), at: life.at.clone() };
            let adopted = life.adopt().await.unwrap();
            assert!(adopted.warnings[0].contains("made again"), "{:?}", adopted.warnings);
            topic.send_values(0, &["new".to_owned()]);
            assert_eq!(texts(&life.batch().await).first(), Some(&first.to_owned()), "{says:?}");
        }
    });
}

#[test]
fn a_topic_that_was_made_again_stops_its_own_lane_alone() {
    let (Some(one), Some(other)) = (Topic::new(1, &[]), Topic::new(1, &[])) else { return };
    run(async {
        let topics = [&one, &other].map(|topic| topic.config().topics.remove(0)).to_vec();
        let source = open_with(KafkaSource { topics, ..one.config() }, &[], true).unwrap();
        let mut lanes = Vec::new();
        for topic in [&one, &other] {
            let lane = Lane::new(&format!("in/{}/0", topic.name));
            let at = source.origin(&lane).await.unwrap().positions;
            let life = Life { source: source.clone(), lane, at };
            life.adopt().await.unwrap();
            lanes.push(life);
        }
        one.delete();
        make_again(&one).await;
        one.send_values(0, &numbers(0..3));
        let begun = Instant::now();
        while !matches!(lanes[0].plan().await, Err(SourceError::Lost { .. })) {
            assert!(begun.elapsed() < SOON, "it was not found out");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        other.send_values(0, &numbers(0..3));
        let batch = tokio::time::timeout(SOON, lanes[1].batch()).await.expect("the other lane goes on");
        assert_eq!(texts(&batch).first(), Some(&"0".to_owned()));
    });
}

/// A topic's name is free a moment after it was deleted.
async fn make_again(topic: &Topic) {
    let begun = Instant::now();
    while std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| topic.make(1, &[]))).is_err() {
        assert!(begun.elapsed() < SOON, "the topic cannot be made again");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
