//! Wrong files that no text can show (not UTF-8, too large, not there), several files at once, and what is never shown.
use std::{collections::BTreeMap, fs, path::Path, time::Instant};

use tidemill_config::{Daemon, Errors, Job};

const END: &str = "sources: { s: { type: directory, path: in } }\nsinks: { out: { type: blackhole } }\n";

/// A message with the folder of the test cut off.
fn told<T: std::fmt::Debug>(folder: &Path, result: Result<T, Errors>) -> String {
    result.unwrap_err().to_string().replace(&format!("{}/", folder.display()), "")
}

fn env() -> BTreeMap<String, String> {
    BTreeMap::new()
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    fs::write(folder.join("latin.yaml"), b"job: a\n# caf\xe9\nsinks: {}\n").unwrap();
    fs::write(folder.join("big.yaml"), "# a line of a comment\n".repeat(200_000)).unwrap();
    fs::create_dir(folder.join("folder.yaml")).unwrap();
    for (name, expected) in [
        ("latin.yaml", "latin.yaml:2:6: not UTF-8\n  2 | # caf\u{fffd}\n    |      ^\n  help: save the file as UTF-8"),
        ("big.yaml", "big.yaml: cannot be read: it has more than 4194304 bytes, which no configuration needs"),
        ("folder.yaml", "folder.yaml: cannot be read: it is a folder"),
        ("none.yaml", "none.yaml: cannot be read: there is no such file"),
    ] {
        assert_eq!(told(folder, Job::load(&folder.join(name), &env())), expected);
        assert_eq!(told(folder, Daemon::load(&folder.join(name), &env())), expected);
    }
}

#[test]
fn a_byte_order_mark_and_the_line_ends_of_windows_are_no_errors() {
    let job = Job::parse(&format!("\u{feff}job: a\r\n{}", END.replace('\n', "\r\n")), Path::new("a.yaml"), &env());
    assert_eq!(job.unwrap().name, "a");
    let wrong = Job::parse("job: A\r\nsinks: { o: { type: blackhole } }\r\n", Path::new("a.yaml"), &env());
    assert!(wrong.unwrap_err().to_string().contains("a.yaml:1:6: job: `A` is not a name\n  1 | job: A\n    |      ^"));
}

#[test]
fn errors_of_several_jobs_come_together_and_no_two_have_one_name() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    fs::create_dir(folder.join("jobs")).unwrap();
    fs::write(folder.join("jobs/a.yaml"), format!("job: hits\n{END}")).unwrap();
    fs::write(folder.join("jobs/b.yaml"), format!("trigger: 5\njob: b\n{END}")).unwrap();
    fs::write(folder.join("jobs/c.yaml"), format!("trigger: 5s\njob: hits\n{END}")).unwrap();
    fs::write(folder.join("tidemill.yaml"), "jobs: [\"jobs/*.yaml\", jobs/a.yaml]\n").unwrap();
    let daemon = Daemon::load(&folder.join("tidemill.yaml"), &env()).unwrap();
    assert_eq!(
        told(folder, daemon.load_jobs(&env())),
        "jobs/b.yaml:1:10: trigger: `5` has no unit\n  1 | trigger: 5\n    |          ^\n  \
         help: write a duration with its unit, like `5s`; units are `ms`, `s`, `m`, `h`, `d`\n\n\
         jobs/c.yaml:2:6: job: a job of the name `hits` is in jobs/a.yaml too\n  2 | job: hits\n    |      ^\n  \
         help: a job's name is its identity in checkpoints and sinks: give each its own"
    );
}

/// Each of two jobs in one consumer group would read a part of the records, and nothing would fail.
#[test]
fn no_two_jobs_are_in_one_consumer_group() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let job = |name: &str, brokers: &str, group: &str| {
        format!(
            "job: {name}\nsources:\n  in:\n    type: kafka\n    brokers: {brokers}\n    topics: t\n{group}sinks: {{ o: {{ type: blackhole }} }}\n"
        )
    };
    let shared = "    group: shared\n";
    let message = |file: &str, group: &str, other: &str| {
        format!(
            "{file}:7:12: sources.in.group: the source `in` of job `a` ({other}) is in the group `{group}` too\n  7 |     group: {group}\n    |            {}\n  \
             help: a group belongs to one job: each would read a part of the records. Give each a group of its own, or leave `group` out",
            "^"
        )
    };
    let both = |first: String, second: String| {
        fs::write(folder.join("a.yaml"), first).unwrap();
        fs::write(folder.join("b.yaml"), second).unwrap();
        let loaded = Job::load_all(&[folder.join("a.yaml"), folder.join("b.yaml")], &env());
        loaded.map(drop).map_err(|errors| errors.to_string().replace(&format!("{}/", folder.display()), ""))
    };
    let refused = Err(message("b.yaml", "shared", "a.yaml"));
    assert_eq!(both(job("a", "k:9092", shared), job("b", "k:9092", shared)), refused);
    assert_eq!(both(job("a", "k:9092, l:9092", shared), job("b", "[m:9092, 'l:9092']", shared)), refused);
    // The group that a job has by itself.
    let usual = Err(message("b.yaml", "tidemill-a", "a.yaml"));
    assert_eq!(both(job("a", "k:9092", ""), job("b", "k:9092", "    group: tidemill-a\n")), usual);
    for (first, second) in [
        (job("a", "k:9092", shared), job("b", "k:9092", "    group: other\n")),
        (job("a", "k:9092", ""), job("b", "k:9092", "")),
        (job("a", "k:9092", shared), job("b", "m:9092", shared)),
    ] {
        assert_eq!(both(first, second), Ok(()));
    }
}

