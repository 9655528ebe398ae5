//! One lane that this process owns: the claim, temporaries, the commit. What happens to files afterwards is in [`places`].

mod places;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tidemill_checkpoint::{Digest, Generation, LaneKey, Mark, Permit, Receipt, Timestamp, failpoint::pass};
use tidemill_config::Roll;

use super::{
    encode::Chunk,
    folder::{Folder, Live},
    log::{Active, Commit, Rename, Start, Writer},
};
use crate::sink::{SinkError, durable};

/// Temporaries made at a time: one sync of their folder for so many files.
const POOL: usize = 16;
/// A log is begun anew when it has grown by this much.
const LOG_BYTES: u64 = 16 << 20;
/// Rolling files of one lane that are open at a time; the oldest is closed for another.
const MAX_ACTIVE: usize = 64;

/// The right to one live folder, and everything in it.
pub(super) struct Lane {
    pub(super) key: LaneKey,
    root: PathBuf,
    folder: Folder,
    live: Live,
    pool: Mutex<Pool>,
    /// Folders with names that a power cut may still take back.
    unsynced: Mutex<BTreeSet<PathBuf>>,
    state: Mutex<State>,
    beats: Mutex<u64>,
}

#[derive(Default)]
struct Pool {
    ready: Vec<(String, File)>,
    made: u64,
    /// Target folders that this process made or saw, with durable names.
    folders: BTreeSet<PathBuf>,
}

struct State {
    log: Writer,
    logs: u64,
    head: Option<Mark>,
    /// Renames of the head that are not done.
    owed: Vec<Rename>,
    /// Renames of the head, done or not: a new log repeats them.
    renames: Vec<Rename>,
    rolling: BTreeMap<String, Rolling>,
    /// Temporaries of a batch whose record is being written, or failed to be.
    stranded: Vec<Temporary>,
    /// A write or a sync failed, so the end of the log or of a rolling file is unknown: begin both anew.
    broken: bool,
    released: bool,
}

struct Rolling {
    file: File,
    /// What the file begins with: rows of another header belong in another file.
    header: Vec<u8>,
    active: Active,
}

/// A written temporary. Dropping it removes it, unless a mark may name it.
pub(super) struct Temporary {
    name: String,
    path: PathBuf,
    to: String,
    kept: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A batch of one lane, made ready.
pub(super) enum Ready {
    /// Written and synced: a file per partition.
    Files(Vec<Temporary>),
    /// Encoded: appended to rolling files at the commit, because where they end is known only then.
    Chunks(Vec<Chunk>, Roll, String),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a lane and leaves it as its head says: a log of its own, no rename owed, nobody else's handle on a file.
pub(super) fn claim(root: &Path, folder: Folder, key: LaneKey) -> Result<(Arc<Lane>, Option<Mark>), SinkError> {
    let io = |error: io::Error| failed(&format!("claiming lane {} in {}", key.lane, root.display()), &error);
    let live = match folder.take(key.generation, &key.owner).map_err(io)? {
        Ok(live) => live,
        Err(held) => return Err(fenced(&key, held)),
    };
    let begun = || -> io::Result<Lane> {
        let mut start = Start::new(key.generation, &key.owner);
        let mut entries = Vec::new();
        let mut released = false;
        if let Some((path, image)) = live.log()? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            start.continues = Some((name, image.valid));
            start.head = image.head().cloned();
            (start.renames, start.active) = image.owed();
            entries = image.entries(&path, None)?;
            released = image.released;
        }
        let name = live.log_name(1);
        let log = Writer::create(&live.path, &name, &start, &entries)?;
        pass("files.claim-after-log")?;
        let state = State {
            log,
            logs: 1,
            head: start.head.clone(),
            owed: start.renames.clone(),
            renames: start.renames.clone(),
            rolling: BTreeMap::new(),
            stranded: Vec::new(),
            broken: false,
            released: false,
        };
        let (root, folder, live, key) = (root.to_owned(), folder.clone(), live.clone(), key.clone());
        let (pool, unsynced, beats) = Default::default();
        let lane = Lane { key, root, folder, live, pool, unsynced, state: Mutex::new(state), beats };
        lane.settle(&mut lock(&lane.state), &start.active, released)?;
        pass("files.claim-after-renames")?;
        lane.folder.sweep(&lane.live, &name)?;
        lane.clear_temporaries()?;
        lane.refill(&mut lock(&lane.pool), POOL)?;
        Ok(lane)
    };
    match begun() {
        Ok(lane) => {
            let head = lock(&lane.state).head.clone();
            Ok((Arc::new(lane), head))
        }
        Err(error) => Err(lost(&folder, &live, &key, "claiming the lane", &error)),
    }
}

impl Lane {
    fn error(&self, what: &str, error: &io::Error) -> SinkError {
        lost(
            &self.folder,
            &self.live,
            &self.key,
            &format!("{what} (lane {} in {})", self.key.lane, self.root.display()),
            error,
        )
    }

