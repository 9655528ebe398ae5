//! A small disk that can be filled: a tmpfs over a folder.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use crate::needs;

const FILLER: &str = ".filler";

/// A tmpfs, mounted until it is dropped.
#[derive(Debug)]
pub struct Disk(PathBuf);

impl Disk {
    /// Mounts one of so many KiB over a folder, which is made. `None`: this machine does not let us, the test is skipped.
    ///
    /// # Panics
    /// Where the folder cannot be made, or `CI=true` says that mounting works.
    pub fn mount(folder: &Path, kib: usize) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tidemill-test"]).arg(folder);
        match command.output() {
            Ok(done) if done.status.success() => Some(Self(folder.to_owned())),
            _ => {
                needs::skip("the right to mount a tmpfs", "Run it as root, or in a container with CAP_SYS_ADMIN.");
                None
            }
        }
    }

    /// Fills it to the last byte.
    ///
    /// # Panics
    /// Where it cannot be written at all.
    pub fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.0.join(FILLER)).unwrap();
        for size in [64 * 1024, 4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    /// Makes all space free again that [`Disk::fill`] took.
    ///
    /// # Panics
    /// Where it was not filled.
    pub fn free(&self) {
        fs::remove_file(self.0.join(FILLER)).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
