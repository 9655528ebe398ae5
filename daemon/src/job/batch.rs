//! One batch of a lane, from proposal to close. This is the order of the protocol, and the only place that has it:
//!
//! propose, read, decode, steps, stage; then (in [`super::commit`]) unmarked sinks, the anchor, the other marked sinks in
//! parallel, the ledger's close, and the sources' release.
//!
//! [`Job::prepare`] does the first half, tentatively and in memory, while the batch before it commits; dropping a
//! [`Prepared`] withdraws it. [`Job::commit`] does the second half for a group of lanes.
//! [`super::replay`] has what is no new batch.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};
use tidemill_checkpoint::{
    Digest, Entry, Lane, LaneKey, LogName, Mark, Plan, Positions, SinkId, Spans, Timestamp, failpoint,
    next::{self, Content, Draft, Step, Writer},
};
use tidemill_config as config;
use tidemill_connectors::{
    codec::PrepareError,
    sink::{StageContext, Staged},
    source::{Budget, Proposal, RawBatch},
};
use tidemill_steps::{
    BatchContext,
    account::{Account, bytes_of_rows},
};

use super::{
    Job, Role, SinkSlot,
    commit::any_key,
    compile::{Compiled, ComputeError, Computed, Pinned, dead_letters_schema},
    cut::Unfit,
    lane::{LaneError, Owned, joined_after},
    lookups::BatchTables,
    probe,
    readable::Readable,
    schemas::{Schemas, schema_log, schema_text, versions},
};
use crate::{
    memory::{Lease, Leased},
    status::LastBatch,
};

/// So many deaths of the process in the same batch, and the batch is tried in a process of its own.
const SUSPICIOUS_DEATHS: u32 = 3;

/// Where a lane stands: the head it builds on, perhaps not committed yet.
#[derive(Clone, Debug)]
pub struct Head {
    /// The head as the anchor's mark (will) have it.
    pub mark: Mark,
    /// What each sink that takes part (will) hold.
    pub joined: BTreeMap<SinkId, Option<Digest>>,
    /// Schemas pinned up to here.
    pub pinned: Pinned,
}

/// A batch that is ready to be committed.
pub struct Prepared {
    /// The batch.
    pub batch: Batch,
    pub(super) staged: Vec<(SinkSlot, Staged)>,
}

/// A try to prepare a batch.
#[derive(Default)]
pub(super) struct Attempt {
    /// It may have so many records.
    pub(super) records: usize,
    /// It had so many.
    pub(super) came: usize,
    /// Its only record does not fit into any batch.
    pub(super) unfit: Option<Unfit>,
    /// The schemas that the first try inferred, and their entries.
    pinned: Option<(Pinned, BTreeMap<LogName, Vec<String>>)>,
    /// What it reads, without what was read ahead.
    proposals: Vec<Option<Proposal>>,
    /// What it took.
    account: Option<Arc<Account>>,
}

impl Attempt {
    /// A first try, of so many records.
    pub(super) fn new(records: usize) -> Self {
        Self { records, ..Self::default() }
    }

    /// What is to be read again, where its only record does not fit: that one and no other. A source that is asked anew may
    /// have another one by now.
    pub(super) fn again(&mut self) -> Option<Vec<Option<Proposal>>> {
        self.unfit.is_some().then(|| std::mem::take(&mut self.proposals))
    }

    /// Keeps what it reads.
    pub(super) fn keep(&mut self, proposals: &[Option<Proposal>]) {
        let bare = |proposal: &Proposal| Proposal {
            spans: proposal.spans.clone(),
            entries: proposal.entries.clone(),
            prune: proposal.prune.clone(),
            ahead: None,
        };
        self.proposals = proposals.iter().map(|proposal| proposal.as_ref().map(bare)).collect();
    }

    /// An account for what it will take. A dead letter is all that becomes of a record that does not fit: it is made, whatever
    /// it takes.
    pub(super) fn begin(&mut self, leased: &Leased) -> &Arc<Account> {
        let account = if self.unfit.is_some() { Account::unlimited() } else { leased.account() };
        self.account.insert(account)
    }
}

/// A computation that runs: whatever ends it, but the death of the process, it was no deadly one.
struct Try<'a> {
    job: &'a Job,
    lane: &'a Lane,
}

impl Drop for Try<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.job.around.ledger.settle(self.job.name(), self.lane) {
            tracing::warn!(job = self.job.name(), lane = %self.lane, %error, "the ledger cannot forget a try");
        }
    }
}

