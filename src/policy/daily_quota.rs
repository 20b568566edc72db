//! The quota of on-demand captures per 24 hours, and the part of it persisted across restarts.
//!
//! `incidents_per_day` does not apply here: a continuous profiler that pulls three profiles every
//! 15 seconds is a main use of the endpoint. It must neither be limited by that budget nor use up
//! what incidents need. On-demand captures therefore have a separate quota,
//! `budget.on_demand_captures_per_day`, large enough for several profilers; it stops clients that
//! request captures in a loop. A capture counts from its acceptance and is refunded if it produces
//! nothing. Rejected requests and symbol requests do not count.
//!
//! Captures are counted per quarter hour, so that 24 hours take a hundred numbers at any rate. A
//! quarter hour is freed as a whole, 24 hours after its end, so no period of 24 hours exceeds the
//! quota.
//!
//! The saved count exceeds the used count by up to a [lease](DailyQuota::consume). `state.json` is
//! thus written once for many captures, before the first of them. A process that is killed has used
//! up its whole lease, so a process in a crash loop stays within the quota.

use crate::policy::saved_state::SavedQuarterHour;
use std::time::Duration;

use crate::base::{Moment, TimeAnchor};
use crate::policy::incident_budget::DAY;
use crate::policy::saved_state::to_moment;

const QUARTER_HOUR: Duration = Duration::from_secs(15 * 60);
/// Maximum lease: the captures of a continuous profiler in five minutes.
const MAX_LEASE: u64 = 64;

