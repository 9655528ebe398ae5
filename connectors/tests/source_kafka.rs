//! What is Kafka's own in the source: transactions, compaction, topics that are made again, groups. Against the real broker.

#![allow(clippy::unwrap_used, missing_docs)]

#[allow(dead_code)]
mod sources;

use std::{
    collections::BTreeMap,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{Array, AsArray},
    datatypes::{Int32Type, Int64Type, TimestampMicrosecondType},
};
use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, Producer},
};
use sources::{
    ALL, SOON,
    kafka::{Topic, send},
    services,
};
use tidemill_checkpoint::{Lane, Position, Positions, Span, Spans, position::advance};
use tidemill_config::{self as config, Codec, KafkaSource, Located, OnLostOffsets, SourceKind, Start, Tombstones};
use tidemill_connectors::source::{
    self, Budget, History, Proposal, RawBatch, Settings, Source, SourceError, SourceEvent,
};

fn run(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(case);
}

fn open_with(kafka: KafkaSource, metadata: &[&str], partitioned: bool) -> Result<Arc<dyn Source>, SourceError> {
    let located = |text: &&str| Located { value: (*text).to_owned(), at: Default::default() };
    let config = config::Source {
        name: located(&"in"),
        formerly: None,
        kind: SourceKind::Kafka(kafka),
        codec: Codec::Json,
        schema: None,
        metadata: metadata.iter().map(located).collect(),
    };
    let settings = Settings {
        partitioned,
        spool: "unused".into(),
        owner: "me".to_owned(),
        job: "job".to_owned(),
        ahead_bytes: 1 << 20,
    };
    source::open(&config, &settings)
}

/// One lane with all partitions, from its origin on.
struct Life {
    source: Arc<dyn Source>,
    lane: Lane,
    at: Positions,
}

type Texts = Vec<String>;

fn texts(batch: &RawBatch) -> Texts {
    let of = |slice: &source::Slice| {
        (0..slice.records.len()).map(|n| String::from_utf8(slice.record(n).to_vec()).unwrap()).collect::<Vec<_>>()
    };
    batch.slices.iter().flat_map(of).collect()
}

impl Life {
    async fn begin(kafka: KafkaSource) -> Self {
        Self::begin_with(kafka, &[]).await
    }

    async fn begin_with(kafka: KafkaSource, metadata: &[&str]) -> Self {
        let source = open_with(kafka, metadata, false).unwrap();
        let lane = Lane::single();
        let at = source.origin(&lane).await.unwrap().positions;
        let life = Self { source, lane, at };
        life.adopt().await.unwrap();
        life.source.start().await.unwrap();
        life
    }

    async fn adopt(&self) -> Result<source::Adopted, SourceError> {
        self.source.adopt(&self.lane, &self.at, &History::default()).await
    }

    async fn plan(&self) -> Result<Option<Proposal>, SourceError> {
        self.source.plan(&self.lane, &self.at, ALL).await
    }

    /// Batches until they have `count` records, and the shard stands at `end`, of one partition.
    async fn read_until(&mut self, count: usize, end: u64) -> Texts {
        let begun = Instant::now();
        let mut all = Vec::new();
        while all.len() < count || !self.at.values().any(|at| *at == Position::number(end)) {
            assert!(begun.elapsed() < SOON, "{} of {count} records, at {:?} of {end}", all.len(), self.at);
            if let Some(proposal) = self.plan().await.unwrap() {
                let records = texts(&self.source.read(&self.lane, &proposal).await.unwrap());
                all.extend(records);
                self.at = advance(&self.at, &proposal.spans).unwrap();
                self.source.release(&self.lane, &self.at).await.unwrap();
            } else {
                self.event().await;
            }
        }
        assert_eq!(all.len(), count, "{all:?}");
        all
    }

    async fn event(&self) -> SourceEvent {
        tokio::time::timeout(SOON, self.source.event()).await.expect("an event").unwrap()
    }

