//! Rows as messages. Columns go to fields by name; a null leaves its field out.

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Fields},
};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};
use tidemill_config::model;

use super::{
    columns::{Known, known},
    encode, message, tree,
};
use crate::codec::{
    CodecError,
    records::{
        self, Columns,
        cells::{Cell, Cells, article, exact, kind_of, narrowed, unfit},
    },
    rows::Bad,
    scalar::Scalar,
    tree::{Shape, Tree},
    type_name,
};

pub(super) const MICROS: i64 = 1_000_000;

/// The codec `protobuf` of a sink.
pub(in crate::codec) struct Writing {
    message: MessageDescriptor,
}

/// Writes rows of some columns as one message.
pub(super) struct Writer {
    message: MessageDescriptor,
    fields: Vec<Field>,
}

/// A field that has a column.
struct Field {
    descriptor: FieldDescriptor,
    kind: Kind,
    at: usize,
    plan: Plan,
}

/// How its value is made.
enum Plan {
    Single,
    List(Box<Plan>),
    Message(MessageDescriptor, Vec<Field>),
    /// A message around one value.
    Wrapper(MessageDescriptor, Kind),
    Timestamp(MessageDescriptor),
    Duration(MessageDescriptor),
    /// The text of a message's JSON.
    Json,
    /// The text of the JSON of a whole map or list.
    JsonOfAll,
    /// What no column type holds, made of a column of this shape.
    Tree(Shape),
}

impl Writing {
    pub fn new(options: &model::Protobuf) -> Result<Self, String> {
        Ok(Self { message: message(options).map_err(|wrong| wrong.value)? })
    }

    /// An error names the column and both types.
    pub fn writer(&self, columns: Columns<'_>) -> Result<impl records::Writer + use<>, String> {
        records::nowhere(columns, |name| self.message.get_field_by_name(name).is_some())?;
        Ok(Writer { message: self.message.clone(), fields: fields(&self.message, columns.fields, "")? })
    }
}

impl records::Writer for Writer {
    fn write(&self, rows: &RecordBatch, out: &mut Vec<u8>) -> Result<Vec<records::Value>, CodecError> {
        records::each(rows, out, |cells, row, out| {
            let message = made(&self.message, &self.fields, cells, row)?;
            encode::message(&message, out);
            Ok(())
        })
    }
}

fn fields(message: &MessageDescriptor, columns: &Fields, outer: &str) -> Result<Vec<Field>, String> {
    let mut made = Vec::new();
    for descriptor in message.fields() {
        let path = format!("{outer}{}", descriptor.name());
        let Some((at, column)) = columns.find(descriptor.name()) else {
            if descriptor.is_required() {
                return Err(format!("the message's field `{path}` is required, and there is no such column"));
            }
            continue;
        };
        let kind = descriptor.kind();
        let wanted = kind_of(column.data_type());
        let plan = match (descriptor.is_list(), &wanted) {
            (_, DataType::Utf8) if descriptor.is_map() || descriptor.is_list() => Some(Plan::JsonOfAll),
            (_, DataType::Struct(members)) if descriptor.is_map() => map(&kind, members, &path)?,
            (true, DataType::List(item)) => {
                plan(&kind, item.data_type(), &path)?.map(|plan| Plan::List(Box::new(plan)))
            }
            (true, _) => None,
            (false, _) => plan(&kind, &wanted, &path)?,
        };
        let plan = plan.ok_or_else(|| {
            format!(
                "column `{path}` is {}, and {} in the message: cast the column, or change the message",
                type_name(column.data_type()),
                shown(&descriptor)
            )
        })?;
        made.push(Field { descriptor, kind, at, plan });
    }
    Ok(made)
}

