//! Where a lane begins that no sink has a mark of, with `lanes: partition` and `start: latest`.
//!
//! Lanes come to the daemons one by one, some long after the job began: nobody could tell a partition that was there from one
//! that was added since, and records that came before its lane did would be passed over. So the group's offsets keep where the
//! job began. Before a member joins, each partition that is there gets its end as its offset, unless there are offsets already:
//! those of the group's first start, or what was done since. A lane without a mark begins at its partition's offset; a
//! partition without one was added later, and begins at its first record.
//!
//! - Ends are asked for before the offsets. So a daemon that is slow, and writes where another one did since, writes ends
//!   that are no later: what lies between is read, and not passed over.
//! - Brokers take offsets of who is no member only as long as the group has none. Who is refused comes to a group that has
//!   begun.
//! - Offsets that another program wrote are none: Tidemill's carry its name ([`job_of`]).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{
    client::{ANSWER_LIMIT, Context},
    core::Core,
    offsets::{by_partition, job_of, offset_list},
    topics::{Partition, Topology},
};
use crate::{
    kafka::{self, On, Operation, native::Ask},
    source::SourceError,
};

/// Commands that a message shows.
const COMMANDS_SHOWN: usize = 4;

/// One look for an answer, and how long a client is served for a complaint.
const LOOK: Duration = Duration::from_millis(500);
const SERVE: Duration = Duration::from_millis(50);

/// Writes where the job begins, unless the group knows. Blocks.
pub(super) fn pin(core: &Core) -> Result<(), SourceError> {
    let client = core.client()?;
    let topology = Topology::fetch(&client, &core.wanted, Ask::Rights, &core.voice)?;
    // What this user may not see or read now was there perhaps; what is not there comes later.
    let is_absent = |code: RDKafkaErrorCode| {
        matches!(code, RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)
    };
    let hidden = topology.missing.iter().find(|(_, code)| !is_absent(**code));
    let hidden = hidden.map(|(topic, code)| core.absent(topic, *code));
    let refused = || topology.refused().map(|topic| core.lacks(Operation::Read, On::Topic(topic)));
    if let Some(cause) = hidden.or_else(refused) {
        return Err(SourceError::Transient { what: "finding where the job begins".into(), cause });
    }
    let partitions: Vec<Partition> = topology.partitions().collect();
    if partitions.is_empty() {
        return Ok(());
    }
    let ends = ends(core, &client, &partitions)?;
    if !committed(core, &client, &partitions)?.is_empty() {
        return Ok(());
    }
    let Some(list) = offset_list(&core.job, &ends) else { return Ok(()) };
    match client.commit(&list, CommitMode::Sync) {
        Ok(()) => {
            tracing::info!(
                source = core.name,
                group = core.group,
                partitions = ends.len(),
                "kafka: the group has no offsets of this job: it begins at the end of what is there"
            );
            core.view().begun.extend(partitions);
            Ok(())
        }
        Err(error) if is_of_members(&error) => Ok(()),
        Err(error) => Err(core.failed_of_group("writing where the job begins", &error)),
    }
}

/// A partition of a lane that has a mark, where the group knew of no beginning when this daemon started: what to tell, once.
pub(super) fn forgotten(core: &Core, partition: &Partition) -> Option<String> {
    let mut view = core.view();
    view.begun.contains(partition).then(|| view.begun.clear())?;
    let shards = view
        .topology
        .partitions()
        .filter_map(|one| Some((one.lane(&core.name), view.topology.shard(&core.name, &one)?)));
    let commands: Vec<_> = shards
        .take(COMMANDS_SHOWN)
        .map(|(lane, shard)| format!("`tidemill checkpoint --lane {lane} rewind --to {shard}=0`"))
        .collect();
    Some(format!(
        "the group {} had no offsets of this job any more when it was started (they expired, or were deleted): partitions that \
         were added while no daemon ran were taken for old ones, and begin at the end that they had then. For each of them, \
         and for no other: {}",
        core.group,
        commands.join(" or ")
    ))
}

/// Whether an offset was refused because the group has members.
fn is_of_members(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{IllegalGeneration, RebalanceInProgress, UnknownMemberId};
    matches!(error.rdkafka_error_code(), Some(UnknownMemberId | IllegalGeneration | RebalanceInProgress))
}

fn ends(
    core: &Core,
    client: &BaseConsumer<Context>,
    partitions: &[Partition],
) -> Result<BTreeMap<Partition, u64>, SourceError> {
    let what = "asking where partitions end";
    let list = kafka::offsets::at_ends(partitions.iter().map(|one| (&*one.topic, one.number)));
    let found = list.and_then(|list| kafka::offsets::ends(client, list, ANSWER_LIMIT));
    let ends = by_partition(found.map_err(|error| core.transient(what, error.to_string()))?);
    match partitions.iter().find(|one| !ends.contains_key(one)) {
        Some(silent) => Err(core.transient(what, format!("{silent} does not answer"))),
        None => Ok(ends),
    }
}

/// The offsets that the group has of these partitions, as far as Tidemill wrote them. Blocks.
pub(super) fn committed(
    core: &Core,
    client: &BaseConsumer<Context>,
    partitions: &[Partition],
) -> Result<BTreeMap<Partition, u64>, SourceError> {
    let failed = |error: KafkaError| core.failed_of_group("asking how far the group is", &error);
    let list = fetch(client, partitions).map_err(failed)?;
    let mut found = BTreeMap::new();
    for one in list.elements() {
        one.error().map_err(failed)?;
        if let (Offset::Offset(offset), Some(_)) = (one.offset(), job_of(one.metadata())) {
            let partition = Partition::new(one.topic(), one.partition());
            found.insert(partition, u64::try_from(offset).unwrap_or(0));
        }
    }
    Ok(found)
}

/// The group's offsets, whoever wrote them. Who may not use the group is told so once, beside an answer that never comes: by a
/// client of which nothing was heard before.
pub(super) fn fetch(
    client: &BaseConsumer<Context>,
    partitions: &[Partition],
) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for one in partitions {
        list.add_partition(&one.topic, one.number);
    }
    let is_denied = |error: &KafkaError| error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed);
    let deadline = Instant::now() + ANSWER_LIMIT;
    let mut answer = client.committed_offsets(list.clone(), LOOK);
    while let Err(error) = &answer
        && !is_denied(error)
        && Instant::now() < deadline
    {
        answer = match client.poll(SERVE) {
            Some(Err(error)) if is_denied(&error) => Err(error),
            _ => client.committed_offsets(list.clone(), LOOK),
        };
    }
    answer
}
