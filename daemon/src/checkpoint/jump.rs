//! The ways out of a stop that set positions: a plan of kind `jump`, without rows. A crash in it is replayed like any
//! plan.
//!
//! A jump says of every sink what becomes of it: it joins at the new head, it catches up, or it stays as it is, with the
//! stop that it was. So where two sinks do not fit, each is resolved by a command of its own.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use tidemill_checkpoint::{
    Digest, Entry, Generation, Lane, LaneKey, LogName, LogState, Mark, Position, Positions, ShardId, SinkId, Timestamp,
    Touch,
    next::{self, Content, Place, Step, Writer},
    position::{Standing, standing},
};
use tidemill_config as config;
use tidemill_connectors::source::{self, Found, History};

use super::{Operation, id_of};
use crate::job::{
    Job, describe, for_connector,
    lane::{self, Owned},
    quoted, rejects, sync_folder,
    unread::Unread,
};

/// What each marked sink holds of a lane.
pub type Marks = BTreeMap<SinkId, Option<Mark>>;

/// A jump that may be committed.
pub struct Planned {
    /// Where the lane stands now.
    pub head: Mark,
    /// Where it stands then.
    pub to: Positions,
    /// What becomes of each sink.
    pub places: BTreeMap<SinkId, Place>,
    /// The plan.
    pub step: Step,
    carried: Vec<Entry>,
    lost: Vec<String>,
    holds: BTreeMap<SinkId, Option<Digest>>,
}

impl Planned {
    /// Whether a sink has all that the head says it has.
    pub fn is_at_head(&self, sink: &SinkId) -> bool {
        self.holds.get(sink).copied().flatten().is_some_and(|holds| self.head.gives(sink) == Some(Some(holds)))
    }
}

/// Plans the jump on these marks; an error where it cannot be, or names what does not exist. Changes nothing.
pub async fn plan(
    job: &Job,
    lane: &Lane,
    marks: &Marks,
    keys: Option<&BTreeMap<SinkId, LaneKey>>,
    operation: &Operation,
) -> anyhow::Result<Planned> {
    let anchor = anchor_of(job, marks, operation)?;
    let head = marks.get(&anchor).cloned().flatten().with_context(|| {
        let holding: Vec<_> = marks.iter().filter(|(_, mark)| mark.is_some()).map(|(id, _)| id.name()).collect();
        let ways: Vec<_> =
            holding.iter().map(|name| format!("`tidemill checkpoint resolve --anchor {name}`")).collect();
        format!("the anchor {anchor} holds no mark; to name another sink as the anchor: {}", ways.join(" or "))
    })?;
    let closed = job.around.ledger.closed(job.name(), lane)?.filter(|closed| closed.origin == head.origin);
    let unread = Unread::load(job, lane).filter(|unread| unread.parent == head.digest);
    let mut to = target(job, operation, &head, closed.as_ref())?;
    let unread = unread.filter(|unread| unread.is_left_out_by(&to));
    check(job, lane, operation, &head, &to, unread.as_ref()).await?;
    let logs = Logs::of(job, lane, marks, &anchor, &head).await?;
    to.extend(logs.moved(&to));
    let places = places(job, marks, operation, &anchor, &head, &to)?;
    let newest = marks.values().flatten().chain(&closed).map(|mark| mark.plan.seq).max().unwrap_or_default();
    let mut entries = logs.texts();
    entries.extend(unread.map(|unread| unread.entries).unwrap_or_default());
    let content = Content {
        clock: job.around.clock.read().time,
        sets_clock: *operation == Operation::Clock,
        job: Some(job.digest),
        entries,
        prune: logs.pruned(),
        ..Content::default()
    };
    let writer = match keys {
        Some(keys) => {
            let key = keys.get(&anchor).context("the anchor was not claimed")?;
            Writer { generation: key.generation, owner: &key.owner }
        }
        // Nothing is written by it.
        None => Writer { generation: Generation::default(), owner: &job.around.owner },
    };
    let step = next::jump(&head, newest, &anchor, &places, to.clone(), &format!("{operation:?}"), content, writer)?;
    let lost = logs.lost();
    let mut carried = logs.carried;
    if !carried.is_empty() {
        carried.extend(step.entries.iter().cloned());
    }
    let holds = marks.iter().map(|(id, mark)| (id.clone(), mark.as_ref().map(|mark| mark.digest))).collect();
    Ok(Planned { head, to, places, step, carried, lost, holds })
}

