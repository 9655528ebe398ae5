//! Tidemill's own tables in a user's database: claims and marks, logs, rejects, beats.

use mysql_async::{Params, Value};
use tidemill_checkpoint::{
    Claim, Digest, Entry, Generation, Held, Lane, LaneKey, LogName, Mark, Owner, Permit, Position, SinkId,
};
use uuid::Uuid;

use super::database::{Failure, Session};
use crate::sink::{SinkError, SinkReject, columns::TABLE_LOG, rejects_shard};

/// Names are compared by their bytes, and a table's keys have at most 3,072 of them (four for each character).
const KEY: &str = "job VARCHAR(64) NOT NULL, sink VARCHAR(64) NOT NULL, lane VARCHAR(400) NOT NULL";
/// Rejected rows of one statement, and how long they may be together.
const TOGETHER: usize = 64;
const TOGETHER_BYTES: usize = 256 * 1024;
const KIND: &str = "ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin";
/// In the order in which they are made: where the marks are, all are, also after a process that died in between.
const TABLES: [(&str, &str); 4] = [
    (
        "tidemill_entries",
        "log VARCHAR(200) NOT NULL, number BIGINT UNSIGNED NOT NULL, text MEDIUMTEXT NOT NULL,
        PRIMARY KEY (job, sink, lane, log, number)",
    ),
    (
        "tidemill_rejects",
        "number BIGINT UNSIGNED NOT NULL, seq BIGINT UNSIGNED NOT NULL, input CHAR(64) NOT NULL, `row` BIGINT UNSIGNED NOT NULL,
        reason VARCHAR(64) NOT NULL, detail TEXT NOT NULL, record LONGTEXT NOT NULL,
        PRIMARY KEY (job, sink, lane, number)",
    ),
    (
        "tidemill_beats",
        "generation BIGINT UNSIGNED NOT NULL, beat BIGINT UNSIGNED NOT NULL,
        PRIMARY KEY (job, sink, lane)",
    ),
    (
        "tidemill_marks",
        "generation BIGINT UNSIGNED NOT NULL, owner TEXT NOT NULL, data_dir CHAR(36) NOT NULL, instance CHAR(36) NOT NULL,
        released TINYINT(1) NOT NULL DEFAULT 0, digest CHAR(64), mark LONGTEXT,
        PRIMARY KEY (job, sink, lane)",
    ),
];

fn create(table: &str, columns: &str) -> String {
    format!("CREATE TABLE IF NOT EXISTS {table} ({KEY}, {columns}) {KIND}")
}

/// The rows of one sink of one job.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) job: String,
    pub(super) sink: SinkId,
}

type HeldRow = (u64, String, String, String, bool, Option<String>, Option<u64>);

impl Scope {
    async fn has(session: &mut Session, table: &str) -> Result<bool, Failure> {
        let sql = "SELECT engine FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?";
        let engine: Option<Option<String>> = session.first("looking at the tables of", sql, (table,)).await?;
        match engine.flatten() {
            None => Ok(false),
            Some(engine) if engine.eq_ignore_ascii_case("innodb") => Ok(true),
            Some(engine) => Err(SinkError::Fatal(format!(
                "table `{table}` has the engine {engine}, which has no transactions: ALTER TABLE `{table}` ENGINE=InnoDB"
            ))
            .into()),
        }
    }

    /// Makes what is missing. Making a table ends a transaction: never within one.
    pub(super) async fn make(session: &mut Session) -> Result<(), Failure> {
        for (table, columns) in TABLES {
            if !Self::has(session, table).await? {
                session.run("making Tidemill's own tables in", create(table, columns)).await?;
            }
        }
        Ok(())
    }

    /// Whether this user may do what the sink does with its own tables.
    pub(super) async fn look(session: &mut Session) -> Result<(), Failure> {
        let what = "looking at the rights of the user in";
        for (table, columns) in TABLES {
            if Self::has(session, table).await? {
                session.look(what, &format!("SELECT job FROM {table}")).await?;
                session.look(what, &format!("DELETE FROM {table} WHERE job = ''")).await?;
                session.look(what, &format!("UPDATE {table} SET job = job WHERE job = ''")).await?;
                session.look(what, &format!("INSERT INTO {table} (job) VALUES ('')")).await?;
            } else {
                session.look(what, &create(table, columns)).await?;
            }
        }
        Ok(())
    }

    /// What is held for a lane; nothing where there are no tables.
    pub(super) async fn held(&self, session: &mut Session, lane: &Lane) -> Result<Held, Failure> {
        if !Self::has(session, "tidemill_marks").await? {
            return Ok(Held::default());
        }
        self.read(session, lane, "").await
    }

