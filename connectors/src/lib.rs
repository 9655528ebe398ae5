//! Where records come from and go to: the traits [`Source`], [`Sink`] and [`Codec`], and every implementation.
//!
//! A connector is one file (or one folder) under `source/`, `sink/` or `codec/`. The traits' sentences are the contract;
//! each is a case of the conformance suite in `tests/`. Start with [`source`], then [`sink`].

pub mod codec;
mod kafka;
pub mod lookup;
pub mod sink;
pub mod source;

pub use codec::{Codec, Decoded, Decoder};
pub use lookup::LookupTable;
pub use sink::{Sink, SinkError};
pub use source::{Source, SourceError};
