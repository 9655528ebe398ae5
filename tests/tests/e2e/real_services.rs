//! The servers of tests themselves: they answer, keep what they were given over a kill, and come back at the same address.

use std::{
    thread,
    time::{Duration, Instant},
};

use tidemill_tests::{
    Folder, Proxy,
    services::{self, Kafka, Mysql, Postgres, Redis},
};

/// A name that no other run of this test has.
fn fresh(what: &str) -> String {
    format!("{what}_{}_{}", std::process::id(), std::time::UNIX_EPOCH.elapsed().unwrap().as_micros())
}

#[test]
fn kafka_keeps_records_and_offsets_of_groups() {
    let Some(kafka) = services::kafka() else { return };
    let topic = fresh("numbers");
    kafka.topic(&topic, 3);
    kafka.tool_with(Kafka::PRODUCER, &["--topic", &topic], "1\n2\n3\n");
    let read = ["--topic", &topic, "--group", &topic, "--from-beginning", "--max-messages", "3"];
    let mut lines: Vec<_> = kafka.tool(Kafka::CONSUMER, &read).lines().map(str::to_owned).collect();
    lines.retain(|line| line.parse::<u8>().is_ok());
    lines.sort();
    assert_eq!(lines, ["1", "2", "3"]);
    let group = kafka.tool(Kafka::GROUPS, &["--describe", "--group", &topic]);
    let committed = group.lines().filter(|line| line.starts_with(&topic));
    let offsets =
        committed.map(|line| line.split_whitespace().nth(3).and_then(|offset| offset.parse().ok()).unwrap_or(0));
    assert_eq!(offsets.sum::<u32>(), 3, "{group}");
}

/// `make services-up` ends with lines that can be pasted.
#[test]
fn what_starts_the_servers_prints_what_a_shell_needs() {
    let Some(postgres) = services::postgres() else { return };
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let servers = std::env::var_os("TIDEMILL_SERVICES").map_or_else(|| folder.join("target/services"), Into::into);
    let mut command = std::process::Command::new(folder.join("tests/services/up.sh"));
    let said = command.arg("--dir").arg(servers).arg("postgres").output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let lines: Vec<_> = said.lines().filter_map(|line| line.trim().strip_prefix("export ")).collect();
    assert!(lines.contains(&format!("PG_URL={}", postgres.url).as_str()), "{said}");
    assert!(!said.contains("_PID="), "{said}");
}

#[test]
fn kafka_refuses_a_wrong_password_and_lets_the_right_one_in() {
    let Some(kafka) = services::kafka() else { return };
    let folder = Folder::new();
    let lists = |password: &str| {
        let settings = folder.write(
            "client.properties",
            format!(
                "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.jaas.config=\
                 org.apache.kafka.common.security.plain.PlainLoginModule required username=\"{}\" password=\"{password}\";",
                kafka.sasl_user
            ),
        );
        let mut command = kafka.java(Kafka::TOPICS);
        command.args(["--bootstrap-server", &kafka.sasl_brokers, "--list", "--command-config"]).arg(settings);
        command.output().unwrap().status.success()
    };
    assert!(lists(&kafka.sasl_password));
    assert!(!lists("wrong"));
}

#[test]
fn a_killed_kafka_comes_back_with_its_records_also_through_a_proxy() {
    let folder = Folder::new();
    let Some(kafka) = Kafka::private(folder.path()) else { return };
    kafka.topic("kept", 1);
    kafka.tool_with(Kafka::PRODUCER, &["--topic", "kept"], "before\n");
    kafka.kill();
    kafka.start();
    let proxy = Proxy::start_at(kafka.proxy.0, kafka.proxy.1);
    let mut command = kafka.java(Kafka::CONSUMER);
    command.args(["--bootstrap-server", &kafka.proxy.0.to_string(), "--topic", "kept", "--from-beginning"]);
    let done = command.args(["--max-messages", "1"]).output().unwrap();
    assert!(String::from_utf8_lossy(&done.stdout).lines().any(|line| line == "before"), "{done:?}");
    assert!(proxy.accepted() > 1, "the client stayed with the proxy after its first question");
}

