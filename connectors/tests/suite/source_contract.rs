//! The contract of sources: each sentence of the trait `Source` is a case, for every source.
//!
//! A source with lanes of its own (`Assigned`, `Revoked`, `Lost`) has further cases beside its code.

use std::time::Duration;

use crate::sources::*;
use tidemill_checkpoint::{Position, Positions, Span};
use tidemill_connectors::source::{Budget, Proposal, SourceError, SourceEvent};

/// What a source may take beyond its budget: it asks the disk for so much at once.
const SLACK_BYTES: usize = 64 * 1024;

fn is_lost<T>(result: &Result<T, SourceError>) -> bool {
    matches!(result, Err(SourceError::Lost { .. }))
}

#[test]
fn it_has_the_name_of_its_job() {
    each(async |rig| assert_eq!(rig.open().name(), "in"));
}

#[test]
fn nothing_is_received_before_start_and_start_may_be_repeated() {
    each(async |rig| {
        if !rig.is_socket() {
            return;
        }
        let life = Life::unstarted(rig).await;
        assert_eq!(life.source.listening(), None);
        for _ in 0..20 {
            assert!(!rig.is_received());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        life.source.start().await.unwrap();
        life.source.start().await.unwrap();
        assert_eq!(life.source.listening().is_some(), rig.kind == Kind::Listen);
        rig.bring(3);
        Life { rig, ..life }.finish().await;
    });
}

#[test]
fn event_wakes_for_what_is_there_and_for_what_comes() {
    each(async |rig| {
        let mut life = Life::begin(rig).await;
        for round in 0..12 {
            let source = life.source.clone();
            let waiting = tokio::spawn(async move { source.event().await.unwrap() });
            // It waits already, or begins to wait while the records come, or finds them there.
            tokio::time::sleep(Duration::from_millis(round % 4)).await;
            rig.bring(1 + round % 3);
            let event = tokio::time::timeout(SOON, waiting).await.expect("something to do is never missed").unwrap();
            assert_eq!(event, SourceEvent::Data);
            life.finish().await;
        }
    });
}

#[test]
fn what_comes_after_the_origin_is_read_whoever_asks_for_it() {
    each(async |rig| {
        let life = Life::begin(rig).await;
        rig.bring(5);
        // The origin was committed, and then the process ended: it is not asked for again.
        let mut life = life.restart().await;
        rig.bring(5);
        life.finish().await;
        assert!(life.adopt().await.unwrap().new_shards.is_empty());
    });
}

#[test]
fn a_shard_that_the_mark_does_not_know_starts_at_its_beginning() {
    each(async |rig| {
        let mut life = Life::begin(rig).await;
        rig.bring(8);
        life.anchor = Anchor::default();
        let adopted = life.adopt().await.unwrap();
        assert!(!adopted.new_shards.is_empty());
        life.anchor.at = adopted.new_shards;
        life.finish().await;
    });
}

#[test]
fn the_same_spans_give_the_same_records_at_each_read_from_the_spans_alone_and_after_a_restart() {
    each(async |rig| {
        let mut life = Life::begin(rig).await;
        let mut plans = Vec::new();
        let budgets = [Budget { records: 1, ..ALL }, Budget { records: 4, ..ALL }, Budget { bytes: 1000, ..ALL }, ALL];
        for budget in budgets.into_iter().cycle().take(12) {
            rig.bring(7);
            let proposal = life.plan(budget).await;
            let records = life.records(&proposal).await;
            for again in [&proposal, &bare(&proposal), &bare(&proposal)] {
                assert_eq!(life.records(again).await, records);
            }
            life.commit(&proposal, records.clone());
            assert_eq!(life.records(&bare(&proposal)).await, records, "committed, and another sink still lacks it");
            plans.push((bare(&proposal), records));
            if plans.len() % 4 == 0 {
                life = life.restart().await;
            }
        }
        // In any order.
        for (proposal, records) in plans.iter().rev() {
            assert_eq!(life.records(proposal).await, *records);
        }
        life.finish().await;
    });
}

#[test]
fn a_plan_keeps_to_its_budget_and_has_at_least_one_record() {
    each(async |rig| {
        let mut life = Life::begin(rig).await;
        rig.bring(60);
        let origin = life.anchor.clone();
        let bytes = [1, 10, 1_000, 100_000].map(|bytes| Budget { bytes, ..ALL });
        let records = [1, 2, 7].map(|records| Budget { records, ..ALL });
        for budget in bytes.into_iter().chain(records) {
            (life.anchor, life.read) = (origin.clone(), Vec::new());
            life.adopt().await.unwrap();
            let mut last = 0;
            while life.read.len() < 60 {
                let count = life.batch(budget).await;
                let batch = &life.read[life.read.len() - count..];
                assert!((1..=budget.records).contains(&count), "{count} records for {budget:?}");
                let size: usize = batch.iter().map(|record| record.text.len()).sum();
                assert!(count == 1 || size <= budget.bytes + SLACK_BYTES, "{size} bytes for {budget:?}");
                last = last.max(count);
            }
            assert!(budget.records == usize::MAX || last == budget.records, "{budget:?} was never used up");
            life.finish().await;
        }
    });
}

#[test]
fn a_plan_from_the_same_position_gives_the_same_or_more() {
    each(async |rig| {
        let mut life = Life::begin(rig).await;
        for _ in 0..4 {
            rig.bring(5);
            let first = life.plan(ALL).await;
            let records = life.records(&first).await;
            let again = life.plan(ALL).await;
            rig.bring(5);
            let more = life.plan(ALL).await;
            // What was brought may be seen a little later: a plan has what one before it had, and perhaps more.
            for later in [&again, &more] {
                let found = life.records(later).await;
                for (shard, span) in &first.spans {
                    assert_eq!(later.spans[shard].from, span.from);
                    assert!(later.spans[shard].to >= span.to);
                    let of = |all: &[Record]| all.iter().filter(|r| r.shard == *shard).cloned().collect::<Vec<_>>();
                    let mine = of(&records);
                    assert_eq!(of(&found)[..mine.len()], mine);
                }
            }
            // The one that is committed is the one that counts.
            let records = life.records(&again).await;
            drop(more);
            life.adopt().await.unwrap();
            let last = life.plan(ALL).await;
            assert!(life.records(&last).await.len() >= records.len());
            let records = life.records(&last).await;
            life.commit(&last, records);
        }
        life.finish().await;
    });
}

#[test]
fn the_next_batch_is_planned_and_read_before_the_one_before_is_committed() {
    each(async |rig| {
        let mut life = Life::begin(rig).await;
        let few = Budget { records: 4, ..ALL };
        for _ in 0..4 {
            rig.bring(20);
            let first = life.plan(few).await;
            let mut ahead = life.anchor.clone();
            ahead.commit(&first);
            let second = life.plan_from(&ahead.at, few).await.unwrap().unwrap();
            let (later, earlier) = (life.records(&second).await, life.records(&first).await);
            life.commit(&first, earlier);
            life.release().await;
            assert_eq!(life.records(&second).await, later);
            life.commit(&second, later);
        }
        life.finish().await;
    });
}

#[test]
fn an_abandoned_batch_is_offered_again() {
    each(async |rig| {
        let mut life = Life::begin(rig).await;
        let few = Budget { records: 3, ..ALL };
        for _ in 0..4 {
            rig.bring(10);
            let first = life.plan(few).await;
            let records = life.records(&first).await;
            let mut ahead = life.anchor.clone();
            ahead.commit(&first);
            let second = life.plan_from(&ahead.at, ALL).await.unwrap().unwrap();
            assert!(!life.records(&second).await.is_empty());
            // The first one's commit failed: both are dropped.
            drop((first, second));
            life.adopt().await.unwrap();
            assert_eq!(life.event().await, SourceEvent::Data);
            let again = life.plan(few).await;
            assert_eq!(life.records(&again).await, records);
            life.commit(&again, records);
        }
        life.finish().await;
    });
}

#[test]
fn event_plan_and_read_are_cancel_safe() {
    each(async |rig| {
        let mut life = Life::begin(rig).await;
        let (mut dice, mut cut) = (Dice(1), 0);
        for _ in 0..150 {
            let polls = dice.roll(3) as u32;
            let pause = Duration::from_micros(dice.roll(400));
            let budget = Budget { records: 1 + dice.roll(8) as usize, ..ALL };
            match dice.roll(8) {
                0 | 1 => rig.bring(1 + dice.roll(6)),
                2 => {
                    cut += u32::from(cut_off(life.source.event(), polls).await.is_none());
                    cut += u32::from(tokio::time::timeout(pause, life.source.event()).await.is_err());
                }
                3 => cut += u32::from(cut_off(life.plan_from(&life.anchor.at, budget), polls).await.is_none()),
                4 => {
                    let planned = life.plan_from(&life.anchor.at, budget);
                    cut += u32::from(tokio::time::timeout(pause, planned).await.is_err());
                }
                5 if (life.read.len() as u64) < rig.brought.get() => {
                    let proposal = life.plan(budget).await;
                    cut += u32::from(cut_off(life.try_read(&proposal), polls).await.is_none());
                    let replay = bare(&proposal);
                    cut += u32::from(cut_off(life.try_read(&replay), polls).await.is_none());
                    let records = life.records(&proposal).await;
                    assert_eq!(life.records(&replay).await, records);
                    life.commit(&proposal, records);
                }
                6 if dice.roll(4) == 0 => life = life.restart().await,
                6 => drop(life.adopt().await.unwrap()),
                _ => life.release().await,
            }
        }
        assert!(cut > 20, "{cut} futures were dropped");
        life.finish().await;
    });
}

#[test]
fn a_release_may_be_repeated_and_forgets_nothing_else() {
    each(async |rig| {
        let mut life = Life::begin(rig).await;
        for round in 0..40 {
            rig.bring(60);
            let before = life.anchor.at.clone();
            life.batch(ALL).await;
            let proposal = life.plan(Budget { records: 5, ..ALL });
            rig.bring(20);
            let proposal = proposal.await;
            life.release().await;
            life.release().await;
            // An older one that comes late changes nothing.
            life.source.release(&lane(), &before).await.unwrap();
            let records = life.records(&proposal).await;
            assert_eq!(life.records(&bare(&proposal)).await, records);
            if round % 8 == 7 {
                life = life.restart().await;
                life.release().await;
                let again = life.plan(Budget { records: 5, ..ALL }).await;
                assert_eq!(life.records(&again).await, records);
                life.commit(&again, records);
            } else {
                life.commit(&proposal, records);
            }
        }
        life.finish().await;
        if rig.is_socket() {
            // The spool was filled several times over: released segments are gone.
            life.release().await;
            let spool = life.source.lag(&life.anchor.at).spool_bytes.unwrap();
            let brought: usize = life.read.iter().map(|record| record.text.len()).sum();
            assert!(brought > 3 << 20 && spool < 1 << 20, "{spool} bytes are kept of {brought}");
        }
    });
}

#[test]
fn what_can_be_read_again_is_read_again_from_the_beginning_up_to_the_head() {
    each(async |rig| {
        let mut life = Life::begin(rig).await;
        let origin = life.anchor.at.clone();
        for _ in 0..4 {
            rig.bring(7);
            life.batch(ALL).await;
            life.release().await;
        }
        assert_eq!(life.source.rereadable(), !rig.is_socket());
        if !life.source.rereadable() {
            return;
        }
        life.finish().await;
        let mut life = life.restart().await;
        let mut own = life.anchor.clone();
        own.at = origin;
        let mut read = Vec::new();
        while own.at != life.anchor.at {
            let few = Budget { records: 4, ..ALL };
            let Some(plan) = life.plan_from(&own.at, few).await.unwrap() else {
                // What is fetched beside the loop may not have come yet.
                assert_eq!(life.event().await, SourceEvent::Data);
                continue;
            };
            assert!(plan.entries.is_empty(), "what is listed is not listed again");
            read.extend(life.records(&plan).await);
            own.commit(&plan);
        }
        read.sort();
        life.read.sort();
        assert_eq!(read, life.read);
    });
}

#[test]
fn a_lost_range_is_an_error_and_never_a_skip() {
    each(async |rig| {
        if rig.is_table() {
            return;
        }
        let mut life = Life::begin(rig).await;
        let origin = life.anchor.at.clone();
        rig.bring(8);
        let committed = life.plan(ALL).await;
        let records = life.records(&committed).await;
        life.commit(&committed, records);
        rig.bring(4);
        rig.lose();
        if rig.kind == Kind::Kafka {
            // What it read it still has: another process has not.
            life.source = rig.open();
        }
        let replay = life.try_read(&bare(&committed)).await;
        assert!(is_lost(&replay), "{replay:?}");
        // For a sink that catches up the source is put at the head, and plans what lies before it.
        if let Err(error) = life.adopt().await {
            assert!(is_lost(&Err::<(), _>(error)));
        } else {
            let catch_up = life.plan_from(&origin, ALL).await;
            assert!(is_lost(&catch_up), "{catch_up:?}");
        }
        let error = replay.unwrap_err();
        assert!(!error.is_transient() && error.to_string().contains("tidemill checkpoint resolve --shard"), "{error}");
    });
}

#[test]
fn a_mark_beyond_what_there_is_is_lost_and_one_of_another_kind_is_refused() {
    each(async |rig| {
        if rig.is_table() {
            return;
        }
        let mut life = Life::begin(rig).await;
        rig.bring(4);
        life.batch(ALL).await;
        let moved = |to: &dyn Fn(&Position) -> Position| -> Positions {
            life.anchor.at.iter().map(|(shard, at)| (shard.clone(), to(at))).collect()
        };
        let beyond = moved(&|at| match at.as_pair() {
            Some((file, _)) => Position::pair(file + 1, 0),
            None => Position::number(at.as_number().unwrap() + 1),
        });
        let other = moved(&|_| Position::text("another"));
        let spans = |to: &Positions| {
            let span = |(shard, from): (&_, &Position)| {
                (Clone::clone(shard), Span { from: from.clone(), to: to[shard].clone() })
            };
            Proposal { spans: life.anchor.at.iter().map(span).collect(), ..Proposal::default() }
        };
        let read = life.try_read(&spans(&beyond)).await;
        assert!(is_lost(&read), "{read:?}");
        let read = life.try_read(&spans(&other)).await;
        assert!(read.as_ref().is_err_and(|error| !error.is_transient()), "{read:?}");
        let planned = life.plan_from(&other, ALL).await;
        assert!(planned.as_ref().is_err_and(|error| !error.is_transient()), "{planned:?}");
        let history = life.anchor.history();
        let adopted = life.source.adopt(&lane(), &other, &history).await;
        assert!(adopted.as_ref().is_err_and(|error| !error.is_transient()), "{adopted:?}");
        let adopted = life.source.adopt(&lane(), &beyond, &history).await;
        assert!(is_lost(&adopted), "{adopted:?}");
        // A refusal is no damage.
        life.adopt().await.unwrap();
        life.finish().await;
    });
}

#[test]
fn after_finish_the_end_comes_when_what_was_there_is_planned() {
    each(async |rig| {
        let mut life = Life::begin(rig).await;
        rig.bring(9);
        life.batch(Budget { records: 2, ..ALL }).await;
        life.source.finish();
        rig.hang_up();
        let mut turns = 0;
        while life.event().await != SourceEvent::End {
            if let Some(plan) = life.plan_from(&life.anchor.at, Budget { records: 2, ..ALL }).await.unwrap() {
                let records = life.records(&plan).await;
                life.commit(&plan, records);
            }
            turns += 1;
            assert!(turns < 100, "no end");
        }
        assert_eq!(life.event().await, SourceEvent::End, "it stays the end");
        life.finish().await;
        // The last batch was abandoned: there is no end before it is planned again.
        let mut life = life.restart().await;
        rig.bring(2);
        let before = life.anchor.clone();
        life.batch(ALL).await;
        life.source.finish();
        rig.hang_up();
        (life.anchor, life.read) = (before, life.read[..9].to_vec());
        life.adopt().await.unwrap();
        assert_eq!(life.event().await, SourceEvent::Data);
        life.finish().await;
    });
}

#[test]
fn lag_tells_what_waits_and_nothing_when_nothing_does() {
    each(async |rig| {
        if rig.is_table() {
            return;
        }
        let mut life = Life::begin(rig).await;
        rig.bring(30);
        // A directory tells of what it has seen.
        life.event().await;
        if rig.kind == Kind::Kafka {
            // Brokers are asked now and then.
            while life.source.lag(&life.anchor.at).records != Some(30) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let mut last = u64::MAX;
        for _ in 0..5 {
            let lag = life.source.lag(&life.anchor.at);
            // What is counted in records has no bytes.
            let bytes = lag.bytes.or(lag.records).unwrap();
            assert!(0 < bytes && bytes < last, "{bytes} after {last}");
            let left = 30 - life.read.len() as u64;
            assert!(lag.records.is_none_or(|records| records == left), "{lag:?} of {left}");
            // Nobody waits from before the records came but files, whose age is that of their content.
            assert!(lag.oldest.is_none_or(|age| !rig.is_socket() || age < SOON), "{lag:?}");
            last = bytes;
            life.batch(Budget { records: 6, ..ALL }).await;
        }
        life.finish().await;
        let lag = life.source.lag(&life.anchor.at);
        let nothing = (lag.bytes.unwrap_or(0), lag.records.unwrap_or(0), lag.oldest.unwrap_or_default());
        assert_eq!(nothing, (0, 0, Duration::ZERO));
        assert!(lag.bytes.is_some() || lag.records.is_some());
        // Released or not.
        life.release().await;
        assert_eq!(life.source.lag(&life.anchor.at).bytes.or(lag.records), Some(0));
    });
}
