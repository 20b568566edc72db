//! The CPUs that the process as a whole may use.
//!
//! A CPU mask belongs to a thread. Services may pin threads to different cores, so no single mask
//! describes the process: the result is the union of the masks of all its threads. Marple's own
//! threads are excluded (`os::own_thread`), because they may run on CPUs that no thread of the
//! service may use.
//!
//! The masks already account for cpusets and offline CPUs. `vitals::cgroup` reads quotas.

use std::time::Duration;

#[cfg(target_os = "linux")]
use super::cpu_mask::CpuMask;
#[cfg(target_os = "linux")]
use crate::base::warnings;
#[cfg(target_os = "linux")]
use crate::os::own_thread;
#[cfg(target_os = "linux")]
use crate::os::proc::thread_list::ThreadList;

/// Topic of the warning that threads cannot be listed.
#[cfg(target_os = "linux")]
const TOPIC: &str = "threads.list";

/// Validity of a reading for each thread read. One thread costs 1 us; every 5 ms that is 0.02 % of
/// a core.
const VALIDITY_PER_THREAD: Duration = Duration::from_millis(5);

/// Bounds of the interval between two readings.
const MIN_VALIDITY: Duration = Duration::from_secs(1);
const MAX_VALIDITY: Duration = Duration::from_secs(60);

/// A reader of the number of CPUs.
#[derive(Debug, Default)]
pub struct CoreCounter {
    #[cfg(target_os = "linux")]
    tids: Vec<u32>,
}

/// Opens the thread list. Sets a warning if it cannot be opened.
#[cfg(target_os = "linux")]
fn open_thread_list() -> Option<ThreadList> {
    match ThreadList::open() {
        Ok(tasks) => {
            warnings::clear(TOPIC);
            Some(tasks)
        }
        Err(error) => {
            warnings::set(
                TOPIC,
                format!(
                    "no thread dumps and no per-thread CPU samples, and the main thread's CPUs \
                     count as those of the process: cannot read /proc/self/task: {error}"
                ),
            );
            None
        }
    }
}

impl CoreCounter {
    /// Returns the number of CPUs the process may use.
    #[cfg(target_os = "linux")]
    pub fn read(&mut self) -> Option<u32> {
        // Not held open: descriptors are scarce, and the list is read at most once a second.
        let listed = open_thread_list().is_some_and(|mut tasks| tasks.list(&mut self.tids).is_ok());
        if !listed {
            self.tids.clear();
        }
        let mut all = CpuMask::EMPTY;
        for &tid in &self.tids {
            let is_own = own_thread::running_tids().any(|own| own == tid);
            if !is_own && let Some(mask) = CpuMask::for_thread(tid) {
                all.union_with(&mask);
            }
        }
        // Fallback without a list: the mask of the main thread.
        if all == CpuMask::EMPTY {
            all = CpuMask::for_thread(std::process::id())?;
        }
        Some(all.count())
    }

    /// Returns the number of cores that `std` reports.
    #[cfg(not(target_os = "linux"))]
    pub fn read(&mut self) -> Option<u32> {
        std::thread::available_parallelism().ok().and_then(|cores| u32::try_from(cores.get()).ok())
    }

    /// Returns the validity period of the last reading: 5 ms per thread, from 1 s to 60 s.
    pub fn validity(&self) -> Duration {
        #[cfg(target_os = "linux")]
        let threads = u32::try_from(self.tids.len()).unwrap_or(u32::MAX);
        #[cfg(not(target_os = "linux"))]
        let threads = 1;
        VALIDITY_PER_THREAD
            .checked_mul(threads)
            .map_or(MAX_VALIDITY, |needed| needed.clamp(MIN_VALIDITY, MAX_VALIDITY))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn cpus_are_the_union_over_service_threads() {
        let process_mask = CpuMask::for_thread(std::process::id()).unwrap();
        let (to_end, end) = mpsc::channel::<()>();
        let (ready, wait) = mpsc::channel();
        let all = process_mask.clone();
        let wide = thread::spawn(move || {
            all.apply_to_current_thread().unwrap();
            ready.send(()).unwrap();
            let _ = end.recv();
        });
        wait.recv().unwrap();
        let mut cores = CoreCounter::default();
        thread::spawn(move || {
            process_mask.first_cpu().apply_to_current_thread().unwrap();
            assert_eq!(cores.read(), Some(process_mask.count()), "of a pinned thread");
            assert_eq!(cores.validity(), MIN_VALIDITY);
        })
        .join()
        .unwrap();
        drop(to_end);
        wide.join().unwrap();
    }
}
