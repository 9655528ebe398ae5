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
