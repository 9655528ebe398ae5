//! The tables of `docs/jobs.md`.

use std::fmt::Write;

use super::{Key, Kind, Need, Object, State, Variants, Word, daemon, job, kafka_sink, lookup};

/// Mappings that have a table of their own, by the name of the table.
const OBJECTS: [(&str, &Object); 13] = [
    ("job", &job::JOB),
    ("batch", &job::BATCH),
    ("framing", &job::FRAMING),
    ("on_done", &job::MOVE),
    ("step", &job::STEP),
    ("split", &job::SPLIT),
    ("parse_timestamp", &job::PARSE_TIMESTAMP),
    ("lookup", &lookup::LOOKUP),
    ("cache", &lookup::CACHE),
    ("database", &lookup::DATABASE_KEYS),
    ("roll", &job::ROLL),
    ("daemon", &daemon::DAEMON),
    ("log", &daemon::LOG),
];

/// Mappings whose keys depend on `type:`.
const VARIANTS: [(&str, &Variants); 5] = [
    ("source", &job::SOURCES),
    ("source codec", &job::SOURCE_CODECS),
    ("sink", &job::SINKS),
    ("sink codec", &job::SINK_CODECS),
    ("record codec", &kafka_sink::RECORD_CODECS),
];

/// The names of all tables that [`options_markdown`] makes: `job`, `steps`, `source types`, `source` (what all sources
/// have), `source socket`, ...
pub fn sections() -> Vec<String> {
    let mut names: Vec<String> = OBJECTS.iter().map(|(name, _)| (*name).to_owned()).collect();
    names.push("steps".to_owned());
    for (noun, all) in VARIANTS {
        names.push(format!("{noun} types"));
        names.extend((!all.common.is_empty()).then(|| noun.to_owned()));
        names.extend(all.listed().filter(|one| !one.keys.is_empty()).map(|one| format!("{noun} {}", one.name)));
    }
    // CSV is the same everywhere.
    names.retain(|name| !matches!(name.as_str(), "sink codec csv" | "record codec csv"));
    names
}

/// One table as Markdown; `None` where none has the name.
pub fn options_markdown(section: &str) -> Option<String> {
    if section == "steps" {
        return Some(verbs());
    }
    if let Some((_, object)) = OBJECTS.iter().find(|(name, _)| *name == section) {
        return Some(table(object.keys));
    }
    VARIANTS.into_iter().find_map(|(noun, all)| {
        let name = section.strip_prefix(noun)?;
        match name.strip_prefix(' ') {
            None => name.is_empty().then(|| table(all.common)),
            Some("types") => Some(types(all)),
            Some(name) => all.find(name).filter(|one| one.state == State::Now).map(|one| table(one.keys)),
        }
    })
}

/// A `|` would end a cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn table(keys: &[Key]) -> String {
    let mut out = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n".to_owned();
    for key in keys {
        let default = match key.need {
            Need::Required => "required".to_owned(),
            Need::Default(default) => format!("`{default}`"),
            Need::Optional => String::new(),
        };
        let cells = [format!("`{}`", key.name), describe(&key.kind), default, key.doc.to_owned()];
        let _ = writeln!(out, "| {} |", cells.map(|text| cell(&text)).join(" | ").replace("  ", " "));
    }
    out
}

fn types(all: &Variants) -> String {
    let mut out = "| type | what it is |\n| --- | --- |\n".to_owned();
    for one in all.listed() {
        let _ = writeln!(out, "| `{}` | {} |", one.name, cell(one.doc));
    }
    let later = all.variants.iter().filter(|one| one.state == State::Later).map(|one| format!("`{}`", one.name));
    let later: Vec<_> = later.collect();
    if !later.is_empty() {
        let _ = writeln!(out, "\nPlanned, not available yet: {}.", later.join(", "));
    }
    out
}

fn verbs() -> String {
    let mut out = "| step | meaning | example |\n| --- | --- | --- |\n".to_owned();
    for verb in job::VERBS.iter().filter(|verb| verb.kind.is_some()) {
        let _ = writeln!(out, "| `{}` | {} | `{}` |", verb.name, cell(verb.doc), cell(verb.example));
    }
    let later = job::VERBS.iter().filter(|verb| verb.kind.is_none()).map(|verb| format!("`{}`", verb.name));
    let _ = writeln!(out, "\nPlanned, not available yet: {}.", later.collect::<Vec<_>>().join(", "));
    out
}

fn describe(kind: &Kind) -> String {
    let words = |all: &[Word]| {
        let names: Vec<_> =
            all.iter().filter(|word| word.state == State::Now).map(|word| format!("`{}`", word.name)).collect();
        names.join(", ")
    };
    let object = |keys: &Object| {
        let names: Vec<_> = keys.keys.iter().map(|key| key.name).collect();
        format!("`{{ {} }}`", names.join(", "))
    };
    match kind {
        Kind::Scalar(scalar) => scalar.short(),
        Kind::Words(all) => words(all),
        Kind::List { of: Kind::Step, .. } => "list of steps".to_owned(),
        Kind::List { of, .. } => format!("list of {}", describe(of)),
        Kind::OneOrMore { of, .. } => format!("{}, or a list", describe(of)),
        Kind::Map { noun, value: Kind::Variants(_), .. } => format!("{noun}s by name"),
        Kind::Map { noun, value, .. } => format!("mapping of {noun}: {}", describe(value)),
        Kind::Object(keys) => object(keys),
        Kind::Variants(all) if all.short => format!("name of a {0}, or {0}", all.noun),
        Kind::Variants(all) => all.noun.to_owned(),
        Kind::Either(value, mapping) => format!("{}, or {}", describe(value), describe(mapping)),
        Kind::WordOr(all, keys) => format!("{}, or {}", words(all), object(keys)),
        Kind::Step => "step".to_owned(),
    }
}
