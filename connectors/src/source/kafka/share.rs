//! How many members of the group this daemon has: its part of the lanes follows its free hands.
//!
//! The group shares partitions out evenly by member. A daemon that has time while lanes of others wait, and none of its own,
//! joins once more, up to `members:`, and gets more of them; one that is busy and falls behind gives one up, and takes none
//! for a while: twice as long each time, so that lanes that are too much for everybody do not go round. Where nothing waits
//! nothing moves, so daemons without load are left alone. Only one step is made at a time, and then its effect awaited.
//!
//! A lane *waits* where the group's offset is before the end that it had at the look before. A daemon *falls behind* where more
//! waits in its lanes than at the look before; a backlog that gets smaller is none of it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};

use super::{client::Context, core::Core, offsets::by_partition, topics::Partition};
use crate::kafka::offsets;

/// Busy for less than this part of the time: there are free hands.
const FREE: f64 = 0.5;
/// Busy for more than this part of the time.
const BUSY: f64 = 0.9;
/// Beyond three batches a record waits for the daemon, and not for its turn.
const BATCHES: u32 = 3;
/// Between two looks is at least so long: records are on the way, and lanes move.
const LEAST: Duration = Duration::from_secs(2);
/// What the brokers do not answer in this time is not asked again before the next look.
const ANSWER: Duration = Duration::from_secs(1);
/// Who gave a member up takes no lanes for so many looks, at first.
const REST: u32 = 10;
/// ... and at most for so long.
const LONGEST_REST: Duration = Duration::from_secs(3600);

/// How much of its time the job worked since the last look, and what was seen then.
#[derive(Debug)]
pub(super) struct Share {
    patience: Duration,
    looked: Instant,
    worked: Duration,
    passed: Duration,
    before: Option<Seen>,
    /// Not before this does it join again.
    rests_until: Option<Instant>,
    rest: Duration,
}

/// What a look sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Where each partition ends.
    ends: Offsets,
    /// How far the group is.
    done: Offsets,
}

type Offsets = BTreeMap<Partition, u64>;

/// What a daemon knows when it decides whether to look.
#[derive(Clone, Copy, Debug)]
struct Facts {
    busy: f64,
    members: usize,
    most: usize,
    /// Partitions that it has.
    partitions: usize,
    rests: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Join,
    Leave,
}

impl Facts {
    /// What it would do, depending on what waits.
    fn step(self) -> Option<Step> {
        // A member that got no partition shows that there are more members than partitions.
        let may_join = !self.rests && self.members < self.most && self.partitions >= self.members;
        match self.busy {
            busy if busy < FREE && may_join => Some(Step::Join),
            busy if busy > BUSY && self.members > 1 => Some(Step::Leave),
            _ => None,
        }
    }
}

impl Seen {
    fn lag(&self, partition: &Partition) -> u64 {
        let done = self.done.get(partition).copied().unwrap_or(0);
        self.ends.get(partition).map_or(0, |end| end.saturating_sub(done))
    }

    /// Whether what was there before is not done yet.
    fn waits(&self, before: &Self, partition: &Partition) -> bool {
        let done = self.done.get(partition).copied().unwrap_or(0);
        self.ends.contains_key(partition) && before.ends.get(partition).is_some_and(|end| *end > done)
    }

    /// The lane for which a step is to be made.
    fn reason(&self, before: &Self, step: Step, is_mine: impl Fn(&Partition) -> bool) -> Option<Partition> {
        let waiting = |mine: bool| self.ends.keys().find(|one| is_mine(one) == mine && self.waits(before, one));
        let lag = |seen: &Self| self.ends.keys().filter(|one| is_mine(one)).map(|one| seen.lag(one)).sum::<u64>();
        match step {
            Step::Join => waiting(false).filter(|_| waiting(true).is_none()),
            Step::Leave => waiting(true).filter(|_| lag(self) > lag(before)),
        }
        .cloned()
    }
}

impl Share {
    /// `trigger`: how often batches are made.
    pub fn new(trigger: Duration) -> Self {
        let patience = LEAST + BATCHES * trigger;
        Self {
            patience,
            looked: Instant::now(),
            worked: Duration::ZERO,
            passed: Duration::ZERO,
            before: None,
            rests_until: None,
            rest: patience * REST,
        }
    }

    /// The job worked for so long of the time that passed.
    pub fn worked(&mut self, worked: Duration, passed: Duration) {
        self.worked += worked;
        self.passed += passed;
    }

    /// The part of the time that was work since the last look, where a look is due.
    fn due(&mut self) -> Option<f64> {
        if self.looked.elapsed() < self.patience || self.passed.is_zero() {
            return None;
        }
        self.looked = Instant::now();
        let busy = self.worked.div_duration_f64(self.passed);
        (self.worked, self.passed) = (Duration::ZERO, Duration::ZERO);
        Some(busy)
    }

    fn rests(&self) -> bool {
        self.rests_until.is_some_and(|until| Instant::now() < until)
    }

    fn rest(&mut self) {
        self.rests_until = Some(Instant::now() + self.rest);
        self.rest = (2 * self.rest).min(LONGEST_REST);
    }
}

