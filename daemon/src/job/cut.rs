//! How large a lane's batches may be, where the configured size takes more memory than a batch may have.
//!
//! What a batch takes is known when it is computed, not before: a lookup may add a long text to every row, a join may
//! multiply them. So a batch that outgrows its lease ([`crate::memory`]) is given up and planned anew, with half of its
//! records; and again, down to one record. A single record that does not fit is a dead letter.
//!
//! None of this touches the protocol:
//!
//! - Only a batch that nobody knows of is cut. Until its anchor commits, a plan is a tentative thing in memory: no sink has
//!   it, no mark names it, its staged rows are withdrawn. A plan that is committed in one sink is replayed as it is,
//!   whatever it takes: a replay may have the whole budget, twice what the batch had when it was made, and where that
//!   is not enough (somebody lowered `memory:`), the lane stops and says so.
//! - A smaller batch is a batch like any other: it begins at the same positions, and has the same parent. The ledger counts
//!   tries by the parent, so that a batch which kills the process is found out whatever its size was.
//! - Whether a record fits may depend on how the machine was busy, so a replay must not decide it again: the plan of a
//!   record that does not fit says so ([`Unfit`]), and where it says so nothing is computed. A plan that does not say it
//!   is computed, by a version that knows nothing of this too.
//! - `memory:` decides about the size of batches and about nothing else: rows are the same under every budget that they
//!   fit into.
//!
//! A batch that did not fit only because other jobs hold the memory is no fault of its records: a single one waits.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tidemill_checkpoint::{Digest, Lane, Plan};

/// What names of versions in plans begin with; the step follows.
const VERSION: &str = "outgrown/";
/// After so many batches that fit a larger one is tried, at most.
const LONGEST_PATIENCE: u32 = 64;

/// The record of a plan takes more memory than a batch may have, in this step. It goes to the dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit(pub String);

impl Unfit {
    /// What a plan says.
    pub fn of(plan: &Plan) -> Option<Self> {
        plan.versions.keys().find_map(|name| Some(Self(name.strip_prefix(VERSION)?.to_owned())))
    }

    /// As a plan names it.
    pub fn version(&self) -> (String, Digest) {
        (format!("{VERSION}{}", self.0), Digest::of(self.0.as_bytes()))
    }
}

/// The size of one lane's batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// At most so many records.
    records: usize,
    /// So many batches that fit come before a larger one is tried: twice as many each time that the larger one did not fit.
    patience: u32,
    /// So many of them are left.
    left: u32,
    /// It was made larger, and has not proved yet that it fits.
    is_trial: bool,
}

/// The sizes of a job's batches, by lane: of lanes whose batches had to be cut.
#[derive(Debug, Default)]
pub struct Cuts(Mutex<BTreeMap<Lane, Cut>>);

impl Cuts {
    fn lanes(&self) -> MutexGuard<'_, BTreeMap<Lane, Cut>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The records that the lane's next batch may have, of those that the job says.
    pub fn records(&self, lane: &Lane, most: usize) -> usize {
        self.lanes().get(lane).map_or(most, |cut| cut.records.min(most))
    }

    /// A batch of so many records did not fit. The records of the next try; `None` where there was one only.
    pub fn halve(&self, lane: &Lane, records: usize) -> Option<usize> {
        let mut lanes = self.lanes();
        let cut = lanes.entry(lane.clone()).or_insert(Cut { records, patience: 1, left: 1, is_trial: false });
        if cut.is_trial {
            cut.patience = LONGEST_PATIENCE.min(cut.patience * 2);
        }
        let is_least = cut.records <= 1 || records <= 1;
        *cut = Cut { records: (records.min(cut.records) / 2).max(1), left: cut.patience, is_trial: false, ..*cut };
        (!is_least).then_some(cut.records)
    }

