//! The process's own numbers.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::base::{Bytes, Moment};

/// How long what sysinfo told is good for, so that it is asked once for all readings of a tick:
/// asking takes tens of microseconds.
const GOOD_FOR: Duration = Duration::from_millis(50);

/// The process, as sysinfo knows it.
pub struct Procfs {
    system: System,
    own: Pid,
    told: Option<Moment>,
}

impl Procfs {
    /// Makes ready to ask; there is no `/proc` to take from `root`.
    pub fn open(_root: &Path) -> Self {
        let own = Pid::from_u32(std::process::id());
        Self { system: System::new(), own, told: None }
    }

    /// The resident set.
    pub fn rss(&mut self, now: Moment) -> Option<Bytes> {
        self.ask(now);
        self.system.process(self.own).map(|process| Bytes(process.memory()))
    }

    /// None: nobody tells.
    pub fn address_space(&self) -> Option<Bytes> {
        None
    }

    /// None: nobody tells.
    pub fn file_pages(&self) -> Option<Bytes> {
        None
    }

    /// None: nobody tells.
    pub fn data(&self) -> Option<Bytes> {
        None
    }

    /// How many threads there are, where sysinfo lists them.
    pub fn threads(&mut self, now: Moment) -> Option<u64> {
        self.ask(now);
        Some(self.system.process(self.own)?.tasks()?.len() as u64)
    }

    /// None: nobody tells.
    pub fn fds(&mut self, _now: Moment) -> Option<u64> {
        None
    }

    fn ask(&mut self, now: Moment) {
        if self.told.is_some_and(|told| now.since(told) < GOOD_FOR) {
            return;
        }
        self.told = Some(now);
        self.system.refresh_processes_specifics(
            ProcessesToUpdate::Some(&[self.own]),
            true,
            ProcessRefreshKind::nothing().with_memory().with_tasks(),
        );
    }
}

impl fmt::Debug for Procfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Procfs").field("told", &self.told).finish_non_exhaustive()
    }
}
