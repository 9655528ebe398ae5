//! What is known and said of lookups before they run.

use std::fmt::Write;

use tidemill_checkpoint::LaneScheme;
use tidemill_config::{self as config, LookupMode, LookupTable, SqlRows};
use tidemill_connectors::lookup;
use tidemill_steps::Schemas;

pub(super) use crate::job::lookups::of;
use crate::job::scheme;

/// The columns of the lookups' tables, by step; `None` where only a database knows one, or a file is not there. Files are read: an error is one of
/// the configuration, with its place.
pub(super) fn known(job: &config::Job) -> Result<Option<Schemas>, String> {
    let (mut schemas, mut whole) = (Schemas::new(), true);
    let mut errors = Vec::new();
    for (step, lookup) in of(job) {
        match lookup::known_schema(lookup) {
            Ok(Some(schema)) => drop(schemas.insert(step.name.clone(), schema)),
            Ok(None) => whole = false,
            Err(error) => errors.push(job.render(&step.at, &format!("step {}: {error}", step.name))),
        }
    }
    match errors.is_empty() {
        true => Ok(whole.then_some(schemas)),
        false => Err(errors.join("\n")),
    }
}

/// Files of lookups that are not there: perhaps not yet, and not on this machine.
pub(super) fn absent(job: &config::Job) -> Vec<String> {
    let absent = of(job).filter_map(|(step, lookup)| match &lookup.table {
        LookupTable::File { path, .. } if !path.exists() => {
            Some(format!("step {}: there is no file {}; the first batch will wait for it", step.name, path.display()))
        }
        _ => None,
    });
    absent.collect()
}

/// Lines about a lookup: its table, and what a replay gives.
pub(super) fn describe(job: &std::sync::Arc<config::Job>, step: &config::Step, lookup: &config::Lookup) -> String {
    let mut out = String::new();
    let table = match &lookup.table {
        LookupTable::File { path, .. } => format!("the file {}", path.display()),
        LookupTable::Sql { database, rows } => {
            let what = match rows {
                SqlRows::Table(table) => format!("table {table}"),
                SqlRows::Query(_) => "a query".to_owned(),
            };
            format!("{what} of database {} ({})", database.name, shown(job, database))
        }
        LookupTable::Redis { database, key, .. } => {
            format!("keys {key} of database {} ({})", database.name, shown(job, database))
        }
    };
    // Writing to a text cannot fail.
    let _ = writeln!(out, "      joins {table}");
    let _ = match lookup.mode {
        LookupMode::Snapshot { refresh, .. } => writeln!(
            out,
            "      the whole table, looked at every {refresh:?}; a replay gives the same rows: the plan names the table, which is kept in the data dir"
        ),
        LookupMode::Query { ttl, .. } => writeln!(
            out,
            "      asked for the keys of each batch, answers are remembered for {ttl:?}; a replay asks again: where the table has changed it gives other rows"
        ),
    };
    if matches!(lookup.mode, LookupMode::Snapshot { .. }) && scheme::of(job) == LaneScheme::Partition {
        let without = match job.on_lost_table(step, lookup, true) {
            config::OnLost::Stop => "stops",
            config::OnLost::Continue => "goes on with the one of now, and gives other rows then",
        };
        let _ = writeln!(
            out,
            "      each daemon reads the table itself: one that takes over a lane with an open batch, and has neither the table that the batch used nor one that is still the same, {without}"
        );
    }
    out
}

/// The address of a database, where the job's file has it itself.
fn shown(job: &config::Job, database: &config::Database) -> String {
    let short = job.shown(&format!("databases.{}", database.name), database.shown());
    let text = job.shown(&format!("databases.{}.url", database.name), short);
    // A part of it may come from the environment, and the password stand in the file.
    if text.contains("://") { config::redacted(&text) } else { text }
}
