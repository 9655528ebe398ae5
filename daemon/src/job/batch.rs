//! One batch of a lane, from proposal to close. This is the order of the protocol, and the only place that has it:
//!
//! propose, read, decode, steps, stage; then (in [`super::commit`]) unmarked sinks, the anchor, the other marked sinks in
//! parallel, the ledger's close, and the sources' release.
//!
//! [`Job::prepare`] does the first half, tentatively and in memory, while the batch before it commits; dropping a
//! [`Prepared`] withdraws it. [`Job::commit`] does the second half for a group of lanes. Here too: what follows a
//! decision that is no batch (origins, replays, catch-up, moves of the anchor).

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};
use tidemill_checkpoint::{
    Digest, Entry, Lane, LaneKey, Mark, Permit, Plan, PlanKind, Positions, ShardId, SinkId, Span, Spans, Timestamp,
    Touch, failpoint,
    next::{self, Content, Draft, Step, Writer},
};
use tidemill_connectors::{
    sink::{StageContext, Staged},
    source::{Budget, Proposal, RawBatch},
};
use tidemill_steps::BatchContext;

use super::{
    Job, Role, SinkSlot,
    commit::any_key,
    compile::{Compiled, Computed, Pinned, dead_letters_schema},
    lane::{LaneError, Owned, joined_after},
    probe,
    schemas::{Schemas, schema_log, schema_text, versions},
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
    _lease: Lease,
}

impl Batch {
    /// The anchor's mark after it.
    pub(super) fn mark(&self) -> &Mark {
        &self.next.mark
    }
}

impl Job {
    /// Seq 0: resolves where every source starts and commits it to every marked sink.
    pub async fn commit_origin(&self, lane: &Lane, owned: &Owned) -> Result<(), LaneError> {
        let mut start = Positions::new();
        let mut content = Content { clock: Timestamp::now(), job: Some(self.digest), ..Content::default() };
        for source in &self.sources {
            let origin = source.origin(lane).await.map_err(|error| LaneError::of_source(source.name(), &error))?;
            start.extend(origin.positions);
            content.entries.extend(origin.entries);
        }
        let step = next::origin(
            lane,
            self.scheme,
            &self.anchor,
            owned.keys.keys(),
            start,
            content,
            writer(owned, &self.anchor)?,
        );
        self.commit_marks(&step.map_err(|error| cannot_plan(lane, &error))?, &owned.keys, &[]).await
    }

    /// The anchor's place goes to another sink, which gets all entries of the logs.
    pub async fn move_anchor(
        &self,
        lane: &Lane,
        owned: &Owned,
        head: &Mark,
        to: &SinkId,
        joined: &BTreeMap<SinkId, Option<Digest>>,
    ) -> Result<(), LaneError> {
        let entries =
            if self.sink(head.anchor()).is_some() { self.history(lane, head).await?.entries } else { Vec::new() };
        let whole: u64 = head.logs.values().map(|log| log.next - log.first).sum();
        if entries.len() as u64 != whole {
            return Err(LaneError::Stop(format!(
                "lane {lane}: the anchor {} is gone from the job, and with it the list of accepted files and the pinned schemas. \
                 Way out: put it back, or start over with `tidemill checkpoint reset --sinks`",
                head.anchor()
            )));
        }
        let content = Content { clock: Timestamp::now(), job: Some(self.digest), ..Content::default() };
        let step = next::move_anchor(head, to, joined, content, writer(owned, to)?)
            .map_err(|error| cannot_plan(lane, &error))?;
        tracing::info!(job = self.name(), lane = %lane, from = %head.anchor(), to = %to, "the anchor's place moves");
        self.commit_marks(&step, &owned.keys, &entries).await
    }

