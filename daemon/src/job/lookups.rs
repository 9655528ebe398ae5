//! Tables that lookups join: loaded before the first batch, kept fresh beside the batches, and kept on disk for replays.
//!
//! - A snapshot is in the data dir, synced, before a batch may use it: what the plan names is there when the anchor
//!   commits. A replay takes the table that the plan names, whatever the table is like now.
//! - A batch waits for a table once, for the first. After that a task of its own looks for a newer one; where that fails,
//!   the old one is used on, with a warning and a metric that tells its age.
//! - What no open plan can name any more is removed when a batch is closed.

//!
//! `slot`: one table. `shelf`: what is on disk and needed.

mod shelf;
mod slot;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use tidemill_checkpoint::{Digest, LaneScheme, Plan};
use tidemill_config::{self as config, LookupMode, Verb};
use tidemill_connectors::lookup::{self, LookupError, store::Store};
use tidemill_steps::{Schemas, lookup::Tables};
use tokio::task::AbortHandle;

use self::{
    shelf::Shelf,
    slot::{Ready, Slot, asked, keep, loaded},
};
use super::{Surroundings, lane::LaneError};
use crate::memory::{Held, Memory};

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
    /// Their parts of the budget, for as long as the batch has them.
    held: Vec<Arc<Held>>,
}

impl BatchTables {
    fn add(&mut self, step: &str, ready: &Ready) {
        self.schemas.insert(step.to_owned(), ready.schema());
        self.tables.insert(step.to_owned(), ready.table());
        if let Ready::Snapshot { digest, held, .. } = ready {
            self.versions.insert(format!("{VERSION}{step}"), *digest);
            self.held.extend(held.clone());
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

/// The lookups of a running job.
pub struct Lookups {
    slots: Vec<Arc<Slot>>,
    shelf: Arc<Shelf>,
    folder: PathBuf,
    once: bool,
    memory: Memory,
    scheme: LaneScheme,
    /// What a replay does without the table of its batch, by step.
    on_lost: BTreeMap<String, config::OnLost>,
    tasks: Mutex<Vec<AbortHandle>>,
}

/// The lookup, of whose table no more is read than memory has room for.
fn bounded(config: &config::Lookup, most: u64) -> config::Lookup {
    let mut bounded = config.clone();
    if let LookupMode::Snapshot { max_bytes, .. } = &mut bounded.mode {
        *max_bytes = most.min(*max_bytes);
    }
    bounded
}

impl Lookups {
    /// The lookups of a job. Reads nothing.
    pub fn open(job: &config::Job, folder: PathBuf, scheme: LaneScheme, around: &Surroundings) -> anyhow::Result<Self> {
        let shelf = Arc::new(Shelf::new(Store::new(folder.clone())));
        let mut slots = Vec::new();
        for (step, config) in of(job) {
            let table = lookup::open(&bounded(config, around.memory.for_tables()))
                .map_err(|error| anyhow::anyhow!("step {}: {error}", step.name))?;
            around.metrics.begin_lookup(&job.name, &step.name, matches!(config.mode, LookupMode::Query { .. }));
            slots.push(Arc::new(Slot::new(
                &job.name,
                &step.name,
                config,
                table,
                shelf.clone(),
                &around.metrics,
                &around.memory,
            )));
        }
        Ok(Self {
            slots,
            shelf,
            folder,
            once: around.once,
            memory: around.memory.clone(),
            scheme,
            on_lost: of(job)
                .map(|(step, lookup)| {
                    (step.name.clone(), job.on_lost_table(step, lookup, scheme == LaneScheme::Partition))
                })
                .collect(),
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
                let task = tokio::spawn(slot.clone().stay_fresh(refresh));
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
                Some(digest) => match loaded(&self.shelf.store, *digest, config).await {
                    Ok(Some(ready)) => ready,
                    Ok(None) => self.same_again(text, (step, config), *digest, "which is not there").await?,
                    Err(error) => {
                        let why = format!("which cannot be read ({error})");
                        self.same_again(text, (step, config), *digest, &why).await?
                    }
                },
                None => asked(config).await.map_err(|error| self.failed(&step.name, &error))?,
            };
            let (ready, _) = ready.counted(None, &self.memory);
            tables.add(&step.name, &ready);
        }
        Ok(tables)
    }

    /// The table as it is now, where it is the one that a plan names.
    async fn same_again(
        &self,
        text: &config::Job,
        (step, config): (&config::Step, &config::Lookup),
        digest: Digest,
        why: &str,
    ) -> Result<Ready, LaneError> {
        // What the job says now counts, so that it is a way out of a stop.
        let on_lost = self.on_lost.get(&step.name).copied();
        let goes_on = on_lost.unwrap_or_else(|| text.on_lost_table(step, config, self.scheme == LaneScheme::Partition))
            == config::OnLost::Continue;
        let now = async {
            let table = lookup::open(config)?;
            let rows = table.read(None).await?;
            let (config, store) = (config.clone(), self.shelf.store.clone());
            let kept = tokio::task::spawn_blocking(move || keep(rows, &config, None, &store)).await;
            kept.map_err(|error| LookupError(error.to_string()))?
        };
        let ready = now.await.map_err(|error| self.failed(&step.name, &error))?;
        match &ready {
            Ready::Snapshot { digest: found, .. } if *found != digest && goes_on => {
                tracing::warn!(
                    step = step.name,
                    "the table that a batch used is kept as {}, {why}: it is replayed with the table as it is now",
                    self.shelf.store.path(digest).display()
                );
                Ok(ready)
            }
            Ready::Snapshot { digest: found, .. } if *found != digest => {
                let (path, now) = (self.shelf.store.path(digest), self.shelf.store.path(*found));
                Err(LaneError::Lost {
                    what: format!(
                        "its lookup {} used the table that is kept as {}, {why}; the table as it is now is another ({}), and `on_lost_table: continue` in the step takes that one",
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

    /// A plan names these tables: they stay until the next one of its lane is closed.
    pub fn uses(&self, plan: &Plan) {
        let named = plan.versions.iter().filter(|(name, _)| name.starts_with(VERSION)).map(|(_, digest)| *digest);
        let named: BTreeSet<Digest> = named.collect();
        if !named.is_empty() {
            self.shelf.used().entry(plan.lane.clone()).or_default().entry(plan.seq).or_default().extend(named);
        }
    }

    /// A plan is closed: what only those before it named is removed.
    pub async fn closed(&self, plan: &Plan) {
        if let Some(plans) = self.shelf.used().get_mut(&plan.lane) {
            plans.retain(|seq, _| *seq >= plan.seq);
        }
        let tables = self.slots.iter().filter(|slot| matches!(slot.config.mode, LookupMode::Snapshot { .. })).count();
        let grace = if self.scheme == LaneScheme::Partition { GRACE } else { Duration::ZERO };
        if !grace.is_zero() {
            self.shelf.let_go().await;
        }
        if self.shelf.replaced.load(Ordering::Relaxed) {
            self.shelf.clear(grace, tables).await;
        }
    }
}

impl Drop for Lookups {
    fn drop(&mut self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(AbortHandle::abort);
    }
}

/// The tables of a job out of the store, for a trial in a process of its own.
pub async fn kept(job: &config::Job, digests: &[(String, Digest)], folder: &Path) -> anyhow::Result<BatchTables> {
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
