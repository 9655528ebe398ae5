//! The protocol, exhaustively: every interleaving of runners that crash after any step, pause between any two, lose their
//! ledger, and find sinks that were added, removed and restored, over the real `decide()` and real plans and marks.
//!
//! Three things are counted: violations (a record lost or doubled), stops (something that nobody can explain) and dead
//! ends (no runner could finish). The good designs have none; stops that the design wants are counted apart. The bad
//! designs show that the model can fail. A sink's rows are in it in order: A gets the records 1, 2, 4, B gets 2, 3, 4, so
//! that some plans have no rows for one of them.
#![allow(clippy::unwrap_used, clippy::too_many_arguments)]

mod book;
mod world;

use book::{A, B, Job, LEDGER};
use tidemill_checkpoint::{Stop, decide::Misfit};
use world::{Fencing, Scenario, World};

const fn job(sinks: &[usize], anchor: usize) -> Job {
    let (mut bits, mut n) = (0, 0);
    while n < sinks.len() {
        bits |= 1 << sinks[n];
        n += 1;
    }
    Job { sinks: bits, anchor, catch_up: false }
}
const BOTH: Job = job(&[A, B], A);
const ONLY_A: Job = job(&[A], A);
const ONLY_B: Job = job(&[B], B);
const LATE_B: u8 = 1 << B;

/// Where the design says stop, the model must have seen one.
const WITH_STOPS: [&str; 5] = [
    "backup of the anchor restored, 1 runner",
    "backup of B restored, 1 runner",
    "backups of both restored, 1 runner",
    "anchor removed, the ledger may be lost",
    "anchor removed, added again",
];

/// The designs that must hold.
fn good() -> Vec<(&'static str, Scenario)> {
    let catching_up = Job { catch_up: true, ..BOTH };
    let restored = |stop: &Stop| {
        matches!(
            stop,
            Stop::Gap { why: Misfit::Beyond | Misfit::Digest, .. } | Stop::AnchorEmptied { .. } | Stop::Emptied { .. }
        )
    };
    vec![
        ("1 runner, 4 crashes", Scenario { crashes: 4, ..Scenario::new(&[BOTH]) }),
        ("2 runners", Scenario::new(&[BOTH, BOTH])),
        ("2 runners, two clocks", Scenario { clocks: true, ..Scenario::new(&[BOTH, BOTH]) }),
        ("3 runners, no crash", Scenario { crashes: 0, ..Scenario::new(&[BOTH; 3]) }),
        ("B added, joins at the head", Scenario { late: LATE_B, ..Scenario::new(&[ONLY_A, BOTH]) }),
        ("B added, catches up", Scenario { late: 0, ..Scenario::new(&[ONLY_A, catching_up]) }),
        ("B added, removed, added again", {
            let jobs = vec![vec![ONLY_A, BOTH, ONLY_A, BOTH]];
            Scenario { jobs, crashes: 5, late: LATE_B, ledger: true, ..Scenario::new(&[BOTH]) }
        }),
        ("2 lanes, 1 runner, 2 crashes", Scenario { lanes: vec![3], records: 3, crashes: 2, ..Scenario::new(&[BOTH]) }),
        ("2 lanes, one moves to a second runner", {
            Scenario { lanes: vec![3, 2], records: 2, crashes: 0, ..Scenario::new(&[BOTH, BOTH]) }
        }),
        ("backup of the anchor restored, 1 runner", {
            Scenario { backups: 1 << A, crashes: 2, ledger: true, wanted: restored, ..Scenario::new(&[BOTH]) }
        }),
        ("backup of B restored, 1 runner", {
            Scenario { backups: 1 << B, crashes: 2, ledger: true, wanted: restored, ..Scenario::new(&[BOTH]) }
        }),
        ("backups of both restored, 1 runner", {
            Scenario { backups: 3, records: 3, ledger: true, wanted: restored, ..Scenario::new(&[BOTH]) }
        }),
        ("backup of the only sink restored, 2 runners", {
            Scenario { backups: 1 << A, crashes: 0, records: 2, wanted: restored, ..Scenario::new(&[ONLY_A, ONLY_A]) }
        }),
        ("anchor removed, the ledger may be lost", {
            let jobs = vec![vec![BOTH, ONLY_B]];
            Scenario {
                jobs,
                crashes: 3,
                ledger: true,
                wanted: |stop| matches!(stop, Stop::AnchorGone { .. }),
                ..Scenario::new(&[BOTH])
            }
        }),
        ("anchor removed, resolved by an operator", {
            let jobs = vec![vec![BOTH, ONLY_B]];
            Scenario { jobs, crashes: 3, ledger: true, operator: true, ..Scenario::new(&[BOTH]) }
        }),
        ("anchor removed, added again", {
            let jobs = vec![vec![BOTH, ONLY_B, job(&[A, B], B)]];
            // What the old anchor alone had, the operator gave up: two stories, told by their marks.
            let wanted = |stop: &Stop| matches!(stop, Stop::Gap { .. });
            Scenario { jobs, crashes: 3, ledger: true, operator: true, late: 1 << A, wanted, ..Scenario::new(&[BOTH]) }
        }),
        ("ledger as the anchor", Scenario { crashes: 4, unmarked: true, ..Scenario::new(&[job(&[LEDGER], LEDGER)]) }),
        ("ledger as the anchor, then A, then A alone", {
            let jobs = vec![vec![job(&[LEDGER], LEDGER), job(&[LEDGER, A], A), ONLY_A]];
            let wanted = |stop: &Stop| matches!(stop, Stop::AnchorGone { .. });
            Scenario { jobs, crashes: 4, late: 1 << A, ledger: true, wanted, ..Scenario::new(&[ONLY_A]) }
        }),
        ("entries, 2 runners", Scenario { entries: true, records: 3, ..Scenario::new(&[BOTH, BOTH]) }),
        ("entries, the ledger as the anchor, then A", ledger_then_a(false)),
        ("ledger as the anchor, then A; A goes on elsewhere, and comes back", {
            let both = job(&[LEDGER, A], A);
            let jobs = vec![vec![job(&[LEDGER], LEDGER), both, both], vec![ONLY_A]];
            // Elsewhere nobody knows of the ledger: where A was empty yet, another life began.
            let wanted = |stop: &Stop| matches!(stop, Stop::Gap { why: Misfit::OtherOrigin, .. });
            Scenario { jobs, late: 1 << A, wanted, ..Scenario::new(&[ONLY_A, ONLY_A]) }
        }),
    ]
}

