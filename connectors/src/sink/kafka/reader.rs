//! Reads the marks' topic: once for all lanes and sinks of this process, and after that only what is new.
//!
//! Two ends can be asked for. *Stable* is where a reader of committed records stops now; it may lie before a mark that is
//! committed already, where another lane's transaction in the same partition is still open. *All* is the true one: the
//! partition's end as it is now, and then a wait until committed records are readable up to there. Every transaction that
//! was open at the call has ended by then, so no mark that was committed before the call is missed. Whoever decides from
//! a mark reads *all*; `tests/kafka_model.rs` shows what goes wrong otherwise.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::BorrowedMessage,
};

use super::{
    cluster::{ANSWER, Cluster, Context, Right, to_keep_marks, to_read, to_write},
    marks::{Book, Owned, PARTITIONS, Place},
};
use crate::{
    kafka::{is_denied, offsets},
    sink::SinkError,
};

/// Between two looks at transactions that are open.
pub(super) const PAUSE: Duration = Duration::from_millis(10);
/// How long a partition may have no leader before that is an error: it is new, or a broker went.
const MOVING: Duration = Duration::from_secs(5);
/// The partition of beats.
const BEATS: i32 = 0;

/// How far a read goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// What is readable now.
    Stable,
    /// All that is committed now: waits for open transactions, so long.
    All(Duration),
    /// All that is committed now, or what is readable after so long.
    Soon(Duration),
}

/// What became of a transaction, as the records tell that it wrote.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Fate {
    /// They are there for every reader.
    Seen,
    /// They are there, and no reader of committed records sees them.
    Undone,
    /// They are behind an open transaction.
    Hidden,
    /// They cannot be read any more, or tell different things.
    Gone,
}

impl Fate {
    /// Of one transaction; records that are gone or hidden say nothing where others are there.
    fn of_all(fates: &BTreeSet<Self>) -> Self {
        match (fates.contains(&Self::Seen), fates.contains(&Self::Undone)) {
            (true, false) => Self::Seen,
            (false, true) => Self::Undone,
            (false, false) if !fates.contains(&Self::Gone) => Self::Hidden,
            _ => Self::Gone,
        }
    }
}

type Shared = Mutex<BTreeMap<(Cluster, String), Weak<Reader>>>;
static READERS: LazyLock<Shared> = LazyLock::new(Mutex::default);

/// The marks' topic, as far as it was read.
pub(super) struct Reader {
    cluster: Cluster,
    topic: String,
    state: Mutex<State>,
    /// Clients that read nothing, and ask for ends.
    asking: Mutex<Option<Clients>>,
}

#[derive(Default)]
struct State {
    clients: Option<Clients>,
    /// Of the topic when it was found; 0: not known to be there. More may have come since, and hold no marks.
    partitions: i32,
    /// Whether every partition was read once: marks that somebody copied to where they do not belong are seen only then.
    whole: bool,
    /// The next offset of each partition that was read.
    at: BTreeMap<i32, i64>,
    book: Book,
}

struct Clients {
    committed: BaseConsumer<Context>,
    /// Knows the true end of a partition.
    all: BaseConsumer<Context>,
}

impl Clients {
    fn made<'c>(clients: &'c mut Option<Self>, cluster: &Cluster) -> Result<&'c Self, SinkError> {
        Ok(match clients {
            Some(clients) => clients,
            none => none.insert(Self {
                committed: cluster.reader("read_committed")?,
                all: cluster.reader("read_uncommitted")?,
            }),
        })
    }
}

impl Reader {
    /// The reader of this topic, shared with every other sink of this process that has the same.
    pub(super) fn shared(cluster: &Cluster, topic: &str) -> Arc<Self> {
        let mut readers = READERS.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|_, reader| reader.strong_count() > 0);
        let key = (cluster.clone(), topic.to_owned());
        if let Some(reader) = readers.get(&key).and_then(Weak::upgrade) {
            return reader;
        }
        let reader = Arc::new(Self {
            cluster: cluster.clone(),
            topic: topic.to_owned(),
            state: Mutex::default(),
            asking: Mutex::default(),
        });
        readers.insert(key, Arc::downgrade(&reader));
        reader
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the topic is there. Does not make it.
    pub(super) fn finds_marks(&self) -> Result<bool, SinkError> {
        Ok(self.state().find(&self.cluster, &self.topic)? > 0)
    }

