//! How a job is cut into lanes, and what it may not use where each partition is one.

use tidemill_checkpoint::LaneScheme;
use tidemill_config as config;
use tidemill_connectors::lookup;
use tidemill_steps::{Pipeline, Schemas};

use super::{
    compile::{Compiled, Pinned, given_schema},
    lookups,
};

/// What the job says; where it says nothing, a lane per partition if every source has partitions and a schema, no step
/// gathers rows, and other machines can see the marks; else one lane.
pub fn of(job: &std::sync::Arc<config::Job>) -> LaneScheme {
    match job.lanes {
        Some(config::Lanes::Partition) => LaneScheme::Partition,
        Some(config::Lanes::Single) => LaneScheme::Single,
        None => {
            let carried = matches!(marks(job), Marks::InTarget);
            let fits = carried
                && job.sources.iter().all(|source| has_partitions(&source.kind) && given_schema(source).is_some())
                && Compiled::new(job, &Pinned::new(), &stand_ins(job))
                    .is_ok_and(|compiled| gathering(job, compiled.pipeline()).is_none());
            if fits { LaneScheme::Partition } else { LaneScheme::Single }
        }
    }
}

/// The same for every daemon and at every start, whatever tables are like: so no table is looked at, and columns that the job
/// gives no type are texts.
pub fn stand_ins(job: &config::Job) -> Schemas {
    let lookups = lookups::of(job).map(|(step, lookup)| (step.name.clone(), lookup::stand_in(lookup)));
    lookups.collect()
}

/// Whether lanes of the source move between daemons.
fn has_partitions(kind: &config::SourceKind) -> bool {
    matches!(kind, config::SourceKind::Kafka(_))
}

/// Where a lane's truth is. A lane that moves to another daemon goes on from there, and from nowhere else.
enum Marks {
    /// In a server, or in a folder that machines can share.
    InTarget,
    /// In files that stay on this machine, and nowhere else.
    OnOneMachine,
    /// In the ledger of this daemon's data dir alone: no sink that outlives it keeps any.
    InLedger,
}

fn marked(job: &config::Job) -> impl Iterator<Item = &config::Sink> {
    let sinks = job.sinks.iter().chain(&job.dead_letters);
    sinks.filter(|sink| sink.kind.guarantee() == config::Guarantee::ExactlyOnce)
}

fn marks(job: &config::Job) -> Marks {
    if marked(job).next().is_none() {
        Marks::InLedger
    } else if marked(job).all(|sink| sink.kind.is_of_one_machine()) {
        Marks::OnOneMachine
    } else {
        Marks::InTarget
    }
}

/// Whether another daemon can know what this one has done.
pub fn others_see_marks(job: &config::Job) -> bool {
    !matches!(marks(job), Marks::InLedger)
}

/// What is right on one machine only in a job with a lane per partition.
pub fn warning(job: &std::sync::Arc<config::Job>) -> Option<String> {
    let local = marked(job).find(|sink| sink.kind.is_of_one_machine())?;
    if of(job) != LaneScheme::Partition {
        return None;
    }
    let by_default = if job.lanes.is_none() { " (which this job gets, since it says nothing else)" } else { "" };
    let elsewhere = match marks(job) {
        Marks::OnOneMachine => "one elsewhere begins anew, at `start:`, beside what was written here",
        _ => "one elsewhere has a file of its own that lacks them, and stops the lanes that it takes",
    };
    Some(format!(
        "lanes: partition{by_default}: marks are in files of this machine alone (the sink `{}`): daemons that share the lanes \
         must all run here, with the same file; {elsewhere}. Write to a sink instead that all daemons see (postgres, mysql, kafka, \
         files on a shared folder), or write `lanes: single` before the job first runs",
        local.name.value
    ))
}

/// The first step that gathers rows and does not say that each lane shall do so for itself.
fn gathering<'j>(job: &'j config::Job, pipeline: &Pipeline) -> Option<&'j config::Step> {
    let queries: Vec<&str> = pipeline.queries().collect();
    job.steps.iter().find(|step| !step.per_lane && queries.contains(&step.name.as_str()))
}

/// Where and why a job cannot have a lane per partition; `None` where it can, or does not ask for it. `pipeline` is there where
/// every source has a schema.
pub fn objection(job: &config::Job, pipeline: Option<&Pipeline>) -> Option<(config::At, String)> {
    if job.lanes != Some(config::Lanes::Partition) {
        return None;
    }
    if matches!(marks(job), Marks::InLedger) {
        let at = job.sinks.first().map(|sink| sink.name.at.clone()).unwrap_or_default();
        let message = "with `lanes: partition` a lane that moves to another daemon goes on from its mark, and no sink of this job \
            keeps marks: there it would begin at `start:` again\n\
            write `lanes: single`, or add a sink that keeps marks (`guarantee: exactly_once`)";
        return Some((at, message.into()));
    }
    let unknown: Vec<_> = job.sources.iter().filter(|source| given_schema(source).is_none()).collect();
    if let Some(first) = unknown.first() {
        let names: Vec<_> = unknown.iter().map(|source| source.name.value.as_str()).collect();
        let message =
            format!("lanes: partition needs a schema that all lanes share: give `schema:` for {}", names.join(", "));
        return Some((first.name.at.clone(), message));
    }
    let step = gathering(job, pipeline?)?;
    let message = format!(
        "the step `{}` gathers rows of a batch, and with `lanes: partition` each lane has batches of its own\n\
         write `lanes: single` for results over all partitions, or `per_lane: true` here where each lane's own results are wanted",
        step.name
    );
    Some((step.at.clone(), message))
}
