//! Cost to the service of thread and task dumps: `cargo bench --bench stacks`.
//!
//! Each row has a name, a value, a goal, and `pass` or `short`. A value is the median of 7 rounds,
//! each of which runs the measure and its control. A heartbeat is a task that sleeps for 1 ms in a
//! loop. Its interval is the time between two of its polls, and its gap the longest interval.
//!
//! `-- threads`, `-- retained-memory` and `-- leaf-futures` run one part.
//!
//! The goal for a dump of 100,000 tasks is a ratio to `tokio::runtime::Handle::dump`, which needs
//! `--cfg tokio_unstable` and runs in `benches/peers/run`. Here the row shows the gap beside that
//! of the same runtime without a dump, and has no verdict.

#[path = "stacks/heartbeat.rs"]
mod heartbeat;
#[path = "stacks/retained_memory.rs"]
mod retained_memory;

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use heartbeat::{Heartbeat, median};
use marple::internals::base::{Clock, SystemClock};
use marple::internals::model::TaskState;
use marple::internals::os::proc::process::cpu_time;
use marple::internals::stacks::tasks::{self, DumpOptions};
use marple::internals::stacks::threads;
use marple::task::{self, Trace as _};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc};

const ROUNDS: usize = 7;
const DUMP_OPTIONS: DumpOptions =
    DumpOptions { capture_stacks: true, allow_signals: true, timeout: Duration::from_secs(30) };

fn main() {
    // `cargo test --all-targets` runs benches too; only `cargo bench` passes `--bench`.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let is_selected = |name: &str| std::env::args().any(|arg| arg == name);
    if is_selected("leaf-futures") {
        return many_leaf_futures();
    }
    if !is_selected("threads") && !is_selected("retained-memory") {
        wrapper_cost();
        many_tasks();
        many_leaf_futures();
        blocked_worker();
    }
    if !is_selected("retained-memory") {
        many_threads();
        heartbeat_under_thread_dumps();
    }
    if !is_selected("threads") {
        retained_memory::measure();
    }
}

