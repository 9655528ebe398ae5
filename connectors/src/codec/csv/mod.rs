//! CSV as of RFC 4180, with the usual liberties: any delimiter, lone `\r` as a line end, a BOM, any encoding that browsers
//! know.

use std::{borrow::Cow, collections::HashSet, sync::Arc};

use arrow::datatypes::{Field, Schema, SchemaRef};
use encoding_rs::{Encoding, UTF_8};
use tidemill_config::model;

use super::{
    Codec, CodecError, Decoder,
    json::{cursor::Cursor, infer::Kind},
    number::looks_like_integer,
};
use crate::source::Slice;

pub(super) mod decode;
pub(super) mod encode;
mod fields;
pub(super) mod frame;

use fields::Fields;

/// The codec `csv`.
pub(super) struct Csv(pub model::Csv);

/// A slice's records as UTF-8.
pub(super) struct Transcoded<'a> {
    bytes: Cow<'a, [u8]>,
    records: Cow<'a, [(u32, u32)]>,
    header: Option<String>,
    encoding: &'static str,
}

/// The range of a record whose bytes its encoding does not have: outside of every text.
const NOWHERE: (u32, u32) = (u32::MAX, u32::MAX);

impl<'a> Transcoded<'a> {
    fn of(slice: &'a Slice, label: &str) -> Self {
        let encoding = Encoding::for_label(label.as_bytes()).unwrap_or(UTF_8);
        let header = slice.header.as_ref().map(|header| encoding.decode_without_bom_handling(header).0.into_owned());
        if encoding == UTF_8 {
            let (bytes, records) = (Cow::Borrowed(&slice.bytes[..]), Cow::Borrowed(&slice.records[..]));
            return Self { bytes, records, header, encoding: UTF_8.name() };
        }
        let mut text = String::with_capacity(slice.bytes.len());
        let records = (0..slice.records.len())
            .map(|index| {
                let Some(record) = encoding.decode_without_bom_handling_and_without_replacement(slice.record(index))
                else {
                    return NOWHERE;
                };
                let start = text.len();
                text.push_str(&record);
                match (u32::try_from(start), u32::try_from(text.len())) {
                    (Ok(start), Ok(end)) => (start, end),
                    _ => NOWHERE,
                }
            })
            .collect();
        Self { bytes: Cow::Owned(text.into_bytes()), records: Cow::Owned(records), header, encoding: encoding.name() }
    }

    fn record(&self, index: usize) -> Option<&[u8]> {
        let (start, end) = *self.records.get(index)?;
        self.bytes.get(start as usize..end as usize).filter(|text| std::str::from_utf8(text).is_ok())
    }
}

/// Why files in this encoding cannot be read; `None` where they can.
pub(super) fn refusal(options: &model::Csv) -> Option<String> {
    let label = &options.encoding;
    match Encoding::for_label(label.as_bytes()) {
        None => Some(format!("csv: `{label}` is no encoding")),
        // Its bytes mean something else after an escape: a quote or line end cannot be told from a part of a letter.
        Some(encoding) if encoding == encoding_rs::ISO_2022_JP || encoding == encoding_rs::REPLACEMENT => {
            Some(format!("csv: files in {label} cannot be cut into records; turn them into utf-8 first"))
        }
        Some(_) => None,
    }
}

/// The column names of a header, without the white space around them: an empty one is `column_N`, one that was there before gets `_2`, `_3`, and so on.
pub(super) fn column_names(header: &str, options: &model::Csv) -> Vec<String> {
    let (mut names, mut scratch) = (Vec::new(), Vec::new());
    let mut taken = HashSet::new();
    let mut fields = Fields::new(header.as_bytes(), options);
    while let Ok(Some(field)) = fields.next(&mut scratch) {
        let text = String::from_utf8_lossy(field.text);
        let text = if field.quoted { text.into_owned() } else { text.trim().to_owned() };
        let base = if text.is_empty() { format!("column_{}", names.len() + 1) } else { text };
        let mut name = base.clone();
        let mut count = 1;
        while !taken.insert(name.clone()) {
            count += 1;
            name = format!("{base}_{count}");
        }
        names.push(name);
    }
    names
}

/// What a field's text suggests.
fn kind_of(text: &[u8]) -> Kind {
    let mut cursor = Cursor::new(text);
    if looks_like_integer(text) {
        Kind::Integer
    } else if text.eq_ignore_ascii_case(b"true") || text.eq_ignore_ascii_case(b"false") {
        Kind::Boolean
    } else if cursor.number().is_ok_and(|number| !number.integer || text == b"-0")
        && cursor.at == text.len()
        && lexical_core::parse::<f64>(text).is_ok_and(f64::is_finite)
    {
        Kind::Float
    } else {
        Kind::Text
    }
}

impl Csv {
    /// Adds the kinds of a record's fields, where it has as many as there are columns.
    fn look_at(&self, record: &[u8], kinds: &mut [Kind]) {
        let mut scratch = Vec::new();
        let mut fields = Fields::new(record, &self.0);
        let mut found = Vec::with_capacity(kinds.len());
        while let Ok(Some(field)) = fields.next(&mut scratch) {
            let is_null =
                field.text.is_empty() || !field.quoted && self.0.nulls.iter().any(|null| null.as_bytes() == field.text);
            found.push(if is_null { Kind::Null } else { kind_of(field.text) });
        }
        if found.len() == kinds.len() {
            kinds.iter_mut().zip(found).for_each(|(kind, other)| kind.merge(other));
        }
    }

    fn width(&self, record: &[u8]) -> usize {
        let (mut fields, mut scratch, mut count) = (Fields::new(record, &self.0), Vec::new(), 0);
        while let Ok(Some(_)) = fields.next(&mut scratch) {
            count += 1;
        }
        count
    }
}

impl Codec for Csv {
    fn infer(&self, slices: &[Slice]) -> Result<SchemaRef, CodecError> {
        let mut columns: Vec<(String, Kind)> = Vec::new();
        for slice in slices.iter().filter(|slice| !slice.records.is_empty()) {
            let transcoded = Transcoded::of(slice, &self.0.encoding);
            let records = || (0..slice.records.len()).filter_map(|index| transcoded.record(index));
            let names = match &transcoded.header {
                Some(header) => column_names(header, &self.0),
                None if !columns.is_empty() => columns.iter().map(|(name, _)| name.clone()).collect(),
                None => {
                    (1..=records().next().map_or(0, |first| self.width(first))).map(|n| format!("column_{n}")).collect()
                }
            };
            let mut kinds = vec![Kind::Null; names.len()];
            records().for_each(|record| self.look_at(record, &mut kinds));
            super::json::infer::merge_fields(&mut columns, names.into_iter().zip(kinds).collect());
        }
        if columns.len() > super::json::MAX_COLUMNS {
            return Err(CodecError(format!("the files have more than {} columns", super::json::MAX_COLUMNS)));
        }
        let fields: Vec<Field> = columns.iter().map(|(name, kind)| Field::new(name, kind.data_type(1), true)).collect();
        Ok(Arc::new(Schema::new(fields)))
    }

    fn decoder(&self, schema: &SchemaRef, known: &SchemaRef) -> Box<dyn Decoder> {
        Box::new(decode::CsvDecoder::new(schema, known, &self.0))
    }
}
