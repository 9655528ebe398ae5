//! CSV as of RFC 4180, with the usual liberties.

pub(super) mod frame;

use std::{borrow::Cow, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use tidemill_config::Csv as Options;

use super::{
    Codec, CodecError, Decoded, Decoder,
    column::Column,
    rows::{self, Bad},
};
use crate::source::Slice;

/// The codec `csv`.
pub(super) struct Csv(pub(super) Options);

struct CsvDecoder {
    options: Options,
    schema: SchemaRef,
    known: SchemaRef,
}

/// The fields of one record; whether each was quoted. `None`: a quote that does not close, or text after one.
fn split<'a>(record: &'a str, options: &Options) -> Option<Vec<(Cow<'a, str>, bool)>> {
    let bytes = record.as_bytes();
    let mut fields = Vec::new();
    let mut at = 0;
    loop {
        if bytes.get(at) == Some(&options.quote) {
            let (field, end) = quoted(record, at + 1, options)?;
            fields.push((field, true));
            at = end;
        } else {
            let end = memchr::memchr(options.delimiter, &bytes[at..]).map_or(bytes.len(), |n| at + n);
            fields.push((Cow::Borrowed(&record[at..end]), false));
            at = end;
        }
        match bytes.get(at) {
            None => return Some(fields),
            Some(byte) if *byte == options.delimiter => at += 1,
            Some(_) => return None,
        }
    }
}

/// A quoted field whose opening quote is taken, and where it ends.
fn quoted<'a>(record: &'a str, start: usize, options: &Options) -> Option<(Cow<'a, str>, usize)> {
    let bytes = record.as_bytes();
    let mut text = String::new();
    let mut from = start;
    let mut at = start;
    loop {
        let byte = *bytes.get(at)?;
        let is_escape = options.escape == Some(byte) && options.escape != Some(options.quote);
        if is_escape && at + 1 < bytes.len() {
            text.push_str(&record[from..at]);
            from = at + 1;
            at += 2;
        } else if byte == options.quote && bytes.get(at + 1) == Some(&options.quote) {
            text.push_str(&record[from..=at]);
            at += 2;
            from = at;
        } else if byte == options.quote {
            let field = if text.is_empty() { Cow::Borrowed(&record[from..at]) } else { Cow::Owned(text + &record[from..at]) };
            return Some((field, at + 1));
        } else {
            at += 1;
        }
    }
}

/// The columns' names: of the header, of the given schema, or `column_1` and so on.
fn names(options: &Options, header: Option<&[u8]>, known: &SchemaRef, fields: usize) -> Vec<String> {
    let header = header.filter(|_| options.header).and_then(|text| std::str::from_utf8(text).ok()).and_then(|text| split(text, options));
    match header {
        Some(header) => header.into_iter().map(|(name, _)| name.trim().to_owned()).collect(),
        None if !known.fields().is_empty() => known.fields().iter().map(|field| field.name().clone()).collect(),
        None => (1..=fields).map(|n| format!("column_{n}")).collect(),
    }
}

impl Codec for Csv {
    fn infer(&self, slices: &[Slice]) -> Result<SchemaRef, CodecError> {
        let mut columns: Vec<(String, Option<DataType>)> = Vec::new();
        for slice in slices {
            for index in 0..slice.records.len() {
                let Ok(text) = std::str::from_utf8(slice.record(index)) else { continue };
                let Some(fields) = split(text, &self.0) else { continue };
                if columns.is_empty() {
                    let names = names(&self.0, slice.header.as_deref(), &Arc::new(Schema::empty()), fields.len());
                    columns = names.into_iter().map(|name| (name, None)).collect();
                }
                for ((_, kind), (field, is_quoted)) in columns.iter_mut().zip(&fields) {
                    if !is_null(&self.0, field, *is_quoted) {
                        *kind = Some(widen(kind.take(), field));
                    }
                }
            }
        }
        let fields: Vec<_> = columns.into_iter().map(|(name, kind)| Field::new(name, kind.unwrap_or(DataType::Utf8), true)).collect();
        Ok(Arc::new(Schema::new(fields)))
    }
    fn decoder(&self, schema: &SchemaRef, known: &SchemaRef) -> Box<dyn Decoder> {
        Box::new(CsvDecoder { options: self.0.clone(), schema: schema.clone(), known: known.clone() })
    }
}

/// Leading zeros are not a number's: `007` stays a text.
fn widen(seen: Option<DataType>, field: &str) -> DataType {
    let digits = field.strip_prefix('-').unwrap_or(field);
    let padded = digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0.");
    let now = if padded {
        DataType::Utf8
    } else if field.parse::<i64>().is_ok() {
        DataType::Int64
    } else if digits.starts_with(|c: char| c.is_ascii_digit()) && field.parse::<f64>().is_ok() {
        DataType::Float64
    } else if field.eq_ignore_ascii_case("true") || field.eq_ignore_ascii_case("false") {
        DataType::Boolean
    } else {
        DataType::Utf8
    };
    match seen {
        None => now,
        Some(before) if before == now => now,
        Some(DataType::Int64 | DataType::Float64) if matches!(now, DataType::Int64 | DataType::Float64) => DataType::Float64,
        Some(_) => DataType::Utf8,
    }
}

fn is_null(options: &Options, field: &str, quoted: bool) -> bool {
    !quoted && (field.is_empty() || options.nulls.iter().any(|null| null == field))
}

impl Decoder for CsvDecoder {
    fn decode(&mut self, slice: &Slice) -> Decoded {
        let mut places: Option<Vec<Option<usize>>> = None;
        let mut wanted = 0;
        rows::decode(&self.schema, slice, &slice.bytes, &slice.records, |record, columns, row| {
            let fields = split(record, &self.options).ok_or_else(|| Bad::Other("csv", "a quote is not closed, or text follows one".into()))?;
            let places = places.get_or_insert_with(|| {
                let names = names(&self.options, slice.header.as_deref(), &self.known, fields.len());
                wanted = names.len();
                names.iter().map(|name| self.schema.index_of(name).ok()).collect()
            });
            if fields.len() != wanted {
                return Err(Bad::Other("csv", format!("the record has {} fields, not {wanted}", fields.len())));
            }
            for ((field, quoted), place) in fields.iter().zip(places.iter()) {
                let Some(column) = place.and_then(|at| columns.get_mut(at)) else { continue };
                fill(&self.options, column, field, *quoted).map_err(|bad| bad.inside(place.map_or("", |at| self.schema.field(at).name())))?;
            }
            for column in columns.iter_mut().filter(|column| column.len() == row) {
                column.null();
            }
            Ok(())
        })
    }
}

fn fill(options: &Options, column: &mut Column, field: &str, quoted: bool) -> Result<(), Bad> {
    if is_null(options, field, quoted) {
        column.null();
    } else if !column.parse(field.as_bytes()) {
        return Err(Bad::Type { column: String::new(), value: rows::shown(field.as_bytes()), expected: column.expected() });
    }
    Ok(())
}
