//! From a checked `type: kafka` of a source to the model.

use std::path::Path;

use serde::Deserialize;
use serde_yaml::Value;

use super::{Around, Built, CodecOptions, brokers, fields, options, texts};
use crate::{
    KafkaKey, KafkaSource, OnLostOffsets, Source, SourceKind, Start, Tombstones,
    schema::kafka_source::own_group,
    tree::{Node, below},
};

#[derive(Deserialize)]
struct Options {
    group: Option<String>,
    start: Start,
    on_lost_offsets: OnLostOffsets,
    tombstones: Tombstones,
    members: usize,
    key: Option<KeyOptions>,
}

#[derive(Deserialize)]
struct KeyOptions {
    codec: CodecOptions,
}

pub(super) fn kafka(node: &Node, value: &Value, path: &str, folder: &Path) -> Built<KafkaSource> {
    let given: Options = options(value, path)?;
    let key = |given: KeyOptions| -> Built<KafkaKey> {
        let path = below(path, "key");
        let node = &node.get("key").ok_or_else(|| super::inconsistent(&path))?.value;
        let schema = node.get("schema").ok_or_else(|| super::inconsistent(&path))?;
        let codec = given.codec.of_records(&Around { node, path: &path, folder })?;
        Ok(KafkaKey { codec, schema: fields(&schema.value, &below(&path, "schema"))? })
    };
    let properties = node.get("properties").map_or(&[][..], |entry| entry.value.entries());
    let property = |entry: &crate::tree::Entry| {
        let text = entry.value.text().ok_or_else(|| super::inconsistent(&below(path, "properties")))?;
        Ok((entry.key.trim().to_owned(), text.to_owned()))
    };
    Ok(KafkaSource {
        brokers: brokers(node, path),
        topics: texts(node.get("topics"), path),
        group: given.group,
        key: given.key.map(key).transpose()?,
        start: given.start,
        on_lost_offsets: given.on_lost_offsets,
        tombstones: given.tombstones,
        members: given.members,
        properties: properties.iter().map(property).collect::<Built<_>>()?,
    })
}

/// Several sources of a job are not one group: it would give each the partitions of the others.
pub(super) fn name_groups(job: &str, sources: &mut [Source]) {
    if sources.iter().filter(|source| matches!(source.kind, SourceKind::Kafka(_))).count() < 2 {
        return;
    }
    for source in sources {
        if let SourceKind::Kafka(kafka) = &mut source.kind {
            kafka.group.get_or_insert_with(|| own_group(job, &source.name.value));
        }
    }
}
