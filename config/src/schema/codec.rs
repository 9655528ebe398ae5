//! The keys of the codecs for binary records.

use super::{Key, Kind, Scalar, State, Variant, default, job, optional, required, word};

const TEXT: Kind = Kind::Scalar(Scalar::Text);
const PATH: Kind = Kind::Scalar(Scalar::Path);

pub(super) const BYTES: Variant = Variant {
    name: "bytes",
    state: State::Now,
    doc: "A record is one row with one column; a file is one record.",
    keys: &[default("column", Kind::Scalar(Scalar::Column), "bytes", "The column that holds the record.")],
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

/// Of sinks whose rows are one record each.
pub(super) const BYTES_WRITTEN: Variant = Variant {
    doc: "The value of one column as it is; null is a record without a value.",
    keys: &[default(
        "column",
        Kind::Scalar(Scalar::Column),
        "bytes",
        "The column that holds the record: binary or string.",
    )],
    ..BYTES
};

/// Of sinks whose rows are one record each.
pub(super) const AVRO_WRITTEN: Variant =
    Variant { doc: "One value, by a schema registry or a schema.", keys: AVRO_WRITTEN_KEYS, ..AVRO };

/// Of sinks whose rows are one record each.
pub(super) const PROTOBUF_WRITTEN: Variant =
    Variant { doc: "One message of a descriptor set.", keys: &[DESCRIPTORS, MESSAGE], ..PROTOBUF };

const REGISTRY_USER: Key = optional("user", TEXT, "The registry's user.");
const REGISTRY_PASSWORD: Key = optional("password", TEXT, "The password, better by `${file:PATH}` or `${NAME}`.");

static AVRO_WRITTEN_KEYS: &[Key] = &[
    optional(
        "registry",
        TEXT,
        "The URL of a schema registry (`http://host:8081`): records carry the id that it has for the schema.",
    ),
    REGISTRY_USER,
    REGISTRY_PASSWORD,
    optional("subject", TEXT, "The subject of the schema in the registry. Left out: `<topic>-value`."),
    optional(
        "register",
        job::FLAG,
        "Whether the schema is registered under the subject. With `false` it must be there; without a schema the subject's latest is written. Left out: `true`.",
    ),
    optional(
        "schema_file",
        PATH,
        "The schema (`.avsc`) that records are written by. Left out: one is made of the columns.",
    ),
    optional("schema", TEXT, "The same, as a text of JSON in the job itself."),
    optional(
        "framing",
        AVRO_FRAMING,
        "What comes before a record's body: a zero byte and the id of its schema, Avro's single-object header, or nothing. Left out: `confluent` with a registry, else `none`.",
    ),
];

const AVRO_FRAMING: Kind = Kind::Words(&[word("confluent"), word("single_object"), word("none")]);

static AVRO_KEYS: &[Key] = &[
    optional(
        "registry",
        TEXT,
        "The URL of a schema registry (`http://host:8081`): the schema that wrote a record is the one whose id it carries.",
    ),
    REGISTRY_USER,
    REGISTRY_PASSWORD,
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
        AVRO_FRAMING,
        "What comes before a record's body: a zero byte and the id of its schema, Avro's single-object header, or nothing. Left out: `confluent` with a registry, else `none`.",
    ),
];

const DESCRIPTORS: Key =
    required("descriptors", PATH, "The descriptor set, made by `protoc --include_imports --descriptor_set_out=FILE`.");
const MESSAGE: Key = required("message", TEXT, "The message that a record is, with its package: `shop.v1.Order`.");

static PROTOBUF_KEYS: &[Key] = &[
    DESCRIPTORS,
    MESSAGE,
    default(
        "framing",
        Kind::Words(&[word("none"), word("confluent")]),
        "none",
        "What comes before a message: nothing, or a registry's zero byte, schema id and message indexes.",
    ),
];
