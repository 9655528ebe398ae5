//! What a job and a daemon are, once their files are checked.
//!
//! A text of a source, a sink or the daemon may come from the environment or a file, and be a secret: such types have a
//! `Debug` that shows no value.

mod database;
mod guarantee;
mod kafka_sink;
mod lookup;

use std::{fmt, path::PathBuf, time::Duration};

use serde::Deserialize;

pub use self::kafka_sink::{KafkaCompression, KafkaSink};
pub use self::{
    database::{DatabaseSink, Mode, OnNewColumn, redacted},
    guarantee::Guarantee,
    lookup::{Database, DatabaseAddress, Duplicates, Lookup, LookupMode, LookupTable, OnMissing, RedisValue, SqlRows},
};
mod kafka_source;
mod sql_source;

pub use kafka_source::{KafkaKey, KafkaSource, OnLostOffsets, Tombstones};
pub use sql_source::{SqlDatabase, SqlFrom, SqlSource};

/// Where something stands in a file, for error messages that come later than parsing (a wrong column name).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct At {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// The path of keys: `steps[2].cast.response`.
    pub path: String,
}

/// A value with its place.
#[derive(Clone, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub at: At,
}

impl<T> fmt::Debug for Located<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.at.line, self.at.column, self.at.path)
    }
}

/// A `Debug` that tells a type's name and nothing of its values.
macro_rules! opaque {
    ($($name:ident),*) => {
        $(impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), " { .. }"))
            }
        })*
    };
}

opaque!(Socket, SocketAddress, Framing, Directory, OnDone, TestSource, Codec, Json, Csv, SinkKind, Files, Daemon, Log);

/// Those that have a name are told by it.
macro_rules! told_by_name {
    ($($name:ident),*) => {
        $(impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), " {:?}"), self.name)
            }
        })*
    };
}

mod codec;
pub use codec::{Avro, AvroFraming, Protobuf, Registry, SchemaFile};

told_by_name!(Job, Source, Sink);

/// A job: one YAML file.
#[derive(Clone)]
pub struct Job {
    /// Its identity in checkpoints and sinks.
    pub name: String,
    /// The file it was read from.
    pub file: PathBuf,
    /// The file's text as it was read, before substitution: for error messages and the job's digest.
    pub text: String,
    /// How it is cut into lanes; `None` where the job does not say.
    pub lanes: Option<Lanes>,
    /// When a batch begins.
    pub trigger: Trigger,
    /// Soft caps of a batch.
    pub batch: Batch,
    /// By name, in the order of the file.
    pub sources: Vec<Source>,
    /// In order.
    pub steps: Vec<Step>,
    /// By name, in the order of the file.
    pub sinks: Vec<Sink>,
    /// Where rejects go; `None` is the default, files in the data dir.
    pub dead_letters: Option<Sink>,
    /// After how long a silent owner is taken over (default 30 s).
    pub takeover_after: Duration,
    /// How many rejects stop the job; `None`: no number of them.
    pub max_rejected: Option<MaxRejected>,
}

/// `max_rejected:`
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaxRejected {
    /// More than so many records.
    Records(u64),
    /// More than this part of the records, in percent.
    Percent(f64),
}

impl MaxRejected {
    /// Whether so many rejects of so many records are too many.
    pub fn is_exceeded_by(self, rejected: u64, records: u64) -> bool {
        match self {
            Self::Records(most) => rejected > most,
            #[allow(clippy::cast_precision_loss)] // counts of a window of records
            Self::Percent(most) => rejected as f64 * 100.0 > most * records as f64,
        }
    }
}

impl fmt::Display for MaxRejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Records(most) => write!(f, "{most}"),
            Self::Percent(most) => write!(f, "{most}%"),
        }
    }
}

/// `lanes:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lanes {
    /// One lane with all shards.
    Single,
    /// One lane per partition.
    Partition,
}

/// `trigger:`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Each interval.
    Every(Duration),
    /// As soon as there is data.
    Asap,
}

impl Trigger {
    /// The time between two batches; zero for `asap`.
    pub fn interval(self) -> Duration {
        match self {
            Self::Every(interval) => interval,
            Self::Asap => Duration::ZERO,
        }
    }
}

/// `batch:`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Records, over all sources (default 1,000,000).
    pub max_records: usize,
    /// Bytes as read, over all sources (default 16 MiB).
    pub max_bytes: usize,
}

