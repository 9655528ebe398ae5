//! `on_done`: what happens to a file once every sink has it. Each act can be repeated after a crash at any instant.
//!
//! Folders are synced before a file counts as done: its entry is pruned only then, so that a power cut cannot bring a
//! file back that nobody remembers.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags};
use tidemill_checkpoint::failpoint;
use tidemill_config::model::OnDone;

use super::{
    hash::{ContentHash, hash},
    known::Listed,
    scan::{Folder, is_absent},
};

/// Where files lie that were not all read, below the source's folder. Names that begin with `_` are never taken.
pub(super) const INCOMPLETE: &str = "_incomplete";

/// Suffixes tried for a name that is taken in the target folder.
const MAX_SUFFIX: u32 = 10_000;

/// Puts the file of `listed` away. Folders that were changed are added to `changed`, to be synced by [`sync`].
pub(super) fn put_away(
    folder: &Folder,
    on_done: &OnDone,
    listed: &Listed,
    changed: &mut BTreeSet<PathBuf>,
) -> io::Result<()> {
    let path = folder.absolute(listed.current_path());
    // Gone already, or another file by now, which has its own turn.
    match folder.stamp(listed.current_path())? {
        Some(stamp) if stamp.same_content_as(&listed.stamp) && stamp.ino == listed.stamp.ino => {}
        _ => return Ok(()),
    }
    match on_done {
        OnDone::Keep => return Ok(()),
        OnDone::Delete => {
            failpoint::pass("directory-before-delete")?;
            absent_is_fine(fs::remove_file(&path))?;
            failpoint::pass("directory-after-delete")?;
        }
        OnDone::Move(target) => {
            let target = target.join(name_of(listed));
            failpoint::pass("directory-before-move")?;
            move_file(folder, listed, &path, &target, changed)?;
            failpoint::pass("directory-after-move")?;
        }
    }
    changed.extend(path.parent().map(Path::to_owned));
    Ok(())
}

/// Moves a file that `on_done` must not put away to a place of its own below the source's folder. Gives where it lies
/// now; `None` where it is gone, or another file by now.
pub(super) fn set_aside(
    folder: &Folder,
    listed: &Listed,
    changed: &mut BTreeSet<PathBuf>,
) -> io::Result<Option<PathBuf>> {
    let path = folder.absolute(listed.current_path());
    match folder.stamp(listed.current_path())? {
        Some(stamp) if stamp.same_content_as(&listed.stamp) && stamp.ino == listed.stamp.ino => {}
        _ => return Ok(None),
    }
    let target = folder.root.join(INCOMPLETE).join(name_of(listed));
    failpoint::pass("directory-before-aside")?;
    move_file(folder, listed, &path, &target, changed)?;
    failpoint::pass("directory-after-aside")?;
    changed.extend(path.parent().map(Path::to_owned));
    Ok(Some(target))
}

/// The name under which a file is put away: the listed one, or the present one where its bytes are packed differently.
fn name_of(listed: &Listed) -> &str {
    if listed.is_repacked() { listed.current_path() } else { &listed.path }
}

/// Makes the changes in these folders durable.
pub(super) fn sync(changed: &BTreeSet<PathBuf>) -> io::Result<()> {
    for folder in changed {
        absent_is_fine(File::open(folder).and_then(|folder| folder.sync_all()))?;
    }
    Ok(())
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if is_absent(&error) { Ok(()) } else { Err(error) })
}

fn move_file(
    folder: &Folder,
    listed: &Listed,
    from: &Path,
    target: &Path,
    changed: &mut BTreeSet<PathBuf>,
) -> io::Result<()> {
    let parent = target.parent().ok_or_else(|| io::Error::other("the target has no folder"))?;
    make_folders(parent, changed)?;
    for suffix in 0..MAX_SUFFIX {
        let to = if suffix == 0 { target.to_owned() } else { suffixed(target, suffix) };
        match rename_new(from, &to) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if is_copy_of(&to, listed)? {
                    // A copy that was finished before a crash; only the original was left.
                    return absent_is_fine(fs::remove_file(from));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                return copy_file(folder, listed, from, parent, target, changed);
            }
            Err(error) if is_absent(&error) && !from.exists() => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!("{} and {MAX_SUFFIX} names like it are taken", target.display())))
}

/// To another file system: a copy beside the target, synced, renamed; then the original goes.
fn copy_file(
    folder: &Folder,
    listed: &Listed,
    from: &Path,
    parent: &Path,
    target: &Path,
    changed: &mut BTreeSet<PathBuf>,
) -> io::Result<()> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let partial = parent.join(format!(".{name}.part"));
    let mut source = folder.open(listed.current_path())?;
    let mut copy = File::create(&partial)?;
    io::copy(&mut source, &mut copy)?;
    copy.sync_all()?;
    failpoint::pass("directory-copied")?;
    for suffix in 0..MAX_SUFFIX {
        let to = if suffix == 0 { target.to_owned() } else { suffixed(target, suffix) };
        match rename_new(&partial, &to) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !is_copy_of(&to, listed)? {
                    continue;
                }
                fs::remove_file(&partial)?;
            }
            Err(error) => return Err(error),
        }
        File::open(parent)?.sync_all()?;
        changed.insert(parent.to_owned());
        failpoint::pass("directory-renamed-copy")?;
        return absent_is_fine(fs::remove_file(from));
    }
    Err(io::Error::other(format!("{} and {MAX_SUFFIX} names like it are taken", target.display())))
}

/// Creates the folder and those above it; each that is new is synced with its parent.
fn make_folders(folder: &Path, changed: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    let new: Vec<_> =
        folder.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).collect();
    fs::create_dir_all(folder)?;
    changed.insert(folder.to_owned());
    changed.extend(
        new.iter().filter_map(|folder| folder.parent()).filter(|p| !p.as_os_str().is_empty()).map(Path::to_owned),
    );
    Ok(())
}

/// A rename that replaces nothing.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems cannot do both in one step; nobody else writes to the target folder.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            if fs::symlink_metadata(to).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            fs::rename(from, to)
        }
        result => Ok(result?),
    }
}

fn is_copy_of(path: &Path, listed: &Listed) -> io::Result<bool> {
    if fs::metadata(path)?.len() != listed.stamp.size {
        return Ok(false);
    }
    let whole: ContentHash = hash(&mut File::open(path)?, None)?.all.whole;
    Ok(listed.disk_hash() == Some(whole))
}

fn suffixed(target: &Path, suffix: u32) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(format!(".{suffix}"));
    name.into()
}
