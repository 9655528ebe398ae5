//! One job, named in every way in which a job can be named: files come by events and not by the scan, and what sources and
//! sinks write lies where the job's file says.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use tidemill_tests::{Folder, Rows, Run, daemon::tidemill, eventually, oracle};

/// Everything is scanned every five seconds; an event is there in milliseconds.
const BEFORE_THE_SCAN: Duration = Duration::from_millis(2_500);

const JOB: &str = "
job: paths
trigger: asap
sources:
  in: { type: directory, path: ./x/../in, settle: 0s, on_done: { move: ./done }, codec: json, schema: { n: int64 } }
sinks:
  db: { type: sqlite, path: sub/../rows.db, table: rows }
  files: { type: files, path: ./files, codec: json }
dead_letters: { type: files, path: ./dead, codec: json }
";

/// Runs the job by this name; the second file must be there before the next scan.
fn comes_by_an_event(folder: &Folder, run: &Run, way: &str) {
    let jobs = folder.join("jobs");
    let n = |file: usize| format!("{{\"n\":{file}}}\n");
    let publish = |file: usize| {
        // Where the source looks is not where the test knows it by.
        let inbox = jobs.join("in").canonicalize().unwrap();
        let hidden = inbox.join(format!(".{file}"));
        fs::write(&hidden, n(file) + "broken\n").unwrap();
        fs::rename(hidden, inbox.join(format!("{file}.json"))).unwrap();
    };
    let arrived = |files: usize| {
        let rows = Rows::try_sqlite(&jobs.join("rows.db"), "SELECT n FROM rows").map_err(|error| error.to_string())?;
        rows.compare(&Rows::json(&(0..files).map(n).collect::<String>()))
    };
    let mut daemon = run.start();
    if !jobs.join("in").exists() {
        daemon.wait_status("/jobs", 200);
        eventually("the folder to be waited for", || {
            let said = daemon.stderr();
            // By its whole path, whatever the job was called by.
            let whole = jobs.join("in").display().to_string();
            if said.contains(&format!("look into the folder {whole}")) { Ok(()) } else { Err(said) }
        });
        fs::create_dir(jobs.join("in")).unwrap();
    }
    publish(0);
    eventually("the first file", || arrived(1));
    // The watch is on, and the scan that found the first file was just now.
    let since = Instant::now();
    publish(1);
    eventually("the second file", || arrived(2));
    let latency = since.elapsed();
    println!("{way}: {latency:?}");
    assert!(latency < BEFORE_THE_SCAN, "{way}: it took {latency:?}, which is the scan's time");
    daemon.term();
    daemon.expect_success();
    let (both, none) = (Rows::json(&(n(0) + &n(1))), Rows::json(""));
    Rows::files(&jobs.join("files")).assert_same(&both, way);
    assert_ne!(Rows::files(&jobs.join("dead")).len(), 0, "{way}");
    assert_eq!(oracle::files(&jobs.join("done")).len(), 2, "{way}");
    Rows::files(&jobs.join("in")).assert_same(&none, way);
}

fn folder() -> Folder {
    let folder = Folder::new();
    folder.write("jobs/job.yaml", JOB);
    folder
}

#[test]
fn files_come_by_events_however_the_job_is_named() {
    let name = |folder: &Folder| folder.path().file_name().unwrap().to_str().unwrap().to_owned();
    type Way = (&'static str, fn(&Path), fn(&Folder, String) -> String);
    let ways: [Way; 7] = [
        ("from another folder", |_| {}, |_, _| "jobs/job.yaml".into()),
        ("by ./", |_| {}, |_, _| "./jobs/./job.yaml".into()),
        ("by ..", |_| {}, |_, name| format!("../{name}/jobs/job.yaml")),
        ("by its whole path", |_| {}, |folder, _| folder.join("jobs/job.yaml").display().to_string()),
        (
            "by a link in its folder",
            |root| symlink("job.yaml", root.join("jobs/alias.yaml")).unwrap(),
            |_, _| "jobs/alias.yaml".into(),
        ),
        (
            "through a folder that is a link",
            |root| symlink("jobs", root.join("link")).unwrap(),
            |_, _| "link/job.yaml".into(),
        ),
        (
            "whose source is a link to a folder",
            |root| {
                fs::remove_dir(root.join("jobs/in")).unwrap();
                fs::create_dir(root.join("far")).unwrap();
                symlink("../far", root.join("jobs/in")).unwrap();
            },
            |_, _| "jobs/job.yaml".into(),
        ),
    ];
    for (way, prepare, file) in ways {
        let folder = folder();
        fs::create_dir(folder.join("jobs/in")).unwrap();
        prepare(folder.path());
        let run = Run::new(&folder).job_file(file(&folder, name(&folder)));
        comes_by_an_event(&folder, &run, way);
    }
}

#[test]
fn files_come_by_events_into_a_folder_that_was_not_there() {
    let folder = folder();
    comes_by_an_event(&folder, &Run::new(&folder).job_file("jobs/job.yaml"), "made later");
}

/// In the folder of the job, as the README has it: the data dir is made there, and commands in messages name it by its
/// whole path. `checkpoint` finds the job again, by the name that it was run by.
#[test]
fn by_its_bare_name_in_its_own_folder() {
    let folder = Folder::new();
    folder.write("real/job.yaml", JOB);
    fs::create_dir_all(folder.join("jobs/in")).unwrap();
    symlink("../real/job.yaml", folder.join("jobs/job.yaml")).unwrap();
    folder.publish("jobs/in/0.json", "{\"n\":0}\n");
    let out = tidemill_in(&folder, "jobs", &["run", "job.yaml", "--once"]);
    assert!(out.contains(&format!("data_dir={}", folder.join("jobs/tidemill-data").display())), "{out}");
    // Its paths begin where the link is, for `checkpoint` too.
    let data = folder.join("jobs/tidemill-data").display().to_string();
    let shown = tidemill(&folder, &["checkpoint", "show", "--data-dir", &data, "--json"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("\"in\": \"1:0\""), "{shown}");
    assert!(!folder.join("real/rows.db").exists() && folder.join("jobs/rows.db").exists());
}

fn tidemill_in(folder: &Folder, below: &str, arguments: &[&str]) -> String {
    let mut command = std::process::Command::new(tidemill_tests::binary::tidemill());
    let done = command.args(arguments).current_dir(folder.join(below)).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
    said
}
