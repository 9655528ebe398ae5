//! The lines of the accepted list: the log `files:<source>` in the anchor. An entry's number is the file's number.

use serde::{Deserialize, Serialize};

use super::{
    hash::{BLOCK_BYTES, ContentHash, Digests},
    scan::Stamp,
};

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
    /// What is known of the unpacked content beyond `hash`. Lists of earlier versions have none of it.
    #[serde(flatten)]
    pub content: Content,
    /// Device and inode only save hashing.
    #[serde(default)]
    pub dev: u64,
    /// See `dev`.
    #[serde(default)]
    pub ino: u64,
    /// What the file's number stands for.
    #[serde(default, rename = "as", skip_serializing_if = "Role::is_read")]
    pub role: Role,
    /// See [`Role::Known`]. In the list such an entry is `skipped` with this number, which earlier versions pass over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_of: Option<u64>,
}

/// Digests of a file's content as it is when it is unpacked, each left out where it is the entry's `hash` (a plain file of
/// at most one block) or not known (yet).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Content {
    /// Of the first block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<ContentHash>,
    /// The chained digest of all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<ContentHash>,
    /// Its bytes, of an archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpacked: Option<u64>,
}

impl Content {
    /// Of a plain file.
    pub(super) fn plain(digests: &Digests) -> Self {
        if digests.size <= BLOCK_BYTES as u64 {
            return Self::default();
        }
        Self { head: Some(digests.head), chain: Some(digests.chain), unpacked: None }
    }

    /// Of an archive.
    pub(super) fn unpacked(digests: &Digests) -> Self {
        Self { head: Some(digests.head), chain: Some(digests.chain), unpacked: Some(digests.size) }
    }
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
    /// Nothing: what became known of an earlier number's file after it was listed, where it lies by now (compressed) or
    /// what its content is.
    #[serde(skip)]
    Known {
        /// That number.
        of: u64,
    },
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
    /// An entry without more than this.
    pub(super) fn of(path: &str, stamp: Stamp, hash: Option<ContentHash>, role: Role) -> Self {
        let (size, mtime_ns, dev, ino) = (stamp.size, stamp.mtime_ns, stamp.dev, stamp.ino);
        let content = Content::default();
        Self { path: path.to_owned(), size, mtime_ns, hash, content, dev, ino, role, content_of: None }
    }

    pub(super) fn stamp(&self) -> Stamp {
        Stamp { size: self.size, mtime_ns: self.mtime_ns, dev: self.dev, ino: self.ino }
    }

    pub(super) fn to_line(&self) -> String {
        let mut entry = self.clone();
        if let Role::Known { of } = self.role {
            (entry.role, entry.content_of) = (Role::Skipped, Some(of));
        }
        serde_json::to_string(&entry).expect("an entry is made of texts and numbers")
    }

    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let mut entry: Self = serde_json::from_str(line).map_err(|error| format!("{error} in {line:?}"))?;
        if let Some(of) = entry.content_of.take() {
            entry.role = Role::Known { of };
        }
        Ok(entry)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_earlier_versions_are_read_and_small_files_are_written_as_they_did() {
        let line =
            r#"{"path":"a.log","size":2,"mtime_ns":5,"hash":"000102030405060708090a0b0c0d0e0f","dev":1,"ino":7}"#;
        let entry = FileEntry::parse(line).unwrap();
        assert_eq!((entry.role, entry.content), (Role::Read, Content::default()));
        assert_eq!(entry.to_line(), line);
        for (line, role) in [
            (r#"{"path":"a","size":2,"mtime_ns":5,"dev":1,"ino":7,"as":"skipped"}"#, Role::Skipped),
            (r#"{"path":"a","size":2,"mtime_ns":5,"dev":1,"ino":7,"as":{"lost":{"at":3}}}"#, Role::Lost { at: 3 }),
        ] {
            let entry = FileEntry::parse(line).unwrap();
            assert_eq!((entry.role, entry.to_line().as_str()), (role, line));
        }
    }

    #[test]
    fn what_became_known_later_is_nothing_to_read_for_earlier_versions() {
        let digests = Digests {
            whole: ContentHash::of(b"w"),
            head: ContentHash::of(b"h"),
            chain: ContentHash::of(b"c"),
            size: 99,
        };
        let entry = FileEntry {
            path: "a.gz".into(),
            size: 20,
            mtime_ns: 1,
            hash: Some(ContentHash::of(b"disk")),
            content: Content::unpacked(&digests),
            dev: 1,
            ino: 2,
            role: Role::Known { of: 4 },
            content_of: None,
        };
        let line = entry.to_line();
        assert!(line.contains(r#""as":"skipped""#) && line.contains(r#""content_of":4"#), "{line}");
        assert_eq!(FileEntry::parse(&line).unwrap(), entry);
    }
}
