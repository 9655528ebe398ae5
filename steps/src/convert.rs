//! Conversions of `cast`: the same table as for what codecs read. A value is converted exactly or not at all: nothing is
//! rounded, cut off or made null. Values inside of lists and structs are converted one by one, and named by their path.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, BooleanBuilder, ListArray, PrimitiveArray,
        PrimitiveBuilder, StringBuilder, StructArray, new_null_array,
    },
    compute::{CastOptions, can_cast_types, cast_with_options},
    datatypes::{
        DataType, Date32Type, Decimal128Type, Float64Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType,
    },
    error::ArrowError,
    util::display::{ArrayFormatter, FormatOptions},
};

use crate::columns;

/// A value that could not be converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Its row.
    pub row: usize,
    /// Where it is inside of the row's value: `[1]`, `.a`; empty: it is the value.
    pub path: String,
    /// The value as text.
    pub value: String,
    /// What it is not.
    pub expected: String,
}

/// Whether there is a conversion. The error is a sentence that begins after the column's name.
pub fn is_possible(before: &DataType, after: &DataType) -> Result<(), String> {
    use DataType::{Binary, Boolean, Date32, Decimal128, Float64, Int32, Int64, List, Struct, Timestamp, Utf8};
    let can = match (before, after) {
        (before, after) if before == after => true,
        (List(before), List(after)) => return is_possible(before.data_type(), after.data_type()),
        (Struct(before), Struct(after)) => {
            for field in after {
                match before.iter().find(|known| known.name() == field.name()) {
                    Some(known) => is_possible(known.data_type(), field.data_type())?,
                    None => {
                        let names = before.iter().map(|field| field.name().as_str()).collect::<Vec<_>>();
                        return Err(format!("has no field `{}`{}", field.name(), columns::hint(field.name(), names)));
                    }
                }
            }
            true
        }
        (_, Utf8) => true,
        (Utf8, List(_) | Struct(_)) | (List(_) | Struct(_), _) | (_, List(_) | Struct(_)) => false,
        (Utf8, _) => true,
        (Int32 | Int64, Int32 | Int64 | Float64 | Decimal128(..) | Boolean | Timestamp(..)) => true,
        (Int32, Date32) => true,
        (Float64, Int32 | Int64 | Decimal128(..) | Boolean) => true,
        (Decimal128(..), Int32 | Int64 | Float64 | Decimal128(..)) => true,
        (Boolean, Int32 | Int64 | Float64) => true,
        (Timestamp(..), Int64 | Date32) | (Date32, Int32 | Int64 | Timestamp(..)) => true,
        (Binary, _) | (_, Binary) => false,
        (before, after) => can_cast_types(before, after),
    };
    if can {
        return Ok(());
    }
    Err(format!("is {}, which cannot be cast to {}", columns::type_name(before), columns::type_name(after)))
}

/// Values in another type. What has none there is null and told in `failed`.
pub fn convert(values: &ArrayRef, after: &DataType, failed: &mut Vec<Failed>) -> Result<ArrayRef, ArrowError> {
    let before = values.data_type();
    if before == after {
        return Ok(Arc::clone(values));
    }
    match (before, after) {
        (DataType::List(_), DataType::List(_)) => list(values, after, failed),
        (DataType::Struct(_), DataType::Struct(_)) => structure(values, after, failed),
        (DataType::List(_) | DataType::Struct(_), DataType::Utf8) => json(values),
        _ => {
            let converted = leaf(values, after)?;
            note(values, &converted, after, failed)?;
            Ok(converted)
        }
    }
}

/// Where there was a value and is none now.
fn note(values: &ArrayRef, converted: &ArrayRef, after: &DataType, failed: &mut Vec<Failed>) -> Result<(), ArrowError> {
    if converted.null_count() <= values.null_count() {
        return Ok(());
    }
    let display = ArrayFormatter::try_new(values, &FormatOptions::default())?;
    let is_number = !matches!(values.data_type(), DataType::Utf8);
    let exact = match after {
        DataType::Decimal128(..) => " without rounding",
        DataType::Int32 | DataType::Int64 if is_number => " without rounding",
        _ => "",
    };
    let expected = format!("{}{exact}", columns::type_name(after));
    for row in (0..values.len()).filter(|row| converted.is_null(*row) && values.is_valid(*row)) {
        let value = display.value(row).to_string();
        failed.push(Failed { row, path: String::new(), value, expected: expected.clone() });
    }
    Ok(())
}

