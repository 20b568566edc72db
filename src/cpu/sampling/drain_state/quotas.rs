//! Reaction to exhausted quotas: releasing samplers, switching the engine and setting a warning.

use std::time::Duration;

use super::{DrainState, current_table};
use crate::base::{Moment, warnings};
use crate::cpu::sampling::allotment::Unsampled;
use crate::cpu::sampling::engine::{SelectedEngine, start_timer_engine};
use crate::cpu::sampling::period::MIN_REBALANCE_INTERVAL;

/// Minimum intervals between two attempts to switch the engine, in total and per thread: creating a
/// timer costs 2 us.
const MIN_SWITCH_INTERVAL: Duration = Duration::from_secs(30);
const SWITCH_INTERVAL_PER_THREAD: Duration = Duration::from_millis(20);

/// Delay before the warning is cleared from `/status`. A shortage that recurs with short-lived
/// threads would otherwise be logged each time.
const WARNING_CLEAR_DELAY: Duration = Duration::from_secs(10);

const WARNING_TOPIC: &str = "cpu.engine";

/// Times of the last shortage and of the last attempt to switch the engine.
#[derive(Debug, Default)]
pub(super) struct QuotaShortage {
    last_switch_attempt: Option<Moment>,
    /// Last time with unsampled threads; `Some` while the warning is set.
    last_shortage: Option<Moment>,
}

impl QuotaShortage {
    fn update_warning(&mut self, unsampled: Option<&Unsampled>, now: Moment) {
        match (unsampled, self.last_shortage) {
            (Some(unsampled), before) => {
                if before.is_none() {
                    warnings::set(
                        WARNING_TOPIC,
                        format!("some threads have no CPU samples: {}", unsampled.reason),
                    );
                }
                self.last_shortage = Some(now);
            }
            (None, Some(at)) if now.since(at) >= WARNING_CLEAR_DELAY => {
                self.last_shortage = None;
                warnings::clear(WARNING_TOPIC);
            }
            (None, _) => {}
        }
    }
}

impl Drop for QuotaShortage {
    fn drop(&mut self) {
        if self.last_shortage.is_some() {
            warnings::clear(WARNING_TOPIC);
        }
    }
}

impl DrainState {
    /// Applies the quotas; examines all threads at most once per `min_interval`. Called after a
    /// drain.
    pub(super) fn apply_quotas(&mut self, now: Moment, min_interval: Duration) {
        self.engine.sampler.rebalance(now, min_interval.max(MIN_REBALANCE_INTERVAL));
        let threads = u32::try_from(self.thread_table.len()).unwrap_or(u32::MAX);
        let switch_interval =
            MIN_SWITCH_INTERVAL.max(SWITCH_INTERVAL_PER_THREAD.saturating_mul(threads));
        let mut unsampled = self.engine.sampler.unsampled();
        if let Some(shortage) = &unsampled
            && self.engine.may_switch_to_timer
            && self
                .quota_shortage
                .last_switch_attempt
                .is_none_or(|tried| now.since(tried) >= switch_interval)
        {
            self.quota_shortage.last_switch_attempt = Some(now);
            let description = format!("timer: {}", shortage.reason);
            let timers = start_timer_engine(self.frequency, &self.thread_table.tids(), description);
            let unsampled_threads = |chosen: &SelectedEngine| {
                chosen.sampler.unsampled().map_or(0, |waiting| waiting.threads)
            };
            if let Ok(timers) = timers
                && unsampled_threads(&timers) < shortage.threads
            {
                self.switch_engine(timers);
                unsampled = self.engine.sampler.unsampled();
            }
        }
        self.quota_shortage.update_warning(unsampled.as_ref(), now);
        if let (Some(current), Some(table)) =
            (unsampled, current_table(&mut self.session, &mut self.lookback))
            && table.unsampled.as_ref().is_none_or(|before| before.threads <= current.threads)
        {
            table.unsampled = Some(current);
        }
    }

    /// Switches to another engine.
    fn switch_engine(&mut self, engine: SelectedEngine) {
        self.charge_all();
        for tid in self.cpu_clocks.tids() {
            self.cpu_clocks.untrack(tid);
        }
        self.engine = engine;
        self.track_cpu_clocks(&self.thread_table.tids());
    }
}
