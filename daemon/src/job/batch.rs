//! One batch of a lane, from proposal to close. This is the order of the protocol, and the only place that has it:
//!
//! propose, read, decode, steps, stage; then (in [`super::commit`]) unmarked sinks, the anchor, the other marked sinks in
//! parallel, the ledger's close, and the sources' release.
//!
//! [`Job::prepare`] does the first half, tentatively and in memory, while the batch before it commits; dropping a
//! [`Prepared`] withdraws it. [`Job::commit`] does the second half for a group of lanes.
//! [`super::replay`] has what is no new batch.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};
use tidemill_checkpoint::{
    Digest, Entry, Lane, LaneKey, Mark, Plan, Positions, SinkId, Spans, Timestamp, failpoint,
    next::{self, Content, Draft, Step, Writer},
};
use tidemill_connectors::{
    codec::PrepareError,
    sink::{StageContext, Staged},
    source::{Budget, Proposal, RawBatch},
};
use tidemill_steps::BatchContext;

use super::{
    Job, LetterText, Role, SinkSlot,
    commit::any_key,
    compile::{Compiled, ComputeError, Computed, Pinned, dead_letters_schema},
    lane::{LaneError, Owned, joined_after},
    lookups::BatchTables,
    probe, quoted,
    readable::Readable,
    rejects,
    schemas::{Schemas, schema_log, schema_text, versions},
    unread::Unread,
    window::Window,
};
use crate::{memory::Lease, status::LastBatch};

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
    /// Rejects among the last records, for `max_rejected`.
    pub window: Window,
}

/// A batch that is ready to be committed.
pub struct Prepared {
    /// The batch.
    pub batch: Batch,
    pub(super) staged: Vec<(SinkSlot, Staged)>,
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
    /// The first of its rejects.
    pub(super) example: Option<LetterText>,
    _lease: Lease,
}

impl Batch {
    /// The anchor's mark after it.
    pub(super) fn mark(&self) -> &Mark {
        &self.next.mark
    }
}

impl Job {
    /// The commands by which a sink goes on without what cannot be computed again, for every sink that may need one.
    pub(super) fn do_without_any(&self) -> String {
        let names =
            self.marked().filter(|slot| slot.role != Role::Ledger).map(|slot| super::replay::do_without(&slot.name));
        names.collect::<Vec<_>>().join(", ")
    }

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

