//! Tables of lookups in the real servers: types, keys, what is asked, and what is said where something is missing.

use std::{path::Path, sync::Arc};

use crate::services;
use arrow::{
    array::{ArrayRef, AsArray, BinaryArray, Int64Array, RecordBatch, StringArray},
    compute::{cast, lexsort_to_indices, take_record_batch},
    datatypes::{DataType, Int64Type, TimestampMicrosecondType},
    util::display::{ArrayFormatter, FormatOptions},
};
use tidemill_config::{Database, DatabaseAddress, Job, Lookup, Verb};
use tidemill_connectors::{
    LookupTable,
    codec::type_name,
    lookup::{self, LookupError},
};

/// A lookup as a job writes it.
fn lookup(database: &str, options: &str) -> Lookup {
    let text = format!(
        "job: a\ndatabases: {{ db: \"{database}\" }}\nsources: {{ s: {{ type: directory, path: in }} }}\n\
         steps:\n  - lookup: {{ database: db, {options} }}\nsinks: {{ out: {{ type: blackhole }} }}\n"
    );
    let env = std::collections::BTreeMap::new();
    let job = Job::parse(&text, Path::new("job.yaml"), &env).unwrap_or_else(|errors| panic!("{errors}"));
    let Verb::Lookup(lookup) = &job.steps[0].verb else { panic!() };
    (**lookup).clone()
}

fn open(database: &str, options: &str) -> Arc<dyn LookupTable> {
    lookup::open(&lookup(database, options)).unwrap()
}

/// Runs a case in a runtime of its own.
fn run<T>(case: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(case)
}

/// `id int64`, ...
fn columns(rows: &RecordBatch) -> Vec<String> {
    let schema = rows.schema();
    schema.fields().iter().map(|field| format!("{} {}", field.name(), type_name(field.data_type()))).collect()
}

/// Rows as texts, in the order of the first column.
fn values(rows: &RecordBatch) -> Vec<String> {
    let order = arrow::compute::SortColumn { values: rows.column(0).clone(), options: None };
    let rows = take_record_batch(rows, &lexsort_to_indices(&[order], None).unwrap()).unwrap();
    let options = FormatOptions::default().with_null("null");
    // Without the zone, which is UTC.
    let cell = |column: &ArrayRef, row: usize| {
        let plain: ArrayRef = match column.data_type() {
            DataType::Timestamp(..) => {
                Arc::new(column.as_primitive::<TimestampMicrosecondType>().clone().with_timezone_opt(None::<Arc<str>>))
            }
            _ => column.clone(),
        };
        ArrayFormatter::try_new(&plain, &options).unwrap().value(row).to_string()
    };
    (0..rows.num_rows())
        .map(|row| rows.columns().iter().map(|column| cell(column, row)).collect::<Vec<_>>().join(" "))
        .collect()
}

fn keys(names: &[(&str, DataType)], rows: &[&[&str]]) -> RecordBatch {
    let column = |index: usize| {
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row[index])));
        match &names[index].1 {
            DataType::Timestamp(unit, zone) => {
                let plain = cast(&texts, &DataType::Timestamp(*unit, None)).unwrap();
                let plain = plain.as_primitive::<TimestampMicrosecondType>().clone();
                Arc::new(plain.with_timezone_opt(zone.clone())) as ArrayRef
            }
            kind => cast(&texts, kind).unwrap(),
        }
    };
    RecordBatch::try_from_iter((0..names.len()).map(|index| (names[index].0, column(index)))).unwrap()
}

fn numbers(name: &str, range: std::ops::Range<i64>) -> RecordBatch {
    let values: ArrayRef = Arc::new(Int64Array::from_iter_values(range));
    RecordBatch::try_from_iter([(name, values)]).unwrap()
}

