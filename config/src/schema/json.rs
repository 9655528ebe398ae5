//! The JSON Schemas of jobs and of the daemon's file (draft 2020-12), for editors.

use serde_json::{Map, Value, json};

use super::{Key, Kind, Need, Object, Scalar, State, Variant, Variants, Word, daemon, job};

/// The JSON Schema of a job. Stricter things (references, globs, expressions) are for `tidemill validate`.
pub fn json_schema() -> Value {
    titled(object(&job::JOB), "A job of Tidemill", "urn:tidemill:job")
}

/// The JSON Schema of the daemon's own file.
pub fn daemon_json_schema() -> Value {
    titled(object(&daemon::DAEMON), "The file of a Tidemill daemon", "urn:tidemill:daemon")
}

fn titled(mut schema: Value, title: &str, id: &str) -> Value {
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["$id"] = json!(id);
    schema["title"] = json!(title);
    schema
}

fn object(object: &Object) -> Value {
    let mut schema = mapping(object.keys, object.exactly_one);
    if object.exactly_one.is_empty() {
        return schema;
    }
    schema["oneOf"] = one_of(object.exactly_one);
    schema
}

fn one_of(keys: &[&str]) -> Value {
    keys.iter().map(|key| json!({ "required": [key] })).collect()
}

fn mapping(keys: &[Key], exactly_one: &[&str]) -> Value {
    let mut properties = Map::new();
    for key in keys {
        let mut value = kind(&key.kind);
        if !key.doc.is_empty() {
            value["description"] = json!(key.doc);
        }
        if let Need::Default(default) = key.need
            && let Ok(default) = serde_yaml::from_str::<Value>(default)
        {
            value["default"] = default;
        }
        properties.insert(key.name.to_owned(), value);
    }
    let required: Vec<_> = keys
        .iter()
        .filter(|key| matches!(key.need, Need::Required) && !exactly_one.contains(&key.name))
        .map(|key| key.name)
        .collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

fn kind(what: &Kind) -> Value {
    match what {
        Kind::Scalar(scalar) => text(*scalar),
        Kind::Words(all) => words(all),
        Kind::List { of, min } => json!({ "type": "array", "items": kind(of), "minItems": min }),
        Kind::OneOrMore { of, min } => {
            json!({ "anyOf": [kind(of), { "type": "array", "items": kind(of), "minItems": min }] })
        }
        Kind::Map { key, value, .. } => {
            let names = if *key == Scalar::Name { text(*key) } else { json!({ "minLength": 1 }) };
            json!({ "type": "object", "additionalProperties": kind(value), "propertyNames": names, "minProperties": 1 })
        }
        Kind::Object(keys) => object(keys),
        Kind::Variants(all) => variants(all),
        Kind::WordOr(all, keys) => json!({ "anyOf": [words(all), object(keys)] }),
        Kind::Either(value, mapping) => json!({ "anyOf": [kind(value), kind(mapping)] }),
        Kind::Step => step(),
    }
}

/// The words; a number among them may be written as one, and so may `null`.
fn words(all: &[Word]) -> Value {
    let now = || all.iter().filter(|word| word.state == State::Now).map(|word| word.name);
    let numbers = now().filter_map(|name| name.parse::<u64>().ok()).map(|number| json!(number));
    let null = now().filter(|name| *name == "null").map(|_| Value::Null);
    let names: Vec<Value> = now().map(|name| json!(name)).chain(numbers).chain(null).collect();
    json!({ "anyOf": [{ "enum": names }, PUT_IN.pattern()] })
}

/// A pattern that a whole text matches.
struct Pattern(&'static str);

/// `${...}` may give any value; the schema sees none of them.
const PUT_IN: Pattern = Pattern(r"\$\{");
const DURATION: Pattern = Pattern(r"^\s*[0-9][0-9_]*\s*(ms|s|m|h|d)\s*$|\$\{");
const TRIGGER: Pattern = Pattern(r"^asap$|^\s*[0-9][0-9_]*\s*(ms|s|m|h|d)\s*$");
const SIZE: Pattern = Pattern(r"^\s*[0-9][0-9_]*\s*([kMGT]?B|[KMGT]iB)\s*$|\$\{");
const SHARE: Pattern = Pattern(r"^[0-9][0-9_]*$|^[0-9]+(\.[0-9]+)?\s*%$");
const COUNT: Pattern = Pattern(r"^[0-9][0-9_]*$|\$\{");
const FLAG: Pattern = Pattern(r"^([Tt]rue|TRUE|[Ff]alse|FALSE)$|\$\{");
const ADDRESS: Pattern = Pattern(r"^[^/\s]+:[0-9]{1,5}$|\$\{");
const TYPE: Pattern = Pattern(
    r"^\s*(string|int32|int64|float64|boolean|timestamp|date|binary|decimal\s*\(.*\)|list\s*<.*>|struct\s*<.*>)\s*$|\$\{",
);

impl Pattern {
    fn pattern(&self) -> Value {
        json!({ "type": "string", "pattern": self.0 })
    }
}

/// YAML's own numbers and truths are texts to a job: both are allowed where a text is.
fn text(scalar: Scalar) -> Value {
    match scalar {
        Scalar::Flag => json!({ "anyOf": [{ "type": "boolean" }, FLAG.pattern()] }),
        Scalar::Count { min, max } => {
            json!({ "anyOf": [{ "type": "integer", "minimum": min, "maximum": max }, COUNT.pattern()] })
        }
        Scalar::Share => json!({ "anyOf": [{ "type": "integer", "minimum": 0 }, SHARE.pattern()] }),
        Scalar::Name => json!({ "type": "string", "pattern": "^[a-z][a-z0-9-]*$", "maxLength": 63 }),
        Scalar::Duration { .. } => DURATION.pattern(),
        Scalar::Trigger => TRIGGER.pattern(),
        Scalar::Size { .. } => SIZE.pattern(),
        Scalar::Type => TYPE.pattern(),
        Scalar::Connect | Scalar::Listen => ADDRESS.pattern(),
        Scalar::Url(scheme) => {
            json!({ "type": "string", "pattern": format!(r"^{scheme}(ql)?://.|\$\{{") })
        }
        Scalar::AnyText => json!({ "type": ["string", "number", "boolean"] }),
        _ => json!({ "type": ["string", "number", "boolean"], "minLength": 1 }),
    }
}

/// `type:` decides which keys there are: as `if` and `then`, so that an editor offers and blames those of the type that is
/// written, and not of the first that is known.
fn variants(all: &Variants) -> Value {
    let names: Vec<_> = all.listed().map(|one| one.name).collect();
    let of_type = |one: &'static Variant| {
        let is_it = json!({ "properties": { "type": { "const": one.name } }, "required": ["type"] });
        json!({ "if": is_it, "then": variant(all, one) })
    };
    let mut whole = json!({
        "type": "object",
        "properties": { "type": { "enum": names } },
        "required": ["type"],
        "allOf": all.listed().map(of_type).collect::<Vec<_>>(),
    });
    if all.short {
        let name = json!({ "anyOf": [{ "enum": names }, PUT_IN.pattern()] });
        whole = json!({ "if": { "type": "object" }, "then": whole, "else": name });
    }
    whole
}

fn variant(all: &Variants, one: &Variant) -> Value {
    let mut schema = mapping(all.common, &[]);
    let own = mapping(one.keys, one.exactly_one);
    for (name, value) in own["properties"].as_object().into_iter().flatten() {
        schema["properties"][name] = value.clone();
    }
    let mut required: Vec<Value> =
        [&schema, &own].iter().flat_map(|part| part["required"].as_array().cloned().unwrap_or_default()).collect();
    required.push(json!("type"));
    required.dedup();
    schema["required"] = Value::Array(required);
    schema["properties"]["type"] = json!({ "const": one.name });
    schema["description"] = json!(one.doc);
    if !one.exactly_one.is_empty() {
        schema["oneOf"] = one_of(one.exactly_one);
    }
    schema
}

fn step() -> Value {
    let verbs = job::VERBS.iter().filter_map(|verb| {
        let mut schema = mapping(job::STEP.keys, &[]);
        let mut value = kind(verb.kind.as_ref()?);
        value["description"] = json!(verb.doc);
        schema["properties"][verb.name] = value;
        schema["required"] = json!([verb.name]);
        Some(schema)
    });
    json!({ "anyOf": verbs.collect::<Vec<_>>() })
}
