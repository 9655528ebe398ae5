//! The sink `type: kafka`.

use std::{fmt, time::Duration};

use serde::Deserialize;

use crate::{Codec, Guarantee, Located};

/// `type: kafka`: a topic, written in transactions where marks are kept.
#[derive(Clone)]
pub struct KafkaSink {
    /// `host:port`, separated by commas.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// A column or an SQL expression; `None`: records without a key.
    pub key: Option<Located<String>>,
    /// Name of the header, column.
    pub headers: Vec<(String, Located<String>)>,
    /// A column of JSON objects with more headers.
    pub headers_from: Option<Located<String>>,
    /// A column with the records' times.
    pub timestamp: Option<Located<String>>,
    /// Columns that are not written in values.
    pub omit: Vec<Located<String>>,
    /// A boolean column: rows where it is true are tombstones. It is not written.
    pub delete_when: Option<Located<String>>,
    /// How a row becomes a value.
    pub codec: Codec,
    /// How the producer compresses.
    pub compression: KafkaCompression,
    /// Whether marks are kept, and rows written in transactions with them.
    pub guarantee: Guarantee,
    /// After this time the broker undoes a transaction that nobody ends (default 60 s).
    pub transaction_timeout: Duration,
    /// The compacted topic of marks; `None`: `tidemill-marks-<job>`.
    pub marks_topic: Option<String>,
    /// librdkafka's properties. May hold secrets.
    pub properties: Vec<(String, String)>,
}

impl KafkaSink {
    /// The column that the steps make of a `key` that is an expression and no column. It is not written.
    pub const KEY_COLUMN: &str = "_tidemill_key";
}

impl fmt::Debug for KafkaSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KafkaSink { .. }")
    }
}

/// `compression:` of a Kafka sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KafkaCompression {
    /// None.
    None,
    /// gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl KafkaCompression {
    /// Its name, as librdkafka has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}