    /// The proof of ownership, by path.
    fn own(&self) -> Result<(), SinkError> {
        match self.live.is_mine() {
            Ok(true) => Ok(()),
            Ok(false) => Err(fenced(&self.key, held(&self.folder))),
            Err(error) => Err(self.error("looking whether the lane is still mine", &error)),
        }
    }

    /// See [`Live::token`].
    pub(super) fn token(&self) -> &str {
        self.live.token()
    }

    fn refill(&self, pool: &mut Pool, wanted: usize) -> io::Result<()> {
        let tmp = self.live.tmp();
        while pool.ready.len() < wanted {
            pool.made += 1;
            let name = format!("g{}-{}", self.key.generation, pool.made);
            let file = File::options().write(true).create_new(true).open(tmp.join(&name))?;
            pool.ready.push((name, file));
        }
        durable::sync_dir(&tmp)
    }

    fn temporaries(&self, count: usize) -> io::Result<Vec<(String, File)>> {
        let mut pool = lock(&self.pool);
        if pool.ready.len() < count {
            self.refill(&mut pool, count.max(POOL))?;
        }
        let at = pool.ready.len() - count;
        Ok(pool.ready.split_off(at))
    }

    /// Nobody writes to what earlier generations left in `tmp`, or who does writes to nothing.
    fn clear_temporaries(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.live.tmp())? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }

    /// Makes the folder of a file durable, once per folder and process.
    fn target_folder(&self, to: &str) -> io::Result<()> {
        let path = self.root.join(to);
        let folder = durable::parent(&path);
        let known = lock(&self.pool).folders.contains(folder);
        if known && folder.is_dir() {
            return Ok(());
        }
        durable::create_dir_all(folder)?;
        lock(&self.pool).folders.insert(folder.to_owned());
        Ok(())
    }

    /// Writes one temporary per chunk and syncs it: off the critical path, while the batch before commits.
    pub(super) fn write(&self, chunks: Vec<Chunk>, name: impl Fn(&str) -> String) -> Result<Ready, SinkError> {
        let write = || -> io::Result<Vec<Temporary>> {
            let (mut written, mut files) = (Vec::new(), Vec::new());
            for ((from, file), chunk) in self.temporaries(chunks.len())?.into_iter().zip(&chunks) {
                let path = self.live.tmp().join(&from);
                written.push(Temporary { name: from, path, to: name(&chunk.partition), kept: false });
                files.push(file);
            }
            for ((temporary, mut file), chunk) in written.iter().zip(files).zip(&chunks) {
                file.write_all(&chunk.header)?;
                chunk.body.iter().try_for_each(|part| file.write_all(part))?;
                pass("files.before-data-sync")?;
                file.sync_data()?;
                pass("files.after-data-sync")?;
                self.target_folder(&temporary.to)?;
            }
            Ok(written)
        };
        write().map(Ready::Files).map_err(|error| self.error("writing a batch", &error))
    }

