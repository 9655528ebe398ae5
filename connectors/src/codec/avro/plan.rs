//! From the schema that wrote a record to the columns that are wanted: worked out once for each schema, by the specification's
//! rules of schema resolution where the job has a schema of its own, else by the columns' names.

use std::sync::Arc;

use arrow::datatypes::{DataType, Fields};

use super::{
    default::encode,
    input::Input,
    read::{json, single, skip},
    schema::{Field, Id, Node, RECORD, Schema, VALUE},
};
use crate::codec::{
    column::{Column, Data, complete},
    rows::Bad,
    scalar::{self, Scalar},
};

/// How a value gets into its column.
#[derive(Debug)]
enum Plan {
    /// A single value, as this type. The type is the writer's, or what the job's schema makes of it.
    Single(Node),
    /// A symbol as the job's schema has it; `None`: it has none for it.
    Symbol(Vec<Option<String>>),
    /// The text of its JSON.
    Json(Id),
    List(Box<Plan>),
    Record(Record),
    Union(Vec<Plan>),
    /// No value of this type can be read into the column.
    Never(String),
}

#[derive(Debug)]
struct Record {
    /// In the order in which they were written: the column, or nothing.
    fields: Vec<(Id, Option<(usize, Plan)>)>,
    /// Columns of which the writer knows nothing.
    defaults: Vec<(usize, Arc<Constant>)>,
    names: Vec<String>,
}

/// A value as the job's schema would write it.
#[derive(Debug)]
struct Constant {
    schema: Arc<Schema>,
    bytes: Vec<u8>,
    plan: Plan,
}

/// How records of one schema become rows.
#[derive(Debug)]
pub(super) struct Rows {
    writer: Arc<Schema>,
    record: Result<Record, String>,
    /// The column that tells which type of a union a value was, and the types' names.
    which: Option<(usize, Vec<Option<String>>)>,
}

impl Rows {
    /// For the columns `fields`. Where there is a `reader`, columns are its fields.
    pub fn new(writer: &Arc<Schema>, reader: Option<&Arc<Schema>>, fields: &Fields) -> Self {
        let (id, read_as) = (writer.root(), reader.map(|reader| (reader, reader.root())));
        let record = match (writer.node(id), read_as) {
            (Node::Record(written), _) if !written.is_empty() => record(writer, written, fields, read_as),
            _ => Ok(Record {
                fields: vec![(
                    id,
                    fields.find(VALUE).map(|(at, field)| (at, plan(writer, id, field.data_type(), read_as))),
                )],
                defaults: Vec::new(),
                names: fields.iter().map(|field| field.name().clone()).collect(),
            }),
        };
        let column = fields.find(RECORD).filter(|(_, field)| *field.data_type() == DataType::Utf8);
        let which = column
            .zip(writer.variants())
            .map(|((at, _), names)| (at, names.into_iter().map(|name| name.map(str::to_owned)).collect()));
        Self { writer: writer.clone(), record, which }
    }

    /// One record, whose body begins at `at`, as one row.
    pub fn append(&self, bytes: &[u8], at: usize, columns: &mut [Column], row: usize) -> Result<(), Bad> {
        let mut input = Input::new(bytes, at);
        let record = self.record.as_ref().map_err(|why| Bad::Other("bad_avro", why.clone()))?;
        if let Some((column, names)) = &self.which {
            let name = &names[Input::new(bytes, at).index(names.len())?];
            match (columns.get_mut(*column), name) {
                (Some(column), Some(name)) => drop(scalar::put(column, &Scalar::Text(name))),
                (Some(column), None) => column.null(),
                (None, _) => {}
            }
        }
        record.read(&self.writer, &mut input, columns)?;
        input.end()?;
        complete(columns, row);
        Ok(())
    }
}

/// A reader's schema and one of its nodes.
type ReadAs<'a> = Option<(&'a Arc<Schema>, Id)>;

