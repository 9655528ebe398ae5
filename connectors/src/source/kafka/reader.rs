//! The client that reads: partitions assigned by hand, each with a queue of its own, and a cursor for each that knows what
//! was taken from the queue and what of it was planned.
//!
//! Invariants: a cursor's buffer holds all records of `[start, at)` and no others. `at` follows the client's own position,
//! so that markers of transactions, aborted records and the gaps of compaction lie inside a span, never between two.
//! A plan is made of records that came before the ids of their topics were asked for the last time: the client goes on in a
//! topic that was made again as if nothing had happened.
//! A queue is split off before its partition is assigned, so that no record goes to the client's common queue.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, base_consumer::PartitionQueue},
    error::{KafkaError, RDKafkaErrorCode},
};
use tidemill_checkpoint::ShardId;
use tokio::sync::Notify;

use super::{
    chunk::{Builder, Chunk, Form, Size},
    client::{ANSWER_LIMIT, Context, Voice, transient},
    topics::Partition,
};
use crate::{
    kafka::native,
    source::{Budget, RawBatch, SourceError},
};

/// One chunk's bytes are addressed by 32 bits.
const MAX_CHUNK_BYTES: usize = 1 << 30;

struct Queue {
    queue: PartitionQueue<Context>,
    /// Something came since it was last found empty.
    ready: Arc<AtomicBool>,
}

/// What a part of a plan is made of: chunks, with the span inside them.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    pub from: u64,
    pub to: u64,
    chunks: Vec<Arc<Chunk>>,
}

impl Taken {
    /// Its records.
    pub fn read(&self, shard: &ShardId, batch: &mut RawBatch) {
        self.chunks.iter().for_each(|chunk| chunk.read(shard, self.from, self.to, batch));
    }
}

/// Why a cursor cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stuck {
    /// The topic does not have the offset.
    OutOfRange,
    /// The broker says no.
    Refused(RDKafkaErrorCode),
}

/// Where the reading of one partition stands.
pub(super) struct Cursor {
    pub shard: ShardId,
    queue: Queue,
    start: u64,
    at: u64,
    /// The client gave a record or the end since the partition was assigned: its position is that of this assignment.
    fresh: bool,
    /// Up to where records were planned.
    pub planned: u64,
    /// Records up to here are of the topic that the shard names: its id was asked for after they came.
    confirmed: u64,
    /// Records up to here were there when the cursor was put back: a plan waits for them.
    pub known: u64,
    chunks: VecDeque<(u64, Arc<Chunk>)>,
    pub stuck: Option<Stuck>,
}

impl Cursor {
    /// Whether a plan would find something, or an error.
    pub fn has_news(&self) -> bool {
        self.stuck.is_some() || self.planned < self.at || self.queue.ready.load(Ordering::Acquire)
    }
    /// Whether records behind `at` are there, and have not come yet.
    pub fn lacks(&self, at: u64) -> bool {
        self.stuck.is_none() && self.at <= at && self.at < self.known
    }
    /// Up to where records are read.
    pub fn at(&self) -> u64 {
        self.at
    }
    pub fn start(&self) -> u64 {
        self.start
    }
    pub fn covers(&self, from: u64) -> bool {
        self.start <= from && from <= self.at
    }
    /// Forgets what lies before an offset.
    pub fn forget(&mut self, before: u64) {
        while self.chunks.front().is_some_and(|(to, _)| *to <= before) {
            self.chunks.pop_front();
        }
        self.start = self.start.max(before.min(self.at));
    }

    /// What a plan from `from` takes within the budget, and how much that is. The rest stays for the next one.
    fn take(&self, from: u64, cap: Size, is_first: bool) -> (Taken, Size) {
        let (mut to, mut left, mut chunks) = (self.at, cap, Vec::new());
        for (end, chunk) in &self.chunks {
            if *end <= from {
                continue;
            }
            let (is_very_first, before) = (is_first && left == cap, left);
            let cut = chunk.cut(from, &mut left, is_very_first);
            if left != before {
                chunks.push(chunk.clone());
            }
            if let Some(cut) = cut {
                to = cut;
                break;
            }
        }
        (Taken { from, to: to.max(from), chunks }, cap - left)
    }
}

/// The client and its cursors.
pub(super) struct Reader {
    pub consumer: Arc<BaseConsumer<Context>>,
    voice: Arc<Voice>,
    wake: Arc<Notify>,
    form: Form,
    /// Topics that the client has heard of.
    heard: BTreeSet<Arc<str>>,
    pub cursors: BTreeMap<Partition, Cursor>,
}

impl Reader {
    pub fn new(consumer: BaseConsumer<Context>, voice: Arc<Voice>, wake: Arc<Notify>, form: Form) -> Self {
        Self { consumer: Arc::new(consumer), voice, wake, form, heard: BTreeSet::new(), cursors: BTreeMap::new() }
    }

