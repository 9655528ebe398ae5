//! From raw records to rows: codecs and pipeline for one text of the job and one set of pinned schemas. A pure function of
//! (plan, records); the only place where a record becomes a row or a reject.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{
        ArrayRef, BooleanArray, Int64Builder, RecordBatch, RecordBatchOptions, StringArray, StringBuilder,
        TimestampMillisecondArray, UInt32Array, new_null_array,
    },
    compute::{filter_record_batch, take},
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
};
use rayon::prelude::*;
use tidemill_checkpoint::{Digest, Position, ShardId, SinkId};
use tidemill_config as config;
use tidemill_connectors::{
    Codec,
    codec::{self, Decoded, EXTRA, PrepareError},
    source::{ENCODING, LINE, RawBatch, Slice, directory::count_lines, kafka},
};
use tidemill_steps::{BatchContext, Pipeline, Rows, Schemas, StepError, StepStats, lookup::Tables};

use super::{
    LetterText,
    keys::{self, Keys},
    readable::Readable,
};
use crate::status::StepReport;

/// Schemas pinned so far, by the name that the source's shards have: what the codec decodes, without metadata columns.
pub type Pinned = BTreeMap<String, SchemaRef>;

struct CompiledSource {
    codec: Box<dyn Codec>,
    /// `None`: no record has told it yet, and whatever comes is a reject.
    known: Option<SchemaRef>,
    /// The columns that the job uses.
    decoded: SchemaRef,
    metadata: Vec<String>,
    /// Keys that are decoded.
    keys: Option<Keys>,
    /// `decoded`, the metadata columns and those of keys.
    rows: SchemaRef,
}

/// One text of a job with its schemas: ready to compute.
pub struct Compiled {
    job: Arc<config::Job>,
    pinned: Pinned,
    sources: Vec<CompiledSource>,
    pipeline: Pipeline,
}

/// Why a batch cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// A step with `on_error: fail`, or one that cannot go on.
    #[error("{0}")]
    Step(String),
    /// Planning the steps against the schemas failed; each text is a whole message with its place.
    #[error("{}", .0.join("\n"))]
    Plan(Vec<String>),
    /// The table of a lookup could not be asked: it may pass.
    #[error("{0}")]
    Away(String),
}

/// What a batch came to.
#[derive(Debug, Default)]
pub struct Computed {
    /// Rows by sink name.
    pub rows: BTreeMap<String, Vec<RecordBatch>>,
    /// Rejects, in order, as rows of the dead letters. Empty where there are none.
    pub rejects: Vec<RecordBatch>,
    /// How many rejects by (step, reason).
    pub rejected: BTreeMap<(String, String), u64>,
    /// The first of them.
    pub example: Option<LetterText>,
    /// What each step did.
    pub steps: Vec<StepReport>,
    /// Seconds to decode and to run the steps.
    pub phases: Vec<(&'static str, f64)>,
}

/// Whether the schema is inferred from fields that records have by name: those that it lacks are kept in `_extra`.
fn has_extra(source: &config::Source) -> bool {
    use config::Codec;
    source.schema.is_none() && matches!(source.codec, Codec::Json | Codec::JsonWith(_) | Codec::Csv(_))
}

/// The schema with `_extra` where it is inferred and the codec knows fields by name.
pub fn with_extra(schema: &SchemaRef, source: &config::Source) -> SchemaRef {
    if !has_extra(source) || schema.fields().is_empty() || schema.field_with_name(EXTRA).is_ok() {
        return schema.clone();
    }
    let mut fields: Vec<_> = schema.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(EXTRA, DataType::Utf8, true)));
    Arc::new(Schema::new(fields))
}

/// The schema that a job gives for a source itself, where it does. A file that describes none was refused by
/// [`check_codecs`].
pub fn given_schema(source: &config::Source) -> Option<SchemaRef> {
    match &source.schema {
        Some(fields) => Some(codec::to_arrow(fields)),
        None => codec::columns(&source.codec).ok().flatten(),
    }
}

