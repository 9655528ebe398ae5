//! The spool: what a socket brought, on disk until every sink has it.
//!
//! # On disk
//!
//! A folder with these files; all numbers are little-endian, a *position* is a byte offset in the concatenation of all
//! segments that ever were:
//!
//! - `lock`: empty, locked while a process has the spool open.
//! - `id`: one line, `tidemill-spool 1 UUID`. Another UUID is another spool and another shard.
//! - `retired`: UUIDs, one a line, of spools whose absence the operator was told of (written by the source).
//! - `POSITION.seg`: a segment; 20 digits say the position of its first byte. It begins with 64 bytes: the magic
//!   `TMSPOOL1`, the UUID (16), the position (8), the number of records in all segments before (8), the chain of all
//!   entries before (8) and a 1 where there is one (1; older versions wrote 0 for both), zeros (11), CRC-32 of these 60.
//!   Entries follow without padding.
//! - `POSITION.tmp`: a segment that was never finished; removed.
//! - `aside-UUID-N/`: an older spool that does not fit the sinks' mark, kept for a person to look at.
//!
//! An entry is: payload length (4), CRC-32 (4), number of records in its segment before it (4), low 32 bits of the
//! arrival time in ms (4), kind (1) and connection (3), payload. The CRC begins with the spool's UUID and the entry's
//! position, so that old or foreign bytes never pass for an entry. Kinds: 1 a record; 2 half a record; 3 a record that
//! was too long (its length, 8 bytes, then its beginning); 4 the head of a group: the position up to which everything was
//! durable before the group was written (8), and a random number of the claim under which it came (8; older versions wrote
//! none).
//!
//! # Copies
//!
//! A data dir can be copied, with its spool's UUID and positions. From then on the two spools hold other records under the
//! same positions. [`Spool::chain_at`] tells them apart: a checksum over all entries before a position, which the mark
//! keeps. Where two copies take the same bytes, the random number of each claim makes their chains differ.
//!
//! # Order, and what a crash leaves
//!
//! A group (a head and the records that wait together) is written by one `pwrite` and made durable by one `fdatasync`;
//! only then is it part of the spool: planned, acknowledged. Groups follow each other strictly. A segment is created as
//! `.tmp`, synced, renamed, and the folder synced, when the one before is durable to its last byte.
//!
//! So after a crash every segment but the last is whole, and of the last only the last group may be torn. [`Spool::open`]
//! reads the last segment, cuts it off behind the last whole record, and syncs the rest. But where a group behind the
//! flaw says that the flawed place had been durable, it is damage, not a torn tail: an error, and nothing is cut off.
//! (Damage in the very last group cannot be told from a torn write; where a sink has a record of it, the mark lies beyond
//! the spool's end, and the source says so.) All other segments are checked as they are read.
//!
//! A write or sync that fails leaves the group outside the spool; trying again writes the same bytes to the same place
//! (a failed `fdatasync` may have dropped dirty pages, so it is never repeated without the write). So is a group after
//! whose sync the segment is not the file at its path any more: the data dir was removed, moved or replaced under the
//! running daemon, and what is written there nobody will find again.
//!
//! Released segments are deleted from the front, without a sync: a crash may bring any of them back. What lies before
//! the last unbroken run of segments is deleted at the next release.
//!
//! Failpoints, each before what it names: `spool-id`, `spool-roll` (create a segment), `spool-rolled` (rename it),
//! `spool-truncate` (cut a torn tail), `spool-write`, `spool-sync`, `spool-synced` (durable, nobody knows yet),
//! `spool-release` (delete a segment).

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tidemill_checkpoint::failpoint;
use uuid::Uuid;

use super::entry::{self, Chain, Flaw, Kind, Seal};
use crate::source::Found;

const MAGIC: &[u8; 8] = b"TMSPOOL1";
/// Bytes before a segment's first entry.
pub const SEGMENT_HEAD: u64 = 64;
/// A chain is looked up in steps of so many bytes.
const CHAIN_WINDOW: usize = 64 * 1024;
/// How long a lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const ID_WORDS: &str = "tidemill-spool 1";

/// What can go wrong in a spool.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It may pass: a full disk, an I/O error, another process that has it open.
    #[error("{what}: {cause}")]
    Io {
        /// What was being done, to what.
        what: String,
        /// The cause.
        cause: io::Error,
    },
    /// Records that were durable are gone or damaged.
    #[error("{0}")]
    Damaged(String),
}

