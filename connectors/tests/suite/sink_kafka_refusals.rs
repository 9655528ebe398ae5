//! What a topic refuses: a row is to blame, or the topic, and nothing is tried for ever.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray},
    datatypes::SchemaRef,
};
use rdkafka::{
    Message,
    admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier},
    client::DefaultClientContext,
    message::OwnedMessage,
    producer::{BaseProducer, BaseRecord, Producer},
};
use tidemill_checkpoint::{Lane, Permit, Receipt, SinkId};
use tidemill_config::{Guarantee, KafkaCompression, KafkaSink, SinkKind};
use tidemill_connectors::sink::{self, Sink, SinkError, SinkReject};

use crate::sinks::{kafka::column, *};

const LIMIT: Duration = Duration::from_secs(60);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn open(config: KafkaSink) -> Arc<dyn Sink> {
    sink::open(id(Kind::Kafka), "job", &SinkKind::Kafka(config)).unwrap()
}

/// Sets a topic's configuration.
async fn configure(topic: &str, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> = kafka::client(&services::kafka().unwrap().brokers).create().unwrap();
    let altered =
        AlterConfig { specifier: ResourceSpecifier::Topic(topic), entries: settings.iter().copied().collect() };
    let answer = admin.alter_configs([&altered], &AdminOptions::new()).await.unwrap();
    answer.into_iter().for_each(|one| drop(one.unwrap()));
}

/// Waits until the topic takes no such record any more.
async fn until_refused(topic: &str, bytes: usize) {
    let producer: BaseProducer = kafka::client(&services::kafka().unwrap().brokers).create().unwrap();
    let refused = std::sync::atomic::AtomicBool::new(false);
    let value = "x".repeat(bytes);
    let began = Instant::now();
    while !refused.load(std::sync::atomic::Ordering::Relaxed) {
        assert!(began.elapsed() < LIMIT, "{topic} still takes it");
        let before = kafka::records(&services::kafka().unwrap().brokers, topic).len();
        producer.send(BaseRecord::<str, str>::to(topic).payload(&value)).map_err(|(error, _)| error).unwrap();
        producer.flush(LIMIT).unwrap();
        let after = kafka::records(&services::kafka().unwrap().brokers, topic).len();
        refused.store(before == after, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Ids, texts and flags.
fn rows(of: &[(Option<i64>, &str, Option<bool>)]) -> RecordBatch {
    let columns: [(&str, ArrayRef); 3] = [
        ("id", Arc::new(of.iter().map(|(id, ..)| *id).collect::<Int64Array>())),
        ("text", Arc::new(StringArray::from_iter_values(of.iter().map(|(_, text, _)| text)))),
        ("gone", Arc::new(of.iter().map(|(.., gone)| *gone).collect::<BooleanArray>())),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true))).unwrap()
}

fn schema() -> SchemaRef {
    rows(&[]).schema()
}

/// A lane of a sink that is prepared for the rows: what the topic is configured to is known as it was then.
async fn prepared(sink: Arc<dyn Sink>) -> Runner {
    let (key, head) = sink.claim(&Lane::single(), generation(1), &owner(1)).await.unwrap();
    let mut runner = Runner { sink, key, head };
    runner.run(0).await.unwrap();
    runner.sink.prepare(&schema()).await.unwrap();
    runner
}

/// Commits rows as the runner's next batch.
async fn put(runner: &mut Runner, rows: &RecordBatch) -> Result<Receipt, SinkError> {
    let head = runner.head.clone().unwrap();
    let (mark, _) = next(&runner.key, &head, &[], 0);
    let staged = runner.sink.stage(&context(&runner.key, &mark, false), std::slice::from_ref(rows)).await.unwrap();
    let permit = Permit::anchor(runner.key.clone(), Some(head.digest), mark.clone(), Vec::new());
    let receipt = runner.sink.commit(vec![(permit, staged)]).await.pop().unwrap();
    if receipt.is_ok() {
        runner.head = Some(mark);
    }
    receipt
}

async fn rejects(dir: &Path) -> Vec<(u64, String)> {
    let found: Vec<SinkReject> = open(kafka::config(dir)).rejects(&Lane::single(), 0).await.unwrap();
    found.into_iter().map(|reject| (reject.row, reject.reason)).collect()
}

/// Keys and values of the topic, in order of their keys.
fn found(dir: &Path) -> Vec<(String, Option<usize>)> {
    let text = |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
    let shown = |message: &OwnedMessage| Some((text(message.key())?, message.payload().map(<[u8]>::len)));
    let mut found: Vec<_> = kafka::records(&kafka::brokers(dir), &kafka::topic(dir)).iter().filter_map(shown).collect();
    found.sort();
    found
}

fn keys(dir: &Path) -> Vec<String> {
    found(dir).into_iter().map(|(key, _)| key).collect()
}

/// `delete_when` says that each record speaks of its key, and so does a compacted topic.
#[test]
fn a_null_key_is_a_reject_where_records_speak_of_their_keys() {
    let Some(_) = services::kafka() else { return };
    let given =
        rows(&[(Some(1), "a", Some(false)), (None, "b", Some(true)), (Some(3), "c", Some(true)), (None, "d", None)]);
    let expected = [(1, "null_key".to_owned()), (3, "null_key".to_owned())];
    runtime().block_on(async {
        for (compacted, delete_when) in [(false, true), (true, true), (true, false)] {
            let dir = tempfile::tempdir().unwrap();
            let delete_when = delete_when.then(|| column("gone"));
            let config = KafkaSink { key: Some(column("id")), delete_when, ..kafka::config(dir.path()) };
            if compacted {
                configure(&config.topic, &[("cleanup.policy", "compact")]).await;
            }
            open(config.clone()).check(Some(&schema())).await.unwrap();
            let mut runner = prepared(open(config)).await;
            put(&mut runner, &given).await.unwrap();
            assert_eq!(rejects(dir.path()).await, expected, "{compacted}");
            assert_eq!(keys(dir.path()), ["1", "3"]);
        }
    });
}

/// The same where nobody may see how the topic is configured: the brokers' refusal comes down to the rows.
#[test]
fn null_keys_that_only_the_brokers_refuse_are_rejects_too() {
    let Some(_) = services::kafka() else { return };
    runtime().block_on(async {
        for others in [0, 40] {
            let dir = tempfile::tempdir().unwrap();
            let config = KafkaSink { key: Some(column("id")), ..kafka::config(dir.path()) };
            let topic = config.topic.clone();
            let mut runner = prepared(open(config)).await;
            configure(&topic, &[("cleanup.policy", "compact,delete")]).await;
            until_refused(&topic, 1).await;
            let of: Vec<_> =
                (0..others).map(|id| (Some(id), "x", None)).chain([(None, "b", None), (None, "c", None)]).collect();
            put(&mut runner, &rows(&of)).await.unwrap();
            let first = others.unsigned_abs();
            let expected = [(first, "null_key".to_owned()), (first + 1, "null_key".to_owned())];
            assert_eq!(rejects(dir.path()).await, expected);
            assert_eq!(keys(dir.path()).len(), others.unsigned_abs() as usize);
            // It is known from now on, and the lane goes on.
            put(&mut runner, &rows(&[(Some(100), "d", None), (None, "e", None)])).await.unwrap();
            assert_eq!(rejects(dir.path()).await.len(), 3);
        }
    });
}

#[test]
fn a_compacted_topic_is_refused_where_no_record_has_a_key() {
    let Some(_) = services::kafka() else { return };
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let config = kafka::config(dir.path());
        configure(&config.topic, &[("cleanup.policy", "compact")]).await;
        let dead = sink::open(SinkId::new("dead-letters"), "job", &SinkKind::Kafka(config.clone())).unwrap();
        let plain = KafkaSink { guarantee: Guarantee::AtLeastOnce, ..config.clone() };
        for (sink, part) in
            [(open(config), "add `key: COLUMN`"), (open(plain), "add `key: COLUMN`"), (dead, "dead letters have none")]
        {
            for error in [sink.check(None).await, sink.prepare(&schema()).await].map(Result::unwrap_err) {
                let text = error.to_string();
                assert!(!error.is_transient() && text.contains("is compacted") && text.contains(part), "{text}");
            }
        }
    });
}

