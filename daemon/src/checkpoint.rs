//! `tidemill checkpoint`: looking at the ledger and the marks, and the commands that resolve a stop.
//!
//! A command that changes something is asked for twice: first as a dry run, whose answer says what will be changed, then,
//! once the operator has agreed, for good.
//!
//! An operation runs where the ledger is open: in the daemon, which stops the job for it (through the control socket), or
//! in the command itself, where no daemon has the data dir.

mod changes;
mod jump;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidemill_checkpoint::{
    Generation, Lane, LaneScheme, SinkId, Timestamp,
    next::{self, Content, Step, Writer},
};
use tidemill_config as config;

use self::changes::Changes;
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
    /// The job's file, where the operator named it: a daemon that runs the job from another file refuses.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// The lane; `None`: all that are known to look at, the only one to act on.
    pub lane: Option<String>,
    /// What to do.
    pub operation: Operation,
    /// Claim the lane even where another owner holds it.
    pub take_over: bool,
    /// Say what would be changed, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

impl Request {
    /// Whether nothing is changed.
    pub fn looks_only(&self) -> bool {
        self.dry_run || self.operation == Operation::Show
    }
}

/// Does it. The answer of `show` is JSON with a list of `lanes`; of a dry run the lines of `changes`; else one sentence
/// under `done`.
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
    let status = Status::new(&request.job);
    if request.operation == Operation::Forget {
        return forget(request, &config, &around);
    }
    let job = Job::open_sinks(config.clone(), around.clone(), status.clone())?;
    let named = match &request.lane {
        Some(lane) => Some(known_lane(&job, lane).await?),
        None => None,
    };
    match &request.operation {
        Operation::Show => return show(&job, named).await,
        Operation::Reset => return reset(request, &job, named).await,
        _ => {}
    }
    let lane = named.map_or_else(|| only_lane(&job), Ok)?;
    // What is wrong with the command is found before anything is claimed.
    let held = job.peek(&lane).await?;
    may_claim(&job, &lane, &held, request.take_over)?;
    let marks = held.into_iter().map(|(id, held)| (id, held.mark)).collect();
    let planned = jump::plan(&job, &lane, &marks, None, &request.operation).await?;
    let unclaimed = Writer { generation: Generation::default(), owner: &job.around.owner };
    let filled = fill(&job, &request.operation, &planned, &marks, unclaimed)?;
    if request.dry_run {
        let mut changes = Changes::of(&job.config, &job.around);
        changes.lanes([&lane]);
        changes.jump(&job, &planned);
        if let Some(step) = &filled {
            let had = step.mark.had.as_ref().map(|had| crate::job::describe(&had.from)).unwrap_or_default();
            let (sink, from) = (step.mark.sink.name(), crate::job::describe(&step.mark.positions));
            changes.add("fill", format!("{sink} began at {had}: what lies before is written to it, from {from} on"));
        }
        return Ok(json!({ "changes": changes.lines() }));
    }
    let owned = claim(&job, &lane, request.take_over).await?;
    if request.operation == Operation::Clock {
        // A daemon that held it back follows it again, in every job.
        job.around.clock.believe();
    }
    let done = fill_and_jump(&job, &lane, &owned, &request.operation).await;
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

/// First the sink that is to be filled is set back, then the head says that it catches up: a crash in between leaves a sink
/// behind the head, a stop whose command is this one.
async fn fill_and_jump(job: &Job, lane: &Lane, owned: &Owned, operation: &Operation) -> anyhow::Result<String> {
    if let Operation::CatchUp(sink) = operation {
        let id = id_of(job, sink)?;
        let planned = jump::plan(job, lane, &owned.marks, Some(&owned.keys), operation).await?;
        let key = owned.keys.get(&id).context("the sink was not claimed")?;
        let writer = Writer { generation: key.generation, owner: &key.owner };
        if let Some(step) = fill(job, operation, &planned, &owned.marks, writer)? {
            job.commit_alone(&step, key).await?;
        }
    }
    jump::jump(job, lane, owned, operation).await
}

