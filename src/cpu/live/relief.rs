//! What is done when a quota gets tight: threads give up their samplers, another engine takes over, a warning says it.

use std::time::Duration;

use super::allotment::Unsampled;
use super::recorder::{State, tally_of};
use super::sampler::{self, Chosen};
use crate::base::{Moment, warnings};

/// Another engine is tried this often: to install timers for all threads costs some milliseconds.
const CHANGE_EVERY: Duration = Duration::from_secs(30);

/// A shortage that has been over for so long is no longer in `/status`, so that one which comes and goes with short-lived
/// threads is not logged each time.
const CALM: Duration = Duration::from_secs(10);

const TOPIC: &str = "cpu.engine";

/// When a shortage was met, and when another engine was tried.
#[derive(Debug, Default)]
pub(super) struct Relief {
    tried: Option<Moment>,
    /// The last time at which threads were without samples, while a warning says so.
    short: Option<Moment>,
}

impl Relief {
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

impl Drop for Relief {
    fn drop(&mut self) {
        if self.short.is_some() {
            warnings::clear(TOPIC);
        }
    }
}

impl State {
    /// Sees to the quotas. To be called when all samples are in.
    pub(super) fn relieve(&mut self, now: Moment) {
        self.chosen.sampler.review(now);
        let mut unsampled = self.chosen.sampler.unsampled();
        if let Some(short) = &unsampled
            && self.chosen.may_change
            && self.relief.tried.is_none_or(|tried| now.since(tried) >= CHANGE_EVERY)
        {
            self.relief.tried = Some(now);
            let words = format!("timer: {}", short.why);
            let timers = sampler::timer(self.frequency, &self.roster.tids(), words);
            let waiting = |chosen: &Chosen| chosen.sampler.unsampled().map_or(0, |it| it.threads);
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

    /// Lets another engine go on from here.
    fn change(&mut self, chosen: Chosen) {
        self.settle();
        for tid in self.charges.tids() {
            self.charges.close(tid);
        }
        self.chosen = chosen;
        self.open_accounts(&self.roster.tids());
    }
}
