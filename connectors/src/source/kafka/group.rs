//! What the members of the group that live in this process have together, and what the batch loop hears of them.
//!
//! A daemon has several members where it has more free hands than others ([`super::share`]): partitions may move between
//! two of them. They are told of at different times: one that was out of the group may hear of it after another one was
//! given its partitions. So moves stand in one queue, a partition is this daemon's as long as any member has it, and what is
//! overtaken is not told.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{TopicPartitionList, error::KafkaResult};
use tokio::sync::Notify;

use super::{offsets::Offsets, topics::Partition};

/// The batch loop shows that it lives at least this often. A daemon whose loop does not leaves the group.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);

/// A member of this process.
pub(super) type Id = u32;

/// How partitions move.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Move {
    Assigned(Vec<Partition>),
    Revoked(Vec<Partition>, Duration),
    Lost(Vec<Partition>),
}

/// Whose partitions are, as far as the members know.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Book {
    moves: VecDeque<Move>,
    /// The members that have each partition; several, where one has not heard yet that it lost it.
    owners: BTreeMap<Partition, BTreeSet<Id>>,
    /// Revoked, and still worked on.
    leaving: BTreeMap<Partition, Id>,
}

impl Book {
    fn came(&mut self, id: Id, partitions: Vec<Partition>) {
        for one in &partitions {
            self.owners.entry(one.clone()).or_default().insert(id);
        }
        self.moves.push_back(Move::Assigned(partitions));
    }

    /// Gives the partitions that are this member's indeed; they are taken from it.
    fn taken(&mut self, id: Id, mut partitions: Vec<Partition>) -> Vec<Partition> {
        partitions.retain(|one| self.owners.get_mut(one).is_some_and(|owners| owners.remove(&id)));
        self.owners.retain(|_, owners| !owners.is_empty());
        partitions
    }

    fn revoked(&mut self, id: Id, partitions: Vec<Partition>, limit: Duration) -> Vec<Partition> {
        let partitions = self.taken(id, partitions);
        self.leaving.extend(partitions.iter().map(|one| (one.clone(), id)));
        self.moves.push_back(Move::Revoked(partitions.clone(), limit));
        partitions
    }

    fn lost(&mut self, id: Id, partitions: Vec<Partition>) {
        let partitions = self.taken(id, partitions);
        self.moves.push_back(Move::Lost(partitions));
    }

    /// What a member has, or still works on.
    fn of(&self, id: Id) -> Vec<Partition> {
        let owned = self.owners.iter().filter(|(_, owners)| owners.contains(&id)).map(|(one, _)| one);
        owned.chain(self.leaving.iter().filter(|(_, owner)| **owner == id).map(|(one, _)| one)).cloned().collect()
    }

    /// What the batch loop does not know yet.
    fn next(&mut self) -> Option<Move> {
        while let Some(mut next) = self.moves.pop_front() {
            let partitions = match &mut next {
                // Gone again, or back already: what follows in the queue tells what became of it.
                Move::Assigned(partitions) => {
                    partitions.retain(|one| self.owners.contains_key(one));
                    partitions
                }
                Move::Lost(partitions) => {
                    partitions.retain(|one| !self.owners.contains_key(one));
                    partitions
                }
                Move::Revoked(partitions, _) => partitions,
            };
            if !partitions.is_empty() {
                return Some(next);
            }
        }
        None
    }

    fn given_up(&mut self, id: Id, partitions: &[Partition]) {
        self.leaving.retain(|one, owner| *owner != id || !partitions.contains(one));
    }

    fn is_leaving(&self, id: Id, partition: &Partition) -> bool {
        self.leaving.get(partition) == Some(&id)
    }
}

/// What the members' threads and the batch loop share.
#[derive(Default)]
pub(super) struct Group {
    state: Mutex<State>,
    /// Lanes were let go, or members end.
    changed: Condvar,
    ending: AtomicBool,
}

#[derive(Default)]
struct State {
    book: Book,
    offsets: Offsets,
    /// Topics that were found so far. One that is gone stays: it may be made again, and has no partitions meanwhile. `None`:
    /// not looked for yet.
    topics: Option<BTreeSet<Arc<str>>>,
    /// When the batch loop was heard of.
    alive: Option<Instant>,
    fault: Option<String>,
    /// What keeps a member out of the group, and may pass.
    trouble: Option<String>,
}

