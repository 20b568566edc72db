//! Reasons for metrics without a value.

use super::reader::Reader;
use crate::model::Metric;

impl Reader {
    /// Returns the reason why `metric`, which has no value, cannot be measured, as a clause with a
    /// remedy.
    pub fn unavailable_reason(&self, metric: &Metric) -> String {
        let text = match metric {
            Metric::Memory | Metric::WorkingSet | Metric::Rss => {
                "/proc/self/statm cannot be read; mount /proc"
            }
            Metric::MemoryGrowth | Metric::TimeToLimit | Metric::TaskGrowth => {
                "10 values, one second apart, are needed"
            }
            Metric::Heap => {
                "marple's allocator is not the global allocator, or the feature `heap` is not \
                 enabled"
            }
            Metric::Cpu | Metric::CpuDemand => "two ticks are needed",
            Metric::Blocked => {
                "no multi-thread tokio runtime is observed, or /proc/self/task/*/schedstat cannot \
                 be read (CONFIG_SCHED_INFO)"
            }
            Metric::Tasks | Metric::TaskRise | Metric::Lag | Metric::LagP99 => {
                "no tokio runtime is observed; start the agent in a runtime, or pass one to `AgentHandle::observe`"
            }
            Metric::Stalled => {
                "no tokio runtime is observed, or /proc/self/task/*/schedstat cannot be read, \
                 which distinguishes a stall from a thread that waits for a core; mount /proc, or \
                 pass a runtime to `AgentHandle::observe`"
            }
            Metric::BlockingLag => {
                "no tokio runtime is observed, or its blocking pool has no thread yet"
            }
            Metric::Threads | Metric::Fds | Metric::ThreadRise | Metric::FdRise => {
                "/proc/self cannot be read; mount /proc"
            }
            Metric::FdUtilization => {
                "the process has no descriptor limit, or /proc/self/fd cannot be read"
            }
            Metric::Stall => {
                "polls are not recorded; enable the feature `trace` and spawn tasks with \
                 `marple::task`, or let the agent observe the runtime"
            }
            Metric::MemoryHigh => {
                "the cgroup of the process has no memory.events; this file requires cgroup v2 with \
                 the memory controller"
            }
            Metric::MemoryMax => {
                "the cgroup of the process has no memory.events (v2) or memory.failcnt (v1); enable the memory controller"
            }
            Metric::OomKills => {
                "the cgroup of the process has no memory.events (v2) or memory.oom_control (v1); enable the memory \
                 controller"
            }
            Metric::Throttled => "no cpu.stat with periods can be read; enable the CPU controller",
            Metric::MemoryPressure | Metric::CpuPressure | Metric::IoPressure => {
                "the kernel has no pressure files; they require CONFIG_PSI, and psi=1 if PSI is \
                 off by default"
            }
            Metric::Panics => "the first value is available after one second",
            Metric::Gauge(_) | Metric::Counter(..) | Metric::Histogram(..) => {
                "the service has not set it; check the spelling"
            }
        };
        text.to_owned()
    }
}
