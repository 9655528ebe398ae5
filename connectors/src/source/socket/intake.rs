//! Group commit: many connections offer records, one thread writes them to the spool, one sync is for all that wait.
//!
//! No delay is added: while a group is being synced, the next one gathers. What gathers is bounded by
//! [`MAX_GATHERED_BYTES`], what is spooled by `max_spool_bytes`; beyond either, or while the disk refuses writes,
//! [`Intake::has_room`] is false, nobody reads from a connection, and TCP holds the senders back.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tidemill_checkpoint::Timestamp;
use tokio::sync::watch;

use super::{
    entry::{self, Kind},
    framing::Framed,
    spool::Spool,
};

/// Connections are not read while more than this waits for the next group.
pub const MAX_GATHERED_BYTES: usize = 4 * 1024 * 1024;
/// A buffer that one group made larger than this is not kept.
const KEPT_BUFFER_BYTES: usize = 2 * MAX_GATHERED_BYTES;
/// How long after a failed write it is tried again: first, and at most.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// What changes while records come in. Its watchers wake whenever anything may have changed for them.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Every offer with a ticket up to this one is durable.
    pub durable: u64,
    /// Why the spool cannot be written now.
    pub fault: Option<Arc<str>>,
    /// Failed tries so far.
    pub faults: u64,
}

/// The way into a spool.
pub struct Intake {
    spool: Arc<Spool>,
    max_spool_bytes: u64,
    gathered: Mutex<Gathered>,
    wake: Condvar,
    progress: watch::Sender<Progress>,
    stop: AtomicBool,
    /// All bytes ever offered: the last ticket.
    offered: AtomicU64,
}

struct Gathered {
    /// A group's head and entries, ready but for numbers and checksums.
    group: Vec<u8>,
}

/// One connection's turn to offer records.
pub struct Offer<'a> {
    intake: &'a Intake,
    gathered: MutexGuard<'a, Gathered>,
    connection: u32,
    received: u32,
    before: usize,
    /// Records offered, those over the limit included, halves not.
    pub records: u64,
}

impl Intake {
    /// The intake of a spool; nothing is written before [`Intake::spawn_writer`].
    pub fn new(spool: Arc<Spool>, max_spool_bytes: u64) -> Self {
        Self {
            spool,
            max_spool_bytes,
            gathered: Mutex::new(Gathered { group: new_group(Vec::new()) }),
            wake: Condvar::new(),
            progress: watch::Sender::default(),
            stop: AtomicBool::new(false),
            offered: AtomicU64::new(0),
        }
    }

    /// The spool.
    pub fn spool(&self) -> &Arc<Spool> {
        &self.spool
    }

    /// Tells of every change.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Wakes all watchers: something that they look at has changed elsewhere.
    pub fn touch(&self) {
        self.progress.send_modify(|_| {});
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether connections may be read. An empty spool takes one record even if it is larger than the spool may be.
    pub fn has_room(&self) -> bool {
        let progress = self.progress.borrow();
        let waiting = self.offered.load(Ordering::Acquire) - progress.durable;
        progress.fault.is_none()
            && self.gathered().group.len() < MAX_GATHERED_BYTES
            && (self.spool.bytes() + waiting < self.max_spool_bytes || (waiting == 0 && self.spool.is_drained()))
    }

    /// Whether everything offered is durable.
    pub fn is_durable(&self) -> bool {
        self.offered.load(Ordering::Acquire) == self.progress.borrow().durable
    }

    /// Begins to offer records of a connection.
    pub fn offer(&self, connection: u32) -> Offer<'_> {
        let gathered = self.gathered();
        let before = gathered.group.len();
        Offer { intake: self, gathered, connection, received: Timestamp::now().0 as u32, before, records: 0 }
    }

    /// Starts the thread that writes; again after [`Intake::stop`].
    pub fn spawn_writer(self: &Arc<Self>, name: &str) -> std::io::Result<JoinHandle<()>> {
        self.stop.store(false, Ordering::Release);
        let intake = self.clone();
        std::thread::Builder::new().name(format!("spool {name}")).spawn(move || intake.write_groups())
    }

    /// The writer ends once it has tried to write what was offered before this call.
    pub fn stop(&self) {
        let gathered = self.gathered();
        self.stop.store(true, Ordering::Release);
        drop(gathered);
        self.wake.notify_all();
    }

    fn write_groups(&self) {
        let mut group = Vec::new();
        loop {
            let mut gathered = self.gathered();
            while gathered.group.len() == entry::GROUP && !self.stop.load(Ordering::Acquire) {
                gathered = self.wake.wait(gathered).unwrap_or_else(PoisonError::into_inner);
            }
            if gathered.group.len() == entry::GROUP {
                return;
            }
            let spare = if group.capacity() > KEPT_BUFFER_BYTES { Vec::new() } else { group };
            group = std::mem::replace(&mut gathered.group, new_group(spare));
            let ticket = self.offered.load(Ordering::Acquire);
            drop(gathered);
            if group.len() >= MAX_GATHERED_BYTES {
                self.touch();
            }
            if !self.write_group(&mut group) {
                return;
            }
            self.progress.send_modify(|progress| {
                progress.durable = ticket;
                progress.fault = None;
            });
        }
    }

    /// Writes a group, however often it takes. `false`: stopped before that.
    fn write_group(&self, group: &mut [u8]) -> bool {
        let mut wait = RETRY_FIRST;
        while let Err(error) = self.spool.append(group) {
            tracing::warn!(%error, "the spool cannot be written; senders are held back until it can");
            self.progress.send_modify(|progress| {
                progress.fault = Some(error.to_string().into());
                progress.faults += 1;
            });
            let gathered = self.gathered();
            let stopped = |_: &mut Gathered| !self.stop.load(Ordering::Acquire);
            drop(self.wake.wait_timeout_while(gathered, wait, stopped).unwrap_or_else(PoisonError::into_inner));
            if self.stop.load(Ordering::Acquire) {
                return false;
            }
            wait = (wait * 2).min(RETRY_MOST);
        }
        true
    }
}

/// A group without records: a head whose payload is filled in when its place is known.
fn new_group(mut buffer: Vec<u8>) -> Vec<u8> {
    buffer.clear();
    entry::push_group(&mut buffer);
    buffer
}

impl Offer<'_> {
    /// Adds what a framer found.
    pub fn add(&mut self, framed: Framed<'_>) {
        let (connection, received, group) = (self.connection, self.received, &mut self.gathered.group);
        match framed {
            Framed::Record(record) => entry::push(group, Kind::Record, connection, received, &[record]),
            Framed::Half(bytes) => entry::push(group, Kind::Half, connection, received, &[bytes]),
            Framed::TooLong { first, bytes } => {
                entry::push(group, Kind::TooLong, connection, received, &[&bytes.to_le_bytes(), first]);
            }
        }
        self.records += u64::from(!matches!(framed, Framed::Half(_)));
    }

    /// Hands the records over: the ticket under which they become durable, and how many they are.
    pub fn finish(self) -> (u64, u64) {
        let added = (self.gathered.group.len() - self.before) as u64;
        let ticket = self.intake.offered.fetch_add(added, Ordering::AcqRel) + added;
        let records = self.records;
        drop(self.gathered);
        if added > 0 {
            self.intake.wake.notify_one();
        }
        (ticket, records)
    }
}
