//! The captures of one rule in the last 24 hours, and their effect on its next capture.
//!
//! Repeats are delayed increasingly. The n-th incident in a day that is no worse than an earlier
//! one waits `min(cooldown * 2^(n-1), max(24 h, cooldown))`. A cooldown of 1 h permits about five
//! equal incidents a day, 1 min about ten. Three kinds of captures need neither wait nor budget,
//! and have other bounds:
//!
//! - [`FireKind::Worse`]: the value is worse than at every capture of the day by one step, the same
//!   as within an incident: `headroom <= 2/3 * before`, or `value >= 1.5 * before` without a limit.
//!   A forecast that reaches the limit in at most 2/3 of the time of every captured forecast also
//!   counts. Both are geometric: from 80 % there are eight steps.
//! - [`FireKind::Critical`]: the value is beyond `critical` again, [`CRITICAL_INTERVAL`] after the
//!   last capture: six a day.
//! - Both together are limited to [`MAX_URGENT`] a day.

mod candidate;

use std::time::Duration;

use super::LastFire;
use crate::base::{EventTime, Moment};
pub(super) use candidate::{
    FireCandidate, MIN_HEADROOM_FRACTION, WORSE_HEADROOM_FRACTION, WORSE_VALUE_FACTOR,
};
use candidate::{is_worse, merge_worst};

/// Length of the history.
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Interval after which a value beyond `critical` is captured again.
pub(super) const CRITICAL_INTERVAL: Duration = Duration::from_secs(4 * 60 * 60);
/// Maximum number of incidents a day that one rule may open regardless of cooldown and budget.
const MAX_URGENT: usize = 16;
/// Maximum number of records. At most 16 are urgent; a rule with a cooldown of a minute has ten
/// repeats.
const MAX_RECORDS: usize = 32;

/// Reason why a rule was allowed to open an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FireKind {
    /// The value was worse than at every capture of this rule in the last 24 hours, or this was the
    /// first.
    Worse,
    /// The value was beyond `critical`, and the last capture was hours ago.
    Critical,
    /// The value was no worse than an earlier one, and the wait was over.
    Repeat,
}

impl FireKind {
    /// Returns `true` if neither cooldown nor budget apply.
    pub fn is_urgent(self) -> bool {
        self != Self::Repeat
    }
}

/// One incident of a rule, with the worst value captured in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FireRecord {
    /// Time of its last capture.
    pub at: EventTime,
    /// The worst value on which it fired.
    pub worst_fire: LastFire,
    /// The shortest forecast on which it fired, or `None` if no condition was a forecast.
    pub forecast: Option<Duration>,
    /// Reason why it was opened.
    pub kind: FireKind,
}

/// The incidents of one rule within a day, oldest first. Allocates once.
#[derive(Clone, Debug)]
pub(super) struct FireHistory {
    records: Vec<FireRecord>,
}

impl Default for FireHistory {
    fn default() -> Self {
        Self { records: Vec::with_capacity(MAX_RECORDS) }
    }
}

impl FireHistory {
    /// Restores the records of an earlier process.
    pub(super) fn restore(&mut self, records: &[FireRecord]) {
        self.records.clear();
        let first = records.len().saturating_sub(MAX_RECORDS);
        self.records.extend_from_slice(records.get(first..).unwrap_or_default());
    }

    pub(super) fn records(&self) -> &[FireRecord] {
        &self.records
    }

    pub(super) fn clear(&mut self) {
        self.records.clear();
    }

    /// Records the opening of an incident.
    pub(super) fn record_opened(&mut self, now: Moment, candidate: &FireCandidate, kind: FireKind) {
        if self.records.len() >= MAX_RECORDS {
            self.records.remove(self.eviction_index(candidate.lower_is_worse));
        }
        let FireCandidate { fire, forecast, .. } = *candidate;
        self.records.push(FireRecord { at: now.into(), worst_fire: fire, forecast, kind });
    }

    /// Records another capture in the last incident.
    pub(super) fn record_recapture(&mut self, now: Moment, candidate: &FireCandidate) {
        match self.records.last_mut() {
            Some(last) => {
                last.at = now.into();
                merge_worst(last, candidate);
            }
            None => self.record_opened(now, candidate, FireKind::Worse),
        }
    }

    /// Removes the last incident, because it could not be opened.
    pub(super) fn remove_last(&mut self) {
        self.records.pop();
    }

