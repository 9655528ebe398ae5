//! CSV as of RFC 4180, with the usual liberties: any delimiter, lone `\r` as a line end, a BOM, any encoding that browsers
//! know.

use std::{collections::HashSet, sync::Arc};

use arrow::datatypes::{Field, Schema, SchemaRef};
use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};
use tidemill_config::model;

use super::{
    Codec, CodecError, Decoder,
    encoding::{Transcoded, of_head},
    json::infer::{Kind, Known},
};
use crate::source::Slice;

pub(super) mod decode;
pub(super) mod encode;
mod fields;
pub(super) mod frame;
mod lacks;
mod numbers;

use fields::{Dialect, Fields};
use numbers::Numbers;

/// The codec `csv`.
pub(super) struct Csv(pub model::Csv);

/// What a file's head says about its records.
pub(super) struct Head {
    encoding: &'static Encoding,
    delimiter: Vec<u8>,
    /// The header's text, where there is one.
    text: Option<String>,
}

/// The line that a spreadsheet writes before the header, so that the delimiter is known: `sep=;`.
enum Separator {
    /// More bytes must tell.
    Unknown,
    /// There is no such line.
    None,
    /// The delimiter, and the length of the line with its end.
    Is(u8, usize),
}

/// Whether a file's first line names its delimiter.
fn separator(bytes: &[u8], at_end: bool) -> Separator {
    const WORD: &[u8] = b"sep=";
    let begins = &bytes[..bytes.len().min(WORD.len())];
    if !begins.eq_ignore_ascii_case(&WORD[..begins.len()]) {
        return Separator::None;
    }
    let can_be =
        |byte: u8| byte.is_ascii() && !byte.is_ascii_alphanumeric() && !matches!(byte, b'\n' | b'\r' | b'"' | 0);
    match (bytes.get(WORD.len()), bytes.get(WORD.len() + 1), bytes.get(WORD.len() + 2)) {
        (Some(byte), _, _) if !can_be(*byte) => Separator::None,
        (Some(byte), Some(b'\r'), Some(b'\n')) => Separator::Is(*byte, WORD.len() + 3),
        (Some(_), Some(b'\r'), None) if !at_end => Separator::Unknown,
        (Some(byte), Some(b'\n' | b'\r'), _) => Separator::Is(*byte, WORD.len() + 2),
        (Some(_), Some(_), _) => Separator::None,
        _ if !at_end => Separator::Unknown,
        (Some(byte), None, _) => Separator::Is(*byte, WORD.len() + 1),
        _ => Separator::None,
    }
}

impl Head {
    /// Of a slice: its mark, the line that names the delimiter, and the header, as the framer found them.
    fn parse(head: Option<&[u8]>, options: &model::Csv) -> Self {
        let (encoding, head) = of_head(head, &options.encoding);
        let mut delimiter = options.delimiter.clone().into_bytes();
        let text = encoding.decode_without_bom_handling(head).0;
        let mut text: &str = &text;
        if let Separator::Is(found, length) = separator(text.as_bytes(), true) {
            delimiter = vec![found];
            text = &text[length..];
        }
        let text = Some(text).filter(|text| options.header && !text.is_empty()).map(str::to_owned);
        Self { encoding, delimiter, text }
    }

    fn dialect<'a>(&'a self, options: &'a model::Csv) -> Dialect<'a> {
        Dialect { delimiter: &self.delimiter, quote: options.quote, escape: options.escape }
    }

    /// The names of the columns, where there is a header.
    fn names(&self, options: &model::Csv) -> Option<Vec<String>> {
        self.text.as_ref().map(|text| column_names(text, self.dialect(options)).0)
    }

    /// Why this is not the header of the file whose head has these bytes; `None` where it may be.
    fn fault(&self, head: &[u8], has_end: bool, options: &model::Csv) -> Option<String> {
        let Some(text) = &self.text else { return None };
        let (name, (_, raw)) = (self.encoding.name(), of_head(Some(head), &options.encoding));
        if self.encoding.decode_without_bom_handling_and_without_replacement(raw).is_none() {
            return Some(format!("its header is not {name}: set `encoding`"));
        }
        let is_utf16 = [UTF_16LE, UTF_16BE].contains(&self.encoding);
        if is_utf16 && !has_end && raw.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            return Some(format!("no line end is found in it: is it really {name}?"));
        }
        if text.contains('\0') {
            let is_it = if self.encoding == UTF_8 { ": is it UTF-16? Set `encoding`" } else { "" };
            return Some(format!("its header holds NUL characters{is_it}"));
        }
        let (names, end) = column_names(text, self.dialect(options));
        if let Err(what) = end {
            return Some(format!("its header cannot be read: {what}"));
        }
        if !options.expected.is_empty() && !names.iter().any(|name| options.expected.contains(name)) {
            return Some(no_column(text, &options.expected, &self.delimiter));
        }
        None
    }
}

