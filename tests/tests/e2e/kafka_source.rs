//! The Kafka source in the real binary, against the real broker: killed and counted, stopped and resolved.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::kafka_topics::{self as kafka, Topic};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rdkafka::producer::Producer;
use tidemill_tests::{Daemon, Folder, PATIENCE, Rows, Run, daemon::tidemill, eventually, services};

/// A job from a topic to a table and to files.
fn job(topic: &Topic, more: &str, of_source: &str) -> String {
    format!(
        "job: kt\ntrigger: asap\ntakeover_after: 2s\nbatch: {{ max_records: 200 }}\n{more}sources:\n  in:\n    type: kafka\n    brokers: {}\n    \
         topics: {}\n    group: g-{}\n    schema: {{ shard: int64, n: int64 }}\n{of_source}sinks:\n  db: {{ type: sqlite, path: rows.db, table: rows }}\n  \
         files: {{ type: files, path: files, codec: json }}\n",
        topic.brokers, topic.name, topic.name
    )
}

/// A short session: whoever was killed is missed soon.
const SHORT: &str = "    properties: { session.timeout.ms: 6000, heartbeat.interval.ms: 500 }\n";

fn record(shard: usize, n: usize) -> String {
    format!("{{\"shard\": {shard}, \"n\": {n}}}")
}

fn expected(counts: &[usize]) -> Rows {
    let lines = counts.iter().enumerate().flat_map(|(shard, count)| (0..*count).map(move |n| record(shard, n)));
    Rows::json(&lines.collect::<Vec<_>>().join("\n"))
}

fn count(folder: &Folder, counts: &[usize]) -> Result<(), String> {
    let query = "SELECT shard, n FROM rows ORDER BY rowid";
    let stored = Rows::try_sqlite(&folder.join("rows.db"), query).map_err(|e| e.to_string())?;
    stored.compare(&expected(counts)).map_err(|difference| format!("the table: {difference}"))?;
    Rows::files(&folder.join("files"))
        .compare(&expected(counts))
        .map_err(|difference| format!("the files: {difference}"))?;
    stored.assert_rising("n", Some("shard"));
    Ok(())
}

