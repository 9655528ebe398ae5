//! The step `lookup` and the databases that it names.

use std::{path::Path, time::Duration};

use serde::Deserialize;

use super::{Built, CodecOptions, bytes, fields, inconsistent, located, options};
use crate::{
    Codec, Csv, Database, DatabaseAddress, Duplicates, Located, Lookup, LookupMode, LookupTable, OnLost, OnMissing,
    RedisValue, SqlRows, check,
    load::Problems,
    paths::absolute,
    schema,
    tree::{Data, Entry, Node, below},
    units,
};

/// How often a file is looked at where the job does not say.
const FILE_REFRESH: Duration = Duration::from_secs(1);
/// How often a database is asked for the whole table where the job does not say.
const DATABASE_REFRESH: Duration = Duration::from_secs(60);

/// What a lookup needs of the job around it.
pub(super) struct Around<'a> {
    pub folder: &'a Path,
    pub databases: &'a [Database],
}

#[derive(Deserialize)]
struct Options {
    table: Option<String>,
    sql: Option<String>,
    key: Option<String>,
    database: Option<String>,
    on_missing: String,
    duplicates: String,
    codec: Option<CodecOptions>,
    mode: Option<String>,
    refresh: Option<String>,
    on_lost_table: Option<OnLost>,
    #[serde(deserialize_with = "units::de_size")]
    max_bytes: u64,
    cache: CacheOptions,
    #[serde(deserialize_with = "units::de_duration")]
    timeout: Duration,
    value: String,
}

#[derive(Deserialize)]
struct CacheOptions {
    entries: u64,
    #[serde(deserialize_with = "units::de_duration")]
    ttl: Duration,
}

/// The section `databases:`.
pub(super) fn databases(entries: &[Entry], folder: &Path) -> Built<Vec<Database>> {
    let one = |entry: &Entry| {
        let url = entry.value.text().or_else(|| entry.value.text_of("url"));
        let url = url.ok_or_else(|| inconsistent(&below("databases", &entry.key)))?;
        let ca = entry.value.text_of("ca").map(|ca| absolute(&folder.join(ca)));
        Ok(Database { name: entry.key.clone(), address: address(url, folder), ca })
    };
    entries.iter().map(one).collect()
}

/// What an address is, by its scheme; without one it is the path of a SQLite file.
pub(crate) fn address(url: &str, folder: &Path) -> DatabaseAddress {
    match url.split_once("://").map(|(scheme, _)| scheme) {
        Some("postgres" | "postgresql") => DatabaseAddress::Postgres(url.to_owned()),
        Some("mysql") => DatabaseAddress::Mysql(url.to_owned()),
        Some("mariadb") => DatabaseAddress::Mysql(url.replacen("mariadb", "mysql", 1)),
        Some("redis" | "rediss") => DatabaseAddress::Redis(url.to_owned()),
        _ => DatabaseAddress::Sqlite(absolute(&folder.join(url.strip_prefix("sqlite:").unwrap_or(url)))),
    }
}

/// The format of a table's file by its ending, that of a compression left aside.
pub(crate) fn codec_of(path: &str) -> Option<Codec> {
    let lower = path.to_ascii_lowercase();
    let name = lower.strip_suffix(".gz").or(lower.strip_suffix(".zst")).unwrap_or(&lower);
    let csv = |delimiter: &str| Codec::Csv(Csv { delimiter: delimiter.into(), ..Csv::default() });
    match name.rsplit_once('.')?.1 {
        "csv" => Some(csv(",")),
        "tsv" => Some(csv("\t")),
        "json" | "jsonl" | "ndjson" => Some(Codec::Json),
        _ => None,
    }
}

/// A part of a Redis key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPart<'k> {
    /// It stands as it is.
    Text(&'k str),
    /// A column of the rows.
    Column(&'k str),
}

/// The parts of a Redis key: `user:{id}`. A brace of its own is written twice, `{{user:{id}}}:cart`, where any opening one is:
/// a hash tag has both.
pub fn key_parts(key: &str) -> Vec<KeyPart<'_>> {
    let doubled = key.contains("{{");
    let (mut parts, mut rest) = (Vec::new(), key);
    while let Some(at) = rest.find(|one| one == '{' || doubled && one == '}') {
        let behind = &rest[at + 1..];
        let twice = doubled && behind.starts_with(&rest[at..=at]);
        if twice || rest[at..].starts_with('}') {
            parts.push(KeyPart::Text(&rest[..=at]));
            rest = if twice { &behind[1..] } else { behind };
            continue;
        }
        let Some((column, behind)) = behind.split_once('}') else { break };
        parts.extend([KeyPart::Text(&rest[..at]), KeyPart::Column(column)]);
        rest = behind;
    }
    parts.push(KeyPart::Text(rest));
    parts.retain(|part| *part != KeyPart::Text(""));
    parts
}

