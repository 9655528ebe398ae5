//! Tables that lookups join: loaded before the first batch, kept fresh beside the batches, and kept on disk for replays.
//!
//! - A snapshot is in the data dir, synced, before a batch may use it: what the plan names is there when the anchor
//!   commits. A replay takes the table that the plan names, whatever the table is like now.
//! - A batch waits for a table once, for the first. After that a task of its own looks for a newer one; where that fails,
//!   the old one is used on, with a warning and a metric that tells its age.
//! - What no open plan can name any more is removed when a batch is closed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arrow::{
    array::RecordBatch,
    compute::{lexsort_to_indices, take_record_batch},
    datatypes::SchemaRef,
};
use tidemill_checkpoint::{Digest, Lane, LaneScheme, Plan, Timestamp};
use tidemill_config::{self as config, Duplicates, LookupMode, LookupTable as Where, Verb};
use tidemill_connectors::lookup::{self, LookupError, LookupTable, store::Store};
use tidemill_steps::{
    Schemas,
    lookup::{Ask, AskError, Snapshot, Table, Tables},
};
use tokio::task::AbortHandle;

use super::{Surroundings, lane::LaneError};
use crate::metrics::Metrics;

/// What names of versions in plans begin with.
const VERSION: &str = "lookup/";
/// Of a job whose lanes move between daemons nobody here knows all plans: what was not needed for so long is not waited for.
const GRACE: Duration = Duration::from_secs(3600);

/// The tables of one batch.
#[derive(Clone, Default)]
pub struct BatchTables {
    /// For the steps.
    pub tables: Tables,
    /// Their columns, by step.
    pub schemas: Schemas,
    /// What the plan names.
    pub versions: BTreeMap<String, Digest>,
}

impl BatchTables {
    fn add(&mut self, step: &str, ready: &Ready) {
        self.schemas.insert(step.to_owned(), ready.schema());
        self.tables.insert(step.to_owned(), ready.table());
        if let Ready::Snapshot { digest, .. } = ready {
            self.versions.insert(format!("{VERSION}{step}"), *digest);
        }
    }

    /// The digests of snapshots, by step.
    pub fn digests(&self) -> impl Iterator<Item = (String, Digest)> {
        self.versions.iter().filter_map(|(name, digest)| Some((name.strip_prefix(VERSION)?.to_owned(), *digest)))
    }
}

/// The lookups of a job, in order.
pub fn of(job: &config::Job) -> impl Iterator<Item = (&config::Step, &config::Lookup)> {
    job.steps.iter().filter_map(|step| match &step.verb {
        Verb::Lookup(lookup) => Some((step, &**lookup)),
        _ => None,
    })
}

/// A table that batches can use.
#[derive(Clone)]
enum Ready {
    Snapshot { snapshot: Arc<Snapshot>, digest: Digest },
    Asked { asking: Arc<Asking>, schema: SchemaRef },
}

impl Ready {
    fn schema(&self) -> SchemaRef {
        match self {
            Self::Snapshot { snapshot, .. } => snapshot.rows().schema(),
            Self::Asked { schema, .. } => schema.clone(),
        }
    }
    fn table(&self) -> Table {
        match self {
            Self::Snapshot { snapshot, .. } => Table::Whole(snapshot.clone()),
            Self::Asked { asking, .. } => Table::Asked(asking.clone()),
        }
    }
}

/// A table that steps ask, off the runtime.
struct Asking {
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
        let asked = asked.map_err(|error| AskError { cause: error.to_string(), transient: true })?;
        if let Some(queries) = &self.queries {
            queries.inc_by(asked.queries);
        }
        Ok(asked.rows)
    }
}

/// One lookup of a running job.
struct Slot {
    job: String,
    step: String,
    config: config::Lookup,
    table: Arc<dyn LookupTable>,
    store: Store,
    metrics: Metrics,
    ready: Mutex<Option<Ready>>,
    /// Held while the table is read: two do not read it at once.
    reading: tokio::sync::Mutex<()>,
}

