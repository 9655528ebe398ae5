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
pub mod account;
mod acquire;
pub mod batch;
pub mod commit;
pub mod compile;
mod keys;
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
pub mod texts;
pub mod unread;
pub mod window;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tidemill_checkpoint::{Digest, LaneScheme, Ledger, Owner, Positions, ShardId, SinkId};
use tidemill_config as config;
use tidemill_connectors::{
    sink::{self, Guarantee, Sink, ledger::LedgerSink},
    source::{self, Source},
};

use crate::{
    clock::Clock,
    explain,
    memory::{Memory, Reserve},
    metrics::Metrics,
    start,
    status::Status,
};

/// The name under which the dead letters are known as a sink.
pub const DEAD_LETTERS: &str = SinkId::DEAD_LETTERS;

/// In a job's folder in the data dir: the path of its YAML.
pub const JOB_FILE: &str = "job-file";

/// Beside it: the path of the data dir in which it was written.
pub const JOB_PLACE: &str = "data-dir";

/// A dead letter as a message shows it: the step, the place, what is wrong, and the beginning of the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterText(String);

impl LetterText {
    /// Bytes of a detail, and of a record, that a message shows.
    const SHOWN: usize = 200;

    /// Of one reject. Control characters are escaped: a record may hold anything.
    pub fn new(step: &str, at: &str, detail: &str, record: Option<&str>) -> Self {
        let cut = |text: &str| {
            let end = (0..=Self::SHOWN.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            let more = if end < text.len() { "..." } else { "" };
            let mut shown = String::new();
            for c in text[..end].chars() {
                if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
            }
            shown + more
        };
        let record = record.map_or_else(String::new, |record| format!(", in `{}`", cut(record)));
        Self(format!("{} ({step}, at {}){record}", cut(detail), cut(at)))
    }
}

impl std::fmt::Display for LetterText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

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
    /// `--timeout`: how long `--once` waits for a server, or for another owner, that does not let it get on.
    pub once_limit: Duration,
    /// Metrics of the process.
    pub metrics: Metrics,
    /// The byte budget of all jobs.
    pub memory: Memory,
    /// The clock of plans.
    pub clock: Clock,
}

/// What a word has that no shell takes for something else.
const PLAIN: &str = "/._-+:@=,";

/// A word of a command as a shell takes it.
pub fn quoted(word: &str) -> String {
    let is_plain = !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || PLAIN.contains(c));
    if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// Commands of `tidemill checkpoint` that change something, and ask before they do.
const CHANGES: [&str; 4] = ["resolve", "rewind", "forget", "reset"];

impl Surroundings {
    /// The command that starts a job again.
    pub fn restart_command(&self, job: &str) -> String {
        format!("`tidemill restart {} --data-dir {}`", quoted(job), quoted(&self.data_dir.display().to_string()))
    }

    /// A text in which every `tidemill checkpoint` command names the data dir, so that it can be pasted anywhere, and the
    /// job, where the data dir knows several, and one that changes something has the `--yes` without which it only asks.
    pub fn in_commands(&self, job: &str, text: &str) -> String {
        const COMMAND: &str = "`tidemill checkpoint ";
        let mut named = COMMAND.to_owned();
        named += &format!("--data-dir {} ", quoted(&self.data_dir.display().to_string()));
        if start::known_jobs(&self.data_dir).is_ok_and(|known| known.len() > 1) {
            named += &format!("--job {} ", quoted(job));
        }
        let mut parts = text.split(COMMAND);
        let mut whole = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (command, rest) = part.split_once('`').map_or((part, None), |(command, rest)| (command, Some(rest)));
            let mut words = command.split(' ');
            let changes = words.clone().any(|word| CHANGES.contains(&word)) && !words.any(|word| word == "--yes");
            whole += &named;
            whole += command;
            whole += if changes { " --yes" } else { "" };
            if let Some(rest) = rest {
                whole.push('`');
                whole += rest;
            }
        }
        whole
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
    /// What the log says of its batches.
    pub account: account::Account,
    /// Sinks that an operator told to catch up where they could join.
    pub catch_up: BTreeSet<SinkId>,
    /// What sources may keep beside the batches, of the budget of all jobs.
    ahead: Vec<Reserve>,
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
pub fn for_connector(source: &config::Source) -> config::Source {
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
            let settings = job.settings_of(source, ahead_bytes);
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
        let letters = match &config.dead_letters {
            Some(sink) => explain::describe_sink(&config, sink).split(';').next().unwrap_or_default().to_owned(),
            None => folder.join("dead-letters").display().to_string(),
        };
        status.lock().dead_letters = letters.clone();
        for step in &config.steps {
            around.metrics.begin_step(&config.name, &step.name);
        }
        Ok(Self {
            account: account::Account::new(&config.name, letters),
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
        })
    }

