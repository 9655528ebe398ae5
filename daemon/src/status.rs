//! What a job tells the outside while it runs: `/jobs`, `/ready`, the progress line.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use serde::Serialize;
use tidemill_checkpoint::{Lane, Positions, Timestamp};

use crate::job::DEAD_LETTERS;

/// The state of one lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum LaneState {
    /// Peeking, claiming, deciding.
    Starting,
    /// Another owner holds it; the text names it.
    Waiting {
        /// Why.
        reason: String,
    },
    /// Owned, and at work.
    Running,
    /// Something failed that may pass, and is tried again; or an answer is overdue, and is waited for.
    Retrying {
        /// What failed.
        reason: String,
        /// How often in a row.
        failures: u32,
    },
    /// Stopped: an operator has to decide. The reason names the command.
    Stopped {
        /// Why, and the way out.
        reason: String,
    },
    /// Let go of by a clean stop.
    Released,
}

/// The last batch of a job.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LastBatch {
    /// Its number.
    pub seq: u64,
    /// The lane.
    pub lane: String,
    /// When it was planned, milliseconds since the epoch.
    pub planned_at_ms: i64,
    /// Records read.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Rows written, by sink.
    pub written: BTreeMap<String, u64>,
    /// Records rejected.
    pub rejected: u64,
    /// What each step did, in the job's order; after the steps the conditions of sinks, as `sinks.NAME`.
    pub steps: Vec<StepReport>,
    /// Seconds of each phase.
    pub phases: BTreeMap<&'static str, f64>,
    /// Seconds from plan to close.
    pub duration_seconds: f64,
}

/// What a step did in a batch.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StepReport {
    /// Its name.
    pub step: String,
    /// Rows that it got.
    pub rows_in: u64,
    /// Rows that it gave.
    pub rows_out: u64,
    /// Rows that it rejected.
    pub rejected: u64,
    /// Seconds that it worked, over all threads.
    pub seconds: f64,
}

/// The least time that a rate is made of.
const RATE_OVER_MS: i64 = 500;

/// Progress of one job.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Progress {
    /// The job.
    pub job: String,
    /// Batches closed since the start.
    pub batches: u64,
    /// Records read since the start.
    pub records_in: u64,
    /// Bytes read since the start.
    pub bytes_in: u64,
    /// Rows written since the start, over all sinks but the dead letters.
    pub rows_out: u64,
    /// Rows written since the start, by sink; the dead letters are among them.
    pub written: BTreeMap<String, u64>,
    /// Where dead letters go.
    pub dead_letters: String,
    /// Records rejected since the start.
    pub rejected: u64,
    /// Records read per second, over the last batches.
    pub records_per_second: f64,
    /// By lane.
    pub lanes: BTreeMap<String, LaneState>,
    /// Where each lane's shards stand.
    pub positions: BTreeMap<String, Positions>,
    /// What waits, by source.
    pub lag: BTreeMap<String, Lag>,
    /// The last batch.
    pub last_batch: Option<LastBatch>,
    /// The last error, with its time.
    pub last_error: Option<String>,
    /// Where a source listens.
    pub listening: BTreeMap<String, String>,
    /// When the last batch was closed.
    pub closed_at_ms: Option<i64>,
    /// Since when records are counted for the rate, and how many there are.
    #[serde(skip)]
    counted: Option<(i64, u64)>,
    /// The job is done (`--once`), or stopped for good.
    pub finished: bool,
}

/// What waits in a source.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Lag {
    /// Records.
    pub records: Option<u64>,
    /// Bytes.
    pub bytes: Option<u64>,
    /// Age of the oldest record, seconds.
    pub seconds: Option<f64>,
}

/// A job's progress, shared between its loop and HTTP.
#[derive(Clone, Debug, Default)]
pub struct Status(Arc<Mutex<Progress>>);