/// What every database that speaks SQL gives: `people` has `id`, `shop`, `name`, and 2,500 rows.
async fn speaks_sql(database: &str) {
    let whole = open(database, "table: people, match: { n: id }, take: [name]");
    let rows = whole.read(None).await.unwrap();
    assert_eq!(rows.num_rows(), 2500);
    assert_eq!(values(&rows)[..2], ["1 n1", "2 null"]);
    let again = whole.read(Some(&rows.schema())).await.unwrap();
    assert_eq!(values(&again), values(&rows));
    let all = whole.schema().await.unwrap();
    assert!(all.field_with_name("shop").is_ok(), "the columns that are not taken are told too: {all}");
    let query = open(database, "sql: \"SELECT id, name FROM people WHERE id <= 3;\", match: { n: id }, take: [name]");
    assert_eq!(values(&query.read(None).await.unwrap()), ["1 n1", "2 null", "3 n3"]);
    let query =
        open(database, "sql: \"SELECT id, name FROM people WHERE id = 3 -- one\", match: { n: id }, take: [name]");
    assert_eq!(values(&query.read(None).await.unwrap()), ["3 n3"]);
    // Keys: none, some that are not there, more than one statement takes.
    let asked = open(database, "table: people, match: { n: id }, take: [name], mode: query, cache: { entries: 0 }");
    let of = |rows: &RecordBatch| rows.column(0).as_primitive::<Int64Type>().len();
    let none = asked.ask(&numbers("id", 0..0)).await.unwrap();
    assert_eq!((none.queries, none.rows.num_rows()), (0, 0));
    let some = asked.ask(&numbers("id", 2499..2600)).await.unwrap();
    assert_eq!((values(&some.rows), some.queries), (vec!["2499 n2499".to_owned(), "2500 null".into()], 1));
    let many = asked.ask(&numbers("id", -500..2400)).await.unwrap();
    assert_eq!(of(&many.rows), 2399);
    assert!(many.queries <= 3, "{}", many.queries);
    let two = open(
        database,
        "sql: SELECT * FROM people, match: { s: shop, n: id }, take: [name], mode: query, cache: { entries: 0 }",
    );
    let pairs =
        keys(&[("shop", DataType::Utf8), ("id", DataType::Int64)], &[&["s1", "1"], &["s1", "2"], &["s'\"`", "3"]]);
    let found = two.ask(&pairs).await.unwrap();
    assert_eq!((values(&found.rows), found.queries), (vec!["s'\"` 3 n3".to_owned(), "s1 1 n1".into()], 1));
    remembers(database).await;
    // What is missing is named.
    let missing = open(database, "table: nobody, match: { n: id }, take: [name]").read(None).await.unwrap_err();
    assert!(missing.to_string().contains("nobody"), "{missing}");
    let wrong = open(database, "sql: SELEC 1, match: { n: id }, take: [name]").read(None).await.unwrap_err();
    assert!(wrong.to_string().contains("a query of database db"), "{wrong}");
    let small = open(database, "table: people, match: { n: id }, take: [name], max_bytes: 1kB");
    assert!(small.read(None).await.unwrap_err().to_string().contains("more than `max_bytes` (1000 bytes)"));
    let typed = open(database, "table: people, match: { n: id }, take: [name], schema: { id: int32, name: int64 }");
    let error = typed.read(None).await.unwrap_err().to_string();
    assert!(error.contains("column `name`") && error.contains("n1"), "{error}");
    let unknown = open(database, "table: people, match: { n: ident }, take: [name]").read(None).await.unwrap_err();
    assert!(unknown.to_string().contains("no column `ident`. There are: id, shop, name"), "{unknown}");
    // What waiting does not mend, when keys are asked for.
    let typed = "table: people, match: { n: id }, take: [name], mode: query, schema: { id: int64, name: int64 }";
    let error = open(database, typed).ask(&numbers("id", 1..4)).await.unwrap_err();
    assert!(!error.transient && error.to_string().contains("column `name`"), "{error}");
    let gone = open(database, "table: nobody, match: { n: id }, take: [name], mode: query");
    assert!(!gone.ask(&numbers("id", 1..4)).await.unwrap_err().transient);
}

/// Keys are asked for once in the cache's time, those that are not there too.
async fn remembers(database: &str) {
    let cached = |cache: &str| {
        open(database, &format!("table: people, match: {{ n: id }}, take: [name], mode: query, cache: {cache}"))
    };
    let long = cached("{ entries: 1000, ttl: 1h }");
    let queries = async |table: &Arc<dyn LookupTable>, range: std::ops::Range<i64>| {
        let asked = table.ask(&numbers("id", range.clone())).await.unwrap();
        let expected = range.filter(|n| (1..=2500).contains(n)).count();
        assert_eq!(asked.rows.num_rows(), expected);
        asked.queries
    };
    assert_eq!(queries(&long, -10..10).await, 1);
    assert_eq!(queries(&long, -10..10).await, 0);
    assert_eq!(queries(&long, 5..15).await, 1);
    assert_eq!(queries(&long, -10..15).await, 0);
    // More keys than are remembered: the newest stay.
    assert_eq!(queries(&long, 1000..1600).await, 1);
    assert_eq!(queries(&long, 1200..1600).await, 0);
    assert_eq!(queries(&long, 1600..2100).await, 1);
    assert_eq!(queries(&long, -10..10).await, 1);
    let short = cached("{ entries: 1000, ttl: 0ms }");
    assert_eq!((queries(&short, 1..5).await, queries(&short, 1..5).await), (1, 1));
}

