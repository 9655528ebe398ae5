//! The network side: listening, connecting again and again, and one task for each connection.
//!
//! A connection is read only while the intake has room; then one read is framed and offered in one go, so that an idle
//! connection costs its framer's half record and no buffer. Acknowledgements never block reading: the count is running,
//! so where the peer is slow to read them only the last one matters.
//!
//! Failpoints: `socket-read` (bytes were read, nothing is offered yet), `socket-ack` (before a count is sent).

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::FutureExt;
use tidemill_checkpoint::failpoint;
use tidemill_config::Framing;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    framing::Framer,
    intake::{Intake, Progress},
    seats::{Refused, STALLED, Seats, Taken},
};
use crate::source::Unreachable;

/// One read takes at most this much.
const READ_BYTES: usize = 64 * 1024;
/// How long to wait for a connection to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an `accept` that failed (no file descriptors left), and between looks for a free seat.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// A connection that waits for its turn, or whose sender may be too slow, looks again after this time.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A warning that concerns every connection is repeated after this time at the earliest.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// A silent peer is probed after this time, so that one that vanished is noticed.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
/// How long a peer that has closed its side may take to read its last acknowledgement.
const LAST_ACK_TIMEOUT: Duration = Duration::from_secs(5);

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// What all connections of a source share.
pub struct Peers {
    /// The source's name, for logs.
    pub name: String,
    /// Where records go.
    pub intake: Arc<Intake>,
    /// Where a record ends.
    pub framing: Framing,
    /// Longer ones are rejects.
    pub max_record_bytes: usize,
    /// Whether counts are sent.
    pub ack: bool,
    /// `--once`: no connection is made again after the first.
    pub finishing: AtomicBool,
    /// Connections that are open.
    pub open: AtomicUsize,
    /// Connections that came to an end of which `--once` may say: that was all.
    pub ended: AtomicUsize,
    /// The number of the next connection.
    pub next: AtomicU32,
    /// Since when nobody answers where the source connects to.
    pub unreachable: Mutex<Option<Unreachable>>,
    /// Who may be connected.
    pub seats: Arc<Seats>,
    /// `idle_timeout`: a connection that was silent for this long is closed.
    pub idle_timeout: Option<Duration>,
}

impl Peers {
    /// Since when nobody answers, and why.
    pub fn unreachable(&self) -> Option<Unreachable> {
        self.unreachable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An attempt to connect: `None` where it succeeded, else why not.
    fn tried(&self, failure: Option<String>) {
        let mut known = self.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
        let since = known.as_ref().map_or_else(Instant::now, |before| before.since);
        *known = failure.map(|why| Unreachable { since, why });
    }

    /// Whether the peers that `--once` waits for have come and gone.
    pub fn are_gone(&self) -> bool {
        self.ended.load(Ordering::Acquire) > 0 && self.open.load(Ordering::Acquire) == 0
    }
}

/// Counts a connection as open as long as it lives.
struct Open(Arc<Peers>);

impl Open {
    fn new(peers: &Arc<Peers>) -> Self {
        peers.open.fetch_add(1, Ordering::AcqRel);
        Self(peers.clone())
    }
}
impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
        self.0.intake.touch();
    }
}

/// How a connection ended.
struct End {
    records: u64,
    /// The peer closed it; else it broke.
    closed: bool,
}

