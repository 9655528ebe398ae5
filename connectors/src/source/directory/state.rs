//! The source's state and what keeps it true to the folder: looking, adopting, releasing. Everything here blocks.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tidemill_checkpoint::{LogName, Position, Positions, ShardId};
use tidemill_config::model::{self, OnDone, Start};

use super::{
    MOUNT_SUSPECTED_FILES, POLL, RESCAN,
    buffers::Buffers,
    content::Content,
    entry::{FileEntry, Role},
    hash::ContentHash,
    known::{Known, Knows},
    pending::Pending,
    scan::{Folder, Found, Seen, Stamp},
    watch::{Board, Hints, Watch},
};
use crate::source::{Adopted, History, Lag, Origin, SourceError};

/// A scan takes at most this part of the time, however large the folder is.
const SCAN_SHARE: u32 = 20;

/// (number in the accepted list, byte offset).
pub(super) type At = (u64, u64);

/// How far `finish` has come.
#[derive(Debug, Default)]
pub(super) enum Finish {
    #[default]
    NotAsked,
    /// The next look is at everything, and what it finds is awaited.
    Asked,
    /// These are not planned yet.
    Awaiting(HashSet<Arc<str>>),
}

pub(super) struct State {
    pub name: String,
    formerly: Option<String>,
    pub shard: ShardId,
    pub log: LogName,
    pub config: model::Directory,
    pub codec: model::Codec,
    pub folder: Folder,
    pub buffers: Arc<Buffers>,
    pub known: Known,
    pub pending: Pending,
    /// By content: since when all listed files below a number were found in their places.
    pub in_place: HashMap<ContentHash, (Instant, u64)>,
    pub adopted: bool,
    /// What is closed for sure: what lies before was planned by earlier plans.
    pub floor: At,
    /// Where the next plan begins, as far as is known.
    pub head: At,
    /// Numbers below this are in the anchor.
    pub anchored: u64,
    /// Files open at a border, for the next batch.
    pub open: Vec<Content>,
    /// Line feeds before borders where files were left open, by number and offset: so that they need not be counted again.
    pub lines: Vec<(u64, u64, u64)>,
    /// Of files that were read to their end and have to be put away: whether all of their bytes are in records and rejects.
    pub accounts: BTreeMap<u64, Result<(), &'static str>>,
    /// All files below this number are put away.
    pub done: u64,
    /// A prune that is part of the plan that ends there.
    pub prune: Option<(u64, At)>,
    pub scan_at: Instant,
    scanned: bool,
    pub finish: Finish,
    /// None of the listed files is there.
    pub absent: bool,
    told_absent: bool,
    told_watch: bool,
    /// Endings of archives that cannot be unpacked, and were warned of.
    pub warned_endings: HashSet<&'static str>,
    /// Whether hints are wanted.
    pub started: bool,
    watch: Option<Watch>,
}

impl State {
    pub(super) fn new(source: &model::Source, config: &model::Directory) -> Result<Self, SourceError> {
        let name = source.name.value.clone();
        let wrong = |what: String| SourceError::Fatal(format!("source {name}: {what}"));
        let without = match &config.on_done {
            OnDone::Move(target) if *target == config.path => {
                return Err(wrong(format!(
                    "on_done: move: {} is the source's own folder; name another",
                    target.display()
                )));
            }
            OnDone::Move(target) => Some(target.as_path()),
            _ => None,
        };
        let folder = Folder::new(config.path.clone(), config.recursive, &config.include, &config.exclude, without)
            .map_err(|error| wrong(error.to_string()))?;
        Ok(Self {
            shard: ShardId::new(&name, ""),
            log: log_name(&name),
            formerly: source.formerly.clone(),
            config: config.clone(),
            codec: source.codec.clone(),
            folder,
            buffers: Arc::default(),
            known: Known::default(),
            pending: Pending::new(config.settle),
            adopted: false,
            floor: (0, 0),
            head: (0, 0),
            anchored: 0,
            open: Vec::new(),
            lines: Vec::new(),
            accounts: BTreeMap::new(),
            done: 0,
            in_place: HashMap::new(),
            prune: None,
            scan_at: Instant::now(),
            scanned: false,
            finish: Finish::NotAsked,
            absent: false,
            told_absent: false,
            told_watch: false,
            warned_endings: HashSet::new(),
            started: false,
            watch: None,
            name,
        })
    }