/// What is equal to the database only, is not: `cases` has one row, with the key `a`, which its collation takes for `A` too.
async fn has_cases(database: &str) {
    let texts =
        |texts: &[&str]| keys(&[("k", DataType::Utf8)], &texts.iter().map(std::slice::from_ref).collect::<Vec<_>>());
    let open = |cache: &str| {
        let options = format!("table: cases, match: {{ k: k }}, take: [v], mode: query, cache: {cache}");
        open(database, &options)
    };
    let cached = open("{ entries: 1000, ttl: 1h }");
    for (asked, expected) in [(&["a"][..], 1), (&["a", "A"], 1), (&["A"], 0), (&["a"], 1)] {
        assert_eq!(cached.ask(&texts(asked)).await.unwrap().rows.num_rows(), expected, "{asked:?}");
    }
    // In two statements.
    let many: Vec<String> = (0..1500).map(|n| n.to_string()).collect();
    let many: Vec<&str> = ["a"].into_iter().chain(many.iter().map(String::as_str)).chain(["A"]).collect();
    assert_eq!(open("{ entries: 0 }").ask(&texts(&many)).await.unwrap().rows.num_rows(), 1);
}

/// `people` in the SQL that all three understand.
fn people() -> String {
    let rows = (1..=2500).map(|id| {
        let name = if id % 2 == 0 { "NULL".to_owned() } else { format!("'n{id}'") };
        let shop = if id == 3 { "s''\"`".to_owned() } else { format!("s{id}") };
        format!("({id}, '{shop}', {name})")
    });
    format!(
        "CREATE TABLE people (id BIGINT, shop VARCHAR(20), name VARCHAR(20)); INSERT INTO people VALUES {};",
        rows.collect::<Vec<_>>().join(", ")
    )
}

#[test]
fn sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.db");
    let database = path.to_str().unwrap();
    let absent =
        run(async { open(database, "table: people, match: { n: id }, take: [name]").read(None).await }).unwrap_err();
    assert!(absent.to_string().contains("shop.db") && !path.exists(), "{absent}");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch(&people()).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE cases (k VARCHAR(20) COLLATE NOCASE, v INTEGER); INSERT INTO cases VALUES ('a', 1);
             CREATE TABLE kinds (i INTEGER, r REAL, t TEXT, b BLOB, f BOOLEAN, d DECIMAL(10,2), x ANY);
             INSERT INTO kinds VALUES (1, 1.5, 'a', x'00ff', 1, 1.25, 7), (2, NULL, NULL, NULL, 0, 2, 7.5)",
        )
        .unwrap();
    run(async {
        speaks_sql(database).await;
        has_cases(database).await;
        let options = "match: { n: i }, take: [r, t, b, f, d, x]";
        let rows = open(database, &format!("table: kinds, {options}")).read(None).await.unwrap();
        let types = ["i int64", "r float64", "t string", "b binary", "f boolean", "d float64", "x float64"];
        assert_eq!(columns(&rows), types);
        assert_eq!(values(&rows), ["1 1.5 a 00ff true 1.25 7.0", "2 null null null false 2.0 7.5"]);
        // Only values tell the type of `x`: who asks for keys has none of them.
        let asked = format!("table: kinds, {options}, mode: query");
        let error = open(database, &asked).schema().await.unwrap_err().to_string();
        assert!(error.contains("type of column `x`: give it by `schema`"), "{error}");
        let given =
            "schema: { i: int64, r: float64, t: string, b: binary, f: boolean, d: \"decimal(10,2)\", x: string }";
        let asked = open(database, &format!("{asked}, {given}"));
        let found = asked.ask(&numbers("i", 1..2)).await.unwrap().rows;
        assert_eq!(values(&found), ["1 1.5 a 00ff true 1.25 7"]);
        assert_eq!(columns(&found)[5..], ["d decimal(10,2)", "x string"]);
        let asked = open(
            database,
            "sql: SELECT i AS n FROM kinds, match: { n: n }, take: { n: m }, mode: query, schema: { n: \"decimal(20,0)\" }",
        );
        let found = asked.ask(&keys(&[("n", DataType::Decimal128(20, 0))], &[&["2"], &["18446744073709551615"]])).await;
        assert_eq!(values(&found.unwrap().rows), ["2"]);
        let text = open(
            database,
            "sql: \"SELECT 1 AS i, CAST(x'00ff' AS TEXT) AS t\", match: { n: i }, take: [t], mode: query, schema: { i: int64, t: string }",
        );
        let error = text.ask(&numbers("i", 1..2)).await.unwrap_err();
        assert!(
            !error.transient && error.to_string().contains("column `t`: the bytes 00ff are a text that is not UTF-8"),
            "{error}"
        );
    });
}