/// Commits the jump; says where the lane stands then.
pub async fn jump(job: &Job, lane: &Lane, owned: &Owned, operation: &Operation) -> anyhow::Result<String> {
    let planned = plan(job, lane, &owned.marks, Some(&owned.keys), operation).await?;
    job.commit_marks(&planned.step, &owned.keys, &planned.carried).await?;
    if let Operation::DropShard(name) = operation {
        put_spool_aside(job, &known_shard(&planned.head, name)?)?;
    }
    if *operation == Operation::Clock {
        let (from, to) = (planned.head.plan.planned_at, planned.step.plan().planned_at);
        return Ok(format!(
            "lane {lane} goes on from the machine's clock, {}; its last batch had {}",
            time(to),
            time(from)
        ));
    }
    let again: String = planned.lost.iter().map(|lost| format!("; {lost}")).collect();
    Ok(format!("lane {lane} stands at {} (batch {}){again}", describe(&planned.to), planned.step.plan().seq))
}

/// A time for people, in UTC.
fn time(time: Timestamp) -> String {
    chrono::DateTime::from_timestamp_millis(time.0).map_or_else(|| format!("{} ms", time.0), |time| time.to_string())
}

/// The sink that commits the jump first.
fn anchor_of(job: &Job, marks: &Marks, operation: &Operation) -> anyhow::Result<SinkId> {
    if let Operation::Anchor(sink) = operation {
        let id = id_of(job, sink)?;
        if id.is_local() {
            bail!("{sink} lives in this data dir alone and cannot be the anchor: name another sink");
        }
        return Ok(id);
    }
    lane::anchor_of_all(marks).cloned().context("no sink has a mark: the job has not begun")
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
                    bail!(
                        "{} is no position of {shard}, which stands at {now}",
                        if text.is_empty() { "``" } else { text }
                    );
                }
                to.insert(shard, position);
            }
        }
        _ => {}
    }
    Ok(to)
}

