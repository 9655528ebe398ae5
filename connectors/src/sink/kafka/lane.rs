//! One lane of the sink: how it is taken, how it commits, and what follows where nobody knows what became of a commit.
//!
//! A producer that took the transactional id knows the lane's mark until it is shut out: nobody else can write it. So a
//! commit compares in memory, and reads the marks only where the producer failed. Then, as at a claim: read, take the
//! id, and read again up to the true end. In between another owner's last transaction may have been committed.

use std::time::Duration;

use tidemill_checkpoint::{Claim, Digest, Generation, LaneKey, LogName, Mark, Permit, Position, Receipt};
use uuid::Uuid;

use super::{
    Inner,
    encode::Rows,
    hanging::Hanging,
    limits::Again,
    marks::{Kept, Owned, Place, Record},
    reader::End,
    writer::{Failure, Writer, passed},
};
use crate::sink::{SinkError, rejects_shard};

/// How long a claim waits for transactions of other lanes. They may be a dead daemon's, which end when their own lanes are
/// claimed: so the next claim must not wait for this one.
const OPEN_TRANSACTIONS: Duration = Duration::from_secs(5);
/// The same, once a transaction of this lane can be none of them.
pub(super) const SWEPT: Duration = Duration::from_secs(2);

/// What this process knows of a lane of which it is the owner.
#[derive(Default)]
pub(super) struct Slot {
    live: Option<Live>,
    /// What the next producer's batches have at most, where the sink's own bound is too much for rows of this lane.
    batch_bytes: Option<usize>,
}

struct Live {
    writer: Writer,
    owned: Owned,
    /// Entries and rejects, as the marks' topic has them.
    kept: Kept,
}

impl Slot {
    /// What a commit of this process has written last: never older than what can be read.
    pub(super) fn owned(&self) -> Option<&Owned> {
        self.live.as_ref().map(|live| &live.owned)
    }

    /// The producer goes, and its threads.
    pub(super) fn close(&mut self) {
        self.live = None;
    }
}

impl Inner {
    /// The lane's records up to the true end.
    pub(super) fn kept(&self, place: &Place, end: End) -> Result<Kept, SinkError> {
        self.reader.read(std::slice::from_ref(place), end, |book| book.lane(place).cloned().unwrap_or_default())
    }

    /// Takes the lane's transactional id for generation `mine`, where `may` allows it before and after.
    fn take(
        &self,
        place: &Place,
        mine: Generation,
        batch_bytes: Option<usize>,
        may: &dyn Fn(Option<&Owned>) -> Result<(), SinkError>,
    ) -> Result<(Writer, Kept), SinkError> {
        // What is out of sight yet may be one's own claim: only what is as new as that counts at this look.
        if let Some(owned) = self.kept(place, End::Stable)?.owned.filter(|owned| owned.claim.generation >= mine) {
            may(Some(&owned))?;
        }
        passed("kafka.before-init")?;
        let id = format!("{}/{}/{}/{}", self.marks_topic, place.job, place.sink, place.lane);
        let mut writer =
            Writer::open(&self.cluster, &self.marks_topic, &id, self.transaction_timeout, self.how(batch_bytes))?;
        passed("kafka.after-init")?;
        let kept = self.kept(place, End::All(OPEN_TRANSACTIONS)).or_else(|error| {
            match self.end_hanging(&mut writer, place) {
                Ok(Hanging::Ended) => self.kept(place, End::All(SWEPT)),
                Ok(Hanging::Others) => Err(error),
                Ok(Hanging::Untold) => Err(noted(error, "it may be this lane's, and its rows do not tell what it was")),
                Err(why) => Err(noted(error, &format!("whether it is this lane's is not to be seen: {why}"))),
            }
        })?;
        may(kept.owned.as_ref())?;
        Ok((writer, kept))
    }

