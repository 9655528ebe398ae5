//! What a person sees of `run --once`: a bar on a terminal while it works, a line per job when it is done.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    sync::OnceLock,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    job::{DEAD_LETTERS, account},
    status::Status,
};

/// How often the bar is drawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(200);

static BAR: OnceLock<ProgressBar> = OnceLock::new();

/// Standard error for logs: a line is printed above the bar, not through it.
pub fn writer() -> impl Write {
    struct Lines;
    impl Write for Lines {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            match BAR.get() {
                Some(bar) => bar.suspend(|| io::stderr().write(text)),
                None => io::stderr().write(text),
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            io::stderr().flush()
        }
    }
    Lines
}

/// Draws what the jobs have done so far, until the task is aborted.
pub async fn draw(statuses: Vec<Status>) {
    let bar = BAR.get_or_init(|| ProgressBar::new(0));
    if let Ok(style) = ProgressStyle::with_template("{spinner} [{bar:25}] {bytes} of {total_bytes}, {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    loop {
        let (mut done, mut waiting, mut records, mut rejected, mut batches, mut rate) = (0, 0, 0, 0, 0, 0.0);
        for status in &statuses {
            let progress = status.lock();
            done += progress.bytes_in;
            waiting += progress.lag.values().filter_map(|lag| lag.bytes).sum::<u64>();
            records += progress.records_in;
            rejected += progress.rejected;
            batches += progress.batches;
            rate += progress.records_per_second;
        }
        bar.set_length(done + waiting);
        bar.set_position(done);
        bar.set_message(format!("{records} records in {batches} batches, {rate:.0} records/s, {rejected} rejected"));
        bar.tick();
        tokio::time::sleep(DRAW_INTERVAL).await;
    }
}

/// The bar goes, and each job says what it did, and whether that was all: the jobs in `undone` have more to do.
pub fn conclude(statuses: &[Status], undone: &BTreeSet<String>, begun: Instant) {
    if let Some(bar) = BAR.get() {
        bar.finish_and_clear();
    }
    for status in statuses {
        let did = status.snapshot();
        let seconds = begun.elapsed().as_secs_f64();
        let written: BTreeMap<_, _> = did
            .written
            .iter()
            .filter(|(sink, _)| *sink != DEAD_LETTERS)
            .map(|(sink, rows)| (sink.clone(), *rows))
            .collect();
        let (rows, letters) = (account::rows(&written), did.dead_letters.as_str());
        let see = if did.rejected > 0 { format!("; rejected records are in {letters}") } else { String::new() };
        macro_rules! tell {
            ($level:ident, $($text:tt)+) => {
                tracing::$level!(
                    job = did.job,
                    batches = did.batches,
                    records = did.records_in,
                    rows,
                    rejected = did.rejected,
                    $($text)+
                )
            };
        }
        if undone.contains(&did.job) {
            tell!(warn, "job {} failed after {seconds:.1} s: see the error above{see}", did.job);
        } else {
            tell!(info, "done in {seconds:.1} s{see}");
        }
    }
}