    /// The first half of a batch, in memory that is leased. `None`: nothing to do.
    pub async fn prepare(
        &self,
        lane: &Lane,
        owned: &Owned,
        head: &Head,
        schemas: &Schemas,
        mut lease: Lease,
    ) -> Result<Option<Prepared>, LaneError> {
        let begun = Instant::now();
        let budget = self.budget();
        let first = usize::try_from(head.mark.plan.seq).unwrap_or_default();
        let proposals = self.propose(lane, &head.mark.positions, budget, first).await?;
        let refused = self.plan_refused(lane, &head.mark.positions, budget).await?;
        if proposals.is_none() && refused.is_empty() {
            return Ok(None);
        }
        let proposals = proposals.unwrap_or_else(|| self.sources.iter().map(|_| None).collect());
        let clock = self.watch_clock(head);
        let mut content = Content { clock, job: Some(self.digest), ..Content::default() };
        for proposal in proposals.iter().flatten() {
            content.spans.extend(proposal.spans.clone());
            content.entries.extend(proposal.entries.clone());
            content.prune.extend(proposal.prune.clone());
            content.checks.extend(proposal.checks.clone());
        }
        content.spans.extend(refused.clone());
        let plan_seconds = begun.elapsed().as_secs_f64();
        pass("plan")?;
        let reading = Instant::now();
        let mut raw = self.read_all(lane, &proposals).await?;
        drop(proposals);
        let read_seconds = reading.elapsed().as_secs_f64();
        let bytes: u64 = raw.iter().map(bytes_of).sum();
        lease.shrink_to(usize::try_from(bytes).unwrap_or(usize::MAX));
        let records: u64 = raw.iter().map(count).sum();
        raw.extend(self.read_refused(lane, &refused).await?);
        pass("read")?;
        let mut pinned = head.pinned.clone();
        self.pin(&raw, &mut pinned, &mut content).await?;
        let tables = self.lookups.current().await?;
        content.versions = versions(&pinned);
        content.versions.extend(tables.versions.clone());
        let new_entries = content.entries.values().map(Vec::len).sum::<usize>();
        let compiled = schemas.compiled_for(self, self.digest, &pinned, &tables.schemas, &raw)?;
        compiled.prepare(&raw).await.map_err(|(source, error)| not_prepared(&source, error))?;
        content.versions.extend(compiled.readable(&raw).versions());
        let entries = content.entries.clone();
        let draft = Draft::batch(&head.mark, head.mark.anchor(), content).map_err(|error| cannot_plan(lane, &error))?;
        let raw = Arc::new(raw);
        self.lookups.uses(draft.plan());
        let computed = self.compute(&compiled, &raw, draft.plan(), &tables).await.inspect_err(|error| {
            if matches!(error, LaneError::Stop(_)) {
                Unread::keep(self, head.mark.digest, draft.plan(), &entries);
            }
        })?;
        pass("compute")?;
        let total: u64 = computed.rejected.values().sum();
        // Dead letters that their own sink refused are brought again after each start: they were judged once.
        let again = raw.iter().flat_map(|batch| &batch.rejects).filter(|r| rejects::are_dead_letters(&r.shard)).count();
        let window = head.window.after(records, total.saturating_sub(again as u64));
        if total > again as u64 {
            self.judge(&window, &computed, draft.plan()).inspect_err(|_| {
                Unread::keep(self, head.mark.digest, draft.plan(), &entries);
            })?;
        }
        let with_rows = self
            .marked()
            .filter(|slot| !rows_for(slot, &computed, &compiled).is_empty())
            .map(|slot| slot.id().clone())
            .collect();
        let writer = writer(owned, head.mark.anchor())?;
        let step =
            draft.finish(&head.mark, &head.joined, &with_rows, writer).map_err(|error| cannot_plan(lane, &error))?;
        let Step { mark, entries } = step;
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
        let batch = Batch {
            lane: lane.clone(),
            full,
            next: Head { joined: joined_after(&mark), mark, pinned, window },
            entries,
            expected: head.joined.clone(),
            keys: owned.keys.clone(),
            begun,
            report,
            rejected: computed.rejected,
            example: computed.example,
            received,
            _lease: lease,
        };
        Ok(Some(Prepared { batch, staged }))
    }

    /// Whether so many rejects are too many for the job. The batch stays open: nothing of it is committed.
    fn judge(&self, window: &Window, computed: &Computed, plan: &Plan) -> Result<(), LaneError> {
        let Some(limit) = self.config.max_rejected else { return Ok(()) };
        let (records, rejected) = window.totals();
        if !limit.is_exceeded_by(rejected, records) {
            return Ok(());
        }
        let kinds = computed.rejected.iter().map(|((step, reason), count)| format!("{count} {reason} ({step})"));
        let kinds: Vec<_> = kinds.take(KINDS_SHOWN).collect();
        let example = computed.example.as_ref().map_or_else(String::new, |first| format!("; the first: {first}"));
        Err(LaneError::Stop(format!(
            "lane {}: {rejected} of the last {records} records were rejected, more than `max_rejected: {limit}` allows. In {}: \
             {}{example}. Nothing of this batch is written. To go on: fix the source or the step, or raise `max_rejected`, and \
             {}; or leave these records out: {}",
            plan.lane,
            describe_spans(plan),
            kinds.join(", "),
            self.around.restart_command(self.name()),
            leave_out(plan)
        )))
    }

