//! Clients of librdkafka: how they are configured, what they say when something is wrong, and what that means.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, ConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use tidemill_config::KafkaSource as Config;

use crate::{
    kafka::{LOGIN, is_denied, no_client},
    source::SourceError,
};

/// How long one question to the brokers may take.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// What a client said of itself is told as a cause for so long.
const RECENT: Duration = Duration::from_secs(30);
/// New partitions and topics of a pattern are seen within this time.
const METADATA_REFRESH: Duration = Duration::from_secs(5);

/// What all clients of one source have in common.
pub(super) fn config(config: &Config, group: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("client.id", "tidemill")
        .set("topic.metadata.refresh.interval.ms", METADATA_REFRESH.as_millis().to_string())
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.max.ms", "5000")
        .set_log_level(RDKafkaLogLevel::Info);
    for (name, value) in &config.properties {
        client.set(name, value);
    }
    client
        .set("bootstrap.servers", &config.brokers)
        .set("group.id", group)
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("allow.auto.create.topics", "false");
    client
}

/// A client that asks, and reads spans again. It speaks to leaders alone: a follower that is near may not know the end of a
/// span yet, and what it lacks would be left out of a batch. It is no member of the group, and does not take a member's name.
pub(super) fn asking_config(given: &Config, group: &str) -> ClientConfig {
    let mut client = config(given, group);
    client.set("client.rack", "").remove("group.instance.id");
    client
}

/// A client that reads: what it fetches ahead of the batches stays below `ahead_bytes`, over so many partitions.
pub(super) fn reader_config(given: &Config, group: &str, ahead_bytes: usize, partitions: usize) -> ClientConfig {
    /// Below this a fetch costs more than what it brings.
    const LEAST_BYTES: usize = 64 * 1024;
    let mut client = config(given, group);
    let each = (ahead_bytes / partitions.max(1)).clamp(LEAST_BYTES, 1 << 30);
    let mut set = |name: &str, value: usize| {
        if property(given, name).is_none() {
            client.set(name, value.to_string());
        }
    };
    // A queue for each partition: the bound counts for each.
    set("queued.max.messages.kbytes", each / 1024);
    set("max.partition.fetch.bytes", each.min(1 << 20));
    // The client wants a fetch to be at least as large as the largest record that it would send itself.
    let sends = property(given, "message.max.bytes").and_then(|bytes| bytes.parse().ok());
    let fetch = ahead_bytes.clamp(LEAST_BYTES, 50 << 20).max(sends.unwrap_or(0));
    let fetch = property(given, "fetch.max.bytes").and_then(|bytes| bytes.parse().ok()).unwrap_or(fetch);
    set("fetch.max.bytes", fetch);
    set("message.max.bytes", fetch.min(1_000_000));
    // How long the brokers wait for a first byte: partitions that are new to the client wait for the answer.
    set("fetch.wait.max.ms", 100);
    // A full queue is asked again soon: a batch empties it at once.
    set("fetch.queue.backoff.ms", 10);
    client
}

/// The member of the group: it reads nothing.
pub(super) fn member_config(given: &Config, group: &str) -> ClientConfig {
    let mut client = config(given, group);
    if !given.properties.iter().any(|(name, _)| name == "partition.assignment.strategy") {
        // Partitions that stay are not taken away while others move.
        client.set("partition.assignment.strategy", "cooperative-sticky");
    }
    client.set("queued.max.messages.kbytes", "1").set("queued.min.messages", "1");
    client
}

/// The value of a property as the job gives it.
pub(super) fn property<'c>(config: &'c Config, name: &str) -> Option<&'c str> {
    config.properties.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
}

/// What clients say of themselves, beside their answers.
#[derive(Debug, Default)]
pub(super) struct Voice(Mutex<Option<(Instant, RDKafkaErrorCode, String)>>);

impl Voice {
    fn says(&self, code: RDKafkaErrorCode, reason: &str) {
        use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, PartitionEOF};
        // The end of a partition is told by the same way, and is no complaint.
        if code == PartitionEOF {
            return;
        }
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // That a connection failed, and that all are down, follows from the reason that came before: a login, say.
        let rank = |code: RDKafkaErrorCode, reason: &str| match code {
            AllBrokersDown => 0,
            BrokerTransportFailure if !reason.contains("SSL") && !reason.contains("APIVERSION_QUERY") => 1,
            _ => 2,
        };
        let keeps = |(at, kept, text): &(Instant, RDKafkaErrorCode, String)| {
            at.elapsed() < RECENT && rank(*kept, text) > rank(code, reason)
        };
        if !last.as_ref().is_some_and(keeps) {
            *last = Some((Instant::now(), code, reason.to_owned()));
        }
    }

    /// The last complaint, where it is fresh.
    pub fn recent(&self) -> Option<(RDKafkaErrorCode, String)> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(at, _, _)| at.elapsed() < RECENT).map(|(_, code, reason)| (*code, reason.clone()))
    }
}

/// Hears a reader's client.
pub(super) struct Context {
    pub voice: std::sync::Arc<Voice>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
        // That a connection ended at its first bytes is a line of the log, and no error.
        if facility == "FAIL" && message.contains("APIVERSION_QUERY") {
            let reason = message.rsplit_once("]: ").map_or(message, |(_, reason)| reason);
            self.voice.says(RDKafkaErrorCode::BrokerTransportFailure, reason);
        }
    }
    fn error(&self, error: KafkaError, reason: &str) {
        heard(&self.voice, &error, reason);
    }
}

/// How long a client is served, from one complaint to the next, and how many there may be.
const SERVE: Duration = Duration::from_millis(50);
const MOST_COMPLAINTS: usize = 50;

