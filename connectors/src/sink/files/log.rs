//! The mark log: what a lane's folder remembers, one checksummed record per line.
//!
//! ```text
//! tm1 <kind> <length of the JSON, 8 hex digits> <CRC-32 of kind and JSON, 8 hex digits> <JSON>\n
//! ```
//!
//! | kind | JSON | |
//! | --- | --- | --- |
//! | `start` | [`Start`] | always the first record, and only there |
//! | `entries` | list of `Entry` | after `start`: entries of the anchor's logs that are still needed |
//! | `mark` | [`Commit`] | one committed batch |
//! | `mark+entries` | [`Commit`] | the same, with new entries |
//! | `release` | `null` | the owner let go by a clean stop |
//!
//! A log is made whole under another name (start and entries, synced, then renamed), so a log that does not begin with
//! a valid `start` is damaged. After that only the last append can be torn: an invalid record with a valid one after it
//! is damage too, an invalid tail is a batch that never was.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tidemill_checkpoint::{Digest, Entry, Generation, LogName, Mark, Owner, Timestamp};

/// The version of the format.
const VERSION: u32 = 1;
const MAGIC: &[u8] = b"tm1 ";
/// Entries in one record of a new log.
const ENTRIES_PER_RECORD: usize = 1000;

/// What a log begins with: everything that was true before its first commit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) version: u32,
    pub(super) generation: Generation,
    pub(super) owner: Owner,
    /// The log that this one continues, and how many of its bytes were valid.
    pub(super) continues: Option<(String, u64)>,
    pub(super) head: Option<Mark>,
    /// As in [`Commit`].
    pub(super) renames: Vec<Rename>,
    /// As in [`Commit`].
    pub(super) active: BTreeMap<String, Active>,
}

/// One committed batch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Commit {
    pub(super) mark: Mark,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) entries: Vec<Entry>,
    /// Temporaries that the batch publishes: owed from this record on, done and synced before the next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) renames: Vec<Rename>,
    /// Rolling files that are still appended to, by partition, as they are after the batch.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) active: BTreeMap<String, Active>,
}

/// A temporary and its final name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rename {
    /// The name in `tmp/`.
    pub(super) from: String,
    /// The path below the sink's folder.
    pub(super) to: String,
}

/// A rolling file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Active {
    /// The path below the sink's folder.
    pub(super) path: String,
    /// Bytes of committed batches; what lies beyond does not count.
    pub(super) bytes: u64,
    /// The clock of the file's first batch.
    pub(super) since: Timestamp,
}

impl Start {
    pub(super) fn new(generation: Generation, owner: &Owner) -> Self {
        let (renames, active) = Default::default();
        Self { version: VERSION, generation, owner: owner.clone(), continues: None, head: None, renames, active }
    }
}

fn record<T: Serialize>(kind: &str, value: &T, out: &mut Vec<u8>) -> io::Result<()> {
    let json = serde_json::to_vec(value)?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(kind.as_bytes());
    hasher.update(&json);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(format!("{kind} {:08x} {:08x} ", json.len(), hasher.finalize()).as_bytes());
    out.extend_from_slice(&json);
    out.push(b'\n');
    Ok(())
}

/// The valid record at the start of `bytes`: kind, JSON, length with its end.
fn parse(bytes: &[u8]) -> Option<(&str, &[u8], usize)> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let space = rest.iter().take(16).position(|byte| *byte == b' ')?;
    let kind = std::str::from_utf8(&rest[..space]).ok()?;
    let number = |at: usize| u32::from_str_radix(std::str::from_utf8(rest.get(at..at + 8)?).ok()?, 16).ok();
    if rest.get(space + 9) != Some(&b' ') || rest.get(space + 18) != Some(&b' ') {
        return None;
    }
    let (length, crc) = (number(space + 1)? as usize, number(space + 10)?);
    let json = rest.get(space + 19..)?.get(..length)?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(kind.as_bytes());
    hasher.update(json);
    let ends = rest.get(space + 19 + length) == Some(&b'\n');
    (ends && hasher.finalize() == crc).then_some((kind, json, MAGIC.len() + space + 20 + length))
}

/// A log as it was read.
pub(super) struct Image {
    bytes: Vec<u8>,
    /// Kind and range of the JSON of each valid record.
    records: Vec<(String, std::ops::Range<usize>)>,
    pub(super) start: Start,
    pub(super) valid: u64,
    pub(super) released: bool,
    last: Option<Commit>,
}

fn damaged(path: &Path, what: &str) -> io::Error {
    let way_out = "restore the folder from a backup, or start over with `tidemill checkpoint reset --sinks`";
    io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged ({what}): {way_out}", path.display()))
}

fn json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| damaged(path, &format!("a record that this version cannot read: {error}")))
}

