//! A Kafka topic. Rows and mark are one transaction; the mark is a record of a compacted topic of the job. Without marks
//! ([`plain`]) there is no transaction either.
//!
//! Every lane has a producer with a `transactional.id` of its own, which stays the same: the broker lets the newest
//! producer of an id write, and no other. Start with [`lane`]: how a lane is claimed, and how it commits. [`marks`] says
//! what the marks' topic holds, [`reader`] how far it must be read, [`writer`] what becomes of a transaction, [`encode`]
//! how rows become records, [`dead_letters`] the same for rejects, [`limits`] which of them a topic takes, [`topic`] makes
//! and looks for topics, [`cluster`] makes clients and knows what their errors mean.
//!
//! **Claim**: read the mark (a stored generation that is not lower: `Fenced`, and nobody was disturbed); take the
//! transactional id, which shuts out every earlier owner and ends its transaction; read again, up to the true end of the
//! partition; write the claim, in a transaction. **Commit**: records and mark, in a transaction. Where the producer was
//! shut out, the marks say by whom: by an owner that has claimed, or by one that lost its race and went away, and then the
//! id is taken once more. `tests/kafka_model.rs` enumerates these steps, and shows that none of them can be left out.
//!
//! A beat is a record outside of transactions, in the marks' partition 0, which no transaction holds back.
//!
//! Failpoints: `kafka.before-init`, `kafka.after-init`, `kafka.claim-before-mark`, `kafka.claim-after-mark`,
//! `kafka.before-rows`, `kafka.after-rows`, `kafka.before-commit`, `kafka.after-commit`.

mod cluster;
mod dead_letters;
mod encode;
mod hanging;
mod lane;
mod limits;
mod marks;
mod plain;
mod reader;
mod topic;
mod writer;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use tidemill_checkpoint::{Entry, Generation, Lane, LaneKey, LogName, Mark, Owner, Permit, Receipt, SinkId, Timestamp};
use tidemill_config::{Guarantee, KafkaSink};

pub use self::topic::marks_topic;

/// Whether rows of this schema can be written, as far as that shows without a broker or a registry.
pub(super) fn fits(id: &SinkId, config: &KafkaSink, schema: &SchemaRef) -> Result<(), SinkError> {
    encode::Format::new(id, config)?.check(schema)
}

use self::{
    cluster::{ANSWER, Cluster, Context, How, Refusal, to_write},
    encode::{Format, NULL_KEY, REFUSED, Rows, TOO_BIG},
    lane::Slot,
    limits::{Again, Limits, is_too_long},
    marks::{Book, Kept, Place},
    reader::{End, Reader},
    writer::Writer,
};
use super::{Marks, Sink, SinkError, SinkReject, StageContext, Staged, blocking, commit_as_one};
use crate::codec::records;

/// Lanes of a group whose transactions are committed at the same time.
const COMMITTING: usize = 32;
/// How long a look at marks waits for transactions that are open.
const LOOKING: Duration = Duration::from_secs(2);
/// How long entries and rejects are waited for: they must not be missed.
const READING: Duration = Duration::from_secs(20);

/// The sink `type: kafka`.
pub struct Kafka {
    inner: Arc<Inner>,
}

struct Inner {
    id: SinkId,
    job: String,
    cluster: Cluster,
    topic: String,
    marks_topic: String,
    format: Format,
    compression: &'static str,
    guarantee: Guarantee,
    transaction_timeout: Duration,
    reader: Arc<Reader>,
    lanes: Mutex<BTreeMap<Lane, Arc<Mutex<Slot>>>>,
    /// The producer of records without marks.
    plain: Mutex<Option<Writer>>,
    beats: Mutex<Option<BaseProducer<Context>>>,
    last_beat: AtomicU64,
    /// What the topic takes.
    limits: Mutex<Limits>,
    /// Set once the marks' topic is known to keep them.
    keeps_marks: OnceLock<()>,
}

