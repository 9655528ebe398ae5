//! `type: kafka`: partitions of topics as shards, the offset of the next record as the position.
//!
//! - A shard's name holds cluster and topic id: a topic that was made again is another shard, and the old one is lost.
//! - `reader` reads: one client, each partition assigned by hand where its mark stands. `replay` reads a plan's spans again.
//! - `member` is in the consumer group, with `lanes: partition`: which partitions are this daemon's. `group` is what several
//!   members know together, `share` says how many there are. With `lanes: single` nobody is in the group, and who works the
//!   sinks' generations say alone.
//! - `others` looks for whoever else is in the group.
//! - `beginning` says where a lane begins that nobody has worked on, with `start: latest`.
//! - `core` keeps what all calls share and asks the brokers; `watch` is the thread that keeps it fresh.
//! - Truth is in the sinks' marks. The group's offsets are for monitors, and for lanes that have no mark yet (`beginning`).

mod beginning;
mod check;
mod chunk;
mod client;
mod core;
mod group;
mod lost;
mod member;
mod offsets;
mod others;
mod reader;
mod replay;
mod share;
mod topics;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tidemill_checkpoint::{Lane, Position, Positions, ShardId, Span};
use tidemill_config as config;

pub use self::chunk::{KEY_BYTES, TOMBSTONE, metadata_type};
use self::{
    core::Core,
    group::{Group, Move},
    reader::{Stuck, Taken},
    topics::{Partition, parse_shard},
    watch::Watch,
};
use super::{
    Adopted, Budget, Found, History, Lag, Origin, Proposal, RawBatch, Settings, Source, SourceError, SourceEvent,
};

/// What waits unheard of is looked at this often.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// A plan that begins where nothing was read ahead waits for the first answer so long.
const FIRST_WORD: Duration = Duration::from_secs(20);
/// ... and looks for it this often.
const LOOK: Duration = Duration::from_millis(5);

/// Topics of Kafka.
pub struct KafkaSource {
    core: Arc<Core>,
    _watch: Watch,
}

/// What a plan read ahead, by shard.
struct Ahead(BTreeMap<ShardId, Taken>);

impl Ahead {
    fn proposal(self) -> Option<Proposal> {
        let span = |(shard, taken): (&ShardId, &Taken)| {
            let span = Span { from: Position::number(taken.from), to: Position::number(taken.to) };
            (shard.clone(), span)
        };
        let spans: BTreeMap<_, _> = self.0.iter().map(span).collect();
        (!spans.is_empty()).then(|| Proposal { spans, ahead: Some(Arc::new(self)), ..Proposal::default() })
    }
}

impl KafkaSource {
    /// Opens nothing yet: a wrong property is an error, a broker that is down is none.
    pub fn open(
        config: &config::Source,
        kafka: &config::KafkaSource,
        settings: &Settings,
    ) -> Result<Self, SourceError> {
        let core = Arc::new(Core::new(config, kafka, settings)?);
        Ok(Self { _watch: Watch::new(core.clone()), core })
    }

    /// What the topic has at an offset; see [`crate::source::find`].
    pub async fn find(&self, shard: &ShardId, position: &Position) -> Result<Found, SourceError> {
        let (shard, offset) = (shard.clone(), self.core.offset(shard, position)?);
        self.blocking(move |core| lost::find(core, &shard, offset)).await
    }

    /// What its members of the group know, with `lanes: partition`.
    fn group(&self) -> Option<Arc<Group>> {
        self.core.partitioned.then(|| self.core.members.group())
    }