impl Error {
    pub(super) fn io(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let what = format!("{doing} {}", path.display());
        move |cause| Self::Io { what, cause }
    }
}

/// One segment.
pub(super) struct Segment {
    /// The position of its first byte.
    pub(super) base: u64,
    /// Records in all segments before.
    pub(super) records_before: u64,
    /// The chain of all entries before.
    pub(super) chain: Chain,
    /// Durable bytes, head included.
    len: AtomicU64,
    path: PathBuf,
    /// Kept open while it is the last.
    file: RwLock<Option<Arc<File>>>,
}

impl Segment {
    /// The position after its last durable byte.
    pub(super) fn end(&self) -> u64 {
        self.base + self.len.load(Ordering::Acquire)
    }

    /// Fills `buffer` from `position` on.
    pub(super) fn read(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        let open = self.file.read().unwrap_or_else(PoisonError::into_inner).clone();
        let file = open.map_or_else(|| File::open(&self.path).map(Arc::new), Ok)?;
        file.read_exact_at(buffer, position - self.base)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// A spool that this process has open. Appending is for one thread at a time; everything else for any.
pub struct Spool {
    pub(super) dir: PathBuf,
    pub(super) id: Uuid,
    pub(super) seal: Seal,
    segment_bytes: u64,
    segments: RwLock<VecDeque<Arc<Segment>>>,
    /// Held while appending.
    tail: Mutex<Tail>,
    /// The random number of the newest claim.
    epoch: AtomicU64,
    /// Records that were ever durable here.
    records: AtomicU64,
    strays: Mutex<Vec<PathBuf>>,
    released: AtomicU64,
    #[cfg(test)]
    pub(super) full: std::sync::atomic::AtomicBool,
    lock: Arc<File>,
}

/// The end of the last segment.
#[derive(Clone, Copy)]
struct Tail {
    /// Records in the segment.
    records: u32,
    /// The chain of all entries before the end.
    chain: Chain,
}

fn random() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    // The fixed bits of a UUID are in different places of the two.
    high ^ low.rotate_left(32)
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the folder's entries durable.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Creates a folder and what is missing above it, durably.
fn create_dir_durably(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> =
        dir.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    fs::create_dir_all(dir)?;
    for parent in missing.iter().filter_map(|path| path.parent()) {
        sync_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
    }
    Ok(())
}

/// Writes a small file durably: its old or its new text, never a torn one.
pub(super) fn write_durably(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.tmp"));
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    sync_dir(dir)
}

impl Spool {
    /// Opens the spool in `dir`, creates it where there is none, and repairs what a crash left. A segment is followed by
    /// the next once it has `segment_bytes`.
    pub fn open(dir: &Path, segment_bytes: u64) -> Result<Self, Error> {
        create_dir_durably(dir).map_err(Error::io("create", dir))?;
        let path = dir.join("lock");
        let lock = File::create(&path).map_err(Error::io("open", &path))?;
        let since = Instant::now();
        while let Err(error) = lock.try_lock() {
            match error {
                // A process that is being forked just now holds a copy of the lock of a spool that was closed.
                TryLockError::WouldBlock if since.elapsed() < LOCK_PATIENCE => thread::sleep(LOCK_PATIENCE / 50),
                TryLockError::WouldBlock => {
                    return Err(Error::io("lock", &path)(io::Error::other("another process has this spool open")));
                }
                TryLockError::Error(cause) => return Err(Error::io("lock", &path)(cause)),
            }
        }
        Self::open_locked(dir, segment_bytes, Arc::new(lock))
    }

    fn open_locked(dir: &Path, segment_bytes: u64, lock: Arc<File>) -> Result<Self, Error> {
        let paths = segment_files(dir).map_err(Error::io("list", dir))?;
        let id = match read_id(dir)? {
            Some(id) => id,
            // The id is in each segment too.
            None => {
                let id = paths.last().map_or_else(|| Ok(Uuid::new_v4()), |path| read_head(path).map(|head| head.id))?;
                let write = || {
                    failpoint::pass("spool-id")?;
                    write_durably(dir, "id", &format!("{ID_WORDS} {id}\n"))
                };
                write().map_err(Error::io("write the id of the spool in", dir))?;
                id
            }
        };
        let spool = Self {
            dir: dir.to_owned(),
            id,
            seal: Seal::of(id),
            segment_bytes,
            segments: RwLock::default(),
            tail: Mutex::new(Tail { records: 0, chain: Chain::seed(id, 0) }),
            epoch: AtomicU64::new(random()),
            records: AtomicU64::new(0),
            strays: Mutex::default(),
            released: AtomicU64::new(0),
            #[cfg(test)]
            full: std::sync::atomic::AtomicBool::default(),
            lock,
        };
        let mut segments = paths.iter().map(|path| spool.open_segment(path)).collect::<Result<VecDeque<_>, _>>()?;
        match segments.back() {
            Some(last) => {
                let tail = spool.recover(last)?;
                *guard(&spool.tail) = tail;
                spool.records.store(last.records_before + u64::from(tail.records), Ordering::Release);
            }
            None => {
                let first = spool.create_segment(0, 0, Chain::seed(id, 0));
                segments.push_back(first.map_err(Error::io("create a segment in", dir))?);
            }
        }
        let first = (1..segments.len()).rev().find(|n| segments[n - 1].end() != segments[*n].base).unwrap_or(0);
        guard(&spool.strays).extend(segments.drain(..first).map(|segment| segment.path.clone()));
        spool.released.store(segments.front().map_or(0, |segment| segment.base), Ordering::Release);
        *spool.segments.write().unwrap_or_else(PoisonError::into_inner) = segments;
        Ok(spool)
    }

    /// Puts everything aside and begins a new, empty spool in the same folder, with a new UUID.
    pub fn set_aside(&self) -> Result<Self, Error> {
        let aside = (1..).map(|n| self.dir.join(format!("aside-{}-{n}", self.id))).find(|path| !path.exists());
        let aside = aside.unwrap_or_else(|| self.dir.join("aside"));
        let move_all = || {
            fs::create_dir_all(&aside)?;
            // The id first: segments without an id are the same spool still, an id without segments would be an empty one.
            fs::rename(self.dir.join("id"), aside.join("id"))?;
            for path in segment_files(&self.dir)? {
                fs::rename(&path, aside.join(path.file_name().unwrap_or_default()))?;
            }
            sync_dir(&aside)?;
            sync_dir(&self.dir)
        };
        move_all().map_err(Error::io("put aside the spool in", &self.dir))?;
        Self::open_locked(&self.dir, self.segment_bytes, self.lock.clone())
    }

    fn open_segment(&self, path: &Path) -> Result<Arc<Segment>, Error> {
        let head = read_head(path)?;
        let name = path.file_stem().and_then(|name| name.to_str()?.parse::<u64>().ok());
        if head.id != self.id || name != Some(head.base) {
            let (id, base) = (head.id, head.base);
            let text = format!("{} belongs to spool {id} at position {base}, not here: remove it", path.display());
            return Err(Error::Damaged(text));
        }
        let len = fs::metadata(path).map_err(Error::io("look at", path))?.len();
        Ok(Arc::new(Segment {
            base: head.base,
            records_before: head.records_before,
            chain: head.chain,
            len: AtomicU64::new(len),
            path: path.to_owned(),
            file: RwLock::default(),
        }))
    }

    /// Cuts off what a crash left of the last group, and makes the rest durable.
    fn recover(&self, last: &Segment) -> Result<Tail, Error> {
        let bytes = fs::read(&last.path).map_err(Error::io("read", &last.path))?;
        let (mut at, mut whole, mut chain) = (SEGMENT_HEAD as usize, SEGMENT_HEAD as usize, last.chain);
        let mut tail = Tail { records: 0, chain };
        while at < bytes.len() {
            let Ok(entry) = entry::parse(&bytes[at..], last.base + at as u64, self.seal) else { break };
            let size = entry.size();
            chain = chain.then(&bytes[at..at + size]);
            at += size;
            if entry.kind != Kind::Group {
                (whole, tail) = (at, Tail { records: tail.records + 1, chain });
            }
        }
        let position = last.base + at as u64;
        if entry::proves_durable(&bytes[at..], position, position, self.seal) {
            let path = last.path.display();
            return Err(Error::Damaged(format!(
                "{path} is damaged at byte {at} (position {position}), behind which more was durable"
            )));
        }
        let file = OpenOptions::new().read(true).write(true).open(&last.path).map_err(Error::io("open", &last.path))?;
        let repair = || {
            if whole < bytes.len() {
                tracing::info!(file = %last.path.display(), bytes = bytes.len() - whole, "cut off what a crash left unfinished");
                failpoint::pass("spool-truncate")?;
                file.set_len(whole as u64)?;
            }
            // After a kill the tail is in the page cache only.
            file.sync_all()?;
            sync_dir(&self.dir)
        };
        repair().map_err(Error::io("repair", &last.path))?;
        last.len.store(whole as u64, Ordering::Release);
        *last.file.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(file));
        Ok(tail)
    }

    fn create_segment(&self, base: u64, records_before: u64, chain: Chain) -> io::Result<Arc<Segment>> {
        failpoint::pass("spool-roll")?;
        let mut head = [0; SEGMENT_HEAD as usize];
        head[..8].copy_from_slice(MAGIC);
        head[8..24].copy_from_slice(self.id.as_bytes());
        head[24..32].copy_from_slice(&base.to_le_bytes());
        head[32..40].copy_from_slice(&records_before.to_le_bytes());
        head[40..48].copy_from_slice(&chain.0.to_le_bytes());
        head[48] = 1;
        let checksum = crc32fast::hash(&head[..60]);
        head[60..].copy_from_slice(&checksum.to_le_bytes());
        let (temporary, path) = (self.dir.join(format!("{base:020}.tmp")), self.dir.join(format!("{base:020}.seg")));
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all_at(&head, 0)?;
        file.sync_all()?;
        failpoint::pass("spool-rolled")?;
        fs::rename(&temporary, &path)?;
        sync_dir(&self.dir)?;
        let (len, file) = (AtomicU64::new(SEGMENT_HEAD), RwLock::new(Some(Arc::new(file))));
        Ok(Arc::new(Segment { base, records_before, chain, len, path, file }))
    }

    /// Writes a group and makes it durable. `group` is one group head and entries, all made by [`entry::push`]; their
    /// numbers and checksums are set here. After an error nothing of it is in the spool: call again with the same group.
    pub fn append(&self, group: &mut [u8]) -> Result<(), Error> {
        let mut tail = guard(&self.tail);
        let mut last = self.last();
        if last.len.load(Ordering::Acquire) >= self.segment_bytes {
            let before = last.records_before + u64::from(tail.records);
            let create = || {
                // A folder that was put in this one's place would get a segment without those before it.
                if let Some(file) = last.file.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
                    in_place(&last.path, file)?;
                }
                self.create_segment(last.end(), before, tail.chain)
            };
            let next = create().map_err(Error::io("create a segment in", &self.dir))?;
            self.segments.write().unwrap_or_else(PoisonError::into_inner).push_back(next.clone());
            *last.file.write().unwrap_or_else(PoisonError::into_inner) = None;
            (last, tail.records) = (next, 0);
            // The one before may have been waiting for a successor.
            self.remove_released();
        }
        let position = last.end();
        entry::set_group(group, position, self.epoch.load(Ordering::Acquire));
        let after = entry::complete(group, position, tail.records, self.seal);
        self.write(&last, group, position - last.base).map_err(Error::io("append to", &last.path))?;
        *tail = Tail { records: after, chain: tail.chain.then_all(group) };
        self.records.store(last.records_before + u64::from(after), Ordering::Release);
        last.len.store(position - last.base + group.len() as u64, Ordering::Release);
        Ok(())
    }

