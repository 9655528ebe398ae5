//! From a checked tree to the model. Options are read by serde from the checker's value, in which defaults are filled
//! in; what later errors point at takes its place from the tree.

mod database;
mod kafka_sink;
mod lookup;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_yaml::Value;

use crate::{
    At, Batch, Compression, Daemon, Directory, Field, Files, Framing, Job, Lanes, Located, Log, OnChanged, OnDone,
    OnError, OnLost, Roll, Sink, SinkKind, Socket, SocketAddress, Source, SourceKind, Start, Step, TestSource, Trigger,
    Type, Verb,
    error::Problem,
    load::folder_of,
    paths::resolve,
    semantics::{DEAD_LETTERS, each, step_name, verb_of},
    tree::{Entry, Node, below, item},
    units,
};

mod codec;
pub use lookup::{KeyPart, key_parts};
pub(crate) use lookup::{address, codec_of, columns_of};
mod kafka_source;
mod sql_source;

use codec::{Around, CodecOptions};

type Built<T> = Result<T, Problem>;

/// The checker let something through that cannot be read: an error in Tidemill, not in the file.
fn inconsistent(what: &str) -> Problem {
    Problem::new(format!("`{what}` passed its checks and cannot be read"))
        .help("this is an error in Tidemill: please report it")
}

/// Serde's own message may quote a value, which may be a secret: only the place is told.
fn options<T: DeserializeOwned>(value: &Value, what: &str) -> Built<T> {
    serde_yaml::from_value(value.clone()).map_err(|_| inconsistent(what))
}

fn at_key<'v>(value: &'v Value, key: &str) -> &'v Value {
    value.get(key).unwrap_or(&Value::Null)
}

#[derive(Deserialize)]
struct JobOptions {
    job: String,
    lanes: Option<Lanes>,
    #[serde(deserialize_with = "trigger")]
    trigger: Trigger,
    batch: BatchOptions,
    #[serde(deserialize_with = "units::de_duration")]
    takeover_after: Duration,
    max_rejected: Option<String>,
}

#[derive(Deserialize)]
struct BatchOptions {
    max_records: usize,
    #[serde(deserialize_with = "units::de_size")]
    max_bytes: u64,
}

fn trigger<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Trigger, D::Error> {
    match String::deserialize(from)?.as_str() {
        "asap" => Ok(Trigger::Asap),
        text => units::duration(text).map(Trigger::Every).map_err(serde::de::Error::custom),
    }
}

pub(crate) fn job(root: &Node, value: &Value, file: &Path, text: &str) -> Built<Job> {
    let folder = folder_of(file);
    let own: JobOptions = options(value, "job")?;
    let section = |key: &str| root.get(key).map_or(&[][..], |entry| entry.value.entries());
    let sources =
        section("sources").iter().map(|entry| source(entry, at_key(at_key(value, "sources"), &entry.key), folder));
    let mut sources = sources.collect::<Built<Vec<_>>>()?;
    kafka_source::name_groups(&own.job, &mut sources);
    let databases = lookup::databases(section("databases"), folder)?;
    let around = lookup::Around { folder, databases: &databases };
    let steps = root.get("steps").map_or(&[][..], |entry| entry.value.items()).iter().enumerate();
    let sinks = section("sinks").iter().map(|entry| {
        let at = entry.place.at(&below("sinks", &entry.key));
        sink(entry, &entry.key, at, at_key(at_key(value, "sinks"), &entry.key), folder)
    });
    let dead_letters = root
        .get("dead_letters")
        .map(|entry| sink(entry, DEAD_LETTERS, entry.place.at("dead_letters"), at_key(value, "dead_letters"), folder));
    Ok(Job {
        name: own.job,
        file: file.to_owned(),
        text: text.to_owned(),
        lanes: own.lanes,
        trigger: own.trigger,
        batch: Batch { max_records: own.batch.max_records, max_bytes: bytes(own.batch.max_bytes) },
        sources,
        steps: steps.map(|(index, node)| step(node, index, &around)).collect::<Built<_>>()?,
        sinks: sinks.collect::<Built<_>>()?,
        dead_letters: dead_letters.transpose()?,
        takeover_after: own.takeover_after,
        max_rejected: own.max_rejected.map(|share| units::check_share(&share)).transpose()?,
    })
}

