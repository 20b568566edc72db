//! marple's task dump and `tokio::runtime::Handle::dump` in one run: the longest gap of a heartbeat
//! during a dump, and heartbeats while one of the workers is blocked.
//!
//! ```text
//! RUSTFLAGS="--cfg tokio_unstable" cargo run --release --manifest-path benches/peers/Cargo.toml \
//!   --target-dir target/peers-bench --bin dump
//! ```
//!
//! A heartbeat is a task that sleeps for 1 ms in a loop. Rounds are interleaved on one runtime of
//! 100,000 tasks, and medians are shown. The part with a blocked worker uses a separate runtime for
//! each of the two, because tokio's dump does not survive it. `-- --quick` takes a third of the
//! rounds.

#[path = "../../../stacks/heartbeat.rs"]
mod heartbeat;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use heartbeat::{Heartbeat, median};
use marple::internals::base::{Clock, SystemClock};
use marple::internals::stacks::tasks::{self, DumpOptions};
use marple::task::Trace as _;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

const ROUNDS: usize = 7;
const DUMP_OPTIONS: DumpOptions =
    DumpOptions { capture_stacks: true, allow_signals: true, timeout: Duration::from_secs(30) };

/// Limit for tokio's dump, which never ends if its barrier is lost, and for a heartbeat.
const MAX_WAIT: Duration = Duration::from_secs(10);

fn main() {
    assert!(cfg!(tokio_unstable), "build with RUSTFLAGS=\"--cfg tokio_unstable\"");
    let quick = std::env::args().any(|arg| arg == "--quick");
    println!("{:66} {:>9} {:>9}", "", "value", "goal");
    many_tasks(if quick { ROUNDS / 3 + 1 } else { ROUNDS });
    for (name, dump, goal) in [
        ("marple", marple_dump as fn(&Runtime), Some(0.9)),
        ("Handle::dump", tokio_dump as fn(&Runtime), None),
    ] {
        let ratio = blocked_worker(dump);
        let verdict = goal.map(|goal| format!("{goal:9.2} {}", verdict(ratio >= goal)));
        let name = format!("one worker blocked: heartbeats after / before 3 dumps, {name}");
        println!("{name:66} {ratio:9.3} {}", verdict.unwrap_or_default());
    }
}

fn verdict(is_met: bool) -> &'static str {
    if is_met { "pass" } else { "short" }
}

fn marple_dump(_: &Runtime) {
    tasks::dump(&SystemClock, SystemClock.anchor(), DUMP_OPTIONS).expect("a dump");
}

fn tokio_dump(runtime: &Runtime) {
    let handle = runtime.handle().clone();
    // Polled on another runtime: a worker that waits for the dump could not take part in it.
    let other_runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _ =
        other_runtime.block_on(async move { tokio::time::timeout(MAX_WAIT, handle.dump()).await });
}

fn runtime(waiting: usize) -> Runtime {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let never = Arc::new(Notify::new());
    for _ in 0..waiting {
        let never = Arc::clone(&never);
        runtime.spawn(async move { never.notified().await }.traced("waits"));
    }
    while runtime.metrics().global_queue_depth() > 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    runtime
}

/// Returns the longest gap around `work`, in milliseconds.
fn gap_during(heartbeat: &Heartbeat, work: impl FnOnce()) -> f64 {
    heartbeat.take_longest_gap();
    work();
    // A gap is counted at its end, so wait for the current one to end.
    let beats = heartbeat.count();
    let start = Instant::now();
    while heartbeat.count() < beats + 2 && start.elapsed() < MAX_WAIT {
        std::thread::sleep(Duration::from_millis(1));
    }
    heartbeat.take_longest_gap()
}

fn many_tasks(rounds: usize) {
    let runtime = runtime(100_000);
    let heartbeat = Heartbeat::start(&runtime);
    let mut gaps = [(); 3].map(|()| Vec::new());
    for round in 0..=rounds {
        let without = gap_during(&heartbeat, || std::thread::sleep(Duration::from_millis(200)));
        let tokio = gap_during(&heartbeat, || tokio_dump(&runtime));
        let marple = gap_during(&heartbeat, || marple_dump(&runtime));
        if round > 0 {
            gaps.iter_mut().zip([without, tokio, marple]).for_each(|(gaps, gap)| gaps.push(gap));
        }
    }
    let [without, tokio, marple] = gaps.map(median);
    println!("{:66} {without:9.3}", "100,000 tasks: longest heartbeat gap, no dump, ms");
    println!("{:66} {tokio:9.3}", "100,000 tasks: longest heartbeat gap, Handle::dump, ms");
    println!("{:66} {marple:9.3}", "100,000 tasks: longest heartbeat gap, marple, ms");
    let ratio = marple / tokio;
    let name = "100,000 tasks: longest heartbeat gap, marple over Handle::dump";
    println!("{name:66} {ratio:9.3} {:9.2} {}", 0.15, verdict(ratio <= 0.15));
    runtime.shutdown_background();
}

/// Returns the heartbeats per second after three dumps, divided by those before, while one of two
/// workers is blocked.
fn blocked_worker(dump: fn(&Runtime)) -> f64 {
    let runtime = runtime(1000);
    let heartbeat = Heartbeat::start(&runtime);
    let stop = Arc::new(AtomicBool::new(false));
    let worker_stop = Arc::clone(&stop);
    runtime.spawn(async move {
        while !worker_stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    std::thread::sleep(Duration::from_millis(100));
    let before = heartbeat.beats_in_half_second();
    (0..3).for_each(|_| dump(&runtime));
    let ratio = heartbeat.beats_in_half_second() / before;
    stop.store(true, Ordering::Relaxed);
    runtime.shutdown_background();
    ratio
}
