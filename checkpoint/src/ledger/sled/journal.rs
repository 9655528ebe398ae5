//! The journals of lanes whose anchor is the ledger: what makes their marks durable.
//!
//! sled does not survive a power cut: with writes gone in any subset its recovery fails now and then, whatever was synced.
//! So each such lane has a file in `anchors/`, one line a record (checksum, then JSON): a commit appends the mark and its
//! new entries and syncs the file, then sled gets the same, lazily. What sled lacks at the next start it gets from here.
//!
//! The first line is the lane as a whole. A journal that has grown long, or whose last append failed, is written anew
//! under another name and renamed. A line that does not fit its checksum is left out: at the end it is a commit that never
//! returned; in the middle it is damage, which shows in entries that the mark counts and nobody has.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::side::{self, failed};
use crate::{Claim, Entry, Lane, LogName, Mark, failpoint::pass, ledger::Error};

/// A journal is written anew once it is this much longer than twice its whole state.
const SLACK_BYTES: u64 = 1 << 20;

/// A lane as the ledger holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) job: String,
    pub(super) lane: Lane,
    pub(super) claim: Option<Claim>,
    pub(super) mark: Option<Mark>,
    /// In order of log and number; those below a log's `first` are dropped.
    pub(super) entries: Vec<Entry>,
}

/// One line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Record {
    Whole(Box<State>),
    Claim(Claim),
    Commit { mark: Box<Mark>, entries: Vec<Entry> },
}

impl State {
    /// The last plan; `None` before the origin.
    pub(super) fn seq(&self) -> Option<u64> {
        self.mark.as_ref().map(|mark| mark.plan.seq)
    }

    /// Whether every entry is there that the mark counts.
    pub(super) fn is_whole(&self) -> bool {
        let count = |log: &LogName| self.entries.iter().filter(|entry| entry.log == *log).count() as u64;
        self.mark.as_ref().is_none_or(|mark| mark.logs.iter().all(|(log, at)| count(log) == at.next - at.first))
    }

    /// The state after a record.
    pub(super) fn apply(&mut self, record: Record) {
        match record {
            Record::Whole(whole) => *self = *whole,
            Record::Claim(claim) => self.claim = Some(claim),
            Record::Commit { mark, entries } => {
                let known = std::mem::take(&mut self.entries).into_iter().chain(entries);
                let by_number: BTreeMap<_, _> = known.map(|entry| ((entry.log.clone(), entry.number), entry)).collect();
                let counted = |entry: &Entry| {
                    mark.logs.get(&entry.log).is_some_and(|log| (log.first..log.next).contains(&entry.number))
                };
                self.entries = by_number.into_values().filter(counted).collect();
                self.mark = Some(*mark);
            }
        }
    }
}

/// What a journal's file says.
pub(super) struct Found {
    pub(super) path: PathBuf,
    /// `None` where the first line cannot be read.
    pub(super) state: Option<State>,
    /// Every line fits its checksum.
    pub(super) is_clean: bool,
}

struct Open {
    file: File,
    length: u64,
    /// The length when it was written anew.
    whole: u64,
}

/// The folder `anchors/`.
pub(super) struct Journals {
    folder: PathBuf,
    open: Mutex<HashMap<PathBuf, Open>>,
}

impl Journals {
    pub(super) fn new(data_dir: &Path) -> Result<Self, Error> {
        let folder = data_dir.join("anchors");
        side::folder(&folder)?;
        Ok(Self { folder, open: Mutex::default() })
    }

    pub(super) fn path(&self, job: &str, lane: &Lane) -> PathBuf {
        self.folder.join(side::file_name(job, lane))
    }

    /// Every journal, in order of their names.
    pub(super) fn all(&self) -> Result<Vec<Found>, Error> {
        let mut found = Vec::new();
        for (path, bytes) in side::files(&self.folder)? {
            let mut is_clean = bytes.ends_with(b"\n");
            let mut state: Option<State> = None;
            for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                match (side::parse::<Record>(line), &mut state) {
                    (Some(Record::Whole(whole)), _) => state = Some(*whole),
                    (Some(record), Some(state)) => state.apply(record),
                    (_, _) => is_clean = false,
                }
            }
            found.push(Found { path, state, is_clean });
        }
        Ok(found)
    }

    /// Appends a record durably. `before` is the lane without it, for a journal that is written anew.
    pub(super) fn append(
        &self,
        job: &str,
        lane: &Lane,
        record: Record,
        before: impl FnOnce() -> Result<State, Error>,
    ) -> Result<(), Error> {
        let path = self.path(job, lane);
        let mut journals = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // A journal whose append fails is not in the map any more: the next record writes it anew.
        let open = journals.remove(&path).filter(|open| open.length < 2 * open.whole + SLACK_BYTES);
        let open = match open {
            Some(open) => add(open, &record).map_err(failed("append to", &path))?,
            None => {
                let mut state = before()?;
                state.apply(record);
                anew(&path, state)?
            }
        };
        journals.insert(path, open);
        Ok(())
    }

    /// Writes a journal anew.
    pub(super) fn replace(&self, state: State) -> Result<(), Error> {
        let path = self.path(&state.job, &state.lane);
        let mut journals = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        journals.remove(&path);
        let open = anew(&path, state)?;
        journals.insert(path, open);
        Ok(())
    }

    /// Removes a journal; `durably` where a power cut must not bring it back.
    pub(super) fn remove(&self, job: &str, lane: &Lane, durably: bool) -> Result<(), Error> {
        let path = self.path(job, lane);
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&path);
        side::remove(&path, durably)
    }
}

fn add(mut open: Open, record: &Record) -> io::Result<Open> {
    let line = side::line(record);
    pass("ledger-journal")?;
    open.file.write_all(line.as_bytes())?;
    pass("ledger-journal-sync")?;
    open.file.sync_data()?;
    open.length += line.len() as u64;
    Ok(open)
}

fn anew(path: &Path, state: State) -> Result<Open, Error> {
    let line = side::line(&Record::Whole(Box::new(state)));
    side::write_durably(path, line.as_bytes())?;
    let file = OpenOptions::new().append(true).open(path).map_err(failed("open", path))?;
    let whole = line.len() as u64;
    Ok(Open { file, length: whole, whole })
}
