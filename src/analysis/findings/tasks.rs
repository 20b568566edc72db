//! `task-growth`: the spawn site of most of the tasks. `task-leak`: tasks that nothing wakes.
//!
//! A task dump polls each task once. If the poll stores no waker, the task waits in a future that
//! registers none, such as `std::future::pending`, or that kept the waker of an earlier poll. The
//! first can never be woken; the dump cannot exclude the second. So the number of such tasks is
//! certain, and the leak is not.

use std::collections::BTreeMap;

use super::growth::{CountMetric, DumpPair, LargestPart, PartCounts, duration, percent};
use super::{Candidate, confidence_above_zero};
use crate::analysis::evidence::{IncidentEvidence, Tabulated};
use crate::analysis::{Symbol, TaskGroup, TaskTable, application_frame, display_name};
use crate::model::{Confidence, FindingKind, TaskState};

pub(super) const TASKS: CountMetric = CountMetric {
    name: "tasks",
    level_reasons: &["tasks"],
    rise_reasons: &["tasks.growth", "tasks.rise"],
    min_rise: 250.0,
};

/// Minimum number of tasks of a leak: some tasks of a service wait forever on purpose.
const MIN_LEAKED_TASKS: u64 = 10;

/// Minimum time since the last poll of a task that is suspected without another sign. Most
/// keep-alive intervals are shorter.
const MIN_IDLE_SECONDS: f64 = 60.0;

/// Number of tasks that a dump lists at most. Of more tasks it lists a sample.
const MAX_LISTED: f64 = 10_000.0;

/// Location of tasks whose spawn site is not known.
const UNKNOWN_SITE: &str = "unknown:0";

/// A spawn site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SiteKey<'a> {
    location: &'a str,
    name: &'a str,
}

pub(super) fn find(evidence: &IncidentEvidence<'_>) -> Vec<Candidate> {
    let Some(dumps) = DumpPair::new(&evidence.tables.tasks) else { return Vec::new() };
    let growth = task_growth(evidence, &dumps);
    let without_waker = tasks_without_waker(evidence, &dumps);
    let idle = growing_idle_tasks(evidence, &dumps, &without_waker);
    growth.into_iter().chain(without_waker).chain(idle).collect()
}

/// Returns the number of tasks at a dump. The dump has no tasks of plain `tokio::spawn`; the vitals
/// count them too.
pub(super) fn total_at(evidence: &IncidentEvidence<'_>, dump: &Tabulated<TaskTable>) -> u64 {
    let vitals = TASKS.value_at(evidence, dump.taken).unwrap_or(0.0);
    dump.table.total.max(vitals as u64)
}

/// Returns the number of tasks for which one task of the dump stands.
pub(super) fn sample_weight(table: &TaskTable) -> f64 {
    if table.is_sample { (table.total as f64 / MAX_LISTED).max(1.0) } else { 1.0 }
}

fn task_growth(
    evidence: &IncidentEvidence<'_>,
    dumps: &DumpPair<'_, TaskTable>,
) -> Option<Candidate> {
    let counts = |dump| site_counts(dump, total_at(evidence, dump));
    let first = dumps.first.map(counts);
    let last = counts(dumps.last);
    let problem = TASKS.problem(evidence, dumps.last.taken, last.total)?;
    let largest = LargestPart::find(first.as_ref(), &last)?;
    let site = largest.part;
    let table = &dumps.last.table;
    let (count, total, share) = (largest.count, largest.total, largest.share());
    let mut text = match largest.earlier {
        Some(_) => format!(
            "{} has {} more tasks than {} before ({} of the growth), {count} of {total} in total",
            site.location,
            largest.rise(),
            duration(dumps.seconds()),
            percent(share),
        ),
        None => format!(
            "{count} of {total} tasks ({}) were spawned at {}",
            percent(share),
            site.location
        ),
    };
    let state = MainState::of(table, site);
    if let Some(state) = &state {
        text += &format!("; {}", state.text(table.is_sample));
    }
    let mut candidate =
        Candidate::new(FindingKind::TaskGrowth, problem.confidence(&largest), site.location)
            .text(text)
            .number("tasks", count as f64)
            .number("total", total as f64)
            .share(share)
            .explains_reason(problem.has_rule)
            .evidence(&dumps.last.file, format!("less {}", dumps.last.file));
    if largest.earlier.is_some() {
        candidate = candidate.number("growth", largest.rise() as f64);
    }
    if let Some(state) = state {
        candidate = candidate.stack(&state.group.stack);
    }
    Some(with_name(candidate, site))
}

