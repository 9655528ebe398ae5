//! The names of column types: `int64`, `decimal(10, 2)`, `list<struct<a: string>>`.

use std::fmt;

use crate::{Type, error::Problem, nearest::did_you_mean};

/// The names as people know them, for messages and docs.
pub(crate) const NAMES: [&str; 11] = [
    "string",
    "int32",
    "int64",
    "float64",
    "boolean",
    "timestamp",
    "date",
    "binary",
    "decimal(p, s)",
    "list<T>",
    "struct<a: T>",
];

/// Names from other systems, and what they are here.
const ELSEWHERE: [(&str, &str); 31] = [
    ("text", "string"),
    ("varchar", "string"),
    ("str", "string"),
    ("utf8", "string"),
    ("int", "int64"),
    ("integer", "int64"),
    ("long", "int64"),
    ("bigint", "int64"),
    ("uint32", "int64"),
    ("smallint", "int32"),
    ("int8", "int32"),
    ("int16", "int32"),
    ("uint8", "int32"),
    ("uint16", "int32"),
    ("short", "int32"),
    ("number", "float64"),
    ("double", "float64"),
    ("float", "float64"),
    ("float32", "float64"),
    ("real", "float64"),
    ("bool", "boolean"),
    ("datetime", "timestamp"),
    ("timestamptz", "timestamp"),
    ("time", "timestamp"),
    ("bytes", "binary"),
    ("blob", "binary"),
    ("numeric", "decimal(p, s)"),
    ("array", "list<T>"),
    ("uuid", "string"),
    ("object", "struct<a: T>"),
    ("record", "struct<a: T>"),
];

/// Types inside types, at most.
const MAX_DEPTH: usize = 16;
/// Digits that a decimal holds.
const MAX_PRECISION: u8 = 38;

impl Type {
    /// Reads a type as jobs write it. The error says what is wrong and names the nearest type.
    pub fn parse(text: &str) -> Result<Self, String> {
        check(text).map_err(|problem| {
            let mut message = problem.what;
            problem.help.iter().for_each(|help| message.push_str(&format!("; {help}")));
            message
        })
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String => f.write_str("string"),
            Self::Int32 => f.write_str("int32"),
            Self::Int64 => f.write_str("int64"),
            Self::Float64 => f.write_str("float64"),
            Self::Boolean => f.write_str("boolean"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Date => f.write_str("date"),
            Self::Binary => f.write_str("binary"),
            Self::Decimal(precision, scale) => write!(f, "decimal({precision}, {scale})"),
            Self::List(inner) => write!(f, "list<{inner}>"),
            Self::Struct(fields) => {
                f.write_str("struct<")?;
                for (index, (name, kind)) in fields.iter().enumerate() {
                    write!(f, "{}{name}: {kind}", if index > 0 { ", " } else { "" })?;
                }
                f.write_str(">")
            }
        }
    }
}

pub(crate) fn check(text: &str) -> Result<Type, Problem> {
    let mut reader = Reader { rest: text.trim(), depth: 0, opened: text.contains(['(', '<']) };
    let kind = reader.kind()?;
    match reader.rest {
        "" => Ok(kind),
        rest => Err(Problem::new(format!("`{text}` is not a type: `{rest}` after it is too much"))),
    }
}

struct Reader<'a> {
    rest: &'a str,
    depth: usize,
    /// Whether it has a bracket at all.
    opened: bool,
}

