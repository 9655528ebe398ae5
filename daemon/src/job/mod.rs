//! One job at work: its sources, compiled steps and sinks, and the batch loop that joins them.
//!
//! - [`Job`] is what stays the same while the job runs.
//! - `compile`: codecs and pipeline for one text of the job and one set of pinned schemas; raw records to rows, purely.
//! - `lane`: who owns a lane, claims, and what `decide()` says.
//! - `batch` and `commit`: one batch of each lane, from the proposal to the close. The order of the protocol is there and
//!   nowhere else. `replay`: what follows a decision that is no new batch. `schemas`: the compiled versions that batches use.
//! - `lanes`: what failures, other owners and the source's own moves make of the lanes of a running job.
//! - `scheme`: how a job is cut into lanes.
//! - `lookups`: tables that lookups join, kept fresh, and kept for replays.
//! - `rejects`: rows that a sink refused, on their way to the dead letters.
//! - `runner`: the loop: triggers, overlap of batch N's commit with N+1, retries, shutdown. `acquire`: how it gets a lane;
//!   `pulse`: how others know that it lives; `load`: how busy it is.

mod absent;
mod acquire;
pub mod batch;
pub mod commit;
pub mod compile;
mod cut;
pub mod lane;
pub mod lanes;
mod load;
pub mod lookups;
pub mod probe;
pub mod pulse;
mod readable;
pub mod rejects;
pub mod replay;
pub mod runner;
pub mod schemas;
pub mod scheme;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use tidemill_checkpoint::{Digest, LaneScheme, Ledger, Owner, Positions, SinkId};
use tidemill_config as config;
use tidemill_connectors::{
    sink::{self, Guarantee, Sink, ledger::LedgerSink},
    source::{self, Source},
};

use crate::{
    memory::{Memory, Reserve},
    metrics::Metrics,
    start,
    status::Status,
};

/// The name under which the dead letters are known as a sink.
pub const DEAD_LETTERS: &str = SinkId::DEAD_LETTERS;

/// In a job's folder in the data dir: the path of its YAML.
pub const JOB_FILE: &str = "job-file";

/// What a sink gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Rows of a step.
    Rows,
    /// Rejects.
    DeadLetters,
    /// Nothing: the ledger as the anchor.
    Ledger,
}

/// One sink of a running job.
#[derive(Clone)]
pub struct SinkSlot {
    /// Its name in the job.
    pub name: String,
    /// What it gets.
    pub role: Role,
    /// The sink.
    pub sink: Arc<dyn Sink>,
}

impl SinkSlot {
    /// The sink's identity.
    pub fn id(&self) -> &SinkId {
        self.sink.id()
    }
    /// Whether it keeps marks.
    pub fn is_marked(&self) -> bool {
        self.sink.guarantee() == Guarantee::ExactlyOnce
    }
}

/// What a job needs of the daemon around it.
#[derive(Clone)]
pub struct Surroundings {
    /// The ledger.
    pub ledger: Arc<dyn Ledger>,
    /// The data dir: spools, dead letters, job texts.
    pub data_dir: PathBuf,
    /// This daemon.
    pub owner: Owner,
    /// `owner:` was set by hand.
    pub owner_is_explicit: bool,
    /// `--take-over`.
    pub take_over: bool,
    /// `--once`.
    pub once: bool,
    /// Metrics of the process.
    pub metrics: Metrics,
    /// The byte budget of all jobs.
    pub memory: Memory,
}

/// What a path has that no shell takes for something else.
const PLAIN: &str = "/._-+:@";

impl Surroundings {
    /// A text in which every `tidemill checkpoint` command names the data dir, where it is not the default one, and the job,
    /// where the data dir knows several.
    pub fn in_commands(&self, job: &str, text: &str) -> String {
        const COMMAND: &str = "`tidemill checkpoint ";
        let mut named = COMMAND.to_owned();
        if self.data_dir != Path::new(start::DATA_DIR) {
            let dir = self.data_dir.display().to_string();
            let is_plain = dir.chars().all(|c| c.is_alphanumeric() || PLAIN.contains(c));
            let quoted = if is_plain { dir } else { format!("'{}'", dir.replace('\'', r"'\''")) };
            named += &format!("--data-dir {quoted} ");
        }
        if start::job_files(&self.data_dir, None).is_ok_and(|known| known.len() > 1) {
            named += &format!("--job {job} ");
        }
        text.replace(COMMAND, &named)
    }
}

