//! Stack samples of other threads, taken by a signal.
//!
//! ```text
//! SIGURG, 64 at a time   the handler in os::signal copies registers and stack, within 100 ms; the
//!                        next signal is sent as one is answered, and its thread id is read then
//! Walker                 unwinds the copies on this thread, by the files' unwind tables
//! ```
//!
//! We use SIGURG: its default action is to ignore, so a signal sent after the host replaced our
//! handler is harmless. A previous handler of the host receives every SIGURG that is not ours. One
//! thread samples at a time, because two readers of the slots would read torn copies. Each run
//! invalidates all pending signals at its end.

use crate::base::sync::Mutex;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use crate::base::{Clock, Moment};
use crate::os::images::Error;
use crate::os::proc::stack_bounds::StackBounds;
use crate::os::quota;
use crate::os::signal::{self, SignalCapture, ThreadSlot};
use crate::os::stack_snapshot::StackSnapshot;
use crate::os::syscalls::{OptionalCall, permit};
use crate::unwind::{MAX_FRAMES, StackWalker, WalkEnd};

/// Signal used for sampling.
pub const SIGNAL: i32 = libc::SIGURG;

/// Maximum signals in flight. There are twice as many slots, so that a delayed thread does not take
/// another thread's slot.
pub const BATCH: usize = 64;

/// Bytes of stack copied per thread: enough for 128 frames; of a deeper stack the inner end. Memory
/// use follows the deepest stack each slot has held, because pages are touched only when written.
pub const STACK_BYTES: usize = 256 << 10;

/// Timeout of an answer. With ten runnable threads per core, some threads do not run within 20 ms.
/// Also the maximum age of the mapping list, if it has to be read as a whole.
const ANSWER_WAIT: Duration = Duration::from_millis(100);

/// Polling interval for answers: a thread takes some 20 us to run its handler.
const LOOK: Duration = Duration::from_micros(50);

static ONE: Mutex<()> = Mutex::new(());

/// Thread to signal.
#[derive(Clone, Copy)]
struct StackRequest {
    tid: u32,
    /// Thread pointer from an earlier answer, from which the stack's bounds are found.
    pointer: Option<u64>,
}

/// Sampled state of a thread.
pub struct ThreadStack<'a> {
    /// Its registers and stack.
    pub copied: &'a StackSnapshot,
    /// Addresses of the frames: the current instruction, then return addresses minus one.
    pub frames: &'a [u64],
    /// Stack pointer of each of these frames.
    pub pointers: &'a [u64],
    /// Reason for the end of the walk.
    pub end: WalkEnd,
}

/// Exclusive access to the signal-based stack sampler.
pub struct ThreadSampler {
    target: &'static SignalCapture,
    /// Maximum signals in flight, by the quota of pending signals.
    batch: usize,
    _one: MutexGuard<'static, ()>,
}