/// A sink is added to a job whose anchor is the ledger, with crashes anywhere: between the two marks of the move too.
fn ledger_then_a(entries_of_the_anchor: bool) -> Scenario {
    let jobs = vec![vec![job(&[LEDGER], LEDGER), job(&[LEDGER, A], A)]];
    Scenario { jobs, crashes: 4, late: 1 << A, entries: true, entries_of_the_anchor, ..Scenario::new(&[ONLY_A]) }
}

fn bad() -> Vec<(&'static str, Scenario)> {
    let two = Scenario { crashes: 0, ..Scenario::new(&[BOTH, BOTH]) };
    vec![
        ("no fencing", Scenario { fencing: Fencing::None, crashes: 1, ..two.clone() }),
        ("a generation per sink", Scenario { fencing: Fencing::PerSink, ..two.clone() }),
        ("check, then write", Scenario { atomic: false, ..two.clone() }),
        ("a mark that is only a number", Scenario { numbers_only: true, ..Scenario::new(&[BOTH]) }),
        ("entries asked of an anchor on its way", ledger_then_a(true)),
    ]
}

#[test]
fn good_designs_hold() {
    let mut states = 0;
    let mut failed = Vec::new();
    for (name, scenario) in good() {
        let found = World::explore(&scenario);
        println!("{name:44} {found:?}");
        states += found.states;
        let stops_as_wanted = found.wanted_stops > 0 || !WITH_STOPS.contains(&name);
        if (found.violations, found.stops, found.dead_ends) != (0, 0, 0) || found.finished == 0 || !stops_as_wanted {
            failed.push((name, found));
        }
    }
    println!("{states} states");
    assert_eq!(failed, [], "the protocol loses, doubles, or gives up");
    assert!(states >= 500_000, "the model has shrunk to {states} states");
}

#[test]
fn bad_designs_fail() {
    for (name, scenario) in bad() {
        let found = World::explore(&scenario);
        println!("{name:44} {found:?}");
        assert_ne!((found.violations, found.stops, found.dead_ends), (0, 0, 0), "{name}: the model does not see it");
    }
}
