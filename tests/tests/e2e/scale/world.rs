//! A topic, a producer that never pauses, daemons on the job, and the count at the end.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rand::{RngExt, rngs::StdRng};
use rdkafka::{
    ClientConfig, Message, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    producer::{BaseRecord, Producer, ThreadedProducer},
    util::Timeout,
};
use tidemill_tests::{
    Daemon, Folder, Rows, Run, eventually, kafka_of_this_program,
    proxy::Proxy,
    services::{self, Kafka, Postgres},
};
use uuid::Uuid;

/// Lanes of the topic.
const PARTITIONS: u32 = 8;
/// Partitions of the topic that is written.
const OUT_PARTITIONS: u32 = 3;
/// Records a second that are produced.
const RATE: u64 = 2_000;
/// A member that is silent for so long is out of the group.
const SESSION: Duration = Duration::from_secs(2);
/// No row may come for so long while some are missing.
const DRAIN: Duration = Duration::from_secs(60);

/// What happens to a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// kill -9, and started again.
    Kill,
    /// SIGTERM, awaited, and started again.
    Restart,
    /// SIGSTOP for up to twice its session, then SIGCONT.
    Pause,
    /// The first daemon loses its broker for up to twice its session.
    Cut,
}

impl Fault {
    pub fn any(chance: &mut StdRng, daemons: usize) -> Self {
        match chance.random_range(0..10) {
            0..5 => Self::Kill,
            5..7 => Self::Pause,
            7..9 if daemons > 1 => Self::Cut,
            _ => Self::Restart,
        }
    }
}

struct Member {
    run: Run,
    daemon: Daemon,
}

pub struct World {
    // Daemons end before the folder goes.
    members: Vec<Member>,
    producer: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    produced: Arc<AtomicU64>,
    faults: BTreeMap<Fault, usize>,
    kafka: &'static Kafka,
    postgres: Postgres,
    schema: String,
    out: String,
    group: String,
    topic: String,
    load: Load,
    proxy: Proxy,
    /// Between each daemon and its database.
    databases: Vec<Proxy>,
    folder: Folder,
    _turn: MutexGuard<'static, ()>,
}

/// One world at a time: two cores are soon busy, and the broker has one address for a proxy.
static TURN: Mutex<()> = Mutex::new(());

impl World {
    /// Daemons on a topic into which [`RATE`] records a second go. `None` where a server cannot be had.
    pub fn new(daemons: usize) -> Option<Self> {
        Self::of(daemons, Load::numbered())
    }

