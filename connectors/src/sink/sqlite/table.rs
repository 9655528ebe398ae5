//! The user's table: made where it is absent, checked column by column where it is there.

use arrow::datatypes::{DataType, Schema};
use rusqlite::{Connection, OptionalExtension as _};

use super::database::{Doing, Failure};
use crate::{codec::type_name, sink::SinkError};

/// The table, and how rows get into it.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: String,
    /// The key of an upsert; empty: append.
    pub(super) key: Vec<String>,
}

struct Column {
    name: String,
    declared: String,
    required: bool,
}

pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn list<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    names.into_iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
}

/// The type that a column of the job gets in a table of ours.
fn declared(kind: &DataType) -> &'static str {
    match kind {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32 => "INTEGER",
        DataType::Float16 | DataType::Float32 | DataType::Float64 => "REAL",
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => "BLOB",
        // Texts that SQLite's own functions read: RFC 3339 for times, ISO for dates, exact digits for decimals, JSON.
        _ => "TEXT",
    }
}

/// SQLite's rules for the affinity of a declared type (datatype3.html, 3.1).
fn affinity(declared: &str) -> &'static str {
    let declared = declared.to_ascii_uppercase();
    let has = |part: &str| declared.contains(part);
    if has("INT") {
        "INTEGER"
    } else if has("CHAR") || has("CLOB") || has("TEXT") {
        "TEXT"
    } else if declared.is_empty() || has("BLOB") {
        "BLOB"
    } else if has("REAL") || has("FLOA") || has("DOUB") {
        "REAL"
    } else {
        "NUMERIC"
    }
}

/// Whether values of a job's type stay what they are in a column of this affinity.
fn keeps(affinity: &str, kind: &DataType) -> bool {
    match (declared(kind), affinity) {
        (mine, theirs) if mine == theirs => true,
        // No affinity: SQLite stores what it is given.
        (_, "BLOB") => true,
        ("INTEGER" | "REAL", "NUMERIC") => true,
        // Doubles hold every 32-bit integer.
        ("INTEGER", "REAL") => !matches!(kind, DataType::Int64),
        // DATE and DATETIME have the affinity NUMERIC, which leaves a text alone that is no number.
        ("TEXT", "NUMERIC") => matches!(kind, DataType::Timestamp(..) | DataType::Date32),
        _ => false,
    }
}

impl Table {
    /// Makes the table or checks it. Not part of any batch.
    pub(super) fn prepare(&self, connection: &Connection, schema: &Schema) -> Result<(), Failure> {
        if self.name.to_ascii_lowercase().starts_with("tidemill_") {
            return Err(self
                .fatal("names that begin with tidemill_ are this program's own: choose another table")
                .into());
        }
        for key in &self.key {
            if schema.index_of(key).is_err() {
                let columns = schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ");
                return Err(self
                    .fatal(&format!("the key column `{key}` is not among the rows' columns: {columns}"))
                    .into());
            }
        }
        let columns = self.columns(connection).doing("looking at the table of")?;
        if columns.is_empty() {
            return connection.execute_batch(&self.create(schema)).doing("making the table in");
        }
        self.check(&columns, schema)?;
        let takes = self.view_takes_rows(connection).doing("looking at the table of")?;
        if takes.is_some_and(|takes| !takes || !self.key.is_empty()) {
            let why =
                "it is a view, which takes no upserts, and rows only by a trigger INSTEAD OF INSERT: name a table";
            return Err(self.fatal(why).into());
        }
        if self.key.is_empty() || self.has_unique_key(connection).doing("looking at the indexes of")? {
            return Ok(());
        }
        let (table, key) = (quoted(&self.name), list(&self.key));
        Err(self
            .fatal(&format!("an upsert needs a unique index on its key: CREATE UNIQUE INDEX ... ON {table} ({key})"))
            .into())
    }

    fn create(&self, schema: &Schema) -> String {
        let columns =
            schema.fields().iter().map(|field| format!("{} {}", quoted(field.name()), declared(field.data_type())));
        let mut parts: Vec<String> = columns.collect();
        if !self.key.is_empty() {
            parts.push(format!("UNIQUE ({})", list(&self.key)));
        }
        format!("CREATE TABLE IF NOT EXISTS {} ({})", quoted(&self.name), parts.join(", "))
    }

