//! A database of MariaDB or MySQL for each folder that a sink is tried in, and a reader that is not the sink's own code.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
};

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray};
use tidemill_checkpoint::{Lane, Permit, Receipt, SinkId};
use tidemill_config::{At, DatabaseSink, Guarantee, Located, Mode, OnNewColumn, SinkKind};
use tidemill_connectors::sink::{self, Sink, SinkError};

use super::{
    Kind, Runner, context, next,
    services::{self, Mysql},
};

/// The shared server of that kind, asked for once.
pub fn server(kind: Kind) -> Option<&'static Mysql> {
    static MARIADB: OnceLock<Option<Mysql>> = OnceLock::new();
    static MYSQL: OnceLock<Option<Mysql>> = OnceLock::new();
    match kind {
        Kind::Mariadb => MARIADB.get_or_init(services::mariadb).as_ref(),
        Kind::Mysql => MYSQL.get_or_init(services::mysql).as_ref(),
        other => panic!("{other:?} is none of them"),
    }
}

/// The name of the folder's own database.
pub fn database(dir: &Path) -> String {
    let mut hash = DefaultHasher::new();
    dir.hash(&mut hash);
    format!("sink_{:016x}", hash.finish())
}

/// Its address. The database is made at the first call.
pub fn url(kind: Kind, dir: &Path) -> String {
    static MADE: Mutex<BTreeMap<PathBuf, String>> = Mutex::new(BTreeMap::new());
    let server = server(kind).expect("asked for before");
    let name = database(dir);
    let mut made = MADE.lock().unwrap();
    let url = made.entry(dir.to_owned()).or_insert_with(|| {
        server.sql(&format!("CREATE DATABASE IF NOT EXISTS {name}"));
        format!("mysql://{}:{}@127.0.0.1:{}/{name}", server.user, server.password, server.port)
    });
    url.clone()
}

/// The configuration of a sink into a table of a database.
pub fn config(url: &str, table: &str, key: &[&str], delete_when: Option<&str>) -> SinkKind {
    let at = |value: &str| Located { value: value.to_owned(), at: At::default() };
    let mode = match key {
        [] => Mode::Append,
        key => Mode::Upsert { key: key.iter().map(|key| at(key)).collect(), delete_when: delete_when.map(at) },
    };
    SinkKind::Mysql(DatabaseSink {
        url: url.to_owned(),
        table: table.to_owned(),
        mode,
        guarantee: Guarantee::ExactlyOnce,
        ca: None,
        on_new_column: OnNewColumn::Fail,
    })
}

/// The numbers in the table `rows`, none where it is absent.
pub fn rows(kind: Kind, dir: &Path) -> Vec<i64> {
    let (server, name) = (server(kind).expect("asked for before"), database(dir));
    let there =
        format!("SELECT 1 FROM information_schema.tables WHERE table_schema = '{name}' AND table_name = 'rows'");
    if server.sql(&there).is_empty() {
        return Vec::new();
    }
    let text = server.sql(&format!("SELECT n FROM {name}.`rows`"));
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// Has a table refuse rows that are not so; `$` stands before the names of columns.
pub fn check(kind: Kind, table: &str, condition: &str) -> String {
    // MySQL knows CHECK from 8.0.16 on, and before reads over it.
    if kind == Kind::Mariadb {
        return format!("ALTER TABLE {table} ADD CHECK ({});", condition.replace('$', ""));
    }
    let condition = condition.replace('$', "NEW.");
    format!(
        "\nDELIMITER //\nCREATE TRIGGER checked BEFORE INSERT ON {table} FOR EACH ROW
            IF NOT ({condition}) THEN SIGNAL SQLSTATE '45000'; END IF//\nDELIMITER ;\n"
    )
}

/// The folder is not used any more.
pub fn forget(kind: Kind, dir: &Path) {
    if let Some(server) = server(kind) {
        server.sql(&format!("DROP DATABASE IF EXISTS {}", database(dir)));
    }
}

/// A database of a test's own, which ends with it.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub url: String,
    pub name: String,
    pub kind: Kind,
    pub server: &'static Mysql,
}

