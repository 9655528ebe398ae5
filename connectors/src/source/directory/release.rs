//! Releasing: what every sink has is put away as `on_done` says, and its entries are no longer needed.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    path::PathBuf,
};

use tidemill_checkpoint::Positions;
use tidemill_config::model::OnDone;

use super::{
    archive::Archive,
    content::{ContentError, Reached, Room},
    done,
    entry::Role,
    identity::{Problem, is_other_packing},
    known::{Knows, Listed},
    state::{State, needed},
};
use crate::source::{RawBatch, SourceError};

/// Of a file that is read again for nothing but its account, so much is in memory at once.
const AGAIN_BYTES: usize = 8 << 20;
const AGAIN_RECORDS: usize = 1 << 16;

/// Why a file is not put away.
enum Putting {
    Reading(SourceError),
    Moving(io::Error),
}

impl State {
    /// Puts away what every sink has.
    pub(super) fn release(&mut self, reached: &Positions) -> Result<(), SourceError> {
        let Some(position) = reached.get(&self.shard) else { return Ok(()) };
        let reached = self.pair(position)?;
        self.floor = self.floor.max(reached);
        self.anchored = self.anchored.max(needed(reached)).min(self.known.next());
        if let Some((first, to)) = self.prune
            && to <= reached
        {
            self.known.prune(first);
            self.prune = None;
        }
        if self.config.on_done == OnDone::Keep {
            return Ok(());
        }
        let mut changed = BTreeSet::new();
        let mut failed = None;
        let mut done = self.done.max(self.known.first());
        let from = done;
        let needed = self.look_after(from, reached.0)?;
        for number in from..reached.0 {
            let Some(listed) = self.known.get(number).filter(|_| !needed.contains(&number)) else { continue };
            let (path, role) = (listed.current_path().clone(), listed.role);
            let result = match role {
                Role::Read => self.put_away_or_aside(number, &mut changed),
                Role::Skipped | Role::Grown | Role::Known { .. } | Role::Lost { .. } => Ok(()),
            };
            match result {
                Ok(()) if done == number => done = number + 1,
                Ok(()) => {}
                Err(error) => failed = failed.or(Some((path, error))),
            }
        }
        done::sync(&changed).map_err(|error| self.io("sync folders after on_done", &error))?;
        self.done = done;
        self.accounts.retain(|number, _| *number >= done);
        match failed {
            Some((_, Putting::Reading(error))) => Err(error),
            Some((path, Putting::Moving(error))) => Err(self.io(&format!("on_done for {path}"), &error)),
            None => Ok(()),
        }
    }

    /// What `on_done` says, for a file whose bytes are all in rows and dead letters. Another one is never deleted.
    fn put_away_or_aside(&mut self, number: u64, changed: &mut BTreeSet<PathBuf>) -> Result<(), Putting> {
        let account = match self.accounts.get(&number) {
            _ if self.known.cut_of(number).is_some() => Err("its rest was given up"),
            Some(account) => *account,
            None => {
                let account = self.read_again(number).map_err(Putting::Reading)?;
                self.accounts.insert(number, account);
                account
            }
        };
        let aliases = self.known.aliases(number);
        let Some(listed) = self.known.get(number) else { return Ok(()) };
        match account {
            Ok(()) => {
                let put_away = |listed: &Listed, changed: &mut BTreeSet<PathBuf>| {
                    done::put_away(&self.folder, &self.config.on_done, listed, changed).map_err(Putting::Moving)
                };
                // Its second names first: without it they would be other files.
                for alias in aliases {
                    put_away(&listed.also_at(alias), changed)?;
                }
                put_away(listed, changed)
            }
            Err(why) => {
                let aside = done::set_aside(&self.folder, listed, changed).map_err(Putting::Moving)?;
                if let Some(aside) = aside {
                    tracing::warn!(source = %self.name, file = %listed.current_path(), now = %aside.display(),
                        "not all of this file is in rows and dead letters ({why}): on_done does not apply to it, and it was \
                         set aside. Look into its dead letters, correct it, and move it back under another name");
                }
                Ok(())
            }
        }
    }

