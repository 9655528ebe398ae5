//! Rows of record batches into the table by binary COPY; what PostgreSQL refuses becomes a reject.
//!
//! The rows of all lanes of a group are one sequence and one COPY. Where the server refuses a row it says no to the whole
//! statement, so the sequence is halved until the row stands alone: one bad row of 100,000 costs about two statements for
//! each of its 17 halvings. Halves are written from left to right, so that of two rows with one key the same one is refused
//! as if they came one by one.
//!
//! Rows that need one another (foreign keys to the same table) are torn apart by that. So what a constraint had against a row
//! is looked at again once the rest is written: such rows are tried together, then alone, until none passes any more.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
};

use arrow::array::RecordBatch;
use bytes::Bytes;
use futures::SinkExt as _;
use serde_json::Value as Json;
use tidemill_checkpoint::{Permit, failpoint::pass};
use tokio_postgres::{CopyInSink, Statement};

use super::{
    database::Connection,
    encode::Column,
    failure::{Doing, Failure, Refusal},
    one_by_one::{self, AT_ONCE},
    table::{Target, list, quoted, same_columns},
};
use crate::sink::{SinkReject, cell, dense::is_dense};

/// COPY's data is sent in pieces of about this size.
const CHUNK_BYTES: usize = 256 * 1024;
/// What a COPY in binary begins with: a signature, no flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const END: i16 = -1;
pub(super) const WRITING: &str = "writing rows to";

/// The rows that a group's lanes write, one after the other.
pub(super) struct Rows<'a> {
    pieces: Vec<Piece<'a>>,
    /// Rows of all pieces.
    pub(super) count: usize,
    /// Whether rows replace and delete others.
    upserts: bool,
}

/// A batch of one lane.
struct Piece<'a> {
    /// The lane's index in the group.
    lane: usize,
    permit: &'a Permit,
    batch: &'a RecordBatch,
    columns: Vec<Column<'a>>,
    key: Vec<Column<'a>>,
    flag: Option<Column<'a>>,
    /// The number of its first row among all rows.
    first: usize,
    /// The same among the lane's rows.
    of_lane: usize,
}

/// A row that was not written, and whose.
pub(super) struct Rejected {
    pub(super) lane: usize,
    pub(super) reject: SinkReject,
    /// Its number among the rows of all lanes.
    row: usize,
    /// Whether it may pass once other rows are there.
    depends: bool,
}

impl<'a> Rows<'a> {
    /// The rows of the lanes with these numbers. `Changed` where a batch is of another schema than the target.
    pub(super) fn new(
        target: &Target,
        lanes: impl Iterator<Item = (usize, &'a Permit, &'a [RecordBatch])>,
    ) -> Result<Self, Failure> {
        let mut rows = Self { pieces: Vec::new(), count: 0, upserts: !target.key.is_empty() };
        for (lane, permit, batches) in lanes {
            let mut of_lane = 0;
            for batch in batches.iter().filter(|batch| batch.num_rows() > 0) {
                rows.pieces.push(Piece::new(target, lane, permit, batch, rows.count, of_lane).ok_or(Failure::Changed)?);
                rows.count += batch.num_rows();
                of_lane += batch.num_rows();
            }
        }
        Ok(rows)
    }

    /// The piece of a row, and its number there.
    fn at(&self, row: usize) -> Option<(&Piece<'a>, usize)> {
        let index = self.pieces.partition_point(|piece| piece.first <= row).checked_sub(1)?;
        let piece = self.pieces.get(index)?;
        Some((piece, row - piece.first))
    }

    /// Appends a row as COPY sends it, or says why it cannot be sent.
    pub(super) fn write(&self, target: &Target, row: usize, out: &mut Vec<u8>) -> Result<(), (&'static str, String)> {
        self.at(row).map_or(Ok(()), |(piece, of_piece)| piece.write(target, of_piece, row, out))
    }

    pub(super) fn rejected(&self, number: usize, reason: &str, detail: String) -> Option<Rejected> {
        let (piece, row) = self.at(number)?;
        let plan = &piece.permit.mark().plan;
        let reject = SinkReject {
            number: 0,
            seq: plan.seq,
            input: piece.permit.input(),
            row: (piece.of_lane + row) as u64,
            reason: reason.into(),
            detail: detail.replace('\0', "\\0"),
            record: Json::Object(cell::record(piece.batch, row)).to_string(),
        };
        Some(Rejected { lane: piece.lane, reject, row: number, depends: false })
    }

    /// The same for what the server has against a row.
    pub(super) fn refused(&self, number: usize, refusal: Refusal) -> Option<Rejected> {
        let rejected = self.rejected(number, refusal.reason, refusal.why)?;
        // What is only appended frees no value of a unique index.
        Some(Rejected { depends: refusal.depends && (self.upserts || !refusal.is_duplicate), ..rejected })
    }

