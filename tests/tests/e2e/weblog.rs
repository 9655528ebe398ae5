//! The 10,000 lines of a real web log through directory -> steps -> files and SQLite, against rows that Python computes
//! from the same lines.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rusqlite::Connection;
use tidemill_tests::{
    Folder, Rows, Run,
    needs::{data, python_script, python_with},
    root,
};

/// What job W writes, and what a table that is made from its rows holds: a database has no booleans.
const COLUMNS: [&str; 14] = [
    "ip",
    "ident",
    "user",
    "time",
    "request",
    "response",
    "bytes",
    "referrer",
    "agent",
    "status_class",
    "is_bot",
    "method",
    "path",
    "protocol",
];

/// The job of the bench with a database beside its files, and small batches.
fn job(records: usize) -> String {
    let text = std::fs::read_to_string(root().join("tests/bench/w.yaml")).unwrap();
    text.replace("trigger: asap", &format!("trigger: asap\nbatch: {{ max_records: {records} }}"))
        + "  db: { type: sqlite, path: hits.db, table: hits }\n"
}

fn run(folder: &Folder, records: usize) -> Run {
    let run = Run::new(folder).job(&job(records)).limit(Duration::from_secs(240));
    run.env("W_INPUT", folder.join("in")).env("W_OUTPUT", folder.join("out"))
}

/// Python's rows for the lines, and how many lines there are.
fn expected(python: &Path, folder: &Folder, lines: &Path) -> Rows {
    let out = folder.join("expected.json");
    python_script(python, "tests/weblog.py", &[Path::new("expect"), lines, &out]);
    Rows::file(&out)
}

fn check(folder: &Folder, expected: &Rows) {
    Rows::files(&folder.join("out")).select(&COLUMNS).assert_same(&expected.select(&COLUMNS), "the files");
    let mut stored = expected.select(&COLUMNS);
    for row in &mut stored.0 {
        row["is_bot"] = i64::from(row["is_bot"] == true).into();
    }
    let found = Rows::sqlite(&folder.join("hits.db"), "SELECT * FROM hits");
    found.select(&COLUMNS).assert_same(&stored, "the table");
}

#[test]
fn ten_thousand_lines_give_the_rows_that_python_computes() {
    let (Some(log), Some(python)) = (data("weblog-apache/apache_logs"), python_with("json")) else { return };
    let folder = Folder::new();
    let lines = folder.write("in/access.json", "");
    python_script(&python, "tests/weblog.py", &[Path::new("parse"), &log, &lines]);
    let expected = expected(&python, &folder, &lines);
    assert_eq!(expected.len(), 9997, "10,000 lines, 3 of them with status 500");
    run(&folder, 1500).once().expect_success();
    check(&folder, &expected);
}

#[test]
fn made_up_lines_with_every_oddity_give_the_rows_that_python_computes() {
    let Some(python) = python_with("json") else { return };
    let folder = Folder::new();
    let lines = folder.write("in/access.json", "");
    python_script(&python, "tests/weblog.py", &[Path::new("generate"), &lines, Path::new("3000")]);
    let expected = expected(&python, &folder, &lines);
    assert!(expected.len() < 2900 && expected.len() > 2500, "{}", expected.len());
    run(&folder, 700).once().expect_success();
    check(&folder, &expected);
}

/// The rows of job W in SQL, over a table `raw` of the same JSON lines: SQLite's own JSON, dates by hand.
const SQL: &str = "
    WITH fields AS (
        SELECT json_extract(line, '$.ip') AS ip, json_extract(line, '$.ident') AS ident, json_extract(line, '$.user') AS user,
               json_extract(line, '$.time') AS at, json_extract(line, '$.request') AS request,
               CAST(nullif(json_extract(line, '$.response'), '-') AS INTEGER) AS response,
               CAST(nullif(json_extract(line, '$.bytes'), '-') AS INTEGER) AS bytes,
               json_extract(line, '$.referrer') AS referrer, lower(trim(json_extract(line, '$.agent'))) AS agent
        FROM raw),
    cut AS (
        SELECT *, instr(request || ' ', ' ') AS one, nullif(substr(request, instr(request || ' ', ' ') + 1), '') AS rest
        FROM fields WHERE response < 500)
    SELECT ip, ident, user,
           printf('%s-%02d-%sT%sZ', substr(at, 8, 4), (instr('JanFebMarAprMayJunJulAugSepOctNovDec', substr(at, 4, 3)) + 2) / 3,
                  substr(at, 1, 2), substr(at, 13, 8)) AS time,
           request, response, bytes, referrer, agent, (response / 100) || 'xx' AS status_class,
           agent LIKE '%bot%' OR agent LIKE '%crawl%' OR agent LIKE '%spider%' AS is_bot,
           substr(request, 1, one - 1) AS method, substr(rest, 1, instr(rest || ' ', ' ') - 1) AS path,
           nullif(substr(rest, instr(rest || ' ', ' ') + 1), '') AS protocol
    FROM cut";

