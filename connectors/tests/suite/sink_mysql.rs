//! What the MySQL sink makes of types, tables, keys and rows that the table refuses: with a real MariaDB, and with a real
//! MySQL 8.

use std::sync::Arc;

use crate::sinks::{
    Kind,
    mysql::{self, Place, flags, numbers, on_each_server, open, table, texts, write},
};
use arrow::{
    array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array,
        ListArray, StringArray, StringViewArray, TimestampMicrosecondArray, UInt64Array,
    },
    datatypes::Int64Type,
};
use tidemill_checkpoint::Lane;
use tidemill_connectors::sink::SinkError;

on_each_server!(
    looking_creates_nothing,
    every_type_is_read_back_by_another_client,
    a_timestamp_column_holds_the_instant,
    what_is_no_number_there_is_a_reject,
    narrow_integers_take_what_fits,
    the_last_row_of_a_key_wins_within_a_batch_and_over_batches,
    keys_that_differ_in_spaces_at_the_end_are_two,
    rows_with_the_flag_delete_their_key_in_batch_order_and_the_flag_is_not_stored,
    a_refused_row_costs_one_reject_in_the_same_commit,
    what_the_server_has_against_a_row_stops_no_lane,
    a_number_is_no_place_in_a_list_of_values,
    a_row_that_no_statement_can_hold_becomes_a_reject_with_its_beginning,
    one_bad_row_of_a_hundred_thousand_is_found_by_halves,
    many_refused_rows_end_in_time,
    a_table_that_does_not_fit_is_named_with_column_and_types,
    a_bad_row_costs_no_good_one_that_needs_another_row,
    times_are_cut_to_the_digits_of_their_column,
    names_know_no_case_and_a_table_that_is_gone_is_not_made_anew,
);

async fn looking_creates_nothing(place: Place) {
    let sink = place.open("t", &[]);
    sink.peek(&[Lane::single()]).await.unwrap();
    sink.check(None).await.unwrap();
    sink.check(Some(&crate::sinks::batch(1).schema())).await.unwrap();
    assert!(place.sql("SHOW TABLES").is_empty());
    write(&sink, &[crate::sinks::batch(1)]).await.unwrap();
    assert_eq!(place.sql("SHOW TABLES").len(), 5);
    sink.check(Some(&crate::sinks::batch(1).schema())).await.unwrap();
    assert_eq!(place.sql("SELECT count(*) FROM t"), ["3"], "a look writes no row");
}

async fn every_type_is_read_back_by_another_client(place: Place) {
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
        "2015-05-17 10:05:03.000001\t2015-05-17\t-1.05\t00FF275C",
    ];
    // MySQL has JSON as a type of its own, and its own way to write it.
    let (json, list) = if place.kind == Kind::Mysql { ("json", "[1, null]") } else { ("longtext", "[1,null]") };
    assert_eq!(place.sql(&sql), [first.join("\t") + "\t" + list, ["NULL"; 12].join("\t")]);
    let kinds = place.sql(&format!(
        "SELECT column_type FROM information_schema.columns WHERE table_schema = '{}' AND table_name = 'a `b`' ORDER BY ordinal_position",
        place.name
    ));
    let wanted = "longtext longtext int(11) bigint(20) bigint(20) unsigned double tinyint(1) datetime(6) date decimal(38,2) longblob";
    assert_eq!(kinds.join(" "), format!("{wanted} {json}"));
}

/// Times go as UTC, whatever the server's zone is.
async fn a_timestamp_column_holds_the_instant(place: Place) {
    place.sql("CREATE TABLE t (at TIMESTAMP(6) NULL)");
    let at = TimestampMicrosecondArray::from(vec![1_431_857_103_000_000]).with_timezone("UTC");
    write(&place.open("t", &[]), &[table(vec![("at", Arc::new(at))])]).await.unwrap();
    assert_eq!(place.sql("SELECT UNIX_TIMESTAMP(at) FROM t"), ["1431857103.000000"]);
}