    pub(super) fn io(&self, what: &str, error: &io::Error) -> SourceError {
        SourceError::io(format!("source {}: {what}", self.name), error)
    }

    /// Looks at what the hints name, at what is due, and at everything where it is time.
    pub(super) fn look(&mut self, mut hints: Hints, board: &Arc<Board>) -> Result<(), SourceError> {
        let now = Instant::now();
        if hints.rescan || !self.scanned || now >= self.scan_at || matches!(self.finish, Finish::Asked) {
            self.scan(&hints, board)?;
            if matches!(self.finish, Finish::Asked) {
                self.finish = Finish::Awaiting(self.pending.paths().cloned().collect());
            }
            hints.paths.clear();
        }
        let clock = clock_ns();
        for (path, renamed_in) in hints.paths {
            match self.folder.look_at(&path) {
                Found::Folder => self.scan_at = now,
                Found::File(seen) => {
                    if let Some(path) = self.folder.relative(&path) {
                        self.observe(&path, seen, now, clock, renamed_in);
                    }
                }
                Found::Nothing => {
                    if let Some(path) = self.folder.relative(&path) {
                        self.pending.forget(&path);
                    }
                }
            }
        }
        for path in self.pending.due(now) {
            match self.folder.look_at(&self.folder.absolute(&path)) {
                Found::File(seen) => self.observe(&path, seen, now, clock, false),
                _ => self.pending.forget(&path),
            }
        }
        for (path, since) in self.pending.restless(now) {
            tracing::warn!(source = %self.name, file = %path, seconds = since.as_secs(),
                "this file keeps changing and is not read before it stands still for `settle`: files that grow cannot be \
                 followed. Pipe them into a `socket` source, or read them once they are rotated");
        }
        Ok(())
    }

    pub(super) fn observe(&mut self, path: &str, seen: Seen, now: Instant, clock: i64, renamed_in: bool) {
        if self.known.knows(path, &seen.stamp) == Knows::Yes {
            self.pending.forget(path);
        } else {
            self.pending.observe(path, seen, now, clock, renamed_in);
        }
    }

    fn scan(&mut self, hints: &Hints, board: &Arc<Board>) -> Result<(), SourceError> {
        let begun = Instant::now();
        self.scan_at = begun + POLL;
        let identity = self.folder.identity().map_err(|error| self.folder_error(&error))?;
        self.keep_watch(identity, board);
        let clock = clock_ns();
        let (mut unknown, mut present, mut same, mut replaced) = (HashSet::new(), 0, 0, Vec::new());
        let Self { folder, known, pending, .. } = self;
        let result = folder.walk(&mut |path, seen| {
            present += usize::from(known.at_path(&path).is_some());
            match known.knows(&path, &seen.stamp) {
                Knows::Yes => same += 1,
                Knows::OtherInode(number) => replaced.push((number, path, seen)),
                Knows::No => {
                    let renamed = hints.paths.get(&folder.absolute(&path)).copied().unwrap_or(false);
                    pending.observe(&path, seen, begun, clock, renamed);
                    unknown.insert(path);
                }
            }
        });
        result.map_err(|error| self.folder_error(&error))?;
        // Files that look the same under other inodes: most of them, and the folder was restored or mounted anew. A few
        // may have been replaced, and their content says whether they were.
        let is_restored = replaced.len() > MOUNT_SUSPECTED_FILES && replaced.len() > same;
        if is_restored {
            tracing::info!(source = %self.name, files = replaced.len(), "the files taken from this folder have other inodes: it was restored or mounted anew");
        }
        for (number, path, seen) in replaced {
            if is_restored {
                self.known.sighted(number, &path, seen.stamp);
            } else {
                self.pending.observe(&path, seen, begun, clock, false);
                unknown.insert(path);
            }
        }
        self.pending.retain(|path| unknown.contains(path));
        self.scanned = true;
        self.note_absence(present);
        let pause = if self.watch.is_some() { RESCAN } else { POLL };
        self.scan_at = begun + pause.max(begun.elapsed() * SCAN_SHARE);
        Ok(())
    }

