//! Wall mode: all threads by elapsed time, running or not.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use marple::CaptureKind;
use marple::config::{CpuSettings, StacksSettings, ThreadsMode};
use marple::internals::base::{Clock, Hertz, SystemClock};
use marple::internals::codec::pprof::{self, proto};
use marple::internals::cpu::CpuSession;
use marple::internals::cpu::options::Options;
use marple::internals::model::{CpuMode, Outcome, Profile, Sample};
use marple::internals::symbols;
use rustix::event::{PollFd, PollFlags, poll};

use crate::support::cpu_load::{StopOnDrop, function_names, label, serial_guard, thread_name};
use crate::support::host::{Host, WAIT_TIMEOUT, settings, wait_for};
use crate::support::peers;

#[inline(never)]
fn burn_until_over(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
}

#[inline(never)]
fn wait_for_lock(lock: &Mutex<u32>) -> u32 {
    *lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[inline(never)]
fn read_byte(from: &mut UnixStream) -> usize {
    // 0 if the other end is closed.
    from.read(&mut [0]).unwrap_or(0)
}

/// Waits for a byte, and counts how often a signal interrupts the wait.
#[inline(never)]
fn poll_for_byte(from: &UnixStream, interruptions: &AtomicU64) -> bool {
    while poll(&mut [PollFd::new(from, PollFlags::IN)], None).is_err() {
        interruptions.fetch_add(1, Ordering::Relaxed);
    }
    true
}

/// Returns the time of the thread called `name` in the state `state` below the function `function`.
fn thread_time(profile: &Profile, name: &str, function: &str, state: &str) -> Duration {
    let samples = profile.samples.iter().filter(|sample| {
        thread_name(profile, sample) == name
            && label(profile, sample, "state")
                .is_some_and(|found| state.is_empty() || found == state)
            && (function.is_empty()
                || function_names(profile, sample).iter().any(|n| n.ends_with(function)))
    });
    Duration::from_nanos(samples.map(|sample| sample.values[1] as u64).sum())
}

/// Runs `body` beside four threads, each of which stays in one function.
fn with_four_threads(body: impl FnOnce(&AtomicU64)) {
    let (stop, lock, cut) = (AtomicBool::new(false), Mutex::new(1), AtomicU64::new(0));
    let ((write, mut read), (tell, ask)) =
        (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    let (ask, over, cut, lock) = (&ask, &stop, &cut, &lock);
    thread::scope(move |scope| {
        // Dropped even if `body` panics, so that the test fails instead of hanging.
        let (mut write, mut tell) = (write, tell);
        let guard = lock.lock().unwrap();
        let named_thread = |name: &str| thread::Builder::new().name(name.to_owned());
        named_thread("burns").spawn_scoped(scope, || burn_until_over(over)).unwrap();
        named_thread("locks").spawn_scoped(scope, || wait_for_lock(lock)).unwrap();
        named_thread("reads").spawn_scoped(scope, move || read_byte(&mut read)).unwrap();
        named_thread("polls").spawn_scoped(scope, || poll_for_byte(ask, cut)).unwrap();
        let _over = StopOnDrop(over);
        for name in ["locks", "reads", "polls"] {
            wait_for("a thread to sleep in its system call", || {
                let is_asleep = |task: fs::DirEntry| {
                    let read = |file: &str| fs::read_to_string(task.path().join(file)).ok();
                    let sleeps = read("stat")?.contains(") S ");
                    (read("comm")?.trim() == name && sleeps).then_some(())
                };
                fs::read_dir("/proc/self/task").unwrap().flatten().find_map(is_asleep)
            });
        }
        body(cut);
        drop(guard);
        write.write_all(b"x").unwrap();
        tell.write_all(b"x").unwrap();
    });
}

#[test]
fn every_thread_has_its_elapsed_time_in_right_functions() {
    let _serial = serial_guard();
    with_four_threads(|cut| {
        let options = Options { mode: CpuMode::Wall, frequency: Hertz(99), ..Options::default() };
        let began = Instant::now();
        let session = CpuSession::start_with_options(&options, SystemClock.anchor()).unwrap();
        let started = Instant::now();
        assert!(session.engine().starts_with("wall: "), "{}", session.engine());
        thread::sleep(Duration::from_secs(2));
        let min_time = started.elapsed();
        let mut profile = session.stop(SystemClock.now()).unwrap();
        let max_time = began.elapsed();
        symbols::symbolize(&mut profile);
        let context = format!("{:?} {:?}", profile.comments, profile.losses);
        println!("{context}");
        let types: Vec<_> = profile.sample_types.iter().map(|t| (t.name, t.unit)).collect();
        assert_eq!(types, [("samples", "count"), ("wall", "nanoseconds")]);
        assert_eq!(profile.default_sample_type, "wall");
        for (name, function, state) in [
            ("burns", "::burn_until_over", "running"),
            ("locks", "::wait_for_lock", "sleeping"),
            ("reads", "::read_byte", "sleeping"),
            ("polls", "::poll_for_byte", "sleeping"),
        ] {
            let total_time = thread_time(&profile, name, "", "");
            // Each reading is truncated to whole microseconds.
            let rounded = Duration::from_millis(2);
            assert!(
                total_time + rounded >= min_time && total_time <= max_time,
                "{name}: {total_time:?}; {context}"
            );
            let there = thread_time(&profile, name, function, state);
            // On a loaded machine a busy thread may answer the signal late. A sleeping thread gets
            // no signal.
            let share = if name == "burns" { 0.0 } else { 0.99 };
            assert!(
                there > total_time.mul_f64(share),
                "{name}: {there:?} of {total_time:?}; {context}"
            );
        }
        println!("waits of `polls` that were cut short: {}", cut.load(Ordering::Relaxed));
    });
}

#[test]
fn wall_mode_incident_is_readable_in_go() {
    let _serial = serial_guard();
    let cpu = CpuSettings { mode: CpuMode::Wall, ..CpuSettings::default() };
    let host = Host::start(marple::Settings { cpu, ..settings() });
    with_four_threads(|_| {
        let pending_capture = host.handle().capture([CaptureKind::Cpu], Duration::from_secs(1));
        pending_capture.wait(WAIT_TIMEOUT).unwrap();
        host.wait_for_closed(1);
    });
    let (dir, manifest) = host.wait_for_closed(1).remove(0);
    assert!(manifest.captures[0].engine.starts_with("wall: "), "{:?}", manifest.captures);
    let file = dir.join(&manifest.artifacts.last().unwrap().file);
    let pprof = |args: &[&str]| {
        let mut all = vec!["-symbolize=none"];
        all.extend(args);
        all.push(file.to_str().unwrap());
        peers::go_pprof(&all)
    };
    let top = pprof(&["-top", "-cum", "-nodefraction=0", "-tagfocus=thread=locks"]);
    assert!(top.contains("Type: wall") && top.contains("wait_for_lock"), "{top}");
    assert!(!top.contains("read_byte"), "{top}");
    let tags = pprof(&["-tags"]);
    for tag in ["sleeping", "running", "polls", "wait"] {
        assert!(tags.contains(tag), "{tag}: {tags}");
    }
}

/// Blocks SIGURG in the calling thread until it ends.
#[expect(unsafe_code, reason = "a thread's mask has no safe face")]
fn block_sigurg() {
    // SAFETY: a signal set is plain bits, both calls write only to it, and the calling thread is
    // the test's own.
    unsafe {
        let mut set = std::mem::zeroed();
        assert_eq!((libc::sigemptyset(&mut set), libc::sigaddset(&mut set, libc::SIGURG)), (0, 0));
        assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()), 0);
    }
}

