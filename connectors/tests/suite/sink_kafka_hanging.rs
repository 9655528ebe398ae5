//! A transaction that the brokers never end. A coordinator that finds no leader of a partition takes it for deleted, and
//! writes no end of the transaction there; nor does it know of records that came without being announced, which a broker
//! that does not verify them takes. Such records are made here, by the protocol itself: no client makes them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::sinks::*;
use rdkafka::{
    Message,
    producer::{BaseProducer, BaseRecord, Producer},
};
use tidemill_checkpoint::Lane;

/// The Kafka that is asked to take records of a transaction which it was not told of.
const UNVERIFIED: [&str; 7] = [
    "--alter",
    "--entity-type",
    "brokers",
    "--entity-name",
    "1",
    "--add-config",
    "transaction.partition.verification.enable=false",
];

const PATIENCE: Duration = Duration::from_secs(30);

/// A message of the protocol, in the making.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn int<const N: usize>(mut self, bytes: [u8; N]) -> Self {
        self.0.extend(bytes);
        self
    }
    fn text(self, text: &str) -> Self {
        let mut text_of = self.int((text.len() as i16).to_be_bytes());
        text_of.0.extend(text.as_bytes());
        text_of
    }
    fn bytes(self, bytes: &[u8]) -> Self {
        let mut with = self.int((bytes.len() as i32).to_be_bytes());
        with.0.extend(bytes);
        with
    }
}

/// Sends a request, and gives what follows the number of the answer.
fn ask(brokers: &str, api: i16, version: i16, body: Bytes) -> Vec<u8> {
    let mut stream = TcpStream::connect(brokers).unwrap();
    let head = Bytes::default().int(api.to_be_bytes()).int(version.to_be_bytes()).int(7_i32.to_be_bytes()).text("raw");
    let request = Bytes::default().bytes(&[head.0, body.0].concat());
    stream.write_all(&request.0).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; i32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
    answer.split_off(4)
}

fn number<const N: usize>(answer: &[u8], at: usize) -> [u8; N] {
    answer[at..at + N].try_into().unwrap()
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))))
}