impl Group {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn next_move(&self) -> Option<Move> {
        self.state().book.next()
    }
    /// The group's partitions of this process.
    pub fn mine(&self) -> BTreeSet<Partition> {
        self.state().book.owners.keys().cloned().collect()
    }
    /// Whether its members may join.
    pub fn has_begun(&self) -> bool {
        self.state().topics.is_some()
    }
    /// Members join, and read these topics too. Whether they read any.
    pub fn begins<'t>(&self, found: impl IntoIterator<Item = &'t Arc<str>>) -> bool {
        let mut state = self.state();
        let topics = state.topics.get_or_insert_default();
        topics.extend(found.into_iter().cloned());
        !topics.is_empty()
    }
    /// All topics, where there are more than so many.
    pub fn topics_beyond(&self, subscribed: usize) -> Option<Vec<Arc<str>>> {
        let state = self.state();
        let topics = state.topics.as_ref().filter(|topics| topics.len() > subscribed)?;
        Some(topics.iter().cloned().collect())
    }
    /// Whether a member has nothing, nor works on anything.
    pub fn is_idle(&self, id: Id) -> bool {
        self.state().book.of(id).is_empty()
    }
    /// What keeps a member from working, where it cannot pass.
    pub fn fault(&self) -> Option<String> {
        self.state().fault.clone()
    }
    pub fn fails(&self, fault: String) {
        self.state().fault.get_or_insert(fault);
    }
    /// What keeps a member out of the group, since it was last asked for.
    pub fn take_trouble(&self) -> Option<String> {
        self.state().trouble.take()
    }
    pub fn is_kept_out(&self, trouble: &str) {
        self.state().trouble.get_or_insert_with(|| trouble.to_owned());
    }
    /// The batch loop lives.
    pub fn alive(&self) {
        self.state().alive = Some(Instant::now());
    }
    /// A loop that hangs has to lose its lanes, which it does once its members are silent for `max.poll.interval.ms`.
    pub fn is_stuck(&self) -> bool {
        self.state().alive.is_some_and(|at| at.elapsed() > LONGEST_SILENCE)
    }
    pub fn let_go(&self, partition: &Partition) {
        self.state().book.leaving.remove(partition);
        self.changed.notify_all();
    }
    /// Notes how far a partition is done.
    pub fn done(&self, partition: &Partition, offset: u64) {
        let mut state = self.state();
        if state.book.owners.contains_key(partition) || state.book.leaving.contains_key(partition) {
            state.offsets.done(partition.clone(), offset);
        }
    }
    /// Offsets of a member's partitions that the group does not have yet.
    pub fn take_offsets(&self, id: Id) -> BTreeMap<Partition, u64> {
        let State { book, offsets, .. } = &mut *self.state();
        offsets.take(Instant::now(), |one| book.owners.get(one).is_some_and(|owners| owners.contains(&id)))
    }
    /// The group has answered a commit.
    pub fn answered(&self, result: &KafkaResult<()>, list: &TopicPartitionList) {
        self.state().offsets.answered(result, list);
    }

    pub fn came(&self, id: Id, partitions: Vec<Partition>) {
        let State { book, offsets, .. } = &mut *self.state();
        // What is left of an earlier turn is behind what others have done since.
        drop(offsets.rest(|one| !book.owners.contains_key(one) && partitions.contains(one)));
        book.came(id, partitions);
    }

    pub fn lost(&self, id: Id, partitions: Vec<Partition>) {
        self.state().book.lost(id, partitions);
    }

    /// A member is no more, however it ended: what it had is not this daemon's.
    pub fn ended(&self, id: Id) {
        let mut state = self.state();
        let partitions = state.book.of(id);
        state.book.given_up(id, &partitions);
        state.book.lost(id, partitions);
    }

    /// Waits until the lanes are let go. How far they are done, as the group does not know yet.
    pub fn goes(&self, id: Id, partitions: Vec<Partition>, limit: Duration, wake: &Notify) -> BTreeMap<Partition, u64> {
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        if self.ending.load(Ordering::Acquire) {
            let partitions = state.book.taken(id, partitions);
            return state.offsets.rest(|one| partitions.contains(one));
        }
        let partitions = state.book.revoked(id, partitions, limit);
        wake.notify_one();
        while !self.ending.load(Ordering::Acquire) && partitions.iter().any(|one| state.book.is_leaving(id, one)) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(
                    "kafka: revoked partitions are given up while a batch of theirs is open; their next owner fences it"
                );
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.book.given_up(id, &partitions);
        state.offsets.rest(|one| partitions.contains(one))
    }

    /// Nothing is waited for any more.
    pub fn end(&self) {
        self.ending.store(true, Ordering::Release);
        self.changed.notify_all();
    }
    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What differs between the design and weaker ones.
    #[derive(Clone, Copy)]
    struct Design {
        next: fn(&mut Book) -> Option<Move>,
        lost: fn(&mut Book, Id, Vec<Partition>),
    }

    const OURS: Design = Design { next: Book::next, lost: Book::lost };

    /// Two members of this daemon, one partition, other daemons, and the batch loop.
    #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
    struct World {
        book: Book,
        /// To whom the group gave the partition; to nobody here means to nobody, or to another daemon.
        truth: Option<Id>,
        /// Members that were given the partition, and have not heard of it.
        untold: BTreeSet<Id>,
        /// Members that are out of the group with the partition, and have not heard of that.
        stale: BTreeSet<Id>,
        /// Members whose call of the group waits until the lane is let go.
        waiting: BTreeSet<Id>,
        /// The batch loop works on the partition.
        works: bool,
    }

    fn partition() -> Partition {
        Partition::new("topic", 0)
    }

    impl World {
        /// The batch loop hears of one move.
        fn hear(&mut self, design: Design) -> bool {
            match (design.next)(&mut self.book) {
                Some(Move::Assigned(_)) => self.works = true,
                Some(Move::Revoked(..)) => {
                    self.works = false;
                    self.book.leaving.remove(&partition());
                }
                Some(Move::Lost(_)) => self.works = false,
                None => return false,
            }
            true
        }

        /// Every next state.
        fn steps(&self, design: Design) -> Vec<Self> {
            let mut next = Vec::new();
            let mut add = |change: &dyn Fn(&mut Self)| {
                let mut world = self.clone();
                change(&mut world);
                next.push(world);
            };
            for id in [1, 2] {
                let (is_untold, is_busy) =
                    (self.untold.contains(&id), self.stale.contains(&id) || self.waiting.contains(&id));
                if self.truth.is_none() && !is_busy && !is_untold {
                    add(&|world| {
                        world.truth = Some(id);
                        world.untold.insert(id);
                    });
                }
                if is_untold {
                    add(&|world| {
                        world.untold.remove(&id);
                        world.book.came(id, vec![partition()]);
                    });
                }
                if self.truth == Some(id) && !is_busy {
                    add(&|world| {
                        world.truth = None;
                        world.stale.insert(id);
                    });
                }
                if self.truth == Some(id) && !is_busy && !is_untold {
                    add(&|world| {
                        world.waiting.insert(id);
                        world.book.revoked(id, vec![partition()], Duration::ZERO);
                    });
                }
                // Let go, or the limit has passed.
                if self.waiting.contains(&id) {
                    add(&|world| {
                        world.book.given_up(id, &[partition()]);
                        world.waiting.remove(&id);
                        world.truth = None;
                    });
                }
                if self.stale.contains(&id) && !is_untold {
                    add(&|world| {
                        world.stale.remove(&id);
                        (design.lost)(&mut world.book, id, vec![partition()]);
                    });
                }
            }
            add(&|world| {
                world.hear(design);
            });
            next
        }

        /// What is wrong once the batch loop has heard of everything.
        fn fault(&self, design: Design) -> Option<&'static str> {
            let mut world = self.clone();
            while world.hear(design) {}
            let is_told = world.untold.is_empty() && world.waiting.is_empty();
            match (world.truth.is_some(), world.works) {
                (true, false) if is_told => Some("a partition that was given to this daemon is worked on by nobody"),
                (false, true) if is_told && world.stale.is_empty() => {
                    Some("a partition that is not this daemon's is worked on")
                }
                _ => None,
            }
        }
    }

    /// Every state that few moves at a time lead to: how many there are, and the first fault.
    fn explore(design: Design) -> (usize, Option<&'static str>) {
        let (mut seen, mut open) = (BTreeSet::from([World::default()]), vec![World::default()]);
        while let Some(world) = open.pop() {
            if let Some(fault) = world.fault(design) {
                return (seen.len(), Some(fault));
            }
            for next in world.steps(design) {
                if next.book.moves.len() <= 6 && seen.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        (seen.len(), None)
    }

    #[test]
    fn every_partition_that_the_group_gives_is_worked_on_in_every_order_of_moves() {
        let (states, fault) = explore(OURS);
        assert_eq!(fault, None);
        assert!(states > 1_000, "{states} states");
    }

    #[test]
    fn weaker_designs_fail() {
        let as_it_stands = Design { next: |book| book.moves.pop_front(), ..OURS };
        assert!(explore(as_it_stands).1.is_some(), "a loss is told although another member has the partition");
        let whoever = |book: &mut Book, _: Id, partitions: Vec<Partition>| {
            book.owners.retain(|one, _| !partitions.contains(one));
            book.moves.push_back(Move::Lost(partitions));
        };
        assert!(explore(Design { lost: whoever, ..OURS }).1.is_some(), "a loss takes what another member has");
    }

    #[test]
    fn offsets_are_committed_by_the_member_that_has_the_partition() {
        let group = Group::default();
        group.came(1, vec![partition()]);
        group.done(&partition(), 7);
        group.done(&Partition::new("topic", 1), 9);
        assert!(group.take_offsets(2).is_empty());
        assert_eq!(group.take_offsets(1), BTreeMap::from([(partition(), 7)]));
        assert!(group.take_offsets(1).is_empty(), "once");
    }

    #[test]
    fn what_was_done_of_a_revoked_partition_is_committed_as_it_goes_and_never_later() {
        let group = Group::default();
        group.came(1, vec![partition()]);
        group.done(&partition(), 7);
        let left = group.goes(1, vec![partition()], Duration::ZERO, &Notify::new());
        assert_eq!(left, BTreeMap::from([(partition(), 7)]));
        group.came(1, vec![partition()]);
        group.done(&partition(), 9);
        group.lost(1, vec![partition()]);
        group.came(2, vec![partition()]);
        assert!(group.take_offsets(2).is_empty(), "others may have done more since");
    }

    #[test]
    fn a_member_that_has_ended_has_nothing() {
        let group = Group::default();
        group.came(1, vec![partition()]);
        assert!(matches!(group.next_move(), Some(Move::Assigned(_))));
        group.ended(1);
        assert!(group.is_idle(1) && group.mine().is_empty());
        assert_eq!(group.next_move(), Some(Move::Lost(vec![partition()])));
    }
}