    fn write(&self, last: &Segment, group: &[u8], at: u64) -> io::Result<()> {
        #[cfg(test)]
        if self.full.load(Ordering::Acquire) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = last.file.read().unwrap_or_else(PoisonError::into_inner).clone();
        let file = file.ok_or_else(|| io::Error::other("the last segment is not open"))?;
        failpoint::pass("spool-write")?;
        file.write_all_at(group, at)?;
        failpoint::pass("spool-sync")?;
        file.sync_data()?;
        in_place(&last.path, &file)?;
        failpoint::pass("spool-synced")
    }

    /// A claim of the lane: what comes from now on has a number of its own, unlike that of any copy of this spool.
    pub fn begin_epoch(&self) {
        self.epoch.store(random(), Ordering::Release);
    }

    /// The checksum of all entries before `position`; `None` where no entry ends there.
    pub fn chain_at(&self, position: u64) -> Result<Option<Chain>, Error> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        let after = segments.partition_point(|segment| segment.base <= position);
        let Some(segment) = after.checked_sub(1).and_then(|index| segments.get(index)).cloned() else {
            return Ok(None);
        };
        drop(segments);
        if position == segment.base {
            return Ok(Some(segment.chain));
        }
        if position > segment.end() {
            return Ok(None);
        }
        let (mut at, mut chain) = (segment.base + SEGMENT_HEAD, segment.chain);
        // Heads are looked at, and no record: one may be large.
        let (mut window, mut window_at) = (Vec::new(), at);
        while at < position {
            if at + entry::GROUP as u64 > window_at + window.len() as u64 {
                window.resize(usize::try_from(position - at).map_or(CHAIN_WINDOW, |rest| rest.min(CHAIN_WINDOW)), 0);
                segment.read(&mut window, at).map_err(Error::io("read", &segment.path))?;
                window_at = at;
            }
            let Some((next, size)) = window.get((at - window_at) as usize..).and_then(|rest| chain.then_head(rest))
            else {
                return Ok(None);
            };
            (chain, at) = (next, at + size);
        }
        Ok((at == position).then_some(chain))
    }

    /// Everything before `reached` may be forgotten.
    pub fn release(&self, reached: u64) {
        self.released.fetch_max(reached.min(self.end()), Ordering::AcqRel);
        self.remove_released();
    }

    fn remove_released(&self) {
        let released = self.released.load(Ordering::Acquire);
        for path in guard(&self.strays).drain(..) {
            remove(&path);
        }
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        while segments.len() > 1 && segments[0].end() <= released {
            if !remove(&segments[0].path) {
                break;
            }
            segments.pop_front();
        }
    }

    pub(super) fn last(&self) -> Arc<Segment> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.back().cloned().expect("`open` gives a spool its first segment, and the last is never removed")
    }

    /// The segment that holds `position`.
    pub(super) fn segment(&self, position: u64) -> Option<Arc<Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        let after = segments.partition_point(|segment| segment.base <= position);
        segments.get(after.checked_sub(1)?).filter(|segment| position < segment.end()).cloned()
    }

    /// The first position that the spool still has.
    pub fn first(&self) -> u64 {
        self.segments.read().unwrap_or_else(PoisonError::into_inner).front().map_or(0, |segment| segment.base)
    }
    /// The position after the last durable record.
    pub fn end(&self) -> u64 {
        self.last().end()
    }
    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.end() - self.first()
    }
    /// Whether there are durable records from `position` on.
    pub fn has_records_from(&self, position: u64) -> bool {
        let last = self.last();
        // A segment that was just begun has its head alone.
        position < last.base || last.end() > position.max(last.base + SEGMENT_HEAD)
    }
    /// Whether there is nothing that is not released.
    pub fn is_drained(&self) -> bool {
        !self.has_records_from(self.released.load(Ordering::Acquire))
    }
    /// Records that were ever spooled.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Acquire)
    }
}

