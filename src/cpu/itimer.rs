//! The portable engine: the unmodified `pprof` crate, 0.15.0 or a compatible version.
//!
//! One `ITIMER_PROF` for the process sends SIGPROF to a running thread. The crate's handler unwinds
//! that thread with the process's unwinder and counts the stack in the crate's table. marple reads
//! raw addresses only (`build_unresolved`): the crate's symbolizer reads debug information, which
//! gets the process killed near a memory limit.
//!
//! # Cost
//!
//! The table has 16,384 entries of about 4 KiB, all touched: about 70 MB from the first session
//! until the process ends. Another 70 MB are used while a session ends, because the crate allocates
//! the next table before it frees the last. The first start also captures a symbolized backtrace as
//! warm-up, which reads debug information once: 0.1 to 0.4 s, and 30 to 50 MB of heap that stay.
//!
//! Measured on a program of 2 MB resident: 120 MB in the first session, 190 MB after its end
//! (glibc's malloc keeps the memory). [`REQUIRED_MEMORY`] lets callers check for it. Later starts
//! take under 1 ms, stops 2 to 20 ms. Evicted table entries go to a file in `TMPDIR`, 4 KiB for
//! each distinct stack, removed when the session ends. The crate creates the next, empty file at
//! once; it remains after the process ends.
//!
//! # Effects on the host, and countermeasures
//!
//! - *It replaces the SIGPROF handler.* The engine does not start if the process has a SIGPROF
//!   handler other than the crate's ([`Error::SigprofInUse`]). If the host installs one during a
//!   session, the host's handler is used, the session gets no samples, and the handler is lost when
//!   the session ends.
//! - *A signal may be pending at the stop.* Version 0.15.0 leaves SIGPROF ignored at its stop,
//!   later ones restore the previous action (tikv/pprof-rs#288). That is the default action in most
//!   programs, and a signal that meets it kills the process. So this engine disarms the timer and
//!   ignores SIGPROF, which discards a pending signal, before the crate's guard is dropped
//!   ([`silence_itimer`](os::sigprof::silence_itimer)). No version of the crate can restore an
//!   action that meets a signal of this timer. With 0.15.0 SIGPROF stays ignored, and programs that
//!   the host executes later inherit that. One case cannot be prevented here: a host that replaces
//!   itself by `exec` during a session keeps the timer, loses the handler and is killed.
//! - *Its handler unwinds through the process's unwinder.* If the unwinder takes a lock, the
//!   interrupted code may hold it. The result is a deadlock (seen on glibc 2.31 at 99 Hz) or a
//!   crash, because the walk reads a list under modification. The engine starts only if the
//!   unwinder takes no lock ([`Error::UnsafeUnwinder`]). One risk remains: a host that registers
//!   unwind tables (`__register_frame`, as JIT compilers do), because before GCC 13 the list of
//!   registered tables has its own lock.
//! - *Its handler writes the scratch file* if the table overflows, and allocates if that write
//!   fails. A full `TMPDIR` while the interrupted code is in `malloc` can deadlock. A directory
//!   that is not writable is detected before the start ([`Error::ScratchFile`]), because the crate
//!   would cache the failure permanently.
//! - *Its handler places several copies of a 4 KiB entry on the interrupted thread's stack* and
//!   does not use an alternate stack. A thread with the smallest stack size may overflow.
//!
//! The blocklist in the crate's README (`libc`, `libgcc`, `pthread`, `vdso`) drops every sample
//! whose innermost frame is in one of these. All time in `memcpy`, `malloc` and system calls would
//! be missing, which makes the profile useless for a service. The list is meant to avoid the lock
//! above but does not (on glibc 2.31, with `backtrace` and dlopen in the host: a crash after one
//! second), and without the lock it is not needed.
//!
//! marple blocks two libraries whose unwind tables are not valid at every instruction. `libgcc`
//! switches stacks during the walk while it throws (a host that panics at 1000 Hz gets SIGSEGV
//! within seconds, `tests/cpu/stress.rs`). `vdso` has wrong tables in some distributions, according
//! to the README; a wrong table makes the walk read arbitrary addresses. Unwinding and clock reads
//! are therefore not sampled and count as missing.
//!
//! # Accuracy
//!
//! The kernel checks the timer at its tick and merges pending signals, so samples are missing with
//! many threads or above about 250 Hz; `accounting` reports how many. Values are those of the
//! samples, not scaled. Stacks are merged by *function*: an address is that of the first of several
//! samples with the same functions, exact to the function and not to the line. Stacks end at 128
//! frames including the handler's; the outermost frames are cut off.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pprof::{MAX_DEPTH, ProfilerGuard, ProfilerGuardBuilder, UnresolvedReport};

