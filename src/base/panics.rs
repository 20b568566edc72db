//! Panics on marple's own threads: caught, kept from the host's panic hook, counted, and listed in `/status`.
//!
//! | where | whose code | function | the host's hook is called |
//! |---|---|---|---|
//! | `marple`, `marple-capture`, … | marple's | [`fence`] | no: it may block, or end the process |
//! | `marple-log`, callbacks, collectors | the host's | [`catch`] | yes |
//!
//! With `panic = "abort"` a panic ends the process before any of this.

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

/// Panics so far, one entry a thread's name.
static RECORDED: Mutex<Vec<ThreadPanics>> = Mutex::new(Vec::new());

thread_local! {
    /// Whether marple's own code runs in a [`fence`].
    static IS_FENCED: Cell<bool> = const { Cell::new(false) };
    /// Message and place of the last panic in a fence.
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics of one of marple's threads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ThreadPanics {
    /// The thread's name.
    pub thread: &'static str,
    /// Number of panics since the start. The thread went on after each.
    pub panics: u64,
    /// Wall-clock time of the last one.
    pub last: Timestamp,
    /// Message of the last one.
    pub message: String,
}

/// Has panics in a [`fence`] pass by the panic hook that is installed. All others are recorded in
/// [`panic_log`](super::panic_log) and go to it as before.
///
/// Does nothing the second time, and nothing on a thread that is panicking. A hook that is installed later is called for
/// panics in a fence too, unless it calls the one before it for them.
pub(crate) fn install_hook() {
    if thread::panicking() {
        return;
    }
    HOOK.call_once(put_hook);
}

/// Puts a hook before the one that is installed.
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

/// Whether this thread runs code of marple that may panic without harm.
pub(crate) fn is_fenced() -> bool {
    IS_FENCED.try_with(Cell::get).unwrap_or(false)
}

/// Marks this thread, which runs nothing but marple's code: its panics, which others catch, pass by the host's hook.
pub(crate) fn fence_thread() {
    IS_FENCED.set(true);
}

/// Runs `work`, which is marple's code. A panic is an error with its message; the host's hook is not called.
///
/// # Errors
///
/// The panic's message and place.
pub(crate) fn fence<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let was_fenced = IS_FENCED.replace(true);
    LAST.take();
    let done = catch(work);
    IS_FENCED.set(was_fenced);
    done.map_err(|message| LAST.take().unwrap_or(message))
}

/// Runs `work`, which is the host's code. A panic is an error with its message.
///
/// # Errors
///
/// The panic's message.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let message = message(&*panic).unwrap_or("(no message)").to_owned();
        // The payload is a value of whatever type, and dropping it may panic too.
        if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(another);
        }
        message
    })
}

/// Counts a panic of `thread`, which goes on. Logs the first and then every power of two.
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
        log::Event::new(log::Level::Error, text).times(panics).send();
    }
}

/// Runs `work`, which is marple's code, on `thread`. A panic is counted, and `None`.
pub(crate) fn fence_and_record<T>(thread: &'static str, work: impl FnOnce() -> T) -> Option<T> {
    fence(work).inspect_err(|message| record(thread, message)).ok()
}

/// Returns the panics so far.
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
