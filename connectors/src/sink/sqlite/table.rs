//! The user's table: made where it is absent, checked column by column where it is there.

use arrow::datatypes::{DataType, Schema};
use rusqlite::{Connection, OptionalExtension as _};
use tidemill_config::OnNewColumn;

use super::{
    database::{Doing, Failure},
    marks::Scope,
};
use crate::{
    codec::type_name,
    sink::{
        SinkError,
        columns::{is_no_name, is_one_column, lacks, same_name},
    },
};

/// The table, and how rows get into it.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: String,
    /// The key of an upsert; empty: append.
    pub(super) key: Vec<String>,
    pub(super) on_new_column: OnNewColumn,
}

struct Column {
    name: String,
    declared: String,
    required: bool,
    /// Of a STRICT table: what is declared is what it takes.
    strict: bool,
}

impl Column {
    /// Whether values of a job's type stay what they are in it.
    fn keeps(&self, kind: &DataType) -> bool {
        match self.declared.to_ascii_uppercase().as_str() {
            "ANY" if self.strict => true,
            "BLOB" if self.strict => declared(kind) == "BLOB",
            _ => keeps(affinity(&self.declared), kind),
        }
    }
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

/// The columns that a table lacks.
fn absent<'s>(columns: &[Column], schema: &'s Schema) -> Vec<(&'s str, &'s DataType)> {
    let is_there = |name: &str| columns.iter().any(|column| column.name.eq_ignore_ascii_case(name));
    let fields = schema.fields().iter().filter(|field| !is_there(field.name()));
    fields.map(|field| (field.name().as_str(), field.data_type())).collect()
}

impl Table {
    /// Makes the table or checks it. Not part of any batch. One that was there and is gone is not made anew: the rows that it
    /// had would be missing without a word.
    pub(super) fn prepare(&self, connection: &Connection, scope: &Scope, schema: &Schema) -> Result<(), Failure> {
        let name = self.name.to_ascii_lowercase();
        self.names(schema)?;
        if self.on_new_column == OnNewColumn::Add {
            self.add(connection, schema).doing("adding columns to the table in")?;
        }
        if self.look(connection, schema, false)? {
            return scope.remember(connection, &name).doing("noting the table in");
        }
        if scope.remembers(connection, &name).doing("looking for the table of")? {
            return Err(self
                .fatal(&format!(
                    "it is gone, with the rows that were written to it: restore it, or make it again to go on with later rows only: {}. \
                     `tidemill checkpoint reset --sinks` begins anew",
                    self.create(schema)
                ))
                .into());
        }
        connection.execute_batch(&self.create(schema)).doing("making the table in")?;
        scope.remember(connection, &name).doing("noting the table in")
    }

    /// Adds the columns that the table lacks, where it is there.
    fn add(&self, connection: &Connection, schema: &Schema) -> rusqlite::Result<()> {
        let columns = self.columns(connection)?;
        if columns.is_empty() {
            return Ok(());
        }
        for (name, kind) in absent(&columns, schema) {
            let (table, column, kind) = (quoted(&self.name), quoted(name), declared(kind));
            connection.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN {column} {kind}"))?;
            tracing::info!(table = self.name, column = name, kind, "column added to the table");
        }
        Ok(())
    }

    /// Whether the table is there; an error where rows of the schema could not be written to it. Changes nothing. `before`:
    /// what the sink is to add may be absent.
    pub(super) fn look(&self, connection: &Connection, schema: &Schema, before: bool) -> Result<bool, Failure> {
        self.names(schema)?;
        let columns = self.columns(connection).doing("looking at the table of")?;
        if columns.is_empty() {
            return Ok(false);
        }
        self.check(&columns, schema, before && self.on_new_column == OnNewColumn::Add)?;
        let takes = self.view_takes_rows(connection).doing("looking at the table of")?;
        if takes.is_some_and(|takes| !takes || !self.key.is_empty()) {
            let why =
                "it is a view, which takes no upserts, and rows only by a trigger INSTEAD OF INSERT: name a table";
            return Err(self.fatal(why).into());
        }
        if self.key.is_empty() || self.has_unique_key(connection).doing("looking at the indexes of")? {
            return Ok(true);
        }
        let (table, key) = (quoted(&self.name), list(&self.key));
        Err(self
            .fatal(&format!("an upsert needs a unique index on its key: CREATE UNIQUE INDEX ... ON {table} ({key})"))
            .into())
    }

    /// What can be wrong without a look at the file.
    pub(super) fn names(&self, schema: &Schema) -> Result<(), SinkError> {
        if self.name.to_ascii_lowercase().starts_with("tidemill_") {
            return Err(self.fatal("names that begin with tidemill_ are this program's own: choose another table"));
        }
        let names = || schema.fields().iter().map(|field| field.name().as_str());
        if let Some(key) = self.key.iter().find(|key| schema.index_of(key).is_err()) {
            let columns = names().collect::<Vec<_>>().join(", ");
            return Err(self.fatal(&format!("the key column `{key}` is not among the rows' columns: {columns}")));
        }
        if let Some(name) = names().find(|name| name.contains('\0')) {
            return Err(self.fatal(&is_no_name("SQLite", name, "with a zero byte")));
        }
        match same_name(names(), str::to_ascii_lowercase) {
            Some(pair) => Err(self.fatal(&is_one_column("SQLite", pair))),
            None => Ok(()),
        }
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

    fn check(&self, columns: &[Column], schema: &Schema, adds: bool) -> Result<(), SinkError> {
        let of = |name: &str| columns.iter().find(|column| column.name.eq_ignore_ascii_case(name));
        let absent = absent(columns, schema);
        if !absent.is_empty() && !adds {
            let (table, add) = (quoted(&self.name), "ADD COLUMN");
            // A statement of SQLite adds one column.
            let more = if absent.len() > 1 { " (each by a statement of its own)" } else { "" };
            let declared = |kind: &DataType| declared(kind).to_owned();
            return Err(self.fatal(&(lacks(&table, add, &absent, quoted, declared) + more)));
        }
        for field in schema.fields() {
            let Some(column) = of(field.name()) else { continue };
            if !column.keeps(field.data_type()) {
                let wanted = declared(field.data_type());
                return Err(self.fatal(&format!(
                    "column `{}` is {} there and {} in the job (which needs {wanted}): cast it in the job, or use another table",
                    field.name(),
                    column.declared,
                    type_name(field.data_type())
                )));
            }
        }
        let given = |name: &str| schema.fields().iter().any(|field| field.name().eq_ignore_ascii_case(name));
        let missing = columns.iter().find(|column| column.required && !given(&column.name));
        missing.map_or(Ok(()), |column| {
            Err(self.fatal(&format!(
                "its column `{}` must not be null and has no default, but the rows do not have it",
                column.name
            )))
        })
    }

    fn columns(&self, connection: &Connection) -> rusqlite::Result<Vec<Column>> {
        let sql = "SELECT strict FROM pragma_table_list WHERE schema = 'main' AND lower(name) = lower(?1)";
        let strict = connection.query_row(sql, [&self.name], |row| row.get(0)).optional()?.unwrap_or(false);
        let sql = "SELECT name, type, \"notnull\" AND dflt_value IS NULL AND pk = 0 FROM pragma_table_info(?1)";
        let mut statement = connection.prepare(sql)?;
        let read = |row: &rusqlite::Row<'_>| {
            Ok(Column { name: row.get(0)?, declared: row.get(1)?, required: row.get(2)?, strict })
        };
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