use crate::base::{Bytes, Hertz, Moment, TimeAnchor};
use crate::cpu::accounting;
use crate::cpu::error::Error;
use crate::model::{Profile, Sample, ValueType};
use crate::os;
use crate::os::proc::process::cpu_time;

/// Engine name in manifests.
pub(super) const ENGINE_NAME: &str = "pprof";

/// Below 1 Hz a session ends before its first sample; above 1 kHz the kernel's tick yields no more
/// samples.
const MIN_FREQUENCY: Hertz = Hertz(1);
const MAX_FREQUENCY: Hertz = Hertz(1000);

const SAMPLES_TYPE: ValueType = ValueType { name: "samples", unit: "count" };
const CPU_TYPE: ValueType = ValueType { name: "cpu", unit: "nanoseconds" };

const MISSING_SAMPLES_CAUSE: &str =
    "CPU samples missing: merged signals, or code that the engine does not sample";

/// Free memory that makes a session harmless: two tables and the warm-up.
pub(super) const REQUIRED_MEMORY: Bytes = Bytes::mib(192);

pub(super) struct ItimerEngine {
    /// Present until `Drop`.
    guard: Option<ProfilerGuard<'static>>,
    /// Start address of the crate's signal handler.
    handler: u64,
    frequency: Hertz,
    anchor: TimeAnchor,
    /// Time of the first possible sample.
    started: Moment,
    /// CPU time of the process at `started`.
    cpu_time_at_start: Duration,
}

