//! Who may be connected, and how much of unfinished records may be held in memory.
//!
//! A connection has a [`Seat`]. There are so many of them ([`Seats::new`]), and one address has at most half, so that one
//! client that opens connections and forgets them keeps nobody else out. Where all seats are taken, the connection that
//! was silent for longest gives its seat up, once it was silent for [`SILENT`].
//!
//! What has come of a record that is not finished is held in memory. All of a source's unfinished records together are
//! bounded; beyond the bound, of the connections with one only that is read whose unfinished record is the oldest, so that
//! records are finished one after another. A connection whose sender sends nothing meanwhile is closed after [`STALLED`],
//! one whose record is unfinished for [`UNFINISHED`] as well. Connections without an unfinished record are read in small
//! pieces: short records pass.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// A connection that was silent for this long gives its seat up to one that has none.
pub const SILENT: Duration = Duration::from_secs(10);
/// How long the sender of an unfinished record may be silent while unfinished records take too much memory.
pub const STALLED: Duration = Duration::from_secs(5);
/// How long a record may be unfinished meanwhile, however its sender goes on.
pub const UNFINISHED: Duration = Duration::from_secs(30);
/// A connection without an unfinished record is read by so many bytes meanwhile.
const CROWDED_READ_BYTES: usize = 4 * 1024;
/// What unfinished records may take in any case, in bytes; more where single records are large.
const UNFINISHED_BYTES: usize = 4 * 1024 * 1024;
/// And so many records of the greatest length.
const UNFINISHED_RECORDS: usize = 4;

/// The seats of a source.
pub struct Seats {
    most: usize,
    most_unfinished: usize,
    began: Instant,
    taken: Mutex<Vec<Arc<Seat>>>,
    unfinished: AtomicUsize,
}

/// One connection's seat.
pub struct Seat {
    address: IpAddr,
    /// When bytes came last, in milliseconds since `Seats::began`.
    heard: AtomicU64,
    /// Bytes of its unfinished record, and since when there are any.
    unfinished: AtomicUsize,
    since: AtomicU64,
    is_closing: AtomicBool,
    closing: Notify,
}

/// A seat, given back when dropped.
pub struct Taken {
    seats: Arc<Seats>,
    seat: Arc<Seat>,
}

/// Why there is no seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// All are taken; one may become free soon.
    Full,
    /// This address has its half.
    OneAddress,
}

impl Seats {
    /// `most` connections at once; `max_record_bytes` is the length of the longest record.
    pub fn new(most: usize, max_record_bytes: usize) -> Self {
        Self {
            most: most.max(1),
            most_unfinished: UNFINISHED_BYTES.max(max_record_bytes.saturating_mul(UNFINISHED_RECORDS)),
            began: Instant::now(),
            taken: Mutex::default(),
            unfinished: AtomicUsize::new(0),
        }
    }

    /// Most connections of one address.
    pub fn most_of_one(&self) -> usize {
        self.most.div_ceil(2)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Seat>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether all seats are taken.
    pub fn are_full(&self) -> bool {
        self.lock().len() >= self.most
    }

    /// A seat for a connection. Where there is none, the one that was silent for longest is asked to leave, if it was silent
    /// for [`SILENT`]; its seat is free a moment later.
    pub fn take(seats: &Arc<Self>, address: IpAddr) -> Result<Taken, Refused> {
        let address = address.to_canonical();
        let mut taken = seats.lock();
        let of_one = taken.iter().filter(|seat| seat.address == address).count();
        let refused = if of_one >= seats.most_of_one() && seats.most > 1 {
            Refused::OneAddress
        } else if taken.len() >= seats.most {
            Refused::Full
        } else {
            let now = seats.now();
            let seat = Arc::new(Seat {
                address,
                heard: AtomicU64::new(now),
                unfinished: AtomicUsize::new(0),
                since: AtomicU64::new(now),
                is_closing: AtomicBool::new(false),
                closing: Notify::new(),
            });
            taken.push(seat.clone());
            return Ok(Taken { seats: seats.clone(), seat });
        };
        seats.close_silent(taken.iter().filter(|seat| refused == Refused::Full || seat.address == address));
        Err(refused)
    }

    /// Asks the connection that was silent for longest to leave; see [`Seats::take`].
    pub fn make_room(&self) {
        let taken = self.lock();
        if taken.len() >= self.most {
            self.close_silent(taken.iter());
        }
    }

    /// Asks the one of these that was silent for longest to leave, if it was silent for [`SILENT`].
    fn close_silent<'s>(&self, seats: impl Iterator<Item = &'s Arc<Seat>>) {
        let silent = seats.min_by_key(|seat| seat.heard.load(Ordering::Relaxed));
        if let Some(seat) = silent.filter(|seat| seat.silence(self.now()) >= SILENT) {
            seat.close();
        }
    }

    /// Whether unfinished records take more memory than they may.
    pub fn hold_too_much(&self) -> bool {
        self.unfinished.load(Ordering::Relaxed) > self.most_unfinished
    }
}

impl Seat {
    fn silence(&self, now: u64) -> Duration {
        Duration::from_millis(now.saturating_sub(self.heard.load(Ordering::Relaxed)))
    }

    fn close(&self) {
        self.is_closing.store(true, Ordering::Release);
        self.closing.notify_one();
    }
}

impl Taken {
    /// Bytes came, or would have been read if this side had had room.
    pub fn hear(&self) {
        self.seat.heard.store(self.seats.now(), Ordering::Relaxed);
    }

    /// How long nothing came.
    pub fn silence(&self) -> Duration {
        self.seat.silence(self.seats.now())
    }

