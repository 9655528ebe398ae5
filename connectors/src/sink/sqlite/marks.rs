//! Tidemill's own tables in a user's database: claims and marks, logs, rejects, beats.

use rusqlite::{Connection, OptionalExtension, Row, params};
use tidemill_checkpoint::{
    Claim, Digest, Entry, Generation, Held, Lane, LaneKey, LogName, Mark, Owner, Permit, Position, SinkId,
};
use uuid::Uuid;

use super::database::{Doing, Failure};
use crate::sink::{SinkError, SinkReject, columns::TABLE_LOG, rejects_shard};

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS tidemill_marks (
    job TEXT NOT NULL, sink TEXT NOT NULL, lane TEXT NOT NULL,
    generation INTEGER NOT NULL, owner TEXT NOT NULL, data_dir TEXT NOT NULL, instance TEXT NOT NULL,
    released INTEGER NOT NULL DEFAULT 0, digest TEXT, mark TEXT,
    PRIMARY KEY (job, sink, lane));
CREATE TABLE IF NOT EXISTS tidemill_entries (
    job TEXT NOT NULL, sink TEXT NOT NULL, lane TEXT NOT NULL, log TEXT NOT NULL, number INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (job, sink, lane, log, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tidemill_rejects (
    job TEXT NOT NULL, sink TEXT NOT NULL, lane TEXT NOT NULL, number INTEGER NOT NULL,
    seq INTEGER NOT NULL, input TEXT NOT NULL, row INTEGER NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (job, sink, lane, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tidemill_beats (
    job TEXT NOT NULL, sink TEXT NOT NULL, lane TEXT NOT NULL, generation INTEGER NOT NULL, beat INTEGER NOT NULL,
    PRIMARY KEY (job, sink, lane));
";

/// The rows of one sink of one job.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) job: String,
    pub(super) sink: SinkId,
}

impl Scope {
    fn has(connection: &Connection, table: &str) -> rusqlite::Result<bool> {
        let sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1";
        Ok(connection.prepare_cached(sql)?.query_row([table], |_| Ok(())).optional()?.is_some())
    }

    /// What is held for a lane; nothing where there are no tables.
    pub(super) fn held(&self, connection: &Connection, lane: &Lane) -> rusqlite::Result<Held> {
        if !Self::has(connection, "tidemill_marks")? {
            return Ok(Held::default());
        }
        let sql = "SELECT m.generation, m.owner, m.data_dir, m.instance, m.released, m.mark, b.beat
            FROM tidemill_marks m LEFT JOIN tidemill_beats b USING (job, sink, lane)
            WHERE m.job = ?1 AND m.sink = ?2 AND m.lane = ?3";
        let read = |row: &Row<'_>| {
            let owner = Owner { name: row.get(1)?, data_dir: uuid(row, 2)?, instance: uuid(row, 3)? };
            let claim = Claim { generation: generation(row, 0)?, owner, released: row.get(4)? };
            let beat = row.get::<_, Option<i64>>(6)?.unwrap_or_default();
            Ok(Held { claim: Some(claim), mark: mark(row, 5)?, beat: beat.unsigned_abs() })
        };
        let mut statement = connection.prepare_cached(sql)?;
        Ok(statement.query_row(self.keys(lane), read).optional()?.unwrap_or_default())
    }

    fn keys<'a>(&'a self, lane: &'a Lane) -> [&'a str; 3] {
        [&self.job, self.sink.as_str(), lane.as_str()]
    }

    /// Takes the lane where the stored generation is lower. To be called in a write transaction.
    pub(super) fn claim(
        &self,
        connection: &Connection,
        lane: &Lane,
        mine: Generation,
        owner: &Owner,
    ) -> Result<Option<Mark>, Failure> {
        let doing = "claiming a lane in";
        connection.execute_batch(TABLES).doing(doing)?;
        let held = self.held(connection, lane).doing(doing)?;
        if held.claim.is_some() && held.generation() >= mine {
            return Err(self.fenced(lane, held.generation(), mine).into());
        }
        let [job, sink, lane] = self.keys(lane);
        let sql = "INSERT INTO tidemill_marks (job, sink, lane, generation, owner, data_dir, instance)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
            ON CONFLICT DO UPDATE SET generation = excluded.generation, owner = excluded.owner,
                data_dir = excluded.data_dir, instance = excluded.instance, released = 0";
        let values =
            params![job, sink, lane, number(mine), owner.name, owner.data_dir.to_string(), owner.instance.to_string()];
        connection.execute(sql, values).doing(doing)?;
        let sql = "INSERT INTO tidemill_beats (job, sink, lane, generation, beat) VALUES (?1, ?2, ?3, ?4, 0)
            ON CONFLICT DO UPDATE SET generation = excluded.generation, beat = beat + 1";
        connection.execute(sql, params![job, sink, lane, number(mine)]).doing(doing)?;
        Ok(held.mark)
    }

    /// The compare-and-swap. `false`: the plan is there already. To be called in the rows' transaction, before them.
    pub(super) fn swap(&self, connection: &Connection, permit: &Permit) -> Result<bool, Failure> {
        let doing = "committing a batch to";
        let key = permit.key();
        let mark = permit.mark();
        if !Self::has(connection, "tidemill_marks").doing(doing)? {
            return Err(self.fenced(&key.lane, Generation::default(), key.generation).into());
        }
        let [job, sink, lane] = self.keys(&key.lane);
        let text = serde_json::to_string(mark).map_err(|error| SinkError::Fatal(format!("a mark as JSON: {error}")))?;
        let sql = "UPDATE tidemill_marks SET digest = ?4, mark = ?5
            WHERE job = ?1 AND sink = ?2 AND lane = ?3 AND digest IS ?6 AND generation = ?7 AND instance = ?8 AND digest IS NOT ?4";
        let expected = permit.expected().map(|digest| digest.to_string());
        let instance = key.owner.instance.to_string();
        let values =
            params![job, sink, lane, mark.digest.to_string(), text, expected, number(key.generation), instance];
        if connection.prepare_cached(sql).doing(doing)?.execute(values).doing(doing)? == 1 {
            return Ok(true);
        }
        let held = self.held(connection, &key.lane).doing(doing)?;
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
    pub(super) fn append(&self, connection: &Connection, permit: &Permit) -> Result<(), Failure> {
        let doing = "appending a log's entries to";
        let [job, sink, lane] = self.keys(&permit.key().lane);
        let sql = "INSERT OR REPLACE INTO tidemill_entries (job, sink, lane, log, number, text) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let mut insert = connection.prepare_cached(sql).doing(doing)?;
        for entry in permit.entries() {
            insert
                .execute(params![job, sink, lane, entry.log.as_str(), whole(entry.number), entry.text])
                .doing(doing)?;
        }
        let sql =
            "DELETE FROM tidemill_entries WHERE job = ?1 AND sink = ?2 AND lane = ?3 AND log = ?4 AND number < ?5";
        for (log, range) in permit.mark().plan.logs.iter().filter(|(_, range)| range.first > 0) {
            connection.execute(sql, params![job, sink, lane, log.as_str(), whole(range.first)]).doing(doing)?;
        }
        Ok(())
    }

    pub(super) fn history(
        &self,
        connection: &Connection,
        lane: &Lane,
        log: &LogName,
        from: u64,
    ) -> rusqlite::Result<Vec<Entry>> {
        if !Self::has(connection, "tidemill_entries")? {
            return Ok(Vec::new());
        }
        let [job, sink, lane] = self.keys(lane);
        let sql = "SELECT number, text FROM tidemill_entries
            WHERE job = ?1 AND sink = ?2 AND lane = ?3 AND log = ?4 AND number >= ?5 ORDER BY number";
        let mut statement = connection.prepare(sql)?;
        let read = |row: &Row<'_>| {
            Ok(Entry { log: log.clone(), number: row.get::<_, i64>(0)?.unsigned_abs(), text: row.get(1)? })
        };
        statement.query_map(params![job, sink, lane, log.as_str(), whole(from)], read)?.collect()
    }

    /// Keeps rejected rows, numbered on from the last one of the lane, and from where the mark says that they were read to:
    /// a table that was emptied or restored must not give a number twice.
    pub(super) fn reject(
        &self,
        connection: &Connection,
        permit: &Permit,
        rejects: &[SinkReject],
    ) -> Result<(), Failure> {
        if rejects.is_empty() {
            return Ok(());
        }
        let doing = "keeping rejected rows in";
        let [job, sink, lane] = self.keys(&permit.key().lane);
        let sql =
            "SELECT coalesce(max(number) + 1, 0) FROM tidemill_rejects WHERE job = ?1 AND sink = ?2 AND lane = ?3";
        let kept: i64 = connection.query_row(sql, [job, sink, lane], |row| row.get(0)).doing(doing)?;
        let shard = rejects_shard(&self.sink);
        let read = permit.mark().positions.get(&shard).and_then(Position::as_number).unwrap_or_default();
        let first = kept.max(whole(read));
        let sql = "INSERT INTO tidemill_rejects (job, sink, lane, number, seq, input, row, reason, detail, record)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        let mut insert = connection.prepare_cached(sql).doing(doing)?;
        for (reject, number) in rejects.iter().zip(first..) {
            let (input, row) = (reject.input.to_string(), whole(reject.row));
            let values = params![
                job,
                sink,
                lane,
                number,
                whole(reject.seq),
                input,
                row,
                reject.reason,
                reject.detail,
                reject.record
            ];
            insert.execute(values).doing(doing)?;
        }
        Ok(())
    }

    pub(super) fn rejects(&self, connection: &Connection, lane: &Lane, from: u64) -> rusqlite::Result<Vec<SinkReject>> {
        if !Self::has(connection, "tidemill_rejects")? {
            return Ok(Vec::new());
        }
        let [job, sink, lane] = self.keys(lane);
        let sql = "SELECT number, seq, input, row, reason, detail, record FROM tidemill_rejects
            WHERE job = ?1 AND sink = ?2 AND lane = ?3 AND number >= ?4 ORDER BY number";
        let read = |row: &Row<'_>| {
            Ok(SinkReject {
                number: row.get::<_, i64>(0)?.unsigned_abs(),
                seq: row.get::<_, i64>(1)?.unsigned_abs(),
                input: Digest::parse(&row.get::<_, String>(2)?)
                    .ok_or_else(|| unreadable(2, "a digest is 64 hex digits"))?,
                row: row.get::<_, i64>(3)?.unsigned_abs(),
                reason: row.get(4)?,
                detail: row.get(5)?,
                record: row.get(6)?,
            })
        };
        connection.prepare(sql)?.query_map(params![job, sink, lane, whole(from)], read)?.collect()
    }

    /// Says that the owner lives. `false`: another one does.
    pub(super) fn beat(&self, connection: &Connection, key: &LaneKey) -> rusqlite::Result<bool> {
        let [job, sink, lane] = self.keys(&key.lane);
        let sql =
            "UPDATE tidemill_beats SET beat = beat + 1 WHERE job = ?1 AND sink = ?2 AND lane = ?3 AND generation = ?4";
        Ok(connection.prepare_cached(sql)?.execute(params![job, sink, lane, number(key.generation)])? == 1)
    }

    pub(super) fn release(&self, connection: &Connection, key: &LaneKey) -> rusqlite::Result<()> {
        if !Self::has(connection, "tidemill_marks")? {
            return Ok(());
        }
        let [job, sink, lane] = self.keys(&key.lane);
        let sql = "UPDATE tidemill_marks SET released = 1
            WHERE job = ?1 AND sink = ?2 AND lane = ?3 AND generation = ?4 AND instance = ?5";
        connection.execute(sql, params![job, sink, lane, number(key.generation), key.owner.instance.to_string()])?;
        Ok(())
    }

    pub(super) fn reset(&self, connection: &Connection) -> rusqlite::Result<()> {
        for table in ["tidemill_marks", "tidemill_entries", "tidemill_rejects", "tidemill_beats"] {
            if Self::has(connection, table)? {
                let sql = format!("DELETE FROM {table} WHERE job = ?1 AND sink = ?2");
                connection.execute(&sql, [&*self.job, self.sink.as_str()])?;
            }
        }
        Ok(())
    }

    /// Notes that the user's table is there, where marks are kept: under no lane, so that a reset forgets it too.
    pub(super) fn remember(&self, connection: &Connection, table: &str) -> rusqlite::Result<()> {
        if !Self::has(connection, "tidemill_entries")? {
            return Ok(());
        }
        let sql = "INSERT OR IGNORE INTO tidemill_entries (job, sink, lane, log, number, text) VALUES (?1, ?2, '', ?3, 0, '')";
        let log = format!("{TABLE_LOG}{table}");
        connection.execute(sql, [&*self.job, self.sink.as_str(), &log]).map(drop)
    }

    /// Whether it was there before.
    pub(super) fn remembers(&self, connection: &Connection, table: &str) -> rusqlite::Result<bool> {
        if !Self::has(connection, "tidemill_entries")? {
            return Ok(false);
        }
        let sql = "SELECT 1 FROM tidemill_entries WHERE job = ?1 AND sink = ?2 AND lane = '' AND log = ?3";
        let log = format!("{TABLE_LOG}{table}");
        let found = connection.query_row(sql, [&*self.job, self.sink.as_str(), &log], |_| Ok(())).optional()?;
        Ok(found.is_some())
    }

    pub(super) fn fenced(&self, lane: &Lane, held: Generation, mine: Generation) -> SinkError {
        SinkError::Fenced { sink: self.sink.clone(), lane: lane.clone(), held, mine }
    }
}

/// After a reset generations begin again, so the instance has to be the same too.
pub(super) fn owns(claim: &Claim, key: &LaneKey) -> bool {
    claim.generation == key.generation && claim.owner.instance == key.owner.instance
}

fn number(generation: Generation) -> i64 {
    whole(generation.0)
}

/// SQLite's integers are signed: numbers of the protocol are counts from 0, far below that bound.
fn whole(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn generation(row: &Row<'_>, index: usize) -> rusqlite::Result<Generation> {
    Ok(Generation(row.get::<_, i64>(index)?.unsigned_abs()))
}

fn unreadable(index: usize, why: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, why.into())
}

fn uuid(row: &Row<'_>, index: usize) -> rusqlite::Result<Uuid> {
    Uuid::parse_str(&row.get::<_, String>(index)?).map_err(|error| unreadable(index, &error.to_string()))
}

fn mark(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<Mark>> {
    let text: Option<String> = row.get(index)?;
    text.map(|text| serde_json::from_str(&text)).transpose().map_err(|error| unreadable(index, &error.to_string()))
}