    /// Which of these rows no later row of the same key stands for. The others are not written a second time: the last row of
    /// a key has to win. Texts are compared as the most forgiving collation would.
    fn last_of_their_keys(&self, rows: &[usize], target: &Target) -> Vec<usize> {
        let key_of = |number: usize| {
            let (piece, row) = self.at(number)?;
            let text = |&index: &usize| cell::text(piece.batch.column(index), row).trim_end().to_lowercase();
            Some(target.key.iter().map(text).collect::<Vec<String>>())
        };
        let Some(first) = rows.first().filter(|_| !target.key.is_empty()) else { return rows.to_vec() };
        let wanted: HashSet<Vec<String>> = rows.iter().filter_map(|row| key_of(*row)).collect();
        let last: HashMap<Vec<String>, usize> = (*first..self.count)
            .filter_map(|row| Some((key_of(row)?, row)))
            .filter(|(key, _)| wanted.contains(key))
            .collect();
        rows.iter().copied().filter(|row| key_of(*row).is_some_and(|key| last.get(&key) == Some(row))).collect()
    }
}

impl<'a> Piece<'a> {
    fn new(
        target: &Target,
        lane: usize,
        permit: &'a Permit,
        batch: &'a RecordBatch,
        first: usize,
        of_lane: usize,
    ) -> Option<Self> {
        if !same_columns(batch.schema_ref(), &target.schema) {
            return None;
        }
        let rule_of = |index: usize| target.fields.iter().find(|field| field.index == index).map(|field| &field.rule);
        let columns = target.fields.iter().map(|field| Column::new(batch.column(field.index), &field.rule));
        let key = target.key.iter().map(|&index| Column::new(batch.column(index), rule_of(index)?));
        let flag = target.flag.map(|index| Column::new(batch.column(index), &super::encode::Rule::Bool));
        let (columns, key) = (columns.collect::<Option<_>>()?, key.collect::<Option<_>>()?);
        Some(Self { lane, permit, batch, columns, key, flag: flag.flatten(), first, of_lane })
    }

    /// Appends a row, or says why it cannot be sent; then what was appended of it is to be taken back.
    fn write(
        &self,
        target: &Target,
        row: usize,
        number: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), (&'static str, String)> {
        if self.key.iter().any(|key| key.is_null(row)) {
            return Err(("null_key", "a key column of the upsert is null".to_owned()));
        }
        let own = if target.key.is_empty() { 0 } else { 2 };
        out.extend_from_slice(&((self.columns.len() + own) as i16).to_be_bytes());
        for (column, field) in self.columns.iter().zip(&target.fields) {
            column.write(row, out).map_err(|why| ("value", format!("column `{}`: {why}", field.name)))?;
        }
        if own > 0 {
            out.extend_from_slice(&8_i32.to_be_bytes());
            out.extend_from_slice(&(number as i64).to_be_bytes());
            out.extend_from_slice(&1_i32.to_be_bytes());
            out.push(u8::from(self.flag.as_ref().is_some_and(|flag| flag.is_true(row))));
        }
        Ok(())
    }
}

/// The statements that write rows into a target.
pub(super) struct Writer {
    /// Makes the temporary table of an upsert, outside of any batch.
    pub(super) setup: Option<String>,
    copy: String,
    /// One row to where COPY brings many.
    pub(super) insert: String,
    /// From the temporary table into the target, for the rows of a range of numbers.
    merge: Option<String>,
    /// Empties the temporary table.
    pub(super) clear: Option<String>,
}

/// Names of our own in the temporary table: no column of a user begins so.
const ROW: &str = "_tidemill_row";
const DELETES: &str = "_tidemill_deletes";

impl Writer {
    /// `temporary`: the name of the upsert's table in this session.
    pub(super) fn new(target: &Target, temporary: &str) -> Self {
        let names: Vec<&String> = target.fields.iter().map(|field| &field.name).collect();
        let columns = list(names.iter().copied());
        let copy = |table: &str, columns: &str| format!("COPY {table} ({columns}) FROM STDIN (FORMAT binary)");
        let insert = |table: &str, columns: &str, count: usize| {
            let values: Vec<String> = (1..=count).map(|number| format!("${number}")).collect();
            // Like COPY, which takes what is given for an identity column.
            format!("INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE VALUES ({})", values.join(", "))
        };
        if target.key.is_empty() {
            let (copy, insert) = (copy(&target.table, &columns), insert(&target.table, &columns, names.len()));
            return Self { setup: None, copy, insert, merge: None, clear: None };
        }
        let temporary = format!("pg_temp.{}", quoted(temporary));
        let own = format!("{columns}, {ROW}, {DELETES}");
        let setup = format!(
            "CREATE TEMPORARY TABLE {} ON COMMIT DELETE ROWS AS SELECT {columns}, 0::bigint AS {ROW}, false AS {DELETES} \
             FROM {} WITH NO DATA",
            temporary.trim_start_matches("pg_temp."),
            target.table
        );
        let merge = merge(target, &names, &columns, &temporary);
        let (copy, insert) = (copy(&temporary, &own), insert(&temporary, &own, names.len() + 2));
        Self { setup: Some(setup), copy, insert, merge: Some(merge), clear: Some(format!("TRUNCATE {temporary}; ")) }
    }

