//! What follows a decision of `decide()` that is no new batch: origins, replays, catch-up, moves of the anchor.

use std::{collections::BTreeMap, sync::Arc};

use tidemill_checkpoint::{
    Digest, Entry, Lane, LaneKey, Mark, Permit, Plan, PlanKind, Positions, ShardId, SinkId, Span, Spans, Timestamp,
    Touch,
    next::{self, Content, Step},
};
use tidemill_connectors::source::{Budget, Proposal, RawBatch};

use super::{
    Job, Role,
    batch::{Attempt, Head, cannot_plan, count, not_prepared, pass, row_schema, rows_for, writer},
    compile::{Compiled, Computed, Pinned},
    cut::Unfit,
    lane::{LaneError, Owned},
    schemas::{Schemas, versions},
};
use crate::memory::Leased;

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
        // Several lanes may be replayed at a time.
        let leased = self.around.memory.lease(self.config.batch.max_bytes).await.open_for_replay();
        let (compiled, computed) = self.compute_again(head, pinned, schemas, &leased).await.map_err(|error| match error {
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
        leased: &Leased,
    ) -> Result<(Arc<Compiled>, Computed), LaneError> {
        let plan = &head.plan;
        if !matches!(plan.kind, PlanKind::Batch) {
            let tables = self.lookups.current().await?;
            let compiled = schemas.compiled_for(self, self.digest, pinned, &tables.schemas, &[])?;
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
        let tables = self.lookups.of_plan(&text, plan).await?;
        let compiled = schemas.compiled_for(self, plan.job, pinned, &tables.schemas, &raw)?;
        let raw = Arc::new(raw);
        let account = leased.account();
        let computed = self.compute(&compiled, &raw, plan, &tables, &account).await.map_err(|error| {
            let hopeless = account.outgrown().filter(|outgrown| leased.is_hopeless(outgrown.needed));
            // It was made, and with less: somebody has made the budget smaller since, or an older version made it.
            hopeless.map_or(error, |outgrown| {
                LaneError::Stop(format!(
                    "lane {}: batch {} is committed in one sink and must be replayed as it is, and in step {} it takes more than \
                     all of `memory:` ({} of {} bytes). Way out: a `memory:` in the daemon's file that is as large as when the \
                     batch was made, or twice as large as now, until the batch is closed",
                    plan.lane,
                    plan.seq,
                    account.blamed().unwrap_or("decode"),
                    outgrown.needed,
                    leased.most()
                ))
            })
        })?;
        for slot in self.marked().filter(|slot| slot.role != Role::Ledger) {
            let untouched = matches!(plan.touches.get(slot.id()), Some(Touch::Joined { touched: false, .. }));
            if untouched && !rows_for(slot, &computed, &compiled).is_empty() {
                return Err(LaneError::Stop(format!(
                    "lane {}: a replay of batch {} has rows for {}, the batch had none: the source, a lookup's table or a step \
                     does not repeat itself. Way out: put back what has changed, or `tidemill checkpoint resolve --sink S \
                     --accept-loss` for the sink that lacks the batch",
                    plan.lane, plan.seq, slot.name
                )));
            }
        }
        Ok((compiled, computed))
    }

    /// One catch-up batch for a sink that is behind the head. One that outgrows its memory is planned anew, with half of its
    /// records.
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
        let most = self.budget().records;
        let leased = self.around.memory.lease(self.config.batch.max_bytes).await.open();
        let mut attempt = Attempt::new(self.cuts.records(lane, most));
        loop {
            match self.catch_up_once(owned, head, (sink, own, from), schemas, &leased, &mut attempt).await {
                Ok(()) => {
                    self.cuts.fits(lane, most);
                    return Ok(());
                }
                Err(error) => self.smaller(lane, &mut attempt, &leased, error)?,
            }
        }
    }

    async fn catch_up_once(
        &self,
        owned: &Owned,
        head: &Head,
        (sink, own, from): (&SinkId, Option<&Mark>, &Positions),
        schemas: &Schemas,
        leased: &Leased,
        attempt: &mut Attempt,
    ) -> Result<(), LaneError> {
        let lane = &head.mark.plan.lane;
        let (Some(slot), Some(key)) = (self.sink(sink), owned.keys.get(sink)) else {
            return Err(LaneError::Stop(format!("lane {lane}: {sink} is to catch up, but is not a sink of this job")));
        };
        let budget = Budget { records: attempt.records, ..self.budget() };
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
        let proposals = match attempt.again() {
            Some(same) => same,
            None => {
                let proposals = self.propose(lane, from, budget, 0).await.map_err(for_the_sink)?;
                let mut proposals = proposals.unwrap_or_default();
                cut_to(&head.mark.positions, &mut proposals);
                proposals
            }
        };
        attempt.keep(&proposals);
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
        attempt.came = raw.iter().map(count).sum::<u64>().try_into().unwrap_or(usize::MAX);
        let tables = self.lookups.current().await?;
        let compiled = schemas.compiled_for(self, self.digest, &head.pinned, &tables.schemas, &raw)?;
        compiled.prepare(&raw).await.map_err(|(source, error)| not_prepared(&source, error))?;
        let named = versions(&head.pinned).into_iter().chain(tables.versions.clone());
        let content = Content {
            spans: proposals.into_iter().flatten().flat_map(|p| p.spans).collect(),
            clock: Timestamp::now(),
            job: Some(self.digest),
            versions: named
                .chain(compiled.readable(&raw).versions())
                .chain(attempt.unfit.as_ref().map(Unfit::version))
                .collect(),
            ..Content::default()
        };
        let writer = writer(owned, sink)?;
        let step =
            next::catch_up(&head.mark, own, sink, from, content, writer).map_err(|error| cannot_plan(lane, &error))?;
        let account = attempt.begin(leased);
        let computed = self.compute(&compiled, &raw, step.plan(), &tables, account).await?;
        let rows = rows_for(slot, &computed, &compiled);
        if !rows.is_empty() {
            schemas.prepared(self, slot, &row_schema(slot, &compiled)).await?;
        }
        let staged = self.stage(slot, key, step.plan(), rows).await?;
        pass("catch-up")?;
        let permit = Permit::catch_up(key.clone(), own.map(|mark| mark.digest), step.mark);
        self.commit_one(slot, permit, staged).await.map(|_| ())
    }
}

/// The command by which a sink goes on without what cannot be read again.
fn do_without(sink: &str) -> String {
    format!("`tidemill checkpoint resolve --sink {sink} --accept-loss`")
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
