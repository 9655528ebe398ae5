//! PostgreSQL. Values come as texts, which every type has, and keys go as one array for each column.

use std::{path::Path, time::Duration};

use arrow::{
    array::ArrayRef,
    datatypes::{DataType, TimeUnit},
};
use async_trait::async_trait;
use futures::{StreamExt, pin_mut};
use tokio::sync::{Mutex, MutexGuard};
use tokio_postgres::{
    Column, RowStream,
    types::{Kind, ToSql, Type},
};

use super::{
    LookupError, Unanswered,
    cells::Cells,
    sql::{Described, Keys, Server},
    texts,
};
use crate::sink::postgres::{
    database::{Connection, Server as Connector},
    failure::Failure,
};

/// What a session is called in `pg_stat_activity`.
const APPLICATION: &str = "tidemill lookup";

/// The class of errors that a value is to blame for.
const NO_SUCH_VALUE: &str = "22";

/// Why there are no rows.
enum Refused {
    /// A value is none of its type, or too much for it.
    Value(Unanswered),
    Other(Unanswered),
}

impl Refused {
    fn said(self) -> Unanswered {
        match self {
            Self::Value(error) | Self::Other(error) => error,
        }
    }
}

impl From<LookupError> for Refused {
    fn from(error: LookupError) -> Self {
        Self::Other(error.into())
    }
}

pub(super) struct Postgres {
    connector: Connector,
    limit: Duration,
    connection: Mutex<Option<Connection>>,
}

impl Postgres {
    pub(super) fn new(url: &str, ca: Option<&Path>, limit: Duration) -> Result<Self, LookupError> {
        let connector = Connector::new(url, ca, APPLICATION).map_err(|error| LookupError(error.to_string()))?;
        Ok(Self { connector, limit, connection: Mutex::default() })
    }

    /// The connection; a new one where there is none, or the server has ended it.
    async fn connected(&self) -> Result<MutexGuard<'_, Option<Connection>>, Unanswered> {
        let mut held = self.connection.lock().await;
        if held.as_ref().is_none_or(Connection::is_closed) {
            *held = None;
            let connection = self.connector.connect().await?;
            let session = format!(
                "SET timezone = 'UTC'; SET datestyle = 'ISO'; SET default_transaction_read_only = on; SET statement_timeout = {}",
                self.limit.as_millis()
            );
            connection
                .client
                .batch_execute(&session)
                .await
                .map_err(|error| self.failed("setting up a session", error))?;
            *held = Some(connection);
        }
        Ok(held)
    }

    fn failed(&self, what: &'static str, error: tokio_postgres::Error) -> Unanswered {
        let cause = error.as_db_error().map_or_else(|| error.to_string(), |said| said.message().to_owned());
        let cause = LookupError(format!("{what} ({}): {cause}", self.connector.shown()));
        let transient = Failure::Postgres(what, error).explain(&self.connector).is_transient();
        Unanswered { cause, transient }
    }

    /// The rows that a condition on the key columns gives.
    async fn rows(
        &self,
        statement: &str,
        columns: &[Described],
        (condition, values): (String, &[Vec<String>]),
        cells: &mut Cells,
    ) -> Result<(), Refused> {
        let held = self.connected().await.map_err(Refused::Other)?;
        let Some(connection) = held.as_ref() else { return Ok(()) };
        let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|column| column as &(dyn ToSql + Sync)).collect();
        let statement = format!("{statement} WHERE {condition}");
        let rows = connection.client.query_raw(&statement, values).await;
        self.pour(rows.map_err(|error| self.refused(error))?, columns, cells).await
    }

    fn refused(&self, error: tokio_postgres::Error) -> Refused {
        let is_value = error.code().is_some_and(|code| code.code().starts_with(NO_SUCH_VALUE));
        let said = self.failed("asking", error);
        if is_value { Refused::Value(said) } else { Refused::Other(said) }
    }

    async fn pour(&self, rows: RowStream, columns: &[Described], cells: &mut Cells) -> Result<(), Refused> {
        pin_mut!(rows);
        while let Some(row) = rows.next().await {
            let row = row.map_err(|error| self.refused(error))?;
            for (column, described) in columns.iter().enumerate() {
                let text: Option<&str> = row.try_get(column).map_err(|error| self.refused(error))?;
                match text {
                    Some(hex) if described.kind == Some(DataType::Binary) => {
                        cells.push(column, Some(&bytes_of(hex)))?
                    }
                    text => cells.push(column, text.map(str::as_bytes))?,
                }
            }
        }
        Ok(())
    }
}

