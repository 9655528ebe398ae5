//! What the SQLite sink makes of types, tables, keys and rows that the table refuses.

use std::{path::Path, sync::Arc, time::Instant};

use crate::sinks::{Runner, context, next};
use arrow::{
    array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array,
        ListArray, RecordBatch, StringArray, StringViewArray, TimestampMicrosecondArray,
    },
    datatypes::Int64Type,
};
use rusqlite::Connection;
use tidemill_checkpoint::{Generation, Lane, Permit, Position, Receipt, ShardId, SinkId, Span};
use tidemill_config::{At, Located, Mode, OnNewColumn, SinkKind};
use tidemill_connectors::sink::{self, Sink, SinkError};

fn at<T>(value: T) -> Located<T> {
    Located { value, at: At::default() }
}

fn open(path: &Path, table: &str, key: &[&str]) -> Arc<dyn Sink> {
    let key: Vec<_> = key.iter().map(|key| at((*key).to_owned())).collect();
    let mode = if key.is_empty() { Mode::Append } else { Mode::Upsert { key, delete_when: None } };
    sink::open(
        SinkId::new("db"),
        "job",
        &SinkKind::Sqlite { path: path.to_owned(), table: table.into(), mode, on_new_column: OnNewColumn::Fail },
    )
    .unwrap()
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

/// Prepares for the batch's schema and commits it as the next plan of a fresh claim.
async fn write(sink: &Arc<dyn Sink>, batches: &[RecordBatch]) -> Result<Receipt, SinkError> {
    let lane = Lane::single();
    let held = sink.peek(std::slice::from_ref(&lane)).await?.remove(&lane).unwrap();
    let (key, head) = sink.claim(&lane, held.generation().next(), &crate::sinks::owner(1)).await?;
    sink.prepare(&batches[0].schema()).await?;
    let mut runner = Runner { sink: sink.clone(), key, head };
    if runner.head.is_none() {
        runner.step().await?;
    }
    let head = runner.head.as_ref().unwrap();
    let (mark, entries) = next(&runner.key, head, &[], 0);
    let staged = sink.stage(&context(&runner.key, &mark, false), batches).await?;
    let permit = Permit::anchor(runner.key.clone(), Some(head.digest), mark, entries);
    sink.commit(vec![(permit, staged)]).await.pop().unwrap()
}

fn read(path: &Path, sql: &str) -> Vec<String> {
    let connection = Connection::open(path).unwrap();
    let mut statement = connection.prepare(sql).unwrap();
    let columns = statement.column_count();
    let row = |row: &rusqlite::Row<'_>| {
        let cells = (0..columns).map(|i| format!("{:?}", row.get::<_, rusqlite::types::Value>(i).unwrap()));
        Ok(cells.collect::<Vec<_>>().join(" "))
    };
    statement.query_map([], row).unwrap().collect::<Result<_, _>>().unwrap()
}

fn script(path: &Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

/// Another program that finds no lock takes itself for the last one that has the database open, and removes the log.
#[tokio::test]
async fn looks_at_marks_leave_the_lock_of_the_open_connection_alone() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let (sink, lane) = (open(&path, "t", &[]), Lane::single());
    for round in 1..=2 {
        write(&sink, &[table(vec![numbers("n", &[Some(round)])])]).await.unwrap();
        sink.peek(std::slice::from_ref(&lane)).await.unwrap();
        sink.rejects(&lane, 0).await.unwrap();
        // SQLite's shared lock, as the kernel shows it: proc_locks(5).
        let (process, inode) = (std::process::id().to_string(), std::fs::metadata(&path).unwrap().ino().to_string());
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        let ours = |line: &&str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.contains(&process.as_str()) && words.iter().any(|word| word.rsplit(':').next() == Some(&inode))
        };
        let held: Vec<&str> = locks.lines().filter(ours).collect();
        assert!(held.iter().any(|line| line.contains(" READ ") && line.contains(" 1073741826 ")), "{round}: {held:?}");
    }
}

