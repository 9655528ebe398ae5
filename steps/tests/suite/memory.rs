//! What a batch takes of memory: it is measured, nothing that outgrows its account comes into being, and what fits is the same
//! under every limit.

use std::sync::Arc;

use serde_json::{Value, json};
use tidemill_config::Verb;
use tidemill_steps::{
    Applied, MAX_VALUE_BYTES, Pipeline, StepError,
    account::Account,
    lookup::{Snapshot, Table, Tables},
};

use crate::common::{CONTEXT, batch, chunks, job, run, schema, values};

const MIB: u64 = 1 << 20;

/// Steps over rows, within so many bytes; a table for every lookup.
fn within(
    columns: &str,
    steps: &str,
    rows: &[Vec<Value>],
    table: &[Vec<Value>],
    limit: u64,
) -> Result<Applied, StepError> {
    let (job, columns) = (job(&["in"], steps, &[("out", None, None)]), schema(columns));
    let (mut schemas, mut tables) = (tidemill_steps::Schemas::new(), Tables::new());
    for step in &job.steps {
        if let Verb::Lookup(lookup) = &step.verb {
            let table = batch(&schema("k: int64, text: string"), table);
            schemas.insert(step.name.clone(), table.schema());
            tables.insert(step.name.clone(), Table::Whole(Arc::new(Snapshot::new(table, lookup).unwrap())));
        }
    }
    let pipeline = Pipeline::plan_with(&job, &[("in".into(), columns.clone())], &schemas).unwrap();
    let account = Account::new(limit);
    let inputs = vec![("in".into(), chunks(&batch(&columns, rows), 20_000, 0))];
    let applied = pipeline.apply_within(&CONTEXT, inputs, &tables, &account)?;
    let held: usize = applied.sinks.iter().flat_map(|(_, rows)| rows).map(|rows| rows.num_rows() * 4).sum();
    assert!(account.used() as usize >= held && account.used() <= limit, "{account:?}");
    Ok(applied)
}

