//! Right files and what they mean: every key, every default, every unit, what is put in, and where paths lead.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tidemill_config::{
    AvroFraming, Batch, Codec, Compression, Daemon, Framing, Guarantee, Job, Lanes, Mode, OnChanged, OnDone, OnError,
    OnLost, SinkKind, SocketAddress, SourceKind, Start, Trigger, Type, Verb,
};

type Environment = BTreeMap<String, String>;

fn env(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Where a relative path leads: paths in a job are absolute, whatever its file was called by.
fn here(path: &str) -> PathBuf {
    std::env::current_dir().unwrap().canonicalize().unwrap().join(path)
}

#[track_caller]
fn job_in(text: &str, file: &str, env: &Environment) -> Job {
    Job::parse(text, Path::new(file), env).unwrap_or_else(|errors| panic!("{errors}"))
}

#[track_caller]
fn job(text: &str) -> Job {
    job_in(text, "jobs/job.yaml", &Environment::new())
}

/// A job with this source and this sink.
#[track_caller]
fn with(source: &str, sink: &str) -> Job {
    job(&format!("job: a\nsources: {{ s: {{ {source} }} }}\nsinks: {{ out: {{ {sink} }} }}\n"))
}

const DIRECTORY: &str = "type: directory, path: in";
const NOWHERE: &str = "type: blackhole";

fn texts<T: Clone>(all: &[tidemill_config::Located<T>]) -> Vec<T> {
    all.iter().map(|one| one.value.clone()).collect()
}

/// The example of the design, as far as this version has its parts.
const EXAMPLE: &str = r#"
job: web-logs
lanes: single
trigger: 1s
batch: { max_records: 1000000, max_bytes: 64MiB }

sources:
  access:
    type: directory
    path: /var/log/shop
    include: ["*.json", "*.json.gz"]
    codec: json
    schema: { time: string, response: string, bytes: int64, agent: string }
    metadata: [file, position]

steps:
  - parse_timestamp: { column: time, format: "%d/%b/%Y:%H:%M:%S %z" }
  - cast: { response: int32 }
  - trim: [agent]
  - lowercase: [agent]
  - filter: response < 500
  - add: { status_class: "concat(cast(response / 100 as string), 'xx')" }
  - name: hits
    sql: SELECT status_class, count(*) AS hits FROM batch GROUP BY 1

sinks:
  screen:  { type: console, first: 10 }
  archive: { type: files, path: out, codec: json, compression: none }
  db:      { type: sqlite, path: out/hits.db, table: hits }

dead_letters: { type: files, path: dead, codec: json }
"#;

#[test]
fn the_example_of_the_design() {
    let job = job(EXAMPLE);
    assert_eq!(
        (job.name.as_str(), job.lanes, job.trigger),
        ("web-logs", Some(Lanes::Single), Trigger::Every(Duration::from_secs(1)))
    );
    assert_eq!(job.batch, Batch { max_records: 1_000_000, max_bytes: 64 << 20 });
    let source = &job.sources[0];
    let SourceKind::Directory(directory) = &source.kind else { panic!("{source:?}") };
    assert_eq!(directory.path, Path::new("/var/log/shop"));
    assert_eq!(directory.include, ["*.json", "*.json.gz"]);
    let schema = source.schema.as_ref().unwrap();
    let columns: Vec<_> = schema.iter().map(|field| format!("{} {}", field.name, field.kind.value)).collect();
    assert_eq!(columns, ["time string", "response string", "bytes int64", "agent string"]);
    assert_eq!(texts(&source.metadata), ["file", "position"]);
    let names: Vec<_> = job.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["1-parse_timestamp", "2-cast", "3-trim", "4-lowercase", "5-filter", "6-add", "hits"]);
    let Verb::ParseTimestamp { column, formats, zone } = &job.steps[0].verb else { panic!() };
    assert_eq!((column.value.as_str(), texts(formats)), ("time", vec!["%d/%b/%Y:%H:%M:%S %z".to_owned()]));
    assert!(zone.is_none());
    let SinkKind::Sqlite { path, table, mode, .. } = &job.sinks[2].kind else { panic!() };
    assert_eq!((path.as_path(), table.as_str(), mode), (here("jobs/out/hits.db").as_path(), "hits", &Mode::Append));
    let SinkKind::Files(dead) = &job.dead_letters.as_ref().unwrap().kind else { panic!() };
    assert_eq!(dead.path, here("jobs/dead").as_path());
}

