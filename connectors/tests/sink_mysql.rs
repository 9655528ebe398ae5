//! What the MySQL sink makes of types, tables, keys, rows that the table refuses, and servers that go away: with a real
//! MariaDB.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../tests/src/proxy.rs"]
mod proxy;
mod sinks;

use std::{path::Path, sync::Arc, time::Duration};

use arrow::{
    array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array,
        ListArray, RecordBatch, StringArray, StringViewArray, TimestampMicrosecondArray, UInt64Array,
    },
    datatypes::Int64Type,
};
use proxy::Proxy;
use sinks::{Runner, context, mysql, next, services::Mariadb};
use tidemill_checkpoint::{Lane, Permit, Receipt, SinkId};
use tidemill_config::SinkKind;
use tidemill_connectors::sink::{self, Sink, SinkError};

/// A database of a test's own, which ends with it.
struct Place {
    dir: tempfile::TempDir,
    url: String,
    name: String,
    server: &'static Mariadb,
}

impl Place {
    /// `None`: there is no server, and the test is skipped.
    fn new() -> Option<Self> {
        let server = mysql::server()?;
        let dir = tempfile::tempdir().unwrap();
        let (url, name) = (mysql::url(dir.path()), mysql::database(dir.path()));
        Some(Self { dir, url, name, server })
    }

    fn sql(&self, sql: &str) -> Vec<String> {
        self.server.sql(&format!("USE {}; SET NAMES utf8mb4; {sql}", self.name)).lines().map(str::to_owned).collect()
    }

    fn open(&self, table: &str, key: &[&str]) -> Arc<dyn Sink> {
        open(&mysql::config(&self.url, table, key, None))
    }

    /// The address for another user, or another way there.
    fn url_of(&self, user: &str, password: &str, port: u16, database: &str) -> String {
        format!("mysql://{user}:{password}@127.0.0.1:{port}/{database}")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        mysql::forget(self.dir.path());
    }
}

fn open(config: &SinkKind) -> Arc<dyn Sink> {
    sink::open(SinkId::new("db"), "job", config).unwrap()
}