/// Whether an open file is what its path leads to, and not one that was unlinked, or in a folder that was moved away.
fn in_place(path: &Path, file: &File) -> io::Result<()> {
    let (there, mine) = (fs::metadata(path), file.metadata()?);
    if there.is_ok_and(|there| (there.dev(), there.ino()) == (mine.dev(), mine.ino())) {
        return Ok(());
    }
    Err(io::Error::other(
        "it is not the file at this path any more: the data dir was removed, moved or replaced while the daemon runs. Nothing \
         is acknowledged until it is back in its place; where it is gone for good, restart the daemon",
    ))
}

/// What the spool in `dir` has at `position` of the spool `id`. Opens nothing for writing and removes nothing: a daemon may
/// have the spool open.
pub(super) fn find(dir: &Path, id: &str, position: u64) -> Result<Found, Error> {
    let known = if dir.is_dir() { read_id(dir)? } else { None };
    let Some(known) = known.filter(|known| known.to_string() == id) else {
        return Ok(Found::Foreign(format!("its spool is not in {}: lost, or in another data dir", dir.display())));
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        paths.extend(path.extension().is_some_and(|ending| ending == "seg").then_some(path));
    }
    paths.sort();
    let heads = paths.iter().map(|path| Ok((read_head(path)?.base, path)));
    let heads = heads.collect::<Result<Vec<_>, Error>>()?;
    let (Some((first, _)), Some((last, last_path))) = (heads.first(), heads.last()) else {
        return Ok(Found::Foreign(format!("its spool in {} has no segment", dir.display())));
    };
    let holds = heads.iter().rposition(|(base, _)| *base <= position);
    let end = |base: &u64, path: &Path| Ok(base + fs::metadata(path).map_err(Error::io("look at", path))?.len());
    let nowhere = |what: &str| {
        let (dir, end) = (dir.display(), end(last, last_path)?);
        Ok(Found::Nowhere(format!("{position} {what}: the spool in {dir} has the positions {first} to {end}")))
    };
    let Some(holds) = holds else { return nowhere("is before its beginning") };
    let (base, path) = heads[holds];
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let (mut at, mut is_boundary, mut waits) = (SEGMENT_HEAD as usize, position == base, false);
    while at <= bytes.len() {
        let here = base + at as u64;
        is_boundary |= here == position;
        let Ok(entry) = entry::parse(&bytes[at..], here, Seal::of(known)) else { break };
        waits |= here >= position && entry.kind != Kind::Group;
        at += entry.size();
    }
    if position > base + at as u64 && at >= bytes.len() {
        return nowhere("is beyond its end");
    }
    if !is_boundary && position <= base + at as u64 {
        return nowhere("is in the middle of a record");
    }
    // Behind damage nobody can tell where records begin.
    if !is_boundary {
        return nowhere("is behind a place that is damaged");
    }
    for (base, path) in &heads[holds + 1..] {
        waits |= end(base, path)? > base + SEGMENT_HEAD;
    }
    Ok(Found::There { is_end: !waits && at >= bytes.len() })
}

