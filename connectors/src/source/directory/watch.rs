//! The watch: what `notify` tells, kept as hints until the next look. A hint only says where to look soon; what there is,
//! the look finds out. Hints that get lost cost time, not files.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use notify::{
    Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};
use tokio::sync::Notify;

/// With more paths than this to look at, the whole folder is scanned instead.
const MAX_HINTS: usize = 4_096;

/// What to look at.
#[derive(Debug, Default)]
pub(super) struct Hints {
    /// Paths where something happened; true where a file came whole, by a rename.
    pub paths: HashMap<PathBuf, bool>,
    /// Something got lost: look at everything.
    pub rescan: bool,
}

impl Hints {
    fn note(&mut self, event: &Event) {
        self.rescan |= event.need_rescan();
        let renamed_in = match event.kind {
            EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) => true,
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
            // Our own reads.
            EventKind::Access(_) => return,
            _ => false,
        };
        let last = event.paths.len().saturating_sub(1);
        for (index, path) in event.paths.iter().enumerate() {
            if self.paths.len() >= MAX_HINTS && !self.paths.contains_key(path) {
                self.rescan = true;
                return;
            }
            *self.paths.entry(path.clone()).or_default() |= renamed_in && index == last;
        }
    }
    fn is_empty(&self) -> bool {
        self.paths.is_empty() && !self.rescan
    }
}

/// Hints, and who waits for them.
#[derive(Debug, Default)]
pub(super) struct Board {
    hints: Mutex<Hints>,
    pub changed: Notify,
}

impl Board {
    /// Takes what has come together.
    pub(super) fn take(&self) -> Hints {
        self.hints.lock().map(|mut hints| std::mem::take(&mut *hints)).unwrap_or_default()
    }
    fn note(&self, event: notify::Result<Event>) {
        let Ok(mut hints) = self.hints.lock() else { return };
        match event {
            Ok(event) => hints.note(&event),
            Err(_) => hints.rescan = true,
        }
        if !hints.is_empty() {
            self.changed.notify_one();
        }
    }
}

/// A running watch of a folder.
pub(super) struct Watch {
    _watcher: RecommendedWatcher,
    /// Device and inode of the folder it was put on.
    pub of: (u64, u64),
}

impl Watch {
    pub(super) fn put(root: &Path, of: (u64, u64), recursive: bool, board: &Arc<Board>) -> notify::Result<Self> {
        let board = board.clone();
        let config = Config::default().with_follow_symlinks(false);
        let mut watcher = RecommendedWatcher::new(move |event| board.note(event), config)?;
        watcher.watch(root, if recursive { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive })?;
        Ok(Self { _watcher: watcher, of })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use notify::event::{CreateKind, Flag};

    use super::*;

    fn event(kind: EventKind, paths: &[&str]) -> Event {
        paths.iter().fold(Event::new(kind), |event, path| event.add_path(path.into()))
    }

    #[test]
    fn only_the_target_of_a_rename_came_whole() {
        let mut hints = Hints::default();
        hints.note(&event(EventKind::Create(CreateKind::File), &["a"]));
        hints.note(&event(EventKind::Modify(ModifyKind::Name(RenameMode::Both)), &["b.tmp", "b"]));
        hints.note(&event(EventKind::Access(AccessKind::Read), &["c"]));
        let mut paths: Vec<_> = hints.paths.iter().map(|(path, whole)| (path.to_str().unwrap(), *whole)).collect();
        paths.sort_unstable();
        assert_eq!(paths, [("a", false), ("b", true), ("b.tmp", false)]);
        assert!(!hints.rescan);
    }

    #[test]
    fn an_overflow_asks_for_a_scan() {
        let mut hints = Hints::default();
        hints.note(&Event::new(EventKind::Other).set_flag(Flag::Rescan));
        assert!(hints.rescan);
        let mut hints = Hints::default();
        for i in 0..=MAX_HINTS {
            hints.note(&event(EventKind::Create(CreateKind::File), &[&i.to_string()]));
        }
        assert!(hints.rescan);
        assert_eq!(hints.paths.len(), MAX_HINTS);
    }
}