    /// Returns the reason why `candidate` needs neither wait nor budget, or `None` if it is a
    /// repeat.
    pub(super) fn urgency(
        &self,
        now: Moment,
        window: Duration,
        candidate: &FireCandidate,
        is_critical: bool,
    ) -> Option<FireKind> {
        let in_window = || self.records_within(now, window);
        if self.records_within(now, DAY).filter(|record| record.kind.is_urgent()).count()
            >= MAX_URGENT
        {
            return None;
        }
        let is_worse = in_window().all(|record| candidate.is_worse_than(record))
            || candidate.forecast.is_some()
                && in_window().all(|record| candidate.is_sooner_than(record));
        if is_worse {
            return Some(FireKind::Worse);
        }
        let time_since_last =
            self.records.last().map_or(Duration::MAX, |record| record.at.age(now));
        (is_critical && time_since_last >= CRITICAL_INTERVAL).then_some(FireKind::Critical)
    }

    /// Returns the number of repeats in the day before `now`.
    pub(super) fn repeat_count(&self, now: Moment) -> usize {
        self.records_within(now, DAY).filter(|record| record.kind == FireKind::Repeat).count()
    }

    /// Returns the number of incidents in the day before `now`.
    pub(super) fn incident_count(&self, now: Moment) -> usize {
        self.records_within(now, DAY).count()
    }

    /// Returns the time at which the next repeat may be captured, if the last capture ended at
    /// `captured`. The wait gets shorter when an old repeat leaves the day: the earliest of all
    /// these times counts.
    pub(super) fn next_repeat_at(
        &self,
        now: Moment,
        captured: EventTime,
        cooldown: Duration,
    ) -> Moment {
        let repeats = self.repeat_count(now);
        let mut until = captured.time_at_age(repeat_delay(cooldown, repeats));
        let old = self.records_within(now, DAY).filter(|record| record.kind == FireKind::Repeat);
        for (expired, record) in old.enumerate() {
            let shorter = captured.time_at_age(repeat_delay(cooldown, repeats - expired - 1));
            until = until.min(shorter.max(record.at.time_at_age(DAY)));
        }
        until
    }

    /// Returns the value at which `candidate` would be worse than all records in `window`, or
    /// `None` if it is too close to the limit.
    pub(super) fn next_worse_value(
        &self,
        now: Moment,
        window: Duration,
        candidate: &FireCandidate,
    ) -> Option<f64> {
        let steps = self.records_within(now, window).map(|record| {
            match (candidate.headroom_at(&record.worst_fire), candidate.limit) {
                (Some(room), Some(limit)) => limit - room * WORSE_HEADROOM_FRACTION,
                _ if candidate.lower_is_worse => {
                    record.worst_fire.value
                        - record.worst_fire.value.abs() * (1.0 - WORSE_HEADROOM_FRACTION)
                }
                _ => record.worst_fire.value * WORSE_VALUE_FACTOR,
            }
        });
        let step = match candidate.lower_is_worse {
            true => steps.reduce(f64::min),
            false => steps.reduce(f64::max),
        }?;
        candidate
            .limit
            .is_none_or(|limit| limit - step >= limit * MIN_HEADROOM_FRACTION)
            .then_some(step)
    }

    /// Returns the index of the record to drop: the oldest repeat, unless it holds the worst value.
    /// A repeat exists because fewer than [`MAX_RECORDS`] records are urgent.
    fn eviction_index(&self, lower_is_worse: bool) -> usize {
        let worst = (0..self.records.len()).reduce(|a, b| {
            if is_worse(&self.records[b].worst_fire, &self.records[a].worst_fire, lower_is_worse) {
                b
            } else {
                a
            }
        });
        let is_evictable =
            |&at: &usize| self.records[at].kind == FireKind::Repeat && Some(at) != worst;
        (0..self.records.len()).find(is_evictable).unwrap_or(0)
    }

    fn records_within(&self, now: Moment, window: Duration) -> impl Iterator<Item = &FireRecord> {
        self.records.iter().filter(move |record| record.at.age(now) < window)
    }
}

