//! What the loop knows of stalls: the last ones, the one that goes on, and whose stack goes to which incident.

use std::collections::VecDeque;
use std::time::Duration;

use super::collect;
use super::incidents::Job;
use super::stall_log::StallLog;
use crate::base::{IncidentId, Moment, log};
use crate::model::{Metric, Rule, Stall, ThreadDump, Vitals};

/// How many are kept for `status`.
const RECENT: usize = 16;

/// A rule compares seconds as floating-point numbers.
const EPSILON: Duration = Duration::from_micros(1);

#[derive(Default)]
pub(super) struct Stuck {
    recent: VecDeque<Stall>,
    /// The longest since the last tick.
    fresh: Option<Duration>,
    /// The longest of those heard of last, as long as it goes on.
    last: Option<Stall>,
    /// That one's thread.
    dump: Option<Box<ThreadDump>>,
    /// Stacks on their way to the capture thread.
    leaving: Vec<(IncidentId, Box<ThreadDump>)>,
    log: StallLog,
}

impl Stuck {
    /// Takes what was found.
    pub(super) fn hear(&mut self, mut found: Vec<collect::stalls::Found>, now: Moment) {
        // Of many at once few have a stack: those are the ones to show.
        found.sort_by_key(|found| found.dump.is_none());
        let has_stack = found.first().is_some_and(|found| found.dump.is_some());
        if has_stack || !self.last.as_ref().is_some_and(|last| last.running) {
            self.dump = None;
            self.last = None;
        }
        for collect::stalls::Found { stall, dump, is_in_place } in found {
            if let Some(line) = self.log.take(now, &stall) {
                log::warn(line);
            }
            collect::trace::record_stall(&stall);
            if is_in_place {
                self.keep(stall);
                continue;
            }
            self.fresh = self.fresh.max(Some(stall.lasted));
            let is_longer = self.last.as_ref().is_none_or(|last| stall.lasted > last.lasted);
            if is_longer && (dump.is_some() || self.dump.is_none()) {
                self.last = Some(stall.clone());
                self.dump = dump;
            }
            self.keep(stall);
        }
    }

    fn keep(&mut self, stall: Stall) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(stall);
    }

    /// Puts the longest poll into `vitals`; gives the stall that goes on, in words.
    ///
    /// A poll that has reached `threshold` stays there until it was heard of, some milliseconds later with
    /// its thread's stack: else a tick in between would fire a rule that knows no more than a number.
    pub(super) fn tick(
        &mut self,
        vitals: &mut Vitals,
        threshold: Option<Duration>,
    ) -> Option<String> {
        self.log.due(vitals.at).into_iter().for_each(log::warn);
        let fresh = self.fresh.take();
        let longest = collect::stalls::longest();
        if self.last.as_ref().is_some_and(|last| fresh.max(longest) < Some(last.lasted)) {
            self.last = None;
            self.dump = None;
        }
        let known = match threshold.filter(|_| self.last.is_none()) {
            Some(threshold) => longest.map(|longest| longest.min(threshold - EPSILON)),
            None => longest,
        };
        vitals.stall = known.max(fresh);
        if let (Some(last), Some(lasted)) = (&mut self.last, vitals.stall)
            && last.running
        {
            last.lasted = lasted;
        }
        self.last.as_ref().map(Stall::to_string)
    }

    /// The rule called `rule` has fired: if it watches stalls, its incident gets the stack.
    pub(super) fn goes_to(&mut self, id: IncidentId, rule: &str, rules: &[Rule]) {
        let watches = |known: &&Rule| {
            known.name == rule && matches!(known.metric, Metric::Stall | Metric::Stalled)
        };
        if rules.iter().find(watches).is_some()
            && let Some(dump) = self.dump.take()
        {
            self.leaving.push((id, dump));
        }
    }

    /// The stack that goes with `job`: with the first that has a directory.
    pub(super) fn take_for(&mut self, job: &Job, id: IncidentId) -> Option<Box<ThreadDump>> {
        if matches!(job, Job::Open { .. }) {
            return None;
        }
        let at = self.leaving.iter().position(|(incident, _)| *incident == id)?;
        Some(self.leaving.swap_remove(at).1)
    }

    pub(super) fn recent(&self) -> Vec<Stall> {
        self.recent.iter().cloned().collect()
    }
}