/// The plan by which a sink that is to catch up although it is at the head gets what came before it began.
fn fill(
    job: &Job,
    operation: &Operation,
    planned: &jump::Planned,
    marks: &jump::Marks,
    writer: Writer<'_>,
) -> anyhow::Result<Option<Step>> {
    let Operation::CatchUp(sink) = operation else { return Ok(None) };
    let id = id_of(job, sink)?;
    let Some(own) = marks.get(&id).and_then(Option::as_ref).filter(|_| planned.is_at_head(&id)) else {
        return Ok(None);
    };
    let spooled = job.config.sources.iter().find(|source| matches!(source.kind, config::SourceKind::Socket(_)));
    if let Some(source) = spooled {
        bail!(
            "{sink} is at the head, and what came before it began cannot be read again: source {} is a socket",
            source.name.value
        );
    }
    let content = Content { clock: Timestamp::now(), job: Some(job.digest), ..Content::default() };
    let step = next::fill(&planned.head, own, &id, content, writer)?;
    let step = step.with_context(|| {
        format!(
            "{sink} is at the head, and as far as its marks say it has been there since the job began: there is nothing that it \
             lacks. Where its rows were removed by hand, remove its marks too (the row of job {} in tidemill_marks, the folder \
             _tidemill, or the topic of marks), and give this command again",
            job.name()
        )
    })?;
    Ok(Some(step))
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
    let only = (job.scheme == LaneScheme::Single).then(Lane::single);
    Ok(lanes_of_ledger(&job.around, job.name())?.into_iter().chain(only).collect())
}

fn lanes_of_ledger(around: &Surroundings, name: &str) -> anyhow::Result<BTreeSet<Lane>> {
    let known = around.ledger.lanes()?.into_iter();
    Ok(known.filter(|(job, _)| job == name).map(|(_, lane)| lane).collect())
}

/// The lane of this name: one that this data dir has had, or of which a sink knows.
async fn known_lane(job: &Job, name: &str) -> anyhow::Result<Lane> {
    let (lane, known) = (Lane::new(name), known_lanes(job)?);
    if known.contains(&lane) {
        return Ok(lane);
    }
    // A lane that only another data dir has had.
    if job.scheme == LaneScheme::Partition && !name.is_empty() {
        let held = job.peek(&lane).await?;
        if held.values().any(|held| held.mark.is_some() || held.claim.is_some()) {
            return Ok(lane);
        }
    }
    bail!(no_such_lane(job.name(), name, &known))
}

fn no_such_lane(job: &str, name: &str, known: &BTreeSet<Lane>) -> String {
    let known: Vec<_> = known.iter().map(Lane::as_str).collect();
    match known.as_slice() {
        [] => format!("job {job} has no lane `{name}`: this data dir has had none of the job yet"),
        known => format!("job {job} has no lane `{name}`; this data dir has had {}", known.join(", ")),
    }
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

/// The ledger forgets the job, or one lane of it. No sink is asked: one that cannot be opened is no hindrance.
fn forget(request: &Request, config: &config::Job, around: &Surroundings) -> anyhow::Result<serde_json::Value> {
    let known = lanes_of_ledger(around, &config.name)?;
    let lane = match &request.lane {
        Some(name) if !known.contains(&Lane::new(name)) => bail!(no_such_lane(&config.name, name, &known)),
        lane => lane.as_deref().map(Lane::new),
    };
    if request.dry_run {
        let mut changes = Changes::of(config, around);
        changes.lanes(lane.as_ref().map_or_else(|| known.iter().collect(), |lane| vec![lane]));
        changes.add("ledger", "forgets what it knows of them; marks and rows in sinks stay");
        return Ok(json!({ "changes": changes.lines() }));
    }
    around.ledger.forget(&config.name, lane.as_ref())?;
    let what = lane.map_or_else(String::new, |lane| format!("lane {lane} of "));
    Ok(json!({ "done": format!(
        "the ledger forgot {what}job {}; marks in sinks stay, and are the truth at the next start",
        config.name
    ) }))
}

async fn reset(request: &Request, job: &Job, named: Option<Lane>) -> anyhow::Result<serde_json::Value> {
    if let Some(lane) = named {
        bail!(
            "a sink forgets all lanes of a job or none: reset acts on every lane of job {}. Leave out --lane {lane}, or set \
             that lane alone back: `tidemill checkpoint --lane {lane} rewind --to SHARD=POSITION`",
            job.name()
        );
    }
    // Sinks forget all lanes of the job, so nobody may be at work on any that is known.
    let known: BTreeSet<_> = known_lanes(job)?.into_iter().chain([Lane::single()]).collect();
    for lane in &known {
        may_claim(job, lane, &job.peek(lane).await?, request.take_over)?;
    }
    if request.dry_run {
        let mut changes = Changes::of(&job.config, &job.around);
        changes.add("lanes", "all of the job");
        for slot in job.marked() {
            let place = changes::place_of(job, slot.id());
            changes.add(format!("sink {}", slot.name), format!("{place}: marks of the job are removed; rows stay"));
        }
        changes.add(
            "then",
            "the job starts over from its `start:`; what is read again is there twice in sinks that append",
        );
        return Ok(json!({ "changes": changes.lines() }));
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
