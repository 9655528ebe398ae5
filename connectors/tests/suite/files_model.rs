//! A model of the file sink's own steps, enumerated: rename, append, sync; kills, power cuts, and zombies that go on at
//! any later moment with what they hold open.
//!
//! One lane, batches of two files, three claims, one power cut. Kills and pauses need no budget: every state is also
//! judged as if everybody had died in it, and a runner that is not scheduled is a paused one. What is judged: a fresh
//! claim on the disk as it is finds exactly one good file per part of every batch of its log, nothing else, and every
//! batch that was ever acknowledged. Each protection is taken away in turn, and the model must then find a failure.

use std::collections::{BTreeMap, BTreeSet, HashSet};

const PARTS: u8 = 2;
const BATCHES: usize = 2;
const CLAIMS: u8 = 3;
const POWER_CUTS: u8 = 1;

/// (batch from 0, generation that wrote it, part).
type File = (u8, u8, u8);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Design {
    Good,
    /// Renames go through a directory that was opened before, so they succeed for a fenced writer.
    NoOwnershipProof,
    /// The next mark is written although the renames before it may be undone by a power cut.
    NoFolderSync,
    /// A claim does not sync the folders of renames that it finds done.
    NoFolderSyncAtClaim,
    /// The mark is appended before the data are synced.
    NoDataSync,
    /// The receipt is given before the log is synced.
    NoLogSync,
    /// The claim reads the old log before it takes the folder.
    ReadBeforeClaim,
    /// Temporaries are made when they are needed, in a folder that nobody synced.
    NoPool,
    /// The claim does not finish the renames that are owed.
    NoFinish,
    /// A claim trusts the newest bytes of the old log at any time, instead of beginning a log of its own.
    NoNewLog,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Log {
    /// The generation that wrote each batch: the chain of marks.
    chain: Vec<u8>,
    /// Marks that survive a power cut.
    synced: usize,
    /// The log's own name survives.
    named: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Inode {
    data_synced: bool,
    entry_synced: bool,
    broken: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Disk {
    live: u8,
    live_synced: u8,
    logs: BTreeMap<u8, Log>,
    tmp: BTreeMap<File, Inode>,
    /// Final names; the flag says that the rename survives a power cut.
    out: BTreeMap<File, (Inode, bool)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Step {
    Rename,
    SyncLane,
    ReadLog,
    SyncLog,
    Finish,
    SyncTargets,
    Write,
    SyncOldTargets,
    SyncData,
    Append,
    SyncMark,
    Publish(u8),
    Over,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Runner {
    generation: u8,
    step: Step,
    /// The log that it appends to.
    log: u8,
    chain: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    disk: Disk,
    runners: Vec<Runner>,
    claims: u8,
    cuts: u8,
    acknowledged: BTreeSet<(u8, u8)>,
}

fn files(batch: u8, generation: u8) -> impl Iterator<Item = File> {
    (0..PARTS).map(move |part| (batch, generation, part))
}

fn last_files(chain: &[u8]) -> Vec<File> {
    chain.last().map_or(Vec::new(), |generation| files(chain.len() as u8 - 1, *generation).collect())
}

impl Disk {
    fn head_log(&self) -> u8 {
        *self.logs.keys().last().unwrap()
    }
    fn publish(&mut self, file: File) {
        if let Some(inode) = self.tmp.remove(&file) {
            self.out.insert(file, (inode, false));
        }
    }
    fn sync_targets(&mut self) {
        self.out.values_mut().for_each(|(_, durable)| *durable = true);
    }

    /// What is wrong once a fresh claim has recovered, or nothing.
    fn judge(&self, acknowledged: &BTreeSet<(u8, u8)>, design: Design) -> Option<String> {
        let mut disk = self.clone();
        let chain = disk.logs[&disk.head_log()].chain.clone();
        if design != Design::NoFinish {
            last_files(&chain).into_iter().for_each(|file| disk.publish(file));
        }
        for (batch, generation) in acknowledged {
            if chain.get(*batch as usize) != Some(generation) {
                return Some(format!("batch {batch} of g{generation} was acknowledged, the log says {chain:?}"));
            }
        }
        let expected: BTreeSet<File> =
            chain.iter().enumerate().flat_map(|(batch, generation)| files(batch as u8, *generation)).collect();
        let found: BTreeSet<File> = disk.out.keys().copied().collect();
        if found != expected {
            return Some(format!("files {found:?}, the log says {expected:?}"));
        }
        disk.out.values().any(|(inode, _)| inode.broken).then(|| "a published file is torn".to_owned())
    }

    /// Every disk that a power cut may leave.
    fn cut(&self) -> Vec<Disk> {
        let mut disks = vec![Disk { out: BTreeMap::new(), tmp: BTreeMap::new(), ..self.clone() }];
        let mut each = |choices: &dyn Fn(&Disk) -> Vec<Disk>| disks = disks.iter().flat_map(choices).collect();
        each(&|disk| {
            let kept = Disk { live_synced: self.live, ..disk.clone() };
            let lost = Disk { live: self.live_synced, ..disk.clone() };
            if self.live == self.live_synced { vec![kept] } else { vec![kept, lost] }
        });
        for (generation, log) in &self.logs {
            each(&|disk| {
                let mut all: Vec<Disk> = (log.synced..=log.chain.len())
                    .map(|length| {
                        let mut disk = disk.clone();
                        let chain = log.chain[..length].to_vec();
                        disk.logs.insert(*generation, Log { chain, synced: length, named: true });
                        disk
                    })
                    .collect();
                if !log.named {
                    let mut without = disk.clone();
                    without.logs.remove(generation);
                    all.push(without);
                }
                all
            });
        }
        let inodes = |inode: &Inode| {
            let safe = Inode { data_synced: true, entry_synced: true, ..*inode };
            if inode.data_synced { vec![safe] } else { vec![safe, Inode { broken: true, ..safe }] }
        };
        for (file, inode) in &self.tmp {
            each(&|disk| {
                let mut all = Vec::new();
                for inode in inodes(inode) {
                    let mut disk = disk.clone();
                    disk.tmp.insert(*file, inode);
                    all.push(disk);
                }
                if !inode.entry_synced {
                    all.push(disk.clone());
                }
                all
            });
        }
        for (file, (inode, durable)) in &self.out {
            each(&|disk| {
                let mut all = Vec::new();
                for inode in inodes(inode) {
                    let mut published = disk.clone();
                    published.out.insert(*file, (inode, true));
                    all.push(published);
                    if !durable {
                        let mut undone = disk.clone();
                        undone.tmp.insert(*file, inode);
                        all.push(undone);
                    }
                }
                if !durable && !inode.entry_synced {
                    all.push(disk.clone());
                }
                all
            });
        }
        disks
    }
}

/// The world after one step of runner `index`.
fn step(world: &World, index: usize, design: Design) -> World {
    use Step::*;
    let mut world = world.clone();
    let disk = &mut world.disk;
    let runner = &mut world.runners[index];
    let generation = runner.generation;
    let batch = runner.chain.len() as u8;
    let owns = disk.live == generation;
    let by_path = owns || design == Design::NoOwnershipProof;
    runner.step = match runner.step {
        Rename if generation <= disk.live => Over,
        Rename => {
            if design == Design::ReadBeforeClaim && runner.chain.is_empty() && runner.log == u8::MAX {
                runner.log = generation;
                runner.chain = disk.logs[&disk.head_log()].chain.clone();
                Rename
            } else {
                disk.live = generation;
                SyncLane
            }
        }
        SyncLane => {
            disk.live_synced = disk.live;
            ReadLog
        }
        ReadLog if !owns => Over,
        ReadLog => {
            let old = disk.head_log();
            if design != Design::ReadBeforeClaim {
                runner.chain = disk.logs[&old].chain.clone();
            }
            runner.log = if design == Design::NoNewLog { old } else { generation };
            if runner.log == generation {
                let log = Log { chain: runner.chain.clone(), synced: runner.chain.len(), named: false };
                disk.logs.insert(generation, log);
            }
            SyncLog
        }
        SyncLog if !owns => Over,
        SyncLog => {
            disk.logs.get_mut(&runner.log).unwrap().named = true;
            Finish
        }
        Finish if !owns => Over,
        Finish => {
            if design != Design::NoFinish {
                last_files(&runner.chain).into_iter().for_each(|file| disk.publish(file));
                disk.tmp.clear();
            }
            SyncTargets
        }
        SyncTargets => {
            if design != Design::NoFolderSyncAtClaim {
                disk.sync_targets();
            }
            Write
        }
        Write if batch as usize >= BATCHES || !owns => Over,
        Write => {
            let inode = Inode { entry_synced: design != Design::NoPool, ..Inode::default() };
            disk.tmp.extend(files(batch, generation).map(|file| (file, inode)));
            SyncOldTargets
        }
        SyncOldTargets => {
            if design != Design::NoFolderSync && design != Design::NoFolderSyncAtClaim {
                disk.sync_targets();
            } else if design == Design::NoFolderSyncAtClaim {
                // A writer knows the folders of its own renames only.
                for ((_, by, _), (_, durable)) in &mut disk.out {
                    *durable |= *by == generation;
                }
            }
            SyncData
        }
        SyncData => {
            if design != Design::NoDataSync {
                for file in files(batch, generation) {
                    if let Some(inode) = disk.tmp.get_mut(&file) {
                        inode.data_synced = true;
                    }
                }
            }
            Append
        }
        Append => {
            disk.logs.get_mut(&runner.log).unwrap().chain.push(generation);
            SyncMark
        }
        SyncMark => {
            if design != Design::NoLogSync {
                let log = disk.logs.get_mut(&runner.log).unwrap();
                log.synced = log.chain.len();
            }
            Publish(0)
        }
        Publish(_) if !by_path => Over,
        Publish(part) => {
            disk.publish((batch, generation, part));
            if part + 1 < PARTS {
                Publish(part + 1)
            } else {
                world.acknowledged.insert((batch, generation));
                runner.chain.push(generation);
                Write
            }
        }
        Over => Over,
    };
    world
}

/// The number of states, and the first thing that went wrong.
fn explore(design: Design) -> (usize, Option<String>) {
    let log = Log { chain: Vec::new(), synced: 0, named: true };
    let disk =
        Disk { live: 0, live_synced: 0, logs: BTreeMap::from([(0, log)]), tmp: BTreeMap::new(), out: BTreeMap::new() };
    let first = World { disk, runners: Vec::new(), claims: 0, cuts: 0, acknowledged: BTreeSet::new() };
    let mut seen = HashSet::from([first.clone()]);
    let mut open = vec![first];
    while let Some(world) = open.pop() {
        if let Some(wrong) = world.disk.judge(&world.acknowledged, design) {
            return (seen.len(), Some(format!("{wrong}\n{world:#?}")));
        }
        let mut next: Vec<World> = (0..world.runners.len()).map(|index| step(&world, index, design)).collect();
        if world.claims < CLAIMS {
            let mut another = world.clone();
            another.claims += 1;
            let generation = another.claims;
            another.runners.push(Runner { generation, step: Step::Rename, log: u8::MAX, chain: Vec::new() });
            next.push(another);
        }
        if world.cuts < POWER_CUTS {
            next.extend(world.disk.cut().into_iter().map(|disk| World {
                disk,
                runners: Vec::new(),
                cuts: world.cuts + 1,
                ..world.clone()
            }));
        }
        for mut world in next {
            world.runners.retain(|runner| runner.step != Step::Over);
            if seen.insert(world.clone()) {
                open.push(world);
            }
        }
    }
    (seen.len(), None)
}

#[test]
fn the_design_survives_everything() {
    let (states, wrong) = explore(Design::Good);
    println!("{states} states");
    assert_eq!(wrong, None);
    assert!(states > 10_000, "the model shrank to {states} states");
}

#[test]
fn every_protection_is_needed() {
    use Design::*;
    for design in [
        NoOwnershipProof,
        NoFolderSync,
        NoFolderSyncAtClaim,
        NoDataSync,
        NoLogSync,
        ReadBeforeClaim,
        NoPool,
        NoFinish,
        NoNewLog,
    ] {
        let (states, wrong) = explore(design);
        println!(
            "{design:?}: {states} states, {}",
            wrong.as_deref().unwrap_or("nothing found").lines().next().unwrap()
        );
        assert!(wrong.is_some(), "{design:?} is not needed, or the model is blind");
    }
}
