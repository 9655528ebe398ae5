//! The rules of the house that a program can hold: who may depend on whom, what no file may say, links that lead somewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tidemill_tests::{Folder, binary, needs::output, root};

/// The crates of the workspace, and those of them that each may use in its code.
const MAY_USE: [(&str, &[&str]); 6] = [
    ("tidemill-checkpoint", &[]),
    ("tidemill-config", &[]),
    ("tidemill-connectors", &["tidemill-checkpoint", "tidemill-config"]),
    ("tidemill-steps", &["tidemill-config"]),
    ("tidemill", &["tidemill-checkpoint", "tidemill-config", "tidemill-connectors", "tidemill-steps"]),
    (
        "tidemill-tests",
        &["tidemill-checkpoint", "tidemill-config", "tidemill-connectors", "tidemill-steps", "tidemill"],
    ),
];

/// Dependencies that one crate alone may name, so that they can be replaced there.
const NAMED_ONCE: [(&str, &str); 4] = [
    ("datafusion", "tidemill-steps"),
    ("sled", "tidemill-checkpoint"),
    ("notify", "tidemill-connectors"),
    ("axum", "tidemill"),
];

/// The dependencies of each crate, without those of its tests.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--offline", "--no-deps", "--format-version=1"]).current_dir(root());
    let metadata: Value = serde_json::from_str(&output(&mut command)).unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let list = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap();
        all.iter().filter(|dependency| dependency["kind"].is_null()).map(name).collect()
    };
    metadata["packages"].as_array().unwrap().iter().map(|package| (name(package), list(package))).collect()
}

#[test]
fn crates_depend_on_each_other_only_as_the_design_allows() {
    let found = dependencies();
    let rules: BTreeMap<&str, &[&str]> = MAY_USE.into();
    assert!(found.keys().map(String::as_str).eq(rules.keys().copied()), "a crate without a rule: {:?}", found.keys());
    for (name, dependencies) in &found {
        let ours = dependencies.iter().filter(|dependency| dependency.starts_with("tidemill"));
        let wrong: Vec<_> = ours.filter(|dependency| !rules[&**name].contains(&&***dependency)).collect();
        assert!(wrong.is_empty(), "{name} may not use {wrong:?}");
    }
    for (dependency, owner) in NAMED_ONCE {
        let users: Vec<_> = found.iter().filter(|(_, all)| all.contains(dependency)).map(|(name, _)| &**name).collect();
        assert_eq!(users, [owner], "{dependency} is named by one crate");
    }
}