/// A batch without its rows.
pub struct Batch {
    /// The lane.
    pub lane: Lane,
    /// Where the lane stands after it.
    pub next: Head,
    /// It used its budget up: more waits.
    pub full: bool,
    pub(super) entries: Vec<Entry>,
    pub(super) expected: BTreeMap<SinkId, Option<Digest>>,
    pub(super) keys: BTreeMap<SinkId, LaneKey>,
    pub(super) begun: Instant,
    pub(super) report: LastBatch,
    pub(super) rejected: BTreeMap<(String, String), u64>,
    pub(super) received: Vec<(String, u64, u64)>,
    _lease: Arc<Leased>,
}

impl Batch {
    /// The anchor's mark after it.
    pub(super) fn mark(&self) -> &Mark {
        &self.next.mark
    }
}

impl Job {
    /// Asks every source what it has, within the budget. `None`: nothing to do.
    pub(super) async fn propose(
        &self,
        lane: &Lane,
        from: &Positions,
        budget: Budget,
        first: usize,
    ) -> Result<Option<Vec<Option<Proposal>>>, LaneError> {
        let mut proposals: Vec<Option<Proposal>> = self.sources.iter().map(|_| None).collect();
        let count = self.sources.len();
        let share = Budget { records: (budget.records / count).max(1), bytes: (budget.bytes / count).max(1) };
        for turn in 0..count {
            // A batch that was cut to fewer records than there are sources is of the first that have one.
            if proposals.iter().flatten().count() >= budget.records {
                break;
            }
            // Every source may be the first to fill the budget: the one that begins moves on with each batch.
            let index = (first + turn) % count;
            let source = &self.sources[index];
            let at = self.positions_of(&**source, from);
            let proposal =
                source.plan(lane, &at, share).await.map_err(|error| LaneError::of_source(source.name(), &error))?;
            proposals[index] = proposal.filter(|p| !p.spans.is_empty() || !p.entries.is_empty() || !p.prune.is_empty());
        }
        Ok(proposals.iter().any(Option::is_some).then_some(proposals))
    }

    /// What marked sinks refused and no batch has brought to the dead letters yet.
    async fn plan_refused(&self, lane: &Lane, from: &Positions, budget: Budget) -> Result<Spans, LaneError> {
        let mut spans = Spans::new();
        for rejects in &self.rejects {
            if let Some(span) = rejects.plan(self, lane, from, budget).await? {
                spans.insert(rejects.shard().clone(), span);
            }
        }
        Ok(spans)
    }

    /// Whether there is some.
    pub async fn has_refused(&self, lane: &Lane, from: &Positions) -> bool {
        let budget = self.budget();
        self.plan_refused(lane, from, budget).await.is_ok_and(|spans| !spans.is_empty())
    }

    /// The refused rows of a plan's spans, in the order of the sinks.
    pub(super) async fn read_refused(&self, lane: &Lane, spans: &Spans) -> Result<Vec<RawBatch>, LaneError> {
        let mut raw = Vec::new();
        for rejects in &self.rejects {
            if let Some(span) = spans.get(rejects.shard()) {
                raw.push(rejects.read(self, lane, span).await?);
            }
        }
        Ok(raw)
    }

    /// The caps of one batch.
    pub(super) fn budget(&self) -> Budget {
        Budget { records: self.config.batch.max_records, bytes: self.around.memory.cap(self.config.batch.max_bytes) }
    }

    /// The first half of a batch, in memory that is leased. `None`: nothing to do. A batch that outgrows its memory is given
    /// up and planned anew with half of its records, see [`super::cut`].
    pub async fn prepare(
        &self,
        lane: &Lane,
        owned: &Owned,
        head: &Head,
        schemas: &Schemas,
        lease: Lease,
    ) -> Result<Option<Prepared>, LaneError> {
        let most = self.budget().records;
        let leased = Arc::new(lease.open());
        let mut attempt = Attempt::new(self.cuts.records(lane, most));
        loop {
            match self.attempt(lane, owned, head, schemas, &leased, &mut attempt).await {
                Ok(None) => return Ok(None),
                Ok(prepared) => {
                    self.cuts.fits(lane, most);
                    return Ok(prepared);
                }
                Err(error) => self.smaller(lane, &mut attempt, &leased, error)?,
            }
        }
    }