#[test]
fn defaults_of_every_key() {
    let job = with(DIRECTORY, NOWHERE);
    assert_eq!((job.lanes, job.trigger), (None, Trigger::Every(Duration::from_secs(1))));
    assert_eq!(job.batch, Batch { max_records: 1_000_000, max_bytes: 16 << 20 });
    assert_eq!(job.takeover_after, Duration::from_secs(30));
    assert!(job.steps.is_empty() && job.dead_letters.is_none());
    let source = &job.sources[0];
    assert!(source.formerly.is_none() && source.schema.is_none() && source.metadata.is_empty());
    assert!(source.codec == Codec::Json);
    let SourceKind::Directory(directory) = &source.kind else { panic!() };
    assert_eq!((directory.path.as_path(), directory.recursive), (here("jobs/in").as_path(), false));
    assert_eq!((directory.include.as_slice(), directory.exclude.len()), (&["*".to_owned()][..], 0));
    assert_eq!(directory.settle, Duration::from_secs(1));
    assert!(directory.on_done == OnDone::Keep);
    assert_eq!((directory.on_changed, directory.start), (OnChanged::Fail, Start::Earliest));
    let sink = &job.sinks[0];
    assert!(sink.formerly.is_none() && sink.from.is_none() && sink.filter.is_none());

    let job = with("type: socket, connect: \"h:1\"", "type: files, path: out");
    let SourceKind::Socket(socket) = &job.sources[0].kind else { panic!() };
    assert!(socket.address == SocketAddress::Connect("h:1".into()) && socket.framing == Framing::Lines);
    assert_eq!((socket.max_record_bytes, socket.max_spool_bytes), (1 << 20, 1 << 30));
    assert_eq!((socket.ack, socket.on_lost_spool), (false, None));
    let SinkKind::Files(files) = &job.sinks[0].kind else { panic!() };
    assert!(files.codec == Codec::Json && files.partition_by.is_empty() && files.roll.is_none());
    assert_eq!(files.compression, Compression::None);

    let job = with("type: directory, path: in, codec: csv", "type: files, path: out, roll: {}");
    let Codec::Csv(csv) = &job.sources[0].codec else { panic!() };
    assert_eq!((csv.delimiter.as_str(), csv.header, csv.quote, csv.escape), (",", true, Some(b'"'), None));
    assert_eq!((csv.nulls.len(), csv.encoding.as_str()), (0, "utf-8"));
    let SinkKind::Files(files) = &job.sinks[0].kind else { panic!() };
    let roll = files.roll.unwrap();
    assert_eq!((roll.bytes, roll.after), (128 << 20, Duration::from_secs(3600)));

    let SinkKind::Console { first } = &with(DIRECTORY, "type: console").sinks[0].kind else { panic!() };
    assert_eq!(*first, None);
    let SinkKind::Sqlite { mode, .. } = &with(DIRECTORY, "type: sqlite, path: a.db, table: t").sinks[0].kind else {
        panic!()
    };
    assert_eq!(*mode, Mode::Append);
}

