//! PostgreSQL. Values come as texts, which every type has, and keys go as one array for each column.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use arrow::{
    array::ArrayRef,
    datatypes::{DataType, TimeUnit},
};
use async_trait::async_trait;
use futures::{StreamExt, pin_mut};
use tokio::sync::Mutex;
use tokio_postgres::{
    Column,
    error::SqlState,
    types::{Kind, ToSql, Type},
};

use super::{
    LookupError, Unanswered,
    cells::Cells,
    sql::{Described, Keys, Server},
    texts,
};
use crate::sink::postgres::{
    database::{Connection, Encoding, Raw, Server as Connector},
    failure::Failure,
};

/// What a session is called in `pg_stat_activity`.
const APPLICATION: &str = "tidemill lookup";

/// The class of errors that a value is to blame for.
const NO_SUCH_VALUE: &str = "22";
/// What the server says of texts with characters that the database's encoding lacks, and of bytes that it takes for none.
const NO_SUCH_TEXT: [SqlState; 2] = [SqlState::UNTRANSLATABLE_CHARACTER, SqlState::CHARACTER_NOT_IN_REPERTOIRE];

/// Why there are no rows.
enum Refused {
    /// A key is a text that the database does not have.
    Text(Unanswered),
    /// A value is none of its type, or too much for it.
    Value(Unanswered),
    Other(Unanswered),
}

