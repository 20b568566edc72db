//! A complete run of the agent under seccomp filters that end the process for a system call not
//! listed, as service managers and sandboxes install them. The runs also verify the list of all
//! calls ([`table`]). A filter cannot be removed, so each test re-executes itself in a
//! separate process.
#![allow(unsafe_code, reason = "a signal handler, and system calls without a safe face")]

mod table;

use std::collections::BTreeSet;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use libc::sock_filter;
use marple::config::{HttpSettings, Listen};
use marple::internals::model::Outcome;
use marple::{CaptureSet, Settings};
use table::{Call, Class, calls};

use crate::support::host::{Host, WAIT_TIMEOUT, settings, wait_for};
use crate::support::rerun::{self, test_path};
use crate::support::seccomp;

/// Writes the number of the trapped call to standard error and exits.
extern "C" fn trapped(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let mut text = *b"system call      is not in the list of tests/agent/syscalls\n";
    // SAFETY: the kernel passes a siginfo, in which `si_syscall` follows an address of eight bytes.
    let number = unsafe { info.cast::<u8>().add(24).cast::<i32>().read() };
    let mut remaining = number;
    for digit in text[12..16].iter_mut().rev() {
        *digit = b'0' + (remaining % 10) as u8;
        remaining /= 10;
    }
    // SAFETY: writes a buffer on this stack and exits; both calls are async-signal-safe.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::_exit(86);
    }
}

/// Allows the calls that `allowed` selects and those of the test harness.
fn allow_only(allowed: impl Fn(Class) -> bool, other: sock_filter) {
    // SAFETY: an all-zero action is valid; the handler only makes async-signal-safe calls.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = trapped as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut());
    }
    let picked = |call: &&Call| call.class == Class::Test || allowed(call.class);
    seccomp::install_list(calls().filter(picked).map(|call| call.number), other);
}

fn get(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).unwrap();
    String::from_utf8_lossy(&response).into_owned()
}

#[inline(never)]
fn burn(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        black_box(vec![0u8; 64 << 10]);
    }
}

struct RunObservations {
    engine: String,
    warnings: String,
}

/// Part of each error about a system call that would make a filter end the process.
const NOT_TRIED_TEXT: &str =
    "is not called: a system call filter (seccomp) kills the process for this call";

/// Starts the agent and exercises everything: look-back, all captures, HTTP requests, a stall,
/// shutdown.
fn run_agent(expected: &[&str]) -> RunObservations {
    let home = tempfile::tempdir().unwrap();
    let socket = home.path().join("marple.sock");
    let http_settings =
        HttpSettings { listen: Listen::Unix(socket.clone()), ..HttpSettings::default() };
    let trigger = home.path().join("trigger");
    let mut settings = Settings { http: Some(http_settings), ..settings() };
    settings.toggle.trigger_file = Some(trigger);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let mut host = Host::start(settings);
    let burner = thread::spawn(|| burn(Duration::from_secs(1)));
    runtime.spawn(async { thread::sleep(Duration::from_millis(300)) });

    let pending_capture = host.handle().capture(CaptureSet::all(), Duration::from_millis(500));
    pending_capture.wait(WAIT_TIMEOUT).unwrap();
    let (_, manifest) = host.wait_for_closed(1).remove(0);
    for record in &manifest.captures {
        let is_whole = matches!(record.outcome, Outcome::Done | Outcome::Cut | Outcome::Skipped);
        // The error of a missing artifact names the forbidden call.
        let says_why = record.error.as_ref().is_some_and(|error| error.contains(NOT_TRIED_TEXT));
        assert!(is_whole || says_why, "{record:?}");
    }
    for path in [
        "/debug/pprof/profile?seconds=1",
        "/debug/pprof/profile?seconds=1&mode=wall",
        "/debug/pprof/heap",
        "/debug/pprof/heap?seconds=1",
        "/debug/pprof/goroutine?debug=2",
        "/debug/pprof/trace?seconds=1",
        "/incidents",
        "/metrics",
        "/status",
    ] {
        let response = get(&socket, path);
        let is_answer = response.starts_with("HTTP/1.1 200") || response.contains(NOT_TRIED_TEXT);
        assert!(is_answer, "{path}: {response:.300}");
    }
    burner.join().unwrap();
    // Some calls are made only for certain stalls. On a busy machine the detector may blame the
    // load instead.
    let observations = wait_for("the expected warnings", || {
        let status = host.handle().status().wait(WAIT_TIMEOUT).unwrap();
        let warnings =
            status.warnings.iter().map(|warning| format!("{}: {}\n", warning.topic, warning.text));
        let seen = RunObservations { engine: status.cpu.clone(), warnings: warnings.collect() };
        if expected.iter().all(|call| seen.warnings.contains(call)) {
            return Some(seen);
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            thread::sleep(Duration::from_millis(300));
            let _ = sender.send(());
        });
        receiver.recv().unwrap();
        None
    });
    host.end();
    observations
}

