//! `max_rejected`: how many of the last records were rejected. The window goes with the head of a lane, so that a batch that
//! is dropped or planned once more is judged by what is committed before it and by nothing else; and it is kept in the data
//! dir, so that a restart judges as before.

use std::{collections::VecDeque, path::PathBuf};

use serde::{Deserialize, Serialize};
use tidemill_checkpoint::{Digest, Lane};

use super::Job;

/// So many records are looked back at, rounded up to whole batches.
const RECORDS: u64 = 1_000;

/// Batches, the oldest first: records, and how many of them were rejected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window(VecDeque<(u64, u64)>);

impl Window {
    /// With one more batch.
    pub fn after(&self, records: u64, rejected: u64) -> Self {
        let mut batches = self.0.clone();
        batches.push_back((records, rejected));
        let mut total: u64 = batches.iter().map(|batch| batch.0).sum();
        // Without its oldest batch, where the others are enough.
        while let Some((oldest, _)) = batches.front()
            && total - oldest >= RECORDS
        {
            total -= oldest;
            batches.pop_front();
        }
        Self(batches)
    }

    /// Records in it, and rejects among them.
    pub fn totals(&self) -> (u64, u64) {
        self.0.iter().fold((0, 0), |(records, rejected), batch| (records + batch.0, rejected + batch.1))
    }

    /// As it was kept. Nothing is known where it was not: the window begins anew.
    pub fn load(job: &Job, lane: &Lane) -> Self {
        let kept = job.config.max_rejected.and_then(|_| std::fs::read(path(job, lane)).ok());
        kept.and_then(|kept| serde_json::from_slice(&kept).ok()).unwrap_or_default()
    }

    /// Keeps it, without a sync: it matters to nothing but how soon a job stops.
    pub fn keep(&self, job: &Job, lane: &Lane) {
        if job.config.max_rejected.is_none() {
            return;
        }
        let path = path(job, lane);
        let temporary = path.with_extension("tmp");
        let write = || {
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            std::fs::write(&temporary, serde_json::to_vec(self)?)?;
            std::fs::rename(&temporary, &path)
        };
        if let Err(error) = write() {
            tracing::debug!(job = job.name(), %lane, %error, "the window of `max_rejected` cannot be kept");
        }
    }
}

fn path(job: &Job, lane: &Lane) -> PathBuf {
    job.folder().join("rejected").join(format!("{}.json", Digest::of(lane.as_str().as_bytes()).short()))
}

#[cfg(test)]
mod tests {
    use tidemill_config::MaxRejected;

    use super::*;

    #[test]
    fn the_window_has_the_last_thousand_records_or_the_batch() {
        let mut window = Window::default();
        for _ in 0..30 {
            window = window.after(100, 3);
        }
        assert_eq!(window.totals(), (1000, 30));
        // One batch that has more is judged alone.
        assert_eq!(window.after(5000, 7).totals(), (5000, 7));
        // Batches of odd sizes: whole ones, and no fewer records than there should be.
        let window = window.after(999, 0);
        assert_eq!(window.totals(), (1099, 3));
        assert_eq!(window.after(0, 0).totals(), (1099, 3), "a batch without records moves nothing");
        assert_eq!(Window::default().after(3, 3).totals(), (3, 3), "before there are so many, those that there are");
    }

    #[test]
    fn a_limit_is_exceeded_by_more_than_it_says() {
        for (limit, rejected, records, is) in [
            (MaxRejected::Records(0), 0, 1000, false),
            (MaxRejected::Records(0), 1, 1000, true),
            (MaxRejected::Records(100), 100, 100, false),
            (MaxRejected::Percent(5.0), 50, 1000, false),
            (MaxRejected::Percent(5.0), 51, 1000, true),
            (MaxRejected::Percent(0.5), 5, 1000, false),
            (MaxRejected::Percent(0.0), 1, 1000, true),
            (MaxRejected::Percent(100.0), 1000, 1000, false),
            (MaxRejected::Percent(5.0), 0, 0, false),
        ] {
            assert_eq!(limit.is_exceeded_by(rejected, records), is, "{limit}: {rejected} of {records}");
        }
    }
}