    /// Completes when this connection has to give its seat up.
    pub async fn closing(&self) {
        while !self.seat.is_closing.load(Ordering::Acquire) {
            self.seat.closing.notified().await;
        }
    }

    /// The connection holds `bytes` of an unfinished record now; `is_next`: of another one than before.
    pub fn hold(&self, bytes: usize, is_next: bool) {
        let before = self.seat.unfinished.swap(bytes, Ordering::Relaxed);
        if bytes > 0 && (is_next || before == 0) {
            self.seat.since.store(self.seats.now(), Ordering::Relaxed);
        }
        if bytes >= before {
            self.seats.unfinished.fetch_add(bytes - before, Ordering::Relaxed);
        } else {
            self.seats.unfinished.fetch_sub(before - bytes, Ordering::Relaxed);
        }
    }

    /// Whether it holds a part of a record.
    pub fn holds(&self) -> bool {
        self.seat.unfinished.load(Ordering::Relaxed) > 0
    }

    /// How many bytes of this connection may be read at once as far as unfinished records are concerned. Short records of
    /// others pass beside long ones that are not finished.
    pub fn room(&self) -> usize {
        if !self.seats.hold_too_much() || self.is_oldest() {
            usize::MAX
        } else if self.holds() {
            0
        } else {
            CROWDED_READ_BYTES
        }
    }

    /// Whether its record was begun so long ago that it gives way to others, where unfinished records take too much.
    pub fn takes_too_long(&self) -> bool {
        let age = self.seats.now().saturating_sub(self.seat.since.load(Ordering::Relaxed));
        self.holds() && Duration::from_millis(age) >= UNFINISHED
    }

    /// Whether no unfinished record was begun before this connection's.
    fn is_oldest(&self) -> bool {
        let taken = self.seats.lock();
        let held = taken.iter().filter(|seat| seat.unfinished.load(Ordering::Relaxed) > 0);
        let oldest = held.min_by_key(|seat| seat.since.load(Ordering::Relaxed));
        oldest.is_none_or(|oldest| Arc::ptr_eq(oldest, &self.seat))
    }

    /// The bounds that this seat belongs to.
    pub fn seats(&self) -> &Seats {
        &self.seats
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.hold(0, false);
        self.seats.lock().retain(|seat| !Arc::ptr_eq(seat, &self.seat));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    /// As if the connection had been silent for that long.
    fn silence(taken: &Taken, seats: &Arc<Seats>, lasted: Duration) {
        let ago = u64::try_from(lasted.as_millis()).unwrap();
        taken.seat.heard.store(seats.now().saturating_sub(ago), Ordering::Relaxed);
    }

    fn old(most: usize) -> Arc<Seats> {
        let mut seats = Seats::new(most, 1);
        seats.began -= Duration::from_secs(3600);
        Arc::new(seats)
    }

    #[test]
    fn one_address_has_half_of_the_seats() {
        let seats = old(4);
        let held: Vec<_> = (0..2).map(|_| Seats::take(&seats, address(1)).ok().unwrap()).collect();
        assert_eq!(Seats::take(&seats, address(1)).err(), Some(Refused::OneAddress));
        let others: Vec<_> = (0..2).map(|_| Seats::take(&seats, address(2)).ok().unwrap()).collect();
        assert_eq!(Seats::take(&seats, address(3)).err(), Some(Refused::Full));
        drop(held);
        assert!(Seats::take(&seats, address(3)).is_ok());
        drop(others);
        assert!(seats.lock().is_empty());
    }

    #[tokio::test]
    async fn the_longest_silent_one_gives_its_seat_up_and_nobody_who_was_heard() {
        let seats = old(3);
        let held: Vec<_> = (1..4).map(|n| Seats::take(&seats, address(n)).ok().unwrap()).collect();
        silence(&held[0], &seats, SILENT - Duration::from_secs(1));
        assert_eq!(Seats::take(&seats, address(9)).err(), Some(Refused::Full));
        assert!(held.iter().all(|taken| !taken.seat.is_closing.load(Ordering::Acquire)));
        silence(&held[1], &seats, SILENT + Duration::from_secs(1));
        silence(&held[2], &seats, SILENT + Duration::from_secs(2));
        assert_eq!(Seats::take(&seats, address(9)).err(), Some(Refused::Full));
        held[2].closing().await;
        assert!(!held[1].seat.is_closing.load(Ordering::Acquire));
    }

    #[test]
    fn beyond_the_bound_the_oldest_unfinished_record_alone_goes_on() {
        let seats = old(10);
        let held: Vec<_> = (0..3).map(|n| Seats::take(&seats, address(n)).ok().unwrap()).collect();
        for (n, taken) in held.iter().enumerate() {
            taken.hold(UNFINISHED_BYTES / 3, false);
            taken.seat.since.store(n as u64, Ordering::Relaxed);
        }
        let may_read = |taken: &Taken| taken.room() > 0;
        assert!(held.iter().all(may_read));
        let other = Seats::take(&seats, address(9)).ok().unwrap();
        held[2].hold(UNFINISHED_BYTES, false);
        assert_eq!(held.iter().map(may_read).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(other.room(), CROWDED_READ_BYTES);
        assert!(held[1].takes_too_long(), "it was begun an hour ago");
        held[0].hold(0, false);
        assert_eq!(held.iter().map(may_read).collect::<Vec<_>>(), [true, true, false]);
        drop((held, other));
        assert_eq!(seats.unfinished.load(Ordering::Relaxed), 0);
    }
}
