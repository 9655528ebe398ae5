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
    content::{CHUNK_BYTES, Content},
    entry::{FileEntry, Role},
    hash::{ContentHash, Hashed, hash},
    scan::{Stamp, is_absent},
    state::State,
};
use crate::source::SourceError;

/// For so long listed files that were found in their places count as being there.
const IN_PLACE_FOR: Duration = Duration::from_secs(1);
/// So many files of one content are looked at each time.
const FEW: usize = 8;

/// What taking a file from the pending ones gave.
pub(super) enum Taken {
    /// A new file.
    New(FileEntry, Box<Content>),
    /// Nothing to read: it is known, gone, or not ready after all.
    Settled,
    /// It grew after it was taken: `listed` bytes were.
    Grown(FileEntry, u64),
}

/// Why a listed file's content is not to be had.
pub(super) enum Problem {
    Source(SourceError),
    Gone(String),
}

impl State {
    /// Where the listed file lies now: at its path, touched, grown with its listed content in front, or moved.
    pub(super) fn locate(&mut self, number: u64) -> Result<(Arc<str>, Stamp), Problem> {
        let Some(listed) = self.known.get(number).cloned() else {
            return Err(Problem::Gone("it is not listed".to_owned()));
        };
        let path = listed.current_path().clone();
        let found =
            self.folder.stamp(&path).map_err(|error| Problem::Source(self.io(&format!("look at {path}"), &error)))?;
        if let Some(stamp) = found {
            if stamp.same_content_as(&listed.stamp) {
                return Ok((path, stamp));
            }
            if stamp.size >= listed.stamp.size && listed.hash.is_some() {
                let hashed = self.hash_path(&path, Some(listed.stamp.size)).map_err(Problem::Source)?;
                if hashed.is_some_and(|hashed| hashed.prefix == listed.hash) {
                    if stamp.size == listed.stamp.size {
                        self.known.sighted(number, &path, stamp);
                    }
                    return Ok((path, stamp));
                }
            }
        }
        self.locate_moved(number, &path, found.is_some())
    }

    fn locate_moved(&mut self, number: u64, was: &Arc<str>, changed: bool) -> Result<(Arc<str>, Stamp), Problem> {
        let Some(listed) = self.known.get(number).cloned() else {
            return Err(Problem::Gone("it is not listed".to_owned()));
        };
        let (mut candidates, mut listed_files) = (Vec::new(), 0);
        let (folder, known) = (&self.folder, &self.known);
        let walked = folder.walk(&mut |path, seen| {
            listed_files += usize::from(known.at_path(&path).is_some());
            if seen.stamp.size == listed.stamp.size && *path != **was && !known.knows(&path, &seen.stamp) {
                candidates.push((path, seen.stamp));
            }
        });
        let folder_path = self.config.path.display().to_string();
        walked.map_err(|error| Problem::Source(self.io(&format!("look into the folder {folder_path}"), &error)))?;
        candidates.sort_by_key(|(path, stamp)| (!stamp.same_inode_as(&listed.stamp), path.clone()));
        for (path, stamp) in candidates {
            let same_inode = stamp.same_inode_as(&listed.stamp) && stamp.same_content_as(&listed.stamp);
            let same = same_inode || {
                let hashed = self.hash_path(&path, None).map_err(Problem::Source)?;
                listed.hash.is_some() && hashed.map(|hashed| hashed.whole) == listed.hash
            };
            if same {
                tracing::info!(source = %self.name, file = %listed.path, now = %path, "a file that is being read was moved");
                self.known.sighted(number, &path, stamp);
                self.pending.forget(&path);
                return Ok((path.into(), stamp));
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
        let prefix = at_path.and_then(|number| self.known.get(number)).filter(|listed| {
            // An empty file that gets its content later was never read.
            listed.hash.is_some() && listed.stamp.size > 0 && listed.stamp.size < stamp.size
        });
        let prefix = prefix.map(|listed| (listed.stamp.size, listed.hash));
        let (file, hashed, bytes) = match self.examine(path, stamp, prefix.map(|(size, _)| size)) {
            Ok(Some(examined)) => examined,
            Ok(None) => {
                self.look_again(path);
                return Ok(Taken::Settled);
            }
            Err(error) if is_absent(&error) => {
                self.pending.forget(path);
                return Ok(Taken::Settled);
            }
            Err(error) => {
                self.set_aside(path, &error.to_string());
                return Ok(Taken::Settled);
            }
        };
        let touched =
            at_path.filter(|number| self.known.get(*number).is_some_and(|listed| listed.hash == Some(hashed.whole)));
        let known = touched.or_else(|| self.moved_from(hashed.whole, stamp.size));
        if let Some(number) = known {
            self.known.sighted(number, path, stamp);
            self.pending.forget(path);
            return Ok(Taken::Settled);
        }
        let (size, mtime_ns, dev, ino) = (stamp.size, stamp.mtime_ns, stamp.dev, stamp.ino);
        let entry =
            FileEntry { path: path.to_string(), size, mtime_ns, hash: Some(hashed.whole), dev, ino, role: Role::Read };
        if let Some((listed, hash)) = prefix
            && hashed.prefix == hash
        {
            return Ok(Taken::Grown(FileEntry { role: Role::Grown, ..entry }, listed));
        }
        let listing = self.listing(self.known.next(), path, size);
        let content = match bytes {
            Some(bytes) => Content::of_bytes(listing, stamp, bytes, &self.codec, &self.buffers),
            None => Content::open(listing, file, stamp, &self.codec, &self.buffers),
        };
        Ok(Taken::New(entry, Box::new(content.map_err(|error| self.io(&format!("read {path}"), &error))?)))
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
        let unchanged = hashed.size == stamp.size && Stamp::of(&file.metadata()?) == stamp;
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
