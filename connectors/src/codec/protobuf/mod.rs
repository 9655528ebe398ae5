//! Protobuf: one message a record, by the descriptor set that the job names.
//!
//! The crate `prost-reflect` reads descriptors and decodes messages; [`columns`](mod@columns) says what columns a message has,
//! [`read`] puts fields into them, [`json`] writes what no column type holds. [`write`](mod@write) makes messages of rows, and
//! [`tree`](mod@tree) of that JSON; [`encode`](mod@encode) writes them. Nothing is asked of a registry: with its framing the
//! schema's id is passed over, and the message indexes must be those of the job's message.

use arrow::datatypes::SchemaRef;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use tidemill_config::model;

use super::{
    Codec, CodecError, Decoded, Decoder,
    column::complete,
    rows::{self, Bad},
};
use crate::source::Slice;

mod columns;
mod encode;
mod json;
mod read;
#[cfg(test)]
mod tests;
mod tree;
mod write;

use read::Field;
pub(super) use write::Writing;

/// More message indexes are no path to a message.
const MAX_NESTED: usize = 64;

/// The codec `protobuf`.
pub(super) struct Protobuf {
    message: MessageDescriptor,
    confluent: bool,
}

/// The columns of a job's message, or what is wrong with its descriptors, and where the job names them.
pub(super) fn columns(options: &model::Protobuf) -> Result<SchemaRef, model::Located<String>> {
    let message = message(options)?;
    columns::of_message(&message).map_err(|why| model::Located {
        value: format!("message {}: {why}", message.full_name()),
        at: options.message.at.clone(),
    })
}

fn message(options: &model::Protobuf) -> Result<MessageDescriptor, model::Located<String>> {
    let file = &options.descriptors;
    let wrong = |why: String| model::Located {
        value: format!(
            "the descriptor set {} cannot be used: {why}\nmake it by `protoc --include_imports --descriptor_set_out=FILE`",
            file.path.value.display()
        ),
        at: file.path.at.clone(),
    };
    let content = file.content.as_ref().map_err(|why| wrong(why.clone()))?;
    let pool = DescriptorPool::decode(&**content).map_err(|error| wrong(error.to_string()))?;
    let name = options.message.value.trim_start_matches('.');
    pool.get_message_by_name(name).ok_or_else(|| {
        let google = |message: &MessageDescriptor| message.package_name().starts_with("google.protobuf");
        let names: Vec<_> = pool
            .all_messages()
            .filter(|message| !google(message) && !message.is_map_entry())
            .map(|message| message.full_name().to_owned())
            .take(20)
            .collect();
        model::Located {
            value: format!("the descriptor set has no message {name}\nit has {}", names.join(", ")),
            at: options.message.at.clone(),
        }
    })
}

impl Protobuf {
    pub(super) fn new(options: &model::Protobuf) -> Result<Self, String> {
        let message = message(options).map_err(|wrong| wrong.value)?;
        Ok(Self { message, confluent: options.confluent })
    }
}

impl Codec for Protobuf {
    fn infer(&self, _: &[Slice]) -> Result<SchemaRef, CodecError> {
        columns::of_message(&self.message).map_err(CodecError)
    }

    fn decoder(&self, schema: &SchemaRef, _: &SchemaRef) -> Box<dyn Decoder> {
        Box::new(ProtobufDecoder {
            schema: schema.clone(),
            fields: read::fields(&self.message, schema.fields()),
            message: self.message.clone(),
            indexes: self.confluent.then(|| indexes_of(&self.message)),
        })
    }
}

/// Where a message stands in its file: the number of the message at the top, of the one inside of that, and so on. In a
/// descriptor's path a field's number comes before each.
fn indexes_of(message: &MessageDescriptor) -> Vec<i64> {
    message.path().iter().skip(1).step_by(2).map(|index| i64::from(*index)).collect()
}

struct ProtobufDecoder {
    schema: SchemaRef,
    message: MessageDescriptor,
    fields: Vec<Field>,
    /// The message indexes that records have, with a registry's framing.
    indexes: Option<Vec<i64>>,
}

impl ProtobufDecoder {
    /// The message in a record.
    fn body<'r>(&self, record: &'r [u8]) -> Result<&'r [u8], Bad> {
        let Some(indexes) = &self.indexes else { return Ok(record) };
        let [0, _, _, _, _, rest @ ..] = record else {
            return Err(bad("the record does not begin with a zero byte and the id of a schema".into()));
        };
        let (found, body) = framed(rest).ok_or_else(|| bad("its message indexes are broken".into()))?;
        if found != *indexes {
            return Err(bad(format!(
                "it is another message: its indexes are {found:?}, those of {} are {indexes:?}",
                self.message.full_name()
            )));
        }
        Ok(body)
    }
}

#[cold]
fn bad(what: String) -> Bad {
    Bad::Other("bad_protobuf", what)
}

/// Message indexes and what comes after them. A single 0 stands for `[0]`.
fn framed(bytes: &[u8]) -> Option<(Vec<i64>, &[u8])> {
    let (count, mut rest) = zigzag(bytes)?;
    if count == 0 {
        return Some((vec![0], rest));
    }
    let count = usize::try_from(count).ok().filter(|count| *count <= MAX_NESTED)?;
    let mut indexes = Vec::with_capacity(count);
    for _ in 0..count {
        let (index, after) = zigzag(rest)?;
        indexes.push(index);
        rest = after;
    }
    Some((indexes, rest))
}

fn zigzag(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let mut rest = bytes;
    let value = prost_reflect::prost::encoding::decode_varint(&mut rest).ok()?;
    Some(((value >> 1) as i64 ^ -((value & 1) as i64), rest))
}

impl Decoder for ProtobufDecoder {
    fn decode(&mut self, slice: &Slice) -> Decoded {
        rows::binary(&self.schema, slice, |record, columns, row| {
            let body = self.body(record)?;
            let message = DynamicMessage::decode(self.message.clone(), body).map_err(|error| bad(error.to_string()))?;
            read::message(&self.fields, &message, columns)?;
            complete(columns, row);
            Ok(())
        })
    }
}
