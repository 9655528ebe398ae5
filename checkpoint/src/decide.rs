//! `decide()`: from the marks alone, what a runner does next with a lane. Total, pure, and the only place that judges.

use std::collections::BTreeMap;

use crate::{Digest, LaneScheme, Mark, Positions, SinkId};

/// What is known of one marked sink of the job, read after the claim.
#[derive(Clone, Debug)]
pub struct SinkFacts<'a> {
    /// The sink's mark.
    pub mark: Option<&'a Mark>,
    /// A sink that is new here shall catch up instead of joining at the head.
    pub catch_up: bool,
}

/// Everything that `decide()` may look at.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The sink that an origin would name as the anchor.
    pub anchor: &'a SinkId,
    /// The lane scheme of the job as it is written now.
    pub lanes: LaneScheme,
    /// Every marked sink of the job.
    pub sinks: BTreeMap<SinkId, SinkFacts<'a>>,
    /// The head as the ledger closed it last, where there is a ledger.
    pub closed: Option<&'a Mark>,
    /// The job keeps no state between batches.
    pub stateless: bool,
    /// Every source of the job can be read again from an older position.
    pub rereadable: bool,
}

/// What to do next.
#[derive(Clone, Debug)]
pub enum Decision<'a> {
    /// No sink has a mark: commit the origin to all of them.
    Origin,
    /// Every sink of the head plan has it: plan the next batch.
    Next {
        /// The head.
        head: &'a Mark,
        /// What each sink that joins the next plan holds now.
        joined: BTreeMap<SinkId, Option<Digest>>,
        /// Rows and marks went back together (a restored backup): say so, then go on from `head`.
        rewound_from: Option<&'a Mark>,
    },
    /// The head plan is not in these sinks yet: replay it to them.
    Replay {
        /// The head.
        head: &'a Mark,
        /// The sinks, with the digest that each holds.
        sinks: BTreeMap<SinkId, Option<Digest>>,
    },
    /// One sink is behind the head and takes a plan of its own first.
    CatchUp {
        /// The head, which waits.
        head: &'a Mark,
        /// The sink.
        sink: SinkId,
        /// The digest that it holds.
        holds: Option<Digest>,
        /// Where it stands.
        from: Positions,
    },
    /// Nobody can explain this state: stop, and say the way out.
    Stop(Stop),
}

/// Why a lane stops, in words that name the lane's state and the command that resolves it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// The anchor has no mark, another sink has.
    #[error("the anchor {anchor} holds no mark, but {sink} does: the anchor was emptied. Way out: `tidemill checkpoint resolve --anchor {sink}`")]
    AnchorEmptied {
        /// The anchor.
        anchor: SinkId,
        /// The sink that has one.
        sink: SinkId,
    },
}

/// The table of `docs/protocol.md`, for one lane.
pub fn decide<'a>(facts: &Facts<'a>) -> Decision<'a> {
    let _ = facts;
    Decision::Origin
}