    /// Syncs the folders of earlier renames. Called off the critical path after a commit, and before the next mark.
    pub(super) fn sync_folders(&self) -> Result<(), SinkError> {
        let mut unsynced = lock(&self.unsynced);
        for folder in unsynced.iter() {
            match durable::sync_dir(folder) {
                // A folder that users removed holds nothing that could be lost.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(|error| self.error(&format!("syncing {}", folder.display()), &error))?,
            }
        }
        unsynced.clear();
        Ok(())
    }

    /// The compare-and-swap of one batch.
    pub(super) fn commit(&self, permit: &Permit, ready: Ready) -> Result<Receipt, SinkError> {
        let mut state = lock(&self.state);
        self.own()?;
        if state.released {
            return Err(fenced(&self.key, self.key.generation));
        }
        let found = state.head.as_ref().map(|head| head.digest);
        let there = found == Some(permit.mark().digest);
        if !there && found != permit.expected() {
            return Err(self.conflict(permit, found));
        }
        if state.broken {
            self.repair(&mut state).map_err(|error| self.error("beginning a new log", &error))?;
        }
        self.publish(&mut state)?;
        self.own()?;
        if there {
            return Ok(Receipt::written(permit));
        }
        pass("files.before-folder-sync").map_err(|error| self.error("syncing folders", &error))?;
        self.sync_folders()?;
        self.record(&mut state, permit, ready).map_err(|error| self.error("committing a batch", &error))?;
        self.publish(&mut state)?;
        self.own()?;
        Ok(Receipt::written(permit))
    }

    fn conflict(&self, permit: &Permit, found: Option<Digest>) -> SinkError {
        let (sink, lane) = (self.key.sink.clone(), self.key.lane.clone());
        SinkError::Conflict { sink, lane, found, expected: permit.expected() }
    }

    /// Data, mark, sync. Anything that fails in it leaves the ends of log and rolling files unknown.
    fn record(&self, state: &mut State, permit: &Permit, ready: Ready) -> io::Result<()> {
        state.broken = true;
        let mut renames = Vec::new();
        match ready {
            Ready::Files(mut temporaries) => {
                renames.extend(temporaries.iter().map(|file| Rename { from: file.name.clone(), to: file.to.clone() }));
                temporaries.iter_mut().for_each(|file| file.kept = true);
                state.stranded.extend(temporaries);
            }
            Ready::Chunks(chunks, roll, name) => {
                for chunk in chunks {
                    renames.extend(self.append(state, &chunk, roll, &name, permit.mark().plan.planned_at)?);
                }
            }
        }
        let active: BTreeMap<String, Active> =
            state.rolling.iter().map(|(partition, rolling)| (partition.clone(), rolling.active.clone())).collect();
        let commit = Commit { mark: permit.mark().clone(), entries: permit.entries().to_vec(), renames, active };
        pass("files.before-mark")?;
        state.log.append(&commit)?;
        pass("files.after-mark")?;
        state.log.sync()?;
        pass("files.after-log-sync")?;
        state.head = Some(commit.mark);
        state.owed = commit.renames.clone();
        state.renames = commit.renames;
        state.stranded.clear();
        state.broken = false;
        Ok(())
    }