/// One source.
#[derive(Clone)]
pub struct Source {
    /// Its name in the job.
    pub name: Located<String>,
    /// Its name before, whose shards it continues.
    pub formerly: Option<String>,
    /// What it is.
    pub kind: SourceKind,
    /// How its records are decoded.
    pub codec: Codec,
    /// The columns, where the job gives them.
    pub schema: Option<Vec<Field>>,
    /// Metadata columns to add, without their `_`.
    pub metadata: Vec<Located<String>>,
}

impl Source {
    /// How its records' keys are decoded, where they are.
    pub fn key(&self) -> Option<&KafkaKey> {
        match &self.kind {
            SourceKind::Kafka(kafka) => kafka.key.as_ref(),
            _ => None,
        }
    }
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: Located<Type>,
}

/// The types that a job can name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// UTF-8 text.
    String,
    /// 32 bits, signed.
    Int32,
    /// 64 bits, signed.
    Int64,
    /// IEEE 754 double.
    Float64,
    /// true or false.
    Boolean,
    /// Microseconds since the epoch, UTC.
    Timestamp,
    /// Days.
    Date,
    /// Exact decimal: precision (1..=38) and scale.
    Decimal(u8, i8),
    /// Bytes.
    Binary,
    /// A list.
    List(Box<Type>),
    /// Named fields.
    Struct(Vec<(String, Type)>),
}

/// Types of sources.
#[derive(Clone, Debug)]
pub enum SourceKind {
    /// A TCP socket.
    Socket(Socket),
    /// A directory.
    Directory(Directory),
    /// Topics of Kafka.
    Kafka(KafkaSource),
    /// Rows of a database that come in the order of a key.
    Sql(SqlSource),
    /// A source for tests: a folder of shard files that lanes move over. Not documented for users.
    Test(TestSource),
}

/// `type: socket`
#[derive(Clone)]
pub struct Socket {
    /// `connect:` or `listen:`, with `host:port`.
    pub address: SocketAddress,
    /// Where a record ends.
    pub framing: Framing,
    /// Longer records are rejects (default 1 MiB).
    pub max_record_bytes: usize,
    /// `ack: line`: a connection is answered with the count of its durable records.
    pub ack: bool,
    /// `on_lost_spool:`; `None` is the default: stop where `ack` promised the records, else continue.
    pub on_lost_spool: Option<OnLost>,
    /// When full, senders are held back (default 1 GiB).
    pub max_spool_bytes: u64,
    /// Connections at once (default 1024).
    pub max_connections: usize,
    /// A connection on which nothing came for this long is closed. `None`: only when its place is needed.
    pub idle_timeout: Option<Duration>,
}

/// Which end of the connection the source is.
#[derive(Clone, PartialEq, Eq)]
pub enum SocketAddress {
    /// It connects.
    Connect(String),
    /// It listens.
    Listen(String),
}

/// Where a record ends.
#[derive(Clone, PartialEq, Eq)]
pub enum Framing {
    /// `\n`, with an optional `\r` before it.
    Lines,
    /// A delimiter.
    Delimiter(Vec<u8>),
    /// A big-endian length of 1, 2, 4 or 8 bytes before each record.
    LengthPrefix(usize),
}

/// What to do where something is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLost {
    /// Go on and say so.
    Continue,
    /// Stop the lane.
    Stop,
}

/// `type: directory`
#[derive(Clone)]
pub struct Directory {
    /// The folder, resolved against the job file's folder.
    pub path: PathBuf,
    /// Globs of names to take (default `*`).
    pub include: Vec<String>,
    /// Globs of names to leave.
    pub exclude: Vec<String>,
    /// Whether folders below are watched (default false).
    pub recursive: bool,
    /// How long size and mtime stand still before a file is taken (default 1 s).
    pub settle: Duration,
    /// What happens to a file once every sink has it (default keep).
    pub on_done: OnDone,
    /// A listed file that changed (default fail).
    pub on_changed: OnChanged,
    /// Where the job starts (default earliest).
    pub start: Start,
}

/// `on_done:`
#[derive(Clone, PartialEq, Eq)]
pub enum OnDone {
    /// Leave it.
    Keep,
    /// Delete it.
    Delete,
    /// Move it to a folder.
    Move(PathBuf),
}

/// `on_changed:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnChanged {
    /// Stop the lane.
    Fail,
    /// One dead letter for the file; go on.
    DeadLetter,
}

/// `start:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// From the beginning.
    Earliest,
    /// From what comes after the first start.
    Latest,
}

