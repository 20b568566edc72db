#![allow(unsafe_code, reason = "signals, handlers and `errno` by libc")]

use super::handler::MIN_PAGE_BYTES;
use super::*;
use crate::os::proc::stack_bounds::StackBounds;
use crate::os::stack_snapshot::StackSnapshot;
use std::ffi::c_void;
use std::sync::atomic::AtomicU64;

/// Installs a target on a signal that no other test uses.
pub(crate) fn install_test_target(slots: usize, stack_bytes: usize) -> &'static SignalCapture {
    static NEXT: AtomicI32 = AtomicI32::new(2);
    let signal = libc::SIGRTMIN() + NEXT.fetch_add(1, Relaxed);
    install(signal, slots, stack_bytes).unwrap()
}

/// Sends the signal to the calling thread. Returns 0.
#[inline(never)]
pub(crate) fn send_to_self(target: &'static SignalCapture) -> u64 {
    // SAFETY: takes no pointer and cannot fail.
    let tid = unsafe { libc::gettid() } as u32;
    let stack = StackBounds::open().unwrap().for_thread(tid).unwrap_or(0..0);
    target.set_stack(1, stack);
    target.send(tid, 1).unwrap();
    std::hint::black_box(0)
}

fn drain_all(target: &SignalCapture) -> Vec<StackSnapshot> {
    let mut snapshots = Vec::new();
    target.slots().drain(&mut StackSnapshot::default(), |copied| snapshots.push(copied.clone()));
    snapshots
}

#[test]
fn copied_stack_reaches_its_end() {
    let target = install_test_target(4, 64 << 10);
    std::thread::spawn(|| {
        let mark = [0x1234_5678_9abc_def0u64; 4];
        std::hint::black_box(&mark);
        send_to_self(target);
        std::hint::black_box(&mark);
    })
    .join()
    .unwrap();
    let [copied] = &drain_all(target)[..] else { panic!("one sample") };
    assert!(copied.is_complete && copied.stack.len() > 32, "{copied:?}");
    let marks = copied.stack.windows(4).filter(|w| w.iter().all(|w| *w == 0x1234_5678_9abc_def0));
    assert!(marks.count() > 0);
    assert_eq!((copied.header.tag, copied.header.weight), (1, 1));
}

#[test]
fn unknown_bounds_limit_copy_to_one_page() {
    let target = install_test_target(4, 64 << 10);
    // SAFETY: takes no pointer and cannot fail.
    target.send(unsafe { libc::gettid() } as u32, 7).unwrap();
    let [copied] = &drain_all(target)[..] else { panic!("one sample") };
    let end = copied.header.registers.sp + copied.stack.len() as u64 * 8;
    assert!(!copied.is_complete);
    assert_eq!(end % MIN_PAGE_BYTES, 0);
    assert!(copied.stack.len() <= MIN_PAGE_BYTES as usize / 8);
}

#[test]
fn errno_is_preserved_and_late_signals_are_dropped() {
    let target = install_test_target(4, 4 << 10);
    // SAFETY: takes no pointer and cannot fail.
    let tid = unsafe { libc::gettid() };
    let late = target.value(3);
    target.invalidate_pending();
    // SAFETY: the calling thread's errno.
    unsafe { *libc::__errno_location() = 4711 };
    target.send(tid as u32, 3).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { *libc::__errno_location() }, 4711);
    assert_eq!(drain_all(target).len(), 1);
    // SAFETY: all-zero is a valid union of an int and a pointer.
    let mut value: libc::sigval = unsafe { MaybeUninit::zeroed().assume_init() };
    value.sival_ptr = late as *mut c_void;
    // SAFETY: takes no pointer that is dereferenced.
    assert_eq!(unsafe { libc::sigqueue(libc::getpid(), target.signal, value) }, 0);
    assert!(drain_all(target).is_empty());
}

