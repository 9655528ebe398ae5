//! The contract, sentence by sentence, against a real folder; and a long random life of one.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs::{self, FileTimes},
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;
use tidemill_checkpoint::{Digest, Entry, Lane, LogName, LogState, Position, ShardId, position::advance};
use tidemill_config::model::{Codec, Csv, Directory, Located, OnChanged, OnDone, SourceKind, Start};

use super::*;

mod accounts;
mod changes;
mod done_and_start;
mod life;
mod reading;
mod rotation;
mod scale;
mod taking;

/// Everything fits.
const ALL: Budget = Budget { records: usize::MAX, bytes: 64 << 20 };

/// A source, the folder it watches, and an anchor that keeps what its plans bring.
struct Rig {
    dir: TempDir,
    config: Directory,
    codec: Codec,
    source: DirectorySource,
    at: Positions,
    entries: Vec<Entry>,
    first: u64,
    next: u64,
}

/// A record as the tests compare it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rec {
    position: String,
    file: String,
    text: String,
}

/// One committed batch.
struct Batch {
    proposal: Proposal,
    raw: RawBatch,
}

impl Batch {
    fn records(&self) -> Vec<Rec> {
        records(&self.raw)
    }
    fn texts(&self) -> Vec<String> {
        self.records().into_iter().map(|record| record.text).collect()
    }
    fn rejects(&self) -> Vec<(String, &'static str)> {
        self.raw.rejects.iter().map(|reject| (reject.position.to_string(), reject.word())).collect()
    }
    fn end(&self) -> String {
        self.proposal.spans.values().next().unwrap().to.to_string()
    }
}

fn records(raw: &RawBatch) -> Vec<Rec> {
    let mut out = Vec::new();
    for slice in &raw.slices {
        for index in 0..slice.records.len() {
            out.push(Rec {
                position: slice.position(index).to_string(),
                file: slice.metadata[0].1.clone(),
                text: String::from_utf8_lossy(slice.record(index)).into_owned(),
            });
        }
    }
    out
}

fn lane() -> Lane {
    Lane::single()
}

fn shard() -> ShardId {
    ShardId::new("in", "")
}

fn log() -> LogName {
    LogName::new("files:in")
}

fn directory(path: &Path) -> Directory {
    Directory {
        path: path.to_owned(),
        include: vec!["*".to_owned()],
        exclude: Vec::new(),
        recursive: false,
        settle: Duration::ZERO,
        on_done: OnDone::Keep,
        on_changed: OnChanged::Fail,
        start: Start::Earliest,
    }
}

fn model_source(config: &Directory, codec: &Codec) -> model::Source {
    model::Source {
        name: Located { value: "in".to_owned(), at: Default::default() },
        formerly: None,
        kind: SourceKind::Directory(config.clone()),
        codec: codec.clone(),
        schema: None,
        metadata: Vec::new(),
    }
}

fn open(config: &Directory, codec: &Codec) -> DirectorySource {
    DirectorySource::open(&model_source(config, codec), config).unwrap()
}

impl Rig {
    async fn new() -> Self {
        Self::with(Codec::Text, |_| {}).await
    }

    /// A rig whose origin is resolved before the test puts any file there.
    async fn with(codec: Codec, change: impl FnOnce(&mut Directory)) -> Self {
        let mut rig = Self::unborn(codec, change);
        rig.begin().await;
        rig
    }

    fn unborn(codec: Codec, change: impl FnOnce(&mut Directory)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in");
        fs::create_dir(&path).unwrap();
        let mut config = directory(&path);
        change(&mut config);
        let source = open(&config, &codec);
        Self { dir, config, codec, source, at: Positions::new(), entries: Vec::new(), first: 0, next: 0 }
    }

    async fn begin(&mut self) {
        let origin = self.source.origin(&lane()).await.unwrap();
        self.at = origin.positions;
        self.append(&origin.entries);
        self.adopt().await;
    }

    fn path(&self, name: &str) -> PathBuf {
        self.config.path.join(name)
    }

