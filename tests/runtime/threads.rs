//! Tests that a dump has every thread of the process, with its complete stack where possible.
#![allow(unsafe_code, reason = "a thread blocks a signal")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use marple::internals::base::{Clock, SystemClock};
use marple::internals::codec::text;
use marple::internals::model::{ThreadDump, ThreadRow};
use marple::internals::stacks::threads;
use marple::internals::symbols;

use crate::support::rerun::{self, test_path};

/// Serializes the tests: the threads are those of the process.
fn serial_guard() -> MutexGuard<'static, ()> {
    static SERIAL: Mutex<()> = Mutex::new(());
    SERIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

fn dump(signals: bool) -> ThreadDump {
    let mut dump = threads::dump(&SystemClock, SystemClock.anchor(), signals).unwrap();
    symbols::symbolize(&mut dump.profile);
    dump
}

fn threads_named<'a>(dump: &'a ThreadDump, name: &str) -> Vec<&'a ThreadRow> {
    dump.threads.iter().filter(|thread| thread.name == name).collect()
}

fn function_names(dump: &ThreadDump, thread: &ThreadRow) -> Vec<String> {
    let profile = &dump.profile;
    let frames = profile.stacks.frames(thread.stack).map(|frame| profile.frames.get(frame));
    let lines = frames.flat_map(|frame| frame.lines.iter());
    let name =
        |line: &marple::internals::model::Line| profile.functions[line.function.index()].name;
    lines.map(|line| profile.strings.get(name(line)).to_owned()).collect()
}

/// A gate that blocks threads until it is opened.
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

#[inline(never)]
fn wait_at_gate(gate: &Gate) {
    let open = gate.is_open.lock().unwrap();
    drop(gate.opened.wait_while(open, |open| !*open).unwrap());
}

#[inline(never)]
fn spin_until(open: &AtomicBool) {
    while !open.load(Ordering::Acquire) {
        std::hint::spin_loop();
    }
}

#[test]
fn every_stack_of_4_100_and_1000_threads_is_complete() {
    let _serial = serial_guard();
    for count in [4, 100, 1000] {
        let gate = Arc::new(Gate { is_open: Mutex::new(false), opened: Condvar::new() });
        let ready = Arc::new(Barrier::new(count + 1));
        let threads: Vec<_> = (0..count)
            .map(|_| {
                let (gate, ready) = (Arc::clone(&gate), Arc::clone(&ready));
                let builder = std::thread::Builder::new().name("gated".into());
                let wait = move || {
                    ready.wait();
                    wait_at_gate(&gate);
                };
                builder.stack_size(256 << 10).spawn(wait).unwrap()
            })
            .collect();
        ready.wait();
        // On a busy machine 20 ms may pass without the thread running.
        let start = Instant::now();
        loop {
            let dump = dump(true);
            let gated = threads_named(&dump, "gated");
            let is_complete = |thread: &&&ThreadRow| {
                thread.remark.is_empty()
                    && function_names(&dump, thread)
                        .iter()
                        .any(|name| name.contains("wait_at_gate"))
            };
            let complete_count = gated.iter().filter(is_complete).count();
            assert_eq!(gated.len(), count);
            if complete_count == count {
                break;
            }
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "{complete_count} of {count} are whole"
            );
        }
        *gate.is_open.lock().unwrap() = true;
        gate.opened.notify_all();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn dump_has_thread_states_names_and_dumping_thread() {
    let _serial = serial_guard();
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::new(Gate { is_open: Mutex::new(false), opened: Condvar::new() });
    let spins = std::thread::Builder::new().name("spins".into()).spawn({
        let open = Arc::clone(&open);
        move || spin_until(&open)
    });
    let sleeps = std::thread::Builder::new().name("sleeps".into()).spawn({
        let gate = Arc::clone(&gate);
        move || wait_at_gate(&gate)
    });
    let start = Instant::now();
    let (seen, text) = loop {
        let dump = dump(true);
        let mut text = Vec::new();
        text::threads::write(&dump, &mut text).unwrap();
        let state = |name: &str| threads_named(&dump, name).first().map(|thread| thread.state);
        let states = (state("spins"), state("sleeps"));
        let own = dump.threads.iter().filter(|thread| {
            function_names(&dump, thread).iter().any(|name| name == "runtime::threads::dump")
        });
        let seen = (states, own.count());
        if seen == ((Some('R'), Some('S')), 1) || start.elapsed() > Duration::from_secs(60) {
            break (seen, String::from_utf8(text).unwrap());
        }
    };
    assert_eq!(seen, ((Some('R'), Some('S')), 1), "{text}");
    assert!(text.contains("spin_until") && text.contains("\"sleeps\" sleeping"), "{text}");
    open.store(true, Ordering::Release);
    *gate.is_open.lock().unwrap() = true;
    gate.opened.notify_all();
    spins.unwrap().join().unwrap();
    sleeps.unwrap().join().unwrap();
}

#[test]
fn signal_blocking_thread_is_marked_and_signals_need_permission() {
    let _serial = serial_guard();
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
    let [thread] = threads_named(&full, "blocks")[..] else { panic!("{full:?}") };
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
fn dump_does_not_shorten_std_waits() {
    let _serial = serial_guard();
    let (done, pause) = (Arc::new(AtomicUsize::new(0)), Duration::from_millis(200));
    let waits: [fn(Duration); 3] = [
        std::thread::sleep,
        |pause| {
            let lock = Mutex::new(());
            let guard = lock.lock().unwrap();
            drop(Condvar::new().wait_timeout_while(guard, pause, |()| true).unwrap());
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
fn dump_with_proc_of_other_pid_namespace_is_error() {
    const FOREIGN_PROC_ENV: &str = "MARPLE_TEST_FOREIGN_PROC";
    if std::env::var_os(FOREIGN_PROC_ENV).is_some() {
        let error = threads::dump(&SystemClock, SystemClock.anchor(), false).unwrap_err();
        println!("refused: {error}");
        return;
    }
    let name = test_path!(dump_with_proc_of_other_pid_namespace_is_error);
    let output = std::process::Command::new("unshare")
        .args(["--pid", "--fork"])
        .arg(std::env::current_exe().unwrap())
        .args(rerun::args(name))
        .env(FOREIGN_PROC_ENV, "1")
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
