//! The byte budget of all jobs (`memory:` in the daemon's file). Each batch holds a lease on it from before it is read
//! until it is closed or dropped, so that what is read ahead while a sink is down has a bound.
//!
//! A batch is leased by its records' bytes times [`EXPANSION`]: they are held as they came, as columns, and as what sinks
//! made of them. That is a guess, and no more than a beginning: what a batch really takes is measured while it is computed,
//! on its [`Account`]. Its lease grows with it, up to the part of the budget that one batch may have, and where that is
//! not enough, or not free, the batch is made smaller ([`super::job`]'s `cut`).

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use tidemill_steps::account::Account;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

/// Bytes in memory for one byte of records, measured with the job of `make bench`.
const EXPANSION: u64 = 4;
/// A lease grows by so many bytes at least, where they are free: rows are measured slice by slice.
const GROWTH_BYTES: u64 = 1 << 20;
/// What one permit stands for, bytes.
const UNIT: u64 = 4096;
/// Batches of one job that must fit: one is read and computed while the one before it commits.
const BATCHES: u64 = 2;
/// For so long a batch that waits may keep others waiting, at first and at most.
const FIRST_TURN: Duration = Duration::from_secs(1);
const LONGEST_TURN: Duration = Duration::from_secs(60);
/// How often one that lets others go past it looks whether it fits.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The budget, shared by all jobs.
#[derive(Clone, Debug)]
pub struct Memory {
    permits: Arc<Semaphore>,
    /// What sources may have of it.
    ahead: Arc<Semaphore>,
    /// What tables of lookups may have of it.
    tables: Arc<Semaphore>,
    /// Tables whose part batches have, until one of them ends.
    owed: Arc<Mutex<Vec<Owed>>>,
    total: u64,
}

/// A source's part of the budget, given back when it is dropped.
#[derive(Debug)]
pub struct Reserve {
    _of: [OwnedSemaphorePermit; 2],
}

/// A table's part of the budget, given back when it is dropped.
#[derive(Debug)]
pub struct Held(Arc<Mutex<Part>>);

#[derive(Debug)]
struct Part {
    of_tables: OwnedSemaphorePermit,
    /// As many, but for those that batches had when it was taken, which are owed.
    of_all: OwnedSemaphorePermit,
    /// So many of these were put by while others are still owed.
    saved: usize,
}

impl Part {
    /// Takes what is owed to it, where these permits and those that are free are enough. Says whether nothing is owed now. Who
    /// `saves` takes what there is.
    fn settle(&mut self, back: &mut OwnedSemaphorePermit, saves: bool) -> bool {
        let owed = self.of_tables.num_permits().saturating_sub(self.of_all.num_permits());
        let of_back = owed.min(back.num_permits());
        let rest = take(self.of_all.semaphore(), owed - of_back);
        let is_settled = rest.is_some();
        if is_settled || saves {
            back.split(of_back).into_iter().chain(rest).for_each(|part| self.of_all.merge(part));
            self.saved = if is_settled { 0 } else { self.saved + of_back };
        }
        is_settled
    }

    /// Gives back what it has put by.
    fn let_go(&mut self) {
        drop(self.of_all.split(self.saved));
        self.saved = 0;
    }
}

/// A table that lacks its part. For a turn it takes it only where that is there as a whole, for another one it saves: where many
/// small batches have everything, what one of them gives back is never enough. Like a batch that waits, it does not save for
/// good: what it lacks may be a batch's whose sink is down.
#[derive(Debug)]
struct Owed {
    part: Weak<Mutex<Part>>,
    since: Instant,
    turn: Duration,
    saves: bool,
}

impl Owed {
    fn new(part: Weak<Mutex<Part>>) -> Self {
        Self { part, since: Instant::now(), turn: FIRST_TURN, saves: false }
    }

