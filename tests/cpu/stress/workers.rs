//! Load that is hard on a profiler: one thread for each kind, in a loop until the run is over.

use std::backtrace::Backtrace;
use std::ffi::CStr;
use std::hint::black_box;
use std::os::unix::process::CommandExt;
use std::panic;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;

/// Progress of each worker, and counts of what must not happen.
#[derive(Default)]
pub(crate) struct Counters {
    iterations: [AtomicU64; WORKERS.len()],
    errno_lost: AtomicU64,
    children_killed: AtomicU64,
    /// Sleeps that a signal ended early.
    pub(crate) interrupted: AtomicU64,
}

impl Counters {
    fn count_iteration(&self, name: &str) {
        let which = WORKERS.iter().position(|(worker, _)| *worker == name);
        self.iterations[which.expect("a worker's name")].fetch_add(1, Relaxed);
    }

    /// Returns `true` if every worker that is required to has completed a turn.
    pub(crate) fn all_progressed(&self) -> bool {
        let mut at = WORKERS.iter().zip(&self.iterations);
        at.all(|((name, _), turns)| MAY_MAKE_NO_PROGRESS.contains(name) || turns.load(Relaxed) > 0)
    }

    /// Resets the number of turns.
    pub(crate) fn reset(&self) {
        self.iterations.iter().for_each(|turns| turns.store(0, Relaxed));
    }

    /// Returns the number of turns of each worker.
    pub(crate) fn iterations(&self) -> Vec<(&'static str, u64)> {
        let at = WORKERS.iter().zip(&self.iterations);
        at.map(|((name, _), turns)| (*name, turns.load(Relaxed))).collect()
    }

    /// Returns the progress line of the protocol.
    pub(crate) fn progress_line(&self) -> String {
        let at = self.iterations().into_iter().map(|(name, turns)| format!(" {name}={turns}"));
        format!("at{}", at.collect::<String>())
    }

    /// Returns the numbers that the test checks.
    pub(crate) fn violations(&self) -> [(&'static str, u64); 2] {
        [
            ("errno lost", self.errno_lost.load(Relaxed)),
            ("children killed", self.children_killed.load(Relaxed)),
        ]
    }
}

type Work = fn(&AtomicBool, &Counters);

pub(crate) const WORKERS: &[(&str, Work)] = &[
    ("panics", panics),
    ("panics-too", panics_concurrently),
    ("malloc", malloc),
    ("malloc-too", malloc_concurrently),
    ("births", short_threads),
    ("dlopen", dlopen),
    ("dlopen-run", dlopen_run),
    ("backtraces", backtraces),
    ("exec", exec),
    ("fork", fork),
    ("recursion", recursion),
    ("altstack", altstack),
    ("errno", errno),
    ("sleeps", sleeps),
];

/// Workers that may make no progress: a statically linked program cannot load libraries.
pub(crate) const MAY_MAKE_NO_PROGRESS: &[&str] = &["dlopen", "dlopen-run"];

/// Burns CPU without calling anything.
#[inline(never)]
fn spin(turns: u32) {
    for turn in 0..turns {
        black_box(turn);
    }
}

fn panics(stop: &AtomicBool, counters: &Counters) {
    panic_until(stop, || counters.count_iteration("panics"));
}

fn panics_concurrently(stop: &AtomicBool, counters: &Counters) {
    panic_until(stop, || counters.count_iteration("panics-too"));
}

fn panic_until(stop: &AtomicBool, on_caught: impl Fn()) {
    #[inline(never)]
    fn throw(depth: u32) -> u32 {
        let on_the_way_out = Box::new([depth; 4]);
        if depth == 0 {
            panic!("of the stress test");
        }
        black_box(throw(black_box(depth - 1))) + on_the_way_out[0]
    }
    while !stop.load(Relaxed) {
        let caught = panic::catch_unwind(|| throw(20));
        assert!(caught.is_err());
        on_caught();
    }
}

fn malloc(stop: &AtomicBool, counters: &Counters) {
    let mut random = 1u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) as usize
    };
    while !stop.load(Relaxed) {
        // Sizes on both sides of the allocator's mmap threshold.
        let mut blocks: Vec<Vec<u8>> = (0..200).map(|_| vec![1; 1 << (next() % 19)]).collect();
        while let Some(last) = blocks.len().checked_sub(1) {
            let mut block = blocks.swap_remove(next() % (last + 1));
            block.reserve(next() % 4096);
            black_box(&block);
        }
        counters.count_iteration("malloc");
    }
}

