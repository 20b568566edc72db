//! Memory retained after the tasks of a day at 100 per second. They run within seconds, recorded,
//! while dumps are taken every 50 ms.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use marple::internals::base::{Bytes, Clock, SystemClock};
use marple::internals::model::TraceMode;
use marple::internals::stacks::tasks;
use marple::internals::trace::configure;
use marple::task::{self, Trace as _};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use crate::{DUMP_OPTIONS, row, runtime};

/// Number of tasks in a day at 100 per second.
const TASKS: usize = 24 * 60 * 60 * 100;

/// Number of concurrent tasks.
const BATCH: usize = 1000;

pub(crate) fn measure() {
    configure(TraceMode::Always, Bytes::mib(16), Duration::from_secs(30));
    let runtime = runtime();
    let stop = Arc::new(AtomicBool::new(false));
    let dumper_stop = Arc::clone(&stop);
    let dumps = thread::spawn(move || {
        let mut dumps = 0;
        while !dumper_stop.load(Ordering::Relaxed) {
            tasks::dump(&SystemClock, SystemClock.anchor(), DUMP_OPTIONS).expect("a dump");
            dumps += 1;
            thread::sleep(Duration::from_millis(50));
        }
        dumps
    });
    // Each wrapped future holds a reference, so the count shows futures that were not dropped.
    let live_marker = Arc::new(());
    run_tasks(&runtime, TASKS / 10, &live_marker);
    let before = resident_mib();
    run_tasks(&runtime, TASKS, &live_marker);
    let growth = resident_mib() - before;
    stop.store(true, Ordering::Relaxed);
    let dumps = dumps.join().expect("no panic");
    drop(runtime);
    configure(TraceMode::OnDemand, Bytes::mib(16), Duration::from_secs(30));
    let name = "8,640,000 tasks";
    row(&format!("{name}: dumps taken"), f64::from(dumps), "", None);
    row(&format!("{name}: still listed"), tasks::alive_count() as f64, "tasks", Some(0.0));
    let live_count = Arc::strong_count(&live_marker) - 1;
    row(&format!("{name}: futures not dropped"), live_count as f64, "tasks", Some(0.0));
    row(&format!("{name}: growth of resident memory"), growth, "MiB", Some(1.0));
}

/// Runs tasks that end at once, that wait and are woken, and that wait and are aborted, and futures
/// that are dropped before their first poll.
fn run_tasks(runtime: &Runtime, tasks: usize, live_marker: &Arc<()>) {
    runtime.block_on(async {
        let mut handles = Vec::with_capacity(BATCH);
        for _ in 0..tasks / BATCH {
            let wake_up = Arc::new(Semaphore::new(0));
            for at in 0..BATCH {
                let (live_marker, wake_up) = (Arc::clone(live_marker), Arc::clone(&wake_up));
                let work = async move {
                    match at % 4 {
                        0 => {}
                        1 => assert!(wake_up.acquire().await.is_err(), "closed"),
                        _ => std::future::pending().await,
                    }
                    drop(live_marker);
                };
                match at % 4 {
                    3 => drop(work.traced("never polled")),
                    _ => handles.push(task::spawn(work)),
                }
            }
            tokio::task::yield_now().await;
            wake_up.close();
            for (at, handle) in handles.drain(..).enumerate() {
                if at % 3 == 2 {
                    handle.abort();
                }
                let _ = handle.await;
            }
        }
    });
}

/// Returns the resident memory of this process in MiB.
fn resident_mib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kib.map_or(f64::NAN, |kib| kib / 1024.0)
}
