//! Lookups in real servers: several kinds of databases joined in one job, a table that changes, a server that goes away.

use tidemill_tests::{Daemon, Folder, PATIENCE, Rows, Run, daemon::tidemill, eventually, services};

const HEAD: &str = "trigger: 50ms\nsources:\n  orders: { type: directory, path: in, settle: 10ms, schema: { id: int64, customer: int64, item: string, session: string, country: string } }\n";

fn orders(numbers: std::ops::Range<usize>) -> String {
    let order = |n: usize| {
        format!(
            "{{\"id\": {n}, \"customer\": {}, \"item\": \"i{}\", \"session\": \"s{}\", \"country\": \"DE\"}}\n",
            n % 5,
            n % 4,
            n % 3
        )
    };
    numbers.map(order).collect()
}

fn wait_for(folder: &Folder, daemon: &mut Daemon, count: usize) {
    eventually(&format!("{count} rows"), || {
        let found = Rows::try_sqlite(&folder.join("rows.db"), "SELECT id FROM rows").map_or(0, |rows| rows.len());
        if found == count { Ok(()) } else { Err(format!("{found} rows\n{}", daemon.stderr())) }
    });
    assert!(daemon.is_running());
}

/// Rows from PostgreSQL, MariaDB, Redis, SQLite and a file join the orders of one job, whose sink is killed between the
/// anchor and the files; the snapshots of the replay are those of the batch.
#[test]
fn five_kinds_of_tables_in_one_job() {
    let (Some(postgres), Some(mariadb), Some(redis)) = (services::postgres(), services::mariadb(), services::redis())
    else {
        return;
    };
    let pg = postgres.schema("lookup_five");
    postgres.psql_at(&pg, "CREATE TABLE customers (id int, name text); INSERT INTO customers SELECT n, 'c' || n FROM generate_series(0, 3) n");
    let my = mariadb.database("lookup_five");
    mariadb.sql("CREATE TABLE lookup_five.items (id varchar(10) PRIMARY KEY, price decimal(10,2)); INSERT INTO lookup_five.items VALUES ('i0', 0.50), ('i1', 1.50), ('i2', 2.50)");
    redis.cli(&["HSET", "five:s0", "campaign", "spring"]);
    redis.cli(&["HSET", "five:s1", "campaign", "summer"]);
    let folder = Folder::new();
    folder.write("countries.csv", "code,country_name\nDE,Germany\n");
    let sqlite = rusqlite::Connection::open(folder.join("stock.db")).unwrap();
    sqlite
        .execute_batch("CREATE TABLE stock (item TEXT, pieces INTEGER); INSERT INTO stock VALUES ('i0', 7), ('i3', 9)")
        .unwrap();
    folder.publish("in/a.json", orders(0..60));
    let job = format!(
        "job: five\ndatabases:\n  crm: ${{PG}}\n  shop: {{ url: \"${{MY}}\" }}\n  cache: ${{KV}}\n  stock: stock.db\n{HEAD}steps:\n\
         \x20 - lookup: {{ database: crm, sql: \"SELECT id, name FROM customers\", match: {{ customer: id }}, take: {{ name: customer_name }} }}\n\
         \x20 - lookup: {{ database: shop, table: items, match: {{ item: id }}, take: [price], mode: query }}\n\
         \x20 - lookup: {{ database: cache, key: \"five:{{session}}\", take: [campaign] }}\n\
         \x20 - lookup: {{ database: stock, table: stock, match: [item], take: [pieces] }}\n\
         \x20 - lookup: {{ table: countries.csv, match: {{ country: code }}, take: [country_name] }}\n\
         sinks:\n  db: {{ type: sqlite, path: rows.db, table: rows }}\n  out: {{ type: files, path: out }}\n"
    );
    let run = Run::new(&folder).job(&job).env("PG", &pg).env("MY", &my).env("KV", &redis.url);
    run.clone().failpoint("after-anchor:1:kill").start().expect_killed();
    postgres.psql_at(&pg, "UPDATE customers SET name = 'changed'");
    sqlite.execute_batch("DELETE FROM stock").unwrap();
    run.once().expect_success();
    let quoted = |text: Option<String>| text.map_or("null".to_owned(), |text| format!("\"{text}\""));
    let expected = (0..60).map(|n| {
        let customer = quoted((n % 5 < 4).then(|| format!("c{}", n % 5)));
        let price = if n % 4 < 3 { format!("{}.50", n % 4) } else { "null".to_owned() };
        let campaign = quoted(["spring", "summer"].get(n % 3).map(|text| (*text).to_owned()));
        let pieces = ["7", "null", "null", "9"][n % 4];
        format!(
            "{{\"id\": {n}, \"customer_name\": {customer}, \"price\": {price}, \"campaign\": {campaign}, \"pieces\": {pieces}, \"country_name\": \"Germany\"}}"
        )
    });
    let columns = ["id", "customer_name", "price", "campaign", "pieces", "country_name"];
    let expected = Rows::json(&expected.collect::<Vec<_>>().join("\n"));
    Rows::files(&folder.join("out")).select(&columns).assert_same(&expected, "the files");
    let table =
        Rows::sqlite(&folder.join("rows.db"), "SELECT id, customer_name, campaign, pieces, country_name FROM rows");
    table.assert_same(&expected.select(&["id", "customer_name", "campaign", "pieces", "country_name"]), "the table");
    // Nobody is told a password.
    let explained = tidemill_with(&folder, &[("PG", &pg), ("MY", &my), ("KV", &redis.url)]);
    assert!(!explained.contains(&postgres.password), "{explained}");
    assert!(explained.contains("a query of database crm (${PG})"), "{explained}");
}

