//! The accepted list in memory, and what it knows of a file that a scan finds.
//!
//! Numbers are the anchor's: entry `n` of the log `files:<source>`. What a plan has proposed stands here at once; a plan
//! made anew from an earlier position, or `adopt`, takes it back.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{
    entry::{FileEntry, Role},
    hash::ContentHash,
    scan::Stamp,
};

/// One number of the list.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    /// As it was accepted.
    pub path: Arc<str>,
    /// Where it lies now, if it was seen to move.
    pub moved_to: Option<Arc<str>>,
    /// As it was last seen: a touch changes the mtime here, not in the log.
    pub stamp: Stamp,
    pub hash: Option<ContentHash>,
    pub role: Role,
    /// The number before this one with the same hash.
    same_hash: Option<u64>,
}

impl Listed {
    pub(super) fn current_path(&self) -> &Arc<str> {
        self.moved_to.as_ref().unwrap_or(&self.path)
    }
}

#[derive(Debug, Default)]
pub(super) struct Known {
    first: u64,
    listed: VecDeque<Listed>,
    by_path: HashMap<Arc<str>, u64>,
    by_hash: HashMap<ContentHash, u64>,
    by_inode: HashMap<(u64, u64), u64>,
}

impl Known {
    /// The list from `first` on.
    pub(super) fn new(first: u64, entries: impl IntoIterator<Item = FileEntry>) -> Self {
        let mut known = Self { first, ..Self::default() };
        for entry in entries {
            known.push(&entry);
        }
        known
    }

    /// The first number that was not pruned.
    pub(super) fn first(&self) -> u64 {
        self.first
    }
    /// The number that the next accepted file gets.
    pub(super) fn next(&self) -> u64 {
        self.first + self.listed.len() as u64
    }
    /// How many files are listed.
    pub(super) fn len(&self) -> usize {
        self.listed.len()
    }
    pub(super) fn get(&self, number: u64) -> Option<&Listed> {
        self.listed.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }
    fn get_mut(&mut self, number: u64) -> Option<&mut Listed> {
        self.listed.get_mut(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }
    /// All numbers in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Listed)> {
        self.listed.iter().enumerate().map(|(i, listed)| (self.first + i as u64, listed))
    }

    /// Where the records of `number` end, if the file was given up in its midst.
    pub(super) fn cut_of(&self, number: u64) -> Option<u64> {
        match self.get(number + 1)?.role {
            Role::Lost { at } => Some(at),
            _ => None,
        }
    }

    pub(super) fn push(&mut self, entry: &FileEntry) -> u64 {
        let number = self.next();
        let path: Arc<str> = entry.path.as_str().into();
        let same_hash = entry.hash.and_then(|hash| self.by_hash.insert(hash, number));
        if !matches!(entry.role, Role::Lost { .. }) {
            self.by_path.insert(path.clone(), number);
            self.by_inode.insert((entry.dev, entry.ino), number);
        }
        let (stamp, hash, role) = (entry.stamp(), entry.hash, entry.role);
        self.listed.push_back(Listed { path, moved_to: None, stamp, hash, role, same_hash });
        number
    }

    /// Takes back all numbers from `next` on.
    pub(super) fn truncate(&mut self, next: u64) {
        if next < self.next() {
            let keep = usize::try_from(next.saturating_sub(self.first)).unwrap_or(usize::MAX);
            self.listed.truncate(keep);
            self.index();
        }
    }

    /// Forgets all numbers below `first`.
    pub(super) fn prune(&mut self, first: u64) {
        if first > self.first {
            let gone = usize::try_from(first - self.first).unwrap_or(usize::MAX).min(self.listed.len());
            self.listed.drain(..gone);
            self.first += gone as u64;
            self.index();
        }
    }

    /// What was seen of the files of an older list goes on being known, where the entries are the same.
    pub(super) fn keep_sightings(&mut self, old: &Self) {
        for (number, was) in old.iter() {
            if let Some(now) = self.get_mut(number)
                && now.path == was.path
                && now.hash == was.hash
                && now.stamp.size == was.stamp.size
            {
                now.moved_to.clone_from(&was.moved_to);
                now.stamp = was.stamp;
            }
        }
        self.index();
    }

    fn index(&mut self) {
        self.by_path.clear();
        self.by_hash.clear();
        self.by_inode.clear();
        let first = self.first;
        for (number, listed) in (first..).zip(self.listed.iter_mut()) {
            listed.same_hash = listed.hash.and_then(|hash| self.by_hash.insert(hash, number));
            if !matches!(listed.role, Role::Lost { .. }) {
                self.by_path.insert(listed.current_path().clone(), number);
                self.by_inode.insert((listed.stamp.dev, listed.stamp.ino), number);
            }
        }
    }

    /// The last number that this path stands for.
    pub(super) fn at_path(&self, path: &str) -> Option<u64> {
        self.by_path.get(path).copied()
    }

    /// Whether a file at `path` with `stamp` is a listed one, by path, size and mtime.
    pub(super) fn knows(&self, path: &str, stamp: &Stamp) -> bool {
        self.at_path(path).and_then(|number| self.get(number)).is_some_and(|listed| listed.stamp.same_content_as(stamp))
    }

    /// The number that has this very inode, with the same size and mtime: a move, no need to hash.
    pub(super) fn by_inode(&self, stamp: &Stamp) -> Option<u64> {
        let number = *self.by_inode.get(&(stamp.dev, stamp.ino))?;
        self.get(number).filter(|listed| listed.stamp.same_content_as(stamp)).map(|_| number)
    }

    /// All numbers with this content, the latest first.
    pub(super) fn by_hash(&self, hash: ContentHash) -> impl Iterator<Item = u64> {
        std::iter::successors(self.by_hash.get(&hash).copied(), |number| self.get(*number)?.same_hash)
    }

    /// The file of `number` was seen at `path` with `stamp`.
    pub(super) fn sighted(&mut self, number: u64, path: &str, stamp: Stamp) {
        let Some(listed) = self.get_mut(number) else { return };
        let (was_at, was) = (listed.current_path().clone(), listed.stamp);
        let path: Arc<str> = path.into();
        listed.moved_to = (listed.path != path).then(|| path.clone());
        listed.stamp = stamp;
        if was_at != path && self.by_path.get(&was_at) == Some(&number) {
            self.by_path.remove(&was_at);
        }
        self.by_path.insert(path, number);
        if self.by_inode.get(&(was.dev, was.ino)) == Some(&number) {
            self.by_inode.remove(&(was.dev, was.ino));
        }
        self.by_inode.insert((stamp.dev, stamp.ino), number);
    }
}
