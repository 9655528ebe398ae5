//! A fresh folder for one test.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A temporary folder. Removed when dropped, but kept and named where the test fails or `TIDEMILL_KEEP` is set.
#[derive(Debug)]
pub struct Folder(Option<tempfile::TempDir>);

impl Folder {
    /// A new, empty folder.
    ///
    /// # Panics
    /// Where the machine cannot make one.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(Some(tempfile::Builder::new().prefix("tidemill-").tempdir().unwrap()))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.as_ref().map(tempfile::TempDir::path).unwrap()
    }

    /// A path in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file in it, with the folders above; returns its path.
    pub fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Makes a file appear at once, as a careful producer does: written under a hidden name, then renamed.
    pub fn publish(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(&name);
        let hidden = name.as_ref().with_file_name(format!(".{}", path.file_name().unwrap().to_string_lossy()));
        fs::rename(self.write(hidden, content), &path).unwrap();
        path
    }

    /// Copies a tree of files into it, under `name`.
    pub fn copy(&self, from: &Path, name: impl AsRef<Path>) -> PathBuf {
        let to = self.join(name);
        copy_tree(from, &to);
        to
    }
}

fn copy_tree(from: &Path, to: &Path) {
    if from.is_file() {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
        return;
    }
    fs::create_dir_all(to).unwrap();
    let entries = fs::read_dir(from).unwrap_or_else(|e| panic!("cannot list {}: {e}", from.display()));
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    // In order of name, so that the copies' times are too: a directory source takes the oldest file first.
    names.sort();
    for name in names {
        copy_tree(&from.join(&name), &to.join(&name));
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if (std::thread::panicking() || std::env::var_os("TIDEMILL_KEEP").is_some())
            && let Some(folder) = self.0.take()
        {
            eprintln!("kept for a look: {}", folder.keep().display());
        }
    }
}
