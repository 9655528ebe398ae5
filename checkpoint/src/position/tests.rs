//! The algebra of positions and spans: a table of cases, then what must hold for all.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn shard(name: &str) -> ShardId {
    ShardId::new("s", name)
}
/// `"a=1 b=2:0"`.
fn positions(text: &str) -> Positions {
    let pairs = text.split_whitespace().map(|pair| pair.split_once('=').unwrap());
    pairs.map(|(name, at)| (shard(name), Position::text(at))).collect()
}
/// `"a=1..3 b=0..2"`.
fn spans(text: &str) -> Spans {
    let pairs = text.split_whitespace().map(|pair| pair.split_once('=').unwrap());
    let span = |range: &str| {
        let (from, to) = range.split_once("..").unwrap();
        Span { from: Position::text(from), to: Position::text(to) }
    };
    pairs.map(|(name, range)| (shard(name), span(range))).collect()
}

#[test]
fn positions_in_order() {
    // Sorted, each is strictly less than the next.
    let texts = [
        "",
        "x",
        "0",
        "1",
        "9",
        "10",
        "010",
        "99",
        "100",
        "18446744073709551615",
        "18446744073709551616",
        "1:0",
        "1:9",
        "1:10",
        "2",
        "2:0",
        "10:0",
        "1a",
        "9a",
    ];
    let mut sorted: Vec<_> = texts.iter().map(|text| Position::text(text)).collect();
    sorted.sort();
    for pair in sorted.windows(2) {
        assert!(pair[0] < pair[1], "{pair:?}");
    }
    for (less, more) in [
        ("9", "10"),
        ("99", "100"),
        ("18446744073709551615", "18446744073709551616"),
        ("1:9", "1:10"),
        ("9:100", "10:0"),
        ("1", "1:0"),
        ("10", "1a"),
        ("9", "1a"),
        ("1a", "9a"),
        ("1", "01"),
        ("01", "2"),
    ] {
        let (less, more) = (Position::text(less), Position::text(more));
        // "01" is 1 in another spelling: after "1" or before it, but not the same.
        if less.as_number() == more.as_number() && less.as_number().is_some() {
            assert_ne!(less, more);
        } else {
            assert!(less < more, "{less} {more}");
        }
    }
    assert_eq!(Position::pair(3, 1024).as_pair(), Some((3, 1024)));
    assert_eq!(Position::number(7).as_number(), Some(7));
    assert_eq!((Position::text("x").as_number(), Position::number(1).as_pair()), (None, None));
    assert_eq!((shard("a").source(), shard("a").part(), ShardId::new("s", "").part()), ("s", "a", ""));
}

#[test]
fn where_one_stands_to_another() {
    use Standing::{Behind, Beyond, Equal};
    for (mine, theirs, expected) in [
        ("", "", Equal),
        ("a=1", "a=1", Equal),
        ("a=1 b=2", "a=1 b=2", Equal),
        ("a=1", "a=2", Behind),
        ("a=1", "a=1 b=0", Behind),
        ("", "a=0", Behind),
        ("a=9", "a=10", Behind),
        ("a=3:9", "a=3:10", Behind),
        ("a=1 b=1", "a=2 b=1", Behind),
        ("a=2", "a=1", Beyond),
        ("a=1 b=0", "a=1", Beyond),
        ("a=0", "", Beyond),
        ("a=1 b=3", "a=2 b=2", Beyond),
        ("a=3 b=1", "a=2 b=2", Beyond),
        ("b=1", "a=1", Beyond),
    ] {
        assert_eq!(standing(&positions(mine), &positions(theirs)), expected, "{mine} to {theirs}");
    }
}

#[test]
fn spans_that_continue_and_spans_that_do_not() {
    for (at, read, expected) in [
        ("", "", Ok("")),
        ("a=1", "", Ok("a=1")),
        ("a=1", "a=1..3", Ok("a=3")),
        ("a=1", "a=1..1", Ok("a=1")),
        ("a=1 b=5", "a=1..3", Ok("a=3 b=5")),
        ("a=1 b=5", "a=1..3 b=5..9", Ok("a=3 b=9")),
        ("a=1", "b=0..2", Ok("a=1 b=2")),
        ("a=3:0", "a=3:0..4:10", Ok("a=4:10")),
        ("a=1", "a=2..3", Err("a gap or an overlap")),
        ("a=1", "a=0..3", Err("a gap or an overlap")),
        ("a=1 b=1", "a=1..2 b=2..3", Err("shard s/b: the span begins at 2, the shard stands at 1")),
        ("a=1", "a=01..2", Err("a gap or an overlap")),
        ("a=3", "a=3..2", Err("ends at 2, before it begins at 3")),
        ("", "a=10..9", Err("ends at 9, before it begins at 10")),
    ] {
        let result = advance(&positions(at), &spans(read)).map_err(|error| error.to_string());
        match expected {
            Ok(after) => assert_eq!(result, Ok(positions(after)), "{at} + {read}"),
            Err(part) => assert!(result.clone().is_err_and(|text| text.contains(part)), "{at} + {read}: {result:?}"),
        }
    }
}

