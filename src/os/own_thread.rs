//! Scheduling attributes of marple's threads, reset from those inherited from the starting thread.
//!
//! A new thread inherits attributes from the thread that creates it, which may be any thread of the
//! host:
//!
//! | inherited | harm | reset to |
//! |---|---|---|
//! | CPU mask | the agent starves on the core of a spinning thread | start (1), if it lacks a CPU |
//! | `SCHED_FIFO`, `SCHED_RR` | the agent takes a core from the service | `SCHED_OTHER` |
//! | `SCHED_BATCH`, `SCHED_IDLE` | the agent starves on a busy machine | start (1) |
//! | nice value | as above, in both directions | start (1) |
//! | timer slack | ticks come late | start (1), if that is less |
//!
//! (1) The value that the process was started with.
//!
//! The start values are the operator's decision (`taskset`, `chrt`, `nice`, `CPUAffinity=` of
//! systemd) and apply to marple's threads too. They have to be read before `main`. Afterwards, a
//! mask that `main` has set for its thread looks like one given to the process. A function in
//! `.init_array` fills `StartAttributes`.
//!
//! The mask of a thread that was started by another marple thread is left unchanged, so that a
//! later `taskset --all-tasks --pid` applies to all threads.
//!
//! Each of these settings is optional (`os::syscalls`). A denial by a filter or the kernel is
//! reported as a warning.

#![allow(unsafe_code, reason = "scheduler calls by number, and a function in `.init_array`")]

use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use super::kernel_file::{KernelFile, parse_number, split_words};
use super::syscalls::{OptionalCall, permit};
use crate::base::warnings;
use crate::os::proc::cpu_mask::CpuMask;

/// Topic of the warning about attributes that could not be set.
const TOPIC: &str = "threads.scheduling";

/// Maximum number of concurrent marple threads: about a dozen, and one for each running custom
/// collector. Further ones are counted as threads of the service.
const MAX_THREADS: usize = 64;

/// Flag of a thread whose scheduling has not been reset yet.
const PENDING: u32 = 1 << 31;

/// IDs of marple's running threads, with [`PENDING`] if set; 0 is a free slot.
static RUNNING: [AtomicU32; MAX_THREADS] = [const { AtomicU32::new(0) }; MAX_THREADS];

/// Scheduling of a thread, as in its `/proc` file `stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scheduling {
    nice: i32,
    policy: i32,
}

impl Scheduling {
    /// Reads `/proc/thread-self/stat`. Returns `None` on failure.
    fn of_current_thread() -> Option<Self> {
        let mut buffer = [0; 1024];
        let stat = KernelFile::open("/proc/thread-self/stat".as_ref())?;
        Self::parse(stat.read(&mut buffer)?)
    }

    /// Parses fields 19 and 41 of proc(5). The name, field 2, may contain brackets and spaces.
    fn parse(stat: &[u8]) -> Option<Self> {
        let name_end = stat.iter().rposition(|&byte| byte == b')')?;
        let mut fields = split_words(stat.get(name_end + 1..)?);
        let nice = std::str::from_utf8(fields.nth(19 - 3)?).ok()?.parse().ok()?;
        let policy = parse_number(fields.nth(41 - 19 - 1)?)?;
        Some(Self { nice, policy: i32::try_from(policy).ok()? })
    }
}

/// Scheduling attributes that the process was started with.
#[derive(Debug)]
struct StartAttributes {
    cpus: Option<CpuMask>,
    scheduling: Option<Scheduling>,
    /// In nanoseconds.
    timer_slack: libc::c_int,
}

static START_ATTRIBUTES: OnceLock<StartAttributes> = OnceLock::new();

/// Records the start values; runs before `main`. In a library that is loaded later it runs during
/// loading, and then records the values of the loading thread.
extern "C" fn record_start_attributes() {
    let _ = START_ATTRIBUTES.set(StartAttributes {
        cpus: CpuMask::for_thread(0),
        scheduling: Scheduling::of_current_thread(),
        timer_slack: timer_slack(),
    });
}

