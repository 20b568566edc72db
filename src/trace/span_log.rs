//! The records of one thread in one session.
//!
//! Only its thread writes a log and only the session's end takes it, so its lock is contended at
//! most once. Memory comes in chunks that never move, because a growing vector would copy megabytes
//! in the middle of a request. It is charged to the session's [`TraceBudget`] in grants, so threads
//! access the shared counter only once in a few dozen records.
//!
//! Invariants:
//! * a slice that begins in the log has paid for its end, so the end is never refused;
//! * once a payment is refused the log stays `full`, so lost slices are inside recorded ones, never
//!   around them;
//! * `open` holds the ids of the recorded slices that have not ended, innermost last. An end that
//!   is not among them belongs to a lost begin while `lost_begins > 0`, else to a slice older than
//!   the session.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use tracing::Metadata;

use super::budget::{RECORD_BYTES, TEXT_OVERHEAD_BYTES, TraceBudget, event_cost, is_exhausted};
use super::fields::FieldList;
use super::loss::{LossCause, LossCounts};
use crate::base::{Clock, Moment, SystemClock};
use crate::os::proc::threads;

/// Maximum nesting depth of a thread's slices.
pub(super) const MAX_DEPTH: usize = 128;

/// Records in a chunk: 2.5 KiB, the maximum waste in a thread's last chunk.
const RECORDS_PER_CHUNK: usize = 64;

/// Bytes taken from the budget at a time: about twenty slices. A thousand threads with one record
/// each hold 2 MiB of it.
const BUDGET_GRANT_BYTES: usize = 2 << 10;

/// Price of a log before its first record.
const LOG_COST: usize = RECORDS_PER_CHUNK * size_of::<SpanRecord>()
    + size_of::<SpanLog>()
    + MAX_DEPTH * size_of::<u64>();

/// The span shown by a slice.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) site: &'static Metadata<'static>,
    pub(super) fields: Option<Arc<FieldList>>,
}

impl Source {
    /// Returns the number of arguments of its slices.
    fn arg_count(&self) -> usize {
        arg_count(self.fields.as_deref())
    }
}

/// The kind and content of a record.
#[derive(Debug)]
pub(super) enum RecordKind {
    /// The slice with this id begins.
    Begin(u64, Source),
    /// The slice with this id, which began in this log, ends.
    End(u64),
    /// A slice that began before the session ends.
    EndPreexisting(u64, Source),
    /// An event.
    Instant(&'static Metadata<'static>, Option<Arc<FieldList>>),
}

/// A record of a log.
#[derive(Debug)]
pub(super) struct SpanRecord {
    pub(super) at: Moment,
    pub(super) kind: RecordKind,
}

const _: () = assert!(size_of::<SpanRecord>() < RECORD_BYTES, "a record costs more than charged");

/// Result of recording an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndOutcome {
    /// The end is recorded, or counted as lost.
    Handled,
    /// The slice began before the session; record its end with [`LogPages::end_preexisting`].
    Preexisting,
}

/// The log of one thread.
#[derive(Debug)]
pub(super) struct SpanLog {
    /// The kernel's thread ID.
    pub(super) tid: u32,
    /// The thread's name in the kernel.
    pub(super) thread: String,
    pages: Mutex<LogPages>,
}

impl SpanLog {
    /// Creates an empty log of the calling thread. Returns `None` if the budget does not cover it.
    pub(super) fn for_current_thread(budget: &Arc<TraceBudget>) -> Option<Self> {
        budget.reserve(LOG_COST, LOG_COST).map(|_| Self {
            tid: threads::current_tid(),
            thread: threads::current_name(),
            pages: Mutex::new(LogPages {
                budget: Arc::clone(budget),
                credit: 0,
                full: false,
                closed: false,
                open: Vec::new(),
                lost_begins: 0,
                chunks: Vec::new(),
                counts: LossCounts::default(),
            }),
        })
    }

