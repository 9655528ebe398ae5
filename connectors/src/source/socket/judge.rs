//! How a spool and the sinks' mark lie to each other, as a function of values. `tests/copies.rs` runs it through every
//! course that two copies of a data dir can take.

/// What follows from a mark for the spool that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The sinks have this spool's records up to the mark: go on from there.
    Continues,
    /// The spool begins behind the mark: records were released that are asked for once more.
    Released,
    /// The mark is beyond the spool's end.
    Beyond,
    /// The mark is within the spool, and the records before it are others: another copy of this spool was at work.
    Other,
}

/// Judges a mark at `position`, whose `check` was made of all that lay before it (older marks have none and are believed). The
/// spool reaches from `first` to `end`; `chain` is its own check at the mark's position, `None` where no record ends there.
pub fn judge(position: u64, check: Option<&str>, first: u64, end: u64, chain: Option<&str>) -> Verdict {
    if position < first {
        Verdict::Released
    } else if position > end {
        Verdict::Beyond
    } else if check.is_some_and(|check| chain != Some(check)) {
        Verdict::Other
    } else {
        Verdict::Continues
    }
}