    /// Reads a file once more, for nothing but to see whether each of its bytes is in a record or a reject: where it was
    /// read before a restart.
    fn read_again(&mut self, number: u64) -> Result<Result<(), &'static str>, SourceError> {
        let mut content = match self.content(number, 0) {
            Ok(content) => content,
            Err(Problem::Source(error)) => return Err(error),
            // Then there is nothing to put away.
            Err(Problem::Gone(_)) => return Ok(Ok(())),
        };
        loop {
            let mut room = Room { records: AGAIN_RECORDS, bytes: AGAIN_BYTES, stop: None };
            match content.pull(&mut room, true, &mut RawBatch::default()) {
                Ok(Reached::At(_)) => {}
                Ok(Reached::End) => break,
                Err(ContentError::Io(error)) => return Err(self.io(&format!("read {}", content.listing.path), &error)),
                Err(ContentError::Changed) => {
                    return Err(self.io(
                        &format!("read {}", content.listing.path),
                        &io::Error::other("the file is being written to"),
                    ));
                }
            }
        }
        Ok(content.account().unwrap_or(Ok(())))
    }

    /// Looks after the files of `[from, to)` before they are put away: one that somebody touched or moved is found, so that
    /// pruning its entry does not make it new. Gives those whose entries are still needed.
    fn look_after(&mut self, from: u64, to: u64) -> Result<HashSet<u64>, SourceError> {
        let mut left: HashMap<u64, Vec<u64>> = HashMap::new();
        let mut needed = HashSet::new();
        for number in from..to {
            let Some(listed) = self.known.get(number).cloned() else { continue };
            let path = listed.current_path();
            let mine = self.known.at_path(path) == Some(number);
            let found = self.folder.stamp(path).map_err(|error| self.io(&format!("look at {path}"), &error))?;
            let gone = match (listed.role, found) {
                (Role::Lost { .. } | Role::Known { .. }, _) => false,
                (_, None) => true,
                (_, Some(stamp)) if mine && stamp.same_content_as(&listed.stamp) && stamp.ino == listed.stamp.ino => {
                    false
                }
                // What was not read (all of it) is not taken away; its entry stays until somebody else does.
                (Role::Skipped | Role::Grown, Some(_)) => !mine,
                (Role::Read, Some(_)) if !mine => true,
                (Role::Read, Some(stamp)) => {
                    let hashed = self.hash_path(path, Some(listed.stamp.size))?;
                    match hashed.filter(|hashed| hashed.prefix == listed.disk_hash()) {
                        Some(hashed) if hashed.all.size == listed.stamp.size => {
                            self.known.sighted(number, path, stamp);
                            false
                        }
                        // It grew: the next plan sees to that.
                        Some(_) if listed.stamp.size > 0 => {
                            needed.insert(number);
                            false
                        }
                        _ => true,
                    }
                }
            };
            if gone {
                left.entry(listed.stamp.size).or_default().push(number);
            } else if matches!(listed.role, Role::Skipped | Role::Grown) {
                needed.insert(number);
            }
        }
        if !left.is_empty() {
            self.find_moved(left)?;
        }
        // What was left alone and only moved is still there.
        for number in from..to {
            let unread =
                self.known.get(number).is_some_and(|listed| matches!(listed.role, Role::Skipped | Role::Grown));
            if unread && !self.has_left(number) {
                needed.insert(number);
            }
        }
        Ok(needed)
    }

    /// Looks for these numbers, by size, in all of the folder.
    fn find_moved(&mut self, mut left: HashMap<u64, Vec<u64>>) -> Result<(), SourceError> {
        let (mut candidates, known) = (Vec::new(), &self.known);
        let listed = left.values().flatten().filter_map(|number| known.get(*number));
        let had_archives = listed.into_iter().any(|listed| Archive::of(&listed.path).is_some());
        let walked = self.folder.walk(&mut |path, seen| {
            let may_be = left.contains_key(&seen.stamp.size) || had_archives || Archive::of(&path).is_some();
            if may_be && known.knows(&path, &seen.stamp) == Knows::No {
                candidates.push((path, seen.stamp));
            }
        });
        walked.map_err(|error| self.folder_error(&error))?;
        for (path, stamp) in candidates {
            let of_size = left.get(&stamp.size).cloned().unwrap_or_default();
            let in_other_packing =
                |number: &u64| self.known.get(*number).is_some_and(|listed| is_other_packing(&listed.path, &path));
            let packed: Vec<u64> = left.values().flatten().copied().filter(in_other_packing).collect();
            if let Some(number) = self.moved_to(&of_size, &packed, &path, stamp)? {
                left.values_mut().for_each(|numbers| numbers.retain(|left| *left != number));
                self.pending.forget(&path);
            }
        }
        Ok(())
    }

    /// Entries below this number are not needed any more.
    pub(super) fn prunable(&self) -> Option<u64> {
        (self.config.on_done != OnDone::Keep && self.done > self.known.first()).then_some(self.done)
    }
}
