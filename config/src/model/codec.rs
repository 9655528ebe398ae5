//! Options of the codecs for binary records.

use std::{fmt, path::PathBuf, sync::Arc};

use super::Located;

opaque!(Avro, Registry, Protobuf);

/// Options of `codec: { type: avro }`. There is a registry, a schema, or both.
#[derive(Clone, PartialEq, Eq)]
pub struct Avro {
    /// Where the schemas that wrote the records come from.
    pub registry: Option<Registry>,
    /// The schema that gives the columns; without a registry it wrote the records too. Of a sink: the one that it writes by;
    /// `None`: one is made of the columns, or the registry's latest is taken.
    pub schema: Option<SchemaFile>,
    /// What comes before a record's body.
    pub framing: AvroFraming,
}

/// A schema registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Registry {
    /// `http://host:port`, perhaps with a path.
    pub url: String,
    /// For basic authentication.
    pub user: Option<String>,
    /// For basic authentication.
    pub password: Option<String>,
    /// Whose latest schema gives the columns. Of a sink: where its schema is; `None`: `<topic>-value`.
    pub subject: Option<String>,
    /// Of a sink: whether it registers the schema that it writes by.
    pub register: bool,
}

/// What comes before the body of an Avro record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AvroFraming {
    /// A zero byte and the four bytes of the schema's id.
    Confluent,
    /// The two bytes of Avro's single-object encoding and the schema's fingerprint.
    SingleObject,
    /// Nothing.
    None,
}

/// Options of `codec: { type: protobuf }`.
#[derive(Clone, PartialEq, Eq)]
pub struct Protobuf {
    /// The descriptor set.
    pub descriptors: SchemaFile,
    /// The message's full name.
    pub message: Located<String>,
    /// A zero byte, a schema's id and message indexes come before the message.
    pub confluent: bool,
}

/// A file that says what records look like. It belongs to the job's text as if it stood there: with another content a
/// replay could give other rows.
#[derive(Clone, PartialEq, Eq)]
pub struct SchemaFile {
    /// Where it lies, and where the job names it. Empty: it stands in the job itself.
    pub path: Located<PathBuf>,
    /// What was in it when the job was read, or why it could not be.
    pub content: Result<Arc<[u8]>, String>,
}

impl SchemaFile {
    /// As a message names it: "the schema r.avsc".
    pub fn shown(&self) -> String {
        match self.path.value.as_os_str().is_empty() {
            true => "the schema".into(),
            false => format!("the schema {}", self.path.value.display()),
        }
    }
}

impl fmt::Debug for SchemaFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SchemaFile").field(&self.path.value).finish()
    }
}

impl super::SinkKind {
    /// The codec of a sink whose rows are one record each.
    pub fn record_codec(&self) -> Option<&super::Codec> {
        match self {
            Self::Kafka(kafka) => Some(&kafka.codec),
            _ => None,
        }
    }
}

impl super::Codec {
    /// The file that says what this codec's records look like, where there is one.
    pub fn schema_file(&self) -> Option<&SchemaFile> {
        match self {
            Self::Avro(avro) => avro.schema.as_ref(),
            Self::Protobuf(protobuf) => Some(&protobuf.descriptors),
            _ => None,
        }
    }

    /// The registry that knows the schemas of its records, where there is one.
    pub fn registry(&self) -> Option<&Registry> {
        match self {
            Self::Avro(avro) => avro.registry.as_ref(),
            _ => None,
        }
    }
}

impl super::Job {
    /// The codecs of records: of all sources, then of the sinks that write single records.
    pub fn record_codecs(&self) -> impl Iterator<Item = &super::Codec> {
        let written = self.sinks.iter().filter_map(|sink| sink.kind.record_codec());
        self.sources.iter().map(|source| &source.codec).chain(self.key_codecs()).chain(written)
    }

    /// The codecs of its sources' keys.
    pub fn key_codecs(&self) -> impl Iterator<Item = &super::Codec> {
        self.sources.iter().filter_map(|source| Some(&source.key()?.codec))
    }
}
