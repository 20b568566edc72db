//! Time, in two kinds that are never mixed: [`Moment`] orders and measures, `jiff::Timestamp` names.
//!
//! Everything inside marple is dated by `CLOCK_MONOTONIC`, the clock Perfetto calls 3 and the one a
//! wall-clock step cannot turn back. A wall time is derived from a moment through one [`Anchor`], so
//! that two numbers in one incident never disagree about the order of things.

use std::ops::{Add, Sub};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// A point on `CLOCK_MONOTONIC`, in nanoseconds since the machine's boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// The moment `nanos` nanoseconds after the clock's zero.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's zero.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this moment is; zero when it is not after it.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Where the time comes from; the tests bring their own.
pub trait Clock: Send + Sync {
    /// The present moment.
    fn now(&self) -> Moment;

    /// The present wall time.
    fn wall(&self) -> Timestamp;

    /// How long the machine has slept since its boot; the clock of [`Moment`] stood still meanwhile.
    fn suspended(&self) -> Duration {
        Duration::ZERO
    }

    /// All three, read together.
    fn anchor(&self) -> Anchor {
        Anchor { moment: self.now(), wall: self.wall(), suspended: self.suspended() }
    }
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    fn read(id: ClockId) -> Moment {
        let time = clock_gettime(id);
        Moment(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        Self::read(ClockId::Monotonic)
    }

    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }

    // Elsewhere nobody tells.
    #[cfg(target_os = "linux")]
    fn suspended(&self) -> Duration {
        let now = self.now();
        Self::read(ClockId::Boottime).since(now)
    }
}

/// A clock that moves only when told to.
#[derive(Debug)]
pub struct ManualClock {
    nanos: AtomicU64,
    start: Timestamp,
    /// How far the wall clock was set ahead, in milliseconds.
    step: AtomicI64,
}

impl ManualClock {
    /// A clock that stands at moment zero, which is `start` on the wall.
    pub fn new(start: Timestamp) -> Self {
        Self { nanos: AtomicU64::new(0), start, step: AtomicI64::new(0) }
    }

    /// Moves the clock on.
    pub fn advance(&self, by: Duration) {
        self.nanos.fetch_add(by.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Sets the wall clock ahead, or back, by `by`; the monotonic clock does not notice.
    pub fn step_wall(&self, by: SignedDuration) {
        let millis = i64::try_from(by.as_millis()).unwrap_or_default();
        self.step.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Moment {
        Moment(self.nanos.load(Ordering::Relaxed))
    }

    fn wall(&self) -> Timestamp {
        let step = SignedDuration::from_millis(self.step.load(Ordering::Relaxed));
        let start = self.start.checked_add(step).unwrap_or(self.start);
        Anchor { moment: Moment(0), wall: start, suspended: Duration::ZERO }.wall_at(self.now())
    }
}

/// One moment whose wall time is known, so that every other moment's is.
#[derive(Clone, Copy, Debug)]
pub struct Anchor {
    /// The moment.
    pub moment: Moment,
    /// What the wall clock showed then.
    pub wall: Timestamp,
    /// How far `CLOCK_BOOTTIME` was ahead of `moment` then.
    pub suspended: Duration,
}

impl Anchor {
    /// The wall time at `moment`; the anchor's own when that is outside the calendar.
    pub fn wall_at(&self, moment: Moment) -> Timestamp {
        let nanos = moment.0 as i128 - self.moment.0 as i128;
        i64::try_from(nanos)
            .ok()
            .and_then(|nanos| self.wall.checked_add(SignedDuration::from_nanos(nanos)).ok())
            .unwrap_or(self.wall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anchor_dates_moments_on_both_sides_of_it() {
        let wall: Timestamp = "2026-11-23T02:57:33.123Z".parse().unwrap();
        let moment = Moment::from_nanos(5_000_000_000);
        let anchor = Anchor { moment, wall, suspended: Duration::ZERO };
        let later = anchor.wall_at(Moment::from_nanos(6_500_000_000));
        let earlier = anchor.wall_at(Moment::from_nanos(4_000_000_000));
        assert_eq!(later.to_string(), "2026-11-23T02:57:34.623Z");
        assert_eq!(earlier.to_string(), "2026-11-23T02:57:32.123Z");
    }

    #[test]
    fn the_system_clock_agrees_with_std() {
        let before = std::time::Instant::now();
        let first = SystemClock.now();
        std::thread::sleep(Duration::from_millis(2));
        let measured = SystemClock.now().since(first);
        assert!(measured >= Duration::from_millis(2) && measured <= before.elapsed());
    }
}
