//! Which file is which: whether a file that stands still is new, touched, moved or grown, and where a listed one lies now.

use std::{
    io,
    os::unix::fs::FileExt,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tidemill_config::model::OnDone;

use super::{
    MOUNT_SUSPECTED_FILES,
    archive::{Archive, Positioned, Stop, Unpacker},
    content::{CHUNK_BYTES, Content, STEP_BYTES},
    entry::{self, FileEntry, Role},
    hash::{BLOCK_BYTES, ContentHash, Digester, Digests, Hashed, hash},
    known::{Knows, Listed},
    scan::{Stamp, is_absent},
    state::State,
};
use crate::source::SourceError;

/// For so long listed files that were found in their places count as being there.
const IN_PLACE_FOR: Duration = Duration::from_secs(1);
/// So many files of one content are looked at each time.
const FEW: usize = 8;
/// Of the listed files with one content, so many are looked at for one that was compressed.
const MAX_COMPARED: usize = 1_000;

/// What taking a file from the pending ones gave.
pub(super) enum Taken {
    /// A new file.
    New(FileEntry, Box<Content>),
    /// Nothing to read: it is known, gone, or not ready after all.
    Settled,
    /// It grew after it was taken: `listed` bytes were.
    Grown(FileEntry, u64),
    /// Nothing to read, and an entry that says where the file of a number lies by now: finding it out was not cheap.
    Known(FileEntry),
}

/// Where a listed file's content lies, and how.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub path: Arc<str>,
    pub stamp: Stamp,
    /// How it is unpacked.
    pub archive: Option<Archive>,
    /// Bytes on disk that hold it: what was appended since is not read.
    pub size: u64,
}

/// What an archive unpacks to.
#[derive(Default)]
pub(super) struct Unpacked {
    /// Of its first block, if it has one that is whole, or unpacks at all.
    head: Option<ContentHash>,
    /// Of all of it, if that was looked at and is not damaged.
    digests: Option<Digests>,
    /// All of it, if it is small.
    bytes: Option<Bytes>,
}

/// Why a listed file's content is not to be had.
pub(super) enum Problem {
    Source(SourceError),
    Gone(String),
}

impl State {
    /// Where the listed file lies now: at its path, touched, grown with its listed content in front, moved, or compressed.
    pub(super) fn locate(&mut self, number: u64) -> Result<Place, Problem> {
        let Some(listed) = self.known.get(number).cloned() else {
            return Err(Problem::Gone("it is not listed".to_owned()));
        };
        let path = listed.current_path().clone();
        let found =
            self.folder.stamp(&path).map_err(|error| Problem::Source(self.io(&format!("look at {path}"), &error)))?;
        if let Some(stamp) = found {
            if stamp.same_content_as(&listed.stamp) && stamp.ino == listed.stamp.ino {
                return Ok(place(&listed, path, stamp));
            }
            if stamp.size >= listed.stamp.size && listed.hash.is_some() {
                let hashed = self.hash_path(&path, Some(listed.stamp.size)).map_err(Problem::Source)?;
                if hashed.is_some_and(|hashed| hashed.prefix == listed.disk_hash()) {
                    if stamp.size == listed.stamp.size {
                        self.known.sighted(number, &path, stamp);
                    }
                    return Ok(place(&listed, path, stamp));
                }
            }
        }
        self.locate_moved(number, &path, found.is_some())
    }

