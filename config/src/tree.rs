//! A YAML file as a tree in which every key and value knows its place.
//!
//! Scalars stay texts: what a text means is for the schema to say (`no` is a text where a text is wanted). Anchors,
//! aliases and merge keys (`<<`) are resolved here; keys that are given twice are errors.

use std::{collections::HashMap, path::Path};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, StrInput};

use crate::{
    At, Environment,
    error::{Problem, lines_of},
    load::Problems,
    syntax,
};

/// Nodes in a file, aliases resolved: more is an accident or an attack.
const MAX_NODES: usize = 100_000;
/// Nodes inside nodes.
const MAX_DEPTH: usize = 64;

/// Line and column, both from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub line: usize,
    pub column: usize,
}

impl Place {
    pub fn at(self, path: &str) -> At {
        At { line: self.line, column: self.column, path: path.to_owned() }
    }
}

impl From<Marker> for Place {
    fn from(marker: Marker) -> Self {
        Self { line: marker.line(), column: marker.col() + 1 }
    }
}

/// A value and its place. No `Debug`: it may hold secrets.
#[derive(Clone)]
pub(crate) struct Node {
    pub place: Place,
    pub data: Data,
}

#[derive(Clone)]
pub(crate) enum Data {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone)]
pub(crate) struct Scalar {
    pub text: String,
    /// Written without quotes.
    pub plain: bool,
    /// Comes from the environment or a file: never shown.
    pub substituted: bool,
}

#[derive(Clone)]
pub(crate) struct Entry {
    pub key: String,
    pub place: Place,
    pub value: Node,
}

impl Node {
    pub fn entries(&self) -> &[Entry] {
        if let Data::Map(entries) = &self.data { entries } else { &[] }
    }
    pub fn items(&self) -> &[Node] {
        if let Data::List(items) = &self.data { items } else { &[] }
    }
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }
    pub fn text(&self) -> Option<&str> {
        if let Data::Scalar(scalar) = &self.data { Some(&scalar.text) } else { None }
    }
    /// The text of the scalar under a key.
    pub fn text_of(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(|entry| entry.value.text())
    }
    /// Nothing at all, `~` or `null`: a key without a value.
    pub fn is_nothing(&self) -> bool {
        let Data::Scalar(scalar) = &self.data else { return false };
        scalar.plain && !scalar.substituted && matches!(scalar.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }
    pub fn is_empty_plain(&self) -> bool {
        matches!(&self.data, Data::Scalar(s) if s.plain && !s.substituted && s.text.is_empty())
    }
    /// How a message names the value: substituted ones stay hidden.
    pub fn shown(&self) -> String {
        match &self.data {
            Data::List(_) => "a list".into(),
            Data::Map(_) => "a mapping".into(),
            Data::Scalar(scalar) if scalar.substituted => "`***`".into(),
            Data::Scalar(_) if self.is_nothing() => "nothing".into(),
            Data::Scalar(scalar) => shown(&scalar.text),
        }
    }
}

/// A text in a message: one line, not too long.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 60;
    let line: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect();
    format!("`{line}{}`", if text.trim().chars().count() > LONGEST { "..." } else { "" })
}

/// The path of a key below `path`.
pub(crate) fn below(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
    match (path.is_empty(), plain) {
        (true, true) => key.to_owned(),
        (false, true) => format!("{path}.{key}"),
        (_, false) => format!("{path}[\"{}\"]", key.escape_debug()),
    }
}

/// The path of an item of a list.
pub(crate) fn item(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// The node at a path of keys, as [`below`] and [`item`] write it.
pub(crate) fn find<'n>(node: &'n Node, path: &str) -> Option<&'n Node> {
    fn search<'n>(node: &'n Node, here: &str, path: &str) -> Option<&'n Node> {
        if here == path {
            return Some(node);
        }
        let of_key = |entry: &'n Entry| search(&entry.value, &below(here, &entry.key), path);
        let of_item = |(index, node)| search(node, &item(here, index), path);
        path.starts_with(here).then(|| match &node.data {
            Data::Map(entries) => entries.iter().find_map(of_key),
            Data::List(items) => items.iter().enumerate().find_map(of_item),
            Data::Scalar(_) => None,
        })?
    }
    search(node, "", path)
}

