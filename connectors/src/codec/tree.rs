//! Values as trees, for formats that have more than columns can say: maps, records inside of themselves, unions, JSON as a
//! message. A tree is the JSON in a column of texts, or made of a column of structs. Members stay in their order, and numbers
//! are texts: nothing is rounded before it is known what they are for.

use std::borrow::Cow;

use arrow::datatypes::{DataType, Field, TimeUnit};

use super::{
    column,
    json::cursor::{Cursor, Fault, Number, unescape},
    names::decode_base64,
    number,
    records::cells::{Cell, kind_of},
    rows::{self, Bad},
    scalar::{self, Scalar},
    time,
    values::quoted,
};

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tree<'a> {
    Null,
    Boolean(bool),
    Number(Cow<'a, str>),
    Text(Cow<'a, str>),
    List(Vec<Tree<'a>>),
    Object(Vec<(Cow<'a, str>, Tree<'a>)>),
}

/// How a column's values become trees.
#[derive(Debug)]
pub(super) enum Shape {
    Single,
    List(Box<Shape>),
    Object(Vec<(String, Shape)>),
}

impl Shape {
    pub fn of(kind: &DataType) -> Self {
        match kind_of(kind) {
            DataType::List(item) => Self::List(Box::new(Self::of(item.data_type()))),
            DataType::Struct(members) => {
                let member = |member: &std::sync::Arc<Field>| (member.name().clone(), Self::of(member.data_type()));
                Self::Object(members.iter().map(member).collect())
            }
            _ => Self::Single,
        }
    }

    /// The tree of a cell, which is in this row where it is a struct. Members that are null are not in it: a column of structs
    /// has a member for every name that any row has.
    pub fn tree<'a>(&'a self, cell: &Cell<'a>, row: usize) -> Result<Tree<'a>, Bad> {
        Ok(match (self, cell) {
            (_, Cell::Null) => Tree::Null,
            (_, Cell::Single(Scalar::Text(text))) => Tree::Text(Cow::Borrowed(text)),
            (_, Cell::Single(Scalar::Boolean(value))) => Tree::Boolean(*value),
            (_, Cell::Single(value)) => {
                let mut text = Vec::new();
                scalar::text(value, &mut text);
                let text = Cow::Owned(String::from_utf8_lossy(&text).into_owned());
                match value {
                    Scalar::Integer(_) | Scalar::Single(_) | Scalar::Double(_) | Scalar::Decimal(..) => {
                        Tree::Number(text)
                    }
                    _ => Tree::Text(text),
                }
            }
            (Self::List(shape), Cell::List(items, cells)) => {
                let item = |item| shape.tree(&cells.get(item)?, item);
                Tree::List(items.clone().map(item).collect::<Result<_, _>>()?)
            }
            (Self::Object(members), Cell::Struct(cells)) => {
                let mut made = Vec::with_capacity(members.len());
                for ((name, shape), cells) in members.iter().zip(*cells) {
                    match shape.tree(&cells.get(row)?, row).map_err(|bad| bad.inside(name))? {
                        Tree::Null => {}
                        tree => made.push((Cow::Borrowed(&**name), tree)),
                    }
                }
                Tree::Object(made)
            }
            _ => Tree::Null,
        })
    }
}

impl<'a> Tree<'a> {
    /// The tree of a JSON text, which may be nested 128 levels deep.
    pub fn parse(text: &'a str) -> Result<Self, Fault> {
        let mut whole = Cursor::new(text.as_bytes());
        whole.skip()?;
        whole.end()?;
        // What comes now is JSON, and not too deep.
        value(text, &mut Cursor::new(text.as_bytes()))
    }

    /// The tree of a JSON text, or a reject that says that it is none.
    pub fn json(text: &'a str) -> Result<Self, Bad> {
        Self::parse(text).map_err(|Fault { at, what }| Bad::Type {
            column: String::new(),
            value: Tree::Text(text.into()).shown(),
            expected: format!("JSON: at byte {at}: {what}"),
        })
    }

    /// The value of a column's type that it stands for, by the rules of the codec `json`. `bytes` holds those of a text.
    pub fn scalar<'t>(&'t self, kind: &DataType, bytes: &'t mut Vec<u8>) -> Option<Scalar<'t>> {
        let (text, is_number) = match self {
            Self::Boolean(value) => {
                return match kind {
                    DataType::Boolean => Some(Scalar::Boolean(*value)),
                    DataType::Utf8 => Some(Scalar::Text(if *value { "true" } else { "false" })),
                    _ => None,
                };
            }
            Self::Number(text) => (&**text, true),
            Self::Text(text) => (&**text, false),
            Self::Null | Self::List(_) | Self::Object(_) => return None,
        };
        Some(match kind {
            DataType::Utf8 => Scalar::Text(text),
            DataType::Int64 => Scalar::Integer(column::integer(text.as_bytes())?),
            DataType::Float64 => Scalar::Double(column::float(text.as_bytes())?),
            DataType::Decimal128(_, scale) => {
                Scalar::Decimal(number::exact(text.as_bytes(), i64::from(*scale))?, *scale)
            }
            DataType::Timestamp(..) if is_number => {
                Scalar::Stamp(i64::try_from(number::exact(text.as_bytes(), 3)?).ok()?)
            }
            DataType::Timestamp(..) => Scalar::Stamp(time::parse_timestamp(text.as_bytes())?),
            DataType::Boolean if !is_number => Scalar::Boolean(column::boolean(text.as_bytes())?),
            DataType::Date32 if !is_number => Scalar::Date(time::parse_date(text.as_bytes())?),
            DataType::Binary if !is_number => {
                decode_base64(text.as_bytes(), bytes).then_some(())?;
                Scalar::Binary(bytes)
            }
            _ => return None,
        })
    }

    /// How many values there are in it.
    pub fn values(&self) -> usize {
        match self {
            Self::List(items) => 1 + items.iter().map(Self::values).sum::<usize>(),
            Self::Object(members) => 1 + members.iter().map(|(_, tree)| tree.values()).sum::<usize>(),
            _ => 1,
        }
    }

    /// As a message shows it.
    #[cold]
    pub fn shown(&self) -> String {
        match self {
            Self::Null => "null".into(),
            Self::Boolean(value) => value.to_string(),
            Self::Number(text) => rows::shown(text.as_bytes()),
            Self::Text(text) => {
                let mut out = Vec::new();
                quoted(text.as_bytes(), &mut out);
                rows::shown(&out)
            }
            Self::List(_) => "a list".into(),
            Self::Object(_) => "an object".into(),
        }
    }

    /// That it is not what it should be.
    #[cold]
    pub fn unfit(&self, expected: String) -> Bad {
        Bad::Type { column: String::new(), value: self.shown(), expected }
    }
}

/// The column type of timestamps.
pub(super) const STAMP: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

/// Reads a value of a text that is JSON.
fn value<'a>(text: &'a str, cursor: &mut Cursor<'a>) -> Result<Tree<'a>, Fault> {
    cursor.space();
    Ok(match cursor.peek() {
        b'"' => Tree::Text(string(text, cursor)?),
        b'{' => {
            cursor.at += 1;
            let mut members = Vec::new();
            loop {
                cursor.space();
                if cursor.take(b'}') {
                    break Tree::Object(members);
                }
                cursor.take(b',');
                cursor.space();
                let name = string(text, cursor)?;
                cursor.colon()?;
                members.push((name, value(text, cursor)?));
            }
        }
        b'[' => {
            cursor.at += 1;
            let mut items = Vec::new();
            loop {
                cursor.space();
                if cursor.take(b']') {
                    break Tree::List(items);
                }
                cursor.take(b',');
                items.push(value(text, cursor)?);
            }
        }
        b't' => cursor.literal(b"true").map(|()| Tree::Boolean(true))?,
        b'f' => cursor.literal(b"false").map(|()| Tree::Boolean(false))?,
        b'n' => cursor.literal(b"null").map(|()| Tree::Null)?,
        _ => {
            let Number { range, .. } = cursor.number()?;
            Tree::Number(Cow::Borrowed(&text[range]))
        }
    })
}

fn string<'a>(text: &'a str, cursor: &mut Cursor<'a>) -> Result<Cow<'a, str>, Fault> {
    cursor.take(b'"');
    let found = cursor.string()?;
    let inside = &text[found.range];
    if !found.escaped {
        return Ok(Cow::Borrowed(inside));
    }
    let mut out = Vec::with_capacity(inside.len());
    unescape(inside.as_bytes(), &mut out);
    Ok(Cow::Owned(String::from_utf8_lossy(&out).into_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_tree_is_what_the_text_says() {
        let text = r#" {"a": [1, -2.50e3, true, null, []], "a": {}, "é\n\ud83d\ude00": "x\"y"} "#;
        let list = vec![
            Tree::Number("1".into()),
            Tree::Number("-2.50e3".into()),
            Tree::Boolean(true),
            Tree::Null,
            Tree::List(vec![]),
        ];
        let members = vec![
            ("a".into(), Tree::List(list)),
            ("a".into(), Tree::Object(vec![])),
            ("é\n😀".into(), Tree::Text("x\"y".into())),
        ];
        assert_eq!(Tree::parse(text), Ok(Tree::Object(members)));
        for wrong in ["", "{", "[1 2]", "{\"a\":1,}", "1 2", "nul", &"[".repeat(200)] {
            assert!(Tree::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Tree::parse(&format!("{}{}", "[".repeat(128), "]".repeat(128))).is_ok());
    }

    #[test]
    fn values_go_by_the_rules_of_json() {
        let of = |tree: &Tree<'_>, kind: &DataType| format!("{:?}", tree.scalar(kind, &mut Vec::new()));
        let (number, text) =
            (|text: &'static str| Tree::Number(text.into()), |text: &'static str| Tree::Text(text.into()));
        for (tree, kind, wanted) in [
            (number("1.0"), DataType::Int64, "Some(Integer(1))"),
            (text("42"), DataType::Int64, "Some(Integer(42))"),
            (number("1e999"), DataType::Float64, "None"),
            (number("12.50"), DataType::Decimal128(5, 1), "Some(Decimal(125, 1))"),
            (number("12.55"), DataType::Decimal128(5, 1), "None"),
            (number("5"), STAMP, "Some(Stamp(5000))"),
            (text("1970-01-02"), DataType::Date32, "Some(Date(1))"),
            (number("1"), DataType::Date32, "None"),
            (text("AP8="), DataType::Binary, "Some(Binary([0, 255]))"),
            (text("AP8"), DataType::Boolean, "None"),
            (Tree::Boolean(true), DataType::Utf8, "Some(Text(\"true\"))"),
            (Tree::Null, DataType::Utf8, "None"),
        ] {
            assert_eq!(of(&tree, &kind), wanted, "{tree:?}");
        }
    }
}
