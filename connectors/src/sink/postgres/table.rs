//! The user's table: made where it is absent, checked column by column where it is there.

use arrow::datatypes::{DataType, Schema, SchemaRef};
use tidemill_config::OnNewColumn;
use tokio_postgres::Row;

use super::{
    database::Connection,
    encode::{Kind, MICROSECOND, Rule},
    failure::{Doing, Failure},
    marks::LOCK,
};
use crate::{
    codec::type_name,
    sink::{SinkError, cell::fraction_digits, columns::lacks},
};

/// Names of PostgreSQL have at most so many bytes: it cuts longer ones, and they are not found again.
const LONGEST_NAME: usize = 63;

/// The table as the job has it, and how rows get into it.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// `None`: where the user's `search_path` leads.
    pub(super) schema: Option<String>,
    pub(super) name: String,
    /// The key of an upsert; empty: append.
    pub(super) key: Vec<String>,
    /// The column that says which rows delete theirs.
    pub(super) delete_when: Option<String>,
    pub(super) on_new_column: OnNewColumn,
}

/// A table as the server has it.
struct Found {
    oid: u32,
    columns: Vec<Column>,
}

struct Column {
    name: String,
    number: i16,
    oid: u32,
    shown: String,
    required: bool,
    generated: bool,
    /// Digits behind the second, where the column says how many.
    digits: Option<u64>,
    kind: Kind,
}

/// Where a column of the rows goes.
#[derive(Clone, Debug)]
pub(super) struct Field {
    /// Its index in the rows.
    pub(super) index: usize,
    pub(super) name: String,
    pub(super) rule: Rule,
}

/// A table for rows of one schema.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) schema: SchemaRef,
    /// Quoted, with its schema.
    pub(super) table: String,
    pub(super) fields: Vec<Field>,
    /// Indices of the key's columns among the rows'.
    pub(super) key: Vec<usize>,
    /// The index of the flag of rows that delete.
    pub(super) flag: Option<usize>,
    /// A query that fails where the columns' types are not any more what rows were encoded for.
    pub(super) guard: String,
}

pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(super) fn list<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    names.into_iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
}

/// Whether rows of one schema can go where those of the other do.
pub(super) fn same_columns(one: &Schema, other: &Schema) -> bool {
    let columns = |schema: &Schema| schema.fields().len();
    columns(one) == columns(other)
        && one.fields().iter().zip(other.fields()).all(|(a, b)| a.name() == b.name() && a.data_type() == b.data_type())
}

/// The type that a column of the job gets in a table of ours.
fn declared(kind: &DataType) -> String {
    let fixed = match kind {
        DataType::Boolean => "boolean",
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => "smallint",
        DataType::Int32 | DataType::UInt16 => "integer",
        DataType::Int64 | DataType::UInt32 => "bigint",
        DataType::UInt64 => "numeric(20, 0)",
        DataType::Float32 => "real",
        DataType::Float64 => "double precision",
        DataType::Decimal128(precision, scale) => return format!("numeric({precision}, {scale})"),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => "bytea",
        DataType::Timestamp(_, Some(_)) => "timestamptz",
        DataType::Timestamp(_, None) => "timestamp",
        DataType::Date32 => "date",
        DataType::List(item) => match item.data_type() {
            DataType::List(_) | DataType::Struct(_) | DataType::Null => "jsonb",
            item => return format!("{}[]", declared(item)),
        },
        DataType::Struct(_) => "jsonb",
        _ => "text",
    };
    fixed.to_owned()
}

/// The kind of a type, by its number in every PostgreSQL (`pg_type.dat`); enums and `citext` are sent as texts.
fn kind(oid: u32, class: &str, name: &str, modifier: i32) -> Kind {
    match oid {
        16 => Kind::Bool,
        17 => Kind::Bytea,
        20 => Kind::Int8,
        21 => Kind::Int2,
        23 => Kind::Int4,
        19 | 25 | 1042 | 1043 => Kind::Text,
        114 => Kind::Json,
        700 => Kind::Float4,
        701 => Kind::Float8,
        650 => Kind::Inet { cidr: true },
        869 => Kind::Inet { cidr: false },
        1082 => Kind::Date,
        1083 => Kind::Time(u8::try_from(modifier).map_or(MICROSECOND, |digits| digits.min(MICROSECOND))),
        1186 if modifier < 0 => Kind::Interval,
        // Where the column says nothing, all digits of a microsecond.
        1114 | 1184 => Kind::Timestamp(u8::try_from(modifier).map_or(MICROSECOND, |digits| digits.min(MICROSECOND))),
        1700 if modifier < 4 => Kind::Numeric(None),
        // The lower 11 bits are the scale, as a signed number.
        1700 => Kind::Numeric(Some((((modifier - 4) & 0x7ff) ^ 0x400) - 0x400)),
        2950 => Kind::Uuid,
        3802 => Kind::Jsonb,
        _ if class == "e" || name == "citext" => Kind::Text,
        _ => Kind::Other,
    }
}