    fn check(&self, columns: &[Column], schema: &Schema) -> Result<(), SinkError> {
        for field in schema.fields() {
            let wanted = declared(field.data_type());
            let Some(column) = columns.iter().find(|column| column.name.eq_ignore_ascii_case(field.name())) else {
                let (table, name) = (quoted(&self.name), quoted(field.name()));
                return Err(self.fatal(&format!(
                    "it has no column `{}` ({}): ALTER TABLE {table} ADD COLUMN {name} {wanted}, or drop the column in the job",
                    field.name(),
                    type_name(field.data_type())
                )));
            };
            if !keeps(affinity(&column.declared), field.data_type()) {
                return Err(self.fatal(&format!(
                    "column `{}` is {} there and {} in the job (which needs {wanted}): cast it in the job, or use another table",
                    field.name(),
                    column.declared,
                    type_name(field.data_type())
                )));
            }
        }
        let missing = columns.iter().find(|column| column.required && schema.index_of(&column.name).is_err());
        missing.map_or(Ok(()), |column| {
            Err(self.fatal(&format!(
                "its column `{}` must not be null and has no default, but the rows do not have it",
                column.name
            )))
        })
    }

    fn columns(&self, connection: &Connection) -> rusqlite::Result<Vec<Column>> {
        let sql = "SELECT name, type, \"notnull\" AND dflt_value IS NULL AND pk = 0 FROM pragma_table_info(?1)";
        let mut statement = connection.prepare(sql)?;
        let read =
            |row: &rusqlite::Row<'_>| Ok(Column { name: row.get(0)?, declared: row.get(1)?, required: row.get(2)? });
        statement.query_map([&self.name], read)?.collect()
    }

    /// Of a view: whether it has a trigger.
    fn view_takes_rows(&self, connection: &Connection) -> rusqlite::Result<Option<bool>> {
        let sql = "SELECT EXISTS (SELECT 1 FROM sqlite_schema t WHERE t.type = 'trigger' AND t.tbl_name = v.name)
            FROM sqlite_schema v WHERE v.type = 'view' AND lower(v.name) = lower(?1)";
        connection.query_row(sql, [&self.name], |row| row.get(0)).optional()
    }

    fn has_unique_key(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let mut wanted: Vec<String> = self.key.iter().map(|key| key.to_ascii_lowercase()).collect();
        wanted.sort();
        let sql = "SELECT name FROM pragma_index_list(?1) WHERE \"unique\" = 1 AND partial = 0";
        let mut statement = connection.prepare(sql)?;
        let indexes: Vec<String> = statement.query_map([&self.name], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut statement = connection.prepare("SELECT lower(name) FROM pragma_index_info(?1) ORDER BY 1")?;
        for index in indexes {
            let columns: Vec<Option<String>> =
                statement.query_map([index], |row| row.get(0))?.collect::<Result<_, _>>()?;
            if columns.into_iter().collect::<Option<Vec<String>>>() == Some(wanted.clone()) {
                return Ok(true);
            }
        }
        // An INTEGER PRIMARY KEY is the row's own id and has no index.
        let sql = "SELECT lower(name) FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY 1";
        let mut statement = connection.prepare(sql)?;
        let primary: Vec<String> = statement.query_map([&self.name], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(primary == wanted)
    }

    /// The statement that writes one row of `schema`.
    pub(super) fn insert(&self, schema: &Schema) -> String {
        let names: Vec<&String> = schema.fields().iter().map(|field| field.name()).collect();
        let values = (1..=names.len()).map(|n| format!("?{n}")).collect::<Vec<_>>().join(", ");
        let columns = list(names.iter().copied());
        let mut sql = format!("INSERT INTO {} ({columns}) VALUES ({values})", quoted(&self.name));
        if !self.key.is_empty() {
            let others = names.iter().filter(|name| !self.key.contains(name));
            let sets: Vec<String> = others.map(|name| format!("{0} = excluded.{0}", quoted(name))).collect();
            let action = if sets.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {}", sets.join(", ")) };
            sql.push_str(&format!(" ON CONFLICT ({}) DO {action}", list(&self.key)));
        }
        sql
    }

    fn fatal(&self, why: &str) -> SinkError {
        SinkError::Fatal(format!("table `{}`: {why}", self.name))
    }
}
