//! The table of `docs/protocol.md`, row by row over enumerated inputs, and the proof that every input has an answer.
#![allow(clippy::unwrap_used)]

use uuid::Uuid;

use super::*;
use crate::{
    Generation, Owner, Position, ShardId, Span,
    next::{self, Content, Draft, Place, Writer},
};

fn owner() -> Owner {
    Owner { name: "host".into(), data_dir: Uuid::nil(), instance: Uuid::nil() }
}
fn sink(name: &str) -> SinkId {
    SinkId::new(name)
}
fn local() -> SinkId {
    SinkId::local("dead", Uuid::from_u128(7))
}
fn shard() -> ShardId {
    ShardId::new("s", "")
}
fn at(n: u64) -> Positions {
    Positions::from([(shard(), Position::number(n))])
}
fn reads(from: u64, to: u64) -> Content {
    let span = Span { from: Position::number(from), to: Position::number(to) };
    Content { spans: [(shard(), span)].into_iter().filter(|(_, s)| s.from != s.to).collect(), ..Content::default() }
}
fn origin_of(anchor: &str, sinks: &[&str], job: &[u8]) -> Mark {
    let owner = owner();
    let ids: Vec<_> = sinks.iter().map(|name| sink(name)).collect();
    let content = Content { job: Some(Digest::of(job)), ..Content::default() };
    let writer = Writer { generation: Generation(1), owner: &owner };
    next::origin(&Lane::single(), LaneScheme::Single, &sink(anchor), &ids, at(0), content, writer).unwrap().mark
}
fn batch(head: &Mark, joined: &[(&SinkId, Option<&Mark>)], rows: &[&SinkId], to: u64) -> Mark {
    let owner = owner();
    let from = head.positions.get(&shard()).and_then(Position::as_number).unwrap();
    let joined = joined.iter().map(|(id, mark)| ((*id).clone(), mark.map(|m| m.digest))).collect();
    let rows = rows.iter().map(|id| (*id).clone()).collect();
    let draft = Draft::batch(head, head.anchor(), reads(from, to)).unwrap();
    draft.finish(head, &joined, &rows, Writer { generation: Generation(1), owner: &owner }).unwrap().mark
}
fn held(mark: &Mark, id: &SinkId) -> Mark {
    mark.held_by(id, mark.generation, &mark.owner)
}
fn behind(head: &Mark, id: &SinkId, to: u64) -> Mark {
    let owner = owner();
    let writer = Writer { generation: Generation(1), owner: &owner };
    next::catch_up(head, None, id, &at(0), reads(0, to), writer).unwrap().mark
}

/// Facts with everything as it should be.
fn facts<'a>(anchor: &'a SinkId, sinks: &[(&SinkId, Option<&'a Mark>, bool)], closed: Option<&'a Mark>) -> Facts<'a> {
    let sinks = sinks
        .iter()
        .map(|(id, mark, catch_up)| ((*id).clone(), SinkFacts { mark: *mark, catch_up: *catch_up }))
        .collect();
    Facts { anchor, lanes: LaneScheme::Single, sinks, closed, stateless: true, rereadable: true }
}

/// A name for a decision, short enough for a table.
fn name(decision: &Decision<'_>) -> String {
    match decision {
        Decision::Origin => "origin".into(),
        Decision::Next { head, rewound_from, .. } => {
            format!("next after {}{}", head.plan.seq, if rewound_from.is_some() { ", rewound" } else { "" })
        }
        Decision::MoveAnchor { head, to, .. } => format!("move to {to} after {}", head.plan.seq),
        Decision::Replay { head, sinks } => {
            format!("replay {} to {}", head.plan.seq, sinks.keys().map(SinkId::name).collect::<Vec<_>>().join(","))
        }
        Decision::CatchUp { sink, from, .. } => {
            format!("catch up {} from {}", sink.name(), from.values().next().unwrap())
        }
        Decision::Stop(stop) => match stop {
            Stop::AnchorEmptied { .. } => "stop: anchor emptied".into(),
            Stop::AnchorGone { .. } => "stop: anchor gone".into(),
            Stop::HistoryGone { .. } => "stop: history gone".into(),
            Stop::Emptied { sink, .. } => format!("stop: {sink} emptied"),
            Stop::Gap { sink, why, .. } => format!("stop: {} {why:?}", sink.name()),
            Stop::Lanes { .. } => "stop: lanes".into(),
            Stop::Restored { problem, .. } => format!("stop: restored {problem:?}"),
        },
    }
}
fn ask(facts: &Facts<'_>) -> String {
    name(&decide(facts))
}

