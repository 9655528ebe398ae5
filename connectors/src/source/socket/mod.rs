//! `type: socket`: records over TCP, spooled to disk before anything else happens to them.
//!
//! From the wire inwards: [`peer`] (connections) cuts bytes into records by [`framing`] and offers them to the
//! [`intake`] (group commit), which writes the [`spool`] (made of [`entry`]s). This file plans from the spool, reads it
//! ([`reading`]), and judges how it stands to the sinks' mark.
//!
//! Invariants:
//! - Only what is durable in the spool is planned or acknowledged.
//! - A record never spans two connections; what a connection leaves unfinished is a reject, in the spool like any record.
//! - Memory: unfinished records are bounded together ([`seats`]), a connection that is read holds one read, the intake
//!   8 MiB, a plan its budget. Everything else waits on disk (`max_spool_bytes`), then in the sender.
//!
//! A position is a byte offset in the spool; the shard is `SOURCE/UUID`, the spool's UUID. How a spool and a mark can lie
//! to each other, and what follows ([`SocketSource::adopt`]):
//!
//! | mark | what it means | what follows |
//! | --- | --- | --- |
//! | does not know this spool | it is new here, or the job started over | a new shard, from the spool's first position |
//! | within the spool, its content as the mark has it | the normal case | go on from the mark |
//! | within the spool, its content another | a copy of the spool was at work, here or elsewhere | as a lost spool |
//! | before the spool's first position | a sink was restored from a backup: released records are asked for | `Lost` |
//! | beyond its end | the spool is an older copy, or its tail was damaged: positions would be given twice | as a lost spool: continue with a new spool, the old one put aside; or stop |
//! | knows other spools | they are elsewhere or gone, drained or not: nobody can say | as a lost spool: continue and say so, once; or stop |
//!
//! A lost spool stays in the mark as a retired shard; when its folder returns, it goes on where the mark stands.
//! `tidemill checkpoint resolve --shard SHARD --accept-loss` takes a shard out of the mark.

pub mod entry;
pub mod framing;
pub mod intake;
mod judge;
pub mod peer;
pub mod reading;
pub mod seats;
pub mod spool;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use async_trait::async_trait;
use tidemill_checkpoint::{Lane, Position, Positions, ShardId, Span, Spans};
use tidemill_config::{Codec, Framing, OnLost, Socket, SocketAddress};
use tokio::{net::TcpListener, task::AbortHandle};

use self::{
    entry::Chain,
    framing::Framer,
    intake::{Intake, Progress},
    judge::{Verdict, judge},
    peer::Peers,
    reading::Stretch,
    seats::Seats,
    spool::{Error, Spool},
};
use super::{
    Adopted, Budget, Found, History, Lag, Origin, Proposal, RawBatch, Source, SourceError, SourceEvent, Unreachable,
};

/// The most that `max_record_bytes` can be.
pub const MAX_RECORD_BYTES: usize = 1024 * 1024 * 1024;
/// A spool has at least four segments, of at most this many bytes each.
const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// A source's connections take at most one in so many of the process's file descriptors.
const DESCRIPTORS_SHARE: u64 = 4;
/// Reads of more bytes than this go to a thread of their own.
const READ_INLINE_BYTES: u64 = 64 * 1024;

/// A socket source. Dropping it closes its connections and writes out what they brought.
pub struct SocketSource {
    name: String,
    formerly: Option<String>,
    config: Socket,
    state: Mutex<State>,
    /// Up to here the lane is planned.
    planned: AtomicU64,
    /// The spool's chain where the next plan begins, if it begins where the one before ended.
    chain: Mutex<Option<(u64, Chain)>>,
    /// Faults of the spool that `event` has told.
    told_faults: AtomicU64,
    finishing: AtomicBool,
    blank: Blank,
}

/// Which records are blank lines: they are in the spool and acknowledged like others, and are no records for the codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blank {
    /// None: each is a value of the format.
    Never,
    /// Those of white space alone.
    Space,
    /// Those without a byte.
    Empty,
}

