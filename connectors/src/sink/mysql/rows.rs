//! Rows of record batches as statements of bounded size; what the server refuses becomes a reject, found by halving.
//!
//! The server checks foreign keys row by row, so that a row may come before the one that it refers to. What was refused for
//! want of another row is tried again once the rest is written.

use std::{
    collections::{HashMap, HashSet},
    io::Write as _,
    ops::Range,
    sync::Arc,
};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
        StringViewArray,
    },
    datatypes::{
        DataType, Date32Type, Decimal128Type, Field, Float32Type, Int8Type, Int16Type, TimeUnit,
        TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type,
        UInt16Type, UInt32Type, UInt64Type,
    },
};
use chrono::{DateTime, Utc};
use serde_json::Value as Json;
use tidemill_checkpoint::Permit;

use super::{
    database::{Failure, Session},
    table::{Members, Table, quoted},
};
use crate::sink::{SinkReject, cell, dense::is_dense};

/// Text of rows in one statement.
const STATEMENT_BYTES: usize = 1 << 20;
/// What a reject has besides its record, at most: keys, a sentence of the server.
const REJECT_BYTES: usize = 16 << 10;
/// Characters that are kept of a record that is too long.
const BEGINNING: usize = 1_000;
/// Keys in one delete: the server plans each as a range of its own.
const STATEMENT_KEYS: usize = 500;

/// A column, looked up once per batch instead of once per cell.
struct Column<'a> {
    cells: Cells<'a>,
    /// The values of an ENUM or SET.
    members: Option<&'a [String]>,
}

