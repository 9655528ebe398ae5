//! The schema that columns have where nobody gives one: a record whose fields are unions with null, which is their default, so
//! that columns may come and go. Its text is the same for the same columns: a registry knows it again.

use std::collections::HashSet;

use arrow::datatypes::{DataType, Fields};

use crate::codec::{records::cells::kind_of, type_name};

/// The text of the schema of a topic's records.
pub(in crate::codec) fn schema(topic: &str, columns: &Fields) -> Result<String, String> {
    let mut out = String::new();
    Deriving::default().record(&valid(topic), columns, "", &mut out)?;
    Ok(out)
}

/// A name that Avro allows: letters, digits and `_`, no digit first.
fn valid(name: &str) -> String {
    let mut valid: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if !valid.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        valid.insert(0, '_');
    }
    valid
}

#[derive(Default)]
struct Deriving {
    /// Names of records: two of them may not have the same.
    names: HashSet<String>,
}

impl Deriving {
    fn record(&mut self, name: &str, columns: &Fields, outer: &str, out: &mut String) -> Result<(), String> {
        let mut unique = name.to_owned();
        let mut number = 2;
        while !self.names.insert(unique.clone()) {
            unique = format!("{name}_{number}");
            number += 1;
        }
        out.push_str(&format!(r#"{{"type":"record","name":"{unique}","fields":["#));
        for (place, column) in columns.iter().enumerate() {
            let field = column.name();
            let path = format!("{outer}{field}");
            // Another name than the column's would be read as another column.
            if valid(field) != *field {
                return Err(format!(
                    "column `{path}`: the name of a field in Avro has letters, digits and `_`, and no digit first: add \
                     `rename: {{ \"{field}\": {} }}`",
                    valid(field)
                ));
            }
            if place > 0 {
                out.push(',');
            }
            out.push_str(&format!(r#"{{"name":"{field}","type":"#));
            self.nullable(&format!("{unique}_{field}"), column.data_type(), &path, out)?;
            out.push_str(r#","default":null}"#);
        }
        out.push_str("]}");
        Ok(())
    }

    fn nullable(&mut self, name: &str, kind: &DataType, path: &str, out: &mut String) -> Result<(), String> {
        out.push_str(r#"["null","#);
        self.kind(name, kind, path, out)?;
        out.push(']');
        Ok(())
    }

    fn kind(&mut self, name: &str, kind: &DataType, path: &str, out: &mut String) -> Result<(), String> {
        match kind_of(kind) {
            DataType::Boolean => out.push_str(r#""boolean""#),
            DataType::Int32 => out.push_str(r#""int""#),
            DataType::Int64 | DataType::UInt64 => out.push_str(r#""long""#),
            DataType::Float32 => out.push_str(r#""float""#),
            DataType::Float64 => out.push_str(r#""double""#),
            DataType::Binary => out.push_str(r#""bytes""#),
            DataType::Timestamp(..) => out.push_str(r#"{"type":"long","logicalType":"timestamp-micros"}"#),
            DataType::Date32 => out.push_str(r#"{"type":"int","logicalType":"date"}"#),
            DataType::Decimal128(precision, scale @ 0..) => out.push_str(&format!(
                r#"{{"type":"bytes","logicalType":"decimal","precision":{precision},"scale":{scale}}}"#
            )),
            DataType::Decimal128(..) => {
                return Err(format!(
                    "column `{path}` is {}, and Avro has no decimals with a negative scale: cast it",
                    type_name(kind)
                ));
            }
            DataType::List(item) => {
                out.push_str(r#"{"type":"array","items":"#);
                self.nullable(name, item.data_type(), path, out)?;
                out.push('}');
            }
            DataType::Struct(members) => self.record(name, &members, &format!("{path}."), out)?,
            _ => out.push_str(r#""string""#),
        }
        Ok(())
    }
}
