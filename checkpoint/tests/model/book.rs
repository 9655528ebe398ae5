//! Real plans, marks and decisions, each made once and known by a small number, so that states are small and quick.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tidemill_checkpoint::{
    Decision, Digest, Facts, Generation, Lane, LaneScheme, LogName, Mark, Owner, PlanKind, Position, Positions,
    ShardId, SinkId, Span, Stop, Timestamp, Touch, decide,
    decide::SinkFacts,
    next::{self, Content, Draft, Place, Writer},
};
use uuid::Uuid;

/// Marked sinks of the model: two that keep marks, and the ledger.
pub const SINKS: usize = 3;
pub const A: usize = 0;
pub const B: usize = 1;
pub const LEDGER: usize = 2;

/// A mark's number; 0 is none.
pub type MarkId = u16;
/// What each sink holds, as a runner saw it.
pub type Seen = [MarkId; SINKS];

/// A job as one runner has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Job {
    /// Bits of its marked sinks.
    pub sinks: u8,
    /// The sink that an origin names.
    pub anchor: usize,
    /// B shall catch up where it is new.
    pub catch_up: bool,
}

impl Job {
    pub fn has(&self, sink: usize) -> bool {
        self.sinks & (1 << sink) != 0
    }
}

/// A decision in numbers.
#[derive(Clone, Debug)]
pub enum Act {
    Origin,
    Next { head: MarkId },
    Move { head: MarkId, to: usize },
    Replay { head: MarkId, sinks: u8 },
    CatchUp { head: MarkId, sink: usize, from: u8 },
    Stop(Stop),
}

#[derive(Default)]
pub struct Book {
    /// Every batch with records brings an entry of a log.
    pub entries: bool,
    marks: Vec<Mark>,
    by_digest: HashMap<Digest, MarkId>,
    acts: HashMap<(Job, Seen, MarkId), Act>,
    plans: HashMap<(u8, MarkId, u8, Job, Seen, u8), MarkId>,
}

pub fn id(sink: usize) -> SinkId {
    match sink {
        A => SinkId::new("a"),
        B => SinkId::new("b"),
        _ => SinkId::ledger(),
    }
}
pub fn index(id: &SinkId) -> usize {
    (0..SINKS).find(|sink| self::id(*sink) == *id).unwrap()
}
fn positions(n: u8) -> Positions {
    Positions::from([(ShardId::new("s", ""), Position::number(n.into()))])
}
fn reads(from: u8, to: u8, clock: u8) -> Content {
    let span = Span { from: Position::number(from.into()), to: Position::number(to.into()) };
    let spans = (from != to).then(|| (ShardId::new("s", ""), span)).into_iter().collect();
    Content { spans, clock: Timestamp(1_000 * i64::from(clock)), ..Content::default() }
}
fn owner() -> Owner {
    Owner { name: "host".into(), data_dir: Uuid::nil(), instance: Uuid::nil() }
}

impl Book {
    pub fn mark(&self, mark: MarkId) -> &Mark {
        &self.marks[usize::from(mark) - 1]
    }
    fn known(&self, mark: MarkId) -> Option<&Mark> {
        (mark != 0).then(|| self.mark(mark))
    }
    fn enter(&mut self, mark: Mark) -> MarkId {
        if let Some(known) = self.by_digest.get(&mark.digest) {
            assert_eq!(self.mark(*known), &mark, "one digest, one mark");
            return *known;
        }
        let number = MarkId::try_from(self.marks.len() + 1).unwrap();
        self.by_digest.insert(mark.digest, number);
        self.marks.push(mark);
        number
    }

