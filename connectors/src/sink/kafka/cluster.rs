//! How the sink's clients are made, and what their errors mean.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, Message,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode as Code},
    producer::{BaseProducer, DeliveryResult, ProducerContext},
};
use tidemill_config::KafkaSink;

use crate::{
    kafka::{LOGIN, Meaning, On, Operation, meaning, missing, no_client},
    sink::SinkError,
};

/// librdkafka's own limit of a batch of records, where `batch.size` says nothing else.
const BATCH_BYTES: usize = 1_000_000;

/// How long one question to the brokers may take.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// What a connection said so long ago has nothing to do with an error of now.
const FRESH: Duration = Duration::from_secs(30);

/// Operations, and on which thing.
pub(super) type Right<'a> = (&'a [Operation], On<'a>);

/// The right to write a topic.
pub(super) fn to_write(topic: &str) -> Right<'_> {
    (&[Operation::Write], On::Topic(topic))
}

/// The right to read a topic.
pub(super) fn to_read(topic: &str) -> Right<'_> {
    (&[Operation::Read], On::Topic(topic))
}

/// All that a marks' topic needs: for one that this user does not see, so that nobody knows whether it is there.
pub(super) fn to_keep_marks(topic: &str) -> Right<'_> {
    (&[Operation::Create, Operation::Read, Operation::Write], On::Topic(topic))
}

/// The right to a transactional id. All ids of a job begin with its marks' topic, and one rule is enough for all of them.
pub(super) fn to_take(id: &str) -> Right<'_> {
    (&[Operation::Write], On::Ids(id.find('/').map_or(id, |end| &id[..=end])))
}

/// How a producer sends rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    pub(super) compression: &'static str,
    /// Of a batch of records, beside one that is longer by itself.
    pub(super) batch_bytes: usize,
}

/// The brokers, and how they are spoken to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cluster {
    pub(super) brokers: String,
    /// librdkafka's properties; may hold secrets.
    properties: Vec<(String, String)>,
}

impl Cluster {
    pub(super) fn new(config: &KafkaSink) -> Self {
        Self { brokers: config.brokers.clone(), properties: config.properties.clone() }
    }

    /// The value of a property of the user.
    pub(super) fn property(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("client.id", "tidemill");
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config.set_log_level(RDKafkaLogLevel::Warning);
        config
    }

    fn make<T: FromClientConfigAndContext<Context>>(&self, config: &ClientConfig) -> Result<T, SinkError> {
        config.create_with_context(Context::default()).map_err(|error| match error {
            // The value may be a secret.
            KafkaError::ClientConfig(_, why, name, _) => {
                let why = if why.contains('=') { "its value is not accepted" } else { &why };
                SinkError::Fatal(format!("properties: `{name}`: {why}"))
            }
            other => SinkError::Fatal(format!("making a client for {}: {}", self.brokers, no_client(&other))),
        })
    }

    /// A reader of partitions that it is told; it is in no group.
    pub(super) fn reader(&self, isolation: &str) -> Result<BaseConsumer<Context>, SinkError> {
        self.make(&self.reader_config(isolation))
    }

    fn reader_config(&self, isolation: &str) -> ClientConfig {
        let mut config = self.config();
        if self.property("group.id").is_none() {
            // Never joined. librdkafka reads for nobody who has no name.
            config.set("group.id", "tidemill-marks");
        }
        config.set("isolation.level", isolation);
        config.set("enable.auto.commit", "false");
        config.set("enable.partition.eof", "true");
        config.set("auto.offset.reset", "earliest");
        config.set("allow.auto.create.topics", "false");
        // Reading stops at the end of what is there: no wait for more.
        config.set("fetch.wait.max.ms", "5");
        config.set("queued.max.messages.kbytes", "4096");
        // Reads from leaders only: a follower's end may lie before a mark that is committed.
        config.set("client.rack", "");
        config
    }

    /// How many bytes a batch of records has at most, as the job says.
    pub(super) fn batch_bytes(&self) -> usize {
        self.property("batch.size").and_then(|bytes| bytes.parse().ok()).unwrap_or(BATCH_BYTES)
    }

    /// How rows are sent.
    fn for_rows(&self, how: How) -> ClientConfig {
        let mut config = self.config();
        config.set("compression.codec", how.compression);
        // A record that is longer goes in a batch of its own.
        config.set("batch.size", how.batch_bytes.clamp(1, self.batch_bytes()).to_string());
        if self.property("partitioner").is_none() {
            config.set("partitioner", "murmur2_random");
        }
        if self.property("linger.ms").is_none() {
            // A batch is handed over as a whole: there is nothing to wait for.
            config.set("linger.ms", "1");
        }
        config
    }

