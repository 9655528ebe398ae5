//! Right lookups and what they mean.
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use tidemill_config::{
    Codec, Database, DatabaseAddress, Duplicates, Job, Located, Lookup, LookupMode, LookupTable, OnLost, OnMissing,
    RedisValue, SqlRows, Type, Verb,
};

const DATABASES: &str = "databases:
  file: shop.db
  other: sqlite:/var/shop.db
  pg: { url: \"${PG}\", ca: ca.pem }
  my: mariadb://me@h/shop
  kv: rediss://h/1
";

fn lookup(options: &str) -> Lookup {
    let text = format!(
        "job: a\n{DATABASES}sources: {{ s: {{ type: directory, path: in }} }}\nsteps:\n  - lookup: {{ {options} }}\n\
         sinks: {{ out: {{ type: blackhole }} }}\n"
    );
    let env = BTreeMap::from([("PG".to_owned(), "postgres://me:pw@h/shop".to_owned())]);
    let job = Job::parse(&text, Path::new("jobs/job.yaml"), &env).unwrap_or_else(|errors| panic!("{errors}"));
    let Verb::Lookup(lookup) = &job.steps[0].verb else { panic!() };
    (**lookup).clone()
}

fn here(path: &str) -> PathBuf {
    std::env::current_dir().unwrap().join(path)
}

fn pairs(all: &[(Located<String>, Located<String>)]) -> Vec<(&str, &str)> {
    all.iter().map(|(a, b)| (a.value.as_str(), b.value.as_str())).collect()
}

fn database(lookup: &Lookup) -> &Database {
    match &lookup.table {
        LookupTable::Sql { database, .. } | LookupTable::Redis { database, .. } => database,
        LookupTable::File { .. } => panic!(),
    }
}

/// What a replay does without its table, where the job does not say.
#[test]
fn a_table_that_decides_where_rows_are_is_not_replaced_without_being_told() {
    let goes_on = |lookup: &str, after: &str, sinks: &str| {
        let text = format!(
            "job: a\nsources: {{ s: {{ type: directory, path: in }} }}\nsteps:\n  - filter: x > 1\n  - lookup: {{ table: t.csv, \
             match: id, take: name{lookup} }}\n{after}sinks: {{ out: {{ type: blackhole{sinks} }}\n"
        );
        let job =
            Job::parse(&text, Path::new("job.yaml"), &BTreeMap::new()).unwrap_or_else(|errors| panic!("{errors}"));
        let Verb::Lookup(lookup) = &job.steps[1].verb else { panic!() };
        assert!(lookup.on_lost_table.is_some() || job.on_lost_table(&job.steps[1], lookup, false) == OnLost::Stop);
        job.on_lost_table(&job.steps[1], lookup, true) == OnLost::Continue
    };
    let one = " }";
    let two = " }, files: { type: blackhole }";
    let chosen = " }, files: { type: blackhole, where: name = 'x' }";
    let filter = "  - filter: name > 'm'\n";
    for sinks in [one, two] {
        assert!(goes_on("", "  - rename: { name: title }\n  - cast: { id: int64 }\n", sinks));
        assert!(!goes_on(", on_missing: reject", "", sinks), "a dead letter, and a row");
        assert!(!goes_on(", on_lost_table: stop", "", sinks));
    }
    for (lookup, after) in [
        (", on_missing: drop", ""),
        ("", filter),
        ("", "  - drop_nulls: name\n"),
        ("", "  - drop_empty: name\n"),
        ("", "  - split: { column: name, by: ' ' }\n"),
        ("", "  - sql: SELECT name, count(*) AS n FROM batch GROUP BY name\n"),
        ("", "  - lookup: { table: u.csv, match: name, take: x, on_missing: drop }\n"),
    ] {
        assert!(goes_on(lookup, after, one), "{lookup} {after}: there is one sink");
        assert!(!goes_on(lookup, after, two), "{lookup} {after}");
    }
    assert!(!goes_on("", "", chosen));
    assert!(goes_on(", on_missing: reject, on_lost_table: continue", filter, chosen));
}

#[test]
fn a_file() {
    let given = lookup("table: tables/countries.csv.gz, match: { country: code }, take: [name, region]");
    let LookupTable::File { path, codec: Codec::Csv(csv) } = &given.table else { panic!() };
    assert_eq!(
        (path.as_path(), csv.delimiter.as_str(), csv.header),
        (here("jobs/tables/countries.csv.gz").as_path(), ",", true)
    );
    assert_eq!(pairs(&given.keys), [("country", "code")]);
    assert_eq!(pairs(&given.take), [("name", "name"), ("region", "region")]);
    assert_eq!((given.on_missing, given.duplicates), (OnMissing::Null, Duplicates::Fail));
    let usual = LookupMode::Snapshot { refresh: Duration::from_secs(1), max_bytes: 256 << 20 };
    assert_eq!((given.mode, given.timeout, given.schema), (usual, Duration::from_secs(30), None));
    for (table, json) in [("t.ndjson.zst", true), ("T.JSON", true), ("t.tsv", false)] {
        let given = lookup(&format!("table: {table}, match: id, take: name"));
        assert!(
            matches!(&given.table, LookupTable::File { codec: Codec::Json, .. } if json)
                || matches!(&given.table, LookupTable::File { codec: Codec::Csv(csv), .. } if !json && csv.delimiter == "\t")
        );
    }
    let given = lookup(
        "table: t.dat, codec: { type: csv, delimiter: ';' }, match: [a, b], take: { x: a_x }, on_missing: null, \
         duplicates: last, refresh: 5m, max_bytes: 1kB, schema: { a: string, b: int32, x: string }",
    );
    assert!(matches!(&given.table, LookupTable::File { codec: Codec::Csv(csv), .. } if csv.delimiter == ";"));
    assert_eq!((pairs(&given.keys), pairs(&given.take)), (vec![("a", "a"), ("b", "b")], vec![("x", "a_x")]));
    assert_eq!(given.mode, LookupMode::Snapshot { refresh: Duration::from_secs(300), max_bytes: 1000 });
    assert_eq!((given.on_missing, given.duplicates), (OnMissing::Null, Duplicates::Last));
    assert_eq!(given.schema.as_ref().unwrap()[1].kind.value, Type::Int32);
    let columns: Vec<&str> = given.columns().iter().map(|column| column.value.as_str()).collect();
    assert_eq!(columns, ["a", "b", "x"]);
}

#[test]
fn databases_and_what_is_read_of_them() {
    let given = lookup("database: pg, sql: SELECT 1, match: id, take: name, on_missing: reject, timeout: 2s");
    let LookupTable::Sql { rows, .. } = &given.table else { panic!() };
    assert_eq!(*rows, SqlRows::Query("SELECT 1".into()));
    let pg = database(&given);
    assert!(matches!(&pg.address, DatabaseAddress::Postgres(url) if url == "postgres://me:pw@h/shop"));
    assert_eq!((pg.ca.as_deref(), pg.shown().as_str()), (Some(here("jobs/ca.pem").as_path()), "postgres://me@h/shop"));
    assert_eq!(format!("{pg:?}"), "Database \"pg\"");
    assert_eq!(given.mode, LookupMode::Snapshot { refresh: Duration::from_secs(60), max_bytes: 256 << 20 });
    assert_eq!((given.on_missing, given.timeout), (OnMissing::Reject, Duration::from_secs(2)));
    let given = lookup("database: my, table: users, match: id, take: name, mode: query, on_missing: drop");
    assert!(matches!(&database(&given).address, DatabaseAddress::Mysql(url) if url == "mysql://me@h/shop"));
    assert_eq!(given.mode, LookupMode::Query { entries: 100_000, ttl: Duration::from_secs(60) });
    for (name, path) in [("file", "jobs/shop.db"), ("other", "/var/shop.db")] {
        let given = lookup(&format!("database: {name}, table: t, match: id, take: name"));
        assert!(matches!(&database(&given).address, DatabaseAddress::Sqlite(at) if *at == here(path)));
    }
}

#[test]
fn redis() {
    let given = lookup(
        "database: kv, key: \"user:{tenant}:{id}:{tenant}\", take: [name], value: json, cache: { entries: 0, ttl: 1s }",
    );
    let LookupTable::Redis { key, value, .. } = &given.table else { panic!() };
    assert_eq!((key.as_str(), *value), ("user:{tenant}:{id}:{tenant}", RedisValue::Json));
    assert_eq!(pairs(&given.keys), [("tenant", "tenant"), ("id", "id")]);
    assert_eq!(given.mode, LookupMode::Query { entries: 0, ttl: Duration::from_secs(1) });
}