    /// Where a mark leaves the only shard.
    pub fn at(&self, mark: MarkId) -> u8 {
        self.known(mark)
            .map_or(0, |mark| u8::try_from(mark.positions.values().next().unwrap().as_number().unwrap()).unwrap())
    }
    /// The records that a mark's plan reads: `(from, to]`.
    pub fn reads(&self, mark: MarkId) -> (u8, u8) {
        let number = |position: &Position| u8::try_from(position.as_number().unwrap()).unwrap();
        self.mark(mark).plan.spans.values().next().map_or((0, 0), |span| (number(&span.from), number(&span.to)))
    }
    pub fn before(&self, mark: MarkId, sink: usize) -> MarkId {
        match self.mark(mark).plan.touches.get(&id(sink)) {
            Some(Touch::Joined { before: Some(before), .. }) => self.by_digest[before],
            _ => 0,
        }
    }
    pub fn touched(&self, mark: MarkId) -> u8 {
        (0..SINKS).filter(|sink| self.mark(mark).plan.touches(&id(*sink))).fold(0, |bits, sink| bits | 1 << sink)
    }
    /// Whether every sink of the job is listed by the head.
    pub fn lists(&self, head: MarkId, job: Job) -> bool {
        (0..SINKS).filter(|sink| job.has(*sink)).all(|sink| self.mark(head).plan.touches.contains_key(&id(sink)))
    }
    /// The end of the log as a mark counts it.
    pub fn log(&self, mark: MarkId) -> u8 {
        self.known(mark).and_then(|mark| mark.logs.values().next()).map_or(0, |log| u8::try_from(log.next).unwrap())
    }
    /// The entries that a mark's plan brings: `[from, to)`.
    pub fn brings(&self, mark: MarkId) -> Option<(u8, u8)> {
        let range = self.mark(mark).plan.logs.values().next()?;
        Some((u8::try_from(range.from).unwrap(), u8::try_from(range.to).unwrap()))
    }
    /// Whether a mark's plan takes all entries along to this sink: its new anchor.
    pub fn carries_to(&self, mark: MarkId, sink: usize) -> bool {
        let mark = self.mark(mark);
        matches!(mark.plan.kind, PlanKind::MoveAnchor { .. } | PlanKind::Jump { .. }) && *mark.anchor() == id(sink)
    }
    /// The sink that a runner asks for the entries of a head: the one that holds it, or (the design that fails) the anchor
    /// that it names.
    pub fn keeper(&self, head: MarkId, of_the_anchor: bool) -> usize {
        index(if of_the_anchor { self.mark(head).anchor() } else { self.mark(head).keeps_logs() })
    }
    /// Who commits a mark's plan first.
    pub fn first(&self, mark: MarkId) -> usize {
        index(&self.mark(mark).sink)
    }

    /// The real `decide()`.
    pub fn decide(&mut self, job: Job, seen: Seen, closed: MarkId) -> Act {
        if let Some(act) = self.acts.get(&(job, seen, closed)) {
            return act.clone();
        }
        let anchor = id(job.anchor);
        let held: BTreeMap<_, _> = (0..SINKS)
            .filter(|sink| job.has(*sink))
            .map(|sink| (id(sink), self.known(seen[sink]).map(|mark| mark.held_by(&id(sink), Generation(1), &owner()))))
            .collect();
        let sinks = held
            .iter()
            .map(|(id, mark)| (id.clone(), SinkFacts { mark: mark.as_ref(), catch_up: job.catch_up }))
            .collect();
        let closed_mark = self.known(closed);
        let facts = Facts {
            anchor: &anchor,
            lanes: LaneScheme::Single,
            sinks,
            closed: closed_mark,
            stateless: true,
            rereadable: true,
        };
        let number = |mark: &Mark| self.by_digest[&mark.digest];
        let act = match decide(&facts) {
            Decision::Origin => Act::Origin,
            Decision::Next { head, .. } => Act::Next { head: number(head) },
            Decision::MoveAnchor { head, to, .. } => Act::Move { head: number(head), to: index(&to) },
            Decision::Replay { head, sinks } => {
                Act::Replay { head: number(head), sinks: sinks.keys().fold(0, |bits, sink| bits | 1 << index(sink)) }
            }
            Decision::CatchUp { head, sink, from, .. } => {
                let from = u8::try_from(from.values().next().unwrap().as_number().unwrap()).unwrap();
                Act::CatchUp { head: number(head), sink: index(&sink), from }
            }
            Decision::Stop(stop) => Act::Stop(stop),
        };
        self.acts.insert((job, seen, closed), act.clone());
        act
    }