/// `max.message.bytes` is a batch's: small rows are sent in batches that the topic takes, and one that is too long by itself
/// is a reject. Once the limit is known before, and once only by what the brokers refuse.
#[test]
fn a_topic_s_limit_costs_the_rows_that_are_too_long_and_no_others() {
    let Some(_) = services::kafka() else { return };
    let small = "s".repeat(200);
    let long = "l".repeat(5_000);
    let packs = "p".repeat(8_000);
    let given: Vec<_> =
        (0..500).map(|id| (Some(id), if id == 77 { long.as_str() } else { small.as_str() }, None)).collect();
    runtime().block_on(async {
        for (is_known, compression, guarantee) in [
            (true, KafkaCompression::None, Guarantee::ExactlyOnce),
            (false, KafkaCompression::None, Guarantee::ExactlyOnce),
            (true, KafkaCompression::Gzip, Guarantee::ExactlyOnce),
            (false, KafkaCompression::None, Guarantee::AtLeastOnce),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let config = KafkaSink { key: Some(column("id")), compression, guarantee, ..kafka::config(dir.path()) };
            let topic = config.topic.clone();
            let sink = open(config);
            let limit = [("max.message.bytes", "2000")];
            if is_known {
                configure(&topic, &limit).await;
                until_refused(&topic, 3_000).await;
            }
            if guarantee == Guarantee::AtLeastOnce {
                sink.prepare(&schema()).await.unwrap();
                configure(&topic, &limit).await;
                until_refused(&topic, 3_000).await;
                let (key, _) = sink.claim(&Lane::single(), generation(1), &owner(1)).await.unwrap();
                let (mark, _) = next(&key, &origin(&key), &[], 0);
                let put = async |of: &[_]| {
                    let staged = sink.stage(&context(&key, &mark, false), &[rows(of)]).await.unwrap();
                    let permit = Permit::unmarked(key.clone(), mark.clone());
                    sink.commit(vec![(permit, staged)]).await.pop().unwrap()
                };
                put(&given[..70]).await.unwrap();
                let error = put(&given).await.map(drop).unwrap_err();
                let text = error.to_string();
                assert!(!error.is_transient() && text.contains("row 77") && text.contains("filter"), "{text}");
                continue;
            }
            let mut runner = prepared(sink).await;
            if !is_known {
                configure(&topic, &limit).await;
                until_refused(&topic, 3_000).await;
            }
            put(&mut runner, &rows(&given)).await.unwrap();
            if compression == KafkaCompression::None {
                assert_eq!(rejects(dir.path()).await, [(77, "too_big".to_owned())], "{is_known}");
                assert_eq!(keys(dir.path()).len(), 499);
            } else {
                // What the brokers see of it is short.
                put(&mut runner, &rows(&[(Some(1000), &packs, None)])).await.unwrap();
                assert_eq!(rejects(dir.path()).await, []);
                assert_eq!(keys(dir.path()).len(), 501);
            }
        }
    });
}