#[test]
fn thread_blocking_signal_is_shown_with_time_and_counted() {
    let _serial = serial_guard();
    let (stop, blocked) = (&AtomicBool::new(false), &AtomicBool::new(false));
    thread::scope(|scope| {
        let _over = StopOnDrop(stop);
        let body = move || {
            block_sigurg();
            blocked.store(true, Ordering::Release);
            burn_until_over(stop);
        };
        thread::Builder::new().name("blocks".to_owned()).spawn_scoped(scope, body).unwrap();
        wait_for("the mask", || blocked.load(Ordering::Acquire).then_some(()));
        let options = Options { mode: CpuMode::Wall, frequency: Hertz(99), ..Options::default() };
        let session = CpuSession::start_with_options(&options, SystemClock.anchor()).unwrap();
        thread::sleep(Duration::from_millis(300));
        let mut profile = session.stop(SystemClock.now()).unwrap();
        symbols::symbolize(&mut profile);
        let is_it = |sample: &&Sample| {
            let state = label(&profile, sample, "state");
            thread_name(&profile, sample) == "blocks" && state == Some("running")
        };
        let of_it: Vec<_> = profile.samples.iter().filter(is_it).collect();
        assert!(!of_it.is_empty(), "{:?}", profile.comments);
        for sample in &of_it {
            assert_eq!(function_names(&profile, sample), ["[no stack: blocks SIGURG]"]);
        }
        let looks: i64 = of_it.iter().map(|sample| sample.values[0]).sum();
        let mut lost = profile.losses.iter();
        let lost = lost.find(|loss| loss.cause == "wall-clock samples without a stack");
        assert!(lost.is_some_and(|loss| loss.count >= looks as u64), "{looks}: {lost:?}");
    });
}

