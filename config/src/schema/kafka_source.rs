//! The keys of `type: kafka` of a source, and what they may not say.

use std::collections::BTreeSet;

use super::{
    Key, Kind, Object, Scalar, State, Variant, Variants, codec, default, job,
    kafka::{self, Refused, TEXTS},
    optional, required, word,
};
use crate::{
    error::Problem,
    load::Problems,
    tree::{Entry, Node, UNRESOLVED, below, shown},
};

const TEXT: Kind = Kind::Scalar(Scalar::Text);
const ANY_TEXT: Kind = Kind::Scalar(Scalar::AnyText);

pub(crate) const KAFKA: Variant = Variant {
    name: "kafka",
    state: State::Now,
    doc: "Topics of Apache Kafka, or of what speaks its protocol. Each partition is read in its order.",
    keys: KEYS,
    exactly_one: &[],
};

static KEYS: &[Key] = &[
    kafka::BROKERS,
    required(
        "topics",
        TEXTS,
        "The topics: names, or patterns that begin with `^` (`^orders-.*`), in the syntax of Rust's `regex`.",
    ),
    optional(
        "group",
        TEXT,
        "The consumer group that gets partitions and shows how far they are read. Left out: `tidemill-<job>`, and `tidemill-<job>-<source>` where a job has several. No two sources of a job are in one group.",
    ),
    default(
        "start",
        Kind::Words(&[word("earliest"), word("latest")]),
        "earliest",
        "`latest`: what is there at the first start is not read. What is added later is read from its beginning.",
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
        "key",
        Kind::Object(&KEY),
        "How the record's key is decoded into columns: its field `id` becomes `_key_id`. A key that cannot be decoded makes its record a dead letter.",
    ),
    default(
        "members",
        Kind::Scalar(Scalar::Count { min: 1, max: 64 }),
        "4",
        "With `lanes: partition`: an idle daemon may join the consumer group up to this many times, to take over partitions that other daemons are slow to process. `1`: all daemons get equally many.",
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

static KEY: Object = Object {
    noun: "a key",
    keys: &[
        default("codec", Kind::Variants(&KEY_CODECS), "json", "How a key is read."),
        required(
            "schema",
            Kind::Map { key: Scalar::NewColumn, value: &job::TYPE, noun: "column" },
            "The key's fields and their types.",
        ),
    ],
    exactly_one: &[],
};

/// Codecs of keys: records with named fields. A key that is one value is a metadata column.
static KEY_CODECS: Variants = Variants {
    noun: "codec",
    short: true,
    common: &[],
    variants: &[
        job::JSON,
        Variant { state: PLAIN_KEY, ..job::CSV },
        Variant { state: PLAIN_KEY, ..job::TEXT_CODEC },
        Variant { state: PLAIN_KEY, ..codec::BYTES },
        codec::AVRO,
        codec::PROTOBUF,
    ],
};

const PLAIN_KEY: State =
    State::Elsewhere("a key that is no record is a metadata column: `metadata: [key]`, or `key_bytes` for bytes");

const COMMITTED: &str = "offsets are committed once every sink has the records, and never before";

/// Properties that a source may not set, with the reason.
const REFUSED: [Refused; 10] = [
    ("group.id", "write `group:`"),
    ("auto.offset.reset", "write `start:` for the first start, `on_lost_offsets:` for later"),
    ("enable.auto.commit", COMMITTED),
    ("auto.commit.enable", COMMITTED),
    ("auto.commit.interval.ms", COMMITTED),
    ("enable.auto.offset.store", COMMITTED),
    ("enable.partition.eof", "the end of a partition is what a batch's end is known by"),
    ("group.protocol", "partitions move by the classic protocol, in which a batch is finished before they go"),
    ("queued.max.messages.kbytes", "what is read ahead is a part of the batch's size: see `batch.max_bytes`"),
    ("transactional.id", "a source writes nothing"),
];

/// What the schema cannot say of a kafka source.
pub(crate) fn check(node: &Node, path: &str, problems: &mut Problems) {
    kafka::check(node, path, &REFUSED, problems);
    if let Some(topics) = node.get("topics") {
        for (node, path) in crate::semantics::each(&topics.value, &below(path, "topics")) {
            let Some(text) = node.text().filter(|text| *text != UNRESOLVED) else { continue };
            if let Some(problem) = topic(text) {
                problems.add(node.place.at(&path), problem);
            }
        }
    }
}

/// The group of a source that names none, where the job has several.
pub(crate) fn own_group(job: &str, source: &str) -> String {
    format!("tidemill-{job}-{source}")
}

/// Two sources of a job in one group: each would be given the partitions of the other.
pub(crate) fn check_groups(job: &str, sources: &[Entry], problems: &mut Problems) {
    let mut seen: Vec<(String, BTreeSet<&str>, &str)> = Vec::new();
    let kafka: Vec<_> = sources.iter().filter(|source| source.value.text_of("type") == Some("kafka")).collect();
    for source in kafka.iter().filter(|_| kafka.len() > 1) {
        let given = source.value.get("group");
        let Some(group) = given.map_or(Some(own_group(job, &source.key)), |given| Some(given.value.text()?.to_owned()))
        else {
            continue;
        };
        let brokers =
            source.value.get("brokers").map_or_else(Vec::new, |entry| crate::semantics::each(&entry.value, ""));
        let addresses = brokers.iter().filter_map(|(node, _)| node.text()).flat_map(|text| text.split(','));
        let addresses: BTreeSet<&str> = addresses.map(str::trim).filter(|one| !one.contains(UNRESOLVED)).collect();
        let first = seen.iter().find(|(other, at, _)| *other == group && !at.is_disjoint(&addresses));
        if let Some((_, _, first)) = first.filter(|_| !group.contains(UNRESOLVED)) {
            let problem = Problem::new(format!("the source `{first}` is in the group {} too", shown(&group)));
            let path = below("sources", &source.key);
            let at = given.map_or_else(|| source.place.at(&path), |given| given.value.place.at(&below(&path, "group")));
            let help =
                "give each source a group of its own, or leave `group` out: records would be divided between them";
            problems.add(at, problem.help(help));
        }
        seen.push((group, addresses, &source.key));
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
