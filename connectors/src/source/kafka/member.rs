//! The members of the consumer group: they say which partitions this daemon has, commit their offsets, and read nothing. Each
//! lives in a thread of its own, which librdkafka calls when partitions move. It joins once the watch has found topics, and
//! subscribes to their names: what a pattern means is said in one place ([`super::topics::Wanted`]), and not by librdkafka too.
//!
//! A revocation waits in that call until the lanes are let go, or until [`let_go_limit`] has passed. The group then gives
//! them to somebody else. The group decides who works; that nobody works twice, the sinks' generations decide.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rdkafka::{
    ClientConfig, ClientContext, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};
use tidemill_config::KafkaSource as Config;
use tokio::sync::Notify;

use super::{
    client::{self, Voice, property},
    group::{Group, Id},
    offsets::offset_list,
    topics::Partition,
};
use crate::{
    kafka::{
        Meaning, On, Operation, meaning, missing,
        native::{self, Ask},
    },
    source::SourceError,
};

/// What librdkafka assumes where the job says nothing else.
const DEFAULT_POLL_INTERVAL: Duration = Duration::from_secs(300);
/// A batch that is committed when its lane is revoked gets so long at most.
const LONGEST_LET_GO: Duration = Duration::from_secs(30);
/// How long the brokers may take to say whether topics are there: the group waits meanwhile.
const TOPICS_ANSWER: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(100);

/// Hears the member's client.
struct Context {
    id: Id,
    voice: Arc<Voice>,
    group: Arc<Group>,
    wake: Arc<Notify>,
    job: String,
    limit: Duration,
    /// What to say where the brokers do not let it into the group.
    kept_out: String,
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
            if !partitions.is_empty() {
                tracing::info!(partitions = shown(&partitions), "kafka: the group gave partitions to this daemon");
            }
            self.group.came(self.id, partitions);
            moved
        } else {
            if consumer.assignment_lost() {
                for (cause, partitions) in why_lost(&partitions, gone(consumer, &partitions).as_ref()) {
                    tracing::warn!(partitions = shown(&partitions), "kafka: the group took partitions away: {cause}");
                }
                self.group.lost(self.id, partitions);
            } else {
                tracing::info!(partitions = shown(&partitions), "kafka: the group takes partitions back");
                let done = self.group.goes(self.id, partitions, self.limit, &self.wake);
                commit(consumer, &done, CommitMode::Sync);
            }
            if is_cooperative { consumer.incremental_unassign(list) } else { consumer.unassign() }
        };
        if let Err(error) = moved {
            tracing::warn!(%error, "kafka: partitions could not be moved");
        }
        self.wake.notify_one();
    }
    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        self.group.answered(&result, offsets);
    }
}

/// The topics of partitions that are not there any more; `None`: the brokers do not say.
fn gone(consumer: &BaseConsumer<Context>, partitions: &[Partition]) -> Option<BTreeSet<Arc<str>>> {
    let topics: BTreeSet<Arc<str>> = partitions.iter().map(|one| one.topic.clone()).collect();
    let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
    let found = native::describe_topics(consumer.client(), &names, Ask::Topics, TOPICS_ANSWER).ok()?;
    let absent = found.into_iter().filter_map(Result::err).filter(|(_, code)| meaning(*code) == Meaning::Absent);
    Some(absent.map(|(topic, _)| topic.into()).collect())
}

/// Why the group took partitions away, and which for each reason: `gone` are the topics that are not there any more.
fn why_lost(partitions: &[Partition], gone: Option<&BTreeSet<Arc<str>>>) -> Vec<(&'static str, Vec<Partition>)> {
    let is_gone = |one: &Partition| gone.is_some_and(|gone| gone.contains(&one.topic));
    let (deleted, others): (Vec<_>, Vec<_>) = partitions.iter().cloned().partition(is_gone);
    let silent = match gone {
        Some(_) => "it had not heard of this daemon in time",
        None => "it had not heard of this daemon in time, or their topic was deleted (the brokers do not say which)",
    };
    let mut told = vec![("their topic is not there any more", deleted), (silent, others)];
    told.retain(|(_, partitions)| !partitions.is_empty());
    told
}