fn row(name: &str, value: f64, unit: &str, goal: Option<f64>) {
    let verdict = match goal {
        None => String::new(),
        Some(goal) if value <= goal => format!("<= {goal}  pass"),
        Some(goal) => format!("<= {goal}  short"),
    };
    println!("{name:60} {value:10.3} {unit:6} {verdict}");
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// CPU time per operation with the wrapper, divided by that without, in the two most expensive
/// shapes.
fn wrapper_cost() {
    let runtime = runtime();
    let cpu = |work: &dyn Fn()| {
        let before = cpu_time();
        work();
        (cpu_time() - before).as_secs_f64()
    };
    let ratio = |with: &dyn Fn(), without: &dyn Fn()| {
        median((0..2 * ROUNDS + 1).map(|_| cpu(with) / cpu(without)).collect())
    };
    let ping_pong = |wrapped: bool| {
        runtime.block_on(async {
            let (ping_sender, mut ping_receiver) = mpsc::channel::<u32>(1);
            let (pong_sender, mut pong_receiver) = mpsc::channel::<u32>(1);
            let pong = async move {
                while let Some(value) = ping_receiver.recv().await {
                    pong_sender.send(value).await.expect("an open channel");
                }
            };
            let ping = async move {
                for value in 0..100_000 {
                    ping_sender.send(value).await.expect("an open channel");
                    pong_receiver.recv().await;
                }
            };
            let (one, other) = if wrapped {
                (task::spawn(pong), task::spawn(ping))
            } else {
                (tokio::spawn(pong), tokio::spawn(ping))
            };
            other.await.and(one.await).expect("no panic");
        });
    };
    let spawn_many = |wrapped: bool| {
        runtime.block_on(async {
            for _ in 0..400 {
                let work = |at: u32| async move { black_box(at) };
                let handles: Vec<_> = (0..500)
                    .map(|at| if wrapped { task::spawn(work(at)) } else { tokio::spawn(work(at)) })
                    .collect();
                for handle in handles {
                    handle.await.expect("no panic");
                }
            }
        });
    };
    row(
        "ping-pong: control over plain",
        ratio(&|| ping_pong(false), &|| ping_pong(false)),
        "x",
        None,
    );
    row(
        "ping-pong: wrapper over plain",
        ratio(&|| ping_pong(true), &|| ping_pong(false)),
        "x",
        Some(1.10),
    );
    row(
        "spawn many: control over plain",
        ratio(&|| spawn_many(false), &|| spawn_many(false)),
        "x",
        None,
    );
    row(
        "spawn many: wrapper over plain",
        ratio(&|| spawn_many(true), &|| spawn_many(false)),
        "x",
        Some(1.28),
    );
}

fn many_tasks() {
    let runtime = runtime();
    let never = Arc::new(Notify::new());
    const TASKS: usize = 100_000;
    for _ in 0..TASKS {
        let never = Arc::clone(&never);
        runtime.spawn(async move { never.notified().await }.traced("waits"));
    }
    while runtime.metrics().global_queue_depth() > 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let heartbeat = Heartbeat::start(&runtime);
    let (mut without, mut during, mut durations, mut missing) = (vec![], vec![], vec![], 0);
    for _ in 0..ROUNDS {
        std::thread::sleep(Duration::from_millis(50));
        heartbeat.take_longest_gap();
        let started = Instant::now();
        let dump = tasks::dump(&SystemClock, SystemClock.anchor(), DUMP_OPTIONS).expect("a dump");
        durations.push(started.elapsed().as_secs_f64() * 1000.0);
        during.push(heartbeat.take_longest_gap());
        missing += TASKS - dump.tasks.iter().filter(|t| t.state == TaskState::Waiting).count();
        std::thread::sleep(started.elapsed());
        without.push(heartbeat.take_longest_gap());
    }
    row("100,000 tasks: missing from the dumps", missing as f64, "tasks", Some(0.0));
    row("100,000 tasks: duration of a dump", median(durations), "ms", None);
    row("100,000 tasks: longest heartbeat gap, no dump", median(without), "ms", None);
    row("100,000 tasks: longest heartbeat gap during a dump", median(during), "ms", None);
    runtime.shutdown_background();
}

/// Additional time of one poll of 50,000 leaf futures while it is dumped.
fn many_leaf_futures() {
    const LEAF_FUTURES: usize = 50_000;
    let never = Arc::new(Notify::new());
    let leaf_futures = (0..LEAF_FUTURES).map(|_| {
        let never = Arc::clone(&never);
        Box::pin(async move { never.notified().await })
    });
    let longest = Arc::new(Mutex::new(Duration::ZERO));
    let (polls, waker) = (Arc::clone(&longest), Arc::new(Mutex::new(None)));
    let wakers = Arc::clone(&waker);
    let mut all = futures_util::future::select_all(leaf_futures);
    let runtime = runtime();
    let polled = std::future::poll_fn(move |context| {
        *wakers.lock().expect("no panic") = Some(context.waker().clone());
        let started = Instant::now();
        let poll = std::pin::Pin::new(&mut all).poll(context).map(drop);
        let mut longest = polls.lock().expect("no panic");
        *longest = started.elapsed().max(*longest);
        poll
    });
    runtime.spawn(polled.traced("waits for many"));
    let next = || loop {
        std::thread::sleep(Duration::from_millis(5));
        let last = std::mem::take(&mut *longest.lock().expect("no panic"));
        if !last.is_zero() {
            return last.as_secs_f64() * 1000.0;
        }
    };
    next();
    let (plain, dumped): (Vec<f64>, Vec<f64>) = (0..2 * ROUNDS + 1)
        .map(|_| {
            let wake = waker.lock().expect("no panic").clone();
            wake.expect("a first poll").wake();
            let plain = next();
            black_box(
                tasks::dump(&SystemClock, SystemClock.anchor(), DUMP_OPTIONS).expect("a dump"),
            );
            (plain, next())
        })
        .unzip();
    let added = dumped.iter().zip(&plain).map(|(dumped, plain)| dumped - plain).collect();
    row("control: poll of 50,000 leaf futures", median(plain), "ms", None);
    row("poll of 50,000 leaf futures, added by a dump", median(added), "ms", Some(1.0));
    runtime.shutdown_background();
}

fn blocked_worker() {
    let runtime = runtime();
    let heartbeat = Heartbeat::start(&runtime);
    let never = Arc::new(Notify::new());
    for _ in 0..1000 {
        let never = Arc::clone(&never);
        runtime.spawn(async move { never.notified().await }.traced("waits"));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let worker_stop = Arc::clone(&stop);
    let blocked = async move {
        while !worker_stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    runtime.spawn(blocked.traced("blocked"));
    std::thread::sleep(Duration::from_millis(100));
    let mut ratios = Vec::new();
    let mut missing = 0;
    for _ in 0..ROUNDS {
        let before = heartbeat.beats_in_half_second();
        for _ in 0..3 {
            let dump =
                tasks::dump(&SystemClock, SystemClock.anchor(), DUMP_OPTIONS).expect("a dump");
            missing += 1000 - dump.tasks.iter().filter(|t| t.state == TaskState::Waiting).count();
        }
        ratios.push(before / heartbeat.beats_in_half_second());
    }
    row("one worker blocked: tasks missing from the dumps", missing as f64, "tasks", Some(0.0));
    row(
        "one worker blocked: heartbeats before / after 3 dumps",
        median(ratios),
        "x",
        Some(1.0 / 0.9),
    );
    stop.store(true, Ordering::Relaxed);
    runtime.shutdown_background();
}

/// Median heartbeat interval during continuous thread dumps, divided by that without dumps. Other
/// work keeps the cores busy in both cases.
fn heartbeat_under_thread_dumps() {
    let runtime = runtime();
    let stop = Arc::new(AtomicBool::new(false));
    let spinners: Vec<_> = (0..2)
        .map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    let intervals = Arc::new(Mutex::new(Vec::new()));
    let task_intervals = Arc::clone(&intervals);
    runtime.spawn(async move {
        let mut last = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let interval = last.elapsed().as_secs_f64() * 1000.0;
            task_intervals.lock().expect("no panic").push(interval);
            last = Instant::now();
        }
    });
    let median_interval = |dumps: bool| {
        intervals.lock().expect("no panic").clear();
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(500) {
            if dumps {
                black_box(threads::dump(&SystemClock, SystemClock.anchor(), true).expect("a dump"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        median(std::mem::take(&mut *intervals.lock().expect("no panic")))
    };
    let (without, during): (Vec<f64>, Vec<f64>) =
        (0..2 * ROUNDS).map(|_| (median_interval(false), median_interval(true))).unzip();
    let control = without.chunks(2).map(|pair| pair[0] / pair[1]).collect();
    let ratio = during.iter().zip(&without).map(|(during, without)| during / without).collect();
    row("busy cores: heartbeat interval, control", median(control), "x", None);
    row("busy cores: heartbeat interval, thread dumps over none", median(ratio), "x", Some(1.05));
    stop.store(true, Ordering::Relaxed);
    spinners.into_iter().for_each(|thread| thread.join().expect("no panic"));
    runtime.shutdown_background();
}

fn many_threads() {
    for (count, goal) in [(100, 2.0), (1000, 25.0)] {
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let threads: Vec<_> = (0..count)
            .map(|_| {
                let gate = Arc::clone(&gate);
                let wait = move || {
                    let open = gate.0.lock().expect("no panic");
                    drop(gate.1.wait_while(open, |open| !*open));
                };
                std::thread::Builder::new().stack_size(256 << 10).spawn(wait).expect("a thread")
            })
            .collect();
        std::thread::sleep(Duration::from_millis(100));
        let (mut with_stacks, mut proc_only, mut incomplete) = (vec![], vec![], 0);
        for _ in 0..ROUNDS {
            let started = Instant::now();
            let dump = threads::dump(&SystemClock, SystemClock.anchor(), true).expect("a dump");
            with_stacks.push(started.elapsed().as_secs_f64() * 1000.0);
            incomplete += dump.threads.iter().filter(|t| !t.remark.is_empty()).count();
            let started = Instant::now();
            black_box(threads::dump(&SystemClock, SystemClock.anchor(), false).expect("a dump"));
            proc_only.push(started.elapsed().as_secs_f64() * 1000.0);
        }
        row(
            &format!("{count} threads: incomplete stacks in all rounds"),
            incomplete as f64,
            "",
            Some(0.0),
        );
        row(&format!("control: {count} threads, /proc only"), median(proc_only), "ms", None);
        row(&format!("{count} threads, with stacks"), median(with_stacks), "ms", Some(goal));
        *gate.0.lock().expect("no panic") = true;
        gate.1.notify_all();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    }
}