/// `None` where values of the column are none of the kind.
fn plan(kind: &Kind, column: &DataType, path: &str) -> Result<Option<Plan>, String> {
    use DataType as D;
    let column = kind_of(column);
    let integer = matches!(column, D::Int32 | D::Int64 | D::UInt64);
    let fits = match kind {
        Kind::Bool => column == D::Boolean,
        Kind::Double | Kind::Float => integer || matches!(column, D::Float32 | D::Float64),
        Kind::String => column == D::Utf8,
        Kind::Bytes => matches!(column, D::Binary | D::Utf8),
        Kind::Enum(_) => column == D::Utf8 || integer,
        Kind::Message(message) => {
            let value = |kind: &Kind| plan(kind, &column, path);
            let tree = |column: &DataType| Some(Plan::Tree(Shape::of(column)));
            return Ok(match (known(message), &column) {
                (Some(Known::Timestamp), D::Timestamp(..)) => Some(Plan::Timestamp(message.clone())),
                (Some(Known::Duration), D::Utf8) => Some(Plan::Duration(message.clone())),
                (Some(Known::Wrapper), _) => match message.get_field(1).map(|field| field.kind()) {
                    Some(kind) => value(&kind)?.map(|_| Plan::Wrapper(message.clone(), kind)),
                    None => None,
                },
                (None, D::Struct(members)) => {
                    let inner = Columns { fields: members, spare: &[] };
                    records::nowhere(inner, |name| message.get_field_by_name(name).is_some())
                        .map_err(|why| format!("in column `{path}`: {why}"))?;
                    Some(Plan::Message(message.clone(), fields(message, members, &format!("{path}."))?))
                }
                (Some(Known::Struct), D::Struct(_)) | (Some(Known::ListValue), D::List(_)) => tree(&column),
                (Some(Known::Value), kind) if *kind != D::Utf8 => tree(&column),
                // Its JSON, as it is read.
                (None | Some(Known::Struct | Known::Value | Known::ListValue), D::Utf8) => Some(Plan::Json),
                _ => None,
            });
        }
        _ => integer || matches!(column, D::Decimal128(_, 0)),
    };
    Ok(fits.then_some(Plan::Single))
}

/// A map of the members of a struct: those that are not null.
fn map(entry: &Kind, members: &Fields, path: &str) -> Result<Option<Plan>, String> {
    let value = entry.as_message().map(|entry| entry.map_entry_value_field().kind());
    for member in members {
        let fits = match &value {
            Some(value) => plan(value, member.data_type(), &format!("{path}.{}", member.name()))?.is_some(),
            None => false,
        };
        if !fits {
            return Ok(None);
        }
    }
    Ok(Some(Plan::Tree(Shape::of(&DataType::Struct(members.clone())))))
}

pub(super) fn named(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(of) => of.full_name().to_owned(),
        kind => format!("{kind:?}").to_lowercase(),
    }
}

pub(super) fn shown(field: &FieldDescriptor) -> String {
    let name = named(&field.kind());
    if let Some(entry) = field.kind().as_message().filter(|_| field.is_map()) {
        format!("map<{}, {}>", named(&entry.map_entry_key_field().kind()), named(&entry.map_entry_value_field().kind()))
    } else if field.is_list() {
        format!("repeated {name}")
    } else {
        name
    }
}

fn made(message: &MessageDescriptor, fields: &[Field], cells: &[Cells], row: usize) -> Result<DynamicMessage, Bad> {
    let mut made = DynamicMessage::new(message.clone());
    for Field { descriptor, kind, at, plan } in fields {
        let name = descriptor.name();
        let cell = cells[*at].get(row).map_err(|bad| bad.inside(name))?;
        if matches!(cell, Cell::Null) {
            if descriptor.is_required() {
                return Err(unfit(&cell, format!("{}, which is required", shown(descriptor))).inside(name));
            }
            continue;
        }
        if let Some(other) = both_set(&made, descriptor) {
            return Err(other);
        }
        let value = plan.value(descriptor, kind, &cell, row).map_err(|bad| bad.inside(name))?;
        made.set_field(descriptor, value);
    }
    Ok(made)
}

/// That another field of the same `oneof` is set already.
pub(super) fn both_set(made: &DynamicMessage, field: &FieldDescriptor) -> Option<Bad> {
    let one = field.containing_oneof()?;
    let other = one.fields().find(|other| other != field && made.has_field(other))?;
    let (one, two) = (other.name(), field.name());
    let detail = format!("columns {one} and {two} are both set, and a record has one of them (`oneof`)");
    Some(Bad::Other("type", detail))
}

