//! Recent stalls, the stall in progress, and the assignment of its stack to an incident.

use std::collections::VecDeque;
use std::time::Duration;

use super::detector;
use crate::base::{IncidentId, Moment, log};
use crate::model::{Metric, Rule, Stall, ThreadDump, Vitals};
use crate::stalls::stall_log::StallLog;

/// Number of stalls kept for `status`.
const MAX_RECENT: usize = 16;

/// Margin below the threshold: rules compare seconds as floating-point numbers.
const EPSILON: Duration = Duration::from_micros(1);

#[derive(Default)]
pub(crate) struct RecentStalls {
    recent: VecDeque<Stall>,
    /// Duration of the longest stall reported since the last tick.
    longest_since_tick: Option<Duration>,
    /// The longest stall of the last report, until it ends.
    current: Option<Stall>,
    /// Thread dump of `last`.
    current_dump: Option<Box<ThreadDump>>,
    /// Thread dumps to be sent to the capture thread.
    pending_dumps: Vec<(IncidentId, Box<ThreadDump>)>,
    log: StallLog,
}

impl RecentStalls {
    /// Records the stalls found by the detectors.
    pub(crate) fn record(&mut self, mut found: Vec<detector::DetectedStall>, now: Moment) {
        // When many stalls are found at once, few have a stack. Those are shown first.
        found.sort_by_key(|found| found.dump.is_none());
        let has_stack = found.first().is_some_and(|found| found.dump.is_some());
        if has_stack || !self.current.as_ref().is_some_and(|last| last.running) {
            self.current_dump = None;
            self.current = None;
        }
        for detector::DetectedStall { stall, dump, is_in_place } in found {
            if let Some(line) = self.log.record(now, &stall) {
                log::warn(line);
            }
            if is_in_place {
                self.push_recent(stall);
                continue;
            }
            self.longest_since_tick = self.longest_since_tick.max(Some(stall.lasted));
            let is_longer = self.current.as_ref().is_none_or(|last| stall.lasted > last.lasted);
            if is_longer && (dump.is_some() || self.current_dump.is_none()) {
                self.current = Some(stall.clone());
                self.current_dump = dump;
            }
            self.push_recent(stall);
        }
    }

    fn push_recent(&mut self, stall: Stall) {
        if self.recent.len() == MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(stall);
    }

    /// Sets the stall metric in `vitals`. Returns a description of the stall in progress.
    ///
    /// A poll that has reached `threshold` is held just below it until the detector reports it with
    /// the stack of its thread, some milliseconds later. Otherwise a tick in between would fire a
    /// rule whose reason is only a number.
    pub(crate) fn update_vitals(
        &mut self,
        vitals: &mut Vitals,
        threshold: Option<Duration>,
    ) -> Option<String> {
        self.log.due_summaries(vitals.at).into_iter().for_each(log::warn);
        let fresh = self.longest_since_tick.take();
        let longest = detector::longest_poll_in_progress();
        if self.current.as_ref().is_some_and(|last| fresh.max(longest) < Some(last.lasted)) {
            self.current = None;
            self.current_dump = None;
        }
        let known = match threshold.filter(|_| self.current.is_none()) {
            Some(threshold) => longest.map(|longest| longest.min(threshold - EPSILON)),
            None => longest,
        };
        vitals.stall = known.max(fresh);
        if let (Some(last), Some(lasted)) = (&mut self.current, vitals.stall)
            && last.running
        {
            last.lasted = lasted;
        }
        self.current.as_ref().map(Stall::to_string)
    }

    /// Assigns the thread dump to incident `id` if `rule`, which fired, watches stalls.
    pub(crate) fn attach_to(&mut self, id: IncidentId, rule: &str, rules: &[Rule]) {
        let watches = |known: &&Rule| {
            known.name == rule && matches!(known.metric, Metric::Stall | Metric::Stalled)
        };
        if rules.iter().find(watches).is_some()
            && let Some(dump) = self.current_dump.take()
        {
            self.pending_dumps.push((id, dump));
        }
    }

    /// Returns the thread dump to send with the first command of incident `id` after its directory
    /// was created.
    pub(crate) fn take_dump_for(&mut self, id: IncidentId) -> Option<Box<ThreadDump>> {
        let index = self.pending_dumps.iter().position(|(incident, _)| *incident == id)?;
        Some(self.pending_dumps.swap_remove(index).1)
    }

    pub(crate) fn recent(&self) -> Vec<Stall> {
        self.recent.iter().cloned().collect()
    }
}
