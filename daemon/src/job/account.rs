//! What the log says of batches that were closed: the first one after a start, then a sum each minute, and of rejects a
//! warning at once, then at most one a minute. Each batch by itself is a line at the level `debug`.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{DEAD_LETTERS, LetterText};
use crate::status::LastBatch;

/// The log sums up what happened in so long.
const EVERY: Duration = Duration::from_secs(60);
/// Kinds of rejects that one warning names; the rest are counted.
const KINDS_SHOWN: usize = 8;
/// Kinds of rejects that are counted by themselves between two warnings: reasons come from a sink's own words, too.
const KINDS_COUNTED: usize = 256;

/// Sums over the batches since the last line.
#[derive(Default)]
struct Sums {
    batches: u64,
    records: u64,
    rejected: u64,
    written: BTreeMap<String, u64>,
    seconds: f64,
    first: u64,
    last: u64,
}

/// Rejects since the last warning, by step and reason.
#[derive(Default)]
struct Rejects {
    records: u64,
    kinds: BTreeMap<(String, String), u64>,
    others: u64,
    example: Option<LetterText>,
}

impl Rejects {
    fn count(&self) -> u64 {
        self.kinds.values().sum::<u64>() + self.others
    }

    fn add(&mut self, kinds: &BTreeMap<(String, String), u64>) {
        for (kind, count) in kinds {
            if self.kinds.len() < KINDS_COUNTED || self.kinds.contains_key(kind) {
                *self.kinds.entry(kind.clone()).or_default() += count;
            } else {
                self.others += count;
            }
        }
    }

    /// `3 json (decode), 2 cast (4-cast)`, the most frequent first.
    fn describe(&self) -> String {
        let mut kinds: Vec<_> = self.kinds.iter().collect();
        kinds.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let shown = kinds.iter().take(KINDS_SHOWN);
        let mut text = shown.map(|((step, reason), count)| format!("{count} {reason} ({step})")).collect::<Vec<_>>();
        let rest = kinds.iter().skip(KINDS_SHOWN).map(|(_, count)| **count).sum::<u64>() + self.others;
        if rest > 0 {
            text.push(format!("{rest} of other kinds"));
        }
        text.join(", ")
    }
}

struct Open {
    sums: Sums,
    rejects: Rejects,
    /// When the last line was written, of each kind; `None`: the next one is written at once.
    summed: Option<Instant>,
    warned: Option<Instant>,
}

/// The account of one job.
pub struct Account {
    job: String,
    /// Where its dead letters go, for people.
    letters: String,
    open: Mutex<Open>,
}

impl Account {
    /// Nothing is closed yet.
    pub fn new(job: &str, letters: String) -> Self {
        let open = Open { sums: Sums::default(), rejects: Rejects::default(), summed: None, warned: None };
        Self { job: job.to_owned(), letters, open: Mutex::new(open) }
    }

    /// A batch was closed.
    pub fn closed(&self, batch: &LastBatch, rejected: &BTreeMap<(String, String), u64>, example: Option<&LetterText>) {
        tracing::debug!(
            job = self.job,
            lane = batch.lane,
            batch = batch.seq,
            records = batch.records,
            rejected = batch.rejected,
            ms = format!("{:.1}", batch.duration_seconds * 1000.0),
            "closed"
        );
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.sums.batches == 0 {
            open.sums.first = batch.seq;
        }
        open.sums.batches += 1;
        open.sums.last = batch.seq;
        open.sums.records += batch.records;
        open.sums.rejected += batch.rejected;
        open.sums.seconds += batch.duration_seconds;
        for (sink, rows) in batch.written.iter().filter(|(sink, _)| *sink != DEAD_LETTERS) {
            *open.sums.written.entry(sink.clone()).or_default() += rows;
        }
        open.rejects.records += batch.records;
        open.rejects.add(rejected);
        if open.rejects.example.is_none() {
            open.rejects.example = example.cloned();
        }
        self.say(&mut open, false);
    }

