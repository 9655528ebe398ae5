//! The next plan: what it continues, whom it touches, which permits follow.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::{Position, ShardId, Span};

fn owner() -> Owner {
    Owner { name: "host".into(), data_dir: Uuid::nil(), instance: Uuid::nil() }
}
fn writer(owner: &Owner) -> Writer<'_> {
    Writer { generation: Generation(7), owner }
}
fn sink(name: &str) -> SinkId {
    SinkId::new(name)
}
fn key(name: &str) -> LaneKey {
    LaneKey { sink: sink(name), lane: Lane::single(), generation: Generation(7), owner: owner() }
}
fn at(n: u64) -> Positions {
    Positions::from([(ShardId::new("s", ""), Position::number(n))])
}
fn reads(from: u64, to: u64) -> Content {
    let span = Span { from: Position::number(from), to: Position::number(to) };
    Content { spans: Spans::from([(ShardId::new("s", ""), span)]), clock: Timestamp(50), ..Content::default() }
}
fn log(name: &str) -> LogName {
    LogName::new(name)
}
fn begin(sinks: &[&str]) -> Mark {
    let (owner, ids) = (owner(), sinks.iter().map(|name| sink(name)).collect::<Vec<_>>());
    let content = Content { clock: Timestamp(100), ..Content::default() };
    origin(&Lane::single(), LaneScheme::Single, &sink("a"), &ids, at(0), content, writer(&owner)).unwrap().mark
}
fn joined(marks: &[(&str, Option<&Mark>)]) -> BTreeMap<SinkId, Option<Digest>> {
    marks.iter().map(|(name, mark)| (sink(name), mark.map(|mark| mark.digest))).collect()
}

#[test]
fn a_batch_continues_its_parent() {
    let (head, owner) = (begin(&["a", "b", "c"]), owner());
    let holds = joined(&[("a", Some(&head)), ("b", Some(&head)), ("c", None)]);
    let draft = Draft::batch(&head, &sink("a"), reads(0, 5)).unwrap();
    let input = draft.input();
    let step = draft.finish(&head, &holds, &BTreeSet::new(), writer(&owner)).unwrap();
    let plan = step.plan();
    assert_eq!(
        (plan.seq, plan.parent, plan.input()),
        (1, Some(head.digest), input),
        "the input is known before the sinks"
    );
    assert_eq!(plan.planned_at, Timestamp(101), "a clock that is behind the mark does not go back");
    assert_eq!((step.mark.digest, &step.mark.positions), (plan.digest(), &at(5)));
    // The anchor and the sink without a mark are touched, though neither has rows.
    assert_eq!(["a", "b", "c"].map(|name| plan.touches(&sink(name))), [true, false, true]);
    assert_eq!(step.mark.gives(&sink("b")), Some(Some(head.digest)));
    assert_eq!(step.followers().collect::<Vec<_>>(), [&sink("c")]);
    let permit = step.first(key("a"));
    assert_eq!((permit.expected(), permit.mark().generation), (Some(head.digest), Generation(7)));
    let follower = step.follow(&Receipt::written(&permit), key("c"));
    assert_eq!(
        (follower.expected(), &follower.mark().sink, follower.mark().digest),
        (None, &sink("c"), step.mark.digest)
    );
}

#[test]
fn what_cannot_be_planned() {
    let (head, owner) = (begin(&["a"]), owner());
    for (from, to) in [(1, 2), (0, 0)] {
        assert_eq!(Draft::batch(&head, &sink("a"), reads(from, to)).is_ok(), from == 0);
    }
    let stranger = Draft::batch(&head, &sink("z"), reads(0, 1)).unwrap();
    let error = stranger.finish(&head, &joined(&[("a", Some(&head))]), &BTreeSet::new(), writer(&owner)).unwrap_err();
    assert_eq!(error, Error::NoSuchSink { sink: sink("z") });
    let prune = Content { prune: BTreeMap::from([(log("l"), 1)]), ..Content::default() };
    assert!(matches!(Draft::batch(&head, &sink("a"), prune), Err(Error::Prune { first: 1, next: 0, .. })));
    assert!(
        move_anchor(&head, &sink("z"), &joined(&[("a", Some(&head))]), Content::default(), writer(&owner)).is_err()
    );
}