/// A lane's life: the anchor `a`, then `b`, and `c` which the plans do not list. `p1` touches both, `p2` the anchor
/// alone, `p3` both; each reads one record.
struct Life {
    a: SinkId,
    b: SinkId,
    c: SinkId,
    o: Mark,
    p1: Mark,
    p2: Mark,
    p3: Mark,
}
fn life() -> Life {
    let (a, b, c) = (sink("a"), sink("b"), sink("c"));
    let o = origin_of("a", &["a", "b"], b"job");
    let p1 = batch(&o, &[(&a, Some(&o)), (&b, Some(&o))], &[&a, &b], 1);
    let p2 = batch(&p1, &[(&a, Some(&p1)), (&b, Some(&p1))], &[&a], 2);
    let p3 = batch(&p2, &[(&a, Some(&p2)), (&b, Some(&p1))], &[&a, &b], 3);
    Life { a, b, c, o, p1, p2, p3 }
}

#[test]
fn row_1_no_sink_has_a_mark() {
    let l = life();
    for catch_up in [false, true] {
        for closed in [None, Some(&l.p1)] {
            assert_eq!(ask(&facts(&l.a, &[(&l.a, None, catch_up), (&l.b, None, false)], closed)), "origin");
        }
    }
    // Emptied, and replaced by another sink as well: the ledger's head, not the origin, or a renamed sink gets all twice.
    assert_eq!(ask(&facts(&l.c, &[(&l.c, None, false)], Some(&l.p1))), "move to c after 1");
}

#[test]
fn row_2_the_anchor_was_emptied() {
    let l = life();
    for mark in [&l.o, &l.p1, &l.p3] {
        let b = held(mark, &l.b);
        for closed in [None, Some(&l.p3)] {
            assert_eq!(
                ask(&facts(&l.a, &[(&l.a, None, false), (&l.b, Some(&b), false)], closed)),
                "stop: anchor emptied"
            );
        }
    }
}

#[test]
fn rows_3_to_5_a_listed_sink() {
    let l = life();
    for (head, holds, expected) in [
        (&l.o, Some(&l.o), "next after 0"),
        (&l.o, None, "replay 0 to b"),
        (&l.p1, Some(&l.p1), "next after 1"),
        (&l.p1, Some(&l.o), "replay 1 to b"),
        (&l.p1, None, "stop: b emptied"),
        (&l.p2, Some(&l.p1), "next after 2"),
        (&l.p2, Some(&l.o), "stop: b Digest"),
        (&l.p2, None, "stop: b emptied"),
        (&l.p3, Some(&l.p3), "next after 3"),
        (&l.p3, Some(&l.p1), "replay 3 to b"),
        (&l.p3, Some(&l.o), "stop: b Digest"),
        (&l.p3, Some(&l.p2), "stop: b Digest"),
        (&l.p3, None, "stop: b emptied"),
    ] {
        let b = holds.map(|mark| held(mark, &l.b));
        for catch_up in [false, true] {
            for closed in [None, Some(&l.o), Some(head)] {
                let facts = facts(&l.a, &[(&l.a, Some(head), false), (&l.b, b.as_ref(), catch_up)], closed);
                assert_eq!(ask(&facts), expected, "head {} holds {:?}", head.plan.seq, holds.map(|m| m.plan.seq));
            }
        }
    }
}