    /// Makes a try that outgrew its memory smaller. Gives the error back where it failed of something else, or nothing smaller
    /// is left to try.
    pub(super) fn smaller(
        &self,
        lane: &Lane,
        attempt: &mut Attempt,
        leased: &Leased,
        error: LaneError,
    ) -> Result<(), LaneError> {
        let account = attempt.account.take();
        let Some((account, outgrown)) = account.and_then(|account| account.outgrown().map(|found| (account, found)))
        else {
            return Err(error);
        };
        let step = account.blamed().unwrap_or("decode").to_owned();
        if let Some(records) = self.cuts.halve(lane, attempt.came.min(attempt.records)) {
            tracing::debug!(job = self.name(), lane = %lane, step, records, "a batch is cut: {error}");
            attempt.records = records;
            return Ok(());
        }
        if !leased.is_hopeless(outgrown.needed) {
            return Err(LaneError::Transient(format!("{error}; other batches hold the rest of `memory:` now")));
        }
        let has_to_fail = |known: &config::Step| known.name == step && known.on_error == config::OnError::Fail;
        if self.config.steps.iter().any(has_to_fail) {
            return Err(LaneError::Stop(format!(
                "{error}, with one record in it. The step says `on_error: fail`; with `reject` the record would go to the dead \
                 letters. A larger `memory:` in the daemon's file gives each batch half of it"
            )));
        }
        attempt.unfit = Some(Unfit(step));
        Ok(())
    }

    async fn attempt(
        &self,
        lane: &Lane,
        owned: &Owned,
        head: &Head,
        schemas: &Schemas,
        leased: &Arc<Leased>,
        attempt: &mut Attempt,
    ) -> Result<Option<Prepared>, LaneError> {
        let begun = Instant::now();
        let budget = Budget { records: attempt.records, ..self.budget() };
        let first = usize::try_from(head.mark.plan.seq).unwrap_or_default();
        let proposals = match attempt.again() {
            Some(same) => Some(same),
            None => self.propose(lane, &head.mark.positions, budget, first).await?,
        };
        let refused = self.plan_refused(lane, &head.mark.positions, budget).await?;
        if proposals.is_none() && refused.is_empty() {
            return Ok(None);
        }
        let proposals = proposals.unwrap_or_else(|| self.sources.iter().map(|_| None).collect());
        let clock = Timestamp::now();
        self.watch_clock(clock, head);
        let mut content = Content { clock, job: Some(self.digest), ..Content::default() };
        for proposal in proposals.iter().flatten() {
            content.spans.extend(proposal.spans.clone());
            content.entries.extend(proposal.entries.clone());
            content.prune.extend(proposal.prune.clone());
        }
        content.spans.extend(refused.clone());
        let plan_seconds = begun.elapsed().as_secs_f64();
        pass("plan")?;
        let reading = Instant::now();
        let mut raw = self.read_all(lane, &proposals).await?;
        attempt.keep(&proposals);
        drop(proposals);
        let read_seconds = reading.elapsed().as_secs_f64();
        let bytes: u64 = raw.iter().map(bytes_of).sum();
        leased.shrink_to_records(usize::try_from(bytes).unwrap_or(usize::MAX));
        let records: u64 = raw.iter().map(count).sum();
        attempt.came = usize::try_from(records).unwrap_or(usize::MAX);
        raw.extend(self.read_refused(lane, &refused).await?);
        pass("read")?;
        let mut pinned = head.pinned.clone();
        match &attempt.pinned {
            // A schema that was inferred from a larger try is not inferred anew from fewer records.
            Some((schemas, entries)) => {
                pinned.clone_from(schemas);
                content.entries.extend(entries.clone());
            }
            None => {
                let before: BTreeSet<LogName> = content.entries.keys().cloned().collect();
                self.pin(&raw, &mut pinned, &mut content).await?;
                let new = content.entries.iter().filter(|(log, _)| !before.contains(*log));
                let new = new.map(|(log, lines)| (log.clone(), lines.clone())).collect();
                attempt.pinned = Some((pinned.clone(), new));
            }
        }
        let tables = self.lookups.current().await?;
        content.versions = versions(&pinned);
        content.versions.extend(tables.versions.clone());
        let new_entries = content.entries.values().map(Vec::len).sum::<usize>();
        let compiled = schemas.compiled_for(self, self.digest, &pinned, &tables.schemas, &raw)?;
        compiled.prepare(&raw).await.map_err(|(source, error)| not_prepared(&source, error))?;
        content.versions.extend(compiled.readable(&raw).versions());
        content.versions.extend(attempt.unfit.as_ref().map(Unfit::version));
        let draft = Draft::batch(&head.mark, head.mark.anchor(), content).map_err(|error| cannot_plan(lane, &error))?;
        let raw = Arc::new(raw);
        self.lookups.uses(draft.plan());
        let account = attempt.begin(leased);
        let computed = self.compute(&compiled, &raw, draft.plan(), &tables, account).await?;
        pass("compute")?;
        let with_rows = self
            .marked()
            .filter(|slot| !rows_for(slot, &computed, &compiled).is_empty())
            .map(|slot| slot.id().clone())
            .collect();
        let writer = writer(owned, head.mark.anchor())?;
        let step =
            draft.finish(&head.mark, &head.joined, &with_rows, writer).map_err(|error| cannot_plan(lane, &error))?;
        let Step { mark, entries } = step;
        // A source has a share of the budget: what fills its own has more.
        let share = self.sources.len() as u64;
        let full = new_entries >= FULL_ENTRIES
            || raw.iter().any(|batch| {
                2 * share * count(batch) >= budget.records as u64 || 2 * share * bytes_of(batch) >= budget.bytes as u64
            });
        let received = self
            .sources
            .iter()
            .zip(raw.iter())
            .map(|(source, b)| (source.name().to_owned(), count(b), bytes_of(b)))
            .collect();
        drop(raw);
        let of_sinks = self.sinks_need(&computed, &compiled, account, bytes)?;
        let staging = Instant::now();
        let (staged, written) = self.stage_all(owned, &mark.plan, &computed, &compiled, schemas).await?;
        let mut phases: BTreeMap<&'static str, f64> = computed.phases.iter().copied().collect();
        phases.extend([("plan", plan_seconds), ("read", read_seconds), ("stage", staging.elapsed().as_secs_f64())]);
        let report = LastBatch {
            seq: mark.plan.seq,
            lane: lane.to_string(),
            planned_at_ms: mark.plan.planned_at.0,
            records,
            bytes,
            written,
            rejected: computed.rejected.values().sum(),
            steps: computed.steps.clone(),
            phases,
            duration_seconds: 0.0,
        };
        leased.shrink_to(of_sinks);
        let batch = Batch {
            lane: lane.clone(),
            full,
            next: Head { joined: joined_after(&mark), mark, pinned },
            entries,
            expected: head.joined.clone(),
            keys: owned.keys.clone(),
            begun,
            report,
            rejected: computed.rejected,
            received,
            _lease: leased.clone(),
        };
        Ok(Some(Prepared { batch, staged }))
    }