    /// Whether there is a topic of this name beside the marks' one, of which these rights are needed.
    pub(super) fn finds(&self, topic: &str, needs: Right<'_>) -> Result<bool, SinkError> {
        Ok(partitions(&self.state().clients(&self.cluster)?.committed, &self.cluster, topic, needs)?.is_some())
    }

    /// How many partitions a topic of rows has; 0: there is no such topic.
    pub(super) fn partitions(&self, topic: &str) -> Result<i32, SinkError> {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let client = &Clients::made(&mut asking, &self.cluster)?.committed;
        Ok(partitions(client, &self.cluster, topic, to_write(topic))?.unwrap_or(0))
    }

    /// Where the first `count` partitions of a topic end: truly, or for readers of committed records. `None`: it has no
    /// leader now.
    pub(super) fn ends(
        &self,
        topic: &str,
        count: i32,
        true_ends: bool,
    ) -> Result<BTreeMap<i32, Option<i64>>, SinkError> {
        if count == 0 {
            return Ok(BTreeMap::new());
        }
        let begun = Instant::now();
        // Not the clients that read: beats do not wait for this.
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let clients = Clients::made(&mut asking, &self.cluster)?;
        let client = if true_ends { &clients.all } else { &clients.committed };
        loop {
            let list = offsets::at_ends((0..count).map(|one| (topic, one)));
            match list.and_then(|list| offsets::ends(client, list, ANSWER)) {
                Ok(found) => {
                    let found: BTreeMap<i32, i64> = found.into_iter().map(|(_, one, at)| (one, at)).collect();
                    return Ok((0..count).map(|one| (one, found.get(&one).copied())).collect());
                }
                Err(error) if moves(error.rdkafka_error_code()) && begun.elapsed() < MOVING => thread::sleep(PAUSE),
                Err(error) => {
                    drain(client);
                    let what = format!("looking for the ends of topic {topic}");
                    return Err(self.cluster.explain(&what, to_write(topic), &error, client.client().context()));
                }
            }
        }
    }

    /// Marks of a lane that are not readable yet: committed, undone, or of a transaction that is open; `None`: taken away.
    pub(super) fn beyond(&self, place: &Place) -> Result<Vec<Option<Owned>>, SinkError> {
        let mut state = self.state();
        let partition = place.partition();
        let from = state.end(&self.cluster, &self.topic, partition, false)?;
        let mut marks = Vec::new();
        let client = &state.clients(&self.cluster)?.all;
        scan(client, &self.cluster, &self.topic, partition, from, |message| {
            marks.extend(Book::mark_of(place, message.key().unwrap_or_default(), message.payload()));
            true
        })?;
        Ok(marks)
    }

