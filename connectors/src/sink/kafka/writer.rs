//! The producer of one lane: transactions, and what can become of them. Also the one that has none.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode as Code},
    producer::{BaseProducer, BaseRecord, Producer},
};
use tidemill_checkpoint::failpoint;

use super::{
    cluster::{ANSWER, Cluster, Context, How, Refusal, Tag, to_take, to_write},
    encode::Out,
};
use crate::{
    kafka::{
        Meaning, is_denied, meaning,
        native::{self, Ask},
    },
    sink::SinkError,
};

/// How long the coordinator may take to end a former owner's transaction.
const SHUTTING_OUT: Duration = Duration::from_secs(60);
/// Between two tries of what may pass.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two looks at what is on its way.
const LOOK: Duration = Duration::from_micros(500);
/// Records that are not answered for so long are a reason to look whether their topics are there: the client itself waits
/// for a topic that is gone until its records are too old.
const UNANSWERED: Duration = Duration::from_secs(3);
/// What a record that was never sent is in.
const ANY_PARTITION: i32 = -1;
/// Reports of delivery are taken in after so many records.
const REPORTS_EVERY: usize = 10_000;

/// A producer; one of transactions has a name that no other live producer has.
pub(super) struct Writer {
    producer: BaseProducer<Context>,
    cluster: Cluster,
    /// The name, where it has one.
    id: Option<String>,
    timeout: Duration,
    how: How,
    sent: usize,
    /// To which records were sent.
    topics: BTreeSet<String>,
}

/// Why a transaction is not known to be committed.
pub(super) enum Failure {
    /// It was undone: nothing of it is there, and the producer can go on.
    Undone(SinkError),
    /// It may be there or not, and the producer can not go on: it may have been shut out. The marks tell.
    Unknown(SinkError),
}

impl Failure {
    pub(super) fn error(self) -> SinkError {
        match self {
            Self::Undone(error) | Self::Unknown(error) => error,
        }
    }
}

impl Writer {
    /// Takes the name. Every earlier producer of it is shut out, and its open transaction has ended, one way or the other.
    pub(super) fn open(
        cluster: &Cluster,
        topic: &str,
        id: &str,
        timeout: Duration,
        how: How,
    ) -> Result<Self, SinkError> {
        let producer = cluster.transactional(id, timeout, how)?;
        let what = format!("taking the transactional id {id}");
        let begun = Instant::now();
        // librdkafka looks for the coordinator at once where it is connected, else half a second later.
        let _ = producer.client().fetch_metadata(Some(topic), ANSWER);
        loop {
            let Err(error) = producer.init_transactions(ANSWER) else { break };
            producer.poll(Duration::ZERO);
            let explained = cluster.explain(&what, to_take(id), &error, producer.context());
            let passes = matches!(&error, KafkaError::Transaction(error) if error.is_retriable());
            if !passes || !explained.is_transient() || begun.elapsed() > SHUTTING_OUT {
                return Err(explained);
            }
            thread::sleep(PAUSE);
        }
        Ok(Self::new(producer, cluster, Some(id.to_owned()), timeout, how))
    }

    /// One without a name: it sends, and waits no longer than `timeout` for the answers.
    pub(super) fn plain(cluster: &Cluster, timeout: Duration, how: How) -> Result<Self, SinkError> {
        let producer = cluster.idempotent(how)?;
        Ok(Self::new(producer, cluster, None, timeout, how))
    }

    fn new(
        producer: BaseProducer<Context>,
        cluster: &Cluster,
        id: Option<String>,
        timeout: Duration,
        how: How,
    ) -> Self {
        Self { producer, cluster: cluster.clone(), id, timeout, how, sent: 0, topics: BTreeSet::new() }
    }

    /// What a batch of records has at most.
    pub(super) fn batch_bytes(&self) -> usize {
        self.how.batch_bytes
    }

    /// Records of rows that were refused since the last call, or since a transaction began.
    pub(super) fn take_refused(&self) -> Vec<Refusal> {
        self.producer.poll(Duration::ZERO);
        self.producer.context().take_refused()
    }

