//! The ledger in a data dir, kept in sled.
//!
//! The data dir holds `lock`, `id` (its UUID), `ledger/` (sled), `attempts/` and `anchors/` (one file per lane). What is in
//! the ledger of a job whose anchor is a sink can be lost: the marks in the sinks are the truth, so a damaged ledger is set
//! aside as `ledger.damaged-N` and begun anew, with a warning. Where the ledger is itself the anchor of a lane, a
//! [`journal`] in `anchors/` is what is durable, and sled gets from it what it lacks; only where both are damaged is the
//! ledger refused, with the way out.
//!
//! Keys of the ledger: a letter for the kind, then job, lane and log, each ended by a zero byte. Values are JSON.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use self::{
    journal::{Found, Journals, Record, State},
    side::{PerLane, Tries},
    store::{Change, OpenError, Store},
};
use crate::{
    Claim, Digest, Entry, Generation, Held, Lane, LaneKey, Ledger, LogName, Mark, Owner, Permit, Receipt, SinkId,
    ledger::Error,
};

mod journal;
mod side;
mod store;
#[cfg(test)]
mod tests;

/// The format that this program writes and reads.
const FORMAT: u64 = 1;
const FORMAT_KEY: &[u8] = b"format\0";

/// What a key is about.
#[derive(Clone, Copy)]
enum Kind {
    Closed = b'c' as isize,
    Claim = b'k' as isize,
    Mark = b'm' as isize,
    Entry = b'e' as isize,
}
impl Kind {
    const OF_LANES: [Self; 4] = [Self::Closed, Self::Claim, Self::Mark, Self::Entry];
}

/// The ledger of a data dir. Dropping it lets go of the data dir.
pub struct SledLedger {
    // Before the lock: the database is closed first.
    store: Store,
    id: Uuid,
    attempts: PerLane,
    anchors: Journals,
    /// One compare-and-swap at a time.
    swapping: Mutex<()>,
    beat: AtomicU64,
    data_dir: PathBuf,
    _lock: File,
}

impl std::fmt::Debug for SledLedger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledLedger").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

/// A ledger that was opened, and what the operator should know about it.
#[derive(Debug)]
pub struct Opened {
    /// The ledger.
    pub ledger: SledLedger,
    /// Damage that was set aside. Nothing is lost but pointers; each is a sentence.
    pub warnings: Vec<String>,
}

fn key(kind: Kind, parts: &[&str]) -> Vec<u8> {
    let mut key = vec![kind as u8];
    for part in parts {
        key.extend_from_slice(part.as_bytes());
        key.push(0);
    }
    key
}

/// Job and lane of a key.
fn job_and_lane(key: &[u8]) -> Option<(String, Lane)> {
    let mut parts = std::str::from_utf8(key.get(1..)?).ok()?.split('\0');
    Some((parts.next()?.to_owned(), Lane::new(parts.next()?)))
}