    /// The statement of `merge`, where rows go by a temporary table.
    pub(super) async fn merging(&self, connection: &mut Connection) -> Result<Option<Statement>, Failure> {
        Ok(match &self.merge {
            Some(merge) => Some(connection.statement(merge).await.doing(WRITING)?),
            None => None,
        })
    }
}

/// The last row of each key decides: it is inserted, replaces what is there, or deletes it.
fn merge(target: &Target, names: &[&String], columns: &str, temporary: &str) -> String {
    let key: Vec<&String> = target.key.iter().map(|&index| target.schema.field(index).name()).collect();
    let (keys, table) = (list(key.iter().copied()), &target.table);
    let sets: Vec<String> = names
        .iter()
        .filter(|name| !key.contains(name))
        .map(|name| format!("{0} = excluded.{0}", quoted(name)))
        .collect();
    let action = if sets.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {}", sets.join(", ")) };
    let last = format!(
        "last AS MATERIALIZED (SELECT DISTINCT ON ({keys}) * FROM {temporary} WHERE {ROW} >= $1 AND {ROW} < $2 \
         ORDER BY {keys}, {ROW} DESC)"
    );
    let gone = target.flag.map(|_| {
        let same: Vec<String> = key.iter().map(|name| format!("t.{0} = l.{0}", quoted(name))).collect();
        format!(", gone AS (DELETE FROM {table} t USING last l WHERE l.{DELETES} AND {})", same.join(" AND "))
    });
    format!(
        "WITH {last}{} INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM last WHERE NOT {DELETES} ORDER BY {keys} \
         ON CONFLICT ({keys}) DO {action}",
        gone.unwrap_or_default()
    )
}

/// The savepoint after rows that were written.
const GO_ON: &str = "RELEASE SAVEPOINT rows; SAVEPOINT rows";

/// A part of the rows that is still to be written.
struct Part {
    range: Range<usize>,
    /// The right half of a range that was refused, and how many rows the server had refused before its left half: where
    /// these are as many when its turn comes, the left half was clean, and this one cannot be.
    right: Option<usize>,
}

/// Writes all rows in order, in the transaction that is open; returns those that were refused, and counts in `moved` how
/// often it got on. Fails only where the batch as a whole cannot go on.
pub(super) async fn write(
    connection: &mut Connection,
    target: &Target,
    writer: &Writer,
    rows: &Rows<'_>,
    moved: &AtomicU64,
) -> Result<Vec<Rejected>, Failure> {
    let mut rejected = Vec::new();
    let mut refused: Vec<usize> = Vec::new();
    let mut open = vec![Part { range: 0..rows.count, right: None }];
    let mut savepoint = "SAVEPOINT rows";
    while let Some(Part { range, right }) = open.pop() {
        if is_dense(&refused, range.start) {
            let until = range.end.min(range.start + AT_ONCE);
            let these: Vec<usize> = (range.start..until).collect();
            let these = one_by_one::write(connection, target, writer, rows, &these, savepoint, moved).await?;
            savepoint = GO_ON;
            for (row, this) in these {
                refused.push(row);
                rejected.push(this);
            }
            open.extend((until < range.end).then_some(Part { range: until..range.end, right: None }));
            continue;
        }
        let alone = range.len() <= 1;
        let known_bad = right == Some(refused.len());
        if alone || !known_bad {
            let attempted = attempt(connection, target, writer, rows, std::slice::from_ref(&range), savepoint).await;
            moved.fetch_add(1, Ordering::Relaxed);
            match attempted {
                Ok(mut unsent) => {
                    rejected.append(&mut unsent);
                    savepoint = GO_ON;
                    continue;
                }
                Err(failure) => {
                    let refusal = failure.refuses_row()?;
                    savepoint = "ROLLBACK TO SAVEPOINT rows";
                    if alone {
                        refused.push(range.start);
                        rejected.extend(rows.refused(range.start, refusal));
                        continue;
                    }
                }
            }
        }
        let middle = range.start + range.len() / 2;
        open.push(Part { range: middle..range.end, right: Some(refused.len()) });
        open.push(Part { range: range.start..middle, right: None });
    }
    again(connection, target, writer, rows, rejected, savepoint, moved).await
}

