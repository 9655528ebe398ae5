//! Arrow arrays as fields of PostgreSQL's binary COPY format.
//!
//! A value goes into a column of another type only where it stays what it is: integers into wider ones, exact numbers into
//! `numeric`, structs, lists and JSON text into `jsonb`, texts and 16 bytes into `uuid`, texts into `time`, `interval` and `inet`
//! ([`spelled`]). Times alone are cut to the digits of their column, as they are to microseconds. [`Rule::of`] decides that once for
//! a column, [`Column`] writes its cells. The format of each type is that of its `_recv` function in the server's sources.

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, BinaryViewArray, BooleanArray, FixedSizeBinaryArray, LargeBinaryArray,
        LargeStringArray, StringArray, StringViewArray,
    },
    buffer::{NullBuffer, OffsetBuffer},
    datatypes::{
        DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
        TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
        UInt8Type, UInt16Type, UInt32Type, UInt64Type,
    },
};

use super::{numeric, spelled};
use crate::sink::cell;

/// What a column of the server takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    /// With the digits after the point that it is limited to.
    Numeric(Option<i32>),
    Text,
    Bytea,
    /// With the digits behind the second that it keeps.
    Timestamp(u8),
    Date,
    /// The same of a time of day.
    Time(u8),
    Interval,
    /// `cidr` has no bits behind its mask.
    Inet {
        cidr: bool,
    },
    Json,
    Jsonb,
    Uuid,
    /// Of elements of this type.
    Array(u32, Box<Kind>),
    /// A type that nothing is written to.
    Other,
}

/// How the values of an Arrow type become those of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    Null,
    Bool,
    Number(Kind),
    Text,
    /// JSON text; with the version byte of `jsonb`.
    JsonText(bool),
    /// Anything, as JSON.
    Json(bool),
    Bytes,
    Uuid,
    Timestamp(u8),
    Date,
    Time(u8),
    Interval,
    Inet {
        cidr: bool,
    },
    List(u32, Box<Rule>),
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Bits of an integer without its sign; those of an unsigned one.
fn bits(kind: &DataType) -> Option<u32> {
    Some(match kind {
        DataType::Int8 => 7,
        DataType::UInt8 => 8,
        DataType::Int16 => 15,
        DataType::UInt16 => 16,
        DataType::Int32 => 31,
        DataType::UInt32 => 32,
        DataType::Int64 => 63,
        DataType::UInt64 => 64,
        _ => return None,
    })
}

impl Rule {
    /// The rule for values of a type in a column; `None` where they would not stay what they are.
    pub(super) fn of(from: &DataType, to: &Kind) -> Option<Self> {
        let holds = |most: u32| bits(from).is_some_and(|bits| bits <= most);
        let number = || Some(Self::Number(to.clone()));
        match (to, from) {
            (Kind::Other, _) => None,
            (_, DataType::Null) => Some(Self::Null),
            (Kind::Bool, DataType::Boolean) => Some(Self::Bool),
            // The job has no narrower integers: a value that does not fit is seen row by row.
            (Kind::Int2, _) if holds(15) || *from == DataType::Int32 => number(),
            (Kind::Int4, _) if holds(31) => number(),
            (Kind::Int8, _) if holds(63) => number(),
            // A double holds every integer of 53 bits, a float one of 24.
            (Kind::Float4, _) if holds(16) || matches!(from, DataType::Float32 | DataType::Float64) => number(),
            (Kind::Float8, _) if holds(32) || matches!(from, DataType::Float32 | DataType::Float64) => number(),
            (Kind::Numeric(_), _) if bits(from).is_some() => number(),
            (Kind::Numeric(limit), DataType::Decimal128(_, scale)) => {
                limit.is_none_or(|limit| limit >= i32::from(*scale)).then(|| Self::Number(to.clone()))
            }
            (Kind::Text, _) if is_text(from) => Some(Self::Text),
            (Kind::Json, _) if is_text(from) => Some(Self::JsonText(false)),
            (Kind::Jsonb, _) if is_text(from) => Some(Self::JsonText(true)),
            (Kind::Json, DataType::Struct(_) | DataType::List(_)) => Some(Self::Json(false)),
            (Kind::Jsonb, DataType::Struct(_) | DataType::List(_)) => Some(Self::Json(true)),
            (Kind::Uuid, _) if is_text(from) => Some(Self::Uuid),
            (Kind::Uuid, DataType::FixedSizeBinary(16)) => Some(Self::Bytes),
            (
                Kind::Bytea,
                DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_),
            ) => Some(Self::Bytes),
            (Kind::Timestamp(digits), DataType::Timestamp(..)) => Some(Self::Timestamp(*digits)),
            (Kind::Time(digits), _) if is_text(from) => Some(Self::Time(*digits)),
            (Kind::Interval, _) if is_text(from) => Some(Self::Interval),
            (Kind::Inet { cidr }, _) if is_text(from) => Some(Self::Inet { cidr: *cidr }),
            (Kind::Date, DataType::Date32) => Some(Self::Date),
            (Kind::Array(oid, kind), DataType::List(item)) => {
                let rule = Self::of(item.data_type(), kind)?;
                // The elements of an array of PostgreSQL are of one shape: lists of lists do not fit.
                Some(Self::List(*oid, Box::new(rule)))
            }
            _ => None,
        }
    }
}

