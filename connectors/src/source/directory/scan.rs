//! What lies in the folder: the walk, and which names are files of the source. A scan looks at names and at `stat`,
//! never into a file.
//!
//! A name that begins with `.` or `_`, or ends in `.tmp`, `.part` or `._COPYING_`, is none of ours, a folder's neither.
//! A symbolic link to a file counts as the file that it points to; one to a folder is not followed, so no walk loops.

use std::{
    collections::HashSet,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use crate::source::SourceError;

/// Folders in folders, at most so many deep.
const MAX_DEPTH: usize = 64;

const IGNORED_ENDINGS: [&str; 3] = [".tmp", ".part", "._COPYING_"];

/// What `stat` says of a file that a change of its content would change too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp {
    pub size: u64,
    pub mtime_ns: i64,
    pub dev: u64,
    pub ino: u64,
}

impl Stamp {
    pub(super) fn of(meta: &Metadata) -> Self {
        let mtime_ns = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
        Self { size: meta.size(), mtime_ns, dev: meta.dev(), ino: meta.ino() }
    }
    /// The same size and mtime: by this a file at a known path is known.
    pub(super) fn same_content_as(&self, other: &Self) -> bool {
        self.size == other.size && self.mtime_ns == other.mtime_ns
    }
    pub(super) fn same_inode_as(&self, other: &Self) -> bool {
        self.dev == other.dev && self.ino == other.ino
    }
}

/// A file as a scan saw it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub stamp: Stamp,
    /// The inode's last change, which no program can set back.
    pub ctime_ns: i64,
}

impl Seen {
    pub(super) fn of(meta: &Metadata) -> Self {
        let ctime_ns = meta.ctime().saturating_mul(1_000_000_000).saturating_add(meta.ctime_nsec());
        Self { stamp: Stamp::of(meta), ctime_ns }
    }
}

/// What there is at a path.
pub(super) enum Found {
    File(Seen),
    Folder,
    Nothing,
}

/// The folder and the names that count in it.
pub(super) struct Folder {
    pub root: PathBuf,
    recursive: bool,
    include: GlobSet,
    exclude: GlobSet,
    /// Where done files go, if that lies inside: never scanned.
    without: Option<PathBuf>,
    /// Names that cannot be written down: told once each.
    told: Mutex<HashSet<PathBuf>>,
    /// Files opened, for the test that no scan reads what it knows.
    pub opens: AtomicU64,
}

/// Names told of, at most.
const MAX_TOLD: usize = 1_000;

impl Folder {
    pub(super) fn new(
        root: PathBuf,
        recursive: bool,
        include: &[String],
        exclude: &[String],
        without: Option<&Path>,
    ) -> Result<Self, SourceError> {
        Ok(Self {
            without: without.map(Path::to_owned),
            root,
            recursive,
            include: globs(include)?,
            exclude: globs(exclude)?,
            told: Mutex::default(),
            opens: AtomicU64::new(0),
        })
    }