fn list(values: &ArrayRef, after: &DataType, failed: &mut Vec<Failed>) -> Result<ArrayRef, ArrowError> {
    let (lists, DataType::List(field)) = (values.as_list::<i32>(), after) else { return by_arrow(values, after) };
    let (first, last) = (lists.value_offsets()[0] as usize, lists.value_offsets()[lists.len()] as usize);
    let mut inner = Vec::new();
    let items = convert(&lists.values().slice(first, last - first), field.data_type(), &mut inner)?;
    for part in inner {
        let item = part.row + first;
        // The list that the item is in: the last that begins at it or before.
        let row = lists.value_offsets().partition_point(|offset| *offset as usize <= item) - 1;
        if lists.is_null(row) {
            continue;
        }
        let place = item - lists.value_offsets()[row] as usize;
        failed.push(Failed { row, path: format!("[{place}]{}", part.path), ..part });
    }
    let offsets = lists.value_offsets().iter().map(|offset| offset - first as i32).collect::<Vec<_>>();
    let offsets = arrow::buffer::OffsetBuffer::new(offsets.into());
    Ok(Arc::new(ListArray::try_new(Arc::clone(field), offsets, items, lists.nulls().cloned())?))
}

fn structure(values: &ArrayRef, after: &DataType, failed: &mut Vec<Failed>) -> Result<ArrayRef, ArrowError> {
    let (structs, DataType::Struct(fields)) = (values.as_struct(), after) else { return by_arrow(values, after) };
    let mut arrays = Vec::with_capacity(fields.len());
    for field in fields {
        let Some(part) = structs.column_by_name(field.name()) else {
            arrays.push(new_null_array(field.data_type(), structs.len()));
            continue;
        };
        let mut inner = Vec::new();
        arrays.push(convert(part, field.data_type(), &mut inner)?);
        for part in inner.into_iter().filter(|part| structs.is_valid(part.row)) {
            failed.push(Failed { path: format!(".{}{}", field.name(), part.path), ..part });
        }
    }
    Ok(Arc::new(StructArray::try_new_with_length(fields.clone(), arrays, structs.nulls().cloned(), structs.len())?))
}

/// Arrow's own conversion, where it loses nothing.
fn by_arrow(values: &ArrayRef, after: &DataType) -> Result<ArrayRef, ArrowError> {
    cast_with_options(values, after, &CastOptions { safe: true, ..CastOptions::default() })
}

