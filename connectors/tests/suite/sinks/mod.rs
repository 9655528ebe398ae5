//! What the suites of sinks share: a small runner that plans, stages and commits batches whose rows are known, and a
//! reader of each target that is not the sink's own code.

#![allow(clippy::unwrap_used, missing_docs, dead_code)]

pub mod kafka;
pub mod mysql;
pub mod postgres;

pub(crate) use crate::services;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use tidemill_checkpoint::{
    Digest, Entry, Generation, Lane, LaneKey, LaneScheme, LogName, Mark, Owner, Permit, Plan, PlanKind, Position,
    Positions, Receipt, ShardId, SinkId, Span, Timestamp, Touch, plan::LogRange,
};
use tidemill_config::{Codec, Compression, Files, Mode, OnNewColumn, Roll, SinkKind};
use tidemill_connectors::sink::{self, Guarantee, Sink, SinkError, StageContext};
use uuid::Uuid;

/// Rows of each batch.
pub const ROWS: i64 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Files,
    Rolling,
    Sqlite,
    Postgres,
    Ledger,
    Mariadb,
    Mysql,
    Kafka,
}

/// Every marked sink.
const MARKED: [Kind; 8] =
    [Kind::Files, Kind::Rolling, Kind::Sqlite, Kind::Ledger, Kind::Postgres, Kind::Mariadb, Kind::Mysql, Kind::Kafka];

/// Whether the sink's server can be had here.
pub fn is_there(kind: Kind) -> bool {
    match kind {
        Kind::Kafka => services::kafka().is_some(),
        Kind::Postgres => postgres::server().is_some(),
        Kind::Mariadb | Kind::Mysql => mysql::server(kind).is_some(),
        Kind::Files | Kind::Rolling | Kind::Sqlite | Kind::Ledger => true,
    }
}

/// The folder is not used any more: what a server holds for it goes too.
pub fn forget(kind: Kind, dir: &Path) {
    match kind {
        Kind::Mariadb | Kind::Mysql => mysql::forget(kind, dir),
        Kind::Postgres => postgres::forget(dir),
        _ => {}
    }
}

/// The marked sinks whose servers are there.
pub fn marked() -> Vec<Kind> {
    MARKED.into_iter().filter(|kind| is_there(*kind)).collect()
}

pub fn id(kind: Kind) -> SinkId {
    if kind == Kind::Ledger { SinkId::ledger() } else { SinkId::new("archive") }
}

pub fn files(path: &Path, roll: Option<Roll>) -> Files {
    Files { path: path.join("out"), codec: Codec::Json, compression: Compression::None, partition_by: Vec::new(), roll }
}

pub fn make(kind: Kind, dir: &Path) -> Arc<dyn Sink> {
    let roll = Roll { bytes: 100, after: Duration::from_secs(3600) };
    let config = match kind {
        Kind::Files => SinkKind::Files(files(dir, None)),
        Kind::Rolling => SinkKind::Files(files(dir, Some(roll))),
        Kind::Sqlite => SinkKind::Sqlite {
            path: dir.join("deep/rows.db"),
            table: "rows".into(),
            mode: Mode::Append,
            on_new_column: OnNewColumn::Fail,
        },
        Kind::Mariadb | Kind::Mysql => mysql::config(&mysql::url(kind, dir), "rows", &[], None),
        Kind::Postgres => SinkKind::Postgres(postgres::config(&postgres::url(dir), "rows", &[], None)),
        Kind::Kafka => SinkKind::Kafka(kafka::config(dir)),
        Kind::Ledger => {
            let ledger = tidemill_checkpoint::ledger::sled::SledLedger::open(&dir.join("data")).unwrap().ledger;
            return Arc::new(sink::ledger::LedgerSink::open("job", Arc::new(ledger)));
        }
    };
    sink::open(id(kind), "job", &config).unwrap()
}

/// Every file below a folder, with its bytes; Tidemill's own folder left out.
pub fn published(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap() == "_tidemill" {
            } else if path.is_dir() {
                open.push(path);
            } else {
                found.insert(path.clone(), fs::read(path).unwrap());
            }
        }
    }
    found
}