    /// Begins its next turn where this one is over.
    fn look(&mut self, part: &mut Part) {
        if self.since.elapsed() >= self.turn {
            (self.since, self.saves) = (Instant::now(), !self.saves);
            if !self.saves {
                self.turn = LONGEST_TURN.min(self.turn * 2);
                part.let_go();
            }
        }
    }
}

/// A batch's part of the budget, given back when it is dropped.
#[derive(Debug)]
pub struct Lease {
    part: OwnedSemaphorePermit,
    memory: Memory,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.give_back(self.part.num_permits());
    }
}

/// A lease with the account of what its batch takes.
#[derive(Debug)]
pub struct Leased {
    lease: Arc<Mutex<Lease>>,
    most: u64,
}

impl Leased {
    /// An account of a batch that begins. It grows as far as a batch may, and the budget has something free.
    pub fn account(&self) -> Arc<Account> {
        let (lease, most) = (Arc::clone(&self.lease), self.most);
        Account::growing(locked(&self.lease).bytes(), move |more| locked(&lease).grow(more, most))
    }

    /// The bytes that its batch may have at most.
    pub fn most(&self) -> u64 {
        self.most
    }

    /// Whether a batch that needs so many bytes would not fit into any lease: with everything else at rest, too.
    pub fn is_hopeless(&self, bytes: u64) -> bool {
        bytes > self.most
    }

    /// Gives back what is beyond so many bytes of records, as they are guessed.
    pub fn shrink_to_records(&self, bytes: usize) {
        locked(&self.lease).shrink_to(bytes);
    }

    /// Gives back what a batch does not take.
    pub fn shrink_to(&self, bytes: u64) {
        locked(&self.lease).keep(bytes);
    }
}

impl Memory {
    /// A budget of so many bytes.
    pub fn new(bytes: u64) -> Self {
        let total = (bytes / UNIT).clamp(BATCHES * EXPANSION, u64::from(u32::MAX >> 1));
        let of = |permits: u64| Arc::new(Semaphore::new(usize::try_from(permits).unwrap_or(Semaphore::MAX_PERMITS)));
        Self { permits: of(total), ahead: of(total / 4), tables: of(total / 4), owed: Arc::default(), total }
    }

    /// The bytes of records that one batch may have, of those that a job would like.
    pub fn cap(&self, wanted: usize) -> usize {
        let most = self.total / (BATCHES * EXPANSION) * UNIT;
        wanted.min(usize::try_from(most).unwrap_or(usize::MAX))
    }

    /// The bytes that one batch may take, all told.
    pub fn most(&self) -> u64 {
        self.total / BATCHES * UNIT
    }

    /// The longest record that a source may be asked to take: it is held as it came, as a row, and as what sinks made of it,
    /// in the part of one batch.
    pub fn longest_record(bytes: u64) -> u64 {
        bytes / (BATCHES * EXPANSION)
    }

    /// What a source may keep in memory beside the batches, of the bytes that it would like: it is taken off the budget for
    /// as long as the second is kept. All sources together never have more than a quarter, so that a batch fits beside.
    pub fn reserve(&self, wanted: usize) -> (usize, Option<Reserve>) {
        /// Less is of no use: it is given without being counted.
        const LEAST_BYTES: usize = 64 * 1024;
        let mut bytes = self.cap(wanted);
        while bytes > LEAST_BYTES {
            let count = bytes.div_ceil(UNIT as usize);
            let of = |permits: &Arc<Semaphore>| take(permits, count);
            if let Some(part) = of(&self.ahead).and_then(|part| Some(Reserve { _of: [part, of(&self.permits)?] })) {
                return (bytes, Some(part));
            }
            bytes /= 2;
        }
        (wanted.min(LEAST_BYTES), None)
    }

