//! Containment of panics on marple's own threads: caught, hidden from the host's panic hook,
//! counted, and listed in `/status`.
//!
//! | thread | code | function | calls the host's hook |
//! |---|---|---|---|
//! | `marple`, `marple-capture`, … | marple's | [`catch_panic`] | no: it may block or exit |
//! | `marple-log`, callbacks, collectors | the host's | [`catch_host_panic`] | yes |
//!
//! With `panic = "abort"`, a panic ends the process before any of this applies.

use crate::base::sync::Mutex;
use std::cell::{Cell, RefCell};
use std::panic::{self, PanicHookInfo};
use std::sync::{Once, PoisonError};
use std::thread;

use jiff::Timestamp;
use serde::Serialize;

pub(crate) use super::host_panic::catch_host_panic;
use super::host_panic::panic_message;
use super::{log, panic_log};

static INSTALL_HOOK: Once = Once::new();

/// Panics since the start, one entry per thread name.
static THREAD_PANICS: Mutex<Vec<ThreadPanics>> = Mutex::new(Vec::new());

thread_local! {
    /// Set while this thread runs marple's code in a [`fence`].
    static BYPASSES_HOOK: Cell<bool> = const { Cell::new(false) };
    /// Message and location of the last panic in a fence.
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The panics of one of marple's threads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ThreadPanics {
    /// Thread name.
    pub thread: &'static str,
    /// Number of panics since the start. The thread continued after each.
    pub panics: u64,
    /// Wall-clock time of the last panic.
    pub last: Timestamp,
    /// Message of the last panic.
    pub message: String,
}

/// Installs a hook that bypasses the current panic hook for panics in a [`catch_panic`]. All other
/// panics are recorded in [`panic_log`] and forwarded to the current hook.
///
/// Does nothing on further calls, and nothing on a panicking thread. A hook installed later is also
/// called for panics in a fence, unless it forwards them to this one.
pub(crate) fn install_hook() {
    if thread::panicking() {
        return;
    }
    INSTALL_HOOK.call_once(chain_hook);
}

/// Installs the hook in front of the current one.
pub(crate) fn chain_hook() {
    let previous_hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if bypasses_hook() {
            let _ = LAST_PANIC.try_with(|last| last.replace(Some(describe(info))));
        } else {
            panic_log::record(info, || previous_hook(info));
        }
    }));
    panic_log::enable();
}

/// Returns `true` if this thread runs marple's code in a fence.
pub(crate) fn bypasses_hook() -> bool {
    BYPASSES_HOOK.try_with(Cell::get).unwrap_or(false)
}

/// Marks this thread as running only marple's code. Its panics, which are caught elsewhere, bypass
/// the host's hook.
pub(crate) fn bypass_hook_on_thread() {
    BYPASSES_HOOK.set(true);
}

/// Runs `work`, which is marple's code. A panic is returned as an error, without calling the host's
/// hook.
///
/// # Errors
///
/// Returns the panic's message and location.
pub(crate) fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let previous = BYPASSES_HOOK.replace(true);
    LAST_PANIC.take();
    let result = catch_host_panic(work);
    BYPASSES_HOOK.set(previous);
    result.map_err(|message| LAST_PANIC.take().unwrap_or(message))
}

/// Counts a panic of `thread`, which continues. Logs the first one and then every power of two.
pub(crate) fn record(thread: &'static str, message: &str) {
    let panics = {
        let mut recorded = THREAD_PANICS.lock().unwrap_or_else(PoisonError::into_inner);
        let last = Timestamp::now();
        let message = log::escape(message).into_owned();
        match recorded.iter_mut().find(|entry| entry.thread == thread) {
            Some(entry) => {
                entry.panics += 1;
                entry.last = last;
                entry.message = message;
                entry.panics
            }
            None => {
                recorded.push(ThreadPanics { thread, panics: 1, last, message });
                1
            }
        }
    };
    if panics.is_power_of_two() {
        let text = format!("thread `{thread}` panicked and continues: {message}");
        log::LogEvent::new(log::LogLevel::Error, text).times(panics).send();
    }
}

/// Runs `work`, which is marple's code, on `thread`. Counts a panic and returns `None` for it.
pub(crate) fn catch_and_record_panic<T>(
    thread: &'static str,
    work: impl FnOnce() -> T,
) -> Option<T> {
    catch_panic(work).inspect_err(|message| record(thread, message)).ok()
}

/// Returns the panics since the start.
pub(crate) fn list() -> Vec<ThreadPanics> {
    THREAD_PANICS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let message = panic_message(info.payload()).unwrap_or("(no message)");
    match info.location() {
        Some(place) => format!("{message} ({}:{})", place.file(), place.line()),
        None => message.to_owned(),
    }
}
