//! Tidemill's own tables in a user's database: claims and marks, logs, rejects, beats.

use std::{borrow::Cow, collections::BTreeMap};

use tidemill_checkpoint::{
    Claim, Digest, Entry, Generation, Held, Lane, LaneKey, LogName, Mark, Owner, Permit, Position, SinkId,
};
use tokio_postgres::{Row, error::SqlState};
use uuid::Uuid;

use super::{
    database::{Connection, Encoding},
    failure::{Doing, Failure},
    table::quoted,
};
use crate::sink::{Marks, SinkError, SinkReject, columns::TABLE_LOG, rejects_shard};

/// Made in the target's schema. `mark` is `json`, which keeps the text as it is: a digest is over it.
const TABLES: &str = "
CREATE TABLE IF NOT EXISTS {schema}.tidemill_marks (
    job text NOT NULL, sink text NOT NULL, lane text NOT NULL,
    generation bigint NOT NULL, owner text NOT NULL, data_dir uuid NOT NULL, instance uuid NOT NULL,
    released boolean NOT NULL DEFAULT false, digest text, mark json,
    PRIMARY KEY (job, sink, lane)) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS {schema}.tidemill_entries (
    job text NOT NULL, sink text NOT NULL, lane text NOT NULL, log text NOT NULL, number bigint NOT NULL,
    text text NOT NULL,
    PRIMARY KEY (job, sink, lane, log, number));
CREATE TABLE IF NOT EXISTS {schema}.tidemill_rejects (
    job text NOT NULL, sink text NOT NULL, lane text NOT NULL, number bigint NOT NULL,
    seq bigint NOT NULL, input text NOT NULL, row bigint NOT NULL, reason text NOT NULL, detail text NOT NULL,
    record json NOT NULL,
    PRIMARY KEY (job, sink, lane, number));
CREATE TABLE IF NOT EXISTS {schema}.tidemill_beats (
    job text NOT NULL, sink text NOT NULL, lane text NOT NULL, generation bigint NOT NULL, beat bigint NOT NULL,
    PRIMARY KEY (job, sink, lane)) WITH (fillfactor = 50);
";
/// Their names.
pub(super) const NAMES: [&str; 4] = ["tidemill_marks", "tidemill_entries", "tidemill_rejects", "tidemill_beats"];

/// The lock under which tables are made: `CREATE TABLE IF NOT EXISTS` in two sessions at once fails in one. The bytes of
/// `tidemill`.
pub(super) const LOCK: &str = "SELECT pg_advisory_xact_lock(8388346167744359532)";

/// The rows of one sink of one job.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) job: String,
    pub(super) sink: SinkId,
}

/// What an entry that is not kept as it is begins with; a JSON string follows. No entry of a log begins so.
const ESCAPED: char = '\u{1}';

/// JSON in ASCII: every encoding has it. It says the same.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for one in json.chars() {
        if one.is_ascii() {
            out.push(one);
        } else {
            out.extend(one.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    out
}

/// A text of our own as a database can keep it, whatever characters it has. [`restored`] gives it back.
fn kept(text: &str, encoding: Encoding) -> Cow<'_, str> {
    if encoding == Encoding::Utf8 || text.is_ascii() {
        return text.into();
    }
    format!("{ESCAPED}{}", ascii(&serde_json::Value::from(text).to_string())).into()
}

fn restored(kept: String) -> Result<String, Failure> {
    match kept.strip_prefix(ESCAPED) {
        None => Ok(kept),
        Some(json) => serde_json::from_str(json).map_err(|_| unreadable("an entry in tidemill_entries")),
    }
}

/// The same for JSON, which is kept as such, and for the server's sentences, which only people read.
fn kept_json(json: &str, encoding: Encoding) -> Cow<'_, str> {
    if encoding == Encoding::Utf8 || json.is_ascii() { json.into() } else { ascii(json).into() }
}

/// Nothing is held where there are no tables.
fn unless_absent<T: Default>(result: Result<T, Failure>) -> Result<T, Failure> {
    match result {
        Err(failure) if failure.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(T::default()),
        other => other,
    }
}

