//! A TCP proxy that fails on command: what a network does to a client, without the network.
//!
//! A test gives the client [`Proxy::address`] instead of the server's own. [`Proxy::cut`] closes every connection and refuses
//! new ones, [`Proxy::stall`] keeps them open and lets nothing through, [`Proxy::slow`] lets so much through, and
//! [`Proxy::drop_answers_after`] makes the one state that exactly once is about: the server has done it, and the client was
//! not told.
//!
//! Kafka tells its clients an address of its own; for it there is [`Proxy::start_at`] with the two addresses that
//! `services::Kafka` names for a proxy.
//!
//! Like `services`, it uses the standard library alone and can be included by `#[path]`.

#![allow(dead_code, clippy::unwrap_used)]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How often a thread that has nothing to do looks up.
const TICK: Duration = Duration::from_millis(2);

/// How long a read waits before it looks whether anything has changed.
const LOOK: Duration = Duration::from_millis(20);

/// A server that said nothing for so long has said its answer to the end.
const QUIET: Duration = Duration::from_millis(100);

/// The longest wait for an answer that is to be dropped.
const ANSWER: Duration = Duration::from_secs(10);

/// A running proxy on 127.0.0.1. Dropped, it closes its connections and its port.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    /// Told at every change of `state.stalled` and `state.links`.
    changed: Condvar,
    accepted: AtomicUsize,
    dropped: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// Absent while cut: the kernel itself refuses then.
    listener: Option<TcpListener>,
    links: Vec<Arc<Link>>,
    stalled: bool,
    /// Bytes a second that a connection may send.
    rate: Option<u32>,
    needle: Option<Vec<u8>>,
    over: bool,
}

/// One client's connection, and the one to the server that belongs to it.
#[derive(Debug)]
struct Link {
    client: TcpStream,
    server: TcpStream,
    closed: AtomicBool,
    /// The needle has been seen: nothing reaches the client any more.
    mute: AtomicBool,
}

impl Link {
    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

impl Proxy {
    /// Starts one in front of `target`, which need not listen yet.
    ///
    /// # Panics
    /// Where no port can be had.
    pub fn start(target: SocketAddr) -> Self {
        let listener = listen_below_ephemeral();
        Self::run(listener, target)
    }

    /// The same at a given address.
    ///
    /// # Panics
    /// Where somebody listens there.
    pub fn start_at(address: SocketAddr, target: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("a proxy cannot listen on {address}: {e}"));
        Self::run(listener, target)
    }

