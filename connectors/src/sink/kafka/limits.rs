//! What a topic takes, and how a refusal of the brokers is brought down to the rows that are at fault.
//!
//! Brokers look at a batch of records as it is sent, and refuse it as a whole: for its length (`max.message.bytes`), or for
//! one record of it, which newer ones name. Where the topic's configuration can be asked for, the sink keeps to it. What is
//! refused all the same is sent again: in shorter batches, in the end each record in one of its own, until the answer names
//! rows. They are rejects, and the others are written. Each try has fewer rows than the one before, or shorter batches.

use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode as Code;

use super::cluster::Refusal;

/// What is asked of a topic is asked again after so long, where a row would be refused by it.
const FRESH: Duration = Duration::from_secs(60);
/// Batches that are refused for their length are made so many times shorter.
const SHORTER: usize = 10;

/// What a topic takes, as far as is known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    /// It keeps the last record of each key, and takes none without one.
    pub(super) compacted: bool,
    /// A batch of records, compressed: the topic's `max.message.bytes`.
    pub(super) max_bytes: Option<usize>,
    /// What batches may have, where longer ones were refused.
    pub(super) batch_bytes: Option<usize>,
    /// When it was asked.
    pub(super) asked: Option<Instant>,
}

impl Limits {
    /// Whether somebody may have changed it since.
    pub(super) fn is_old(&self) -> bool {
        self.asked.is_some_and(|at| at.elapsed() > FRESH)
    }
}

/// How rows are sent again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// Without these, which are at fault.
    Without(Vec<(u64, Code)>),
    /// In batches of at most so many bytes: the brokers refused some for their length.
    Shorter(usize),
    /// Each in a batch of its own: the brokers refused some, and do not say for which record.
    Alone,
}

impl Again {
    /// What follows from refusals, of which `size` knows the records' bytes, where batches had at most `batch_bytes`.
    /// `None`: nothing was refused for the sake of a row.
    pub(super) fn of(refusals: &[Refusal], size: impl Fn(u64) -> usize, batch_bytes: usize) -> Option<Self> {
        let is_aside = |refusal: &&Refusal| refusal.code == Code::InvalidDifferentRecord;
        // Where a broker names the records, it names those that are not at fault too.
        let named = |partition: i32| refusals.iter().filter(is_aside).any(|one| one.partition == partition);
        let alone = batch_bytes <= 1;
        let at_fault = |refusal: &&Refusal| match is_too_long(refusal.code) {
            // Behind another record it would not have been put into the batch.
            true => alone || size(refusal.row) >= batch_bytes,
            false => alone || named(refusal.partition),
        };
        let refused = || refusals.iter().filter(|refusal| !is_aside(refusal));
        let rows: Vec<_> = refused().filter(at_fault).map(|refusal| (refusal.row, refusal.code)).collect();
        if !rows.is_empty() {
            return Some(Self::Without(rows));
        }
        let lengths = refused().any(|refusal| is_too_long(refusal.code));
        match refused().next() {
            None => None,
            Some(_) if lengths => Some(Self::Shorter((batch_bytes / SHORTER).max(1))),
            Some(_) => Some(Self::Alone),
        }
    }
}

/// Whether a batch was refused for its length.
pub(super) fn is_too_long(code: Code) -> bool {
    matches!(code, Code::MessageSizeTooLarge | Code::MessageBatchTooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusals(rows: &[(u64, i32, Code)]) -> Vec<Refusal> {
        rows.iter().map(|(row, partition, code)| Refusal { row: *row, partition: *partition, code: *code }).collect()
    }

    #[test]
    fn a_refusal_is_brought_down_to_the_rows_that_are_at_fault() {
        use Code::{InvalidDifferentRecord as Aside, InvalidRecord as Bad, MessageSizeTooLarge as Long};
        let size = |row: u64| if row == 7 { 5_000 } else { 200 };
        let without = |rows: &[(u64, Code)]| Some(Again::Without(rows.to_vec()));
        for (given, batch_bytes, expected) in [
            (&[][..], 1_000, None),
            (&[(1, 0, Aside)], 1_000, None),
            // One record is named, in its partition; in another one nobody knows which it is.
            (&[(1, 0, Aside), (2, 0, Bad)], 1_000, without(&[(2, Bad)])),
            (&[(1, 0, Aside), (2, 0, Bad), (3, 1, Bad)], 1_000, without(&[(2, Bad)])),
            (&[(2, 0, Bad), (3, 0, Bad)], 1_000, Some(Again::Alone)),
            (&[(2, 0, Bad), (3, 0, Bad)], 1, without(&[(2, Bad), (3, Bad)])),
            // A batch of small rows is too long; a row that is longer than a batch was alone in it.
            (&[(1, 0, Long), (2, 0, Long)], 1_000_000, Some(Again::Shorter(100_000))),
            (&[(1, 0, Long), (7, 0, Long)], 1_000, without(&[(7, Long)])),
            (&[(1, 0, Long)], 5, without(&[(1, Long)])),
            (&[(1, 0, Long), (2, 0, Bad)], 1_000, Some(Again::Shorter(100))),
            (&[(1, 0, Long)], 1, without(&[(1, Long)])),
        ] {
            assert_eq!(Again::of(&refusals(given), size, batch_bytes), expected, "{given:?} in {batch_bytes}");
        }
    }

    #[test]
    fn shorter_batches_come_to_an_end() {
        let long = refusals(&[(1, 0, Code::MessageSizeTooLarge)]);
        let (mut batch_bytes, mut tries) = (1_000_000, 0);
        while let Some(Again::Shorter(next)) = Again::of(&long, |_| 0, batch_bytes) {
            (batch_bytes, tries) = (next, tries + 1);
        }
        assert_eq!((batch_bytes, tries), (1, 6));
    }
}
