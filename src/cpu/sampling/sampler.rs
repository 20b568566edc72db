//! The interface of the `perf` and `timer` engines.

use std::time::Duration;

use super::allotment::Unsampled;
use crate::base::{Hertz, Moment};
use crate::os::stack_snapshot::StackSnapshot;

/// Result of unwinding a sample, as far as the engine needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnwindOutcome {
    /// The copied stack was sufficient.
    Walked,
    /// The copied stack was too short.
    TooShort,
}

/// Set of threads that a drain reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DrainScope<'t> {
    /// All threads.
    All,
    /// Threads whose rings are filling up, and those given. Samples of other threads stay in their
    /// rings.
    Filled(&'t [u32]),
}

/// A set of threads being sampled. Dropping it stops the sampling.
pub(super) trait CpuSampler: Send {
    /// Starts sampling these threads. Threads beyond a quota wait.
    fn attach(&mut self, tids: &[u32]);

    /// Releases a thread that has ended.
    fn detach(&mut self, tid: u32);

    /// Returns the CPU time of a thread by the kernel's count, up to a constant offset per thread,
    /// or `None` if unknown. The count may include time that is not sampled.
    fn thread_cpu_time(&mut self, tid: u32) -> Option<Duration>;

    /// Sets the sampling frequency.
    fn set_frequency(&mut self, frequency: Hertz);

    /// Passes each sample since the last call and its time to `on_sample`. Returns the lost weight.
    fn drain(
        &mut self,
        scope: DrainScope<'_>,
        on_sample: &mut dyn FnMut(&StackSnapshot, Moment) -> UnwindOutcome,
    ) -> u64;

    /// Releases samplers beyond the quotas and assigns free ones to waiting threads. Called after
    /// [`CpuSampler::drain`] in each pass; examines all threads at most once per `min_interval`.
    fn rebalance(&mut self, now: Moment, min_interval: Duration);

    /// Returns the number of waiting threads and the reason, or `None` if all are sampled.
    fn unsampled(&self) -> Option<Unsampled>;

    /// Returns `true` if threads wait for a permission that is not needed to sample user code.
    fn lacks_permission(&self) -> bool {
        false
    }

    /// Returns the reason if sampling has failed permanently.
    fn check_failure(&mut self) -> Option<String>;
}

/// Returns the maximum interval between two drains: four sample periods, within 10 ms to 200 ms.
/// The bounds limit wake-ups (five per second at 19 Hz) and the number of samples in flight.
pub(super) fn drain_interval(frequency: Hertz) -> Duration {
    let four_periods = Duration::from_secs(4) / frequency.get().max(1);
    four_periods.clamp(Duration::from_millis(10), Duration::from_millis(200))
}
