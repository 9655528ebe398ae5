//! Dead letters as Kafka Connect writes them: the original record as it was, and why it is here in headers of Connect's
//! names, so that tools that read its dead letter queues read these. What Connect has no name for is under `tidemill.`.
//!
//! Names and meanings: `DeadLetterQueueReporter` in Kafka's `connect/runtime`; all values are texts.

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};

use super::encode::Chunk;
use crate::{codec::Texts, sink::SinkError};

const CONNECT: &str = "__connect.errors.";

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
const OWN: [&str; 7] = ["source", "shard", "position", "step", "reason", "rejected_at", "batch"];

enum From {
    Column(&'static str),
    Always(&'static str),
    /// Topic, partition or offset, where the record came from Kafka.
    Origin(usize),
    /// Which of Connect's stages the step is like.
    Stage,
}

/// The records of rows of dead letters.
pub(super) fn chunk(rows: &RecordBatch) -> Result<Chunk, SinkError> {
    let text = |name: &str| -> Option<&StringArray> { rows.column_by_name(name)?.as_any().downcast_ref() };
    let value = |column: Option<&StringArray>, row: usize| -> Option<String> {
        column.filter(|column| column.is_valid(row)).map(|column| column.value(row).to_owned())
    };
    let mut chunk = Chunk::default();
    for row in 0..rows.num_rows() {
        let start = chunk.bytes.len();
        match (value(text("record"), row), value(text("record_base64"), row)) {
            (Some(record), _) => chunk.bytes.extend_from_slice(record.as_bytes()),
            (None, Some(base64)) => chunk.bytes.extend(crate::codec::from_base64(&base64)),
            (None, None) => {
                chunk.values.push(None);
                continue;
            }
        }
        chunk.values.push(Some(start..chunk.bytes.len()));
    }
    let origins: Vec<Option<[String; 3]>> =
        (0..rows.num_rows()).map(|row| origin(&value(text("shard"), row)?, &value(text("position"), row)?)).collect();
    let made = |from: &From| -> ArrayRef {
        let each = |row: usize| match from {
            From::Column(name) => value(text(name), row),
            From::Always(always) => Some((*always).to_owned()),
            From::Origin(part) => origins[row].as_ref().map(|origin| origin[*part].clone()),
            From::Stage => value(text("step"), row).map(|step| stage(&step).to_owned()),
        };
        std::sync::Arc::new((0..rows.num_rows()).map(each).collect::<StringArray>())
    };
    let texts = |array: &ArrayRef| Texts::new(array).map_err(|error| SinkError::Fatal(error.to_string()));
    for (name, from) in &HEADERS {
        chunk.headers.push((format!("{CONNECT}{name}"), texts(&made(from))?));
    }
    for name in OWN {
        if let Some(column) = rows.column_by_name(name) {
            chunk.headers.push((format!("tidemill.{name}"), texts(column)?));
        }
    }
    if let Some(keys) = rows.column_by_name("key") {
        chunk.keys = Some(texts(keys)?);
    }
    Ok(chunk)
}

/// A record's topic, partition and offset, where its shard is a partition: `SOURCE/TOPIC/PARTITION@INCARNATION`.
fn origin(shard: &str, position: &str) -> Option<[String; 3]> {
    let (_, part) = shard.split_once('/')?;
    let (topic, partition) = part.split_once('@')?.0.rsplit_once('/')?;
    let numeric = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_partition = numeric(partition) && numeric(position);
    is_partition.then(|| [topic.to_owned(), partition.to_owned(), position.to_owned()])
}

/// Connect knows where a record was: being read, being changed, or being written.
fn stage(step: &str) -> &'static str {
    match step {
        "read" => "TASK_POLL",
        "decode" => "VALUE_CONVERTER",
        step if step.starts_with(|first: char| first.is_ascii_digit()) => "TRANSFORMATION",
        _ => "TASK_PUT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
