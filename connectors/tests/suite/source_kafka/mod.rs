//! What is Kafka's own in the source: transactions, compaction, topics that are made again, groups. Against the real broker.

mod group;
mod leaderless;
mod lost;

use std::{
    collections::BTreeMap,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::sources::{
    ALL, SOON,
    kafka::{Topic, send},
    services,
};
use arrow::{
    array::{Array, AsArray},
    datatypes::{Int32Type, Int64Type, TimestampMicrosecondType},
};
use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, Producer},
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
        trigger: Duration::ZERO,
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
    // The first records are of 2023: no retention may take them.
    let Some(topic) = Topic::new(2, &[("retention.ms", "-1")]) else { return };
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
        // And not those that are gone: what the mark says of them is kept.
        later.delete();
        let begun = Instant::now();
        while life.plan().await.is_ok() {
            assert!(begun.elapsed() < SOON, "the topic is still there");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        life.adopt().await.unwrap();
        first.send_values(0, &numbers(4..6));
        assert_eq!(texts(&life.batch().await).first(), Some(&"4".to_owned()));
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

#[test]
fn keys_and_headers_that_are_kept_count_for_the_size_of_a_batch() {
    let Some(topic) = Topic::new(1, &[]) else { return };
    run(async {
        let (key, header) = (vec![b'k'; 500], "h".repeat(500));
        // An old one would be past the retention.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        for n in 0..20 {
            let headers = OwnedHeaders::new().insert(Header { key: "h", value: Some(header.as_str()) });
            topic.send_with_headers(0, &key, &n.to_string(), headers, i64::try_from(now.as_millis()).unwrap());
        }
        let life = Life::begin_with(topic.config(), &["key", "headers"]).await;
        let begun = Instant::now();
        while life
            .plan()
            .await
            .unwrap()
            .is_none_or(|plan| plan.spans.values().any(|span| span.to != Position::number(20)))
        {
            assert!(begun.elapsed() < SOON);
        }
        let plan = life.source.plan(&life.lane, &life.at, Budget { bytes: 5_500, ..ALL }).await.unwrap().unwrap();
        assert_eq!(plan.spans.values().next().unwrap().to, Position::number(5));
    });
}

#[test]
fn what_is_wrong_with_the_configuration_is_told_before_anything_is_read() {
    let Some(topic) = Topic::new(1, &[]) else { return };
    let kafka = services::kafka().unwrap();
    run(async {
        let check = async |config: KafkaSource| open_with(config, &[], false)?.check().await;
        let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let sasl = |mechanism: &str, password: &str| KafkaSource {
            brokers: kafka.sasl_brokers.clone(),
            properties: vec![
                set("security.protocol", "SASL_PLAINTEXT"),
                set("sasl.mechanism", mechanism),
                set("sasl.username", &kafka.sasl_user),
                set("sasl.password", password),
            ],
            ..topic.config()
        };
        check(topic.config()).await.unwrap();
        let tls = KafkaSource {
            brokers: kafka.tls_brokers.clone(),
            properties: vec![set("security.protocol", "SSL"), set("ssl.ca.location", &kafka.ca.display().to_string())],
            ..topic.config()
        };
        check(tls.clone()).await.unwrap();
        for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
            check(sasl(mechanism, &kafka.sasl_password)).await.unwrap();
            let begun = Instant::now();
            let error = check(sasl(mechanism, "wrong")).await.unwrap_err();
            assert!(!error.is_transient() && error.to_string().contains("do not accept the login"), "{error}");
            assert!(!error.to_string().contains("wrong"), "a password is never shown: {error}");
            assert!(
                error.to_string().contains("sasl.mechanism"),
                "nor is it known that the password is wrong: {error}"
            );
            assert!(begun.elapsed() < Duration::from_secs(9), "a wrong password is told at once");
        }
        let mut none = sasl("PLAIN", &kafka.sasl_password);
        none.properties.retain(|(name, _)| name != "sasl.mechanism");
        let error = check(none).await.unwrap_err();
        assert!(error.to_string().contains("set sasl.mechanism to PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"), "{error}");
        let error = check(KafkaSource { properties: tls.properties[..1].to_vec(), ..tls }).await.unwrap_err();
        assert!(error.to_string().contains("no TLS connection"), "{error}");
        // A port that wants TLS, by a client that does not speak it: at `validate --connect`, and at the start.
        let plain = KafkaSource { brokers: kafka.tls_brokers.clone(), ..topic.config() };
        let error = check(plain.clone()).await.unwrap_err();
        assert!(error.to_string().contains("do they want TLS there"), "{error}");
        let error = open_with(plain, &[], false).unwrap().origin(&Lane::single()).await.map(drop).unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("do they want TLS there"), "{error}");
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