#[test]
fn rows_6_to_8_a_sink_that_the_head_does_not_list() {
    let l = life();
    let (c1, c2, c3) = (behind(&l.p3, &l.c, 1), behind(&l.p3, &l.c, 2), behind(&l.p3, &l.c, 3));
    for (head, holds, catch_up, expected) in [
        (&l.p3, None, false, "next after 3"),
        (&l.p3, None, true, "catch up c from 0"),
        (&l.o, None, true, "next after 0"),
        (&l.p3, Some(&c1), false, "catch up c from 1"),
        (&l.p3, Some(&c2), true, "catch up c from 2"),
        (&l.p3, Some(&c3), false, "next after 3"),
        (&l.p2, Some(&c3), false, "stop: c Beyond"),
        (&l.p2, Some(&c3), true, "stop: c Beyond"),
    ] {
        let b = held(if head.plan.seq == 2 { &l.p1 } else { head }, &l.b);
        let facts = facts(&l.a, &[(&l.a, Some(head), false), (&l.b, Some(&b), false), (&l.c, holds, catch_up)], None);
        assert_eq!(ask(&facts), expected);
    }
    // What joins is what each holds.
    let b = held(&l.p3, &l.b);
    let all = facts(&l.a, &[(&l.a, Some(&l.p3), false), (&l.b, Some(&b), false), (&l.c, None, false)], None);
    let Decision::Next { joined, .. } = decide(&all) else { panic!("{}", ask(&all)) };
    assert_eq!(joined, BTreeMap::from([(l.a.clone(), Some(l.p3.digest)), (l.b, Some(l.p3.digest)), (l.c, None)]));
}

#[test]
fn row_6_told_by_an_operators_jump() {
    let l = life();
    let owner = owner();
    let writer = Writer { generation: Generation(2), owner: &owner };
    let places = BTreeMap::from([(l.a.clone(), Place::Join(Some(l.p3.digest))), (l.b.clone(), Place::CatchUp)]);
    let jump = next::jump(&l.p3, 3, &l.a, &places, at(3), "b was emptied", Content::default(), writer).unwrap().mark;
    for (holds, expected) in
        [(None, "catch up b from 0"), (Some(&l.o), "catch up b from 0"), (Some(&l.p1), "catch up b from 1")]
    {
        let b = holds.map(|mark| held(mark, &l.b));
        assert_eq!(ask(&facts(&l.a, &[(&l.a, Some(&jump), false), (&l.b, b.as_ref(), false)], Some(&l.p3))), expected);
    }
}

#[test]
fn row_9_gaps() {
    let l = life();
    let foreign = held(&origin_of("b", &["b"], b"another"), &l.b);
    let mut partition = held(&l.p1, &l.b);
    partition.lanes = LaneScheme::Partition;
    for closed in [None, Some(&l.p1)] {
        let with_b = |b: &Mark| ask(&facts(&l.a, &[(&l.a, Some(&l.p1), false), (&l.b, Some(b), false)], closed));
        assert_eq!(with_b(&foreign), "stop: b OtherOrigin");
        assert_eq!(with_b(&held(&l.p3, &l.b)), "stop: b Beyond");
        assert_eq!(with_b(&partition), "stop: lanes");
    }
    let mut scheme = facts(&l.a, &[(&l.a, Some(&l.o), false)], None);
    scheme.lanes = LaneScheme::Partition;
    assert_eq!(ask(&scheme), "stop: lanes");
    // A foreign sink with the higher number does not become the head.
    let f9 = (1..9).fold(origin_of("c", &["c"], b"another"), |head, n| batch(&head, &[(&l.c, Some(&head))], &[], n));
    let both = facts(&l.a, &[(&l.a, Some(&l.p1), false), (&l.c, Some(&f9), false)], None);
    assert!(ask(&both).ends_with("OtherOrigin"), "{}", ask(&both));
}

