//! The CPU time in a profile is what the kernel charged, where samples alone say less.
#![cfg(all(feature = "cpu", target_os = "linux", target_env = "gnu"))]

mod cpu_support;

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use cpu_support::{account, burn, cpu_time, engines, start, stop, thread_of, turn};
use marple::model::{CpuEngine, Profile};
use rustix::time::ClockId;

const THREADS: usize = 96;

/// Threads that are there before the session and until it is over, and what they used, in seconds.
fn lightly_loaded(engine: CpuEngine, frequency: u32, each: Duration) -> (Profile, f64) {
    let (begin, done, end) =
        (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    let used = std::sync::Mutex::new(Duration::ZERO);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let body = || {
                begin.wait();
                burn(each);
                *used.lock().unwrap() += cpu_time(ClockId::ThreadCPUTime);
                done.wait();
                end.wait();
            };
            thread::Builder::new().name("light".into()).spawn_scoped(scope, body).unwrap();
        }
        let session = start(engine, frequency).unwrap();
        begin.wait();
        done.wait();
        let profile = stop(session);
        end.wait();
        (profile, used.lock().unwrap().as_secs_f64())
    })
}

fn seconds_of(profile: &Profile, thread: &str) -> f64 {
    let of = profile.samples.iter().filter(|sample| thread_of(profile, sample) == thread);
    of.map(|sample| sample.values[1] as f64 / 1e9).sum()
}

/// Of each thread that part is without a sample that is since its last: at 99 Hz a fifth here.
#[test]
fn many_threads_of_little_cpu_time_each_have_all_of_it() {
    let _turn = turn();
    for engine in engines() {
        for (frequency, each) in [(99, 25), (1000, 20)] {
            let (profile, used) = lightly_loaded(engine, frequency, Duration::from_millis(each));
            let told =
                format!("{engine}, {frequency} Hz: {:?} {:?}", profile.comments, profile.losses);
            println!("{told}");
            let got = seconds_of(&profile, "light");
            assert!((got / used - 1.0).abs() <= 0.03, "{got} of {used} s; {told}");
            let (expected, got, lost) = account(&profile);
            assert!(((got + lost) as f64 / expected as f64 - 1.0).abs() <= 0.02, "{told}");
            // And it says how it comes to know.
            let said = format!("{} samples were taken", profile.total("samples").unwrap());
            assert!(profile.comments.iter().any(|comment| comment.ends_with(&said)), "{told}");
        }
    }
}

/// The signal of the timer engine does not reach it, and others do not stand for it.
#[test]
fn a_thread_that_no_sample_shows_is_lost_by_its_name() {
    let _turn = turn();
    for engine in engines() {
        let session = start(engine, 99).unwrap();
        let deaf = thread::Builder::new().name("deaf".into()).spawn(|| {
            block_sigprof();
            burn(Duration::from_millis(600));
        });
        deaf.unwrap().join().unwrap();
        burn(Duration::from_millis(600));
        let profile = stop(session);
        let told = format!("{engine}: {:?} {:?}", profile.comments, profile.losses);
        println!("{told}");
        let (expected, got, lost) = account(&profile);
        assert!(((got + lost) as f64 / expected as f64 - 1.0).abs() <= 0.02, "{told}");
        if engine == CpuEngine::Timer {
            assert!(lost * 100 >= expected * 40 && lost * 100 <= expected * 55, "{told}");
        } else {
            assert!(lost * 100 <= expected * 5, "{told}");
        }
    }
}

#[expect(unsafe_code, reason = "a signal cannot be blocked without")]
fn block_sigprof() {
    // SAFETY: a set is made, filled and handed to the kernel; all three pointers are to it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGPROF);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}
