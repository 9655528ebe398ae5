//! CSV records into columns.

use arrow::datatypes::SchemaRef;
use tidemill_config::model::{Csv, ExtraFields, MissingFields};

use super::{
    Head, Numbers, Transcoded,
    fields::{Dialect, Field, Fields},
    lacks, no_column, without_mark,
};
use crate::{
    codec::{
        Decoded, Decoder, EXTRA,
        column::{Column, Data, complete},
        json::{cursor::Cursor, decode::value},
        rows::{self, Bad},
        values::{key, quoted},
    },
    source::Slice,
};

/// What becomes of a field.
#[derive(Clone, Debug)]
enum Target {
    Column(usize),
    Skip,
    /// It is kept in `_extra` under this key.
    Extra(Vec<u8>),
}

/// Decodes CSV records.
pub(super) struct CsvDecoder {
    schema: SchemaRef,
    known: SchemaRef,
    options: Csv,
    numbers: Numbers,
    scratch: Vec<u8>,
    /// A number as it is parsed.
    digits: Vec<u8>,
    extra: Vec<u8>,
}

/// What is the same for all records of a slice.
struct Around<'a> {
    dialect: Dialect<'a>,
    targets: &'a [Target],
    names: &'a [String],
}

impl CsvDecoder {
    pub(super) fn new(schema: &SchemaRef, known: &SchemaRef, options: &Csv) -> Self {
        let (schema, known, options) = (schema.clone(), known.clone(), options.clone());
        let numbers = Numbers::of(&options);
        Self { schema, known, options, numbers, scratch: Vec::new(), digits: Vec::new(), extra: Vec::new() }
    }

    /// The number of the column that collects unknown fields.
    fn extra_column(&self) -> Option<usize> {
        let at = self.schema.index_of(EXTRA).ok()?;
        self.known.field_with_name(EXTRA).is_err().then_some(at)
    }

    /// What becomes of each field: by the header's names, without a header by the order of the schema.
    fn targets(&self, names: &[String]) -> Vec<Target> {
        let has_extra = self.extra_column().is_some();
        let target = |name: &String| match self.schema.index_of(name) {
            Ok(at) if !(has_extra && name == EXTRA) => Target::Column(at),
            _ if has_extra && self.known.field_with_name(name).is_err() => Target::Extra(key(b"", name)),
            _ => Target::Skip,
        };
        names.iter().map(target).collect()
    }

    fn record(&mut self, text: &[u8], around: &Around<'_>, columns: &mut [Column], row: usize) -> Result<(), Bad> {
        let targets = around.targets;
        let mut fields = Fields::new(text, around.dialect);
        let mut found = 0;
        self.extra.clear();
        while let Some(field) = fields.next(&mut self.scratch).map_err(|what| Bad::Other("csv", what.to_owned()))? {
            match targets.get(found) {
                Some(Target::Column(at)) => {
                    if let Some(column) = columns.get_mut(*at)
                        && !append(column, &field, &self.options, &self.numbers, &mut self.digits)
                    {
                        let value = rows::shown(field.text);
                        let column_name = self.schema.field(*at).name().clone();
                        // The count of fields says more than a value that has slipped into another column.
                        count_rest(&mut fields, &mut found, &mut Vec::new())?;
                        self.check_count(found, targets.len())?;
                        return Err(Bad::Type {
                            column: column_name,
                            value: format!("{value:?}"),
                            expected: column.expected(),
                        });
                    }
                }
                Some(Target::Extra(name)) => keep(name, &field, &self.options, &mut self.extra),
                None if self.options.extra_fields == ExtraFields::Keep => {
                    keep(&key(b"", &name_of(found, around.names)), &field, &self.options, &mut self.extra);
                }
                Some(Target::Skip) | None => {}
            }
            found += 1;
        }
        self.check_count(found, targets.len())?;
        if !self.extra.is_empty()
            && let Some(at) = self.extra_column()
        {
            self.extra.push(b'}');
            columns[at].text(&self.extra);
        }
        complete(columns, row);
        Ok(())
    }
}

/// Keeps a field in `_extra`.
fn keep(name: &[u8], field: &Field<'_>, options: &Csv, extra: &mut Vec<u8>) {
    extra.push(if extra.is_empty() { b'{' } else { b',' });
    extra.extend_from_slice(name);
    if is_null(field, options) {
        extra.extend_from_slice(b"null");
    } else {
        quoted(field.text, extra);
    }
}

