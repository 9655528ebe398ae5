//! `type: test`: a source for this project's own tests, shaped like a partitioned topic but made of files.
//!
//! A folder holds:
//! - `shards/N`: the records of shard N as lines. It may grow (a line counts once it has its newline), and new shards
//!   may appear. Position: byte offset.
//! - `assign/OWNER`: with `lanes: partition`, the shards whose lanes (`shard/N`) this daemon has, by their numbers,
//!   between white space. A number that goes is revoked; with a line `lost N` the lane is lost instead. Looked at every
//!   [`POLL`]. Without a folder `assign` every shard is this daemon's. With `lanes: single` it is not looked at.
//! - `fewer`: where it exists, a replay leaves out lines that begin with `#gone`, as a compacted topic would.
//! - `released/N`: written by the source: the position to which shard N is released.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tidemill_checkpoint::{Lane, Position, Positions, ShardId, Span, Spans};

use super::{
    Adopted, Base, Budget, History, Lag, Origin, Proposal, RawBatch, Settings, Slice, Source, SourceError, SourceEvent,
};

/// How often files are looked at.
pub const POLL: Duration = Duration::from_millis(50);
/// How long a revoked lane may take to finish its batch.
pub const REVOKE_LIMIT: Duration = Duration::from_secs(5);
/// How much of a shard is read at once in search of a line's end.
const READ_BYTES: u64 = 1024 * 1024;

/// A source whose lanes and records are files that a test writes.
pub struct TestSource {
    name: String,
    path: PathBuf,
    partitioned: bool,
    owner: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Shards whose lanes were assigned here and not taken back.
    mine: BTreeSet<u64>,
    /// How far each shard was looked at: `event` wakes for more.
    seen: BTreeMap<u64, u64>,
    /// `--once`: the length of each shard then.
    ends: Option<BTreeMap<u64, u64>>,
}

/// What `assign/OWNER` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Assignment {
    mine: BTreeSet<u64>,
    lost: BTreeSet<u64>,
}

impl Assignment {
    fn parse(text: &str) -> Self {
        let mut words = text.split_whitespace();
        let mut assignment = Self::default();
        while let Some(word) = words.next() {
            if word == "lost" {
                assignment.lost.extend(words.next().and_then(|number| number.parse::<u64>().ok()));
            } else {
                assignment.mine.extend(word.parse::<u64>().ok());
            }
        }
        assignment
    }
}

