//! Jobs, rows and results as tests write them: steps as YAML, rows as JSON.
#![allow(dead_code, clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray},
    compute::{cast, concat_batches},
    datatypes::{DataType, Field, Float64Type, Int32Type, Int64Type, Schema, SchemaRef},
    util::display::{ArrayFormatter, FormatOptions},
};
use serde_json::Value;
use tidemill_config::{
    At, Batch, Codec, Duplicates, Job, Located, Lookup, LookupMode, LookupTable, OnError, OnMissing, Sink, SinkKind,
    Source, SourceKind, Step, TestSource, Trigger, Type, Verb,
};
use tidemill_steps::{
    Applied, BatchContext, Pipeline, PlanError, Rows, columns,
    lookup::{Snapshot, Table, Tables},
};

/// 2015-05-17T10:05:03.250Z.
pub const CONTEXT: BatchContext = BatchContext { planned_at: 1_431_857_103_250, seed: 42 };

pub fn located<T>(value: T, path: &str) -> Located<T> {
    Located { value, at: At { line: 1, column: 1, path: path.to_owned() } }
}

/// A job with these sources, steps as YAML, and these sinks: (name, from, where).
pub fn job(sources: &[&str], steps: &str, sinks: &[(&str, Option<&str>, Option<&str>)]) -> Job {
    let sources = sources.iter().map(|name| Source {
        name: located((*name).to_owned(), "sources"),
        formerly: None,
        kind: SourceKind::Test(TestSource { path: "unused".into() }),
        codec: Codec::Json,
        schema: None,
        metadata: Vec::new(),
    });
    let sinks = sinks.iter().map(|(name, from, filter)| Sink {
        name: located((*name).to_owned(), "sinks"),
        formerly: None,
        from: from.map(|name| located(name.to_owned(), "sinks.from")),
        filter: filter.map(|text| located(text.to_owned(), "sinks.where")),
        kind: SinkKind::Blackhole,
    });
    Job {
        max_rejected: None,
        name: "test".into(),
        file: "test.yaml".into(),
        text: String::new(),
        lanes: None,
        trigger: Trigger::Asap,
        batch: Batch { max_records: 1_000_000, max_bytes: 1 << 26 },
        sources: sources.collect(),
        steps: read_steps(steps),
        sinks: sinks.collect(),
        dead_letters: None,
        takeover_after: Duration::from_secs(30),
    }
}

/// Steps out of YAML. Only what is right need be read: the checks of files are tested with the crate that makes them.
pub fn read_steps(yaml: &str) -> Vec<Step> {
    let steps: Option<Vec<serde_yaml::Mapping>> = serde_yaml::from_str(yaml).unwrap();
    steps.unwrap_or_default().iter().enumerate().map(|(index, step)| read_step(index, step)).collect()
}

fn read_step(index: usize, step: &serde_yaml::Mapping) -> Step {
    let text = |key: &str| step.get(key).map(|value| value.as_str().unwrap().to_owned());
    let options = ["name", "from", "when", "on_error"];
    let (verb, value) = step.iter().find(|(key, _)| !options.contains(&key.as_str().unwrap())).unwrap();
    let verb = verb.as_str().unwrap();
    let path = format!("steps[{index}].{verb}");
    let name = text("name").unwrap_or(format!("{}-{verb}", index + 1));
    let from = step.get("from").map(|from| texts(from, &format!("steps[{index}].from"))).unwrap_or_default();
    let on_error = match text("on_error").as_deref() {
        None | Some("reject") => OnError::Reject,
        Some("fail") => OnError::Fail,
        Some("set_null") => OnError::SetNull,
        Some(other) => panic!("on_error: {other}"),
    };
    let when = text("when").map(|when| located(when, &format!("steps[{index}].when")));
    let verb = read_verb(verb, value, &path);
    Step {
        name,
        named: step.contains_key("name"),
        from,
        when,
        on_error,
        per_lane: false,
        verb,
        at: located((), &path).at,
    }
}

fn scalar(value: &serde_yaml::Value, path: &str) -> Located<String> {
    located(
        value.as_str().map(str::to_owned).unwrap_or_else(|| serde_yaml::to_string(value).unwrap().trim().into()),
        path,
    )
}

fn texts(value: &serde_yaml::Value, path: &str) -> Vec<Located<String>> {
    match value.as_sequence() {
        Some(items) => items.iter().map(|item| scalar(item, path)).collect(),
        None => vec![scalar(value, path)],
    }
}

fn pairs(value: &serde_yaml::Value, path: &str) -> Vec<(Located<String>, Located<String>)> {
    let pairs = value.as_mapping().unwrap().iter();
    pairs.map(|(key, value)| (scalar(key, path), scalar(value, &format!("{path}.{}", key.as_str().unwrap())))).collect()
}

