//! Where a few threads stand, so that two looks can be compared.
//!
//! A frame is known by more than its address: by where on the stack it lies and by what lies in it. A
//! frame that waits for the one it called stays as it is, to the word.

use std::hash::{DefaultHasher, Hasher};

use crate::base::Clock;
use crate::os::copied::Copied;
use crate::os::glance::{Eyes, Runs};
use crate::os::tasks::Tasks;
use crate::os::threads;
use crate::unwind::Walker;
use crate::unwind::thread_sampler::{BATCH, Caught, Net, SIGNAL};

/// Where a thread was.
#[derive(Clone, Debug)]
pub(crate) struct Stand {
    pub(crate) tid: u32,
    /// Its stack, innermost first.
    pub(crate) frames: Box<[u64]>,
    /// What each frame holds and where it lies, as one number.
    pub(crate) marks: Box<[u64]>,
    /// How much it had run when it had answered.
    pub(crate) runs: Runs,
}

/// Whoever looks at threads.
pub(crate) struct Onlooker {
    eyes: Eyes,
    tasks: Tasks,
    walker: Walker,
}

impl Onlooker {
    /// Opens what it needs.
    ///
    /// # Errors
    ///
    /// Why threads cannot be compared, in words.
    pub(crate) fn new() -> Result<Self, String> {
        let tasks = Tasks::open().map_err(|error| format!("threads are unknown: {error}"))?;
        let walker = Walker::new().map_err(|error| error.to_string())?;
        Ok(Self { eyes: Eyes::open()?, tasks, walker })
    }

    /// All threads but the calling one.
    pub(crate) fn list(&mut self) -> Vec<u32> {
        let mut tids = Vec::new();
        let _ = self.tasks.list(&mut tids);
        let own = threads::current();
        tids.retain(|&tid| tid != own);
        tids
    }

    /// How many threads there are.
    pub(crate) fn count(&self) -> Option<usize> {
        self.tasks.count()
    }

    /// A thread's name; none when it has ended.
    pub(crate) fn name(&self, tid: u32) -> Option<String> {
        self.tasks.name(tid)
    }

    /// Returns `true` if the thread `tid` runs or waits for a core.
    pub(crate) fn is_runnable(&self, tid: u32) -> bool {
        self.eyes.look(tid).is_some_and(|(thread, _)| thread.state == 'R')
    }

    /// Sends the threads a signal each, [`BATCH`] of them at most, and gives where they were. One that
    /// blocks it, does not answer or has ended is left out. Takes 0.1 s where one does not answer.
    pub(crate) fn ask(&mut self, clock: &dyn Clock, tids: &[u32]) -> Vec<Stand> {
        let tids: Vec<u32> =
            tids.iter().copied().filter(|&tid| self.answers(tid)).take(BATCH).collect();
        if tids.is_empty() || self.walker.refresh().is_err() {
            return Vec::new();
        }
        let Ok(net) = Net::cast() else { return Vec::new() };
        let mut stands = Vec::new();
        let take = |caught: Caught<'_>| {
            let Caught { copied, frames, pointers, .. } = caught;
            stands.push(Stand {
                tid: copied.head.tid,
                frames: frames.into(),
                marks: marks(copied, pointers),
                runs: Runs::default(),
            });
        };
        let _ = net.catch_whole(clock, tids, &mut self.walker, |_| {}, take);
        drop(net);
        for stand in &mut stands {
            stand.runs = self.eyes.runs(stand.tid).unwrap_or_default();
        }
        stands
    }

    fn answers(&self, tid: u32) -> bool {
        self.eyes.look(tid).is_some_and(|(thread, _)| thread.blocked >> (SIGNAL - 1) & 1 == 0)
    }
}

/// What lies between one stack pointer and the next; of the outermost frame, nothing.
fn marks(copied: &Copied, pointers: &[u64]) -> Box<[u64]> {
    let word = |pointer: u64| {
        usize::try_from(pointer.saturating_sub(copied.head.registers.sp) / 8).unwrap_or(usize::MAX)
    };
    let mark = |at: usize| {
        let (start, end) = (pointers.get(at).copied()?, pointers.get(at + 1).copied()?);
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(start);
        copied.stack.get(word(start)..word(end))?.iter().for_each(|&word| hasher.write_u64(word));
        Some(hasher.finish())
    };
    (0..pointers.len()).map(|at| mark(at).unwrap_or(0)).collect()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::os::copied::{Head, Registers};

    #[test]
    fn a_frame_is_what_lies_between_two_stack_pointers() {
        let copied = |stack: [u64; 6]| Copied {
            head: Head {
                registers: Registers { sp: 800, ..Registers::default() },
                ..Head::default()
            },
            stack: stack.to_vec(),
            whole: true,
        };
        let of = |stack| marks(&copied(stack), &[800, 816, 840]);
        let before = of([1, 2, 3, 4, 5, 6]);
        let inner = of([9, 2, 3, 4, 5, 6]);
        let outer = of([1, 2, 3, 4, 9, 6]);
        assert_eq!(before.len(), 3);
        assert!(before[0] != inner[0] && before[1] == inner[1]);
        assert!(before[0] == outer[0] && before[1] != outer[1]);
        assert_eq!(before, of([1, 2, 3, 4, 5, 9]), "of the outermost frame no end is known");
        assert_eq!(marks(&copied([0; 6]), &[800, 8000, 16])[..], [0, 0, 0], "off the copy");
    }
}
