//! What a pipeline promises beyond single steps: the same rows from the same rows, however they are cut; several sources
//! and sinks; rows that fail found among many.
use std::sync::Arc;

use crate::common::{CONTEXT, batch, chunks, columns_of, job, located, messages, plan, schema, values};
use arrow::{array::StringArray, record_batch::RecordBatch};
use serde_json::{Value, json};
use tidemill_config::{KafkaSink, SinkKind};
use tidemill_steps::{BatchContext, Pipeline, Rows, StepError};

/// Rows of a web log: some that fail in each step.
fn log_rows(count: usize) -> RecordBatch {
    let rows: Vec<Vec<Value>> = (0..count)
        .map(|row| {
            let response = if row % 97 == 5 { "-".to_owned() } else { (200 + row % 7 * 100).to_string() };
            let time = if row % 131 == 7 {
                "?".into()
            } else {
                format!("2015-05-17T10:{:02}:{:02}Z", row / 60 % 60, row % 60)
            };
            vec![json!(response), json!(time), json!(format!("  Agent {}/É ", row % 13)), json!(row % 11)]
        })
        .collect();
    batch(&schema("response: string, time: string, agent: string, n: int64"), &rows)
}

const STEPS: &str = "
- parse_timestamp: { column: time }
- cast: { response: int32 }
- trim: [agent]
- lowercase: [agent]
- filter: response < 700
- add: { class: \"concat(cast(response / 100 as string), 'xx')\", q: 100 / n, dice: random(), id: uuid(), now: now() }
- split: { column: agent, by: ' ' }
- add: { again: random() }
- uppercase: [agent]
  when: dice < 0.5
- name: clean
  sql: SELECT class, agent, dice, again, id, now, q, random() AS third FROM batch WHERE agent <> 'AGENT'
";

const HITS: &str = "
- name: hits
  from: [clean]
  sql: SELECT class, count(*) AS hits, sum(dice) AS dice, array_agg(DISTINCT agent) AS agents,
    approx_distinct(id) AS ids, string_agg(DISTINCT agent, ',') AS names, median(q) AS q,
    count(DISTINCT agent) AS agent_count, avg(again) AS again FROM clean GROUP BY class
";

fn log_pipeline() -> Pipeline {
    let steps = format!("{STEPS}{HITS}");
    let job = job(&["in"], &steps, &[("rows", Some("clean"), Some("q < 60")), ("hits", None, None)]);
    Pipeline::plan(&job, &[("in".into(), log_rows(0).schema())]).unwrap_or_else(|errors| panic!("{errors:?}"))
}

/// Everything that a run gives, as text; without times.
fn outcome(pipeline: &Pipeline, context: &BatchContext, chunks: Vec<Rows>) -> String {
    let applied = pipeline.apply(context, vec![("in".into(), chunks)]).unwrap();
    let counts: Vec<_> =
        applied.steps.iter().map(|step| (&step.name, step.rows_in, step.rows_out, step.rejected)).collect();
    let rows: Vec<_> = applied.sinks.iter().map(|(name, batches)| (name, values(batches))).collect();
    format!("{rows:?}\n{:?}\n{counts:?}", applied.rejects)
}

#[test]
fn the_same_rows_however_they_are_cut() {
    let (pipeline, rows) = (log_pipeline(), log_rows(10_000));
    let whole = outcome(&pipeline, &CONTEXT, chunks(&rows, 10_000, 0));
    assert!(whole.contains("\"6xx\"") && whole.contains("division by zero") && whole.contains("parse_timestamp"));
    for size in [1, 7, 1000, 4096, 4097] {
        assert!(outcome(&pipeline, &CONTEXT, chunks(&rows, size, 0)) == whole, "chunks of {size}");
    }
    // A pipeline that was planned again, as after a restart.
    assert!(outcome(&log_pipeline(), &CONTEXT, chunks(&rows, 333, 0)) == whole);
    let other = BatchContext { seed: 43, ..CONTEXT };
    assert!(outcome(&pipeline, &other, chunks(&rows, 10_000, 0)) != whole, "another seed gives other dice");
    let later = BatchContext { planned_at: CONTEXT.planned_at + 1, ..CONTEXT };
    assert!(outcome(&pipeline, &later, chunks(&rows, 10_000, 0)) != whole, "another clock gives another now()");
}

#[test]
fn a_hundred_replays_on_several_threads_are_equal() {
    let (pipeline, rows) = (log_pipeline(), log_rows(600));
    let first = outcome(&pipeline, &CONTEXT, chunks(&rows, 100, 0));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (pipeline, rows, first) = (&pipeline, &rows, &first);
            scope.spawn(move || {
                for run in 0..25 {
                    // Batches of other contexts run at the same time, and must not be seen.
                    let context = BatchContext { planned_at: CONTEXT.planned_at + thread, ..CONTEXT };
                    let replay = outcome(pipeline, &context, chunks(rows, 50 + run, 0));
                    assert_eq!(&replay == first, thread == 0, "thread {thread}, run {run}");
                }
            });
        }
    });
}