#[test]
fn units_and_numbers() {
    for (text, ms) in [
        ("1ms", 1),
        ("500ms", 500),
        ("2s", 2_000),
        ("10m", 600_000),
        ("3h", 10_800_000),
        ("1d", 86_400_000),
        ("\"1_000 ms\"", 1000),
    ] {
        let job = job(&format!(
            "job: a\ntrigger: {text}\nsources: {{ s: {{ {DIRECTORY} }} }}\nsinks: {{ o: {{ {NOWHERE} }} }}"
        ));
        assert_eq!(job.trigger, Trigger::Every(Duration::from_millis(ms)), "{text}");
    }
    for (text, bytes) in [
        ("1B", 1),
        ("2kB", 2_000),
        ("3MB", 3_000_000),
        ("4GB", 4_000_000_000),
        ("1TB", 1_000_000_000_000),
        ("5KiB", 5 << 10),
        ("6MiB", 6 << 20),
        ("7GiB", 7 << 30),
        ("1TiB", 1 << 40),
    ] {
        let job = job(&format!(
            "job: a\nbatch: {{ max_bytes: {text} }}\nsources: {{ s: {{ {DIRECTORY} }} }}\nsinks: {{ o: {{ {NOWHERE} }} }}"
        ));
        assert_eq!(job.batch.max_bytes, bytes, "{text}");
    }
    for (text, count) in [("1", 1), ("1000", 1000), ("1_000_000", 1_000_000), ("\"7\"", 7)] {
        let SinkKind::Console { first } = &with(DIRECTORY, &format!("type: console, first: {text}")).sinks[0].kind
        else {
            panic!()
        };
        assert_eq!(*first, Some(count), "{text}");
    }
    for (text, flag) in [("true", true), ("False", false), ("\"true\"", true)] {
        let SourceKind::Directory(directory) =
            &with(&format!("{DIRECTORY}, recursive: {text}"), NOWHERE).sources[0].kind
        else {
            panic!()
        };
        assert_eq!(directory.recursive, flag, "{text}");
    }
}

#[test]
fn options_of_sources() {
    for (text, expected) in [
        ("lines", Framing::Lines),
        ("{ delimiter: __end }", Framing::Delimiter(b"__end".to_vec())),
        ("{ delimiter: \"\\n\\n\" }", Framing::Delimiter(b"\n\n".to_vec())),
        ("{ length_prefix: 4 }", Framing::LengthPrefix(4)),
        ("{ length_prefix: \"8\" }", Framing::LengthPrefix(8)),
    ] {
        let job = with(
            &format!(
                "type: socket, listen: \"[::1]:0\", framing: {text}, ack: line, on_lost_spool: stop, max_record_bytes: 1kB, max_spool_bytes: 1MiB, metadata: [position]"
            ),
            NOWHERE,
        );
        let SourceKind::Socket(socket) = &job.sources[0].kind else { panic!() };
        assert!(socket.framing == expected, "{text}");
        assert!(socket.address == SocketAddress::Listen("[::1]:0".into()));
        assert_eq!((socket.ack, socket.on_lost_spool), (true, Some(OnLost::Stop)));
        assert_eq!((socket.max_record_bytes, socket.max_spool_bytes), (1000, 1 << 20));
    }
    for (text, expected) in [
        ("keep", OnDone::Keep),
        ("delete", OnDone::Delete),
        ("{ move: done }", OnDone::Move(here("jobs/done"))),
        ("{ move: /done }", OnDone::Move("/done".into())),
    ] {
        let job = with(
            &format!(
                "{DIRECTORY}, on_done: {text}, on_changed: dead_letter, start: latest, read: settled, settle: 0s, include: a, exclude: [b, \"**/c\"], recursive: true, formerly: old"
            ),
            NOWHERE,
        );
        let SourceKind::Directory(directory) = &job.sources[0].kind else { panic!() };
        assert!(directory.on_done == expected, "{text}");
        assert_eq!((directory.on_changed, directory.start), (OnChanged::DeadLetter, Start::Latest));
        assert_eq!(
            (directory.include.as_slice(), directory.exclude.as_slice()),
            (&["a".to_owned()][..], &["b".to_owned(), "**/c".into()][..])
        );
        assert_eq!(job.sources[0].formerly.as_deref(), Some("old"));
    }
    let job = with(
        "type: directory, path: in, codec: { type: csv, delimiter: \"\\t\", header: false, quote: \"'\", escape: \"\\\\\", nulls: [NA, \"-\"], encoding: windows-1252 }",
        NOWHERE,
    );
    let Codec::Csv(csv) = &job.sources[0].codec else { panic!() };
    assert_eq!((csv.delimiter.as_str(), csv.header, csv.quote, csv.escape), ("\t", false, Some(b'\''), Some(b'\\')));
    assert_eq!((csv.nulls.as_slice(), csv.encoding.as_str()), (&["NA".to_owned(), "-".into()][..], "windows-1252"));
    assert!(with("type: directory, path: in, codec: { type: text }", NOWHERE).sources[0].codec == Codec::Text);
}

