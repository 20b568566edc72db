//! How many panics there were, for services that ask for it.

use std::panic;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::base::panics;

static HOOK: Once = Once::new();
static COUNTING: AtomicBool = AtomicBool::new(false);
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts the process's panics from here on, for the metric `panics`, those that are caught too.
///
/// Puts a hook before the one that is installed, which is called as before. Call it after installing a
/// hook of the service's own: one that is installed later and does not call this one ends the counting.
/// Does nothing the second time, and nothing in a thread that is panicking, where hooks cannot be
/// changed.
pub fn count_panics() {
    if thread::panicking() {
        return;
    }
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // Those of marple's own are in its status, and are none of the service.
            if !panics::is_fenced() {
                PANICS.fetch_add(1, Ordering::Relaxed);
            }
            before(info);
        }));
        COUNTING.store(true, Ordering::Relaxed);
    });
}

/// How many there were since [`count_panics`]; none without it.
pub(super) fn counted() -> Option<u64> {
    COUNTING.load(Ordering::Relaxed).then(|| PANICS.load(Ordering::Relaxed))
}