/// A dead letter has no further place to go to.
#[test]
fn dead_letters_are_cut_to_what_their_topic_takes() {
    let Some(_) = services::kafka() else { return };
    let dir = tempfile::tempdir().unwrap();
    let record = "r".repeat(9_000);
    let texts = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value])) };
    let letter = RecordBatch::try_from_iter_with_nullable(
        [("step", texts("decode")), ("detail", texts("why")), ("record", texts(&record))]
            .map(|(name, array)| (name, array, true)),
    )
    .unwrap();
    runtime().block_on(async {
        let config = kafka::config(dir.path());
        let topic = config.topic.clone();
        let sink = sink::open(SinkId::new("dead-letters"), "job", &SinkKind::Kafka(config)).unwrap();
        let mut runner = prepared(sink).await;
        configure(&topic, &[("max.message.bytes", "4000")]).await;
        until_refused(&topic, 5_000).await;
        let mut tries = 0;
        while let Err(error) = put(&mut runner, &letter).await {
            assert!(error.is_transient() && error.to_string().contains("are cut to"), "{error}");
            tries += 1;
            assert!(tries < 5, "{error}");
        }
        // Asked before, the limit is kept to.
        runner.sink.prepare(&schema()).await.unwrap();
        put(&mut runner, &letter).await.unwrap();
    });
    let records = kafka::records(&kafka::brokers(dir.path()), &kafka::topic(dir.path()));
    let cut: Vec<_> = records.iter().filter(|message| message.headers().is_some()).collect();
    assert_eq!(cut.len(), 2);
    for message in cut {
        assert_eq!(kafka::headers(message)["tidemill.shortened_from_bytes"], "9000");
        assert!(message.payload().unwrap().len() < 4_000);
    }
}

/// Nobody waits for the client, which itself waits for a topic that is gone until its records are too old.
#[test]
fn a_topic_that_is_deleted_in_mid_run_is_said_to_be_gone_and_the_lane_goes_on_once_it_is_back() {
    let Some(kafka) = services::kafka() else { return };
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let config = KafkaSink { key: Some(column("id")), ..kafka::config(dir.path()) };
        let topic = config.topic.clone();
        let mut runner = prepared(open(config)).await;
        let batch = rows(&[(Some(1), "a", None)]);
        put(&mut runner, &batch).await.unwrap();
        let admin: AdminClient<DefaultClientContext> = kafka::client(&kafka.brokers).create().unwrap();
        admin.delete_topics(&[&topic], &AdminOptions::new()).await.unwrap();
        let began = Instant::now();
        let text = loop {
            match put(&mut runner, &batch).await {
                // The brokers take a while.
                Ok(_) => assert!(began.elapsed() < LIMIT, "{topic} is still there"),
                Err(error) => {
                    assert!(error.is_transient(), "{error}");
                    if error.to_string().contains("there is no topic") {
                        break error.to_string();
                    }
                    assert!(began.elapsed() < LIMIT, "{error}");
                }
            }
        };
        assert!(text.contains(&format!("--create --topic {topic}")), "{text}");
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        kafka.topic(&topic, 3);
        let began = Instant::now();
        while let Err(error) = put(&mut runner, &batch).await {
            assert!(error.is_transient() && began.elapsed() < LIMIT, "{error}");
        }
        assert_eq!(keys(dir.path()), ["1"]);
    });
}
