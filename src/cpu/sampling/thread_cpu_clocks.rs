//! CPU time that the kernel charged to each thread since the last read.

use std::collections::HashMap;
use std::time::Duration;

#[derive(Debug, Default)]
struct ThreadClock {
    /// The kernel's count at the last read.
    told: Duration,
    /// Weight of the samples since then, in periods.
    sampled: u64,
}

/// CPU-time accounts of all sampled threads.
#[derive(Debug, Default)]
pub(super) struct ThreadCpuClocks(HashMap<u32, ThreadClock>);

impl ThreadCpuClocks {
    /// Opens the account of a thread whose sampling starts.
    pub(super) fn open(&mut self, tid: u32, told: Duration) {
        self.0.insert(tid, ThreadClock { told, sampled: 0 });
    }

    /// Records a sample. Returns `false` without an account: then the caller must charge the time.
    pub(super) fn note(&mut self, tid: u32, weight: u64) -> bool {
        let account = self.0.get_mut(&tid);
        account.is_some_and(|account| {
            account.sampled += weight;
            true
        })
    }

    /// Returns the CPU time of a thread since the last call. Some ended threads are no longer
    /// readable (`told` is `None`); their samples determine the time, which is accurate for the sum
    /// of many.
    pub(super) fn settle(
        &mut self,
        tid: u32,
        told: Option<Duration>,
        period: Duration,
    ) -> Duration {
        let Some(account) = self.0.get_mut(&tid) else { return Duration::ZERO };
        let sampled = std::mem::take(&mut account.sampled);
        match told {
            Some(told) => told.saturating_sub(std::mem::replace(&mut account.told, told)),
            None => period.saturating_mul(u32::try_from(sampled).unwrap_or(u32::MAX)),
        }
    }

    pub(super) fn close(&mut self, tid: u32) {
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
    fn a_thread_is_charged_what_is_new() {
        let ms = Duration::from_millis;
        let mut charges = ThreadCpuClocks::default();
        assert!(!charges.note(1, 1) && charges.settle(1, Some(ms(9)), ms(10)).is_zero());
        charges.open(1, ms(5));
        assert!(charges.note(1, 3));
        assert_eq!(charges.settle(1, Some(ms(39)), ms(10)), ms(34));
        // The thread has ended: the kernel's count is unavailable.
        assert!(charges.note(1, 2));
        assert_eq!(charges.settle(1, None, ms(10)), ms(20));
        assert_eq!(charges.settle(1, None, ms(10)), ms(0));
        charges.close(1);
        assert!(charges.tids().is_empty());
    }
}