async fn what_is_no_number_there_is_a_reject(place: Place) {
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

/// The job has no narrower integers than int32.
async fn narrow_integers_take_what_fits(place: Place) {
    place.sql("CREATE TABLE t (a TINYINT, b SMALLINT, c MEDIUMINT UNSIGNED)");
    let of = |values: [i32; 4]| -> ArrayRef { Arc::new(Int32Array::from(values.to_vec())) };
    let rows =
        table(vec![("a", of([-128, 128, 0, 0])), ("b", of([32767, 0, -32769, 0])), ("c", of([16_777_215, 0, 0, -1]))]);
    let sink = place.open("t", &[]);
    assert_eq!(write(&sink, &[rows]).await.unwrap().rejected(), 3);
    assert_eq!(place.sql("SELECT * FROM t"), ["-128\t32767\t16777215"]);
    assert!(sink.rejects(&Lane::single(), 0).await.unwrap().iter().all(|reject| reject.reason == "out_of_range"));
}

async fn the_last_row_of_a_key_wins_within_a_batch_and_over_batches(place: Place) {
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

/// Where the server has a collation that takes notice of them.
async fn keys_that_differ_in_spaces_at_the_end_are_two(place: Place) {
    let collations =
        "SELECT 1 FROM information_schema.collations WHERE collation_name IN ('utf8mb4_nopad_bin', 'utf8mb4_0900_bin')";
    let told_apart = !place.sql(collations).is_empty();
    assert!(told_apart || place.kind == Kind::Mysql);
    let sink = open(&mysql::config(&place.url, "t", &["k"], Some("gone")));
    let rows =
        |keys: &[Option<&str>], gone: bool| table(vec![texts("k", keys), flags("gone", &vec![Some(gone); keys.len()])]);
    sink.check(Some(&rows(&[], false).schema())).await.unwrap();
    write(&sink, &[rows(&[Some("a"), Some("a "), Some("A")], false)]).await.unwrap();
    assert_eq!(place.sql("SELECT count(*) FROM t"), [if told_apart { "3" } else { "2" }]);
    write(&sink, &[rows(&[Some("a  "), Some("a ")], true)]).await.unwrap();
    assert_eq!(place.sql("SELECT HEX(k) FROM t ORDER BY 1"), if told_apart { vec!["41", "61"] } else { vec!["41"] });
}

async fn rows_with_the_flag_delete_their_key_in_batch_order_and_the_flag_is_not_stored(place: Place) {
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

async fn a_refused_row_costs_one_reject_in_the_same_commit(place: Place) {
    place.sql(&format!(
        "CREATE TABLE parents (id BIGINT PRIMARY KEY); INSERT INTO parents VALUES (1), (2);
        CREATE TABLE t (n BIGINT UNIQUE, s VARCHAR(5) NOT NULL, m SMALLINT UNSIGNED,
            p BIGINT, FOREIGN KEY (p) REFERENCES parents (id));
        ALTER TABLE t MODIFY m INT UNSIGNED;
        {}
        DELIMITER //
        CREATE TRIGGER no BEFORE INSERT ON t FOR EACH ROW IF NEW.s = 'no' THEN SIGNAL SQLSTATE '45000'; END IF//
        DELIMITER ;",
        place.check("$n < 100")
    ));
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

/// Errors of the server's functions, of generated columns and of triggers, whatever number they have.
async fn what_the_server_has_against_a_row_stops_no_lane(place: Place) {
    let signals = |what: &str| {
        format!(
            "CREATE TABLE t (n BIGINT, s TEXT);
            DELIMITER //
            CREATE TRIGGER no BEFORE INSERT ON t FOR EACH ROW IF NEW.s = 'bad' THEN {what}; END IF//
            DELIMITER ;"
        )
    };
    let mut cases = vec![
        (signals("SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 30001"), "bad", "constraint"),
        (signals("SIGNAL SQLSTATE '02TRG'"), "bad", "constraint"),
        (signals("SIGNAL SQLSTATE 'MY001'"), "bad", "constraint"),
        (signals("SET NEW.n = (SELECT 1 UNION SELECT 2)"), "bad", "constraint"),
        (
            "CREATE TABLE t (n BIGINT, s TEXT, q DOUBLE AS (1 / (CHAR_LENGTH(s) - 5)) STORED)".into(),
            "zero:",
            "out_of_range",
        ),
    ];
    if place.kind == Kind::Mysql {
        let deep = format!("CREATE TABLE t (n BIGINT, s TEXT, j JSON AS (REPLACE(s, 'bad', '{}')))", "[".repeat(150));
        let generated = |what: &str| format!("CREATE TABLE t (n BIGINT, s TEXT, g INT AS ({what}) STORED)");
        cases.extend([
            (deep, "bad", "too_big"),
            (generated("JSON_EXTRACT(s, '$.a')"), "[bad", "type"),
            (generated("s REGEXP CONCAT('a', s)"), "(", "type"),
        ]);
    }
    for (sql, bad, reason) in cases {
        place.sql(&format!("DROP TABLE IF EXISTS t; {sql}"));
        let sink = place.open("t", &[]);
        let from = sink.rejects(&Lane::single(), 0).await.unwrap_or_default().len() as u64;
        let good = "[1]";
        let rows =
            table(vec![numbers("n", &[Some(1), Some(2), Some(3)]), texts("s", &[Some(good), Some(bad), Some(good)])]);
        let receipt = write(&sink, &[rows]).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!((receipt.rejected(), place.sql("SELECT n FROM t")), (1, vec!["1".into(), "3".into()]), "{sql}");
        let rejects = sink.rejects(&Lane::single(), from).await.unwrap();
        assert_eq!((rejects[0].row, &*rejects[0].reason), (1, reason), "{sql}: {}", rejects[0].detail);
    }
    // A key that the column's character set does not have.
    place.sql("DROP TABLE t; CREATE TABLE t (k VARCHAR(9) CHARACTER SET latin1 PRIMARY KEY)");
    let sink = open(&mysql::config(&place.url, "t", &["k"], Some("gone")));
    let rows = table(vec![texts("k", &[Some("a"), Some("Ж"), Some("b")]), flags("gone", &[None, Some(true), None])]);
    assert_eq!(write(&sink, &[rows]).await.unwrap().rejected(), 1);
    assert_eq!(place.sql("SELECT k FROM t ORDER BY k"), ["a", "b"]);
}

async fn a_number_is_no_place_in_a_list_of_values(place: Place) {
    place.sql("CREATE TABLE t (e ENUM('a', 'it''s', '7'), s SET('x', 'y', ''))");
    let sink = place.open("t", &[]);
    let rows = [("a", "x,y"), ("1", "x"), ("7", "x"), ("a", "3"), ("it's", ""), (" +2 ", "x"), ("b", "x")];
    let [lists, sets] = [rows.map(|row| Some(row.0)), rows.map(|row| Some(row.1))];
    assert_eq!(write(&sink, &[table(vec![texts("e", &lists), texts("s", &sets)])]).await.unwrap().rejected(), 4);
    assert_eq!(place.sql("SELECT e, s FROM t"), ["a\tx,y", "7\tx", "it's\t"]);
    let rejects = sink.rejects(&Lane::single(), 0).await.unwrap();
    assert_eq!(rejects.iter().map(|reject| reject.row).collect::<Vec<_>>(), [1, 3, 5, 6]);
    assert!(rejects.iter().all(|reject| reject.reason == "type"), "{rejects:?}");
    assert!(rejects[0].detail.contains("none of the values of an ENUM or SET"), "{}", rejects[0].detail);
}

/// Its record is about as long as the row, and must not be what the server refuses next.
async fn a_row_that_no_statement_can_hold_becomes_a_reject_with_its_beginning(place: Place) {
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
async fn one_bad_row_of_a_hundred_thousand_is_found_by_halves(place: Place) {
    const ROWS: i64 = 100_000;
    const BAD: i64 = 77_777;
    place.sql(&format!("CREATE TABLE t (n BIGINT PRIMARY KEY, s TEXT); {}", place.check(&format!("$n <> {BAD}"))));
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

/// Every second row of a batch is refused.
async fn many_refused_rows_end_in_time(place: Place) {
    let rows = 8_000;
    place.sql(&format!("CREATE TABLE t (n BIGINT PRIMARY KEY); {}", place.check("$n % 2 = 0")));
    let sink = place.open("t", &[]);
    let batch = table(vec![("n", Arc::new(Int64Array::from_iter_values(0..rows)) as ArrayRef)]);
    let began = std::time::Instant::now();
    assert_eq!(write(&sink, &[batch]).await.unwrap().rejected(), rows as u64 / 2);
    println!("{rows} rows, half of them refused: {:?}", began.elapsed());
    let told: Vec<u64> = sink.rejects(&Lane::single(), 0).await.unwrap().iter().map(|reject| reject.row).collect();
    assert_eq!(told, (0..rows as u64).filter(|n| n % 2 == 1).collect::<Vec<_>>());
    let count = rows / 2;
    assert_eq!(place.sql("SELECT count(*), sum(n) FROM t"), [format!("{count}\t{}", count * (count - 1))]);
}

async fn a_table_that_does_not_fit_is_named_with_column_and_types(place: Place) {
    let cases: [(&str, &[&str], &[&str]); 20] = [
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
        // Rows meet in columns that they do not have.
        (
            "CREATE TABLE t (n BIGINT PRIMARY KEY, s VARCHAR(9), l VARCHAR(9) AS (lower(s)) STORED UNIQUE)",
            &["n"],
            &["unique index `l` (l)"],
        ),
        (
            "CREATE TABLE t (n BIGINT PRIMARY KEY, s VARCHAR(9), l VARCHAR(9) AS (lower(s)) VIRTUAL, UNIQUE (l))",
            &["n"],
            &["unique index `l` (l)"],
        ),
        (
            "CREATE TABLE t (n BIGINT PRIMARY KEY, s VARCHAR(9), x INT NOT NULL DEFAULT 5 UNIQUE)",
            &["n"],
            &["unique index `x` (x)"],
        ),
        (
            "CREATE TABLE t (n BIGINT PRIMARY KEY, s VARCHAR(9), x INT UNIQUE);
            CREATE TRIGGER fills BEFORE INSERT ON t FOR EACH ROW SET NEW.x = 5",
            &["n"],
            &["unique index `x` (x) (trigger `fills` may fill it)"],
        ),
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
        ("CREATE TABLE t (n BIGINT PRIMARY KEY, s VARCHAR(9), x INT UNIQUE)", &["n"]),
        ("CREATE TABLE t (n BIGINT PRIMARY KEY, s VARCHAR(9), x INT NOT NULL DEFAULT 5, y INT, UNIQUE (x, y))", &["n"]),
        ("CREATE TABLE t (n DECIMAL(20,1), s ENUM('a', 'b'), x INT NOT NULL DEFAULT 5)", &[]),
    ] {
        place.sql(&format!("{clean}; {sql}"));
        write(&place.open("t", key), std::slice::from_ref(&batch)).await.unwrap();
        assert_eq!(place.sql("SELECT CAST(n AS SIGNED), s FROM t"), ["1\ta"], "{sql}");
    }
}

async fn a_bad_row_costs_no_good_one_that_needs_another_row(place: Place) {
    for (name, key) in [("appended", &[][..]), ("upserted", &["id"])] {
        place.sql(&format!(
            "CREATE TABLE {name} (id BIGINT PRIMARY KEY, parent BIGINT, v VARCHAR(3), FOREIGN KEY (parent) REFERENCES {name} (id))"
        ));
        let sink = place.open(name, key);
        let before = sink.rejects(&Lane::single(), 0).await.unwrap().len();
        let batch = table(vec![
            numbers("id", &[Some(1), Some(2), Some(3), Some(4), Some(5), Some(6)]),
            numbers("parent", &[Some(4), None, None, None, Some(1), Some(99)]),
            texts("v", &[Some("a"), Some("too long"), Some("b"), Some("d"), Some("e"), Some("f")]),
        ]);
        assert_eq!(write(&sink, &[batch]).await.unwrap().rejected(), 2);
        assert_eq!(place.sql(&format!("SELECT id FROM {name} ORDER BY id")), ["1", "3", "4", "5"]);
        let rejects = sink.rejects(&Lane::single(), before as u64).await.unwrap();
        assert_eq!(rejects.iter().map(|reject| reject.row).collect::<Vec<_>>(), [1, 5]);
    }
}

async fn times_are_cut_to_the_digits_of_their_column(place: Place) {
    place.sql("CREATE TABLE t (t0 DATETIME, t3 DATETIME(3), t6 TIMESTAMP(6) NULL)");
    let last = TimestampMicrosecondArray::from(vec![1_735_689_599_999_999]).with_timezone("UTC");
    let last: ArrayRef = Arc::new(last);
    let batch = table(vec![("t0", last.clone()), ("t3", last.clone()), ("t6", last)]);
    write(&place.open("t", &[]), &[batch]).await.unwrap();
    let shown = place.sql("SET time_zone = '+00:00'; SELECT * FROM t");
    assert_eq!(shown, ["2024-12-31 23:59:59\t2024-12-31 23:59:59.999\t2024-12-31 23:59:59.999999"]);
}

async fn names_know_no_case_and_a_table_that_is_gone_is_not_made_anew(place: Place) {
    let twice = table(vec![numbers("id", &[Some(1)]), numbers("Id", &[Some(2)])]);
    let error = write(&place.open("t", &[]), &[twice]).await.unwrap_err().to_string();
    assert!(error.contains("`id` and `Id` are one column to MySQL") && error.contains("`rename: { Id: "), "{error}");
    let rows = || table(vec![numbers("id", &[Some(1)])]);
    write(&place.open("t", &[]), &[rows()]).await.unwrap();
    place.sql("DROP TABLE t");
    let error = write(&place.open("t", &[]), &[rows()]).await.unwrap_err().to_string();
    assert!(error.contains("it is gone, with the rows") && error.contains("CREATE TABLE IF NOT EXISTS"), "{error}");
    place.open("t", &[]).reset().await.unwrap();
    write(&place.open("t", &[]), &[rows()]).await.unwrap();
    let more = table(vec![numbers("id", &[Some(1)]), numbers("a", &[Some(1)]), texts("b", &[None])]);
    let error = write(&place.open("t", &[]), &[more]).await.unwrap_err().to_string();
    assert!(
        error.contains("it has no columns `a` (int64), `b` (string): ALTER TABLE `t` ADD COLUMN `a` BIGINT, ADD COLUMN `b` LONGTEXT"),
        "{error}"
    );
}