fn site_counts(dump: &Tabulated<TaskTable>, total: u64) -> PartCounts<SiteKey<'_>> {
    let mut parts = BTreeMap::new();
    for site in dump.table.sites.iter().filter(|site| site.location != UNKNOWN_SITE) {
        let key = SiteKey { location: &site.location, name: &site.name };
        *parts.entry(key).or_default() += site.tasks;
    }
    PartCounts { total, parts }
}

fn with_name(candidate: Candidate, site: SiteKey<'_>) -> Candidate {
    if site.name.is_empty() { candidate } else { candidate.label("name", site.name) }
}

/// The place or state in which most tasks of a spawn site are.
struct MainState<'a> {
    tasks: u64,
    /// The largest group of it.
    group: &'a TaskGroup,
}

impl<'a> MainState<'a> {
    fn of(table: &'a TaskTable, site: SiteKey<'_>) -> Option<Self> {
        let mut states: BTreeMap<_, Self> = BTreeMap::new();
        for group in table.groups.iter().filter(|group| site_of(group) == site) {
            let key = (group.state.name(), waiting_function(group));
            states.entry(key).or_insert(Self { tasks: 0, group }).tasks += group.tasks;
        }
        let states = states.into_values().filter(|state| state.group.state != TaskState::NotDumped);
        states.max_by_key(|state| state.tasks)
    }

    fn text(&self, is_sample: bool) -> String {
        let about = if is_sample { "about " } else { "" };
        let state = match self.group.state {
            TaskState::Waiting => match waiting_function(self.group) {
                Some(function) => format!("wait in {function}"),
                None => "wait".to_owned(),
            },
            TaskState::WaitingWithoutWaker => "wait without a registered waker".to_owned(),
            TaskState::Running { .. } => "were being polled".to_owned(),
            TaskState::Scheduled => "were woken and not polled yet".to_owned(),
            TaskState::NeverPolled => "were never polled".to_owned(),
            TaskState::NotDumped => "were not dumped".to_owned(),
        };
        format!("{about}{} of them {state}", self.tasks)
    }
}

fn site_of(group: &TaskGroup) -> SiteKey<'_> {
    SiteKey { location: &group.location, name: &group.name }
}

/// Returns the innermost function of the application in which the tasks wait.
fn waiting_function(group: &TaskGroup) -> Option<&str> {
    application_frame(&group.stack).map(|name: &Symbol| display_name(name))
}

/// The tasks of a spawn site that are in one state.
#[derive(Clone, Copy, Debug, Default)]
struct StateCount {
    tasks: u64,
    /// Longest time since the last poll, in seconds.
    longest_since_poll: Option<f64>,
}

fn count_state(table: &TaskTable, state: TaskState) -> BTreeMap<SiteKey<'_>, StateCount> {
    let mut counts: BTreeMap<SiteKey<'_>, StateCount> = BTreeMap::new();
    for group in table.groups.iter().filter(|group| group.state == state) {
        let count = counts.entry(site_of(group)).or_default();
        let idle = group.longest_since_poll.map(|time| time.as_secs_f64());
        count.tasks += group.tasks;
        count.longest_since_poll =
            [count.longest_since_poll, idle].into_iter().flatten().reduce(f64::max);
    }
    counts
}

