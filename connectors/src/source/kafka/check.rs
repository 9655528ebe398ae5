//! `validate --connect`: whether the source could read, and if not, why.

use std::time::{Duration, Instant};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{
    beginning,
    client::{ANSWER_LIMIT, Context, explained, hear},
    core::Core,
    topics::{Partition, Topology},
};
use crate::{
    kafka::{On, Operation, native::Ask},
    source::SourceError,
};

/// One look for an answer.
const LOOK: Duration = Duration::from_millis(500);

/// Looks for the brokers, the topics, and the rights to read. Blocks; changes nothing.
pub(super) fn check(core: &Core) -> Result<(), SourceError> {
    let client = core.client()?;
    reach(core, &client)?;
    let topology = Topology::fetch(&client, &core.wanted, Ask::Rights, &core.voice)?;
    if let Some(trouble) = core.trouble(&topology) {
        return Err(SourceError::Fatal(trouble));
    }
    let Some(first) = topology.partitions().next() else {
        return Err(SourceError::Fatal(format!("no topic is like {}", core.topics().join(", "))));
    };
    // Read on the topic is asked of the brokers' rules, since a fetch of a partition that nobody leads has no answer.
    if let Some(topic) = topology.refused() {
        return Err(SourceError::Fatal(core.lacks(Operation::Read, On::Topic(topic))));
    }
    may_use_group(core, &first)?;
    topology.topics.keys().try_for_each(|topic| may_read(core, &client, &Partition { topic: topic.clone(), number: 0 }))
}

/// Waits for the first answer; a login that is refused is told at once.
fn reach(core: &Core, client: &BaseConsumer<Context>) -> Result<(), SourceError> {
    let deadline = Instant::now() + ANSWER_LIMIT;
    loop {
        let answer = client.fetch_metadata(Some("__tidemill-no-topic"), LOOK);
        hear(client);
        let complaint = core.voice.recent();
        match (answer, complaint) {
            (Ok(_), _) => return Ok(()),
            (Err(_), Some((code, reason)))
                if reason.contains("SSL")
                    || reason.contains("APIVERSION_QUERY")
                    || matches!(
                        code,
                        RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL | RDKafkaErrorCode::Resolve
                    ) =>
            {
                return Err(SourceError::Fatal(explained(code, &reason).unwrap_or(reason)));
            }
            (Err(error), _) if Instant::now() > deadline => {
                let said = error.to_string();
                let cause = error.rdkafka_error_code().and_then(|code| explained(code, &said)).unwrap_or(said);
                return Err(core.transient(format!("reaching the brokers {}", core.config.brokers), cause));
            }
            _ => {}
        }
    }
}

fn may_use_group(core: &Core, partition: &Partition) -> Result<(), SourceError> {
    match beginning::fetch(&core.client()?, std::slice::from_ref(partition)) {
        Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {
            let lacks = core.lacks(Operation::Read, On::Group(&core.group));
            Err(SourceError::Fatal(format!("{lacks}, or name another `group:`")))
        }
        // A coordinator that is not ready is none of the configuration's faults.
        _ => Ok(()),
    }
}

/// One fetch, at the end: nothing comes but the end, or why not.
fn may_read(core: &Core, client: &BaseConsumer<Context>, partition: &Partition) -> Result<(), SourceError> {
    let what = format!("reading topic {}", partition.topic);
    let failed = |error: KafkaError| core.transient(what.clone(), error.to_string());
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition_offset(&partition.topic, partition.number, Offset::End).map_err(failed)?;
    client.assign(&list).map_err(failed)?;
    let deadline = Instant::now() + ANSWER_LIMIT;
    let answer = loop {
        match client.poll(LOOK) {
            Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => break Ok(()),
            Some(Err(error)) => match error.rdkafka_error_code() {
                Some(code @ RDKafkaErrorCode::TopicAuthorizationFailed) => {
                    break Err(SourceError::Fatal(core.absent(&partition.topic, code)));
                }
                _ if Instant::now() > deadline => break Err(failed(error)),
                _ => {}
            },
            None if Instant::now() > deadline => break Err(core.transient(what.clone(), "no answer")),
            None => {}
        }
    };
    let _ = client.unassign();
    answer
}
