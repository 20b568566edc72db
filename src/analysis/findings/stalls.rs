//! Polls that block their worker, and runtimes whose workers or blocking pool are busy.

use super::system::Level;
use super::{Candidate, confidence_above_zero};
use crate::analysis::evidence::{IncidentEvidence, Tabulated};
use crate::analysis::{Symbol, ThreadActivity, ThreadGroup, ThreadTable};
use crate::analysis::{application_frame, display_name};
use crate::model::{Confidence, FindingKind, Metric, Reason};
use crate::symbols::is_glue;

/// Metrics that rise with a long poll.
const STALL_REASONS: &[&str] =
    &["runtime.stall", "runtime.stalled", "runtime.lag", "runtime.lag_p99", "runtime.blocked"];

const STALL_PHASE: &str = "stall";

/// Minimum share of the threads that a function must keep busy to explain a delay. The other half
/// of the threads is free for other work.
const MIN_EXPLAINING_SHARE: f64 = 0.5;

/// Threads of a runtime that can all be busy.
#[derive(Debug)]
struct ThreadSet {
    /// Subject if no function stands out.
    name: &'static str,
    busy: ThreadActivity,
    idle: ThreadActivity,
    symptoms: &'static [Symptom],
}

/// A metric that is high while all threads of a set are busy.
#[derive(Debug)]
struct Symptom {
    metric: &'static str,
    /// Threshold of the default rule for the metric.
    min_level: f64,
    /// True if threads that run do not cause it.
    is_blocking_only: bool,
    text: fn(f64) -> String,
}

const SETS: &[ThreadSet] = &[
    ThreadSet {
        name: "workers",
        busy: ThreadActivity::Polling,
        idle: ThreadActivity::IdleWorker,
        symptoms: &[
            Symptom {
                metric: "runtime.lag",
                min_level: 0.5,
                is_blocking_only: false,
                text: |seconds| format!("a ready task waited up to {seconds:.1} s for a worker"),
            },
            Symptom {
                metric: "runtime.stalled",
                min_level: 50.0,
                is_blocking_only: false,
                text: |percent| format!("ready tasks ran late for {percent:.0} % of ten seconds"),
            },
            Symptom {
                metric: "runtime.blocked",
                min_level: 30.0,
                is_blocking_only: true,
                text: |percent| {
                    format!("polls that waited took {percent:.0} % of the time of the workers")
                },
            },
            Symptom {
                metric: "runtime.lag_p99",
                min_level: 0.5,
                is_blocking_only: false,
                text: |seconds| {
                    format!("1 % of the probe tasks waited {seconds:.1} s or more for a worker")
                },
            },
        ],
    },
    ThreadSet {
        name: "blocking pool",
        busy: ThreadActivity::RunningClosure,
        idle: ThreadActivity::IdlePoolThread,
        symptoms: &[Symptom {
            metric: "runtime.blocking_lag",
            min_level: 2.0,
            is_blocking_only: false,
            text: |seconds| {
                format!("work waited up to {seconds:.1} s for a thread of the blocking pool")
            },
        }],
    },
];

/// Numbers of the threads of a set in a dump.
#[derive(Clone, Debug, Default)]
struct ThreadCounts {
    busy: u64,
    idle: u64,
    /// Busy threads by function, the largest number first.
    functions: Vec<BusyFunction>,
}

#[derive(Clone, Debug)]
struct BusyFunction {
    subject: String,
    threads: u64,
    running: u64,
    stack: Vec<Symbol>,
}

pub(super) fn find(evidence: &IncidentEvidence<'_>) -> Vec<Candidate> {
    let mut candidates = find_stalls(evidence);
    candidates.extend(SETS.iter().filter_map(|set| find_starved(evidence, set)));
    candidates
}