fn entry_key(job: &str, lane: &Lane, log: &LogName, number: u64) -> Vec<u8> {
    let mut key = key(Kind::Entry, &[job, lane.as_str(), log.as_str()]);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

fn put<T: Serialize>(key: Vec<u8>, value: &T) -> Change {
    Change::Put(
        key,
        serde_json::to_vec(value).expect("protocol types serialise: they have text keys and no foreign types"),
    )
}

impl SledLedger {
    /// Opens the data dir, or makes it. [`Error::Locked`] where another process has it; [`Error::Corrupt`] where the
    /// ledger was the anchor of a lane and its mark is lost, or was written by a newer program.
    pub fn open(data_dir: &Path) -> Result<Opened, Error> {
        side::folder(data_dir)?;
        let lock = side::lock(data_dir)?;
        let (id, is_new, warning) = side::data_dir_id(data_dir)?;
        let mut warnings: Vec<_> = warning.into_iter().collect();
        let (attempts, anchors) = (PerLane::new(data_dir, "attempts")?, Journals::new(data_dir)?);
        let folder = data_dir.join("ledger");
        let store = open_store(&folder, is_new, &mut warnings)?;
        // sled lets everybody enter the folder that it makes.
        side::close_to_others(&folder);
        let (swapping, beat, data_dir) = (Mutex::new(()), AtomicU64::new(0), data_dir.to_owned());
        let ledger = Self { store, id, attempts, anchors, swapping, beat, data_dir, _lock: lock };
        for found in ledger.anchors.all()? {
            warnings.extend(ledger.agree(found)?);
        }
        Ok(Opened { ledger, warnings })
    }

    /// Brings the journal of a lane and sled to the newer of what they hold. A warning where one was damaged.
    fn agree(&self, found: Found) -> Result<Option<String>, Error> {
        let Found { path, state: journal, is_clean } = found;
        let (job, lane) = match &journal {
            Some(state) => (state.job.clone(), state.lane.clone()),
            // Its name is a digest: the lane is the one of sled's marks that has it.
            None => self
                .lanes_with(Kind::Mark)?
                .into_iter()
                .find(|(job, lane)| self.anchors.path(job, lane) == path)
                .ok_or_else(|| {
                refusal(&path, "its first line is damaged, and the ledger in sled knows no lane of it")
            })?,
        };
        let known = self.state(&job, &lane)?;
        let newer = |state: &State| state.is_whole() && state.seq() >= known.seq();
        match journal.filter(newer) {
            Some(state) if state.mark != known.mark || !known.is_whole() => {
                self.store.write(&self.restored(&known, &state))?;
                if !is_clean {
                    self.anchors.replace(state)?;
                }
                Ok(None)
            }
            // A commit that never returned may have left a torn line.
            Some(state) if !is_clean => self.anchors.replace(state).map(|()| None),
            Some(_) => Ok(None),
            None if known.mark.is_some() && known.is_whole() => {
                self.anchors.replace(known)?;
                Ok(Some(format!("{} was damaged: it is rebuilt from the ledger in sled", path.display())))
            }
            None => Err(refusal(&path, "lines of it are damaged, and the ledger in sled has not got what is missing")),
        }
    }

    /// What sled holds of a lane.
    fn state(&self, job: &str, lane: &Lane) -> Result<State, Error> {
        let (claim, mark) = (self.claim_of(job, lane)?, self.mark(job, lane)?);
        let mut entries = Vec::new();
        for log in mark.iter().flat_map(|mark| &mark.logs) {
            let all = self.entries(job, lane, log.0, log.1.first)?;
            entries.extend(all.into_iter().filter(|entry| entry.number < log.1.next));
        }
        Ok(State { job: job.to_owned(), lane: lane.clone(), claim, mark, entries })
    }

    /// The changes that make sled hold what the journal says.
    fn restored(&self, known: &State, state: &State) -> Vec<Change> {
        let lane = &state.lane;
        let entry_key = |entry: &Entry| entry_key(&state.job, lane, &entry.log, entry.number);
        let mut changes: Vec<_> = known.entries.iter().map(|entry| Change::Remove(entry_key(entry))).collect();
        changes.extend(state.mark.iter().map(|mark| put(key(Kind::Mark, &[&state.job, lane.as_str()]), mark)));
        let claim = known.claim.iter().chain(&state.claim).max_by_key(|claim| claim.generation);
        changes.extend(claim.map(|claim| put(key(Kind::Claim, &[&state.job, lane.as_str()]), claim)));
        changes.extend(state.entries.iter().map(|entry| put(entry_key(entry), entry)));
        changes
    }

    /// Makes a record of a lane durable, before sled has it.
    fn journal(&self, job: &str, lane: &Lane, record: Record) -> Result<(), Error> {
        self.anchors.append(job, lane, record, || self.state(job, lane))
    }

    fn lanes_with(&self, kind: Kind) -> Result<Vec<(String, Lane)>, Error> {
        Ok(self.store.keys(&[kind as u8])?.iter().filter_map(|key| job_and_lane(key)).collect())
    }

    fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, Error> {
        self.store.get(key)?.map(|bytes| self.parse(&bytes)).transpose()
    }

    fn parse<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(bytes).map_err(|error| {
            let at = self.data_dir.display();
            Error::Corrupt(format!(
                "a record of the ledger in {at} cannot be understood: {error}. Way out: move the folder ledger away, \
                 it is rebuilt from the sinks"
            ))
        })
    }

    fn claim_of(&self, job: &str, lane: &Lane) -> Result<Option<Claim>, Error> {
        self.get(&key(Kind::Claim, &[job, lane.as_str()]))
    }
    fn mark(&self, job: &str, lane: &Lane) -> Result<Option<Mark>, Error> {
        self.get(&key(Kind::Mark, &[job, lane.as_str()]))
    }

    fn swap(&self) -> std::sync::MutexGuard<'_, ()> {
        self.swapping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The changes of a commit: the mark, new entries, dropped ones.
    fn changes(&self, job: &str, permit: &Permit) -> Result<Vec<Change>, Error> {
        let (lane, mark) = (&permit.key().lane, permit.mark());
        let mut changes = vec![put(key(Kind::Mark, &[job, lane.as_str()]), mark)];
        for (log, range) in &mark.plan.logs {
            let end = entry_key(job, lane, log, range.first);
            let old = self.store.keys(&key(Kind::Entry, &[job, lane.as_str(), log.as_str()]))?;
            changes.extend(old.into_iter().take_while(|key| *key < end).map(Change::Remove));
        }
        for entry in permit.entries() {
            let kept = mark.logs.get(&entry.log).is_none_or(|log| entry.number >= log.first);
            if kept {
                changes.push(put(entry_key(job, lane, &entry.log, entry.number), entry));
            }
        }
        Ok(changes)
    }
}