/// Tries rows that may have been refused for want of others: together, then alone, now from the first to the last and now the
/// other way round, until none passes. Gives those that are refused for good.
async fn again(
    connection: &mut Connection,
    target: &Target,
    writer: &Writer,
    rows: &Rows<'_>,
    mut rejected: Vec<Rejected>,
    mut savepoint: &str,
    moved: &AtomicU64,
) -> Result<Vec<Rejected>, Failure> {
    let depend: Vec<usize> = rejected.iter().filter(|one| one.depends).map(|one| one.row).collect();
    let mut left = rows.last_of_their_keys(&depend, target);
    while !left.is_empty() {
        let ranges: Vec<Range<usize>> = left.iter().map(|row| *row..row + 1).collect();
        // The merge of an upsert looks through all that is in the temporary table.
        let cleared = format!("{savepoint}; {}", writer.clear.as_deref().unwrap_or_default());
        let together = attempt(connection, target, writer, rows, &ranges, cleared.trim_end_matches([';', ' '])).await;
        moved.fetch_add(1, Ordering::Relaxed);
        match together {
            Ok(_) => {
                let written: HashSet<usize> = left.into_iter().collect();
                rejected.retain(|one| !written.contains(&one.row));
                return Ok(rejected);
            }
            Err(failure) => drop(failure.refuses_row()?),
        }
        savepoint = "ROLLBACK TO SAVEPOINT rows";
        let mut before = left.len();
        for backward in [false, true] {
            if backward {
                if left.len() == before {
                    return Ok(rejected);
                }
                before = left.len();
                left.reverse();
            }
            let mut refused = Vec::new();
            for some in left.chunks(AT_ONCE) {
                refused.extend(one_by_one::write(connection, target, writer, rows, some, savepoint, moved).await?);
                savepoint = GO_ON;
            }
            // What the server has against them now that others are there.
            let mut now: HashMap<usize, Rejected> = refused.into_iter().collect();
            let tried: HashSet<usize> = left.iter().copied().collect();
            left.retain(|row| now.get(row).is_some_and(|one| one.depends));
            rejected = rejected
                .into_iter()
                .filter_map(|one| if tried.contains(&one.row) { now.remove(&one.row) } else { Some(one) })
                .collect();
        }
        left.sort_unstable();
        if left.len() == before {
            break;
        }
    }
    if savepoint.starts_with("ROLLBACK") {
        connection.client.batch_execute(savepoint).await.doing(WRITING)?;
    }
    Ok(rejected)
}

/// Writes ranges of rows, which are in order; gives those that could not be sent.
async fn attempt(
    connection: &mut Connection,
    target: &Target,
    writer: &Writer,
    rows: &Rows<'_>,
    ranges: &[Range<usize>],
    savepoint: &str,
) -> Result<Vec<Rejected>, Failure> {
    let copy = connection.statement(&writer.copy).await.doing(WRITING)?;
    let merge = writer.merging(connection).await?;
    // Sent together: one way to the server and back for both.
    let (set, sink) =
        futures::join!(connection.client.batch_execute(savepoint), connection.client.copy_in::<_, Bytes>(&copy));
    set.doing(WRITING)?;
    let unsent = send(sink.doing(WRITING)?, target, rows, ranges).await?;
    if let (Some(merge), [first, ..], [.., last]) = (merge, ranges, ranges) {
        let range = [first.start as i64, last.end as i64];
        connection.client.execute(&merge, &[&range[0], &range[1]]).await.doing(WRITING)?;
    }
    Ok(unsent)
}

async fn send(
    sink: CopyInSink<Bytes>,
    target: &Target,
    rows: &Rows<'_>,
    ranges: &[Range<usize>],
) -> Result<Vec<Rejected>, Failure> {
    let mut sink = pin!(sink);
    let mut unsent = Vec::new();
    let buffer = || Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 8);
    let mut out = buffer();
    out.extend_from_slice(HEADER);
    for range in ranges {
        let mut next = range.start;
        while let Some((piece, from)) = rows.at(next).filter(|_| next < range.end) {
            let until = piece.batch.num_rows().min(range.end - piece.first);
            for row in from..until {
                let begun = out.len();
                if let Err((reason, why)) = piece.write(target, row, piece.first + row, &mut out) {
                    out.truncate(begun);
                    unsent.extend(rows.rejected(piece.first + row, reason, why));
                }
                if out.len() >= CHUNK_BYTES {
                    sink.feed(Bytes::from(std::mem::replace(&mut out, buffer()))).await.doing(WRITING)?;
                }
            }
            next = piece.first + until;
        }
    }
    pass("postgres.in-copy").doing(WRITING)?;
    out.extend_from_slice(&END.to_be_bytes());
    sink.feed(Bytes::from(out)).await.doing(WRITING)?;
    sink.finish().await.doing(WRITING)?;
    Ok(unsent)
}
