//! One table: read, indexed, kept, and read again.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use arrow::{
    array::RecordBatch,
    compute::{SortColumn, lexsort_to_indices, take_record_batch},
    datatypes::SchemaRef,
    error::ArrowError,
};
use tidemill_checkpoint::{Digest, Timestamp};
use tidemill_config::{self as config, Duplicates, LookupMode, LookupTable as Where};
use tidemill_connectors::lookup::{self, LookupError, LookupTable, store::Store};
use tidemill_steps::lookup::{Ask, AskError, Snapshot, Table};

use super::shelf::Shelf;
use crate::{
    memory::{Held, Memory},
    metrics::Metrics,
};

/// Bytes of a table and its index, for one byte of the table.
const EXPANSION: u64 = 2;

/// A table that batches can use.
#[derive(Clone)]
pub(super) enum Ready {
    Snapshot { snapshot: Arc<Snapshot>, digest: Digest, held: Option<Arc<Held>> },
    Asked { asking: Arc<Asking>, schema: SchemaRef },
}

impl Ready {
    /// The same, its memory taken off the budget for as long as it is held; how many bytes it has, and how many are counted.
    /// It takes over the part of the one before, whose place it takes.
    pub(super) fn counted(self, before: Option<Self>, memory: &Memory) -> (Self, Option<(u64, u64)>) {
        match self {
            Self::Snapshot { snapshot, digest, .. } => {
                let bytes = EXPANSION * u64::try_from(snapshot.bytes()).unwrap_or(u64::MAX / EXPANSION);
                let (counted, held) = match before {
                    Some(Self::Snapshot { held: Some(held), .. }) => (memory.resize(&held, bytes), held),
                    _ => {
                        let (counted, held) = memory.hold(bytes);
                        (counted, Arc::new(held))
                    }
                };
                (Self::Snapshot { snapshot, digest, held: Some(held) }, Some((bytes, counted)))
            }
            other @ Self::Asked { .. } => (other, None),
        }
    }

    pub(super) fn schema(&self) -> SchemaRef {
        match self {
            Self::Snapshot { snapshot, .. } => snapshot.rows().schema(),
            Self::Asked { schema, .. } => schema.clone(),
        }
    }
    pub(super) fn table(&self) -> Table {
        match self {
            Self::Snapshot { snapshot, .. } => Table::Whole(snapshot.clone()),
            Self::Asked { asking, .. } => Table::Asked(asking.clone()),
        }
    }
}

/// A table that steps ask, off the runtime.
pub(super) struct Asking {
    table: Arc<dyn LookupTable>,
    runtime: tokio::runtime::Handle,
    queries: Option<prometheus::IntCounter>,
}

impl std::fmt::Debug for Asking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asking")
    }
}

impl Ask for Asking {
    fn ask(&self, keys: &RecordBatch) -> Result<RecordBatch, AskError> {
        let asked = self.runtime.block_on(self.table.ask(keys));
        let asked = asked.map_err(|error| AskError { cause: error.to_string(), transient: error.transient })?;
        if let Some(queries) = &self.queries {
            queries.inc_by(asked.queries);
        }
        Ok(asked.rows)
    }
}

/// One lookup of a running job.
pub(super) struct Slot {
    job: String,
    pub(super) step: String,
    pub(super) config: config::Lookup,
    table: Arc<dyn LookupTable>,
    metrics: Metrics,
    memory: Memory,
    ready: Mutex<Option<Ready>>,
    /// Held while the table is read: two do not read it at once.
    reading: tokio::sync::Mutex<()>,
    shelf: Arc<Shelf>,
}

impl Slot {
    pub(super) fn new(
        job: &str,
        step: &str,
        config: &config::Lookup,
        table: Arc<dyn LookupTable>,
        shelf: Arc<Shelf>,
        metrics: &Metrics,
        memory: &Memory,
    ) -> Self {
        Self {
            job: job.to_owned(),
            step: step.to_owned(),
            config: config.clone(),
            table,
            metrics: metrics.clone(),
            memory: memory.clone(),
            ready: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            shelf,
        }
    }

    fn current(&self) -> Option<Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The table; read now where it was not yet.
    pub(super) async fn first(&self) -> Result<Ready, LookupError> {
        if let Some(ready) = self.current() {
            return Ok(ready);
        }
        let _reading = self.reading.lock().await;
        match self.current() {
            Some(ready) => Ok(ready),
            None => self.read().await,
        }
    }