/// `type: test`
#[derive(Clone)]
pub struct TestSource {
    /// A folder: `shards/<n>` hold records as lines, `assign/<owner>` the lanes of each daemon.
    pub path: PathBuf,
}

/// `codec:`
#[derive(Clone, PartialEq, Eq)]
pub enum Codec {
    /// JSON objects, one a line, or a top-level array.
    Json,
    /// The same, with options that are not the usual ones; sources only.
    JsonWith(Json),
    /// RFC 4180.
    Csv(Csv),
    /// One column, `text`.
    Text,
    /// The same, in this encoding and not in utf-8; sources only.
    TextIn(String),
    /// One column, by its name; sources, and sinks of records.
    Bytes(String),
    /// Avro, with a registry or a schema; sources, and sinks of records.
    Avro(Avro),
    /// A Protobuf message of a descriptor set; sources, and sinks of records.
    Protobuf(Protobuf),
    /// Columnar files; sinks only.
    Parquet,
}

/// Options of `codec: { type: json }` of a source.
#[derive(Clone, PartialEq, Eq)]
pub struct Json {
    /// An encoding label (default utf-8).
    pub encoding: String,
    /// A zero byte and a schema's id come before each record.
    pub confluent: bool,
}

/// Options of `codec: { type: csv }`. Sinks have the first six; the others are for reading.
#[derive(Clone, PartialEq, Eq)]
pub struct Csv {
    /// Between fields: ASCII characters (default `,`).
    pub delimiter: String,
    /// The first record names the columns (default true).
    pub header: bool,
    /// The quote (default `"`); `None`: fields have none.
    pub quote: Option<u8>,
    /// An escape character; default none, quotes are doubled.
    pub escape: Option<u8>,
    /// Texts that mean null (default: the empty unquoted field).
    pub nulls: Vec<String>,
    /// An encoding label (default utf-8).
    pub encoding: String,
    /// So many lines at the beginning of each file are left out (default 0).
    pub skip: u64,
    /// Lines that begin with this text are no records.
    pub comment: Option<String>,
    /// The decimal mark of numbers (default `.`).
    pub decimal: u8,
    /// The character between groups of three digits.
    pub thousands: Option<char>,
    /// A quoted field may hold line ends (default true).
    pub multiline: bool,
    /// What becomes of a record with fewer fields than there are columns.
    pub missing_fields: MissingFields,
    /// What becomes of a record with more fields than there are columns.
    pub extra_fields: ExtraFields,
    /// The columns of the source's `schema`: a header with none of them is not this file's header. Empty: there is no schema.
    pub expected: Vec<String>,
}

impl Default for Csv {
    fn default() -> Self {
        Self {
            delimiter: ",".into(),
            header: true,
            quote: Some(b'"'),
            escape: None,
            nulls: Vec::new(),
            encoding: "utf-8".into(),
            skip: 0,
            comment: None,
            decimal: b'.',
            thousands: None,
            multiline: true,
            missing_fields: MissingFields::Reject,
            extra_fields: ExtraFields::Reject,
            expected: Vec::new(),
        }
    }
}

/// `missing_fields:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissingFields {
    /// The record is a reject.
    Reject,
    /// The columns that it lacks are null.
    Null,
}

/// `extra_fields:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExtraFields {
    /// The record is a reject.
    Reject,
    /// The fields are left out.
    Ignore,
    /// The fields are kept in `_extra`.
    Keep,
}

/// One step.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its name: given, or `N-verb` (`3-cast`).
    pub name: String,
    /// Whether the name was given.
    pub named: bool,
    /// The names of steps or sources whose rows it takes; empty: the step before (the first: all sources).
    pub from: Vec<Located<String>>,
    /// Rows for which this is not true pass the step unchanged.
    pub when: Option<Located<String>>,
    /// What happens to a row that cannot be processed (default reject).
    pub on_error: OnError,
    /// With `lanes: partition`, a step that gathers rows may do so for each lane by itself.
    pub per_lane: bool,
    /// What it does.
    pub verb: Verb,
    /// Where it stands.
    pub at: At,
}

/// `on_error:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The row becomes a dead letter.
    Reject,
    /// The lane stops.
    Fail,
    /// The column becomes null.
    SetNull,
}

