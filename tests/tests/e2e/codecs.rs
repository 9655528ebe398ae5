//! Avro and Protobuf from end to end: records by Confluent's own client, schemas in a real registry, and what happens where
//! one of them is not as it should be.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::UNIX_EPOCH,
};

use tidemill_tests::{
    Folder, Rows, Run,
    daemon::tidemill,
    eventually, free_address,
    needs::{output, python_with},
    services,
};

/// Writes records as Confluent's serialisers make them, which register their schemas: to files, one each, or to a topic.
const WRITER: &str = r#"
import datetime, decimal, json, pathlib, sys, tempfile
from confluent_kafka import Producer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

registry, topic, kind, first, count, to = sys.argv[1:]
client = SchemaRegistryClient({"url": registry})
context = SerializationContext(topic, MessageField.VALUE)
numbers = range(int(first), int(first) + int(count))
at = datetime.datetime(2015, 5, 17, 10, 5, 3, 120000, tzinfo=datetime.timezone.utc)

def avro(version):
    fields = [{"name": "id", "type": "long"}, {"name": "name", "type": "string"}]
    if version > 1:
        fields.append({"name": "amount", "default": None, "type": ["null", {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}]})
        fields.append({"name": "at", "default": None, "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}]})
    if version > 2:
        fields.append({"name": "later", "type": ["null", "string"], "default": None})
    serializer = AvroSerializer(client, json.dumps({"type": "record", "name": "Order", "fields": fields}))
    for n in numbers:
        row = {"id": n, "name": f"né {n}", "amount": decimal.Decimal(n).scaleb(-2), "at": at, "later": "x"}
        yield serializer({field["name"]: row[field["name"]] for field in fields}, context)

def protobuf():
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from grpc_tools import protoc
    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / f"{topic}.proto").write_text(
        'syntax = "proto3"; package shop; message Other {} message Order { int64 id = 1; string name = 2; optional double amount = 3; }')
    protoc.main(["protoc", f"-I{folder}", "--include_imports", f"--descriptor_set_out={folder}/set", f"{topic}.proto"])
    descriptors = (folder / "set").read_bytes()
    pathlib.Path(f"{kind.partition(':')[2]}").write_bytes(descriptors)
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(descriptors).file:
        pool.Add(file)
    Order = message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.Order"))
    serializer = ProtobufSerializer(Order, client, {"use.deprecated.format": False})
    for n in numbers:
        yield serializer(Order(id=n, name=f"né {n}", amount=n / 100 if n % 2 else None), context)

records = protobuf() if kind.startswith("protobuf") else avro(int(kind[-1]))
if to.startswith("kafka:"):
    producer = Producer({"bootstrap.servers": to.removeprefix("kafka:")})
    for record in records:
        producer.produce(topic, record)
    assert producer.flush(60) == 0
else:
    for n, record in zip(numbers, records):
        part = pathlib.Path(to) / f".{n:06}"
        part.write_bytes(record)
        part.rename(pathlib.Path(to) / f"{n:06}.bin")
"#;

struct Writer {
    python: PathBuf,
    registry: String,
    topic: String,
}

impl Writer {
    /// With a topic, and so a subject, of its own.
    fn new(registry: &str) -> Option<Self> {
        let python =
            python_with("confluent_kafka.schema_registry.avro, confluent_kafka.schema_registry.protobuf, grpc_tools")?;
        let topic = format!("codec-{}-{}", std::process::id(), UNIX_EPOCH.elapsed().unwrap().as_nanos());
        Some(Self { python, registry: registry.to_owned(), topic })
    }

    fn write(&self, kind: &str, first: u32, count: u32, to: &str) {
        let mut command = Command::new(&self.python);
        command.args(["-c", WRITER, &self.registry, &self.topic, kind, &first.to_string(), &count.to_string(), to]);
        output(&mut command);
    }

    fn files(&self, kind: &str, first: u32, count: u32, folder: &Folder) {
        fs::create_dir_all(folder.join("in")).unwrap();
        self.write(kind, first, count, folder.join("in").to_str().unwrap());
    }

    fn subject(&self) -> String {
        format!("{}-value", self.topic)
    }
}

/// What the rows of some numbers are, of a version of the schema that has no more columns than these.
fn orders(numbers: impl Iterator<Item = u32>, has_amount: bool) -> String {
    let lines = numbers.map(|n| {
        let (amount, at) = if has_amount {
            (format!("{}.{:02}", n / 100, n % 100), "\"2015-05-17T10:05:03.120Z\"")
        } else {
            ("null".to_owned(), "null")
        };
        format!("{{\"id\": {n}, \"name\": \"né {n}\", \"amount\": {amount}, \"at\": {at}}}\n")
    });
    lines.collect()
}

fn job(codec: &str) -> String {
    format!(
        "job: codecs\ntrigger: asap\nsources: {{ in: {{ type: directory, path: in, settle: 10ms, include: \"*.bin\", codec: {codec} }} }}\n\
         sinks:\n  out: {{ type: files, path: out, codec: json }}\n  db: {{ type: sqlite, path: rows.db, table: rows }}\n\
         dead_letters: {{ type: files, path: dead, codec: json }}\n"
    )
}

#[test]
fn records_of_several_schemas_become_rows_of_the_pinned_columns() {
    let Some(registry) = services::registry() else { return };
    let Some(writer) = Writer::new(&registry.url) else { return };
    let folder = Folder::new();
    writer.files("avro1", 0, 20, &folder);
    writer.files("avro2", 20, 20, &folder);
    folder.publish("in/a.bin", "no record");
    fs::write(folder.join("in/b.bin"), [0, 0x7f, 0xff, 0xff, 0xff, 1]).unwrap();
    let run = Run::new(&folder).job(&job(&format!(
        "{{ type: avro, registry: \"{}\", subject: {} }}",
        registry.url,
        writer.subject()
    )));
    // Killed between the anchor and the other sink: the replay gives the second one the same rows.
    run.clone().failpoint("after-anchor:1:kill").start().expect_killed();
    run.once().expect_success();
    let mut expected = orders(0..20, false) + &orders(20..40, true);
    Rows::files(&folder.join("out")).assert_same(&Rows::json(&expected), "the files");
    assert_eq!(Rows::sqlite(&folder.join("rows.db"), "SELECT id FROM rows").len(), 40);
    let mut reasons = Rows::files(&folder.join("dead")).column("reason");
    reasons.sort();
    assert_eq!(reasons, ["bad_avro", "unknown_schema"]);
    let details = Rows::files(&folder.join("dead")).column("detail").concat();
    assert!(details.contains("the registry has no schema 2147483647"), "{details}");
    // A newer schema changes nothing of what is pinned.
    writer.files("avro3", 40, 20, &folder);
    run.once().expect_success();
    expected += &orders(40..60, true);
    Rows::files(&folder.join("out")).assert_same(&Rows::json(&expected), "the files");
}

/// A registry that learns of an id between the first try of a batch and its replay: what the anchor did not get is no row for
/// the others, and is in the dead letters.
#[test]
fn a_schema_that_comes_before_the_replay_changes_nothing_of_the_batch() {
    let knows_all = Arc::new(AtomicBool::new(false));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let knows = knows_all.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let asked = lines.next().unwrap_or_default();
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let schema = r#"{"schema": "{\"type\": \"record\", \"name\": \"R\", \"fields\": [{\"name\": \"a\", \"type\": \"int\"}]}"}"#;
            let (status, body) = match asked.contains("/ids/1 ") || knows.load(Ordering::SeqCst) {
                true => (200, schema),
                false => (404, r#"{"error_code": 40403, "message": "Schema not found"}"#),
            };
            let _ = write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        }
    });
    let folder = Folder::new();
    fs::create_dir_all(folder.join("in")).unwrap();
    for (name, id, value) in [("a", 1, 2), ("b", 9, 4), ("c", 1, 6)] {
        fs::write(folder.join(format!("in/{name}.bin")), [0, 0, 0, 0, id, value]).unwrap();
    }
    let run = Run::new(&folder).job(&job(&format!("{{ type: avro, registry: \"{url}\" }}")));
    run.clone().failpoint("after-anchor:1:kill").start().expect_killed();
    knows_all.store(true, Ordering::SeqCst);
    run.once().expect_success();
    let expected = Rows::json("{\"a\": 1}\n{\"a\": 3}\n");
    Rows::files(&folder.join("out")).assert_same(&expected, "the files");
    Rows::sqlite(&folder.join("rows.db"), "SELECT a FROM rows").assert_same(&expected, "the table");
    assert_eq!(Rows::files(&folder.join("dead")).column("reason"), ["unknown_schema"]);
    // The next batch has it.
    fs::write(folder.join("in/d.bin"), [0, 0, 0, 0, 9, 8]).unwrap();
    run.once().expect_success();
    assert_eq!(Rows::files(&folder.join("out")).len(), 3);
}

