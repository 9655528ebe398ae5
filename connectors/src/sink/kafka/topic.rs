//! The topics: the user's, which must be there, and the marks', which is made.

use std::{
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    admin::{AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication},
    error::RDKafkaErrorCode as Code,
};
use tidemill_config::Guarantee;

use super::{
    Inner,
    cluster::{ANSWER, to_read, to_write},
    limits::Limits,
    marks::PARTITIONS,
    writer::Writer,
};
use crate::{
    kafka::{
        Meaning, On, Operation, meaning,
        native::{self, Ask},
    },
    sink::SinkError,
};

/// A log of marks is read from its beginning at each start: it is cleaned soon and often.
const MARKS_CONFIG: [(&str, &str); 3] =
    [("cleanup.policy", "compact"), ("segment.bytes", "16777216"), ("min.cleanable.dirty.ratio", "0.1")];
/// How long a new topic may take until every broker knows it.
const KNOWN: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// The name of a job's marks' topic, where it gives none.
pub fn marks_topic(job: &str) -> String {
    format!("tidemill-marks-{job}")
}

fn value_of<'c>(found: &'c ConfigResource, name: &str) -> Option<&'c str> {
    found.get(name).and_then(|entry| entry.value.as_deref())
}

impl Inner {
    /// Whether the user's topic is there.
    pub(super) fn find_topic(&self) -> Result<(), SinkError> {
        if self.reader.finds(&self.topic, to_write(&self.topic))? {
            return Ok(());
        }
        Err(SinkError::Fatal(self.cluster.no_topic(&self.topic)))
    }

    /// Asks what the user's topic takes, and refuses one in which no record of this sink would be taken.
    pub(super) fn look_at_topic(&self) -> Result<(), SinkError> {
        let limits = self.ask_limits()?;
        let (topic, brokers) = (&self.topic, &self.cluster.brokers);
        if !limits.compacted || self.format.has_keys() {
            return Ok(());
        }
        let (what, instead) = match self.is_of_dead_letters() {
            true => ("dead letters have none", "name a topic that is not compacted"),
            false => ("this sink gives none", "add `key: COLUMN` to it"),
        };
        Err(SinkError::Fatal(format!(
            "topic {topic} is compacted (its cleanup.policy): each record in it needs a key, and {what}: {instead}, or \
             kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics --entity-name {topic} --add-config \
             cleanup.policy=delete"
        )))
    }

    /// Asks what the user's topic takes, and keeps the answer.
    pub(super) fn ask_limits(&self) -> Result<Limits, SinkError> {
        let what = format!("asking how topic {} is configured", self.topic);
        let mut limits = self.limits();
        limits.asked = Some(Instant::now());
        // Whoever may write there need not be allowed to see this: what the brokers refuse tells it then.
        if let Some(found) = self.configuration(&self.topic, &what)? {
            limits.compacted = value_of(&found, "cleanup.policy").is_some_and(|policy| policy.contains("compact"));
            limits.max_bytes = value_of(&found, "max.message.bytes").and_then(|bytes| bytes.parse().ok());
        }
        self.set_limits(limits);
        Ok(limits)
    }

    /// How a topic is configured; `None`: this user may not see it, or the brokers do not tell.
    fn configuration(&self, topic: &str, what: &str) -> Result<Option<ConfigResource>, SinkError> {
        let admin = self.cluster.admin()?;
        let options = AdminOptions::new().request_timeout(Some(ANSWER));
        let asked = [ResourceSpecifier::Topic(topic)];
        let answer = tokio::runtime::Handle::current().block_on(admin.describe_configs(&asked, &options));
        let context = admin.inner().context();
        let answer = answer.map_err(|error| self.cluster.explain(what, to_read(topic), &error, context))?;
        match answer.into_iter().next() {
            Some(Ok(found)) => Ok(Some(found)),
            Some(Err(code)) if !matches!(meaning(code), Meaning::Denied | Meaning::Stops) => {
                Err(self.cluster.explain_code(what, to_read(topic), Some(code), &code.to_string(), context))
            }
            _ => Ok(None),
        }
    }

    /// Makes the marks' topic where it is absent.
    pub(super) fn make_marks_topic(&self) -> Result<(), SinkError> {
        if self.reader.finds_marks()? {
            return self.keeps_marks();
        }
        self.create_marks_topic(false)?;
        let what = format!("making the marks' topic {}", self.marks_topic);
        let begun = Instant::now();
        loop {
            if self.reader.finds_marks()? {
                return Ok(());
            }
            if begun.elapsed() > KNOWN {
                return Err(SinkError::Transient { what, cause: "the brokers do not show it yet".into() });
            }
            thread::sleep(PAUSE);
        }
    }

