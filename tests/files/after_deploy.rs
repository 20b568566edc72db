//! Tests that functions keep their names in CPU and heap profiles, thread dumps and stalls after a
//! deployment replaced or removed the files of the running program.
#![allow(unsafe_code, reason = "libraries cannot be loaded without")]

use std::ffi::{CStr, CString, c_void};
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use marple::config::{HeapSettings, TraceSettings};
use marple::internals::base::Bytes;
use marple::{CaptureKind, Settings};

use crate::support::host::{Host, WAIT_TIMEOUT, settings, wait_for};
use crate::support::peers;
use crate::support::rerun::{self, test_path};

/// Folder of the copied program; set only in the child process of a test.
const FOLDER_ENV: &str = "MARPLE_TEST_FOLDER";

/// A function that burns CPU, with two names at one address.
const LIBRARY: &str = "
#include <time.h>
void burn_in_the_library(void) {
    struct timespec start, now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
    do clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    while ((now.tv_sec - start.tv_sec) * 1000000000L + now.tv_nsec - start.tv_nsec < 4000000L);
}
extern __typeof(burn_in_the_library) burn_in_the_other __attribute__((alias(\"burn_in_the_library\")));
";

const REPLACEMENT_SOURCE: &str = "void nothing(void) {}";

fn build(source: &str, library: &Path) {
    let text = library.with_extension("c");
    fs::write(&text, source).unwrap();
    let arguments = ["-shared", "-fPIC", "-O1", "-Wl,--build-id", "-o"];
    let built = Command::new("cc").args(arguments).args([library, &text]).status().unwrap();
    assert!(built.success());
}

fn load(library: &Path) -> *mut c_void {
    let name = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: the library is built by this test and has no constructors.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
    assert!(!handle.is_null());
    handle
}

fn find_symbol(library: *mut c_void, name: &CStr) -> extern "C" fn() {
    // SAFETY: the library has this function, of this type, and is not unloaded.
    unsafe {
        let found = libc::dlsym(library, name.as_ptr());
        assert!(!found.is_null());
        std::mem::transmute::<*mut c_void, extern "C" fn()>(found)
    }
}

#[inline(never)]
fn burn_in_program() {
    let now = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let start = now();
    let nanos = |at: &rustix::time::Timespec| at.tv_sec * 1_000_000_000 + at.tv_nsec;
    // Together with the library's 4 ms this is no multiple of the sampling period: both get
    // samples.
    while nanos(&now()) - nanos(&start) < 3_000_000 {
        std::hint::spin_loop();
    }
    black_box(());
}

#[inline(never)]
fn allocate_in_program() -> Vec<Vec<u8>> {
    black_box((0..16).map(|_| vec![1; 1 << 20]).collect())
}

#[inline(never)]
fn block_in_program(released: &Receiver<()>) {
    let _ = released.recv_timeout(WAIT_TIMEOUT);
    black_box(());
}

/// Effect of a deployment on the program and its library.
enum Deploy {
    Replaces,
    Removes,
}

/// Runs `test` from a copy of this program, which may be replaced.
fn rerun_from_copy(test: &str, deploy: &Deploy) {
    if let Ok(folder) = std::env::var(FOLDER_ENV) {
        return assert_names_stay(Path::new(&folder), deploy);
    }
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("app");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    build(LIBRARY, &folder.path().join("libhelp.so"));
    build(REPLACEMENT_SOURCE, &folder.path().join("libother.so"));
    let output = Command::new(&program)
        .args(rerun::args(test))
        .arg("--test-threads=1")
        .env(FOLDER_ENV, folder.path())
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", output.status);
}

#[test]
fn names_survive_replacement_of_program_and_library() {
    rerun_from_copy(
        test_path!(names_survive_replacement_of_program_and_library),
        &Deploy::Replaces,
    );
}

#[test]
fn names_survive_removal_of_program_and_library() {
    rerun_from_copy(test_path!(names_survive_removal_of_program_and_library), &Deploy::Removes);
}

/// Runs with 1024 descriptors, the limit set by shells and service managers.
#[test]
fn names_survive_replacement_with_1024_descriptors() {
    let limit = rustix::process::Rlimit { current: Some(1024), maximum: Some(1024) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    rerun_from_copy(test_path!(names_survive_replacement_with_1024_descriptors), &Deploy::Replaces);
}

fn assert_names_stay(folder: &Path, deploy: &Deploy) {
    let (program, library) = (folder.join("app"), folder.join("libhelp.so"));
    let stall = Some(Duration::from_millis(50));
    let host = Host::start(Settings {
        heap: HeapSettings { rate: Bytes::kib(64), ..HeapSettings::default() },
        trace: TraceSettings { stall_threshold: stall, ..TraceSettings::default() },
        ..settings()
    });
    let kept = allocate_in_program();
    // Loaded after the start: a tick opens its file.
    let help = find_symbol(load(&library), c"burn_in_the_library");
    wait_for_ticks(&host, 5);

    match deploy {
        Deploy::Replaces => {
            fs::copy("/bin/true", folder.join("new")).unwrap();
            fs::rename(folder.join("new"), &program).unwrap();
            build(REPLACEMENT_SOURCE, &folder.join("new.so"));
            fs::rename(folder.join("new.so"), &library).unwrap();
        }
        Deploy::Removes => {
            fs::remove_file(&program).unwrap();
            fs::remove_file(&library).unwrap();
        }
    }
    // Loading another library makes the agent read the list of loaded files again.
    load(&folder.join("libother.so"));
    wait_for_ticks(&host, 5);

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                burn_in_program();
                help();
            }
        });
        let kinds = [CaptureKind::Cpu, CaptureKind::Heap, CaptureKind::Threads];
        host.handle().start_capture(kinds).wait(WAIT_TIMEOUT).unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            thread::sleep(Duration::from_millis(20));
        }
        host.handle().stop_capture().wait(WAIT_TIMEOUT).unwrap();
        stop.store(true, Relaxed);
    });
    let (dir, manifest) = host.wait_for_closed(1).remove(0);
    let text = |kind: &str| {
        let is_wanted = |file: &&String| file.contains(kind);
        let file = manifest.artifacts.iter().map(|artifact| &artifact.file).rfind(is_wanted);
        dir.join(file.unwrap_or_else(|| panic!("no {kind} in {:?}", manifest.artifacts)))
    };
    let cpu = top(&text("cpu"));
    assert!(cpu.contains("files::after_deploy::burn_in_program"), "{cpu}");
    assert!(cpu.contains("burn_in_the_other (or burn_in_the_library)"), "{cpu}");
    let heap = top(&text("memory"));
    assert!(heap.contains("files::after_deploy::allocate_in_program"), "{heap}");
    let threads = fs::read_to_string(text("threads.txt")).unwrap();
    assert!(threads.contains("files::after_deploy::assert_names_stay"), "{threads}");
    // A reader finds the files by their paths and build IDs.
    let raw = peers::go_pprof(&["-raw", text("cpu").to_str().unwrap()]);
    for path in [&program, &library] {
        let is_of = |line: &&str| line.contains(&format!("{} ", path.display()));
        assert!(raw.lines().any(|line| is_of(&line)), "{} in {raw}", path.display());
    }
    assert!(!raw.contains("(deleted)"), "{raw}");
    assert_stall_named(&host);
    drop(kept);
}

fn wait_for_ticks(host: &Host, count: u64) {
    let now = || host.handle().status().wait(WAIT_TIMEOUT).unwrap().counters.ticks;
    let before = now();
    wait_for("ticks", || (now() >= before + count).then_some(()));
}

fn top(file: &Path) -> String {
    peers::go_pprof(&["-top", "-cum", "-nodecount=200", "-nodefraction=0", file.to_str().unwrap()])
}

fn assert_stall_named(host: &Host) {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build().unwrap();
    host.handle().watch_runtime(runtime.handle().clone()).unwrap();
    // The thread name of workers is taken from a thread that ran a task.
    wait_for_ticks(host, 6);
    let (release, released) = channel();
    runtime.spawn(async move { block_in_program(&released) });
    let stall = wait_for("the stall", || {
        let stalls = host.handle().status().wait(WAIT_TIMEOUT).unwrap().stalls;
        stalls.into_iter().find(|stall| stall.function.is_some())
    });
    release.send(()).unwrap();
    let function = stall.function.as_deref();
    assert_eq!(function, Some("files::after_deploy::block_in_program"), "{stall:?}");
    assert!(stall.via.as_deref().is_some_and(|via| via.contains("mpsc")), "{stall:?}");
    runtime.shutdown_background();
}
