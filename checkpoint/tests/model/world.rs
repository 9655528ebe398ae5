//! Every interleaving of runners, crashes and mishaps, one step at a time.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
};

use tidemill_checkpoint::Stop;

use crate::book::{A, Act, B, Book, Job, LEDGER, MarkId, SINKS, Seen};

pub const LANES: usize = 2;
pub const RUNNERS: usize = 3;
/// Which of the records 1 to 4 have rows for A and for B: some plans have none for one of them.
const ROWS: [&[u8]; 2] = [&[1, 2, 4], &[2, 3, 4]];

/// What shuts out an older runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fencing {
    /// One generation for all sinks of a lane, claimed.
    Claim,
    /// Each sink counts its own.
    PerSink,
    None,
}

/// What is explored.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// For each runner, the jobs that it has one after the other (edited while it is down).
    pub jobs: Vec<Vec<Job>>,
    /// Crashes of each runner.
    pub crashes: u8,
    /// Records in each lane.
    pub records: u8,
    /// For each runner, the lanes that it works on, as bits.
    pub lanes: Vec<u8>,
    /// Runners have a ledger, which a crash may lose (wholly, or the last close).
    pub ledger: bool,
    /// A sink without marks stands before the ledger as the anchor.
    pub unmarked: bool,
    /// Sinks of which a backup is taken and restored at any time, as bits.
    pub backups: u8,
    /// Sinks that begin later than the origin, as bits: their rows may begin anywhere.
    pub late: u8,
    /// Runners' clocks differ, so that two plan two batches where they read the same.
    pub clocks: bool,
    /// An operator says `resolve --anchor S` where the anchor is gone or emptied.
    pub operator: bool,
    /// Stops that the design wants here.
    pub wanted: fn(&Stop) -> bool,
    pub fencing: Fencing,
    /// Batches bring entries of a log, which the anchor keeps and a new anchor gets.
    pub entries: bool,
    /// They are asked of the anchor that the head names, not of the sink that holds the head.
    pub entries_of_the_anchor: bool,
    /// A commit is one step.
    pub atomic: bool,
    /// A mark is only a batch's number: a replay plans the batch again.
    pub numbers_only: bool,
}

