//! Wrong files and what a person is told about them: `wrong/*.md`. A case is a heading, a file, and its whole message.
//!
//! The file is a job, or the daemon's own where the fence says `yaml tidemill.yaml`. `UPDATE=1 cargo test -p
//! tidemill-config --test suite wrong` writes the messages anew: read every line of the difference before it is committed.
use std::{collections::BTreeMap, fmt::Write, path::Path};

use tidemill_config::{Daemon, Job};

/// What `${...}` finds. None of these texts may be in any message.
const SECRETS: [(&str, &str); 4] = [
    ("SECRET", "hunter2-in-the-environment"),
    ("NUMBER", "31415926"),
    ("URL", "tcp://me:hunter2-in-a-url@h:1"),
    ("EMPTY", ""),
];
/// What `${file:tests/wrong/password}` finds.
const IN_FILE: &str = "hunter2-in-a-file";

/// A Markdown file, cut into what stands before a case's message, the message, and so on.
struct Case {
    heading: String,
    daemon: bool,
    yaml: String,
    expected: String,
}

fn read(text: &str) -> Vec<Case> {
    let (mut cases, mut heading, mut lines) = (Vec::<Case>::new(), String::new(), text.lines());
    let block = |lines: &mut std::str::Lines| {
        lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect::<String>()
    };
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("## ") {
            heading = name.to_owned();
        } else if let Some(file) = line.strip_prefix("```yaml") {
            let (daemon, yaml) = (file == " tidemill.yaml", block(&mut lines));
            cases.push(Case { heading: heading.clone(), daemon, yaml, expected: String::new() });
        } else if line == "```text" {
            cases.last_mut().unwrap().expected = block(&mut lines);
        }
    }
    cases
}

/// The file with the messages that the cases give now.
fn written(text: &str, messages: &[String]) -> String {
    let (mut out, mut messages, mut lines) = (String::new(), messages.iter(), text.lines().peekable());
    while let Some(line) = lines.next() {
        writeln!(out, "{line}").unwrap();
        if !line.starts_with("```yaml") {
            continue;
        }
        lines.by_ref().take_while(|line| *line != "```").for_each(|line| writeln!(out, "{line}").unwrap());
        write!(out, "```\n\n```text\n{}```\n", messages.next().unwrap()).unwrap();
        while lines.next_if(|line| line.trim().is_empty()).is_some() {}
        if lines.next_if(|line| *line == "```text").is_some() {
            lines.by_ref().take_while(|line| *line != "```").for_each(drop);
        } else {
            out.push('\n');
        }
    }
    out
}

fn message(case: &Case) -> String {
    let env: BTreeMap<String, String> = SECRETS.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let errors = if case.daemon {
        Daemon::parse(&case.yaml, Path::new("tidemill.yaml"), &env).and_then(|d| d.load_jobs(&env)).err()
    } else {
        Job::parse(&case.yaml, Path::new("job.yaml"), &env).err()
    };
    errors.map_or_else(|| "nothing is wrong\n".into(), |errors| format!("{errors}\n"))
}

#[test]
fn every_wrong_file_has_its_message() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wrong");
    let update = std::env::var_os("UPDATE").is_some();
    let (mut wrong, mut count, mut messages_count) = (String::new(), 0, 0);
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|ending| ending == "md")).collect();
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let cases = read(&text);
        let messages: Vec<String> = cases.iter().map(message).collect();
        for (case, got) in cases.iter().zip(&messages) {
            let at = format!("{}: {}", file.file_name().unwrap().display(), case.heading);
            for secret in SECRETS.iter().map(|secret| secret.1).chain([IN_FILE]).filter(|secret| !secret.is_empty()) {
                assert!(!got.contains(secret), "{at}: a secret is in the message:\n{got}");
            }
            messages_count += got.matches("\n    |").count();
            if *got != case.expected {
                writeln!(wrong, "\n{at}\n{}\nexpected:\n{}\ngot:\n{got}", case.yaml, case.expected).unwrap();
            }
        }
        count += cases.len();
        if update {
            std::fs::write(&file, written(&text, &messages)).unwrap();
        }
    }
    assert!(count >= 60, "there are {count} cases");
    assert!(update || wrong.is_empty(), "{wrong}");
    println!("{count} wrong files, {messages_count} messages with a line");
}