impl Kafka {
    /// The sink `id` of `job`. Connects nowhere.
    pub fn open(id: SinkId, job: &str, config: &KafkaSink) -> Result<Self, SinkError> {
        let cluster = Cluster::new(config);
        let marks_topic = config.marks_topic.clone().unwrap_or_else(|| topic::marks_topic(job));
        if marks_topic == config.topic {
            return Err(SinkError::Fatal(format!(
                "`marks_topic` is the topic of the records, `{marks_topic}`: marks need a topic of their own"
            )));
        }
        let inner = Inner {
            format: Format::new(&id, config)?,
            reader: Reader::shared(&cluster, &marks_topic),
            id,
            job: job.to_owned(),
            cluster,
            topic: config.topic.clone(),
            marks_topic,
            compression: config.compression.name(),
            guarantee: config.guarantee,
            transaction_timeout: config.transaction_timeout,
            lanes: Mutex::default(),
            plain: Mutex::default(),
            beats: Mutex::default(),
            last_beat: AtomicU64::default(),
            limits: Mutex::default(),
            keeps_marks: OnceLock::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, SinkError> + Send + 'static,
    ) -> Result<T, SinkError> {
        let inner = self.inner.clone();
        blocking(move || work(&inner)).await?
    }
}

impl Inner {
    fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_limits(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// From now on batches have at most so many bytes: longer ones were refused.
    fn keep_batches_below(&self, bytes: usize) {
        tracing::warn!(
            sink = self.id.name(),
            topic = self.topic,
            bytes,
            "kafka: the topic refuses longer batches of records: they are kept below so many bytes from now on (its max.message.bytes, which this user may not see)"
        );
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.batch_bytes = Some(limits.batch_bytes.map_or(bytes, |before| before.min(bytes)));
    }

    /// How rows are sent. `batch_bytes`: of a batch of them, where the topic's own bound is too much.
    fn how(&self, batch_bytes: Option<usize>) -> How {
        let limits = self.limits();
        let bounds = [batch_bytes, limits.batch_bytes, limits.max_bytes];
        let batch_bytes = bounds.into_iter().flatten().fold(self.cluster.batch_bytes(), usize::min);
        How { compression: self.compression, batch_bytes }
    }

    fn is_of_dead_letters(&self) -> bool {
        self.id.name() == SinkId::DEAD_LETTERS
    }

    /// The records of rows, for the topic as it is: where some do not fit it is asked once more, after a while.
    fn encode(&self, rows: &[RecordBatch], writer: Option<&dyn records::Writer>) -> Result<Rows, SinkError> {
        let encoded = self.format.encode(rows, writer, &self.limits())?;
        if !encoded.is_limited() || !self.limits().is_old() {
            return Ok(encoded);
        }
        let limits = self.ask_limits()?;
        self.format.encode(rows, writer, &limits)
    }

    /// What follows from refusals of a batch's records that were sent in batches of so many bytes; rows that are at fault
    /// are taken out. `None`: no row is to blame.
    fn bring_down(
        &self,
        rows: &mut Rows,
        refusals: &[Refusal],
        batch_bytes: usize,
    ) -> Result<Option<Again>, SinkError> {
        let again = Again::of(refusals, |row| rows.size(row), batch_bytes);
        let Some(Again::Without(at_fault)) = &again else { return Ok(again) };
        if self.is_of_dead_letters() {
            return Err(self.letter_refused(rows, at_fault));
        }
        let topic = &self.topic;
        let mut refused = Vec::new();
        let mut needs_key = false;
        for (row, code) in at_fault {
            let bytes = rows.size(*row);
            refused.push(match code {
                code if is_too_long(*code) => (
                    *row,
                    TOO_BIG,
                    format!(
                        "the record has {bytes} bytes, and topic {topic} refuses it ({code}): see its max.message.bytes"
                    ),
                ),
                _ if !rows.has_key(*row) => {
                    needs_key = true;
                    continue;
                }
                code => (*row, REFUSED, format!("topic {topic} refuses the record: {code}")),
            });
        }
        if needs_key {
            if !self.format.has_keys() {
                return Err(SinkError::Fatal(format!(
                    "topic {topic} refuses records without a key, as compacted topics do: add `key: COLUMN` to the sink, or                      take cleanup.policy=compact from the topic"
                )));
            }
            let why = format!("the key is null, and topic {topic} refuses records without one, as compacted topics do");
            refused.extend(rows.keyless().into_iter().map(|row| (row, NULL_KEY, why.clone())));
            self.limits.lock().unwrap_or_else(PoisonError::into_inner).compacted = true;
        }
        tracing::debug!(topic, rows = refused.len(), "the brokers refuse rows: they are rejects");
        rows.refuse(refused);
        Ok(again)
    }

    /// A dead letter that the topic does not take: shorter ones are tried, since it has no further place to go to.
    fn letter_refused(&self, rows: &Rows, at_fault: &[(u64, rdkafka::error::RDKafkaErrorCode)]) -> SinkError {
        let topic = &self.topic;
        let long = at_fault.iter().filter(|(_, code)| is_too_long(*code)).map(|(row, _)| rows.size(*row)).min();
        let Some(bytes) = long else {
            return SinkError::Fatal(format!(
                "topic {topic} refuses a dead letter ({}): dead letters have no key, and a compacted topic takes none of them:                  name another topic",
                at_fault.first().map_or_else(String::new, |(_, code)| code.to_string())
            ));
        };
        let most = bytes / 2;
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).max_bytes = Some(most);
        SinkError::Transient {
            what: format!("sending dead letters to topic {topic}"),
            cause: format!(
                "it refuses one of {bytes} bytes (see its max.message.bytes): they are cut to {most} bytes from now on"
            ),
        }
    }

