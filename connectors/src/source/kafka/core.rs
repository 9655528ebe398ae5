//! What all calls of a source share: its configuration, the client that asks, the reader, and what is known of the topics.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rdkafka::{
    consumer::BaseConsumer,
    error::{KafkaError, RDKafkaErrorCode},
};
use tidemill_checkpoint::{Lane, Position, Positions, ShardId, Spans};
use tidemill_config::{self as config, OnLostOffsets, Start};
use tokio::sync::Notify;

use super::{
    beginning,
    chunk::Form,
    client::{self, ANSWER_LIMIT, Context, Voice, transient},
    lost,
    member::Members,
    reader::Reader,
    replay::{self, Replayed, watermarks},
    share::Share,
    topics::{Partition, Topology, Wanted, parse_shard},
};
use crate::{
    kafka::{On, Operation, is_denied, missing, native::Ask},
    source::{Adopted, RawBatch, Settings, SourceError},
};

/// A partition that ends before its mark is asked again: right after a broker's start its end may lie behind.
const END_TRIES: usize = 4;
const END_PAUSE: Duration = Duration::from_millis(700);

/// See the module.
pub(super) struct Core {
    pub name: String,
    pub job: String,
    pub config: config::KafkaSource,
    pub group: String,
    pub wanted: Wanted,
    pub partitioned: bool,
    /// In the group, with `lanes: partition`.
    pub members: Members,
    pub form: Form,
    ahead_bytes: usize,
    pub voice: Arc<Voice>,
    /// Wakes [`crate::source::Source::event`].
    pub wake: Arc<Notify>,
    query: Mutex<Option<Arc<BaseConsumer<Context>>>>,
    reader: Mutex<Option<Reader>>,
    view: Mutex<View>,
    share: Mutex<Share>,
    turn: AtomicUsize,
}

/// What is known, and what is to be told.
#[derive(Default)]
pub(super) struct View {
    pub topology: Topology,
    /// First offset and last stable one of each partition.
    pub watermarks: BTreeMap<Partition, (u64, u64)>,
    /// `--once` was asked for.
    pub finishing: bool,
    /// ... and these are the ends then.
    pub ends: Option<BTreeMap<Partition, u64>>,
    /// Offsets that the group does not have yet, with `lanes: single`.
    pub offsets: BTreeMap<Partition, u64>,
    /// Partitions that were there when the job began, as far as this daemon found that out and their lanes are not known yet.
    pub begun: BTreeSet<Partition>,
    /// What keeps the source from reading: told once each time it is found.
    pub trouble: Option<String>,
}

impl Core {
    pub fn new(source: &config::Source, kafka: &config::KafkaSource, settings: &Settings) -> Result<Self, SourceError> {
        let topics: Vec<String> = kafka.topics.iter().map(|topic| topic.value.clone()).collect();
        let wanted = Wanted::new(&topics).map_err(SourceError::Fatal)?;
        let group = kafka.group.clone().unwrap_or_else(|| config::KafkaSource::usual_group(&settings.job));
        let core = Self {
            name: source.name.value.clone(),
            job: settings.job.clone(),
            config: kafka.clone(),
            group,
            wanted,
            partitioned: settings.partitioned,
            members: Members::default(),
            form: Form::new(
                source.metadata.iter().map(|item| item.value.as_str()),
                kafka.tombstones,
                kafka.key.is_some(),
            ),
            ahead_bytes: settings.ahead_bytes,
            voice: Arc::default(),
            wake: Arc::default(),
            query: Mutex::default(),
            reader: Mutex::default(),
            view: Mutex::default(),
            share: Mutex::new(Share::new(settings.trigger)),
            turn: AtomicUsize::new(0),
        };
        let checked = client::config(&core.config, &core.group).create_native_config();
        checked.map_err(|error| client::refused(&error))?;
        Ok(core)
    }

    /// The topics as the job names them.
    pub fn topics(&self) -> Vec<String> {
        self.config.topics.iter().map(|topic| topic.value.clone()).collect()
    }

    pub fn share(&self) -> MutexGuard<'_, Share> {
        self.share.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many members of the group this daemon may have.
    pub fn most_members(&self) -> usize {
        let property = |name| client::property(&self.config, name);
        // Where partitions that stay are taken back too, each join stops every daemon.
        let is_eager = property("partition.assignment.strategy").is_some_and(|text| !text.contains("cooperative"));
        match (self.partitioned, self.config.members) {
            (false, _) => 0,
            // A name of a static member is one member's.
            _ if is_eager || property("group.instance.id").is_some() => 1,
            (true, members) => members,
        }
    }