    /// Takes a table that is in memory off the budget, and says how many of its bytes: all tables together never have more
    /// than a quarter, so that beside them and what sources keep a batch still fits. A table is there already, so nobody
    /// waits: where batches have everything now, its part is taken when one ends, as soon as that and what is free are
    /// enough for all of it, or in turns by and by.
    pub fn hold(&self, bytes: u64) -> (u64, Held) {
        let none = |of| take(of, 0).expect("the budget is never closed");
        let part = Part { of_tables: none(&self.tables), of_all: none(&self.permits), saved: 0 };
        let held = Held(Arc::new(Mutex::new(part)));
        (self.resize(&held, bytes), held)
    }

    /// The same for a table that comes in the place of the one that `held` was for.
    pub fn resize(&self, held: &Held, bytes: u64) -> u64 {
        let wanted = usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(usize::MAX);
        let mut owed = locked(&self.owed);
        let mut part = locked(&held.0);
        part.let_go();
        let Part { of_tables, of_all, .. } = &mut *part;
        for of in [&mut *of_tables, of_all] {
            drop(of.split(of.num_permits().saturating_sub(wanted)));
        }
        // Only this takes of it, and under the lock.
        let more = wanted.saturating_sub(of_tables.num_permits()).min(self.tables.available_permits());
        take(&self.tables, more).into_iter().for_each(|more| of_tables.merge(more));
        let counted = of_tables.num_permits() as u64 * UNIT;
        let is_settled = take(&self.permits, 0).is_some_and(|mut nothing| part.settle(&mut nothing, false));
        let this = Arc::downgrade(&held.0);
        if !is_settled && !owed.iter().any(|owed| owed.part.ptr_eq(&this)) {
            owed.push(Owed::new(this));
        }
        bytes.min(counted)
    }

    /// Waits until a batch of so many bytes of records (see [`Memory::cap`]) fits.
    ///
    /// Who waits has a turn: what is given back is kept for those that wait, in the order in which they came, so that many
    /// small batches do not keep a large one waiting. But what it lacks may not come for hours, as long as a sink of another
    /// job is down. So after its turn it lets all others go past it for as long, and then has a longer turn: one that
    /// fits waits for a turn at most, and a large one gets its part when batches end within one.
    pub async fn lease(&self, bytes: usize) -> Lease {
        let count = permits(self.cap(bytes));
        let mut turn = FIRST_TURN;
        loop {
            if let Ok(part) = timeout(turn, self.permits.clone().acquire_many_owned(count)).await {
                return Lease { part: part.expect("the budget is never closed"), memory: self.clone() };
            }
            let until = Instant::now() + turn;
            while Instant::now() < until {
                self.look_at_tables();
                if let Some(lease) = self.try_lease(bytes) {
                    return lease;
                }
                sleep(LOOK_EVERY).await;
            }
            turn = LONGEST_TURN.min(turn * 2);
        }
    }

    /// A table whose turn is over gives back what it has saved: nobody else may, while all others wait.
    fn look_at_tables(&self) {
        for owed in &mut *locked(&self.owed) {
            if let Some(part) = owed.part.upgrade() {
                owed.look(&mut locked(&part));
            }
        }
    }

    /// The same, where it fits now.
    pub fn try_lease(&self, bytes: usize) -> Option<Lease> {
        let part = take(&self.permits, permits(self.cap(bytes)) as usize)?;
        Some(Lease { part, memory: self.clone() })
    }
}

impl Lease {
    /// Opens it for a batch.
    pub fn open(self) -> Leased {
        let most = self.memory.most();
        Leased { lease: Arc::new(Mutex::new(self)), most }
    }

    /// Opens it for a batch that is replayed, and must be done as it is: it may have the whole budget.
    pub fn open_for_replay(self) -> Leased {
        let most = self.memory.total * UNIT;
        Leased { lease: Arc::new(Mutex::new(self)), most }
    }

    fn bytes(&self) -> u64 {
        self.part.num_permits() as u64 * UNIT
    }