fn record(writer: &Arc<Schema>, written: &[Field], wanted: &Fields, read_as: ReadAs<'_>) -> Result<Record, String> {
    let reader_fields = read_as.map(|(reader, id)| match reader.node(id) {
        Node::Record(fields) => Ok((reader, fields)),
        _ => Err("the schema that wrote it is a record, and the job's is none".to_owned()),
    });
    let mut fields: Vec<(Id, Option<(usize, Plan)>)> = written.iter().map(|field| (field.node, None)).collect();
    let mut defaults = Vec::new();
    let named = |name: &str| written.iter().position(|field| field.name == name);
    let Some(read) = reader_fields.transpose()? else {
        for (at, field) in wanted.iter().enumerate() {
            if let Some(place) = named(field.name()) {
                fields[place].1 = Some((at, plan(writer, written[place].node, field.data_type(), None)));
            }
        }
        return Ok(Record { fields, defaults, names: names(wanted) });
    };
    let (reader, read) = read;
    // Also those that the job does not use: which records are rejects does not depend on that.
    for field in read {
        let place = named(&field.name).or_else(|| field.aliases.iter().find_map(|alias| named(alias)));
        let column = wanted.find(&field.name);
        match (place, &field.default) {
            (Some(place), _) => {
                if let Some((at, column)) = column {
                    let plan = plan(writer, written[place].node, column.data_type(), Some((reader, field.node)));
                    fields[place].1 = Some((at, plan));
                }
            }
            (None, Some(value)) => {
                let mut bytes = Vec::new();
                encode(reader, field.node, value, &mut bytes)
                    .map_err(|why| format!("the default of field {} is wrong: {why}", field.name))?;
                if let Some((at, column)) = column {
                    let plan = plan(reader, field.node, column.data_type(), None);
                    defaults.push((at, Arc::new(Constant { schema: reader.clone(), bytes, plan })));
                }
            }
            (None, None) => {
                return Err(format!(
                    "the schema that wrote it has no field {}, and the job's schema no default for it",
                    field.name
                ));
            }
        }
    }
    Ok(Record { fields, defaults, names: names(wanted) })
}

fn names(fields: &Fields) -> Vec<String> {
    fields.iter().map(|field| field.name().clone()).collect()
}

fn plan(writer: &Arc<Schema>, id: Id, kind: &DataType, read_as: ReadAs<'_>) -> Plan {
    let node = writer.node(id);
    if let Node::Union(variants) = node {
        return Plan::Union(variants.iter().map(|variant| plan(writer, *variant, kind, read_as)).collect());
    }
    let read_as = read_as.map(|(reader, id)| (reader, reader.matching(id, node)));
    let reader = read_as.map(|(reader, id)| reader.node(id));
    match (node, kind) {
        (Node::Record(written), DataType::Struct(fields)) => match record(writer, written, fields, read_as) {
            Ok(record) => Plan::Record(record),
            Err(why) => Plan::Never(why),
        },
        (Node::Array(item), DataType::List(field)) => {
            let read_as = read_as.and_then(|(reader, id)| match reader.node(id) {
                Node::Array(item) => Some((reader, *item)),
                _ => None,
            });
            Plan::List(Box::new(plan(writer, *item, field.data_type(), read_as)))
        }
        (Node::Record(_) | Node::Array(_) | Node::Map(_), DataType::Utf8) => Plan::Json(id),
        (Node::Record(_), _) => Plan::Never("a record".into()),
        (Node::Array(_), _) => Plan::Never("an array".into()),
        (Node::Map(_), _) => Plan::Never("a map".into()),
        (Node::Enum { symbols, .. }, _) => match reader {
            Some(Node::Enum { symbols: known, default }) => {
                let as_read =
                    |symbol: &String| known.contains(symbol).then(|| symbol.clone()).or_else(|| default.clone());
                Plan::Symbol(symbols.iter().map(as_read).collect())
            }
            _ => Plan::Single(node.clone()),
        },
        _ => Plan::Single(reader.filter(|reader| means(node, reader)).unwrap_or(node).clone()),
    }
}

