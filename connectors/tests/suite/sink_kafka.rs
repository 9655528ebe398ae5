//! The Kafka sink against a real broker: what the suites of all sinks do not know of.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::sinks::{kafka::column, *};
use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray};
use rdkafka::{
    Message,
    message::OwnedMessage,
    producer::{BaseProducer, BaseRecord, Producer},
};
use tidemill_checkpoint::{Lane, Permit, Position, Span};
use tidemill_config::{Codec, KafkaCompression, KafkaSink, SinkKind};
use tidemill_connectors::sink::{self, Sink, SinkError, rejects_shard};

const LIMIT: Duration = Duration::from_secs(60);
/// What a child commits up to.
const LAST: u64 = 20;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn open(config: KafkaSink) -> Arc<dyn Sink> {
    sink::open(id(Kind::Kafka), "job", &SinkKind::Kafka(config)).unwrap()
}

fn batch_of<const N: usize>(columns: [(&str, ArrayRef); N]) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true))).unwrap()
}

fn texts(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn value(message: &OwnedMessage) -> String {
    String::from_utf8(message.payload().unwrap().to_vec()).unwrap()
}

/// The mark that a claim reads is not stale, although another lane's transaction holds readers of the partition back.
#[test]
fn an_open_transaction_on_the_marks_partition_hides_no_mark() {
    let Some(kafka) = services::kafka() else { return };
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let mut old = Runner::claim(make(Kind::Kafka, dir.path()), &Lane::single(), 1).await.unwrap();
        old.run(1).await.unwrap();
        let marks = format!("{}-marks", kafka::topic(dir.path()));
        let mut config = kafka::client(&kafka.brokers);
        config.set("transactional.id", format!("{marks}-of-another-job"));
        let other: BaseProducer = config.create().unwrap();
        other.init_transactions(LIMIT).unwrap();
        other.begin_transaction().unwrap();
        let mine = kafka::records(&kafka.brokers, &marks).pop().unwrap().partition();
        let key = r#"["mark","other-job","archive","all"]"#;
        let record = BaseRecord::<str, [u8]>::to(&marks).partition(mine).key(key);
        other.send(record).map_err(|(error, _)| error).unwrap();
        other.flush(LIMIT).unwrap();
        // Committed, and out of sight of a reader of committed records.
        old.run(3).await.unwrap();
        old.sink.beat(&old.key).await.unwrap();

        let began = Instant::now();
        let held = make(Kind::Kafka, dir.path()).peek(&[Lane::single()]).await.unwrap();
        println!("peeked in {:?}", began.elapsed());
        let generation = held[&Lane::single()].generation().next();
        let sink = make(Kind::Kafka, dir.path());
        let waiting = sink.claim(&Lane::single(), generation, &owner(2)).await;
        let error = waiting.map(drop).unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("a transaction is open"), "{error}");
        // The owner was shut out by that try, and nobody has claimed: it goes on.
        let waiting = old.step().await.map(drop).unwrap_err();
        assert!(waiting.is_transient(), "{waiting}");
        other.abort_transaction(LIMIT).unwrap();
        old.run(5).await.unwrap();
        let (_, mark) = sink.claim(&Lane::single(), generation, &owner(2)).await.unwrap();
        assert_eq!(mark.unwrap().plan.seq, 5);
        assert!(is_fenced(&old.step().await));
        let mut new = Runner::claim(sink, &Lane::single(), 2).await.unwrap();
        new.run(7).await.unwrap();
    });
    assert_eq!(rows(Kind::Kafka, dir.path()), expected(Kind::Kafka, 7));
}