impl Scenario {
    pub fn new(jobs: &[Job]) -> Self {
        Self {
            lanes: vec![1; jobs.len()],
            jobs: jobs.iter().map(|job| vec![*job]).collect(),
            crashes: 1,
            records: 4,
            ledger: false,
            unmarked: false,
            backups: 0,
            late: 0,
            clocks: false,
            operator: false,
            wanted: |_| false,
            fencing: Fencing::Claim,
            entries: false,
            entries_of_the_anchor: false,
            atomic: true,
            numbers_only: false,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Sink {
    mark: MarkId,
    generation: u8,
    /// The rows in it, four bits each, the latest lowest.
    rows: u32,
    /// The entries of the log that it has: those below this number.
    log: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// Does not have this lane.
    Idle,
    Peek {
        sink: u8,
        highest: u8,
    },
    Claim {
        sink: u8,
        generation: u8,
        mine: [u8; SINKS],
        seen: Seen,
    },
    Decide {
        mine: [u8; SINKS],
        seen: Seen,
    },
    /// The sink without marks gets the rows first.
    Unmarked {
        mine: [u8; SINKS],
        seen: Seen,
        mark: MarkId,
    },
    /// `again`: the end of a batch that is planned again, where a mark is only a number.
    Commit {
        mine: [u8; SINKS],
        seen: Seen,
        mark: MarkId,
        todo: u8,
        again: u8,
    },
    Write {
        mine: [u8; SINKS],
        seen: Seen,
        mark: MarkId,
        todo: u8,
        sink: u8,
        again: u8,
    },
    Close {
        mine: [u8; SINKS],
        seen: Seen,
        mark: MarkId,
    },
    Done,
    Fenced,
    Stopped,
}

const BEGIN: Step = Step::Peek { sink: 0, highest: 0 };

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Runner {
    steps: [Step; LANES],
    crashes: u8,
    job: u8,
    closed: [MarkId; LANES],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    sinks: [[Sink; SINKS]; LANES],
    /// Records that the sink without marks has had, as bits.
    unmarked: [u8; LANES],
    runners: [Runner; RUNNERS],
    backup: [Option<Sink>; SINKS],
    restored: u8,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub states: usize,
    /// A record lost or doubled.
    pub violations: usize,
    /// Something that nobody can explain, though the design does not want a stop.
    pub stops: usize,
    /// No runner could finish.
    pub dead_ends: usize,
    /// Stops that the design wants.
    pub wanted_stops: usize,
    /// Final states in which somebody finished.
    pub finished: usize,
}

pub struct World<'s> {
    scenario: &'s Scenario,
    book: Book,
    seen: HashSet<u128>,
    stack: Vec<State>,
    found: Found,
}

fn fingerprint(state: &State) -> u128 {
    let half = |salt: u64| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        state.hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(1) << 64 | half(2)
}

fn rows_of(sink: usize, from: u8, to: u8) -> impl Iterator<Item = u8> {
    ROWS.get(sink).copied().unwrap_or_default().iter().copied().filter(move |row| from < *row && *row <= to)
}

/// The rows of a sink are a run of what it should have: from the beginning, or from anywhere where it came late.
fn in_order(sink: usize, rows: u32, late: bool) -> bool {
    let mut held = Vec::new();
    let mut rest = rows;
    while rest != 0 {
        held.insert(0, u8::try_from(rest & 15).unwrap());
        rest >>= 4;
    }
    let all = ROWS[sink];
    let begin =
        if late { held.first().and_then(|first| all.iter().position(|row| row == first)).unwrap_or(0) } else { 0 };
    all[begin..].starts_with(&held)
}

impl<'s> World<'s> {
    pub fn explore(scenario: &'s Scenario) -> Found {
        let mut book = Book::default();
        book.entries = scenario.entries;
        let mut world = Self { scenario, book, seen: HashSet::new(), stack: Vec::new(), found: Found::default() };
        world.push(world.begin());
        while let Some(state) = world.stack.pop() {
            if !world.holds(&state) {
                world.found.violations += 1;
                continue;
            }
            if world.is_final(&state) {
                world.judge(&state);
                continue;
            }
            world.mishaps(&state);
            for runner in 0..scenario.jobs.len() {
                world.crash(&state, runner);
                for lane in 0..LANES {
                    world.step(&state, runner, lane);
                }
            }
        }
        world.found.states = world.seen.len();
        world.found
    }

    fn begin(&self) -> State {
        let idle = Runner { steps: [Step::Idle; LANES], crashes: 0, job: 0, closed: [0; LANES] };
        let mut runners = [idle; RUNNERS];
        for (runner, lanes) in runners.iter_mut().zip(&self.scenario.lanes) {
            runner.crashes = self.scenario.crashes;
            runner.steps = [0, 1].map(|lane| if lanes & (1 << lane) != 0 { BEGIN } else { Step::Idle });
        }
        State {
            sinks: [[Sink::default(); SINKS]; LANES],
            unmarked: [0; LANES],
            runners,
            backup: [None; SINKS],
            restored: 0,
        }
    }

    fn push(&mut self, state: State) {
        if self.seen.insert(fingerprint(&state)) {
            self.stack.push(state);
        }
    }

    /// What must be true in every state.
    fn holds(&self, state: &State) -> bool {
        let late = |sink: usize| self.scenario.late & (1 << sink) != 0;
        let rows = |sinks: &[Sink; SINKS]| [A, B].iter().all(|sink| in_order(*sink, sinks[*sink].rows, late(*sink)));
        // A mark of the ledger at P proves that the sink without marks had P.
        let proven = |lane: usize| {
            (1..=self.book.at(state.sinks[lane][LEDGER].mark)).all(|record| state.unmarked[lane] & (1 << record) != 0)
        };
        state.sinks.iter().all(rows) && (!self.scenario.unmarked || (0..LANES).all(proven))
    }

    fn is_final(&self, state: &State) -> bool {
        let ended = |step: &Step| matches!(step, Step::Idle | Step::Done | Step::Fenced | Step::Stopped);
        state.runners.iter().flat_map(|runner| &runner.steps).all(ended)
    }

    fn judge(&mut self, state: &State) {
        let lanes = (0..LANES).filter(|lane| self.scenario.lanes.iter().any(|lanes| lanes & (1 << lane) != 0));
        for lane in lanes {
            let steps = || state.runners.iter().enumerate().map(move |(n, runner)| (n, runner.steps[lane]));
            let done: Vec<_> = steps().filter(|(_, step)| *step == Step::Done).map(|(n, _)| n).collect();
            if done.is_empty() {
                self.found.dead_ends += usize::from(steps().all(|(_, step)| step != Step::Stopped));
                continue;
            }
            self.found.finished += 1;
            // Whoever finished last had this job; its sinks have everything up to the end.
            let whole = |sink: usize| {
                let rows = state.sinks[lane][sink].rows;
                let last = rows_of(sink, 0, self.scenario.records).last().unwrap_or_default();
                let all = rows_of(sink, 0, self.scenario.records).fold(0, |rows, row| rows << 4 | u32::from(row));
                if self.scenario.late & (1 << sink) != 0 {
                    rows == 0 || rows & 15 == u32::from(last)
                } else {
                    rows == all
                }
            };
            let jobs = done.iter().map(|n| self.scenario.jobs[*n][usize::from(state.runners[*n].job)]);
            let lost = jobs.into_iter().any(|job| [A, B].iter().any(|sink| job.has(*sink) && !whole(*sink)));
            self.found.violations += usize::from(lost);
        }
    }

    /// Backups are taken and restored at any time, once for each sink.
    fn mishaps(&mut self, state: &State) {
        for sink in (0..SINKS).filter(|sink| self.scenario.backups & (1 << sink) != 0) {
            match state.backup[sink] {
                None => {
                    let mut after = *state;
                    after.backup[sink] = Some(state.sinks[0][sink]);
                    self.push(after);
                }
                Some(backup) if state.restored & (1 << sink) == 0 => {
                    let mut after = *state;
                    after.sinks[0][sink] = backup;
                    after.restored |= 1 << sink;
                    // The daemons are started once more, if they had come to an end.
                    for runner in &mut after.runners {
                        runner.steps = runner
                            .steps
                            .map(|step| if matches!(step, Step::Done | Step::Fenced) { BEGIN } else { step });
                    }
                    self.push(after);
                }
                Some(_) => {}
            }
        }
    }

    /// The process dies and starts again, perhaps with another job, perhaps without its ledger.
    fn crash(&mut self, state: &State, runner: usize) {
        let me = &state.runners[runner];
        let busy =
            me.steps.iter().any(|step| !matches!(step, Step::Idle | Step::Fenced | Step::Stopped) && *step != BEGIN);
        let edited = usize::from(me.job) + 1 < self.scenario.jobs[runner].len();
        // A job that is to be edited is edited at the latest when it is done.
        if !busy || (me.crashes == 0 && !edited) || (me.steps.contains(&Step::Done) && !edited) {
            return;
        }
        let edits: &[u8] = match (me.crashes, edited) {
            (0, _) => &[1],
            (_, true) => &[0, 1],
            (_, false) => &[0],
        };
        for edit in edits {
            for lost in if self.scenario.ledger { &[false, true][..] } else { &[false] } {
                let mut after = *state;
                let me = &mut after.runners[runner];
                me.crashes = me.crashes.saturating_sub(1);
                me.job += edit;
                me.steps = me.steps.map(|step| if step == Step::Idle { Step::Idle } else { BEGIN });
                if *lost {
                    me.closed = [0; LANES];
                }
                self.push(after);
            }
        }
    }

    fn go(&mut self, state: &State, runner: usize, lane: usize, step: Step) {
        let mut after = *state;
        after.runners[runner].steps[lane] = step;
        self.push(after);
    }

    fn step(&mut self, state: &State, runner: usize, lane: usize) {
        let me = &state.runners[runner];
        let job = self.scenario.jobs[runner][usize::from(me.job)];
        let sinks: Vec<usize> = (0..SINKS).filter(|sink| job.has(*sink)).collect();
        match me.steps[lane] {
            Step::Idle | Step::Done | Step::Fenced | Step::Stopped => {}
            Step::Peek { sink, highest } => {
                let highest = highest.max(state.sinks[lane][sinks[usize::from(sink)]].generation);
                let next = if usize::from(sink) + 1 < sinks.len() {
                    Step::Peek { sink: sink + 1, highest }
                } else {
                    Step::Claim { sink: 0, generation: highest + 1, mine: [0; SINKS], seen: [0; SINKS] }
                };
                self.go(state, runner, lane, next);
            }
            Step::Claim { sink, generation, mut mine, mut seen } => {
                let at = sinks[usize::from(sink)];
                let stored = state.sinks[lane][at];
                if self.scenario.fencing == Fencing::Claim && stored.generation >= generation {
                    return self.go(state, runner, lane, Step::Fenced);
                }
                let mine_here = match self.scenario.fencing {
                    Fencing::Claim => generation,
                    Fencing::PerSink => stored.generation + 1,
                    Fencing::None => stored.generation,
                };
                mine[at] = mine_here;
                seen[at] = stored.mark;
                let mut after = *state;
                after.sinks[lane][at].generation = mine_here;
                after.runners[runner].steps[lane] = if usize::from(sink) + 1 < sinks.len() {
                    Step::Claim { sink: sink + 1, generation, mine, seen }
                } else {
                    Step::Decide { mine, seen }
                };
                self.push(after);
            }
            Step::Decide { mine, seen } => self.decide(state, runner, lane, job, mine, seen),
            Step::Unmarked { mine, seen, mark } => {
                let (from, to) = self.book.reads(mark);
                let mut after = *state;
                (from + 1..=to).for_each(|record| after.unmarked[lane] |= 1 << record);
                let todo = self.book.touched(mark);
                after.runners[runner].steps[lane] = Step::Commit { mine, seen, mark, todo, again: 0 };
                self.push(after);
            }
            Step::Commit { mine, seen, mark, todo: 0, .. } => {
                let next =
                    if self.scenario.ledger { Step::Close { mine, seen, mark } } else { Step::Decide { mine, seen } };
                self.go(state, runner, lane, next);
            }
            Step::Commit { mine, seen, mark, todo, again } => {
                let first = self.book.first(mark);
                for sink in (0..SINKS).filter(|sink| todo & (1 << sink) != 0) {
                    if todo & (1 << first) == 0 || sink == first {
                        self.commit(state, (runner, lane), mine, seen, mark, todo, sink, again);
                    }
                }
            }
            Step::Write { mine, seen, mark, todo, sink, again } => {
                self.write(state, (runner, lane), mine, seen, mark, todo, usize::from(sink), again);
            }
            Step::Close { mine, seen, mark } => {
                // Lazy: the record may get lost, alone.
                self.go(state, runner, lane, Step::Decide { mine, seen });
                let mut after = *state;
                after.runners[runner].closed[lane] = mark;
                after.runners[runner].steps[lane] = Step::Decide { mine, seen };
                self.push(after);
            }
        }
    }

    fn decide(&mut self, state: &State, runner: usize, lane: usize, job: Job, mine: [u8; SINKS], seen: Seen) {
        let closed = state.runners[runner].closed[lane];
        let commit = |book: &Book, mark: MarkId| Step::Commit { mine, seen, mark, todo: book.touched(mark), again: 0 };
        let act = self.book.decide(job, seen, closed);
        let head = match &act {
            Act::Next { head } | Act::Move { head, .. } | Act::Replay { head, .. } | Act::CatchUp { head, .. } => {
                Some(*head)
            }
            Act::Origin | Act::Stop(_) => None,
        };
        if let Some(head) = head.filter(|_| self.scenario.entries) {
            // The sources are put at the head with all entries; without them nobody goes on.
            let keeper = self.book.keeper(head, self.scenario.entries_of_the_anchor);
            if state.sinks[lane][keeper].log < self.book.log(head) {
                self.found.stops += 1;
                return self.go(state, runner, lane, Step::Stopped);
            }
        }
        match act {
            Act::Origin => {
                let mark = self.book.origin(job);
                let mut after = *state;
                after.runners[runner].closed[lane] = 0;
                after.runners[runner].steps[lane] = commit(&self.book, mark);
                self.push(after);
            }
            Act::Next { head } => self.next(state, (runner, lane), job, mine, seen, head),
            Act::Move { head, to } => {
                let mark = self.book.move_anchor(job, seen, head, to);
                self.go(state, runner, lane, commit(&self.book, mark));
            }
            Act::Replay { head, sinks } => {
                let (from, to) = self.book.reads(head);
                let ends = if self.scenario.numbers_only && from != to { vec![from + 1, from + 2] } else { vec![0] };
                for again in ends.into_iter().filter(|again| *again <= self.scenario.records) {
                    self.go(state, runner, lane, Step::Commit { mine, seen, mark: head, todo: sinks, again });
                }
            }
            // It has no rows to catch up with: everything would be read again for nothing.
            Act::CatchUp { sink: LEDGER, .. } => {
                self.found.stops += 1;
                self.go(state, runner, lane, Step::Stopped);
            }
            Act::CatchUp { head, sink, from } => {
                let limit = self.book.at(head);
                for to in [from + 1, from + 2].into_iter().filter(|to| *to <= limit) {
                    let mark = self.book.catch_up(seen, head, sink, from, to, job);
                    self.go(state, runner, lane, Step::Commit { mine, seen, mark, todo: 1 << sink, again: 0 });
                }
            }
            Act::Stop(stop) => {
                // Only after the generation was looked at once more is it a stop.
                if let Some(sink) =
                    (0..SINKS).find(|sink| job.has(*sink) && state.sinks[lane][*sink].generation != mine[*sink])
                {
                    return self.fenced(state, (runner, lane), sink, mine[sink]);
                }
                let sink = crate::book::index(stop.sink());
                let anchor = if let Stop::AnchorEmptied { sink, .. } = &stop { crate::book::index(sink) } else { sink };
                let told = matches!(stop, Stop::AnchorGone { .. } | Stop::AnchorEmptied { .. }) && seen[anchor] != 0;
                if self.scenario.operator && told {
                    let mark = self.book.resolve_anchor(job, seen, anchor);
                    return self.go(state, runner, lane, commit(&self.book, mark));
                }
                if (self.scenario.wanted)(&stop) {
                    self.found.wanted_stops += 1;
                } else {
                    self.found.stops += 1;
                }
                self.go(state, runner, lane, Step::Stopped);
            }
        }
    }

    /// The next batch: one record or two, or none where a sink is yet to join.
    fn next(&mut self, state: &State, me: (usize, usize), job: Job, mine: [u8; SINKS], seen: Seen, head: MarkId) {
        let (runner, lane) = me;
        let at = self.book.at(head);
        let finished = at == self.scenario.records;
        if finished && self.book.lists(head, job) {
            // A sink that went back since it was looked at: the next look finds out.
            let back = (0..SINKS).any(|sink| job.has(sink) && state.sinks[lane][sink].mark != seen[sink])
                && state.restored != 0;
            return self.go(state, runner, lane, if back { BEGIN } else { Step::Done });
        }
        for to in if finished { vec![at] } else { vec![at + 1, at + 2] } {
            if to > self.scenario.records {
                continue;
            }
            let with_rows = [A, B]
                .iter()
                .filter(|sink| rows_of(**sink, at, to).next().is_some())
                .fold(0, |bits, sink| bits | 1 << sink);
            let clock = if self.scenario.clocks { u8::try_from(runner).unwrap() } else { 0 };
            let mark = self.book.batch(job, seen, head, to, with_rows, clock);
            let todo = self.book.touched(mark);
            let commit = Step::Commit { mine, seen, mark, todo, again: 0 };
            self.go(
                state,
                runner,
                lane,
                if self.scenario.unmarked { Step::Unmarked { mine, seen, mark } } else { commit },
            );
        }
    }

    /// The check of a compare-and-swap: my generation, the mark where it is expected.
    fn commit(
        &mut self,
        state: &State,
        me: (usize, usize),
        mine: [u8; SINKS],
        seen: Seen,
        mark: MarkId,
        todo: u8,
        sink: usize,
        again: u8,
    ) {
        let (runner, lane) = me;
        let stored = state.sinks[lane][sink];
        if self.scenario.fencing != Fencing::None && stored.generation != mine[sink] {
            return self.fenced(state, me, sink, mine[sink]);
        }
        if stored.mark != mark && stored.mark != self.book.before(mark, sink) {
            if self.scenario.fencing == Fencing::None {
                return self.go(state, runner, lane, Step::Fenced);
            }
            // A sink that went back under a runner's feet: it looks at everything once more.
            if state.restored & (1 << sink) != 0 {
                return self.go(state, runner, lane, BEGIN);
            }
            self.found.stops += 1;
            return self.go(state, runner, lane, Step::Stopped);
        }
        if self.scenario.atomic {
            return self.write(state, me, mine, seen, mark, todo, sink, again);
        }
        let sink = u8::try_from(sink).unwrap();
        self.go(state, runner, lane, Step::Write { mine, seen, mark, todo, sink, again });
    }

    /// Another generation owns the lane. Where the generation went back, with a backup, nobody does: claim once more.
    fn fenced(&mut self, state: &State, me: (usize, usize), sink: usize, mine: u8) {
        let back = state.restored & (1 << sink) != 0 && state.sinks[me.1][sink].generation < mine;
        self.go(state, me.0, me.1, if back { BEGIN } else { Step::Fenced });
    }

    /// The swap: rows and mark.
    fn write(
        &mut self,
        state: &State,
        me: (usize, usize),
        mine: [u8; SINKS],
        mut seen: Seen,
        mark: MarkId,
        todo: u8,
        sink: usize,
        again: u8,
    ) {
        let (runner, lane) = me;
        let mut after = *state;
        let stored = &mut after.sinks[lane][sink];
        if stored.mark != mark {
            let (from, to) = self.book.reads(mark);
            let rows = rows_of(sink, from, if again == 0 { to } else { again });
            stored.rows = rows.fold(stored.rows, |rows, row| rows << 4 | u32::from(row));
            stored.mark = mark;
            if self.book.carries_to(mark, sink) {
                stored.log = self.book.log(mark);
            } else if let Some((from, to)) = self.book.brings(mark).filter(|_| self.book.first(mark) == sink) {
                assert_eq!(stored.log, from, "an anchor has all entries before those that a plan brings");
                stored.log = to;
            }
        }
        seen[sink] = mark;
        after.runners[runner].steps[lane] = Step::Commit { mine, seen, mark, todo: todo & !(1 << sink), again };
        self.push(after);
    }
}
