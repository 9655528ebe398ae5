//! Avro: one value a record, by the schema that wrote it.
//!
//! [`schema`] reads schemas (parsed and checked by the crate `apache-avro`), [`plan`] works out once for each of them how its
//! fields get into the columns, [`read`] takes values from bytes, [`input`] is the binary encoding, [`default`] the values of
//! fields that a writer did not have. Schemas by id come from a [`Registry`]. A sink's schema is chosen in
//! [`writing`](mod@writing), made of columns in [`derive`](mod@derive), and rows are written by it in [`write`](mod@write);
//! [`tree`](mod@tree) writes what no column type holds.
//!
//! Bodies are not decoded by the crate: its decoder takes the end of the bytes for a null, so that a record that was cut off
//! would become a row; it knows no aliases, gives maps in a random order, and builds a tree of every value.

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use tidemill_config::model::{self, AvroFraming, SchemaFile};

use super::{
    Codec, CodecError, Decoded, Decoder, PrepareError, binary,
    registry::{Known, Registry},
    rows::{self, Bad},
};
use crate::source::Slice;

mod default;
pub(super) mod derive;
mod input;
mod plan;
mod read;
mod schema;
mod single;
#[cfg(test)]
mod tests;
mod tree;
mod write;
mod writing;

use plan::Rows;
pub(super) use schema::Schema;
pub(super) use writing::Writing;

/// What single objects begin with.
const SINGLE_OBJECT: [u8; 2] = [0xc3, 0x01];
/// A schema's key where all records have the same one.
const THE_SCHEMA: u32 = 0;

/// The codec `avro`.
pub(super) struct Avro {
    framing: AvroFraming,
    /// The job's own schema.
    reader: Option<Arc<Schema>>,
    registry: Option<(Arc<Registry>, Option<String>)>,
}

/// The schema in a job's file.
pub(super) fn of_file(file: &SchemaFile) -> Result<Schema, String> {
    let content = file.content.as_ref().map_err(Clone::clone)?;
    let text = std::str::from_utf8(content).map_err(|_| "it is not UTF-8".to_owned())?;
    Schema::parse(text, &[])
}

impl Avro {
    pub(super) fn new(options: &model::Avro) -> Result<Self, String> {
        let reader = options.schema.as_ref().map(|file| of_file(file).map(Arc::new)).transpose()?;
        let registry = options.registry.as_ref();
        let registry = registry
            .map(|given| Ok::<_, String>((Arc::new(Registry::new(given)?), given.subject.clone())))
            .transpose()?;
        Ok(Self { framing: options.framing, reader, registry })
    }

    fn decoder_where(&self, schema: &SchemaRef, readable: Option<Vec<u32>>) -> AvroDecoder {
        AvroDecoder {
            schema: schema.clone(),
            framing: self.framing,
            reader: self.reader.clone(),
            registry: self.registry.as_ref().map(|(registry, _)| registry.clone()),
            readable,
            rows: HashMap::new(),
        }
    }

