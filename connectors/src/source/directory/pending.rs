//! Files that are not listed yet: which of them stand still, and in which order they are taken. Time comes from outside.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use super::scan::{Seen, Stamp};

/// A file whose mtime and ctime are older than `settle` by this much is taken at first sight: it stood still before we
/// came. The margin is for a file server whose clock runs behind.
pub(super) const OLD_MARGIN: Duration = Duration::from_secs(10);

/// The first and the longest pause before a file that could not be read is tried again.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(30);

/// A file that has not stood still for so long, and for so many times `settle`, is reported.
const RESTLESS: Duration = Duration::from_secs(10);
const RESTLESS_SETTLES: u32 = 5;

#[derive(Debug)]
struct Unsettled {
    stamp: Stamp,
    since: Instant,
    /// Since when it has not stood still, and whether that was reported.
    first: Instant,
    is_reported: bool,
}

#[derive(Debug)]
struct Stuck {
    until: Instant,
    delay: Duration,
    cause: String,
}

/// Files by the state that they are in.
#[derive(Debug, Default)]
pub(super) struct Pending {
    settle: Duration,
    unsettled: HashMap<Arc<str>, Unsettled>,
    ready: BTreeMap<(i64, Arc<str>), Stamp>,
    ready_at: HashMap<Arc<str>, i64>,
    ready_bytes: u64,
    stuck: HashMap<Arc<str>, Stuck>,
}

impl Pending {
    pub(super) fn new(settle: Duration) -> Self {
        Self { settle, ..Self::default() }
    }

    /// A file that is not known was seen. `clock_ns` is the wall clock; `renamed_in` says that it came whole.
    pub(super) fn observe(&mut self, path: &str, seen: Seen, now: Instant, clock_ns: i64, renamed_in: bool) {
        if self.stuck.get(path).is_some_and(|stuck| now < stuck.until) {
            return;
        }
        if let Some(mtime) = self.ready_at.get(path) {
            let still = self.ready.get(&(*mtime, Arc::from(path))).is_some_and(|stamp| same(stamp, &seen.stamp));
            if still {
                return;
            }
            self.unready(path);
        }
        let before = self.unsettled.get(path);
        let since = before.filter(|before| same(&before.stamp, &seen.stamp)).map_or(now, |before| before.since);
        let (first, is_reported) = before.map_or((now, false), |before| (before.first, before.is_reported));
        let margin = i64::try_from((self.settle + OLD_MARGIN).as_nanos()).unwrap_or(i64::MAX);
        let old = clock_ns.saturating_sub(seen.stamp.mtime_ns.max(seen.ctime_ns)) >= margin;
        if renamed_in || old || now.duration_since(since) >= self.settle {
            self.unsettled.remove(path);
            let path: Arc<str> = path.into();
            self.ready_bytes += seen.stamp.size;
            self.ready_at.insert(path.clone(), seen.stamp.mtime_ns);
            self.ready.insert((seen.stamp.mtime_ns, path), seen.stamp);
        } else {
            self.unsettled.insert(path.into(), Unsettled { stamp: seen.stamp, since, first, is_reported });
        }
    }

    /// The file is gone, or is known by now.
    pub(super) fn forget(&mut self, path: &str) {
        self.unready(path);
        self.unsettled.remove(path);
        self.stuck.remove(path);
    }

    /// Keeps the files that a whole scan saw.
    pub(super) fn retain(&mut self, seen: impl Fn(&str) -> bool) {
        let gone: Vec<Arc<str>> = self.paths().filter(|path| !seen(path)).cloned().collect();
        gone.iter().for_each(|path| self.forget(path));
    }

    /// The file cannot be read now: it is tried again later, the others go on.
    pub(super) fn set_aside(&mut self, path: &str, cause: String, now: Instant) {
        let delay = self.stuck.get(path).map_or(RETRY_FIRST, |stuck| (stuck.delay * 2).min(RETRY_LAST));
        self.unready(path);
        self.unsettled.remove(path);
        self.stuck.insert(path.into(), Stuck { until: now + delay, delay, cause });
    }

