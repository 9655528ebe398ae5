//! Folders and names that survive a power cut.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Component, Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use tidemill_checkpoint::Digest;

/// Syncs a folder: names made, removed or renamed in it before this call survive a power cut.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes a folder and those above it, and syncs the parent of each. A folder that is there already may be another
/// process's of a moment ago, so the parents that have to be synced are found by their owner: the last one always is.
pub(crate) fn create_dir_all(path: &Path) -> io::Result<()> {
    let missing: Vec<PathBuf> =
        path.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.is_dir()).map(PathBuf::from).collect();
    for dir in missing.iter().rev() {
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            other => other?,
        }
        sync_dir(parent(dir))?;
    }
    sync_above(path)?;
    if missing.is_empty() { sync_dir(parent(path)) } else { Ok(()) }
}

/// Syncs what holds the names of a folder and of those above it, once in a process: a process that was killed after it had
/// made one of them may not have come to that. A folder that this user may not read was not made by it.
fn sync_above(path: &Path) -> io::Result<()> {
    static SYNCED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    for dir in path.ancestors().take_while(|dir| !dir.as_os_str().is_empty()) {
        let is_new = SYNCED.lock().unwrap_or_else(PoisonError::into_inner).insert(dir.to_owned());
        if !is_new {
            break;
        }
        match sync_dir(parent(dir)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            result => result?,
        }
    }
    Ok(())
}

/// The folder that holds `path`'s name; `.` where the path is a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// The same path for the same file, also where it or folders above it are not there yet.
pub(crate) fn canonical(path: &Path) -> io::Result<PathBuf> {
    let mut resolved = PathBuf::new();
    for component in std::path::absolute(path)?.components() {
        if component == Component::ParentDir {
            resolved.pop();
            continue;
        }
        resolved.push(component);
        match resolved.canonicalize() {
            Ok(found) => resolved = found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(resolved)
}

/// A name as a single path component that every file system takes: all but letters, digits and `.-_@=+` is `%XX`, and a
/// leading dot too.
pub(crate) fn component(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for (i, byte) in name.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || b"-_@=+".contains(&byte) || (byte == b'.' && i > 0);
        if plain { text.push(char::from(byte)) } else { text.push_str(&format!("%{byte:02X}")) }
    }
    if text.is_empty() { "%".to_owned() } else { text }
}

/// The longest name that every file system takes, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// A [`component`] that is too long for a file system ends with `~` and the first half of the whole one's digest, so
/// that names differ where they differed. No other component holds a `~`.
pub(crate) fn shortened(component: String) -> String {
    if component.len() <= MAX_NAME_BYTES {
        return component;
    }
    let digest = Digest::of(component.as_bytes()).to_string();
    let ending = format!("~{}", &digest[..digest.len() / 2]);
    let end = MAX_NAME_BYTES - ending.len();
    // No half of a `%XX`.
    let end = component[..end].rfind('%').filter(|at| at + 3 > end).unwrap_or(end);
    format!("{}{ending}", &component[..end])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn components_are_one_name_each_and_differ() {
        for (name, text) in
            [("all", "all"), ("topic/3", "topic%2F3"), ("..", "%2E."), ("", "%"), ("a b%", "a%20b%25"), ("é", "%C3%A9")]
        {
            assert_eq!(component(name), text);
        }
    }

    #[test]
    fn a_component_that_is_too_long_is_cut_and_still_differs() {
        let long = |end: &str| format!("day={}{end}", "a".repeat(300));
        let (one, other) = (shortened(long("b")), shortened(long("c")));
        assert!(one.len() == MAX_NAME_BYTES && one.starts_with("day=aaa") && one.contains('~'), "{one}");
        assert_ne!(one, other);
        assert_eq!(one, shortened(long("b")));
        for name in ["x", "xy", "xyz"].map(|start| shortened(start.to_owned() + &"%C3".repeat(100))) {
            let cut = name.split_once('~').unwrap().0;
            assert!(name.len() <= MAX_NAME_BYTES && cut.ends_with("%C3"), "{name}");
        }
        let whole = "a".repeat(MAX_NAME_BYTES);
        assert_eq!(shortened(whole.clone()), whole);
    }

    #[test]
    fn a_path_is_known_before_its_file_exists() {
        let dir = tempfile::tempdir().unwrap();
        let before = canonical(&dir.path().join("a/../x/../a/b.db")).unwrap();
        create_dir_all(&dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/b.db"), "").unwrap();
        assert_eq!(canonical(&dir.path().join("a/b.db")).unwrap(), dir.path().join("a/b.db").canonicalize().unwrap());
        assert_eq!(before, canonical(&dir.path().join("a/b.db")).unwrap());
        std::os::unix::fs::symlink(dir.path().join("a"), dir.path().join("link")).unwrap();
        assert_eq!(before, canonical(&dir.path().join("link/b.db")).unwrap());
    }
}