    /// Says what is due. Called at least once a second.
    pub fn tick(&self) {
        self.say(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner), false);
    }

    /// Says what was not said yet: the job ends.
    pub fn finish(&self) {
        self.say(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner), true);
    }

    fn say(&self, open: &mut Open, all: bool) {
        let is_due = |last: Option<Instant>| last.is_none_or(|last| last.elapsed() >= EVERY);
        if open.rejects.count() > 0 && (all || is_due(open.warned)) {
            let rejects = std::mem::take(&mut open.rejects);
            open.warned = Some(Instant::now());
            let example = rejects.example.as_ref().map_or_else(String::new, |first| format!("; the first: {first}"));
            tracing::warn!(
                job = self.job,
                "{} of {} records rejected: {}{example}. See {}",
                rejects.count(),
                rejects.records,
                rejects.describe(),
                self.letters
            );
        } else if open.rejects.count() == 0 {
            open.rejects.records = 0;
        }
        // A job that ends says in its last line what it did.
        if open.sums.batches > 0 && !all && is_due(open.summed) {
            let sums = std::mem::take(&mut open.sums);
            let is_first = open.summed.replace(Instant::now()).is_none();
            let rows = rows(&sums.written);
            let what = match (sums.first == sums.last, is_first) {
                (true, _) => format!("batch {}", sums.last),
                (false, _) => format!("batches {} to {}", sums.first, sums.last),
            };
            #[allow(clippy::cast_precision_loss)] // a mean for people
            let mean = sums.seconds * 1000.0 / sums.batches as f64;
            tracing::info!(
                job = self.job,
                "{what}: {} records, {} rejected, {mean:.0} ms{}{}",
                sums.records,
                sums.rejected,
                if sums.batches > 1 { " each" } else { "" },
                if rows.is_empty() { String::new() } else { format!("; rows: {rows}") }
            );
        }
    }
}

/// `db 12, out 12`
pub fn rows(written: &BTreeMap<String, u64>) -> String {
    let mut text = String::new();
    for (sink, rows) in written {
        let _ = write!(text, "{}{sink} {rows}", if text.is_empty() { "" } else { ", " });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_rejects_are_counted_up_to_a_bound_and_the_most_frequent_are_named() {
        let mut rejects = Rejects::default();
        let kind = |n: usize| ("4-cast".to_owned(), format!("reason-{n:04}"));
        for n in 0..2 * KINDS_COUNTED {
            rejects.add(&BTreeMap::from([(kind(n), if n == 7 { 50 } else { 1 })]));
        }
        assert_eq!((rejects.kinds.len(), rejects.others), (KINDS_COUNTED, KINDS_COUNTED as u64));
        assert_eq!(rejects.count(), 2 * KINDS_COUNTED as u64 + 49);
        let text = rejects.describe();
        assert!(text.starts_with("50 reason-0007 (4-cast), 1 reason-0000 (4-cast)"), "{text}");
        assert_eq!(text.matches("reason-").count(), KINDS_SHOWN, "{text}");
        let rest = 2 * KINDS_COUNTED - KINDS_SHOWN;
        assert!(text.ends_with(&format!("{rest} of other kinds")), "{text}");
    }

    #[test]
    fn warnings_and_sums_come_at_once_and_then_once_a_minute() {
        let account = Account::new("job", "the folder".into());
        let batch = |seq| LastBatch { seq, records: 10, rejected: 1, ..LastBatch::default() };
        let rejected = BTreeMap::from([(("decode".to_owned(), "json".to_owned()), 1)]);
        account.closed(&batch(1), &rejected, None);
        let waiting = |account: &Account| {
            let open = account.open.lock().unwrap_or_else(PoisonError::into_inner);
            (open.sums.batches, open.rejects.count())
        };
        assert_eq!(waiting(&account), (0, 0), "the first is said at once");
        (2..5).for_each(|seq| account.closed(&batch(seq), &rejected, None));
        account.tick();
        assert_eq!(waiting(&account), (3, 3), "the others wait for the minute");
        account.finish();
        assert_eq!(waiting(&account).1, 0, "no reject is kept quiet at the end");
    }
}
