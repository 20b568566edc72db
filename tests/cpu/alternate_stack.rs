//! Profiles of code that runs in a signal handler on an alternate stack.

use std::ptr;
use std::thread;
use std::time::Duration;

use marple::internals::symbols;

use crate::support::cpu_load::{BURN_FUNCTIONS, burn, engines, start, stop, sums_below};

/// Enough for this handler and the profiler's handler on top of it.
const STACK: usize = 128 << 10;

extern "C" fn handler(_: libc::c_int) {
    burn(Duration::from_millis(400));
}

/// Raises SIGUSR1, whose handler runs on an alternate stack.
#[expect(unsafe_code, reason = "a handler cannot be installed without")]
fn burn_in_handler() {
    let stack = vec![0u8; STACK].leak();
    // SAFETY: the stack is leaked, and the handler is a plain one that calls only code allowed in a
    // handler.
    unsafe {
        let mut stack_of_signals: libc::stack_t = std::mem::zeroed();
        stack_of_signals.ss_sp = stack.as_mut_ptr().cast();
        stack_of_signals.ss_size = STACK;
        let mut before: libc::stack_t = std::mem::zeroed();
        assert_eq!(libc::sigaltstack(&raw const stack_of_signals, &raw mut before), 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_ONSTACK;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut()), 0);
        libc::raise(libc::SIGUSR1);
        // The thread restores its own alternate stack before it ends.
        libc::sigaltstack(&raw const before, ptr::null_mut());
    }
}

#[test]
fn stack_on_alternate_signal_stack_is_truncated_and_reported() {
    for engine in engines() {
        let session = start(engine, 250).unwrap();
        thread::Builder::new()
            .name("burner".into())
            .spawn(burn_in_handler)
            .unwrap()
            .join()
            .unwrap();
        let mut profile = stop(session);
        symbols::symbolize(&mut profile);
        let context = format!("{engine}: {:?} {:?}", profile.comments, profile.losses);
        let lost = |what: &str| {
            let of = profile.losses.iter().filter(|loss| loss.cause.contains(what));
            of.map(|loss| loss.count).sum::<u64>()
        };
        let on_alternate_stack = lost("a signal's alternate stack");
        assert!(on_alternate_stack >= 50, "{context}");
        // A larger copy would not help here, so this cause must be rare. Other threads may have
        // deep stacks.
        assert!(lost("deeper than its copy") * 10 <= on_alternate_stack, "{context}");
        // In CPU time: the kernel may merge several expirations of a timer into one sample.
        let seen: i64 = sums_below(&profile, "burner", BURN_FUNCTIONS, 1).iter().sum();
        assert!(seen >= 200_000_000, "CPU time in the handler's functions: {seen} ns; {context}");
    }
}
