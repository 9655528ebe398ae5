//! Rows of a PostgreSQL database. The server writes each value as text.

use std::{pin::pin, time::Duration};

use async_trait::async_trait;
use futures::StreamExt as _;
use tokio::sync::Mutex;
use tokio_postgres::types::{Kind as TypeKind, ToSql, Type};

use super::{
    Database, Page,
    page::{Cell, Names, Row},
    select::{Dialect, Key, Kind, Range, Select, common},
    stopped,
};
use crate::{
    sink::{
        SinkError,
        postgres::{
            database::{Connection, Encoding, Raw, Server},
            failure::{Doing, Failure},
        },
    },
    source::SourceError,
};

const WHAT: &str = "reading rows of";
pub(super) struct Postgres {
    pub(super) server: Server,
    pub(super) connection: Mutex<Option<Connection>>,
    /// The kinds of the columns of the order are found by asking.
    pub(super) select: Select,
    pub(super) limit: Duration,
}

/// What a column of the order is; `None`: nothing that has an order as positions have it.
fn kind(of: &Type) -> Option<Kind> {
    Some(match *of {
        Type::INT2 | Type::INT4 | Type::INT8 | Type::OID | Type::NUMERIC => Kind::Number,
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME => Kind::Text,
        Type::UUID => Kind::Uuid,
        Type::DATE => Kind::Date,
        Type::TIMESTAMP => Kind::Instant { zone: false },
        Type::TIMESTAMPTZ => Kind::Instant { zone: true },
        _ => return None,
    })
}

/// How the server writes a column, and whether that is JSON already.
fn expression(name: &str, of: &Type) -> (String, bool) {
    let column = format!("r.{}", Dialect::Postgres.name(name));
    const ISO: &str = "'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'";
    match *of {
        Type::INT2 | Type::INT4 | Type::INT8 | Type::OID | Type::BOOL | Type::JSON | Type::JSONB => {
            (format!("{column}::text"), true)
        }
        // NaN and infinities become texts.
        Type::FLOAT4 | Type::FLOAT8 => (format!("to_json({column})::text"), true),
        Type::TIMESTAMP => (common(&column, &format!("to_char({column}, {ISO})")), false),
        Type::TIMESTAMPTZ => (common(&column, &format!("to_char({column} AT TIME ZONE 'UTC', {ISO})")), false),
        Type::BYTEA => (format!("translate(encode({column}, 'base64'), E'\\n', '')"), false),
        _ if matches!(of.kind(), TypeKind::Array(_) | TypeKind::Composite(_)) => {
            (format!("to_json({column})::text"), true)
        }
        _ => (format!("{column}::text"), false),
    }
}

/// A table or query as the server describes it.
struct Described {
    select: Select,
    names: Names,
    expressions: Vec<(String, bool)>,
}

impl Postgres {
    async fn described(&self, connection: &Connection) -> Result<Described, Failure> {
        let mut select = self.select.clone();
        let sql = format!("SELECT * FROM {} AS r LIMIT 0", select.from);
        let statement = connection.client.prepare(&sql).await.doing(WHAT)?;
        let columns = statement.columns();
        for (name, is) in &mut select.order {
            let column = columns.iter().find(|column| column.name() == name);
            let known = column.and_then(|column| kind(column.type_()));
            let names = || columns.iter().map(|column| column.name());
            *is = known.ok_or_else(|| SinkError::Fatal(super::no_order(name, column.is_some(), names())))?;
        }
        super::can_settle(&select).map_err(SinkError::Fatal)?;
        let names = Names::new(columns.iter().map(|column| column.name()));
        let expressions = columns.iter().map(|column| expression(column.name(), column.type_())).collect();
        Ok(Described { select, names, expressions })
    }

