//! Measurement of time across processes, with clocks of which one may be wrong.

use std::sync::OnceLock;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::clock::{Moment, TimeAnchor};

/// A clock reading that a later process can compare with its own.
///
/// Within one boot, `CLOCK_BOOTTIME` gives the exact elapsed time regardless of wall-clock changes.
/// After a reboot or on another machine, only the wall clock is available.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReading {
    /// Kernel boot ID. Empty if the kernel provides none.
    boot: String,
    /// Milliseconds since boot, including suspended time.
    boottime_ms: u64,
    /// Wall-clock time.
    pub wall: Timestamp,
}

/// The time elapsed between two readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elapsed {
    /// Measured by `CLOCK_BOOTTIME`: exact.
    Exact(Duration),
    /// Measured by the wall clock, which may have been changed in between. Zero if it went back.
    WallClock(Duration),
}

impl ClockReading {
    /// Creates a reading of `anchor` in this boot.
    pub fn new(anchor: TimeAnchor) -> Self {
        let since_boot = anchor.moment.since(Moment::default()) + anchor.suspended;
        Self {
            boot: boot_id().to_owned(),
            boottime_ms: u64::try_from(since_boot.as_millis()).unwrap_or(u64::MAX),
            wall: anchor.wall,
        }
    }

    /// Creates a reading that has only a wall-clock time.
    pub fn from_wall(wall: Timestamp) -> Self {
        Self { boot: String::new(), boottime_ms: 0, wall }
    }

    /// Returns the time elapsed from `earlier` to this reading.
    pub fn elapsed_since(&self, earlier: &Self) -> Elapsed {
        let same_boot = !self.boot.is_empty() && self.boot == earlier.boot;
        match self.boottime_ms.checked_sub(earlier.boottime_ms) {
            Some(millis) if same_boot => Elapsed::Exact(Duration::from_millis(millis)),
            _ => {
                let by_wall = self.wall.duration_since(earlier.wall);
                Elapsed::WallClock(Duration::try_from(by_wall).unwrap_or_default())
            }
        }
    }
}

/// Returns the kernel boot ID, or an empty string if there is none.
fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        text.trim().to_owned()
    })
}

/// A past time on the monotonic clock, which may precede that clock's zero (the boot).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventTime {
    at: Moment,
    /// Time before `at`. Nonzero only if `at` is the clock's zero.
    before_zero: Duration,
}

impl EventTime {
    /// Creates the time that was `age` before `now`.
    pub fn ago(now: Moment, age: Duration) -> Self {
        let since_zero = now.since(Moment::default());
        Self { at: now - age, before_zero: age.saturating_sub(since_zero) }
    }

    /// Returns its age at `now`.
    pub fn age(self, now: Moment) -> Duration {
        now.since(self.at).saturating_add(self.before_zero)
    }

    /// Returns the moment at which its age is `age`, or the clock's zero if that is earlier.
    pub fn time_at_age(self, age: Duration) -> Moment {
        self.at + age.saturating_sub(self.before_zero)
    }
}

impl From<Moment> for EventTime {
    fn from(at: Moment) -> Self {
        Self { at, before_zero: Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(hours: u64) -> Moment {
        Moment::from_nanos(hours * 3600 * 1_000_000_000)
    }

    fn reading(hours: u64, suspended: Duration, wall: &str) -> ClockReading {
        let mut result = ClockReading::new(TimeAnchor {
            moment: at(hours),
            wall: wall.parse().unwrap(),
            suspended,
        });
        result.boot = "this boot".to_owned();
        result
    }

    #[test]
    fn elapsed_ignores_wall_clock_within_one_boot() {
        let first = reading(1, Duration::ZERO, "2026-11-23T12:00:00Z");
        for wall in ["2026-11-23T12:00:00Z", "2036-01-01T00:00:00Z", "1970-01-01T00:00:00Z"] {
            let later = reading(3, HOUR, wall);
            assert_eq!(later.elapsed_since(&first), Elapsed::Exact(3 * HOUR), "{wall}");
        }
    }

    #[test]
    fn elapsed_across_boots_uses_wall_clock_and_saturates() {
        let first = reading(5, Duration::ZERO, "2026-11-23T12:00:00Z");
        for (hours, boot, wall, passed) in [
            (1, "this boot", "2026-11-23T13:00:00Z", HOUR),
            (9, "another boot", "2026-11-23T13:00:00Z", HOUR),
            (9, "", "2026-11-23T11:00:00Z", Duration::ZERO),
        ] {
            let mut later = reading(hours, Duration::ZERO, wall);
            later.boot = boot.to_owned();
            assert_eq!(later.elapsed_since(&first), Elapsed::WallClock(passed), "{boot} {wall}");
        }
    }

    #[test]
    fn event_before_boot_keeps_its_age() {
        let event = EventTime::ago(at(1), 5 * HOUR);
        assert_eq!(event.age(at(1)), 5 * HOUR);
        assert_eq!(event.age(at(3)), 7 * HOUR);
        assert_eq!(event.time_at_age(24 * HOUR), at(20));
        assert_eq!(event.time_at_age(HOUR), at(0));
        assert_eq!(EventTime::from(at(2)).time_at_age(HOUR), at(3));
    }
}