    /// The same, once no transaction has the mark in hand any more: it stays as it is until this one ends.
    pub(super) async fn held_for_update(&self, session: &mut Session, lane: &Lane) -> Result<Held, Failure> {
        self.read(session, lane, " FOR UPDATE").await
    }

    async fn read(&self, session: &mut Session, lane: &Lane, lock: &str) -> Result<Held, Failure> {
        let what = "reading the mark in";
        let sql = format!(
            "SELECT generation, owner, data_dir, instance, released, mark,
                (SELECT b.beat FROM tidemill_beats b WHERE b.job = m.job AND b.sink = m.sink AND b.lane = m.lane)
            FROM tidemill_marks m WHERE job = ? AND sink = ? AND lane = ?{lock}"
        );
        let row: Option<HeldRow> = session.first(what, &sql, self.keys(lane)).await?;
        let Some((generation, name, data_dir, instance, released, mark, beat)) = row else {
            return Ok(Held::default());
        };
        let owner = Owner { name, data_dir: uuid(&data_dir)?, instance: uuid(&instance)? };
        let mark = mark.map(|text| serde_json::from_str(&text)).transpose().map_err(|error| unreadable(&error))?;
        let claim = Claim { generation: Generation(generation), owner, released };
        Ok(Held { claim: Some(claim), mark, beat: beat.unwrap_or_default() })
    }

    fn keys(&self, lane: &Lane) -> (String, String, String) {
        (self.job.clone(), self.sink.as_str().to_owned(), lane.as_str().to_owned())
    }

    /// The key's values, then these.
    fn with(&self, lane: &Lane, values: impl IntoIterator<Item = Value>) -> Params {
        let (job, sink, lane) = self.keys(lane);
        Params::Positional([job.into(), sink.into(), lane.into()].into_iter().chain(values).collect())
    }

    /// Takes the lane where the stored generation is lower. To be called in a transaction. Another first claim may be
    /// quicker between the look and the row: then the row is a duplicate, and the transaction is to be tried again.
    pub(super) async fn claim(
        &self,
        session: &mut Session,
        lane: &Lane,
        mine: Generation,
        owner: &Owner,
    ) -> Result<Option<Mark>, Failure> {
        let what = "claiming a lane in";
        let held = self.held_for_update(session, lane).await?;
        if held.claim.is_some() && held.generation() >= mine {
            return Err(self.fenced(lane, held.generation(), mine).into());
        }
        let claim = [
            mine.0.into(),
            owner.name.clone().into(),
            owner.data_dir.to_string().into(),
            owner.instance.to_string().into(),
        ];
        let sql = if held.claim.is_some() {
            "UPDATE tidemill_marks SET generation = ?, owner = ?, data_dir = ?, instance = ?, released = 0
                WHERE job = ? AND sink = ? AND lane = ?"
        } else {
            "INSERT INTO tidemill_marks (generation, owner, data_dir, instance, job, sink, lane) VALUES (?, ?, ?, ?, ?, ?, ?)"
        };
        let (job, name, of) = self.keys(lane);
        let values = claim.into_iter().chain([job.into(), name.into(), of.into()]).collect();
        session.exec(what, sql, Params::Positional(values)).await?;
        let sql = "INSERT INTO tidemill_beats (job, sink, lane, generation, beat) VALUES (?, ?, ?, ?, 0)
            ON DUPLICATE KEY UPDATE generation = VALUES(generation), beat = beat + 1";
        session.exec(what, sql, self.with(lane, [mine.0.into()])).await?;
        Ok(held.mark)
    }

    /// The compare-and-swap. `false`: the plan is there already. To be called in the rows' transaction, before them.
    pub(super) async fn swap(&self, session: &mut Session, permit: &Permit) -> Result<bool, Failure> {
        let (key, mark) = (permit.key(), permit.mark());
        let text = serde_json::to_string(mark).map_err(|error| SinkError::Fatal(format!("a mark as JSON: {error}")))?;
        let (job, sink, lane) = self.keys(&key.lane);
        let digest = mark.digest.to_string();
        let values: Vec<Value> = vec![
            digest.clone().into(),
            text.into(),
            job.into(),
            sink.into(),
            lane.into(),
            permit.expected().map(|digest| digest.to_string()).into(),
            key.generation.0.into(),
            key.owner.instance.to_string().into(),
            digest.into(),
        ];
        let sql = "UPDATE tidemill_marks SET digest = ?, mark = ?
            WHERE job = ? AND sink = ? AND lane = ? AND digest <=> ? AND generation = ? AND instance = ? AND NOT digest <=> ?";
        match session.exec("committing a batch to", sql, Params::Positional(values)).await {
            Ok(1) => return Ok(true),
            Ok(_) => {}
            // No such table: nobody holds anything.
            Err(failure) if failure.code() == Some(1146) => {}
            Err(failure) => return Err(failure),
        }
        let held = self.held(session, &key.lane).await?;
        if !held.claim.as_ref().is_some_and(|claim| owns(claim, key)) {
            return Err(self.fenced(&key.lane, held.generation(), key.generation).into());
        }
        let found = held.mark.map(|mark| mark.digest);
        if found == Some(mark.digest) {
            return Ok(false);
        }
        let (sink, lane) = (self.sink.clone(), key.lane.clone());
        Err(SinkError::Conflict { sink, lane, found, expected: permit.expected() }.into())
    }

