//! How far partitions are done, for the group. What was sent is sent again until the group confirms it: a commit while the
//! group rebalances may be refused, or never be answered, and no further batch may come that would say the same.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{Offset, TopicPartitionList, error::KafkaResult};

use super::{client, topics::Partition};
use crate::kafka::offsets::known;

/// What the metadata of Tidemill's offsets begin with: those of other programs say nothing of its jobs. Older versions wrote
/// nothing else.
pub(super) const WORD: &str = "tidemill";

/// The metadata of a job's offsets.
pub(super) fn word(job: &str) -> String {
    format!("{WORD} {job}")
}

/// The job that wrote an offset with this metadata: `None` where it was not Tidemill, `Some(None)` where it did not say.
pub(super) fn job_of(metadata: &str) -> Option<Option<&str>> {
    match metadata.strip_prefix(WORD)? {
        "" => Some(None),
        rest => rest.strip_prefix(' ').map(Some),
    }
}
/// How long an answer is waited for.
const ANSWERED_AFTER: Duration = Duration::from_secs(5);

/// Offsets that the group does not have yet, as far as is known.
#[derive(Default)]
pub(super) struct Offsets {
    due: BTreeMap<Partition, u64>,
    sent: BTreeMap<Partition, (u64, Instant)>,
}

impl Offsets {
    /// A partition is done up to here.
    pub fn done(&mut self, partition: Partition, offset: u64) {
        self.due.insert(partition, offset);
    }

    /// What is to be sent now, of these partitions.
    pub fn take(&mut self, now: Instant, is_its: impl Fn(&Partition) -> bool) -> BTreeMap<Partition, u64> {
        for (partition, (offset, at)) in &self.sent {
            if now.duration_since(*at) >= ANSWERED_AFTER {
                self.due.entry(partition.clone()).or_insert(*offset);
            }
        }
        let due: BTreeMap<_, _> = self.due.extract_if(.., |partition, _| is_its(partition)).collect();
        self.sent.extend(due.iter().map(|(partition, offset)| (partition.clone(), (*offset, now))));
        due
    }

    /// The group has answered.
    pub fn answered(&mut self, result: &KafkaResult<()>, list: &TopicPartitionList) {
        client::committed(result);
        if result.is_err() {
            return;
        }
        for (topic, one, has) in known(list) {
            let partition = Partition::new(&topic, one);
            if self.sent.get(&partition).is_some_and(|(offset, _)| i64::try_from(*offset).is_ok_and(|it| it <= has)) {
                self.sent.remove(&partition);
            }
        }
    }

    /// All that these partitions have, which are this daemon's no longer.
    pub fn rest(&mut self, is_its: impl Fn(&Partition) -> bool) -> BTreeMap<Partition, u64> {
        let sent = self.sent.extract_if(.., |partition, _| is_its(partition));
        let mut rest: BTreeMap<_, _> = sent.map(|(partition, (offset, _))| (partition, offset)).collect();
        rest.extend(self.due.extract_if(.., |partition, _| is_its(partition)));
        rest
    }
}

/// What the brokers know of partitions, as the source counts.
pub(super) fn by_partition(known: Vec<(String, i32, i64)>) -> BTreeMap<Partition, u64> {
    let known = known.into_iter();
    known.map(|(topic, one, at)| (Partition::new(&topic, one), u64::try_from(at).unwrap_or(0))).collect()
}

/// A job's offsets as librdkafka takes them; `None` where there are none.
pub(super) fn offset_list(job: &str, offsets: &BTreeMap<Partition, u64>) -> Option<TopicPartitionList> {
    let word = word(job);
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for (partition, offset) in offsets {
        let mut one = list.add_partition(&partition.topic, partition.number);
        one.set_offset(Offset::Offset(i64::try_from(*offset).unwrap_or(i64::MAX))).ok()?;
        one.set_metadata(&word);
    }
    (!offsets.is_empty()).then_some(list)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rdkafka::error::{KafkaError, RDKafkaErrorCode};

    use super::*;

    fn list(partition: &Partition, offset: i64) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&partition.topic, partition.number, Offset::Offset(offset)).unwrap();
        list
    }

    #[test]
    fn what_the_group_does_not_confirm_is_sent_again() {
        let (mut offsets, begun) = (Offsets::default(), Instant::now());
        let one = Partition::new("topic", 0);
        let later = |times: u32| begun + ANSWERED_AFTER * times;
        let seven = BTreeMap::from([(one.clone(), 7)]);
        offsets.done(one.clone(), 7);
        assert_eq!(offsets.take(begun, |_| true), seven);
        assert!(offsets.take(begun, |_| true).is_empty(), "an answer is waited for");
        offsets.answered(&Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::RebalanceInProgress)), &list(&one, 7));
        assert_eq!(offsets.take(later(1), |_| true), seven, "it was refused");
        assert_eq!(offsets.take(later(2), |_| true), seven, "there was no answer");
        offsets.answered(&Ok(()), &list(&one, 6));
        assert_eq!(offsets.take(later(3), |_| true), seven, "an older one was confirmed");
        offsets.answered(&Ok(()), &list(&one, 7));
        assert!(offsets.take(later(4), |_| true).is_empty());
        offsets.done(one.clone(), 9);
        assert_eq!(offsets.take(later(4), |_| true), BTreeMap::from([(one.clone(), 9)]));
        offsets.done(one.clone(), 11);
        assert_eq!(offsets.take(later(5), |_| true), BTreeMap::from([(one.clone(), 11)]), "the newest");
        assert_eq!(offsets.rest(|_| true), BTreeMap::from([(one, 11)]), "it goes unconfirmed");
        assert!(offsets.take(later(9), |_| true).is_empty());
    }
}
