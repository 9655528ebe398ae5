//! Avro, Protobuf and bytes written to a topic: read again by Confluent's own client and by our own, with schemas in a real
//! registry, and what happens where the registry is down, or refuses.

use std::{path::PathBuf, process::Command, time::UNIX_EPOCH};

use tidemill_tests::{
    Folder, Rows, Run,
    daemon::tidemill,
    eventually,
    needs::{output, python_with},
    services,
};

/// `json`: records of rows as JSON, with keys. `avro`, `protobuf`: what a topic has, as Confluent's deserialisers read it.
/// `ids`: how many schemas its records name. `schema`: registers one, after which others have to be compatible. `versions`:
/// how many the subject has.
const CLIENT: &str = r#"
import datetime, decimal, json, sys
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

what, brokers, registry, topic, *more = sys.argv[1:]

def records():
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "reader", "isolation.level": "read_committed", "enable.partition.eof": True})
    partitions = consumer.list_topics(topic, 30).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    ended = set()
    while len(ended) < len(partitions):
        message = consumer.poll(30)
        assert message is not None, "no end of the topic"
        if message.error():
            ended.add(message.partition())
        else:
            yield message.value()

def shown(value):
    if isinstance(value, dict): return {name: shown(value) for name, value in value.items()}
    if isinstance(value, list): return [shown(value) for value in value]
    if isinstance(value, datetime.datetime): return value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.date)): return str(value)
    return value

if what == "json":
    producer = Producer({"bootstrap.servers": brokers})
    for n in range(int(more[0]), int(more[0]) + int(more[1])):
        row = {"id": n, "name": f"né {n}", "amount": n / 100, "at": "2015-05-17T10:05:03.120Z", "tags": ["a", None] if n % 2 else []}
        producer.produce(topic, json.dumps(row), key=str(n))
        producer.poll(0)
    assert producer.flush(60) == 0
elif what == "avro":
    deserializer, context = AvroDeserializer(SchemaRegistryClient({"url": registry})), SerializationContext(topic, MessageField.VALUE)
    for record in records():
        print(json.dumps(shown(deserializer(record, context))))
elif what == "protobuf":
    from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(open(more[0], "rb").read()).file:
        pool.Add(file)
    Order = message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.Order"))
    for record in records():
        order = Order.FromString(record)
        print(json.dumps({"id": order.id, "name": order.name, "amount": order.amount, "at": order.at.ToDatetime().isoformat(), "tags": list(order.tags)}))
elif what == "descriptors":
    import pathlib, grpc_tools
    from grpc_tools import protoc
    folder = pathlib.Path(more[0])
    (folder / "shop.proto").write_text(
        'syntax = "proto3"; package shop; import "google/protobuf/timestamp.proto"; '
        'message Order { int64 id = 1; string name = 2; double amount = 3; google.protobuf.Timestamp at = 4; repeated string tags = 5; }')
    include = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    assert protoc.main(["protoc", f"-I{folder}", f"-I{include}", "--include_imports", f"--descriptor_set_out={folder}/shop.desc", "shop.proto"]) == 0
elif what == "ids":
    print(len({record[:5] for record in records()}))
elif what == "schema":
    client = SchemaRegistryClient({"url": registry})
    client.register_schema(f"{topic}-value", Schema(more[0], "AVRO"))
    client.set_compatibility(f"{topic}-value", "BACKWARD")
elif what == "versions":
    print(len(SchemaRegistryClient({"url": registry}).get_versions(f"{topic}-value")))
"#;

struct Client {
    python: PathBuf,
    brokers: String,
    registry: String,
    /// The topic that is read, the topic that is written, and the job.
    name: String,
}

impl Client {
    fn new(kafka: &services::Kafka, registry: &str) -> Option<Self> {
        let python = python_with("confluent_kafka.schema_registry.avro, grpc_tools")?;
        let name = format!("written-{}-{}", std::process::id(), UNIX_EPOCH.elapsed().unwrap().as_nanos());
        kafka.topic(&format!("{name}-in"), 3);
        kafka.topic(&name, 3);
        Some(Self { python, brokers: kafka.brokers.clone(), registry: registry.to_owned(), name })
    }

