//! The batch that a lane stopped at, as far as nobody else remembers it: where it would have ended, and the entries of logs
//! (files that it was the first to take) that would have been committed with it. An operator who leaves the batch out
//! (`checkpoint rewind --to` its end) leaves out these files, which the anchor does not know yet.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use tidemill_checkpoint::{Digest, Lane, LogName, Plan, Positions, ShardId};

use super::Job;

/// Of one lane; in the job's folder in the data dir.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// The head that the batch builds on: on another one it is another batch.
    pub parent: Digest,
    /// Where the shards whose entries these are would stand after it.
    pub to: Positions,
    /// The entries.
    pub entries: BTreeMap<LogName, Vec<String>>,
}

fn path(job: &Job, lane: &Lane) -> PathBuf {
    job.folder().join("unread").join(format!("{}.json", Digest::of(lane.as_str().as_bytes()).short()))
}

impl Unread {
    /// Keeps that of a batch. Where it cannot be kept, leaving the batch out is refused, and nothing is lost.
    pub fn keep(job: &Job, parent: Digest, plan: &Plan, entries: &BTreeMap<LogName, Vec<String>>) {
        let has_entries = |shard: &ShardId| entries.contains_key(&LogName::new(&format!("files:{shard}")));
        let to: Positions = plan
            .spans
            .iter()
            .filter(|(shard, _)| has_entries(shard))
            .map(|(s, span)| (s.clone(), span.to.clone()))
            .collect();
        if to.is_empty() {
            return;
        }
        let files = |log: &LogName| log.as_str().starts_with("files:");
        let entries =
            entries.iter().filter(|(log, _)| files(log)).map(|(log, texts)| (log.clone(), texts.clone())).collect();
        let unread = Self { parent, to, entries };
        let path = path(job, &plan.lane);
        let temporary = path.with_extension("tmp");
        let write = || {
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            std::fs::write(&temporary, serde_json::to_vec(&unread)?)?;
            std::fs::rename(&temporary, &path)
        };
        if let Err(error) = write() {
            tracing::warn!(job = job.name(), lane = %plan.lane, %error, "the files of the batch that the lane stopped at cannot be noted in {}: leaving them out will be refused", path.display());
        }
    }

    /// What was kept of a lane.
    pub fn load(job: &Job, lane: &Lane) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path(job, lane)).ok()?).ok()
    }

    /// Whether a lane that goes on at `to` leaves this batch out.
    pub fn is_left_out_by(&self, to: &Positions) -> bool {
        self.to.iter().all(|(shard, position)| to.get(shard) == Some(position))
    }
}