fn find_stalls(evidence: &IncidentEvidence<'_>) -> Vec<Candidate> {
    let dumps: Vec<&Tabulated<ThreadTable>> = evidence
        .tables
        .threads
        .iter()
        .filter(|dump| dump.phase.as_deref() == Some(STALL_PHASE))
        .collect();
    let mut candidates: Vec<Candidate> = Vec::new();
    for dump in &dumps {
        let Some(group) = stalled_group(&dump.table) else { continue };
        let Some(name) = application_frame(&group.stack) else { continue };
        let subject = display_name(name);
        let command = format!("less {}", dump.file);
        if let Some(index) = candidates.iter().position(|known| known.subject == subject) {
            let known = candidates.swap_remove(index);
            let share = known.share + 1.0 / dumps.len() as f64;
            candidates.push(known.share(share).evidence(&dump.file, command));
            continue;
        }
        let thread = group.names.first().map_or("unknown", |name| name);
        let mut text = format!("a poll on the thread {thread} blocks its worker in {subject}");
        // The detector found the poll, and the stack was read: nothing is sampled.
        let mut candidate = Candidate::new(FindingKind::Stall, Confidence::Certain, subject)
            .label("thread", thread)
            .stack(&group.stack)
            .share(1.0 / dumps.len() as f64)
            .explains_reason(evidence.has_reason(STALL_REASONS));
        if let Some(called) = called_function(&group.stack, name) {
            text += &format!(" via {}", display_name(called));
            candidate = candidate.label("via", display_name(called));
        }
        if let Some(seconds) = stall_duration(evidence, dump) {
            text += &format!(", for at least {seconds:.1} s");
            candidate = candidate.number("seconds", seconds);
        }
        candidates.push(candidate.text(text).evidence(&dump.file, command));
    }
    candidates
}

/// Returns the stalled thread of a dump. `None` if the poll had ended, or no stack was read.
fn stalled_group(table: &ThreadTable) -> Option<&ThreadGroup> {
    let has_activity =
        |activity| table.groups.iter().find(|group| ThreadActivity::of(&group.stack) == activity);
    // The loop of the worker is missing on a deep stack.
    has_activity(ThreadActivity::Polling).or_else(|| {
        has_activity(ThreadActivity::Other)
            .filter(|group| table.groups.len() == 1 && !group.stack.is_empty())
    })
}

/// Returns the value of the rule over `runtime.stall` that fired first after the dump.
fn stall_duration(evidence: &IncidentEvidence<'_>, dump: &Tabulated<ThreadTable>) -> Option<f64> {
    let is_stall = |reason: &&Reason| reason.metric == Some(Metric::Stall);
    let reasons = evidence.manifest.reasons.iter().filter(is_stall);
    let after_dump = reasons.filter(|reason| reason.at >= dump.taken);
    after_dump.min_by_key(|reason| reason.at)?.value
}

/// Returns the function that the application function `caller` calls in this stack, such as
/// `std::thread::sleep`.
fn called_function<'a>(stack: &'a [Symbol], caller: &Symbol) -> Option<&'a Symbol> {
    let (called, _) = stack.split_at(stack.iter().position(|name| name == caller)?);
    called.iter().rev().find(|name| !is_glue(name))
}

