//! Recent stalls, the stall in progress, and the assignment of its stack to an incident.

use std::collections::VecDeque;
use std::time::Duration;

use super::detector;
use crate::base::{IncidentId, Moment, log};
use crate::model::{Metric, Rule, Stall, ThreadDump, Vitals};
use crate::stalls::stall_log::StallLog;

/// Number of stalls kept for `status`.
const RECENT: usize = 16;

/// Margin below the threshold: rules compare seconds as floating-point numbers.
const EPSILON: Duration = Duration::from_micros(1);

#[derive(Default)]
pub(crate) struct RecentStalls {
    recent: VecDeque<Stall>,
    /// Duration of the longest stall reported since the last tick.
    fresh: Option<Duration>,
    /// The longest stall of the last report, until it ends.
    last: Option<Stall>,
    /// Thread dump of `last`.
    dump: Option<Box<ThreadDump>>,
    /// Thread dumps to be sent to the capture thread.
    leaving: Vec<(IncidentId, Box<ThreadDump>)>,
    log: StallLog,
}

impl RecentStalls {
    /// Records the stalls found by the detectors.
    pub(crate) fn hear(&mut self, mut found: Vec<detector::FoundStalls>, now: Moment) {
        // When many stalls are found at once, few have a stack. Those are shown first.
        found.sort_by_key(|found| found.dump.is_none());
        let has_stack = found.first().is_some_and(|found| found.dump.is_some());
        if has_stack || !self.last.as_ref().is_some_and(|last| last.running) {
            self.dump = None;
            self.last = None;
        }
        for detector::FoundStalls { stall, dump, is_in_place } in found {
            if let Some(line) = self.log.take(now, &stall) {
                log::warn(line);
            }
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

    /// Sets the stall metric in `vitals`. Returns a description of the stall in progress.
    ///
    /// A poll that has reached `threshold` is held just below it until the detector reports it with
    /// the stack of its thread, some milliseconds later. Otherwise a tick in between would fire a
    /// rule whose reason is only a number.
    pub(crate) fn tick(
        &mut self,
        vitals: &mut Vitals,
        threshold: Option<Duration>,
    ) -> Option<String> {
        self.log.due(vitals.at).into_iter().for_each(log::warn);
        let fresh = self.fresh.take();
        let longest = detector::longest();
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

    /// Assigns the thread dump to incident `id` if `rule`, which fired, watches stalls.
    pub(crate) fn goes_to(&mut self, id: IncidentId, rule: &str, rules: &[Rule]) {
        let watches = |known: &&Rule| {
            known.name == rule && matches!(known.metric, Metric::Stall | Metric::Stalled)
        };
        if rules.iter().find(watches).is_some()
            && let Some(dump) = self.dump.take()
        {
            self.leaving.push((id, dump));
        }
    }

    /// Returns the thread dump to send with the first command of incident `id` after its directory
    /// was created.
    pub(crate) fn take_for(&mut self, id: IncidentId) -> Option<Box<ThreadDump>> {
        let at = self.leaving.iter().position(|(incident, _)| *incident == id)?;
        Some(self.leaving.swap_remove(at).1)
    }

    pub(crate) fn recent(&self) -> Vec<Stall> {
        self.recent.iter().cloned().collect()
    }
}