// SAFETY: the C library calls each function in `.init_array` once. It passes arguments that this
// function does not take, which all ABIs of Linux allow. The function uses system calls and a
// `OnceLock`: nothing that `main` has to set up.
#[cfg(not(miri))]
#[used]
#[unsafe(link_section = ".init_array")]
static RECORD_START_ATTRIBUTES: extern "C" fn() = record_start_attributes;

/// Prepares a marple thread: releases the unused memory of its stack and resets inherited
/// attributes to the process's start values. A second call in a thread does nothing.
pub fn enter() {
    thread_local! {
        static ENTRY: OwnThreadEntry = OwnThreadEntry::new();
    }
    // A terminating thread has no thread-locals.
    let _ = ENTRY.try_with(|_| ());
}

/// A slot in [`RUNNING`], claimed while the thread runs.
struct OwnThreadEntry(Option<&'static AtomicU32>);

impl OwnThreadEntry {
    fn new() -> Self {
        let tid = crate::os::proc::threads::current_tid();
        let is_free =
            |slot: &&AtomicU32| slot.compare_exchange(0, tid | PENDING, Relaxed, Relaxed).is_ok();
        let slot = RUNNING.iter().find(is_free);
        crate::os::unused_stack::release();
        report(&reset());
        // Stored without `PENDING` only after the reset: a thread that starts in the meantime must
        // not accept this one's mask as correct.
        if let Some(slot) = slot {
            slot.store(tid, Relaxed);
        }
        Self(slot)
    }
}

impl Drop for OwnThreadEntry {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.store(0, Relaxed);
        }
    }
}

/// Returns the IDs of marple's running threads.
pub(crate) fn running_tids() -> impl Iterator<Item = u32> {
    RUNNING.iter().map(|slot| slot.load(Relaxed) & !PENDING).filter(|&tid| tid != 0)
}

/// Clears the table in a forked child, where the parent's threads do not exist.
pub(super) fn clear_after_fork() {
    RUNNING.iter().for_each(|slot| slot.store(0, Relaxed));
}

/// Resets the inherited attributes of the calling thread. Returns a text for each that could not be
/// set.
fn reset() -> Vec<String> {
    let Some(start) = START_ATTRIBUTES.get() else { return Vec::new() };
    let mut problems = Vec::new();
    let mut note = |result: Result<(), String>| problems.extend(result.err());
    note(reset_cpus(start));
    note(reset_policy(start));
    note(reset_nice(start));
    reset_timer_slack(start);
    problems
}

fn report(problems: &[String]) {
    if !problems.is_empty() {
        warnings::set(
            TOPIC,
            format!(
                "marple's threads inherit the scheduling of the thread that started the agent: {}; \
                 start the agent from an ordinary thread, before it is pinned or given a real-time \
                 policy",
                problems.join("; ")
            ),
        );
    }
}

fn reset_cpus(start: &StartAttributes) -> Result<(), String> {
    let Some(own) = CpuMask::for_thread(0) else { return Ok(()) };
    let Some(wanted) = &start.cpus else { return Ok(()) };
    let is_shared_by_own_thread = || {
        let mut own_tids = RUNNING.iter().map(|slot| slot.load(Relaxed));
        let other = own_tids.find(|&tid| tid != 0 && tid & PENDING == 0);
        other.and_then(CpuMask::for_thread).is_some_and(|mask| mask == own)
    };
    if wanted.is_subset(&own) || is_shared_by_own_thread() {
        return Ok(());
    }
    let failed = |why: String| format!("CPUs {own} instead of {wanted}: {why}");
    permit(OptionalCall::SetAffinity).map_err(|denied| failed(denied.to_string()))?;
    match wanted.apply_to_current_thread() {
        // No CPU of the mask is left in the cpuset. The kernel has chosen another mask, which
        // stays.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result.map_err(|error| failed(format!("sched_setaffinity failed: {error}"))),
    }
}

const fn is_real_time(policy: i32) -> bool {
    !matches!(policy, libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE)
}

