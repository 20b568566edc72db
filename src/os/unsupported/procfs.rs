//! Metrics of the process, from sysinfo.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::base::{Bytes, Moment};

/// Validity of sysinfo's values: one refresh, which takes tens of microseconds, serves all readings
/// of a tick.
const VALIDITY: Duration = Duration::from_millis(50);

/// The process as reported by sysinfo.
pub struct Procfs {
    system: System,
    pid: Pid,
    last_refresh: Option<Moment>,
}

impl Procfs {
    /// Creates a reader. `root` is unused: there is no `/proc`.
    pub fn open(_root: &Path) -> Self {
        let pid = Pid::from_u32(std::process::id());
        Self { system: System::new(), pid, last_refresh: None }
    }

    /// Returns the resident set.
    pub fn rss(&mut self, now: Moment) -> Option<Bytes> {
        self.refresh(now);
        self.system.process(self.pid).map(|process| Bytes(process.memory()))
    }

    /// Returns `None`: not available on this platform.
    pub fn address_space(&self) -> Option<Bytes> {
        None
    }

    /// Returns `None`: not available on this platform.
    pub fn file_pages(&self) -> Option<Bytes> {
        None
    }

    /// Returns `None`: not available on this platform.
    pub fn data(&self) -> Option<Bytes> {
        None
    }

    /// Returns the number of threads, if sysinfo lists them.
    pub fn threads(&mut self, now: Moment) -> Option<u64> {
        self.refresh(now);
        Some(self.system.process(self.pid)?.tasks()?.len() as u64)
    }

    /// Returns `None`: not available on this platform.
    pub fn fds(&mut self, _now: Moment) -> Option<u64> {
        None
    }

    fn refresh(&mut self, now: Moment) {
        if self.last_refresh.is_some_and(|last_refresh| now.since(last_refresh) < VALIDITY) {
            return;
        }
        self.last_refresh = Some(now);
        self.system.refresh_processes_specifics(
            ProcessesToUpdate::Some(&[self.pid]),
            true,
            ProcessRefreshKind::nothing().with_memory().with_tasks(),
        );
    }
}

impl fmt::Debug for Procfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Procfs").field("last_refresh", &self.last_refresh).finish_non_exhaustive()
    }
}
