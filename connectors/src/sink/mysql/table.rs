//! The user's table: made where it is absent, checked column by column where it is there.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Field, Schema};
use tidemill_config::OnNewColumn;

use super::{
    database::{Failure, Session},
    marks::Scope,
};
use crate::{
    codec::type_name,
    sink::{
        SinkError,
        cell::fraction_digits,
        columns::{is_no_name, is_one_column, lacks, same_name},
    },
};

/// What the server says of a column that is there already.
const DUPLICATE_COLUMN: u16 = 1060;

/// Characters that a name of the server has at most.
const LONGEST_NAME: usize = 64;

/// Bytes of a key in an index, in all its text columns together.
const KEY_BYTES: usize = 3072;

/// By these texts are compared by their bytes: MariaDB's, MySQL's from 8.0.17 on, and the one that all have, to which spaces at
/// the end are nothing.
const COLLATIONS: [&str; 3] = ["utf8mb4_nopad_bin", "utf8mb4_0900_bin", "utf8mb4_bin"];

/// The first of [`COLLATIONS`] that the server has.
async fn collation(session: &mut Session) -> Result<&'static str, Failure> {
    let [first, second, last] = COLLATIONS;
    let sql = "SELECT collation_name FROM information_schema.collations WHERE collation_name IN (?, ?)";
    let found: Vec<String> = session.rows("looking at the collations of", sql, (first, second)).await?;
    Ok([first, second].into_iter().find(|name| found.iter().any(|there| there == name)).unwrap_or(last))
}

/// The table, and how rows get into it.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// As the job names it: `table`, or `database.table`.
    pub(super) name: String,
    /// The key of an upsert; empty: append.
    pub(super) key: Vec<String>,
    /// The column that says which rows delete their key.
    pub(super) delete_when: Option<String>,
    pub(super) on_new_column: OnNewColumn,
}

/// Columns that are an ENUM or SET, by their names in lower case, and their values.
pub(super) type Members = BTreeMap<String, Vec<String>>;

/// A column as the server describes it.
struct Column {
    name: String,
    /// Its type without sizes: `varchar`.
    kind: String,
    /// Its whole type: `varchar(20)`, `int(11) unsigned`.
    declared: String,
    /// Digits in all, and after the point.
    digits: Option<(u64, u64)>,
    /// Digits behind the second.
    fraction: Option<u64>,
    /// It must be given, and is not made by the server.
    required: bool,
    nullable: bool,
    /// The server makes it.
    generated: bool,
    /// Rows that do not have it differ in it, or are null: the server counts it, or makes UUIDs.
    apart: bool,
}

impl Column {
    /// The values of an ENUM or SET: `enum('a','it''s')`.
    fn members(&self) -> Option<Vec<String>> {
        let list = self.declared.strip_prefix(&self.kind).filter(|_| matches!(&*self.kind, "enum" | "set"))?;
        let list = list.strip_prefix("('")?.strip_suffix("')")?;
        Some(list.split("','").map(|member| member.replace("''", "'")).collect())
    }
}

type ColumnRow = (String, String, String, Option<u64>, Option<u64>, Option<u64>, String, Option<String>, String);

pub(super) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(quoted).collect::<Vec<_>>().join(", ")
}

/// The type that a column of the job gets in a table of ours.
fn declared(kind: &DataType) -> String {
    match kind {
        DataType::Boolean => "TINYINT(1)".into(),
        DataType::Int8 => "TINYINT".into(),
        DataType::Int16 => "SMALLINT".into(),
        DataType::Int32 => "INT".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::UInt8 => "TINYINT UNSIGNED".into(),
        DataType::UInt16 => "SMALLINT UNSIGNED".into(),
        DataType::UInt32 => "INT UNSIGNED".into(),
        DataType::UInt64 => "BIGINT UNSIGNED".into(),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => "DOUBLE".into(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision},{scale})"),
        DataType::Timestamp(..) => "DATETIME(6)".into(),
        DataType::Date32 => "DATE".into(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            "LONGBLOB".into()
        }
        DataType::List(_) | DataType::Struct(_) => "JSON".into(),
        _ => "LONGTEXT".into(),
    }
}

/// The same in a key, which has a limited length.
fn declared_key(kind: &DataType, columns: usize) -> String {
    let bytes = KEY_BYTES / columns.max(1);
    match declared(kind).as_str() {
        "LONGTEXT" => format!("VARCHAR({})", (bytes / 4).min(255)),
        "LONGBLOB" => format!("VARBINARY({})", bytes.min(255)),
        other => other.to_owned(),
    }
}

