//! `tidemill checkpoint`: looking at the ledger and the marks, and the ways out of a stop.
//!
//! An operation runs where the ledger is open: in the daemon, which stops the job for it (through the control socket), or
//! in the command itself, where no daemon has the data dir.

mod jump;

use std::{collections::BTreeSet, sync::Arc};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidemill_checkpoint::{Lane, LaneScheme, SinkId};
use tidemill_config as config;

use crate::{
    job::{
        Job, Surroundings,
        lane::{AtOnce, HeldBy, Owned},
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
    /// The lane's clock is set to the machine's, also where that is behind the last batch's.
    Clock,
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
    /// The lane; `None`: all that are known to look at, the only one to act on.
    pub lane: Option<String>,
    /// What to do.
    pub operation: Operation,
    /// Claim the lane even where another owner holds it.
    pub take_over: bool,
}

/// Does it. The answer of `show` is JSON with a list of `lanes`, else one sentence under `done`.
pub async fn execute(
    request: &Request,
    config: Arc<config::Job>,
    around: &Surroundings,
) -> anyhow::Result<serde_json::Value> {
    let name = config.name.clone();
    let done = operate(request, config, around).await;
    done.map_err(|error| anyhow::anyhow!("{}", around.in_commands(&name, &format!("{error:#}"))))
}

async fn operate(
    request: &Request,
    config: Arc<config::Job>,
    around: &Surroundings,
) -> anyhow::Result<serde_json::Value> {
    let around = Surroundings { take_over: request.take_over, once: false, ..around.clone() };
    if request.operation == Operation::Forget {
        around.ledger.forget(&config.name, None)?;
        return Ok(
            json!({ "done": format!("the ledger forgot job {}; marks in sinks stay, and are the truth at the next start", config.name) }),
        );
    }
    let status = Status::new(&request.job);
    let job = Job::open_sinks(config.clone(), around.clone(), status.clone())?;
    let named = request.lane.as_deref().map(Lane::new);
    match &request.operation {
        Operation::Show => return show(&job, named).await,
        Operation::Reset => return reset(&job, named, request.take_over).await,
        _ => {}
    }
    let lane = named.map_or_else(|| only_lane(&job), Ok)?;
    let owned = claim(&job, &lane, request.take_over).await?;
    if request.operation == Operation::Clock {
        // A daemon that held it back follows it again, in every job.
        job.around.clock.believe();
    }
    let done = jump::jump(&job, &lane, &owned, &request.operation).await;
    for (id, key) in &owned.keys {
        if let Some(slot) = job.sink(id)
            && let Err(error) = slot.sink.release(key).await
        {
            tracing::warn!(job = job.name(), lane = %lane, sink = slot.name, %error, "the lane could not be released");
        }
    }
    let done = done?;
    drop((owned, job));
    let Operation::CatchUp(sink) = &request.operation else { return Ok(json!({ "done": done })) };
    let job = Job::open(config, around, status).await?;
    let at = Runner::bring_to_head(Arc::new(job), &lane).await.map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(json!({ "done": format!("{sink} is at the head: {at}") }))
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
    may_claim(job, lane, &held, take_over)?;
    Ok(job.claim(lane, &held).await?)
}

/// Whether nobody else is at work on the lane, or shall not be any more.
fn may_claim(job: &Job, lane: &Lane, held: &HeldBy, take_over: bool) -> anyhow::Result<()> {
    let newest = held.values().filter_map(|held| held.claim.as_ref()).max_by_key(|claim| claim.generation);
    // This process has the data dir, so a daemon that had it is gone, whatever name it had.
    let ours = newest.is_some_and(|claim| claim.owner.data_dir == job.around.owner.data_dir);
    let how = if take_over || ours { AtOnce::Told } else { AtOnce::Start };
    if let Err(reason) = job.may_claim(held, how, &mut None, job.config.takeover_after) {
        bail!("lane {lane} is {reason}. Stop that daemon first, or pass --take-over");
    }
    Ok(())
}

/// Lanes of the job that this data dir has had.
fn known_lanes(job: &Job) -> anyhow::Result<BTreeSet<Lane>> {
    let known = job.around.ledger.lanes()?.into_iter().filter(|(name, _)| name == job.name()).map(|(_, lane)| lane);
    let only = (job.scheme == LaneScheme::Single).then(Lane::single);
    Ok(known.chain(only).collect())
}

fn only_lane(job: &Job) -> anyhow::Result<Lane> {
    if job.scheme == LaneScheme::Single {
        return Ok(Lane::single());
    }
    let known: Vec<_> = known_lanes(job)?.iter().map(Lane::to_string).collect();
    bail!(
        "job {} has a lane for each partition: say which with --lane; {}",
        job.name(),
        match known.as_slice() {
            [] => "this data dir has had none yet".to_owned(),
            known => format!("this data dir has had {}", known.join(", ")),
        }
    )
}

async fn show(job: &Job, named: Option<Lane>) -> anyhow::Result<serde_json::Value> {
    let lanes = named.map_or_else(|| known_lanes(job), |lane| Ok(BTreeSet::from([lane])))?;
    let mut shown = Vec::new();
    for lane in &lanes {
        shown.push(show_lane(job, lane).await?);
    }
    Ok(json!({ "job": job.name(), "lanes": shown }))
}

async fn show_lane(job: &Job, lane: &Lane) -> anyhow::Result<serde_json::Value> {
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

async fn reset(job: &Job, named: Option<Lane>, take_over: bool) -> anyhow::Result<serde_json::Value> {
    // Sinks forget all lanes of the job, so nobody may be at work on any that is known.
    let known = known_lanes(job)?.into_iter().chain([Lane::single()]).chain(named);
    for lane in known.collect::<BTreeSet<_>>() {
        may_claim(job, &lane, &job.peek(&lane).await?, take_over)?;
    }
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
