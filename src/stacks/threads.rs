//! Where every thread of the process stands.
//!
//! ```text
//! /proc/self/task        names, states, wait channels, CPU time, as they were before the signal
//! SIGURG, 64 at a time   the handler of os::signal copies registers and stack; 100 ms for each lot
//! Walker                 unwinds the copies here, by the tables of the files
//! ```
//!
//! SIGURG, because its default is to be ignored: should the host take our handler away, a signal of ours
//! does nothing. A handler the host has for it gets every SIGURG that is not ours. A thread that blocks it,
//! waits in the kernel where signals do not reach, or does not come to run in time is shown as `/proc` has
//! it, with a remark.
//!
//! # What a signal interrupts
//!
//! The handler is installed with `SA_RESTART`, so that most system calls go on as if nothing had been. These
//! do not (signal(7)) and return EINTR to whoever called them: `epoll_wait`, `poll`, `select` and their
//! kind; `nanosleep` and `clock_nanosleep`; `usleep`, `sleep`; futex waits with a timeout, and with them
//! `sem_timedwait`; socket calls with `SO_RCVTIMEO` or `SO_SNDTIMEO` set; `msgrcv`, `msgsnd`, `semop`,
//! `semtimedop`; `pause`, `sigsuspend`, `sigtimedwait`; `io_getevents`; reads from an inotify descriptor in
//! old kernels. Rust's `std` and tokio take all of theirs up again: `std::thread::sleep` sleeps on,
//! `Condvar::wait_timeout` and `park_timeout` wait on, mio polls again. C libraries in the process may not,
//! and for those the setting `stacks.threads = "proc-only"` sends no signal.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Error;
use crate::base::{Anchor, Clock};
use crate::model::{Profile, Sample, StackHandle, ThreadDump, ThreadRow, ValueType};
use crate::os::copied::Copied;
use crate::os::images;
use crate::os::signal::{self, Entry, Target};
use crate::os::stack_bounds::StackBounds;
use crate::os::threads::{self, Thread};
use crate::os::unwind::{self, End, MAX_FRAMES, Walker};

/// Threads signalled at once, and twice as many slots, so that one that is held up costs nobody else's.
const BATCH: usize = 64;

/// The stack that is copied of a thread: what 128 frames take, and of the deepest the inner end. Memory is
/// taken for what was written: the deepest stack a slot has held.
const STACK_BYTES: usize = 256 << 10;

/// How long a lot of threads is waited for: on a machine with ten times the work it has cores for, some
/// do not come to run within 20 ms.
const BATCH_WAIT: Duration = Duration::from_millis(100);

/// Between two looks at what has come: a thread takes some 20 us to run its handler.
const LOOK: Duration = Duration::from_micros(50);

/// The threads in one dump; more are counted.
const MAX_THREADS: usize = 8192;

const SAMPLE_TYPES: [ValueType; 2] =
    [ValueType { name: "threads", unit: "count" }, ValueType { name: "cpu", unit: "nanoseconds" }];

/// Dumps all threads; `signals`: whether they may be sent one. Blocks the caller for 2 ms a hundred
/// threads, and 100 ms more for each 64 of which one does not answer. One dump at a time: others wait.
///
/// # Errors
///
/// When `/proc` cannot be read.
pub fn dump(clock: &dyn Clock, anchor: Anchor, signals: bool) -> Result<ThreadDump, Error> {
    dump_listed(clock, anchor, signals, threads::list()?)
}

/// Dumps one thread of the process, which is sent a signal; no thread, if there is none of that id.
///
/// # Errors
///
/// As [`dump`].
pub fn dump_one(clock: &dyn Clock, anchor: Anchor, tid: u32) -> Result<ThreadDump, Error> {
    let mut listed = threads::list()?;
    listed.retain(|thread| thread.tid == tid);
    dump_listed(clock, anchor, true, listed)
}