/// One job, opened: nothing is claimed yet and nothing received.
pub struct Job {
    /// The checked file.
    pub config: Arc<config::Job>,
    /// Digest of its text.
    pub digest: Digest,
    /// How it is cut into lanes.
    pub scheme: LaneScheme,
    /// In the order of the file.
    pub sources: Vec<Arc<dyn Source>>,
    /// In the order of the file, then the dead letters, then the ledger where it may be the anchor.
    pub sinks: Vec<SinkSlot>,
    /// What marked sinks refuse: read like shards, after all sources.
    pub rejects: Vec<rejects::SinkRejects>,
    /// Tables that the steps join.
    pub lookups: lookups::Lookups,
    /// The sink that an origin names as the anchor.
    pub anchor: SinkId,
    /// The daemon around it.
    pub around: Surroundings,
    /// What the outside sees.
    pub status: Status,
    /// Sinks that an operator told to catch up where they could join.
    pub catch_up: BTreeSet<SinkId>,
    /// What sources may keep beside the batches, of the budget of all jobs.
    ahead: Vec<Reserve>,
    /// How large batches may be that had to be cut.
    cuts: cut::Cuts,
}

/// The name that a source's shards have: its old one where it was renamed.
fn shard_name(source: &config::Source) -> String {
    source.formerly.clone().unwrap_or_else(|| source.name.value.clone())
}

/// What a plan names of its job: the text, the files that describe its records, and of the values that the environment puts
/// into it those that decide which rows a sink gets. With others a replay would give other rows.
pub fn digest_of(config: &config::Job) -> Digest {
    let text = digest_of_text(config);
    let files = config.record_codecs().filter_map(|codec| codec.schema_file());
    let files: Vec<_> = files.map(|file| file.content.as_ref().ok().map(|content| Digest::of(content))).collect();
    if files.is_empty() { text } else { Digest::of_json(&(text, files)) }
}

fn digest_of_text(config: &config::Job) -> Digest {
    if !config.text.contains("${") {
        return Digest::of(config.text.as_bytes());
    }
    let deciding = config.sinks.iter().map(|sink| {
        let folders: Vec<_> = match &sink.kind {
            config::SinkKind::Files(files) => files.partition_by.iter().map(|column| column.value.as_str()).collect(),
            config::SinkKind::Kafka(kafka) => {
                let headers = kafka.headers.iter().map(|(_, column)| column);
                let columns = headers.chain(&kafka.key).chain(&kafka.delete_when);
                let value = match &kafka.codec {
                    config::Codec::Bytes(column) => Some(column.as_str()),
                    _ => None,
                };
                columns.map(|column| column.value.as_str()).chain(value).collect()
            }
            _ => Vec::new(),
        };
        (sink.filter.as_ref().map(|filter| filter.value.as_str()), folders)
    });
    Digest::of_json(&(&config.text, deciding.collect::<Vec<_>>()))
}

/// A sink's identity: its old name where it was renamed.
fn sink_id(sink: &config::Sink) -> SinkId {
    SinkId::new(sink.formerly.as_deref().unwrap_or(&sink.name.value))
}

/// A source's config as the connector sees it: under the name that its shards have.
fn for_connector(source: &config::Source) -> config::Source {
    let mut source = source.clone();
    source.name.value = shard_name(&source);
    source
}

