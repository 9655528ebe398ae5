//! The keys of `type: kafka` of a source, and what they may not say.

use super::{Key, Kind, Scalar, State, Variant, default, optional, required, word};
use crate::{
    error::Problem,
    load::Problems,
    tree::{Node, UNRESOLVED, below, shown},
};

const TEXT: Kind = Kind::Scalar(Scalar::Text);
const TEXTS: Kind = Kind::OneOrMore { of: &TEXT, min: 1 };
const ANY_TEXT: Kind = Kind::Scalar(Scalar::AnyText);

pub(crate) const KAFKA: Variant = Variant {
    name: "kafka",
    state: State::Now,
    doc: "Topics of Apache Kafka, or of what speaks its protocol. Each partition is read in its order.",
    keys: KEYS,
    exactly_one: &[],
};

static KEYS: &[Key] = &[
    required(
        "brokers",
        TEXTS,
        "`host:port` of some brokers: a list, or one text with commas. The others are found by them.",
    ),
    required("topics", TEXTS, "The topics: names, or patterns that begin with `^` (`^orders-.*`)."),
    optional(
        "group",
        TEXT,
        "The consumer group that gets partitions and shows how far they are read. Left out: `tidemill-<job>`, and `tidemill-<job>-<source>` where a job has several.",
    ),
    default(
        "start",
        Kind::Words(&[word("earliest"), word("latest")]),
        "earliest",
        "`latest`: what is there at the first start is not read. The group's offsets are not asked.",
    ),
    default(
        "on_lost_offsets",
        Kind::Words(&[word("stop"), word("earliest"), word("latest")]),
        "stop",
        "Where the topic lacks records that are still to be read (its retention is too short, it was made again): stop, or go on with the `earliest` record that is there, or with the `latest`.",
    ),
    default(
        "tombstones",
        Kind::Words(&[word("reject"), word("skip"), word("keep")]),
        "reject",
        "Records without a value: to the dead letters, left out, or each a row of nulls (`metadata: [key, tombstone]` tells which).",
    ),
    optional(
        "properties",
        Kind::Map { key: Scalar::Text, value: &ANY_TEXT, noun: "property" },
        "Properties of librdkafka, for TLS, SASL and timeouts: `security.protocol: SASL_SSL`.",
    ),
    default(
        "metadata",
        Kind::List {
            of: &Kind::Words(&[
                word("key"),
                word("key_bytes"),
                word("topic"),
                word("partition"),
                word("offset"),
                word("timestamp"),
                word("headers"),
                word("tombstone"),
                word("position"),
            ]),
            min: 0,
        },
        "[]",
        "Columns to add, each with `_` before its name: `offset` becomes `_offset`.",
    ),
];

/// Properties that a job may not set, with the reason.
const REFUSED: [(&str, &str); 14] = [
    ("bootstrap.servers", "write `brokers:`"),
    ("metadata.broker.list", "write `brokers:`"),
    ("group.id", "write `group:`"),
    ("auto.offset.reset", "write `start:` for the first start, `on_lost_offsets:` for later"),
    ("isolation.level", "records of aborted transactions would be read: it is always read_committed"),
    ("enable.auto.commit", "offsets are committed once every sink has the records, and never before"),
    ("auto.commit.enable", "offsets are committed once every sink has the records, and never before"),
    ("auto.commit.interval.ms", "offsets are committed once every sink has the records, and never before"),
    ("enable.auto.offset.store", "offsets are committed once every sink has the records, and never before"),
    ("enable.partition.eof", "the end of a partition is what a batch's end is known by"),
    ("allow.auto.create.topics", "a topic that is misspelt would be made, and be empty"),
    ("group.protocol", "partitions move by the classic protocol, in which a batch is finished before they go"),
    ("queued.max.messages.kbytes", "what is read ahead is a part of the batch's size: see `batch.max_bytes`"),
    ("plugin.library.paths", "no foreign code is loaded"),
];

/// What the schema cannot say of a kafka source.
pub(crate) fn check(node: &Node, path: &str, problems: &mut Problems) {
    if let Some(properties) = node.get("properties") {
        for entry in properties.value.entries() {
            let found = REFUSED.iter().find(|(name, _)| *name == entry.key.trim());
            if let Some((name, reason)) = found {
                let problem = Problem::new(format!("`{name}` cannot be set: {reason}"));
                problems.add(entry.place.at(&below(&below(path, "properties"), &entry.key)), problem.help("remove it"));
            }
        }
    }
    if let Some(topics) = node.get("topics") {
        for (node, path) in crate::semantics::each(&topics.value, &below(path, "topics")) {
            let Some(text) = node.text().filter(|text| *text != UNRESOLVED) else { continue };
            if let Some(problem) = topic(text) {
                problems.add(node.place.at(&path), problem);
            }
        }
    }
}

/// The longest name of a topic.
const LONGEST_TOPIC: usize = 249;

fn topic(text: &str) -> Option<Problem> {
    if text.starts_with('^') {
        let error = regex::Regex::new(text).err()?;
        let why = error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        return Some(Problem::new(format!("{} is not a pattern: {why}", shown(text))));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.len() <= LONGEST_TOPIC && text.chars().all(good) && text != "." && text != ".." {
        return None;
    }
    let problem = Problem::new(format!("{} is no name of a topic", shown(text)));
    Some(problem.help("a name has letters, digits, `.`, `_` and `-`; a pattern begins with `^`"))
}