#[test]
fn postgres_gives_each_test_a_schema() {
    let Some(postgres) = services::postgres() else { return };
    let url = postgres.schema(&fresh("a_schema"));
    postgres.psql_at(&url, "CREATE TABLE hits (n int); INSERT INTO hits VALUES (1), (2);");
    assert_eq!(postgres.psql_at(&url, "SELECT n, 'x' FROM hits ORDER BY n"), "1|x\n2|x");
    assert_eq!(postgres.psql("SELECT to_regclass('hits') IS NULL"), "t", "another schema has no such table");
    let encrypted = format!("{}?sslmode=verify-full&sslrootcert={}", postgres.url, postgres.ca.display());
    assert_eq!(postgres.psql_at(&encrypted, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"), "t");
}

#[test]
fn a_killed_postgres_comes_back_with_what_it_committed() {
    let folder = Folder::new();
    let Some(postgres) = Postgres::private(folder.path()) else { return };
    postgres.psql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7);");
    postgres.kill();
    assert!(std::net::TcpStream::connect(("127.0.0.1", postgres.port)).is_err());
    postgres.start();
    assert_eq!(postgres.psql("SELECT n FROM kept"), "7");
    postgres.stop();
    postgres.start();
    assert_eq!(postgres.psql("SELECT n FROM kept"), "7");
}

#[test]
fn the_answer_to_a_commit_can_be_lost() {
    let Some(postgres) = services::postgres() else { return };
    let table = fresh("lost");
    let proxy = Proxy::start(([127, 0, 0, 1], postgres.port).into());
    let url = postgres.url.replace(&postgres.port.to_string(), &proxy.address().port().to_string());
    postgres.psql(&format!("CREATE TABLE {table} (n int)"));
    proxy.drop_answers_after(b"COMMIT");
    let mut client = std::process::Command::new(postgres.bin.join("psql"));
    let plain = format!("{url}?sslmode=disable");
    let statements = ["BEGIN", &format!("INSERT INTO {table} VALUES (1)"), "COMMIT"];
    client.args(["-X", "-v", "ON_ERROR_STOP=1", "-d", &plain]).args(statements.iter().flat_map(|sql| ["-c", sql]));
    let done = client.output().unwrap();
    assert!(!done.status.success(), "the client was told of its commit: {done:?}");
    assert_eq!(proxy.dropped(), 1);
    assert_eq!(postgres.psql(&format!("SELECT count(*) FROM {table}; DROP TABLE {table}")), "1", "and yet it is there");
}

fn killed_and_back(server: Option<Mysql>) {
    let Some(server) = server else { return };
    server.database("kept");
    server.sql("CREATE TABLE kept.t (n int, s text); INSERT INTO kept.t VALUES (7, 'seven')");
    server.kill();
    server.start();
    assert_eq!(server.sql("SELECT * FROM kept.t"), "7\tseven");
}

#[test]
fn a_killed_mariadb_comes_back_with_what_it_committed() {
    let folder = Folder::new();
    killed_and_back(Mysql::private_mariadb(folder.path()));
}

#[test]
fn a_killed_mysql_comes_back_with_what_it_committed() {
    let folder = Folder::new();
    killed_and_back(Mysql::private(folder.path()));
}

#[test]
fn a_killed_redis_comes_back_with_all_that_it_said_yes_to() {
    let folder = Folder::new();
    let Some(redis) = Redis::private(folder.path()) else { return };
    assert_eq!(redis.cli(&["SET", "kept", "7"]), "OK");
    redis.kill();
    redis.start();
    assert_eq!(redis.cli(&["GET", "kept"]), "7");
}

#[test]
fn a_paused_server_answers_when_it_is_resumed() {
    let folder = Folder::new();
    let Some(redis) = Redis::private(folder.path()) else { return };
    redis.pause();
    thread::scope(|scope| {
        let asking = scope.spawn(|| redis.cli(&["PING"]));
        thread::sleep(Duration::from_millis(300));
        assert!(!asking.is_finished(), "a paused server answered");
        redis.resume();
        assert_eq!(asking.join().unwrap(), "PONG");
    });
}

#[test]
fn a_private_server_ends_with_its_test() {
    let folder = Folder::new();
    let Some(redis) = Redis::private(folder.path()) else { return };
    let port = redis.port;
    drop(redis);
    let start = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(5), "it still listens");
    }
    assert!(!folder.join("redis").exists(), "its data is left");
}
