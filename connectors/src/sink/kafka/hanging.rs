//! Transactions that have ended, and whose end a partition lacks.
//!
//! Whoever takes a transactional id has the open transaction of its former owner ended. Yet a coordinator that finds no
//! leader of a partition takes it for deleted, and writes no end there, neither a commit's nor an abort's (KAFKA-20734):
//! readers of committed records stop before it, and the next end that the id's producer writes there ends it too, in its
//! own way. What it was cannot be asked by a client. But a mark names rows of its transaction ([`Owned::rows`]), and the
//! rows' partitions have their own ends: the mark counts where its rows are seen, and where they were undone it does not.
//! A mark without rows may count in any case: everything that it says was true when it was sent.
//!
//! `tests/kafka_model.rs` shows that neither to undo nor to commit would do.

use std::{collections::BTreeMap, thread, time::Instant};

use tidemill_checkpoint::Generation;

use super::{
    Inner,
    lane::SWEPT,
    marks::{Owned, Place},
    reader::{End, Fate, PAUSE},
    writer::{Failure, Writer},
};
use crate::sink::SinkError;

/// What is to be done with what hangs among the marks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Commit,
    Undo,
    /// Its rows are behind an open transaction: another's, or they hang as well.
    Hidden,
    /// What can be read does not tell.
    Untold,
}

impl Verdict {
    /// `fates`: of the rows of each mark that hangs, in the order of the log; `None` where a mark came without rows.
    fn of(fates: &[Option<Fate>]) -> Self {
        let mut told = fates.iter().flatten();
        match told.next_back() {
            // No commit was decided without a mark.
            None if fates.is_empty() => Self::Undo,
            None | Some(Fate::Seen) => Self::Commit,
            Some(Fate::Undone) if told.all(|fate| *fate == Fate::Undone) => Self::Undo,
            Some(Fate::Hidden) => Self::Hidden,
            Some(Fate::Undone | Fate::Gone) => Self::Untold,
        }
    }
}

/// Partitions of the rows' topic in which a transaction is open, and where.
pub(super) type HeldBack = BTreeMap<i32, i64>;

/// Without those in which the lane's last row that counts may be behind it: it would be undone too.
fn spared(mut held_back: HeldBack, owned: Option<&Owned>) -> HeldBack {
    held_back
        .retain(|partition, from| owned.and_then(|owned| owned.rows.get(partition)).is_none_or(|last| last < from));
    held_back
}

impl Inner {
    /// Ends what hangs in the partition of the lane's marks. Says whether anything may have: it may also have been another
    /// lane's transaction, which goes its own way.
    pub(super) fn end_hanging(&self, writer: &mut Writer, place: &Place) -> Result<bool, SinkError> {
        if !self.reader.held_back(&self.marks_topic)?.contains_key(&place.partition()) {
            return Ok(false);
        }
        let owned = self.kept(place, End::Stable)?.owned;
        let mut verdict = self.judge(place, owned.as_ref())?;
        if verdict == Verdict::Hidden {
            // Rows that are committed stay, whatever is undone before them.
            let rows = self.reader.held_back(&self.topic)?;
            self.undo(writer, place, None, &spared(rows, owned.as_ref()))?;
            let begun = Instant::now();
            while verdict == Verdict::Hidden && begun.elapsed() < SWEPT {
                thread::sleep(PAUSE);
                verdict = self.judge(place, owned.as_ref())?;
            }
        }
        let (lane, partition) = (&place.lane, place.partition());
        match verdict {
            Verdict::Commit => {
                tracing::warn!(%lane, partition, "the brokers left a transaction open whose rows are there: it is committed");
                let record = place.beat(Generation::default(), 0);
                let sent = writer.transact(|writer| {
                    writer.send(&self.marks_topic, Some(partition), Some(&record.key), record.value.as_deref(), None)
                });
                sent.map_err(Failure::error)?;
            }
            Verdict::Undo => {
                let rows = self.reader.held_back(&self.topic)?;
                self.undo(writer, place, Some(partition), &spared(rows, owned.as_ref()))?;
            }
            Verdict::Hidden | Verdict::Untold => return Ok(false),
        }
        Ok(true)
    }