fn reset_policy(start: &StartAttributes) -> Result<(), String> {
    let Some(own) = Scheduling::of_current_thread() else { return Ok(()) };
    let at_start = start.scheduling.map_or(libc::SCHED_OTHER, |scheduling| scheduling.policy);
    let wanted = if is_real_time(at_start) { libc::SCHED_OTHER } else { at_start };
    if own.policy == wanted {
        return Ok(());
    }
    let failed = |why: String| format!("policy {} instead of {wanted}: {why}", own.policy);
    permit(OptionalCall::SetScheduler).map_err(|denied| failed(denied.to_string()))?;
    let parameters = libc::sched_param { sched_priority: 0 };
    // A raw system call, because musl's function only returns ENOSYS. SCHED_RESET_ON_FORK need not
    // be preserved: a thread whose parent had it starts with a policy that is already reset.
    // SAFETY: the parameters outlive the call, which changes the calling thread only.
    let result = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, wanted, &parameters) };
    match result {
        0 => Ok(()),
        _ => Err(failed(format!("sched_setscheduler failed: {}", std::io::Error::last_os_error()))),
    }
}

fn reset_nice(start: &StartAttributes) -> Result<(), String> {
    let Some(own) = Scheduling::of_current_thread() else { return Ok(()) };
    let Some(at_start) = start.scheduling else { return Ok(()) };
    if own.nice == at_start.nice {
        return Ok(());
    }
    let failed = |why: String| format!("nice {} instead of {}: {why}", own.nice, at_start.nice);
    permit(OptionalCall::SetPriority).map_err(|denied| failed(denied.to_string()))?;
    // Linux keeps the nice value per thread. `None` is the calling thread.
    rustix::process::setpriority_process(None, at_start.nice)
        .map_err(|error| failed(format!("setpriority failed: {error} (RLIMIT_NICE)")))
}

fn reset_timer_slack(start: &StartAttributes) {
    if start.timer_slack > 0 && timer_slack() > start.timer_slack {
        let slack = libc::c_ulong::from(start.timer_slack.unsigned_abs());
        // SAFETY: no pointers; it changes the calling thread only. There is no error for a slack
        // above 0.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, slack) };
    }
}

/// Returns the timer slack of the calling thread, in nanoseconds; -1 if the kernel does not return
/// it.
fn timer_slack() -> libc::c_int {
    // SAFETY: no pointers, and nothing is changed.
    unsafe { libc::prctl(libc::PR_GET_TIMERSLACK) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn scheduling_is_parsed_after_names_with_brackets() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 -7 4 0 9 8 7 6 5 4 3 2 1 0 4194304 0 0 1 0 0 17 0 0 1";
        let stat = format!("17 (a) R (b)) {tail} 0 0");
        assert_eq!(Scheduling::parse(stat.as_bytes()), Some(Scheduling { nice: -7, policy: 1 }));
        assert_eq!(Scheduling::parse(b"17 (a) S 1 2"), None);
        assert_eq!(Scheduling::parse(b""), None);
    }

    #[test]
    fn start_attributes_are_recorded_before_main() {
        let start = START_ATTRIBUTES.get().expect("the function of .init_array has run");
        assert!(start.cpus.as_ref().is_some_and(|mask| mask.count() > 0));
        assert!(start.scheduling.is_some() && start.timer_slack > 0);
    }

    #[test]
    fn inherited_cpu_mask_and_timer_slack_are_reset() {
        let start = START_ATTRIBUTES.get().unwrap();
        let all = start.cpus.as_ref().unwrap();
        thread::spawn(move || {
            all.first_cpu().apply_to_current_thread().unwrap();
            // SAFETY: no pointers; it changes the calling thread only.
            unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000_000_000_u64) };
            assert_eq!(CpuMask::for_thread(0).unwrap().count(), 1);
            let own = thread::spawn(|| {
                assert_eq!(timer_slack(), 1_000_000_000, "inherited");
                enter();
                assert!(running_tids().any(|tid| tid == crate::os::proc::threads::current_tid()));
                (
                    CpuMask::for_thread(0).unwrap(),
                    timer_slack(),
                    crate::os::proc::threads::current_tid(),
                )
            });
            let (mask, slack, tid) = own.join().unwrap();
            assert_eq!((&mask, slack), (all, start.timer_slack));
            assert!(running_tids().all(|running| running != tid), "the thread has ended");
        })
        .join()
        .unwrap();
    }
}