impl<'a> Reader<'a> {
    fn kind(&mut self) -> Result<Type, Problem> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Problem::new(format!("types are nested more than {MAX_DEPTH} deep")));
        }
        let kind = match self.word() {
            "string" => Type::String,
            "int32" => Type::Int32,
            "int64" => Type::Int64,
            "float64" => Type::Float64,
            "boolean" => Type::Boolean,
            "timestamp" => Type::Timestamp,
            "date" => Type::Date,
            "binary" => Type::Binary,
            "decimal" => self.decimal()?,
            "list" => {
                self.expect('<', "list<T>")?;
                let inner = self.kind()?;
                self.expect('>', "list<T>")?;
                Type::List(Box::new(inner))
            }
            "struct" => self.fields()?,
            other => return Err(unknown(other)),
        };
        self.depth -= 1;
        Ok(kind)
    }

    fn decimal(&mut self) -> Result<Type, Problem> {
        const FORM: &str = "decimal(p, s)";
        self.expect('(', FORM)?;
        let precision = self.word().parse::<u8>().ok().filter(|p| (1..=MAX_PRECISION).contains(p));
        self.expect(',', FORM)?;
        let scale = self.word().parse::<i8>().ok();
        self.expect(')', FORM)?;
        match (precision, scale) {
            (Some(p), Some(s)) if i16::from(s) <= i16::from(p) => Ok(Type::Decimal(p, s)),
            _ => Err(Problem::new("a decimal cannot have these digits")
                .help("`decimal(p, s)` has p digits (1 to 38), s of them (0 to p) after the point: `decimal(10, 2)`")),
        }
    }

    fn fields(&mut self) -> Result<Type, Problem> {
        const FORM: &str = "struct<a: T, b: T>";
        self.expect('<', FORM)?;
        let mut fields: Vec<(String, Type)> = Vec::new();
        loop {
            let name = self.word().to_owned();
            if name.is_empty() {
                return Err(self.form(FORM));
            }
            if fields.iter().any(|field| field.0 == name) {
                return Err(Problem::new(format!("the struct has two fields `{name}`")));
            }
            self.expect(':', FORM)?;
            fields.push((name, self.kind()?));
            if !self.eat(',') {
                break;
            }
        }
        self.expect('>', FORM)?;
        Ok(Type::Struct(fields))
    }

    /// The longest run of characters that have no meaning of their own.
    fn word(&mut self) -> &'a str {
        let end = self.rest.find(['<', '>', '(', ')', ',', ':']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.trim()
    }

    fn eat(&mut self, c: char) -> bool {
        let rest = self.rest.trim_start().strip_prefix(c);
        self.rest = rest.map_or(self.rest, str::trim_start);
        rest.is_some()
    }

    fn expect(&mut self, c: char, shape: &str) -> Result<(), Problem> {
        if self.eat(c) { Ok(()) } else { Err(self.form(shape)) }
    }

    /// A type that ends too soon was likelier cut by YAML at its comma than written so.
    fn form(&self, shape: &str) -> Problem {
        let wrong = Problem::new(format!("this type is written `{shape}`"));
        if self.rest.is_empty() && self.opened {
            return wrong
                .help("inside `{ }` a type with a comma or a colon needs quotes: `{ price: \"decimal(10, 2)\" }`");
        }
        wrong.help("for example: `decimal(10, 2)`, `list<int64>`, `struct<name: string, born: date>`")
    }
}

fn unknown(name: &str) -> Problem {
    let wrong = if name.is_empty() {
        Problem::new("a type is missing")
    } else {
        Problem::new(format!("`{name}` is not a type"))
    };
    let folded = name.to_lowercase();
    let same = ELSEWHERE.iter().find(|known| known.0 == folded).map(|known| known.1);
    let bases = NAMES.map(|name| name.split(['(', '<']).next().unwrap_or(name));
    match same.map(|name| format!("did you mean `{name}`?")).or_else(|| did_you_mean(name, bases)) {
        Some(meant) => wrong.help(meant),
        None => wrong.help(format!("types are {}", NAMES.map(|name| format!("`{name}`")).join(", "))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn types_print_as_they_are_read() {
        for text in [
            "string",
            "decimal(10, 2)",
            "decimal(38, 0)",
            "list<int32>",
            "struct<a: int64, b: list<struct<c: decimal(5, -2)>>>",
        ] {
            assert_eq!(Type::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Type::parse(" decimal( 10 ,2 ) "), Ok(Type::Decimal(10, 2)));
        assert_eq!(Type::parse("list< list<date> >").unwrap().to_string(), "list<list<date>>");
    }

    #[test]
    fn wrong_types_name_the_nearest() {
        for (text, expected) in [
            ("strnig", "did you mean `string`?"),
            ("Int64", "did you mean `int64`?"),
            ("integer", "did you mean `int64`?"),
            ("quux", "types are `string`, `int32`"),
            ("", "a type is missing"),
            ("list", "written `list<T>`"),
            ("list<>", "a type is missing"),
            ("list<int32", "written `list<T>`"),
            ("decimal", "written `decimal(p, s)`"),
            ("decimal(10", "needs quotes"),
            ("decimal(39, 2)", "1 to 38"),
            ("decimal(4, 5)", "0 to p"),
            ("struct<a: int64, a: date>", "two fields `a`"),
            ("struct<int64>", "struct<a: T, b: T>"),
            ("string>", "`>` after it is too much"),
        ] {
            let error = Type::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(Type::parse(&"list<".repeat(1000)).unwrap_err().contains("nested"));
    }
}
