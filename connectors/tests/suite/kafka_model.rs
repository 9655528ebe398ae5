//! A model of the Kafka sink's own steps, enumerated: reading the marks, taking the transactional id, claiming, sending
//! rows and mark, ending the transaction; with runners that pause anywhere and go on later, transactions that the broker
//! undoes because they took too long, markers that are written late, another lane's transaction that is open in the same
//! partition of the marks, and a marker that is never written, there or among the rows, while the other is: a coordinator
//! that finds no leader of a partition leaves it out (KAFKA-20734). The next marker there ends that transaction, too.
//!
//! Left out is what nobody can see: a commit of which a marker was lost, and an owner that goes on. With a marker lost among
//! the marks, it takes the id anew here instead; markers among the rows are lost by aborts alone.
//!
//! One lane, two batches, two claims (2.4 million states with three). A runner that is not scheduled is a paused or a dead one, so every state is also
//! judged as if everybody had died in it: what is open is undone, and then the rows must be those that the marks say,
//! each batch once, and every batch that was acknowledged among them. Where everybody has ended and nobody died, all
//! batches must be there: nobody stops for nothing. Each protection is taken away in turn, and the model must then find
//! a failure.

use std::collections::HashSet;

const BATCHES: u8 = 2;
/// A third one takes minutes, and shows nothing new: it is run with `--ignored`.
const CLAIMS: u8 = 2;
/// Transactions of the other lane, of this one that the broker undoes, and markers that are lost.
const OTHERS: u8 = 1;
const TIMEOUTS: u8 = 1;
const LOST: u8 = 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Design {
    Good,
    /// The mark is read before the id is taken, and not after.
    NoSecondRead,
    /// Reading stops where a reader of committed records stops just then.
    NoWaitForTheEnd,
    /// The end to read up to is asked before the id is taken.
    EndBeforeTheId,
    /// Records are read that are not committed.
    ReadUncommitted,
    /// Each start has an id of its own: nobody is shut out.
    NoSharedId,
    /// Who was shut out takes the id again and goes on with what it knows.
    BlindReturn,
    /// Who was shut out ends, although every mark has its generation.
    NoReturn,
    /// Who was shut out ends where it does not see its own claim at the first look.
    TrustFirstRead,
    /// Rows and mark are two transactions.
    MarkApart,
    /// A transaction without its end is undone, whatever became of its rows.
    UndoHanging,
    /// It is committed, whatever became of its rows.
    CommitHanging,
    /// Rows are sent though some of before may be open.
    NoSettling,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Record {
    Claim { generation: u8 },
    Rows { batch: u8 },
    Mark { generation: u8, batch: u8 },
    Other,
}

impl Record {
    fn part(self) -> Part {
        if matches!(self, Self::Rows { .. }) { Part::Rows } else { Part::Marks }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum State {
    Open,
    /// The coordinator has decided to commit; the markers are not written.
    Prepared,
    Committed,
    Undone,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Transaction {
    state: State,
    /// The epoch of the producer; 0: the other lane's.
    epoch: u8,
    /// It has ended, and the marks' partition lacks that end.
    hangs: bool,
    /// It was undone, and its rows' partition lacks that end.
    rows_hang: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Part {
    Marks,
    Rows,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Step {
    First,
    TakeId,
    AskEnd,
    Read,
    Claim,
    EndClaim,
    Rows,
    Between,
    Mark,
    End,
    Over,
}

/// What the marks say: the generation, and the last batch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Known {
    generation: u8,
    batch: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Runner {
    generation: u8,
    step: Step,
    epoch: u8,
    /// Up to where it reads.
    end: usize,
    known: Known,
    /// Its claim is written: it reads to go on, not to claim.
    claimed: bool,
    transaction: usize,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct World {
    /// The marks' partition, and the rows in the order of their transactions: (transaction, record).
    log: Vec<(usize, Record)>,
    transactions: Vec<Transaction>,
    /// Of the lane's id, as the coordinator has it.
    epoch: u8,
    runners: Vec<Runner>,
    claims: u8,
    others: u8,
    timeouts: u8,
    lost: u8,
    /// Has no leader when the next transaction of the lane ends.
    leaderless: Option<Part>,
    acknowledged: u8,
}

impl World {
    /// Before the first record of a transaction that is still open.
    fn stable(&self) -> usize {
        let is_open = |(transaction, record): &&(usize, Record)| {
            let Transaction { state, hangs, .. } = self.transactions[*transaction];
            matches!(state, State::Open | State::Prepared) || (hangs && record.part() == Part::Marks)
        };
        self.log.iter().position(|record| is_open(&record)).unwrap_or(self.log.len())
    }

    fn read(&self, end: usize, uncommitted: bool) -> Known {
        let mut known = Known::default();
        for (transaction, record) in &self.log[..end] {
            let Transaction { state, hangs, .. } = self.transactions[*transaction];
            if !uncommitted && (state != State::Committed || hangs) {
                continue;
            }
            match record {
                Record::Claim { generation } => known.generation = *generation,
                Record::Mark { generation, batch } => known = Known { generation: *generation, batch: *batch },
                Record::Rows { .. } | Record::Other => {}
            }
        }
        known
    }

    /// A new producer of the id: the old one's transaction ends first.
    fn take_id(&mut self, shared: bool) -> u8 {
        if shared {
            for index in 0..self.transactions.len() {
                match self.transactions[index] {
                    Transaction { epoch: 0, .. } => {}
                    Transaction { state: State::Open, .. } => self.end(index, State::Undone),
                    Transaction { state: State::Prepared, .. } => self.end(index, State::Committed),
                    _ => {}
                }
            }
        }
        self.epoch += 1;
        self.epoch
    }

    fn begin(&mut self, epoch: u8) -> usize {
        self.transactions.push(Transaction { state: State::Open, epoch, hangs: false, rows_hang: false });
        self.transactions.len() - 1
    }

    /// The coordinator writes the markers; or leaves out the one that is lost.
    fn end(&mut self, index: usize, state: State) {
        self.transactions[index].state = state;
        let has = |part| self.log.iter().any(|(of, record)| *of == index && record.part() == part);
        let (has_marks, has_rows) = (has(Part::Marks), has(Part::Rows));
        if self.transactions[index].epoch == 0 {
            return;
        }
        let is_lost = |part| match part {
            Part::Marks => has_marks,
            Part::Rows => has_rows && state == State::Undone,
        };
        let lost = self.leaderless.filter(|part| is_lost(*part));
        self.leaderless = self.leaderless.filter(|_| lost.is_none());
        self.transactions[index].hangs |= lost == Some(Part::Marks);
        self.transactions[index].rows_hang |= lost == Some(Part::Rows);
        if has_rows && lost != Some(Part::Rows) {
            self.settle(state);
        }
    }

    /// A marker among the rows ends all that is open there, in its own way.
    fn settle(&mut self, state: State) {
        for index in 0..self.transactions.len() {
            if std::mem::take(&mut self.transactions[index].rows_hang) && state == State::Committed {
                let apart = self.begin(0);
                self.transactions[apart].state = state;
                let rows = self.log.iter_mut().filter(|(of, record)| *of == index && record.part() == Part::Rows);
                rows.for_each(|(of, _)| *of = apart);
            }
        }
    }

    /// What hangs is ended: committed where its rows are seen, or where it has none.
    fn sweep(&mut self, design: Design) {
        for index in 0..self.transactions.len() {
            if !std::mem::take(&mut self.transactions[index].hangs) {
                continue;
            }
            let is_seen = self.transactions[index].state == State::Committed;
            let has_rows = self.log.iter().any(|(of, record)| *of == index && (record.part() == Part::Rows));
            let commits = match design {
                Design::UndoHanging => false,
                Design::CommitHanging => true,
                _ => !has_rows || is_seen,
            };
            if commits != is_seen {
                let apart = self.begin(0);
                self.transactions[apart].state = if commits { State::Committed } else { State::Undone };
                let marks = self.log.iter_mut().filter(|(of, record)| *of == index && record.part() == Part::Marks);
                marks.for_each(|(of, _)| *of = apart);
            }
        }
    }

    /// The same world without what no longer matters, so that worlds that go on alike are one.
    fn plain(mut self, design: Design) -> Self {
        self.runners.retain(|runner| runner.step != Step::Over);
        // What was undone is seen by nobody; what is committed needs no transaction of its own.
        let mut places = Vec::new();
        let mut transactions = vec![Transaction { state: State::Committed, epoch: 0, hangs: false, rows_hang: false }];
        for transaction in &self.transactions {
            places.push(match transaction.state {
                _ if transaction.hangs || transaction.rows_hang => {
                    transactions.push(*transaction);
                    Some(transactions.len() - 1)
                }
                State::Undone if design != Design::ReadUncommitted => None,
                State::Committed => Some(0),
                State::Undone | State::Open | State::Prepared => {
                    transactions.push(*transaction);
                    Some(transactions.len() - 1)
                }
            });
        }
        let kept =
            |end: usize| self.log[..end].iter().filter(|(transaction, _)| places[*transaction].is_some()).count();
        for runner in &mut self.runners {
            runner.end = if matches!(runner.step, Step::TakeId | Step::Read) { kept(runner.end) } else { 0 };
            runner.transaction = match runner.transaction {
                usize::MAX => usize::MAX,
                transaction => places[transaction].filter(|place| *place > 0).unwrap_or(usize::MAX),
            };
            let ahead = matches!(runner.step, Step::First | Step::AskEnd | Step::Read)
                || (runner.step == Step::TakeId && design != Design::NoSecondRead);
            if ahead && design != Design::BlindReturn {
                runner.known = Known::default();
            }
            if matches!(runner.step, Step::First | Step::TakeId) {
                runner.epoch = 0;
            }
        }
        let place = |(transaction, record): &(usize, Record)| Some((places[*transaction]?, *record));
        self.log = self.log.iter().filter_map(place).collect();
        self.transactions = transactions;
        // Of epochs only the order matters.
        let mut epochs: Vec<u8> = self.runners.iter().map(|runner| runner.epoch).collect();
        epochs.extend(self.transactions.iter().map(|transaction| transaction.epoch).chain([self.epoch, 0]));
        epochs.sort_unstable();
        epochs.dedup();
        let rank = |epoch: u8| epochs.binary_search(&epoch).unwrap() as u8;
        self.runners.iter_mut().for_each(|runner| runner.epoch = rank(runner.epoch));
        self.transactions.iter_mut().for_each(|transaction| transaction.epoch = rank(transaction.epoch));
        self.epoch = rank(self.epoch);
        // Runners differ in their generations alone.
        self.runners.sort_by_key(|runner| runner.generation);
        self
    }

    /// What is wrong if everybody died now, or nothing.
    fn judge(&self, design: Design) -> Option<String> {
        let mut world = self.clone();
        for transaction in &mut world.transactions {
            transaction.state = match transaction.state {
                State::Open => State::Undone,
                State::Prepared => State::Committed,
                ended => ended,
            };
        }
        world.sweep(design);
        let committed =
            world.log.iter().filter(|(transaction, _)| world.transactions[*transaction].state == State::Committed);
        let rows: Vec<u8> = committed
            .filter_map(|(_, record)| match record {
                Record::Rows { batch } => Some(*batch),
                _ => None,
            })
            .collect();
        let last = world.read(world.log.len(), false).batch;
        let expected: Vec<u8> = (1..=last).collect();
        if rows != expected {
            return Some(format!("rows of {rows:?}, the mark says {last}"));
        }
        (last < self.acknowledged)
            .then(|| format!("batch {} was acknowledged, the mark says {last}", self.acknowledged))
    }
}

/// The world after one step of a runner; `None` where it has to wait.
fn step(world: &World, index: usize, design: Design) -> Option<World> {
    let mut next = world.clone();
    let mut runner = next.runners[index].clone();
    let shared = design != Design::NoSharedId;
    let writes = |world: &World, runner: &Runner| !shared || runner.epoch == world.epoch;
    // A generation that is not lower has the lane; of one's own, only who has claimed may go on.
    let may = |runner: &Runner, known: Known| {
        if runner.claimed { known.generation == runner.generation } else { known.generation < runner.generation }
    };
    let shut_out = |world: &mut World, runner: &mut Runner| {
        if let Some(transaction) =
            world.transactions.get(runner.transaction).filter(|_| runner.transaction != usize::MAX)
            && transaction.state == State::Open
        {
            world.end(runner.transaction, State::Undone);
        }
        runner.transaction = usize::MAX;
        runner.step = match design {
            Design::NoReturn => Step::Over,
            Design::BlindReturn => {
                runner.epoch = world.take_id(true);
                if runner.claimed { Step::Rows } else { Step::Claim }
            }
            _ => Step::First,
        };
    };
    match runner.step {
        Step::First => {
            runner.known = next.read(next.stable(), false);
            // Its claim, which it took for undone: whoever swept it could not know. (The daemon claims once more.)
            runner.claimed |= runner.known.generation == runner.generation;
            runner.end = next.log.len();
            // One's own claim may be out of sight yet, so that only a later one counts.
            let goes_on = match design {
                Design::TrustFirstRead => may(&runner, runner.known),
                _ => may(&runner, runner.known) || (runner.claimed && runner.known.generation < runner.generation),
            };
            runner.step = if goes_on { Step::TakeId } else { Step::Over };
        }
        Step::TakeId => {
            runner.epoch = next.take_id(shared);
            runner.step = match design {
                Design::NoSecondRead if runner.claimed => Step::Rows,
                Design::NoSecondRead => Step::Claim,
                Design::EndBeforeTheId => Step::Read,
                _ => Step::AskEnd,
            };
        }
        Step::AskEnd => {
            runner.end = if design == Design::NoWaitForTheEnd { next.stable() } else { next.log.len() };
            runner.step = Step::Read;
        }
        Step::Read => {
            let uncommitted = design == Design::ReadUncommitted;
            if !uncommitted && next.stable() < runner.end {
                // Who has the id knows that its transactions have ended: what is open yet lacks its end, or is another's.
                if !writes(&next, &runner) {
                    shut_out(&mut next, &mut runner);
                } else if next.transactions.iter().any(|transaction| transaction.hangs) {
                    next.sweep(design);
                } else {
                    return None;
                }
                next.runners[index] = runner;
                return Some(next);
            }
            runner.known = next.read(runner.end, uncommitted);
            runner.claimed |= runner.known.generation == runner.generation;
            runner.step = match may(&runner, runner.known) {
                true if runner.claimed => Step::Rows,
                true => Step::Claim,
                false => Step::Over,
            };
        }
        Step::Rows if runner.known.batch >= BATCHES => {
            runner.step = Step::Over;
        }
        Step::EndClaim | Step::Between | Step::Mark | Step::End if runner.transaction == usize::MAX => {
            shut_out(&mut next, &mut runner);
        }
        _ if !writes(&next, &runner) => shut_out(&mut next, &mut runner),
        // A producer begins no transaction before the markers of its last one are written.
        Step::Claim | Step::Rows
            if next.transactions.iter().any(|t| t.epoch == runner.epoch && t.state == State::Prepared) =>
        {
            return None;
        }
        Step::Claim | Step::Rows if next.transactions.iter().any(|t| t.epoch == runner.epoch && t.hangs) => {
            runner.step = Step::First;
        }
        Step::Claim => {
            runner.transaction = next.begin(runner.epoch);
            next.log.push((runner.transaction, Record::Claim { generation: runner.generation }));
            // The claim is of the mark that is there.
            let Known { batch, .. } = runner.known;
            next.log.push((runner.transaction, Record::Mark { generation: runner.generation, batch }));
            runner.step = Step::EndClaim;
        }
        Step::EndClaim => {
            next.transactions[runner.transaction].state = State::Prepared;
            runner.claimed = true;
            runner.step = Step::Rows;
        }
        Step::Rows => {
            if design != Design::NoSettling {
                next.settle(State::Undone);
            }
            runner.transaction = next.begin(runner.epoch);
            next.log.push((runner.transaction, Record::Rows { batch: runner.known.batch + 1 }));
            runner.step = if design == Design::MarkApart { Step::Between } else { Step::Mark };
        }
        Step::Between => {
            next.transactions[runner.transaction].state = State::Committed;
            runner.transaction = next.begin(runner.epoch);
            runner.step = Step::Mark;
        }
        Step::Mark => {
            let (generation, batch) = (runner.generation, runner.known.batch + 1);
            next.log.push((runner.transaction, Record::Mark { generation, batch }));
            runner.step = Step::End;
        }
        Step::End => {
            next.transactions[runner.transaction].state = State::Prepared;
            runner.known.batch += 1;
            next.acknowledged = next.acknowledged.max(runner.known.batch);
            runner.step = Step::Rows;
        }
        Step::Over => return None,
    }
    next.runners[index] = runner;
    Some(next)
}

/// What brokers and others do.
fn surroundings(world: &World, claims: u8) -> Vec<World> {
    let mut all = Vec::new();
    if world.claims < claims {
        let mut next = world.clone();
        next.claims += 1;
        next.runners.push(Runner {
            generation: next.claims,
            step: Step::First,
            epoch: 0,
            end: 0,
            known: Known::default(),
            claimed: false,
            transaction: usize::MAX,
        });
        all.push(next);
    }
    if world.others < OTHERS {
        let mut next = world.clone();
        next.others += 1;
        let transaction = next.begin(0);
        next.log.push((transaction, Record::Other));
        all.push(next);
    }
    if world.lost < LOST {
        let mut next = world.clone();
        next.lost += 1;
        next.leaderless = Some(Part::Marks);
        all.push(next.clone());
        next.leaderless = Some(Part::Rows);
        all.push(next);
    }
    for (index, transaction) in world.transactions.iter().enumerate() {
        let mut next = world.clone();
        match transaction.state {
            State::Open if transaction.epoch == 0 => next.end(index, State::Committed),
            State::Prepared => next.end(index, State::Committed),
            State::Open if world.timeouts < TIMEOUTS && transaction.epoch == world.epoch => {
                next.timeouts += 1;
                next.end(index, State::Undone);
                next.epoch += 1;
            }
            _ => continue,
        }
        all.push(next);
    }
    all
}

/// The number of states, and the first thing that went wrong.
fn explore(design: Design, claims: u8) -> (usize, Option<String>) {
    let first = World::default().plain(design);
    let mut seen = HashSet::from([first.clone()]);
    let mut open = vec![first];
    while let Some(world) = open.pop() {
        if let Some(wrong) = world.judge(design) {
            return (seen.len(), Some(format!("{wrong}\n{world:#?}")));
        }
        let mut next: Vec<World> = (0..world.runners.len()).filter_map(|index| step(&world, index, design)).collect();
        next.extend(surroundings(&world, claims));
        let mut swept = world.clone();
        swept.sweep(design);
        if next.is_empty() && swept.read(swept.log.len(), false).batch < BATCHES {
            return (seen.len(), Some(format!("everybody ended, and the batches are not done\n{world:#?}")));
        }
        for world in next.into_iter().map(|world| world.plain(design)) {
            if seen.insert(world.clone()) {
                open.push(world);
            }
        }
    }
    (seen.len(), None)
}

#[test]
fn the_design_survives_everything() {
    let (states, wrong) = explore(Design::Good, CLAIMS);
    println!("{states} states");
    assert_eq!(wrong, None);
    assert!(states > 10_000, "the model shrank to {states} states");
}

#[test]
#[ignore = "takes minutes"]
fn the_design_survives_three_claims() {
    assert_eq!(explore(Design::Good, CLAIMS + 1).1, None);
}

#[test]
fn every_protection_is_needed() {
    use Design::*;
    for design in [
        NoSecondRead,
        NoWaitForTheEnd,
        EndBeforeTheId,
        ReadUncommitted,
        NoSharedId,
        BlindReturn,
        NoReturn,
        TrustFirstRead,
        MarkApart,
        UndoHanging,
        CommitHanging,
        NoSettling,
    ] {
        let (states, wrong) = explore(design, CLAIMS);
        println!(
            "{design:?}: {states} states, {}",
            wrong.as_deref().unwrap_or("nothing found").lines().next().unwrap()
        );
        assert!(wrong.is_some(), "{design:?} is not needed, or the model is blind");
    }
}