    /// Daemons on a topic of these records.
    pub fn of(daemons: usize, load: Load) -> Option<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (kafka, postgres) = (kafka_of_this_program()?, services::postgres()?);
        let name = format!("scale_{}", Uuid::new_v4().simple());
        let (topic, out, group) = (format!("{name}-in"), format!("{name}-out"), name.clone());
        kafka.topic(&topic, PARTITIONS);
        kafka.topic(&out, OUT_PARTITIONS);
        let url = postgres.schema(&name);
        let database = |_| Proxy::start(([127, 0, 0, 1], postgres.port).into());
        let databases: Vec<Proxy> = (0..daemons).map(database).collect();
        let folder = Folder::new();
        // Its broker says that it is at the proxy's port: what connects there stays there.
        let (at, to) = kafka.proxy;
        let proxy = Proxy::start_at(at, to);
        let job = job(&topic, &out, &group, &load);
        let port = format!(":{}/", postgres.port);
        assert!(url.contains(&port));
        let members = (0..daemons).map(|index| {
            let owner = format!("daemon-{index}");
            let config = folder.write(format!("{owner}.yaml"), format!("owner: {owner}\n"));
            let brokers = if index == 0 && daemons > 1 { at.to_string() } else { kafka.brokers.clone() };
            let run = Run::new(&folder)
                .job(&job)
                .data_dir(format!("data-{index}"))
                .arg("--config")
                .arg(config)
                .env("BROKERS", brokers)
                .env("MEMBERS", if index == 0 { "1" } else { "4" })
                .env("PG_URL", url.replace(&port, &format!(":{}/", databases[index].address().port())));
            Member { daemon: run.start(), run }
        });
        let members = members.collect();
        let (stop, produced) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let producer = thread::spawn({
            let (brokers, topic, load) = (kafka.brokers.clone(), topic.clone(), load.clone());
            let (stop, produced) = (stop.clone(), produced.clone());
            move || produce(&brokers, &topic, &load, &stop, &produced)
        });
        Some(Self {
            members,
            producer: Some(producer),
            stop,
            produced,
            faults: BTreeMap::new(),
            kafka,
            postgres,
            schema: name,
            out,
            group,
            topic,
            load,
            proxy,
            databases,
            folder,
            _turn: turn,
        })
    }

    /// One fault to one daemon, and a pause in which lanes may or may not have settled.
    pub fn inject(&mut self, fault: Fault, chance: &mut StdRng) {
        let index = if fault == Fault::Cut { 0 } else { chance.random_range(0..self.members.len()) };
        let outage = SESSION.mul_f64(chance.random_range(0.1..2.0));
        match fault {
            Fault::Kill => {
                self.members[index].daemon.kill9();
                self.start(index);
            }
            Fault::Restart => self.restart(index),
            Fault::Pause => self.pause(index, outage),
            Fault::Cut => {
                self.proxy.cut();
                thread::sleep(outage);
                self.proxy.mend();
            }
        }
        if fault != Fault::Pause && fault != Fault::Restart {
            *self.faults.entry(fault).or_default() += 1;
        }
        thread::sleep(Duration::from_millis(chance.random_range(100..2_500)));
    }

    pub fn pause(&mut self, index: usize, outage: Duration) {
        let daemon = &mut self.members[index].daemon;
        daemon.stop();
        thread::sleep(outage);
        daemon.cont();
        *self.faults.entry(Fault::Pause).or_default() += 1;
    }

    pub fn restart(&mut self, index: usize) {
        end(&mut self.members[index].daemon);
        self.start(index);
        *self.faults.entry(Fault::Restart).or_default() += 1;
    }

    fn start(&mut self, index: usize) {
        let member = &mut self.members[index];
        member.daemon = member.run.start();
    }

    fn rows(&self) -> Result<u64, String> {
        if self.postgres.psql(&format!("SELECT to_regclass('{}.rows')", self.schema)).trim().is_empty() {
            return Err("there is no table yet".into());
        }
        let said = self.postgres.psql(&format!("SELECT count(*) FROM {}.rows", self.schema));
        said.trim().parse().map_err(|_| said)
    }

    pub fn wait_for_rows(&self, at_least: u64) {
        eventually("the first rows in PostgreSQL", || match self.rows() {
            Ok(rows) if rows >= at_least => Ok(()),
            other => Err(format!("{other:?}; daemons say: {}", self.words())),
        });
    }

    pub fn wait_for_more_rows(&self) {
        let now = self.rows().unwrap_or_default();
        self.wait_for_rows(now + 1);
    }

    /// What a daemon writes reaches the database at so many bytes a second; `None`: as fast as it goes.
    pub fn slow_database(&self, index: usize, bytes_per_second: Option<u32>) {
        self.databases[index].slow(bytes_per_second);
    }

    /// Some lane is behind by more records than are produced in this time.
    pub fn wait_for_lag(&self, least: Duration) {
        let least = self.load.rate * least.as_secs() / u64::from(PARTITIONS);
        eventually("a lane to lag", || {
            let lags = self.lags();
            if lags.iter().any(|lag| *lag > least) { Ok(()) } else { Err(format!("{lags:?}, none over {least}")) }
        });
    }

    pub fn wait_for_words(&self, index: usize, what: &str) {
        eventually(what, || if self.said(index, what) > 0 { Ok(()) } else { Err(self.words()) });
    }

    /// How often a daemon has said something.
    pub fn said(&self, index: usize, what: &str) -> usize {
        self.members[index].daemon.stderr().matches(what).count()
    }

    /// No lane may be behind by more records than are produced in this time.
    pub fn expect_bounded_lag(&self, bound: Duration) {
        let most = self.load.rate * bound.as_secs() / u64::from(PARTITIONS);
        eventually("every lane's lag to be bounded", || {
            let lags = self.lags();
            match lags.iter().max() {
                Some(lag) if *lag <= most => Ok(()),
                _ => Err(format!("lags of the lanes {lags:?}, at most {most}; daemons say: {}", self.words())),
            }
        });
    }

    /// Records behind the end of each partition, by the group's committed offsets: what a lag monitor sees.
    fn lags(&self) -> Vec<u64> {
        let consumer: BaseConsumer =
            self.config().set("group.id", &self.group).set("isolation.level", "read_committed").create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_range(&self.topic, 0, PARTITIONS.cast_signed() - 1);
        let timeout = Duration::from_secs(10);
        let committed = consumer.committed_offsets(list, timeout).unwrap();
        let lags = committed.elements().into_iter().map(|at| {
            let (low, high) = consumer.fetch_watermarks(&self.topic, at.partition(), timeout).unwrap();
            u64::try_from(high - at.offset().to_raw().unwrap_or(low).max(low)).unwrap_or_default()
        });
        lags.collect()
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.kafka.brokers);
        config
    }

    /// The end of each daemon's log.
    fn words(&self) -> String {
        let mut words = String::new();
        for (index, member) in self.members.iter().enumerate() {
            let said = member.daemon.stderr();
            let tail: Vec<&str> = said.lines().rev().take(8).collect();
            let _ = write!(words, "\n[{index}] {}", tail.into_iter().rev().collect::<Vec<_>>().join("\n    "));
        }
        words
    }

    /// Whether all records of a load that ends are sent.
    pub fn is_all_sent(&self) -> bool {
        self.producer.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the producer, waits until everything is worked off, ends the daemons and counts. What was done, in words.
    pub fn finish(mut self) -> String {
        self.stop.store(true, Ordering::Relaxed);
        self.producer.take().unwrap().join().unwrap();
        let produced = self.produced.load(Ordering::Relaxed);
        let (mut began, mut seen) = (Instant::now(), 0);
        loop {
            let rows = self.rows();
            match rows {
                Ok(rows) if rows >= produced => break,
                Ok(rows) if rows > seen => (began, seen) = (Instant::now(), rows),
                _ if began.elapsed() > DRAIN => {
                    panic!(
                        "{rows:?} of {produced} rows, and none came in {DRAIN:?}; lags {:?}; daemons say: {}",
                        self.lags(),
                        self.words()
                    )
                }
                _ => thread::sleep(Duration::from_millis(200)),
            }
        }
        // What follows the anchor is done before a daemon ends.
        self.members.iter_mut().for_each(|member| end(&mut member.daemon));
        self.count(produced);
        format!("{:?}, {produced} records", self.faults)
    }

    fn count(&self, produced: u64) {
        let bytes: u64 = (0..produced).map(|seq| (self.load.record)(seq).1).sum();
        let truth = format!("{produced}|{produced}|{bytes}");
        let query = format!("SELECT count(*), count(DISTINCT seq), sum(bytes) FROM {}.rows", self.schema);
        assert_eq!(self.postgres.psql(&query).trim(), truth, "PostgreSQL: rows | different ones | bytes");
        if self.load.database_alone {
            return;
        }
        let mut once = vec![0_u32; usize::try_from(produced).unwrap()];
        for row in &Rows::files(&self.folder.join("files")).0 {
            once[usize::try_from(row["seq"].as_u64().unwrap()).unwrap()] += 1;
        }
        expect_once("files", &once);
        once.fill(0);
        self.each_of_topic(|value| {
            let row: serde_json::Value = serde_json::from_slice(value).unwrap();
            once[usize::try_from(row["seq"].as_u64().unwrap()).unwrap()] += 1;
        });
        expect_once("the topic", &once);
    }

    /// Every committed record of the output topic, to its end.
    fn each_of_topic(&self, mut take: impl FnMut(&[u8])) {
        let consumer: BaseConsumer = self
            .config()
            .set("group.id", "none")
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        for partition in 0..OUT_PARTITIONS.cast_signed() {
            list.add_partition_offset(&self.out, partition, rdkafka::Offset::Beginning).unwrap();
        }
        consumer.assign(&list).unwrap();
        let mut ended = 0;
        while ended < OUT_PARTITIONS {
            match consumer.poll(Duration::from_secs(30)).expect("the broker to answer") {
                Ok(message) => take(message.payload().unwrap()),
                Err(rdkafka::error::KafkaError::PartitionEOF(_)) => ended += 1,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn expect_once(what: &str, counts: &[u32]) {
    let wrong = |is_wrong: fn(u32) -> bool| {
        let found = counts.iter().enumerate().filter(|(_, count)| is_wrong(**count)).map(|(seq, _)| seq);
        found.collect::<Vec<_>>()
    };
    let (lost, doubled) = (wrong(|count| count == 0), wrong(|count| count > 1));
    let first = |seqs: &[usize]| seqs.iter().take(10).copied().collect::<Vec<_>>();
    assert!(
        lost.is_empty() && doubled.is_empty(),
        "{what}: {} lost ({:?} ...), {} doubled ({:?} ...)",
        lost.len(),
        first(&lost),
        doubled.len(),
        first(&doubled)
    );
}

fn job(topic: &str, out: &str, group: &str, load: &Load) -> String {
    let session = SESSION.as_millis();
    let others = format!(
        "  files: {{ type: files, path: files, codec: json }}\n  topic: {{ type: kafka, brokers: \"${{BROKERS}}\", topic: {out}, \
         key: seq, transaction_timeout: 5s }}\n"
    );
    format!(
        "job: scale\nlanes: partition\ntrigger: 200ms\ntakeover_after: 10s\nbatch: {{ max_records: {} }}\n\
         sources:\n  in:\n    type: kafka\n    brokers: \"${{BROKERS}}\"\n    topics: {topic}\n    group: {group}\n    members: \"${{MEMBERS}}\"\n    codec: json\n    \
         schema: {{ {} }}\n    \
         properties: {{ session.timeout.ms: \"{session}\", heartbeat.interval.ms: \"300\", socket.timeout.ms: \"3000\" }}\n\
         steps:\n{}sinks:\n  pg: {{ type: postgres, url: \"${{PG_URL}}\", table: rows }}\n{}",
        load.batch,
        load.schema,
        load.steps,
        if load.database_alone { "" } else { &others }
    )
}

/// SIGTERM, and the end that follows it.
fn end(daemon: &mut Daemon) {
    daemon.term();
    daemon.expect_success();
}

/// What goes through the topic.
#[derive(Clone)]
pub struct Load {
    /// `schema:` of the source.
    pub schema: &'static str,
    /// `steps:` of the job.
    pub steps: &'static str,
    /// Records of one batch of one lane.
    pub batch: usize,
    /// Records a second.
    pub rate: u64,
    /// So many, then it ends; else until it is told to.
    pub total: u64,
    /// PostgreSQL is the only sink.
    pub database_alone: bool,
    /// The record of a number as JSON, with its `seq` and `bytes`; and its bytes.
    pub record: Arc<dyn Fn(u64) -> (String, u64) + Send + Sync>,
}

impl Load {
    /// Small ones, to PostgreSQL alone.
    pub fn to_database() -> Self {
        Self { database_alone: true, ..Self::numbered() }
    }

    /// Small ones.
    fn numbered() -> Self {
        let record = |seq| {
            let bytes = seq * 7919 % 10_007;
            (format!("{{\"seq\":{seq},\"bytes\":{bytes},\"text\":\"Record {seq}\"}}"), bytes)
        };
        Self {
            schema: "seq: int64, bytes: int64, text: string",
            steps: "  - lowercase: [text]\n",
            batch: 2_000,
            rate: RATE,
            total: u64::MAX,
            database_alone: false,
            record: Arc::new(record),
        }
    }
}

/// Records `0..` until all are sent or it is told to stop; then `produced` is their number, and the broker has them all.
fn produce(brokers: &str, topic: &str, load: &Load, stop: &AtomicBool, produced: &AtomicU64) {
    let producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("linger.ms", "5")
        .create()
        .unwrap();
    let began = Instant::now();
    let mut seq = 0;
    while seq < load.total && !stop.load(Ordering::Relaxed) {
        let passed_ms = u64::try_from(began.elapsed().as_millis()).unwrap();
        let due = passed_ms.saturating_mul(load.rate) / 1000;
        while seq < due.min(load.total) {
            let (key, (value, _)) = (seq.to_string(), (load.record)(seq));
            match producer.send(BaseRecord::to(topic).key(&key).payload(&value)) {
                Ok(()) => seq += 1,
                // Its queue is full: the broker is behind.
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    producer.flush(Timeout::After(Duration::from_secs(300))).unwrap();
    assert_eq!(producer.in_flight_count(), 0, "the broker has all records");
    produced.store(seq, Ordering::Relaxed);
}