#[test]
fn every_type_of_a_column() {
    let types = [
        "string",
        "int32",
        "int64",
        "float64",
        "boolean",
        "timestamp",
        "date",
        "binary",
        "decimal(10, 2)",
        "list<int64>",
        "struct<a: string, b: list<date>>",
    ];
    let lines: String = types.iter().enumerate().map(|(n, kind)| format!("      c{n}: \"{kind}\"\n")).collect();
    let job = job(&format!(
        "job: a\nsources:\n  s:\n    type: directory\n    path: in\n    schema:\n{lines}sinks: {{ o: {{ {NOWHERE} }} }}\n"
    ));
    let shown: Vec<_> =
        job.sources[0].schema.as_ref().unwrap().iter().map(|field| field.kind.value.to_string()).collect();
    assert_eq!(shown, types);
}

#[test]
fn every_verb_and_its_options() {
    let text = r#"
job: a
sources: { s: { type: directory, path: in }, t: { type: directory, path: in2 } }
steps:
  - { select: [a, b], name: one, from: s }
  - drop: a
  - rename: { a: b, b: a }
  - cast: { a: int64, d: "decimal(5, 1)" }
    on_error: set_null
  - trim: [a]
  - lowercase: [a]
  - uppercase: [a]
  - split: { column: a, by: "," }
  - split: { column: a, by: "=", into: [k, v] }
  - filter: a = 'x:y' and b < 5
    when: "c is not null"
    on_error: fail
  - add: { a: "1", "a b": "'${X}'" }
  - parse_timestamp: { column: a, format: ["%Y", "%d"], zone: Europe/Berlin }
  - parse_timestamp: { column: a }
  - drop_empty: a
  - drop_nulls: [a, b]
  - name: last
    from: [one, t]
    sql: >
      SELECT *
      FROM one
sinks: { out: { type: blackhole, from: one, where: a > 1, formerly: old }, out2: { type: blackhole, from: s } }
"#;
    let job = job(text);
    assert_eq!((job.steps.len(), texts(&job.steps[0].from)), (16, vec!["s".to_owned()]));
    let is: Vec<bool> = job
        .steps
        .iter()
        .map(|step| match &step.verb {
            Verb::Select(all) => texts(all) == ["a", "b"],
            Verb::Drop(all) | Verb::Trim(all) | Verb::Lowercase(all) | Verb::Uppercase(all) | Verb::DropEmpty(all) => {
                texts(all) == ["a"]
            }
            Verb::DropNulls(all) => texts(all) == ["a", "b"],
            Verb::Rename(all) => {
                all.iter().map(|(old, new)| (old.value.as_str(), new.value.as_str())).eq([("a", "b"), ("b", "a")])
            }
            Verb::Cast(all) => all[0].1.value == Type::Int64 && all[1].1.value == Type::Decimal(5, 1),
            Verb::Split { column, by, into } => {
                column.value == "a" && (by == "," && into.is_empty() || by == "=" && texts(into) == ["k", "v"])
            }
            Verb::Filter(expression) => expression.value == "a = 'x:y' and b < 5",
            // Steps are never substituted.
            Verb::Add(all) => all[1].0.value == "a b" && all[1].1.value == "'${X}'",
            Verb::ParseTimestamp { formats, zone, .. } => {
                texts(formats).len() == 2 && zone.is_some() || formats.is_empty() && zone.is_none()
            }
            Verb::Sql(query) => query.value == "SELECT * FROM one\n",
            Verb::Lookup(_) => unreachable!("tests/lookups.rs has them"),
        })
        .collect();
    assert_eq!(is, [true; 16]);
    let filter = &job.steps[9];
    assert_eq!((filter.name.as_str(), filter.on_error, filter.named), ("10-filter", OnError::Fail, false));
    assert_eq!(filter.when.as_ref().unwrap().value, "c is not null");
    assert_eq!((job.steps[3].on_error, job.steps[4].on_error), (OnError::SetNull, OnError::Reject));
    assert_eq!(((filter.at.line, filter.at.path.as_str()), job.steps[15].named), ((15, "steps[9]"), true));
    let sink = &job.sinks[0];
    assert_eq!(sink.from.as_ref().unwrap().value, "one");
    assert_eq!((sink.filter.as_ref().unwrap().value.as_str(), sink.formerly.as_deref()), ("a > 1", Some("old")));
}

