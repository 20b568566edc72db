//! The signal handler, which copies registers and stack of the thread that it interrupts.
//!
//! The handler takes no lock, does not allocate and uses nothing that is lazily initialised:
//! [`install`](super::install) maps and publishes everything before it registers the handler. It
//! costs a tick, a copy, and one system call (`gettid`) unless the sender has set the thread of the
//! entry ([`SignalCapture::set_thread`]). The handler reads ticks and not the clock: one
//! instruction of 10 ns if the kernel trusts the CPU's counter, and no library call.
//!
//! # Readable range of the stack
//!
//! A handler cannot query the end of the stack, and reading past it may fault. Checking with the
//! kernel page by page does not help either: the memory behind a stack may be another mapping that
//! another thread unmaps between check and copy. So the handler reads only memory that is certain
//! to be mapped:
//!
//! - Within the bounds that the capture side has set for the thread's [`ThreadSlot`]: from sp to
//!   the end of the bounds, limited by the slot. They are the thread's own stack, which exists as
//!   long as the thread, and the thread itself reads.
//! - On the thread's signal stack, if the kernel reports one with the signal: to its end, where the
//!   kernel started to write.
//! - Elsewhere (a coroutine's stack, a thread with unknown bounds): to the end of the page that
//!   contains sp. That page is mapped, since the thread runs on it.
//!
//! The kernel runs the handler on the thread's signal stack if there is one (every thread of Rust's
//! `std` has one), else on the interrupted stack. The handler needs less than 1 KiB in addition to
//! the kernel's frame. Other signals are blocked until it returns.

#![allow(unsafe_code, reason = "a signal handler, which reads the kernel's context and the stack")]

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::ptr;
use std::sync::atomic::Ordering::Relaxed;

use super::context::{copy_words, registers, thread_pointer};
use super::{SignalCapture, TARGETS, ThreadSlot, load_target};
use crate::os::clock::cycle_clock;
use crate::os::stack_snapshot::SnapshotHeader;

/// Smallest page size of the supported architectures.
pub(super) const MIN_PAGE_BYTES: u64 = 4096;

/// Offset of a timer's overruns in a siginfo of 64-bit Linux.
const SIGINFO_OVERRUN_OFFSET: usize = 20;

/// Bytes of a signal stack that [`handle`] needs; debug builds keep every value in memory.
const MIN_HANDLER_STACK: u64 = if cfg!(debug_assertions) { 3 << 10 } else { 1 << 10 };

/// Runs when the kernel delivers the signal. Uses almost no stack itself: std sizes a thread's
/// signal stack by the kernel's maximum frame size, which leaves little space if a thread uses AMX.
pub(super) extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let place = usize::try_from(signal).ok().and_then(|signal| TARGETS.get(signal));
    // SAFETY: with SA_SIGINFO the kernel passes both, valid until the handler returns.
    let given = unsafe { (info.as_ref(), context.cast::<libc::ucontext_t>().as_ref()) };
    let Some(target) = place.and_then(load_target) else { return };
    let (Some(known), Some(machine)) = given else { return };
    let here = (&raw const place).addr() as u64;
    let stack = signal_stack(machine);
    let has_stack_space = !stack.contains(&here) || here - stack.start >= MIN_HANDLER_STACK;
    if !has_stack_space && target.decode(known).is_some() {
        return target.slots.count_lost(1);
    }
    handle(target, signal, info, context);
}

/// Copies the stack for marple's signals, and passes others to the previous handler.
#[inline(never)]
fn handle(target: &SignalCapture, signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the running thread's errno.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: with SA_SIGINFO the kernel passes both, valid until the handler returns.
    let given = unsafe { (info.as_ref(), context.cast::<libc::ucontext_t>().as_ref()) };
    if let (Some(known), Some(machine)) = given {
        match target.decode(known) {
            Some((entry, false)) => target.copy_stack(entry, known, machine),
            Some((_, true)) => {}
            None => target.call_previous(signal, info, context),
        }
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

impl SignalCapture {
    fn copy_stack(&self, entry: ThreadSlot, info: &libc::siginfo_t, context: &libc::ucontext_t) {
        let weight = if info.si_code == libc::SI_TIMER {
            // SAFETY: a timer's siginfo has its overruns at `SIGINFO_OVERRUN_OFFSET`.
            let overrun = unsafe {
                ptr::from_ref(info).cast::<u8>().add(SIGINFO_OVERRUN_OFFSET).cast::<c_int>().read()
            };
            u32::try_from(overrun).unwrap_or(0).saturating_add(1)
        } else {
            1
        };
        let Some(slot) = self.slots.claim() else { return self.slots.count_lost(weight.into()) };
        let registers = registers(context);
        let sp = registers.sp;
        let known = self.bounds.stack(entry.into());
        let tid = match self.bounds.thread(entry.into()) {
            // SAFETY: takes no pointer and cannot fail.
            0 => (unsafe { libc::syscall(libc::SYS_gettid) }) as u32,
            tid => tid,
        };
        let (end, is_stack) = match known {
            Some(stack) if stack.contains(&sp) => (stack.end, true),
            _ if signal_stack(context).contains(&sp) => (signal_stack(context).end, false),
            _ => ((sp | (MIN_PAGE_BYTES - 1)).wrapping_add(1), false),
        };
        let words = if sp.is_multiple_of(8) { end.wrapping_sub(sp) / 8 } else { 0 };
        let is_complete = is_stack && words <= slot.capacity() as u64;
        let tag = entry.into();
        let thread_pointer = thread_pointer();
        let head = SnapshotHeader {
            tid,
            tag,
            weight,
            registers,
            thread_pointer,
            time: cycle_clock::now(),
        };
        slot.publish(&head, is_complete, |place| {
            let words = place.len().min(words as usize);
            // SAFETY: from sp to the end of the running thread's own stack, or of the page it runs
            // on.
            unsafe { copy_words(sp, place.get(..words).unwrap_or_default()) };
            words
        });
    }

    /// Calls the previously installed handler.
    fn call_previous(&self, signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
        let flags = self.previous_flags.load(Relaxed);
        let previous = match flags & libc::SA_RESETHAND {
            0 => self.previous.load(Relaxed),
            // SA_RESETHAND: the handler must be called only once.
            _ => self.previous.swap(libc::SIG_DFL, Relaxed),
        };
        if matches!(previous, libc::SIG_DFL | libc::SIG_IGN) {
            return;
        }
        if flags & libc::SA_SIGINFO != 0 {
            // SAFETY: the kernel returned this address as that of a handler with SA_SIGINFO.
            let previous: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(previous) };
            previous(signal, info, context);
        } else {
            // SAFETY: the kernel returned this address as that of a plain handler.
            let previous: extern "C" fn(c_int) = unsafe { std::mem::transmute(previous) };
            previous(signal);
        }
    }
}

/// Returns the signal stack of the running thread; empty if it has none.
fn signal_stack(context: &libc::ucontext_t) -> Range<u64> {
    let start = context.uc_stack.ss_sp as u64;
    start..start.saturating_add(context.uc_stack.ss_size as u64)
}
