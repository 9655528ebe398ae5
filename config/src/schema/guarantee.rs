//! The key `guarantee` of sinks that can do without marks.

use super::{Key, Kind, default, word};

pub(super) const GUARANTEE: Key = default(
    "guarantee",
    Kind::Words(&[word("exactly_once"), word("at_least_once")]),
    "exactly_once",
    "`at_least_once`: the sink keeps no marks and makes nothing of its own in the target; a batch that is replayed is written again, and a row that the target refuses stops the lane.",
);