    fn joined(&self, job: Job, seen: Seen) -> BTreeMap<SinkId, Option<Digest>> {
        (0..SINKS)
            .filter(|sink| job.has(*sink))
            .map(|sink| (id(sink), self.known(seen[sink]).map(|mark| mark.digest)))
            .collect()
    }

    fn made(&mut self, key: (u8, MarkId, u8, Job, Seen, u8), make: impl FnOnce(&Self, Writer<'_>) -> Mark) -> MarkId {
        if let Some(known) = self.plans.get(&key) {
            return *known;
        }
        let mark = make(self, Writer { generation: Generation(1), owner: &owner() });
        let number = self.enter(mark);
        self.plans.insert(key, number);
        number
    }

    pub fn origin(&mut self, job: Job) -> MarkId {
        self.made((0, 0, 0, job, [0; SINKS], 0), |_, writer| {
            let sinks: Vec<_> = (0..SINKS).filter(|sink| job.has(*sink)).map(id).collect();
            let lane = Lane::single();
            next::origin(&lane, LaneScheme::Single, &id(job.anchor), &sinks, positions(0), Content::default(), writer)
                .unwrap()
                .mark
        })
    }

    /// The batch after `head` that ends at `to`; `with_rows` are the sinks that get rows.
    pub fn batch(&mut self, job: Job, seen: Seen, head: MarkId, to: u8, with_rows: u8, clock: u8) -> MarkId {
        self.made((1, head, to, job, seen, clock), |book, writer| {
            let mut content = reads(book.at(head), to, clock);
            if book.entries && book.at(head) != to {
                content.entries = BTreeMap::from([(LogName::new("files:s"), vec![to.to_string()])]);
            }
            let head = book.mark(head);
            let rows: BTreeSet<_> = (0..SINKS).filter(|sink| with_rows & (1 << sink) != 0).map(id).collect();
            let draft = Draft::batch(head, head.anchor(), content).unwrap();
            draft.finish(head, &book.joined(job, seen), &rows, writer).unwrap().mark
        })
    }

    pub fn move_anchor(&mut self, job: Job, seen: Seen, head: MarkId, to: usize) -> MarkId {
        self.made((2, head, u8::try_from(to).unwrap(), job, seen, 0), |book, writer| {
            next::move_anchor(book.mark(head), &id(to), &book.joined(job, seen), Content::default(), writer)
                .unwrap()
                .mark
        })
    }

    pub fn catch_up(&mut self, seen: Seen, head: MarkId, sink: usize, from: u8, to: u8, job: Job) -> MarkId {
        let mut own = [0; SINKS];
        own[sink] = seen[sink];
        self.made((3 + u8::try_from(sink).unwrap(), head, to, job, own, from), |book, writer| {
            let own = book.known(seen[sink]);
            next::catch_up(book.mark(head), own, &id(sink), &positions(from), reads(from, to, 0), writer).unwrap().mark
        })
    }

    /// `checkpoint resolve --anchor S`: go on from what S holds.
    pub fn resolve_anchor(&mut self, job: Job, seen: Seen, sink: usize) -> MarkId {
        self.made((8, seen[sink], u8::try_from(sink).unwrap(), job, seen, 0), |book, writer| {
            let base = book.mark(seen[sink]);
            let newest = seen.iter().filter_map(|mark| book.known(*mark)).map(|mark| mark.plan.seq).max().unwrap();
            let places: BTreeMap<_, _> =
                book.joined(job, seen).into_iter().map(|(sink, holds)| (sink, Place::Join(holds))).collect();
            let (to, anchor) = (base.positions.clone(), id(sink));
            next::jump(base, newest, &anchor, &places, to, "told", Content::default(), writer).unwrap().mark
        })
    }
}
