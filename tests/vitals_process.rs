//! Tests of the vitals of this process itself. It is one test, because memory, threads and
//! descriptors are counted per process.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use marple::base::{Bytes, Clock, SystemClock};
use marple::metrics::Gauges;
use marple::model::Vitals;
use marple::os::proc::process;
use marple::vitals::{Reader, Runtimes};

#[test]
fn the_vitals_follow_what_the_process_does() {
    let gauges = Gauges::new();
    let mut reader = Reader::new(Runtimes::new(), gauges.clone());
    let mut tick = || reader.read(SystemClock.now());

    let first = tick();
    assert_eq!((first.cpu_cores, first.tasks, first.lag), (None, None, None));
    memory(&mut tick);
    descriptors(&mut tick);
    threads(&mut tick);
    cpu(&mut tick);

    gauges.gauge("queue").unwrap().set(7.0);
    assert_eq!(tick().gauge("queue"), Some(7.0));
}

fn memory(tick: &mut impl FnMut() -> Vitals) {
    const GROWTH: usize = 64 << 20;
    let before = tick().rss.unwrap();
    let mut block: Vec<u8> = Vec::with_capacity(GROWTH);
    block.resize(GROWTH, 1);
    let grown = tick().rss.unwrap().get() - before.get();
    assert!(grown.abs_diff(GROWTH as u64) <= Bytes::mib(2).get(), "grew by {grown}");
    drop(std::hint::black_box(block));
    let left = tick().rss.unwrap().get().saturating_sub(before.get());
    assert!(left <= Bytes::mib(2).get(), "{left} are left");
}

fn descriptors(tick: &mut impl FnMut() -> Vitals) {
    let listed = || std::fs::read_dir("/proc/self/fd").unwrap().count() as u64 - 1;
    let before = tick().fds.unwrap();
    assert_eq!(before, listed());
    let files: Vec<_> = (0..10).map(|_| File::open("/proc/self/exe").unwrap()).collect();
    assert_eq!(tick().fds, Some(before + 10));
    drop(files);
    assert_eq!(tick().fds, Some(before));
}

fn threads(tick: &mut impl FnMut() -> Vitals) {
    let before = tick().threads.unwrap();
    assert_eq!(before, std::fs::read_dir("/proc/self/task").unwrap().count() as u64);
    let barrier = Arc::new(Barrier::new(4));
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let barrier = barrier.clone();
            std::thread::spawn(move || {
                barrier.wait();
                barrier.wait();
            })
        })
        .collect();
    barrier.wait();
    assert_eq!(tick().threads, Some(before + 3));
    barrier.wait();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    // A joined thread may still be exiting.
    while tick().threads != Some(before) {
        std::thread::yield_now();
    }
}

fn cpu(tick: &mut impl FnMut() -> Vitals) {
    let both = || (SystemClock.now(), process::cpu_time());
    let first = both();
    tick();
    let second = both();
    while process::cpu_time() - second.1 < Duration::from_millis(200) {
        std::hint::black_box(second);
    }
    let third = both();
    let told = tick().cpu_cores.unwrap();
    let fourth = both();
    // The reported usage covers an interval between the inner two readings and the outer two.
    let cores = |used: Duration, passed: Duration| used.as_secs_f64() / passed.as_secs_f64();
    let least = cores(third.1 - second.1, fourth.0.since(first.0));
    let most = cores(fourth.1 - first.1, third.0.since(second.0));
    assert!((least..=most).contains(&told), "{told} is not within {least} and {most}");
}