    /// Runs what asks the brokers, which blocks.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Core) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let core = self.core.clone();
        let done = tokio::task::spawn_blocking(move || work(&core)).await;
        done.unwrap_or_else(|error| {
            Err(SourceError::Transient { what: "asking the brokers".into(), cause: error.to_string() })
        })
    }

    fn lanes(&self, partitions: &[Partition]) -> Vec<Lane> {
        partitions.iter().map(|partition| partition.lane(&self.core.name)).collect()
    }

    fn due(&self) -> Result<Option<SourceEvent>, SourceError> {
        if let Some(group) = self.group() {
            group.alive();
            if let Some(fault) = group.fault() {
                return Err(SourceError::Fatal(format!("the consumer group: {fault}")));
            }
            match group.next_move() {
                Some(Move::Assigned(partitions)) => return Ok(Some(SourceEvent::Assigned(self.lanes(&partitions)))),
                Some(Move::Revoked(partitions, limit)) => {
                    return Ok(Some(SourceEvent::Revoked(self.lanes(&partitions), limit)));
                }
                Some(Move::Lost(partitions)) => {
                    partitions.iter().for_each(|partition| self.core.forget(partition));
                    return Ok(Some(SourceEvent::Lost(self.lanes(&partitions))));
                }
                None => {}
            }
        }
        let trouble = |cause| Err(SourceError::Transient { what: format!("source {}", self.core.name), cause });
        if let Some(group) = self.group()
            && let Some(cause) = group.take_trouble()
        {
            // Lanes that it has it keeps until the group takes them away.
            if group.mine().is_empty() {
                return trouble(cause);
            }
            tracing::warn!(source = self.core.name, "kafka: the group: {cause}");
        }
        if let Some(cause) = self.core.view().trouble.take() {
            return trouble(cause);
        }
        if self.is_at_end() {
            return Ok(Some(SourceEvent::End));
        }
        Ok(self.core.has_news().then_some(SourceEvent::Data))
    }

    fn is_at_end(&self) -> bool {
        let mine: Option<BTreeSet<Partition>> = self.group().map(|group| group.mine());
        mine.as_ref().is_none_or(|mine| !mine.is_empty()) && self.core.is_at_end(mine.as_ref())
    }

    /// One try of a plan.
    fn try_plan(&self, lane: &Lane, from: &Positions, budget: Budget) -> Result<Tried, SourceError> {
        let core = &self.core;
        let mut guard = core.reader();
        let Some(reader) = guard.as_mut() else { return Err(core.not_owned(lane)) };
        core.place_new(reader, lane, from)?;
        let mut at = Vec::new();
        for (partition, cursor) in &reader.cursors {
            if core.is_of(lane, partition) {
                let given = from.get(&cursor.shard).map(|position| core.offset(&cursor.shard, position)).transpose()?;
                at.push((partition.clone(), given.unwrap_or_else(|| cursor.start()), cursor.shard.clone()));
            }
        }
        if at.is_empty() && core.partitioned {
            return Err(core.not_owned(lane));
        }
        for (partition, offset, shard) in &at {
            let known = match reader.cursors.get(partition) {
                Some(cursor) if !cursor.covers(*offset) => cursor.at().max(cursor.known),
                _ => continue,
            };
            reader.place(partition, shard.clone(), *offset, *offset)?;
            reader.cursors.entry(partition.clone()).and_modify(|cursor| cursor.known = known);
        }
        // Whose turn it is to be the first moves on with each plan.
        let turn = core.turn() % at.len().max(1);
        at.rotate_left(turn);
        let wanted: Vec<_> = at.iter().map(|(partition, offset, _)| (partition.clone(), *offset)).collect();
        let taken = reader.plan(&wanted, budget);
        for (partition, offset, shard) in &at {
            if let Some(stuck) = reader.cursors.get(partition).and_then(|cursor| cursor.stuck) {
                return Ok(Tried::Stuck(partition.clone(), shard.clone(), *offset, stuck));
            }
        }
        let lacks = |(partition, offset, _): &(Partition, u64, ShardId)| {
            reader.cursors.get(partition).is_some_and(|cursor| cursor.lacks(*offset))
        };
        if at.iter().any(lacks) {
            return Ok(Tried::Silent);
        }
        let shard_of: BTreeMap<&Partition, &ShardId> =
            at.iter().map(|(partition, _, shard)| (partition, shard)).collect();
        let to: Vec<_> = taken.iter().map(|(partition, taken)| (partition.clone(), taken.to)).collect();
        let is_sure = !reader.is_unconfirmed(to.iter().map(|(partition, to)| (partition, *to)));
        let ahead = taken.into_iter().filter_map(|(partition, taken)| {
            let shard = (*shard_of.get(&partition)?).clone();
            Some((shard, taken))
        });
        let ahead = Ahead(ahead.collect());
        Ok(if is_sure { Tried::Done(ahead) } else { Tried::Unsure(ahead, to) })
    }

    /// Notes for monitors how far partitions are done.
    fn note_done(&self, positions: &Positions) {
        let group = self.group();
        for (shard, position) in positions {
            let (Some((partition, _)), Some(offset)) = (parse_shard(shard), position.as_number()) else { continue };
            if !self.core.is_current(shard) {
                continue;
            }
            match &group {
                Some(group) => group.done(&partition, offset),
                None => drop(self.core.view().offsets.insert(partition, offset)),
            }
        }
    }
}

/// What a try of a plan came to.
enum Tried {
    Done(Ahead),
    /// The same, once the topics' ids are known to be what they were: of these partitions, up to these offsets.
    Unsure(Ahead, Vec<(Partition, u64)>),
    /// A partition that was put back has records that have not come yet.
    Silent,
    Stuck(Partition, ShardId, u64, Stuck),
}

#[async_trait]
impl Source for KafkaSource {
    fn name(&self) -> &str {
        &self.core.name
    }

    fn rereadable(&self) -> bool {
        true
    }

    async fn check(&self) -> Result<(), SourceError> {
        self.blocking(check::check).await
    }

    async fn start(&self) -> Result<(), SourceError> {
        if !self.core.partitioned {
            return Ok(());
        }
        // From now on the watch asks for the topics, to which the member subscribes.
        self.core.query()?;
        self.core.join(1).map(drop)
    }

