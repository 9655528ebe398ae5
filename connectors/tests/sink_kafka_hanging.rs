//! A transaction that the brokers never end. A coordinator that finds no leader of a partition takes it for deleted, and
//! writes no end of the transaction there; nor does it know of records that came without being announced, which a broker
//! that does not verify them takes. Such records are made here, by the protocol itself: no client makes them.

#![allow(clippy::unwrap_used, missing_docs)]

mod sinks;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
};

use rdkafka::Message;
use sinks::*;
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

/// A batch of one record of a transaction; key and value are shorter than 64 bytes.
fn record_batch((producer, epoch): (i64, i16), key: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| [(text.len() * 2) as u8];
    let mut record = Bytes::default().int([0, 0, 0]).int(length(key));
    record.0.extend(key.as_bytes());
    let mut record = record.int(length(value));
    record.0.extend(value.as_bytes());
    let record = record.int([0]);
    let checked = Bytes::default()
        .int(0x10_i16.to_be_bytes())
        .int(0_i32.to_be_bytes())
        .int(1_i64.to_be_bytes())
        .int(1_i64.to_be_bytes())
        .int(producer.to_be_bytes())
        .int(epoch.to_be_bytes())
        .int(0_i32.to_be_bytes())
        .int(1_i32.to_be_bytes())
        .int([(record.0.len() * 2) as u8]);
    let checked = [checked.0, record.0].concat();
    let head = Bytes::default().int((-1_i32).to_be_bytes()).int([2]).int(crc32c(&checked).to_be_bytes());
    Bytes::default().int(0_i64.to_be_bytes()).bytes(&[head.0, checked].concat()).0
}

/// A record of the lane's transaction that nobody will end.
fn hang(brokers: &str, id: &str, producer: (i64, i16), topic: &str, partition: i32, value: &str) {
    let one = 1_i32.to_be_bytes();
    let body = Bytes::default().text(id).int((-1_i16).to_be_bytes()).int(10_000_i32.to_be_bytes());
    let body = body.int(one).text(topic).int(one).int(partition.to_be_bytes());
    let answer = ask(brokers, 0, 3, body.bytes(&record_batch(producer, "hanging", value)));
    assert_eq!(i16::from_be_bytes(number(&answer, 4 + 2 + topic.len() + 4 + 4)), 0, "{topic}: {answer:?}");
}

/// Whoever claims the lane next ends it, and nothing of it is ever seen: neither a mark nor a row.
#[test]
fn a_transaction_that_nobody_ended_is_undone_by_the_next_owner() {
    let dir = tempfile::tempdir().unwrap();
    let Some(kafka) = services::Kafka::private(&dir.path().join("services")) else { return };
    fs::write(dir.path().join("brokers"), &kafka.brokers).unwrap();
    kafka.tool(services::Kafka::CONFIGS, &UNVERIFIED);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut old = Runner::claim(make(Kind::Kafka, dir.path()), &Lane::single(), 1).await.unwrap();
        old.run(3).await.unwrap();
        drop(old);
        let topic = kafka::topic(dir.path());
        let marks = format!("{topic}-marks");
        let partition = kafka::records(&kafka.brokers, &marks).pop().unwrap().partition();
        let name = format!("{marks}/job/{}/{}", id(Kind::Kafka), Lane::single());
        let answer = ask(&kafka.brokers, 22, 0, Bytes::default().text(&name).int(60_000_i32.to_be_bytes()));
        assert_eq!(i16::from_be_bytes(number(&answer, 4)), 0, "{answer:?}");
        let producer = (i64::from_be_bytes(number(&answer, 6)), i16::from_be_bytes(number(&answer, 14)));
        for partition in 0..kafka::PARTITIONS {
            hang(&kafka.brokers, &name, producer, &topic, partition, r#"{"n": 999}"#);
        }
        hang(&kafka.brokers, &name, producer, &marks, partition, "a mark");
        let mut new = Runner::claim(make(Kind::Kafka, dir.path()), &Lane::single(), 2).await.unwrap();
        assert_eq!(new.seq(), Some(3));
        new.run(6).await.unwrap();
    });
    assert_eq!(rows(Kind::Kafka, dir.path()), expected(Kind::Kafka, 6));
}
