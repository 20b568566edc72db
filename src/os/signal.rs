//! Signal-based stack sampling: a signal handler that copies registers and stack into
//! [`SnapshotPool`].
//!
//! A handler is installed once per signal and stays for the life of the process. It is never
//! removed or reset to the default action, which terminates the process for most signals: a signal
//! that is pending at the end of a profile would trigger it. Signals of other senders are passed to
//! the previously installed handler, or dropped if there was none.
//!
//! ```text
//! sender    si_value = cookie | epoch | entry      of a timer, or of `send`
//! handler   save errno; another cookie: call the previous handler; another epoch: late, dropped
//!           claim a slot; registers from the context; the stack from sp up; publish; restore errno
//! ```
//!
//! The handler, its rules and the range that it reads are in `handler`.

#![allow(unsafe_code, reason = "`sigaction`, signal sets, and signals with a value")]

#[cfg(target_os = "linux")]
pub(crate) mod bounds;
#[cfg(target_os = "linux")]
pub(crate) mod context;
mod handler;

use crate::base::sync::Mutex;
use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicUsize};

use super::syscalls::{OptionalCall, permit};
use crate::base::{Bytes, warnings};
use crate::os::clock::cycle_clock;
use crate::os::signal::bounds::Bounds;
use crate::os::stack_snapshot::SnapshotPool;

/// Maximum number of threads with an entry.
pub const MAX_ENTRIES: usize = 1 << 16;

/// Returns the upper half of the value of a signal sent by this copy of marple.
///
/// A program may contain two versions of marple, each with a handler. The cookie is derived from
/// the address of a static, which differs for each copy.
fn cookie() -> u64 {
    ((&raw const TARGETS).addr() as u64 >> 4) << 32
}

/// Highest signal number + 1.
const SIGNAL_COUNT: usize = 65;

/// Offset of the sender's value in a siginfo of 64-bit Linux.
const SIGINFO_VALUE_OFFSET: usize = 24;

static TARGETS: [AtomicPtr<SignalCapture>; SIGNAL_COUNT] =
    [const { AtomicPtr::new(ptr::null_mut()) }; SIGNAL_COUNT];

/// The destination of a signal handler's copies. Never freed.
pub struct SignalCapture {
    signal: c_int,
    slots: SnapshotPool,
    bounds: Bounds,
    epoch: AtomicU32,
    /// Handler before installation: `sa_sigaction` and `sa_flags`.
    previous: AtomicUsize,
    previous_flags: AtomicI32,
}

/// Index of a thread in the table of stack bounds.
pub type ThreadSlot = u16;

/// Installs the handler for `signal`, or returns the one already installed, whose slots keep their
/// original sizes. No allocation is made for it later.
///
/// # Errors
///
/// Returns an error if the kernel refuses the memory or the signal.
pub fn install(
    signal: c_int,
    slots: usize,
    stack_bytes: usize,
) -> io::Result<&'static SignalCapture> {
    static INSTALL_LOCK: Mutex<()> = Mutex::new(());
    let _guard = INSTALL_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    // The tick source must be determined before the first sample takes a tick.
    cycle_clock::source();
    let number = usize::try_from(signal).ok();
    let place = number.and_then(|number| TARGETS.get(number)).ok_or(io::ErrorKind::InvalidInput)?;
    if let Some(target) = load_target(place) {
        return Ok(target);
    }
    let bounds = Bounds::map(MAX_ENTRIES).ok_or_else(|| out_of_memory(1, 32 * MAX_ENTRIES))?;
    let mapped = map_slots(signal, slots, stack_bytes)?;
    let previous = current_action(signal)?;
    let target = Box::leak(Box::new(SignalCapture {
        signal,
        slots: mapped,
        bounds,
        epoch: AtomicU32::new(1),
        previous: AtomicUsize::new(previous.sa_sigaction),
        previous_flags: AtomicI32::new(previous.sa_flags),
    }));
    place.store(target, Release);
    // SAFETY: an all-zero sigaction is a valid one, its mask empty.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_mask = handler_signal_mask();
    action.sa_sigaction = handler::handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    if has_handler(&previous) {
        // Requirements of the chained handler: its blocked signals stay blocked, and its SA_RESTART
        // setting is kept.
        add_signals(&mut action.sa_mask, &previous.sa_mask);
        action.sa_flags &= !libc::SA_RESTART | previous.sa_flags;
    }
    let mut replaced = previous;
    // SAFETY: `handler` has the signature of a handler with SA_SIGINFO and accesses only data
    // published above; both pointers point to a sigaction.
    if unsafe { libc::sigaction(signal, &raw const action, &raw mut replaced) } != 0 {
        let error = io::Error::last_os_error();
        place.store(ptr::null_mut(), Release);
        return Err(error);
    }
    // Another handler may have been installed between the two calls of sigaction.
    target.previous.store(replaced.sa_sigaction, Relaxed);
    target.previous_flags.store(replaced.sa_flags, Relaxed);
    Ok(load_target(place).unwrap_or(target))
}

