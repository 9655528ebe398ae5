//! The step `lookup`: which of its keys belong together, and that its database is there.

use std::collections::BTreeSet;

use super::{Semantics, each};
use crate::{
    DatabaseAddress,
    build::{address, codec_of, columns_of},
    error::Problem,
    nearest::did_you_mean,
    tree::{Data, Node, UNRESOLVED, below, shown},
};

/// What kind of table a lookup has, as far as it can be told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    File,
    Sql,
    Redis,
}

impl Semantics<'_> {
    pub(super) fn lookup(&mut self, node: &Node, path: &str) {
        let Data::Map(_) = &node.data else { return };
        let Some(of) = self.table(node, path) else { return };
        self.shape(node, path, of);
        if of == Of::Redis {
            self.pattern(node, path);
        } else if node.get("match").is_none() {
            let problem = Problem::new("`lookup` needs the key `match`");
            let help = "add `match: { column: column of the table }`: what must be equal";
            self.problems.add(node.place.at(path), problem.help(help));
        }
        self.columns(node, path);
    }

    /// What the table is, from its database.
    fn table(&mut self, node: &Node, path: &str) -> Option<Of> {
        let Some(named) = node.get("database") else {
            for (key, what) in [("sql", "a query"), ("key", "the key of a value in Redis")] {
                if let Some(entry) = node.get(key) {
                    let problem = Problem::new(format!("`{key}` is {what}, and no database is named"));
                    let help = "add `database: NAME`, and `NAME: ADDRESS` under the job's `databases:`";
                    self.problems.add(entry.place.at(&below(path, key)), problem.help(help));
                    return None;
                }
            }
            return Some(Of::File);
        };
        let name = named.value.text().filter(|name| *name != UNRESOLVED)?;
        if name.contains("://") {
            let problem = Problem::new("an address is no name of a database");
            let help = "write `databases: { shop: ADDRESS }` at the top of the job, where `${...}` is replaced, and `database: shop` here";
            self.problems.add(named.value.place.at(&below(path, "database")), problem.help(help));
            return None;
        }
        let databases = self.section("databases");
        let Some(found) = databases.iter().find(|entry| entry.key == name) else {
            let help = match did_you_mean(name, databases.iter().map(|entry| entry.key.as_str())) {
                Some(near) => near,
                None if databases.is_empty() => format!("add `databases: {{ {name}: ADDRESS }}` to the job"),
                None => {
                    let names: Vec<_> = databases.iter().map(|entry| format!("`{}`", entry.key)).collect();
                    format!("there are {}", names.join(", "))
                }
            };
            let problem = Problem::new(format!("there is no database {} under `databases:`", shown(name)));
            self.problems.add(named.value.place.at(&below(path, "database")), problem.help(help));
            return None;
        };
        let url = found.value.text().or_else(|| found.value.text_of("url")).filter(|url| *url != UNRESOLVED)?;
        Some(if matches!(address(url, self.folder), DatabaseAddress::Redis(_)) { Of::Redis } else { Of::Sql })
    }

    /// Keys that have no meaning with this kind of table.
    fn shape(&mut self, node: &Node, path: &str, of: Of) {
        let query = of == Of::Redis || node.text_of("mode") == Some("query");
        let mut without: Vec<(&str, &str)> = Vec::new();
        match of {
            Of::File => without.extend([("timeout", "a file is not waited for"), ("value", "it is for Redis")]),
            Of::Sql => without.extend([
                ("codec", "it is for files"),
                ("value", "it is for Redis"),
                ("key", "it is for Redis: here `match` says what must be equal"),
            ]),
            Of::Redis => without.extend([
                ("codec", "it is for files"),
                ("table", "in Redis each row has a key: write `key: \"user:{id}\"`"),
                ("sql", "Redis has no SQL: write `key: \"user:{id}\"`"),
                ("match", "the columns in the braces of `key` are what is matched"),
                ("duplicates", "a key of Redis has one value"),
            ]),
        }
        if query {
            without.extend([
                ("refresh", "with `mode: query` there is no snapshot: `cache: { ttl: ... }` says how old a row may be"),
                ("max_bytes", "with `mode: query` there is no snapshot"),
                ("on_lost_table", "with `mode: query` there is no snapshot"),
            ]);
        } else {
            without.push(("cache", "it is for `mode: query`; a snapshot has `refresh`"));
        }
        for (key, why) in without {
            if let Some(entry) = node.get(key) {
                let problem = Problem::new(format!("`{key}` has no meaning here"));
                self.problems.add(entry.place.at(&below(path, key)), problem.help(why));
            }
        }
        let mode = node.get("mode").filter(|entry| {
            matches!((of, entry.value.text()), (Of::File, Some("query")) | (Of::Redis, Some("snapshot")))
        });
        if let Some(mode) = mode {
            let (problem, help) = match of {
                Of::File => ("a file cannot be asked for single keys", "leave `mode` out: a file is a snapshot"),
                _ => {
                    ("Redis cannot be read as one table", "leave `mode` out: Redis is asked for the keys of each batch")
                }
            };
            self.problems.add(mode.value.place.at(&below(path, "mode")), Problem::new(problem).help(help));
        }
        if of == Of::File && node.get("codec").is_none() {
            let Some(table) = node.get("table") else { return };
            if table.value.text().is_some_and(|text| codec_of(text).is_none()) {
                let what = format!("the ending of {} names no format", table.value.shown());
                let help = "name the file `.csv`, `.tsv`, `.json`, `.jsonl` or `.ndjson` (and `.gz` or `.zst` after it), or add `codec: csv`; for a table of a database, add `database: NAME`";
                self.problems.add(table.value.place.at(&below(path, "table")), Problem::new(what).help(help));
            }
        }
    }

    /// A key of Redis tells rows apart by at least one column.
    fn pattern(&mut self, node: &Node, path: &str) {
        let Some(key) = node.get("key") else { return };
        let Some(text) = key.value.text() else { return };
        let columns = columns_of(text);
        let at = key.value.place.at(&below(path, "key"));
        if columns.is_empty() {
            let problem = Problem::new(format!("{} is one key for all rows", key.value.shown()));
            self.problems.add(at, problem.help("put a column of the rows in braces: `user:{id}`"));
        } else if columns.iter().any(|column| column.trim().is_empty() || column.contains('{')) {
            let problem = Problem::new("in the braces of a key stands the name of a column");
            self.problems.add(at, problem.help("for example `user:{id}`"));
        }
    }

    /// Names are given once; `schema` has every column that is needed.
    fn columns(&mut self, node: &Node, path: &str) {
        let mut needed: Vec<(String, &Node, String)> = Vec::new();
        for (key, right) in [("match", true), ("take", false)] {
            let Some(entry) = node.get(key) else { continue };
            let path = below(path, key);
            let pairs: Vec<(&str, &Node, String)> = match &entry.value.data {
                Data::Map(entries) => {
                    entries.iter().map(|entry| (entry.key.as_str(), &entry.value, below(&path, &entry.key))).collect()
                }
                _ => {
                    let names = each(&entry.value, &path).into_iter();
                    names.filter_map(|(node, path)| Some((node.text()?, node, path))).collect()
                }
            };
            let mut seen = BTreeSet::new();
            for (left, node, path) in pairs {
                let Some(value) = node.text() else { continue };
                if !seen.insert(value) {
                    let problem = if right {
                        Problem::new(format!("the table's column {} is matched twice", node.shown()))
                    } else {
                        Problem::new(format!("two columns would be called {}", node.shown()))
                    };
                    self.problems.add(node.place.at(&path), problem);
                }
                needed.push((if right { value } else { left }.to_owned(), node, path));
            }
        }
        let Some(schema) = node.get("schema").map(|entry| &entry.value) else { return };
        for (column, node, path) in needed {
            if schema.get(&column).is_none() {
                let help = did_you_mean(&column, schema.entries().iter().map(|entry| entry.key.as_str()))
                    .unwrap_or_else(|| format!("add `{column}: string` to `schema`, or leave `schema` out"));
                let problem = Problem::new(format!("`schema` has no column {}", shown(&column)));
                self.problems.add(node.place.at(&path), problem.help(help));
            }
        }
    }
}