#[test]
fn postgres() {
    let Some(server) = services::postgres() else { return };
    let url = server.schema("lookups");
    server.psql_at(&url, &people());
    server.psql_at(
        &url,
        "CREATE TYPE mood AS ENUM ('good', 'bad');
         CREATE TABLE kinds (s smallint, i int, b bigint, f float8, n numeric(10,2), free numeric, t text, c char(3), u uuid,
           ts timestamptz, d date, y bytea, o boolean, j jsonb, m mood);
         INSERT INTO kinds VALUES (1, 2, 3, 1.5, 1.25, 1.125, 'a', 'DE', '00000000-0000-0000-0000-000000000001',
           '2024-02-03 04:05:06.5+02', '2024-02-03', '\\x00ff', true, '{\"a\": 1}', 'good');",
    );
    run(async {
        speaks_sql(&url).await;
        let take = "take: [i, b, f, n, free, t, c, u, ts, d, y, o, j, m]";
        let rows = open(&url, &format!("table: kinds, match: {{ n: s }}, {take}")).read(None).await.unwrap();
        let types = [
            "s int32",
            "i int32",
            "b int64",
            "f float64",
            "n decimal(10,2)",
            "free string",
            "t string",
            "c string",
            "u string",
            "ts timestamp",
            "d date",
            "y binary",
            "o boolean",
            "j string",
            "m string",
        ];
        assert_eq!(columns(&rows), types);
        assert_eq!(
            values(&rows),
            [
                "1 2 3 1.5 1.25 1.125 a DE 00000000-0000-0000-0000-000000000001 2024-02-03T02:05:06.500 2024-02-03 00ff true {\"a\": 1} good"
            ]
        );
        // Keys of every type are compared by the database in that type.
        for (column, kind, key) in [
            ("s", DataType::Int32, "1"),
            ("n", DataType::Decimal128(10, 2), "1.25"),
            ("free", DataType::Utf8, "1.125"),
            ("t", DataType::Utf8, "a"),
            ("c", DataType::Utf8, "DE"),
            ("u", DataType::Utf8, "00000000-0000-0000-0000-000000000001"),
            ("ts", rows.schema().field(9).data_type().clone(), "2024-02-03T02:05:06.500Z"),
            ("d", DataType::Date32, "2024-02-03"),
            ("o", DataType::Boolean, "true"),
            ("m", DataType::Utf8, "good"),
        ] {
            let asked = open(&url, &format!("table: kinds, match: {{ k: {column} }}, take: [i], mode: query"));
            let found = asked
                .ask(&keys(&[(column, kind)], &[&[key]]))
                .await
                .unwrap_or_else(|error| panic!("{column}: {error}"));
            assert_eq!((found.rows.num_rows(), found.queries), (1, 1), "{column}");
        }
        // A key that is none of the column's type is missing, and the others are there.
        let id = "00000000-0000-0000-0000-000000000001";
        let stamp = rows.schema().field(9).data_type().clone();
        for (column, kind, here, bad) in [
            ("u", DataType::Utf8, id, "n/a"),
            ("u", DataType::Utf8, id, "a\0b"),
            ("t", DataType::Utf8, "a", "a\0"),
            ("m", DataType::Utf8, "good", "worse"),
            ("s", DataType::Int32, "1", "70000"),
            ("free", DataType::Utf8, "1.125", "much"),
        ] {
            let asked = open(&url, &format!("table: kinds, match: {{ k: {column} }}, take: [i], mode: query"));
            let found = asked.ask(&keys(&[(column, kind)], &[&[bad], &[here]])).await;
            let found = found.unwrap_or_else(|error| panic!("{column}: {error}"));
            assert_eq!(found.rows.num_rows(), 1, "{column}");
        }
        let asked = open(&url, "table: kinds, match: { k: y }, take: [i], mode: query");
        let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![&[0, 255]]));
        let found = asked.ask(&RecordBatch::try_from_iter([("y", bytes)]).unwrap()).await.unwrap();
        assert_eq!((found.rows.num_rows(), found.queries), (1, 1));
        let columns = "k: u, a: ts, b: i, c: d, e: f, g: n";
        let asked = open(&url, &format!("table: kinds, match: {{ {columns} }}, take: [s], mode: query"));
        let kinds = [
            ("u", DataType::Utf8),
            ("ts", stamp),
            ("i", DataType::Int32),
            ("d", DataType::Date32),
            ("f", DataType::Float64),
            ("n", DataType::Decimal128(10, 2)),
        ];
        let row = |id| [id, "2024-02-03T02:05:06.500Z", "2", "2024-02-03", "1.5", "1.25"];
        let found = asked.ask(&keys(&kinds, &[&row("n/a"), &row(id)])).await.unwrap();
        assert_eq!((found.rows.num_rows(), found.queries), (1, 2));
        // Types without an equality are told before somebody asks.
        for (kind, value) in [("int[]", "ARRAY[1]"), ("json", "'{}'")] {
            let key =
                format!("sql: \"SELECT {value}::{kind} AS k, 1 AS v\", match: {{ s: k }}, take: [v], mode: query");
            let error = open(&url, &key).check().await.unwrap_err().to_string();
            assert!(error.contains("key `k` is of a type that the database does not compare: cast it"), "{error}");
        }
        // Nothing can be written, whatever the query says.
        let writes = open(
            &url,
            "sql: \"WITH w AS (DELETE FROM people RETURNING id, name) SELECT * FROM w\", match: { n: id }, take: [name]",
        );
        assert!(writes.read(None).await.is_err());
        let slow = open(
            &url,
            "sql: \"SELECT 1 AS id, pg_sleep(60)::text AS name\", match: { n: id }, take: [name], timeout: 500ms",
        );
        let error = slow.read(None).await.unwrap_err().to_string();
        assert!(error.contains("no answer in 500ms") || error.contains("statement timeout"), "{error}");
        refused(&url.replace(&format!(":{}@", server.password), ":wrong@"), "password").await;
    });
    assert_eq!(server.psql_at(&url, "SELECT count(*) FROM people").trim(), "2500");
}

