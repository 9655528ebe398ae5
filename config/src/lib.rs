//! The YAML of Tidemill: jobs and the daemon's own file.
//!
//! [`Job::load`] and [`Daemon::load`] read a file, check everything that can be known without the outside world, and
//! return either the model or *all* errors at once, each with file, line, column and path of keys. No I/O past the file
//! itself, the environment, `${file:PATH}`, and the links in paths ([`paths`]).
//!
//! Start with [`model`]: what a job is. `schema` says which keys exist, with types, defaults and docs; the checker, the
//! JSON Schema of `tidemill schema` and the docs' tables are made from it.

mod build;
mod check;
mod error;
mod glob;
mod load;
pub mod model;
mod nearest;
pub mod paths;
mod schema;
mod semantics;
mod substitute;
mod syntax;
mod tree;
mod types;
mod units;

pub use build::{KeyPart, key_parts};
pub use error::{Error, Errors};
pub use model::*;
pub use schema::{daemon_json_schema, json_schema, options_markdown, sections};
pub use substitute::{Environment, ProcessEnvironment};
pub use units::duration;