    /// Puts a cursor at `at`; the span of the next plan begins at `start`, where records before `at` are given up for lost.
    pub fn place(&mut self, partition: &Partition, shard: ShardId, start: u64, at: u64) -> Result<(), SourceError> {
        self.drop_cursor(partition);
        let queue = self.queue(partition)?;
        let mut list = TopicPartitionList::with_capacity(1);
        let offset = Offset::Offset(i64::try_from(at).unwrap_or(i64::MAX));
        let assigned = list
            .add_partition_offset(&partition.topic, partition.number, offset)
            .and_then(|()| self.consumer.incremental_assign(&list));
        assigned
            .map_err(|error| transient(&self.voice, format!("reading {partition} from {at}"), error.to_string()))?;
        let cursor = Cursor {
            shard,
            queue,
            start,
            at,
            fresh: false,
            planned: start,
            confirmed: at,
            known: 0,
            chunks: VecDeque::new(),
            stuck: None,
        };
        self.cursors.insert(partition.clone(), cursor);
        Ok(())
    }

    /// A queue for the partition alone. It belongs to what librdkafka knows of the partition, which it forgets with a topic
    /// that it does not know (yet, or any more): so the topic is asked for first, and each assignment has a queue of its own.
    fn queue(&mut self, partition: &Partition) -> Result<Queue, SourceError> {
        if !self.heard.contains(&partition.topic) {
            let asked = self.consumer.fetch_metadata(Some(&partition.topic), ANSWER_LIMIT);
            asked.map_err(|error| transient(&self.voice, format!("reading {partition}"), error.to_string()))?;
            self.heard.insert(partition.topic.clone());
        }
        let split = self.consumer.split_partition_queue(&partition.topic, partition.number);
        let mut queue = split.ok_or_else(|| SourceError::Fatal(format!("{partition} is no partition")))?;
        // What is left of an assignment before lies in the queue: only a look empties it, and what comes then wakes.
        let ready = Arc::new(AtomicBool::new(true));
        let (flag, wake) = (ready.clone(), self.wake.clone());
        queue.set_nonempty_callback(move || {
            flag.store(true, Ordering::Release);
            wake.notify_one();
        });
        Ok(Queue { queue, ready })
    }

    /// Reads a partition no more.
    pub fn drop_cursor(&mut self, partition: &Partition) {
        if self.cursors.remove(partition).is_none() {
            return;
        }
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition(&partition.topic, partition.number);
        if let Err(error) = self.consumer.incremental_unassign(&list) {
            tracing::debug!(%partition, %error, "kafka: not assigned");
        }
    }

    /// Stops the cursors of topics that are others now. Whether there are any that had not been stopped before.
    pub fn stop_made_again(&mut self, shard_of: impl Fn(&Partition) -> Option<ShardId>) -> bool {
        let mut found = false;
        for (partition, cursor) in &mut self.cursors {
            if shard_of(partition).is_some_and(|now| now != cursor.shard) {
                self.heard.remove(&partition.topic);
                found |= cursor.stuck.is_none();
                cursor.stuck.get_or_insert(Stuck::OutOfRange);
            }
        }
        found
    }