/// Decimal digits that hold every value of an integer type, and whether it has negative ones.
fn integer_digits(kind: &DataType) -> Option<(u64, bool)> {
    Some(match kind {
        DataType::Int8 => (3, true),
        DataType::Int16 => (5, true),
        DataType::Int32 => (10, true),
        DataType::Int64 => (19, true),
        DataType::UInt8 => (3, false),
        DataType::UInt16 => (5, false),
        DataType::UInt32 => (10, false),
        DataType::UInt64 => (20, false),
        _ => return None,
    })
}

/// Bytes of the server's integer types.
fn integer_bytes(kind: &str) -> Option<u64> {
    ["tinyint", "smallint", "mediumint", "int"]
        .iter()
        .position(|of| *of == kind)
        .map(|n| n as u64 + 1)
        .or_else(|| (kind == "bigint").then_some(8))
}

/// Whether values of a job's type stay what they are in the column. A text may be too long for one, or a number negative:
/// that is seen row by row.
fn keeps(column: &Column, kind: &DataType) -> bool {
    let there = column.kind.as_str();
    let decimal = column.digits.filter(|_| there == "decimal");
    if let Some((digits, _)) = integer_digits(kind) {
        let bytes = match digits {
            3 => 1,
            5 => 2,
            10 => 4,
            _ => 8,
        };
        // The job has no narrower integers: a value that does not fit is seen row by row.
        let bytes = if *kind == DataType::Int32 { 1 } else { bytes };
        return integer_bytes(there).is_some_and(|there| there >= bytes)
            || decimal.is_some_and(|(all, after)| all - after >= digits)
            || (matches!(there, "double" | "real") && digits <= 10);
    }
    match kind {
        DataType::Boolean => integer_bytes(there).is_some() || there == "bit",
        DataType::Float32 => matches!(there, "double" | "real" | "float"),
        DataType::Float16 | DataType::Float64 => matches!(there, "double" | "real"),
        DataType::Decimal128(precision, scale) => decimal.is_some_and(|(all, after)| {
            let scale = u64::try_from(*scale).unwrap_or_default();
            after >= scale && all - after >= u64::from(*precision) - scale
        }),
        DataType::Timestamp(..) => matches!(there, "datetime" | "timestamp"),
        DataType::Date32 => matches!(there, "date" | "datetime"),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            there.ends_with("blob") || there == "varbinary"
        }
        DataType::List(_) | DataType::Struct(_) => there == "json" || there.ends_with("text"),
        _ => {
            there.ends_with("text") || matches!(there, "char" | "varchar" | "enum" | "set" | "json" | "uuid" | "inet6")
        }
    }
}

impl Table {
    /// The table's name for statements.
    pub(super) fn path(&self) -> String {
        self.name.split('.').map(quoted).collect::<Vec<_>>().join(".")
    }

