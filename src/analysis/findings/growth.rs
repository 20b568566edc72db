//! Numbers of tasks, threads and descriptors: the part that is most of the number, or of its rise.
//!
//! The parts of a number are counted exactly, but a number of things that come and go fluctuates by
//! its square root. So the conclusion "most of them are this part" has an error, and 0 refutes
//!
//! ```text
//! rise between two dumps:    2 * rise of the part - rise of the total
//! rise before the dump:      2 * part - total - total before the rise
//! too large at the dump:     2 * part - total
//! ```
//!
//! The second line assumes the worst case: all that existed before the rise belonged to the part.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::confidence_above_zero;
use crate::analysis::evidence::{IncidentEvidence, Tabulated};
use crate::model::Confidence;

/// Minimum share of a part: with less, the explanation is elsewhere.
pub(super) const MIN_SHARE: f64 = 0.25;

/// Minimum rise between two dumps, as a share of the later number. With less, the time before the
/// dumps matters more.
const MIN_RISE_BETWEEN_DUMPS: f64 = 0.1;

/// Minimum factor of a rise that no rule reported. The metrics `tasks.rise`, `threads.rise` and
/// `fds.rise` have the same, which excludes daily peaks.
const MIN_RISE_FACTOR: f64 = 2.0;

/// A metric that is a number of things, and the rules over it.
#[derive(Clone, Copy, Debug)]
pub(super) struct CountMetric {
    /// Name of the metric.
    pub(super) name: &'static str,
    /// Metrics of rules for which the number is too large.
    pub(super) level_reasons: &'static [&'static str],
    /// Metrics of rules for which it rises too fast.
    pub(super) rise_reasons: &'static [&'static str],
    /// Minimum rise that is reported without a rule: the threshold of the default rule.
    pub(super) min_rise: f64,
}

/// The cause for looking at a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct CountProblem {
    /// True if a rule over the number opened or joined the incident.
    pub(super) has_rule: bool,
    /// Number before the rise, or `None` if the number as such is the problem.
    pub(super) before: Option<f64>,
}

/// A number at the time of a dump, and its parts.
#[derive(Clone, Debug)]
pub(super) struct PartCounts<K> {
    pub(super) total: u64,
    pub(super) parts: BTreeMap<K, u64>,
}

/// The largest part of a number, or of its rise.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LargestPart<K> {
    pub(super) part: K,
    pub(super) count: u64,
    pub(super) total: u64,
    /// Numbers at the first dump, or `None` if the total did not rise since then.
    pub(super) earlier: Option<EarlierCounts>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct EarlierCounts {
    pub(super) count: u64,
    pub(super) total: u64,
}

impl CountMetric {
    /// Returns the problem with the number, which is `last_total` at the last dump. `None` if no
    /// rule fired for it and it did not rise much.
    pub(super) fn problem(
        &self,
        evidence: &IncidentEvidence<'_>,
        last_dump: Timestamp,
        last_total: u64,
    ) -> Option<CountProblem> {
        let last_total = last_total as f64;
        if evidence.has_reason(self.level_reasons) {
            return Some(CountProblem { has_rule: true, before: None });
        }
        let values = evidence.series(self.name).into_iter().filter(|(at, _)| *at <= last_dump);
        let lowest = values.map(|(_, value)| value).min_by(f64::total_cmp);
        if evidence.has_reason(self.rise_reasons) {
            let before = self.before_reported_rise(evidence).or(lowest).unwrap_or(last_total);
            return Some(CountProblem { has_rule: true, before: Some(before) });
        }
        let lowest = lowest?;
        let rose = last_total >= lowest * MIN_RISE_FACTOR && last_total - lowest >= self.min_rise;
        rose.then_some(CountProblem { has_rule: false, before: Some(lowest) })
    }

    /// Returns the number before the rise on which a rule over `.rise` fired.
    fn before_reported_rise(&self, evidence: &IncidentEvidence<'_>) -> Option<f64> {
        let rise_metric = format!("{}.rise", self.name);
        let reason = evidence.manifest.reasons.iter().find(|reason| {
            reason.metric.as_ref().is_some_and(|metric| metric.to_string() == rise_metric)
        })?;
        let at_firing = self.value_at(evidence, reason.at)?;
        Some((at_firing - reason.value?).max(0.0))
    }

