//! Columns in the making. A value is appended as it is read; a record that fails is cut off again, so no half row stays.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array,
        ListArray, NullBufferBuilder, StringArray, StructArray, TimestampMicrosecondArray, new_null_array,
    },
    buffer::{BooleanBuffer, Buffer, OffsetBuffer, ScalarBuffer},
    datatypes::{DataType, FieldRef, Fields, TimeUnit},
};

use super::{json::keys::Keys, number, time};

/// Offsets are 32 bits wide: a slice whose text is longer is refused as a whole.
pub(super) const MAX_TEXT_BYTES: usize = i32::MAX as usize;

/// One column.
pub(super) struct Column {
    valid: NullBufferBuilder,
    pub(super) data: Data,
}

/// Its values. At a null there is a default value, so that lengths agree.
pub(super) enum Data {
    Text(Bytes),
    Binary(Bytes),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float64(Vec<f64>),
    Boolean(Vec<bool>),
    Timestamp(Vec<i64>, Option<Arc<str>>),
    Date(Vec<i32>),
    Decimal(Vec<i128>, u8, i8),
    List {
        offsets: Vec<i32>,
        item: Box<Column>,
        field: FieldRef,
    },
    Struct {
        keys: Keys,
        columns: Vec<Column>,
        fields: Fields,
    },
    /// A type that no job can name: only nulls fit.
    Other(DataType),
}

/// Values of varying length, one after another.
pub(super) struct Bytes {
    pub(super) ends: Vec<i32>,
    pub(super) bytes: Vec<u8>,
}

impl Bytes {
    fn new(rows: usize) -> Self {
        let mut ends = Vec::with_capacity(rows + 1);
        ends.push(0);
        Self { ends, bytes: Vec::new() }
    }
    /// Ends the value whose bytes have been appended.
    #[inline]
    pub(super) fn end(&mut self) {
        self.ends.push(self.bytes.len() as i32);
    }
    fn truncate(&mut self, rows: usize) {
        self.ends.truncate(rows + 1);
        self.bytes.truncate(self.ends.last().map_or(0, |end| *end as usize));
    }
}

impl Column {
    /// An empty column with room for `rows`.
    pub(super) fn new(kind: &DataType, rows: usize) -> Self {
        let data = match kind {
            DataType::Utf8 => Data::Text(Bytes::new(rows)),
            DataType::Binary => Data::Binary(Bytes::new(rows)),
            DataType::Int32 => Data::Int32(Vec::with_capacity(rows)),
            DataType::Int64 => Data::Int64(Vec::with_capacity(rows)),
            DataType::Float64 => Data::Float64(Vec::with_capacity(rows)),
            DataType::Boolean => Data::Boolean(Vec::with_capacity(rows)),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => Data::Timestamp(Vec::with_capacity(rows), zone.clone()),
            DataType::Date32 => Data::Date(Vec::with_capacity(rows)),
            DataType::Decimal128(precision, scale) => Data::Decimal(Vec::with_capacity(rows), *precision, *scale),
            DataType::List(field) => Data::List {
                offsets: vec![0],
                item: Box::new(Self::new(field.data_type(), rows)),
                field: field.clone(),
            },
            DataType::Struct(fields) => Data::Struct {
                keys: Keys::of_columns(fields),
                columns: fields.iter().map(|field| Self::new(field.data_type(), rows)).collect(),
                fields: fields.clone(),
            },
            other => Data::Other(other.clone()),
        };
        Self { valid: NullBufferBuilder::new(rows), data }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.valid.len()
    }

    /// Says that the value which was appended to `data` is one.
    #[inline]
    pub(super) fn some(&mut self) {
        self.valid.append_non_null();
    }

    pub(super) fn null(&mut self) {
        self.valid.append_null();
        match &mut self.data {
            Data::Text(text) | Data::Binary(text) => text.end(),
            Data::Int32(values) | Data::Date(values) => values.push(0),
            Data::Int64(values) | Data::Timestamp(values, _) => values.push(0),
            Data::Float64(values) => values.push(0.0),
            Data::Boolean(values) => values.push(false),
            Data::Decimal(values, ..) => values.push(0),
            Data::List { offsets, item, .. } => offsets.push(item.len() as i32),
            Data::Struct { columns, .. } => columns.iter_mut().for_each(Self::null),
            Data::Other(_) => {}
        }
    }

