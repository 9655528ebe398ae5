//! Defaults: values that a schema gives as JSON, in the binary encoding, so that they are read like any other.

use serde_json::Value;

use super::schema::{Id, Node, Schema};

/// Appends a default's bytes. For a union it is a value of the first variant, or, as later versions of Avro allow, of any.
pub(super) fn encode(schema: &Schema, id: Id, value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    let node = schema.node(id);
    let wrong = || format!("{value} is not a value of its type");
    match (node, value) {
        (Node::Null, Value::Null) => {}
        (Node::Boolean, Value::Bool(value)) => out.push(u8::from(*value)),
        (Node::Int | Node::Date | Node::Time(1_000), Value::Number(number)) => {
            let value = number.as_i64().and_then(|value| i32::try_from(value).ok()).ok_or_else(wrong)?;
            long(i64::from(value), out);
        }
        (Node::Long | Node::Time(_) | Node::Stamp(_), Value::Number(number)) => {
            long(number.as_i64().ok_or_else(wrong)?, out);
        }
        (Node::Float, _) => {
            #[allow(clippy::cast_possible_truncation)] // the type has no more digits
            let value = double(value).ok_or_else(wrong)? as f32;
            out.extend_from_slice(&value.to_le_bytes());
        }
        (Node::Double, _) => out.extend_from_slice(&double(value).ok_or_else(wrong)?.to_le_bytes()),
        (Node::String | Node::UuidText, Value::String(text)) => bytes(text.as_bytes(), out),
        (
            Node::Bytes | Node::Decimal { size: None, .. } | Node::BigDecimal | Node::Uuid { with_length: true },
            Value::String(text),
        ) => bytes(&letters(text).ok_or_else(wrong)?, out),
        (_, Value::String(text)) if size(node).is_some() => {
            let letters = letters(text).filter(|letters| Some(letters.len()) == size(node)).ok_or_else(wrong)?;
            out.extend_from_slice(&letters);
        }
        (Node::Enum { symbols, .. }, Value::String(text)) => {
            let index = symbols.iter().position(|symbol| symbol == text).ok_or_else(wrong)?;
            long(index as i64, out);
        }
        (Node::Array(item), Value::Array(values)) => {
            block(values.len(), out);
            values.iter().try_for_each(|value| encode(schema, *item, value, out))?;
            out.push(0);
        }
        (Node::Map(item), Value::Object(values)) => {
            block(values.len(), out);
            for (name, value) in values {
                bytes(name.as_bytes(), out);
                encode(schema, *item, value, out)?;
            }
            out.push(0);
        }
        (Node::Record(fields), Value::Object(values)) => {
            for field in fields {
                let value = values.get(&field.name).or(field.default.as_ref());
                let value =
                    value.ok_or_else(|| format!("it has no field {}, which has no default either", field.name))?;
                encode(schema, field.node, value, out)?;
            }
        }
        (Node::Union(variants), value) => return variant(schema, variants, value, out).ok_or_else(wrong),
        _ => return Err(wrong()),
    }
    Ok(())
}

fn variant(schema: &Schema, variants: &[Id], value: &Value, out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    for (index, variant) in variants.iter().enumerate() {
        long(index as i64, out);
        if encode(schema, *variant, value, out).is_ok() {
            return Some(());
        }
        out.truncate(start);
    }
    None
}

/// The size of a type without a length.
fn size(node: &Node) -> Option<usize> {
    match node {
        Node::Fixed(size) | Node::Decimal { size: Some(size), .. } => Some(*size),
        Node::Uuid { with_length: false } => Some(16),
        Node::Duration => Some(12),
        _ => None,
    }
}

/// Bytes are given as a text whose letters are U+0000 to U+00FF.
fn letters(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|letter| u8::try_from(u32::from(letter)).ok()).collect()
}

fn double(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        // JSON has no such numbers.
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "INF" | "Infinity" => Some(f64::INFINITY),
            "-INF" | "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// What begins the items of an array or map, which are in one block; none are in no block.
pub(super) fn block(count: usize, out: &mut Vec<u8>) {
    if count > 0 {
        long(count as i64, out);
    }
}

pub(super) fn bytes(bytes: &[u8], out: &mut Vec<u8>) {
    long(bytes.len() as i64, out);
    out.extend_from_slice(bytes);
}

pub(super) fn long(value: i64, out: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}