/// The bytes of a `bytea`, which is written as `\x00ff`.
fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = hex.strip_prefix("\\x").unwrap_or(hex).as_bytes();
    let digit = |at: u8| (at as char).to_digit(16).unwrap_or_default() as u8;
    digits.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// The job's type; what has none is a text.
fn kind_of(column: &Column) -> DataType {
    match *column.type_() {
        Type::INT2 | Type::INT4 => DataType::Int32,
        Type::INT8 | Type::OID => DataType::Int64,
        Type::FLOAT4 | Type::FLOAT8 => DataType::Float64,
        Type::BOOL => DataType::Boolean,
        Type::DATE => DataType::Date32,
        Type::TIMESTAMP | Type::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Type::BYTEA => DataType::Binary,
        Type::NUMERIC => decimal(column.type_modifier()).unwrap_or(DataType::Utf8),
        _ => DataType::Utf8,
    }
}

/// `numeric(p,s)`; a `numeric` alone has digits without end.
fn decimal(modifier: i32) -> Option<DataType> {
    let packed = modifier.checked_sub(4).filter(|packed| *packed >= 0)?;
    let (precision, scale) = (u8::try_from(packed >> 16).ok()?, i8::try_from(packed & 0x7ff).ok()?);
    (1..=38).contains(&precision).then_some(DataType::Decimal128(precision, scale))
}

/// A type as a cast names it. `None`: it has no equality, or there are no arrays of it, in which keys go.
fn native(kind: &Type) -> Option<String> {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    match (kind.kind(), kind) {
        (Kind::Array(_), _) | (_, &(Type::JSON | Type::XML | Type::POINT)) => None,
        // What is a text to everybody else is compared as one.
        (_, &(Type::VARCHAR | Type::TEXT | Type::NAME | Type::UNKNOWN)) => Some("text".to_owned()),
        _ => Some(format!("{}.{}", quoted(kind.schema()), quoted(kind.name()))),
    }
}

#[async_trait]
impl Server for Postgres {
    fn quoted(&self, name: &str) -> String {
        format!("\"{}\"", name.replace('"', "\"\""))
    }

    fn shown(&self, column: &Described) -> String {
        format!("{}::text", self.quoted(&column.name))
    }

    async fn describe(&self, statement: &str) -> Result<Vec<Described>, Unanswered> {
        let held = self.connected().await?;
        let Some(connection) = held.as_ref() else { return Ok(Vec::new()) };
        let prepared = connection.client.prepare(statement).await.map_err(|error| self.failed("its query", error))?;
        let columns = prepared.columns().iter().map(|column| Described {
            name: column.name().to_owned(),
            kind: Some(kind_of(column)),
            native: native(column.type_()),
        });
        Ok(columns.collect())
    }

    async fn all(
        &self,
        statement: &str,
        columns: &[Described],
        cells: &mut Cells,
    ) -> Result<Vec<Option<DataType>>, Unanswered> {
        let held = self.connected().await?;
        let Some(connection) = held.as_ref() else { return Ok(Vec::new()) };
        let none: [&(dyn ToSql + Sync); 0] = [];
        let rows = connection.client.query_raw(statement, none).await.map_err(|error| self.failed("reading", error))?;
        self.pour(rows, columns, cells).await.map_err(Refused::said)?;
        Ok(vec![None; columns.len()])
    }

