//! Count of the process's panics.

use std::sync::Once;

use crate::base::panics;

static HOOK: Once = Once::new();

/// Counts and lists the panics of the process from here on, including caught ones, for the metric
/// `panics` and `panics.txt`.
///
/// An agent calls this at its start. A service needs it only if it later installs a panic hook that
/// does not call the previous one. Such a hook ends the counting, and a call of this function
/// afterwards resumes it. The installed hook is called as before, after the hook added here. The
/// function has no effect the second time, and in a thread that is panicking, where hooks cannot be
/// changed.
pub fn count_panics() {
    if !std::thread::panicking() {
        HOOK.call_once(panics::chain_hook);
    }
}