/// That the files which describe records can be read, and that no field of theirs has the name of a column that `metadata`
/// adds; an error is a whole message with its place.
pub fn check_codecs(job: &config::Job) -> Result<(), String> {
    let wrong = job.record_codecs().filter_map(|codec| codec::columns(codec).err());
    let mut wrong: Vec<_> = wrong.map(|wrong| job.render(&wrong.at, &wrong.value)).collect();
    for source in &job.sources {
        let Some(columns) = given_schema(source) else { continue };
        for item in &source.metadata {
            let name = format!("_{}", item.value);
            if columns.field_with_name(&name).is_ok() {
                let what = format!(
                    "`metadata` makes the column `{name}`, and the records have a field of this name: leave `{}` out of `metadata`, or name the columns that you need by `schema`",
                    item.value
                );
                wrong.push(job.render(&item.at, &what));
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// The schema of a source, as far as it is known.
fn schema_of(source: &config::Source, pinned: &Pinned) -> Option<SchemaRef> {
    given_schema(source).or_else(|| {
        let pinned = pinned.get(&super::shard_name(source))?;
        // An earlier version pinned a record's own `_extra` as a column, and had no place for fields that are unknown.
        let is_own = has_extra(source) && pinned.fields().len() > 1 && pinned.field_with_name(EXTRA).is_ok();
        if !is_own {
            return Some(pinned.clone());
        }
        let fields: Vec<_> = pinned.fields().iter().filter(|field| field.name() != EXTRA).cloned().collect();
        Some(Arc::new(Schema::new(fields)))
    })
}

fn metadata_field(source: &config::Source, name: &str) -> Field {
    let kind = match source.kind {
        config::SourceKind::Kafka(_) => kafka::metadata_type(name),
        _ => None,
    };
    Field::new(format!("_{name}"), kind.unwrap_or(DataType::Utf8), true)
}

/// The columns that steps and sinks get of a source: those of its records, and those that it adds. A record's own field with
/// the name of one that is added, or of `_extra`, is there under another name: `_key_2`.
pub fn with_metadata(schema: &SchemaRef, source: &config::Source) -> SchemaRef {
    let own_extra = !has_extra(source);
    let of_keys = keys::fields(source);
    let is_ours = |name: &str| {
        own_extra && name == EXTRA
            || source.metadata.iter().any(|item| name.strip_prefix('_') == Some(&item.value))
            || of_keys.iter().any(|field| field.name() == name)
    };
    let renamed = |field: &Arc<Field>| {
        if !is_ours(field.name()) {
            return field.clone();
        }
        let is_free = |name: &String| schema.field_with_name(name).is_err();
        let name = (2..).map(|n| format!("{}_{n}", field.name())).find(is_free).expect("numbers do not end");
        Arc::new(field.as_ref().clone().with_name(name))
    };
    let mut fields: Vec<_> = schema.fields().iter().map(renamed).collect();
    fields.extend(source.metadata.iter().map(|item| Arc::new(metadata_field(source, &item.value))));
    fields.extend(of_keys.iter().cloned());
    Arc::new(Schema::new(fields))
}

/// A mistake of the steps as a whole message with its place. The place counts steps from 0, their names (`2-cast`) from 1: a
/// name that nobody gave is left out.
pub fn rendered(job: &config::Job, error: &tidemill_steps::PlanError) -> String {
    let Some(at) = &error.at else { return error.message.clone() };
    let unnamed = job.steps.iter().filter(|step| !step.named && at.path.starts_with("steps["));
    let mut prefixes = unnamed.map(|step| format!("step {}: ", step.name));
    let message = prefixes.find_map(|prefix| error.message.strip_prefix(&prefix)).unwrap_or(&error.message);
    job.render(at, message)
}

impl Compiled {
    /// Plans the steps of `job` over the pinned schemas and those of the lookups' tables. All errors at once, each with its
    /// place in the file.
    pub fn new(job: &Arc<config::Job>, pinned: &Pinned, tables: &Schemas) -> Result<Self, ComputeError> {
        let mut schemas = Vec::new();
        for source in &job.sources {
            let name = &source.name.value;
            let known = schema_of(source, pinned);
            let full = known.as_ref().map_or_else(|| Arc::new(Schema::empty()), |known| with_extra(known, source));
            let rows = with_metadata(&full, source);
            schemas.push((name.clone(), known, full, rows));
        }
        let inputs: Vec<_> = schemas.iter().map(|(name, _, _, rows)| (name.clone(), rows.clone())).collect();
        let pipeline = Pipeline::plan_with(job, &inputs, tables)
            .map_err(|errors| ComputeError::Plan(errors.iter().map(|error| rendered(job, error)).collect()))?;
        let needed = pipeline.needed();
        let sources = job
            .sources
            .iter()
            .zip(schemas)
            .map(|(source, (name, known, full, rows))| {
                let columns = needed.iter().find(|(source, _)| *source == name).map(|(_, columns)| columns);
                let used = |field: &Field| columns.is_none_or(|columns| columns.contains(field.name()));
                let of_keys = keys::fields(source);
                let of_keys = of_keys.iter().filter_map(|field| Some(field.name().strip_prefix('_')?.to_owned()));
                let metadata: Vec<_> = source.metadata.iter().map(|item| item.value.clone()).chain(of_keys).collect();
                // By place: the names of the record's fields may be other ones in the rows.
                let (own, added) = rows.fields().split_at(full.fields().len());
                let used: Vec<_> = full.fields().iter().zip(own).filter(|(_, row)| used(row)).collect();
                let decoded: Vec<_> = used.iter().map(|(field, _)| Arc::clone(field)).collect();
                let kept: Vec<_> = used.iter().map(|(_, row)| Arc::clone(row)).chain(added.iter().cloned()).collect();
                CompiledSource {
                    codec: codec::codec(&source.codec),
                    known,
                    decoded: Arc::new(Schema::new(decoded)),
                    metadata,
                    keys: Keys::of(source),
                    rows: Arc::new(Schema::new(kept)),
                }
            })
            .collect();
        Ok(Self { job: job.clone(), pinned: pinned.clone(), sources, pipeline })
    }

    /// For a batch without one record that a schema could be inferred from, where the steps cannot be planned yet: all of it
    /// goes to the dead letters.
    pub fn undecided(job: &Arc<config::Job>, pinned: &Pinned) -> Result<Self, ComputeError> {
        let mut bare = (**job).clone();
        bare.steps.clear();
        for sink in &mut bare.sinks {
            (sink.from, sink.filter) = (None, None);
        }
        Ok(Self { job: job.clone(), ..Self::new(&Arc::new(bare), pinned, &Schemas::new())? })
    }

    /// Sources of which no schema is known.
    pub fn unknown(job: &config::Job, pinned: &Pinned) -> Vec<String> {
        let unknown = job.sources.iter().filter(|source| schema_of(source, pinned).is_none());
        unknown.map(|source| source.name.value.clone()).collect()
    }

    /// Whether a batch has a record of a source whose schema is known. `raw` is by source, in the job's order.
    pub fn knows_any(job: &config::Job, pinned: &Pinned, raw: &[RawBatch]) -> bool {
        let has_records = |batch: &RawBatch| batch.slices.iter().any(|slice| !slice.records.is_empty());
        job.sources.iter().zip(raw).any(|(source, batch)| schema_of(source, pinned).is_some() && has_records(batch))
    }

    /// The job as this version of its text has it.
    pub fn job(&self) -> &config::Job {
        &self.job
    }

    /// The schemas that it is planned over, of sources that give none.
    pub fn pinned(&self) -> &Pinned {
        &self.pinned
    }

    /// The steps, for `explain`.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// The name that this text has for a sink.
    pub fn sink_of(&self, id: &SinkId) -> Option<&str> {
        let sink = self.job.sinks.iter().find(|sink| super::sink_id(sink) == *id)?;
        Some(&sink.name.value)
    }

    /// The schema of the rows that a sink gets.
    pub fn sink_schema(&self, sink: &str) -> SchemaRef {
        self.pipeline.sink_schema(sink).unwrap_or_else(|| Arc::new(Schema::empty()))
    }

    /// Gets what decoding a batch needs from elsewhere: the schemas of a registry. Before [`Compiled::compute`].
    pub async fn prepare(&self, raw: &[RawBatch]) -> Result<(), (String, PrepareError)> {
        for ((source, config), batch) in self.sources.iter().zip(&self.job.sources).zip(raw) {
            let prepared = async {
                source.codec.prepare(&batch.slices).await?;
                match &source.keys {
                    Some(keys) => keys.prepare(&batch.slices).await,
                    None => Ok(()),
                }
            };
            prepared.await.map_err(|error| (config.name.value.clone(), error))?;
        }
        Ok(())
    }

    /// Where the registry of a source lacks schemas that the batch names: those that it has. After [`Compiled::prepare`].
    pub fn readable(&self, raw: &[RawBatch]) -> Readable {
        let sources = self.sources.iter().zip(&self.job.sources).zip(raw);
        let of = |((source, config), batch): ((&CompiledSource, &config::Source), &RawBatch)| {
            let name = super::shard_name(config);
            let keys = source.keys.as_ref().and_then(|keys| keys.readable(&batch.slices));
            let keys = keys.map(|ids| (keys::name(&name), ids));
            source.codec.readable(&batch.slices).map(|ids| (name, ids)).into_iter().chain(keys)
        };
        Readable(sources.flat_map(of).collect())
    }

    /// The source whose registry has lost a schema that the batch was made with.
    pub fn lost(&self, raw: &[RawBatch], readable: &Readable) -> Option<String> {
        let is_lost = |(source, now): (String, Vec<u32>)| {
            let kept = readable.0.get(&source).is_some_and(|ids| ids.iter().all(|id| now.contains(id)));
            (!kept).then_some(source)
        };
        self.readable(raw).0.into_iter().find_map(is_lost)
    }

    /// Rows and rejects of a batch. `raw` is by source, in the job's order. Runs on all cores; call it off the runtime.
    /// Tables of lookups that are asked are waited for.
    pub fn compute(
        &self,
        raw: &[RawBatch],
        context: &BatchContext,
        input: Digest,
        tables: &Tables,
        readable: &Readable,
    ) -> Result<Computed, ComputeError> {
        let started = Instant::now();
        let slices: Vec<(usize, &Slice)> = raw
            .iter()
            .enumerate()
            .flat_map(|(source, batch)| batch.slices.iter().map(move |slice| (source, slice)))
            .collect();
        let numbers = Numbers::new(&slices);
        let decoded: Vec<(Rows, Vec<codec::Undecodable>)> = slices
            .par_iter()
            .enumerate()
            .map(|(index, (source, slice))| self.decode(*source, slice, numbers.first[index], readable))
            .collect();
        let mut inputs: Vec<(String, Vec<Rows>)> =
            self.job.sources.iter().map(|s| (s.name.value.clone(), Vec::new())).collect();
        let mut rejects = Vec::new();
        for ((index, (source, _)), (rows, undecodable)) in slices.iter().enumerate().zip(decoded) {
            if self.sources[*source].known.is_none() {
                rejects.extend(rows.origin.iter().map(|origin| RejectRow {
                    origin: *origin,
                    step: "decode".to_owned(),
                    reason: "no_schema".to_owned(),
                    detail: "the source has no schema yet, and the record no field to infer one from".to_owned(),
                }));
            } else if rows.batch.num_rows() > 0 {
                inputs[*source].1.push(rows);
            }
            rejects.extend(undecodable.into_iter().map(|bad| RejectRow {
                origin: numbers.first[index] + bad.record,
                step: "decode".to_owned(),
                reason: bad.reason.to_owned(),
                detail: bad.detail,
            }));
        }
        let decode_seconds = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let applied = self.pipeline.apply_with(context, inputs, tables).map_err(|error| match &error {
            StepError::Table { transient: true, .. } => ComputeError::Away(error.to_string()),
            _ => ComputeError::Step(error.to_string()),
        })?;
        rejects.extend(applied.rejects.into_iter().map(|reject| RejectRow {
            origin: reject.origin,
            step: reject.step,
            reason: reject.reason.to_owned(),
            detail: reject.detail,
        }));
        rejects.sort_by_key(|reject| reject.origin);
        let report = |step: StepStats| StepReport {
            step: step.name,
            rows_in: step.rows_in,
            rows_out: step.rows_out,
            rejected: step.rejected,
            seconds: Duration::from_nanos(step.nanos).as_secs_f64(),
        };
        let mut computed = Computed {
            steps: applied.steps.into_iter().map(report).collect(),
            rows: applied.sinks.into_iter().collect(),
            phases: vec![("decode", decode_seconds), ("steps", started.elapsed().as_secs_f64())],
            ..Computed::default()
        };
        self.dead_letters(raw, &slices, &numbers, rejects, context, input, &mut computed)?;
        Ok(computed)
    }

    fn decode(&self, source: usize, slice: &Slice, first: u32, readable: &Readable) -> (Rows, Vec<codec::Undecodable>) {
        let compiled = &self.sources[source];
        let known = compiled.known.as_ref().unwrap_or(&compiled.decoded);
        let name = super::shard_name(&self.job.sources[source]);
        let mut decoder = match readable.0.get(&name) {
            None => compiled.codec.decoder(&compiled.decoded, known),
            Some(ids) => compiled.codec.decoder_of(&compiled.decoded, known, ids),
        };
        let Decoded { rows, records, rejects } = super::absent::decode(&mut *decoder, slice);
        let of_keys = compiled.keys.as_ref().map(|keys| keys.decode(slice, readable.0.get(&keys::name(&name))));
        let keys::Decoded { columns, rejects: bad } = of_keys.unwrap_or_default();
        let (rows, records, rejects) = without(rows, records, rejects, bad);
        let is_as_decoded = compiled.metadata.is_empty() && compiled.rows == compiled.decoded;
        let batch = if is_as_decoded { rows } else { compiled.with_metadata(&rows, &records, slice, &columns) };
        (Rows { batch, origin: records.into_iter().map(|record| first + record).collect() }, rejects)
    }

    #[allow(clippy::too_many_arguments)] // the parts of one batch, used once
    fn dead_letters(
        &self,
        raw: &[RawBatch],
        slices: &[(usize, &Slice)],
        numbers: &Numbers,
        rejects: Vec<RejectRow>,
        context: &BatchContext,
        input: Digest,
        computed: &mut Computed,
    ) -> Result<(), ComputeError> {
        let mut letters = Letters::default();
        for (source, batch) in raw.iter().enumerate() {
            for bad in &batch.rejects {
                if super::rejects::are_dead_letters(&bad.shard) && letters.push_kept(&bad.record) {
                    continue;
                }
                // What a sink refused comes after the sources, and is of no source.
                let source = self.job.sources.get(source);
                let at = Some((&bad.shard, bad.position.clone()));
                let place = Place::new(source, &bad.metadata, &at);
                letters.push(
                    source.map_or("", |source| source.name.value.as_str()),
                    at,
                    super::rejects::sink_of(&bad.shard).unwrap_or("read"),
                    &bad.reason,
                    &bad.detail,
                    Some(&bad.record),
                    &place,
                );
            }
        }
        let mut lines = Lines::default();
        for reject in &rejects {
            let Some((index, record)) = numbers.find(reject.origin) else {
                letters.push("", None, &reject.step, &reject.reason, &reject.detail, None, &Place::default());
                continue;
            };
            let (source, slice) = slices[index];
            let text = self.sources[source].codec.text(slice, record as usize);
            let source = &self.job.sources[source];
            let at = Some((&slice.shard, slice.position(record as usize)));
            let mut place = Place { text, ..Place::new(Some(source), &slice.metadata, &at) };
            place.line = place.line.map(|first| first + lines.before(index, slice, record, place.encoding));
            let bytes = slice.record(record as usize);
            letters.push(&source.name.value, at, &reject.step, &reject.reason, &reject.detail, Some(bytes), &place);
        }
        computed.example = letters.example.take();
        for (step, reason) in letters.counted() {
            *computed.rejected.entry((step, reason)).or_default() += 1;
        }
        if letters.is_empty() {
            return Ok(());
        }
        let batch = letters
            .finish(&self.job.name, context.planned_at, input)
            .map_err(|error| ComputeError::Step(error.to_string()))?;
        computed.rejects = vec![batch];
        Ok(())
    }
}

/// Takes the rows of records out whose keys cannot be decoded. Where the value cannot be either, that is said of it.
fn without(
    rows: RecordBatch,
    records: Vec<u32>,
    mut rejects: Vec<codec::Undecodable>,
    bad: Vec<codec::Undecodable>,
) -> (RecordBatch, Vec<u32>, Vec<codec::Undecodable>) {
    if bad.is_empty() {
        return (rows, records, rejects);
    }
    let at_fault: BTreeSet<u32> = bad.iter().map(|bad| bad.record).collect();
    let is_good = |record: &u32| !at_fault.contains(record);
    let kept: BooleanArray = records.iter().map(|record| Some(is_good(record))).collect();
    let rows = filter_record_batch(&rows, &kept).expect("a flag for each row");
    let records = records.into_iter().filter(is_good).collect();
    let known: BTreeSet<u32> = rejects.iter().map(|reject| reject.record).collect();
    rejects.extend(bad.into_iter().filter(|bad| !known.contains(&bad.record)));
    rejects.sort_by_key(|reject| reject.record);
    (rows, records, rejects)
}

impl CompiledSource {
    fn with_metadata(
        &self,
        rows: &RecordBatch,
        records: &[u32],
        slice: &Slice,
        keys: &[(String, ArrayRef)],
    ) -> RecordBatch {
        let added: Vec<String> = self.metadata.iter().map(|item| format!("_{item}")).collect();
        let columns: Vec<ArrayRef> = self
            .rows
            .fields()
            .iter()
            .enumerate()
            .map(|(at, field)| {
                if let Some(column) = rows.columns().get(at) {
                    let renamed = (field.name() == EXTRA).then(|| codec::rename_extra(column, &added)).flatten();
                    return renamed.unwrap_or_else(|| column.clone());
                }
                let name = field.name().trim_start_matches('_');
                let of_key = keys.iter().find(|(column, _)| column == field.name()).map(|(_, values)| values);
                let of_slice = || slice.columns.iter().find(|(column, _)| *column == name).map(|(_, values)| values);
                if let Some(values) = of_key.or_else(of_slice) {
                    let records = UInt32Array::from_iter_values(records.iter().copied());
                    return take(values, &records, None).expect("a column has a value for each record");
                }
                let array: StringArray = if name == "position" {
                    records.iter().map(|record| Some(slice.position(*record as usize).to_string())).collect()
                } else {
                    let value = slice.metadata.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str());
                    records.iter().map(|_| value).collect()
                };
                // A slice without a column that the job asks for.
                if *field.data_type() != DataType::Utf8 {
                    return new_null_array(field.data_type(), records.len());
                }
                Arc::new(array)
            })
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        RecordBatch::try_new_with_options(self.rows.clone(), columns, &options)
            .expect("columns are made from the schema's own fields")
    }
}

/// Numbers over all raw records of a batch.
struct Numbers {
    /// The number of each slice's first record.
    first: Vec<u32>,
    total: u32,
}

impl Numbers {
    fn new(slices: &[(usize, &Slice)]) -> Self {
        let mut total = 0_u32;
        let first = slices
            .iter()
            .map(|(_, slice)| {
                let first = total;
                total += u32::try_from(slice.records.len()).expect("a batch has at most 2^32 records");
                first
            })
            .collect();
        Self { first, total }
    }
    /// The slice of a record, and its index there.
    fn find(&self, number: u32) -> Option<(usize, u32)> {
        if number >= self.total {
            return None;
        }
        let index = self.first.partition_point(|first| *first <= number) - 1;
        Some((index, number - self.first[index]))
    }
}

struct RejectRow {
    origin: u32,
    step: String,
    reason: String,
    detail: String,
}

/// Where a person finds a record.
#[derive(Default)]
struct Place<'a> {
    file: Option<&'a str>,
    line: Option<i64>,
    /// Topic, partition, offset.
    kafka: Option<[String; 3]>,
    /// The label of the encoding of its bytes, where that is not UTF-8.
    encoding: Option<&'a str>,
    /// The record, decoded by its codec; `None` where its bytes are a text, or not what they should be.
    text: Option<String>,
    is_binary: bool,
}

impl<'a> Place<'a> {
    /// `source`: `None` for what a sink refused.
    fn new(
        source: Option<&'a config::Source>,
        metadata: &'a [(&'static str, String)],
        at: &Option<(&ShardId, Position)>,
    ) -> Self {
        let Some(source) = source else { return Self::default() };
        let value = |key: &str| metadata.iter().find(|(name, _)| *name == key).map(|(_, value)| value.as_str());
        let kafka = at.as_ref().filter(|_| matches!(source.kind, config::SourceKind::Kafka(_)));
        Self {
            file: value("file"),
            line: value(LINE).and_then(|line| line.parse().ok()),
            kafka: kafka.and_then(|(shard, position)| kafka::origin(shard.as_str(), position.as_str())),
            encoding: value(ENCODING).or_else(|| codec::encoding_of(&source.codec)),
            text: None,
            is_binary: matches!(
                source.codec,
                config::Codec::Bytes(_) | config::Codec::Avro(_) | config::Codec::Protobuf(_)
            ),
        }
    }
}