    /// The next batch with records or rejects.
    async fn batch(&mut self) -> RawBatch {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < SOON, "no batch");
            if let Some(proposal) = self.plan().await.unwrap() {
                let batch = self.source.read(&self.lane, &proposal).await.unwrap();
                self.at = advance(&self.at, &proposal.spans).unwrap();
                if !batch.slices.is_empty() || !batch.rejects.is_empty() {
                    return batch;
                }
            } else {
                self.event().await;
            }
        }
    }

    /// A process that has read nothing yet reads these spans again.
    async fn replayed(kafka: KafkaSource, spans: &Spans) -> Result<Texts, SourceError> {
        let source = open_with(kafka, &[], false).unwrap();
        let proposal = Proposal { spans: spans.clone(), ..Proposal::default() };
        source.read(&Lane::single(), &proposal).await.map(|batch| texts(&batch))
    }

    /// From the origin `at` to where it stands.
    fn spans(&self, from: u64) -> Spans {
        let span = |at: &Position| Span { from: Position::number(from), to: at.clone() };
        self.at.iter().map(|(shard, at)| (shard.clone(), span(at))).collect()
    }
}

fn numbers(range: std::ops::Range<u32>) -> Texts {
    range.map(|n| n.to_string()).collect()
}

fn in_transaction(producer: &BaseProducer, topic: &Topic, values: &[String], commit: bool) {
    producer.begin_transaction().unwrap();
    send(producer, &topic.name, 0, values.iter().map(|value| (None, Some(value.as_str()))));
    if commit {
        producer.commit_transaction(SOON).unwrap();
    } else {
        producer.abort_transaction(SOON).unwrap();
    }
}

#[test]
fn markers_and_aborted_transactions_lie_inside_spans_and_give_no_records() {
    let Some(topic) = Topic::new(1, &[]) else { return };
    run(async {
        let mut life = Life::begin(topic.config()).await;
        let producer = topic.transactional();
        in_transaction(&producer, &topic, &numbers(0..10), true);
        // Ten records and a marker.
        assert_eq!(life.read_until(10, 11).await, numbers(0..10));
        // Nothing but what was aborted: the position passes it.
        in_transaction(&producer, &topic, &numbers(100..105), false);
        assert!(life.read_until(0, 17).await.is_empty());
        in_transaction(&producer, &topic, &numbers(100..103), false);
        in_transaction(&producer, &topic, &numbers(10..20), true);
        topic.send_values(0, &numbers(20..22));
        assert_eq!(life.read_until(12, 34).await, numbers(10..22));
        // The same once more, by another process, over the gaps; also spans that begin or end inside them.
        assert_eq!(Life::replayed(topic.config(), &life.spans(0)).await.unwrap(), numbers(0..22));
        assert_eq!(Life::replayed(topic.config(), &life.spans(13)).await.unwrap(), numbers(10..22));
        let mut spans = life.spans(0);
        spans.values_mut().for_each(|span| span.to = Position::number(15));
        assert_eq!(Life::replayed(topic.config(), &spans).await.unwrap(), numbers(0..10));
    });
}

#[test]
fn an_open_transaction_is_not_read_before_it_is_committed() {
    let Some(topic) = Topic::new(1, &[]) else { return };
    run(async {
        let mut life = Life::begin(topic.config()).await;
        let producer = topic.transactional();
        topic.send_values(0, &numbers(0..3));
        producer.begin_transaction().unwrap();
        send(&producer, &topic.name, 0, [(None, Some("3"))]);
        topic.send_values(0, &numbers(4..6));
        assert_eq!(life.read_until(3, 3).await, numbers(0..3));
        // What lies behind the open one waits, and `--once` does not.
        life.source.finish();
        while life.event().await != SourceEvent::End {
            assert!(life.plan().await.unwrap().is_none());
        }
        producer.commit_transaction(SOON).unwrap();
        let mut life = Life { source: open_with(topic.config(), &[], false).unwrap(), ..life };
        life.adopt().await.unwrap();
        assert_eq!(life.read_until(3, 7).await, numbers(3..6));
    });
}