    /// The ids of the schemas that these records name, each once.
    fn ids(&self, slices: &[Slice]) -> Vec<u32> {
        if self.framing != AvroFraming::Confluent {
            return Vec::new();
        }
        let records = slices.iter().flat_map(|slice| (0..slice.records.len()).map(|index| slice.record(index)));
        let mut ids: Vec<u32> = Vec::new();
        for id in records.filter_map(id_of) {
            // Neighbours are mostly of one schema.
            if ids.last() != Some(&id) {
                ids.push(id);
            }
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// The id of the schema, where the record begins as one with an id does.
fn id_of(record: &[u8]) -> Option<u32> {
    match record {
        [0, id @ ..] => Some(u32::from_be_bytes(id.get(..4)?.try_into().ok()?)),
        _ => None,
    }
}

#[async_trait]
impl Codec for Avro {
    fn infer(&self, slices: &[Slice]) -> Result<SchemaRef, CodecError> {
        if let Some(reader) = &self.reader {
            return reader.columns().map_err(CodecError);
        }
        let Some((registry, _)) = &self.registry else {
            return Err(CodecError("avro has neither a registry nor a schema".into()));
        };
        // Ids grow: the highest is the newest.
        let known = self.ids(slices).into_iter().rev().find_map(|id| match registry.known(id) {
            Some(Known::Schema(schema)) => Some(schema),
            _ => None,
        });
        match known {
            Some(schema) => schema.columns().map_err(CodecError),
            None => Ok(Arc::new(arrow::datatypes::Schema::empty())),
        }
    }

    fn decoder(&self, schema: &SchemaRef, _: &SchemaRef) -> Box<dyn Decoder> {
        Box::new(self.decoder_where(schema, None))
    }

    fn readable(&self, slices: &[Slice]) -> Option<Vec<u32>> {
        let (registry, _) = self.registry.as_ref()?;
        let ids = self.ids(slices);
        let is_readable = |id: &u32| matches!(registry.known(*id), Some(Known::Schema(_)));
        let readable: Vec<u32> = ids.iter().copied().filter(is_readable).collect();
        (readable.len() < ids.len()).then_some(readable)
    }

    fn decoder_of(&self, schema: &SchemaRef, _: &SchemaRef, readable: &[u32]) -> Box<dyn Decoder> {
        Box::new(self.decoder_where(schema, Some(readable.to_vec())))
    }

    async fn prepare(&self, slices: &[Slice]) -> Result<(), PrepareError> {
        match &self.registry {
            Some((registry, _)) => registry.fetch(&self.ids(slices)).await,
            None => Ok(()),
        }
    }

    async fn check(&self) -> Result<(), PrepareError> {
        match &self.registry {
            Some((registry, Some(subject))) => registry.latest(subject).await.map(drop),
            Some((registry, None)) => registry.check().await,
            None => Ok(()),
        }
    }

    async fn first_schema(&self, slices: &[Slice]) -> Result<SchemaRef, PrepareError> {
        if let (None, Some((registry, Some(subject)))) = (&self.reader, &self.registry) {
            let (schema, _) = registry.latest(subject).await?;
            return schema.columns().map_err(|why| PrepareError::Fatal(format!("the schema of {subject}: {why}")));
        }
        self.prepare(slices).await?;
        self.infer(slices).map_err(|error| PrepareError::Fatal(error.to_string()))
    }
}

struct AvroDecoder {
    schema: SchemaRef,
    framing: AvroFraming,
    reader: Option<Arc<Schema>>,
    registry: Option<Arc<Registry>>,
    /// `None`: all ids that the registry knows.
    readable: Option<Vec<u32>>,
    /// By id; why records of an id cannot be read.
    rows: HashMap<u32, Result<Rows, (&'static str, String)>>,
}

impl AvroDecoder {
    /// The key of a record's schema, and where its body begins.
    fn head(&self, record: &[u8]) -> Result<(u32, usize), Bad> {
        match self.framing {
            AvroFraming::None if binary::is_avro_container(record) => {
                Err(bad(&format!("it is an Avro container file: {}", binary::AVRO_CONTAINER)))
            }
            AvroFraming::None => Ok((THE_SCHEMA, 0)),
            AvroFraming::Confluent => id_of(record).map(|id| (id, 5)).ok_or_else(|| {
                bad("the record does not begin with a zero byte and the id of a schema: was it written without a registry?")
            }),
            AvroFraming::SingleObject => {
                let known = self.reader.as_ref().map(|schema| &schema.fingerprint[..]);
                match record.split_at_checked(10) {
                    Some((head, _)) if head.starts_with(&SINGLE_OBJECT) && Some(&head[2..]) == known => Ok((THE_SCHEMA, 10)),
                    Some((head, _)) if head.starts_with(&SINGLE_OBJECT) => {
                        Err(Bad::Other("unknown_schema", "the fingerprint is of another schema than the job's".into()))
                    }
                    _ => Err(bad("the record does not begin as a single object does (C3 01)")),
                }
            }
        }
    }
}

#[cold]
fn bad(what: &str) -> Bad {
    Bad::Other("bad_avro", what.into())
}

/// How records of the schema `id` become rows, or the reason and the sentence why they cannot.
fn rows_of(
    id: u32,
    is_readable: bool,
    registry: Option<&Registry>,
    reader: Option<&Arc<Schema>>,
    schema: &SchemaRef,
) -> Result<Rows, (&'static str, String)> {
    let unknown = |why: String| ("unknown_schema", why);
    let writer = match (registry, reader) {
        (None, Some(reader)) => reader.clone(),
        (None, None) => return Err(unknown("the job has no schema".into())),
        (Some(registry), _) => match registry.known(id) {
            Some(Known::Missing(why) | Known::Unusable(why)) => return Err(unknown(why)),
            _ if !is_readable => {
                return Err(unknown(format!("the registry had no schema {id} when the batch was made")));
            }
            Some(Known::Schema(schema)) => schema,
            None => return Err(unknown(format!("schema {id} was not fetched"))),
        },
    };
    Ok(Rows::new(&writer, reader, schema.fields()))
}

impl Decoder for AvroDecoder {
    fn decode(&mut self, slice: &Slice) -> Decoded {
        let schema = self.schema.clone();
        rows::binary(&schema, slice, |record, columns, row| {
            let (id, at) = self.head(record)?;
            if !self.rows.contains_key(&id) {
                let is_readable = self.readable.as_ref().is_none_or(|readable| readable.contains(&id));
                let rows = rows_of(id, is_readable, self.registry.as_deref(), self.reader.as_ref(), &self.schema);
                self.rows.insert(id, rows);
            }
            match self.rows.get(&id) {
                Some(Ok(rows)) => rows.append(record, at, columns, row),
                Some(Err((reason, why))) => Err(Bad::Other(reason, why.clone())),
                None => Err(bad("its schema is not known")),
            }
        })
    }
}
