//! `type: directory`: the files of a folder, each taken once.
//!
//! One shard. Its position is (number in the accepted list, byte offset); the end of file `n` is `(n + 1, 0)`. The list is
//! the log `files:<source>` in the anchor: a plan that first reaches files brings their entries, the anchor appends them
//! in the same commit, so position and list never disagree. Numbers are given out in the order of taking: the oldest
//! mtime first, then the name.
//!
//! What is promised:
//!
//! - **The scan is the truth**, the watch a hint. A scan reads names and `stat`s, and no file that it knows.
//! - **A file is taken once it stands still**: size and mtime did not change for `settle`, or it was renamed in.
//! - **A file is (relative path, size, mtime)**; where that differs, its content decides: the same content at the same
//!   path is a touch, at another path whose listed one has left a move, else it is a new file. The hash is over the whole
//!   file: it decides what is *left out*. Device and inode only save hashing.
//! - **Changes are noticed** before and after each read, by size and mtime. A listed file goes on being read where it was
//!   moved, touched, or grew behind what was listed. What cannot be had any more is an error or a reject, never a skip.
//! - **Spans are stable**: a record's border depends on the file's bytes alone, a damaged archive gives the same records
//!   and the same one reject each time.
//!
//! Start with [`state`] (looking and adopting), then [`batch`] (what a batch reads), [`identity`] (which file is which),
//! [`content`] (bytes to records), [`release`] (what is put away). Pure and tested by themselves: [`pending`] (who stands still), [`known`] (the list), [`scan`] (names), [`entry`], [`hash`].

mod archive;
mod batch;
mod buffers;
mod content;
mod done;
mod entry;
mod find;
mod hash;
mod identity;
mod known;
mod lines;
mod pending;
mod release;
mod scan;
mod state;
#[cfg(test)]
mod tests;
mod watch;

pub use lines::count_lines;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tidemill_checkpoint::{Lane, Positions};
use tidemill_config::model;

pub(super) use self::find::find;
use self::{
    state::{Finish, State},
    watch::Board,
};
use super::{Adopted, Budget, History, Lag, Origin, Proposal, RawBatch, Source, SourceError, SourceEvent};

/// Pause between two scans of everything where the folder is watched: what the watch misses is found by then.
pub const RESCAN: Duration = Duration::from_secs(5);
/// The same where it cannot be watched, or is not there.
pub const POLL: Duration = Duration::from_secs(1);
/// New files of one batch, at most: their entries travel in its plan.
pub const MAX_FILES_PER_BATCH: usize = 1_000;
/// From so many listed files on, none of them being there is a missing mount, not a cleaned folder.
const MOUNT_SUSPECTED_FILES: usize = 10;
/// Hints of one burst are looked at together.
const GATHER: Duration = Duration::from_millis(5);

/// A watched folder.
pub struct DirectorySource {
    name: String,
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    board: Arc<Board>,
    lag: Mutex<Lag>,
    /// `finish` was called and not yet passed on to the state.
    finish: AtomicBool,
    /// The number of the newest plan or adoption. A plan whose future was dropped may come to its turn after it: it must not
    /// take back what the newer one has listed.
    newest: AtomicU64,
}

enum Next {
    Event(SourceEvent),
    Wait(std::time::Instant),
}

impl DirectorySource {
    /// Checks the patterns; looks at nothing yet. The folder need not be there: the source waits for it.
    pub fn open(config: &model::Source, directory: &model::Directory) -> Result<Self, SourceError> {
        let state = State::new(config, directory)?;
        let inner = Inner {
            state: Mutex::new(state),
            board: Arc::default(),
            lag: Mutex::default(),
            finish: AtomicBool::new(false),
            newest: AtomicU64::new(0),
        };
        Ok(Self { name: config.name.value.clone(), inner: Arc::new(inner) })
    }

