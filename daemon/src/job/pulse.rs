//! Signs of life of a batch loop: beats in the anchor for whoever stands by, and the watchdog, for as long as it moves.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tidemill_checkpoint::LaneKey;
use tidemill_connectors::SinkError;
use tokio::sync::mpsc;

use super::Job;

/// A batch may take long; a loop that has not moved for so many beats is not alive.
const BEATS_WITHOUT_MOVE: u32 = 40;

/// The signs of life of one loop.
pub struct Pulse {
    /// Keys whose beats are sent.
    keys: Mutex<Vec<LaneKey>>,
    begun: Instant,
    /// Milliseconds since `begun`.
    moved: AtomicU64,
}

impl Pulse {
    /// A loop that begins now.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { keys: Mutex::default(), begun: Instant::now(), moved: AtomicU64::new(0) })
    }

    /// The loop got on: its beats and the watchdog go on.
    pub fn moved(&self) {
        self.moved.store(self.begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long ago it got on.
    pub fn silent(&self) -> Duration {
        self.begun.elapsed().saturating_sub(Duration::from_millis(self.moved.load(Ordering::Relaxed)))
    }

    /// From now on beats are sent for these keys.
    pub(super) fn set(&self, keys: impl Iterator<Item = LaneKey>) {
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = keys.collect();
    }

    /// And for this one.
    pub(super) fn add(&self, key: LaneKey) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).push(key);
    }

    /// Says that this owner lives, every quarter of `takeover_after`, for as long as the loop moves. Keys whose beat is
    /// refused go to `refused`: another owner has the lane.
    pub(super) async fn beat(self: Arc<Self>, job: Arc<Job>, refused: mpsc::Sender<LaneKey>) {
        let every = job.config.takeover_after / 4;
        loop {
            tokio::time::sleep(every).await;
            let silent = self.silent();
            if silent > every * BEATS_WITHOUT_MOVE {
                tracing::warn!(job = job.name(), "the batch loop has not moved for {silent:?}: no more beats");
                continue;
            }
            let now = self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for key in now {
                if let Some(slot) = job.sink(&key.sink)
                    && let Err(error) = slot.sink.beat(&key).await
                {
                    tracing::debug!(job = job.name(), sink = slot.name, %error, "beat failed");
                    if matches!(error, SinkError::Fenced { .. }) {
                        // A full queue has one of the same kind in it; the next beat is refused too.
                        let _ = refused.try_send(key);
                    }
                }
            }
        }
    }
}
