//! `tidemill checkpoint`: looking at the ledger and the marks, and the ways out of a stop.
//!
//! An operation runs where the ledger is open: in the daemon, which stops the job for it (through the control socket), or
//! in the command itself, where no daemon has the data dir.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidemill_checkpoint::{
    Entry, Lane, Mark, Position, Positions, ShardId, SinkId, Timestamp,
    next::{self, Content, Place, Writer},
};
use tidemill_config as config;

use crate::{
    job::{
        Job, Surroundings, describe,
        lane::{AtOnce, Owned},
        runner::Runner,
    },
    status::Status,
};

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Generations, marks and positions of every lane, in every sink.
    Show,
    /// One sink goes on from the head, whatever it lacks or holds twice.
    JoinSink(String),
    /// One sink is brought to the head by batches of its own.
    CatchUp(String),
    /// This sink's mark is the head from now on.
    Anchor(String),
    /// This shard is left where it can be read again.
    DropShard(String),
    /// Shards are set to positions; sinks get what lies between once more, or never.
    Rewind(Vec<(String, String)>),
    /// The ledger forgets the job.
    Forget,
    /// Every sink forgets its marks: the job starts over.
    Reset,
}

/// An operation on one lane of one job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// The job's name.
    pub job: String,
    /// The lane.
    pub lane: String,
    /// What to do.
    pub operation: Operation,
    /// Claim the lane even where another owner holds it.
    pub take_over: bool,
}

/// Does it. The answer is JSON for `show`, else one sentence under `done`.
pub async fn execute(
    request: &Request,
    config: Arc<config::Job>,
    around: &Surroundings,
) -> anyhow::Result<serde_json::Value> {
    let around = Surroundings { take_over: request.take_over, once: false, ..around.clone() };
    let lane = Lane::new(&request.lane);
    if request.operation == Operation::Forget {
        around.ledger.forget(&config.name, None)?;
        return Ok(
            json!({ "done": format!("the ledger forgot job {}; marks in sinks stay, and are the truth at the next start", config.name) }),
        );
    }
    let mut job = Job::open(config, around, Status::new(&request.job)).await?;
    match &request.operation {
        Operation::Show => show(&job, &lane).await,
        Operation::CatchUp(sink) => {
            job.catch_up = [id_of(&job, sink)?].into();
            let at = Runner::bring_to_head(Arc::new(job), &lane).await.map_err(|error| anyhow::anyhow!("{error}"))?;
            Ok(json!({ "done": format!("{sink} is at the head: {at}") }))
        }
        Operation::Reset => reset(&job).await,
        other => {
            let owned = claim(&job, &lane, request.take_over).await?;
            let done = jump(&job, &lane, &owned, other).await;
            for (id, key) in &owned.keys {
                if let Some(slot) = job.sink(id) {
                    slot.sink.release(key).await?;
                }
            }
            Ok(json!({ "done": done? }))
        }
    }
}

fn id_of(job: &Job, sink: &str) -> anyhow::Result<SinkId> {
    let found = job.marked().find(|slot| slot.name == sink || slot.id().as_str() == sink);
    let known: Vec<_> = job.marked().map(|slot| slot.name.as_str()).collect();
    found
        .map(|slot| slot.id().clone())
        .with_context(|| format!("job {} has no marked sink {sink}; it has {}", job.name(), known.join(", ")))
}

async fn claim(job: &Job, lane: &Lane, take_over: bool) -> anyhow::Result<Owned> {
    let held = job.peek(lane).await?;
    let how = if take_over { AtOnce::Told } else { AtOnce::Start };
    if let Err(reason) = job.may_claim(&held, how, &mut None, job.config.takeover_after) {
        bail!("lane {lane} is {reason}. Stop that daemon first, or pass --take-over");
    }
    Ok(job.claim(lane, &held).await?)
}

async fn show(job: &Job, lane: &Lane) -> anyhow::Result<serde_json::Value> {
    let held = job.peek(lane).await?;
    let closed = job.around.ledger.closed(job.name(), lane)?;
    let mut sinks = serde_json::Map::new();
    for (id, held) in &held {
        let mark = held.mark.as_ref().map(|mark| {
            json!({
                "batch": mark.plan.seq,
                "digest": mark.digest.to_string(),
                "positions": mark.positions,
                "planned_at_ms": mark.plan.planned_at.0,
                "anchor": mark.anchor().to_string(),
                "generation": mark.generation.0,
                "written_by": mark.owner.name,
                "logs": mark.logs,
            })
        });
        let claim = held
            .claim
            .as_ref()
            .map(|claim| json!({ "generation": claim.generation.0, "owner": claim.owner, "released": claim.released }));
        sinks.insert(id.to_string(), json!({ "claim": claim, "mark": mark }));
    }
    let closed = closed
        .map(|mark| json!({ "batch": mark.plan.seq, "digest": mark.digest.to_string(), "positions": mark.positions }));
    Ok(json!({ "job": job.name(), "lane": lane.to_string(), "sinks": sinks, "ledger": { "closed": closed } }))
}