fn leaf(values: &ArrayRef, after: &DataType) -> Result<ArrayRef, ArrowError> {
    use DataType::{Boolean, Date32, Decimal128, Float64, Int32, Int64, Timestamp, Utf8};
    match (values.data_type(), after) {
        (Utf8, Int32) => Ok(of_text::<Int32Type>(values, |text| i32::try_from(integer(text)?).ok())),
        (Utf8, Int64) => Ok(of_text::<Int64Type>(values, integer)),
        (Utf8, Float64) => Ok(of_text::<Float64Type>(values, float)),
        (Utf8, Boolean) => {
            let mut made = BooleanBuilder::with_capacity(values.len());
            values.as_string::<i32>().iter().for_each(|text| made.append_option(text.and_then(boolean)));
            Ok(Arc::new(made.finish()))
        }
        (Utf8, Date32) => Ok(of_text::<Date32Type>(values, date)),
        (Utf8, Timestamp(TimeUnit::Microsecond, zone)) => {
            let made = primitive_of_text::<TimestampMicrosecondType>(values, timestamp);
            Ok(Arc::new(made.with_timezone_opt(zone.clone())))
        }
        (Utf8, Decimal128(precision, scale)) => {
            let made = primitive_of_text::<Decimal128Type>(values, |text| decimal(text, *precision, *scale));
            Ok(Arc::new(made.with_precision_and_scale(*precision, *scale)?))
        }
        (Int32 | Int64, Boolean) => {
            let wide = by_arrow(values, &Int64)?;
            let wide = wide.as_primitive::<Int64Type>();
            let made: BooleanArray = wide.iter().map(|value| one_or_zero(value? as f64)).collect();
            Ok(Arc::new(made))
        }
        (Float64, Boolean) => {
            let made: BooleanArray =
                values.as_primitive::<Float64Type>().iter().map(|value| one_or_zero(value?)).collect();
            Ok(Arc::new(made))
        }
        (Float64, Int32) => Ok(of_floats::<Int32Type>(values, |value| i32::try_from(whole(value)?).ok())),
        (Float64, Int64) => Ok(of_floats::<Int64Type>(values, whole)),
        (Float64, Decimal128(precision, scale)) => {
            let (precision, scale) = (*precision, *scale);
            // The shortest text that means the same double: what it was, where it was read as text.
            let made = of_floats_primitive::<Decimal128Type>(values, |value| {
                value.is_finite().then(|| decimal(&format!("{value:e}"), precision, scale))?
            });
            Ok(Arc::new(made.with_precision_and_scale(precision, scale)?))
        }
        (Int32 | Int64, Decimal128(precision, scale)) => {
            let wide = by_arrow(values, &Int64)?;
            let (precision, scale) = (*precision, *scale);
            let made = wide.as_primitive::<Int64Type>().iter();
            let made: PrimitiveArray<Decimal128Type> =
                made.map(|value| fits(rescale(i128::from(value?), 0, scale)?, precision)).collect();
            Ok(Arc::new(made.with_precision_and_scale(precision, scale)?))
        }
        (Decimal128(_, scale), Decimal128(precision, wanted)) => {
            let (scale, precision, wanted) = (*scale, *precision, *wanted);
            let made = values.as_primitive::<Decimal128Type>().iter();
            let made: PrimitiveArray<Decimal128Type> =
                made.map(|value| fits(rescale(value?, scale, wanted)?, precision)).collect();
            Ok(Arc::new(made.with_precision_and_scale(precision, wanted)?))
        }
        (Decimal128(_, scale), Int32) => {
            let (made, scale) = (values.as_primitive::<Decimal128Type>().iter(), *scale);
            let made: PrimitiveArray<Int32Type> =
                made.map(|value| i32::try_from(rescale(value?, scale, 0)?).ok()).collect();
            Ok(Arc::new(made))
        }
        (Decimal128(_, scale), Int64) => {
            let (made, scale) = (values.as_primitive::<Decimal128Type>().iter(), *scale);
            let made: PrimitiveArray<Int64Type> =
                made.map(|value| i64::try_from(rescale(value?, scale, 0)?).ok()).collect();
            Ok(Arc::new(made))
        }
        _ => by_arrow(values, after),
    }
}

fn primitive_of_text<T: ArrowPrimitiveType>(
    values: &ArrayRef,
    read: impl Fn(&str) -> Option<T::Native>,
) -> PrimitiveArray<T> {
    let mut made = PrimitiveBuilder::<T>::with_capacity(values.len());
    values.as_string::<i32>().iter().for_each(|text| made.append_option(text.and_then(|text| read(text.trim()))));
    made.finish()
}

fn of_text<T: ArrowPrimitiveType>(values: &ArrayRef, read: impl Fn(&str) -> Option<T::Native>) -> ArrayRef {
    Arc::new(primitive_of_text::<T>(values, read))
}

fn of_floats_primitive<T: ArrowPrimitiveType>(
    values: &ArrayRef,
    read: impl Fn(f64) -> Option<T::Native>,
) -> PrimitiveArray<T> {
    let mut made = PrimitiveBuilder::<T>::with_capacity(values.len());
    values.as_primitive::<Float64Type>().iter().for_each(|value| made.append_option(value.and_then(&read)));
    made.finish()
}

fn of_floats<T: ArrowPrimitiveType>(values: &ArrayRef, read: impl Fn(f64) -> Option<T::Native>) -> ArrayRef {
    Arc::new(of_floats_primitive::<T>(values, read))
}

fn one_or_zero(value: f64) -> Option<bool> {
    match value {
        0.0 => Some(false),
        1.0 => Some(true),
        _ => None,
    }
}

/// A double that is a whole number.
fn whole(value: f64) -> Option<i64> {
    /// The first whole number that an `i64` does not have.
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    (value.fract() == 0.0 && (-LIMIT..LIMIT).contains(&value)).then_some(value as i64)
}

fn integer(text: &str) -> Option<i64> {
    // A whole number may be written as 1.0 or 1e3.
    text.parse().ok().or_else(|| exact(text, 0).and_then(|value| i64::try_from(value).ok()))
}