fn refusal(journal: &Path, what: &str) -> Error {
    let file = journal.display();
    Error::Corrupt(format!(
        "the journal {file} is damaged ({what}), and no sink can stand in for it: the ledger is the anchor of its lane. Way \
         out: restore the file from a backup; or delete it, the lane then goes on from what the ledger has, or starts over \
         from its `start:`, and sinks get rows twice"
    ))
}

/// Opens the database, or sets it aside and begins a new one.
fn open_store(folder: &Path, is_new: bool, warnings: &mut Vec<String>) -> Result<Store, Error> {
    let was_there = folder.exists();
    let damage = match Store::open(folder) {
        Ok(store) => match format_of(&store)? {
            Some(FORMAT) => return Ok(store),
            Some(newer) => return Err(newer_format(folder, newer)),
            None if store.keys(b"")?.is_empty() => {
                if was_there || !is_new {
                    warnings.push(format!(
                        "the ledger in {} was empty: it is rebuilt from the marks in the sinks, and from the journals of lanes that have none",
                        folder.display()
                    ));
                }
                return begin(folder, store);
            }
            None => "it has no format version".to_owned(),
        },
        Err(OpenError::Other(error)) => return Err(error),
        Err(OpenError::Damaged(what)) => what,
    };
    let aside = side::set_aside(folder)?;
    warnings.push(format!(
        "the ledger in {} was damaged ({damage}): it is set aside as {} and rebuilt from the marks in the sinks",
        folder.display(),
        aside.display()
    ));
    let store = Store::open(folder).map_err(|error| match error {
        OpenError::Damaged(what) => {
            Error::Corrupt(format!("a new ledger in {} does not open: {what}", folder.display()))
        }
        OpenError::Other(error) => error,
    })?;
    begin(folder, store)
}

/// Makes a new database durable: its first record, its files, their folders.
fn begin(folder: &Path, store: Store) -> Result<Store, Error> {
    store.write(&[put(FORMAT_KEY.to_owned(), &FORMAT)])?;
    store.sync()?;
    side::sync_folder(folder)?;
    folder.parent().map_or(Ok(()), side::sync_folder)?;
    Ok(store)
}