/// On-demand captures of the last 24 hours.
#[derive(Debug)]
pub(crate) struct DailyQuota {
    limit: u64,
    /// Oldest first, without those that no longer count.
    quarter_hours: Vec<QuarterHour>,
    /// True if more was used than is saved.
    dirty: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct QuarterHour {
    start: Moment,
    used: u64,
    saved: u64,
}

impl QuarterHour {
    /// Returns the time at which its captures are freed.
    fn expires_at(&self) -> Moment {
        self.start + QUARTER_HOUR + DAY
    }
}

impl DailyQuota {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit: limit as u64, quarter_hours: Vec::new(), dirty: false }
    }

    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit as u64;
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Continues from the saved counts.
    pub(crate) fn restore(&mut self, anchor: TimeAnchor, saved: &[SavedQuarterHour]) {
        let to_quarter_hour = |saved_quarter: &SavedQuarterHour| QuarterHour {
            start: to_moment(anchor, saved_quarter.from),
            used: saved_quarter.captures,
            saved: saved_quarter.captures,
        };
        self.quarter_hours.extend(saved.iter().map(to_quarter_hour));
        self.quarter_hours.sort_by_key(|quarter| quarter.start);
        self.remove_expired(anchor.moment);
    }

    /// Returns the time at which quota is available again, or `None` if it is not exhausted.
    pub(crate) fn exhausted_until(&self, now: Moment) -> Option<Moment> {
        let mut used = self.used_count(now);
        for quarter in self.quarter_hours_in_window(now) {
            if used < self.limit {
                return None;
            }
            used -= quarter.used;
            if used < self.limit {
                return Some(quarter.expires_at());
            }
        }
        None
    }

    /// Returns the number of captures taken or in progress in the 24 hours before `now`.
    pub(crate) fn used_count(&self, now: Moment) -> u64 {
        self.quarter_hours_in_window(now).map(|quarter| quarter.used).sum()
    }

    /// Counts an accepted capture.
    pub(crate) fn consume(&mut self, now: Moment) {
        self.remove_expired(now);
        let starts_new =
            self.quarter_hours.last().is_none_or(|last| now.since(last.start) >= QUARTER_HOUR);
        if starts_new {
            self.quarter_hours.push(QuarterHour { start: now, used: 0, saved: 0 });
        }
        if let Some(last) = self.quarter_hours.last_mut() {
            last.used += 1;
            self.dirty |= last.used > last.saved;
        }
    }

    /// Refunds the capture accepted at `at`, which produced nothing. The saved count is unchanged:
    /// it is an upper bound.
    pub(crate) fn refund(&mut self, at: Moment) {
        let quarter = self.quarter_hours.iter_mut().rfind(|quarter| quarter.start <= at);
        if let Some(quarter) = quarter {
            quarter.used = quarter.used.saturating_sub(1);
        }
    }

    /// Returns `true` if the state must be saved.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Returns the counts to save.
    pub(crate) fn save(&mut self, anchor: TimeAnchor) -> Vec<SavedQuarterHour> {
        self.dirty = false;
        let lease = self.lease();
        // All quarter hours but the last are complete, so their counts are exact.
        self.quarter_hours.iter_mut().for_each(|quarter| quarter.saved = quarter.used);
        if let Some(last) = self.quarter_hours.last_mut() {
            last.saved = last.used.next_multiple_of(lease);
        }
        let saved = |quarter: &QuarterHour| SavedQuarterHour {
            from: anchor.wall_at(quarter.start),
            captures: quarter.saved,
        };
        self.quarter_hours.iter().map(saved).collect()
    }

    /// Returns the number of captures per save: a thousandth of the quota, so that a restart costs
    /// little, and nothing with a small quota.
    fn lease(&self) -> u64 {
        (self.limit / 1000).clamp(1, MAX_LEASE)
    }

    fn quarter_hours_in_window(&self, now: Moment) -> impl Iterator<Item = &QuarterHour> {
        self.quarter_hours.iter().filter(move |quarter| now < quarter.expires_at())
    }

    fn remove_expired(&mut self, now: Moment) {
        self.quarter_hours.retain(|quarter| now < quarter.expires_at());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn anchor(seconds: u64) -> TimeAnchor {
        let wall: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
        let zero = TimeAnchor { moment: at(0), wall, suspended: Duration::ZERO };
        TimeAnchor { moment: at(seconds), wall: zero.wall_at(at(seconds)), ..zero }
    }

    const DAY: u64 = 24 * 60 * 60;

    #[test]
    fn quota_frees_24_hours_after_quarter_hour_ends() {
        let mut quota = DailyQuota::new(3);
        for second in [0, 60, 5000] {
            assert_eq!(quota.exhausted_until(at(second)), None, "{second}");
            quota.consume(at(second));
        }
        let until = at(900 + DAY);
        for second in [5000, DAY, 900 + DAY - 1] {
            assert_eq!(quota.exhausted_until(at(second)), Some(until), "{second}");
        }
        assert_eq!(quota.exhausted_until(until), None);
        assert_eq!(quota.used_count(until), 1);
        quota.set_limit(1);
        let until = at(5000 + 900 + DAY);
        assert_eq!(quota.exhausted_until(at(5000)), Some(until), "the current limit applies");
    }

    #[test]
    fn refund_frees_quota_of_the_original_quarter_hour() {
        let mut quota = DailyQuota::new(2);
        quota.consume(at(0));
        quota.consume(at(1000));
        assert!(quota.exhausted_until(at(1000)).is_some());
        quota.refund(at(0));
        assert_eq!((quota.exhausted_until(at(1000)), quota.used_count(at(1000))), (None, 1));
        assert_eq!(quota.quarter_hours[0].used, 0, "refunded to its quarter hour");
    }

    #[test]
    fn saved_count_exceeds_used_count_by_less_than_lease() {
        for (limit, lease) in [(3, 1), (1999, 1), (20_000, 20), (100_000, 64), (10_000_000, 64)] {
            let mut quota = DailyQuota::new(limit);
            let mut saved = Vec::new();
            let mut save_count = 0;
            for second in 0..1800 {
                quota.consume(at(second));
                if quota.is_dirty() {
                    saved = quota.save(anchor(second));
                    save_count += 1;
                }
                let mut restored = DailyQuota::new(limit);
                restored.restore(anchor(second), &saved);
                let used = quota.used_count(at(second));
                let found = restored.used_count(at(second));
                assert!((used..used + lease).contains(&found), "{limit}: {found} of {used}");
            }
            assert_eq!(save_count, 2 * 900_u64.div_ceil(lease), "{limit}");
        }
    }

    #[test]
    fn refunded_captures_do_not_make_state_dirty() {
        let mut quota = DailyQuota::new(3);
        quota.consume(at(0));
        assert!(quota.is_dirty());
        let _ = quota.save(anchor(0));
        for second in 0..100 {
            quota.refund(at(second));
            quota.consume(at(second));
            assert!(!quota.is_dirty());
        }
    }

    #[test]
    fn clock_set_back_does_not_enlarge_quota() {
        let mut quota = DailyQuota::new(1);
        let from = anchor(10 * DAY).wall;
        quota.restore(anchor(5000), &[SavedQuarterHour { from, captures: 1 }]);
        assert_eq!(quota.exhausted_until(at(5000)), Some(at(5000 + 900 + DAY)));
    }
}
