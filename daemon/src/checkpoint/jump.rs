//! The ways out of a stop that set positions: a plan of kind `jump`, without rows. A crash in it is replayed like any
//! plan.
//!
//! A jump says of every sink what becomes of it: it joins at the new head, it catches up, or it stays as it is, with the
//! stop that it was. So where two sinks do not fit, each is resolved by a command of its own.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use tidemill_checkpoint::{
    Entry, Lane, LogName, LogState, Mark, Position, Positions, ShardId, SinkId, Timestamp, Touch,
    next::{self, Content, Place, Writer},
    position::{Standing, standing},
};
use tidemill_config as config;

use super::{Operation, id_of};
use crate::job::{Job, describe, lane::Owned, sync_folder};

/// Commits the jump; says where the lane stands then.
pub async fn jump(job: &Job, lane: &Lane, owned: &Owned, operation: &Operation) -> anyhow::Result<String> {
    let anchor = anchor_of(job, owned, operation)?;
    let head = owned.marks.get(&anchor).cloned().flatten().with_context(|| {
        format!("the anchor {anchor} holds no mark; `tidemill checkpoint resolve --anchor S` names another sink as the anchor")
    })?;
    let closed = job.around.ledger.closed(job.name(), lane)?.filter(|closed| closed.origin == head.origin);
    let mut to = target(job, operation, &head, closed.as_ref())?;
    let logs = Logs::of(job, lane, owned, &anchor, &head).await?;
    to.extend(logs.moved(&to));
    let places = places(job, owned, operation, &anchor, &head, &to)?;
    let newest = owned.marks.values().flatten().chain(&closed).map(|mark| mark.plan.seq).max().unwrap_or_default();
    let key = owned.keys.get(&anchor).context("the anchor was not claimed")?;
    let content = Content {
        clock: job.around.clock.read().time,
        sets_clock: *operation == Operation::Clock,
        job: Some(job.digest),
        entries: logs.texts(),
        prune: logs.pruned(),
        ..Content::default()
    };
    let writer = Writer { generation: key.generation, owner: &key.owner };
    let step = next::jump(&head, newest, &anchor, &places, to.clone(), &format!("{operation:?}"), content, writer)?;
    let mut carried = logs.carried;
    if !carried.is_empty() {
        carried.extend(step.entries.iter().cloned());
    }
    job.commit_marks(&step, &owned.keys, &carried).await?;
    if let Operation::DropShard(name) = operation {
        put_spool_aside(job, &known_shard(&head, name)?)?;
    }
    if *operation == Operation::Clock {
        let (from, to) = (head.plan.planned_at, step.plan().planned_at);
        return Ok(format!(
            "lane {lane} goes on from the machine's clock, {}; its last batch had {}",
            time(to),
            time(from)
        ));
    }
    let lost: Vec<_> = logs.broken.keys().map(LogName::as_str).collect();
    let again = match lost.as_slice() {
        [] => String::new(),
        _ => format!("; of {} the old anchor's part is all that is known, the rest begins anew", lost.join(", ")),
    };
    Ok(format!("lane {lane} stands at {} (batch {}){again}", describe(&to), step.plan().seq))
}

/// A time for people, in UTC.
fn time(time: Timestamp) -> String {
    chrono::DateTime::from_timestamp_millis(time.0).map_or_else(|| format!("{} ms", time.0), |time| time.to_string())
}

/// The sink that commits the jump first.
fn anchor_of(job: &Job, owned: &Owned, operation: &Operation) -> anyhow::Result<SinkId> {
    if let Operation::Anchor(sink) = operation {
        let id = id_of(job, sink)?;
        if id.is_local() {
            bail!("{sink} lives in this data dir alone and cannot be the anchor: name another sink");
        }
        return Ok(id);
    }
    owned.anchor().cloned().context("no sink has a mark: the job has not begun")
}