impl Job {
    /// Opens sources and sinks. Creates nothing but the job's own folder in the data dir.
    pub async fn open(config: Arc<config::Job>, around: Surroundings, status: Status) -> anyhow::Result<Self> {
        let mut job = Self::open_sinks(config, around, status)?;
        for source in &job.config.sources {
            let wanted = if source::reads_ahead(&source.kind) { job.config.batch.max_bytes } else { 0 };
            let (ahead_bytes, part) = job.around.memory.reserve(wanted);
            job.ahead.extend(part);
            let settings = source::Settings {
                partitioned: job.scheme == LaneScheme::Partition,
                spool: job.spool(source),
                owner: job.around.owner.name.clone(),
                job: job.config.name.clone(),
                ahead_bytes,
                trigger: job.config.trigger.interval(),
            };
            job.sources.push(source::open(&for_connector(source), &settings)?);
        }
        Ok(job)
    }

    /// Opens the sinks alone: enough to look at marks and to set positions, also where a source is in use by a job that
    /// runs, or is what keeps the job from opening.
    pub fn open_sinks(config: Arc<config::Job>, around: Surroundings, status: Status) -> anyhow::Result<Self> {
        let digest = digest_of(&config);
        let folder = around.data_dir.join(&config.name);
        let scheme = scheme::of(&config);
        let mut sinks = Vec::new();
        for sink in &config.sinks {
            sinks.push(SinkSlot {
                name: sink.name.value.clone(),
                role: Role::Rows,
                sink: sink::open(sink_id(sink), &config.name, &sink.kind)?,
            });
        }
        sinks.push(SinkSlot {
            name: DEAD_LETTERS.into(),
            role: Role::DeadLetters,
            sink: match &config.dead_letters {
                Some(sink) => sink::open(SinkId::new(DEAD_LETTERS), &config.name, &sink.kind)?,
                None => {
                    let id = SinkId::local(DEAD_LETTERS, around.owner.data_dir);
                    sink::open(id, &config.name, &default_dead_letters(&folder))?
                }
            },
        });
        let ledger: Arc<dyn Sink> = Arc::new(LedgerSink::open(&config.name, around.ledger.clone()));
        let anchor = choose_anchor(&config, &sinks).unwrap_or_else(SinkId::ledger);
        let named = around.ledger.lanes().map_err(|error| anyhow::anyhow!("reading the ledger: {error}"))?;
        let mut ledger_has_marks = false;
        for (job, lane) in named.iter().filter(|(job, _)| *job == config.name) {
            ledger_has_marks |= around.ledger.held(job, lane).is_ok_and(|held| held.mark.is_some());
        }
        if anchor == SinkId::ledger() || ledger_has_marks {
            sinks.push(SinkSlot { name: "(ledger)".into(), role: Role::Ledger, sink: ledger });
        }
        let sources = Vec::new();
        let rows = sinks.iter().filter(|slot| slot.role != Role::Ledger);
        let spooled = |source: &config::Source| matches!(source.kind, config::SourceKind::Socket(_));
        let named: Vec<_> = config.sources.iter().map(|source| (shard_name(source), spooled(source))).collect();
        around.metrics.begin(&config.name, &named, &rows.map(|slot| slot.name.as_str()).collect::<Vec<_>>());
        let refusing = sinks.iter().filter(|slot| slot.role != Role::Ledger && slot.is_marked());
        let rejects = refusing.map(rejects::SinkRejects::new).collect();
        let lookups = lookups::Lookups::open(&config, folder.join("lookups"), scheme, &around)?;
        Ok(Self {
            rejects,
            digest,
            scheme,
            sources,
            sinks,
            lookups,
            anchor,
            around,
            status,
            config,
            catch_up: BTreeSet::new(),
            ahead: Vec::new(),
            cuts: cut::Cuts::default(),
        })
    }

    /// Where a source keeps what cannot be read again.
    pub fn spool(&self, source: &config::Source) -> PathBuf {
        self.folder().join("spool").join(shard_name(source))
    }

