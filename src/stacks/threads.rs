//! Stack dumps of all threads of the process.
//!
//! ```text
//! /proc/self/task        names, states, wait channels, CPU time before the signal:
//!                        read for 32 threads while the 32 before them answer
//! SIGURG, 64 at a time   each thread copies its registers and stack, which are unwound here
//! ```
//!
//! Reading `/proc` takes more than half of the time, and it runs on another core than the threads
//! that answer. `unwind::thread_sampler` implements the sampling. Some threads are shown with their
//! data from `/proc` and a remark only: those that block the signal, are in an uninterruptible wait
//! in the kernel, or are not scheduled in time.
//!
//! # System calls interrupted by the signal
//!
//! The handler is installed with `SA_RESTART`, so most system calls are restarted. These are not
//! (signal(7)), and return `EINTR` to their caller: `epoll_wait`, `poll`, `select` and variants;
//! `nanosleep` and `clock_nanosleep`; `usleep`, `sleep`; futex waits with a timeout, and with them
//! `sem_timedwait`; socket calls with `SO_RCVTIMEO` or `SO_SNDTIMEO` set; `msgrcv`, `msgsnd`,
//! `semop`, `semtimedop`; `pause`, `sigsuspend`, `sigtimedwait`; `io_getevents`; reads from an
//! inotify descriptor in old kernels. Rust's `std` and tokio retry all of theirs:
//! `std::thread::sleep`, `Condvar::wait_timeout` and `park_timeout` continue to wait, mio polls
//! again. C libraries in the process may not. For these, the setting `stacks.threads = "proc-only"`
//! sends no signal.

use std::collections::HashMap;

use super::Error;
use crate::base::{Clock, TimeAnchor};
use crate::model::{Profile, Sample, StackHandle, ThreadDump, ThreadRow, ValueType};
use crate::os::images;
use crate::os::proc::threads::{self, Thread, Threads};
use crate::unwind::thread_sampler::{SIGNAL, ThreadSampler};
use crate::unwind::{self, MAX_FRAMES, StackWalker, WalkEnd};

/// Maximum number of threads in one dump; more are counted.
const MAX_THREADS: usize = 8192;

/// Number of threads whose `/proc` data is read before they are signalled. The threads before them
/// answer on another core meanwhile.
const READ_AHEAD_THREADS: usize = 32;

const SAMPLE_TYPES: [ValueType; 2] =
    [ValueType { name: "threads", unit: "count" }, ValueType { name: "cpu", unit: "nanoseconds" }];

/// Dumps all threads; if `signals` is `true` they may be signalled. Blocks the caller for 2 ms per
/// hundred threads, plus 100 ms for each batch of 64 with a thread that does not answer. Concurrent
/// dumps wait for each other.
///
/// # Errors
///
/// Returns an error if `/proc` cannot be read, or lists no thread.
pub fn dump(clock: &dyn Clock, anchor: TimeAnchor, signals: bool) -> Result<ThreadDump, Error> {
    let dump = dump_threads(clock, anchor, signals, Threads::all()?)?;
    match dump.threads.is_empty() {
        // Impossible unless `/proc` is incomplete: the calling thread is running.
        true => Err(threads::Error::no_readable_thread().into()),
        false => Ok(dump),
    }
}

/// Dumps one thread of the process, which is sent a signal. The dump has no thread if none has this
/// id.
///
/// # Errors
///
/// As [`dump`].
pub fn dump_one(clock: &dyn Clock, anchor: TimeAnchor, tid: u32) -> Result<ThreadDump, Error> {
    dump_threads(clock, anchor, true, Threads::with_tids(vec![tid])?)
}

fn dump_threads(
    clock: &dyn Clock,
    anchor: TimeAnchor,
    signals: bool,
    mut threads: Threads,
) -> Result<ThreadDump, Error> {
    let mut profile = Profile::new(&SAMPLE_TYPES, SAMPLE_TYPES[0], 1, anchor.wall);
    let excess = threads.tids.len().saturating_sub(MAX_THREADS);
    profile.losses.add("threads not dumped: more than 8192", excess as u64);
    threads.tids.truncate(MAX_THREADS);
    let sampled = if signals {
        sample_threads(clock, &threads)?
    } else {
        SampledStacks::without_signals(&threads)
    };
    let access = match &sampled.signal_error {
        _ if !signals => SignalAccess::Disabled,
        Some(_) => SignalAccess::Unavailable,
        None => SignalAccess::Available,
    };
    profile.comments.extend(sampled.signal_error.clone());
    let rows: Vec<ThreadRow> = (sampled.listed.into_iter())
        .filter(|thread| !sampled.ended.contains(&thread.tid))
        .map(|thread| {
            let stack = sampled.stacks.get(&thread.tid);
            ThreadRow {
                remark: remark(&thread, access, stack),
                stack: stack.and_then(|stack| profile.intern_stack(&stack.frames)),
                tid: thread.tid,
                name: thread.name,
                state: thread.state,
                wait_channel: thread.wait_channel,
                cpu_time: thread.cpu_time,
            }
        })
        .collect();
    for row in &rows {
        let cpu = i64::try_from(row.cpu_time.as_nanos()).unwrap_or(i64::MAX);
        let labels = vec![
            profile.text_label("thread", &row.name),
            profile.number_label("tid", row.tid.into(), ""),
            profile.text_label("state", &row.state.to_string()),
        ];
        profile.samples.push(Sample { stack: row.stack, values: vec![1, cpu], labels });
    }
    let without_stack = rows.iter().filter(|row| !row.remark.is_empty()).count();
    profile.losses.add("threads without a complete stack", without_stack as u64);
    let files = images::loaded_at(profile.frames.iter().map(|frame| frame.address))?;
    profile.attach_mappings(files);
    Ok(ThreadDump { profile, threads: rows })
}

