//! Files in a folder: a file per batch, or rolling files that batches are appended to. Rows and mark are one step
//! through a mark log beside the files.
//!
//! ```text
//! out/all-g6-5d1c0e9b-000012-3f2a91cc07de.json            lane, generation, claim, seq, input (rolling: first batch)
//! out/_tidemill/<job>/<sink>/<lane>/live-g6-5d1c0e9b7a42/ the lane: its name says who may write
//!     log-g6.mark                                         marks and entries, checksummed ([`log`])
//!     tmp/g6-1                                            temporaries, their names synced in advance
//!     beat                                                a number that changes while the owner lives
//! ```
//!
//! **Claim** ([`folder`]): rename `live-g6-…` to `live-g9-…`, sync the lane's folder; begin `log-g9.mark` with the head
//! and the entries that are needed; finish the renames that are owed; sync their folders.
//! **Commit** ([`lane`]): data synced (for a file per batch already by `stage`), the folders of the batch before synced,
//! mark appended, log synced, temporaries renamed out of the live folder. A rename or look that finds the live folder
//! gone is `Fenced`, and the new owner decides from the log. So a writer that is paused at any point and goes on later
//! changes nothing: what it appends through a handle lies behind the end that the new log says, what it does by path
//! fails. `tests/files_model.rs` enumerates these steps, and shows that none of them can be left out.
//!
//! **Rolling files** are published by their first batch like any file, then appended to through the handle that made
//! them; the mark says how many bytes count. Whoever claims the lane puts a copy of those bytes in the file's place (an
//! earlier owner may still hold the old one) and begins a file of its own; nothing is ever truncated. Before its mark a
//! reader may see rows that get withdrawn.
//!
//! Two syncs lie between a batch and its receipt, or one where `stage` ran while the batch before was committing.
//! Recovery never looks at final names: users may move or delete files, except the rolling file in use.
//!
//! Failpoints, in order: `files.claim-before-rename`, `files.claim-after-rename`, `files.claim-after-folder-sync`,
//! `files.claim-after-log`, `files.before-seal`, `files.after-seal`, `files.claim-after-renames`,
//! `files.before-data-sync`, `files.after-data-sync`, `files.before-folder-sync`, `files.before-mark`,
//! `files.after-mark`, `files.after-log-sync`, `files.before-rename` (each file), `files.after-renames`.

mod encode;
mod folder;
mod lane;
mod log;

