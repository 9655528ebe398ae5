//! Dead letters that their own sink cannot take as they are: too long for a topic, or refused by a table. None is lost.

use std::collections::BTreeMap;

use crate::kafka_sink as kafka;
use rdkafka::{
    Message,
    message::OwnedMessage,
    producer::{BaseProducer, BaseRecord, Producer},
};
use rusqlite::Connection;
use serde_json::{Value, json};
use tidemill_checkpoint::Digest;
use tidemill_tests::{Folder, PATIENCE, Rows, Run, services};

/// Longer than the sink's records may be; the source's topic takes it.
const LONG: usize = 9_000_000;

fn send(brokers: &str, topic: &str, values: &[String]) {
    let producer: BaseProducer = kafka::client(brokers).set("message.max.bytes", "12000000").create().unwrap();
    for value in values {
        producer.send(BaseRecord::<[u8], str>::to(topic).payload(value)).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

/// A dead letter's header of Connect's, or of ours.
fn header(letter: &OwnedMessage, name: &str) -> Option<String> {
    kafka::headers(letter).get(name).cloned()
}

/// The sink's topic refuses the record, and the dead letters' one takes no record as long as that either.
#[test]
fn a_record_that_is_too_long_for_the_dead_letters_topic_is_there_with_its_beginning() {
    let Some(server) = services::kafka() else { return };
    let folder = Folder::new();
    let (brokers, name) = (&server.brokers, kafka::topic(&folder.join("")).replace("sink-", "dead-"));
    let wide = "max.message.bytes=12000000";
    server.tool(services::Kafka::TOPICS, &["--create", "--topic", &name, "--partitions", "1", "--config", wide]);
    for topic in ["out", "dead"] {
        kafka::make_topic(brokers, &format!("{name}-{topic}"), 1);
    }
    let text = "x".repeat(LONG);
    let good = |n: usize| format!("{{\"n\": {n}, \"count\": \"1\", \"text\": \"short\"}}");
    let long = format!("{{\"n\": 1, \"count\": \"1\", \"text\": \"{text}\"}}");
    let wrong = "{\"n\": 2, \"count\": \"x\", \"text\": \"no number\"}".to_owned();
    let broken = format!("{{\"n\": 3, \"text\": {text}");
    send(brokers, &name, &[good(0), long, wrong.clone(), broken.clone()]);
    let run = Run::new(&folder).job(&format!(
        "job: {name}\ntrigger: asap\nsources:\n  in:\n    type: kafka\n    brokers: {brokers}\n    topics: {name}\n    codec: json\n    \
         schema: {{ n: int64, count: string, text: string }}\nsteps:\n  - {{ name: num, cast: {{ count: int64 }} }}\nsinks:\n  out: {{ type: kafka, \
         brokers: \"{brokers}\", topic: {name}-out, properties: {{ message.max.bytes: 5000000 }} }}\n\
         dead_letters: {{ type: kafka, brokers: \"{brokers}\", topic: {name}-dead }}\n"
    ));
    run.once().expect_success();
    let letters = kafka::records(brokers, &format!("{name}-dead"));
    let by_stage: BTreeMap<_, _> =
        letters.iter().map(|letter| (header(letter, "__connect.errors.stage").unwrap(), letter)).collect();
    assert_eq!(letters.len(), 3, "{:?}", by_stage.keys());
    let value = |stage: &str| std::str::from_utf8(by_stage[stage].payload().unwrap()).unwrap();
    let full = |stage: &str| header(by_stage[stage], "tidemill.shortened_from_bytes");
    // A step has a name of its own, and is a step.
    assert_eq!((value("TRANSFORMATION"), full("TRANSFORMATION")), (&*wrong, None));
    assert!(broken.starts_with(value("VALUE_CONVERTER")));
    assert_eq!(full("VALUE_CONVERTER"), Some(broken.len().to_string()));
    // The row as the sink got it.
    let row = value("TASK_PUT");
    assert!(row.contains("\"n\":1") && row.len() > 900_000 && row.len() < 1_000_000, "{} bytes", row.len());
    assert!(full("TASK_PUT").unwrap().parse::<usize>().unwrap() > LONG);

    // Nothing is kept for ever: what was delivered goes with the next rows of its sink.
    send(brokers, &name, &[good(4)]);
    run.once().expect_success();
    assert_eq!(kafka::records(brokers, &format!("{name}-out")).len(), 2);
    assert_eq!(kafka::records(brokers, &format!("{name}-dead")).len(), 3, "each once");
    assert_eq!(kept(brokers, &name), [""; 0]);

    // What an older version has kept, since it did not fit.
    keep(brokers, &name);
    run.once().expect_success();
    let letters = kafka::records(brokers, &format!("{name}-dead"));
    let of_old = letters.iter().find(|letter| letter.payload() == Some(b"of old")).unwrap();
    let told = ["__connect.errors.stage", "__connect.errors.exception.class.name", "tidemill.position"];
    assert_eq!(told.map(|name| header(of_old, name).unwrap()), ["TASK_PUT", "constraint", "17"]);
    send(brokers, &name, &[wrong]);
    run.once().expect_success();
    assert_eq!(kafka::records(brokers, &format!("{name}-dead")).len(), 5, "each once");
    assert_eq!(kept(brokers, &name), [""; 0]);
}

fn marks(brokers: &str, job: &str) -> impl Iterator<Item = (Value, OwnedMessage)> {
    let records = kafka::records(brokers, &format!("tidemill-marks-{job}"));
    records.into_iter().map(|record| (serde_json::from_slice(record.key().unwrap()).unwrap(), record))
}

/// The keys of rejects that the marks' topic still has.
fn kept(brokers: &str, job: &str) -> Vec<String> {
    let rejects = marks(brokers, job).filter(|(key, _)| key[0] == "reject");
    let last: BTreeMap<String, bool> = rejects.map(|(key, r)| (key.to_string(), r.payload().is_some())).collect();
    last.into_iter().filter_map(|(key, is_there)| is_there.then_some(key)).collect()
}

/// Writes a reject of the dead letters' own sink beside its mark.
fn keep(brokers: &str, job: &str) {
    let of_sink = |key: &Value| key[0] == "mark" && key[2] == "dead-letters";
    let (key, mark) = marks(brokers, job).find(|(key, _)| of_sink(key)).unwrap();
    let letter = json!({
        "job": job, "source": "", "shard": "rejects:out", "position": "17", "step": "out", "reason": "constraint",
        "detail": "why", "record": "of old", "record_base64": null, "rejected_at": "2026-01-01T00:00:00Z", "batch": "b"
    });
    let head = json!({
        "parts": 1, "seq": 1, "input": Digest::of(b"input"), "row": 0, "reason": "too_big", "detail": "it did not fit"
    });
    let value = json!({ "head": head, "text": letter.to_string() }).to_string();
    let reject = json!(["reject", job, "dead-letters", key[3], 0, 0]).to_string();
    let producer: BaseProducer = kafka::client(brokers).create().unwrap();
    let topic = format!("tidemill-marks-{job}");
    producer.send(BaseRecord::to(&topic).partition(mark.partition()).key(&reject).payload(&value)).unwrap();
    producer.flush(PATIENCE).unwrap();
}

#[test]
fn what_the_dead_letters_table_refuses_is_kept_and_is_there_once_the_table_takes_it() {
    const LINES: [&str; 3] = ["not this one", "nor \"this\"", "fine"];
    let folder = Folder::new();
    folder.publish("in/a.json", LINES.join("\n") + "\n");
    let database = Connection::open(folder.join("dead.db")).unwrap();
    database
        .execute_batch(
            "CREATE TABLE dead (job TEXT, source TEXT, shard TEXT, position TEXT, step TEXT, reason TEXT, detail TEXT, record TEXT, \
             record_base64 TEXT, rejected_at TEXT, batch TEXT);
             CREATE TRIGGER picky BEFORE INSERT ON dead WHEN NEW.record LIKE 'no%' BEGIN SELECT RAISE(ABORT, 'not here'); END;",
        )
        .unwrap();
    let run = Run::new(&folder).job(
        "job: picky\ntrigger: asap\nsources: { in: { type: directory, path: in, settle: 10ms, codec: json, schema: { n: int64 } } }\n\
         sinks: { out: { type: files, path: out, codec: json } }\ndead_letters: { type: sqlite, path: dead.db, table: dead }\n",
    );
    let dead = || Rows::sqlite(&folder.join("dead.db"), "SELECT source, step, reason, record FROM dead ORDER BY rowid");
    for _ in 0..3 {
        let mut refused = run.once();
        refused.expect_success();
        assert!(
            refused.stderr().contains("ERROR the sink refused dead letters: it keeps them"),
            "{}",
            refused.stderr()
        );
        assert_eq!(dead().column("record"), ["fine"]);
    }
    database.execute_batch("DROP TRIGGER picky").unwrap();
    for _ in 0..2 {
        run.once().expect_success();
        let found = dead();
        assert_eq!(found.column("record"), ["fine", LINES[0], LINES[1]], "each once, as it was");
        for (column, value) in [("source", "in"), ("step", "decode")] {
            assert_eq!(found.column(column), [value; 3]);
        }
    }
}