#[test]
fn options_of_sinks() {
    for (codec, expected) in [("json", Codec::Json), ("text", Codec::Text), ("parquet", Codec::Parquet)] {
        let job = with(
            DIRECTORY,
            &format!("type: files, path: ../out, codec: {codec}, compression: zstd, partition_by: [day, hour]"),
        );
        let SinkKind::Files(files) = &job.sinks[0].kind else { panic!() };
        assert!(files.codec == expected, "{codec}");
        assert_eq!((files.path.as_path(), files.compression), (here("out").as_path(), Compression::Zstd));
        assert_eq!(texts(&files.partition_by), ["day", "hour"]);
    }
    let job = with(
        DIRECTORY,
        "type: files, path: out, codec: { type: csv, delimiter: ;, header: false }, compression: gzip, roll: { bytes: 1MB, after: 10m }, partition_by: day",
    );
    let SinkKind::Files(files) = &job.sinks[0].kind else { panic!() };
    let Codec::Csv(csv) = &files.codec else { panic!() };
    assert_eq!((csv.delimiter.as_str(), csv.header, files.compression), (";", false, Compression::Gzip));
    let roll = files.roll.unwrap();
    assert_eq!((roll.bytes, roll.after), (1_000_000, Duration::from_secs(600)));
    let job = with(DIRECTORY, "type: sqlite, path: /a.db, table: \"my table\", mode: upsert, key: [a, b]");
    let SinkKind::Sqlite { path, table, mode: Mode::Upsert { key, .. }, .. } = &job.sinks[0].kind else { panic!() };
    assert_eq!(
        (path.as_path(), table.as_str(), texts(key)),
        (Path::new("/a.db"), "my table", vec!["a".to_owned(), "b".into()])
    );
    let url = "postgres://me:pw@h/db?sslmode=require";
    let job = with(
        DIRECTORY,
        &format!(
            "type: postgres, url: \"{url}\", table: shop.orders, mode: upsert, key: id, delete_when: gone, ca: ca.pem"
        ),
    );
    let SinkKind::Postgres(sink) = &job.sinks[0].kind else { panic!() };
    let Mode::Upsert { key, delete_when: Some(flag) } = &sink.mode else { panic!() };
    assert_eq!((sink.url.as_str(), sink.table.as_str()), (url, "shop.orders"));
    assert_eq!((texts(key), flag.value.as_str()), (vec!["id".to_owned()], "gone"));
    assert!(sink.ca.as_ref().unwrap().ends_with("ca.pem") && sink.ca.as_ref().unwrap().parent() != Some(Path::new("")));
    assert_eq!(format!("{sink:?}"), "DatabaseSink { .. }");
}

