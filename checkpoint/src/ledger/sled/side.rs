//! The small files beside the ledger: the data dir's lock and UUID, and the attempts.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{Digest, Lane, failpoint::pass, ledger::Error};

/// How long the data dir's lock is waited for: a process that is being forked holds a copy of it for a moment.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// An I/O error of a path.
pub(super) fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let what = format!("cannot {doing} {}", path.display());
    move |cause| Error::Io { what, cause: cause.to_string() }
}

/// Makes the entries of a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), Error> {
    pass("ledger-sync-folder").and_then(|()| File::open(folder)?.sync_all()).map_err(failed("sync the folder", folder))
}

/// Creates a folder, and makes it durable, where it is not there.
pub(super) fn folder(path: &Path) -> Result<(), Error> {
    // Also where it is there: whoever made it may have been killed before its name was durable.
    // Records, and passwords in jobs' texts, lie in it.
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create the folder", path))?;
    path.ancestors().skip(1).find(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_folder)
}

/// Lets only the daemon's user enter a folder; where that may not be done, the data dir's own mode is what there is.
pub(super) fn close_to_others(folder: &Path) {
    let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o700));
}

/// The data dir's lock, held until it is dropped.
pub(super) fn lock(data_dir: &Path) -> Result<File, Error> {
    let path = data_dir.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed("open", &path))?;
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if since.elapsed() < LOCK_PATIENCE => thread::sleep(LOCK_PATIENCE / 50),
            Err(TryLockError::WouldBlock) => return Err(locked(data_dir, &mut file)),
            Err(TryLockError::Error(cause)) => return Err(failed("lock", &path)(cause)),
        }
    }
    // The number is for the message of the next one who comes; it may be stale, the lock is not.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

fn locked(data_dir: &Path, file: &mut File) -> Error {
    let mut text = String::new();
    let _ = file.read_to_string(&mut text);
    let who = text.trim().parse::<u32>().map_or_else(|_| "another process".to_owned(), |pid| format!("process {pid}"));
    Error::Locked(format!(
        "the data dir {} is in use by {who}. Stop that daemon, or give this one a data dir of its own (--data-dir)",
        data_dir.display()
    ))
}

/// The data dir's UUID, made durable when it is made; whether the data dir is new; a warning where the UUID had to be
/// made again.
pub(super) fn data_dir_id(data_dir: &Path) -> Result<(Uuid, bool, Option<String>), Error> {
    let path = data_dir.join("id");
    let mut warning = None;
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(id) => return Ok((id, false, None)),
            Err(_) => {
                let aside = set_aside(&path)?;
                warning = Some(format!(
                    "{} was damaged and is set aside as {}: this data dir has a new id, so other owners' lanes are waited for",
                    path.display(),
                    aside.display()
                ));
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read", &path)(error)),
    }
    let id = Uuid::new_v4();
    write_durably(&path, format!("{id}\n").as_bytes())?;
    Ok((id, warning.is_none(), warning))
}

/// Writes a file that is whole or as it was before, also after a power cut.
pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = path.with_extension("tmp");
    pass("ledger-side")
        .and_then(|()| {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        })
        .map_err(failed("write", path))?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Renames what is damaged to `NAME.damaged-N`, the first N that is free, and says so in the folder durably.
pub(super) fn set_aside(path: &Path) -> Result<PathBuf, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut number = 1;
    let aside = loop {
        let aside = path.with_file_name(format!("{name}.damaged-{number}"));
        if !aside.exists() {
            break aside;
        }
        number += 1;
    };
    pass("ledger-set-aside").and_then(|()| fs::rename(path, &aside)).map_err(failed("set aside", path))?;
    path.parent().map_or(Ok(()), sync_folder)?;
    Ok(aside)
}

/// The tries of a batch.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Tries {
    pub(super) job: String,
    pub(super) lane: Lane,
    pub(super) batch: Digest,
    pub(super) tries: u32,
}

/// A folder of one small file per lane.
pub(super) struct PerLane {
    folder: PathBuf,
}

impl PerLane {
    pub(super) fn new(data_dir: &Path, name: &str) -> Result<Self, Error> {
        let path = data_dir.join(name);
        folder(&path)?;
        Ok(Self { folder: path })
    }

    pub(super) fn path(&self, job: &str, lane: &Lane) -> PathBuf {
        self.folder.join(file_name(job, lane))
    }

    /// What the file says: `None` where it is absent, `Some(None)` where it cannot be read.
    pub(super) fn read<T: DeserializeOwned>(&self, job: &str, lane: &Lane) -> Result<Option<Option<T>>, Error> {
        let path = self.path(job, lane);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(parse(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// What every file says that can be read.
    pub(super) fn all<T: DeserializeOwned>(&self) -> Result<Vec<T>, Error> {
        Ok(files(&self.folder)?.iter().filter_map(|(_, bytes)| parse(bytes)).collect())
    }

    /// Writes a file in one plain write: it survives the death of the process, not a power cut.
    pub(super) fn write<T: Serialize>(&self, job: &str, lane: &Lane, value: &T) -> Result<(), Error> {
        let path = self.path(job, lane);
        let line = line(value);
        pass("ledger-side")
            .and_then(|()| {
                let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
                file.seek(SeekFrom::Start(0))?;
                file.write_all(line.as_bytes())?;
                file.set_len(line.len() as u64)
            })
            .map_err(failed("write", &path))
    }

    /// Removes a file; a power cut may bring it back.
    pub(super) fn remove(&self, job: &str, lane: &Lane) -> Result<(), Error> {
        remove(&self.path(job, lane), false)
    }
}

/// The name of a lane's file: readable, and one of its own.
pub(super) fn file_name(job: &str, lane: &Lane) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let name: String = job.chars().map(safe).collect();
    format!("{name}.{}", Digest::of_json(&(job, lane)).short())
}

/// The files of a folder with their content, by name; none that was being written.
pub(super) fn files(folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
        let path = entry.map_err(failed("list", folder))?.path();
        if path.extension().is_none_or(|end| end != "tmp") {
            let bytes = fs::read(&path).map_err(failed("read", &path))?;
            found.push((path, bytes));
        }
    }
    found.sort();
    Ok(found)
}

/// Removes a file that may be absent; `durably` where a power cut must not bring it back.
pub(super) fn remove(path: &Path, durably: bool) -> Result<(), Error> {
    match fs::remove_file(path) {
        Ok(()) if durably => path.parent().map_or(Ok(()), sync_folder),
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

/// One line: checksum, then JSON.
pub(super) fn line<T: Serialize>(value: &T) -> String {
    let json = serde_json::to_string(value).expect("side records have text keys and no foreign types");
    format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
}

/// The value of the first line, where it fits its checksum.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (crc, json) = text.lines().next()?.split_once(' ')?;
    (u32::from_str_radix(crc, 16).ok()? == crc32fast::hash(json.as_bytes())).then(|| serde_json::from_str(json).ok())?
}
