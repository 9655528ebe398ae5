//! Lookups in batches of many slices, and tables that are asked.
use std::sync::{Arc, Mutex};

use crate::common::{CONTEXT, batch, chunks, job, schema, values};
use arrow::{
    array::{AsArray, Int64Array, RecordBatch},
    datatypes::Int64Type,
};
use serde_json::json;
use tidemill_config::Verb;
use tidemill_steps::{
    Pipeline, Schemas, StepError,
    lookup::{Ask, AskError, Snapshot, Table, Tables},
};

/// Knows the squares of even numbers, and what it was asked.
#[derive(Debug, Default)]
struct Squares {
    asked: Mutex<Vec<Vec<i64>>>,
    fails: bool,
}

impl Ask for Squares {
    fn ask(&self, keys: &RecordBatch) -> Result<RecordBatch, AskError> {
        assert_eq!(keys.schema(), schema("n: int64"));
        let keys: Vec<i64> = keys.column(0).as_primitive::<Int64Type>().values().to_vec();
        self.asked.lock().unwrap().push(keys.clone());
        if self.fails {
            return Err(AskError { cause: "the database is away".into(), transient: true });
        }
        let even: Vec<i64> = keys.into_iter().filter(|n| n % 2 == 0).rev().collect();
        let squares = even.iter().map(|n| n * n);
        let columns =
            vec![Arc::new(Int64Array::from_iter_values(squares)) as _, Arc::new(Int64Array::from(even.clone())) as _];
        Ok(RecordBatch::try_new(schema("square: int64, n: int64"), columns).unwrap())
    }
}

