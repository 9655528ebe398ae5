//! What is asked of a database: rows between two keys, in the order of the key. Values stand in the text of the query, each
//! written by a rule of its own, so that the three kinds of database need no more than that text.

use std::time::Duration;

use tidemill_checkpoint::{Position, position::KeyPart};

/// The values of a row's `order_by` columns.
pub(super) type Key = Vec<KeyPart>;

/// How a database writes SQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
    Mysql,
}

/// What a column of the order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Number,
    Text,
    Uuid,
    Date,
    /// With a zone it is a point of time, without one it is taken as UTC.
    Instant {
        zone: bool,
    },
    /// SQLite: each value has a type of its own.
    Any,
}

/// A boundary: before or behind the rows with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) key: Key,
    pub(super) behind: bool,
}

/// Which rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Range {
    /// `None`: from the first.
    pub(super) from: Option<Edge>,
    /// `None`: up to the last that has settled.
    pub(super) to: Option<Edge>,
    pub(super) limit: Option<usize>,
    /// Reading ends with the row that goes beyond so many bytes; two rows are read at least. `None`: all of the range.
    pub(super) bytes: Option<usize>,
}

/// Where a lane stands that has read nothing.
pub(super) fn beginning() -> Position {
    Position::number(0)
}

impl Edge {
    pub(super) fn behind(key: Key) -> Self {
        Self { key, behind: true }
    }
}

/// What is read, and by what.
#[derive(Clone, Debug)]
pub(super) struct Select {
    pub(super) dialect: Dialect,
    /// A quoted table, or a query between parentheses.
    pub(super) from: String,
    pub(super) order: Vec<(String, Kind)>,
    pub(super) settle: Duration,
}

impl Dialect {
    pub(super) fn name(self, name: &str) -> String {
        match self {
            Self::Mysql => format!("`{}`", name.replace('`', "``")),
            _ => format!("\"{}\"", name.replace('"', "\"\"")),
        }
    }

    fn text(self, text: &str) -> String {
        if self == Self::Mysql {
            let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
            return format!("x'{hex}'");
        }
        format!("'{}'", text.replace('\'', "''"))
    }

    /// `None`: a column of this kind has no such value.
    fn literal(self, kind: Kind, part: &KeyPart) -> Option<String> {
        Some(match (kind, part) {
            (Kind::Number | Kind::Any, KeyPart::Number(number)) => number.to_string(),
            (Kind::Text | Kind::Any, KeyPart::Text(text)) => self.text(text),
            (Kind::Uuid, KeyPart::Text(text)) => format!("{}::uuid", self.text(text)),
            (Kind::Date, KeyPart::Number(day)) => {
                format!("DATE '{:04}-{:02}-{:02}'", day / 10_000, day / 100 % 100, day % 100)
            }
            (Kind::Instant { zone }, KeyPart::Instant { second, micro }) => {
                let (day, time) = (second / 1_000_000, second % 1_000_000);
                let (kind, utc) = match (self, zone) {
                    (Self::Postgres, true) => ("TIMESTAMPTZ", "+00"),
                    _ => ("TIMESTAMP", ""),
                };
                format!(
                    "{kind} '{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{micro:06}{utc}'",
                    day / 10_000,
                    day / 100 % 100,
                    day % 100,
                    time / 10_000,
                    time / 100 % 100,
                    time % 100
                )
            }
            _ => return None,
        })
    }
}

impl Select {
    /// A column of the order as it is compared: texts by their bytes, as positions are.
    fn compared(&self, column: &(String, Kind)) -> String {
        let name = format!("r.{}", self.dialect.name(&column.0));
        match (self.dialect, column.1) {
            (Dialect::Sqlite, _) => format!("{name} COLLATE BINARY"),
            (Dialect::Postgres, Kind::Text) => format!("{name} COLLATE \"C\""),
            // Its collations, utf8mb4_bin too, fill up with spaces: 'a ' would be 'a', and a tab come before nothing.
            (Dialect::Mysql, Kind::Text) => format!("CAST(CONVERT({name} USING utf8mb4) AS BINARY)"),
            _ => name,
        }
    }

    /// The columns of the order as texts that [`part`] reads; SQLite's as they are.
    pub(super) fn keys(&self) -> String {
        self.each_key().join(", ")
    }