/// Whether the reader's type says what the writer's plain one means, and both are written alike.
fn means(writer: &Node, reader: &Node) -> bool {
    match (writer, reader) {
        (Node::Int, Node::Date | Node::Time(1_000)) => true,
        (Node::Long, Node::Stamp(_) | Node::Time(1_000_000)) => true,
        (Node::Bytes, Node::Decimal { size: None, .. } | Node::BigDecimal | Node::Uuid { with_length: true }) => true,
        (Node::String, Node::UuidText) => true,
        (Node::Fixed(16), Node::Uuid { with_length: false }) | (Node::Fixed(12), Node::Duration) => true,
        (Node::Fixed(written), Node::Decimal { size: Some(size), .. }) => written == size,
        _ => false,
    }
}

impl Record {
    fn read(&self, writer: &Schema, input: &mut Input<'_>, columns: &mut [Column]) -> Result<(), Bad> {
        for (id, target) in &self.fields {
            match target {
                None => skip(writer, *id, input)?,
                Some((at, plan)) => match columns.get_mut(*at) {
                    Some(column) => {
                        plan.read(writer, input, column).map_err(|bad| bad.inside(&self.names[*at]))?;
                    }
                    None => skip(writer, *id, input)?,
                },
            }
        }
        for (at, default) in &self.defaults {
            if let Some(column) = columns.get_mut(*at) {
                let mut input = Input::new(&default.bytes, 0);
                default.plan.read(&default.schema, &mut input, column).map_err(|bad| bad.inside(&self.names[*at]))?;
            }
        }
        Ok(())
    }
}

impl Plan {
    fn read(&self, writer: &Schema, input: &mut Input<'_>, column: &mut Column) -> Result<(), Bad> {
        match self {
            Self::Single(node) => single(node, input, |value| match value {
                Some(value) if scalar::put(column, &value) => Ok(()),
                Some(value) => Err(mismatch(column, scalar::shown(&value))),
                None => {
                    column.null();
                    Ok(())
                }
            }),
            Self::Symbol(symbols) => match &symbols[input.index(symbols.len())?] {
                Some(symbol) if scalar::put(column, &Scalar::Text(symbol)) => Ok(()),
                Some(symbol) => Err(mismatch(column, format!("{symbol:?}"))),
                None => input.bad("a symbol is not one of the job's schema, which has no default for it"),
            },
            Self::Union(variants) => variants[input.index(variants.len())?].read(writer, input, column),
            Self::Json(id) => {
                let Data::Text(values) = &mut column.data else { return Err(mismatch(column, "a value".into())) };
                json(writer, *id, input, &mut values.bytes)?;
                values.end();
                column.some();
                Ok(())
            }
            Self::List(plan) => list(plan, writer, input, column),
            Self::Record(record) => {
                let row = column.len();
                let Data::Struct { columns, .. } = &mut column.data else {
                    return Err(mismatch(column, "a record".into()));
                };
                record.read(writer, input, columns)?;
                complete(columns, row);
                column.some();
                Ok(())
            }
            Self::Never(what) => Err(mismatch(column, what.clone())),
        }
    }
}

fn list(plan: &Plan, writer: &Schema, input: &mut Input<'_>, column: &mut Column) -> Result<(), Bad> {
    let Data::List { offsets, item, .. } = &mut column.data else { return Err(mismatch(column, "an array".into())) };
    loop {
        let (count, _) = input.block()?;
        if count == 0 {
            break;
        }
        for _ in 0..count {
            plan.read(writer, input, item)?;
        }
    }
    offsets.push(item.len() as i32);
    column.some();
    Ok(())
}

#[cold]
fn mismatch(column: &Column, value: String) -> Bad {
    Bad::Type { column: String::new(), value, expected: column.expected() }
}
