//! Values by the schema that wrote them: single ones as [`Scalar`], whole ones as JSON, or passed over.

use uuid::Uuid;

use super::{
    input::Input,
    schema::{Id, Node, Schema},
};
use crate::codec::{
    rows::Bad,
    scalar::{self, Scalar},
    values::{decimal, quoted},
};

/// Gives a value that is neither a record nor an array, map or union to `then`. `scratch` holds texts that are made.
#[inline]
pub(super) fn single<T>(
    node: &Node,
    input: &mut Input<'_>,
    then: impl FnOnce(Option<Scalar<'_>>) -> Result<T, Bad>,
) -> Result<T, Bad> {
    let value = match node {
        Node::Null => return then(None),
        Node::Boolean => Scalar::Boolean(input.boolean()?),
        Node::Int => Scalar::Integer(i64::from(input.int()?)),
        Node::Long => Scalar::Integer(input.long()?),
        Node::Float => Scalar::Single(f32::from_le_bytes(input.array()?)),
        Node::Double => Scalar::Double(f64::from_le_bytes(input.array()?)),
        Node::Bytes => Scalar::Binary(input.bytes()?),
        Node::Fixed(size) => Scalar::Binary(input.take(*size)?),
        Node::String | Node::UuidText => Scalar::Text(input.text()?),
        Node::Enum { symbols, .. } => Scalar::Text(&symbols[input.index(symbols.len())?]),
        Node::Date => Scalar::Date(input.int()?),
        Node::Stamp(units) => Scalar::Stamp(micros(input, *units)?),
        other => return made(other, input, then),
    };
    then(Some(value))
}

/// Those whose value is made first.
fn made<T>(
    node: &Node,
    input: &mut Input<'_>,
    then: impl FnOnce(Option<Scalar<'_>>) -> Result<T, Bad>,
) -> Result<T, Bad> {
    let text = match node {
        Node::Decimal { size, scale, .. } => {
            let bytes = if let Some(size) = size { input.take(*size)? } else { input.bytes()? };
            let (Some(value), Ok(scale)) = (unscaled(bytes), i8::try_from(*scale)) else {
                return input.bad("a decimal has more than 38 digits");
            };
            return then(Some(Scalar::Decimal(value, scale)));
        }
        Node::BigDecimal => {
            let bytes = input.bytes()?;
            let mut inside = Input::new(bytes, 0);
            let (digits, scale) = (inside.bytes()?, inside.long()?);
            let (Some(value), Ok(scale)) = (unscaled(digits), i8::try_from(scale)) else {
                return input.bad("a decimal has more than 38 digits");
            };
            let mut text = Vec::new();
            decimal(value, scale, &mut text);
            String::from_utf8_lossy(&text).into_owned()
        }
        Node::Uuid { with_length } => {
            let bytes = if *with_length { input.bytes()? } else { input.take(16)? };
            match Uuid::from_slice(bytes) {
                Ok(uuid) => uuid.to_string(),
                Err(_) => return input.bad("a uuid has not sixteen bytes"),
            }
        }
        Node::Duration => {
            let mut part = || Ok::<_, Bad>(u32::from_le_bytes(input.array()?));
            let (months, days, millis) = (part()?, part()?, part()?);
            format!("P{months}M{days}DT{}.{:03}S", millis / 1000, millis % 1000)
        }
        Node::Time(units) => time(input, *units)?,
        _ => return input.bad("a value that is not single is read as one"),
    };
    then(Some(Scalar::Text(&text)))
}

/// Microseconds since the epoch; what is smaller is cut off.
fn micros(input: &mut Input<'_>, units: i64) -> Result<i64, Bad> {
    let value = input.long()?;
    let micros = match units {
        1_000 => value.checked_mul(1_000),
        1_000_000 => Some(value),
        _ => Some(value.div_euclid(1_000)),
    };
    match micros {
        Some(micros) => Ok(micros),
        None => input.bad("a timestamp is beyond the year 294247"),
    }
}

fn time(input: &mut Input<'_>, units: i64) -> Result<String, Bad> {
    let value = if units == 1_000 { i64::from(input.int()?) } else { input.long()? };
    let (second, rest) = (value.div_euclid(units), value.rem_euclid(units));
    if !(0..86_400).contains(&second) {
        return input.bad("a time of day is beyond midnight");
    }
    let digits = if units == 1_000 { 3 } else { 6 };
    let clock = format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60);
    Ok(if rest == 0 { clock } else { format!("{clock}.{rest:0digits$}") })
}

/// A big-endian number in two's complement.
fn unscaled(bytes: &[u8]) -> Option<i128> {
    let sign = if bytes.first().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
    let (before, last) = bytes.split_at(bytes.len().saturating_sub(16));
    let mut value = [sign; 16];
    value[16 - last.len()..].copy_from_slice(last);
    let value = i128::from_be_bytes(value);
    let fits = before.iter().all(|byte| *byte == sign) && (value < 0) == (sign != 0);
    fits.then_some(value)
}

/// Passes over a value.
pub(super) fn skip(schema: &Schema, id: Id, input: &mut Input<'_>) -> Result<(), Bad> {
    match schema.node(id) {
        Node::Bytes | Node::String | Node::UuidText | Node::Decimal { size: None, .. } | Node::BigDecimal => {
            input.bytes().map(drop)
        }
        Node::Record(fields) => {
            input.enter()?;
            fields.iter().try_for_each(|field| skip(schema, field.node, input))?;
            input.leave();
            Ok(())
        }
        Node::Union(variants) => {
            let variant = variants[input.index(variants.len())?];
            skip(schema, variant, input)
        }
        node @ (Node::Array(item) | Node::Map(item)) => {
            input.enter()?;
            loop {
                match input.block()? {
                    (0, _) => break,
                    (_, Some(bytes)) => drop(input.take(bytes)?),
                    (count, None) => {
                        for _ in 0..count {
                            if matches!(node, Node::Map(_)) {
                                input.bytes()?;
                            }
                            skip(schema, *item, input)?;
                        }
                    }
                }
            }
            input.leave();
            Ok(())
        }
        node => single(node, input, |_| Ok(())),
    }
}

/// Appends a value as JSON.
pub(super) fn json(schema: &Schema, id: Id, input: &mut Input<'_>, out: &mut Vec<u8>) -> Result<(), Bad> {
    match schema.node(id) {
        Node::Record(fields) => {
            input.enter()?;
            out.push(b'{');
            for (place, field) in fields.iter().enumerate() {
                name(place, &field.name, out);
                json(schema, field.node, input, out)?;
            }
            out.push(b'}');
            input.leave();
            Ok(())
        }
        Node::Union(variants) => {
            let variant = variants[input.index(variants.len())?];
            json(schema, variant, input, out)
        }
        node @ (Node::Array(item) | Node::Map(item)) => {
            let is_map = matches!(node, Node::Map(_));
            input.enter()?;
            out.push(if is_map { b'{' } else { b'[' });
            let mut place = 0;
            loop {
                let (count, _) = input.block()?;
                if count == 0 {
                    break;
                }
                for _ in 0..count {
                    if is_map {
                        name(place, input.text()?, out);
                    } else if place > 0 {
                        out.push(b',');
                    }
                    place += 1;
                    json(schema, *item, input, out)?;
                }
            }
            out.push(if is_map { b'}' } else { b']' });
            input.leave();
            Ok(())
        }
        node => single(node, input, |value| {
            match value {
                Some(value) => scalar::json(&value, out),
                None => out.extend_from_slice(b"null"),
            }
            Ok(())
        }),
    }
}

fn name(place: usize, name: &str, out: &mut Vec<u8>) {
    if place > 0 {
        out.push(b',');
    }
    quoted(name.as_bytes(), out);
    out.push(b':');
}