#[test]
fn without_signals_running_threads_have_time_but_no_stack() {
    let _serial = serial_guard();
    let cpu = CpuSettings { mode: CpuMode::Wall, ..CpuSettings::default() };
    let stacks = StacksSettings { threads: ThreadsMode::ProcOnly, ..StacksSettings::default() };
    let host = Host::start(marple::Settings { cpu, stacks, ..settings() });
    with_four_threads(|_| {
        let pending_capture = host.handle().capture([CaptureKind::Cpu], Duration::from_secs(1));
        pending_capture.wait(WAIT_TIMEOUT).unwrap();
        host.wait_for_closed(1);
    });
    let (dir, manifest) = host.wait_for_closed(1).remove(0);
    let capture = &manifest.captures[0];
    assert_eq!(capture.outcome, Outcome::Done, "{capture:?}");
    assert!(capture.engine.ends_with("by /proc without signals"), "{}", capture.engine);
    let file = dir.join(&manifest.artifacts.last().unwrap().file);
    let profile = pprof::read(&fs::read(file).unwrap()).unwrap();
    let comments: Vec<_> = profile.comment.iter().map(|text| profile.text(*text)).collect();
    for part in [
        " 0 by signal (0.0 signals per second)",
        "running threads have no stack: they are not signalled",
        "wall-clock samples without a stack",
    ] {
        assert!(comments.iter().any(|text| text.contains(part)), "{part}: {comments:?}");
    }
    let is = |sample: &proto::Sample, key, value| {
        sample
            .label
            .iter()
            .any(|entry| profile.text(entry.key) == key && profile.text(entry.str) == value)
    };
    let of = |name| profile.sample.iter().filter(move |sample| is(sample, "thread", name));
    for name in ["burns", "locks", "reads", "polls"] {
        assert!(of(name).next().is_some(), "{name}");
    }
    let unseen = profile
        .function
        .iter()
        .filter(|entry| profile.text(entry.name) == "[no stack: threads are not signalled]");
    let unseen: Vec<u64> = unseen.map(|function| function.id).collect();
    let burns: Vec<_> = of("burns").filter(|sample| is(sample, "state", "running")).collect();
    assert!(!burns.is_empty());
    for sample in burns {
        let at = profile
            .location
            .iter()
            .find(|candidate| [candidate.id] == *sample.location_id)
            .unwrap();
        assert!(at.line.iter().all(|line| unseen.contains(&line.function_id)), "{at:?}");
        assert!(!at.line.is_empty());
    }
}

#[test]
fn capture_reports_disabled_thread_dumps() {
    let _serial = serial_guard();
    let cpu = CpuSettings { mode: CpuMode::Wall, ..CpuSettings::default() };
    let stacks = StacksSettings { threads: ThreadsMode::Off, ..StacksSettings::default() };
    let host = Host::start(marple::Settings { cpu, stacks, ..settings() });
    let pending_capture = host.handle().capture([CaptureKind::Cpu], Duration::from_millis(50));
    pending_capture.wait(WAIT_TIMEOUT).unwrap();
    let (_, manifest) = host.wait_for_closed(1).remove(0);
    let capture = &manifest.captures[0];
    assert_eq!(capture.outcome, Outcome::Skipped);
    let why = capture.error.as_deref().unwrap();
    assert!(why.contains("cpu.mode") && why.contains("stacks.threads"), "{why}");
}