/// Where the shards stand afterwards.
fn target(job: &Job, operation: &Operation, head: &Mark, closed: Option<&Mark>) -> anyhow::Result<Positions> {
    let mut to = head.positions.clone();
    match operation {
        // The anchor went back and its sources cannot: they go on where the ledger closed them, the others are read again.
        Operation::JoinSink(sink) if id_of(job, sink)? == *head.anchor() => {
            let ahead = closed.filter(|closed| closed.plan.seq > head.plan.seq);
            let ahead = ahead.into_iter().flat_map(|closed| &closed.positions);
            let gone = ahead.filter(|(shard, _)| !can_be_read_again(job, shard));
            to.extend(gone.map(|(shard, position)| (shard.clone(), position.clone())));
        }
        Operation::DropShard(name) => {
            let shard = known_shard(head, name)?;
            match to.get(&shard).and_then(Position::as_pair) {
                // A list of files: the one that cannot be read is left out.
                Some((file, _)) => to.insert(shard, Position::pair(file + 1, 0)),
                None => to.remove(&shard),
            };
        }
        Operation::Rewind(positions) => {
            for (name, text) in positions {
                let (shard, position) = (known_shard(head, name)?, Position::text(text));
                let now = to.get(&shard).context("a known shard has a position")?;
                let alike = |kind: fn(&Position) -> bool| kind(now) == kind(&position);
                if !alike(|p| p.as_pair().is_some()) || !alike(|p| p.as_number().is_some()) {
                    bail!("{text} is no position of {shard}, which stands at {now}");
                }
                to.insert(shard, position);
            }
        }
        _ => {}
    }
    Ok(to)
}

fn can_be_read_again(job: &Job, shard: &ShardId) -> bool {
    let source = job.config.sources.iter().find(|source| job.spool(source).ends_with(shard.source()));
    source.is_none_or(|source| !matches!(source.kind, config::SourceKind::Socket(_)))
}

fn known_shard(head: &Mark, name: &str) -> anyhow::Result<ShardId> {
    let found = head.positions.keys().find(|shard| shard.as_str() == name || shard.part() == name);
    found.cloned().with_context(|| format!("no shard {name}; the lane has {}", describe(&head.positions)))
}

/// What becomes of every sink that was claimed.
fn places(
    job: &Job,
    owned: &Owned,
    operation: &Operation,
    anchor: &SinkId,
    head: &Mark,
    to: &Positions,
) -> anyhow::Result<BTreeMap<SinkId, Place>> {
    let mut places = BTreeMap::new();
    for id in owned.keys.keys() {
        let mark = owned.marks.get(id).and_then(Option::as_ref);
        let holds = mark.map(|mark| mark.digest);
        let told = match operation {
            Operation::JoinSink(sink) => id_of(job, sink)? == *id,
            Operation::Anchor(_) => head.anchor() == id,
            _ => false,
        };
        let place = if id == anchor || told {
            if matches!(operation, Operation::CatchUp(sink) if id_of(job, sink)? == *id) {
                bail!("{} is the anchor: what it holds is the head, and nothing is beyond it", id.name());
            }
            Some(Place::Join(holds))
        } else if matches!(operation, Operation::CatchUp(sink) if id_of(job, sink)? == *id) {
            if id.is_local() {
                bail!("{} lives in this data dir alone and is not brought to the head: --join it", id.name());
            }
            Some(Place::CatchUp)
        } else if matches!(operation, Operation::Rewind(_) | Operation::DropShard(_) | Operation::Clock) {
            // What a ledger holds that is not the anchor any more matters to nobody.
            if *id != SinkId::ledger() && head.gives(id).is_some_and(|given| given != holds) {
                bail!(
                    "{} lacks the head's batch {}: `tidemill checkpoint resolve --sink {} --accept-loss` lets it do without, \
                     then this command goes through",
                    id.name(),
                    head.plan.seq,
                    id.name()
                );
            }
            Some(Place::Join(holds))
        } else {
            other(head, to, id, mark, matches!(operation, Operation::Anchor(_)))
        };
        places.extend(place.map(|place| (id.clone(), place)));
    }
    Ok(places)
}