    /// The page, and whether all that the server had to say was heard.
    async fn read(&self, connection: &Connection, range: &Range) -> Result<Page, Failure> {
        let Described { select, names, expressions } = self.described(connection).await?;
        let texts = expressions.iter().map(|(text, _)| text.clone()).chain(select.each_key());
        let texts = texts.map(|text| shown(connection.encoding, text)).collect::<Vec<_>>().join(", ");
        let sql = select.rows(&texts, range).map_err(SinkError::Fatal)?;
        // Not prepared: nothing is left in a session that a pooler gives to somebody else next.
        let none: [(&(dyn ToSql + Sync), Type); 0] = [];
        let mut rows = pin!(connection.client.query_typed_raw(&sql, none).await.doing(WHAT)?);
        let mut page = Page::default();
        while let Some(row) = rows.next().await {
            let row = row.doing(WHAT)?;
            let value = |index: usize| row.get::<_, Option<Raw<'_>>>(index).map(|Raw(bytes)| bytes);
            let cells = expressions.iter().enumerate().map(|(index, (_, is_json))| match (value(index), is_json) {
                (None, _) => Cell::Null,
                (Some(bytes), true) => Cell::Raw(bytes),
                (Some(bytes), false) => Cell::Bytes(bytes),
            });
            let json = names.object(cells);
            if !page.push(Row { key: key(&select, &row, expressions.len())?, json }, range) {
                break;
            }
        }
        Ok(page)
    }

    async fn read_last(&self, connection: &Connection) -> Result<Option<Key>, Failure> {
        let select = self.described(connection).await?.select;
        let sql = select.last().map_err(SinkError::Fatal)?;
        let row = connection.client.query_typed_opt(&sql, &[]).await.doing(WHAT)?;
        row.map(|row| key(&select, &row, 0)).transpose()
    }

    /// The connection, taken out while it is used: what is cut off halfway is not used again. A transaction is begun in it.
    async fn take(&self) -> Result<Connection, SinkError> {
        let held = self.connection.lock().await.take();
        let connection = match held.filter(|connection| !connection.is_closed()) {
            Some(connection) => connection,
            None => self.server.connect_to_read().await?,
        };
        let begun = connection.begin_to_read(self.limit).await.doing("beginning to read");
        begun.map_err(|failure: Failure| failure.explain(&self.server))?;
        Ok(connection)
    }

    async fn done<T>(&self, connection: Connection, result: Result<T, Failure>) -> Result<T, SourceError> {
        let fit = result.as_ref().err().is_none_or(Failure::keeps_session);
        if fit && connection.end_reading().await.is_ok() {
            *self.connection.lock().await = Some(connection);
        }
        result.map_err(|failure| stopped(failure.explain(&self.server)))
    }
}

/// An expression of texts as it is asked for: bytes that are no text are not handed out as one.
fn shown(encoding: Encoding, text: String) -> String {
    match encoding {
        Encoding::Bytes => format!("convert_to({text}, 'SQL_ASCII')"),
        _ => text,
    }
}

fn key(select: &Select, row: &tokio_postgres::Row, begin: usize) -> Result<Key, Failure> {
    let mut texts: Vec<&str> = Vec::with_capacity(select.order.len());
    for (index, (name, _)) in select.order.iter().enumerate() {
        let bytes = row.get::<_, Option<Raw<'_>>>(begin + index).map_or(&b"infinity"[..], |Raw(bytes)| bytes);
        // With a replacement in it the position would be another one than the row's.
        texts.push(std::str::from_utf8(bytes).map_err(|_| {
            SinkError::Fatal(format!(
                "column `{name}` of `order_by` has a text that is not UTF-8: correct it, or leave it out by a `query`"
            ))
        })?);
    }
    select.key(texts).map_err(|why| SinkError::Fatal(why).into())
}

#[async_trait]
impl Database for Postgres {
    async fn rows(&self, range: &Range) -> Result<Page, SourceError> {
        let connection = self.take().await.map_err(stopped)?;
        match self.read(&connection, range).await {
            // What is left of the answer is not waited for: the connection ends.
            Ok(page) if page.cut => Ok(page),
            read => self.done(connection, read).await,
        }
    }

    async fn last(&self) -> Result<Option<Key>, SourceError> {
        let connection = self.take().await.map_err(stopped)?;
        let last = self.read_last(&connection).await;
        self.done(connection, last).await
    }
}