impl Blank {
    fn of(codec: &Codec, framing: &Framing) -> Self {
        match codec {
            // What has a length before it is no line.
            _ if matches!(framing, Framing::LengthPrefix(_)) => Self::Never,
            Codec::Json | Codec::JsonWith(_) => Self::Space,
            // With one column an empty line is an empty field.
            Codec::Csv(csv) if csv.expected.len() != 1 => Self::Empty,
            _ => Self::Never,
        }
    }

    fn leave_out(self, batch: &mut RawBatch) {
        for slice in &mut batch.slices {
            let bytes = &slice.bytes;
            let is_record = |(start, end): &(u32, u32)| {
                let record = bytes.get(*start as usize..*end as usize).unwrap_or_default();
                match self {
                    Self::Never => true,
                    Self::Space => {
                        !record.first().is_none_or(u8::is_ascii_whitespace) || !record.trim_ascii().is_empty()
                    }
                    Self::Empty => !record.is_empty(),
                }
            };
            slice.records.retain(is_record);
        }
        batch.slices.retain(|slice| !slice.records.is_empty());
    }
}

struct State {
    intake: Arc<Intake>,
    shard: ShardId,
    running: Option<Running>,
    /// Retired spools that the operator was told of.
    told: BTreeSet<String>,
}

struct Running {
    peers: Arc<Peers>,
    network: AbortHandle,
    writer: Option<JoinHandle<()>>,
    local: Option<SocketAddr>,
}

/// Read-ahead: the records of a proposal, taken by its first `read`.
struct Ahead {
    spans: Spans,
    batch: Mutex<Option<RawBatch>>,
}