const TABLE: &str = "SELECT c.oid, c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'f', 'm')";

/// A type as it is stored: domains by what they are made of, down to what is none, with that one's modifier.
const STORED: &str = "CROSS JOIN LATERAL (
        WITH RECURSIVE chain (oid, modifier) AS (
            SELECT {of}, {modifier}
            UNION ALL SELECT t.typbasetype, t.typtypmod FROM chain JOIN pg_type t ON t.oid = chain.oid AND t.typtype = 'd')
        SELECT t.*, t.oid AS number, chain.modifier FROM chain JOIN pg_type t ON t.oid = chain.oid AND t.typtype <> 'd') {as}";

/// The columns with what their types are made of: domains by their base, arrays by their elements, and those by theirs.
fn columns() -> String {
    let stored = |of: &str, modifier: &str, name: &str| {
        STORED.replace("{of}", of).replace("{modifier}", modifier).replace("{as}", name)
    };
    let element = stored("CASE WHEN b.typcategory = 'A' AND b.typlen = -1 THEN b.typelem END", "b.modifier", "e");
    format!(
        "SELECT a.attname::text, a.attnum, a.atttypid, format_type(a.atttypid, a.atttypmod),
            a.attnotnull AND NOT a.atthasdef AND a.attidentity = '', a.attgenerated <> '',
            b.number, b.typtype::text, b.typname::text, b.modifier,
            CASE WHEN e.number IS NOT NULL THEN b.typelem END, e.number, e.typtype::text, e.typname::text, e.modifier
        FROM pg_attribute a {} {}
        WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        stored("a.atttypid", "a.atttypmod", "b"),
        element.replacen("CROSS JOIN LATERAL", "LEFT JOIN LATERAL", 1) + " ON true"
    )
}

/// Unique indexes that `ON CONFLICT` can name: whole, over plain columns, checked at once.
const KEYS: &str = "SELECT array_agg(a.attname::text ORDER BY a.attname::text) FROM pg_index i
        CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (number, at)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
    WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL
        AND i.indexprs IS NULL AND k.at <= i.indnkeyatts
    GROUP BY i.indexrelid";

/// Which of a table and its partitions does not share the marks' fate: a foreign table's rows are in another transaction, and
/// an unlogged one is empty after a crash of the server.
const APART: &str = "SELECT c.oid::regclass::text, c.relkind = 'f' FROM pg_class c
    WHERE (c.relkind = 'f' OR c.relkind = 'r' AND c.relpersistence = 'u')
        AND (c.oid = $1 OR c.oid IN (SELECT relid FROM pg_partition_tree($1::oid::regclass)))
    ORDER BY 1 LIMIT 1";

/// Whether row-level security holds for this user, and a rule that stands for inserts or updates.
const INSTEAD: &str = "SELECT row_security_active($1::oid),
        (SELECT min(rulename::text) FROM pg_rewrite WHERE ev_class = $1 AND ev_type IN ('2', '3'))";

impl Column {
    fn read(row: &Row) -> Self {
        let kind = match row.get::<_, Option<u32>>(10) {
            Some(element) => Kind::Array(element, Box::new(kind(row.get(11), row.get(12), row.get(13), row.get(14)))),
            None => kind(row.get(6), row.get(7), row.get(8), row.get(9)),
        };
        Self {
            name: row.get(0),
            number: row.get(1),
            oid: row.get(2),
            shown: row.get(3),
            required: row.get(4),
            generated: row.get(5),
            digits: match &kind {
                Kind::Timestamp(digits) => Some(u64::from(*digits)),
                _ => None,
            },
            kind,
        }
    }
}

impl Table {
    /// The table of a job's option, which may have its schema before a point.
    pub(super) fn new(table: &str, key: Vec<String>, delete_when: Option<String>, on_new_column: OnNewColumn) -> Self {
        let (schema, name) = match table.split_once('.') {
            Some((schema, name)) => (Some(schema.to_owned()), name.to_owned()),
            None => (None, table.to_owned()),
        };
        Self { schema, name, key, delete_when, on_new_column }
    }