    /// A producer that is the only one of its name: whoever comes later shuts this one out.
    pub(super) fn transactional(
        &self,
        id: &str,
        timeout: Duration,
        how: How,
    ) -> Result<BaseProducer<Context>, SinkError> {
        let mut config = self.for_rows(how);
        config.set("transactional.id", id);
        config.set("transaction.timeout.ms", timeout.as_millis().to_string());
        self.make(&config)
    }

    /// A producer without transactions, whose own tries to send a record again neither double nor reorder anything.
    pub(super) fn idempotent(&self, how: How) -> Result<BaseProducer<Context>, SinkError> {
        let mut config = self.for_rows(how);
        config.set("enable.idempotence", "true");
        self.make(&config)
    }

    /// A producer for beats: nothing depends on them.
    pub(super) fn plain(&self) -> Result<BaseProducer<Context>, SinkError> {
        let mut config = self.config();
        config.set("acks", "1");
        config.set("linger.ms", "0");
        config.set("message.timeout.ms", ANSWER.as_millis().to_string());
        self.make(&config)
    }

    pub(super) fn admin(&self) -> Result<rdkafka::admin::AdminClient<Context>, SinkError> {
        self.make(&self.config())
    }

    /// What this user lacks, and how it is given.
    pub(super) fn lacks(&self, lacks: Right<'_>) -> String {
        missing(&self.brokers, &self.properties, lacks.0, lacks.1)
    }

    /// What an error means to the sink. `needs` is the right that was used, `context` knows what the brokers' connections
    /// said.
    pub(super) fn explain(&self, what: &str, needs: Right<'_>, error: &KafkaError, context: &Context) -> SinkError {
        self.explain_code(what, needs, error.rdkafka_error_code(), &error.to_string(), context)
    }

    pub(super) fn explain_code(
        &self,
        what: &str,
        needs: Right<'_>,
        code: Option<Code>,
        text: &str,
        context: &Context,
    ) -> SinkError {
        let brokers = &self.brokers;
        let said = context.last_error();
        let login = |said: &str| {
            // A broker may refuse one that is right while it starts, or while a password is changed.
            SinkError::Transient {
                what: format!("{what} at {brokers}"),
                cause: format!("the login was refused ({said}): {LOGIN}"),
            }
        };
        let passes = |cause: String| SinkError::Transient { what: format!("{what} at {brokers}"), cause };
        let stops = |why: &str| SinkError::Fatal(format!("{what} at {brokers}: {why}"));
        match code.map(meaning) {
            // Rights are changed while a job runs: it waits for one that was taken, as for a broker that went.
            Some(Meaning::Denied) => passes(self.lacks(needs)),
            Some(Meaning::Login) => login(text),
            Some(Meaning::Absent) => passes(match needs.1 {
                On::Topic(topic) => self.no_topic(topic),
                _ => text.to_owned(),
            }),
            Some(Meaning::Row) => stops(&match code {
                Some(Code::MessageSizeTooLarge | Code::MessageBatchTooLarge) => "the topic refuses a record of this \
                    size: raise its max.message.bytes, or lower `message.max.bytes` in `properties`: larger rows go to \
                    the dead letters then"
                    .to_owned(),
                _ => format!("the brokers refuse a record ({text})"),
            }),
            Some(Meaning::Stops) => stops(&match code {
                Some(Code::InvalidTransactionTimeout) => "`transaction_timeout` is longer than the brokers allow \
                    (transaction.max.timeout.ms): make it shorter"
                    .to_owned(),
                Some(Code::UnsupportedVersion | Code::UnsupportedFeature) => {
                    format!("the brokers cannot do transactions ({text}): Kafka 2.5 or newer is needed")
                }
                Some(Code::UnsupportedCompressionType) => {
                    format!("the brokers do not know this compression ({text}): write another `compression:`")
                }
                Some(Code::PolicyViolation) => {
                    format!("a policy of the brokers forbids it ({text}): ask who manages the cluster")
                }
                _ => format!("refused by the brokers ({text}), and a new try would be too"),
            }),
            _ if said.contains("uthentication") => login(&said),
            Some(Meaning::Aside | Meaning::Passes) | None => {
                passes(if said.is_empty() { text.to_owned() } else { format!("{text} ({said})") })
            }
        }
    }

    /// That a topic is not there, and how it is made.
    pub(super) fn no_topic(&self, topic: &str) -> String {
        let brokers = &self.brokers;
        format!(
            "there is no topic `{topic}` at {brokers}, or this user may not see it: make it, with the partitions that you \
             want: kafka-topics.sh --bootstrap-server {brokers} --create --topic {topic} --partitions 6"
        )
    }
}

/// Listens to what a client says beside its answers.
#[derive(Default)]
pub(super) struct Context {
    error: Mutex<Option<(Instant, String)>>,
    undelivered: Mutex<Option<Undelivered>>,
    refused: Mutex<Vec<Refusal>>,
    /// The last offset in each partition to which a record was sent, of whatever topic; below 0: not known.
    delivered: Mutex<BTreeMap<i32, i64>>,
}

