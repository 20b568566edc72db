//! The profile stays exact under combined load. Threads free and grow each other's blocks under a
//! flood of SIGPROF, libraries are loaded and unloaded, and profiles are taken continuously.

#![allow(unsafe_code, reason = "signals and `dlopen` cannot be used without")]

use std::ffi::CStr;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::mpsc;

use jiff::Timestamp;
use marple::internals::agent::{HeapWriter, ProcessMemory};
use marple::internals::base::Bytes;
use marple::internals::heap;

use crate::support::counted_blocks::{assert_exact, block};
use crate::support::counting::{ALLOCATED, BLOCKS, COUNTED_SIZES, LIVE};

/// Minimum rounds of a thread, and minimum number of signals that must arrive meanwhile.
const ROUNDS: usize = 10_000;
const MIN_SIGNALS: u64 = 5_000;

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Relaxed);
}

fn handle() {
    // SAFETY: the handler only counts, and the structure is a fully initialized local.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as extern "C" fn(_) as usize;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGPROF, &action, ptr::null_mut()), 0);
    }
}

/// Sends a signal to each of these threads. A timer sends at most one every 4 ms.
fn signal(threads: &[AtomicI32]) {
    for thread in threads.iter().map(|thread| thread.load(Relaxed)).filter(|&id| id != 0) {
        // SAFETY: a system call on numbers; the error for an ended thread is ignored.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGPROF) };
    }
}

/// Libraries that every glibc system has and this program does not use.
const LIBRARIES: [&CStr; 4] =
    [c"libutil.so.1", c"librt.so.1", c"libanl.so.1", c"libthread_db.so.1"];

fn load_and_unload() -> u64 {
    let mut loaded = 0;
    for library in LIBRARIES {
        // SAFETY: these libraries run no code when they are loaded.
        unsafe {
            let handle = libc::dlopen(library.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            if !handle.is_null() {
                loaded += 1;
                libc::dlclose(handle);
            }
        }
    }
    loaded
}

#[test]
fn profile_stays_exact_under_stress() {
    heap::set_rate(Bytes(1));
    // The profile excludes the writer's blocks, so they are allocated before counting starts.
    let mut writer = HeapWriter::reserve();
    [&ALLOCATED, &BLOCKS, &LIVE].iter().for_each(|count| count.store(0, SeqCst));
    let threads = [const { AtomicI32::new(0) }; 4];
    handle();
    let done = AtomicBool::new(false);
    let (loaded, dumps) = std::thread::scope(|scope| {
        let loads = scope.spawn(|| {
            let mut loads = 0;
            while !done.load(Relaxed) {
                loads += load_and_unload();
            }
            loads
        });
        scope.spawn(|| {
            while !done.load(Relaxed) {
                (0..20).for_each(|_| signal(&threads));
                std::thread::yield_now();
            }
        });
        let (writer, is_done) = (&mut writer, &done);
        let dumps = scope.spawn(move || {
            let mut dumps = 0;
            while !is_done.load(Relaxed) {
                let process = ProcessMemory::default();
                writer.write(Timestamp::now(), process, std::io::sink()).unwrap();
                dumps += 1;
            }
            dumps
        });
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..4).map(|_| mpsc::channel::<Vec<u8>>()).unzip();
        let workers: Vec<_> = receivers
            .into_iter()
            .enumerate()
            .map(|(me, receiver)| {
                let to = senders[(me + 1) % 4].clone();
                let threads = &threads;
                scope.spawn(move || {
                    // SAFETY: `gettid` takes no arguments.
                    threads[me].store(unsafe { libc::gettid() }, Relaxed);
                    let rounds =
                        (0..).take_while(|&n| n < ROUNDS || SIGNALS.load(Relaxed) < MIN_SIGNALS);
                    for n in rounds {
                        // Each size has its own site, and there are at most 73,728 sites, so sizes
                        // repeat.
                        let n = n % 1000;
                        let _ = to.send(block(n * 4 + me));
                        while let Ok(mut theirs) = receiver.try_recv() {
                            match n % 8 {
                                0 => theirs.reserve_exact(COUNTED_SIZES.start + n * 31 % 90_000),
                                1 => theirs.shrink_to(COUNTED_SIZES.start / 2),
                                2 if n == 2 => std::mem::forget(theirs),
                                _ => {}
                            }
                        }
                    }
                    std::mem::forget(block(me));
                })
            })
            .collect();
        drop(senders);
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Relaxed);
        assert!(ended.iter().all(Result::is_ok));
        (loads.join().unwrap(), dumps.join().unwrap())
    });
    let (signals, live_blocks) = (SIGNALS.load(Relaxed), BLOCKS.load(Relaxed));
    println!(
        "{signals} signals, {loaded} libraries loaded, {dumps} dumps, {live_blocks} blocks left"
    );
    assert!(signals >= MIN_SIGNALS && loaded > 0 && dumps > 0 && live_blocks > 0);
    assert_exact();
}
