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

use std::time::Duration;

use super::LastFire;
use super::watch::admission::{GROWN, LEAST_ROOM, SHRUNK};
use crate::base::{EventTime, Moment};

/// Length of the history.
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Interval after which a value beyond `critical` is captured again.
pub(super) const CRITICAL_INTERVAL: Duration = Duration::from_secs(4 * 60 * 60);
/// Maximum number of incidents a day that one rule may open regardless of cooldown and budget.
pub const MAX_URGENT: usize = 16;
/// Maximum number of records. At most 16 are urgent; a rule with a cooldown of a minute has ten
/// repeats.
const KEPT: usize = 32;
/// Forecasts shorter than this are treated as equal: no capture would finish in time.
const SHORTEST_FORECAST: Duration = Duration::from_millis(500);

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
    pub mark: LastFire,
    /// The shortest forecast on which it fired, or `None` if no condition was a forecast.
    pub forecast: Option<Duration>,
    /// Reason why it was opened.
    pub kind: FireKind,
}

/// A value that crossed a threshold, to be compared with earlier captures.
#[derive(Clone, Copy, Debug)]
pub(super) struct FireCandidate {
    pub(super) mark: LastFire,
    pub(super) limit: Option<f64>,
    /// `true` if the value is past a soft limit, which only slows the process down. `limit` is then
    /// the hard limit behind it.
    pub(super) is_behind_soft: bool,
    /// Time to the limit if the condition is `forecast`.
    pub(super) forecast: Option<Duration>,
    /// `true` for a rule with `below`, where a lower value is worse.
    pub(super) falls: bool,
}

impl FireCandidate {
    /// Returns the headroom between `mark` and the limit of this candidate.
    pub(super) fn room_at(&self, mark: &LastFire) -> Option<f64> {
        match self.limit {
            // Before the value reached the soft limit, the headroom was measured to that limit.
            Some(limit) if self.is_behind_soft => Some((limit - mark.value).max(0.0)),
            _ => mark.room,
        }
    }

    fn is_worse_than(&self, record: &FireRecord) -> bool {
        let (before, value) = (record.mark, self.mark.value);
        match (self.room_at(&before), self.mark.room, self.limit) {
            // Near the limit a value does not count as worse, unless the earlier one was far from
            // it.
            (Some(before), Some(room), Some(limit)) => {
                let near = limit * LEAST_ROOM;
                room <= before * SHRUNK && (room >= near || before > 3.0 * near)
            }
            _ if self.falls => value < before.value - before.value.abs() * (1.0 - SHRUNK),
            _ => value > before.value && value >= before.value * GROWN,
        }
    }

    fn is_sooner_than(&self, record: &FireRecord) -> bool {
        let Some(left) = self.forecast else { return false };
        record.forecast.is_none_or(|before| {
            let before = before.max(SHORTEST_FORECAST);
            left.max(SHORTEST_FORECAST) <= before.mul_f64(SHRUNK)
        })
    }
}

/// The incidents of one rule within a day, oldest first. Allocates once.
#[derive(Clone, Debug)]
pub(super) struct FireHistory {
    records: Vec<FireRecord>,
}

impl Default for FireHistory {
    fn default() -> Self {
        Self { records: Vec::with_capacity(KEPT) }
    }
}

impl FireHistory {
    /// Restores the records of an earlier process.
    pub(super) fn restore(&mut self, records: &[FireRecord]) {
        self.records.clear();
        let first = records.len().saturating_sub(KEPT);
        self.records.extend_from_slice(records.get(first..).unwrap_or_default());
    }

    pub(super) fn records(&self) -> &[FireRecord] {
        &self.records
    }

    pub(super) fn clear(&mut self) {
        self.records.clear();
    }

    /// Records the opening of an incident.
    pub(super) fn opened(&mut self, now: Moment, candidate: &FireCandidate, kind: FireKind) {
        if self.records.len() >= KEPT {
            self.records.remove(self.least_needed(candidate.falls));
        }
        let FireCandidate { mark, forecast, .. } = *candidate;
        self.records.push(FireRecord { at: now.into(), mark, forecast, kind });
    }

    /// Records another capture in the last incident.
    pub(super) fn captured_again(&mut self, now: Moment, candidate: &FireCandidate) {
        match self.records.last_mut() {
            Some(last) => {
                last.at = now.into();
                merge(last, candidate.mark, candidate.forecast, candidate.falls);
            }
            None => self.opened(now, candidate, FireKind::Worse),
        }
    }

    /// Removes the last incident, because it could not be opened.
    pub(super) fn withdraw(&mut self) {
        self.records.pop();
    }