/// That the positions which the operator names exist, and that a shard which is given up needs it.
async fn check(
    job: &Job,
    lane: &Lane,
    operation: &Operation,
    head: &Mark,
    to: &Positions,
    unread: Option<&Unread>,
) -> anyhow::Result<()> {
    match operation {
        Operation::DropShard(name) => {
            let shard = known_shard(head, name)?;
            let Some(at) = head.positions.get(&shard) else { return Ok(()) };
            let source = job.source_of(&shard).map(|source| &source.kind);
            match (source, find(job, lane, head, &shard, at).await) {
                (
                    Some(config::SourceKind::Socket(_) | config::SourceKind::Directory(_)),
                    Ok(Found::There { is_end: true }),
                ) => {
                    bail!("nothing waits in shard {shard}, which stands at {at}, its end: there is nothing to give up")
                }
                (Some(config::SourceKind::Kafka(_)), Ok(Found::There { .. })) => bail!(
                    "shard {shard} can be read where it stands, at {at}: there is nothing to give up. To leave records out: \
                     `tidemill checkpoint rewind --to {}`",
                    quoted(&format!("{shard}=POSITION"))
                ),
                // What cannot be read is what the command is for.
                _ => Ok(()),
            }
        }
        Operation::Rewind(_) => {
            let moved = to.iter().filter(|(shard, position)| head.positions.get(*shard) != Some(*position));
            for (shard, position) in
                moved.filter(|(shard, _)| !unread.is_some_and(|unread| unread.to.contains_key(*shard)))
            {
                match find(job, lane, head, shard, position).await? {
                    Found::There { .. } => {}
                    Found::Nowhere(what) | Found::Foreign(what) => {
                        bail!(
                            "shard {shard} cannot be set to {position}: {what}. It stands at {}",
                            head.positions[shard]
                        )
                    }
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What the shard's source has at a position.
async fn find(job: &Job, lane: &Lane, head: &Mark, shard: &ShardId, position: &Position) -> anyhow::Result<Found> {
    let Some(source) = job.source_of(shard) else {
        let now = head.positions.get(shard);
        // Rows that a sink refused: what was numbered is there.
        return Ok(match rejects::sink_of(shard) {
            Some(_) if now.is_some_and(|now| position <= now) => Found::There { is_end: false },
            Some(sink) => Found::Nowhere(format!("sink {sink} has not refused so many rows")),
            None => Found::Foreign("no source of the job has this shard any more".to_owned()),
        });
    };
    let mut history = History { states: head.logs.clone(), ..History::default() };
    if let Some(anchor) = job.sink(head.anchor()) {
        for (log, state) in &head.logs {
            // Without its entries a list still has its ends.
            history.entries.extend(anchor.sink.history(lane, log, state.first).await.unwrap_or_default());
        }
    }
    let settings = job.settings_of(source, 0);
    Ok(source::find(&for_connector(source), &settings, shard, position, &history).await?)
}

fn can_be_read_again(job: &Job, shard: &ShardId) -> bool {
    let source = job.source_of(shard);
    source.is_none_or(|source| !matches!(source.kind, config::SourceKind::Socket(_)))
}

/// The shard of this name: its whole name, or what follows its source's.
fn known_shard(head: &Mark, name: &str) -> anyhow::Result<ShardId> {
    let is_meant = |shard: &&ShardId| shard.as_str() == name || (!name.is_empty() && shard.part() == name);
    let found: Vec<_> = head.positions.keys().filter(is_meant).collect();
    match found.as_slice() {
        [shard] => Ok((*shard).clone()),
        [] => bail!("no shard {name}; the lane has {}", describe(&head.positions)),
        several => {
            let names: Vec<_> = several.iter().map(|shard| shard.as_str()).collect();
            bail!("several shards are called {name}: say which of {}", names.join(", "))
        }
    }
}

/// What becomes of every sink that was claimed.
fn places(
    job: &Job,
    marks: &Marks,
    operation: &Operation,
    anchor: &SinkId,
    head: &Mark,
    to: &Positions,
) -> anyhow::Result<BTreeMap<SinkId, Place>> {
    let mut places = BTreeMap::new();
    for (id, mark) in marks {
        let mark = mark.as_ref();
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
    async fn of(job: &Job, lane: &Lane, marks: &Marks, anchor: &SinkId, head: &Mark) -> anyhow::Result<Self> {
        let mut logs = Self::default();
        if head.anchor() == anchor {
            return Ok(logs);
        }
        let old = job.sink(head.anchor()).filter(|slot| marks.get(slot.id()).is_some_and(Option::is_some));
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

    /// What the new anchor does not know, in words.
    fn lost(&self) -> Vec<String> {
        let describe = |(log, (_, entries)): (&LogName, &(LogState, Vec<Entry>))| {
            let end = entries.last().map_or_else(
                || "not known any more".to_owned(),
                |last| format!("known only as far as the old anchor had it (entry {})", last.number),
            );
            match log.as_str().split_once(':') {
                Some(("files", source)) => format!(
                    "the list of files that source {source} has read, {log}, is {end}: later files will be read again"
                ),
                _ => format!("the log {log} is {end}, and begins anew with that"),
            }
        };
        self.broken.iter().map(describe).collect()
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
    let Some(spool) = job.source_of(shard).map(|source| job.spool(source)) else {
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
