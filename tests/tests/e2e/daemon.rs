//! One daemon with several jobs, as an operator meets it: jobs that fail beside jobs that work, reload, what HTTP and the
//! logs say, and that waiting costs nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::TcpListener,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tidemill_tests::{Daemon, Folder, Rows, Run, eventually, feed, free_address, needs};

fn files_job(name: &str, more: &str) -> String {
    format!(
        "job: {name}\ntrigger: asap\nsources: {{ in: {{ type: directory, path: in-{name}, settle: 10ms, codec: json, schema: {{ n: int64 }} }} }}\n\
         {more}sinks: {{ out: {{ type: files, path: out-{name}, codec: json }} }}\n"
    )
}

fn publish(folder: &Folder, job: &str, name: &str, numbers: std::ops::Range<usize>) {
    let lines: Vec<_> = numbers.map(|n| format!("{{\"n\": {n}}}")).collect();
    folder.publish(format!("in-{job}/{name}.json"), lines.join("\n") + "\n");
}

fn expect(folder: &Folder, job: &str, count: usize) {
    let lines: Vec<_> = (0..count).map(|n| format!("{{\"n\": {n}}}")).collect();
    let expected = Rows::json(&lines.join("\n"));
    eventually(&format!("{count} rows of job {job}"), || {
        Rows::files(&folder.join(format!("out-{job}"))).select(&["n"]).compare(&expected)
    });
}

/// A daemon whose jobs are those of a glob in its own file.
fn globbed(folder: &Folder) -> Run {
    let config = folder.write("tidemill.yaml", "jobs: [\"jobs/*.yaml\"]\n");
    Run::new(folder).arg("--config").arg(config)
}

/// The state of each job's lane, and what is said of it.
fn states(daemon: &Daemon) -> BTreeMap<String, (String, String)> {
    let Ok(answer) = daemon.get("/jobs") else { return BTreeMap::new() };
    let jobs = answer.json()["jobs"].clone();
    let state = |job: &Value| {
        let lane = &job["lanes"]["all"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&job["job"]), (text(&lane["state"]), text(&lane["reason"])))
    };
    jobs.as_array().unwrap().iter().map(state).collect()
}

fn wait_state(daemon: &Daemon, job: &str, state: &str) -> String {
    eventually(&format!("job {job} to be {state}"), || match states(daemon).remove(job) {
        Some((found, reason)) if found == state => Ok(reason),
        other => Err(format!("{other:?}\n{}", daemon.stderr())),
    })
}

