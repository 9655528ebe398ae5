//! The source over real connections: who gets what, in which order, and who is held back.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use tempfile::{TempDir, tempdir};
use tidemill_checkpoint::{Lane, Position, Positions};
use tidemill_config::{Codec, Framing, Located, Socket, SocketAddress, SourceKind};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::*;
use crate::source::{History, Source as _, SourceError, SourceEvent, socket::SocketSource};

/// Longer than anything here takes, shorter than a person waits.
const SOON: Duration = Duration::from_secs(30);

pub fn socket(address: SocketAddress) -> Socket {
    Socket {
        address,
        framing: Framing::Lines,
        max_record_bytes: 1000,
        ack: false,
        on_lost_spool: None,
        max_spool_bytes: 1 << 30,
        max_connections: 1024,
        idle_timeout: None,
    }
}

pub fn listen() -> Socket {
    socket(SocketAddress::Listen("127.0.0.1:0".to_owned()))
}

pub fn config(socket: &Socket) -> tidemill_config::Source {
    tidemill_config::Source {
        name: Located { value: "posts".to_owned(), at: Default::default() },
        formerly: None,
        kind: SourceKind::Socket(socket.clone()),
        codec: Codec::Text,
        schema: None,
        metadata: Vec::new(),
    }
}

/// A source in a job's hands: what is read of it, and where it stands.
pub struct Driven {
    pub source: SocketSource,
    pub at: Positions,
    pub records: Vec<String>,
    pub rejects: Vec<(&'static str, String)>,
    pub dir: PathBuf,
    _keep: TempDir,
}

impl Driven {
    pub async fn start(socket: &Socket) -> Self {
        let keep = tempdir().unwrap();
        let dir = keep.path().join("spool");
        let source = SocketSource::open(&config(socket), socket, &dir).unwrap();
        let at = source.origin(&Lane::single()).await.unwrap().positions;
        source.adopt(&Lane::single(), &at, &History::default()).await.unwrap();
        source.start().await.unwrap();
        Self { source, at, records: Vec::new(), rejects: Vec::new(), dir, _keep: keep }
    }

    pub async fn client(&self) -> TcpStream {
        TcpStream::connect(self.source.listening().unwrap()).await.unwrap()
    }

    /// Reads a batch, and checks that a replay by its spans alone gives the same.
    pub async fn batch(&mut self, budget: Budget) -> bool {
        let lane = Lane::single();
        let Some(proposal) = self.source.plan(&lane, &self.at, budget).await.unwrap() else { return false };
        let replay = crate::source::Proposal { spans: proposal.spans.clone(), ..Default::default() };
        let batch = self.source.read(&lane, &proposal).await.unwrap();
        let again = self.source.read(&lane, &replay).await.unwrap();
        let lines = |batch: &crate::source::RawBatch| -> Vec<(Position, String)> {
            let slices = batch.slices.iter();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            slices
                .flat_map(|s| (0..s.records.len()).map(|n| (s.position(n), text(s.record(n)))).collect::<Vec<_>>())
                .collect()
        };
        assert_eq!(lines(&batch), lines(&again));
        assert_eq!(batch.rejects, again.rejects);
        self.records.extend(lines(&batch).into_iter().map(|(_, line)| line));
        let rejects = batch.rejects.iter();
        self.rejects.extend(rejects.map(|r| (r.word(), String::from_utf8_lossy(&r.record).into_owned())));
        self.at.extend(proposal.spans.into_iter().map(|(shard, span)| (shard, span.to)));
        true
    }

