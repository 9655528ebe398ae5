//! Which topics and partitions there are, and how they are named: as shards (with the incarnation), as lanes (without).

use std::{collections::BTreeMap, sync::Arc};

use rdkafka::{
    client::Client,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
};
use tidemill_checkpoint::{Lane, ShardId};

use super::client::{ANSWER_LIMIT, Context, Voice, hear, transient};
use crate::{
    kafka::{
        Operation,
        native::{self, Ask, Described},
    },
    source::SourceError,
};

/// What is being done, in messages.
const WHAT: &str = "asking the brokers for their topics";

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Partition {
    pub topic: Arc<str>,
    pub number: i32,
}

impl Partition {
    pub fn new(topic: &str, number: i32) -> Self {
        Self { topic: topic.into(), number }
    }
    /// The lane of this partition with `lanes: partition`.
    pub fn lane(&self, source: &str) -> Lane {
        Lane::new(&format!("{source}/{}/{}", self.topic, self.number))
    }
    /// The partition of such a lane.
    pub fn of_lane(source: &str, lane: &Lane) -> Option<Self> {
        Self::parse(lane.as_str().strip_prefix(source)?.strip_prefix('/')?)
    }
    fn parse(text: &str) -> Option<Self> {
        let (topic, number) = text.rsplit_once('/')?;
        Some(Self::new(topic, number.parse().ok()?))
    }
}

impl std::fmt::Display for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.topic, self.number)
    }
}

/// A shard's name: the partition, the cluster and the topic's id. Another topic of the same name is another shard.
pub(super) fn shard(source: &str, partition: &Partition, incarnation: &str) -> ShardId {
    ShardId::new(source, &format!("{partition}@{incarnation}"))
}

/// The partition and the incarnation that a shard's name holds.
pub(super) fn parse_shard(shard: &ShardId) -> Option<(Partition, &str)> {
    let (partition, incarnation) = shard.part().split_once('@')?;
    Some((Partition::parse(partition)?, incarnation))
}

/// The topics of a source, by name or by pattern.
#[derive(Debug)]
pub(super) struct Wanted {
    pub names: Vec<String>,
    patterns: Vec<regex::Regex>,
}

impl Wanted {
    pub fn new(topics: &[String]) -> Result<Self, String> {
        let (patterns, names): (Vec<_>, Vec<_>) = topics.iter().partition(|topic| topic.starts_with('^'));
        let patterns = patterns.into_iter().map(|text| regex::Regex::new(text).map_err(|error| error.to_string()));
        Ok(Self { names: names.into_iter().cloned().collect(), patterns: patterns.collect::<Result<_, _>>()? })
    }
    pub fn has(&self, topic: &str) -> bool {
        self.names.iter().any(|name| name == topic) || self.patterns.iter().any(|pattern| pattern.is_match(topic))
    }
}

/// A topic that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Topic {
    /// Cluster and topic id.
    pub incarnation: String,
    pub partitions: i32,
    /// What this user may do with it, where that was asked.
    pub rights: Option<Vec<Operation>>,
}

/// All topics of a source that are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Topology {
    pub topics: BTreeMap<Arc<str>, Topic>,
    /// Topics that the job names and the cluster lacks, or does not show.
    pub missing: BTreeMap<String, RDKafkaErrorCode>,
}

impl Topology {
    /// Asks the cluster.
    pub fn fetch(
        consumer: &BaseConsumer<Context>,
        wanted: &Wanted,
        ask: Ask,
        voice: &Voice,
    ) -> Result<Self, SourceError> {
        let client = consumer.client();
        let failed = |error: KafkaError| {
            hear(consumer);
            transient(voice, WHAT, error.to_string())
        };
        let mut names = wanted.names.clone();
        if !wanted.patterns.is_empty() {
            let metadata = client.fetch_metadata(None, ANSWER_LIMIT).map_err(failed)?;
            let found = metadata.topics().iter().map(|topic| topic.name());
            // Kafka's own topics (`__consumer_offsets`) are taken by their names alone.
            names.extend(found.filter(|name| !name.starts_with("__") && wanted.has(name)).map(str::to_owned));
            names.sort();
            names.dedup();
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        Self::describe(consumer, &names, ask, voice)
    }

    /// Asks for topics by their names.
    pub fn describe(
        consumer: &BaseConsumer<Context>,
        names: &[&str],
        ask: Ask,
        voice: &Voice,
    ) -> Result<Self, SourceError> {
        let client = consumer.client();
        let failed = |cause: String| {
            hear(consumer);
            transient(voice, WHAT, cause)
        };
        let cluster = cluster_id(client).ok_or_else(|| failed("no answer".to_owned()))?;
        let described = native::describe_topics(client, names, ask, ANSWER_LIMIT);
        let mut topology = Self::default();
        for topic in described.map_err(failed)? {
            match topic {
                Ok(Described { name, id, partitions, rights }) => {
                    let incarnation = format!("{cluster}.{}", id.as_deref().unwrap_or("-"));
                    let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
                    topology.topics.insert(name.as_str().into(), Topic { incarnation, partitions, rights });
                }
                Err((name, error)) => drop(topology.missing.insert(name, error)),
            }
        }
        Ok(topology)
    }

    /// Every partition.
    pub fn partitions(&self) -> impl Iterator<Item = Partition> {
        let of = |(name, topic): (&Arc<str>, &Topic)| {
            let name = name.clone();
            (0..topic.partitions).map(move |number| Partition { topic: name.clone(), number })
        };
        self.topics.iter().flat_map(of)
    }

    /// The first topic that this user may not read, where its rights were asked for.
    pub fn refused(&self) -> Option<&str> {
        let is_refused = |topic: &Topic| topic.rights.as_ref().is_some_and(|rights| !rights.contains(&Operation::Read));
        self.topics.iter().find(|(_, topic)| is_refused(topic)).map(|(name, _)| &**name)
    }

    /// The shard that a partition is now.
    pub fn shard(&self, source: &str, partition: &Partition) -> Option<ShardId> {
        let topic = self.topics.get(&partition.topic)?;
        (partition.number < topic.partitions).then(|| shard(source, partition, &topic.incarnation))
    }
}

fn cluster_id(client: &Client<Context>) -> Option<String> {
    client.fetch_cluster_id(ANSWER_LIMIT)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_and_a_lane_name_their_partition() {
        let partition = Partition::new("web.logs_1-x", 12);
        let shard = shard("in", &partition, "cluster-1.topic_2");
        assert_eq!(shard.as_str(), "in/web.logs_1-x/12@cluster-1.topic_2");
        assert_eq!(shard.source(), "in");
        assert_eq!(parse_shard(&shard).unwrap(), (partition.clone(), "cluster-1.topic_2"));
        assert_eq!(partition.lane("in").as_str(), "in/web.logs_1-x/12");
        assert_eq!(Partition::of_lane("in", &partition.lane("in")), Some(partition));
        assert_eq!(Partition::of_lane("in", &Lane::new("inner/a/1")), None);
        assert_eq!(parse_shard(&ShardId::new("in", "0")), None);
    }

    #[test]
    fn a_pattern_takes_topics_that_come() {
        let wanted = Wanted::new(&["orders".to_owned(), "^logs-.*$".to_owned()]).unwrap();
        assert!(wanted.has("orders") && wanted.has("logs-a") && !wanted.has("orders-2") && !wanted.has("my-logs-a"));
        assert!(Wanted::new(&["^(".to_owned()]).is_err());
    }
}