/// What becomes of a sink that the operator did not speak of. `None`: the head does not list it, and still will not.
fn other(head: &Mark, to: &Positions, id: &SinkId, mark: Option<&Mark>, new_anchor: bool) -> Option<Place> {
    let (given, holds) = (head.gives(id), mark.map(|mark| mark.digest));
    let lacks_head =
        matches!(head.plan.touches.get(id), Some(Touch::Joined { before, touched: true }) if *before == holds);
    if matches!(head.plan.touches.get(id), Some(Touch::CatchingUp)) {
        return Some(Place::CatchUp);
    }
    let Some(mark) = mark else {
        // A sink that holds nothing and should is left as it is; any other is new.
        let emptied = matches!(given, Some(Some(_))) && !lacks_head;
        return Some(if emptied { Place::Stay(given.flatten()) } else { Place::Join(None) });
    };
    if given == Some(holds) {
        return Some(Place::Join(holds));
    }
    match (mark.origin == head.origin).then(|| standing(&mark.positions, to)) {
        Some(Standing::Equal) => Some(Place::Join(holds)),
        Some(Standing::Behind) if given.is_none() && id.is_local() => Some(Place::Join(holds)),
        Some(Standing::Behind) if given.is_none() || lacks_head => Some(Place::CatchUp),
        Some(Standing::Beyond) if new_anchor => Some(Place::Join(holds)),
        _ => given.map(Place::Stay),
    }
}

/// The logs of the old anchor, for a new one.
#[derive(Default)]
struct Logs {
    /// Entries of logs that the old anchor has whole: they go along as they are.
    carried: Vec<Entry>,
    /// The others, with what the old anchor has of them: they are begun anew with that.
    broken: BTreeMap<LogName, (LogState, Vec<Entry>)>,
}

impl Logs {
    async fn of(job: &Job, lane: &Lane, owned: &Owned, anchor: &SinkId, head: &Mark) -> anyhow::Result<Self> {
        let mut logs = Self::default();
        if head.anchor() == anchor {
            return Ok(logs);
        }
        let old = job.sink(head.anchor()).filter(|slot| owned.marks.get(slot.id()).is_some_and(Option::is_some));
        for (log, state) in &head.logs {
            let mut entries = match old {
                Some(old) => old.sink.history(lane, log, state.first).await?,
                None => Vec::new(),
            };
            entries.retain(|entry| entry.number < state.next);
            if entries.iter().map(|entry| entry.number).eq(state.first..state.next) {
                logs.carried.extend(entries);
            } else {
                logs.broken.insert(log.clone(), (state.clone(), entries));
            }
        }
        Ok(logs)
    }

    fn texts(&self) -> BTreeMap<LogName, Vec<String>> {
        let texts = |entries: &[Entry]| entries.iter().map(|entry| entry.text.clone()).collect();
        self.broken.iter().map(|(log, (_, entries))| (log.clone(), texts(entries))).collect()
    }

    fn pruned(&self) -> BTreeMap<LogName, u64> {
        self.broken.iter().map(|(log, (state, _))| (log.clone(), state.next)).collect()
    }

    /// A directory's position counts the entries of its list: where that begins anew, so does the position.
    fn moved(&self, at: &Positions) -> Positions {
        let moved = |(shard, position): (&ShardId, &Position)| {
            let (state, entries) = self.broken.get(&LogName::new(&format!("files:{shard}")))?;
            let (file, offset) = position.as_pair()?;
            let index = entries.iter().position(|entry| entry.number == file);
            let now = match index {
                Some(index) => (state.next + index as u64, offset),
                None => (state.next + entries.len() as u64, 0),
            };
            Some((shard.clone(), Position::pair(now.0, now.1)))
        };
        at.iter().filter_map(moved).collect()
    }
}

/// The spool of a shard that was given up is kept for a person to look at; the source begins another.
fn put_spool_aside(job: &Job, shard: &ShardId) -> anyhow::Result<()> {
    let Some(spool) =
        job.config.sources.iter().map(|source| job.spool(source)).find(|dir| dir.ends_with(shard.source()))
    else {
        return Ok(());
    };
    let is_its = std::fs::read_to_string(spool.join("id")).is_ok_and(|id| id.trim_end().ends_with(shard.part()));
    if shard.part().is_empty() || !is_its {
        return Ok(());
    }
    let aside = spool.with_file_name(format!(".{}.{}", shard.source(), shard.part()));
    std::fs::rename(&spool, &aside)
        .and_then(|()| aside.parent().map_or(Ok(()), sync_folder))
        .with_context(|| format!("putting {} aside as {}", spool.display(), aside.display()))
}
