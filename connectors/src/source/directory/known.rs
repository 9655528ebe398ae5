//! The accepted list in memory, and what it knows of a file that a scan finds.
//!
//! Numbers are the anchor's: entry `n` of the log `files:<source>`. What a plan has proposed stands here at once; a plan
//! made anew from an earlier position, or `adopt`, takes it back.
//!
//! Kept small, since a folder may have millions of files and each is here: an index holds places in the list and nothing
//! else, and what few files have is in a box of its own. `docs/sources/directory.md` says how many bytes a file takes; a
//! test holds that.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use hashbrown::HashTable;

use super::{
    archive::Archive,
    entry::{Content, FileEntry, Role},
    hash::{BLOCK_BYTES, ContentHash, Digests},
    scan::Stamp,
};

/// No place in the list.
const NOWHERE: u32 = u32::MAX;
/// The list grows by this part of itself: doubling it would leave half of the memory unused.
const GROWTH_PART: usize = 8;
/// And by so many at least.
const GROWTH_LEAST: usize = 64;

/// One number of the list.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    /// As it was accepted.
    pub path: Arc<str>,
    /// Where and how it lies now, if that is not as it was accepted.
    now: Option<Box<Now>>,
    /// As it was last seen: a touch changes the mtime here, not in the log.
    pub stamp: Stamp,
    /// Of the bytes on disk, as they were accepted.
    pub hash: Option<ContentHash>,
    /// Where more is known than `hash`.
    content: Option<Box<Content>>,
    pub role: Role,
    /// The places before this one with the same hash, and the same chain.
    same_hash: u32,
    same_chain: u32,
}

#[derive(Clone, Debug)]
struct Now {
    path: Arc<str>,
    /// Compressed, or unpacked, since it was accepted: the hash of the bytes on disk now.
    repacked: Option<ContentHash>,
}

impl Listed {
    pub(super) fn current_path(&self) -> &Arc<str> {
        self.now.as_ref().map_or(&self.path, |now| &now.path)
    }

    /// The same file under a second name of it.
    pub(super) fn also_at(&self, alias: Arc<str>) -> Self {
        let repacked = self.now.as_ref().and_then(|now| now.repacked);
        Self { now: Some(Box::new(Now { path: alias.clone(), repacked })), path: alias, ..self.clone() }
    }

    /// Whether its bytes on disk are others than those that were accepted, though they unpack to the same content.
    pub(super) fn is_repacked(&self) -> bool {
        self.now.as_ref().is_some_and(|now| now.repacked.is_some())
    }

    /// Of the bytes on disk now.
    pub(super) fn disk_hash(&self) -> Option<ContentHash> {
        self.now.as_ref().and_then(|now| now.repacked).or(self.hash)
    }

    /// The chained digest of its content, where it is known and not `hash` itself.
    fn chain(&self) -> Option<ContentHash> {
        self.content.as_ref().and_then(|content| content.chain)
    }

    /// The hash of its content, where that is the hash of its bytes.
    fn plain_hash(&self) -> Option<ContentHash> {
        self.hash.filter(|_| Archive::of(&self.path).is_none())
    }

    /// Whether its unpacked content is this one.
    pub(super) fn has_content(&self, content: &Digests) -> bool {
        self.plain_hash() == Some(content.whole) || self.chain() == Some(content.chain)
    }

    /// Whether its content may begin with this head: it does, or nobody knows.
    pub(super) fn may_begin_with(&self, head: ContentHash) -> bool {
        match self.head() {
            Head::Is(own) => own == head,
            Head::Unknown => true,
            Head::Useless => false,
        }
    }

    fn head(&self) -> Head {
        if self.role != Role::Read {
            return Head::Useless;
        }
        if let Some(head) = self.content.as_ref().and_then(|content| content.head) {
            return Head::Is(head);
        }
        match self.plain_hash() {
            Some(hash) if self.stamp.size <= BLOCK_BYTES as u64 => Head::Is(hash),
            Some(_) => Head::Unknown,
            // Nothing could be compared.
            None => Head::Useless,
        }
    }
}

enum Head {
    Is(ContentHash),
    /// Of a file that an earlier version listed.
    Unknown,
    /// Of a number that no file can have the content of, as far as is known.
    Useless,
}

/// Whether a file is a listed one, by its path, size, mtime and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Knows {
    No,
    Yes,
    /// All but the inode: it was replaced by one that looks alike, or its folder was restored.
    OtherInode(u64),
}

