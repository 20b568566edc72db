//! Catching threads where they are: a signal handler that copies registers and stack into [`Slots`].
//!
//! A handler is installed once for a signal and stays for the life of the process. It is never taken
//! away and never set back to the default, which for most signals is death: a signal that is pending
//! when a profile ends would meet it. What it cannot place goes to the handler that was there before;
//! when there was none, it is dropped.
//!
//! ```text
//! sender    si_value = COOKIE | epoch | entry      a timer's, or `send`
//! handler   errno kept; another cookie: call the previous handler; another epoch: late, dropped
//!           claim a slot; registers from the context; the stack from sp up; publish; errno back
//! ```
//!
//! The handler takes no lock, allocates nothing and meets nothing that is made at first use: [`install`]
//! maps and publishes all of it before the kernel knows the handler. It is a tick, a copy, and one system call
//! (`gettid`) where the sender has not said who is at an entry ([`Target::set_thread`]). The tick is read, not
//! the clock: 10 ns of an instruction where the kernel trusts the CPU's counter, and no call into a library.
//!
//! # How far the stack may be read
//!
//! A handler cannot ask where the stack ends, and reading past it may fault. Asking the kernel page by
//! page whether memory is readable is no answer either: what lies behind a stack may be another mapping
//! that another thread unmaps between the question and the copy. So it reads what is certain:
//!
//! - Within the bounds that the capture side found for the thread and put at its [`Entry`]: from sp to
//!   the end of them, bounded by the slot. They are the thread's own stack, which lives as long as the
//!   thread does, and it is the thread that reads.
//! - On the thread's signal stack, where the kernel says with the signal that there is one: to the end of
//!   it, where the kernel began to write.
//! - Elsewhere (a coroutine's, a thread whose bounds are not known): to the end of the page that sp is in. That page is mapped, since the thread runs on it.
//!
//! The kernel runs the handler on the thread's signal stack where it has one (every thread of Rust's
//! `std` does), else on the stack itself; it needs less than 1 KiB of it besides the kernel's frame.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicUsize};

use super::copied::{Head, Slots};
use super::memory::Chunk;
use super::signal_context::{copy_words, registers, thread_pointer};
use super::ticks;

/// As many threads can have an entry at once.
pub const ENTRIES: usize = 1 << 16;

/// The upper half of the value of a signal that is ours.
const COOKIE: u64 = 0x6d72_706c << 32;

/// One more than the highest number of a signal.
const SIGNALS: usize = 65;

/// Words of an entry: the stack's start and end, the thread's id, and one that fills a power of two.
const ENTRY: usize = 4;

static TARGETS: [AtomicPtr<Target>; SIGNALS] = [const { AtomicPtr::new(ptr::null_mut()) }; SIGNALS];

/// Where the handler of a signal puts what it copies. Lives for ever.
pub struct Target {
    signal: c_int,
    slots: Slots,
    bounds: Chunk,
    epoch: AtomicU32,
    /// What was there before us: `sa_sigaction` and `sa_flags`.
    previous: AtomicUsize,
    previous_flags: AtomicI32,
}

/// A thread's place in the table of bounds.
pub type Entry = u16;

/// Installs the handler for `signal`, or finds the one that was installed; its slots are then as they
/// were asked for first. No allocation is made for it later.
///
/// # Errors
///
/// If the kernel refuses the memory or the signal.
pub fn install(signal: c_int, slots: usize, stack_bytes: usize) -> io::Result<&'static Target> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // It is decided what ticks are before the first signal is dated.
    ticks::source();
    let number = usize::try_from(signal).ok();
    let place = number.and_then(|number| TARGETS.get(number)).ok_or(io::ErrorKind::InvalidInput)?;
    if let Some(target) = at(place) {
        return Ok(target);
    }
    let memory = || io::Error::from(io::ErrorKind::OutOfMemory);
    let bounds = Chunk::new(ENTRIES * ENTRY);
    bounds.get_or_map().ok_or_else(memory)?;
    let previous = action_of(signal)?;
    let target = Box::leak(Box::new(Target {
        signal,
        slots: Slots::map(slots, stack_bytes).ok_or_else(memory)?,
        bounds,
        epoch: AtomicU32::new(1),
        previous: AtomicUsize::new(previous.sa_sigaction),
        previous_flags: AtomicI32::new(previous.sa_flags),
    }));
    place.store(target, Release);
    // SAFETY: an all-zero sigaction is a valid one, its mask empty.
    let mut ours: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    ours.sa_sigaction = handler as *const () as usize;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    let mut before = previous;
    // SAFETY: `handler` is what a handler with SA_SIGINFO must be and touches what is published above;
    // both pointers lead to a sigaction.
    if unsafe { libc::sigaction(signal, &raw const ours, &raw mut before) } != 0 {
        let error = io::Error::last_os_error();
        place.store(ptr::null_mut(), Release);
        return Err(error);
    }
    // Another handler may have come between the question and the answer.
    target.previous.store(before.sa_sigaction, Relaxed);
    target.previous_flags.store(before.sa_flags, Relaxed);
    Ok(at(place).unwrap_or(target))
}

