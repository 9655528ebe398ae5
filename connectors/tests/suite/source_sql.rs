//! What the SQL source makes of types, ties, orders and tables that are not as they should be, in each kind of database.

use std::{sync::Arc, time::Duration};

use crate::sources::{ALL, Kind, lane, sql::Table};
use tidemill_checkpoint::{Position, Positions};
use tidemill_config::{Codec, Field, Located, SourceKind, SqlFrom, SqlSource, Start, Type};
use tidemill_connectors::source::{self, Budget, History, Proposal, Settings, Source, SourceError, SourceEvent};

/// Runs a case in each kind of database that is there.
fn each(case: impl AsyncFn(Kind, &Table)) {
    let mut tried = 0;
    for kind in [Kind::Sqlite, Kind::Postgres, Kind::Mariadb, Kind::Mysql] {
        let dir = tempfile::tempdir().unwrap();
        let Some(table) = Table::new(kind, dir.path()) else { continue };
        println!("{kind:?}");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(case(kind, &table));
        tried += 1;
    }
    assert!(tried > 0);
}

fn try_open(sql: SqlSource) -> Result<Arc<dyn Source>, SourceError> {
    open_with(sql, None)
}

fn open_with(sql: SqlSource, schema: Option<Vec<Field>>) -> Result<Arc<dyn Source>, SourceError> {
    let config = tidemill_config::Source {
        name: Located { value: "in".to_owned(), at: Default::default() },
        formerly: None,
        kind: SourceKind::Sql(sql),
        codec: Codec::Json,
        schema,
        metadata: Vec::new(),
    };
    let settings = Settings {
        job: "job".to_owned(),
        partitioned: false,
        spool: "unused".into(),
        owner: "me".to_owned(),
        ahead_bytes: 1 << 20,
        trigger: Duration::ZERO,
    };
    source::open(&config, &settings)
}

fn open(sql: SqlSource) -> Arc<dyn Source> {
    try_open(sql).unwrap()
}

fn of(table: &str) -> SqlFrom {
    SqlFrom::Table(table.to_owned())
}

async fn begin(source: &Arc<dyn Source>) -> Positions {
    let origin = source.origin(&lane()).await.unwrap().positions;
    source.adopt(&lane(), &origin, &History::default()).await.unwrap();
    origin
}

/// The rows of each batch, as JSON, from the spans alone: what a replay reads.
async fn batches(source: &Arc<dyn Source>, at: &mut Positions, budget: Budget) -> Vec<Vec<serde_json::Value>> {
    let mut all = Vec::new();
    while let Some(proposal) = source.plan(&lane(), at, budget).await.unwrap() {
        let bare = Proposal { spans: proposal.spans.clone(), ..Proposal::default() };
        let read = source.read(&lane(), &bare).await.unwrap();
        let rows = read.slices.iter().flat_map(|slice| (0..slice.records.len()).map(|n| slice.record(n)));
        all.push(rows.map(|row| serde_json::from_slice(row).unwrap()).collect());
        for (shard, span) in proposal.spans {
            assert_eq!(at.insert(shard, span.to), Some(span.from));
        }
    }
    all
}

/// A column that many rows share, alone in the order: a page never ends between them.
#[test]
fn rows_with_one_key_are_read_together_and_each_once() {
    each(async |_, table| {
        table.run("CREATE TABLE ties (k INT, n INT)");
        // 1 has two rows, 2 has seven, 3 has one, and so on.
        let rows: Vec<_> =
            (0..900).map(|n| format!("({}, {n})", [1, 1, 2, 2, 2, 2, 2, 2, 2, 3][n % 10] + n / 10 * 3)).collect();
        table.run(&format!("INSERT INTO ties VALUES {}", rows.join(", ")));
        for records in [1, 2, 3, 5, 100, 1000] {
            let source = open(table.source(of("ties"), &["k"]));
            let mut at = begin(&source).await;
            let batches = batches(&source, &mut at, Budget { records, ..ALL }).await;
            let mut seen: Vec<i64> = batches.iter().flatten().map(|row| row["n"].as_i64().unwrap()).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..900).collect::<Vec<_>>(), "{records}");
            for pair in batches.windows(2) {
                assert_ne!(pair[0].last().unwrap()["k"], pair[1][0]["k"], "{records}: a key is in two batches");
                assert!(pair[0].len() <= records.max(7), "{} rows for {records}", pair[0].len());
            }
        }
    });
}