    /// The bytes that sinks will hold of a batch, which must fit beside its rows: about as many as the rows that they get. What
    /// was read is gone by then.
    fn sinks_need(
        &self,
        computed: &Computed,
        compiled: &Compiled,
        account: &Account,
        read: u64,
    ) -> Result<u64, LaneError> {
        let rows = self.sinks.iter().flat_map(|slot| rows_for(slot, computed, compiled));
        let bytes = rows.map(bytes_of_rows).sum();
        account.give_back(read);
        account.take(bytes).map(|()| bytes).map_err(|outgrown| {
            account.blame("sinks");
            LaneError::Transient(format!("sinks: {outgrown}"))
        })
    }

    /// Runs the computation off the runtime, counted as an attempt: a batch that kills the process is found out. It is
    /// known by its parent: a socket brings more between two tries, and the spans grow.
    pub(super) async fn compute(
        &self,
        compiled: &Arc<Compiled>,
        raw: &Arc<Vec<RawBatch>>,
        plan: &Plan,
        tables: &BatchTables,
        account: &Arc<Account>,
    ) -> Result<Computed, LaneError> {
        compiled.prepare(raw).await.map_err(|(source, error)| not_prepared(&source, error))?;
        let readable = Readable::of(plan);
        if let Some(source) = compiled.lost(raw, &readable) {
            return Err(LaneError::Transient(format!(
                "source {source}: the registry has lost a schema that batch {} was made with: register it again under its id, \
                 or `tidemill checkpoint resolve --accept-loss` for the sinks that lack the batch",
                plan.seq
            )));
        }
        let batch = Digest::of_json(&(&plan.lane, &plan.parent));
        let tries = self
            .around
            .ledger
            .attempt(self.name(), &plan.lane, batch)
            .map_err(|error| LaneError::Transient(error.to_string()))?;
        let input = plan.input();
        let context = BatchContext { planned_at: plan.planned_at.0, seed: seed(input) };
        let unfit = Unfit::of(plan);
        if tries > SUSPICIOUS_DEATHS {
            probe::try_in_a_child(self, raw, plan, compiled, tables).await?;
        }
        let _try = Try { job: self, lane: &plan.lane };
        let (compiled, raw, tables) = (compiled.clone(), raw.clone(), tables.tables.clone());
        let of_batch = Arc::clone(account);
        let computed = tokio::task::spawn_blocking(move || {
            probe::pass(&compiled).map_err(|error| ComputeError::Step(error.to_string()))?;
            match unfit {
                Some(unfit) => compiled.refuse(&raw, &context, input, &unfit),
                None => compiled.compute(&raw, &context, input, &tables, &readable, &of_batch),
            }
        })
        .await;
        computed
            .map_err(|error| {
                LaneError::Stop(format!("lane {}: the steps panicked on {}: {error}", plan.lane, describe_spans(plan)))
            })?
            .map_err(|error| {
                let text = format!("lane {}: {error}. In {}", plan.lane, describe_spans(plan));
                match error {
                    ComputeError::Away(_) => LaneError::Transient(text),
                    ComputeError::Outgrown { step, .. } => {
                        account.blame(&step);
                        LaneError::Transient(text)
                    }
                    _ => LaneError::Stop(text),
                }
            })
    }