impl Scope {
    /// Makes the tables where they are absent, in a transaction of their own.
    pub(super) async fn create(connection: &mut Connection, schema: &str) -> Result<(), Failure> {
        let doing = "making the tables of marks in";
        let sql = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = $1 AND c.relname = ANY($2)";
        let found: i64 = connection.client.query_one(sql, &[&schema, &NAMES.as_slice()]).await.doing(doing)?.get(0);
        if found == NAMES.len() as i64 {
            return Ok(());
        }
        let tables = TABLES.replace("{schema}", &quoted(schema));
        connection.client.batch_execute(&format!("BEGIN; {LOCK}; {tables}; COMMIT")).await.doing(doing)
    }

    fn sink(&self) -> &str {
        self.sink.as_str()
    }

    /// What is held for some lanes; changes and makes nothing.
    pub(super) async fn held(
        &self,
        connection: &mut Connection,
        schema: &str,
        lanes: &[Lane],
    ) -> Result<Marks, Failure> {
        let mut marks: Marks = lanes.iter().map(|lane| (lane.clone(), Held::default())).collect();
        let found = unless_absent(self.read(connection, schema, lanes, "").await)?;
        marks.extend(found);
        Ok(marks)
    }

    /// The rows of some lanes that have one. `how`: a locking clause.
    pub(super) async fn read(
        &self,
        connection: &mut Connection,
        schema: &str,
        lanes: &[Lane],
        how: &str,
    ) -> Result<BTreeMap<Lane, Held>, Failure> {
        let doing = "reading the marks of";
        let schema = quoted(schema);
        let sql = format!(
            "SELECT m.lane, m.generation, m.owner, m.data_dir, m.instance, m.released, m.mark::text,
                (SELECT b.beat FROM {schema}.tidemill_beats b WHERE b.job = m.job AND b.sink = m.sink AND b.lane = m.lane)
            FROM {schema}.tidemill_marks m WHERE m.job = $1 AND m.sink = $2 AND m.lane = ANY($3) {how}"
        );
        let statement = connection.statement(&sql).await.doing(doing)?;
        let names: Vec<&str> = lanes.iter().map(Lane::as_str).collect();
        let rows = connection.client.query(&statement, &[&self.job, &self.sink(), &names]).await.doing(doing)?;
        rows.iter().map(held).collect()
    }

    /// Takes the lane where the stored generation is lower. In a transaction of the caller's.
    pub(super) async fn claim(
        &self,
        connection: &mut Connection,
        schema: &str,
        lane: &Lane,
        mine: Generation,
        owner: &Owner,
    ) -> Result<Option<Mark>, Failure> {
        let doing = "claiming a lane in";
        let table = quoted(schema);
        let sql = format!(
            "INSERT INTO {table}.tidemill_marks AS m (job, sink, lane, generation, owner, data_dir, instance)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            ON CONFLICT (job, sink, lane) DO UPDATE SET generation = excluded.generation, owner = excluded.owner,
                data_dir = excluded.data_dir, instance = excluded.instance, released = false
                WHERE m.generation < excluded.generation
            RETURNING m.mark::text"
        );
        let statement = connection.statement(&sql).await.doing(doing)?;
        let (job, sink, name) = (&self.job, self.sink(), lane.as_str());
        let taken = connection
            .client
            .query_opt(&statement, &[job, &sink, &name, &number(mine), &owner.name, &owner.data_dir, &owner.instance])
            .await
            .doing(doing)?;
        let Some(row) = taken else {
            let held = self.held(connection, schema, std::slice::from_ref(lane)).await?;
            let held = held.get(lane).map(Held::generation).unwrap_or_default();
            return Err(self.fenced(lane, held, mine).into());
        };
        let sql = format!(
            "INSERT INTO {table}.tidemill_beats AS b (job, sink, lane, generation, beat) VALUES ($1, $2, $3, $4, 0)
            ON CONFLICT (job, sink, lane) DO UPDATE SET generation = excluded.generation, beat = b.beat + 1"
        );
        let statement = connection.statement(&sql).await.doing(doing)?;
        connection.client.execute(&statement, &[job, &sink, &name, &number(mine)]).await.doing(doing)?;
        mark(row.try_get(0).doing(doing)?)
    }