fn read_verb(verb: &str, value: &serde_yaml::Value, path: &str) -> Verb {
    let part = |key: &str| value.get(key).map(|value| scalar(value, &format!("{path}.{key}")));
    match verb {
        "select" => Verb::Select(texts(value, path)),
        "drop" => Verb::Drop(texts(value, path)),
        "rename" => Verb::Rename(pairs(value, path)),
        "cast" => Verb::Cast(
            pairs(value, path)
                .into_iter()
                .map(|(name, kind)| (name, Located { value: read_type(&kind.value), at: kind.at }))
                .collect(),
        ),
        "trim" => Verb::Trim(texts(value, path)),
        "lowercase" => Verb::Lowercase(texts(value, path)),
        "uppercase" => Verb::Uppercase(texts(value, path)),
        "drop_empty" => Verb::DropEmpty(texts(value, path)),
        "drop_nulls" => Verb::DropNulls(texts(value, path)),
        "filter" => Verb::Filter(scalar(value, path)),
        "add" => Verb::Add(pairs(value, path)),
        "sql" => Verb::Sql(scalar(value, path)),
        "split" => Verb::Split {
            column: part("column").unwrap(),
            by: part("by").unwrap().value,
            into: value.get("into").map(|into| texts(into, path)).unwrap_or_default(),
        },
        "lookup" => Verb::Lookup(Box::new(read_lookup(value, path))),
        "parse_timestamp" => Verb::ParseTimestamp {
            column: part("column").unwrap(),
            formats: value.get("format").map(|format| texts(format, &format!("{path}.format"))).unwrap_or_default(),
            zone: part("zone"),
        },
        other => panic!("no verb {other}"),
    }
}

fn read_lookup(value: &serde_yaml::Value, path: &str) -> Lookup {
    let columns = |key: &str| {
        let (value, path) = (value.get(key).unwrap(), format!("{path}.{key}"));
        match value.is_mapping() {
            true => pairs(value, &path),
            false => texts(value, &path).into_iter().map(|name| (name.clone(), name)).collect(),
        }
    };
    Lookup {
        table: LookupTable::File { path: value["table"].as_str().unwrap().into(), codec: Codec::Json },
        keys: columns("match"),
        take: columns("take"),
        on_missing: match value.get("on_missing").map(|word| word.as_str().unwrap()) {
            None => OnMissing::Null,
            Some("reject") => OnMissing::Reject,
            Some("drop") => OnMissing::Drop,
            Some(other) => panic!("on_missing: {other}"),
        },
        duplicates: match value.get("duplicates").map(|word| word.as_str().unwrap()) {
            None => Duplicates::Fail,
            Some("first") => Duplicates::First,
            Some("last") => Duplicates::Last,
            Some(other) => panic!("duplicates: {other}"),
        },
        schema: None,
        mode: LookupMode::Snapshot { refresh: Duration::from_secs(1), max_bytes: 1 << 20 },
        on_lost_table: None,
        timeout: Duration::from_secs(1),
    }
}

pub fn read_type(text: &str) -> Type {
    let inside = |prefix: &str| text.strip_prefix(prefix).map(|rest| &rest[..rest.len() - 1]);
    match text {
        "string" => Type::String,
        "int32" => Type::Int32,
        "int64" => Type::Int64,
        "float64" => Type::Float64,
        "boolean" => Type::Boolean,
        "timestamp" => Type::Timestamp,
        "date" => Type::Date,
        "binary" => Type::Binary,
        _ if text.starts_with("decimal(") => {
            let (precision, scale) = inside("decimal(").unwrap().split_once(',').unwrap();
            Type::Decimal(precision.trim().parse().unwrap(), scale.trim().parse().unwrap())
        }
        _ => Type::List(Box::new(read_type(inside("list<").unwrap_or_else(|| panic!("no type {text}"))))),
    }
}

