//! What a power cut may leave behind: folders made from a record of a process's file system calls.
//!
//! The recorder (`powercut/recorder.c`, preloaded) logs every call that changes a file under one folder. [`Record::read`]
//! reads the log; [`Record::crash`] takes a point in it and a seed, and makes one legal state of the disk: everything that
//! was synced before the point is there, of everything else any subset, writes torn at 512 bytes.
//!
//! The rules, stricter than any file system that we know of:
//! - A write or a change of size is durable once an fsync or fdatasync of its file that began after it has returned.
//! - A change of a folder's entries (create, rename, link, unlink, mkdir) is atomic by itself and durable once a folder that
//!   it changes was synced. Syncing a file does not make its name durable.
//! - What is not durable is there or not, independently of everything else; a write may be there in part.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Writes are torn at multiples of this, as disks tear them.
const SECTOR: usize = 512;

type Node = usize;

#[derive(Clone, Debug)]
enum Change {
    Write {
        node: Node,
        at: usize,
        bytes: Vec<u8>,
    },
    Size {
        node: Node,
        length: usize,
    },
    /// Entries of folders: set to a node, or removed.
    Entries {
        slots: Vec<(Node, String, Option<Node>)>,
    },
}

#[derive(Debug)]
enum Event {
    Change(Change),
    SyncBegin { node: Node, serial: u64 },
    Sync { serial: u64 },
    Sent(Vec<u8>),
    Printed(Vec<u8>),
}

/// A read record.
pub struct Record {
    events: Vec<Event>,
    folders: BTreeSet<Node>,
    /// Files that were there before the record began.
    before: Vec<(String, Node)>,
    source: PathBuf,
}

/// Entries as they are while the log is read.
#[derive(Default)]
struct Live {
    nodes: usize,
    of_inode: HashMap<u64, Node>,
    entries: HashMap<(Node, String), Node>,
}

impl Live {
    fn node(&mut self) -> Node {
        self.nodes += 1;
        self.nodes
    }
}

/// One state of the disk after a power cut.
pub struct Crash {
    entries: BTreeMap<(Node, String), Node>,
    contents: HashMap<Node, Vec<u8>>,
    folders: BTreeSet<Node>,
    before: BTreeMap<Node, PathBuf>,
    /// All that the process had sent over TCP before the cut.
    pub sent: Vec<u8>,
    /// All that it had printed before the cut.
    pub printed: Vec<u8>,
}

/// The root's own node.
const ROOT: Node = 0;