impl Place {
    /// `None`: there is no server, and the test is skipped.
    pub fn new(kind: Kind) -> Option<Self> {
        let server = server(kind)?;
        let dir = tempfile::tempdir().unwrap();
        let (url, name) = (url(kind, dir.path()), database(dir.path()));
        Some(Self { dir, url, name, kind, server })
    }

    pub fn sql(&self, sql: &str) -> Vec<String> {
        self.server.sql(&format!("USE {}; SET NAMES utf8mb4; {sql}", self.name)).lines().map(str::to_owned).collect()
    }

    /// Has the table `t` refuse rows.
    pub fn check(&self, condition: &str) -> String {
        check(self.kind, "t", condition)
    }

    pub fn open(&self, table: &str, key: &[&str]) -> Arc<dyn Sink> {
        open(&config(&self.url, table, key, None))
    }

    /// The address for another user, or another way there.
    pub fn url_of(&self, user: &str, password: &str, port: u16, database: &str) -> String {
        format!("mysql://{user}:{password}@127.0.0.1:{port}/{database}")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        forget(self.kind, self.dir.path());
    }
}

/// Each case in a database of each server.
#[allow(unused_macros)]
macro_rules! on_each_server {
    ($($case:ident),* $(,)?) => {
        mod mariadb {
            $(#[tokio::test]
            async fn $case() {
                if let Some(place) = $crate::sinks::mysql::Place::new($crate::sinks::Kind::Mariadb) {
                    super::$case(place).await;
                }
            })*
        }

        mod mysql8 {
            $(#[tokio::test]
            async fn $case() {
                if let Some(place) = $crate::sinks::mysql::Place::new($crate::sinks::Kind::Mysql) {
                    super::$case(place).await;
                }
            })*
        }
    };
}
#[allow(unused_imports)]
pub(crate) use on_each_server;

pub fn open(config: &SinkKind) -> Arc<dyn Sink> {
    sink::open(SinkId::new("db"), "job", config).unwrap()
}

pub fn table(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

pub fn numbers(name: &'static str, values: &[Option<i64>]) -> (&'static str, ArrayRef) {
    (name, Arc::new(Int64Array::from(values.to_vec())))
}

pub fn texts(name: &'static str, values: &[Option<&str>]) -> (&'static str, ArrayRef) {
    (name, Arc::new(StringArray::from(values.to_vec())))
}

pub fn flags(name: &'static str, values: &[Option<bool>]) -> (&'static str, ArrayRef) {
    (name, Arc::new(BooleanArray::from(values.to_vec())))
}

/// Prepares for the batch's schema and commits it as the next plan of a fresh claim.
pub async fn write(sink: &Arc<dyn Sink>, batches: &[RecordBatch]) -> Result<Receipt, SinkError> {
    let lane = Lane::single();
    let held = sink.peek(std::slice::from_ref(&lane)).await?.remove(&lane).unwrap();
    let (key, head) = sink.claim(&lane, held.generation().next(), &super::owner(1)).await?;
    sink.prepare(&batches[0].schema()).await?;
    let mut runner = Runner { sink: sink.clone(), key, head };
    if runner.head.is_none() {
        runner.step().await?;
    }
    commit(&runner, batches).await
}

/// Commits these rows as the runner's next plan.
pub async fn commit(runner: &Runner, batches: &[RecordBatch]) -> Result<Receipt, SinkError> {
    let head = runner.head.as_ref().unwrap();
    let (mark, entries) = next(&runner.key, head, &[], 0);
    let staged = runner.sink.stage(&context(&runner.key, &mark, false), batches).await?;
    let permit = Permit::anchor(runner.key.clone(), Some(head.digest), mark, entries);
    runner.sink.commit(vec![(permit, staged)]).await.pop().unwrap()
}
