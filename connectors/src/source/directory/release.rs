//! Releasing: what every sink has is put away as `on_done` says, and its entries are no longer needed.

use std::collections::{BTreeSet, HashMap, HashSet};

use tidemill_checkpoint::Positions;
use tidemill_config::model::OnDone;

use super::{
    done,
    entry::Role,
    state::{State, needed},
};
use crate::source::SourceError;

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
            let result = match listed.role {
                Role::Read => done::put_away(&self.folder, &self.config.on_done, listed, &mut changed),
                Role::Skipped | Role::Grown | Role::Lost { .. } => Ok(()),
            };
            match result {
                Ok(()) if done == number => done = number + 1,
                Ok(()) => {}
                Err(error) => failed = failed.or(Some((listed.current_path().clone(), error))),
            }
        }
        done::sync(&changed).map_err(|error| self.io("sync folders after on_done", &error))?;
        self.done = done;
        match failed {
            Some((path, error)) => Err(self.io(&format!("on_done for {path}"), &error)),
            None => Ok(()),
        }
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
                (Role::Lost { .. }, _) => false,
                (_, None) => true,
                (_, Some(stamp)) if mine && stamp.same_content_as(&listed.stamp) => false,
                // What was not read (all of it) is not taken away; its entry stays until somebody else does.
                (Role::Skipped | Role::Grown, Some(_)) => !mine,
                (Role::Read, Some(_)) if !mine => true,
                (Role::Read, Some(stamp)) => {
                    let hashed = self.hash_path(path, Some(listed.stamp.size))?;
                    match hashed.filter(|hashed| hashed.prefix == listed.hash) {
                        Some(hashed) if hashed.size == listed.stamp.size => {
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
        let walked = self.folder.walk(&mut |path, seen| {
            if left.contains_key(&seen.stamp.size) && !known.knows(&path, &seen.stamp) {
                candidates.push((path, seen.stamp));
            }
        });
        walked.map_err(|error| self.folder_error(&error))?;
        for (path, stamp) in candidates {
            let Some(numbers) = left.get_mut(&stamp.size) else { continue };
            let by_inode =
                numbers.iter().position(|number| self.known.get(*number).is_some_and(|listed| listed.stamp == stamp));
            let found = match by_inode {
                Some(index) => Some(index),
                None => {
                    let whole = self.hash_path(&path, None)?.map(|hashed| hashed.whole);
                    let same = |number: &u64| {
                        self.known.get(*number).is_some_and(|listed| listed.hash.is_some() && listed.hash == whole)
                    };
                    numbers.iter().position(same)
                }
            };
            if let Some(index) = found {
                self.known.sighted(numbers.swap_remove(index), &path, stamp);
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