    /// Gives back what is beyond so many bytes.
    fn keep(&mut self, bytes: u64) {
        let kept = usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(usize::MAX);
        self.give_back(self.part.num_permits().saturating_sub(kept));
    }

    /// Takes so many bytes more, where one batch may have them and they are free. How many it got.
    fn grow(&mut self, bytes: u64, most: u64) -> u64 {
        let left = most.saturating_sub(self.bytes());
        for wanted in [bytes.max(GROWTH_BYTES).min(left), bytes] {
            let count = usize::try_from(wanted.div_ceil(UNIT)).unwrap_or(usize::MAX);
            if bytes <= left
                && let Some(more) = take(&self.memory.permits, count)
            {
                self.part.merge(more);
                return count as u64 * UNIT;
            }
        }
        0
    }

    /// Gives back what is beyond so many bytes of records, as they are guessed.
    pub fn shrink_to(&mut self, bytes: usize) {
        self.give_back(self.part.num_permits().saturating_sub(permits(bytes) as usize));
    }

    /// Tables that lack their part have it first.
    fn give_back(&mut self, count: usize) {
        let Some(mut back) = self.part.split(count) else { return };
        let mut owed = locked(&self.memory.owed);
        owed.retain_mut(|owed| {
            let Some(part) = owed.part.upgrade() else { return false };
            let mut part = locked(&part);
            owed.look(&mut part);
            !part.settle(&mut back, owed.saves)
        });
        // Under the lock: a table that finds nothing free is owed before the next batch ends.
        drop(back);
    }
}