#[tokio::test]
async fn every_type_has_a_form_that_sqlite_itself_understands() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let list: ListArray = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None]);
    let batch = table(vec![
        ("text", Arc::new(StringArray::from(vec![Some("a\0\"é"), None]))),
        ("view", Arc::new(StringViewArray::from(vec![Some("a view that is longer than twelve"), None]))),
        ("small", Arc::new(Int32Array::from(vec![Some(-1), None]))),
        ("big", Arc::new(Int64Array::from(vec![Some(i64::MAX), None]))),
        ("real", Arc::new(Float64Array::from(vec![Some(0.1), None]))),
        ("yes", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        (
            "at",
            Arc::new(TimestampMicrosecondArray::from(vec![Some(1_431_857_103_000_000), None]).with_timezone("+00:00")),
        ),
        ("day", Arc::new(Date32Array::from(vec![Some(16_572), None]))),
        ("price", Arc::new(Decimal128Array::from(vec![Some(-105), None]).with_precision_and_scale(9, 2).unwrap())),
        ("bytes", Arc::new(BinaryArray::from(vec![Some(b"\x00\xff".as_slice()), None]))),
        ("list", Arc::new(list)),
    ]);
    write(&open(&path, "a \"b\"", &[]), &[batch]).await.unwrap();
    let rows = read(&path, "SELECT * FROM \"a \"\"b\"\"\"");
    let first = [
        r#"Text("a\0\"é") Text("a view that is longer than twelve") Integer(-1) Integer(9223372036854775807) Real(0.1)"#,
        r#"Integer(1) Text("2015-05-17T10:05:03Z") Text("2015-05-17") Text("-1.05") Blob([0, 255]) Text("[1,null]")"#,
    ];
    assert_eq!(rows, [first.join(" "), ["Null"; 11].join(" ")]);
    let sql = "SELECT strftime('%Y', at), julianday(day) IS NOT NULL FROM \"a \"\"b\"\"\" LIMIT 1";
    assert_eq!(read(&path, sql), [r#"Text("2015") Integer(1)"#]);
}

/// REAL holds infinities, but SQLite makes NULL of NaN: a column that takes no NULL refuses it like one.
#[tokio::test]
async fn folders_and_views_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [table(vec![numbers("n", &[Some(1)])])];
    let error = write(&open(dir.path(), "t", &[]), &rows).await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("is a folder: name a file in it"), "{error}");
    let path = dir.path().join("a.db");
    script(
        &path,
        "CREATE TABLE t (n INTEGER PRIMARY KEY); CREATE VIEW v AS SELECT * FROM t; CREATE VIEW w AS SELECT * FROM t;
        CREATE TRIGGER into_t INSTEAD OF INSERT ON w BEGIN INSERT INTO t VALUES (NEW.n); END",
    );
    for (view, key) in [("v", &[][..]), ("v", &["n"]), ("w", &["n"])] {
        let error = write(&open(&path, view, key), &rows).await.unwrap_err();
        assert!(!error.is_transient() && error.to_string().contains("it is a view"), "{view}: {error}");
    }
    write(&open(&path, "w", &[]), &rows).await.unwrap();
    assert_eq!(read(&path, "SELECT n FROM t"), ["Integer(1)"]);
}

#[tokio::test]
async fn nan_is_null_and_infinities_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    script(&path, "CREATE TABLE strict (x REAL NOT NULL)");
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.5]));
    let rows = table(vec![("x", floats)]);
    write(&open(&path, "made", &[]), std::slice::from_ref(&rows)).await.unwrap();
    assert_eq!(read(&path, "SELECT x FROM made"), ["Null", "Real(inf)", "Real(-inf)", "Real(0.5)"]);
    let sink = sink::open(
        SinkId::new("strict"),
        "job",
        &SinkKind::Sqlite {
            path: path.clone(),
            table: "strict".into(),
            mode: Mode::Append,
            on_new_column: OnNewColumn::Fail,
        },
    );
    write(&sink.unwrap(), &[rows]).await.unwrap();
    assert_eq!(read(&path, "SELECT x FROM strict"), ["Real(inf)", "Real(-inf)", "Real(0.5)"]);
    assert_eq!(read(&path, "SELECT row, reason FROM tidemill_rejects"), ["Integer(0) Text(\"constraint\")"]);
}