    /// Commits a step without rows to the sink that is first, then to every other one that it touches: origins, jumps,
    /// moves. `carried` are entries for a new anchor.
    pub async fn commit_marks(
        &self,
        step: &Step,
        keys: &BTreeMap<SinkId, LaneKey>,
        carried: &[Entry],
    ) -> Result<(), LaneError> {
        let mark = &step.mark;
        let mut receipt = None;
        for id in std::iter::once(&mark.sink).chain(step.followers()) {
            let (Some(key), Some(slot)) = (keys.get(id), self.sink(id)) else {
                return Err(LaneError::Stop(format!(
                    "lane {}: {id} is in the plan, but was not claimed",
                    mark.plan.lane
                )));
            };
            let permit = match &receipt {
                None => Permit::anchor(key.clone(), step.before(id), mark.clone(), step.entries.clone()),
                Some(first) => {
                    Permit::follow(first, key.clone(), step.before(id), mark.held_by(id, key.generation, &key.owner))
                }
            };
            let permit =
                if mark.anchor() == id && !carried.is_empty() { permit.carrying(carried.to_vec()) } else { permit };
            let staged = self.stage(slot, key, &mark.plan, &[]).await?;
            pass("mark")?;
            let done = self.commit_one(slot, permit, staged).await?;
            receipt.get_or_insert(done);
        }
        Ok(())
    }

    /// Asks every source what it has, within the budget. `None`: nothing to do.
    async fn propose(
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
    async fn read_refused(&self, lane: &Lane, spans: &Spans) -> Result<Vec<RawBatch>, LaneError> {
        let mut raw = Vec::new();
        for rejects in &self.rejects {
            if let Some(span) = spans.get(rejects.shard()) {
                raw.push(rejects.read(self, lane, span).await?);
            }
        }
        Ok(raw)
    }

    /// The caps of one batch.
    fn budget(&self) -> Budget {
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
        drop(proposals);
        let read_seconds = reading.elapsed().as_secs_f64();
        let bytes: u64 = raw.iter().map(bytes_of).sum();
        lease.shrink_to(usize::try_from(bytes).unwrap_or(usize::MAX));
        let records: u64 = raw.iter().map(count).sum();
        raw.extend(self.read_refused(lane, &refused).await?);
        pass("read")?;
        let mut pinned = head.pinned.clone();
        self.pin(&raw, &mut pinned, &mut content)?;
        content.versions = versions(&pinned);
        let new_entries = content.entries.values().map(Vec::len).sum::<usize>();
        let compiled = schemas.compiled_for(self, self.digest, &pinned, &raw)?;
        let draft = Draft::batch(&head.mark, head.mark.anchor(), content).map_err(|error| cannot_plan(lane, &error))?;
        let raw = Arc::new(raw);
        let computed = self.compute(&compiled, &raw, draft.plan()).await?;
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
            next: Head { joined: joined_after(&mark), mark, pinned },
            entries,
            expected: head.joined.clone(),
            keys: owned.keys.clone(),
            begun,
            report,
            rejected: computed.rejected,
            received,
            _lease: lease,
        };
        Ok(Some(Prepared { batch, staged }))
    }

    /// Runs the computation off the runtime, counted as an attempt: a batch that kills the process is found out. It is
    /// known by its parent: a socket brings more between two tries, and the spans grow.
    async fn compute(
        &self,
        compiled: &Arc<Compiled>,
        raw: &Arc<Vec<RawBatch>>,
        plan: &Plan,
    ) -> Result<Computed, LaneError> {
        let batch = Digest::of_json(&(&plan.lane, &plan.parent));
        let tries = self
            .around
            .ledger
            .attempt(self.name(), &plan.lane, batch)
            .map_err(|error| LaneError::Transient(error.to_string()))?;
        let input = plan.input();
        let context = BatchContext { planned_at: plan.planned_at.0, seed: seed(input) };
        if tries > SUSPICIOUS_DEATHS {
            probe::try_in_a_child(self, raw, plan, compiled).await?;
        }
        let _try = Try { job: self, lane: &plan.lane };
        let (compiled, raw) = (compiled.clone(), raw.clone());
        let computed = tokio::task::spawn_blocking(move || {
            probe::pass(&compiled).map_err(|error| super::compile::ComputeError::Step(error.to_string()))?;
            compiled.compute(&raw, &context, input)
        })
        .await;
        computed
            .map_err(|error| {
                LaneError::Stop(format!("lane {}: the steps panicked on {}: {error}", plan.lane, describe_spans(plan)))
            })?
            .map_err(|error| LaneError::Stop(format!("lane {}: {error}. In {}", plan.lane, describe_spans(plan))))
    }