/// Reads a text. `None` where there is no tree to go on with: what is wrong is in `problems`, or the text is empty.
pub(crate) fn parse(text: &str, problems: &mut Problems) -> Option<Node> {
    let mut reader = Reader {
        parser: Parser::new_from_str(text),
        anchors: HashMap::new(),
        nodes: 0,
        problems,
        lines: lines_of(text),
    };
    match reader.document() {
        Ok(root) => root.filter(|root| !root.is_nothing()),
        Err(stop) => {
            problems.add(stop.0, stop.1);
            None
        }
    }
}

/// An error after which nothing more can be read.
struct Stop(At, Problem);
type Read<T> = Result<T, Stop>;

struct Reader<'a, 'p> {
    parser: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
    problems: &'p mut Problems,
    lines: Vec<&'a str>,
}

impl<'a> Reader<'a, '_> {
    /// The next event of what stands at `path`.
    fn next(&mut self, path: &str) -> Read<(Event<'a>, Span)> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(self.syntax(&error, path)),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn document(&mut self) -> Read<Option<Node>> {
        let mut root = None;
        loop {
            let (event, span) = self.next("")?;
            match event {
                Event::StreamEnd => return Ok(root),
                Event::DocumentStart(_) if root.is_some() => {
                    let what = Problem::new("a second YAML document begins here")
                        .help("one file holds one job: remove the `---`");
                    return Err(Stop(Place::from(span.start).at(""), what));
                }
                Event::DocumentStart(_) => {
                    let first = self.next("")?;
                    root = Some(self.node(first, "", 0)?);
                }
                _ => {}
            }
        }
    }

    fn node(&mut self, (event, span): (Event<'a>, Span), path: &str, depth: usize) -> Read<Node> {
        let place = Place::from(span.start);
        self.count(1, place, path)?;
        if depth > MAX_DEPTH {
            return Err(Stop(place.at(path), Problem::new(format!("values are nested more than {MAX_DEPTH} deep"))));
        }
        let before = self.nodes;
        let (data, anchor, tag) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                (Data::Scalar(Scalar { text: text.into_owned(), plain, substituted: false }), anchor, tag)
            }
            Event::SequenceStart(anchor, tag) => (self.list(path, depth)?, anchor, tag),
            Event::MappingStart(anchor, tag) => (self.map(path, depth)?, anchor, tag),
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(Stop(
                        place.at(path),
                        Problem::new("an alias (`*name`) that stands inside its own anchor"),
                    ));
                };
                self.count(size, place, path)?;
                return Ok(node);
            }
            _ => return Err(Stop(place.at(path), Problem::new("the file ends where a value is expected"))),
        };
        if let Some(tag) = tag.filter(|tag| !tag.is_yaml_core_schema()) {
            let what = Problem::new(format!("the YAML tag `{tag}` has no meaning here"));
            self.problems.add(place.at(path), what.help("remove it, or quote the text if it begins with `!`"));
        }
        let node = Node { place, data };
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), self.nodes - before + 1));
        }
        Ok(node)
    }

    fn count(&mut self, more: usize, place: Place, path: &str) -> Read<()> {
        self.nodes += more;
        if self.nodes <= MAX_NODES {
            return Ok(());
        }
        let what = Problem::new(format!("the file has more than {MAX_NODES} values"));
        Err(Stop(place.at(path), what.help("aliases count as often as they are used")))
    }

    fn list(&mut self, path: &str, depth: usize) -> Read<Data> {
        let mut items = Vec::new();
        loop {
            let event = self.next(path)?;
            if event.0 == Event::SequenceEnd {
                return Ok(Data::List(items));
            }
            let path = item(path, items.len());
            items.push(self.node(event, &path, depth + 1)?);
        }
    }

    fn map(&mut self, path: &str, depth: usize) -> Read<Data> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut first: HashMap<String, usize> = HashMap::new();
        let mut merged: Vec<Entry> = Vec::new();
        loop {
            let event = self.next(path)?;
            if event.0 == Event::MappingEnd {
                break;
            }
            let plain = matches!(&event.0, Event::Scalar(_, ScalarStyle::Plain, ..));
            let key = self.node(event, path, depth + 1)?;
            let Some(name) = key.text().map(str::to_owned) else {
                let what = Problem::new("a key is a text, not a list or a mapping");
                let braces = matches!(key.data, Data::Map(_)).then_some("braces in a text need quotes: `\"{x}\"`");
                self.problems.add(key.place.at(path), what.maybe(braces));
                let value = self.next(path)?;
                self.node(value, path, depth + 1)?;
                continue;
            };
            let here = below(path, &name);
            let value = self.next(&here)?;
            let value = self.node(value, &here, depth + 1)?;
            if name == "<<" && plain {
                self.merge(value, &here, &mut merged);
            } else if let Some(line) = first.get(&name) {
                let what = Problem::new(format!("{} is given twice", shown(&name)));
                self.problems.add(key.place.at(&here), what.help(format!("the first is on line {line}")));
            } else {
                first.insert(name.clone(), key.place.line);
                entries.push(Entry { key: name, place: key.place, value });
            }
        }
        for entry in merged {
            if !first.contains_key(&entry.key) {
                entries.push(entry);
            }
        }
        Ok(Data::Map(entries))
    }

    /// `<<: *base`: the base's entries, where the mapping has none of its own. Of several bases the first wins.
    fn merge(&mut self, value: Node, path: &str, merged: &mut Vec<Entry>) {
        let place = value.place;
        match value.data {
            Data::Map(entries) => {
                for entry in entries {
                    if !merged.iter().any(|earlier| earlier.key == entry.key) {
                        merged.push(entry);
                    }
                }
            }
            Data::List(bases) => bases.into_iter().for_each(|base| self.merge(base, path, merged)),
            Data::Scalar(_) => {
                let what = Problem::new("`<<` merges a mapping, or a list of mappings").help("write `<<: *anchor`");
                self.problems.add(place.at(path), what);
            }
        }
    }

    fn syntax(&self, error: &ScanError, path: &str) -> Stop {
        let (place, problem) = syntax::explain(&self.lines, Place::from(*error.marker()), error.info());
        Stop(place.at(path), problem)
    }
}

/// Replaces `${...}` in every value below `node`.
pub(crate) fn substitute(node: &mut Node, path: &str, folder: &Path, env: &dyn Environment, problems: &mut Problems) {
    match &mut node.data {
        Data::List(items) => {
            for (index, value) in items.iter_mut().enumerate() {
                substitute(value, &item(path, index), folder, env, problems);
            }
        }
        Data::Map(entries) => {
            for entry in entries {
                substitute(&mut entry.value, &below(path, &entry.key), folder, env, problems);
            }
        }
        Data::Scalar(scalar) if scalar.text.contains('$') => {
            match crate::substitute::resolve(&scalar.text, folder, env) {
                Ok((text, substituted)) => (scalar.text, scalar.substituted) = (text, substituted),
                Err(problem) => {
                    problems.add(node.place.at(path), problem);
                    // What follows must not complain about the same text again.
                    scalar.substituted = true;
                    scalar.text = UNRESOLVED.into();
                }
            }
        }
        Data::Scalar(_) => {}
    }
}

/// Stands for a value that could not be resolved: an error was reported, checks pass over it.
pub(crate) const UNRESOLVED: &str = "\u{0}unresolved";
