//! What the options of codecs for binary records say together.

use super::Semantics;
use crate::{
    error::Problem,
    tree::{Node, UNRESOLVED, below},
};

impl Semantics<'_> {
    /// The codec of a source.
    pub(super) fn codec(&mut self, node: &Node, path: &str) {
        let Some(codec) = node.get("codec").map(|entry| &entry.value) else { return };
        let kind = codec.text().or(codec.text_of("type")).unwrap_or("json");
        let below_codec = below(path, "codec");
        match kind {
            "avro" => self.avro(codec, &below_codec, false),
            "protobuf" | "bytes" => {}
            _ => return,
        }
        let is_lines = node.get("framing").is_none_or(|framing| framing.value.text() == Some("lines"));
        if node.text_of("type") == Some("socket") && is_lines {
            let problem =
                Problem::new(format!("records of {kind} may hold line ends, and this socket is cut into lines"))
                    .help("write `framing: { length_prefix: 4 }` beside `type: socket`");
            self.problems.add(codec.place.at(&below_codec), problem);
        }
    }

    /// The codec of a sink whose rows are one record each.
    pub(super) fn record_codec(&mut self, node: &Node, path: &str) {
        let Some(codec) = node.get("codec").map(|entry| &entry.value) else { return };
        if codec.text().or(codec.text_of("type")) == Some("avro") {
            self.avro(codec, &below(path, "codec"), true);
        }
    }

    fn avro(&mut self, codec: &Node, path: &str, is_written: bool) {
        let registry = codec.get("registry");
        if let Some(url) = registry.filter(|url| !is_url(url.value.text())) {
            let problem = Problem::new(format!("{} is not the URL of a registry", url.value.shown()))
                .help("write `http://host:8081`, or `https://`");
            self.problems.add(url.value.place.at(&below(path, "registry")), problem);
        }
        if registry.is_none() && codec.get("schema_file").or(codec.get("schema")).is_none() {
            let problem = Problem::new("avro needs the schema of its records").help(if is_written {
                "write `registry: URL`, so that readers find the schema there, else `schema_file: PATH`"
            } else {
                "write `registry: URL` where records carry the id of their schema, else `schema_file: PATH`"
            });
            self.problems.add(codec.place.at(path), problem);
        }
        let mut wrong = |key: &str, what: &str, help: &str| {
            if let Some(entry) = codec.get(key) {
                self.problems.add(entry.value.place.at(&below(path, key)), Problem::new(what).help(help));
            }
        };
        let framing = codec.text_of("framing");
        if registry.is_none() {
            let of_sinks = ["register"].into_iter().filter(|_| is_written);
            for key in ["subject", "user", "password"].into_iter().chain(of_sinks) {
                wrong(key, &format!("`{key}` is the registry's, and there is no `registry`"), "add `registry: URL`");
            }
            if framing == Some("confluent") {
                wrong("framing", "`confluent` names schemas by their ids in a registry", "add `registry: URL`");
            }
        } else if matches!(framing, Some("single_object" | "none")) {
            wrong(
                "framing",
                "records without the id of a schema need no `registry`",
                "remove `registry`, or `framing`",
            );
        }
        if is_written && codec.get("schema_file").is_some() {
            wrong("schema", "the schema comes from `schema_file` already", "remove one of both");
        }
        if !is_written && codec.get("schema_file").is_some() {
            wrong("subject", "the columns come from `schema_file` already", "remove one of both");
        }
        if registry.is_some() && codec.get("user").is_some() != codec.get("password").is_some() {
            wrong("user", "a user without a password", "add `password:`");
            wrong("password", "a password without a user", "add `user:`");
        }
    }
}

fn is_url(text: Option<&str>) -> bool {
    let Some(text) = text.filter(|text| *text != UNRESOLVED) else { return true };
    let rest = text.strip_prefix("http://").or(text.strip_prefix("https://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(char::is_whitespace))
}