/// Returns the wait before the next repeat after `repeats` repeats.
fn repeat_delay(cooldown: Duration, repeats: usize) -> Duration {
    let factor = 1_u32.checked_shl(repeats.min(31) as u32).unwrap_or(u32::MAX);
    cooldown.saturating_mul(factor).min(DAY.max(cooldown))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(hours: f64) -> Moment {
        Moment::from_nanos((hours * 3600.0) as u64 * 1_000_000_000)
    }

    fn memory(value: f64) -> FireCandidate {
        FireCandidate {
            fire: LastFire { value, headroom: Some(100.0 - value) },
            limit: Some(100.0),
            is_above_soft_limit: false,
            forecast: None,
            lower_is_worse: false,
        }
    }

    #[test]
    fn repeat_delay_doubles_up_to_one_day() {
        let mut history = FireHistory::default();
        history.record_opened(at(0.0), &memory(80.0), FireKind::Worse);
        let mut now = at(0.0);
        let mut times = Vec::new();
        while now < at(30.0 * 24.0) {
            now = history.next_repeat_at(now, now.into(), HOUR);
            history.record_opened(now, &memory(80.0), FireKind::Repeat);
            times.push(now.as_nanos() / 3_600_000_000_000);
        }
        assert_eq!(times[..4], [1, 3, 7, 15]);
        let in_first_day = times.iter().filter(|&&hour| hour < 24).count();
        assert!(in_first_day <= 5, "{times:?}");
        let in_month = times.len();
        assert!((60..=150).contains(&in_month), "{in_month} in 30 days: {times:?}");
        assert_eq!(repeat_delay(Duration::from_secs(60), 99), DAY, "at most a day");
        assert_eq!(repeat_delay(100 * HOUR, 3), 100 * HOUR, "a longer cooldown is the user's");
    }

    #[test]
    fn value_is_worse_if_headroom_shrinks_by_a_third() {
        let mut history = FireHistory::default();
        let is_worse = |history: &FireHistory, now, value| {
            history.urgency(now, DAY, &memory(value), false) == Some(FireKind::Worse)
        };
        assert!(is_worse(&history, at(0.0), 80.0), "the first");
        history.record_opened(at(0.0), &memory(80.0), FireKind::Worse);
        history.record_recapture(at(0.1), &memory(94.0));
        history.record_opened(at(2.0), &memory(80.0), FireKind::Repeat);
        for (value, worse) in [(86.0, false), (95.9, false), (96.0, true), (98.9, true)] {
            assert_eq!(is_worse(&history, at(3.0), value), worse, "{value}");
        }
        assert!(is_worse(&history, at(3.0), 99.5), "a jump past the last step");
        assert_eq!(history.next_worse_value(at(3.0), DAY, &memory(80.0)), Some(96.0));
        assert!(is_worse(&history, at(24.2), 87.0), "what was worse is more than a day ago");
        assert!(is_worse(&history, at(26.1), 80.0), "all of it is");
    }

    #[test]
    fn forecast_is_worse_if_shorter_than_every_captured_one() {
        let mut history = FireHistory::default();
        let with_forecast = |millis| FireCandidate {
            forecast: Some(Duration::from_millis(millis)),
            ..memory(76.0)
        };
        history.record_opened(at(0.0), &memory(84.0), FireKind::Worse);
        let urgency = |history: &FireHistory, millis| {
            history.urgency(at(1.0), DAY, &with_forecast(millis), false)
        };
        assert_eq!(urgency(&history, 9000), Some(FireKind::Worse), "no forecast was captured");
        history.record_opened(at(0.5), &with_forecast(9000), FireKind::Worse);
        assert_eq!(urgency(&history, 7000), None);
        assert_eq!(urgency(&history, 6000), Some(FireKind::Worse));
        history.record_recapture(at(0.6), &with_forecast(100));
        assert_eq!(urgency(&history, 1), None, "too short to tell apart");
    }

    #[test]
    fn critical_value_is_captured_again_after_four_hours() {
        let mut history = FireHistory::default();
        history.record_opened(at(0.0), &memory(98.9), FireKind::Worse);
        for (hours, critical, expected) in
            [(3.9, true, None), (4.0, false, None), (4.0, true, Some(FireKind::Critical))]
        {
            let got = history.urgency(at(hours), DAY, &memory(95.0), critical);
            assert_eq!(got, expected, "{hours} {critical}");
        }
    }

    #[test]
    fn urgent_captures_are_limited_per_day() {
        let mut history = FireHistory::default();
        let count = |value| FireCandidate {
            fire: LastFire { value, headroom: None },
            limit: None,
            is_above_soft_limit: false,
            forecast: None,
            lower_is_worse: false,
        };
        let mut admitted = 0;
        for n in 0..500 {
            let candidate = count(2.0_f64.powi(n));
            if let Some(kind) = history.urgency(at(1.0), DAY, &candidate, true) {
                history.record_opened(at(1.0), &candidate, kind);
                admitted += 1;
            }
        }
        assert_eq!(admitted, MAX_URGENT);
    }

    #[test]
    fn eviction_keeps_the_worst_value() {
        let mut history = FireHistory::default();
        history.record_opened(at(0.0), &memory(94.0), FireKind::Worse);
        for n in 0..100 {
            history.record_opened(at(0.1 + f64::from(n) / 100.0), &memory(80.0), FireKind::Repeat);
        }
        assert_eq!(history.records.len(), MAX_RECORDS);
        assert_eq!(history.urgency(at(2.0), DAY, &memory(87.0), false), None);
    }
}
