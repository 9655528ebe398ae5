//! PostgreSQL. Values come as texts, which every type has, and keys go as one array for each column.

use std::{path::Path, time::Duration};

use arrow::datatypes::{DataType, TimeUnit};
use async_trait::async_trait;
use futures::{StreamExt, pin_mut};
use tokio::sync::{Mutex, MutexGuard};
use tokio_postgres::{
    Column, RowStream,
    types::{Kind, ToSql, Type},
};

use super::{
    LookupError,
    cells::Cells,
    sql::{Described, Keys, Server},
    texts,
};
use crate::sink::postgres::database::{Connection, Server as Connector};

/// What a session is called in `pg_stat_activity`.
const APPLICATION: &str = "tidemill lookup";

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
    async fn connected(&self) -> Result<MutexGuard<'_, Option<Connection>>, LookupError> {
        let mut held = self.connection.lock().await;
        if held.as_ref().is_none_or(Connection::is_closed) {
            *held = None;
            let connection = self.connector.connect().await.map_err(|error| LookupError(error.to_string()))?;
            let session = format!(
                "SET timezone = 'UTC'; SET datestyle = 'ISO'; SET default_transaction_read_only = on; SET statement_timeout = {}",
                self.limit.as_millis()
            );
            connection
                .client
                .batch_execute(&session)
                .await
                .map_err(|error| self.failed("setting up a session", &error))?;
            *held = Some(connection);
        }
        Ok(held)
    }

    fn failed(&self, what: &str, error: &tokio_postgres::Error) -> LookupError {
        let cause = error.as_db_error().map_or_else(|| error.to_string(), |said| said.message().to_owned());
        LookupError(format!("{what} ({}): {cause}", self.connector.shown()))
    }

    async fn pour(&self, rows: RowStream, columns: &[Described], cells: &mut Cells) -> Result<(), LookupError> {
        pin_mut!(rows);
        while let Some(row) = rows.next().await {
            let row = row.map_err(|error| self.failed("reading", &error))?;
            for (column, described) in columns.iter().enumerate() {
                let text: Option<&str> = row.try_get(column).map_err(|error| self.failed("reading", &error))?;
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

/// A type as a cast names it.
fn native(kind: &Type) -> String {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    match kind.kind() {
        // What is a text to everybody else is compared as one.
        Kind::Simple if matches!(*kind, Type::VARCHAR | Type::TEXT | Type::NAME | Type::UNKNOWN) => "text".to_owned(),
        _ => format!("{}.{}", quoted(kind.schema()), quoted(kind.name())),
    }
}

#[async_trait]
impl Server for Postgres {
    fn quoted(&self, name: &str) -> String {
        format!("\"{}\"", name.replace('"', "\"\""))
    }

    fn shown(&self, column: &str) -> String {
        format!("{}::text", self.quoted(column))
    }

    async fn describe(&self, statement: &str) -> Result<Vec<Described>, LookupError> {
        let held = self.connected().await?;
        let Some(connection) = held.as_ref() else { return Ok(Vec::new()) };
        let prepared = connection.client.prepare(statement).await.map_err(|error| self.failed("its query", &error))?;
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
    ) -> Result<Vec<Option<DataType>>, LookupError> {
        let held = self.connected().await?;
        let Some(connection) = held.as_ref() else { return Ok(Vec::new()) };
        let none: [&(dyn ToSql + Sync); 0] = [];
        let rows =
            connection.client.query_raw(statement, none).await.map_err(|error| self.failed("reading", &error))?;
        self.pour(rows, columns, cells).await?;
        Ok(vec![None; columns.len()])
    }

    async fn some(
        &self,
        statement: &str,
        columns: &[Described],
        keys: &Keys<'_>,
        cells: &mut Cells,
    ) -> Result<u64, LookupError> {
        let values = keys.columns.iter().map(texts).collect::<Result<Vec<_>, _>>()?;
        let names: Vec<_> = keys.described.iter().map(|key| self.quoted(&key.name)).collect();
        let array = |index: usize| format!("${}::text[]::{}[]", index + 1, keys.described[index].native);
        let condition = match &names[..] {
            [name] => format!("{name} = ANY({})", array(0)),
            names => {
                let arrays: Vec<_> = (0..names.len()).map(array).collect();
                format!("({}) IN (SELECT * FROM unnest({}))", names.join(", "), arrays.join(", "))
            }
        };
        let held = self.connected().await?;
        let Some(connection) = held.as_ref() else { return Ok(0) };
        let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|column| column as &(dyn ToSql + Sync)).collect();
        let statement = format!("{statement} WHERE {condition}");
        let rows = connection.client.query_raw(&statement, values).await;
        self.pour(rows.map_err(|error| self.failed("asking", &error))?, columns, cells).await?;
        Ok(1)
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