    /// A file that cannot be read, and why.
    pub(super) fn stuck(&self) -> Option<(&str, &str)> {
        self.stuck.iter().map(|(path, stuck)| (&**path, &*stuck.cause)).min()
    }

    /// Files that have kept changing for long: each once, with the time. They are not read while they do.
    pub(super) fn restless(&mut self, now: Instant) -> Vec<(Arc<str>, Duration)> {
        let long = RESTLESS.max(self.settle * RESTLESS_SETTLES);
        let is_restless = |file: &Unsettled| !file.is_reported && now.duration_since(file.first) >= long;
        let mut restless = Vec::new();
        for (path, file) in self.unsettled.iter_mut().filter(|(_, file)| is_restless(file)) {
            file.is_reported = true;
            restless.push((path.clone(), now.duration_since(file.first)));
        }
        restless
    }

    /// The file to take next: the oldest mtime, then the name.
    pub(super) fn first(&self) -> Option<(Arc<str>, Stamp)> {
        self.ready.first_key_value().map(|((_, path), stamp)| (path.clone(), *stamp))
    }

    pub(super) fn ready_len(&self) -> usize {
        self.ready.len()
    }
    pub(super) fn ready_bytes(&self) -> u64 {
        self.ready_bytes
    }
    pub(super) fn oldest_mtime_ns(&self) -> Option<i64> {
        self.ready.first_key_value().map(|((mtime, _), _)| *mtime)
    }
    /// Whether the path is here in any state.
    pub(super) fn has(&self, path: &str) -> bool {
        self.ready_at.contains_key(path) || self.unsettled.contains_key(path) || self.stuck.contains_key(path)
    }
    /// Every path in any state, some twice.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Arc<str>> {
        self.ready_at.keys().chain(self.unsettled.keys()).chain(self.stuck.keys())
    }

    /// Files to look at again now: `settle` or the pause is over.
    pub(super) fn due(&self, now: Instant) -> Vec<Arc<str>> {
        let settled = self.unsettled.iter().filter(|(_, file)| file.since + self.settle <= now).map(|(path, _)| path);
        let retried = self.stuck.iter().filter(|(path, stuck)| {
            stuck.until <= now && !self.ready_at.contains_key(*path) && !self.unsettled.contains_key(*path)
        });
        settled.chain(retried.map(|(path, _)| path)).cloned().collect()
    }

    /// When `due` next has something to say.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let settles = self.unsettled.values().map(|file| file.since + self.settle);
        // As `due` has it: what waits for another reason must not wake for this one.
        let waits = |path: &Arc<str>| !self.ready_at.contains_key(path) && !self.unsettled.contains_key(path);
        let retries = self.stuck.iter().filter(|(path, _)| waits(path)).map(|(_, stuck)| stuck.until);
        settles.chain(retries).min()
    }

    fn unready(&mut self, path: &str) {
        if let Some(mtime) = self.ready_at.remove(path)
            && let Some(stamp) = self.ready.remove(&(mtime, Arc::from(path)))
        {
            self.ready_bytes -= stamp.size;
        }
    }
}