    /// What became of the transaction that wrote these records: a partition and an offset of each.
    pub(super) fn fate(&self, topic: &str, records: &BTreeMap<i32, i64>) -> Result<Fate, SinkError> {
        let mut state = self.state();
        let mut fates = BTreeSet::new();
        for (partition, offset) in records {
            if *offset < 0 {
                fates.insert(Fate::Gone);
                continue;
            }
            if state.end(&self.cluster, topic, *partition, false)? <= *offset {
                fates.insert(Fate::Hidden);
                continue;
            }
            let clients = state.clients(&self.cluster)?;
            let is_there = |client: &BaseConsumer<Context>| {
                let mut found = false;
                let look = |message: &BorrowedMessage<'_>| {
                    found = message.offset() == *offset;
                    false
                };
                scan(client, &self.cluster, topic, *partition, *offset, look).map(|()| found)
            };
            fates.insert(if is_there(&clients.committed)? {
                Fate::Seen
            } else if is_there(&clients.all)? {
                Fate::Undone
            } else {
                Fate::Gone
            });
        }
        Ok(Fate::of_all(&fates))
    }

    /// Reads on, for these lanes and the beats, and says what `look` sees then: before anybody else can read, who may
    /// have to begin anew. Where there is no such topic, nothing is read.
    pub(super) fn read<T>(&self, places: &[Place], end: End, look: impl FnOnce(&Book) -> T) -> Result<T, SinkError> {
        self.read_where(places.iter().map(Place::partition).collect(), end, look)
    }

    /// Reads on, for all lanes.
    pub(super) fn read_whole<T>(&self, end: End, look: impl FnOnce(&Book) -> T) -> Result<T, SinkError> {
        self.read_where((0..PARTITIONS).collect(), end, look)
    }

    fn read_where<T>(
        &self,
        mut wanted: BTreeSet<i32>,
        end: End,
        look: impl FnOnce(&Book) -> T,
    ) -> Result<T, SinkError> {
        let begun = Instant::now();
        let mut state = self.state();
        let partitions = state.find(&self.cluster, &self.topic)?;
        if partitions == 0 {
            return Ok(look(&state.book));
        }
        wanted.insert(BEATS);
        let mut ends = BTreeMap::new();
        for partition in &wanted {
            ends.insert(*partition, state.end(&self.cluster, &self.topic, *partition, end != End::Stable)?);
        }
        loop {
            let mut waits = None;
            for (partition, wanted) in ends.iter_mut().filter(|_| end != End::Stable) {
                let stable = state.end(&self.cluster, &self.topic, *partition, false)?;
                match end {
                    _ if stable >= *wanted => {}
                    End::Soon(patience) if begun.elapsed() >= patience => *wanted = stable,
                    End::All(patience) if begun.elapsed() >= patience => {
                        return Err(SinkError::Transient {
                            what: format!("reading the marks in topic {} at {}", self.topic, self.cluster.brokers),
                            cause: format!(
                                "a transaction is open in its partition {partition}: it ends with the claim of its \
                                 lane, or after its `transaction_timeout`; where it stays, kafka-transactions.sh \
                                 find-hanging shows it"
                            ),
                        });
                    }
                    _ => waits = Some(*partition),
                }
            }
            if waits.is_none() {
                break;
            }
            // Others may read meanwhile.
            drop(state);
            thread::sleep(PAUSE);
            state = self.state();
        }
        if state.is_beyond(&self.cluster, &self.topic, &ends)? {
            tracing::warn!(topic = self.topic, "the marks' topic was deleted and made again: reading it anew");
            state.at.clear();
            state.book = Book::default();
            state.whole = false;
        }
        let others = if state.whole { 0..0 } else { 0..partitions };
        for partition in others {
            if let Entry::Vacant(other) = ends.entry(partition) {
                other.insert(state.end(&self.cluster, &self.topic, partition, false)?);
            }
        }
        state.read_to(&self.cluster, &self.topic, &ends)?;
        state.whole = true;
        Ok(look(&state.book))
    }
}

impl State {
    fn clients(&mut self, cluster: &Cluster) -> Result<&Clients, SinkError> {
        Clients::made(&mut self.clients, cluster)
    }

    fn find(&mut self, cluster: &Cluster, topic: &str) -> Result<i32, SinkError> {
        if self.partitions > 0 {
            return Ok(self.partitions);
        }
        let needs = to_keep_marks(topic);
        let count = partitions(&self.clients(cluster)?.committed, cluster, topic, needs)?.unwrap_or(0);
        if (1..PARTITIONS).contains(&count) {
            let brokers = &cluster.brokers;
            return Err(SinkError::Fatal(format!(
                "the marks' topic {topic} has {count} partitions, and marks are kept in {PARTITIONS}: \
                 kafka-topics.sh --bootstrap-server {brokers} --alter --topic {topic} --partitions {PARTITIONS}"
            )));
        }
        self.partitions = count;
        Ok(count)
    }