/// Returns the stacks of some threads, interned in `profile`. Threads that cannot be sampled are
/// missing.
pub(super) fn sample_stacks(
    clock: &dyn Clock,
    tids: &[u32],
    profile: &mut Profile,
) -> Result<HashMap<u32, StackHandle>, Error> {
    let sampled = sample_threads(clock, &Threads::with_tids(tids.to_vec())?)?;
    let stacks = sampled.stacks.into_iter();
    Ok(stacks
        .filter_map(|(tid, stack)| Some((tid, profile.intern_stack(&stack.frames)?)))
        .collect())
}

/// The result of signalling the threads.
#[derive(Default)]
struct SampledStacks {
    /// The threads as read from `/proc` before their signal.
    listed: Vec<Thread>,
    stacks: HashMap<u32, Stack>,
    /// Threads that had ended before their signal.
    ended: Vec<u32>,
    /// Reason why no thread could be signalled.
    signal_error: Option<String>,
}

/// Use of the signal in a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SignalAccess {
    Available,
    /// The signal's handler cannot be installed, or the signal cannot be sent.
    Unavailable,
    /// The caller does not allow signals.
    Disabled,
}

impl SampledStacks {
    /// Reads the threads from `/proc` without sending signals.
    fn without_signals(threads: &Threads) -> Self {
        let listed = threads.tids.iter().filter_map(|&tid| threads.thread_state(tid)).collect();
        Self { listed, ..Self::default() }
    }
}

struct Stack {
    frames: Box<[u64]>,
    end: WalkEnd,
}

fn sample_threads(clock: &dyn Clock, threads: &Threads) -> Result<SampledStacks, Error> {
    let sampler = match ThreadSampler::lock() {
        Ok(sampler) => sampler,
        Err(reason) => {
            let listed = SampledStacks::without_signals(threads);
            return Ok(SampledStacks { signal_error: Some(reason), ..listed });
        }
    };
    let mut sampled = SampledStacks::default();
    let own = threads::current_tid();
    if threads.tids.contains(&own) {
        let mut frames = [0; MAX_FRAMES];
        if let Ok(walk) = unwind::unwind_here(0, &mut frames) {
            let frames = frames.iter().take(walk.depth).copied().collect();
            sampled.stacks.insert(own, Stack { frames, end: walk.end });
        }
    }
    let mut walker = StackWalker::new()?;
    let SampledStacks { listed, stacks, ended, .. } = &mut sampled;
    let signalled = threads.tids.chunks(READ_AHEAD_THREADS).flat_map(|tids| {
        let before = listed.len();
        listed.extend(tids.iter().filter_map(|&tid| threads.thread_state(tid)));
        let answers = |thread: &&Thread| thread.tid != own && !blocks_signal(thread);
        let answering = listed.iter().skip(before).filter(answers);
        answering.map(|thread| thread.tid).collect::<Vec<u32>>()
    });
    let push_stack = |tid, frames: &[u64], end| {
        stacks.insert(tid, Stack { frames: frames.into(), end });
    };
    sampler.sample(clock, signalled, &mut walker, |tid| ended.push(tid), push_stack)?;
    Ok(sampled)
}

fn blocks_signal(thread: &Thread) -> bool {
    thread.blocked >> (SIGNAL - 1) & 1 == 1
}

/// Returns the reason why there is no complete stack; empty if there is one.
fn remark(thread: &Thread, access: SignalAccess, stack: Option<&Stack>) -> &'static str {
    match stack.map(|stack| stack.end) {
        Some(WalkEnd::Complete) => "",
        Some(WalkEnd::CopyTooShort) => "stack truncated: deeper than 256 KiB",
        Some(WalkEnd::TooManyFrames) => "stack truncated: deeper than 4096 frames",
        Some(WalkEnd::NoUnwindInfo) => "stack truncated: code without unwind information",
        Some(WalkEnd::OtherStack) => "stack truncated: signal handler on an alternate stack",
        None if access == SignalAccess::Disabled => "no stack: threads are not signalled",
        None if access == SignalAccess::Unavailable => "no stack: SIGURG cannot be used",
        None if blocks_signal(thread) => "no stack: blocks SIGURG",
        None => "no stack: no reply to SIGURG within 100 ms",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_stack_is_attributed_to_its_cause() {
        let thread = |blocked| Thread {
            tid: 1,
            name: String::new(),
            state: 'S',
            wait_channel: String::new(),
            cpu_time: std::time::Duration::ZERO,
            blocked,
        };
        let blocks = 1 << (SIGNAL - 1);
        for (access, blocked, expected) in [
            (SignalAccess::Disabled, blocks, "no stack: threads are not signalled"),
            (SignalAccess::Unavailable, blocks, "no stack: SIGURG cannot be used"),
            (SignalAccess::Unavailable, 0, "no stack: SIGURG cannot be used"),
            (SignalAccess::Available, blocks, "no stack: blocks SIGURG"),
            (SignalAccess::Available, 0, "no stack: no reply to SIGURG within 100 ms"),
        ] {
            assert_eq!(remark(&thread(blocked), access, None), expected);
        }
    }
}
