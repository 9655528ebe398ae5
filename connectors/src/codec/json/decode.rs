//! JSON records straight into columns: one pass, no tree, no allocation per record.

use std::{collections::HashMap, ops::Range};

use arrow::datatypes::SchemaRef;

use super::{
    cursor::{Cursor, Fault, unescape},
    keys::{Keys, Target},
};
use crate::{
    codec::{
        Decoded, Decoder, EXTRA,
        column::{Column, Data, complete},
        rows::{self, Bad},
    },
    source::Slice,
};

impl From<Fault> for Bad {
    fn from(fault: Fault) -> Self {
        Self::Json { at: fault.at, what: fault.what }
    }
}

/// Decodes JSON records.
pub(super) struct JsonDecoder {
    schema: SchemaRef,
    keys: Keys,
    /// The number of the column `_extra`.
    extra: Option<usize>,
    extras: Extras,
}

/// The unknown fields of one record.
#[derive(Default)]
struct Extras {
    /// By key number and range in the record.
    fields: Vec<(usize, Range<usize>)>,
    /// Columns inside of which there are unknown fields, whole.
    inside: Vec<(usize, Range<usize>)>,
    text: Vec<u8>,
}

impl Extras {
    /// The last field of a name wins.
    fn push(&mut self, number: usize, field: Range<usize>) {
        match self.fields.iter_mut().find(|(other, _)| *other == number && number != usize::MAX) {
            Some((_, earlier)) => *earlier = field,
            None => self.fields.push((number, field)),
        }
    }

    /// The column's value of this field is the last one of its name.
    fn push_inside(&mut self, column: usize, field: Range<usize>, is_whole: bool) {
        self.inside.retain(|(other, _)| *other != column);
        if !is_whole {
            self.inside.push((column, field));
        }
    }

    fn clear(&mut self) {
        self.fields.clear();
        self.inside.clear();
    }

    fn finish(&mut self, record: &[u8], column: &mut Column) {
        if self.fields.is_empty() && self.inside.is_empty() {
            return;
        }
        self.text.clear();
        self.text.push(b'{');
        members(self.fields.drain(..), record, &mut self.text);
        if !self.inside.is_empty() {
            if self.text.len() > 1 {
                self.text.push(b',');
            }
            self.text.extend_from_slice(format!("\"{EXTRA}\":{{").as_bytes());
            members(self.inside.drain(..), record, &mut self.text);
            self.text.push(b'}');
        }
        self.text.push(b'}');
        column.text(&self.text);
    }
}

fn members(fields: impl Iterator<Item = (usize, Range<usize>)>, record: &[u8], out: &mut Vec<u8>) {
    for (place, (_, field)) in fields.enumerate() {
        if place > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&record[field]);
    }
}

impl JsonDecoder {
    pub(super) fn new(schema: &SchemaRef, known: &SchemaRef) -> Self {
        let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        // A pinned column may have the name itself; then it is one like any other.
        let is_known = |name: &str| known.field_with_name(name).is_ok();
        let extra = names.iter().position(|name| name == EXTRA && !is_known(name));
        let mut columns: HashMap<String, Target> =
            known.fields().iter().map(|field| (field.name().clone(), Target::Skip)).collect();
        for (at, name) in names.iter().enumerate() {
            if Some(at) != extra {
                columns.insert(name.clone(), Target::Column(at));
            }
        }
        let unknown = if extra.is_some() { Target::Extra(0) } else { Target::Skip };
        let keys = Keys::new(names, columns, unknown);
        Self { schema: schema.clone(), keys, extra, extras: Extras::default() }
    }

    fn record(&mut self, record: &[u8], columns: &mut [Column], row: usize) -> Result<(), Bad> {
        let mut cursor = Cursor::new(record);
        cursor.space();
        if cursor.peek() != b'{' {
            cursor.skip()?;
            cursor.end()?;
            return Err(Bad::Other(
                "not_an_object",
                format!("the record is valid JSON but no object: {}", rows::shown(record)),
            ));
        }
        self.extras.clear();
        object(&mut cursor, &mut self.keys, columns, row, Some(&mut self.extras))?;
        cursor.end()?;
        if let Some(column) = self.extra.and_then(|at| columns.get_mut(at)) {
            self.extras.finish(record, column);
        }
        complete(columns, row);
        Ok(())
    }
}

impl Decoder for JsonDecoder {
    fn decode(&mut self, slice: &Slice) -> Decoded {
        let schema = self.schema.clone();
        rows::decode(&schema, slice, &slice.bytes, &slice.records, "UTF-8", |record, columns, row| {
            self.record(record.as_bytes(), columns, row).map_err(|bad| match bad {
                // Text after a wrong value may be no JSON at all: that comes first.
                Bad::Type { .. } => match whole(record.as_bytes()) {
                    Err(fault) => fault.into(),
                    Ok(()) => bad,
                },
                bad => bad,
            })
        })
    }
}