    fn locate_moved(&mut self, number: u64, was: &Arc<str>, changed: bool) -> Result<Place, Problem> {
        let Some(listed) = self.known.get(number).cloned() else {
            return Err(Problem::Gone("it is not listed".to_owned()));
        };
        let (mut candidates, mut listed_files) = (Vec::new(), 0);
        let (folder, known) = (&self.folder, &self.known);
        let walked = folder.walk(&mut |path, seen| {
            listed_files += usize::from(known.at_path(&path).is_some());
            // The same bytes, or the same content in another packing.
            let may_be = seen.stamp.size == listed.stamp.size || is_other_packing(&listed.path, &path);
            if may_be && *path != **was && known.knows(&path, &seen.stamp) == Knows::No {
                candidates.push((path, seen.stamp));
            }
        });
        let folder_path = self.config.path.display().to_string();
        walked.map_err(|error| Problem::Source(self.io(&format!("look into the folder {folder_path}"), &error)))?;
        candidates.sort_by_key(|(path, stamp)| {
            (!stamp.same_inode_as(&listed.stamp), stamp.size != listed.stamp.size, path.clone())
        });
        for (path, stamp) in candidates {
            let only = [number];
            let of_size = only.get(..usize::from(stamp.size == listed.stamp.size)).unwrap_or_default();
            let packed = only.get(..usize::from(is_other_packing(&listed.path, &path))).unwrap_or_default();
            if self.moved_to(of_size, packed, &path, stamp).map_err(Problem::Source)?.is_some() {
                tracing::info!(source = %self.name, file = %listed.path, now = %path, "a file that is being read was moved");
                self.pending.forget(&path);
                let listed = self.known.get(number).unwrap_or(&listed);
                return Ok(place(listed, path.into(), stamp));
            }
        }
        let suspicious = self.known.len() >= MOUNT_SUSPECTED_FILES && self.config.on_done == OnDone::Keep;
        if suspicious && listed_files == 0 {
            let error = io::Error::other("none of the files taken from it is there: is it mounted? Waiting for them");
            return Err(Problem::Source(self.io(&format!("look into the folder {folder_path}"), &error)));
        }
        let what = if changed { "has other content than when it was taken" } else { "is gone" };
        Err(Problem::Gone(format!("{was} {what}")))
    }

    /// Which of these numbers' files lies at `path`, which is not listed: `of_size` by its inode or its bytes, `packed` by
    /// what it unpacks to. If one does, it is known to lie there. The file is read once for all of them.
    pub(super) fn moved_to(
        &mut self,
        of_size: &[u64],
        packed: &[u64],
        path: &str,
        stamp: Stamp,
    ) -> Result<Option<u64>, SourceError> {
        let find = |numbers: &[u64], is_it: &dyn Fn(&Listed) -> bool| {
            numbers.iter().copied().find(|number| self.known.get(*number).is_some_and(is_it))
        };
        let by_inode = |listed: &Listed| stamp.same_inode_as(&listed.stamp) && stamp.same_content_as(&listed.stamp);
        if let Some(number) = find(of_size, &by_inode) {
            self.known.sighted(number, path, stamp);
            return Ok(Some(number));
        }
        if !of_size.is_empty()
            && let Some(hashed) = self.hash_path(path, None)?
            && let Some(number) = find(of_size, &|listed| listed.disk_hash() == Some(hashed.all.whole))
        {
            self.known.sighted(number, path, stamp);
            return Ok(Some(number));
        }
        let wanted = |head| find(packed, &|listed| listed.may_begin_with(head)).is_some();
        if !packed.is_empty()
            && let Some((hashed, content)) = self.content_of(path, stamp, &wanted)?
            && let Some(number) = find(packed, &|listed| listed.role == Role::Read && listed.has_content(&content))
        {
            self.repacked(number, path, stamp, hashed.all.whole, &content);
            return Ok(Some(number));
        }
        Ok(None)
    }

    /// The file of `number` lies at `path` with other bytes, which unpack to its content.
    fn repacked(&mut self, number: u64, path: &str, stamp: Stamp, on_disk: ContentHash, content: &Digests) {
        let is_archive = self.known.get(number).is_some_and(|listed| Archive::of(&listed.path).is_some());
        let digests = if is_archive { entry::Content::unpacked(content) } else { entry::Content::plain(content) };
        let repacked = self.known.get(number).is_some_and(|listed| listed.hash != Some(on_disk)).then_some(on_disk);
        self.known.sighted_as(number, path, stamp, repacked);
        self.known.set_content(number, digests);
    }

