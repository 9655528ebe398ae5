//! Versions of a job: its steps planned over pinned schemas, its sinks prepared for what they get, and the schemas' own
//! text in the anchor's logs.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use tidemill_checkpoint::{Digest, LogName, SinkId};
use tidemill_config as config;
use tidemill_connectors::{codec, source::RawBatch};

use super::{
    Job, SinkSlot,
    compile::{Compiled, ComputeError, Pinned, older_dead_letters_schema},
    lane::LaneError,
};

/// More compiled versions of one job are not kept: its own, and the one of an open plan before an edit.
const COMPILED_KEPT: usize = 4;
/// What names of such logs begin with.
const SCHEMA_LOG: &str = "schema:";

/// What a compiled version is made of: the text's digest, schemas of sources, schemas of the lookups' tables.
type Version = (Digest, Pinned, tidemill_steps::Schemas);

/// Compiled versions of a job, and which sinks are prepared for which schema.
#[derive(Default)]
pub struct Schemas {
    compiled: Mutex<Vec<(Version, Arc<Compiled>)>>,
    prepared: tokio::sync::Mutex<BTreeMap<SinkId, SchemaRef>>,
}

impl Schemas {
    /// The steps of the job's text `digest` over these schemas and tables of lookups, for a batch some of whose sources may have none yet. `raw` is
    /// by source, in the order of the text; nothing, for a plan without rows. Where nothing in it has a schema, all of it goes
    /// to the dead letters; where something has, and the steps need the columns of a source that has brought nothing yet, the
    /// batch waits for it.
    pub fn compiled_for(
        &self,
        job: &Job,
        digest: Digest,
        pinned: &Pinned,
        tables: &tidemill_steps::Schemas,
        raw: &[RawBatch],
    ) -> Result<Arc<Compiled>, LaneError> {
        let error = match self.planned(job, digest, pinned, tables)? {
            Ok(compiled) => return Ok(compiled),
            Err(error) => error,
        };
        let config = self.text(job, digest)?;
        let unknown = Compiled::unknown(&config, pinned);
        if unknown.is_empty() {
            return Err(LaneError::Stop(error.to_string()));
        }
        if !Compiled::knows_any(&config, pinned, raw) {
            let compiled = Compiled::undecided(&config, pinned).map_err(|error| LaneError::Stop(error.to_string()))?;
            return Ok(Arc::new(compiled));
        }
        let reason = format!(
            "{error}\n  the columns of {} are not known yet: the batch waits for its first records; give it a `schema:` to begin without",
            unknown.join(", ")
        );
        // With `--once` nothing more comes that would be worth waiting for.
        Err(if job.around.once { LaneError::Stop(reason) } else { LaneError::Transient(reason) })
    }

    /// Made once, kept for the next batch.
    fn planned(
        &self,
        job: &Job,
        digest: Digest,
        pinned: &Pinned,
        tables: &tidemill_steps::Schemas,
    ) -> Result<Result<Arc<Compiled>, ComputeError>, LaneError> {
        let version = (digest, pinned.clone(), tables.clone());
        let known = self.kept().iter().find(|(known, _)| *known == version).map(|kept| kept.1.clone());
        if let Some(compiled) = known {
            return Ok(Ok(compiled));
        }
        let compiled = match Compiled::new(&self.text(job, digest)?, pinned, tables) {
            Ok(compiled) => Arc::new(compiled),
            Err(error) => return Ok(Err(error)),
        };
        let mut kept = self.kept();
        if kept.len() >= COMPILED_KEPT {
            kept.remove(0);
        }
        kept.push((version, compiled.clone()));
        Ok(Ok(compiled))
    }

