//! From a checked `type: sql` of a source to the model.

use std::{path::Path, time::Duration};

use serde::Deserialize;
use serde_yaml::Value;

use super::{Built, inconsistent, options, texts};
use crate::{
    SqlDatabase, SqlFrom, SqlSource, Start,
    paths::{absolute, resolve},
    tree::Node,
    units,
};

#[derive(Deserialize)]
struct Options {
    url: String,
    table: Option<String>,
    query: Option<String>,
    #[serde(deserialize_with = "units::de_duration")]
    poll: Duration,
    start: Start,
    #[serde(deserialize_with = "units::de_duration")]
    settle: Duration,
    #[serde(deserialize_with = "units::de_duration")]
    timeout: Duration,
    ca: Option<String>,
}

pub(super) fn sql(node: &Node, value: &Value, path: &str, folder: &Path) -> Built<SqlSource> {
    let given: Options = options(value, path)?;
    let database = match given.url.split_once(':') {
        Some(("sqlite", file)) => SqlDatabase::Sqlite(resolve(&folder.join(file))),
        Some(("mysql", _)) => SqlDatabase::Mysql(given.url),
        _ => SqlDatabase::Postgres(given.url),
    };
    Ok(SqlSource {
        database,
        from: match (given.table, given.query) {
            (Some(table), None) => SqlFrom::Table(table),
            (None, Some(query)) => SqlFrom::Query(query),
            _ => return Err(inconsistent(path)),
        },
        order_by: texts(node.get("order_by"), path),
        poll: given.poll,
        start: given.start,
        settle: given.settle,
        timeout: given.timeout,
        ca: given.ca.map(|ca| absolute(&folder.join(ca))),
    })
}