fn find_starved(evidence: &IncidentEvidence<'_>, set: &'static ThreadSet) -> Option<Candidate> {
    let reasons: Vec<&str> = set.symptoms.iter().map(|symptom| symptom.metric).collect();
    let observed = |symptom: &'static Symptom| Some((symptom, symptom.level(evidence)?));
    let mut observed: Vec<(&Symptom, f64)> = set.symptoms.iter().filter_map(observed).collect();
    observed.sort_by_key(|(symptom, _)| !evidence.has_reason(&[symptom.metric]));
    let &(symptom, level) = observed.first()?;
    let symptom_text = (symptom.text)(level);

    let dumps = evidence.tables.threads.iter();
    let dumps = dumps.filter(|dump| dump.phase.as_deref() != Some(STALL_PHASE));
    let counted = dumps.map(|dump| (dump, ThreadCounts::of(&dump.table, set, symptom)));
    let busiest =
        counted.max_by_key(|(_, counts)| counts.busy).filter(|(_, counts)| counts.busy > 0);
    let Some((dump, counts)) = busiest else {
        let text = format!("{symptom_text}; no thread dump shows what the {} did", set.name);
        let candidate = Candidate::new(FindingKind::RuntimeStarved, Confidence::Possible, set.name);
        return Some(symptom.add_evidence(candidate.text(text), level));
    };

    let total = counts.busy + counts.idle;
    let top = counts.functions.first()?;
    let is_dominating = top.threads * 2 > counts.busy;
    let threads = if is_dominating { top.threads } else { counts.busy };
    let noun = if set.name == "workers" { "workers" } else { "threads of the blocking pool" };
    let subject = if is_dominating { &*top.subject } else { set.name };
    let state = match is_dominating {
        true if top.running * 2 >= top.threads => {
            format!("{subject} runs on {threads} of {total} {noun}")
        }
        true => format!("{subject} blocks {threads} of {total} {noun}"),
        false => {
            let functions = counts.functions.len();
            format!("busy {noun}: {threads} of {total}, in {functions} functions")
        }
    };
    let share = threads as f64 / total as f64;
    let confidence = share_confidence(threads, total).unwrap_or(Confidence::Possible);
    let explains = evidence.has_reason(&reasons) && share >= MIN_EXPLAINING_SHARE;
    let candidate = Candidate::new(FindingKind::RuntimeStarved, confidence, subject)
        .text(format!("{state}; {symptom_text}"))
        .number("threads", threads as f64)
        .number("total_threads", total as f64)
        .share(share)
        .stack(if is_dominating { &top.stack } else { &[] })
        .explains_reason(explains)
        .evidence(&dump.file, format!("less {}", dump.file));
    Some(symptom.add_evidence(candidate, level))
}

impl Symptom {
    /// Returns the highest value, if a rule over the metric fired, or a default rule could have.
    fn level(&self, evidence: &IncidentEvidence<'_>) -> Option<f64> {
        let level = Level::of(evidence, self.metric)?;
        let is_high = evidence.has_reason(&[self.metric]) || level.sustained >= self.min_level;
        is_high.then_some(level.highest)
    }

    fn add_evidence(&self, candidate: Candidate, level: f64) -> Candidate {
        let command = super::system::vitals_command(self.metric);
        candidate.number(self.metric, level).evidence("incident.json", command)
    }
}

impl ThreadCounts {
    fn of(table: &ThreadTable, set: &ThreadSet, symptom: &Symptom) -> Self {
        let mut counts = Self::default();
        for group in &table.groups {
            let activity = ThreadActivity::of(&group.stack);
            if activity == set.idle {
                counts.idle += group.threads;
                continue;
            }
            let Some(name) = application_frame(&group.stack).filter(|_| activity == set.busy)
            else {
                continue;
            };
            if symptom.is_blocking_only {
                counts.idle += group.running;
                counts.add(name, group.threads.saturating_sub(group.running), 0, &group.stack);
            } else {
                counts.add(name, group.threads, group.running, &group.stack);
            }
        }
        counts
            .functions
            .sort_by(|a, b| b.threads.cmp(&a.threads).then_with(|| a.subject.cmp(&b.subject)));
        counts
    }

    fn add(&mut self, name: &Symbol, threads: u64, running: u64, stack: &[Symbol]) {
        let subject = display_name(name);
        self.busy += threads;
        match self.functions.iter_mut().find(|known| known.subject == subject) {
            Some(known) => {
                known.threads += threads;
                known.running += running;
            }
            None => self.functions.push(BusyFunction {
                subject: subject.to_owned(),
                threads,
                running,
                stack: stack.to_vec(),
            }),
        }
    }
}

/// Returns the confidence that a set of threads spends time in a function in which `threads` of
/// `total` were at one moment. By Laplace's rule of succession the share has the mean
/// `(k + 1) / (n + 2)` and the variance `mean * (1 - mean) / (n + 3)`.
fn share_confidence(threads: u64, total: u64) -> Option<Confidence> {
    let total = total as f64;
    let mean = (threads as f64 + 1.0) / (total + 2.0);
    confidence_above_zero(mean, mean * (1.0 - mean) / (total + 3.0))
}

#[cfg(test)]
mod tests;