use std::{
    collections::HashMap,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use async_trait::async_trait;
use tidemill_checkpoint::{Entry, Generation, Lane, LaneKey, LogName, Mark, Owner, Permit, Receipt, SinkId};
use tidemill_config::Roll;

use self::{
    encode::Format,
    folder::Folder,
    lane::{Lane as Owned, Ready, failed},
};
use super::{Guarantee, Marks, Sink, SinkError, StageContext, Staged, blocking, durable};

/// Lanes of a group that sync at the same time; the file system's journal takes their syncs together.
const SYNCING: usize = 16;

/// The sink `type: files`.
pub struct Files {
    inner: Arc<Inner>,
}

struct Inner {
    id: SinkId,
    root: PathBuf,
    /// `_tidemill/<job>/<sink>`: the lanes' folders.
    marks: PathBuf,
    format: Format,
    roll: Option<Roll>,
    owned: Mutex<HashMap<Lane, Arc<Owned>>>,
}

/// What `stage` hands to `commit`.
struct Batch {
    ready: Ready,
}

impl Files {
    /// The sink `id` of `job`. Opens and creates nothing.
    pub fn open(id: SinkId, job: &str, config: &tidemill_config::Files) -> Result<Self, SinkError> {
        let root = std::path::absolute(&config.path)
            .map_err(|error| failed(&format!("finding {}", config.path.display()), &error))?;
        let marks = root.join("_tidemill").join(durable::component(job)).join(durable::component(id.as_str()));
        let format = Format::new(config)?;
        let inner = Inner { id, root, marks, format, roll: config.roll, owned: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, SinkError> + Send + 'static,
    ) -> Result<T, SinkError> {
        let inner = self.inner.clone();
        blocking(move || work(&inner)).await?
    }
}

impl Inner {
    fn folder(&self, lane: &Lane) -> Folder {
        Folder::new(&self.marks, lane)
    }

    fn look<T>(&self, lane: &Lane, what: &str, result: io::Result<T>) -> Result<T, SinkError> {
        result.map_err(|error| failed(&format!("{what} of lane {lane} in {}", self.marks.display()), &error))
    }

    /// The lane as this process claimed it, where the key is that claim's.
    fn owned(&self, key: &LaneKey) -> Result<Arc<Owned>, SinkError> {
        let owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner).get(&key.lane).cloned();
        match owned {
            Some(lane) if lane.key == *key => Ok(lane),
            _ => {
                let live = self.look(&key.lane, "looking for the owner", self.folder(&key.lane).live())?;
                Err(lane::fenced(key, live.map_or(Generation::default(), |live| live.generation)))
            }
        }
    }

    fn claim(&self, key: LaneKey) -> Result<(LaneKey, Option<Mark>), SinkError> {
        let (lane, head) = lane::claim(&self.root, self.folder(&key.lane), key.clone())?;
        let mut owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        // Two claims of one process may end in the other order than they won.
        if owned.get(&key.lane).is_none_or(|other| other.key.generation < key.generation) {
            owned.insert(key.lane.clone(), lane);
        }
        Ok((key, head))
    }

    fn history(&self, lane: &Lane, log: &LogName, from: u64) -> io::Result<Vec<Entry>> {
        let read = |live: &folder::Live| match live.log()? {
            Some((path, image)) => image.entries(&path, Some(log)),
            None => Ok(Vec::new()),
        };
        let mut entries = self.folder(lane).look(read)?.unwrap_or_default();
        entries.retain(|entry| entry.number >= from);
        Ok(entries)
    }

    fn stage(&self, context: &StageContext, rows: &[RecordBatch]) -> Result<Staged, SinkError> {
        let lane = self.owned(&context.key)?;
        let chunks = if context.mark_only { Vec::new() } else { self.format.encode(rows)? };
        let bytes = chunks.iter().map(|chunk| chunk.bytes() + chunk.header.len() as u64).sum();
        let (name, generation) = (durable::component(context.key.lane.as_str()), context.key.generation);
        let (seq, input, ending) = (context.plan.seq, context.input.short(), self.format.extension());
        let name = format!("{name}-g{generation}-{}-{seq:06}-{input}.{ending}", lane.token());
        let ready = match self.roll {
            Some(roll) => Ready::Chunks(chunks, roll, name),
            None => {
                lane.write(
                    chunks,
                    |partition| if partition.is_empty() { name.clone() } else { format!("{partition}/{name}") },
                )?
            }
        };
        let rows = if context.mark_only { 0 } else { rows.iter().map(|batch| batch.num_rows() as u64).sum() };
        Ok(Staged { rows, bytes, data: Box::new(Batch { ready }) })
    }

    fn commit_one(&self, permit: &Permit, staged: Staged) -> Result<Receipt, SinkError> {
        let batch: Batch = staged.unpack()?;
        self.owned(permit.key())?.commit(permit, batch.ready)
    }

    fn commit(&self, group: Vec<(Permit, Staged)>) -> Vec<Result<Receipt, SinkError>> {
        if group.len() == 1 {
            return group.into_iter().map(|(permit, staged)| self.commit_one(&permit, staged)).collect();
        }
        let mut waiting: Vec<Option<(Permit, Staged)>> = group.into_iter().map(Some).collect();
        let mut results = Vec::with_capacity(waiting.len());
        for round in waiting.chunks_mut(SYNCING) {
            results.extend(std::thread::scope(|scope| {
                let threads: Vec<_> = round
                    .iter_mut()
                    .filter_map(Option::take)
                    .map(|(permit, staged)| scope.spawn(move || self.commit_one(&permit, staged)))
                    .collect();
                let panicked = |_| Err(SinkError::Fatal("committing a lane panicked".into()));
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect::<Vec<_>>()
            }));
        }
        results
    }

    /// After a commit, off the critical path. What fails here is done again, and then answered for, by the next commit.
    fn tidy(&self, lanes: &[Lane]) {
        for lane in lanes {
            let owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner).get(lane).cloned();
            if let Some(Err(error)) = owned.map(|lane| lane.tidy()) {
                tracing::warn!(%lane, sink = %self.id, "{error}");
            }
        }
    }

    /// Under another name first: who was paused finds nothing of the old name.
    fn reset(&self) -> io::Result<()> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let parent = durable::parent(&self.marks);
        let gone = parent.join(format!(".reset-{}", uuid::Uuid::new_v4().simple()));
        match fs::rename(&self.marks, &gone) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        durable::sync_dir(parent)?;
        fs::remove_dir_all(&gone)
    }
}