fn table(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

fn numbers(name: &'static str, values: &[Option<i64>]) -> (&'static str, ArrayRef) {
    (name, Arc::new(Int64Array::from(values.to_vec())))
}

fn texts(name: &'static str, values: &[Option<&str>]) -> (&'static str, ArrayRef) {
    (name, Arc::new(StringArray::from(values.to_vec())))
}

fn flags(name: &'static str, values: &[Option<bool>]) -> (&'static str, ArrayRef) {
    (name, Arc::new(BooleanArray::from(values.to_vec())))
}

/// Prepares for the batch's schema and commits it as the next plan of a fresh claim.
async fn write(sink: &Arc<dyn Sink>, batches: &[RecordBatch]) -> Result<Receipt, SinkError> {
    let lane = Lane::single();
    let held = sink.peek(std::slice::from_ref(&lane)).await?.remove(&lane).unwrap();
    let (key, head) = sink.claim(&lane, held.generation().next(), &sinks::owner(1)).await?;
    sink.prepare(&batches[0].schema()).await?;
    let mut runner = Runner { sink: sink.clone(), key, head };
    if runner.head.is_none() {
        runner.step().await?;
    }
    commit(&runner, batches).await
}

/// Commits these rows as the runner's next plan.
async fn commit(runner: &Runner, batches: &[RecordBatch]) -> Result<Receipt, SinkError> {
    let head = runner.head.as_ref().unwrap();
    let (mark, entries) = next(&runner.key, head, &[], 0);
    let staged = runner.sink.stage(&context(&runner.key, &mark, false), batches).await?;
    let permit = Permit::anchor(runner.key.clone(), Some(head.digest), mark, entries);
    runner.sink.commit(vec![(permit, staged)]).await.pop().unwrap()
}

#[tokio::test]
async fn looking_creates_nothing() {
    let Some(place) = Place::new() else { return };
    let sink = place.open("t", &[]);
    sink.peek(&[Lane::single()]).await.unwrap();
    sink.check(None).await.unwrap();
    sink.check(Some(&sinks::batch(1).schema())).await.unwrap();
    assert!(place.sql("SHOW TABLES").is_empty());
    write(&sink, &[sinks::batch(1)]).await.unwrap();
    assert_eq!(place.sql("SHOW TABLES").len(), 5);
    sink.check(Some(&sinks::batch(1).schema())).await.unwrap();
    assert_eq!(place.sql("SELECT count(*) FROM t"), ["3"], "a look writes no row");
}

#[tokio::test]
async fn every_type_is_read_back_by_another_client() {
    let Some(place) = Place::new() else { return };
    let list: ListArray = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None]);
    let batch = table(vec![
        ("text", Arc::new(StringArray::from(vec![Some("it's \\ \"é\" 🌊\u{1}"), None]))),
        ("view", Arc::new(StringViewArray::from(vec![Some("a view that is longer than twelve"), None]))),
        ("small", Arc::new(Int32Array::from(vec![Some(i32::MIN), None]))),
        ("big", Arc::new(Int64Array::from(vec![Some(i64::MAX), None]))),
        ("huge", Arc::new(UInt64Array::from(vec![Some(u64::MAX), None]))),
        ("real", Arc::new(Float64Array::from(vec![Some(0.1 + 0.2), None]))),
        ("yes", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("at", Arc::new(TimestampMicrosecondArray::from(vec![Some(1_431_857_103_000_001), None]).with_timezone("UTC"))),
        ("day", Arc::new(Date32Array::from(vec![Some(16_572), None]))),
        ("price", Arc::new(Decimal128Array::from(vec![Some(-105), None]).with_precision_and_scale(38, 2).unwrap())),
        ("bytes", Arc::new(BinaryArray::from(vec![Some(b"\x00\xff'\\".as_slice()), None]))),
        ("list", Arc::new(list)),
    ]);
    write(&place.open("a `b`", &[]), &[batch]).await.unwrap();
    let sql = "SELECT text = CONCAT('it''s ', CHAR(92), ' \"é\" 🌊', CHAR(1)), view, small, big, huge, real, yes, at, day, price,
        HEX(bytes), list FROM `a ``b```";
    let sql = sql.replace("real,", "`real` = 0.30000000000000004e0,");
    let first = [
        "1\ta view that is longer than twelve\t-2147483648\t9223372036854775807\t18446744073709551615\t1\t1",
        "2015-05-17 10:05:03.000001\t2015-05-17\t-1.05\t00FF275C\t[1,null]",
    ];
    assert_eq!(place.sql(&sql), [first.join("\t"), ["NULL"; 12].join("\t")]);
    let kinds = place.sql(&format!(
        "SELECT column_type FROM information_schema.columns WHERE table_schema = '{}' AND table_name = 'a `b`' ORDER BY ordinal_position",
        place.name
    ));
    let wanted = "longtext longtext int(11) bigint(20) bigint(20) unsigned double tinyint(1) datetime(6) date decimal(38,2) longblob longtext";
    assert_eq!(kinds.join(" "), wanted);
}

/// Times go as UTC, whatever the server's zone is.
#[tokio::test]
async fn a_timestamp_column_holds_the_instant() {
    let Some(place) = Place::new() else { return };
    place.sql("CREATE TABLE t (at TIMESTAMP(6) NULL)");
    let at = TimestampMicrosecondArray::from(vec![1_431_857_103_000_000]).with_timezone("UTC");
    write(&place.open("t", &[]), &[table(vec![("at", Arc::new(at))])]).await.unwrap();
    assert_eq!(place.sql("SELECT UNIX_TIMESTAMP(at) FROM t"), ["1431857103.000000"]);
}

#[tokio::test]
async fn what_is_no_number_there_is_a_reject() {
    let Some(place) = Place::new() else { return };
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![f64::NAN, f64::INFINITY, 0.5, f64::MAX, -0.0]));
    let sink = place.open("t", &[]);
    let receipt = write(&sink, &[table(vec![("x", floats)])]).await.unwrap();
    assert_eq!(receipt.rejected(), 2);
    assert_eq!(place.sql("SELECT count(*), max(x) = 1.7976931348623157e308 FROM t"), ["3\t1"]);
    let rejects = sink.rejects(&Lane::single(), 0).await.unwrap();
    assert_eq!(
        rejects.iter().map(|r| (r.row, &*r.reason)).collect::<Vec<_>>(),
        [(0, "out_of_range"), (1, "out_of_range")]
    );
}