const SECRET: &str = "hunter2-in-the-environment";

/// A right job all of whose texts come from outside.
fn all_secret() -> Job {
    let text = r#"
job: a
sources:
  s: { type: socket, connect: "${SECRET}:1", framing: { delimiter: "${SECRET}" } }
  d:
    type: directory
    path: "${SECRET}"
    include: "${SECRET}"
    exclude: ["${SECRET}"]
    on_done: { move: "${SECRET}-done" }
    codec: { type: csv, nulls: ["${SECRET}"] }
sinks:
  f: { type: files, path: "${SECRET}-f", partition_by: ["${SECRET}"], where: "a = '${SECRET}'" }
  db: { type: sqlite, path: "${SECRET}", table: "${SECRET}", mode: upsert, key: "${SECRET}" }
dead_letters: { type: files, path: "${SECRET}-dead" }
"#;
    let env = BTreeMap::from([("SECRET".to_owned(), SECRET.to_owned())]);
    Job::parse(text, Path::new("a.yaml"), &env).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn debug_output_shows_no_value_from_outside() {
    let job = all_secret();
    let shown = format!("{job:?} {:?} {:?} {:?} {:#?}", job.sources, job.sinks, job.dead_letters, job.sinks[0].filter);
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(shown.contains("Source 4:3: sources.s"), "{shown}");
    for kind in job.sources.iter().map(|source| format!("{:?} {:?}", source.kind, source.codec)) {
        assert!(!kind.contains("hunter2"), "{kind}");
    }
    for kind in job.sinks.iter().map(|sink| format!("{:?}", sink.kind)) {
        assert!(!kind.contains("hunter2"), "{kind}");
    }
    let env = BTreeMap::from([("SECRET".to_owned(), SECRET.to_owned())]);
    let text = "data_dir: \"${SECRET}\"\nowner: \"${SECRET}\"\nhttp: \"${SECRET}:1\"\njobs: [\"${SECRET}\"]\n";
    let daemon = Daemon::parse(text, Path::new("t.yaml"), &env).unwrap();
    let shown = format!("{daemon:?} {:?} {:?}", daemon.jobs, daemon.log);
    assert!(!shown.contains("hunter2"), "{shown}");
    assert_eq!(daemon.owner.as_deref(), Some(SECRET));
}

#[test]
fn later_messages_and_explain_show_what_is_written() {
    let job = all_secret();
    let filter = job.sinks[0].filter.as_ref().unwrap();
    let message = job.render(&filter.at, &format!("`{}`: no column `a`", filter.value));
    assert_eq!(
        message,
        "a.yaml:13:78: sinks.f.where: `***` does not fit the rows that come here\n  \
         13 |   f: { type: files, path: \"${SECRET}-f\", partition_by: [\"${SECRET}\"], where: \"a = '${SECRET}'\" }\n     \
         |                                                                              ^\n  \
         help: it comes from the environment or a file and is not shown"
    );
    assert_eq!(job.shown("sinks.db.table", SECRET), "${SECRET}");
    assert_eq!(job.shown("sinks.f.partition_by[0]", SECRET), "${SECRET}");
    assert_eq!(job.shown("job", "a"), "a");
    assert_eq!(job.shown("sinks.db.mode", "upsert"), "upsert");
}

#[test]
fn large_wrong_files_are_answered_in_time() {
    let many = |one: &dyn Fn(usize) -> String| (0..15_000).map(one).collect::<String>();
    for (name, text) in [
        ("brackets", "[".repeat(1_000_000)),
        ("braces", "{ a: ".repeat(500_000)),
        ("keys", many(&|n| format!("key{n}: x\n"))),
        ("one key", many(&|_| "key: x\n".to_owned())),
        ("sinks", format!("job: a\nsinks:\n{}", many(&|n| format!("  s{n}: 5\n")))),
        ("steps", format!("job: a\nsteps:\n{}", many(&|_| "  - x\n".to_owned()))),
        (
            "named",
            format!(
                "job: a\nsteps:\n{}",
                (0..20_000).map(|n| format!("  - {{ name: s{n}, trim: a }}\n")).collect::<String>()
            ),
        ),
        ("a long line", format!("job: {}", "a ".repeat(2_000_000))),
        ("anchors", format!("job: a\nsteps: {}", "&a [ *a, ".repeat(10_000))),
        ("quotes", "job: \"".repeat(100_000)),
        ("selected", format!("job: a\nsteps:\n  - select: [{}]\n", many(&|n| format!("c{n}, ")))),
    ] {
        let started = Instant::now();
        let errors = Job::parse(&text, Path::new("a.yaml"), &env()).unwrap_err();
        let shown = errors.to_string();
        println!("{name}: {} errors, {} bytes, {:?}", errors.iter().count(), shown.len(), started.elapsed());
        assert!(started.elapsed().as_secs() < 60, "{name}: {:?}", started.elapsed());
    }
}
