//! What the schema cannot say: names that must be known or unique, keys that belong together, folders that collide.
//!
//! Works on the tree and passes over what the schema already found wrong, so that all errors come at once.

mod lookup;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

mod codec;

use crate::{
    error::Problem,
    load::Problems,
    nearest::did_you_mean,
    paths::resolve,
    schema::{job, kafka_sink, kafka_source, scalar::taken_as_it_stands, sql_source},
    tree::{Data, Entry, Node, UNRESOLVED, below, item, shown},
};

/// The sink name of `dead_letters:`.
pub(crate) const DEAD_LETTERS: &str = "dead-letters";
/// Names of sinks that mean something else in checkpoints.
const RESERVED_SINKS: [&str; 2] = [DEAD_LETTERS, "ledger"];
/// Verbs that make a value for a column, which may be null instead.
const CAN_SET_NULL: [&str; 3] = ["cast", "add", "parse_timestamp"];

pub(crate) fn check(root: &Node, folder: &Path, problems: &mut Problems) {
    let mut job = Semantics { root, folder, problems };
    job.lanes();
    job.sources();
    let names = job.steps();
    job.sinks(&names);
    job.folders();
}

struct Semantics<'a> {
    root: &'a Node,
    folder: &'a Path,
    problems: &'a mut Problems,
}

/// The verb of a step, as far as it has one.
pub(crate) fn verb_of(step: &Node) -> Option<(&Entry, &'static crate::schema::Verb)> {
    step.entries().iter().find_map(|entry| Some((entry, job::VERBS.iter().find(|verb| verb.name == entry.key)?)))
}

/// A step's name: given, or `N-verb`, counting from 1.
pub(crate) fn step_name(step: &Node, index: usize) -> String {
    let verb = verb_of(step).map_or("step", |(_, verb)| verb.name);
    step.text_of("name").map_or_else(|| format!("{}-{verb}", index + 1), str::to_owned)
}

/// One value, or each of a list, with paths.
pub(crate) fn each<'n>(node: &'n Node, path: &str) -> Vec<(&'n Node, String)> {
    match &node.data {
        Data::List(items) => items.iter().enumerate().map(|(index, node)| (node, item(path, index))).collect(),
        _ => vec![(node, path.to_owned())],
    }
}

