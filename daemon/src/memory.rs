//! The byte budget of all jobs (`memory:` in the daemon's file). Each batch holds a lease on it from before it is read
//! until it is closed or dropped, so that what is read ahead while a sink is down has a bound.
//!
//! A batch is leased by its records' bytes times [`EXPANSION`]: they are held as they came, as columns, and as what sinks
//! made of them. One record may be larger than any cap; a batch is never cut below one.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes in memory for one byte of records, measured with the job of `make bench`.
const EXPANSION: u64 = 4;
/// What one permit stands for, bytes.
const UNIT: u64 = 4096;
/// Batches of one job that must fit: one is read and computed while the one before it commits.
const BATCHES: u64 = 2;

/// The budget, shared by all jobs.
#[derive(Clone, Debug)]
pub struct Memory {
    permits: Arc<Semaphore>,
    /// What sources may have of it.
    ahead: Arc<Semaphore>,
    total: u64,
}

/// A source's part of the budget, given back when it is dropped.
#[derive(Debug)]
pub struct Reserve {
    _of: [OwnedSemaphorePermit; 2],
}

/// A batch's part of the budget, given back when it is dropped.
#[derive(Debug)]
pub struct Lease(OwnedSemaphorePermit);

impl Memory {
    /// A budget of so many bytes.
    pub fn new(bytes: u64) -> Self {
        let total = (bytes / UNIT).clamp(BATCHES * EXPANSION, u64::from(u32::MAX >> 1));
        let of = |permits: u64| Arc::new(Semaphore::new(usize::try_from(permits).unwrap_or(Semaphore::MAX_PERMITS)));
        Self { permits: of(total), ahead: of(total / 4), total }
    }

    /// The bytes of records that one batch may have, of those that a job would like.
    pub fn cap(&self, wanted: usize) -> usize {
        let most = self.total / (BATCHES * EXPANSION) * UNIT;
        wanted.min(usize::try_from(most).unwrap_or(usize::MAX))
    }

    /// What a source may keep in memory beside the batches, of the bytes that it would like: it is taken off the budget for
    /// as long as the second is kept. All sources together never have more than a quarter, so that a batch fits beside.
    pub fn reserve(&self, wanted: usize) -> (usize, Option<Reserve>) {
        /// Less is of no use: it is given without being counted.
        const LEAST_BYTES: usize = 64 * 1024;
        let mut bytes = self.cap(wanted);
        while bytes > LEAST_BYTES {
            let count = u32::try_from((bytes as u64).div_ceil(UNIT)).unwrap_or(u32::MAX);
            let of = |permits: &Arc<Semaphore>| permits.clone().try_acquire_many_owned(count).ok();
            if let Some(part) = of(&self.ahead).and_then(|part| Some(Reserve { _of: [part, of(&self.permits)?] })) {
                return (bytes, Some(part));
            }
            bytes /= 2;
        }
        (wanted.min(LEAST_BYTES), None)
    }

    /// Waits until a batch of so many bytes of records (see [`Memory::cap`]) fits.
    pub async fn lease(&self, bytes: usize) -> Lease {
        let permits = self.permits.clone().acquire_many_owned(permits(self.cap(bytes))).await;
        Lease(permits.expect("the budget is never closed"))
    }

    /// The same, where it fits now.
    pub fn try_lease(&self, bytes: usize) -> Option<Lease> {
        self.permits.clone().try_acquire_many_owned(permits(self.cap(bytes))).ok().map(Lease)
    }
}

impl Lease {
    /// Gives back what is beyond so many bytes of records.
    pub fn shrink_to(&mut self, bytes: usize) {
        let beyond = self.0.num_permits().saturating_sub(permits(bytes) as usize);
        drop(self.0.split(beyond));
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from((bytes as u64).saturating_mul(EXPANSION).div_ceil(UNIT)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

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