    /// Reads the table and puts it in the place of the one before. Says whether it is another.
    async fn refresh(&self) -> Result<bool, LookupError> {
        let _reading = self.reading.lock().await;
        let digest = |ready: Option<Ready>| match ready {
            Some(Ready::Snapshot { digest, .. }) => Some(digest),
            _ => None,
        };
        let before = digest(self.current());
        if before.is_none() || self.table.may_have_changed() {
            self.read().await?;
        }
        self.looked();
        Ok(digest(self.current()) != before)
    }

    async fn read(&self) -> Result<Ready, LookupError> {
        // Until it is in its place.
        let mut moving = None;
        let ready = match self.config.mode {
            LookupMode::Query { .. } => {
                let schema = self.table.schema().await?;
                let queries = self.metrics.lookup_queries.with_label_values(&[&self.job, &self.step]);
                let runtime = tokio::runtime::Handle::current();
                Ready::Asked {
                    asking: Arc::new(Asking { table: self.table.clone(), runtime, queries: Some(queries) }),
                    schema,
                }
            }
            LookupMode::Snapshot { .. } => {
                // What the first table was like is what all are like, as far as this process goes: steps and sinks are set
                // up for it.
                let before = self.current();
                let rows = self.table.read(before.as_ref().map(Ready::schema).as_ref()).await?;
                let (config, store) = (self.config.clone(), self.shelf.store.clone());
                moving = Some(self.shelf.moving.lock().await);
                let kept = tokio::task::spawn_blocking(move || keep(rows, &config, before.as_ref(), &store)).await;
                kept.map_err(|error| LookupError(format!("{}: {error}", self.config.shown())))??
            }
        };
        let (ready, counted) = ready.counted(self.current(), &self.memory);
        if let Some((bytes, counted)) = counted.filter(|(bytes, counted)| counted < bytes) {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            return Err(LookupError(format!(
                "{}: the table takes {} MiB with its index, and {} MiB are left for it: all tables may have a quarter of `memory`. \
                 Make that larger, take fewer rows or columns, or ask a database by `mode: query`",
                self.config.shown(),
                mib(bytes),
                mib(counted)
            )));
        }
        if let Ready::Snapshot { snapshot, digest, .. } = &ready {
            self.shelf.put(*digest, snapshot);
            let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            let labels = [self.job.as_str(), self.step.as_str()];
            self.metrics.lookup_rows.with_label_values(&labels).set(whole(snapshot.rows().num_rows()));
            self.metrics.lookup_bytes.with_label_values(&labels).set(whole(snapshot.bytes()));
        }
        self.looked();
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = Some(ready.clone());
        drop(moving);
        Ok(ready)
    }

    /// The table is what it is now.
    #[allow(clippy::cast_precision_loss)] // milliseconds since the epoch fit a double
    fn looked(&self) {
        let now = Timestamp::now().0 as f64 / 1000.0;
        self.metrics.lookup_refreshed.with_label_values(&[&self.job, &self.step]).set(now);
    }

    /// Looks for a newer table for as long as the job runs.
    pub(super) async fn stay_fresh(self: Arc<Self>, every: Duration) {
        let (job, step) = (self.job.as_str(), self.step.as_str());
        let mut failing: Option<String> = None;
        loop {
            match self.refresh().await {
                Ok(is_new) => {
                    if is_new {
                        self.shelf.replaced.store(true, Ordering::Relaxed);
                        tracing::info!(job, step, "the table of the lookup was read: {}", self.config.shown());
                    } else if failing.is_some() {
                        tracing::info!(job, step, "the table of the lookup can be read again");
                    }
                    failing = None;
                }
                Err(error) => {
                    self.metrics.lookup_failures.with_label_values(&[job, step]).inc();
                    let text = error.to_string();
                    let instead =
                        if self.current().is_some() { "the one before is used on" } else { "batches wait for it" };
                    // The same again and again is told once.
                    if failing.as_ref() != Some(&text) {
                        tracing::warn!(job, step, "the table of the lookup cannot be read: {text}; {instead}");
                    }
                    failing = Some(text);
                }
            }
            tokio::time::sleep(every).await;
        }
    }
}