impl ThreadSampler {
    /// Locks the sampler and installs its handler.
    ///
    /// # Errors
    ///
    /// A message that gives the reason why stacks are unavailable.
    pub fn cast() -> Result<Self, String> {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        match signal::install(SIGNAL, 2 * BATCH, STACK_BYTES) {
            Ok(target) if target.is_in_place() => {
                permit(OptionalCall::QueueSignal)
                    .map_err(|denied| format!("no stacks: {denied}"))?;
                // Discards late answers to an earlier sampler: those threads have moved on since.
                target.slots().drain(&mut StackSnapshot::default(), |_| {});
                let allowed = usize::try_from(quota::pending_signals(0).count);
                let batch = allowed.unwrap_or(BATCH).clamp(1, BATCH);
                Ok(Self { target, batch, _one: one })
            }
            Ok(_) => Err("no stacks: the service handles SIGURG itself".to_owned()),
            Err(error) => Err(format!("no stacks: no handler for SIGURG: {error}")),
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
    pub fn catch(
        &self,
        clock: &dyn Clock,
        tids: impl IntoIterator<Item = u32>,
        walker: &mut StackWalker,
        ended: impl FnMut(u32),
        mut take: impl FnMut(u32, &[u64], WalkEnd),
    ) -> Result<(), Error> {
        let take =
            |caught: ThreadStack<'_>| take(caught.copied.head.tid, caught.frames, caught.end);
        self.catch_whole(clock, tids, walker, ended, take)
    }

    /// Samples like [`Self::catch`], and also passes the copies to `take`.
    ///
    /// # Errors
    ///
    /// As for [`Self::catch`].
    pub fn catch_whole(
        &self,
        clock: &dyn Clock,
        tids: impl IntoIterator<Item = u32>,
        walker: &mut StackWalker,
        mut ended: impl FnMut(u32),
        mut take: impl FnMut(ThreadStack<'_>),
    ) -> Result<(), Error> {
        let mut again = Vec::new();
        let asked = &mut tids.into_iter().map(|tid| StackRequest { tid, pointer: None });
        self.round(clock, asked, &mut again, walker, &mut ended, &mut take)?;
        if !again.is_empty() {
            let asked = &mut again.into_iter();
            self.round(clock, asked, &mut Vec::new(), walker, &mut ended, &mut take)?;
        }
        Ok(())
    }

    /// Signals the threads, up to the limit at a time, and passes the copies to `take`. `again`
    /// receives the threads whose stack bounds follow only from their thread pointer.
    fn round(
        &self,
        clock: &dyn Clock,
        questions: &mut dyn Iterator<Item = StackRequest>,
        again: &mut Vec<StackRequest>,
        walker: &mut StackWalker,
        ended: &mut dyn FnMut(u32),
        take: &mut dyn FnMut(ThreadStack<'_>),
    ) -> Result<(), Error> {
        let mut bounds = StackBounds::open().map_err(Error::Maps)?;
        let mut read_at = clock.now();
        // Half of the slots, of which there may be fewer than requested, limited by the quota of
        // signals.
        let most = (self.target.slots().count() / 2).clamp(1, self.batch);
        let mut waiting: Vec<(StackRequest, Moment)> = Vec::with_capacity(most);
        let (mut left, mut all_asked) = (questions.zip(0..=ThreadSlot::MAX).peekable(), false);
        let mut copied = StackSnapshot::default();
        loop {
            let now = clock.now();
            if now.since(read_at) > ANSWER_WAIT {
                bounds = StackBounds::open().map_err(Error::Maps)?;
                read_at = now;
            }
            while waiting.len() < most && !all_asked {
                let Some(&(question, entry)) = left.peek() else {
                    all_asked = true;
                    break;
                };
                let stack = match question.pointer {
                    Some(pointer) => bounds.below(pointer),
                    None => bounds.of(question.tid),
                };
                self.target.set_stack(entry, stack.unwrap_or(0..0));
                match self.target.send(question.tid, entry) {
                    Ok(()) => waiting.push((question, clock.now() + ANSWER_WAIT)),
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => ended(question.tid),
                    // The user's quota of pending signals is exhausted: retried after the next
                    // answer.
                    Err(error)
                        if error.raw_os_error() == Some(libc::EAGAIN) && !waiting.is_empty() =>
                    {
                        break;
                    }
                    Err(_) => {}
                }
                left.next();
            }
            let mut came = false;
            self.target.slots().drain(&mut copied, |copied| {
                came = true;
                let tid = copied.head.tid;
                let at = waiting.iter().position(|(question, _)| question.tid == tid);
                let question = at.map(|at| waiting.swap_remove(at).0);
                let (mut frames, mut places) = ([0; MAX_FRAMES], [0; MAX_FRAMES]);
                let StackSnapshot { head, stack, whole } = copied;
                let walk =
                    walker.walk_marked(head.registers, stack, *whole, &mut frames, &mut places);
                let untold = question.is_some_and(|question| question.pointer.is_none());
                if walk.end == WalkEnd::Truncated && !whole && untold {
                    again.push(StackRequest { tid, pointer: Some(head.thread_pointer) });
                }
                take(ThreadStack {
                    copied,
                    frames: frames.get(..walk.depth).unwrap_or_default(),
                    pointers: places.get(..walk.depth).unwrap_or_default(),
                    end: walk.end,
                });
            });
            if waiting.is_empty() && all_asked {
                break;
            }
            if !came {
                let now = clock.now();
                waiting.retain(|(_, until)| now < *until);
                std::thread::sleep(LOOK);
            }
        }
        // Threads that have not answered find their signal invalid.
        self.target.forget_pending();
        Ok(())
    }
}
