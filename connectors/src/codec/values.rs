//! Values out of arrays as text: what the JSON and CSV encoders share. A column is bound once per batch; per value there
//! is one match and no allocation.

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, BooleanArray, LargeStringArray, StringArray, StringViewArray,
        UInt32Array,
        types::{Date32Type, Date64Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, UInt64Type},
    },
    buffer::{NullBuffer, OffsetBuffer, ScalarBuffer},
    compute::{can_cast_types, cast, take},
    datatypes::DataType,
    error::ArrowError,
};

use super::{
    json::cursor::special,
    names::base64,
    time::{Stamps, ticks, write_date},
};

const DAY_MILLIS: i64 = 86_400_000;

/// A column of one batch.
pub(super) struct Values {
    nulls: Option<NullBuffer>,
    data: Data,
}

enum Data {
    Null,
    Boolean(BooleanArray),
    Int32(ScalarBuffer<i32>),
    Int64(ScalarBuffer<i64>),
    UInt64(ScalarBuffer<u64>),
    Float32(ScalarBuffer<f32>),
    Float64(ScalarBuffer<f64>),
    /// With whether any text of the batch needs escapes in JSON.
    Text(StringArray, bool),
    LargeText(LargeStringArray),
    TextView(StringViewArray),
    /// Numbers that arrow has written.
    Digits(StringArray),
    Binary(BinaryArray),
    Stamp(ScalarBuffer<i64>, i64, Stamps),
    Days(ScalarBuffer<i32>),
    DayMillis(ScalarBuffer<i64>),
    Decimal(ScalarBuffer<i128>, i8),
    List(OffsetBuffer<i32>, Box<Values>),
    Struct(Vec<(Vec<u8>, Values)>),
}

/// The type that a column is brought to before its values are written; `None` where it is one of those written directly.
fn written_as(kind: &DataType) -> Option<DataType> {
    use DataType as D;
    Some(match kind {
        D::Int8 | D::Int16 | D::UInt8 | D::UInt16 | D::UInt32 => D::Int64,
        D::Float16 => D::Float32,
        D::LargeBinary | D::BinaryView | D::FixedSizeBinary(_) => D::Binary,
        D::LargeList(item) | D::FixedSizeList(item, _) | D::ListView(item) | D::LargeListView(item) => {
            D::List(item.clone())
        }
        D::Dictionary(_, value) => value.as_ref().clone(),
        D::Null | D::Boolean | D::Int32 | D::Int64 | D::UInt64 | D::Float32 | D::Float64 => return None,
        D::Utf8 | D::LargeUtf8 | D::Utf8View | D::Binary | D::Timestamp(..) | D::Date32 | D::Date64 => return None,
        D::Decimal128(..) | D::List(_) | D::Struct(_) => return None,
        _ => D::Utf8,
    })
}

/// Whether values of the type can be written.
pub(super) fn can_write(kind: &DataType) -> bool {
    match (written_as(kind), kind) {
        (Some(other), _) => can_cast_types(kind, &other) && can_write(&other),
        (None, DataType::List(item)) => can_write(item.data_type()),
        (None, DataType::Struct(fields)) => fields.iter().all(|field| can_write(field.data_type())),
        _ => true,
    }
}

/// `"name":`, with what comes before it.
pub(super) fn key(before: &[u8], name: &str) -> Vec<u8> {
    let mut key = before.to_vec();
    quoted(name.as_bytes(), &mut key);
    key.push(b':');
    key
}