    /// The path on disk of a relative one.
    pub(super) fn absolute(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Opens a file to read its content.
    pub(super) fn open(&self, path: &str) -> io::Result<fs::File> {
        self.opens.fetch_add(1, Ordering::Relaxed);
        // Without O_NONBLOCK a named pipe put in place of a file would hang the source.
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
        Ok(rustix::fs::open(self.absolute(path), flags, rustix::fs::Mode::empty())?.into())
    }

    /// The stamp of a relative path; `None` where there is no file (any more).
    pub(super) fn stamp(&self, path: &str) -> io::Result<Option<Stamp>> {
        match fs::metadata(self.absolute(path)) {
            Ok(meta) => Ok(meta.is_file().then(|| Stamp::of(&meta))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The folder's own device and inode.
    pub(super) fn identity(&self) -> io::Result<(u64, u64)> {
        let meta = fs::metadata(&self.root)?;
        if meta.is_dir() {
            Ok((meta.dev(), meta.ino()))
        } else {
            Err(io::Error::new(io::ErrorKind::NotADirectory, "it is not a folder"))
        }
    }

    /// The relative path of a file of ours at `path`, by its name alone.
    pub(super) fn relative(&self, path: &Path) -> Option<String> {
        let below = path.strip_prefix(&self.root).ok()?;
        if !self.recursive && below.components().count() != 1 {
            return None;
        }
        let text = self.text(below)?;
        self.is_ours(&text, path).then_some(text)
    }

    /// Looks at one path, links to files followed.
    pub(super) fn look_at(&self, path: &Path) -> Found {
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => Found::Folder,
            Ok(meta) if meta.is_file() => Found::File(Seen::of(&meta)),
            Ok(meta) if meta.is_symlink() => match fs::metadata(path) {
                Ok(target) if target.is_file() => Found::File(Seen::of(&target)),
                _ => Found::Nothing,
            },
            _ => Found::Nothing,
        }
    }

    /// Calls `visit` with every file of ours. A folder below that cannot be read is warned of and left out.
    pub(super) fn walk(&self, visit: &mut dyn FnMut(String, Seen)) -> io::Result<()> {
        self.walk_folder(&self.root, "", 0, visit)
    }

    fn walk_folder(
        &self,
        folder: &Path,
        prefix: &str,
        depth: usize,
        visit: &mut dyn FnMut(String, Seen),
    ) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                self.tell_unreadable_name(&path);
                continue;
            };
            if is_ignored(&name) || self.without.as_deref() == Some(&path) {
                continue;
            }
            let below = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            let kind = entry.file_type()?;
            if kind.is_dir() {
                if self.recursive && depth < MAX_DEPTH {
                    match self.walk_folder(&path, &below, depth + 1, visit) {
                        Err(error) if !is_absent(&error) => {
                            tracing::warn!(folder = %path.display(), %error, "this folder cannot be read and is left out for now");
                        }
                        _ => {}
                    }
                }
            } else if self.matches(&below)
                && let Found::File(seen) = self.look_at(&path)
            {
                visit(below, seen);
            }
        }
        Ok(())
    }

    fn is_ours(&self, relative: &str, path: &Path) -> bool {
        let outside = self.without.as_deref().is_none_or(|without| !path.starts_with(without));
        outside && !relative.split('/').any(is_ignored) && self.matches(relative)
    }

    fn matches(&self, relative: &str) -> bool {
        let name = relative.rsplit('/').next().unwrap_or_default();
        let any = |set: &GlobSet| set.is_match(relative) || set.is_match(name);
        any(&self.include) && !any(&self.exclude)
    }

    fn text(&self, path: &Path) -> Option<String> {
        let text = path.to_str().map(str::to_owned);
        if text.is_none() {
            self.tell_unreadable_name(&self.root.join(path));
        }
        text
    }

    fn tell_unreadable_name(&self, path: &Path) {
        let mut told = self.told.lock().expect("held for an insert alone");
        if told.len() < MAX_TOLD && told.insert(path.to_owned()) {
            tracing::warn!(file = %path.display(), "a name that is not UTF-8: the file is left out until it is renamed");
        }
    }
}

/// Whether a name, of a file or of a folder, is hidden or temporary.
pub(super) fn is_ignored(name: &str) -> bool {
    name.starts_with(['.', '_']) || IGNORED_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// Nothing there, or no longer a path.
pub(super) fn is_absent(error: &io::Error) -> bool {
    let looped = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    looped || matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn globs(patterns: &[String]) -> Result<GlobSet, SourceError> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob: Glob = GlobBuilder::new(pattern)
            .literal_separator(true)
            .build()
            .map_err(|error| SourceError::Fatal(format!("the pattern {pattern:?} is wrong: {error}")))?;
        set.add(glob);
    }
    set.build().map_err(|error| SourceError::Fatal(format!("the patterns are wrong: {error}")))
}
