//! What one thread recorded in one session.
//!
//! Only its thread writes a log, only the session's end takes it, so its lock is contended once in its
//! life at most. Memory comes in chunks that never move (a growing vector would copy megabytes in the
//! middle of somebody's request) and is paid for from the session's [`Budget`] in grants, so that threads
//! meet at the shared counter once in a few dozen records.
//!
//! Invariants:
//! * a slice that begins in the log has paid for its end: room for it is never lacking;
//! * once a payment is refused the log is `full` for good, so lost slices lie inside recorded ones, never
//!   around them;
//! * `open` holds the ids of the recorded slices that have not ended, the innermost last; an end that is
//!   not among them belongs to a lost begin while `lost_open` is not zero, else to a slice that is older
//!   than the session.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use tracing::Metadata;

use super::budget::{Budget, TEXT, is_spent, price};
use super::fields::Fields;
use super::loss::{Cause, Counts};
use crate::base::{Clock, Moment, SystemClock};
use crate::os::threads;

/// How deep the slices of a thread may nest.
pub(super) const MAX_DEPTH: usize = 128;

/// Records in a chunk: 2.5 KiB, which is what the last chunk of a thread may waste.
const CHUNK: usize = 64;

/// Taken from the budget at a time: some twenty slices, so that a thousand threads that say one word each
/// hold 2 MiB of it.
const GRANT: usize = 2 << 10;

/// What a log costs before its first record.
const LOG: usize = CHUNK * size_of::<Record>() + size_of::<Log>() + MAX_DEPTH * size_of::<u64>();

/// The span that a slice shows.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) site: &'static Metadata<'static>,
    pub(super) fields: Option<Arc<Fields>>,
}

impl Source {
    /// How many arguments its slices have.
    fn args(&self) -> usize {
        args(self.fields.as_deref())
    }
}

/// What happened.
#[derive(Debug)]
pub(super) enum What {
    /// The slice of this id begins.
    Begin(u64, Source),
    /// The slice of this id, which began in this log, ends.
    End(u64),
    /// A slice ends that began before the session.
    EndOfOlder(u64, Source),
    /// An event.
    Instant(&'static Metadata<'static>, Option<Arc<Fields>>),
}

/// When and what.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) at: Moment,
    pub(super) what: What,
}

/// What became of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It is recorded, or counted as lost.
    Told,
    /// Its slice began before the session; tell what it is by [`Pages::end_older`].
    Older,
}

/// One thread's log.
#[derive(Debug)]
pub(super) struct Log {
    /// The thread's id in the kernel.
    pub(super) tid: u32,
    /// The thread's name in the kernel.
    pub(super) thread: String,
    pages: Mutex<Pages>,
}

impl Log {
    /// An empty log of the calling thread; none when its own memory cannot be paid for.
    pub(super) fn of_this_thread(budget: &Arc<Budget>) -> Option<Self> {
        budget.take(LOG, LOG).map(|_| Self {
            tid: threads::current(),
            thread: threads::current_name(),
            pages: Mutex::new(Pages {
                budget: Arc::clone(budget),
                credit: 0,
                full: false,
                over: false,
                open: Vec::new(),
                lost_open: 0,
                chunks: Vec::new(),
                counts: Counts::default(),
            }),
        })
    }

    /// Runs `write` on the pages; none when the session has ended.
    pub(super) fn write<R>(&self, write: impl FnOnce(&mut Pages) -> R) -> Option<R> {
        let mut pages = match self.pages.try_lock() {
            Ok(pages) => pages,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        (!pages.over).then(|| write(&mut pages))
    }

    /// Ends the log and takes what is in it.
    pub(super) fn close(&self) -> (Vec<Vec<Record>>, Counts) {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.over = true;
        pages.open = Vec::new();
        (mem::take(&mut pages.chunks), pages.counts)
    }
}

/// The inside of a log.
#[derive(Debug)]
pub(super) struct Pages {
    budget: Arc<Budget>,
    /// Paid for and not used.
    credit: usize,
    full: bool,
    over: bool,
    open: Vec<u64>,
    lost_open: u64,
    chunks: Vec<Vec<Record>>,
    counts: Counts,
}

impl Pages {
    /// A slice begins.
    pub(super) fn begin(&mut self, id: u64, source: Source) {
        let cost = price(source.args()) + price(0) + self.text_price(source.fields.as_deref());
        let kept = if self.open.len() >= MAX_DEPTH {
            self.lose(Cause::Depth)
        } else if !self.pay(cost) {
            self.lose(Cause::Room)
        } else {
            self.push(What::Begin(id, source))
        };
        if kept {
            self.open.push(id);
        } else {
            self.lost_open += 1;
        }
    }

    /// A slice ends.
    pub(super) fn end(&mut self, id: u64) -> Ended {
        if let Some(place) = self.open.iter().rposition(|&open| open == id) {
            self.open.remove(place);
            self.push(What::End(id));
        } else if self.lost_open > 0 {
            self.lost_open -= 1;
            self.lose(if self.full { Cause::Room } else { Cause::Depth });
        } else {
            return Ended::Older;
        }
        Ended::Told
    }

    /// A slice ends that was open when the session began.
    pub(super) fn end_older(&mut self, id: u64, source: Source) {
        let cost = price(source.args()) + price(0) + self.text_price(source.fields.as_deref());
        if self.pay(cost) {
            self.push(What::EndOfOlder(id, source));
        } else {
            self.lose(Cause::Room);
        }
    }

    /// Something happens.
    pub(super) fn instant(
        &mut self,
        site: &'static Metadata<'static>,
        fields: Option<Arc<Fields>>,
    ) {
        let cost = price(args(fields.as_deref())) + self.text_price(fields.as_deref());
        if self.pay(cost) {
            self.push(What::Instant(site, fields));
        } else {
            self.lose(Cause::Room);
        }
    }

    /// Something happens when the budget is used up.
    pub(super) fn refuse(&mut self) {
        self.lose(Cause::Room);
    }

    /// Pays for the texts of a span's fields, which live as long as the span; whether they may be kept.
    pub(super) fn keep(&mut self, fields: &Fields) -> bool {
        let cost = self.text_price(Some(fields));
        self.pay(cost)
    }

    fn lose(&mut self, cause: Cause) -> bool {
        self.counts.add(cause, 1);
        false
    }

    fn text_price(&self, fields: Option<&Fields>) -> usize {
        match fields {
            Some(fields) if fields.unpaid_in(self.budget.session()) => {
                fields.text_len() + fields.len() * TEXT
            }
            _ => 0,
        }
    }

    fn pay(&mut self, cost: usize) -> bool {
        self.full |= is_spent(self.budget.session());
        if !self.full && self.credit < cost {
            let missing = cost - self.credit;
            match self.budget.take(missing.max(GRANT), missing) {
                Some(grant) => self.credit += grant,
                None => self.full = true,
            }
        }
        if !self.full {
            self.credit -= cost;
        }
        !self.full
    }

    fn push(&mut self, what: What) -> bool {
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            let mut chunk = Vec::new();
            if chunk.try_reserve_exact(CHUNK).is_err() || self.chunks.try_reserve(1).is_err() {
                return self.lose(Cause::Memory);
            }
            self.chunks.push(chunk);
        }
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.push(Record { at: SystemClock.now(), what });
        }
        true
    }
}

/// How many arguments a span's slice or an event has: target, level and fields.
fn args(fields: Option<&Fields>) -> usize {
    2 + fields.map_or(0, Fields::len)
}
