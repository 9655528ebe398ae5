//! Sources: where records come from. One file or folder each.
//!
//! A source fixes what a batch reads ([`Source::plan`]), gives exactly these records as often as it is asked
//! ([`Source::read`]), and may forget them only after [`Source::release`].

pub mod directory;
pub mod kafka;
pub mod socket;
pub mod sql;
pub mod testing;

use std::{
    any::Any,
    borrow::Cow,
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::array::ArrayRef;
use async_trait::async_trait;
use bytes::Bytes;
use tidemill_checkpoint::{Checks, Entry, Lane, LogName, LogState, Position, Positions, ShardId, Spans};

/// What wakes the batch loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// There may be something to plan.
    Data,
    /// These lanes are this daemon's from now on: claim them, then plan.
    Assigned(Vec<Lane>),
    /// These lanes go elsewhere: finish or abandon the open batch within the limit, then release.
    Revoked(Vec<Lane>, Duration),
    /// These lanes are gone already: drop everything of them.
    Lost(Vec<Lane>),
    /// The source is finished: what it has now is all that it will ever have (`--once`).
    End,
}

/// The soft caps of one plan of one source.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// At most this many records.
    pub records: usize,
    /// At most this many bytes, rounded up to what the source reads at once (64 KiB), and always at least one record.
    pub bytes: usize,
}

/// What a source offers as the next batch of a lane: fixed from now on.
#[derive(Debug, Default)]
pub struct Proposal {
    /// What is read, by shard.
    pub spans: Spans,
    /// New entries for the anchor's logs (a directory's accepted files), by log, without numbers.
    pub entries: BTreeMap<LogName, Vec<String>>,
    /// For logs that are pruned by this plan: entries below the number are dropped.
    pub prune: BTreeMap<LogName, u64>,
    /// What lies before the end of each span, of a source whose content another copy may have gone on from differently: the
    /// mark keeps it, and [`Source::adopt`] gets it back in the [`History`].
    pub checks: Checks,
    /// Read-ahead that belongs to the source: bytes that `read` need not fetch again. `None` in a replay.
    pub ahead: Option<Arc<dyn Any + Send + Sync>>,
}

/// Metadata of a slice that no job can ask for as a column: the number of the line in which its byte 0 lies, from 1 on.
pub const LINE: &str = "line";
/// The same: the label of the encoding of its bytes, where that is not UTF-8.
pub const ENCODING: &str = "encoding";

/// A stretch of one shard: contiguous bytes and where the records in it lie.
#[derive(Clone, Debug)]
pub struct Slice {
    /// The shard.
    pub shard: ShardId,
    /// The bytes.
    pub bytes: Bytes,
    /// Each record's bytes in `bytes`, without its terminator: (start, end), in order.
    pub records: Vec<(u32, u32)>,
    /// How a record's position follows from its offset.
    pub base: Base,
    /// What comes before the first record of the file and belongs to all (a CSV header line), where the codec asked for it.
    pub header: Option<Bytes>,
    /// Values of metadata columns that are the same for the whole slice: `file`.
    pub metadata: Vec<(&'static str, String)>,
    /// Values of metadata columns that differ from record to record (`key`, `offset`), one for each of `records`.
    pub columns: Vec<(&'static str, ArrayRef)>,
}

/// Where a slice's byte 0 lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// Positions are byte offsets: the record at `start` is at `base + start`.
    Bytes(u64),
    /// Positions are (file, byte offset): the record at `start` is at `file:(base + start)`.
    File(u64, u64),
    /// Positions are given record by record.
    Each(Arc<[Position]>),
    /// The same, for positions that are numbers.
    Offsets(Arc<[u64]>),
}

impl Slice {
    /// The position of record `index`.
    pub fn position(&self, index: usize) -> Position {
        let start = self.records.get(index).map_or(0, |record| u64::from(record.0));
        match &self.base {
            Base::Bytes(base) => Position::number(base + start),
            Base::File(file, base) => Position::pair(*file, base + start),
            Base::Offsets(offsets) => Position::number(offsets.get(index).copied().unwrap_or(0)),
            Base::Each(positions) => positions.get(index).cloned().unwrap_or_else(|| Position::number(0)),
        }
    }
    /// The bytes of record `index`.
    pub fn record(&self, index: usize) -> &[u8] {
        self.records
            .get(index)
            .and_then(|(start, end)| self.bytes.get(*start as usize..*end as usize))
            .unwrap_or_default()
    }
}

/// A record that never became a row because its bytes are wrong (broken UTF-8, a half record at a disconnect).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawReject {
    /// The shard.
    pub shard: ShardId,
    /// Where it lies.
    pub position: Position,
    /// Why: a short, stable word for metrics and a sentence for people, `half_record: the peer closed ...`.
    pub reason: Cow<'static, str>,
    /// The sentence.
    pub detail: String,
    /// The original bytes.
    pub record: Bytes,
    /// Where a person finds it, as in [`Slice::metadata`].
    pub metadata: Vec<(&'static str, String)>,
}

#[cfg(test)]
impl RawReject {
    /// The reason, of a source that has words of its own.
    fn word(&self) -> &'static str {
        match &self.reason {
            Cow::Borrowed(word) => word,
            Cow::Owned(word) => panic!("{word} is not a source's own word"),
        }
    }
}

