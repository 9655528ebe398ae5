//! Tables of options for the docs.

use std::fmt::Write;

use super::{Key, Kind, Need, Object, State, Variants, daemon, job};

/// The names of all tables that [`options_markdown`] makes.
pub fn sections() -> Vec<String> {
    let mut names = vec!["job".to_owned(), "daemon".to_owned(), "steps".to_owned()];
    for all in [&job::SOURCES, &job::SINKS, &job::SINK_CODECS] {
        names.push(all.noun.to_owned());
        names.extend(all.listed().filter(|one| !one.keys.is_empty()).map(|one| format!("{} {}", all.noun, one.name)));
    }
    names
}

/// The options of one section as a Markdown table; `None` where no section has the name.
pub fn options_markdown(section: &str) -> Option<String> {
    match section {
        "job" => Some(table(job::JOB.keys)),
        "daemon" => Some(table(daemon::DAEMON.keys)),
        "steps" => Some(verbs()),
        _ => [&job::SOURCES, &job::SINKS, &job::SINK_CODECS].into_iter().find_map(|all| variant(all, section)),
    }
}

fn variant(all: &Variants, section: &str) -> Option<String> {
    if section == all.noun {
        return Some(table(all.common));
    }
    let name = section.strip_prefix(all.noun)?.trim_start();
    all.find(name).filter(|one| one.state == State::Now).map(|one| table(one.keys))
}

fn table(keys: &[Key]) -> String {
    let mut out = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n".to_owned();
    for key in keys {
        let default = match key.need {
            Need::Required => "required".to_owned(),
            Need::Default(default) => format!("`{default}`"),
            Need::Optional => String::new(),
        };
        let _ = writeln!(out, "| `{}` | {} | {default} | {} |", key.name, describe(&key.kind), key.doc);
    }
    out
}

fn verbs() -> String {
    let mut out = "| step | meaning | example |\n| --- | --- | --- |\n".to_owned();
    for verb in job::VERBS.iter().filter(|verb| verb.kind.is_some()) {
        let _ = writeln!(out, "| `{}` | {} | `{}` |", verb.name, verb.doc, verb.example.replace('|', "\\|"));
    }
    out
}

fn describe(kind: &Kind) -> String {
    let words = |all: &[super::Word]| {
        let names: Vec<_> =
            all.iter().filter(|word| word.state == State::Now).map(|word| format!("`{}`", word.name)).collect();
        names.join(", ")
    };
    let object = |keys: &Object| {
        let names: Vec<_> = keys.keys.iter().map(|key| key.name).collect();
        format!("{{ {} }}", names.join(", "))
    };
    match kind {
        Kind::Scalar(scalar) => scalar.short().to_owned(),
        Kind::Words(all) => words(all),
        Kind::List { of, .. } => format!("list of {}", describe(of)),
        Kind::OneOrMore { of, .. } => format!("{}, or a list of them", describe(of)),
        Kind::Map { noun, value, .. } => format!("{noun}: {}", describe(value)),
        Kind::Object(keys) => object(keys),
        Kind::Variants(all) => all.noun.to_owned(),
        Kind::WordOr(all, keys) => format!("{}, or {}", words(all), object(keys)),
        Kind::Step => "step".to_owned(),
    }
}