    pub(super) async fn read_all(
        &self,
        lane: &Lane,
        proposals: &[Option<Proposal>],
    ) -> Result<Vec<RawBatch>, LaneError> {
        let mut raw = Vec::new();
        for (source, proposal) in self.sources.iter().zip(proposals) {
            raw.push(match proposal {
                Some(proposal) => {
                    source.read(lane, proposal).await.map_err(|error| LaneError::of_source(source.name(), &error))?
                }
                None => RawBatch::default(),
            });
        }
        Ok(raw)
    }

    /// Infers and pins the schema of a source that has none, from the first batch that has records of it.
    async fn pin(&self, raw: &[RawBatch], pinned: &mut Pinned, content: &mut Content) -> Result<(), LaneError> {
        for (config, batch) in self.config.sources.iter().zip(raw) {
            let (name, shards) = (&config.name.value, super::shard_name(config));
            if pinned.contains_key(&shards)
                || super::compile::given_schema(config).is_some()
                || batch.slices.iter().all(|s| s.records.is_empty())
            {
                continue;
            }
            let codec = tidemill_connectors::codec::codec(&config.codec);
            let schema = codec.first_schema(&batch.slices).await.map_err(|error| not_prepared(name, error))?;
            if schema.fields().is_empty() {
                continue;
            }
            content.entries.insert(schema_log(config), vec![schema_text(&schema)]);
            tracing::info!(job = self.name(), source = %name, schema = schema_text(&schema), "schema inferred and pinned");
            pinned.insert(shards, schema);
        }
        Ok(())
    }

    pub(super) async fn stage(
        &self,
        slot: &SinkSlot,
        key: &LaneKey,
        plan: &Plan,
        rows: &[RecordBatch],
    ) -> Result<Staged, LaneError> {
        let context =
            StageContext { key: key.clone(), input: plan.input(), plan: plan.clone(), mark_only: rows.is_empty() };
        slot.sink.stage(&context, rows).await.map_err(|error| self.sink_failed(slot, &error))
    }

    async fn stage_all(
        &self,
        owned: &Owned,
        plan: &Plan,
        computed: &Computed,
        compiled: &Compiled,
        schemas: &Schemas,
    ) -> Result<(Vec<(SinkSlot, Staged)>, BTreeMap<String, u64>), LaneError> {
        let mut staged = Vec::new();
        let mut written = BTreeMap::new();
        for slot in &self.sinks {
            let rows = rows_for(slot, computed, compiled);
            let touched = if slot.is_marked() { plan.touches(slot.id()) } else { !rows.is_empty() };
            if !touched {
                continue;
            }
            let key = owned.keys.get(slot.id()).cloned().unwrap_or_else(|| unmarked_key(slot, plan, owned));
            if !rows.is_empty() {
                schemas.prepared(self, slot, &row_schema(slot, compiled)).await?;
            }
            staged.push((slot.clone(), self.stage(slot, &key, plan, rows).await?));
            written.insert(slot.name.clone(), rows.iter().map(|batch| batch.num_rows() as u64).sum());
        }
        Ok((staged, written))
    }