#[test]
fn logs_are_numbered_on() {
    let (mut head, owner) = (begin(&["a"]), owner());
    let mut numbers = Vec::new();
    for (texts, prune) in [(vec!["x", "y"], None), (vec![], None), (vec!["z"], Some(1)), (vec![], Some(3))] {
        let entries = BTreeMap::from([(log("l"), texts.into_iter().map(str::to_owned).collect())]);
        let prune = prune.map(|below| (log("l"), below)).into_iter().collect();
        let draft = Draft::batch(&head, &sink("a"), Content { entries, prune, ..Content::default() }).unwrap();
        let step = draft.finish(&head, &joined(&[("a", Some(&head))]), &BTreeSet::new(), writer(&owner)).unwrap();
        numbers
            .push((step.entries.iter().map(|entry| entry.number).collect::<Vec<_>>(), step.mark.logs[&log("l")].first));
        head = step.mark;
    }
    assert_eq!(numbers, [(vec![0, 1], 0), (vec![], 0), (vec![2], 1), (vec![], 3)]);
    assert_eq!(head.logs[&log("l")].next, 3);
}

/// A sink that began later is filled up to where it began, and goes on where it was.
#[test]
fn a_sink_that_began_later_is_filled_with_what_came_before() {
    let (first, owner) = (begin(&["a"]), owner());
    let batch = |head: &Mark, holds: &[(&str, Option<&Mark>)], from: u64, to: u64| {
        let draft = Draft::batch(head, &sink("a"), reads(from, to)).unwrap();
        draft.finish(head, &joined(holds), &BTreeSet::from([sink("b")]), writer(&owner)).unwrap().mark
    };
    let head = batch(&first, &[("a", Some(&first))], 0, 5);
    assert_eq!(head.since, BTreeMap::new(), "who was there from the beginning lacks nothing");
    let head = batch(&head, &[("a", Some(&head)), ("b", None)], 5, 8);
    assert_eq!(head.since, BTreeMap::from([(sink("b"), at(5))]));
    let own = head.held_by(&sink("b"), Generation(7), &owner);
    let head = batch(&head, &[("a", Some(&head)), ("b", Some(&own))], 8, 9);
    let own = head.held_by(&sink("b"), Generation(7), &owner);
    assert_eq!(head.since.len(), 1, "it is remembered");
    assert!(fill(&head, &head, &sink("a"), Content::default(), writer(&owner)).unwrap().is_none());

    let step = fill(&head, &own, &sink("b"), reads(0, 1), writer(&owner)).unwrap().unwrap();
    assert_eq!((&step.mark.positions, step.before(&sink("b"))), (&at(0), Some(own.digest)));
    assert!(step.plan().spans.is_empty() && step.mark.digest == step.plan().digest());
    let had = Had { from: at(5), to: at(9) };
    assert_eq!(step.mark.had, Some(had.clone()));
    let part = catch_up(&head, Some(&step.mark), &sink("b"), &at(0), reads(0, 3), writer(&owner)).unwrap().mark;
    assert_eq!((&part.positions, &part.had), (&at(3), &Some(had)));
    let whole = catch_up(&head, Some(&part), &sink("b"), &at(3), reads(3, 5), writer(&owner)).unwrap().mark;
    assert_eq!((&whole.positions, &whole.had), (&head.positions, &None), "what it had is not read again");
    // It joins, and lacks nothing any more.
    let mut waiting = head.clone();
    waiting.plan.touches.insert(sink("b"), Touch::CatchingUp);
    let next = batch(&waiting, &[("a", Some(&head)), ("b", Some(&whole))], 9, 10);
    assert_eq!(next.since, BTreeMap::new());
}

#[test]
fn a_mark_of_an_older_version_says_nothing_of_later_sinks() {
    let head = begin(&["a"]);
    let mut text = serde_json::to_value(&head).unwrap();
    assert!(text.get("since").is_none() && text.get("had").is_none(), "nor does a new one that has none: {text}");
    text.as_object_mut().unwrap().remove("since");
    assert_eq!(serde_json::from_value::<Mark>(text).unwrap(), head);
}

