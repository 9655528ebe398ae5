//! The member of the consumer group: says which partitions this daemon has, commits their offsets for monitors, and reads
//! nothing. It lives in a thread of its own, which librdkafka calls when partitions move.
//!
//! A revocation waits in that call until the lanes are let go, or until [`let_go_limit`] has passed. The group then gives
//! them to somebody else. The group decides who works; that nobody works twice, the sinks' generations decide.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol},
    error::{KafkaError, KafkaResult},
    types::RDKafkaRespErr,
};
use tidemill_config::KafkaSource as Config;
use tokio::sync::Notify;

use super::{
    client::{self, Voice, property},
    topics::Partition,
};
use crate::source::SourceError;

/// What librdkafka assumes where the job says nothing else.
const DEFAULT_POLL_INTERVAL: Duration = Duration::from_secs(300);
/// A batch that is committed when its lane is revoked gets so long at most.
const LONGEST_LET_GO: Duration = Duration::from_secs(30);
/// The batch loop shows that it lives at least this often. A member whose loop does not leaves the group.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// How partitions move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Move {
    Assigned(Vec<Partition>),
    Revoked(Vec<Partition>, Duration),
    Lost(Vec<Partition>),
}

/// What the thread and the batch loop share.
#[derive(Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Lanes were let go, or the member ends.
    changed: Condvar,
    ending: AtomicBool,
}

#[derive(Default)]
struct State {
    moves: VecDeque<Move>,
    /// The group's partitions of this member.
    mine: BTreeSet<Partition>,
    /// Revoked, and still worked on.
    leaving: BTreeSet<Partition>,
    /// Offsets that the group does not have yet.
    offsets: BTreeMap<Partition, u64>,
    /// When the batch loop was heard of.
    alive: Option<Instant>,
    fault: Option<String>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn next_move(&self) -> Option<Move> {
        self.state().moves.pop_front()
    }
    pub fn mine(&self) -> BTreeSet<Partition> {
        self.state().mine.clone()
    }
    /// What keeps the member from working, where it cannot pass.
    pub fn fault(&self) -> Option<String> {
        self.state().fault.clone()
    }
    /// The batch loop lives.
    pub fn alive(&self) {
        self.state().alive = Some(Instant::now());
    }
    pub fn let_go(&self, partition: &Partition) {
        self.state().leaving.remove(partition);
        self.changed.notify_all();
    }
    /// Notes how far a partition is done.
    pub fn done(&self, partition: &Partition, offset: u64) {
        let mut state = self.state();
        if state.mine.contains(partition) || state.leaving.contains(partition) {
            state.offsets.insert(partition.clone(), offset);
        }
    }
    fn is_stuck(&self) -> bool {
        self.state().alive.is_some_and(|at| at.elapsed() > LONGEST_SILENCE)
    }

    fn came(&self, partitions: Vec<Partition>) {
        let mut state = self.state();
        state.mine.extend(partitions.iter().cloned());
        state.moves.push_back(Move::Assigned(partitions));
    }

    /// Waits until the lanes are let go.
    fn goes(&self, partitions: &[Partition], limit: Duration, wake: &Notify) {
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        state.mine.retain(|one| !partitions.contains(one));
        if self.ending.load(Ordering::Acquire) {
            return;
        }
        state.leaving.extend(partitions.iter().cloned());
        state.moves.push_back(Move::Revoked(partitions.to_vec(), limit));
        wake.notify_one();
        while !self.ending.load(Ordering::Acquire) && partitions.iter().any(|one| state.leaving.contains(one)) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(
                    "kafka: revoked partitions are given up while a batch of theirs is open; their next owner fences it"
                );
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.leaving.retain(|one| !partitions.contains(one));
    }

    fn lost(&self, partitions: Vec<Partition>) {
        let mut state = self.state();
        for partition in &partitions {
            state.mine.remove(partition);
            state.offsets.remove(partition);
        }
        state.moves.push_back(Move::Lost(partitions));
    }

    fn take_offsets(&self) -> BTreeMap<Partition, u64> {
        std::mem::take(&mut self.state().offsets)
    }
}

