//! What databases, sinks, sources and lookups have in common: encodings, sessions, rows that need one another, tables that are
//! gone.

use std::{path::Path, sync::Arc, time::Duration};

use crate::{
    services::Postgres,
    sinks::{self, Runner, context, log, next, postgres},
};
use arrow::array::{
    ArrayRef, AsArray, Float64Array, Int64Array, ListArray, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field};
use tidemill_checkpoint::{Lane, Permit, Receipt, SinkId};
use tidemill_config::{
    At, Job, Located, Mode, OnNewColumn, SinkKind, SourceKind, SqlDatabase, SqlFrom, SqlSource, Start, Verb,
};
use tidemill_connectors::{
    LookupTable, lookup,
    sink::{self, Sink, SinkError},
    source::{self, Budget, Settings, Source, SourceError},
};

/// A database of its own with an encoding.
struct Database {
    server: &'static Postgres,
    name: String,
    url: String,
}

impl Database {
    /// `None`: there is no server, and the test is skipped.
    fn new(name: &str, encoding: &str) -> Option<Self> {
        let server = postgres::server()?;
        let name = format!("{name}_{}", std::process::id());
        server.psql(&format!("SET client_min_messages = error; DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        server.psql(&format!(
            "CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        ));
        let (base, _) = server.url.rsplit_once('/').unwrap();
        let url = format!("{base}/{name}");
        Some(Self { server, name, url })
    }

    fn sql(&self, sql: &str) -> Vec<String> {
        let sql = format!("SET client_encoding = 'UTF8'; {sql}");
        self.server.psql_at(&self.url, &sql).lines().map(str::to_owned).collect()
    }

    fn sink(&self, table: &str, key: &[&str]) -> Arc<dyn Sink> {
        let config = SinkKind::Postgres(postgres::config(&self.url, table, key, None));
        sink::open(SinkId::new("db"), "job", &config).unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.server.psql(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
    }
}

fn table(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

fn numbers<const N: usize>(name: &'static str, values: [Option<i64>; N]) -> (&'static str, ArrayRef) {
    (name, Arc::new(Int64Array::from(values.to_vec())))
}

fn texts<const N: usize>(name: &'static str, values: [&str; N]) -> (&'static str, ArrayRef) {
    (name, Arc::new(StringArray::from(values.to_vec())))
}

/// Prepares for the batch's schema and commits it as the next plan of a fresh claim, with entries of a log.
async fn write(sink: &Arc<dyn Sink>, batch: &RecordBatch, entries: &[&str]) -> Result<Receipt, SinkError> {
    let lane = Lane::single();
    let held = sink.peek(std::slice::from_ref(&lane)).await?.remove(&lane).unwrap();
    let (key, head) = sink.claim(&lane, held.generation().next(), &sinks::owner(1)).await?;
    sink.prepare(&batch.schema()).await?;
    let mut runner = Runner { sink: sink.clone(), key, head };
    if runner.head.is_none() {
        runner.step().await?;
    }
    let head = runner.head.as_ref().unwrap();
    let (mark, entries) = next(&runner.key, head, entries, 0);
    let staged = sink.stage(&context(&runner.key, &mark, false), std::slice::from_ref(batch)).await?;
    let permit = Permit::anchor(runner.key.clone(), Some(head.digest), mark, entries);
    sink.commit(vec![(permit, staged)]).await.pop().unwrap()
}

/// Row 2 is bad; row 1 needs row 4, and row 5 row 1.
fn tree() -> RecordBatch {
    table(vec![
        numbers("id", [Some(1), Some(2), Some(3), Some(4), Some(5), Some(6)]),
        numbers("parent", [Some(4), None, None, None, Some(1), Some(99)]),
        texts("v", ["a", "too long", "b", "d", "e", "f"]),
    ])
}

async fn rejected(sink: &Arc<dyn Sink>) -> Vec<u64> {
    sink.rejects(&Lane::single(), 0).await.unwrap().iter().map(|reject| reject.row).collect()
}

#[tokio::test]
async fn a_bad_row_costs_no_good_one_that_needs_another_row() {
    let Some(place) = Database::new("tree", "UTF8") else { return };
    for (deferred, key) in [("", &[][..]), ("", &["id"]), ("DEFERRABLE INITIALLY DEFERRED", &[])] {
        place.sql(&format!(
            "SET client_min_messages = error; DROP TABLE IF EXISTS tree;
            CREATE TABLE tree (id int8 PRIMARY KEY, parent int8 REFERENCES tree {deferred}, v varchar(3))"
        ));
        let sink = place.sink("tree", key);
        sink.reset().await.unwrap();
        assert_eq!(write(&sink, &tree(), &[]).await.unwrap().rejected(), 2);
        assert_eq!(place.sql("SELECT id FROM tree ORDER BY id"), ["1", "3", "4", "5"], "{key:?} {deferred}");
        assert_eq!(rejected(&sink).await, [1, 5]);
    }
    // What a trigger says of one row alone, another row may cure.
    place.sql(
        "CREATE TABLE pairs (id int8, other int8);
        CREATE FUNCTION paired() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.other IS NOT NULL AND NOT EXISTS (SELECT 1 FROM pairs WHERE id = NEW.other) THEN RAISE 'no %', NEW.other; END IF;
            RETURN NEW; END $$;
        CREATE TRIGGER paired BEFORE INSERT ON pairs FOR EACH ROW EXECUTE FUNCTION paired()",
    );
    let sink = place.sink("pairs", &[]);
    let chain = table(vec![
        numbers("id", [Some(1), Some(2), Some(3), Some(4), Some(5)]),
        numbers("other", [Some(2), Some(3), Some(4), None, Some(9)]),
    ]);
    assert_eq!(write(&sink, &chain, &[]).await.unwrap().rejected(), 1);
    assert_eq!(place.sql("SELECT id FROM pairs ORDER BY id"), ["1", "2", "3", "4"]);
}

/// A row that is written late must not take the place of a later row of its key.
#[tokio::test]
async fn the_last_row_of_a_key_wins_though_an_older_one_had_to_wait() {
    let Some(place) = Database::new("late", "UTF8") else { return };
    place.sql("CREATE TABLE tree (id int8 PRIMARY KEY, parent int8 REFERENCES tree, v varchar(3))");
    let sink = place.sink("tree", &["id"]);
    let batch = table(vec![
        numbers("id", [Some(1), Some(2), Some(1), Some(4)]),
        numbers("parent", [Some(4), None, None, None]),
        texts("v", ["old", "too long", "new", "d"]),
    ]);
    write(&sink, &batch, &[]).await.unwrap();
    assert_eq!(place.sql("SELECT id, v FROM tree ORDER BY id"), ["1|new", "4|d"]);
}

fn sqlite(path: &Path, table: &str, key: &[&str]) -> Arc<dyn Sink> {
    let at = |name: &&str| Located { value: (*name).to_owned(), at: At::default() };
    let mode = match key {
        [] => Mode::Append,
        key => Mode::Upsert { key: key.iter().map(at).collect(), delete_when: None },
    };
    let kind = SinkKind::Sqlite { path: path.to_owned(), table: table.into(), mode, on_new_column: OnNewColumn::Fail };
    sink::open(SinkId::new("db"), "job", &kind).unwrap()
}

fn script(path: &Path, sql: &str) {
    rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

fn ids(path: &Path, sql: &str) -> Vec<i64> {
    let connection = rusqlite::Connection::open(path).unwrap();
    let mut statement = connection.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn rows_of_sqlite_may_need_one_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    for (name, key) in [("appended", &[][..]), ("upserted", &["id"])] {
        script(
            &path,
            &format!(
                "CREATE TABLE {name} (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES {name}, v TEXT CHECK (length(v) < 4))"
            ),
        );
        let sink = sqlite(&path, name, key);
        sink.reset().await.unwrap();
        assert_eq!(write(&sink, &tree(), &[]).await.unwrap().rejected(), 2);
        assert_eq!(ids(&path, &format!("SELECT id FROM {name} ORDER BY id")), [1, 3, 4, 5]);
        assert_eq!(rejected(&sink).await, [1, 5]);
    }
}

fn fatal<T: std::fmt::Debug>(result: Result<T, SinkError>) -> String {
    match result {
        Err(SinkError::Fatal(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// Names know no case there: a table of others takes rows in whatever case, and two columns of one name are refused by name.
#[tokio::test]
async fn names_of_sqlite_know_no_case() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    script(&path, "CREATE TABLE t (Name TEXT NOT NULL, V INTEGER); CREATE TABLE s (a ANY, b BLOB) STRICT");
    let sink = sqlite(&path, "t", &[]);
    let rows = table(vec![texts("name", ["x"]), numbers("v", [Some(7)])]);
    assert_eq!(write(&sink, &rows, &[]).await.unwrap().rejected(), 0);
    assert_eq!(ids(&path, "SELECT v FROM t WHERE name = 'x'"), [7]);
    // A column that takes everything does; one of bytes takes no text there.
    let any = sqlite(&path, "s", &[]);
    any.check(Some(&table(vec![texts("a", ["007"])]).schema())).await.unwrap();
    assert!(
        fatal(any.check(Some(&table(vec![texts("b", ["x"])]).schema())).await).contains("column `b` is BLOB there")
    );
    for name in ["new", "t"] {
        let sink = sqlite(&path, name, &[]);
        let twice = table(vec![numbers("id", [Some(1)]), numbers("Id", [Some(2)])]);
        let why = fatal(sink.prepare(&twice.schema()).await);
        assert!(why.contains("`id` and `Id` are one column to SQLite") && why.contains("`rename: { Id: "), "{why}");
        let zero = table(vec![numbers("a\0b", [Some(1)])]);
        let why = fatal(sink.prepare(&zero.schema()).await);
        assert!(why.contains("with a zero byte, as `a\\0b` has") && why.contains("`select`"), "{why}");
    }
}

/// `validate --connect` compares columns and changes nothing.
#[tokio::test]
async fn a_look_at_sqlite_names_all_missing_columns_and_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let rows = table(vec![numbers("id", [Some(1)]), texts("name", ["x"]), numbers("year", [Some(1)])]);
    sqlite(&path, "t", &["id"]).check(Some(&rows.schema())).await.unwrap();
    assert!(!path.exists(), "nothing is made");
    script(&path, "CREATE TABLE t (id INTEGER)");
    let why = fatal(sqlite(&path, "t", &[]).check(Some(&rows.schema())).await);
    assert!(
        why.contains("a.db: table `t`: it has no columns `name` (string), `year` (int64): ALTER TABLE \"t\" ADD COLUMN \"name\" TEXT"),
        "{why}"
    );
    script(&path, "ALTER TABLE t ADD COLUMN name TEXT; ALTER TABLE t ADD COLUMN year INTEGER");
    sqlite(&path, "t", &[]).check(Some(&rows.schema())).await.unwrap();
    let why = fatal(sqlite(&path, "t", &["id"]).check(Some(&rows.schema())).await);
    assert!(why.contains("an upsert needs a unique index"), "{why}");
    sqlite(&path, "other", &[]).check(None).await.unwrap();
    std::fs::write(dir.path().join("no.db"), "this is no database, but a text").unwrap();
    let why = fatal(sqlite(&dir.path().join("no.db"), "t", &[]).check(None).await);
    assert!(why.contains("is not a SQLite database"), "{why}");
}

/// A table that is gone is noticed by the next process too. `reset` forgets it.
#[tokio::test]
async fn a_table_that_was_there_is_not_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let database = Database::new("gone", "UTF8");
    let rows = table(vec![numbers("id", [Some(1)])]);
    for postgres in [false, true] {
        if postgres && database.is_none() {
            continue;
        }
        let open = |table: &str| match &database {
            Some(database) if postgres => database.sink(table, &[]),
            _ => sqlite(&path, table, &[]),
        };
        let run = |sql: &str| match &database {
            Some(database) if postgres => drop(database.sql(sql)),
            _ => script(&path, sql),
        };
        write(&open("t"), &rows, &[]).await.unwrap();
        run("DROP TABLE t");
        let why = fatal(write(&open("t"), &rows, &[]).await);
        assert!(why.contains("it is gone, with the rows") && why.contains("CREATE TABLE IF NOT EXISTS"), "{why}");
        // Another table of the same sink is new.
        write(&open("other"), &rows, &[]).await.unwrap();
        let made = why.split_once("later rows only: ").unwrap().1.split_once(". `tidemill").unwrap().0;
        run(made);
        write(&open("t"), &rows, &[]).await.unwrap();
        run("DROP TABLE t");
        open("t").reset().await.unwrap();
        write(&open("t"), &rows, &[]).await.unwrap();
    }
}

/// With `on_new_column: add` the sink adds what the table lacks, before the batch that has it; a look beforehand is content.
#[tokio::test]
async fn columns_are_added_where_the_job_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let database = Database::new("grown", "UTF8");
    let mut kinds = vec![SinkKind::Sqlite {
        path: path.clone(),
        table: "t".into(),
        mode: Mode::Append,
        on_new_column: OnNewColumn::Add,
    }];
    if let Some(database) = &database {
        let config = postgres::config(&database.url, "t", &[], None);
        kinds.push(SinkKind::Postgres(tidemill_config::DatabaseSink { on_new_column: OnNewColumn::Add, ..config }));
    }
    for kind in kinds {
        let open = || sink::open(SinkId::new("db"), "job", &kind).unwrap();
        write(&open(), &table(vec![numbers("id", [Some(1)])]), &[]).await.unwrap();
        let more = table(vec![texts("v", ["x"]), numbers("id", [Some(2)]), numbers("year", [Some(2024)])]);
        open().check(Some(&more.schema())).await.unwrap();
        let same = open();
        write(&same, &table(vec![numbers("id", [Some(3)])]), &[]).await.unwrap();
        write(&same, &more, &[]).await.unwrap();
        write(&same, &table(vec![numbers("id", [Some(4)])]), &[]).await.unwrap();
        let sql = "SELECT id FROM t WHERE year = 2024 AND v = 'x'";
        match (&kind, &database) {
            (SinkKind::Postgres(_), Some(database)) => {
                assert_eq!(
                    (database.sql(sql), database.sql("SELECT count(*) FROM t")),
                    (vec!["2".to_owned()], vec!["4".into()])
                );
            }
            _ => assert_eq!((ids(&path, sql), ids(&path, "SELECT count(*) FROM t")), (vec![2], vec![4])),
        }
    }
}

#[tokio::test]
async fn types_of_postgres_are_followed_to_their_ground_and_times_are_cut() {
    let Some(place) = Database::new("types", "UTF8") else { return };
    place.sql(
        "CREATE DOMAIN posint AS int8 CHECK (VALUE > 0); CREATE DOMAIN smallpos AS posint CHECK (VALUE < 100);
        CREATE DOMAIN short AS varchar(3); CREATE DOMAIN shorter AS short; CREATE DOMAIN list AS shorter[];
        CREATE TABLE t (n smallpos, s shorter, tags shorter[], more list, t0 timestamp(0), t3 timestamptz(3), at time(3),
            lasts interval, host inet, net cidr, r real)",
    );
    let list = || -> ArrayRef {
        let values = StringArray::from(vec!["a", "bc"]);
        let field = Arc::new(Field::new_list_field(DataType::Utf8, true));
        Arc::new(ListArray::new(field, arrow::buffer::OffsetBuffer::from_lengths([2, 0]), Arc::new(values), None))
    };
    let last = 1_735_689_599_999_999_i64;
    let times = || -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(vec![last, last]).with_timezone("UTC")) };
    let batch = table(vec![
        numbers("n", [Some(7), Some(100)]),
        texts("s", ["abc", "x"]),
        ("tags", list()),
        ("more", list()),
        ("t0", times()),
        ("t3", times()),
        texts("at", ["23:59:59.9999", "noon"]),
        texts("lasts", ["P1DT2H", "x"]),
        texts("host", ["10.0.0.1/8", "x"]),
        texts("net", ["10.0.0.0/8", "x"]),
        ("r", Arc::new(Float64Array::from(vec![0.1, 0.5]))),
    ]);
    let sink = place.sink("t", &[]);
    assert_eq!(write(&sink, &batch, &[]).await.unwrap().rejected(), 1);
    assert_eq!(
        place.sql("SET timezone = 'UTC'; SELECT * FROM t"),
        [
            "7|abc|{a,bc}|{a,bc}|2024-12-31 23:59:59|2024-12-31 23:59:59.999+00|23:59:59.999|1 day 02:00:00|10.0.0.1/8|10.0.0.0/8|0.1"
        ]
    );
    let more = table(vec![numbers("n", [Some(1)]), numbers("year", [Some(1)]), texts("who", ["x"])]);
    let why = fatal(sink.prepare(&more.schema()).await);
    assert!(why.contains("it has no columns `year` (int64), `who` (string): ALTER TABLE \"t\" ADD COLUMN \"year\" bigint, ADD COLUMN \"who\" text"), "{why}");
}

/// One character that the database does not have costs one row; what Tidemill keeps for itself comes back as it was.
#[tokio::test]
async fn a_database_that_lacks_characters_stops_no_lane() {
    let entry = "{\"path\":\"Отчёт 😀.json\"}";
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let Some(place) = Database::new("encoded", encoding) else { return };
        let sink = place.sink("t", &[]);
        let batch = table(vec![numbers("id", [Some(1), Some(2), Some(3)]), texts("v", ["é", "emoji 😀 here", "z"])]);
        let receipt = write(&sink, &batch, &[entry, "plain"]).await.unwrap();
        let history = sink.history(&Lane::single(), &log(), 0).await.unwrap();
        assert_eq!(history.iter().map(|entry| entry.text.as_str()).collect::<Vec<_>>(), [entry, "plain"], "{encoding}");
        let rejects = sink.rejects(&Lane::single(), 0).await.unwrap();
        let written = place.sql("SELECT id FROM t ORDER BY id");
        if encoding == "LATIN1" {
            assert_eq!((receipt.rejected(), written), (1, vec!["1".to_owned(), "3".into()]));
            let record: serde_json::Value = serde_json::from_str(&rejects[0].record).unwrap();
            assert_eq!(record, serde_json::json!({ "id": 2, "v": "emoji 😀 here" }));
            assert_eq!(rejects[0].reason, "value");
        } else {
            assert_eq!((receipt.rejected(), written.len()), (0, 3), "its bytes are nobody's");
        }
    }
}

fn lookup(url: &str, options: &str) -> Arc<dyn LookupTable> {
    let text = format!(
        "job: a\ndatabases: {{ db: \"{url}\" }}\nsources: {{ s: {{ type: directory, path: in }} }}\n\
         steps:\n  - lookup: {{ database: db, {options} }}\nsinks: {{ out: {{ type: blackhole }} }}\n"
    );
    let env = std::collections::BTreeMap::new();
    let job = Job::parse(&text, Path::new("job.yaml"), &env).unwrap_or_else(|errors| panic!("{errors}"));
    let Verb::Lookup(lookup) = &job.steps[0].verb else { panic!() };
    lookup::open(lookup).unwrap()
}

fn keys(name: &str, values: &[&str]) -> RecordBatch {
    let values: ArrayRef = Arc::new(StringArray::from(values.to_vec()));
    RecordBatch::try_from_iter([(name, values)]).unwrap()
}

fn strings(rows: &RecordBatch, column: &str) -> Vec<String> {
    let column = rows.column_by_name(column).unwrap().as_string::<i32>();
    let mut values: Vec<String> = column.iter().map(|value| value.unwrap_or("null").to_owned()).collect();
    values.sort();
    values
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_database_has_no_characters_for_is_missing() {
    let Some(place) = Database::new("keyed", "LATIN1") else { return };
    place.sql("CREATE TABLE names (k text, v text); INSERT INTO names VALUES ('é', 'one'), ('b', 'two')");
    let asked = lookup(&place.url, "table: names, match: { x: k }, take: [v], mode: query, cache: { entries: 0 }");
    let found = asked.ask(&keys("k", &["😀", "é", "Ж", "b", "c"])).await.unwrap();
    assert_eq!(strings(&found.rows, "v"), ["one", "two"]);
    assert_eq!(asked.ask(&keys("k", &["😀"])).await.unwrap().rows.num_rows(), 0);
}

/// How values are written is nothing that a role decides, and what is set for it ends with the transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_hangs_on_no_setting_and_leaves_none() {
    let Some(place) = Database::new("settings", "UTF8") else { return };
    let (name, url) = (&place.name, &place.url);
    place.sql(&format!(
        "ALTER DATABASE {name} SET bytea_output = 'escape'; ALTER DATABASE {name} SET extra_float_digits = -15;
        ALTER DATABASE {name} SET intervalstyle = 'iso_8601'; ALTER DATABASE {name} SET datestyle = 'German';
        ALTER DATABASE {name} SET timezone = 'Asia/Tokyo';
        CREATE TABLE odd (k bytea, f float8, iv interval, at timestamptz);
        INSERT INTO odd VALUES ('\\x005c27ff', 0.1234567890123456, '1 day 2 hours', '2024-02-03 04:05:06+00')"
    ));
    let take = "take: [k, f, iv, at]";
    let whole = lookup(url, &format!("table: odd, match: {{ x: k }}, {take}")).read(None).await.unwrap();
    let asked = lookup(url, &format!("table: odd, match: {{ x: k }}, {take}, mode: query"));
    let key: ArrayRef = Arc::new(arrow::array::BinaryArray::from(vec![b"\x00\\'\xff".as_slice()]));
    let rows = asked.ask(&RecordBatch::try_from_iter([("k", key.clone())]).unwrap()).await.unwrap().rows;
    for rows in [whole, rows] {
        assert_eq!(rows.column_by_name("k").unwrap(), &key);
        let float = rows.column_by_name("f").unwrap().as_primitive::<arrow::datatypes::Float64Type>().value(0);
        assert!((float - 0.123_456_789_012_345_6).abs() < f64::EPSILON / 8.0, "{float}");
        assert_eq!(strings(&rows, "iv"), ["1 day 02:00:00"]);
        let at =
            rows.column_by_name("at").unwrap().as_primitive::<arrow::datatypes::TimestampMicrosecondType>().value(0);
        assert_eq!(at, 1_706_933_106_000_000);
    }
    let left = lookup(
        url,
        "sql: \"SELECT 1 AS id, current_setting('default_transaction_read_only') || ' ' || \
         current_setting('transaction_read_only') || ' ' || (SELECT count(*) FROM pg_prepared_statements) AS v\", \
         match: { x: id }, take: [v]",
    );
    for _ in 0..2 {
        assert_eq!(strings(&left.read(None).await.unwrap(), "v"), ["off on 0"]);
    }
}

/// Both modes find the same rows, and a value that is none of its type is named with what helps.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_and_a_query_find_the_same_numbers() {
    let Some(place) = Database::new("numbers", "UTF8") else { return };
    place.sql(
        "CREATE TABLE free (k numeric, v text, at timestamptz);
        INSERT INTO free VALUES (2.50, 'a', now()), (100, 'b', 'infinity'), (0.05, 'c', now())",
    );
    let asked = lookup(&place.url, "table: free, match: { x: k }, take: [v], mode: query, cache: { entries: 0 }");
    let found = asked.ask(&keys("k", &["2.5", "100.0", "0.050", "7"])).await.unwrap();
    assert_eq!(strings(&found.rows, "v"), ["a", "b", "c"]);
    let whole = lookup(&place.url, "table: free, match: { x: k }, take: [at]");
    let why = whole.read(None).await.unwrap_err().to_string();
    assert!(why.contains("column `at`: \"infinity\" is not a valid timestamp: leave such rows out by `sql`"), "{why}");
    let text = lookup(&place.url, "table: free, match: { x: k }, take: [at], schema: { k: string, at: string }");
    assert_eq!(strings(&text.read(None).await.unwrap(), "at").last().map(String::as_str), Some("infinity"));
    let without = "sql: \"SELECT * FROM free WHERE isfinite(at)\", match: { x: k }, take: [at]";
    assert_eq!(lookup(&place.url, without).read(None).await.unwrap().num_rows(), 2);
}

fn source(url: &str, timeout: Duration) -> Arc<dyn Source> {
    let at = |name: &str| Located { value: name.to_owned(), at: At::default() };
    let sql = SqlSource {
        database: SqlDatabase::Postgres(url.to_owned()),
        from: SqlFrom::Table("t".into()),
        order_by: vec![at("id")],
        poll: Duration::from_millis(50),
        start: Start::Earliest,
        settle: Duration::ZERO,
        timeout,
        ca: None,
    };
    let config = tidemill_config::Source {
        name: at("in"),
        formerly: None,
        kind: SourceKind::Sql(sql),
        codec: tidemill_config::Codec::Json,
        schema: None,
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
    source::open(&config, &settings).unwrap()
}

/// The records of the first plan.
async fn records(source: &Arc<dyn Source>, budget: Budget) -> Vec<Vec<u8>> {
    let at = source.origin(&Lane::single()).await.unwrap().positions;
    source.adopt(&Lane::single(), &at, &Default::default()).await.unwrap();
    let Some(proposal) = source.plan(&Lane::single(), &at, budget).await.unwrap() else { return Vec::new() };
    let read = source.read(&Lane::single(), &proposal).await.unwrap();
    read.slices.iter().flat_map(|slice| (0..slice.records.len()).map(|n| slice.record(n).to_vec())).collect()
}

const ALL: Budget = Budget { records: 10_000, bytes: 1 << 26 };

/// Bytes that are no text cost the record that has them.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_text_cost_one_record() {
    let Some(place) = Database::new("bytes", "SQL_ASCII") else { return };
    place.sql(
        "CREATE TABLE t (id int8 PRIMARY KEY, v text);
        INSERT INTO t VALUES (1, 'ok'), (3, 'é');
        SET client_encoding = 'SQL_ASCII'; INSERT INTO t VALUES (2, E'caf\\351')",
    );
    let read = records(&source(&place.url, Duration::from_secs(30)), ALL).await;
    assert_eq!(read.len(), 3);
    assert_eq!(read[0], b"{\"id\":1,\"v\":\"ok\"}");
    assert_eq!(read[1], b"{\"id\":2,\"v\":\"caf\xe9\"}", "no JSON, and so a dead letter");
    assert_eq!(read[2], "{\"id\":3,\"v\":\"é\"}".as_bytes());
    let whole = lookup(&place.url, "table: t, match: { x: id }, take: [v]").read(None).await;
    let why = whole.unwrap_err().to_string();
    assert!(why.contains("column `v`: the bytes 636166e9 are a text that is not UTF-8"), "{why}");
    let bytes = "table: t, match: { x: id }, take: [v], schema: { id: int64, v: binary }";
    assert_eq!(lookup(&place.url, bytes).read(None).await.unwrap().num_rows(), 3);
}

/// A lock that nobody gives up is a reason to try again, at the start too; then the source goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_answer_is_noticed() {
    let Some(place) = Database::new("silent", "UTF8") else { return };
    place.sql("CREATE TABLE t (id int8 PRIMARY KEY); INSERT INTO t VALUES (1)");
    let source = source(&place.url, Duration::from_secs(2));
    let at = source.origin(&Lane::single()).await.unwrap().positions;
    let holder = tokio::task::spawn_blocking({
        let (server, url) = (place.server, place.url.clone());
        move || server.psql_at(&url, "BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(8); COMMIT")
    });
    while place.sql("SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND mode = 'AccessExclusiveLock'")
        != ["1"]
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let adopted = source.adopt(&Lane::single(), &at, &Default::default()).await;
    assert!(matches!(&adopted, Err(SourceError::Transient { .. })), "{adopted:?}");
    let asked = source.event().await;
    let Err(SourceError::Transient { what, cause }) = asked else { panic!("{asked:?}") };
    assert!(what.starts_with("reading rows of postgres://"), "{what}: {cause}");
    holder.await.unwrap();
    // A machine that is busy may not answer in time even now.
    for _ in 0..20 {
        match source.adopt(&Lane::single(), &at, &Default::default()).await {
            Err(SourceError::Transient { .. }) => {}
            adopted => return drop(adopted.unwrap()),
        }
    }
    panic!("it does not go on");
}

