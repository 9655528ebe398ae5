//! What the PostgreSQL sink makes of types, tables, keys, and rows that the table refuses: with a real server, read back
//! by `psql`.

use std::sync::Arc;

use crate::sinks::{Runner, context, next, postgres, services::Postgres};
use arrow::{
    array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int32Array,
        Int64Array, ListArray, RecordBatch, StringArray, StringViewArray, StructArray, TimestampMicrosecondArray,
        TimestampNanosecondArray, UInt64Array,
    },
    datatypes::{DataType, Field, Int64Type},
};
use tidemill_checkpoint::{Lane, Permit, Receipt, SinkId};
use tidemill_config::SinkKind;
use tidemill_connectors::sink::{self, Sink, SinkError, SinkReject};

/// A schema of a test's own, which ends with it.
struct Place {
    dir: tempfile::TempDir,
    url: String,
    server: &'static Postgres,
}

impl Place {
    /// `None`: there is no server, and the test is skipped.
    fn new() -> Option<Self> {
        let server = postgres::server()?;
        let dir = tempfile::tempdir().unwrap();
        Some(Self { url: postgres::url(dir.path()), dir, server })
    }

    fn sql(&self, sql: &str) -> Vec<String> {
        self.server.psql_at(&self.url, sql).lines().map(str::to_owned).collect()
    }

