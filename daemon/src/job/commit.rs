//! The second half of a batch: from staged rows to a closed batch, for a group of lanes, in the protocol's order.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures::future::join_all;
use tidemill_checkpoint::{Lane, LaneKey, Permit, Receipt, SinkId, Timestamp};
use tidemill_connectors::{SinkError, sink::Staged};

use super::{
    Job, Role, SinkSlot,
    batch::{Batch, Prepared, pass},
    lane::LaneError,
};

/// A commit that takes longer is given up: only a claim follows.
const COMMIT_DEADLINE: Duration = Duration::from_secs(300);
/// A commit without an answer after so long is told of, and its lanes are not ready: until then it takes its time.
const SLOW_COMMIT: Duration = Duration::from_secs(15);
type Work = Vec<(Batch, BTreeMap<SinkId, Staged>)>;

impl Job {
    /// The second half: commits a group of lanes in the protocol's order. One result per lane.
    pub async fn commit(&self, group: Vec<Prepared>) -> Vec<(Lane, Result<(), LaneError>)> {
        let mut failed: BTreeMap<Lane, LaneError> = BTreeMap::new();
        let mut lanes = Vec::new();
        let mut work = Vec::new();
        for Prepared { batch, staged } in group {
            lanes.push(batch.lane.clone());
            work.push((
                batch,
                staged.into_iter().map(|(slot, staged)| (slot.id().clone(), staged)).collect::<BTreeMap<_, _>>(),
            ));
        }
        self.commit_unmarked(&mut work, &mut failed).await;
        let receipts = self.commit_anchors(&mut work, &mut failed).await;
        self.commit_followers(&mut work, &receipts, &mut failed).await;
        for (batch, _) in work {
            if !failed.contains_key(&batch.lane)
                && let Err(error) = self.close(&batch).await
            {
                failed.insert(batch.lane.clone(), error);
            }
        }
        lanes
            .into_iter()
            .map(|lane| {
                let result = failed.remove(&lane).map_or(Ok(()), Err);
                (lane, result)
            })
            .collect()
    }

    async fn commit_unmarked(&self, work: &mut Work, failed: &mut BTreeMap<Lane, LaneError>) {
        for slot in self.sinks.iter().filter(|slot| !slot.is_marked()) {
            let (mut group, mut members) = (Vec::new(), Vec::new());
            for (index, (batch, staged)) in work.iter_mut().enumerate() {
                let Some(rows) = staged.remove(slot.id()).filter(|_| !failed.contains_key(&batch.lane)) else {
                    continue;
                };
                let key = LaneKey { sink: slot.id().clone(), ..any_key(&batch.keys) };
                group.push((Permit::unmarked(key, batch.mark().clone()), rows));
                members.push(index);
            }
            if group.is_empty() {
                continue;
            }
            let started = Instant::now();
            let results = self.commit_to(slot, group).await;
            for (index, result) in members.into_iter().zip(results) {
                let (batch, _) = &mut work[index];
                *batch.report.phases.entry("unmarked").or_default() += started.elapsed().as_secs_f64();
                if let Err(error) = result {
                    self.failed(batch, slot, &error, failed);
                }
            }
        }
    }

    async fn commit_anchors(&self, work: &mut Work, failed: &mut BTreeMap<Lane, LaneError>) -> BTreeMap<Lane, Receipt> {
        let mut receipts = BTreeMap::new();
        if let Err(error) = pass("before-anchor") {
            failed.extend(work.iter().map(|(p, _)| (p.lane.clone(), LaneError::Transient(error.to_string()))));
        }
        let anchors: BTreeSet<SinkId> = work.iter().map(|(p, _)| p.mark().plan.anchor.clone()).collect();
        for anchor in anchors {
            let Some(slot) = self.sink(&anchor) else { continue };
            let mut group = Vec::new();
            let mut members = Vec::new();
            for (index, (batch, staged)) in work.iter_mut().enumerate() {
                if batch.mark().plan.anchor != anchor || failed.contains_key(&batch.lane) {
                    continue;
                }
                let (Some(rows), Some(key)) = (staged.remove(&anchor), batch.keys.get(&anchor)) else { continue };
                let expected = batch.expected.get(&anchor).copied().flatten();
                group.push((
                    Permit::anchor(key.clone(), expected, batch.mark().clone(), std::mem::take(&mut batch.entries)),
                    rows,
                ));
                members.push(index);
            }
            let started = Instant::now();
            let results = self.commit_to(slot, group).await;
            for (index, result) in members.into_iter().zip(results) {
                let (batch, _) = &mut work[index];
                batch.report.phases.insert("anchor", started.elapsed().as_secs_f64());
                match result {
                    Ok(receipt) => {
                        self.refused(batch, slot, &receipt);
                        receipts.insert(batch.lane.clone(), receipt);
                    }
                    Err(error) => self.failed(batch, slot, &error, failed),
                }
            }
        }
        if let Err(error) = pass("after-anchor") {
            failed.extend(work.iter().map(|(p, _)| (p.lane.clone(), LaneError::Transient(error.to_string()))));
        }
        receipts
    }

