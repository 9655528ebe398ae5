//! Sinks with `guarantee: at_least_once`: rows arrive, nothing of Tidemill's own is made in the target, a batch that is cut off
//! between the sink's commit and the ledger's note is written again, and nothing that the target refuses vanishes.

use std::{collections::BTreeSet, ops::RangeBounds, time::Duration};

use crate::kafka_sink as kafka;
use rdkafka::{
    Message,
    consumer::{BaseConsumer, Consumer},
};
use tidemill_tests::{Folder, Rows, Run, daemon::tidemill, eventually, services};

const RECORDS: i64 = 100;
/// Of a batch.
const BATCH: usize = 10;

/// Records in a folder, as a job's source has them.
fn folder() -> Folder {
    let folder = Folder::new();
    let lines: String = (0..RECORDS).map(|n| format!("{{\"n\": {n}, \"text\": \"row {n} ✓\"}}\n")).collect();
    folder.publish("in/a.json", lines);
    folder
}

fn job(name: &str, sinks: &str) -> String {
    format!(
        "job: {name}\ntrigger: asap\nbatch: {{ max_records: {BATCH} }}\nsources:\n  in: {{ type: directory, path: in, settle: 10ms, \
         codec: json, schema: {{ n: int64, text: string }} }}\nsinks:\n{sinks}"
    )
}

fn numbers(lines: &str) -> Vec<i64> {
    lines.lines().map(|line| line.parse().unwrap()).collect()
}

/// Every record is there; `doubled`: so many of them once more.
fn expect_all(found: &[i64], doubled: impl RangeBounds<usize>) {
    expect_all_of(RECORDS, found, doubled);
}

fn expect_all_of(records: i64, found: &[i64], doubled: impl RangeBounds<usize>) {
    let distinct: BTreeSet<i64> = found.iter().copied().collect();
    assert_eq!(distinct, (0..records).collect(), "lost, or made up");
    assert!(doubled.contains(&(found.len() - distinct.len())), "{} rows: {found:?}", found.len());
}

