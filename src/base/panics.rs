//! Containment of panics on marple's own threads: caught, hidden from the host's panic hook,
//! counted, and listed in `/status`.
//!
//! | thread | code | function | calls the host's hook |
//! |---|---|---|---|
//! | `marple`, `marple-capture`, … | marple's | [`fence`] | no: it may block, or end the process |
//! | `marple-log`, callbacks, collectors | the host's | [`catch`] | yes |
//!
//! With `panic = "abort"`, a panic ends the process before any of this applies.

use crate::base::sync::Mutex;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::{Once, PoisonError};
use std::thread;

use jiff::Timestamp;
use serde::Serialize;

use super::{log, panic_log};

static HOOK: Once = Once::new();

/// Panics since the start, one entry per thread name.
static RECORDED: Mutex<Vec<ThreadPanics>> = Mutex::new(Vec::new());

thread_local! {
    /// Set while this thread runs marple's code in a [`fence`].
    static IS_FENCED: Cell<bool> = const { Cell::new(false) };
    /// Message and location of the last panic in a fence.
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
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

/// Installs a hook that bypasses the current panic hook for panics in a [`fence`]. All other panics
/// are recorded in [`panic_log`](super::panic_log) and forwarded to the current hook.
///
/// Does nothing on further calls, and nothing on a panicking thread. A hook installed later is also
/// called for panics in a fence, unless it forwards them to this one.
pub(crate) fn install_hook() {
    if thread::panicking() {
        return;
    }
    HOOK.call_once(put_hook);
}

/// Installs the hook in front of the current one.
pub(crate) fn put_hook() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if is_fenced() {
            let _ = LAST.try_with(|last| last.replace(Some(described(info))));
        } else {
            panic_log::record(info, || before(info));
        }
    }));
    panic_log::begin();
}

/// Returns `true` if this thread runs marple's code in a fence.
pub(crate) fn is_fenced() -> bool {
    IS_FENCED.try_with(Cell::get).unwrap_or(false)
}

/// Marks this thread as running only marple's code. Its panics, which are caught elsewhere, bypass
/// the host's hook.
pub(crate) fn fence_thread() {
    IS_FENCED.set(true);
}

/// Runs `work`, which is marple's code. A panic is returned as an error, without calling the host's
/// hook.
///
/// # Errors
///
/// Returns the panic's message and location.
pub(crate) fn fence<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let was_fenced = IS_FENCED.replace(true);
    LAST.take();
    let done = catch(work);
    IS_FENCED.set(was_fenced);
    done.map_err(|message| LAST.take().unwrap_or(message))
}

/// Runs `work`, which is host code. A panic is returned as an error.
///
/// # Errors
///
/// Returns the panic's message.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let message = message(&*panic).unwrap_or("(no message)").to_owned();
        // The payload can be of any type, so dropping it may panic too.
        if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(another);
        }
        message
    })
}

/// Counts a panic of `thread`, which continues. Logs the first one and then every power of two.
pub(crate) fn record(thread: &'static str, message: &str) {
    let panics = {
        let mut recorded = RECORDED.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, message) = (Timestamp::now(), log::escaped(message).into_owned());
        match recorded.iter_mut().find(|entry| entry.thread == thread) {
            Some(entry) => {
                entry.panics += 1;
                (entry.last, entry.message) = (last, message);
                entry.panics
            }
            None => {
                recorded.push(ThreadPanics { thread, panics: 1, last, message });
                1
            }
        }
    };
    if panics.is_power_of_two() {
        let text = format!("thread `{thread}` panicked and goes on: {message}");
        log::LogEvent::new(log::LogLevel::Error, text).times(panics).send();
    }
}

/// Runs `work`, which is marple's code, on `thread`. Counts a panic and returns `None` for it.
pub(crate) fn fence_and_record<T>(thread: &'static str, work: impl FnOnce() -> T) -> Option<T> {
    fence(work).inspect_err(|message| record(thread, message)).ok()
}

/// Returns the panics since the start.
pub(crate) fn list() -> Vec<ThreadPanics> {
    RECORDED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

pub(super) fn message(panic: &(dyn Any + Send)) -> Option<&str> {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref().map(String::as_str))
}

fn described(info: &PanicHookInfo<'_>) -> String {
    let message = message(info.payload()).unwrap_or("(no message)");
    match info.location() {
        Some(place) => format!("{message} ({}:{})", place.file(), place.line()),
        None => message.to_owned(),
    }
}
