//! The keys of the sink `kafka`.

use super::{
    Key, Kind, Scalar, State, Variant, Variants, codec, default,
    guarantee::GUARANTEE,
    job,
    kafka::{self, Refused},
    optional, required, word,
};
use crate::{load::Problems, tree::Node};

const TEXT: Kind = Kind::Scalar(Scalar::Text);
const ANY_TEXT: Kind = Kind::Scalar(Scalar::AnyText);
const COLUMN: Kind = Kind::Scalar(Scalar::Column);

/// No broker lets a transaction last less than this, and none should have one open for more than 15 minutes.
const MIN_TRANSACTION_MS: u64 = 1_000;

pub(crate) static KAFKA: &[Key] = &[
    kafka::BROKERS,
    required("topic", TEXT, "The topic. It is not made: it must be there."),
    optional(
        "key",
        Kind::Scalar(Scalar::Expression),
        "The record's key: a column, or an SQL expression. Rows of one key go to one partition, the same that Java's producers choose. Left out: no key, and rows are spread.",
    ),
    optional(
        "headers",
        Kind::Map { key: Scalar::Text, value: &COLUMN, noun: "header" },
        "Headers of each record, by name: the columns that they hold. A null gives no header.",
    ),
    optional(
        "headers_from",
        COLUMN,
        "A column of JSON objects with more headers, as the source's `_headers` has them: a list is a header that occurs more than once, `{\"base64\": \"...\"}` is one of bytes.",
    ),
    optional(
        "timestamp",
        COLUMN,
        "The record's time: a column of timestamps, or of int64 milliseconds since 1970. Left out, or null: when it is sent.",
    ),
    optional(
        "omit",
        Kind::OneOrMore { of: &COLUMN, min: 1 },
        "Columns that are not in the value: what is in the key, the headers or the time alone.",
    ),
    optional(
        "delete_when",
        COLUMN,
        "A boolean column: a row where it is true becomes a tombstone, a record without a value. The column itself is not written.",
    ),
    default("codec", Kind::Variants(&RECORD_CODECS), "json", "How a row becomes a record's value."),
    default(
        "compression",
        Kind::Words(&[word("none"), word("gzip"), word("snappy"), word("lz4"), word("zstd")]),
        "none",
        "How the producer compresses what it sends.",
    ),
    GUARANTEE,
    default(
        "transaction_timeout",
        Kind::Scalar(Scalar::Duration { min_ms: MIN_TRANSACTION_MS }),
        "60s",
        "After this time the broker undoes a transaction that nobody ends. Readers wait for open transactions so long.",
    ),
    optional(
        "marks_topic",
        TEXT,
        "The compacted topic of the job's marks. It is made where it is absent. Left out: `tidemill-marks-<job>`.",
    ),
    optional(
        "properties",
        Kind::Map { key: Scalar::Text, value: &ANY_TEXT, noun: "property" },
        "Any property of librdkafka, for TLS, SASL and tuning. Secrets best come by `${file:PATH}`.",
    ),
];

const OWN: &str = "the sink sets it itself, its guarantee depends on it";

/// Properties that a sink may not set, with the reason.
const REFUSED: [Refused; 10] = [
    ("transactional.id", "each lane has one of its own, which shuts its former owner out"),
    ("transaction.timeout.ms", "write `transaction_timeout:`"),
    ("enable.idempotence", OWN),
    ("acks", OWN),
    ("request.required.acks", OWN),
    ("enable.auto.commit", OWN),
    ("enable.partition.eof", OWN),
    ("auto.offset.reset", OWN),
    ("compression.codec", "write `compression:`"),
    ("compression.type", "write `compression:`"),
];

/// What the schema cannot say of a kafka sink's brokers and properties.
pub(crate) fn check(node: &Node, path: &str, problems: &mut Problems) {
    kafka::check(node, path, &REFUSED, problems);
}

/// Codecs whose rows are one record each.
pub(crate) static RECORD_CODECS: Variants = Variants {
    noun: "codec",
    short: true,
    common: &[],
    variants: &[
        job::JSON,
        job::CSV,
        job::TEXT_CODEC,
        Variant {
            name: "parquet",
            state: State::Elsewhere("parquet is a format of files, not of single records: use `json`"),
            doc: "",
            keys: &[],
            exactly_one: &[],
        },
        codec::BYTES_WRITTEN,
        codec::AVRO_WRITTEN,
        codec::PROTOBUF_WRITTEN,
    ],
};
