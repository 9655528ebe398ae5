//! `type: kafka` of a source.

use std::fmt;

use serde::Deserialize;

use super::{Codec, Field, Located, Start};

/// `type: kafka`
#[derive(Clone)]
pub struct KafkaSource {
    /// `host:port` of some brokers, between commas.
    pub brokers: String,
    /// Names of topics, and patterns that begin with `^`.
    pub topics: Vec<Located<String>>,
    /// The consumer group; `None` is the default, `tidemill-<job>`, for a job's only one.
    pub group: Option<String>,
    /// Where the job starts (default earliest).
    pub start: Start,
    /// Records that a mark or a plan speaks of and the topic does not have any more (default stop).
    pub on_lost_offsets: OnLostOffsets,
    /// How keys are decoded; `None`: they are not.
    pub key: Option<KafkaKey>,
    /// Records without a value (default reject).
    pub tombstones: Tombstones,
    /// At most so many members of the group, with `lanes: partition` (default 4).
    pub members: usize,
    /// Properties of librdkafka, by name, in the order of the file.
    pub properties: Vec<(String, String)>,
}

/// `key:` of a Kafka source.
#[derive(Clone)]
pub struct KafkaKey {
    /// How a key is decoded.
    pub codec: Codec,
    /// Its fields.
    pub schema: Vec<Field>,
}

impl KafkaKey {
    /// What the name of a field has before it, as a column.
    pub const PREFIX: &str = "_key_";
}

impl KafkaSource {
    /// The group of a job's only source that names none.
    pub fn usual_group(job: &str) -> String {
        format!("tidemill-{job}")
    }
}

impl fmt::Debug for KafkaSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KafkaSource { .. }")
    }
}

/// `on_lost_offsets:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLostOffsets {
    /// Stop the lane.
    Stop,
    /// Go on with the oldest record that is there.
    Earliest,
    /// Go on with what comes from now on.
    Latest,
}

/// `tombstones:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tombstones {
    /// They go to the dead letters.
    Reject,
    /// They are left out.
    Skip,
    /// Each is a row of nulls and metadata.
    Keep,
}
