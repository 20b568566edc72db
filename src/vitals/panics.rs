//! How many panics there were.

use std::sync::Once;

use crate::base::panics;

static HOOK: Once = Once::new();

/// Has the process's panics be counted and listed from here on, those that are caught too, for the metric `panics` and
/// `panics.txt`.
///
/// An agent does it at its start, so that a service needs this only if it installs a panic hook of its own later: one
/// that does not call the hook before it ends the counting, and this, called after it, begins it again. It puts a hook
/// before the one that is installed, which is called as before. Does nothing the second time, and nothing in a thread
/// that is panicking, where hooks cannot be changed.
pub fn count_panics() {
    if !std::thread::panicking() {
        HOOK.call_once(panics::put_hook);
    }
}
