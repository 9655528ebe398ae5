//! Folders and names that survive a power cut.

use std::{
    fs::{self, File},
    io,
    path::{Component, Path, PathBuf},
};

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
    if missing.is_empty() { sync_dir(parent(path)) } else { Ok(()) }
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
