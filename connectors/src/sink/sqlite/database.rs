//! One connection for all sinks of a database file in this process, and what its errors mean.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    fs, io,
    os::unix::fs::{FileExt as _, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::sink::{SinkError, durable};

/// How long a statement waits for another process's lock before the batch is retried.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Statements kept prepared.
const STATEMENTS: usize = 64;

static DATABASES: LazyLock<Mutex<HashMap<PathBuf, Weak<Database>>>> = LazyLock::new(Mutex::default);

/// A database file. Opened at the first write, never by looking at it.
pub(super) struct Database {
    path: PathBuf,
    open: Mutex<Option<Open>>,
}

struct Open {
    connection: Connection,
    /// A file that was removed or replaced under us must not swallow commits.
    identity: Identity,
}

impl Database {
    /// The database at `path`, shared with every other sink of this process that names the same file.
    pub(super) fn shared(path: &Path) -> Result<Arc<Self>, SinkError> {
        let path =
            durable::canonical(path).map_err(|error| SinkError::io(format!("finding {}", path.display()), &error))?;
        let mut databases = DATABASES.lock().unwrap_or_else(PoisonError::into_inner);
        databases.retain(|_, database| database.strong_count() > 0);
        if let Some(database) = databases.get(&path).and_then(Weak::upgrade) {
            return Ok(database);
        }
        let database = Arc::new(Self { path: path.clone(), open: Mutex::new(None) });
        databases.insert(path, Arc::downgrade(&database));
        Ok(database)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What an error means.
    pub(super) fn explain(&self, failure: Failure) -> SinkError {
        failure.explain(&self.path)
    }

    /// Runs `work` on the connection, which is opened (and the file made) where it is not. After an I/O error the
    /// connection is closed, so that the next call begins with what the disk really holds.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T, Failure>) -> Result<T, SinkError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        self.run(&mut open, work)
    }

    /// The same, where nobody is using the connection and it is open.
    pub(super) fn with_idle<T>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, Failure>,
    ) -> Option<Result<T, SinkError>> {
        let mut open = self.open.try_lock().ok()?;
        open.is_some().then(|| self.run(&mut open, work))
    }

    fn run<T>(
        &self,
        open: &mut Option<Open>,
        work: impl FnOnce(&mut Connection) -> Result<T, Failure>,
    ) -> Result<T, SinkError> {
        if open.as_ref().is_some_and(|open| identity(&self.path) != Some(open.identity)) {
            tracing::warn!(database = %self.path.display(), "the database file was removed or replaced: opening it anew");
            *open = None;
        }
        let connection = match open {
            Some(open) => &mut open.connection,
            None => &mut open.insert(self.connect()?).connection,
        };
        let result = work(connection);
        if connection.is_autocommit() && !matches!(&result, Err(Failure::Sqlite(_, error)) if breaks(error)) {
            return result.map_err(|failure| failure.explain(&self.path));
        }
        *open = None;
        result.map_err(|failure| failure.explain(&self.path))
    }

    /// Whether there is something at the path, which is no folder then.
    fn is_there(&self) -> Result<bool, SinkError> {
        match fs::metadata(&self.path) {
            Ok(metadata) if metadata.is_dir() => Err(SinkError::Fatal(format!(
                "{} is a folder: name a file in it, such as {}",
                self.path.display(),
                self.path.join("out.db").display()
            ))),
            found => Ok(found.is_ok()),
        }
    }

    fn connect(&self) -> Result<Open, SinkError> {
        self.is_there()?;
        let folder = durable::parent(&self.path);
        let io = |error| SinkError::io(format!("making the folder of {}", self.path.display()), &error);
        durable::create_dir_all(folder).map_err(io)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = || -> rusqlite::Result<Connection> {
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.set_prepared_statement_cache_capacity(STATEMENTS);
            // WAL with FULL is one sync a commit where the rollback journal takes three or four. A file system that
            // cannot do WAL keeps its journal: slower, and as safe.
            connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
            connection
                .execute_batch("PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -16384;")?;
            Ok(connection)
        };
        let connection = open().map_err(|error| Failure::Sqlite("opening", error).explain(&self.path))?;
        durable::sync_dir(folder).map_err(io)?;
        let identity = identity(&self.path).ok_or_else(|| SinkError::Transient {
            what: format!("opening {}", self.path.display()),
            cause: "it is gone again".into(),
        })?;
        Ok(Open { connection, identity })
    }

    /// Reads without changing anything on the disk; `None` where there is no file.
    pub(super) fn read<T>(&self, work: impl Fn(&Connection) -> rusqlite::Result<T>) -> Result<Option<T>, SinkError> {
        if !self.is_there()? {
            return Ok(None);
        }
        let explain = |error| Failure::Sqlite("reading", error).explain(&self.path);
        // What a dead process left in a rollback journal is undone first, which takes the right to write: whoever reads
        // past it reads half of a transaction.
        if self.beside("-journal").exists() {
            return self.read_as(Access::Recover, &work).map(Some).map_err(explain);
        }
        // A database in WAL mode that nobody has open is read as immutable: a plain reader would leave `-wal` and
        // `-shm` files. Where somebody opens it just then, a plain read is the second try. In any other mode a writer
        // changes the file itself, at any moment, and leaves nothing beside it that would tell: only a lock keeps it out.
        let at_rest = self.in_wal_mode() && !self.beside("-wal").exists();
        match self.read_as(if at_rest { Access::AtRest } else { Access::Shared }, &work) {
            Err(_) if at_rest && self.beside("-wal").exists() => self.read_as(Access::Shared, &work),
            other => other,
        }
        .map(Some)
        .map_err(explain)
    }

    /// What the file's header says: the versions of the format for writing and reading are both 2 in WAL mode.
    fn in_wal_mode(&self) -> bool {
        let mut versions = [0; 2];
        header(&self.path, &mut versions, 18).is_ok() && versions == [2, 2]
    }

    /// The file that SQLite keeps beside the database under this ending.
    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(ending);
        name.into()
    }

    fn read_as<T>(&self, access: Access, work: &impl Fn(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        use std::os::unix::ffi::OsStrExt as _;
        let mut uri = String::from("file:");
        for byte in self.path.as_os_str().as_bytes() {
            let plain = byte.is_ascii_alphanumeric() || b"/-_.".contains(byte);
            if plain { uri.push(char::from(*byte)) } else { uri.push_str(&format!("%{byte:02X}")) }
        }
        let (query, mode) = match access {
            Access::AtRest => ("?mode=ro&immutable=1", OpenFlags::SQLITE_OPEN_READ_ONLY),
            Access::Shared => ("?mode=ro", OpenFlags::SQLITE_OPEN_READ_ONLY),
            Access::Recover => ("?mode=rw", OpenFlags::SQLITE_OPEN_READ_WRITE),
        };
        uri.push_str(query);
        let flags = mode | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(uri, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        work(&connection)
    }
}

/// How a reader opens the file.
#[derive(Clone, Copy)]
enum Access {
    /// Nobody has it open: nothing is left beside it.
    AtRest,
    /// Beside a writer.
    Shared,
    /// After a writer that died in a transaction.
    Recover,
}

/// Device and inode.
type Identity = (u64, u64);

fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|metadata| identity_of(&metadata))
}

