//! Checksummed records over sled, with sled's known faults kept out of sight.
//!
//! sled 0.34.7 as it is: `flush()` ends in `sync_file_range`, which does not survive a power cut, so a durable write
//! calls `sync_data` on the file `db` after it; a value over a quarter of a segment goes to the folder `blobs/` without a
//! sync, so records stay below [`RECORD_BYTES`] and longer values are cut into chunks; recovery has panicked or hung on
//! damaged files, so it runs in a thread of its own, behind `catch_unwind`, with a deadline; and after one I/O error every
//! later call fails, so the database is opened again.
//!
//! A record is `key, chunk number (u16)` -> `crc32 of key and payload (u32), payload`; the payload of chunk 0 begins with
//! the length of the whole value (u32). Numbers are big-endian. A value's chunks are written in one sled batch.

use std::{
    fs::File,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, Once, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use crate::{failpoint::pass, ledger::Error};

/// Key and value of a record together are no longer.
pub(super) const RECORD_BYTES: usize = 4096;
/// What a chunk's number and checksum, and the length in chunk 0, take of a record.
const OVERHEAD: usize = 2 + 4 + 4;
/// Keys are no longer, so that a chunk has room.
const KEY_BYTES: usize = 2048;
/// Recovery and the check of all records take no longer, or the ledger counts as damaged.
const OPEN_DEADLINE: Duration = Duration::from_secs(60);
/// How long sled's own lock is waited for: a database that was just dropped lets go of it a little later.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// The thread that opens a database: its panics are ours to report.
const OPENER: &str = "ledger-open";
/// sled's page cache.
const CACHE_BYTES: u64 = 16 << 20;
/// Lazy records are on their way to the disk after this long.
const FLUSH_EVERY_MS: u64 = 500;

type KeyAndValue = (Vec<u8>, Vec<u8>);

/// One change of a write.
pub(super) enum Change {
    Put(Vec<u8>, Vec<u8>),
    Remove(Vec<u8>),
}

/// Why a database does not open.
pub(super) enum OpenError {
    /// Its files are damaged.
    Damaged(String),
    /// Anything else.
    Other(Error),
}

/// The database. All calls block.
pub(super) struct Store {
    folder: PathBuf,
    open: Mutex<Option<Open>>,
}

#[derive(Clone)]
struct Open {
    db: sled::Db,
    file: std::sync::Arc<File>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Opens or creates the database in `folder`, and checks every record.
    pub(super) fn open(folder: &Path) -> Result<Self, OpenError> {
        let open = open_guarded(folder)?;
        Ok(Self { folder: folder.to_owned(), open: Mutex::new(Some(open)) })
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.with("read", |open| read(&open.db, key))
    }

    /// All keys that begin with `prefix`, with their values, in order.
    pub(super) fn scan(&self, prefix: &[u8]) -> Result<Vec<KeyAndValue>, Error> {
        self.with("read", |open| scan(&open.db, prefix))
    }

    /// All keys that begin with `prefix`, in order.
    pub(super) fn keys(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        self.with("read", |open| {
            let mut keys = Vec::new();
            for record in open.db.scan_prefix(prefix).keys() {
                let record = record?;
                let Some((key, [0, 0])) = record.split_last_chunk::<2>() else { continue };
                keys.push(key.to_owned());
            }
            Ok(keys)
        })
    }

    /// Makes all changes or none. They are on the disk once [`Store::sync`] has returned.
    pub(super) fn write(&self, changes: &[Change]) -> Result<(), Error> {
        pass("ledger-write").map_err(|error| self.failed("write", &error))?;
        self.with("write", |open| {
            let mut batch = sled::Batch::default();
            for change in changes {
                add(&open.db, &mut batch, change)?;
            }
            Ok(open.db.apply_batch(batch)?)
        })
    }

    /// Puts all that was written on the disk.
    pub(super) fn sync(&self) -> Result<(), Error> {
        pass("ledger-flush").map_err(|error| self.failed("flush", &error))?;
        self.with("flush", |open| Ok(open.db.flush().map(|_| ())?))?;
        pass("ledger-sync").map_err(|error| self.failed("sync", &error))?;
        self.with("sync", |open| Ok(open.file.sync_data()?))
    }

    /// Calls sled so that neither its panic nor its lasting error is ours.
    fn with<T>(&self, doing: &str, call: impl FnOnce(&Open) -> Result<T, Fault>) -> Result<T, Error> {
        let open = self.opened()?;
        match catch_unwind(AssertUnwindSafe(|| call(&open))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Fault::Record(what))) => Err(self.corrupt(&what)),
            Ok(Err(Fault::TooLong(key))) => {
                Err(self.failed(doing, &io::Error::other(format!("a name in it is too long ({key} bytes)"))))
            }
            Ok(Err(Fault::Sled(error))) => {
                *lock(&self.open) = None;
                Err(match error {
                    sled::Error::Corruption { .. } | sled::Error::ReportableBug(_) => self.corrupt(&error.to_string()),
                    other => self.failed(doing, &io::Error::other(other)),
                })
            }
            Err(_) => {
                *lock(&self.open) = None;
                Err(self.corrupt("sled panicked"))
            }
        }
    }

    fn opened(&self) -> Result<Open, Error> {
        let mut slot = lock(&self.open);
        if let Some(open) = &*slot {
            return Ok(open.clone());
        }
        let open = open_guarded(&self.folder).map_err(|error| match error {
            OpenError::Damaged(what) => self.corrupt(&what),
            OpenError::Other(error) => error,
        })?;
        Ok(slot.insert(open).clone())
    }

    fn failed(&self, doing: &str, cause: &io::Error) -> Error {
        Error::Io { what: format!("cannot {doing} the ledger in {}", self.folder.display()), cause: cause.to_string() }
    }

    fn corrupt(&self, what: &str) -> Error {
        Error::Corrupt(format!(
            "the ledger in {} is damaged: {what}. Way out: start the daemon again, it then sets the ledger aside and \
             rebuilds it from the sinks, or says what else to do",
            self.folder.display()
        ))
    }
}

