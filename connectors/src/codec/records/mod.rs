//! Rows as records of their own, one each: the codecs `avro`, `protobuf` and `bytes` for sinks.
//!
//! [`Records`] is what a sink has; [`Records::prepare`] makes the [`Writer`] of its columns once, and asks the registry then.
//! Writing itself asks nobody. The formats are in [`avro`] and [`protobuf`]; [`cells`] takes
//! values out of arrays.
//!
//! The same rows and the same id of a schema always give the same bytes. A row that its format cannot hold is refused alone.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::RecordBatch,
    compute::can_cast_types,
    datatypes::{DataType, Fields},
};
use tidemill_config::model;

use super::{CodecError, PrepareError, Texts, avro, protobuf, rows::Bad, type_name};

pub(super) mod cells;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tree_tests;

use cells::{Cells, kind_of};

/// What a row became.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// Its bytes lie here.
    At(Range<usize>),
    /// A record without a value.
    Absent,
    /// It cannot be written: a short, stable word, and the sentence.
    Refused(&'static str, String),
}

/// Writes rows of some columns.
pub(crate) trait Writer: Send + Sync {
    /// Appends the record of each row to `out`. The rows have the columns that it was made for.
    fn write(&self, rows: &RecordBatch, out: &mut Vec<u8>) -> Result<Vec<Value>, CodecError>;
}

/// A codec for records.
pub(crate) struct Records(Kind);

enum Kind {
    Avro(Box<avro::Writing>),
    Protobuf(protobuf::Writing),
    Bytes(String),
}

/// The columns of rows, and those that need not be in a record, since they are its key or a header.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    pub fields: &'a Fields,
    pub spare: &'a [String],
}

impl Records {
    /// For the values of a topic; `None` where the codec writes lines.
    pub(crate) fn new(config: &model::Codec, topic: &str) -> Result<Option<Self>, CodecError> {
        Ok(Some(Self(match config {
            model::Codec::Avro(options) => {
                Kind::Avro(Box::new(avro::Writing::new(options, topic).map_err(CodecError)?))
            }
            model::Codec::Protobuf(options) => Kind::Protobuf(protobuf::Writing::new(options).map_err(CodecError)?),
            model::Codec::Bytes(column) => Kind::Bytes(column.clone()),
            model::Codec::Json | model::Codec::JsonWith(_) | model::Codec::Csv(_) => return Ok(None),
            model::Codec::Text | model::Codec::TextIn(_) | model::Codec::Parquet => return Ok(None),
        })))
    }

    /// The writer of these columns. Asks the registry, where there is one.
    pub(crate) async fn prepare(&self, columns: Columns<'_>) -> Result<Arc<dyn Writer>, PrepareError> {
        Ok(match &self.0 {
            Kind::Avro(avro) => Arc::new(avro.prepare(columns).await?),
            Kind::Protobuf(protobuf) => Arc::new(protobuf.writer(columns).map_err(PrepareError::Fatal)?),
            Kind::Bytes(column) => Arc::new(Bytes::new(column, columns.fields).map_err(PrepareError::Fatal)?),
        })
    }

    /// Whether the columns fit the format, as far as that shows without asking anybody.
    pub(crate) fn fits(&self, columns: Columns<'_>) -> Result<(), String> {
        match &self.0 {
            Kind::Avro(avro) => avro.fits(columns),
            Kind::Protobuf(protobuf) => protobuf.writer(columns).map(drop),
            Kind::Bytes(column) => Bytes::new(column, columns.fields).map(drop),
        }
    }

    /// Whether [`Self::prepare`] would work, as far as that shows without changing anything.
    pub(crate) async fn check(&self, columns: Option<Columns<'_>>) -> Result<(), PrepareError> {
        match (&self.0, columns) {
            (Kind::Avro(avro), columns) => avro.check(columns).await,
            (_, Some(columns)) => self.prepare(columns).await.map(drop),
            (_, None) => Ok(()),
        }
    }
}

/// Writes each row by `one`, which appends a record; where it fails, nothing of it stays.
pub(super) fn each(
    rows: &RecordBatch,
    out: &mut Vec<u8>,
    mut one: impl FnMut(&[Cells], usize, &mut Vec<u8>) -> Result<(), Bad>,
) -> Result<Vec<Value>, CodecError> {
    let bind = |(at, array)| {
        let name = |error| CodecError(format!("column {}: {error}", rows.schema_ref().field(at).name()));
        Cells::new(array).map_err(name)
    };
    let cells = rows.columns().iter().enumerate().map(bind).collect::<Result<Vec<_>, _>>()?;
    let each = (0..rows.num_rows()).map(|row| {
        let start = out.len();
        match one(&cells, row, out) {
            Ok(()) => Value::At(start..out.len()),
            Err(bad) => {
                out.truncate(start);
                let (reason, detail) = bad.told();
                Value::Refused(reason, detail)
            }
        }
    });
    Ok(each.collect())
}

/// Columns that a schema has no field for, or of a type whose values cannot be taken.
pub(super) fn nowhere(columns: Columns<'_>, has: impl Fn(&str) -> bool) -> Result<(), String> {
    if let Some(field) = columns.fields.iter().find(|field| !is_taken(field.data_type())) {
        let (name, kind) = (field.name(), type_name(field.data_type()));
        return Err(format!(
            "column `{name}` is {kind}, and values of that type are not written: leave it out by `drop: [{name}]`"
        ));
    }
    let lost = columns.fields.iter().find(|field| !has(field.name()) && !columns.spare.contains(field.name()));
    lost.map_or(Ok(()), |field| {
        let name = field.name();
        Err(format!(
            "column `{name}` ({}) has no field in the schema: add one, or leave the column out by `drop: [{name}]`",
            type_name(field.data_type())
        ))
    })
}

/// Whether [`Cells`] has values of the type.
fn is_taken(kind: &DataType) -> bool {
    let taken = kind_of(kind);
    match &taken {
        DataType::List(item) => is_taken(item.data_type()),
        // Their members are looked at where their fields are.
        DataType::Struct(_) => true,
        taken => taken == kind || can_cast_types(kind, taken),
    }
}

/// Writes one column as it is.
struct Bytes {
    at: usize,
}

impl Bytes {
    fn new(column: &str, fields: &Fields) -> Result<Self, String> {
        let Some((at, field)) = fields.find(column) else {
            let names: Vec<_> = fields.iter().map(|field| field.name().as_str()).collect();
            return Err(format!("codec.column: the rows have no column `{column}`; they have {}", names.join(", ")));
        };
        match kind_of(field.data_type()) {
            DataType::Binary => Ok(Self { at }),
            // Others than strings are texts only where nothing better is known.
            DataType::Utf8 if type_name(field.data_type()) == "string" => Ok(Self { at }),
            _ => Err(format!(
                "codec.column: the column `{column}` is {}, and has to be binary or string: `cast: {{ {column}: string }}`",
                type_name(field.data_type())
            )),
        }
    }
}

impl Writer for Bytes {
    fn write(&self, rows: &RecordBatch, out: &mut Vec<u8>) -> Result<Vec<Value>, CodecError> {
        let values = Texts::new(
            rows.columns().get(self.at).ok_or_else(|| CodecError("a batch lacks the column of bytes".into()))?,
        )?;
        let one = |row| {
            values.get(row).map_or(Value::Absent, |value| {
                let start = out.len();
                out.extend_from_slice(value);
                Value::At(start..out.len())
            })
        };
        Ok((0..rows.num_rows()).map(one).collect())
    }
}
