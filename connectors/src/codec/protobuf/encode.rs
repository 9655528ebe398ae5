//! Messages as bytes, as the crate would write them, but for maps: their entries come in the order of their keys, as Google's
//! deterministic writing has them, so that a batch that is written again has the same bytes.

use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, Value,
    prost::encoding::{WireType, encode_key, encode_varint},
};

const KEY: u32 = 1;
const VALUE: u32 = 2;

/// Appends a message. Fields come in the order of their numbers.
pub(super) fn message(message: &DynamicMessage, out: &mut Vec<u8>) {
    for (descriptor, value) in message.fields() {
        let (number, kind) = (descriptor.number(), descriptor.kind());
        match value {
            Value::Map(entries) => {
                let (Some(key), Some(value)) = (entry(&kind, KEY), entry(&kind, VALUE)) else { continue };
                let mut sorted: Vec<_> = entries.iter().collect();
                sorted.sort_unstable_by_key(|(key, _)| *key);
                for entry in sorted {
                    encode_key(number, WireType::LengthDelimited, out);
                    within(out, |out| {
                        field(KEY, &key, &of_key(entry.0), out);
                        field(VALUE, &value, entry.1, out);
                    });
                }
            }
            Value::List(items) if descriptor.is_packed() => {
                encode_key(number, WireType::LengthDelimited, out);
                within(out, |out| items.iter().for_each(|item| raw(&kind, item, out)));
            }
            Value::List(items) => items.iter().for_each(|item| one(&descriptor, &kind, item, out)),
            value => one(&descriptor, &kind, value, out),
        }
    }
}

fn entry(kind: &Kind, number: u32) -> Option<Kind> {
    Some(kind.as_message()?.get_field(number)?.kind())
}

fn one(descriptor: &FieldDescriptor, kind: &Kind, value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Message(inner) if descriptor.is_group() => {
            encode_key(descriptor.number(), WireType::StartGroup, out);
            message(inner, out);
            encode_key(descriptor.number(), WireType::EndGroup, out);
        }
        value => field(descriptor.number(), kind, value, out),
    }
}

fn field(number: u32, kind: &Kind, value: &Value, out: &mut Vec<u8>) {
    encode_key(number, kind.wire_type(), out);
    raw(kind, value, out);
}

/// A value without its field.
fn raw(kind: &Kind, value: &Value, out: &mut Vec<u8>) {
    match (value, kind) {
        (Value::Bool(value), _) => encode_varint(u64::from(*value), out),
        (Value::I32(value), Kind::Sint32) => encode_varint(u64::from(((value << 1) ^ (value >> 31)) as u32), out),
        (Value::I64(value), Kind::Sint64) => encode_varint(((value << 1) ^ (value >> 63)) as u64, out),
        (Value::I32(value), Kind::Sfixed32) => out.extend_from_slice(&value.to_le_bytes()),
        (Value::I64(value), Kind::Sfixed64) => out.extend_from_slice(&value.to_le_bytes()),
        (Value::U32(value), Kind::Fixed32) => out.extend_from_slice(&value.to_le_bytes()),
        (Value::U64(value), Kind::Fixed64) => out.extend_from_slice(&value.to_le_bytes()),
        // A negative number is one of 64 bits, always.
        (Value::I32(value) | Value::EnumNumber(value), _) => encode_varint(i64::from(*value) as u64, out),
        (Value::I64(value), _) => encode_varint(*value as u64, out),
        (Value::U32(value), _) => encode_varint(u64::from(*value), out),
        (Value::U64(value), _) => encode_varint(*value, out),
        (Value::F32(value), _) => out.extend_from_slice(&value.to_le_bytes()),
        (Value::F64(value), _) => out.extend_from_slice(&value.to_le_bytes()),
        (Value::String(value), _) => bytes(value.as_bytes(), out),
        (Value::Bytes(value), _) => bytes(value, out),
        (Value::Message(inner), _) => within(out, |out| message(inner, out)),
        // No item of a list is one.
        (Value::List(_) | Value::Map(_), _) => {}
    }
}

fn bytes(bytes: &[u8], out: &mut Vec<u8>) {
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// What `fill` appends, with its length before it.
fn within(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    fill(out);
    let mut length = Vec::with_capacity(5);
    encode_varint((out.len() - start) as u64, &mut length);
    out.splice(start..start, length);
}

fn of_key(key: &MapKey) -> Value {
    key.clone().into()
}