/// What SQL makes of the lines.
fn by_sql(folder: &Folder, lines: &str) -> Rows {
    let file = folder.join("sql.db");
    let mut database = Connection::open(&file).unwrap();
    database.execute_batch("CREATE TABLE raw (line TEXT)").unwrap();
    let work = database.transaction().unwrap();
    for line in lines.lines() {
        work.execute("INSERT INTO raw VALUES (?1)", [line]).unwrap();
    }
    work.commit().unwrap();
    Rows::sqlite(&file, SQL)
}

fn rows_stored(folder: &Folder) -> usize {
    let found = Rows::try_sqlite(&folder.join("hits.db"), "SELECT count(*) AS n FROM hits");
    found.map_or(0, |rows| rows.column("n")[0].parse().unwrap())
}

/// `kill -9` a hundred times while the 10,000 lines are worked off, the whole data dir deleted three times in between: the
/// rows are those of SQL over the same lines.
#[test]
fn a_hundred_kills_and_a_deleted_data_dir_give_the_rows_that_sql_gives() {
    const KILLS: usize = 100;
    let (Some(log), Some(python)) = (data("weblog-apache/apache_logs"), python_with("json")) else { return };
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("SEED={seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    let folder = Folder::new();
    let all = folder.join("all.json");
    python_script(&python, "tests/weblog.py", &[Path::new("parse"), &log, &all]);
    let text = std::fs::read_to_string(&all).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let expected = by_sql(&folder, &text);
    assert_eq!((lines.len(), expected.len()), (10_000, 9997));

    let first = run(&folder, 20);
    let mut run = first.clone();
    let (mut advanced, mut slept) = (0, Duration::ZERO);
    for kill in 0..KILLS {
        // A part of the lines for each life, so that every kill can meet work.
        folder.publish(format!("in/{kill:03}.json"), lines[kill * 100..(kill + 1) * 100].join("\n") + "\n");
        if kill % 30 == 29 {
            std::fs::remove_dir_all(folder.join("data")).unwrap();
            run = first.clone().take_over();
        }
        let before = rows_stored(&folder);
        let mut daemon = run.start();
        // Every other kill comes soon after the first batch, wherever the daemon is then; the others at any instant.
        let begun = Instant::now();
        while kill % 2 == 0 && rows_stored(&folder) == before && begun.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(2));
        }
        let pause = Duration::from_millis(chance.random_range(if kill % 2 == 0 { 0..40 } else { 5..250 }));
        thread::sleep(pause);
        assert!(daemon.is_running(), "ended by itself:\n{}", daemon.stderr());
        daemon.kill9();
        slept += begun.elapsed();
        advanced += usize::from(rows_stored(&folder) > before);
    }
    println!(
        "{KILLS} kills within {slept:?} of life, {advanced} of them after batches of that life, 3 data dirs deleted"
    );
    assert!(advanced >= KILLS * 2 / 5, "{advanced} lives got on: the kills met no work");
    run.once().expect_success();
    check_sql(&folder, &expected);
}

fn check_sql(folder: &Folder, expected: &Rows) {
    let found = Rows::sqlite(&folder.join("hits.db"), "SELECT * FROM hits").select(&COLUMNS);
    found.assert_same(&expected.select(&COLUMNS), "the table");
    let mut files = Rows::files(&folder.join("out")).select(&COLUMNS);
    for row in &mut files.0 {
        row["is_bot"] = i64::from(row["is_bot"] == true).into();
    }
    files.assert_same(&expected.select(&COLUMNS), "the files");
}