    /// The end of a partition: the true one, or that of committed records.
    fn end(&mut self, cluster: &Cluster, topic: &str, partition: i32, true_end: bool) -> Result<i64, SinkError> {
        let begun = Instant::now();
        let clients = self.clients(cluster)?;
        let client = if true_end { &clients.all } else { &clients.committed };
        loop {
            let error = match client.fetch_watermarks(topic, partition, ANSWER) {
                Ok((_, end)) => return Ok(end),
                Err(error) => error,
            };
            if !moves(error.rdkafka_error_code()) || begun.elapsed() > MOVING {
                drain(client);
                let what = format!("looking for the end of topic {topic}");
                let explained = cluster.explain(&what, to_read(topic), &error, client.client().context());
                if is_unknown(error.rdkafka_error_code()) {
                    // It may have been deleted: the next call looks anew.
                    self.partitions = 0;
                }
                return Err(explained);
            }
            thread::sleep(PAUSE);
        }
    }

    /// Whether something was read that is not there: beyond these ends, and those of now, since others may have read on since
    /// they were asked for.
    fn is_beyond(&mut self, cluster: &Cluster, topic: &str, ends: &BTreeMap<i32, i64>) -> Result<bool, SinkError> {
        let beyond = |(partition, end): (&i32, &i64)| {
            let at = *self.at.get(partition)?;
            (at > *end).then_some((*partition, at))
        };
        for (partition, at) in ends.iter().filter_map(beyond).collect::<Vec<_>>() {
            if at > self.end(cluster, topic, partition, true)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads committed records up to these ends, which are known to be readable.
    fn read_to(&mut self, cluster: &Cluster, topic: &str, ends: &BTreeMap<i32, i64>) -> Result<(), SinkError> {
        let mut open: BTreeMap<i32, i64> = BTreeMap::new();
        let mut assignment = TopicPartitionList::new();
        let what = format!("reading topic {topic}");
        let (at, book) = (&mut self.at, &mut self.book);
        for (partition, end) in ends {
            let from = *at.entry(*partition).or_insert(0);
            if from >= *end {
                continue;
            }
            open.insert(*partition, *end);
            let added = assignment.add_partition_offset(topic, *partition, Offset::Offset(from));
            added.map_err(|error| SinkError::Fatal(format!("{what}: {error}")))?;
        }
        if open.is_empty() {
            return Ok(());
        }
        let clients = self.clients.as_ref().ok_or_else(|| SinkError::Fatal("clients were not kept".into()))?;
        let client = &clients.committed;
        let explain = |error: KafkaError| cluster.explain(&what, to_read(topic), &error, client.client().context());
        client.assign(&assignment).map_err(explain)?;
        let mut quiet_since = Instant::now();
        let result = loop {
            if open.is_empty() {
                break Ok(());
            }
            match client.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    quiet_since = Instant::now();
                    let (partition, next) = (message.partition(), message.offset() + 1);
                    let place = match book.apply(message.key().unwrap_or_default(), message.payload()) {
                        Ok(place) => place,
                        Err(error) => break Err(error),
                    };
                    if partition != BEATS && place.partition() != partition {
                        break Err(SinkError::Fatal(format!(
                            "the marks' topic {topic} has a record of lane {} in its partition {partition}, which is not \
                             where it belongs ({}): it was copied there. Stop every daemon, and copy the marks to another \
                             topic, each to the partition that it was in (`marks_topic`)",
                            place.lane,
                            place.partition()
                        )));
                    }
                    at.insert(partition, next);
                    if open.get(&partition).is_some_and(|end| next >= *end) {
                        open.remove(&partition);
                    }
                }
                // The end as the broker sees it that answered, which may lag behind the one that told the end. Its
                // position is also behind what it does not show: markers, and undone records.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    let next = position(client, topic, partition);
                    if let Some(next) = next.filter(|next| open.get(&partition).is_some_and(|end| next >= end)) {
                        open.remove(&partition);
                        at.insert(partition, next);
                    }
                }
                Some(Err(error)) if passes(&error, &explain(error.clone())) => {
                    tracing::debug!(topic, %error, "reading marks");
                }
                Some(Err(error)) => break Err(explain(error)),
                None => {}
            }
            if quiet_since.elapsed() > ANSWER {
                break Err(explain(KafkaError::MessageConsumption(Code::OperationTimedOut)));
            }
        };
        let _ = client.unassign();
        result
    }
}

