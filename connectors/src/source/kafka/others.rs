//! Who else is in the consumer group. It belongs to one job: a member of another one, or of another program, is given
//! partitions whose records this job never sees, and nothing fails. So it is looked for, and warned of once.
//!
//! Offsets tell other jobs, since Tidemill's carry the job's name in their metadata; the names of clients tell other programs.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{
    client::{self, Context},
    core::Core,
    offsets::{WORD, job_of},
    topics::Partition,
};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(60);
/// The first look is made so long after the start: by then lanes have moved, and offsets are there.
const FIRST: Duration = Duration::from_secs(5);
/// What the brokers do not answer in this time is not asked again before the next look.
const ANSWER: Duration = Duration::from_secs(2);

/// What has been seen of others.
#[derive(Debug)]
pub(super) struct Others {
    due: Instant,
    told: BTreeSet<String>,
}

impl Others {
    pub fn new() -> Self {
        Self { due: Instant::now() + FIRST, told: BTreeSet::new() }
    }

    /// Looks, where it is time for it.
    pub fn look(&mut self, core: &Core, query: &BaseConsumer<Context>) {
        if Instant::now() < self.due {
            return;
        }
        self.due = Instant::now() + EVERY;
        let partitions: Vec<Partition> = core.view().topology.partitions().collect();
        for sentence in other_jobs(core, query, &partitions).into_iter().chain(other_programs(core, query)) {
            if self.told.insert(sentence.clone()) {
                tracing::warn!(source = core.name, group = core.group, "kafka: {sentence}");
            }
        }
    }
}

/// Jobs that wrote offsets of these partitions for the group.
fn other_jobs(core: &Core, query: &BaseConsumer<Context>, partitions: &[Partition]) -> BTreeSet<String> {
    let mut list = rdkafka::TopicPartitionList::with_capacity(partitions.len());
    for one in partitions {
        list.add_partition(&one.topic, one.number);
    }
    let Ok(found) = query.committed_offsets(list, ANSWER) else { return BTreeSet::new() };
    let of = |metadata: &str| other_job(&core.job, metadata).map(str::to_owned);
    let jobs: BTreeSet<String> = found.elements().iter().filter_map(|one| of(one.metadata())).collect();
    let sentence = |job: &String| {
        format!(
            "the group has offsets of the job `{job}`: where that one runs too, each job reads a part of the records. A group \
             belongs to one job: give one of them another `group:`. Where `{job}` is a former name of this job, nothing is \
             amiss"
        )
    };
    jobs.iter().map(sentence).collect()
}

/// The job that wrote an offset with this metadata, where it is another one.
fn other_job<'m>(mine: &str, metadata: &'m str) -> Option<&'m str> {
    job_of(metadata).flatten().filter(|job| *job != mine)
}

/// Members of the group that are no daemons of Tidemill, with `lanes: partition`.
fn other_programs(core: &Core, query: &BaseConsumer<Context>) -> BTreeSet<String> {
    // Daemons of one job may be given names of their own.
    if !core.partitioned || client::property(&core.config, "client.id").is_some() {
        return BTreeSet::new();
    }
    let Ok(groups) = query.fetch_group_list(Some(&core.group), ANSWER) else { return BTreeSet::new() };
    let members = groups.groups().iter().flat_map(|group| group.members());
    let others = members.filter(|member| member.client_id() != WORD);
    let sentence = |member: &rdkafka::groups::GroupMemberInfo| {
        format!(
            "another program is in the group, `{}` at {}: it is given partitions, whose records this job does not read. Give \
             it a group of its own, or this source another `group:`",
            member.client_id(),
            member.client_host()
        )
    };
    others.map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::kafka::offsets::word;

    #[test]
    fn offsets_tell_which_job_wrote_them() {
        assert_eq!(other_job("a", &word("b")), Some("b"));
        assert_eq!(other_job("a", &word("a")), None);
        // Of a version that wrote no name, and of other programs.
        for unnamed in [WORD, "", "tidemills b", "note"] {
            assert_eq!(other_job("a", unnamed), None, "{unnamed}");
        }
    }
}