/// Counts the lines before records of slices, each of which is asked for in order: every byte is looked at once.
#[derive(Default)]
struct Lines {
    slice: Option<usize>,
    counted: usize,
    lines: i64,
}

impl Lines {
    /// Line ends in the slice before the record.
    fn before(&mut self, index: usize, slice: &Slice, record: u32, encoding: Option<&str>) -> i64 {
        let start = slice.records.get(record as usize).map_or(0, |(start, _)| *start as usize);
        if self.slice != Some(index) || start < self.counted {
            *self = Self { slice: Some(index), ..Self::default() };
        }
        let between = slice.bytes.get(self.counted..start).unwrap_or_default();
        self.lines += i64::try_from(count_lines(encoding, between)).unwrap_or(0);
        self.counted = start;
        self.lines
    }
}

/// The columns of a dead letter that say where the record was and what is wrong with it.
const LETTER: [&str; 8] = ["source", "shard", "position", "step", "reason", "detail", "record", "record_base64"];

/// The schema of the dead letters.
pub fn dead_letters_schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let mut fields = vec![text("job")];
    fields.extend(LETTER.map(text));
    fields.push(Field::new("rejected_at", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), true));
    fields.push(text("batch"));
    // Behind the others: what earlier versions wrote has none of these.
    fields.extend(PLACE_TEXTS.map(text));
    fields.extend(PLACE_NUMBERS.map(|name| Field::new(name, DataType::Int64, true)));
    Arc::new(Schema::new(fields))
}