    /// The same, one by one.
    pub(super) fn each_key(&self) -> Vec<String> {
        let text = |(name, kind): &(String, Kind)| {
            let name = format!("r.{}", self.dialect.name(name));
            match (self.dialect, kind) {
                (Dialect::Sqlite, _) | (Dialect::Mysql, Kind::Text) => name,
                (Dialect::Postgres, Kind::Date) => common(&name, &format!("to_char({name}, 'YYYYMMDD')")),
                (Dialect::Postgres, Kind::Instant { zone: false }) => {
                    common(&name, &format!("to_char({name}, 'YYYYMMDDHH24MISSUS')"))
                }
                (Dialect::Postgres, Kind::Instant { zone: true }) => {
                    common(&name, &format!("to_char({name} AT TIME ZONE 'UTC', 'YYYYMMDDHH24MISSUS')"))
                }
                (Dialect::Postgres, _) => format!("{name}::text"),
                (Dialect::Mysql, Kind::Date) => format!("DATE_FORMAT({name}, '%Y%m%d')"),
                (Dialect::Mysql, Kind::Instant { .. }) => format!("DATE_FORMAT({name}, '%Y%m%d%H%i%s%f')"),
                (Dialect::Mysql, _) => format!("CAST({name} AS CHAR)"),
            }
        };
        self.order.iter().map(text).collect()
    }

    /// The condition for keys on one side of an edge. A pair is written so that an index over it is used: MySQL uses none
    /// for `(a, b) > (x, y)`.
    fn side(&self, edge: &Edge, above: bool) -> Result<String, String> {
        let literal = |(column, part): (&(String, Kind), &KeyPart)| {
            self.dialect.literal(column.1, part).map(|value| (self.compared(column), value))
        };
        let pairs: Option<Vec<(String, String)>> = self.order.iter().zip(&edge.key).map(literal).collect();
        let pairs = pairs.filter(|pairs| pairs.len() == self.order.len() && edge.key.len() == pairs.len());
        let (strict, last) = match (above, edge.behind) {
            (true, true) => (">", ">"),
            (true, false) => (">", ">="),
            (false, true) => ("<", "<="),
            (false, false) => ("<", "<"),
        };
        match pairs.as_deref() {
            Some([(a, x)]) => Ok(format!("{a} {last} {x}")),
            Some([(a, x), (b, y)]) => Ok(format!("{a} {strict}= {x} AND ({a} {strict} {x} OR {b} {last} {y})")),
            _ => Err(format!("{} is no value of `order_by`: was `order_by` changed?", Position::key(&edge.key))),
        }
    }

    fn filter(&self, range: &Range) -> Result<String, String> {
        let mut parts: Vec<String> =
            self.order.iter().map(|column| format!("r.{} IS NOT NULL", self.dialect.name(&column.0))).collect();
        if let Some(from) = &range.from {
            parts.push(self.side(from, true)?);
        }
        match &range.to {
            // What was planned had settled.
            Some(to) => parts.push(self.side(to, false)?),
            None => parts.extend(self.settled()),
        }
        Ok(parts.join(" AND "))
    }

    fn settled(&self) -> Option<String> {
        let (column, micros) = (self.order.first()?, self.settle.as_micros());
        if micros == 0 {
            return None;
        }
        let name = self.compared(column);
        Some(match (self.dialect, column.1) {
            (Dialect::Mysql, _) => format!("{name} <= UTC_TIMESTAMP(6) - INTERVAL {micros} MICROSECOND"),
            (_, Kind::Instant { zone: true }) => format!("{name} <= now() - interval '{micros} microseconds'"),
            _ => format!("{name} <= (now() AT TIME ZONE 'UTC') - interval '{micros} microseconds'"),
        })
    }

    fn ordered(&self, direction: &str) -> String {
        self.order.iter().map(|column| self.compared(column) + direction).collect::<Vec<_>>().join(", ")
    }

    /// The query for these expressions of rows.
    pub(super) fn rows(&self, expressions: &str, range: &Range) -> Result<String, String> {
        let (filter, order) = (self.filter(range)?, self.ordered(""));
        let limit = range.limit.map_or_else(String::new, |limit| format!(" LIMIT {limit}"));
        Ok(format!("SELECT {expressions} FROM {} AS r WHERE {filter} ORDER BY {order}{limit}", self.from))
    }

    /// The query for the last key.
    pub(super) fn last(&self) -> Result<String, String> {
        let (keys, filter, order) = (self.keys(), self.filter(&Range::default())?, self.ordered(" DESC"));
        Ok(format!("SELECT {keys} FROM {} AS r WHERE {filter} ORDER BY {order} LIMIT 1", self.from))
    }

