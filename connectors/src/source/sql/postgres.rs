//! Rows of a PostgreSQL database. The server writes each value as text.

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio_postgres::types::{Kind as TypeKind, Type};

use super::{
    Database,
    page::{Cell, Names, Row},
    select::{Dialect, Key, Kind, Range, Select, common},
    stopped,
};
use crate::{
    sink::{
        SinkError,
        postgres::{
            database::{Connection, Server},
            failure::{Doing, Failure},
        },
    },
    source::SourceError,
};

const WHAT: &str = "reading rows of";
/// How values are written and read must not hang on what a server or a role was given.
const SESSION: &str = "SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC';
    SET standard_conforming_strings = on; SET extra_float_digits = 1";

pub(super) struct Postgres {
    pub(super) server: Server,
    pub(super) connection: Mutex<Option<Connection>>,
    /// The kinds of the columns of the order are found by asking.
    pub(super) select: Select,
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
            *is = known.ok_or_else(|| SinkError::Fatal(super::no_order(name, column.is_some())))?;
        }
        super::can_settle(&select).map_err(SinkError::Fatal)?;
        let names = Names::new(columns.iter().map(|column| column.name()));
        let expressions = columns.iter().map(|column| expression(column.name(), column.type_())).collect();
        Ok(Described { select, names, expressions })
    }

    async fn read(&self, connection: &Connection, range: &Range) -> Result<Vec<Row>, Failure> {
        let Described { select, names, expressions } = self.described(connection).await?;
        let texts =
            expressions.iter().map(|(text, _)| text.as_str()).chain([&*select.keys()]).collect::<Vec<_>>().join(", ");
        let sql = select.rows(&texts, range).map_err(SinkError::Fatal)?;
        let rows = connection.client.query(&sql, &[]).await.doing(WHAT)?;
        let row = |row: tokio_postgres::Row| -> Result<Row, Failure> {
            let cells = expressions.iter().enumerate().map(|(index, (_, is_json))| {
                match (row.get::<_, Option<&str>>(index), is_json) {
                    (None, _) => Cell::Null,
                    (Some(text), true) => Cell::Raw(text.as_bytes()),
                    (Some(text), false) => Cell::Text(text),
                }
            });
            let json = names.object(cells);
            Ok(Row { key: key(&select, &row, expressions.len())?, json })
        };
        rows.into_iter().map(row).collect()
    }

    async fn read_last(&self, connection: &Connection) -> Result<Option<Key>, Failure> {
        let select = self.described(connection).await?.select;
        let sql = select.last().map_err(SinkError::Fatal)?;
        let row = connection.client.query_opt(&sql, &[]).await.doing(WHAT)?;
        row.map(|row| key(&select, &row, 0)).transpose()
    }

    /// The connection, taken out while it is used: what is cut off halfway is not used again.
    async fn take(&self) -> Result<Connection, SinkError> {
        match self.connection.lock().await.take() {
            Some(connection) if !connection.is_closed() => Ok(connection),
            _ => {
                let connection = self.server.connect().await?;
                let session = connection.client.batch_execute(SESSION).await.doing("setting up a session in");
                session.map_err(|failure: Failure| failure.explain(&self.server))?;
                Ok(connection)
            }
        }
    }

    async fn done<T>(&self, connection: Connection, result: Result<T, Failure>) -> Result<T, SourceError> {
        if result.as_ref().err().is_none_or(Failure::keeps_session) {
            *self.connection.lock().await = Some(connection);
        }
        result.map_err(|failure| stopped(failure.explain(&self.server)))
    }
}

fn key(select: &Select, row: &tokio_postgres::Row, begin: usize) -> Result<Key, Failure> {
    let texts = (0..select.order.len()).map(|index| row.get::<_, Option<&str>>(begin + index).unwrap_or("infinity"));
    select.key(texts).map_err(|why| SinkError::Fatal(why).into())
}

#[async_trait]
impl Database for Postgres {
    async fn rows(&self, range: &Range) -> Result<Vec<Row>, SourceError> {
        let connection = self.take().await.map_err(stopped)?;
        let rows = self.read(&connection, range).await;
        self.done(connection, rows).await
    }

    async fn last(&self) -> Result<Option<Key>, SourceError> {
        let connection = self.take().await.map_err(stopped)?;
        let last = self.read_last(&connection).await;
        self.done(connection, last).await
    }
}
