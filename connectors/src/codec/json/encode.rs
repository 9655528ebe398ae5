//! Rows as JSON lines.

use std::collections::HashSet;

use arrow::{
    array::{Array, RecordBatch},
    datatypes::{DataType, SchemaRef},
};

use super::{
    cursor::{Cursor, Fault, unescape},
    merge,
};
use crate::codec::{
    CodecError, EXTRA, Encoder,
    values::{Values, can_write, key, quoted},
};

/// Writes one object a line: every column in order, nulls as `null`, the fields of `_extra` after them.
pub(in crate::codec) struct JsonEncoder {
    /// Of each column but `_extra`: what comes before its value.
    keys: Vec<Vec<u8>>,
    columns: Vec<usize>,
    extra: Option<usize>,
    names: HashSet<String>,
    /// A value before it is merged.
    ours: Vec<u8>,
}

impl JsonEncoder {
    pub(in crate::codec) fn new(schema: &SchemaRef) -> Result<Self, CodecError> {
        let is_extra =
            |at: &usize| schema.field(*at).name() == EXTRA && schema.field(*at).data_type() == &DataType::Utf8;
        let (extra, columns): (Vec<usize>, Vec<usize>) = (0..schema.fields().len()).partition(is_extra);
        let (mut keys, mut names) = (Vec::new(), HashSet::new());
        for (place, at) in columns.iter().enumerate() {
            let field = schema.field(*at);
            if !can_write(field.data_type()) {
                return Err(CodecError(format!(
                    "column {} of type {} cannot be written as json: cast it to string",
                    field.name(),
                    field.data_type()
                )));
            }
            keys.push(key(if place == 0 { b"{" } else { b"," }, field.name()));
            names.insert(field.name().clone());
        }
        Ok(Self { keys, columns, extra: extra.first().copied(), names, ours: Vec::new() })
    }

    /// Appends a column's value with the fields that `inside` kept of it.
    fn merged(&mut self, column: &mut Values, row: usize, theirs: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        self.ours.clear();
        column.json(row, &mut self.ours);
        if merge::merge(&self.ours, theirs, out).is_err() {
            out.truncate(start);
            out.extend_from_slice(&self.ours);
        }
        on_one_line(&mut out[start..]);
    }

    /// Appends the fields of a row's `_extra` that are no columns.
    fn extra(&self, text: &str, is_first: bool, out: &mut Vec<u8>) {
        let whole = out.len();
        let mut before = if is_first { b'{' } else { b',' };
        if self.members(text.as_bytes(), &mut before, out).is_err() {
            // Something else than the json codec has put it there: keep it as what it is.
            out.truncate(whole);
            out.extend(key(&[if is_first { b'{' } else { b',' }], EXTRA));
            quoted(text.as_bytes(), out);
        }
        on_one_line(&mut out[whole..]);
    }

    fn members(&self, text: &[u8], before: &mut u8, out: &mut Vec<u8>) -> Result<(), Fault> {
        let mut cursor = Cursor::new(text);
        let mut name = Vec::new();
        cursor.space();
        if !cursor.take(b'{') {
            return cursor.fault("an object is expected");
        }
        cursor.space();
        if cursor.take(b'}') {
            return cursor.end();
        }
        loop {
            cursor.space();
            let start = cursor.at;
            if !cursor.take(b'"') {
                return cursor.fault("a key in quotes is expected");
            }
            let key = cursor.string()?;
            name.clear();
            unescape(&text[key.range], &mut name);
            cursor.colon()?;
            let value = cursor.skip()?;
            // What it keeps of columns was merged into them, or is gone with them.
            let is_inside = name == EXTRA.as_bytes() && text.get(value.start) == Some(&b'{');
            if !is_inside && std::str::from_utf8(&name).is_ok_and(|name| !self.names.contains(name)) {
                out.push(std::mem::replace(before, b','));
                out.extend_from_slice(&text[start..cursor.at]);
            }
            cursor.space();
            if cursor.take(b'}') {
                return cursor.end();
            }
            if !cursor.take(b',') {
                return cursor.fault("a comma or } is expected");
            }
        }
    }
}

/// White space between tokens may hold line ends; strings cannot.
fn on_one_line(json: &mut [u8]) {
    for byte in json.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')) {
        *byte = b' ';
    }
}

impl Encoder for JsonEncoder {
    fn encode(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let bind = |at: &usize| {
            let column =
                batch.columns().get(*at).ok_or_else(|| CodecError("a batch lacks columns of its schema".into()))?;
            Values::new(column)
                .map_err(|error| CodecError(format!("column {}: {error}", batch.schema_ref().field(*at).name())))
        };
        let mut columns = self.columns.iter().map(bind).collect::<Result<Vec<_>, _>>()?;
        let extra = self.extra.as_ref().map(bind).transpose()?;
        let keys: usize = self.keys.iter().map(Vec::len).sum();
        // An estimate that is mostly enough: texts as they lie in memory, and the keys.
        let values: usize =
            batch.columns().iter().map(|column| column.get_array_memory_size().min(64 * column.len())).sum();
        out.reserve(batch.num_rows() * (keys + 2) + values);
        for row in 0..batch.num_rows() {
            let start = out.len();
            let extra =
                extra.as_ref().filter(|extra| !extra.is_null(row)).map(|extra| extra.text(row).unwrap_or_default());
            let inside =
                extra.filter(|text| text.contains(EXTRA)).and_then(|text| merge::member(text.as_bytes(), EXTRA));
            for (place, column) in columns.iter_mut().enumerate() {
                out.extend_from_slice(&self.keys[place]);
                let name = batch.schema_ref().field(self.columns[place]).name();
                match inside.and_then(|inside| merge::member(inside, name)) {
                    Some(theirs) => self.merged(column, row, theirs, out),
                    None => column.json(row, out),
                }
            }
            if let Some(text) = extra {
                self.extra(text, columns.is_empty(), out);
            }
            if out.len() == start {
                out.push(b'{');
            }
            out.extend_from_slice(b"}\n");
        }
        Ok(())
    }
}
