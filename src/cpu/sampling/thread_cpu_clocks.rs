//! CPU time that the kernel charged to each thread since the last read.

use std::collections::HashMap;
use std::time::Duration;

#[derive(Debug, Default)]
struct ThreadClock {
    /// The kernel's count at the last read.
    last_read: Duration,
    /// Weight of the samples since then, in periods.
    sampled_weight: u64,
}

/// CPU-time accounts of all sampled threads.
#[derive(Debug, Default)]
pub(super) struct ThreadCpuClocks(HashMap<u32, ThreadClock>);

impl ThreadCpuClocks {
    /// Opens the account of a thread whose sampling starts.
    pub(super) fn track(&mut self, tid: u32, cpu_time: Duration) {
        self.0.insert(tid, ThreadClock { last_read: cpu_time, sampled_weight: 0 });
    }

    /// Records a sample. Returns `false` if the thread is not tracked; the caller must then charge
    /// the time.
    pub(super) fn record_sample(&mut self, tid: u32, weight: u64) -> bool {
        let clock = self.0.get_mut(&tid);
        clock.is_some_and(|clock| {
            clock.sampled_weight += weight;
            true
        })
    }

    /// Returns the CPU time of a thread since the last call. Some ended threads are no longer
    /// readable (`cpu_time` is `None`); their samples determine the time, which is accurate for the
    /// sum of many.
    pub(super) fn take_delta(
        &mut self,
        tid: u32,
        cpu_time: Option<Duration>,
        period: Duration,
    ) -> Duration {
        let Some(clock) = self.0.get_mut(&tid) else { return Duration::ZERO };
        let sampled_weight = std::mem::take(&mut clock.sampled_weight);
        match cpu_time {
            Some(cpu_time) => {
                cpu_time.saturating_sub(std::mem::replace(&mut clock.last_read, cpu_time))
            }
            None => period.saturating_mul(u32::try_from(sampled_weight).unwrap_or(u32::MAX)),
        }
    }

    pub(super) fn untrack(&mut self, tid: u32) {
        self.0.remove(&tid);
    }

    pub(super) fn tids(&self) -> Vec<u32> {
        self.0.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn take_delta_returns_cpu_time_since_last_read() {
        let ms = Duration::from_millis;
        let mut clocks = ThreadCpuClocks::default();
        assert!(!clocks.record_sample(1, 1) && clocks.take_delta(1, Some(ms(9)), ms(10)).is_zero());
        clocks.track(1, ms(5));
        assert!(clocks.record_sample(1, 3));
        assert_eq!(clocks.take_delta(1, Some(ms(39)), ms(10)), ms(34));
        // The thread has ended: the kernel's count is unavailable.
        assert!(clocks.record_sample(1, 2));
        assert_eq!(clocks.take_delta(1, None, ms(10)), ms(20));
        assert_eq!(clocks.take_delta(1, None, ms(10)), ms(0));
        clocks.untrack(1);
        assert!(clocks.tids().is_empty());
    }
}