/// Validates, explains, meets an error in the second batch at `failpoint`, dies between another batch's commit and its note, and
/// ends.
fn live(folder: &Folder, yaml: &str, told: &[&str], failpoint: &str) {
    let run = Run::new(folder).job(yaml);
    folder.write("shown.yaml", yaml);
    let said = tidemill(folder, &["explain", "shown.yaml"]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let common = ["at least once (no marks)", "anchor (commits first): the ledger in the data dir", "lanes: single"];
    for words in common.iter().chain(told) {
        assert!(said.contains(words), "no {words:?} in\n{said}");
    }
    let tried = tidemill(folder, &["validate", "--connect", "shown.yaml"]);
    assert!(tried.status.success(), "{}", String::from_utf8_lossy(&tried.stderr));
    let failing = run.clone().arg("--once").failpoint(&format!("{failpoint}:error,before-anchor:5:kill"));
    let mut daemon = failing.start();
    daemon.expect_killed();
    assert!(daemon.stderr().contains("failpoint"), "no error was met:\n{}", daemon.stderr());
    run.once().expect_success();
}

/// A batch that the target refuses stops the job with these words.
fn refused(folder: &Folder, yaml: &str, words: &[&str]) {
    let mut stopped = Run::new(folder).job(yaml).once();
    stopped.expect_code(1);
    let said = stopped.stderr();
    for word in words.iter().chain(&["guarantee: exactly_once", "nothing of the batch was written"]) {
        assert!(said.contains(word), "no {word:?} in\n{said}");
    }
}

#[test]
fn a_table_of_postgres_gets_every_row_and_nothing_else() {
    let Some(server) = services::postgres() else { return };
    let (schema, folder) = (format!("at_least_once_{}", std::process::id()), folder());
    let url = server.schema(&schema);
    let sink = |name: &str, more: &str| {
        format!("  {name}: {{ type: postgres, url: \"{url}\", table: {name}, guarantee: at_least_once{more} }}\n")
    };
    let sinks = sink("hits", "") + &sink("latest", ", mode: upsert, key: n");
    live(&folder, &job("pg", &sinks), &["appended to table hits"], "postgres.after-commit:3");
    let sql = |sql: &str| server.psql_at(&url, sql);
    expect_all(&numbers(&sql("SELECT n FROM hits")), 2 * BATCH..=2 * BATCH);
    expect_all(&numbers(&sql("SELECT n FROM latest")), ..=0);
    let made =
        "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' ORDER BY 1";
    assert_eq!(sql(made), "hits\nlatest");

    // A row that a constraint refuses, in a table of a user who may do no more than write to it.
    sql("CREATE TABLE few (n bigint CONSTRAINT small CHECK (n <> 57), text text)");
    let user = format!("writer_{}", std::process::id());
    server.psql(&format!(
        "CREATE ROLE {user} LOGIN PASSWORD 'w'; GRANT USAGE ON SCHEMA {schema} TO {user}; GRANT INSERT ON {schema}.few TO {user}"
    ));
    let login = url.find("://").unwrap() + 3..url.find('@').unwrap();
    let mut as_writer = url.clone();
    as_writer.replace_range(login, &format!("{user}:w"));
    let yaml = job("few", &sink("few", "").replace(&url, &as_writer));
    folder.write("marked.yaml", yaml.replace("guarantee: at_least_once", "guarantee: exactly_once"));
    let tried = tidemill(&folder, &["validate", "--connect", "marked.yaml"]);
    let said = String::from_utf8_lossy(&tried.stderr).into_owned();
    assert!(!tried.status.success() && said.contains("`guarantee: at_least_once` needs none"), "{said}");
    refused(&folder, &yaml, &["constraint \"small\"", "batch 6", "it is row 7", "{\"n\":57,\"text\":\"row 57 ✓\"}"]);
    assert_eq!(numbers(&sql("SELECT n FROM few")).len(), 5 * BATCH);
    sql("ALTER TABLE few DROP CONSTRAINT small");
    Run::new(&folder).job(&yaml).once().expect_success();
    expect_all(&numbers(&sql("SELECT n FROM few")), ..=0);
    server.psql(&format!(
        "SET client_min_messages = error; DROP SCHEMA {schema} CASCADE; DROP OWNED BY {user}; DROP ROLE {user}"
    ));
}

#[test]
fn a_table_of_mariadb_gets_every_row_and_nothing_else() {
    let Some(server) = services::mariadb() else { return };
    let small = "ALTER TABLE few ADD CONSTRAINT small CHECK (n <> 57);";
    gets_every_row(&server, [small, "ALTER TABLE few DROP CONSTRAINT small"], "CONSTRAINT `small` failed");
}

/// The first versions of MySQL 8 read over a CHECK.
#[test]
fn a_table_of_mysql_gets_every_row_and_nothing_else() {
    let Some(server) = services::mysql() else { return };
    let small = "DELIMITER //
        CREATE TRIGGER small BEFORE INSERT ON few FOR EACH ROW
            IF NEW.n = 57 THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'too small'; END IF//
        DELIMITER ;";
    gets_every_row(&server, [small, "DROP TRIGGER small"], "too small");
}

/// `small`: what has the table `few` refuse the row 57, and the end of it; `said`: what the server says then.
fn gets_every_row(server: &services::Mysql, small: [&str; 2], said: &str) {
    let (database, folder) = (format!("at_least_once_{}", std::process::id()), folder());
    let url = server.database(&database);
    let sink = |name: &str, more: &str| {
        format!("  {name}: {{ type: mysql, url: \"{url}\", table: {name}, guarantee: at_least_once{more} }}\n")
    };
    let sinks = sink("hits", "") + &sink("latest", ", mode: upsert, key: n");
    live(&folder, &job("my", &sinks), &["appended to table hits"], "mysql.after-commit:3");
    let sql = |sql: &str| server.sql(&sql.replace("$DB", &database));
    expect_all(&numbers(&sql("SELECT n FROM $DB.hits")), 2 * BATCH..=2 * BATCH);
    expect_all(&numbers(&sql("SELECT n FROM $DB.latest")), ..=0);
    let made = "SELECT table_name FROM information_schema.tables WHERE table_schema = '$DB' ORDER BY 1";
    assert_eq!(sql(made).trim(), "hits\nlatest");

    sql(&format!("USE $DB; CREATE TABLE few (n BIGINT, text TEXT) ENGINE=InnoDB;\n{}", small[0]));
    let user = format!("writer_{}", std::process::id());
    sql(&format!("CREATE USER {user} IDENTIFIED BY 'w'; GRANT INSERT ON $DB.few TO {user}"));
    let login = format!("{}:{}@", server.user, server.password);
    let yaml = job("few", &sink("few", "").replace(&login, &format!("{user}:w@")));
    folder.write("shown.yaml", &yaml);
    let tried = tidemill(&folder, &["validate", "--connect", "shown.yaml"]);
    assert!(tried.status.success(), "{}", String::from_utf8_lossy(&tried.stderr));
    refused(&folder, &yaml, &[said, "batch 6", "it is row 7", "{\"n\":57,\"text\":\"row 57 ✓\"}"]);
    assert_eq!(numbers(&sql("SELECT n FROM $DB.few")).len(), 5 * BATCH);
    sql(&format!("USE $DB; {}", small[1]));
    Run::new(&folder).job(&yaml).once().expect_success();
    expect_all(&numbers(&sql("SELECT n FROM $DB.few")), ..=0);
    sql(&format!("DROP USER {user}; DROP DATABASE $DB"));
}

#[test]
fn a_topic_gets_every_record_and_there_is_no_topic_of_marks() {
    let Some(server) = services::kafka() else { return };
    let folder = folder();
    let topic = kafka::topic(&folder.join("")).replace("sink-", "at-least-once-");
    kafka::make_topic(&server.brokers, &topic, 3);
    let sink = |more: &str| {
        let (brokers, options) = (&server.brokers, "type: kafka, key: n, guarantee: at_least_once");
        format!("  out: {{ {options}, brokers: \"{brokers}\", topic: {topic}{more} }}\n")
    };
    let records = || kafka::records(&server.brokers, &topic);
    let found = || -> Vec<i64> {
        let value = |payload: &[u8]| serde_json::from_slice::<serde_json::Value>(payload).unwrap();
        records().iter().map(|record| value(record.payload().unwrap())["n"].as_i64().unwrap()).collect()
    };
    // A name of its own: no topic of marks may be there after it.
    let yaml = job(&topic, &sink(""));
    live(&folder, &yaml, &["without transactions"], "kafka.after-rows:2");
    // What was on its way when it failed may have come through.
    expect_all(&found(), BATCH..=2 * BATCH);
    // A transaction leaves a control record in each partition that it wrote to.
    let consumer: BaseConsumer = kafka::client(&server.brokers).create().unwrap();
    for partition in 0..3 {
        let (_, end) = consumer.fetch_watermarks(&topic, partition, Duration::from_secs(30)).unwrap();
        assert_eq!(end, records().iter().filter(|record| record.partition() == partition).count() as i64);
    }
    assert_eq!(kafka::topics(&server.brokers, &topic), [&*topic]);

    let small = Folder::new();
    let long = "x".repeat(2_000);
    small.publish("in/a.json", format!("{{\"n\": 1, \"text\": \"a\"}}\n{{\"n\": 2, \"text\": \"{long}\"}}\n"));
    let before = records().len();
    let limited = job("long", &sink(", properties: { message.max.bytes: \"1000\" }"));
    refused(&small, &limited, &["bytes, at most", "batch 1", "it is row 1", "{\"n\":2,\"text\":\"xxx"]);
    assert_eq!(records().len(), before);
    Run::new(&small).job(&job("long", &sink(""))).once().expect_success();
    assert_eq!(records().len(), before + 2);
}

/// Lanes of a daemon commit to a sink without marks together. A row that is refused stops its own lane alone; the sink with marks
/// beside it says where each lane stands.
#[test]
fn lanes_commit_together_and_a_row_that_is_refused_stops_its_own_lane_alone() {
    const OF_LANE: i64 = 40;
    let Some(server) = services::postgres() else { return };
    let (schema, folder) = (format!("at_least_once_lanes_{}", std::process::id()), Folder::new());
    let url = server.schema(&schema);
    let sql = |sql: &str| server.psql_at(&url, sql);
    for shard in 0..3 {
        let lines: String = (0..OF_LANE).map(|n| format!("{{\"n\": {}}}\n", shard * OF_LANE + n)).collect();
        folder.write(format!("topic/shards/{shard}"), lines);
    }
    folder.publish("topic/assign/a", "0 1 2");
    folder.write("a.yaml", "owner: a\n");
    // The second lane's third batch has it.
    let bad = OF_LANE + 25;
    sql(&format!("CREATE TABLE hits (n bigint CONSTRAINT small CHECK (n <> {bad}))"));
    let yaml = format!(
        "job: lanes\nlanes: partition\ntrigger: asap\ntakeover_after: 1h\nbatch: {{ max_records: 10 }}\nsources:\n  in: {{ type: test, path: topic, \
         codec: json, schema: {{ n: int64 }} }}\nsinks:\n  db: {{ type: sqlite, path: rows.db, table: rows }}\n  \
         hits: {{ type: postgres, url: \"{url}\", table: hits, guarantee: at_least_once }}\n"
    );
    let run = Run::new(&folder).job(&yaml).arg("--config").arg(folder.join("a.yaml"));
    run.clone().failpoint("before-anchor:2:kill").start().expect_killed();
    let mut daemon = run.spawn();
    let marked = || Rows::try_sqlite(&folder.join("rows.db"), "SELECT n FROM rows").map_err(|error| error.to_string());
    let expect = |expected: Vec<i64>| {
        eventually("the rows", || {
            let lines: String = expected.iter().map(|n| format!("{{\"n\": {n}}}\n")).collect();
            marked()?.compare(&Rows::json(&lines))
        });
        let found: BTreeSet<i64> = numbers(&sql("SELECT n FROM hits")).into_iter().collect();
        assert!(expected.iter().all(|n| found.contains(n)), "lost: {found:?}");
    };
    expect((0..OF_LANE + 20).chain(2 * OF_LANE..3 * OF_LANE).collect());
    eventually("the lane to stop", || {
        let said = daemon.stderr();
        if said.contains(&format!("{{\"n\":{bad}}}")) { Ok(()) } else { Err(said) }
    });
    daemon.kill9();
    sql("ALTER TABLE hits DROP CONSTRAINT small");
    let daemon = run.spawn();
    expect((0..3 * OF_LANE).collect());
    drop(daemon);
    server.psql(&format!("SET client_min_messages = error; DROP SCHEMA {schema} CASCADE"));
}

/// The sink that says where the job stands loses its marks by an edit, and gets them back. In both lives daemons are killed.
#[test]
fn an_anchor_that_is_to_keep_no_marks_stops_the_job_and_loses_nothing_on_the_way_there_and_back() {
    let Some(server) = services::postgres() else { return };
    let (schema, folder) = (format!("at_least_once_switch_{}", std::process::id()), folder());
    let url = server.schema(&schema);
    let found = || numbers(&server.psql_at(&url, "SELECT n FROM hits"));
    let run = |guarantee: &str| {
        let sink = format!("  hits: {{ type: postgres, url: \"{url}\", table: hits, guarantee: {guarantee} }}\n");
        Run::new(&folder).job_file(folder.write(format!("{guarantee}.yaml"), job("switched", &sink)))
    };
    let (marked, unmarked) = (run("exactly_once"), run("at_least_once"));
    // Every row once, those of the batches that were cut off too.
    let expect_first = |count: usize| {
        let mut found = found();
        found.sort_unstable();
        assert_eq!(found, (0..count as i64).collect::<Vec<_>>());
    };
    for failpoint in ["after-anchor:3:kill", "before-anchor:3:kill"] {
        marked.clone().failpoint(failpoint).start().expect_killed();
    }
    expect_first(5 * BATCH);
    let mut stopped = unmarked.once();
    stopped.expect_code(1);
    let said = stopped.stderr();
    for words in [
        "the anchor hits is not in the job any more, or keeps no marks now",
        "put the sink hits back",
        "hold rows twice",
    ] {
        assert!(said.contains(words), "no {words:?} in\n{said}");
    }
    expect_first(5 * BATCH);
    // The first way out: its guarantee is taken back, and nothing has happened.
    marked.clone().failpoint("after-anchor:1:kill").start().expect_killed();
    expect_first(6 * BATCH);
    // The other one: the job begins anew.
    let done = tidemill(
        &folder,
        &["checkpoint", "reset", "--sinks", "--yes", "--data-dir", "data", "--job", "at_least_once.yaml"],
    );
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    unmarked.clone().failpoint("before-anchor:4:kill").start().expect_killed();
    unmarked.once().expect_success();
    expect_all(&found(), 7 * BATCH..=7 * BATCH);
    // And back, in the middle of a batch: its old marks are of the life before, and only somebody who knows can say what holds.
    let more: String = (RECORDS..RECORDS + 50).map(|n| format!("{{\"n\": {n}, \"text\": \"more\"}}\n")).collect();
    folder.publish("in/b.json", more);
    unmarked.clone().failpoint("before-anchor:3:kill").start().expect_killed();
    assert_eq!(found().len(), 20 * BATCH);
    let mut stopped = marked.once();
    stopped.expect_code(1);
    let said = stopped.stderr();
    let data_dir = folder.join("data");
    let command = format!("`tidemill checkpoint --data-dir {} resolve --sink hits --join --yes`", data_dir.display());
    for words in ["the mark of hits belongs to another origin", &command] {
        assert!(said.contains(words), "no {words:?} in\n{said}");
    }
    let join = [
        "checkpoint",
        "resolve",
        "--sink",
        "hits",
        "--join",
        "--yes",
        "--data-dir",
        "data",
        "--job",
        "exactly_once.yaml",
    ];
    let done = tidemill(&folder, &join);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    marked.clone().failpoint("after-anchor:1:kill").start().expect_killed();
    marked.once().expect_success();
    // The batch that the ledger had not noted, once more; nothing of what was killed with marks.
    expect_all_of(RECORDS + 50, &found(), 8 * BATCH..=8 * BATCH);
    server.psql(&format!("SET client_min_messages = error; DROP SCHEMA {schema} CASCADE"));
}

/// A sink that never had marks gets them: the ledger says where the job stands, and the batch that was cut off is there twice.
#[test]
fn a_sink_that_is_to_keep_marks_begins_with_the_batch_that_was_not_noted() {
    let Some(server) = services::postgres() else { return };
    let (schema, folder) = (format!("at_least_once_begun_{}", std::process::id()), folder());
    let url = server.schema(&schema);
    let run = |guarantee: &str| {
        let sink = format!("  hits: {{ type: postgres, url: \"{url}\", table: hits, guarantee: {guarantee} }}\n");
        Run::new(&folder).job_file(folder.write(format!("{guarantee}.yaml"), job("begun", &sink)))
    };
    run("at_least_once").failpoint("before-anchor:4:kill").start().expect_killed();
    let marked = run("exactly_once");
    for failpoint in ["after-anchor:2:kill", "before-anchor:2:kill"] {
        marked.clone().failpoint(failpoint).start().expect_killed();
    }
    marked.once().expect_success();
    expect_all(&numbers(&server.psql_at(&url, "SELECT n FROM hits")), BATCH..=BATCH);
    server.psql(&format!("SET client_min_messages = error; DROP SCHEMA {schema} CASCADE"));
}
