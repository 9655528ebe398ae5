//! From raw records to rows: codecs and pipeline for one text of the job and one set of pinned schemas. A pure function of
//! (plan, records); the only place where a record becomes a row or a reject.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{
        Array, ArrayRef, RecordBatch, RecordBatchOptions, StringArray, StringBuilder, TimestampMillisecondArray,
        UInt32Array, new_null_array,
    },
    compute::take,
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
};
use rayon::prelude::*;
use tidemill_checkpoint::{Digest, Position, ShardId, SinkId};
use tidemill_config as config;
use tidemill_connectors::{
    Codec,
    codec::{self, Decoded, EXTRA, PrepareError},
    source::{Base, RawBatch, Slice, kafka},
};
use tidemill_steps::{
    BatchContext, Pipeline, Rows, Schemas, StepError, StepStats,
    account::{self, Account, Outgrown},
    lookup::Tables,
};

use super::{cut::Unfit, readable::Readable};
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
    /// `decoded` and the metadata columns.
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
    /// The batch takes more memory than it may.
    #[error("step {step}: {outgrown}")]
    Outgrown {
        /// In which step; `read`, `decode` and `sinks` are the ends.
        step: String,
        /// How much, as far as it came.
        outgrown: Outgrown,
    },
}

/// Where a batch outgrew its memory, outside of the job's steps.
fn outgrown(step: &str) -> impl Fn(Outgrown) -> ComputeError {
    move |outgrown| ComputeError::Outgrown { step: step.to_owned(), outgrown }
}

/// A decoder gets slices of at most so many bytes, but for single records that have more: what it makes of them is measured
/// when it is there.
const DECODED_BYTES: usize = 1 << 20;
/// And of at most so many records that their rows have these bytes, if they were all null.
const DECODED_ROWS_BYTES: u64 = 4 << 20;
/// What a dead letter takes beside its record and its sentence: its other columns, and the way to it.
const LETTER_BYTES: u64 = 256;