enum Cells<'a> {
    Text(&'a StringArray),
    View(&'a StringViewArray),
    Int32(&'a Int32Array),
    Int64(&'a Int64Array),
    Float64(&'a Float64Array),
    Boolean(&'a BooleanArray),
    Other(&'a ArrayRef),
}

impl<'a> Column<'a> {
    fn new(array: &'a ArrayRef, members: Option<&'a [String]>) -> Self {
        Self { cells: Cells::new(array), members }
    }

    /// Appends the cell as a literal. `false`: the server has no such value.
    fn write(&self, out: &mut Vec<u8>, row: usize) -> bool {
        !self.is_place(row) && self.cells.write(out, row)
    }

    /// Whether the cell is a number that an ENUM or SET would take for the place of a value, since it is none itself.
    fn is_place(&self, row: usize) -> bool {
        let Some((members, text)) = self.members.zip(self.cells.text(row)) else { return false };
        let digits = text.trim().trim_start_matches(['+', '-']);
        let is_number = !digits.is_empty() && digits.bytes().all(|one| one.is_ascii_digit());
        is_number && !members.iter().any(|member| member == text)
    }
}

impl<'a> Cells<'a> {
    fn new(array: &'a ArrayRef) -> Self {
        match array.data_type() {
            DataType::Utf8 => Self::Text(array.as_string()),
            DataType::Utf8View => Self::View(array.as_string_view()),
            DataType::Int32 => Self::Int32(array.as_primitive()),
            DataType::Int64 => Self::Int64(array.as_primitive()),
            DataType::Float64 => Self::Float64(array.as_primitive()),
            DataType::Boolean => Self::Boolean(array.as_boolean()),
            _ => Self::Other(array),
        }
    }

    fn text(&self, row: usize) -> Option<&'a str> {
        match self {
            Self::Text(array) if array.is_valid(row) => Some(array.value(row)),
            Self::View(array) if array.is_valid(row) => Some(array.value(row)),
            _ => None,
        }
    }

    /// See [`Column::write`].
    fn write(&self, out: &mut Vec<u8>, row: usize) -> bool {
        match self {
            Self::Text(array) if array.is_valid(row) => text(out, array.value(row)),
            Self::View(array) if array.is_valid(row) => text(out, array.value(row)),
            Self::Int32(array) if array.is_valid(row) => shown(out, array.value(row)),
            Self::Int64(array) if array.is_valid(row) => shown(out, array.value(row)),
            Self::Float64(array) if array.is_valid(row) => return float(out, array.value(row)),
            Self::Boolean(array) if array.is_valid(row) => shown(out, u8::from(array.value(row))),
            Self::Other(array) if array.is_valid(row) => return other(out, array, row),
            _ => out.extend_from_slice(b"NULL"),
        }
        true
    }
}

/// A text between quotes, whatever the session's mode makes of a backslash: one that has any goes by its bytes.
fn text(out: &mut Vec<u8>, value: &str) {
    if value.contains('\\') {
        out.extend_from_slice(b"_utf8mb4 ");
        return bytes(out, value.as_bytes());
    }
    out.push(b'\'');
    let mut rest = value.as_bytes();
    while let Some(at) = memchr::memchr(b'\'', rest) {
        let (before, after) = rest.split_at(at + 1);
        out.extend_from_slice(before);
        out.push(b'\'');
        rest = after;
    }
    out.extend_from_slice(rest);
    out.push(b'\'');
}

fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"x'");
    out.extend(value.iter().flat_map(|byte| [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]));
    out.push(b'\'');
}

/// A value whose own text is its literal.
fn shown(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    // Writing to memory does not fail.
    let _ = write!(out, "{value}");
}

/// With an exponent it is a double to the server, and without a decimal number.
fn float(out: &mut Vec<u8>, value: f64) -> bool {
    let _ = write!(out, "{value:e}");
    value.is_finite()
}

fn timestamp(array: &ArrayRef, row: usize, unit: TimeUnit) -> Option<DateTime<Utc>> {
    match unit {
        TimeUnit::Second => DateTime::from_timestamp(array.as_primitive::<TimestampSecondType>().value(row), 0),
        TimeUnit::Millisecond => {
            DateTime::from_timestamp_millis(array.as_primitive::<TimestampMillisecondType>().value(row))
        }
        TimeUnit::Microsecond => {
            DateTime::from_timestamp_micros(array.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        TimeUnit::Nanosecond => {
            Some(DateTime::from_timestamp_nanos(array.as_primitive::<TimestampNanosecondType>().value(row)))
        }
    }
}

fn other(out: &mut Vec<u8>, array: &ArrayRef, row: usize) -> bool {
    match array.data_type() {
        DataType::LargeUtf8 => text(out, array.as_string::<i64>().value(row)),
        DataType::Binary => bytes(out, array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => bytes(out, array.as_binary::<i64>().value(row)),
        DataType::BinaryView => bytes(out, array.as_binary_view().value(row)),
        DataType::Float32 => return float(out, array.as_primitive::<Float32Type>().value(row).into()),
        DataType::Int8 => shown(out, array.as_primitive::<Int8Type>().value(row)),
        DataType::Int16 => shown(out, array.as_primitive::<Int16Type>().value(row)),
        DataType::UInt8 => shown(out, array.as_primitive::<UInt8Type>().value(row)),
        DataType::UInt16 => shown(out, array.as_primitive::<UInt16Type>().value(row)),
        DataType::UInt32 => shown(out, array.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt64 => shown(out, array.as_primitive::<UInt64Type>().value(row)),
        DataType::Decimal128(..) => shown(out, array.as_primitive::<Decimal128Type>().value_as_string(row)),
        DataType::Timestamp(unit, _) => match timestamp(array, row, *unit) {
            Some(at) => shown(out, at.format("'%Y-%m-%d %H:%M:%S%.6f'")),
            None => return false,
        },
        DataType::Date32 => match cell::date_text(array.as_primitive::<Date32Type>().value(row)) {
            Some(date) => text(out, &date),
            None => return false,
        },
        _ => text(out, &cell::text(array, row)),
    }
    true
}

/// Rows of one statement, which may also be sent in parts.
struct Chunk {
    before: Arc<str>,
    between: &'static str,
    after: Arc<str>,
    text: Vec<u8>,
    /// Where each row begins in `text`, and where the last one ends.
    starts: Vec<usize>,
    /// Each row's batch, and its index there.
    rows: Vec<(usize, usize)>,
}

impl Chunk {
    fn new(before: &Arc<str>, between: &'static str, after: &Arc<str>) -> Self {
        let (before, after) = (before.clone(), after.clone());
        Self { before, between, after, text: Vec::new(), starts: vec![0], rows: Vec::new() }
    }

    fn statement(&self, rows: &Range<usize>) -> Vec<u8> {
        // What stands between two rows belongs to the second.
        let begin = self.starts[rows.start] + if rows.start > 0 { self.between.len() } else { 0 };
        [self.before.as_bytes(), &self.text[begin..self.starts[rows.end]], self.after.as_bytes()].concat()
    }
}

/// Why a row is no row of the table: a short word, and a sentence.
type Refusal = (&'static str, String);

/// A row that the server refused, and that may pass once other rows are there, or gone.
struct Dependent<'a> {
    chunk: &'a Chunk,
    /// Its place in the chunk.
    row: usize,
    refusal: Refusal,
}

/// What is committed: statements in the order of the rows, and rows that no statement can hold.
pub(super) struct Rows {
    /// The key of an upsert.
    key: Vec<String>,
    batches: Vec<RecordBatch>,
    chunks: Vec<Chunk>,
    refused: Vec<((usize, usize), Refusal)>,
}

impl Rows {
    pub(super) fn count(&self) -> u64 {
        self.batches.iter().map(|batch| batch.num_rows() as u64).sum()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.text.len() as u64).sum()
    }

    /// Writes the batches' rows as text. Consecutive rows that are stored share statements, and so do those that delete:
    /// the order is the batch's, so that the last row of a key wins.
    pub(super) fn new(table: &Table, members: &Members, batches: Vec<RecordBatch>) -> Self {
        let (mut chunks, mut refused) = (Vec::new(), Vec::new());
        for (index, batch) in batches.iter().enumerate().filter(|(_, batch)| batch.num_rows() > 0) {
            Text::new(table, members, batch).write(index, &mut chunks, &mut refused);
        }
        Self { key: table.key.clone(), batches, chunks, refused }
    }

    /// Parts rows from those that a later row of the same key stands for: the last row of a key has to win, so that none is
    /// written after it. Texts are compared as the most forgiving collation would.
    fn last_of_their_keys<'a>(&self, rows: Vec<Dependent<'a>>) -> (Vec<Dependent<'a>>, Vec<Dependent<'a>>) {
        if rows.is_empty() || self.key.is_empty() {
            return (rows, Vec::new());
        }
        let key_of = |(batch, row): (usize, usize)| {
            let batch = &self.batches[batch];
            let columns = self.key.iter().filter_map(|name| batch.column_by_name(name));
            columns.map(|column| cell::text(column, row).trim_end().to_lowercase()).collect::<Vec<String>>()
        };
        let at = |row: &Dependent<'_>| row.chunk.rows[row.row];
        let wanted: HashSet<Vec<String>> = rows.iter().map(|row| key_of(at(row))).collect();
        let all =
            self.batches.iter().enumerate().flat_map(|(at, batch)| (0..batch.num_rows()).map(move |row| (at, row)));
        let keys = all.map(|at| (key_of(at), at)).filter(|(key, _)| wanted.contains(key));
        let last: HashMap<Vec<String>, (usize, usize)> = keys.collect();
        rows.into_iter().partition(|row| last.get(&key_of(at(row))) == Some(&at(row)))
    }

    /// Sends all rows in order; returns those that the table refuses, in order too. Fails only where the batch as a whole
    /// cannot go on. A statement that fails has changed nothing, and the transaction goes on.
    pub(super) async fn write(&self, session: &mut Session, permit: &Permit) -> Result<Vec<SinkReject>, Failure> {
        let mut refused: Vec<((usize, usize), Refusal)> = self.refused.clone();
        let mut dependent: Vec<Dependent<'_>> = Vec::new();
        for chunk in &self.chunks {
            let mut halves = Halves::new(chunk.rows.len());
            while let Some(rows) = halves.next() {
                let Some(refusal) = send(session, &chunk.statement(&rows)).await? else { continue };
                let Some(row) = halves.refused(rows) else { continue };
                match refusal.depends {
                    true => dependent.push(Dependent { chunk, row, refusal: refusal.said }),
                    false => refused.push((chunk.rows[row], refusal.said)),
                }
            }
        }
        let (last, superseded) = self.last_of_their_keys(dependent);
        let dependent = again(session, last).await?;
        let of = |row: Dependent<'_>| (row.chunk.rows[row.row], row.refusal);
        refused.extend(dependent.into_iter().chain(superseded).map(of));
        refused.sort_by_key(|(at, _)| *at);
        let room = session.max_statement.saturating_sub(REJECT_BYTES);
        let plan = &permit.mark().plan;
        let firsts: Vec<u64> = self
            .batches
            .iter()
            .scan(0, |before, batch| Some(std::mem::replace(before, *before + batch.num_rows() as u64)))
            .collect();
        let reject = |((batch, row), (reason, detail)): ((usize, usize), Refusal)| SinkReject {
            number: 0,
            seq: plan.seq,
            input: permit.input(),
            row: firsts[batch] + row as u64,
            reason: reason.into(),
            detail,
            record: kept(Json::Object(cell::record(&self.batches[batch], row)).to_string(), room),
        };
        Ok(refused.into_iter().map(reject).collect())
    }
}

/// Tries rows that may have been refused for want of others, from the first to the last, as often as one passes. Gives those
/// that are refused for good. The server looks at each row of a statement by itself, so that none has to go with others.
async fn again<'a>(session: &mut Session, mut left: Vec<Dependent<'a>>) -> Result<Vec<Dependent<'a>>, Failure> {
    loop {
        let before = left.len();
        let mut refused = Vec::new();
        for row in left {
            if let Some(refusal) = send(session, &row.chunk.statement(&(row.row..row.row + 1))).await? {
                refused.push(Dependent { refusal: refusal.said, ..row });
            }
        }
        // The other way round next: a chain of rows whose last one is first is done in one go.
        refused.reverse();
        left = refused;
        if left.is_empty() || left.len() == before {
            return Ok(left);
        }
    }
}

/// A batch while it becomes text.
struct Text<'a> {
    columns: Vec<Column<'a>>,
    keys: Vec<(String, &'a ArrayRef)>,
    deletes: Option<&'a BooleanArray>,
    insert: Chunk,
    delete: Chunk,
    rows: usize,
}

impl<'a> Text<'a> {
    fn new(table: &Table, members: &'a Members, batch: &'a RecordBatch) -> Self {
        let schema = batch.schema_ref();
        let nothing: Arc<str> = "".into();
        let named = |name: &String| Some((quoted(name), batch.column_by_name(name)?));
        let column = |field: &Field| {
            let members = members.get(&field.name().to_lowercase()).map(Vec::as_slice);
            Some(Column::new(batch.column_by_name(field.name())?, members))
        };
        Self {
            columns: table.stored(schema).filter_map(column).collect(),
            keys: table.key.iter().filter_map(named).collect(),
            deletes: table.delete_when.as_ref().and_then(|name| batch.column_by_name(name)?.as_boolean_opt()),
            insert: Chunk::new(&table.insert(schema).into(), ", ", &table.update(schema).into()),
            delete: Chunk::new(&table.delete().into(), " OR ", &nothing),
            rows: batch.num_rows(),
        }
    }

    fn write(&self, batch: usize, chunks: &mut Vec<Chunk>, refused: &mut Vec<((usize, usize), Refusal)>) {
        let mut open: Option<(bool, Chunk)> = None;
        for row in 0..self.rows {
            if self.keys.iter().any(|(_, key)| key.is_null(row)) {
                refused.push(((batch, row), ("null_key", "a key column of the upsert is null".to_owned())));
                continue;
            }
            let deletes = self.deletes.is_some_and(|flags| flags.is_valid(row) && flags.value(row));
            let full = |(of, chunk): &(bool, Chunk)| {
                *of != deletes || chunk.text.len() >= STATEMENT_BYTES || deletes && chunk.rows.len() >= STATEMENT_KEYS
            };
            if open.as_ref().is_some_and(full) {
                chunks.extend(open.take().map(|(_, chunk)| chunk));
            }
            let (_, chunk) = open.get_or_insert_with(|| {
                let of = if deletes { &self.delete } else { &self.insert };
                (deletes, Chunk::new(&of.before, of.between, &of.after))
            });
            let before = chunk.text.len();
            if before > 0 {
                chunk.text.extend_from_slice(chunk.between.as_bytes());
            }
            if if deletes { self.key(&mut chunk.text, row) } else { self.row(&mut chunk.text, row) } {
                chunk.starts.push(chunk.text.len());
                chunk.rows.push((batch, row));
            } else {
                chunk.text.truncate(before);
                let (reason, detail) = match self.columns.iter().any(|column| column.is_place(row)) {
                    true => ("type", "a number that is none of the values of an ENUM or SET column"),
                    false => ("out_of_range", "a number that is not finite, or a time that has no year of four digits"),
                };
                refused.push(((batch, row), (reason, detail.to_owned())));
            }
        }
        chunks.extend(open.map(|(_, chunk)| chunk).filter(|chunk| !chunk.rows.is_empty()));
    }

    fn row(&self, out: &mut Vec<u8>, row: usize) -> bool {
        out.push(b'(');
        for (index, column) in self.columns.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            if !column.write(out, row) {
                return false;
            }
        }
        out.push(b')');
        true
    }

    fn key(&self, out: &mut Vec<u8>, row: usize) -> bool {
        for (index, (name, array)) in self.keys.iter().enumerate() {
            out.extend_from_slice(if index > 0 { b" AND " } else { b"(" });
            out.extend_from_slice(name.as_bytes());
            out.push(b'=');
            if !Cells::new(array).write(out, row) {
                return false;
            }
        }
        out.push(b')');
        true
    }
}

/// The record as it is kept with its reject: as a row that is too long for a statement it would be too long for one again,
/// and the batch never end.
fn kept(record: String, room: usize) -> String {
    if record.len() <= room {
        return record;
    }
    let begins: String = record.chars().take(BEGINNING).collect();
    serde_json::json!({ "too_big": { "bytes": record.len(), "begins": begins } }).to_string()
}

/// Which rows are sent next, so that one refused row of many is found in about twice their logarithm of statements. Where
/// many of the last rows were refused, the next one comes alone.
struct Halves {
    open: Vec<Range<usize>>,
    refused: Vec<usize>,
}

impl Halves {
    fn new(rows: usize) -> Self {
        Self { open: (rows > 0).then_some(0..rows).into_iter().collect(), refused: Vec::new() }
    }

    fn next(&mut self) -> Option<Range<usize>> {
        let rows = self.open.pop()?;
        if rows.len() == 1 || !is_dense(&self.refused, rows.start) {
            return Some(rows);
        }
        self.open.push(rows.start + 1..rows.end);
        Some(rows.start..rows.start + 1)
    }

    /// These rows were refused: they are sent again in two halves, the first one first. `Some`: it is this one row.
    fn refused(&mut self, rows: Range<usize>) -> Option<usize> {
        if rows.len() == 1 {
            self.refused.push(rows.start);
            return Some(rows.start);
        }
        let middle = rows.start + rows.len() / 2;
        self.open.push(middle..rows.end);
        self.open.push(rows.start..middle);
        None
    }
}

/// Sends a statement; what the server has against its rows.
async fn send(session: &mut Session, statement: &[u8]) -> Result<Option<Refused>, Failure> {
    if statement.len() > session.max_statement {
        let limit = session.max_statement;
        let said = format!("the row is longer than the server's max_allowed_packet ({limit} bytes)");
        return Ok(Some(Refused { said: ("too_big", said), depends: false }));
    }
    match session.run("writing rows to", statement).await {
        Ok(_) => Ok(None),
        Err(failure) => {
            match failure.state().and_then(|(state, code)| Some((reason(state, code)?, depends(state, code)))) {
                Some((reason, depends)) => Ok(Some(Refused { said: (reason, failure.said()), depends })),
                None => Err(failure),
            }
        }
    }
}

/// What the server has against the rows of a statement.
struct Refused {
    said: Refusal,
    /// Whether they may pass once other rows are there, or gone.
    depends: bool,
}

/// Foreign keys, from both sides, and what a trigger signals.
fn depends(state: &str, code: u16) -> bool {
    matches!(code, 1216 | 1217 | 1451 | 1452 | 1644) || state.starts_with("45")
}

/// Whether an error is about the values of a row: another row may do. Gives the reason of the reject.
///
/// The class of the SQLSTATE tells it where there is one: 22 is wrong values, 23 broken constraints, and what a trigger
/// signals may have any that is not the server's own. Where the server says no more than HY000 or 42000, its number does.
fn reason(state: &str, code: u16) -> Option<&'static str> {
    let class = state.get(..2)?;
    Some(match (class, code) {
        // A column that is gone, or more of them than values.
        (_, 1052 | 1136) => return None,
        (_, 1264 | 1365 | 1690) | ("22", 1441) => "out_of_range",
        (_, 1406) => "too_long",
        (_, 1118 | 1301 | 1713 | 3157) => "too_big",
        ("22", _) => "type",
        // Values of types without a class, texts of different character sets that cannot be compared, patterns.
        (_, 1139 | 1265..=1267 | 1270 | 1271 | 1292 | 1366 | 1367 | 1411 | 1525 | 3140 | 3685..=3700 | 4038) => "type",
        // Null, without default, foreign keys, checks, views' checks, partitions, SIGNAL of a trigger.
        (_, 1048 | 1364 | 1369 | 1526 | 1643 | 1644 | 1748 | 1761 | 1762 | 1859 | 3819 | 4025) => "constraint",
        // The connection, what the server cannot do, cursors, logins, transactions, rights and names, prepared statements.
        ("08" | "0A" | "24" | "25" | "28" | "2D" | "2F" | "34" | "3D" | "40" | "42" | "70" | "HY" | "S1" | "XA", _) => {
            return None;
        }
        _ => "constraint",
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tidemill_config::OnNewColumn;

    use super::*;

    #[test]
    fn one_bad_row_of_a_hundred_thousand_costs_twice_the_logarithm() {
        const ROWS: usize = 100_000;
        for bad in [0, 1, 50_000, 77_777, ROWS - 1] {
            let (mut halves, mut sent, mut written, mut refused) = (Halves::new(ROWS), 0, Vec::new(), Vec::new());
            while let Some(rows) = halves.next() {
                sent += 1;
                if rows.contains(&bad) {
                    refused.extend(halves.refused(rows));
                } else {
                    written.push(rows);
                }
            }
            assert_eq!(refused, [bad]);
            assert!(sent <= 2 * 17 + 1, "{sent} statements");
            let mut next = 0;
            for rows in written {
                next += usize::from(next == bad);
                assert_eq!(rows.start, next, "in order, each row once");
                next = rows.end;
            }
            assert_eq!(next + usize::from(next == bad), ROWS);
        }
    }

    #[test]
    fn a_part_of_a_chunk_is_a_statement_of_its_rows() {
        let array: ArrayRef = Arc::new(StringArray::from(vec![Some("it's"), None, Some("a\\b"), Some("")]));
        let batch = RecordBatch::try_from_iter_with_nullable([("k", array, true)]).unwrap();
        let table = Table { name: "t".into(), key: Vec::new(), delete_when: None, on_new_column: OnNewColumn::Fail };
        let rows = Rows::new(&table, &Members::new(), vec![batch]);
        let part = |rows_of: Range<usize>| String::from_utf8(rows.chunks[0].statement(&rows_of)).unwrap();
        let before = "INSERT INTO `t` (`k`) VALUES ";
        assert_eq!(part(0..4), format!("{before}('it''s'), (NULL), (_utf8mb4 x'615c62'), ('')"));
        assert_eq!(part(1..2), format!("{before}(NULL)"));
        assert_eq!(part(2..4), format!("{before}(_utf8mb4 x'615c62'), ('')"));
        assert_eq!(part(0..1), format!("{before}('it''s')"));
    }

    #[test]
    fn rows_that_delete_and_rows_that_are_stored_keep_their_order() {
        let keys: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(2), Some(1), None, Some(3)]));
        let gone: ArrayRef = Arc::new(BooleanArray::from(vec![Some(false), None, Some(true), Some(true), Some(true)]));
        let batch = RecordBatch::try_from_iter_with_nullable([("k", keys, true), ("gone", gone, true)]).unwrap();
        let table = Table {
            name: "d.t".into(),
            key: vec!["k".into()],
            delete_when: Some("gone".into()),
            on_new_column: OnNewColumn::Fail,
        };
        let rows = Rows::new(&table, &Members::new(), vec![batch]);
        let all = |chunk: &Chunk| String::from_utf8(chunk.statement(&(0..chunk.rows.len()))).unwrap();
        assert_eq!(
            rows.chunks.iter().map(all).collect::<Vec<_>>(),
            [
                "INSERT INTO `d`.`t` (`k`) VALUES (1), (2) ON DUPLICATE KEY UPDATE `k` = `k`",
                "DELETE FROM `d`.`t` WHERE (`k`=1) OR (`k`=3)",
            ]
        );
        let table = Table { key: vec!["k".into(), "gone".into()], ..table };
        let rows = Rows::new(&table, &Members::new(), rows.batches);
        let two = "DELETE FROM `d`.`t` WHERE (`k`=1 AND `gone`=1) OR (`k`=3 AND `gone`=1)";
        assert_eq!(all(rows.chunks.last().unwrap()), two);
        assert_eq!(rows.refused[0].0, (0, 1), "a part of the key is null");
        assert_eq!(rows.refused[1].0, (0, 3));
        assert_eq!(rows.refused[1].1.0, "null_key");
    }

    /// How many statements it takes where rows of these numbers are refused.
    fn statements(rows: usize, is_bad: impl Fn(usize) -> bool) -> usize {
        let (mut halves, mut statements, mut found) = (Halves::new(rows), 0, Vec::new());
        while let Some(sent) = halves.next() {
            statements += 1;
            if sent.clone().any(&is_bad) {
                found.extend(halves.refused(sent));
            }
        }
        assert_eq!(found, (0..rows).filter(|row| is_bad(*row)).collect::<Vec<_>>());
        statements
    }

    #[test]
    fn one_refused_row_costs_its_halvings_and_many_cost_a_statement_a_row() {
        assert!(statements(100_000, |row| row == 61_803) <= 36);
        assert!(statements(10_000, |row| row % 2 == 1) <= 10_200);
        let some = statements(10_000, |row| (2_000..4_000).contains(&row) && row % 2 == 1);
        assert!(some <= 2_200, "{some}: back to halving where they end");
    }
}
