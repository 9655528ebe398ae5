//! What the options of a codec say together, and beside those of their source or sink.

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
        self.csv(node, path);
        self.encoding(node, codec, &below_codec);
        match kind {
            "csv" => return self.csv_of(node, codec, &below_codec),
            "json" => return self.json(node, codec, &below_codec),
            "avro" => self.avro(codec, &below_codec, false),
            "protobuf" | "bytes" => {}
            _ => return,
        }
        if is_cut_into_lines(node) {
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

    /// The options of csv by themselves, of a source or a sink.
    pub(super) fn csv(&mut self, node: &Node, path: &str) {
        let Some(codec) = node.get("codec").map(|entry| &entry.value) else { return };
        if codec.text_of("type") != Some("csv") {
            return;
        }
        let path = below(path, "codec");
        let of = |key: &str, usual: &str| codec.text_of(key).unwrap_or(usual).replace("\\t", "\t");
        let (delimiter, quote) = (of("delimiter", ","), of("quote", "\""));
        let mut wrong = |keys: &[&str], problem: Problem| {
            let at = match keys.iter().find_map(|key| codec.get(key)) {
                Some(entry) => entry.value.place.at(&below(&path, &entry.key)),
                None => codec.place.at(&path),
            };
            self.problems.add(at, problem);
        };
        if delimiter == quote {
            wrong(&["delimiter", "quote"], Problem::new("`delimiter` and `quote` are the same character"));
        } else if quote != UNRESOLVED && quote.chars().count() == 1 && delimiter.contains(&quote) {
            wrong(&["delimiter", "quote"], Problem::new("the `quote` is a part of the `delimiter`"));
        }
        if quote == "none" && codec.get("escape").is_some() {
            let problem = Problem::new("`escape` stands before a quote, and there are none")
                .help("remove `escape`, or `quote: none`");
            wrong(&["escape"], problem);
        }
        let comment = of("comment", "");
        if !comment.is_empty() && (comment.starts_with(&delimiter) || comment.starts_with(&quote)) {
            let problem = Problem::new("a record may begin with this text: it is the `delimiter` or the `quote`")
                .help("name what comment lines begin with, like `\"#\"`");
            wrong(&["comment"], problem);
        }
        let decimal = of("decimal", ".");
        if codec.text_of("thousands") == Some(decimal.as_str()) {
            let problem = Problem::new("`decimal` and `thousands` are the same character")
                .help("numbers like `1.234,5` are `decimal: \",\"` and `thousands: \".\"`");
            wrong(&["thousands", "decimal"], problem);
        }
    }

    /// The options of csv beside those of its source.
    fn csv_of(&mut self, node: &Node, codec: &Node, path: &str) {
        let header = codec.get("header");
        let has_header =
            header.is_none_or(|entry| entry.value.text().is_some_and(|text| text.eq_ignore_ascii_case("true")));
        let kind = node.text_of("type");
        if matches!(kind, Some("socket" | "kafka")) {
            let (what, help) = if kind == Some("socket") {
                (
                    "the records of many connections come together here, and no header line belongs to all of them",
                    "write `header: false`, and name the columns by `schema`",
                )
            } else {
                ("each record is a message of its own here, and none of them is a header", "write `header: false`")
            };
            // A message never had a header line, and a job that says nothing about it is right.
            if has_header && (kind == Some("socket") || header.is_some()) {
                let at = header.map_or(codec.place.at(path), |entry| entry.value.place.at(&below(path, "header")));
                self.problems.add(at, Problem::new(what).help(help));
            }
            for key in ["skip", "comment", "multiline"] {
                if let Some(entry) = codec.get(key) {
                    let problem = Problem::new(format!(
                        "`{key}` is about the lines of a file, and this is a {}",
                        kind.unwrap_or_default()
                    ))
                    .help(format!("remove `{key}`"));
                    self.problems.add(entry.value.place.at(&below(path, key)), problem);
                }
            }
        }
        if codec.text_of("extra_fields") == Some("keep")
            && node.get("schema").is_some()
            && let Some(entry) = codec.get("extra_fields")
        {
            let problem =
                Problem::new("`keep` puts fields into `_extra`, which a source with a `schema` does not have")
                    .help("write `extra_fields: ignore` or `reject`, or leave `schema` out");
            self.problems.add(entry.value.place.at(&below(path, "extra_fields")), problem);
        }
    }

    /// The options of json beside those of its source.
    fn json(&mut self, node: &Node, codec: &Node, path: &str) {
        let Some(framing) = codec.get("framing").filter(|framing| framing.value.text() == Some("confluent")) else {
            return;
        };
        let at = framing.value.place.at(&below(path, "framing"));
        if is_cut_into_lines(node) {
            let problem = Problem::new("the id of a schema may hold line ends, and this socket is cut into lines")
                .help("write `framing: { length_prefix: 4 }` beside `type: socket`");
            self.problems.add(at, problem);
        } else if node.text_of("type") == Some("directory") {
            let problem = Problem::new("records of a file have no schema's id before them").help("remove `framing`");
            self.problems.add(at, problem);
        }
    }

    /// Whether records in this encoding can be told apart.
    fn encoding(&mut self, node: &Node, codec: &Node, path: &str) {
        let Some(entry) = codec.get("encoding") else { return };
        let Some(encoding) = entry.value.text().and_then(|label| encoding_rs::Encoding::for_label(label.as_bytes()))
        else {
            return;
        };
        let problem = if [encoding_rs::ISO_2022_JP, encoding_rs::REPLACEMENT].contains(&encoding) {
            Problem::new(format!("text in {} cannot be cut into records", encoding.name()))
                .help("turn it into utf-8 first, for instance with `iconv`")
        } else if [encoding_rs::UTF_16LE, encoding_rs::UTF_16BE].contains(&encoding)
            && node.text_of("type") == Some("socket")
            && !is_length_prefixed(node)
        {
            Problem::new("a line end in UTF-16 is more than one byte, and this socket looks for single ones")
                .help("write `framing: { length_prefix: 4 }` beside `type: socket`, or send utf-8")
        } else {
            return;
        };
        self.problems.add(entry.value.place.at(&below(path, "encoding")), problem);
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

/// Whether it is a socket whose records are lines.
fn is_cut_into_lines(node: &Node) -> bool {
    let is_lines = node.get("framing").is_none_or(|framing| framing.value.text() == Some("lines"));
    node.text_of("type") == Some("socket") && is_lines
}

fn is_length_prefixed(node: &Node) -> bool {
    node.get("framing").is_some_and(|framing| framing.value.get("length_prefix").is_some())
}

fn is_url(text: Option<&str>) -> bool {
    let Some(text) = text.filter(|text| *text != UNRESOLVED) else { return true };
    let rest = text.strip_prefix("http://").or(text.strip_prefix("https://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(char::is_whitespace))
}
