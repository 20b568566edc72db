//! The portable engine: the `pprof` crate 0.15, as it is.
//!
//! One `ITIMER_PROF` for the process sends SIGPROF to whichever thread runs; the crate's handler walks
//! that thread's stack with the process' unwinder and counts it in a table of its own. Only the raw
//! addresses are taken from it (`build_unresolved`): its symbolizer reads debug information, which near
//! a memory limit gets the process killed.
//!
//! # What it costs
//!
//! Its table is 16,384 entries of some 4 KiB, all touched: about 70 MB from the first session to the
//! end of the process, and once more that while a session ends, because the next table is made before
//! the last is freed. Starting captures a backtrace with names, to warm up, and that reads debug
//! information once: 0.1 to 0.4 s, and 30 to 50 MB of heap that stay. Measured on a program of 2 MB
//! resident: 120 MB in the first session, 190 MB from its end on (glibc's malloc keeps the room).
//! [`MEMORY`] is for those who decide whether there is that much. Later starts take under 1 ms, stops 2 to 20 ms.
//! What the table evicts goes to a file in `TMPDIR`, 4 KiB for each distinct stack, removed when the
//! session ends; the next session's, empty, is made at once and stays behind when the process ends.
//!
//! # What it can do to the host, and what is done about it
//!
//! - *It takes SIGPROF from whoever had it.* So it is not started while the process has a handler that
//!   is not its own ([`Error::SignalTaken`]). A host that installs one during a session wins, and the
//!   session gets no samples; when the session ends, the host's handler is lost.
//! - *A signal that is pending when it stops.* 0.15.0 stops the timer and then sets SIGPROF to be
//!   ignored, which also discards what is pending, so no signal meets the default action, which is to
//!   kill. (Its successors restore the previous action, that is, the default: tikv/pprof-rs#288. Hence
//!   the `=` in the manifest; a test holds the claim.) Left behind: SIGPROF stays ignored, and
//!   programs that the host executes later inherit that. Not preventable here: a host that replaces
//!   itself by `exec` during a session keeps the timer and loses the handler, and is killed.
//! - *Its handler walks the stack through the unwinder.* Where that takes a lock, the interrupted code
//!   may hold it: a hang (seen on glibc 2.31 at 99 Hz), or, as the walk then runs through a list under
//!   change, a crash. So it is started only where the unwinder takes none ([`Error::UnsafeUnwinder`]).
//!   What remains is a host that registers unwind tables of its own (`__register_frame`, as JIT
//!   compilers do): before GCC 13 its list of such tables has a lock of its own.
//! - *Its handler writes the scratch file* when the table overflows, and allocates when that fails: a
//!   full `TMPDIR` while the interrupted code is in `malloc` can hang. A directory that cannot be written
//!   at all is found before the start ([`Error::Scratch`]); the crate would remember it for good.
//! - *Its handler keeps several copies of a 4 KiB entry on the interrupted thread's stack* and does not
//!   ask for another: a thread of the smallest stack size may overflow.
//!
//! The README's blocklist (`libc`, `libgcc`, `pthread`, `vdso`) drops every sample whose innermost
//! frame is in one of these: all time in `memcpy`, `malloc` and system calls would be missing, which is
//! no profile of a service. It is meant against the lock above, does not help against it (on glibc 2.31,
//! with `backtrace` and dlopen in the host: a crash after a second) and is not needed without it. On our
//! list are two whose unwind tables cannot be trusted at every instruction: `libgcc`, which while it
//! throws switches stacks under the walk (a host that panics at 1000 Hz ends in SIGSEGV within seconds,
//! `tests/cpu_storm.rs`), and `vdso`, whose tables are wrong in some distributions, the README says; a
//! wrong table reads anywhere. So unwinding and reading the clock are not seen, and count as missing.
//!
//! # What the numbers are worth
//!
//! The kernel looks at the timer at its tick and merges signals that are pending, so that samples are
//! missing with many threads or above some 250 Hz; `account` tells how many. The values are those of the
//! samples, not scaled up. Stacks are merged by *function*: an address is that of the first sample of
//! several with the same functions, true to the function and not to the line. Stacks end at 128 frames
//! including the handler's, the outermost are cut off.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pprof::{MAX_DEPTH, ProfilerGuard, ProfilerGuardBuilder, UnresolvedReport};

