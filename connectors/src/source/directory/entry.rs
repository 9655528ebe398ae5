//! The lines of the accepted list: the log `files:<source>` in the anchor. An entry's number is the file's number.

use serde::{Deserialize, Serialize};

use super::{hash::ContentHash, scan::Stamp};

/// One accepted file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileEntry {
    /// Relative to the source's folder, with `/` between folders.
    pub path: String,
    /// Bytes on disk.
    pub size: u64,
    /// Nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Of all bytes on disk. None for files that `start: latest` left out: they were never read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<ContentHash>,
    /// Device and inode only save hashing.
    #[serde(default)]
    pub dev: u64,
    /// See `dev`.
    #[serde(default)]
    pub ino: u64,
    /// What the file's number stands for.
    #[serde(default, rename = "as", skip_serializing_if = "Role::is_read")]
    pub role: Role,
}

/// What a number of the accepted list stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Role {
    /// The file's records.
    #[default]
    Read,
    /// Nothing: the file was there before `start: latest`.
    Skipped,
    /// One reject: the file grew after it was taken (`on_changed: dead_letter`).
    Grown,
    /// One reject: the file before this number was lost from the offset `at` on (`on_changed: dead_letter`).
    Lost {
        /// Where the file's records end.
        at: u64,
    },
}

impl Role {
    fn is_read(&self) -> bool {
        *self == Self::Read
    }
}

impl FileEntry {
    pub(super) fn stamp(&self) -> Stamp {
        Stamp { size: self.size, mtime_ns: self.mtime_ns, dev: self.dev, ino: self.ino }
    }

    pub(super) fn to_line(&self) -> String {
        serde_json::to_string(self).expect("an entry is made of texts and numbers")
    }

    pub(super) fn parse(line: &str) -> Result<Self, String> {
        serde_json::from_str(line).map_err(|error| format!("{error} in {line:?}"))
    }
}