#[test]
fn a_registry_that_is_down_makes_a_batch_wait() {
    let folder = Folder::new();
    let Some(registry) = services::Registry::private(&folder.join("services")) else { return };
    let Some(writer) = Writer::new(&registry.url) else { return };
    writer.files("avro2", 0, 10, &folder);
    registry.kill();
    let run = Run::new(&folder).job(&job(&format!("{{ type: avro, registry: \"{}\" }}", registry.url)));
    let daemon = run.start();
    eventually("the reason", || {
        let said = daemon.stderr();
        if said.contains("/schemas/ids/") && said.contains("refused") { Ok(()) } else { Err(said) }
    });
    assert!(!folder.join("out").exists() || Rows::files(&folder.join("out")).is_empty());
    registry.start();
    eventually("the rows", || Rows::files(&folder.join("out")).compare(&Rows::json(&orders(0..10, true))));
    assert!(!folder.join("dead").exists() || Rows::files(&folder.join("dead")).is_empty(), "no record is given up");
}

const SCHEMA: &str = r#"{"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}, {"name": "b", "type": "string", "default": "x"}]}"#;

#[test]
fn a_schema_file_belongs_to_the_text_that_a_plan_names() {
    let folder = Folder::new();
    folder.write("r.avsc", SCHEMA);
    fs::create_dir_all(folder.join("in")).unwrap();
    fs::write(folder.join("in/1.bin"), [84, 4, b'h', b'i']).unwrap();
    let run = Run::new(&folder).job(&job("{ type: avro, schema_file: r.avsc }"));
    run.clone().failpoint("after-anchor:1:kill").start().expect_killed();
    folder.write("r.avsc", SCHEMA.replace("\"x\"", "\"y\""));
    let mut stopped = run.once();
    stopped.expect_code(1);
    assert!(stopped.stderr().contains("other contents of a codec's schema file"), "{}", stopped.stderr());
    folder.write("r.avsc", SCHEMA);
    run.once().expect_success();
    Rows::files(&folder.join("out")).assert_same(&Rows::json("{\"a\": 42, \"b\": \"hi\"}"), "the files");
    assert_eq!(Rows::sqlite(&folder.join("rows.db"), "SELECT a FROM rows").len(), 1);
}