use super::{Error, account};
use crate::base::{Anchor, Bytes, Hertz, Moment};
use crate::model::{Profile, Sample, ValueType};
use crate::os;
use crate::os::process::cpu_time;

/// The name in manifests.
pub(super) const NAME: &str = "pprof";

/// Below, a session is over before the first sample; above, the kernel's tick gives no more samples.
const LOWEST: Hertz = Hertz(1);
const HIGHEST: Hertz = Hertz(1000);

const SAMPLES: ValueType = ValueType { name: "samples", unit: "count" };
const CPU: ValueType = ValueType { name: "cpu", unit: "nanoseconds" };

const MISSING: &str = "CPU samples missing: signals merged, or in code the engine skips";

/// The memory that must be free for a session to be harmless: two tables and the warm-up.
pub(super) const MEMORY: Bytes = Bytes::mib(192);

/// A session of the `pprof` crate.
pub(super) struct Itimer {
    guard: ProfilerGuard<'static>,
    frequency: Hertz,
    anchor: Anchor,
    /// When samples began to come.
    started: Moment,
    /// The process' CPU time then.
    cpu_time: Duration,
}

impl Itimer {
    /// Starts it, if that cannot harm the host.
    pub(super) fn start(frequency: Hertz, anchor: Anchor) -> Result<Self, Error> {
        if !(LOWEST..=HIGHEST).contains(&frequency) {
            return Err(Error::Frequency { asked: frequency, lowest: LOWEST, highest: HIGHEST });
        }
        if cfg!(target_os = "linux") {
            if os::sigprof::is_handled()? {
                return Err(Error::SignalTaken);
            }
            if !os::sigprof::unwinder_takes_no_lock()? {
                return Err(Error::UnsafeUnwinder);
            }
        }
        let scratch = std::env::temp_dir();
        rustix::fs::access(&scratch, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
            .map_err(|source| Error::Scratch { path: scratch, source: source.into() })?;
        let called = Instant::now();
        let guard = ProfilerGuardBuilder::default()
            .frequency(frequency.get() as i32)
            .blocklist(&["libgcc", "vdso"])
            .build()
            .map_err(failed)?;
        let started = anchor.moment + called.elapsed();
        Ok(Self { guard, frequency, anchor, started, cpu_time: cpu_time() })
    }
}

impl Itimer {
    /// Ends the recording at `now` and reports it.
    pub(super) fn stop(self, now: Moment) -> Result<Profile, Error> {
        let cpu_time = cpu_time().saturating_sub(self.cpu_time);
        let report = self.guard.report().build_unresolved().map_err(failed)?;
        let period = 1_000_000_000 / i64::from(self.frequency.get());
        let mut profile =
            Profile::new(&[SAMPLES, CPU], CPU, period, self.anchor.wall_at(self.started));
        profile.default_sample_type = CPU.name;
        profile.duration = now.since(self.started);
        profile.comments.push(format!(
            "recorded by the engine `{NAME}`, ITIMER_PROF at {}; addresses are true to the function, \
             not to the line",
            self.frequency
        ));
        let got = add_samples(&mut profile, &report);
        account::tell(&mut profile, cpu_time, self.frequency, got, 0, MISSING);
        match os::images::seen() {
            Ok(images) => profile.attach_mappings(images),
            Err(error) => profile.comments.push(format!("addresses without files: {error}")),
        }
        Ok(profile)
    }
}

fn failed(source: pprof::Error) -> Error {
    Error::Engine { engine: NAME, source: source.into() }
}

/// Puts what was recorded into `profile`, in an order that depends on nothing else, and returns the
/// number of samples.
fn add_samples(profile: &mut Profile, report: &UnresolvedReport) -> u64 {
    let handler = os::sigprof::pprof_handler();
    let mut counts: BTreeMap<(String, Vec<u64>), i64> = BTreeMap::new();
    for (seen, &count) in &report.data {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let frames =
            seen.frames.iter().map(|frame| (frame.ip() as u64, frame.symbol_address() as u64));
        let stack = Stack::of(frames, handler);
        if seen.frames.len() >= MAX_DEPTH {
            profile.losses.add("outermost frames of CPU samples deeper than 126", count as u64);
        }
        if !stack.cut {
            profile.losses.add("CPU samples with the profiler's own frames on top", count as u64);
        }
        let name = seen.thread_name.get(..seen.thread_name_length).unwrap_or_default();
        let thread = if name.is_empty() {
            seen.thread_id.to_string()
        } else {
            String::from_utf8_lossy(name).into_owned()
        };
        *counts.entry((thread, stack.addresses)).or_default() += count;
    }
    for ((thread, addresses), &count) in &counts {
        let stack = profile.intern_stack(addresses);
        let thread = profile.text_label("thread", thread);
        let values = vec![count, count.saturating_mul(profile.period)];
        profile.samples.push(Sample { stack, values, labels: vec![thread] });
    }
    counts.values().map(|&count| count as u64).sum()
}

/// The addresses of an interrupted thread, innermost first.
#[derive(Debug, PartialEq, Eq)]
struct Stack {
    addresses: Vec<u64>,
    /// Whether the handler's frames were found and cut off.
    cut: bool,
}

impl Stack {
    /// From frames of (instruction pointer, start of the function), the handler's on top.
    ///
    /// ```text
    /// the walk, called by          functions of the unwinder and of pprof, maybe inlined
    /// the handler, called by       found by where it begins
    /// the signal trampoline        __restore_rt, or the vdso's
    /// the interrupted code         its instruction pointer is where it was: kept as it is
    /// callers                      return addresses: the call is the byte before
    /// ```
    fn of(frames: impl Iterator<Item = (u64, u64)> + Clone, handler: u64) -> Self {
        let handler = frames.clone().position(|(_, function)| function == handler);
        let own = handler.map_or(0, |position| position + 2);
        let addresses = frames
            .skip(own)
            .map(|(ip, _)| ip)
            // The outermost frame of some threads has no caller and says zero.
            .take_while(|&ip| ip != 0)
            .enumerate()
            .map(|(depth, ip)| if depth == 0 { ip } else { ip - 1 })
            .collect();
        Self { addresses, cut: handler.is_some() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDLER: u64 = 0x100;

    fn stack(frames: &[(u64, u64)]) -> Stack {
        Stack::of(frames.iter().copied(), HANDLER)
    }

    #[test]
    fn the_handlers_frames_go_and_callers_point_into_their_call() {
        let walk = (0x210, 0x200);
        let frames = [walk, (0x120, HANDLER), (0x300, 0x2ff), (0x415, 0x400), (0x520, 0x500)];
        assert_eq!(stack(&frames), Stack { addresses: vec![0x415, 0x51f], cut: true });
        assert_eq!(stack(&frames[1..]), Stack { addresses: vec![0x415, 0x51f], cut: true });
    }

    #[test]
    fn a_walk_that_ended_early_or_found_no_handler_is_told() {
        assert_eq!(stack(&[(0x120, HANDLER)]), Stack { addresses: vec![], cut: true });
        assert_eq!(stack(&[]), Stack { addresses: vec![], cut: false });
        let foreign = [(0x415, 0x400), (0x520, 0x500), (0, 0)];
        assert_eq!(stack(&foreign), Stack { addresses: vec![0x415, 0x51f], cut: false });
    }
}