impl<'a> Semantics<'a> {
    fn section(&self, key: &str) -> &'a [Entry] {
        self.root.get(key).map_or(&[], |entry| entry.value.entries())
    }

    fn lanes(&mut self) {
        let Some(entry) = self.root.get("lanes").filter(|entry| entry.value.text() == Some("partition")) else {
            return;
        };
        for source in self.section("sources") {
            if let Some(kind) =
                source.value.text_of("type").filter(|kind| matches!(*kind, "socket" | "directory" | "sql"))
            {
                let what = format!(
                    "`partition` needs sources with partitions (kafka), and the source `{}` is a {kind}",
                    source.key
                );
                self.problems.add(
                    entry.value.place.at("lanes"),
                    Problem::new(what).help("write `lanes: single`, or leave it out"),
                );
                return;
            }
        }
    }

    fn sources(&mut self) {
        let sources = self.section("sources");
        self.formerly("sources", sources);
        kafka_source::check_groups(self.root.text_of("job").unwrap_or_default(), sources, self.problems);
        for source in sources {
            let path = below("sources", &source.key);
            let node = &source.value;
            self.codec(node, &path);
            self.metadata(node, &path);
            self.on_done(node, &path);
            match node.text_of("type") {
                Some("kafka") => self.kafka_source(node, &path),
                Some("sql") => sql_source::check(node, &path, self.problems),
                _ => {}
            }
        }
    }

    fn kafka_source(&mut self, node: &Node, path: &str) {
        kafka_source::check(node, path, self.problems);
        if let Some(key) = node.get("key") {
            let path = below(path, "key");
            self.codec(&key.value, &path);
            // `_key_bytes` is the key as it is.
            let both = key.value.get("schema").and_then(|schema| schema.value.get("bytes"));
            let metadata = node
                .get("metadata")
                .is_some_and(|list| list.value.items().iter().any(|one| one.text() == Some("key_bytes")));
            if let Some(field) = both.filter(|_| metadata) {
                let problem = Problem::new(
                    "the key's field `bytes` and `metadata: [key_bytes]` are both the column `_key_bytes`",
                );
                let at = field.place.at(&below(&below(&path, "schema"), "bytes"));
                self.problems.add(at, problem.help("leave `key_bytes` out of `metadata`, or the field out of the key"));
            }
        }
        if let Some(topics) = node.get("topics") {
            self.unique(&topics.value, &below(path, "topics"), "topic");
        }
    }

    fn formerly(&mut self, section: &str, entries: &[Entry]) {
        let mut seen: Vec<&str> = Vec::new();
        for entry in entries {
            let Some(old) = entry.value.get("formerly") else { continue };
            let Some(name) = old.value.text() else { continue };
            let what = if name == entry.key {
                "the former name is the name itself"
            } else if entries.iter().any(|other| other.key == name) {
                "the former name is one that is still there"
            } else if seen.contains(&name) {
                "two cannot go on from the same former name"
            } else {
                seen.push(name);
                continue;
            };
            let path = below(&below(section, &entry.key), "formerly");
            let help = "`formerly` is the name that this one had before it was renamed; without a renaming, remove it";
            self.problems.add(old.value.place.at(&path), Problem::new(what).help(help));
        }
    }

    fn metadata(&mut self, node: &Node, path: &str) {
        let Some(metadata) = node.get("metadata") else { return };
        self.unique(&metadata.value, &below(path, "metadata"), "item");
        for name in metadata.value.items().iter().filter_map(Node::text) {
            let column = format!("_{name}");
            if let Some(field) = node.get("schema").and_then(|schema| schema.value.get(&column)) {
                let path = below(&below(path, "schema"), &column);
                let problem = Problem::new(format!("`metadata` makes the column `{column}` too"));
                self.problems.add(
                    field.place.at(&path),
                    problem.help(format!("rename it, or leave `{name}` out of `metadata`")),
                );
            }
        }
    }

    fn on_done(&mut self, node: &Node, path: &str) {
        let Some(target) = node.get("on_done").and_then(|entry| entry.value.get("move")) else { return };
        let (Some(source), Some(to)) = (node.text_of("path"), target.value.text()) else { return };
        let (source, to) = (self.place_of(source), self.place_of(to));
        let recursive = node.text_of("recursive").is_some_and(|text| text.eq_ignore_ascii_case("true"));
        if to == source || recursive && to.starts_with(&source) {
            let problem = Problem::new("files would be moved to a folder that this source reads");
            let path = below(&below(path, "on_done"), "move");
            self.problems.add(target.value.place.at(&path), problem.help("name a folder beside it"));
        }
    }

    /// Every name that is given twice in a list.
    fn unique(&mut self, node: &Node, path: &str, noun: &str) {
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for (node, path) in each(node, path) {
            let Some(text) = node.text() else { continue };
            if !seen.insert(text) && text != UNRESOLVED {
                self.problems.add(
                    node.place.at(&path),
                    Problem::new(format!("this {noun} is in the list twice: {}", node.shown())),
                );
            }
        }
    }

    /// Checks the steps; gives all names that rows go by.
    fn steps(&mut self) -> Vec<String> {
        let mut names: Vec<String> = self.section("sources").iter().map(|entry| entry.key.clone()).collect();
        let sources = names.len();
        let steps = self.root.get("steps").map_or(&[][..], |entry| entry.value.items());
        let all: Vec<String> = steps.iter().enumerate().map(|(index, step)| step_name(step, index)).collect();
        for (index, step) in steps.iter().enumerate() {
            let path = item("steps", index);
            if let Some(given) = step.get("name").filter(|_| names.contains(&all[index])) {
                let what = if names[..sources].contains(&all[index]) { "source" } else { "step" };
                let problem = Problem::new(format!("there is a {what} `{}` already", all[index]));
                self.problems.add(
                    given.value.place.at(&below(&path, "name")),
                    problem.help("sources and steps have names of their own"),
                );
            }
            if let Some(from) = step.get("from") {
                let path = below(&path, "from");
                self.unique(&from.value, &path, "name");
                for (node, path) in each(&from.value, &path) {
                    self.reference(node, &path, &names, &all[index..]);
                }
            }
            self.verb(step, &path);
            names.push(all[index].clone());
        }
        names
    }

    fn reference(&mut self, node: &Node, path: &str, known: &[String], later: &[String]) {
        let Some(name) = node.text().filter(|name| *name != UNRESOLVED && !known.iter().any(|known| known == name))
        else {
            return;
        };
        let problem = if later.first().is_some_and(|own| own == name) {
            Problem::new("a step cannot take its own rows")
        } else if later.iter().any(|later| later == name) {
            Problem::new(format!("{} is a later step: rows go from earlier steps to later ones", node.shown()))
        } else {
            let near = did_you_mean(name, known.iter().map(String::as_str));
            let all =
                format!("there are {}", known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "));
            let problem = Problem::new(format!("there is no source and no step {}", node.shown()));
            match &node.data {
                Data::Scalar(text) => taken_as_it_stands(text, problem.help(near.unwrap_or(all))),
                _ => problem,
            }
        };
        self.problems.add(node.place.at(path), problem);
    }

    fn verb(&mut self, step: &Node, path: &str) {
        let Some((entry, verb)) = verb_of(step) else { return };
        let here = below(path, verb.name);
        match verb.name {
            "select" => self.unique(&entry.value, &here, "column"),
            "rename" => self.rename(&entry.value, &here),
            "lookup" => self.lookup(&entry.value, &here),
            "split" => {
                if let Some(into) = entry.value.get("into") {
                    self.unique(&into.value, &below(&here, "into"), "column");
                }
            }
            _ => {}
        }
        let Some(on_error) = step.get("on_error").filter(|entry| entry.value.text() == Some("set_null")) else {
            return;
        };
        if !CAN_SET_NULL.contains(&verb.name) {
            let problem = Problem::new(format!("`{}` makes no single value that could be null instead", verb.name));
            let verbs = crate::check::one_of(CAN_SET_NULL.into_iter());
            let problem = problem.help(format!("`set_null` goes with {verbs}; here `reject` or `fail` work"));
            self.problems.add(on_error.value.place.at(&below(path, "on_error")), problem);
        }
    }

    fn rename(&mut self, node: &Node, path: &str) {
        let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
        for entry in node.entries() {
            let Some(new) = entry.value.text() else { continue };
            if let Some(first) = seen.insert(new, &entry.key) {
                let problem =
                    Problem::new(format!("`{first}` and `{}` would both be called {}", entry.key, shown(new)));
                self.problems.add(entry.value.place.at(&below(path, &entry.key)), problem);
            }
        }
    }

    fn sinks(&mut self, names: &[String]) {
        let sinks = self.section("sinks");
        self.formerly("sinks", sinks);
        for sink in sinks {
            let path = below("sinks", &sink.key);
            if RESERVED_SINKS.contains(&sink.key.as_str()) {
                let problem = Problem::new(format!("the name `{}` is reserved", sink.key));
                let help = if sink.key == DEAD_LETTERS {
                    "rejects go to the top-level key `dead_letters:`"
                } else {
                    "choose another"
                };
                self.problems.add(sink.place.at(&path), problem.help(help));
            }
            if let Some(from) = sink.value.get("from") {
                self.reference(&from.value, &below(&path, "from"), names, &[]);
            }
            self.sink(&sink.value, &path);
        }
        if let Some(dead) = self.root.get("dead_letters") {
            self.sink(&dead.value, "dead_letters");
        }
    }

    fn sink(&mut self, node: &Node, path: &str) {
        self.csv(node, path);
        match node.text_of("type") {
            Some("files") => self.files(node, path),
            Some("kafka") => self.kafka_sink(node, path),
            Some("sqlite" | "mysql" | "postgres") => self.key(node, path),
            _ => {}
        }
    }

    fn kafka_sink(&mut self, node: &Node, path: &str) {
        kafka_sink::check(node, path, self.problems);
        self.record_codec(node, path);
        if let Some(flag) = node.get("delete_when").filter(|_| node.get("key").is_none()) {
            let problem = Problem::new("`delete_when` makes tombstones, which need a `key`");
            self.problems.add(
                flag.place.at(&below(path, "delete_when")),
                problem.help("add `key: id`: the column whose last record counts"),
            );
        }
        let unmarked = node.text_of("guarantee") == Some("at_least_once");
        for key in ["marks_topic", "transaction_timeout"].into_iter().filter(|_| unmarked) {
            if let Some(entry) = node.get(key) {
                let problem = Problem::new(format!("`{key}` has no meaning with `guarantee: at_least_once`"));
                let help =
                    format!("remove `{key}`, or write `guarantee: exactly_once`: only then are there transactions");
                self.problems.add(entry.place.at(&below(path, key)), problem.help(help));
            }
        }
        let of_rows = ["key", "headers", "delete_when", "codec"].into_iter().filter(|_| path == "dead_letters");
        for key in of_rows {
            if let Some(entry) = node.get(key) {
                let problem = Problem::new(format!("`{key}` has no meaning for dead letters"));
                self.problems.add(
                    entry.place.at(&below(path, key)),
                    problem.help("a dead letter is the original record, with headers as Kafka Connect names them"),
                );
            }
        }
    }

    fn files(&mut self, node: &Node, path: &str) {
        let codec = node.get("codec").map(|entry| &entry.value);
        let codec = codec.and_then(|codec| codec.text().or(codec.text_of("type"))).unwrap_or("json");
        if let Some(roll) = node.get("roll").filter(|_| matches!(codec, "text" | "parquet")) {
            let problem =
                Problem::new(format!("`roll` appends to files, which works with json and csv, not with {codec}"));
            self.problems.add(
                roll.place.at(&below(path, "roll")),
                problem.help("remove `roll`: each batch is a file of its own"),
            );
        }
        if let Some(partition) = node.get("partition_by") {
            self.unique(&partition.value, &below(path, "partition_by"), "column");
        }
        if codec == "parquet"
            && let Some(compression) = node.get("compression").filter(|entry| entry.value.text() == Some("gzip"))
        {
            let problem = Problem::new("parquet files are compressed by `zstd` or not at all (`none`)");
            self.problems.add(compression.value.place.at(&below(path, "compression")), problem);
        }
    }

    fn key(&mut self, node: &Node, path: &str) {
        let mode = node.get("mode");
        let upsert = mode.is_some_and(|mode| mode.value.text() == Some("upsert"));
        match (upsert, mode, node.get("key")) {
            (true, Some(mode), None) => {
                let problem =
                    Problem::new("`upsert` needs a `key`").help("add `key: [id]`: the columns that tell rows apart");
                self.problems.add(mode.value.place.at(&below(path, "mode")), problem);
            }
            (false, _, Some(key)) => {
                let problem = Problem::new("`key` has no meaning with `mode: append`");
                self.problems
                    .add(key.place.at(&below(path, "key")), problem.help("add `mode: upsert`, or remove `key`"));
            }
            (true, _, Some(key)) => self.unique(&key.value, &below(path, "key"), "column"),
            _ => {}
        }
        self.delete_when(node, path, upsert);
    }

    fn delete_when(&mut self, node: &Node, path: &str, upsert: bool) {
        let Some(flag) = node.get("delete_when") else { return };
        let at = flag.value.place.at(&below(path, "delete_when"));
        if !upsert {
            let problem = Problem::new("`delete_when` has no meaning with `mode: append`");
            self.problems.add(at, problem.help("add `mode: upsert` and a `key`, or remove `delete_when`"));
        } else if let (Some(column), Some(key)) = (flag.value.text(), node.get("key"))
            && each(&key.value, path).iter().any(|(node, _)| node.text() == Some(column))
        {
            let problem = Problem::new("a column of the `key` cannot say which rows are deleted");
            self.problems.add(at, problem.help("name another column, a boolean one"));
        }
    }

    /// Two sinks in one folder, or a sink in a folder that a source reads.
    fn folders(&mut self) {
        let of_type = |entry: &&Entry, kind: &str| entry.value.text_of("type") == Some(kind);
        let sources: Vec<&Entry> = self.section("sources").iter().filter(|entry| of_type(entry, "directory")).collect();
        let mut sinks: Vec<(&Entry, String)> =
            self.section("sinks").iter().map(|entry| (entry, below("sinks", &entry.key))).collect();
        sinks.extend(self.root.get("dead_letters").map(|entry| (entry, "dead_letters".to_owned())));
        let mut seen: BTreeMap<PathBuf, String> = BTreeMap::new();
        for (sink, path) in sinks.into_iter().filter(|(sink, _)| of_type(sink, "files")) {
            let Some(node) = sink.value.get("path").map(|entry| &entry.value) else { continue };
            let Some(folder) = node.text().filter(|text| *text != UNRESOLVED).map(|text| self.place_of(text)) else {
                continue;
            };
            let at = node.place.at(&below(&path, "path"));
            let read = sources.iter().find(|source| {
                let recursive = source.value.text_of("recursive").is_some_and(|text| text.eq_ignore_ascii_case("true"));
                let from = source.value.text_of("path").map(|text| self.place_of(text));
                from.is_some_and(|from| from == folder || recursive && folder.starts_with(from))
            });
            if let Some(source) = read {
                let problem = Problem::new(format!(
                    "the job would read its own output: the source `{}` reads this folder",
                    source.key
                ));
                self.problems.add(at, problem.help("name another folder"));
            } else if let Some(first) = seen.insert(folder, sink.key.clone()) {
                let problem = Problem::new(format!("`{first}` writes to the same folder"));
                self.problems.add(at, problem.help("give each sink a folder of its own"));
            }
        }
    }

    /// The one spelling of a path, to compare.
    fn place_of(&self, text: &str) -> PathBuf {
        resolve(&self.folder.join(text))
    }
}