impl Slot {
    fn current(&self) -> Option<Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The table; read now where it was not yet.
    async fn first(&self) -> Result<Ready, LookupError> {
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
                let known = self.current().map(|ready| ready.schema());
                let rows = self.table.read(known.as_ref()).await?;
                let (config, store) = (self.config.clone(), self.store.clone());
                let kept = tokio::task::spawn_blocking(move || keep(rows, &config, &store)).await;
                kept.map_err(|error| LookupError(format!("{}: {error}", self.config.shown())))??
            }
        };
        if let Ready::Snapshot { snapshot, .. } = &ready {
            let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            let labels = [self.job.as_str(), self.step.as_str()];
            self.metrics.lookup_rows.with_label_values(&labels).set(whole(snapshot.rows().num_rows()));
            self.metrics.lookup_bytes.with_label_values(&labels).set(whole(snapshot.bytes()));
        }
        self.looked();
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = Some(ready.clone());
        Ok(ready)
    }

    /// The table is what it is now.
    #[allow(clippy::cast_precision_loss)] // milliseconds since the epoch fit a double
    fn looked(&self) {
        let now = Timestamp::now().0 as f64 / 1000.0;
        self.metrics.lookup_refreshed.with_label_values(&[&self.job, &self.step]).set(now);
    }

    /// Looks for a newer table for as long as the job runs.
    async fn stay_fresh(self: Arc<Self>, every: Duration, replaced: Arc<AtomicBool>) {
        let (job, step) = (self.job.as_str(), self.step.as_str());
        let mut failing: Option<String> = None;
        loop {
            match self.refresh().await {
                Ok(is_new) => {
                    if is_new {
                        replaced.store(true, Ordering::Relaxed);
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

/// Indexes a table and keeps it under its digest, synced.
fn keep(rows: RecordBatch, config: &config::Lookup, store: &Store) -> Result<Ready, LookupError> {
    let wrong = |why: String| LookupError(format!("{}: {why}", config.shown()));
    let rows = in_order(rows, config).map_err(|error| wrong(error.to_string()))?;
    let snapshot = Snapshot::new(rows, config).map_err(wrong)?;
    let digest = store.save(snapshot.rows())?;
    Ok(Ready::Snapshot { snapshot: Arc::new(snapshot), digest })
}

/// A database may give the same rows in another order each time: the same table has one digest, where the order means
/// nothing.
fn in_order(rows: RecordBatch, config: &config::Lookup) -> Result<RecordBatch, arrow::error::ArrowError> {
    if !matches!(config.table, Where::Sql { .. }) || config.duplicates != Duplicates::Fail || rows.num_rows() == 0 {
        return Ok(rows);
    }
    let keys = config.keys.iter().filter_map(|(_, key)| rows.column_by_name(&key.value));
    let keys: Vec<_> =
        keys.map(|values| arrow::compute::SortColumn { values: values.clone(), options: None }).collect();
    if keys.is_empty() {
        return Ok(rows);
    }
    take_record_batch(&rows, &lexsort_to_indices(&keys, None)?)
}

/// The lookups of a running job.
pub struct Lookups {
    slots: Vec<Arc<Slot>>,
    store: Store,
    folder: PathBuf,
    once: bool,
    scheme: LaneScheme,
    /// Snapshots that plans name which are not closed, and the last closed ones, by lane and number.
    uses: Mutex<BTreeMap<Lane, BTreeMap<u64, BTreeSet<Digest>>>>,
    /// There may be something to remove.
    replaced: Arc<AtomicBool>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Lookups {
    /// The lookups of a job. Reads nothing.
    pub fn open(job: &config::Job, folder: PathBuf, scheme: LaneScheme, around: &Surroundings) -> anyhow::Result<Self> {
        let store = Store::new(folder.clone());
        let mut slots = Vec::new();
        for (step, config) in of(job) {
            let table = lookup::open(config).map_err(|error| anyhow::anyhow!("step {}: {error}", step.name))?;
            around.metrics.begin_lookup(&job.name, &step.name, matches!(config.mode, LookupMode::Query { .. }));
            slots.push(Arc::new(Slot {
                job: job.name.clone(),
                step: step.name.clone(),
                config: config.clone(),
                table,
                store: store.clone(),
                metrics: around.metrics.clone(),
                ready: Mutex::default(),
                reading: tokio::sync::Mutex::default(),
            }));
        }
        Ok(Self {
            slots,
            store,
            folder,
            once: around.once,
            scheme,
            uses: Mutex::default(),
            replaced: Arc::new(AtomicBool::new(true)),
            tasks: Mutex::default(),
        })
    }

    /// Where snapshots are kept.
    pub fn folder(&self) -> PathBuf {
        self.folder.clone()
    }

    /// From now on tables are kept fresh, until this is dropped.
    pub fn start(&self) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in &self.slots {
            if let LookupMode::Snapshot { refresh, .. } = slot.config.mode {
                let task = tokio::spawn(slot.clone().stay_fresh(refresh, self.replaced.clone()));
                tasks.push(task.abort_handle());
            }
        }
    }

    /// The tables as they are now. Waits for those that were never read.
    pub async fn current(&self) -> Result<BatchTables, LaneError> {
        let mut tables = BatchTables::default();
        for slot in &self.slots {
            let ready = slot.first().await.map_err(|error| self.failed(&slot.step, &error))?;
            tables.add(&slot.step, &ready);
        }
        Ok(tables)
    }

    /// With `--once` nobody is there who would put it right.
    fn failed(&self, step: &str, error: &LookupError) -> LaneError {
        let text = format!("step {step}: the table of the lookup cannot be read: {error}");
        if self.once { LaneError::Stop(text) } else { LaneError::Transient(text) }
    }

    /// The tables that a plan names, for its replay. `text` is the job as it was then.
    pub async fn of_plan(&self, text: &Arc<config::Job>, plan: &Plan) -> Result<BatchTables, LaneError> {
        let mut tables = BatchTables::default();
        for (step, config) in of(text) {
            let named = plan.versions.get(&format!("{VERSION}{}", step.name));
            let ready = match named {
                Some(digest) => match loaded(&self.store, *digest, config).await {
                    Ok(Some(ready)) => ready,
                    Ok(None) => self.same_again(step, config, *digest, "which is not there").await?,
                    Err(error) => {
                        self.same_again(step, config, *digest, &format!("which cannot be read ({error})")).await?
                    }
                },
                None => asked(config).await.map_err(|error| self.failed(&step.name, &error))?,
            };
            tables.add(&step.name, &ready);
        }
        Ok(tables)
    }

    /// The table as it is now, where it is the one that a plan names.
    async fn same_again(
        &self,
        step: &config::Step,
        config: &config::Lookup,
        digest: Digest,
        why: &str,
    ) -> Result<Ready, LaneError> {
        let now = async {
            let table = lookup::open(config)?;
            let rows = table.read(None).await?;
            let (config, store) = (config.clone(), self.store.clone());
            let kept = tokio::task::spawn_blocking(move || keep(rows, &config, &store)).await;
            kept.map_err(|error| LookupError(error.to_string()))?
        };
        let ready = now.await.map_err(|error| self.failed(&step.name, &error))?;
        match &ready {
            Ready::Snapshot { digest: found, .. } if *found != digest => {
                let (path, now) = (self.store.path(digest), self.store.path(*found));
                Err(LaneError::Lost {
                    what: format!(
                        "its lookup {} used the table that is kept as {}, {why}; the table as it is now is another ({})",
                        step.name,
                        path.display(),
                        now.display()
                    ),
                    way_out: "Copy the file from the data dir of the daemon that made the batch".into(),
                })
            }
            _ => Ok(ready),
        }
    }

    fn used(&self) -> MutexGuard<'_, BTreeMap<Lane, BTreeMap<u64, BTreeSet<Digest>>>> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A plan names these tables: they stay until the next one of its lane is closed.
    pub fn uses(&self, plan: &Plan) {
        let named = plan.versions.iter().filter(|(name, _)| name.starts_with(VERSION)).map(|(_, digest)| *digest);
        let named: BTreeSet<Digest> = named.collect();
        if !named.is_empty() {
            self.used().entry(plan.lane.clone()).or_default().entry(plan.seq).or_default().extend(named);
        }
    }

    /// A plan is closed: what only those before it named is removed.
    pub fn closed(&self, plan: &Plan) {
        let mut used = self.used();
        if let Some(plans) = used.get_mut(&plan.lane) {
            plans.retain(|seq, _| *seq >= plan.seq);
        }
        if !self.replaced.load(Ordering::Relaxed) {
            return;
        }
        let mut needed: BTreeSet<Digest> = used.values().flat_map(BTreeMap::values).flatten().copied().collect();
        drop(used);
        let current = self.slots.iter().filter_map(|slot| match slot.current() {
            Some(Ready::Snapshot { digest, .. }) => Some(digest),
            _ => None,
        });
        let current: BTreeSet<Digest> = current.collect();
        needed.extend(&current);
        let grace = if self.scheme == LaneScheme::Partition { GRACE } else { Duration::ZERO };
        // Once plans name the newest tables alone, there is nothing to remove until there are newer ones.
        self.replaced.store(needed.len() > current.len() || !grace.is_zero(), Ordering::Relaxed);
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = store.prune(&needed, grace) {
                tracing::warn!(%error, "older tables of lookups cannot be removed");
            }
        });
    }
}

impl Drop for Lookups {
    fn drop(&mut self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(AbortHandle::abort);
    }
}

/// A snapshot out of the store.
async fn loaded(store: &Store, digest: Digest, config: &config::Lookup) -> Result<Option<Ready>, LookupError> {
    let (store, config) = (store.clone(), config.clone());
    let load = move || -> Result<Option<Ready>, LookupError> {
        let Some(rows) = store.load(digest)? else { return Ok(None) };
        let snapshot = Snapshot::new(rows, &config).map_err(LookupError)?;
        Ok(Some(Ready::Snapshot { snapshot: Arc::new(snapshot), digest }))
    };
    tokio::task::spawn_blocking(load).await.map_err(|error| LookupError(error.to_string()))?
}

/// A table that is asked, opened for once.
async fn asked(config: &config::Lookup) -> Result<Ready, LookupError> {
    let table = lookup::open(config)?;
    let schema = table.schema().await?;
    let asking = Asking { table, runtime: tokio::runtime::Handle::current(), queries: None };
    Ok(Ready::Asked { asking: Arc::new(asking), schema })
}

/// The tables of a job out of the store, for a trial in a process of its own.
pub async fn kept(
    job: &config::Job,
    digests: &[(String, Digest)],
    folder: &std::path::Path,
) -> anyhow::Result<BatchTables> {
    let (store, mut tables) = (Store::new(folder.to_owned()), BatchTables::default());
    for (step, config) in of(job) {
        let ready = match digests.iter().find(|(name, _)| *name == step.name) {
            Some((_, digest)) => loaded(&store, *digest, config).await?,
            None => Some(asked(config).await?),
        };
        let ready = ready.ok_or_else(|| anyhow::anyhow!("the table of {} is not kept", step.name))?;
        tables.add(&step.name, &ready);
    }
    Ok(tables)
}