/// So many permits, where they are free.
fn take(of: &Arc<Semaphore>, count: usize) -> Option<OwnedSemaphorePermit> {
    of.clone().try_acquire_many_owned(u32::try_from(count).ok()?).ok()
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn permits(bytes: usize) -> u32 {
    u32::try_from((bytes as u64).saturating_mul(EXPANSION).div_ceil(UNIT)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the budget that nobody has.
    fn free(memory: &Memory) -> u64 {
        memory.permits.available_permits() as u64 * UNIT
    }

    #[tokio::test]
    async fn a_batch_waits_for_what_others_hold_and_gets_what_they_give_back() {
        let memory = Memory::new(16 << 20);
        assert_eq!((memory.cap(64 << 20), memory.cap(1000)), (2 << 20, 1000));
        let mut first = memory.lease(64 << 20).await;
        let second = memory.try_lease(64 << 20).expect("two batches fit");
        assert!(memory.try_lease(1).is_none(), "all is given out");
        first.shrink_to(1 << 20);
        let third = memory.try_lease(1 << 20).expect("the first has read less than it might");
        let waiting = tokio::spawn({
            let memory = memory.clone();
            async move { memory.lease(2 << 20).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop((second, third));
        waiting.await.expect("it gets its part");
    }

    #[tokio::test]
    async fn tables_are_of_the_budget_while_they_are_held_and_never_keep_batches_from_running() {
        let memory = Memory::new(16 << 20);
        let batches = [memory.lease(64 << 20).await, memory.lease(64 << 20).await];
        let (counted, small) = memory.hold(1 << 20);
        assert_eq!(counted, 1 << 20, "it waits for nobody");
        let (counted, large) = memory.hold(64 << 20);
        assert_eq!(counted, 3 << 20, "a quarter is the limit of all");
        assert_eq!(memory.hold(1).0, 0);
        let sources: Vec<_> = std::iter::repeat_with(|| memory.reserve(1 << 20)).take(20).collect();
        drop(batches);
        let batch = memory.lease(64 << 20).await;
        assert!(memory.try_lease(64 << 20).is_none(), "what tables take is counted");
        drop((small, large, batch, sources));
        let all = [memory.lease(64 << 20).await, memory.lease(64 << 20).await];
        assert!(memory.try_lease(1).is_none());
        // One that goes before its part was free takes none.
        drop(memory.hold(1 << 20));
        drop(all);
        let _all = [memory.lease(64 << 20).await, memory.lease(64 << 20).await];
        assert_eq!(memory.hold(1 << 20).0, 1 << 20);
    }

    #[test]
    fn a_table_that_comes_in_the_place_of_another_has_its_part_and_no_second_one() {
        let memory = Memory::new(16 << 20);
        let (counted, held) = memory.hold(3 << 20);
        assert_eq!(counted, 3 << 20);
        let part = |bytes: u64| assert_eq!(memory.total - memory.permits.available_permits() as u64, bytes / UNIT);
        for bytes in [3 << 20, 4 << 20, 1 << 20, 2 << 20] {
            assert_eq!(memory.resize(&held, bytes), bytes);
            part(bytes);
        }
        assert_eq!(memory.resize(&held, 5 << 20), 4 << 20, "a quarter is the limit of all");
        // What grows while batches have everything gets the rest when one ends.
        memory.resize(&held, 1 << 20);
        let rest = [memory.try_lease(64 << 20), memory.try_lease(7 << 18)];
        part(16 << 20);
        assert_eq!(memory.resize(&held, 3 << 20), 3 << 20);
        drop(rest);
        part(3 << 20);
        drop(held);
        part(0);
    }

    #[test]
    fn a_table_that_waits_for_its_part_keeps_no_batch_from_running() {
        let memory = Memory::new(16 << 20);
        // Of a job whose sink is down.
        let stuck = [memory.try_lease(64 << 20), memory.try_lease(3 << 19)];
        let (_, table) = memory.hold(4 << 20);
        for _ in 0..10 {
            let batches = [memory.try_lease(1 << 18), memory.try_lease(1 << 18)];
            assert!(batches.iter().all(Option::is_some), "others go on");
        }
        drop(stuck);
        assert_eq!(free(&memory), 12 << 20, "it is counted as soon as that is possible");
        drop(table);
        assert_eq!(free(&memory), 16 << 20);
    }

    /// Leases and drops batches of another job, one after the other.
    async fn small_ones(memory: Memory, count: usize) {
        for _ in 0..count {
            let lease = memory.lease(1 << 19).await;
            sleep(Duration::from_millis(2)).await;
            drop(lease);
        }
    }

    #[tokio::test]
    async fn a_large_batch_that_waits_for_a_sink_that_is_down_lets_small_ones_pass() {
        let memory = Memory::new(16 << 20);
        let stuck = [memory.try_lease(64 << 20), memory.try_lease(1 << 20)];
        let large = memory.clone();
        let large = tokio::spawn(async move { large.lease(64 << 20).await });
        sleep(Duration::from_millis(1)).await;
        assert!(memory.try_lease(1).is_none(), "it has its turn");
        timeout(10 * FIRST_TURN, small_ones(memory.clone(), 20)).await.expect("others go on");
        assert!(!large.is_finished());
        drop(stuck);
        large.await.expect("it gets its part");
    }

    #[tokio::test]
    async fn a_large_batch_is_not_kept_waiting_by_small_ones() {
        let memory = Memory::new(16 << 20);
        let _other = memory.try_lease(64 << 20).expect("half of it");
        let mut small: Vec<_> = (0..6).map(|_| tokio::spawn(small_ones(memory.clone(), usize::MAX))).collect();
        sleep(Duration::from_millis(20)).await;
        assert!(memory.try_lease(64 << 20).is_none(), "there is never room for it by chance");
        timeout(FIRST_TURN * 10, memory.lease(64 << 20)).await.expect("it has a turn");
        small.drain(..).for_each(|task| task.abort());
    }

    #[tokio::test]
    async fn a_table_has_its_part_where_small_batches_have_everything() {
        let memory = Memory::new(16 << 20);
        // One more than there is room for, so that nothing is ever free.
        let small: Vec<_> = (0..9).map(|_| tokio::spawn(small_ones(memory.clone(), usize::MAX))).collect();
        sleep(Duration::from_millis(20)).await;
        let (counted, table) = memory.hold(4 << 20);
        assert_eq!(counted, 4 << 20);
        let part = || locked(&table.0).of_all.num_permits() as u64 * UNIT;
        assert!(part() < 4 << 20, "all is given out");
        let has_it = async {
            while part() < 4 << 20 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(FIRST_TURN * 10, has_it).await.expect("it saves for it");
        small.iter().for_each(tokio::task::JoinHandle::abort);
        for task in small {
            drop(task.await);
        }
        assert_eq!(free(&memory), 12 << 20);
        drop(table);
        assert_eq!(free(&memory), 16 << 20);
    }

    #[tokio::test]
    async fn a_table_that_saves_in_vain_lets_others_go_on() {
        let memory = Memory::new(16 << 20);
        let stuck = [memory.try_lease(64 << 20), memory.try_lease(3 << 19)];
        let (_, table) = memory.hold(4 << 20);
        // Through the turns in which it saves, and everything is kept from them.
        let start = Instant::now();
        let mut longest = Duration::ZERO;
        let others = async {
            while start.elapsed() < 5 * FIRST_TURN {
                let asked = Instant::now();
                small_ones(memory.clone(), 1).await;
                longest = longest.max(asked.elapsed());
            }
        };
        timeout(FIRST_TURN * 60, others).await.expect("others go on");
        assert!(longest > FIRST_TURN / 2, "it has saved: {longest:?}");
        drop(stuck);
        assert_eq!(free(&memory), 12 << 20, "it is counted as soon as that is possible");
        drop(table);
        assert_eq!(free(&memory), 16 << 20);
    }

    #[test]
    fn a_lease_grows_with_its_batch_as_far_as_a_batch_may_and_is_given_back() {
        let memory = Memory::new(16 << 20);
        let leased = memory.try_lease(1 << 18).expect("there is room").open();
        let account = leased.account();
        account.take(1 << 20).expect("it has it");
        account.take(5 << 20).expect("it grows");
        assert!((8 << 20..=10 << 20).contains(&free(&memory)), "{}", free(&memory));
        let outgrown = account.take(3 << 20).expect_err("half of the budget is the most");
        assert!(outgrown.needed > memory.most() && leased.is_hopeless(outgrown.needed));
        // Others hold the rest: it is not the batch's fault.
        drop((account, leased));
        let _other = [memory.try_lease(64 << 20), memory.try_lease(3 << 19)];
        let leased = memory.try_lease(1 << 18).expect("there is room").open();
        let account = leased.account();
        let outgrown = account.take(3 << 20).expect_err("not so much is free");
        assert!(!leased.is_hopeless(outgrown.needed));
        leased.shrink_to(UNIT);
        drop(account);
        assert_eq!(free(&memory), (2 << 20) - UNIT);
    }

    #[test]
    fn what_sources_keep_is_of_the_budget_and_leaves_room_for_a_batch() {
        let memory = Memory::new(16 << 20);
        let kept: Vec<_> = std::iter::repeat_with(|| memory.reserve(1 << 20)).take(20).collect();
        let counted: usize = kept.iter().filter(|(_, part)| part.is_some()).map(|(bytes, _)| bytes).sum();
        assert!((3 << 20..=4 << 20).contains(&counted), "{counted}");
        assert!(kept.iter().all(|(bytes, _)| (1 << 16..=1 << 20).contains(bytes)));
        let batch = memory.try_lease(64 << 20).expect("a batch fits beside");
        assert!(memory.try_lease(64 << 20).is_none(), "what is kept is counted");
        drop((kept, batch));
        let all = [memory.try_lease(64 << 20), memory.try_lease(64 << 20)];
        assert!(all.iter().all(Option::is_some), "it is given back");
        assert_eq!(memory.reserve(0).0, 0);
    }
}
