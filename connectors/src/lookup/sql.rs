//! What all databases have in common that speak SQL: which columns there are, the whole table, the rows of some keys.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray},
    compute::{concat_batches, filter_record_batch},
    datatypes::{DataType, Field, Float64Type, Int32Type, Int64Type, Schema, SchemaRef},
    error::ArrowError,
    row::{RowConverter, SortField},
};
use async_trait::async_trait;
use tidemill_config::{Lookup, LookupMode, SqlRows};
use tokio::sync::OnceCell;

use super::{Asked, LookupError, LookupTable, Unanswered, cells::Cells, max_bytes, names, no_column, texts};
use crate::codec::to_arrow;

/// A column of a result as the database describes it.
#[derive(Clone, Debug)]
pub(super) struct Described {
    pub name: String,
    /// Its type; `None` where only the values tell it.
    pub kind: Option<DataType>,
    /// How the database itself writes it; `None` where it compares no such values.
    pub native: Option<String>,
    /// The type that the job gives to it.
    pub given: Option<DataType>,
    /// Its values come as texts of numbers, which the database compares as numbers: 2.50 is 2.5.
    pub is_number: bool,
}

/// Keys that rows are wanted for.
pub(super) struct Keys<'a> {
    pub columns: &'a [ArrayRef],
    /// In the same order.
    pub described: Vec<Described>,
}

impl Keys<'_> {
    pub fn count(&self) -> usize {
        self.columns.first().map_or(0, |column| column.len())
    }

    /// The keys' values, key by key, as parameters of a statement.
    pub fn values<V>(&self) -> Result<Vec<V>, LookupError>
    where
        V: Clone + From<i32> + From<i64> + From<f64> + From<bool> + From<Vec<u8>> + From<Option<String>>,
    {
        let columns = self.columns.iter().map(values_of).collect::<Result<Vec<Vec<V>>, _>>()?;
        Ok((0..self.count()).flat_map(|row| columns.iter().map(move |column| column[row].clone())).collect())
    }
}

fn values_of<V>(column: &ArrayRef) -> Result<Vec<V>, LookupError>
where
    V: From<i32> + From<i64> + From<f64> + From<bool> + From<Vec<u8>> + From<Option<String>>,
{
    let rows = 0..column.len();
    Ok(match column.data_type() {
        DataType::Int32 => rows.map(|row| column.as_primitive::<Int32Type>().value(row).into()).collect(),
        DataType::Int64 => rows.map(|row| column.as_primitive::<Int64Type>().value(row).into()).collect(),
        DataType::Float64 => rows.map(|row| column.as_primitive::<Float64Type>().value(row).into()).collect(),
        DataType::Boolean => rows.map(|row| column.as_boolean().value(row).into()).collect(),
        DataType::Binary => rows.map(|row| column.as_binary::<i32>().value(row).to_vec().into()).collect(),
        // No index may help with numbers that come as texts.
        DataType::Decimal128(_, 0) => {
            let texts = texts(column)?.into_iter();
            let whole = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<i64>().ok());
            texts.map(|text| whole(&text).map_or_else(|| V::from(text), V::from)).collect()
        }
        _ => texts(column)?.into_iter().map(V::from).collect(),
    })
}

/// A database that speaks SQL.
#[async_trait]
pub(super) trait Server: Send + Sync {
    /// A name as it stands in a statement.
    fn quoted(&self, name: &str) -> String;

    /// A column in a list of columns, so that its values come as texts or bytes.
    fn shown(&self, column: &Described) -> String {
        self.quoted(&column.name)
    }

    /// The columns of a statement's result.
    async fn describe(&self, statement: &str) -> Result<Vec<Described>, Unanswered>;

    /// All rows of a statement with these columns; gives the types that the values have, for columns that have none otherwise.
    async fn all(
        &self,
        statement: &str,
        columns: &[Described],
        cells: &mut Cells,
    ) -> Result<Vec<Option<DataType>>, Unanswered>;

    /// How many values one statement can have.
    fn at_once(&self) -> usize {
        usize::MAX
    }

    /// The rows of a statement without a condition that have these keys, which are no more than [`Server::at_once`] allows.
    /// Gives the number of queries.
    async fn some(
        &self,
        statement: &str,
        columns: &[Described],
        keys: &Keys<'_>,
        cells: &mut Cells,
    ) -> Result<u64, Unanswered>;
}

/// A table or query of a database.
pub(super) struct SqlTable {
    server: Box<dyn Server>,
    /// What stands after FROM.
    from: String,
    /// The columns that the lookup needs.
    columns: Vec<String>,
    keys: Vec<String>,
    given: Option<SchemaRef>,
    what: String,
    /// Whether it is asked for keys, and not read as a whole.
    is_asked: bool,
    max_bytes: u64,
    described: OnceCell<Vec<Described>>,
}