    /// Cuts the column to its first `rows`, whatever was appended after them, half or whole.
    pub(super) fn truncate(&mut self, rows: usize) {
        if self.valid.len() > rows {
            self.valid.truncate(rows);
        }
        match &mut self.data {
            Data::Text(text) | Data::Binary(text) => text.truncate(rows),
            Data::Int32(values) | Data::Date(values) => values.truncate(rows),
            Data::Int64(values) | Data::Timestamp(values, _) => values.truncate(rows),
            Data::Float64(values) => values.truncate(rows),
            Data::Boolean(values) => values.truncate(rows),
            Data::Decimal(values, ..) => values.truncate(rows),
            Data::List { offsets, item, .. } => {
                offsets.truncate(rows + 1);
                item.truncate(offsets.last().map_or(0, |end| *end as usize));
            }
            Data::Struct { columns, .. } => columns.iter_mut().for_each(|column| column.truncate(rows)),
            Data::Other(_) => {}
        }
    }

    /// Whether it holds more than its offsets can tell.
    pub(super) fn is_too_long(&self) -> bool {
        match &self.data {
            Data::Text(values) | Data::Binary(values) => values.bytes.len() > MAX_TEXT_BYTES,
            Data::List { item, .. } => item.len() > MAX_TEXT_BYTES || item.is_too_long(),
            Data::Struct { columns, .. } => columns.iter().any(Self::is_too_long),
            _ => false,
        }
    }

    /// Appends a text as it is.
    #[inline]
    pub(super) fn text(&mut self, text: &[u8]) -> bool {
        let Data::Text(values) = &mut self.data else { return false };
        values.bytes.extend_from_slice(text);
        values.end();
        self.valid.append_non_null();
        true
    }

    /// Appends the value that a text stands for; false, and nothing is appended, where it stands for none of the type.
    pub(super) fn parse(&mut self, text: &[u8]) -> bool {
        let trimmed = text.trim_ascii();
        let appended = match &mut self.data {
            Data::Text(_) => return self.text(text),
            Data::Binary(values) => {
                let done = super::names::decode_base64(trimmed, &mut values.bytes);
                if done {
                    values.end();
                } else {
                    values.bytes.truncate(values.ends.last().map_or(0, |end| *end as usize));
                }
                Some(()).filter(|()| done)
            }
            Data::Int32(values) => {
                integer(trimmed).and_then(|value| i32::try_from(value).ok()).map(|value| values.push(value))
            }
            Data::Int64(values) => integer(trimmed).map(|value| values.push(value)),
            Data::Float64(values) => float(trimmed).map(|value| values.push(value)),
            Data::Boolean(values) => boolean(trimmed).map(|value| values.push(value)),
            Data::Timestamp(values, _) => time::parse_timestamp(trimmed).map(|value| values.push(value)),
            Data::Date(values) => time::parse_date(trimmed).map(|value| values.push(value)),
            Data::Decimal(values, precision, scale) => {
                decimal(trimmed, *precision, *scale).map(|value| values.push(value))
            }
            Data::List { .. } | Data::Struct { .. } | Data::Other(_) => None,
        };
        if appended.is_some() {
            self.valid.append_non_null();
        }
        appended.is_some()
    }

    /// Appends a number that was written as one (not in quotes): for timestamps it is milliseconds since the epoch.
    #[inline]
    pub(super) fn number(&mut self, text: &[u8]) -> bool {
        if let Data::Timestamp(values, _) = &mut self.data {
            let Some(micros) = number::exact(text, 3).and_then(|micros| i64::try_from(micros).ok()) else {
                return false;
            };
            values.push(micros);
            self.valid.append_non_null();
            return true;
        }
        !matches!(self.data, Data::Boolean(_) | Data::Date(_) | Data::Binary(_)) && self.parse(text)
    }

    pub(super) fn boolean(&mut self, value: bool) -> bool {
        let Data::Boolean(values) = &mut self.data else { return false };
        values.push(value);
        self.valid.append_non_null();
        true
    }