fn shown(partitions: &[Partition]) -> String {
    partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn commit(consumer: &BaseConsumer<Context>, offsets: &BTreeMap<Partition, u64>, mode: CommitMode) {
    if let Some(list) = offset_list(&consumer.context().job, offsets)
        && let Err(error) = consumer.commit(&list, mode)
    {
        client::committed(&Err(error));
    }
}

/// How long a revoked lane may take: well within what the group waits for its members.
fn let_go_limit(config: &Config) -> Duration {
    let interval = property(config, "max.poll.interval.ms").and_then(|text| text.parse().ok());
    (interval.map_or(DEFAULT_POLL_INTERVAL, Duration::from_millis) / 2).min(LONGEST_LET_GO)
}

/// A member at work.
struct Member {
    /// It shall leave the group, once its lanes are let go.
    leaving: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

/// The members of one source. Dropping them leaves the group.
#[derive(Default)]
pub(super) struct Members {
    team: Mutex<Team>,
}

#[derive(Default)]
struct Team {
    group: Arc<Group>,
    members: Vec<Member>,
    /// Members so far.
    last: Id,
}

impl Members {
    fn team(&self) -> MutexGuard<'_, Team> {
        self.team.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What they have together.
    pub fn group(&self) -> Arc<Group> {
        self.team().group.clone()
    }

    /// How many work, and are not about to leave.
    pub fn count(&self) -> usize {
        self.team().members.iter().filter(|member| member.stays()).count()
    }

    /// One joins the group `name` of a job, unless so many are there; whether it did. Of several that are allowed the first is not joined
    /// so: a source that was stopped meanwhile stays so.
    pub fn join(
        &self,
        config: &Config,
        (job, name): (&str, &str),
        voice: &Arc<Voice>,
        wake: &Arc<Notify>,
        most: usize,
    ) -> Result<bool, SourceError> {
        let mut team = self.team();
        team.members.retain(|member| !member.thread.is_finished());
        let first = usize::from(most > 1);
        if !(first..most).contains(&team.members.len()) {
            return Ok(false);
        }
        let id = team.last + 1;
        let context = Context {
            id,
            voice: voice.clone(),
            group: team.group.clone(),
            wake: wake.clone(),
            job: job.to_owned(),
            limit: let_go_limit(config),
            kept_out: missing(&config.brokers, &config.properties, &[Operation::Read], On::Group(name)),
        };
        let settings: ClientConfig = client::member_config(config, name);
        let consumer: BaseConsumer<Context> =
            settings.create_with_context(context).map_err(|error| client::refused(&error))?;
        let leaving = Arc::new(AtomicBool::new(false));
        let its = leaving.clone();
        let thread = thread::Builder::new()
            .name("kafka-member".to_owned())
            .spawn(move || live(consumer, &its))
            .map_err(|error| SourceError::io("starting the thread of a group's member", &error))?;
        team.members.push(Member { leaving, thread });
        team.last = id;
        Ok(true)
    }

    /// The last one that joined leaves, once its lanes are let go; whether it does. The only one stays.
    pub fn leave(&self) -> bool {
        let team = self.team();
        let mut staying = team.members.iter().filter(|member| member.stays()).rev();
        match (staying.next(), staying.next()) {
            (Some(last), Some(_)) => {
                last.leaving.store(true, Ordering::Release);
                true
            }
            _ => false,
        }
    }

    /// All leave at once; who joins later begins anew.
    pub fn end(&self) {
        let team = std::mem::take(&mut *self.team());
        team.group.end();
        for member in team.members {
            if member.thread.join().is_err() {
                tracing::warn!("kafka: the thread of a group's member panicked");
            }
        }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        self.end();
    }
}

impl Member {
    fn stays(&self) -> bool {
        !self.leaving.load(Ordering::Acquire) && !self.thread.is_finished()
    }
}

fn live(consumer: BaseConsumer<Context>, leaving: &AtomicBool) {
    let (id, group) = (consumer.context().id, consumer.context().group.clone());
    let _at_the_end = Obituary(id, group.clone());
    let (mut has_left, mut subscribed) = (false, 0);
    let is_done = |has_left| group.is_ending() || has_left && group.is_idle(id);
    while !is_done(has_left) {
        if group.is_stuck() {
            thread::sleep(POLL);
            continue;
        }
        if !has_left && leaving.load(Ordering::Acquire) {
            // Its partitions are taken back by the next polls.
            consumer.unsubscribe();
            has_left = true;
        }
        if !has_left && let Some(topics) = group.topics_beyond(subscribed) {
            let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
            if let Err(error) = consumer.subscribe(&names) {
                group.fails(format!("joining it for {}: {error}", names.join(", ")));
                consumer.context().wake.notify_one();
                return;
            }
            subscribed = topics.len();
        }
        // What is not paused in time is of no interest; complaints are heard by the context.
        match consumer.poll(POLL) {
            Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => {
                group.fails(consumer.client().fatal_error().map_or_else(|| error.to_string(), |(_, text)| text));
                consumer.context().wake.notify_one();
                drop(consumer);
                return;
            }
            Some(Err(error)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {
                group.is_kept_out(&consumer.context().kept_out);
                consumer.context().wake.notify_one();
            }
            _ => {}
        }
        commit(&consumer, &group.take_offsets(id), CommitMode::Async);
    }
    commit(&consumer, &group.take_offsets(id), CommitMode::Sync);
    // Leaves the group, so that others need not wait for the session's end.
    drop(consumer);
}

/// Tells when a member's thread ends, also by a panic.
struct Obituary(Id, Arc<Group>);

impl Drop for Obituary {
    fn drop(&mut self) {
        self.1.ended(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_was_deleted_is_no_session_that_timed_out() {
        let (a, b) = (Partition::new("a", 0), Partition::new("b", 1));
        let both = [a.clone(), b.clone()];
        let gone = |topics: &[&str]| Some(topics.iter().map(|topic| Arc::from(*topic)).collect::<BTreeSet<Arc<str>>>());
        let told = |gone: Option<BTreeSet<Arc<str>>>| why_lost(&both, gone.as_ref());
        let (deleted, silent) = ("their topic is not there any more", "it had not heard of this daemon in time");
        assert_eq!(told(gone(&[])), [(silent, both.to_vec())]);
        assert_eq!(told(gone(&["a"])), [(deleted, vec![a]), (silent, vec![b])]);
        assert_eq!(told(gone(&["a", "b"])), [(deleted, both.to_vec())]);
        assert!(told(None)[0].0.contains("or their topic was deleted"));
    }
}