#[async_trait]
impl Sink for Files {
    fn id(&self) -> &SinkId {
        &self.inner.id
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn peek(&self, lanes: &[Lane]) -> Result<Marks, SinkError> {
        let lanes = lanes.to_vec();
        self.run(move |inner| {
            let look = |lane: Lane| {
                let held = inner.look(&lane, "reading the mark", inner.folder(&lane).held())?;
                Ok((lane, held))
            };
            lanes.into_iter().map(look).collect()
        })
        .await
    }

    async fn claim(
        &self,
        lane: &Lane,
        generation: Generation,
        owner: &Owner,
    ) -> Result<(LaneKey, Option<Mark>), SinkError> {
        let key = LaneKey { sink: self.id().clone(), lane: lane.clone(), generation, owner: owner.clone() };
        self.run(move |inner| inner.claim(key)).await
    }

    async fn history(&self, lane: &Lane, log: &LogName, from: u64) -> Result<Vec<Entry>, SinkError> {
        let (lane, log) = (lane.clone(), log.clone());
        self.run(move |inner| inner.look(&lane, "reading the entries", inner.history(&lane, &log, from))).await
    }

    async fn prepare(&self, schema: &SchemaRef) -> Result<(), SinkError> {
        let schema = schema.clone();
        self.run(move |inner| {
            inner.format.check(&schema)?;
            durable::create_dir_all(&inner.root)
                .map_err(|error| failed(&format!("making {}", inner.root.display()), &error))
        })
        .await
    }

    async fn stage(&self, context: &StageContext, rows: &[RecordBatch]) -> Result<Staged, SinkError> {
        let (context, rows) = (context.clone(), rows.to_vec());
        self.run(move |inner| inner.stage(&context, &rows)).await
    }

    async fn commit(&self, group: Vec<(Permit, Staged)>) -> Vec<Result<Receipt, SinkError>> {
        let lanes: Vec<Lane> = group.iter().map(|(permit, _)| permit.key().lane.clone()).collect();
        let inner = self.inner.clone();
        let result = blocking(move || inner.commit(group)).await;
        let (inner, count) = (self.inner.clone(), lanes.len());
        drop(tokio::task::spawn_blocking(move || inner.tidy(&lanes)));
        result.unwrap_or_else(|error| (0..count).map(|_| Err(error.clone())).collect())
    }

    async fn beat(&self, key: &LaneKey) -> Result<(), SinkError> {
        let key = key.clone();
        self.run(move |inner| inner.owned(&key)?.beat()).await
    }

    async fn release(&self, key: &LaneKey) -> Result<(), SinkError> {
        let key = key.clone();
        self.run(move |inner| match inner.owned(&key) {
            Ok(lane) => lane.release(),
            Err(SinkError::Fenced { .. }) => Ok(()),
            Err(error) => Err(error),
        })
        .await
    }

    async fn reset(&self) -> Result<(), SinkError> {
        self.run(|inner| {
            inner.reset().map_err(|error| failed(&format!("forgetting {}", inner.marks.display()), &error))
        })
        .await
    }
}
