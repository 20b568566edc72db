//! Clocks and the two kinds of time, which are never mixed.
//!
//! [`Moment`] is used for ordering and measuring; `jiff::Timestamp` is used for display. All
//! records inside marple carry `CLOCK_MONOTONIC`, which wall-clock steps cannot turn back and which
//! Perfetto identifies as clock 3. Wall-clock times are derived from moments through one
//! [`TimeAnchor`], so that all times of an incident agree on the order of events.

use std::ops::{Add, Sub};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// A point on `CLOCK_MONOTONIC`, in nanoseconds since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// Creates a moment `nanos` nanoseconds after the clock's zero.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Returns the nanoseconds since the clock's zero.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the time from `earlier` to this moment. Zero if `earlier` is later.
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

/// A source of time. Tests provide their own.
pub trait Clock: Send + Sync {
    /// Returns the current moment.
    fn now(&self) -> Moment;

    /// Returns the current wall-clock time.
    fn wall(&self) -> Timestamp;

    /// Returns the time the machine has been suspended since boot. [`Moment`] does not include it.
    fn suspended(&self) -> Duration {
        Duration::ZERO
    }

    /// Reads all three clocks together.
    fn anchor(&self) -> TimeAnchor {
        TimeAnchor { moment: self.now(), wall: self.wall(), suspended: self.suspended() }
    }
}

/// The clocks of the machine.
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

    // Other systems have no clock that includes suspended time.
    #[cfg(target_os = "linux")]
    fn suspended(&self) -> Duration {
        let now = self.now();
        Self::read(ClockId::Boottime).since(now)
    }
}

/// A clock for tests that advances only on request.
#[derive(Debug)]
pub struct ManualClock {
    nanos: AtomicU64,
    start: Timestamp,
    /// Offset of the wall clock, in milliseconds.
    wall_offset_ms: AtomicI64,
}

impl ManualClock {
    /// Creates a clock at moment zero, which corresponds to the wall-clock time `start`.
    pub fn new(start: Timestamp) -> Self {
        Self { nanos: AtomicU64::new(0), start, wall_offset_ms: AtomicI64::new(0) }
    }

    /// Advances both clocks by `by`.
    pub fn advance(&self, by: Duration) {
        self.nanos.fetch_add(by.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Steps the wall clock by `by`, forward or back. The monotonic clock is unaffected.
    pub fn step_wall(&self, by: SignedDuration) {
        let millis = i64::try_from(by.as_millis()).unwrap_or_default();
        self.wall_offset_ms.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Moment {
        Moment(self.nanos.load(Ordering::Relaxed))
    }

    fn wall(&self) -> Timestamp {
        let offset = SignedDuration::from_millis(self.wall_offset_ms.load(Ordering::Relaxed));
        let start = self.start.checked_add(offset).unwrap_or(self.start);
        TimeAnchor { moment: Moment(0), wall: start, suspended: Duration::ZERO }.wall_at(self.now())
    }
}

/// A moment with known wall-clock time, from which the wall-clock time of any other moment is
/// computed.
#[derive(Clone, Copy, Debug)]
pub struct TimeAnchor {
    /// Moment at which the clocks were read.
    pub moment: Moment,
    /// Wall-clock time at `moment`.
    pub wall: Timestamp,
    /// `CLOCK_BOOTTIME - CLOCK_MONOTONIC` at `moment`.
    pub suspended: Duration,
}

impl TimeAnchor {
    /// Returns the wall-clock time at `moment`, or that of the anchor if the result is out of
    /// range.
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
    fn wall_at_converts_moments_before_and_after_anchor() {
        let wall: Timestamp = "2026-11-23T02:57:33.123Z".parse().unwrap();
        let moment = Moment::from_nanos(5_000_000_000);
        let anchor = TimeAnchor { moment, wall, suspended: Duration::ZERO };
        let later = anchor.wall_at(Moment::from_nanos(6_500_000_000));
        let earlier = anchor.wall_at(Moment::from_nanos(4_000_000_000));
        assert_eq!(later.to_string(), "2026-11-23T02:57:34.623Z");
        assert_eq!(earlier.to_string(), "2026-11-23T02:57:32.123Z");
    }

    #[test]
    fn system_clock_agrees_with_instant() {
        let before = std::time::Instant::now();
        let first = SystemClock.now();
        std::thread::sleep(Duration::from_millis(2));
        let measured = SystemClock.now().since(first);
        assert!(measured >= Duration::from_millis(2) && measured <= before.elapsed());
    }
}
