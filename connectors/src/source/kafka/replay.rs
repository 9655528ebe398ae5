//! Reads spans again that a plan names: by a client of its own, so that nothing of the batches ahead comes between.

use std::time::{Duration, Instant};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{
    chunk::{Builder, Chunk},
    client::{ANSWER_LIMIT, Context},
    core::Core,
    topics::Partition,
};
use crate::{
    kafka::{is_denied, native},
    source::SourceError,
};

/// So long without a word from the brokers, and the try is given up.
const SILENCE: Duration = Duration::from_secs(30);

/// How a span could be read.
pub(super) enum Replayed {
    /// All of it that the topic has. A compacted topic may have fewer records than once.
    All(Chunk),
    /// The topic begins behind the span's start, or ends before its end: `[low, high)`.
    Gone(u64, u64),
}

/// The records of `[from, to)`. Blocks.
pub(super) fn replay(
    core: &Core,
    consumer: &BaseConsumer<Context>,
    partition: &Partition,
    (from, to): (u64, u64),
    even_if_gone: bool,
) -> Result<Replayed, SourceError> {
    let what = format!("reading {partition} [{from}, {to}) again");
    let failed = |error: KafkaError| core.failed(what.clone(), &partition.topic, &error);
    let (low, high) = watermarks(consumer, partition, ANSWER_LIMIT).map_err(failed)?;
    let begin = if even_if_gone { from.max(low).min(high) } else { from };
    if !even_if_gone && (from < low || to > high) {
        return Ok(Replayed::Gone(low, high));
    }
    let mut builder = Builder::new(&core.form, partition);
    let end = to.min(high);
    if begin >= end {
        return Ok(Replayed::All(builder.finish()));
    }
    assign(consumer, partition, begin).map_err(failed)?;
    let mut heard = Instant::now();
    let mut at = begin;
    // From here it was read once more.
    let mut again_from = None;
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) if message.topic() == &*partition.topic && message.partition() == partition.number => {
                heard = Instant::now();
                let offset = u64::try_from(message.offset()).unwrap_or_default();
                if offset < at {
                    continue;
                }
                if offset >= end {
                    break;
                }
                builder.push(&message);
                at = offset + 1;
                if at == end {
                    break;
                }
            }
            // Of the partition that was read before.
            Some(Ok(_)) => {}
            // Ends of an older assignment are dropped by the client. An end before the span's is that of a leader that did not
            // know all yet, or nothing but the gaps of compaction lies behind it: the leader is asked where it ends now, and
            // read once more.
            Some(Err(KafkaError::PartitionEOF(number))) if number == partition.number => {
                at =
                    native::position(consumer.client(), &partition.topic, partition.number).map_or(at, |to| at.max(to));
                if at >= end || again_from == Some(at) {
                    break;
                }
                if watermarks(consumer, partition, ANSWER_LIMIT).map_err(failed)?.1 >= end {
                    again_from = Some(at);
                    assign(consumer, partition, at).map_err(failed)?;
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => {}
            Some(Err(error)) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                    let (low, high) = watermarks(consumer, partition, ANSWER_LIMIT).map_err(failed)?;
                    return Ok(Replayed::Gone(low, high));
                }
                code if is_denied(code) => return Err(failed(error)),
                _ => tracing::debug!(%partition, %error, "kafka: reading again"),
            },
            None => {}
        }
        if heard.elapsed() > SILENCE {
            return Err(core.transient(what, format!("nothing came in {SILENCE:?}")));
        }
    }
    let _ = consumer.unassign();
    Ok(Replayed::All(builder.finish()))
}

fn assign(consumer: &BaseConsumer<Context>, partition: &Partition, at: u64) -> Result<(), KafkaError> {
    let mut list = TopicPartitionList::with_capacity(1);
    let offset = Offset::Offset(i64::try_from(at).unwrap_or(i64::MAX));
    list.add_partition_offset(&partition.topic, partition.number, offset)?;
    consumer.assign(&list)
}

/// The first offset that is there, and the last stable one.
pub(super) fn watermarks(
    consumer: &BaseConsumer<Context>,
    partition: &Partition,
    limit: Duration,
) -> Result<(u64, u64), KafkaError> {
    let (low, high) = consumer.fetch_watermarks(&partition.topic, partition.number, limit)?;
    Ok((u64::try_from(low).unwrap_or_default(), u64::try_from(high).unwrap_or_default()))
}