    async fn stop(&self) {
        let core = self.core.clone();
        // Leaving the group asks the brokers.
        if let Err(error) = tokio::task::spawn_blocking(move || core.members.end()).await {
            tracing::warn!(source = self.core.name, %error, "kafka: leaving the group");
        }
        self.core.forget_all();
    }

    async fn event(&self) -> Result<SourceEvent, SourceError> {
        loop {
            let woken = self.core.wake.notified();
            if let Some(event) = self.due()? {
                return Ok(event);
            }
            let _ = tokio::time::timeout(LONGEST_WAIT, woken).await;
        }
    }

    async fn origin(&self, lane: &Lane) -> Result<Origin, SourceError> {
        if self.core.is_foreign(lane) {
            return Ok(Origin::default());
        }
        let lane = lane.clone();
        let positions = self.blocking(move |core| core.origin(&lane)).await?;
        Ok(Origin { positions, ..Origin::default() })
    }

    async fn adopt(&self, lane: &Lane, at: &Positions, _history: &History) -> Result<Adopted, SourceError> {
        if self.core.is_foreign(lane) {
            return Ok(Adopted::default());
        }
        let (lane, positions) = (lane.clone(), at.clone());
        let adopted = self.blocking(move |core| core.adopt(&lane, &positions)).await?;
        self.note_done(at);
        Ok(adopted)
    }

    async fn plan(&self, lane: &Lane, from: &Positions, budget: Budget) -> Result<Option<Proposal>, SourceError> {
        if self.core.is_foreign(lane) {
            return Ok(None);
        }
        let deadline = Instant::now() + FIRST_WORD;
        loop {
            if let Some(group) = self.group() {
                group.alive();
            }
            match self.try_plan(lane, from, budget)? {
                Tried::Done(ahead) => return Ok(ahead.proposal()),
                Tried::Unsure(ahead, to) => {
                    if self.blocking(move |core| core.confirm(&to)).await? {
                        return Ok(ahead.proposal());
                    }
                    // Stopped, as the next try tells; or the topic is not there at the moment.
                    if Instant::now() > deadline {
                        return Err(self.core.transient(
                            format!("reading lane {lane}"),
                            format!("the brokers do not tell of its topics for {FIRST_WORD:?}"),
                        ));
                    }
                    tokio::time::sleep(LOOK).await;
                }
                Tried::Stuck(partition, shard, at, stuck) => {
                    self.blocking(move |core| lost::resolve(core, &partition, &shard, at, stuck)).await?;
                }
                Tried::Silent if Instant::now() > deadline => {
                    return Err(self
                        .core
                        .transient(format!("reading lane {lane}"), format!("nothing came in {FIRST_WORD:?}")));
                }
                Tried::Silent => tokio::time::sleep(LOOK).await,
            }
        }
    }

    async fn read(&self, _lane: &Lane, proposal: &Proposal) -> Result<RawBatch, SourceError> {
        let ahead = proposal.ahead.as_ref().and_then(|ahead| ahead.downcast_ref::<Ahead>());
        if let Some(Ahead(taken)) = ahead {
            let mut batch = RawBatch::default();
            taken.iter().for_each(|(shard, taken)| taken.read(shard, &mut batch));
            return Ok(batch);
        }
        let spans = proposal.spans.clone();
        self.blocking(move |core| core.read_again(&spans)).await
    }

    async fn release(&self, _lane: &Lane, reached: &Positions) -> Result<(), SourceError> {
        self.note_done(reached);
        self.core.release(reached);
        Ok(())
    }

    async fn let_go(&self, lane: &Lane) {
        if let Some(partition) = Partition::of_lane(&self.core.name, lane) {
            self.core.forget(&partition);
            if let Some(group) = self.group() {
                group.let_go(&partition);
            }
        }
    }

    fn lag(&self, at: &Positions) -> Lag {
        Lag { records: self.core.lag(at), ..Lag::default() }
    }

    fn lag_counts_from_positions(&self) -> bool {
        true
    }

    fn worked(&self, worked: Duration, passed: Duration) {
        if self.core.most_members() > 1 {
            self.core.share().worked(worked, passed);
        }
    }

    fn finish(&self) {
        self.core.view().finishing = true;
    }
}

/// A record's topic, partition and offset, where its shard is a partition: `SOURCE/TOPIC/PARTITION@INCARNATION`.
pub fn origin(shard: &str, position: &str) -> Option<[String; 3]> {
    let (_, part) = shard.split_once('/')?;
    let (topic, partition) = part.split_once('@')?.0.rsplit_once('/')?;
    let numeric = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_partition = numeric(partition) && numeric(position);
    is_partition.then(|| [topic.to_owned(), partition.to_owned(), position.to_owned()])
}