    /// Appends the permit's entries and drops those that its plan prunes.
    pub(super) async fn append(&self, session: &mut Session, permit: &Permit) -> Result<(), Failure> {
        let what = "appending a log's entries to";
        let lane = &permit.key().lane;
        let sql = "REPLACE INTO tidemill_entries (job, sink, lane, log, number, text) VALUES (?, ?, ?, ?, ?, ?)";
        for entry in permit.entries() {
            let values = [entry.log.as_str().into(), entry.number.into(), entry.text.as_str().into()];
            session.exec(what, sql, self.with(lane, values)).await?;
        }
        let sql = "DELETE FROM tidemill_entries WHERE job = ? AND sink = ? AND lane = ? AND log = ? AND number < ?";
        for (log, range) in permit.mark().plan.logs.iter().filter(|(_, range)| range.first > 0) {
            session.exec(what, sql, self.with(lane, [log.as_str().into(), range.first.into()])).await?;
        }
        Ok(())
    }

    /// Notes that the user's table is there, where marks are kept: under no lane, so that a reset forgets it too.
    pub(super) async fn remember(&self, session: &mut Session, table: &str) -> Result<(), Failure> {
        if !Self::has(session, "tidemill_entries").await? {
            return Ok(());
        }
        let sql =
            "INSERT IGNORE INTO tidemill_entries (job, sink, lane, log, number, text) VALUES (?, ?, '', ?, 0, '')";
        let values = (self.job.clone(), self.sink.as_str().to_owned(), format!("{TABLE_LOG}{table}"));
        session.exec("noting the table in", sql, values).await.map(drop)
    }

    /// Whether it was there before.
    pub(super) async fn remembers(&self, session: &mut Session, table: &str) -> Result<bool, Failure> {
        if !Self::has(session, "tidemill_entries").await? {
            return Ok(false);
        }
        let sql = "SELECT number FROM tidemill_entries WHERE job = ? AND sink = ? AND lane = '' AND log = ?";
        let values = (self.job.clone(), self.sink.as_str().to_owned(), format!("{TABLE_LOG}{table}"));
        let found: Option<u64> = session.first("looking for the table of", sql, values).await?;
        Ok(found.is_some())
    }

    pub(super) async fn history(
        &self,
        session: &mut Session,
        lane: &Lane,
        log: &LogName,
        from: u64,
    ) -> Result<Vec<Entry>, Failure> {
        if !Self::has(session, "tidemill_entries").await? {
            return Ok(Vec::new());
        }
        let sql = "SELECT number, text FROM tidemill_entries
            WHERE job = ? AND sink = ? AND lane = ? AND log = ? AND number >= ? ORDER BY number";
        let values = self.with(lane, [log.as_str().into(), from.into()]);
        let rows: Vec<(u64, String)> = session.rows("reading a log in", sql, values).await?;
        Ok(rows.into_iter().map(|(number, text)| Entry { log: log.clone(), number, text }).collect())
    }

