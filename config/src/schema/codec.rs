//! The keys of the codecs for binary records.

use super::{Key, Kind, Scalar, State, Variant, default, optional, required, word};

const TEXT: Kind = Kind::Scalar(Scalar::Text);
const PATH: Kind = Kind::Scalar(Scalar::Path);

pub(super) const BYTES: Variant = Variant {
    name: "bytes",
    state: State::Now,
    doc: "A record is one row with the column `bytes`; a file is one record.",
    keys: &[],
    exactly_one: &[],
};

pub(super) const AVRO: Variant = Variant {
    name: "avro",
    state: State::Now,
    doc: "Avro by a schema registry or a schema file; a file is one record.",
    keys: AVRO_KEYS,
    exactly_one: &[],
};

pub(super) const PROTOBUF: Variant = Variant {
    name: "protobuf",
    state: State::Now,
    doc: "One message of a descriptor set; a file is one record.",
    keys: PROTOBUF_KEYS,
    exactly_one: &[],
};

static AVRO_KEYS: &[Key] = &[
    optional(
        "registry",
        TEXT,
        "The URL of a schema registry (`http://host:8081`): the schema that wrote a record is the one whose id it carries.",
    ),
    optional("user", TEXT, "The registry's user."),
    optional("password", TEXT, "The password, better by `${file:PATH}` or `${NAME}`."),
    optional(
        "subject",
        TEXT,
        "The subject whose latest schema gives the columns at the first batch; they are pinned then. Left out: the schema with the highest id in the first batch.",
    ),
    optional(
        "schema_file",
        PATH,
        "A schema (`.avsc`) that gives the columns, with its defaults and aliases. Without `registry` it wrote the records too.",
    ),
    optional(
        "framing",
        Kind::Words(&[word("confluent"), word("single_object"), word("none")]),
        "What comes before a record's body: a zero byte and the id of its schema, Avro's single-object header, or nothing. Left out: `confluent` with a registry, else `none`.",
    ),
];

static PROTOBUF_KEYS: &[Key] = &[
    required("descriptors", PATH, "The descriptor set, made by `protoc --include_imports --descriptor_set_out=FILE`."),
    required("message", TEXT, "The message that a record is, with its package: `shop.v1.Order`."),
    default(
        "framing",
        Kind::Words(&[word("none"), word("confluent")]),
        "none",
        "What comes before a message: nothing, or a registry's zero byte, schema id and message indexes.",
    ),
];