#[derive(Debug, Default)]
pub(super) struct Known {
    first: u64,
    listed: VecDeque<Listed>,
    /// Places in `listed`, by current path, and so on: the last one for each key.
    by_path: HashTable<u32>,
    by_hash: HashTable<u32>,
    by_chain: HashTable<u32>,
    by_inode: HashTable<u32>,
    /// The first place with each head.
    by_head: HashTable<u32>,
    unknown_heads: usize,
    /// Second names (links) of files that lie in their places.
    aliases: HashMap<Arc<str>, u64>,
    keys: RandomState,
}

impl Known {
    /// The list from `first` on.
    pub(super) fn new(first: u64, entries: Vec<FileEntry>) -> Self {
        let mut known = Self { first, ..Self::default() };
        known.listed.reserve_exact(entries.len());
        for entry in &entries {
            known.push(entry);
        }
        known
    }

    /// What it takes in memory, as an allocator counts it.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let boxed = |size: usize| size.next_multiple_of(16) + 16;
        let own = |listed: &Listed| {
            let now = listed.now.as_ref().map_or(0, |now| boxed(size_of::<Now>()) + boxed(16 + now.path.len()));
            let content = listed.content.as_ref().map_or(0, |_| boxed(size_of::<Content>()));
            boxed(16 + listed.path.len()) + now + content
        };
        let tables = [&self.by_path, &self.by_hash, &self.by_chain, &self.by_inode, &self.by_head];
        self.listed.capacity() * size_of::<Listed>()
            + self.listed.iter().map(own).sum::<usize>()
            + tables.map(HashTable::allocation_size).iter().sum::<usize>()
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
    fn place(&self, number: u64) -> u32 {
        number.checked_sub(self.first).and_then(|place| u32::try_from(place).ok()).unwrap_or(NOWHERE)
    }
    fn number(&self, place: u32) -> u64 {
        self.first + u64::from(place)
    }

    /// Where the records of `number` end, if the file was given up in its midst.
    pub(super) fn cut_of(&self, number: u64) -> Option<u64> {
        match self.get(number + 1)?.role {
            Role::Lost { at } => Some(at),
            _ => None,
        }
    }

    /// Whether this number is an archive of which nobody knows what it unpacks to.
    pub(super) fn lacks_content(&self, number: u64) -> bool {
        let lacks = |listed: &Listed| listed.plain_hash().is_none() && listed.chain().is_none();
        self.get(number).is_some_and(|listed| listed.role == Role::Read && lacks(listed))
    }

    pub(super) fn push(&mut self, entry: &FileEntry) -> u64 {
        let number = self.next();
        if let Role::Known { of } = entry.role {
            self.learn(of, entry);
        }
        if self.listed.len() == self.listed.capacity() {
            self.listed.reserve_exact(GROWTH_LEAST.max(self.listed.len() / GROWTH_PART));
        }
        self.listed.push_back(Listed {
            path: entry.path.as_str().into(),
            now: None,
            stamp: entry.stamp(),
            hash: entry.hash,
            content: (entry.content != Content::default()).then(|| Box::new(entry.content)),
            role: entry.role,
            same_hash: NOWHERE,
            same_chain: NOWHERE,
        });
        self.index_one(self.place(number));
        number
    }

    /// An entry of the list says where an earlier file lies, or what its content is.
    fn learn(&mut self, of: u64, entry: &FileEntry) {
        let repacked = entry.hash.filter(|hash| self.get(of).is_some_and(|listed| listed.hash != Some(*hash)));
        self.sighted_as(of, &entry.path, entry.stamp(), repacked);
        self.set_content(of, entry.content);
    }