/// What can go wrong inside a call of sled.
enum Fault {
    Sled(sled::Error),
    Record(String),
    TooLong(usize),
}
impl From<sled::Error> for Fault {
    fn from(error: sled::Error) -> Self {
        Self::Sled(error)
    }
}
impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Sled(sled::Error::Io(error))
    }
}

/// Opens the database in a thread of its own.
fn open_guarded(folder: &Path) -> Result<Open, OpenError> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if thread::current().name() != Some(OPENER) {
                before(info);
            }
        }));
    });
    let (sender, receiver) = mpsc::channel();
    let at = folder.to_owned();
    let work = move || _ = sender.send(catch_unwind(AssertUnwindSafe(|| open_now(&at))));
    let thread = thread::Builder::new().name(OPENER.to_owned()).spawn(work);
    thread.map_err(|error| OpenError::Other(io_error("cannot start a thread that opens", folder, &error)))?;
    match receiver.recv_timeout(OPEN_DEADLINE) {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(OpenError::Damaged("its recovery panicked".to_owned())),
        Err(_) => Err(OpenError::Damaged(format!("its recovery did not end within {} s", OPEN_DEADLINE.as_secs()))),
    }
}

fn open_now(folder: &Path) -> Result<Open, OpenError> {
    let config = sled::Config::default().path(folder).cache_capacity(CACHE_BYTES).flush_every_ms(Some(FLUSH_EVERY_MS));
    let since = Instant::now();
    let db = loop {
        match config.open() {
            Ok(db) => break db,
            Err(error) if is_locked(&error) && since.elapsed() < LOCK_PATIENCE => thread::sleep(LOCK_PATIENCE / 500),
            Err(error) => return Err(judged(folder, error)),
        }
    };
    // Every record is read once: what is damaged shows now, not in the middle of a batch.
    match scan(&db, b"") {
        Ok(_) => {}
        Err(Fault::Record(what)) => return Err(OpenError::Damaged(what)),
        Err(Fault::Sled(error)) => return Err(judged(folder, error)),
        Err(Fault::TooLong(_)) => return Err(OpenError::Damaged("a key is too long".to_owned())),
    }
    let path = folder.join("db");
    let file = File::open(&path).map_err(|error| OpenError::Other(io_error("cannot open", &path, &error)))?;
    Ok(Open { db, file: file.into() })
}

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(cause) if cause.to_string().contains("could not acquire lock"))
}

/// Whether an error of opening is the files' fault. An error of the operating system is not: a full disk or a missing
/// right must not cost the ledger.
fn judged(folder: &Path, error: sled::Error) -> OpenError {
    if is_locked(&error) {
        return OpenError::Other(Error::Locked(format!(
            "the ledger in {} is open in another process",
            folder.display()
        )));
    }
    match error {
        sled::Error::Io(cause) => {
            let damage = [io::ErrorKind::UnexpectedEof, io::ErrorKind::InvalidData, io::ErrorKind::InvalidInput];
            if damage.contains(&cause.kind()) || cause.raw_os_error().is_none() {
                OpenError::Damaged(cause.to_string())
            } else {
                OpenError::Other(io_error("cannot open the ledger in", folder, &cause))
            }
        }
        other => OpenError::Damaged(other.to_string()),
    }
}

fn io_error(doing: &str, path: &Path, cause: &io::Error) -> Error {
    Error::Io { what: format!("{doing} {}", path.display()), cause: cause.to_string() }
}