    /// Takes batches until there are `records` and `rejects`, releasing each.
    pub async fn until(&mut self, records: usize, rejects: usize) {
        let lane = Lane::single();
        while self.records.len() < records || self.rejects.len() < rejects {
            let event = timeout(SOON, self.source.event()).await;
            let got = (self.records.len(), self.rejects.len());
            match event.unwrap_or_else(|_| panic!("nothing more comes after {got:?} of {records}, {rejects}")) {
                Ok(SourceEvent::Data) => drop(self.batch(ALL).await),
                Ok(other) => panic!("{other:?} after {got:?}"),
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
            self.source.release(&lane, &self.at).await.unwrap();
        }
        assert_eq!((self.records.len(), self.rejects.len()), (records, rejects));
    }

    /// `--once`: takes batches until the end.
    pub async fn drain(&mut self) {
        self.source.finish();
        while timeout(SOON, self.source.event()).await.unwrap().unwrap() != SourceEvent::End {
            self.batch(ALL).await;
        }
        assert!(!self.batch(ALL).await, "nothing is left at the end");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_clients_at_once_lose_nothing_and_each_keeps_its_order() {
    let mut driven = Driven::start(&Socket { ack: true, ..listen() }).await;
    let clients: Vec<_> = (0..50)
        .map(|client| {
            let address = driven.source.listening().unwrap();
            tokio::spawn(async move {
                let (read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
                for n in 0..200 {
                    let line = format!("{client} {n}\n");
                    // Every fifth client dribbles.
                    let size = if client % 5 == 0 { 2 } else { line.len() };
                    for part in line.as_bytes().chunks(size) {
                        write.write_all(part).await.unwrap();
                    }
                }
                write.shutdown().await.unwrap();
                let (mut lines, mut counts) = (BufReader::new(read).lines(), vec![0]);
                while let Some(line) = lines.next_line().await.unwrap() {
                    counts.push(line.parse::<u64>().unwrap());
                }
                assert!(counts.is_sorted(), "{counts:?}");
                assert_eq!(counts.last(), Some(&200), "after the last record is durable, before the connection closes");
            })
        })
        .collect();
    driven.until(50 * 200, 0).await;
    for client in clients {
        client.await.unwrap();
    }
    let mut next = BTreeMap::new();
    for record in &driven.records {
        let (client, n) = record.split_once(' ').unwrap();
        let expected = next.entry(client.to_owned()).or_insert(0);
        assert_eq!(n.parse::<u32>().unwrap(), *expected, "client {client}");
        *expected += 1;
    }
    assert_eq!(next.len(), 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_are_sent_only_after_the_sync_and_name_what_survives() {
    let mut driven = Driven::start(&Socket { ack: true, ..listen() }).await;
    let spool = driven.source.spool().0;
    spool.full.store(true, Ordering::Release);
    let (read, mut write) = driven.client().await.into_split();
    let mut lines = BufReader::new(read).lines();
    write.write_all(b"one\ntwo\n").await.unwrap();
    let error = timeout(SOON, driven.source.event()).await.unwrap().unwrap_err();
    assert!(matches!(&error, SourceError::Transient { .. }) && error.to_string().contains("held back"), "{error}");
    assert!(
        timeout(Duration::from_millis(300), lines.next_line()).await.is_err(),
        "nothing is durable, nothing is said"
    );
    assert_eq!(driven.source.plan(&Lane::single(), &driven.at, ALL).await.unwrap().map(|p| p.spans), None);
    spool.full.store(false, Ordering::Release);
    assert_eq!(timeout(SOON, lines.next_line()).await.unwrap().unwrap().as_deref(), Some("2"));
    let copy = tempdir().unwrap();
    copy_dir(&driven.dir, copy.path());
    assert_eq!(texts(&Spool::open(copy.path(), 1000).unwrap()), ["one", "two"]);
    driven.until(2, 0).await;
}

#[tokio::test]
async fn what_a_connection_leaves_unfinished_is_a_reject_and_never_meets_the_next() {
    let mut driven = Driven::start(&listen()).await;
    let mut first = driven.client().await;
    first.write_all(b"whole\nhal").await.unwrap();
    first.shutdown().await.unwrap();
    assert_eq!(first.read(&mut [0; 8]).await.unwrap(), 0);
    let mut second = driven.client().await;
    second.write_all(b"f of another\n  \n \t\n ").await.unwrap();
    drop(second);
    driven.until(4, 1).await;
    let reset = driven.client().await;
    reset.try_write(b"cut by a reset").unwrap();
    driven.until(4, 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    reset.set_zero_linger().unwrap();
    drop(reset);
    driven.until(4, 2).await;
    assert_eq!(driven.records, ["whole", "f of another", "  ", " \t"]);
    assert_eq!(driven.rejects, [("half_record", "hal".to_owned()), ("half_record", "cut by a reset".to_owned())]);
}

#[tokio::test]
async fn a_record_that_is_too_long_costs_itself_alone() {
    let mut driven = Driven::start(&Socket { framing: Framing::Delimiter(b"__end".to_vec()), ..listen() }).await;
    let mut client = driven.client().await;
    let text = format!("a\u{1f30a}\nb__end{}__endafter__end\n", "x".repeat(5_000_000));
    client.write_all(text.as_bytes()).await.unwrap();
    driven.until(2, 1).await;
    assert_eq!(driven.records, ["a\u{1f30a}\nb", "after"]);
    assert_eq!((driven.rejects[0].0, driven.rejects[0].1.len()), ("too_long", 4096));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_spool_holds_the_sender_back_and_nothing_grows() {
    const MOST: u64 = 256 * 1024;
    let mut driven = Driven::start(&Socket { max_spool_bytes: MOST, ..listen() }).await;
    let address = driven.source.listening().unwrap();
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = sent.clone();
    const LINES: usize = 40_000;
    let sender = tokio::spawn(async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        for n in 0..LINES {
            stream.write_all(format!("{n:0999}\n").as_bytes()).await.unwrap();
            counter.fetch_add(1000, Ordering::Relaxed);
        }
    });
    // Nobody reads: the sender comes to a stand.
    let mut last = u64::MAX;
    let since = Instant::now();
    while sent.load(Ordering::Relaxed) != last || last == 0 {
        assert!(since.elapsed() < SOON, "the sender is never held back");
        last = sent.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(!sender.is_finished() && last < LINES as u64 * 1000 / 2, "{last} bytes were taken from the sender");
    // A segment may go between listing and looking.
    let on_disk =
        |dir: &Path| segments(dir).iter().filter_map(|path| fs::metadata(path).ok()).map(|m| m.len()).sum::<u64>();
    assert!(on_disk(&driven.dir) < MOST + 128 * 1024, "{}", on_disk(&driven.dir));
    // It goes on as fast as the job releases, within the same bound.
    while driven.records.len() < LINES {
        assert_eq!(timeout(SOON, driven.source.event()).await.unwrap().unwrap(), SourceEvent::Data);
        driven.batch(Budget { records: 100, bytes: usize::MAX }).await;
        driven.source.release(&Lane::single(), &driven.at).await.unwrap();
        assert!(on_disk(&driven.dir) < MOST + 128 * 1024, "{}", on_disk(&driven.dir));
    }
    sender.await.unwrap();
    assert!(driven.records.iter().enumerate().all(|(n, record)| record.parse::<usize>() == Ok(n)));
}

#[tokio::test]
async fn a_record_larger_than_the_spool_may_be_still_passes() {
    let mut driven = Driven::start(&Socket { max_spool_bytes: 10_000, max_record_bytes: 100_000, ..listen() }).await;
    let mut client = driven.client().await;
    let writer = tokio::spawn(async move {
        for n in 0..20 {
            client.write_all(format!("{n}{}\n", "x".repeat(50_000)).as_bytes()).await.unwrap();
        }
    });
    driven.until(20, 0).await;
    writer.await.unwrap();
}

#[tokio::test]
async fn nothing_is_accepted_before_start_and_an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let socket = socket(SocketAddress::Listen(address.to_string()));
    let dir = tempdir().unwrap();
    let source = SocketSource::open(&config(&socket), &socket, dir.path()).unwrap();
    assert_eq!(source.listening(), None);
    let error = source.start().await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains(&address.to_string()), "{error}");
    drop(taken);
    assert!(TcpStream::connect(address).await.is_err());
    source.start().await.unwrap();
    assert_eq!(source.listening(), Some(address));
    TcpStream::connect(address).await.unwrap();
    source.start().await.unwrap();
}

#[tokio::test]
async fn it_connects_again_after_the_server_restarts() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    drop(server);
    let mut driven = Driven::start(&socket(SocketAddress::Connect(address.to_string()))).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    for n in 0..3 {
        let server = TcpListener::bind(address).await.unwrap();
        let (mut stream, _) = timeout(SOON, server.accept()).await.unwrap().unwrap();
        stream.write_all(format!("life {n}\nunfinished {n}").as_bytes()).await.unwrap();
        drop((stream, server));
        driven.until(n + 1, n + 1).await;
    }
    assert_eq!(driven.records, ["life 0", "life 1", "life 2"]);
}

#[tokio::test]
async fn once_ends_when_the_peer_has_closed_and_everything_is_planned() {
    // Listening: after at least one client, when all are gone.
    let mut driven = Driven::start(&listen()).await;
    driven.source.finish();
    assert!(timeout(Duration::from_millis(200), driven.source.event()).await.is_err(), "nobody came yet");
    let (mut one, mut two) = (driven.client().await, driven.client().await);
    one.write_all(b"a\nb\n").await.unwrap();
    two.write_all(b"c\n").await.unwrap();
    drop(one);
    driven.until(3, 0).await;
    assert!(timeout(Duration::from_millis(200), driven.source.event()).await.is_err(), "one is still here");
    two.write_all(b"d\ne").await.unwrap();
    drop(two);
    driven.drain().await;
    assert_eq!((driven.records.len(), driven.rejects.len()), (4, 1));

    // Connecting: when the first connection ended, also where that was before the call.
    for early in [true, false] {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        let mut driven = Driven::start(&socket(SocketAddress::Connect(address))).await;
        if early {
            driven.source.finish();
        }
        let (mut stream, _) = server.accept().await.unwrap();
        stream.write_all(b"only\n").await.unwrap();
        drop((stream, server));
        driven.until(1, 0).await;
        driven.drain().await;
        assert_eq!(driven.records, ["only"]);
    }
}

#[tokio::test]
async fn event_wakes_for_what_lies_in_the_spool_already_and_lag_counts_it() {
    let mut driven = Driven::start(&listen()).await;
    let mut client = driven.client().await;
    client.write_all(b"1\n2\n3\n").await.unwrap();
    assert_eq!(timeout(SOON, driven.source.event()).await.unwrap().unwrap(), SourceEvent::Data);
    let since = Instant::now();
    while driven.source.lag(&driven.at).records != Some(3) {
        assert!(since.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    driven.batch(Budget { records: 1, bytes: usize::MAX }).await;
    let lag = driven.source.lag(&driven.at);
    assert_eq!(lag.records, Some(2));
    assert!(lag.oldest.unwrap() < SOON && lag.bytes.unwrap() > 0 && lag.spool_bytes.unwrap() > 64);
    // Planned to the middle, abandoned, adopted again: it wakes again.
    driven.batch(ALL).await;
    assert!(timeout(Duration::from_millis(100), driven.source.event()).await.is_err());
    let lag = driven.source.lag(&driven.at);
    assert_eq!((lag.records, lag.bytes, lag.oldest), (Some(0), Some(0), Some(Duration::ZERO)));
    let start = driven.source.origin(&Lane::single()).await.unwrap().positions;
    driven.source.adopt(&Lane::single(), &start, &History::default()).await.unwrap();
    assert_eq!(timeout(SOON, driven.source.event()).await.unwrap().unwrap(), SourceEvent::Data);
}

/// A measurement, not a test: from sent to durable and acknowledged, beside a bare write and fdatasync of the same size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: run it alone, with --nocapture"]
async fn latency_beside_a_bare_fdatasync() {
    use std::io::Write as _;
    const ROUNDS: usize = 1000;
    let driven = Driven::start(&Socket { ack: true, ..listen() }).await;
    let (read, mut write) = driven.client().await.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut bare = fs::File::create(driven.dir.join("bare")).unwrap();
    let (mut acked, mut synced) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let since = Instant::now();
        write.write_all(&[&[b'x'; 200][..], b"\n"].concat()).await.unwrap();
        lines.next_line().await.unwrap();
        acked.push(since.elapsed());
        let since = Instant::now();
        bare.write_all(&[b'x'; 250]).unwrap();
        bare.sync_data().unwrap();
        synced.push(since.elapsed());
    }
    for (name, mut times) in [("acknowledged", acked), ("bare fdatasync", synced)] {
        times.sort();
        println!("{name}: p50 {:?}, p99 {:?}", times[ROUNDS / 2], times[ROUNDS * 99 / 100]);
    }
}
