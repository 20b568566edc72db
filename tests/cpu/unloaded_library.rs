//! A library that is repeatedly loaded, used and unloaded while it is sampled.
#![allow(unsafe_code, reason = "libraries cannot be loaded without")]

use std::ffi::{CString, c_int, c_long};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use marple::internals::symbols;
use rustix::time::ClockId;

use crate::support::cpu_load::{
    StopOnDrop, burn, cpu_time, engines, function_names, serial_guard, start, stop,
};

const SOURCE: &str = "
static long inner(long n) { volatile long x = n; while (n-- > 0) x = x * 3 + n; return x; }
long spin_in_library(long n) { long x = inner(n); return x + 1; }
";

fn build(folder: &Path) -> CString {
    let (source, library) = (folder.join("spin.c"), folder.join("libspin.so"));
    std::fs::write(&source, SOURCE).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", "-o"])
        .args([&library, &source])
        .status()
        .unwrap();
    assert!(built.success());
    CString::new(library.to_str().unwrap()).unwrap()
}

/// Loads the library, runs it for a few milliseconds and unloads it.
#[inline(never)]
fn load_use_unload(library: &CString) {
    // SAFETY: the test builds the library, which has no constructors. The symbol has the type it is
    // cast to.
    unsafe {
        let handle = libc::dlopen(library.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null());
        let symbol = libc::dlsym(handle, c"spin_in_library".as_ptr());
        assert!(!symbol.is_null());
        let spin: extern "C" fn(c_long) -> c_long = std::mem::transmute(symbol);
        let end = cpu_time(ClockId::ThreadCPUTime) + Duration::from_millis(15);
        while cpu_time(ClockId::ThreadCPUTime) < end {
            std::hint::black_box(spin(50_000));
        }
        assert_eq!(libc::dlclose(handle), 0 as c_int);
    }
}

#[test]
fn samples_in_unloaded_library_keep_their_stacks() {
    let _serial = serial_guard();
    let folder = tempfile::tempdir().unwrap();
    let library = build(folder.path());
    for engine in engines() {
        let stop_flag = AtomicBool::new(false);
        let session = start(engine, 1000).unwrap();
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop_flag);
            scope.spawn(|| {
                while !stop_flag.load(Ordering::Relaxed) {
                    load_use_unload(&library);
                }
            });
            burn(Duration::from_millis(1500));
        });
        let mut profile = stop(session);
        symbols::symbolize(&mut profile);
        let (mut inside, mut whole) = (0, 0);
        for sample in &profile.samples {
            let function_names = function_names(&profile, sample);
            if function_names.iter().any(|name| name == "spin_in_library") {
                inside += sample.values[0];
                let callers = function_names.iter().any(|name| name.ends_with("load_use_unload"));
                whole += if callers { sample.values[0] } else { 0 };
            }
        }
        println!("{engine}: {inside} in the library, {whole} whole; {:?}", profile.losses);
        assert!(inside > 20, "{engine}: {inside}");
        assert!(whole * 10 >= inside * 9, "{engine}: {whole} of {inside} lead to their caller");
    }
}
