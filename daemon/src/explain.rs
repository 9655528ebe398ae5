//! `tidemill validate` and `tidemill explain`: what a job is, without running it.

mod lookups;

use std::{
    collections::BTreeMap,
    fmt::{Display, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::datatypes::SchemaRef;
use tidemill_checkpoint::{LaneScheme, SinkId};
use tidemill_config::{self as config, ProcessEnvironment};
use tidemill_connectors::{codec, lookup, sink, source};

use crate::{
    ConfigError,
    job::{
        DEAD_LETTERS, anchor_rank,
        compile::{Compiled, Pinned, check_codecs, dead_letters_schema, given_schema, with_metadata},
        scheme,
    },
    memory::Memory,
};

/// Plans the steps where every schema is known before the first record; wrong columns are configuration errors.
pub fn check(job: &config::Job) -> anyhow::Result<()> {
    check_codecs(job).map_err(ConfigError)?;
    let compiled = if job.sources.iter().all(|source| given_schema(source).is_some()) {
        let whole = Arc::new(job.clone());
        match lookups::known(job) {
            Ok(Some(tables)) => {
                let compiled = Compiled::new(&whole, &Pinned::new(), &tables);
                Some(compiled.map_err(|error| ConfigError(error.to_string()))?)
            }
            // A table that nobody knows yet: enough is known to say which steps gather rows.
            _ => Compiled::new(&whole, &Pinned::new(), &scheme::stand_ins(job)).ok(),
        }
    } else {
        None
    };
    match scheme::objection(job, compiled.as_ref().map(Compiled::pipeline)) {
        Some((at, message)) => Err(ConfigError(job.render(&at, &message)).into()),
        None => Ok(()),
    }
}

/// That the longest record which a source takes fits into the budget of all jobs.
pub fn check_memory(job: &config::Job, memory: u64) -> Result<(), ConfigError> {
    let most = Memory::longest_record(memory);
    let mib = |bytes: u64| format!("{}MiB", bytes.div_ceil(1 << 20));
    for source in &job.sources {
        let config::SourceKind::Socket(socket) = &source.kind else { continue };
        let longest = socket.max_record_bytes as u64;
        if longest > most {
            let message = format!(
                "source {}: its `max_record_bytes` are {longest}, and a record may have an eighth of `memory:`, which are {most} \
                 bytes of {}: it is held as it came, as a row and as what sinks make of it, and two batches at a time. Make \
                 `max_record_bytes` smaller, or `memory:` in the daemon's file at least {}",
                source.name.value,
                mib(memory),
                mib(longest.saturating_mul(8)),
            );
            return Err(ConfigError(job.render(&source.name.at, &message)));
        }
    }
    Ok(())
}

/// What connectors say of their options without a look at what they connect to: addresses, properties of clients.
fn check_options(job: &Arc<config::Job>) -> Result<(), String> {
    let mut wrong = Vec::new();
    let mut told = |at: &config::At, error: &dyn std::fmt::Display| wrong.push(job.render(at, &error.to_string()));
    let connects =
        |source: &&config::Source| matches!(source.kind, config::SourceKind::Kafka(_) | config::SourceKind::Sql(_));
    for source in job.sources.iter().filter(connects) {
        if let Err(error) = source::open(source, &looking(job)) {
            told(&source.name.at, &error);
        }
    }
    for (step, lookup) in lookups::of(job) {
        if let Err(error) = lookup::open(lookup) {
            told(&step.at, &error);
        }
    }
    for given in job.sinks.iter().chain(&job.dead_letters) {
        let opened = sink::open(SinkId::new(&given.name.value), &job.name, &given.kind);
        if let Err(error @ tidemill_connectors::SinkError::Fatal(_)) = opened.map(drop) {
            told(&given.name.at, &error);
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// The settings of a source that is only looked at.
fn looking(job: &Arc<config::Job>) -> source::Settings {
    source::Settings {
        partitioned: scheme::of(job) == LaneScheme::Partition,
        // Nothing is received, so nothing is spooled.
        spool: PathBuf::new(),
        owner: String::new(),
        job: job.name.clone(),
        ahead_bytes: 0,
        trigger: job.trigger.interval(),
    }
}

/// Holds the rows that sinks get against what they write, where that is known before the first record.
fn check_sinks(job: &config::Job) -> Result<(), String> {
    let known = job.sources.iter().all(|source| given_schema(source).is_some());
    let (true, Ok(Some(tables))) = (known, lookups::known(job)) else { return Ok(()) };
    let Ok(compiled) = Compiled::new(&Arc::new(job.clone()), &Pinned::new(), &tables) else { return Ok(()) };
    let wrong = job.sinks.iter().filter_map(|given| {
        let name = &given.name;
        let fits = sink::fits(&SinkId::new(&name.value), &given.kind, &compiled.sink_schema(&name.value));
        fits.err().map(|error| job.render(&name.at, &error.to_string()))
    });
    let wrong: Vec<_> = wrong.collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// `tidemill validate`: all errors of all files; exit code 78 where there are any.
pub async fn validate(files: &[PathBuf], connect: bool, memory: u64) -> anyhow::Result<u8> {
    let (mut wrong, mut unreachable) = (Vec::new(), Vec::new());
    let mut names: BTreeMap<String, &PathBuf> = BTreeMap::new();
    for file in files {
        let loaded = config::Job::load(file, &ProcessEnvironment).map_err(|errors| errors.to_string());
        let checked = loaded.map(Arc::new).and_then(|job| match lookups::known(&job) {
            Ok(_) => {
                let checked = check(&job).map_err(|error| error.to_string()).and_then(|()| check_options(&job));
                let checked = checked.and_then(|()| check_memory(&job, memory).map_err(|error| error.to_string()));
                checked.and_then(|()| check_sinks(&job)).map(|()| job)
            }
            Err(error) => Err(error),
        });
        let job = match checked {
            Ok(job) => job,
            Err(error) => {
                wrong.push(error);
                continue;
            }
        };
        if let Some(first) = names.insert(job.name.clone(), file) {
            eprintln!(
                "warning: {}: a job of the name `{}` is in {} too: a job's name is its identity, so one daemon cannot run both",
                file.display(),
                job.name,
                first.display()
            );
        }
        for absent in lookups::absent(&job).into_iter().chain(scheme::warning(&job)) {
            eprintln!("warning: {}: {absent}", file.display());
        }
        println!("{}: job {} is valid", file.display(), job.name);
        if connect {
            unreachable.extend(try_connectors(&job).await);
        }
    }
    let all = wrong.iter().chain(&unreachable).map(String::as_str).collect::<Vec<_>>().join("\n");
    match (wrong.is_empty(), unreachable.is_empty()) {
        (true, true) => Ok(0),
        (true, false) => anyhow::bail!("{all}"),
        (false, _) => Err(ConfigError(all).into()),
    }
}

/// Looks at every source and every sink as the job would use them: reaches them, claims and creates nothing. What is
/// wrong with them, and why.
async fn try_connectors(job: &Arc<config::Job>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut told = |what: &str, name: &str, tried: Result<(), String>| match tried {
        Ok(()) => println!("{what} {name}: reached"),
        Err(error) => wrong.push(format!("job {}: {what} {name}: {error}", job.name)),
    };
    let settings = looking(job);
    for given in job.sources.iter().filter(|source| !matches!(source.kind, config::SourceKind::Socket(_))) {
        let tried = async { source::open(given, &settings)?.check().await };
        told("source", &given.name.value, tried.await.map_err(|error| error.to_string()));
    }
    for given in job.sources.iter().filter(|source| source.codec.registry().is_some()) {
        let tried = codec::codec(&given.codec).check().await;
        told("registry of source", &given.name.value, tried.map_err(|error| error.to_string()));
    }
    let mut tables = tidemill_steps::Schemas::new();
    for (step, lookup) in lookups::of(job) {
        let tried = async { lookup::open(lookup)?.check().await };
        let tried: Result<SchemaRef, lookup::LookupError> = tried.await;
        tables.extend(tried.as_ref().ok().map(|schema| (step.name.clone(), schema.clone())));
        told("lookup", &step.name, tried.map(drop).map_err(|error| error.to_string()));
    }
    // Without the sources' schemas nobody knows what the sinks get.
    let known =
        job.sources.iter().all(|source| given_schema(source).is_some()) && tables.len() == lookups::of(job).count();
    let compiled = match known.then(|| Compiled::new(job, &Pinned::new(), &tables)) {
        Some(Ok(compiled)) => Some(compiled),
        // The columns of tables are known now.
        Some(Err(error)) => {
            wrong.push(error.to_string());
            None
        }
        None => None,
    };
    let mut told = |what: &str, name: &str, tried: Result<(), String>| match tried {
        Ok(()) => println!("{what} {name}: reached"),
        Err(error) => wrong.push(format!("job {}: {what} {name}: {error}", job.name)),
    };
    for given in job.sinks.iter().chain(&job.dead_letters) {
        let name = &given.name.value;
        let schema = match (&job.dead_letters, &compiled) {
            (Some(dead), _) if dead.name == given.name => Some(dead_letters_schema()),
            (_, Some(compiled)) => Some(compiled.sink_schema(name)),
            (_, None) => None,
        };
        let tried = async {
            let opened = sink::open(SinkId::new(name), &job.name, &given.kind)?;
            opened.peek(&[tidemill_checkpoint::Lane::single()]).await?;
            opened.check(schema.as_ref()).await
        };
        told("sink", name, tried.await.map_err(|error| error.to_string()));
    }
    wrong
}

/// `tidemill explain`.
pub async fn explain(file: &Path) -> anyhow::Result<u8> {
    let job = config::Job::load(file, &ProcessEnvironment).map_err(|errors| ConfigError(errors.to_string()))?;
    lookups::known(&job).map_err(ConfigError)?;
    check(&job)?;
    print!("{}", text(&Arc::new(job))?);
    Ok(0)
}

/// Where columns come from that are not known yet.
fn unknown_columns(codec: &config::Codec) -> String {
    match codec {
        config::Codec::Avro(config::Avro {
            registry: Some(config::Registry { subject: Some(subject), .. }), ..
        }) => {
            format!("of the latest schema of {subject} at the first batch, then pinned")
        }
        config::Codec::Avro(_) => "of the newest schema in the first batch, then pinned".into(),
        _ => "inferred from the first batch, then pinned; later fields go to _extra".into(),
    }
}

fn text(job: &Arc<config::Job>) -> anyhow::Result<String> {
    let mut out = String::new();
    let trigger = match job.trigger {
        config::Trigger::Asap => "as soon as there is data".to_owned(),
        config::Trigger::Every(interval) => format!("every {interval:?}"),
    };
    writeln!(out, "job {} ({})", job.name, job.file.display())?;
    writeln!(out, "  a batch {trigger}, at most {} records or {} bytes", job.batch.max_records, job.batch.max_bytes)?;
    let lanes = match scheme::of(job) {
        LaneScheme::Partition => {
            "partition: each is planned and committed by itself; several daemons share them. Not for it: inferred schemas, and steps over rows of several lanes"
        }
        LaneScheme::Single if scheme::others_see_marks(job) => "single: one daemon works, another may stand by",
        LaneScheme::Single => "single: one daemon works",
    };
    writeln!(out, "  lanes: {lanes}")?;
    if let Some(warning) = scheme::warning(job) {
        writeln!(out, "      warning: {warning}")?;
    }
    writeln!(out, "\nsources")?;
    let mut known = true;
    for source in &job.sources {
        let (what, again) = describe_source(job, source);
        writeln!(out, "  {}: {what}\n      {again}", source.name.value)?;
        match given_schema(source) {
            Some(schema) => writeln!(out, "      columns: {}", columns(&with_metadata(&schema, source)))?,
            None => {
                known = false;
                writeln!(out, "      columns: {}", unknown_columns(&source.codec))?;
            }
        }
    }
    writeln!(out, "\nsteps")?;
    let tables = lookups::known(job).map_err(ConfigError)?;
    let described = |step: &str| {
        let found = lookups::of(job).find(|(known, _)| known.name == step);
        found.map_or_else(String::new, |(step, lookup)| lookups::describe(job, step, lookup))
    };
    if let (true, Some(tables)) = (known, &tables) {
        let compiled = Compiled::new(job, &Pinned::new(), tables)?;
        for (step, schema) in compiled.pipeline().schemas() {
            writeln!(out, "  {step}\n{}      columns: {}", described(step), columns(schema))?;
        }
    } else {
        for step in &job.steps {
            write!(out, "  {}\n{}", step.name, described(&step.name))?;
        }
        if known {
            writeln!(
                out,
                "      (columns after each step are known once those of the lookups' tables are: give them a `schema:` to see them \
                 here; `tidemill validate --connect` asks the databases)"
            )?;
        }
    }
    if !known {
        writeln!(
            out,
            "      (columns after each step are known once the source's are: give `schema:` to see them here)"
        )?;
    }
    writeln!(out, "\nsinks")?;
    for sink in &job.sinks {
        writeln!(out, "  {}: {}", sink.name.value, describe_sink(job, sink))?;
        if let Some(from) = &sink.from {
            writeln!(out, "      rows of {}", job.shown(&from.at.path, &from.value))?;
        }
        if let Some(filter) = &sink.filter {
            writeln!(out, "      where {}", job.shown(&filter.at.path, &filter.value))?;
        }
    }
    match &job.dead_letters {
        Some(sink) => writeln!(out, "  {DEAD_LETTERS}: {}", describe_sink(job, sink))?,
        None => writeln!(
            out,
            "  {DEAD_LETTERS}: files in <data dir>/{}/dead-letters, exactly once within this data dir",
            job.name
        )?,
    }
    writeln!(out, "\nanchor (commits first): {}", anchor(job))?;
    Ok(out)
}

fn anchor(job: &config::Job) -> String {
    let rows = job.sinks.iter().map(|sink| (false, sink));
    let sinks = rows.chain(job.dead_letters.iter().map(|sink| (true, sink)));
    let marked = sinks.filter(|(_, sink)| sink.kind.guarantee() == config::Guarantee::ExactlyOnce);
    match marked.min_by_key(|(is_last, sink)| (*is_last, anchor_rank(&sink.kind))) {
        Some((_, sink)) => format!("{}, chosen when the job first runs", sink.name.value),
        None => {
            "the ledger in the data dir, since no sink keeps marks: without the data dir the job starts over, and a second daemon knows nothing of this one".to_owned()
        }
    }
}

fn columns(schema: &SchemaRef) -> String {
    let columns: Vec<_> = schema
        .fields()
        .iter()
        .map(|field| format!("{} {}", field.name(), codec::type_name(field.data_type())))
        .collect();
    columns.join(", ")
}

/// The value of an option as it may be shown: what comes from the environment may be a secret.
fn option(job: &config::Job, of: &config::At, key: &str, value: impl Display) -> String {
    job.shown(&format!("{}.{key}", of.path), value)
}

fn describe_source(job: &config::Job, source: &config::Source) -> (String, &'static str) {
    let option = |key: &str, value: &dyn Display| option(job, &source.name.at, key, value);
    match &source.kind {
        config::SourceKind::Socket(socket) => {
            let address = match &socket.address {
                config::SocketAddress::Connect(address) => format!("connects to {}", option("connect", address)),
                config::SocketAddress::Listen(address) => format!("listens on {}", option("listen", address)),
            };
            let again = if socket.ack {
                "exactly once from the moment that the sender got its ack: records are spooled to disk first"
            } else {
                "exactly once from the moment that a record is in the spool; bytes in flight at a power cut are lost, unless the sender uses `ack: line`"
            };
            (address, again)
        }
        config::SourceKind::Directory(directory) => (
            format!("files in {}", option("path", &directory.path.display())),
            "exactly once: a file is read again where a batch is replayed",
        ),
        config::SourceKind::Kafka(kafka) => {
            let topics: Vec<_> = kafka.topics.iter().map(|topic| job.shown(&topic.at.path, &topic.value)).collect();
            let brokers = option("brokers", &kafka.brokers);
            let from = match kafka.start {
                config::Start::Earliest => "from the oldest record",
                config::Start::Latest => "from what comes after the first start",
            };
            (
                format!("topics {} of {brokers}, {from}; committed records only", topics.join(", ")),
                "exactly once: offsets are read again where a batch is replayed. Of a compacted topic a replay may find fewer records: exactly once, latest value",
            )
        }
        config::SourceKind::Sql(sql) => {
            let from = match &sql.from {
                config::SqlFrom::Table(table) => format!("rows of table {}", option("table", table)),
                config::SqlFrom::Query(_) => "rows of a query".to_owned(),
            };
            let order: Vec<_> = sql.order_by.iter().map(|column| column.value.as_str()).collect();
            (
                format!("{from} of {} in the order of {}", option("url", &sql.database.shown()), order.join(", ")),
                "exactly once, latest value: a replay asks for the same keys again, and a row that was changed meanwhile is not there or is new. Not seen: deletes, changes that leave the order's columns alone, and rows that are committed late with smaller values (see `settle`)",
            )
        }
        config::SourceKind::Test(test) => (format!("test shards in {}", test.path.display()), "for tests"),
    }
}

fn describe_sink(job: &config::Job, sink: &config::Sink) -> String {
    let option = |key: &str, value: &dyn Display| option(job, &sink.name.at, key, value);
    match &sink.kind {
        config::SinkKind::Console { first } => {
            let rows = first.map_or_else(|| "all rows".to_owned(), |first| format!("the first {first} rows"));
            format!("{rows} of each batch on standard output; at least once: a batch that is replayed is printed again")
        }
        config::SinkKind::Files(files) => {
            let path = option("path", &files.path.display());
            format!("files in {path}; exactly once (marks in its _tidemill folder)")
        }
        config::SinkKind::Sqlite { path, table, mode } => {
            let mode = describe_mode(mode);
            let (table, path) = (option("table", table), option("path", &path.display()));
            format!("rows {mode} to table {table} of {path}; exactly once (marks in its table tidemill_marks)")
        }
        config::SinkKind::Mysql(database) => {
            let mode = describe_mode(&database.mode);
            let (table, url) = (option("table", &database.table), option("url", &config::redacted(&database.url)));
            let marks = guarantee(database.guarantee, "marks in its table tidemill_marks");
            format!("rows {mode} to table {table} of {url}; {marks}")
        }
        config::SinkKind::Postgres(database) => {
            let mode = describe_mode(&database.mode);
            let (table, url) = (option("table", &database.table), option("url", &config::redacted(&database.url)));
            let marks = guarantee(database.guarantee, "marks in tidemill_marks of its schema");
            format!("rows {mode} to table {table} of {url}; {marks}")
        }
        config::SinkKind::Kafka(kafka) if kafka.guarantee == config::Guarantee::AtLeastOnce => {
            let (topic, brokers) = (option("topic", &kafka.topic), option("brokers", &kafka.brokers));
            let records = records(kafka, &option);
            format!("{records} in topic {topic} at {brokers}, without transactions; {}", guarantee(kafka.guarantee, ""))
        }
        config::SinkKind::Kafka(kafka) => {
            let (topic, brokers) = (option("topic", &kafka.topic), option("brokers", &kafka.brokers));
            let marks = kafka.marks_topic.as_ref().map_or_else(|| sink::kafka::marks_topic(&job.name), Clone::clone);
            let marks = option("marks_topic", &marks);
            let records = records(kafka, &option);
            format!(
                "{records} in topic {topic} at {brokers}, in transactions; exactly once for readers with \
                 isolation.level=read_committed (marks in its topic {marks})"
            )
        }
        config::SinkKind::Blackhole => "nowhere; at least once".to_owned(),
    }
}

/// What a topic's records are, and which subject of a registry is written to.
fn records(kafka: &config::KafkaSink, option: &dyn Fn(&str, &dyn Display) -> String) -> String {
    let config::Codec::Avro(config::Avro { registry: Some(registry), .. }) = &kafka.codec else {
        return "records".to_owned();
    };
    let subject = match &registry.subject {
        Some(subject) => option("codec.subject", subject),
        None => option("topic", &format!("{}-value", kafka.topic)),
    };
    let how = if registry.register { "registered as" } else { "by the schema of" };
    format!("records of avro, {how} {subject},")
}

/// What a sink promises that may be opened with either guarantee. `marks`: where it keeps them.
fn guarantee(guarantee: config::Guarantee, marks: &str) -> String {
    match guarantee {
        config::Guarantee::ExactlyOnce => format!("exactly once ({marks})"),
        config::Guarantee::AtLeastOnce => {
            "at least once (no marks): a batch that is replayed is written again".to_owned()
        }
    }
}

fn describe_mode(mode: &config::Mode) -> &'static str {
    match mode {
        config::Mode::Append => "appended",
        config::Mode::Upsert { delete_when: None, .. } => "upserted by key",
        config::Mode::Upsert { delete_when: Some(_), .. } => "upserted or deleted by key",
    }
}

/// A lane of `checkpoint show` for people.
pub fn checkpoint_table(answer: &serde_json::Value) -> String {
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let mut out = format!("job {}, lane {}\n", text(&answer["job"]), text(&answer["lane"]));
    let empty = serde_json::Map::new();
    for (sink, held) in answer["sinks"].as_object().unwrap_or(&empty) {
        let claim = &held["claim"];
        let mark = &held["mark"];
        let released = if claim["released"] == true { ", released" } else { "" };
        let _ = writeln!(
            out,
            "  {sink}: generation {}, owner {}{released}",
            text(&claim["generation"]),
            text(&claim["owner"]["name"])
        );
        if mark.is_null() {
            let _ = writeln!(out, "      no mark");
            continue;
        }
        let digest: String = text(&mark["digest"]).chars().take(12).collect();
        let _ = writeln!(out, "      batch {} ({digest}), anchor {}", text(&mark["batch"]), text(&mark["anchor"]));
        let positions: BTreeMap<String, String> = mark["positions"]
            .as_object()
            .map(|map| map.iter().map(|(k, v)| (k.clone(), text(v))).collect())
            .unwrap_or_default();
        for (shard, position) in positions {
            let _ = writeln!(out, "      {shard} at {position}");
        }
    }
    let closed = &answer["ledger"]["closed"];
    let _ = match closed {
        serde_json::Value::Null => writeln!(out, "  ledger: no closed batch"),
        closed => writeln!(out, "  ledger: closed batch {}", text(&closed["batch"])),
    };
    out
}
