//! `docs/jobs.md` says what the schema says: its tables are made from it, and its examples are right and whole.
//!
//! `UPDATE=1 cargo test -p tidemill-config --test suite docs` writes the tables anew.
use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use tidemill_config::{Daemon, Job, options_markdown, sections};

fn page() -> (std::path::PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/jobs.md");
    let text = fs::read_to_string(&path).unwrap();
    (path, text)
}

const BEGIN: &str = "<!-- table: ";
const END: &str = "<!-- end -->";

/// The page with its tables as the schema has them, and the names of the tables in it.
fn made(text: &str) -> (String, Vec<String>) {
    let (mut out, mut names, mut lines) = (String::new(), Vec::new(), text.lines());
    while let Some(line) = lines.next() {
        writeln!(out, "{line}").unwrap();
        if let Some(name) = line.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(" -->")) {
            let table = options_markdown(name).unwrap_or_else(|| panic!("there is no table `{name}`"));
            write!(out, "\n{table}\n{END}\n").unwrap();
            lines.by_ref().take_while(|line| *line != END).for_each(drop);
            names.push(name.to_owned());
        }
    }
    (out, names)
}

#[test]
fn the_tables_are_those_of_the_schema() {
    let (path, text) = page();
    let (made, mut names) = made(&text);
    let mut all = sections();
    names.sort();
    all.sort();
    assert_eq!(names, all, "each table stands in the page once");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, made).unwrap();
    } else {
        assert!(
            made == text,
            "docs/jobs.md is not up to date: UPDATE=1 cargo test -p tidemill-config --test suite docs"
        );
    }
}

/// Blocks of YAML, with whether each is of the daemon's own file.
fn examples(text: &str) -> Vec<(bool, String)> {
    let blocks = text.split("```yaml").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks
        .map(|block| block.split_once('\n').unwrap())
        .map(|(tag, yaml)| (tag == " tidemill.yaml", yaml.to_owned()))
        .collect()
}

/// An example may show a part of a job: the rest is added.
fn whole(yaml: &str) -> String {
    let mut text = yaml.to_owned();
    for (key, rest) in [
        ("job:", "job: example\n"),
        ("sources:", "sources: { access: { type: directory, path: in } }\n"),
        ("sinks:", "sinks: { nowhere: { type: blackhole } }\n"),
    ] {
        if !yaml.lines().any(|line| line.starts_with(key)) {
            text.push_str(rest);
        }
    }
    text
}

#[test]
fn every_example_is_right() {
    let (_, text) = page();
    let examples = examples(&text);
    assert!(examples.len() >= 10, "{} examples", examples.len());
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("secrets")).unwrap();
    fs::write(folder.path().join("secrets/database"), "hits.db\n").unwrap();
    for (daemon, yaml) in examples {
        let env = BTreeMap::from([("OUT".to_owned(), "out".to_owned())]);
        let errors = if daemon {
            Daemon::parse(&yaml, &folder.path().join("tidemill.yaml"), &env).err()
        } else {
            Job::parse(&whole(&yaml), &folder.path().join("job.yaml"), &env).err()
        };
        assert!(errors.is_none(), "{yaml}\n{}", errors.unwrap());
    }
}

#[test]
fn every_key_has_an_example() {
    let (_, text) = page();
    let mut examples = String::new();
    examples_of(&text, &mut examples);
    let mut missing = Vec::new();
    for section in sections().into_iter().filter(|section| !section.ends_with(" types") && section != "steps") {
        for row in options_markdown(&section).unwrap().lines().skip(2) {
            let key = row.split('`').nth(1).unwrap();
            if ![format!("{key}:"), format!("{key} :")].iter().any(|shown| examples.contains(shown)) {
                missing.push(format!("{section}: {key}"));
            }
        }
    }
    assert!(missing.is_empty(), "no example shows {missing:#?}");
}

fn examples_of(text: &str, out: &mut String) {
    examples(text).into_iter().for_each(|(_, yaml)| out.push_str(&yaml));
}