/// Maps the slots, or fewer if there is not enough memory.
fn map_slots(signal: c_int, slots: usize, stack_bytes: usize) -> io::Result<SnapshotPool> {
    /// Minimum number of slots; with fewer, nearly every signal would be lost.
    const MIN_SLOTS: usize = 8;
    let halves = std::iter::successors(Some(slots), |slots| Some(slots / 2));
    let enough = halves.take_while(|&fewer| fewer == slots || fewer >= MIN_SLOTS);
    let mapped = enough.into_iter().find_map(|slots| SnapshotPool::map(slots, stack_bytes));
    let mapped = mapped.ok_or_else(|| out_of_memory(slots, stack_bytes))?;
    let topic = if signal == libc::SIGPROF { "cpu.slots" } else { "dump.slots" };
    if mapped.count() < slots {
        let text = format!("only {} of {slots} stack slots are allocated", mapped.count());
        warnings::set(topic, format!("{text}: {}", out_of_memory(slots, stack_bytes)));
    } else {
        warnings::clear(topic);
    }
    Ok(mapped)
}

fn out_of_memory(slots: usize, bytes: usize) -> io::Error {
    let size = Bytes((slots * bytes) as u64);
    let reason = format!("cannot map {size}: mmap failed; raise RLIMIT_AS (ulimit -v)");
    io::Error::new(io::ErrorKind::OutOfMemory, reason)
}

fn has_handler(action: &libc::sigaction) -> bool {
    !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
}

fn add_signals(set: &mut libc::sigset_t, more: &libc::sigset_t) {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: both sets are valid, and the calls read and write nothing else.
        unsafe {
            if libc::sigismember(more, signal) == 1 {
                libc::sigaddset(set, signal);
            }
        }
    }
}

/// Returns the signals blocked while the handler runs: all except those that running code causes
/// itself.
///
/// The signal stack that Rust's `std` gives a thread has 8 KiB, and the kernel's frame takes 3 KiB
/// of it, more with wider registers. The frame of a second signal, marple's or the service's, would
/// not fit, and the kernel would terminate the process.
fn handler_signal_mask() -> libc::sigset_t {
    // SAFETY: an all-zero set is a valid one; the calls change it.
    unsafe {
        let mut set: libc::sigset_t = MaybeUninit::zeroed().assume_init();
        libc::sigfillset(&raw mut set);
        let faults =
            [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];
        for signal in faults {
            libc::sigdelset(&raw mut set, signal);
        }
        set
    }
}

fn load_target(place: &AtomicPtr<SignalCapture>) -> Option<&'static SignalCapture> {
    // SAFETY: null, or a leaked box.
    unsafe { place.load(Acquire).as_ref() }
}

