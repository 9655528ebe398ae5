//! What an operator relies on: rejects that are seen and may stop a job, commands that can be pasted, jobs that are started
//! again, and `--once` that comes to an end.

use std::{fs, time::Duration};

use tidemill_tests::{
    Daemon, Folder, Rows, Run,
    daemon::tidemill,
    eventually,
    feed::{Feeder, Pace},
};

/// A job over a folder, with more keys and steps.
fn job(more: &str) -> String {
    format!(
        "job: watched\ntrigger: asap\n{more}sources: {{ in: {{ type: directory, path: in, settle: 10ms, codec: json, schema: {{ n: int64 }} }} }}\n\
         sinks: {{ out: {{ type: files, path: out, codec: json }} }}\n"
    )
}

/// So many records, of which the first `broken` are none.
fn records(numbers: std::ops::Range<usize>, broken: usize) -> String {
    let first = numbers.start;
    let line = |n: usize| if n - first < broken { format!("broken {n}\n") } else { format!("{{\"n\":{n}}}\n") };
    numbers.map(line).collect()
}

fn stored(folder: &Folder) -> usize {
    Rows::files(&folder.join("out")).len()
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "should say {word:?}:\n{text}");
    }
}

/// The state of the job's lane, and the reason.
fn lane(daemon: &Daemon) -> (String, String) {
    let Ok(answer) = daemon.get("/jobs/watched") else { return Default::default() };
    let lane = answer.json()["lanes"]["all"].clone();
    let text = |key: &str| lane[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("reason"))
}

fn wait_state(daemon: &Daemon, state: &str) -> String {
    eventually(&format!("the job to be {state}"), || match lane(daemon) {
        (found, reason) if found == state => Ok(reason),
        other => Err(format!("{other:?}\n{}", daemon.stderr())),
    })
}