/// A number as records have it: zigzag, seven bits to a byte.
fn varint(number: usize) -> Vec<u8> {
    let (mut rest, mut bytes) = (number * 2, Vec::new());
    while rest >= 0x80 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

/// A batch of one record of a transaction.
fn record_batch((producer, epoch): (i64, i16), key: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [varint(text.len()), text.as_bytes().to_vec()].concat();
    let record = [vec![0, 0, 0], text(key), text(value), vec![0]].concat();
    // Older ones would be deleted at once.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let checked = Bytes::default()
        .int(0x10_i16.to_be_bytes())
        .int(0_i32.to_be_bytes())
        .int(now.to_be_bytes())
        .int(now.to_be_bytes())
        .int(producer.to_be_bytes())
        .int(epoch.to_be_bytes())
        .int(0_i32.to_be_bytes())
        .int(1_i32.to_be_bytes());
    let checked = [checked.0, varint(record.len()), record].concat();
    let head = Bytes::default().int((-1_i32).to_be_bytes()).int([2]).int(crc32c(&checked).to_be_bytes());
    Bytes::default().int(0_i64.to_be_bytes()).bytes(&[head.0, checked].concat()).0
}

/// A lane's former owner, by the protocol itself.
struct Former {
    brokers: String,
    id: String,
    producer: (i64, i16),
}

impl Former {
    fn of(brokers: &str, id: &str) -> Self {
        let answer = ask(brokers, 22, 0, Bytes::default().text(id).int(60_000_i32.to_be_bytes()));
        assert_eq!(i16::from_be_bytes(number(&answer, 4)), 0, "{answer:?}");
        let producer = (i64::from_be_bytes(number(&answer, 6)), i16::from_be_bytes(number(&answer, 14)));
        Self { brokers: brokers.to_owned(), id: id.to_owned(), producer }
    }

    /// Tells the coordinator of partitions, in which it will end the transaction.
    fn announce(&self, topic: &str, partitions: i32) {
        let (producer, epoch) = self.producer;
        let body = Bytes::default().text(&self.id).int(producer.to_be_bytes()).int(epoch.to_be_bytes());
        let body = body.int(1_i32.to_be_bytes()).text(topic).int(partitions.to_be_bytes());
        let answer = ask(&self.brokers, 24, 0, (0..partitions).fold(body, |body, one| body.int(one.to_be_bytes())));
        for partition in 0..partitions as usize {
            let at = 4 + 4 + 2 + topic.len() + 4 + partition * 6 + 4;
            assert_eq!(i16::from_be_bytes(number(&answer, at)), 0, "{answer:?}");
        }
    }

    /// A record of the open transaction, and where it is. Nobody ends it where it was not announced.
    fn send(&self, topic: &str, partition: i32, key: &str, value: &str) -> i64 {
        let one = 1_i32.to_be_bytes();
        let body = Bytes::default().text(&self.id).int((-1_i16).to_be_bytes()).int(10_000_i32.to_be_bytes());
        let body = body.int(one).text(topic).int(one).int(partition.to_be_bytes());
        let answer = ask(&self.brokers, 0, 3, body.bytes(&record_batch(self.producer, key, value)));
        let at = 4 + 2 + topic.len() + 4 + 4;
        assert_eq!(i16::from_be_bytes(number(&answer, at)), 0, "{topic}: {answer:?}");
        i64::from_be_bytes(number(&answer, at + 2))
    }

    fn end(&self, commits: bool) {
        let (producer, epoch) = self.producer;
        let body = Bytes::default().text(&self.id).int(producer.to_be_bytes()).int(epoch.to_be_bytes());
        let answer = ask(&self.brokers, 26, 0, body.int([u8::from(commits)]));
        assert_eq!(i16::from_be_bytes(number(&answer, 4)), 0, "{answer:?}");
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Case {
    /// Neither rows nor mark got an end.
    All,
    /// The rows got theirs, the mark did not.
    Committed,
    Undone,
    /// As `Committed`, and another's transaction is open before the rows.
    CommittedBehindAnother,
    /// The rows got none, and there was no mark.
    Rows,
    /// The same, and the owner after it let go before it wrote anything.
    RowsAndRelease,
    /// The same, and another's transaction is open before them and before the third batch.
    RowsBehindAnother,
}

impl Case {
    fn is_of_rows(self) -> bool {
        matches!(self, Self::Rows | Self::RowsAndRelease | Self::RowsBehindAnother)
    }
}

/// Three batches of an owner, a fourth of which the brokers lost an end, and what the next owner makes of it.
async fn run(kafka: &services::Kafka, case: Case) {
    println!("{case:?}");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("brokers"), &kafka.brokers).unwrap();
    let mut old = Runner::claim(make(Kind::Kafka, dir.path()), &Lane::single(), 1).await.unwrap();
    old.run(2).await.unwrap();
    let topic = kafka::topic(dir.path());
    let open = || -> BaseProducer {
        let producer: BaseProducer = kafka::client(&kafka.brokers).set("transactional.id", "another").create().unwrap();
        producer.init_transactions(PATIENCE).unwrap();
        producer.begin_transaction().unwrap();
        for partition in 0..kafka::PARTITIONS {
            producer.send(BaseRecord::<str, str>::to(&topic).partition(partition).payload(r#"{"n": 888}"#)).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
        producer
    };
    let before = (case == Case::RowsBehindAnother).then(open);
    old.run(3).await.unwrap();
    let (mark, _) = next(&old.key, old.head.as_ref().unwrap(), &[], 0);
    drop(old);
    let marks = format!("{topic}-marks");
    let last = kafka::records(&kafka.brokers, &marks).pop().unwrap();
    let another = (case == Case::CommittedBehindAnother).then(open);
    let name = format!("{marks}/job/{}/{}", id(Kind::Kafka), Lane::single());
    let former = Former::of(&kafka.brokers, &name);
    let is_announced = case != Case::All && !case.is_of_rows();
    if is_announced {
        former.announce(&topic, kafka::PARTITIONS);
    }
    let rows = expected(Kind::Kafka, 4).split_off(3 * ROWS as usize);
    let mut offsets = serde_json::Map::new();
    for (partition, n) in (0..kafka::PARTITIONS).zip(rows) {
        let offset = former.send(&topic, partition, "key", &format!(r#"{{"n": {n}}}"#));
        offsets.insert(partition.to_string(), offset.into());
    }
    if !case.is_of_rows() {
        let mut owned: serde_json::Value = serde_json::from_slice(last.payload().unwrap()).unwrap();
        owned["mark"] = serde_json::to_value(&mark).unwrap();
        owned["rows"] = offsets.into();
        let key = std::str::from_utf8(last.key().unwrap()).unwrap();
        former.send(&marks, last.partition(), key, &owned.to_string());
    }
    if is_announced {
        former.end(case != Case::Undone);
    }
    let lane = Lane::single();
    let claim = |instance| Runner::claim(make(Kind::Kafka, dir.path()), &lane, instance);
    if let Some(another) = another {
        let error = claim(2).await.map(|_| ()).unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("find-hanging"), "{error}");
        another.abort_transaction(PATIENCE).unwrap();
    }
    if case == Case::RowsAndRelease {
        let new = claim(2).await.unwrap();
        new.sink.release(&new.key).await.unwrap();
    }
    let mut new = claim(3).await.unwrap();
    if let Some(before) = before {
        let error = new.step().await.map(|_| ()).unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("rows of this lane"), "{error}");
        before.abort_transaction(PATIENCE).unwrap();
    }
    let is_there = matches!(case, Case::Committed | Case::CommittedBehindAnother);
    assert_eq!(new.seq(), Some(if is_there { 4 } else { 3 }), "{case:?}");
    new.run(6).await.unwrap();
    assert_eq!(seen(dir.path()), expected(Kind::Kafka, 6), "{case:?}");
}

fn seen(dir: &Path) -> Vec<i64> {
    rows(Kind::Kafka, dir)
}

/// Whoever claims the lane next ends it: as the rows tell, where they have their end, and where not, nothing of it is seen.
#[test]
fn a_transaction_that_nobody_ended_is_ended_by_the_next_owner() {
    let dir = tempfile::tempdir().unwrap();
    let Some(kafka) = services::Kafka::private(&dir.path().join("services")) else { return };
    kafka.tool(services::Kafka::CONFIGS, &UNVERIFIED);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for case in [
        Case::All,
        Case::Committed,
        Case::Undone,
        Case::CommittedBehindAnother,
        Case::Rows,
        Case::RowsAndRelease,
        Case::RowsBehindAnother,
    ] {
        runtime.block_on(run(&kafka, case));
    }
}
