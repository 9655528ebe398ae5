//! The sink `type: kafka`.

use std::{path::Path, time::Duration};

use serde::Deserialize;
use serde_yaml::Value;

use super::{Around, Built, CodecOptions, brokers, located, options, text, texts};
use crate::{
    Guarantee, KafkaCompression, KafkaSink, Located,
    tree::{Entry, below},
    units,
};

#[derive(Deserialize)]
struct Options {
    topic: String,
    codec: CodecOptions,
    compression: KafkaCompression,
    guarantee: Guarantee,
    #[serde(deserialize_with = "units::de_duration")]
    transaction_timeout: Duration,
    marks_topic: Option<String>,
}

pub(super) fn sink(entry: &Entry, value: &Value, path: &str, folder: &Path) -> Built<KafkaSink> {
    let given: Options = options(value, path)?;
    let pairs = |key: &str| -> Vec<(String, Located<String>)> {
        let Some(map) = entry.value.get(key) else { return Vec::new() };
        let path = below(path, key);
        let pair = |entry: &Entry| Some((entry.key.clone(), located(&entry.value, &below(&path, &entry.key))?));
        map.value.entries().iter().filter_map(pair).collect()
    };
    Ok(KafkaSink {
        brokers: brokers(&entry.value, path),
        topic: given.topic,
        key: text(&entry.value, "key", path),
        headers: pairs("headers"),
        headers_from: text(&entry.value, "headers_from", path),
        timestamp: text(&entry.value, "timestamp", path),
        omit: texts(entry.value.get("omit"), path),
        delete_when: text(&entry.value, "delete_when", path),
        codec: given.codec.of_records(&Around { node: &entry.value, path, folder })?,
        compression: given.compression,
        guarantee: given.guarantee,
        transaction_timeout: given.transaction_timeout,
        marks_topic: given.marks_topic,
        properties: pairs("properties").into_iter().map(|(name, value)| (name, value.value)).collect(),
    })
}
