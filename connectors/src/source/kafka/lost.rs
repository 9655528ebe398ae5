//! Records that a mark or a plan speaks of and the topic does not have: which, why, and the way out.

use tidemill_checkpoint::{Positions, ShardId};
use tidemill_config::OnLostOffsets;

use super::{
    client::explained,
    core::Core,
    reader::Stuck,
    topics::{Partition, parse_shard},
};
use crate::{
    kafka::is_denied,
    source::{Found, SourceError},
};

/// Another incarnation of a partition that a mark knows, where it knows the present one not.
pub(super) fn former<'p>(at: &'p Positions, partition: &Partition) -> Option<&'p ShardId> {
    at.keys().find(|shard| parse_shard(shard).is_some_and(|(known, _)| known == *partition))
}

/// Where to go on, between the first offset and the end. `None`: not at all.
pub(super) fn go_on(says: OnLostOffsets, (low, high): (u64, u64)) -> Option<u64> {
    match says {
        OnLostOffsets::Stop => None,
        OnLostOffsets::Earliest => Some(low),
        OnLostOffsets::Latest => Some(high),
    }
}

/// Records that are lost: of which shard, and why.
pub(super) struct Loss {
    shard: ShardId,
    what: String,
}

impl Loss {
    /// It stops the lane.
    pub fn stop(self) -> SourceError {
        let Self { shard, what } = self;
        SourceError::Lost {
            way_out: format!(
                "Way out: `tidemill checkpoint resolve --shard {shard} --accept-loss` goes on with the oldest record that is \
                 there; `on_lost_offsets: earliest` or `latest` does so without asking"
            ),
            shard: shard.to_string(),
            what,
        }
    }

    /// It is passed over, because the job says so: `then` is done.
    pub fn passed_over(&self, says: OnLostOffsets, then: &str) -> String {
        let word = match says {
            OnLostOffsets::Stop => "stop",
            OnLostOffsets::Earliest => "earliest",
            OnLostOffsets::Latest => "latest",
        };
        format!("{}. As `on_lost_offsets: {word}` says, {then}", self.what)
    }

    /// The same: reading goes on at `start`.
    pub fn goes_on(&self, says: OnLostOffsets, start: u64) -> String {
        self.passed_over(says, &format!("the job goes on at offset {start}"))
    }
}

fn lost(shard: &ShardId, what: String) -> Loss {
    Loss { shard: shard.clone(), what }
}

pub(super) fn made_again(former: &ShardId, now: &ShardId) -> Loss {
    let topic = parse_shard(now).map_or_else(String::new, |(partition, _)| partition.topic.to_string());
    let id = |shard: &ShardId| parse_shard(shard).map_or_else(String::new, |(_, incarnation)| incarnation.to_owned());
    lost(
        former,
        format!(
            "topic {topic} was deleted and made again (cluster and topic id were {}, and are {}): what was not read of the old one is gone",
            id(former),
            id(now)
        ),
    )
}

pub(super) fn out_of_range(partition: &Partition, shard: &ShardId, offset: u64, (low, high): (u64, u64)) -> Loss {
    let what = if offset < low {
        format!(
            "{partition} begins at offset {low} now, and {} records before it, from {offset} on, were not read: its retention is shorter than the time that the job was away",
            low - offset
        )
    } else {
        format!(
            "{partition} ends at offset {high}, before {offset}, up to where the job has read: its last records were lost in the cluster"
        )
    };
    lost(shard, what)
}

pub(super) fn span_gone(
    partition: &Partition,
    shard: &ShardId,
    (from, to): (u64, u64),
    (low, high): (u64, u64),
) -> Loss {
    lost(shard, format!("{partition} has the offsets {low} to {high} now, and [{from}, {to}) are to be read again"))
}

/// What a shard has at an offset. Asks the brokers.
pub(super) fn find(core: &Core, shard: &ShardId, offset: u64) -> Result<Found, SourceError> {
    let topology = core.refresh()?;
    let Some((partition, _)) = parse_shard(shard) else {
        return Ok(Found::Foreign("it is not the name of a partition".to_owned()));
    };
    match topology.shard(&core.name, &partition) {
        None => return Ok(Found::Foreign(format!("{partition} is not there any more"))),
        Some(now) if now != *shard => {
            return Ok(Found::Foreign(format!("its topic {} was deleted and made again", partition.topic)));
        }
        Some(_) => {}
    }
    let (low, high) = core.watermarks(&partition)?;
    Ok(match (low..=high).contains(&offset) {
        true => Found::There { is_end: offset == high },
        false => Found::Nowhere(format!("{partition} has the offsets {low} to {high}, and {offset} is not among them")),
    })
}

/// What becomes of a cursor that cannot go on: it is put where the job says, or it is an error. Asks the brokers.
pub(super) fn resolve(
    core: &Core,
    partition: &Partition,
    shard: &ShardId,
    offset: u64,
    stuck: Stuck,
) -> Result<(), SourceError> {
    if let Stuck::Refused(code) = stuck {
        let what = format!("reading {partition}");
        let cause = explained(code, "").unwrap_or_else(|| core.absent(&partition.topic, code));
        return Err(match is_denied(Some(code)) {
            true => SourceError::Transient { what, cause },
            false => core.transient(what, cause),
        });
    }
    let topology = core.refresh()?;
    let Some(now) = topology.shard(&core.name, partition) else {
        let cause = core.trouble(&topology).unwrap_or_else(|| format!("{partition} is not there any more"));
        return Err(SourceError::Transient { what: format!("reading {partition}"), cause });
    };
    if now != *shard {
        // Another topic has the name: where that one goes on, the next adoption says.
        return Err(match core.config.on_lost_offsets {
            OnLostOffsets::Stop => made_again(shard, &now).stop(),
            _ => SourceError::Transient {
                what: format!("reading {partition}"),
                cause: "its topic was deleted and made again".to_owned(),
            },
        });
    }
    let (low, high) = core.watermarks(partition)?;
    if (low..=high).contains(&offset) {
        // Gone when it was read, and there now: the next adoption begins anew.
        return Err(
            core.transient(format!("reading {partition}"), format!("offset {offset} was not there a moment ago"))
        );
    }
    let (loss, says) = (out_of_range(partition, shard, offset, (low, high)), core.config.on_lost_offsets);
    let Some(start) = go_on(says, (low, high)).filter(|start| *start >= offset) else {
        return Err(loss.stop());
    };
    tracing::warn!(source = core.name, "kafka: {}", loss.goes_on(says, start));
    match core.reader().as_mut() {
        Some(reader) => reader.place(partition, shard.clone(), offset, start),
        None => Ok(()),
    }
}