    /// The columns that are stored.
    pub(super) fn stored<'a>(&self, schema: &'a Schema) -> impl Iterator<Item = &'a Field> {
        let without = self.delete_when.clone();
        schema.fields().iter().map(AsRef::as_ref).filter(move |field| Some(field.name()) != without.as_ref())
    }

    /// Makes the table or checks it. Not part of any batch. One that was there by these marks and is gone is not made anew: the
    /// rows that it had would be missing without a word.
    pub(super) async fn prepare(
        &self,
        session: &mut Session,
        marks: Option<&Scope>,
        schema: &Schema,
    ) -> Result<Members, Failure> {
        if self.on_new_column == OnNewColumn::Add {
            self.check_names(Some(schema))?;
            self.add(session, schema).await?;
        }
        if let Some(columns) = self.check(session, Some(schema), false).await? {
            if let Some(scope) = marks {
                scope.remember(session, &self.name).await?;
            }
            let members = |column: &Column| Some((column.name.to_lowercase(), column.members()?));
            return Ok(columns.iter().filter_map(members).collect());
        }
        let statement = self.create(schema, collation(session).await?);
        let was_there = match marks {
            Some(scope) => scope.remembers(session, &self.name).await?,
            None => false,
        };
        if was_there {
            return Err(self
                .fatal(&format!(
                    "it is gone, with the rows that were written to it: restore it, or make it again to go on with later rows only: \
                     {statement}. `tidemill checkpoint reset --sinks` begins anew"
                ))
                .into());
        }
        session.run("making the table in", statement).await?;
        if let Some(scope) = marks {
            scope.remember(session, &self.name).await?;
        }
        Ok(Members::new())
    }

    /// Adds the columns that the table lacks, where it is there.
    async fn add(&self, session: &mut Session, schema: &Schema) -> Result<(), Failure> {
        let columns = self.columns(session).await?;
        let absent = self.absent(&columns, schema);
        if columns.is_empty() || absent.is_empty() {
            return Ok(());
        }
        let added: Vec<String> =
            absent.iter().map(|(name, kind)| format!("ADD COLUMN {} {}", quoted(name), declared(kind))).collect();
        let (table, added) = (self.path(), added.join(", "));
        match session.run("adding columns to the table in", format!("ALTER TABLE {table} {added}")).await {
            // Another lane was quicker.
            Err(failure) if failure.code() == Some(DUPLICATE_COLUMN) => Ok(()),
            Err(failure) => Err(failure),
            Ok(_) => {
                tracing::info!(table, added, "columns added to the table");
                Ok(())
            }
        }
    }

    /// The columns that a table lacks.
    fn absent<'s>(&self, columns: &[Column], schema: &'s Schema) -> Vec<(&'s str, &'s DataType)> {
        let is_there = |name: &str| columns.iter().any(|column| column.name.to_lowercase() == name.to_lowercase());
        let fields = self.stored(schema).filter(|field| !is_there(field.name()));
        fields.map(|field| (field.name().as_str(), field.data_type())).collect()
    }

    /// Looks whether rows of the schema could be written. The table's columns, if it is there. `before`: what the sink is to add
    /// may be absent.
    async fn check(
        &self,
        session: &mut Session,
        schema: Option<&Schema>,
        before: bool,
    ) -> Result<Option<Vec<Column>>, Failure> {
        self.check_names(schema)?;
        let columns = self.columns(session).await?;
        if columns.is_empty() {
            return Ok(None);
        }
        if let Some(schema) = schema {
            self.check_columns(&columns, schema, before && self.on_new_column == OnNewColumn::Add)?;
            self.check_keys(session, &columns, schema).await?;
        }
        Ok(Some(columns))
    }

    /// Whether this user may do what the sink does with the table.
    pub(super) async fn look(&self, session: &mut Session, schema: Option<&Schema>) -> Result<(), Failure> {
        let what = "looking at the rights of the user in";
        let there = self.check(session, schema, true).await?;
        let lacks = |schema| there.as_ref().is_some_and(|columns| !self.absent(columns, schema).is_empty());
        let is_there = there.is_some();
        match schema {
            // What is written is known once the columns are added.
            Some(schema) if lacks(schema) => Ok(()),
            Some(schema) if !is_there => {
                let collation = collation(session).await?;
                session.look(what, &self.create(schema, collation)).await
            }
            Some(schema) => {
                let names: Vec<&str> = self.stored(schema).map(|field| field.name().as_str()).collect();
                let values = vec!["?"; names.len()].join(", ");
                let insert = format!("{} ({values}){}", self.insert(schema), self.update(schema));
                session.look(what, &insert).await?;
                match self.delete_when {
                    Some(_) => session.look(what, &format!("DELETE FROM {} WHERE 1 = 0", self.path())).await,
                    None => Ok(()),
                }
            }
            None => Ok(()),
        }
    }

    fn check_names(&self, schema: Option<&Schema>) -> Result<(), SinkError> {
        if self.name.split('.').any(|part| part.to_ascii_lowercase().starts_with("tidemill_")) {
            return Err(self.fatal("names that begin with tidemill_ are this program's own: choose another table"));
        }
        let Some(schema) = schema else { return Ok(()) };
        let names = || self.stored(schema).map(|field| field.name().as_str());
        if let Some(name) = names().find(|name| name.contains('\0')) {
            return Err(self.fatal(&is_no_name("MySQL", name, "with a zero byte")));
        }
        if let Some(name) = names().find(|name| name.chars().count() > LONGEST_NAME || name.ends_with(' ')) {
            let why = format!("of more than {LONGEST_NAME} characters, or with a space at its end");
            return Err(self.fatal(&is_no_name("MySQL", name, &why)));
        }
        if let Some(pair) = same_name(names(), str::to_lowercase) {
            return Err(self.fatal(&is_one_column("MySQL", pair)));
        }
        let columns = || schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ");
        if let Some(key) = self.key.iter().find(|key| schema.index_of(key).is_err()) {
            return Err(self.fatal(&format!("the key column `{key}` is not among the rows' columns: {}", columns())));
        }
        let Some(flag) = &self.delete_when else { return Ok(()) };
        match schema.field_with_name(flag) {
            Err(_) => Err(self
                .fatal(&format!("the column `{flag}` of `delete_when` is not among the rows' columns: {}", columns()))),
            Ok(field) if *field.data_type() != DataType::Boolean => Err(self.fatal(&format!(
                "the column `{flag}` of `delete_when` is {} and must be boolean: cast it in the job",
                type_name(field.data_type())
            ))),
            Ok(_) => Ok(()),
        }
    }

    fn create(&self, schema: &Schema, collation: &str) -> String {
        let texts = |field: &&Field| matches!(declared(field.data_type()).as_str(), "LONGTEXT" | "LONGBLOB");
        let is_key = |field: &&Field| self.key.contains(field.name());
        let limited = self.stored(schema).filter(is_key).filter(texts).count();
        let column = |field: &Field| {
            let (name, kind) = (quoted(field.name()), field.data_type());
            if is_key(&field) {
                format!("{name} {} NOT NULL", declared_key(kind, limited))
            } else {
                format!("{name} {} NULL", declared(kind))
            }
        };
        let mut parts: Vec<String> = self.stored(schema).map(column).collect();
        if !self.key.is_empty() {
            parts.push(format!("PRIMARY KEY ({})", list(self.key.iter().map(String::as_str))));
        }
        let (path, parts) = (self.path(), parts.join(", "));
        format!("CREATE TABLE IF NOT EXISTS {path} ({parts}) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE={collation}")
    }

    fn check_columns(&self, columns: &[Column], schema: &Schema, adds: bool) -> Result<(), SinkError> {
        let of = |name: &str| columns.iter().find(|column| column.name.to_lowercase() == name.to_lowercase());
        let absent = self.absent(columns, schema);
        if !absent.is_empty() && !adds {
            return Err(self.fatal(&lacks(&self.path(), "ADD COLUMN", &absent, quoted, declared)));
        }
        for field in self.stored(schema) {
            let (name, mine, wanted) = (field.name(), type_name(field.data_type()), declared(field.data_type()));
            let Some(column) = of(name) else { continue };
            if column.generated {
                return Err(self.fatal(&format!("column `{name}` is made by the server: drop the column in the job")));
            }
            if !keeps(column, field.data_type()) {
                return Err(self.fatal(&format!(
                    "column `{name}` is {} there and {mine} in the job (which needs {wanted}): cast it in the job, or ALTER TABLE {} MODIFY {} {wanted}",
                    column.declared,
                    self.path(),
                    quoted(name)
                )));
            }
            // The server would round or cut: keys that differ would be one.
            let digits = fraction_digits(field.data_type());
            if self.key.contains(name) && column.fraction.zip(digits).is_some_and(|(there, wanted)| there < wanted) {
                return Err(self.fatal(&format!(
                    "the key column `{name}` is {} there, which keeps too few digits of a second to tell its keys apart: ALTER TABLE {} MODIFY {} DATETIME(6) NOT NULL",
                    column.declared,
                    self.path(),
                    quoted(name)
                )));
            }
        }
        let given = |column: &Column| self.stored(schema).any(|field| field.name().eq_ignore_ascii_case(&column.name));
        match columns.iter().find(|column| column.required && !given(column)) {
            None => Ok(()),
            Some(column) => Err(self.fatal(&format!(
                "its column `{}` must not be null and has no default, but the rows do not have it",
                column.name
            ))),
        }
    }

    /// An upsert finds its row by any unique index: by the key's there must be one, and by another there must be no way.
    async fn check_keys(&self, session: &mut Session, columns: &[Column], schema: &Schema) -> Result<(), Failure> {
        if self.key.is_empty() {
            return Ok(());
        }
        let what = "looking at the indexes of";
        let sql = "SELECT index_name, column_name, sub_part FROM information_schema.statistics
            WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND non_unique = 0
            ORDER BY index_name, seq_in_index";
        let rows: Vec<(String, Option<String>, Option<u64>)> = session.rows(what, sql, self.parts()).await?;
        let sql = "SELECT trigger_name FROM information_schema.triggers
            WHERE event_object_schema = COALESCE(?, DATABASE()) AND event_object_table = ?
                AND action_timing = 'BEFORE' AND event_manipulation = 'INSERT'";
        let trigger: Option<String> = session.first(what, sql, self.parts()).await?;
        let lower = |name: &String| name.to_lowercase();
        let mut wanted: Vec<String> = self.key.iter().map(lower).collect();
        wanted.sort();
        let stored: Vec<String> = self.stored(schema).map(|field| lower(field.name())).collect();
        // What a trigger may fill in is never known to be null.
        let is_apart = |name: &String| {
            let column = columns.iter().find(|column| lower(&column.name) == *name && !stored.contains(name));
            column.is_some_and(|column| column.apart && (trigger.is_none() || !column.nullable))
        };
        let mut found = false;
        for index in rows.chunk_by(|a, b| a.0 == b.0) {
            // A part that is an expression has no column.
            let mut columns: Vec<String> =
                index.iter().map(|(_, column, _)| column.as_ref().map(lower).unwrap_or_default()).collect();
            columns.sort();
            if columns == wanted && index.iter().all(|(_, _, part)| part.is_none()) {
                found = true;
            } else if !columns.iter().any(is_apart) {
                let name = index.first().map_or("", |(name, _, _)| name);
                let filled = match &trigger {
                    Some(trigger) if !columns.iter().all(|column| stored.contains(column)) => {
                        format!(" (trigger `{trigger}` may fill it)")
                    }
                    _ => String::new(),
                };
                return Err(self
                    .fatal(&format!(
                        "its unique index `{name}` ({}){filled} is not the key of the upsert, and a row that meets another one in it would replace that one: make the index a plain one, or `key` its columns",
                        columns.join(", ")
                    ))
                    .into());
            }
        }
        if found {
            return Ok(());
        }
        let (path, key) = (self.path(), list(self.key.iter().map(String::as_str)));
        Err(self
            .fatal(&format!("an upsert needs a unique index on its key: ALTER TABLE {path} ADD UNIQUE INDEX ({key})"))
            .into())
    }

    /// The database, where the job names one, and the table.
    fn parts(&self) -> (Option<&str>, &str) {
        self.name.split_once('.').map_or((None, &self.name), |(database, table)| (Some(database), table))
    }

    /// The table's columns, none where it is absent. A table without transactions is refused.
    async fn columns(&self, session: &mut Session) -> Result<Vec<Column>, Failure> {
        let what = "looking at the table of";
        let sql = "SELECT table_type, engine FROM information_schema.tables
            WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?";
        let Some((kind, engine)) = session.first::<(String, Option<String>)>(what, sql, self.parts()).await? else {
            return Ok(Vec::new());
        };
        let engine = engine.unwrap_or_default();
        if kind != "BASE TABLE" {
            return Err(self
                .fatal(&format!("it is no table there but a {}: name a table", kind.to_lowercase()))
                .into());
        }
        if !engine.eq_ignore_ascii_case("innodb") {
            return Err(self
                .fatal(&format!(
                    "it has the engine {engine}, which has no transactions, so that rows could be lost or doubled: ALTER TABLE {} ENGINE=InnoDB",
                    self.path()
                ))
                .into());
        }
        let sql = "SELECT column_name, data_type, column_type, numeric_precision, numeric_scale,
                datetime_precision, is_nullable, column_default, extra
            FROM information_schema.columns WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?
            ORDER BY ordinal_position";
        let rows: Vec<ColumnRow> = session.rows(what, sql, self.parts()).await?;
        let column = |(name, kind, declared, all, after, fraction, nullable, default, extra): ColumnRow| {
            let extra = extra.to_lowercase();
            let generated = extra.contains("generated") && !extra.contains("default_generated");
            let counted = extra.contains("auto_increment");
            let nullable = nullable == "YES";
            let required = !nullable && !generated && !counted && default.is_none();
            // MariaDB says that null is the default.
            let default = default.filter(|default| !default.eq_ignore_ascii_case("null")).map(|it| it.to_lowercase());
            let apart = match &default {
                Some(default) => default.contains("uuid("),
                None => nullable || counted,
            };
            let (kind, digits) = (kind.to_lowercase(), all.map(|all| (all, after.unwrap_or_default())));
            Column { name, kind, declared, digits, fraction, required, nullable, generated, apart: apart && !generated }
        };
        Ok(rows.into_iter().map(column).collect())
    }

    /// What stands before the rows of an insert.
    pub(super) fn insert(&self, schema: &Schema) -> String {
        let columns = list(self.stored(schema).map(|field| field.name().as_str()));
        format!("INSERT INTO {} ({columns}) VALUES ", self.path())
    }

    /// What stands behind them.
    pub(super) fn update(&self, schema: &Schema) -> String {
        let Some(first) = self.key.first() else { return String::new() };
        let others = self.stored(schema).filter(|field| !self.key.contains(field.name()));
        let mut sets: Vec<String> = others.map(|field| format!("{0} = VALUES({0})", quoted(field.name()))).collect();
        if sets.is_empty() {
            sets.push(format!("{0} = {0}", quoted(first)));
        }
        format!(" ON DUPLICATE KEY UPDATE {}", sets.join(", "))
    }

    /// What stands before the conditions of a delete.
    pub(super) fn delete(&self) -> String {
        format!("DELETE FROM {} WHERE ", self.path())
    }

    fn fatal(&self, why: &str) -> SinkError {
        SinkError::Fatal(format!("table `{}`: {why}", self.name))
    }
}