#[tokio::test]
async fn the_last_row_of_a_key_wins_within_a_batch_and_over_batches() {
    let Some(place) = Place::new() else { return };
    let sink = place.open("t", &["k", "s"]);
    let batch = |keys: &[Option<i64>], names: &[Option<&str>], values: &[Option<&str>]| {
        table(vec![numbers("k", keys), texts("s", names), texts("v", values)])
    };
    let (a, b) = (Some("a"), Some("A"));
    let one =
        batch(&[Some(1), Some(2), Some(1), Some(1)], &[a, a, a, b], &[Some("x"), Some("y"), Some("z"), Some("u")]);
    let two = batch(&[Some(2), None], &[a, a], &[None, Some("nobody's")]);
    assert_eq!(write(&sink, &[one, two]).await.unwrap().rejected(), 1);
    let all = "SELECT * FROM t ORDER BY k, s";
    assert_eq!(place.sql(all), ["1\tA\tu", "1\ta\tz", "2\ta\tNULL"], "keys are compared by their bytes");
    write(&sink, &[batch(&[Some(3), Some(1)], &[a, a], &[Some("d"), Some("e")])]).await.unwrap();
    assert_eq!(place.sql(all), ["1\tA\tu", "1\ta\te", "2\ta\tNULL", "3\ta\td"]);
    let rejects = sink.rejects(&Lane::single(), 0).await.unwrap();
    assert_eq!(rejects.iter().map(|reject| (&*reject.reason, reject.row)).collect::<Vec<_>>(), [("null_key", 5)]);
}

