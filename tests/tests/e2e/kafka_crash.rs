//! Crash tests on the real binary with a Kafka sink: SIGKILL at every step of the batch loop and of the sink's own, and at
//! random instants; afterwards a reader of committed records counts: each record once, in order within its partition, and
//! each dead letter once.
//!
//! Kafka is the only marked sink, so its marks are the anchor's: the data dir is deleted after every other kill.
//! `KILLS=n` sets how many kills each phase gets (default 1).

use std::{fs, thread, time::Duration};

use crate::kafka_sink as kafka;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rdkafka::{
    Message,
    producer::{BaseProducer, BaseRecord, Producer},
};
use serde_json::Value;
use tidemill_tests::{Daemon, Folder, PATIENCE, Rows, Run, eventually, services};

/// Records of a job. With ten a batch, every kill meets a batch.
const RECORDS: usize = 400;
const PARTITIONS: i32 = 3;

const PHASES: [&str; 17] = [
    "plan",
    "read",
    "computing",
    "compute",
    "before-anchor",
    "after-anchor",
    "after-sinks",
    "after-close",
    "after-release",
    "kafka.before-init",
    "kafka.after-init",
    "kafka.claim-before-mark",
    "kafka.claim-after-mark",
    "kafka.before-rows",
    "kafka.after-rows",
    "kafka.before-commit",
    "kafka.after-commit",
];