#[test]
fn what_is_put_in() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("secrets")).unwrap();
    fs::write(dir.path().join("secrets/one"), "from a file\n").unwrap();
    fs::write(dir.path().join("secrets/two"), "two\nlines\r\n").unwrap();
    fs::write(dir.path().join("secrets/bare"), "bare").unwrap();
    let file = dir.path().join("job.yaml");
    let env = env(&[
        ("NAME", "value"),
        ("EMPTY", ""),
        ("YAML", "a, b: [c] # d\n\"e"),
        ("SIZE", "2MiB"),
        ("FLAG", "true"),
        ("KIND", "directory"),
        ("DOLLAR", "${NAME}"),
    ]);
    let taken = |text: &str| {
        let text = format!(
            "job: a\nsources: {{ s: {{ {DIRECTORY} }} }}\nsinks: {{ o: {{ type: sqlite, path: a.db, table: {text} }} }}\n"
        );
        match &job_in(&text, file.to_str().unwrap(), &env).sinks[0].kind {
            SinkKind::Sqlite { table, .. } => table.clone(),
            _ => panic!(),
        }
    };
    for (text, expected) in [
        ("\"${NAME}\"", "value"),
        ("\"a-${NAME}-${NAME}\"", "a-value-value"),
        ("'${NAME:-other}'", "value"),
        ("\"${UNSET:-other}\"", "other"),
        ("\"${EMPTY:-other}\"", "other"),
        ("\"${UNSET:-a:-b}\"", "a:-b"),
        ("\"${file:secrets/one}\"", "from a file"),
        ("\"${file:secrets/two}\"", "two\nlines"),
        ("\"${file:secrets/bare}\"", "bare"),
        ("\"$$\"", "$"),
        ("\"$${NAME}\"", "${NAME}"),
        ("\"$$$${NAME}\"", "$${NAME}"),
        ("\"$$${NAME}\"", "$value"),
        ("\"a$ 5$\"", "a$ 5$"),
        // A value stays one text, whatever is in it, and nothing is put into it.
        ("\"${YAML}\"", "a, b: [c] # d\n\"e"),
        ("\"${DOLLAR}\"", "${NAME}"),
    ] {
        assert_eq!(taken(text), expected, "{text}");
    }
    let text = "job: a\nsources:\n  s: { type: \"${KIND}\", path: \"in/${NAME}\", recursive: \"${FLAG}\", include: [\"${NAME}\"] }\nsinks: { o: { type: files, path: ${NAME:-x}, roll: { bytes: \"${SIZE}\" } } }\ndead_letters: { type: files, path: \"${NAME}-dead\" }\n".replace("${NAME:-x}", "\"${NAME:-x}\"");
    let job = job_in(&text, "job.yaml", &env);
    let SourceKind::Directory(directory) = &job.sources[0].kind else { panic!() };
    assert_eq!((directory.path.as_path(), directory.recursive), (here("in/value").as_path(), true));
    let SinkKind::Files(files) = &job.sinks[0].kind else { panic!() };
    assert_eq!((files.path.as_path(), files.roll.unwrap().bytes), (here("value").as_path(), 2 << 20));
    assert!(!job.text.contains("value"), "the text is kept as it was read");
}

#[test]
fn anchors_and_merges() {
    let text = "
job: a
sources: { s: { type: directory, path: in } }
sinks:
  one: &files { type: files, path: one, codec: csv, compression: gzip }
  two: { <<: *files, path: two }
  three: { <<: [{ path: three }, *files], codec: json }
dead_letters: &dead { type: files, path: dead }
";
    let job = job(text);
    let files: Vec<_> = job
        .sinks
        .iter()
        .map(|sink| match &sink.kind {
            SinkKind::Files(files) => (files.path.clone(), matches!(files.codec, Codec::Csv(_)), files.compression),
            _ => panic!(),
        })
        .collect();
    let expected = [("jobs/one", true), ("jobs/two", true), ("jobs/three", false)];
    assert_eq!(files, expected.map(|(path, csv)| (here(path), csv, Compression::Gzip)));
}