    /// Makes the marks' topic, or only asks whether that could be.
    fn create_marks_topic(&self, only_asks: bool) -> Result<(), SinkError> {
        let topic = &self.marks_topic;
        let what = format!("making the marks' topic {topic}");
        let needs = (&[Operation::Create][..], On::Topic(topic));
        let mut new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(-1));
        for (name, value) in MARKS_CONFIG {
            new = new.set(name, value);
        }
        let admin = self.cluster.admin()?;
        let options = AdminOptions::new().operation_timeout(Some(ANSWER)).request_timeout(Some(ANSWER));
        let options = options.validate_only(only_asks);
        // The client has a thread of its own that answers; this one may block.
        let answer = tokio::runtime::Handle::current().block_on(admin.create_topics([&new], &options));
        let context = admin.inner().context();
        let answer = answer.map_err(|error| self.cluster.explain(&what, needs, &error, context))?;
        if let Some(Err((_, code))) = answer.into_iter().next()
            && code != Code::TopicAlreadyExists
        {
            return Err(self.cluster.explain_code(&what, needs, Some(code), &code.to_string(), context));
        }
        Ok(())
    }

    /// Whether the marks' topic, which is there, keeps the last record of every key. Asked once.
    fn keeps_marks(&self) -> Result<(), SinkError> {
        if self.keeps_marks.get().is_some() {
            return Ok(());
        }
        let (topic, brokers) = (&self.marks_topic, &self.cluster.brokers);
        let what = format!("looking how the marks' topic {topic} is cleaned");
        let policy = match self.configuration(topic, &what)? {
            Some(found) => value_of(&found, "cleanup.policy").map(str::to_owned),
            // Whoever may write there need not be allowed to see this.
            None => {
                tracing::warn!(topic, "not allowed to see whether the marks' topic has cleanup.policy=compact");
                None
            }
        };
        if let Some(policy) = policy.filter(|policy| policy != "compact") {
            return Err(SinkError::Fatal(format!(
                "the marks' topic {topic} has cleanup.policy={policy}: its marks would be deleted, and rows written \
                 twice: kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics --entity-name {topic} \
                 --add-config cleanup.policy=compact"
            )));
        }
        let _ = self.keeps_marks.set(());
        Ok(())
    }

    /// Whether the sink could work: nothing is claimed, and no record written.
    pub(super) fn check(&self) -> Result<(), SinkError> {
        self.find_topic()?;
        self.may(&self.topic, &[Operation::Write])?;
        self.look_at_topic()?;
        if self.guarantee == Guarantee::AtLeastOnce {
            return Ok(());
        }
        if self.reader.finds_marks()? {
            self.may(&self.marks_topic, &[Operation::Read, Operation::Write])?;
            self.keeps_marks()?;
        } else {
            self.create_marks_topic(true)?;
        }
        // An id of its own, which shuts nobody out: whether transactions work here, and this user may use such ids.
        let id = format!("{}/check", self.marks_topic);
        Writer::open(&self.cluster, &self.topic, &id, self.transaction_timeout, self.how(None)).map(drop)
    }

    /// Whether this user may do these things with a topic that is there, as far as the brokers tell. Nothing is written to
    /// find it out.
    fn may(&self, topic: &str, wanted: &[Operation]) -> Result<(), SinkError> {
        let what = format!("asking for the rights on topic {topic}");
        let admin = self.cluster.admin()?;
        let answer = native::describe_topics(admin.inner(), &[topic], Ask::Rights, ANSWER);
        let answer = answer.map_err(|cause| SinkError::Transient { what: what.clone(), cause })?;
        let context = admin.inner().context();
        match answer.into_iter().next() {
            Some(Ok(found)) => {
                let rights = found.rights.unwrap_or_else(|| wanted.to_vec());
                let lacks: Vec<_> = wanted.iter().filter(|one| !rights.contains(one)).copied().collect();
                if lacks.is_empty() {
                    Ok(())
                } else {
                    Err(SinkError::Fatal(self.cluster.lacks((&lacks, On::Topic(topic)))))
                }
            }
            Some(Err((_, code))) => {
                let needs = (wanted, On::Topic(topic));
                Err(self.cluster.explain_code(&what, needs, Some(code), &code.to_string(), context))
            }
            None => Ok(()),
        }
    }
}
