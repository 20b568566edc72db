//! CPU samples in a process with a resource limit: descriptors, timers, locked memory or threads.
//!
//! The service keeps the resources it needs, and the profile names the limit that caused each loss.
//! Each test runs in a process with a different limit.
#![allow(unsafe_code, reason = "timers and signals of the service's own")]

use std::fs::{self, File};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use marple::internals::base::warnings;
use marple::internals::cpu::Lookback;
use marple::internals::cpu::error::Error;
use marple::internals::cpu::options::Options;
use marple::internals::model::{CpuEngine, Profile};

use crate::support::cpu_load::{burn, start, stated_periods, stop, thread_name};
use crate::support::host::{self, Host, settings, wait_for};
use crate::support::rerun::{self, test_path};

/// Command prefix that runs as a user whose quotas no other process uses.
const SEPARATE_USER_COMMAND: [&str; 6] =
    ["setpriv", "--reuid", "43211", "--regid", "43211", "--clear-groups"];

/// Starts threads that sleep until the returned senders are dropped.
fn spawn_sleeping_threads(number: usize) -> Vec<Sender<()>> {
    let sleeper = |_| {
        let (hold, wait) = mpsc::channel::<()>();
        thread::spawn(move || wait.recv().is_err());
        hold
    };
    (0..number).map(sleeper).collect()
}

/// Returns the number of this process's descriptors, and of those of perf events.
fn count_descriptors() -> (usize, usize) {
    let entries = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets: Vec<_> = entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    let events =
        targets.iter().filter(|target| target.to_string_lossy().contains("perf_event")).count();
    (targets.len(), events)
}

fn loss_text(profile: &Profile) -> String {
    profile.losses.iter().map(|loss| format!("{}: {}\n", loss.cause, loss.count)).collect()
}

fn has_samples_of_thread(profile: &Profile, thread: &str) -> bool {
    profile.samples.iter().any(|sample| thread_name(profile, sample) == thread)
}

/// Returns `true` if perf events are allowed. CI may forbid them.
fn perf_is_allowed() -> bool {
    match start(CpuEngine::Perf, 99) {
        Ok(_) => true,
        Err(error) => {
            println!("not run: {error}");
            false
        }
    }
}

#[test]
fn agent_with_200_threads_uses_at_most_40_descriptors() {
    let test = test_path!(agent_with_200_threads_uses_at_most_40_descriptors);
    rerun::under(test, &["prlimit", "--nofile=1024"], || {
        let _sleepers = spawn_sleeping_threads(200);
        let (before, _) = count_descriptors();
        let host = Host::start(settings());
        host.handle().status().wait(host::WAIT_TIMEOUT).unwrap();
        let (after, _) = count_descriptors();
        assert!(after - before <= 40, "{before} without the agent, {after} with it");
    });
}

#[test]
fn perf_events_are_closed_when_service_needs_descriptors() {
    let test = test_path!(perf_events_are_closed_when_service_needs_descriptors);
    rerun::under(test, &["prlimit", "--nofile=256"], || {
        if !perf_is_allowed() {
            return;
        }
        let _sleepers = spawn_sleeping_threads(20);
        let lookback = Lookback::start(&Options {
            lookback_frequency: marple::internals::base::Hertz(19),
            ..Options::default()
        });
        let lookback = lookback.unwrap().unwrap();
        assert!(lookback.engine().starts_with("perf"), "{}", lookback.engine());
        let events = count_descriptors().1;
        assert!((20..=32).contains(&events), "{events}: at most an eighth");
        let files: Vec<File> = (0..180).map(|_| File::open("/dev/null").unwrap()).collect();
        wait_for("the events to be closed", || (count_descriptors().1 == 0).then_some(()));
        let engine = lookback.engine();
        assert!(engine.starts_with("timer: ") && engine.contains("RLIMIT_NOFILE"), "{engine}");
        drop(files);
        // Sampling continues.
        let session = start(CpuEngine::Auto, 99).unwrap();
        burn(Duration::from_millis(300));
        assert!(stated_periods(&stop(session)).1 > 15);
    });
}

