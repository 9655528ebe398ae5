//! Tables that rows are added to, in each kind of database.

use std::{ops::Range, path::Path, time::Duration};

use tidemill_config::{At, Located, SourceKind, SqlDatabase, SqlFrom, SqlSource, Start};

use super::{
    Kind,
    services::{self, Postgres, postgres},
    text,
};

/// A table `posts`, with times that several rows share.
pub enum Table {
    Sqlite(rusqlite::Connection, std::path::PathBuf),
    Postgres(Box<Postgres>, String),
    Mysql(Box<services::Mysql>, String, String),
}

impl Table {
    /// `None`: this kind needs a server, and it is not there, or it is no kind of database.
    pub fn new(kind: Kind, dir: &Path) -> Option<Self> {
        let name = format!("source_{}", std::process::id())
            + &dir.file_name()?.to_string_lossy().replace('.', "_").to_lowercase();
        let table = match kind {
            Kind::Sqlite => {
                let path = dir.join("lines.db");
                Self::Sqlite(rusqlite::Connection::open(&path).unwrap(), path)
            }
            Kind::Postgres => {
                let server = postgres()?;
                let url = server.schema(&name);
                Self::Postgres(Box::new(server), url)
            }
            Kind::Mariadb | Kind::Mysql => {
                let server = if kind == Kind::Mysql { services::mysql()? } else { services::mariadb()? };
                let url = server.database(&name);
                Self::Mysql(Box::new(server), url, name)
            }
            _ => return None,
        };
        table.run("CREATE TABLE posts (id BIGINT PRIMARY KEY, at TIMESTAMP NULL, line TEXT)");
        table.run("CREATE INDEX in_order ON posts (at, id)");
        Some(table)
    }

    pub fn run(&self, sql: &str) {
        match self {
            Self::Sqlite(connection, _) => connection.execute_batch(sql).unwrap(),
            Self::Postgres(server, url) => drop(server.psql_at(url, &format!("SET TIME ZONE 'UTC'; {sql}"))),
            Self::Mysql(server, _, name) => {
                drop(server.sql(&format!("USE {name}; SET NAMES utf8mb4; SET time_zone = '+00:00'; {sql}")))
            }
        }
    }

    /// Three rows have one time.
    pub fn bring(&self, numbers: Range<u64>) {
        let row = |n: u64| {
            let second = n / 3;
            format!(
                "({n}, '2015-05-17 {:02}:{:02}:{:02}', '{}')",
                second / 3600,
                second / 60 % 60,
                second % 60,
                text(n)
            )
        };
        let rows: Vec<_> = numbers.map(row).collect();
        if !rows.is_empty() {
            self.run(&format!("INSERT INTO posts (id, at, line) VALUES {}", rows.join(", ")));
        }
    }

    pub fn config(&self) -> SourceKind {
        let order: &[&str] = if matches!(self, Self::Sqlite(..)) { &["id"] } else { &["at", "id"] };
        SourceKind::Sql(SqlSource {
            poll: Duration::from_millis(5),
            ..self.source(SqlFrom::Table("posts".into()), order)
        })
    }

    pub fn source(&self, from: SqlFrom, order: &[&str]) -> SqlSource {
        let at = |name: &&str| Located { value: (*name).to_owned(), at: At::default() };
        SqlSource {
            database: match self {
                Self::Sqlite(_, path) => SqlDatabase::Sqlite(path.clone()),
                Self::Postgres(_, url) => SqlDatabase::Postgres(url.clone()),
                Self::Mysql(_, url, _) => SqlDatabase::Mysql(url.clone()),
            },
            from,
            order_by: order.iter().map(at).collect(),
            poll: Duration::from_millis(50),
            start: Start::Earliest,
            settle: Duration::ZERO,
            timeout: Duration::from_secs(30),
            ca: None,
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        match self {
            Self::Sqlite(..) => {}
            Self::Postgres(server, url) => {
                let name = url.rsplit("%3D").next().unwrap();
                server.psql(&format!("SET client_min_messages = error; DROP SCHEMA IF EXISTS {name} CASCADE"));
            }
            Self::Mysql(server, _, name) => drop(server.sql(&format!("DROP DATABASE IF EXISTS {name}"))),
        }
    }
}

/// What a row's JSON says in `line`; other records as they are.
pub fn line(record: String) -> String {
    if !record.starts_with('{') {
        return record;
    }
    let row: serde_json::Value = serde_json::from_str(&record).unwrap();
    row["line"].as_str().unwrap().to_owned()
}