#[test]
fn every_type_arrives_without_a_loss() {
    each(async |kind, table| {
        let (columns, values, expected) = match kind {
            Kind::Postgres => (
                "id int, big bigint, amount numeric(30,10), ratio float8, yes boolean, t timestamptz, plain timestamp, day date,
                 bytes bytea, tags text[], doc jsonb, u uuid, name text",
                "1, 9223372036854775807, 12345678901234567890.0123456789, 0.1, true, '2015-05-17 12:05:03.000001+02',
                 '2015-05-17 10:05:03', '2015-05-17', '\\x00ff', '{a,\"b c\"}', '{\"x\": [1, null]}',
                 '6ba7b810-9dad-11d1-80b4-00c04fd430c8', E'it''s \\\\ \"é\"'",
                r#"{"id":1,"big":9223372036854775807,"amount":"12345678901234567890.0123456789","ratio":0.1,"yes":true,
                "t":"2015-05-17T10:05:03.000001Z","plain":"2015-05-17T10:05:03.000000Z","day":"2015-05-17","bytes":"AP8=",
                "tags":["a","b c"],"doc":{"x":[1,null]},"u":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","name":"it's \\ \"é\""}"#,
            ),
            Kind::Mariadb | Kind::Mysql => (
                "id int, big bigint unsigned, amount decimal(30,10), ratio double, yes tinyint(1), t timestamp(6) null,
                 plain datetime, day date, bytes blob, bits bit(10), doc json, name text",
                "1, 18446744073709551615, 12345678901234567890.0123456789, 0.1, 1, '2015-05-17 10:05:03.000001',
                 '2015-05-17 10:05:03', '2015-05-17', x'00ff', b'1000000001', '[1, {\"x\": null}]', 'it''s \\\\ \"é\"'",
                r#"{"id":1,"big":18446744073709551615,"amount":"12345678901234567890.0123456789","ratio":0.1,"yes":true,
                "t":"2015-05-17T10:05:03.000001Z","plain":"2015-05-17T10:05:03Z","day":"2015-05-17","bytes":"AP8=",
                "bits":513,"doc":DOC,"name":"it's \\ \"é\""}"#,
            ),
            _ => (
                "id integer, big bigint, ratio real, t text, bytes blob, name text",
                "1, 9223372036854775807, 0.1, '2015-05-17T10:05:03Z', x'00ff', 'it''s \\ \"é\"'",
                r#"{"id":1,"big":9223372036854775807,"ratio":0.1,"t":"2015-05-17T10:05:03Z","bytes":"AP8=","name":"it's \\ \"é\""}"#,
            ),
        };
        table.run(&format!("CREATE TABLE kinds ({columns}); INSERT INTO kinds VALUES ({values})"));
        table.run("INSERT INTO kinds (id) VALUES (2)");
        let source = open(table.source(of("kinds"), &["id"]));
        let mut at = begin(&source).await;
        let rows = batches(&source, &mut at, ALL).await.concat();
        // MariaDB has no type for JSON, but texts.
        let doc = if kind == Kind::Mysql { r#"[1, {"x": null}]"# } else { r#""[1, {\"x\": null}]""# };
        let expected: serde_json::Value = serde_json::from_str(&expected.replace("DOC", doc)).unwrap();
        assert_eq!(rows[0], expected);
        let nulls = rows[1].as_object().unwrap();
        assert!(nulls.iter().all(|(name, value)| value.is_null() != (name == "id")), "{nulls:?}");
    });
}