fn record_key(key: &[u8], chunk: usize) -> Vec<u8> {
    let number = u16::try_from(chunk).unwrap_or(u16::MAX);
    [key, &number.to_be_bytes()].concat()
}

fn checksum(record_key: &[u8], payload: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(record_key);
    hasher.update(payload);
    hasher.finalize().to_be_bytes()
}

/// The pieces of a value, and how many of them a value of `length` has.
fn room(key: &[u8]) -> usize {
    RECORD_BYTES - OVERHEAD - key.len()
}
fn chunks(key: &[u8], length: usize) -> usize {
    length.div_ceil(room(key)).max(1)
}

fn add(db: &sled::Db, batch: &mut sled::Batch, change: &Change) -> Result<(), Fault> {
    let (key, value) = match change {
        Change::Put(key, value) => (key, Some(value)),
        Change::Remove(key) => (key, None),
    };
    if key.len() > KEY_BYTES || value.is_some_and(|value| chunks(key, value.len()) > usize::from(u16::MAX)) {
        return Err(Fault::TooLong(key.len()));
    }
    let before = db.get(record_key(key, 0))?;
    let before = before.and_then(|first| Some(chunks(key, length_of(first.get(4..)?)?))).unwrap_or(0);
    let now = value.map_or(0, |value| chunks(key, value.len()));
    for chunk in now..before {
        batch.remove(record_key(key, chunk));
    }
    let Some(value) = value else { return Ok(()) };
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut pieces = value.chunks(room(key));
    for chunk in 0..now {
        let (record_key, piece) = (record_key(key, chunk), pieces.next().unwrap_or_default());
        let payload = if chunk == 0 { [&length, piece].concat() } else { piece.to_owned() };
        let record = [&checksum(&record_key, &payload)[..], &payload].concat();
        assert!(
            record_key.len() + record.len() <= RECORD_BYTES,
            "a longer record would go to sled's blobs without a sync"
        );
        batch.insert(record_key, record);
    }
    Ok(())
}

fn length_of(payload: &[u8]) -> Option<usize> {
    let (length, _) = payload.split_first_chunk::<4>()?;
    usize::try_from(u32::from_be_bytes(*length)).ok()
}

/// The payload of a record whose checksum fits.
fn checked<'v>(record_key: &[u8], record: &'v [u8]) -> Result<&'v [u8], Fault> {
    match record.split_first_chunk::<4>() {
        Some((crc, payload)) if *crc == checksum(record_key, payload) => Ok(payload),
        _ => Err(bad(record_key, "does not fit its checksum")),
    }
}

fn bad(key: &[u8], what: &str) -> Fault {
    Fault::Record(format!("the record {:?} {what}", String::from_utf8_lossy(key)))
}

fn read(db: &sled::Db, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
    let first_key = record_key(key, 0);
    let Some(first) = db.get(&first_key)? else { return Ok(None) };
    let payload = checked(&first_key, &first)?;
    let length = length_of(payload).ok_or_else(|| bad(key, "has no length"))?;
    let mut value = payload.get(4..).unwrap_or_default().to_owned();
    for chunk in 1..chunks(key, length) {
        let chunk_key = record_key(key, chunk);
        let record = db.get(&chunk_key)?.ok_or_else(|| bad(key, "lacks a chunk"))?;
        value.extend_from_slice(checked(&chunk_key, &record)?);
    }
    if value.len() == length { Ok(Some(value)) } else { Err(bad(key, "has another length than it says")) }
}

fn scan(db: &sled::Db, prefix: &[u8]) -> Result<Vec<KeyAndValue>, Fault> {
    let mut found: Vec<(Vec<u8>, usize, usize, Vec<u8>)> = Vec::new();
    for record in db.scan_prefix(prefix) {
        let (record_key, record) = record?;
        let payload = checked(&record_key, &record)?;
        let Some((key, number)) = record_key.split_last_chunk::<2>() else {
            return Err(bad(&record_key, "has no number"));
        };
        let number = usize::from(u16::from_be_bytes(*number));
        if number == 0 {
            let length = length_of(payload).ok_or_else(|| bad(key, "has no length"))?;
            found.push((key.to_owned(), 1, length, payload.get(4..).unwrap_or_default().to_owned()));
            continue;
        }
        match found.last_mut() {
            Some((last, next, _, value)) if *last == key && *next == number => {
                value.extend_from_slice(payload);
                *next += 1;
            }
            _ => return Err(bad(key, "lacks a chunk")),
        }
    }
    if let Some((key, ..)) = found.iter().find(|(_, _, length, value)| value.len() != *length) {
        return Err(bad(key, "has another length than it says"));
    }
    Ok(found.into_iter().map(|(key, _, _, value)| (key, value)).collect())
}
