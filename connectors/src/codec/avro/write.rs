//! Rows by the schema that writes them: [`Writer`] works out once how columns get into its fields. Bodies are not encoded by the
//! crate, for the same reasons as in reading: it would build a tree of every value, and does not see where one does not fit.

use std::sync::Arc;

use super::{
    default::{self, long},
    schema::{Field, Id, Node, Schema, VALUE},
    single::single,
    tree,
};
use crate::codec::{
    CodecError,
    records::{
        self, Columns, Value,
        cells::{Cell, Cells, article, kind_of, unfit},
    },
    rows::Bad,
    scalar::Scalar,
    tree::{Shape, Tree},
    type_name,
};
use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Fields},
};

/// How well a tree fits: where any other type does, that is meant.
const TREE: u8 = 4;

/// How a cell becomes a value of the schema.
enum Plan {
    Single(Node),
    List(Box<Plan>),
    Record(Vec<Member>),
    /// The number of the variant for null, and the one for everything else.
    Union(Option<i64>, i64, Box<Plan>),
    /// What no column type holds.
    Tree(Arc<Schema>, Id, Grown),
}

/// Where a tree comes from.
enum Grown {
    /// A text that is its JSON.
    Json,
    /// The same, or else the text is the value as it is.
    JsonOrText,
    /// A value of this shape.
    Shape(Shape),
}

/// A field of a record.
struct Member {
    name: String,
    from: From,
}

enum From {
    Column(usize, Plan),
    /// The bytes of its default.
    Default(Vec<u8>),
}

/// Writes rows of some columns by one schema.
pub(in crate::codec) struct Writer {
    /// What each record begins with.
    pub head: Vec<u8>,
    /// A schema that is no record has one member.
    members: Vec<Member>,
}

impl Writer {
    /// An error names the column and both types.
    pub fn new(schema: &Arc<Schema>, columns: Columns<'_>) -> Result<Self, String> {
        let root = schema.root();
        let members = match schema.node(root) {
            Node::Record(fields) => {
                records::nowhere(columns, |name| fields.iter().any(|field| field.name == name))?;
                members(schema, fields, columns.fields, "")?
            }
            _ => {
                records::nowhere(columns, |name| name == VALUE)?;
                let (at, column) = columns
                    .fields
                    .find(VALUE)
                    .ok_or("the schema is no record: its values are the column `value`, which the rows do not have")?;
                vec![Member {
                    name: VALUE.into(),
                    from: From::Column(at, plan(schema, root, column.data_type(), VALUE)?.1),
                }]
            }
        };
        Ok(Self { head: Vec::new(), members })
    }
}

impl records::Writer for Writer {
    fn write(&self, rows: &RecordBatch, out: &mut Vec<u8>) -> Result<Vec<Value>, CodecError> {
        records::each(rows, out, |cells, row, out| {
            out.extend_from_slice(&self.head);
            record(&self.members, cells, row, out)
        })
    }
}

fn members(schema: &Arc<Schema>, fields: &[Field], columns: &Fields, outer: &str) -> Result<Vec<Member>, String> {
    let member = |field: &Field| {
        let path = format!("{outer}{}", field.name);
        let from = match (columns.find(&field.name), &field.default) {
            (Some((at, column)), _) => From::Column(at, plan(schema, field.node, column.data_type(), &path)?.1),
            (None, Some(default)) => {
                let mut out = Vec::new();
                default::encode(schema, field.node, default, &mut out)
                    .map_err(|why| format!("the default of the schema's field `{path}` is wrong: {why}"))?;
                From::Default(out)
            }
            (None, None) => {
                return Err(format!(
                    "the schema's field `{path}` has neither a column nor a default: add the column, or a default"
                ));
            }
        };
        Ok(Member { name: field.name.clone(), from })
    };
    fields.iter().map(member).collect()
}