    fn run(&self, what: &str, topic: &str, more: &[&str]) -> String {
        let mut command = Command::new(&self.python);
        command.args(["-c", CLIENT, what, &self.brokers, &self.registry, topic]).args(more);
        output(&mut command)
    }

    /// Writes records of JSON with these numbers.
    fn feed(&self, first: u32, count: u32) {
        self.run("json", &format!("{}-in", self.name), &[&first.to_string(), &count.to_string()]);
    }

    /// A job that writes them by `codec`.
    fn job(&self, codec: &str, steps: &str) -> String {
        let Self { brokers, name, .. } = self;
        format!(
            "job: {name}\nlanes: single\ntrigger: asap\nsources:\n  in: {{ type: kafka, brokers: \"{brokers}\", topics: [{name}-in], codec: json,\n    \
             schema: {{ id: int64, name: string, amount: \"decimal(9,2)\", at: timestamp, tags: list<string> }} }}\n{steps}\
             sinks:\n  out: {{ type: kafka, brokers: \"{brokers}\", topic: {name}, key: id, codec: {codec} }}\n\
             dead_letters: {{ type: files, path: dead, codec: json }}\n"
        )
    }

    /// A job that reads what they became.
    fn back(&self, codec: &str) -> String {
        let Self { brokers, name, .. } = self;
        format!(
            "job: {name}-back\nlanes: single\ntrigger: asap\nsources: {{ in: {{ type: kafka, brokers: \"{brokers}\", topics: [{name}], codec: {codec} }} }}\n\
             sinks: {{ out: {{ type: files, path: back, codec: json }} }}\n"
        )
    }

    fn avro(&self, more: &str) -> String {
        format!("{{ type: avro, registry: \"{}\"{more} }}", self.registry)
    }
}

fn rows(numbers: impl Iterator<Item = u32>, amount: impl Fn(u32) -> String, at: &str) -> String {
    let line = |n: u32| {
        let tags = if n % 2 == 1 { "[\"a\", null]" } else { "[]" };
        format!(
            "{{\"id\": {n}, \"name\": \"né {n}\", \"amount\": {}, \"at\": \"{at}\", \"tags\": {tags}}}\n",
            amount(n)
        )
    };
    numbers.map(line).collect()
}

fn digits(n: u32) -> String {
    format!("{}.{:02}", n / 100, n % 100)
}

fn no_dead(folder: &Folder) {
    assert!(!folder.join("dead").exists() || Rows::files(&folder.join("dead")).is_empty());
}

#[test]
fn avro_by_a_registry_is_read_by_confluents_client_and_by_our_own() {
    let (Some(kafka), Some(registry)) = (services::kafka(), services::registry()) else { return };
    let Some(client) = Client::new(&kafka, &registry.url) else { return };
    let folder = Folder::new();
    client.feed(0, 300);
    // Three lanes, which ask for the same schema at the same time; their group notices soon that a member is gone.
    let soon = "codec: json, properties: { session.timeout.ms: \"6000\" },";
    let job =
        client.job(&client.avro(""), "").replace("lanes: single", "lanes: partition").replace("codec: json,\n", soon);
    let run = Run::new(&folder).job(&job);
    // Killed in the middle of transactions, and after one: the replay asks the registry again, and gets the same id.
    for failpoint in ["kafka.before-commit:5:kill", "kafka.after-commit:5:kill"] {
        run.clone().failpoint(failpoint).start().expect_killed();
    }
    run.once().expect_success();
    client.feed(300, 200);
    run.once().expect_success();
    let read = client.run("avro", &client.name, &[]);
    let expected = rows(0..500, |n| format!("\"{}\"", digits(n)), "2015-05-17T10:05:03.120000+00:00");
    Rows::json(&read).assert_same(&Rows::json(&expected), "what Confluent's client reads");
    assert_eq!(client.run("ids", &client.name, &[]).trim(), "1");
    assert_eq!(client.run("versions", &client.name, &[]).trim(), "1", "one schema was registered, once");
    no_dead(&folder);
    let back =
        Run::new(&folder).job_file(folder.write("back.yaml", client.back(&client.avro("")))).data_dir("data-back");
    back.once().expect_success();
    let expected = rows(0..500, digits, "2015-05-17T10:05:03.120Z");
    Rows::files(&folder.join("back")).assert_same(&Rows::json(&expected), "what we read");
}