#[test]
fn mariadb() {
    let Some(server) = services::mariadb() else { return };
    speaks_mysql(&server);
}

#[test]
fn mysql() {
    let Some(server) = services::mysql() else { return };
    speaks_mysql(&server);
}

fn speaks_mysql(server: &services::Mysql) {
    let url = server.database("lookups");
    server.sql(&format!("USE lookups; SET sql_mode = ''; {}", people()));
    server.sql(
        "USE lookups;
         CREATE TABLE cases (k VARCHAR(20) COLLATE utf8mb4_general_ci, v INTEGER); INSERT INTO cases VALUES ('a', 1);
         CREATE TABLE kinds (t tinyint, i int, u int unsigned, b bigint, bu bigint unsigned, f double, n decimal(10,2), c char(2),
           x text, y varbinary(10), dt datetime(3), ts timestamp, d date, e enum('good','bad'), j json, r float, r0 float);
         CREATE TABLE sets (l varchar(9) CHARACTER SET latin1, m varchar(9) CHARACTER SET utf8mb3, u bigint unsigned, v int);
         INSERT INTO sets VALUES ('a', 'a', 7, 1), ('b', 'b', 18446744073709551615, 2);
         SET time_zone = '+02:00';
         INSERT INTO kinds VALUES (1, 2, 4000000000, 3, 18446744073709551615, 1.5, 1.25, 'DE', 'a', x'00ff', '2024-02-03 04:05:06.5',
           '2024-02-03 04:05:06', '2024-02-03', 'good', '{\"a\": 1}', 1234567.75, 0.1);",
    );
    run(async {
        speaks_sql(&url).await;
        has_cases(&url).await;
        let take = "take: [i, u, b, bu, f, n, c, x, y, dt, ts, d, e, j, r, r0]";
        let whole = open(&url, &format!("table: kinds, match: {{ n: t }}, {take}")).read(None).await.unwrap();
        let types = [
            "t int32",
            "i int32",
            "u int64",
            "b int64",
            "bu decimal(20,0)",
            "f float64",
            "n decimal(10,2)",
            "c string",
            "x string",
            "y binary",
            "dt timestamp",
            "ts timestamp",
            "d date",
            "e string",
            "j string",
            "r float64",
            "r0 float64",
        ];
        assert_eq!(columns(&whole), types);
        let expected = "1 2 4000000000 3 18446744073709551615 1.5 1.25 DE a 00ff 2024-02-03T04:05:06.500 2024-02-03T02:05:06 2024-02-03 good {\"a\": 1} 1234567.8 0.1";
        assert_eq!(values(&whole), [expected]);
        // By the other protocol the values are the same.
        let asked = open(&url, &format!("table: kinds, match: {{ n: t }}, {take}, mode: query"));
        let found = asked.ask(&keys(&[("t", DataType::Int32)], &[&["1"]])).await.unwrap();
        assert_eq!((values(&found.rows), columns(&found.rows)), (vec![expected.to_owned()], columns(&whole)));
        for (column, kind, key) in [
            ("n", DataType::Decimal128(10, 2), "1.25"),
            ("bu", DataType::Decimal128(20, 0), "18446744073709551615"),
            ("c", DataType::Utf8, "DE"),
            ("dt", whole.schema().field(10).data_type().clone(), "2024-02-03T04:05:06.500Z"),
            ("d", DataType::Date32, "2024-02-03"),
        ] {
            let asked = open(&url, &format!("table: kinds, match: {{ k: {column} }}, take: [i], mode: query"));
            let found = asked
                .ask(&keys(&[(column, kind)], &[&[key]]))
                .await
                .unwrap_or_else(|error| panic!("{column}: {error}"));
            assert_eq!(found.rows.num_rows(), 1, "{column}");
        }
        for (column, set) in [("l", "latin1"), ("m", "utf8mb3")] {
            let asked = open(&url, &format!("table: sets, match: {{ k: {column} }}, take: [v], mode: query"));
            let some = [&["a"][..], &["\u{1f30a}"], &["b"], &["\u{1f30b}"], &["c"]];
            let found = asked.ask(&keys(&[(column, DataType::Utf8)], &some)).await;
            let found = found.unwrap_or_else(|error| panic!("{set}: {error}"));
            assert_eq!(values(&found.rows), ["a 1", "b 2"], "{set}");
            assert!((2..10).contains(&found.queries), "{set}: {} queries", found.queries);
            let alone = open(&url, &format!("table: sets, match: {{ k: {column} }}, take: [v], mode: query"));
            let none = alone.ask(&keys(&[(column, DataType::Utf8)], &[&["\u{1f30a}"]])).await.unwrap();
            assert_eq!((none.rows.num_rows(), none.queries), (0, 1), "{set}");
        }
        let two = open(&url, "table: sets, match: { k: l, n: v }, take: [m], mode: query");
        let pairs = keys(&[("l", DataType::Utf8), ("v", DataType::Int32)], &[&["a", "1"], &["\u{1f30a}", "1"]]);
        assert_eq!(values(&two.ask(&pairs).await.unwrap().rows), ["a 1 a"]);
        // Whole numbers of any size, in one question.
        let whole_numbers = [&["18446744073709551615"][..], &["7"], &["9223372036854775808"], &["-1"]];
        let asked = open(&url, "table: sets, match: { k: u }, take: [v], mode: query");
        let found = asked.ask(&keys(&[("u", DataType::Decimal128(20, 0))], &whole_numbers)).await.unwrap();
        assert_eq!(values(&found.rows), ["7 1", "18446744073709551615 2"]);
        // Sessions are those of the sink, whatever the server would give them.
        let settings = "sql: \"SELECT 1 AS id, concat(@@character_set_client, ' ', @@sql_mode) AS name\"";
        let set = open(&url, &format!("{settings}, match: {{ n: id }}, take: [name]")).read(None).await.unwrap();
        let of_sink =
            "1 utf8mb4 STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_AUTO_VALUE_ON_ZERO,NO_ENGINE_SUBSTITUTION";
        let sorted = |text: &str| text.split([' ', ',']).map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
        let mut found = sorted(&values(&set)[0]);
        // MariaDB cuts digits of a second without that.
        found.remove("TIME_TRUNCATE_FRACTIONAL");
        assert_eq!(found, sorted(of_sink));
        let slow =
            open(&url, "sql: \"SELECT 1 AS id, sleep(60) AS name\", match: { n: id }, take: [name], timeout: 500ms");
        assert!(slow.read(None).await.unwrap_err().to_string().contains("no answer in 500ms"));
        refused(&url.replace(&format!(":{}@", server.password), ":wrong@"), "Access denied").await;
    });
}

