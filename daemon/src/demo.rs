//! `tidemill demo`: the main job with nothing set up.
//!
//! This process is the other end of the socket: it serves posts, pauses where the daemon dies, and goes on from the last
//! record that the daemon has acknowledged. The daemon is a process of its own, killed once with SIGKILL in the middle.
//! In the end the rows in SQLite and in the files are counted against what was fed.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rusqlite::Connection;

/// Ends a post on the wire.
const DELIMITER: &str = "__end";
/// Posts per second.
const RATE: u32 = 40;
/// How long the daemon may take for what is left, after the last post.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// Where in the posts a broken one lies: each record of this number (mod) is no UTF-8.
const BROKEN_EVERY: usize = 61;

/// Said by the people of a small harbour town, for this demo.
const POSTS: [&str; 20] = [
    "HIGH TIDE at the old mill, 06:12. The gate is shut 🌊",
    "Good morning! The miller's cat is on the WHEEL again 🐈",
    "flour is back\nRye, Spelt, and the dark one everybody wants",
    "Does anyone know why the bells rang at 4? 🔔",
    "Low tide now: the wheel turns, the stones SING",
    "Lost: one glove (left), near the sluice. Found: one glove (left), near the sluice",
    "Bread at the harbour until it is gone 🥖🥖",
    "RT @harbour: ferry 20 minutes late, FOG",
    "   Somebody left the gate open. SOMEBODY. ",
    "The heron stands where it always stands",
    "Neue Öffnungszeiten: 7 bis 12, außer bei Sturm ⛈️",
    "今日の潮は高い。水車は夕方に回る",
    "#tide #mill #sunrise",
    "Kids' tour on Saturday: bring boots\nand a towel\nand patience",
    "Who fed the eel? Please do not feed the eel.",
    "L'écluse est fermée jusqu'à midi",
    "WIND 7 from the west, take the washing in",
    "thank you, whoever mended the bench ❤️",
    "The wheel made 1,204 turns today. A record!",
    "Good night. Gate shut, lamp lit 🌙",
];

/// Record number `n` as it is fed: numbered, so that each can be counted; every second one is a text said before.
fn record(n: usize) -> Vec<u8> {
    let mut bytes = format!("#{n} {}", POSTS[n % POSTS.len()]).into_bytes();
    if is_broken(n) {
        bytes.extend([b' ', 0xff, 0xfe]);
    }
    bytes
}

fn is_broken(n: usize) -> bool {
    n % BROKEN_EVERY == BROKEN_EVERY - 1
}

/// What a record shall be in the sinks: trimmed and in lower case. `None`: a dead letter.
fn expected(n: usize) -> Option<String> {
    (!is_broken(n)).then(|| String::from_utf8_lossy(&record(n)).trim().to_lowercase())
}

struct Feeder {
    /// Records that the daemon has on disk.
    acked: AtomicUsize,
    /// Records that were sent on the present connection or an earlier one.
    sent: AtomicUsize,
    /// No more records for now: the daemon is about to die.
    held: AtomicBool,
    /// No more records for ever.
    over: AtomicBool,
}

/// Runs the demo; exit code 1 where a record is lost or doubled.
pub async fn run(dir: Option<PathBuf>, seconds: u64) -> anyhow::Result<u8> {
    tokio::task::spawn_blocking(move || demo(dir, Duration::from_secs(seconds))).await?
}