    fn place(&self, lane: &Lane) -> Place {
        Place { job: self.job.clone(), sink: self.id.clone(), lane: lane.clone() }
    }

    fn fenced(&self, place: &Place, held: Generation, mine: Generation) -> SinkError {
        SinkError::Fenced { sink: self.id.clone(), lane: place.lane.clone(), held, mine }
    }

    fn slot(&self, lane: &Lane) -> Arc<Mutex<Slot>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).entry(lane.clone()).or_default().clone()
    }

    /// Runs `work` on a lane, one at a time.
    fn on<T>(&self, lane: &Lane, work: impl FnOnce(&mut Slot) -> T) -> T {
        work(&mut self.slot(lane).lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn peek(&self, lanes: &[Lane]) -> Result<Marks, SinkError> {
        let places: Vec<Place> = lanes.iter().map(|lane| self.place(lane)).collect();
        let kept = |place: &Place, book: &Book| book.lane(place).cloned().unwrap_or_default().slim();
        let found: Vec<Kept> = self
            .reader
            .read(&places, End::Soon(LOOKING), |book| places.iter().map(|place| kept(place, book)).collect())?;
        let held = |(place, mut kept): (Place, Kept)| {
            // What this process has claimed and committed may lie behind a transaction that is still open.
            let slot = self.slot(&place.lane);
            if let Ok(slot) = slot.try_lock()
                && let Some(owned) = slot.owned()
                && kept.owned.as_ref().is_none_or(|seen| seen.is_before(owned))
            {
                kept.owned = Some(owned.clone());
            }
            (place.lane, kept.held())
        };
        Ok(places.into_iter().zip(found).map(held).collect())
    }

    fn beat(&self, key: &LaneKey) -> Result<(), SinkError> {
        let place = self.place(&key.lane);
        let kept = self.kept(&place, End::Stable)?;
        // One's own claim may be out of sight, behind a transaction that is still open.
        if let Some(owned) = kept.owned.filter(|owned| owned.claim.generation >= key.generation && !owned.is_of(key)) {
            return Err(self.fenced(&place, owned.claim.generation, key.generation));
        }
        let now = Timestamp::now().0.unsigned_abs();
        let last = self.last_beat.fetch_max(now, Ordering::Relaxed);
        let beat = if last >= now { self.last_beat.fetch_add(1, Ordering::Relaxed) + 1 } else { now };
        let record = place.beat(key.generation, beat);
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        let producer = match &mut *beats {
            Some(producer) => producer,
            none => none.insert(self.cluster.plain()?),
        };
        let mut sent = BaseRecord::with_opaque_to(&self.marks_topic, 0).partition(0).key(&record.key[..]);
        sent.payload = record.value.as_deref();
        writer::send(producer, &self.cluster, sent, ANSWER, || Ok(()))?;
        let (what, needs) = ("sending a beat", to_write(&self.marks_topic));
        let flushed = writer::flush(producer, ANSWER);
        let context = producer.context();
        if !flushed {
            return Err(self.cluster.explain_code(what, needs, None, "no answer", context));
        }
        match context.take_undelivered() {
            None => Ok(()),
            Some(lost) => Err(self.cluster.explain_code(what, needs, Some(lost.code), &lost.text, context)),
        }
    }

    fn reset(&self) -> Result<(), SinkError> {
        for place in self.reader.read_whole(End::All(READING), |book| book.lanes_of(&self.job, &self.id))? {
            self.on(&place.lane, |slot| self.forget(slot, &place))?;
        }
        Ok(())
    }
}

#[async_trait]
impl Sink for Kafka {
    fn id(&self) -> &SinkId {
        &self.inner.id
    }

    fn guarantee(&self) -> Guarantee {
        self.inner.guarantee
    }

    async fn peek(&self, lanes: &[Lane]) -> Result<Marks, SinkError> {
        let lanes = lanes.to_vec();
        self.run(move |inner| inner.peek(&lanes)).await
    }

    async fn claim(
        &self,
        lane: &Lane,
        generation: Generation,
        owner: &Owner,
    ) -> Result<(LaneKey, Option<Mark>), SinkError> {
        let key = LaneKey { sink: self.id().clone(), lane: lane.clone(), generation, owner: owner.clone() };
        self.run(move |inner| {
            let mark = inner.on(&key.lane, |slot| inner.claim(slot, &key))?;
            Ok((key, mark))
        })
        .await
    }

    async fn history(&self, lane: &Lane, log: &LogName, from: u64) -> Result<Vec<Entry>, SinkError> {
        let (lane, log) = (lane.clone(), log.clone());
        self.run(move |inner| Ok(inner.kept(&inner.place(&lane), End::All(READING))?.entries(&log, from))).await
    }

    async fn rejects(&self, lane: &Lane, from: u64) -> Result<Vec<SinkReject>, SinkError> {
        let lane = lane.clone();
        self.run(move |inner| Ok(inner.kept(&inner.place(&lane), End::All(READING))?.rejects(from))).await
    }

    async fn check(&self, schema: Option<&SchemaRef>) -> Result<(), SinkError> {
        if let Some(schema) = schema {
            self.inner.format.check(schema)?;
        }
        self.inner.format.ask(schema).await?;
        self.run(|inner| inner.check()).await
    }

    async fn prepare(&self, schema: &SchemaRef) -> Result<(), SinkError> {
        self.inner.format.check(schema)?;
        self.inner.format.writer(schema).await?;
        self.run(|inner| {
            inner.find_topic()?;
            inner.look_at_topic()
        })
        .await
    }

    async fn stage(&self, context: &StageContext, rows: &[RecordBatch]) -> Result<Staged, SinkError> {
        let count = rows.iter().map(|batch| batch.num_rows() as u64).sum();
        if context.mark_only || count == 0 {
            return Ok(Staged { rows: 0, bytes: 0, data: Box::new(Rows::default()) });
        }
        let rows = rows.to_vec();
        let writer = self.inner.format.writer(&rows[0].schema()).await?;
        let encoded = self.run(move |inner| inner.encode(&rows, writer.as_deref())).await?;
        Ok(Staged { rows: count, bytes: encoded.bytes(), data: Box::new(encoded) })
    }

    async fn commit(&self, group: Vec<(Permit, Staged)>) -> Vec<Result<Receipt, SinkError>> {
        if self.guarantee() == Guarantee::AtLeastOnce {
            return commit_as_one(group, |mut group| self.run(move |inner| Ok(inner.send_group(&mut group)))).await;
        }
        let commits = group.into_iter().map(|(permit, staged)| async move {
            let mut rows: Rows = staged.unpack()?;
            self.run(move |inner| inner.on(&permit.key().lane, |slot| inner.commit(slot, &permit, &mut rows))).await
        });
        stream::iter(commits).buffered(COMMITTING).collect().await
    }

    async fn beat(&self, key: &LaneKey) -> Result<(), SinkError> {
        let key = key.clone();
        self.run(move |inner| inner.beat(&key)).await
    }

    async fn release(&self, key: &LaneKey) -> Result<(), SinkError> {
        let key = key.clone();
        self.run(move |inner| inner.on(&key.lane, |slot| inner.release(slot, &key))).await
    }

    async fn reset(&self) -> Result<(), SinkError> {
        self.run(|inner| inner.reset()).await
    }
}
