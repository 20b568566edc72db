//! Sources of recorded data: what the service installed, and what the build provides.

use std::sync::atomic::{AtomicBool, Ordering};

/// `true` if a subscriber has the layer.
static LAYER_INSTALLED: AtomicBool = AtomicBool::new(false);

/// `true` if a runtime was built with the hooks. They include task hooks if the build has them.
static HOOKS_INSTALLED: AtomicBool = AtomicBool::new(false);

/// `true` if a future was wrapped.
static TASKS_WRAPPED: AtomicBool = AtomicBool::new(false);

/// Returns `true` if the hooks of some runtime report its tasks. Constant `false` in a build
/// without task hooks.
#[inline]
pub(super) fn has_task_hooks() -> bool {
    cfg!(tokio_unstable) && HOOKS_INSTALLED.load(Ordering::Relaxed)
}

/// Returns a description of what recordings contain. It depends on the build and on what the
/// service installed.
pub fn recorded_sources() -> &'static str {
    let [spans, parks, tasks] = [&LAYER_INSTALLED, &HOOKS_INSTALLED, &TASKS_WRAPPED]
        .map(|flag| flag.load(Ordering::Relaxed));
    match (has_task_hooks(), tasks, parks, spans) {
        (true, _, _, true) => "polls from tokio's hooks, parks, spans",
        (true, _, _, false) => "polls from tokio's hooks, parks",
        (false, true, true, true) => "polls of wrapped tasks, parks, spans",
        (false, true, true, false) => "polls of wrapped tasks, parks",
        (false, true, false, true) => "polls of wrapped tasks, spans",
        (false, true, false, false) => "polls of wrapped tasks",
        (false, false, true, true) => "spans and parks",
        (false, false, true, false) => "parks",
        (false, false, false, true) => "spans",
        (false, false, false, false) => "vitals only",
    }
}

/// Returns `true` if anything writes to rings.
pub(super) fn has_ring_writers() -> bool {
    HOOKS_INSTALLED.load(Ordering::Relaxed) || TASKS_WRAPPED.load(Ordering::Relaxed)
}

/// Records that a future was wrapped.
#[inline]
pub(super) fn mark_tasks_wrapped() {
    // The load first avoids a store to a flag that all spawning threads share.
    if !TASKS_WRAPPED.load(Ordering::Relaxed) {
        TASKS_WRAPPED.store(true, Ordering::Relaxed);
    }
}

/// Records that a subscriber has the layer.
pub(super) fn mark_layer_installed() {
    LAYER_INSTALLED.store(true, Ordering::Relaxed);
}

/// Records that a runtime builder has the hooks.
pub(super) fn mark_hooks_installed() {
    HOOKS_INSTALLED.store(true, Ordering::Relaxed);
}