fn demo(dir: Option<PathBuf>, length: Duration) -> anyhow::Result<u8> {
    let dir = dir.unwrap_or_else(|| std::env::temp_dir().join(format!("tidemill-demo-{}", std::process::id())));
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    if dir.join("job.yaml").exists() {
        bail!("{} holds an earlier demo; name another folder with --dir", dir.display());
    }
    let listener = TcpListener::bind("127.0.0.1:0").context("listening on 127.0.0.1")?;
    let http = free_port()?;
    let address = listener.local_addr()?;
    write_job(&dir, address)?;
    let feeder = Arc::new(Feeder {
        acked: AtomicUsize::new(0),
        sent: AtomicUsize::new(0),
        held: AtomicBool::new(false),
        over: AtomicBool::new(false),
    });
    let serving = feeder.clone();
    thread::spawn(move || {
        listener.incoming().flatten().for_each(|stream| {
            let _ = feed(&serving, stream);
        })
    });

    say(&format!(
        "Posts arrive over TCP, separated by `{DELIMITER}`. Each second's batch is trimmed, lower-cased, stored in SQLite"
    ));
    say("and in files, and its first ten are printed. The daemon is a process of its own; it will be killed once.\n");
    let begun = Instant::now();
    let mut daemon = start(&dir, http)?;
    wait_until(|| feeder.acked.load(Ordering::SeqCst) > 0, DRAIN_LIMIT).context("the daemon took no post")?;
    thread::sleep((length / 2).saturating_sub(begun.elapsed()).max(Duration::from_millis(1500)));

    feeder.held.store(true, Ordering::SeqCst);
    // A post that is on its way to the socket just now is counted too.
    thread::sleep(Duration::from_secs(2) / RATE);
    wait_until(|| feeder.acked.load(Ordering::SeqCst) == feeder.sent.load(Ordering::SeqCst), DRAIN_LIMIT)
        .context("the daemon acknowledges nothing")?;
    let at = feeder.acked.load(Ordering::SeqCst);
    daemon.kill().context("killing the daemon")?;
    daemon.wait()?;
    say(&format!(
        "\n✗ kill -9: the daemon died with {at} posts accepted, some of them not in any sink yet. It is started again.\n"
    ));
    let mut daemon = start(&dir, http)?;
    feeder.held.store(false, Ordering::SeqCst);
    thread::sleep(length / 2);
    feeder.over.store(true, Ordering::SeqCst);
    thread::sleep(Duration::from_secs(2) / RATE);
    wait_until(|| feeder.acked.load(Ordering::SeqCst) == feeder.sent.load(Ordering::SeqCst), DRAIN_LIMIT)
        .context("the daemon acknowledges nothing")?;
    let fed = feeder.sent.load(Ordering::SeqCst);
    let settled = wait_until(|| count(&dir).is_ok_and(|count| count.settled() >= fed), DRAIN_LIMIT);
    terminate(&mut daemon)?;
    settled.with_context(|| format!("the daemon did not finish; its log is {}", dir.join("daemon.log").display()))?;
    report(&dir, address, fed)
}

fn say(text: &str) {
    println!("{text}");
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn write_job(dir: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let text = format!(
        "job: demo\ntrigger: 1s\n\nsources:\n  posts:\n    type: socket\n    connect: {address}\n    framing: {{ delimiter: \"{DELIMITER}\" }}\n    \
         ack: line\n    codec: text\n\nsteps:\n  - trim: [text]\n  - lowercase: [text]\n\nsinks:\n  screen:  {{ type: console, first: 10 }}\n  \
         db:      {{ type: sqlite, path: posts.db, table: posts }}\n  archive: {{ type: files, path: archive, codec: json }}\n\n\
         dead_letters: {{ type: files, path: dead-letters, codec: json }}\n"
    );
    std::fs::write(dir.join("job.yaml"), text).context("writing the job")
}

fn start(dir: &Path, http: u16) -> anyhow::Result<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("daemon.log"))?;
    Command::new(std::env::current_exe()?)
        .arg("run")
        .arg(dir.join("job.yaml"))
        .arg("--data-dir")
        .arg(dir.join("data"))
        .args(["--http", &format!("127.0.0.1:{http}")])
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .context("starting the daemon")
}

fn terminate(daemon: &mut Child) -> anyhow::Result<()> {
    let pid = rustix::process::Pid::from_child(daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    daemon.wait()?;
    Ok(())
}

fn wait_until(done: impl Fn() -> bool, limit: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !done() {
        if begun.elapsed() > limit {
            bail!("no progress in {limit:?}");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Serves one connection from the first record that is not acknowledged.
fn feed(feeder: &Feeder, mut stream: TcpStream) -> std::io::Result<()> {
    let base = feeder.acked.load(Ordering::SeqCst);
    let mut next = base;
    feeder.sent.store(base, Ordering::SeqCst);
    let mut acks = BufReader::new(stream.try_clone()?);
    let gone = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut line = String::new();
            while acks.read_line(&mut line).is_ok_and(|read| read > 0) {
                if let Ok(count) = line.trim().parse::<usize>() {
                    feeder.acked.store(base + count, Ordering::SeqCst);
                }
                line.clear();
            }
            gone.store(true, Ordering::SeqCst);
        });
        while !gone.load(Ordering::SeqCst) {
            if !feeder.held.load(Ordering::SeqCst) && !feeder.over.load(Ordering::SeqCst) {
                feeder.sent.store(next + 1, Ordering::SeqCst);
                stream.write_all(&record(next))?;
                stream.write_all(DELIMITER.as_bytes())?;
                next += 1;
            }
            thread::sleep(Duration::from_secs(1) / RATE);
        }
        Ok(())
    })
}