/// All records of one proposal, in the order of shard and position.
#[derive(Clone, Debug, Default)]
pub struct RawBatch {
    /// The stretches.
    pub slices: Vec<Slice>,
    /// Records that are rejected before any codec sees them.
    pub rejects: Vec<RawReject>,
}

/// Where a lane starts in a source.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The start of each shard that is known now.
    pub positions: Positions,
    /// First entries of the anchor's logs (files that `start: latest` leaves out).
    pub entries: BTreeMap<LogName, Vec<String>>,
}

/// What a source needs of the daemon around it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `lanes: partition`: one lane per shard.
    pub partitioned: bool,
    /// A folder of the source's own in the data dir. Made when it is needed.
    pub spool: PathBuf,
    /// The daemon's owner name.
    pub owner: String,
    /// The job's name.
    pub job: String,
    /// What a source may keep in memory beyond its batches: read ahead of them.
    pub ahead_bytes: usize,
    /// How often batches are planned; zero where as soon as there is something.
    pub trigger: Duration,
}

/// What a source finds when it is put at a mark.
#[derive(Clone, Debug, Default)]
pub struct Adopted {
    /// Shards that the source has and the mark does not: each starts where its source says (its beginning).
    pub new_shards: Positions,
    /// Things to tell the operator (a lost spool with `on_lost_spool: continue`).
    pub warnings: Vec<String>,
}

/// The logs of the anchor as a source gets them back.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// How far each log goes.
    pub states: BTreeMap<LogName, LogState>,
    /// What the source said of the content before the mark's positions, where it was asked then.
    pub checks: Checks,
    /// The entries, by log, in order.
    pub entries: Vec<Entry>,
}

/// What can go wrong in a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It may pass: try again with backoff.
    #[error("{what}: {cause}")]
    Transient {
        /// What was being done, to what.
        what: String,
        /// The cause.
        cause: String,
    },
    /// Records that a plan or a mark speaks of are gone or changed: the lane stops.
    #[error("shard {shard}: {what}. {way_out}")]
    Lost {
        /// The shard.
        shard: String,
        /// What is gone.
        what: String,
        /// The command that resolves it.
        way_out: String,
    },
    /// The source cannot work as it is configured; no retry helps.
    #[error("{0}")]
    Fatal(String),
}

impl SourceError {
    /// Whether a retry can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Transient { .. })
    }
    /// An I/O error that may pass.
    pub fn io(what: impl Into<String>, cause: &std::io::Error) -> Self {
        Self::Transient { what: what.into(), cause: cause.to_string() }
    }
}

/// Where records come from. `event`, `plan` and `read` are cancel-safe.
#[async_trait]
pub trait Source: Send + Sync {
    /// The source's name in its job.
    fn name(&self) -> &str;

    /// Whether records can be read again from an older position than the released one (a directory: yes; a socket: no).
    fn rereadable(&self) -> bool;

    /// Connects and looks whether the source could work as it is configured (`validate --connect`). Changes nothing, takes
    /// nothing: an error names what is missing (a topic, a right, a password that is wrong) and the way out.
    async fn check(&self) -> Result<(), SourceError> {
        Ok(())
    }

    /// Begins to receive: called once the first lane is owned, never before (a runner that owns nothing accepts nothing).
    async fn start(&self) -> Result<(), SourceError>;

    /// Takes back what [`Source::start`] began, which may be called again: the lane is another owner's now. What was
    /// received stays.
    async fn stop(&self) {}

    /// Waits for something to do. May wake without a reason; never misses one.
    async fn event(&self) -> Result<SourceEvent, SourceError>;

    /// Where a lane starts that no sink has a mark of: `start:`, resolved now. Asked once in a lane's life.
    async fn origin(&self, lane: &Lane) -> Result<Origin, SourceError>;

    /// Puts the source at a mark: its positions (of this source's shards) and the anchor's logs. Called after each claim,
    /// before anything is planned, and again after a batch was abandoned.
    async fn adopt(&self, lane: &Lane, at: &Positions, history: &History) -> Result<Adopted, SourceError>;

    /// Fixes what the lane's next batch reads, from `from` on. May read ahead; hands out no rows. `None`: nothing to do.
    async fn plan(&self, lane: &Lane, from: &Positions, budget: Budget) -> Result<Option<Proposal>, SourceError>;

    /// The records of `spans`: the same at each call until they are released. `proposal` is what `plan` gave, or for a
    /// replay one made of the plan's spans alone. A range that is lost is an error, never a skip.
    async fn read(&self, lane: &Lane, proposal: &Proposal) -> Result<RawBatch, SourceError>;

