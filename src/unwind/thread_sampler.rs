//! Threads asked by a signal where they stand.
//!
//! ```text
//! SIGURG, 64 at a time   the handler of os::signal copies registers and stack, within 100 ms; the next is
//!                        asked as one has answered, and who they are is asked for no sooner
//! Walker                 unwinds the copies here, by the tables of the files
//! ```
//!
//! SIGURG, because its default is to be ignored: should the host take our handler away, a signal of ours
//! does nothing. A handler the host has for it gets every SIGURG that is not ours. One asks at a time:
//! two readers of the slots would see torn copies, and whoever ends makes all questions void.

use crate::base::sync::Mutex;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use crate::base::{Clock, Moment};
use crate::os::copied::Copied;
use crate::os::images::Error;
use crate::os::quota;
use crate::os::signal::{self, Entry, Target};
use crate::os::stack_bounds::StackBounds;
use crate::os::syscalls::{Optional, permit};
use crate::unwind::{End, MAX_FRAMES, Walker};

/// The signal.
pub const SIGNAL: i32 = libc::SIGURG;

/// Threads signalled at once, and twice as many slots, so that one that is held up costs nobody else's.
pub const BATCH: usize = 64;

/// The stack that is copied of a thread: what 128 frames take, and of the deepest the inner end. Memory is
/// taken for what was written: the deepest stack a slot has held.
pub const STACK_BYTES: usize = 256 << 10;

/// How long a thread is waited for: on a machine with ten times the work it has cores for, some do not come
/// to run within 20 ms. And how old the list of mappings may get, where it has to be read whole.
const ANSWER_WAIT: Duration = Duration::from_millis(100);

/// Between two looks at what has come: a thread takes some 20 us to run its handler.
const LOOK: Duration = Duration::from_micros(50);

static ONE: Mutex<()> = Mutex::new(());

/// A thread to be asked.
#[derive(Clone, Copy)]
struct Question {
    tid: u32,
    /// What it told of where its stack ends, when it was asked before.
    pointer: Option<u64>,
}

/// What a thread that was asked shows.
pub struct Caught<'a> {
    /// Its registers and stack.
    pub copied: &'a Copied,
    /// Where it is: the instruction, then return addresses less one.
    pub frames: &'a [u64],
    /// The stack pointer of each of these frames.
    pub pointers: &'a [u64],
    /// How the walk ended.
    pub end: End,
}

/// The right to ask, for one at a time.
pub struct Net {
    target: &'static Target,
    /// Signals under way at once, by the quota of pending signals.
    batch: usize,
    _one: MutexGuard<'static, ()>,
}

impl Net {
    /// Waits for its turn and makes the handler ready.
    ///
    /// # Errors
    ///
    /// Why there are no stacks, in words.
    pub fn cast() -> Result<Self, String> {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        match signal::install(SIGNAL, 2 * BATCH, STACK_BYTES) {
            Ok(target) if target.is_in_place() => {
                permit(Optional::QueueSignal).map_err(|denied| format!("no stacks: {denied}"))?;
                // A thread that answered too late for the last who asked is not where it was then.
                target.slots().drain(&mut Copied::default(), |_| {});
                let allowed = usize::try_from(quota::pending_signals(0).count);
                let batch = allowed.unwrap_or(BATCH).clamp(1, BATCH);
                Ok(Self { target, batch, _one: one })
            }
            Ok(_) => Err("no stacks: the service handles SIGURG itself".to_owned()),
            Err(error) => Err(format!("no stacks: no handler for SIGURG: {error}")),
        }
    }

    /// Signals the threads, 64 at a time, or fewer where few pending signals are free, and hands what they copied, unwound, to `take`; those that were no
    /// more to `ended`. Who does not answer within 100 ms is neither. A thread whose stack's bounds only
    /// its own pointers tell is asked twice.
    ///
    /// # Errors
    ///
    /// When `/proc/self/maps` cannot be read.
    pub fn catch(
        &self,
        clock: &dyn Clock,
        tids: impl IntoIterator<Item = u32>,
        walker: &mut Walker,
        ended: impl FnMut(u32),
        mut take: impl FnMut(u32, &[u64], End),
    ) -> Result<(), Error> {
        let take = |caught: Caught<'_>| take(caught.copied.head.tid, caught.frames, caught.end);
        self.catch_whole(clock, tids, walker, ended, take)
    }

    /// As [`Self::catch`], and hands out the copies as well.
    ///
    /// # Errors
    ///
    /// As [`Self::catch`].
    pub fn catch_whole(
        &self,
        clock: &dyn Clock,
        tids: impl IntoIterator<Item = u32>,
        walker: &mut Walker,
        mut ended: impl FnMut(u32),
        mut take: impl FnMut(Caught<'_>),
    ) -> Result<(), Error> {
        let mut again = Vec::new();
        let asked = &mut tids.into_iter().map(|tid| Question { tid, pointer: None });
        self.round(clock, asked, &mut again, walker, &mut ended, &mut take)?;
        if !again.is_empty() {
            let asked = &mut again.into_iter();
            self.round(clock, asked, &mut Vec::new(), walker, &mut ended, &mut take)?;
        }
        Ok(())
    }

    /// Signals the threads, as many at a time as there may be, and takes what they copied. `again` gets those
    /// whose stack's bounds only the thread's own pointer tells.
    fn round(
        &self,
        clock: &dyn Clock,
        questions: &mut dyn Iterator<Item = Question>,
        again: &mut Vec<Question>,
        walker: &mut Walker,
        ended: &mut dyn FnMut(u32),
        take: &mut dyn FnMut(Caught<'_>),
    ) -> Result<(), Error> {
        let mut bounds = StackBounds::open().map_err(Error::Maps)?;
        let mut read_at = clock.now();
        // Half of the slots, of which there may be fewer than were requested, and what the quota of signals allows.
        let most = (self.target.slots().count() / 2).clamp(1, self.batch);
        let mut waiting: Vec<(Question, Moment)> = Vec::with_capacity(most);
        let (mut left, mut all_asked) = (questions.zip(0..=Entry::MAX).peekable(), false);
        let mut copied = Copied::default();
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
                    // The user's pending signals are used up: asked again when an answer has come.
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
                let Copied { head, stack, whole } = copied;
                let walk =
                    walker.walk_marked(head.registers, stack, *whole, &mut frames, &mut places);
                let untold = question.is_some_and(|question| question.pointer.is_none());
                if walk.end == End::Truncated && !whole && untold {
                    again.push(Question { tid, pointer: Some(head.thread_pointer) });
                }
                take(Caught {
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
        // Who has not answered will find its question gone.
        self.target.forget_pending();
        Ok(())
    }
}