fn any_position() -> impl Strategy<Value = Position> {
    prop_oneof![
        any::<u64>().prop_map(Position::number),
        (0..20_u64).prop_map(Position::number),
        (0..5_u64, 0..20_u64).prop_map(|(first, second)| Position::pair(first, second)),
        "[0-9a:]{0,4}".prop_map(|text| Position::text(&text)),
    ]
}
fn any_positions() -> impl Strategy<Value = Positions> {
    proptest::collection::btree_map("[abc]".prop_map(|name| shard(&name)), (0..6_u64).prop_map(Position::number), 0..4)
}
fn lengths() -> impl Strategy<Value = BTreeMap<ShardId, u64>> {
    proptest::collection::btree_map("[abc]".prop_map(|name| shard(&name)), 0..5_u64, 0..4)
}
/// Spans of these lengths that continue `at`; a shard that it does not know starts at 0.
fn continuing(at: &Positions, lengths: &BTreeMap<ShardId, u64>) -> Spans {
    let span = |shard: &ShardId, length: u64| {
        let from = at.get(shard).and_then(Position::as_number).unwrap_or(0);
        Span { from: Position::number(from), to: Position::number(from + length) }
    };
    lengths.iter().map(|(shard, length)| (shard.clone(), span(shard, *length))).collect()
}

proptest! {
    #[test]
    fn the_order_is_total(mut some in proptest::collection::vec(any_position(), 3)) {
        for (a, b) in [(0, 1), (1, 2), (0, 2)] {
            prop_assert_eq!(some[a].cmp(&some[b]), some[b].cmp(&some[a]).reverse());
            prop_assert_eq!(some[a].cmp(&some[b]) == Ordering::Equal, some[a] == some[b]);
        }
        some.sort();
        prop_assert!(some[0] <= some[1] && some[1] <= some[2] && some[0] <= some[2]);
    }

    #[test]
    fn numbers_go_by_value(a: u64, b: u64, c in 0..9_u64, d in 0..9_u64) {
        prop_assert_eq!(Position::number(a).cmp(&Position::number(b)), a.cmp(&b));
        prop_assert_eq!(Position::pair(c, a).cmp(&Position::pair(d, b)), (c, a).cmp(&(d, b)));
    }

    #[test]
    fn standing_is_a_partial_order(a in any_positions(), b in any_positions(), c in any_positions()) {
        prop_assert_eq!(standing(&a, &b) == Standing::Equal, a == b);
        if standing(&a, &b) == Standing::Behind {
            prop_assert_eq!(standing(&b, &a), Standing::Beyond);
        }
        let within = |x, y| standing(x, y) != Standing::Beyond;
        if within(&a, &b) && within(&b, &c) {
            prop_assert!(within(&a, &c));
        }
    }

    #[test]
    fn reading_on_never_goes_back(at in any_positions(), first in lengths(), second in lengths()) {
        let once = advance(&at, &continuing(&at, &first)).unwrap();
        prop_assert_ne!(standing(&at, &once), Standing::Beyond);
        // Two batches are as one of both lengths.
        let twice = advance(&once, &continuing(&once, &second)).unwrap();
        let mut both = first.clone();
        for (shard, length) in second {
            *both.entry(shard).or_default() += length;
        }
        prop_assert_eq!(advance(&at, &continuing(&at, &both)).unwrap(), twice);
    }

    #[test]
    fn a_batch_that_is_read_twice_does_not_fit(at in any_positions(), lengths in lengths()) {
        let spans = continuing(&at, &lengths);
        let after = advance(&at, &spans).unwrap();
        let moved = spans.values().any(|span| span.from != span.to);
        prop_assert_eq!(advance(&after, &spans).is_err(), moved);
    }
}
