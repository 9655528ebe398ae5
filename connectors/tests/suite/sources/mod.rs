//! What the suite of sources uses: a world for each source that brings it records and can take them away again, and a
//! lane's life in it, with an anchor that keeps positions and logs as a marked sink would.

#![allow(clippy::unwrap_used, missing_docs, dead_code)]

pub mod kafka;
pub mod sql;

pub(crate) use crate::services;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs::{self, File, FileTimes},
    future::Future,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::FileExt,
    path::PathBuf,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant, SystemTime},
};

use tidemill_checkpoint::{Digest, Entry, Lane, LogName, LogState, Position, Positions, ShardId, position::advance};
use tidemill_config::{
    Codec, Directory, Framing, Located, OnChanged, OnDone, OnLost, Socket, SocketAddress, SourceKind, Start,
};
use tidemill_connectors::source::{
    self, Adopted, Budget, History, Proposal, RawBatch, Settings, Source, SourceError, SourceEvent,
};

/// Longer than anything here takes, shorter than a person waits.
pub const SOON: Duration = Duration::from_secs(60);
/// No cap.
pub const ALL: Budget = Budget { records: usize::MAX, bytes: 1 << 30 };
/// Released segments are deleted long before this is full.
const MAX_SPOOL_BYTES: u64 = 1 << 20;
/// Records of a file in the directory.
const FILE_RECORDS: u64 = 3;
/// Shards of the test source.
const SHARDS: u64 = 2;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Listen,
    Connect,
    Directory,
    Test,
    /// Where there is a broker.
    Kafka,
    Sqlite,
    Postgres,
    Mariadb,
    Mysql,
}

pub const KINDS: [Kind; 9] = [
    Kind::Listen,
    Kind::Connect,
    Kind::Directory,
    Kind::Test,
    Kind::Kafka,
    Kind::Sqlite,
    Kind::Postgres,
    Kind::Mariadb,
    Kind::Mysql,
];

/// What record `n` says. Most are short, some empty, some longer than a small budget.
pub fn text(n: u64) -> String {
    match n % 13 {
        7 => format!("{n} {}", "long ".repeat(4000)),
        length => format!("{n}{}", " ünï".repeat(length as usize)),
    }
}

/// A record as two readings of it are compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    pub shard: ShardId,
    pub position: Position,
    pub text: String,
    /// Why it is none, where it is a reject.
    pub reject: Option<String>,
}

impl Record {
    /// The `n` of its text.
    pub fn number(&self) -> u64 {
        self.text.split(' ').next().unwrap().parse().unwrap()
    }
}

/// All of a batch, in the order of shard and position.
pub fn records(batch: &RawBatch) -> Vec<Record> {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut all = Vec::new();
    for slice in &batch.slices {
        for n in 0..slice.records.len() {
            let (position, text) = (slice.position(n), sql::line(lossy(slice.record(n))));
            all.push(Record { shard: slice.shard.clone(), position, text, reject: None });
        }
    }
    let in_order = all.is_sorted_by_key(|record| (record.shard.clone(), record.position.clone()));
    assert!(in_order, "records come in the order of shard and position");
    all.extend(batch.rejects.iter().map(|reject| Record {
        shard: reject.shard.clone(),
        position: reject.position.clone(),
        text: lossy(&reject.record),
        reject: Some(reject.reason.to_string()),
    }));
    all.sort();
    all
}

/// A source's world: what it reads from, and what stays when the process ends.
pub struct Rig {
    pub kind: Kind,
    dir: tempfile::TempDir,
    /// The other end of `connect`; for `listen`, an address that was free.
    server: Option<TcpListener>,
    pub address: String,
    peers: RefCell<Vec<Peer>>,
    topic: Option<kafka::Topic>,
    table: Option<sql::Table>,
    /// Records brought so far.
    pub brought: Cell<u64>,
}

/// By then a source has been told of new files.
const TOLD: std::time::Duration = std::time::Duration::from_millis(30);

/// A connection on which records were brought, and how many.
struct Peer {
    stream: TcpStream,
    sent: u64,
}

impl Peer {
    /// Sends lines and waits until they are durable. `false`: the other side is gone, and took nothing of them.
    fn send(&mut self, lines: &str, count: u64) -> bool {
        self.sent += count;
        if self.stream.write_all(lines.as_bytes()).is_err() {
            return false;
        }
        let mut acks = BufReader::new(&self.stream);
        let mut durable = String::new();
        while durable.trim() != self.sent.to_string() {
            let before = std::mem::take(&mut durable);
            if acks.read_line(&mut durable).unwrap_or(0) == 0 {
                assert!(before.is_empty(), "the source closed the connection after it took {before}");
                return false;
            }
        }
        true
    }
}