    async fn read_all(&self, lane: &Lane, proposals: &[Option<Proposal>]) -> Result<Vec<RawBatch>, LaneError> {
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
    fn pin(&self, raw: &[RawBatch], pinned: &mut Pinned, content: &mut Content) -> Result<(), LaneError> {
        for (config, batch) in self.config.sources.iter().zip(raw) {
            let (name, shards) = (&config.name.value, super::shard_name(config));
            if pinned.contains_key(&shards)
                || super::compile::given_schema(config).is_some()
                || batch.slices.iter().all(|s| s.records.is_empty())
            {
                continue;
            }
            let codec = tidemill_connectors::codec::codec(&config.codec);
            let schema = codec
                .infer(&batch.slices)
                .map_err(|error| LaneError::Stop(format!("source {name}: its schema cannot be inferred: {error}")))?;
            if schema.fields().is_empty() {
                continue;
            }
            content.entries.insert(schema_log(config), vec![schema_text(&schema)]);
            tracing::info!(job = self.name(), source = %name, schema = schema_text(&schema), "schema inferred and pinned");
            pinned.insert(shards, schema);
        }
        Ok(())
    }

    async fn stage(
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

    /// Brings the head plan to sinks that lack it: the same records, the job's text and schemas as the plan names them.
    pub async fn replay(
        &self,
        owned: &Owned,
        head: &Mark,
        pinned: &Pinned,
        sinks: &BTreeMap<SinkId, Option<Digest>>,
        schemas: &Schemas,
    ) -> Result<(), LaneError> {
        let plan = &head.plan;
        let targets: Vec<_> =
            sinks.iter().filter_map(|(id, before)| Some((self.sink(id)?, owned.keys.get(id)?, *before))).collect();
        let names: Vec<_> = targets.iter().map(|(slot, ..)| slot.name.clone()).collect();
        tracing::info!(job = self.name(), lane = %plan.lane, batch = plan.seq, sinks = names.join(","), "replaying the head to sinks that lack it");
        let (compiled, computed) = self.compute_again(head, pinned, schemas).await.map_err(|error| match error {
            LaneError::Lost { what, .. } => LaneError::Stop(format!(
                "lane {}: batch {} is to be replayed to {}: {what}. Put back what is gone, or let a sink do without this \
                 batch: {}",
                plan.lane,
                plan.seq,
                names.join(", "),
                names.iter().map(|sink| do_without(sink)).collect::<Vec<_>>().join(", ")
            )),
            other => other,
        })?;
        for (slot, key, before) in targets {
            let rows = rows_for(slot, &computed, &compiled);
            let staged = match plan.touches.get(slot.id()) {
                Some(Touch::Joined { touched: true, .. }) => {
                    if !rows.is_empty() {
                        schemas.prepared(self, slot, &row_schema(slot, &compiled)).await?;
                    }
                    self.stage(slot, key, plan, rows).await?
                }
                _ => {
                    return Err(LaneError::Stop(format!(
                        "lane {}: batch {} does not touch {}, but is to be replayed to it",
                        plan.lane,
                        plan.seq,
                        slot.id()
                    )));
                }
            };
            pass("replay")?;
            let permit = Permit::replay(head, key.clone(), before);
            let permit = if slot.id() == head.anchor() { permit.carrying(self.carried(head).await?) } else { permit };
            self.commit_one(slot, permit, staged).await?;
        }
        Ok(())
    }

    /// All entries of the logs, for a sink whose place as the anchor is on its way.
    async fn carried(&self, head: &Mark) -> Result<Vec<Entry>, LaneError> {
        let before = Mark { plan: Plan { kind: PlanKind::Batch, ..head.plan.clone() }, ..head.clone() };
        Ok(self.history(&head.plan.lane, &before).await?.entries)
    }

    /// The rows of a plan once more, and a check that they touch the same sinks.
    async fn compute_again(
        &self,
        head: &Mark,
        pinned: &Pinned,
        schemas: &Schemas,
    ) -> Result<(Arc<Compiled>, Computed), LaneError> {
        let plan = &head.plan;
        if !matches!(plan.kind, PlanKind::Batch) {
            let compiled = schemas.compiled(self, self.digest, pinned)?;
            return Ok((compiled, Computed::default()));
        }
        // By the text that planned it: its sources in its order, each found again by the name that its shards have.
        let text = schemas.text(self, plan.job)?;
        let (mut raw, mut unread) = (Vec::new(), plan.spans.clone());
        for config in &text.sources {
            let name = super::shard_name(config);
            let spans: Spans = unread.extract_if(.., |shard, _| shard.source() == name).collect();
            let source = self.sources.iter().find(|source| source.name() == name);
            raw.push(match source {
                Some(source) if !spans.is_empty() => {
                    let proposal = Proposal { spans, ..Proposal::default() };
                    let read = source.read(&plan.lane, &proposal).await;
                    read.map_err(|error| LaneError::of_source(source.name(), &error))?
                }
                None if !spans.is_empty() => {
                    unread.extend(spans);
                    RawBatch::default()
                }
                _ => RawBatch::default(),
            });
        }
        let refused: Spans =
            unread.extract_if(.., |shard, _| self.rejects.iter().any(|rejects| rejects.shard() == shard)).collect();
        raw.extend(self.read_refused(&plan.lane, &refused).await?);
        if !unread.is_empty() {
            let shards: Vec<_> = unread.keys().map(ShardId::to_string).collect();
            return Err(LaneError::Stop(format!(
                "lane {}: batch {} is to be replayed, and {} of it belongs to no source of this job any more. Way out: put the \
                 source back until the batch is closed, or `tidemill checkpoint resolve --sink S --accept-loss` for the sink \
                 that lacks the batch",
                plan.lane,
                plan.seq,
                shards.join(", ")
            )));
        }
        let compiled = schemas.compiled_for(self, plan.job, pinned, &raw)?;
        let raw = Arc::new(raw);
        let computed = self.compute(&compiled, &raw, plan).await?;
        for slot in self.marked().filter(|slot| slot.role != Role::Ledger) {
            let untouched = matches!(plan.touches.get(slot.id()), Some(Touch::Joined { touched: false, .. }));
            if untouched && !rows_for(slot, &computed, &compiled).is_empty() {
                return Err(LaneError::Stop(format!(
                    "lane {}: a replay of batch {} has rows for {}, the batch had none: the source or a step does not repeat itself",
                    plan.lane, plan.seq, slot.name
                )));
            }
        }
        Ok((compiled, computed))
    }

    /// One catch-up batch for a sink that is behind the head.
    pub async fn catch_up(
        &self,
        owned: &Owned,
        head: &Head,
        sink: &SinkId,
        own: Option<&Mark>,
        from: &Positions,
        schemas: &Schemas,
    ) -> Result<(), LaneError> {
        let lane = &head.mark.plan.lane;
        let (Some(slot), Some(key)) = (self.sink(sink), owned.keys.get(sink)) else {
            return Err(LaneError::Stop(format!("lane {lane}: {sink} is to catch up, but is not a sink of this job")));
        };
        let budget = self.budget();
        // What the other sinks have is not given up for this one.
        let for_the_sink = |error| match error {
            LaneError::Lost { what, .. } => LaneError::Stop(format!(
                "lane {lane}: {sink} stands at {} and is to catch up with the head at {}: {what}. Put back what is gone, or \
                 let it do without: {}",
                super::describe(from),
                super::describe(&head.mark.positions),
                do_without(&slot.name)
            )),
            other => other,
        };
        let mut proposals = self.propose(lane, from, budget, 0).await.map_err(for_the_sink)?.unwrap_or_default();
        cut_to(&head.mark.positions, &mut proposals);
        if proposals.iter().flatten().all(|proposal| proposal.spans.is_empty()) {
            return Err(LaneError::Stop(format!(
                "lane {lane}: {sink} stands at {}, the head at {}, and the sources have nothing between them any more. \
                 Way out: {}",
                super::describe(from),
                super::describe(&head.mark.positions),
                do_without(&slot.name)
            )));
        }
        let raw = Arc::new(self.read_all(lane, &proposals).await.map_err(for_the_sink)?);
        let content = Content {
            spans: proposals.into_iter().flatten().flat_map(|p| p.spans).collect(),
            clock: Timestamp::now(),
            job: Some(self.digest),
            versions: versions(&head.pinned),
            ..Content::default()
        };
        let writer = writer(owned, sink)?;
        let step =
            next::catch_up(&head.mark, own, sink, from, content, writer).map_err(|error| cannot_plan(lane, &error))?;
        let compiled = schemas.compiled(self, self.digest, &head.pinned)?;
        let computed = self.compute(&compiled, &raw, step.plan()).await?;
        let rows = rows_for(slot, &computed, &compiled);
        if !rows.is_empty() {
            schemas.prepared(self, slot, &row_schema(slot, &compiled)).await?;
        }
        let staged = self.stage(slot, key, step.plan(), rows).await?;
        pass("catch-up")?;
        let permit = Permit::catch_up(key.clone(), own.map(|mark| mark.digest), step.mark);
        self.commit_one(slot, permit, staged).await.map(|_| ())
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

fn writer<'a>(owned: &'a Owned, sink: &SinkId) -> Result<Writer<'a>, LaneError> {
    let key = owned
        .keys
        .get(sink)
        .ok_or_else(|| LaneError::Stop(format!("{sink} is to commit first, but was not claimed")))?;
    Ok(Writer { generation: key.generation, owner: &key.owner })
}

/// The command by which a sink goes on without what cannot be read again.
fn do_without(sink: &str) -> String {
    format!("`tidemill checkpoint resolve --sink {sink} --accept-loss`")
}

fn cannot_plan(lane: &Lane, error: &next::Error) -> LaneError {
    LaneError::Stop(format!("lane {lane}: the next batch cannot be planned: {error}"))
}

fn unmarked_key(slot: &SinkSlot, plan: &Plan, owned: &Owned) -> LaneKey {
    LaneKey { sink: slot.id().clone(), lane: plan.lane.clone(), ..any_key(&owned.keys) }
}

/// The rows of a sink, as the text of `compiled` names it.
fn rows_for<'a>(slot: &SinkSlot, computed: &'a Computed, compiled: &Compiled) -> &'a [RecordBatch] {
    match slot.role {
        Role::Rows => compiled.sink_of(slot.id()).and_then(|name| computed.rows.get(name)).map_or(&[], Vec::as_slice),
        Role::DeadLetters => &computed.rejects,
        Role::Ledger => &[],
    }
}

fn row_schema(slot: &SinkSlot, compiled: &Compiled) -> SchemaRef {
    match slot.role {
        Role::DeadLetters => dead_letters_schema(),
        _ => compiled.sink_of(slot.id()).map_or_else(|| Arc::new(Schema::empty()), |name| compiled.sink_schema(name)),
    }
}

/// Ends every span at the head where it goes beyond.
fn cut_to(head: &Positions, proposals: &mut [Option<Proposal>]) {
    for proposal in proposals.iter_mut().flatten() {
        proposal.ahead = None;
        proposal.entries.clear();
        proposal.prune.clear();
        proposal.spans = std::mem::take(&mut proposal.spans)
            .into_iter()
            .filter_map(|(shard, span)| {
                let limit = head.get(&shard)?;
                let to = if span.to > *limit { limit.clone() } else { span.to };
                (span.from < to).then_some((shard, Span { from: span.from, to }))
            })
            .collect();
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

fn count(batch: &RawBatch) -> u64 {
    let records: usize = batch.slices.iter().map(|slice| slice.records.len()).sum();
    (records + batch.rejects.len()) as u64
}

fn bytes_of(batch: &RawBatch) -> u64 {
    batch.slices.iter().map(|slice| slice.bytes.len() as u64).sum()
}