#[test]
fn a_registry_that_is_down_makes_the_sink_wait() {
    let folder = Folder::new();
    let Some(kafka) = services::kafka() else { return };
    let Some(registry) = services::Registry::private(&folder.join("services")) else { return };
    let Some(client) = Client::new(&kafka, &registry.url) else { return };
    client.feed(0, 20);
    registry.kill();
    let daemon = Run::new(&folder).job(&client.job(&client.avro(", subject: shop.Order"), "")).start();
    eventually("the reason", || {
        let said = daemon.stderr();
        let wanted =
            [format!("asking for the schema of topic {}", client.name), "/subjects/shop.Order/versions".into()];
        if wanted.iter().all(|wanted| said.contains(wanted)) { Ok(()) } else { Err(said) }
    });
    registry.start();
    let expected = rows(0..20, |n| format!("\"{}\"", digits(n)), "2015-05-17T10:05:03.120000+00:00");
    eventually("the records", || Rows::json(&client.run("avro", &client.name, &[])).compare(&Rows::json(&expected)));
    no_dead(&folder);
}

#[test]
fn a_schema_that_the_registry_refuses_stops_the_job_with_its_words() {
    let (Some(kafka), Some(registry)) = (services::kafka(), services::registry()) else { return };
    let Some(client) = Client::new(&kafka, &registry.url) else { return };
    let folder = Folder::new();
    let other = r#"{"type": "record", "name": "Order", "fields": [{"name": "id", "type": ["null", "string"], "default": null}]}"#;
    client.run("schema", &client.name, &[other]);
    client.feed(0, 5);
    let run = Run::new(&folder).job(&client.job(&client.avro(""), ""));
    let path = folder.write("explained.yaml", client.job(&client.avro(""), ""));
    let said = tidemill(&folder, &["explain", path.to_str().unwrap()]).stdout;
    let wanted = format!("records of avro, registered as {0}-value, in topic {0} at ", client.name);
    assert!(String::from_utf8_lossy(&said).contains(&wanted), "{}", String::from_utf8_lossy(&said));
    let connect = |codec: &str| {
        let path = folder.write("checked.yaml", client.job(codec, ""));
        let done = tidemill(&folder, &["validate", "--connect", path.to_str().unwrap()]);
        (done.status.code(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
    };
    let (code, said) = connect(&client.avro(""));
    assert!(code == Some(1) && said.contains("not compatible with those before it, says the registry: "), "{said}");
    let mut stopped = run.once();
    stopped.expect_code(1);
    let said = stopped.stderr();
    for wanted in ["not compatible with those before it, says the registry: ", "ncompatible", "way out: "] {
        assert!(said.contains(wanted), "{wanted} is not in {said}");
    }
    assert_eq!(client.run("avro", &client.name, &[]), "");
    // The subject's own schema does not fit the columns either, and that is told before any record.
    let (code, said) = connect(&client.avro(", register: false"));
    assert!(code == Some(1) && said.contains("column `name` (string) has no field in the schema"), "{said}");
    let (code, said) = connect(&client.avro(", subject: absent-subject, register: false"));
    assert!(code == Some(1) && said.contains("subject absent-subject: "), "{said}");
    let (code, said) = connect(&client.avro(", subject: new-subject"));
    assert!(code == Some(0), "{said}");
    assert_eq!(client.run("versions", &client.name, &[]).trim(), "1", "nothing was registered");
}

#[test]
fn a_schema_of_the_job_is_written_and_its_misfits_are_dead_letters() {
    let (Some(kafka), Some(registry)) = (services::kafka(), services::registry()) else { return };
    let Some(client) = Client::new(&kafka, &registry.url) else { return };
    let folder = Folder::new();
    client.feed(0, 50);
    let schema = |kind: &str| {
        format!(
            r#"{{"type": "record", "name": "Order", "fields": [{{"name": "id", "type": {kind}}}, {{"name": "name", "type": "string"}},
            {{"name": "kind", "type": "string", "default": "web"}}]}}"#
        )
    };
    let wide = r#"{"type": "fixed", "name": "F", "size": 1, "logicalType": "decimal", "precision": 2, "scale": 0}"#;
    folder.write("order.avsc", schema("\"string\""));
    let codec = client.avro(", schema_file: order.avsc");
    let run = Run::new(&folder).job(&client.job(&codec, "steps: [select: [id, name]]\n"));
    let mut stopped = run.once();
    stopped.expect_code(1);
    assert!(stopped.stderr().contains("column `id` is int64, and string in the schema"), "{}", stopped.stderr());
    // Numbers of one byte: 0 to 49 are, and what comes after 99 is not.
    client.feed(90, 20);
    let text = schema(wide).replace('\n', " ");
    let job = client.job(&client.avro(&format!(", schema: '{text}'")), "steps: [select: [id, name]]\n");
    let run = Run::new(&folder).job_file(folder.write("again.yaml", job)).data_dir("data-again");
    run.once().expect_success();
    let line = |n: u32| format!("{{\"id\": \"{n}\", \"name\": \"né {n}\", \"kind\": \"web\"}}\n");
    let expected: String = (0..50).chain(90..100).map(line).collect();
    Rows::json(&client.run("avro", &client.name, &[])).assert_same(&Rows::json(&expected), "what fits");
    let dead = Rows::files(&folder.join("dead"));
    assert_eq!((dead.len(), dead.column("reason").iter().all(|reason| reason == "type")), (10, true));
    assert!(dead.column("detail").concat().contains("column id: 100 is not a decimal(2,0)"));
}