/// The numbers in the target, sorted, read by other code than the sink's.
pub fn rows(kind: Kind, dir: &Path) -> Vec<i64> {
    let mut rows: Vec<i64> = match kind {
        Kind::Files | Kind::Rolling => {
            let text: Vec<u8> = published(&dir.join("out")).into_values().flatten().collect();
            let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            lines
                .map(|line| serde_json::from_slice::<serde_json::Value>(line).unwrap()["n"].as_i64().unwrap())
                .collect()
        }
        Kind::Sqlite if !dir.join("deep/rows.db").exists() => Vec::new(),
        Kind::Sqlite => {
            let connection = rusqlite::Connection::open(dir.join("deep/rows.db")).unwrap();
            let mut statement = match connection.prepare("SELECT n FROM rows") {
                Ok(statement) => statement,
                Err(_) => return Vec::new(),
            };
            statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
        }
        Kind::Postgres => postgres::numbers(dir),
        Kind::Kafka => kafka::numbers(dir),
        Kind::Ledger => Vec::new(),
        Kind::Mariadb | Kind::Mysql => mysql::rows(kind, dir),
    };
    rows.sort_unstable();
    rows
}

/// The numbers of batches 1 to `last`.
pub fn expected(kind: Kind, last: u64) -> Vec<i64> {
    if kind == Kind::Ledger {
        Vec::new()
    } else {
        (1..=last as i64).flat_map(|seq| (0..ROWS).map(move |row| seq * 10 + row)).collect()
    }
}

pub fn owner(instance: u128) -> Owner {
    Owner { name: "host".into(), data_dir: Uuid::from_u128(7), instance: Uuid::from_u128(instance) }
}

pub fn batch(seq: u64) -> RecordBatch {
    let numbers: Vec<i64> = (0..ROWS).map(|row| seq as i64 * 10 + row).collect();
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(numbers.iter().map(|n| format!("row \"{n}\"\n"))));
    let numbers: ArrayRef = Arc::new(Int64Array::from(numbers));
    RecordBatch::try_from_iter_with_nullable([("n", numbers, true), ("text", texts, true)]).unwrap()
}

pub fn shard() -> ShardId {
    ShardId::new("source", "")
}

pub fn log() -> LogName {
    LogName::new("files:source")
}

/// Where a lane's life begins: its mark in `key`'s sink.
pub fn origin(key: &LaneKey) -> Mark {
    let start = Positions::from([(shard(), Position::number(0))]);
    let plan = Plan { kind: PlanKind::Origin { start }, ..plan(key, None, 0) };
    Mark::origin(&key.sink, plan, LaneScheme::Single, key.generation, &key.owner)
}

fn plan(key: &LaneKey, head: Option<&Mark>, seq: u64) -> Plan {
    let before = head.map(|head| head.digest);
    Plan {
        lane: key.lane.clone(),
        kind: PlanKind::Batch,
        seq,
        parent: before,
        spans: BTreeMap::new(),
        planned_at: Timestamp(seq as i64 * 1000),
        job: Digest::of(b"job"),
        versions: BTreeMap::new(),
        logs: BTreeMap::new(),
        anchor: key.sink.clone(),
        touches: BTreeMap::from([(key.sink.clone(), Touch::Joined { before, touched: true })]),
    }
}

/// The mark after `head`, with the entries that its plan brings. `first`: entries below are pruned.
pub fn next(key: &LaneKey, head: &Mark, entries: &[&str], first: u64) -> (Mark, Vec<Entry>) {
    let seq = head.plan.seq + 1;
    let mut plan = plan(key, Some(head), seq);
    let at = |seq: u64| Position::number(seq);
    plan.spans.insert(shard(), Span { from: at(seq - 1), to: at(seq) });
    let state = head.logs.get(&log());
    let from = state.map_or(0, |state| state.next);
    let numbered = entries.iter().zip(from..).map(|(text, number)| Entry { log: log(), number, text: (*text).into() });
    let numbered: Vec<Entry> = numbered.collect();
    if !numbered.is_empty() || first > 0 {
        let digest = state.map_or(Digest::of(b""), |state| state.digest);
        let digest = numbered.iter().fold(digest, |digest, entry| digest.then(entry.text.as_bytes()));
        plan.logs.insert(log(), LogRange { from, to: from + numbered.len() as u64, digest, first });
    }
    (head.next(&key.sink, plan, key.generation, &key.owner).unwrap(), numbered)
}