    /// Runs `write` on the pages. Returns `None` if the session has ended.
    pub(super) fn write<R>(&self, write: impl FnOnce(&mut LogPages) -> R) -> Option<R> {
        let mut pages = match self.pages.try_lock() {
            Ok(pages) => pages,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        (!pages.closed).then(|| write(&mut pages))
    }

    /// Closes the log and takes its records.
    pub(super) fn close(&self) -> (Vec<Vec<SpanRecord>>, LossCounts) {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.closed = true;
        pages.open = Vec::new();
        (mem::take(&mut pages.chunks), pages.counts)
    }
}

/// The writable part of a log.
#[derive(Debug)]
pub(super) struct LogPages {
    budget: Arc<TraceBudget>,
    /// Bytes taken from the budget and not used yet.
    credit: usize,
    full: bool,
    closed: bool,
    open: Vec<u64>,
    lost_begins: u64,
    chunks: Vec<Vec<SpanRecord>>,
    counts: LossCounts,
}

impl LogPages {
    /// Records the begin of a slice.
    pub(super) fn begin(&mut self, id: u64, source: Source) {
        let cost = event_cost(source.arg_count())
            + event_cost(0)
            + self.text_cost(source.fields.as_deref());
        let is_recorded = if self.open.len() >= MAX_DEPTH {
            self.count_lost(LossCause::TooDeep)
        } else if !self.try_charge(cost) {
            self.count_lost(LossCause::OutOfBudget)
        } else {
            self.push(RecordKind::Begin(id, source))
        };
        if is_recorded {
            self.open.push(id);
        } else {
            self.lost_begins += 1;
        }
    }

    /// Records the end of a slice.
    pub(super) fn end(&mut self, id: u64) -> EndOutcome {
        if let Some(index) = self.open.iter().rposition(|&open| open == id) {
            self.open.remove(index);
            self.push(RecordKind::End(id));
        } else if self.lost_begins > 0 {
            self.lost_begins -= 1;
            self.count_lost(if self.full { LossCause::OutOfBudget } else { LossCause::TooDeep });
        } else {
            return EndOutcome::Preexisting;
        }
        EndOutcome::Handled
    }

    /// Records the end of a slice that was open when the session began.
    pub(super) fn end_preexisting(&mut self, id: u64, source: Source) {
        let cost = event_cost(source.arg_count())
            + event_cost(0)
            + self.text_cost(source.fields.as_deref());
        if self.try_charge(cost) {
            self.push(RecordKind::EndPreexisting(id, source));
        } else {
            self.count_lost(LossCause::OutOfBudget);
        }
    }

    /// Records an event.
    pub(super) fn instant(
        &mut self,
        site: &'static Metadata<'static>,
        fields: Option<Arc<FieldList>>,
    ) {
        let cost = event_cost(arg_count(fields.as_deref())) + self.text_cost(fields.as_deref());
        if self.try_charge(cost) {
            self.push(RecordKind::Instant(site, fields));
        } else {
            self.count_lost(LossCause::OutOfBudget);
        }
    }

    /// Counts an event as lost because the budget is used up.
    pub(super) fn count_over_budget(&mut self) {
        self.count_lost(LossCause::OutOfBudget);
    }

    /// Charges the texts of a span's fields, which live as long as the span. Returns `true` if they
    /// may be kept.
    pub(super) fn charge_fields(&mut self, fields: &FieldList) -> bool {
        let cost = self.text_cost(Some(fields));
        self.try_charge(cost)
    }

    fn count_lost(&mut self, cause: LossCause) -> bool {
        self.counts.add(cause, 1);
        false
    }

    fn text_cost(&self, fields: Option<&FieldList>) -> usize {
        match fields {
            Some(fields) if fields.mark_charged(self.budget.session()) => {
                fields.text_len() + fields.len() * TEXT_OVERHEAD_BYTES
            }
            _ => 0,
        }
    }

    fn try_charge(&mut self, cost: usize) -> bool {
        self.full |= is_exhausted(self.budget.session());
        if !self.full && self.credit < cost {
            let missing = cost - self.credit;
            match self.budget.reserve(missing.max(BUDGET_GRANT_BYTES), missing) {
                Some(grant) => self.credit += grant,
                None => self.full = true,
            }
        }
        if !self.full {
            self.credit -= cost;
        }
        !self.full
    }

    fn push(&mut self, kind: RecordKind) -> bool {
        if self.chunks.last().is_none_or(|chunk| chunk.len() == RECORDS_PER_CHUNK) {
            let mut chunk = Vec::new();
            if chunk.try_reserve_exact(RECORDS_PER_CHUNK).is_err()
                || self.chunks.try_reserve(1).is_err()
            {
                return self.count_lost(LossCause::OutOfMemory);
            }
            self.chunks.push(chunk);
        }
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.push(SpanRecord { at: SystemClock.now(), kind });
        }
        true
    }
}

/// Returns the number of arguments of a span's slice or of an event: target, level and fields.
fn arg_count(fields: Option<&FieldList>) -> usize {
    2 + fields.map_or(0, FieldList::len)
}
