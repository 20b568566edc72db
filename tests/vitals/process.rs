//! Tests of the vitals of this process itself. It is one test in a process of its own
//! (nextest), because memory, threads and descriptors are counted per process.

use std::fs::File;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use marple::internals::base::{Bytes, Clock, SystemClock};
use marple::internals::metrics::Gauges;
use marple::internals::model::Vitals;
use marple::internals::os::proc::process;
use marple::internals::vitals::{Reader, Runtimes};

#[test]
fn vitals_follow_process_activity() {
    let gauges = Gauges::new();
    let mut reader = Reader::new(Runtimes::new(), gauges.clone());
    let mut tick = || reader.read(SystemClock.now());

    let first = tick();
    assert_eq!((first.cpu_cores, first.tasks, first.lag), (None, None, None));
    check_memory(&mut tick);
    check_descriptors(&mut tick);
    check_threads(&mut tick);
    check_cpu(&mut tick);

    gauges.gauge("queue").unwrap().set(7.0);
    assert_eq!(tick().gauge("queue"), Some(7.0));
}

fn check_memory(tick: &mut impl FnMut() -> Vitals) {
    const GROWTH: usize = 64 << 20;
    let before = tick().rss.unwrap();
    let mut block: Vec<u8> = Vec::with_capacity(GROWTH);
    block.resize(GROWTH, 1);
    let grown = tick().rss.unwrap().get() - before.get();
    assert!(grown.abs_diff(GROWTH as u64) <= Bytes::mib(2).get(), "grew by {grown}");
    drop(std::hint::black_box(block));
    let remaining_growth = tick().rss.unwrap().get().saturating_sub(before.get());
    assert!(remaining_growth <= Bytes::mib(2).get(), "{remaining_growth} are left");
}

fn check_descriptors(tick: &mut impl FnMut() -> Vitals) {
    let listed = || std::fs::read_dir("/proc/self/fd").unwrap().count() as u64 - 1;
    let before = tick().fds.unwrap();
    assert_eq!(before, listed());
    let files: Vec<_> = (0..10).map(|_| File::open("/proc/self/exe").unwrap()).collect();
    assert_eq!(tick().fds, Some(before + 10));
    drop(files);
    assert_eq!(tick().fds, Some(before));
}

fn check_threads(tick: &mut impl FnMut() -> Vitals) {
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

fn check_cpu(tick: &mut impl FnMut() -> Vitals) {
    let now_and_cpu_time = || (SystemClock.now(), process::cpu_time());
    let first = now_and_cpu_time();
    tick();
    let second = now_and_cpu_time();
    while process::cpu_time() - second.1 < Duration::from_millis(200) {
        std::hint::black_box(second);
    }
    let third = now_and_cpu_time();
    let reported = tick().cpu_cores.unwrap();
    let fourth = now_and_cpu_time();
    // The reported usage covers an interval between the inner two readings and the outer two.
    let cores = |used: Duration, passed: Duration| used.as_secs_f64() / passed.as_secs_f64();
    let min_cores = cores(third.1 - second.1, fourth.0.since(first.0));
    let max_cores = cores(fourth.1 - first.1, third.0.since(second.0));
    assert!(
        (min_cores..=max_cores).contains(&reported),
        "{reported} is not within {min_cores} and {max_cores}"
    );
}