#[test]
fn keys_choose_the_partitions_that_javas_producer_chooses() {
    let Some(kafka) = services::kafka() else { return };
    let dir = tempfile::tempdir().unwrap();
    let keys: Vec<String> = (0..400).map(|n| format!("{}{}", "ключ-é-".repeat(n % 3), n * 7919)).collect();
    let rows = batch_of([
        ("k", Arc::new(StringArray::from(keys.clone()))),
        ("n", Arc::new(Int64Array::from_iter_values(0..400))),
    ]);
    let config = KafkaSink { key: Some(column("k")), ..kafka::config(dir.path()) };
    let topic = config.topic.clone();
    runtime().block_on(async {
        write(open(config), &rows).await;
    });
    let java = format!("{topic}-java");
    kafka::make_topic(&kafka.brokers, &java, kafka::PARTITIONS);
    let lines: String = keys.iter().map(|key| format!("{key}\tx\n")).collect();
    let arguments = ["--topic", &java, "--reader-property", "parse.key=true"];
    kafka.tool_with(services::Kafka::PRODUCER, &arguments, &lines);
    let placed = |topic: &str| -> BTreeMap<Vec<u8>, i32> {
        kafka::records(&kafka.brokers, topic).iter().map(|m| (m.key().unwrap().to_vec(), m.partition())).collect()
    };
    let (ours, theirs) = (placed(&topic), placed(&java));
    assert_eq!(ours.len(), 400);
    assert_eq!(ours, theirs);
    assert_eq!(ours.values().collect::<std::collections::BTreeSet<_>>().len(), 3);
}

