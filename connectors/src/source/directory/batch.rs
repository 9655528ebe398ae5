//! What a batch reads: the walk from one position over parts of big files and many small ones, for a plan (forward, up
//! to the budget, taking new files) and for a replay (the same span again).

use std::{io, sync::Arc, time::Instant};

use bytes::Bytes;
use tidemill_checkpoint::{Position, Span};
use tidemill_config::model::{OnChanged, OnDone};

use super::{
    MAX_FILES_PER_BATCH,
    content::{Content, ContentError, Listing, Reached, Room},
    entry::{self, FileEntry, Role},
    identity::{Place, Problem, Taken},
    known::Listed,
    scan::{Found, Stamp},
    state::{At, State, clock_ns, needed},
};
use crate::source::{Budget, Proposal, RawBatch, RawReject, SourceError};

/// A file that changes again and again while it is read is left for later after so many tries.
const MAX_TRIES: usize = 3;
/// Open files kept for the next batch: the plan's, and a replay's or a catch-up's.
const MAX_OPEN: usize = 2;

/// Files looked at in one plan, most of which may turn out to be known.
const MAX_STEPS: usize = 10_000;
/// A batch is not filled up with less than this of another file.
const LEAST_BYTES: usize = 256 * 1024;

/// What a walk has gathered.
struct Draft {
    at: At,
    room: Room,
    /// Up to where: a replay's end, or the head for a sink that catches up.
    limit: Option<At>,
    batch: RawBatch,
    entries: Vec<FileEntry>,
}

impl Draft {
    fn is_empty(&self) -> bool {
        self.batch.slices.is_empty() && self.batch.rejects.is_empty()
    }
    fn is_full(&self) -> bool {
        self.room.records == 0
            || (self.room.bytes == 0 && !self.is_empty())
            || self.entries.len() >= MAX_FILES_PER_BATCH
    }
}

impl State {
    pub(super) fn plan(&mut self, from: At, budget: Budget) -> Result<Option<Proposal>, SourceError> {
        let limit = (from < self.floor).then_some(self.floor);
        let room = Room { records: budget.records.max(1), bytes: budget.bytes.max(1), stop: None };
        let mut draft = Draft { at: from, room, limit, batch: RawBatch::default(), entries: Vec::new() };
        for _ in 0..MAX_STEPS {
            if draft.is_full() || draft.limit.is_some_and(|limit| draft.at >= limit) {
                break;
            }
            let more =
                if draft.at.0 < self.known.next() { self.step_listed(&mut draft) } else { self.step_new(&mut draft) };
            match more {
                Ok(true) => {}
                Ok(false) => break,
                // What was gathered goes first; the next plan begins with the error.
                Err(_) if draft.at > from => break,
                Err(error) => return Err(error),
            }
        }
        if limit.is_none() {
            self.head = draft.at;
        }
        if draft.at == from {
            return Ok(None);
        }
        Ok(Some(self.proposal(from, draft)))
    }

    fn proposal(&mut self, from: At, draft: Draft) -> Proposal {
        let span = Span { from: position(from), to: position(draft.at) };
        let mut proposal = Proposal { spans: [(self.shard.clone(), span)].into(), ..Proposal::default() };
        if !draft.entries.is_empty() {
            proposal.entries.insert(self.log.clone(), draft.entries.iter().map(FileEntry::to_line).collect());
        }
        if draft.limit.is_none()
            && let Some(first) = self.prunable()
        {
            proposal.prune.insert(self.log.clone(), first);
            self.prune = Some((first, draft.at));
        }
        proposal.ahead = Some(Arc::new(draft.batch));
        proposal
    }

    /// Before a plan is made anew: what later plans had listed was never committed. The next look finds these files.
    pub(super) fn take_back_after(&mut self, from: At) {
        if from < self.floor {
            return;
        }
        let keep = needed(from).max(self.anchored);
        if keep < self.known.next() {
            let taken = self.taken_from(keep);
            self.known.truncate(keep);
            self.forget_from(keep);
            self.in_place.clear();
            self.take_back(taken);
        }
        if self.prune.is_some_and(|(_, to)| to > from) {
            self.prune = None;
        }
        let known = &self.known;
        self.open.retain(|content| content.listing.number < known.next());
    }