/// Deletes a segment; one that stays is tried again at the next release.
fn remove(path: &Path) -> bool {
    let result = failpoint::pass("spool-release").and_then(|()| fs::remove_file(path));
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(file = %path.display(), %error, "cannot delete a released segment; it is tried again");
            false
        }
        _ => true,
    }
}

/// The segments of a folder, in order. Removes unfinished files.
fn segment_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("seg") => paths.push(path),
            Some("tmp") => fs::remove_file(&path)?,
            _ => {}
        }
    }
    paths.sort();
    Ok(paths)
}

pub(super) fn read_id(dir: &Path) -> Result<Option<Uuid>, Error> {
    let path = dir.join("id");
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &path)(error)),
        // An id that cannot be read is taken from the segments.
        Ok(text) => Ok(text.trim().strip_prefix(ID_WORDS).and_then(|id| Uuid::parse_str(id.trim()).ok())),
    }
}

struct SegmentHead {
    id: Uuid,
    base: u64,
    records_before: u64,
    chain: Chain,
}

fn read_head(path: &Path) -> Result<SegmentHead, Error> {
    let mut head = [0; SEGMENT_HEAD as usize];
    let file = File::open(path).map_err(Error::io("open", path))?;
    let read = file.read_exact_at(&mut head, 0);
    if read.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::UnexpectedEof) {
        read.map_err(Error::io("read", path))?;
    }
    if !head.starts_with(MAGIC) || head[60..] != crc32fast::hash(&head[..60]).to_le_bytes() {
        return Err(Error::Damaged(format!("{} has no valid head", path.display())));
    }
    let id = head[8..].first_chunk().map_or(Uuid::nil(), |bytes| Uuid::from_bytes(*bytes));
    let (base, records_before) = (entry::first_u64(&head[24..]), entry::first_u64(&head[32..]));
    let chain = if head[48] == 1 { Chain(entry::first_u64(&head[40..])) } else { Chain::seed(id, base) };
    Ok(SegmentHead { id, base, records_before, chain })
}

/// Why bytes at `position` are not what was written there.
pub(super) fn damaged(segment: &Segment, position: u64, flaw: Flaw) -> Error {
    let file = segment.path.display();
    Error::Damaged(match flaw {
        Flaw::Short(_) => format!("no record boundary at position {position} of {file}"),
        Flaw::Checksum => format!("the checksum of the record at position {position} of {file} is wrong"),
    })
}