/// Seconds of CPU time that the process has used.
fn cpu_seconds(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

/// A loop that spins takes a core; one that waits, next to nothing.
fn assert_idle(daemon: &Daemon, what: &str) {
    let before = cpu_seconds(daemon.pid());
    thread::sleep(Duration::from_secs(2));
    let used = cpu_seconds(daemon.pid()) - before;
    assert!(used < 0.5, "{what}: {used} s of CPU time in 2 s of waiting");
}

#[test]
fn a_job_that_fails_stops_no_other() {
    let folder = Folder::new();
    let occupied = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = occupied.local_addr().unwrap();
    folder.write("jobs/good.yaml", files_job("good", ""));
    folder.write(
        "jobs/stopped.yaml",
        files_job(
            "stopped",
            "steps: [{ cast: { n: boolean } }, { name: strict, filter: \"1 / (n - n) = 1\", on_error: fail }]\n",
        )
        .replace("{ cast: { n: boolean } }, ", ""),
    );
    folder.write(
        "jobs/retrying.yaml",
        format!(
            "job: retrying\ntrigger: asap\nsources: {{ in: {{ type: socket, listen: \"{address}\", codec: json, schema: {{ n: int64 }} }} }}\n\
             sinks: {{ out: {{ type: files, path: out-retrying, codec: json }} }}\n"
        ),
    );
    // A folder where the table's file should be.
    fs::create_dir_all(folder.join("rows.db")).unwrap();
    folder.write(
        "jobs/wrong-sink.yaml",
        files_job("wrong-sink", "").replace(
            "{ type: files, path: out-wrong-sink, codec: json }",
            "{ type: sqlite, path: ../rows.db, table: rows }",
        ),
    );
    for job in ["good", "stopped", "wrong-sink"] {
        fs::create_dir_all(folder.join(format!("jobs/in-{job}"))).unwrap();
    }
    let daemon = globbed(&folder).start();
    eventually("HTTP", || daemon.get("/live").map_err(|e| e.to_string()));
    folder.publish("jobs/in-good/a.json", "{\"n\": 0}\n");
    folder.publish("jobs/in-stopped/a.json", "{\"n\": 0}\n");
    let good = |count: usize| {
        eventually("the good job's rows", || {
            let found = Rows::files(&folder.join("jobs/out-good")).len();
            if found == count { Ok(()) } else { Err(found.to_string()) }
        });
    };
    good(1);
    let stopped = wait_state(&daemon, "stopped", "stopped");
    assert!(
        stopped.contains("strict") && stopped.contains("in [0:0") && stopped.contains("batch 1"),
        "the stop names step, batch and spans: {stopped}"
    );
    let retrying = wait_state(&daemon, "retrying", "retrying");
    assert!(retrying.contains(&address.to_string()), "{retrying}");
    eventually("the wrong sink to be told of", || match &states(&daemon)["wrong-sink"] {
        (state, reason) if reason.contains("rows.db") => Ok(state.clone()),
        other => Err(format!("{other:?}")),
    });
    // The daemon lives, is not ready, and says whom that is about.
    let ready = daemon.get("/ready").unwrap();
    let reasons = ready.json()["reasons"].clone();
    let named: Vec<_> = reasons.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!((ready.status, named), (503, vec!["retrying", "stopped", "wrong-sink"]), "{reasons}");
    assert_eq!(daemon.get("/live").unwrap().status, 200);
    assert_eq!(daemon.metric("tidemill_job_up", &["job=\"good\""]), 1.0);
    assert_eq!(daemon.metric("tidemill_job_up", &["job=\"stopped\""]), 0.0);
    for n in 1..6 {
        folder.publish(format!("jobs/in-good/{n}.json"), format!("{{\"n\": {n}}}\n"));
        good(n + 1);
    }
    assert_idle(&daemon, "one job at rest, one stopped, two that retry");
    // What can be retried goes on by itself when its cause is gone.
    drop(occupied);
    wait_state(&daemon, "retrying", "running");
    feed::send(address, &[b"{\"n\": 7}".to_vec()], b"\n");
    eventually("the job that retried to work", || {
        let found = Rows::files(&folder.join("jobs/out-retrying")).column("n");
        if found == ["7"] { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

#[test]
fn a_panic_in_one_job_is_that_jobs_failure_and_is_tried_again() {
    // The loop itself, then a commit.
    for failpoint in ["plan:1:panic", "before-anchor:1:panic", "after-anchor:1:panic"] {
        let folder = Folder::new();
        publish(&folder, "panics", "a", 0..10);
        fs::create_dir(folder.join("in-good")).unwrap();
        let run = Run::new(&folder).job(&files_job("panics", "")).job(&files_job("good", ""));
        let mut daemon = run.failpoint(failpoint).start();
        expect(&folder, "panics", 10);
        publish(&folder, "good", "a", 0..10);
        expect(&folder, "good", 10);
        daemon.wait_ready();
        eventually("the panic to be told", || match daemon.stderr() {
            log if log.contains("in the program itself") => Ok(()),
            log => Err(log),
        });
        daemon.term();
        daemon.expect_success();
    }
}

#[test]
fn a_record_that_kills_the_process_stops_its_lane_after_three_tries_and_no_other_job() {
    let folder = Folder::new();
    publish(&folder, "poisoned", "a", 0..10);
    let run = Run::new(&folder).job(&files_job("poisoned", "")).job(&files_job("good", ""));
    let run = run.failpoint("computing:poisoned:1:kill");
    for death in 0..3 {
        // What is read grows from try to try, as a socket's spool does: it is the same batch all the same.
        publish(&folder, "poisoned", &format!("more-{death}"), 0..1);
        run.start().expect_killed();
    }
    fs::create_dir(folder.join("in-good")).unwrap();
    let mut daemon = run.start();
    let reason = wait_state(&daemon, "poisoned", "stopped");
    for part in ["kills the process", "batch 1: in [0:0, ", "--job poisoned rewind"] {
        assert!(reason.contains(part), "{part:?} is not in: {reason}");
    }
    publish(&folder, "good", "a", 0..10);
    expect(&folder, "good", 10);
    assert!(daemon.get("/ready").unwrap().body.contains("kills the process"));
    daemon.term();
    daemon.expect_success();
    // It stays stopped, and dies of it no more.
    let daemon = run.start();
    wait_state(&daemon, "poisoned", "stopped");
    drop(daemon);
    // The step is mended: the batch is done, nothing is lost.
    let mended = Run::new(&folder).job(&files_job("poisoned", "")).job(&files_job("good", ""));
    mended.once().expect_success();
    assert_eq!(Rows::files(&folder.join("out-poisoned")).len(), 13);
}

#[test]
fn three_kills_by_somebody_else_stop_nothing() {
    let folder = Folder::new();
    publish(&folder, "good", "a", 0..10);
    let run = Run::new(&folder).job(&files_job("good", ""));
    for _ in 0..4 {
        // The child's own failpoint is another one: it comes back alive.
        run.clone().failpoint("compute:1:kill").start().expect_killed();
    }
    run.once().expect_success();
    assert_eq!(Rows::files(&folder.join("out-good")).len(), 10);
}

#[test]
fn sighup_takes_new_changed_and_removed_jobs_and_keeps_what_is_wrong_as_it_was() {
    let folder = Folder::new();
    let at = |name: &str| format!("jobs/{name}.yaml");
    let job = |name: &str, more: &str| {
        files_job(name, more).replace("path: in-", "path: ../in-").replace("path: out-", "path: ../out-")
    };
    for name in ["kept", "changed", "removed"] {
        folder.write(at(name), job(name, ""));
        publish(&folder, name, "a", 0..5);
    }
    let mut daemon = globbed(&folder).spawn();
    ["kept", "changed", "removed"].iter().for_each(|name| expect(&folder, name, 5));
    let batches = |job: &str| daemon.get(&format!("/jobs/{job}")).unwrap().json()["batches"].clone();
    eventually("the batch to be counted", || if batches("kept") == 1 { Ok(()) } else { Err(String::new()) });

    folder.write(at("changed"), job("changed", "steps: [{ filter: n < 8 }]\n"));
    fs::remove_file(folder.join(at("removed"))).unwrap();
    folder.write(at("new"), job("new", ""));
    publish(&folder, "new", "a", 0..5);
    daemon.hup();
    expect(&folder, "new", 5);
    eventually("the removed job to go", || match daemon.get("/jobs/removed").unwrap().status {
        404 => Ok(()),
        status => Err(status.to_string()),
    });
    wait_state(&daemon, "changed", "running");
    publish(&folder, "changed", "b", 5..10);
    expect(&folder, "changed", 8);
    let metrics = daemon.get("/metrics").unwrap().body;
    assert!(metrics.contains("job=\"kept\"") && !metrics.contains("job=\"removed\""), "{metrics}");
    publish(&folder, "removed", "b", 5..10);
    assert_eq!(batches("kept"), 1, "a job that did not change was not started anew");

    // Wrong in every way: no YAML, an unknown key, a wrong column, a name that is taken. All run on as they were.
    folder.write(at("kept"), "job: [\n");
    folder.write(at("new"), job("new", "steps: [{ filter: m < 3 }]\n"));
    folder.write(at("zz-second"), job("changed", ""));
    daemon.hup();
    eventually("all three to be told", || {
        let log = daemon.stderr();
        let told = ["kept.yaml:", "new.yaml:", "a job of the name `changed`"].iter().all(|part| log.contains(part));
        if told { Ok(()) } else { Err(log) }
    });
    publish(&folder, "kept", "b", 5..10);
    publish(&folder, "new", "b", 5..10);
    expect(&folder, "kept", 10);
    expect(&folder, "new", 10);
    assert_eq!(Rows::files(&folder.join("out-removed")).len(), 5, "a job that was removed does not run");
    daemon.wait_ready();

    // The list itself is wrong: everything runs on.
    folder.write("tidemill.yaml", "jbos: []\n");
    daemon.hup();
    eventually("the list's error", || {
        let log = daemon.stderr();
        if log.contains("all jobs run on as they were") { Ok(()) } else { Err(log) }
    });
    publish(&folder, "kept", "c", 10..15);
    expect(&folder, "kept", 15);
    daemon.term();
    daemon.expect_success();
}

/// Every metric that `job.md` names, with its labels.
const METRICS: [(&str, &str); 15] = [
    ("tidemill_records_received_total", "job,source"),
    ("tidemill_bytes_received_total", "job,source"),
    ("tidemill_records_rejected_total", "job,reason,step"),
    ("tidemill_records_written_total", "job,sink"),
    ("tidemill_batches_total", "job"),
    ("tidemill_batch_duration_seconds_bucket", "job,le"),
    ("tidemill_batch_phase_seconds_bucket", "job,le,phase"),
    ("tidemill_source_lag_records", "job,source"),
    ("tidemill_source_lag_seconds", "job,source"),
    ("tidemill_sink_retries_total", "job,sink"),
    ("tidemill_spool_bytes", "job,source"),
    ("tidemill_checkpoint_duration_seconds_bucket", "job,le"),
    ("tidemill_last_batch_timestamp_seconds", "job"),
    ("tidemill_build_info", "version"),
    ("process_resident_memory_bytes", ""),
];

/// A counter that comes into being with its first event has had no event as far as `increase()` knows.
#[test]
fn every_metric_is_there_before_the_first_event() {
    let folder = Folder::new();
    let job = format!(
        "job: idle\nsources: {{ in: {{ type: socket, listen: \"{}\", codec: json, schema: {{ n: int64 }} }} }}\n\
         sinks:\n  db: {{ type: sqlite, path: rows.db, table: rows }}\n",
        free_address()
    );
    let mut daemon = Run::new(&folder).job(&job).spawn();
    daemon.wait_ready();
    eventually("every metric", || {
        let text = daemon.get("/metrics").unwrap().body;
        let there = |name: &str| {
            text.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        };
        let missing: Vec<_> = METRICS.iter().map(|(name, _)| name).filter(|name| !there(name)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("no {missing:?} in:\n{text}")) }
    });
    let text = daemon.get("/metrics").unwrap().body;
    for series in ["records_received_total{job=\"idle\",source=\"in\"}", "sink_retries_total{job=\"idle\",sink=\"db\"}"]
    {
        assert!(text.contains(&format!("tidemill_{series} 0\n")), "no {series} in:\n{text}");
    }
    daemon.term();
    daemon.expect_success();
}

/// A sink that refuses a claim is a sink that is tried again.
#[test]
fn retries_count_where_a_sink_is_down_before_the_first_commit() {
    let folder = Folder::new();
    fs::create_dir(folder.join("in")).unwrap();
    let job = "job: down\nsources: { in: { type: directory, path: in, codec: json, schema: { n: int64 } } }\n\
         sinks:\n  db: { type: sqlite, path: rows.db, table: rows }\n";
    let mut daemon = Run::new(&folder).job(job).failpoint("sqlite.claim-before-commit:1:error").spawn();
    eventually("a retry", || {
        let count = daemon.metric("tidemill_sink_retries_total", &["sink=\"db\""]);
        if count >= 1.0 { Ok(()) } else { Err(format!("{count}\n{}", daemon.stderr())) }
    });
    daemon.term();
    daemon.expect_success();
}

#[test]
fn metrics_have_the_names_and_labels_that_are_promised_and_count_right() {
    let folder = Folder::new();
    let address = free_address();
    let job = format!(
        "job: shop\ntrigger: asap\nsources: {{ in: {{ type: socket, listen: \"{address}\", codec: json, schema: {{ n: int64 }} }} }}\n\
         steps: [{{ name: small, filter: n < 100 }}]\nsinks:\n  db: {{ type: sqlite, path: rows.db, table: rows }}\n  out: {{ type: files, path: out, codec: json }}\n"
    );
    // One commit of the first fails once: a retry to count.
    let mut daemon = Run::new(&folder).job(&job).failpoint("sqlite.before-commit:2:error").spawn();
    let mut lines: Vec<_> = (0..120).map(|n| format!("{{\"n\": {n}}}").into_bytes()).collect();
    lines.push(b"{broken".to_vec());
    feed::send(address, &lines, b"\n");
    eventually("the batch to be counted", || {
        let count = daemon.metric("tidemill_records_received_total", &["job=\"shop\"", "source=\"in\""]);
        if count == 121.0 { Ok(()) } else { Err(format!("{count}\n{}", daemon.stderr())) }
    });
    let text = daemon.get("/metrics").unwrap();
    assert!(text.head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{}", text.head);
    for (name, labels) in METRICS {
        let line =
            text.body.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let line = line.unwrap_or_else(|| panic!("no {name} in:\n{}", text.body));
        let inside = line.split_once('{').map_or("", |(_, rest)| rest.split_once('}').unwrap().0);
        let found: BTreeSet<_> =
            inside.split(',').filter_map(|pair| pair.split_once('=')).map(|(key, _)| key).collect();
        assert_eq!(found.into_iter().collect::<Vec<_>>().join(","), labels, "{line}");
    }
    for (name, labels, value) in [
        ("tidemill_records_written_total", "sink=\"db\"", 100.0),
        ("tidemill_records_written_total", "sink=\"out\"", 100.0),
        ("tidemill_records_written_total", "sink=\"dead-letters\"", 1.0),
        ("tidemill_records_rejected_total", "reason=\"json\"", 1.0),
        ("tidemill_source_lag_records", "source=\"in\"", 0.0),
        ("tidemill_job_up", "job=\"shop\"", 1.0),
    ] {
        assert_eq!(daemon.metric(name, &["job=\"shop\"", labels]), value, "{name} {labels}");
    }
    assert!(daemon.metric("tidemill_bytes_received_total", &[]) > 1000.0);
    let phases: BTreeSet<_> =
        text.body.lines().filter_map(|line| line.split_once("phase=\"")?.1.split('"').next()).collect();
    for phase in ["plan", "read", "stage", "anchor", "sinks"] {
        assert!(phases.contains(phase), "no phase {phase} among {phases:?}");
    }

    let progress = daemon.get("/jobs/shop").unwrap().json();
    let step = &progress["last_batch"]["steps"][0];
    assert_eq!((&step["step"], step["rejected"].as_u64()), (&"small".into(), Some(0)), "{step}");
    assert!(step["rows_in"].as_u64() >= step["rows_out"].as_u64(), "{step}");
    assert_eq!(
        (&progress["records_in"], &progress["rejected"], &progress["rows_out"]),
        (&121.into(), &1.into(), &200.into())
    );
    assert!(
        progress["positions"]["all"].as_object().unwrap().keys().any(|shard| shard.starts_with("in/")),
        "{progress}"
    );
    assert!(progress["last_batch"]["phases"]["plan"].is_number(), "{progress}");
    assert_eq!(progress["listening"]["in"], address.to_string());
    let unknown = daemon.get("/jobs/shp").unwrap();
    assert_eq!((unknown.status, &unknown.json()["jobs"]), (404, &serde_json::json!(["shop"])));

    if let Some(promtool) = needs::tool("promtool") {
        let file = folder.write("metrics.txt", &text.body);
        let mut command = Command::new(promtool);
        needs::output(command.args(["check", "metrics"]).stdin(fs::File::open(file).unwrap()));
    }
    daemon.term();
    daemon.expect_success();
}

#[test]
fn ready_says_why_not_while_waiting_and_while_draining() {
    let folder = Folder::new();
    publish(&folder, "owned", "a", 0..5);
    let job = files_job("owned", "").replace("trigger: asap", "trigger: asap\ntakeover_after: 1h");
    let _first = Run::new(&folder).job(&job).spawn();
    expect(&folder, "owned", 5);
    let mut second = Run::new(&folder).job(&job).data_dir("data-2").start();
    let waiting = second.wait_status("/ready", 503);
    eventually("the owner to be named", || {
        let body = second.get("/ready").unwrap().body;
        if body.contains("owned by") && body.contains("--take-over") { Ok(()) } else { Err(body) }
    });
    assert_eq!(waiting.json()["ready"], false);
    assert_idle(&second, "a daemon that waits for an owner");
    second.term();
    second.expect_success();

    // Draining: a stop that waits for a commit that waits for a lock.
    let folder = Folder::new();
    publish(&folder, "slow", "a", 0..5);
    let job = files_job("slow", "").replace("sinks: {", "sinks: { db: { type: sqlite, path: rows.db, table: rows },");
    let run = Run::new(&folder).job(&job);
    let mut daemon = run.spawn();
    expect(&folder, "slow", 5);
    let database = rusqlite::Connection::open(folder.join("rows.db")).unwrap();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    publish(&folder, "slow", "b", 5..10);
    // The commit is under way once a batch more was planned than was closed.
    thread::sleep(Duration::from_millis(300));
    daemon.term();
    let draining = eventually("the daemon to say that it drains", || {
        let answer = daemon.get("/ready").map_err(|e| e.to_string())?;
        if answer.body.contains("stopping") { Ok(answer) } else { Err(answer.body) }
    });
    assert_eq!(draining.status, 503);
    database.execute_batch("ROLLBACK").unwrap();
    daemon.expect_success();
    run.once().expect_success();
    expect(&folder, "slow", 10);
}

#[test]
fn logs_are_one_line_per_event_with_job_and_batch_as_text_and_as_json() {
    let folder = Folder::new();
    publish(&folder, "logged", "a", 0..5);
    let config = folder.write("tidemill.yaml", "log: { format: json, level: \"info,tidemill=debug\" }\n");
    let mut daemon = Run::new(&folder).job(&files_job("logged", "")).arg("--config").arg(config).once();
    daemon.expect_success();
    let log = daemon.stderr();
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect();
    let closed: Vec<_> = lines.iter().filter(|line| line["message"] == "closed").collect();
    assert_eq!(closed.len(), 1, "{log}");
    assert_eq!(
        (&closed[0]["job"], &closed[0]["batch"], &closed[0]["records"]),
        (&"logged".into(), &1.into(), &5.into())
    );
    assert_eq!(closed[0]["level"], "DEBUG");
    assert!(closed[0]["timestamp"].is_string(), "{log}");
    let said =
        |words: &str| lines.iter().any(|line| line["level"] == "INFO" && line["message"].as_str() == Some(words));
    assert!(said("running: nothing was processed before"), "{log}");
    let first = lines.iter().find(|line| line["message"].as_str().is_some_and(|text| text.starts_with("batch 1: ")));
    let first = first.unwrap_or_else(|| panic!("{log}"))["message"].as_str().unwrap().to_owned();
    assert!(first.starts_with("batch 1: 5 records, 0 rejected, ") && first.ends_with("; rows: out 5"), "{first}");

    publish(&folder, "logged", "b", 5..10);
    let mut daemon = Run::new(&folder).job(&files_job("logged", "")).once();
    daemon.expect_success();
    let log = daemon.stderr();
    assert!(!log.contains("closed"), "a line of each batch is for `debug`: {log}");
    assert!(log.contains("running: goes on after batch 1 ") && log.contains("batch 2: 5 records"), "{log}");
    for word in ["lane", "head", "origin", "generation"] {
        assert!(!log.contains(word), "{word} is a word of the protocol:\n{log}");
    }
    assert!(!log.contains('\u{1b}'), "no colours where no terminal reads: {log}");
    assert!(log.lines().any(|line| line.contains("done in") && line.contains("records=5")), "{log}");
}

/// A trigger of an hour is no reason to be taken over, nor to take a clean stop late.
#[test]
fn a_long_trigger_does_not_make_an_owner_look_dead() {
    let folder = Folder::new();
    fs::create_dir(folder.join("in-hourly")).unwrap();
    let job = files_job("hourly", "").replace("trigger: asap", "trigger: 1h\ntakeover_after: 1s");
    let mut first = Run::new(&folder).job(&job).spawn();
    let second = Run::new(&folder).job(&job).data_dir("data-2").start();
    // Beats end where the loop has not moved for ten times this time.
    thread::sleep(Duration::from_secs(14));
    assert_eq!(first.get("/ready").unwrap().status, 200, "{}", first.stderr());
    assert!(second.get("/ready").unwrap().body.contains("owned by"), "{}", second.stderr());
    assert!(!first.stderr().contains("no more beats"), "{}", first.stderr());
    let begun = Instant::now();
    first.term();
    first.expect_success();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// A sink that refuses each commit, while a claim works: the waits grow.
#[test]
fn a_sink_that_keeps_failing_is_tried_less_and_less_often() {
    let folder = Folder::new();
    publish(&folder, "refused", "a", 0..5);
    let daemon = Run::new(&folder).job(&files_job("refused", "")).failpoint("before-anchor:1:error+").start();
    let log = eventually("five failures in a row", || {
        let log = daemon.stderr();
        if log.contains("failures=5") { Ok(log) } else { Err(log) }
    });
    let waits: Vec<u64> =
        log.lines().filter_map(|line| line.split_once("wait_ms=")?.1.split(' ').next()?.parse().ok()).collect();
    // Each wait lies between a half and the whole of 200 ms, doubled by each failure.
    assert!(waits.len() >= 5 && waits[4] >= 1600, "{waits:?}");
    let (state, _) = states(&daemon).remove("refused").unwrap();
    assert_eq!(state, "retrying");
}

/// `--once` is done when everything is committed, not when everything was planned once.
#[test]
fn once_does_again_what_failed_last() {
    let folder = Folder::new();
    for part in 0..3 {
        publish(&folder, "once", &part.to_string(), part * 10..part * 10 + 10);
    }
    let job = files_job("once", "batch: { max_records: 10 }\n");
    let mut daemon = Run::new(&folder).job(&job).failpoint("before-anchor:3:error").once();
    daemon.expect_success();
    assert!(daemon.stderr().contains("failpoint before-anchor"), "{}", daemon.stderr());
    expect(&folder, "once", 30);
}

/// A step that computes for an hour does not hold a stop.
#[test]
fn a_stop_interrupts_a_batch_that_is_being_computed() {
    let folder = Folder::new();
    publish(&folder, "slow", "a", 0..5000);
    let heavy = "steps: [{ sql: \"SELECT count(*) AS n FROM batch a CROSS JOIN batch b CROSS JOIN batch c\" }]\n";
    let mut daemon = Run::new(&folder).job(&files_job("slow", heavy)).spawn();
    eventually("the batch to be computed", || {
        let used = cpu_seconds(daemon.pid());
        if used > 1.0 { Ok(()) } else { Err(format!("{used} s of CPU time")) }
    });
    let begun = Instant::now();
    daemon.term();
    daemon.expect_success();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // What it owned is free: another one takes it at once, whose step is quick.
    let quick = files_job("slow", "").replace("trigger: asap", "trigger: asap\ntakeover_after: 1h");
    Run::new(&folder).job(&quick).data_dir("data-2").once().expect_success();
    expect(&folder, "slow", 5000);
}

/// A runner that was fenced takes no records: what a sender brings goes to the owner, or waits.
#[test]
fn a_fenced_daemon_accepts_no_connections_until_it_owns_the_lane_again() {
    let folder = Folder::new();
    let address = free_address();
    let job = |address: &str| {
        format!(
            "job: fenced\ntrigger: asap\ntakeover_after: 1s\nsources: {{ in: {{ type: socket, listen: \"{address}\", codec: json, schema: {{ n: int64 }} }} }}\n\
             sinks: {{ out: {{ type: files, path: out-fenced, codec: json }} }}\n"
        )
    };
    let mut first = Run::new(&folder).job(&job(&address.to_string())).spawn();
    feed::send(address, &[b"{\"n\": 0}".to_vec()], b"\n");
    expect(&folder, "fenced", 1);
    let mut second = Run::new(&folder).job(&job("127.0.0.1:0")).data_dir("data-2").take_over().spawn();
    // It notices with its next batch.
    feed::send(address, &[b"{\"n\": 1}".to_vec()], b"\n");
    first.wait_status("/ready", 503);
    eventually("the fenced one to refuse connections", || match std::net::TcpStream::connect(address) {
        Ok(_) => Err("it accepts".into()),
        Err(_) => Ok(()),
    });
    assert_idle(&first, "a fenced daemon");
    second.kill9();
    first.wait_ready();
    // What it had accepted and not written is not lost.
    expect(&folder, "fenced", 2);
    feed::send(address, &[b"{\"n\": 2}".to_vec()], b"\n");
    expect(&folder, "fenced", 3);
}

/// The daemon's own file has all that the command line has; a wrong one is told with its place.
#[test]
fn a_wrong_daemon_file_and_no_job_at_all_are_configuration_errors() {
    let folder = Folder::new();
    let run = |text: &str| {
        let config = folder.write("tidemill.yaml", text);
        let mut daemon = Run::new(&folder).arg("--config").arg(config).start();
        let code = daemon.wait().code();
        (code, daemon.stderr())
    };
    let (code, said) = run("htp: 127.0.0.1:1\n");
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("tidemill.yaml:1:1") && said.contains("`http`"), "{said}");
    let (code, said) = run("jobs: [\"none/*.yaml\"]\n");
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("none/*.yaml"), "{said}");
}

#[test]
fn once_over_a_folder_that_is_not_there_fails_and_says_so() {
    let folder = Folder::new();
    let mut daemon = Run::new(&folder).job(&files_job("absent", "")).once();
    daemon.expect_code(1);
    assert!(daemon.stderr().contains("does not exist, and `--once` does not wait for it"), "{}", daemon.stderr());
}