#[test]
fn a_catch_up_is_of_one_sink_and_ends_at_the_head() {
    let (first, owner) = (begin(&["a"]), owner());
    let draft = Draft::batch(&first, &sink("a"), reads(0, 5)).unwrap();
    let head = draft.finish(&first, &joined(&[("a", Some(&first))]), &BTreeSet::new(), writer(&owner)).unwrap().mark;
    let step = catch_up(&head, None, &sink("b"), &at(0), reads(0, 3), writer(&owner)).unwrap();
    assert_eq!((step.plan().seq, step.plan().parent), (head.plan.seq, Some(head.origin)));
    assert_eq!((&step.mark.positions, &step.mark.sink, step.mark.origin), (&at(3), &sink("b"), head.origin));
    assert_eq!(step.first(key("b")).expected(), None);
    assert_eq!(step.followers().count(), 0);
    let on = catch_up(&head, Some(&step.mark), &sink("b"), &at(3), reads(3, 5), writer(&owner)).unwrap();
    assert_eq!((on.plan().parent, on.first(key("b")).expected()), (Some(step.mark.digest), Some(step.mark.digest)));
    assert!(on.plan().planned_at > step.plan().planned_at);
    let past = catch_up(&head, Some(&step.mark), &sink("b"), &at(3), reads(3, 6), writer(&owner)).unwrap_err();
    assert_eq!(past, Error::PastHead { sink: sink("b") });
}

#[test]
fn a_jump_is_newer_than_every_mark() {
    let (head, owner) = (begin(&["a", "b"]), owner());
    let places = BTreeMap::from([
        (sink("a"), Place::Join(None)),
        (sink("b"), Place::Join(Some(head.digest))),
        (sink("c"), Place::CatchUp),
        (sink("d"), Place::Stay(Some(head.digest))),
    ]);
    let step = jump(&head, 40, &sink("b"), &places, at(9), "told", Content::default(), writer(&owner)).unwrap();
    let plan = step.plan();
    assert_eq!((plan.seq, &plan.anchor, &step.mark.positions, &step.mark.sink), (41, &sink("b"), &at(9), &sink("b")));
    assert!(plan.spans.is_empty() && plan.touches(&sink("a")) && plan.touches(&sink("b")) && !plan.touches(&sink("c")));
    assert_eq!((step.mark.digest, step.mark.gives(&sink("c"))), (plan.digest(), None));
    assert_eq!(step.followers().collect::<Vec<_>>(), [&sink("a")]);
    assert_eq!(step.before(&sink("b")), Some(head.digest));
    assert_eq!(step.mark.gives(&sink("d")), Some(Some(head.digest)), "what d lacks, it still lacks");
}

#[test]
fn the_old_anchor_commits_its_move_first() {
    let (head, owner) = (begin(&["a"]), owner());
    let here = joined(&[("a", Some(&head)), ("b", None)]);
    let step = move_anchor(&head, &sink("b"), &here, Content::default(), writer(&owner)).unwrap();
    assert_eq!((&step.mark.sink, step.mark.anchor()), (&sink("a"), &sink("b")));
    assert_eq!(step.followers().collect::<Vec<_>>(), [&sink("b")]);
    let gone = joined(&[("b", None)]);
    let step = move_anchor(&head, &sink("b"), &gone, Content::default(), writer(&owner)).unwrap();
    assert_eq!((&step.mark.sink, step.mark.anchor(), step.followers().count()), (&sink("b"), &sink("b"), 0));
}

proptest! {
    /// Whatever a plan is made of decides its digest; the sinks do not change its input.
    #[test]
    fn digests_tell_plans_apart(to in 1..9_u64, other in 1..9_u64, rows: bool, more: bool) {
        let (head, owner) = (begin(&["a", "b"]), owner());
        let holds = joined(&[("a", Some(&head)), ("b", Some(&head))]);
        let made = |to, rows: bool| {
            let rows = if rows { BTreeSet::from([sink("b")]) } else { BTreeSet::new() };
            Draft::batch(&head, &sink("a"), reads(0, to)).unwrap().finish(&head, &holds, &rows, writer(&owner)).unwrap().mark
        };
        let (one, two) = (made(to, rows), made(other, more));
        prop_assert_eq!(one.digest == two.digest, to == other && rows == more);
        prop_assert_eq!(one.plan.input() == two.plan.input(), to == other);
        let text = serde_json::to_string(&one).unwrap();
        let back: Mark = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(back.plan.digest(), one.digest);
        prop_assert_eq!(back, one);
    }
}