impl Status {
    /// The status of a job that has not begun.
    pub fn new(job: &str) -> Self {
        Self(Arc::new(Mutex::new(Progress { job: job.to_owned(), ..Progress::default() })))
    }
    /// The progress, for reading or changing. Held for moments only.
    pub fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
    /// A copy.
    pub fn snapshot(&self) -> Progress {
        self.lock().clone()
    }
    /// Where a lane stood when its last batch was closed.
    pub fn positions(&self, lane: &Lane) -> Positions {
        self.lock().positions.get(lane.as_str()).cloned().unwrap_or_default()
    }
    /// Begins anew: what was said of lanes is over, counts go on.
    pub fn restart(&self) {
        let mut progress = self.lock();
        progress.lanes.clear();
        progress.listening.clear();
        progress.finished = false;
    }
    /// Sets a lane's state; true where it changed.
    pub fn lane(&self, lane: &str, state: LaneState) -> bool {
        let mut progress = self.lock();
        if let LaneState::Retrying { reason, .. } | LaneState::Stopped { reason } = &state {
            progress.last_error = Some(reason.clone());
        }
        progress.lanes.insert(lane.to_owned(), state.clone()) != Some(state)
    }
    /// A lane that runs waits for something that should have answered; any other state says more.
    pub fn hangs(&self, lane: &str, reason: &str) {
        if let Some(state @ LaneState::Running) = self.lock().lanes.get_mut(lane) {
            *state = LaneState::Retrying { reason: reason.to_owned(), failures: 0 };
        }
    }
    /// Counts a closed batch.
    pub fn closed(&self, batch: LastBatch) {
        let mut progress = self.lock();
        let now = Timestamp::now().0;
        // Lanes close their batches together: a rate is of a while, and not of the time between two of them.
        progress.counted = match progress.counted {
            None => Some((now, 0)),
            Some((since, records)) if now - since < RATE_OVER_MS => Some((since, records + batch.records)),
            Some((since, records)) => {
                #[allow(clippy::cast_precision_loss)] // a rate for people
                let rate = (records + batch.records) as f64 * 1000.0 / (now - since) as f64;
                let before = progress.records_per_second;
                progress.records_per_second = if before == 0.0 { rate } else { 0.8 * before + 0.2 * rate };
                Some((now, 0))
            }
        };
        progress.batches += 1;
        progress.records_in += batch.records;
        progress.bytes_in += batch.bytes;
        progress.rejected += batch.rejected;
        for (sink, rows) in &batch.written {
            *progress.written.entry(sink.clone()).or_default() += rows;
            if sink != DEAD_LETTERS {
                progress.rows_out += rows;
            }
        }
        progress.closed_at_ms = Some(now);
        progress.last_batch = Some(batch);
    }
}

impl Progress {
    /// Why the job is not ready, where it is not.
    pub fn not_ready(&self) -> Option<String> {
        if self.lanes.is_empty() && !self.finished {
            return Some("no lane is assigned yet".into());
        }
        self.lanes.iter().find_map(|(lane, state)| match state {
            LaneState::Running | LaneState::Released => None,
            LaneState::Starting => Some(format!("lane {lane} is starting")),
            LaneState::Waiting { reason } | LaneState::Retrying { reason, .. } | LaneState::Stopped { reason } => {
                // A reason may name the lane by itself.
                let named = format!("lane {lane}: ");
                Some(if reason.starts_with(&named) { reason.clone() } else { named + reason })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    #[test]
    fn lanes_that_close_together_are_no_higher_rate() {
        let status = Status::new("job");
        let close = || status.closed(LastBatch { records: 1000, ..LastBatch::default() });
        close();
        thread::sleep(Duration::from_millis(RATE_OVER_MS.unsigned_abs()));
        (0..8).for_each(|_| close());
        let rate = status.lock().records_per_second;
        assert!(rate > 0.0 && rate <= 8.0 * 1000.0 / 0.5, "{rate}");
    }
}