impl Values {
    /// Binds a column.
    pub(super) fn new(array: &ArrayRef) -> Result<Self, ArrowError> {
        if let Some(kind) = written_as(array.data_type()) {
            let is_digits = array.data_type().is_decimal();
            let mut values = Self::new(&cast(array, &kind)?)?;
            if let Data::Text(texts, _) = &values.data
                && is_digits
            {
                values.data = Data::Digits(texts.clone());
            }
            return Ok(values);
        }
        let data = match array.data_type() {
            DataType::Boolean => Data::Boolean(array.as_boolean().clone()),
            DataType::Int32 => Data::Int32(array.as_primitive::<Int32Type>().values().clone()),
            DataType::Int64 => Data::Int64(array.as_primitive::<Int64Type>().values().clone()),
            DataType::UInt64 => Data::UInt64(array.as_primitive::<UInt64Type>().values().clone()),
            DataType::Float32 => Data::Float32(array.as_primitive::<Float32Type>().values().clone()),
            DataType::Float64 => Data::Float64(array.as_primitive::<Float64Type>().values().clone()),
            DataType::Utf8 => {
                let texts = array.as_string::<i32>();
                Data::Text(texts.clone(), needs_escapes(texts))
            }
            DataType::LargeUtf8 => Data::LargeText(array.as_string::<i64>().clone()),
            DataType::Utf8View => Data::TextView(array.as_string_view().clone()),
            DataType::Binary => Data::Binary(array.as_binary::<i32>().clone()),
            DataType::Timestamp(unit, _) => {
                let (values, units) = ticks(array, *unit);
                Data::Stamp(values, units, Stamps::default())
            }
            DataType::Date32 => Data::Days(array.as_primitive::<Date32Type>().values().clone()),
            DataType::Date64 => Data::DayMillis(array.as_primitive::<Date64Type>().values().clone()),
            DataType::Decimal128(_, scale) => {
                Data::Decimal(array.as_primitive::<Decimal128Type>().values().clone(), *scale)
            }
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                Data::List(list.offsets().clone(), Box::new(Self::new(list.values())?))
            }
            DataType::Struct(fields) => {
                let members = fields.iter().zip(array.as_struct().columns()).enumerate();
                let before = |at| if at == 0 { &b"{"[..] } else { b"," };
                let members =
                    members.map(|(at, (field, column))| Ok((key(before(at), field.name()), Self::new(column)?)));
                Data::Struct(members.collect::<Result<_, ArrowError>>()?)
            }
            DataType::Null => Data::Null,
            other => return Err(ArrowError::CastError(format!("values of type {other} cannot be written as text"))),
        };
        Ok(Self { nulls: array.nulls().cloned(), data })
    }

    #[inline]
    pub(super) fn is_null(&self, row: usize) -> bool {
        matches!(self.data, Data::Null) || self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    /// The text of a string column's value.
    #[inline]
    pub(super) fn text(&self, row: usize) -> Option<&str> {
        match &self.data {
            Data::Text(texts, _) => Some(texts.value(row)),
            Data::LargeText(texts) => Some(texts.value(row)),
            Data::TextView(texts) => Some(texts.value(row)),
            _ => None,
        }
    }

    /// Appends a value as JSON.
    #[inline]
    pub(super) fn json(&mut self, row: usize, out: &mut Vec<u8>) {
        if self.is_null(row) {
            out.extend_from_slice(b"null");
            return;
        }
        match &mut self.data {
            Data::Text(texts, escapes) => {
                let text = texts.value(row).as_bytes();
                if *escapes {
                    quoted(text, out);
                } else {
                    out.push(b'"');
                    out.extend_from_slice(text);
                    out.push(b'"');
                }
            }
            Data::LargeText(texts) => quoted(texts.value(row).as_bytes(), out),
            Data::TextView(texts) => quoted(texts.value(row).as_bytes(), out),
            Data::Binary(_) | Data::Stamp(..) | Data::Days(_) | Data::DayMillis(_) => {
                out.push(b'"');
                self.plain(row, out);
                out.push(b'"');
            }
            Data::Float64(values) if !values[row].is_finite() => out.extend_from_slice(b"null"),
            Data::Float32(values) if !values[row].is_finite() => out.extend_from_slice(b"null"),
            Data::List(offsets, item) => {
                out.push(b'[');
                let (start, end) = (offsets[row] as usize, offsets[row + 1] as usize);
                for at in start..end {
                    if at > start {
                        out.push(b',');
                    }
                    item.json(at, out);
                }
                out.push(b']');
            }
            Data::Struct(members) => {
                for (key, values) in members.iter_mut() {
                    out.extend_from_slice(key);
                    values.json(row, out);
                }
                out.extend_from_slice(if members.is_empty() { b"{}" } else { b"}" });
            }
            _ => self.plain(row, out),
        }
    }

    /// Appends a value that is not null without quotes; lists and structs as JSON.
    #[inline]
    pub(super) fn plain(&mut self, row: usize, out: &mut Vec<u8>) {
        match &mut self.data {
            Data::Null => {}
            Data::Boolean(values) => out.extend_from_slice(if values.value(row) { b"true" } else { b"false" }),
            Data::Int32(values) => number(values[row], out),
            Data::Int64(values) => number(values[row], out),
            Data::UInt64(values) => number(values[row], out),
            Data::Float32(values) => number(values[row], out),
            Data::Float64(values) => number(values[row], out),
            Data::Text(texts, _) | Data::Digits(texts) => out.extend_from_slice(texts.value(row).as_bytes()),
            Data::LargeText(texts) => out.extend_from_slice(texts.value(row).as_bytes()),
            Data::TextView(texts) => out.extend_from_slice(texts.value(row).as_bytes()),
            Data::Binary(values) => out.extend_from_slice(base64(values.value(row)).as_bytes()),
            Data::Stamp(values, units, stamps) => stamps.write(values[row], *units, out),
            Data::Days(values) => write_date(i64::from(values[row]), out),
            Data::DayMillis(values) => write_date(values[row].div_euclid(DAY_MILLIS), out),
            Data::Decimal(values, scale) => decimal(values[row], *scale, out),
            Data::List(..) | Data::Struct(_) => self.json(row, out),
        }
    }
}

