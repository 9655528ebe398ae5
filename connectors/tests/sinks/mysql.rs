//! A database of MariaDB for each folder that a sink is tried in, and a reader that is not the sink's own code.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock},
};

use tidemill_config::{At, DatabaseSink, Located, Mode, SinkKind};

use super::services::{self, Mariadb};

/// The shared server, asked for once.
pub fn server() -> Option<&'static Mariadb> {
    static SERVER: OnceLock<Option<Mariadb>> = OnceLock::new();
    SERVER.get_or_init(services::mariadb).as_ref()
}

/// The name of the folder's own database.
pub fn database(dir: &Path) -> String {
    let mut hash = DefaultHasher::new();
    dir.hash(&mut hash);
    format!("sink_{:016x}", hash.finish())
}

/// Its address. The database is made at the first call.
pub fn url(dir: &Path) -> String {
    static MADE: Mutex<BTreeMap<PathBuf, String>> = Mutex::new(BTreeMap::new());
    let server = server().expect("asked for before");
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
    SinkKind::Mysql(DatabaseSink { url: url.to_owned(), table: table.to_owned(), mode, ca: None })
}

/// The numbers in the table `rows`, none where it is absent.
pub fn rows(dir: &Path) -> Vec<i64> {
    let (server, name) = (server().expect("asked for before"), database(dir));
    let there =
        format!("SELECT 1 FROM information_schema.tables WHERE table_schema = '{name}' AND table_name = 'rows'");
    if server.sql(&there).is_empty() {
        return Vec::new();
    }
    let text = server.sql(&format!("SELECT n FROM {name}.`rows`"));
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// The folder is not used any more.
pub fn forget(dir: &Path) {
    if let Some(server) = server() {
        server.sql(&format!("DROP DATABASE IF EXISTS {}", database(dir)));
    }
}