fn dump_listed(
    clock: &dyn Clock,
    anchor: Anchor,
    signals: bool,
    mut listed: Vec<Thread>,
) -> Result<ThreadDump, Error> {
    let mut profile = Profile::new(&SAMPLE_TYPES, SAMPLE_TYPES[0], 1, anchor.wall);
    let beyond = listed.len().saturating_sub(MAX_THREADS);
    profile.losses.add("threads beyond the 8192 that a dump shows", beyond as u64);
    listed.truncate(MAX_THREADS);
    let caught = if signals { catch(clock, &listed)? } else { Caught::default() };
    if let Some(why) = &caught.no_signals {
        profile.comments.push(why.clone());
    }
    let rows: Vec<ThreadRow> = listed
        .into_iter()
        .filter(|thread| !caught.ended.contains(&thread.tid))
        .map(|thread| {
            let stack = caught.stacks.get(&thread.tid);
            ThreadRow {
                remark: remark(&thread, signals, caught.signal, stack),
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
    let without = rows.iter().filter(|row| !row.remark.is_empty()).count();
    profile.losses.add("threads without a whole stack", without as u64);
    profile.attach_mappings(images::loaded()?);
    Ok(ThreadDump { profile, threads: rows })
}

/// The stacks of some threads, in `profile`; those that cannot be had are missing.
pub(super) fn stacks_of(
    clock: &dyn Clock,
    tids: &[u32],
    profile: &mut Profile,
) -> Result<HashMap<u32, StackHandle>, Error> {
    let mut listed = threads::list()?;
    listed.retain(|thread| tids.contains(&thread.tid));
    let caught = catch(clock, &listed)?;
    let stacks = caught.stacks.into_iter();
    Ok(stacks
        .filter_map(|(tid, stack)| Some((tid, profile.intern_stack(&stack.frames)?)))
        .collect())
}

/// What became of the signals.
#[derive(Default)]
struct Caught {
    stacks: HashMap<u32, Stack>,
    /// Threads that were no more when they were to be signalled.
    ended: Vec<u32>,
    signal: i32,
    no_signals: Option<String>,
}

struct Stack {
    frames: Box<[u64]>,
    end: End,
}

fn catch(clock: &dyn Clock, listed: &[Thread]) -> Result<Caught, Error> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut caught = Caught { signal: libc::SIGURG, ..Caught::default() };
    let target = match signal::install(caught.signal, 2 * BATCH, STACK_BYTES) {
        Ok(target) if target.is_in_place() => target,
        Ok(_) => {
            caught.no_signals = Some("no stacks: the service handles SIGURG itself".to_owned());
            return Ok(caught);
        }
        Err(error) => {
            caught.no_signals = Some(format!("no stacks: no handler for SIGURG: {error}"));
            return Ok(caught);
        }
    };
    // A thread that answered too late for the last dump is not where it was then.
    target.slots().drain(&mut Copied::default(), |_| {});
    let own = threads::current();
    if listed.iter().any(|thread| thread.tid == own) {
        let mut frames = [0; MAX_FRAMES];
        if let Ok(walk) = unwind::unwind_here(0, &mut frames) {
            let frames = frames.iter().take(walk.depth).copied().collect();
            caught.stacks.insert(own, Stack { frames, end: walk.end });
        }
    }
    let answering: Vec<u32> = listed
        .iter()
        .filter(|thread| thread.tid != own && !blocks(thread, caught.signal))
        .map(|thread| thread.tid)
        .collect();
    let mut walker = Walker::new()?;
    for lot in answering.chunks(BATCH) {
        let again = round(clock, target, lot, None, &mut walker, &mut caught)?;
        if !again.is_empty() {
            let (tids, pointers): (Vec<u32>, Vec<u64>) = again.into_iter().unzip();
            round(clock, target, &tids, Some(&pointers), &mut walker, &mut caught)?;
        }
    }
    Ok(caught)
}

/// Signals the threads of one lot and takes what they copied. Gives those whose stack's bounds only the
/// thread's own `pointers` tell, with them.
fn round(
    clock: &dyn Clock,
    target: &Target,
    lot: &[u32],
    pointers: Option<&[u64]>,
    walker: &mut Walker,
    caught: &mut Caught,
) -> Result<Vec<(u32, u64)>, Error> {
    let bounds = StackBounds::read().map_err(images::Error::Maps)?;
    let mut waiting: Vec<u32> = Vec::with_capacity(lot.len());
    for (at, &tid) in lot.iter().enumerate() {
        let entry = at as Entry;
        let stack = match pointers.and_then(|pointers| pointers.get(at)) {
            Some(&pointer) => bounds.below(pointer),
            None => bounds.of(tid),
        };
        target.set_stack(entry, stack.unwrap_or(0..0));
        match target.send(tid, entry) {
            Ok(()) => waiting.push(tid),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => caught.ended.push(tid),
            Err(_) => {}
        }
    }
    let until = clock.now() + BATCH_WAIT;
    let (mut again, mut copied) = (Vec::new(), Copied::default());
    while !waiting.is_empty() {
        target.slots().drain(&mut copied, |copied| {
            let tid = copied.head.tid;
            waiting.retain(|&waiting| waiting != tid);
            let mut frames = [0; MAX_FRAMES];
            let Copied { head, stack, whole } = copied;
            let walk = walker.walk(head.registers, stack, *whole, &mut frames);
            if walk.end == End::Truncated && !whole && pointers.is_none() {
                again.push((tid, head.thread_pointer));
            }
            let frames = frames.iter().take(walk.depth).copied().collect();
            caught.stacks.insert(tid, Stack { frames, end: walk.end });
        });
        if waiting.is_empty() || clock.now() >= until {
            break;
        }
        std::thread::sleep(LOOK);
    }
    // Who has not answered will find its question gone.
    target.forget_pending();
    Ok(again)
}

fn blocks(thread: &Thread, signal: i32) -> bool {
    thread.blocked >> (signal - 1) & 1 == 1
}

/// Why there is no whole stack; empty when there is.
fn remark(thread: &Thread, signals: bool, signal: i32, stack: Option<&Stack>) -> &'static str {
    match stack.map(|stack| stack.end) {
        Some(End::Whole) => "",
        Some(End::Truncated) => "the outer end is missing: deeper than 128 frames or 256 KiB",
        Some(End::Broken) => "the outer end is missing: code without unwind information",
        None if !signals => "no stack: threads are not signalled",
        None if signal == 0 => "no stack: no handler",
        None if blocks(thread, signal) => "no stack: blocks SIGURG",
        None => "no stack: did not answer within 100 ms",
    }
}