    /// The schema of the table, and of Tidemill's own ones: where the user's `search_path` begins, unless the job names one.
    pub(super) async fn place(&self, connection: &Connection) -> Result<String, Failure> {
        let doing = "looking for the schema in";
        if let Some(schema) = &self.schema {
            return Ok(schema.clone());
        }
        let row = connection.client.query_one("SELECT current_schema()::text", &[]).await.doing(doing)?;
        let schema: Option<String> = row.get(0);
        schema.ok_or_else(|| {
            self.fatal("the user's search_path leads to no schema: name one in the job (`table: schema.table`)").into()
        })
    }

    /// Makes the table where it is absent. Not part of any batch.
    pub(super) async fn create(
        &self,
        connection: &mut Connection,
        place: &str,
        schema: &Schema,
    ) -> Result<(), Failure> {
        let doing = "making the table in";
        self.names(schema)?;
        if connection.client.query_opt(TABLE, &[&place, &self.name]).await.doing(doing)?.is_some() {
            return Ok(());
        }
        let sql = self.statement(place, schema);
        connection.client.batch_execute(&format!("BEGIN; {LOCK}; {sql}; COMMIT")).await.doing(doing)
    }

    /// Adds the columns that the table lacks, where it is there and the job says so. Not part of any batch.
    pub(super) async fn add(&self, connection: &Connection, place: &str, schema: &Schema) -> Result<(), Failure> {
        let doing = "adding columns to the table in";
        if self.on_new_column != OnNewColumn::Add {
            return Ok(());
        }
        self.names(schema)?;
        let Some(row) = connection.client.query_opt(TABLE, &[&place, &self.name]).await.doing(doing)? else {
            return Ok(());
        };
        let oid: u32 = row.get(0);
        let rows = connection.client.query(&columns(), &[&oid]).await.doing(doing)?;
        let there: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        // One that differs in its case alone is a mistake in the job, and named as such.
        let is_there = |name: &str| there.iter().any(|there| there.eq_ignore_ascii_case(name));
        let fields = schema.fields().iter().filter(|field| Some(field.name()) != self.delete_when.as_ref());
        let added: Vec<String> = fields
            .filter(|field| !is_there(field.name()))
            .map(|field| format!("ADD COLUMN IF NOT EXISTS {} {}", quoted(field.name()), declared(field.data_type())))
            .collect();
        if added.is_empty() {
            return Ok(());
        }
        let (table, added) = (self.quoted(place), added.join(", "));
        let sql = format!("BEGIN; {LOCK}; ALTER TABLE {table} {added}; COMMIT");
        connection.client.batch_execute(&sql).await.doing(doing)?;
        tracing::info!(table, added, "columns added to the table");
        Ok(())
    }

    /// What makes the table.
    fn statement(&self, place: &str, schema: &Schema) -> String {
        let stored = schema.fields().iter().filter(|field| Some(field.name()) != self.delete_when.as_ref());
        let mut parts: Vec<String> =
            stored.map(|field| format!("{} {}", quoted(field.name()), declared(field.data_type()))).collect();
        if !self.key.is_empty() {
            parts.push(format!("PRIMARY KEY ({})", list(&self.key)));
        }
        format!("CREATE TABLE IF NOT EXISTS {} ({})", self.quoted(place), parts.join(", "))
    }

    /// What is said of a table that was there.
    pub(super) fn gone(&self, place: &str, schema: &Schema) -> SinkError {
        self.fatal(&format!(
            "it is gone, with the rows that were written to it: restore it, or make it again to go on with later rows only: {}. \
             `tidemill checkpoint reset --sinks` begins anew",
            self.statement(place, schema)
        ))
    }

    fn quoted(&self, place: &str) -> String {
        format!("{}.{}", quoted(place), quoted(&self.name))
    }

