//! The running session, and the access of every thread to it.
//!
//! `SESSION` is the number of the running session, or 0. It is the only thing a thread reads while
//! nothing records. A thread that reads a number it has no log for *attaches*. It finds the session
//! under `RUNNING`'s lock, which is never held for longer than a push, and keeps its log in a
//! thread-local. Relaxed loads suffice, because everything else a thread uses is read under that
//! lock. A thread that reads an old number finds its log closed, or no session with that number.
//!
//! The thread-local is borrowed while a record is written. No user code runs then, with one
//! exception: a global allocator that emits events. Such an event finds the value borrowed and is
//! counted. Losses of threads without a log are counted in `UNATTACHED_LOSSES`.

use crate::base::sync::Mutex;
use std::cell::RefCell;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use super::budget::TraceBudget;
use super::fields::FieldList;
use super::loss::{LossCause, LossCounts};
use crate::trace::process_events::ProcessEvents;
use crate::trace::span_log::{LogPages, SpanLog};

static SESSION: AtomicU64 = AtomicU64::new(0);
static RUNNING: Mutex<RunningRecorder> = Mutex::new(RunningRecorder { sessions: 0, shared: None });
static UNATTACHED_LOSSES: [AtomicU64; LossCause::ALL.len()] =
    [const { AtomicU64::new(0) }; LossCause::ALL.len()];

thread_local! {
    static ATTACHED: RefCell<AttachedRecorder> = const { RefCell::new(AttachedRecorder { session: 0, attachment: Attachment::SessionEnded }) };
}

#[derive(Default)]
struct RunningRecorder {
    /// Number of sessions started so far.
    sessions: u64,
    shared: Option<Arc<RecorderState>>,
}

/// State shared by the threads of one session.
#[derive(Debug)]
pub(super) struct RecorderState {
    session: u64,
    budget: Arc<TraceBudget>,
    logs: Mutex<Vec<Arc<SpanLog>>>,
    process_events: Mutex<ProcessEvents>,
}

impl RecorderState {
    /// Takes the logs of the threads, in the order in which they attached.
    pub(super) fn take_logs(&self) -> Vec<Arc<SpanLog>> {
        mem::take(&mut lock(&self.logs))
    }

    /// Locks and returns the records of the process as a whole.
    pub(super) fn process_events(&self) -> MutexGuard<'_, ProcessEvents> {
        lock(&self.process_events)
    }
}

/// State of a thread in the last session it found.
struct AttachedRecorder {
    session: u64,
    attachment: Attachment,
}

enum Attachment {
    /// The log that the thread writes to.
    Log(Arc<SpanLog>),
    /// The budget did not suffice for a log.
    OutOfBudget,
    /// The session ended before the thread attached.
    SessionEnded,
}

/// Returns the number of the running session. This is the whole cost while none runs.
#[inline]
pub(super) fn session() -> Option<u64> {
    let session = SESSION.load(Ordering::Relaxed);
    (session != 0).then_some(session)
}

/// Starts a session. Returns `None` if one is running. The threads may use `thread_bytes`, the
/// process events `process_bytes`.
pub(super) fn start(thread_bytes: usize, process_bytes: usize) -> Option<Arc<RecorderState>> {
    let mut running = lock(&RUNNING);
    if running.shared.is_some() {
        return None;
    }
    running.sessions += 1;
    let shared = Arc::new(RecorderState {
        session: running.sessions,
        budget: Arc::new(TraceBudget::new(running.sessions, thread_bytes)),
        logs: Mutex::default(),
        process_events: Mutex::new(ProcessEvents::new(process_bytes)),
    });
    for stray in &UNATTACHED_LOSSES {
        stray.store(0, Ordering::Relaxed);
    }
    running.shared = Some(Arc::clone(&shared));
    SESSION.store(running.sessions, Ordering::Relaxed);
    Some(shared)
}

/// Ends the running session. Returns the losses of threads without a log.
pub(super) fn stop() -> LossCounts {
    SESSION.store(0, Ordering::Relaxed);
    lock(&RUNNING).shared = None;
    let mut counts = LossCounts::default();
    for (cause, stray) in LossCause::ALL.into_iter().zip(&UNATTACHED_LOSSES) {
        counts.add(cause, stray.load(Ordering::Relaxed));
    }
    counts
}

/// Returns the running session.
pub(super) fn running_session() -> Option<Arc<RecorderState>> {
    session()?;
    lock(&RUNNING).shared.clone()
}

/// Writes to the calling thread's pages in `session`, or counts one event as lost. Returns `None`
/// if nothing was written; after the session's end that is no loss.
pub(super) fn record<R>(session: u64, write: impl FnOnce(&mut LogPages) -> R) -> Option<R> {
    match with_pages(session, write) {
        Ok(written) => written,
        Err(cause) => {
            count_lost(cause, 1);
            None
        }
    }
}

/// Charges the fields of a new span. Returns `true` if they may be kept.
pub(super) fn charge_fields(session: u64, fields: &FieldList) -> bool {
    let is_charged =
        matches!(with_pages(session, |pages| pages.charge_fields(fields)), Ok(Some(true)));
    if !is_charged {
        count_lost(LossCause::Fields, fields.len() as u64);
    }
    is_charged
}

/// Counts `n` losses that belong to no log.
pub(super) fn count_lost(cause: LossCause, n: u64) {
    if let Some(stray) = UNATTACHED_LOSSES.get(cause as usize).filter(|_| n > 0) {
        stray.fetch_add(n, Ordering::Relaxed);
    }
}

/// Runs `write` on the calling thread's pages. Returns `None` if the session has ended, and an
/// error if the thread has no pages.
fn with_pages<R>(
    session: u64,
    write: impl FnOnce(&mut LogPages) -> R,
) -> Result<Option<R>, LossCause> {
    let written = ATTACHED.try_with(|local| {
        let mut attached = local.try_borrow_mut().map_err(|_| LossCause::Reentrant)?;
        if attached.session != session {
            *attached = AttachedRecorder { session, attachment: attach(session) };
        }
        match &attached.attachment {
            Attachment::Log(log) => Ok(log.write(write)),
            Attachment::OutOfBudget => Err(LossCause::OutOfBudget),
            Attachment::SessionEnded => Ok(None),
        }
    });
    written.unwrap_or(Err(LossCause::ThreadLocalDestroyed))
}

#[cold]
fn attach(session: u64) -> Attachment {
    let shared = lock(&RUNNING).shared.clone().filter(|shared| shared.session == session);
    let Some(shared) = shared else {
        return Attachment::SessionEnded;
    };
    match SpanLog::for_current_thread(&shared.budget).map(Arc::new) {
        Some(log) => {
            lock(&shared.logs).push(Arc::clone(&log));
            Attachment::Log(log)
        }
        None => Attachment::OutOfBudget,
    }
}

/// Ignores poisoning: no code that can panic runs under these locks.
fn lock<T: Default>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