/// A page is bounded by bytes: rows that are suddenly large are not all read to take one.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_with_the_bytes_of_the_batch() {
    let Some(place) = Database::new("large", "UTF8") else { return };
    place.sql(
        "CREATE TABLE t (id int8 PRIMARY KEY, v text);
        INSERT INTO t SELECT n, 'x' FROM generate_series(1, 200) n;
        INSERT INTO t SELECT n, repeat('y', 200000) FROM generate_series(201, 330) n;",
    );
    let source = source(&place.url, Duration::from_secs(30));
    let mut at = source.origin(&Lane::single()).await.unwrap().positions;
    source.adopt(&Lane::single(), &at, &Default::default()).await.unwrap();
    let (mut rows, mut plans) = (0, 0);
    while rows < 260 {
        let budget = Budget { records: 10_000, bytes: 1_000_000 };
        let proposal = source.plan(&Lane::single(), &at, budget).await.unwrap().unwrap();
        let read = source.read(&Lane::single(), &proposal).await.unwrap();
        let bytes: usize = read.slices.iter().map(|slice| slice.bytes.len()).sum();
        assert!(bytes <= 1_010_000, "{bytes}");
        rows += read.slices.iter().map(|slice| slice.records.len()).sum::<usize>();
        for (shard, span) in proposal.spans {
            at.insert(shard, span.to);
        }
        plans += 1;
    }
    assert!(plans <= 20, "{plans} plans for {rows} rows");
}