#[tokio::test]
async fn rows_with_the_flag_delete_their_key_in_batch_order_and_the_flag_is_not_stored() {
    let Some(place) = Place::new() else { return };
    let sink = open(&mysql::config(&place.url, "t", &["k"], Some("gone")));
    let rows = table(vec![
        numbers("k", &[Some(1), Some(2), Some(3), Some(1), Some(2), Some(2)]),
        flags("gone", &[None, Some(false), Some(true), Some(true), Some(true), Some(false)]),
        texts("v", &[Some("a"), Some("b"), None, None, None, Some("again")]),
    ]);
    write(&sink, &[rows]).await.unwrap();
    assert_eq!(place.sql("SELECT * FROM t"), ["2\tagain"]);
    let rows = table(vec![numbers("k", &[Some(2), None]), flags("gone", &[Some(true); 2]), texts("v", &[None; 2])]);
    assert_eq!(write(&sink, &[rows]).await.unwrap().rejected(), 1);
    assert!(place.sql("SELECT * FROM t").is_empty());
    for (flag, words) in [("absent", "not among the rows' columns"), ("v", "must be boolean")] {
        let sink = open(&mysql::config(&place.url, "t", &["k"], Some(flag)));
        let rows = table(vec![numbers("k", &[Some(1)]), texts("v", &[None])]);
        let error = sink.prepare(&rows.schema()).await.err().unwrap();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_refused_row_costs_one_reject_in_the_same_commit() {
    let Some(place) = Place::new() else { return };
    place.sql(
        "CREATE TABLE parents (id BIGINT PRIMARY KEY); INSERT INTO parents VALUES (1), (2);
        CREATE TABLE t (n BIGINT UNIQUE CHECK (n < 100), s VARCHAR(5) NOT NULL, m SMALLINT UNSIGNED,
            p BIGINT REFERENCES parents (id));
        ALTER TABLE t MODIFY m INT UNSIGNED;
        DELIMITER //
        CREATE TRIGGER no BEFORE INSERT ON t FOR EACH ROW IF NEW.s = 'no' THEN SIGNAL SQLSTATE '45000'; END IF//
        DELIMITER ;",
    );
    let sink = place.open("t", &[]);
    let batch = table(vec![
        numbers("n", &[Some(1), Some(1), Some(100), Some(2), Some(3), Some(4), Some(5), Some(6), Some(7)]),
        texts(
            "s",
            &[
                Some("a"),
                Some("again"),
                Some("large"),
                None,
                Some("toolong"),
                Some("minus"),
                Some("orphn"),
                Some("no"),
                Some("z"),
            ],
        ),
        ("m", Arc::new(Int32Array::from(vec![0, 0, 0, 0, 0, -1, 0, 0, 9]))),
        numbers("p", &[Some(1), None, None, None, None, None, Some(7), None, Some(2)]),
    ]);
    assert_eq!(write(&sink, &[batch]).await.unwrap().rejected(), 7);
    assert_eq!(place.sql("SELECT n, s, m, p FROM t"), ["1\ta\t0\t1", "7\tz\t9\t2"]);
    let rejects = sink.rejects(&Lane::single(), 0).await.unwrap();
    let short: Vec<_> = rejects.iter().map(|r| (r.number, r.seq, r.row, &*r.reason)).collect();
    let expected = ["constraint", "constraint", "constraint", "too_long", "out_of_range", "constraint", "constraint"];
    let expected: Vec<_> = expected.iter().zip(0..).map(|(reason, n)| (n, 1, n + 1, *reason)).collect();
    assert_eq!(short, expected);
    let record: serde_json::Value = serde_json::from_str(&rejects[0].record).unwrap();
    assert_eq!(record, serde_json::json!({ "n": 1, "s": "again", "m": 0, "p": null }));
    assert!(rejects[0].detail.contains("Duplicate entry '1'"), "{}", rejects[0].detail);
    assert!(rejects[3].detail.contains("'s'"), "{}", rejects[3].detail);
    let later = table(vec![
        numbers("n", &[Some(7)]),
        texts("s", &[Some("later")]),
        ("m", Arc::new(Int32Array::from(vec![0]))),
        numbers("p", &[None]),
    ]);
    write(&sink, &[later]).await.unwrap();
    let later = sink.rejects(&Lane::single(), 7).await.unwrap();
    assert_eq!((later.len(), later[0].number, later[0].seq), (1, 7, 2));
}

/// Its record is about as long as the row, and must not be what the server refuses next.
#[tokio::test]
async fn a_row_that_no_statement_can_hold_becomes_a_reject_with_its_beginning() {
    let Some(place) = Place::new() else { return };
    let limit: usize = place.sql("SELECT @@max_allowed_packet")[0].parse().unwrap();
    let sink = place.open("t", &[]);
    let long = "é".repeat(limit / 2);
    let batch = table(vec![numbers("n", &[Some(1), Some(2)]), texts("s", &[Some(&long), Some("short")])]);
    assert_eq!(write(&sink, &[batch]).await.unwrap().rejected(), 1);
    assert_eq!(place.sql("SELECT n, s FROM t"), ["2\tshort"]);
    let rejects = sink.rejects(&Lane::single(), 0).await.unwrap();
    assert_eq!((rejects.len(), rejects[0].row, &*rejects[0].reason), (1, 0, "too_big"));
    let record: serde_json::Value = serde_json::from_str(&rejects[0].record).unwrap();
    assert!(record["too_big"]["bytes"].as_u64().unwrap() > long.len() as u64);
    assert!(record["too_big"]["begins"].as_str().unwrap().starts_with(r#"{"n":1,"s":"éé"#), "{}", rejects[0].record);
}

/// A row among many, over several statements, in the middle of other lanes' rows.
#[tokio::test]
async fn one_bad_row_of_a_hundred_thousand_is_found_by_halves() {
    const ROWS: i64 = 100_000;
    const BAD: i64 = 77_777;
    let Some(place) = Place::new() else { return };
    place.sql(&format!("CREATE TABLE t (n BIGINT PRIMARY KEY CHECK (n <> {BAD}), s TEXT)"));
    let sink = place.open("t", &[]);
    let text = "a text of some length, so that it takes several statements";
    let batch = table(vec![
        ("n", Arc::new(Int64Array::from_iter_values(0..ROWS))),
        ("s", Arc::new(StringArray::from_iter_values((0..ROWS).map(|_| text)))),
    ]);
    assert_eq!(write(&sink, &[batch]).await.unwrap().rejected(), 1);
    assert_eq!(place.sql("SELECT count(*), sum(n) FROM t"), [format!("{}\t{}", ROWS - 1, ROWS * (ROWS - 1) / 2 - BAD)]);
    assert_eq!(sink.rejects(&Lane::single(), 0).await.unwrap()[0].row, BAD as u64);
}

#[tokio::test]
async fn a_table_that_does_not_fit_is_named_with_column_and_types() {
    let Some(place) = Place::new() else { return };
    let cases: [(&str, &[&str], &[&str]); 16] = [
        (
            "CREATE TABLE t (n BIGINT)",
            &[],
            &["`t`", "no column `s` (string)", "ALTER TABLE `t` ADD COLUMN `s` LONGTEXT"],
        ),
        (
            "CREATE TABLE t (n BIGINT, s BIGINT)",
            &[],
            &["column `s` is bigint(20) there and string in the job", "MODIFY"],
        ),
        ("CREATE TABLE t (n TEXT, s TEXT)", &[], &["column `n` is text there and int64 in the job"]),
        ("CREATE TABLE t (n INT, s TEXT)", &[], &["column `n` is int(11) there and int64 in the job", "needs BIGINT"]),
        ("CREATE TABLE t (n DOUBLE, s TEXT)", &[], &["column `n` is double there and int64 in the job"]),
        ("CREATE TABLE t (n DECIMAL(18), s TEXT)", &[], &["column `n` is decimal(18,0) there"]),
        ("CREATE TABLE t (n BIGINT, s TEXT, x TEXT NOT NULL)", &[], &["`x` must not be null"]),
        ("CREATE TABLE t (n BIGINT, s TEXT AS ('a'))", &[], &["column `s` is made by the server"]),
        ("CREATE TABLE t (n BIGINT, s TEXT)", &["n"], &["ADD UNIQUE INDEX (`n`)"]),
        ("CREATE TABLE t (n BIGINT, s VARCHAR(9), UNIQUE (n, s))", &["n"], &["unique index `n` (n, s)"]),
        (
            "CREATE TABLE t (n BIGINT PRIMARY KEY, s VARCHAR(9) UNIQUE)",
            &["n"],
            &["unique index `s` (s)", "a plain one"],
        ),
        ("CREATE TABLE t (n BIGINT, s VARCHAR(9), UNIQUE (s(3)))", &["s"], &["unique index `s`"]),
        ("CREATE TABLE t (n BIGINT, s TEXT) ENGINE=MyISAM", &[], &["MyISAM", "ALTER TABLE `t` ENGINE=InnoDB"]),
        ("CREATE TABLE u (n BIGINT, s TEXT); CREATE VIEW t AS SELECT * FROM u", &[], &["a view: name a table"]),
        ("DO 1", &["nn"], &["key column `nn`", "n, s"]),
        ("CREATE TABLE t (n BIGINT, s TEXT, UNIQUE INDEX u (n))", &["s"], &["unique index `u` (n)"]),
    ];
    let batch = table(vec![numbers("n", &[Some(1)]), texts("s", &[Some("a")])]);
    let clean = "DROP TABLE IF EXISTS t, u; DROP VIEW IF EXISTS t";
    let at: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1]).with_timezone("UTC"));
    let times = table(vec![("at", at)]);
    for (digits, fits) in [("(3)", false), ("", false), ("(6)", true)] {
        place.sql(&format!("{clean}; CREATE TABLE t (at DATETIME{digits} PRIMARY KEY)"));
        let looked = place.open("t", &["at"]).check(Some(&times.schema())).await;
        assert_eq!(looked.is_ok(), fits, "{digits}: {looked:?}");
        let said = looked.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(fits || said.contains("`at`") && said.contains("MODIFY `at` DATETIME(6) NOT NULL"), "{said}");
        place.open("t", &[]).check(Some(&times.schema())).await.unwrap();
    }
    for (sql, key, words) in cases {
        place.sql(&format!("{clean}; {sql}"));
        for error in [
            place.open("t", key).prepare(&batch.schema()).await.err().unwrap(),
            place.open("t", key).check(Some(&batch.schema())).await.err().unwrap(),
        ] {
            assert!(matches!(error, SinkError::Fatal(_)), "{sql}: {error:?}");
            for word in words.iter().chain(&["127.0.0.1"]) {
                assert!(error.to_string().contains(word), "{sql}: {word} is not in: {error}");
            }
        }
    }
    for (sql, key) in [
        ("CREATE TABLE t (N BIGINT UNSIGNED, s VARCHAR(9), x TEXT)", &[][..]),
        ("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, n BIGINT, s TEXT)", &[]),
        ("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, n BIGINT UNIQUE, s TEXT)", &["n"]),
        ("CREATE TABLE t (n DECIMAL(20,1), s ENUM('a', 'b'), x INT NOT NULL DEFAULT 5)", &[]),
    ] {
        place.sql(&format!("{clean}; {sql}"));
        write(&place.open("t", key), std::slice::from_ref(&batch)).await.unwrap();
        assert_eq!(place.sql("SELECT CAST(n AS INT), s FROM t"), ["1\ta"], "{sql}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_server_is_said_with_the_way_out_and_without_the_password() {
    let Some(place) = Place::new() else { return };
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (server, port) = (place.server, place.server.port);
    let user = &format!("u{}", &place.name[5..]);
    place.sql(&format!(
        "CREATE TABLE t (n BIGINT, text TEXT); CREATE USER {user}@'%' IDENTIFIED BY 's3cret'; GRANT SELECT ON {}.* TO {user}@'%'",
        place.name
    ));
    let pem = place.dir.path().join("absent.pem");
    let with_ca = |ca: &Path| match mysql::config(&place.url, "t", &[], None) {
        SinkKind::Mysql(config) => SinkKind::Mysql(tidemill_config::DatabaseSink { ca: Some(ca.to_owned()), ..config }),
        other => other,
    };
    let at = |url: &str| mysql::config(url, "t", &[], None);
    let cases: [(SinkKind, bool, &[&str]); 7] = [
        (
            at(&place.url_of("me", "s3cret", free, "d")),
            true,
            &["connecting to mysql://me@127.0.0.1", "refused", "is the server running"],
        ),
        (at(&place.url_of(&server.user, "hunter2", port, "d")), false, &["(1045)", "correct the user or the password"]),
        (
            at(&place.url_of(&server.user, "s3cret", port, "none")),
            false,
            &["Unknown database 'none'", "CREATE DATABASE `none`"],
        ),
        (at(&place.url_of(user, "s3cret", port, &place.name)), false, &["denied", "GRANT SELECT, INSERT", user]),
        (at(&place.url_of(user, "s3cret", port, "mysql")), false, &["denied", "GRANT"]),
        (with_ca(&pem), false, &["absent.pem", "reading the certificates"]),
        (at(&format!("{}?require_ssl=true", place.url)), false, &["TLS", "`ca:`"]),
    ];
    for (config, transient, words) in cases {
        let looked = open(&config).check(Some(&sinks::batch(1).schema())).await;
        let error = looked.err().unwrap_or_else(|| panic!("no error, but {words:?} were expected"));
        assert_eq!(error.is_transient(), transient, "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{word} is not in: {error}");
        }
        assert!(!error.to_string().contains("s3cret") && !error.to_string().contains("hunter2"), "{error}");
    }
    place.sql(&format!("DROP USER {user}@'%'"));
    open(&with_ca(&server.ca)).check(Some(&sinks::batch(1).schema())).await.unwrap();
    for (url, word) in [
        ("mysql://me:p@ss/word#1@h/d".to_owned(), "%40"),
        ("mysql://me:secret@h".to_owned(), "names no database"),
        (format!("{}?sslmode=no", place.url), "`sslmode` is not known"),
    ] {
        let error = sink::open(SinkId::new("db"), "job", &at(&url)).err().unwrap().to_string();
        assert!(error.contains(word) && !error.contains("word#1") && !error.contains("secret"), "{error}");
    }
}

/// The server has committed, and nobody hears of it: the receipt is had all the same, with its count of rejects.
#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_resolved_by_the_mark() {
    let Some(place) = Place::new() else { return };
    place.sql("CREATE TABLE t (n BIGINT UNIQUE, text TEXT)");
    let proxy = Proxy::start(([127, 0, 0, 1], place.server.port).into());
    let url = place.url_of(&place.server.user, &place.server.password, proxy.address().port(), &place.name);
    let sink = open(&mysql::config(&url, "t", &[], None));
    let mut runner = Runner::claim(sink, &Lane::single(), 1).await.unwrap();
    runner.run(0).await.unwrap();
    proxy.drop_answers_after(b"COMMIT");
    let rows = table(vec![numbers("n", &[Some(1), Some(1), Some(2)]), texts("text", &[None; 3])]);
    assert_eq!(commit(&runner, &[rows]).await.unwrap().rejected(), 1);
    assert_eq!(proxy.dropped(), 1, "an answer was lost");
    assert_eq!(place.sql("SELECT n FROM t"), ["1", "2"]);
}

/// The request is lost and not its answer: nothing was committed, and nothing is said to be.
#[tokio::test]
async fn a_commit_that_never_arrived_is_tried_again() {
    let Some(place) = Place::new() else { return };
    let proxy = Proxy::start(([127, 0, 0, 1], place.server.port).into());
    let url = place.url_of(&place.server.user, &place.server.password, proxy.address().port(), &place.name);
    let mut runner = Runner::claim(open(&mysql::config(&url, "rows", &[], None)), &Lane::single(), 1).await.unwrap();
    runner.run(1).await.unwrap();
    proxy.cut();
    let error = runner.step().await.err().unwrap();
    assert!(error.is_transient() && error.to_string().contains("mysql://"), "{error}");
    proxy.mend();
    runner.run(3).await.unwrap();
    assert_eq!(mysql::rows(place.dir.path()).len(), 3 * sinks::ROWS as usize);
}

/// Two transactions that wait for each other: the server picks one, and it is tried again unseen.
#[tokio::test]
async fn a_deadlock_costs_a_second_try() {
    use mysql_async::prelude::Queryable;
    let Some(place) = Place::new() else { return };
    place.sql("CREATE TABLE t (n BIGINT PRIMARY KEY, v BIGINT) ENGINE=InnoDB; INSERT INTO t VALUES (1, 0), (2, 0)");
    let sink = place.open("t", &["n"]);
    let mut runner = Runner {
        sink: sink.clone(),
        key: sink.claim(&Lane::single(), sinks::generation(1), &sinks::owner(1)).await.unwrap().0,
        head: None,
    };
    let batch = |keys: [i64; 2]| table(vec![numbers("n", &keys.map(Some)), numbers("v", &[Some(7), Some(7)])]);
    sink.prepare(&batch([1, 2]).schema()).await.unwrap();
    runner.run(0).await.unwrap();
    let deadlocks =
        || place.sql("SHOW GLOBAL STATUS LIKE 'Innodb_deadlocks'")[0].split('\t').nth(1).unwrap().parse::<u64>();
    let before = deadlocks().unwrap();
    let mut other = mysql_async::Conn::from_url(&place.url).await.unwrap();
    // The heavier transaction survives: this one has changed more.
    other.query_drop("CREATE TABLE heavy (n INT)").await.unwrap();
    other.query_drop("START TRANSACTION").await.unwrap();
    other.query_drop(format!("INSERT INTO heavy VALUES {}", vec!["(1)"; 500].join(","))).await.unwrap();
    other.query_drop("UPDATE t SET v = 1 WHERE n = 2").await.unwrap();
    let committed = tokio::spawn(async move { commit(&runner, &[batch([1, 2])]).await });
    // Until the sink waits for row 2, which means that it holds row 1.
    let waits = "SELECT count(*) FROM information_schema.innodb_lock_waits";
    let begun = std::time::Instant::now();
    while place.sql(waits)[0] == "0" {
        assert!(begun.elapsed() < Duration::from_secs(60), "the sink waits for no row");
        // The server looks anew only where nobody has asked for a tenth of a second.
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let locked = other.query_drop("UPDATE t SET v = 1 WHERE n = 1").await;
    assert!(locked.is_ok(), "{locked:?}");
    other.query_drop("COMMIT").await.unwrap();
    committed.await.unwrap().unwrap();
    assert!(deadlocks().unwrap() > before, "there was no deadlock");
    assert_eq!(place.sql("SELECT v FROM t"), ["7", "7"]);
}

/// kill -9 of a server of the test's own, again and again while batches are committed.
#[tokio::test]
async fn a_killed_server_loses_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = Mariadb::private(folder.path()) else { return };
    let sink = open(&mysql::config(&server.url, "rows", &["n"], None));
    sink.check(None).await.unwrap();
    let append = open(&mysql::config(&server.url, "appended", &[], None));
    let mut runner = Runner::claim(append.clone(), &Lane::single(), 1).await.unwrap();
    runner.run(0).await.unwrap();
    let server = Arc::new(server);
    for round in 1..=3_u64 {
        let killer = server.clone();
        let killed = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(150 + 70 * round));
            killer.kill();
        });
        let mut failed = 0;
        while failed == 0 {
            match runner.step().await {
                Ok(_) => {}
                Err(error) => {
                    assert!(error.is_transient(), "{error}");
                    failed += 1;
                }
            }
        }
        killed.await.unwrap();
        let again = server.clone();
        tokio::task::spawn_blocking(move || again.start()).await.unwrap();
        // Whether the last batch is there, the mark tells.
        runner = loop {
            match Runner::claim(append.clone(), &Lane::single(), round.into()).await {
                Ok(runner) => break runner,
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        };
    }
    runner.step().await.unwrap();
    let last = runner.seq().unwrap();
    let rows = server.sql("SELECT count(*), count(DISTINCT n) FROM appended");
    let expected = last * sinks::ROWS as u64;
    assert_eq!(rows.trim(), format!("{expected}\t{expected}"));
    assert!(last > 3, "only {last} batches");
}