impl Rig {
    /// `None`: this kind needs a server, and it is not there.
    pub fn new(kind: Kind) -> Option<Self> {
        let topic = if kind == Kind::Kafka { Some(kafka::Topic::new(1, &[])?) } else { None };
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("shards")).unwrap();
        fs::create_dir_all(dir.path().join("in")).unwrap();
        for shard in 0..SHARDS {
            fs::write(dir.path().join(format!("shards/{shard}")), "").unwrap();
        }
        let table = if matches!(kind, Kind::Sqlite | Kind::Postgres | Kind::Mariadb | Kind::Mysql) {
            Some(sql::Table::new(kind, dir.path())?)
        } else {
            None
        };
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        server.set_nonblocking(true).unwrap();
        let address = server.local_addr().unwrap().to_string();
        let server = (kind == Kind::Connect).then_some(server);
        Some(Self { kind, dir, server, address, peers: RefCell::default(), topic, table, brought: Cell::new(0) })
    }

    /// A new process with the same configuration. What was connected to the last one is cut off.
    pub fn open(&self) -> Arc<dyn Source> {
        self.hang_up();
        let config = tidemill_config::Source {
            name: Located { value: "in".to_owned(), at: Default::default() },
            formerly: None,
            kind: self.kind(),
            codec: Codec::Text,
            schema: None,
            metadata: Vec::new(),
        };
        let settings = Settings {
            partitioned: false,
            spool: self.dir.path().join("spool"),
            owner: "me".to_owned(),
            job: "job".to_owned(),
            ahead_bytes: 1 << 20,
            trigger: Duration::ZERO,
        };
        source::open(&config, &settings).unwrap()
    }

    fn kind(&self) -> SourceKind {
        let socket = |address| {
            SourceKind::Socket(Socket {
                address,
                framing: Framing::Lines,
                max_record_bytes: 1 << 20,
                // So that what was brought is known to be durable.
                ack: true,
                on_lost_spool: Some(OnLost::Stop),
                max_spool_bytes: MAX_SPOOL_BYTES,
                max_connections: 1024,
                idle_timeout: None,
            })
        };
        match self.kind {
            Kind::Listen => socket(SocketAddress::Listen(self.address.clone())),
            Kind::Connect => socket(SocketAddress::Connect(self.address.clone())),
            Kind::Directory => SourceKind::Directory(Directory {
                path: self.dir.path().join("in"),
                include: vec!["*".to_owned()],
                exclude: Vec::new(),
                recursive: false,
                // A file that is taken back must settle again, and is not forgotten meanwhile.
                settle: Duration::from_millis(20),
                on_done: OnDone::Keep,
                on_changed: OnChanged::Fail,
                start: Start::Earliest,
            }),
            Kind::Kafka => SourceKind::Kafka(self.topic.as_ref().unwrap().config()),
            Kind::Sqlite | Kind::Postgres | Kind::Mariadb | Kind::Mysql => self.table.as_ref().unwrap().config(),
            Kind::Test => SourceKind::Test(tidemill_config::TestSource { path: self.dir.path().to_owned() }),
        }
    }

    /// A table has no end that it could tell, and no memory of rows that are gone.
    pub fn is_table(&self) -> bool {
        self.table.is_some()
    }

    pub fn is_socket(&self) -> bool {
        matches!(self.kind, Kind::Listen | Kind::Connect)
    }

    /// Brings the next `count` records; when it returns they are where a plan can find them.
    pub fn bring(&self, count: u64) {
        let numbers = self.brought.get()..self.brought.get() + count;
        self.brought.set(numbers.end);
        match self.kind {
            Kind::Listen | Kind::Connect => self.send(&lines(numbers), count),
            Kind::Directory => {
                for first in numbers.clone().step_by(FILE_RECORDS as usize) {
                    self.publish(first, &lines(first..numbers.end.min(first + FILE_RECORDS)));
                }
                // The kernel tells of them a moment later; what is tested here is not that moment.
                std::thread::sleep(TOLD);
            }
            Kind::Kafka => {
                let values: Vec<_> = numbers.map(text).collect();
                self.topic.as_ref().unwrap().send_values(0, &values);
            }
            Kind::Sqlite | Kind::Postgres | Kind::Mariadb | Kind::Mysql => self.table.as_ref().unwrap().bring(numbers),
            Kind::Test => {
                for shard in 0..SHARDS {
                    let path = self.dir.path().join(format!("shards/{shard}"));
                    let mut file = File::options().append(true).open(path).unwrap();
                    let mine = numbers.clone().filter(|n| n % SHARDS == shard);
                    mine.for_each(|n| file.write_all(lines(n..n + 1).as_bytes()).unwrap());
                }
            }
        }
    }

    fn send(&self, lines: &str, count: u64) {
        let mut peers = self.peers.borrow_mut();
        loop {
            let mut peer = peers.pop().unwrap_or_else(|| Peer { stream: self.connection(), sent: 0 });
            let is_new = peer.sent == 0;
            if peer.send(lines, count) {
                return peers.push(peer);
            }
            // A source that is gone may have left a connection behind that was never accepted.
            assert!(is_new, "the source closed the connection");
        }
    }

    /// A connection with the source, whoever makes it.
    fn connection(&self) -> TcpStream {
        let begun = Instant::now();
        let stream = loop {
            let made = match &self.server {
                Some(server) => server.accept().map(|(stream, _)| stream),
                None => TcpStream::connect(&self.address),
            };
            match made {
                Ok(stream) => break stream,
                Err(error) if begun.elapsed() > SOON => panic!("no connection with the source: {error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// Whether the source lets its peer in, or has come to it.
    pub fn is_received(&self) -> bool {
        match &self.server {
            Some(server) => server.accept().is_ok(),
            None => TcpStream::connect(&self.address).is_ok(),
        }
    }

    /// The peers close their connections.
    pub fn hang_up(&self) {
        self.peers.borrow_mut().clear();
    }

    /// A file appears, older than those that come later.
    fn publish(&self, first: u64, text: &str) {
        let (hidden, path) = (self.dir.path().join("file"), self.dir.path().join(format!("in/{first:06}.txt")));
        fs::write(&hidden, text).unwrap();
        let at = SystemTime::now() - Duration::from_secs(1_000_000 - first);
        let file = File::options().append(true).open(&hidden).unwrap();
        file.set_times(FileTimes::new().set_modified(at)).unwrap();
        fs::rename(hidden, path).unwrap();
    }

    /// Everything that was brought is gone from where it lies.
    pub fn lose(&self) {
        match self.kind {
            Kind::Listen | Kind::Connect => {
                for path in files(&self.dir.path().join("spool")) {
                    if path.extension().is_some_and(|ending| ending == "seg") {
                        let length = fs::metadata(&path).unwrap().len();
                        let file = File::options().write(true).open(&path).unwrap();
                        // Behind the segment's own head and the first group's.
                        (100..length).step_by(50).for_each(|at| file.write_all_at(b"\xff\xff", at).unwrap());
                    }
                }
            }
            Kind::Directory => {
                files(&self.dir.path().join("in")).iter().for_each(|path| fs::remove_file(path).unwrap())
            }
            Kind::Kafka => self.topic.as_ref().unwrap().delete_records(0, -1),
            Kind::Sqlite | Kind::Postgres | Kind::Mariadb | Kind::Mysql => {
                unreachable!("a table does not tell what it lost")
            }
            Kind::Test => files(&self.dir.path().join("shards")).iter().for_each(|path| fs::write(path, "").unwrap()),
        }
    }
}

fn lines(numbers: std::ops::Range<u64>) -> String {
    numbers.map(|n| text(n) + "\n").collect()
}

fn files(dir: &std::path::Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
}

/// What a marked sink keeps of a lane.
#[derive(Clone, Default)]
pub struct Anchor {
    pub at: Positions,
    states: BTreeMap<LogName, LogState>,
    entries: Vec<Entry>,
}

impl Anchor {
    fn append(&mut self, entries: &BTreeMap<LogName, Vec<String>>) {
        for (log, texts) in entries {
            let empty = LogState { first: 0, next: 0, digest: Digest::of(b"") };
            let state = self.states.entry(log.clone()).or_insert(empty);
            for text in texts {
                self.entries.push(Entry { log: log.clone(), number: state.next, text: text.clone() });
                (state.next, state.digest) = (state.next + 1, state.digest.then(text.as_bytes()));
            }
        }
    }

    pub fn commit(&mut self, proposal: &Proposal) {
        self.at = advance(&self.at, &proposal.spans).expect("a span goes on where the mark stands");
        self.append(&proposal.entries);
        for (log, first) in &proposal.prune {
            self.states.get_mut(log).expect("only a log that is there is pruned").first = *first;
            self.entries.retain(|entry| entry.log != *log || entry.number >= *first);
        }
    }

    pub fn history(&self) -> History {
        History { states: self.states.clone(), entries: self.entries.clone(), ..History::default() }
    }
}

/// A lane from its origin on.
pub struct Life<'r> {
    pub rig: &'r Rig,
    pub source: Arc<dyn Source>,
    pub anchor: Anchor,
    /// All that was read and committed.
    pub read: Vec<Record>,
}

pub fn lane() -> Lane {
    Lane::single()
}

/// A proposal as a replay has it: the plan's spans alone.
pub fn bare(proposal: &Proposal) -> Proposal {
    Proposal { spans: proposal.spans.clone(), ..Proposal::default() }
}

impl<'r> Life<'r> {
    pub async fn begin(rig: &'r Rig) -> Self {
        let life = Self::unstarted(rig).await;
        life.start().await;
        life
    }

    /// As the batch loop does it: what may pass is tried again (the address of the process before is free in a moment).
    async fn start(&self) {
        let begun = Instant::now();
        while let Err(error) = self.source.start().await {
            assert!(error.is_transient() && begun.elapsed() < SOON, "{error}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Owns its lane and has not said so.
    pub async fn unstarted(rig: &'r Rig) -> Self {
        let source = rig.open();
        let mut anchor = Anchor::default();
        let origin = source.origin(&lane()).await.unwrap();
        anchor.at = origin.positions;
        anchor.append(&origin.entries);
        let life = Self { rig, source, anchor, read: Vec::new() };
        let adopted = life.adopt().await.unwrap();
        assert!(adopted.new_shards.is_empty(), "the origin knows every shard that is there");
        life
    }

    pub async fn adopt(&self) -> Result<Adopted, SourceError> {
        self.source.adopt(&lane(), &self.anchor.at, &self.anchor.history()).await
    }

    /// The process ends, and another one goes on from what the anchor has.
    pub async fn restart(self) -> Self {
        let Self { rig, source, anchor, read } = self;
        // A spool belongs to one process at a time.
        drop(source);
        let life = Self { rig, source: rig.open(), anchor, read };
        life.adopt().await.unwrap();
        life.start().await;
        life
    }

    pub async fn event(&self) -> SourceEvent {
        let event = tokio::time::timeout(SOON, self.source.event()).await;
        event.expect("something to do is never missed").unwrap()
    }

    pub async fn plan_from(&self, at: &Positions, budget: Budget) -> Result<Option<Proposal>, SourceError> {
        self.source.plan(&lane(), at, budget).await
    }

    /// The next plan, waited for as the batch loop does it.
    pub async fn plan(&self, budget: Budget) -> Proposal {
        loop {
            if let Some(proposal) = self.plan_from(&self.anchor.at, budget).await.unwrap() {
                return proposal;
            }
            assert_eq!(self.event().await, SourceEvent::Data);
        }
    }

    pub async fn try_read(&self, proposal: &Proposal) -> Result<Vec<Record>, SourceError> {
        self.source.read(&lane(), proposal).await.map(|batch| records(&batch))
    }

    /// The records of a proposal; what they must always be is checked.
    pub async fn records(&self, proposal: &Proposal) -> Vec<Record> {
        let read = self.try_read(proposal).await.unwrap();
        for record in &read {
            let span = &proposal.spans[&record.shard];
            assert!(span.from <= record.position && record.position < span.to, "{record:?} is not in {span:?}");
        }
        read
    }

    pub fn commit(&mut self, proposal: &Proposal, records: Vec<Record>) {
        self.anchor.commit(proposal);
        self.read.extend(records);
    }

    /// One batch, committed.
    pub async fn batch(&mut self, budget: Budget) -> usize {
        let proposal = self.plan(budget).await;
        let records = self.records(&proposal).await;
        let count = records.len();
        self.commit(&proposal, records);
        count
    }

    pub async fn release(&self) {
        self.source.release(&lane(), &self.anchor.at).await.unwrap();
    }

    /// Batches until everything is read that was brought, and nothing else: each record once, in its shard's order.
    pub async fn finish(&mut self) {
        while (self.read.iter().filter(|record| record.reject.is_none()).count() as u64) < self.rig.brought.get() {
            self.batch(ALL).await;
        }
        let rest = self.plan_from(&self.anchor.at, ALL).await.unwrap();
        assert!(rest.is_none(), "nothing is left, and {rest:?} is planned");
        self.check();
    }

    pub fn check(&self) {
        let mut numbers: Vec<u64> = Vec::new();
        let mut last: BTreeMap<&ShardId, u64> = BTreeMap::new();
        for record in self.read.iter().filter(|record| record.reject.is_none()) {
            let number = record.number();
            assert_eq!(record.text, text(number));
            let before = last.insert(&record.shard, number);
            assert!(before.is_none_or(|before| before < number), "{number} comes after {before:?}");
            numbers.push(number);
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (0..self.rig.brought.get()).collect::<Vec<_>>());
    }
}

/// Polls a future so many times, ready or not, and drops it where it has not ended by then.
pub async fn cut_off<F: Future>(future: F, polls: u32) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..polls {
        if let Poll::Ready(output) = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    None
}

/// Runs a case for every source, in a runtime of its own.
pub fn each(case: impl AsyncFn(&Rig)) {
    for kind in KINDS {
        println!("{kind:?}");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let Some(rig) = Rig::new(kind) else { continue };
        runtime.block_on(case(&rig));
    }
}

/// Numbers that are the same in each run.
pub struct Dice(pub u64);

impl Dice {
    /// Below `bound`.
    pub fn roll(&mut self, bound: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