#[test]
fn a_schema_file_that_changed_is_taken_at_a_reload() {
    let folder = Folder::new();
    folder.write("r.avsc", SCHEMA);
    fs::create_dir_all(folder.join("in")).unwrap();
    let record = |name: &str| fs::write(folder.join("in").join(name), [84, 4, b'h', b'i']).unwrap();
    record("1.bin");
    let yaml = "job: r\ntrigger: asap\nsources: { in: { type: directory, path: in, settle: 10ms, codec: { type: avro, schema_file: r.avsc } } }\n\
                sinks: { out: { type: files, path: out, codec: json } }\n";
    let daemon = Run::new(&folder).job(yaml).spawn();
    let mut expected = "{\"a\": 42, \"b\": \"hi\"}\n".to_owned();
    eventually("the row", || Rows::files(&folder.join("out")).compare(&Rows::json(&expected)));
    folder.write("r.avsc", SCHEMA.replace("\"b\"", "\"c\""));
    daemon.hup();
    eventually("the reload", || {
        let said = daemon.stderr();
        if said.contains("changed: started anew") { Ok(()) } else { Err(said) }
    });
    record("2.bin");
    expected += "{\"a\": 42, \"c\": \"hi\"}\n";
    eventually("the other row", || Rows::files(&folder.join("out")).compare(&Rows::json(&expected)));
}