#[test]
fn redis() {
    let Some(server) = services::redis() else { return };
    for (key, name) in [("lk:user:1", "Ada"), ("lk:user:2", "Grace")] {
        server.cli(&["HSET", key, "name", name, "age", "36"]);
    }
    server.cli(&["HSET", "lk:user:3", "age", "1"]);
    server.cli(&["SET", "lk:json:a:1", "{\"name\": \"Ada\", \"age\": 36, \"more\": [1]}"]);
    server.cli(&["SET", "lk:json:a:2", "no JSON"]);
    server.cli(&["SET", "lk:text:1", "one"]);
    server.cli(&["SET", "lk:user:text", "no hash"]);
    server.cli(&["HSET", "lk:user:old", "name", "Alan", "age", "abc"]);
    for set in
        [r"redis.call('SET', 'lk:text:bytes', '\255\254')", r"redis.call('HSET', 'lk:user:bytes', 'name', '\255')"]
    {
        server.cli(&["EVAL", set, "0"]);
    }
    let ids = |ids: &[&str]| keys(&[("id", DataType::Utf8)], &ids.iter().map(std::slice::from_ref).collect::<Vec<_>>());
    run(async {
        let url = &server.url;
        let hash = open(url, "key: \"lk:user:{id}\", take: [name], cache: { entries: 0 }");
        let found = hash.ask(&ids(&["1", "2", "3", "4"])).await.unwrap();
        // The third has a hash, and no such field in it.
        assert_eq!((values(&found.rows), found.queries), (vec!["1 Ada".to_owned(), "2 Grace".into()], 1));
        assert_eq!(columns(&found.rows), ["id string", "name string"]);
        // What is no hash is missing, and keeps no other key from being found.
        assert_eq!(values(&hash.ask(&ids(&["text", "1"])).await.unwrap().rows), ["1 Ada"]);
        let typed =
            open(url, "key: \"lk:user:{id}\", take: [name, age], schema: { id: string, name: string, age: int32 }");
        let found = typed.ask(&ids(&["1", "3"])).await.unwrap().rows;
        assert_eq!(values(&found), ["1 Ada 36", "3 null 1"]);
        assert_eq!(columns(&found), ["id string", "name string", "age int32"]);
        // A value that is none of its type is missing, whatever holds it, and keeps no other key from being found.
        assert_eq!(values(&typed.ask(&ids(&["old", "2", "bytes"])).await.unwrap().rows), ["2 Grace 36"]);
        assert_eq!(values(&hash.ask(&ids(&["bytes", "1", "old"])).await.unwrap().rows), ["1 Ada", "old Alan"]);
        // Remembered, with what is not there.
        assert_eq!(typed.ask(&ids(&["1", "3", "4"])).await.unwrap().queries, 1);
        assert_eq!(typed.ask(&ids(&["4", "3", "1"])).await.unwrap().queries, 0);
        let json = open(
            url,
            "key: \"lk:json:{kind}:{id}\", value: json, take: [name, age], schema: { kind: string, id: string, name: string, age: int64 }",
        );
        let asked = keys(&[("kind", DataType::Utf8), ("id", DataType::Utf8)], &[&["a", "1"], &["a", "2"], &["b", "1"]]);
        assert_eq!(values(&json.ask(&asked).await.unwrap().rows), ["a 1 Ada 36"]);
        let text = open(url, "key: \"lk:text:{id}\", value: text, take: { value: word }");
        assert_eq!(values(&text.ask(&ids(&["1", "2", "bytes"])).await.unwrap().rows), ["1 one"]);
        let thousands: Vec<String> = (0..2500).map(|n| n.to_string()).collect();
        let found = hash.ask(&ids(&thousands.iter().map(String::as_str).collect::<Vec<_>>())).await.unwrap();
        assert_eq!((found.rows.num_rows(), found.queries), (2, 3));
        let wrong = lookup::open(&lookup(url, "key: \"lk:text:{id}\", value: text, take: [word]"));
        assert!(wrong.err().unwrap().to_string().contains("take: { value: word }"));
        let denied = url.replace(&server.password, "wrong");
        let error = open(&denied, "key: \"lk:user:{id}\", take: [name]").ask(&ids(&["1"])).await.unwrap_err();
        assert!(!error.transient, "{error}");
        without_secrets(&error.into(), "wrong");
        let away = open("redis://127.0.0.1:1/0", "key: \"lk:user:{id}\", take: [name]");
        assert!(away.ask(&ids(&["1"])).await.unwrap_err().transient);
        let unread = lookup::open(&lookup("redis://127.0.0.1:x/0", "key: \"lk:user:{id}\", take: [name]"));
        assert!(unread.err().unwrap().to_string().contains("redis://HOST:PORT/0"));
    });
}