    pub(super) fn claim(&self, slot: &mut Slot, key: &LaneKey) -> Result<Option<Mark>, SinkError> {
        let (place, generation) = (&self.place(&key.lane), key.generation);
        let may = |owned: Option<&Owned>| match owned {
            Some(owned) if owned.claim.generation >= generation => {
                Err(self.fenced(place, owned.claim.generation, generation))
            }
            _ => Ok(()),
        };
        slot.close();
        self.make_marks_topic()?;
        let partition = place.partition();
        let (mut writer, kept) = self.take(place, generation, None, &may)?;
        let claim = Claim { generation, owner: key.owner.clone(), released: false };
        let (mark, rows) =
            kept.owned.as_ref().map_or_else(Default::default, |owned| (owned.mark.clone(), owned.rows.clone()));
        // Without a mark it may have been taken away.
        let unsettled = kept.owned.as_ref().is_none_or(|owned| owned.unsettled || !owned.claim.released);
        let owned = Owned { claim, number: Uuid::new_v4(), mark, rows, unsettled };
        let record = place.mark(&owned);
        let sent = writer.transact(|writer| {
            passed("kafka.claim-before-mark")?;
            writer.send(&self.marks_topic, Some(partition), Some(&record.key), record.value.as_deref())
        });
        if let Err(failure) = sent {
            let (error, shut_out) = (failure.error(), writer.is_shut_out());
            drop(writer);
            // Who was shut out meanwhile lost the race, and whoever won may not have written yet. Or it was written, and
            // only the answer is missing.
            let now = self.kept(place, End::All(OPEN_TRANSACTIONS))?;
            if now.owned.as_ref().is_none_or(|now| now.number != owned.number) {
                may(now.owned.as_ref())?;
                return Err(if shut_out { self.fenced(place, Generation::default(), generation) } else { error });
            }
            return Ok(self.live(slot, key)?.owned.mark.clone());
        }
        passed("kafka.claim-after-mark")?;
        let mark = owned.mark.clone();
        slot.live = Some(Live { writer, owned, kept: kept.slim() });
        Ok(mark)
    }