    /// Where a source keeps what cannot be read again.
    pub fn spool(&self, source: &config::Source) -> PathBuf {
        self.folder().join("spool").join(shard_name(source))
    }

    /// What a source needs to be opened.
    pub fn settings_of(&self, source: &config::Source, ahead_bytes: usize) -> source::Settings {
        source::Settings {
            partitioned: self.scheme == LaneScheme::Partition,
            spool: self.spool(source),
            owner: self.around.owner.name.clone(),
            job: self.config.name.clone(),
            ahead_bytes,
            trigger: self.config.trigger.interval(),
        }
    }

    /// The source that a shard belongs to, by the name that its shards have.
    pub fn source_of(&self, shard: &ShardId) -> Option<&config::Source> {
        self.config.sources.iter().find(|source| shard_name(source) == shard.source())
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
        texts::keep(&folder, &self.digest, &self.config.text)?;
        texts::prune(&folder, &self.needed_texts())?;
        sync_folder(&self.folder())?;
        sync_folder(&self.around.data_dir)
    }

    /// The texts of the job as it is, and of the batches that the ledger knows.
    fn needed_texts(&self) -> BTreeSet<Digest> {
        let ledger = &self.around.ledger;
        let lanes = ledger.lanes().unwrap_or_default().into_iter().filter(|(job, _)| job == self.name());
        let marks = lanes.filter_map(|(job, lane)| ledger.closed(&job, &lane).ok().flatten());
        marks.map(|mark| mark.plan.job).chain([self.digest]).collect()
    }

    /// Keeps where the job's file is, so that `tidemill checkpoint --job NAME` finds it, and for which data dir that is true:
    /// a copy of this one is another. In this order: a crash in between leaves a pair that is not believed.
    fn keep_place(&self) -> std::io::Result<()> {
        texts::keep_private(&self.folder())?;
        let data_dir = self.around.data_dir.canonicalize().unwrap_or_else(|_| self.around.data_dir.clone());
        let file = config::paths::of_file(&self.config.file);
        std::fs::write(self.folder().join(JOB_FILE), file.as_os_str().as_encoded_bytes())?;
        std::fs::write(self.folder().join(JOB_PLACE), data_dir.as_os_str().as_encoded_bytes())
    }

    /// The text of another version of this job, where it was kept.
    pub fn kept_text(&self, digest: &Digest) -> Option<String> {
        texts::kept(&self.folder().join("texts"), digest)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn around(data_dir: &Path) -> Surroundings {
        let settings = start::Settings {
            data_dir: data_dir.to_owned(),
            owner: None,
            memory: 1 << 26,
            take_over: false,
            once: false,
            once_limit: start::ONCE_LIMIT,
        };
        start::open(settings).unwrap()
    }

    #[test]
    fn commands_in_messages_have_all_that_is_needed_to_be_pasted() {
        let folder = tempfile::tempdir().unwrap();
        let around = around(&folder.path().join("a dir"));
        let dir = format!("'{}'", folder.path().join("a dir").display());
        for (text, expected) in [
            ("`tidemill checkpoint show`", format!("`tidemill checkpoint --data-dir {dir} show`")),
            (
                "or `tidemill checkpoint --lane t/0 rewind --to s=1` (so), `tidemill checkpoint forget` and `more`",
                format!(
                    "or `tidemill checkpoint --data-dir {dir} --lane t/0 rewind --to s=1 --yes` (so), `tidemill checkpoint \
                     --data-dir {dir} forget --yes` and `more`"
                ),
            ),
            (
                "`tidemill checkpoint reset --sinks --yes`",
                format!("`tidemill checkpoint --data-dir {dir} reset --sinks --yes`"),
            ),
            ("`tidemill checkpoint` cannot reach it", "`tidemill checkpoint` cannot reach it".to_owned()),
            ("no command", "no command".to_owned()),
        ] {
            assert_eq!(around.in_commands("job", text), expected);
        }
        assert_eq!(around.restart_command("job"), format!("`tidemill restart job --data-dir {dir}`"));
    }

    #[test]
    fn words_are_quoted_as_a_shell_takes_them() {
        for (word, quoted_word) in
            [("in=1:0", "in=1:0"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("", "''"), ("$x;", "'$x;'")]
        {
            assert_eq!(quoted(word), quoted_word);
        }
    }

    #[test]
    fn an_example_of_a_reject_is_short_and_has_no_control_characters() {
        let long = "x".repeat(1000) + "\u{e9}";
        let text = LetterText::new("decode", "in 0:7", "not\nJSON", Some(&long)).to_string();
        assert!(text.starts_with(r"not\nJSON (decode, at in 0:7), in `xxx"), "{text}");
        assert!(text.ends_with("x...`") && text.len() < 300, "{text}");
        let text = LetterText::new("s", "", "d", Some("\u{1b}[31m\u{e4}")).to_string();
        assert_eq!(text, "d (s, at ), in `\\u{1b}[31m\u{e4}`");
    }
}