#[test]
fn row_10_a_restored_backup() {
    let l = life();
    let (b0, b1, b3) = (held(&l.o, &l.b), held(&l.p1, &l.b), held(&l.p3, &l.b));
    let foreign = origin_of("a", &["a"], b"another");
    for (a, b, closed, stateless, rereadable, expected) in [
        (&l.p1, &b1, &l.p3, true, true, "next after 1, rewound"),
        (&l.p2, &b1, &l.p3, true, true, "next after 2, rewound"),
        (&l.p1, &b0, &l.p3, true, true, "replay 1 to b"),
        (&l.p1, &b3, &l.p3, true, true, "stop: b Beyond"),
        (&l.p1, &b1, &l.p3, false, true, "stop: restored State"),
        (&l.p1, &b1, &l.p3, true, false, "stop: restored Source"),
        (&l.p1, &b1, &foreign, true, true, "stop: restored OtherOrigin"),
        (&l.p3, &b3, &l.p1, false, false, "next after 3"),
    ] {
        let mut facts = facts(&l.a, &[(&l.a, Some(a), false), (&l.b, Some(b), false)], Some(closed));
        (facts.stateless, facts.rereadable) = (stateless, rereadable);
        assert_eq!(ask(&facts), expected);
    }
}

#[test]
fn the_anchor_is_gone_from_the_job() {
    let l = life();
    for (b, closed, expected) in [
        (Some(&l.p3), Some(&l.p3), "move to b after 3"),
        (Some(&l.p1), Some(&l.p2), "move to b after 2"),
        (Some(&l.p1), Some(&l.p1), "move to b after 1"),
        (Some(&l.p1), Some(&l.p3), "stop: anchor gone"),
        (Some(&l.p3), Some(&l.p1), "stop: anchor gone"),
        (Some(&l.p3), None, "stop: anchor gone"),
        (None, Some(&l.p3), "stop: anchor gone"),
    ] {
        let mark = b.map(|mark| held(mark, &l.b));
        let here = facts(&l.b, &[(&l.b, mark.as_ref(), false), (&l.c, None, false)], closed);
        assert_eq!(ask(&here), expected, "{:?} {:?}", b.map(|m| m.plan.seq), closed.map(|m| m.plan.seq));
    }
    // The list of accepted files was in it.
    let mut listed = l.p3.clone();
    listed.logs.insert(crate::LogName::new("files:s"), crate::LogState { first: 0, next: 2, digest: Digest::of(b"") });
    let b3 = held(&l.p3, &l.b);
    assert_eq!(ask(&facts(&l.b, &[(&l.b, Some(&b3), false)], Some(&listed))), "stop: history gone");
}

#[test]
fn the_anchor_moves() {
    let l = life();
    let owner = owner();
    let writer = Writer { generation: Generation(1), owner: &owner };
    let joined = BTreeMap::from([(l.a.clone(), Some(l.p3.digest)), (l.c.clone(), None)]);
    let moved = next::move_anchor(&l.p3, &l.c, &joined, Content::default(), writer).unwrap().mark;
    assert_eq!((&moved.sink, moved.anchor()), (&l.a, &l.c));
    let c4 = held(&moved, &l.c);
    let c5 = batch(&c4, &[(&l.a, Some(&moved)), (&l.c, Some(&c4))], &[&l.a], 4);
    let a5 = held(&c5, &l.a);
    let c_before = behind(&l.p3, &l.c, 2);
    for (a, c, expected) in [
        (Some(&moved), None, "replay 4 to c"),
        (Some(&moved), Some(&c4), "next after 4"),
        (Some(&moved), Some(&c5), "replay 5 to a"),
        (Some(&a5), Some(&c5), "next after 5"),
        (Some(&a5), Some(&c4), "stop: a Beyond"),
        (Some(&l.p3), Some(&c4), "replay 4 to a"),
        (Some(&a5), Some(&c_before), "stop: a Beyond"),
    ] {
        assert_eq!(ask(&facts(&l.a, &[(&l.a, a, false), (&l.c, c, false)], None)), expected);
    }
    assert_eq!(
        ask(&facts(&l.a, &[(&l.a, Some(&moved), false)], None)),
        "stop: anchor gone",
        "a job that does not know c"
    );
    // Out of the ledger, as soon as a sink keeps marks.
    let ledger = SinkId::ledger();
    let o = origin_of(ledger.as_str(), &[ledger.as_str()], b"job");
    assert_eq!(ask(&facts(&ledger, &[(&ledger, Some(&o), false)], None)), "next after 0");
    assert_eq!(ask(&facts(&l.a, &[(&ledger, Some(&o), false), (&l.a, None, false)], None)), "move to a after 0");
}