/// Columns that say where a person finds the record: a file and a line of it, or a topic and an offset of a partition.
const PLACE_TEXTS: [&str; 2] = ["file", "topic"];
const PLACE_NUMBERS: [&str; 3] = ["line", "partition", "offset"];

/// The dead letters as earlier versions wrote them: a table that was made for them has no more columns.
pub fn older_dead_letters_schema() -> SchemaRef {
    let schema = dead_letters_schema();
    let is_older = |name: &str| !PLACE_TEXTS.contains(&name) && !PLACE_NUMBERS.contains(&name);
    let fields: Vec<_> = schema.fields().iter().filter(|field| is_older(field.name())).cloned().collect();
    Arc::new(Schema::new(fields))
}

/// Rows of the dead letters in the making.
#[derive(Default)]
struct Letters {
    columns: [StringBuilder; LETTER.len()],
    texts: [StringBuilder; PLACE_TEXTS.len()],
    numbers: [Int64Builder; PLACE_NUMBERS.len()],
    reasons: Vec<(String, String)>,
    example: Option<LetterText>,
}

impl Letters {
    #[allow(clippy::too_many_arguments)] // the parts of one letter
    fn push(
        &mut self,
        source: &str,
        at: Option<(&ShardId, Position)>,
        step: &str,
        reason: &str,
        detail: &str,
        record: Option<&[u8]>,
        place: &Place<'_>,
    ) {
        let text = record.and_then(|record| readable(record, place));
        if self.example.is_none() {
            let place = at.as_ref().map_or_else(String::new, |(shard, position)| format!("{shard} {position}"));
            self.example = Some(LetterText::new(step, &place, detail, text.as_deref()));
        }
        // The text is for eyes, and enough where it is the very bytes.
        let is_exact = record.is_none_or(|record| text.as_ref().is_some_and(|text| text.as_bytes() == record));
        let base64 = record.filter(|_| !is_exact).map(codec::base64);
        self.append([
            Some(source),
            at.as_ref().map(|(shard, _)| shard.as_str()),
            at.as_ref().map(|(_, position)| position.as_str()),
            Some(step),
            Some(reason),
            Some(detail),
            text.as_deref(),
            base64.as_deref(),
        ]);
        let kafka = |part: usize| place.kafka.as_ref().map(|kafka| kafka[part].as_str());
        self.append_place([place.file, kafka(0)], [place.line, number(kafka(1)), number(kafka(2))]);
        self.reasons.push((step.to_owned(), reason.to_owned()));
    }
    /// A row of the dead letters that was kept as JSON. False: it is none.
    fn push_kept(&mut self, row: &[u8]) -> bool {
        let Ok(row) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(row) else { return false };
        let value = |name: &str| row.get(name).and_then(serde_json::Value::as_str);
        let (Some(step), Some(reason)) = (value("step"), value("reason")) else { return false };
        self.append(LETTER.map(value));
        let number = |name: &str| row.get(name).and_then(serde_json::Value::as_i64);
        self.append_place(PLACE_TEXTS.map(value), PLACE_NUMBERS.map(number));
        self.reasons.push((step.to_owned(), reason.to_owned()));
        true
    }
    fn append(&mut self, values: [Option<&str>; LETTER.len()]) {
        for (column, value) in self.columns.iter_mut().zip(values) {
            column.append_option(value);
        }
    }
    fn append_place(&mut self, texts: [Option<&str>; PLACE_TEXTS.len()], numbers: [Option<i64>; PLACE_NUMBERS.len()]) {
        for (column, value) in self.texts.iter_mut().zip(texts) {
            column.append_option(value);
        }
        for (column, value) in self.numbers.iter_mut().zip(numbers) {
            column.append_option(value);
        }
    }
    fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }
    fn counted(&self) -> Vec<(String, String)> {
        self.reasons.clone()
    }
    fn finish(mut self, job: &str, planned_at: i64, input: Digest) -> Result<RecordBatch, arrow::error::ArrowError> {
        let rows = self.reasons.len();
        let repeated = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value; rows])) };
        let mut columns: Vec<ArrayRef> = vec![repeated(job)];
        columns.extend(self.columns.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        columns.push(Arc::new(TimestampMillisecondArray::from(vec![planned_at; rows]).with_timezone("UTC")));
        columns.push(repeated(&input.short()));
        columns.extend(self.texts.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        columns.extend(self.numbers.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        RecordBatch::try_new(dead_letters_schema(), columns)
    }
}

fn number(text: Option<&str>) -> Option<i64> {
    text.and_then(|text| text.parse().ok())
}

/// A record as a person can read it: decoded from the encoding of its source. What cannot be decoded becomes U+FFFD; a
/// binary record that is not UTF-8 has no text.
fn readable<'r>(record: &'r [u8], place: &Place<'_>) -> Option<Cow<'r, str>> {
    if let Some(text) = &place.text {
        return Some(Cow::Owned(text.clone()));
    }
    match place.encoding.and_then(|label| codec::decoded(label, record)) {
        Some(text) => Some(text),
        None if place.is_binary => std::str::from_utf8(record).ok().map(Cow::Borrowed),
        None => Some(String::from_utf8_lossy(record)),
    }
}