    /// The job's name.
    pub fn name(&self) -> &str {
        &self.config.name
    }
    /// Marked sinks, by id.
    pub fn marked(&self) -> impl Iterator<Item = &SinkSlot> {
        self.sinks.iter().filter(|slot| slot.is_marked())
    }
    /// The sink of this id.
    pub fn sink(&self, id: &SinkId) -> Option<&SinkSlot> {
        self.sinks.iter().find(|slot| slot.id() == id)
    }
    /// The folder of the job in the data dir.
    pub fn folder(&self) -> PathBuf {
        self.around.data_dir.join(self.name())
    }
    /// The part of `positions` that belongs to one source.
    pub fn positions_of(&self, source: &dyn Source, positions: &Positions) -> Positions {
        positions
            .iter()
            .filter(|(shard, _)| shard.source() == source.name())
            .map(|(s, p)| (s.clone(), p.clone()))
            .collect()
    }
    /// Whether every source can be read again.
    pub fn rereadable(&self) -> bool {
        self.sources.iter().all(|source| source.rereadable())
    }

    /// Keeps the job's text under its digest, synced: a plan names it, and a replay after an edit needs it.
    pub fn keep_text(&self) -> std::io::Result<()> {
        self.keep_place()?;
        let folder = self.folder().join("texts");
        let path = folder.join(format!("{}.yaml", self.digest));
        if std::fs::read(&path).is_ok_and(|text| text == self.config.text.as_bytes()) {
            return Ok(());
        }
        std::fs::create_dir_all(&folder)?;
        let temporary = folder.join(format!(".{}.tmp", self.digest));
        std::fs::write(&temporary, &self.config.text)?;
        std::fs::File::open(&temporary)?.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        sync_folder(&folder)?;
        sync_folder(&self.folder())?;
        sync_folder(&self.around.data_dir)
    }

    /// Keeps where the job's file is, so that `tidemill checkpoint --job NAME` finds it.
    fn keep_place(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(self.folder())?;
        let file = self.config.file.canonicalize().unwrap_or_else(|_| self.config.file.clone());
        std::fs::write(self.folder().join(JOB_FILE), file.as_os_str().as_encoded_bytes())
    }

    /// The text of another version of this job, where it was kept.
    pub fn kept_text(&self, digest: &Digest) -> Option<String> {
        std::fs::read_to_string(self.folder().join("texts").join(format!("{digest}.yaml"))).ok()
    }
}

/// Makes a folder's entries durable.
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

/// Files in the data dir.
fn default_dead_letters(folder: &Path) -> config::SinkKind {
    config::SinkKind::Files(config::Files {
        path: folder.join("dead-letters"),
        codec: config::Codec::Json,
        compression: config::Compression::None,
        partition_by: Vec::new(),
        roll: None,
    })
}

/// Which kind of marked sink is the anchor before which: SQL before files before Kafka.
pub fn anchor_rank(kind: &config::SinkKind) -> u8 {
    match kind {
        config::SinkKind::Sqlite { .. } | config::SinkKind::Mysql(_) | config::SinkKind::Postgres(_) => 0,
        config::SinkKind::Files(_) => 1,
        _ => 2,
    }
}

/// The first by rank, in the order of the file; local sinks never.
fn choose_anchor(config: &config::Job, sinks: &[SinkSlot]) -> Option<SinkId> {
    let rank = |slot: &SinkSlot| {
        let kind = match slot.role {
            Role::DeadLetters => config.dead_letters.as_ref().map(|sink| &sink.kind),
            _ => config.sinks.iter().find(|sink| sink.name.value == slot.name).map(|sink| &sink.kind),
        };
        (slot.role == Role::DeadLetters, kind.map_or(u8::MAX, anchor_rank))
    };
    let mut candidates: Vec<_> = sinks.iter().filter(|slot| slot.is_marked() && !slot.id().is_local()).collect();
    candidates.sort_by_key(|slot| rank(slot));
    candidates.first().map(|slot| slot.id().clone())
}

/// A sink's name for people: `db`, `dead-letters`.
pub fn describe(positions: &Positions) -> String {
    let parts: Vec<_> = positions.iter().map(|(shard, position)| format!("{shard} at {position}")).collect();
    if parts.is_empty() { "nothing".into() } else { parts.join(", ") }
}