#[test]
fn a_local_sink_joins_with_whatever_it_holds() {
    let l = life();
    let dead = local();
    let other = SinkId::local("dead", Uuid::from_u128(8));
    let elsewhere = batch(&l.p3, &[(&l.a, Some(&l.p3)), (&other, None)], &[], 4);
    for holds in [None, Some(held(&l.o, &dead)), Some(held(&l.p3, &dead))] {
        for catch_up in [false, true] {
            let facts = facts(&l.a, &[(&l.a, Some(&elsewhere), false), (&dead, holds.as_ref(), catch_up)], None);
            assert_eq!(ask(&facts), "next after 4");
        }
    }
}

/// Under another data dir the lane was set back: what this one's sink has is beyond that, and no reason to stop. Where the
/// sink has the newer plan it is one, since the anchor may have been restored; and so it is for every sink that is not local.
#[test]
fn a_local_sink_joins_after_the_lane_was_set_back_elsewhere() {
    let l = life();
    let (dead, owner) = (local(), owner());
    let jump = |places: BTreeMap<SinkId, Place>, to: Positions| {
        let writer = Writer { generation: Generation(1), owner: &owner };
        next::jump(&l.p3, 3, &l.a, &places, to, "rewind", Content::default(), writer).unwrap().mark
    };
    let places = BTreeMap::from([(l.a.clone(), Place::Join(Some(l.p3.digest)))]);
    let again = Positions::from([(ShardId::new("s", "made-again"), Position::number(0))]);
    for to in [at(1), again] {
        let back = jump(places.clone(), to);
        let beside = |id: &SinkId, mark: &Mark| {
            let mark = held(mark, id);
            ask(&facts(&l.a, &[(&l.a, Some(&back), false), (id, Some(&mark), false)], None))
        };
        assert_eq!(beside(&dead, &l.p2), "next after 4");
        assert_eq!(beside(&l.c, &l.p2), "stop: c Beyond");
        let newer = batch(&l.p3, &[(&l.a, Some(&l.p3)), (&dead, None)], &[&l.a, &dead], 5);
        assert_eq!(beside(&dead, &batch(&newer, &[(&l.a, Some(&newer))], &[&l.a], 6)), "stop: dead Beyond");
    }
}