fn current_action(signal: c_int) -> io::Result<libc::sigaction> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a query only; the result is written to `action`, for which all-zero is a valid value.
    let failed = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    if failed == 0 {
        // SAFETY: as above.
        Ok(unsafe { action.assume_init() })
    } else {
        Err(io::Error::last_os_error())
    }
}

impl SignalCapture {
    /// Returns the signal number.
    pub fn signal(&self) -> c_int {
        self.signal
    }

    /// Returns the pool of stack copies.
    pub fn slots(&self) -> &SnapshotPool {
        &self.slots
    }

    /// Returns `true` if the handler is still installed. The host may have replaced it; the new
    /// handler then receives marple's signals until their sender stops.
    pub fn is_installed(&self) -> bool {
        let own_handler = handler::handler as *const () as usize;
        current_action(self.signal).is_ok_and(|action| action.sa_sigaction == own_handler)
    }

    /// Returns the signal value for the thread at `entry`.
    pub fn value(&self, entry: ThreadSlot) -> u64 {
        cookie() | u64::from(self.epoch.load(Relaxed) & 0xffff) << 16 | u64::from(entry)
    }

    /// Invalidates all values returned so far: signals that are still pending are dropped on
    /// arrival.
    pub fn invalidate_pending(&self) {
        self.epoch.fetch_add(1, AcqRel);
    }

    /// Sets the stack bounds of the thread at `entry`; an empty range means unknown.
    pub fn set_stack(&self, entry: ThreadSlot, stack: Range<u64>) {
        self.bounds.set_stack(entry.into(), stack);
    }

    /// Sets the ID of the thread at `entry` while that thread lives. 0 means unknown: the handler
    /// then calls `gettid`.
    pub fn set_thread(&self, entry: ThreadSlot, tid: u32) {
        self.bounds.set_thread(entry.into(), tid);
    }

    /// Sends the signal to a thread of this process, with `entry` as its index.
    ///
    /// # Errors
    ///
    /// Returns the errors of `rt_tgsigqueueinfo`: there is no such thread, or too many signals are
    /// queued. Also fails if a filter denies the call.
    pub fn send(&self, tid: u32, entry: ThreadSlot) -> io::Result<()> {
        permit(OptionalCall::QueueSignal)?;
        // SAFETY: an all-zero siginfo is a valid one.
        let mut info: libc::siginfo_t = unsafe { MaybeUninit::zeroed().assume_init() };
        info.si_signo = self.signal;
        info.si_code = libc::SI_QUEUE;
        // SAFETY: `SIGINFO_VALUE_OFFSET` is the offset of the value in a siginfo of 128 bytes.
        unsafe {
            (&raw mut info)
                .cast::<u8>()
                .add(SIGINFO_VALUE_OFFSET)
                .cast::<u64>()
                .write(self.value(entry))
        };
        let pid = std::process::id();
        // SAFETY: the kernel reads a siginfo, which `info` is.
        let failed = unsafe {
            libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, self.signal, &raw const info)
        };
        if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Decodes a signal sent by marple: its entry, and `true` if its epoch has passed. Returns
    /// `None` for other signals.
    fn decode(&self, info: &libc::siginfo_t) -> Option<(ThreadSlot, bool)> {
        if !matches!(info.si_code, libc::SI_TIMER | libc::SI_QUEUE) {
            return None;
        }
        // SAFETY: both codes fill the value; `SIGINFO_VALUE_OFFSET` is its offset in a siginfo of
        // 128 bytes.
        let value = unsafe {
            ptr::from_ref(info).cast::<u8>().add(SIGINFO_VALUE_OFFSET).cast::<u64>().read()
        };
        let is_late = value >> 16 & 0xffff != u64::from(self.epoch.load(Acquire) & 0xffff);
        (value >> 32 == cookie() >> 32).then_some((value as ThreadSlot, is_late))
    }
}

#[cfg(test)]
#[path = "signal_tests.rs"]
pub(crate) mod tests;
