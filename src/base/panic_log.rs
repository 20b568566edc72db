//! Panics of the service, by the place in its source.
//!
//! A panic hook records each: nothing in it waits, so that a panic takes no longer for it, and a place that panics in a
//! loop is one entry. See [`panics`](super::panics) for marple's own threads.

use std::cell::Cell;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use jiff::Timestamp;

/// Places that are told apart; panics at others are counted.
const MAX_PLACES: usize = 64;

/// The bytes of a message that are kept.
const MAX_MESSAGE: usize = 512;

static TOTAL: AtomicU64 = AtomicU64::new(0);
static IS_COUNTING: AtomicBool = AtomicBool::new(false);

/// Panics that are in no entry: other threads panicked at the same time, or there were too many places.
static UNPLACED: AtomicU64 = AtomicU64::new(0);
static PLACES: Mutex<Vec<PanicPlace>> = Mutex::new(Vec::new());

thread_local! {
    /// Whether a hook of marple's records the panic that this thread is in: two may be installed.
    static IS_RECORDED: Cell<bool> = const { Cell::new(false) };
}

/// Panics at one place of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PanicPlace {
    /// The source file, or `unknown`.
    pub file: String,
    /// The line in it.
    pub line: u32,
    /// The column.
    pub column: u32,
    /// Number of panics.
    pub count: u64,
    /// Wall-clock time of the first.
    pub first: Timestamp,
    /// Wall-clock time of the last.
    pub last: Timestamp,
    /// Message of the first.
    pub first_message: String,
    /// Message of the last.
    pub message: String,
    /// Name of the last one's thread, as the kernel has it.
    pub thread: String,
    /// Tokio's id of the last one's task, if it was in one.
    pub task: Option<String>,
}

/// All panics so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordedPanics {
    /// Number of panics.
    pub total: u64,
    /// How many of them are in no place.
    pub unplaced: u64,
    /// The places, the most frequent first.
    pub places: Vec<PanicPlace>,
}

/// Has panics be counted: a hook that calls [`record`] is installed.
pub(crate) fn begin() {
    IS_COUNTING.store(true, Ordering::Relaxed);
}

/// Returns the number of panics so far, or `None` if no hook counts them.
pub(crate) fn counted() -> Option<u64> {
    IS_COUNTING.load(Ordering::Relaxed).then(|| TOTAL.load(Ordering::Relaxed))
}

/// Records the panic of the calling thread while `then` runs, which is the hook before ours.
pub(crate) fn record(info: &PanicHookInfo<'_>, then: impl FnOnce()) {
    let is_nested = IS_RECORDED.try_with(|recorded| recorded.replace(true)).unwrap_or(false);
    if !is_nested {
        add(info);
    }
    then();
    if !is_nested {
        let _ = IS_RECORDED.try_with(|recorded| recorded.set(false));
    }
}

fn add(info: &PanicHookInfo<'_>) {
    TOTAL.fetch_add(1, Ordering::Relaxed);
    let Some(mut places) = try_lock() else {
        UNPLACED.fetch_add(1, Ordering::Relaxed);
        return;
    };
    let (file, line, column) =
        info.location().map_or(("unknown", 0, 0), |at| (at.file(), at.line(), at.column()));
    let message = message(info);
    let last = Timestamp::now();
    let is_same = |place: &&mut PanicPlace| {
        (place.line, place.column) == (line, column) && place.file == file
    };
    let thread = thread_name();
    let task = tokio::task::try_id().map(|id| id.to_string());
    let is_full = places.len() >= MAX_PLACES;
    match places.iter_mut().find(is_same) {
        Some(place) => {
            place.count += 1;
            (place.last, place.thread, place.task) = (last, thread, task);
            place.message = message;
        }
        None if is_full => {
            UNPLACED.fetch_add(1, Ordering::Relaxed);
        }
        None => places.push(PanicPlace {
            file: file.to_owned(),
            line,
            column,
            count: 1,
            first: last,
            last,
            first_message: message.clone(),
            message,
            thread,
            task,
        }),
    }
}

/// The kernel's name: that of `std::thread` may be gone in a thread that ends.
#[cfg(target_os = "linux")]
fn thread_name() -> String {
    rustix::thread::name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(not(target_os = "linux"))]
fn thread_name() -> String {
    std::thread::current().name().unwrap_or_default().to_owned()
}

/// Never waits: in a forked child the lock may be held for good.
fn try_lock() -> Option<MutexGuard<'static, Vec<PanicPlace>>> {
    match PLACES.try_lock() {
        Ok(places) => Some(places),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

fn message(info: &PanicHookInfo<'_>) -> String {
    let text = super::panics::message(info.payload()).unwrap_or("(no text)");
    let mut end = text.len().min(MAX_MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

/// Returns all panics so far.
pub(crate) fn list() -> RecordedPanics {
    let mut recorded = RecordedPanics {
        total: TOTAL.load(Ordering::Relaxed),
        unplaced: UNPLACED.load(Ordering::Relaxed),
        places: try_lock().map(|places| places.clone()).unwrap_or_default(),
    };
    recorded.places.sort_by_key(|place| std::cmp::Reverse(place.count));
    recorded
}

/// Returns the place with most panics in a sentence, if there were any.
pub(crate) fn most_frequent() -> Option<String> {
    let place = list().places.into_iter().next()?;
    let PanicPlace { file, line, count, message, .. } = &place;
    let message = super::log::escaped(message);
    Some(format!("most at {file}:{line} ({count} since the start): {message}"))
}