pub fn context(key: &LaneKey, mark: &Mark, mark_only: bool) -> StageContext {
    StageContext { key: key.clone(), input: mark.plan.input(), plan: mark.plan.clone(), mark_only }
}

/// Stages and commits the plan of `mark`; its rows are those of its number, none for the origin or for a ledger.
pub async fn commit(
    sink: &dyn Sink,
    key: &LaneKey,
    expected: Option<Digest>,
    mark: &Mark,
    entries: Vec<Entry>,
) -> Result<Receipt, SinkError> {
    let mark_only = mark.plan.seq == 0 || key.sink == SinkId::ledger();
    let rows = if mark_only { Vec::new() } else { vec![batch(mark.plan.seq)] };
    let staged = sink.stage(&context(key, mark, mark_only), &rows).await?;
    let permit = Permit::anchor(key.clone(), expected, mark.clone(), entries);
    sink.commit(vec![(permit, staged)]).await.pop().unwrap()
}

/// A runner of one lane.
pub struct Runner {
    pub sink: Arc<dyn Sink>,
    pub key: LaneKey,
    pub head: Option<Mark>,
}

impl Runner {
    /// Claims the lane with the generation after the one that is held.
    pub async fn claim(sink: Arc<dyn Sink>, lane: &Lane, instance: u128) -> Result<Self, SinkError> {
        let held = sink.peek(std::slice::from_ref(lane)).await?.remove(lane).unwrap();
        let (key, head) = sink.claim(lane, held.generation().next(), &owner(instance)).await?;
        sink.prepare(&batch(1).schema()).await?;
        Ok(Self { sink, key, head })
    }

    pub fn seq(&self) -> Option<u64> {
        self.head.as_ref().map(|head| head.plan.seq)
    }

    /// Commits the next plan (the origin first).
    pub async fn step(&mut self) -> Result<Receipt, SinkError> {
        self.step_with(&[], 0).await
    }

    pub async fn step_with(&mut self, entries: &[&str], first: u64) -> Result<Receipt, SinkError> {
        let (mark, entries) = match &self.head {
            None => (origin(&self.key), Vec::new()),
            Some(head) => next(&self.key, head, entries, first),
        };
        let expected = self.head.as_ref().map(|head| head.digest);
        let receipt = commit(&*self.sink, &self.key, expected, &mark, entries).await?;
        assert_eq!(receipt.digest(), mark.digest);
        self.head = Some(mark);
        Ok(receipt)
    }

    /// Steps until batch `last` is committed.
    pub async fn run(&mut self, last: u64) -> Result<(), SinkError> {
        while self.seq().is_none_or(|seq| seq < last) {
            self.step().await?;
        }
        Ok(())
    }
}

pub fn is_fenced<T>(result: &Result<T, SinkError>) -> bool {
    matches!(result, Err(SinkError::Fenced { .. }))
}

pub fn generation(n: u64) -> Generation {
    Generation(n)
}

pub fn keeps_marks(sink: &dyn Sink) -> bool {
    sink.guarantee() == Guarantee::ExactlyOnce
}

/// Claims the lane and commits `rows` as the first batch.
pub async fn write(sink: Arc<dyn Sink>, rows: &RecordBatch) -> Runner {
    let (key, head) = sink.claim(&Lane::single(), generation(1), &owner(1)).await.unwrap();
    let mut runner = Runner { sink, key, head };
    runner.run(0).await.unwrap();
    runner.sink.prepare(&rows.schema()).await.unwrap();
    let head = runner.head.clone().unwrap();
    let (mark, _) = next(&runner.key, &head, &[], 0);
    let staged = runner.sink.stage(&context(&runner.key, &mark, false), std::slice::from_ref(rows)).await.unwrap();
    let permit = Permit::anchor(runner.key.clone(), Some(head.digest), mark.clone(), Vec::new());
    runner.sink.commit(vec![(permit, staged)]).await.pop().unwrap().unwrap();
    runner.head = Some(mark);
    runner
}