/// The name of a field beyond the header: by its place, and one that the header does not have.
fn name_of(place: usize, names: &[String]) -> String {
    let mut name = format!("column_{}", place + 1);
    while names.contains(&name) {
        name.push('_');
    }
    name
}

/// Whether a record with so many fields is a row.
pub(super) fn is_count_right(found: usize, expected: usize, options: &Csv) -> bool {
    match found.cmp(&expected) {
        std::cmp::Ordering::Equal => true,
        std::cmp::Ordering::Less => options.missing_fields == MissingFields::Null,
        std::cmp::Ordering::Greater => options.extra_fields != ExtraFields::Reject,
    }
}

fn count_rest(fields: &mut Fields<'_>, found: &mut usize, scratch: &mut Vec<u8>) -> Result<(), Bad> {
    *found += 1;
    while fields.next(scratch).map_err(|what| Bad::Other("csv", what.to_owned()))?.is_some() {
        *found += 1;
    }
    Ok(())
}

impl CsvDecoder {
    #[inline]
    fn check_count(&self, found: usize, expected: usize) -> Result<(), Bad> {
        if is_count_right(found, expected, &self.options) {
            return Ok(());
        }
        let many = |n: usize| if n == 1 { "1 field".to_owned() } else { format!("{n} fields") };
        Err(Bad::Other("csv", format!("the record has {}, {expected} are expected", many(found))))
    }
}

/// Whether a field stands for no value. One in quotes is always a value.
fn is_null(field: &Field<'_>, options: &Csv) -> bool {
    !field.quoted
        && if options.nulls.is_empty() {
            field.text.is_empty()
        } else {
            options.nulls.iter().any(|null| null.as_bytes() == field.text)
        }
}

/// Appends a field to its column; false where its text is no value of the column's type.
#[inline]
fn append(column: &mut Column, field: &Field<'_>, options: &Csv, numbers: &Numbers, digits: &mut Vec<u8>) -> bool {
    if is_null(field, options) {
        column.null();
        return true;
    }
    if column.text(field.text) {
        return true;
    }
    match &column.data {
        // Nothing is no number: files that quote everything write nulls so.
        data if field.text.is_empty() && !matches!(data, Data::Binary(_)) => {
            column.null();
            true
        }
        Data::List { .. } | Data::Struct { .. } => {
            let mut cursor = Cursor::new(field.text);
            cursor.space();
            value(&mut cursor, column).is_ok() && cursor.end().is_ok()
        }
        Data::Int32(_) | Data::Int64(_) | Data::Float64(_) | Data::Decimal(..) => {
            numbers.plain(field.text, digits).is_some_and(|number| column.parse(number))
        }
        _ => column.parse(field.text),
    }
}

impl Decoder for CsvDecoder {
    fn decode(&mut self, slice: &Slice) -> Decoded {
        let transcoded = Transcoded::of(slice, &self.options.encoding);
        let head = Head::parse(slice.header.as_deref(), &self.options);
        let header = head.names(&self.options);
        let has_header = header.is_some();
        let wanted = || self.known.fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>();
        let mut refusal = None;
        if let Some(names) = &header {
            if !self.known.fields().is_empty() && !names.iter().any(|name| self.known.field_with_name(name).is_ok()) {
                // Without the header no letter would hold the file's first line.
                let text = head.text.as_deref().unwrap_or_default();
                refusal = Some(no_column(text, &wanted(), &head.delimiter));
            } else {
                lacks::warn(slice, &self.known, names);
            }
        }
        let names = header.unwrap_or_else(wanted);
        let targets = self.targets(&names);
        let (quote, escape) = (self.options.quote, self.options.escape);
        let dialect = Dialect { delimiter: &head.delimiter, quote, escape };
        let around = Around { dialect, targets: &targets, names: &names };
        let schema = self.schema.clone();
        rows::decode(
            &schema,
            slice,
            &transcoded.bytes,
            &transcoded.records,
            transcoded.encoding.name(),
            |text, columns, row| match &refusal {
                Some(why) => Err(Bad::Other("csv", why.clone())),
                None if has_header => self.record(text.as_bytes(), &around, columns, row),
                None => self.record(without_mark(text.as_bytes()), &around, columns, row),
            },
        )
    }
}