fn kills() -> usize {
    std::env::var("KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn record(n: usize) -> String {
    if n % 50 == 49 {
        format!("{{\"n\": {n}, broken")
    } else {
        format!("{{\"n\": {n}, \"text\": \"Line {n} of the Job ✓\"}}")
    }
}

fn expected() -> Rows {
    let rows = (0..RECORDS).filter(|n| n % 50 != 49 && n % 7 != 3);
    let lines: Vec<_> = rows.map(|n| format!("{{\"n\": {n}, \"text\": \"line {n} of the job ✓\"}}")).collect();
    Rows::json(&lines.join("\n"))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Directory,
    /// A topic, a lane for each partition.
    Topic,
}

/// One job's life: made, killed again and again, and counted.
struct Life {
    source: Source,
    folder: Folder,
    yaml: String,
    brokers: String,
    name: String,
}

impl Life {
    fn new(source: Source, brokers: &str) -> Self {
        let folder = Folder::new();
        let name = kafka::topic(&folder.join("")).replace("sink-", "crash-");
        kafka::make_topic(brokers, &name, PARTITIONS);
        kafka::make_topic(brokers, &format!("{name}-dead"), 1);
        let from = match source {
            Source::Directory => {
                for part in 0..4 {
                    let lines: Vec<_> = (0..RECORDS).filter(|n| n * 4 / RECORDS == part).map(record).collect();
                    folder.publish(format!("in/{part}.json"), lines.join("\n") + "\n");
                }
                "    type: directory\n    path: in\n    settle: 10ms\n".to_owned()
            }
            Source::Topic => {
                kafka::make_topic(brokers, &format!("{name}-in"), PARTITIONS);
                fill(brokers, &format!("{name}-in"));
                format!(
                    "    type: kafka\n    brokers: {brokers}\n    topics: [{name}-in]\n    \
                     properties: {{ session.timeout.ms: 2000, heartbeat.interval.ms: 500 }}\n"
                )
            }
        };
        let lanes = if source == Source::Topic { "lanes: partition\n" } else { "" };
        let yaml = format!(
            "job: {name}\n{lanes}trigger: asap\ntakeover_after: 2s\nbatch: {{ max_records: 10 }}\nsources:\n  in:\n{from}    codec: json\n    \
             schema: {{ n: int64, text: string }}\nsteps:\n  - lowercase: [text]\n  - filter: n % 7 <> 3\nsinks:\n  out:\n    \
             type: kafka\n    brokers: {brokers}\n    topic: {name}\n    key: concat('k', n % 5)\n    headers: {{ number: n }}\n\
             dead_letters: {{ type: kafka, brokers: \"{brokers}\", topic: {name}-dead }}\n"
        );
        Self { source, folder, yaml, brokers: brokers.to_owned(), name }
    }

    fn run(&self) -> Run {
        let run = Run::new(&self.folder).job(&self.yaml);
        if self.source == Source::Directory { run.arg("--once") } else { run }
    }

    /// Dies at the `nth` time that the phase is passed. False: the job was done before.
    fn dies_at(&self, phase: &str, nth: usize) -> bool {
        let mut daemon = self.run().failpoint(&format!("{phase}:{nth}:kill")).start();
        eventually("the daemon to die, or to be done", || daemon.poll().ok_or_else(|| "neither".to_owned()))
            .code()
            .is_none()
    }

    fn lose_the_data_dir(&self) {
        let _ = fs::remove_dir_all(self.folder.join("data"));
    }

    /// Runs to the end, then counts.
    fn finish(&self, what: &str) {
        let mut daemon = self.run().start();
        if self.source == Source::Directory {
            daemon.expect_success();
        } else {
            // Dead members of the group have their partitions for a while yet, so that the daemon has no end of its own.
            let dead = || kafka::records(&self.brokers, &format!("{}-dead", self.name)).len();
            eventually("all rows", || {
                self.rows().compare(&expected())?;
                if dead() == RECORDS / 50 { Ok(()) } else { Err("dead letters are missing".to_owned()) }
            });
            daemon.term();
            daemon.expect_success();
        }
        self.count(what);
    }

    fn rows(&self) -> Rows {
        let object = |payload: &[u8]| serde_json::from_slice(payload).unwrap();
        let records = kafka::records(&self.brokers, &self.name);
        Rows(records.iter().map(|record| object(record.payload().unwrap())).collect())
    }

    fn count(&self, what: &str) {
        self.rows().assert_same(&expected(), what);
        let records = kafka::records(&self.brokers, &self.name);
        let value = |payload: &[u8]| serde_json::from_slice::<Value>(payload).unwrap();
        let mut last = std::collections::BTreeMap::new();
        for record in &records {
            let n = value(record.payload().unwrap())["n"].as_i64().unwrap();
            assert_eq!(record.key(), Some(format!("k{}", n % 5).as_bytes()), "{what}");
            assert_eq!(kafka::headers(record)["number"], n.to_string(), "{what}");
            if let Some(before) = last.insert(record.key().unwrap().to_vec(), n) {
                assert!(before < n, "{what}: {before} comes before {n}");
            }
        }
        let mut dead: Vec<Vec<u8>> = kafka::records(&self.brokers, &format!("{}-dead", self.name))
            .iter()
            .map(|record| {
                let headers = kafka::headers(record);
                assert_eq!(headers["__connect.errors.stage"], "VALUE_CONVERTER", "{what}");
                assert_eq!(headers["__connect.errors.exception.class.name"], "json", "{what}");
                record.payload().unwrap().to_vec()
            })
            .collect();
        dead.sort();
        let mut wanted: Vec<Vec<u8>> = (0..RECORDS).filter(|n| n % 50 == 49).map(|n| record(n).into_bytes()).collect();
        wanted.sort();
        assert_eq!(dead, wanted, "{what}");
    }
}

/// Records in order within each key's partition.
fn fill(brokers: &str, topic: &str) {
    let producer: BaseProducer = kafka::client(brokers).set("enable.idempotence", "true").create().unwrap();
    for n in 0..RECORDS {
        let (key, value) = (format!("k{}", n % 5), record(n));
        producer.send(BaseRecord::to(topic).key(&key).payload(&value)).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

fn at_every_phase(source: Source, name: &str) {
    let Some(kafka) = services::kafka() else { return };
    let mut life = Life::new(source, &kafka.brokers);
    let (mut died, mut lives) = (0, 1);
    for phase in PHASES {
        for nth in 0..kills() {
            if !life.dies_at(phase, 1 + nth % 3) {
                life.finish(&format!("{name}, before {phase}"));
                life = Life::new(source, &kafka.brokers);
                lives += 1;
                assert!(life.dies_at(phase, 1), "{name}: the failpoint {phase} is never passed");
            }
            died += 1;
            if died % 2 == 0 {
                life.lose_the_data_dir();
            }
        }
    }
    life.finish(name);
    println!("{name}: {died} kills in {lives} lives: 0 lost, 0 doubled");
}

#[test]
fn directory_to_kafka() {
    at_every_phase(Source::Directory, "directory -> kafka");
}

#[test]
fn random_kills_kafka_to_kafka() {
    let Some(kafka) = services::kafka() else { return };
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("SEED={seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    let life = Life::new(Source::Topic, &kafka.brokers);
    let (mut died, rounds) = (0, kills() * 8);
    for round in 0..rounds {
        let mut daemon = life.run().start();
        thread::sleep(Duration::from_millis(chance.random_range(100..1500)));
        if daemon.is_running() {
            daemon.kill9();
            died += 1;
        }
        if round % 2 == 0 {
            life.lose_the_data_dir();
        }
    }
    life.finish("kafka -> kafka");
    println!("kafka -> kafka: {died} kills at random instants: 0 lost, 0 doubled");
    assert!(died > 0);
}

/// A sink that does not answer is told of while it is waited for.
#[test]
fn a_commit_that_hangs_makes_the_daemon_not_ready_until_it_is_through() {
    let server = Folder::new();
    let Some(kafka) = services::Kafka::private(server.path()) else { return };
    let folder = Folder::new();
    kafka::make_topic(&kafka.brokers, "hangs", 1);
    folder.publish("in/a.json", "{\"n\": 1}\n");
    let mut daemon = Run::new(&folder)
        .job(&format!(
            "job: hangs\ntrigger: asap\nsources: {{ in: {{ type: directory, path: in, settle: 10ms, codec: json, schema: {{ n: int64 }} }} }}\n\
             sinks: {{ out: {{ type: kafka, brokers: \"{}\", topic: hangs }} }}\n",
            kafka.brokers
        ))
        .spawn();
    let written = |daemon: &Daemon, expected: f64| {
        eventually("the record", || match daemon.metric("tidemill_records_written_total", &["sink=\"out\""]) {
            found if found == expected => Ok(()),
            found => Err(format!("{found} records")),
        });
    };
    written(&daemon, 1.0);
    kafka.pause();
    folder.publish("in/b.json", "{\"n\": 2}\n");
    let said = daemon.wait_status("/ready", 503).body;
    assert!(said.contains("sink out has not answered a commit for 15s"), "{said}");
    assert!(daemon.stderr().contains("WARN sink out has not answered a commit for 15s"), "{}", daemon.stderr());
    kafka.resume();
    daemon.wait_ready();
    written(&daemon, 2.0);
}