impl Image {
    /// Reads a log. [`io::ErrorKind::InvalidData`] where it is damaged.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let bytes = fs::read(path)?;
        let mut records = Vec::new();
        let mut at = 0;
        while let Some((kind, json, length)) = parse(&bytes[at..]) {
            let end = at + length - 1;
            records.push((kind.to_owned(), end - json.len()..end));
            at += length;
        }
        let tail = &bytes[at..];
        if (1..tail.len()).any(|i| tail[i..].starts_with(MAGIC) && parse(&tail[i..]).is_some()) {
            return Err(damaged(path, &format!("the record at byte {at} is invalid, a later one is not")));
        }
        let start: Start = match records.first() {
            Some((kind, range)) if kind == "start" => json(path, &bytes[range.clone()])?,
            _ => return Err(damaged(path, "it does not begin with its start record")),
        };
        if start.version != VERSION {
            return Err(damaged(path, &format!("version {}, this program reads {VERSION}", start.version)));
        }
        let last = records.iter().rev().find(|(kind, _)| kind.starts_with("mark"));
        let last = last.map(|(_, range)| json(path, &bytes[range.clone()])).transpose()?;
        let released = records.last().is_some_and(|(kind, _)| kind == "release");
        Ok(Self { valid: at as u64, records, start, released, last, bytes })
    }

    pub(super) fn head(&self) -> Option<&Mark> {
        self.last.as_ref().map(|commit| &commit.mark).or(self.start.head.as_ref())
    }

    /// Renames and rolling files as the head leaves them.
    pub(super) fn owed(&self) -> (Vec<Rename>, BTreeMap<String, Active>) {
        match &self.last {
            Some(commit) => (commit.renames.clone(), commit.active.clone()),
            None => (self.start.renames.clone(), self.start.active.clone()),
        }
    }

    /// Rolling files as the commit of `digest` left them, which may not be the last one.
    pub(super) fn active_at(&self, path: &Path, digest: Option<Digest>) -> io::Result<BTreeMap<String, Active>> {
        for (_, range) in self.records.iter().rev().filter(|(kind, _)| kind.starts_with("mark")) {
            let commit: Commit = json(path, &self.bytes[range.clone()])?;
            if Some(commit.mark.digest) == digest {
                return Ok(commit.active);
            }
        }
        Ok(self.start.active.clone())
    }

    /// Entries that no plan has pruned, of `log` or of all, by log and number. A sink that becomes the anchor again is
    /// given numbers that it still has: what came last counts.
    pub(super) fn entries(&self, path: &Path, log: Option<&LogName>) -> io::Result<Vec<Entry>> {
        let mut entries = BTreeMap::new();
        for (kind, range) in &self.records {
            let appended: Vec<Entry> = match kind.as_str() {
                "entries" => json(path, &self.bytes[range.clone()])?,
                "mark+entries" => json::<Commit>(path, &self.bytes[range.clone()])?.entries,
                _ => continue,
            };
            entries.extend(appended.into_iter().map(|entry| ((entry.log.clone(), entry.number), entry)));
        }
        let first = |name: &LogName| self.head().and_then(|head| head.logs.get(name)).map_or(0, |state| state.first);
        let wanted = |entry: &Entry| log.is_none_or(|log| *log == entry.log) && entry.number >= first(&entry.log);
        Ok(entries.into_values().filter(wanted).collect())
    }
}

/// A log that is open for appending. Its owner writes it through a handle; that the handle may outlive the ownership is
/// what the proof by path after each append is for.
pub(super) struct Writer {
    file: File,
    pub(super) name: String,
    /// Bytes of valid records.
    pub(super) length: u64,
    /// Bytes that the log began with.
    pub(super) base: u64,
}

impl Writer {
    /// Makes the log `name` in `folder` whole: written and synced as a temporary, renamed, the folder synced.
    pub(super) fn create(folder: &Path, name: &str, start: &Start, entries: &[Entry]) -> io::Result<Self> {
        let mut bytes = Vec::new();
        record("start", start, &mut bytes)?;
        entries.chunks(ENTRIES_PER_RECORD).try_for_each(|chunk| record("entries", &chunk, &mut bytes))?;
        let temporary: PathBuf = folder.join(format!("{name}.tmp"));
        let file = File::options().write(true).create(true).truncate(true).open(&temporary)?;
        file.write_all_at(&bytes, 0)?;
        file.sync_all()?;
        fs::rename(&temporary, folder.join(name))?;
        crate::sink::durable::sync_dir(folder)?;
        let length = bytes.len() as u64;
        Ok(Self { file, name: name.to_owned(), length, base: length })
    }

    /// Appends a commit, not synced.
    pub(super) fn append(&mut self, commit: &Commit) -> io::Result<()> {
        let kind = if commit.entries.is_empty() { "mark" } else { "mark+entries" };
        self.append_record(kind, commit)
    }

    /// Appends the owner's release, not synced.
    pub(super) fn append_release(&mut self) -> io::Result<()> {
        self.append_record("release", &())
    }

    fn append_record<T: Serialize>(&mut self, kind: &str, value: &T) -> io::Result<()> {
        let mut bytes = Vec::new();
        record(kind, value, &mut bytes)?;
        self.file.write_all_at(&bytes, self.length)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn owner() -> Owner {
        Owner { name: "host".into(), data_dir: Uuid::from_u128(1), instance: Uuid::from_u128(2) }
    }

    fn entry(number: u64) -> Entry {
        Entry { log: LogName::new("files:a"), number, text: format!("file {number}\n") }
    }

    #[test]
    fn every_torn_tail_is_a_batch_that_never_was_and_every_hole_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let start = Start::new(Generation(3), &owner());
        let mut log = Writer::create(dir.path(), "log-g3.mark", &start, &[entry(0), entry(1)]).unwrap();
        let base = log.length as usize;
        log.append_release().unwrap();
        let path = dir.path().join("log-g3.mark");
        let whole = fs::read(&path).unwrap();
        assert!(Image::read(&path).unwrap().released);
        for length in base..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let image = Image::read(&path).unwrap();
            assert_eq!((image.valid, image.released), (base as u64, false), "cut at {length}");
            assert_eq!(image.entries(&path, None).unwrap(), [entry(0), entry(1)]);
        }
        for at in 0..base {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).unwrap();
            let error = Image::read(&path).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "flipped at {at}");
        }
    }
}