/// Hears the member's client.
struct Context {
    voice: Arc<Voice>,
    shared: Arc<Shared>,
    wake: Arc<Notify>,
    limit: Duration,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }
    fn error(&self, error: KafkaError, reason: &str) {
        client::heard(&self.voice, &error, reason);
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, kind: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions: Vec<Partition> =
            list.elements().iter().map(|one| Partition::new(one.topic(), one.partition())).collect();
        let is_cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let moved = if kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            let moved = if is_cooperative { consumer.incremental_assign(list) } else { consumer.assign(list) };
            // Nothing is read here, whatever the group has of offsets.
            let moved = moved.and_then(|()| consumer.pause(list));
            tracing::info!(partitions = shown(&partitions), "kafka: the group gave partitions to this daemon");
            self.shared.came(partitions);
            moved
        } else {
            if consumer.assignment_lost() {
                tracing::warn!(
                    partitions = shown(&partitions),
                    "kafka: the group took partitions away: it had not heard of this daemon in time"
                );
                self.shared.lost(partitions);
            } else {
                tracing::info!(partitions = shown(&partitions), "kafka: the group takes partitions back");
                self.shared.goes(&partitions, self.limit, &self.wake);
                commit(consumer, &self.shared, CommitMode::Sync);
            }
            if is_cooperative { consumer.incremental_unassign(list) } else { consumer.unassign() }
        };
        if let Err(error) = moved {
            tracing::warn!(%error, "kafka: partitions could not be moved");
        }
        self.wake.notify_one();
    }
    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        client::committed(&result);
    }
}

fn shown(partitions: &[Partition]) -> String {
    partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn commit(consumer: &BaseConsumer<Context>, shared: &Shared, mode: CommitMode) {
    let offsets = shared.take_offsets();
    if let Some(list) = offset_list(&offsets)
        && let Err(error) = consumer.commit(&list, mode)
    {
        client::committed(&Err(error));
    }
}

/// Offsets as librdkafka takes them; `None` where there are none.
pub(super) fn offset_list(offsets: &BTreeMap<Partition, u64>) -> Option<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for (partition, offset) in offsets {
        let offset = Offset::Offset(i64::try_from(*offset).unwrap_or(i64::MAX));
        list.add_partition_offset(&partition.topic, partition.number, offset).ok()?;
    }
    (!offsets.is_empty()).then_some(list)
}

/// How long a revoked lane may take: well within what the group waits for its members.
fn let_go_limit(config: &Config) -> Duration {
    let interval = property(config, "max.poll.interval.ms").and_then(|text| text.parse().ok());
    (interval.map_or(DEFAULT_POLL_INTERVAL, Duration::from_millis) / 2).min(LONGEST_LET_GO)
}

/// A member at work. Dropping it leaves the group.
pub(super) struct Member {
    pub shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Member {
    /// Joins the group.
    pub fn join(
        config: &Config,
        group: &str,
        topics: &[String],
        voice: Arc<Voice>,
        wake: Arc<Notify>,
    ) -> Result<Self, SourceError> {
        let shared = Arc::new(Shared::default());
        let context = Context { voice, shared: shared.clone(), wake, limit: let_go_limit(config) };
        let settings: ClientConfig = client::member_config(config, group);
        let consumer: BaseConsumer<Context> = settings.create_with_context(context).map_err(|error| {
            SourceError::Fatal(format!("the properties of this kafka source are not accepted: {error}"))
        })?;
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(|error| SourceError::Fatal(format!("joining group {group}: {error}")))?;
        let its = shared.clone();
        let thread = thread::Builder::new()
            .name("kafka-member".to_owned())
            .spawn(move || live(consumer, &its))
            .map_err(|error| SourceError::io("starting the thread of a group's member", &error))?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

fn live(consumer: BaseConsumer<Context>, shared: &Shared) {
    while !shared.ending.load(Ordering::Acquire) {
        // A loop that hangs has to lose its lanes, which it does once its member is silent for `max.poll.interval.ms`.
        if shared.is_stuck() {
            thread::sleep(POLL);
            continue;
        }
        // What is not paused in time is of no interest; complaints are heard by the context.
        if let Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) = consumer.poll(POLL) {
            let text = consumer.client().fatal_error().map_or_else(|| error.to_string(), |(_, text)| text);
            shared.state().fault = Some(text);
            consumer.context().wake.notify_one();
            return;
        }
        commit(&consumer, shared, CommitMode::Async);
    }
    commit(&consumer, shared, CommitMode::Sync);
    // Leaves the group, so that others need not wait for the session's end.
    drop(consumer);
}

impl Drop for Member {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("kafka: the thread of the group's member panicked");
        }
    }
}