impl Refused {
    fn said(self) -> Unanswered {
        match self {
            Self::Text(error) | Self::Value(error) | Self::Other(error) => error,
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
    /// Its texts may be bytes that are none: they are asked for as bytes.
    has_bytes: AtomicBool,
}

impl Postgres {
    pub(super) fn new(url: &str, ca: Option<&Path>, limit: Duration) -> Result<Self, LookupError> {
        let connector = Connector::new(url, ca, APPLICATION).map_err(|error| LookupError(error.to_string()))?;
        Ok(Self { connector, limit, connection: Mutex::default(), has_bytes: AtomicBool::new(false) })
    }

    /// The connection, taken out while it is used: what is cut off halfway is not used again. A transaction is begun in it,
    /// which [`Postgres::keep`] ends.
    async fn begin(&self) -> Result<Connection, Unanswered> {
        let held = self.connection.lock().await.take();
        let connection = match held.filter(|connection| !connection.is_closed()) {
            Some(connection) => connection,
            None => self.connector.connect_to_read().await?,
        };
        connection.begin_to_read(self.limit).await.map_err(|error| self.failed("beginning to read", error))?;
        Ok(connection)
    }

    async fn keep(&self, connection: Connection) {
        if connection.end_reading().await.is_ok() {
            *self.connection.lock().await = Some(connection);
        }
    }

    fn failed(&self, what: &'static str, error: tokio_postgres::Error) -> Unanswered {
        Failure::Postgres(what, error).explain(&self.connector).into()
    }

    /// The rows of a statement with these parameters.
    async fn rows(
        &self,
        connection: &Connection,
        statement: &str,
        values: &[&[String]],
        columns: &[Described],
        cells: &mut Cells,
    ) -> Result<(), Refused> {
        // Not prepared: nothing is left in a session that a pooler gives to somebody else next.
        let values = values.iter().map(|column| (column as &(dyn ToSql + Sync), Type::TEXT_ARRAY));
        let rows = connection.client.query_typed_raw(statement, values).await;
        let rows = rows.map_err(|error| self.refused(error))?;
        pin_mut!(rows);
        while let Some(row) = rows.next().await {
            let row = row.map_err(|error| self.refused(error))?;
            for (column, described) in columns.iter().enumerate() {
                let value = row.try_get::<_, Option<Raw<'_>>>(column).map_err(|error| self.refused(error))?;
                match value {
                    Some(Raw(hex)) if described.kind == Some(DataType::Binary) => {
                        let bytes = bytes_of(hex).ok_or_else(|| {
                            LookupError(format!("column `{}`: a bytea that is not written in hex", described.name))
                        })?;
                        cells.push(column, Some(&bytes))?;
                    }
                    value => cells.push(column, value.map(|Raw(bytes)| bytes))?,
                }
            }
        }
        Ok(())
    }

    fn refused(&self, error: tokio_postgres::Error) -> Refused {
        let code = error.code().cloned();
        let said = self.failed("asking", error);
        match code {
            Some(code) if NO_SUCH_TEXT.contains(&code) => Refused::Text(said),
            Some(code) if code.code().starts_with(NO_SUCH_VALUE) => Refused::Value(said),
            _ => Refused::Other(said),
        }
    }

    /// The rows of these keys, in a transaction of its own, which an error ends.
    async fn rows_of(
        &self,
        statement: &str,
        keys: &[&[String]],
        columns: &[Described],
        cells: &mut Cells,
    ) -> Result<(), Refused> {
        let connection = self.begin().await.map_err(Refused::Other)?;
        let mut before = cells.take();
        let asked = self.rows(&connection, statement, keys, columns, cells).await;
        self.keep(connection).await;
        // Of a question that failed in its middle nothing is kept, and of those before it all.
        let mine = cells.take();
        let added = asked.and_then(|()| Ok(before.append(mine)?));
        *cells = before;
        added
    }
}

/// The bytes of a `bytea`, which is written as `\x00ff`.
fn bytes_of(hex: &[u8]) -> Option<Vec<u8>> {
    let digits = hex.strip_prefix(b"\\x").filter(|digits| digits.len() % 2 == 0)?;
    let digit = |at: u8| char::from(at).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
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
        let text = format!("{}::text", self.quoted(&column.name));
        if self.has_bytes.load(Ordering::Relaxed) { format!("convert_to({text}, 'SQL_ASCII')") } else { text }
    }

    async fn describe(&self, statement: &str) -> Result<Vec<Described>, Unanswered> {
        let connection = self.begin().await?;
        self.has_bytes.store(connection.encoding == Encoding::Bytes, Ordering::Relaxed);
        let prepared = connection.client.prepare(statement).await;
        let described = prepared.map(|prepared| {
            let columns = prepared.columns().iter().map(|column| Described {
                name: column.name().to_owned(),
                kind: Some(kind_of(column)),
                native: native(column.type_()),
                given: None,
                is_number: *column.type_() == Type::NUMERIC,
            });
            columns.collect()
        });
        self.keep(connection).await;
        described.map_err(|error| self.failed("looking at the columns of a query in", error))
    }

    async fn all(
        &self,
        statement: &str,
        columns: &[Described],
        cells: &mut Cells,
    ) -> Result<Vec<Option<DataType>>, Unanswered> {
        self.rows_of(statement, &[], columns, cells).await.map_err(Refused::said)?;
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
        let native = |key: &Described| key.native.clone().unwrap_or_default();
        let natives = keys.described.iter().map(|key| (self.quoted(&key.name), native(key)));
        let by_values = format!("{statement} WHERE {}", condition(natives));
        let as_texts = keys
            .described
            .iter()
            .zip(keys.columns)
            .map(|(key, column)| in_texts(&self.quoted(&key.name), &native(key), column));
        let by_texts = format!("{statement} WHERE {}", condition(as_texts));
        let mut queries = 0;
        let mut open = vec![(0, values.first().map_or(0, Vec::len))];
        while let Some((start, end)) = open.pop().filter(|(start, end)| start < end) {
            let part: Vec<&[String]> = values.iter().map(|column| &column[start..end]).collect();
            queries += 1;
            let mut asked = self.rows_of(&by_values, &part, columns, cells).await;
            if matches!(asked, Err(Refused::Value(_))) {
                // One of the keys is none of the column's type. It is equal to nothing, but the others may be there: once
                // more, by texts, which every value has. That is slow, as no index helps.
                queries += 1;
                asked = self.rows_of(&by_texts, &part, columns, cells).await;
            }
            match asked {
                Ok(()) => {}
                // A key that the database has no characters for keeps the server from looking for the others. It is in no
                // row: what is left when the keys are asked for by halves.
                Err(Refused::Text(_)) if end - start > 1 => {
                    let middle = start + (end - start) / 2;
                    open.extend([(middle, end), (start, middle)]);
                }
                Err(Refused::Text(_)) => {}
                Err(Refused::Value(error) | Refused::Other(error)) => return Err(error),
            }
        }
        Ok(queries)
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
        assert_eq!(bytes_of(b"\\x00ffA5"), Some(vec![0, 255, 165]));
        for none in ["\\x0", "\\000\\377", "\\x0g", "00ff"] {
            assert_eq!(bytes_of(none.as_bytes()), None, "{none} is no hex: never another value");
        }
        assert_eq!(decimal((10 << 16 | 2) + 4), Some(DataType::Decimal128(10, 2)));
        assert_eq!((decimal(-1), decimal((100 << 16) + 4)), (None, None));
    }
}
