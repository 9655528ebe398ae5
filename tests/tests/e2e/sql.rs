//! From tables of real databases through the real binary, which is killed again and again while rows are added: what
//! arrives is counted. `KILLS=n` sets how many kills there are (default 20).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tidemill_tests::{Folder, Rows, Run, daemon::tidemill, eventually, services};

/// Rows that are added at once, in one transaction.
const ADDED: usize = 20;

fn kills() -> usize {
    std::env::var("KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

fn job(url: &str, order: &str, sink: &str) -> String {
    format!(
        "job: out\ntrigger: asap\nbatch: {{ max_records: 7 }}\nsources:\n  in:\n    type: sql\n    url: \"{url}\"\n    table: hits\n    order_by: {order}\n    poll: 20ms\n    \
         schema: {{ id: int64, at: timestamp, total: \"decimal(12,2)\", text: string }}\nsinks:\n{sink}"
    )
}

fn expected(count: usize) -> Rows {
    let row = |n: usize| format!("{{\"id\": {n}, \"total\": {n}.25, \"text\": \"it's {n} ✓\"}}");
    Rows::json(&(0..count).map(row).collect::<Vec<_>>().join("\n"))
}

fn inserts(first: usize) -> String {
    let row = |n: usize| format!("({n}, '2015-05-17 10:{:02}:{:02}', {n}.25, 'it''s {n} ✓')", n / 60 % 60, n % 60 / 5);
    let rows: Vec<_> = (first..first + ADDED).map(row).collect();
    format!("INSERT INTO hits VALUES {};", rows.join(", "))
}

/// Kills the daemon at random instants while `add` is called with the number of the next row, then lets it come to an end.
/// How many rows there are in the end.
fn through_kills(folder: &Folder, yaml: &str, add: impl Fn(usize) + Send + 'static) -> usize {
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("SEED={seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    let enough = Arc::new(AtomicBool::new(false));
    let stop = enough.clone();
    let adding = thread::spawn(move || {
        let mut next = 0;
        while !stop.load(Ordering::Acquire) || next == 0 {
            add(next);
            next += ADDED;
            thread::sleep(Duration::from_millis(30));
        }
        next
    });
    for _ in 0..kills() {
        let mut daemon = Run::new(folder).job(yaml).start();
        thread::sleep(Duration::from_millis(chance.random_range(20..500)));
        assert!(daemon.is_running(), "ended by itself:\n{}", daemon.stderr());
        daemon.kill9();
    }
    enough.store(true, Ordering::Release);
    let count = adding.join().unwrap();
    Run::new(folder).job(yaml).once().expect_success();
    count
}

const TABLE: &str = "CREATE TABLE hits (id BIGINT PRIMARY KEY, at TIMESTAMP NULL, total DECIMAL(12,2), text TEXT);
    CREATE INDEX in_order ON hits (at, id);";

#[test]
fn postgres_to_files_through_kills_each_row_once() {
    let Some(server) = services::postgres() else { return };
    let url = server.schema(&format!("sql_files_{}", std::process::id()));
    server.psql_at(&url, TABLE);
    let folder = Folder::new();
    let yaml = job(&url, "[at, id]", "  out: { type: files, path: out, codec: json }\n");
    let at = url.clone();
    let count = through_kills(&folder, &yaml, move |next| {
        server.psql_at(&at, &inserts(next));
    });
    let rows = Rows::files(&folder.join("out"));
    assert_eq!(rows.select(&["at"]).len(), count);
    let sums: usize = rows.column("id").iter().map(|id| id.parse::<usize>().unwrap()).sum();
    assert_eq!(sums, count * (count - 1) / 2);
    rows.select(&["id", "total", "text"]).assert_same(&expected(count), "the files");
    // A sink that is new reads the table from its beginning.
    let yaml = format!("{yaml}  again: {{ type: sqlite, path: again.db, table: hits }}\n");
    Run::new(&folder).job(&yaml).once().expect_success();
    let server = services::postgres().unwrap();
    server.psql_at(&url, &inserts(count));
    Run::new(&folder).job(&yaml).once().expect_success();
    assert_eq!(Rows::files(&folder.join("out")).len(), count + ADDED);
    assert_eq!(Rows::sqlite(&folder.join("again.db"), "SELECT id FROM hits").len(), ADDED, "it joined at the head");
    server.psql(&format!("DROP SCHEMA sql_files_{} CASCADE", std::process::id()));
}

#[test]
fn mysql_to_sqlite_through_kills_each_row_once() {
    let Some(server) = services::mariadb() else { return };
    let name = format!("sql_sqlite_{}", std::process::id());
    let url = server.database(&name);
    server.sql(&format!("USE {name}; {TABLE}"));
    let folder = Folder::new();
    let yaml = job(&url, "[at, id]", "  db: { type: sqlite, path: rows.db, table: hits }\n");
    let database = name.clone();
    let count = through_kills(&folder, &yaml, move |next| {
        server.sql(&format!("USE {database}; SET NAMES utf8mb4; SET time_zone = '+00:00'; {}", inserts(next)));
    });
    let sql = "SELECT count(*) AS rows, count(DISTINCT id) AS ids, sum(id) AS sum, min(at) AS first, sum(total = id || '.25') AS totals FROM hits";
    let wanted = format!(
        "{{\"rows\": {count}, \"ids\": {count}, \"sum\": {}, \"first\": \"2015-05-17T10:00:00Z\", \"totals\": {count}}}",
        count * (count - 1) / 2
    );
    Rows::sqlite(&folder.join("rows.db"), sql).assert_same(&Rows::json(&wanted), "the table");
    services::mariadb().unwrap().sql(&format!("DROP DATABASE {name}"));
}

#[test]
fn new_rows_of_a_sqlite_file_arrive_while_the_daemon_runs_and_validate_looks_at_it() {
    let folder = Folder::new();
    let database = rusqlite::Connection::open(folder.join("shop.db")).unwrap();
    let yaml = job("sqlite:shop.db", "id", "  out: { type: files, path: out, codec: json }\n");
    folder.write("a.yaml", &yaml);
    let check = || tidemill(&folder, &["validate", "--connect", "a.yaml"]);
    let said = String::from_utf8_lossy(&check().stderr).into_owned();
    assert!(!check().status.success() && said.contains("no such table: hits"), "{said}");
    database.execute_batch(TABLE).unwrap();
    assert!(check().status.success());
    let daemon = Run::new(&folder).job(&yaml).spawn();
    for (first, count) in [(0, ADDED), (ADDED, 2 * ADDED)] {
        database.execute_batch(&inserts(first)).unwrap();
        eventually("the rows", || {
            let found = Rows::files(&folder.join("out")).len();
            if found == count { Ok(()) } else { Err(format!("{found} rows")) }
        });
    }
    daemon.term();
    let explained = tidemill(&folder, &["explain", "a.yaml"]);
    let text = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(text.contains("rows of table hits") && text.contains("latest value"), "{text}");
}