    /// Sends everything that `send` gives, and commits it.
    pub(super) fn transact(&mut self, send: impl FnOnce(&mut Self) -> Result<(), SinkError>) -> Result<(), Failure> {
        let begun = Instant::now();
        self.producer.context().take_undelivered();
        self.producer.context().take_refused();
        self.producer.context().take_delivered();
        if let Err(error) = self.producer.begin_transaction() {
            return Err(Failure::Unknown(self.explain("beginning a transaction", &error)));
        }
        let sent = send(self).and_then(|()| passed("kafka.after-rows")).and_then(|()| self.settle());
        if let Err(error) = sent.and_then(|()| passed("kafka.before-commit")) {
            return Err(self.undo(error));
        }
        loop {
            let Err(error) = self.producer.commit_transaction(ANSWER) else { break };
            self.producer.poll(Duration::ZERO);
            let explained = self.explain("committing a transaction", &error);
            match &error {
                KafkaError::Transaction(error) if error.txn_requires_abort() => return Err(self.undo(explained)),
                KafkaError::Transaction(error) if error.is_retriable() && begun.elapsed() < 2 * self.timeout => {
                    thread::sleep(PAUSE);
                }
                _ => return Err(Failure::Unknown(explained)),
            }
        }
        passed("kafka.after-commit").map_err(Failure::Unknown)
    }

    /// Sends everything that `send` gives, and undoes it.
    pub(super) fn undone(&mut self, send: impl FnOnce(&mut Self) -> Result<(), SinkError>) -> Result<(), SinkError> {
        self.producer.context().take_undelivered();
        let begun = self.producer.begin_transaction();
        begun.map_err(|error| self.explain("beginning a transaction", &error))?;
        let sent = send(self).and_then(|()| self.settle());
        let nothing = || SinkError::Transient { what: "undoing a transaction".into(), cause: "no answer".into() };
        match (sent, self.undo(nothing())) {
            (Ok(()), Failure::Undone(_)) => Ok(()),
            (Ok(()), failed) => Err(failed.error()),
            (Err(error), _) => Err(error),
        }
    }

    /// Waits until the brokers have every record that was handed over.
    pub(super) fn settle(&self) -> Result<(), SinkError> {
        let begun = Instant::now();
        while !flush(&self.producer, UNANSWERED) {
            self.looks_for_topics()?;
            if begun.elapsed() > self.timeout {
                return Err(self.explain("sending records", &KafkaError::Flush(Code::OperationTimedOut)));
            }
        }
        self.undelivered().map_or(Ok(()), Err)
    }

    /// An error where a topic is gone to which records were sent. Asked so that nobody makes it.
    fn looks_for_topics(&self) -> Result<(), SinkError> {
        let names: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        let found = native::describe_topics(self.producer.client(), &names, Ask::Topics, UNANSWERED);
        let gone =
            found.into_iter().flatten().filter_map(Result::err).find(|(_, code)| meaning(*code) == Meaning::Absent);
        let Some((topic, code)) = gone else { return Ok(()) };
        let what = format!("sending records to topic {topic}");
        let context = self.producer.context();
        Err(self.cluster.explain_code(&what, to_write(&topic), Some(code), &code.to_string(), context))
    }

    /// Where the transaction's records are that have settled: the last offset of each partition.
    pub(super) fn settled(&self) -> BTreeMap<i32, i64> {
        self.producer.context().take_delivered()
    }

    /// Whether another producer took the id. Who, the marks tell, once it has written its claim.
    pub(super) fn is_shut_out(&self) -> bool {
        self.producer.client().fatal_error().is_some_and(|(code, _)| !is_denied(Some(code)))
    }

    fn undo(&self, error: SinkError) -> Failure {
        let begun = Instant::now();
        let error = self.undelivered().unwrap_or(error);
        while let Err(failed) = self.producer.abort_transaction(ANSWER) {
            self.producer.poll(Duration::ZERO);
            let passes = matches!(&failed, KafkaError::Transaction(failed) if failed.is_retriable());
            if !passes || begun.elapsed() > self.timeout {
                return Failure::Unknown(error);
            }
            thread::sleep(PAUSE);
        }
        Failure::Undone(error)
    }