/// Why a value cannot be sent.
pub(super) type Refused = String;

enum Texts<'a> {
    Small(&'a StringArray),
    Large(&'a LargeStringArray),
    View(&'a StringViewArray),
}

impl<'a> Texts<'a> {
    fn of(array: &'a ArrayRef) -> Option<Self> {
        Some(match array.data_type() {
            DataType::Utf8 => Self::Small(array.as_string()),
            DataType::LargeUtf8 => Self::Large(array.as_string()),
            DataType::Utf8View => Self::View(array.as_string_view()),
            _ => return None,
        })
    }
    fn get(&self, row: usize) -> &'a str {
        match self {
            Self::Small(array) => array.value(row),
            Self::Large(array) => array.value(row),
            Self::View(array) => array.value(row),
        }
    }
}

enum Blobs<'a> {
    Small(&'a BinaryArray),
    Large(&'a LargeBinaryArray),
    View(&'a BinaryViewArray),
    Fixed(&'a FixedSizeBinaryArray),
}

enum Integers<'a> {
    I8(&'a [i8]),
    I16(&'a [i16]),
    I32(&'a [i32]),
    I64(&'a [i64]),
    U8(&'a [u8]),
    U16(&'a [u16]),
    U32(&'a [u32]),
}

impl Integers<'_> {
    fn get(&self, row: usize) -> i64 {
        match self {
            Self::I8(values) => values[row].into(),
            Self::I16(values) => values[row].into(),
            Self::I32(values) => values[row].into(),
            Self::I64(values) => values[row],
            Self::U8(values) => values[row].into(),
            Self::U16(values) => values[row].into(),
            Self::U32(values) => values[row].into(),
        }
    }
}

enum Values<'a> {
    Null,
    Bool(&'a BooleanArray),
    Int(Integers<'a>, Kind),
    Unsigned(&'a [u64]),
    Float32(&'a [f32], Kind),
    Float64(&'a [f64], Kind),
    Decimal(&'a [i128], i8),
    Text(Texts<'a>),
    JsonText(Texts<'a>, bool),
    Json(&'a ArrayRef, bool),
    Uuid(Texts<'a>),
    Bytes(Blobs<'a>),
    Timestamp(&'a [i64], TimeUnit, u8),
    Date(&'a [i32]),
    Time(Texts<'a>, u8),
    Interval(Texts<'a>),
    Inet(Texts<'a>, bool),
    List(&'a OffsetBuffer<i32>, u32, Box<Column<'a>>),
}

/// A column of a batch, looked up once instead of once per cell.
pub(super) struct Column<'a> {
    nulls: Option<&'a NullBuffer>,
    values: Values<'a>,
}

fn integers<'a>(array: &'a ArrayRef) -> Option<Integers<'a>> {
    Some(match array.data_type() {
        DataType::Int8 => Integers::I8(array.as_primitive::<Int8Type>().values()),
        DataType::Int16 => Integers::I16(array.as_primitive::<Int16Type>().values()),
        DataType::Int32 => Integers::I32(array.as_primitive::<Int32Type>().values()),
        DataType::Int64 => Integers::I64(array.as_primitive::<Int64Type>().values()),
        DataType::UInt8 => Integers::U8(array.as_primitive::<UInt8Type>().values()),
        DataType::UInt16 => Integers::U16(array.as_primitive::<UInt16Type>().values()),
        DataType::UInt32 => Integers::U32(array.as_primitive::<UInt32Type>().values()),
        _ => return None,
    })
}

fn number<'a>(array: &'a ArrayRef, to: &Kind) -> Option<Values<'a>> {
    Some(match array.data_type() {
        DataType::UInt64 => Values::Unsigned(array.as_primitive::<UInt64Type>().values()),
        DataType::Float32 => Values::Float32(array.as_primitive::<Float32Type>().values(), to.clone()),
        DataType::Float64 => Values::Float64(array.as_primitive::<Float64Type>().values(), to.clone()),
        DataType::Decimal128(_, scale) => Values::Decimal(array.as_primitive::<Decimal128Type>().values(), *scale),
        _ => Values::Int(integers(array)?, to.clone()),
    })
}

fn blobs(array: &ArrayRef) -> Option<Blobs<'_>> {
    Some(match array.data_type() {
        DataType::Binary => Blobs::Small(array.as_binary()),
        DataType::LargeBinary => Blobs::Large(array.as_binary()),
        DataType::BinaryView => Blobs::View(array.as_binary_view()),
        DataType::FixedSizeBinary(_) => Blobs::Fixed(array.as_fixed_size_binary()),
        _ => return None,
    })
}

fn timestamps(array: &ArrayRef, digits: u8) -> Option<Values<'_>> {
    let DataType::Timestamp(unit, _) = array.data_type() else { return None };
    let values: &[i64] = match unit {
        TimeUnit::Second => array.as_primitive::<TimestampSecondType>().values(),
        TimeUnit::Millisecond => array.as_primitive::<TimestampMillisecondType>().values(),
        TimeUnit::Microsecond => array.as_primitive::<TimestampMicrosecondType>().values(),
        TimeUnit::Nanosecond => array.as_primitive::<TimestampNanosecondType>().values(),
    };
    Some(Values::Timestamp(values, *unit, digits))
}

impl<'a> Column<'a> {
    /// The cells of an array by the rule that was made for its type; `None` where it is of another one.
    pub(super) fn new(array: &'a ArrayRef, rule: &Rule) -> Option<Self> {
        let values = match rule {
            Rule::Null => Values::Null,
            Rule::Bool => Values::Bool(array.as_boolean_opt()?),
            Rule::Number(to) => number(array, to)?,
            Rule::Text => Values::Text(Texts::of(array)?),
            Rule::JsonText(binary) => Values::JsonText(Texts::of(array)?, *binary),
            Rule::Json(binary) => Values::Json(array, *binary),
            Rule::Uuid => Values::Uuid(Texts::of(array)?),
            Rule::Bytes => Values::Bytes(blobs(array)?),
            Rule::Timestamp(digits) => timestamps(array, *digits)?,
            Rule::Time(digits) => Values::Time(Texts::of(array)?, *digits),
            Rule::Interval => Values::Interval(Texts::of(array)?),
            Rule::Inet { cidr } => Values::Inet(Texts::of(array)?, *cidr),
            Rule::Date => Values::Date(array.as_primitive_opt::<Date32Type>()?.values()),
            Rule::List(oid, rule) => {
                let lists = array.as_list_opt::<i32>()?;
                Values::List(lists.offsets(), *oid, Box::new(Column::new(lists.values(), rule)?))
            }
        };
        Some(Self { nulls: array.nulls(), values })
    }

    /// Whether a row is null here.
    pub(super) fn is_null(&self, row: usize) -> bool {
        matches!(self.values, Values::Null) || self.nulls.is_some_and(|nulls| nulls.is_null(row))
    }

    /// Whether a flag is set.
    pub(super) fn is_true(&self, row: usize) -> bool {
        matches!(&self.values, Values::Bool(flags) if flags.value(row)) && !self.is_null(row)
    }

    /// Appends a cell: its length and its bytes.
    pub(super) fn write(&self, row: usize, out: &mut Vec<u8>) -> Result<(), Refused> {
        if self.is_null(row) {
            out.extend_from_slice(&(-1_i32).to_be_bytes());
            return Ok(());
        }
        match &self.values {
            Values::Null => {}
            Values::Bool(values) => fixed(out, [u8::from(values.value(row))]),
            Values::Int(values, to) => integer(values.get(row), to, out)?,
            Values::Unsigned(values) => return sized(out, |out| numeric::write(values[row].into(), 0, out)),
            Values::Float32(values, Kind::Float8) => fixed(out, f64::from(values[row]).to_be_bytes()),
            Values::Float32(values, _) => fixed(out, values[row].to_be_bytes()),
            Values::Float64(values, Kind::Float4) => fixed(out, real(values[row])?.to_be_bytes()),
            Values::Float64(values, _) => fixed(out, values[row].to_be_bytes()),
            Values::Decimal(values, scale) => return sized(out, |out| numeric::write(values[row], *scale, out)),
            Values::Text(values) => return sized(out, |out| text(values.get(row), out)),
            Values::JsonText(values, binary) => {
                return sized(out, |out| {
                    out.extend(binary.then_some(JSONB));
                    text(values.get(row), out)
                });
            }
            Values::Json(values, binary) => {
                return sized(out, |out| {
                    out.extend(binary.then_some(JSONB));
                    out.extend_from_slice(cell::nested(*values, row).as_bytes());
                    Ok(())
                });
            }
            Values::Uuid(values) => fixed(out, uuid(values.get(row))?),
            Values::Bytes(values) => {
                let bytes = match values {
                    Blobs::Small(array) => array.value(row),
                    Blobs::Large(array) => array.value(row),
                    Blobs::View(array) => array.value(row),
                    Blobs::Fixed(array) => array.value(row),
                };
                return sized(out, |out| {
                    out.extend_from_slice(bytes);
                    Ok(())
                });
            }
            Values::Timestamp(values, unit, digits) => {
                fixed(out, timestamp(values[row], *unit, *digits)?.to_be_bytes());
            }
            Values::Time(values, digits) => {
                fixed(out, cut(spelled::time(values.get(row))?, *digits).to_be_bytes());
            }
            Values::Interval(values) => {
                let (micros, days, months) = spelled::interval(values.get(row))?;
                out.extend_from_slice(&16_i32.to_be_bytes());
                out.extend_from_slice(&micros.to_be_bytes());
                out.extend_from_slice(&days.to_be_bytes());
                out.extend_from_slice(&months.to_be_bytes());
            }
            Values::Inet(values, cidr) => {
                let bytes = spelled::inet(values.get(row), *cidr)?;
                return sized(out, |out| {
                    out.extend_from_slice(&bytes);
                    Ok(())
                });
            }
            Values::Date(values) => fixed(out, date(values[row])?.to_be_bytes()),
            Values::List(offsets, oid, items) => {
                let (from, to) = (offsets[row] as usize, offsets[row + 1] as usize);
                return sized(out, |out| list(items, from..to, *oid, out));
            }
        }
        Ok(())
    }
}

/// The version that a `jsonb` begins with.
const JSONB: u8 = 1;
/// PostgreSQL's clock begins in 2000.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = 946_684_800_000_000;
/// What `timestamptz_recv` and `date_recv` take, from 4714 BC on.
const TIMESTAMPS: std::ops::Range<i64> = -211_813_488_000_000_000..9_223_371_331_200_000_000;
const DATES: std::ops::Range<i32> = -2_451_545..2_145_031_949;

fn fixed<const N: usize>(out: &mut Vec<u8>, bytes: [u8; N]) {
    out.extend_from_slice(&(N as i32).to_be_bytes());
    out.extend_from_slice(&bytes);
}

/// A value whose length is known once it is written.
fn sized(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Result<(), Refused>) -> Result<(), Refused> {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out)?;
    let length = i32::try_from(out.len() - at - 4).map_err(|_| "longer than PostgreSQL takes (2 GiB)".to_owned())?;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// PostgreSQL's texts hold no zero byte. Found here it costs one row; the server would refuse the whole statement.
fn text(text: &str, out: &mut Vec<u8>) -> Result<(), Refused> {
    if memchr::memchr(0, text.as_bytes()).is_some() {
        return Err("the text holds a zero byte, which PostgreSQL does not store".into());
    }
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)] // `Rule::of` lets only narrow enough types through
fn integer(value: i64, to: &Kind, out: &mut Vec<u8>) -> Result<(), Refused> {
    match to {
        Kind::Int2 => match i16::try_from(value) {
            Ok(value) => fixed(out, value.to_be_bytes()),
            Err(_) => return Err("out of the range of smallint, -32768 to 32767".into()),
        },
        Kind::Int4 => fixed(out, (value as i32).to_be_bytes()),
        Kind::Float4 => fixed(out, (value as f32).to_be_bytes()),
        Kind::Float8 => fixed(out, (value as f64).to_be_bytes()),
        Kind::Numeric(_) => return sized(out, |out| numeric::write(value.into(), 0, out)),
        _ => fixed(out, value.to_be_bytes()),
    }
    Ok(())
}

/// As the server reads one: in braces or not, with a hyphen after any group of four digits.
fn uuid(text: &str) -> Result<[u8; 16], Refused> {
    let bare = text.trim();
    let bare = bare.strip_prefix('{').and_then(|bare| bare.strip_suffix('}')).unwrap_or(bare);
    let groups: Vec<&str> = bare.split('-').collect();
    let is_cut_well = groups.iter().all(|group| !group.is_empty() && group.len() % 4 == 0);
    let parsed = if is_cut_well { uuid::Uuid::try_parse(&groups.concat()) } else { uuid::Uuid::try_parse(bare) };
    parsed.map(uuid::Uuid::into_bytes).map_err(|error| format!("not a uuid: {error}"))
}

/// A double as a `real`, where that is the same number to whoever reads its digits.
#[allow(clippy::cast_possible_truncation)] // what is cut off is compared
fn real(value: f64) -> Result<f32, Refused> {
    let narrow = value as f32;
    let same = value.is_nan() || f64::from(narrow) == value || narrow.to_string().parse() == Ok(value);
    if same { Ok(narrow) } else { Err(format!("{value} has more digits than a real keeps")) }
}

/// All digits of a time.
pub(super) const MICROSECOND: u8 = 6;

/// A time without the digits that its column does not keep. The server would round: into another second, or year.
fn cut(micros: i64, digits: u8) -> i64 {
    let unit = 10_i64.pow(u32::from(MICROSECOND.saturating_sub(digits)));
    micros.div_euclid(unit) * unit
}

fn timestamp(value: i64, unit: TimeUnit, digits: u8) -> Result<i64, Refused> {
    let micros = match unit {
        TimeUnit::Second => value.checked_mul(1_000_000),
        TimeUnit::Millisecond => value.checked_mul(1_000),
        TimeUnit::Microsecond => Some(value),
        TimeUnit::Nanosecond => Some(value.div_euclid(1_000)),
    };
    let since = micros.and_then(|micros| micros.checked_sub(EPOCH_MICROS)).map(|since| cut(since, digits));
    let since = since.filter(|since| TIMESTAMPS.contains(since));
    since.ok_or_else(|| "out of the range of PostgreSQL's timestamps, 4713 BC to 294276".into())
}

fn date(days: i32) -> Result<i32, Refused> {
    let since = days.checked_sub(EPOCH_DAYS).filter(|since| DATES.contains(since));
    since.ok_or_else(|| "out of the range of PostgreSQL's dates, 4713 BC to 5874897".into())
}

/// `array_recv`: dimensions, whether there are nulls, the elements' type, then length and lower bound of each dimension.
fn list(items: &Column<'_>, range: std::ops::Range<usize>, oid: u32, out: &mut Vec<u8>) -> Result<(), Refused> {
    let count = i32::try_from(range.len()).map_err(|_| "more elements than an array has".to_owned())?;
    let nulls = range.clone().any(|item| items.is_null(item));
    out.extend_from_slice(&i32::from(count > 0).to_be_bytes());
    out.extend_from_slice(&i32::from(nulls).to_be_bytes());
    out.extend_from_slice(&oid.to_be_bytes());
    if count > 0 {
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(&1_i32.to_be_bytes());
    }
    range.into_iter().try_for_each(|item| items.write(item, out))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn values_go_only_where_they_stay_what_they_are() {
        let numeric = |scale| Kind::Numeric(Some(scale));
        let text = DataType::Utf8;
        for (from, to, fits) in [
            (DataType::Int32, Kind::Int8, true),
            (DataType::Int64, Kind::Int4, false),
            (DataType::UInt32, Kind::Int4, false),
            (DataType::UInt32, Kind::Int8, true),
            (DataType::Int32, Kind::Int2, true),
            (DataType::Int64, Kind::Int2, false),
            (DataType::UInt64, Kind::Int8, false),
            (DataType::UInt64, numeric(0), true),
            (DataType::Int32, Kind::Float8, true),
            (DataType::Int64, Kind::Float8, false),
            (DataType::Int32, Kind::Float4, false),
            (DataType::Float32, Kind::Float8, true),
            (DataType::Float64, Kind::Float4, true),
            (text.clone(), Kind::Time(6), true),
            (text.clone(), Kind::Inet { cidr: true }, true),
            (DataType::Int64, Kind::Interval, false),
            (DataType::Float64, numeric(2), false),
            (DataType::Decimal128(9, 2), numeric(2), true),
            (DataType::Decimal128(9, 2), numeric(1), false),
            (DataType::Decimal128(9, 2), Kind::Numeric(None), true),
            (text.clone(), Kind::Jsonb, true),
            (text.clone(), Kind::Uuid, true),
            (text.clone(), Kind::Int4, false),
            (text, Kind::Other, false),
            (DataType::Int32, Kind::Text, false),
            (DataType::Date32, Kind::Timestamp(6), false),
        ] {
            assert_eq!(Rule::of(&from, &to).is_some(), fits, "{from} into {to:?}");
        }
    }

    #[test]
    fn uuids_are_spelled_as_the_server_reads_them() {
        let expected = uuid("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11").unwrap();
        for text in [
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            " {a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11} ",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
        ] {
            assert_eq!(uuid(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "{}",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1",
            "a-0eebc999c0b4ef8bb6d6bb9bd380a11",
            "-",
            "x0eebc999c0b4ef8bb6d6bb9bd380a11",
        ] {
            assert!(uuid(text).is_err(), "{text}");
        }
    }

    #[test]
    fn digits_that_a_column_does_not_keep_are_cut_and_never_rounded() {
        for (micros, digits, kept) in [
            (999_999, 0, 0),
            (999_999, 3, 999_000),
            (999_999, 6, 999_999),
            (-1, 0, -1_000_000),
            (-1, 3, -1_000),
            (59_999_999, 0, 59_000_000),
        ] {
            assert_eq!(cut(micros, digits), kept, "{micros} to {digits}");
        }
        for same in [0.1, 23.456, -0.5, 16_777_216.0, f64::INFINITY, 1e-10] {
            assert!(real(same).is_ok(), "{same}");
        }
        assert!(real(f64::NAN).is_ok_and(f32::is_nan));
        for other in [0.123_456_789_012_345_6, 16_777_217.0, 1e300] {
            assert!(real(other).is_err(), "{other}");
        }
    }

    #[test]
    fn times_outside_of_the_servers_calendar_are_refused_and_none_becomes_infinite() {
        let timestamp = |value, unit| super::timestamp(value, unit, MICROSECOND);
        assert_eq!(timestamp(EPOCH_MICROS, TimeUnit::Microsecond), Ok(0));
        assert_eq!(timestamp(946_684_799_999_999_999, TimeUnit::Nanosecond), Ok(-1));
        for (value, unit) in [
            (i64::MIN, TimeUnit::Microsecond),
            (i64::MIN + EPOCH_MICROS, TimeUnit::Microsecond),
            (i64::MAX, TimeUnit::Second),
        ] {
            assert!(timestamp(value, unit).is_err(), "{value}");
        }
        // The last microsecond that 64 bits since 1970 can count lies in the year 294247: the server has it.
        assert!(timestamp(i64::MAX, TimeUnit::Microsecond).is_ok());
        assert_eq!(date(10_957), Ok(0));
        assert!(date(i32::MIN).is_err() && date(i32::MAX).is_err());
    }
}