#[test]
fn wrong_files_are_told_with_their_place() {
    let folder = Folder::new();
    folder.write("wrong.avsc", "{\"type\": \"recrod\"}");
    folder.write("wrong.desc", "no descriptors");
    for (codec, wanted) in [
        ("{ type: avro, schema_file: wrong.avsc }", "sources.in.codec.schema_file: the schema "),
        ("{ type: avro, schema_file: absent.avsc }", "cannot be used: there is no such file"),
        ("{ type: protobuf, descriptors: wrong.desc, message: a.B }", "--include_imports --descriptor_set_out=FILE"),
    ] {
        let path = folder.write("job.yaml", job(codec));
        let done = tidemill(&folder, &["validate", path.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(78), "{said}");
        assert!(said.contains("job.yaml:3:") && said.contains(wanted), "{said}");
    }
}

/// Which columns there are is known before the first record: so is that two would have one name.
#[test]
fn a_field_named_like_a_metadata_column_is_an_error_of_the_file() {
    let folder = Folder::new();
    folder.write("r.avsc", SCHEMA.replace("\"b\"", "\"_file\""));
    for (metadata, code) in [("file, position", 78), ("position", 0)] {
        let yaml = format!(
            "job: r\nsources:\n  in: {{ type: directory, path: in, metadata: [{metadata}], codec: {{ type: avro, schema_file: r.avsc }} }}\n\
             sinks: {{ out: {{ type: files, path: out, codec: json }} }}\n"
        );
        let path = folder.write("job.yaml", yaml);
        let done = tidemill(&folder, &["validate", path.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(code), "{said}");
        assert!(code == 0 || said.contains("job.yaml:3:") && said.contains("leave `file` out of `metadata`"), "{said}");
    }
}

#[test]
fn validate_asks_the_registry() {
    let Some(registry) = services::registry() else { return };
    let Some(writer) = Writer::new(&registry.url) else { return };
    let folder = Folder::new();
    writer.files("avro1", 0, 1, &folder);
    let nobody = format!("http://{}", free_address());
    for (url, subject, wanted) in [
        (&registry.url, Some(writer.subject()), Ok("registry of source in: reached")),
        (&registry.url, None, Ok("registry of source in: reached")),
        (&registry.url, Some("absent".to_owned()), Err("subject absent: ")),
        (&nobody, None, Err("refused")),
        (&registry.url.replace("ccompat", "absent"), None, Err("is it the URL of a registry?")),
    ] {
        let subject = subject.map(|subject| format!(", subject: {subject}")).unwrap_or_default();
        let path = folder.write("job.yaml", job(&format!("{{ type: avro, registry: \"{url}\"{subject} }}")));
        let done = tidemill(&folder, &["validate", "--connect", path.to_str().unwrap()]);
        let [out, err] = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        match wanted {
            Ok(wanted) => assert!(done.status.success() && out.contains(wanted), "{out}{err}"),
            Err(wanted) => assert!(done.status.code() == Some(1) && err.contains(wanted), "{out}{err}"),
        }
    }
}

#[test]
fn a_file_of_bytes_is_a_record() {
    let folder = Folder::new();
    fs::create_dir_all(folder.join("in")).unwrap();
    fs::write(folder.join("in/1.bin"), [0, 0xff, b'\n']).unwrap();
    Run::new(&folder).job(&job("bytes")).once().expect_success();
    Rows::files(&folder.join("out")).assert_same(&Rows::json("{\"bytes\": \"AP8K\"}"), "the files");
}

#[test]
fn kafka_brings_avro_and_protobuf_by_a_registry() {
    let Some(registry) = services::registry() else { return };
    let Some(kafka) = services::kafka() else { return };
    let Some(writer) = Writer::new(&registry.url) else { return };
    let folder = Folder::new();
    let topics = [format!("{}-a", writer.topic), format!("{}-p", writer.topic)];
    for topic in &topics {
        kafka.topic(topic, 3);
    }
    let [avro, protobuf] =
        topics.map(|topic| Writer { topic, python: writer.python.clone(), registry: writer.registry.clone() });
    let to = format!("kafka:{}", kafka.brokers);
    avro.write("avro1", 0, 500, &to);
    avro.write("avro2", 500, 500, &to);
    let descriptors = folder.join("shop.desc");
    protobuf.write(&format!("protobuf:{}", descriptors.display()), 0, 1000, &to);
    let source = |writer: &Writer, codec: &str| {
        format!("{{ type: kafka, brokers: \"{}\", topics: [{}], codec: {codec} }}", kafka.brokers, writer.topic)
    };
    for (name, writer, codec) in [
        ("avro", &avro, format!("{{ type: avro, registry: \"{}\" }}", registry.url)),
        (
            "protobuf",
            &protobuf,
            "{ type: protobuf, descriptors: shop.desc, message: shop.Order, framing: confluent }".into(),
        ),
    ] {
        let yaml = format!(
            "job: {}\nlanes: single\ntrigger: asap\nsources:\n  in: {}\nsinks:\n  db: {{ type: sqlite, path: {name}.db, table: rows }}\n\
             dead_letters: {{ type: files, path: dead-{name}, codec: json }}\n",
            writer.topic,
            source(writer, &codec)
        );
        Run::new(&folder)
            .job_file(folder.write(format!("{name}.yaml"), yaml))
            .data_dir(format!("data-{name}"))
            .once()
            .expect_success();
        let sums = Rows::sqlite(
            &folder.join(format!("{name}.db")),
            "SELECT count(*) AS n, count(DISTINCT id) AS ids, sum(id) AS total, max(name) AS last FROM rows",
        );
        sums.assert_same(&Rows::json("{\"n\": 1000, \"ids\": 1000, \"total\": 499500, \"last\": \"né 999\"}"), name);
        assert!(
            !folder.join(format!("dead-{name}")).exists()
                || Rows::files(&folder.join(format!("dead-{name}"))).is_empty()
        );
    }
    let amounts = Rows::sqlite(&folder.join("protobuf.db"), "SELECT count(amount) AS n FROM rows");
    amounts.assert_same(&Rows::json("{\"n\": 500}"), "what is optional is null where it is absent");
}