/// A command of a message, run as it stands.
#[track_caller]
fn paste(folder: &Folder, message: &str, with: &str) -> String {
    let command = message.split('`').find(|part| part.starts_with("tidemill ") && part.contains(with));
    let command = command.unwrap_or_else(|| panic!("no command with {with} in:\n{message}"));
    let words: Vec<_> = command.split(' ').skip(1).collect();
    let done = tidemill(folder, &words);
    let said = [done.stdout, done.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(done.status.success(), "{command}: {said}");
    said
}

#[test]
fn once_may_fail_where_something_was_rejected() {
    let folder = Folder::new();
    folder.publish("in/a.json", records(0..10, 0));
    let run = Run::new(&folder).job(&job("")).arg("--fail-on-rejects");
    run.once().expect_success();
    folder.publish("in/b.json", records(10..20, 2));
    let mut rejected = run.once();
    rejected.expect_code(65);
    says(
        &rejected.stderr(),
        &["2 of 10 records rejected: 2 json (decode)", "in `broken 10`", "data/watched/dead-letters"],
    );
    assert_eq!(stored(&folder), 18, "all was done nevertheless");
    run.once().expect_success();
}

/// The limit is over the last thousand records, holds across a restart, and stops the batch before it is written. The command
/// that leaves the batch out is in the message.
#[test]
fn too_many_rejects_stop_the_job_with_the_batch_open() {
    let folder = Folder::new();
    let limited = |limit: &str| Run::new(&folder).job(&job(&format!("max_rejected: {limit}\n")));
    folder.publish("in/a.json", records(0..1000, 40));
    let run = limited("5%");
    run.once().expect_success();
    assert_eq!(stored(&folder), 960);
    // 51 of the last 1,011 would be more than 5 %: with those of the batch before, which another process counted.
    folder.publish("in/b.json", records(1000..1011, 11));
    for _ in 0..2 {
        let mut stopped = run.once();
        stopped.expect_code(1);
        says(
            &stopped.stderr(),
            &[
                "51 of the last 1011 records were rejected, more than `max_rejected: 5%` allows",
                "11 json (decode)",
                "Nothing of this batch is written",
                "`tidemill restart watched",
            ],
        );
        assert_eq!(stored(&folder), 960, "nothing of the batch is there");
        assert_eq!(Rows::files(&folder.join("data/watched/dead-letters")).len(), 40);
    }
    let mut daemon = run.start();
    let reason = wait_state(&daemon, "stopped");
    says(&reason, &["rewind --to in=2:0 --yes"]);
    let said = paste(&folder, &reason, "rewind");
    says(&said, &["forward to 2:0, which is newer: what lies between is skipped"]);
    wait_state(&daemon, "running");
    folder.publish("in/c.json", records(1011..1021, 0));
    eventually("what comes after", || if stored(&folder) == 970 { Ok(()) } else { Err(stored(&folder).to_string()) });
    daemon.term();
    daemon.expect_success();
}

/// The cause is fixed: a hangup, or the command, starts the job again; jobs that run are left alone.
#[test]
fn what_stopped_is_started_again_by_a_hangup_and_by_the_command() {
    let folder = Folder::new();
    folder.publish("in/a.json", records(0..10, 3));
    let run = Run::new(&folder).job(&job("max_rejected: 0\n"));
    let mut daemon = run.start();
    wait_state(&daemon, "stopped");
    // Nothing is fixed: it stops again.
    daemon.hup();
    eventually("the job to be started again", || {
        let said = daemon.stderr();
        if said.contains("was stopped: started again") { Ok(()) } else { Err(said) }
    });
    let reason = wait_state(&daemon, "stopped");
    assert_eq!(daemon.metric("tidemill_config_last_reload_successful", &[]), 1.0);
    // A wrong text is not taken, and is seen.
    fs::write(folder.join("job.yaml"), "job: [\n").unwrap();
    daemon.hup();
    eventually("the failed reload", || {
        let failed = (
            daemon.metric("tidemill_config_last_reload_successful", &[]),
            daemon.metric("tidemill_config_reload_failures_total", &[]),
        );
        if failed == (0.0, 1.0) { Ok(()) } else { Err(format!("{failed:?}")) }
    });
    let refused = tidemill(&folder, &["restart", "watched", "--data-dir", "data"]);
    assert!(!refused.status.success(), "{refused:?}");
    // The limit is raised: the command takes the new text.
    fs::write(folder.join("job.yaml"), job("max_rejected: 3\n")).unwrap();
    says(&reason, &["`tidemill restart watched --data-dir "]);
    says(&paste(&folder, &reason, "restart"), &["job watched was started again"]);
    eventually("the rows", || if stored(&folder) == 7 { Ok(()) } else { Err(daemon.stderr()) });
    let unknown = tidemill(&folder, &["restart", "nobody", "--data-dir", "data"]);
    says(&String::from_utf8_lossy(&unknown.stderr), &["the daemon runs no job nobody; it runs watched"]);
    daemon.term();
    daemon.expect_success();
    let alone = tidemill(&folder, &["restart", "watched", "--data-dir", "data"]);
    says(&String::from_utf8_lossy(&alone.stderr), &["no daemon has the data dir"]);
}

/// A batch that kills the process can be left out by the command in the message, although its files are in no sink's list.
#[test]
fn the_command_that_leaves_a_poisoned_batch_out_works_as_it_is() {
    let folder = Folder::new();
    folder.publish("in/a.json", records(0..10, 0));
    let run = Run::new(&folder).job(&job("")).failpoint("computing:watched:1:kill");
    (0..3).for_each(|_| run.start().expect_killed());
    let mut daemon = run.start();
    let reason = wait_state(&daemon, "stopped");
    says(&reason, &["kills the process", "rewind --to in=1:0 --yes"]);
    daemon.term();
    daemon.expect_success();
    paste(&folder, &reason, "rewind");
    folder.publish("in/b.json", records(10..15, 0));
    Run::new(&folder).job(&job("")).once().expect_success();
    assert_eq!(stored(&folder), 5, "the batch was left out, and what came after was not");
}

/// Beside a daemon whose data dir knows an older job, `show` shows those that it runs.
#[test]
fn show_passes_over_a_job_that_the_daemon_does_not_run() {
    let folder = Folder::new();
    folder.publish("in/a.json", records(0..10, 0));
    let older = job("").replace("job: watched", "job: older").replace("path: out", "path: out-older");
    Run::new(&folder).job(&older).once().expect_success();
    let mut daemon = Run::new(&folder).job(&job("")).spawn();
    let shown = tidemill(&folder, &["checkpoint", "show", "--data-dir", "data"]);
    assert!(shown.status.success(), "{shown:?}");
    says(&String::from_utf8_lossy(&shown.stdout), &["job watched, lane all"]);
    says(&String::from_utf8_lossy(&shown.stderr), &["job older: the daemon runs no job older"]);
    daemon.term();
    daemon.expect_success();
}

#[test]
fn once_keeps_the_trigger_of_a_live_source_and_gives_up_on_a_server_that_is_not_there() {
    let folder = Folder::new();
    let live = |address: &str, trigger: &str| {
        format!(
            "job: watched\ntrigger: {trigger}\nsources: {{ in: {{ type: socket, connect: \"{address}\", codec: json, schema: {{ n: int64 }} }} }}\n\
             sinks: {{ db: {{ type: sqlite, path: rows.db, table: rows }} }}\n"
        )
    };
    let lines = (0..60).map(|n| format!("{{\"n\":{n}}}").into_bytes()).collect();
    let feeder = Feeder::serve(lines, b"\n", Pace::Every(Duration::from_millis(20)));
    let mut done = Run::new(&folder).job(&live(&feeder.address().to_string(), "500ms")).once();
    done.expect_success();
    assert_eq!(Rows::sqlite(&folder.join("rows.db"), "SELECT n FROM rows").len(), 60);
    let said = done.stderr();
    let batches = said.split("batches=").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok());
    assert!(
        batches.is_some_and(|batches| (2..=8).contains(&batches)),
        "60 records in 1.2 s, a batch each 0.5 s:\n{said}"
    );
    // A trigger of an hour does not hold up the end.
    let feeder = Feeder::serve(vec![b"{\"n\":60}".to_vec()], b"\n", Pace::Full);
    let run = Run::new(&folder).job(&live(&feeder.address().to_string(), "1h")).limit(Duration::from_secs(20));
    run.once().expect_success();
    assert_eq!(Rows::sqlite(&folder.join("rows.db"), "SELECT n FROM rows").len(), 61);
    // Nobody listens there.
    let run = Run::new(&folder).job(&live("127.0.0.1:9", "1s")).arg("--timeout").arg("1s");
    let mut gone = run.limit(Duration::from_secs(20)).once();
    gone.expect_code(1);
    says(
        &gone.stderr(),
        &["gave up after 1s (--timeout): source in: cannot connect to 127.0.0.1:9", "job watched failed after"],
    );
}

