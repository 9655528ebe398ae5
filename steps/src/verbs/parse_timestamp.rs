//! `parse_timestamp: { column, format, zone }`: text, or a number since 1970, to an instant, in microseconds, UTC.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, TimestampMicrosecondBuilder},
    compute::cast,
    datatypes::{DataType, Decimal128Type, Float64Type, Int64Type, SchemaRef},
    error::ArrowError,
    util::display::{ArrayFormatter, FormatOptions},
};
use tidemill_config::Located;

use super::{
    Kernel, Notes, Planned, replace, shown,
    timestamps::{self, EPOCHS, Format, Why, Zone},
};
use crate::{columns, convert, expression::Bad, functions};

#[derive(Debug)]
struct Parse {
    column: String,
    formats: Vec<Format>,
    /// The formats as the job has them, for messages.
    expected: String,
    zone: Zone,
}

impl Kernel for Parse {
    fn apply(&self, values: &ArrayRef, bad: &mut Vec<Bad>) -> Result<ArrayRef, ArrowError> {
        if values.data_type() != &DataType::Utf8 {
            return self.numbers(values, bad);
        }
        let text = values.as_string::<i32>();
        let now = functions::context().planned_at.saturating_mul(1000);
        let mut instants = TimestampMicrosecondBuilder::with_capacity(text.len());
        for (row, value) in text.iter().enumerate() {
            let Some(value) = value else {
                instants.append_null();
                continue;
            };
            let mut why = Why::Shape;
            let instant = self.formats.iter().find_map(|format| match format.read(value, self.zone, now) {
                Ok(instant) => Some(instant),
                Err(Why::Shape) => None,
                Err(other) => {
                    why = other;
                    None
                }
            });
            if instant.is_none() {
                bad.push(self.bad(row, value, &why));
            }
            instants.append_option(instant);
        }
        Ok(Arc::new(instants.finish().with_timezone("UTC")))
    }
}

impl Parse {
    fn bad(&self, row: usize, value: &str, why: &Why) -> Bad {
        let (column, value) = (&self.column, shown(value));
        let detail = match why {
            Why::Shape => format!("column `{column}`: {value} is no {}", self.expected),
            Why::Skipped(zone) => {
                format!("column `{column}`: {value} does not exist in {zone}: the clocks are put forward over it")
            }
            Why::Zone(name) => format!(
                "column `{column}`: {value} names the zone `{name}`, which may mean several or none; UTC, GMT, Z and names \
                 like Europe/Berlin are read"
            ),
        };
        Bad { row: row as u32, reason: "parse_timestamp", detail }
    }

    /// Numbers, by the first format that is one of numbers.
    fn numbers(&self, values: &ArrayRef, bad: &mut Vec<Bad>) -> Result<ArrayRef, ArrowError> {
        let epoch = self.formats.iter().find_map(|format| match format {
            Format::Epoch(epoch) => Some(*epoch),
            _ => None,
        });
        let Some(epoch) = epoch else {
            return Err(ArrowError::InvalidArgumentError("numbers have no unit".into()));
        };
        let wide;
        let read: Box<dyn Fn(usize) -> Option<i64>> = match values.data_type() {
            DataType::Float64 => {
                let doubles = values.as_primitive::<Float64Type>();
                // The shortest text that means the same double, in nanoseconds.
                Box::new(move |row| {
                    let value = doubles.value(row);
                    let nanos = value.is_finite().then(|| convert::exact(&format!("{value:e}"), 9))??;
                    epoch.micros(nanos, 9)
                })
            }
            DataType::Decimal128(_, scale) => {
                let (decimals, scale) = (values.as_primitive::<Decimal128Type>(), i32::from(*scale));
                Box::new(move |row| epoch.micros(decimals.value(row), scale))
            }
            _ => {
                wide = cast(values, &DataType::Int64)?;
                let whole = wide.as_primitive::<Int64Type>();
                Box::new(move |row| epoch.micros(i128::from(whole.value(row)), 0))
            }
        };
        let display = ArrayFormatter::try_new(values, &FormatOptions::default())?;
        let mut instants = TimestampMicrosecondBuilder::with_capacity(values.len());
        for row in 0..values.len() {
            let instant = if values.is_null(row) { None } else { read(row) };
            if instant.is_none() && values.is_valid(row) {
                bad.push(self.bad(row, &display.value(row).to_string(), &Why::Shape));
            }
            instants.append_option(instant);
        }
        Ok(Arc::new(instants.finish().with_timezone("UTC")))
    }
}

pub fn plan(
    name: &Located<String>,
    formats: &[Located<String>],
    zone: Option<&Located<String>>,
    schema: &SchemaRef,
    notes: &mut Notes<'_>,
) -> Planned {
    let expected = match formats {
        [] => "RFC 3339 time".to_owned(),
        formats => formats.iter().map(|format| format!("`{}`", format.value)).collect::<Vec<_>>().join(" or "),
    };
    let (read, zone) = check(formats, zone, notes);
    let is_of_numbers = read.iter().any(|format| matches!(format, Format::Epoch(_)));
    let index = notes.column(name, schema).filter(|index| {
        let kind = schema.field(*index).data_type();
        let is_number =
            matches!(kind, DataType::Int32 | DataType::Int64 | DataType::Float64 | DataType::Decimal128(..));
        if kind == &DataType::Utf8 || (is_number && is_of_numbers) {
            return true;
        }
        let units: Vec<String> = EPOCHS.iter().map(|(name, unit, _)| format!("`{name}` ({unit})")).collect();
        let what = match is_number {
            true => format!("say by `format` what it counts since 1970: {}", units.join(", ")),
            false => "`parse_timestamp` takes a string or a number; a timestamp need not be parsed".to_owned(),
        };
        notes.error(&name.at, format!("`{}` is {}: {what}", name.value, columns::type_name(kind)));
        false
    });
    let kernel = Parse { column: name.value.clone(), formats: read, expected, zone };
    replace(schema, index.map(|index| (index, columns::timestamp(), kernel)).into_iter().collect())
}

/// Formats and zone, which are what they are whatever the columns are.
pub fn check(
    formats: &[Located<String>],
    zone: Option<&Located<String>>,
    notes: &mut Notes<'_>,
) -> (Vec<Format>, Zone) {
    let mut read = Vec::new();
    for format in formats {
        match Format::new(&format.value) {
            Ok(format) => read.push(format),
            Err(message) => notes.error(&format.at, message),
        }
    }
    if formats.is_empty() {
        read.push(Format::Rfc3339);
    }
    let zone = zone.map_or(Ok(Zone::UTC), |name| timestamps::zone(&name.value).map_err(|message| (name, message)));
    let zone = zone.unwrap_or_else(|(name, message)| {
        notes.error(&name.at, message);
        Zone::UTC
    });
    (read, zone)
}