    /// Every sink has what lies before `reached`: it may be forgotten. Idempotent; repeated after a restart.
    async fn release(&self, lane: &Lane, reached: &Positions) -> Result<(), SourceError>;

    /// A lane that was revoked is released in every sink: nothing of it is read or written here any more.
    async fn let_go(&self, lane: &Lane) {
        let _ = lane;
    }

    /// Where the source listens, once it does: for people, and for tests with port 0.
    fn listening(&self) -> Option<SocketAddr> {
        None
    }

    /// How much waits beyond `at`, which is empty where nobody knows where the lanes stand: for the lag metrics. An estimate,
    /// cheap. What is not known is not 0.
    fn lag(&self, at: &Positions) -> Lag {
        let _ = at;
        Lag::default()
    }

    /// Whether [`Source::lag`] counts from `at`: then it is right of a lane that does not run, too.
    fn lag_counts_from_positions(&self) -> bool {
        false
    }

    /// Why nothing can be received now although the source works (a spool on a full disk), where that is so.
    fn fault(&self) -> Option<String> {
        None
    }

    /// Since when the other side cannot be reached, and why, where a source waits for it by itself and says nothing else of it
    /// ([`Source::event`] does not fail).
    fn unreachable(&self) -> Option<Unreachable> {
        None
    }

    /// Whether all that will ever come is there: a batch of `--once` need not wait for its trigger. A source of which more may
    /// come while it is read (a socket whose peer is connected) says no.
    fn is_complete(&self) -> bool {
        true
    }

    /// The job's batch loop worked for so long of the time that passed since it last said so. A source whose lanes are shared
    /// out among daemons takes more of them, or fewer.
    fn worked(&self, worked: Duration, passed: Duration) {
        let _ = (worked, passed);
    }

    /// `--once`: from now on [`Source::event`] answers `End` when what was there at this call is planned
    /// (a socket: when its peer has closed and the spool is planned).
    fn finish(&self);
}

/// A server that does not answer.
#[derive(Clone, Debug)]
pub struct Unreachable {
    /// Since the first of the attempts in a row that failed.
    pub since: Instant,
    /// What the last one came to.
    pub why: String,
}

/// How much waits in a source. `None`: not known, or not of such a source.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lag {
    /// Records, where they can be counted.
    pub records: Option<u64>,
    /// Bytes.
    pub bytes: Option<u64>,
    /// Age of the oldest waiting record; zero where nothing waits.
    pub oldest: Option<Duration>,
    /// Bytes in a spool.
    pub spool_bytes: Option<u64>,
}

/// What a source has at a position of a shard, as far as can be seen without opening the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The position exists.
    There {
        /// Nothing waits behind it.
        is_end: bool,
    },
    /// It does not: where the shard begins and ends, in words.
    Nowhere(String),
    /// The shard is not here now (a spool that is lost, a topic that was made again): why, in words.
    Foreign(String),
}

/// Looks for a position of a shard before an operator's command sets the lane to it. Changes nothing, and works beside a
/// daemon that has the source open. `history` has the anchor's logs as far as they could be read.
pub async fn find(
    config: &tidemill_config::Source,
    settings: &Settings,
    shard: &ShardId,
    position: &Position,
    history: &History,
) -> Result<Found, SourceError> {
    use tidemill_config::SourceKind;
    match &config.kind {
        SourceKind::Socket(_) => socket::find(&settings.spool, shard, position),
        SourceKind::Directory(directory) => Ok(directory::find(directory, shard, position, history)),
        SourceKind::Kafka(kafka) => kafka::KafkaSource::open(config, kafka, settings)?.find(shard, position).await,
        SourceKind::Sql(sql) => sql::SqlSource::open(config, sql)?.find(position).await,
        SourceKind::Test(_) => Ok(Found::There { is_end: false }),
    }
}

/// Whether a source keeps records in memory before a batch asks for them.
pub fn reads_ahead(kind: &tidemill_config::SourceKind) -> bool {
    matches!(kind, tidemill_config::SourceKind::Kafka(_))
}

/// The source that a job's config describes. Receives nothing before [`Source::start`].
pub fn open(config: &tidemill_config::Source, settings: &Settings) -> Result<Arc<dyn Source>, SourceError> {
    use tidemill_config::SourceKind;
    Ok(match &config.kind {
        SourceKind::Socket(socket) => Arc::new(socket::SocketSource::open(config, socket, &settings.spool)?),
        SourceKind::Directory(directory) => Arc::new(directory::DirectorySource::open(config, directory)?),
        SourceKind::Kafka(kafka) => Arc::new(kafka::KafkaSource::open(config, kafka, settings)?),
        SourceKind::Sql(sql) => Arc::new(sql::SqlSource::open(config, sql)?),
        SourceKind::Test(test) => Arc::new(testing::TestSource::open(config, test, settings)?),
    })
}
