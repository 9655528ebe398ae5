//! How a job is cut into lanes, and what it may not use where each partition is one.

use tidemill_checkpoint::LaneScheme;
use tidemill_config as config;
use tidemill_connectors::lookup;
use tidemill_steps::{Pipeline, Schemas};

use super::{
    compile::{Compiled, Pinned, given_schema},
    lookups,
};

/// What the job says; where it says nothing, a lane per partition if every source has partitions and a schema, and no step
/// gathers rows, else one lane.
pub fn of(job: &std::sync::Arc<config::Job>) -> LaneScheme {
    match job.lanes {
        Some(config::Lanes::Partition) => LaneScheme::Partition,
        Some(config::Lanes::Single) => LaneScheme::Single,
        None => {
            let fits = job.sources.iter().all(|source| has_partitions(&source.kind) && given_schema(source).is_some())
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
