//! Trees as messages and maps: the other way round of what [`json`](super::json) makes of them.

use std::{borrow::Cow, collections::HashMap};

use arrow::datatypes::DataType;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

use super::{
    columns::{Known, known},
    write::{MICROS, both_set, duration, integer, named, parts, shown, single},
};
use crate::codec::{
    records::cells::article,
    rows::Bad,
    scalar::Scalar,
    tree::{STAMP, Tree},
};

/// Deeper messages are read by nobody: so have it Google's readers and the crate.
const MAX_DEPTH: usize = 100;

/// A field's value.
pub(super) fn field(field: &FieldDescriptor, tree: &Tree<'_>, depth: usize) -> Result<Value, Bad> {
    let kind = field.kind();
    match (tree, kind.as_message().filter(|_| field.is_map())) {
        (Tree::Object(members), Some(entry)) => {
            let (key, of) = (entry.map_entry_key_field().kind(), entry.map_entry_value_field());
            let made = members.iter().map(|(name, tree)| {
                let key = self::key(&key, name)
                    .ok_or_else(|| Tree::Text(Cow::Borrowed(&**name)).unfit(format!("a key of {}", named(&key))));
                Ok((key?, value(&of.kind(), tree, depth).map_err(|bad| bad.inside(name))?))
            });
            Ok(Value::Map(made.collect::<Result<HashMap<_, _>, Bad>>()?))
        }
        (Tree::List(items), None) if field.is_list() => {
            Ok(Value::List(items.iter().map(|item| value(&kind, item, depth)).collect::<Result<_, _>>()?))
        }
        (tree, None) if !field.is_list() => value(&kind, tree, depth),
        (tree, _) => Err(tree.unfit(article(&shown(field)))),
    }
}

fn value(kind: &Kind, tree: &Tree<'_>, depth: usize) -> Result<Value, Bad> {
    let column = match kind {
        Kind::Message(of) => return message(of, tree, depth + 1).map(Value::Message),
        Kind::Bool => DataType::Boolean,
        Kind::Float | Kind::Double => DataType::Float64,
        Kind::Bytes => DataType::Binary,
        Kind::String | Kind::Enum(_) => DataType::Utf8,
        // All digits of any of them.
        _ => DataType::Decimal128(20, 0),
    };
    let mut bytes = Vec::new();
    let made = tree.scalar(&column, &mut bytes).and_then(|value| single(kind, &value));
    made.ok_or_else(|| tree.unfit(article(&named(kind))))
}

/// A message.
pub(super) fn message(of: &MessageDescriptor, tree: &Tree<'_>, depth: usize) -> Result<DynamicMessage, Bad> {
    if depth > MAX_DEPTH {
        return Err(tree.unfit(format!("nested so deep that it can be read: at most {MAX_DEPTH} messages")));
    }
    let unfit = || tree.unfit(article(of.full_name()));
    let mut made = DynamicMessage::new(of.clone());
    match (known(of), tree) {
        (Some(Known::Timestamp), _) => {
            let micros = match tree.scalar(&STAMP, &mut Vec::new()) {
                Some(Scalar::Stamp(micros)) => micros,
                _ => return Err(unfit()),
            };
            return Ok(parts(of, micros.div_euclid(MICROS), micros.rem_euclid(MICROS) * 1_000));
        }
        (Some(Known::Duration), Tree::Text(text)) => {
            let (seconds, nanos) = duration(text).ok_or_else(unfit)?;
            return Ok(parts(of, seconds, nanos));
        }
        (Some(Known::Wrapper), _) => {
            let inner = of.get_field(1).ok_or_else(unfit)?;
            made.set_field(&inner, value(&inner.kind(), tree, depth)?);
        }
        (Some(Known::Value), _) => {
            // The fields of its `oneof`.
            let number = match tree {
                Tree::Null => 1,
                Tree::Number(_) => 2,
                Tree::Text(_) => 3,
                Tree::Boolean(_) => 4,
                Tree::Object(_) => 5,
                Tree::List(_) => 6,
            };
            let inner = of.get_field(number).ok_or_else(unfit)?;
            let is_null = *tree == Tree::Null;
            made.set_field(&inner, if is_null { Value::EnumNumber(0) } else { value(&inner.kind(), tree, depth)? });
        }
        (Some(Known::Struct), Tree::Object(_)) | (Some(Known::ListValue), Tree::List(_)) => {
            let inner = of.get_field(1).ok_or_else(unfit)?;
            made.set_field(&inner, field(&inner, tree, depth)?);
        }
        (None, Tree::Object(members)) => {
            for (name, tree) in members {
                let Some(inner) = of.get_field_by_name(name) else {
                    return Err(tree.unfit(format!("a field of {}", of.full_name())).inside(name));
                };
                if *tree == Tree::Null && !is_value(&inner) {
                    continue;
                }
                if let Some(other) = both_set(&made, &inner) {
                    return Err(other);
                }
                made.set_field(&inner, field(&inner, tree, depth).map_err(|bad| bad.inside(name))?);
            }
            if let Some(lacks) = of.fields().find(|field| field.is_required() && !made.has_field(field)) {
                return Err(Tree::Null.unfit(format!("{}, which is required", shown(&lacks))).inside(lacks.name()));
            }
        }
        _ => return Err(unfit()),
    }
    Ok(made)
}

/// Whether null is a value of the field.
fn is_value(field: &FieldDescriptor) -> bool {
    !field.is_list() && field.kind().as_message().is_some_and(|message| known(message) == Some(Known::Value))
}

fn key(kind: &Kind, name: &str) -> Option<MapKey> {
    match kind {
        Kind::Bool => name.parse().ok().map(MapKey::Bool),
        Kind::String => Some(MapKey::String(name.to_owned())),
        _ => integer(kind, name.parse().ok()?)?.into_map_key(),
    }
}