    /// The records of a span that was planned before.
    pub(super) fn replay(&mut self, from: At, to: At) -> Result<RawBatch, SourceError> {
        let room = Room { records: usize::MAX, bytes: usize::MAX, stop: None };
        let mut draft = Draft { at: from, room, limit: Some(to), batch: RawBatch::default(), entries: Vec::new() };
        if from.0 < self.known.first() || needed(to) > self.known.next() {
            let (first, next) = (self.known.first(), self.known.next());
            let what = format!(
                "the files of {} to {} are to be read, the list has {first} to {next}",
                position(from),
                position(to)
            );
            return Err(self.lost(what, self.way_out(to)));
        }
        while draft.at < to {
            let before = draft.at;
            self.step_listed(&mut draft)?;
            if draft.at == before {
                return Err(self.lost(format!("nothing can be read at {}", position(before)), self.way_out(to)));
            }
        }
        Ok(draft.batch)
    }

    /// One number of the list.
    fn step_listed(&mut self, draft: &mut Draft) -> Result<bool, SourceError> {
        let (number, offset) = draft.at;
        let Some(listed) = self.known.get(number) else {
            let what = format!("file {number} is not in the list, which begins with {}", self.known.first());
            return Err(self.lost(what, self.way_out((number + 1, 0))));
        };
        let path = listed.path.clone();
        match listed.role {
            Role::Skipped | Role::Known { .. } => {}
            Role::Read if self.known.cut_of(number).is_some_and(|cut| offset >= cut) => {}
            Role::Read => return self.read_listed(draft),
            Role::Grown => {
                let detail = format!("{path}: the file was taken before and grew since; what was added is not read");
                self.reject_file(draft, &path, detail);
            }
            Role::Lost { at } => {
                let detail = format!(
                    "{path}: the file changed or vanished while it was read; its rest from offset {at} on is lost"
                );
                self.reject_file(draft, &path, detail);
            }
        }
        draft.at = (number + 1, 0);
        Ok(true)
    }

    fn reject_file(&self, draft: &mut Draft, path: &str, detail: String) {
        let record = Bytes::copy_from_slice(path.as_bytes());
        let (shard, position, metadata) = (self.shard.clone(), position(draft.at), vec![("file", path.to_owned())]);
        draft.batch.rejects.push(RawReject {
            shard,
            position,
            reason: "changed_file".into(),
            detail,
            record,
            metadata,
        });
        draft.room.records = draft.room.records.saturating_sub(1);
    }

    fn read_listed(&mut self, draft: &mut Draft) -> Result<bool, SourceError> {
        let (number, offset) = draft.at;
        let cut = self.known.cut_of(number);
        let limit = draft.limit.filter(|limit| limit.0 == number).map(|limit| limit.1);
        draft.room.stop = match (cut, limit) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        for _ in 0..MAX_TRIES {
            let mut content = match self.content(number, offset) {
                Ok(content) => content,
                Err(Problem::Source(error)) => return Err(error),
                Err(Problem::Gone(what)) => return self.give_up(draft, what),
            };
            let Some(reached) = self.pull(&mut content, draft)? else { continue };
            draft.at = match (reached, limit) {
                (Reached::End, Some(limit)) if content.offset() < limit => {
                    return self.give_up(draft, "its content is shorter than it was".to_owned());
                }
                // A replay ends where its plan ended, the end of the file or not.
                (Reached::End, Some(limit)) => (number, limit),
                (Reached::End, None) => {
                    self.note_end(draft, number, &content);
                    (self.after(draft, number), 0)
                }
                (Reached::At(at), _) if cut.is_some_and(|cut| at >= cut) => (number + 1, 0),
                (Reached::At(at), _) => (number, at),
            };
            if matches!(reached, Reached::At(_)) {
                self.keep_open(content);
            }
            // The next record may not fit into what is left.
            return Ok(draft.at != (number, offset));
        }
        let path = self.known.get(number).map(|listed| listed.current_path().to_string()).unwrap_or_default();
        Err(self.io(&format!("read {path}"), &io::Error::other("the file is being written to")))
    }