/// Sends records to all partitions until it is told to stop; some of them in transactions, some of those aborted. How many
/// of each partition count.
fn produce(topic: &Topic, partitions: usize, stop: &AtomicBool) -> Vec<usize> {
    let producer = topic.transactional();
    let mut counts = vec![0; partitions];
    let mut chance = StdRng::seed_from_u64(7);
    while !stop.load(Ordering::Acquire) {
        let shard = chance.random_range(0..partitions);
        let size = chance.random_range(1..200);
        let values: Vec<_> = (counts[shard]..counts[shard] + size).map(|n| record(shard, n)).collect();
        let partition = i32::try_from(shard).unwrap();
        match chance.random_range(0..4) {
            0 => {
                producer.begin_transaction().unwrap();
                let wrong = [(None, Some("{\"shard\": 99, \"n\": 99}"))];
                kafka::send(&producer, &topic.name, partition, wrong);
                producer.abort_transaction(PATIENCE).unwrap();
            }
            1 => {
                producer.begin_transaction().unwrap();
                kafka::send(&producer, &topic.name, partition, values.iter().map(|value| (None, Some(value.as_str()))));
                producer.commit_transaction(PATIENCE).unwrap();
                counts[shard] += size;
            }
            _ => {
                topic.send_values(partition, &values);
                counts[shard] += size;
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    counts
}

/// Killed again and again while records come: each is in both sinks once, in its partition's order.
fn killed(more: &str, seed: u64) {
    let Some(topic) = Topic::new(3, &[]) else { return };
    let folder = Folder::new();
    let run = Run::new(&folder).job(&job(&topic, more, SHORT));
    let stop = AtomicBool::new(false);
    let counts = thread::scope(|scope| {
        let producing = scope.spawn(|| produce(&topic, 3, &stop));
        let mut chance = StdRng::seed_from_u64(seed);
        for _ in 0..6 {
            let mut daemon = run.start();
            // Long enough to have lanes, as a rule; short enough to be in the middle of something.
            thread::sleep(Duration::from_millis(chance.random_range(300..2500)));
            daemon.kill9();
            // As a supervisor would: the member is missed before the next one joins, or not.
            thread::sleep(Duration::from_millis(chance.random_range(0..500)));
        }
        stop.store(true, Ordering::Release);
        producing.join().unwrap()
    });
    let mut last = run.start();
    eventually("every record once", || {
        assert!(last.is_running(), "{}", last.stderr());
        count(&folder, &counts)
    });
    last.term();
    last.expect_success();
    count(&folder, &counts).unwrap();
}

#[test]
fn killed_with_a_lane_for_each_partition_it_loses_and_doubles_nothing() {
    killed("lanes: partition\n", 1);
}

#[test]
fn killed_with_one_lane_it_loses_and_doubles_nothing() {
    killed("lanes: single\n", 2);
}

/// The broker is killed in the middle and comes back: what waits is memory that stays as it is, and then all goes on.
#[test]
fn a_broker_that_dies_and_comes_back_is_waited_for() {
    let place = Folder::new();
    let Some(broker) = services::Kafka::private(place.path()) else { return };
    let topic = Topic::at(&broker.brokers, "mine", 2, &[]);
    let folder = Folder::new();
    let mut daemon = Run::new(&folder).job(&job(&topic, "", SHORT)).spawn();
    let fill = |from: usize, to: usize| {
        for shard in 0..2 {
            let values: Vec<_> = (from..to).map(|n| record(shard, n)).collect();
            topic.send_values(i32::try_from(shard).unwrap(), &values);
        }
    };
    fill(0, 5000);
    eventually("a first batch", || {
        let rows = Rows::try_sqlite(&folder.join("rows.db"), "SELECT n FROM rows").map_err(|e| e.to_string())?;
        if rows.is_empty() { Err("no row".into()) } else { Ok(()) }
    });
    broker.kill();
    thread::sleep(Duration::from_secs(3));
    assert!(daemon.is_running(), "{}", daemon.stderr());
    broker.start();
    eventually("all of what was there", || count(&folder, &[5000, 5000]));
    fill(5000, 5100);
    eventually("what came after", || count(&folder, &[5100, 5100]));
    daemon.term();
    daemon.expect_success();
}

/// What a stopped lane says.
fn stopped(daemon: &mut Daemon) -> String {
    eventually("the lane to stop", || {
        let said = daemon.get("/ready").map_err(|e| e.to_string())?.body;
        if said.contains("tidemill checkpoint") { Ok(said) } else { Err(said) }
    })
}

/// The commands in a text, as a person would copy them.
fn commands(said: &str) -> Vec<Vec<String>> {
    let parts = said.split('`').filter(|part| part.starts_with("tidemill checkpoint "));
    parts.map(|part| part.split_whitespace().skip(1).map(str::to_owned).collect()).collect()
}

/// The lane stops; the command that it names lets it go on with the oldest record that is there.
fn stops_and_is_resolved(lanes: &str, lose: impl FnOnce(&Topic), says: &str, first: usize) {
    let Some(topic) = Topic::new(1, &[]) else { return };
    let folder = Folder::new();
    let text = job(&topic, lanes, SHORT);
    topic.send_values(0, &(0..10).map(|n| record(0, n)).collect::<Vec<_>>());
    Run::new(&folder).job(&text).once().expect_success();
    lose(&topic);
    let mut daemon = Run::new(&folder).job(&text).start();
    let said = stopped(&mut daemon);
    assert!(said.contains(says), "{said}");
    // Alerts see it, and no lag says that nothing waits.
    let metrics = daemon.get("/metrics").unwrap().body;
    assert!(metrics.contains("tidemill_lanes{job=\"kt\",state=\"stopped\"} 1"), "{metrics}");
    assert!(metrics.contains("tidemill_job_up{job=\"kt\"} 0"), "{metrics}");
    assert!(!metrics.contains("tidemill_source_lag_seconds{"), "{metrics}");
    assert!(!metrics.contains("tidemill_source_lag_records{job=\"kt\",source=\"in\"} 0"), "{metrics}");
    daemon.term();
    daemon.wait();
    let command = commands(&said).into_iter().next().unwrap();
    let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
    let done = tidemill(&folder, &arguments);
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    Run::new(&folder).job(&text).once().expect_success();
    let rows = Rows::sqlite(&folder.join("rows.db"), "SELECT n FROM rows ORDER BY rowid").column("n");
    let wanted: Vec<_> = (0..10).chain(first..20).map(|n| n.to_string()).collect();
    assert_eq!(rows, wanted);
}

fn later(topic: &Topic) {
    topic.send_values(0, &(10..20).map(|n| record(0, n)).collect::<Vec<_>>());
}

#[test]
fn offsets_that_expired_stop_the_lane_and_the_command_that_it_names_is_the_way_out() {
    let lose = |topic: &Topic| {
        later(topic);
        topic.delete_records(0, 15);
    };
    stops_and_is_resolved("lanes: partition\n", lose, "begins at offset 15 now, and 5 records before it", 15);
}

fn make_again(topic: &Topic) {
    topic.delete();
    let begun = Instant::now();
    while std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| topic.make(1, &[]))).is_err() {
        assert!(begun.elapsed() < PATIENCE, "the topic cannot be made again");
        thread::sleep(Duration::from_millis(200));
    }
    later(topic);
}

#[test]
fn a_topic_that_was_made_again_stops_the_lane_and_the_command_that_it_names_is_the_way_out() {
    stops_and_is_resolved("lanes: single\n", make_again, "was deleted and made again", 10);
}

#[test]
fn with_a_lane_for_each_partition_too() {
    stops_and_is_resolved("lanes: partition\n", make_again, "was deleted and made again", 10);
}

#[test]
fn records_without_a_value_are_rows_with_their_key_where_the_job_keeps_them() {
    let Some(topic) = Topic::new(1, &[]) else { return };
    let folder = Folder::new();
    topic.send(0, [(Some("a"), Some("{\"n\": 1}")), (Some("a"), None), (Some("b"), Some("{\"n\": 2}")), (None, None)]);
    let keep = format!("    tombstones: keep\n    metadata: [key, tombstone, offset, timestamp]\n{SHORT}");
    Run::new(&folder).job(&job(&topic, "", &keep)).once().expect_success();
    let query = "SELECT coalesce(n, '-') || ' ' || coalesce(_key, '-') || ' ' || _tombstone || ' ' || _offset AS row FROM rows ORDER BY rowid";
    let rows = Rows::sqlite(&folder.join("rows.db"), query).column("row");
    assert_eq!(rows, ["1 a 0 0", "- a 1 1", "2 b 0 2", "- - 1 3"]);
}

/// A change log whose deletions have the id in the key alone, as Debezium writes them, followed into a table.
#[test]
fn deletions_that_are_in_the_key_alone_are_followed_into_a_table() {
    let (Some(topic), Some(postgres)) = (Topic::new(1, &[]), services::postgres()) else { return };
    let folder = Folder::new();
    let change = |id: u32, name: &str| (format!("{{\"id\": {id}}}"), format!("{{\"id\": {id}, \"name\": \"{name}\"}}"));
    let (one, two, new) = (change(1, "Ada"), change(2, "Kurt"), change(2, "Emmy"));
    topic.send(0, [&one, &two, &new].map(|(key, value)| (Some(key.as_str()), Some(value.as_str()))));
    topic.send(0, [(Some(one.0.as_str()), None), (Some("no json"), Some("{\"id\": 3}")), (Some("no json"), None)]);
    let url = postgres.schema(&format!("keys_{}", std::process::id()));
    let text = format!(
        "job: changes\ntrigger: asap\nsources:\n  in:\n    type: kafka\n    brokers: {}\n    topics: {}\n    group: g-{}\n    \
         schema: {{ id: int64, name: string }}\n    key: {{ schema: {{ id: int64 }} }}\n    tombstones: keep\n    metadata: [tombstone]\n{SHORT}\
         steps:\n  - add: {{ id: \"coalesce(id, _key_id)\" }}\n  - drop: [_key_id]\nsinks:\n  \
         db: {{ type: postgres, url: \"{url}\", table: rows, mode: upsert, key: id, delete_when: _tombstone }}\n",
        topic.brokers, topic.name, topic.name
    );
    Run::new(&folder).job(&text).once().expect_success();
    assert_eq!(postgres.psql_at(&url, "SELECT id, name FROM rows").trim(), "2|Emmy");
    let letters = Rows::files(&folder.join("data/changes/dead-letters"));
    assert_eq!(letters.column("reason"), ["key", "key"]);
}

/// Each has its own lanes and its own group, also where the job names none.
#[test]
fn two_sources_with_a_lane_for_each_partition_are_read_to_their_ends() {
    let (Some(one), Some(other)) = (Topic::new(2, &[]), Topic::new(1, &[])) else { return };
    let folder = Folder::new();
    for (topic, partition, shard) in [(&one, 0, 0), (&one, 1, 1), (&other, 0, 2)] {
        topic.send_values(partition, &(0..20).map(|n| record(shard, n)).collect::<Vec<_>>());
    }
    let source = |name: &str, topic: &Topic| {
        format!(
            "  {name}:\n    type: kafka\n    brokers: {}\n    topics: {}\n    schema: {{ shard: int64, n: int64 }}\n{SHORT}",
            topic.brokers, topic.name
        )
    };
    let text = format!(
        "job: {}\nlanes: partition\ntrigger: asap\ntakeover_after: 2s\nsources:\n{}{}sinks:\n  \
         db: {{ type: sqlite, path: rows.db, table: rows }}\n  files: {{ type: files, path: files, codec: json }}\n",
        one.name,
        source("a", &one),
        source("b", &other)
    );
    Run::new(&folder).job(&text).once().expect_success();
    count(&folder, &[20, 20, 20]).unwrap();
}

/// `start: latest` is where the job began: what is added later is read from its first record, also by a daemon that finds
/// nothing but the sinks.
#[test]
fn partitions_and_topics_that_are_added_are_read_from_their_beginning_also_with_start_latest() {
    let Some(topic) = Topic::new(2, &[]) else { return };
    let folder = Folder::new();
    let records = |shard: usize, numbers: std::ops::Range<usize>| numbers.map(|n| record(shard, n)).collect::<Vec<_>>();
    let before = (0..20).map(|_| record(99, 99)).collect::<Vec<_>>();
    topic.send_values(0, &before);
    let latest = format!("    start: latest\n{SHORT}");
    let one_topic = format!("topics: {}", topic.name);
    let text = job(&topic, "lanes: partition\n", &latest);
    let text = text.replace(&one_topic, &format!("topics: \"^{}(-\\\\d+)?$\"", topic.name));
    let mut daemon = Run::new(&folder).job(&text).start();
    eventually("both lanes", || {
        let said = daemon.stderr();
        if said.matches("running: ").count() == 2 { Ok(()) } else { Err(said) }
    });
    topic.add_partitions(3);
    let later = Topic::at(&topic.brokers, &format!("{}-1", topic.name), 1, &[]);
    for (topic, partition, shard) in [(&topic, 0, 0), (&topic, 1, 1), (&topic, 2, 2), (&later, 0, 3)] {
        topic.send_values(partition, &records(shard, 0..5));
    }
    eventually("what came once the job ran", || count(&folder, &[5; 4]));
    daemon.term();
    daemon.expect_success();
    fs::remove_dir_all(folder.join("data")).unwrap();
    topic.add_partitions(4);
    topic.send_values(3, &records(4, 0..5));
    topic.send_values(0, &records(0, 5..10));
    let mut daemon = Run::new(&folder).job(&text).take_over().start();
    eventually("what came meanwhile", || count(&folder, &[10, 5, 5, 5, 5]));
    daemon.term();
    daemon.expect_success();
}

/// A password from a file is used and never shown.
#[test]
fn a_login_by_a_password_from_a_file_works_and_a_wrong_one_is_told_without_it() {
    let Some(server) = services::kafka() else { return };
    let Some(topic) = Topic::new(1, &[]) else { return };
    let folder = Folder::new();
    topic.send_values(0, &[record(0, 0)]);
    let sasl = format!(
        "    properties:\n      session.timeout.ms: 6000\n      security.protocol: SASL_PLAINTEXT\n      sasl.mechanism: PLAIN\n      \
         sasl.username: {}\n      sasl.password: ${{file:password}}\n",
        server.sasl_user
    );
    let text = job(&topic, "", &sasl).replace(&server.brokers, &server.sasl_brokers);
    folder.write("password", format!("{}\n", server.sasl_password));
    Run::new(&folder).job(&text).once().expect_success();
    count(&folder, &[1]).unwrap();
    folder.write("password", "not-the-password\n");
    let tried = tidemill(&folder, &["validate", "--connect", "job.yaml"]);
    let said = format!("{}{}", String::from_utf8_lossy(&tried.stdout), String::from_utf8_lossy(&tried.stderr));
    assert!(!tried.status.success() && said.contains("do not accept the login"), "{said}");
    assert!(!said.contains("not-the-password"), "{said}");
}

fn resident_bytes(daemon: &Daemon) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

/// A topic full of records, and a job that takes none of them yet: what is read ahead has a bound.
#[test]
fn what_is_read_ahead_of_the_batches_has_a_bound() {
    let Some(topic) = Topic::new(4, &[]) else { return };
    let folder = Folder::new();
    let text =
        job(&topic, "", SHORT).replace("trigger: asap", "trigger: 1h").replace("max_records: 200", "max_bytes: 2MiB");
    let mut daemon = Run::new(&folder).job(&text).spawn();
    thread::sleep(Duration::from_secs(2));
    let before = resident_bytes(&daemon);
    let value = format!("{{\"shard\": 0, \"n\": 1, \"fill\": \"{}\"}}", "x".repeat(1000));
    for partition in 0..4 {
        topic.send(partition, std::iter::repeat_n((None, Some(value.as_str())), 30_000));
    }
    let waits = |daemon: &Daemon| daemon.metric("tidemill_source_lag_records", &["kt", "in"]);
    eventually("the daemon to know of them", || {
        assert!(daemon.is_running(), "{}", daemon.stderr());
        let records = waits(&daemon);
        if records >= 120_000.0 { Ok(()) } else { Err(records.to_string()) }
    });
    // Time to read too much, if it would.
    thread::sleep(Duration::from_secs(3));
    let grown = resident_bytes(&daemon).saturating_sub(before);
    assert!(grown < 40 << 20, "120 MB wait, and {grown} bytes of them are held");
}