    /// Writes a file that is `age` seconds old.
    fn put(&self, name: &str, text: impl AsRef<[u8]>, age: u64) {
        fs::write(self.path(name), text).unwrap();
        self.age(name, age);
    }

    fn age(&self, name: &str, age: u64) {
        let time = SystemTime::now() - Duration::from_secs(age);
        let file = fs::File::options().append(true).open(self.path(name)).unwrap();
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
    }

    fn append(&mut self, entries: &BTreeMap<LogName, Vec<String>>) {
        for text in entries.get(&log()).into_iter().flatten() {
            self.entries.push(Entry { log: log(), number: self.next, text: text.clone() });
            self.next += 1;
        }
    }

    fn history(&self) -> History {
        let state = LogState { first: self.first, next: self.next, digest: Digest::of(b"") };
        let entries = self.entries.iter().filter(|entry| entry.number >= self.first).cloned().collect();
        History { states: [(log(), state)].into(), entries, ..History::default() }
    }

    async fn adopt(&self) {
        self.source.adopt(&lane(), &self.at, &self.history()).await.unwrap();
    }

    /// A new process, with what the anchor has.
    async fn restart(&mut self) {
        self.source = open(&self.config, &self.codec);
        self.adopt().await;
    }

    /// Plans without a pause: everything that lies there is looked at anew.
    async fn try_plan(&self, budget: Budget) -> Result<Option<Proposal>, SourceError> {
        self.source
            .run(|state, _| {
                state.scan_soon();
                Ok(())
            })
            .await
            .unwrap();
        self.source.plan(&lane(), &self.at, budget).await
    }

    fn commit(&mut self, proposal: &Proposal) {
        self.append(&proposal.entries);
        self.at = advance(&self.at, &proposal.spans).unwrap();
        if let Some(first) = proposal.prune.get(&log()) {
            self.first = *first;
        }
    }

    /// One batch, committed, and read a second time as a replay would.
    async fn batch(&mut self, budget: Budget) -> Option<Batch> {
        let proposal = self.try_plan(budget).await.unwrap()?;
        let raw = self.source.read(&lane(), &proposal).await.unwrap();
        self.commit(&proposal);
        let again = self.replay(&proposal).await.unwrap();
        assert_eq!(records(&raw), records(&again), "a replay gives the same records");
        assert_eq!(raw.rejects, again.rejects, "a replay gives the same rejects");
        Some(Batch { proposal, raw })
    }

    async fn replay(&self, proposal: &Proposal) -> Result<RawBatch, SourceError> {
        let bare = Proposal { spans: proposal.spans.clone(), ..Proposal::default() };
        self.source.read(&lane(), &bare).await
    }

    async fn release(&self) {
        self.source.release(&lane(), &self.at).await.unwrap();
    }

    /// The records of all batches until there is nothing left.
    async fn drain(&mut self, budget: Budget) -> Vec<Rec> {
        let mut all = Vec::new();
        while let Some(batch) = self.batch(budget).await {
            all.extend(batch.records());
        }
        all
    }

    async fn drain_texts(&mut self) -> Vec<String> {
        self.drain(ALL).await.into_iter().map(|record| record.text).collect()
    }

    fn opens(&self) -> u64 {
        self.source.inner.state.lock().unwrap().folder.opens.load(Ordering::Relaxed)
    }
}

fn gzip(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        let mut encoder = flate2::write::GzEncoder::new(&mut out, flate2::Compression::fast());
        encoder.write_all(part).unwrap();
        encoder.finish().unwrap();
    }
    out
}

fn zstandard(parts: &[&[u8]]) -> Vec<u8> {
    parts.iter().flat_map(|part| zstd::encode_all(*part, 1).unwrap()).collect()
}

/// `n` numbered lines of about 60 bytes that do not compress to nothing.
fn lines(n: usize) -> String {
    (0..n)
        .map(|i| format!("line {i} {:032x}\n", (i as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)))
        .collect()
}
