//! The jobs of `examples/` that need servers, run as they stand against real ones, and what is then in the sink, read by the
//! servers' own programs.

use std::fs;

use tidemill_tests::{
    Folder, Rows, Run, eventually, kafka_of_this_program, root,
    services::{self, Kafka},
};

/// An example in a folder of its own, ready to be run.
fn example(folder: &Folder, name: &str, kafka: &Kafka, url: &str) -> Run {
    let file = folder.copy(&root().join("examples").join(format!("{name}.yaml")), format!("{name}.yaml"));
    folder.copy(&root().join("examples/input"), "input");
    Run::new(folder).job_file(file).env("KAFKA_BROKERS", &kafka.brokers).env("PG_URL", url)
}

fn produce(kafka: &Kafka, topic: &str, records: &[&str]) {
    let arguments = ["--topic", topic];
    kafka.tool_with(Kafka::PRODUCER, &arguments, &(records.join("\n") + "\n"));
}

#[test]
fn kafka_to_postgres() {
    let (Some(kafka), Some(postgres)) = (kafka_of_this_program(), services::postgres()) else { return };
    let (folder, schema) = (Folder::new(), "example_kafka_to_postgres");
    let url = postgres.schema(schema);
    let sql = |sql: &str| postgres.psql_at(&url, sql).trim().to_owned();
    sql("CREATE TABLE customers (id bigint PRIMARY KEY, name text, country text);
         INSERT INTO customers VALUES (1, 'Ada', 'IS'), (2, 'Kurt', 'DE'), (3, 'Emmy', 'XX')");
    kafka.topic("orders", 3);
    produce(
        kafka,
        "orders",
        &[
            r#"{"id":10,"at":"2026-03-01T10:00:00Z","customer":1,"amount":"19.90"}"#,
            r#"{"id":11,"at":"2026-03-01T10:00:01Z","customer":2,"amount":"5.00"}"#,
            r#"{"id":12,"at":"2026-03-01T10:00:02Z","customer":3,"amount":"7.25"}"#,
            r#"{"id":13,"at":"2026-03-01T10:00:03Z","customer":4,"amount":"1.00"}"#,
        ],
    );
    // Two daemons share the topic's partitions, as the text says that they may.
    let run = example(&folder, "kafka-to-postgres", kafka, &url);
    let daemons = ["a", "b"].map(|owner| {
        let config = folder.write(format!("{owner}.yaml"), format!("owner: {owner}\n"));
        run.clone().data_dir(owner).arg("--config").arg(config).start()
    });
    let query = "SELECT id, at, customer_name, country_name, amount FROM orders ORDER BY id";
    let expected = "10|2026-03-01 10:00:00+00|Ada|Iceland|19.90\n11|2026-03-01 10:00:01+00|Kurt|Germany|5.00\n\
                    12|2026-03-01 10:00:02+00|Emmy||7.25\n13|2026-03-01 10:00:03+00|||1.00";
    eventually("four orders with names", || {
        if sql("SELECT to_regclass('orders') IS NOT NULL") != "t" {
            return Err(daemons[0].stderr() + &daemons[1].stderr());
        }
        let found = sql(&format!("SET timezone = 'UTC'; {query}"));
        if found == expected { Ok(()) } else { Err(found) }
    });
}

#[test]
fn postgres_to_kafka() {
    let (Some(kafka), Some(postgres)) = (kafka_of_this_program(), services::postgres()) else { return };
    let (folder, schema) = (Folder::new(), "example_postgres_to_kafka");
    let url = postgres.schema(schema);
    postgres.psql_at(
        &url,
        "CREATE TABLE products (id bigint PRIMARY KEY, name text, price numeric(12,2), updated_at timestamptz);
         INSERT INTO products VALUES (1, ' Cup ', 4.50, '2026-03-01Z'), (2, 'Free', 0, '2026-03-01Z'), (3, 'Pot', 12, '2026-03-01Z')",
    );
    kafka.topic("products", 1);
    let run = example(&folder, "postgres-to-kafka", kafka, &url);
    run.clone().arg("--once").start().expect_success();
    postgres.psql_at(&url, "UPDATE products SET price = 5, updated_at = '2026-03-02Z' WHERE id = 1");
    run.arg("--once").start().expect_success();
    let arguments = [
        ["--topic", "products"],
        ["--isolation-level", "read_committed"],
        ["--formatter-property", "print.key=true"],
        ["--timeout-ms", "10000"],
        ["--max-messages", "3"],
    ];
    let said = kafka.tool(Kafka::CONSUMER, &[&["--from-beginning"], &arguments.concat()[..]].concat());
    let rows: Vec<(String, serde_json::Value)> = said
        .lines()
        .map(|line| line.split_once('\t').unwrap())
        .map(|(key, value)| (key.to_owned(), serde_json::from_str(value).unwrap()))
        .collect();
    let shown: Vec<_> = rows.iter().map(|(key, row)| (key.as_str(), row["name"].as_str().unwrap())).collect();
    assert_eq!(shown, [("1", "Cup"), ("3", "Pot"), ("1", "Cup")], "{said}");
}

#[test]
fn kafka_to_parquet() {
    let Some(kafka) = kafka_of_this_program() else { return };
    let folder = Folder::new();
    kafka.topic("views", 2);
    produce(
        kafka,
        "views",
        &[
            r#"{"at":"2026-03-01T23:59:59Z","user":1,"page":"/a","ms":12}"#,
            r#"{"at":"2026-03-02T00:00:01Z","user":2,"page":"/b","ms":7}"#,
            r#"{"at":"2026-03-02T00:00:02Z","user":0,"page":"/health","ms":1}"#,
        ],
    );
    example(&folder, "kafka-to-parquet", kafka, "").arg("--once").start().expect_success();
    let out = folder.join("out/kafka-to-parquet");
    let days: Vec<_> =
        fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(days.contains(&"day=2026-03-01".into()) && days.contains(&"day=2026-03-02".into()), "{days:?}");
    let mut pages = Rows::files(&out).column("page");
    pages.sort();
    assert_eq!(pages, ["/a", "/b"]);
}

/// Killed between its two sinks, and the tables changed before it is replayed: both sinks have the rows of the first time.
#[test]
fn enrich_from_databases() {
    let (Some(postgres), Some(mariadb), Some(redis)) = (services::postgres(), services::mariadb(), services::redis())
    else {
        return;
    };
    let pg = postgres.schema("example_enrich");
    postgres.psql_at(
        &pg,
        "CREATE TABLE customers (id bigint, name text); INSERT INTO customers VALUES (7, 'Ada'), (8, 'Kurt')",
    );
    let my = mariadb.database("example_enrich");
    let items = "example_enrich.items";
    mariadb.sql(&format!("CREATE TABLE {items} (id varchar(20) PRIMARY KEY, price decimal(10,2)); INSERT INTO {items} VALUES ('cup', 4.50), ('pot', 12)"));
    redis.cli(&["HSET", "session:s1", "campaign", "spring"]);
    let folder = Folder::new();
    let file = folder.copy(&root().join("examples/enrich-from-databases.yaml"), "enrich-from-databases.yaml");
    folder.copy(&root().join("examples/input"), "input");
    let run = Run::new(&folder).job_file(file).env("PG_URL", &pg).env("MYSQL_URL", &my).env("REDIS_URL", &redis.url);
    run.clone().failpoint("after-anchor:1:kill").start().expect_killed();
    postgres.psql_at(&pg, "UPDATE customers SET name = 'somebody else'");
    mariadb.sql(&format!("UPDATE {items} SET price = 99"));
    run.once().expect_success();
    let expected = [
        r#"{"id": 1, "customer_name": "Ada", "campaign": "spring", "country_name": "Germany"}"#,
        r#"{"id": 2, "customer_name": "Kurt", "campaign": null, "country_name": "Norway"}"#,
        r#"{"id": 3, "customer_name": null, "campaign": null, "country_name": null}"#,
    ];
    let expected = Rows::json(&expected.join("\n"));
    let query = "SELECT id, customer_name, campaign, country_name FROM orders";
    Rows::sqlite(&folder.join("out/enriched.db"), query).assert_same(&expected, "the table");
    let files = Rows::files(&folder.join("out/enriched"));
    files.select(&["id", "customer_name", "campaign", "country_name"]).assert_same(&expected, "the files");
    let totals = r#"{"id": 1, "price": 4.50, "total": 13.50} {"id": 2, "price": 12.00, "total": 12.00} {"id": 3, "price": 4.50, "total": 9.00}"#;
    files.select(&["id", "price", "total"]).assert_same(&Rows::json(&totals.replace("} {", "}\n{")), "what it costs");
    let letters = Rows::files(&folder.join("data/enrich-from-databases/dead-letters"));
    assert!(letters.column("detail").iter().all(|text| text.contains("has no row for item = ")) && letters.len() == 1);
}
