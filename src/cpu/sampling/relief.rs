//! Reaction to exhausted quotas: releasing samplers, switching the engine and setting a warning.

use std::time::Duration;

use super::allotment::Unsampled;
use super::perf::REVIEW_EVERY;
use super::recorder::{DrainState, tally_of};
use super::sampler::{self, SelectedEngine};
use crate::base::{Moment, warnings};

/// Minimum intervals between two attempts to switch the engine, in total and per thread: creating a
/// timer costs 2 us.
const CHANGE_EVERY: Duration = Duration::from_secs(30);
const CHANGE_PER_THREAD: Duration = Duration::from_millis(20);

/// Delay before the warning is cleared from `/status`. A shortage that recurs with short-lived
/// threads would otherwise be logged each time.
const CALM: Duration = Duration::from_secs(10);

const TOPIC: &str = "cpu.engine";

/// Times of the last shortage and of the last attempt to switch the engine.
#[derive(Debug, Default)]
pub(super) struct DescriptorRelief {
    tried: Option<Moment>,
    /// Last time with unsampled threads; `Some` while the warning is set.
    short: Option<Moment>,
}

impl DescriptorRelief {
    fn note(&mut self, unsampled: Option<&Unsampled>, now: Moment) {
        match (unsampled, self.short) {
            (Some(unsampled), before) => {
                if before.is_none() {
                    warnings::set(
                        TOPIC,
                        format!("not every thread has CPU samples: {}", unsampled.why),
                    );
                }
                self.short = Some(now);
            }
            (None, Some(at)) if now.since(at) >= CALM => {
                self.short = None;
                warnings::clear(TOPIC);
            }
            (None, _) => {}
        }
    }
}

impl Drop for DescriptorRelief {
    fn drop(&mut self) {
        if self.short.is_some() {
            warnings::clear(TOPIC);
        }
    }
}

impl DrainState {
    /// Applies the quotas; examines all threads at most once per `pause`. Called after a drain.
    pub(super) fn relieve(&mut self, now: Moment, pause: Duration) {
        self.chosen.sampler.review(now, pause.max(REVIEW_EVERY));
        let threads = u32::try_from(self.roster.len()).unwrap_or(u32::MAX);
        let change_every = CHANGE_EVERY.max(CHANGE_PER_THREAD.saturating_mul(threads));
        let mut unsampled = self.chosen.sampler.unsampled();
        if let Some(short) = &unsampled
            && self.chosen.may_change
            && self.relief.tried.is_none_or(|tried| now.since(tried) >= change_every)
        {
            self.relief.tried = Some(now);
            let words = format!("timer: {}", short.why);
            let timers = sampler::timer(self.frequency, &self.roster.tids(), words);
            let waiting =
                |chosen: &SelectedEngine| chosen.sampler.unsampled().map_or(0, |it| it.threads);
            if let Ok(timers) = timers
                && waiting(&timers) < short.threads
            {
                self.change(timers);
                unsampled = self.chosen.sampler.unsampled();
            }
        }
        self.relief.note(unsampled.as_ref(), now);
        if let (Some(now), Some(tally)) =
            (unsampled, tally_of(&mut self.during, &mut self.lookback))
            && tally.unsampled.as_ref().is_none_or(|before| before.threads <= now.threads)
        {
            tally.unsampled = Some(now);
        }
    }

    /// Switches to another engine.
    fn change(&mut self, chosen: SelectedEngine) {
        self.settle();
        for tid in self.charges.tids() {
            self.charges.close(tid);
        }
        self.chosen = chosen;
        self.open_accounts(&self.roster.tids());
    }
}
