//! Comparable stack samples of a few threads.
//!
//! A frame is identified by its address, its position on the stack and its contents. A frame that
//! waits for its callee does not change in any word.

use std::hash::{DefaultHasher, Hasher};

use crate::base::Clock;
use crate::os::proc::thread_list::ThreadList;
use crate::os::proc::thread_reader::{ProcThreadReader, SchedStat};
use crate::os::proc::threads;
use crate::os::stack_snapshot::StackSnapshot;
use crate::unwind::StackWalker;
use crate::unwind::thread_sampler::{MAX_IN_FLIGHT, SIGNAL, ThreadSampler, ThreadStack};

/// The sampled stack of a thread.
#[derive(Clone, Debug)]
pub(crate) struct SampledStack {
    pub(crate) tid: u32,
    /// Return addresses, innermost first.
    pub(crate) frames: Box<[u64]>,
    /// One hash per frame, over its position and its contents.
    pub(crate) frame_hashes: Box<[u64]>,
    /// CPU time and run delay after the thread answered.
    pub(crate) sched_stat: SchedStat,
}

/// Samples and inspects threads of this process.
pub(crate) struct ThreadProbe {
    thread_reader: ProcThreadReader,
    thread_list: ThreadList,
    walker: StackWalker,
}

impl ThreadProbe {
    /// Opens the files in `/proc` and the unwinder.
    ///
    /// # Errors
    ///
    /// A description of why threads cannot be sampled.
    pub(crate) fn new() -> Result<Self, String> {
        let thread_list =
            ThreadList::open().map_err(|error| format!("cannot list threads: {error}"))?;
        let walker = StackWalker::new().map_err(|error| error.to_string())?;
        Ok(Self { thread_reader: ProcThreadReader::open()?, thread_list, walker })
    }

    /// Returns all threads except the calling one.
    pub(crate) fn list(&mut self) -> Vec<u32> {
        let mut tids = Vec::new();
        let _ = self.thread_list.list(&mut tids);
        let own = threads::current_tid();
        tids.retain(|&tid| tid != own);
        tids
    }

    /// Returns the number of threads.
    pub(crate) fn count(&self) -> Option<usize> {
        self.thread_list.count()
    }

    /// Returns a thread's name. `None` if the thread has ended.
    pub(crate) fn name(&self, tid: u32) -> Option<String> {
        self.thread_list.name(tid)
    }

    /// Returns `true` if the thread `tid` runs or waits for a core.
    pub(crate) fn is_runnable(&self, tid: u32) -> bool {
        self.thread_reader.thread_state(tid).is_some_and(|(thread, _)| thread.state == 'R')
    }

    /// Sends a signal to each of the threads, to at most [`MAX_IN_FLIGHT`] of them, and returns
    /// their stacks. Threads that block the signal, do not answer or have ended are left out. Takes
    /// 0.1 s if one does not answer.
    pub(crate) fn sample(&mut self, clock: &dyn Clock, tids: &[u32]) -> Vec<SampledStack> {
        let tids: Vec<u32> =
            tids.iter().copied().filter(|&tid| self.can_answer(tid)).take(MAX_IN_FLIGHT).collect();
        if tids.is_empty() || self.walker.refresh().is_err() {
            return Vec::new();
        }
        let Ok(sampler) = ThreadSampler::lock() else { return Vec::new() };
        let mut samples = Vec::new();
        let push_sample = |stack: ThreadStack<'_>| {
            let ThreadStack { snapshot: copied, frames, pointers, .. } = stack;
            samples.push(SampledStack {
                tid: copied.header.tid,
                frames: frames.into(),
                frame_hashes: hash_frames(copied, pointers),
                sched_stat: SchedStat::default(),
            });
        };
        let _ = sampler.sample_with_registers(clock, tids, &mut self.walker, |_| {}, push_sample);
        drop(sampler);
        for sample in &mut samples {
            sample.sched_stat = self.thread_reader.sched_stat(sample.tid).unwrap_or_default();
        }
        samples
    }

    fn can_answer(&self, tid: u32) -> bool {
        self.thread_reader
            .thread_state(tid)
            .is_some_and(|(thread, _)| thread.blocked >> (SIGNAL - 1) & 1 == 0)
    }
}

/// Returns one hash per frame, over its stack pointer and the words up to the next frame's stack
/// pointer. 0 for a frame without a known end, such as the outermost.
fn hash_frames(copied: &StackSnapshot, pointers: &[u64]) -> Box<[u64]> {
    let word = |pointer: u64| {
        usize::try_from(pointer.saturating_sub(copied.header.registers.sp) / 8)
            .unwrap_or(usize::MAX)
    };
    let hash_frame = |index: usize| {
        let start = pointers.get(index).copied()?;
        let end = pointers.get(index + 1).copied()?;
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(start);
        copied.stack.get(word(start)..word(end))?.iter().for_each(|&word| hasher.write_u64(word));
        Some(hasher.finish())
    };
    (0..pointers.len()).map(|at| hash_frame(at).unwrap_or(0)).collect()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::os::stack_snapshot::{Registers, SnapshotHeader};

    #[test]
    fn frame_hash_covers_words_up_to_next_stack_pointer() {
        let copied = |stack: [u64; 6]| StackSnapshot {
            header: SnapshotHeader {
                registers: Registers { sp: 800, ..Registers::default() },
                ..SnapshotHeader::default()
            },
            stack: stack.to_vec(),
            is_complete: true,
        };
        let hashes = |stack| hash_frames(&copied(stack), &[800, 816, 840]);
        let before = hashes([1, 2, 3, 4, 5, 6]);
        let inner = hashes([9, 2, 3, 4, 5, 6]);
        let outer = hashes([1, 2, 3, 4, 9, 6]);
        assert_eq!(before.len(), 3);
        assert!(before[0] != inner[0] && before[1] == inner[1]);
        assert!(before[0] == outer[0] && before[1] != outer[1]);
        assert_eq!(before, hashes([1, 2, 3, 4, 5, 9]), "the end of the outermost frame is unknown");
        assert_eq!(
            hash_frames(&copied([0; 6]), &[800, 8000, 16])[..],
            [0, 0, 0],
            "outside the copy"
        );
    }
}