impl SocketSource {
    /// Opens (or creates) the spool in `spool_dir`; accepts and connects nothing before [`Source::start`].
    ///
    /// Errors: transient where the disk or another process is in the way, `Lost` where durable records are damaged,
    /// `Fatal` for a framing or a size that cannot work.
    pub fn open(config: &tidemill_config::Source, socket: &Socket, spool_dir: &Path) -> Result<Self, SourceError> {
        let name = config.name.value.clone();
        if Framer::new(&socket.framing, socket.max_record_bytes).is_none() {
            let what = "a delimiter must not be empty, a length prefix has 1, 2, 4 or 8 bytes";
            return Err(SourceError::Fatal(format!("source {name}: {what}")));
        }
        if socket.max_record_bytes > MAX_RECORD_BYTES {
            return Err(SourceError::Fatal(format!("source {name}: `max_record_bytes` is at most 1GiB")));
        }
        let segment_bytes = (socket.max_spool_bytes / 4).clamp(4096, SEGMENT_BYTES);
        let spool = Spool::open(spool_dir, segment_bytes).map_err(|error| {
            // A spool that is damaged is named as the mark knows it: the way out needs its id.
            let id = spool::read_id(spool_dir).ok().flatten().map_or_else(String::new, |id| id.to_string());
            to_source(error, &ShardId::new(&name, &id))
        })?;
        let told = fs::read_to_string(spool_dir.join("retired")).unwrap_or_default();
        let planned = AtomicU64::new(spool.end());
        let shard = ShardId::new(&name, &spool.id.to_string());
        let intake = Arc::new(Intake::new(Arc::new(spool), socket.max_spool_bytes));
        Ok(Self {
            name,
            formerly: config.formerly.clone(),
            config: socket.clone(),
            state: Mutex::new(State { intake, shard, running: None, told: told.lines().map(str::to_owned).collect() }),
            planned,
            chain: Mutex::default(),
            told_faults: AtomicU64::new(0),
            finishing: AtomicBool::new(false),
            blank: Blank::of(&config.codec, &socket.framing),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn intake(&self) -> Arc<Intake> {
        self.state().intake.clone()
    }

    /// The spool and its shard.
    fn spool(&self) -> (Arc<Spool>, ShardId) {
        let state = self.state();
        (state.intake.spool().clone(), state.shard.clone())
    }

    fn stops_when_lost(&self) -> bool {
        self.config.on_lost_spool.map_or(self.config.ack, |choice| choice == OnLost::Stop)
    }

    /// Connections at once: what the job allows, and no more than a part of the process's file descriptors, so that sinks,
    /// spool and HTTP have theirs whoever connects.
    fn most_connections(&self) -> usize {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let share =
            descriptors.map_or(usize::MAX, |limit| usize::try_from(limit / DESCRIPTORS_SHARE).unwrap_or(usize::MAX));
        self.config.max_connections.min(share)
    }

    fn is_mine(&self, shard: &ShardId) -> bool {
        shard.source() == self.name || self.formerly.as_deref() == Some(shard.source())
    }

    /// Whether nothing more will come and everything that came is planned.
    fn is_at_end(&self, intake: &Intake) -> bool {
        let gone = self.state().running.as_ref().is_some_and(|running| running.peers.are_gone());
        gone && intake.is_durable() && !intake.spool().has_records_from(self.planned.load(Ordering::Acquire))
    }

    /// What `event` has to tell now.
    fn due(&self, now: &Progress) -> Result<Option<SourceEvent>, SourceError> {
        let intake = self.intake();
        if intake.spool().has_records_from(self.planned.load(Ordering::Acquire)) {
            return Ok(Some(SourceEvent::Data));
        }
        let told = self.told_faults.swap(now.faults, Ordering::AcqRel);
        if let Some(cause) = now.fault.as_ref().filter(|_| now.faults > told) {
            let what = format!("source {}: senders are held back", self.name);
            return Err(SourceError::Transient { what, cause: cause.to_string() });
        }
        if self.finishing.load(Ordering::Acquire) && self.is_at_end(&intake) {
            if let Some(running) = &self.state().running {
                running.network.abort();
            }
            return Ok(Some(SourceEvent::End));
        }
        Ok(None)
    }

    /// The spool is not the one that the mark speaks of: going on with it would give positions for the second time.
    fn renew(&self, what: String, warnings: &mut Vec<String>) -> Result<(), SourceError> {
        let (old, shard) = self.spool();
        if self.stops_when_lost() || self.state().running.is_some() {
            return Err(lost(&shard, what));
        }
        let spool = old.set_aside().map_err(|error| to_source(error, &shard))?;
        warnings
            .push(format!("shard {shard}: {what}. It is put aside in its folder; a new spool begins ({})", spool.id));
        let mut state = self.state();
        state.shard = ShardId::new(&self.name, &spool.id.to_string());
        state.intake = Arc::new(Intake::new(Arc::new(spool), self.config.max_spool_bytes));
        drop(state);
        self.remember_told(shard.part());
        Ok(())
    }

    /// Says that a spool is gone: once, also across restarts.
    fn remember_told(&self, id: &str) {
        let mut state = self.state();
        state.told.insert(id.to_owned());
        let text: String = state.told.iter().map(|id| format!("{id}\n")).collect();
        if let Err(error) = spool::write_durably(&state.intake.spool().dir, "retired", &text) {
            tracing::warn!(source = self.name, %error, "cannot note that a spool is gone; it will be said again");
        }
    }

    async fn bind(&self, peers: &Arc<Peers>) -> Result<(AbortHandle, Option<SocketAddr>), SourceError> {
        Ok(match &self.config.address {
            SocketAddress::Connect(address) => {
                (tokio::spawn(peer::connect(peers.clone(), address.clone())).abort_handle(), None)
            }
            SocketAddress::Listen(address) => {
                let what = || format!("source {}: listen on {address}", self.name);
                let listener = TcpListener::bind(address).await.map_err(|error| SourceError::io(what(), &error))?;
                let local = listener.local_addr().map_err(|error| SourceError::io(what(), &error))?;
                tracing::info!(source = self.name, address = %local, "listening");
                (tokio::spawn(peer::accept(peers.clone(), listener)).abort_handle(), Some(local))
            }
        })
    }

    /// Runs a read of about `bytes` bytes: small ones at once, others where they block nobody.
    async fn reading<F>(&self, bytes: u64, read: F) -> Result<Stretch, SourceError>
    where
        F: FnOnce(&Spool, &ShardId) -> Result<Stretch, Error> + Send + 'static,
    {
        let (spool, shard) = self.spool();
        let result = if bytes <= READ_INLINE_BYTES {
            read(&spool, &shard)
        } else {
            let (spool, shard) = (spool.clone(), shard.clone());
            tokio::task::spawn_blocking(move || read(&spool, &shard))
                .await
                .map_err(|error| SourceError::Fatal(format!("source {}: reading the spool: {error}", self.name)))?
        };
        let mut stretch = result.map_err(|error| to_source(error, &shard))?;
        if self.blank != Blank::Never {
            self.blank.leave_out(&mut stretch.batch);
        }
        Ok(stretch)
    }
}

/// What a spool has at a position; see [`super::find`].
pub(super) fn find(dir: &Path, shard: &ShardId, position: &Position) -> Result<Found, SourceError> {
    spool::find(dir, shard.part(), number(shard, position)?).map_err(|error| to_source(error, shard))
}

fn lost(shard: &ShardId, what: String) -> SourceError {
    let way_out =
        format!("Bring its spool folder back, or `tidemill checkpoint resolve --shard {shard} --accept-loss`");
    SourceError::Lost { shard: shard.to_string(), what, way_out }
}

fn to_source(error: Error, shard: &ShardId) -> SourceError {
    match error {
        Error::Io { what, cause } => SourceError::io(format!("source {}: {what}", shard.source()), &cause),
        Error::Damaged(what) => lost(shard, what),
    }
}

fn number(shard: &ShardId, position: &Position) -> Result<u64, SourceError> {
    position.as_number().ok_or_else(|| lost(shard, format!("its position {position} is none of a spool")))
}

#[async_trait]
impl Source for SocketSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn rereadable(&self) -> bool {
        false
    }

    async fn start(&self) -> Result<(), SourceError> {
        if self.state().running.is_some() {
            return Ok(());
        }
        let intake = self.intake();
        let peers = Arc::new(Peers {
            name: self.name.clone(),
            intake: intake.clone(),
            framing: self.config.framing.clone(),
            max_record_bytes: self.config.max_record_bytes,
            ack: self.config.ack,
            finishing: AtomicBool::new(self.finishing.load(Ordering::Acquire)),
            open: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            next: AtomicU32::new(0),
            unreachable: Mutex::default(),
            seats: Arc::new(Seats::new(self.most_connections(), self.config.max_record_bytes)),
            idle_timeout: self.config.idle_timeout,
        });
        let (network, local) = self.bind(&peers).await?;
        match intake.spawn_writer(&self.name) {
            Ok(writer) => {
                self.state().running = Some(Running { peers, network, writer: Some(writer), local });
                if self.finishing.load(Ordering::Acquire) {
                    self.finish();
                }
                Ok(())
            }
            Err(error) => {
                network.abort();
                Err(SourceError::io(format!("source {}: start the spool's thread", self.name), &error))
            }
        }
    }

    async fn stop(&self) {
        let intake = self.intake();
        let Some(running) = self.state().running.take() else { return };
        // It waits for the disk.
        let _ = tokio::task::spawn_blocking(move || running.end(&intake)).await;
    }

    async fn event(&self) -> Result<SourceEvent, SourceError> {
        let mut progress = self.intake().watch();
        loop {
            let now = progress.borrow_and_update().clone();
            if let Some(event) = self.due(&now)? {
                return Ok(event);
            }
            if progress.changed().await.is_err() {
                // `adopt` has replaced the spool, before anything could come.
                progress = self.intake().watch();
            }
        }
    }

    async fn origin(&self, _lane: &Lane) -> Result<Origin, SourceError> {
        let (spool, shard) = self.spool();
        let positions = Positions::from([(shard, Position::number(spool.first()))]);
        Ok(Origin { positions, ..Origin::default() })
    }

    async fn adopt(&self, _lane: &Lane, at: &Positions, history: &History) -> Result<Adopted, SourceError> {
        let mut adopted = Adopted::default();
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let id = self.spool().0.id.to_string();
        // A source that was renamed goes on with the shard's old name.
        if let Some((shard, mark)) = at.iter().find(|(shard, _)| self.is_mine(shard) && shard.part() == id) {
            self.state().shard = shard.clone();
            let (spool, mark) = (self.spool().0, number(shard, mark)?);
            let (dir, first, end) = (spool.dir.display(), spool.first(), spool.end());
            let chain = spool.chain_at(mark).map_err(|error| to_source(error, shard))?;
            match judge(
                mark,
                history.checks.get(shard).map(String::as_str),
                first,
                end,
                chain.map(|c| c.to_string()).as_deref(),
            ) {
                Verdict::Continues => {}
                Verdict::Released => {
                    let what = format!(
                        "the sinks have its records up to position {mark} only, the spool in {dir} begins at {first}"
                    );
                    let why = "what lies between was released, then a sink was set back";
                    return Err(lost(shard, format!("{what}: {why}")));
                }
                Verdict::Beyond => {
                    let what = format!(
                        "the sinks have its records up to position {mark}, but the spool in {dir} ends at {end}: it is \
                         an older copy, or was damaged, and records that came after the mark may be lost with it"
                    );
                    self.renew(what, &mut adopted.warnings)?;
                }
                Verdict::Other => {
                    let what = format!(
                        "the sinks have records of it up to position {mark} that are not those of the spool in {dir}: a copy \
                         of the data dir was at work, this one or another, and records that only this one has may not be in \
                         the sinks. To have them read, set the shard to where the two parted (`tidemill checkpoint show` has \
                         the position that this data dir closed last): `tidemill checkpoint rewind --to {shard}=POSITION`"
                    );
                    self.renew(what, &mut adopted.warnings)?;
                }
            }
        }
        // What comes from now on is told from what any copy of this spool takes.
        self.spool().0.begin_epoch();
        let (spool, mine) = self.spool();
        for shard in at.keys().filter(|shard| self.is_mine(shard) && **shard != mine) {
            if self.state().told.contains(shard.part()) {
                continue;
            }
            let what = "its spool is not here (lost, or in another daemon's data dir), and records in it may not be in the sinks";
            if self.stops_when_lost() {
                return Err(lost(shard, what.to_owned()));
            }
            adopted.warnings.push(format!("shard {shard}: {what}; going on without them"));
            self.remember_told(shard.part());
        }
        let from = match at.get(&mine) {
            Some(mark) => number(&mine, mark)?,
            None => {
                adopted.new_shards.insert(mine, Position::number(spool.first()));
                spool.first()
            }
        };
        self.planned.store(from, Ordering::Release);
        self.intake().touch();
        Ok(adopted)
    }

    async fn plan(&self, _lane: &Lane, from: &Positions, budget: Budget) -> Result<Option<Proposal>, SourceError> {
        let (spool, shard) = self.spool();
        let at = from.get(&shard).map_or(Ok(spool.first()), |position| number(&shard, position))?;
        let waiting = spool.end().saturating_sub(at);
        let known = self.chain.lock().unwrap_or_else(PoisonError::into_inner).filter(|(position, _)| *position == at);
        let stretch = self
            .reading(waiting, move |spool, shard| {
                let chain = known.map_or_else(|| spool.chain_at(at), |(_, chain)| Ok(Some(chain)))?;
                spool.read_ahead(shard, at, budget, chain)
            })
            .await?;
        self.planned.store(stretch.to, Ordering::Release);
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = stretch.chain.map(|chain| (stretch.to, chain));
        if stretch.records == 0 {
            return Ok(None);
        }
        let span = Span { from: Position::number(at), to: Position::number(stretch.to) };
        let checks = stretch.chain.map(|chain| (shard.clone(), chain.to_string())).into_iter().collect();
        let spans = Spans::from([(shard, span)]);
        let ahead = Ahead { spans: spans.clone(), batch: Mutex::new(Some(stretch.batch)) };
        Ok(Some(Proposal { spans, checks, ahead: Some(Arc::new(ahead)), ..Proposal::default() }))
    }

    async fn read(&self, _lane: &Lane, proposal: &Proposal) -> Result<RawBatch, SourceError> {
        let ahead = proposal.ahead.as_ref().and_then(|ahead| ahead.downcast_ref::<Ahead>());
        if let Some(ahead) = ahead.filter(|ahead| ahead.spans == proposal.spans)
            && let Some(batch) = ahead.batch.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            return Ok(batch);
        }
        let mine = self.spool().1;
        let mut batch = RawBatch::default();
        for (shard, span) in proposal.spans.iter().filter(|(shard, _)| self.is_mine(shard)) {
            if *shard != mine {
                return Err(lost(
                    shard,
                    format!("a plan reads it from {} to {}, and its spool is not here", span.from, span.to),
                ));
            }
            let (from, to) = (number(shard, &span.from)?, number(shard, &span.to)?);
            let stretch =
                self.reading(to.saturating_sub(from), move |spool, shard| spool.read_span(shard, from, to)).await?;
            batch.slices.extend(stretch.batch.slices);
            batch.rejects.extend(stretch.batch.rejects);
        }
        Ok(batch)
    }

    async fn release(&self, _lane: &Lane, reached: &Positions) -> Result<(), SourceError> {
        let (spool, shard) = self.spool();
        if let Some(position) = reached.get(&shard) {
            spool.release(number(&shard, position)?);
            self.intake().touch();
        }
        Ok(())
    }

    fn listening(&self) -> Option<SocketAddr> {
        self.state().running.as_ref().and_then(|running| running.local)
    }

    fn lag(&self, at: &Positions) -> Lag {
        let (spool, shard) = self.spool();
        let position = at.get(&shard).and_then(Position::as_number).unwrap_or(0).max(spool.first());
        let (records, age) = spool.waiting(position).unwrap_or((0, 0));
        Lag {
            records: Some(records),
            bytes: Some(if records == 0 { 0 } else { spool.end().saturating_sub(position) }),
            oldest: Some(Duration::from_millis(if records == 0 { 0 } else { age })),
            spool_bytes: Some(spool.bytes()),
        }
    }

    fn lag_counts_from_positions(&self) -> bool {
        true
    }

    fn fault(&self) -> Option<String> {
        self.intake().watch().borrow().fault.as_ref().map(ToString::to_string)
    }

    fn unreachable(&self) -> Option<Unreachable> {
        let state = self.state();
        let peers = state.running.as_ref().map(|running| running.peers.clone())?;
        drop(state);
        peers.unreachable()
    }

    fn is_complete(&self) -> bool {
        self.state().running.as_ref().is_some_and(|running| running.peers.are_gone())
    }

    fn finish(&self) {
        self.finishing.store(true, Ordering::Release);
        let state = self.state();
        if let Some(running) = &state.running {
            running.peers.finishing.store(true, Ordering::Release);
        }
        state.intake.touch();
    }
}

impl Running {
    /// Closes the connections, then waits until what they brought is written.
    fn end(mut self, intake: &Intake) {
        self.network.abort();
        intake.stop();
        if let Some(Err(_)) = self.writer.take().map(JoinHandle::join) {
            tracing::error!(source = self.peers.name, "the spool's thread has panicked");
        }
    }
}

impl Drop for SocketSource {
    fn drop(&mut self) {
        let mut state = self.state();
        let intake = state.intake.clone();
        let running = state.running.take();
        drop(state);
        if let Some(running) = running {
            running.end(&intake);
        }
    }
}