    /// The digests of a file's bytes and of its unpacked content, as far as `wanted` by its head. `None`: it is gone, damaged,
    /// or not wanted.
    fn content_of(
        &self,
        path: &str,
        stamp: Stamp,
        wanted: &dyn Fn(ContentHash) -> bool,
    ) -> Result<Option<(Hashed, Digests)>, SourceError> {
        let Some(kind) = Archive::of(path) else {
            let hashed = self.hash_path(path, None)?;
            return Ok(hashed.map(|hashed| (hashed, hashed.all)));
        };
        let unpacked = match self
            .folder
            .open(path)
            .and_then(|file| unpack(kind, Box::new(Positioned { file, at: 0, left: stamp.size }), wanted))
        {
            Ok(unpacked) => unpacked,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(self.io(&format!("read {path}"), &error)),
        };
        let Some(digests) = unpacked.digests.filter(|digests| wanted(digests.head)) else { return Ok(None) };
        Ok(self.hash_path(path, None)?.map(|hashed| (hashed, digests)))
    }

    /// `None` where the file vanished.
    pub(super) fn hash_path(&self, path: &str, prefix: Option<u64>) -> Result<Option<Hashed>, SourceError> {
        match self.folder.open(path).and_then(|mut file| hash(&mut file, prefix)) {
            Ok(hashed) => Ok(Some(hashed)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(self.io(&format!("read {path}"), &error)),
        }
    }

    /// New files in a folder that lacks all the listed ones, on another device than these were: an empty mount point that
    /// somebody writes to.
    pub(super) fn check_mount(&self) -> Result<(), SourceError> {
        let last = self.known.next().checked_sub(1).and_then(|number| self.known.get(number));
        let (true, Some(last)) = (self.absent, last) else { return Ok(()) };
        let (device, _) = self.folder.identity().map_err(|error| self.io("look at the folder", &error))?;
        if device == last.stamp.dev {
            return Ok(());
        }
        let error = "the folder is on another device than the files taken from it before, and none of these is there: is it \
                     mounted? Waiting for them";
        Err(self.io(&format!("take files from {}", self.config.path.display()), &io::Error::other(error)))
    }

    /// Takes a file that stands still: finds out whether it is new, by its content where it must be.
    pub(super) fn take(&mut self, path: &Arc<str>, stamp: Stamp) -> Result<Taken, SourceError> {
        let at_path = self.known.at_path(path);
        if at_path.is_none()
            && let Some(number) = self.known.by_inode(&stamp)
            && self.has_left(number)
            && !self.put_away(number)
        {
            self.known.sighted(number, path, stamp);
            self.pending.forget(path);
            return Ok(Taken::Settled);
        }
        let grown_from = self.may_have_grown(at_path, stamp);
        let prefix =
            grown_from.and_then(|number| self.known.get(number)).map(|listed| (listed.stamp.size, listed.hash));
        let (file, hashed, bytes) = match self.examine(path, stamp, prefix.map(|(size, _)| size)) {
            Ok(Some(examined)) => examined,
            Ok(None) => {
                self.look_again(path);
                return Ok(Taken::Settled);
            }
            Err(error) => return self.cannot_take(path, &error),
        };
        let whole = hashed.all.whole;
        let is_touched = |number: &u64| self.known.get(*number).is_some_and(|listed| listed.disk_hash() == Some(whole));
        if let Some(number) = at_path.filter(is_touched) {
            self.known.sighted(number, path, stamp);
            self.pending.forget(path);
            return Ok(Taken::Settled);
        }
        if let Some(number) = self.moved_from(whole, stamp.size) {
            self.known.sighted_as(number, path, stamp, None);
            self.pending.forget(path);
            return Ok(Taken::Settled);
        }
        if let Some(number) = self.known.by_inode(&stamp)
            && self.known.get(number).is_some_and(|listed| listed.stamp == stamp && listed.disk_hash() == Some(whole))
            && !self.has_left(number)
        {
            tracing::info!(source = %self.name, file = %path, same_as = %self.path_of(number), "a second name of a file that was taken: it is not read again");
            self.known.alias(number, path);
            self.pending.forget(path);
            return Ok(Taken::Settled);
        }
        if let Some((listed, hash)) = prefix
            && hashed.prefix == hash
        {
            let entry = FileEntry::of(path, stamp, Some(whole), Role::Grown);
            return Ok(Taken::Grown(entry, listed));
        }
        let unpacked = match Archive::of(path) {
            None => Unpacked { head: Some(hashed.all.head), digests: Some(hashed.all), bytes: None },
            Some(kind) => match self.unpack_to_compare(kind, &file, stamp, bytes.as_ref()) {
                Ok(unpacked) => unpacked,
                Err(error) => return self.cannot_take(path, &error),
            },
        };
        if let Some(content) = &unpacked.digests
            && let Some(number) = self.repacked_from(path, stamp, content)
        {
            let was = self.path_of(number);
            tracing::info!(source = %self.name, file = %path, was = %was, "this file has the content of one that was taken: it is not read again");
            self.repacked(number, path, stamp, whole, content);
            self.pending.forget(path);
            if self.config.on_done != OnDone::Keep {
                return Ok(Taken::Settled);
            }
            let content = entry::Content::unpacked(content);
            let entry = FileEntry::of(path, stamp, Some(whole), Role::Known { of: number });
            return Ok(Taken::Known(FileEntry { content, ..entry }));
        }
        if let Some(ending) = Archive::unknown(path)
            && self.warned_endings.insert(ending)
        {
            tracing::warn!(source = %self.name, file = %path,
                "files that end in .{ending} are not unpacked: their bytes are read as they are. Leave them out by `exclude`, or \
                 unpack them first; .gz and .zst are unpacked here");
        }
        let content = match (Archive::of(path), &unpacked.digests) {
            (None, Some(digests)) => entry::Content::plain(digests),
            (_, Some(digests)) => entry::Content::unpacked(digests),
            (_, None) => entry::Content { head: unpacked.head, ..entry::Content::default() },
        };
        let entry = FileEntry { content, ..FileEntry::of(path, stamp, Some(whole), Role::Read) };
        let listing = self.listing(self.known.next(), path, &place_of(path.clone(), stamp));
        let opened = match (unpacked.bytes, bytes) {
            (Some(unpacked), _) => Ok(Content::of_unpacked(listing, stamp, unpacked, &self.codec, &self.buffers)),
            (None, Some(bytes)) => Content::of_bytes(listing, stamp, bytes, &self.codec, &self.buffers),
            (None, None) => Content::open(listing, file, stamp, &self.codec, &self.buffers),
        };
        let mut opened = opened.map_err(|error| self.io(&format!("read {path}"), &error))?;
        if self.config.on_done == OnDone::Keep && content.chain.is_none() {
            opened.digest();
        }
        Ok(Taken::New(entry, Box::new(opened)))
    }

    fn cannot_take(&mut self, path: &Arc<str>, error: &io::Error) -> Result<Taken, SourceError> {
        if is_absent(error) {
            self.pending.forget(path);
        } else {
            self.set_aside(path, &error.to_string());
        }
        Ok(Taken::Settled)
    }

    fn path_of(&self, number: u64) -> Arc<str> {
        self.known.get(number).map(|listed| listed.current_path().clone()).unwrap_or_default()
    }

    /// The listed file that this one may be with more behind it: the one at its path, or one with its inode that has left
    /// (a log that grew and was rotated).
    fn may_have_grown(&self, at_path: Option<u64>, stamp: Stamp) -> Option<u64> {
        let is_beginning = |number: &u64| {
            // An empty file that gets its content later was never read.
            self.known.get(*number).is_some_and(|listed| {
                let is_longer = listed.stamp.size > 0 && listed.stamp.size < stamp.size;
                listed.hash.is_some() && is_longer && !listed.is_repacked()
            })
        };
        let rotated = self.known.at_inode(&stamp).filter(|number| {
            Some(*number) != at_path && is_beginning(number) && self.has_left(*number) && !self.put_away(*number)
        });
        rotated.or(at_path.filter(is_beginning))
    }

    /// What an archive unpacks to: all of it where it is small, or where it may be the content of a listed file.
    fn unpack_to_compare(
        &self,
        kind: Archive,
        file: &std::fs::File,
        stamp: Stamp,
        bytes: Option<&Bytes>,
    ) -> io::Result<Unpacked> {
        let source: Box<dyn io::Read + Send> = match bytes {
            Some(bytes) => Box::new(io::Cursor::new(bytes.clone())),
            None => Box::new(Positioned { file: file.try_clone()?, at: 0, left: stamp.size }),
        };
        unpack(kind, source, &|head| self.known.may_begin_with(head))
    }

    /// The listed file with this unpacked content, in another packing, that has left its place, or is this one packed anew;
    /// the latest first.
    fn repacked_from(&self, path: &str, stamp: Stamp, content: &Digests) -> Option<u64> {
        if content.size == 0 {
            return None;
        }
        let is_it = |number: &u64| {
            let is_here = self.known.get(*number).is_some_and(|listed| **listed.current_path() == *path);
            !self.put_away(*number) && (is_here || self.has_left(*number))
        };
        // Equal bytes were looked at before: here it is about other ones with the same content.
        let is_packed_otherwise =
            |number: &u64| self.known.get(*number).is_some_and(|listed| is_other_packing(&listed.path, path));
        let candidates = self.known.by_content(content).into_iter().filter(is_packed_otherwise);
        let found = candidates.take(MAX_COMPARED).find(is_it);
        found.or_else(|| self.skipped_as(path, stamp, content))
    }

    /// The file that `start: latest` left out unread, which has left its place with this size and mtime: compressing keeps
    /// the mtime.
    fn skipped_as(&self, path: &str, stamp: Stamp, content: &Digests) -> Option<u64> {
        Archive::of(path)?;
        let skipped = self.known.iter().take_while(|(_, listed)| listed.role == Role::Skipped);
        let is_it = |(number, listed): &(u64, &Listed)| {
            let looks_like_it = listed.stamp.size == content.size && listed.stamp.mtime_ns == stamp.mtime_ns;
            looks_like_it && Archive::of(&listed.path).is_none() && self.has_left(*number)
        };
        let found = skipped.into_iter().find(is_it);
        found.map(|(number, _)| number)
    }

    /// Opens a file and hashes it. A small one is read for good on the way. `None`: it is not what was seen.
    #[allow(clippy::type_complexity)]
    fn examine(
        &self,
        path: &str,
        stamp: Stamp,
        prefix: Option<u64>,
    ) -> io::Result<Option<(std::fs::File, Hashed, Option<Bytes>)>> {
        let mut file = self.folder.open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() || Stamp::of(&meta) != stamp {
            return Ok(None);
        }
        let small = usize::try_from(stamp.size).ok().filter(|size| *size <= CHUNK_BYTES);
        let bytes = match small {
            Some(size) => {
                let mut bytes = vec![0; size];
                match file.read_exact_at(&mut bytes, 0) {
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                    result => result?,
                }
                Some(Bytes::from(bytes))
            }
            None => None,
        };
        let hashed = match &bytes {
            Some(bytes) => hash(&mut &bytes[..], prefix)?,
            None => hash(&mut file, prefix)?,
        };
        let unchanged = hashed.all.size == stamp.size && Stamp::of(&file.metadata()?) == stamp;
        Ok(unchanged.then_some((file, hashed, bytes)))
    }

    /// The listed file with this content that has left its place, latest first. Many files of one content are looked at
    /// once in [`IN_PLACE_FOR`], not once for each new one. An empty file that comes again has no records to double.
    fn moved_from(&mut self, hash: ContentHash, size: u64) -> Option<u64> {
        if size == 0 {
            return None;
        }
        let known = self.in_place.get(&hash).filter(|(since, _)| since.elapsed() < IN_PLACE_FOR).copied();
        let (since, below) = known.unwrap_or_else(|| (Instant::now(), 0));
        let mut looked = 0;
        let mut left = |number: &u64| {
            looked += 1;
            !self.put_away(*number) && self.has_left(*number)
        };
        let found = self.known.by_hash(hash).take_while(|number| *number >= below).find(&mut left);
        if found.is_none() && (known.is_some() || looked > FEW) {
            self.in_place.insert(hash, (since, self.known.next()));
        }
        found
    }

    /// Whether `on_done` took the listed file away: one with the same content is another file, not that one moved.
    fn put_away(&self, number: u64) -> bool {
        self.config.on_done != OnDone::Keep && number < self.done
    }

    /// Whether a listed file is not at its path any more: nothing is there, or something else (a rotated log's successor).
    pub(super) fn has_left(&self, number: u64) -> bool {
        let Some(listed) = self.known.get(number) else { return false };
        match self.folder.stamp(listed.current_path()) {
            Ok(None) => true,
            Ok(Some(stamp)) => !stamp.same_content_as(&listed.stamp),
            Err(_) => false,
        }
    }
}

/// A listed file that was seen at `path`, packed as it is known to be.
fn place(listed: &Listed, path: Arc<str>, stamp: Stamp) -> Place {
    if listed.is_repacked() {
        return place_of(path, stamp);
    }
    // Under whatever name: its bytes are those that were listed.
    Place { archive: Archive::of(&listed.path), size: listed.stamp.size, path, stamp }
}

/// A file as its name says.
pub(super) fn place_of(path: Arc<str>, stamp: Stamp) -> Place {
    Place { archive: Archive::of(&path), size: stamp.size, path, stamp }
}

/// Whether a file of one name may hold the content of the other in another packing: one of them is an archive.
pub(super) fn is_other_packing(listed: &str, path: &str) -> bool {
    Archive::of(listed).is_some() || Archive::of(path).is_some()
}

/// Unpacks as much of an archive as it takes to know it: all where that is small or its head is `wanted`. One that is damaged
/// has no content to be known by.
fn unpack(
    kind: Archive,
    source: Box<dyn io::Read + Send>,
    wanted: &dyn Fn(ContentHash) -> bool,
) -> io::Result<Unpacked> {
    let mut unpacker = kind.unpack(source)?;
    let (mut digester, mut bytes, mut head) = (Digester::new(), Vec::new(), None);
    let mut step = vec![0; STEP_BYTES];
    loop {
        let Some(read) = next(&mut unpacker, &mut step)? else { return Ok(Unpacked::default()) };
        if read == 0 {
            let digests = digester.digests();
            let is_small = digests.size <= CHUNK_BYTES as u64;
            return Ok(Unpacked {
                head: Some(digests.head),
                digests: Some(digests),
                bytes: is_small.then(|| Bytes::from(bytes)),
            });
        }
        digester.update(&step[..read]);
        if bytes.len() <= CHUNK_BYTES {
            bytes.extend_from_slice(&step[..read]);
            if bytes.len() > BLOCK_BYTES && head.is_none() {
                head = Some(digester.digests().head);
            }
            if bytes.len() > CHUNK_BYTES && !head.is_some_and(wanted) {
                return Ok(Unpacked { head, ..Unpacked::default() });
            }
        }
    }
}

/// `None`: the archive is damaged.
fn next(unpacker: &mut Unpacker, step: &mut [u8]) -> io::Result<Option<usize>> {
    match unpacker.read(step) {
        Ok(read) => Ok(Some(read)),
        Err(Stop::Damage(_)) => Ok(None),
        Err(Stop::Device(error)) => Err(error),
    }
}