fn identity_of(metadata: &fs::Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// Files that were opened beside SQLite. They stay open: closing one gives up all locks that this process has on the file,
/// those of SQLite's connections too (fcntl(2), "record locks"). Another program would then take itself for the last one
/// that has the database open, and remove the log into which our connection goes on writing.
static HEADERS: Mutex<BTreeMap<Identity, fs::File>> = Mutex::new(BTreeMap::new());

/// Reads a part of the file that is at this path now.
fn header(path: &Path, bytes: &mut [u8], at: u64) -> io::Result<()> {
    let mut headers = HEADERS.lock().unwrap_or_else(PoisonError::into_inner);
    let identity = identity_of(&fs::metadata(path)?);
    let file = match headers.entry(identity) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(new) => new.insert(fs::File::open(path)?),
    };
    file.read_exact_at(bytes, at)
}

/// What stops a piece of work on a database.
pub(super) enum Failure {
    /// SQLite said no, while this was being done.
    Sqlite(&'static str, rusqlite::Error),
    /// The protocol or the sink said no.
    Sink(SinkError),
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        Self::Sink(error)
    }
}

/// `.doing("...")` on a result of SQLite.
pub(super) trait Doing<T> {
    fn doing(self, what: &'static str) -> Result<T, Failure>;
}

impl<T> Doing<T> for rusqlite::Result<T> {
    fn doing(self, what: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure::Sqlite(what, error))
    }
}