/// The columns in braces of a Redis key, in order, each once.
pub(crate) fn columns_of(key: &str) -> Vec<&str> {
    let mut columns = Vec::new();
    for part in key_parts(key) {
        if let KeyPart::Column(column) = part
            && !columns.contains(&column)
        {
            columns.push(column);
        }
    }
    columns
}

/// The step `lookup`.
pub(super) fn lookup(entry: &Entry, path: &str, around: &Around<'_>) -> Built<Lookup> {
    let node = &entry.value;
    // Once more along the schema, which fills in the defaults.
    let value = check::check(node, &schema::lookup::LOOKUP, &mut Problems::default());
    let given: Options = options(&value, path)?;
    let pairs = |key: &str| node.get(key).map_or_else(Vec::new, |entry| pairs(&entry.value, &below(path, key)));
    let mut keys = pairs("match");
    let database = given.database.as_ref().map(|name| around.databases.iter().find(|known| known.name == *name));
    let database = match database {
        Some(found) => Some(found.cloned().ok_or_else(|| inconsistent(path))?),
        None => None,
    };
    let mut is_redis = false;
    let table = match (database, given.table, given.sql, given.key) {
        (None, Some(table), None, None) => {
            let codec = match given.codec {
                Some(codec) => codec.codec()?,
                None => codec_of(&table).ok_or_else(|| inconsistent(path))?,
            };
            LookupTable::File { path: absolute(&around.folder.join(table)), codec }
        }
        (Some(database), Some(table), None, None) => LookupTable::Sql { database, rows: SqlRows::Table(table) },
        (Some(database), None, Some(sql), None) => LookupTable::Sql { database, rows: SqlRows::Query(sql) },
        (Some(database), None, None, Some(key)) => {
            let at = node.get("key").map(|entry| entry.value.place.at(&below(path, "key"))).unwrap_or_default();
            let column = |name: &str| Located { value: name.to_owned(), at: at.clone() };
            keys = columns_of(&key).into_iter().map(|name| (column(name), column(name))).collect();
            is_redis = true;
            let value = match given.value.as_str() {
                "json" => RedisValue::Json,
                "text" => RedisValue::Text,
                _ => RedisValue::Hash,
            };
            LookupTable::Redis { database, key, value }
        }
        _ => return Err(inconsistent(path)),
    };
    let usual = if matches!(table, LookupTable::File { .. }) { FILE_REFRESH } else { DATABASE_REFRESH };
    let refresh = given.refresh.map(|text| units::duration(&text)).transpose().map_err(|_| inconsistent(path))?;
    let mode = if is_redis || given.mode.as_deref() == Some("query") {
        LookupMode::Query { entries: bytes(given.cache.entries), ttl: given.cache.ttl }
    } else {
        LookupMode::Snapshot { refresh: refresh.unwrap_or(usual), max_bytes: given.max_bytes }
    };
    let schema = node.get("schema").map(|entry| fields(&entry.value, &below(path, "schema"))).transpose()?;
    Ok(Lookup {
        table,
        keys,
        take: pairs("take"),
        on_missing: match given.on_missing.as_str() {
            "reject" => OnMissing::Reject,
            "drop" => OnMissing::Drop,
            _ => OnMissing::Null,
        },
        duplicates: match given.duplicates.as_str() {
            "first" => Duplicates::First,
            "last" => Duplicates::Last,
            _ => Duplicates::Fail,
        },
        schema,
        mode,
        on_lost_table: given.on_lost_table,
        timeout: given.timeout,
    })
}

/// `[a, b]` is each with itself; `{ a: b }` one with the other.
fn pairs(node: &Node, path: &str) -> Vec<(Located<String>, Located<String>)> {
    match &node.data {
        Data::Map(entries) => entries
            .iter()
            .filter_map(|entry| {
                let path = below(path, &entry.key);
                let left = Located { value: entry.key.clone(), at: entry.place.at(&path) };
                Some((left, located(&entry.value, &path)?))
            })
            .collect(),
        _ => {
            let names = crate::semantics::each(node, path);
            names.into_iter().filter_map(|(node, path)| located(node, &path)).map(|name| (name.clone(), name)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        KeyPart::{Column, Text},
        *,
    };

    #[test]
    fn a_brace_of_the_key_itself_is_written_twice() {
        for (key, parts) in [
            ("user:{id}", vec![Text("user:"), Column("id")]),
            ("{{user:{id}}}:cart", vec![Text("{"), Text("user:"), Column("id"), Text("}"), Text(":cart")]),
            ("{{{id}}}", vec![Text("{"), Column("id"), Text("}")]),
            ("{{a}}:{id}", vec![Text("{"), Text("a}"), Text(":"), Column("id")]),
            // As ever, where no opening brace is written twice.
            ("a}b}}{id}}", vec![Text("a}b}}"), Column("id"), Text("}")]),
            ("{id", vec![Text("{id")]),
        ] {
            assert_eq!(key_parts(key), parts, "{key}");
        }
        assert_eq!(columns_of("{{x}}:{a}:{b}:{a}"), ["a", "b"]);
    }
}
