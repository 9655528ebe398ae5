//! JSON records straight into columns: one pass, no tree, no allocation per record.

use std::{collections::HashMap, ops::Range};

use arrow::datatypes::SchemaRef;
use tidemill_config::model;

use super::{
    CONFLUENT, bodies,
    cursor::{Cursor, Fault, unescape},
    keys::{Keys, Target},
};
use crate::{
    codec::{
        Decoded, Decoder, EXTRA,
        column::{Column, Data, complete},
        rows::{self, Bad},
        values::quoted,
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
    options: model::Json,
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

    /// Of the fields whose keys are too many to have numbers, the last one of each name stays too.
    #[cold]
    fn without_duplicates(&mut self, record: &[u8]) {
        let name = |field: &Range<usize>| Cursor::new(&record[field.clone()]).first_key().unwrap_or_default();
        let mut last = HashMap::new();
        let unnumbered = self.fields.iter().enumerate().filter(|(_, (number, _))| *number == usize::MAX);
        for (place, (_, field)) in unnumbered {
            last.insert(name(field), place);
        }
        let mut place = 0;
        self.fields.retain(|(number, field)| {
            place += 1;
            *number != usize::MAX || last.get(&name(field)) == Some(&(place - 1))
        });
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
        if self.fields.iter().any(|(number, _)| *number == usize::MAX) {
            self.without_duplicates(record);
        }
        self.text.clear();
        self.text.push(b'{');
        let own =
            self.fields.iter().position(|(_, field)| is_own_extra(&record[field.clone()], !self.inside.is_empty()));
        match own {
            None => members(self.fields.drain(..), record, &mut self.text),
            Some(own) => self.beside_own(own, record),
        }
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

/// Whether a field is the record's own `_extra`, which would be taken for ours: it is an object, or ours is beside it.
fn is_own_extra(field: &[u8], is_beside: bool) -> bool {
    // Mostly the first look tells.
    if !field.starts_with(b"\"_") && !field.starts_with(b"\"\\") {
        return false;
    }
    let mut cursor = Cursor::new(field);
    let key = cursor.first_key();
    key.as_deref() == Some(EXTRA.as_bytes()) && (is_beside || cursor.peek() == b'{')
}

impl Extras {
    /// The fields, of which the one at `own` gets a name that is not taken: `_extra_2`.
    #[cold]
    fn beside_own(&mut self, own: usize, record: &[u8]) {
        let names: Vec<_> = self
            .fields
            .iter()
            .map(|(_, field)| Cursor::new(&record[field.clone()]).first_key().unwrap_or_default())
            .collect();
        let free =
            (2..).map(|n| format!("{EXTRA}_{n}")).find(|name| !names.iter().any(|other| other == name.as_bytes()));
        for (place, (_, field)) in std::mem::take(&mut self.fields).into_iter().enumerate() {
            if place > 0 {
                self.text.push(b',');
            }
            let field = &record[field];
            if place == own {
                let mut cursor = Cursor::new(field);
                let _ = cursor.first_key();
                quoted(free.as_deref().unwrap_or_default().as_bytes(), &mut self.text);
                self.text.push(b':');
                self.text.extend_from_slice(&field[cursor.at..]);
            } else {
                self.text.extend_from_slice(field);
            }
        }
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
    pub(super) fn new(schema: &SchemaRef, known: &SchemaRef, options: &model::Json) -> Self {
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
        Self { schema: schema.clone(), options: options.clone(), keys, extra, extras: Extras::default() }
    }

    fn record(&mut self, record: &[u8], columns: &mut [Column], row: usize) -> Result<(), Bad> {
        let mut cursor = Cursor::new(record);
        cursor.begin();
        if cursor.peek() != b'{' {
            cursor.skip()?;
            cursor.end()?;
            return Err(Bad::Other(
                "not_an_object",
                format!("the record is valid JSON but no object: {}", rows::shown(record)),
            ));
        }
        self.extras.clear();
        let done = object(&mut cursor, &mut self.keys, columns, row, Some(&mut self.extras));
        // Text after a wrong value may be no JSON at all: that comes first.
        if matches!(done, Ok(()) | Err(Bad::Type { .. })) {
            cursor.end()?;
        }
        done?;
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
        let (options, bodies) = (self.options.clone(), bodies(slice, &self.options));
        let name = bodies.encoding.name();
        let mut decoded = rows::decode(&schema, slice, &bodies.bytes, &bodies.records, name, |record, columns, row| {
            self.record(record.as_bytes(), columns, row)
        });
        for reject in &mut decoded.rejects {
            let record = slice.record(reject.record as usize);
            let has_id = record.first() == Some(&0) && record.len() >= CONFLUENT;
            let what = match (options.confluent, has_id) {
                (false, true) => "it begins with a zero byte and the id of a schema: write `framing: confluent`",
                (true, false) => {
                    "it does not begin with a zero byte and the id of a schema: remove `framing: confluent`"
                }
                _ => continue,
            };
            (reject.reason, reject.detail) = ("json", what.to_owned());
        }
        decoded
    }
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
    // The values that do not fit their columns, unless a later field of the name does.
    let mut wrong: Vec<(usize, Bad)> = Vec::new();
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
                if !wrong.is_empty() {
                    wrong.retain(|(other, _)| *other != at);
                }
                let before = std::mem::take(&mut cursor.skipped);
                let begin = cursor.at;
                match value(cursor, column) {
                    Ok(()) => {}
                    Err(bad @ Bad::Type { .. }) => {
                        // What follows may be no JSON at all, or the name once more.
                        cursor.at = begin;
                        cursor.skip()?;
                        column.truncate(row);
                        wrong.push((at, bad.inside(keys.name(at))));
                    }
                    Err(bad) => return Err(bad),
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
            return wrong.into_iter().next().map_or(Ok(()), |(_, bad)| Err(bad));
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