#[test]
fn a_slow_redis_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = services::Redis::private(folder.path()) else { return };
    server.cli(&["SET", "word:1", "one"]);
    server.cli(&["CLIENT", "PAUSE", "1500"]);
    run(async {
        let text = open(&server.url, "key: \"word:{id}\", value: text, take: { value: word }, timeout: 60s");
        let asked = keys(&[("id", DataType::Utf8)], &[&["1"]]);
        assert_eq!(values(&text.ask(&asked).await.unwrap().rows), ["1 one"]);
    });
}

/// A server that does not let us in, one that is not there, and one that is something else.
async fn refused(url: &str, said: &str) {
    let options = "table: people, match: { n: id }, take: [name]";
    let error = open(url, options).read(None).await.unwrap_err();
    assert!(error.to_string().contains(said), "{error}");
    without_secrets(&error, "wrong");
    let asked = format!("{options}, mode: query");
    assert!(!open(url, &asked).ask(&numbers("id", 1..4)).await.unwrap_err().transient);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (scheme, _) = url.split_once("://").unwrap();
    let away = format!("{scheme}://me:hunter2@127.0.0.1:{port}/shop");
    let error = open(&away, options).read(None).await.unwrap_err();
    assert!(error.to_string().contains("connecting"), "{error}");
    without_secrets(&error, "hunter2");
    assert!(open(&away, &asked).ask(&numbers("id", 1..4)).await.unwrap_err().transient);
}