/// `a: string, b: int32`.
pub fn schema(columns: &str) -> SchemaRef {
    let fields = columns.split(", ").filter(|text| !text.is_empty()).map(|column| {
        let (name, kind) = column.rsplit_once(": ").unwrap();
        Field::new(name, columns::data_type(&read_type(kind)), true)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Rows of JSON arrays.
pub fn batch(schema: &SchemaRef, rows: &[Vec<Value>]) -> RecordBatch {
    let arrays = schema.fields().iter().enumerate().map(|(index, field)| {
        let values = || rows.iter().map(|row| &row[index]);
        match field.data_type() {
            DataType::Int32 => {
                Arc::new(Int32Array::from_iter(values().map(|value| value.as_i64().map(|value| value as i32))))
                    as ArrayRef
            }
            DataType::Int64 => Arc::new(Int64Array::from_iter(values().map(Value::as_i64))),
            DataType::Float64 => Arc::new(Float64Array::from_iter(values().map(Value::as_f64))),
            DataType::Boolean => Arc::new(BooleanArray::from_iter(values().map(Value::as_bool))),
            DataType::Utf8 => Arc::new(StringArray::from_iter(values().map(Value::as_str))),
            kind => cast(&StringArray::from_iter(values().map(Value::as_str)), kind).unwrap(),
        }
    });
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(Arc::clone(schema), arrays.collect(), &options).unwrap()
}

/// Rows as JSON arrays.
pub fn values(batches: &[RecordBatch]) -> Vec<Vec<Value>> {
    let Some(first) = batches.first() else { return Vec::new() };
    let batch = concat_batches(&first.schema(), batches).unwrap();
    let value = |array: &ArrayRef, row: usize| match array.data_type() {
        _ if array.is_null(row) => Value::Null,
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).into(),
        DataType::Boolean => array.as_boolean().value(row).into(),
        _ => {
            let formatter = ArrayFormatter::try_new(array, &FormatOptions::default()).unwrap();
            formatter.value(row).to_string().into()
        }
    };
    (0..batch.num_rows()).map(|row| batch.columns().iter().map(|array| value(array, row)).collect()).collect()
}

/// `a: string, b: int32` of a schema.
pub fn columns_of(schema: &Schema) -> String {
    let columns =
        schema.fields().iter().map(|field| format!("{}: {}", field.name(), columns::type_name(field.data_type())));
    columns.collect::<Vec<_>>().join(", ")
}

/// A batch cut into chunks of so many rows, with origins counted from `first`.
pub fn chunks(batch: &RecordBatch, rows: usize, first: u32) -> Vec<Rows> {
    let starts = (0..batch.num_rows()).step_by(rows.max(1));
    let chunks = starts.map(|start| {
        let batch = batch.slice(start, rows.min(batch.num_rows() - start));
        let first = first + start as u32;
        Rows { origin: (first..first + batch.num_rows() as u32).collect(), batch }
    });
    chunks.collect()
}

/// What one source `in` and one sink `out` make of rows.
pub fn run(columns: &str, steps: &str, rows: &[Vec<Value>]) -> (SchemaRef, Applied) {
    let schema = schema(columns);
    let pipeline = plan(columns, steps).unwrap_or_else(|errors| panic!("{errors:?}"));
    let batch = batch(&schema, rows);
    let applied = pipeline.apply(&CONTEXT, vec![("in".into(), chunks(&batch, 1_000_000, 0))]).unwrap();
    (pipeline.sink_schema("out").unwrap(), applied)
}

/// The same with a table for every lookup of the steps, or what is wrong with one.
pub fn run_with(
    columns: &str,
    steps: &str,
    rows: &[Vec<Value>],
    table: &RecordBatch,
) -> Result<(SchemaRef, Applied), Vec<String>> {
    let job = job(&["in"], steps, &[("out", None, None)]);
    let lookups = job.steps.iter().filter_map(|step| match &step.verb {
        Verb::Lookup(lookup) => Some((step.name.clone(), lookup)),
        _ => None,
    });
    let lookups: Vec<_> = lookups.collect();
    let schemas = lookups.iter().map(|(name, _)| (name.clone(), table.schema())).collect();
    let schema = schema(columns);
    let pipeline = Pipeline::plan_with(&job, &[("in".into(), schema.clone())], &schemas);
    let pipeline = pipeline.map_err(|errors| errors.into_iter().map(|error| error.message).collect::<Vec<_>>())?;
    let mut tables = Tables::new();
    for (name, lookup) in lookups {
        let snapshot = Snapshot::new(table.clone(), lookup).map_err(|error| vec![error])?;
        tables.insert(name, Table::Whole(Arc::new(snapshot)));
    }
    let inputs = vec![("in".into(), chunks(&batch(&schema, rows), 1_000_000, 0))];
    let applied = pipeline.apply_with(&CONTEXT, inputs, &tables).map_err(|error| vec![error.to_string()])?;
    Ok((pipeline.sink_schema("out").unwrap(), applied))
}

pub fn plan(columns: &str, steps: &str) -> Result<Pipeline, Vec<PlanError>> {
    Pipeline::plan(&job(&["in"], steps, &[("out", None, None)]), &[("in".into(), schema(columns))])
}

/// All messages of a plan that fails.
pub fn messages(result: Result<Pipeline, Vec<PlanError>>) -> Vec<String> {
    result.err().unwrap_or_default().into_iter().map(|error| error.message).collect()
}
