//! The sampler for Linux.

use crate::base::sync::Mutex;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::{MAX_IN_FLIGHT, SIGNAL, ThreadStack};
use crate::base::{Clock, Moment};
use crate::os::images::Error;
use crate::os::proc::stack_bounds::StackBounds;
use crate::os::quota;
use crate::os::signal::{self, SignalCapture, ThreadSlot};
use crate::os::stack_snapshot::StackSnapshot;
use crate::os::syscalls::{OptionalCall, permit};
use crate::unwind::{MAX_FRAMES, StackWalker, WalkEnd};

/// Bytes of stack copied per thread: enough for 128 frames; of a deeper stack the inner end. Memory
/// use follows the deepest stack each slot has held, because pages are touched only when written.
pub const STACK_BYTES: usize = 256 << 10;

/// Timeout of an answer. With ten runnable threads per core, some threads do not run within 20 ms.
/// Also the maximum age of the mapping list, if it has to be read as a whole.
const REPLY_TIMEOUT: Duration = Duration::from_millis(100);

/// Polling interval for answers: a thread takes some 20 us to run its handler.
const POLL_INTERVAL: Duration = Duration::from_micros(50);

static SAMPLER_LOCK: Mutex<()> = Mutex::new(());

/// Thread to signal.
#[derive(Clone, Copy)]
struct StackRequest {
    tid: u32,
    /// Thread pointer from an earlier answer, from which the stack's bounds are found.
    pointer: Option<u64>,
}

/// Exclusive access to the signal-based stack sampler.
pub struct ThreadSampler {
    target: &'static SignalCapture,
    /// Maximum signals in flight, by the quota of pending signals.
    max_in_flight: usize,
    _guard: MutexGuard<'static, ()>,
}

impl ThreadSampler {
    /// Locks the sampler and installs its handler.
    ///
    /// # Errors
    ///
    /// A message that gives the reason why stacks are unavailable.
    pub fn lock() -> Result<Self, String> {
        let guard = SAMPLER_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        match signal::install(SIGNAL, 2 * MAX_IN_FLIGHT, STACK_BYTES) {
            Ok(target) if target.is_installed() => {
                permit(OptionalCall::QueueSignal)
                    .map_err(|denied| format!("no stacks: {denied}"))?;
                // Discards late answers to an earlier sampler: those threads have moved on since.
                target.slots().drain(&mut StackSnapshot::default(), |_| {});
                let allowed = usize::try_from(quota::pending_signals(0).count);
                let max_in_flight = allowed.unwrap_or(MAX_IN_FLIGHT).clamp(1, MAX_IN_FLIGHT);
                Ok(Self { target, max_in_flight, _guard: guard })
            }
            Ok(_) => Err("no stacks: the service handles SIGURG itself".to_owned()),
            Err(error) => Err(format!("no stacks: cannot install a handler for SIGURG: {error}")),
        }
    }

    /// Samples the threads, 64 at a time, or fewer if the quota of pending signals is low. Calls
    /// `take` with each unwound stack and `ended` with each thread that no longer exists. A thread
    /// that does not answer within 100 ms is passed to neither. If the bounds of a stack follow
    /// only from its thread pointer, the thread is signalled twice.
    ///
    /// # Errors
    ///
    /// If `/proc/self/maps` cannot be read.
    pub fn sample(
        &self,
        clock: &dyn Clock,
        tids: impl IntoIterator<Item = u32>,
        walker: &mut StackWalker,
        on_exited: impl FnMut(u32),
        mut on_stack: impl FnMut(u32, &[u64], WalkEnd),
    ) -> Result<(), Error> {
        let take =
            |stack: ThreadStack<'_>| on_stack(stack.snapshot.header.tid, stack.frames, stack.end);
        self.sample_with_registers(clock, tids, walker, on_exited, take)
    }