    fn undelivered(&self) -> Option<SinkError> {
        self.producer.poll(Duration::ZERO);
        let lost = self.producer.context().take_undelivered()?;
        let (code, text) = if lost.is_purged() { self.why() } else { None }.unwrap_or((lost.code, lost.text));
        let needs = match &self.id {
            Some(id) if code == Code::TransactionalIdAuthorizationFailed => to_take(id),
            _ => to_write(&lost.topic),
        };
        let what = format!("sending records to topic {}", lost.topic);
        Some(self.cluster.explain_code(&what, needs, Some(code), &text, self.producer.context()))
    }

    /// Why the client threw records away. Nothing begins: a transaction is open, and the client says what became of it.
    fn why(&self) -> Option<(Code, String)> {
        if let Some(fatal) = self.producer.client().fatal_error() {
            return Some(fatal);
        }
        let error = self.id.as_ref().and_then(|_| self.producer.begin_transaction().err())?;
        Some((error.rdkafka_error_code()?, error.to_string()))
    }

    fn explain(&self, what: &str, error: &KafkaError) -> SinkError {
        let needs = self.id.as_deref().map_or(to_write(""), to_take);
        self.cluster.explain(what, needs, error, self.producer.context())
    }

    /// Hands a record over to be sent. `partition`: `None` leaves it to the key.
    pub(super) fn send(
        &mut self,
        topic: &str,
        partition: Option<i32>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<(), SinkError> {
        let mut record = BaseRecord::with_opaque_to(topic, 0);
        (record.partition, record.key, record.payload) = (partition, key, value);
        self.hand_over(record)
    }

    /// The same with a row's record.
    pub(super) fn send_row(&mut self, topic: &str, row: Out<'_>) -> Result<(), SinkError> {
        let mut record = BaseRecord::with_opaque_to(topic, row.tag);
        (record.key, record.payload, record.headers, record.timestamp) = (row.key, row.value, row.headers, row.time);
        self.hand_over(record)
    }

    fn hand_over(&mut self, record: BaseRecord<'_, [u8], [u8], Tag>) -> Result<(), SinkError> {
        if !self.topics.contains(record.topic) {
            self.topics.insert(record.topic.to_owned());
        }
        send(&self.producer, &self.cluster, record, self.timeout, || self.looks_for_topics())?;
        self.sent += 1;
        if self.sent.is_multiple_of(REPORTS_EVERY) {
            self.producer.poll(Duration::ZERO);
        }
        Ok(())
    }
}

/// Takes in reports of delivery, or waits a moment where there are none. The client's own `poll` stays to its deadline, and
/// spins over the last millisecond; its `flush` looks every 100 ms only.
fn look(producer: &BaseProducer<Context>) {
    let before = producer.in_flight_count();
    producer.poll(Duration::ZERO);
    if producer.in_flight_count() == before {
        thread::sleep(LOOK);
    }
}

/// Waits until every record that was handed over is answered.
pub(super) fn flush(producer: &BaseProducer<Context>, patience: Duration) -> bool {
    let begun = Instant::now();
    while producer.in_flight_count() > 0 {
        if begun.elapsed() > patience {
            return false;
        }
        look(producer);
    }
    true
}

/// Hands a record over, waiting while the producer's queue is full, and as long as `may_wait` has no error.
pub(super) fn send(
    producer: &BaseProducer<Context>,
    cluster: &Cluster,
    mut record: BaseRecord<'_, [u8], [u8], Tag>,
    patience: Duration,
    may_wait: impl Fn() -> Result<(), SinkError>,
) -> Result<(), SinkError> {
    let (begun, topic) = (Instant::now(), record.topic);
    let mut looked = begun;
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((error, back)) => {
                let full = error.rdkafka_error_code() == Some(Code::QueueFull);
                if !full || begun.elapsed() > patience {
                    let (has_key, tag) = (back.key.is_some(), back.delivery_opaque);
                    producer.context().refused(&error, topic, ANY_PARTITION, has_key, tag);
                    return Err(cluster.explain("sending records", to_write(topic), &error, producer.context()));
                }
                record = back;
                look(producer);
                if looked.elapsed() > UNANSWERED {
                    may_wait()?;
                    looked = Instant::now();
                }
            }
        }
    }
}

/// Passes a failpoint: an error of it is one that may pass.
pub(super) fn passed(name: &str) -> Result<(), SinkError> {
    failpoint::pass(name).map_err(|error| SinkError::io("writing to Kafka", &error))
}