    /// The compare-and-swap of a group, in the rows' transaction and before them: `begin` opens it, on the same way to the
    /// server. The outcome of each lane: `true` where the mark is new and the rows are to be written, `false` where the
    /// plan is there already.
    pub(super) async fn swap(
        &self,
        connection: &mut Connection,
        schema: &str,
        begin: &str,
        permits: &[&Permit],
    ) -> Result<Vec<Result<bool, SinkError>>, Failure> {
        let doing = "committing a batch to";
        let sql = format!(
            "UPDATE {}.tidemill_marks m SET digest = n.digest, mark = n.mark::json
            FROM unnest($3::text[], $4::text[], $5::bigint[], $6::uuid[], $7::text[], $8::text[])
                AS n (lane, expected, generation, instance, digest, mark)
            WHERE m.job = $1 AND m.sink = $2 AND m.lane = n.lane AND m.digest IS NOT DISTINCT FROM n.expected
                AND m.generation = n.generation AND m.instance = n.instance AND m.digest IS DISTINCT FROM n.digest
            RETURNING m.lane",
            quoted(schema)
        );
        let statement = match connection.statement(&sql).await.doing(doing) {
            Err(failure) if failure.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                // A reset on a fresh schema: nobody owns anything.
                connection.client.batch_execute(begin).await.doing(doing)?;
                return Ok(permits.iter().map(|permit| Err(self.lost(permit, &Held::default()))).collect());
            }
            statement => statement?,
        };
        let mut lanes = Vec::with_capacity(permits.len());
        let (mut expected, mut generations, mut instances) = (Vec::new(), Vec::new(), Vec::new());
        let (mut digests, mut marks) = (Vec::new(), Vec::new());
        for permit in permits {
            let (key, mark) = (permit.key(), permit.mark());
            lanes.push(key.lane.as_str());
            expected.push(permit.expected().map(|digest| digest.to_string()));
            generations.push(number(key.generation));
            instances.push(key.owner.instance);
            digests.push(mark.digest.to_string());
            let json =
                serde_json::to_string(mark).map_err(|error| SinkError::Fatal(format!("a mark as JSON: {error}")))?;
            marks.push(kept_json(&json, connection.encoding).into_owned());
        }
        let sink = self.sink();
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 8] =
            [&self.job, &sink, &lanes, &expected, &generations, &instances, &digests, &marks];
        // Sent together, answered in order: one way to the server and back for both.
        let (begun, rows) =
            futures::join!(connection.client.batch_execute(begin), connection.client.query(&statement, &values));
        begun.doing(doing)?;
        let swapped: Vec<String> = rows.doing(doing)?.iter().map(|row| row.get(0)).collect();
        let missed = permits.iter().filter(|permit| !swapped.iter().any(|lane| lane == permit.key().lane.as_str()));
        let missed: Vec<Lane> = missed.map(|permit| permit.key().lane.clone()).collect();
        let held = if missed.is_empty() { BTreeMap::new() } else { self.read(connection, schema, &missed, "").await? };
        let outcome = |permit: &&Permit| match missed.contains(&permit.key().lane) {
            false => Ok(true),
            true => self.missed(permit, &held.get(&permit.key().lane).cloned().unwrap_or_default()),
        };
        Ok(permits.iter().map(outcome).collect())
    }

    /// Why a mark was not swapped.
    fn missed(&self, permit: &Permit, held: &Held) -> Result<bool, SinkError> {
        let key = permit.key();
        if !held.claim.as_ref().is_some_and(|claim| owns(claim, key)) {
            return Err(self.lost(permit, held));
        }
        let found = held.mark.as_ref().map(|mark| mark.digest);
        if found == Some(permit.mark().digest) {
            return Ok(false);
        }
        let (sink, lane) = (self.sink.clone(), key.lane.clone());
        Err(SinkError::Conflict { sink, lane, found, expected: permit.expected() })
    }

    fn lost(&self, permit: &Permit, held: &Held) -> SinkError {
        self.fenced(&permit.key().lane, held.generation(), permit.key().generation)
    }

    /// Appends the permit's entries and drops those that its plan prunes.
    pub(super) async fn append(
        &self,
        connection: &mut Connection,
        schema: &str,
        permit: &Permit,
    ) -> Result<(), Failure> {
        let doing = "appending a log's entries to";
        let table = quoted(schema);
        let (sink, lane) = (self.sink(), permit.key().lane.as_str());
        if !permit.entries().is_empty() {
            let sql = format!(
                "INSERT INTO {table}.tidemill_entries (job, sink, lane, log, number, text)
                SELECT $1, $2, $3, * FROM unnest($4::text[], $5::bigint[], $6::text[])
                ON CONFLICT (job, sink, lane, log, number) DO UPDATE SET text = excluded.text"
            );
            let statement = connection.statement(&sql).await.doing(doing)?;
            let entries = permit.entries();
            let logs: Vec<&str> = entries.iter().map(|entry| entry.log.as_str()).collect();
            let numbers: Vec<i64> = entries.iter().map(|entry| whole(entry.number)).collect();
            let texts: Vec<Cow<'_, str>> = entries.iter().map(|entry| kept(&entry.text, connection.encoding)).collect();
            let values: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
                [&self.job, &sink, &lane, &logs, &numbers, &texts];
            connection.client.execute(&statement, &values).await.doing(doing)?;
        }
        let sql = format!(
            "DELETE FROM {table}.tidemill_entries WHERE job = $1 AND sink = $2 AND lane = $3 AND log = $4 AND number < $5"
        );
        for (log, range) in permit.mark().plan.logs.iter().filter(|(_, range)| range.first > 0) {
            let statement = connection.statement(&sql).await.doing(doing)?;
            let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
                [&self.job, &sink, &lane, &log.as_str(), &whole(range.first)];
            connection.client.execute(&statement, &values).await.doing(doing)?;
        }
        Ok(())
    }

    /// The entries of a log, from a number on.
    pub(super) async fn history(
        &self,
        connection: &mut Connection,
        schema: &str,
        lane: &Lane,
        log: &LogName,
        from: u64,
    ) -> Result<Vec<Entry>, Failure> {
        let sql = format!(
            "SELECT number, text FROM {}.tidemill_entries
            WHERE job = $1 AND sink = $2 AND lane = $3 AND log = $4 AND number >= $5 ORDER BY number",
            quoted(schema)
        );
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
            [&self.job, &self.sink(), &lane.as_str(), &log.as_str(), &whole(from)];
        let rows = unless_absent(connection.client.query(&sql, &values).await.doing("reading a log of"))?;
        let entry =
            |row: &Row| Ok(Entry { log: log.clone(), number: unsigned(row.get(0)), text: restored(row.get(1))? });
        rows.iter().map(entry).collect()
    }

    /// Keeps rejected rows, numbered on from the last one of the lane, and from where the mark says that they were read to:
    /// a table that was emptied or restored must not give a number twice.
    pub(super) async fn reject(
        &self,
        connection: &mut Connection,
        schema: &str,
        permit: &Permit,
        rejects: &[SinkReject],
    ) -> Result<(), Failure> {
        let doing = "keeping rejected rows in";
        let shard = rejects_shard(&self.sink);
        let read = permit.mark().positions.get(&shard).and_then(Position::as_number).unwrap_or_default();
        let sql = format!(
            "INSERT INTO {table}.tidemill_rejects (job, sink, lane, number, seq, input, row, reason, detail, record)
            SELECT $1, $2, $3, n.index - 1 + greatest($4, (SELECT coalesce(max(number) + 1, 0)
                    FROM {table}.tidemill_rejects WHERE job = $1 AND sink = $2 AND lane = $3)),
                $5, $6, n.row, n.reason, n.detail, n.record::json
            FROM unnest($7::bigint[], $8::text[], $9::text[], $10::text[])
                WITH ORDINALITY AS n (row, reason, detail, record, index)",
            table = quoted(schema)
        );
        let statement = connection.statement(&sql).await.doing(doing)?;
        let rows: Vec<i64> = rejects.iter().map(|reject| whole(reject.row)).collect();
        let encoding = connection.encoding;
        let of = |text: fn(&SinkReject) -> &str| {
            rejects.iter().map(|reject| kept_json(text(reject), encoding)).collect::<Vec<Cow<'_, str>>>()
        };
        let (reasons, details, records) = (of(|r| &r.reason), of(|r| &r.detail), of(|r| &r.record));
        let plan = &permit.mark().plan;
        let (lane, input) = (permit.key().lane.as_str(), permit.input().to_string());
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 10] = [
            &self.job,
            &self.sink(),
            &lane,
            &whole(read),
            &whole(plan.seq),
            &input,
            &rows,
            &reasons,
            &details,
            &records,
        ];
        connection.client.execute(&statement, &values).await.doing(doing).map(drop)
    }

    /// The rejected rows of a lane, from a number on.
    pub(super) async fn rejects(
        &self,
        connection: &mut Connection,
        schema: &str,
        lane: &Lane,
        from: u64,
    ) -> Result<Vec<SinkReject>, Failure> {
        let sql = format!(
            "SELECT number, seq, input, row, reason, detail, record::text FROM {}.tidemill_rejects
            WHERE job = $1 AND sink = $2 AND lane = $3 AND number >= $4 ORDER BY number",
            quoted(schema)
        );
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&self.job, &self.sink(), &lane.as_str(), &whole(from)];
        let rows = unless_absent(connection.client.query(&sql, &values).await.doing("reading rejected rows of"))?;
        let reject = |row: &Row| {
            let input = Digest::parse(row.get(2)).ok_or_else(|| unreadable("the digest of a rejected row"))?;
            Ok(SinkReject {
                number: unsigned(row.get(0)),
                seq: unsigned(row.get(1)),
                input,
                row: unsigned(row.get(3)),
                reason: row.get(4),
                detail: row.get(5),
                record: row.get(6),
            })
        };
        rows.iter().map(reject).collect()
    }

    /// Says that the owner lives. `false`: another one does.
    pub(super) async fn beat(&self, connection: &mut Connection, schema: &str, key: &LaneKey) -> Result<bool, Failure> {
        let doing = "writing a beat to";
        let sql = format!(
            "UPDATE {}.tidemill_beats SET beat = beat + 1 WHERE job = $1 AND sink = $2 AND lane = $3 AND generation = $4",
            quoted(schema)
        );
        let statement = connection.statement(&sql).await.doing(doing)?;
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&self.job, &self.sink(), &key.lane.as_str(), &number(key.generation)];
        Ok(connection.client.execute(&statement, &values).await.doing(doing)? == 1)
    }

    /// Lets go of a lane; nothing where another one has it.
    pub(super) async fn release(
        &self,
        connection: &mut Connection,
        schema: &str,
        key: &LaneKey,
    ) -> Result<(), Failure> {
        let sql = format!(
            "UPDATE {}.tidemill_marks SET released = true
            WHERE job = $1 AND sink = $2 AND lane = $3 AND generation = $4 AND instance = $5",
            quoted(schema)
        );
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
            [&self.job, &self.sink(), &key.lane.as_str(), &number(key.generation), &key.owner.instance];
        unless_absent(connection.client.execute(&sql, &values).await.doing("releasing a lane in")).map(drop)
    }

    /// Forgets all that is kept of the sink. In a transaction of the caller's.
    pub(super) async fn reset(&self, connection: &mut Connection, schema: &str) -> Result<(), Failure> {
        let doing = "forgetting the marks in";
        let sql = "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = $1 AND c.relname = ANY($2)";
        let found = connection.client.query(sql, &[&schema, &NAMES.as_slice()]).await.doing(doing)?;
        for row in found {
            let table: String = row.get(0);
            let sql = format!("DELETE FROM {}.{} WHERE job = $1 AND sink = $2", quoted(schema), quoted(&table));
            connection.client.execute(&sql, &[&self.job, &self.sink()]).await.doing(doing)?;
        }
        Ok(())
    }

    /// Notes that the user's table is there, where marks are kept: under no lane, so that a reset forgets it too.
    pub(super) async fn remember(&self, connection: &Connection, schema: &str, table: &str) -> Result<(), Failure> {
        let sql = format!(
            "INSERT INTO {}.tidemill_entries (job, sink, lane, log, number, text) VALUES ($1, $2, '', $3, 0, '')
            ON CONFLICT DO NOTHING",
            quoted(schema)
        );
        let log = kept(&format!("{TABLE_LOG}{table}"), connection.encoding).into_owned();
        let noted = connection.client.execute(&sql, &[&self.job, &self.sink(), &log]).await;
        unless_absent(noted.doing("noting the table in")).map(drop)
    }

    /// Whether it was there before.
    pub(super) async fn remembers(&self, connection: &Connection, schema: &str, table: &str) -> Result<bool, Failure> {
        let sql = format!(
            "SELECT 1 FROM {}.tidemill_entries WHERE job = $1 AND sink = $2 AND lane = '' AND log = $3",
            quoted(schema)
        );
        let log = kept(&format!("{TABLE_LOG}{table}"), connection.encoding).into_owned();
        let found = connection.client.query_opt(&sql, &[&self.job, &self.sink(), &log]).await;
        Ok(unless_absent(found.doing("looking for the table of"))?.is_some())
    }

    pub(super) fn fenced(&self, lane: &Lane, held: Generation, mine: Generation) -> SinkError {
        SinkError::Fenced { sink: self.sink.clone(), lane: lane.clone(), held, mine }
    }
}

