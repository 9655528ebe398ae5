//! Offsets as librdkafka gives them.

use std::time::Duration;

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaResult,
};

/// Topic, partition and offset of each partition whose offset is known: the others have no leader now, or were not answered.
pub(crate) fn known(list: &TopicPartitionList) -> Vec<(String, i32, i64)> {
    let answered = list.elements().into_iter().filter(|one| one.error().is_ok());
    answered
        .filter_map(|one| match one.offset() {
            Offset::Offset(offset) => Some((one.topic().to_owned(), one.partition(), offset)),
            _ => None,
        })
        .collect()
}

/// A list of partitions, each at its end.
pub(crate) fn at_ends<'p>(partitions: impl IntoIterator<Item = (&'p str, i32)>) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (topic, partition) in partitions {
        list.add_partition_offset(topic, partition, Offset::End)?;
    }
    Ok(list)
}

/// Where these partitions end, asked for all at once: for a reader of committed records their last stable offset.
///
/// # Errors
/// None answered in time.
pub(crate) fn ends<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    at_ends: TopicPartitionList,
    timeout: Duration,
) -> KafkaResult<Vec<(String, i32, i64)>> {
    Ok(known(&client.offsets_for_times(at_ends, timeout)?))
}