/// An infinity must have been written as one, not be a number beyond the type.
fn float(text: &str) -> Option<f64> {
    let fits = |value: &f64| !value.is_infinite() || !text.bytes().any(|letter| letter.is_ascii_digit());
    text.parse().ok().filter(fits)
}

fn boolean(text: &str) -> Option<bool> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("true") {
        Some(true)
    } else if text.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

fn decimal(text: &str, precision: u8, scale: i8) -> Option<i128> {
    fits(exact(text, i64::from(scale))?, precision)
}

fn fits(value: i128, precision: u8) -> Option<i128> {
    (value.unsigned_abs() < power(i64::from(precision))?.unsigned_abs()).then_some(value)
}

/// A number of units of `10^-before` in units of `10^-after`.
fn rescale(value: i128, before: i8, after: i8) -> Option<i128> {
    let shift = i64::from(after) - i64::from(before);
    if shift >= 0 {
        return value.checked_mul(power(shift)?);
    }
    let unit = power(-shift)?;
    (value % unit == 0).then(|| value / unit)
}

/// `10^n`, where it fits.
fn power(n: i64) -> Option<i128> {
    /// Digits that an `i128` can hold.
    const MAX_DIGITS: i64 = 38;
    if (0..=MAX_DIGITS).contains(&n) { 10_i128.checked_pow(n as u32) } else { None }
}

/// The value of a decimal number (`-12.50`, `1e3`) in units of `10^-scale`; `None` where the text is no number, where the
/// value is no whole number of units, or where it does not fit.
pub fn exact(text: &str, scale: i64) -> Option<i128> {
    let (negative, digits) = match text.as_bytes().split_first()? {
        (b'-', rest) => (true, rest),
        (b'+', rest) => (false, rest),
        _ => (false, text.as_bytes()),
    };
    let (mantissa, exponent) = match digits.iter().position(|byte| matches!(byte, b'e' | b'E')) {
        Some(at) => {
            let exponent: i64 = std::str::from_utf8(&digits[at + 1..]).ok()?.parse().ok()?;
            (&digits[..at], exponent.clamp(-1_000_000_000, 1_000_000_000))
        }
        None => (digits, 0),
    };
    // Zeros at the end count only once another digit follows, so that `1.000...0` is as good as `1`.
    let (mut value, mut zeros, mut fraction, mut any, mut point) = (0_i128, 0_i64, 0_i64, false, false);
    for byte in mantissa {
        match byte {
            b'0'..=b'9' => {
                any = true;
                fraction += i64::from(point);
                if *byte == b'0' {
                    zeros += i64::from(value != 0);
                    continue;
                }
                value = value.checked_mul(power(zeros + 1)?)?.checked_add(i128::from(byte - b'0'))?;
                zeros = 0;
            }
            b'.' if !point => point = true,
            _ => return None,
        }
    }
    if !any {
        return None;
    }
    let shift = zeros + exponent + scale - fraction;
    let value = match (value, shift) {
        (0, _) => 0,
        (_, 0..) => value.checked_mul(power(shift)?)?,
        _ => {
            let unit = power(-shift)?;
            if value % unit != 0 {
                return None;
            }
            value / unit
        }
    };
    Some(if negative { -value } else { value })
}

/// `2015-05-17`, or a signed year of four to seven digits.
fn date(text: &str) -> Option<i32> {
    let (days, rest) = day(text.as_bytes())?;
    if rest.is_empty() { i32::try_from(days).ok() } else { None }
}

/// `2015-05-17T10:05:03.5+02:00`: `T` may be a space, the zone may be missing (UTC); a date alone is its midnight.
fn timestamp(text: &str) -> Option<i64> {
    let (days, rest) = day(text.as_bytes())?;
    let (micros, east) = match rest {
        [] => (0, 0),
        [b'T' | b't' | b' ', rest @ ..] => clock(rest)?,
        _ => return None,
    };
    i64::try_from(i128::from(days) * 86_400_000_000 + i128::from(micros - east)).ok()
}

fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |value, byte| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0')))
}

/// The day that a text begins with, and what follows.
fn day(text: &[u8]) -> Option<(i64, &[u8])> {
    let (sign, rest) = match text {
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => (0, text),
    };
    let length = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let is_year = if sign == 0 { length == 4 } else { (4..=7).contains(&length) };
    let (year, rest) = rest.split_at_checked(length).filter(|_| is_year)?;
    let year = digits(year)? * if sign == 0 { 1 } else { sign };
    let (head, rest) = rest.split_at_checked(6)?;
    if head[0] != b'-' || head[3] != b'-' {
        return None;
    }
    let (month, day) = (digits(&head[1..3])?, digits(&head[4..6])?);
    Some((days_of(year, month, day)?, rest))
}