/// What a batch came to.
#[derive(Debug, Default)]
pub struct Computed {
    /// Rows by sink name.
    pub rows: BTreeMap<String, Vec<RecordBatch>>,
    /// Rejects, in order, as rows of the dead letters. Empty where there are none.
    pub rejects: Vec<RecordBatch>,
    /// How many rejects by (step, reason).
    pub rejected: BTreeMap<(String, String), u64>,
    /// What each step did.
    pub steps: Vec<StepReport>,
    /// Seconds to decode and to run the steps.
    pub phases: Vec<(&'static str, f64)>,
}

/// The schema with `_extra` where it is inferred and the codec knows fields by name.
pub fn with_extra(schema: &SchemaRef, source: &config::Source) -> SchemaRef {
    let named = matches!(source.codec, config::Codec::Json | config::Codec::Csv(_));
    if source.schema.is_some() || !named || schema.fields().is_empty() || schema.field_with_name(EXTRA).is_ok() {
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

/// That the files which describe records can be read; an error is a whole message with its place.
pub fn check_codecs(job: &config::Job) -> Result<(), String> {
    let wrong = job.record_codecs().filter_map(|codec| codec::columns(codec).err());
    let wrong: Vec<_> = wrong.map(|wrong| job.render(&wrong.at, &wrong.value)).collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// The schema of a source, as far as it is known.
fn schema_of(source: &config::Source, pinned: &Pinned) -> Option<SchemaRef> {
    given_schema(source).or_else(|| pinned.get(&super::shard_name(source)).cloned())
}

fn metadata_field(source: &config::Source, name: &str) -> Field {
    let kind = match source.kind {
        config::SourceKind::Kafka(_) => kafka::metadata_type(name),
        _ => None,
    };
    Field::new(format!("_{name}"), kind.unwrap_or(DataType::Utf8), true)
}

/// The columns that steps and sinks get of a source: those of its records, and those that it adds.
pub fn with_metadata(schema: &SchemaRef, source: &config::Source) -> SchemaRef {
    let mut fields: Vec<_> = schema.fields().iter().cloned().collect();
    fields.extend(source.metadata.iter().map(|item| Arc::new(metadata_field(source, &item.value))));
    Arc::new(Schema::new(fields))
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
            schemas.push((name.clone(), known, with_metadata(&full, source)));
        }
        let inputs: Vec<_> = schemas.iter().map(|(name, _, full)| (name.clone(), full.clone())).collect();
        let pipeline = Pipeline::plan_with(job, &inputs, tables).map_err(|errors| {
            let render = |error: &tidemill_steps::PlanError| {
                error.at.as_ref().map_or_else(|| error.message.clone(), |at| job.render(at, &error.message))
            };
            ComputeError::Plan(errors.iter().map(render).collect())
        })?;
        let needed = pipeline.needed();
        let sources = job
            .sources
            .iter()
            .zip(schemas)
            .map(|(source, (name, known, full))| {
                let columns = needed.iter().find(|(source, _)| *source == name).map(|(_, columns)| columns);
                let used = |field: &Field| columns.is_none_or(|columns| columns.contains(field.name()));
                let metadata: Vec<_> = source.metadata.iter().map(|item| item.value.clone()).collect();
                let is_metadata =
                    |field: &Field| metadata.iter().any(|item| field.name().strip_prefix('_') == Some(item));
                let kept: Vec<_> = full.fields().iter().filter(|f| used(f) || is_metadata(f)).cloned().collect();
                let decoded: Vec<_> = kept.iter().filter(|field| !is_metadata(field)).cloned().collect();
                CompiledSource {
                    codec: codec::codec(&source.codec),
                    known,
                    decoded: Arc::new(Schema::new(decoded)),
                    metadata,
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
            let prepared = source.codec.prepare(&batch.slices).await;
            prepared.map_err(|error| (config.name.value.clone(), error))?;
        }
        Ok(())
    }

    /// Where the registry of a source lacks schemas that the batch names: those that it has. After [`Compiled::prepare`].
    pub fn readable(&self, raw: &[RawBatch]) -> Readable {
        let sources = self.sources.iter().zip(&self.job.sources).zip(raw);
        let of = |((source, config), batch): ((&CompiledSource, &config::Source), &RawBatch)| {
            Some((super::shard_name(config), source.codec.readable(&batch.slices)?))
        };
        Readable(sources.filter_map(of).collect())
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
        account: &Arc<Account>,
    ) -> Result<Computed, ComputeError> {
        let started = Instant::now();
        account.take(raw.iter().map(held_by).sum()).map_err(outgrown("read"))?;
        let slices: Vec<(usize, &Slice)> = raw
            .iter()
            .enumerate()
            .flat_map(|(source, batch)| batch.slices.iter().map(move |slice| (source, slice)))
            .collect();
        let numbers = Numbers::new(&slices);
        let decoded: Result<Vec<DecodedSlice>, Outgrown> = slices
            .par_iter()
            .enumerate()
            .map(|(index, (source, slice))| self.decode(*source, slice, numbers.first[index], readable, account))
            .collect();
        let decoded = decoded.map_err(outgrown("decode"))?;
        // The steps put on the account what they get.
        account.give_back(decoded.iter().map(|decoded| decoded.bytes).sum());
        let mut inputs: Vec<(String, Vec<Rows>)> =
            self.job.sources.iter().map(|s| (s.name.value.clone(), Vec::new())).collect();
        let mut rejects = Vec::new();
        for ((index, (source, _)), decoded) in slices.iter().enumerate().zip(decoded) {
            for rows in decoded.rows {
                if self.sources[*source].known.is_none() {
                    account.take(rows.origin.len() as u64 * LETTER_BYTES).map_err(outgrown("decode"))?;
                    rejects.extend(rows.origin.iter().map(|origin| RejectRow {
                        origin: *origin,
                        step: Cow::Borrowed("decode"),
                        reason: "no_schema",
                        detail: "the source has no schema yet, and the record no field to infer one from".to_owned(),
                    }));
                } else if rows.batch.num_rows() > 0 {
                    inputs[*source].1.push(rows);
                }
            }
            rejects.extend(decoded.rejects.into_iter().map(|bad| RejectRow {
                origin: numbers.first[index] + bad.record,
                step: Cow::Borrowed("decode"),
                reason: bad.reason,
                detail: bad.detail,
            }));
        }
        let decode_seconds = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let applied = self.pipeline.apply_within(context, inputs, tables, account).map_err(|error| match error {
            StepError::Outgrown { step, outgrown } => ComputeError::Outgrown { step, outgrown },
            StepError::Table { transient: true, .. } => ComputeError::Away(error.to_string()),
            _ => ComputeError::Step(error.to_string()),
        })?;
        rejects.extend(applied.rejects.into_iter().map(|reject| RejectRow {
            origin: reject.origin,
            step: Cow::Owned(reject.step),
            reason: reject.reason,
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
        account.take(letters_of(raw, &slices, &numbers, &rejects)).map_err(outgrown("dead_letters"))?;
        self.dead_letters(raw, &slices, &numbers, rejects, context, input, &mut computed)?;
        Ok(computed)
    }

    /// Every record of a batch that takes more memory than one may have: it is a dead letter, and nothing is computed.
    pub fn refuse(
        &self,
        raw: &[RawBatch],
        context: &BatchContext,
        input: Digest,
        unfit: &Unfit,
    ) -> Result<Computed, ComputeError> {
        let slices: Vec<(usize, &Slice)> = raw
            .iter()
            .enumerate()
            .flat_map(|(source, batch)| batch.slices.iter().map(move |slice| (source, slice)))
            .collect();
        let numbers = Numbers::new(&slices);
        let rejects = (0..numbers.total).map(|origin| RejectRow {
            origin,
            step: Cow::Owned(unfit.0.clone()),
            reason: "memory",
            detail: "the record by itself takes more memory here than one batch may have: half of `memory:` in the daemon's file"
                .to_owned(),
        });
        let mut computed = Computed::default();
        self.dead_letters(raw, &slices, &numbers, rejects.collect(), context, input, &mut computed)?;
        Ok(computed)
    }

    /// The rows of a slice, part by part: what each comes to is on the account before the next one is decoded.
    fn decode(
        &self,
        source: usize,
        slice: &Slice,
        first: u32,
        readable: &Readable,
        account: &Account,
    ) -> Result<DecodedSlice, Outgrown> {
        let compiled = &self.sources[source];
        let known = compiled.known.as_ref().unwrap_or(&compiled.decoded);
        let mut decoder = match readable.0.get(&super::shard_name(&self.job.sources[source])) {
            None => compiled.codec.decoder(&compiled.decoded, known),
            Some(ids) => compiled.codec.decoder_of(&compiled.decoded, known, ids),
        };
        let mut all = DecodedSlice::default();
        let width = compiled.width(slice);
        for (start, end) in parts(slice, width) {
            let part = (end - start < slice.records.len()).then(|| part_of(slice, start, end));
            let part = part.as_ref().unwrap_or(slice);
            let least = (end - start) as u64 * width + compiled.of_items(part);
            account.take(least)?;
            let Decoded { rows, mut records, mut rejects } = super::absent::decode(&mut *decoder, part);
            let offset = u32::try_from(start).expect("a slice's records are numbered by 32 bits");
            records.iter_mut().for_each(|record| *record += offset);
            rejects.iter_mut().for_each(|reject| reject.record += offset);
            let batch =
                if compiled.metadata.is_empty() { rows } else { compiled.with_metadata(&rows, &records, slice) };
            let bytes = account::bytes_of_rows(&batch);
            let of_rejects: u64 = rejects.iter().map(|bad| account::REJECT_BYTES + bad.detail.len() as u64).sum();
            account.give_back(least);
            account.take(bytes + of_rejects)?;
            all.bytes += bytes;
            all.rejects.extend(rejects);
            all.rows.push(Rows { batch, origin: records.into_iter().map(|record| first + record).collect() });
        }
        Ok(all)
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
                let name = self.job.sources.get(source).map_or("", |source| source.name.value.as_str());
                letters.push(
                    name,
                    Some((&bad.shard, bad.position.clone())),
                    super::rejects::sink_of(&bad.shard).unwrap_or("read"),
                    &bad.reason,
                    &bad.detail,
                    Some(&bad.record),
                );
            }
        }
        for reject in &rejects {
            let place = numbers.find(reject.origin).map(|(index, record)| (slices[index], record));
            let (name, at, record) = match place {
                Some(((source, slice), record)) => (
                    self.job.sources[source].name.value.as_str(),
                    Some((&slice.shard, slice.position(record as usize))),
                    Some(slice.record(record as usize)),
                ),
                None => ("", None, None),
            };
            letters.push(name, at, &reject.step, reject.reason, &reject.detail, record);
        }
        computed.rejected.clone_from(&letters.reasons);
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

/// The rows and rejects of a slice.
#[derive(Default)]
struct DecodedSlice {
    rows: Vec<Rows>,
    rejects: Vec<codec::Undecodable>,
    /// What the rows have on the account.
    bytes: u64,
}

/// What a batch as it was read holds.
fn held_by(raw: &RawBatch) -> u64 {
    const SLICE_BYTES: u64 = 256;
    const REJECT_BYTES: u64 = 160;
    let slices = raw.slices.iter().map(|slice| {
        let positions = match &slice.base {
            Base::Bytes(_) | Base::File(..) => 0,
            Base::Offsets(offsets) => 8 * offsets.len(),
            Base::Each(positions) => positions.iter().map(|position| 24 + position.as_str().len()).sum(),
        };
        let columns: usize = slice.columns.iter().map(|(_, column)| column.get_array_memory_size()).sum();
        SLICE_BYTES + (slice.bytes.len() + 8 * slice.records.len() + positions + columns) as u64
    });
    let rejects = raw.rejects.iter().map(|bad| REJECT_BYTES + (bad.record.len() + bad.detail.len()) as u64);
    slices.chain(rejects).sum()
}

/// What the dead letters of a batch will take.
fn letters_of(raw: &[RawBatch], slices: &[(usize, &Slice)], numbers: &Numbers, rejects: &[RejectRow]) -> u64 {
    // Of bytes that are no text there is base64 too.
    let of = |record: &[u8], detail: &str| LETTER_BYTES + (detail.len() + 3 * record.len()) as u64;
    let kept = raw.iter().flat_map(|batch| &batch.rejects).map(|bad| of(&bad.record, &bad.detail));
    let made = rejects.iter().map(|reject| {
        let place = numbers.find(reject.origin);
        let record = place.map_or(&[][..], |(index, record)| slices[index].1.record(record as usize));
        of(record, &reject.detail)
    });
    kept.chain(made).sum()
}

/// The records of a slice in runs that are decoded one after the other: (start, end).
fn parts(slice: &Slice, width: u64) -> Vec<(usize, usize)> {
    let most = usize::try_from(DECODED_ROWS_BYTES / width.max(1)).unwrap_or(usize::MAX).max(1);
    let (mut parts, mut start) = (Vec::new(), 0);
    for (index, (_, end)) in slice.records.iter().enumerate() {
        let bytes = (end - slice.records[start].0) as usize;
        if index > start && (bytes > DECODED_BYTES || index - start >= most) {
            parts.push((start, index));
            start = index;
        }
    }
    if start < slice.records.len() {
        parts.push((start, slice.records.len()));
    }
    parts
}

/// Some records of a slice. Whoever decodes them does not ask where they lie.
fn part_of(slice: &Slice, start: usize, end: usize) -> Slice {
    let columns = slice.columns.iter().map(|(name, column)| (*name, column.slice(start, end - start)));
    Slice {
        shard: slice.shard.clone(),
        bytes: slice.bytes.clone(),
        records: slice.records[start..end].to_vec(),
        base: slice.base.clone(),
        header: slice.header.clone(),
        metadata: slice.metadata.clone(),
        columns: columns.collect(),
    }
}

/// The bytes of the items that lists of this type have, null or empty as they may be: of the widest.
fn item_width(kind: &DataType) -> u64 {
    match kind {
        DataType::List(item) | DataType::Map(item, _) => {
            account::width(item.data_type()).max(item_width(item.data_type()))
        }
        DataType::Struct(fields) => fields.iter().map(|field| item_width(field.data_type())).max().unwrap_or(0),
        _ => 0,
    }
}

impl CompiledSource {
    /// The bytes of a row without a value.
    fn width(&self, slice: &Slice) -> u64 {
        let decoded = self.decoded.fields().iter().map(|field| account::width(field.data_type()));
        let metadata = self.metadata.iter().map(|name| {
            const POSITION_BYTES: u64 = 24;
            let value = slice.metadata.iter().find(|(key, _)| key == name);
            value.map_or(POSITION_BYTES, |(_, value)| account::width(&DataType::Utf8) + value.len() as u64)
        });
        account::ROW_BYTES + decoded.chain(metadata).sum::<u64>()
    }

    /// The bytes of the items that these records may have in lists. A text has a comma between two of them.
    fn of_items(&self, slice: &Slice) -> u64 {
        /// What is no wider is about what its text is.
        const WIDE: u64 = 16;
        let width = self.decoded.fields().iter().map(|field| item_width(field.data_type())).max().unwrap_or(0);
        let (Some(first), Some(last)) = (slice.records.first(), slice.records.last()) else { return 0 };
        let bytes = slice.bytes.get(first.0 as usize..last.1 as usize).unwrap_or_default();
        if width <= WIDE { 0 } else { width * bytes.iter().filter(|byte| **byte == b',').count() as u64 }
    }

    fn with_metadata(&self, rows: &RecordBatch, records: &[u32], slice: &Slice) -> RecordBatch {
        let columns: Vec<ArrayRef> = self
            .rows
            .fields()
            .iter()
            .map(|field| {
                if let Some(column) = rows.column_by_name(field.name()) {
                    return column.clone();
                }
                let name = field.name().trim_start_matches('_');
                if let Some((_, values)) = slice.columns.iter().find(|(column, _)| *column == name) {
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
    step: Cow<'static, str>,
    reason: &'static str,
    detail: String,
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
    Arc::new(Schema::new(fields))
}

/// Rows of the dead letters in the making.
#[derive(Default)]
struct Letters {
    columns: [StringBuilder; LETTER.len()],
    /// How many by (step, reason).
    reasons: BTreeMap<(String, String), u64>,
    rows: usize,
}

impl Letters {
    fn push(
        &mut self,
        source: &str,
        at: Option<(&ShardId, Position)>,
        step: &str,
        reason: &str,
        detail: &str,
        record: Option<&[u8]>,
    ) {
        let text = record.map(std::str::from_utf8);
        let base64 = match text {
            Some(Err(_)) => record.map(codec::base64),
            _ => None,
        };
        self.append([
            Some(source),
            at.as_ref().map(|(shard, _)| shard.as_str()),
            at.as_ref().map(|(_, position)| position.as_str()),
            Some(step),
            Some(reason),
            Some(detail),
            text.and_then(Result::ok),
            base64.as_deref(),
        ]);
        self.count(step, reason);
    }
    /// A row of the dead letters that was kept as JSON. False: it is none.
    fn push_kept(&mut self, row: &[u8]) -> bool {
        let Ok(row) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(row) else { return false };
        let value = |name: &str| row.get(name).and_then(serde_json::Value::as_str);
        let (Some(step), Some(reason)) = (value("step"), value("reason")) else { return false };
        self.append(LETTER.map(value));
        self.count(step, reason);
        true
    }
    fn append(&mut self, values: [Option<&str>; LETTER.len()]) {
        for (column, value) in self.columns.iter_mut().zip(values) {
            column.append_option(value);
        }
    }
    fn count(&mut self, step: &str, reason: &str) {
        self.rows += 1;
        *self.reasons.entry((step.to_owned(), reason.to_owned())).or_default() += 1;
    }
    fn is_empty(&self) -> bool {
        self.rows == 0
    }
    fn finish(mut self, job: &str, planned_at: i64, input: Digest) -> Result<RecordBatch, arrow::error::ArrowError> {
        let rows = self.rows;
        let repeated = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value; rows])) };
        let mut columns: Vec<ArrayRef> = vec![repeated(job)];
        columns.extend(self.columns.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        columns.push(Arc::new(TimestampMillisecondArray::from(vec![planned_at; rows]).with_timezone("UTC")));
        columns.push(repeated(&input.short()));
        RecordBatch::try_new(dead_letters_schema(), columns)
    }
}
