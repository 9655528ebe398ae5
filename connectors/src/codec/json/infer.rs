//! The types that JSON records suggest.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields};

use super::cursor::{Cursor, Fault, unescape};

/// Deeper lists and structs are kept as the text of their JSON: a type must be written down and read again.
const MAX_NESTING: usize = 12;
/// Wider structs are kept as the text of their JSON: they are rather maps.
const MAX_STRUCT_FIELDS: usize = 1024;

/// What values of one field have been seen.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::codec) enum Kind {
    Null,
    Boolean,
    Integer,
    Float,
    /// Texts, or values of different types.
    Text,
    List(Box<Kind>),
    Object(Vec<(String, Kind)>),
}

impl Kind {
    /// The narrowest kind for values of both.
    pub(in crate::codec) fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (_, Self::Null) => {}
            (Self::Null, other) => *self = other,
            (Self::Integer, Self::Float) | (Self::Float, Self::Integer) => *self = Self::Float,
            (Self::List(item), Self::List(other)) => item.merge(*other),
            (Self::Object(fields), Self::Object(others)) => merge_fields(fields, others),
            (same, other) if *same == other => {}
            _ => *self = Self::Text,
        }
    }

    /// The type; nothing but nulls is a string.
    pub(in crate::codec) fn data_type(&self, nesting: usize) -> DataType {
        match self {
            Self::Null | Self::Text => DataType::Utf8,
            Self::Boolean => DataType::Boolean,
            Self::Integer => DataType::Int64,
            Self::Float => DataType::Float64,
            Self::List(item) if nesting < MAX_NESTING => {
                DataType::List(Arc::new(Field::new_list_field(item.data_type(nesting + 1), true)))
            }
            Self::Object(fields) if nesting < MAX_NESTING && can_be_struct(fields) => DataType::Struct(
                fields
                    .iter()
                    .map(|(name, kind)| Field::new(name, kind.data_type(nesting + 1), true))
                    .collect::<Fields>(),
            ),
            Self::List(_) | Self::Object(_) => DataType::Utf8,
        }
    }
}

/// Names in a struct's type are written without quotes: those that could not be read again make it a text.
fn can_be_struct(fields: &[(String, Kind)]) -> bool {
    let is_plain =
        |name: &str| !name.is_empty() && name.trim() == name && !name.contains(['<', '>', '(', ')', ',', ':']);
    (1..=MAX_STRUCT_FIELDS).contains(&fields.len()) && fields.iter().all(|(name, _)| is_plain(name))
}

/// Adds fields to those known; mostly they come in the same order.
pub(in crate::codec) fn merge_fields(fields: &mut Vec<(String, Kind)>, others: Vec<(String, Kind)>) {
    for (at, (name, kind)) in others.into_iter().enumerate() {
        let found = match fields.get(at) {
            Some((same, _)) if *same == name => Some(at),
            _ => fields.iter().position(|(known, _)| *known == name),
        };
        match found {
            Some(found) => fields[found].1.merge(kind),
            // One more than the limit is enough to know.
            None if fields.len() <= MAX_STRUCT_FIELDS.max(super::MAX_COLUMNS) => fields.push((name, kind)),
            None => {}
        }
    }
}

/// The kind of a value, checked as strictly as when it is decoded.
pub(in crate::codec) fn kind(cursor: &mut Cursor<'_>, depth: usize) -> Result<Kind, Fault> {
    cursor.space();
    match cursor.peek() {
        b'"' => {
            cursor.skip()?;
            Ok(Kind::Text)
        }
        b't' | b'f' => cursor.skip().map(|_| Kind::Boolean),
        b'n' => cursor.skip().map(|_| Kind::Null),
        b'{' if depth <= MAX_NESTING => object(cursor, depth).map(Kind::Object),
        b'[' if depth <= MAX_NESTING => list(cursor, depth),
        b'{' | b'[' => cursor.skip().map(|_| Kind::Text),
        _ => {
            let number = cursor.number()?;
            let text = &cursor.bytes[number.range];
            Ok(match number.integer {
                true if lexical_core::parse::<i64>(text).is_ok() => Kind::Integer,
                // An integer beyond 64 bits would lose digits as a number.
                true => Kind::Text,
                false if lexical_core::parse::<f64>(text).is_ok_and(f64::is_finite) => Kind::Float,
                false => Kind::Text,
            })
        }
    }
}

/// The fields of an object whose brace is next.
pub(in crate::codec) fn object(cursor: &mut Cursor<'_>, depth: usize) -> Result<Vec<(String, Kind)>, Fault> {
    let mut fields: Vec<(String, Kind)> = Vec::new();
    cursor.at += 1;
    cursor.space();
    if cursor.take(b'}') {
        return Ok(fields);
    }
    loop {
        cursor.space();
        if !cursor.take(b'"') {
            return cursor.fault("a key in quotes is expected");
        }
        let text = cursor.string()?;
        let mut name = Vec::new();
        unescape(&cursor.bytes[text.range], &mut name);
        cursor.colon()?;
        let value = kind(cursor, depth + 1)?;
        fields.push((String::from_utf8_lossy(&name).into_owned(), value));
        cursor.space();
        if cursor.take(b'}') {
            return Ok(without_duplicates(fields));
        }
        if !cursor.take(b',') {
            return cursor.fault("a comma or } is expected");
        }
    }
}

/// The last field of a name wins.
fn without_duplicates(fields: Vec<(String, Kind)>) -> Vec<(String, Kind)> {
    let mut places = std::collections::HashMap::new();
    let mut distinct: Vec<(String, Kind)> = Vec::with_capacity(fields.len());
    for (name, kind) in fields {
        let place = *places.entry(name.clone()).or_insert(distinct.len());
        match distinct.get_mut(place) {
            Some(earlier) => earlier.1 = kind,
            None => distinct.push((name, kind)),
        }
    }
    distinct
}

fn list(cursor: &mut Cursor<'_>, depth: usize) -> Result<Kind, Fault> {
    let mut item = Kind::Null;
    cursor.at += 1;
    cursor.space();
    if cursor.take(b']') {
        return Ok(Kind::List(Box::new(item)));
    }
    loop {
        item.merge(kind(cursor, depth + 1)?);
        cursor.space();
        if cursor.take(b']') {
            return Ok(Kind::List(Box::new(item)));
        }
        if !cursor.take(b',') {
            return cursor.fault("a comma or ] is expected");
        }
    }
}