async fn reset(job: &Job) -> anyhow::Result<serde_json::Value> {
    let mut names = Vec::new();
    for slot in job.marked() {
        slot.sink.reset().await.map_err(|error| anyhow::anyhow!("sink {}: {error}", slot.name))?;
        names.push(slot.name.clone());
    }
    job.around.ledger.forget(job.name(), None)?;
    Ok(json!({ "done": format!(
        "job {} starts over from its `start:`. Rows that are in {} stay: what is read again is there twice in sinks that append",
        job.name(), names.join(", ")
    ) }))
}

/// Commits a plan of kind `jump`: positions set, no rows. A crash in it is replayed like any plan.
async fn jump(job: &Job, lane: &Lane, owned: &Owned, operation: &Operation) -> anyhow::Result<String> {
    let anchor = match operation {
        Operation::Anchor(sink) => id_of(job, sink)?,
        _ => {
            owned.marks.values().flatten().next().context("no sink has a mark: the job has not begun")?.anchor().clone()
        }
    };
    let head = owned.marks.get(&anchor).cloned().flatten().with_context(|| {
        format!("the anchor {anchor} holds no mark; `tidemill checkpoint resolve --anchor S` names another sink as the anchor")
    })?;
    let (to, joining) = target(job, operation, &head)?;
    let entries = entries_for(job, lane, owned, &anchor, &head).await?;
    let mut places = BTreeMap::new();
    for id in owned.keys.keys() {
        let holds = owned.marks.get(id).and_then(Option::as_ref).map(|mark| mark.digest);
        let told = *id == anchor || joining.contains(id) || matches!(operation, Operation::Anchor(_));
        if !told && head.gives(id) != Some(holds) {
            bail!(
                "{id} is not at the head either: resolve it first, with `tidemill checkpoint resolve --sink {} --accept-loss`",
                id.name()
            );
        }
        places.insert(id.clone(), Place::Join(holds));
    }
    let newest = owned.marks.values().flatten().map(|mark| mark.plan.seq).max().unwrap_or_default();
    let key = owned.keys.get(&anchor).context("the anchor was not claimed")?;
    let content = Content { clock: Timestamp::now(), job: Some(job.digest), ..Content::default() };
    let writer = Writer { generation: key.generation, owner: &key.owner };
    let step = next::jump(&head, newest, &anchor, &places, to.clone(), &format!("{operation:?}"), content, writer)?;
    job.commit_marks(&step, &owned.keys, &entries).await?;
    Ok(format!("lane {lane} stands at {} (batch {})", describe(&to), step.plan().seq))
}

/// The entries that a new anchor needs of the old one.
async fn entries_for(
    job: &Job,
    lane: &Lane,
    owned: &Owned,
    anchor: &SinkId,
    head: &Mark,
) -> anyhow::Result<Vec<Entry>> {
    if head.anchor() == anchor || head.logs.is_empty() {
        return Ok(Vec::new());
    }
    let old = job.sink(head.anchor()).filter(|slot| owned.marks.get(slot.id()).is_some_and(Option::is_some));
    let Some(old) = old else {
        bail!(
            "the old anchor {} is gone, and with it the list of accepted files and the pinned schemas. \
             Restore it, or start over with `tidemill checkpoint reset --sinks`",
            head.anchor()
        );
    };
    let mut entries = Vec::new();
    for (log, state) in &head.logs {
        let all = old
            .sink
            .history(lane, log, state.first)
            .await
            .map_err(|error| anyhow::anyhow!("sink {}: {error}", old.name))?;
        entries.extend(all.into_iter().filter(|entry| entry.number < state.next));
    }
    Ok(entries)
}

/// Where the shards stand afterwards, and which sinks go along although they are not at the head.
fn target(job: &Job, operation: &Operation, head: &Mark) -> anyhow::Result<(Positions, Vec<SinkId>)> {
    let mut to = head.positions.clone();
    match operation {
        Operation::JoinSink(sink) => return Ok((to, vec![id_of(job, sink)?])),
        Operation::DropShard(name) => {
            let shard = known_shard(head, name)?;
            match to.get(&shard).and_then(Position::as_pair) {
                // A list of files: the one that cannot be read is left out.
                Some((file, _)) => to.insert(shard, Position::pair(file + 1, 0)),
                None => to.remove(&shard),
            };
        }
        Operation::Rewind(positions) => {
            for (name, position) in positions {
                to.insert(known_shard(head, name)?, Position::text(position));
            }
        }
        _ => {}
    }
    Ok((to, Vec::new()))
}

fn known_shard(head: &Mark, name: &str) -> anyhow::Result<ShardId> {
    let found = head.positions.keys().find(|shard| shard.as_str() == name || shard.part() == name);
    found.cloned().with_context(|| format!("no shard {name}; the lane has {}", describe(&head.positions)))
}