    fn watch_clock(&self, clock: Timestamp, head: &Head) {
        let behind = (head.mark.plan.planned_at.0 - clock.0).max(0);
        #[allow(clippy::cast_precision_loss)] // milliseconds
        self.around.metrics.clock_behind.with_label_values(&[self.name()]).set(behind as f64 / 1000.0);
        if behind > CLOCK_TOLERANCE_MS {
            tracing::warn!(
                job = self.name(),
                behind_ms = behind,
                "the machine's clock is behind the last batch's; batches go on from that one's time"
            );
        }
    }
}

/// A clock may be so far behind the last plan's without a warning.
const CLOCK_TOLERANCE_MS: i64 = 1_000;
/// New files of a batch that mean that more wait.
const FULL_ENTRIES: usize = 1_000;

/// Passes a failpoint of the batch loop: `plan`, `read`, `computing`, `compute`, `before-anchor`, `after-anchor`,
/// `after-sinks`, `after-close`, `after-release`, `replay`, `catch-up`, `mark`.
pub(super) fn pass(name: &str) -> Result<(), LaneError> {
    failpoint::pass(name).map_err(|error| LaneError::Transient(error.to_string()))
}

pub(super) fn writer<'a>(owned: &'a Owned, sink: &SinkId) -> Result<Writer<'a>, LaneError> {
    let key = owned
        .keys
        .get(sink)
        .ok_or_else(|| LaneError::Stop(format!("{sink} is to commit first, but was not claimed")))?;
    Ok(Writer { generation: key.generation, owner: &key.owner })
}

pub(super) fn cannot_plan(lane: &Lane, error: &next::Error) -> LaneError {
    LaneError::Stop(format!("lane {lane}: the next batch cannot be planned: {error}"))
}

fn unmarked_key(slot: &SinkSlot, plan: &Plan, owned: &Owned) -> LaneKey {
    LaneKey { sink: slot.id().clone(), lane: plan.lane.clone(), ..any_key(&owned.keys) }
}

/// The rows of a sink, as the text of `compiled` names it.
pub(super) fn rows_for<'a>(slot: &SinkSlot, computed: &'a Computed, compiled: &Compiled) -> &'a [RecordBatch] {
    match slot.role {
        Role::Rows => compiled.sink_of(slot.id()).and_then(|name| computed.rows.get(name)).map_or(&[], Vec::as_slice),
        Role::DeadLetters => &computed.rejects,
        Role::Ledger => &[],
    }
}

pub(super) fn row_schema(slot: &SinkSlot, compiled: &Compiled) -> SchemaRef {
    match slot.role {
        Role::DeadLetters => dead_letters_schema(),
        _ => compiled.sink_of(slot.id()).map_or_else(|| Arc::new(Schema::empty()), |name| compiled.sink_schema(name)),
    }
}

/// A batch whose records cannot be decoded yet waits.
pub(super) fn not_prepared(source: &str, error: PrepareError) -> LaneError {
    match error {
        PrepareError::Transient(why) => LaneError::Transient(format!("source {source}: {why}")),
        PrepareError::Fatal(why) => LaneError::Stop(format!("source {source}: {why}")),
    }
}

fn describe_spans(plan: &Plan) -> String {
    let parts: Vec<_> =
        plan.spans.iter().map(|(shard, span)| format!("{shard} [{}, {})", span.from, span.to)).collect();
    format!("batch {}: {}", plan.seq, parts.join(", "))
}

/// Names the spans of a plan that kills the process.
pub fn poison_text(plan: &Plan) -> String {
    format!(
        "lane {}: {} kills the process: it died in it three times, and a trial in a process of its own died too. \
         Way out: mend the step, or `tidemill checkpoint rewind --to <positions after it>` to leave it out",
        plan.lane,
        describe_spans(plan)
    )
}

fn seed(input: Digest) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&input.bytes()[..8]);
    u64::from_le_bytes(bytes)
}

pub(super) fn count(batch: &RawBatch) -> u64 {
    let records: usize = batch.slices.iter().map(|slice| slice.records.len()).sum();
    (records + batch.rejects.len()) as u64
}

fn bytes_of(batch: &RawBatch) -> u64 {
    batch.slices.iter().map(|slice| slice.bytes.len() as u64).sum()
}