/// Joins once more, or lets one member go, where it is time for it.
pub(super) fn look(core: &Core, query: &BaseConsumer<Context>) {
    let most = core.most_members();
    let (busy, rests, before) = {
        let mut share = core.share();
        let Some(busy) = share.due() else { return };
        (busy, share.rests(), share.before.take())
    };
    let mine = core.members.group().mine();
    let facts = Facts { busy, members: core.members.count(), most, partitions: mine.len(), rests };
    let Some(step) = facts.step().filter(|_| facts.members > 0) else { return };
    let partitions: Vec<Partition> = core.view().topology.partitions().collect();
    let seen = match see(query, &partitions) {
        Ok(seen) => seen,
        Err(error) => {
            tracing::debug!(source = core.name, %error, "kafka: asking how far the group is");
            return;
        }
    };
    let reason = before.and_then(|before| seen.reason(&before, step, |one| mine.contains(one)));
    let Some(waiting) = reason else {
        core.share().before = Some(seen);
        return;
    };
    let busy = format!("{busy:.2}");
    match step {
        Step::Join => match core.join(most) {
            Ok(true) => {
                tracing::info!(source = core.name, busy, members = facts.members + 1, %waiting, "kafka: lanes of other daemons wait, and this one has time: it joins the group once more");
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(source = core.name, %error, "kafka: joining the group once more"),
        },
        Step::Leave => {
            if core.members.leave() {
                core.share().rest();
                tracing::info!(source = core.name, busy, members = facts.members - 1, %waiting, "kafka: this daemon is busy and falls behind: a member of it leaves the group");
            }
        }
    }
}

/// Asks where the partitions end, all at once, and how far the group is. What does not answer is left out.
fn see(query: &BaseConsumer<Context>, partitions: &[Partition]) -> Result<Seen, KafkaError> {
    let list = offsets::at_ends(partitions.iter().map(|one| (&*one.topic, one.number)))?;
    Ok(Seen {
        done: by_partition(offsets::known(&query.committed_offsets(list.clone(), ANSWER)?)),
        ends: by_partition(offsets::ends(query, list, ANSWER)?),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn free_hands_join_and_busy_ones_leave() {
        let facts = Facts { busy: 0.2, members: 1, most: 3, partitions: 4, rests: false };
        assert_eq!(facts.step(), Some(Step::Join));
        assert_eq!(Facts { rests: true, ..facts }.step(), None, "it gave one up a moment ago");
        assert_eq!(Facts { members: 3, ..facts }.step(), None, "no more than it may have");
        assert_eq!(Facts { members: 2, partitions: 1, ..facts }.step(), None, "there is nothing left to get");
        assert_eq!(Facts { busy: 0.7, members: 2, ..facts }.step(), None);
        assert_eq!(Facts { busy: 0.95, members: 2, ..facts }.step(), Some(Step::Leave));
        assert_eq!(Facts { busy: 0.95, members: 1, ..facts }.step(), None, "the last one stays");
    }

    /// Of partition 0 and 1: (end, done).
    fn seen(of: [(u64, u64); 2]) -> Seen {
        let (mut ends, mut done) = (Offsets::new(), Offsets::new());
        for (number, (end, at)) in (0..).zip(of) {
            ends.insert(Partition::new("t", number), end);
            done.insert(Partition::new("t", number), at);
        }
        Seen { ends, done }
    }

    #[test]
    fn lanes_of_others_are_taken_where_they_wait_and_given_up_where_they_become_too_much() {
        let before = seen([(100, 90), (100, 20)]);
        let reason = |now: [(u64, u64); 2], step, mine: i32| seen(now).reason(&before, step, |one| one.number == mine);
        let (zero, one) = (Some(Partition::new("t", 0)), Some(Partition::new("t", 1)));
        assert_eq!(reason([(120, 110), (120, 30)], Step::Join, 0), one, "30 of 100");
        assert_eq!(reason([(120, 110), (120, 100)], Step::Join, 0), None, "what was there is done");
        assert_eq!(reason([(120, 95), (120, 30)], Step::Join, 0), None, "its own waits too");
        assert_eq!(reason([(120, 95), (120, 120)], Step::Leave, 0), zero, "10 behind, then 25");
        assert_eq!(reason([(120, 110), (120, 90)], Step::Leave, 1), None, "a backlog that gets smaller");
        assert_eq!(reason([(200, 99), (120, 120)], Step::Leave, 1), None, "another one's");
    }

    #[test]
    fn a_look_is_made_once_enough_time_has_passed_and_weighs_by_time() {
        let mut share = Share::new(Duration::from_secs(1));
        let long_ago = || Instant::now().checked_sub(Duration::from_secs(5)).unwrap();
        share.worked(Duration::from_secs(18), Duration::from_secs(18));
        assert_eq!(share.due(), None);
        share.looked = long_ago();
        share.worked(Duration::ZERO, Duration::from_secs(1));
        share.worked(Duration::ZERO, Duration::from_secs(1));
        assert!(share.due().is_some_and(|busy| (busy - 0.9).abs() < 1e-9));
        assert_eq!(share.due(), None);
        share.looked = long_ago();
        assert_eq!(share.due(), None, "nothing was heard of the job");
    }

    #[test]
    fn who_gave_up_rests_longer_each_time() {
        let mut share = Share::new(Duration::ZERO);
        assert!(!share.rests());
        (0..20).for_each(|_| share.rest());
        assert!(share.rests());
        assert_eq!(share.rest, LONGEST_REST);
    }
}