/// The ledger was the anchor before `a` was in the job. Other data dirs have ledgers of their own under the same name.
#[test]
fn a_ledger_that_was_the_anchor_joins_with_whatever_it_holds() {
    let ledger = SinkId::ledger();
    let o = origin_of(ledger.as_str(), &[ledger.as_str()], b"job");
    let p1 = batch(&o, &[(&ledger, Some(&o))], &[], 1);
    let a = sink("a");
    let owner = owner();
    let joined = BTreeMap::from([(ledger.clone(), Some(p1.digest)), (a.clone(), None)]);
    let writer = Writer { generation: Generation(1), owner: &owner };
    let moved = next::move_anchor(&p1, &a, &joined, Content::default(), writer).unwrap().mark;
    let a2 = held(&moved, &a);
    let here = batch(&a2, &[(&a, Some(&a2)), (&ledger, Some(&moved))], &[&a], 2);
    let elsewhere = batch(&here, &[(&a, Some(&here))], &[&a], 3);
    let with_another = batch(&here, &[(&a, Some(&here)), (&ledger, Some(&o))], &[&a], 3);
    let back = next::jump(
        &here,
        9,
        &a,
        &BTreeMap::from([(a.clone(), Place::Join(Some(here.digest))), (ledger.clone(), Place::CatchUp)]),
        at(0),
        "rewind",
        Content::default(),
        Writer { generation: Generation(1), owner: &owner },
    );
    for head in [&here, &elsewhere, &with_another, &back.unwrap().mark] {
        for holds in [None, Some(&o), Some(&p1), Some(&moved)] {
            for catch_up in [false, true] {
                let mark = holds.map(|mark| held(mark, &ledger));
                let facts = facts(&a, &[(&a, Some(head), false), (&ledger, mark.as_ref(), catch_up)], None);
                assert_eq!(ask(&facts), format!("next after {}", head.plan.seq), "{:?}", holds.map(|m| m.plan.seq));
            }
        }
    }
    // Another life is another life, and where the ledger is the anchor, its mark is the head.
    let foreign = held(&origin_of("ledger", &["ledger"], b"another"), &ledger);
    let with_foreign = facts(&a, &[(&a, Some(&elsewhere), false), (&ledger, Some(&foreign), false)], None);
    assert!(ask(&with_foreign).ends_with("OtherOrigin"), "{}", ask(&with_foreign));
    let p2 = batch(&p1, &[(&ledger, Some(&p1))], &[], 2);
    let p3 = batch(&p2, &[(&ledger, Some(&p2))], &[], 3);
    let beside = facts(&a, &[(&a, Some(&a2), false), (&ledger, Some(&p3), false)], Some(&p3));
    assert_eq!(ask(&beside), "catch up a from 1");
}

/// Every combination of marks, flags and ledgers that a handful of plans can give: reachable or not, each has an answer,
/// every stop names its sink and a way out, and nothing but the stated conditions leads to a next plan.
#[test]
fn total() {
    let l = life();
    let (ledger, dead) = (SinkId::ledger(), local());
    let owner = owner();
    let writer = Writer { generation: Generation(1), owner: &owner };
    let foreign = origin_of("b", &["a", "b"], b"another");
    let mut partition = l.p1.clone();
    partition.lanes = LaneScheme::Partition;
    let joined = BTreeMap::from([(l.a.clone(), Some(l.p3.digest)), (l.b.clone(), Some(l.p3.digest))]);
    let moved = next::move_anchor(&l.p3, &l.b, &joined, Content::default(), writer).unwrap().mark;
    let places = BTreeMap::from([(l.b.clone(), Place::Join(Some(l.p1.digest))), (l.a.clone(), Place::CatchUp)]);
    let jumped = next::jump(&l.p1, 3, &l.b, &places, at(1), "test", Content::default(), writer).unwrap().mark;
    let caught = behind(&l.p3, &l.b, 2);
    let mut logged = l.p3.clone();
    logged.logs.insert(crate::LogName::new("files:s"), crate::LogState { first: 0, next: 2, digest: Digest::of(b"") });
    let marks = [&l.o, &l.p1, &l.p2, &l.p3, &foreign, &partition, &moved, &jumped, &caught, &logged];
    let optional: Vec<Option<&Mark>> = std::iter::once(None).chain(marks.map(Some)).collect();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for sinks in [vec![&l.a], vec![&l.a, &l.b], vec![&l.b, &l.c], vec![&l.a, &ledger], vec![&l.b, &dead], vec![]] {
        let held: Vec<Vec<Option<Mark>>> =
            sinks.iter().map(|id| optional.iter().map(|mark| mark.map(|mark| held(mark, id))).collect()).collect();
        let places = optional.len().pow(u32::try_from(sinks.len()).unwrap());
        for place in 0..places {
            let chosen: Vec<_> = held
                .iter()
                .enumerate()
                .map(|(i, marks)| {
                    marks[place / optional.len().pow(u32::try_from(i).unwrap()) % optional.len()].as_ref()
                })
                .collect();
            for closed in &optional {
                for flags in 0..8 {
                    let own: Vec<_> =
                        sinks.iter().zip(&chosen).map(|(id, mark)| (*id, *mark, flags & 1 == 1)).collect();
                    let mut facts = facts(sinks.first().copied().unwrap_or(&l.a), &own, *closed);
                    (facts.stateless, facts.rereadable) = (flags & 2 == 0, flags & 4 == 0);
                    let decision = decide(&facts);
                    check(&facts, &decision);
                    *seen.entry(name(&decision).split(' ').next().unwrap().to_owned()).or_default() += 1;
                }
            }
        }
    }
    assert!(seen.len() >= 6 && seen.values().sum::<usize>() > 40_000, "{seen:?}");
}