/// What the servers write in short, or not at all, where they are not asked for all of it.
#[test]
fn times_and_floats_at_the_edge_arrive_as_they_are() {
    each(async |kind, table| {
        let (columns, values, expected) = match kind {
            Kind::Postgres => (
                "id int, t timestamptz, plain timestamp, old timestamp, day date, span interval",
                "1, 'infinity', '-infinity', '0044-03-15 10:00:00 BC', '0044-03-15 BC', '1 day 02:00'",
                r#"{"id":1,"t":"infinity","plain":"-infinity","old":"0044-03-15 10:00:00 BC","day":"0044-03-15 BC","span":"1 day 02:00:00"}"#,
            ),
            Kind::Mariadb | Kind::Mysql => (
                "id int, f float, g float, h float",
                "1, 16777215, 0.1, 1.17549435e-38",
                r#"{"id":1,"f":16777215.0,"g":0.1,"h":1.1754944e-38}"#,
            ),
            _ => return,
        };
        table.run(&format!("CREATE TABLE edges ({columns}); INSERT INTO edges VALUES ({values})"));
        let source = open(table.source(of("edges"), &["id"]));
        let mut at = begin(&source).await;
        let rows = batches(&source, &mut at, ALL).await.concat();
        assert_eq!(rows, [serde_json::from_str::<serde_json::Value>(expected).unwrap()]);
        if kind == Kind::Postgres {
            for order in ["t", "plain", "old", "day"] {
                let refused = open(table.source(of("edges"), &[order])).check().await.err().unwrap().to_string();
                assert!(refused.contains(&format!("column `{order}`")), "{refused}");
            }
        }
    });
}

/// Each kind of value that can be in the order, asked for again from the position that it gave.
#[test]
fn keys_of_every_kind_are_found_again() {
    each(async |kind, table| {
        let mut orders = vec![
            ("BIGINT", vec!["0", "9", "10", "9223372036854775807"]),
            (
                "VARCHAR(20)",
                vec!["''", "'10'", "'9'", "'A'", "'a'", "'a\t'", "'a '", "'a\"b'", "'a:b'", "'b c'", "'é'", "'🌊'"],
            ),
        ];
        match kind {
            Kind::Sqlite => {}
            _ => orders.extend([
                ("DECIMAL(30)", vec!["1", "99999999999999999999", "100000000000000000000"]),
                ("DATE", vec!["'0999-01-01'", "'2015-05-17'", "'2015-05-18'"]),
                (
                    "TIMESTAMP(6)",
                    vec!["'2015-05-17 10:05:03'", "'2015-05-17 10:05:03.000001'", "'2015-05-17 10:05:04'"],
                ),
            ]),
        }
        if kind == Kind::Postgres {
            orders.push(("TIMESTAMPTZ", vec!["'2015-05-17 10:05:03.1+02'", "'2015-05-17 10:05:03.1+00'"]));
            orders.push((
                "UUID",
                vec!["'0ba7b810-9dad-11d1-80b4-00c04fd430c8'", "'6ba7b810-9dad-11d1-80b4-00c04fd430c8'"],
            ));
        }
        for (of_type, values) in orders {
            table.run(&format!("DROP TABLE IF EXISTS keys_of; CREATE TABLE keys_of (n INT, k {of_type})"));
            // In any order but that of the keys.
            for (n, value) in values.iter().enumerate().rev() {
                table.run(&format!("INSERT INTO keys_of VALUES ({n}, {value})"));
            }
            table.run("INSERT INTO keys_of VALUES (99, NULL)");
            let source = open(table.source(of("keys_of"), &["k"]));
            let mut at = begin(&source).await;
            let batches = batches(&source, &mut at, Budget { records: 1, ..ALL }).await;
            let read: Vec<_> = batches.iter().map(|batch| batch[0]["n"].as_u64().unwrap()).collect();
            assert_eq!(read, (0..values.len() as u64).collect::<Vec<_>>(), "{kind:?} {of_type}");
            assert!(batches.iter().all(|batch| batch.len() == 1), "{of_type}");
        }
    });
}

