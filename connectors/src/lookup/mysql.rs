//! MySQL and MariaDB. A whole table is read by the text protocol, keys go as parameters.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use arrow::datatypes::{DataType, TimeUnit};
use async_trait::async_trait;
use mysql_async::{
    Column, Conn, Params, Row, Value,
    consts::{ColumnFlags, ColumnType},
    prelude::Queryable,
};
use tokio::sync::Mutex;

use super::{
    LookupError, Unanswered,
    cells::Cells,
    sql::{Described, Keys, Server},
};
use crate::sink::{
    SinkError,
    mysql::database::{Address, Failure},
};

/// Parameters of one statement; the server takes 65,535.
const MAX_PARAMETERS: usize = 1_000;
/// After this idle time a connection is asked whether it still lives before it is used.
const PING_AFTER: Duration = Duration::from_secs(5);
/// The number of the character set of bytes.
const BINARY: u16 = 63;
/// What the server says of texts that the character set of a column does not have: of one, of two, and of more.
const NO_SUCH_TEXT: [u16; 3] = [1267, 1270, 1271];
const READ_ONLY: &str = "SET SESSION TRANSACTION READ ONLY";
/// The native type of columns that need a word of their own.
const FLOAT: &str = "float";
const FLAG: &str = "tinyint";
const BITS: &str = "bit";

pub(super) struct Mysql {
    address: Address,
    connection: Mutex<Option<(Conn, Instant)>>,
}

impl Mysql {
    pub(super) fn new(url: &str, ca: Option<&Path>) -> Result<Self, LookupError> {
        Ok(Self { address: Address::new(url, ca).map_err(LookupError)?, connection: Mutex::default() })
    }

    fn failed(&self, what: &'static str, error: mysql_async::Error) -> SinkError {
        self.address.explain(Failure::Server(what, error))
    }

    /// The connection, taken out: it is put back once it is known to be whole.
    async fn connected(&self) -> Result<Conn, SinkError> {
        if let Some((mut connection, used)) = self.connection.lock().await.take()
            && (used.elapsed() < PING_AFTER || connection.ping().await.is_ok())
        {
            return Ok(connection);
        }
        let opened = self.address.open().await;
        let mut connection = opened.map_err(|failure| self.address.explain(failure))?;
        let done = connection.query_drop(READ_ONLY).await;
        done.map_err(|error| self.failed("setting up a session in", error))?;
        Ok(connection)
    }

    async fn keep(&self, connection: Conn) {
        *self.connection.lock().await = Some((connection, Instant::now()));
    }

    /// The rows of some keys. False where the column cannot have one of them.
    async fn rows(
        &self,
        connection: &mut Conn,
        (sql, values): (String, Vec<Value>),
        columns: &[Described],
        cells: &mut Cells,
    ) -> Result<bool, Unanswered> {
        let failed = |error: mysql_async::Error| self.failed("asking", error);
        let mut result = match connection.exec_iter(sql, Params::Positional(values)).await {
            Err(mysql_async::Error::Server(said)) if NO_SUCH_TEXT.contains(&said.code) => return Ok(false),
            asked => asked.map_err(failed)?,
        };
        while let Some(row) = result.next().await.map_err(failed)? {
            pour(&row, columns, cells)?;
        }
        result.drop_result().await.map_err(failed)?;
        Ok(true)
    }
}

/// The job's type; what has none is a text.
fn kind_of(column: &Column) -> DataType {
    let unsigned = column.flags().contains(ColumnFlags::UNSIGNED_FLAG);
    let is_bytes = column.character_set() == BINARY;
    match column.column_type() {
        ColumnType::MYSQL_TYPE_TINY
        | ColumnType::MYSQL_TYPE_SHORT
        | ColumnType::MYSQL_TYPE_INT24
        | ColumnType::MYSQL_TYPE_YEAR => DataType::Int32,
        ColumnType::MYSQL_TYPE_LONG if !unsigned => DataType::Int32,
        ColumnType::MYSQL_TYPE_LONG => DataType::Int64,
        ColumnType::MYSQL_TYPE_LONGLONG if !unsigned => DataType::Int64,
        ColumnType::MYSQL_TYPE_LONGLONG => DataType::Decimal128(20, 0),
        ColumnType::MYSQL_TYPE_FLOAT | ColumnType::MYSQL_TYPE_DOUBLE => DataType::Float64,
        ColumnType::MYSQL_TYPE_DECIMAL | ColumnType::MYSQL_TYPE_NEWDECIMAL => decimal(column, unsigned),
        ColumnType::MYSQL_TYPE_DATE | ColumnType::MYSQL_TYPE_NEWDATE => DataType::Date32,
        ColumnType::MYSQL_TYPE_TIMESTAMP
        | ColumnType::MYSQL_TYPE_TIMESTAMP2
        | ColumnType::MYSQL_TYPE_DATETIME
        | ColumnType::MYSQL_TYPE_DATETIME2 => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        ColumnType::MYSQL_TYPE_BIT | ColumnType::MYSQL_TYPE_GEOMETRY => DataType::Binary,
        ColumnType::MYSQL_TYPE_TINY_BLOB
        | ColumnType::MYSQL_TYPE_MEDIUM_BLOB
        | ColumnType::MYSQL_TYPE_LONG_BLOB
        | ColumnType::MYSQL_TYPE_BLOB
        | ColumnType::MYSQL_TYPE_STRING
        | ColumnType::MYSQL_TYPE_VAR_STRING
            if is_bytes =>
        {
            DataType::Binary
        }
        _ => DataType::Utf8,
    }
}