    /// The key's values from their texts.
    pub(super) fn key<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> Result<Key, String> {
        let parts = self.order.iter().zip(texts).map(|((name, kind), text)| {
            part(*kind, text).ok_or_else(|| {
                format!("column `{name}` of `order_by` has the value {text}: numbers must be whole and from 0, years have four digits")
            })
        });
        parts.collect()
    }
}

/// A time of PostgreSQL as `written`; infinity, of which `to_char` makes nothing, and years before the first, which it
/// writes without their BC, as the server shows them.
pub(super) fn common(name: &str, written: &str) -> String {
    format!("CASE WHEN isfinite({name}) AND {name} >= '0001-01-01' THEN {written} ELSE {name}::text END")
}

fn part(kind: Kind, text: &str) -> Option<KeyPart> {
    let digits = |length: usize| text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit());
    match kind {
        Kind::Text | Kind::Uuid => Some(KeyPart::Text(text.to_owned())),
        Kind::Number | Kind::Any => {
            // A decimal without a fraction: 42, or 42.00.
            let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
            fraction.bytes().all(|byte| byte == b'0').then(|| whole.parse().ok().map(KeyPart::Number))?
        }
        Kind::Date => digits(8).then(|| text.parse().ok().map(KeyPart::Number))?,
        Kind::Instant { .. } => {
            let (second, micro) = digits(20).then(|| text.split_at(14))?;
            Some(KeyPart::Instant { second: second.parse().ok()?, micro: micro.parse().ok()? })
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn select(dialect: Dialect, kinds: &[(&str, Kind)]) -> Select {
        let order = kinds.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
        Select { dialect, from: "t".into(), order, settle: Duration::ZERO }
    }

    #[test]
    fn a_pair_is_asked_for_so_that_an_index_helps() {
        let at = Kind::Instant { zone: true };
        let pair = select(Dialect::Postgres, &[("at", at), ("id", Kind::Number)]);
        let key = pair.key(["20150517100503000001", "42"]).unwrap();
        let range = Range { from: Some(Edge::behind(key.clone())), to: None, limit: Some(3), bytes: None };
        let x = "TIMESTAMPTZ '2015-05-17 10:05:03.000001+00'";
        assert_eq!(
            pair.rows("r.id", &range).unwrap(),
            format!(
                "SELECT r.id FROM t AS r WHERE r.\"at\" IS NOT NULL AND r.\"id\" IS NOT NULL \
                 AND r.\"at\" >= {x} AND (r.\"at\" > {x} OR r.\"id\" > 42) ORDER BY r.\"at\", r.\"id\" LIMIT 3"
            )
        );
        let range = Range { to: Some(Edge { key, behind: true }), ..Range::default() };
        let until = format!("r.\"at\" <= {x} AND (r.\"at\" < {x} OR r.\"id\" <= 42)");
        assert!(pair.rows("r.id", &range).unwrap().contains(&until));
        let other = Range { from: Some(Edge::behind(vec![KeyPart::Number(1)])), ..Range::default() };
        assert!(pair.rows("r.id", &other).unwrap_err().contains("was `order_by` changed?"));
    }

    #[test]
    fn texts_are_compared_by_their_bytes_and_written_safely() {
        let tricky = vec![KeyPart::Text("it's \\".into())];
        let range = Range { from: Some(Edge::behind(tricky)), ..Range::default() };
        for (dialect, wanted) in [
            (Dialect::Sqlite, "r.\"a\" COLLATE BINARY > 'it''s \\'"),
            (Dialect::Postgres, "r.\"a\" COLLATE \"C\" > 'it''s \\'"),
            (Dialect::Mysql, "CAST(CONVERT(r.`a` USING utf8mb4) AS BINARY) > x'69742773205c'"),
        ] {
            let sql = select(dialect, &[("a", Kind::Text)]).rows("*", &range).unwrap();
            assert!(sql.contains(wanted), "{sql}");
        }
    }

    #[test]
    fn values_that_have_no_order_as_positions_are_refused() {
        for (kind, text) in [
            (Kind::Number, "-1"),
            (Kind::Number, "1.5"),
            (Kind::Date, "120150517"),
            (Kind::Instant { zone: false }, "infinity"),
        ] {
            assert!(part(kind, text).is_none(), "{text}");
        }
        assert_eq!(part(Kind::Number, "42.00"), Some(KeyPart::Number(42)));
    }
}
