//! Which snapshots on disk are needed, and the removal of the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tidemill_checkpoint::{Digest, Lane};
use tidemill_connectors::lookup::store::Store;
use tidemill_steps::lookup::Snapshot;

/// Which snapshots on disk are needed.
pub(super) struct Shelf {
    pub(super) store: Store,
    /// Snapshots in memory: what holds one may yet make a plan that names it.
    alive: Mutex<Vec<(Digest, Weak<Snapshot>)>>,
    /// Those that plans name which are not closed, and the last closed ones, by lane and number.
    uses: Mutex<BTreeMap<Lane, BTreeMap<u64, BTreeSet<Digest>>>>,
    /// What was needed at the last look.
    held: Mutex<BTreeSet<Digest>>,
    /// Since when this process knows what is needed.
    since: Instant,
    /// Held while a snapshot is put there, and while others are removed: one that comes back is not removed meanwhile.
    pub(super) moving: tokio::sync::Mutex<()>,
    /// There may be something to remove.
    pub(super) replaced: AtomicBool,
}

impl Shelf {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            alive: Mutex::default(),
            uses: Mutex::default(),
            held: Mutex::default(),
            since: Instant::now(),
            moving: tokio::sync::Mutex::default(),
            // Of the process before.
            replaced: AtomicBool::new(true),
        }
    }

    pub(super) fn used(&self) -> MutexGuard<'_, BTreeMap<Lane, BTreeMap<u64, BTreeSet<Digest>>>> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, digest: Digest, snapshot: &Arc<Snapshot>) {
        let mut alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        alive.retain(|(_, snapshot)| snapshot.strong_count() > 0);
        alive.push((digest, Arc::downgrade(snapshot)));
    }

    fn needed(&self) -> BTreeSet<Digest> {
        let alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = alive.iter().filter(|(_, snapshot)| snapshot.strong_count() > 0).map(|(digest, _)| *digest);
        let named: BTreeSet<Digest> = self.used().values().flat_map(BTreeMap::values).flatten().copied().collect();
        alive.chain(named).collect()
    }

    /// What was needed until now is as good as new: the grace of [`Shelf::clear`] begins when nobody here needs it any more.
    pub(super) async fn let_go(&self) {
        let needed = self.needed();
        let held = std::mem::replace(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner), needed.clone());
        let ended: Vec<Digest> = held.difference(&needed).copied().collect();
        if ended.is_empty() {
            return;
        }
        let store = self.store.clone();
        let touch = move || ended.into_iter().try_for_each(|digest| store.touch(digest));
        match tokio::task::spawn_blocking(touch).await {
            Ok(Err(error)) => tracing::warn!(%error, "tables of lookups cannot be kept for longer"),
            Err(error) => tracing::warn!(%error, "tables of lookups cannot be kept for longer"),
            Ok(Ok(())) => {}
        }
    }

    /// Removes what is not needed. `tables` is how many snapshots the job has: where no more are needed than these, there is
    /// nothing to remove until there is a newer one.
    pub(super) async fn clear(&self, grace: Duration, tables: usize) {
        // Plans of the process before may be open in lanes that come yet.
        if self.since.elapsed() < grace {
            return;
        }
        // A batch does not wait for a table that is being put there: the next one removes.
        let Ok(_moving) = self.moving.try_lock() else { return };
        let (needed, store) = (self.needed(), self.store.clone());
        self.replaced.store(grace.is_zero() && needed.len() > tables, Ordering::Relaxed);
        match tokio::task::spawn_blocking(move || store.prune(&needed, grace)).await {
            Ok(Err(error)) => tracing::warn!(%error, "older tables of lookups cannot be removed"),
            Err(error) => tracing::warn!(%error, "older tables of lookups cannot be removed"),
            Ok(Ok(_)) => {}
        }
    }
}