    /// Returns the value of the vitals at `at`, which is one second old at most.
    pub(super) fn value_at(&self, evidence: &IncidentEvidence<'_>, at: Timestamp) -> Option<f64> {
        let series = evidence.series(self.name);
        let latest = series.iter().take_while(|(time, _)| *time <= at).last();
        latest.or(series.first()).map(|&(_, value)| value)
    }
}

impl CountProblem {
    /// Returns the confidence that most of the problem is `largest`. At most `Possible` without a
    /// rule: the number rises in a healthy service too.
    pub(super) fn confidence<K>(&self, largest: &LargestPart<K>) -> Confidence {
        if self.has_rule { largest.confidence(self.before) } else { Confidence::Possible }
    }
}

impl<K: Clone + Ord> LargestPart<K> {
    /// Returns the part with the largest rise between two dumps. If the total did not rise, or
    /// `first` is `None`, returns the largest part of `last`. Returns `None` if its share is small.
    pub(super) fn find(first: Option<&PartCounts<K>>, last: &PartCounts<K>) -> Option<Self> {
        let first = first.filter(|first| {
            let rise = last.total as f64 - first.total as f64;
            let variance = last.total as f64 + first.total as f64;
            rise >= last.total as f64 * MIN_RISE_BETWEEN_DUMPS
                && confidence_above_zero(rise, variance).is_some()
        });
        let parts = last.parts.iter().map(|(part, &count)| Self {
            part: part.clone(),
            count,
            total: last.total,
            earlier: first.map(|first| EarlierCounts {
                count: first.parts.get(part).copied().unwrap_or(0),
                total: first.total,
            }),
        });
        // The first of equal parts, in their order.
        let largest = parts.rev().max_by_key(Self::rise)?;
        (largest.rise() > 0 && largest.share() >= MIN_SHARE).then_some(largest)
    }
}

impl<K> LargestPart<K> {
    /// Returns this part of `whole` as a part of the total that `whole` is a part of.
    pub(super) fn within<W>(self, whole: &LargestPart<W>) -> Self {
        let earlier = self.earlier.zip(whole.earlier);
        let earlier =
            earlier.map(|(part, whole)| EarlierCounts { count: part.count, total: whole.total });
        Self { total: whole.total, earlier, ..self }
    }

    /// Returns the same numbers for another name of the part.
    pub(super) fn with_part<L>(self, part: L) -> LargestPart<L> {
        LargestPart { part, count: self.count, total: self.total, earlier: self.earlier }
    }

    /// Returns the rise of the part between the dumps, or its number if there is no rise.
    pub(super) fn rise(&self) -> i64 {
        let earlier = self.earlier.map_or(0, |earlier| earlier.count);
        self.count as i64 - earlier as i64
    }

    /// Returns the part's share of the rise, or of the number if there is no rise.
    pub(super) fn share(&self) -> f64 {
        let earlier = self.earlier.map_or(0, |earlier| earlier.total);
        let total = self.total.saturating_sub(earlier);
        if total == 0 { 0.0 } else { (self.rise() as f64 / total as f64).clamp(0.0, 1.0) }
    }

    fn confidence(&self, before: Option<f64>) -> Confidence {
        let count = self.count as f64;
        let total = self.total as f64;
        let (excess, variance) = match (self.earlier, before) {
            (Some(earlier), _) => {
                let total_rise = total - earlier.total as f64;
                (2.0 * self.rise() as f64 - total_rise, total + earlier.total as f64)
            }
            (None, Some(before)) => (2.0 * count - total - before, total + before),
            (None, None) => (2.0 * count - total, total),
        };
        confidence_above_zero(excess, variance).unwrap_or(Confidence::Possible)
    }
}

/// The first and the last dump of one kind.
#[derive(Debug)]
pub(super) struct DumpPair<'a, T> {
    /// `None` if there is only one dump.
    pub(super) first: Option<&'a Tabulated<T>>,
    pub(super) last: &'a Tabulated<T>,
}

impl<'a, T> DumpPair<'a, T> {
    /// Returns the dumps of the whole process, or `None` if there are none. The dump of a stalled
    /// thread has a phase.
    pub(super) fn new(dumps: &'a [Tabulated<T>]) -> Option<Self> {
        let mut whole = dumps.iter().filter(|dump| dump.phase.is_none());
        let first = whole.next()?;
        let last = whole.next_back();
        Some(Self { first: last.map(|_| first), last: last.unwrap_or(first) })
    }