    /// What rows of a schema become in the table; `None` where there is no table. `before`: what the sink is to add may be
    /// absent.
    pub(super) async fn look(
        &self,
        connection: &Connection,
        place: &str,
        schema: &SchemaRef,
        before: bool,
    ) -> Result<Option<Target>, Failure> {
        let doing = "looking at the table in";
        self.names(schema)?;
        let Some(row) = connection.client.query_opt(TABLE, &[&place, &self.name]).await.doing(doing)? else {
            return Ok(None);
        };
        let (oid, view): (u32, bool) = (row.get(0), row.get::<_, &str>(1) == "v");
        if let Some(row) = connection.client.query_opt(APART, &[&oid]).await.doing(doing)? {
            return Err(self.apart(row.get(0), row.get(1)).into());
        }
        let rows = connection.client.query(&columns(), &[&oid]).await.doing(doing)?;
        let found = Found { oid, columns: rows.iter().map(Column::read).collect() };
        let fields = self.fields(&found, schema, before && self.on_new_column == OnNewColumn::Add)?;
        self.check(&found, schema)?;
        let row = connection.client.query_one(INSTEAD, &[&oid]).await.doing(doing)?;
        self.go_in(row.get(0), row.get(1))?;
        if !self.key.is_empty() {
            if view {
                return Err(self
                    .fatal("it is a view, which has no unique index for an upsert: name the table behind it, or `mode: append`")
                    .into());
            }
            let mut key = self.key.clone();
            key.sort_unstable();
            let keys = connection.client.query(KEYS, &[&oid]).await.doing(doing)?;
            if !keys.iter().any(|row| row.get::<_, Vec<String>>(0) == key) {
                let (table, key) = (self.quoted(place), list(&self.key));
                return Err(self
                    .fatal(&format!(
                        "an upsert needs a unique index on its key: CREATE UNIQUE INDEX ON {table} ({key})"
                    ))
                    .into());
            }
        }
        let index = |name: &String| schema.index_of(name).ok();
        Ok(Some(Target {
            schema: schema.clone(),
            table: self.quoted(place),
            guard: guard(&found, &fields),
            key: self.key.iter().filter_map(index).collect(),
            flag: self.delete_when.as_ref().and_then(index),
            fields,
        }))
    }

    /// What can be wrong without a look at the server.
    fn names(&self, schema: &Schema) -> Result<(), SinkError> {
        if self.name.to_lowercase().starts_with("tidemill_") {
            return Err(self.fatal("names that begin with tidemill_ are this program's own: choose another table"));
        }
        let columns = || schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ");
        if let Some(name) = self.key.iter().chain(&self.delete_when).find(|name| schema.index_of(name).is_err()) {
            let what = if self.key.contains(name) { "key" } else { "delete_when" };
            let why = format!("the {what} column `{name}` is not among the rows' columns: {}", columns());
            return Err(self.fatal(&why));
        }
        if let Some(flag) = &self.delete_when
            && let Ok(field) = schema.field_with_name(flag)
            && *field.data_type() != DataType::Boolean
        {
            let kind = type_name(field.data_type());
            return Err(self.fatal(&format!("`delete_when` takes a boolean column, and `{flag}` is {kind}: cast it")));
        }
        let mut names = schema.fields().iter().map(|field| field.name()).chain([&self.name]);
        match names.find(|name| name.len() > LONGEST_NAME || name.contains('\0')) {
            Some(name) => Err(self
                .fatal(&format!("PostgreSQL takes names of at most {LONGEST_NAME} bytes: rename `{name}` in the job"))),
            None => Ok(()),
        }
    }

    fn apart(&self, table: &str, foreign: bool) -> SinkError {
        if foreign {
            return self.fatal(&format!(
                "{table} is a foreign table, and rows and marks would not be one transaction: write to the server that holds it"
            ));
        }
        self.fatal(&format!(
            "{table} is UNLOGGED, and a crash of the server would empty it but leave the marks: ALTER TABLE {table} SET LOGGED"
        ))
    }

    /// COPY, by which rows are appended, goes with no row-level security; an upsert goes by no rule.
    fn go_in(&self, secured: bool, rule: Option<&str>) -> Result<(), SinkError> {
        let (table, upserts) = (self.as_named(), !self.key.is_empty());
        match rule {
            _ if secured && !upserts => Err(self.fatal(&format!(
                "row-level security holds for this user, and COPY does not go with it: ALTER ROLE ... BYPASSRLS, or ALTER \
                 TABLE {table} DISABLE ROW LEVEL SECURITY"
            ))),
            Some(rule) if upserts => Err(self.fatal(&format!(
                "an upsert does not go with its rule {0}: DROP RULE {0} ON {table}, or `mode: append`, which passes rules by",
                quoted(rule)
            ))),
            _ => Ok(()),
        }
    }

