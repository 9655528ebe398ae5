//! The ledger: a daemon's own account of its jobs, and the anchor of jobs whose sinks keep no marks.

use serde_json::{Value, json};
use uuid::Uuid;

pub mod sled;

use crate::{Digest, Entry, Generation, Held, Lane, LaneKey, LogName, Mark, Owner, Permit, Receipt};

/// What the batch loop and the CLI need of a ledger. Calls block; they are short, and the loop makes them off the runtime.
///
/// *Lazy* records may be lost at a power cut (never torn into something else); they survive the death of the process
/// where the text says so. *Durable* ones are on the disk when the call returns.
pub trait Ledger: Send + Sync {
    /// The UUID of the data dir, made with it.
    fn data_dir_id(&self) -> Uuid;

    /// Counts one more try of the batch `batch` (a digest of lane and parent) and returns how many there were, this one
    /// included. Lazy, but survives the death of the process. Another batch starts at 1.
    fn attempt(&self, job: &str, lane: &Lane, batch: Digest) -> Result<u32, Error>;

    /// The batch that is being tried in a lane, and how often it was.
    fn attempts(&self, job: &str, lane: &Lane) -> Result<Option<(Digest, u32)>, Error> {
        let _ = (job, lane);
        Ok(None)
    }

    /// The batch was computed without harm: its tries are forgotten. Lazy, like [`Ledger::attempt`].
    fn settle(&self, job: &str, lane: &Lane) -> Result<(), Error>;

    /// Records that every sink has `head`; clears the attempts of the lane. Lazy.
    fn close(&self, job: &str, head: &Mark) -> Result<(), Error>;
    /// The last closed head of a lane.
    fn closed(&self, job: &str, lane: &Lane) -> Result<Option<Mark>, Error>;
    /// Every job and lane that the ledger knows.
    fn lanes(&self) -> Result<Vec<(String, Lane)>, Error>;
    /// Forgets all that this ledger knows of a job (or of one lane of it). Durable.
    fn forget(&self, job: &str, lane: Option<&Lane>) -> Result<(), Error>;

    /// As an anchor: what is held for a lane.
    fn held(&self, job: &str, lane: &Lane) -> Result<Held, Error>;
    /// As an anchor: claims a lane. [`Error::Fenced`] where the stored generation is not lower. Durable.
    fn claim(
        &self,
        job: &str,
        lane: &Lane,
        generation: Generation,
        owner: &Owner,
    ) -> Result<(LaneKey, Option<Mark>), Error>;
    /// As an anchor: the entries of a log from number `from` on.
    fn entries(&self, job: &str, lane: &Lane, log: &LogName, from: u64) -> Result<Vec<Entry>, Error>;
    /// As an anchor: compare-and-swap of mark and entries (see [`Permit`]). Durable.
    fn commit(&self, job: &str, permit: &Permit) -> Result<Receipt, Error>;
    /// As an anchor: lets go of a lane by a clean stop. Durable. Not an error where the key is fenced.
    fn release(&self, job: &str, key: &LaneKey) -> Result<(), Error>;

    /// All that the ledger knows of a job, or of every job, for `checkpoint show` and `export`: `data_dir`, and `lanes` with
    /// one object each, with `closed` and `held` as marks and claims are stored, and `attempts` as (batch, tries).
    fn snapshot(&self, job: Option<&str>) -> Result<Value, Error> {
        let mut lanes = Vec::new();
        for (name, lane) in self.lanes()?.into_iter().filter(|(name, _)| job.is_none_or(|job| job == name)) {
            let (closed, held) = (self.closed(&name, &lane)?, self.held(&name, &lane)?);
            let attempts = self.attempts(&name, &lane)?.map(|(batch, tries)| json!({ "batch": batch, "tries": tries }));
            let held = json!({ "claim": held.claim, "mark": held.mark });
            lanes.push(json!({ "job": name, "lane": lane, "closed": closed, "held": held, "attempts": attempts }));
        }
        Ok(json!({ "data_dir": self.data_dir_id(), "lanes": lanes }))
    }
}

/// What can go wrong in a ledger.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another generation owns the lane.
    #[error("lane {lane} is owned by a newer generation ({held}; mine is {mine})")]
    Fenced {
        /// The lane.
        lane: Lane,
        /// The generation that owns it now.
        held: Generation,
        /// The one that tried.
        mine: Generation,
    },
    /// My generation, but a mark that is neither expected nor the plan's.
    #[error("lane {lane}: the ledger's mark is {found:?}, expected {expected:?}")]
    Conflict {
        /// The lane.
        lane: Lane,
        /// The stored digest.
        found: Option<Digest>,
        /// The expected digest.
        expected: Option<Digest>,
    },
    /// Another process has the data dir open.
    #[error("{0}")]
    Locked(String),
    /// It may pass: a full disk, an I/O error.
    #[error("{what}: {cause}")]
    Io {
        /// What was being done, to what.
        what: String,
        /// The cause.
        cause: String,
    },
    /// Damaged beyond what can be rebuilt; the text names the way out.
    #[error("{0}")]
    Corrupt(String),
}