impl TestSource {
    /// Opens the folder of `test`.
    pub fn open(
        config: &tidemill_config::Source,
        test: &tidemill_config::TestSource,
        settings: &Settings,
    ) -> Result<Self, SourceError> {
        let (name, path) = (config.name.value.clone(), test.path.clone());
        if !path.join("shards").is_dir() {
            return Err(SourceError::Fatal(format!("source {name}: there is no folder {}/shards", path.display())));
        }
        let owner = settings.owner.clone();
        Ok(Self { name, path, partitioned: settings.partitioned, owner, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, number: u64) -> ShardId {
        ShardId::new(&self.name, &number.to_string())
    }

    fn number(&self, shard: &ShardId) -> Option<u64> {
        (shard.source() == self.name).then(|| shard.part().parse().ok()).flatten()
    }

    fn file(&self, number: u64) -> PathBuf {
        self.path.join("shards").join(number.to_string())
    }

    fn lane(number: u64) -> Lane {
        Lane::new(&format!("shard/{number}"))
    }

    /// Every shard that exists, with its length.
    fn shards(&self) -> Result<BTreeMap<u64, u64>, SourceError> {
        let list = || -> io::Result<BTreeMap<u64, u64>> {
            let mut shards = BTreeMap::new();
            for entry in fs::read_dir(self.path.join("shards"))? {
                let entry = entry?;
                if let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                    shards.insert(number, entry.metadata()?.len());
                }
            }
            Ok(shards)
        };
        list().map_err(|error| SourceError::io(format!("source {}: list its shards", self.name), &error))
    }

    /// The shards of a lane.
    fn shards_of(&self, lane: &Lane) -> Result<BTreeMap<u64, u64>, SourceError> {
        let mut shards = self.shards()?;
        if self.partitioned {
            shards.retain(|number, _| Self::lane(*number) == *lane);
        }
        Ok(shards)
    }

    /// What this daemon has now.
    fn assignment(&self, shards: &BTreeMap<u64, u64>) -> Assignment {
        if !self.path.join("assign").is_dir() {
            return Assignment { mine: shards.keys().copied().collect(), lost: BTreeSet::new() };
        }
        let text = fs::read_to_string(self.path.join("assign").join(&self.owner)).unwrap_or_default();
        Assignment::parse(&text)
    }

    /// What changed since it was last told: losses, then revocations, then assignments.
    fn moved(&self, now: &Assignment) -> Option<SourceEvent> {
        let mut state = self.state();
        let gone: Vec<u64> = state.mine.difference(&now.mine).copied().collect();
        let (lost, revoked): (Vec<u64>, Vec<u64>) = gone.into_iter().partition(|number| now.lost.contains(number));
        let come: Vec<u64> = now.mine.difference(&state.mine).copied().collect();
        let lanes = |numbers: &[u64]| numbers.iter().map(|number| Self::lane(*number)).collect();
        let (numbers, event) = match (&*lost, &*revoked, &*come) {
            ([_, ..], ..) => (lost.clone(), SourceEvent::Lost(lanes(&lost))),
            (_, [_, ..], _) => (revoked.clone(), SourceEvent::Revoked(lanes(&revoked), REVOKE_LIMIT)),
            (.., [_, ..]) => (come.clone(), SourceEvent::Assigned(lanes(&come))),
            _ => return None,
        };
        for number in numbers {
            if !state.mine.remove(&number) {
                state.mine.insert(number);
            }
            state.seen.remove(&number);
        }
        Some(event)
    }

    fn due(&self) -> Result<Option<SourceEvent>, SourceError> {
        let shards = self.shards()?;
        if self.partitioned
            && let Some(event) = self.moved(&self.assignment(&shards))
        {
            return Ok(Some(event));
        }
        let state = self.state();
        let seen = |number: &u64| state.seen.get(number).copied().unwrap_or(0);
        let is_mine = |number: &u64| !self.partitioned || state.mine.contains(number);
        if shards.iter().any(|(number, length)| is_mine(number) && *length > seen(number)) {
            return Ok(Some(SourceEvent::Data));
        }
        let at_end =
            |ends: &BTreeMap<u64, u64>| ends.iter().all(|(number, end)| !is_mine(number) || seen(number) >= *end);
        Ok(state.ends.as_ref().is_some_and(at_end).then_some(SourceEvent::End))
    }

    /// The bytes `[from, to)` of a shard.
    fn bytes(&self, number: u64, from: u64, to: u64) -> Result<Bytes, SourceError> {
        let read = || {
            let mut file = fs::File::open(self.file(number))?;
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(to - from).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read()
            .map_err(|error: io::Error| SourceError::io(format!("read {}", self.file(number).display()), &error))?;
        if (bytes.len() as u64) < to - from {
            return Err(self.lost(number, to));
        }
        Ok(bytes.into())
    }

    fn lost(&self, number: u64, position: u64) -> SourceError {
        let shard = self.shard(number);
        SourceError::Lost {
            shard: shard.to_string(),
            what: format!("{} ends before position {position}", self.file(number).display()),
            way_out: format!("`tidemill checkpoint resolve --shard {shard} --accept-loss`"),
        }
    }

    fn slice(&self, number: u64, from: u64, bytes: Bytes, leave_out_gone: bool) -> Slice {
        let keep =
            |(start, end): &(u32, u32)| !leave_out_gone || !bytes[*start as usize..*end as usize].starts_with(b"#gone");
        let records = lines(&bytes).filter(keep).collect();
        let base = Base::Bytes(from);
        Slice {
            shard: self.shard(number),
            bytes,
            records,
            base,
            header: None,
            metadata: Vec::new(),
            columns: Vec::new(),
        }
    }
}

/// Where the whole lines of `bytes` lie.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (u32, u32)> {
    let mut start = 0;
    memchr::memchr_iter(b'\n', bytes).map(move |end| {
        let line = (start as u32, end as u32);
        start = end + 1;
        line
    })
}

/// The beginning, where the mark does not know the shard.
fn offset(position: Option<&Position>) -> Result<u64, SourceError> {
    let number = |position: &Position| {
        position.as_number().ok_or_else(|| SourceError::Fatal(format!("{position} is no position of a test source")))
    };
    position.map_or(Ok(0), number)
}

/// The first read of a proposal is not a replay.
struct First;

#[async_trait]
impl Source for TestSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn rereadable(&self) -> bool {
        true
    }

