//! The types that JSON records suggest.

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::{DataType, Field, Fields};

use super::{
    MAX_COLUMNS,
    cursor::{Cursor, Fault, unescape},
};
use crate::codec::EXTRA;

/// Deeper lists and structs are kept as the text of their JSON: a type must be written down and read again.
const MAX_NESTING: usize = 12;
/// Wider structs are kept as the text of their JSON: they are rather maps.
const MAX_STRUCT_FIELDS: usize = 1024;
/// All fields of a schema, those inside of columns too: what a few records write must not cost much in all that follow.
const MAX_FIELDS: usize = 16_384;
/// A column with a longer name would be in every plan; such a field is kept in `_extra`.
const MAX_NAME_BYTES: usize = 1024;

/// The columns that records suggest, in the order in which their fields are first seen.
#[derive(Default)]
pub(in crate::codec) struct Known {
    fields: Vec<(String, Kind)>,
    places: HashMap<String, usize>,
    /// Fields in all, those inside of columns too.
    count: usize,
}

/// Whether a field may be a column of its own. `_extra` is Tidemill's, and no database has a name with a NUL in it.
fn can_be_column(name: &str) -> bool {
    name != EXTRA && name.len() <= MAX_NAME_BYTES && !name.contains('\0')
}

impl Known {
    pub(in crate::codec) fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    pub(in crate::codec) fn names(&self) -> Vec<String> {
        self.fields.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Adds the fields of a record. Those beyond the limits are no columns.
    pub(in crate::codec) fn add(&mut self, others: Vec<(String, Kind)>) {
        for (at, (name, kind)) in others.into_iter().enumerate() {
            // Mostly they come in the same order.
            let found = match self.fields.get(at) {
                Some((same, _)) if *same == name => Some(at),
                _ => self.places.get(&name).copied(),
            };
            match found {
                Some(found) => self.fields[found].1.merge_within(kind, &mut self.count),
                None if self.fields.len() < MAX_COLUMNS && can_be_column(&name) => {
                    self.places.insert(name.clone(), self.fields.len());
                    self.fields.push((name, kind.within(&mut self.count)));
                }
                None => {}
            }
        }
    }

    pub(in crate::codec) fn finish(self) -> Vec<(String, Kind)> {
        self.fields
    }
}

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
        self.merge_within(other, &mut 0);
    }

    /// The same, with a count of all fields that are known: those beyond [`MAX_FIELDS`] are left out.
    fn merge_within(&mut self, other: Self, count: &mut usize) {
        match (&mut *self, other) {
            (_, Self::Null) => {}
            (Self::Null, other) => *self = other.within(count),
            (Self::Integer, Self::Float) | (Self::Float, Self::Integer) => *self = Self::Float,
            (Self::List(item), Self::List(other)) => item.merge_within(*other, count),
            (Self::Object(fields), Self::Object(others)) => merge_fields(fields, others, count),
            (same, other) if *same == other => {}
            _ => *self = Self::Text,
        }
    }

    /// Itself, counted; beyond [`MAX_FIELDS`] it is kept as the text of its JSON.
    fn within(self, count: &mut usize) -> Self {
        let fields = self.fields();
        if fields > 0 && *count + fields > MAX_FIELDS {
            return Self::Text;
        }
        *count += fields;
        self
    }

    /// The fields inside.
    fn fields(&self) -> usize {
        match self {
            Self::List(item) => item.fields(),
            Self::Object(fields) => fields.iter().map(|(_, kind)| 1 + kind.fields()).sum(),
            _ => 0,
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

/// Adds fields to those known of an object; mostly they come in the same order.
fn merge_fields(fields: &mut Vec<(String, Kind)>, others: Vec<(String, Kind)>, count: &mut usize) {
    for (at, (name, kind)) in others.into_iter().enumerate() {
        let found = match fields.get(at) {
            Some((same, _)) if *same == name => Some(at),
            _ => fields.iter().position(|(known, _)| *known == name),
        };
        match found {
            Some(found) => fields[found].1.merge_within(kind, count),
            // One more than the limit is enough to know.
            None if fields.len() <= MAX_STRUCT_FIELDS && *count < MAX_FIELDS => {
                *count += 1;
                fields.push((name, kind.within(count)));
            }
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
    let mut places = HashMap::new();
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