/// A record that the brokers did not take.
pub(super) struct Undelivered {
    pub(super) code: Code,
    pub(super) topic: String,
    pub(super) text: String,
}

impl Undelivered {
    /// It was thrown away by the client, or refused with its batch, because of something else that the brokers refused.
    pub(super) fn is_purged(&self) -> bool {
        meaning(self.code) == Meaning::Aside
    }
}

/// What a record of a row carries through the client: the row's number and one; 0 is a record of no row.
pub(super) type Tag = usize;

/// A record that the brokers refused for what it is, or for what it was sent with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Of the row among those of its batch.
    pub(super) row: u64,
    pub(super) partition: i32,
    pub(super) code: Code,
}

impl Context {
    /// The last thing that went wrong with a connection, or nothing.
    fn last_error(&self) -> String {
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        error.as_ref().filter(|(at, _)| at.elapsed() < FRESH).map(|(_, what)| what.clone()).unwrap_or_default()
    }

    fn said(&self, what: &str) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), what.to_owned()));
    }

    /// The first record that the brokers did not take since the last call.
    pub(super) fn take_undelivered(&self) -> Option<Undelivered> {
        self.undelivered.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Records that are at fault by themselves, or may be, since the last call.
    pub(super) fn take_refused(&self) -> Vec<Refusal> {
        std::mem::take(&mut self.refused.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The brokers, or the client, did not take a record.
    pub(super) fn refused(&self, error: &KafkaError, topic: &str, partition: i32, has_key: bool, tag: Tag) {
        let code = match error.rdkafka_error_code().unwrap_or(Code::Fail) {
            // As brokers before 2.4 say it of a compacted topic.
            Code::InvalidMessage if !has_key => Code::InvalidRecord,
            code => code,
        };
        let is_told = meaning(code) == Meaning::Row || code == Code::InvalidDifferentRecord;
        if let (true, Some(row)) = (is_told, tag.checked_sub(1)) {
            let refusal = Refusal { row: row as u64, partition, code };
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).push(refusal);
        }
        let mut first = self.undelivered.lock().unwrap_or_else(PoisonError::into_inner);
        // What was thrown away for the sake of another says less than that one.
        if first.as_ref().is_none_or(|first| first.is_purged() && meaning(code) != Meaning::Aside) {
            let topic = topic.to_owned();
            *first = Some(Undelivered { code, text: format!("topic {topic}: {error}"), topic });
        }
    }

    /// Where the records are that were sent since the last call: the last offset of each partition; below 0 where a broker
    /// had records already when they were sent again, and does not say where.
    pub(super) fn take_delivered(&self) -> BTreeMap<i32, i64> {
        std::mem::take(&mut self.delivered.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClientContext for Context {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", "{facility}: {message}");
        // A consumer's errors of connections come here and nowhere else.
        if facility == "FAIL" {
            self.said(message.rsplit_once("]: ").map_or(message, |(_, what)| what));
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
        self.said(reason);
    }
}

impl ConsumerContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = Tag;

    fn delivery(&self, result: &DeliveryResult<'_>, tag: Tag) {
        let (error, message) = match result {
            Ok(message) => {
                let mut delivered = self.delivered.lock().unwrap_or_else(PoisonError::into_inner);
                // The client counts on from -1 then.
                let last = delivered.entry(message.partition()).or_default();
                *last = if *last < 0 { *last } else { message.offset() };
                return;
            }
            Err((error, message)) => (error, message),
        };
        self.refused(error, message.topic(), message.partition(), message.key().is_some(), tag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_from_leaders_whatever_the_job_says() {
        let properties = vec![("client.rack".to_owned(), "near".to_owned())];
        let cluster = Cluster { brokers: "a:9092".into(), properties };
        for isolation in ["read_committed", "read_uncommitted"] {
            let config = cluster.reader_config(isolation);
            assert_eq!((config.get("client.rack"), config.get("isolation.level")), (Some(""), Some(isolation)));
        }
    }

    #[test]
    fn a_login_or_a_right_that_is_refused_while_a_job_runs_stops_no_lane() {
        let cluster = Cluster { brokers: "a:9092".into(), properties: Vec::new() };
        let explain =
            |code, context: &Context| cluster.explain_code("sending records", to_write("t"), code, "refused", context);
        let said = Context::default();
        said.said("SASL authentication error: bad password");
        for error in [
            explain(Some(Code::SaslAuthenticationFailed), &Context::default()),
            explain(Some(Code::OperationTimedOut), &said),
        ] {
            assert!(error.is_transient() && error.to_string().contains("the login was refused"), "{error}");
        }
        let denied = explain(Some(Code::TopicAuthorizationFailed), &said);
        assert!(denied.is_transient() && denied.to_string().contains("lacks Write on topic t"), "{denied}");
        assert!(!explain(Some(Code::InvalidTransactionTimeout), &said).is_transient());
    }
}