#[test]
fn joins_and_sorts_do_not_depend_on_chunks() {
    let steps = "
- sql: SELECT a.n, a.agent, b.response FROM l a LEFT JOIN r b ON a.n = b.n AND b.response <> '-' WHERE a.n < 4
  from: [l, r]
- sql: SELECT n, agent, response, row_number() OVER (PARTITION BY n ORDER BY response) AS place FROM batch";
    let rows = log_rows(5000);
    let job = job(&["l", "r"], steps, &[("out", None, None)]);
    let pipeline = Pipeline::plan(&job, &[("l".into(), rows.schema()), ("r".into(), rows.schema())]).unwrap();
    let run = |left: usize, right: usize| {
        let inputs = vec![("l".into(), chunks(&rows.slice(0, 300), left, 0)), ("r".into(), chunks(&rows, right, 300))];
        values(&pipeline.apply(&CONTEXT, inputs).unwrap().sinks[0].1)
    };
    let whole = run(300, 5000);
    assert!(whole.len() > 10_000);
    for (left, right) in [(1, 5000), (300, 13), (77, 4096)] {
        assert!(run(left, right) == whole, "{left} {right}");
    }
}

#[test]
fn three_bad_rows_among_a_hundred_thousand() {
    let bad = [17, 50_000, 99_999];
    let text = (0..100_000).map(|row| if bad.contains(&row) { "x".to_owned() } else { row.to_string() });
    let rows = RecordBatch::try_new(schema("s: string"), vec![Arc::new(StringArray::from_iter_values(text))]).unwrap();
    let row_wise = plan("s: string", "- add: { n: cast(s as bigint) }").unwrap();
    let query = plan("s: string", "- sql: SELECT sum(cast(s as bigint)) AS n, count(*) AS c FROM batch").unwrap();
    for (pipeline, reason) in [(&row_wise, "`CAST(s AS BIGINT)`: "), (&query, "")] {
        let applied = pipeline.apply(&CONTEXT, vec![("in".into(), chunks(&rows, 30_000, 7))]).unwrap();
        let found: Vec<u32> = applied.rejects.iter().map(|reject| reject.origin - 7).collect();
        assert_eq!(found, bad);
        assert!(applied.rejects[0].detail.contains("'x'"), "{} {reason}", applied.rejects[0].detail);
        assert_eq!(applied.steps[0].rejected, 3);
        match reason {
            "" => assert_eq!(
                values(&applied.sinks[0].1),
                [[json!((0..100_000i64).sum::<i64>() - 17 - 50_000 - 99_999), json!(99_997)]]
            ),
            _ => assert_eq!(applied.sinks[0].1.iter().map(RecordBatch::num_rows).sum::<usize>(), 99_997),
        }
    }
}

#[test]
fn a_query_that_fails_on_too_many_rows_says_so() {
    let rows: Vec<Vec<Value>> = (0..3000).map(|_| vec![json!("x")]).collect();
    let pipeline = plan("s: string", "- sql: SELECT sum(cast(s as bigint)) AS n FROM batch").unwrap();
    let error = pipeline
        .apply(&CONTEXT, vec![("in".into(), chunks(&batch(&schema("s: string"), &rows), 3000, 0))])
        .unwrap_err();
    assert!(
        matches!(&error, StepError::Query { step, cause } if step == "1-sql" && cause.contains("runs of the query")),
        "{error}"
    );
}

#[test]
fn on_error_fail_names_the_first_row() {
    let rows = log_rows(20_000);
    for (steps, step) in [
        ("- cast: { response: int32 }\n  on_error: fail", "1-cast"),
        ("- sql: SELECT max(cast(response as int)) AS n FROM batch\n  on_error: fail", "1-sql"),
    ] {
        let pipeline = plan(&columns_of(&rows.schema()), steps).unwrap();
        for size in [100, 20_000] {
            let error = pipeline.apply(&CONTEXT, vec![("in".into(), chunks(&rows, size, 0))]).unwrap_err();
            let StepError::Row(reject) = &error else { panic!("{error}") };
            assert_eq!((reject.origin, reject.step.as_str()), (5, step));
            assert!(error.to_string().contains("on_error: fail") && error.to_string().contains('-'), "{error}");
        }
    }
}