    async fn commit_followers(
        &self,
        work: &mut Work,
        receipts: &BTreeMap<Lane, Receipt>,
        failed: &mut BTreeMap<Lane, LaneError>,
    ) {
        let started = Instant::now();
        let mut jobs = Vec::new();
        for slot in self.marked() {
            let mut group = Vec::new();
            let mut members = Vec::new();
            for (index, (batch, staged)) in work.iter_mut().enumerate() {
                let (Some(receipt), Some(key)) = (receipts.get(&batch.lane), batch.keys.get(slot.id())) else {
                    continue;
                };
                let Some(rows) = staged.remove(slot.id()).filter(|_| !failed.contains_key(&batch.lane)) else {
                    continue;
                };
                let expected = batch.expected.get(slot.id()).copied().flatten();
                let mark = batch.mark().held_by(slot.id(), key.generation, &key.owner);
                group.push((Permit::follow(receipt, key.clone(), expected, mark), rows));
                members.push(index);
            }
            if !group.is_empty() {
                jobs.push(async move { (slot, members, self.commit_to(slot, group).await) });
            }
        }
        let any = !jobs.is_empty();
        for (slot, members, results) in join_all(jobs).await {
            for (index, result) in members.into_iter().zip(results) {
                let (batch, _) = &mut work[index];
                match result {
                    Ok(receipt) => self.refused(batch, slot, &receipt),
                    Err(error) => self.failed(batch, slot, &error, failed),
                }
            }
        }
        if any {
            for (batch, _) in work.iter_mut() {
                batch.report.phases.insert("sinks", started.elapsed().as_secs_f64());
            }
        }
        if let Err(error) = pass("after-sinks") {
            failed.extend(work.iter().map(|(p, _)| (p.lane.clone(), LaneError::Transient(error.to_string()))));
        }
    }

    /// Rows that the sink kept as rejects are not written: a later batch brings them to the dead letters.
    fn refused(&self, batch: &mut Batch, slot: &SinkSlot, receipt: &Receipt) {
        let refused = receipt.rejected();
        if refused == 0 {
            return;
        }
        let (job, lane, seq) = (self.name(), &batch.lane, batch.mark().plan.seq);
        match slot.role {
            Role::DeadLetters => {
                tracing::error!(job, %lane, batch = seq, sink = slot.name, rows = refused, "the sink refused dead letters: it keeps them, and they are not where you look for them. Fix its table: the next start brings them there");
            }
            _ => {
                tracing::warn!(job, %lane, batch = seq, sink = slot.name, rows = refused, "the sink refused rows: they go to the dead letters with a next batch");
            }
        }
        if let Some(written) = batch.report.written.get_mut(&slot.name) {
            *written = written.saturating_sub(refused);
        }
        let of_sink = self.rejects.iter().filter(|rejects| rejects.sink() == slot.id());
        of_sink.for_each(|rejects| rejects.came(&batch.lane));
    }

    fn failed(&self, batch: &Batch, slot: &SinkSlot, error: &SinkError, failed: &mut BTreeMap<Lane, LaneError>) {
        tracing::warn!(job = self.name(), lane = %batch.lane, batch = batch.mark().plan.seq, sink = slot.name, %error, "commit failed");
        let meaning = self.sink_failed(slot, error);
        failed.entry(batch.lane.clone()).or_insert(meaning);
    }

    /// Every sink has the batch: the ledger says so, and the sources may forget it.
    async fn close(&self, batch: &Batch) -> Result<(), LaneError> {
        let closing = Instant::now();
        let (ledger, job, mark) = (self.around.ledger.clone(), self.name().to_owned(), batch.mark().clone());
        let closed = tokio::task::spawn_blocking(move || ledger.close(&job, &mark)).await;
        match closed {
            // The sinks hold the truth: a ledger that cannot be written costs its own account, not the batch.
            Ok(Err(error)) => tracing::warn!(job = self.name(), %error, "the ledger cannot record the close"),
            Err(error) => tracing::warn!(job = self.name(), %error, "the ledger panicked"),
            Ok(Ok(())) => {}
        }
        let metrics = &self.around.metrics;
        metrics.checkpoint_duration.with_label_values(&[self.name()]).observe(closing.elapsed().as_secs_f64());
        pass("after-close")?;
        self.lookups.closed(&batch.mark().plan).await;
        for source in &self.sources {
            let reached = self.positions_of(&**source, &batch.mark().positions);
            // The batch is done whatever becomes of this: a file that cannot be put away now is so with the next batch.
            if let Err(error) = source.release(&batch.lane, &reached).await {
                tracing::warn!(job = self.name(), lane = %batch.lane, source = source.name(), %error, "releasing what every sink has failed; tried again with the next batch");
            }
        }
        pass("after-release")?;
        self.account(batch);
        Ok(())
    }