/// How well a column fits, 0 is best, and how it is written.
fn plan(schema: &Arc<Schema>, id: Id, kind: &DataType, path: &str) -> Result<(u8, Plan), String> {
    let node = schema.node(id);
    let kind = kind_of(kind);
    match (node, &kind) {
        (Node::Union(variants), _) => {
            let null = variants.iter().position(|variant| *schema.node(*variant) == Node::Null);
            let planned = variants
                .iter()
                .enumerate()
                .map(|(index, variant)| plan(schema, *variant, &kind, path).map(|(rank, plan)| (rank, index, plan)));
            let (planned, errors): (Vec<_>, Vec<_>) = planned.partition(Result::is_ok);
            let best = planned.into_iter().filter_map(Result::ok).min_by_key(|(rank, index, _)| (*rank, *index));
            match (best, errors.into_iter().filter_map(Result::err).next_back()) {
                // A text says itself of which type it is, where none of them is a text.
                (Some((1.., ..)) | None, _) if kind == DataType::Utf8 && schema.is_mixed(variants) => {
                    Ok((TREE, Plan::Tree(schema.clone(), id, Grown::JsonOrText)))
                }
                (Some((rank, index, plan)), _) => {
                    Ok((rank, Plan::Union(null.map(|index| index as i64), index as i64, Box::new(plan))))
                }
                // What is wrong inside of the only type is told; of several, that none fits.
                (None, Some(why)) if variants.len() - usize::from(null.is_some()) == 1 => Err(why),
                (None, _) => Err(mismatch(schema, id, &kind, path)),
            }
        }
        (Node::Record(fields), DataType::Struct(columns)) => {
            let inner = Columns { fields: columns, spare: &[] };
            records::nowhere(inner, |name| fields.iter().any(|field| field.name == name))
                .map_err(|why| format!("in column `{path}`: {why}"))?;
            Ok((0, Plan::Record(members(schema, fields, columns, &format!("{path}."))?)))
        }
        (Node::Array(item), DataType::List(column)) => {
            let (rank, item) = plan(schema, *item, column.data_type(), path)?;
            Ok((rank, Plan::List(Box::new(item))))
        }
        (Node::Record(_) | Node::Array(_) | Node::Map(_), DataType::Utf8) => {
            Ok((TREE, Plan::Tree(schema.clone(), id, Grown::Json)))
        }
        (Node::Map(item), DataType::Struct(members)) => {
            for member in members {
                plan(schema, *item, member.data_type(), &format!("{path}.{}", member.name()))?;
            }
            Ok((TREE, Plan::Tree(schema.clone(), id, Grown::Shape(Shape::of(&kind)))))
        }
        _ => match rank(node, &kind) {
            Some(rank) => Ok((rank, Plan::Single(node.clone()))),
            None => Err(mismatch(schema, id, &kind, path)),
        },
    }
}

fn mismatch(schema: &Schema, id: Id, kind: &DataType, path: &str) -> String {
    format!(
        "column `{path}` is {}, and {} in the schema: cast the column, or change the schema",
        type_name(kind),
        shown(schema, id)
    )
}

/// How well values of a column's type fit a type that is single; `None`: not at all. Whether a value fits shows later.
fn rank(node: &Node, kind: &DataType) -> Option<u8> {
    use DataType as D;
    Some(match (kind, node) {
        (D::Null, Node::Null) | (D::Boolean, Node::Boolean) | (D::Int32, Node::Int) => 0,
        (D::Int64 | D::UInt64, Node::Long) | (D::Float32, Node::Float) | (D::Float64, Node::Double) => 0,
        (D::Utf8, Node::String) | (D::Binary, Node::Bytes | Node::Fixed(_)) => 0,
        (D::Timestamp(..), Node::Stamp(_)) | (D::Date32, Node::Date) => 0,
        (D::Decimal128(_, from), Node::Decimal { scale, .. }) if i64::from(*from) <= *scale as i64 => 0,
        (D::Int32, Node::Long) | (D::Int64 | D::UInt64, Node::Int) | (D::Decimal128(_, 0), Node::Long) => 1,
        (D::Float32, Node::Double) | (D::Float64, Node::Float) => 1,
        (D::Utf8, Node::Enum { .. } | Node::UuidText | Node::Uuid { .. } | Node::Time(_)) => 1,
        (D::Int32 | D::Int64 | D::UInt64, Node::Double) | (D::Decimal128(_, 0), Node::Int) | (D::Utf8, Node::Bytes) => {
            2
        }
        (D::Decimal128(_, 0..), Node::BigDecimal) | (D::Utf8, Node::Duration | Node::BigDecimal) => 2,
        // Those have no other column.
        (D::Utf8, Node::Decimal { precision: 39.., .. }) => 2,
        (D::Int32 | D::Int64 | D::UInt64, Node::Float | Node::Decimal { .. }) => 3,
        _ => return None,
    })
}