fn at(place: &AtomicPtr<Target>) -> Option<&'static Target> {
    // SAFETY: null, or a leaked box.
    unsafe { place.load(Acquire).as_ref() }
}

fn action_of(signal: c_int) -> io::Result<libc::sigaction> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks only; the answer goes into `action`, of which all-zero is a valid value.
    let failed = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    if failed == 0 {
        // SAFETY: as above.
        Ok(unsafe { action.assume_init() })
    } else {
        Err(io::Error::last_os_error())
    }
}

impl Target {
    /// The number of the signal.
    pub fn signal(&self) -> c_int {
        self.signal
    }

    /// What was copied.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Whether the handler is still there: the host may have installed another over it, which gets our
    /// signals until their sender stops.
    pub fn is_in_place(&self) -> bool {
        let ours = handler as *const () as usize;
        action_of(self.signal).is_ok_and(|action| action.sa_sigaction == ours)
    }

    /// The value a signal of ours must have for the thread at `entry`.
    pub fn value(&self, entry: Entry) -> u64 {
        COOKIE | u64::from(self.epoch.load(Relaxed) & 0xffff) << 16 | u64::from(entry)
    }

    /// Lets every value that was given out so far mean nothing: signals that are still pending are
    /// dropped when they come.
    pub fn forget_pending(&self) {
        self.epoch.fetch_add(1, AcqRel);
    }

    /// Tells the handler where the stack of the thread at `entry` lies; an empty range: not known.
    pub fn set_stack(&self, entry: Entry, stack: Range<u64>) {
        if let Some([start, end, ..]) = self.entry(entry) {
            // A handler between the two sees no stack, or one that the thread is not on.
            end.store(0, Release);
            start.store(stack.start, Release);
            end.store(stack.end, Release);
        }
    }

    /// Tells the handler which thread is at `entry`, as long as that thread lives; 0: it asks the kernel.
    pub fn set_thread(&self, entry: Entry, tid: u32) {
        if let Some([.., id, _]) = self.entry(entry) {
            id.store(tid.into(), Release);
        }
    }

    /// Sends the signal to a thread of this process, as the one at `entry`.
    ///
    /// # Errors
    ///
    /// As `rt_tgsigqueueinfo`: there is no such thread, or too many signals are queued.
    pub fn send(&self, tid: u32, entry: Entry) -> io::Result<()> {
        // SAFETY: an all-zero siginfo is a valid one.
        let mut info: libc::siginfo_t = unsafe { MaybeUninit::zeroed().assume_init() };
        info.si_signo = self.signal;
        info.si_code = libc::SI_QUEUE;
        // SAFETY: `VALUE` is the place of the value in a siginfo of 128 bytes.
        unsafe { (&raw mut info).cast::<u8>().add(VALUE).cast::<u64>().write(self.value(entry)) };
        let pid = std::process::id();
        // SAFETY: the kernel reads a siginfo, which `info` is.
        let failed = unsafe {
            libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, self.signal, &raw const info)
        };
        if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn entry(&self, entry: Entry) -> Option<&[std::sync::atomic::AtomicU64; ENTRY]> {
        let at = usize::from(entry) * ENTRY;
        self.bounds.get()?.get(at..at + ENTRY)?.try_into().ok()
    }