impl SqlTable {
    pub(super) fn new(server: Box<dyn Server>, rows: &SqlRows, lookup: &Lookup) -> Self {
        let from = match rows {
            SqlRows::Table(name) => name.split('.').map(|part| server.quoted(part)).collect::<Vec<_>>().join("."),
            // Its last line may be a comment.
            SqlRows::Query(text) => format!("({}\n) AS looked_up", text.trim().trim_end_matches(';')),
        };
        Self {
            from,
            columns: names(lookup),
            keys: lookup.keys.iter().map(|(_, key)| key.value.clone()).collect(),
            given: lookup.schema.as_deref().map(to_arrow),
            what: lookup.shown(),
            is_asked: matches!(lookup.mode, LookupMode::Query { .. }),
            max_bytes: max_bytes(lookup),
            described: OnceCell::new(),
            server,
        }
    }

    /// All columns that the table has.
    async fn described(&self) -> Result<&Vec<Described>, Unanswered> {
        let describe = || async {
            let statement = format!("SELECT * FROM {}", self.from);
            let mut described = self.server.describe(&statement).await.map_err(|error| error.of(&self.what))?;
            for column in &mut described {
                let given = self.given.as_ref().and_then(|given| given.field_with_name(&column.name).ok());
                column.given = given.map(|field| field.data_type().clone());
            }
            Ok(described)
        };
        self.described.get_or_try_init(describe).await
    }

    /// Those that the lookup needs.
    async fn needed(&self) -> Result<Vec<Described>, Unanswered> {
        let all = self.described().await?;
        let of_name = |name: &String| {
            all.iter().find(|column| column.name == *name).cloned().ok_or_else(|| {
                let names: Vec<_> = all.iter().map(|column| column.name.as_str()).collect();
                no_column(&self.what, name, &names).into()
            })
        };
        self.columns.iter().map(of_name).collect()
    }

    /// That the database can be asked for rows by the keys.
    fn can_be_asked(&self, columns: &[Described]) -> Result<(), LookupError> {
        match columns.iter().find(|column| column.native.is_none() && self.keys.contains(&column.name)) {
            Some(key) => {
                let why = format!(
                    "its key `{}` is of a type that the database does not compare: cast it to a text by `sql`, or read the table whole by `mode: snapshot`",
                    key.name
                );
                Err(LookupError::of(&self.what, why))
            }
            None => Ok(()),
        }
    }

    /// The type that a column has: given, or known from before, or the database's.
    fn kind(&self, column: &Described, known: Option<&SchemaRef>) -> Option<DataType> {
        let of = |schema: &SchemaRef| schema.field_with_name(&column.name).ok().map(|field| field.data_type().clone());
        self.given.as_ref().and_then(of).or_else(|| known.and_then(of)).or_else(|| column.kind.clone())
    }

    fn select(&self, columns: &[Described]) -> String {
        let list: Vec<_> = columns.iter().map(|column| self.server.shown(column)).collect();
        format!("SELECT {} FROM {}", list.join(", "), self.from)
    }

    fn schema_of(columns: &[Described], kinds: Vec<DataType>) -> SchemaRef {
        let fields = columns.iter().zip(kinds).map(|(column, kind)| Field::new(&column.name, kind, true));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    /// The types of columns, where all are known without their values.
    fn kinds(&self, columns: &[Described]) -> Result<Vec<DataType>, LookupError> {
        let kind = |column: &Described| {
            self.kind(column, None).ok_or_else(|| {
                let why =
                    format!("the database does not tell the type of column `{}`: give it by `schema`", column.name);
                LookupError::of(&self.what, why)
            })
        };
        columns.iter().map(kind).collect()
    }
}

#[async_trait]
impl LookupTable for SqlTable {
    async fn schema(&self) -> Result<SchemaRef, LookupError> {
        let columns = self.described().await?;
        if self.is_asked {
            self.can_be_asked(columns)?;
        }
        if columns.iter().any(|column| self.columns.contains(&column.name) && self.kind(column, None).is_none()) {
            if self.is_asked {
                self.kinds(&self.needed().await?)?;
            }
            return Ok(self.read(None).await?.schema());
        }
        // All of them: a wrong name is told with those that there are.
        let kinds = columns.iter().map(|column| self.kind(column, None).unwrap_or(DataType::Utf8)).collect();
        Ok(Self::schema_of(columns, kinds))
    }