#[test]
fn foreign_signals_are_passed_to_previous_handler() {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    extern "C" fn host_handler(_: c_int) {
        SEEN.fetch_add(1, Relaxed);
    }
    let signal = libc::SIGRTMIN();
    // SAFETY: an all-zero sigaction is a valid one, and `hosts` is a plain handler.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = host_handler as *const () as usize;
        assert_eq!(libc::sigaction(signal, &raw const action, ptr::null_mut()), 0);
    }
    let target = install(signal, 4, 4 << 10).unwrap();
    assert!(ptr::eq(target, install(signal, 9, 9).unwrap()));
    assert!(target.is_installed());
    // SAFETY: takes no pointer.
    unsafe { libc::raise(signal) };
    assert_eq!((SEEN.load(Relaxed), drain_all(target).len()), (1, 0));
    // SAFETY: takes no pointer and cannot fail.
    target.send(unsafe { libc::gettid() } as u32, 1).unwrap();
    assert_eq!((SEEN.load(Relaxed), drain_all(target).len()), (1, 1));
}

#[test]
fn previous_handler_keeps_mask_and_sa_restart() {
    extern "C" fn host_handler(_: c_int) {}
    for flags in [0, libc::SA_RESTART] {
        let signal = libc::SIGRTMAX() - i32::from(flags == 0);
        // SAFETY: an all-zero sigaction is a valid one, and `hosts` is a plain handler.
        unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = host_handler as *const () as usize;
            action.sa_flags = flags;
            libc::sigaddset(&raw mut action.sa_mask, libc::SIGUSR2);
            assert_eq!(libc::sigaction(signal, &raw const action, ptr::null_mut()), 0);
        }
        install(signal, 4, 4 << 10).unwrap();
        let ours = current_action(signal).unwrap();
        assert_eq!(ours.sa_flags & libc::SA_RESTART, flags);
        // SAFETY: the mask is a valid one.
        assert_eq!(unsafe { libc::sigismember(&raw const ours.sa_mask, libc::SIGUSR2) }, 1);
    }
    // Without a previous handler, interrupted calls are restarted.
    let alone = install_test_target(4, 4 << 10);
    assert_ne!(current_action(alone.signal).unwrap().sa_flags & libc::SA_RESTART, 0);
}

/// std allocates signal stacks of exactly the size the kernel may need, and the AMX state takes
/// nearly all of it.
#[test]
fn small_signal_stack_is_skipped_and_counted_as_lost() {
    const EXTRA_BYTES: usize = 640;
    let target = install_test_target(4, 64 << 10);
    let page = rustix::param::page_size();
    std::thread::spawn(move || {
        // SAFETY: takes and returns a number.
        let needed = (unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize).max(2048);
        let pages = (needed + EXTRA_BYTES).next_multiple_of(page);
        let mut before: libc::stack_t;
        // SAFETY: the mapping is owned by the test and stays mapped; below the signal stack is a
        // page without access.
        unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let mapped = libc::mmap(ptr::null_mut(), page + pages, protection, flags, -1, 0);
            assert_ne!(mapped, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(mapped, page, libc::PROT_NONE), 0);
            let stack = libc::stack_t {
                ss_sp: mapped.byte_add(page),
                ss_flags: 0,
                ss_size: needed + EXTRA_BYTES,
            };
            before = MaybeUninit::zeroed().assume_init();
            assert_eq!(libc::sigaltstack(&raw const stack, &raw mut before), 0);
        }
        send_to_self(target);
        // SAFETY: restores the signal stack from std, which frees it at the end of the thread.
        assert_eq!(unsafe { libc::sigaltstack(&raw const before, ptr::null_mut()) }, 0);
        send_to_self(target);
    })
    .join()
    .unwrap();
    assert_eq!((target.slots().lost(), drain_all(target).len()), (1, 1));
}

/// Two kernel frames do not fit on the signal stack of a `std` thread.
#[test]
fn other_signals_are_blocked_while_handler_runs() {
    let target = install_test_target(64, 16 << 10);
    let action = super::current_action(target.signal()).unwrap();
    // SAFETY: a query only.
    let is_blocked = |signal| unsafe { libc::sigismember(&raw const action.sa_mask, signal) } == 1;
    for signal in [libc::SIGPROF, libc::SIGURG, libc::SIGTERM, libc::SIGUSR2, libc::SIGRTMIN()] {
        assert!(is_blocked(signal), "{signal}");
    }
    for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGSYS] {
        assert!(!is_blocked(fault), "{fault}");
    }
}
