//! Steps through their public face. One program: each that links DataFusion costs a link of its own.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;
mod lookup;
mod memory;
mod pipeline;
mod tables;