    async fn read(&self, known: Option<&SchemaRef>) -> Result<RecordBatch, LookupError> {
        let columns = self.needed().await?;
        let mut cells = Cells::new(&self.what, columns.len(), self.max_bytes);
        let read = self.server.all(&self.select(&columns), &columns, &mut cells).await;
        let seen = read.map_err(|error| error.of(&self.what))?;
        let kinds =
            columns.iter().zip(seen).map(|(column, seen)| self.kind(column, known).or(seen).unwrap_or(DataType::Utf8));
        cells.finish(&Self::schema_of(&columns, kinds.collect()))
    }

    async fn ask(&self, keys: &RecordBatch) -> Result<Asked, Unanswered> {
        let columns = self.needed().await?;
        let schema = Self::schema_of(&columns, self.kinds(&columns)?);
        let described = self.keys.iter().filter_map(|key| columns.iter().find(|column| column.name == *key)).cloned();
        let described: Vec<_> = described.collect();
        let at_once = (self.server.at_once() / described.len().max(1)).max(1);
        let (statement, mut parts, mut queries) = (self.select(&columns), Vec::new(), 0);
        for first in (0..keys.num_rows()).step_by(at_once) {
            let some = keys.slice(first, at_once.min(keys.num_rows() - first));
            let wanted = Keys { columns: some.columns(), described: described.clone() };
            let mut cells = Cells::new(&self.what, columns.len(), self.max_bytes);
            let asked = self.server.some(&statement, &columns, &wanted, &mut cells).await;
            queries += asked.map_err(|error| error.of(&self.what))?;
            let rows = with_keys(cells.finish(&schema)?, &wanted.described, some.columns());
            parts.push(rows.map_err(|error| LookupError::of(&self.what, error))?);
        }
        let rows = concat_batches(&schema, &parts).map_err(|error| LookupError::of(&self.what, error))?;
        Ok(Asked { rows, queries })
    }
}

/// The rows that have one of these very keys. To a database `a` may be equal to `A`: a row that comes for both, in two
/// statements, would be there twice.
fn with_keys(rows: RecordBatch, described: &[Described], keys: &[ArrayRef]) -> Result<RecordBatch, ArrowError> {
    let compared = |column: &ArrayRef, of: &Described| -> ArrayRef {
        if !of.is_number || column.data_type() != &DataType::Utf8 {
            return column.clone();
        }
        Arc::new(column.as_string::<i32>().iter().map(|text| text.map(number)).collect::<StringArray>())
    };
    let found = described.iter().filter_map(|key| Some((rows.column_by_name(&key.name)?, key)));
    let found: Vec<ArrayRef> = found.map(|(column, key)| compared(column, key)).collect();
    let keys: Vec<ArrayRef> = keys.iter().zip(described).map(|(column, key)| compared(column, key)).collect();
    let kinds = keys.iter().map(|column| SortField::new(column.data_type().clone()));
    let converter = RowConverter::new(kinds.collect())?;
    let (keys, found) = (converter.convert_columns(&keys)?, converter.convert_columns(&found)?);
    let keys: HashSet<&[u8]> = keys.iter().map(|key| key.data()).collect();
    let wanted: BooleanArray = found.iter().map(|key| Some(keys.contains(key.data()))).collect();
    filter_record_batch(&rows, &wanted)
}

/// The one text of a decimal number: no zeros behind its last digit.
fn number(text: &str) -> &str {
    if text.contains('.') && !text.contains(['e', 'E']) {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        text
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arrow::array::Int64Array;

    use super::*;

    #[test]
    fn only_rows_with_the_very_keys_stay() {
        let texts = |values: &[&str]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
        let numbers = |values: &[i64]| Arc::new(Int64Array::from(values.to_vec())) as ArrayRef;
        let rows = RecordBatch::try_from_iter([
            ("v", numbers(&[1, 2, 3, 4])),
            ("k", texts(&["a", "A", "a", "b"])),
            ("n", numbers(&[7, 7, 8, 7])),
        ]);
        let column = |name: &str, is_number| Described {
            name: name.to_owned(),
            kind: None,
            native: None,
            given: None,
            is_number,
        };
        let names = [column("k", false), column("n", false)];
        let left = with_keys(rows.unwrap(), &names, &[texts(&["a", "b"]), numbers(&[7, 7])]).unwrap();
        assert_eq!(left.column(0), &numbers(&[1, 4]));
        // Decimals without a number of digits are texts here, and numbers to the database.
        let rows = RecordBatch::try_from_iter([("k", texts(&["2.50", "100", "0.05", "1.0", "10"]))]).unwrap();
        let keys = texts(&["2.5", "100.0", "0.050", "10.00"]);
        let left = with_keys(rows.clone(), &[column("k", true)], std::slice::from_ref(&keys)).unwrap();
        assert_eq!(left.column(0), &texts(&["2.50", "100", "0.05", "10"]));
        assert_eq!(with_keys(rows, &[column("k", false)], &[keys]).unwrap().num_rows(), 0);
    }
}