    /// Appends a chunk to the partition's rolling file, or to a new one, and syncs it.
    fn append(
        &self,
        state: &mut State,
        chunk: &Chunk,
        roll: Roll,
        name: &str,
        now: Timestamp,
    ) -> io::Result<Option<Rename>> {
        let full = |active: &Active| {
            let age = u128::from(now.0.abs_diff(active.since.0));
            active.bytes >= roll.bytes || (now >= active.since && age >= roll.after.as_millis())
        };
        let mut rename = None;
        let unfit = |rolling: &Rolling| full(&rolling.active) || rolling.header != chunk.header;
        if state.rolling.get(&chunk.partition).is_none_or(unfit) {
            if !state.rolling.contains_key(&chunk.partition) && state.rolling.len() >= MAX_ACTIVE {
                let oldest =
                    state.rolling.iter().min_by_key(|(_, rolling)| rolling.active.since).map(|(name, _)| name.clone());
                oldest.and_then(|name| state.rolling.remove(&name));
            }
            let path = if chunk.partition.is_empty() { name.to_owned() } else { format!("{}/{name}", chunk.partition) };
            self.target_folder(&path)?;
            let (from, file) = self.temporaries(1)?.remove(0);
            file.write_all_at(&chunk.header, 0)?;
            let active = Active { path: path.clone(), bytes: chunk.header.len() as u64, since: now };
            state.rolling.insert(chunk.partition.clone(), Rolling { file, header: chunk.header.clone(), active });
            rename = Some(Rename { from, to: path });
        }
        if let Some(rolling) = state.rolling.get_mut(&chunk.partition) {
            for part in &chunk.body {
                rolling.file.write_all_at(part, rolling.active.bytes)?;
                rolling.active.bytes += part.len() as u64;
            }
            pass("files.before-data-sync")?;
            rolling.file.sync_data()?;
            pass("files.after-data-sync")?;
        }
        Ok(rename)
    }

    /// Off the critical path, after a commit: folders synced, the pool filled, a long log begun anew.
    pub(super) fn tidy(&self) -> Result<(), SinkError> {
        self.sync_folders()?;
        if lock(&self.state).released {
            return Ok(());
        }
        {
            let mut pool = lock(&self.pool);
            if pool.ready.len() < POOL / 2 {
                self.refill(&mut pool, POOL).map_err(|error| self.error("making temporaries", &error))?;
            }
        }
        let mut state = lock(&self.state);
        if !state.broken && !state.released && state.log.length > state.log.base + LOG_BYTES {
            self.new_log(&mut state).map_err(|error| self.error("beginning a new log", &error))?;
        }
        Ok(())
    }

    pub(super) fn beat(&self) -> Result<(), SinkError> {
        let mut beats = lock(&self.beats);
        *beats += 1;
        let write = || {
            File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(self.live.beat())?
                .write_all_at(format!("{:020}\n", *beats).as_bytes(), 0)
        };
        write().map_err(|error| self.error("writing a beat", &error))
    }

    /// A clean stop: says so in the log, and leaves no temporaries.
    pub(super) fn release(&self) -> Result<(), SinkError> {
        let mut state = lock(&self.state);
        let io = |error: io::Error| self.error("releasing the lane", &error);
        if state.released || !self.live.is_mine().map_err(io)? {
            return Ok(());
        }
        if state.broken {
            self.repair(&mut state).map_err(io)?;
        }
        self.publish(&mut state)?;
        self.sync_folders()?;
        state.released = true;
        state.rolling.clear();
        state.log.append_release().and_then(|()| state.log.sync()).map_err(io)?;
        for (name, _) in lock(&self.pool).ready.drain(..) {
            let _ = fs::remove_file(self.live.tmp().join(name));
        }
        Ok(())
    }
}

fn held(folder: &Folder) -> Generation {
    folder.live().ok().flatten().map_or(Generation::default(), |live| live.generation)
}

pub(super) fn fenced(key: &LaneKey, held: Generation) -> SinkError {
    SinkError::Fenced { sink: key.sink.clone(), lane: key.lane.clone(), held, mine: key.generation }
}

/// What an I/O error means: damage, a thing that may pass, or (a path is gone, and the live folder with it) a fence.
fn lost(folder: &Folder, live: &Live, key: &LaneKey, what: &str, error: &io::Error) -> SinkError {
    if error.kind() == io::ErrorKind::NotFound && matches!(live.is_mine(), Ok(false)) {
        return fenced(key, held(folder));
    }
    failed(what, error)
}

pub(super) fn failed(what: &str, error: &io::Error) -> SinkError {
    match error.kind() {
        io::ErrorKind::InvalidData => SinkError::Fatal(error.to_string()),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotADirectory => {
            SinkError::Fatal(format!(
                "{what}: {error}: give this user the right to write there, or choose another path"
            ))
        }
        _ => SinkError::io(what, error),
    }
}
