//! Avro schemas, made ready for decoding: names are resolved to numbers of nodes, so that a type may hold itself.

use std::{collections::HashMap, sync::Arc};

use apache_avro::{
    Schema as Parsed,
    rabin::Rabin,
    schema::{InnerDecimalSchema, NamespaceRef, UuidSchema},
};
use arrow::datatypes::{DataType, Field as Column, Fields, Schema as Columns, SchemaRef, TimeUnit};

use crate::codec::json::MAX_COLUMNS;

/// The number of a node.
pub(super) type Id = usize;

/// The column of records that are no Avro records.
pub(super) const VALUE: &str = "value";
/// The column that tells which record of a union it was, where a job asks for it.
pub(super) const RECORD: &str = "record";

/// A schema.
#[derive(Debug)]
pub(in crate::codec) struct Schema {
    nodes: Vec<Node>,
    root: Id,
    /// Of records, enums and fixed types, with their namespaces.
    names: HashMap<Id, String>,
    /// Its Rabin fingerprint, as single objects carry it.
    pub(super) fingerprint: [u8; 8],
}

/// A type.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Fixed(usize),
    Enum {
        symbols: Arc<[String]>,
        default: Option<String>,
    },
    Array(Id),
    Map(Id),
    Union(Vec<Id>),
    Record(Vec<Field>),
    Date,
    /// Units in a second; those of milliseconds are an int.
    Time(i64),
    Stamp(i64),
    /// Of a fixed size, or with a length.
    Decimal {
        size: Option<usize>,
        precision: usize,
        scale: usize,
    },
    BigDecimal,
    UuidText,
    /// Sixteen bytes, with their length before them or without.
    Uuid {
        with_length: bool,
    },
    Duration,
}

/// A field of a record.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Field {
    pub name: String,
    pub aliases: Vec<String>,
    pub node: Id,
    pub default: Option<serde_json::Value>,
}

impl Schema {
    /// Reads a schema's JSON; `references` are the texts of schemas whose names it uses, each after those that it uses.
    pub(in crate::codec) fn parse(text: &str, references: &[String]) -> Result<Self, String> {
        let (parsed, others) = if references.is_empty() {
            (Parsed::parse_str(text).map_err(|error| error.to_string())?, Vec::new())
        } else {
            Parsed::parse_str_with_list(text, references).map_err(|error| error.to_string())?
        };
        let mut building = Building::default();
        for other in &others {
            building.node(other, None)?;
        }
        let root = building.node(&parsed, None)?;
        let fingerprint = parsed.fingerprint::<Rabin>().bytes;
        let fingerprint = fingerprint.try_into().map_err(|_| "its fingerprint is not eight bytes".to_owned())?;
        let names = building.named.into_iter().map(|(name, id)| (id, name)).collect();
        Ok(Self { nodes: building.nodes, root, names, fingerprint })
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }

    pub(super) fn root(&self) -> Id {
        self.root
    }

    /// What its values may be, by name, where it is a union: a type without a name has `None`.
    pub(super) fn variants(&self) -> Option<Vec<Option<&str>>> {
        let Node::Union(variants) = self.node(self.root) else { return None };
        Some(variants.iter().map(|variant| self.names.get(variant).map(String::as_str)).collect())
    }

    /// The columns of its records; of anything else, the column `value`.
    pub(in crate::codec) fn columns(&self) -> Result<SchemaRef, String> {
        let mut made = 0;
        let fields = match self.node(self.root) {
            Node::Record(fields) if !fields.is_empty() => self.fields(fields, &mut vec![self.root], &mut made)?,
            _ => vec![Column::new(VALUE, self.kind(self.root, &mut Vec::new(), &mut made)?, true)].into(),
        };
        Ok(Arc::new(Columns::new(fields)))
    }

    fn fields(&self, fields: &[Field], inside: &mut Vec<Id>, made: &mut usize) -> Result<Fields, String> {
        *made += fields.len();
        if *made > MAX_COLUMNS {
            return Err(format!("it has more than {MAX_COLUMNS} fields: name the columns by `schema`"));
        }
        let kinds = fields.iter().map(|field| Ok(Column::new(&field.name, self.kind(field.node, inside, made)?, true)));
        kinds.collect()
    }

    /// The column type of a node. What has none (maps, unions of several types, a record inside of itself) is the text of
    /// its JSON.
    fn kind(&self, id: Id, inside: &mut Vec<Id>, made: &mut usize) -> Result<DataType, String> {
        Ok(match self.node(id) {
            Node::Boolean => DataType::Boolean,
            Node::Int => DataType::Int32,
            Node::Long => DataType::Int64,
            Node::Float | Node::Double => DataType::Float64,
            Node::Bytes | Node::Fixed(_) => DataType::Binary,
            Node::Date => DataType::Date32,
            Node::Stamp(_) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Node::Decimal { precision, scale, .. } => match (u8::try_from(*precision), i8::try_from(*scale)) {
                (Ok(precision @ 1..=38), Ok(scale)) => DataType::Decimal128(precision, scale),
                _ => DataType::Utf8,
            },
            Node::Array(item) => {
                DataType::List(Arc::new(Column::new_list_field(self.kind(*item, inside, made)?, true)))
            }
            Node::Record(fields) if !fields.is_empty() && !inside.contains(&id) => {
                inside.push(id);
                let fields = self.fields(fields, inside, made);
                inside.pop();
                DataType::Struct(fields?)
            }
            Node::Union(variants) => {
                let kinds = variants.iter().filter(|variant| !matches!(self.node(**variant), Node::Null));
                let kinds = kinds.map(|variant| self.kind(*variant, inside, made)).collect::<Result<Vec<_>, _>>()?;
                kinds.into_iter().reduce(wider).unwrap_or(DataType::Utf8)
            }
            _ => DataType::Utf8,
        })
    }

