//! The binary `tidemill`: command line, and what joins the crates to a daemon.
//!
//! Start with `supervise` (all jobs), then `job` (one job), then `job::batch` (one batch). Errors are `anyhow` here alone.

mod allocator;
mod checkpoint;
mod cli;
mod control;
mod demo;
mod explain;
mod feed;
mod http;
mod job;
mod memory;
mod metrics;
mod progress;
mod start;
mod status;
mod supervise;
mod systemd;

use std::process::ExitCode;

use clap::Parser;

/// The configuration is wrong (sysexits.h: `EX_CONFIG`): a restart does not help.
const EXIT_CONFIG: u8 = 78;

/// The configuration is wrong; the text is the whole message.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(job::probe::COMMAND) {
        return match job::probe::child() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let arguments = cli::Arguments::parse();
    if arguments.runs_jobs() {
        allocator::settle();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(cli::dispatch(arguments));
    // A sink that hangs in a blocking call does not hold the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => match error.downcast_ref::<ConfigError>() {
            Some(wrong) => {
                eprintln!("{wrong}");
                ExitCode::from(EXIT_CONFIG)
            }
            None => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}