    /// Runs the computation off the runtime, counted as an attempt: a batch that kills the process is found out. It is
    /// known by its parent: a socket brings more between two tries, and the spans grow.
    pub(super) async fn compute(
        &self,
        compiled: &Arc<Compiled>,
        raw: &Arc<Vec<RawBatch>>,
        plan: &Plan,
        tables: &BatchTables,
    ) -> Result<Computed, LaneError> {
        compiled.prepare(raw).await.map_err(|(source, error)| not_prepared(&source, error))?;
        let readable = Readable::of(plan);
        if let Some(source) = compiled.lost(raw, &readable) {
            return Err(LaneError::Transient(format!(
                "source {source}: the registry has lost a schema that batch {} was made with: register it again under its id, \
                 or let each sink that lacks the batch do without it: {}",
                plan.seq,
                self.do_without_any()
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
        if tries > SUSPICIOUS_DEATHS {
            probe::try_in_a_child(self, raw, plan, compiled, tables).await?;
        }
        let _try = Try { job: self, lane: &plan.lane };
        let (compiled, raw, tables) = (compiled.clone(), raw.clone(), tables.tables.clone());
        let computed = tokio::task::spawn_blocking(move || {
            probe::pass(&compiled).map_err(|error| ComputeError::Step(error.to_string()))?;
            compiled.compute(&raw, &context, input, &tables, &readable)
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
            let rows = schemas.prepared(self, slot, &row_schema(slot, compiled), rows).await?;
            staged.push((slot.clone(), self.stage(slot, &key, plan, &rows).await?));
            written.insert(slot.name.clone(), rows.iter().map(|batch| batch.num_rows() as u64).sum());
        }
        Ok((staged, written))
    }

    /// The clock of the next plan; says where it is not the machine's.
    fn watch_clock(&self, head: &Head) -> Timestamp {
        let reading = self.around.clock.read();
        let machine = reading.time.0.saturating_add(reading.leap_ms.unwrap_or_default());
        let behind = head.mark.plan.planned_at.0.saturating_sub(machine).max(0);
        #[allow(clippy::cast_precision_loss)] // milliseconds
        self.around.metrics.clock_behind.with_label_values(&[self.name()]).set(behind as f64 / 1000.0);
        let is_wrong = reading.leap_ms.is_some() || behind > CLOCK_TOLERANCE_MS;
        if is_wrong && self.around.clock.is_complaint_due(self.name()) {
            let lane = &head.mark.plan.lane;
            let command = self.around.in_commands(self.name(), &lane.in_commands(SET_CLOCK));
            if let Some(leap_ms) = reading.leap_ms {
                tracing::warn!(
                    job = self.name(),
                    leap_ms,
                    "the machine's clock jumped by more than an hour against the time that passed: batches go on from the time \
                     before. It is followed again once it is back. If it is right now: {command}"
                );
            } else {
                tracing::warn!(
                    job = self.name(),
                    behind_ms = behind,
                    "the machine's clock is behind the last batch's; batches go on from that one's time until it has caught \
                     up. To go on from the machine's clock: {command}"
                );
            }
        }
        reading.time
    }
}

/// The command that sets a lane to the machine's clock.
const SET_CLOCK: &str = "`tidemill checkpoint resolve --clock`";
/// Kinds of rejects that a stop names.
const KINDS_SHOWN: usize = 8;
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

/// The command that leaves out what a plan reads of sources.
fn leave_out(plan: &Plan) -> String {
    let spans = plan.spans.iter().filter(|(shard, _)| rejects::sink_of(shard).is_none());
    let to = spans.map(|(shard, span)| format!(" --to {}", quoted(&format!("{shard}={}", span.to))));
    format!("`tidemill checkpoint rewind{}`", to.collect::<String>())
}

/// Names the spans of a plan that kills the process.
pub fn poison_text(plan: &Plan) -> String {
    format!(
        "lane {}: {} kills the process: it died in it three times, and a trial in a process of its own died too. \
         Way out: fix the step, or leave these records out: {}",
        plan.lane,
        describe_spans(plan),
        leave_out(plan)
    )
}

fn seed(input: Digest) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&input.bytes()[..8]);
    u64::from_le_bytes(bytes)
}

fn count(batch: &RawBatch) -> u64 {
    let records: usize = batch.slices.iter().map(|slice| slice.records.len()).sum();
    (records + batch.rejects.len()) as u64
}

fn bytes_of(batch: &RawBatch) -> u64 {
    batch.slices.iter().map(|slice| slice.bytes.len() as u64).sum()
}