    /// Whether values of a union are of types that no single column type holds.
    pub(super) fn is_mixed(&self, variants: &[Id]) -> bool {
        let kinds = variants.iter().filter(|variant| !matches!(self.node(**variant), Node::Null));
        let kinds = kinds.map(|variant| self.kind(*variant, &mut vec![self.root], &mut 0).unwrap_or(DataType::Utf8));
        let kinds: Vec<_> = kinds.collect();
        kinds.len() > 1 && kinds.into_iter().reduce(wider) == Some(DataType::Utf8)
    }

    /// The variant of a union that a value of `other` is read as, or the node itself.
    pub(super) fn matching(&self, id: Id, other: &Node) -> Id {
        let Node::Union(variants) = self.node(id) else { return id };
        let same = |variant: &&Id| std::mem::discriminant(self.node(**variant)) == std::mem::discriminant(other);
        let valued = |variant: &&Id| !matches!(self.node(**variant), Node::Null);
        variants.iter().find(same).or(variants.iter().find(valued)).copied().unwrap_or(id)
    }
}

/// One type for values of both.
fn wider(one: DataType, other: DataType) -> DataType {
    match (&one, &other) {
        _ if one == other => one,
        (DataType::Int32, DataType::Int64) | (DataType::Int64, DataType::Int32) => DataType::Int64,
        (DataType::Int32 | DataType::Int64, DataType::Float64)
        | (DataType::Float64, DataType::Int32 | DataType::Int64) => DataType::Float64,
        _ => DataType::Utf8,
    }
}

#[derive(Default)]
struct Building {
    nodes: Vec<Node>,
    named: HashMap<String, Id>,
}

impl Building {
    fn push(&mut self, node: Node) -> Id {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn node(&mut self, schema: &Parsed, namespace: NamespaceRef<'_>) -> Result<Id, String> {
        let node = match schema {
            Parsed::Null => Node::Null,
            Parsed::Boolean => Node::Boolean,
            Parsed::Int => Node::Int,
            Parsed::Long => Node::Long,
            Parsed::Float => Node::Float,
            Parsed::Double => Node::Double,
            Parsed::Bytes => Node::Bytes,
            Parsed::String => Node::String,
            Parsed::Date => Node::Date,
            Parsed::TimeMillis => Node::Time(1_000),
            Parsed::TimeMicros => Node::Time(1_000_000),
            Parsed::TimestampMillis | Parsed::LocalTimestampMillis => Node::Stamp(1_000),
            Parsed::TimestampMicros | Parsed::LocalTimestampMicros => Node::Stamp(1_000_000),
            Parsed::TimestampNanos | Parsed::LocalTimestampNanos => Node::Stamp(1_000_000_000),
            Parsed::BigDecimal => Node::BigDecimal,
            Parsed::Uuid(UuidSchema::String) => Node::UuidText,
            Parsed::Uuid(UuidSchema::Bytes) => Node::Uuid { with_length: true },
            Parsed::Array(array) => Node::Array(self.node(&array.items, namespace)?),
            Parsed::Map(map) => Node::Map(self.node(&map.types, namespace)?),
            Parsed::Union(union) => {
                let variants = union.variants().iter().map(|variant| self.node(variant, namespace));
                Node::Union(variants.collect::<Result<_, _>>()?)
            }
            Parsed::Ref { name } => {
                let name = name.fullname(namespace);
                return self
                    .named
                    .get(&name)
                    .copied()
                    .ok_or_else(|| format!("it names {name}, which is nowhere defined"));
            }
            Parsed::Uuid(UuidSchema::Fixed(fixed)) => {
                return Ok(self.name(fixed.name.fullname(namespace), Node::Uuid { with_length: false }));
            }
            Parsed::Duration(fixed) => return Ok(self.name(fixed.name.fullname(namespace), Node::Duration)),
            Parsed::Fixed(fixed) => {
                return Ok(self.name(fixed.name.fullname(namespace), Node::Fixed(fixed.size)));
            }
            Parsed::Decimal(decimal) => {
                let (precision, scale) = (decimal.precision, decimal.scale);
                match &decimal.inner {
                    InnerDecimalSchema::Bytes => Node::Decimal { size: None, precision, scale },
                    InnerDecimalSchema::Fixed(fixed) => {
                        let node = Node::Decimal { size: Some(fixed.size), precision, scale };
                        return Ok(self.name(fixed.name.fullname(namespace), node));
                    }
                }
            }
            Parsed::Enum(given) => {
                let node = Node::Enum { symbols: given.symbols.clone().into(), default: given.default.clone() };
                return Ok(self.name(given.name.fullname(namespace), node));
            }
            Parsed::Record(record) => {
                let name = record.name.fully_qualified_name(namespace);
                let id = self.name(record.name.fullname(namespace), Node::Record(Vec::new()));
                let mut fields = Vec::with_capacity(record.fields.len());
                for field in &record.fields {
                    fields.push(Field {
                        name: field.name.clone(),
                        aliases: field.aliases.clone(),
                        node: self.node(&field.schema, name.namespace())?,
                        default: field.default.clone(),
                    });
                }
                self.nodes[id] = Node::Record(fields);
                return Ok(id);
            }
        };
        Ok(self.push(node))
    }

    fn name(&mut self, name: String, node: Node) -> Id {
        let id = self.push(node);
        self.named.insert(name, id);
        id
    }
}