/// Indexes a table, for the same types of keys as the one before, and keeps it under its digest, synced.
pub(super) fn keep(
    rows: RecordBatch,
    config: &config::Lookup,
    before: Option<&Ready>,
    store: &Store,
) -> Result<Ready, LookupError> {
    let wrong = |why: String| LookupError(format!("{}: {why}", config.shown()));
    let rows = in_order(rows, config).map_err(|error| wrong(error.to_string()))?;
    let snapshot = Snapshot::new(rows, config).map_err(wrong)?;
    if let Some(Ready::Snapshot { snapshot: before, .. }) = before {
        snapshot.index_as(before).map_err(wrong)?;
    }
    let digest = store.save(snapshot.rows())?;
    Ok(Ready::Snapshot { snapshot: Arc::new(snapshot), digest, held: None })
}

/// A database may give the same rows in another order each time: the same table has one digest, where the order means
/// nothing.
fn in_order(rows: RecordBatch, config: &config::Lookup) -> Result<RecordBatch, ArrowError> {
    if !matches!(config.table, Where::Sql { .. }) || config.duplicates != Duplicates::Fail || rows.num_rows() == 0 {
        return Ok(rows);
    }
    let keys = config.keys.iter().filter_map(|(_, key)| rows.column_by_name(&key.value));
    let keys: Vec<_> = keys.map(|values| SortColumn { values: values.clone(), options: None }).collect();
    if keys.is_empty() {
        return Ok(rows);
    }
    take_record_batch(&rows, &lexsort_to_indices(&keys, None)?)
}

/// A snapshot out of the store.
pub(super) async fn loaded(
    store: &Store,
    digest: Digest,
    config: &config::Lookup,
) -> Result<Option<Ready>, LookupError> {
    let (store, config) = (store.clone(), config.clone());
    let load = move || -> Result<Option<Ready>, LookupError> {
        let Some(rows) = store.load(digest)? else { return Ok(None) };
        let snapshot = Snapshot::new(rows, &config).map_err(LookupError)?;
        Ok(Some(Ready::Snapshot { snapshot: Arc::new(snapshot), digest, held: None }))
    };
    tokio::task::spawn_blocking(load).await.map_err(|error| LookupError(error.to_string()))?
}

/// A table that is asked, opened for once.
pub(super) async fn asked(config: &config::Lookup) -> Result<Ready, LookupError> {
    let table = lookup::open(config)?;
    let schema = table.schema().await?;
    let asking = Asking { table, runtime: tokio::runtime::Handle::current(), queries: None };
    Ok(Ready::Asked { asking: Arc::new(asking), schema })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// All tables may have 4 MiB of 16: one that has more than half of it finds room for itself when it is read again.
    #[tokio::test]
    async fn a_table_that_is_read_again_is_counted_in_the_place_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let write = |rows: usize| {
            let rows = (0..rows).map(|n| format!("{n},{n:0>100}\n"));
            std::fs::write(dir.path().join("names.csv"), format!("id,name\n{}", rows.collect::<String>())).unwrap();
        };
        write(12_000);
        let text = "job: names\nsources: { in: { type: directory, path: in, schema: { id: string } } }\n\
            steps:\n  - lookup: { table: names.csv, match: { id: id }, take: [name] }\n\
            sinks: { out: { type: files, path: out } }\n";
        let job = config::Job::parse(text, &dir.path().join("job.yaml"), &config::ProcessEnvironment).unwrap();
        let (step, config) = super::super::of(&job).next().unwrap();
        let shelf = Arc::new(Shelf::new(Store::new(dir.path().join("kept"))));
        let (metrics, memory) = (Metrics::new().unwrap(), Memory::new(16 << 20));
        let table = lookup::open(config).unwrap();
        let slot = Slot::new(&job.name, &step.name, config, table, shelf, &metrics, &memory);
        let bytes_of = |ready: Option<Ready>| match ready {
            Some(Ready::Snapshot { snapshot, .. }) => EXPANSION * snapshot.bytes() as u64,
            _ => 0,
        };
        // Batches that began with the one before are still open.
        let first = slot.first().await.unwrap();
        for rows in [13_000, 12_500] {
            write(rows);
            assert!(slot.refresh().await.unwrap(), "it is another");
            let bytes = bytes_of(slot.current());
            assert!((2 << 20..4 << 20).contains(&bytes), "{bytes}");
            let (left, _) = memory.hold(u64::MAX);
            assert!((4_u64 << 20).abs_diff(bytes + left) <= 4096, "{bytes} of it are counted, and {left} are left");
        }
        drop((first, slot));
        assert_eq!(memory.hold(u64::MAX).0, 4 << 20);
    }
}