    fn judge(&self, place: &Place, owned: Option<&Owned>) -> Result<Verdict, SinkError> {
        let mut before = owned.cloned();
        let mut fates = Vec::new();
        for mark in self.reader.beyond(place)? {
            let rows = mark.rows_since(before.as_ref());
            fates.push((!rows.is_empty()).then(|| self.reader.fate(&self.topic, &rows)).transpose()?);
            before = Some(mark);
        }
        Ok(Verdict::of(&fates))
    }

    /// A transaction of nothing that counts, in these partitions, undone: with it goes what hangs there.
    fn undo(&self, writer: &mut Writer, place: &Place, marks: Option<i32>, rows: &HeldBack) -> Result<(), SinkError> {
        if marks.is_none() && rows.is_empty() {
            return Ok(());
        }
        tracing::debug!(lane = %place.lane, ?marks, ?rows, "undoing what the brokers may have left open");
        let record = place.beat(Generation::default(), 0);
        writer.undone(|writer| {
            if let Some(partition) = marks {
                let value = record.value.as_deref();
                writer.send(&self.marks_topic, Some(partition), Some(&record.key), value, None)?;
            }
            rows.keys()
                .try_for_each(|partition| writer.send(&self.topic, Some(*partition), Some(&record.key), None, None))
        })
    }

    /// Where rows of an owner that did not let go may hang. Only time tells them from those of living transactions.
    pub(super) fn may_hang(&self, owned: Option<&Owned>) -> Result<HeldBack, SinkError> {
        if owned.is_none_or(|owned| owned.claim.released) {
            return Ok(HeldBack::new());
        }
        Ok(spared(self.reader.held_back(&self.topic)?, owned))
    }

    /// Undoes rows that were in the way at the claim, and are at the first commit: committing would make them seen.
    pub(super) fn undo_hanging(
        &self,
        writer: &mut Writer,
        place: &Place,
        mut at_claim: HeldBack,
    ) -> Result<(), SinkError> {
        if at_claim.is_empty() {
            return Ok(());
        }
        let now = self.reader.held_back(&self.topic)?;
        at_claim.retain(|partition, from| now.get(partition) == Some(from));
        self.undo(writer, place, None, &at_claim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_of_the_last_mark_tell() {
        use Fate::{Gone, Hidden, Seen, Undone};
        for (fates, verdict) in [
            (&[][..], Verdict::Undo),
            (&[None], Verdict::Commit),
            (&[Some(Seen)], Verdict::Commit),
            (&[Some(Seen), None], Verdict::Commit),
            (&[Some(Undone), Some(Seen)], Verdict::Commit),
            (&[Some(Undone)], Verdict::Undo),
            (&[None, Some(Undone), Some(Undone)], Verdict::Undo),
            (&[Some(Seen), Some(Undone)], Verdict::Untold),
            (&[Some(Gone)], Verdict::Untold),
            (&[Some(Hidden)], Verdict::Hidden),
        ] {
            assert_eq!(Verdict::of(fates), verdict, "{fates:?}");
        }
    }

    #[test]
    fn rows_that_count_are_not_undone_with_what_is_before_them() {
        let held_back = HeldBack::from([(0, 10), (1, 10), (2, 10)]);
        assert_eq!(spared(held_back.clone(), None), held_back);
        let text = r#"{"claim":{"generation":1,"owner":{"name":"a","data_dir":"00000000-0000-0000-0000-000000000000",
            "instance":"00000000-0000-0000-0000-000000000000"},"released":false},
            "number":"00000000-0000-0000-0000-000000000000","mark":null,"rows":{"0":9,"1":10}}"#;
        let owned: Owned = serde_json::from_str(text).expect("a mark");
        assert_eq!(spared(held_back, Some(&owned)), HeldBack::from([(0, 10), (2, 10)]));
    }
}