    /// A member joins the group, unless so many are there; whether it did.
    pub fn join(&self, most: usize) -> Result<bool, SourceError> {
        self.members.join(&self.config, (&self.job, &self.group), &self.voice, &self.wake, most)
    }

    pub fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn reader(&self) -> MutexGuard<'_, Option<Reader>> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }
    pub fn transient(&self, what: impl Into<String>, cause: impl Into<String>) -> SourceError {
        transient(&self.voice, what, cause)
    }
    /// What a right that is missing is, and how it is given. It may come back at any time: the job waits for it.
    pub fn lacks(&self, operation: Operation, on: On<'_>) -> String {
        missing(&self.config.brokers, &self.config.properties, &[operation], on)
    }
    /// An error about a topic.
    pub fn failed(&self, what: impl Into<String>, topic: &str, error: &KafkaError) -> SourceError {
        match error.rdkafka_error_code() {
            // What connections said before has nothing to do with it.
            code if is_denied(code) => {
                SourceError::Transient { what: what.into(), cause: self.lacks(Operation::Read, On::Topic(topic)) }
            }
            _ => self.transient(what, error.to_string()),
        }
    }
    /// An error about the group.
    pub fn failed_of_group(&self, what: impl Into<String>, error: &KafkaError) -> SourceError {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {
                SourceError::Transient { what: what.into(), cause: self.lacks(Operation::Read, On::Group(&self.group)) }
            }
            _ => self.transient(what, error.to_string()),
        }
    }
    /// Why a topic cannot be read.
    pub fn absent(&self, topic: &str, code: RDKafkaErrorCode) -> String {
        match code {
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                format!("there is no topic {topic}: make it, or correct `topics`")
            }
            code if is_denied(Some(code)) => self.lacks(Operation::Read, On::Topic(topic)),
            other => format!("topic {topic}: {other}"),
        }
    }
    /// What keeps one of the topics from being read, in words.
    pub fn trouble(&self, topology: &Topology) -> Option<String> {
        topology.missing.iter().next().map(|(topic, code)| self.absent(topic, *code))
    }
    pub fn not_owned(&self, lane: &Lane) -> SourceError {
        SourceError::Transient {
            what: format!("reading lane {lane}"),
            cause: "its partition is not this daemon's".into(),
        }
    }

    /// A client of its own, which asks.
    pub fn client(&self) -> Result<BaseConsumer<Context>, SourceError> {
        let context = Context { voice: self.voice.clone() };
        let config = client::asking_config(&self.config, &self.group);
        config.create_with_context(context).map_err(|error| client::refused(&error))
    }

    /// The client that asks.
    pub fn query(&self) -> Result<Arc<BaseConsumer<Context>>, SourceError> {
        let mut query = self.query.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(query) = &*query {
            return Ok(query.clone());
        }
        let made = Arc::new(self.client()?);
        *query = Some(made.clone());
        Ok(made)
    }

    /// The client that asks, where there is one.
    pub fn existing_query(&self) -> Option<Arc<BaseConsumer<Context>>> {
        self.query.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The client that asks and the one that reads, ended.
    pub fn close(&self) {
        let (reader, query) = (self.reader().take(), self.query.lock().unwrap_or_else(PoisonError::into_inner).take());
        drop((reader, query));
    }

    fn reader_or_new(&self) -> Result<MutexGuard<'_, Option<Reader>>, SourceError> {
        let mut reader = self.reader();
        if reader.is_none() {
            let partitions = self.view().topology.partitions().count();
            let config = client::reader_config(&self.config, &self.group, self.ahead_bytes, partitions);
            let context = Context { voice: self.voice.clone() };
            let consumer = config.create_with_context(context).map_err(|error| client::refused(&error))?;
            *reader = Some(Reader::new(consumer, self.voice.clone(), self.wake.clone(), self.form.clone()));
        }
        Ok(reader)
    }

    /// Asks for the topics, and keeps the answer.
    pub fn refresh(&self) -> Result<Topology, SourceError> {
        let topology = Topology::fetch(&*self.query()?, &self.wanted, Ask::Topics, &self.voice)?;
        let before = std::mem::replace(&mut self.view().topology, topology.clone());
        for topic in before.topics.keys().filter(|topic| !topology.topics.contains_key(*topic)) {
            let cause = topology.missing.get(&**topic).map_or_else(String::new, |code| format!(" ({code})"));
            tracing::warn!(
                source = self.name,
                topic = &**topic,
                "kafka: the topic is not there any more{cause}: it was deleted, or this user may not see it now; its partitions are read no further"
            );
        }
        Ok(topology)
    }

    /// Asks for the ids of the topics that are read, and stops the cursors of those that are others now. Whether up to here
    /// these partitions are what they were: what became of others is for their lanes.
    pub fn confirm(&self, wanted: &[(Partition, u64)]) -> Result<bool, SourceError> {
        let read = self.reader().as_mut().map(Reader::offsets_to_confirm).unwrap_or_default();
        let names: BTreeSet<_> = read.iter().map(|(partition, ..)| partition.topic.clone()).collect();
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        let topology = Topology::describe(&*self.query()?, &names, Ask::Topics, &self.voice)?;
        let mut guard = self.reader();
        let Some(reader) = guard.as_mut() else { return Ok(false) };
        reader.stop_made_again(|partition| topology.shard(&self.name, partition));
        reader.confirm(&read, |partition, shard| topology.shard(&self.name, partition).as_ref() == Some(shard));
        Ok(!reader.is_unconfirmed(wanted.iter().map(|(partition, to)| (partition, *to))))
    }

    /// First offset and last stable one.
    pub fn watermarks(&self, partition: &Partition) -> Result<(u64, u64), SourceError> {
        self.watermarks_within(partition, ANSWER_LIMIT)
    }
    /// The same, where an answer is not worth waiting for longer.
    pub fn watermarks_within(&self, partition: &Partition, limit: Duration) -> Result<(u64, u64), SourceError> {
        let found = watermarks(&*self.query()?, partition, limit).map_err(|error| {
            self.failed(format!("asking where {partition} begins and ends"), &partition.topic, &error)
        })?;
        self.view().watermarks.insert(partition.clone(), found);
        Ok(found)
    }

    /// Whether a partition belongs to a lane.
    pub fn is_of(&self, lane: &Lane, partition: &Partition) -> bool {
        !self.partitioned || Partition::of_lane(&self.name, lane).as_ref() == Some(partition)
    }

    /// A lane of another source of the job, of which this one has nothing.
    pub fn is_foreign(&self, lane: &Lane) -> bool {
        self.partitioned && Partition::of_lane(&self.name, lane).is_none()
    }

    /// Every partition of a lane. An error where the job names a topic that is not there: which positions are its own,
    /// nobody could say.
    fn partitions_of(&self, lane: &Lane, topology: &Topology) -> Result<Vec<Partition>, SourceError> {
        let partitions: Vec<_> = topology.partitions().filter(|partition| self.is_of(lane, partition)).collect();
        let trouble = match self.trouble(topology) {
            Some(trouble) if !self.partitioned || partitions.is_empty() => trouble,
            _ if self.partitioned && partitions.is_empty() => "there is no such partition".to_owned(),
            _ => return Ok(partitions),
        };
        Err(SourceError::Transient { what: format!("reading lane {lane}"), cause: trouble })
    }

    pub fn offset(&self, shard: &ShardId, position: &Position) -> Result<u64, SourceError> {
        let what = || SourceError::Fatal(format!("shard {shard}: {position} is no offset"));
        position.as_number().ok_or_else(what)
    }

    /// Where a lane starts that nobody has worked on.
    pub fn origin(&self, lane: &Lane) -> Result<Positions, SourceError> {
        let topology = self.refresh()?;
        let partitions = self.partitions_of(lane, &topology)?;
        let begun = match (self.partitioned, self.config.start) {
            (true, Start::Latest) => Some(beginning::committed(self, &*self.query()?, &partitions)?),
            _ => None,
        };
        let mut positions = Positions::new();
        for partition in partitions {
            self.view().begun.remove(&partition);
            let (low, high) = self.watermarks(&partition)?;
            let at = match (self.config.start, &begun) {
                (Start::Earliest, _) => low,
                (Start::Latest, None) => high,
                // Added since the job began.
                (Start::Latest, Some(begun)) => begun.get(&partition).copied().unwrap_or(low),
            };
            positions.extend(topology.shard(&self.name, &partition).map(|shard| (shard, Position::number(at))));
        }
        Ok(positions)
    }

    /// Puts the reader where a mark stands.
    pub fn adopt(&self, lane: &Lane, at: &Positions) -> Result<Adopted, SourceError> {
        let topology = self.refresh()?;
        let partitions = self.partitions_of(lane, &topology)?;
        let mut adopted = Adopted::default();
        let mut places = Vec::new();
        let says = self.config.on_lost_offsets;
        for (shard, position) in at {
            self.offset(shard, position)?;
        }
        for partition in partitions.iter().cloned() {
            let Some(shard) = topology.shard(&self.name, &partition) else { continue };
            let (low, high) = self.watermarks(&partition)?;
            let Some(position) = at.get(&shard) else {
                let start = match lost::former(at, &partition) {
                    None => low,
                    Some(former) => {
                        let loss = lost::made_again(former, &shard);
                        let Some(start) = lost::go_on(says, (low, high)) else {
                            return Err(loss.stop());
                        };
                        adopted.warnings.push(loss.goes_on(says, start));
                        start
                    }
                };
                adopted.new_shards.insert(shard.clone(), Position::number(start));
                places.push((partition, shard, start, start));
                continue;
            };
            adopted.warnings.extend(beginning::forgotten(self, &partition));
            let offset = self.offset(&shard, position)?;
            let (low, high) = self.settled(&partition, offset, (low, high))?;
            if (low..=high).contains(&offset) {
                places.push((partition, shard, offset, offset));
                continue;
            }
            let loss = lost::out_of_range(&partition, &shard, offset, (low, high));
            let Some(start) = lost::go_on(says, (low, high)).filter(|start| *start >= offset) else {
                return Err(loss.stop());
            };
            adopted.warnings.push(loss.goes_on(says, start));
            places.push((partition, shard, offset, start));
        }
        let mut guard = self.reader_or_new()?;
        if let Some(reader) = guard.as_mut() {
            // A pattern's topic that was deleted is read no more.
            let is_gone = |one: &&Partition| self.is_of(lane, one) && !partitions.contains(one);
            for partition in reader.cursors.keys().filter(is_gone).cloned().collect::<Vec<_>>() {
                reader.drop_cursor(&partition);
            }
            for (partition, shard, start, at) in places {
                reader.place(&partition, shard, start, at)?;
            }
        }
        drop(guard);
        self.wake.notify_one();
        Ok(adopted)
    }

    /// The watermarks, asked again where the end lies before a mark.
    fn settled(&self, partition: &Partition, offset: u64, mut found: (u64, u64)) -> Result<(u64, u64), SourceError> {
        for _ in 0..END_TRIES {
            if offset <= found.1 {
                break;
            }
            thread::sleep(END_PAUSE);
            found = self.watermarks(partition)?;
        }
        Ok(found)
    }

    /// Partitions that appeared since the lane was adopted begin at their first record.
    pub fn place_new(&self, reader: &mut Reader, lane: &Lane, from: &Positions) -> Result<(), SourceError> {
        if self.partitioned {
            return Ok(());
        }
        let view = self.view();
        let is_new = |partition: &Partition| !reader.cursors.contains_key(partition) && self.is_of(lane, partition);
        let new: Vec<_> = view.topology.partitions().filter(is_new).collect();
        for partition in new {
            let Some(shard) = view.topology.shard(&self.name, &partition) else { continue };
            let Some((low, _)) = view.watermarks.get(&partition).copied() else { continue };
            // A topic that was made again is no new one: `adopt` says what becomes of it.
            if lost::former(from, &partition).is_none() && !from.contains_key(&shard) {
                tracing::info!(source = self.name, %partition, "kafka: a new partition");
                reader.place(&partition, shard, low, low)?;
            }
        }
        Ok(())
    }

    /// Whether a plan would find something.
    pub fn has_news(&self) -> bool {
        let guard = self.reader();
        let Some(reader) = guard.as_ref() else { return false };
        if reader.cursors.values().any(|cursor| cursor.has_news()) {
            return true;
        }
        let view = self.view();
        !self.partitioned
            && !reader.cursors.is_empty()
            && view
                .topology
                .partitions()
                .any(|partition| !reader.cursors.contains_key(&partition) && view.watermarks.contains_key(&partition))
    }

    /// `--once`: everything is planned that was there. `mine`: these partitions alone.
    pub fn is_at_end(&self, mine: Option<&BTreeSet<Partition>>) -> bool {
        let guard = self.reader();
        let Some(reader) = guard.as_ref() else { return false };
        let view = self.view();
        let Some(ends) = &view.ends else { return false };
        let is_mine = |partition: &Partition| mine.is_none_or(|mine| mine.contains(partition));
        let is_planned = |partition: &Partition, end: u64| {
            reader.cursors.get(partition).is_some_and(|cursor| cursor.stuck.is_none() && cursor.planned >= end)
        };
        ends.iter().filter(|(partition, _)| is_mine(partition)).all(|(partition, end)| is_planned(partition, *end))
    }

    /// Whether a shard is one of a topic as it is now.
    pub fn is_current(&self, shard: &ShardId) -> bool {
        let Some((partition, _)) = parse_shard(shard) else { return false };
        self.view().topology.shard(&self.name, &partition).as_ref() == Some(shard)
    }

    /// Reads a partition no more.
    pub fn forget(&self, partition: &Partition) {
        if let Some(reader) = self.reader().as_mut() {
            reader.drop_cursor(partition);
        }
    }

    /// Reads nothing more.
    pub fn forget_all(&self) {
        if let Some(reader) = self.reader().as_mut() {
            for partition in reader.cursors.keys().cloned().collect::<Vec<_>>() {
                reader.drop_cursor(&partition);
            }
        }
    }

    /// What every sink has need not be kept.
    pub fn release(&self, reached: &Positions) {
        let mut guard = self.reader();
        let Some(reader) = guard.as_mut() else { return };
        for (partition, cursor) in &mut reader.cursors {
            let at = reached.get(&cursor.shard).and_then(Position::as_number);
            if let Some(at) = at.filter(|_| self.view().topology.topics.contains_key(&partition.topic)) {
                cursor.forget(at);
            }
        }
    }

    /// Records that wait, as far as the brokers were asked.
    pub fn lag(&self, at: &Positions) -> Option<u64> {
        let view = self.view();
        let waits = |partition: &Partition, from: Option<u64>| {
            let (low, high) = view.watermarks.get(partition)?;
            Some(high.saturating_sub(from.map_or(*low, |from| from.max(*low))))
        };
        let of_shard = |(shard, position): (&ShardId, &Position)| {
            let Some((partition, _)) = parse_shard(shard) else { return Some(0) };
            let is_current = view.topology.shard(&self.name, &partition).as_ref() == Some(shard);
            match is_current {
                true => waits(&partition, position.as_number()),
                // Of one that was made again nobody knows what of it is to be read; one that is gone has no records.
                false => (!view.topology.topics.contains_key(&partition.topic)).then_some(0),
            }
        };
        // Where a lane stands, or where a partition ends, is not known at first: then nobody knows what waits.
        if view.watermarks.is_empty() || at.is_empty() {
            return None;
        }
        at.iter().map(of_shard).sum()
    }

    /// The records of a plan's spans, from the reader where it still has them, else from the topic.
    pub fn read_again(&self, spans: &Spans) -> Result<RawBatch, SourceError> {
        let mut batch = RawBatch::default();
        let mut fresh: Option<(Topology, BaseConsumer<Context>)> = None;
        for (shard, span) in spans {
            let Some((partition, _)) = parse_shard(shard) else {
                return Err(SourceError::Fatal(format!("{shard} is no shard of a kafka source")));
            };
            let (from, to) = (self.offset(shard, &span.from)?, self.offset(shard, &span.to)?);
            let held = self.reader().as_ref().and_then(|reader| reader.held(&partition, shard, from, to));
            if let Some(held) = held {
                held.read(shard, &mut batch);
                continue;
            }
            if fresh.is_none() {
                fresh = Some((self.refresh()?, self.client()?));
            }
            let Some((topology, client)) = &fresh else { continue };
            let accepts = self.config.on_lost_offsets != OnLostOffsets::Stop;
            let now = topology.shard(&self.name, &partition);
            match now {
                Some(now) if now == *shard => {
                    let span = (from, to);
                    match replay::replay(self, client, &partition, span, accepts)? {
                        Replayed::All(chunk) => chunk.read(shard, from, to, &mut batch),
                        Replayed::Gone(low, high) => {
                            return Err(lost::span_gone(&partition, shard, span, (low, high)).stop());
                        }
                    }
                }
                Some(now) if accepts => {
                    let loss = lost::made_again(shard, &now);
                    let said = loss.passed_over(self.config.on_lost_offsets, "the batch is made without them");
                    tracing::warn!(source = self.name, %shard, "kafka: {said}");
                }
                Some(now) => return Err(lost::made_again(shard, &now).stop()),
                None => {
                    let cause = self.trouble(topology).unwrap_or_else(|| format!("{partition} is not there"));
                    return Err(SourceError::Transient { what: format!("reading {partition} again"), cause });
                }
            }
        }
        if fresh.is_some() {
            // What was read is of the topics that were asked for before, if they are still the same.
            let topology = self.refresh()?;
            let is_other = |shard: &&ShardId| {
                let now = parse_shard(shard).and_then(|(partition, _)| topology.shard(&self.name, &partition));
                now.is_some_and(|now| now != **shard)
            };
            if let Some(shard) =
                spans.keys().find(is_other).filter(|_| self.config.on_lost_offsets == OnLostOffsets::Stop)
            {
                let cause = format!("the topic of {shard} was made again meanwhile");
                return Err(SourceError::Transient { what: "reading a batch again".into(), cause });
            }
        }
        Ok(batch)
    }
}