    /// Reads on in `content`. `None`: the file changed meanwhile, nothing was taken.
    fn pull(&mut self, content: &mut Content, draft: &mut Draft) -> Result<Option<Reached>, SourceError> {
        let (slices, rejects, room) = (draft.batch.slices.len(), draft.batch.rejects.len(), draft.room);
        let must = draft.is_empty();
        let result = content.pull(&mut draft.room, must, &mut draft.batch);
        let unchanged = content.is_unchanged();
        let undo = |draft: &mut Draft| {
            draft.batch.slices.truncate(slices);
            draft.batch.rejects.truncate(rejects);
            draft.room = room;
        };
        match (result, unchanged) {
            (Ok(reached), Ok(true)) => Ok(Some(reached)),
            (Err(ContentError::Io(error)), _) | (Ok(_), Err(error)) => {
                undo(draft);
                Err(self.io(&format!("read {}", content.listing.path), &error))
            }
            _ => {
                undo(draft);
                Ok(None)
            }
        }
    }

    fn keep_open(&mut self, content: Content) {
        if self.lines.len() >= 4 * MAX_OPEN {
            self.lines.remove(0);
        }
        self.lines.push((content.listing.number, content.offset(), content.lines()));
        if self.open.len() >= MAX_OPEN {
            self.open.remove(0);
        }
        self.open.push(content);
    }

    /// A listed file at a border, from the open ones or opened anew.
    pub(super) fn content(&mut self, number: u64, offset: u64) -> Result<Content, Problem> {
        let Place { path, stamp, archive, size } = self.locate(number)?;
        let open = self.open.iter().position(|open| open.listing.number == number && open.offset() == offset);
        if let Some(content) = open.map(|index| self.open.remove(index))
            && *content.stamp() == stamp
        {
            return Ok(content);
        }
        let failed = |state: &Self, error: &io::Error| Problem::Source(state.io(&format!("read {path}"), error));
        let file = self.folder.open(&path).map_err(|error| failed(self, &error))?;
        let stamp = file.metadata().map(|meta| Stamp::of(&meta)).map_err(|error| failed(self, &error))?;
        let Some(listed) = self.known.get(number) else { return Err(Problem::Gone("it is not listed".to_owned())) };
        let listing = self.listing(number, &listed.path, &Place { path: path.clone(), stamp, archive, size });
        let mut content =
            Content::open(listing, file, stamp, &self.codec, &self.buffers).map_err(|error| failed(self, &error))?;
        if self.config.on_done == OnDone::Keep && self.known.lacks_content(number) {
            content.digest();
        }
        let lines = self.lines.iter().find(|(n, at, _)| (*n, *at) == (number, offset)).map(|(_, _, lines)| *lines);
        match content.skip_to(offset, lines) {
            Ok(()) => Ok(content),
            Err(ContentError::Io(error)) => Err(failed(self, &error)),
            Err(ContentError::Changed) => Err(Problem::Gone(format!("{path} has no offset {offset} any more"))),
        }
    }

    pub(super) fn listing(&self, number: u64, path: &Arc<str>, place: &Place) -> Listing {
        let (archive, size) = (place.archive, place.size);
        Listing { shard: self.shard.clone(), number, path: path.clone(), archive, size }
    }

    /// A plan has read a file to its end: whether all its bytes are accounted for, and what it unpacks to.
    fn note_end(&mut self, draft: &mut Draft, number: u64, content: &Content) {
        if self.config.on_done != OnDone::Keep {
            if let Some(account) = content.account() {
                self.accounts.insert(number, account);
            }
            return;
        }
        let is_last = draft.limit.is_none() && number + 1 == self.known.next();
        if !is_last || draft.entries.len() >= MAX_FILES_PER_BATCH || !self.known.lacks_content(number) {
            return;
        }
        let (Some(digests), Some(listed)) = (content.digests(), self.known.get(number)) else { return };
        let content = entry::Content::unpacked(&digests);
        let known = FileEntry::of(listed.current_path(), listed.stamp, listed.disk_hash(), Role::Known { of: number });
        self.list(draft, FileEntry { content, ..known });
    }

    /// The number that comes after `number` and what was just found out about it.
    fn after(&self, draft: &Draft, number: u64) -> u64 {
        let is_known = |listed: &Listed| listed.role == Role::Known { of: number };
        let is_new = draft.limit.is_none() && self.known.get(number + 1).is_some_and(is_known);
        number + 1 + u64::from(is_new)
    }

    /// Numbers from this one on stand for other files from now on.
    pub(super) fn forget_from(&mut self, number: u64) {
        self.accounts.retain(|known, _| *known < number);
        self.lines.retain(|(known, _, _)| *known < number);
    }

