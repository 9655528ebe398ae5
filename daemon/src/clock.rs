//! The clock of plans: the machine's, unless it leaps.
//!
//! Plans never go back in time, so one that is made while the clock is wrong by years keeps `now()` there for as long. A clock
//! that moves by more than [`LEAP`] against the time that really passed is therefore not followed: plans go on from the
//! last time that was believed, by the monotonic clock, and the log says so once a minute. When the clock is back within
//! the hour it is followed again. A new process believes what it finds: nobody else could tell it. An operator who knows
//! better says `tidemill checkpoint resolve --clock`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tidemill_checkpoint::Timestamp;

/// A clock may move so far against the time that passed: by a correction, by drift, by a summer time set by hand.
const LEAP: Duration = Duration::from_secs(3600);
/// A job's clock is complained of so often.
const COMPLAINTS: Duration = Duration::from_secs(60);

/// The clock of a process. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    believed: Believed,
    complained: BTreeMap<String, Instant>,
}

/// A time that was believed, and how long the machine had been up then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Believed {
    time: Timestamp,
    up: Duration,
}

/// What a look at the clock gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The time for a plan.
    pub time: Timestamp,
    /// The clock leapt and is not followed: it is ahead by these milliseconds, or behind where negative.
    pub leap_ms: Option<i64>,
}

/// The time where `machine` is what the clock says, and the machine has been up for `up`.
fn read(believed: Believed, machine: Timestamp, up: Duration) -> Reading {
    let passed = i64::try_from(up.saturating_sub(believed.up).as_millis()).unwrap_or(i64::MAX);
    let expected = believed.time.0.saturating_add(passed);
    let leap = machine.0.saturating_sub(expected);
    if u128::from(leap.unsigned_abs()) > LEAP.as_millis() {
        Reading { time: Timestamp(expected), leap_ms: Some(leap) }
    } else {
        Reading { time: machine, leap_ms: None }
    }
}

/// How long the machine has been up, the time that it slept included, which [`Instant`] leaves out: a laptop that wakes up
/// has a clock that is right.
fn up() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

impl Clock {
    /// The clock of a process that starts now: it believes the machine's.
    pub fn start() -> Self {
        let believed = Believed { time: Timestamp::now(), up: up().unwrap_or_default() };
        Self(Arc::new(Mutex::new(State { believed, complained: BTreeMap::new() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time for a plan.
    pub fn read(&self) -> Reading {
        let machine = Timestamp::now();
        // Where nothing says how much time passed, no leap can be seen.
        let Some(up) = up() else { return Reading { time: machine, leap_ms: None } };
        let mut state = self.state();
        let reading = read(state.believed, machine, up);
        if reading.leap_ms.is_none() {
            state.believed = Believed { time: machine, up };
        }
        reading
    }

    /// The machine's clock is right, says an operator.
    pub fn believe(&self) -> Timestamp {
        let machine = Timestamp::now();
        self.state().believed = Believed { time: machine, up: up().unwrap_or_default() };
        machine
    }

    /// Whether a job's clock is to be complained of now: once a minute.
    pub fn is_complaint_due(&self, job: &str) -> bool {
        let (now, mut state) = (Instant::now(), self.state());
        let is_due = state.complained.get(job).is_none_or(|last| now.duration_since(*last) >= COMPLAINTS);
        if is_due {
            state.complained.insert(job.to_owned(), now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn at(time: i64, up_s: u64) -> Believed {
        Believed { time: Timestamp(time), up: Duration::from_secs(up_s) }
    }

    #[test]
    fn a_leap_is_held_and_everything_else_followed() {
        let believed = at(1_000 * HOUR, 100);
        let later = Duration::from_secs(100 + 60);
        let expected = 1_000 * HOUR + 60_000;
        for off in [0, 1, -1, HOUR, -HOUR, 1_800_000] {
            let machine = Timestamp(expected + off);
            assert_eq!(read(believed, machine, later), Reading { time: machine, leap_ms: None }, "{off}");
        }
        for off in [HOUR + 1, -HOUR - 1, 20 * 365 * 24 * HOUR, -57 * 365 * 24 * HOUR, i64::MAX / 2] {
            let held = Reading { time: Timestamp(expected), leap_ms: Some(off) };
            assert_eq!(read(believed, Timestamp(expected + off), later), held, "{off}");
        }
        // A machine that slept for a day, or a job that had nothing to do for a month.
        let month = 30 * 24 * 3600;
        let machine = Timestamp(believed.time.0 + i64::from(month) * 1_000 + 5_000);
        let reading = read(believed, machine, Duration::from_secs(100 + month as u64));
        assert_eq!(reading, Reading { time: machine, leap_ms: None });
        assert_eq!(read(believed, Timestamp(i64::MAX), later).time, Timestamp(expected));
    }

    #[test]
    fn a_process_believes_what_it_finds_and_what_it_is_told() {
        let clock = Clock::start();
        assert_eq!(clock.read().leap_ms, None);
        // As if it had begun years ahead: what the machine says now is a leap back, until somebody says that it is right.
        clock.state().believed.time = Timestamp(Timestamp::now().0 + 20 * 365 * 24 * HOUR);
        let held = clock.read();
        assert!(held.leap_ms.is_some_and(|leap| leap < -19 * 365 * 24 * HOUR), "{held:?}");
        assert!(clock.read().time >= held.time, "it goes on");
        clock.believe();
        assert_eq!(clock.read().leap_ms, None);
    }

    #[test]
    fn a_complaint_a_minute_for_each_job() {
        let clock = Clock::start();
        assert!(clock.is_complaint_due("a") && clock.is_complaint_due("b"));
        assert!(!clock.is_complaint_due("a") && !clock.is_complaint_due("b"));
    }
}
