//! How busy a job's batch loop is: what a metric shows, and by what daemons share lanes out among each other.

use std::time::{Duration, Instant};

use super::runner::{LONGEST_WAIT, Runner};

/// The loop's time since the last answer.
pub(super) struct Load {
    since: Instant,
    /// Nothing was to be done for so long.
    waited: Duration,
    batches: u32,
    /// With `asap` one batch follows the other at any rate, and the work of each is mostly what a batch costs that has a single
    /// record. That much is no load: more records would come with the same batches. The least mean that was seen.
    least: Option<Duration>,
    asap: bool,
}

impl Load {
    pub(super) fn new(asap: bool) -> Self {
        Self { since: Instant::now(), waited: Duration::ZERO, batches: 0, least: None, asap }
    }

    pub(super) fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    pub(super) fn batch(&mut self) {
        self.batches += 1;
    }

    /// How long the loop worked of the time that passed, where the last answer is at least `window` ago. `fails`: lanes of it
    /// are tried again and again, and whatever it waits for, it has no time for others.
    pub(super) fn tell(&mut self, window: Duration, fails: bool) -> Option<(Duration, Duration)> {
        let passed = self.since.elapsed();
        (passed >= window).then(|| {
            let worked = self.worked_in(passed);
            (if fails { passed } else { worked }, passed)
        })
    }

    fn worked_in(&mut self, passed: Duration) -> Duration {
        let worked = passed.saturating_sub(self.waited);
        let fixed = match worked.checked_div(self.batches) {
            Some(mean) if self.asap => {
                let least = self.least.map_or(mean, |least| least.min(mean));
                self.least = Some(least);
                least * self.batches
            }
            _ => Duration::ZERO,
        };
        *self = Self { since: Instant::now(), waited: Duration::ZERO, batches: 0, ..*self };
        worked.saturating_sub(fixed)
    }
}

impl Runner {
    /// Tells how busy the loop is, about once a second.
    pub(super) fn tell_load(&mut self) {
        let fails = self.is_failing();
        if let Some((worked, passed)) = self.load.tell(LONGEST_WAIT, fails) {
            let busy = worked.div_duration_f64(passed);
            self.job.around.metrics.busy_ratio.with_label_values(&[self.job.name()]).set(busy);
            self.job.sources.iter().for_each(|source| source.worked(worked, passed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn busy(load: &mut Load, batches: u32, worked_ms: u64) -> f64 {
        (0..batches).for_each(|_| load.batch());
        load.waited(SECOND - Duration::from_millis(worked_ms));
        load.worked_in(SECOND).as_secs_f64()
    }

    #[test]
    fn work_is_what_was_not_waited_for() {
        let mut load = Load::new(false);
        assert!((busy(&mut load, 1, 250) - 0.25).abs() < 1e-9);
        assert!((busy(&mut load, 1, 1000) - 1.0).abs() < 1e-9);
        assert!(busy(&mut load, 0, 0).abs() < 1e-9);
        assert_eq!(load.tell(SECOND, false), None, "not yet");
        let told = load.tell(Duration::ZERO, true).map(|(worked, passed)| worked == passed);
        assert_eq!(told, Some(true), "a job that fails has no time");
    }

    #[test]
    fn with_asap_what_the_smallest_batches_cost_is_no_load() {
        let mut load = Load::new(true);
        assert!(busy(&mut load, 100, 500).abs() < 1e-9, "5 ms each");
        assert!(busy(&mut load, 200, 1000).abs() < 1e-9, "twice as many of these: they follow one another");
        assert!((busy(&mut load, 50, 1000) - 0.75).abs() < 1e-9, "20 ms each");
        assert!((busy(&mut load, 2, 1000) - 0.99).abs() < 1e-9);
    }
}