fn format_of(store: &Store) -> Result<Option<u64>, Error> {
    Ok(store.get(FORMAT_KEY)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

fn newer_format(folder: &Path, format: u64) -> Error {
    Error::Corrupt(format!(
        "the ledger in {} has format {format}, this program knows format {FORMAT}. Way out: run the newer program, or move the \
         folder away: it is rebuilt from the sinks",
        folder.display()
    ))
}

impl Ledger for SledLedger {
    fn data_dir_id(&self) -> Uuid {
        self.id
    }

    fn attempt(&self, job: &str, lane: &Lane, batch: Digest) -> Result<u32, Error> {
        let before = self.attempts(job, lane)?.filter(|(known, _)| *known == batch).map_or(0, |(_, tries)| tries);
        let tries = Tries { job: job.to_owned(), lane: lane.clone(), batch, tries: before + 1 };
        self.attempts.write(job, lane, &tries)?;
        Ok(tries.tries)
    }

    fn attempts(&self, job: &str, lane: &Lane) -> Result<Option<(Digest, u32)>, Error> {
        // A file that cannot be read counts as absent: it was never promised to survive a power cut.
        let known = self.attempts.read::<Tries>(job, lane)?.flatten();
        Ok(known.map(|tries| (tries.batch, tries.tries)))
    }

    fn settle(&self, job: &str, lane: &Lane) -> Result<(), Error> {
        self.attempts.remove(job, lane)
    }

    fn close(&self, job: &str, head: &Mark) -> Result<(), Error> {
        self.store.write(&[put(key(Kind::Closed, &[job, head.plan.lane.as_str()]), head)])?;
        if *head.anchor() != SinkId::ledger() {
            // The anchor has moved to a sink, which has the head: the ledger can be lost from now on.
            self.anchors.remove(job, &head.plan.lane, false)?;
        }
        self.attempts.remove(job, &head.plan.lane)
    }

    fn closed(&self, job: &str, lane: &Lane) -> Result<Option<Mark>, Error> {
        self.get(&key(Kind::Closed, &[job, lane.as_str()]))
    }

    fn lanes(&self) -> Result<Vec<(String, Lane)>, Error> {
        let mut found = std::collections::BTreeSet::new();
        for kind in [Kind::Closed, Kind::Claim, Kind::Mark] {
            found.extend(self.lanes_with(kind)?);
        }
        found.extend(self.attempts.all::<Tries>()?.into_iter().map(|tries| (tries.job, tries.lane)));
        Ok(found.into_iter().collect())
    }

    fn forget(&self, job: &str, lane: Option<&Lane>) -> Result<(), Error> {
        let _one = self.swap();
        for (known, known_lane) in
            self.lanes()?.into_iter().filter(|(known, l)| known == job && lane.is_none_or(|lane| lane == l))
        {
            // First the promise that the mark is there, then the mark.
            self.anchors.remove(&known, &known_lane, true)?;
            self.attempts.remove(&known, &known_lane)?;
            let mut changes = Vec::new();
            for kind in Kind::OF_LANES {
                changes
                    .extend(self.store.keys(&key(kind, &[job, known_lane.as_str()]))?.into_iter().map(Change::Remove));
            }
            self.store.write(&changes)?;
        }
        self.store.sync()
    }

    fn held(&self, job: &str, lane: &Lane) -> Result<Held, Error> {
        let beat = self.beat.load(Ordering::Relaxed);
        Ok(Held { claim: self.claim_of(job, lane)?, mark: self.mark(job, lane)?, beat })
    }

    fn claim(
        &self,
        job: &str,
        lane: &Lane,
        generation: Generation,
        owner: &Owner,
    ) -> Result<(LaneKey, Option<Mark>), Error> {
        let one = self.swap();
        let held = self.claim_of(job, lane)?.map_or(Generation::default(), |claim| claim.generation);
        if held >= generation {
            return Err(Error::Fenced { lane: lane.clone(), held, mine: generation });
        }
        let claim = Claim { generation, owner: owner.clone(), released: false };
        self.journal(job, lane, Record::Claim(claim.clone()))?;
        self.store.write(&[put(key(Kind::Claim, &[job, lane.as_str()]), &claim)])?;
        let mark = self.mark(job, lane)?;
        drop(one);
        self.beat.fetch_add(1, Ordering::Relaxed);
        Ok((LaneKey { sink: SinkId::ledger(), lane: lane.clone(), generation, owner: owner.clone() }, mark))
    }

    fn entries(&self, job: &str, lane: &Lane, log: &LogName, from: u64) -> Result<Vec<Entry>, Error> {
        let records = self.store.scan(&key(Kind::Entry, &[job, lane.as_str(), log.as_str()]))?;
        let entries = records.iter().map(|(_, value)| self.parse::<Entry>(value)).collect::<Result<Vec<_>, _>>()?;
        Ok(entries.into_iter().filter(|entry| entry.number >= from).collect())
    }

    fn commit(&self, job: &str, permit: &Permit) -> Result<Receipt, Error> {
        let (key, mark) = (permit.key(), permit.mark());
        let _one = self.swap();
        let held = self.claim_of(job, &key.lane)?.map_or(Generation::default(), |claim| claim.generation);
        if held != key.generation {
            return Err(Error::Fenced { lane: key.lane.clone(), held, mine: key.generation });
        }
        let found = self.mark(job, &key.lane)?.map(|mark| mark.digest);
        if found != Some(mark.digest) {
            if found != permit.expected() {
                return Err(Error::Conflict { lane: key.lane.clone(), found, expected: permit.expected() });
            }
            let (mark, entries) = (Box::new(mark.clone()), permit.entries().to_vec());
            self.journal(job, &key.lane, Record::Commit { mark, entries })?;
            self.store.write(&self.changes(job, permit)?)?;
        }
        self.beat.fetch_add(1, Ordering::Relaxed);
        Ok(Receipt::written(permit))
    }

    fn release(&self, job: &str, key: &LaneKey) -> Result<(), Error> {
        let _one = self.swap();
        match self.claim_of(job, &key.lane)? {
            Some(claim) if claim.generation == key.generation => {
                let claim = Claim { released: true, ..claim };
                self.journal(job, &key.lane, Record::Claim(claim.clone()))?;
                self.store.write(&[put(self::key(Kind::Claim, &[job, key.lane.as_str()]), &claim)])
            }
            _ => Ok(()),
        }
    }
}