    /// Returns the time between the dumps in seconds, or 0 if there is only one.
    pub(super) fn seconds(&self) -> f64 {
        let first = self.first.map_or(self.last.taken, |first| first.taken);
        self.last.taken.duration_since(first).as_secs_f64()
    }
}

/// Formats a share as `95 %`.
pub(super) fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// Formats seconds as `45 s`, `12 min` or `3 h`.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        ..120.0 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.0} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{IncidentFixture, time};
    use super::*;

    const TASKS: CountMetric = CountMetric {
        name: "tasks",
        level_reasons: &["tasks"],
        rise_reasons: &["tasks.growth", "tasks.rise"],
        min_rise: 250.0,
    };

    fn counts(total: u64, parts: &[(&'static str, u64)]) -> PartCounts<&'static str> {
        PartCounts { total, parts: parts.iter().copied().collect() }
    }

    fn summary(
        first: Option<&PartCounts<&'static str>>,
        last: &PartCounts<&'static str>,
        before: Option<f64>,
    ) -> Option<(&'static str, i64, Confidence)> {
        let largest = LargestPart::find(first, last)?;
        Some((largest.part, largest.rise(), largest.confidence(before)))
    }

    #[test]
    fn largest_part_is_that_of_rise_between_dumps() {
        let first = counts(1000, &[("old", 990), ("new", 10)]);
        for (last, expected) in [
            (counts(1800, &[("old", 1000), ("new", 800)]), ("new", 790, Confidence::Certain)),
            (counts(1200, &[("old", 1000), ("new", 200)]), ("new", 190, Confidence::Likely)),
            (counts(1200, &[("old", 1080), ("new", 120)]), ("new", 110, Confidence::Possible)),
            // Not risen: the level counts.
            (counts(1005, &[("old", 995), ("new", 10)]), ("old", 995, Confidence::Certain)),
        ] {
            assert_eq!(summary(Some(&first), &last, None), Some(expected), "{last:?}");
        }
    }

    #[test]
    fn small_parts_are_not_found() {
        assert_eq!(summary(None, &counts(100, &[("a", 24)]), None), None);
        assert!(summary(None, &counts(100, &[("a", 25)]), None).is_some());
        assert_eq!(summary(None, &counts(0, &[("a", 0)]), None), None);
        assert_eq!(summary(None, &counts(0, &[]), None), None);
    }

    #[test]
    fn rise_before_the_dump_requires_more_than_what_existed_before() {
        let last = counts(1000, &[("a", 700)]);
        for (before, confidence) in [
            (None, Confidence::Certain),
            (Some(100.0), Confidence::Certain),
            (Some(300.0), Confidence::Likely),
            (Some(350.0), Confidence::Possible),
            (Some(1000.0), Confidence::Possible),
        ] {
            assert_eq!(summary(None, &last, before), Some(("a", 700, confidence)), "{before:?}");
        }
    }

    #[test]
    fn problem_follows_from_rules_and_vitals() {
        let flat = IncidentFixture::new().vitals("tasks", -2, &[400.0, 410.0, 420.0]);
        let risen = |low| IncidentFixture::new().vitals("tasks", -2, &[low, 410.0, 500.0]);
        let rule = |fixture: IncidentFixture, metric| fixture.reason(metric, 300.0, 250.0, "");
        let problem = |has_rule, before| Some(CountProblem { has_rule, before });
        for (fixture, expected) in [
            (IncidentFixture::new(), None),
            (flat.clone(), None),
            (risen(250.0), problem(false, Some(250.0))),
            (risen(251.0), None),
            (rule(flat.clone(), "tasks"), problem(true, None)),
            (rule(flat.clone(), "tasks.rise"), problem(true, Some(120.0))),
            (rule(flat.clone(), "tasks.growth"), problem(true, Some(400.0))),
            (rule(IncidentFixture::new(), "tasks.rise"), problem(true, Some(500.0))),
            (rule(flat, "threads.rise"), None),
        ] {
            assert_eq!(TASKS.problem(&fixture.evidence(), time(1), 500), expected);
        }
    }

    #[test]
    fn durations_have_two_or_three_digits() {
        let texts = [0.0, 119.0, 120.0, 7199.0, 7200.0].map(duration);
        assert_eq!(texts, ["0 s", "119 s", "2 min", "120 min", "2 h"]);
    }
}