    fn kept(&self) -> MutexGuard<'_, Vec<(Version, Arc<Compiled>)>> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn text(&self, job: &Job, digest: Digest) -> Result<Arc<config::Job>, LaneError> {
        if digest == job.digest { Ok(job.config.clone()) } else { older(job, digest).map(Arc::new) }
    }

    /// Creates or checks a sink's target, once per schema, and gives the rows as the target takes them.
    pub async fn prepared<'r>(
        &self,
        job: &Job,
        slot: &SinkSlot,
        schema: &SchemaRef,
        rows: &'r [RecordBatch],
    ) -> Result<Cow<'r, [RecordBatch]>, LaneError> {
        if rows.is_empty() {
            return Ok(Cow::Borrowed(rows));
        }
        let mut prepared = self.prepared.lock().await;
        let older = (slot.role == super::Role::DeadLetters).then(older_dead_letters_schema);
        let is_prepared = |schema: &SchemaRef| prepared.get(slot.id()) == Some(schema);
        if is_prepared(schema) {
            return Ok(Cow::Borrowed(rows));
        }
        if let Some(older) = older.as_ref().filter(|older| is_prepared(older)) {
            return Ok(Cow::Owned(with_columns_of(rows, older)));
        }
        let failed = match slot.sink.prepare(schema).await {
            Ok(()) => {
                prepared.insert(slot.id().clone(), schema.clone());
                return Ok(Cow::Borrowed(rows));
            }
            Err(error) => error,
        };
        // A table for dead letters that an earlier version made, or was made for it, goes on as it is.
        if let Some(older) = older.filter(|_| !failed.is_transient())
            && slot.sink.prepare(&older).await.is_ok()
        {
            tracing::warn!(
                job = job.name(),
                sink = slot.name,
                "dead letters are written without the columns file, line, topic, partition and offset: {failed}"
            );
            let rows = with_columns_of(rows, &older);
            prepared.insert(slot.id().clone(), older);
            return Ok(Cow::Owned(rows));
        }
        Err(job.sink_failed(slot, &failed))
    }
}

/// The rows with no other columns than these.
fn with_columns_of(rows: &[RecordBatch], schema: &SchemaRef) -> Vec<RecordBatch> {
    let places = |batch: &RecordBatch| -> Vec<usize> {
        schema.fields().iter().filter_map(|field| batch.schema().index_of(field.name()).ok()).collect()
    };
    rows.iter().map(|batch| batch.project(&places(batch)).unwrap_or_else(|_| batch.clone())).collect()
}

/// The job as it was when an open plan was made.
fn older(job: &Job, digest: Digest) -> Result<config::Job, LaneError> {
    let text = job.kept_text(&digest).ok_or_else(|| {
        LaneError::Stop(format!(
            "the open batch was planned by another text of this job (digest {digest}), the text now is {}; the older one is not in {}. \
             Way out: put the older text back until the batch is closed, or let each sink that lacks the batch do without it: {}",
            job.digest,
            job.folder().join("texts").display(),
            job.do_without_any()
        ))
    })?;
    let older = config::Job::parse(&text, &job.config.file, &config::ProcessEnvironment)
        .map_err(|errors| LaneError::Stop(format!("the job's older text {digest} cannot be read: {errors}")))?;
    if super::digest_of(&older) != digest {
        return Err(LaneError::Stop(format!(
            "the open batch was planned with other values of the environment in `where:` or `partition_by:`, or with other \
             contents of a codec's schema file (digest {digest}). Way out: set them back until the batch is closed, or let each \
             sink that lacks the batch do without it: {}",
            job.do_without_any()
        )));
    }
    Ok(older)
}

/// The log that holds the pinned schema of a source, by the name that its shards have: a renamed source keeps it.
pub fn schema_log(source: &config::Source) -> LogName {
    LogName::new(&format!("{SCHEMA_LOG}{}", super::shard_name(source)))
}

/// The source (by the name that its shards have) whose schemas a log holds; `None` for another log.
pub fn source_of_log(log: &LogName) -> Option<&str> {
    log.as_str().strip_prefix(SCHEMA_LOG)
}

/// The digests of pinned schemas, as plans name them.
pub fn versions(pinned: &Pinned) -> BTreeMap<String, Digest> {
    pinned
        .iter()
        .map(|(source, schema)| (format!("schema:{source}"), Digest::of(schema_text(schema).as_bytes())))
        .collect()
}

/// A schema as an entry of its log: names and types as a job would write them.
pub fn schema_text(schema: &SchemaRef) -> String {
    let fields: Vec<(String, String)> =
        schema.fields().iter().map(|f| (f.name().clone(), codec::type_name(f.data_type()))).collect();
    serde_json::to_string(&fields).expect("texts serialise")
}

/// The schema of an entry of its log.
pub fn parse_schema(text: &str) -> Option<SchemaRef> {
    let fields: Vec<(String, String)> = serde_json::from_str(text).ok()?;
    let fields: Option<Vec<_>> = fields
        .into_iter()
        .map(|(name, kind)| {
            let kind = config::Type::parse(&kind).ok()?;
            Some(config::Field { name, kind: config::Located { value: kind, at: config::At::default() } })
        })
        .collect();
    Some(codec::to_arrow(&fields?))
}
