//! Trees by the schema that writes them: the other way round of what [`read`](super::read) makes the text of their JSON.

use std::borrow::Cow;

use arrow::datatypes::DataType;

use super::{
    default::{self, block, bytes, long},
    schema::{Field, Id, Node, Schema},
    single::single,
    write::{name, shown},
};
use crate::codec::{
    records::cells::article,
    rows::Bad,
    tree::{STAMP, Tree},
};

/// Types of unions that a value may be tried for in vain, and so many more for each value in it: inside of themselves they would
/// be tried two by two by two.
const MAX_TRIES: usize = 10_000;
const TRIES_OF_VALUE: usize = 64;

/// Appends a tree's value.
pub(super) fn encode(schema: &Schema, id: Id, tree: &Tree<'_>, out: &mut Vec<u8>) -> Result<(), Bad> {
    Encoding { schema, tries: MAX_TRIES + TRIES_OF_VALUE * tree.values() }.value(id, tree, out)
}

struct Encoding<'s> {
    schema: &'s Schema,
    /// Those that are left.
    tries: usize,
}

impl Encoding<'_> {
    fn value(&mut self, id: Id, tree: &Tree<'_>, out: &mut Vec<u8>) -> Result<(), Bad> {
        let schema = self.schema;
        match (schema.node(id), tree) {
            (Node::Union(variants), _) => self.variant(id, variants, tree, out),
            (Node::Record(fields), Tree::Object(members)) => self.record(fields, members, out),
            (Node::Array(item), Tree::List(items)) => {
                block(items.len(), out);
                items.iter().try_for_each(|tree| self.value(*item, tree, out))?;
                out.push(0);
                Ok(())
            }
            (Node::Map(item), Tree::Object(members)) => {
                block(members.len(), out);
                for (name, tree) in members {
                    bytes(name.as_bytes(), out);
                    self.value(*item, tree, out).map_err(|bad| bad.inside(name))?;
                }
                out.push(0);
                Ok(())
            }
            (node, _) => leaf(node, tree, out).ok_or_else(|| tree.unfit(article(&name(node)))),
        }
    }

    /// A field that is not there has its default, or else is null.
    fn record(&mut self, fields: &[Field], members: &[(Cow<'_, str>, Tree<'_>)], out: &mut Vec<u8>) -> Result<(), Bad> {
        if let Some((name, tree)) = members.iter().find(|(name, _)| !fields.iter().any(|field| field.name == **name)) {
            return Err(tree.unfit("a field of the record in the schema".into()).inside(name));
        }
        for field in fields {
            // As everywhere in JSON, of several the last one counts.
            let member = members.iter().rev().find(|(name, _)| **name == field.name);
            match (member, &field.default) {
                (Some((_, tree)), _) => self.value(field.node, tree, out),
                (None, Some(value)) => default::encode(self.schema, field.node, value, out)
                    .map_err(|why| Bad::Other("type", format!("the default of the schema's field is wrong: {why}"))),
                (None, None) => self.value(field.node, &Tree::Null, out),
            }
            .map_err(|bad| bad.inside(&field.name))?;
        }
        Ok(())
    }

    /// The first of the types that has the value, those that say what it is before those that it can be taken for.
    fn variant(&mut self, id: Id, variants: &[Id], tree: &Tree<'_>, out: &mut Vec<u8>) -> Result<(), Bad> {
        let schema = self.schema;
        let mut order: Vec<_> = variants.iter().copied().enumerate().collect();
        order.sort_by_key(|(_, variant)| distance(schema.node(*variant), tree));
        let start = out.len();
        let mut only = None;
        for (index, variant) in order {
            long(index as i64, out);
            match self.value(variant, tree, out) {
                Ok(()) => return Ok(()),
                _ if self.tries == 0 => break,
                Err(bad) if *schema.node(variant) != Node::Null => only = Some(bad),
                Err(_) => {}
            }
            self.tries -= 1;
            out.truncate(start);
        }
        out.truncate(start);
        // What is wrong inside of the only type is told; of several, that none fits.
        let values = variants.iter().filter(|variant| *schema.node(**variant) != Node::Null).count();
        Err(only
            .filter(|_| values == 1 && *tree != Tree::Null)
            .unwrap_or_else(|| tree.unfit(article(&shown(schema, id)))))
    }
}

/// How far a type is from what a tree is by itself.
fn distance(node: &Node, tree: &Tree<'_>) -> u8 {
    let is_whole = |text: &str| text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit());
    match (tree, node) {
        (Tree::Null, Node::Null) | (Tree::Boolean(_), Node::Boolean) | (Tree::List(_), Node::Array(_)) => 0,
        (Tree::Object(_), Node::Record(_)) | (Tree::Text(_), Node::String) => 0,
        (Tree::Number(text), Node::Int | Node::Long) => {
            if is_whole(text) {
                0
            } else {
                3
            }
        }
        (Tree::Number(_), Node::Double) | (Tree::Object(_), Node::Map(_)) => 1,
        (Tree::Number(_), Node::Float | Node::Decimal { .. } | Node::BigDecimal) => 2,
        (Tree::Text(_), Node::Enum { .. }) => 1,
        (Tree::Text(_), Node::Uuid { .. } | Node::UuidText | Node::Date | Node::Stamp(_)) => 2,
        (Tree::Text(_), Node::Time(_) | Node::Duration) => 2,
        (Tree::Text(_), Node::Bytes | Node::Fixed(_)) => 3,
        _ => 4,
    }
}

fn leaf(node: &Node, tree: &Tree<'_>, out: &mut Vec<u8>) -> Option<()> {
    let kind = match node {
        Node::Null => return (*tree == Tree::Null).then_some(()),
        Node::Boolean => DataType::Boolean,
        Node::Int | Node::Long => DataType::Int64,
        Node::Float | Node::Double => DataType::Float64,
        Node::Bytes | Node::Fixed(_) => DataType::Binary,
        Node::Date => DataType::Date32,
        Node::Stamp(_) => STAMP,
        // Decimals too: how many digits they have shows in the text.
        _ => DataType::Utf8,
    };
    single(node, &tree.scalar(&kind, &mut Vec::new())?, out)
}