impl Plan {
    fn value(&self, field: &FieldDescriptor, kind: &Kind, cell: &Cell<'_>, row: usize) -> Result<Value, Bad> {
        let value = match (self, cell) {
            (Self::List(plan), Cell::List(items, cells)) => {
                let item = |item| plan.value(field, kind, &cells.get(item)?, item);
                return Ok(Value::List(items.clone().map(item).collect::<Result<_, _>>()?));
            }
            (Self::Message(message, fields), Cell::Struct(cells)) => {
                return made(message, fields, cells, row).map(Value::Message);
            }
            (Self::JsonOfAll, Cell::Single(Scalar::Text(text))) => return tree::field(field, &Tree::json(text)?, 1),
            (Self::Json, Cell::Single(Scalar::Text(text))) => return self.grown(field, kind, &Tree::json(text)?),
            (Self::Tree(shape), _) => return self.grown(field, kind, &shape.tree(cell, row)?),
            (Self::Single, Cell::Single(value)) => single(kind, value),
            (Self::Wrapper(message, kind), Cell::Single(value)) => single(kind, value).map(|value| {
                let mut wrapper = DynamicMessage::new(message.clone());
                wrapper.set_field_by_number(1, value);
                Value::Message(wrapper)
            }),
            (Self::Timestamp(message), Cell::Single(Scalar::Stamp(micros))) => {
                Some(Value::Message(parts(message, micros.div_euclid(MICROS), micros.rem_euclid(MICROS) * 1_000)))
            }
            (Self::Duration(message), Cell::Single(Scalar::Text(text))) => {
                duration(text).map(|(seconds, nanos)| Value::Message(parts(message, seconds, nanos)))
            }
            _ => None,
        };
        value.ok_or_else(|| unfit(cell, article(shown(field).trim_start_matches("repeated "))))
    }

    /// What a tree stands for: a map, or one message, which may be an item of a list.
    fn grown(&self, field: &FieldDescriptor, kind: &Kind, tree: &Tree<'_>) -> Result<Value, Bad> {
        match kind.as_message().filter(|_| !field.is_map()) {
            Some(message) => tree::message(message, tree, 1).map(Value::Message),
            None => tree::field(field, tree, 1),
        }
    }
}

/// A value of the kind; `None` where it does not fit.
pub(super) fn single(kind: &Kind, value: &Scalar<'_>) -> Option<Value> {
    let value = match value {
        Scalar::Decimal(value, 0) => return integer(kind, *value),
        Scalar::Integer(value) => match kind {
            Kind::Enum(_) => Value::EnumNumber(i32::try_from(*value).ok()?),
            Kind::Double => Value::F64(exact(*value, 53)?),
            Kind::Float => Value::F32(narrowed(exact(*value, 24)?)?),
            _ => return integer(kind, i128::from(*value)),
        },
        Scalar::Boolean(value) => Value::Bool(*value),
        Scalar::Single(value) if matches!(kind, Kind::Double) => Value::F64(f64::from(*value)),
        Scalar::Single(value) => Value::F32(*value),
        Scalar::Double(value) if matches!(kind, Kind::Float) => Value::F32(narrowed(*value)?),
        Scalar::Double(value) => Value::F64(*value),
        Scalar::Text(text) => match kind {
            // A number without a name is read as its digits.
            Kind::Enum(names) => Value::EnumNumber(match names.get_value_by_name(text) {
                Some(value) => value.number(),
                None => text.parse().ok()?,
            }),
            Kind::Bytes => Value::Bytes(text.as_bytes().to_vec().into()),
            _ => Value::String((*text).to_owned()),
        },
        Scalar::Binary(value) => Value::Bytes(value.to_vec().into()),
        Scalar::Stamp(_) | Scalar::Date(_) | Scalar::Decimal(..) => return None,
    };
    Some(value)
}

pub(super) fn integer(kind: &Kind, value: i128) -> Option<Value> {
    Some(match kind {
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(value.try_into().ok()?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(value.try_into().ok()?),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(value.try_into().ok()?),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(value.try_into().ok()?),
        _ => return None,
    })
}

pub(super) fn parts(message: &MessageDescriptor, seconds: i64, nanos: i64) -> DynamicMessage {
    let mut made = DynamicMessage::new(message.clone());
    made.set_field_by_number(1, Value::I64(seconds));
    made.set_field_by_number(2, Value::I32(nanos as i32));
    made
}

/// Seconds and nanoseconds of a text like `-1.5s`.
pub(super) fn duration(text: &str) -> Option<(i64, i64)> {
    let text = text.strip_suffix('s')?;
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |text| (-1, text));
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if seconds.is_empty() || !digits(seconds) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let nanos: i64 = format!("{fraction:0<9}").parse().ok()?;
    Some((sign * seconds.parse::<i64>().ok()?, sign * nanos))
}
