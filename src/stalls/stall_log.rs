//! Rate-limited log lines about stalls: the first of a group is logged at once, further ones as one
//! line every ten seconds.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::base::Moment;
use crate::model::Stall;

/// Minimum time between two lines of a group.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(10);

/// Minimum wait for a core that is mentioned.
const MIN_REPORTED_WAIT: Duration = Duration::from_millis(1);

/// Maximum number of groups with separate lines. Further groups share one.
const MAX_GROUPS: usize = 32;

/// Key of a group of stalls: the name or spawn site of the task, or the function if polls are not
/// recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct StallGroup(String);

#[derive(Debug)]
struct GroupSummary {
    logged_at: Moment,
    count: u64,
    longest: Duration,
    /// Longest wait for a core among them.
    waited: Duration,
    /// Function in which one of them was.
    function: Option<String>,
}

/// Groups of stalls logged in the last ten seconds.
#[derive(Debug, Default)]
pub(crate) struct StallLog {
    groups: HashMap<StallGroup, GroupSummary>,
}

impl StallLog {
    /// Records a stall found at `now`. Returns its line if it must be logged at once.
    pub(crate) fn record(&mut self, now: Moment, stall: &Stall) -> Option<String> {
        let mut group = StallGroup(match (stall.suspected, &stall.function) {
            (true, Some(function)) => function.clone(),
            _ => stall.task.clone(),
        });
        if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&group) {
            group = StallGroup::default();
        }
        if let Some(summary) = self.groups.get_mut(&group) {
            summary.count += 1;
            summary.longest = summary.longest.max(stall.lasted);
            summary.waited = summary.waited.max(stall.waited);
            summary.function = stall.function.clone().or(summary.function.take());
            return None;
        }
        let zero = Duration::ZERO;
        let summary =
            GroupSummary { logged_at: now, count: 0, longest: zero, waited: zero, function: None };
        self.groups.insert(group, summary);
        Some(stall.to_string())
    }

    /// Returns the summary lines that are due at `now`.
    pub(crate) fn due_summaries(&mut self, now: Moment) -> Vec<String> {
        let mut lines = Vec::new();
        self.groups.retain(|group, summary| {
            let passed = now.since(summary.logged_at);
            if passed < SUMMARY_INTERVAL {
                return true;
            }
            if summary.count == 0 {
                return false;
            }
            lines.push(summary_line(group, summary, passed));
            summary.logged_at = now;
            summary.count = 0;
            summary.longest = Duration::ZERO;
            summary.waited = Duration::ZERO;
            true
        });
        lines
    }
}

fn summary_line(group: &StallGroup, summary: &GroupSummary, passed: Duration) -> String {
    let GroupSummary { count: more, longest, waited, function, .. } = summary;
    let of = if group.0.is_empty() { "of other tasks" } else { "of" };
    let mut line = format!("{more} more stalls {of} {}", crate::base::log::escape(&group.0));
    if let Some(function) = function.as_ref().filter(|function| **function != group.0) {
        let _ = write!(line, ", in {function}");
    }
    let seconds = passed.as_secs();
    let millis = longest.as_millis();
    let _ = write!(line, " in the last {seconds} s, the longest {millis} ms so far");
    if *waited >= MIN_REPORTED_WAIT {
        let waited = waited.as_millis();
        let _ = write!(line, "; they also waited for a core (CPU contention), up to {waited} ms");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stall(task: &str, millis: u64) -> Stall {
        Stall {
            task: task.to_owned(),
            number: 1,
            tid: 7,
            thread: "worker".to_owned(),
            runtime: None,
            worker: None,
            started: jiff::Timestamp::UNIX_EPOCH,
            lasted: Duration::from_millis(millis),
            waited: Duration::ZERO,
            running: true,
            suspected: false,
            function: Some("orders::parse".to_owned()),
            via: None,
            remark: "",
        }
    }

    #[test]
    fn repeated_stalls_of_a_task_log_one_summary_per_interval() {
        let mut log = StallLog::default();
        let mut lines = Vec::new();
        // 200 a second of one task, and one of another in the middle.
        for step in 0..4_000_u64 {
            let now = Moment::from_nanos(step * 5_000_000);
            lines.extend(log.record(now, &stall("a.rs:1", 150 + step % 7)));
            if step == 1000 {
                lines.extend(log.record(now, &stall("b.rs:2", 300)));
            }
            lines.extend(log.due_summaries(now));
        }
        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert!(lines[0].contains("task `a.rs:1` #1 has been polled for 150 ms"), "{lines:#?}");
        assert!(lines[1].contains("task `b.rs:2`"), "{lines:#?}");
        let rest = "2000 more stalls of a.rs:1, in orders::parse in the last 10 s, the longest 156 ms so far";
        assert_eq!(lines[2], rest);
        // After the stalls end, the last ones are counted and the group is removed.
        let at_second = |seconds: u64| Moment::from_nanos(seconds * 1_000_000_000);
        assert_eq!(log.due_summaries(at_second(21)).len(), 1);
        assert_eq!(log.due_summaries(at_second(40)).len(), 0);
        assert!(log.record(at_second(41), &stall("a.rs:1", 150)).is_some());
    }

    #[test]
    fn stalls_beyond_group_limit_share_a_line() {
        let mut log = StallLog::default();
        let lines: Vec<String> = (0..1000)
            .filter_map(|n| log.record(Moment::from_nanos(1), &stall(&format!("t{n}"), 100)))
            .collect();
        assert_eq!(lines.len(), MAX_GROUPS + 1);
        let rest = log.due_summaries(Moment::from_nanos(11_000_000_000));
        assert_eq!(rest.len(), 1, "{rest:?}");
        assert!(rest[0].starts_with("967 more stalls of other tasks "), "{rest:?}");
    }
}
