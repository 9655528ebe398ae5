//! How the sink's clients are made, and what their errors mean.

use std::{
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

use crate::sink::SinkError;

/// How long one question to the brokers may take.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// What a connection said so long ago has nothing to do with an error of now.
const FRESH: Duration = Duration::from_secs(30);

/// What the sink sets itself, because its guarantee depends on it.
const OWN: [&str; 8] = [
    "bootstrap.servers",
    "transactional.id",
    "transaction.timeout.ms",
    "enable.idempotence",
    "acks",
    "isolation.level",
    "enable.auto.commit",
    "enable.partition.eof",
];

/// The brokers, and how they are spoken to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cluster {
    pub(super) brokers: String,
    /// librdkafka's properties; may hold secrets.
    properties: Vec<(String, String)>,
}

impl Cluster {
    pub(super) fn new(config: &KafkaSink) -> Result<Self, SinkError> {
        if let Some((name, _)) = config.properties.iter().find(|(name, _)| OWN.contains(&name.as_str())) {
            return Err(SinkError::Fatal(format!(
                "properties: `{name}` is set by the sink itself, its guarantee depends on it: leave it out"
            )));
        }
        Ok(Self { brokers: config.brokers.clone(), properties: config.properties.clone() })
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
            other => SinkError::Fatal(format!("making a client for {}: {other}", self.brokers)),
        })
    }

    /// A reader of partitions that it is told; it is in no group.
    pub(super) fn reader(&self, isolation: &str) -> Result<BaseConsumer<Context>, SinkError> {
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
        self.make(&config)
    }

    /// A producer that is the only one of its name: whoever comes later shuts this one out.
    pub(super) fn transactional(
        &self,
        id: &str,
        timeout: Duration,
        compression: &str,
    ) -> Result<BaseProducer<Context>, SinkError> {
        let mut config = self.config();
        config.set("compression.codec", compression);
        if self.property("partitioner").is_none() {
            config.set("partitioner", "murmur2_random");
        }
        if self.property("linger.ms").is_none() {
            // A batch is handed over as a whole: there is nothing to wait for.
            config.set("linger.ms", "1");
        }
        config.set("transactional.id", id);
        config.set("transaction.timeout.ms", timeout.as_millis().to_string());
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

    /// What an error means to the sink. `context` knows what the brokers' connections said.
    pub(super) fn explain(&self, what: &str, error: &KafkaError, context: &Context) -> SinkError {
        self.explain_code(what, error.rdkafka_error_code(), &error.to_string(), context)
    }

    pub(super) fn explain_code(&self, what: &str, code: Option<Code>, text: &str, context: &Context) -> SinkError {
        let brokers = &self.brokers;
        let said = context.last_error();
        let denied = |right: &str| {
            SinkError::Fatal(format!("{what} at {brokers}: not allowed: give this user the right to {right}"))
        };
        let login = |said: &str| {
            // A broker may refuse one that is right while it starts, or while a password is changed.
            SinkError::Transient {
                what: format!("{what} at {brokers}"),
                cause: format!(
                    "the login was refused ({said}): look at `security.protocol` and the `sasl.` properties"
                ),
            }
        };
        match code {
            Some(Code::TopicAuthorizationFailed) => denied("Describe, Read and Write the topic (ACLs)"),
            Some(Code::TransactionalIdAuthorizationFailed) => {
                denied("Write and Describe the transactional ids that begin with the name of the marks' topic (ACLs)")
            }
            Some(Code::ClusterAuthorizationFailed) => {
                denied("IdempotentWrite on the cluster, or Create the marks' topic yourself (ACLs)")
            }
            Some(Code::SaslAuthenticationFailed | Code::Authentication) => login(text),
            Some(Code::InvalidTransactionTimeout) => SinkError::Fatal(format!(
                "{what} at {brokers}: `transaction_timeout` is longer than the brokers allow \
                 (transaction.max.timeout.ms): make it shorter"
            )),
            Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize) => SinkError::Fatal(format!(
                "{what} at {brokers}: the topic refuses a record of this size: raise its max.message.bytes, or lower \
                 `message.max.bytes` in `properties`: larger rows go to the dead letters then"
            )),
            Some(Code::UnsupportedVersion | Code::UnsupportedFeature) => SinkError::Fatal(format!(
                "{what} at {brokers}: the brokers cannot do transactions ({text}): Kafka 2.5 or newer is needed"
            )),
            _ if said.contains("uthentication") => login(&said),
            _ => {
                let cause = if said.is_empty() { text.to_owned() } else { format!("{text} ({said})") };
                SinkError::Transient { what: format!("{what} at {brokers}"), cause }
            }
        }
    }
}

/// Listens to what a client says beside its answers.
#[derive(Default)]
pub(super) struct Context {
    error: Mutex<Option<(Instant, String)>>,
    undelivered: Mutex<Option<(Code, String)>>,
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
    pub(super) fn take_undelivered(&self) -> Option<(Code, String)> {
        self.undelivered.lock().unwrap_or_else(PoisonError::into_inner).take()
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
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let Err((error, message)) = result else { return };
        let mut first = self.undelivered.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
            *first = Some((code, format!("topic {}: {error}", message.topic())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_that_is_refused_while_a_job_runs_stops_no_lane() {
        let cluster = Cluster { brokers: "a:9092".into(), properties: Vec::new() };
        let explain = |code, context: &Context| cluster.explain_code("sending records", code, "refused", context);
        let said = Context::default();
        said.said("SASL authentication error: bad password");
        for error in [
            explain(Some(Code::SaslAuthenticationFailed), &Context::default()),
            explain(Some(Code::OperationTimedOut), &said),
        ] {
            assert!(error.is_transient() && error.to_string().contains("the login was refused"), "{error}");
        }
        assert!(!explain(Some(Code::TopicAuthorizationFailed), &said).is_transient());
    }
}