    /// Runs what blocks beside the runtime's threads. Dropping the future lets it run to its end: the next plan takes
    /// back what it had listed.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State, &Inner) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let inner = self.inner.clone();
        let name = self.name.clone();
        let task = tokio::task::spawn_blocking(move || {
            let mut state = inner.state.lock().map_err(|_| poisoned(&name))?;
            if inner.finish.swap(false, Ordering::SeqCst) && matches!(state.finish, Finish::NotAsked) {
                state.finish = Finish::Asked;
            }
            let result = work(&mut state, &inner);
            if let Ok(mut lag) = inner.lag.lock() {
                *lag = state.measure();
            }
            result
        });
        task.await.unwrap_or_else(|_| Err(poisoned(&self.name)))
    }

    /// A number above those of all earlier calls.
    fn newest(&self) -> u64 {
        self.inner.newest.fetch_add(1, Ordering::SeqCst) + 1
    }

    async fn look(&self) -> Result<Next, SourceError> {
        self.run(|state, inner| {
            if !state.adopted {
                return Ok(Next::Wait(std::time::Instant::now() + RESCAN));
            }
            state.look(inner.board.take(), &inner.board)?;
            // A file that cannot be read keeps `finish` from its end: the next plan says so.
            let blocked = matches!(state.finish, Finish::Awaiting(_)) && state.pending.stuck().is_some();
            Ok(if state.has_work() || blocked {
                Next::Event(SourceEvent::Data)
            } else if state.is_finished() {
                Next::Event(SourceEvent::End)
            } else {
                Next::Wait(state.next_look())
            })
        })
        .await
    }
}

fn poisoned(name: &str) -> SourceError {
    SourceError::Fatal(format!(
        "source {name}: an earlier failure of the program left it in an unknown state; restart the daemon"
    ))
}

#[async_trait]
impl Source for DirectorySource {
    fn name(&self) -> &str {
        &self.name
    }

    fn rereadable(&self) -> bool {
        true
    }

    async fn start(&self) -> Result<(), SourceError> {
        self.run(|state, inner| {
            state.started = true;
            state.scan_soon();
            inner.board.changed.notify_one();
            Ok(())
        })
        .await
    }

    async fn event(&self) -> Result<SourceEvent, SourceError> {
        loop {
            let until = match self.look().await? {
                Next::Event(event) => return Ok(event),
                Next::Wait(until) => until,
            };
            tokio::select! {
                () = self.inner.board.changed.notified() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep_until(until.into()) => {}
            }
        }
    }

    async fn origin(&self, _lane: &Lane) -> Result<Origin, SourceError> {
        self.run(|state, _| state.origin()).await
    }

    async fn adopt(&self, _lane: &Lane, at: &Positions, history: &History) -> Result<Adopted, SourceError> {
        let (at, history) = (at.clone(), history.clone());
        self.newest();
        let adopted = self.run(move |state, _| state.adopt(&at, &history)).await;
        self.inner.board.changed.notify_one();
        adopted
    }

    async fn plan(&self, _lane: &Lane, from: &Positions, budget: Budget) -> Result<Option<Proposal>, SourceError> {
        let from = from.clone();
        let number = self.newest();
        self.run(move |state, inner| {
            if inner.newest.load(Ordering::SeqCst) != number {
                // Nobody waits for this one any more.
                return Ok(None);
            }
            if !state.adopted {
                return Err(SourceError::Fatal(format!("source {}: a plan was asked for before adopt", state.name)));
            }
            let from = from.get(&state.shard).map_or(Ok((0, 0)), |position| state.pair(position))?;
            state.take_back_after(from);
            state.look(inner.board.take(), &inner.board)?;
            let proposal = state.plan(from, budget)?;
            if let (None, Finish::Awaiting(_), Some((path, cause))) = (&proposal, &state.finish, state.pending.stuck())
            {
                // Nothing else is left to wait for: whoever runs it once is told, and runs it again.
                return Err(SourceError::Fatal(format!("{path} cannot be read ({cause}); all other files are done")));
            }
            Ok(proposal)
        })
        .await
    }

    async fn read(&self, _lane: &Lane, proposal: &Proposal) -> Result<RawBatch, SourceError> {
        if let Some(batch) = proposal.ahead.as_ref().and_then(|ahead| ahead.downcast_ref::<RawBatch>()) {
            return Ok(batch.clone());
        }
        let spans = proposal.spans.clone();
        self.run(move |state, _| {
            let Some(span) = spans.get(&state.shard) else { return Ok(RawBatch::default()) };
            let (from, to) = (state.pair(&span.from)?, state.pair(&span.to)?);
            state.replay(from, to)
        })
        .await
    }

    async fn release(&self, _lane: &Lane, reached: &Positions) -> Result<(), SourceError> {
        let reached = reached.clone();
        self.run(move |state, _| state.release(&reached)).await
    }

    fn lag(&self, _at: &Positions) -> Lag {
        self.inner.lag.lock().map(|lag| *lag).unwrap_or_default()
    }

    fn finish(&self) {
        self.inner.finish.store(true, Ordering::SeqCst);
        self.inner.board.changed.notify_one();
    }
}