    pub(super) fn folder_error(&self, error: &io::Error) -> SourceError {
        let path = std::path::absolute(&self.config.path).unwrap_or_else(|_| self.config.path.clone());
        let (name, path, ends) = (&self.name, path.display(), !matches!(self.finish, Finish::NotAsked));
        match error.kind() {
            io::ErrorKind::NotFound if ends => SourceError::Fatal(format!(
                "source {name}: folder {path} does not exist, and `--once` does not wait for it"
            )),
            io::ErrorKind::NotADirectory if ends => SourceError::Fatal(format!(
                "source {name}: {path} is a file, and a directory source reads the files of a folder: set `path` to its \
                 folder, and `include` to its name"
            )),
            _ => self.io(&format!("look into the folder {path} (waiting for it)"), error),
        }
    }

    fn note_absence(&mut self, present: usize) {
        let listed = self.known.len();
        // Where done files go away, there is nothing odd about it.
        self.absent = listed >= MOUNT_SUSPECTED_FILES && present == 0 && self.config.on_done == OnDone::Keep;
        if self.absent && !self.told_absent {
            tracing::warn!(source = %self.name, folder = %self.config.path.display(), listed,
                "none of the files that were taken from this folder is there any more: is it mounted?");
        }
        self.told_absent = self.absent;
    }

    fn keep_watch(&mut self, identity: (u64, u64), board: &Arc<Board>) {
        if !self.started || self.watch.as_ref().is_some_and(|watch| watch.of == identity) {
            return;
        }
        // Another folder in the same place needs a watch of its own.
        self.watch = None;
        match Watch::put(&self.config.path, identity, self.config.recursive, board) {
            Ok(watch) => (self.watch, self.told_watch) = (Some(watch), false),
            Err(error) if !self.told_watch => {
                self.told_watch = true;
                tracing::warn!(source = %self.name, folder = %self.config.path.display(), %error,
                    "the folder cannot be watched: it is scanned every {POLL:?} instead");
            }
            Err(_) => {}
        }
    }

    /// Whether a plan would find something.
    pub(super) fn has_work(&self) -> bool {
        self.head.1 > 0 || self.head.0 < self.known.next() || self.pending.ready_len() > 0
    }

    /// Whether all that `finish` awaits is planned, or gone.
    pub(super) fn is_finished(&mut self) -> bool {
        match &mut self.finish {
            Finish::Awaiting(paths) => {
                let pending = &self.pending;
                paths.retain(|path| pending.has(path));
                paths.is_empty() && !self.has_work()
            }
            _ => false,
        }
    }

    /// When there is something to look at without a hint.
    pub(super) fn next_look(&self) -> Instant {
        self.pending.next_due().map_or(self.scan_at, |due| due.min(self.scan_at))
    }

    pub(super) fn lag(&self) -> (u64, Option<i64>) {
        let (number, offset) = self.head;
        let listed: u64 =
            (number..self.known.next()).filter_map(|n| self.known.get(n)).map(|file| file.stamp.size).sum();
        let waits = |n: u64| {
            let stamp = self.known.get(n)?.stamp;
            (stamp.size > if n == number { offset } else { 0 }).then_some(stamp.mtime_ns)
        };
        let oldest = (number..self.known.next()).filter_map(waits).chain(self.pending.oldest_mtime_ns()).min();
        (listed.saturating_sub(offset) + self.pending.ready_bytes(), oldest)
    }

    pub(super) fn origin(&self) -> Result<Origin, SourceError> {
        let mut files = Vec::new();
        if self.config.start == Start::Latest {
            self.folder
                .walk(&mut |path, seen| files.push((path, seen.stamp)))
                .map_err(|error| self.folder_error(&error))?;
        }
        files.sort_by(|a, b| (a.1.mtime_ns, &a.0).cmp(&(b.1.mtime_ns, &b.0)));
        let skipped = |(path, stamp): (String, Stamp)| FileEntry::of(&path, stamp, None, Role::Skipped).to_line();
        let lines: Vec<String> = files.into_iter().map(skipped).collect();
        let positions = Positions::from([(self.shard.clone(), Position::pair(lines.len() as u64, 0))]);
        let entries = if lines.is_empty() { Default::default() } else { [(self.log.clone(), lines)].into() };
        Ok(Origin { positions, entries })
    }