    async fn some(
        &self,
        statement: &str,
        columns: &[Described],
        keys: &Keys<'_>,
        cells: &mut Cells,
    ) -> Result<u64, Unanswered> {
        let values = values(keys.columns)?;
        if values.first().is_none_or(Vec::is_empty) {
            return Ok(0);
        }
        let native = |key: &Described| key.native.clone().unwrap_or_default();
        let natives = keys.described.iter().map(|key| (self.quoted(&key.name), native(key)));
        match self.rows(statement, columns, (condition(natives), &values), cells).await {
            Ok(()) => return Ok(1),
            Err(Refused::Other(error)) => return Err(error),
            Err(Refused::Value(_)) => {}
        }
        // One of the keys is none of the column's type. It is equal to nothing, but the others may be there: once more, by
        // texts, which every value has. That is slow, as no index helps.
        drop(cells.take());
        let as_texts = keys
            .described
            .iter()
            .zip(keys.columns)
            .map(|(key, column)| in_texts(&self.quoted(&key.name), &native(key), column));
        self.rows(statement, columns, (condition(as_texts), &values), cells).await.map_err(Refused::said)?;
        Ok(2)
    }
}

/// The keys as texts, without those that PostgreSQL cannot have: it has no text with a zero in it.
fn values(columns: &[ArrayRef]) -> Result<Vec<Vec<String>>, LookupError> {
    let mut values = Vec::new();
    for column in columns {
        let texts = texts(column)?.into_iter().map(Option::unwrap_or_default);
        values.push(match column.data_type() {
            DataType::Binary => texts.map(|hex| format!("\\x{hex}")).collect(),
            _ => texts.collect::<Vec<_>>(),
        });
    }
    let rows = 0..values.first().map_or(0, Vec::len);
    let fit: Vec<bool> = rows.map(|row| values.iter().all(|column| !column[row].contains('\0'))).collect();
    for column in &mut values {
        let mut fit = fit.iter();
        column.retain(|_| fit.next().is_some_and(|fit| *fit));
    }
    Ok(values)
}

/// That columns, each in a type, have one of the keys.
fn condition(columns: impl Iterator<Item = (String, String)>) -> String {
    let (names, kinds): (Vec<_>, Vec<_>) = columns.unzip();
    let arrays: Vec<_> =
        kinds.iter().enumerate().map(|(index, kind)| format!("${}::text[]::{kind}[]", index + 1)).collect();
    match (&names[..], &arrays[..]) {
        ([name], [array]) => format!("{name} = ANY({array})"),
        (names, arrays) => format!("({}) IN (SELECT * FROM unnest({}))", names.join(", "), arrays.join(", ")),
    }
}

/// A column, and the type to compare it in, so that no key of that type is too much for it.
fn in_texts(name: &str, native: &str, keys: &ArrayRef) -> (String, String) {
    let text = |kind: &str| (format!("{name}::text::{kind}"), kind.to_owned());
    match keys.data_type() {
        _ if native == "text" => (name.to_owned(), native.to_owned()),
        DataType::Int32 | DataType::Int64 | DataType::Decimal128(..) => text("numeric"),
        DataType::Float64 => text("float8"),
        DataType::Binary => (name.to_owned(), native.to_owned()),
        // As `texts` writes them.
        DataType::Timestamp(..) => (format!("to_char({name}, 'YYYY-MM-DD HH24:MI:SS.US')"), "text".to_owned()),
        _ => text("text"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_decimals() {
        assert_eq!(bytes_of("\\x00ffA5"), [0, 255, 165]);
        assert_eq!(decimal((10 << 16 | 2) + 4), Some(DataType::Decimal128(10, 2)));
        assert_eq!((decimal(-1), decimal((100 << 16) + 4)), (None, None));
    }
}