/// The length that the server tells counts the point and the sign.
fn decimal(column: &Column, unsigned: bool) -> DataType {
    let scale = column.decimals();
    let length = column.column_length().saturating_sub(u32::from(!unsigned)).saturating_sub(u32::from(scale > 0));
    match (u8::try_from(length), i8::try_from(scale)) {
        (Ok(precision @ 1..=38), Ok(scale)) => DataType::Decimal128(precision, scale),
        _ => DataType::Utf8,
    }
}

/// Adds a row's values.
fn pour(row: &Row, columns: &[Described], cells: &mut Cells) -> Result<(), LookupError> {
    for (index, column) in columns.iter().enumerate() {
        let text;
        let bytes: Option<&[u8]> = match row.as_ref(index) {
            None | Some(Value::NULL) => None,
            Some(Value::Bytes(bytes)) => Some(bytes),
            Some(value) => {
                text = text_of(value);
                Some(text.as_bytes())
            }
        };
        match bytes.filter(|_| column.native.as_deref() == Some(FLOAT)) {
            Some(digits) => cells.push(index, Some(shortest(digits).as_bytes()))?,
            None => cells.push(index, bytes)?,
        }
    }
    Ok(())
}

/// The shortest text of a FLOAT, as other databases give it; what came are the digits of the same number as a double.
fn shortest(digits: &[u8]) -> String {
    let text = String::from_utf8_lossy(digits);
    text.parse::<f32>().map_or_else(|_| text.into_owned(), |float| float.to_string())
}

/// A value of the binary protocol as the text protocol would have it.
fn text_of(value: &Value) -> String {
    match value {
        Value::Int(number) => number.to_string(),
        Value::UInt(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Double(number) => number.to_string(),
        Value::Date(year, month, day, 0, 0, 0, 0) => format!("{year:04}-{month:02}-{day:02}"),
        Value::Date(year, month, day, hour, minute, second, micros) => {
            format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06}")
        }
        other => other.as_sql(true).trim_matches('\'').to_owned(),
    }
}

#[async_trait]
impl Server for Mysql {
    fn quoted(&self, name: &str) -> String {
        format!("`{}`", name.replace('`', "``"))
    }

    /// The server writes a FLOAT with six digits only: as a DOUBLE all of it is written. What may be a flag is what the job says.
    fn shown(&self, column: &Described) -> String {
        let name = self.quoted(&column.name);
        match (column.native.as_deref(), &column.given) {
            (Some(FLOAT), _) => format!("{name} + 0e0"),
            (Some(FLAG | BITS), Some(DataType::Boolean)) => format!("{name} <> 0"),
            (Some(BITS), Some(given)) if !matches!(given, DataType::Binary) => format!("{name} + 0"),
            _ => name,
        }
    }

    fn at_once(&self) -> usize {
        MAX_PARAMETERS
    }

    async fn describe(&self, statement: &str) -> Result<Vec<Described>, Unanswered> {
        let mut connection = self.connected().await?;
        let prepared = connection
            .prep(statement)
            .await
            .map_err(|error| self.failed("looking at the columns of a query in", error))?;
        let columns = prepared.columns();
        let native = |column: &Column| match column.column_type() {
            ColumnType::MYSQL_TYPE_FLOAT => FLOAT.to_owned(),
            ColumnType::MYSQL_TYPE_TINY => FLAG.to_owned(),
            ColumnType::MYSQL_TYPE_BIT => BITS.to_owned(),
            _ => String::new(),
        };
        let columns = columns.iter().map(|column| Described {
            name: column.name_str().into_owned(),
            kind: Some(kind_of(column)),
            native: Some(native(column)),
            given: None,
            is_number: false,
        });
        let described = columns.collect();
        self.keep(connection).await;
        Ok(described)
    }

    async fn all(
        &self,
        statement: &str,
        columns: &[Described],
        cells: &mut Cells,
    ) -> Result<Vec<Option<DataType>>, Unanswered> {
        let failed = |error: mysql_async::Error| self.failed("reading from", error);
        let mut connection = self.connected().await?;
        let mut result = connection.query_iter(statement).await.map_err(failed)?;
        while let Some(row) = result.next().await.map_err(failed)? {
            pour(&row, columns, cells)?;
        }
        result.drop_result().await.map_err(failed)?;
        self.keep(connection).await;
        Ok(vec![None; columns.len()])
    }

    async fn some(
        &self,
        statement: &str,
        columns: &[Described],
        keys: &Keys<'_>,
        cells: &mut Cells,
    ) -> Result<u64, Unanswered> {
        let names: Vec<_> = keys.described.iter().map(|key| self.quoted(&key.name)).collect();
        let (count, width) = (keys.count(), names.len());
        let mut connection = self.connected().await?;
        let row = if width == 1 { "?".to_owned() } else { format!("({})", vec!["?"; width].join(", ")) };
        let left = if width == 1 { names[0].clone() } else { format!("({})", names.join(", ")) };
        let given: Vec<Value> = keys.values()?;
        let mut queries = 0;
        // A key that is none of the column's texts (an emoji for latin1) keeps the server from looking for the others. It is
        // in no row: what is left when the keys are asked for by halves.
        let mut open = vec![(0, count)];
        while let Some((start, end)) = open.pop() {
            let sql = format!("{statement} WHERE {left} IN ({})", vec![row.as_str(); end - start].join(", "));
            let values = given[start * width..end * width].to_vec();
            queries += 1;
            if !self.rows(&mut connection, (sql, values), columns, cells).await? && end - start > 1 {
                let middle = start + (end - start) / 2;
                open.extend([(middle, end), (start, middle)]);
            }
        }
        self.keep(connection).await;
        Ok(queries)
    }
}