fn malloc_concurrently(stop: &AtomicBool, counters: &Counters) {
    while !stop.load(Relaxed) {
        let grown = (0..2000).fold(Vec::new(), |mut grown, n: u64| {
            grown.push(Box::new(n));
            grown
        });
        drop(black_box(grown));
        counters.count_iteration("malloc-too");
    }
}

/// Starts threads; some live shorter than a sampling period, some longer.
fn short_threads(stop: &AtomicBool, counters: &Counters) {
    while !stop.load(Relaxed) {
        let threads = (0..8u32).map(|n| {
            let thread = thread::Builder::new().stack_size(64 << 10);
            thread.spawn(move || spin(1 << (8 + 2 * n))).unwrap()
        });
        for thread in threads.collect::<Vec<_>>() {
            thread.join().unwrap();
        }
        counters.count_iteration("births");
    }
}

/// Loads a library and unloads it.
fn dlopen(stop: &AtomicBool, counters: &Counters) {
    // Part of every glibc and otherwise unused.
    while !stop.load(Relaxed) && with_library(c"libBrokenLocale.so.1", |_| {}) {
        counters.count_iteration("dlopen");
        // Lets another thread start: a start waits for the loader's lock, which is not fair.
        thread::yield_now();
    }
}

/// Loads a library, runs code in it for a while and unloads it.
fn dlopen_run(stop: &AtomicBool, counters: &Counters) {
    type Crypt =
        unsafe extern "C" fn(*const libc::c_char, *const libc::c_char) -> *mut libc::c_char;
    let run = |library| {
        // SAFETY: the library is libcrypt, whose `crypt` has that type; no other thread is in it.
        unsafe {
            let crypt = libc::dlsym(library, c"crypt".as_ptr());
            if !crypt.is_null() {
                let crypt = std::mem::transmute::<*mut libc::c_void, Crypt>(crypt);
                black_box(crypt(c"a word".as_ptr(), c"$5$rounds=1000$salt".as_ptr()));
            }
        }
    };
    while !stop.load(Relaxed) && with_library(c"libcrypt.so.1", run) {
        counters.count_iteration("dlopen-run");
    }
}

/// Returns `true` if the library could be loaded.
fn with_library(name: &CStr, run: impl Fn(*mut libc::c_void)) -> bool {
    // SAFETY: a system library that does nothing when it is loaded or unloaded.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
    if library.is_null() {
        return false;
    }
    run(library);
    // SAFETY: `library` was opened above, and nothing in it is used any more.
    unsafe { libc::dlclose(library) };
    true
}

fn backtraces(stop: &AtomicBool, counters: &Counters) {
    #[inline(never)]
    fn capture(depth: u32) -> Backtrace {
        if depth == 0 { Backtrace::force_capture() } else { black_box(capture(depth - 1)) }
    }
    while !stop.load(Relaxed) {
        for _ in 0..50 {
            drop(black_box(capture(20)));
        }
        counters.count_iteration("backtraces");
    }
}

/// Starts children that exec another program, by `vfork` and by `fork`.
fn exec(stop: &AtomicBool, counters: &Counters) {
    while !stop.load(Relaxed) {
        for by_fork in [false, true] {
            let mut command = Command::new("/bin/true");
            if by_fork {
                // SAFETY: the hook does nothing between `fork` and `exec`; it only keeps std from
                // using `vfork`.
                unsafe { command.pre_exec(|| Ok(())) };
            }
            if !command.status().unwrap().success() {
                counters.children_killed.fetch_add(1, Relaxed);
            }
        }
        counters.count_iteration("exec");
    }
}