    fn run(listener: TcpListener, target: SocketAddr) -> Self {
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let state = Mutex::new(State { listener: Some(listener), ..State::default() });
        let shared = Arc::new(Shared {
            target,
            state,
            changed: Condvar::new(),
            accepted: AtomicUsize::new(0),
            dropped: AtomicUsize::new(0),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accept(&accepting));
        Self { address, shared }
    }

    /// Where clients connect. It stays, also when cut and mended.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many connections lost an answer to [`Proxy::drop_answers_after`].
    pub fn dropped(&self) -> usize {
        self.shared.dropped.load(Ordering::SeqCst)
    }

    /// Closes all connections; new ones are refused until [`Proxy::mend`]. Done when it returns.
    pub fn cut(&self) {
        let mut state = self.shared.lock();
        state.listener = None;
        state.links.drain(..).for_each(|link| link.close());
        self.shared.changed.notify_all();
    }

    /// Accepts connections again, at the same address. Also lets things [flow](Proxy::flow).
    ///
    /// # Panics
    /// Where somebody else has taken the port.
    pub fn mend(&self) {
        let mut state = self.shared.lock();
        if state.listener.is_none() {
            let listener = TcpListener::bind(self.address)
                .unwrap_or_else(|e| panic!("a proxy cannot listen on {} again: {e}", self.address));
            listener.set_nonblocking(true).unwrap();
            state.listener = Some(listener);
        }
        state.stalled = false;
        self.shared.changed.notify_all();
    }

    /// Lets nothing through in either direction. Connections stay open, and new ones are accepted.
    pub fn stall(&self) {
        self.shared.lock().stalled = true;
    }

    /// Lets things through again, what was held back first.
    pub fn flow(&self) {
        self.shared.lock().stalled = false;
        self.shared.changed.notify_all();
    }

    /// What a client sends reaches the server at so many bytes a second on each connection; `None`: as fast as it goes.
    pub fn slow(&self, bytes_per_second: Option<u32>) {
        self.shared.lock().rate = bytes_per_second;
    }

    /// Loses one answer. The next time that a client sends `needle` (`b"COMMIT"`, say; it may come in pieces), all of it
    /// reaches the server and the server's answer is awaited, for ten seconds at most, but not forwarded: the client sees
    /// its connection closed. Connections after that work again. [`Proxy::dropped`] tells that it has happened.
    ///
    /// # Panics
    /// Where the needle is empty.
    pub fn drop_answers_after(&self, needle: &[u8]) {
        assert!(!needle.is_empty(), "a needle without bytes is in everything");
        self.shared.lock().needle = Some(needle.to_vec());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.shared.lock().over = true;
    }
}

/// A port that the kernel gives to no client meanwhile: one that was cut must be had again.
fn listen_below_ephemeral() -> TcpListener {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let seed = std::process::id() as usize * 7919;
    for _ in 0..8000 {
        let port = 12_000 + (seed + NEXT.fetch_add(1, Ordering::SeqCst)) % 8000;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", u16::try_from(port).unwrap_or(12_000))) {
            return listener;
        }
    }
    panic!("no free port between 12000 and 20000");
}

fn accept(shared: &Arc<Shared>) {
    loop {
        let accepted = {
            let state = shared.lock();
            if state.over {
                return;
            }
            state.listener.as_ref().and_then(|listener| listener.accept().ok())
        };
        match accepted {
            Some((client, _)) => {
                let shared = Arc::clone(shared);
                // In a thread of its own: a server that does not answer must not keep others from connecting.
                thread::spawn(move || connect(&shared, client));
            }
            None => thread::sleep(TICK),
        }
    }
}