impl Doing<()> for std::io::Result<()> {
    fn doing(self, what: &'static str) -> Result<(), Failure> {
        self.map_err(|error| Failure::Sink(SinkError::io(what, &error)))
    }
}

impl Failure {
    fn explain(self, path: &Path) -> SinkError {
        let (what, error) = match self {
            Self::Sink(error) => return error,
            Self::Sqlite(what, error) => (what, error),
        };
        let file = path.display();
        let transient = |cause: String| SinkError::Transient { what: format!("{what} {file}"), cause };
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                transient(format!("locked by another process for more than {} s", BUSY_TIMEOUT.as_secs()))
            }
            Some(ErrorCode::ConstraintViolation) if what == "committing to" => SinkError::Fatal(format!(
                "{what} {file}: {error}: a foreign key that is DEFERRABLE INITIALLY DEFERRED is checked with the whole batch, and the \
                 row that breaks it cannot be found: make the key immediate"
            )),
            Some(ErrorCode::DiskFull) => transient("the disk is full: free some space".into()),
            Some(
                ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::OutOfMemory
                | ErrorCode::FileLockingProtocolFailed,
            ) => transient(error.to_string()),
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => SinkError::Fatal(format!(
                "{file} is not a SQLite database, or it is damaged ({error}): restore it from a backup, or move it away to start anew"
            )),
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied) => {
                SinkError::Fatal(format!(
                    "{what} {file}: {error}: give this user the right to write the file and its folder"
                ))
            }
            _ => SinkError::Fatal(format!("{what} {file}: {error}")),
        }
    }
}

fn breaks(error: &rusqlite::Error) -> bool {
    !matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::ConstraintViolation | ErrorCode::DiskFull
        )
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A writer that comes in the middle of a read waits for it, unless the read is of a snapshot.
    #[test]
    fn what_is_read_of_a_database_without_wal_does_not_change_meanwhile() {
        for (mode, writes) in [("DELETE", false), ("TRUNCATE", false), ("WAL", true)] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.db");
            let writer = Connection::open(&path).unwrap();
            writer.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |_| Ok(())).unwrap();
            writer.execute_batch("CREATE TABLE t (n); INSERT INTO t VALUES (1), (2)").unwrap();
            writer.busy_timeout(Duration::ZERO).unwrap();
            if mode == "TRUNCATE" {
                fs::remove_file(dir.path().join("a.db-journal")).unwrap();
            }
            let read = Database::shared(&path).unwrap().read(|reader| {
                let mut statement = reader.prepare("SELECT n FROM t")?;
                let mut rows = statement.query([])?;
                let first: i64 = rows.next()?.unwrap().get(0)?;
                let written = writer.execute("UPDATE t SET n = n + 10", []).is_ok();
                let second: i64 = rows.next()?.unwrap().get(0)?;
                Ok((first, second, written))
            });
            assert_eq!(read.unwrap(), Some((1, 2, writes)), "{mode}");
        }
    }
}
