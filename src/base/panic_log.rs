//! Panics of the service, grouped by source location.
//!
//! A panic hook records each panic without blocking, so that recording does not delay it. A
//! location that panics in a loop is one entry. [`panics`](super::panics) handles panics of
//! marple's own threads.

use std::cell::Cell;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use jiff::Timestamp;

use super::host_panic::panic_message;

/// Maximum number of locations. Panics at further ones are only counted.
const MAX_LOCATIONS: usize = 64;

/// Maximum length of a stored message in bytes.
const MAX_MESSAGE_BYTES: usize = 512;

static TOTAL: AtomicU64 = AtomicU64::new(0);
static IS_COUNTING: AtomicBool = AtomicBool::new(false);

/// Panics without an entry: another thread was recording at that time, or the table was full.
static WITHOUT_LOCATION: AtomicU64 = AtomicU64::new(0);
static LOCATIONS: Mutex<Vec<PanicLocation>> = Mutex::new(Vec::new());

thread_local! {
    /// Set while a hook records the current panic of this thread. Two hooks may be installed.
    static IS_RECORDING: Cell<bool> = const { Cell::new(false) };
}

/// The panics at one source location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PanicLocation {
    /// Source file, or `unknown`.
    pub file: String,
    /// Line in the source file.
    pub line: u32,
    /// Column in the line.
    pub column: u32,
    /// Number of panics.
    pub count: u64,
    /// Wall-clock time of the first panic.
    pub first_at: Timestamp,
    /// Wall-clock time of the last panic.
    pub last_at: Timestamp,
    /// Message of the first panic.
    pub first_message: String,
    /// Message of the last panic.
    pub message: String,
    /// Thread name of the last panic, as set in the kernel.
    pub thread: String,
    /// tokio task id of the last panic, or `None` outside of a task.
    pub task: Option<String>,
}

/// All panics since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordedPanics {
    /// Number of panics.
    pub total: u64,
    /// Number of panics without a location.
    pub without_location: u64,
    /// Panics by location, the most frequent first.
    pub locations: Vec<PanicLocation>,
}

/// Enables counting. Called when a hook that calls [`record`] is installed.
pub(crate) fn enable() {
    IS_COUNTING.store(true, Ordering::Relaxed);
}

/// Returns the number of panics since the start, or `None` if no hook counts them.
pub(crate) fn count() -> Option<u64> {
    IS_COUNTING.load(Ordering::Relaxed).then(|| TOTAL.load(Ordering::Relaxed))
}

/// Records the current panic of the calling thread, then runs `then`, the previously installed
/// hook.
pub(crate) fn record(info: &PanicHookInfo<'_>, previous_hook: impl FnOnce()) {
    let is_nested = IS_RECORDING.try_with(|recorded| recorded.replace(true)).unwrap_or(false);
    if !is_nested {
        add_panic(info);
    }
    previous_hook();
    if !is_nested {
        let _ = IS_RECORDING.try_with(|recorded| recorded.set(false));
    }
}

fn add_panic(info: &PanicHookInfo<'_>) {
    TOTAL.fetch_add(1, Ordering::Relaxed);
    let Some(mut places) = try_lock() else {
        WITHOUT_LOCATION.fetch_add(1, Ordering::Relaxed);
        return;
    };
    let (file, line, column) =
        info.location().map_or(("unknown", 0, 0), |at| (at.file(), at.line(), at.column()));
    let message = truncated_message(info);
    let last = Timestamp::now();
    let is_same = |place: &&mut PanicLocation| {
        (place.line, place.column) == (line, column) && place.file == file
    };
    let thread = thread_name();
    let task = tokio::task::try_id().map(|id| id.to_string());
    let is_full = places.len() >= MAX_LOCATIONS;
    match places.iter_mut().find(is_same) {
        Some(place) => {
            place.count += 1;
            place.last_at = last;
            place.thread = thread;
            place.task = task;
            place.message = message;
        }
        None if is_full => {
            WITHOUT_LOCATION.fetch_add(1, Ordering::Relaxed);
        }
        None => places.push(PanicLocation {
            file: file.to_owned(),
            line,
            column,
            count: 1,
            first_at: last,
            last_at: last,
            first_message: message.clone(),
            message,
            thread,
            task,
        }),
    }
}

/// Returns the kernel's thread name. The name of `std::thread` may be gone while a thread exits.
#[cfg(target_os = "linux")]
fn thread_name() -> String {
    rustix::thread::name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(not(target_os = "linux"))]
fn thread_name() -> String {
    std::thread::current().name().unwrap_or_default().to_owned()
}

/// Locks without blocking: in a forked child the lock may be held forever.
fn try_lock() -> Option<MutexGuard<'static, Vec<PanicLocation>>> {
    match LOCATIONS.try_lock() {
        Ok(places) => Some(places),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

fn truncated_message(info: &PanicHookInfo<'_>) -> String {
    let text = panic_message(info.payload()).unwrap_or("(no message)");
    let mut end = text.len().min(MAX_MESSAGE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

/// Returns all panics since the start.
pub(crate) fn list() -> RecordedPanics {
    let mut recorded = RecordedPanics {
        total: TOTAL.load(Ordering::Relaxed),
        without_location: WITHOUT_LOCATION.load(Ordering::Relaxed),
        locations: try_lock().map(|places| places.clone()).unwrap_or_default(),
    };
    recorded.locations.sort_by_key(|place| std::cmp::Reverse(place.count));
    recorded
}

/// Returns a description of the most frequent location, or `None` if there were no panics.
pub(crate) fn describe_most_frequent() -> Option<String> {
    let place = list().locations.into_iter().next()?;
    let PanicLocation { file, line, count, message, .. } = &place;
    let message = super::log::escape(message);
    Some(format!("most at {file}:{line} ({count} since the start): {message}"))
}