#[test]
fn the_daemons_file_is_validated_with_the_jobs_that_it_names() {
    let folder = Folder::new();
    folder.write("jobs/a.yaml", job(""));
    folder.write("tidemill.yaml", "data_dir: data\njobs: [\"jobs/*.yaml\"]\n");
    let validate = |file: &str| {
        let done = tidemill(&folder, &["validate", "--config", file]);
        let said = [done.stdout, done.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        (done.status.code(), said)
    };
    let (code, said) = validate("tidemill.yaml");
    assert_eq!(code, Some(0), "{said}");
    says(&said, &["tidemill.yaml: the daemon's file is valid; it names 1 job", "jobs/a.yaml: job watched is valid"]);
    folder.write("wrong.yaml", "data_dri: data\njobs: [\"jobs/*.yaml\"]\n");
    let (code, said) = validate("wrong.yaml");
    assert_eq!(code, Some(78), "{said}");
    says(&said, &["wrong.yaml:1:", "`data_dri`", "`data_dir`"]);
    folder.write("jobs/b.yaml", job("").replace("n: int64", "n: int65"));
    let (code, said) = validate("tidemill.yaml");
    assert_eq!(code, Some(78), "{said}");
    says(&said, &["jobs/b.yaml:", "int65"]);
    let schema = tidemill(&folder, &["schema", "--config"]);
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).unwrap();
    assert!(schema["properties"]["memory"].is_object() && schema["$id"].is_string(), "{schema}");
}