    /// More is known of a file's content.
    pub(super) fn set_content(&mut self, number: u64, content: Content) {
        let place = self.place(number);
        let Some(listed) = self.get_mut(number) else { return };
        let is_known = listed.content.as_ref().is_some_and(|content| content.chain.is_some());
        if content == Content::default() || is_known {
            return;
        }
        listed.content = Some(Box::new(content));
        self.index_content(place);
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
    pub(super) fn keep_sightings(&mut self, old: Self) {
        for (number, was) in old.iter() {
            if let Some(now) = self.get_mut(number)
                && now.path == was.path
                && now.role == was.role
                && now.hash == was.hash
                && (now.hash.is_some() || now.stamp.size == was.stamp.size)
            {
                now.now.clone_from(&was.now);
                now.stamp = was.stamp;
                if now.content.is_none() {
                    now.content.clone_from(&was.content);
                }
            }
        }
        let next = self.next();
        self.aliases = old.aliases;
        self.aliases.retain(|_, number| *number < next);
        self.index();
    }

    fn index(&mut self) {
        for table in [&mut self.by_path, &mut self.by_hash, &mut self.by_chain, &mut self.by_inode, &mut self.by_head] {
            table.clear();
        }
        self.unknown_heads = 0;
        let (first, next) = (self.first, self.next());
        self.aliases.retain(|_, number| (first..next).contains(number));
        for place in 0..self.listed.len() {
            self.index_one(u32::try_from(place).unwrap_or(NOWHERE));
        }
    }

    fn index_one(&mut self, place: u32) {
        let Self { listed, by_path, by_hash, by_inode, keys, .. } = self;
        let at = place as usize;
        // What these stand for lies nowhere, or under another number.
        if !matches!(listed[at].role, Role::Lost { .. } | Role::Known { .. }) {
            put(
                by_path,
                place,
                |p| key_of_path(keys, listed, p),
                |a, b| listed[a].current_path() == listed[b].current_path(),
            );
            put(
                by_inode,
                place,
                |p| key_of_inode(keys, listed, p),
                |a, b| listed[a].stamp.same_inode_as(&listed[b].stamp),
            );
            if listed[at].hash.is_some() {
                let key = |p: usize| listed[p].hash.map_or(0, |hash| hash.short());
                let before = put(by_hash, place, key, |a, b| listed[a].hash == listed[b].hash);
                listed[at].same_hash = before.unwrap_or(NOWHERE);
            }
            self.index_content(place);
        }
    }

    fn index_content(&mut self, place: u32) {
        let Self { listed, by_chain, by_head, .. } = self;
        let at = place as usize;
        if listed[at].role != Role::Read {
            return;
        }
        if listed[at].chain().is_some() {
            let key = |p: usize| listed[p].chain().map_or(0, |chain| chain.short());
            let before = put(by_chain, place, key, |a, b| listed[a].chain() == listed[b].chain());
            listed[at].same_chain = before.filter(|before| *before != place).unwrap_or(NOWHERE);
        }
        match listed[at].head() {
            Head::Is(head) => {
                let is_head = |p: usize| matches!(listed[p].head(), Head::Is(other) if other == head);
                if by_head.find(head.short(), |p| is_head(*p as usize)).is_none() {
                    let key = |p: &u32| match listed[*p as usize].head() {
                        Head::Is(head) => head.short(),
                        _ => 0,
                    };
                    by_head.insert_unique(head.short(), place, key);
                }
            }
            Head::Unknown => self.unknown_heads += 1,
            Head::Useless => {}
        }
    }

    /// Whether some listed file's content may begin with this head.
    pub(super) fn may_begin_with(&self, head: ContentHash) -> bool {
        let is_head = |place: &u32| matches!(self.listed[*place as usize].head(), Head::Is(other) if other == head);
        self.unknown_heads > 0 || self.by_head.find(head.short(), is_head).is_some()
    }

    /// The last number that this path stands for.
    pub(super) fn at_path(&self, path: &str) -> Option<u64> {
        let key = self.keys.hash_one(path);
        let place = self.by_path.find(key, |place| &**self.listed[*place as usize].current_path() == path)?;
        Some(self.number(*place))
    }

    /// Whether a file at `path` with `stamp` is a listed one.
    pub(super) fn knows(&self, path: &str, stamp: &Stamp) -> Knows {
        if let Some(number) = self.at_path(path)
            && let Some(listed) = self.get(number)
            && listed.stamp.same_content_as(stamp)
        {
            // Lists of old may have no inodes.
            let is_same = listed.stamp.ino == stamp.ino || listed.stamp.ino == 0;
            return if is_same { Knows::Yes } else { Knows::OtherInode(number) };
        }
        let alias = self.aliases.get(path).and_then(|number| self.get(*number));
        if alias.is_some_and(|listed| listed.stamp == *stamp) { Knows::Yes } else { Knows::No }
    }

    /// The last number that has this very inode, whatever became of its content.
    pub(super) fn at_inode(&self, stamp: &Stamp) -> Option<u64> {
        let key = self.keys.hash_one((stamp.dev, stamp.ino));
        let place = self.by_inode.find(key, |place| self.listed[*place as usize].stamp.same_inode_as(stamp))?;
        Some(self.number(*place))
    }

    /// The number that has this very inode, with the same size and mtime: a move, no need to hash.
    pub(super) fn by_inode(&self, stamp: &Stamp) -> Option<u64> {
        let number = self.at_inode(stamp)?;
        self.get(number).filter(|listed| listed.stamp.same_content_as(stamp)).map(|_| number)
    }

    /// All numbers whose bytes were accepted with this hash, the latest first.
    pub(super) fn by_hash(&self, hash: ContentHash) -> impl Iterator<Item = u64> {
        let last = self.by_hash.find(hash.short(), |place| self.listed[*place as usize].hash == Some(hash)).copied();
        std::iter::successors(last, |place| {
            Some(self.listed[*place as usize].same_hash).filter(|before| *before != NOWHERE)
        })
        .map(|place| self.number(place))
    }

    /// All numbers with this content, however it was packed.
    pub(super) fn by_content(&self, content: &Digests) -> Vec<u64> {
        let chain = content.chain;
        let last =
            self.by_chain.find(chain.short(), |place| self.listed[*place as usize].chain() == Some(chain)).copied();
        let before = |place: &u32| Some(self.listed[*place as usize].same_chain).filter(|before| *before != NOWHERE);
        let mut numbers: Vec<u64> = std::iter::successors(last, before).map(|place| self.number(place)).collect();
        numbers.extend(self.by_hash(content.whole));
        numbers.retain(|number| {
            self.get(*number).is_some_and(|listed| listed.role == Role::Read && listed.has_content(content))
        });
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        numbers.dedup();
        numbers
    }

    /// The file of `number` was seen at `path` with `stamp`, packed as before.
    pub(super) fn sighted(&mut self, number: u64, path: &str, stamp: Stamp) {
        let repacked = self.get(number).and_then(|listed| listed.now.as_ref()).and_then(|now| now.repacked);
        self.sighted_as(number, path, stamp, repacked);
    }

    /// The file of `number` was seen at `path` with `stamp`: as it was accepted, or with other bytes that unpack to the same.
    pub(super) fn sighted_as(&mut self, number: u64, path: &str, stamp: Stamp, repacked: Option<ContentHash>) {
        let place = self.place(number);
        let Self { listed, by_path, by_inode, keys, .. } = self;
        if listed.get(place as usize).is_none() {
            return;
        }
        let forget = |table: &mut HashTable<u32>, key: u64| {
            if let Ok(entry) = table.find_entry(key, |found| *found == place) {
                entry.remove();
            }
        };
        forget(by_path, key_of_path(keys, listed, place as usize));
        forget(by_inode, key_of_inode(keys, listed, place as usize));
        let file = &mut listed[place as usize];
        let is_as_accepted = repacked.is_none() && *file.path == *path;
        file.now = (!is_as_accepted).then(|| Box::new(Now { path: path.into(), repacked }));
        file.stamp = stamp;
        put(
            by_path,
            place,
            |p| key_of_path(keys, listed, p),
            |a, b| listed[a].current_path() == listed[b].current_path(),
        );
        put(by_inode, place, |p| key_of_inode(keys, listed, p), |a, b| listed[a].stamp.same_inode_as(&listed[b].stamp));
        self.aliases.remove(path);
    }

    /// The file of `number`, which lies in its place, has a second name.
    pub(super) fn alias(&mut self, number: u64, path: &Arc<str>) {
        self.aliases.insert(path.clone(), number);
    }

    /// The second names of a file.
    pub(super) fn aliases(&self, number: u64) -> Vec<Arc<str>> {
        self.aliases.iter().filter(|(_, of)| **of == number).map(|(path, _)| path.clone()).collect()
    }
}

fn key_of_path(keys: &RandomState, listed: &VecDeque<Listed>, place: usize) -> u64 {
    keys.hash_one(&**listed[place].current_path())
}

fn key_of_inode(keys: &RandomState, listed: &VecDeque<Listed>, place: usize) -> u64 {
    keys.hash_one((listed[place].stamp.dev, listed[place].stamp.ino))
}

/// Puts a place under its key, and gives the place that was there.
fn put(
    table: &mut HashTable<u32>,
    place: u32,
    key: impl Fn(usize) -> u64,
    is_same: impl Fn(usize, usize) -> bool,
) -> Option<u32> {
    let own = key(place as usize);
    match table.find_mut(own, |found| is_same(*found as usize, place as usize)) {
        Some(found) => Some(std::mem::replace(found, place)),
        None => {
            table.insert_unique(own, place, |found| key(*found as usize));
            None
        }
    }
}