    pub(super) fn adopt(&mut self, at: &Positions, history: &History) -> Result<Adopted, SourceError> {
        // A source that was renamed goes on under the name that its shard has.
        let name =
            self.formerly.clone().filter(|old| at.contains_key(&ShardId::new(old, ""))).unwrap_or(self.name.clone());
        (self.shard, self.log) = (ShardId::new(&name, ""), log_name(&name));
        let state = history.states.get(&self.log);
        let first = state.map_or(0, |state| state.first);
        let mut entries = Vec::new();
        for entry in history.entries.iter().filter(|entry| entry.log == self.log && entry.number >= first) {
            let parsed = FileEntry::parse(&entry.text).map_err(|error| {
                SourceError::Fatal(format!(
                    "source {}: entry {} of the log {} cannot be read: {error}",
                    self.name, entry.number, self.log
                ))
            })?;
            entries.push(parsed);
        }
        let mut known = Known::new(first, entries);
        let mut adopted = Adopted::default();
        let position = match at.get(&self.shard) {
            Some(position) => position.clone(),
            None => {
                let start = Position::pair(0, 0);
                adopted.new_shards.insert(self.shard.clone(), start.clone());
                start
            }
        };
        let at = self.pair(&position)?;
        if state.is_some_and(|state| state.next != known.next()) || needed(at) > known.next() {
            let (shard, next) = (&self.shard, known.next());
            return Err(self.lost(
                format!("the mark stands at {position}, the list of accepted files ends at {next}"),
                format!(
                    "If the lane was set there by hand, set it back: `tidemill checkpoint rewind --to {shard}={next}:0`. Else the \
                     anchor's log is incomplete: restore the anchor from a backup, or start over with \
                     `tidemill checkpoint reset --sinks`"
                ),
            ));
        }
        let taken = self.taken_from(known.next());
        known.keep_sightings(std::mem::take(&mut self.known));
        self.known = known;
        self.forget_from(needed(at));
        (self.floor, self.head, self.anchored) = (at, at, self.known.next());
        (self.prune, self.adopted, self.done) = (None, true, self.known.first());
        self.in_place.clear();
        self.open.clear();
        self.take_back(taken);
        Ok(adopted)
    }

    /// The files from this number of the list on.
    pub(super) fn taken_from(&self, number: u64) -> Vec<(Arc<str>, Stamp)> {
        let listed = (number..self.known.next()).filter_map(|number| self.known.get(number));
        listed.map(|listed| (listed.path.clone(), listed.stamp)).collect()
    }

    /// Files that are not listed any more stood still before: they need not settle again, and keep their turn.
    pub(super) fn take_back(&mut self, taken: Vec<(Arc<str>, Stamp)>) {
        self.scan_soon();
        for (path, stamp) in taken {
            if let Found::File(seen) = self.folder.look_at(&self.folder.absolute(&path))
                && seen.stamp == stamp
            {
                self.observe(&path, seen, Instant::now(), clock_ns(), true);
            }
        }
    }

    /// Files that were taken back from the list are found again by a scan; `finish` awaits them once more.
    pub(super) fn scan_soon(&mut self) {
        self.scanned = false;
        if matches!(self.finish, Finish::Awaiting(_)) {
            self.finish = Finish::Asked;
        }
    }

    pub(super) fn pair(&self, position: &Position) -> Result<At, SourceError> {
        position.as_pair().ok_or_else(|| {
            SourceError::Fatal(format!(
                "source {}: {position} is no position of a directory, which is `file:offset`",
                self.name
            ))
        })
    }

    pub(super) fn lost(&self, what: String, way_out: String) -> SourceError {
        SourceError::Lost { shard: self.shard.to_string(), what, way_out }
    }

    pub(super) fn measure(&self) -> Lag {
        let (bytes, oldest) = self.lag();
        let age = |mtime| Duration::from_nanos(u64::try_from(clock_ns().saturating_sub(mtime)).unwrap_or(0));
        Lag { records: None, bytes: Some(bytes), oldest: Some(oldest.map_or(Duration::ZERO, age)), spool_bytes: None }
    }
}

/// How many numbers must be listed for a position: a file that is read in part is.
pub(super) fn needed((number, offset): At) -> u64 {
    number + u64::from(offset > 0)
}

pub(super) fn log_name(source: &str) -> LogName {
    LogName::new(&format!("files:{source}"))
}

pub(super) fn clock_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