#[test]
fn perf_events_use_at_most_eighth_of_limit_on_busiest_threads() {
    let test = test_path!(perf_events_use_at_most_eighth_of_limit_on_busiest_threads);
    rerun::under(test, &["prlimit", "--nofile=256"], || {
        if !perf_is_allowed() {
            return;
        }
        let _sleepers = spawn_sleeping_threads(100);
        let session = start(CpuEngine::Perf, 99).unwrap();
        assert_eq!(count_descriptors().1, 32);
        let busy = thread::Builder::new().name("busy".into());
        busy.spawn(|| burn(Duration::from_secs(2))).unwrap().join().unwrap();
        assert!(count_descriptors().1 <= 32);
        let profile = stop(session);
        assert!(has_samples_of_thread(&profile, "busy"), "{:?}", profile.comments);
        let losses = loss_text(&profile);
        assert!(losses.contains("threads without CPU samples: marple uses at most 32"), "{losses}");
        assert!(losses.contains("RLIMIT_NOFILE"), "{losses}");
    });
}

#[test]
fn timers_leave_pending_signals_to_service_and_follow_busy_threads() {
    let test = test_path!(timers_leave_pending_signals_to_service_and_follow_busy_threads);
    let wrapper: Vec<&str> =
        SEPARATE_USER_COMMAND.into_iter().chain(["prlimit", "--sigpending=64"]).collect();
    rerun::under(test, &wrapper, || {
        let _sleepers = spawn_sleeping_threads(100);
        let session = start(CpuEngine::Timer, 99).unwrap();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let queued = status.lines().find_map(|line| line.strip_prefix("SigQ:\t")).unwrap();
        assert_eq!(queued, "8/64", "an eighth of what is free");
        let warned = wait_for("a warning", || {
            warnings::list().into_iter().find(|warning| warning.topic == "cpu.engine")
        });
        assert!(warned.text.contains("RLIMIT_SIGPENDING 64"), "{}", warned.text);
        // The service creates as many timers as are left.
        for number in 8..56 {
            // SAFETY: a timer without a `sigevent` sends SIGALRM on expiry, and this one is never
            // armed.
            let failed = unsafe {
                let mut timer = std::mem::zeroed();
                libc::timer_create(libc::CLOCK_MONOTONIC, std::ptr::null_mut(), &raw mut timer)
            };
            assert_eq!(failed, 0, "timer {number}: {}", std::io::Error::last_os_error());
            if number == 40 {
                let busy = thread::Builder::new().name("busy".into());
                busy.spawn(|| burn(Duration::from_secs(2))).unwrap().join().unwrap();
                wait_for("marple to take less", || {
                    let status = fs::read_to_string("/proc/self/status").unwrap();
                    let queued = status.lines().find_map(|line| line.strip_prefix("SigQ:\t"));
                    queued.unwrap().strip_suffix("/64")?.parse::<u32>().ok().filter(|&it| it < 40)
                });
            }
        }
        let profile = stop(session);
        assert!(has_samples_of_thread(&profile, "busy"), "{:?}", profile.comments);
        let losses = loss_text(&profile);
        assert!(losses.contains("RLIMIT_SIGPENDING 64"), "{losses}");
    });
}

#[test]
fn memlock_limit_error_is_not_reported_as_permission() {
    let test = test_path!(memlock_limit_error_is_not_reported_as_permission);
    let without = "=-sys_admin,-ipc_lock";
    let (bounding, inheritable) =
        (format!("--bounding-set{without}"), format!("--inh-caps{without}"));
    let wrapper = ["prlimit", "--memlock=65536:65536", "setpriv", &bounding, &inheritable];
    rerun::under(test, &wrapper, || {
        let _sleepers = spawn_sleeping_threads(64);
        let session = start(CpuEngine::Auto, 99).unwrap();
        let engine = session.engine().to_owned();
        // The limit has no effect if perf events are forbidden.
        if !engine.contains("perf_event_open refused") {
            assert!(engine.contains("RLIMIT_MEMLOCK is 64 KiB"), "{engine}");
            assert!(!engine.contains("paranoid"), "{engine}");
        }
    });
}

#[test]
fn thread_spawn_failure_is_error_not_panic() {
    let test = test_path!(thread_spawn_failure_is_error_not_panic);
    let wrapper: Vec<&str> =
        SEPARATE_USER_COMMAND.into_iter().chain(["prlimit", "--nproc=2"]).collect();
    rerun::under(test, &wrapper, || {
        // The process already has two threads: the harness's and this one.
        let options = Options {
            lookback_frequency: marple::internals::base::Hertz(19),
            ..Options::default()
        };
        let refused = Lookback::start(&options).map(drop);
        assert!(matches!(refused, Err(Error::SpawnThread { .. })), "{refused:?}");
        let refused = start(CpuEngine::Auto, 99).map(drop);
        assert!(matches!(refused, Err(Error::SpawnThread { .. })), "{refused:?}");
    });
}
