//! Jobs as people write them: right ones, wrong ones with their whole messages, and the pages made from the schema.

#![allow(clippy::unwrap_used, missing_docs)]

mod docs;
mod files;
mod lookups;
mod mutated;
mod paths;
mod right;
mod wrong;