/// It fits into a large account, and is no less there; in a small one this step is named.
fn outgrows(columns: &str, steps: &str, rows: &[Vec<Value>], table: &[Vec<Value>], limits: [u64; 2], step: &str) {
    let [small, large] = limits;
    let whole = within(columns, steps, rows, table, u64::MAX).unwrap();
    let bounded = within(columns, steps, rows, table, large).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(values(&bounded.sinks[0].1), values(&whole.sinks[0].1));
    match within(columns, steps, rows, table, small) {
        Err(StepError::Outgrown { step: found, outgrown }) => {
            // Slices are at several steps at a time.
            assert!(step.is_empty() || found == step, "{found}");
            assert!(outgrown.limit == small && outgrown.needed > small, "{outgrown}");
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it fits into {small}"),
    }
}

fn numbers(count: i64) -> Vec<Vec<Value>> {
    (0..count).map(|n| vec![json!(n)]).collect()
}

#[test]
fn rows_that_come_in_are_counted_once() {
    outgrows("n: int64", "[]", &numbers(50_000), &[], [MIB / 4, MIB], "decode");
}

#[test]
fn a_text_that_a_step_adds() {
    let steps = "[{ add: { t: \"repeat('x', 1000)\" } }, { add: { u: \"t || t\" } }, { filter: 'length(u) > 0' }, { select: [n] }]";
    outgrows("n: int64", steps, &numbers(10_000), &[], [20 * MIB, 48 * MIB], "");
}

#[test]
fn a_text_that_a_lookup_adds() {
    let steps = "[{ lookup: { table: t, match: { n: k }, take: [text] } }]";
    let table = [vec![json!(1), json!("x".repeat(1000))]];
    let rows = vec![vec![json!(1)]; 20_000];
    outgrows("n: int64", steps, &rows, &table, [8 * MIB, 32 * MIB], "1-lookup");
}

#[test]
fn a_big_column_beside_one_that_is_split() {
    let steps = "[{ split: { column: t, by: ',' } }, { filter: 'length(b) > 0' }, { select: [t] }]";
    let rows = vec![vec![json!("b".repeat(10_000)), json!(vec!["t"; 1_000].join(","))]; 2];
    outgrows("b: string, t: string", steps, &rows, &[], [5 * MIB, 64 * MIB], "1-split");
}

#[test]
fn joins_sorts_and_groups() {
    for (query, limits) in [
        ("SELECT a.n, b.n AS m FROM batch a CROSS JOIN batch b", [MIB, 32 * MIB]),
        ("SELECT a.n, b.n AS m FROM batch a JOIN batch b ON a.n % 7 = b.n % 7", [MIB / 16, 16 * MIB]),
        ("SELECT n, unnest(generate_series(1, 200)) AS m FROM batch", [MIB / 2, 32 * MIB]),
        ("SELECT n, repeat('x', 1000) AS t FROM batch ORDER BY n DESC", [MIB / 8, 16 * MIB]),
        ("SELECT repeat('k', 100) || n AS k, count(*) AS c FROM batch GROUP BY 1", [MIB / 64, 16 * MIB]),
    ] {
        let steps = format!("[{{ sql: \"{query}\" }}]");
        outgrows("n: int64", &steps, &numbers(300), &[], limits, "1-sql");
    }
}

#[test]
fn a_row_whose_list_repeats_its_big_column_in_a_query() {
    let steps = "[{ sql: \"SELECT unnest(string_to_array(t, ',')) AS p, b FROM batch\" }, { select: [p] }]";
    let rows = vec![vec![json!("b".repeat(10_000)), json!(vec!["t"; 1_000].join(","))]];
    outgrows("b: string, t: string", steps, &rows, &[], [5 * MIB, 64 * MIB], "1-sql");
}

#[test]
fn a_large_row_is_not_repeated_by_a_whole_batch_of_a_join_at_once() {
    let steps = "[{ sql: \"SELECT length(a.b) AS l, b.n FROM batch a CROSS JOIN batch b WHERE length(a.b) > 9\" }]";
    let big = [vec![json!(0), json!("b".repeat(100_000))]];
    let rows: Vec<Vec<Value>> = (1..5_000).map(|n| vec![json!(n), json!("")]).chain(big).collect();
    let applied = within("n: int64, b: string", steps, &rows, &[], 24 * MIB).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(values(&applied.sinks[0].1).len(), 5_000);
}

#[test]
fn very_many_rejects() {
    let rows = vec![vec![json!("x")]; 40_000];
    outgrows("s: string", "[{ cast: { s: int64 } }]", &rows, &[], [2 * MIB, 32 * MIB], "1-cast");
}

/// A value that is too long fails its row, and the rows beside it are as they are without it.
#[test]
fn a_value_that_is_too_long_is_its_rows_own_fault() {
    let most = MAX_VALUE_BYTES as i64;
    for (expression, fits, fails) in [
        ("octet_length(repeat('x', n))", most, most + 1),
        ("octet_length(repeat(s, n))", most / 2, most / 2 + 1),
        ("length(lpad(s, n))", 1_000, most + 1),
        ("length(rpad('', n, s))", 1_000, most + 1),
        ("length(replace(s, 'a', repeat('y', n)))", 1_000, most),
        ("length(regexp_replace(s, 'a', repeat('y', n)))", 1_000, most),
        ("cardinality(generate_series(1, n))", 1_000, most / 8 + 1),
        ("cardinality(range(0, n * 10, 10))", 1_000, most / 8 + 1),
        ("cardinality(array_repeat(7, n))", 1_000, most / 8 + 1),
        ("cardinality(array_resize([1], n))", 1_000, most / 8 + 1),
        ("length(array_to_string(['a', 'b'], repeat('-', n)))", 1_000, most),
        ("length(repeat(s, n))", 3, 9_000_000_000_000_000_000),
    ] {
        let steps = format!("[{{ add: {{ v: \"{expression}\" }} }}, {{ select: [n] }}]");
        let rows = [fits, fails, 1].map(|n| vec![json!(n), json!("ab")]);
        let (_, applied) = run("n: int64, s: string", &steps, &rows);
        assert_eq!(
            values(&applied.sinks[0].1),
            [vec![json!(fits)], vec![json!(1)]],
            "{expression}: {:?}",
            applied.rejects
        );
        assert_eq!(applied.rejects.len(), 1, "{expression}");
        let reject = &applied.rejects[0];
        assert_eq!((reject.origin, reject.reason), (1, "expression"), "{expression}");
        assert!(reject.detail.contains("at most 16777216 are allowed"), "{}", reject.detail);
    }
}

/// Where the simple bound is far above what there is, it is counted.
#[test]
fn a_text_in_which_little_is_replaced_may_be_long() {
    let text = "x".repeat(1_000_000);
    for expression in ["replace(s, 'ab', repeat('y', 1000))", "regexp_replace(s, 'a(b)', repeat('y', 1000), 'g')"] {
        let steps = format!("[{{ add: {{ v: \"length({expression})\" }} }}, {{ select: [v] }}]");
        let (_, applied) = run("s: string", &steps, &[vec![json!(format!("{text}ab{text}ab"))]]);
        assert_eq!(values(&applied.sinks[0].1), [vec![json!(2_002_000)]], "{:?}", applied.rejects);
    }
}

#[test]
fn dates_and_times_are_counted_too() {
    let run = |from: &str, to: &str, step: &str| {
        let steps = format!(
            "[{{ add: {{ v: \"cardinality(generate_series(CAST('{from}' AS TIMESTAMP), CAST('{to}' AS TIMESTAMP), INTERVAL '{step}'))\" }} }}]"
        );
        run("n: int64", &steps, &numbers(1)).1
    };
    assert_eq!(run("2020-01-01", "2020-01-02", "1 hour").rejects, []);
    let rejects = run("2000-01-01", "2100-01-01", "1 second").rejects;
    assert!(rejects.len() == 1 && rejects[0].detail.contains("generate_series"), "{rejects:?}");
}

/// A constant that nobody could hold is no reason to hold it while the job is planned.
#[test]
fn constants_are_not_made_while_a_job_is_planned() {
    let (_, applied) = run("n: int64", "[{ add: { v: \"length(lpad('x', 2000000000))\" } }]", &numbers(3));
    assert_eq!((applied.rejects.len(), values(&applied.sinks[0].1).len()), (3, 0));
    let query = "[{ sql: 'SELECT n, unnest(generate_series(1, 300000000)) AS m FROM batch' }]";
    let (_, applied) = run("n: int64", query, &numbers(3));
    assert_eq!((applied.rejects.len(), values(&applied.sinks[0].1).len()), (3, 0), "{:?}", applied.rejects);
}