fn record(members: &[Member], cells: &[Cells], row: usize, out: &mut Vec<u8>) -> Result<(), Bad> {
    for member in members {
        match &member.from {
            From::Default(default) => out.extend_from_slice(default),
            From::Column(at, plan) => {
                let written = cells[*at].get(row).and_then(|cell| plan.write(&cell, row, out));
                written.map_err(|bad| bad.inside(&member.name))?;
            }
        }
    }
    Ok(())
}

impl Plan {
    /// Appends the value of a cell, which is in this row where it is a struct.
    fn write(&self, cell: &Cell<'_>, row: usize, out: &mut Vec<u8>) -> Result<(), Bad> {
        match (self, cell) {
            (Self::Union(Some(null), ..), Cell::Null) => {
                long(*null, out);
                Ok(())
            }
            (Self::Union(_, index, plan), _) => {
                long(*index, out);
                plan.write(cell, row, out)
            }
            (Self::Single(node), _) => {
                let fits = match cell {
                    Cell::Single(value) => single(node, value, out).is_some(),
                    Cell::Null => *node == Node::Null,
                    _ => false,
                };
                if fits { Ok(()) } else { Err(unfit(cell, article(&name(node)))) }
            }
            (Self::List(plan), Cell::List(items, cells)) => {
                if !items.is_empty() {
                    long(items.len() as i64, out);
                    for item in items.clone() {
                        plan.write(&cells.get(item)?, item, out)?;
                    }
                }
                out.push(0);
                Ok(())
            }
            (Self::Record(members), Cell::Struct(cells)) => record(members, cells, row, out),
            (Self::Tree(schema, id, grown), _) => {
                let tree = match (grown, cell) {
                    (Grown::Shape(shape), _) => shape.tree(cell, row)?,
                    (Grown::Json, Cell::Single(Scalar::Text(text))) => Tree::json(text)?,
                    (Grown::JsonOrText, Cell::Single(Scalar::Text(text))) => {
                        if let Ok(json) = Tree::parse(text)
                            && tree::encode(schema, *id, &json, out).is_ok()
                        {
                            return Ok(());
                        }
                        Tree::Text((*text).into())
                    }
                    _ => Tree::Null,
                };
                tree::encode(schema, *id, &tree, out)
            }
            (Self::List(_), _) => Err(unfit(cell, "an array".into())),
            (Self::Record(_), _) => Err(unfit(cell, "a record".into())),
        }
    }
}

/// A type as a message names it.
pub(super) fn name(node: &Node) -> String {
    match node {
        Node::Null => "null".into(),
        Node::Boolean => "boolean".into(),
        Node::Int => "int".into(),
        Node::Long => "long".into(),
        Node::Float => "float".into(),
        Node::Double => "double".into(),
        Node::Bytes => "bytes".into(),
        Node::String => "string".into(),
        Node::Fixed(size) => format!("fixed({size})"),
        Node::Enum { symbols, .. } => format!("enum of {}", symbols.join(", ")),
        Node::Array(_) => "array".into(),
        Node::Map(_) => "map".into(),
        Node::Union(_) => "union".into(),
        Node::Record(_) => "record".into(),
        Node::Date => "date".into(),
        Node::Time(1_000) => "time-millis".into(),
        Node::Time(_) => "time-micros".into(),
        Node::Stamp(1_000) => "timestamp-millis".into(),
        Node::Stamp(1_000_000) => "timestamp-micros".into(),
        Node::Stamp(_) => "timestamp-nanos".into(),
        Node::Decimal { precision, scale, .. } => format!("decimal({precision},{scale})"),
        Node::BigDecimal => "big-decimal".into(),
        Node::UuidText | Node::Uuid { .. } => "uuid".into(),
        Node::Duration => "duration".into(),
    }
}

/// The same, with the variants of a union and the items of an array.
pub(super) fn shown(schema: &Schema, id: Id) -> String {
    match schema.node(id) {
        Node::Union(variants) => {
            variants.iter().map(|variant| shown(schema, *variant)).collect::<Vec<_>>().join(" or ")
        }
        Node::Array(item) => format!("array of {}", shown(schema, *item)),
        Node::Map(item) => format!("map of {}", shown(schema, *item)),
        node => name(node),
    }
}