impl Record {
    /// Reads the log of a process that ran with its files under `root`. `root` must have held only files before it began,
    /// as `source` (a copy) does.
    pub fn read(log: &Path, root: &Path, source: &Path) -> Self {
        let bytes = fs::read(log).expect("the recorder's log");
        let mut live = Live::default();
        let mut record =
            Self { events: Vec::new(), folders: [ROOT].into(), before: Vec::new(), source: source.to_owned() };
        for entry in fs::read_dir(source).expect("the folder as it was before").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().expect("type").is_file() {
                let node = live.node();
                live.entries.insert((ROOT, name.clone()), node);
                record.before.push((name, node));
            }
        }
        let root = root.canonicalize().expect("the recorded folder").to_string_lossy().into_owned();
        let mut at = 0;
        while at < bytes.len() {
            let end = at + bytes[at..].iter().position(|b| *b == b'\n').expect("an entry ends in a newline");
            let line = std::str::from_utf8(&bytes[at..end]).expect("an entry is text");
            at = end + 1;
            at += record.entry(&mut live, &root, line, &bytes[at..]);
        }
        record
    }

    /// How many points there are to cut at.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Takes one entry; returns how many bytes of data follow it.
    fn entry(&mut self, live: &mut Live, root: &str, line: &str, data: &[u8]) -> usize {
        let (what, rest) = line.split_once(' ').expect("an entry has a kind");
        let number = |text: &str| -> u64 { text.parse().unwrap_or_else(|_| panic!("a number in {line:?}")) };
        let inside = |path: &str| -> String {
            path.strip_prefix(root).expect("under the root").trim_start_matches('/').to_owned()
        };
        match what {
            "root" => {
                live.of_inode.insert(number(rest), ROOT);
            }
            "file" => {
                let (inode, path) = rest.split_once(' ').expect("file INODE PATH");
                if let Some(node) = find(live, &inside(path)) {
                    live.of_inode.insert(number(inode), node);
                }
            }
            "create" | "mkdir" => {
                let (inode, path) = rest.split_once(' ').expect("INODE PATH");
                let node = live.node();
                live.of_inode.insert(number(inode), node);
                if what == "mkdir" {
                    self.folders.insert(node);
                }
                if let Some((folder, name)) = place(live, &inside(path)) {
                    self.set(live, vec![(folder, name, Some(node))]);
                }
            }
            "write" => {
                let fields: Vec<_> = rest.split(' ').map(number).collect();
                let (offset, length) = (fields[1] as usize, fields[2] as usize);
                if let Some(node) = live.of_inode.get(&fields[0]) {
                    self.events.push(Event::Change(Change::Write {
                        node: *node,
                        at: offset,
                        bytes: data[..length].to_vec(),
                    }));
                }
                return length;
            }
            "sent" | "out" => {
                let length = number(rest) as usize;
                let bytes = data[..length].to_vec();
                self.events.push(if what == "sent" { Event::Sent(bytes) } else { Event::Printed(bytes) });
                return length;
            }
            "size" => {
                let (inode, length) = rest.split_once(' ').expect("INODE LENGTH");
                if let Some(node) = live.of_inode.get(&number(inode)) {
                    self.events.push(Event::Change(Change::Size { node: *node, length: number(length) as usize }));
                }
            }
            "sync-begin" => {
                let (inode, serial) = rest.split_once(' ').expect("INODE SERIAL");
                if let Some(node) = live.of_inode.get(&number(inode)) {
                    self.events.push(Event::SyncBegin { node: *node, serial: number(serial) });
                }
            }
            "sync" => {
                let (_, serial) = rest.split_once(' ').expect("INODE SERIAL");
                self.events.push(Event::Sync { serial: number(serial) });
            }
            "rename" | "link" => {
                let (from, to) = rest.split_once('\t').expect("FROM TO");
                let node = find(live, &inside(from)).unwrap_or_else(|| panic!("{line}: its origin is unknown"));
                let (Some(old), Some(new)) = (place(live, &inside(from)), place(live, &inside(to))) else { return 0 };
                let mut slots = vec![(new.0, new.1, Some(node))];
                if what == "rename" {
                    slots.push((old.0, old.1, None));
                }
                self.set(live, slots);
            }
            "unlink" | "rmdir" => {
                if let Some((folder, name)) = place(live, &inside(rest)) {
                    self.set(live, vec![(folder, name, None)]);
                }
            }
            _ => panic!("unknown entry {line:?}"),
        }
        0
    }

    fn set(&mut self, live: &mut Live, slots: Vec<(Node, String, Option<Node>)>) {
        for (folder, name, node) in &slots {
            match node {
                Some(node) => live.entries.insert((*folder, name.clone()), *node),
                None => live.entries.remove(&(*folder, name.clone())),
            };
        }
        self.events.push(Event::Change(Change::Entries { slots }));
    }

    /// One state that a power cut after the first `point` events may leave. The same seed gives the same state.
    pub fn crash(&self, point: usize, seed: u64) -> Crash {
        let mut chance = StdRng::seed_from_u64(seed);
        // All that is not synced: none of it, all of it, or a subset that prefers to keep, to lose, or neither.
        let keep = [0.0, 1.0, 0.5, 0.9, 0.1][chance.random_range(0..5)];
        let durable = self.durable(point);
        let mut crash = Crash {
            entries: self.before.iter().map(|(name, node)| ((ROOT, name.clone()), *node)).collect(),
            contents: HashMap::new(),
            folders: self.folders.clone(),
            before: self.before.iter().map(|(name, node)| (*node, self.source.join(name))).collect(),
            sent: Vec::new(),
            printed: Vec::new(),
        };
        for (index, event) in self.events[..point].iter().enumerate() {
            match event {
                Event::Change(change) => {
                    let safe = durable.contains(&index);
                    if safe || chance.random_bool(keep) {
                        crash.apply(change, (!safe).then_some(&mut chance));
                    }
                }
                Event::Sent(bytes) => crash.sent.extend(bytes),
                Event::Printed(bytes) => crash.printed.extend(bytes),
                Event::SyncBegin { .. } | Event::Sync { .. } => {}
            }
        }
        crash
    }

    /// The changes that are durable at a point.
    fn durable(&self, point: usize) -> BTreeSet<usize> {
        let mut open: HashMap<u64, (Node, usize)> = HashMap::new();
        let mut synced_before: HashMap<Node, usize> = HashMap::new();
        for (index, event) in self.events[..point].iter().enumerate() {
            match event {
                Event::SyncBegin { node, serial } => {
                    open.insert(*serial, (*node, index));
                }
                Event::Sync { serial } => {
                    if let Some((node, begun)) = open.remove(serial) {
                        let before = synced_before.entry(node).or_default();
                        *before = begun.max(*before);
                    }
                }
                _ => {}
            }
        }
        let covers = |node: &Node, index: usize| synced_before.get(node).is_some_and(|before| index < *before);
        let is_durable = |(index, event): (usize, &Event)| match event {
            Event::Change(Change::Write { node, .. } | Change::Size { node, .. }) => covers(node, index),
            Event::Change(Change::Entries { slots }) => slots.iter().any(|(folder, ..)| covers(folder, index)),
            _ => false,
        };
        self.events[..point]
            .iter()
            .enumerate()
            .filter(|(index, event)| is_durable((*index, event)))
            .map(|(index, _)| index)
            .collect()
    }
}

