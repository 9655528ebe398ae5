//! Rows of a MySQL or MariaDB database.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use mysql_async::{
    Column, Value,
    consts::{ColumnFlags, ColumnType},
};

use super::{
    Database, Page,
    page::{Cell, Names, Row},
    select::{Dialect, Key, Kind, Range, Select},
    stopped,
};
use crate::{
    codec::base64,
    sink::{
        SinkError,
        mysql::database::{Database as Server, Failure, Session},
    },
    source::SourceError,
};

/// The collation of bytes that are no text.
const BINARY: u16 = 63;
const WHAT: &str = "reading rows of";

pub(super) struct Mysql {
    pub(super) server: Server,
    /// The kinds of the columns of the order are found by asking.
    pub(super) select: Select,
    /// The types that the job gives to columns.
    pub(super) wanted: Option<SchemaRef>,
}

/// What a column of the order is; `None`: nothing that has an order as positions have it.
fn kind(column: &Column) -> Option<Kind> {
    use ColumnType as T;
    Some(match column.column_type() {
        T::MYSQL_TYPE_TINY
        | T::MYSQL_TYPE_SHORT
        | T::MYSQL_TYPE_INT24
        | T::MYSQL_TYPE_LONG
        | T::MYSQL_TYPE_LONGLONG => Kind::Number,
        T::MYSQL_TYPE_NEWDECIMAL => Kind::Number,
        T::MYSQL_TYPE_DATE => Kind::Date,
        T::MYSQL_TYPE_DATETIME | T::MYSQL_TYPE_TIMESTAMP => Kind::Instant { zone: false },
        T::MYSQL_TYPE_VAR_STRING | T::MYSQL_TYPE_STRING | T::MYSQL_TYPE_BLOB if column.character_set() != BINARY => {
            Kind::Text
        }
        _ => return None,
    })
}

/// The columns of a row. The server writes a FLOAT with six digits only: as a DOUBLE all of it is written.
fn expressions(columns: &[Column]) -> String {
    let expression = |column: &Column| {
        let name = format!("r.{}", Dialect::Mysql.name(&column.name_str()));
        if column.column_type() == ColumnType::MYSQL_TYPE_FLOAT { format!("{name} + 0e0") } else { name }
    };
    columns.iter().map(expression).collect::<Vec<_>>().join(", ")
}

/// What stands for an integer of a column that may be a flag, where the job says what it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flag {
    /// Not 0 is true.
    Boolean,
    Number,
    /// The job does not say: 0 and 1 of a TINYINT(1), which is what MySQL makes of BOOLEAN, are false and true.
    Unknown,
}

fn flag(kind: Option<&DataType>) -> Flag {
    match kind {
        None => Flag::Unknown,
        Some(DataType::Boolean) => Flag::Boolean,
        Some(_) => Flag::Number,
    }
}

fn bits(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A value that came as text, as it stands in JSON: as it is, or between quotes.
fn shown(column: &Column, flag: Flag, bytes: &[u8]) -> (bool, String) {
    use ColumnType as T;
    let text = String::from_utf8_lossy(bytes);
    let is_flag = column.column_length() == 1;
    match column.column_type() {
        T::MYSQL_TYPE_TINY if flag == Flag::Boolean => (true, text.contains(|digit| digit != '0').to_string()),
        T::MYSQL_TYPE_BIT if flag == Flag::Boolean => (true, (bits(bytes) != 0).to_string()),
        T::MYSQL_TYPE_TINY if flag == Flag::Unknown && is_flag && matches!(&*text, "0" | "1") => {
            (true, (text == "1").to_string())
        }
        T::MYSQL_TYPE_TINY
        | T::MYSQL_TYPE_SHORT
        | T::MYSQL_TYPE_INT24
        | T::MYSQL_TYPE_LONG
        | T::MYSQL_TYPE_LONGLONG
        | T::MYSQL_TYPE_YEAR
        | T::MYSQL_TYPE_DOUBLE => (!column.flags().contains(ColumnFlags::ZEROFILL_FLAG), text.into_owned()),
        // The shortest text of the float itself; what came are the digits of the same number as a double.
        T::MYSQL_TYPE_FLOAT => {
            (true, text.parse::<f32>().map_or_else(|_| text.into_owned(), |float| format!("{float:?}")))
        }
        T::MYSQL_TYPE_DATETIME | T::MYSQL_TYPE_TIMESTAMP => (false, format!("{}Z", text.replacen(' ', "T", 1))),
        T::MYSQL_TYPE_JSON => (true, text.into_owned()),
        T::MYSQL_TYPE_BIT => (true, bits(bytes).to_string()),
        T::MYSQL_TYPE_VAR_STRING
        | T::MYSQL_TYPE_STRING
        | T::MYSQL_TYPE_BLOB
        | T::MYSQL_TYPE_TINY_BLOB
        | T::MYSQL_TYPE_MEDIUM_BLOB
        | T::MYSQL_TYPE_LONG_BLOB
        | T::MYSQL_TYPE_GEOMETRY
            if column.character_set() == BINARY =>
        {
            (false, base64(bytes))
        }
        _ => (false, text.into_owned()),
    }
}

fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::Bytes(bytes) => Some(bytes),
        _ => None,
    }
}