/// Hears what a client that asks has to say: why there was no answer. Complaints stand behind lines of its log, which a poll
/// of no time would take one by one.
pub(super) fn hear(client: &BaseConsumer<Context>) {
    for _ in 0..MOST_COMPLAINTS {
        if client.poll(SERVE).is_none() {
            break;
        }
    }
}

impl ConsumerContext for Context {
    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        committed(&result);
    }
}

/// librdkafka's lines are details of ours: what matters comes as an error.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::warn!(facility, "kafka: {message}");
        }
        _ => tracing::debug!(facility, "kafka: {message}"),
    }
}

pub(super) fn heard(voice: &Voice, error: &KafkaError, reason: &str) {
    if let Some(code) = error.rdkafka_error_code() {
        tracing::debug!(%code, "kafka: {reason}");
        voice.says(code, reason);
    }
}

/// Group offsets are for people and monitors: where they cannot be written nothing is lost, and the next ones come soon.
pub(super) fn committed(result: &KafkaResult<()>) {
    match result.as_ref().err().and_then(KafkaError::rdkafka_error_code) {
        None | Some(RDKafkaErrorCode::NoOffset) => {}
        Some(code) if is_denied(Some(code)) => {
            tracing::warn!(
                "kafka: the group's offsets could not be committed: the user lacks Read on the group (`kafka-acls.sh ... --operation Read --group NAME`); monitors show an older state, and nothing is lost"
            );
        }
        Some(code) => {
            tracing::warn!(%code, "kafka: the group's offsets could not be committed; tried again")
        }
    }
}

/// A client cannot be made of the job's properties.
pub(super) fn refused(error: &KafkaError) -> SourceError {
    let text = match error {
        KafkaError::ClientConfig(_, what, name, _) if !name.is_empty() => format!("property {name}: {what}"),
        other => no_client(other),
    };
    SourceError::Fatal(format!("the properties of this kafka source are not accepted: {text}"))
}

/// An error that may pass, with what the client said of its connections.
pub(super) fn transient(voice: &Voice, what: impl Into<String>, cause: impl Into<String>) -> SourceError {
    let cause = cause.into();
    let cause = voice.recent().map_or(cause.clone(), |(code, reason)| explained(code, &reason).unwrap_or(cause));
    SourceError::Transient { what: what.into(), cause }
}

/// Complaints in words that say what to do. `None`: no better words than the cause's own.
pub(super) fn explained(code: RDKafkaErrorCode, reason: &str) -> Option<String> {
    use RDKafkaErrorCode as Code;
    // librdkafka begins with the broker's address, and ends with how long it tried.
    let reason = reason.trim_end_matches(|c: char| c == '.' || c.is_whitespace());
    Some(match code {
        Code::Authentication | Code::SaslAuthenticationFailed => {
            format!("the brokers do not accept the login ({reason}): {LOGIN}")
        }
        Code::SSL | Code::BrokerTransportFailure if code == Code::SSL || reason.contains("SSL") => {
            format!("no TLS connection ({reason}): look at security.protocol and ssl.ca.location")
        }
        Code::Resolve => format!("no such host ({reason}): look at `brokers`"),
        // So a listener of TLS ends a connection that begins without.
        Code::BrokerTransportFailure if reason.contains("APIVERSION_QUERY") => {
            format!(
                "the brokers end the connection at its first bytes ({reason}): do they want TLS there? Set security.protocol to \
             SSL, or to SASL_SSL with a login"
            )
        }
        Code::BrokerTransportFailure | Code::AllBrokersDown | Code::OperationTimedOut => {
            format!(
                "no broker can be reached ({reason}): look at `brokers`, and at security.protocol where they want TLS or a login"
            )
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use tidemill_config::{OnLostOffsets, Start, Tombstones};

    use super::*;

    fn given(properties: &[(&str, &str)]) -> Config {
        Config {
            brokers: "a:9092".into(),
            topics: Vec::new(),
            group: None,
            start: Start::Earliest,
            on_lost_offsets: OnLostOffsets::Stop,
            key: None,
            tombstones: Tombstones::Reject,
            members: 1,
            properties: properties.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        }
    }

    #[test]
    fn a_client_is_made_however_little_is_read_ahead() {
        let sizes = [0, 64 << 10, 100 << 10, 999_999, 1 << 20, 16 << 20, 1 << 40];
        for (properties, is_small) in [
            (&[][..], true),
            (&[("fetch.max.bytes", "65536")], true),
            (&[("message.max.bytes", "5000000")], false),
            (&[("message.max.bytes", "5000000"), ("fetch.max.bytes", "9000000")], false),
        ] {
            for bytes in sizes {
                for partitions in [0, 1, 4, 1000] {
                    let config = reader_config(&given(properties), "g", bytes, partitions);
                    let made: Result<BaseConsumer, _> = config.create();
                    assert!(made.is_ok(), "{properties:?}, {bytes} bytes: {:?}", made.err());
                    let fetch = config.get("fetch.max.bytes").and_then(|bytes| bytes.parse::<usize>().ok());
                    let fetch = fetch.expect("the reader always bounds what it fetches");
                    assert!(!is_small || fetch <= bytes.max(64 << 10), "{properties:?}, {bytes} bytes: {fetch}");
                }
            }
        }
    }

    #[test]
    fn only_what_may_lag_is_read_from_a_follower() {
        let given = given(&[("client.rack", "near")]);
        let asking = asking_config(&given, "g");
        assert_eq!(asking.get("client.rack"), Some(""), "ends and spans are the leader's");
        let reading = reader_config(&given, "g", 1 << 20, 1);
        assert_eq!(reading.get("client.rack"), Some("near"));
        assert_eq!(reading.get("isolation.level"), Some("read_committed"));
    }
}