fn bytes(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

#[derive(Deserialize)]
struct SourceOptions {
    #[serde(rename = "type")]
    kind: String,
    formerly: Option<String>,
    codec: CodecOptions,
}

#[derive(Deserialize)]
struct SocketOptions {
    connect: Option<String>,
    listen: Option<String>,
    #[serde(with = "serde_yaml::with::singleton_map")]
    framing: FramingOption,
    #[serde(deserialize_with = "units::de_size")]
    max_record_bytes: u64,
    ack: String,
    on_lost_spool: Option<OnLost>,
    #[serde(deserialize_with = "units::de_size")]
    max_spool_bytes: u64,
    max_connections: usize,
    #[serde(default, deserialize_with = "units::de_optional_duration")]
    idle_timeout: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum FramingOption {
    Lines,
    Delimiter(String),
    LengthPrefix(String),
}

#[derive(Deserialize)]
struct DirectoryOptions {
    path: String,
    include: Vec<String>,
    exclude: Vec<String>,
    recursive: bool,
    #[serde(deserialize_with = "units::de_duration")]
    settle: Duration,
    #[serde(with = "serde_yaml::with::singleton_map")]
    on_done: OnDoneOption,
    on_changed: OnChanged,
    start: Start,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum OnDoneOption {
    Keep,
    Delete,
    Move(String),
}

#[derive(Deserialize)]
struct TestOptions {
    path: String,
}

fn source(entry: &Entry, value: &Value, folder: &Path) -> Built<Source> {
    let path = below("sources", &entry.key);
    let common: SourceOptions = options(value, &path)?;
    let kind = match common.kind.as_str() {
        "socket" => SourceKind::Socket(socket(options(value, &path)?, &path)?),
        "directory" => SourceKind::Directory(directory(options(value, &path)?, folder)),
        "sql" => SourceKind::Sql(sql_source::sql(&entry.value, value, &path, folder)?),
        "kafka" => SourceKind::Kafka(kafka_source::kafka(&entry.value, value, &path, folder)?),
        "test" => {
            SourceKind::Test(TestSource { path: resolve(&folder.join(options::<TestOptions>(value, &path)?.path)) })
        }
        _ => return Err(inconsistent(&path)),
    };
    let schema = entry.value.get("schema").map(|schema| fields(&schema.value, &below(&path, "schema"))).transpose()?;
    let mut codec = common.codec.of_records(&Around { node: &entry.value, path: &path, folder })?;
    if let crate::Codec::Csv(csv) = &mut codec {
        csv.expected = schema.iter().flatten().map(|field| field.name.clone()).collect();
    }
    Ok(Source {
        name: Located { value: entry.key.clone(), at: entry.place.at(&path) },
        formerly: common.formerly,
        kind,
        codec,
        schema,
        metadata: texts(entry.value.get("metadata"), &path),
    })
}

fn socket(given: SocketOptions, path: &str) -> Built<Socket> {
    let address = match (given.connect, given.listen) {
        (Some(address), None) => SocketAddress::Connect(address),
        (None, Some(address)) => SocketAddress::Listen(address),
        _ => return Err(inconsistent(path)),
    };
    let framing = match given.framing {
        FramingOption::Lines => Framing::Lines,
        FramingOption::Delimiter(text) => Framing::Delimiter(text.into_bytes()),
        FramingOption::LengthPrefix(text) => Framing::LengthPrefix(text.parse().map_err(|_| inconsistent(path))?),
    };
    Ok(Socket {
        address,
        framing,
        max_record_bytes: bytes(given.max_record_bytes),
        ack: given.ack == "line",
        on_lost_spool: given.on_lost_spool,
        max_spool_bytes: given.max_spool_bytes,
        max_connections: given.max_connections,
        idle_timeout: given.idle_timeout,
    })
}

fn directory(given: DirectoryOptions, folder: &Path) -> Directory {
    Directory {
        path: resolve(&folder.join(given.path)),
        include: given.include,
        exclude: given.exclude,
        recursive: given.recursive,
        settle: given.settle,
        on_done: match given.on_done {
            OnDoneOption::Keep => OnDone::Keep,
            OnDoneOption::Delete => OnDone::Delete,
            OnDoneOption::Move(to) => OnDone::Move(resolve(&folder.join(to))),
        },
        on_changed: given.on_changed,
        start: given.start,
    }
}

fn fields(node: &Node, path: &str) -> Built<Vec<Field>> {
    let field = |entry: &Entry| Ok(Field { name: entry.key.clone(), kind: column_type(entry, path)? });
    node.entries().iter().map(field).collect()
}

fn column_type(entry: &Entry, path: &str) -> Built<Located<Type>> {
    let path = below(path, &entry.key);
    let value = entry.value.text().and_then(|text| Type::parse(text).ok()).ok_or_else(|| inconsistent(&path))?;
    Ok(Located { value, at: entry.value.place.at(&path) })
}

/// The texts of one value or a list, each with its place; none where the key is absent.
fn texts(entry: Option<&Entry>, path: &str) -> Vec<Located<String>> {
    let Some(entry) = entry else { return Vec::new() };
    each(&entry.value, &below(path, &entry.key)).into_iter().filter_map(|(node, path)| located(node, &path)).collect()
}

/// `brokers:` of Kafka as librdkafka takes them: a list, or texts with commas, as one text.
fn brokers(node: &Node, path: &str) -> String {
    let texts = texts(node.get("brokers"), path);
    texts.iter().flat_map(|text| text.value.split(',')).map(str::trim).collect::<Vec<_>>().join(",")
}

fn located(node: &Node, path: &str) -> Option<Located<String>> {
    Some(Located { value: node.text()?.to_owned(), at: node.place.at(path) })
}

fn text(node: &Node, key: &str, path: &str) -> Option<Located<String>> {
    located(&node.get(key)?.value, &below(path, key))
}

fn step(node: &Node, index: usize, around: &lookup::Around<'_>) -> Built<Step> {
    let path = item("steps", index);
    let (entry, _) = verb_of(node).ok_or_else(|| inconsistent(&path))?;
    Ok(Step {
        name: step_name(node, index),
        named: node.get("name").is_some(),
        from: texts(node.get("from"), &path),
        when: text(node, "when", &path),
        on_error: match node.text_of("on_error") {
            Some("fail") => OnError::Fail,
            Some("set_null") => OnError::SetNull,
            _ => OnError::Reject,
        },
        per_lane: node.text_of("per_lane").is_some_and(|text| text.eq_ignore_ascii_case("true")),
        verb: verb(entry, &path, around).ok_or_else(|| inconsistent(&path))??,
        at: entry.place.at(&path),
    })
}

fn verb(entry: &Entry, path: &str, around: &lookup::Around<'_>) -> Option<Built<Verb>> {
    let columns = || texts(Some(entry), path);
    let path = below(path, &entry.key);
    let (node, expression) = (&entry.value, || located(&entry.value, &path));
    let key = |entry: &Entry| Located { value: entry.key.clone(), at: entry.place.at(&below(&path, &entry.key)) };
    let pair = |entry: &Entry| Some((key(entry), located(&entry.value, &below(&path, &entry.key))?));
    let pairs = || node.entries().iter().map(pair).collect::<Option<Vec<_>>>();
    Some(Ok(match entry.key.as_str() {
        "select" => Verb::Select(columns()),
        "drop" => Verb::Drop(columns()),
        "trim" => Verb::Trim(columns()),
        "lowercase" => Verb::Lowercase(columns()),
        "uppercase" => Verb::Uppercase(columns()),
        "drop_empty" => Verb::DropEmpty(columns()),
        "drop_nulls" => Verb::DropNulls(columns()),
        "rename" => Verb::Rename(pairs()?),
        "add" => Verb::Add(pairs()?),
        "filter" => Verb::Filter(expression()?),
        "sql" => Verb::Sql(expression()?),
        "lookup" => {
            return Some(lookup::lookup(entry, &path, around).map(|lookup| Verb::Lookup(Box::new(lookup))));
        }
        "cast" => {
            let casts = node.entries().iter().map(|entry| Ok((key(entry), column_type(entry, &path)?)));
            return Some(casts.collect::<Built<_>>().map(Verb::Cast));
        }
        "split" => Verb::Split {
            column: text(node, "column", &path)?,
            by: node.text_of("by")?.to_owned(),
            into: texts(node.get("into"), &path),
        },
        "parse_timestamp" => Verb::ParseTimestamp {
            column: text(node, "column", &path)?,
            formats: texts(node.get("format"), &path),
            zone: text(node, "zone", &path),
        },
        _ => return None,
    }))
}

#[derive(Deserialize)]
struct SinkOptions {
    #[serde(rename = "type")]
    kind: String,
    formerly: Option<String>,
}

#[derive(Deserialize)]
struct ConsoleOptions {
    first: Option<usize>,
}

#[derive(Deserialize)]
struct FilesOptions {
    path: String,
    codec: CodecOptions,
    compression: Compression,
    roll: Option<RollOptions>,
}

#[derive(Deserialize)]
struct RollOptions {
    #[serde(deserialize_with = "units::de_size")]
    bytes: u64,
    #[serde(deserialize_with = "units::de_duration")]
    after: Duration,
}

#[derive(Deserialize)]
struct SqliteOptions {
    path: String,
    table: String,
    mode: String,
    on_new_column: crate::OnNewColumn,
}

fn sink(entry: &Entry, name: &str, at: At, value: &Value, folder: &Path) -> Built<Sink> {
    let path = at.path.clone();
    let common: SinkOptions = options(value, &path)?;
    let kind = match common.kind.as_str() {
        "console" => SinkKind::Console { first: options::<ConsoleOptions>(value, &path)?.first },
        "blackhole" => SinkKind::Blackhole,
        "files" => {
            SinkKind::Files(files(options(value, &path)?, texts(entry.value.get("partition_by"), &path), folder)?)
        }
        "sqlite" => {
            let given: SqliteOptions = options(value, &path)?;
            let mode = database::mode(&given.mode, entry, &path);
            let on_new_column = given.on_new_column;
            SinkKind::Sqlite { path: resolve(&folder.join(given.path)), table: given.table, mode, on_new_column }
        }
        "mysql" => SinkKind::Mysql(database::sink(entry, value, &path, folder)?),
        "postgres" => SinkKind::Postgres(database::sink(entry, value, &path, folder)?),
        "kafka" => SinkKind::Kafka(kafka_sink::sink(entry, value, &path, folder)?),
        _ => return Err(inconsistent(&path)),
    };
    Ok(Sink {
        name: Located { value: name.to_owned(), at },
        formerly: common.formerly,
        from: text(&entry.value, "from", &path),
        filter: text(&entry.value, "where", &path),
        kind,
    })
}

fn files(given: FilesOptions, partition_by: Vec<Located<String>>, folder: &Path) -> Built<Files> {
    Ok(Files {
        path: resolve(&folder.join(given.path)),
        codec: given.codec.codec()?,
        compression: given.compression,
        partition_by,
        roll: given.roll.map(|roll| Roll { bytes: roll.bytes, after: roll.after }),
    })
}

#[derive(Deserialize)]
struct DaemonOptions {
    data_dir: PathBuf,
    owner: Option<String>,
    http: String,
    http_hosts: Vec<String>,
    #[serde(deserialize_with = "units::de_size")]
    memory: u64,
    log: LogOptions,
}

#[derive(Deserialize)]
struct LogOptions {
    format: String,
    level: String,
}

pub(crate) fn daemon(root: &Node, value: Value, file: &Path, text: &str) -> Built<Daemon> {
    let given: DaemonOptions = options(&value, "daemon")?;
    Ok(Daemon {
        data_dir: folder_of(file).join(given.data_dir),
        owner: given.owner,
        http: given.http,
        http_hosts: given.http_hosts,
        memory: given.memory,
        log: Log { json: given.log.format == "json", level: given.log.level },
        jobs: texts(root.get("jobs"), ""),
        file: Some(file.to_owned()),
        text: text.to_owned(),
    })
}
