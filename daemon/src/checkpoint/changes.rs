//! What a command will change, before it does: the data dir, the job's file, lanes, shards and sinks, by absolute paths. An
//! operator who is in the wrong folder, or has named the wrong lane, sees it here.

use std::path::{Path, PathBuf};

use tidemill_checkpoint::{Lane, Position, ShardId, SinkId, next::Place};
use tidemill_config as config;

use super::jump::Planned;
use crate::{
    explain,
    job::{DEAD_LETTERS, Job, Surroundings},
};

/// A list of what is changed: a word and a sentence each.
pub struct Changes(Vec<(String, String)>);

impl Changes {
    /// Of a job in this data dir.
    pub fn of(config: &config::Job, around: &Surroundings) -> Self {
        let (data_dir, file) = (absolute(&around.data_dir), absolute(&config.file));
        Self(vec![
            ("data dir".into(), data_dir.display().to_string()),
            ("job".into(), format!("{}, {}", config.name, file.display())),
        ])
    }

    /// One more line.
    pub fn add(&mut self, what: impl Into<String>, how: impl Into<String>) {
        self.0.push((what.into(), how.into()));
    }

    /// The lanes that are changed.
    pub fn lanes<'l>(&mut self, lanes: impl IntoIterator<Item = &'l Lane>) {
        let lanes: Vec<_> = lanes.into_iter().map(Lane::as_str).collect();
        self.add(if lanes.len() == 1 { "lane" } else { "lanes" }, lanes.join(", "));
    }

    /// What a jump makes of each shard and each sink.
    pub fn jump(&mut self, job: &Job, planned: &Planned) {
        let before = &planned.head.positions;
        for (shard, from) in before {
            self.add(format!("shard {shard}"), shard_change(job, shard, from, planned.to.get(shard)));
        }
        for (shard, to) in planned.to.iter().filter(|(shard, _)| !before.contains_key(*shard)) {
            self.add(format!("shard {shard}"), format!("begins at {to}"));
        }
        for (id, place) in &planned.places {
            let what = sink_change(place, planned, id);
            self.add(format!("sink {}", id.name()), format!("{}: {what}", place_of(job, id)));
        }
    }

    /// As lines, the words below each other.
    pub fn lines(&self) -> Vec<String> {
        let width = self.0.iter().map(|(what, _)| what.chars().count()).max().unwrap_or_default();
        self.0.iter().map(|(what, how)| format!("{what:<width$}  {how}")).collect()
    }
}

fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

/// Where a sink of the job writes, as far as it may be shown.
pub fn place_of(job: &Job, id: &SinkId) -> String {
    if *id == SinkId::ledger() {
        return format!("the ledger in {}", absolute(&job.around.data_dir).display());
    }
    if id.is_local() {
        return format!("files in {}", absolute(&job.folder().join("dead-letters")).display());
    }
    let name = job.sink(id).map_or_else(|| id.name(), |slot| &slot.name);
    let given = match (&job.config.dead_letters, name) {
        (Some(sink), DEAD_LETTERS) => Some(sink),
        _ => job.config.sinks.iter().find(|sink| sink.name.value == name),
    };
    given.map_or_else(|| id.to_string(), |sink| place(&job.config, sink))
}

fn place(job: &config::Job, sink: &config::Sink) -> String {
    let shown = |key: &str, value: String| job.shown(&format!("{}.{key}", sink.name.at.path), value);
    let path = |path: &Path| shown("path", absolute(path).display().to_string());
    match &sink.kind {
        config::SinkKind::Files(files) => format!("files in {}", path(&files.path)),
        config::SinkKind::Sqlite { path: file, table, .. } => {
            format!("table {} of {}", shown("table", table.clone()), path(file))
        }
        _ => explain::describe_sink(job, sink).split(';').next().unwrap_or_default().to_owned(),
    }
}

fn shard_change(job: &Job, shard: &ShardId, from: &Position, to: Option<&Position>) -> String {
    let Some(to) = to else {
        let source = job.source_of(shard).map(|source| &source.kind);
        return match source {
            Some(config::SourceKind::Socket(_)) => format!(
                "stands at {from}; it is given up: records that no sink has yet are lost, and what is left of its spool is \
                 put aside"
            ),
            Some(config::SourceKind::Kafka(_)) => {
                format!("stands at {from}; it goes on with the oldest record that is there")
            }
            _ => format!("stands at {from}; it is given up, and begins anew where its source says"),
        };
    };
    match to.cmp(from) {
        std::cmp::Ordering::Equal => format!("stays at {from}"),
        std::cmp::Ordering::Less => format!(
            "from {from} back to {to}, which is older: what lies between is read again, and sinks that append will hold it twice"
        ),
        std::cmp::Ordering::Greater => {
            format!("from {from} forward to {to}, which is newer: what lies between is skipped, and never read")
        }
    }
}

fn sink_change(place: &Place, planned: &Planned, id: &SinkId) -> String {
    let was = planned.head.anchor();
    match place {
        Place::Join(_) if planned.step.plan().anchor == *id && was != id => {
            "is the anchor from now on; its mark is the head".to_owned()
        }
        Place::Join(holds) => {
            let lacks = planned.head.gives(id).is_some_and(|given| given != *holds);
            match lacks {
                true => "goes on at the head: gets a mark, and not the rows that it lacks".to_owned(),
                false => "gets a mark with the positions above; its rows stay".to_owned(),
            }
        }
        Place::CatchUp => "is brought to the head: what it lacks is written to it, by batches of its own".to_owned(),
        Place::Stay(_) => "stays as it is, and so does what is wrong with it".to_owned(),
    }
}
