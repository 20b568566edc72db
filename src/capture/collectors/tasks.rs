//! Task dumps, taken once at the start.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::{Bytes, SystemClock, TimeAnchor};
use crate::capture::collectors::{CaptureFailure, Evidence, Snapshot, StartedCapture};
use crate::config::{Settings, TasksMode, ThreadsMode};
use crate::model::Vitals;
use crate::stacks::tasks::{self, DumpOptions};

/// Number of tasks on the observed runtimes at the last tick plus one; 0 if unknown.
static RUNTIME_TASK_COUNT: AtomicU64 = AtomicU64::new(0);

/// Records the task count of a tick.
pub(crate) fn record_vitals(vitals: &Vitals) {
    RUNTIME_TASK_COUNT
        .store(vitals.tasks.map_or(0, |tasks| tasks.saturating_add(1)), Ordering::Relaxed);
}

/// Returns the memory of a dump: one row per task, and shared stacks.
pub(super) fn max_memory() -> Bytes {
    Bytes::kib(512 + tasks::max_listed() as u64 / 4)
}

pub(super) fn disabled_reason(settings: &Settings) -> Option<&'static str> {
    (settings.stacks.tasks == TasksMode::Off).then_some("`stacks.tasks` is \"off\"")
}

pub(super) fn start(
    settings: &Settings,
    anchor: TimeAnchor,
) -> Result<StartedCapture, CaptureFailure> {
    let capture_stacks = settings.stacks.tasks == TasksMode::Full;
    let options = DumpOptions {
        capture_stacks,
        allow_signals: capture_stacks && settings.stacks.threads == ThreadsMode::Full,
        timeout: settings.stacks.tasks_deadline,
    };
    let mut dump = tasks::dump(&SystemClock, anchor, options)?;
    let on_runtimes = RUNTIME_TASK_COUNT.load(Ordering::Relaxed).checked_sub(1);
    dump.unwrapped_tasks = on_runtimes.map(|tasks| tasks.saturating_sub(dump.runtime_tasks));
    let engine = if capture_stacks { "async backtrace" } else { "list" };
    Ok(StartedCapture {
        collector: Box::new(Snapshot { engine }),
        initial_evidence: Some(Evidence::Tasks(Box::new(dump))),
    })
}