fn find(live: &Live, path: &str) -> Option<Node> {
    path.split('/')
        .filter(|part| !part.is_empty())
        .try_fold(ROOT, |folder, part| live.entries.get(&(folder, part.to_owned())).copied())
}

fn place(live: &Live, path: &str) -> Option<(Node, String)> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    Some((find(live, parent)?, name.to_owned()))
}

impl Crash {
    fn apply(&mut self, change: &Change, torn: Option<&mut StdRng>) {
        match change {
            Change::Write { node, at, bytes } => {
                let content = contents(&mut self.contents, &self.before, *node);
                if content.len() < at + bytes.len() {
                    content.resize(at + bytes.len(), 0);
                }
                let tear = torn.and_then(|chance| chance.random_bool(0.3).then_some(chance));
                match tear {
                    None => content[*at..at + bytes.len()].copy_from_slice(bytes),
                    Some(chance) => {
                        // Whole sectors of the file are there or not.
                        let mut from = 0;
                        while from < bytes.len() {
                            let to = (SECTOR - (at + from) % SECTOR + from).min(bytes.len());
                            if chance.random_bool(0.5) {
                                content[at + from..at + to].copy_from_slice(&bytes[from..to]);
                            }
                            from = to;
                        }
                    }
                }
            }
            Change::Size { node, length } => contents(&mut self.contents, &self.before, *node).resize(*length, 0),
            Change::Entries { slots } => {
                for (folder, name, node) in slots {
                    match node {
                        Some(node) => self.entries.insert((*folder, name.clone()), *node),
                        None => self.entries.remove(&(*folder, name.clone())),
                    };
                }
            }
        }
    }

    /// Makes the state as a folder.
    pub fn materialise(&self, target: &Path) {
        self.make(ROOT, target, 0);
    }

    fn make(&self, folder: Node, target: &Path, depth: usize) {
        assert!(depth < 32, "a folder holds itself");
        fs::create_dir_all(target).expect("making a folder");
        for ((_, name), node) in self.entries.range((folder, String::new())..(folder + 1, String::new())) {
            let path = target.join(name);
            if self.folders.contains(node) {
                self.make(*node, &path, depth + 1);
            } else if let Some(content) = self.contents.get(node) {
                fs::write(&path, content).expect("writing a file");
            } else if let Some(source) = self.before.get(node) {
                fs::copy(source, &path).expect("copying a file");
            } else {
                fs::write(&path, []).expect("writing a file");
            }
        }
    }
}

fn contents<'a>(
    contents: &'a mut HashMap<Node, Vec<u8>>,
    before: &BTreeMap<Node, PathBuf>,
    node: Node,
) -> &'a mut Vec<u8> {
    contents
        .entry(node)
        .or_insert_with(|| before.get(&node).map_or_else(Vec::new, |path| fs::read(path).unwrap_or_default()))
}