    /// Samples like [`Self::sample`], and also passes the copies to `take`.
    ///
    /// # Errors
    ///
    /// As for [`Self::sample`].
    pub fn sample_with_registers(
        &self,
        clock: &dyn Clock,
        tids: impl IntoIterator<Item = u32>,
        walker: &mut StackWalker,
        mut on_exited: impl FnMut(u32),
        mut on_stack: impl FnMut(ThreadStack<'_>),
    ) -> Result<(), Error> {
        let mut retries = Vec::new();
        let requests = &mut tids.into_iter().map(|tid| StackRequest { tid, pointer: None });
        self.sample_round(clock, requests, &mut retries, walker, &mut on_exited, &mut on_stack)?;
        if !retries.is_empty() {
            let requests = &mut retries.into_iter();
            self.sample_round(
                clock,
                requests,
                &mut Vec::new(),
                walker,
                &mut on_exited,
                &mut on_stack,
            )?;
        }
        Ok(())
    }

    /// Signals the threads, up to the limit at a time, and passes the copies to `take`. `again`
    /// receives the threads whose stack bounds follow only from their thread pointer.
    fn sample_round(
        &self,
        clock: &dyn Clock,
        requests: &mut dyn Iterator<Item = StackRequest>,
        retries: &mut Vec<StackRequest>,
        walker: &mut StackWalker,
        on_exited: &mut dyn FnMut(u32),
        on_stack: &mut dyn FnMut(ThreadStack<'_>),
    ) -> Result<(), Error> {
        let mut bounds = StackBounds::open().map_err(Error::Maps)?;
        let mut read_at = clock.now();
        // Half of the slots, of which there may be fewer than requested, limited by the quota of
        // signals.
        let limit = (self.target.slots().count() / 2).clamp(1, self.max_in_flight);
        let mut waiting: Vec<(StackRequest, Moment)> = Vec::with_capacity(limit);
        let mut unsent = requests.zip(0..=ThreadSlot::MAX).peekable();
        let mut all_sent = false;
        let mut copied = StackSnapshot::default();
        loop {
            let now = clock.now();
            if now.since(read_at) > REPLY_TIMEOUT {
                bounds = StackBounds::open().map_err(Error::Maps)?;
                read_at = now;
            }
            while waiting.len() < limit && !all_sent {
                let Some(&(request, entry)) = unsent.peek() else {
                    all_sent = true;
                    break;
                };
                let stack = match request.pointer {
                    Some(pointer) => bounds.containing(pointer),
                    None => bounds.for_thread(request.tid),
                };
                self.target.set_stack(entry, stack.unwrap_or(0..0));
                match self.target.send(request.tid, entry) {
                    Ok(()) => waiting.push((request, clock.now() + REPLY_TIMEOUT)),
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                        on_exited(request.tid)
                    }
                    // The user's quota of pending signals is exhausted: retried after the next
                    // answer.
                    Err(error)
                        if error.raw_os_error() == Some(libc::EAGAIN) && !waiting.is_empty() =>
                    {
                        break;
                    }
                    Err(_) => {}
                }
                unsent.next();
            }
            let mut has_reply = false;
            self.target.slots().drain(&mut copied, |copied| {
                has_reply = true;
                let tid = copied.header.tid;
                let at = waiting.iter().position(|(request, _)| request.tid == tid);
                let request = at.map(|at| waiting.swap_remove(at).0);
                let mut frames = [0; MAX_FRAMES];
                let mut pointers = [0; MAX_FRAMES];
                let StackSnapshot { header: head, stack, is_complete: whole } = copied;
                let walk = walker.walk_with_pointers(
                    head.registers,
                    stack,
                    *whole,
                    &mut frames,
                    &mut pointers,
                );
                let is_first_request = request.is_some_and(|question| question.pointer.is_none());
                if walk.end == WalkEnd::CopyTooShort && !whole && is_first_request {
                    retries.push(StackRequest { tid, pointer: Some(head.thread_pointer) });
                }
                on_stack(ThreadStack {
                    snapshot: copied,
                    frames: frames.get(..walk.depth).unwrap_or_default(),
                    pointers: pointers.get(..walk.depth).unwrap_or_default(),
                    end: walk.end,
                });
            });
            if waiting.is_empty() && all_sent {
                break;
            }
            if !has_reply {
                let now = clock.now();
                waiting.retain(|(_, deadline)| now < *deadline);
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        // Threads that have not answered find their signal invalid.
        self.target.invalidate_pending();
        Ok(())
    }
}