    /// Keeps rejected rows, numbered on from the last one of the lane, and from where the mark says that they were read to:
    /// a table that was emptied or restored must not give a number twice.
    pub(super) async fn reject(
        &self,
        session: &mut Session,
        permit: &Permit,
        rejects: &[SinkReject],
    ) -> Result<(), Failure> {
        if rejects.is_empty() {
            return Ok(());
        }
        let what = "keeping rejected rows in";
        let lane = &permit.key().lane;
        let sql = "SELECT MAX(number) FROM tidemill_rejects WHERE job = ? AND sink = ? AND lane = ?";
        let last: Option<Option<u64>> = session.first(what, sql, self.keys(lane)).await?;
        let shard = rejects_shard(&self.sink);
        let read = permit.mark().positions.get(&shard).and_then(Position::as_number).unwrap_or_default();
        let first = last.flatten().map_or(0, |last| last + 1).max(read);
        let numbered: Vec<(&SinkReject, u64)> = rejects.iter().zip(first..).collect();
        let together = TOGETHER_BYTES.min(session.max_statement / 2);
        let mut rest = numbered.as_slice();
        while !rest.is_empty() {
            // One statement for many, as long as they are short: one may be as long as a statement can be.
            let bytes = |(reject, _): &(&SinkReject, u64)| reject.record.len() + reject.detail.len();
            let many = rest.get(..TOGETHER).filter(|many| many.iter().map(bytes).sum::<usize>() <= together);
            let (these, after) = rest.split_at(many.map_or(1, <[_]>::len));
            let row = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
            let sql = format!(
                "INSERT INTO tidemill_rejects (job, sink, lane, number, seq, input, `row`, reason, detail, record) VALUES {}",
                vec![row; these.len()].join(", ")
            );
            let (job, sink, lane) = self.keys(lane);
            let values = these.iter().flat_map(|(reject, number)| -> [Value; 10] {
                [
                    job.as_str().into(),
                    sink.as_str().into(),
                    lane.as_str().into(),
                    (*number).into(),
                    reject.seq.into(),
                    reject.input.to_string().into(),
                    reject.row.into(),
                    reject.reason.as_str().into(),
                    reject.detail.as_str().into(),
                    reject.record.as_str().into(),
                ]
            });
            session.exec(what, &sql, Params::Positional(values.collect())).await?;
            rest = after;
        }
        Ok(())
    }

    pub(super) async fn rejects(
        &self,
        session: &mut Session,
        lane: &Lane,
        from: u64,
    ) -> Result<Vec<SinkReject>, Failure> {
        if !Self::has(session, "tidemill_rejects").await? {
            return Ok(Vec::new());
        }
        let sql = "SELECT number, seq, input, `row`, reason, detail, record FROM tidemill_rejects
            WHERE job = ? AND sink = ? AND lane = ? AND number >= ? ORDER BY number";
        let rows: Vec<(u64, u64, String, u64, String, String, String)> =
            session.rows("reading rejected rows in", sql, self.with(lane, [from.into()])).await?;
        let reject = |(number, seq, input, row, reason, detail, record): (_, _, String, _, _, _, _)| {
            let input = Digest::parse(&input).ok_or_else(|| unreadable(&"a digest is 64 hex digits"))?;
            Ok(SinkReject { number, seq, input, row, reason, detail, record })
        };
        rows.into_iter().map(reject).collect()
    }

    /// Says that the owner lives. `false`: another one does.
    pub(super) async fn beat(&self, session: &mut Session, key: &LaneKey) -> Result<bool, Failure> {
        let sql =
            "UPDATE tidemill_beats SET beat = beat + 1 WHERE job = ? AND sink = ? AND lane = ? AND generation = ?";
        let values = self.with(&key.lane, [key.generation.0.into()]);
        match session.exec("writing a beat to", sql, values).await {
            Err(failure) if failure.code() == Some(1146) => Ok(false),
            changed => Ok(changed? == 1),
        }
    }

    pub(super) async fn release(&self, session: &mut Session, key: &LaneKey) -> Result<(), Failure> {
        if !Self::has(session, "tidemill_marks").await? {
            return Ok(());
        }
        let sql = "UPDATE tidemill_marks SET released = 1
            WHERE job = ? AND sink = ? AND lane = ? AND generation = ? AND instance = ?";
        let values = self.with(&key.lane, [key.generation.0.into(), key.owner.instance.to_string().into()]);
        session.exec("releasing a lane in", sql, values).await.map(drop)
    }

    pub(super) async fn reset(&self, session: &mut Session) -> Result<(), Failure> {
        for (table, _) in TABLES {
            if Self::has(session, table).await? {
                let sql = format!("DELETE FROM {table} WHERE job = ? AND sink = ?");
                session.exec("forgetting the marks in", &sql, (self.job.as_str(), self.sink.as_str())).await?;
            }
        }
        Ok(())
    }

    pub(super) fn fenced(&self, lane: &Lane, held: Generation, mine: Generation) -> SinkError {
        SinkError::Fenced { sink: self.sink.clone(), lane: lane.clone(), held, mine }
    }
}

/// After a reset generations begin again, so the instance has to be the same too.
pub(super) fn owns(claim: &Claim, key: &LaneKey) -> bool {
    claim.generation == key.generation && claim.owner.instance == key.owner.instance
}

fn unreadable(why: &dyn std::fmt::Display) -> Failure {
    SinkError::Fatal(format!("a row of Tidemill's own tables cannot be read ({why}): was it edited by hand?")).into()
}

fn uuid(text: &str) -> Result<Uuid, Failure> {
    Uuid::parse_str(text).map_err(|error| unreadable(&error))
}