/// Every file of the project: not what is built, fetched or hidden.
fn project_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let ours = !["target", ".git", "out", "__pycache__", "node_modules"].contains(&&*name);
            match path.is_dir() {
                true if ours => folders.push(path),
                // `.git` is a file in a second worktree.
                false if ours => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

fn with_ending(ending: &str) -> Vec<PathBuf> {
    project_files().into_iter().filter(|path| path.extension().is_some_and(|found| found == ending)).collect()
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[test]
fn nothing_is_left_to_do_and_no_machine_is_named() {
    // Put together here, so that this file passes its own test.
    let in_code =
        [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["unimplemented", "!"].concat(), ["todo", "!"].concat()];
    let anywhere = [["/wo", "rk/"].concat(), ["/ho", "me/"].concat(), ["/ro", "ot/"].concat()];
    let mut wrong = Vec::new();
    for path in project_files() {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let code = path.extension().is_some_and(|ending| ending == "rs" || ending == "py" || ending == "sh");
        for (number, line) in text.lines().enumerate() {
            // A user's home in an example is no machine of ours.
            let named = anywhere.iter().any(|word| line.contains(&**word)) && !line.contains("/home/shop");
            let left = code && in_code.iter().any(|word| line.contains(&**word));
            if named || left {
                wrong.push(format!("{}:{}: {line}", shown(&path), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The links of a Markdown text, without its code.
fn links(text: &str) -> Vec<String> {
    let mut prose = String::new();
    let mut fenced = false;
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        if !fenced {
            // Every second piece between backticks is code.
            prose.extend(line.split('`').enumerate().filter(|(i, _)| i % 2 == 0).map(|(_, piece)| piece));
            prose.push('\n');
        }
    }
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(|target| target.trim().trim_matches(['<', '>']).to_owned()).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let headings =
        text.lines().filter_map(|line| line.strip_prefix('#')).map(|line| line.trim_start_matches('#').trim());
    let slug = |heading: &str| {
        let kept =
            heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
        kept.replace(' ', "-")
    };
    headings.map(slug).collect()
}

#[test]
fn every_link_in_the_docs_leads_somewhere() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for page in with_ending("md") {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            checked += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let there = target.exists();
            let heading =
                anchor.is_empty() || fs::read_to_string(&target).is_ok_and(|text| anchors(&text).contains(anchor));
            if !there || !heading {
                wrong.push(format!("{}: {link}", shown(&page)));
            }
        }
    }
    assert!(checked > 20, "only {checked} links found: does the reader of Markdown still work?");
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
}

#[test]
fn links_are_found_in_prose_and_not_in_code() {
    assert_eq!(links("a [b](c.md) `[d](e)` ![f](g.svg#h)\n```\n[i](j)\n```\n[k](#l)"), ["c.md", "g.svg#h", "#l"]);
    assert!(anchors("## How it's done, in `run`").contains("how-its-done-in-run"));
}

/// Jobs that a reader is shown: examples, what deploy brings, and each block of YAML in the docs that is a whole job.
fn shown_jobs(folder: &Folder) -> Vec<PathBuf> {
    let is_job = |text: &str| text.lines().any(|line| line.starts_with("job:")) && text.contains("\nsinks:");
    let mut jobs: Vec<PathBuf> = with_ending("yaml")
        .into_iter()
        .filter(|path| path.starts_with(root().join("examples")) || path.starts_with(root().join("deploy")))
        .filter(|path| is_job(&fs::read_to_string(path).unwrap()))
        .collect();
    // A table of wrong jobs is no page for readers.
    for page in with_ending("md").into_iter().filter(|page| !page.starts_with(root().join("config/tests/wrong"))) {
        let text = fs::read_to_string(&page).unwrap();
        let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
        for (number, block) in blocks.filter(|block| is_job(block)).enumerate() {
            jobs.push(folder.write(format!("{}-{number}.yaml", shown(&page).replace('/', "-")), block));
        }
    }
    jobs
}

#[test]
fn every_job_that_a_reader_is_shown_is_valid() {
    let folder = Folder::new();
    let jobs = shown_jobs(&folder);
    assert!(jobs.len() >= 2, "{jobs:?}");
    // What the pages leave to the reader's environment.
    let done = Command::new(binary::tidemill())
        .arg("validate")
        .args(&jobs)
        .env("KAFKA_BROKERS", "localhost:9092")
        .env("KAFKA_PASSWORD", "s3cret")
        .env("PG_URL", "postgres://me@localhost/shop")
        .env("MYSQL_URL", "mysql://me@localhost/shop")
        .env("REDIS_URL", "redis://localhost")
        .output()
        .unwrap();
    assert!(done.status.success(), "{}\n{}", done.status, String::from_utf8_lossy(&done.stderr));
}

#[test]
fn every_golden_case_is_whole() {
    for case in fs::read_dir(root().join("tests/golden")).unwrap().map(|entry| entry.unwrap().path()) {
        if case.is_dir() {
            for part in ["job.yaml", "input", "expected"] {
                assert!(case.join(part).exists(), "{} lacks {part}", shown(&case));
            }
        }
    }
}

#[test]
fn every_test_that_the_list_of_faults_names_is_there() {
    let list = fs::read_to_string(root().join("tests/faults.md")).unwrap();
    let mut sources = String::new();
    for file in with_ending("rs") {
        sources += &fs::read_to_string(file).unwrap();
    }
    let is_known = |name: &str| sources.contains(&format!("fn {name}(")) || sources.contains(&format!("mod {name}"));
    let mut named = 0;
    for row in list.lines().filter(|line| line.starts_with("| ")) {
        for name in row.split("::").skip(1) {
            let name = name.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
            // What is shorter is a word of another language, or a part that `{a, b}` names.
            if name.len() >= 12 {
                named += 1;
                assert!(is_known(name), "tests/faults.md names {name}, which is no test: {row}");
            }
        }
    }
    assert!(named > 100, "only {named} tests are named");
}
