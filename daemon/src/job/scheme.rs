//! How a job is cut into lanes: the one place that decides it, for the daemon, `validate` and `explain`.

use std::sync::Arc;

use tidemill_checkpoint::LaneScheme;
use tidemill_config as config;

use super::compile::{Compiled, Pinned, given_schema};

/// What the job says; where it does not: a lane per partition where Kafka is all that is read, every schema is given
/// (lanes share no inferred one) and no step needs rows of several partitions, else one lane.
pub fn lane_scheme(job: &config::Job) -> LaneScheme {
    match job.lanes {
        Some(config::Lanes::Partition) => LaneScheme::Partition,
        Some(config::Lanes::Single) => LaneScheme::Single,
        None if is_all_kafka(job) && has_all_schemas(job) && spanning_step(job).is_none() => LaneScheme::Partition,
        None => LaneScheme::Single,
    }
}

/// Whether Kafka is the only kind of source.
pub fn is_all_kafka(job: &config::Job) -> bool {
    job.sources.iter().all(|source| matches!(source.kind, config::SourceKind::Kafka(_)))
}

/// Whether every source's columns are known before its first record.
pub fn has_all_schemas(job: &config::Job) -> bool {
    job.sources.iter().all(|source| given_schema(source).is_some())
}

/// The first step that needs all rows of a batch, so that lanes change what it gives; also where the steps cannot be
/// planned, which is told elsewhere.
pub fn spanning_step(job: &config::Job) -> Option<String> {
    match Compiled::new(&Arc::new(job.clone()), &Pinned::new()) {
        Ok(compiled) => compiled.pipeline().gathers().map(str::to_owned),
        Err(_) => Some("(steps)".to_owned()),
    }
}
