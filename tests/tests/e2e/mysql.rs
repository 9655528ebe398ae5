//! From a directory to a real MySQL 8 or MariaDB: the real binary is killed at every step and at random instants, and another
//! client counts. `KILLS=n` sets how many kills there are (default 20).

use std::{thread, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tidemill_tests::{
    Folder, Rows, Run,
    daemon::tidemill,
    services::{self, Mysql},
};

const RECORDS: usize = 400;

/// Of the batch loop, then of the sink.
const PHASES: [&str; 11] = [
    "plan",
    "compute",
    "before-anchor",
    "after-anchor",
    "after-close",
    "mysql.claim-after-commit",
    "mysql.before-begin",
    "mysql.after-mark",
    "mysql.after-rows",
    "mysql.before-commit",
    "mysql.after-commit",
];

fn kills() -> usize {
    std::env::var("KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

/// A job's life in a database of its own.
struct Life {
    folder: Folder,
    server: Mysql,
    database: String,
    yaml: String,
}

impl Life {
    fn new(server: Option<Mysql>, name: &str) -> Option<Self> {
        let server = server?;
        let folder = Folder::new();
        for part in 0..4 {
            let record = |n: usize| format!("{{\"n\": {n}, \"part\": {part}, \"text\": \"line {n} \\u2713\"}}");
            let lines: Vec<_> = (0..RECORDS).filter(|n| n * 4 / RECORDS == part).map(record).collect();
            folder.publish(format!("in/{part}.json"), lines.join("\n") + "\n");
        }
        let database = format!("crash_{name}_{}", std::process::id());
        let url = server.database(&database);
        // Every fiftieth row is refused by the table. The first versions of MySQL 8 read over a CHECK.
        server.sql(&format!(
            "USE {database}; CREATE TABLE hits (n BIGINT, part BIGINT, text TEXT) ENGINE=InnoDB;
            DELIMITER //
            CREATE TRIGGER fiftieth BEFORE INSERT ON hits FOR EACH ROW IF NEW.n % 50 = 49 THEN SIGNAL SQLSTATE '45000'; END IF//
            DELIMITER ;"
        ));
        let yaml = format!(
            "job: crash\ntrigger: asap\nbatch: {{ max_records: 10 }}\nsources:\n  in: {{ type: directory, path: in, settle: 10ms, codec: json, schema: {{ n: int64, part: int64, text: string }} }}\n\
             sinks:\n  db: {{ type: mysql, url: \"{url}\", table: hits }}\n  latest: {{ type: mysql, url: \"{url}\", table: latest, mode: upsert, key: part }}\n\
             dead_letters: {{ type: files, path: dead, codec: json }}\n"
        );
        Some(Self { folder, server, database, yaml })
    }

    fn run(&self) -> Run {
        Run::new(&self.folder).job(&self.yaml)
    }

    fn count(&self) {
        let sql = |query: &str| self.server.sql(&query.replace("DB", &self.database)).trim().to_owned();
        let good: Vec<usize> = (0..RECORDS).filter(|n| n % 50 != 49).collect();
        let wanted = format!("{0}\t{0}\t{1}", good.len(), good.iter().sum::<usize>());
        assert_eq!(sql("SELECT count(*), count(DISTINCT n), sum(n) FROM DB.hits"), wanted);
        assert_eq!(sql("SELECT group_concat(n ORDER BY part) FROM DB.latest"), "99,199,299,399");
        assert_eq!(sql("SELECT count(*) FROM DB.tidemill_rejects"), (RECORDS / 50).to_string());
        assert_eq!(Rows::files(&self.folder.join("dead")).len(), RECORDS / 50, "dead letters");
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.server.sql(&format!("DROP DATABASE {}", self.database));
        }
    }
}

#[test]
fn killed_at_every_step_no_row_is_lost_or_doubled() {
    let Some(mut life) = Life::new(services::mysql(), "steps") else { return };
    let mut died = 0;
    for phase in PHASES.iter().cycle() {
        let mut daemon = life.run().failpoint(&format!("{phase}:{}:kill", 1 + died % 3)).arg("--once").start();
        if daemon.wait().success() {
            life.count();
            if died >= kills() {
                break;
            }
            drop(life);
            life = Life::new(services::mysql(), "steps").unwrap();
        } else {
            died += 1;
        }
        if died >= kills().max(PHASES.len()) * 2 {
            life.run().once().expect_success();
            life.count();
            break;
        }
    }
    println!("directory -> mysql: {died} kills, 0 lost, 0 doubled");
}

#[test]
fn killed_at_random_instants_no_row_is_lost_or_doubled() {
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("SEED={seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    let Some(life) = Life::new(services::mariadb(), "random") else { return };
    for _ in 0..kills() {
        let mut daemon = life.run().start();
        thread::sleep(Duration::from_millis(chance.random_range(20..400)));
        assert!(daemon.is_running(), "ended by itself:\n{}", daemon.stderr());
        daemon.kill9();
    }
    life.run().once().expect_success();
    life.count();
}

#[test]
fn validate_with_connect_says_what_is_wrong_and_changes_nothing() {
    let Some(life) = Life::new(services::mysql(), "validate") else { return };
    let check = |yaml: &str| {
        life.folder.write("a.yaml", yaml);
        let done = tidemill(&life.folder, &["validate", "--connect", "a.yaml"]);
        (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    assert_eq!(check(&life.yaml), (true, String::new()));
    for (from, to, words) in [
        ("s3cret", "hunter2", &["sink db", "(1045)", "password in `url`"][..]),
        ("text: string", "text: int64", &["column `text` is text there and int64 in the job"]),
        ("part: int64, text", "part: float64, text", &["column `part`", "float64"]),
    ] {
        let (right, said) = check(&life.yaml.replace(from, to));
        assert!(!right && words.iter().all(|word| said.contains(word)) && !said.contains("hunter2"), "{said}");
    }
    let tables = format!("SELECT count(*) FROM information_schema.tables WHERE table_schema = '{}'", life.database);
    assert_eq!(life.server.sql(&tables).trim(), "1", "something was made");
}