    /// Returns the reason why `candidate` needs neither wait nor budget, or `None` if it is a
    /// repeat.
    pub(super) fn urgency(
        &self,
        now: Moment,
        window: Duration,
        candidate: &FireCandidate,
        critical: bool,
    ) -> Option<FireKind> {
        let in_window = || self.within(now, window);
        if self.within(now, DAY).filter(|record| record.kind.is_urgent()).count() >= MAX_URGENT {
            return None;
        }
        let worse = in_window().all(|record| candidate.is_worse_than(record))
            || candidate.forecast.is_some()
                && in_window().all(|record| candidate.is_sooner_than(record));
        if worse {
            return Some(FireKind::Worse);
        }
        let last = self.records.last().map_or(Duration::MAX, |record| record.at.age(now));
        (critical && last >= CRITICAL_INTERVAL).then_some(FireKind::Critical)
    }

    /// Returns the number of repeats in the day before `now`.
    pub(super) fn repeats(&self, now: Moment) -> usize {
        self.within(now, DAY).filter(|record| record.kind == FireKind::Repeat).count()
    }

    /// Returns the number of incidents in the day before `now`.
    pub(super) fn incidents(&self, now: Moment) -> usize {
        self.within(now, DAY).count()
    }

    /// Returns the time at which the next repeat may be captured, if the last capture ended at
    /// `captured`. The wait gets shorter when an old repeat leaves the day: the earliest of all
    /// these times counts.
    pub(super) fn next_repeat(
        &self,
        now: Moment,
        captured: EventTime,
        cooldown: Duration,
    ) -> Moment {
        let repeats = self.repeats(now);
        let mut until = captured.reaches(wait(cooldown, repeats));
        let old = self.within(now, DAY).filter(|record| record.kind == FireKind::Repeat);
        for (gone, record) in old.enumerate() {
            let shorter = captured.reaches(wait(cooldown, repeats - gone - 1));
            until = until.min(shorter.max(record.at.reaches(DAY)));
        }
        until
    }

    /// Returns the value at which `candidate` would be worse than all records in `window`, or
    /// `None` if it is too close to the limit.
    pub(super) fn next_step(
        &self,
        now: Moment,
        window: Duration,
        candidate: &FireCandidate,
    ) -> Option<f64> {
        let steps = self.within(now, window).map(|record| {
            match (candidate.room_at(&record.mark), candidate.limit) {
                (Some(room), Some(limit)) => limit - room * SHRUNK,
                _ if candidate.falls => {
                    record.mark.value - record.mark.value.abs() * (1.0 - SHRUNK)
                }
                _ => record.mark.value * GROWN,
            }
        });
        let step = match candidate.falls {
            true => steps.reduce(f64::min),
            false => steps.reduce(f64::max),
        }?;
        candidate.limit.is_none_or(|limit| limit - step >= limit * LEAST_ROOM).then_some(step)
    }

    /// Returns the index of the record to drop: the oldest repeat, unless it holds the worst value.
    /// A repeat exists because fewer than [`KEPT`] records are urgent.
    fn least_needed(&self, falls: bool) -> usize {
        let worst = (0..self.records.len()).reduce(|a, b| {
            if is_worse(&self.records[b].mark, &self.records[a].mark, falls) { b } else { a }
        });
        let repeats = |&at: &usize| self.records[at].kind == FireKind::Repeat && Some(at) != worst;
        (0..self.records.len()).find(repeats).unwrap_or(0)
    }

    fn within(&self, now: Moment, window: Duration) -> impl Iterator<Item = &FireRecord> {
        self.records.iter().filter(move |record| record.at.age(now) < window)
    }
}

/// Returns the wait before the next repeat after `repeats` repeats.
fn wait(cooldown: Duration, repeats: usize) -> Duration {
    let factor = 1_u32.checked_shl(repeats.min(31) as u32).unwrap_or(u32::MAX);
    cooldown.saturating_mul(factor).min(DAY.max(cooldown))
}

fn is_worse(mark: &LastFire, before: &LastFire, falls: bool) -> bool {
    match (before.room, mark.room) {
        // Past a soft limit the headroom grows again, because it is measured to the hard limit.
        (Some(before_room), Some(room)) => room < before_room || mark.value > before.value,
        _ if falls => mark.value < before.value,
        _ => mark.value > before.value,
    }
}

