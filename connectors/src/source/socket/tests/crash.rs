//! A source in a process of its own, killed at every failpoint and at random: what was acknowledged is there, in order,
//! once, at the same positions.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::tempdir;
use tidemill_checkpoint::{Lane, Position, Positions};
use tidemill_config::Socket;

use super::{
    tcp::{config, listen},
    *,
};
use crate::source::{History, Source as _, socket::SocketSource};

const FOLDER: &str = "TIDEMILL_TEST_SOCKET_FOLDER";
const SOON: Duration = Duration::from_secs(60);

/// Small, so that segments roll and are released all the time.
fn small() -> Socket {
    Socket { ack: true, max_spool_bytes: 16 * 1024, max_record_bytes: 4096, ..listen() }
}

/// Not a test: the process that the tests kill. It takes batches as a job would: rows to `out`, then the mark, then release.
#[test]
#[ignore = "runs as a process of the tests below"]
fn victim() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = Path::new(&folder).to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let lane = Lane::single();
        let source = SocketSource::open(&config(&small()), &small(), &folder.join("spool")).unwrap();
        let mark = fs::read(folder.join("mark")).ok();
        let mut at: Positions = mark.map_or_else(Positions::new, |bytes| serde_json::from_slice(&bytes).unwrap());
        let adopted = source.adopt(&lane, &at, &History::default()).await.unwrap();
        assert!(adopted.warnings.is_empty(), "{:?}", adopted.warnings);
        at.extend(adopted.new_shards);
        source.start().await.unwrap();
        let address = source.listening().unwrap().to_string();
        fs::write(folder.join("address.tmp"), address).unwrap();
        fs::rename(folder.join("address.tmp"), folder.join("address")).unwrap();
        let mut out = fs::OpenOptions::new().append(true).create(true).open(folder.join("out")).unwrap();
        loop {
            if source.event().await.is_err() {
                continue;
            }
            let Some(proposal) = source.plan(&lane, &at, Budget { records: 7, bytes: usize::MAX }).await.unwrap()
            else {
                continue;
            };
            let batch = source.read(&lane, &proposal).await.unwrap();
            for slice in &batch.slices {
                for n in 0..slice.records.len() {
                    let record = String::from_utf8(slice.record(n).to_vec()).unwrap();
                    out.write_all(format!("{} {}\n", slice.position(n), record.trim_start_matches('0')).as_bytes())
                        .unwrap();
                }
            }
            at.extend(proposal.spans.into_iter().map(|(shard, span)| (shard, span.to)));
            fs::write(folder.join("mark.tmp"), serde_json::to_vec(&at).unwrap()).unwrap();
            fs::rename(folder.join("mark.tmp"), folder.join("mark")).unwrap();
            source.release(&lane, &at).await.unwrap();
        }
    });
}

struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(folder: &Path, failpoint: &str) -> Victim {
    let _ = fs::remove_file(folder.join("address"));
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "source::socket::tests::crash::victim", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .env("TIDEMILL_FAILPOINT", failpoint)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Victim(child.unwrap())
}

/// Sends records from `from` up to `to`, a few at a time, waiting for their counts. Returns how many are acknowledged,
/// which is less where the process dies.
fn send(folder: &Path, victim: &mut Victim, from: u64, to: u64) -> u64 {
    let since = Instant::now();
    let address = loop {
        if let Ok(address) = fs::read_to_string(folder.join("address")) {
            break address;
        }
        if victim.0.try_wait().unwrap().is_some() {
            return from;
        }
        assert!(since.elapsed() < SOON, "it does not start");
        thread::sleep(Duration::from_millis(2));
    };
    let Ok(mut stream) = TcpStream::connect(address) else { return from };
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let (mut next, mut acked) = (from, from);
    while next < to {
        let more = (next + 1 + next % 4).min(to);
        let text: String = (next..more).map(|n| format!("{:0600}\n", n + 1)).collect();
        next = more;
        if stream.write_all(text.as_bytes()).is_err() {
            return acked;
        }
        while acked < next {
            let Some(Ok(count)) = lines.next() else { return acked };
            acked = from + count.parse::<u64>().unwrap();
        }
    }
    acked
}

/// Records that were ever durable in the dead process's spool.
fn durable(folder: &Path) -> u64 {
    Spool::open(&folder.join("spool"), 4096).unwrap().records()
}

