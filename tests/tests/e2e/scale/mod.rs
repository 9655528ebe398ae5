//! Several daemons on one job: the lanes of a Kafka topic move between them while they are killed, paused, cut off and
//! restarted one after the other. What is in PostgreSQL, in files and in a topic is counted: every record once.
//!
//! `FAULTS` says how many faults are injected in all (50; `make torture`: 500).

mod weblog;
mod world;

use std::time::{Duration, Instant};

use self::world::{Fault, Load, World};
use rand::{SeedableRng, rngs::StdRng};
use tidemill_tests::needs;

/// Faults in all, over the rows of the matrix.
fn faults() -> usize {
    std::env::var("FAULTS").ok().and_then(|text| text.parse().ok()).unwrap_or(50)
}

/// One row of the matrix: so many daemons, this share of the faults.
fn matrix(daemons: usize, share: f64) {
    let Some(mut world) = World::new(daemons) else { return };
    let mut chance = StdRng::seed_from_u64(daemons as u64);
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a few hundred
    let count = (faults() as f64 * share).ceil() as usize;
    world.wait_for_rows(1);
    for _ in 0..count {
        let fault = Fault::any(&mut chance, daemons);
        world.inject(fault, &mut chance);
    }
    let told = world.finish();
    println!("{daemons} daemons: {count} faults ({told})");
}

#[test]
fn one_daemon_loses_and_doubles_nothing() {
    matrix(1, 0.2);
}

#[test]
fn two_daemons_lose_and_double_nothing() {
    matrix(2, 0.4);
}

#[test]
fn four_daemons_lose_and_double_nothing() {
    matrix(4, 0.4);
}

/// A web log repeated to `WEBLOG_RECORDS` records (100,000; `make torture`: 3,000,000) goes through two daemons that are
/// killed at random, and its sums are right.
#[test]
fn a_web_log_goes_to_a_table_with_two_daemons_and_kills() {
    let Some(log) = needs::data("weblog-apache/apache_logs") else { return };
    let total = std::env::var("WEBLOG_RECORDS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000);
    let Some(mut world) = World::of(2, weblog::load(&log, total)) else { return };
    world.wait_for_rows(1);
    let mut chance = StdRng::seed_from_u64(3);
    while !world.is_all_sent() {
        world.inject(Fault::Kill, &mut chance);
    }
    println!("a web log: {}", world.finish());
}

/// One member is paused again and again for longer than its session: the others take its lanes over, and no lane's lag
/// grows with the length of the run.
#[test]
fn a_slow_member_does_not_hold_its_lanes_back() {
    let Some(mut world) = World::new(2) else { return };
    world.wait_for_rows(1);
    for _ in 0..3 {
        world.pause(0, Duration::from_secs(5));
        world.expect_bounded_lag(Duration::from_secs(20));
    }
    println!("a slow member: {}", world.finish());
}

/// One member's database takes less than half of the lanes bring (each 250 rows of 41 bytes a second): the other daemon has time,
/// joins the group again and gets lanes from it, until what every lane waits for is bounded. Then its own database becomes too
/// slow for what it has, and it gives a member up. With `members: 1` the lag grows for as long as records come.
#[test]
fn free_hands_take_lanes_from_a_member_that_cannot_keep_up() {
    let Some(world) = World::of(2, Load::to_database()) else { return };
    world.wait_for_more_rows();
    world.slow_database(0, Some(35_000));
    world.wait_for_lag(Duration::from_secs(5));
    world.wait_for_words(1, "joins the group once more");
    world.expect_bounded_lag(Duration::from_secs(4));
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        world.expect_bounded_lag(Duration::from_secs(8));
        std::thread::sleep(Duration::from_millis(500));
    }
    world.slow_database(0, None);
    world.slow_database(1, Some(50_000));
    world.wait_for_words(1, "a member of it leaves the group");
    world.slow_database(1, None);
    world.expect_bounded_lag(Duration::from_secs(4));
    let (joined, left) = (world.said(1, "joins the group once more"), world.said(1, "a member of it leaves the group"));
    println!("slow databases; a daemon joined {joined} times more and left {left} times: {}", world.finish());
}

/// A rolling restart: each daemon is told to end and started again, one after the other; nothing is replayed.
#[test]
fn a_rolling_restart_moves_lanes_cleanly() {
    let Some(mut world) = World::new(3) else { return };
    world.wait_for_rows(1);
    for member in 0..3 {
        world.restart(member);
        world.wait_for_more_rows();
    }
    println!("a rolling restart: {}", world.finish());
}
