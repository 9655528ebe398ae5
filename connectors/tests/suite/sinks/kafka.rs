//! A topic of its own for each folder of a test, and a reader of it that is not the sink's own code.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::{Headers, OwnedMessage},
};
use tidemill_checkpoint::Digest;
use tidemill_config::{At, Codec, Guarantee, KafkaCompression, KafkaSink, Located};

use super::services;

const LIMIT: Duration = Duration::from_secs(30);
/// Partitions of a test's topic.
pub const PARTITIONS: i32 = 3;

/// The brokers of a folder's topic: those that its file `brokers` names, or the shared ones.
pub fn brokers(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("brokers")).unwrap_or_else(|_| services::kafka().unwrap().brokers.clone())
}

/// The topic of a folder.
pub fn topic(dir: &Path) -> String {
    format!("sink-{}", Digest::of(dir.as_os_str().as_encoded_bytes()).short())
}

pub fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

/// Makes a topic where it is absent.
pub fn make_topic(brokers: &str, name: &str, partitions: i32) {
    static MADE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut made = MADE.lock().unwrap();
    if !made.insert(name.to_owned()) {
        return;
    }
    let admin: AdminClient<DefaultClientContext> = client(brokers).create().unwrap();
    let new = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(LIMIT));
    let answer = std::thread::scope(|scope| {
        let make = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(admin.create_topics([&new], &options)).unwrap()
        };
        scope.spawn(make).join().unwrap()
    });
    if let Err((_, code)) = &answer[0] {
        assert_eq!(*code, rdkafka::error::RDKafkaErrorCode::TopicAlreadyExists);
    }
    let consumer: BaseConsumer = client(brokers).create().unwrap();
    let began = Instant::now();
    while partitions_of(&consumer, name).len() != partitions as usize {
        assert!(began.elapsed() < LIMIT, "topic {name} does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn partitions_of(consumer: &BaseConsumer, topic: &str) -> Vec<i32> {
    let metadata = consumer.fetch_metadata(Some(topic), LIMIT).unwrap();
    metadata.topics()[0].partitions().iter().map(|partition| partition.id()).collect()
}

/// The topics whose names contain this.
pub fn topics(brokers: &str, part: &str) -> Vec<String> {
    let consumer: BaseConsumer = client(brokers).create().unwrap();
    let metadata = consumer.fetch_metadata(None, LIMIT).unwrap();
    let names = metadata.topics().iter().map(|topic| topic.name()).filter(|name| name.contains(part));
    names.map(str::to_owned).collect()
}

/// The sink of a folder; its topic is there.
pub fn config(dir: &Path) -> KafkaSink {
    let (topic, brokers) = (topic(dir), brokers(dir));
    make_topic(&brokers, &topic, PARTITIONS);
    let timeout = std::fs::read_to_string(dir.join("timeout")).map_or(60, |seconds| seconds.parse().unwrap());
    KafkaSink {
        brokers,
        marks_topic: Some(format!("{topic}-marks")),
        topic,
        key: None,
        headers: Vec::new(),
        headers_from: None,
        timestamp: None,
        omit: Vec::new(),
        delete_when: None,
        codec: Codec::Json,
        compression: KafkaCompression::None,
        guarantee: Guarantee::ExactlyOnce,
        transaction_timeout: Duration::from_secs(timeout),
        properties: Vec::new(),
    }
}

/// All records of a topic that a reader of committed ones sees, partition by partition, once no transaction is open.
pub fn records(brokers: &str, topic: &str) -> Vec<OwnedMessage> {
    let make = |isolation: &str| -> BaseConsumer {
        let mut config = client(brokers);
        config.set("group.id", "independent-reader").set("isolation.level", isolation);
        config.set("enable.partition.eof", "true").set("auto.offset.reset", "earliest");
        config.set("enable.auto.commit", "false").set("fetch.wait.max.ms", "5");
        config.create().unwrap()
    };
    let (committed, all) = (make("read_committed"), make("read_uncommitted"));
    let began = Instant::now();
    let mut found = Vec::new();
    let mut assignment = TopicPartitionList::new();
    let mut open = BTreeSet::new();
    for partition in partitions_of(&committed, topic) {
        let (_, end) = all.fetch_watermarks(topic, partition, LIMIT).unwrap();
        while committed.fetch_watermarks(topic, partition, LIMIT).unwrap().1 < end {
            assert!(began.elapsed() < 4 * LIMIT, "a transaction stays open in {topic}/{partition}");
            std::thread::sleep(Duration::from_millis(20));
        }
        if end > 0 {
            assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
            open.insert(partition);
        }
    }
    committed.assign(&assignment).unwrap();
    while !open.is_empty() {
        assert!(began.elapsed() < 5 * LIMIT, "no end of {topic}");
        match committed.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => found.push(message.detach()),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            Some(Err(error)) => println!("reading {topic}: {error}"),
            None => {}
        }
    }
    found.sort_by_key(|message| (message.partition(), message.offset()));
    found
}

/// The numbers in a folder's topic.
pub fn numbers(dir: &Path) -> Vec<i64> {
    let value = |message: OwnedMessage| {
        let value: serde_json::Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
        value["n"].as_i64().unwrap()
    };
    records(&brokers(dir), &topic(dir)).into_iter().map(value).collect()
}

/// A record's headers.
pub fn headers(message: &OwnedMessage) -> BTreeMap<String, String> {
    let Some(headers) = message.headers() else { return BTreeMap::new() };
    let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap().to_vec()).unwrap();
    headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect()
}

/// A column as a job names it.
pub fn column(name: &str) -> Located<String> {
    Located { value: name.to_owned(), at: At::default() }
}