/// What the job got: by position, each position with one record only, and the records in order without a gap.
fn check_out(folder: &Path, records: u64) {
    let text = fs::read_to_string(folder.join("out")).unwrap();
    let mut out = BTreeMap::new();
    for line in text.lines() {
        let (position, record) = line.split_once(' ').unwrap();
        let position = position.parse::<u64>().unwrap();
        let before = out.insert(position, record.to_owned());
        assert!(before.is_none_or(|before| before == record), "position {position} was given to two records");
    }
    let expected: Vec<String> = (1..=records).map(|n| n.to_string()).collect();
    assert_eq!(out.into_values().collect::<Vec<_>>(), expected);
}

fn drained(folder: &Path, records: u64) -> bool {
    let Ok(text) = fs::read_to_string(folder.join("out")) else { return false };
    let Ok(mark) = fs::read(folder.join("mark")) else { return false };
    let mark: Positions = serde_json::from_slice(&mark).unwrap();
    let marked = mark.values().next().and_then(Position::as_number).unwrap_or(0);
    let last = text.lines().last().and_then(|line| line.split_once(' ')?.0.parse::<u64>().ok()).unwrap_or(u64::MAX);
    text.ends_with(&format!(" {records}\n")) && marked > last
}

fn wait_drained(folder: &Path, records: u64) {
    let since = Instant::now();
    while !drained(folder, records) {
        assert!(since.elapsed() < SOON, "what is durable is never planned");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn killed_at_every_failpoint_it_keeps_what_it_acknowledged() {
    let points = [
        "spool-id",
        "spool-write",
        "spool-sync",
        "spool-synced",
        "spool-roll",
        "spool-rolled",
        "spool-release",
        "socket-read",
        "socket-ack",
    ];
    for point in points {
        let dir = tempdir().unwrap();
        let mut sent = 0;
        for at in [1, 2, 5] {
            let mut victim = start(dir.path(), &format!("{point}:{at}:kill"));
            let acked = send(dir.path(), &mut victim, sent, sent + 120);
            if point == "spool-id" && at > 1 {
                // The id is written once.
                drop(victim);
                sent = durable(dir.path());
                continue;
            }
            let since = Instant::now();
            let status = loop {
                if let Some(status) = victim.0.try_wait().unwrap() {
                    break status;
                }
                assert!(since.elapsed() < SOON, "{point} is not passed {at} times");
                thread::sleep(Duration::from_millis(2));
            };
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{point}:{at}: {status}");
            let durable = durable(dir.path());
            assert!(durable >= acked, "{point}:{at}: {acked} are acknowledged, {durable} are durable");
            sent = durable;
        }
        let mut victim = start(dir.path(), "");
        let records = send(dir.path(), &mut victim, sent, sent + 50);
        assert_eq!(records, sent + 50);
        wait_drained(dir.path(), records);
        drop(victim);
        check_out(dir.path(), records);
    }
}

#[test]
fn killed_at_random_again_and_again_it_keeps_what_it_acknowledged() {
    let dir = tempdir().unwrap();
    let mut sent = 0;
    for round in 0_u64..15 {
        let mut victim = start(dir.path(), "");
        let id = victim.0.id();
        let kill = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30 + round * 37 % 90));
            let pid = rustix::process::Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        });
        let acked = send(dir.path(), &mut victim, sent, u64::MAX);
        kill.join().unwrap();
        drop(victim);
        let durable = durable(dir.path());
        assert!(durable >= acked, "{acked} are acknowledged, {durable} are durable");
        sent = durable;
    }
    assert!(sent > 0);
    let mut victim = start(dir.path(), "");
    let records = send(dir.path(), &mut victim, sent, sent + 10);
    wait_drained(dir.path(), records);
    drop(victim);
    check_out(dir.path(), records);
}

#[test]
fn a_full_disk_loses_nothing() {
    let dir = tempdir().unwrap();
    let mut victim = start(dir.path(), "spool-write:4:full,spool-sync:9:error,spool-roll:3:full");
    let records = send(dir.path(), &mut victim, 0, 100);
    assert_eq!(records, 100, "it goes on once the disk takes writes again");
    wait_drained(dir.path(), records);
    drop(victim);
    check_out(dir.path(), records);
}
