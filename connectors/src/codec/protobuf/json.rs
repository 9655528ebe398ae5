//! Values as JSON, where a column is the text of one: maps, messages inside of themselves, JSON as a message. Names of fields
//! are those of the descriptor; entries of maps come in the order of their keys.

use prost_reflect::{DynamicMessage, Kind, MapKey, ReflectMessage as _, Value};

use super::{
    columns::{Known, known},
    read::single,
};
use crate::codec::{rows::Bad, scalar, values::quoted};

/// Appends a value.
pub(super) fn value(kind: &Kind, value: &Value, out: &mut Vec<u8>) -> Result<(), Bad> {
    match value {
        Value::List(items) => list(items, out, |item, out| self::value(kind, item, out)),
        Value::Map(entries) => {
            let kind = match kind {
                Kind::Message(entry) => entry.map_entry_value_field().kind(),
                other => other.clone(),
            };
            let mut entries: Vec<_> = entries.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            object(entries.into_iter().map(|(name, value)| (key(name), value)), out, |item, out| {
                self::value(&kind, item, out)
            })
        }
        Value::Message(inner) if !is_single(inner) => message(inner, out),
        value => single(kind, value, |value| {
            match value {
                Some(value) => scalar::json(&value, out),
                None => out.extend_from_slice(b"null"),
            }
            Ok(())
        }),
    }
}

/// Whether a message stands for one value.
fn is_single(message: &DynamicMessage) -> bool {
    matches!(known(&message.descriptor()), Some(Known::Timestamp | Known::Wrapper | Known::Duration))
}

fn message(message: &DynamicMessage, out: &mut Vec<u8>) -> Result<(), Bad> {
    let descriptor = message.descriptor();
    let first = || message.get_field_by_number(1);
    match known(&descriptor) {
        Some(Known::Struct) => match first().as_deref() {
            Some(Value::Map(fields)) => {
                let mut fields: Vec<_> = fields.iter().collect();
                fields.sort_unstable_by_key(|(key, _)| *key);
                object(fields.into_iter().map(|(name, value)| (key(name), value)), out, any)
            }
            _ => plain(b"{}", out),
        },
        Some(Known::ListValue) => match first().as_deref() {
            Some(Value::List(items)) => list(items, out, any),
            _ => plain(b"[]", out),
        },
        Some(Known::Value) => match message.fields().next() {
            Some((field, _)) if field.number() == 1 => plain(b"null", out),
            Some((field, value)) => self::value(&field.kind(), value, out),
            None => plain(b"null", out),
        },
        _ => {
            let mut members = Vec::new();
            for field in descriptor.fields() {
                if !field.supports_presence() || message.has_field(&field) {
                    members.push((field.name().to_owned(), (field.kind(), message.get_field(&field))));
                }
            }
            object(members.iter().map(|(name, member)| (name.clone(), member)), out, |(kind, value), out| {
                self::value(kind, value, out)
            })
        }
    }
}

/// A value whose type is in itself.
fn any(value: &Value, out: &mut Vec<u8>) -> Result<(), Bad> {
    match value {
        Value::Message(message) => self::message(message, out),
        _ => plain(b"null", out),
    }
}

#[allow(clippy::unnecessary_wraps)] // the ends of matches
fn plain(text: &[u8], out: &mut Vec<u8>) -> Result<(), Bad> {
    out.extend_from_slice(text);
    Ok(())
}

fn list(
    items: &[Value],
    out: &mut Vec<u8>,
    mut one: impl FnMut(&Value, &mut Vec<u8>) -> Result<(), Bad>,
) -> Result<(), Bad> {
    out.push(b'[');
    for (place, item) in items.iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        one(item, out)?;
    }
    out.push(b']');
    Ok(())
}

fn object<T>(
    members: impl Iterator<Item = (String, T)>,
    out: &mut Vec<u8>,
    mut one: impl FnMut(T, &mut Vec<u8>) -> Result<(), Bad>,
) -> Result<(), Bad> {
    out.push(b'{');
    for (place, (name, member)) in members.enumerate() {
        if place > 0 {
            out.push(b',');
        }
        quoted(name.as_bytes(), out);
        out.push(b':');
        one(member, out)?;
    }
    out.push(b'}');
    Ok(())
}

fn key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}