/// Shows `look` the records of a partition from an offset on, until it has seen enough or there are no more.
fn scan(
    client: &BaseConsumer<Context>,
    cluster: &Cluster,
    topic: &str,
    partition: i32,
    from: i64,
    mut look: impl FnMut(&BorrowedMessage<'_>) -> bool,
) -> Result<(), SinkError> {
    let explain = |error: KafkaError| {
        let context = client.client().context();
        cluster.explain(&format!("reading topic {topic}"), to_read(topic), &error, context)
    };
    let mut assignment = TopicPartitionList::new();
    let added = assignment.add_partition_offset(topic, partition, Offset::Offset(from));
    added.and_then(|()| client.assign(&assignment)).map_err(explain)?;
    let mut quiet_since = Instant::now();
    let result = loop {
        match client.poll(PAUSE) {
            Some(Ok(message)) => {
                quiet_since = Instant::now();
                if !look(&message) {
                    break Ok(());
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => break Ok(()),
            Some(Err(error)) if !passes(&error, &explain(error.clone())) => break Err(explain(error)),
            Some(Err(_)) | None => {}
        }
        if quiet_since.elapsed() > ANSWER {
            break Err(explain(KafkaError::MessageConsumption(Code::OperationTimedOut)));
        }
    };
    let _ = client.unassign();
    result
}

/// Whether a reader goes on after this error. It is in no group: it does not matter whether it might be.
fn passes(error: &KafkaError, explained: &SinkError) -> bool {
    let code = error.rdkafka_error_code();
    code == Some(Code::GroupAuthorizationFailed) || (explained.is_transient() && !is_denied(code))
}

/// What a partition answers while it gets another leader.
fn moves(code: Option<Code>) -> bool {
    is_unknown(code) || matches!(code, Some(Code::NotLeaderForPartition | Code::LeaderNotAvailable))
}

fn is_unknown(code: Option<Code>) -> bool {
    matches!(code, Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition))
}

/// Where the client goes on reading, once it has read something.
fn position(client: &BaseConsumer<Context>, topic: &str, partition: i32) -> Option<i64> {
    client.position().ok()?.find_partition(topic, partition)?.offset().to_raw().filter(|offset| *offset >= 0)
}

/// Takes in what the connections have to say, so that an error can tell it.
fn drain(client: &BaseConsumer<Context>) {
    while client.poll(Duration::ZERO).is_some() {}
}

/// How many partitions a topic has; `None` where there is no such topic.
fn partitions(
    client: &BaseConsumer<Context>,
    cluster: &Cluster,
    topic: &str,
    needs: Right<'_>,
) -> Result<Option<i32>, SinkError> {
    let what = format!("looking for topic {topic}");
    let context = client.client().context();
    let metadata = client.fetch_metadata(Some(topic), ANSWER).map_err(|error| {
        drain(client);
        cluster.explain(&what, needs, &error, context)
    })?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Ok(None) };
    match found.error().map(Code::from) {
        Some(code) if is_unknown(Some(code)) => Ok(None),
        Some(code) => Err(cluster.explain_code(&what, needs, Some(code), &code.to_string(), context)),
        None => Ok(Some(i32::try_from(found.partitions().len()).unwrap_or(i32::MAX)).filter(|count| *count > 0)),
    }
}