/// Starts children that run for a while as a copy of this process.
fn fork(stop: &AtomicBool, counters: &Counters) {
    while !stop.load(Relaxed) {
        // SAFETY: the child calls nothing that takes a lock, and exits without cleaning up.
        let child = unsafe { libc::fork() };
        if child == 0 {
            spin(1 << 20);
            // SAFETY: as above.
            unsafe { libc::_exit(0) };
        }
        assert!(child > 0, "fork: {}", std::io::Error::last_os_error());
        let mut status = -1;
        // SAFETY: waits for that child, into a local variable.
        while unsafe { libc::waitpid(child, &raw mut status, 0) } != child {}
        if status != 0 {
            counters.children_killed.fetch_add(1, Relaxed);
        }
        counters.count_iteration("fork");
    }
}

fn recursion(stop: &AtomicBool, counters: &Counters) {
    #[inline(never)]
    fn recurse(depth: u32) -> u32 {
        if depth == 0 {
            spin(1 << 18);
            return 0;
        }
        black_box(recurse(black_box(depth - 1))) + 1
    }
    thread::scope(|scope| {
        let body = || {
            while !stop.load(Relaxed) {
                assert_eq!(recurse(10_000), 10_000);
                counters.count_iteration("recursion");
            }
        };
        let thread = thread::Builder::new().name("deep".into()).stack_size(32 << 20);
        thread.spawn_scoped(scope, body).unwrap();
    });
}

/// Runs a signal handler on an alternate stack, for long enough to be sampled there.
fn altstack(stop: &AtomicBool, counters: &Counters) {
    extern "C" fn handler(_: libc::c_int) {
        spin(1 << 16);
    }
    let mut stack = vec![0u8; 64 << 10];
    let alternate =
        libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    let mut before = alternate;
    let on_signal: extern "C" fn(libc::c_int) = handler;
    // SAFETY: the stack outlives its use, which ends below; the handler only spins.
    unsafe {
        libc::sigaltstack(&raw const alternate, &raw mut before);
        let mut action = std::mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = on_signal as libc::sighandler_t;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
        libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut());
    }
    while !stop.load(Relaxed) {
        for _ in 0..16 {
            // SAFETY: the signal has the handler above.
            unsafe { libc::raise(libc::SIGUSR1) };
        }
        counters.count_iteration("altstack");
    }
    // SAFETY: the previous stack is std's and still valid.
    unsafe { libc::sigaltstack(&raw const before, ptr::null_mut()) };
}

/// Checks that no interruption changes this thread's errno.
fn errno(stop: &AtomicBool, counters: &Counters) {
    let mut value = 1000;
    while !stop.load(Relaxed) {
        value = 1000 + (value + 1) % 1000;
        // SAFETY: the address of this thread's errno, valid as long as the thread is.
        let observed = unsafe {
            let errno = libc::__errno_location();
            errno.write_volatile(value);
            spin(1 << 16);
            errno.read_volatile()
        };
        if observed != value {
            counters.errno_lost.fetch_add(1, Relaxed);
        }
        counters.count_iteration("errno");
    }
}

/// Waits in calls that `SA_RESTART` does not restart.
fn sleeps(stop: &AtomicBool, counters: &Counters) {
    let interrupted = |result: libc::c_int| {
        let cut = result == -1
            && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted;
        counters.interrupted.fetch_add(u64::from(cut), Relaxed);
    };
    while !stop.load(Relaxed) {
        spin(1 << 14);
        let time = libc::timespec { tv_sec: 0, tv_nsec: 500_000 };
        // SAFETY: reads a local variable.
        interrupted(unsafe { libc::nanosleep(&raw const time, ptr::null_mut()) });
        // SAFETY: no descriptors.
        interrupted(unsafe { libc::poll(ptr::null_mut(), 0, 1) });
        counters.count_iteration("sleeps");
    }
}