#[test]
fn options_of_a_kafka_sink() {
    let least = with(DIRECTORY, "type: kafka, brokers: \"a:1,b:2\", topic: clean");
    let SinkKind::Kafka(sink) = &least.sinks[0].kind else { panic!() };
    assert_eq!((sink.brokers.as_str(), sink.topic.as_str(), &sink.codec), ("a:1,b:2", "clean", &Codec::Json));
    assert_eq!((sink.compression.name(), sink.transaction_timeout), ("none", Duration::from_secs(60)));
    assert!(sink.key.is_none() && sink.headers.is_empty() && sink.delete_when.is_none() && sink.marks_topic.is_none());
    for list in ["[\"a:1\", \"b:2\"]", "\"a:1, b:2\"", "[\"a:1,b:2\"]"] {
        let written = with(DIRECTORY, &format!("type: kafka, brokers: {list}, topic: clean"));
        let SinkKind::Kafka(sink) = &written.sinks[0].kind else { panic!() };
        assert_eq!(sink.brokers, "a:1,b:2", "{list}");
        let source = &format!("type: kafka, brokers: {list}, topics: t");
        let SourceKind::Kafka(source) = &with(source, "type: console").sources[0].kind else { panic!() };
        assert_eq!(source.brokers, "a:1,b:2", "{list}");
        let dead = format!("dead_letters: {{ type: kafka, brokers: {list}, topic: d }}");
        let rejecting =
            job(&format!("job: a\nsources: {{ s: {{ {DIRECTORY} }} }}\nsinks: {{ out: {{ {NOWHERE} }} }}\n{dead}\n"));
        let SinkKind::Kafka(dead) = &rejecting.dead_letters.as_ref().unwrap().kind else { panic!() };
        assert_eq!(dead.brokers, "a:1,b:2", "{list}");
    }
    let job = with(
        DIRECTORY,
        "type: kafka, brokers: k, topic: t, key: \"a || b\", headers: { h: a, i: b }, delete_when: c, codec: text, \
         compression: lz4, transaction_timeout: 5s, marks_topic: m, properties: { linger.ms: 20, sasl.password: pw }",
    );
    let SinkKind::Kafka(sink) = &job.sinks[0].kind else { panic!() };
    let headers: Vec<_> = sink.headers.iter().map(|(name, column)| (name.as_str(), column.value.as_str())).collect();
    assert_eq!((sink.key.as_ref().unwrap().value.as_str(), headers), ("a || b", vec![("h", "a"), ("i", "b")]));
    assert_eq!((sink.delete_when.as_ref().unwrap().value.as_str(), &sink.codec), ("c", &Codec::Text));
    assert_eq!((sink.compression.name(), sink.transaction_timeout), ("lz4", Duration::from_secs(5)));
    assert_eq!(sink.marks_topic.as_deref(), Some("m"));
    assert_eq!(sink.properties, [("linger.ms".into(), "20".into()), ("sasl.password".into(), "pw".into())]);
    assert_eq!(format!("{sink:?}"), "KafkaSink { .. }");
}

#[test]
fn the_daemons_file() {
    let defaults = Daemon::defaults();
    assert_eq!(defaults.data_dir, Path::new("tidemill-data"));
    assert_eq!(
        (defaults.owner.as_deref(), defaults.http.as_str(), defaults.memory),
        (None, "127.0.0.1:9720", 512 << 20)
    );
    assert_eq!((defaults.log.json, defaults.log.level.as_str()), (false, "info"));
    assert!(defaults.jobs.is_empty() && defaults.file.is_none());
    for empty in ["", "# nothing\n", "---\n", "{}\n"] {
        let daemon = Daemon::parse(empty, Path::new("etc/t.yaml"), &Environment::new()).unwrap();
        assert_eq!(
            (daemon.data_dir.as_path(), daemon.memory),
            (Path::new("etc/tidemill-data"), 512 << 20),
            "{empty:?}"
        );
    }
    let text = "data_dir: \"${STATE:-state}\"\nowner: host-1\nhttp: 0.0.0.0:0\nmemory: 1GiB\nlog: { format: json, level: \"info,tidemill=debug\" }\njobs: jobs/*.yaml\n";
    let daemon =
        Daemon::parse(text, Path::new("/etc/tidemill/t.yaml"), &env(&[("STATE", "/var/lib/tidemill")])).unwrap();
    assert_eq!(daemon.data_dir, Path::new("/var/lib/tidemill"));
    assert_eq!((daemon.owner.as_deref(), daemon.http.as_str(), daemon.memory), (Some("host-1"), "0.0.0.0:0", 1 << 30));
    assert_eq!((daemon.log.json, daemon.log.level.as_str()), (true, "info,tidemill=debug"));
    assert_eq!(texts(&daemon.jobs), ["jobs/*.yaml"]);
}