fn check(facts: &Facts<'_>, decision: &Decision<'_>) {
    match decision {
        Decision::Origin => assert!(facts.sinks.values().all(|sink| sink.mark.is_none())),
        Decision::Next { head, joined, .. } => {
            assert_eq!(joined.get(head.anchor()), Some(&Some(head.digest)), "the anchor is at the head");
            assert!(facts.sinks.keys().eq(joined.keys()), "all sinks join");
        }
        Decision::MoveAnchor { to, joined, .. } => assert!(facts.sinks.keys().eq(joined.keys()) && to == facts.anchor),
        Decision::Replay { head, sinks } => {
            assert!(!sinks.is_empty() && sinks.keys().all(|id| head.plan.touches(id)));
            assert!(
                facts.sinks.values().any(|sink| sink.mark.is_some_and(|mark| mark.digest == head.digest)),
                "it is proven"
            );
        }
        Decision::CatchUp { head, from, .. } => assert_eq!(standing(from, &head.positions), Standing::Behind),
        Decision::Stop(stop) => {
            let text = stop.to_string();
            assert!(
                text.contains("Way out: ") && text.contains(stop.sink().name()) && text.contains(stop.lane().as_str()),
                "{text}"
            );
            assert!(!stop.ways_out().is_empty());
        }
    }
}

#[test]
fn a_stop_says_what_and_where_and_how_to_go_on() {
    let l = life();
    let b = held(&l.p3, &l.b);
    let Decision::Stop(stop) = decide(&facts(&l.a, &[(&l.a, Some(&l.p1), false), (&l.b, Some(&b), false)], None))
    else {
        panic!()
    };
    assert_eq!(
        stop.to_string(),
        "lane all: the mark of b is beyond the head (was the anchor restored from a backup?): it stands at s 3, the head in a \
         at s 1. Way out: `tidemill checkpoint resolve --anchor b` (go on from what it holds; what the present anchor lacks is \
         not written to it, but a directory's files that it does not list are taken again), or \
         `tidemill checkpoint resolve --sink b --join` (it gets new rows from the head on, some of them twice)"
    );
}

/// Without `--lane` a command acts on a lane that a job with `lanes: partition` does not have.
#[test]
fn a_stop_of_one_lane_of_many_names_it_in_its_commands() {
    let (a, b) = (sink("a"), sink("b"));
    let stop = |lane: &str| Stop::Emptied { lane: Lane::new(lane), sink: b.clone(), anchor: a.clone(), head: at(1) };
    let text = stop("topic/3").to_string();
    assert!(text.contains("`tidemill checkpoint --lane topic/3 resolve --sink b --catch-up`"), "{text}");
    assert_eq!(text.matches("`tidemill checkpoint ").count(), text.matches("--lane topic/3 ").count());
    assert!(!stop("all").to_string().contains("--lane"));
    assert_eq!(Lane::new("topic/3").in_commands(&text), text, "once is enough");
}
