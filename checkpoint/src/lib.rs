//! The exactly-once protocol of Tidemill, free of any connector.
//!
//! What lives here: the words of the protocol as types ([`Position`], [`Span`], [`Lane`], [`Plan`], [`Mark`],
//! [`Generation`], [`Owner`]), the pure and total [`decide()`], the permits that let a sink commit, and the [`Ledger`],
//! kept in sled.
//!
//! Invariants:
//! - A [`Plan`] is immutable and named by its [`Digest`]; a commit is a compare-and-swap on a [`Mark`] that holds it.
//! - No sink gets a new plan before the job's anchor has it ([`Permit::follow`] asks for the anchor's [`Receipt`]).
//! - [`decide()`] reads values and returns a value; nothing in it reads a clock, a disk or the network.
//!
//! Start with [`plan`](mod@crate::plan), then [`mark`], then [`decide`](mod@crate::decide).

pub mod decide;
pub mod failpoint;
pub mod ident;
pub mod ledger;
pub mod mark;
pub mod next;
pub mod permit;
pub mod plan;
pub mod position;

pub use decide::{Decision, Facts, Stop, decide};
pub use ident::{Digest, Generation, Lane, LaneScheme, LogName, Owner, SinkId, Timestamp};
pub use ledger::Ledger;
pub use mark::{Claim, Entry, Had, Held, LogState, Mark};
pub use permit::{LaneKey, Permit, Receipt};
pub use plan::{Checks, Plan, PlanKind, Touch};
pub use position::{Position, Positions, ShardId, Span, Spans};
