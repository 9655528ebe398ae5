//! A partition that nobody leads, in a cluster of two brokers of which one is gone.

use super::*;

/// So many times the end of the other partition moves.
const TIMES: u32 = 5;
/// They are asked for every two seconds. Where each waited for an answer about the lost one, it would be a minute and more.
const TOGETHER: Duration = Duration::from_secs(30);

#[test]
fn it_is_asked_last_and_the_others_are_heard_of_as_soon_as_before() {
    let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let Some(kafka) = services::Kafka::private(first.path()) else { return };
    let Some(other) = kafka.joined_by(second.path()) else { return };
    let topic = Topic::on(&kafka.brokers, "halves", &[2, 1]);
    topic.send_values(1, &numbers(0..1));
    topic.send_values(0, &numbers(0..1));
    run(async {
        let life = Life::begin(topic.config()).await;
        let lag = async |wanted: u64| {
            let begun = Instant::now();
            while life.source.lag(&life.at).records != Some(wanted) {
                assert!(begun.elapsed() < SOON, "{:?}, not {wanted}", life.source.lag(&life.at).records);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        lag(2).await;
        other.kill();
        let begun = Instant::now();
        while !kafka.tool(services::Kafka::TOPICS, &["--describe", "--topic", "halves"]).contains("Leader: none") {
            assert!(begun.elapsed() < SOON);
        }
        topic.send_values(1, &numbers(0..1));
        lag(3).await;
        let begun = Instant::now();
        for n in 0..TIMES {
            topic.send_values(1, &numbers(0..1));
            lag(u64::from(4 + n)).await;
        }
        assert!(begun.elapsed() < TOGETHER, "{:?}", begun.elapsed());
        // It comes back, and with it its partition.
        other.start();
        topic.send_values(0, &numbers(0..1));
        lag(u64::from(4 + TIMES)).await;
    });
}
