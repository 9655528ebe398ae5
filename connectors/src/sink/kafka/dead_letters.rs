//! Dead letters as Kafka Connect writes them: the original record as it was, and why it is here in headers of Connect's
//! names, so that tools that read its dead letter queues read these. What Connect has no name for is under `tidemill.`.
//!
//! A dead letter has no further place to go to: one that is too long for a record is cut until it fits, and says so.
//!
//! Names and meanings: `DeadLetterQueueReporter` in Kafka's `connect/runtime`; all values are texts.

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};

use super::encode::Chunk;
use crate::{
    codec::Texts,
    sink::{REJECTS, SinkError},
    source::kafka::origin,
};

const CONNECT: &str = "__connect.errors.";
/// Tells that the value is only the beginning of the record, and how many bytes that had.
const SHORTENED: &str = "tidemill.shortened_from_bytes";
/// What that header takes at most.
const SHORTENED_BYTES: usize = SHORTENED.len() + 20;
/// What a header has beside its name and its value: their lengths.
const HEADER_OVERHEAD: usize = 8;
/// A sentence, which is in two headers, has this part of a record at most.
const DETAIL_PART: usize = 8;

/// Connect's headers, and what of a dead letter is in each.
const HEADERS: [(&str, From); 10] = [
    ("topic", From::Origin(0)),
    ("partition", From::Origin(1)),
    ("offset", From::Origin(2)),
    ("connector.name", From::Column("job")),
    ("task.id", From::Always("0")),
    ("stage", From::Stage),
    ("class.name", From::Column("step")),
    ("exception.class.name", From::Column("reason")),
    ("exception.message", From::Column("detail")),
    ("exception.stacktrace", From::Column("detail")),
];
/// Tidemill's own: the dead letter's other columns.
const OWN: [&str; 9] = ["source", "shard", "position", "step", "reason", "rejected_at", "batch", "file", "line"];

/// Of these, those that say where in a file a record was.
const PLACE: [&str; 2] = ["file", "line"];