    /// What a key of this process needs to go on: its producer, a new one where the last one failed.
    fn live<'s>(&self, slot: &'s mut Slot, key: &LaneKey) -> Result<&'s mut Live, SinkError> {
        let place = self.place(&key.lane);
        let may = |owned: Option<&Owned>| match owned {
            Some(owned) if owned.is_of(key) => Ok(()),
            Some(owned) => Err(self.fenced(&place, owned.claim.generation, key.generation)),
            None => Err(self.fenced(&place, Generation::default(), key.generation)),
        };
        if let Some(live) = &slot.live {
            may(Some(&live.owned))?;
        } else {
            let (writer, kept) = self.take(&place, key.generation, slot.batch_bytes, &may)?;
            let owned = kept.owned.clone().ok_or_else(|| self.fenced(&place, Generation::default(), key.generation))?;
            let owned = Owned { unsettled: true, ..owned };
            slot.live = Some(Live { writer, owned, kept: kept.slim() });
        }
        slot.live.as_mut().ok_or_else(|| SinkError::Fatal("a producer was not kept".into()))
    }

    pub(super) fn commit(&self, slot: &mut Slot, permit: &Permit, rows: &mut Rows) -> Result<Receipt, SinkError> {
        let done = self.commit_in_batches(slot, permit, rows);
        if slot.batch_bytes.take().is_some() {
            // It was for these rows.
            slot.close();
        }
        done
    }

    fn commit_in_batches(&self, slot: &mut Slot, permit: &Permit, rows: &mut Rows) -> Result<Receipt, SinkError> {
        let (mut again, mut shorter) = (true, None);
        loop {
            let live = self.live(slot, permit.key())?;
            let (found, expected) = (live.owned.digest(), permit.expected());
            if found == Some(permit.mark().digest) {
                return Ok(Receipt::written(permit));
            }
            if found != expected {
                return Err(self.conflict(slot, permit, found));
            }
            match self.write(live, permit, rows) {
                Ok(receipt) => {
                    if let Some(bytes) = shorter {
                        self.keep_batches_below(bytes);
                    }
                    return Ok(receipt);
                }
                Err(Failure::Undone(error)) => {
                    live.owned.unsettled = true;
                    let (refusals, batch_bytes) = (live.writer.take_refused(), live.writer.batch_bytes());
                    let again = self.bring_down(rows, &refusals, batch_bytes)?;
                    match again {
                        None => return Err(error),
                        Some(Again::Without(_)) => {}
                        Some(Again::Shorter(bytes)) => (slot.batch_bytes, shorter) = (Some(bytes), Some(bytes)),
                        Some(Again::Alone) => slot.batch_bytes = Some(1),
                    }
                    // What was refused leaves a gap in the producer's numbers, and one of other batches is another one: the
                    // lane is taken anew, as after a failure.
                    slot.close();
                }
                // The marks tell whether it is there, and whose the lane is: read with a new producer.
                Err(Failure::Unknown(error)) => {
                    tracing::debug!(lane = %permit.key().lane, %error, "a commit without an answer");
                    slot.close();
                    if !std::mem::take(&mut again) {
                        return Err(transient(error));
                    }
                }
            }
        }
    }

    /// A mark that is not the expected one: mine, unless somebody else's was written since.
    fn conflict(&self, slot: &mut Slot, permit: &Permit, found: Option<Digest>) -> SinkError {
        slot.close();
        match self.live(slot, permit.key()) {
            Err(error) => error,
            Ok(_) => SinkError::Conflict {
                sink: self.id.clone(),
                lane: permit.key().lane.clone(),
                found,
                expected: permit.expected(),
            },
        }
    }

    fn write(&self, live: &mut Live, permit: &Permit, rows: &Rows) -> Result<Receipt, Failure> {
        let Live { writer, owned, kept } = live;
        let place = self.place(&permit.key().lane);
        let mut next = Owned { mark: Some(permit.mark().clone()), ..owned.clone() };
        if owned.unsettled && !rows.is_empty() {
            self.settle_rows(writer, &place, owned)?;
            next.unsettled = false;
        }
        let mut records: Vec<Record> = Vec::new();
        // The last record of a key counts: an entry that is given again is not to be dropped by what was there before.
        for (log, range) in permit.mark().plan.logs.iter().filter(|(_, range)| range.first > 0) {
            records.extend(kept.pruned(&place, log, range.first));
        }
        let first = |log: &LogName| permit.mark().plan.logs.get(log).map_or(0, |range| range.first);
        let entries = permit.entries().iter().filter(|entry| entry.number >= first(&entry.log));
        records.extend(entries.map(|entry| place.entry(entry)));
        let shard = rejects_shard(&self.id);
        let read = |mark: &Mark| mark.positions.get(&shard).and_then(Position::as_number).unwrap_or(0);
        // What this plan reads may have to be read again, by a replay of it: it goes with the next plan.
        records.extend(kept.done_rejects(&place, owned.mark.as_ref().map_or(0, read)));
        let rejects = rows.rejects(permit, kept.next_reject().max(read(permit.mark())));
        let part_bytes = self.format.max_bytes(&self.limits());
        records.extend(rejects.iter().flat_map(|reject| place.reject(reject, part_bytes)));
        let partition = place.partition();
        writer.transact(|writer| {
            passed("kafka.before-rows")?;
            rows.each(|record| writer.send_row(&self.topic, record))?;
            // A mark that is under way hides every later one of its partition: it waits until the rows are there.
            writer.settle()?;
            next.rows.extend(writer.settled());
            records.push(place.mark(&next));
            for record in &records {
                writer.send(&self.marks_topic, Some(partition), Some(&record.key), record.value.as_deref())?;
            }
            Ok(())
        })?;
        *owned = next;
        kept.take_in(&place, &records).map_err(Failure::Unknown)?;
        Ok(Receipt::written(permit).with_rejected(rejects.len() as u64))
    }

    pub(super) fn release(&self, slot: &mut Slot, key: &LaneKey) -> Result<(), SinkError> {
        let place = self.place(&key.lane);
        let live = match self.live(slot, key) {
            Ok(live) => live,
            Err(SinkError::Fenced { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut released = live.owned.clone();
        released.claim.released = true;
        let record = place.mark(&released);
        let partition = place.partition();
        let result = live.writer.transact(|writer| {
            writer.send(&self.marks_topic, Some(partition), Some(&record.key), record.value.as_deref())
        });
        slot.close();
        match result.map_err(Failure::error) {
            Ok(()) => Ok(()),
            // Where it was shut out meanwhile, there is nothing to let go of.
            Err(error) => match self.kept(&place, End::Stable)?.owned {
                Some(owned) if owned.is_of(key) && !owned.claim.released => Err(error),
                _ => Ok(()),
            },
        }
    }

    /// Takes every record of the lane away, and shuts its owner out.
    pub(super) fn forget(&self, slot: &mut Slot, place: &Place) -> Result<(), SinkError> {
        slot.close();
        let (mut writer, kept) = self.take(place, Generation::default(), None, &|_| Ok(()))?;
        let partition = place.partition();
        let sent = writer.transact(|writer| {
            for record in kept.gone(place) {
                writer.send(&self.marks_topic, Some(partition), Some(&record.key), record.value.as_deref())?;
            }
            Ok(())
        });
        sent.map_err(|failure| transient(failure.error()))
    }
}

/// With something more to say.
fn noted(error: SinkError, note: &str) -> SinkError {
    match error {
        SinkError::Transient { what, cause } => SinkError::Transient { what, cause: format!("{cause}; {note}") },
        other => other,
    }
}

/// What a new try may settle, whatever the client calls it.
fn transient(error: SinkError) -> SinkError {
    match error {
        SinkError::Fatal(cause) => SinkError::Transient { what: "writing to Kafka".into(), cause },
        other => other,
    }
}