#[test]
fn compaction_leaves_gaps_and_a_replay_gives_fewer_records_and_no_others() {
    let settings = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("min.compaction.lag.ms", "0"),
        ("max.compaction.lag.ms", "100"),
    ];
    let Some(topic) = Topic::new(1, &settings) else { return };
    run(async {
        let mut life = Life::begin(topic.config()).await;
        let keyed: Vec<_> = (0..40).map(|n| ((n % 4).to_string(), n.to_string())).collect();
        topic.send(0, keyed.iter().map(|(key, value)| (Some(key.as_str()), Some(value.as_str()))));
        let all = life.read_until(40, 40).await;
        let spans = life.spans(0);
        let begun = Instant::now();
        let mut after = 40;
        loop {
            // A segment is closed by a record that comes later.
            topic.send(0, [(Some("z"), Some("z"))]);
            after += 1;
            let replayed = Life::replayed(topic.config(), &spans).await.unwrap();
            assert!(replayed.iter().all(|text| all.contains(text)), "{replayed:?}");
            assert!(replayed.is_sorted_by_key(|text| text.parse::<u32>().unwrap()));
            if replayed.len() < all.len() {
                // The latest of each key is there.
                assert!(numbers(36..40).iter().all(|text| replayed.contains(text)), "{replayed:?}");
                break;
            }
            assert!(begun.elapsed() < 2 * SOON, "nothing was compacted");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        // Who reads it now goes over the gaps.
        let mut late = Life::begin(topic.config()).await;
        let begun = Instant::now();
        while late.at != BTreeMap::from([(late.at.keys().next().unwrap().clone(), Position::number(after))]) {
            assert!(begun.elapsed() < SOON, "{:?}", late.at);
            late.batch().await;
        }
    });
}

#[test]
fn metadata_columns_tell_of_each_record() {
    let Some(topic) = Topic::new(2, &[]) else { return };
    run(async {
        let names =
            ["key", "key_bytes", "topic", "partition", "offset", "timestamp", "headers", "tombstone", "position"];
        let mut life = Life::begin_with(topic.config(), &names).await;
        let headers = OwnedHeaders::new()
            .insert(Header { key: "a", value: Some("x") })
            .insert(Header { key: "b", value: Some(&[0xff_u8][..]) })
            .insert(Header { key: "a", value: Some("y") })
            .insert(Header { key: "c", value: None::<&str> });
        topic.send_with_headers(1, b"k\xc3\xa4", "first", headers, 1_700_000_000_123);
        topic.send_with_headers(1, b"\xff\x00", "second", OwnedHeaders::new(), 1_700_000_000_124);
        topic.send_values(1, &["third".to_owned()]);
        let mut slices = Vec::new();
        while slices.iter().map(|slice: &source::Slice| slice.records.len()).sum::<usize>() < 3 {
            slices.extend(life.batch().await.slices);
        }
        assert_eq!(slices.iter().map(|slice| slice.position(0)).next(), Some(Position::number(0)));
        let mut rows = Vec::new();
        for slice in &slices {
            let column = |name: &str| slice.columns.iter().find(|(column, _)| *column == name).unwrap().1.clone();
            for n in 0..slice.records.len() {
                let key = column("key");
                let key = key.as_string::<i32>();
                rows.push((
                    String::from_utf8(slice.record(n).to_vec()).unwrap(),
                    key.is_valid(n).then(|| key.value(n).to_owned()),
                    column("key_bytes").as_binary::<i32>().value(n).to_vec(),
                    column("topic").as_string::<i32>().value(n).to_owned(),
                    column("partition").as_primitive::<Int32Type>().value(n),
                    column("offset").as_primitive::<Int64Type>().value(n),
                    column("headers").as_string::<i32>().value(n).to_owned(),
                ));
            }
            let time = column("timestamp");
            if rows.len() == slice.records.len() {
                assert_eq!(time.as_primitive::<TimestampMicrosecondType>().value(0), 1_700_000_000_123_000);
                assert!(!column("tombstone").as_boolean().value(0));
            }
        }
        let name = || topic.name.clone();
        let headers = r#"{"a":["x","y"],"b":{"base64":"/w=="},"c":null}"#.to_owned();
        let first = ("first".to_owned(), Some("kä".to_owned()), b"k\xc3\xa4".to_vec(), name(), 1, 0, headers);
        assert_eq!(rows[0], first);
        assert_eq!((rows[1].1.clone(), rows[1].2.clone(), rows[1].5), (None, b"\xff\x00".to_vec(), 1));
        assert_eq!((rows[2].0.clone(), rows[2].5, rows[2].6.clone()), ("third".to_owned(), 2, String::new()));
    });
}