fn without_secrets(error: &LookupError, secret: &str) {
    assert!(!error.to_string().contains(secret), "{error}");
}

#[test]
fn certificates() {
    let (Some(postgres), Some(mariadb), Some(mysql)) = (services::postgres(), services::mariadb(), services::mysql())
    else {
        return;
    };
    let with = |address: DatabaseAddress, ca: &Path| {
        let mut lookup = lookup("x.db", "sql: SELECT 1 AS id, match: { n: id }, take: { id: one }, timeout: 20s");
        let tidemill_config::LookupTable::Sql { database, .. } = &mut lookup.table else { panic!() };
        *database = Database { name: "db".into(), address, ca: Some(ca.to_owned()) };
        lookup::open(&lookup).unwrap()
    };
    run(async {
        let url = format!("{}?sslmode=verify-full", postgres.url);
        let rows = with(DatabaseAddress::Postgres(url), &postgres.ca).read(None).await.unwrap();
        assert_eq!(rows.num_rows(), 1);
        let url = format!("{}?require_ssl=true", mariadb.url);
        let rows = with(DatabaseAddress::Mysql(url), &mariadb.ca).read(None).await.unwrap();
        assert_eq!(rows.num_rows(), 1);
        // The certificate that it made itself is for no host.
        let url = format!("{}?verify_identity=false", mysql.url);
        let rows = with(DatabaseAddress::Mysql(url.clone()), &mysql.ca).read(None).await.unwrap();
        assert_eq!(rows.num_rows(), 1);
        let error = with(DatabaseAddress::Mysql(url), &mariadb.ca).read(None).await.unwrap_err();
        assert!(error.to_string().contains("certificate verify failed"), "{error}");
    });
}
