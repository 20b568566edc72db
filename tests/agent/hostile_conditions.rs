//! Hostile conditions that the host must survive: files overwritten while they are mapped, locked
//! memory, and too little address space.
//!
//! Each test re-executes itself in a separate process for the parts that may end the process or
//! change it for good.
#![allow(unsafe_code, reason = "libraries cannot be loaded, and memory not locked, without")]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use marple::internals::base::Bytes;
use marple::internals::{heap, os};
use marple::{Builder, CaptureKind, Settings};
use rustix::mm::{MapFlags, ProtFlags, mmap};

use crate::support::host::{self, Host, WAIT_TIMEOUT, settings};
use crate::support::rerun::{self, test_path};

/// Environment variable that names the part of a test to run in a child process.
const PART_ENV: &str = "MARPLE_TEST_PART";

fn requested_part() -> Option<String> {
    std::env::var(PART_ENV).ok()
}

fn run_part(test: &str, part: &str) -> Output {
    let output = rerun::command(test).arg("--test-threads=1").env(PART_ENV, part).output().unwrap();
    println!("{part}: {}", String::from_utf8_lossy(&output.stdout));
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Captures every kind once.
fn capture_all(host: &Host) {
    let before = host.incidents().len();
    host.handle().start_capture(CaptureKind::ALL).wait(WAIT_TIMEOUT).unwrap();
    host.handle().stop_capture().wait(WAIT_TIMEOUT).unwrap();
    host.wait_for_closed(before + 1);
}

// Files overwritten in place.

/// Returns the time for which files are overwritten. For a manual run set `MARPLE_TEST_SECONDS=60`.
fn duration() -> Duration {
    let seconds = std::env::var("MARPLE_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(4))
}

/// Builds a library whose unwind tables span several pages.
fn build(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("many.c"), folder.join("libmany.so"));
    let function = |n| format!("long many_{n}(long n) {{ return n * {n} + (long)&many_{n}; }}\n");
    fs::write(&source, (0..2000).map(function).collect::<String>()).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .status()
        .unwrap();
    assert!(built.success());
    library
}

fn load(library: &Path) -> *mut libc::c_void {
    let name = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: this test built the library, which has no constructors.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
    assert!(!handle.is_null());
    handle
}

/// Truncates the file and writes it again, as `cp` does.
fn overwrite(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(&bytes[..bytes.len() / 2])?;
    file.write_all(&bytes[bytes.len() / 2..])
}

#[test]
fn overwriting_mapped_files_does_not_kill_process() {
    let test = test_path!(overwriting_mapped_files_does_not_kill_process);
    if requested_part().is_none() {
        let output = run_part(test, "captures");
        assert!(output.status.success(), "{}", output.status);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let library = build(folder.path());
    let bytes = fs::read(&library).unwrap();
    // Mapped as code but never called. Not mapped by the loader, which would fault itself on the
    // truncated part.
    let overwritten: Vec<PathBuf> = (0..4)
        .map(|n| {
            let copy = folder.path().join(format!("lib{n}.so"));
            fs::copy(&library, &copy).unwrap();
            let (null, file) = (std::ptr::null_mut(), File::open(&copy).unwrap());
            let protection = ProtFlags::READ | ProtFlags::EXEC;
            // SAFETY: a mapping at an address the kernel chooses, which nothing here reads.
            unsafe { mmap(null, bytes.len(), protection, MapFlags::PRIVATE, file, 0) }.unwrap();
            copy
        })
        .collect();
    heap::set_rate(Bytes::kib(1));
    let host = Host::start(Settings { rules: Vec::new(), ..settings() });
    let stop = AtomicBool::new(false);
    let (writes, looks) = (AtomicU64::new(0), AtomicU64::new(0));
    let end = Instant::now() + duration();
    thread::scope(|scope| {
        for path in &overwritten {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    overwrite(path, &bytes).unwrap();
                    writes.fetch_add(1, Relaxed);
                }
            });
        }
        // The kernel refuses to open a running program for writing (`ETXTBSY`). Prints the result,
        // because some kernels allow it.
        let program = std::env::current_exe().unwrap();
        let refused = OpenOptions::new().write(true).open(program).is_err();
        println!("the program's own file can{} be written", if refused { "not" } else { "" });
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                os::images::loaded().unwrap();
                looks.fetch_add(1, Relaxed);
            }
        });
        // Loading a library makes the unwind tables be read again.
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let handle = load(&library);
                marple::internals::unwind::refresh().unwrap();
                // SAFETY: opened above, and none of its symbols is used.
                unsafe { libc::dlclose(handle) };
            }
        });
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                black_box(vec![0u8; black_box(4000)]);
            }
        });
        let mut captures = 0;
        while Instant::now() < end || captures == 0 {
            capture_all(&host);
            captures += 1;
        }
        stop.store(true, Relaxed);
        println!(
            "{captures} captures, {} looks, {} writes",
            looks.load(Relaxed),
            writes.load(Relaxed)
        );
    });
}