fn key<'v>(select: &Select, values: impl Iterator<Item = &'v Value>) -> Result<Key, Failure> {
    let texts: Vec<_> = values.map(|value| String::from_utf8_lossy(bytes(value).unwrap_or_default())).collect();
    select.key(texts.iter().map(AsRef::as_ref)).map_err(|why| SinkError::Fatal(why).into())
}

impl Mysql {
    /// The query's shape, with the kinds of its order, and its columns.
    async fn described(&self, session: &mut Session) -> Result<(Select, Arc<[Column]>), Failure> {
        let mut select = self.select.clone();
        let (columns, _) = session.text(WHAT, &format!("SELECT * FROM {} AS r LIMIT 0", select.from)).await?;
        for (name, is) in &mut select.order {
            let column = columns.iter().find(|column| column.name_str().eq_ignore_ascii_case(name));
            let names: Vec<_> = columns.iter().map(|column| column.name_str()).collect();
            let names = || names.iter().map(AsRef::as_ref);
            *is = column
                .and_then(kind)
                .ok_or_else(|| SinkError::Fatal(super::no_order(name, column.is_some(), names())))?;
        }
        super::can_settle(&select).map_err(SinkError::Fatal)?;
        Ok((select, columns))
    }

    async fn read(&self, session: &mut Session, range: &Range) -> Result<Page, Failure> {
        let (select, columns) = self.described(session).await?;
        let texts = format!("{}, {}", expressions(&columns), select.keys());
        let sql = select.rows(&texts, range).map_err(SinkError::Fatal)?;
        let count = columns.len();
        let names: Vec<_> = columns.iter().map(|column| column.name_str().into_owned()).collect();
        let kind = |name: &String| self.wanted.as_ref().and_then(|schema| schema.field_with_name(name).ok());
        let flags: Vec<Flag> = names.iter().map(|name| flag(kind(name).map(|field| field.data_type()))).collect();
        let names = Names::new(names.iter().map(String::as_str));
        let row = |row: mysql_async::Row| {
            let values = row.unwrap();
            let texts = columns.iter().zip(&flags).zip(&values);
            let texts: Vec<_> = texts.map(|((column, flag), v)| bytes(v).map(|v| shown(column, *flag, v))).collect();
            let cells = texts.iter().map(|text| match text {
                None => Cell::Null,
                Some((true, raw)) => Cell::Raw(raw.as_bytes()),
                Some((false, text)) => Cell::Text(text),
            });
            let key = key(&select, values.iter().skip(count))?;
            Ok::<_, Failure>(Row { key, json: names.object(cells) })
        };
        let mut page = Page::default();
        session.each(WHAT, &sql, |found| Ok(page.push(row(found)?, range))).await?;
        Ok(page)
    }

    async fn read_last(&self, session: &mut Session) -> Result<Option<Key>, Failure> {
        let (select, _) = self.described(session).await?;
        let (_, rows) = session.text(WHAT, &select.last().map_err(SinkError::Fatal)?).await?;
        rows.into_iter().next().map(|row| key(&select, row.unwrap().iter())).transpose()
    }
}

#[async_trait]
impl Database for Mysql {
    async fn rows(&self, range: &Range) -> Result<Page, SourceError> {
        let mut used = self.server.reader().await.map_err(stopped)?;
        match self.read(used.session(), range).await {
            // What is left of the answer is not waited for: the connection ends.
            Ok(page) if page.cut => Ok(page),
            read => used.done(read).map_err(stopped),
        }
    }

    async fn last(&self) -> Result<Option<Key>, SourceError> {
        let mut used = self.server.reader().await.map_err(stopped)?;
        let last = self.read_last(used.session()).await;
        used.done(last).map_err(stopped)
    }
}