#[test]
fn globs_of_jobs() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    for (file, name) in [
        ("jobs/b.yaml", "b"),
        ("jobs/a.yaml", "a"),
        ("jobs/deep/er/c.yaml", "c"),
        ("jobs/x.yml", "x"),
        ("one.yaml", "one"),
    ] {
        fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
        fs::write(
            folder.join(file),
            format!("job: {name}\nsources: {{ s: {{ {DIRECTORY} }} }}\nsinks: {{ o: {{ {NOWHERE} }} }}\n"),
        )
        .unwrap();
    }
    fs::write(folder.join("jobs/notes.txt"), "no job").unwrap();
    let absolute = format!("{}/jobs/?.yaml", folder.display());
    for (globs, expected) in [
        ("one.yaml", vec!["one"]),
        ("jobs/*.yaml", vec!["a", "b"]),
        ("[jobs/b.yaml, \"jobs/*.yaml\"]", vec!["b", "a"]),
        ("\"jobs/**/*.yaml\"", vec!["a", "b", "c"]),
        ("\"jobs/*.{yaml,yml}\"", vec!["a", "b", "x"]),
        ("\"jobs/[a-b].yaml\"", vec!["a", "b"]),
        ("./jobs/../one.yaml", vec!["one"]),
        (absolute.as_str(), vec!["a", "b"]),
        ("[]", vec![]),
    ] {
        fs::write(folder.join("t.yaml"), format!("jobs: {globs}\n")).unwrap();
        let daemon = Daemon::load(&folder.join("t.yaml"), &Environment::new()).unwrap();
        let jobs = daemon.load_jobs(&Environment::new()).unwrap_or_else(|errors| panic!("{globs}: {errors}"));
        let names: Vec<_> = jobs.iter().map(|job| job.name.as_str()).collect();
        assert_eq!(names, expected, "{globs}");
    }
    let job = Job::load(&folder.join("jobs/a.yaml"), &Environment::new()).unwrap();
    let SourceKind::Directory(directory) = &job.sources[0].kind else { panic!() };
    assert_eq!(directory.path, folder.join("jobs/in"), "relative to the job's file");
}

#[test]
fn records_of_a_topic_may_be_binary() {
    let sink = |codec: &str| {
        let job = with(DIRECTORY, &format!("type: kafka, brokers: k, topic: t, codec: {codec}"));
        let SinkKind::Kafka(sink) = job.sinks[0].kind.clone() else { panic!() };
        sink.codec
    };
    assert!(sink("bytes") == Codec::Bytes("bytes".into()));
    assert!(sink("{ type: bytes, column: body }") == Codec::Bytes("body".into()));
    let Codec::Avro(avro) = sink("{ type: avro, registry: \"http://h:1\" }") else { panic!() };
    let registry = avro.registry.unwrap();
    assert_eq!((registry.subject, registry.register, avro.framing), (None, true, AvroFraming::Confluent));
    let Codec::Avro(avro) = sink("{ type: avro, schema: '\"long\"', framing: single_object }") else { panic!() };
    let schema = avro.schema.unwrap();
    assert_eq!((schema.shown(), schema.content.unwrap().as_ref()), ("the schema".to_owned(), &b"\"long\""[..]));
    assert_eq!(avro.framing, AvroFraming::SingleObject);
    let Codec::Avro(avro) =
        sink("{ type: avro, registry: \"http://h:1\", subject: s, register: false, schema_file: absent.avsc }")
    else {
        panic!()
    };
    assert!(avro.schema.unwrap().content.unwrap_err().contains("no such file"));
    let registry = avro.registry.unwrap();
    assert_eq!((registry.subject.as_deref(), registry.register), (Some("s"), false));
    assert!(
        matches!(sink("{ type: protobuf, descriptors: d, message: m }"), Codec::Protobuf(given) if !given.confluent)
    );
}

#[test]
fn a_sink_keeps_marks_unless_it_is_told_not_to() {
    for sink in [
        "type: kafka, brokers: k, topic: t",
        "type: postgres, url: \"postgres://h/db\", table: t",
        "type: mysql, url: \"mysql://h/db\", table: t",
    ] {
        assert_eq!(with(DIRECTORY, sink).sinks[0].kind.guarantee(), Guarantee::ExactlyOnce, "{sink}");
        let told = with(DIRECTORY, &format!("{sink}, guarantee: at_least_once"));
        assert_eq!(told.sinks[0].kind.guarantee(), Guarantee::AtLeastOnce, "{sink}");
    }
    assert_eq!(with(DIRECTORY, "type: console").sinks[0].kind.guarantee(), Guarantee::AtLeastOnce);
    assert_eq!(with(DIRECTORY, "type: files, path: out").sinks[0].kind.guarantee(), Guarantee::ExactlyOnce);
}