// Locked memory.

/// Returns a line of `/proc/self/status`, in KiB.
fn status_kib(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

const MAX_START_KIB: u64 = 16 << 10;
const MAX_CAPTURE_KIB: u64 = 32 << 10;

#[test]
fn locked_memory_host_pays_only_for_used_memory() {
    let test = test_path!(locked_memory_host_pays_only_for_used_memory);
    if requested_part().is_none() {
        let output = run_part(test, "locked");
        assert!(output.status.success(), "{}", output.status);
        return;
    }
    // SAFETY: takes no pointer.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } != 0 {
        assert!(std::env::var_os("CI").is_none(), "CI may lock memory");
        println!("skipped: mlockall needs CAP_IPC_LOCK or RLIMIT_MEMLOCK");
        return;
    }
    let measure = || (status_kib("VmRSS:"), status_kib("VmLck:"));
    let before = measure();
    let host = Host::start(Settings { rules: Vec::new(), ..settings() });
    host.handle().status().wait(WAIT_TIMEOUT).unwrap();
    let started = measure();
    capture_all(&host);
    let captured = measure();
    println!("KiB resident, locked: {before:?}, started {started:?}, captured {captured:?}");
    // The locked size has no bound here: glibc reserves 64 MiB for each thread that allocates. None
    // of it is resident, but the kernel counts it.
    let more = |now: (u64, u64)| now.0.saturating_sub(before.0);
    assert!(more(started) <= MAX_START_KIB, "{} KiB", more(started));
    assert!(more(captured) <= MAX_CAPTURE_KIB, "{} KiB", more(captured));
}

// Little address space.

#[test]
fn host_with_little_address_space_survives() {
    let test = test_path!(host_with_little_address_space_survives);
    let Some(room) = requested_part() else {
        for room in ["4", "8", "12", "16", "32", "64", "96"] {
            let output = run_part(test, room);
            assert!(output.status.success(), "{room} MiB: {}", output.status);
        }
        return;
    };
    let used = status_kib("VmSize:") << 10;
    let max_locked = used + (room.parse::<u64>().unwrap() << 20);
    let limit = libc::rlimit { rlim_cur: max_locked, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the kernel reads one `rlimit`, which `limit` is.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { dir: dir.path().join("captures"), rules: Vec::new(), ..settings() };
    let agent = match Builder::from_settings(settings).start() {
        Ok(agent) => agent,
        Err(error) => return println!("no agent: {error}"),
    };
    let handle = agent.handle();
    println!("started: {:?}", handle.start_capture(CaptureKind::ALL).wait(WAIT_TIMEOUT).is_ok());
    println!("stopped: {:?}", handle.stop_capture().wait(WAIT_TIMEOUT).is_ok());
    // `Err` if not even the agent's thread could be created.
    println!("{:?}", handle.status().wait(WAIT_TIMEOUT).map(|status| status.warnings));
    drop(agent);
    for (_, manifest) in host::incidents(&dir.path().join("captures")) {
        for capture in manifest.captures {
            println!("{:?}: {:?}", capture.kind, capture.outcome);
        }
    }
    // The host itself can use the remaining address space.
    drop(black_box(File::open("/proc/self/maps").unwrap()));
}