fn same(a: &Stamp, b: &Stamp) -> bool {
    a.same_content_as(b) && a.same_inode_as(b)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn seen(size: u64, mtime_s: i64) -> Seen {
        Seen { stamp: Stamp { size, mtime_ns: mtime_s * SECOND, dev: 1, ino: 1 }, ctime_ns: mtime_s * SECOND }
    }

    #[test]
    fn a_file_is_ready_once_size_and_mtime_stood_still() {
        let (mut pending, start) = (Pending::new(Duration::from_secs(1)), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        pending.observe("a", seen(1, 100), at(0), 100 * SECOND, false);
        assert_eq!((pending.ready_len(), pending.next_due()), (0, Some(at(1000))));
        pending.observe("a", seen(2, 100), at(900), 101 * SECOND, false);
        pending.observe("a", seen(2, 100), at(1800), 102 * SECOND, false);
        assert_eq!(pending.ready_len(), 0, "it grew at 900 ms");
        assert!(pending.due(at(1899)).is_empty());
        assert_eq!(pending.due(at(1900)).len(), 1);
        pending.observe("a", seen(2, 100), at(1900), 102 * SECOND, false);
        assert_eq!((pending.ready_len(), pending.ready_bytes()), (1, 2));
        pending.observe("a", seen(3, 103), at(2000), 103 * SECOND, false);
        assert_eq!((pending.ready_len(), pending.ready_bytes()), (0, 0), "a ready file that changes is not ready");
    }

    #[test]
    fn a_renamed_file_and_an_old_one_are_ready_at_once() {
        let (mut pending, now) = (Pending::new(Duration::from_secs(1)), Instant::now());
        pending.observe("renamed", seen(1, 100), now, 100 * SECOND, true);
        pending.observe("old", seen(1, 100), now, 111 * SECOND, false);
        assert_eq!(pending.ready_len(), 2);
        // An old mtime under a young ctime: somebody sets times, perhaps in mid-copy.
        let copied = Seen { ctime_ns: 110 * SECOND, ..seen(1, 10) };
        pending.observe("copied", copied, now, 111 * SECOND, false);
        assert_eq!(pending.ready_len(), 2);
    }

    #[test]
    fn a_file_that_never_stands_still_is_reported_once() {
        let (mut pending, start) = (Pending::new(Duration::from_secs(3)), Instant::now());
        for second in 0..20 {
            let now = start + Duration::from_secs(second);
            pending.observe("log", seen(second, 100 + second as i64), now, (100 + second as i64) * SECOND, false);
            pending.observe("still", seen(1, 100), now, 101 * SECOND, false);
            let told = pending.restless(now);
            assert_eq!(told.len(), usize::from(second == 15), "after {second} s: {told:?}");
        }
        assert_eq!(pending.ready_len(), 1);
    }

    #[test]
    fn files_are_taken_by_mtime_and_name() {
        let (mut pending, now) = (Pending::new(Duration::ZERO), Instant::now());
        for (path, mtime) in [("c", 1), ("b", 2), ("a", 2), ("d", 0)] {
            pending.observe(path, seen(1, mtime), now, 0, true);
        }
        let mut order = Vec::new();
        while let Some((path, _)) = pending.first() {
            pending.forget(&path);
            order.push(path.to_string());
        }
        assert_eq!(order, ["d", "c", "a", "b"]);
    }

    #[test]
    fn a_file_that_cannot_be_read_waits_longer_each_time() {
        let (mut pending, start) = (Pending::new(Duration::ZERO), Instant::now());
        pending.observe("a", seen(1, 0), start, 0, true);
        pending.set_aside("a", "denied".into(), start);
        assert_eq!((pending.ready_len(), pending.stuck()), (0, Some(("a", "denied"))));
        pending.observe("a", seen(1, 0), start + RETRY_FIRST / 2, 0, true);
        assert_eq!(pending.ready_len(), 0);
        assert_eq!(pending.due(start + RETRY_FIRST).len(), 1);
        pending.observe("a", seen(1, 0), start + RETRY_FIRST, 0, true);
        assert_eq!(pending.ready_len(), 1);
        pending.set_aside("a", "denied".into(), start + RETRY_FIRST);
        assert_eq!(pending.next_due(), Some(start + RETRY_FIRST * 3), "the second pause is twice as long");
    }

    #[test]
    fn what_is_due_next_is_never_over_already() {
        let (mut pending, start) = (Pending::new(Duration::from_secs(300)), Instant::now());
        let retried = start + RETRY_FIRST;
        pending.observe("a", seen(1, 0), start, 1_000 * SECOND, false);
        pending.set_aside("a", "denied".into(), start);
        // It changed meanwhile, and has to stand still first, beside the pause that is over.
        pending.observe("a", seen(2, 1_000), retried, 1_000 * SECOND, false);
        assert!(pending.due(retried).is_empty());
        assert!(pending.next_due().is_none_or(|due| due > retried), "a source that wakes for nothing spins");
    }
}