/// That a header has none of the columns that are wanted.
fn no_column(header: &str, wanted: &[String], delimiter: &[u8]) -> String {
    const MAX_NAMES: usize = 5;
    let more = if wanted.len() > MAX_NAMES { ", ..." } else { "" };
    let names = wanted.iter().take(MAX_NAMES).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    format!(
        "its header {:?} has none of the columns {names}{more}: is {:?} the delimiter, and is there a header (`header: false`)?",
        super::rows::shown(header.as_bytes()),
        String::from_utf8_lossy(delimiter),
    )
}

/// Why files in this encoding cannot be read; `None` where they can.
pub(super) fn refusal(options: &model::Csv) -> Option<String> {
    super::encoding::refusal(&options.encoding).map(|why| format!("csv: {why}"))
}

/// The column names of a header, without the white space around them: an empty one is `column_N`, one that was there before gets
/// `_2`, `_3`, and so on. And what is wrong with the header, behind them.
fn column_names(header: &str, dialect: Dialect<'_>) -> (Vec<String>, Result<(), &'static str>) {
    let (mut names, mut scratch) = (Vec::new(), Vec::new());
    let mut taken = HashSet::new();
    let mut fields = Fields::new(header.as_bytes(), dialect);
    loop {
        let field = match fields.next(&mut scratch) {
            Ok(Some(field)) => field,
            Ok(None) => return (names, Ok(())),
            Err(what) => return (names, Err(what)),
        };
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
}

/// What a field's text suggests.
fn kind_of(text: &[u8], numbers: &Numbers, scratch: &mut Vec<u8>) -> Kind {
    if text.eq_ignore_ascii_case(b"true") || text.eq_ignore_ascii_case(b"false") {
        return Kind::Boolean;
    }
    numbers.plain(text, scratch).map_or(Kind::Text, numbers::kind_of)
}

/// Finds the kinds of columns.
struct Kinds<'a> {
    options: &'a model::Csv,
    dialect: Dialect<'a>,
    numbers: Numbers,
}

impl Kinds<'_> {
    /// Adds the kinds of a record's fields, where it is not a reject for their number.
    fn look_at(&self, record: &[u8], kinds: &mut [Kind]) {
        let (mut scratch, mut digits) = (Vec::new(), Vec::new());
        let mut fields = Fields::new(record, self.dialect);
        let mut found = Vec::with_capacity(kinds.len());
        while let Ok(Some(field)) = fields.next(&mut scratch) {
            let is_null = field.text.is_empty()
                || !field.quoted && self.options.nulls.iter().any(|null| null.as_bytes() == field.text);
            found.push(if is_null { Kind::Null } else { kind_of(field.text, &self.numbers, &mut digits) });
        }
        if decode::is_count_right(found.len(), kinds.len(), self.options) {
            kinds.iter_mut().zip(found).for_each(|(kind, other)| kind.merge(other));
        }
    }

    fn width(&self, record: &[u8]) -> usize {
        let (mut fields, mut scratch, mut count) = (Fields::new(record, self.dialect), Vec::new(), 0);
        while let Ok(Some(_)) = fields.next(&mut scratch) {
            count += 1;
        }
        count
    }
}

/// The text of a record in a source that has no header: a mark at its beginning is that of a connection or message.
fn without_mark(record: &[u8]) -> &[u8] {
    record.strip_prefix(super::frame::UTF8_BOM).unwrap_or(record)
}

impl Codec for Csv {
    fn infer(&self, slices: &[Slice]) -> Result<SchemaRef, CodecError> {
        let mut columns = Known::default();
        for slice in slices.iter().filter(|slice| !slice.records.is_empty()) {
            let transcoded = Transcoded::of(slice, &self.0.encoding);
            let head = Head::parse(slice.header.as_deref(), &self.0);
            let finder = Kinds { options: &self.0, dialect: head.dialect(&self.0), numbers: Numbers::of(&self.0) };
            let names = head.names(&self.0);
            let has_header = names.is_some();
            let records = || {
                let all = (0..slice.records.len()).filter_map(|index| transcoded.record(index));
                all.map(move |record| if has_header { record } else { without_mark(record) })
            };
            let names = match names {
                Some(names) => names,
                None if !columns.is_empty() => columns.names(),
                None => {
                    let width = records().next().map_or(0, |first| finder.width(first));
                    (1..=width).map(|n| format!("column_{n}")).collect()
                }
            };
            let mut kinds = vec![Kind::Null; names.len()];
            records().for_each(|record| finder.look_at(record, &mut kinds));
            columns.add(names.into_iter().zip(kinds).collect());
        }
        let fields: Vec<Field> =
            columns.finish().iter().map(|(name, kind)| Field::new(name, kind.data_type(1), true)).collect();
        Ok(Arc::new(Schema::new(fields)))
    }

    fn decoder(&self, schema: &SchemaRef, known: &SchemaRef) -> Box<dyn Decoder> {
        Box::new(decode::CsvDecoder::new(schema, known, &self.0))
    }

    fn text(&self, slice: &Slice, record: usize) -> Option<String> {
        super::encoding::text_of(slice, record, &self.0.encoding)
    }
}