/// Accepts connections for ever.
pub async fn accept(peers: Arc<Peers>, listener: TcpListener) {
    let mut tasks = JoinSet::new();
    let mut warned = Warned::default();
    loop {
        while tasks.try_join_next().is_some() {}
        while peers.seats.are_full() {
            if warned.may_warn() {
                tracing::warn!(
                    source = peers.name,
                    "all connections that `max_connections` allows are open; others wait until one ends or is silent"
                );
            }
            if peers.intake.has_room() {
                peers.seats.make_room();
            }
            sleep(ACCEPT_PAUSE).await;
        }
        match listener.accept().await {
            Ok((stream, peer)) => {
                let seat = match Seats::take(&peers.seats, peer.ip()) {
                    Ok(seat) => seat,
                    Err(refused) => {
                        if refused == Refused::OneAddress && warned.may_warn() {
                            let most = peers.seats.most_of_one();
                            tracing::warn!(
                                source = peers.name, %peer,
                                "closed a new connection: this address has {most} already, half of `max_connections`"
                            );
                        }
                        continue;
                    }
                };
                let (peers, open) = (peers.clone(), Open::new(&peers));
                tasks.spawn(async move {
                    let end = run(&peers, stream, peer, &seat).await;
                    // Whoever only knocked (a health check, a port scan) was not the peer that `--once` waits for. One that
                    // broke off comes back or not, as this side cannot know.
                    peers.ended.fetch_add(usize::from(end.records > 0), Ordering::AcqRel);
                    drop((open, seat));
                });
            }
            Err(error) => {
                if warned.may_warn() {
                    tracing::warn!(source = peers.name, %error, "cannot accept a connection; trying again");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A warning of the accepting side, at most once in [`WARN_EVERY`].
#[derive(Default)]
struct Warned {
    last: Option<Instant>,
}

impl Warned {
    fn may_warn(&mut self) -> bool {
        let is_due = self.last.is_none_or(|last| last.elapsed() >= WARN_EVERY);
        if is_due {
            self.last = Some(Instant::now());
        }
        is_due
    }
}

/// Connects for ever: again after each end, slower while nothing comes. With `finishing`, until the first end.
pub async fn connect(peers: Arc<Peers>, address: String) {
    let mut backoff = Backoff::default();
    let mut broken = false;
    loop {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(&address)).await {
            Ok(Ok(stream)) => {
                peers.tried(None);
                let open = Open::new(&peers);
                let seat =
                    stream.peer_addr().ok().and_then(|peer| Some((peer, Seats::take(&peers.seats, peer.ip()).ok()?)));
                let end = match seat {
                    Some((peer, seat)) => run(&peers, stream, peer, &seat).await,
                    None => End { records: 0, closed: false },
                };
                if end.records > 0 {
                    backoff = Backoff::default();
                }
                // What was cut off may go on in the next connection.
                broken = !end.closed;
                peers.ended.fetch_add(usize::from(end.closed), Ordering::AcqRel);
                drop(open);
                if peers.finishing.load(Ordering::Acquire) && peers.ended.load(Ordering::Acquire) > 0 {
                    return;
                }
            }
            Ok(Err(error)) => {
                tracing::warn!(source = peers.name, address, %error, "cannot connect; trying again");
                peers.tried(Some(format!("cannot connect to {address}: {error}")));
                let refused = error.kind() == io::ErrorKind::ConnectionRefused;
                if broken && refused && peers.finishing.load(Ordering::Acquire) {
                    // The connection broke, and nobody serves there any more: that was its end.
                    peers.ended.fetch_add(1, Ordering::AcqRel);
                    peers.intake.touch();
                    return;
                }
            }
            Err(_) => {
                tracing::warn!(source = peers.name, address, "no answer within {CONNECT_TIMEOUT:?}; trying again");
                peers.tried(Some(format!("cannot connect to {address}: no answer within {CONNECT_TIMEOUT:?}")));
            }
        }
        sleep(backoff.next(rand::random())).await;
    }
}

/// Waits between tries: doubling from `FIRST` to `MOST`, each cut by a random part of up to a half, so that many daemons
/// do not knock at once.
#[derive(Debug)]
pub struct Backoff {
    wait: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_secs(30);

    /// The next wait; `random` lies in `[0, 1)`.
    pub fn next(&mut self, random: f64) -> Duration {
        let wait = self.wait;
        self.wait = (wait * 2).min(Self::MOST);
        wait.mul_f64(1.0 - random / 2.0)
    }
}
impl Default for Backoff {
    fn default() -> Self {
        Self { wait: Self::FIRST }
    }
}

/// One connection, from its beginning to its end.
async fn run(peers: &Peers, stream: TcpStream, address: SocketAddr, seat: &Taken) -> End {
    let connection = peers.next.fetch_add(1, Ordering::Relaxed) & 0xff_ffff;
    let name = &*peers.name;
    tracing::info!(source = name, %address, connection, "connected");
    if let Err(error) = set_options(&stream) {
        tracing::debug!(source = name, %address, %error, "cannot set options of the connection");
    }
    let Some(framer) = Framer::new(&peers.framing, peers.max_record_bytes) else {
        return End { records: 0, closed: false };
    };
    let mut connection = Connection {
        peers,
        seat,
        number: connection,
        framer,
        stream,
        acks: Acks { wanted: peers.ack, ..Acks::default() },
    };
    let result = connection.serve().await;
    let records = connection.acks.offered;
    match &result {
        Ok(()) => tracing::info!(source = name, %address, records, "the peer closed the connection"),
        Err(error) => tracing::warn!(source = name, %address, records, %error, "the connection broke"),
    }
    End { records, closed: result.is_ok() }
}

fn set_options(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_AFTER)?;
    Ok(())
}

struct Connection<'a> {
    peers: &'a Peers,
    seat: &'a Taken,
    number: u32,
    framer: Framer,
    stream: TcpStream,
    acks: Acks,
}

impl Connection<'_> {
    async fn serve(&mut self) -> io::Result<()> {
        let mut progress = self.peers.intake.watch();
        let end = loop {
            self.acknowledge(&mut progress)?;
            // What changes after `acknowledge` looked, changes after this too, and wakes.
            let has_room = self.peers.intake.has_room();
            let room = self.seat.room().min(READ_BYTES);
            let may_read = room > 0;
            let look_again = self.look_again(may_read).filter(|_| has_room);
            if !has_room {
                // Nobody listens: the silence is this side's.
                self.seat.hear();
            }
            tokio::select! {
                changed = progress.changed(), if !has_room || self.acks.is_waiting() => {
                    if changed.is_err() { return Ok(()) }
                    if !has_room { self.seat.hear() }
                }
                () = self.seat.closing() => {
                    break Err(io::Error::other("it was silent, and its place is needed"));
                }
                () = sleep(look_again.unwrap_or_default()), if look_again.is_some() => {
                    if let Some(silent) = self.judge_silence(may_read).await { break Err(silent) }
                }
                writable = self.stream.writable(), if self.acks.is_blocked() => writable?,
                readable = self.stream.readable(), if has_room && may_read => {
                    if let Some(end) = readable.and_then(|()| self.read(room)).transpose() { break end }
                    tokio::task::consume_budget().await;
                }
            }
        };
        self.offer_half();
        end?;
        self.acknowledge_all(&mut progress).await
    }

    /// When to look whether the sender is silent for too long, or whether it is this connection's turn to be read.
    fn look_again(&self, may_read: bool) -> Option<Duration> {
        let idle = self.peers.idle_timeout.map(|limit| limit.saturating_sub(self.seat.silence()).max(LOOK_AGAIN));
        if !may_read || (self.seat.holds() && self.seat.seats().hold_too_much()) {
            Some(LOOK_AGAIN)
        } else if self.seat.holds() {
            Some(idle.unwrap_or(STALLED).min(STALLED))
        } else {
            idle
        }
    }

    /// Why the connection is closed for its sender's silence, if it is.
    async fn judge_silence(&self, may_read: bool) -> Option<io::Error> {
        // Bytes that wait for their turn are no silence.
        if !may_read && self.stream.peek(&mut [0]).now_or_never().is_some() {
            self.seat.hear();
        }
        let silence = self.seat.silence();
        if self.peers.idle_timeout.is_some_and(|limit| silence >= limit) {
            Some(io::Error::other(format!("nothing came for {} s (`idle_timeout`)", silence.as_secs())))
        } else if self.seat.seats().hold_too_much()
            && (self.seat.takes_too_long() || self.seat.holds() && silence >= STALLED)
        {
            Some(io::Error::other("a record was not finished, and unfinished records take too much memory"))
        } else {
            None
        }
    }

    /// What the connection left unfinished goes to the spool too.
    fn offer_half(&mut self) {
        let mut offer = self.peers.intake.offer(self.number);
        self.framer.finish(&mut |framed| offer.add(framed));
        self.acks.offered(offer.finish());
    }

    /// Reads once, at most `room` bytes. `Some`: the peer has closed its side.
    fn read(&mut self, room: usize) -> io::Result<Option<()>> {
        BUFFER.with_borrow_mut(|buffer| {
            let bytes = match self.stream.try_read(&mut buffer[..room]) {
                Ok(0) => return Ok(Some(())),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            failpoint::pass("socket-read")?;
            let mut offer = self.peers.intake.offer(self.number);
            self.framer.push(&buffer[..bytes], &mut |framed| offer.add(framed));
            let (ticket, records) = offer.finish();
            self.acks.offered((ticket, records));
            self.seat.hear();
            self.seat.hold(self.framer.held_bytes(), records > 0);
            Ok(None)
        })
    }

    /// Sends what can be sent of the newest count.
    fn acknowledge(&mut self, progress: &mut watch::Receiver<Progress>) -> io::Result<()> {
        let durable = progress.borrow_and_update().durable;
        self.acks.durable(durable);
        while let Some(line) = self.acks.next_line() {
            failpoint::pass("socket-ack")?;
            match self.stream.try_write(line) {
                Ok(bytes) => self.acks.sent(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The peer has closed its side, and may still wait for its last count.
    async fn acknowledge_all(&mut self, progress: &mut watch::Receiver<Progress>) -> io::Result<()> {
        loop {
            self.acknowledge(progress)?;
            if self.acks.is_blocked() {
                match timeout(LAST_ACK_TIMEOUT, self.stream.writable()).await {
                    Ok(writable) => writable?,
                    Err(_) => return Err(io::Error::other("the peer does not read its acknowledgements")),
                }
            } else if !self.acks.is_waiting() || progress.changed().await.is_err() {
                return Ok(());
            }
        }
    }
}

/// What a connection offered, what of it is durable, and what was said of it.
#[derive(Debug, Default)]
struct Acks {
    /// The peer is told.
    wanted: bool,
    /// Records offered.
    offered: u64,
    /// Offers that are not durable: their ticket, and the count that they bring.
    waiting: VecDeque<(u64, u64)>,
    /// Durable records.
    durable: u64,
    /// The last count that was begun to be sent.
    said: u64,
    /// What is left of it to send.
    line: Vec<u8>,
}

impl Acks {
    fn offered(&mut self, (ticket, records): (u64, u64)) {
        self.offered += records;
        if records > 0 && self.wanted {
            self.waiting.push_back((ticket, self.offered));
        }
    }
    fn durable(&mut self, ticket: u64) {
        while let Some((_, count)) = self.waiting.pop_front_if(|(waits_for, _)| *waits_for <= ticket) {
            self.durable = count;
        }
    }
    /// Bytes to send now, if any.
    fn next_line(&mut self) -> Option<&[u8]> {
        if self.line.is_empty() && self.said < self.durable {
            self.said = self.durable;
            self.line = format!("{}\n", self.said).into_bytes();
        }
        (!self.line.is_empty()).then_some(&self.line)
    }
    fn sent(&mut self, bytes: usize) {
        self.line.drain(..bytes);
    }
    /// A count could not be sent whole.
    fn is_blocked(&self) -> bool {
        !self.line.is_empty()
    }
    /// A count will change by itself.
    fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_to_its_bound_and_jitters_down_to_a_half() {
        let mut backoff = Backoff::default();
        let whole: Vec<u128> = (0..10).map(|_| backoff.next(0.0).as_millis()).collect();
        assert_eq!(whole, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000]);
        assert_eq!(backoff.next(0.5), Backoff::MOST.mul_f64(0.75));
        assert_eq!(Backoff::default().next(1.0), Backoff::FIRST / 2);
    }

    #[test]
    fn counts_run_and_a_slow_peer_gets_the_last_one() {
        let mut acks = Acks { wanted: true, ..Acks::default() };
        acks.offered((10, 2));
        acks.offered((20, 0));
        acks.offered((30, 3));
        acks.durable(9);
        assert_eq!(acks.next_line(), None);
        acks.durable(29);
        assert_eq!(acks.next_line(), Some(&b"2\n"[..]));
        acks.sent(1);
        acks.durable(30);
        acks.offered((40, 5));
        acks.durable(40);
        assert_eq!(acks.next_line(), Some(&b"\n"[..]), "a line that was begun is sent to its end");
        acks.sent(1);
        assert_eq!(acks.next_line(), Some(&b"10\n"[..]));
        acks.sent(3);
        assert_eq!(acks.next_line(), None);
        assert!(!acks.is_waiting());
    }
}
