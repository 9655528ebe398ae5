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

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use tidemill_checkpoint::Generation;

use super::{
    Inner,
    lane::SWEPT,
    marks::{Owned, Place},
    reader::{End, Fate, PAUSE},
    writer::{Failure, Writer},
};
use crate::sink::SinkError;

/// How long transactions of others may take before what is open is taken for what the brokers left.
const SETTLING: Duration = Duration::from_secs(1);

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
type Open = BTreeMap<i32, i64>;

/// What came of a look at what is open among the marks.
pub(super) enum Hanging {
    /// It was ended, if it was this lane's.
    Ended,
    /// It is another lane's, which goes its own way.
    Others,
    /// It may be this lane's, and nobody can tell what it was.
    Untold,
}

/// Parts off where the lane's last row that counts may be behind what is open: it might be undone with it.
fn spared(open: Open, owned: Option<&Owned>) -> (Open, Open) {
    let last = |partition: &i32| owned.and_then(|owned| owned.rows.get(partition));
    open.into_iter().partition(|(partition, from)| last(partition).is_none_or(|last| *last >= 0 && last < from))
}

impl Inner {
    /// Ends what hangs in the partition of the lane's marks.
    pub(super) fn end_hanging(&self, writer: &mut Writer, place: &Place) -> Result<Hanging, SinkError> {
        let partition = place.partition();
        if !self.open(&self.marks_topic)?.contains_key(&partition) {
            return Ok(Hanging::Others);
        }
        let owned = self.kept(place, End::Stable)?.owned;
        let mut verdict = self.judge(place, owned.as_ref())?;
        if verdict == Verdict::Hidden {
            // Rows that have their end keep it, whatever is undone beside them.
            self.undo(writer, place, None, &self.open_rows(owned.as_ref())?)?;
            let begun = Instant::now();
            while verdict == Verdict::Hidden && begun.elapsed() < SWEPT {
                thread::sleep(PAUSE);
                verdict = self.judge(place, owned.as_ref())?;
            }
        }
        match verdict {
            Verdict::Commit => {
                tracing::info!(lane = %place.lane, partition, "a transaction may lack its end among the marks, and its rows are there: it is committed");
                let record = place.beat(Generation::default(), 0);
                let sent = writer.transact(|writer| {
                    writer.send(&self.marks_topic, Some(partition), Some(&record.key), record.value.as_deref())
                });
                sent.map_err(Failure::error)?;
            }
            Verdict::Undo => {
                self.undo(writer, place, Some(partition), &self.open_rows(owned.as_ref())?)?;
            }
            Verdict::Hidden | Verdict::Untold => return Ok(Hanging::Untold),
        }
        Ok(Hanging::Ended)
    }

    fn judge(&self, place: &Place, owned: Option<&Owned>) -> Result<Verdict, SinkError> {
        let mut before = owned.cloned();
        let mut fates = Vec::new();
        for mark in self.reader.beyond(place)? {
            let rows = mark.as_ref().map(|mark| mark.rows_since(before.as_ref())).unwrap_or_default();
            fates.push((!rows.is_empty()).then(|| self.reader.fate(&self.topic, &rows)).transpose()?);
            before = mark;
        }
        Ok(Verdict::of(&fates))
    }

    /// Where a transaction is open now, of partitions that have a leader.
    fn open(&self, topic: &str) -> Result<Open, SinkError> {
        let count = self.reader.partitions(topic)?;
        let ends = self.reader.ends(topic, count, true)?;
        let stable = self.reader.ends(topic, count, false)?;
        let open = stable.into_iter().filter_map(|(partition, stable)| Some((partition, stable?)));
        Ok(open.filter(|(partition, stable)| ends.get(partition).is_some_and(|end| Some(*stable) < *end)).collect())
    }

    /// The same for rows, without those that count.
    fn open_rows(&self, owned: Option<&Owned>) -> Result<Open, SinkError> {
        Ok(spared(self.open(&self.topic)?, owned).0)
    }

    /// A transaction of nothing that counts, in these partitions, undone: with it goes what hangs there.
    fn undo(&self, writer: &mut Writer, place: &Place, marks: Option<i32>, rows: &Open) -> Result<(), SinkError> {
        if marks.is_none() && rows.is_empty() {
            return Ok(());
        }
        tracing::info!(lane = %place.lane, ?marks, ?rows, "undoing what the brokers may have left open");
        let record = place.beat(Generation::default(), 0);
        writer.undone(|writer| {
            if let Some(partition) = marks {
                let value = record.value.as_deref();
                writer.send(&self.marks_topic, Some(partition), Some(&record.key), value)?;
            }
            rows.keys().try_for_each(|partition| writer.send(&self.topic, Some(*partition), Some(&record.key), None))
        })
    }

    /// Sees to it that no row of before is open when rows are sent next, since their end would be its end. Transactions of
    /// others end by themselves, mostly; what stays open is undone, as far as it may be the lane's and none of its rows that
    /// count is behind it.
    pub(super) fn settle_rows(&self, writer: &mut Writer, place: &Place, owned: &Owned) -> Result<(), Failure> {
        let begun = Instant::now();
        let waits = |cause: String| {
            Failure::Undone(SinkError::Transient { what: format!("writing to topic {}", self.topic), cause })
        };
        let count = self.reader.partitions(&self.topic).map_err(Failure::Undone)?;
        let ends = self.reader.ends(&self.topic, count, true).map_err(Failure::Undone)?;
        let open = loop {
            let stable = self.reader.ends(&self.topic, count, false).map_err(Failure::Undone)?;
            let at = |partition: &i32| stable.get(partition).copied().flatten();
            let is_past = |(partition, end): &(&i32, &Option<i64>)| end.is_some() && at(partition) >= **end;
            let open: Vec<(i32, Option<i64>)> =
                ends.iter().filter(|one| !is_past(one)).map(|(one, end)| (*one, end.and_then(|_| at(one)))).collect();
            if open.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > SETTLING {
                break open;
            }
            thread::sleep(PAUSE);
        };
        if let Some((partition, _)) = open.iter().find(|(_, at)| at.is_none()) {
            return Err(waits(format!(
                "its partition {partition} has no leader, and may have rows of a transaction that the brokers did not end"
            )));
        }
        let open = open.into_iter().filter_map(|(partition, at)| Some((partition, at?))).collect();
        let (open, behind) = spared(open, Some(owned));
        self.undo(writer, place, None, &open).map_err(Failure::Unknown)?;
        match behind.first_key_value() {
            None => Ok(()),
            Some((partition, at)) => Err(waits(format!(
                "rows of this lane in its partition {partition} are behind a transaction that is open there since offset \
                 {at}; where it stays, kafka-transactions.sh find-hanging shows it"
            ))),
        }
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
        let open = Open::from([(0, 10), (1, 10), (2, 10), (3, 10)]);
        assert_eq!(spared(open.clone(), None), (open.clone(), Open::new()));
        let text = r#"{"claim":{"generation":1,"owner":{"name":"a","data_dir":"00000000-0000-0000-0000-000000000000",
            "instance":"00000000-0000-0000-0000-000000000000"},"released":false},
            "number":"00000000-0000-0000-0000-000000000000","mark":null,"rows":{"0":9,"1":10,"3":-1}}"#;
        let owned: Owned = serde_json::from_str(text).expect("a mark");
        let parted = (Open::from([(0, 10), (2, 10)]), Open::from([(1, 10), (3, 10)]));
        assert_eq!(spared(open, Some(&owned)), parted);
    }
}