#[tokio::test]
async fn the_last_row_of_a_key_wins_within_a_batch_and_over_batches() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let sink = open(&path, "t", &["k"]);
    let batch = |keys: &[Option<i64>], values: &[Option<&str>]| table(vec![numbers("k", keys), texts("v", values)]);
    let one = batch(&[Some(1), Some(2), Some(1)], &[Some("a"), Some("b"), Some("c")]);
    let two = batch(&[Some(2), None], &[None, Some("nobody's")]);
    let receipt = write(&sink, &[one, two]).await.unwrap();
    assert_eq!(receipt.rejected(), 1);
    assert_eq!(read(&path, "SELECT * FROM t ORDER BY k"), [r#"Integer(1) Text("c")"#, "Integer(2) Null"]);
    write(&sink, &[batch(&[Some(3), Some(1)], &[Some("d"), Some("e")])]).await.unwrap();
    assert_eq!(read(&path, "SELECT v FROM t ORDER BY k"), [r#"Text("e")"#, "Null", r#"Text("d")"#]);
    let rejects = sink.rejects(&Lane::single(), 0).await.unwrap();
    assert_eq!(rejects.iter().map(|reject| (&*reject.reason, reject.row)).collect::<Vec<_>>(), [("null_key", 4)]);
}

/// The plan's digest, which every reject names, is made once for all of them: a plan may have thousands of spans.
#[tokio::test]
async fn many_refused_rows_of_a_long_plan_do_not_hash_it_again_and_again() {
    const ROWS: i64 = 5_000;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    script(&path, "CREATE TABLE t (n INTEGER CHECK (n < 0))");
    let sink = open(&path, "t", &[]);
    let (key, head) = sink.claim(&Lane::single(), Generation(1), &crate::sinks::owner(1)).await.unwrap();
    let mut runner = Runner { sink: sink.clone(), key, head };
    runner.run(0).await.unwrap();
    let head = runner.head.clone().unwrap();
    let mut plan = next(&runner.key, &head, &[], 0).0.plan;
    let span = |to| Span { from: Position::number(0), to: Position::number(to) };
    plan.spans = (0..5_000).map(|n| (ShardId::new("source", &format!("file-{n}")), span(n + 1))).collect();
    let began = Instant::now();
    let input = plan.input();
    let once = began.elapsed();
    let mark = head.next(&runner.key.sink, plan, runner.key.generation, &runner.key.owner).unwrap();
    let batch = table(vec![("n", Arc::new(Int64Array::from_iter_values(0..ROWS)) as ArrayRef)]);
    sink.prepare(&batch.schema()).await.unwrap();
    let staged = sink.stage(&context(&runner.key, &mark, false), &[batch]).await.unwrap();
    let permit = Permit::anchor(runner.key.clone(), Some(head.digest), mark, Vec::new());
    let began = Instant::now();
    let receipt = sink.commit(vec![(permit, staged)]).await.pop().unwrap().unwrap();
    let (spent, each) = (began.elapsed(), once * 5_000);
    assert_eq!(receipt.rejected(), 5_000);
    assert!(spent < each / 4, "{spent:?}, and hashing for each row takes {each:?}");
    assert_eq!(sink.rejects(&Lane::single(), 4_999).await.unwrap()[0].input, input);
}

#[tokio::test]
async fn a_refused_row_costs_one_reject_in_the_same_commit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    script(&path, "CREATE TABLE t (n INTEGER UNIQUE CHECK (n < 100), s TEXT NOT NULL)");
    let sink = open(&path, "t", &[]);
    let batch = table(vec![
        numbers("n", &[Some(1), Some(1), Some(100), Some(2), Some(3)]),
        texts("s", &[Some("a"), Some("again"), Some("large"), None, Some("z")]),
    ]);
    let receipt = write(&sink, &[batch]).await.unwrap();
    assert_eq!(receipt.rejected(), 3);
    assert_eq!(read(&path, "SELECT n, s FROM t"), [r#"Integer(1) Text("a")"#, r#"Integer(3) Text("z")"#]);
    let rejects = sink.rejects(&Lane::single(), 0).await.unwrap();
    let short: Vec<_> = rejects.iter().map(|r| (r.number, r.seq, r.row, &*r.reason, &*r.record)).collect();
    assert_eq!(
        short,
        [
            (0, 1, 1, "constraint", r#"{"n":1,"s":"again"}"#),
            (1, 1, 2, "constraint", r#"{"n":100,"s":"large"}"#),
            (2, 1, 3, "constraint", r#"{"n":2,"s":null}"#),
        ]
    );
    assert!(rejects[0].detail.contains("UNIQUE"), "{}", rejects[0].detail);
    write(&sink, &[table(vec![numbers("n", &[Some(3)]), texts("s", &[Some("later")])])]).await.unwrap();
    let later = sink.rejects(&Lane::single(), 3).await.unwrap();
    assert_eq!((later.len(), later[0].number, later[0].seq), (1, 3, 2));
}

#[tokio::test]
async fn a_table_that_does_not_fit_is_named_with_column_and_types() {
    let cases: [(&str, &[&str], &[&str]); 9] = [
        ("CREATE TABLE t (n INTEGER)", &[], &["`t`", "no column `s` (string)", "ALTER TABLE"]),
        ("CREATE TABLE t (n INTEGER, s INTEGER)", &[], &["column `s` is INTEGER there and string in the job"]),
        ("CREATE TABLE t (n TEXT, s TEXT)", &[], &["column `n` is TEXT there and int64 in the job"]),
        ("CREATE TABLE t (n REAL, s TEXT)", &[], &["column `n` is REAL there and int64 in the job"]),
        ("CREATE TABLE t (n INT, s TEXT, x TEXT NOT NULL)", &[], &["`x` must not be null"]),
        ("CREATE TABLE t (n INT, s TEXT)", &["n"], &["CREATE UNIQUE INDEX", "(\"n\")"]),
        ("CREATE TABLE t (n INT, s TEXT, UNIQUE (n, s))", &["n"], &["CREATE UNIQUE INDEX"]),
        (
            "CREATE TABLE t (n INT, s TEXT); CREATE UNIQUE INDEX i ON t (n) WHERE n > 1",
            &["n"],
            &["CREATE UNIQUE INDEX"],
        ),
        ("", &["nn"], &["key column `nn`", "n, s"]),
    ];
    for (sql, key, words) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        script(&path, sql);
        let batch = table(vec![numbers("n", &[Some(1)]), texts("s", &[Some("a")])]);
        let error = open(&path, "t", key).prepare(&batch.schema()).await.err().unwrap();
        assert!(matches!(error, SinkError::Fatal(_)), "{sql}: {error:?}");
        for word in words.iter().chain(&["a.db"]) {
            assert!(error.to_string().contains(word), "{sql}: {word} is not in: {error}");
        }
    }
    for sql in [
        "CREATE TABLE t (N bigint, s VARCHAR(9), x TEXT)",
        "CREATE TABLE t (n, s)",
        "CREATE TABLE t (n INTEGER PRIMARY KEY, s TEXT NOT NULL)",
        "CREATE TABLE t (n NUMERIC, s CLOB, x INT NOT NULL DEFAULT 5)",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        script(&path, sql);
        let batch = table(vec![numbers("n", &[Some(1)]), texts("s", &[Some("a")])]);
        write(&open(&path, "t", if sql.contains("PRIMARY") { &["n"] } else { &[] }), &[batch]).await.unwrap();
        assert_eq!(read(&path, "SELECT n, s FROM t"), [r#"Integer(1) Text("a")"#], "{sql}");
    }
}

#[tokio::test]
async fn files_that_are_no_database_and_tables_of_our_own_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    std::fs::write(&path, "this is a text, not a database, and long enough to look like one.".repeat(20)).unwrap();
    let batch = table(vec![numbers("n", &[Some(1)])]);
    for error in [
        open(&path, "t", &[]).prepare(&batch.schema()).await.err().unwrap(),
        open(&path, "t", &[]).peek(&[Lane::single()]).await.err().unwrap(),
    ] {
        assert!(
            matches!(&error, SinkError::Fatal(text) if text.contains("a.db") && text.contains("not a SQLite database")),
            "{error}"
        );
    }
    let error = open(&dir.path().join("b.db"), "tidemill_marks", &[]).prepare(&batch.schema()).await.err().unwrap();
    assert!(error.to_string().contains("choose another table"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_removed_under_the_sink_swallows_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let sink = open(&path, "t", &[]);
    write(&sink, &[crate::sinks::batch(1)]).await.unwrap();
    let mut runner = Runner::claim(sink.clone(), &Lane::single(), 1).await.unwrap();
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(dir.path().join(format!("a.db{ending}")));
    }
    let error = runner.step().await.err().unwrap();
    assert!(matches!(error, SinkError::Fenced { .. }), "{error}");
    assert_eq!(sink.peek(&[Lane::single()]).await.unwrap()[&Lane::single()].mark, None);
}

#[tokio::test]
async fn a_trigger_that_rolls_back_the_batch_fails_it_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    script(
        &path,
        "CREATE TABLE t (n INT); CREATE TRIGGER x BEFORE INSERT ON t WHEN NEW.n = 2 BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
    );
    let sink = open(&path, "t", &[]);
    let error = write(&sink, &[table(vec![numbers("n", &[Some(1), Some(2), Some(3)])])]).await.err().unwrap();
    assert!(matches!(&error, SinkError::Fatal(text) if text.contains("trigger")), "{error}");
    assert!(read(&path, "SELECT * FROM t").is_empty());
    write(&sink, &[table(vec![numbers("n", &[Some(4)])])]).await.unwrap();
    assert_eq!(read(&path, "SELECT * FROM t"), ["Integer(4)"]);
}

/// A process that died in a transaction leaves a half-written file and the journal that undoes it.
#[tokio::test]
async fn what_a_dead_process_left_in_a_rollback_journal_is_undone_before_the_first_look() {
    let folder = tempfile::tempdir().unwrap();
    let (alive, path) = (folder.path().join("alive.db"), folder.path().join("rows.db"));
    let writer = Connection::open(&alive).unwrap();
    writer
        .execute_batch("PRAGMA journal_mode = DELETE; PRAGMA cache_size = 1; CREATE TABLE old (text TEXT); BEGIN")
        .unwrap();
    let mut rows = 0;
    // A full cache spills pages into the file before the commit.
    while std::fs::metadata(&alive).unwrap().len() < 20 * 4096 {
        writer.execute("INSERT INTO old VALUES (hex(randomblob(500)))", []).unwrap();
        rows += 1;
        assert!(rows < 10_000, "the cache does not spill");
    }
    std::fs::copy(&alive, &path).unwrap();
    std::fs::copy(folder.path().join("alive.db-journal"), folder.path().join("rows.db-journal")).unwrap();

    let sink = open(&path, "rows", &[]);
    write(&sink, &[table(vec![numbers("n", &[Some(1)])])]).await.unwrap();
    let reader = Connection::open(&path).unwrap();
    let count = |table: &str| -> i64 {
        reader.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    };
    assert_eq!((count("old"), count("rows")), (0, 1));
}
