//! `parse_timestamp: { column, format, zone }`: text to an instant, in microseconds, UTC.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, TimestampMicrosecondBuilder},
    datatypes::SchemaRef,
    error::ArrowError,
};
use chrono_tz::Tz;
use tidemill_config::Located;

use super::{Kernel, Notes, Planned, replace, shown, timestamps};
use crate::{columns, expression::Bad};

#[derive(Debug)]
struct Parse {
    column: String,
    formats: Vec<timestamps::Format>,
    /// The formats as the job has them, for messages.
    expected: String,
    zone: Tz,
}

impl Kernel for Parse {
    fn apply(&self, values: &ArrayRef, bad: &mut Vec<Bad>) -> Result<ArrayRef, ArrowError> {
        let text = values.as_string::<i32>();
        let mut instants = TimestampMicrosecondBuilder::with_capacity(text.len());
        for (row, value) in text.iter().enumerate() {
            let Some(value) = value else {
                instants.append_null();
                continue;
            };
            let instant = self.formats.iter().find_map(|format| format.read(value, self.zone));
            if instant.is_none() {
                let detail = format!("column `{}`: {} is no {}", self.column, shown(value), self.expected);
                bad.push(Bad { row: row as u32, reason: "parse_timestamp", detail });
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
    let mut read = Vec::new();
    for format in formats {
        match timestamps::Format::new(&format.value) {
            Ok(format) => read.push(format),
            Err(message) => notes.error(&format.at, message),
        }
    }
    if formats.is_empty() {
        read.push(timestamps::Format::Rfc3339);
    }
    let zone = zone.map_or(Ok(Tz::UTC), |name| timestamps::zone(&name.value).map_err(|message| (name, message)));
    let zone = zone.unwrap_or_else(|(name, message)| {
        notes.error(&name.at, message);
        Tz::UTC
    });
    let instead = "Numbers become timestamps by `cast`, timestamps need not be parsed";
    let index = notes.text_column(name, schema, "parse_timestamp", instead);
    let kernel = Parse { column: name.value.clone(), formats: read, expected, zone };
    replace(schema, index.map(|index| (index, columns::timestamp(), kernel)).into_iter().collect())
}