/// Keeps the worse of two captures in `record`.
fn merge(record: &mut FireRecord, mark: LastFire, forecast: Option<Duration>, falls: bool) {
    if is_worse(&mark, &record.mark, falls) {
        record.mark = mark;
    }
    record.forecast = match (record.forecast, forecast) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(hours: f64) -> Moment {
        Moment::from_nanos((hours * 3600.0) as u64 * 1_000_000_000)
    }

    fn memory(value: f64) -> FireCandidate {
        let mark = LastFire { value, room: Some(100.0 - value) };
        FireCandidate {
            mark,
            limit: Some(100.0),
            is_behind_soft: false,
            forecast: None,
            falls: false,
        }
    }

    #[test]
    fn each_repeat_waits_twice_as_long_as_the_one_before_it() {
        let mut history = FireHistory::default();
        history.opened(at(0.0), &memory(80.0), FireKind::Worse);
        let mut now = at(0.0);
        let mut times = Vec::new();
        while now < at(30.0 * 24.0) {
            now = history.next_repeat(now, now.into(), HOUR);
            history.opened(now, &memory(80.0), FireKind::Repeat);
            times.push(now.as_nanos() / 3_600_000_000_000);
        }
        assert_eq!(times[..4], [1, 3, 7, 15]);
        let a_day = times.iter().filter(|&&hour| hour < 24).count();
        assert!(a_day <= 5, "{times:?}");
        let in_month = times.len();
        assert!((60..=150).contains(&in_month), "{in_month} in 30 days: {times:?}");
        assert_eq!(wait(Duration::from_secs(60), 99), DAY, "at most a day");
        assert_eq!(wait(100 * HOUR, 3), 100 * HOUR, "a longer cooldown is the user's");
    }

    #[test]
    fn worse_is_a_third_less_headroom_than_at_any_capture_of_the_day() {
        let mut history = FireHistory::default();
        let is_worse = |history: &FireHistory, now, value| {
            history.urgency(now, DAY, &memory(value), false) == Some(FireKind::Worse)
        };
        assert!(is_worse(&history, at(0.0), 80.0), "the first");
        history.opened(at(0.0), &memory(80.0), FireKind::Worse);
        history.captured_again(at(0.1), &memory(94.0));
        history.opened(at(2.0), &memory(80.0), FireKind::Repeat);
        for (value, worse) in [(86.0, false), (95.9, false), (96.0, true), (98.9, true)] {
            assert_eq!(is_worse(&history, at(3.0), value), worse, "{value}");
        }
        assert!(is_worse(&history, at(3.0), 99.5), "a jump past the last step");
        assert_eq!(history.next_step(at(3.0), DAY, &memory(80.0)), Some(96.0));
        assert!(is_worse(&history, at(24.2), 87.0), "what was worse is more than a day ago");
        assert!(is_worse(&history, at(26.1), 80.0), "all of it is");
    }

    #[test]
    fn a_forecast_is_worse_if_it_is_sooner_than_every_one_captured() {
        let mut history = FireHistory::default();
        let soon = |millis| FireCandidate {
            forecast: Some(Duration::from_millis(millis)),
            ..memory(76.0)
        };
        history.opened(at(0.0), &memory(84.0), FireKind::Worse);
        let urgency =
            |history: &FireHistory, millis| history.urgency(at(1.0), DAY, &soon(millis), false);
        assert_eq!(urgency(&history, 9000), Some(FireKind::Worse), "no forecast was captured");
        history.opened(at(0.5), &soon(9000), FireKind::Worse);
        assert_eq!(urgency(&history, 7000), None);
        assert_eq!(urgency(&history, 6000), Some(FireKind::Worse));
        history.captured_again(at(0.6), &soon(100));
        assert_eq!(urgency(&history, 1), None, "too short to tell apart");
    }

    #[test]
    fn what_is_critical_again_is_captured_every_few_hours() {
        let mut history = FireHistory::default();
        history.opened(at(0.0), &memory(98.9), FireKind::Worse);
        for (hours, critical, expected) in
            [(3.9, true, None), (4.0, false, None), (4.0, true, Some(FireKind::Critical))]
        {
            let got = history.urgency(at(hours), DAY, &memory(95.0), critical);
            assert_eq!(got, expected, "{hours} {critical}");
        }
    }

    #[test]
    fn urgent_captures_are_bounded_whatever_the_values_are() {
        let mut history = FireHistory::default();
        let count = |value| FireCandidate {
            mark: LastFire { value, room: None },
            limit: None,
            is_behind_soft: false,
            forecast: None,
            falls: false,
        };
        let mut admitted = 0;
        for n in 0..500 {
            let candidate = count(2.0_f64.powi(n));
            if let Some(kind) = history.urgency(at(1.0), DAY, &candidate, true) {
                history.opened(at(1.0), &candidate, kind);
                admitted += 1;
            }
        }
        assert_eq!(admitted, MAX_URGENT);
    }

    #[test]
    fn of_many_records_the_worst_value_is_kept() {
        let mut history = FireHistory::default();
        history.opened(at(0.0), &memory(94.0), FireKind::Worse);
        for n in 0..100 {
            history.opened(at(0.1 + f64::from(n) / 100.0), &memory(80.0), FireKind::Repeat);
        }
        assert_eq!(history.records.len(), KEPT);
        assert_eq!(history.urgency(at(2.0), DAY, &memory(87.0), false), None);
    }
}