#[test]
fn sources_are_united_by_name() {
    let steps = "- add: { c: a * 2 }";
    let job_ = job(&["x", "y"], steps, &[("out", None, None), ("big", None, Some("c > 5")), ("raw", Some("y"), None)]);
    let (x, y) = (schema("a: int64, b: string"), schema("d: boolean, a: int64"));
    let pipeline = Pipeline::plan(&job_, &[("x".into(), Arc::clone(&x)), ("y".into(), Arc::clone(&y))]).unwrap();
    assert_eq!(columns_of(&pipeline.sink_schema("out").unwrap()), "a: int64, b: string, d: boolean, c: int64");
    assert_eq!(columns_of(&pipeline.sink_schema("raw").unwrap()), "d: boolean, a: int64");
    assert!(pipeline.sink_schema("none").is_none());
    assert!(pipeline.is_row_wise());
    let left = batch(&x, &[vec![json!(1), json!("l")], vec![json!(3), json!("m")]]);
    let right = batch(&y, &[vec![json!(true), json!(4)]]);
    // The order of sources is the job's, not the call's.
    let inputs = vec![("y".to_owned(), chunks(&right, 9, 2)), ("x".to_owned(), chunks(&left, 1, 0))];
    let applied = pipeline.apply(&CONTEXT, inputs).unwrap();
    let out = [json!([1, "l", null, 2]), json!([3, "m", null, 6]), json!([4, null, true, 8])];
    assert_eq!(json!(values(&applied.sinks[0].1)), json!(out));
    assert_eq!(json!(values(&applied.sinks[1].1)), json!(&out[1..]));
    assert_eq!(json!(values(&applied.sinks[2].1)), json!([[true, 4]]));

    let other = schema("a: string");
    let errors = messages(Pipeline::plan(&job_, &[("x".into(), x), ("y".into(), other)]));
    assert!(errors.iter().any(|error| error.contains("`a` is int64 in `x` and string in `y`")), "{errors:?}");
}

#[test]
fn a_branch_and_a_join_by_names() {
    let steps = "
- name: left
  from: [web-logs]
  filter: n < 3
- name: right
  from: [web-logs]
  select: [n, s]
- name: both
  from: [left, right, web-logs]
  sql: SELECT l.n, count(*) AS c, max(w.s) AS s FROM \"left\" l JOIN \"right\" r USING (n) JOIN web_logs w ON w.n = l.n GROUP BY l.n
- from: [both, left]
  select: [n, c]";
    let pipeline = Pipeline::plan(
        &job(&["web-logs"], steps, &[("out", None, None)]),
        &[("web-logs".into(), schema("n: int64, s: string"))],
    )
    .unwrap();
    assert_eq!(pipeline.gathers(), Some("both"));
    let rows = batch(
        &schema("n: int64, s: string"),
        &[vec![json!(2), json!("a")], vec![json!(7), json!("b")], vec![json!(2), json!("c")]],
    );
    let applied = pipeline.apply(&CONTEXT, vec![("web-logs".into(), chunks(&rows, 2, 0))]).unwrap();
    assert_eq!(json!(values(&applied.sinks[0].1)), json!([[2, 8], [2, null], [2, null]]));
}

/// The key of a Kafka sink is a column by its name, whatever that is, or an expression, which becomes a column of its own.
#[test]
fn a_key_of_kafka_is_a_column_or_an_expression() {
    let with_key = |key: &str, filter: Option<&str>| {
        let mut job = job(&["in"], "", &[("out", None, filter)]);
        job.sinks[0].kind = SinkKind::Kafka(KafkaSink {
            brokers: "k".into(),
            topic: "t".into(),
            key: Some(located(key.to_owned(), "sinks.out.key")),
            headers: Vec::new(),
            headers_from: None,
            timestamp: None,
            omit: Vec::new(),
            delete_when: None,
            codec: tidemill_config::Codec::Json,
            compression: tidemill_config::KafkaCompression::None,
            guarantee: tidemill_config::Guarantee::ExactlyOnce,
            transaction_timeout: std::time::Duration::from_secs(60),
            marks_topic: None,
            properties: Vec::new(),
        });
        Pipeline::plan(&job, &[("in".to_owned(), schema("a: string, n: int64, Odd name: int64"))])
    };
    let schema_of = |pipeline: &Pipeline| columns_of(&pipeline.sink_schema("out").unwrap());
    let whole = "a: string, n: int64, Odd name: int64";
    for column in ["n", "Odd name"] {
        assert_eq!(schema_of(&with_key(column, None).unwrap()), whole);
    }
    let pipeline = with_key("a || '/' || cast(10 / n as string)", Some("n < 5")).unwrap();
    assert_eq!(schema_of(&pipeline), format!("{whole}, _tidemill_key: string"));
    let rows = batch(
        &schema("a: string, n: int64, Odd name: int64"),
        &[
            vec![json!("x"), json!(2), json!(1)],
            vec![json!("y"), json!(7), json!(1)],
            vec![json!("z"), json!(0), json!(1)],
        ],
    );
    let applied = pipeline.apply(&CONTEXT, vec![("in".into(), chunks(&rows, 3, 0))]).unwrap();
    assert_eq!(json!(values(&applied.sinks[0].1)), json!([["x", 2, 1, "x/5"]]));
    assert_eq!(applied.rejects.len(), 1);
    assert_eq!((applied.rejects[0].step.as_str(), applied.rejects[0].origin), ("sinks.out", 2));
    let message = messages(with_key("b || 'x'", None)).join("\n");
    assert!(message.contains("no column `b`"), "{message}");
}