/// Checks that the text is one JSON value.
pub(super) fn whole(text: &[u8]) -> Result<(), Fault> {
    let mut cursor = Cursor::new(text);
    cursor.skip()?;
    cursor.end()
}

/// One object into columns, of which each has `row` values before; those that get none are left for [`complete`].
fn object(
    cursor: &mut Cursor<'_>,
    keys: &mut Keys,
    columns: &mut [Column],
    row: usize,
    mut extras: Option<&mut Extras>,
) -> Result<(), Bad> {
    cursor.at += 1;
    cursor.space();
    if cursor.take(b'}') {
        return Ok(());
    }
    let mut last = 0;
    loop {
        let start = cursor.at;
        if !cursor.take(b'"') {
            return Ok(cursor.fault("a key in quotes is expected")?);
        }
        let target = keys.take(cursor, &mut last)?;
        cursor.colon()?;
        match target {
            Target::Column(at) => {
                let Some(column) = columns.get_mut(at) else { return Ok(()) };
                if column.len() > row {
                    // The last field of a name wins.
                    column.truncate(row);
                }
                let before = std::mem::take(&mut cursor.skipped);
                if let Err(bad) = value(cursor, column) {
                    return Err(bad.inside(keys.name(at)));
                }
                match &mut extras {
                    Some(extras) if cursor.skipped || !extras.inside.is_empty() => {
                        extras.push_inside(at, start..cursor.at, !cursor.skipped);
                    }
                    Some(_) => {}
                    None => cursor.skipped |= before,
                }
            }
            Target::Skip => {
                cursor.skip()?;
                cursor.skipped = true;
            }
            Target::Extra(number) => {
                cursor.skip()?;
                if let Some(extras) = &mut extras {
                    extras.push(number, start..cursor.at);
                }
            }
        }
        cursor.space();
        if cursor.take(b',') {
            cursor.space();
        } else if cursor.take(b'}') {
            return Ok(());
        } else {
            return Ok(cursor.fault("a comma or } is expected")?);
        }
    }
}

/// One value into a column.
#[inline]
pub(in crate::codec) fn value(cursor: &mut Cursor<'_>, column: &mut Column) -> Result<(), Bad> {
    match cursor.peek() {
        b'"' => string(cursor, column),
        b'n' => {
            cursor.literal(b"null")?;
            column.null();
            Ok(())
        }
        b'{' if matches!(column.data, Data::Struct { .. }) => {
            let row = column.len();
            let Data::Struct { keys, columns, .. } = &mut column.data else { return Ok(()) };
            object(cursor, keys, columns, row, None)?;
            complete(columns, row);
            column.some();
            Ok(())
        }
        b'[' if matches!(column.data, Data::List { .. }) => list(cursor, column),
        first => {
            let bytes = cursor.bytes;
            let range = cursor.skip()?;
            let text = &bytes[range];
            let appended = match first {
                _ if column.text(text) => true,
                b't' | b'f' => column.boolean(first == b't'),
                b'{' | b'[' => false,
                _ => column.number(text),
            };
            if appended { Ok(()) } else { Err(mismatch(column, text)) }
        }
    }
}

#[inline]
fn string(cursor: &mut Cursor<'_>, column: &mut Column) -> Result<(), Bad> {
    cursor.at += 1;
    let text = cursor.string()?;
    let inner = &cursor.bytes[text.range.clone()];
    if !text.escaped {
        if column.text(inner) || column.parse(inner) {
            return Ok(());
        }
        return Err(mismatch(column, &cursor.bytes[text.range.start - 1..cursor.at]));
    }
    if let Data::Text(values) = &mut column.data {
        unescape(inner, &mut values.bytes);
        values.end();
        column.some();
        return Ok(());
    }
    let mut plain = Vec::new();
    unescape(inner, &mut plain);
    if column.parse(&plain) { Ok(()) } else { Err(mismatch(column, &cursor.bytes[text.range.start - 1..cursor.at])) }
}

fn list(cursor: &mut Cursor<'_>, column: &mut Column) -> Result<(), Bad> {
    let Data::List { offsets, item, .. } = &mut column.data else { return Ok(()) };
    cursor.at += 1;
    cursor.space();
    if !cursor.take(b']') {
        loop {
            cursor.space();
            value(cursor, item)?;
            cursor.space();
            if cursor.take(b']') {
                break;
            }
            if !cursor.take(b',') {
                return Ok(cursor.fault("a comma or ] is expected")?);
            }
        }
    }
    offsets.push(item.len() as i32);
    column.some();
    Ok(())
}

#[cold]
fn mismatch(column: &Column, text: &[u8]) -> Bad {
    Bad::Type { column: String::new(), value: rows::shown(text), expected: column.expected() }
}