    /// What a value of the type looks like, as the end of "is not ...".
    pub(super) fn expected(&self) -> String {
        match &self.data {
            Data::Text(_) => "a text".into(),
            Data::Binary(_) => "base64".into(),
            Data::Int32(_) => "an int32".into(),
            Data::Int64(_) => "an int64".into(),
            Data::Float64(_) => "a float64".into(),
            Data::Boolean(_) => "true or false".into(),
            Data::Timestamp(..) => "a timestamp (RFC 3339, such as 2015-05-17T10:05:03Z)".into(),
            Data::Date(_) => "a date (such as 2015-05-17)".into(),
            Data::Decimal(_, precision, scale) => format!("a decimal({precision},{scale}) without rounding"),
            Data::List { .. } => "a list".into(),
            Data::Struct { .. } => "an object".into(),
            Data::Other(kind) => format!("of a type that records can have ({kind})"),
        }
    }

    /// The column's array.
    pub(super) fn finish(mut self) -> Result<ArrayRef, arrow::error::ArrowError> {
        let rows = self.len();
        let nulls = self.valid.finish();
        Ok(match self.data {
            Data::Text(text) => {
                Arc::new(StringArray::try_new(offsets(text.ends), Buffer::from_vec(text.bytes), nulls)?)
            }
            Data::Binary(text) => {
                Arc::new(BinaryArray::try_new(offsets(text.ends), Buffer::from_vec(text.bytes), nulls)?)
            }
            Data::Int32(values) => Arc::new(Int32Array::try_new(ScalarBuffer::from(values), nulls)?),
            Data::Int64(values) => Arc::new(Int64Array::try_new(ScalarBuffer::from(values), nulls)?),
            Data::Float64(values) => Arc::new(Float64Array::try_new(ScalarBuffer::from(values), nulls)?),
            Data::Boolean(values) => Arc::new(BooleanArray::new(BooleanBuffer::from(values), nulls)),
            Data::Timestamp(values, zone) => {
                Arc::new(TimestampMicrosecondArray::try_new(ScalarBuffer::from(values), nulls)?.with_timezone_opt(zone))
            }
            Data::Date(values) => Arc::new(Date32Array::try_new(ScalarBuffer::from(values), nulls)?),
            Data::Decimal(values, precision, scale) => Arc::new(
                Decimal128Array::try_new(ScalarBuffer::from(values), nulls)?
                    .with_precision_and_scale(precision, scale)?,
            ),
            Data::List { offsets: ends, item, field } => {
                Arc::new(ListArray::try_new(field, self::offsets(ends), item.finish()?, nulls)?)
            }
            Data::Struct { columns, fields, .. } => {
                let arrays = columns.into_iter().map(Self::finish).collect::<Result<_, _>>()?;
                Arc::new(StructArray::try_new_with_length(fields, arrays, nulls, rows)?)
            }
            Data::Other(kind) => new_null_array(&kind, rows),
        })
    }
}

/// Null in each column that has no value of the row `row` yet.
pub(super) fn complete(columns: &mut [Column], row: usize) {
    for column in columns {
        if column.len() == row {
            column.null();
        }
    }
}

/// Offsets that only ever grew.
fn offsets(ends: Vec<i32>) -> OffsetBuffer<i32> {
    OffsetBuffer::new(ScalarBuffer::from(ends))
}

/// An infinity must have been written as one, not be a number beyond the type.
#[inline]
pub(super) fn float(text: &[u8]) -> Option<f64> {
    let fits = |value: &f64| !value.is_infinite() || !text.iter().any(u8::is_ascii_digit);
    lexical_core::parse(text).ok().filter(fits)
}

#[inline]
pub(super) fn integer(text: &[u8]) -> Option<i64> {
    // A whole number may be written as 1.0 or 1e3.
    lexical_core::parse(text).ok().or_else(|| number::exact(text, 0).and_then(|value| i64::try_from(value).ok()))
}

pub(super) fn boolean(text: &[u8]) -> Option<bool> {
    if text.eq_ignore_ascii_case(b"true") {
        Some(true)
    } else if text.eq_ignore_ascii_case(b"false") {
        Some(false)
    } else {
        None
    }
}

fn decimal(text: &[u8], precision: u8, scale: i8) -> Option<i128> {
    let value = number::exact(text, i64::from(scale))?;
    let limit = number::power(i64::from(precision))?;
    (value.unsigned_abs() < limit.unsigned_abs()).then_some(value)
}
