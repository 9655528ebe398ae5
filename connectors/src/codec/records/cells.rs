//! Values out of arrays with their types: what the encoders of binary records share.

use std::ops::Range;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, BooleanArray, StringArray,
        types::{Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, UInt64Type},
    },
    buffer::{NullBuffer, OffsetBuffer, ScalarBuffer},
    compute::cast,
    datatypes::DataType,
    error::ArrowError,
};

use crate::codec::{rows::Bad, scalar::Scalar, time::ticks};

const MICROS: i64 = 1_000_000;

/// A column of one batch.
pub(in crate::codec) struct Cells {
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
    Text(StringArray),
    Binary(BinaryArray),
    /// With how many units a second has.
    Stamp(ScalarBuffer<i64>, i64),
    Days(ScalarBuffer<i32>),
    Decimal(ScalarBuffer<i128>, i8),
    List(OffsetBuffer<i32>, Box<Cells>),
    Struct(Vec<Cells>),
}

/// A value.
pub(in crate::codec) enum Cell<'a> {
    Null,
    Single(Scalar<'a>),
    /// Rows of the items' cells.
    List(Range<usize>, &'a Cells),
    /// The members' cells, in which the row is the same.
    Struct(&'a [Cells]),
}

/// The type that values of a column are taken as. Those that no binary format has are texts.
pub(in crate::codec) fn kind_of(kind: &DataType) -> DataType {
    use DataType as D;
    match kind {
        D::Int8 | D::Int16 | D::UInt8 | D::UInt16 => D::Int32,
        D::UInt32 => D::Int64,
        D::Float16 => D::Float32,
        D::LargeBinary | D::BinaryView | D::FixedSizeBinary(_) => D::Binary,
        D::LargeList(item) | D::FixedSizeList(item, _) | D::ListView(item) | D::LargeListView(item) => {
            D::List(item.clone())
        }
        D::Dictionary(_, value) => kind_of(value),
        D::Date64 => D::Date32,
        D::Decimal32(precision, scale) | D::Decimal64(precision, scale) => D::Decimal128(*precision, *scale),
        D::Null | D::Boolean | D::Int32 | D::Int64 | D::UInt64 | D::Float32 | D::Float64 => kind.clone(),
        D::Binary | D::Timestamp(..) | D::Date32 | D::Decimal128(..) | D::List(_) | D::Struct(_) => kind.clone(),
        _ => D::Utf8,
    }
}

impl Cells {
    /// Binds a column.
    pub(in crate::codec) fn new(array: &ArrayRef) -> Result<Self, ArrowError> {
        let kind = kind_of(array.data_type());
        if kind != *array.data_type() {
            return Self::new(&cast(array, &kind)?);
        }
        let data = match array.data_type() {
            DataType::Boolean => Data::Boolean(array.as_boolean().clone()),
            DataType::Int32 => Data::Int32(array.as_primitive::<Int32Type>().values().clone()),
            DataType::Int64 => Data::Int64(array.as_primitive::<Int64Type>().values().clone()),
            DataType::UInt64 => Data::UInt64(array.as_primitive::<UInt64Type>().values().clone()),
            DataType::Float32 => Data::Float32(array.as_primitive::<Float32Type>().values().clone()),
            DataType::Float64 => Data::Float64(array.as_primitive::<Float64Type>().values().clone()),
            DataType::Utf8 => Data::Text(array.as_string::<i32>().clone()),
            DataType::Binary => Data::Binary(array.as_binary::<i32>().clone()),
            DataType::Timestamp(unit, _) => {
                let (values, units) = ticks(array, *unit);
                Data::Stamp(values, units)
            }
            DataType::Date32 => Data::Days(array.as_primitive::<Date32Type>().values().clone()),
            DataType::Decimal128(_, scale) => {
                Data::Decimal(array.as_primitive::<Decimal128Type>().values().clone(), *scale)
            }
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                Data::List(list.offsets().clone(), Box::new(Self::new(list.values())?))
            }
            DataType::Struct(_) => {
                Data::Struct(array.as_struct().columns().iter().map(Self::new).collect::<Result<_, _>>()?)
            }
            DataType::Null => Data::Null,
            other => return Err(ArrowError::CastError(format!("values of type {other} cannot be written"))),
        };
        Ok(Self { nulls: array.nulls().cloned(), data })
    }

    /// The value of a row.
    #[inline]
    pub(in crate::codec) fn get(&self, row: usize) -> Result<Cell<'_>, Bad> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return Ok(Cell::Null);
        }
        Ok(Cell::Single(match &self.data {
            Data::Null => return Ok(Cell::Null),
            Data::Boolean(values) => Scalar::Boolean(values.value(row)),
            Data::Int32(values) => Scalar::Integer(i64::from(values[row])),
            Data::Int64(values) => Scalar::Integer(values[row]),
            Data::UInt64(values) => match i64::try_from(values[row]) {
                Ok(value) => Scalar::Integer(value),
                Err(_) => Scalar::Decimal(i128::from(values[row]), 0),
            },
            Data::Float32(values) => Scalar::Single(values[row]),
            Data::Float64(values) => Scalar::Double(values[row]),
            Data::Text(texts) => Scalar::Text(texts.value(row)),
            Data::Binary(values) => Scalar::Binary(values.value(row)),
            Data::Stamp(values, units) => Scalar::Stamp(micros(values[row], *units)?),
            Data::Days(values) => Scalar::Date(values[row]),
            Data::Decimal(values, scale) => Scalar::Decimal(values[row], *scale),
            Data::List(offsets, items) => {
                return Ok(Cell::List(offsets[row] as usize..offsets[row + 1] as usize, items));
            }
            Data::Struct(members) => return Ok(Cell::Struct(members)),
        }))
    }
}

/// Microseconds since the epoch; what is smaller is cut off.
fn micros(value: i64, units: i64) -> Result<i64, Bad> {
    let micros =
        if units > MICROS { Some(value.div_euclid(units / MICROS)) } else { value.checked_mul(MICROS / units) };
    micros.ok_or_else(|| Bad::Other("type", "a timestamp is beyond the year 294247".into()))
}

/// Rounded to the nearest; `None` where that is infinite.
pub(in crate::codec) fn narrowed(value: f64) -> Option<f32> {
    #[allow(clippy::cast_possible_truncation)] // the type has no more digits
    let narrow = value as f32;
    (narrow.is_finite() || !value.is_finite()).then_some(narrow)
}

/// An integer that a floating-point number with so many bits has exactly.
pub(in crate::codec) fn exact(value: i64, bits: u32) -> Option<f64> {
    #[allow(clippy::cast_precision_loss)] // it was just looked at
    (value.unsigned_abs() <= 1 << bits).then_some(value as f64)
}

/// The name of a type with its article.
pub(in crate::codec) fn article(name: &str) -> String {
    let is_vowel = name.starts_with(['a', 'e', 'i', 'o']);
    format!("{} {name}", if is_vowel { "an" } else { "a" })
}

/// A value that does not fit where it should be written.
#[cold]
pub(in crate::codec) fn unfit(cell: &Cell<'_>, expected: String) -> Bad {
    let value = match cell {
        Cell::Null => "null".to_owned(),
        Cell::Single(value) => crate::codec::scalar::shown(value),
        Cell::List(..) => "a list".to_owned(),
        Cell::Struct(_) => "a struct".to_owned(),
    };
    Bad::Type { column: String::new(), value, expected }
}
