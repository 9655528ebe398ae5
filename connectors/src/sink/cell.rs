//! One cell of a record batch as a value for people and databases: text in the forms that SQLite and JSON readers expect.

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{
        DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
        Schema, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
        TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
    },
    util::display::{ArrayFormatter, FormatOptions},
};
use chrono::{DateTime, Days, NaiveDate, SecondsFormat, Utc};
use serde_json::{Map, Value};

use crate::codec::json_of;

fn rfc3339(at: Option<DateTime<Utc>>) -> Option<String> {
    Some(at?.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// A timestamp as RFC 3339 in UTC, with as many digits of the second as it has; `None` outside chrono's years.
pub(crate) fn timestamp_text(array: &dyn Array, row: usize, unit: TimeUnit) -> Option<String> {
    rfc3339(match unit {
        TimeUnit::Second => DateTime::from_timestamp(array.as_primitive::<TimestampSecondType>().value(row), 0),
        TimeUnit::Millisecond => {
            DateTime::from_timestamp_millis(array.as_primitive::<TimestampMillisecondType>().value(row))
        }
        TimeUnit::Microsecond => {
            DateTime::from_timestamp_micros(array.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        TimeUnit::Nanosecond => {
            Some(DateTime::from_timestamp_nanos(array.as_primitive::<TimestampNanosecondType>().value(row)))
        }
    })
}

/// A date as `2015-05-17`.
pub(crate) fn date_text(days: i32) -> Option<String> {
    let (epoch, distance) = (NaiveDate::default(), Days::new(u64::from(days.unsigned_abs())));
    let date = if days < 0 { epoch.checked_sub_days(distance) } else { epoch.checked_add_days(distance) };
    Some(date?.format("%Y-%m-%d").to_string())
}

/// A cell as JSON: numbers and booleans as such, bytes as lower-case hex, decimals as exact text.
pub(crate) fn json(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int8 => array.as_primitive::<Int8Type>().value(row).into(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt8 => array.as_primitive::<UInt8Type>().value(row).into(),
        DataType::UInt16 => array.as_primitive::<UInt16Type>().value(row).into(),
        DataType::UInt32 => array.as_primitive::<UInt32Type>().value(row).into(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float32 => array.as_primitive::<Float32Type>().value(row).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).into(),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            (0..items.len()).map(|item| json(&items, item)).collect()
        }
        DataType::Struct(fields) => {
            let columns = array.as_struct();
            let pairs = fields.iter().zip(columns.columns());
            Value::Object(pairs.map(|(field, column)| (field.name().clone(), json(column, row))).collect())
        }
        _ => Value::String(text(array, row)),
    }
}

/// A cell that is not null as text; nested ones as JSON, as the json codec writes it.
pub(crate) fn text(array: &dyn Array, row: usize) -> String {
    match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(row).to_owned(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).to_owned(),
        DataType::Utf8View => array.as_string_view().value(row).to_owned(),
        DataType::Timestamp(unit, _) => timestamp_text(array, row, *unit).unwrap_or_else(|| plain(array, row)),
        DataType::Date32 => {
            date_text(array.as_primitive::<Date32Type>().value(row)).unwrap_or_else(|| plain(array, row))
        }
        DataType::Decimal128(..) => array.as_primitive::<Decimal128Type>().value_as_string(row),
        DataType::List(_) | DataType::Struct(_) => nested(array, row),
        _ => plain(array, row),
    }
}

/// A cell as JSON, as the json codec writes it: bytes as base64, decimals as numbers with all their digits.
pub(crate) fn nested(array: &dyn Array, row: usize) -> String {
    json_of(array, row).unwrap_or_else(|| json(array, row).to_string())
}

fn plain(array: &dyn Array, row: usize) -> String {
    let options = FormatOptions::default();
    ArrayFormatter::try_new(array, &options).map_or_else(|error| error.to_string(), |f| f.value(row).to_string())
}

/// A row as a JSON object.
pub(crate) fn record(batch: &RecordBatch, row: usize) -> Map<String, Value> {
    let schema: &Schema = batch.schema_ref();
    let pairs = schema.fields().iter().zip(batch.columns());
    pairs.map(|(field, column)| (field.name().clone(), json(column, row))).collect()
}

/// Digits behind the second that a time has.
pub(super) fn fraction_digits(kind: &DataType) -> Option<u64> {
    match kind {
        DataType::Timestamp(TimeUnit::Second, _) => Some(0),
        DataType::Timestamp(TimeUnit::Millisecond, _) => Some(3),
        DataType::Timestamp(..) => Some(6),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{
            ArrayRef, BinaryArray, Date32Array, Decimal128Array, ListArray, StringArray, StructArray,
            TimestampMicrosecondArray,
        },
        buffer::OffsetBuffer,
        datatypes::Field,
    };

    use super::*;

    #[test]
    fn texts_are_what_databases_and_people_read() {
        let at = TimestampMicrosecondArray::from(vec![1_431_857_103_000_000, 1_431_857_103_000_001, -1]);
        let unit = TimeUnit::Microsecond;
        assert_eq!(timestamp_text(&at, 0, unit).unwrap(), "2015-05-17T10:05:03Z");
        assert_eq!(timestamp_text(&at, 1, unit).unwrap(), "2015-05-17T10:05:03.000001Z");
        assert_eq!(timestamp_text(&at, 2, unit).unwrap(), "1969-12-31T23:59:59.999999Z");
        assert_eq!(text(&Date32Array::from(vec![-1]), 0), "1969-12-31");
        assert_eq!(text(&Date32Array::from(vec![16_572]), 0), "2015-05-17");
        let decimal = Decimal128Array::from(vec![-105]).with_precision_and_scale(9, 2).unwrap();
        assert_eq!(text(&decimal, 0), "-1.05");
        assert_eq!(text(&BinaryArray::from(vec![b"\x00\xff".as_slice()]), 0), "00ff");
    }

    #[test]
    fn what_is_nested_is_written_as_the_json_codec_writes_it() {
        let amounts = Decimal128Array::from(vec![150, -5]).with_precision_and_scale(9, 2).unwrap();
        let list = ListArray::new(
            Arc::new(Field::new_list_field(amounts.data_type().clone(), true)),
            OffsetBuffer::from_lengths([1, 1]),
            Arc::new(amounts),
            None,
        );
        let bytes = BinaryArray::from(vec![b"\x00\xff".as_slice(), b"x"]);
        let fields: Vec<(Arc<Field>, ArrayRef)> = vec![
            (Arc::new(Field::new("b", DataType::Binary, true)), Arc::new(bytes)),
            (Arc::new(Field::new("l", list.data_type().clone(), true)), Arc::new(list)),
        ];
        let rows = StructArray::from(fields);
        assert_eq!(text(&rows, 0), r#"{"b":"AP8=","l":[1.50]}"#);
        assert_eq!(text(&rows, 1), r#"{"b":"eA==","l":[-0.05]}"#);
    }

    #[test]
    fn a_row_is_a_json_object() {
        let a: Arc<dyn Array> = Arc::new(StringArray::from(vec![Some("x\"\n"), None]));
        let batch = RecordBatch::try_from_iter_with_nullable([("a", a, true)]).unwrap();
        assert_eq!(Value::Object(record(&batch, 0)).to_string(), r#"{"a":"x\"\n"}"#);
        assert_eq!(Value::Object(record(&batch, 1)).to_string(), r#"{"a":null}"#);
    }
}
