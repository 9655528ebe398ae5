//! A topic of the real broker, for one test.

#![allow(clippy::unwrap_used, missing_docs, dead_code)]

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    message::OwnedHeaders,
    producer::{BaseProducer, BaseRecord, Producer},
};
use tidemill_config::{KafkaSource, Located, OnLostOffsets, Start, Tombstones};

use super::services;

/// Longer than the broker takes for anything.
const LIMIT: Duration = Duration::from_secs(60);

pub struct Topic {
    pub brokers: String,
    pub name: String,
    producer: BaseProducer,
}

pub fn fresh_name(stem: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{stem}-{}-{}-{}", now.as_millis(), std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap()
}

/// Also where a runtime is at work already.
fn block<T: Send>(future: impl Future<Output = T> + Send) -> T {
    let run = || tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future);
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

impl Topic {
    /// `None`: there is no broker here.
    pub fn new(partitions: i32, settings: &[(&str, &str)]) -> Option<Self> {
        let kafka = services::kafka()?;
        Some(Self::at(&kafka.brokers, &fresh_name("src"), partitions, settings))
    }

    pub fn at(brokers: &str, name: &str, partitions: i32, settings: &[(&str, &str)]) -> Self {
        let topic = Self::absent(brokers, name);
        topic.make(partitions, settings);
        topic
    }

    /// One whose partitions are on these brokers.
    pub fn on(brokers: &str, name: &str, nodes: &[i32]) -> Self {
        let topic = Self::absent(brokers, name);
        let each: Vec<_> = nodes.iter().map(std::slice::from_ref).collect();
        topic.create(NewTopic::new(name, i32::try_from(nodes.len()).unwrap(), TopicReplication::Variable(&each)));
        topic
    }

    fn absent(brokers: &str, name: &str) -> Self {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("enable.idempotence", "true")
            .set("linger.ms", "20")
            .set("topic.metadata.refresh.interval.ms", "500")
            .create()
            .unwrap();
        Self { brokers: brokers.to_owned(), name: name.to_owned(), producer }
    }

    pub fn make(&self, partitions: i32, settings: &[(&str, &str)]) {
        let mut new = NewTopic::new(&self.name, partitions, TopicReplication::Fixed(1));
        new.config = settings.to_vec();
        self.create(new);
    }

    fn create(&self, new: NewTopic<'_>) {
        let options = AdminOptions::new().operation_timeout(Some(LIMIT));
        let made = block(admin(&self.brokers).create_topics([&new], &options)).unwrap();
        made.into_iter().for_each(|one| drop(one.unwrap()));
    }

    pub fn delete(&self) {
        let options = AdminOptions::new().operation_timeout(Some(LIMIT));
        let done = block(admin(&self.brokers).delete_topics(&[&self.name], &options)).unwrap();
        done.into_iter().for_each(|one| drop(one.unwrap()));
    }

    pub fn add_partitions(&self, count: usize) {
        let options = AdminOptions::new().operation_timeout(Some(LIMIT));
        let new = rdkafka::admin::NewPartitions::new(&self.name, count);
        let done = block(admin(&self.brokers).create_partitions([&new], &options)).unwrap();
        done.into_iter().for_each(|one| drop(one.unwrap()));
    }

    /// Records before `offset` are gone (-1: all).
    pub fn delete_records(&self, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        let offset = if offset < 0 { Offset::End } else { Offset::Offset(offset) };
        list.add_partition_offset(&self.name, partition, offset).unwrap();
        let options = AdminOptions::new().operation_timeout(Some(LIMIT));
        let done = block(admin(&self.brokers).delete_records(&list, &options)).unwrap();
        done.elements().iter().for_each(|one| one.error().unwrap());
    }

    /// Sends records, and waits until the broker has them.
    pub fn send<'r>(&self, partition: i32, records: impl IntoIterator<Item = (Option<&'r str>, Option<&'r str>)>) {
        send(&self.producer, &self.name, partition, records);
    }

    pub fn send_values(&self, partition: i32, values: &[String]) {
        self.send(partition, values.iter().map(|value| (None, Some(value.as_str()))));
    }

    pub fn send_with_headers(&self, partition: i32, key: &[u8], value: &str, headers: OwnedHeaders, timestamp: i64) {
        let record = BaseRecord::to(&self.name).partition(partition).key(key).payload(value);
        self.producer.send(record.headers(headers).timestamp(timestamp)).map_err(|(error, _)| error).unwrap();
        self.producer.flush(LIMIT).unwrap();
    }

    /// A producer of transactions.
    pub fn transactional(&self) -> BaseProducer {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("transactional.id", fresh_name("tx"))
            .set("linger.ms", "5")
            .create()
            .unwrap();
        producer.init_transactions(LIMIT).unwrap();
        producer
    }

    /// What a source's job says of it.
    pub fn config(&self) -> KafkaSource {
        KafkaSource {
            members: 1,
            key: None,
            brokers: self.brokers.clone(),
            topics: vec![Located { value: self.name.clone(), at: Default::default() }],
            group: Some(format!("g-{}", self.name)),
            start: Start::Earliest,
            on_lost_offsets: OnLostOffsets::Stop,
            tombstones: Tombstones::Reject,
            properties: Vec::new(),
        }
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        let options = AdminOptions::new();
        let _ = block(admin(&self.brokers).delete_topics(&[&self.name], &options));
    }
}

/// Sends records by any producer, and waits until the broker has them.
pub fn send<'r>(
    producer: &BaseProducer,
    topic: &str,
    partition: i32,
    records: impl IntoIterator<Item = (Option<&'r str>, Option<&'r str>)>,
) {
    for (key, value) in records {
        let mut record: BaseRecord<'_, str, str> = BaseRecord::to(topic).partition(partition);
        record.key = key;
        record.payload = value;
        while let Err((error, again)) = producer.send(record) {
            // A new partition is heard of a little later.
            use rdkafka::error::RDKafkaErrorCode::{QueueFull, UnknownPartition};
            assert!(matches!(error.rdkafka_error_code(), Some(QueueFull | UnknownPartition)), "{error}");
            producer.poll(Duration::from_millis(10));
            record = again;
        }
    }
    producer.flush(LIMIT).unwrap();
}