enum From {
    Column(&'static str),
    Always(&'static str),
    /// Topic, partition or offset, where the record came from Kafka.
    Origin(usize),
    /// Where the record was: Connect's word for it.
    Stage,
}

/// The records of rows of dead letters, each of at most `max_bytes`.
pub(super) fn chunk(rows: &RecordBatch, max_bytes: usize) -> Result<Chunk, SinkError> {
    let text = |name: &str| -> Option<&StringArray> { rows.column_by_name(name)?.as_any().downcast_ref() };
    let value = |column: Option<&StringArray>, row: usize| -> Option<String> {
        column.filter(|column| column.is_valid(row)).map(|column| column.value(row).to_owned())
    };
    let mut chunk = Chunk::default();
    let origins: Vec<Option<[String; 3]>> =
        (0..rows.num_rows()).map(|row| origin(&value(text("shard"), row)?, &value(text("position"), row)?)).collect();
    let made = |from: &From| -> ArrayRef {
        let each = |row: usize| match from {
            From::Column("detail") => value(text("detail"), row).map(|detail| cut(detail, max_bytes / DETAIL_PART)),
            From::Column(name) => value(text(name), row),
            From::Always(always) => Some((*always).to_owned()),
            From::Origin(part) => origins[row].as_ref().map(|origin| origin[*part].clone()),
            From::Stage => {
                value(text("step"), row).map(|step| stage(value(text("shard"), row).as_deref(), &step).to_owned())
            }
        };
        std::sync::Arc::new((0..rows.num_rows()).map(each).collect::<StringArray>())
    };
    let texts = |array: &ArrayRef| Texts::new(array).map_err(|error| SinkError::Fatal(error.to_string()));
    for (name, from) in &HEADERS {
        chunk.headers.push((format!("{CONNECT}{name}"), texts(&made(from))?));
    }
    for name in OWN {
        // Records that come out of no file have none.
        let has_value = |column: &&ArrayRef| !PLACE.contains(&name) || column.null_count() < column.len();
        if let Some(column) = rows.column_by_name(name).filter(has_value) {
            chunk.headers.push((format!("tidemill.{name}"), texts(column)?));
        }
    }
    if let Some(keys) = rows.column_by_name("key") {
        chunk.keys = Some(texts(keys)?);
    }
    let mut shortened = vec![None; rows.num_rows()];
    for (row, full) in shortened.iter_mut().enumerate() {
        let beside = chunk.beside_value(row) + HEADER_OVERHEAD * (chunk.headers.len() + 1);
        let too_small = || {
            SinkError::Fatal(format!(
                "a dead letter's headers take {beside} bytes, and a record may have {max_bytes}: raise `message.max.bytes` in \
                 `properties` of `dead_letters`"
            ))
        };
        let room = max_bytes.checked_sub(beside).ok_or_else(too_small)?;
        let record = match (value(text("record"), row), value(text("record_base64"), row)) {
            // Where there are both, the text is what was decoded, and these are the bytes.
            (_, Some(base64)) => crate::codec::from_base64(&base64),
            (Some(record), None) => record.into_bytes(),
            (None, None) => {
                chunk.values.push(None);
                continue;
            }
        };
        let mut kept = &record[..];
        if record.len() > room {
            kept = beginning(&record, room.checked_sub(SHORTENED_BYTES).ok_or_else(too_small)?);
            *full = Some(record.len().to_string());
        }
        let start = chunk.bytes.len();
        chunk.bytes.extend_from_slice(kept);
        chunk.values.push(Some(start..chunk.bytes.len()));
    }
    if shortened.iter().any(Option::is_some) {
        let column: ArrayRef = std::sync::Arc::new(StringArray::from(shortened));
        chunk.headers.push((SHORTENED.to_owned(), texts(&column)?));
    }
    Ok(chunk)
}

/// A sentence of at most `most` bytes.
fn cut(text: String, most: usize) -> String {
    const REST: &str = "…";
    if text.len() <= most {
        return text;
    }
    format!("{}{REST}", &text[..text.floor_char_boundary(most.saturating_sub(REST.len()))])
}

/// The first `most` bytes of a record; of a text no half of a character.
fn beginning(record: &[u8], most: usize) -> &[u8] {
    let end = std::str::from_utf8(record).map_or(most, |text| text.floor_char_boundary(most));
    &record[..end.min(record.len())]
}

/// Connect knows where a record was: being read, being changed, or being written. What a sink refused comes from a shard of
/// its own; a step may have any name.
fn stage(shard: Option<&str>, step: &str) -> &'static str {
    match step {
        _ if shard.is_some_and(|shard| shard.starts_with(REJECTS)) => "TASK_PUT",
        "read" => "TASK_POLL",
        "decode" => "VALUE_CONVERTER",
        _ => "TRANSFORMATION",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn letters(rows: &[(&str, &str)]) -> RecordBatch {
        let column = |name: &'static str, values: Vec<&str>| -> (&str, ArrayRef) {
            (name, std::sync::Arc::new(StringArray::from(values)))
        };
        let (details, records) = rows.iter().copied().unzip();
        RecordBatch::try_from_iter([
            column("step", vec!["out"; rows.len()]),
            column("detail", details),
            column("record", records),
        ])
        .unwrap()
    }

    fn header<'c>(chunk: &'c Chunk, name: &str, row: usize) -> Option<&'c str> {
        let (_, texts) = chunk.headers.iter().find(|(known, _)| known == name)?;
        texts.get(row).map(|value| std::str::from_utf8(value).unwrap())
    }

    #[test]
    fn a_record_that_is_too_long_is_cut_until_it_fits_and_says_how_long_it_was() {
        const MOST: usize = 2_000;
        let (record, detail) = ("ä".repeat(MOST), "ö".repeat(MOST));
        let chunk = chunk(&letters(&[("why", "{}"), ("why", &record), (&detail, &record)]), MOST).unwrap();
        let value = |row: usize| chunk.value(row).unwrap();
        assert_eq!((value(0), header(&chunk, SHORTENED, 0)), (&b"{}"[..], None));
        for row in [1, 2] {
            assert!(value(row).len() > MOST / 8, "{}", value(row).len());
            assert!(value(row).len() + chunk.beside_value(row) <= MOST);
            assert!(record.starts_with(std::str::from_utf8(value(row)).unwrap()));
            assert_eq!(header(&chunk, SHORTENED, row), Some("4000"));
        }
        assert_eq!(header(&chunk, "__connect.errors.exception.message", 1), Some("why"));
        let told = header(&chunk, "__connect.errors.exception.message", 2).unwrap();
        assert!(told.len() <= MOST / DETAIL_PART && told.ends_with("ö…"), "{told}");
    }

    #[test]
    fn headers_that_no_record_can_hold_are_an_error_with_the_way_out() {
        let error = chunk(&letters(&[("why", "{}")]), 100).unwrap_err().to_string();
        assert!(error.contains("raise `message.max.bytes` in `properties` of `dead_letters`"), "{error}");
    }

    #[test]
    fn a_stage_is_of_where_the_record_was_whatever_the_step_is_called() {
        for (shard, step, expected) in [
            ("in/orders/3@c", "read", "TASK_POLL"),
            ("in/orders/3@c", "decode", "VALUE_CONVERTER"),
            ("in/orders/3@c", "2-parse_timestamp", "TRANSFORMATION"),
            ("in/orders/3@c", "num", "TRANSFORMATION"),
            ("in/orders/3@c", "sinks.out", "TRANSFORMATION"),
            ("rejects:out", "out", "TASK_PUT"),
            ("rejects:decode", "decode", "TASK_PUT"),
        ] {
            assert_eq!(stage(Some(shard), step), expected, "{shard} {step}");
        }
        assert_eq!(stage(None, "num"), "TRANSFORMATION");
    }

    #[test]
    fn only_records_of_kafka_have_a_topic() {
        let parts = |topic: &str, partition: &str, offset: &str| Some([topic, partition, offset].map(str::to_owned));
        assert_eq!(origin("in/orders.eu/3@cluster:topic", "1042"), parts("orders.eu", "3", "1042"));
        for (shard, position) in [
            ("posts/6f9e", "7"),
            ("access", "3:12"),
            ("in/a/b@c", "7"),
            ("in/a/3@c", "3:12"),
            ("in/a/3", "7"),
            ("", ""),
        ] {
            assert_eq!(origin(shard, position), None, "{shard}");
        }
    }
}