/// What is in the sinks.
#[derive(Default)]
struct Counted {
    sqlite: BTreeMap<String, usize>,
    files: BTreeMap<String, usize>,
    dead: usize,
}

impl Counted {
    fn settled(&self) -> usize {
        self.sqlite.values().sum::<usize>().min(self.files.values().sum()) + self.dead
    }
}

fn count(dir: &Path) -> anyhow::Result<Counted> {
    let mut counted = Counted::default();
    let db = Connection::open_with_flags(dir.join("posts.db"), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut rows = db.prepare("SELECT text FROM posts")?;
    for text in rows.query_map([], |row| row.get::<_, String>(0))? {
        *counted.sqlite.entry(text?).or_default() += 1;
    }
    for value in lines(&dir.join("archive"))? {
        *counted.files.entry(value["text"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    counted.dead = lines(&dir.join("dead-letters"))?.len();
    Ok(counted)
}

/// Every line of every file that a reader of the folder sees.
fn lines(folder: &Path) -> anyhow::Result<Vec<serde_json::Value>> {
    let mut values = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(values) };
    for entry in entries.flatten() {
        let hidden = entry.file_name().to_string_lossy().starts_with(['_', '.']);
        if hidden || !entry.file_type()?.is_file() {
            continue;
        }
        for line in std::fs::read_to_string(entry.path())?.lines() {
            values.push(serde_json::from_str(line)?);
        }
    }
    Ok(values)
}

fn report(dir: &Path, address: SocketAddr, fed: usize) -> anyhow::Result<u8> {
    let counted = count(dir)?;
    let wanted: Vec<String> = (0..fed).filter_map(expected).collect();
    let rejected = fed - wanted.len();
    say("\n                       SQLite      files");
    let both = |count: &dyn Fn(&BTreeMap<String, usize>) -> usize| (count(&counted.sqlite), count(&counted.files));
    let line = |name: &str, (a, b): (usize, usize)| say(&format!("  {name:<16} {a:>10} {b:>10}"));
    line("fed", (fed, fed));
    let stored = both(&|rows| rows.values().sum());
    line("stored", stored);
    line("rejected", (counted.dead, counted.dead));
    let lost = both(&|rows| wanted.iter().filter(|text| !rows.contains_key(*text)).count());
    line("lost", lost);
    let doubled = both(&|rows| rows.values().map(|n| n - 1).sum());
    line("doubled", doubled);
    let good =
        lost == (0, 0) && doubled == (0, 0) && counted.dead == rejected && stored == (wanted.len(), wanted.len());
    say(if good {
        "\n✓ Killed with SIGKILL in the middle, and every post is there exactly once."
    } else {
        "\n✗ This must not happen. Please report it with the folder below."
    });
    say(&format!(
        "\nLook around in {}:\n  job.yaml        the job: this is all that was configured\n  posts.db        sqlite3 {0}/posts.db 'SELECT * FROM posts LIMIT 5'\n  \
         archive/        the same rows as JSON lines\n  dead-letters/   the {} broken posts, with position and reason\n  daemon.log      what the daemon said\n\n\
         Run it yourself, in two terminals; metrics are at http://127.0.0.1:9720/metrics meanwhile:\n  \
         {2} feed README.md --listen {3} --delimiter {DELIMITER} --rate 5\n  \
         {2} run {0}/job.yaml --data-dir {0}/data",
        dir.display(),
        counted.dead,
        std::env::current_exe()?.display(),
        address,
    ));
    Ok(if good { 0 } else { 1 })
}