    fn open(&self, table: &str, key: &[&str], delete_when: Option<&str>) -> Arc<dyn Sink> {
        let config = SinkKind::Postgres(postgres::config(&self.url, table, key, delete_when));
        sink::open(SinkId::new("db"), "job", &config).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        postgres::forget(self.dir.path());
    }
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

async fn rejects(sink: &Arc<dyn Sink>) -> Vec<SinkReject> {
    sink.rejects(&Lane::single(), 0).await.unwrap()
}

/// What is wrong with writing a batch: nothing helps but another table or another job.
async fn refused(sink: &Arc<dyn Sink>, batch: &RecordBatch) -> String {
    match write(sink, std::slice::from_ref(batch)).await {
        Err(SinkError::Fatal(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// One row of every type that a job has, and one of nulls.
fn every_type() -> RecordBatch {
    let list = || ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None]);
    let empty = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![]), None::<Vec<Option<i64>>>]);
    let inner: ArrayRef = Arc::new(StringArray::from(vec![Some("x\"\n"), None]));
    let nested = StructArray::from(vec![(Arc::new(Field::new("a", DataType::Utf8, true)), inner)]);
    table(vec![
        ("text", Arc::new(StringArray::from(vec![Some("a\t\\N\"é"), None]))),
        ("view", Arc::new(StringViewArray::from(vec![Some("a view that is longer than twelve"), None]))),
        ("small", Arc::new(Int32Array::from(vec![Some(i32::MIN), None]))),
        ("big", Arc::new(Int64Array::from(vec![Some(i64::MAX), None]))),
        ("huge", Arc::new(UInt64Array::from(vec![Some(u64::MAX), None]))),
        ("real", Arc::new(Float64Array::from(vec![Some(0.1), None]))),
        ("single", Arc::new(Float32Array::from(vec![Some(f32::NEG_INFINITY), None]))),
        ("yes", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        (
            "at",
            Arc::new(TimestampMicrosecondArray::from(vec![Some(1_431_857_103_000_001), None]).with_timezone("+00:00")),
        ),
        ("nanos", Arc::new(TimestampNanosecondArray::from(vec![Some(-1), None]))),
        ("day", Arc::new(Date32Array::from(vec![Some(-1), None]))),
        (
            "price",
            Arc::new(
                Decimal128Array::from(vec![Some(-99_999_999_999_999_999_999_999_999_999_999_999_105), None])
                    .with_precision_and_scale(38, 3)
                    .unwrap(),
            ),
        ),
        ("bytes", Arc::new(BinaryArray::from(vec![Some(b"\x00\xff".as_slice()), None]))),
        ("list", Arc::new(list())),
        ("empty", Arc::new(empty)),
        ("nested", Arc::new(nested)),
    ])
}

#[tokio::test]
async fn every_type_has_a_column_of_its_own_and_is_read_back_as_it_was() {
    let Some(place) = Place::new() else { return };
    write(&place.open("a \"b\"", &[], None), &[every_type()]).await.unwrap();
    let types = "SELECT string_agg(format_type(atttypid, atttypmod), ',' ORDER BY attnum) FROM pg_attribute
        WHERE attrelid = '\"a \"\"b\"\"\"'::regclass AND attnum > 0";
    let expected = "text,text,integer,bigint,numeric(20,0),double precision,real,boolean,timestamp with time zone,\
                    timestamp without time zone,date,numeric(38,3),bytea,bigint[],bigint[],jsonb";
    assert_eq!(place.sql(types), [expected]);
    let rows = place.sql("SET timezone = 'UTC'; SELECT * FROM \"a \"\"b\"\"\" ORDER BY text NULLS LAST");
    let first = [
        "a\t\\N\"é|a view that is longer than twelve|-2147483648|9223372036854775807|18446744073709551615|0.1|-Infinity|t",
        "2015-05-17 10:05:03.000001+00|1969-12-31 23:59:59.999999|1969-12-31",
        "-99999999999999999999999999999999999.105|\\x00ff|{1,NULL}|{}|{\"a\": \"x\\\"\\n\"}",
    ];
    // The struct's own null is not its field's: a struct of nulls is one.
    assert_eq!(rows, [first.join("|"), format!("{}|{{\"a\": null}}", ["|"; 14].concat())]);
}

/// What a column takes that was made by somebody else: wider numbers, JSON and UUIDs from texts, arrays, domains, enums.
#[tokio::test]
async fn values_fit_themselves_to_the_columns_that_are_there() {
    let Some(place) = Place::new() else { return };
    place.sql(
        "CREATE DOMAIN positive AS numeric(12, 4) CHECK (value > 0);
        CREATE TYPE mood AS ENUM ('glad', 'sad');
        CREATE TABLE t (n numeric, big int8, half float4, id uuid, doc jsonb, plain json, code varchar(3), fixed char(3),
            at timestamptz, price positive, mood mood, list int8[], more int DEFAULT 7, key int GENERATED BY DEFAULT AS IDENTITY)",
    );
    let batch = table(vec![
        numbers("n", &[Some(1_234_567_890_123)]),
        ("big", Arc::new(Int32Array::from(vec![-5]))),
        ("half", Arc::new(arrow::array::Int16Array::from(vec![-300]))),
        texts("id", &[Some("A0EEBC99-9c0b-4ef8-bb6d-6bb9bd380a11")]),
        texts("doc", &[Some("{\"b\": 1.50, \"a\": [true]}")]),
        texts("plain", &[Some("{\"b\":1, \"a\":2}")]),
        texts("code", &[Some("äöü")]),
        texts("fixed", &[Some("x")]),
        ("at", Arc::new(TimestampMicrosecondArray::from(vec![0]))),
        ("price", Arc::new(Decimal128Array::from(vec![12_345]).with_precision_and_scale(9, 2).unwrap())),
        texts("mood", &[Some("sad")]),
        ("list", Arc::new(ListArray::from_iter_primitive::<arrow::datatypes::Int32Type, _, _>([Some(vec![Some(7)])]))),
    ]);
    assert_eq!(write(&place.open("t", &[], None), &[batch]).await.unwrap().rejected(), 0);
    let rows = place.sql("SET timezone = 'UTC'; SELECT * FROM t");
    assert_eq!(
        rows,
        [
            "1234567890123|-5|-300|a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11|{\"a\": [true], \"b\": 1.50}|{\"b\":1, \"a\":2}|äöü|x  |\
          1970-01-01 00:00:00+00|123.4500|sad|{7}|7|1"
        ]
    );
}

#[tokio::test]
async fn a_table_that_does_not_fit_is_told_with_its_column_both_types_and_the_way_out() {
    let Some(place) = Place::new() else { return };
    place.sql(
        "CREATE TABLE narrow (n int); CREATE TABLE scale (n numeric(9, 1)); CREATE TABLE lacks (m int8);
        CREATE TABLE folded (userid int8); CREATE TABLE wants (n int8, must int NOT NULL);
        CREATE TABLE made (m int, n int8 GENERATED ALWAYS AS (m * 2) STORED); CREATE TABLE odd (n interval);
        CREATE TABLE keyless (n int8)",
    );
    let n = table(vec![numbers("n", &[Some(1)])]);
    let decimal = Decimal128Array::from(vec![105]).with_precision_and_scale(9, 2).unwrap();
    let told = async |name: &str, batch: &RecordBatch, parts: &[&str]| {
        let sink = place.open(name, &[], None);
        let checked = sink.check(Some(&batch.schema())).await.unwrap_err().to_string();
        let why = refused(&sink, batch).await;
        for part in parts.iter().chain([&format!("table `{name}`").as_str()]) {
            assert!(why.contains(part) && checked.contains(part), "{name}: {part} in\n{why}\n{checked}");
        }
    };
    told("narrow", &n, &["column `n` is integer there and int64 in the job", "ALTER COLUMN \"n\" TYPE bigint"]).await;
    let exact = table(vec![("n", Arc::new(decimal) as ArrayRef)]);
    told("scale", &exact, &["column `n` is numeric(9,1) there and decimal(9,2) in the job"]).await;
    told("lacks", &n, &["no column `n` (int64): ALTER TABLE \"lacks\" ADD COLUMN \"n\" bigint"]).await;
    let cased = table(vec![numbers("userId", &[Some(1)])]);
    told("folded", &cased, &["no column `userId` but `userid`", "rename: { userId: userid }"]).await;
    told("wants", &n, &["its column `must` must not be null and has no default"]).await;
    told("made", &n, &["column `n` is GENERATED"]).await;
    told("odd", &n, &["column `n` is interval there and int64 in the job"]).await;
    let schema = postgres::schema(place.dir.path());
    let added = format!("ALTER TABLE \"{schema}\".\"lacks\" ADD COLUMN \"n\" bigint");
    told(&format!("{schema}.lacks"), &n, &[&added]).await;
    let long = "x".repeat(64);
    let long = table(vec![(long.as_str(), Arc::new(Int64Array::from(vec![1])) as ArrayRef)]);
    told("lacks", &long, &["names of at most 63 bytes"]).await;

    let why = refused(&place.open("keyless", &["n"], None), &n).await;
    assert!(why.contains("an upsert needs a unique index on its key: CREATE UNIQUE INDEX ON"), "{why}");
    place.sql(
        "CREATE VIEW seen AS SELECT * FROM keyless; CREATE TABLE ruled (n int8 PRIMARY KEY);
        CREATE RULE elsewhere AS ON INSERT TO ruled DO INSTEAD INSERT INTO keyless VALUES (NEW.n);
        CREATE TABLE whole (at timestamptz(0) PRIMARY KEY)",
    );
    let why = refused(&place.open("seen", &["n"], None), &n).await;
    assert!(why.contains("it is a view, which has no unique index for an upsert"), "{why}");
    let why = refused(&place.open("ruled", &["n"], None), &n).await;
    assert!(why.contains("DROP RULE \"elsewhere\" ON \"ruled\""), "{why}");
    let at =
        table(vec![("at", Arc::new(TimestampMicrosecondArray::from(vec![1]).with_timezone("+00:00")) as ArrayRef)]);
    let why = refused(&place.open("whole", &["at"], None), &at).await;
    assert!(why.contains("too few digits of a second") && why.contains("TYPE timestamptz"), "{why}");
    write(&place.open("whole", &[], None), &[at]).await.unwrap();
    let why = refused(&place.open("new", &["id"], None), &n).await;
    assert!(why.contains("the key column `id` is not among the rows' columns: n"), "{why}");
    let why = refused(&place.open("new", &["n"], Some("n2")), &n).await;
    assert!(why.contains("the delete_when column `n2` is not among"), "{why}");
    let why = refused(&place.open("tidemill_x", &[], None), &n).await;
    assert!(why.contains("names that begin with tidemill_"), "{why}");
    let there = place
        .sql("SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relname = 'new'");
    assert!(there.is_empty(), "a table was made for rows that do not fit it");
}

/// What a crash of the server empties, or what lies elsewhere, does not share the fate of the marks.
#[tokio::test]
async fn tables_that_do_not_share_the_fate_of_the_marks_are_refused() {
    let Some(place) = Place::new() else { return };
    place.sql(
        "CREATE UNLOGGED TABLE fleeting (n int8);
        CREATE TABLE parts (n int8) PARTITION BY RANGE (n); CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (9);
        CREATE UNLOGGED TABLE high PARTITION OF parts FOR VALUES FROM (9) TO (99)",
    );
    let n = table(vec![numbers("n", &[Some(1)])]);
    for (name, at) in [("fleeting", "fleeting"), ("parts", "high")] {
        let sink = place.open(name, &[], None);
        let checked = sink.check(Some(&n.schema())).await.unwrap_err().to_string();
        let why = refused(&sink, &n).await;
        let (told, help) = (format!("{at} is UNLOGGED"), format!("ALTER TABLE {at} SET LOGGED"));
        assert!(why.contains(&told) && why.contains(&help) && checked.contains(&help), "{why}\n{checked}");
        place.sql(&help);
        write(&sink, std::slice::from_ref(&n)).await.unwrap();
    }
    // A wrapper belongs to the whole database, not to a schema.
    let wrapper = place.sql("SELECT 'w_' || md5(current_schema())").remove(0);
    place.sql(&format!(
        "CREATE FOREIGN DATA WRAPPER {wrapper}; CREATE SERVER {wrapper} FOREIGN DATA WRAPPER {wrapper};
        CREATE FOREIGN TABLE afar (n int8) SERVER {wrapper}"
    ));
    let why = refused(&place.open("afar", &[], None), &n).await;
    place.sql(&format!("SET client_min_messages = error; DROP FOREIGN DATA WRAPPER {wrapper} CASCADE"));
    assert!(why.contains("afar is a foreign table"), "{why}");
}

#[tokio::test]
async fn of_rows_with_one_key_the_last_one_stays_and_one_that_is_flagged_deletes() {
    let Some(place) = Place::new() else { return };
    let sink = place.open("kept", &["id", "part"], Some("gone"));
    let batch = |ids: &[Option<i64>], parts: &[Option<&str>], values: &[Option<i64>], gone: &[Option<bool>]| {
        table(vec![numbers("id", ids), texts("part", parts), numbers("value", values), flags("gone", gone)])
    };
    let (a, b) = (Some("a"), Some("b"));
    let first = batch(
        &[Some(1), Some(1), Some(2), Some(1), None, Some(3), Some(4)],
        &[a, b, a, a, a, a, a],
        &[Some(10), Some(11), Some(20), Some(12), Some(0), Some(30), Some(40)],
        &[None, Some(false), None, None, None, Some(true), Some(false)],
    );
    // The same key in a later batch of the plan.
    let second = batch(&[Some(4)], &[a], &[Some(41)], &[None]);
    let receipt = write(&sink, &[first, second]).await.unwrap();
    assert_eq!(receipt.rejected(), 1, "a null in the key");
    let rows = || place.sql("SELECT id, part, value FROM kept ORDER BY id, part");
    assert_eq!(rows(), ["1|a|12", "1|b|11", "2|a|20", "4|a|41"]);
    let reject = rejects(&sink).await.remove(0);
    assert_eq!((reject.row, reject.reason.as_str()), (4, "null_key"));
    assert_eq!(reject.record, r#"{"id":null,"part":"a","value":0,"gone":null}"#);
    let columns =
        place.sql("SELECT attname FROM pg_attribute WHERE attrelid = 'kept'::regclass AND attnum > 0 ORDER BY attnum");
    assert_eq!(columns, ["id", "part", "value"], "the flag is not stored");

    // Deleted and made again, made and deleted again, and a key that is not there.
    let third = batch(
        &[Some(1), Some(1), Some(2), Some(9), Some(9), Some(8)],
        &[a, a, a, a, a, a],
        &[Some(0), Some(13), None, Some(90), Some(91), None],
        &[Some(true), None, Some(true), None, Some(true), Some(true)],
    );
    write(&sink, &[third]).await.unwrap();
    assert_eq!(rows(), ["1|a|13", "1|b|11", "4|a|41"]);
}

/// A key of the user's own table that compares as the server says, not byte by byte: numbers of another scale are equal.
#[tokio::test]
async fn keys_are_equal_where_the_server_says_so() {
    let Some(place) = Place::new() else { return };
    place.sql("CREATE TABLE t (id numeric PRIMARY KEY, name text); INSERT INTO t VALUES (1.0, 'old'), (7, 'stays')");
    let id = Decimal128Array::from(vec![100, 200]).with_precision_and_scale(9, 2).unwrap();
    let batch = table(vec![("id", Arc::new(id)), texts("name", &[Some("new"), Some("two")])]);
    write(&place.open("t", &["id"], None), &[batch]).await.unwrap();
    assert_eq!(place.sql("SELECT id::int, name FROM t ORDER BY id"), ["1|new", "2|two", "7|stays"]);
}

/// Counts the statements that touch a table, those that were rolled back too: a sequence is outside of transactions.
fn count_statements(place: &Place, of: &str) {
    place.sql(&format!(
        "CREATE SEQUENCE statements;
        CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('statements'); RETURN NULL; END $$;
        CREATE TRIGGER counted BEFORE INSERT ON {of} FOR EACH STATEMENT EXECUTE FUNCTION counted()"
    ));
}

fn statements(place: &Place) -> u64 {
    place.sql("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM statements")[0].parse().unwrap()
}

#[tokio::test]
async fn one_refused_row_among_many_costs_its_halvings_and_every_other_row_is_written() {
    let Some(place) = Place::new() else { return };
    const ROWS: i64 = 100_000;
    const BAD: i64 = 61_803;
    place.sql("CREATE TABLE t (n int8, code varchar(8))");
    count_statements(&place, "t");
    let code = |n: i64| if n == BAD { "much too long".to_owned() } else { n.to_string() };
    let codes: ArrayRef = Arc::new(StringArray::from_iter_values((0..ROWS).map(code)));
    let batch = table(vec![("n", Arc::new(Int64Array::from_iter_values(0..ROWS)) as ArrayRef), ("code", codes)]);
    let sink = place.open("t", &[], None);
    assert_eq!(write(&sink, &[batch]).await.unwrap().rejected(), 1);
    assert_eq!(
        place.sql("SELECT count(*), count(DISTINCT n), sum(n) FROM t"),
        [format!("{0}|{0}|{1}", ROWS - 1, ROWS * (ROWS - 1) / 2 - BAD)]
    );
    let spent = statements(&place);
    assert!((17..=30).contains(&spent), "{spent} statements for one row of {ROWS}, which are 17 halvings");
    let reject = rejects(&sink).await.remove(0);
    assert_eq!((reject.number, reject.row, reject.reason.as_str()), (0, BAD as u64, "value"));
    assert_eq!(reject.detail, "value too long for type character varying(8)");
    assert_eq!(reject.record, format!(r#"{{"n":{BAD},"code":"much too long"}}"#));
}

/// Where every second row is refused, halving would try each row four times and send it many times: they go one by one.
#[tokio::test]
async fn many_refused_rows_cost_one_statement_a_row_in_every_mode() {
    let Some(place) = Place::new() else { return };
    let rows = 8_000;
    for (mode, key) in [("append", &[][..]), ("upsert", &["n"][..])] {
        // A clean quarter, one where the table refuses every second row, and a clean half.
        place.sql(
            "SET client_min_messages = error; DROP TABLE IF EXISTS t; DROP SEQUENCE IF EXISTS statements; DROP FUNCTION IF EXISTS counted CASCADE;
             CREATE TABLE t (n int8 PRIMARY KEY, short varchar(3), code int8 CHECK (code >= 0))",
        );
        count_statements(&place, "t");
        let bad = |n: i64| n >= rows / 4 && n < rows / 2 && n % 2 == 1;
        let code = (0..rows).map(|n| if bad(n) && n % 4 == 1 { -1 } else { n });
        let short = (0..rows).map(|n| if bad(n) && n % 4 == 3 { "long" } else { "abc" });
        let batch = table(vec![
            ("n", Arc::new(Int64Array::from_iter_values(0..rows)) as ArrayRef),
            ("short", Arc::new(StringArray::from_iter_values(short))),
            ("code", Arc::new(Int64Array::from_iter_values(code))),
        ]);
        let sink = place.open("t", key, None);
        let began = std::time::Instant::now();
        let refused = (0..rows).filter(|n| bad(*n)).count();
        assert_eq!(write(&sink, &[batch]).await.unwrap().rejected(), refused as u64, "{mode}");
        println!("{mode}: {rows} rows, {refused} of them refused: {:?}", began.elapsed());
        let sum: i64 = (0..rows).filter(|n| !bad(*n)).sum();
        let count = rows as usize - refused;
        assert_eq!(place.sql("SELECT count(*), count(DISTINCT n), sum(n) FROM t"), [format!("{count}|{count}|{sum}")]);
        let mut found = rejects(&sink).await;
        let last = found.iter().map(|reject| reject.seq).max().unwrap();
        found.retain(|reject| reject.seq == last);
        let told: Vec<u64> = found.iter().map(|reject| reject.row).collect();
        assert_eq!(told, (0..rows as u64).filter(|n| bad(*n as i64)).collect::<Vec<_>>(), "{mode}");
        let words = |reject: &SinkReject| match reject.row % 4 {
            1 => reject.reason == "constraint" && reject.detail.contains("violates check constraint"),
            _ => reject.reason == "value" && reject.detail.contains("too long for type character varying(3)"),
        };
        assert!(found.iter().all(words), "{mode}");
        let spent = statements(&place);
        assert!(spent <= rows as u64 / 4 + 1_000, "{mode}: {spent} statements for {refused} refused rows");
    }
}

/// Whatever a server can have against a row, with its own words; the rows around it are written, in every mode.
#[tokio::test]
async fn rows_are_refused_one_by_one_with_the_servers_own_words() {
    let Some(place) = Place::new() else { return };
    for (mode, key) in [("append", &[][..]), ("upsert", &["n"][..])] {
        place.sql(&format!(
            "SET client_min_messages = error; DROP TABLE IF EXISTS t, parent; CREATE TABLE parent (id int8 PRIMARY KEY);
            INSERT INTO parent VALUES (1);
            CREATE TABLE t (n int8 PRIMARY KEY, doc jsonb, price numeric(4, 2), positive int8 CHECK (positive > 0),
                must text NOT NULL, parent int8 REFERENCES parent DEFERRABLE INITIALLY DEFERRED, id uuid, at timestamptz);
            CREATE OR REPLACE FUNCTION picky() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN IF NEW.must = 'no' THEN RAISE EXCEPTION 'I take no no'; END IF; RETURN NEW; END $$;
            CREATE TRIGGER picky BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION picky(); -- {mode}"
        ));
        let decimals = [100, 100, 10_000, 100, 100, 100, 100, 100, 100, 100].map(Some).to_vec();
        let micros = [0, 0, 0, 0, 0, 0, 0, 0, i64::MIN, 0].map(Some).to_vec();
        let ok = Some("{}");
        let id = Some("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11");
        let batch = table(vec![
            numbers("n", &(0..10).map(Some).collect::<Vec<_>>()),
            texts("doc", &[ok, Some("{broken"), ok, ok, ok, ok, ok, ok, ok, Some("\"\0\"")]),
            ("price", Arc::new(Decimal128Array::from(decimals).with_precision_and_scale(9, 2).unwrap())),
            numbers("positive", &[1, 1, 1, -1, 1, 1, 1, 1, 1, 1].map(Some)),
            texts("must", &[ok, ok, ok, ok, None, ok, Some("no"), ok, ok, ok]),
            numbers("parent", &[1, 1, 1, 1, 1, 99, 1, 1, 1, 1].map(Some)),
            texts("id", &[id, id, id, id, id, id, id, Some("no uuid"), id, id]),
            ("at", Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC"))),
        ]);
        let sink = place.open("t", key, None);
        assert_eq!(write(&sink, &[batch]).await.unwrap().rejected(), 9, "{mode}");
        assert_eq!(place.sql("SELECT n FROM t"), ["0"], "{mode}");
        let mut found = rejects(&sink).await;
        let last = found.iter().map(|reject| reject.seq).max().unwrap();
        found.retain(|reject| reject.seq == last);
        found.sort_by_key(|reject| reject.row);
        let told: Vec<(u64, &str, &str)> =
            found.iter().map(|reject| (reject.row, reject.reason.as_str(), reject.detail.as_str())).collect();
        let expected = [
            (1, "value", "invalid input syntax for type json"),
            (2, "value", "numeric field overflow"),
            (3, "constraint", "violates check constraint"),
            (4, "constraint", "violates not-null constraint"),
            (5, "constraint", "violates foreign key constraint"),
            (6, "constraint", "I take no no"),
            (7, "value", "column `id`: not a uuid"),
            (8, "value", "column `at`: out of the range"),
            (9, "value", "column `doc`: the text holds a zero byte"),
        ];
        assert_eq!(told.len(), expected.len(), "{mode}: {told:#?}");
        for ((row, reason, words), (at, why, part)) in told.into_iter().zip(expected) {
            assert!(row == at && reason == why && words.contains(part), "{mode}: row {row}: {reason}: {words}");
        }
    }
}

/// Of two rows with one key the second is refused, as if they came one by one; those of earlier batches count too.
/// Functions and triggers choose their own codes.
#[tokio::test]
async fn what_a_trigger_raises_is_a_reject_whatever_its_code() {
    let Some(place) = Place::new() else { return };
    for (table_of, raises) in [
        ("plain", "RAISE EXCEPTION 'no'"),
        ("own", "RAISE EXCEPTION 'no' USING ERRCODE = 'MY001'"),
        ("state", "RAISE EXCEPTION 'no' USING ERRCODE = '45000'"),
        ("asserted", "ASSERT false, 'no'"),
        ("strict", "SELECT 1 INTO STRICT one WHERE false"),
        ("many", "PERFORM (SELECT n FROM generate_series(1, 2) AS n)"),
    ] {
        place.sql(&format!(
            "CREATE TABLE {table_of} (n int8 PRIMARY KEY);
            CREATE FUNCTION {table_of}() RETURNS trigger LANGUAGE plpgsql AS $$
            DECLARE one int; BEGIN IF NEW.n = 2 THEN {raises}; END IF; RETURN NEW; END $$;
            CREATE TRIGGER no BEFORE INSERT ON {table_of} FOR EACH ROW EXECUTE FUNCTION {table_of}()"
        ));
        for key in [&[][..], &["n"]] {
            place.sql(&format!("DELETE FROM {table_of}"));
            let sink = place.open(table_of, key, None);
            let batch = table(vec![numbers("n", &[Some(1), Some(2), Some(3)])]);
            let receipt = write(&sink, &[batch]).await.unwrap_or_else(|error| panic!("{raises}: {error}"));
            assert_eq!((receipt.rejected(), place.sql(&format!("SELECT n FROM {table_of}")).len()), (1, 2), "{raises}");
            let last = rejects(&sink).await.pop().unwrap();
            assert_eq!((last.row, &*last.reason), (1, "constraint"), "{raises}: {}", last.detail);
        }
    }
}

/// The job has no narrower integers than int32, and an identity column is a key like any other.
#[tokio::test]
async fn narrow_integers_take_what_fits_and_identities_what_is_given() {
    let Some(place) = Place::new() else { return };
    place.sql("CREATE TABLE t (k int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n smallint)");
    let of = |values: [i32; 3]| -> ArrayRef { Arc::new(Int32Array::from(values.to_vec())) };
    let batch = table(vec![numbers("k", &[Some(7), Some(8), Some(9)]), ("n", of([32767, 32768, -32768]))]);
    let sink = place.open("t", &["k"], None);
    assert_eq!(write(&sink, &[batch]).await.unwrap().rejected(), 1);
    assert_eq!(place.sql("SELECT * FROM t ORDER BY k"), ["7|32767", "9|-32768"]);
    let told = rejects(&sink).await.pop().unwrap();
    assert!(told.row == 1 && told.detail.contains("out of the range of smallint"), "{}", told.detail);
}

#[tokio::test]
async fn a_unique_key_takes_the_first_row() {
    let Some(place) = Place::new() else { return };
    place.sql("CREATE TABLE t (n int8 PRIMARY KEY, at int8); INSERT INTO t VALUES (5, 0)");
    let sink = place.open("t", &[], None);
    let batch =
        table(vec![numbers("n", &[1, 2, 1, 3, 5, 2, 4].map(Some)), numbers("at", &[1, 2, 3, 4, 5, 6, 7].map(Some))]);
    assert_eq!(write(&sink, &[batch]).await.unwrap().rejected(), 3);
    assert_eq!(place.sql("SELECT n, at FROM t ORDER BY n"), ["1|1", "2|2", "3|4", "4|7", "5|0"]);
    let found = rejects(&sink).await;
    assert_eq!(found.iter().map(|reject| (reject.number, reject.row)).collect::<Vec<_>>(), [(0, 2), (1, 4), (2, 5)]);
    assert!(found[0].detail.contains("duplicate key") && found[0].detail.contains("(n)=(1)"), "{}", found[0].detail);
    // Numbers go on.
    let again = table(vec![numbers("n", &[Some(4)]), numbers("at", &[Some(8)])]);
    write(&sink, &[again]).await.unwrap();
    assert_eq!(sink.rejects(&Lane::single(), 3).await.unwrap()[0].number, 3);
}

/// Integers read as floats would be other numbers: types that change between two batches are seen before the COMMIT.
#[tokio::test]
async fn a_column_whose_type_changes_while_the_sink_runs_is_never_written_as_the_old_one() {
    let Some(place) = Place::new() else { return };
    place.sql("CREATE TABLE t (n int4)");
    let small = |n: i32| table(vec![("n", Arc::new(Int32Array::from(vec![n])) as ArrayRef)]);
    let sink = place.open("t", &[], None);
    write(&sink, &[small(1)]).await.unwrap();
    place.sql("ALTER TABLE t ALTER COLUMN n TYPE int8");
    write(&sink, &[small(2)]).await.unwrap();
    // Of the same four bytes, and another number.
    place.sql("ALTER TABLE t ALTER COLUMN n TYPE int4");
    write(&sink, &[small(3)]).await.unwrap();
    place.sql("ALTER TABLE t ALTER COLUMN n TYPE float4");
    let why = refused(&sink, &small(4)).await;
    assert!(why.contains("column `n` is real there and int32 in the job"), "{why}");
    place.sql("ALTER TABLE t ALTER COLUMN n TYPE float8");
    write(&sink, &[small(5)]).await.unwrap();
    assert_eq!(place.sql("SELECT n FROM t ORDER BY n"), ["1", "2", "3", "5"]);
    place.sql("ALTER TABLE t DROP COLUMN n");
    let why = refused(&sink, &small(6)).await;
    assert!(why.contains("it has no column `n`"), "{why}");
    assert_eq!(place.sql("SELECT count(*) FROM t"), ["4"]);
}

#[tokio::test]
async fn many_lanes_are_one_transaction_and_one_copy() {
    let Some(place) = Place::new() else { return };
    place.sql("CREATE TABLE t (n int8, text text CHECK (text <> 'bad'))");
    count_statements(&place, "t");
    let sink = place.open("t", &[], None);
    let mut runners = Vec::new();
    for lane in 0..100 {
        let lane = Lane::new(&format!("topic/{lane}"));
        let (key, head) = sink.claim(&lane, crate::sinks::generation(1), &crate::sinks::owner(1)).await.unwrap();
        let mut runner = Runner { sink: sink.clone(), key, head };
        runner.step().await.unwrap();
        runners.push(runner);
    }
    sink.prepare(&crate::sinks::batch(1).schema()).await.unwrap();
    let transactions = || place.sql("SELECT count(DISTINCT xmin::text) FROM tidemill_marks")[0].clone();
    assert_eq!(transactions(), "100");
    let bad = table(vec![numbers("n", &[Some(1), Some(2)]), texts("text", &[Some("bad"), Some("good")])]);
    for (round, bad) in [(1, None), (2, Some(&bad))] {
        let before = statements(&place);
        let mut group = Vec::new();
        for (at, runner) in runners.iter_mut().enumerate() {
            let head = runner.head.clone().unwrap();
            let (mark, entries) = next(&runner.key, &head, &[], 0);
            let rows = bad.filter(|_| at == 40).cloned().unwrap_or_else(|| crate::sinks::batch(at as u64));
            let staged = sink.stage(&context(&runner.key, &mark, false), &[rows]).await.unwrap();
            runner.head = Some(mark.clone());
            group.push((Permit::anchor(runner.key.clone(), Some(head.digest), mark, entries), staged));
        }
        let receipts = sink.commit(group).await;
        for (at, receipt) in receipts.iter().enumerate() {
            let rejected = u64::from(bad.is_some() && at == 40);
            assert_eq!(receipt.as_ref().unwrap().rejected(), rejected, "lane {at}, round {round}");
        }
        assert_eq!(transactions(), "1", "round {round}");
        let spent = statements(&place) - before;
        assert!(if bad.is_some() { spent <= 20 } else { spent == 1 }, "{spent} statements in round {round}");
    }
    assert_eq!(place.sql("SELECT count(*) FROM t"), ["598"]);
    let kept = sink.rejects(&Lane::new("topic/40"), 0).await.unwrap();
    assert_eq!((kept.len(), kept[0].row), (1, 0));
    assert!(sink.rejects(&Lane::new("topic/41"), 0).await.unwrap().is_empty());
}

/// What COPY by the sink costs beside `psql \copy` of the same rows: `cargo test -p tidemill-connectors --test
/// sink_postgres speed -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn speed() {
    let Some(place) = Place::new() else { return };
    const ROWS: i64 = 300_000;
    let line =
        |n: i64| format!("{n} GET /a/path/of/some/length/{}?with=a&query={n} Mozilla/5.0 (X11; Linux x86_64)", n % 97);
    let batch = table(vec![
        ("n", Arc::new(Int64Array::from_iter_values(0..ROWS)) as ArrayRef),
        ("status", Arc::new(Int32Array::from_iter_values((0..ROWS).map(|n| 200 + (n % 5) as i32)))),
        ("ratio", Arc::new(Float64Array::from_iter_values((0..ROWS).map(|n| n as f64 / 7.0)))),
        (
            "at",
            Arc::new(
                TimestampMicrosecondArray::from_iter_values((0..ROWS).map(|n| 1_431_857_103_000_000 + n * 977))
                    .with_timezone("UTC"),
            ),
        ),
        ("text", Arc::new(StringArray::from_iter_values((0..ROWS).map(line)))),
    ]);
    let batches: Vec<RecordBatch> =
        (0..ROWS as usize).step_by(8192).map(|at| batch.slice(at, 8192.min(ROWS as usize - at))).collect();
    let cpu = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<f64>().unwrap() / 100.0 + fields[12].parse::<f64>().unwrap() / 100.0
    };
    for (name, key) in [("append", &[][..]), ("upsert", &["n"][..])] {
        let sink = place.open(name, key, None);
        write(&sink, &[batch.slice(0, 1)]).await.unwrap();
        place.sql(&format!("TRUNCATE {name}"));
        let (begun, used) = (std::time::Instant::now(), cpu());
        write(&sink, &batches).await.unwrap();
        let (took, used) = (begun.elapsed().as_secs_f64(), cpu() - used);
        println!("sink, {name}: {took:.2} s, {:.0} rows/s; {used:.2} s of our own CPU", ROWS as f64 / took);
    }
    let file = place.dir.path().join("rows.csv").display().to_string();
    place.sql(&format!("\\copy append TO '{file}' CSV"));
    for round in 0..2 {
        place.sql("TRUNCATE append");
        let begun = std::time::Instant::now();
        place.sql(&format!("\\copy append FROM '{file}' CSV"));
        let took = begun.elapsed().as_secs_f64();
        println!("psql \\copy, round {round}: {took:.2} s, {:.0} rows/s", ROWS as f64 / took);
    }
}
