//! Tests that a dump has every thread of the process, with its complete stack where possible.
#![allow(unsafe_code, reason = "a thread blocks a signal")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use marple::base::{Clock, SystemClock};
use marple::codec::text;
use marple::model::{ThreadDump, ThreadRow};
use marple::stacks::threads;
use marple::symbols;

/// Serializes the tests: the threads are those of the process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn dump(signals: bool) -> ThreadDump {
    let mut dump = threads::dump(&SystemClock, SystemClock.anchor(), signals).unwrap();
    symbols::name_functions(&mut dump.profile);
    dump
}

fn named<'a>(dump: &'a ThreadDump, name: &str) -> Vec<&'a ThreadRow> {
    dump.threads.iter().filter(|thread| thread.name == name).collect()
}

fn names(dump: &ThreadDump, thread: &ThreadRow) -> Vec<String> {
    let profile = &dump.profile;
    let frames = profile.stacks.frames(thread.stack).map(|frame| profile.frames.get(frame));
    let lines = frames.flat_map(|frame| frame.lines.iter());
    let name = |line: &marple::model::Line| profile.functions[line.function.index()].name;
    lines.map(|line| profile.strings.get(name(line)).to_owned()).collect()
}

/// A gate that blocks threads until it is opened.
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

#[inline(never)]
fn waits_at_the_gate(gate: &Gate) {
    let open = gate.open.lock().unwrap();
    drop(gate.opened.wait_while(open, |open| !*open).unwrap());
}

#[inline(never)]
fn spins_until(open: &AtomicBool) {
    while !open.load(Ordering::Acquire) {
        std::hint::spin_loop();
    }
}

#[test]
fn of_4_100_and_1000_threads_every_stack_is_whole() {
    let _alone = alone();
    for count in [4, 100, 1000] {
        let gate = Arc::new(Gate { open: Mutex::new(false), opened: Condvar::new() });
        let ready = Arc::new(Barrier::new(count + 1));
        let threads: Vec<_> = (0..count)
            .map(|_| {
                let (gate, ready) = (Arc::clone(&gate), Arc::clone(&ready));
                let builder = std::thread::Builder::new().name("gated".into());
                let wait = move || {
                    ready.wait();
                    waits_at_the_gate(&gate);
                };
                builder.stack_size(256 << 10).spawn(wait).unwrap()
            })
            .collect();
        ready.wait();
        // On a busy machine 20 ms may pass without the thread running.
        let start = Instant::now();
        loop {
            let dump = dump(true);
            let gated = named(&dump, "gated");
            let whole = |thread: &&&ThreadRow| {
                thread.remark.is_empty()
                    && names(&dump, thread).iter().any(|name| name.contains("waits_at_the_gate"))
            };
            let whole = gated.iter().filter(whole).count();
            assert_eq!(gated.len(), count);
            if whole == count {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{whole} of {count} are whole");
        }
        *gate.open.lock().unwrap() = true;
        gate.opened.notify_all();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn states_names_and_the_dumping_thread_are_told() {
    let _alone = alone();
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::new(Gate { open: Mutex::new(false), opened: Condvar::new() });
    let spins = std::thread::Builder::new().name("spins".into()).spawn({
        let open = Arc::clone(&open);
        move || spins_until(&open)
    });
    let sleeps = std::thread::Builder::new().name("sleeps".into()).spawn({
        let gate = Arc::clone(&gate);
        move || waits_at_the_gate(&gate)
    });
    let start = Instant::now();
    let (seen, text) = loop {
        let dump = dump(true);
        let mut text = Vec::new();
        text::threads::write(&dump, &mut text).unwrap();
        let state = |name: &str| named(&dump, name).first().map(|thread| thread.state);
        let states = (state("spins"), state("sleeps"));
        let own = dump.threads.iter().filter(|thread| {
            names(&dump, thread).iter().any(|name| name.ends_with("stacks_threads::dump"))
        });
        let seen = (states, own.count());
        if seen == ((Some('R'), Some('S')), 1) || start.elapsed() > Duration::from_secs(60) {
            break (seen, String::from_utf8(text).unwrap());
        }
    };
    assert_eq!(seen, ((Some('R'), Some('S')), 1), "{text}");
    assert!(text.contains("spins_until") && text.contains("\"sleeps\" sleeping"), "{text}");
    open.store(true, Ordering::Release);
    *gate.open.lock().unwrap() = true;
    gate.opened.notify_all();
    spins.unwrap().join().unwrap();
    sleeps.unwrap().join().unwrap();
}

#[test]
fn who_blocks_the_signal_is_shown_and_marked_and_nobody_is_signalled_without_leave() {
    let _alone = alone();
    let ready = Arc::new(Barrier::new(2));
    let blocks = std::thread::Builder::new().name("blocks".into()).spawn({
        let ready = Arc::clone(&ready);
        move || {
            // SAFETY: an all-zero set is valid, and it is filled before it is used.
            unsafe {
                let mut all: libc::sigset_t = std::mem::zeroed();
                libc::sigfillset(&raw mut all);
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
            }
            ready.wait();
            ready.wait();
        }
    });
    ready.wait();
    let full = dump(true);
    let [thread] = named(&full, "blocks")[..] else { panic!("{full:?}") };
    assert_eq!((thread.remark, thread.stack), ("no stack: blocks SIGURG", None));
    assert!(!full.profile.losses.is_empty());
    let listed = dump(false);
    assert!(listed.threads.len() >= 2);
    for thread in &listed.threads {
        assert_eq!((thread.stack, thread.remark), (None, "no stack: threads are not signalled"));
    }
    ready.wait();
    blocks.unwrap().join().unwrap();
}

#[test]
fn what_std_waits_for_is_not_cut_short() {
    let _alone = alone();
    let (done, pause) = (Arc::new(AtomicUsize::new(0)), Duration::from_millis(200));
    let waits: [fn(Duration); 3] = [
        std::thread::sleep,
        |pause| {
            let lock = Mutex::new(());
            let held = lock.lock().unwrap();
            drop(Condvar::new().wait_timeout_while(held, pause, |()| true).unwrap());
        },
        |pause| {
            let (_keep, queue) = std::sync::mpsc::channel::<()>();
            queue.recv_timeout(pause).unwrap_err();
        },
    ];
    let threads: Vec<_> = waits
        .into_iter()
        .map(|wait| {
            let done = Arc::clone(&done);
            std::thread::spawn(move || {
                let start = Instant::now();
                wait(pause);
                done.fetch_add(1, Ordering::Relaxed);
                start.elapsed()
            })
        })
        .collect();
    while done.load(Ordering::Relaxed) < threads.len() {
        dump(true);
    }
    for thread in threads {
        assert!(thread.join().unwrap() >= pause);
    }
}

#[test]
fn dump_with_the_proc_of_another_pid_namespace_is_an_error_with_the_reason() {
    const INSIDE: &str = "MARPLE_TEST_FOREIGN_PROC";
    if std::env::var_os(INSIDE).is_some() {
        let error = threads::dump(&SystemClock, SystemClock.anchor(), false).unwrap_err();
        println!("refused: {error}");
        return;
    }
    let name = "dump_with_the_proc_of_another_pid_namespace_is_an_error_with_the_reason";
    let output = std::process::Command::new("unshare")
        .args(["--pid", "--fork"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output();
    let output = match output {
        Ok(output) if output.status.success() => output,
        other => {
            println!("skipped: a pid namespace needs unshare(1) and root: {other:?}");
            assert!(!rustix::process::geteuid().is_root(), "{other:?}");
            return;
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("refused:") && text.contains("another pid namespace"), "{text}");
}