impl ItimerEngine {
    /// Starts a session if it cannot harm the host.
    pub(super) fn start(frequency: Hertz, anchor: TimeAnchor) -> Result<Self, Error> {
        if !(MIN_FREQUENCY..=MAX_FREQUENCY).contains(&frequency) {
            return Err(Error::Frequency {
                asked: frequency,
                lowest: MIN_FREQUENCY,
                highest: MAX_FREQUENCY,
            });
        }
        if cfg!(target_os = "linux") {
            if os::sigprof::is_sigprof_handled()? {
                return Err(Error::SigprofInUse);
            }
            if !os::sigprof::is_unwinder_lock_free()? {
                return Err(Error::UnsafeUnwinder);
            }
        }
        let scratch = std::env::temp_dir();
        rustix::fs::access(&scratch, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
            .map_err(|source| Error::ScratchFile { path: scratch, source: source.into() })?;
        let build_started = Instant::now();
        let guard = ProfilerGuardBuilder::default()
            .frequency(frequency.get() as i32)
            .blocklist(&["libgcc", "vdso"])
            .build()
            .map_err(engine_error)?;
        let started = anchor.moment + build_started.elapsed();
        Ok(Self {
            guard: Some(guard),
            handler: os::sigprof::handler_address(),
            frequency,
            anchor,
            started,
            cpu_time_at_start: cpu_time(),
        })
    }

    /// Stops the recording at `now` and returns the profile.
    pub(super) fn stop(self, now: Moment) -> Result<Profile, Error> {
        let cpu_time = cpu_time().saturating_sub(self.cpu_time_at_start);
        let guard = self.guard.as_ref().ok_or(Error::Busy)?;
        let report = guard.report().build_unresolved().map_err(engine_error)?;
        let period = 1_000_000_000 / i64::from(self.frequency.get());
        let mut profile = Profile::new(
            &[SAMPLES_TYPE, CPU_TYPE],
            CPU_TYPE,
            period,
            self.anchor.wall_at(self.started),
        );
        profile.default_sample_type = CPU_TYPE.name;
        profile.duration = now.since(self.started);
        profile.comments.push(format!(
            "recorded by the engine `{ENGINE_NAME}`, ITIMER_PROF at {}; addresses are exact to the \
             function, not to the line",
            self.frequency
        ));
        let recorded = add_samples(&mut profile, &report, self.handler);
        accounting::report_losses(
            &mut profile,
            cpu_time,
            self.frequency,
            recorded,
            0,
            MISSING_SAMPLES_CAUSE,
        );
        match os::images::loaded_and_unloaded() {
            Ok(images) => profile.attach_mappings(images),
            Err(error) => {
                profile.comments.push(format!("addresses are not mapped to files: {error}"));
            }
        }
        Ok(profile)
    }
}

impl Drop for ItimerEngine {
    fn drop(&mut self) {
        os::sigprof::silence_itimer();
        drop(self.guard.take());
    }
}

fn engine_error(source: pprof::Error) -> Error {
    Error::Engine { engine: ENGINE_NAME, source: source.into() }
}

/// Adds the recorded samples to `profile` in a deterministic order and returns their number.
fn add_samples(profile: &mut Profile, report: &UnresolvedReport, handler: u64) -> u64 {
    let mut counts: BTreeMap<(String, Vec<u64>), i64> = BTreeMap::new();
    for (unresolved, &count) in &report.data {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let frames = unresolved
            .frames
            .iter()
            .map(|frame| (frame.ip() as u64, frame.symbol_address() as u64));
        let stack = Stack::from_frames(frames, handler);
        if unresolved.frames.len() >= MAX_DEPTH {
            profile.losses.add("CPU samples truncated: deeper than 126 frames", count as u64);
        }
        if !stack.handler_removed {
            profile.losses.add("CPU samples with the profiler's own frames on top", count as u64);
        }
        let name = unresolved.thread_name.get(..unresolved.thread_name_length).unwrap_or_default();
        let thread = if name.is_empty() {
            unresolved.thread_id.to_string()
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

/// Addresses of an interrupted thread's stack, innermost first.
#[derive(Debug, PartialEq, Eq)]
struct Stack {
    addresses: Vec<u64>,
    /// `true` if the handler's frames were found and removed.
    handler_removed: bool,
}

impl Stack {
    /// Converts frames of (instruction pointer, start of the function), the handler's first.
    ///
    /// ```text
    /// the walk, called by          functions of the unwinder and of pprof, maybe inlined
    /// the handler, called by       identified by its start address
    /// the signal trampoline        __restore_rt, or the vdso's
    /// the interrupted code         instruction pointer: kept unchanged
    /// callers                      return addresses: ip - 1 lies in the call instruction
    /// ```
    fn from_frames(frames: impl Iterator<Item = (u64, u64)> + Clone, handler: u64) -> Self {
        let handler = frames.clone().position(|(_, function)| function == handler);
        let handler_frames = handler.map_or(0, |position| position + 2);
        let addresses = frames
            .skip(handler_frames)
            .map(|(ip, _)| ip)
            // The outermost frame of some threads has no caller; its ip is 0.
            .take_while(|&ip| ip != 0)
            .enumerate()
            .map(|(depth, ip)| if depth == 0 { ip } else { ip - 1 })
            .collect();
        Self { addresses, handler_removed: handler.is_some() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDLER: u64 = 0x100;

    fn stack(frames: &[(u64, u64)]) -> Stack {
        Stack::from_frames(frames.iter().copied(), HANDLER)
    }

    #[test]
    fn handler_frames_are_removed_and_callers_point_into_call() {
        let walk = (0x210, 0x200);
        let frames = [walk, (0x120, HANDLER), (0x300, 0x2ff), (0x415, 0x400), (0x520, 0x500)];
        assert_eq!(stack(&frames), Stack { addresses: vec![0x415, 0x51f], handler_removed: true });
        assert_eq!(
            stack(&frames[1..]),
            Stack { addresses: vec![0x415, 0x51f], handler_removed: true }
        );
    }

    #[test]
    fn short_walk_or_missing_handler_is_reported() {
        assert_eq!(stack(&[(0x120, HANDLER)]), Stack { addresses: vec![], handler_removed: true });
        assert_eq!(stack(&[]), Stack { addresses: vec![], handler_removed: false });
        let foreign = [(0x415, 0x400), (0x520, 0x500), (0, 0)];
        assert_eq!(
            stack(&foreign),
            Stack { addresses: vec![0x415, 0x51f], handler_removed: false }
        );
    }
}
