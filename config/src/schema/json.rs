//! The JSON Schema of jobs (draft 2020-12), for editors.

use serde_json::{Map, Value, json};

use super::{Key, Kind, Need, Object, Scalar, State, Variant, Variants, Word, job};

/// The JSON Schema of a job. Stricter things (references, globs, expressions) are for `tidemill validate`.
pub fn json_schema() -> Value {
    let mut schema = object(&job::JOB);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("A job of Tidemill");
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
        Kind::Map { value, .. } => json!({ "type": "object", "additionalProperties": kind(value), "minProperties": 1 }),
        Kind::Object(keys) => object(keys),
        Kind::Variants(all) => variants(all),
        Kind::WordOr(all, keys) => json!({ "anyOf": [words(all), object(keys)] }),
        Kind::Step => step(),
    }
}

fn words(all: &[Word]) -> Value {
    let names: Vec<_> = all.iter().filter(|word| word.state == State::Now).map(|word| word.name).collect();
    json!({ "enum": names })
}

/// YAML's own numbers and truths are texts to a job: both are allowed where a text is.
fn text(scalar: Scalar) -> Value {
    match scalar {
        Scalar::Flag => json!({ "type": "boolean" }),
        Scalar::Count { min, max } => json!({ "type": ["integer", "string"], "minimum": min, "maximum": max }),
        Scalar::Name => json!({ "type": "string", "pattern": "^[a-z][a-z0-9-]*$" }),
        Scalar::Duration { .. } | Scalar::Trigger | Scalar::Size { .. } => json!({ "type": "string" }),
        _ => json!({ "type": ["string", "number", "boolean"] }),
    }
}

fn variants(all: &Variants) -> Value {
    let mut any: Vec<Value> = all.listed().map(|one| variant(all, one)).collect();
    if all.short {
        let names: Vec<_> = all.listed().map(|one| one.name).collect();
        any.insert(0, json!({ "enum": names }));
    }
    json!({ "anyOf": any })
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