    /// A batch fits that the lane's size has bounded. After some of them a larger one is tried, up to what the job says.
    pub fn fits(&self, lane: &Lane, most: usize) {
        let mut lanes = self.lanes();
        let Some(cut) = lanes.get_mut(lane) else { return };
        cut.left = cut.left.saturating_sub(1);
        cut.is_trial = false;
        if cut.left > 0 {
            return;
        }
        let records = cut.records.saturating_mul(2);
        if records >= most {
            lanes.remove(lane);
            return;
        }
        *cut = Cut { records, left: cut.patience, is_trial: true, ..*cut };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 1_000;

    fn lane() -> Lane {
        Lane::single()
    }

    /// Plans batches until all records are through: what each batch had, and how many tries did not fit.
    fn run(cuts: &Cuts, records: usize, fits: impl Fn(usize, usize) -> bool) -> (Vec<usize>, usize, Vec<usize>) {
        let (mut at, mut batches, mut tries, mut letters) = (0, Vec::new(), 0, Vec::new());
        while at < records {
            let size = cuts.records(&lane(), MOST).min(records - at);
            if fits(at, size) {
                cuts.fits(&lane(), MOST);
                batches.push(size);
                at += size;
                continue;
            }
            tries += 1;
            assert!(tries < 20 * records, "it comes to an end");
            if cuts.halve(&lane(), size).is_none() {
                letters.push(at);
                batches.push(1);
                at += 1;
                cuts.fits(&lane(), MOST);
            }
        }
        (batches, tries, letters)
    }

    #[test]
    fn what_fits_is_not_cut() {
        let cuts = Cuts::default();
        assert_eq!(run(&cuts, 2_500, |_, _| true), (vec![1_000, 1_000, 500], 0, vec![]));
    }

    #[test]
    fn every_record_is_in_one_batch_and_few_tries_are_in_vain_where_only_small_batches_fit() {
        let cuts = Cuts::default();
        let (batches, tries, letters) = run(&cuts, 100_000, |_, size| size <= 150);
        assert_eq!((batches.iter().sum::<usize>(), letters.len()), (100_000, 0));
        assert!(batches.len() < 1_000 && tries < 30, "{} batches, {tries} tries", batches.len());
    }

    #[test]
    fn one_record_that_never_fits_is_a_dead_letter_and_batches_grow_again() {
        for bad in [0, 1, 499, 500, 777, 999, 1_000, 2_345] {
            let cuts = Cuts::default();
            let (batches, tries, letters) = run(&cuts, 10_000, |at, size| !(at..at + size).contains(&bad));
            assert_eq!((batches.iter().sum::<usize>(), letters), (10_000, vec![bad]), "{bad}");
            assert!(tries <= 80 && batches.len() < 150, "{bad}: {} batches, {tries} tries", batches.len());
            assert_eq!(cuts.records(&lane(), MOST), MOST, "{bad}: nothing is left of it");
        }
    }

    #[test]
    fn lanes_are_cut_by_themselves() {
        let (cuts, other) = (Cuts::default(), Lane::new("topic/1"));
        assert_eq!(
            (cuts.halve(&lane(), 9), cuts.halve(&lane(), 4), cuts.halve(&lane(), 2)),
            (Some(4), Some(2), Some(1))
        );
        assert_eq!((cuts.records(&lane(), MOST), cuts.records(&other, MOST)), (1, MOST));
        assert_eq!(cuts.halve(&lane(), 1), None);
    }

    #[test]
    fn a_plan_names_the_step() {
        let unfit = Unfit("1-lookup".into());
        let (name, digest) = unfit.version();
        let plan = |versions: BTreeMap<String, Digest>| Plan {
            lane: lane(),
            kind: tidemill_checkpoint::PlanKind::Batch,
            seq: 1,
            parent: None,
            spans: BTreeMap::new(),
            planned_at: tidemill_checkpoint::Timestamp(0),
            job: Digest::of(b"job"),
            versions,
            logs: BTreeMap::new(),
            anchor: tidemill_checkpoint::SinkId::new("db"),
            touches: BTreeMap::new(),
        };
        let others = [("schema:in".to_owned(), digest), ("lookup/1-lookup".to_owned(), digest)];
        assert_eq!(Unfit::of(&plan(BTreeMap::from(others.clone()))), None);
        assert_eq!(Unfit::of(&plan(others.into_iter().chain([(name, digest)]).collect())), Some(unfit));
    }
}