/// Days since 1970-01-01 of the proleptic Gregorian calendar (Howard Hinnant, `days_from_civil`).
fn days_of(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=length).contains(&day) {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468)
}

/// Microseconds of the day, and those that its zone is east of UTC. A leap second is the first of the next minute; digits
/// below a microsecond are cut off.
fn clock(text: &[u8]) -> Option<(i64, i64)> {
    let (head, mut rest) = text.split_at_checked(8)?;
    if head[2] != b':' || head[5] != b':' {
        return None;
    }
    let (hour, minute, second) = (digits(&head[..2])?, digits(&head[3..5])?, digits(&head[6..])?);
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut micros = 0;
    if let [b'.' | b',', fraction @ ..] = rest {
        let length = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if length == 0 {
            return None;
        }
        for place in 0..6 {
            micros = micros * 10 + fraction[..length].get(place).map_or(0, |digit| i64::from(digit - b'0'));
        }
        rest = &fraction[length..];
    }
    let (sign, rest) = match rest {
        [] | [b'Z' | b'z'] => (0, &[][..]),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let east = match rest {
        [] if sign == 0 => 0,
        [a, b, b':', c, d] | [a, b, c, d] => {
            let (hours, minutes) = (digits(&[*a, *b])?, digits(&[*c, *d])?);
            (hours < 24 && minutes < 60).then_some((hours * 60 + minutes) * 60_000_000)? * sign
        }
        _ => return None,
    };
    Some((((hour * 60 + minute) * 60 + second) * 1_000_000 + micros, east))
}

/// Lists and structs as JSON.
fn json(values: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let (mut made, mut text) = (StringBuilder::with_capacity(values.len(), values.len() * 16), String::new());
    for row in 0..values.len() {
        if values.is_null(row) {
            made.append_null();
            continue;
        }
        text.clear();
        write_json(values, row, &mut text)?;
        made.append_value(&text);
    }
    Ok(Arc::new(made.finish()))
}

fn write_json(values: &ArrayRef, row: usize, into: &mut String) -> Result<(), ArrowError> {
    if values.is_null(row) {
        into.push_str("null");
        return Ok(());
    }
    match values.data_type() {
        DataType::List(_) => {
            let items = values.as_list::<i32>().value(row);
            into.push('[');
            for item in 0..items.len() {
                if item > 0 {
                    into.push(',');
                }
                write_json(&items, item, into)?;
            }
            into.push(']');
        }
        DataType::Struct(fields) => {
            let structs = values.as_struct();
            into.push('{');
            for (index, field) in fields.iter().enumerate() {
                if index > 0 {
                    into.push(',');
                }
                quote(field.name(), into);
                into.push(':');
                write_json(structs.column(index), row, into)?;
            }
            into.push('}');
        }
        DataType::Int32 | DataType::Int64 | DataType::Boolean | DataType::Decimal128(..) => {
            into.push_str(&ArrayFormatter::try_new(values, &FormatOptions::default())?.value(row).to_string());
        }
        DataType::Float64 => {
            let value = values.as_primitive::<Float64Type>().value(row);
            // JSON has no word for what is no number.
            into.push_str(&if value.is_finite() { value.to_string() } else { "null".to_owned() });
        }
        _ => {
            let text = by_arrow(&values.slice(row, 1), &DataType::Utf8)?;
            match text.is_valid(0) {
                true => quote(text.as_string::<i32>().value(0), into),
                false => into.push_str("null"),
            }
        }
    }
    Ok(())
}

fn quote(text: &str, into: &mut String) {
    into.push('"');
    for letter in text.chars() {
        match letter {
            '"' => into.push_str("\\\""),
            '\\' => into.push_str("\\\\"),
            '\n' => into.push_str("\\n"),
            '\r' => into.push_str("\\r"),
            '\t' => into.push_str("\\t"),
            letter if letter < ' ' => into.push_str(&format!("\\u{:04x}", letter as u32)),
            letter => into.push(letter),
        }
    }
    into.push('"');
}
