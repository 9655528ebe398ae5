//! Two copies of one data dir, exhaustively: a spool is copied at any moment, while its daemon runs or not; from then on both
//! daemons take over from each other, acknowledge and commit in any order. A record that was acknowledged is in the sink
//! exactly once, or a daemon has said that its spool is lost. The real judgement decides; weaker ones show that the model can fail.

use std::collections::{BTreeMap, HashSet};

use super::super::judge::{Verdict, judge};

/// What a mark keeps beside its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Nothing,
    /// A chain over the records.
    Records,
    /// A chain over the records and the random epoch of the claim under which each came.
    RecordsAndEpochs,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Record {
    /// Which record it is: for the one who counts, not for the daemons. All have the same bytes.
    id: u8,
    epoch: u8,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Daemon {
    /// The spool's UUID and its records; `None`: there is no data dir yet.
    spool: Option<(u8, Vec<Record>)>,
    /// Under which it appends; `None`: it has not claimed yet, and accepts nothing.
    epoch: Option<u8>,
    /// It does not know better than that it owns the lane.
    runs: bool,
    /// It said that its spool is lost, and has ended, or begun another.
    stopped: bool,
    appends: u8,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct World {
    daemons: [Daemon; 2],
    owner: Option<usize>,
    /// By spool: position and check.
    mark: BTreeMap<u8, (u64, Option<String>)>,
    sink: Vec<u8>,
    /// Records of spools that were said to be lost.
    said: Vec<u8>,
    ids: u8,
    epochs: u8,
    uuids: u8,
    is_copied: bool,
}

#[derive(Clone, Copy, Debug)]
struct Scenario {
    check: Check,
    /// `on_lost_spool: stop`, else `continue` with a new spool.
    stops: bool,
    /// The folder is moved instead of copied: there is one at a time.
    moved: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    states: usize,
    lost: usize,
    doubled: usize,
    /// A spool was called lost.
    alarms: usize,
}

/// Records that each daemon acknowledges.
const APPENDS: u8 = 2;
/// Claims of both.
const EPOCHS: u8 = 5;

fn chain(check: Check, records: &[Record]) -> Option<String> {
    match check {
        Check::Nothing => None,
        Check::Records => Some("x".repeat(records.len())),
        Check::RecordsAndEpochs => Some(records.iter().map(|record| format!("{},", record.epoch)).collect()),
    }
}

impl World {
    fn begin() -> Self {
        let mut world = Self { uuids: 1, ..Self::default() };
        world.daemons[0].spool = Some((0, Vec::new()));
        world
    }

    /// A claim, and what its spool is to the mark then.
    fn claim(&mut self, scenario: Scenario, who: usize) -> Verdict {
        self.owner = Some(who);
        self.epochs += 1;
        let epoch = self.epochs;
        let daemon = &mut self.daemons[who];
        let Some((uuid, records)) = &daemon.spool else { unreachable!("only who has a data dir claims") };
        let verdict = self.mark.get(uuid).map_or(Verdict::Continues, |(at, check)| {
            let end = records.len() as u64;
            let mine = usize::try_from(*at).ok().and_then(|at| records.get(..at));
            let mine = mine.and_then(|before| chain(scenario.check, before));
            judge(*at, check.as_deref(), 0, end, mine.as_deref())
        });
        (daemon.epoch, daemon.runs) = (Some(epoch), true);
        if verdict != Verdict::Continues {
            self.said.extend(records.iter().map(|record| record.id));
            if scenario.stops {
                (daemon.runs, daemon.stopped, self.owner) = (false, true, None);
            } else {
                daemon.spool = Some((self.uuids, Vec::new()));
                self.uuids += 1;
            }
        }
        verdict
    }

    /// Everything that waits, into the sink with the mark: only of the owner.
    fn commit(&mut self, check: Check, who: usize) {
        let Some((uuid, records)) = &self.daemons[who].spool else { return };
        let from = self.mark.get(uuid).map_or(0, |(at, _)| *at) as usize;
        self.sink.extend(records[from..].iter().map(|record| record.id));
        self.mark.insert(*uuid, (records.len() as u64, chain(check, records)));
    }

    fn after(&self, scenario: Scenario, found: &mut Found) -> Vec<Self> {
        let mut next = Vec::new();
        let mut push = |change: &mut dyn FnMut(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            next.push(world);
        };
        if !self.is_copied {
            push(&mut |world| {
                world.is_copied = true;
                world.daemons[1].spool = world.daemons[0].spool.clone();
                if scenario.moved {
                    world.daemons[0] = Daemon { stopped: true, ..Daemon::default() };
                }
            });
        }
        for who in 0..2 {
            let daemon = &self.daemons[who];
            if daemon.spool.is_none() || daemon.stopped {
                continue;
            }
            if self.epochs < EPOCHS {
                let mut verdict = Verdict::Continues;
                push(&mut |world| verdict = world.claim(scenario, who));
                found.alarms += usize::from(verdict != Verdict::Continues);
            }
            // A daemon that was fenced finds out later: until then it acknowledges.
            if daemon.runs && daemon.appends < APPENDS {
                push(&mut |world| {
                    let (id, daemon) = (world.ids, &mut world.daemons[who]);
                    world.ids += 1;
                    daemon.appends += 1;
                    let epoch = daemon.epoch.unwrap_or_default();
                    daemon.spool.as_mut().map(|(_, records)| records.push(Record { id, epoch })).unwrap();
                });
            }
            if self.owner == Some(who) && daemon.runs {
                push(&mut |world| world.commit(scenario.check, who));
            }
        }
        next
    }

    /// Each daemon has its turn once more: what is nowhere then, and nobody spoke of, is lost.
    fn judge(mut self, scenario: Scenario, found: &mut Found) {
        let twice = |sink: &[u8]| sink.iter().collect::<HashSet<_>>().len() != sink.len();
        found.doubled += usize::from(twice(&self.sink));
        for who in [0, 1] {
            if self.daemons[who].spool.is_some() && !self.daemons[who].stopped {
                self.claim(scenario, who);
                if self.owner == Some(who) {
                    self.commit(scenario.check, who);
                }
            }
        }
        found.doubled += usize::from(twice(&self.sink));
        let acknowledged = 0..self.ids;
        let gone = acknowledged.filter(|id| !self.sink.contains(id) && !self.said.contains(id));
        found.lost += usize::from(gone.count() > 0);
    }
}

fn explore(scenario: Scenario) -> Found {
    let mut found = Found::default();
    let mut seen = HashSet::new();
    let mut stack = vec![World::begin()];
    while let Some(world) = stack.pop() {
        if !seen.insert(world.clone()) {
            continue;
        }
        stack.extend(world.after(scenario, &mut found));
        world.judge(scenario, &mut found);
    }
    found.states = seen.len();
    found
}

#[test]
fn no_course_of_two_copies_loses_a_record_in_silence() {
    for stops in [true, false] {
        let found = explore(Scenario { check: Check::RecordsAndEpochs, stops, moved: false });
        println!("stops {stops}: {found:?}");
        assert_eq!((found.lost, found.doubled), (0, 0));
        assert!(found.alarms > 0 && found.states > 1_000, "the model has shrunk: {found:?}");
    }
}

#[test]
fn a_folder_that_is_moved_goes_on() {
    for stops in [true, false] {
        let found = explore(Scenario { check: Check::RecordsAndEpochs, stops, moved: true });
        println!("moved, stops {stops}: {found:?}");
        assert_eq!((found.lost, found.doubled, found.alarms), (0, 0, 0));
        assert!(found.states > 100, "the model has shrunk: {found:?}");
    }
}

#[test]
fn weaker_checks_lose() {
    for check in [Check::Nothing, Check::Records] {
        let found = explore(Scenario { check, stops: true, moved: false });
        println!("{check:?}: {found:?}");
        assert_ne!(found.lost, 0, "{check:?}: the model does not see it");
    }
}