/// With `register: false` the latest schema counts when a daemon starts. A batch that comes again may so have a newer one: what
/// the first try wrote or refused is there, with its mark, or nothing of it is.
#[test]
fn a_replay_by_a_newer_schema_writes_or_refuses_each_row_once() {
    let (Some(kafka), Some(registry)) = (services::kafka(), services::registry()) else { return };
    let schema = |kind: &str| {
        format!(r#"{{"type": "record", "name": "Order", "fields": [{{"name": "id", "type": "{kind}"}}]}}"#)
    };
    for (failpoint, is_first) in [("kafka.before-commit:3:kill", false), ("kafka.after-commit:3:kill", true)] {
        let Some(client) = Client::new(&kafka, &registry.url) else { return };
        let folder = Folder::new();
        client.run("schema", &client.name, &[&schema("int")]);
        // More than an int is: one of them is in the first batch, however much that takes.
        client.feed(3_000_000_000, 2);
        let run = Run::new(&folder).job(&client.job(&client.avro(", register: false"), "steps: [select: [id]]\n"));
        run.clone().failpoint(failpoint).start().expect_killed();
        client.run("schema", &client.name, &[&schema("long")]);
        client.feed(0, 10);
        run.once().expect_success();
        let written = Rows::json(&client.run("avro", &client.name, &[]));
        let dead = folder.join("dead");
        let dead = if dead.exists() { Rows::files(&dead).column("record") } else { Vec::new() };
        assert_eq!(written.len() + dead.len(), 12, "{failpoint}: {dead:?}");
        assert_eq!(dead.concat().contains("300000000"), is_first, "{failpoint}: {dead:?}");
        let mut ids: Vec<u64> = written.column("id").iter().map(|id| id.parse().unwrap()).collect();
        let of_dead =
            |record: &String| serde_json::from_str::<serde_json::Value>(record).unwrap()["id"].as_u64().unwrap();
        ids.extend(dead.iter().map(of_dead));
        ids.sort_unstable();
        assert_eq!(ids, (0..10).chain(3_000_000_000..3_000_000_002).collect::<Vec<_>>(), "{failpoint}");
        assert_eq!(client.run("ids", &client.name, &[]).trim(), "1", "{failpoint}");
    }
}

#[test]
fn protobuf_is_read_by_google_and_by_our_own() {
    let Some(kafka) = services::kafka() else { return };
    let Some(client) = Client::new(&kafka, "http://unused") else { return };
    let folder = Folder::new();
    client.run("descriptors", "", &[folder.path().to_str().unwrap()]);
    client.feed(0, 100);
    let codec = "{ type: protobuf, descriptors: shop.desc, message: shop.Order }";
    let run = Run::new(&folder).job(&client.job(codec, "steps: [cast: { amount: float64 }]\n"));
    run.once().expect_success();
    let dead = Rows::files(&folder.join("dead"));
    // A list of a message has no nulls.
    let details = dead.column("detail");
    assert!(details.len() == 50 && details[0].starts_with("column tags: null is not a string"), "{details:?}");
    let read = client.run("protobuf", &client.name, &[folder.join("shop.desc").to_str().unwrap()]);
    let numbers = || (0..100).step_by(2);
    let expected = rows(numbers(), |n| format!("{:?}", f64::from(n) / 100.0), "2015-05-17T10:05:03.120000");
    Rows::json(&read).assert_same(&Rows::json(&expected), "what Google's Protobuf reads");
    let back = Run::new(&folder).job_file(folder.write("back.yaml", client.back(codec))).data_dir("data-back");
    back.once().expect_success();
    let expected = rows(numbers(), |n| format!("{:?}", f64::from(n) / 100.0), "2015-05-17T10:05:03.120Z");
    Rows::files(&folder.join("back")).assert_same(&Rows::json(&expected), "what we read");
}

#[test]
fn a_wrong_schema_of_a_sink_is_told_with_its_place() {
    let Some(kafka) = services::kafka() else { return };
    let Some(client) = Client::new(&kafka, "http://127.0.0.1:1") else { return };
    let folder = Folder::new();
    for (codec, wanted) in [
        ("{ type: avro, schema_file: absent.avsc }", "sinks.out.codec.schema_file: the schema "),
        ("{ type: avro, schema: '{\"type\": \"recrod\"}' }", "sinks.out.codec.schema: the schema cannot be used: "),
        ("{ type: protobuf, descriptors: absent.desc, message: a.B }", "there is no such file"),
        // What the rows have is known, and what the schema wants: nobody has to be asked.
        (
            "{ type: avro, schema: '{\"type\": \"record\", \"name\": \"R\", \"fields\": [{\"name\": \"id\", \"type\": \"long\"}]}' }",
            "column `name` (string) has no field in the schema",
        ),
        ("{ type: bytes, column: id }", "the column `id` is int64, and has to be binary or string"),
    ] {
        let path = folder.write("job.yaml", client.job(codec, ""));
        let done = tidemill(&folder, &["validate", path.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(78), "{said}");
        assert!(said.contains("job.yaml:8:") && said.contains(wanted), "{said}");
    }
    let schema = r#"{"type": "record", "name": "R", "fields": [{"name": "id", "type": "long"}, {"name": "kind", "type": "string", "default": "x"}]}"#;
    folder.write("r.avsc", schema);
    client.feed(0, 3);
    let run = Run::new(&folder).job(&client.job("{ type: avro, schema_file: r.avsc }", "steps: [select: [id]]\n"));
    // Nothing of the batch is in the topic: with another content it is another version of the job, which may begin.
    run.clone().failpoint("kafka.before-commit:2:kill").start().expect_killed();
    folder.write("r.avsc", schema.replace("\"x\"", "\"y\""));
    run.once().expect_success();
    let back = client.back("{ type: avro, schema_file: r.avsc }");
    Run::new(&folder).job_file(folder.write("back.yaml", back)).data_dir("data-back").once().expect_success();
    let expected = "{\"id\": 0, \"kind\": \"y\"}\n{\"id\": 1, \"kind\": \"y\"}\n{\"id\": 2, \"kind\": \"y\"}\n";
    Rows::files(&folder.join("back")).assert_same(&Rows::json(expected), "the records");
}

#[test]
fn bytes_go_from_topic_to_topic_as_they_are() {
    let Some(kafka) = services::kafka() else { return };
    let Some(client) = Client::new(&kafka, "http://unused") else { return };
    let folder = Folder::new();
    client.feed(0, 50);
    let Client { brokers, name, .. } = &client;
    let yaml = format!(
        "job: {name}\nlanes: single\ntrigger: asap\nsources: {{ in: {{ type: kafka, brokers: \"{brokers}\", topics: [{name}-in], codec: {{ type: bytes, column: body }} }} }}\n\
         sinks: {{ out: {{ type: kafka, brokers: \"{brokers}\", topic: {name}, codec: {{ type: bytes, column: body }} }} }}\n"
    );
    Run::new(&folder).job(&yaml).once().expect_success();
    let back = client.back("json");
    Run::new(&folder).job_file(folder.write("back.yaml", back)).data_dir("data-back").once().expect_success();
    let expected = rows(0..50, digits, "2015-05-17T10:05:03.120Z");
    Rows::files(&folder.join("back")).assert_same(&Rows::json(&expected), "the records");
}