/// After a reset generations begin again, so the instance has to be the same too.
fn owns(claim: &Claim, key: &LaneKey) -> bool {
    claim.generation == key.generation && claim.owner.instance == key.owner.instance
}

fn number(generation: Generation) -> i64 {
    whole(generation.0)
}

/// PostgreSQL's integers are signed: numbers of the protocol are counts from 0, far below that bound.
fn whole(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn unsigned(n: i64) -> u64 {
    n.unsigned_abs()
}

fn unreadable(what: &str) -> Failure {
    Failure::Sink(SinkError::Fatal(format!("{what} cannot be read: was it changed by hand?")))
}

fn held(row: &Row) -> Result<(Lane, Held), Failure> {
    let (data_dir, instance): (Uuid, Uuid) = (row.get(3), row.get(4));
    let owner = Owner { name: row.get(2), data_dir, instance };
    let claim = Claim { generation: Generation(unsigned(row.get(1))), owner, released: row.get(5) };
    let beat: Option<i64> = row.get(7);
    let held = Held { claim: Some(claim), mark: mark(row.get(6))?, beat: unsigned(beat.unwrap_or_default()) };
    Ok((Lane::new(row.get::<_, &str>(0)), held))
}

fn mark(text: Option<String>) -> Result<Option<Mark>, Failure> {
    text.map(|text| serde_json::from_str(&text)).transpose().map_err(|_| unreadable("a mark in tidemill_marks"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_our_own_are_ascii_in_a_database_that_lacks_characters_and_come_back() {
        for text in ["Отчёт \"1\".json", "😀", "plain", "{\"path\":\"é\"}", "\u{1}é"] {
            for encoding in [Encoding::Utf8, Encoding::Bytes, Encoding::Other] {
                let kept = kept(text, encoding);
                assert!(encoding == Encoding::Utf8 || kept.is_ascii(), "{kept}");
                if encoding != Encoding::Utf8 {
                    assert_eq!(restored(kept.into_owned()).ok().as_deref(), Some(text));
                }
            }
        }
        assert_eq!(kept_json("{\"a\":\"é😀\"}", Encoding::Other), "{\"a\":\"\\u00e9\\ud83d\\ude00\"}");
        // What an older version kept.
        assert_eq!(restored("{\"path\":\"é\"}".into()).ok().as_deref(), Some("{\"path\":\"é\"}"));
    }
}
