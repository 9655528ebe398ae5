//! CSV records into columns.

use arrow::datatypes::SchemaRef;
use tidemill_config::model::Csv;

use super::{
    Transcoded, column_names,
    fields::{Field, Fields},
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
    scratch: Vec<u8>,
    extra: Vec<u8>,
}

impl CsvDecoder {
    pub(super) fn new(schema: &SchemaRef, known: &SchemaRef, options: &Csv) -> Self {
        let (schema, known, options) = (schema.clone(), known.clone(), options.clone());
        Self { schema, known, options, scratch: Vec::new(), extra: Vec::new() }
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

    fn record(&mut self, text: &str, targets: &[Target], columns: &mut [Column], row: usize) -> Result<(), Bad> {
        let mut fields = Fields::new(text.as_bytes(), &self.options);
        let mut found = 0;
        self.extra.clear();
        while let Some(field) = fields.next(&mut self.scratch).map_err(|what| Bad::Other("csv", what.to_owned()))? {
            match targets.get(found) {
                Some(Target::Column(at)) => {
                    if let Some(column) = columns.get_mut(*at)
                        && !append(column, &field, &self.options)
                    {
                        let value = rows::shown(field.text);
                        let column_name = self.schema.field(*at).name().clone();
                        // The count of fields says more than a value that has slipped into another column.
                        count_rest(&mut fields, &mut found, &mut Vec::new())?;
                        same_count(found, targets.len())?;
                        return Err(Bad::Type {
                            column: column_name,
                            value: format!("{value:?}"),
                            expected: column.expected(),
                        });
                    }
                }
                Some(Target::Extra(name)) => {
                    self.extra.push(if self.extra.is_empty() { b'{' } else { b',' });
                    self.extra.extend_from_slice(name);
                    if is_null(&field, &self.options) {
                        self.extra.extend_from_slice(b"null");
                    } else {
                        quoted(field.text, &mut self.extra);
                    }
                }
                Some(Target::Skip) | None => {}
            }
            found += 1;
        }
        same_count(found, targets.len())?;
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

fn count_rest(fields: &mut Fields<'_>, found: &mut usize, scratch: &mut Vec<u8>) -> Result<(), Bad> {
    *found += 1;
    while fields.next(scratch).map_err(|what| Bad::Other("csv", what.to_owned()))?.is_some() {
        *found += 1;
    }
    Ok(())
}

fn same_count(found: usize, expected: usize) -> Result<(), Bad> {
    if found == expected {
        return Ok(());
    }
    let many = |n: usize| if n == 1 { "1 field".to_owned() } else { format!("{n} fields") };
    Err(Bad::Other("csv", format!("the record has {}, {expected} are expected", many(found))))
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
fn append(column: &mut Column, field: &Field<'_>, options: &Csv) -> bool {
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
        _ => column.parse(field.text),
    }
}

impl Decoder for CsvDecoder {
    fn decode(&mut self, slice: &Slice) -> Decoded {
        let transcoded = Transcoded::of(slice, &self.options.encoding);
        let names = match &transcoded.header {
            Some(header) => column_names(header, &self.options),
            None => self.known.fields().iter().map(|field| field.name().clone()).collect(),
        };
        let targets = self.targets(&names);
        let schema = self.schema.clone();
        rows::decode(
            &schema,
            slice,
            &transcoded.bytes,
            &transcoded.records,
            transcoded.encoding,
            |text, columns, row| self.record(text, &targets, columns, row),
        )
    }
}
