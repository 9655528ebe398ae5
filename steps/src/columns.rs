//! Columns: types as the job names them, schemas by name, and the nearest name for error messages.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array},
    datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit},
    error::ArrowError,
};
use tidemill_config::Type;

/// The Arrow type of a job's type. Timestamps are microseconds, UTC.
pub fn data_type(kind: &Type) -> DataType {
    match kind {
        Type::String => DataType::Utf8,
        Type::Int32 => DataType::Int32,
        Type::Int64 => DataType::Int64,
        Type::Float64 => DataType::Float64,
        Type::Boolean => DataType::Boolean,
        Type::Timestamp => timestamp(),
        Type::Date => DataType::Date32,
        Type::Decimal(precision, scale) => DataType::Decimal128(*precision, *scale),
        Type::Binary => DataType::Binary,
        Type::List(item) => DataType::List(Arc::new(Field::new_list_field(data_type(item), true))),
        Type::Struct(fields) => {
            DataType::Struct(fields.iter().map(|(name, kind)| Field::new(name, data_type(kind), true)).collect())
        }
    }
}

/// `timestamp`: microseconds since the epoch, UTC.
pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The job's type that holds the values of any Arrow type: what a step gives where an expression has another type
/// (`to_timestamp` gives nanoseconds without a zone). A type that no job can name and nothing can hold stays as it is.
pub fn job_type(kind: &DataType) -> DataType {
    match kind {
        DataType::Utf8View | DataType::LargeUtf8 | DataType::Null => DataType::Utf8,
        DataType::Time32(_) | DataType::Time64(_) | DataType::Interval(_) | DataType::Duration(_) => DataType::Utf8,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Float16 | DataType::Float32 => DataType::Float64,
        DataType::Timestamp(..) => timestamp(),
        DataType::Date64 => DataType::Date32,
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Decimal256(precision, scale) => DataType::Decimal128((*precision).min(38), *scale),
        DataType::BinaryView | DataType::LargeBinary | DataType::FixedSizeBinary(_) => DataType::Binary,
        DataType::Dictionary(_, values) => job_type(values),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => {
            DataType::List(Arc::new(Field::new_list_field(job_type(item.data_type()), true)))
        }
        DataType::Struct(fields) => DataType::Struct(
            fields.iter().map(|field| Field::new(field.name(), job_type(field.data_type()), true)).collect(),
        ),
        other => other.clone(),
    }
}

/// That columns of a job can have this type, of which [`job_type`] was made. The error is a sentence.
pub fn is_of_a_job(kind: &DataType) -> Result<(), String> {
    match kind {
        DataType::Utf8
        | DataType::Int32
        | DataType::Int64
        | DataType::Float64
        | DataType::Boolean
        | DataType::Timestamp(TimeUnit::Microsecond, _)
        | DataType::Date32
        | DataType::Decimal128(..)
        | DataType::Binary => Ok(()),
        DataType::List(item) => is_of_a_job(item.data_type()),
        DataType::Struct(fields) => fields.iter().try_for_each(|field| is_of_a_job(field.data_type())),
        other => {
            let name = other.to_string();
            let name = name.split('(').next().unwrap_or_default();
            Err(format!(
                "its type is {name}, which no column of a job can have. Take a part of it, or make a list or a struct \
                 (`named_struct('a', a)`) of it"
            ))
        }
    }
}

/// A type as a job writes it.
pub fn type_name(kind: &DataType) -> String {
    match kind {
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => "string".into(),
        DataType::Int32 => "int32".into(),
        DataType::Int64 => "int64".into(),
        DataType::Float64 => "float64".into(),
        DataType::Boolean => "boolean".into(),
        DataType::Timestamp(..) => "timestamp".into(),
        DataType::Date32 => "date".into(),
        DataType::Decimal128(precision, scale) => format!("decimal({precision},{scale})"),
        DataType::Binary => "binary".into(),
        DataType::List(item) => format!("list<{}>", type_name(item.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|field| format!("{}: {}", field.name(), type_name(field.data_type()))).collect();
            format!("struct<{}>", fields.join(", "))
        }
        other => other.to_string(),
    }
}

/// A schema whose columns may all be null, without metadata, in the job's types.
pub(crate) fn plain(schema: &Schema) -> SchemaRef {
    schema_of(schema.fields().iter().map(|field| (field.name().as_str(), job_type(field.data_type()))))
}

/// A schema of nullable columns.
pub(crate) fn schema_of<'a>(columns: impl IntoIterator<Item = (&'a str, DataType)>) -> SchemaRef {
    let fields: Fields = columns.into_iter().map(|(name, kind)| Field::new(name, kind, true)).collect();
    Arc::new(Schema::new(fields))
}

/// A batch, also where it has no columns.
pub(crate) fn batch_of(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_new_with_options(
        Arc::clone(schema),
        columns,
        &RecordBatchOptions::new().with_row_count(Some(rows)),
    )
}

/// The batch's columns in the order of `schema`, by name; null where the batch lacks one.
pub(crate) fn widen(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = schema
        .fields()
        .iter()
        .map(|field| match batch.column_by_name(field.name()) {
            Some(column) => Arc::clone(column),
            None => new_null_array(field.data_type(), batch.num_rows()),
        })
        .collect();
    batch_of(schema, columns, batch.num_rows())
}

/// The names of a schema's columns.
pub(crate) fn names(schema: &Schema) -> Vec<&str> {
    schema.fields().iter().map(|field| field.name().as_str()).collect()
}

/// The name that was probably meant, where one is near enough.
pub(crate) fn nearest<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (wrong.chars().count() / 3).max(1);
    names
        .into_iter()
        .map(|name| (distance(&wrong.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `; did you mean ...? There are: ...`, as far as there is something to say.
pub fn hint<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str> + Clone) -> String {
    /// More names than this are counted, not listed.
    const LISTED: usize = 12;
    let meant = nearest(wrong, names.clone()).map(|name| format!("; did you mean `{name}`?")).unwrap_or(".".into());
    let all: Vec<&str> = names.into_iter().collect();
    let listed = all.iter().take(LISTED).copied().collect::<Vec<_>>().join(", ");
    match all.len() {
        0 => format!("{meant} There are none"),
        count if count > LISTED => format!("{meant} There are: {listed} and {} more", count - LISTED),
        _ => format!("{meant} There are: {listed}"),
    }
}

/// Edits between two words; two neighbours swapped are one edit.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(rows[i - 2][j - 2] + 1);
            }
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_near() {
        for (wrong, expected) in
            [("agnet", Some("agent")), ("Agent", Some("agent")), ("reponse", Some("response")), ("xyz", None)]
        {
            assert_eq!(nearest(wrong, ["response", "agent", "bytes"]), expected, "{wrong}");
        }
    }

    #[test]
    fn every_type_of_a_job_is_kept_as_it_is() {
        let kinds = [
            Type::String,
            Type::Int32,
            Type::Int64,
            Type::Float64,
            Type::Boolean,
            Type::Timestamp,
            Type::Date,
            Type::Decimal(10, 2),
            Type::Binary,
            Type::List(Box::new(Type::Struct(vec![("a".into(), Type::Int64)]))),
        ];
        for kind in kinds {
            let arrow = data_type(&kind);
            assert_eq!(job_type(&arrow), arrow, "{kind:?}");
        }
        assert_eq!(type_name(&data_type(&Type::List(Box::new(Type::Decimal(5, 1))))), "list<decimal(5,1)>");
    }
}