/// A value as JSON, as the json codec writes it; `None` for a type that it cannot write.
pub(crate) fn json_of(array: &dyn Array, row: usize) -> Option<String> {
    let mut out = Vec::new();
    // Taken out of its column, so that what lies around it is not looked at for each value.
    let one = take(array, &UInt32Array::from(vec![u32::try_from(row).ok()?]), None).ok()?;
    Values::new(&one).ok()?.json(0, &mut out);
    String::from_utf8(out).ok()
}

fn needs_escapes(texts: &StringArray) -> bool {
    let ends = texts.value_offsets();
    let (Some(start), Some(end)) = (ends.first(), ends.last()) else { return false };
    let bytes = &texts.value_data()[*start as usize..*end as usize];
    special(bytes, 0) < bytes.len()
}

#[inline]
pub(super) fn number<N: lexical_core::ToLexical>(value: N, out: &mut Vec<u8>) {
    let mut digits = [0; lexical_core::BUFFER_SIZE];
    out.extend_from_slice(lexical_core::write(value, &mut digits));
}

pub(super) fn decimal(value: i128, scale: i8, out: &mut Vec<u8>) {
    let digits = value.unsigned_abs().to_string();
    if value < 0 {
        out.push(b'-');
    }
    let Ok(scale) = usize::try_from(scale) else {
        out.extend_from_slice(digits.as_bytes());
        if value != 0 {
            out.resize(out.len() + usize::from(scale.unsigned_abs()), b'0');
        }
        return;
    };
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    out.extend_from_slice(whole.as_bytes());
    if scale > 0 {
        out.push(b'.');
        out.extend_from_slice(fraction.as_bytes());
    }
}

/// Appends a JSON string.
#[inline]
pub(super) fn quoted(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let mut from = 0;
    loop {
        let at = special(text, from);
        out.extend_from_slice(&text[from..at]);
        let Some(byte) = text.get(at) else { break };
        escape(*byte, out);
        from = at + 1;
    }
    out.push(b'"');
}

fn escape(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let letter = match byte {
        b'"' | b'\\' => byte,
        8 => b'b',
        12 => b'f',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        _ => {
            out.extend_from_slice(b"\\u00");
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 15)]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', letter]);
}