    /// The rest of a listed file cannot be had.
    fn give_up(&mut self, draft: &mut Draft, what: String) -> Result<bool, SourceError> {
        let (number, offset) = draft.at;
        let ahead = draft.limit.is_none() && number + 1 == self.known.next();
        if !ahead || self.config.on_changed == OnChanged::Fail {
            return Err(self.lost(format!("{what}; it was read up to offset {offset}"), self.way_out((number + 1, 0))));
        }
        let Some(listed) = self.known.get(number) else { return Ok(false) };
        let path = listed.path.to_string();
        tracing::warn!(source = %self.name, file = %path, offset, "{what}: the rest of the file is given up");
        let entry = FileEntry::of(&path, Stamp::default(), None, Role::Lost { at: offset });
        self.known.push(&entry);
        draft.entries.push(entry);
        draft.at = (number + 1, 0);
        self.step_listed(draft)
    }

    fn way_out(&self, next: At) -> String {
        format!(
            "Put the file back as it was, or go on at {} without it: `tidemill checkpoint resolve --shard {} --accept-loss`",
            position(next),
            self.shard
        )
    }

    /// The next file that is not listed. False: there is none.
    fn step_new(&mut self, draft: &mut Draft) -> Result<bool, SourceError> {
        if draft.limit.is_some() {
            return Ok(false);
        }
        let Some((path, stamp)) = self.pending.first() else { return Ok(false) };
        let least = usize::try_from(stamp.size).unwrap_or(usize::MAX).min(LEAST_BYTES);
        if !draft.is_empty() && draft.room.bytes < least {
            return Ok(false);
        }
        self.check_mount()?;
        match self.take(&path, stamp)? {
            Taken::Settled => {}
            Taken::Grown(entry, listed) => {
                if self.config.on_changed == OnChanged::Fail {
                    let what = format!("{path} grew from {listed} to {} bytes after it was taken", entry.size);
                    let way_out =
                        "Cut it back and put what was added into a new file, or set `on_changed: dead_letter`";
                    return Err(self.lost(what, way_out.to_owned()));
                }
                self.list(draft, entry);
                // An entry must be reached by the plan that brings it.
                return self.step_listed(draft);
            }
            Taken::Known(entry) => {
                self.list(draft, entry);
                return self.step_listed(draft);
            }
            Taken::New(entry, mut content) => {
                draft.room.stop = None;
                match self.pull(&mut content, draft) {
                    Ok(Some(reached)) => {
                        let number = self.list(draft, entry);
                        draft.at = match reached {
                            Reached::End => {
                                self.note_end(draft, number, &content);
                                (self.after(draft, number), 0)
                            }
                            // Nothing of it fitted: it is listed, and read from its beginning next.
                            Reached::At(offset) => (number, offset),
                        };
                        if matches!(reached, Reached::At(0)) {
                            self.unlist(draft, number);
                            return Ok(false);
                        }
                        if draft.at.0 == number {
                            self.keep_open(*content);
                        }
                    }
                    Ok(None) => self.look_again(&path),
                    Err(error) => self.set_aside(&path, &error.to_string()),
                }
            }
        }
        Ok(true)
    }

    fn list(&mut self, draft: &mut Draft, entry: FileEntry) -> u64 {
        self.pending.forget(&entry.path);
        let number = self.known.push(&entry);
        draft.entries.push(entry);
        number
    }

    /// A file of which nothing fitted into the batch is the next one's.
    fn unlist(&mut self, draft: &mut Draft, number: u64) {
        self.known.truncate(number);
        draft.at = (number, 0);
        if let Some(entry) = draft.entries.pop()
            && let Found::File(seen) = self.folder.look_at(&self.folder.absolute(&entry.path))
            && seen.stamp == entry.stamp()
        {
            self.pending.observe(&entry.path, seen, Instant::now(), clock_ns(), true);
        } else {
            self.scan_soon();
        }
    }

    pub(super) fn set_aside(&mut self, path: &str, cause: &str) {
        tracing::warn!(source = %self.name, file = %path, cause, "this file cannot be read now; it is tried again, the others go on");
        self.pending.set_aside(path, cause.to_owned(), Instant::now());
    }

    pub(super) fn look_again(&mut self, path: &str) {
        self.pending.forget(path);
        if let Found::File(seen) = self.folder.look_at(&self.folder.absolute(path)) {
            self.observe(path, seen, Instant::now(), clock_ns(), false);
        }
    }
}

pub(super) fn position((number, offset): At) -> Position {
    Position::pair(number, offset)
}