    /// Whether a signal is ours: the entry and whether its epoch has passed.
    fn ours(&self, info: &libc::siginfo_t) -> Option<(Entry, bool)> {
        if !matches!(info.si_code, libc::SI_TIMER | libc::SI_QUEUE) {
            return None;
        }
        // SAFETY: both codes fill the value; `VALUE` is its place in a siginfo of 128 bytes.
        let value = unsafe { ptr::from_ref(info).cast::<u8>().add(VALUE).cast::<u64>().read() };
        let late = value >> 16 & 0xffff != u64::from(self.epoch.load(Acquire) & 0xffff);
        (value >> 32 == COOKIE >> 32).then_some((value as Entry, late))
    }

    fn copy(&self, entry: Entry, info: &libc::siginfo_t, context: &libc::ucontext_t) {
        let weight = if info.si_code == libc::SI_TIMER {
            // SAFETY: a timer's siginfo has its overruns at `OVERRUN`.
            let overrun =
                unsafe { ptr::from_ref(info).cast::<u8>().add(OVERRUN).cast::<c_int>().read() };
            u32::try_from(overrun).unwrap_or(0).saturating_add(1)
        } else {
            1
        };
        let Some(slot) = self.slots.claim() else { return self.slots.lose(weight.into()) };
        let registers = registers(context);
        let sp = registers.sp;
        let words = self.entry(entry);
        let known = words.map(|[start, end, ..]| {
            let end = end.load(Acquire);
            start.load(Acquire)..end
        });
        let tid = match words.map_or(0, |[.., id, _]| id.load(Acquire) as u32) {
            // SAFETY: takes no pointer and cannot fail.
            0 => (unsafe { libc::syscall(libc::SYS_gettid) }) as u32,
            tid => tid,
        };
        let (end, is_stack) = match known {
            Some(stack) if stack.contains(&sp) => (stack.end, true),
            _ if signal_stack(context).contains(&sp) => (signal_stack(context).end, false),
            _ => ((sp | (SMALLEST_PAGE - 1)).wrapping_add(1), false),
        };
        let words = if sp.is_multiple_of(8) { end.wrapping_sub(sp) / 8 } else { 0 };
        let whole = is_stack && words <= slot.room() as u64;
        let (tag, thread_pointer) = (entry.into(), thread_pointer());
        let head = Head { tid, tag, weight, registers, thread_pointer, time: ticks::now() };
        slot.publish(&head, whole, |place| {
            let words = place.len().min(words as usize);
            // SAFETY: from sp to the end of the running thread's own stack, or of the page it runs on.
            unsafe { copy_words(sp, place.get(..words).unwrap_or_default()) };
            words
        });
    }

    /// Calls the handler that was there before.
    fn chain(&self, signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
        let previous = self.previous.load(Relaxed);
        if matches!(previous, libc::SIG_DFL | libc::SIG_IGN) {
            return;
        }
        if self.previous_flags.load(Relaxed) & libc::SA_SIGINFO != 0 {
            // SAFETY: the kernel gave this address back as that of a handler with SA_SIGINFO.
            let previous: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(previous) };
            previous(signal, info, context);
        } else {
            // SAFETY: the kernel gave this address back as that of a plain handler.
            let previous: extern "C" fn(c_int) = unsafe { std::mem::transmute(previous) };
            previous(signal);
        }
    }
}

/// The signal stack of the running thread; empty when it has none.
fn signal_stack(context: &libc::ucontext_t) -> Range<u64> {
    let start = context.uc_stack.ss_sp as u64;
    start..start.saturating_add(context.uc_stack.ss_size as u64)
}

/// No page is smaller where we run.
const SMALLEST_PAGE: u64 = 4096;

/// Where a siginfo of 64-bit Linux has a timer's overruns and the sender's value.
const OVERRUN: usize = 20;
const VALUE: usize = 24;

extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the running thread's errno.
    let errno = unsafe { *libc::__errno_location() };
    let place = usize::try_from(signal).ok().and_then(|signal| TARGETS.get(signal));
    // SAFETY: with SA_SIGINFO the kernel passes both, valid until we return.
    let given = unsafe { (info.as_ref(), context.cast::<libc::ucontext_t>().as_ref()) };
    if let (Some(target), (Some(known), Some(machine))) = (place.and_then(at), given) {
        match target.ours(known) {
            Some((entry, false)) => target.copy(entry, known, machine),
            Some((_, true)) => {}
            None => target.chain(signal, info, context),
        }
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::os::copied::Copied;
    use crate::os::stack_bounds::StackBounds;
    use std::sync::atomic::AtomicU64;

    /// A signal of the test's own.
    pub(in crate::os) fn target(slots: usize, stack_bytes: usize) -> &'static Target {
        static NEXT: AtomicI32 = AtomicI32::new(2);
        let signal = libc::SIGRTMIN() + NEXT.fetch_add(1, Relaxed);
        install(signal, slots, stack_bytes).unwrap()
    }

    /// Interrupts itself, and says 0.
    #[inline(never)]
    pub(in crate::os) fn interrupted(target: &'static Target) -> u64 {
        // SAFETY: takes no pointer and cannot fail.
        let tid = unsafe { libc::gettid() } as u32;
        let stack = StackBounds::open().unwrap().of(tid).unwrap_or(0..0);
        target.set_stack(1, stack);
        target.send(tid, 1).unwrap();
        std::hint::black_box(0)
    }

    fn taken(target: &Target) -> Vec<Copied> {
        let mut taken = Vec::new();
        target.slots().drain(&mut Copied::default(), |copied| taken.push(copied.clone()));
        taken
    }

    #[test]
    fn a_copy_holds_the_stack_to_its_end() {
        let target = target(4, 64 << 10);
        std::thread::spawn(|| {
            let mark = [0x1234_5678_9abc_def0u64; 4];
            std::hint::black_box(&mark);
            interrupted(target);
            std::hint::black_box(&mark);
        })
        .join()
        .unwrap();
        let [copied] = &taken(target)[..] else { panic!("one sample") };
        assert!(copied.whole && copied.stack.len() > 32, "{copied:?}");
        let marks =
            copied.stack.windows(4).filter(|w| w.iter().all(|w| *w == 0x1234_5678_9abc_def0));
        assert!(marks.count() > 0);
        assert_eq!((copied.head.tag, copied.head.weight), (1, 1));
    }

    #[test]
    fn without_bounds_a_copy_stays_on_its_page() {
        let target = target(4, 64 << 10);
        // SAFETY: takes no pointer and cannot fail.
        target.send(unsafe { libc::gettid() } as u32, 7).unwrap();
        let [copied] = &taken(target)[..] else { panic!("one sample") };
        let end = copied.head.registers.sp + copied.stack.len() as u64 * 8;
        assert!(!copied.whole);
        assert_eq!(end % SMALLEST_PAGE, 0);
        assert!(copied.stack.len() <= SMALLEST_PAGE as usize / 8);
    }

    #[test]
    fn errno_stays_and_late_signals_are_dropped() {
        let target = target(4, 4 << 10);
        // SAFETY: takes no pointer and cannot fail.
        let me = unsafe { libc::gettid() };
        let late = target.value(3);
        target.forget_pending();
        // SAFETY: the calling thread's errno.
        unsafe { *libc::__errno_location() = 4711 };
        target.send(me as u32, 3).unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { *libc::__errno_location() }, 4711);
        assert_eq!(taken(target).len(), 1);
        // SAFETY: all-zero is a valid union of an int and a pointer.
        let mut value: libc::sigval = unsafe { MaybeUninit::zeroed().assume_init() };
        value.sival_ptr = late as *mut c_void;
        // SAFETY: takes no pointer that is followed.
        assert_eq!(unsafe { libc::sigqueue(libc::getpid(), target.signal, value) }, 0);
        assert!(taken(target).is_empty());
    }

    #[test]
    fn what_is_not_ours_goes_to_the_handler_before() {
        static SEEN: AtomicU64 = AtomicU64::new(0);
        extern "C" fn hosts(_: c_int) {
            SEEN.fetch_add(1, Relaxed);
        }
        let signal = libc::SIGRTMIN();
        // SAFETY: an all-zero sigaction is a valid one, and `hosts` is a plain handler.
        unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = hosts as *const () as usize;
            assert_eq!(libc::sigaction(signal, &raw const action, ptr::null_mut()), 0);
        }
        let target = install(signal, 4, 4 << 10).unwrap();
        assert!(ptr::eq(target, install(signal, 9, 9).unwrap()));
        assert!(target.is_in_place());
        // SAFETY: takes no pointer.
        unsafe { libc::raise(signal) };
        assert_eq!((SEEN.load(Relaxed), taken(target).len()), (1, 0));
        // SAFETY: takes no pointer and cannot fail.
        target.send(unsafe { libc::gettid() } as u32, 1).unwrap();
        assert_eq!((SEEN.load(Relaxed), taken(target).len()), (1, 1));
    }
}
