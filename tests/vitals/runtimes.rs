//! Tests of the tasks and lag of observed runtimes.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use marple::internals::base::{Clock, ManualClock, Moment};
use marple::internals::metrics::Gauges;
use marple::internals::model::Vitals;
use marple::internals::vitals::{Error, Reader, Runtimes};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Notify, oneshot};

/// A reader, its runtimes, and the clock that timestamps its probes.
struct Bench {
    reader: Reader,
    runtimes: Runtimes,
    clock: Arc<ManualClock>,
}

impl Bench {
    fn new() -> Self {
        let runtimes = Runtimes::new();
        let clock = Arc::new(ManualClock::new(jiff::Timestamp::UNIX_EPOCH));
        let root = std::path::Path::new("/");
        let reader = Reader::with_root(runtimes.clone(), Gauges::new(), root, clock.clone());
        Self { reader, runtimes, clock }
    }

    fn tick(&mut self) -> Vitals {
        self.reader.read(self.clock.now())
    }
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Runs everything that is ready on a current-thread runtime, including the probe.
fn drive(runtime: &Runtime) {
    runtime.block_on(async {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn lag_is_delay_of_finished_or_pending_probe() {
    let runtime = Builder::new_current_thread().build().unwrap();
    let mut bench = Bench::new();
    assert_eq!(bench.tick().tasks, None);
    bench.runtimes.observe(runtime.handle().clone()).unwrap();
    assert_eq!(bench.tick().lag, None);

    // The runtime is not driven: the probe is late, and later at each tick.
    for late in [250, 500, 750] {
        bench.clock.advance(millis(250));
        assert_eq!(bench.tick().lag, Some(millis(late)));
    }
    // The probe runs 50 ms later. The next tick reports that lag, even if the tick itself is late.
    bench.clock.advance(millis(50));
    drive(&runtime);
    bench.clock.advance(millis(200));
    assert_eq!(bench.tick().lag, Some(millis(800)));
    // This probe runs in time.
    drive(&runtime);
    bench.clock.advance(millis(250));
    assert_eq!(bench.tick().lag, Some(Duration::ZERO));
}

#[test]
fn blocked_runtime_is_detected_while_blocked() {
    let runtime = Builder::new_current_thread().build().unwrap();
    let handle = runtime.handle().clone();
    let stop = Arc::new(Notify::new());
    let driven = {
        let stop = stop.clone();
        std::thread::spawn(move || runtime.block_on(stop.notified()))
    };
    let mut bench = Bench::new();
    bench.runtimes.observe(handle.clone()).unwrap();
    bench.tick();

    let (started, is_started) = oneshot::channel();
    let (release, is_released) = mpsc::channel::<()>();
    handle.spawn(async move {
        started.send(()).unwrap();
        // The fault under test: a task that blocks its runtime's only thread.
        let _ = is_released.recv();
    });
    is_started.blocking_recv().unwrap();
    // The probe of the first tick may have run before the blocking task; that of this tick cannot.
    bench.tick();
    for late in [1000, 2000, 3000] {
        bench.clock.advance(millis(1000));
        assert_eq!(bench.tick().lag, Some(millis(late)));
    }
    assert_eq!(bench.tick().tasks, Some(1));

    drop(release);
    while bench.tick().lag != Some(Duration::ZERO) || bench.tick().tasks != Some(0) {
        std::thread::yield_now();
    }
    stop.notify_one();
    driven.join().unwrap();
}

#[test]
fn idle_runtime_is_woken_every_two_seconds() {
    let runtime = Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let metrics = runtime.metrics();
    let mut bench = Bench::new();
    bench.runtimes.observe(runtime.handle().clone()).unwrap();
    bench.tick();
    // The only worker runs this task after the probe, and parks again.
    runtime.block_on(runtime.spawn(async {})).unwrap();
    while metrics.worker_park_unpark_count(0).is_multiple_of(2) {
        std::thread::yield_now();
    }
    let parks = metrics.worker_park_count(0);
    for _ in 0..8 {
        assert_eq!(bench.tick().lag, Some(Duration::ZERO));
        bench.clock.advance(millis(250));
    }
    assert_eq!(metrics.worker_park_count(0), parks);
    bench.tick();
    while metrics.worker_park_count(0) == parks {
        std::thread::yield_now();
    }
}

#[test]
fn worst_lag_and_total_tasks_of_all_runtimes_are_reported() {
    let (one, two) = (
        Builder::new_current_thread().build().unwrap(),
        Builder::new_current_thread().build().unwrap(),
    );
    let mut bench = Bench::new();
    bench.runtimes.observe(one.handle().clone()).unwrap();
    bench.runtimes.observe(two.handle().clone()).unwrap();
    for runtime in [&one, &one, &two] {
        runtime.spawn(std::future::pending::<()>());
    }
    bench.tick();
    drive(&one);
    bench.clock.advance(millis(40));
    drive(&two);
    let vitals = bench.tick();
    assert_eq!((vitals.tasks, vitals.lag), (Some(3), Some(millis(40))));
}

#[test]
fn runtime_observed_twice_counts_once() {
    let runtime = Builder::new_current_thread().build().unwrap();
    let mut bench = Bench::new();
    for _ in 0..2 {
        bench.runtimes.observe(runtime.handle().clone()).unwrap();
        runtime.spawn(std::future::pending::<()>());
        bench.tick();
    }
    assert_eq!(bench.runtimes.len(), 1);
    assert_eq!(bench.tick().tasks, Some(2));
    assert_eq!(runtime.metrics().num_alive_tasks(), 3);
}

#[test]
fn observing_does_not_prevent_runtime_shutdown() {
    let mut bench = Bench::new();
    let kept = Builder::new_current_thread().build().unwrap();
    bench.runtimes.observe(kept.handle().clone()).unwrap();
    let builds: [fn() -> Runtime; 2] = [
        || Builder::new_multi_thread().worker_threads(2).build().unwrap(),
        || Builder::new_current_thread().build().unwrap(),
    ];
    for build in builds {
        let runtime = build();
        bench.runtimes.observe(runtime.handle().clone()).unwrap();
        bench.tick();
        bench.clock.advance(millis(250));
        // Returns only when all its threads have ended.
        drop(runtime);
        assert_eq!(bench.runtimes.len(), 2);
        assert_eq!(bench.tick().tasks, Some(0));
        assert_eq!(bench.runtimes.len(), 1);
    }
}

#[test]
fn ended_runtime_is_removed_from_list() {
    let mut bench = Bench::new();
    let handle = Builder::new_current_thread().build().unwrap().handle().clone();
    bench.runtimes.observe(handle).unwrap();
    assert_eq!((bench.tick().tasks, bench.runtimes.len()), (None, 0));
}

#[test]
fn dropped_reader_leaves_nothing_behind() {
    let runtime = Builder::new_current_thread().build().unwrap();
    let mut bench = Bench::new();
    bench.runtimes.observe(runtime.handle().clone()).unwrap();
    bench.tick();
    drive(&runtime);
    assert_eq!(runtime.metrics().num_alive_tasks(), 1);
    drop(bench.reader);
    drive(&runtime);
    assert_eq!(runtime.metrics().num_alive_tasks(), 0);
    assert!(bench.runtimes.is_empty());
}

#[test]
fn number_of_runtimes_is_limited() {
    let mut bench = Bench::new();
    let build = || Builder::new_current_thread().build().unwrap();
    let mut all: Vec<Runtime> = (0..256).map(|_| build()).collect();
    for runtime in &all {
        bench.runtimes.observe(runtime.handle().clone()).unwrap();
    }
    let more = build();
    let observe = |handle: &Handle| bench.runtimes.observe(handle.clone());
    assert_eq!(observe(more.handle()), Err(Error::TooManyRuntimes));
    assert_eq!(observe(all[0].handle()), Ok(()));
    all.pop();
    bench.reader.read(Moment::default());
    assert_eq!(bench.runtimes.observe(more.handle().clone()), Ok(()));
}

/// Ticks once per second of the reader's clock until `done`, with real time in between for threads
/// to run.
fn tick_until(bench: &mut Bench, condition_name: &str, done: impl Fn(&Vitals) -> bool) -> Vitals {
    for _ in 0..2000 {
        bench.clock.advance(millis(1000));
        let vitals = bench.tick();
        if done(&vitals) {
            return vitals;
        }
        std::thread::sleep(millis(2));
    }
    panic!("no {condition_name}");
}

#[cfg(target_os = "linux")]
#[test]
fn full_blocking_pool_causes_lag_until_thread_is_free() {
    let mut builders = [Builder::new_multi_thread(), Builder::new_current_thread()];
    for builder in &mut builders {
        let runtime =
            builder.thread_name("full-pool").max_blocking_threads(2).enable_all().build().unwrap();
        let mut bench = Bench::new();
        assert_eq!(bench.tick().blocking_lag, None, "no runtime");
        bench.runtimes.observe(runtime.handle().clone()).unwrap();
        bench.tick();
        drive(&runtime);
        assert_eq!(bench.tick().blocking_lag, Some(Duration::ZERO));
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(std::sync::Mutex::new(released));
        let started = Arc::new(std::sync::Barrier::new(3));
        let stuck: Vec<_> = (0..2)
            .map(|_| {
                let (released, started) = (released.clone(), started.clone());
                runtime.spawn_blocking(move || {
                    started.wait();
                    let _ = released.lock().unwrap().recv();
                })
            })
            .collect();
        started.wait();
        tick_until(&mut bench, "late work", |vitals| vitals.blocking_lag > Some(millis(5000)));
        drop(release);
        stuck.into_iter().for_each(|stuck| runtime.block_on(stuck).unwrap());
        // The last late answer counts until a later closure runs in time or the answer expires.
        tick_until(&mut bench, "calm", |vitals| vitals.blocking_lag == Some(Duration::ZERO));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn idle_blocking_pool_gets_no_thread() {
    let started = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = started.clone();
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(move || _ = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst))
        .build()
        .unwrap();
    let mut bench = Bench::new();
    bench.runtimes.observe(runtime.handle().clone()).unwrap();
    tick_until(&mut bench, "lag", |vitals| vitals.lag.is_some());
    for _ in 0..100 {
        bench.clock.advance(millis(1000));
        assert_eq!(bench.tick().blocking_lag, Some(Duration::ZERO));
        std::thread::sleep(millis(1));
    }
    assert_eq!(started.load(std::sync::atomic::Ordering::SeqCst), 2, "workers only");
}

/// Blocks `blocked` of two workers for a minute of the reader's clock, and releases them briefly
/// each second so that the probe runs. Returns the largest fraction of stalled time.
#[cfg(target_os = "linux")]
fn max_stalled_percent(blocked: usize) -> f64 {
    let runtime = Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let mut bench = Bench::new();
    bench.runtimes.observe(runtime.handle().clone()).unwrap();
    assert!(bench.tick().stalled.is_some_and(|share| share.get() == 0.0));
    // A zero lag shows that a thread has run the probe.
    tick_until(&mut bench, "lag", |vitals| vitals.lag == Some(Duration::ZERO));
    let mut largest = 0.0_f64;
    for _ in 0..60 {
        let started = Arc::new(std::sync::Barrier::new(blocked + 1));
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(std::sync::Mutex::new(released));
        let stuck: Vec<_> = (0..blocked)
            .map(|_| {
                let (started, released) = (started.clone(), released.clone());
                runtime.spawn(async move {
                    started.wait();
                    let _ = released.lock().unwrap().recv();
                })
            })
            .collect();
        started.wait();
        bench.tick();
        for _ in 0..4 {
            bench.clock.advance(millis(250));
            // A free worker has run the probe by the end of this sleep.
            std::thread::sleep(millis(3));
            let vitals = bench.tick();
            largest = largest.max(vitals.stalled.unwrap().get());
        }
        drop(release);
        stuck.into_iter().for_each(|stuck| runtime.block_on(stuck).unwrap());
    }
    largest
}

#[cfg(target_os = "linux")]
#[test]
fn runtime_with_repeatedly_blocked_workers_is_stalled() {
    assert!(max_stalled_percent(2) > 70.0);
}

#[cfg(target_os = "linux")]
#[test]
fn runtime_with_free_worker_is_not_stalled() {
    // On a busy machine some probes run late.
    assert!(max_stalled_percent(1) < 40.0);
}