    async fn start(&self) -> Result<(), SourceError> {
        Ok(())
    }

    async fn event(&self) -> Result<SourceEvent, SourceError> {
        loop {
            if let Some(event) = self.due()? {
                return Ok(event);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn origin(&self, lane: &Lane) -> Result<Origin, SourceError> {
        let positions = self.shards_of(lane)?.keys().map(|number| (self.shard(*number), Position::number(0))).collect();
        Ok(Origin { positions, ..Origin::default() })
    }

    async fn adopt(&self, lane: &Lane, at: &Positions, _history: &History) -> Result<Adopted, SourceError> {
        let shards = self.shards_of(lane)?;
        for (shard, position) in at {
            let Some(number) = self.number(shard) else { continue };
            let position = offset(Some(position))?;
            if shards.get(&number).copied().unwrap_or(0) < position {
                return Err(self.lost(number, position));
            }
        }
        let mut adopted = Adopted::default();
        let mut state = self.state();
        for number in shards.keys() {
            let shard = self.shard(*number);
            state.seen.insert(*number, offset(at.get(&shard))?);
            if !at.contains_key(&shard) {
                adopted.new_shards.insert(shard, Position::number(0));
            }
        }
        Ok(adopted)
    }

    async fn plan(&self, lane: &Lane, from: &Positions, budget: Budget) -> Result<Option<Proposal>, SourceError> {
        let (mut spans, mut records, mut bytes) = (Spans::new(), 0, 0);
        for (number, length) in self.shards_of(lane)? {
            let shard = self.shard(number);
            let start = offset(from.get(&shard))?;
            if length < start {
                return Err(self.lost(number, start));
            }
            let (mut to, mut window) = (start, READ_BYTES);
            let is_full = loop {
                let until = length.min(start + window);
                let text = self.bytes(number, start, until)?;
                let mut is_full = false;
                for (begin, end) in lines(&text) {
                    let size = (end - begin) as usize;
                    is_full = records >= budget.records || (records > 0 && bytes + size > budget.bytes);
                    if is_full {
                        break;
                    }
                    (records, bytes, to) = (records + 1, bytes + size, start + u64::from(end) + 1);
                }
                if is_full || until == length || to > start {
                    break is_full || until < length;
                }
                // A line longer than the window.
                window *= 2;
            };
            self.state().seen.insert(number, if is_full { to } else { length });
            if to > start {
                spans.insert(shard, Span { from: Position::number(start), to: Position::number(to) });
            }
        }
        let proposal = |spans| Proposal { spans, ahead: Some(Arc::new(First)), ..Proposal::default() };
        Ok((!spans.is_empty()).then(|| proposal(spans)))
    }

    async fn read(&self, _lane: &Lane, proposal: &Proposal) -> Result<RawBatch, SourceError> {
        let is_replay = !proposal.ahead.as_ref().is_some_and(|ahead| ahead.is::<First>());
        let leave_out_gone = is_replay && self.path.join("fewer").exists();
        let mut batch = RawBatch::default();
        for (shard, span) in &proposal.spans {
            let Some(number) = self.number(shard) else { continue };
            let (from, to) = (offset(Some(&span.from))?, offset(Some(&span.to))?);
            let bytes = self.bytes(number, from, to)?;
            batch.slices.push(self.slice(number, from, bytes, leave_out_gone));
        }
        Ok(batch)
    }

    async fn release(&self, _lane: &Lane, reached: &Positions) -> Result<(), SourceError> {
        for (shard, position) in reached {
            if let Some(number) = self.number(shard) {
                note(&self.path.join("released"), number, position)
                    .map_err(|error| SourceError::io(format!("source {}: note what is released", self.name), &error))?;
            }
        }
        Ok(())
    }

    fn lag(&self, at: &Positions) -> Lag {
        let shards = self.shards().unwrap_or_default();
        let waiting =
            |(number, length): (&u64, &u64)| length.saturating_sub(offset(at.get(&self.shard(*number))).unwrap_or(0));
        Lag { bytes: Some(shards.iter().map(waiting).sum()), ..Lag::default() }
    }

    fn finish(&self) {
        let ends = self.shards().unwrap_or_default();
        self.state().ends = Some(ends);
    }
}

fn note(dir: &Path, number: u64, position: &Position) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let temporary = dir.join(format!("{number}.tmp"));
    fs::write(&temporary, position.as_str())?;
    fs::rename(temporary, dir.join(number.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use tempfile::{TempDir, tempdir};
    use tidemill_config::{Codec, Located, SourceKind};
    use tokio::time::timeout;

    use super::*;

    const ALL: Budget = Budget { records: usize::MAX, bytes: usize::MAX };

    fn folder(shards: &[(u64, &str)]) -> TempDir {
        let dir = tempdir().unwrap();
        fs::create_dir(dir.path().join("shards")).unwrap();
        for (number, text) in shards {
            fs::write(dir.path().join("shards").join(number.to_string()), text).unwrap();
        }
        dir
    }

    fn open(dir: &TempDir, partitioned: bool, owner: &str) -> TestSource {
        let test = tidemill_config::TestSource { path: dir.path().to_owned() };
        let config = tidemill_config::Source {
            name: Located { value: "topic".to_owned(), at: Default::default() },
            formerly: None,
            kind: SourceKind::Test(test.clone()),
            codec: Codec::Text,
            schema: None,
            metadata: Vec::new(),
        };
        let settings = Settings {
            partitioned,
            spool: dir.path().join("spool"),
            owner: owner.to_owned(),
            job: "job".to_owned(),
            ahead_bytes: 1 << 20,
            trigger: Duration::ZERO,
        };
        TestSource::open(&config, &test, &settings).unwrap()
    }

    async fn event(source: &TestSource) -> SourceEvent {
        timeout(Duration::from_secs(10), source.event()).await.unwrap().unwrap()
    }

    async fn texts(source: &TestSource, lane: &Lane, proposal: &Proposal) -> Vec<String> {
        let batch = source.read(lane, proposal).await.unwrap();
        let text = |slice: &Slice, n| format!("{} {}", slice.position(n), String::from_utf8_lossy(slice.record(n)));
        batch
            .slices
            .iter()
            .flat_map(|slice| (0..slice.records.len()).map(|n| text(slice, n)).collect::<Vec<_>>())
            .collect()
    }

    #[tokio::test]
    async fn one_lane_reads_all_shards_that_grow_and_appear() {
        let dir = folder(&[(0, "a\nbb\nhalf"), (1, "c\n")]);
        let (source, lane) = (open(&dir, false, "me"), Lane::single());
        let mut at = source.origin(&lane).await.unwrap().positions;
        assert!(source.adopt(&lane, &at, &History::default()).await.unwrap().new_shards.is_empty());
        let mut got = Vec::new();
        for round in 0..2 {
            assert_eq!(event(&source).await, SourceEvent::Data);
            while let Some(plan) = source.plan(&lane, &at, Budget { records: 2, ..ALL }).await.unwrap() {
                got.extend(texts(&source, &lane, &plan).await);
                at.extend(plan.spans.into_iter().map(|(shard, span)| (shard, span.to)));
            }
            if round == 0 {
                assert!(timeout(4 * POLL, source.event()).await.is_err(), "half a line is nothing yet");
                fs::write(dir.path().join("shards/0"), "a\nbb\nhalf no more\n").unwrap();
                fs::write(dir.path().join("shards/2"), "d\n").unwrap();
            }
        }
        assert_eq!(got, ["0 a", "2 bb", "0 c", "5 half no more", "0 d"]);
        source.release(&lane, &at).await.unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("released/0")).unwrap(), "18");
        source.finish();
        assert_eq!(event(&source).await, SourceEvent::End);
        fs::write(dir.path().join("shards/0"), "a\n").unwrap();
        assert!(matches!(source.plan(&lane, &at, ALL).await, Err(SourceError::Lost { .. })));
        assert!(matches!(source.adopt(&lane, &at, &History::default()).await, Err(SourceError::Lost { .. })));
    }

    #[tokio::test]
    async fn lanes_move_as_the_files_say() {
        let dir = folder(&[(0, "a\n"), (1, "b\n"), (2, "c\n")]);
        fs::create_dir(dir.path().join("assign")).unwrap();
        let assign = |owner: &str, text: &str| fs::write(dir.path().join("assign").join(owner), text).unwrap();
        assign("me", "0 1\n2");
        let lane = TestSource::lane;
        let (me, you) = (open(&dir, true, "me"), open(&dir, true, "you"));
        assert_eq!(event(&me).await, SourceEvent::Assigned(vec![lane(0), lane(1), lane(2)]));
        assert!(timeout(4 * POLL, you.event()).await.is_err());
        assert_eq!(event(&me).await, SourceEvent::Data);
        assert_eq!(me.origin(&lane(1)).await.unwrap().positions, Positions::from([(me.shard(1), Position::number(0))]));
        let plan = me.plan(&lane(1), &Positions::new(), ALL).await.unwrap().unwrap();
        assert_eq!(texts(&me, &lane(1), &plan).await, ["0 b"]);
        assign("me", "0\nlost 2\n");
        assign("you", "1");
        assert_eq!(event(&me).await, SourceEvent::Lost(vec![lane(2)]));
        assert_eq!(event(&me).await, SourceEvent::Revoked(vec![lane(1)], REVOKE_LIMIT));
        assert_eq!(event(&you).await, SourceEvent::Assigned(vec![lane(1)]));
        assert_eq!(event(&you).await, SourceEvent::Data);
        assign("me", "0 1 2");
        assert_eq!(event(&me).await, SourceEvent::Assigned(vec![lane(1), lane(2)]));
    }

    #[tokio::test]
    async fn a_replay_may_give_fewer_records_but_the_rest_at_the_same_positions() {
        let dir = folder(&[(0, "a\n#gone b\nc\n")]);
        let (source, lane) = (open(&dir, true, "me"), TestSource::lane(0));
        assert_eq!(
            event(&source).await,
            SourceEvent::Assigned(vec![lane.clone()]),
            "without a folder `assign` all are mine"
        );
        let plan = source.plan(&lane, &Positions::new(), ALL).await.unwrap().unwrap();
        let replay = Proposal { spans: plan.spans.clone(), ..Proposal::default() };
        assert_eq!(texts(&source, &lane, &replay).await, ["0 a", "2 #gone b", "10 c"]);
        fs::write(dir.path().join("fewer"), "").unwrap();
        assert_eq!(
            texts(&source, &lane, &plan).await,
            ["0 a", "2 #gone b", "10 c"],
            "the first time they are all there"
        );
        assert_eq!(texts(&source, &lane, &replay).await, ["0 a", "10 c"]);
    }
}