fn connect(shared: &Arc<Shared>, client: TcpStream) {
    shared.accepted.fetch_add(1, Ordering::SeqCst);
    // Where nobody listens the client sees its connection closed.
    let Ok(server) = TcpStream::connect_timeout(&shared.target, ANSWER) else { return };
    for stream in [&client, &server] {
        let set = stream.set_nonblocking(false).and_then(|()| stream.set_nodelay(true));
        if set.and_then(|()| stream.set_read_timeout(Some(LOOK))).is_err() {
            return;
        }
    }
    let link = Arc::new(Link { client, server, closed: AtomicBool::new(false), mute: AtomicBool::new(false) });
    {
        let mut state = shared.lock();
        // Accepted just before a cut: it is cut too.
        if state.listener.is_none() {
            return link.close();
        }
        state.links.push(Arc::clone(&link));
    }
    let (there, back) = ((Arc::clone(shared), Arc::clone(&link)), (Arc::clone(shared), link));
    thread::spawn(move || there.0.to_server(&there.1));
    thread::spawn(move || {
        back.0.to_client(&back.1);
        back.1.close();
        back.0.lock().links.retain(|link| !Arc::ptr_eq(link, &back.1));
    });
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while stalled. False where the link is closed.
    fn may_pass(&self, link: &Link) -> bool {
        let mut state = self.lock();
        while state.stalled && !link.closed.load(Ordering::SeqCst) {
            state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        !link.closed.load(Ordering::SeqCst)
    }

    /// Whether the needle ends in this chunk; then it is used up. `seen` keeps what may be its beginning.
    fn finds(&self, seen: &mut Vec<u8>, chunk: &[u8]) -> bool {
        let mut state = self.lock();
        let Some(needle) = &state.needle else {
            seen.clear();
            return false;
        };
        seen.extend_from_slice(chunk);
        let found = seen.windows(needle.len()).any(|window| window == needle);
        seen.drain(..seen.len().saturating_sub(needle.len() - 1));
        if found {
            state.needle = None;
        }
        found
    }

    fn to_server(&self, link: &Link) {
        let (mut chunk, mut seen) = (vec![0; 64 * 1024], Vec::new());
        while let Some(length) = next(&link.client, link, &mut chunk) {
            let sent = chunk.get(..length).unwrap_or_default();
            let rate = self.lock().rate;
            if let Some(rate) = rate {
                thread::sleep(Duration::from_secs(length as u64) / rate);
            }
            if !self.may_pass(link) {
                return;
            }
            // Mute before the server can answer.
            if self.finds(&mut seen, sent) {
                link.mute.store(true, Ordering::SeqCst);
            }
            if (&link.server).write_all(sent).is_err() {
                return link.close();
            }
        }
        // The client has said all; the answer may still come.
        let _ = link.server.shutdown(Shutdown::Write);
    }

    fn to_client(&self, link: &Link) {
        let mut chunk = vec![0; 64 * 1024];
        let mut give_up_at = None;
        let mut swallowed_at: Option<Instant> = None;
        loop {
            let read = (&link.server).read(&mut chunk);
            let mute = link.mute.load(Ordering::SeqCst);
            match read {
                Ok(0) => break,
                Ok(_) if mute => swallowed_at = Some(Instant::now()),
                Ok(length) => {
                    // Read before the needle passed: it answers something else, and is forwarded.
                    let answer = chunk.get(..length).unwrap_or_default();
                    if !self.may_pass(link) || (&link.client).write_all(answer).is_err() {
                        return;
                    }
                }
                Err(e) if is_timeout(&e) && !link.closed.load(Ordering::SeqCst) => {
                    let heard = swallowed_at.is_some_and(|at| at.elapsed() > QUIET);
                    if mute && (heard || Instant::now() > *give_up_at.get_or_insert_with(|| Instant::now() + ANSWER)) {
                        break;
                    }
                }
                Err(_) => return,
            }
        }
        if link.mute.load(Ordering::SeqCst) {
            self.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// The next bytes of a stream. `None` at its end, also where the link was closed.
fn next(mut stream: &TcpStream, link: &Link, chunk: &mut [u8]) -> Option<usize> {
    loop {
        match stream.read(chunk) {
            Ok(0) => return None,
            Ok(length) => return Some(length),
            Err(e) if is_timeout(&e) && !link.closed.load(Ordering::SeqCst) => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends back what it gets, and keeps it.
    struct Echo {
        address: SocketAddr,
        got: Arc<Mutex<Vec<u8>>>,
    }

    fn echo() -> Echo {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, got) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let kept = Arc::clone(&got);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, kept) = (stream.unwrap(), Arc::clone(&kept));
                thread::spawn(move || {
                    let mut chunk = [0; 1024];
                    while let Ok(length @ 1..) = stream.read(&mut chunk) {
                        kept.lock().unwrap().extend_from_slice(&chunk[..length]);
                        let _ = stream.write_all(&chunk[..length]);
                    }
                });
            }
        });
        Echo { address, got }
    }

    fn client(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect(proxy.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    fn ask(stream: &mut TcpStream, what: &str) -> std::io::Result<String> {
        stream.write_all(what.as_bytes())?;
        let mut answer = vec![0; what.len()];
        stream.read_exact(&mut answer)?;
        Ok(String::from_utf8(answer).unwrap())
    }

    /// Whether the stream is at its end, and not merely silent.
    fn is_closed(stream: &mut TcpStream) -> bool {
        match stream.read(&mut [0; 16]) {
            Ok(0) => true,
            Ok(length) => panic!("{length} bytes came instead of the end"),
            Err(e) => !is_timeout(&e),
        }
    }

    #[test]
    fn bytes_pass_in_both_directions_on_several_connections() {
        let proxy = Proxy::start(echo().address);
        let (mut one, mut two) = (client(&proxy), client(&proxy));
        assert_eq!(ask(&mut one, "one").unwrap(), "one");
        assert_eq!(ask(&mut two, "two").unwrap(), "two");
        let long = "x".repeat(1 << 20);
        let mut writer = one.try_clone().unwrap();
        let sent = long.clone();
        let writing = thread::spawn(move || writer.write_all(sent.as_bytes()).unwrap());
        let mut back = vec![0; long.len()];
        one.read_exact(&mut back).unwrap();
        writing.join().unwrap();
        assert!(back == long.as_bytes(), "a megabyte comes back as it went");
        assert_eq!(proxy.accepted(), 2);
    }

    #[test]
    fn the_end_of_what_a_client_says_reaches_the_server_and_the_answer_still_comes() {
        let proxy = Proxy::start(echo().address);
        let mut stream = client(&proxy);
        stream.write_all(b"last words").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "last words");
    }

    #[test]
    fn cut_closes_and_refuses_until_mended() {
        let proxy = Proxy::start(echo().address);
        let mut stream = client(&proxy);
        assert_eq!(ask(&mut stream, "hello").unwrap(), "hello");
        proxy.cut();
        assert!(is_closed(&mut stream));
        let refused = TcpStream::connect(proxy.address()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        proxy.mend();
        assert_eq!(ask(&mut client(&proxy), "again").unwrap(), "again");
    }

    #[test]
    fn stalled_connections_stay_open_and_get_everything_later() {
        let server = echo();
        let proxy = Proxy::start(server.address);
        let mut stream = client(&proxy);
        assert_eq!(ask(&mut stream, "before").unwrap(), "before");
        proxy.stall();
        stream.write_all(b"during").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(is_timeout(&stream.read(&mut [0; 16]).unwrap_err()), "nothing comes, and the connection is open");
        assert_eq!(server.got.lock().unwrap().as_slice(), b"before", "nor does anything arrive");
        proxy.flow();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut late = [0; 6];
        stream.read_exact(&mut late).unwrap();
        assert_eq!(&late, b"during");
        proxy.stall();
        stream.write_all(b"never").unwrap();
        proxy.cut();
        assert!(is_closed(&mut stream), "a stalled connection can be cut");
    }

    #[test]
    fn a_slow_connection_takes_its_time() {
        let proxy = Proxy::start(echo().address);
        let mut stream = client(&proxy);
        proxy.slow(Some(1_000));
        let began = Instant::now();
        let text = "x".repeat(500);
        assert_eq!(ask(&mut stream, &text).unwrap(), text);
        assert!(began.elapsed() >= Duration::from_millis(500));
    }

    #[test]
    fn an_answer_is_lost_once_after_the_needle_which_reaches_the_server() {
        let server = echo();
        let proxy = Proxy::start(server.address);
        let mut stream = client(&proxy);
        proxy.drop_answers_after(b"COMMIT");
        assert_eq!(ask(&mut stream, "INSERT;COM").unwrap(), "INSERT;COM", "no needle yet");
        stream.write_all(b"MIT;").unwrap();
        assert!(is_closed(&mut stream), "the answer is not forwarded");
        assert_eq!(server.got.lock().unwrap().as_slice(), b"INSERT;COMMIT;");
        assert_eq!(proxy.dropped(), 1);
        assert_eq!(ask(&mut client(&proxy), "COMMIT;").unwrap(), "COMMIT;", "only once");
        assert_eq!(proxy.dropped(), 1);
    }

    #[test]
    fn a_server_that_is_gone_closes_the_clients_connection() {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let proxy = Proxy::start(nobody);
        assert!(is_closed(&mut client(&proxy)));
    }
}