#[test]
fn agent_runs_with_needed_syscalls_only_and_reports_missing_ones() {
    let test = test_path!(agent_runs_with_needed_syscalls_only_and_reports_missing_ones);
    rerun::under(test, &["env"], || {
        allow_only(|class| class == Class::Needed, seccomp::trap());
        let calls = ["perf_event_open", "setpriority", "timer_create", "rt_tgsigqueueinfo"];
        let observations = run_agent(&calls);
        assert!(
            observations.engine.contains("timer_create is not called"),
            "{}",
            observations.engine
        );
    });
}

#[test]
fn agent_runs_under_killing_system_service_filter() {
    let test = test_path!(agent_runs_under_killing_system_service_filter);
    rerun::under(test, &["env"], || {
        let is_in_set = |class| class != Class::Optional { in_system_service: false };
        allow_only(is_in_set, seccomp::kill());
        let observations = run_agent(&[]);
        let engine = "timer: perf_event_open is not called: a system call filter";
        assert!(observations.engine.starts_with(engine), "{}", observations.engine);
        let warned =
            "system calls: a system call filter (seccomp) kills the process for perf_event_open";
        assert!(observations.warnings.contains(warned), "{}", observations.warnings);
        assert!(!observations.warnings.contains("setpriority"), "{}", observations.warnings);
    });
}

#[test]
fn syscall_table_is_complete() {
    let test = test_path!(syscall_table_is_complete);
    rerun::under(test, &["env"], || {
        allow_only(|_| true, seccomp::trap());
        let observations = run_agent(&[]);
        assert!(!observations.warnings.contains("system calls"), "{}", observations.warnings);
    });
}

#[test]
fn filter_installed_after_start_is_detected_before_optional_syscall() {
    let test = test_path!(filter_installed_after_start_is_detected_before_optional_syscall);
    rerun::under(test, &["env"], || {
        let host = Host::start(settings());
        let handle = host.handle();
        let capture = || {
            let pending_capture = handle.capture(CaptureSet::all(), Duration::from_millis(300));
            pending_capture.wait(WAIT_TIMEOUT).unwrap();
        };
        capture();
        host.wait_for_closed(1);
        allow_only(|class| class == Class::Needed, seccomp::kill());
        // A thread that starts later, so that the engine must begin to sample it.
        let burner = thread::spawn(|| burn(Duration::from_secs(1)));
        capture();
        host.wait_for_closed(2);
        burner.join().unwrap();
        wait_for("a warning", || {
            let status = handle.status().wait(WAIT_TIMEOUT).unwrap();
            status.warnings.iter().find(|entry| entry.topic == "system calls").map(|_| ())
        });
    });
}

#[test]
fn syscall_probe_does_not_call_service_sigsys_handler() {
    let test = test_path!(syscall_probe_does_not_call_service_sigsys_handler);
    rerun::under(test, &["env"], || {
        // The handler reports the call and ends its process; a forked copy writes to the same
        // output.
        let is_in_set = |class| class != Class::Optional { in_system_service: false };
        allow_only(is_in_set, seccomp::trap());
        let host = Host::start(settings());
        let status = host.handle().status().wait(WAIT_TIMEOUT).unwrap();
        assert!(status.cpu.contains("kills the process for this call"), "{}", status.cpu);
    });
}

#[test]
fn needed_syscalls_are_in_system_service_set() {
    let Some(set) = expand_syscall_set("@system-service").zip(expand_syscall_set("@default"))
    else {
        return println!("not run: no `systemd-analyze syscall-filter`");
    };
    let set: BTreeSet<String> = set.0.into_iter().chain(set.1).collect();
    for call in calls() {
        let is_in_set = set.contains(call.kernel_name());
        match call.class {
            Class::Needed => assert!(is_in_set, "{} is needed and not in the set", call.name),
            Class::Optional { in_system_service } => {
                assert_eq!(is_in_set, in_system_service, "{}", call.name);
            }
            Class::Test => {}
        }
    }
}

/// Returns the calls of one of systemd's sets, expanded recursively.
fn expand_syscall_set(set: &str) -> Option<Vec<String>> {
    let output = Command::new("systemd-analyze").args(["syscall-filter", set]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    let mut calls = Vec::new();
    for line in text.lines().skip(1).map(str::trim) {
        match line {
            _ if line.is_empty() || line.starts_with('#') => {}
            _ if line.starts_with('@') => calls.extend(expand_syscall_set(line)?),
            _ => calls.push(line.to_owned()),
        }
    }
    Some(calls)
}
