//! Threads asked by a signal where they stand.
//!
//! ```text
//! SIGURG, 64 at a time   the handler of os::signal copies registers and stack; 100 ms for each lot
//! Walker                 unwinds the copies here, by the tables of the files
//! ```
//!
//! SIGURG, because its default is to be ignored: should the host take our handler away, a signal of ours
//! does nothing. A handler the host has for it gets every SIGURG that is not ours. One asks at a time:
//! two readers of the slots would see torn copies, and whoever ends its lot makes all questions void.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::copied::Copied;
use super::images::Error;
use super::signal::{self, Entry, Target};
use super::stack_bounds::StackBounds;
use super::unwind::{End, MAX_FRAMES, Walker};
use crate::base::Clock;

/// The signal.
pub const SIGNAL: i32 = libc::SIGURG;

/// Threads signalled at once, and twice as many slots, so that one that is held up costs nobody else's.
pub const BATCH: usize = 64;

/// The stack that is copied of a thread: what 128 frames take, and of the deepest the inner end. Memory is
/// taken for what was written: the deepest stack a slot has held.
pub const STACK_BYTES: usize = 256 << 10;

/// How long a lot of threads is waited for: on a machine with ten times the work it has cores for, some
/// do not come to run within 20 ms.
const BATCH_WAIT: Duration = Duration::from_millis(100);

/// Between two looks at what has come: a thread takes some 20 us to run its handler.
const LOOK: Duration = Duration::from_micros(50);

static ONE: Mutex<()> = Mutex::new(());

/// The right to ask, for one at a time.
pub struct Net {
    target: &'static Target,
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
                // A thread that answered too late for the last who asked is not where it was then.
                target.slots().drain(&mut Copied::default(), |_| {});
                Ok(Self { target, _one: one })
            }
            Ok(_) => Err("no stacks: the service handles SIGURG itself".to_owned()),
            Err(error) => Err(format!("no stacks: no handler for SIGURG: {error}")),
        }
    }

    /// Signals the threads, in lots, and hands what they copied, unwound, to `take`; those that were no
    /// more to `ended`. Who does not answer within 100 ms is neither. A thread whose stack's bounds only
    /// its own pointers tell is asked twice.
    ///
    /// # Errors
    ///
    /// When `/proc/self/maps` cannot be read.
    pub fn catch(
        &self,
        clock: &dyn Clock,
        tids: &[u32],
        walker: &mut Walker,
        mut ended: impl FnMut(u32),
        mut take: impl FnMut(u32, &[u64], End),
    ) -> Result<(), Error> {
        for lot in tids.chunks(BATCH) {
            let again = self.round(clock, lot, None, walker, &mut ended, &mut take)?;
            if !again.is_empty() {
                let (tids, pointers): (Vec<u32>, Vec<u64>) = again.into_iter().unzip();
                self.round(clock, &tids, Some(&pointers), walker, &mut ended, &mut take)?;
            }
        }
        Ok(())
    }

    /// Signals the threads of one lot and takes what they copied. Gives those whose stack's bounds only the
    /// thread's own `pointers` tell, with them.
    fn round(
        &self,
        clock: &dyn Clock,
        lot: &[u32],
        pointers: Option<&[u64]>,
        walker: &mut Walker,
        ended: &mut dyn FnMut(u32),
        take: &mut dyn FnMut(u32, &[u64], End),
    ) -> Result<Vec<(u32, u64)>, Error> {
        let bounds = StackBounds::read().map_err(Error::Maps)?;
        let mut waiting: Vec<u32> = Vec::with_capacity(lot.len());
        for (at, &tid) in lot.iter().enumerate() {
            let entry = at as Entry;
            let stack = match pointers.and_then(|pointers| pointers.get(at)) {
                Some(&pointer) => bounds.below(pointer),
                None => bounds.of(tid),
            };
            self.target.set_stack(entry, stack.unwrap_or(0..0));
            match self.target.send(tid, entry) {
                Ok(()) => waiting.push(tid),
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => ended(tid),
                Err(_) => {}
            }
        }
        let until = clock.now() + BATCH_WAIT;
        let (mut again, mut copied) = (Vec::new(), Copied::default());
        while !waiting.is_empty() {
            self.target.slots().drain(&mut copied, |copied| {
                let tid = copied.head.tid;
                waiting.retain(|&waiting| waiting != tid);
                let mut frames = [0; MAX_FRAMES];
                let Copied { head, stack, whole } = copied;
                let walk = walker.walk(head.registers, stack, *whole, &mut frames);
                if walk.end == End::Truncated && !whole && pointers.is_none() {
                    again.push((tid, head.thread_pointer));
                }
                take(tid, frames.get(..walk.depth).unwrap_or_default(), walk.end);
            });
            if waiting.is_empty() || clock.now() >= until {
                break;
            }
            std::thread::sleep(LOOK);
        }
        // Who has not answered will find its question gone.
        self.target.forget_pending();
        Ok(again)
    }
}