fn pipeline(steps: &str, columns: &str) -> Pipeline {
    let job = job(&["in"], steps, &[("out", None, None)]);
    let tables = job.steps.iter().map(|step| (step.name.clone(), schema("square: int64, n: int64")));
    let tables: Schemas = tables.collect();
    Pipeline::plan_with(&job, &[("in".into(), schema(columns))], &tables).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn asked(by: &Arc<Squares>, step: &str) -> Tables {
    Tables::from([(step.to_owned(), Table::Asked(by.clone()))])
}

#[test]
fn a_table_is_asked_once_for_the_distinct_keys_of_all_slices() {
    let steps = "[{ filter: 'x >= 0' }, { name: s, lookup: { table: t, match: { x: n }, take: [square] } }, { filter: 'x < 90000' }]";
    let pipeline = pipeline(steps, "x: int64");
    let rows = (0..30_000_i64).map(|row| vec![json!(row % 50)]).chain([vec![json!(null)], vec![json!(-1)]]);
    let rows = batch(&schema("x: int64"), &rows.collect::<Vec<_>>());
    for size in [100_000, 700] {
        let squares = Arc::new(Squares::default());
        let applied = pipeline.apply_with(&CONTEXT, vec![("in".into(), chunks(&rows, size, 0))], &asked(&squares, "s"));
        let out = values(&applied.unwrap().sinks[0].1);
        assert_eq!(*squares.asked.lock().unwrap(), [(0..50).collect::<Vec<i64>>()], "chunks of {size}");
        assert_eq!(out.len(), 30_000);
        for (row, got) in out.iter().enumerate() {
            let x = row as i64 % 50;
            let square = (x % 2 == 0).then_some(x * x);
            assert_eq!(*got, [json!(x), json!(square)]);
        }
    }
}

#[test]
fn a_text_that_is_no_such_number_is_not_asked_for_and_nothing_is_asked_for_no_keys() {
    let pipeline = pipeline("[{ name: s, lookup: { table: t, match: { x: n }, take: [square] } }]", "x: string");
    let rows =
        batch(&schema("x: string"), &[vec![json!("4")], vec![json!("four")], vec![json!("04")], vec![json!("4")]]);
    let squares = Arc::new(Squares::default());
    let inputs = vec![("in".into(), chunks(&rows, 10, 0))];
    let out = pipeline.apply_with(&CONTEXT, inputs, &asked(&squares, "s")).unwrap();
    assert_eq!(*squares.asked.lock().unwrap(), [[4]]);
    // Compared as texts, as the rows have them: what the row says is what is joined.
    let expected =
        [[json!("4"), json!(16)], [json!("four"), json!(null)], [json!("04"), json!(null)], [json!("4"), json!(16)]];
    assert_eq!(values(&out.sinks[0].1), expected);
    let squares = Arc::new(Squares::default());
    let rows = batch(&schema("x: string"), &[vec![json!("four")], vec![json!(null)]]);
    let out = pipeline.apply_with(&CONTEXT, vec![("in".into(), chunks(&rows, 10, 0))], &asked(&squares, "s")).unwrap();
    assert!(squares.asked.lock().unwrap().is_empty());
    assert_eq!(values(&out.sinks[0].1), [[json!("four"), json!(null)], [json!(null), json!(null)]]);
}

#[test]
fn two_lookups_after_each_other_are_each_asked_once() {
    let steps = "[{ name: a, lookup: { table: t, match: { x: n }, take: { square: y } } }, \
                 { name: b, lookup: { table: t, match: { y: n }, take: { square: z } } }]";
    let pipeline = pipeline(steps, "x: int64");
    let rows = batch(&schema("x: int64"), &[vec![json!(2)], vec![json!(3)], vec![json!(4)]]);
    let squares = Arc::new(Squares::default());
    let tables = ["a", "b"].map(|step| (step.to_owned(), Table::Asked(squares.clone() as _))).into();
    let out = pipeline.apply_with(&CONTEXT, vec![("in".into(), chunks(&rows, 1, 0))], &tables).unwrap();
    assert_eq!(*squares.asked.lock().unwrap(), [vec![2, 3, 4], vec![4, 16]]);
    let expected =
        [[json!(2), json!(4), json!(16)], [json!(3), json!(null), json!(null)], [json!(4), json!(16), json!(256)]];
    assert_eq!(values(&out.sinks[0].1), expected);
}

#[test]
fn a_failure_says_whether_it_may_pass() {
    let pipeline = pipeline("[{ name: s, lookup: { table: t, match: { x: n }, take: [square] } }]", "x: int64");
    let rows = batch(&schema("x: int64"), &[vec![json!(2)]]);
    let inputs = || vec![("in".to_owned(), chunks(&rows, 10, 0))];
    let away = Arc::new(Squares { fails: true, ..Squares::default() });
    let error = pipeline.apply_with(&CONTEXT, inputs(), &asked(&away, "s")).unwrap_err();
    let StepError::Table { step, cause, transient: true } = &error else { panic!("{error}") };
    assert_eq!((step.as_str(), cause.as_str()), ("s", "the database is away"));
    assert!(matches!(pipeline.apply(&CONTEXT, inputs()), Err(StepError::Table { transient: false, .. })));
}

#[test]
fn a_newer_table_is_indexed_for_the_types_that_the_one_before_was_asked_for() {
    let steps = "[{ name: s, lookup: { table: t, match: { x: k }, take: [v] } }]";
    let job = job(&["in"], steps, &[("out", None, None)]);
    let Verb::Lookup(config) = &job.steps[0].verb else { panic!() };
    let table = |keys: &[&str]| {
        let rows: Vec<_> = keys.iter().map(|key| vec![json!(key), json!("v")]).collect();
        Arc::new(Snapshot::new(batch(&schema("k: string, v: string"), &rows), config).unwrap())
    };
    let (before, newer, twice) = (table(&["7"]), table(&["7", "8"]), table(&["7", "07"]));
    // Nobody has asked for numbers yet.
    twice.index_as(&before).unwrap();
    let twice = table(&["7", "07"]);
    let schemas = Schemas::from([("s".to_owned(), schema("k: string, v: string"))]);
    let pipeline = Pipeline::plan_with(&job, &[("in".into(), schema("x: int64"))], &schemas).unwrap();
    let inputs = vec![("in".to_owned(), chunks(&batch(&schema("x: int64"), &[vec![json!(7)]]), 10, 0))];
    let tables = Tables::from([("s".to_owned(), Table::Whole(before.clone()))]);
    pipeline.apply_with(&CONTEXT, inputs, &tables).unwrap();
    newer.index_as(&before).unwrap();
    let error = twice.index_as(&before).unwrap_err();
    assert!(error.contains("the key k = 7 is in it twice"), "{error}");
}