/// Returns the spawn sites of tasks that wait without a registered waker.
fn tasks_without_waker(
    evidence: &IncidentEvidence<'_>,
    dumps: &DumpPair<'_, TaskTable>,
) -> Vec<Candidate> {
    let state = TaskState::WaitingWithoutWaker;
    let table = &dumps.last.table;
    let earlier = dumps.first.map(|dump| count_state(&dump.table, state));
    let total = total_at(evidence, dumps.last);
    let leaked = count_state(table, state).into_iter();
    let leaked = leaked.filter(|(_, count)| count.tasks >= MIN_LEAKED_TASKS);
    let candidates = leaked.map(|(site, count)| {
        let before = earlier.as_ref().map(|sites| sites.get(&site).map_or(0, |site| site.tasks));
        let growth = before.map(|before| count.tasks as f64 - before as f64);
        let idle = count.longest_since_poll.unwrap_or(0.0);
        // The oldest was not polled between the dumps, and more have come.
        let grows = before.zip(growth).is_some_and(|(before, growth)| {
            let variance = (count.tasks + before) as f64 * sample_weight(table);
            confidence_above_zero(growth, variance).is_some() && idle >= dumps.seconds()
        });
        let confidence = if grows { Confidence::Likely } else { Confidence::Possible };
        let about = if table.is_sample { "about " } else { "" };
        let mut text = format!(
            "{about}{} tasks spawned at {} wait and registered no waker when the dump polled them, \
             so no known event wakes them",
            count.tasks, site.location
        );
        if let Some(growth) = growth.filter(|growth| *growth > 0.0) {
            text += &format!("; {growth} more than {} before", duration(dumps.seconds()));
        }
        if let Some(idle) = count.longest_since_poll {
            text += &format!("; the longest was last polled {} ago", duration(idle));
        }
        let share = count.tasks as f64 / total.max(1) as f64;
        leak(dumps, site, confidence)
            .text(text)
            .number("tasks", count.tasks as f64)
            .number("growth", growth.unwrap_or(f64::NAN))
            .number("longest_since_poll", count.longest_since_poll.unwrap_or(f64::NAN))
            .share(share)
            .explains_reason(explains_tasks(evidence, share))
    });
    candidates.collect()
}

/// Returns the spawn sites whose tasks grow from dump to dump, while some of them were not polled
/// for long.
fn growing_idle_tasks(
    evidence: &IncidentEvidence<'_>,
    dumps: &DumpPair<'_, TaskTable>,
    without_waker: &[Candidate],
) -> Vec<Candidate> {
    let Some(first) = dumps.first else { return Vec::new() };
    let earlier = site_counts(first, 0).parts;
    let last = site_counts(dumps.last, total_at(evidence, dumps.last));
    let waiting = count_state(&dumps.last.table, TaskState::Waiting);
    let min_idle = dumps.seconds().max(MIN_IDLE_SECONDS);
    let mut found = Vec::new();
    for (site, &tasks) in &last.parts {
        let before = earlier.get(site).copied().unwrap_or(0);
        let growth = tasks as f64 - before as f64;
        let grows = tasks >= MIN_LEAKED_TASKS
            && confidence_above_zero(growth, (tasks + before) as f64).is_some()
            && never_falls(&evidence.tables.tasks, *site);
        let idle = waiting.get(site).and_then(|count| count.longest_since_poll);
        let is_known = without_waker.iter().any(|known| known.subject == site.location);
        let Some(idle) = idle.filter(|idle| grows && !is_known && *idle >= min_idle) else {
            continue;
        };
        let share = tasks as f64 / last.total.max(1) as f64;
        let candidate = leak(dumps, *site, Confidence::Possible)
            .text(format!(
                "{} has {growth} more tasks than {} before, {tasks} in total; one of them was last \
                 polled {} ago",
                site.location,
                duration(dumps.seconds()),
                duration(idle)
            ))
            .number("tasks", tasks as f64)
            .number("growth", growth)
            .number("longest_since_poll", idle)
            .share(share)
            .explains_reason(explains_tasks(evidence, share));
        found.push(candidate);
    }
    found
}

/// Returns true if no dump has fewer tasks of the site than the one before it.
fn never_falls(dumps: &[Tabulated<TaskTable>], site: SiteKey<'_>) -> bool {
    let count =
        |dump: &Tabulated<TaskTable>| site_counts(dump, 0).parts.get(&site).copied().unwrap_or(0);
    dumps.iter().map(count).is_sorted()
}

/// Returns true if a part of the tasks with this share explains a rule over their number.
pub(super) fn explains_tasks(evidence: &IncidentEvidence<'_>, share: f64) -> bool {
    let has_rule =
        evidence.has_reason(TASKS.level_reasons) || evidence.has_reason(TASKS.rise_reasons);
    has_rule && share >= super::growth::MIN_SHARE
}

fn leak(dumps: &DumpPair<'_, TaskTable>, site: SiteKey<'_>, confidence: Confidence) -> Candidate {
    let mut candidate = Candidate::new(FindingKind::TaskLeak, confidence, site.location);
    for dump in dumps.first.into_iter().chain([dumps.last]) {
        candidate = candidate.evidence(&dump.file, format!("less {}", dump.file));
    }
    with_name(candidate, site)
}

#[cfg(test)]
mod tests;
