//! Stops: the states that nobody can explain, each with the commands that lead out of it.

use std::fmt;

use crate::{Lane, LaneScheme, LogName, Positions, SinkId};

/// Why a mark does not fit the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// It is beyond the head in a shard.
    Beyond,
    /// It belongs to another origin.
    OtherOrigin,
    /// The head says what the sink must hold, and it holds something else.
    Digest,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Beyond => "is beyond the head (was the anchor restored from a backup?)",
            Self::OtherOrigin => {
                "belongs to another origin (another volume or database, or the lane was started over?)"
            }
            Self::Digest => "is not what the head's plan leaves there (was the sink restored from a backup?)",
        })
    }
}

/// Why an anchor that went back cannot simply be gone on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreProblem {
    /// The steps keep state, and that of the older plan is not kept.
    State,
    /// A source cannot be read again.
    Source,
    /// The anchor's mark belongs to another origin than the ledger's.
    OtherOrigin,
}

impl fmt::Display for RestoreProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::State => "the job's steps keep state that did not go back with it",
            Self::Source => "a source of the job cannot be read again",
            Self::OtherOrigin => "it belongs to another origin (another volume or database?)",
        })
    }
}

/// Why a lane stops. The text names the lane, the sink, both positions, and the commands that resolve it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// The anchor has no mark, another sink has.
    #[error("lane {lane}: the anchor {anchor} holds no mark, but {sink} stands at {}: the anchor was emptied. {}", at(stands), self.ways_text())]
    AnchorEmptied {
        /// The lane.
        lane: Lane,
        /// The anchor.
        anchor: SinkId,
        /// The sink that has the newest mark.
        sink: SinkId,
        /// Where that sink stands.
        stands: Positions,
    },
    /// The anchor is not among the job's marked sinks any more, and the ledger cannot stand in for it.
    #[error("lane {lane}: the anchor {anchor} is not in the job any more, or keeps no marks now. The ledger closed the lane last at {}; {sink} stands at {}. {}", at_or_nothing(closed), at_or_nothing(stands), self.ways_text())]
    AnchorGone {
        /// The lane.
        lane: Lane,
        /// The anchor that is gone.
        anchor: SinkId,
        /// Where the ledger closed the lane last.
        closed: Option<Positions>,
        /// A sink that is not where the closed plan leaves it, or the newest of the others.
        sink: SinkId,
        /// Where that sink stands.
        stands: Option<Positions>,
    },
    /// The anchor is not among the job's marked sinks any more, and the list of accepted files was in it.
    #[error("lane {lane}: the anchor {anchor} is not in the job any more, or keeps no marks now, and the log {log} was kept in it. The ledger closed the lane last at {}. {}", at(closed), self.ways_text())]
    HistoryGone {
        /// The lane.
        lane: Lane,
        /// The anchor that is gone.
        anchor: SinkId,
        /// The log.
        log: LogName,
        /// The sink that would be the anchor.
        sink: SinkId,
        /// Where the ledger closed the lane last.
        closed: Positions,
    },
    /// A sink that the head counts on holds nothing.
    #[error("lane {lane}: {sink} holds no mark, but the head in {anchor} counts on one; the head stands at {}: {sink} was emptied. {}", at(head), self.ways_text())]
    Emptied {
        /// The lane.
        lane: Lane,
        /// The sink.
        sink: SinkId,
        /// The sink that holds the head.
        anchor: SinkId,
        /// Where the head stands.
        head: Positions,
    },
    /// A sink's mark does not fit the head.
    #[error("lane {lane}: the mark of {sink} {why}: it stands at {}, the head in {anchor} at {}. {}", at(stands), at(head), self.ways_text())]
    Gap {
        /// The lane.
        lane: Lane,
        /// The sink.
        sink: SinkId,
        /// Where it stands.
        stands: Positions,
        /// The sink that holds the head.
        anchor: SinkId,
        /// Where the head stands.
        head: Positions,
        /// Why it does not fit.
        why: Misfit,
    },
    /// The marks were made with another `lanes:`.
    #[error("lane {lane}: the mark of {sink} was made with `lanes: {}`, the job now says `lanes: {}`. {}", scheme(*marked), scheme(*job), self.ways_text())]
    Lanes {
        /// The lane.
        lane: Lane,
        /// The sink.
        sink: SinkId,
        /// The scheme of the mark.
        marked: LaneScheme,
        /// The scheme of the job.
        job: LaneScheme,
    },
    /// The anchor is behind what the ledger closed, and going on from it would not be exact.
    #[error("lane {lane}: the anchor {anchor} stands at {}, but the ledger has closed {}: the anchor was restored from a backup, and {problem}. {}", at(stands), at(closed), self.ways_text())]
    Restored {
        /// The lane.
        lane: Lane,
        /// The anchor.
        anchor: SinkId,
        /// Where it stands.
        stands: Positions,
        /// Where the ledger closed the lane last.
        closed: Positions,
        /// Why the lane cannot go on from there.
        problem: RestoreProblem,
    },
}

impl Stop {
    /// The lane that stops.
    pub fn lane(&self) -> &Lane {
        match self {
            Self::AnchorEmptied { lane, .. }
            | Self::AnchorGone { lane, .. }
            | Self::HistoryGone { lane, .. }
            | Self::Emptied { lane, .. }
            | Self::Gap { lane, .. }
            | Self::Lanes { lane, .. }
            | Self::Restored { lane, .. } => lane,
        }
    }