#[test]
fn records_without_a_value_are_rejected_left_out_or_kept() {
    let Some(topic) = Topic::new(1, &[]) else { return };
    run(async {
        topic.send(0, [(Some("a"), Some("1")), (Some("a"), None), (Some("b"), Some("")), (Some("c"), Some("2"))]);
        for (says, records, rejects) in [
            (Tombstones::Reject, vec!["1", "", "2"], 1),
            (Tombstones::Skip, vec!["1", "", "2"], 0),
            (Tombstones::Keep, vec!["1", "", "", "2"], 0),
        ] {
            let mut life = Life::begin(KafkaSource { tombstones: says, ..topic.config() }).await;
            let batch = life.batch().await;
            assert_eq!(
                (texts(&batch), batch.rejects.len()),
                (records.iter().map(ToString::to_string).collect(), rejects)
            );
            assert_eq!(life.at.values().next(), Some(&Position::number(4)));
            if says == Tombstones::Reject {
                assert_eq!(
                    (&*batch.rejects[0].reason, &batch.rejects[0].position),
                    ("tombstone", &Position::number(1))
                );
            }
            if says == Tombstones::Keep {
                let (_, tombstones) = batch.slices[0].columns.iter().find(|(name, _)| *name == "tombstone").unwrap();
                let tombstones: Vec<_> = tombstones.as_boolean().iter().flatten().collect();
                assert_eq!(tombstones, [false, true, false, false]);
            }
        }
    });
}

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
            assert!(adopted.warnings[0].contains(&format!("go on at {from}")), "{:?}", adopted.warnings);
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

/// A topic's name is free a moment after it was deleted.
async fn make_again(topic: &Topic) {
    let begun = Instant::now();
    while std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| topic.make(1, &[]))).is_err() {
        assert!(begun.elapsed() < SOON, "the topic cannot be made again");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[test]
fn partitions_that_are_added_are_read_from_their_beginning() {
    let Some(topic) = Topic::new(1, &[]) else { return };
    run(async {
        let mut life = Life::begin(KafkaSource { start: Start::Latest, ..topic.config() }).await;
        topic.send_values(0, &numbers(0..5));
        life.read_until(5, 5).await;
        topic.add_partitions(3);
        let begun = Instant::now();
        // The producer hears of them a little later too.
        topic.send_values(2, &numbers(5..8));
        let mut read = Vec::new();
        while read.len() < 3 {
            assert!(begun.elapsed() < SOON);
            read.extend(texts(&life.batch().await));
        }
        assert_eq!(read, numbers(5..8));
        let standing: Vec<_> = life.at.iter().map(|(shard, at)| (shard.part().to_owned(), at.to_string())).collect();
        assert!(standing.iter().any(|(shard, at)| shard.contains("/2@") && at == "3"), "{standing:?}");
    });
}

#[test]
fn topics_of_a_pattern_are_read_also_those_that_come_later() {
    let Some(first) = Topic::new(1, &[]) else { return };
    run(async {
        let pattern = format!("^{}(-later)?$", first.name);
        let topics = vec![Located { value: pattern, at: Default::default() }];
        let mut life = Life::begin(KafkaSource { topics, ..first.config() }).await;
        first.send_values(0, &numbers(0..2));
        life.read_until(2, 2).await;
        let later = Topic::at(&first.brokers, &format!("{}-later", first.name), 1, &[]);
        let _other = Topic::at(&first.brokers, &format!("{}-other", first.name), 1, &[]);
        later.send_values(0, &numbers(2..4));
        assert_eq!(life.read_until(2, 2).await, numbers(2..4));
        assert_eq!(life.at.len(), 2, "{:?}", life.at);
    });
}

#[test]
fn every_partition_has_its_share_of_a_batch_and_what_one_leaves_is_for_the_others() {
    let Some(topic) = Topic::new(3, &[]) else { return };
    run(async {
        topic.send_values(0, &numbers(0..1000));
        topic.send_values(1, &numbers(0..10));
        let life = Life::begin(topic.config()).await;
        // Until all is read ahead.
        let begun = Instant::now();
        loop {
            let all = life.plan().await.unwrap();
            if let Some(all) = all.filter(|all| all.spans.len() == 2)
                && texts(&life.source.read(&life.lane, &all).await.unwrap()).len() == 1010
            {
                break;
            }
            assert!(begun.elapsed() < SOON);
        }
        let budget = Budget { records: 300, ..ALL };
        let plan = life.source.plan(&life.lane, &life.at, budget).await.unwrap().unwrap();
        let taken: Vec<_> = plan.spans.values().map(|span| span.to.as_number().unwrap()).collect();
        assert_eq!(taken, [290, 10]);
    });
}

/// Kafka's own tool, which sees what a person at a monitor sees.
fn group_says(group: &str) -> BTreeMap<i32, (String, String)> {
    let kafka = services::kafka().unwrap();
    let said = kafka.tool(services::Kafka::GROUPS, &["--describe", "--group", group]);
    let row = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words.len() > 5 && words[0] == group)
            .then(|| Some((words[2].parse().ok()?, (words[3].to_owned(), words[5].to_owned()))))
            .flatten()
    };
    said.lines().filter_map(row).collect()
}

