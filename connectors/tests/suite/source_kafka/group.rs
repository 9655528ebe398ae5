//! The consumer group: its offsets, as Kafka's own tool sees them, and partitions that move between members.

use super::*;

/// Kafka's own tool, which sees what a person at a monitor sees.
fn group_says(group: &str) -> BTreeMap<i32, (String, String)> {
    let kafka = services::kafka().unwrap();
    let said = kafka.tool(services::Kafka::GROUPS, &["--describe", "--group", group]);
    let row = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words.len() > 5 && words[0] == group)
            .then(|| Some((words[2].parse().ok()?, (words[3].to_owned(), words[5].to_owned()))))
            .flatten()
    };
    said.lines().filter_map(row).collect()
}

#[test]
fn the_groups_offsets_are_those_that_every_sink_has() {
    let Some(topic) = Topic::new(1, &[]) else { return };
    run(async {
        let group = topic.config().group.unwrap();
        let mut life = Life::begin(topic.config()).await;
        let producer = topic.transactional();
        in_transaction(&producer, &topic, &numbers(0..10), true);
        life.read_until(10, 11).await;
        topic.send_values(0, &numbers(10..15));
        // Planned and read, and not released.
        let begun = Instant::now();
        while life.plan().await.unwrap().is_none() {
            assert!(begun.elapsed() < SOON);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let begun = Instant::now();
        loop {
            let said = group_says(&group);
            if said.get(&0) == Some(&("11".to_owned(), "5".to_owned())) {
                break;
            }
            assert!(begun.elapsed() < SOON, "{said:?}");
        }
        // They carry the job's name: another job in the group is known by it.
        let asking: rdkafka::consumer::BaseConsumer =
            crate::sinks::kafka::client(&topic.brokers).set("group.id", &group).create().unwrap();
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition(&topic.name, 0);
        let known = rdkafka::consumer::Consumer::committed_offsets(&asking, list, SOON).unwrap();
        assert_eq!(known.elements()[0].metadata(), "tidemill job");
        life.read_until(5, 16).await;
        // The last offsets are written when the source ends, at the latest.
        drop(life);
        assert_eq!(group_says(&group).get(&0), Some(&("16".to_owned(), "0".to_owned())));
    });
}

/// The lanes that a member has, and what it does with what the group says.
struct Member {
    source: Arc<dyn Source>,
    lanes: Vec<Lane>,
    revoked: usize,
    lost: usize,
}

impl Member {
    async fn join(kafka: &KafkaSource) -> Self {
        let source = open_with(kafka.clone(), &[], true).unwrap();
        source.start().await.unwrap();
        Self { source, lanes: Vec::new(), revoked: 0, lost: 0 }
    }

    /// What happens within the time.
    async fn live(&mut self, time: Duration) {
        let Ok(event) = tokio::time::timeout(time, self.source.event()).await else { return };
        match event.unwrap() {
            SourceEvent::Assigned(lanes) => self.lanes.extend(lanes),
            SourceEvent::Revoked(lanes, limit) => {
                assert!(limit >= Duration::from_secs(1));
                for lane in lanes {
                    self.lanes.retain(|one| *one != lane);
                    self.source.let_go(&lane).await;
                    self.revoked += 1;
                }
            }
            SourceEvent::Lost(lanes) => {
                self.lanes.retain(|one| !lanes.contains(one));
                self.lost += lanes.len();
            }
            SourceEvent::Data | SourceEvent::End => {}
        }
    }
}

#[test]
fn partitions_are_lanes_that_the_group_moves_between_its_members() {
    let Some(topic) = Topic::new(4, &[]) else { return };
    run(async {
        let mut kafka = topic.config();
        kafka.properties = vec![("session.timeout.ms".to_owned(), "6000".to_owned())];
        let mut first = Member::join(&kafka).await;
        let begun = Instant::now();
        while first.lanes.len() < 4 {
            first.live(Duration::from_millis(100)).await;
            assert!(begun.elapsed() < SOON, "{:?}", first.lanes);
        }
        let lane = Lane::new(&format!("in/{}/0", topic.name));
        assert!(first.lanes.contains(&lane), "{:?}", first.lanes);
        let mut second = Member::join(&kafka).await;
        while (first.lanes.len(), second.lanes.len()) != (2, 2) {
            first.live(Duration::from_millis(50)).await;
            second.live(Duration::from_millis(50)).await;
            assert!(begun.elapsed() < SOON, "{:?} {:?}", first.lanes, second.lanes);
        }
        // Those that stayed were not taken away.
        assert_eq!((first.revoked, first.lost, second.revoked), (2, 0, 0));
        // A lane is read by whom it was given to.
        let mine = second.lanes[0].clone();
        let number: i32 = mine.as_str().rsplit('/').next().unwrap().parse().unwrap();
        let at = second.source.origin(&mine).await.unwrap().positions;
        assert_eq!(at.len(), 1);
        second.source.adopt(&mine, &at, &History::default()).await.unwrap();
        topic.send_values(number, &numbers(0..3));
        let begun = Instant::now();
        let plan = loop {
            if let Some(plan) = second.source.plan(&mine, &at, ALL).await.unwrap() {
                break plan;
            }
            second.live(Duration::from_millis(50)).await;
            assert!(begun.elapsed() < SOON);
        };
        assert_eq!(texts(&second.source.read(&mine, &plan).await.unwrap()), numbers(0..3));
        second.source.release(&mine, &advance(&at, &plan.spans).unwrap()).await.unwrap();
        // One that leaves gives them back at once, and its offsets are those of the group.
        second.source.stop().await;
        let begun = Instant::now();
        while first.lanes.len() < 4 {
            first.live(Duration::from_millis(100)).await;
            assert!(begun.elapsed() < SOON, "{:?}", first.lanes);
        }
        let said = group_says(&kafka.group.unwrap());
        assert_eq!(said.get(&number), Some(&("3".to_owned(), "0".to_owned())), "{said:?}");
        assert!(first.source.plan(&mine, &at, ALL).await.unwrap_err().is_transient(), "it is not adopted");
    });
}

/// A member that is not let go in time loses the lane all the same.
#[test]
fn a_lane_that_is_not_let_go_goes_when_the_limit_is_over() {
    let Some(topic) = Topic::new(2, &[]) else { return };
    run(async {
        let mut kafka = topic.config();
        let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        kafka.properties = vec![set("session.timeout.ms", "6000"), set("max.poll.interval.ms", "6000")];
        let mut first = Member::join(&kafka).await;
        let begun = Instant::now();
        while first.lanes.len() < 2 {
            first.live(Duration::from_millis(100)).await;
            assert!(begun.elapsed() < SOON);
        }
        let mut second = Member::join(&kafka).await;
        while second.lanes.is_empty() {
            second.live(Duration::from_millis(100)).await;
            assert!(begun.elapsed() < SOON);
        }
        assert_eq!(second.lanes.len(), 1);
    });
}

#[test]
fn a_lane_of_another_source_is_none_of_its_own() {
    let Some(topic) = Topic::new(1, &[]) else { return };
    run(async {
        let source = open_with(topic.config(), &[], true).unwrap();
        let lane = Lane::new("other/topic/0");
        assert!(source.origin(&lane).await.unwrap().positions.is_empty());
        let adopted = source.adopt(&lane, &Positions::new(), &History::default()).await.unwrap();
        assert!(adopted.new_shards.is_empty() && adopted.warnings.is_empty());
        assert!(source.plan(&lane, &Positions::new(), ALL).await.unwrap().is_none());
    });
}

fn latest(topics: &[&str], topic: &Topic) -> KafkaSource {
    let located = |text: &&str| Located { value: (*text).to_owned(), at: Default::default() };
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    KafkaSource {
        start: Start::Latest,
        topics: topics.iter().map(located).collect(),
        properties: vec![set("session.timeout.ms", "6000"), set("topic.metadata.refresh.interval.ms", "500")],
        ..topic.config()
    }
}

impl Member {
    /// Lives until it has so many lanes.
    async fn has(&mut self, lanes: usize) {
        let begun = Instant::now();
        while self.lanes.len() != lanes {
            self.live(Duration::from_millis(100)).await;
            assert!(begun.elapsed() < SOON, "{:?}", self.lanes);
        }
    }

    /// Where a lane begins of which no sink has a mark.
    async fn begins(&self, topic: &Topic, partition: i32) -> String {
        let lane = Lane::new(&format!("in/{}/{partition}", topic.name));
        assert!(self.lanes.contains(&lane), "{:?}", self.lanes);
        let positions = self.source.origin(&lane).await.unwrap().positions;
        positions.values().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn latest_is_where_the_job_began_and_what_is_added_later_is_read_from_its_beginning() {
    let Some(first) = Topic::new(2, &[]) else { return };
    run(async {
        first.send_values(0, &numbers(0..5));
        let config = latest(&[&format!("^{}.*", first.name)], &first);
        let mut member = Member::join(&config).await;
        member.has(2).await;
        assert_eq!((&*member.begins(&first, 0).await, &*member.begins(&first, 1).await), ("5", "0"));
        first.send_values(0, &numbers(5..10));
        first.send_values(1, &numbers(0..5));
        let later = Topic::at(&first.brokers, &format!("{}-later", first.name), 1, &[]);
        later.send_values(0, &numbers(0..5));
        first.add_partitions(3);
        first.send_values(2, &numbers(0..5));
        member.has(4).await;
        assert_eq!((&*member.begins(&first, 2).await, &*member.begins(&later, 0).await), ("0", "0"));
        // A daemon that takes over before any sink has a mark, with nothing in its data dir: the job began where it began.
        member.source.stop().await;
        first.add_partitions(4);
        first.send_values(3, &numbers(0..5));
        let mut next = Member::join(&config).await;
        next.has(5).await;
        assert_eq!((&*next.begins(&first, 0).await, &*next.begins(&first, 1).await), ("5", "0"));
        for (topic, partition) in [(&first, 2), (&first, 3), (&later, 0)] {
            assert_eq!(next.begins(topic, partition).await, "0", "{} {partition}", topic.name);
        }
    });
}

#[test]
fn latest_of_several_daemons_is_the_same() {
    let Some(topic) = Topic::new(4, &[]) else { return };
    run(async {
        (0..4).for_each(|partition| topic.send_values(partition, &numbers(0..5)));
        let config = latest(&[&topic.name], &topic);
        let (mut one, mut other) = (Member::join(&config).await, Member::join(&config).await);
        let begun = Instant::now();
        while (one.lanes.len(), other.lanes.len()) != (2, 2) {
            one.live(Duration::from_millis(50)).await;
            other.live(Duration::from_millis(50)).await;
            assert!(begun.elapsed() < SOON, "{:?} {:?}", one.lanes, other.lanes);
        }
        (0..4).for_each(|partition| topic.send_values(partition, &numbers(0..5)));
        for member in [&one, &other] {
            for lane in &member.lanes {
                let number = lane.as_str().rsplit('/').next().unwrap().parse().unwrap();
                assert_eq!(member.begins(&topic, number).await, "5", "{lane}");
            }
        }
    });
}

/// Offsets that are gone cannot say what was added: it is told, by the daemon that finds marks all the same.
#[test]
fn a_group_that_forgot_where_the_job_began_is_told_of() {
    let Some(topic) = Topic::new(1, &[]) else { return };
    run(async {
        let config = latest(&[&topic.name], &topic);
        let lane = Lane::new(&format!("in/{}/0", topic.name));
        let adopt = async |member: &Member, at: &Positions| {
            member.source.adopt(&lane, at, &History::default()).await.unwrap().warnings
        };
        let mut member = Member::join(&config).await;
        member.has(1).await;
        let at = member.source.origin(&lane).await.unwrap().positions;
        assert!(adopt(&member, &at).await.is_empty());
        member.source.stop().await;
        let mut again = Member::join(&config).await;
        again.has(1).await;
        assert!(adopt(&again, &at).await.is_empty(), "the group knows");
        again.source.stop().await;
        let group = config.group.clone().unwrap();
        services::kafka().unwrap().tool(services::Kafka::GROUPS, &["--delete", "--group", &group]);
        let mut later = Member::join(&config).await;
        later.has(1).await;
        let said = adopt(&later, &at).await;
        assert!(
            said.len() == 1 && said[0].contains(&format!("the group {group} had no offsets of this job")),
            "{said:?}"
        );
        assert!(adopt(&later, &at).await.is_empty(), "once");
    });
}

/// What another program noted for the group of the same name says nothing of where this job begins.
#[test]
fn latest_is_the_end_although_another_program_had_offsets_in_the_group() {
    let Some(topic) = Topic::new(2, &[]) else { return };
    run(async {
        (0..2).for_each(|partition| topic.send_values(partition, &numbers(0..5)));
        let config = latest(&[&topic.name], &topic);
        let kafka = services::kafka().unwrap();
        let group = config.group.clone().unwrap();
        let one = format!("{}:0", topic.name);
        let to_two = ["--group", &group, "--topic", &one, "--reset-offsets", "--to-offset", "2", "--execute"];
        kafka.tool(services::Kafka::GROUPS, &to_two);
        assert_eq!(group_says(&group).get(&0).unwrap().0, "2");
        let mut member = Member::join(&config).await;
        member.has(2).await;
        assert_eq!((&*member.begins(&topic, 0).await, &*member.begins(&topic, 1).await), ("5", "5"));
    });
}

#[test]
fn topics_that_are_made_once_the_job_runs_are_read_from_their_beginning() {
    let Some(other) = Topic::new(1, &[]) else { return };
    run(async {
        let (named, like) = (format!("{}-named", other.name), format!("{}-like", other.name));
        let mut member = Member::join(&latest(&[&named, &format!("^{like}$")], &other)).await;
        // It looks for them every two seconds.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            member.live(Duration::from_millis(100)).await;
        }
        let made = [named, like].map(|name| Topic::at(&other.brokers, &name, 1, &[]));
        made.iter().for_each(|topic| topic.send_values(0, &numbers(0..5)));
        member.has(2).await;
        for topic in &made {
            assert_eq!(member.begins(topic, 0).await, "0");
        }
        // Nothing is committed yet: another one knows by the group's members that the job has begun.
        let mut other = Member::join(&latest(&[&made[0].name, &made[1].name], &other)).await;
        let begun = Instant::now();
        while (member.lanes.len(), other.lanes.len()) != (1, 1) {
            member.live(Duration::from_millis(50)).await;
            other.live(Duration::from_millis(50)).await;
            assert!(begun.elapsed() < SOON, "{:?} {:?}", member.lanes, other.lanes);
        }
        let its = made.iter().find(|topic| other.lanes[0].as_str().contains(&topic.name)).unwrap();
        assert_eq!(other.begins(its, 0).await, "0");
    });
}

/// With a lane for each partition a pattern means what it means with one, and to `validate`.
#[test]
fn a_pattern_means_the_same_to_the_group() {
    let Some(topic) = Topic::new(1, &[]) else { return };
    let name = &topic.name;
    let topics = ["1", "a", "B"].map(|end| Topic::at(&topic.brokers, &format!("{name}-{end}"), 1, &[]));
    run(async {
        for (pattern, found) in [
            (format!(r"^{name}-\d+$"), vec![&topics[0]]),
            (format!("^{name}-(?:a|1)$"), vec![&topics[0], &topics[1]]),
            (format!("^(?i){}-[ab]$", name.to_uppercase()), vec![&topics[1], &topics[2]]),
        ] {
            let located = Located { value: pattern.clone(), at: Default::default() };
            let config = KafkaSource { topics: vec![located], ..topic.config() };
            open_with(config.clone(), &[], true).unwrap().check().await.unwrap();
            let mut member = Member::join(&config).await;
            member.has(found.len()).await;
            member.lanes.sort();
            let mut wanted: Vec<_> = found.iter().map(|topic| Lane::new(&format!("in/{}/0", topic.name))).collect();
            wanted.sort();
            assert_eq!(member.lanes, wanted, "{pattern}");
            member.source.stop().await;
        }
    });
}
