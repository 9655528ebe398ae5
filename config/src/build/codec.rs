//! Codecs: from checked options to the model.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;

use super::{Built, inconsistent};
use crate::{
    Avro, AvroFraming, Codec, Csv, ExtraFields, Json, Located, MissingFields, Protobuf, Registry, SchemaFile,
    paths::absolute,
    tree::{Node, below},
};

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum CodecOptions {
    Json(JsonOptions),
    Csv(CsvOptions),
    Text(TextOptions),
    Bytes(BytesOptions),
    Avro(AvroOptions),
    Protobuf(ProtobufOptions),
    Parquet,
}

/// A sink has none of them.
#[derive(Deserialize)]
pub(super) struct JsonOptions {
    encoding: Option<String>,
    framing: Option<FramingWord>,
}

/// A sink has none of them.
#[derive(Deserialize)]
pub(super) struct TextOptions {
    encoding: Option<String>,
}

/// A sink has the first six.
#[derive(Deserialize)]
pub(super) struct CsvOptions {
    delimiter: String,
    header: bool,
    quote: String,
    escape: Option<char>,
    nulls: Option<Vec<String>>,
    encoding: String,
    skip: Option<u64>,
    comment: Option<String>,
    decimal: Option<char>,
    thousands: Option<char>,
    multiline: Option<bool>,
    missing_fields: Option<MissingFields>,
    extra_fields: Option<ExtraFields>,
}

impl CsvOptions {
    fn csv(self) -> Built<Csv> {
        let ascii = |c: char| u8::try_from(c).map_err(|_| inconsistent("codec"));
        let usual = Csv::default();
        let quote = match self.quote.as_str() {
            "none" => None,
            text => Some(ascii(text.chars().next().ok_or_else(|| inconsistent("codec"))?)?),
        };
        Ok(Csv {
            delimiter: self.delimiter,
            header: self.header,
            quote,
            escape: self.escape.map(ascii).transpose()?,
            nulls: self.nulls.unwrap_or_default(),
            encoding: self.encoding,
            skip: self.skip.unwrap_or(usual.skip),
            comment: self.comment,
            decimal: self.decimal.map(ascii).transpose()?.unwrap_or(usual.decimal),
            thousands: self.thousands,
            multiline: self.multiline.unwrap_or(usual.multiline),
            missing_fields: self.missing_fields.unwrap_or(usual.missing_fields),
            extra_fields: self.extra_fields.unwrap_or(usual.extra_fields),
            expected: usual.expected,
        })
    }
}

/// Whether a label is that of UTF-8.
fn is_utf8(label: &str) -> bool {
    encoding_rs::Encoding::for_label(label.as_bytes()) == Some(encoding_rs::UTF_8)
}

#[derive(Deserialize)]
pub(super) struct BytesOptions {
    column: String,
}

#[derive(Deserialize)]
pub(super) struct AvroOptions {
    registry: Option<String>,
    user: Option<String>,
    password: Option<String>,
    subject: Option<String>,
    register: Option<bool>,
    schema_file: Option<String>,
    schema: Option<String>,
    framing: Option<FramingWord>,
}

#[derive(Deserialize)]
pub(super) struct ProtobufOptions {
    descriptors: String,
    message: String,
    framing: Option<FramingWord>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FramingWord {
    Confluent,
    SingleObject,
    None,
}

/// Where a codec's options stand: the source's or sink's node, its path of keys, and the folder of the job's file.
pub(super) struct Around<'a> {
    pub node: &'a Node,
    pub path: &'a str,
    pub folder: &'a Path,
}

impl Around<'_> {
    fn located<T>(&self, key: &str, value: T) -> Located<T> {
        let codec = self.node.get("codec").map_or(self.node, |entry| &entry.value);
        let path = below(&below(self.path, "codec"), key);
        let place = codec.get(key).map_or(codec.place, |entry| entry.value.place);
        Located { value, at: place.at(&path) }
    }

    fn schema_file(&self, key: &str, path: &str) -> SchemaFile {
        let path = absolute(&self.folder.join(path));
        SchemaFile { content: read(&path), path: self.located(key, path) }
    }

    fn schema(&self, key: &str, text: &str) -> SchemaFile {
        SchemaFile { content: Ok(text.as_bytes().into()), path: self.located(key, PathBuf::new()) }
    }
}

/// A description of records is no data: a longer file is an accident.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The content of a file that a codec names, or a sentence about why it cannot be had.
fn read(path: &Path) -> Result<Arc<[u8]>, String> {
    let plain = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => error.to_string(),
    };
    let size = path.metadata().map_err(plain)?;
    if size.is_dir() {
        return Err("it is a folder".into());
    }
    if size.len() > MAX_FILE_BYTES {
        return Err(format!("it has more than {MAX_FILE_BYTES} bytes, which no schema needs"));
    }
    std::fs::read(path).map(Arc::from).map_err(plain)
}

impl CodecOptions {
    /// A codec that names no files.
    pub(super) fn codec(self) -> Built<Codec> {
        Ok(match self {
            Self::Json(given) => {
                let encoding = given.encoding.unwrap_or_else(|| Csv::default().encoding);
                match given.framing == Some(FramingWord::Confluent) {
                    false if is_utf8(&encoding) => Codec::Json,
                    confluent => Codec::JsonWith(Json { encoding, confluent }),
                }
            }
            Self::Text(given) => match given.encoding {
                Some(encoding) if !is_utf8(&encoding) => Codec::TextIn(encoding),
                _ => Codec::Text,
            },
            Self::Bytes(given) => Codec::Bytes(given.column),
            Self::Parquet => Codec::Parquet,
            Self::Csv(given) => Codec::Csv(given.csv()?),
            Self::Avro(_) | Self::Protobuf(_) => return Err(inconsistent("codec")),
        })
    }

    /// A codec of records, with the files that it names.
    pub(super) fn of_records(self, around: &Around<'_>) -> Built<Codec> {
        match self {
            Self::Avro(given) => Ok(Codec::Avro(avro(given, around))),
            Self::Protobuf(given) => Ok(Codec::Protobuf(Protobuf {
                descriptors: around.schema_file("descriptors", &given.descriptors),
                message: around.located("message", given.message),
                confluent: given.framing == Some(FramingWord::Confluent),
            })),
            other => other.codec(),
        }
    }
}

fn avro(given: AvroOptions, around: &Around<'_>) -> Avro {
    let AvroOptions { user, password, subject, .. } = given;
    let registry = given.registry.map(|url| {
        let register = given.register.unwrap_or(true);
        Registry { url, user, password, subject, register }
    });
    let framing = match (given.framing, &registry) {
        (Some(FramingWord::Confluent), _) | (None, Some(_)) => AvroFraming::Confluent,
        (Some(FramingWord::SingleObject), _) => AvroFraming::SingleObject,
        (Some(FramingWord::None) | None, _) => AvroFraming::None,
    };
    let file = given.schema_file.map(|path| around.schema_file("schema_file", &path));
    let schema = file.or_else(|| given.schema.map(|text| around.schema("schema", &text)));
    Avro { registry, schema, framing }
}