/// The verbs.
#[derive(Clone, Debug)]
pub enum Verb {
    /// Keep these columns, in this order.
    Select(Vec<Located<String>>),
    /// Remove these columns.
    Drop(Vec<Located<String>>),
    /// Old name, new name.
    Rename(Vec<(Located<String>, Located<String>)>),
    /// Column, type.
    Cast(Vec<(Located<String>, Located<Type>)>),
    /// White space off both ends.
    Trim(Vec<Located<String>>),
    /// Unicode lower case.
    Lowercase(Vec<Located<String>>),
    /// Unicode upper case.
    Uppercase(Vec<Located<String>>),
    /// Rows whose column, split by a text, become rows or columns.
    Split {
        /// The column.
        column: Located<String>,
        /// The separator.
        by: String,
        /// Into these columns; empty: into rows.
        into: Vec<Located<String>>,
    },
    /// Keep rows for which this is true.
    Filter(Located<String>),
    /// Column, expression.
    Add(Vec<(Located<String>, Located<String>)>),
    /// Text to timestamp.
    ParseTimestamp {
        /// The column.
        column: Located<String>,
        /// A strftime format; several are tried in turn. `None`: RFC 3339.
        formats: Vec<Located<String>>,
        /// The zone of texts that have none (default UTC).
        zone: Option<Located<String>>,
    },
    /// Remove rows whose text is empty (or null) in any of these columns.
    DropEmpty(Vec<Located<String>>),
    /// Remove rows that are null in any of these columns.
    DropNulls(Vec<Located<String>>),
    /// Columns of a table.
    Lookup(Box<Lookup>),
    /// A query over `batch`, or over its inputs by name.
    Sql(Located<String>),
}

/// One sink.
#[derive(Clone)]
pub struct Sink {
    /// Its name in the job.
    pub name: Located<String>,
    /// Its name before, whose mark it continues.
    pub formerly: Option<String>,
    /// The step or source whose rows it gets; `None`: the last step.
    pub from: Option<Located<String>>,
    /// Only rows for which this is true.
    pub filter: Option<Located<String>>,
    /// What it is.
    pub kind: SinkKind,
}

/// Types of sinks.
#[derive(Clone)]
#[allow(clippy::large_enum_variant)] // a job has a few of them
pub enum SinkKind {
    /// The terminal.
    Console {
        /// Rows of each batch to print (default all).
        first: Option<usize>,
    },
    /// Files in a folder.
    Files(Files),
    /// A SQLite table.
    Sqlite {
        /// The database file.
        path: PathBuf,
        /// The table.
        table: String,
        /// How rows are written.
        mode: Mode,
        /// What is done where the rows have a column that the table lacks.
        on_new_column: OnNewColumn,
    },
    /// A table of MySQL or MariaDB.
    Mysql(DatabaseSink),
    /// A PostgreSQL table.
    Postgres(DatabaseSink),
    /// A Kafka topic.
    Kafka(KafkaSink),
    /// Nowhere: for benches. With `marked`, marks are kept in memory.
    Blackhole,
}

/// `type: files`
#[derive(Clone)]
pub struct Files {
    /// The folder.
    pub path: PathBuf,
    /// The format.
    pub codec: Codec,
    /// `none`, `gzip` or `zstd`.
    pub compression: Compression,
    /// Columns whose values name folders (`day=2015-05-17/`).
    pub partition_by: Vec<Located<String>>,
    /// Append batches to one file until it has this size or age; `None`: a file per batch.
    pub roll: Option<Roll>,
}

/// `roll:`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roll {
    /// A new file from this size on (default 128 MiB).
    pub bytes: u64,
    /// A new file after this time (default 1 h).
    pub after: Duration,
}

/// `compression:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// None.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// The daemon's own file.
#[derive(Clone)]
pub struct Daemon {
    /// Ledger, spools, dead letters.
    pub data_dir: PathBuf,
    /// The owner's name, where set by hand.
    pub owner: Option<String>,
    /// Where HTTP listens, `host:port` (default 127.0.0.1:9720); port 0: any that is free.
    pub http: String,
    /// Host names, beside this machine's own, under which HTTP answers.
    pub http_hosts: Vec<String>,
    /// Byte budget of all jobs (default 512 MiB).
    pub memory: u64,
    /// How logs look.
    pub log: Log,
    /// Globs of job files, relative to the folder of the daemon's file: see [`Daemon::load_jobs`].
    pub jobs: Vec<Located<String>>,
    /// The file it was read from; `None` where there is none and all is default.
    pub file: Option<PathBuf>,
    /// The file's text as it was read, before substitution.
    pub text: String,
}

/// `log:`
#[derive(Clone, PartialEq, Eq)]
pub struct Log {
    /// JSON lines instead of text.
    pub json: bool,
    /// A level, or a filter as `tracing` writes it.
    pub level: String,
}