#[test]
fn records_have_keys_headers_and_tombstones() {
    let Some(kafka) = services::kafka() else { return };
    let dir = tempfile::tempdir().unwrap();
    let config = KafkaSink {
        key: Some(column("id")),
        headers: vec![("origin".into(), column("from")), ("n".into(), column("id"))],
        delete_when: Some(column("gone")),
        ..kafka::config(dir.path())
    };
    let rows = batch_of([
        ("id", Arc::new(Int64Array::from(vec![7, 7, 8]))),
        ("from", texts(&[Some("a\"b"), None, Some("ö")])),
        ("gone", Arc::new(BooleanArray::from(vec![Some(false), Some(true), None]))),
    ]);
    runtime().block_on(async {
        let sink = open(config);
        let lacking = batch_of([("id", rows.column(0).clone()), ("from", rows.column(1).clone())]).schema();
        let error = sink.prepare(&lacking).await.unwrap_err().to_string();
        assert_eq!(error, "delete_when: the rows have no column `gone`; they have id, from");
        write(sink, &rows).await;
    });
    let mut found = kafka::records(&kafka.brokers, &kafka::topic(dir.path()));
    found.sort_by_key(|message| (message.key().map(<[u8]>::to_vec), message.offset()));
    let shown: Vec<_> = found
        .iter()
        .map(|m| {
            (m.key().map(|k| String::from_utf8_lossy(k).into_owned()), m.payload().map(|_| value(m)), kafka::headers(m))
        })
        .collect();
    let headers = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    assert_eq!(
        shown,
        [
            (Some("7".into()), Some(r#"{"id":7,"from":"a\"b"}"#.into()), headers(&[("origin", "a\"b"), ("n", "7")])),
            (Some("7".into()), None, headers(&[("n", "7")])),
            (Some("8".into()), Some(r#"{"id":8,"from":"ö"}"#.into()), headers(&[("origin", "ö"), ("n", "8")])),
        ]
    );
}

/// A record's time and headers from columns, which need not be in its value.
#[test]
fn a_topic_is_copied_with_keys_headers_and_times() {
    let Some(kafka) = services::kafka() else { return };
    let dir = tempfile::tempdir().unwrap();
    // Older records are soon gone: the topic keeps a week.
    let begun = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    let an_hour_ago = begun - 3_600_000;
    let times: ArrayRef = Arc::new(
        arrow::array::TimestampMicrosecondArray::from(vec![
            Some(an_hour_ago * 1000 + 999),
            Some(an_hour_ago * 1000),
            None,
            Some(0),
            Some(-1),
        ])
        .with_timezone("UTC"),
    );
    let rows = batch_of([
        (
            "_key_bytes",
            Arc::new(arrow::array::BinaryArray::from_opt_vec(vec![
                Some(&b"\xff\x00"[..]),
                Some(b"b"),
                Some(b"c"),
                Some(b"d"),
                Some(b"e"),
            ])),
        ),
        (
            "_headers",
            texts(&[
                Some(r#"{"a":"1","many":["x",null,{"base64":"/wA="}],"n":7,"o":{"base64":5}}"#),
                Some("{}"),
                None,
                Some("{}"),
                Some("{}"),
            ]),
        ),
        ("_timestamp", times),
        ("n", Arc::new(Int64Array::from(vec![1, 2, 3, 4, 5]))),
    ]);
    let config = KafkaSink {
        key: Some(column("_key_bytes")),
        headers: vec![("n".into(), column("n"))],
        headers_from: Some(column("_headers")),
        timestamp: Some(column("_timestamp")),
        omit: vec![column("_key_bytes"), column("_headers"), column("_timestamp")],
        ..kafka::config(dir.path())
    };
    runtime().block_on(async {
        let sink = open(config.clone());
        for (wrong, part) in [
            (KafkaSink { omit: vec![column("m")], ..config.clone() }, "omit: the rows have no column `m`"),
            (KafkaSink { timestamp: Some(column("_headers")), ..config.clone() }, "has to be a timestamp, or int64"),
            (KafkaSink { headers_from: Some(column("n")), ..config.clone() }, "has to be a string with a JSON object"),
            (
                KafkaSink {
                    omit: ["_key_bytes", "_headers", "_timestamp", "n"].map(column).to_vec(),
                    ..config.clone()
                },
                "leave no column",
            ),
        ] {
            let error = open(wrong).prepare(&rows.schema()).await.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        write(sink.clone(), &rows).await;
        let rejects = sink.rejects(&Lane::single(), 0).await.unwrap();
        let rejects: Vec<_> = rejects.iter().map(|reject| (reject.row, &*reject.reason)).collect();
        assert_eq!(rejects, [(3, "timestamp"), (4, "timestamp")]);
    });
    let mut found = kafka::records(&kafka.brokers, &kafka::topic(dir.path()));
    found.sort_by_key(value);
    let shown: Vec<_> = found.iter().map(|message| (message.key().unwrap(), value(message))).collect();
    assert_eq!(
        shown,
        [(&b"\xff\x00"[..], r#"{"n":1}"#.into()), (b"b", r#"{"n":2}"#.into()), (b"c", r#"{"n":3}"#.into())]
    );
    let millis: Vec<_> = found.iter().map(|message| message.timestamp().to_millis().unwrap()).collect();
    assert_eq!(millis[..2], [an_hour_ago, an_hour_ago]);
    assert!(millis[2] >= begun, "none is now: {millis:?}");
    use rdkafka::message::Headers;
    let headers = found[0].headers().unwrap();
    let headers: Vec<_> = headers.iter().map(|header| (header.key, header.value)).collect();
    let expected: [(&str, Option<&[u8]>); 7] = [
        ("n", Some(b"1")),
        ("a", Some(b"1")),
        ("many", Some(b"x")),
        ("many", None),
        ("many", Some(b"\xff\x00")),
        ("n", Some(b"7")),
        ("o", Some(br#"{"base64":5}"#)),
    ];
    assert_eq!(headers, expected);
}

#[test]
fn every_compression_and_codec_is_read_back() {
    let Some(kafka) = services::kafka() else { return };
    use KafkaCompression::{Gzip, Lz4, Snappy, Zstd};
    let long = "line\nbreak, \"quote\" ".repeat(100);
    let rows = batch_of([("text", texts(&[Some(&long), Some("b")]))]);
    let csv = tidemill_config::Csv::default();
    for (compression, codec) in [
        (KafkaCompression::None, Codec::Json),
        (Gzip, Codec::Text),
        (Snappy, Codec::Csv(csv)),
        (Lz4, Codec::Json),
        (Zstd, Codec::Json),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let config = KafkaSink { compression, codec: codec.clone(), ..kafka::config(dir.path()) };
        runtime().block_on(async {
            write(open(config), &rows).await;
        });
        let mut found: Vec<String> =
            kafka::records(&kafka.brokers, &kafka::topic(dir.path())).iter().map(value).collect();
        found.sort_by_key(|text| std::cmp::Reverse(text.len()));
        let expected = match codec {
            Codec::Json => vec![serde_json::json!({ "text": long }).to_string(), r#"{"text":"b"}"#.to_owned()],
            Codec::Text => vec![long.clone(), "b".to_owned()],
            _ => vec![format!("\"{}\"", long.replace('"', "\"\"")), "b".to_owned()],
        };
        assert_eq!(found, expected, "{}", compression.name());
    }
}

/// A row that no record can hold is a reject, kept whole, and forgotten once a mark says that it was read.
#[test]
fn a_row_that_is_too_long_is_a_reject() {
    let Some(_) = services::kafka() else { return };
    let dir = tempfile::tempdir().unwrap();
    let long = "ä".repeat(700_000);
    let rows = batch_of([
        ("n", Arc::new(Int64Array::from(vec![1, 2, 3]))),
        ("text", texts(&[Some("a"), Some(&long), Some("c")])),
    ]);
    runtime().block_on(async {
        let sink = open(kafka::config(dir.path()));
        let mut runner = write(sink.clone(), &rows).await;
        let rejects = open(kafka::config(dir.path())).rejects(&Lane::single(), 0).await.unwrap();
        assert_eq!(rejects.len(), 1);
        assert_eq!((rejects[0].number, rejects[0].row, rejects[0].seq, &*rejects[0].reason), (0, 1, 1, "too_big"));
        assert!(rejects[0].detail.contains("bytes"), "{}", rejects[0].detail);
        let record: serde_json::Value = serde_json::from_str(&rejects[0].record).unwrap();
        assert_eq!(record, serde_json::json!({ "n": 2, "text": long }));
        // The next plan reads them, and may do so again as long as no other plan follows.
        let at = |n| Position::number(n);
        for (from, left) in [(0, rejects), (1, vec![])] {
            let head = runner.head.clone().unwrap();
            let (mut mark, _) = next(&runner.key, &head, &[], 0);
            mark.plan.spans.insert(rejects_shard(sink.id()), Span { from: at(from), to: at(1) });
            mark.positions.insert(rejects_shard(sink.id()), at(1));
            mark.digest = mark.plan.digest();
            commit(&*sink, &runner.key, Some(head.digest), &mark, Vec::new()).await.unwrap();
            runner.head = Some(mark);
            assert_eq!(open(kafka::config(dir.path())).rejects(&Lane::single(), 0).await.unwrap(), left);
        }
        // Numbers go on.
        let mut again = Runner::claim(sink, &Lane::single(), 2).await.unwrap();
        again.run(3).await.unwrap();
    });
    let mut numbers = kafka::numbers(dir.path());
    numbers.sort_unstable();
    assert_eq!(numbers.iter().filter(|n| **n < 10).collect::<Vec<_>>(), [&1, &3]);
}

/// Where the client takes short records only, a row that was rejected for that comes in parts that are as short.
#[test]
fn a_reject_is_kept_in_parts_that_the_client_takes() {
    let Some(_) = services::kafka() else { return };
    let dir = tempfile::tempdir().unwrap();
    let long = "\"".repeat(20_000);
    let rows = batch_of([("text", texts(&[Some("a"), Some(&long)]))]);
    let properties = vec![("message.max.bytes".to_owned(), "5000".to_owned())];
    runtime().block_on(async {
        write(open(KafkaSink { properties, ..kafka::config(dir.path()) }), &rows).await;
        let rejects = open(kafka::config(dir.path())).rejects(&Lane::single(), 0).await.unwrap();
        let record: serde_json::Value = serde_json::from_str(&rejects[0].record).unwrap();
        assert_eq!(record, serde_json::json!({ "text": long }));
    });
}

/// Marks that a topic does not keep, or keeps where nobody looks, would be missed in silence.
#[test]
fn a_marks_topic_that_would_lose_marks_is_refused() {
    let Some(kafka) = services::kafka() else { return };
    let (dir, few, moved) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let claim = async |dir: &Path| open(kafka::config(dir)).claim(&Lane::single(), generation(5), &owner(1)).await;
    let marks = |dir: &Path| format!("{}-marks", kafka::topic(dir));
    runtime().block_on(async {
        kafka::make_topic(&kafka.brokers, &marks(dir.path()), 9);
        let checked = open(kafka::config(dir.path())).check(None).await.unwrap_err();
        for error in [checked, claim(dir.path()).await.map(drop).unwrap_err()] {
            let text = error.to_string();
            assert!(text.contains("cleanup.policy=delete") && text.contains("kafka-configs.sh"), "{text}");
            assert!(!error.is_transient(), "{text}");
        }

        kafka::make_topic(&kafka.brokers, &marks(few.path()), 3);
        let checked = open(kafka::config(few.path())).check(None).await.unwrap_err();
        let peeked = open(kafka::config(few.path())).peek(&[Lane::single()]).await.map(drop).unwrap_err();
        for error in [checked, peeked, claim(few.path()).await.map(drop).unwrap_err()] {
            let text = error.to_string();
            assert!(text.contains("has 3 partitions") && text.contains("kafka-topics.sh"), "{text}");
            assert!(!error.is_transient(), "{text}");
        }

        make_compacted(&kafka, &marks(moved.path()));
        let producer: BaseProducer = kafka::client(&kafka.brokers).create().unwrap();
        let topic = marks(moved.path());
        let record = BaseRecord::<str, str>::to(&topic).partition(1).key(r#"["mark","job","archive","all"]"#);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(LIMIT).unwrap();
        let error = claim(moved.path()).await.map(drop).unwrap_err().to_string();
        assert!(error.contains("not where it belongs"), "{error}");
    });
}

fn make_compacted(kafka: &services::Kafka, topic: &str) {
    let config = ["--config", "cleanup.policy=compact"];
    let made = ["--create", "--topic", topic, "--partitions", "9", "--replication-factor", "1"];
    kafka.tool(services::Kafka::TOPICS, &[&made[..], &config[..]].concat());
}

/// A daemon that knew the marks' topic before it was given more partitions, and one that has seen it only after: where
/// they look for a lane's marks in different partitions, the first one begins the lane anew.
#[test]
fn two_daemons_find_each_others_marks_in_a_topic_that_grew_between_their_starts() {
    let Some(kafka) = services::kafka() else { return };
    let dir = tempfile::tempdir().unwrap();
    // Clients that differ in a setting share nothing, like those of two daemons.
    let of_its_own = || KafkaSink {
        properties: vec![("metadata.max.age.ms".to_owned(), "60000".to_owned())],
        ..kafka::config(dir.path())
    };
    runtime().block_on(async {
        let marks = format!("{}-marks", kafka::topic(dir.path()));
        make_compacted(&kafka, &marks);
        let old = make(Kind::Kafka, dir.path());
        assert_eq!(old.peek(&[Lane::single()]).await.unwrap()[&Lane::single()].claim, None);
        kafka.tool(services::Kafka::TOPICS, &["--alter", "--topic", &marks, "--partitions", "57"]);

        let mut new = Runner::claim(open(of_its_own()), &Lane::single(), 1).await.unwrap();
        new.run(3).await.unwrap();
        let held = old.peek(&[Lane::single()]).await.unwrap();
        assert_eq!(held[&Lane::single()].generation(), generation(1));
        let late = old.claim(&Lane::single(), generation(1), &owner(2)).await;
        assert!(matches!(late, Err(SinkError::Fenced { .. })), "{late:?}");
        new.run(4).await.unwrap();
        let mut old = Runner::claim(old, &Lane::single(), 2).await.unwrap();
        assert_eq!(old.head.as_ref().unwrap().plan.seq, 4);
        old.run(6).await.unwrap();
        assert!(is_fenced(&new.step().await));
        let mut third = Runner::claim(open(of_its_own()), &Lane::single(), 3).await.unwrap();
        third.run(7).await.unwrap();
    });
    assert_eq!(rows(Kind::Kafka, dir.path()), expected(Kind::Kafka, 7));
}

#[test]
fn dead_letters_are_what_kafka_connects_tools_read() {
    let Some(kafka) = services::kafka() else { return };
    let dir = tempfile::tempdir().unwrap();
    let config = kafka::config(dir.path());
    let dead = sink::open(tidemill_checkpoint::SinkId::new("dead-letters"), "job", &SinkKind::Kafka(config)).unwrap();
    let rows = batch_of([
        ("job", texts(&[Some("web"), Some("web")])),
        ("source", texts(&[Some("in"), Some("posts")])),
        ("shard", texts(&[Some("in/orders.eu/3@cluster:topic"), Some("posts/6f9e")])),
        ("position", texts(&[Some("1042"), Some("77")])),
        ("step", texts(&[Some("3-cast"), Some("decode")])),
        ("reason", texts(&[Some("cast"), Some("json")])),
        ("detail", texts(&[Some("\"x\" is no int32"), Some("no object")])),
        ("record", texts(&[Some("{\"a\": \"x\"}"), None])),
        ("record_base64", texts(&[None, Some("//4=")])),
        ("batch", texts(&[Some("b1"), Some("b1")])),
    ]);
    runtime().block_on(async {
        write(dead, &rows).await;
    });
    let mut found = kafka::records(&kafka.brokers, &kafka::topic(dir.path()));
    found.sort_by_key(|message| std::cmp::Reverse(message.payload().unwrap().len()));
    assert_eq!(found[0].payload(), Some(&b"{\"a\": \"x\"}"[..]));
    assert_eq!(found[1].payload(), Some(&b"\xff\xfe"[..]));
    let headers = kafka::headers(&found[0]);
    let connect: Vec<(&str, &str)> = headers
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix("__connect.errors.")?, value.as_str())))
        .collect();
    assert_eq!(
        connect,
        [
            ("class.name", "3-cast"),
            ("connector.name", "web"),
            ("exception.class.name", "cast"),
            ("exception.message", "\"x\" is no int32"),
            ("exception.stacktrace", "\"x\" is no int32"),
            ("offset", "1042"),
            ("partition", "3"),
            ("stage", "TRANSFORMATION"),
            ("task.id", "0"),
            ("topic", "orders.eu"),
        ]
    );
    assert_eq!(headers["tidemill.position"], "1042");
    let other = kafka::headers(&found[1]);
    assert_eq!((other["tidemill.shard"].as_str(), other.get("__connect.errors.topic")), ("posts/6f9e", None));
    assert_eq!(other["__connect.errors.stage"], "VALUE_CONVERTER");
}

#[test]
fn a_check_names_what_is_wrong_and_the_way_out_and_changes_nothing() {
    let Some(kafka) = services::kafka() else { return };
    let dir = tempfile::tempdir().unwrap();
    let good = kafka::config(dir.path());
    runtime().block_on(async {
        let schema = batch(1).schema();
        open(good.clone()).check(Some(&schema)).await.unwrap();
        let topics = kafka.tool(services::Kafka::TOPICS, &["--list"]);
        assert!(!topics.contains(&format!("{}-marks", good.topic)), "a check made the marks' topic");
        let login = |mechanism: &str, password: &str| {
            [
                ("security.protocol", "SASL_PLAINTEXT"),
                ("sasl.mechanisms", mechanism),
                ("sasl.username", &kafka.sasl_user),
                ("sasl.password", password),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
        };
        let properties = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        let sasl = KafkaSink { brokers: kafka.sasl_brokers.clone(), ..good.clone() };
        for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let properties = login(mechanism, &kafka.sasl_password);
            open(KafkaSink { properties, ..sasl.clone() }).check(None).await.unwrap();
        }
        let cases = [
            (
                KafkaSink { topic: "not-there".into(), ..good.clone() },
                ["there is no topic `not-there`", "--create --topic not-there"],
            ),
            (KafkaSink { brokers: "127.0.0.1:1".into(), ..good.clone() }, ["127.0.0.1:1", "onnection refused"]),
            (
                KafkaSink { properties: login("PLAIN", "hunter2"), ..sasl.clone() },
                ["the login was refused", "sasl.mechanism, sasl.username"],
            ),
            (
                KafkaSink { properties: login("SCRAM-SHA-512", "hunter2"), ..sasl },
                ["the login was refused", "sasl.mechanism, sasl.username"],
            ),
            (
                KafkaSink { key: Some(column("m")), ..good.clone() },
                ["key: the rows have no column `m`", "they have n, text"],
            ),
            (
                KafkaSink { transaction_timeout: Duration::from_secs(100_000), ..good.clone() },
                ["transaction_timeout", "make it shorter"],
            ),
            (
                KafkaSink { properties: properties("no.such", "hunter2"), ..good.clone() },
                ["properties: `no.such`", "No such configuration property"],
            ),
        ];
        for (config, parts) in cases {
            let error = open(config).check(Some(&schema)).await.unwrap_err().to_string();
            println!("{error}");
            assert!(parts.iter().all(|part| error.contains(part)), "{error}\n{parts:?}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let same = KafkaSink { marks_topic: Some(good.topic.clone()), ..good };
        let error = sink::open(id(Kind::Kafka), "job", &SinkKind::Kafka(same)).map(drop).unwrap_err().to_string();
        assert!(error.contains("a topic of their own"), "{error}");
    });
}

/// The child: not a test of its own.
#[test]
#[ignore = "run by the others"]
fn child() {
    let dir = std::env::var("DIR").unwrap();
    let result = runtime().block_on(async {
        let sink = make(Kind::Kafka, Path::new(&dir));
        let mut tries = 0;
        loop {
            let run = async {
                let mut runner = Runner::claim(sink.clone(), &Lane::single(), 1).await?;
                while runner.seq() != Some(LAST) {
                    if let Err(error) = runner.step().await {
                        println!("{error}");
                        if !error.is_transient() {
                            return Err(error);
                        }
                        tries += 1;
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                Ok(())
            };
            match run.await {
                Err(error) if error.is_transient() && tries < 300 => {
                    println!("{error}");
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                other => break other,
            }
        }
    });
    match result {
        Ok(()) => {}
        Err(SinkError::Fenced { .. }) => std::process::exit(42),
        Err(error) => panic!("{error}"),
    }
}

fn start(dir: &Path, failpoint: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["sink_kafka::child", "--exact", "--ignored", "--nocapture"])
        .env("DIR", dir)
        .env("TIDEMILL_FAILPOINT", failpoint)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < LIMIT, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_stopped(child: &Child) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
}

/// The broker undoes what a paused owner has open. Nobody else came: the owner goes on, and nothing is lost or doubled.
#[test]
fn an_owner_that_was_paused_past_its_transactions_timeout_goes_on() {
    let Some(_) = services::kafka() else { return };
    for point in ["kafka.after-rows:3:stop", "kafka.before-commit:3:stop"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("timeout"), "2").unwrap();
        let mut child = start(dir.path(), point);
        wait_for("it does not stop", || is_stopped(&child));
        // Reading waits until no transaction is open: the broker has undone it.
        let before = rows(Kind::Kafka, dir.path());
        assert!(before.len() < expected(Kind::Kafka, LAST).len());
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::CONT).unwrap();
        assert!(child.wait().unwrap().success(), "{point}");
        assert_eq!(rows(Kind::Kafka, dir.path()), expected(Kind::Kafka, LAST), "{point}");
    }
}

/// The broker is killed and started again, over and over, while a runner commits.
#[test]
fn a_broker_that_is_killed_in_the_middle_of_transactions_loses_and_doubles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(kafka) = services::Kafka::private(&dir.path().join("services")) else { return };
    std::fs::write(dir.path().join("brokers"), &kafka.brokers).unwrap();
    kafka::config(dir.path());
    let mut child = start(dir.path(), "kafka.before-commit:6:stop,kafka.after-rows:14:stop");
    for _ in 0..2 {
        wait_for("it does not stop", || is_stopped(&child) || child.try_wait().unwrap().is_some());
        kafka.kill();
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::CONT).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        kafka.start();
    }
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(rows(Kind::Kafka, dir.path()), expected(Kind::Kafka, LAST));
}

#[test]
#[ignore = "prints numbers"]
fn what_32_lanes_cost() {
    let Some(_) = services::kafka() else { return };
    let dir = tempfile::tempdir().unwrap();
    let status = |what: &str| {
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        println!("{what}: {} {}", line("VmRSS"), line("Threads"));
    };
    runtime().block_on(async {
        let sink = make(Kind::Kafka, dir.path());
        sink.peek(&[Lane::single()]).await.unwrap();
        status("before");
        let lanes: Vec<Lane> = (0..32).map(|n| Lane::new(&format!("in/t/{n}"))).collect();
        let began = Instant::now();
        let mut runners = Vec::new();
        for lane in &lanes {
            let mut runner = Runner::claim(sink.clone(), lane, 1).await.unwrap();
            runner.run(0).await.unwrap();
            runners.push(runner);
        }
        println!("claimed in {:?}", began.elapsed());
        status("32 lanes");
        for _ in 0..5 {
            let mut group = Vec::new();
            for runner in &mut runners {
                let head = runner.head.clone().unwrap();
                let (mark, _) = next(&runner.key, &head, &[], 0);
                let staged = sink.stage(&context(&runner.key, &mark, false), &[batch(1)]).await.unwrap();
                group.push((Permit::anchor(runner.key.clone(), Some(head.digest), mark.clone(), Vec::new()), staged));
                runner.head = Some(mark);
            }
            let began = Instant::now();
            sink.commit(group).await.into_iter().for_each(|result| drop(result.unwrap()));
            println!("a group in {:?}", began.elapsed());
        }
        let began = Instant::now();
        sink.peek(&lanes).await.unwrap();
        println!("peek of all in {:?}", began.elapsed());
        status("after commits");
    });
}
