//! Single values in the binary encoding.

use uuid::Uuid;

use super::{
    default::{bytes, long},
    schema::Node,
};
use crate::codec::{
    number,
    records::cells::{exact, narrowed},
    scalar::Scalar,
};

/// Appends a value; `None`, and perhaps a part of it, where it does not fit.
pub(super) fn single(node: &Node, value: &Scalar<'_>, out: &mut Vec<u8>) -> Option<()> {
    match (node, value) {
        (Node::Boolean, Scalar::Boolean(value)) => out.push(u8::from(*value)),
        (Node::Int, Scalar::Integer(value)) => long(i64::from(i32::try_from(*value).ok()?), out),
        (Node::Long, Scalar::Integer(value)) => long(*value, out),
        (Node::Int, Scalar::Decimal(value, 0)) => long(i64::from(i32::try_from(*value).ok()?), out),
        (Node::Long, Scalar::Decimal(value, 0)) => long(i64::try_from(*value).ok()?, out),
        (Node::Float, Scalar::Single(value)) => out.extend_from_slice(&value.to_le_bytes()),
        (Node::Double, Scalar::Double(value)) => out.extend_from_slice(&value.to_le_bytes()),
        (Node::Double, Scalar::Single(value)) => out.extend_from_slice(&f64::from(*value).to_le_bytes()),
        (Node::Float, Scalar::Double(value)) => out.extend_from_slice(&narrowed(*value)?.to_le_bytes()),
        (Node::Double, Scalar::Integer(value)) => out.extend_from_slice(&exact(*value, 53)?.to_le_bytes()),
        (Node::Float, Scalar::Integer(value)) => out.extend_from_slice(&narrowed(exact(*value, 24)?)?.to_le_bytes()),
        (Node::String, Scalar::Text(text)) => bytes(text.as_bytes(), out),
        (Node::Bytes, Scalar::Text(text)) => bytes(text.as_bytes(), out),
        (Node::Bytes, Scalar::Binary(value)) => bytes(value, out),
        (Node::Fixed(size), Scalar::Binary(value)) if value.len() == *size => out.extend_from_slice(value),
        (Node::Enum { symbols, .. }, Scalar::Text(text)) => {
            long(symbols.iter().position(|symbol| symbol == text)? as i64, out);
        }
        (Node::UuidText, Scalar::Text(text)) => {
            Uuid::try_parse(text).ok()?;
            bytes(text.as_bytes(), out);
        }
        (Node::Uuid { with_length }, Scalar::Text(text)) => {
            let uuid = Uuid::try_parse(text).ok()?;
            if *with_length {
                long(16, out);
            }
            out.extend_from_slice(uuid.as_bytes());
        }
        (Node::Time(units), Scalar::Text(text)) => long(time(text, *units)?, out),
        (Node::Date, Scalar::Date(days)) => long(i64::from(*days), out),
        (Node::Stamp(1_000), Scalar::Stamp(micros)) => long(micros.div_euclid(1_000), out),
        (Node::Stamp(1_000_000), Scalar::Stamp(micros)) => long(*micros, out),
        (Node::Stamp(_), Scalar::Stamp(micros)) => long(micros.checked_mul(1_000)?, out),
        (Node::Decimal { size, precision, scale }, Scalar::Decimal(value, from)) => {
            decimal(*value, *from, *size, *precision, *scale, out)?;
        }
        (Node::Decimal { size, precision, scale }, Scalar::Integer(value)) => {
            decimal(i128::from(*value), 0, *size, *precision, *scale, out)?;
        }
        (Node::Decimal { size, precision, scale }, Scalar::Text(text)) => {
            let value = number::exact(text.as_bytes(), i64::try_from(*scale).ok()?)?;
            decimal(value, i8::try_from(*scale).ok()?, *size, *precision, *scale, out)?;
        }
        (Node::BigDecimal, Scalar::Decimal(value, scale)) => big_decimal(*value, *scale, out),
        (Node::BigDecimal, Scalar::Integer(value)) => big_decimal(i128::from(*value), 0, out),
        (Node::BigDecimal, Scalar::Text(text)) => {
            let places = text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
            let scale = i8::try_from(places).ok()?;
            big_decimal(number::exact(text.as_bytes(), i64::from(scale))?, scale, out);
        }
        (Node::Duration, Scalar::Text(text)) => {
            duration(text)?.iter().for_each(|part| out.extend_from_slice(&part.to_le_bytes()));
        }
        _ => return None,
    }
    Some(())
}

/// Months, days and milliseconds of a duration as it is read: `P1M2DT3.004S`.
fn duration(text: &str) -> Option<[u32; 3]> {
    let (months, rest) = text.strip_prefix('P')?.split_once('M')?;
    let (days, rest) = rest.split_once("DT")?;
    let millis = number::exact(rest.strip_suffix('S')?.as_bytes(), 3)?;
    Some([months.parse().ok()?, days.parse().ok()?, u32::try_from(millis).ok()?])
}

/// Its digits like any decimal's, then its scale, with the length of both before them.
fn big_decimal(value: i128, scale: i8, out: &mut Vec<u8>) {
    let mut inside = Vec::new();
    bytes(shortest(&value.to_be_bytes()), &mut inside);
    long(i64::from(scale), &mut inside);
    bytes(&inside, out);
}

/// A number in two's complement without the bytes that its sign says.
fn shortest(whole: &[u8; 16]) -> &[u8] {
    let sign = if whole[0] & 0x80 == 0 { 0 } else { 0xff };
    // The first byte that is kept has the sign in its first bit.
    let needed = |at: &usize| whole[*at] != sign || (whole.get(at + 1).is_none_or(|next| (next ^ sign) & 0x80 != 0));
    &whole[(0..whole.len()).find(needed).unwrap_or_default()..]
}

fn decimal(
    value: i128,
    from: i8,
    size: Option<usize>,
    precision: usize,
    scale: usize,
    out: &mut Vec<u8>,
) -> Option<()> {
    let more = u32::try_from(i64::try_from(scale).ok()? - i64::from(from)).ok()?;
    let value = value.checked_mul(10_i128.checked_pow(more)?)?;
    let limit = u32::try_from(precision).ok().and_then(|digits| 10_u128.checked_pow(digits));
    if limit.is_some_and(|limit| value.unsigned_abs() >= limit) {
        return None;
    }
    let whole = value.to_be_bytes();
    let short = shortest(&whole);
    match size {
        None => bytes(short, out),
        Some(size) => {
            let before = size.checked_sub(short.len())?;
            out.extend(std::iter::repeat_n(if value < 0 { 0xff } else { 0 }, before));
            out.extend_from_slice(short);
        }
    }
    Some(())
}

/// A time of day as it is read: `10:05:03.120`.
fn time(text: &str, units: i64) -> Option<i64> {
    let (clock, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = clock.split(':').map(|part| {
        (part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit())).then(|| part.parse::<i64>().ok())?
    });
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    let is_time = parts.next().is_none() && hour < 24 && minute < 60 && second < 60;
    if !is_time || fraction.len() > 6 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let micros: i64 = format!("{fraction:0<6}").parse().ok()?;
    Some((hour * 3600 + minute * 60 + second) * units + micros * units / 1_000_000)
}