#[test]
fn the_groups_offsets_are_those_that_every_sink_has() {
    let Some(topic) = Topic::new(1, &[]) else { return };
    run(async {
        let group = topic.config().group.unwrap();
        let mut life = Life::begin(topic.config()).await;
        let producer = topic.transactional();
        in_transaction(&producer, &topic, &numbers(0..10), true);
        life.read_until(10, 11).await;
        topic.send_values(0, &numbers(10..15));
        // Planned and read, and not released.
        let begun = Instant::now();
        while life.plan().await.unwrap().is_none() {
            assert!(begun.elapsed() < SOON);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let begun = Instant::now();
        loop {
            let said = group_says(&group);
            if said.get(&0) == Some(&("11".to_owned(), "5".to_owned())) {
                break;
            }
            assert!(begun.elapsed() < SOON, "{said:?}");
        }
        life.read_until(5, 16).await;
        // The last offsets are written when the source ends, at the latest.
        drop(life);
        assert_eq!(group_says(&group).get(&0), Some(&("16".to_owned(), "0".to_owned())));
    });
}

/// The lanes that a member has, and what it does with what the group says.
struct Member {
    source: Arc<dyn Source>,
    lanes: Vec<Lane>,
    revoked: usize,
    lost: usize,
}

impl Member {
    async fn join(kafka: &KafkaSource) -> Self {
        let source = open_with(kafka.clone(), &[], true).unwrap();
        source.start().await.unwrap();
        Self { source, lanes: Vec::new(), revoked: 0, lost: 0 }
    }

    /// What happens within the time.
    async fn live(&mut self, time: Duration) {
        let Ok(event) = tokio::time::timeout(time, self.source.event()).await else { return };
        match event.unwrap() {
            SourceEvent::Assigned(lanes) => self.lanes.extend(lanes),
            SourceEvent::Revoked(lanes, limit) => {
                assert!(limit >= Duration::from_secs(1));
                for lane in lanes {
                    self.lanes.retain(|one| *one != lane);
                    self.source.let_go(&lane).await;
                    self.revoked += 1;
                }
            }
            SourceEvent::Lost(lanes) => {
                self.lanes.retain(|one| !lanes.contains(one));
                self.lost += lanes.len();
            }
            SourceEvent::Data | SourceEvent::End => {}
        }
    }
}

#[test]
fn partitions_are_lanes_that_the_group_moves_between_its_members() {
    let Some(topic) = Topic::new(4, &[]) else { return };
    run(async {
        let mut kafka = topic.config();
        kafka.properties = vec![("session.timeout.ms".to_owned(), "6000".to_owned())];
        let mut first = Member::join(&kafka).await;
        let begun = Instant::now();
        while first.lanes.len() < 4 {
            first.live(Duration::from_millis(100)).await;
            assert!(begun.elapsed() < SOON, "{:?}", first.lanes);
        }
        let lane = Lane::new(&format!("in/{}/0", topic.name));
        assert!(first.lanes.contains(&lane), "{:?}", first.lanes);
        let mut second = Member::join(&kafka).await;
        while (first.lanes.len(), second.lanes.len()) != (2, 2) {
            first.live(Duration::from_millis(50)).await;
            second.live(Duration::from_millis(50)).await;
            assert!(begun.elapsed() < SOON, "{:?} {:?}", first.lanes, second.lanes);
        }
        // Those that stayed were not taken away.
        assert_eq!((first.revoked, first.lost, second.revoked), (2, 0, 0));
        // A lane is read by whom it was given to.
        let mine = second.lanes[0].clone();
        let number: i32 = mine.as_str().rsplit('/').next().unwrap().parse().unwrap();
        let at = second.source.origin(&mine).await.unwrap().positions;
        assert_eq!(at.len(), 1);
        second.source.adopt(&mine, &at, &History::default()).await.unwrap();
        topic.send_values(number, &numbers(0..3));
        let begun = Instant::now();
        let plan = loop {
            if let Some(plan) = second.source.plan(&mine, &at, ALL).await.unwrap() {
                break plan;
            }
            second.live(Duration::from_millis(50)).await;
            assert!(begun.elapsed() < SOON);
        };
        assert_eq!(texts(&second.source.read(&mine, &plan).await.unwrap()), numbers(0..3));
        second.source.release(&mine, &advance(&at, &plan.spans).unwrap()).await.unwrap();
        // One that leaves gives them back at once, and its offsets are those of the group.
        second.source.stop().await;
        let begun = Instant::now();
        while first.lanes.len() < 4 {
            first.live(Duration::from_millis(100)).await;
            assert!(begun.elapsed() < SOON, "{:?}", first.lanes);
        }
        let said = group_says(&kafka.group.unwrap());
        assert_eq!(said.get(&number), Some(&("3".to_owned(), "0".to_owned())), "{said:?}");
        assert!(first.source.plan(&mine, &at, ALL).await.unwrap_err().is_transient(), "it is not adopted");
    });
}

/// A member that is not let go in time loses the lane all the same.
#[test]
fn a_lane_that_is_not_let_go_goes_when_the_limit_is_over() {
    let Some(topic) = Topic::new(2, &[]) else { return };
    run(async {
        let mut kafka = topic.config();
        let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        kafka.properties = vec![set("session.timeout.ms", "6000"), set("max.poll.interval.ms", "6000")];
        let mut first = Member::join(&kafka).await;
        let begun = Instant::now();
        while first.lanes.len() < 2 {
            first.live(Duration::from_millis(100)).await;
            assert!(begun.elapsed() < SOON);
        }
        let mut second = Member::join(&kafka).await;
        while second.lanes.is_empty() {
            second.live(Duration::from_millis(100)).await;
            assert!(begun.elapsed() < SOON);
        }
        assert_eq!(second.lanes.len(), 1);
    });
}

#[test]
fn what_is_wrong_with_the_configuration_is_told_before_anything_is_read() {
    let Some(topic) = Topic::new(1, &[]) else { return };
    let kafka = services::kafka().unwrap();
    run(async {
        let check = async |config: KafkaSource| open_with(config, &[], false)?.check().await;
        let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let sasl = |password: &str| KafkaSource {
            brokers: kafka.sasl_brokers.clone(),
            properties: vec![
                set("security.protocol", "SASL_PLAINTEXT"),
                set("sasl.mechanism", "PLAIN"),
                set("sasl.username", &kafka.sasl_user),
                set("sasl.password", password),
            ],
            ..topic.config()
        };
        check(topic.config()).await.unwrap();
        check(sasl(&kafka.sasl_password)).await.unwrap();
        let tls = KafkaSource {
            brokers: kafka.tls_brokers.clone(),
            properties: vec![set("security.protocol", "SSL"), set("ssl.ca.location", &kafka.ca.display().to_string())],
            ..topic.config()
        };
        check(tls.clone()).await.unwrap();
        let begun = Instant::now();
        let error = check(sasl("wrong")).await.unwrap_err();
        assert!(!error.is_transient() && error.to_string().contains("do not accept the login"), "{error}");
        assert!(!error.to_string().contains("wrong"), "a password is never shown: {error}");
        assert!(begun.elapsed() < Duration::from_secs(9), "a wrong password is told at once");
        let error = check(KafkaSource { properties: tls.properties[..1].to_vec(), ..tls }).await.unwrap_err();
        assert!(error.to_string().contains("no TLS connection"), "{error}");
        let missing = Located { value: "no-such-topic".to_owned(), at: Default::default() };
        let error = check(KafkaSource { topics: vec![missing], ..topic.config() }).await.unwrap_err();
        assert!(error.to_string().contains("there is no topic no-such-topic: make it, or correct `topics`"), "{error}");
        let unreachable = KafkaSource { brokers: "127.0.0.1:1".to_owned(), ..topic.config() };
        let error = check(unreachable).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("no broker can be reached"), "{error}");
        let wrong = KafkaSource { properties: vec![set("no.such.property", "1")], ..topic.config() };
        let error = check(wrong).await.unwrap_err();
        assert!(error.to_string().contains("no.such.property"), "{error}");
    });
}