    fn account(&self, batch: &Batch) {
        let (metrics, job) = (&self.around.metrics, self.name());
        let mut report = batch.report.clone();
        report.duration_seconds = batch.begun.elapsed().as_secs_f64();
        for (source, records, bytes) in &batch.received {
            metrics.records_received.with_label_values(&[job, source]).inc_by(*records);
            metrics.bytes_received.with_label_values(&[job, source]).inc_by(*bytes);
        }
        for (sink, rows) in &report.written {
            metrics.records_written.with_label_values(&[job, sink]).inc_by(*rows);
        }
        for ((step, reason), count) in &batch.rejected {
            metrics.records_rejected.with_label_values(&[job, step, reason]).inc_by(*count);
        }
        for (phase, seconds) in &report.phases {
            metrics.phase(job, phase, Duration::from_secs_f64(*seconds));
        }
        metrics.batches.with_label_values(&[job]).inc();
        metrics.batch_duration.with_label_values(&[job]).observe(report.duration_seconds);
        #[allow(clippy::cast_precision_loss)] // milliseconds since the epoch fit a double
        metrics.last_batch.with_label_values(&[job]).set(Timestamp::now().0 as f64 / 1000.0);
        for step in &report.steps {
            metrics.step(job, &step.step, step.rows_in, step.rows_out);
        }
        batch.next.window.keep(self, &batch.lane);
        self.account.closed(&report, &batch.rejected, batch.example.as_ref());
        self.status.lock().positions.insert(batch.lane.to_string(), batch.mark().positions.clone());
        self.status.closed(report);
    }
}

impl Job {
    /// One permit, as the lane sees its outcome.
    pub(super) async fn commit_one(
        &self,
        slot: &SinkSlot,
        permit: Permit,
        staged: Staged,
    ) -> Result<Receipt, LaneError> {
        let result = self.commit_to(slot, vec![(permit, staged)]).await.pop();
        result.unwrap_or_else(|| Err(no_answer(slot.id()))).map_err(|error| self.sink_failed(slot, &error))
    }

    /// Commits in a task of its own, which is never dropped; past the deadline the keys are poisoned: only a claim follows.
    async fn commit_to(&self, slot: &SinkSlot, group: Vec<(Permit, Staged)>) -> Vec<Result<Receipt, SinkError>> {
        let lanes: Vec<Lane> = group.iter().map(|(permit, _)| permit.key().lane.clone()).collect();
        let sink = slot.sink.clone();
        let mut task = tokio::spawn(async move { sink.commit(group).await });
        let failed = |cause: String| -> Vec<Result<Receipt, SinkError>> {
            let what = format!("committing to {}", slot.name);
            lanes.iter().map(|_| Err(SinkError::Transient { what: what.clone(), cause: cause.clone() })).collect()
        };
        let mut ended = tokio::time::timeout(SLOW_COMMIT, &mut task).await;
        if ended.is_err() {
            let reason = format!("sink {} has not answered a commit for {SLOW_COMMIT:?}", slot.name);
            tracing::warn!(job = self.name(), lanes = lanes.len(), "{reason}; it is waited for");
            lanes.iter().for_each(|lane| self.status.hangs(lane.as_str(), &reason));
            ended = tokio::time::timeout(COMMIT_DEADLINE - SLOW_COMMIT, task).await;
        }
        match ended {
            Ok(Ok(results)) => results,
            Ok(Err(error)) => failed(format!("it panicked: {error}")),
            Err(_) => failed(format!("no answer in {COMMIT_DEADLINE:?}")),
        }
    }
}

fn no_answer(sink: &SinkId) -> SinkError {
    SinkError::Fatal(format!("sink {sink} gave no answer to a commit"))
}

/// Any key of the lane: what a sink without marks is shown.
pub(super) fn any_key(keys: &BTreeMap<SinkId, LaneKey>) -> LaneKey {
    keys.values().next().expect("a job always has a marked sink: the ledger at least").clone()
}