    fn fields(&self, found: &Found, schema: &Schema, adds: bool) -> Result<Vec<Field>, SinkError> {
        let mut fields = Vec::with_capacity(schema.fields().len());
        let mut absent: Vec<(&str, &DataType)> = Vec::new();
        for (index, field) in schema.fields().iter().enumerate() {
            let (name, kind) = (field.name(), field.data_type());
            if Some(name) == self.delete_when.as_ref() {
                continue;
            }
            let Some(column) = found.columns.iter().find(|column| column.name == *name) else {
                let has_another_case = found.columns.iter().any(|column| column.name.eq_ignore_ascii_case(name));
                absent.extend((!adds || has_another_case).then_some((name.as_str(), kind)));
                continue;
            };
            if column.generated {
                return Err(self
                    .fatal(&format!("column `{name}` is GENERATED there and cannot be written: drop it in the job")));
            }
            let Some(rule) = Rule::of(kind, &column.kind) else {
                return Err(self.fatal(&format!(
                    "column `{name}` is {} there and {} in the job (which needs {}): cast it in the job, or ALTER TABLE {} \
                     ALTER COLUMN {} TYPE {}",
                    column.shown,
                    type_name(kind),
                    declared(kind),
                    self.as_named(),
                    quoted(name),
                    declared(kind)
                )));
            };
            // The server would round: keys that differ would be one.
            let wanted = fraction_digits(kind);
            if self.key.contains(name) && column.digits.zip(wanted).is_some_and(|(there, wanted)| there < wanted) {
                return Err(self.fatal(&format!(
                    "the key column `{name}` is {} there, which keeps too few digits of a second to tell its keys apart: ALTER \
                     TABLE {} ALTER COLUMN {} TYPE {}",
                    column.shown,
                    self.as_named(),
                    quoted(name),
                    declared(kind)
                )));
            }
            fields.push(Field { index, name: name.clone(), rule });
        }
        if absent.is_empty() { Ok(fields) } else { Err(self.missing(found, &absent)) }
    }

    /// All columns that the table lacks, at once.
    fn missing(&self, found: &Found, absent: &[(&str, &DataType)]) -> SinkError {
        let near = |(name, _): &(&str, &DataType)| {
            let near = found.columns.iter().find(|column| column.name.eq_ignore_ascii_case(name));
            near.map(|near| ((*name).to_owned(), near))
        };
        if let Some((name, near)) = absent.iter().find_map(near) {
            return self.fatal(&format!(
                "it has no column `{name}` but `{0}`: names are taken with their case, so `rename: {{ {name}: {0} }}` in the \
                 job",
                near.name
            ));
        }
        self.fatal(&lacks(&self.as_named(), "ADD COLUMN", absent, quoted, declared))
    }

    fn check(&self, found: &Found, schema: &Schema) -> Result<(), SinkError> {
        let required = found.columns.iter().find(|column| column.required && schema.index_of(&column.name).is_err());
        required.map_or(Ok(()), |column| {
            Err(self.fatal(&format!(
                "its column `{0}` must not be null and has no default, but the rows do not have it: ALTER TABLE {1} ALTER \
                 COLUMN {2} SET DEFAULT ..., or `add: {{ {0}: ... }}` in the job",
                column.name,
                self.as_named(),
                quoted(&column.name)
            )))
        })
    }

    /// The table in a statement for the user, who has the same `search_path`.
    fn as_named(&self) -> String {
        let schema = self.schema.as_ref().map(|schema| format!("{}.", quoted(schema))).unwrap_or_default();
        format!("{schema}{}", quoted(&self.name))
    }

    pub(super) fn fatal(&self, why: &str) -> SinkError {
        let schema = self.schema.as_ref().map(|schema| format!("{schema}.")).unwrap_or_default();
        SinkError::Fatal(format!("table `{schema}{}`: {why}", self.name))
    }
}

/// Divides by zero where a column that is written has another type than it had. Run in the rows' transaction, in which
/// `COPY` holds a lock that keeps `ALTER TABLE` out: what is encoded for one type must never be read as another.
fn guard(found: &Found, fields: &[Field]) -> String {
    let written: Vec<&Column> =
        found.columns.iter().filter(|column| fields.iter().any(|field| field.name == column.name)).collect();
    let of = |text: fn(&Column) -> String| written.iter().map(|column| text(column)).collect::<Vec<_>>().join(",");
    let (numbers, types) = (of(|column| column.number.to_string()), of(|column| column.oid.to_string()));
    format!(
        "SELECT 1 / coalesce((array_agg(atttypid ORDER BY attnum) = '{{{types}}}'::oid[])::int, 0) FROM pg_attribute \
         WHERE attrelid = {} AND attnum = ANY('{{{numbers}}}'::smallint[]) AND NOT attisdropped",
        found.oid
    )
}