#[test]
fn a_query_is_read_like_a_table() {
    each(async |_, table| {
        table.bring(0..10);
        for end in [";", " -- the first ones"] {
            let query = SqlFrom::Query(format!("SELECT id AS number, line FROM posts WHERE id < 5{end}"));
            let source = open(table.source(query, &["number"]));
            source.check().await.unwrap();
            let mut at = begin(&source).await;
            let rows = batches(&source, &mut at, Budget { records: 2, ..ALL }).await.concat();
            assert_eq!(rows.iter().map(|row| row["number"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        }
    });
}

#[test]
fn latest_begins_behind_what_is_there() {
    each(async |_, table| {
        table.bring(0..10);
        let source = open(SqlSource { start: Start::Latest, ..table.source(of("posts"), &["id"]) });
        let mut at = begin(&source).await;
        assert!(batches(&source, &mut at, ALL).await.is_empty());
        table.bring(10..13);
        assert_eq!(
            tokio::time::timeout(crate::sources::SOON, source.event()).await.unwrap().unwrap(),
            SourceEvent::Data
        );
        assert_eq!(batches(&source, &mut at, ALL).await.concat().len(), 3);
    });
}

/// A row of a transaction that ends late would have been passed.
#[test]
fn rows_settle_before_they_are_read() {
    each(async |kind, table| {
        let (now, hour) = match kind {
            Kind::Postgres => ("now() AT TIME ZONE 'UTC'", "interval '1 hour'"),
            _ => ("UTC_TIMESTAMP()", "interval 1 hour"),
        };
        let settling = SqlSource { settle: Duration::from_secs(600), ..table.source(of("posts"), &["at", "id"]) };
        if kind == Kind::Sqlite {
            let error = try_open(settling).err().unwrap().to_string();
            assert!(error.contains("`settle`"), "{error}");
            return;
        }
        table.run(&format!("INSERT INTO posts VALUES (1, {now} - {hour}, 'old'), (2, {now}, 'new')"));
        let source = open(settling);
        let mut at = begin(&source).await;
        let rows = batches(&source, &mut at, ALL).await.concat();
        assert_eq!(rows.iter().map(|row| &row["line"]).collect::<Vec<_>>(), ["old"]);
        source.finish();
        assert_eq!(source.event().await.unwrap(), SourceEvent::End, "what has not settled is not waited for");
    });
}

#[test]
fn what_cannot_be_read_is_named_with_the_way_out() {
    each(async |kind, table| {
        table.run("CREATE TABLE odd (f FLOAT, n INT, t TEXT)");
        let error = async |sql: SqlSource| open(sql).check().await.err().unwrap();
        let absent = error(table.source(of("absent"), &["id"])).await;
        assert!(!absent.is_transient() && absent.to_string().contains("absent"), "{absent}");
        let column = error(table.source(of("odd"), &["nothing"])).await;
        assert!(!column.is_transient() && column.to_string().contains("nothing"), "{column}");
        if kind == Kind::Postgres {
            let cased = error(table.source(of("odd"), &["N"])).await.to_string();
            assert!(cased.contains("there is no column `N`") && cased.contains("there is `n`"), "{cased}");
        }
        if kind != Kind::Sqlite {
            let float = error(table.source(of("odd"), &["f"])).await.to_string();
            assert!(float.contains("column `f` of `order_by`") && float.contains("timestamps"), "{float}");
            let settle = SqlSource { settle: Duration::from_secs(1), ..table.source(of("odd"), &["n"]) };
            let settle = error(settle).await.to_string();
            assert!(settle.contains("`settle` needs a timestamp"), "{settle}");
        }
        table.run("INSERT INTO odd (n) VALUES (-1)");
        let negative = error(table.source(of("odd"), &["n"])).await.to_string();
        assert!(negative.contains("`n`") && negative.contains("0"), "{negative}");
        if kind == Kind::Sqlite {
            table.run("DELETE FROM odd; INSERT INTO odd (t) VALUES (CAST(x'61ff' AS TEXT))");
            let bytes = error(table.source(of("odd"), &["t"])).await.to_string();
            assert!(bytes.contains("`t`") && bytes.contains("UTF-8"), "{bytes}");
        }
    });
}

#[test]
fn another_order_does_not_go_on_from_a_position_and_an_emptied_table_is_said() {
    each(async |_, table| {
        table.bring(0..5);
        let source = open(table.source(of("posts"), &["id"]));
        let mut at = begin(&source).await;
        assert_eq!(batches(&source, &mut at, ALL).await.concat().len(), 5);
        let other = open(table.source(of("posts"), &["at", "id"]));
        let error = other.adopt(&lane(), &at, &History::default()).await.err().unwrap().to_string();
        assert!(error.contains("in the order of id") && error.contains("at, id"), "{error}");
        let same = open(table.source(of("posts"), &["id"]));
        assert!(same.adopt(&lane(), &at, &History::default()).await.unwrap().warnings.is_empty());
        table.run("DELETE FROM posts WHERE id > 1");
        let adopted = same.adopt(&lane(), &at, &History::default()).await.unwrap();
        assert!(adopted.warnings[0].contains("emptied or restored"), "{:?}", adopted.warnings);
        let wrong = at.keys().map(|shard| (shard.clone(), Position::text("what"))).collect();
        assert!(same.adopt(&lane(), &wrong, &History::default()).await.is_err());
    });
}

/// MySQL has no booleans but small integers: what the job says of such a column counts, whatever its values are.
#[test]
fn what_the_schema_says_of_flags_counts() {
    each(async |kind, table| {
        if !matches!(kind, Kind::Mariadb | Kind::Mysql) {
            return;
        }
        table.run(
            "CREATE TABLE flags (id INT, t TINYINT(1), u TINYINT(1) UNSIGNED, b BIT(1), y YEAR);
            INSERT INTO flags VALUES (1, 1, 0, b'1', 2024), (2, 5, 200, b'0', 0), (3, 0, 1, b'1', 1999), (4, -1, 1, b'0', 2000)",
        );
        let read = async |of_flags: Option<Type>| -> Vec<serde_json::Value> {
            let field = |name: &str, kind: Type| Field {
                name: name.to_owned(),
                kind: Located { value: kind, at: Default::default() },
            };
            let schema = of_flags.map(|kind| {
                let of = |name| field(name, kind.clone());
                vec![field("id", Type::Int32), of("t"), of("u"), of("b"), field("y", Type::Int32)]
            });
            let source = open_with(table.source(of("flags"), &["id"]), schema).unwrap();
            let mut at = begin(&source).await;
            let rows = batches(&source, &mut at, ALL).await.concat();
            rows.into_iter().map(|row| serde_json::json!([row["t"], row["u"], row["b"]])).collect()
        };
        let json = |rows: serde_json::Value| rows.as_array().unwrap().clone();
        assert_eq!(
            read(Some(Type::Int32)).await,
            json(serde_json::json!([[1, 0, 1], [5, 200, 0], [0, 1, 1], [-1, 1, 0]]))
        );
        assert_eq!(
            read(Some(Type::Boolean)).await,
            json(serde_json::json!([
                [true, false, true],
                [true, true, false],
                [false, true, true],
                [true, true, false]
            ]))
        );
        assert_eq!(
            read(None).await,
            json(serde_json::json!([[true, false, 1], [5, 200, 0], [false, true, 1], [-1, true, 0]]))
        );
    });
}