    /// A record came by the common queue: its partition is read again from where its cursor stands.
    pub fn astray(&mut self, partition: &Partition) -> Result<(), SourceError> {
        match self.cursors.get(partition) {
            Some(cursor) => {
                let (shard, start, planned, known) =
                    (cursor.shard.clone(), cursor.start, cursor.planned, cursor.known.max(cursor.at));
                self.place(partition, shard, start, start)?;
                let back = |cursor: &mut Cursor| (cursor.planned, cursor.known) = (planned, known);
                self.cursors.entry(partition.clone()).and_modify(back);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The next plan of these partitions, each from its offset. Every partition has its share of the budget; what one does
    /// not use is for the others, in their order.
    pub fn plan(&mut self, from: &[(Partition, u64)], budget: Budget) -> BTreeMap<Partition, Taken> {
        let mut left = Size { records: budget.records, bytes: budget.bytes.min(MAX_CHUNK_BYTES) };
        let share = Size { records: left.records / from.len().max(1), bytes: left.bytes / from.len().max(1) };
        let (mut taken, mut used_by) = (BTreeMap::new(), BTreeMap::new());
        // One record at least, however large: the very first of the batch.
        let mut first: Option<&Partition> = None;
        for is_share in [true, false] {
            for (partition, from) in from {
                let before: Size = used_by.get(partition).copied().unwrap_or_default();
                let cap = if is_share { share } else { before + left };
                let Some(cursor) = self.cursors.get_mut(partition) else { continue };
                drain(cursor, &self.consumer, &self.form, partition, *from, cap);
                let (part, used) = cursor.take(*from, cap, first.is_none_or(|first| first == partition));
                if used.records > 0 {
                    first.get_or_insert(partition);
                }
                left = left + before - used;
                used_by.insert(partition.clone(), used);
                taken.insert(partition.clone(), part);
            }
        }
        for (partition, part) in &taken {
            if let Some(cursor) = self.cursors.get_mut(partition) {
                cursor.planned = part.to;
                // What a newer plan begins behind is not asked for again.
                cursor.forget(part.from);
            }
        }
        taken.retain(|_, part| part.from < part.to);
        taken
    }

    /// Whether something of a plan came since the topics' ids were asked for.
    pub fn is_unconfirmed<'t>(&self, mut taken: impl Iterator<Item = (&'t Partition, u64)>) -> bool {
        taken.any(|(partition, to)| self.cursors.get(partition).is_none_or(|cursor| to > cursor.confirmed))
    }

    /// What a question for the ids will confirm. What waits in the queues is taken first, so that one question serves many
    /// lanes.
    pub fn offsets_to_confirm(&mut self) -> Vec<(Partition, ShardId, u64)> {
        /// Of each partition: a lane that has more asks for itself.
        const CAP: Size = Size { records: 1_000, bytes: 16 * 1024 };
        for (partition, cursor) in &mut self.cursors {
            if cursor.queue.ready.load(Ordering::Acquire) {
                drain(cursor, &self.consumer, &self.form, partition, cursor.planned, CAP);
            }
        }
        self.cursors.iter().map(|(partition, cursor)| (partition.clone(), cursor.shard.clone(), cursor.at)).collect()
    }

    /// Partitions are what they were, after these offsets had been read.
    pub fn confirm(&mut self, offsets: &[(Partition, ShardId, u64)], is_same: impl Fn(&Partition, &ShardId) -> bool) {
        for (partition, shard, at) in offsets.iter().filter(|(partition, shard, _)| is_same(partition, shard)) {
            if let Some(cursor) = self.cursors.get_mut(partition).filter(|cursor| cursor.shard == *shard) {
                cursor.confirmed = cursor.confirmed.max(*at).min(cursor.at);
            }
        }
    }

    /// The records of a span, where the cursor still has them.
    pub fn held(&self, partition: &Partition, shard: &ShardId, from: u64, to: u64) -> Option<Taken> {
        let cursor = self.cursors.get(partition).filter(|cursor| cursor.shard == *shard)?;
        let has = cursor.start <= from && to <= cursor.at;
        has.then(|| Taken { from, to, chunks: cursor.chunks.iter().map(|(_, chunk)| chunk.clone()).collect() })
    }
}

/// Takes from the queue until the buffer has what a plan from `from` may take, or the queue is empty.
fn drain(
    cursor: &mut Cursor,
    consumer: &BaseConsumer<Context>,
    form: &Form,
    partition: &Partition,
    from: u64,
    wanted: Size,
) {
    let mut held =
        cursor.chunks.iter().map(|(_, chunk)| chunk.size_from(from)).fold(Size::default(), |sum, size| sum + size);
    let mut builder = Builder::new(form, partition);
    let mut at = cursor.at;
    // Before the queue is looked at: what comes behind the last look wakes.
    cursor.queue.ready.store(false, Ordering::Release);
    while cursor.stuck.is_none() {
        let size = held + builder.size();
        if size.records >= wanted.records || size.bytes >= wanted.bytes {
            cursor.queue.ready.store(true, Ordering::Release);
            break;
        }
        match cursor.queue.queue.poll(Duration::ZERO) {
            None => break,
            Some(Ok(message)) => {
                cursor.fresh = true;
                match u64::try_from(message.offset()) {
                    Ok(offset) if offset >= at => {
                        // What goes beyond begins a chunk of its own: the one before is given back with its batch.
                        let is_full = (size + builder.size_of(&message)).bytes > wanted.bytes;
                        if is_full && builder.size().records > 0 {
                            let full = std::mem::replace(&mut builder, Builder::new(form, partition));
                            cursor.chunks.push_back((at, Arc::new(full.finish())));
                            held = size;
                        }
                        builder.push(&message);
                        at = offset + 1;
                    }
                    other => {
                        tracing::debug!(%partition, ?other, at, "kafka: a record from before the position is dropped")
                    }
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => cursor.fresh = true,
            Some(Err(error)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                let out_of_range =
                    matches!(code, RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange);
                cursor.stuck = Some(if out_of_range { Stuck::OutOfRange } else { Stuck::Refused(code) });
            }
        }
    }
    // Before the first word of this assignment the position may still be that of the one before.
    if cursor.fresh
        && let Some(position) = native::position(consumer.client(), &partition.topic, partition.number)
    {
        at = at.max(position);
    }
    if builder.size().records > 0 {
        cursor.chunks.push_back((at, Arc::new(builder.finish())));
    }
    cursor.at = at;
}