fn tidemill_with(folder: &Folder, env: &[(&str, &str)]) -> String {
    let mut command = std::process::Command::new(tidemill_tests::binary::tidemill());
    command.args(["explain", "job.yaml"]).current_dir(folder.path()).envs(env.iter().copied());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_table_of_a_database_is_looked_at_again_and_the_same_one_is_kept_once() {
    let Some(postgres) = services::postgres() else { return };
    let pg = postgres.schema("lookup_again");
    postgres.psql_at(&pg, "CREATE TABLE customers (id int PRIMARY KEY, name text); INSERT INTO customers SELECT n, 'c' || n FROM generate_series(0, 3) n");
    let folder = Folder::new();
    let job = format!(
        "job: again\ndatabases: {{ crm: \"{pg}\" }}\n{HEAD}steps:\n\
         \x20 - {{ name: crm, lookup: {{ database: crm, table: customers, match: {{ customer: id }}, take: [name], refresh: 100ms }} }}\n\
         sinks:\n  db: {{ type: sqlite, path: rows.db, table: rows }}\n"
    );
    folder.publish("in/a.json", orders(0..10));
    let mut daemon = Run::new(&folder).job(&job).spawn();
    wait_for(&folder, &mut daemon, 10);
    let labels = ["job=\"again\"", "step=\"crm\""];
    // The rows lie elsewhere now, and are the same.
    postgres.psql_at(&pg, "UPDATE customers SET name = name WHERE id < 2");
    let looked = |daemon: &Daemon| daemon.metric("tidemill_lookup_refresh_timestamp_seconds", &labels);
    let before = looked(&daemon);
    eventually("another look", || if looked(&daemon) > before + 0.3 { Ok(()) } else { Err("none".to_owned()) });
    let kept = || tidemill_tests::oracle::files(&folder.join("data/again/lookups")).len();
    assert_eq!(kept(), 1);
    postgres.psql_at(&pg, "UPDATE customers SET name = 'new ' || name; INSERT INTO customers VALUES (4, 'new c4')");
    eventually("the new table", || match daemon.metric("tidemill_lookup_rows", &labels) {
        5.0 => Ok(()),
        rows => Err(format!("{rows} rows")),
    });
    folder.publish("in/b.json", orders(10..20));
    wait_for(&folder, &mut daemon, 20);
    let names =
        Rows::sqlite(&folder.join("rows.db"), "SELECT name FROM rows WHERE id >= 10 ORDER BY id").column("name");
    assert!(names.iter().all(|name| name.contains("new c")), "{names:?}");
    daemon.term();
    daemon.expect_success();
}

#[test]
fn a_batch_waits_for_a_server_that_is_away() {
    let place = Folder::new();
    let Some(redis) = services::Redis::private(place.path()) else { return };
    for n in 0..3 {
        redis.cli(&["SET", &format!("campaign:s{n}"), &format!("{{\"campaign\": \"c{n}\"}}")]);
    }
    let folder = Folder::new();
    let job = format!(
        "job: away\ndatabases: {{ kv: \"{}\" }}\n{HEAD}steps:\n\
         \x20 - {{ name: kv, lookup: {{ database: kv, key: \"campaign:{{session}}\", value: json, take: [campaign], cache: {{ entries: 0 }}, timeout: 5s }} }}\n\
         sinks:\n  db: {{ type: sqlite, path: rows.db, table: rows }}\n",
        redis.url
    );
    folder.publish("in/a.json", orders(0..30));
    let mut daemon = Run::new(&folder).job(&job).spawn();
    wait_for(&folder, &mut daemon, 30);
    redis.kill();
    folder.publish("in/b.json", orders(30..60));
    eventually("the lane to say what it waits for", || {
        let ready = daemon.get("/ready").map_err(|error| error.to_string())?;
        if ready.status == 503 && ready.body.contains("keys campaign:{session} of database kv") {
            return Ok(());
        }
        Err(format!("{} {}", ready.status, ready.body))
    });
    redis.start();
    wait_for(&folder, &mut daemon, 60);
    let rows = Rows::sqlite(&folder.join("rows.db"), "SELECT id, campaign FROM rows");
    let expected = (0..60).map(|n| format!("{{\"id\": {n}, \"campaign\": \"c{}\"}}", n % 3));
    rows.assert_same(&Rows::json(&expected.collect::<Vec<_>>().join("\n")), "the table");
    assert!(!daemon.stderr().contains(&redis.password), "{}", daemon.stderr());
}

#[test]
fn validate_reaches_every_database() {
    let (Some(postgres), Some(redis)) = (services::postgres(), services::redis()) else { return };
    let pg = postgres.schema("lookup_validate");
    postgres.psql_at(&pg, "CREATE TABLE customers (id float8, name text)");
    let folder = Folder::new();
    folder.write(
        "job.yaml",
        format!(
            "job: connected\ndatabases: {{ crm: \"{pg}\", kv: \"{}\" }}\n{HEAD}steps:\n\
             \x20 - lookup: {{ database: crm, table: customers, match: {{ customer: id }}, take: [nmae] }}\n\
             \x20 - lookup: {{ database: kv, key: \"k:{{session}}\", take: [campaign] }}\n\
             sinks:\n  nowhere: {{ type: blackhole }}\n",
            redis.url
        ),
    );
    let output = tidemill(&folder, &["validate", "job.yaml", "--connect"]);
    let (said, out) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(out.contains("lookup 1-lookup: reached"), "{out}");
    assert!(said.contains("has no column `nmae`; did you mean `name`? There are: id, name"), "{said}");
    assert!(said.contains("`customer` is int64 and `id` of table customers of database crm is float64"), "{said}");
    assert!(out.contains("lookup 2-lookup: reached"), "{out}");
    // The columns of Redis are known without it: whether it is there has to be asked all the same.
    let port = redis.port.to_string();
    for (right, wrong, told) in [(&redis.password, "not-this-one", "connecting"), (&port, "1", "connecting")] {
        let kv = redis.url.replace(right.as_str(), wrong);
        let text = std::fs::read_to_string(folder.join("job.yaml")).unwrap().replace(&redis.url, &kv);
        folder.write("wrong.yaml", text);
        let output = tidemill(&folder, &["validate", "wrong.yaml", "--connect"]);
        let (said, out) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        assert!(
            !out.contains("lookup 2-lookup: reached") && said.contains("2-lookup: keys k:{session}"),
            "{out} {said}"
        );
        assert!(said.contains(told) && !said.contains("not-this-one"), "{said}");
    }
}

/// What is no matter of time stops the job, and what is wrong with one row's key or value does not.
#[test]
fn a_question_that_no_retry_answers_stops_the_job() {
    let (Some(postgres), Some(redis)) = (services::postgres(), services::redis()) else { return };
    let pg = postgres.schema("lookup_stops");
    postgres.psql_at(
        &pg,
        "CREATE TABLE customers (id int, tags int[], name text); INSERT INTO customers VALUES (1, '{1}', 'a')",
    );
    redis.cli(&["HSET", "stops:s1", "age", "abc"]);
    let folder = Folder::new();
    folder.publish("in/a.json", orders(0..10));
    let job = |lookup: &str| {
        format!(
            "job: stops\ndatabases: {{ crm: \"{pg}\", kv: \"{}\" }}\n{HEAD}steps:\n  - lookup: {{ {lookup} }}\n\
             sinks:\n  db: {{ type: sqlite, path: rows.db, table: rows }}\n",
            redis.url
        )
    };
    for (lookup, said) in [
        ("match: { customer: id }, take: [name], schema: { id: int64, name: int64 }", "column `name`: "),
        ("match: { item: tags }, take: [name]", "key `tags` is of a type that the database does not compare"),
    ] {
        let job = job(&format!("database: crm, table: customers, mode: query, {lookup}"));
        let mut once = Run::new(&folder).job(&job).limit(PATIENCE).once();
        once.expect_code(1);
        assert!(once.stderr().contains(said), "{}", once.stderr());
    }
    let output = tidemill(&folder, &["validate", "job.yaml", "--connect"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && told.contains("key `tags` is of a type"), "{told}");
    let of_redis = job("database: kv, key: \"stops:{session}\", take: [age], schema: { session: string, age: int32 }");
    Run::new(&folder).job(&of_redis).once().expect_success();
    let rows = Rows::sqlite(&folder.join("rows.db"), "SELECT id FROM rows WHERE age IS NULL");
    assert_eq!(rows.len(), 10);
}

#[test]
fn whole_numbers_of_a_table_are_those_of_the_rows() {
    let Some(mariadb) = services::mariadb() else { return };
    let my = mariadb.database("lookup_unsigned");
    mariadb.sql("USE lookup_unsigned; CREATE TABLE customers (id bigint unsigned PRIMARY KEY, name text); INSERT INTO customers VALUES (1, 'c1'), (18446744073709551615, 'last')");
    let rows = "{\"id\": 1, \"big\": \"1\"}\n{\"id\": -1, \"big\": \"18446744073709551615\"}\n";
    for mode in ["snapshot", "query"] {
        for (column, expected) in [("id", ["\"c1\"", "null"]), ("big", ["\"c1\"", "\"last\""])] {
            let folder = Folder::new();
            folder.publish("in/a.json", rows);
            let job = format!(
                "job: unsigned\ndatabases: {{ shop: \"{my}\" }}\n\
                 sources:\n  in: {{ type: directory, path: in, schema: {{ id: int64, big: \"decimal(20,0)\" }} }}\n\
                 steps:\n  - lookup: {{ database: shop, table: customers, match: {{ {column}: id }}, take: [name], mode: {mode} }}\n\
                 sinks:\n  out: {{ type: files, path: out }}\n"
            );
            Run::new(&folder).job(&job).once().expect_success();
            let expected =
                format!("{{\"id\": 1, \"name\": {}}}\n{{\"id\": -1, \"name\": {}}}", expected[0], expected[1]);
            Rows::files(&folder.join("out")).select(&["id", "name"]).assert_same(&Rows::json(&expected), mode);
        }
    }
}