#[test]
fn only_columns_that_are_used_are_needed() {
    let needed = |columns: &str, steps: &str| plan(columns, steps).unwrap().needed()[0].1.join(" ");
    let columns = "a: string, b: string, c: int64, d: int64";
    assert_eq!(needed(columns, ""), "a b c d");
    assert_eq!(needed(columns, "- select: [c, a]"), "a c");
    assert_eq!(needed(columns, "- drop: [a, b]"), "c d");
    assert_eq!(needed(columns, "- filter: c > 1\n- select: [a]"), "a c");
    assert_eq!(needed(columns, "- add: { e: a }\n- select: [e]"), "a");
    // A column that is replaced keeps its place, so it is needed.
    assert_eq!(needed(columns, "- add: { b: a }\n- select: [b]"), "a b");
    assert_eq!(needed(columns, "- rename: { a: x, b: y }\n- select: [y]"), "b");
    assert_eq!(needed(columns, "- sql: SELECT b.a FROM batch b WHERE d > 0"), "a d");
    assert_eq!(needed(columns, "- sql: SELECT count(*) AS n FROM batch"), "");
    assert_eq!(needed(columns, "- sql: SELECT * EXCLUDE (a) FROM batch"), "a b c d");
    assert_eq!(needed(columns, "- uppercase: [a]\n  when: c = 1\n- select: [b]"), "a b c");
    assert_eq!(needed(columns, "- add: { b: a }\n  when: c = 1\n- select: [b]"), "a b c");

    // What is not needed may be there or not, and other types of it do not matter.
    let pipeline = plan(columns, "- sql: SELECT count(*) AS n, max(now()) AS t FROM batch").unwrap();
    let rows = batch(&schema("a: int32"), &[vec![json!(1)], vec![json!(2)]]);
    let applied = pipeline.apply(&CONTEXT, vec![("in".into(), chunks(&rows, 1, 0))]).unwrap();
    assert_eq!(json!(values(&applied.sinks[0].1)), json!([[2, "2015-05-17T10:05:03.250Z"]]));
    let schemas: Vec<String> =
        plan(columns, "- drop: [a]\n- add: { e: c }").unwrap().schemas().iter().map(|(_, s)| columns_of(s)).collect();
    assert_eq!(schemas, ["b: string, c: int64, d: int64", "b: string, c: int64, d: int64, e: int64"]);
}