    /// The sink that does not fit.
    pub fn sink(&self) -> &SinkId {
        match self {
            Self::AnchorEmptied { anchor: sink, .. }
            | Self::AnchorGone { sink, .. }
            | Self::HistoryGone { sink, .. }
            | Self::Emptied { sink, .. }
            | Self::Gap { sink, .. }
            | Self::Lanes { sink, .. }
            | Self::Restored { anchor: sink, .. } => sink,
        }
    }

    /// The ways out, the mildest first: a command or a sentence, and what it costs.
    pub fn ways_out(&self) -> Vec<String> {
        self.ways().iter().map(|way| self.lane().in_commands(way)).collect()
    }

    fn ways(&self) -> Vec<String> {
        let resolve = |what: &str, then: &str| format!("`tidemill checkpoint resolve {what}` ({then})");
        let sink = |id: &SinkId, how: &str, then: &str| resolve(&format!("--sink {} --{how}", id.name()), then);
        let anchor = |id: &SinkId, then: &str| resolve(&format!("--anchor {}", name(id)), then);
        let over =
            || "`tidemill checkpoint reset --sinks` (start over; sinks that append will hold rows twice)".to_owned();
        match self {
            Self::AnchorEmptied { sink: other, .. } if other.is_local() => vec![over()],
            Self::AnchorEmptied { sink: other, .. } => vec![
                anchor(
                    other,
                    "go on from what it holds; the emptied sink gets new rows only, but a directory's files are taken again",
                ),
                over(),
            ],
            Self::AnchorGone { anchor: gone, sink: other, .. } => {
                vec![put_back(gone), anchor(other, "go on from what it holds"), over()]
            }
            Self::HistoryGone { anchor: gone, sink: other, .. } if *other == SinkId::ledger() => {
                vec![put_back(gone), over()]
            }
            Self::HistoryGone { anchor: gone, sink: other, .. } => {
                vec![put_back(gone), anchor(other, "files that were taken already are taken again"), over()]
            }
            // A local sink is never the anchor, and nothing is brought to it from elsewhere.
            Self::Gap { sink: id, why: Misfit::Beyond, .. } if id.is_local() => {
                vec![sink(id, "join", "it gets new rows from the head on, some of them twice")]
            }
            Self::Gap { sink: id, why: Misfit::Digest, .. } if id.is_local() => {
                vec![sink(id, "accept-loss", "what it lacks is not written to it")]
            }
            Self::Emptied { sink: id, .. } if id.is_local() => vec![sink(id, "join", "it gets new rows only")],
            Self::Emptied { sink: id, .. } => vec![
                sink(id, "catch-up", "it gets everything again from the start"),
                sink(id, "join", "it gets new rows only"),
            ],
            Self::Gap { sink: id, why: Misfit::Digest, .. } => vec![
                sink(id, "catch-up", "it gets what it lacks"),
                sink(id, "accept-loss", "what it lacks is not written to it"),
            ],
            Self::Gap { sink: id, why: Misfit::Beyond, .. } => vec![
                anchor(
                    id,
                    "go on from what it holds; what the present anchor lacks is not written to it, but a directory's files \
                     that it does not list are taken again",
                ),
                sink(id, "join", "it gets new rows from the head on, some of them twice"),
            ],
            Self::Gap { sink: id, why: Misfit::OtherOrigin, .. } => {
                vec![sink(id, "join", "it keeps its rows and gets new ones from the head on"), over()]
            }
            Self::Lanes { marked, .. } => vec![format!("write `lanes: {}` into the job", scheme(*marked)), over()],
            Self::Restored { anchor: id, problem: RestoreProblem::OtherOrigin, .. } => vec![
                format!("put the right {} back", name(id)),
                "`tidemill checkpoint forget` (believe the sinks, not the ledger)".to_owned(),
            ],
            Self::Restored { anchor: id, problem, stands, .. } => {
                let back = match problem {
                    RestoreProblem::State => {
                        let to = stands.iter().map(|(shard, at)| format!(" --to {shard}={at}")).collect::<String>();
                        format!("`tidemill checkpoint rewind{to}` (read again from there, with empty state)")
                    }
                    _ => "`tidemill checkpoint forget` (go on from the anchor, if the source still has the records)"
                        .to_owned(),
                };
                vec![
                    sink(id, "accept-loss", "go on from the ledger's position; what lies between is not written again"),
                    back,
                ]
            }
        }
    }

    fn ways_text(&self) -> String {
        format!("Way out: {}", self.ways_out().join(", or "))
    }
}

/// A sink that is gone from the job may have another name there now.
fn put_back(gone: &SinkId) -> String {
    let gone = name(gone);
    format!("put the sink {gone} back into the job, or write `formerly: {gone}` at the sink that is its new name")
}

fn name(id: &SinkId) -> &str {
    if *id == SinkId::ledger() { id.as_str() } else { id.name() }
}

fn scheme(lanes: LaneScheme) -> &'static str {
    match lanes {
        LaneScheme::Single => "single",
        LaneScheme::Partition => "partition",
    }
}

/// Shards named in a message; the rest are counted.
const SHARDS_SHOWN: usize = 4;

fn at(positions: &Positions) -> String {
    if positions.is_empty() {
        return "its beginning".to_owned();
    }
    let mut text: Vec<_> = positions.iter().take(SHARDS_SHOWN).map(|(shard, at)| format!("{shard} {at}")).collect();
    if positions.len() > SHARDS_SHOWN {
        text.push(format!("{} more shards", positions.len() - SHARDS_SHOWN));
    }
    text.join(", ")
}

fn at_or_nothing(positions: &Option<Positions>) -> String {
    positions.as_ref().map_or_else(|| "nothing".to_owned(), at)
}