#[test]
fn rows_that_do_not_fit_the_plan_are_an_error() {
    let pipeline = plan("a: int64", "- filter: a > 1").unwrap();
    for (columns, row, says) in
        [("a: string", json!("x"), "is string, not int64"), ("b: int64", json!(1), "lacks the column `a`")]
    {
        let rows = batch(&schema(columns), &[vec![row]]);
        let error = pipeline.apply(&CONTEXT, vec![("in".into(), chunks(&rows, 1, 0))]).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(pipeline.apply(&CONTEXT, vec![("other".into(), Vec::new())]).is_err());
    let empty = pipeline.apply(&CONTEXT, Vec::new()).unwrap();
    assert!(empty.sinks[0].1.is_empty());
}

#[test]
fn wrong_jobs() {
    let wrong = |steps: &str| messages(plan("agent: string, n: int64", steps)).join("\n");
    for (steps, says) in [
        ("- sql: SELECT agnet FROM batch", "no column `agnet`; did you mean `agent`?"),
        ("- sql: SELECT agent FROM btach", "no input `btach`; did you mean `batch`?"),
        ("- sql: SELECT agent FROM batch WHERE n", "step 1-sql"),
        ("- sql: DELETE FROM batch", "can only read"),
        ("- sql: CREATE TABLE x AS SELECT 1", "can only read"),
        ("- sql: COPY batch TO 'x.csv'", "can only read"),
        ("- sql: EXPLAIN SELECT 1", "can only read"),
        ("- sql: SELECT 1; SELECT 2", "several statements"),
        ("- sql: ''", "there is no query"),
        ("- sql: SELECT agent, n AS agent FROM batch", "agent"),
        ("- sql: SELECT count(*), random() AS r FROM batch GROUP BY 2", "`random()` belongs to a row"),
        ("- sql: SELECT count(*) FROM batch\n  on_error: set_null", "cannot set one of them null"),
        ("- sql: SELECT n FROM batch\n  when: n > 1", "`when` is for steps that change rows"),
        ("- sql: SELECT * FROM 'x.csv'", "no input"),
        ("- sql: SELECT * FROM read_csv('x')", "step 1-sql"),
        ("- filter: n > 1\n  from: [2-filter]\n- filter: n > 1", "step `2-filter` comes later"),
        ("- filter: n > 1\n  from: [inn]", "no source or step `inn`; did you mean `in`?"),
        ("- filter: n > 1\n- filter: n > 1\n  from: [in]", "rows of step `1-filter` go nowhere"),
        ("- filter: n > 1\n  name: in", "named `in`"),
        ("- add: { x: n AS y }", "`AS y` has no place"),
        ("- add: { x: sum(n) OVER () }", "use a `sql` step"),
    ] {
        let message = wrong(steps);
        assert!(message.to_lowercase().contains(&says.to_lowercase()), "{steps}\n{message}");
    }
    let sinks = |from, filter| {
        let job = job(&["in"], "- filter: n > 1", &[("out", None, None), ("more", from, filter)]);
        messages(Pipeline::plan(&job, &[("in".into(), schema("n: int64"))])).join("\n")
    };
    assert!(
        sinks(Some("1-fliter"), None).contains("sink more: no source or step `1-fliter`; did you mean `1-filter`?")
    );
    assert!(sinks(None, Some("m > 1")).contains("step sinks.more: `m > 1`: no column `m`"));
    assert!(sinks(None, Some("n")).contains("a condition gives boolean"));
    let mut job = job(&["in"], "", &[("out", None, None)]);
    job.dead_letters = job.sinks.first().cloned();
    job.dead_letters.as_mut().unwrap().from = Some(crate::common::located("in".into(), "dead_letters.from"));
    assert!(
        messages(Pipeline::plan(&job, &[("in".into(), schema("n: int64"))]))
            .join("")
            .contains("dead letters take what is rejected")
    );
}

#[test]
fn errors_say_where_they_are() {
    let errors = plan("a: string", "- trim: [a, b]\n- add: { x: c }").unwrap_err();
    let paths: Vec<&str> = errors.iter().filter_map(|error| error.at.as_ref()).map(|at| at.path.as_str()).collect();
    assert_eq!(paths, ["steps[0].trim", "steps[1].add.x"]);
}

#[test]
fn dice_are_of_the_row_and_of_the_call() {
    let pipeline = plan(
        "n: int64",
        "- add: { a: random(), b: random(), u: uuid(), v: uuid() }\n- sql: SELECT *, random() AS c FROM batch",
    )
    .unwrap();
    let rows = batch(&schema("n: int64"), &(0..5000).map(|n| vec![json!(n)]).collect::<Vec<_>>());
    let applied = pipeline.apply(&CONTEXT, vec![("in".into(), chunks(&rows, 5000, 0))]).unwrap();
    let rows = values(&applied.sinks[0].1);
    let distinct = |columns: &[usize]| {
        let all = rows.iter().flat_map(|row| columns.iter().map(|column| row[*column].to_string()));
        all.collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!((distinct(&[1, 2, 5]), distinct(&[3, 4])), (15_000, 10_000));
    let mean = rows.iter().map(|row| row[1].as_f64().unwrap()).sum::<f64>() / 5000.0;
    assert!(
        (0.48..0.52).contains(&mean) && rows.iter().all(|row| (0.0..1.0).contains(&row[1].as_f64().unwrap())),
        "{mean}"
    );
    let id = rows[0][3].as_str().unwrap();
    assert_eq!((id.len(), &id[14..15]), (36, "4"));
    assert!("89ab".contains(&id[19..20]), "{id}");
}
