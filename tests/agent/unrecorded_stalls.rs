//! Stalls of unrecorded tasks: plain `tokio::spawn` tasks that block their worker on a runtime
//! without hooks. The runtime's own counters raise the suspicion and two stacks confirm it.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use marple::config::{StacksSettings, ThreadsMode, TraceSettings};
use marple::internals::model::{CaptureKind, CaptureSet, Metric, Rule, Stall};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::support::host::{Host, WAIT_TIMEOUT, settings, wait_for};

const THRESHOLD: Duration = Duration::from_millis(50);

#[inline(never)]
fn block_worker(released: &Receiver<()>) {
    let _ = released.recv_timeout(WAIT_TIMEOUT);
    std::hint::black_box(());
}

#[inline(never)]
fn burn(done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
    std::hint::black_box(());
}

/// Builds a runtime like the one of `#[tokio::main]`.
fn runtime(workers: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap()
}

/// Starts an agent that observes `runtime` and has a rule over stalls.
fn start_observing(runtime: &Runtime, threads: ThreadsMode) -> Host {
    start_observing_handle(runtime.handle(), threads)
}

fn start_observing_handle(runtime: &Handle, threads: ThreadsMode) -> Host {
    let rule = Rule {
        abs: Some(THRESHOLD.as_secs_f64()),
        capture: CaptureSet::from([CaptureKind::Threads]),
        duration: Duration::from_millis(100),
        ..Rule::new(Metric::Stall)
    };
    let host = Host::start(marple::Settings {
        rules: vec![rule],
        trace: TraceSettings { stall_threshold: Some(THRESHOLD), ..TraceSettings::default() },
        stacks: StacksSettings { threads, ..StacksSettings::default() },
        ..settings()
    });
    host.handle().watch_runtime(runtime.clone()).unwrap();
    // The agent recognizes a worker by the thread name of one that has run a task.
    let ticks_at_start = ticks(&host);
    wait_for("some ticks", || (ticks(&host) > ticks_at_start + 5).then_some(()));
    host
}

fn ticks(host: &Host) -> u64 {
    host.handle().status().wait(WAIT_TIMEOUT).unwrap().counters.ticks
}

fn stalls(host: &Host) -> Vec<Stall> {
    host.handle().status().wait(WAIT_TIMEOUT).unwrap().stalls
}

fn tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

/// Checks that the status, the incident's reason and its first file report the stall of a worker.
fn assert_stall_reported(host: &Host, tid: u32, function: &str) {
    let stall = wait_for("the stall", || stalls(host).into_iter().find(|stall| stall.tid == tid));
    assert!(stall.suspected && stall.running && stall.lasted >= THRESHOLD, "{stall:?}");
    assert!(stall.function.as_deref().is_some_and(|name| name.contains(function)), "{stall:?}");
    let (dir, manifest) = wait_for("the stuck thread's stack", || {
        let (dir, manifest) = host.incidents().pop()?;
        let is_stall = |phase: &Option<String>| phase.as_deref() == Some("stall");
        let all = manifest.artifacts.iter().filter(|artifact| is_stall(&artifact.phase)).count();
        (all == 2).then_some((dir, manifest))
    });
    let about = &manifest.reasons[0].text;
    assert!(about.contains(function) && about.contains(&format!("on thread {tid} `")), "{about}");
    assert!(about.contains("suspected, confirmed by two stacks"), "{about}");
    assert_eq!(manifest.artifacts[0].phase.as_deref(), Some("stall"), "{:?}", manifest.artifacts);
    let text = std::fs::read_to_string(dir.join(&manifest.artifacts[0].file)).unwrap();
    assert!(text.contains(function), "{text}");
}

#[test]
fn sleeping_plain_task_is_reported_with_function_and_start_time() {
    for workers in [1, 2] {
        let runtime = runtime(workers);
        let host = start_observing(&runtime, ThreadsMode::Full);
        let (release, released) = channel();
        let (sender, receiver) = channel();
        let before = jiff::Timestamp::now();
        let stuck = runtime.spawn(async move {
            sender.send(tid()).unwrap();
            block_worker(&released);
        });
        assert_stall_reported(
            &host,
            receiver.recv().unwrap(),
            "agent::unrecorded_stalls::block_worker",
        );
        let stall = stalls(&host).pop().unwrap();
        assert!(stall.started >= before && stall.started <= jiff::Timestamp::now(), "{stall:?}");
        // With one worker the stalled index is certain, and the metric follows the poll.
        assert!(workers > 1 || stall.worker == Some(0), "{stall:?}");
        wait_for("the metric", || {
            let status = host.handle().status().wait(WAIT_TIMEOUT).unwrap();
            (status.vitals.values.get("runtime.stall").copied() > Some(0.4)).then_some(())
        });
        release.send(()).unwrap();
        runtime.block_on(stuck).unwrap();
        wait_for("the metric to fall", || {
            let status = host.handle().status().wait(WAIT_TIMEOUT).unwrap();
            let stall = status.vitals.values.get("runtime.stall").copied();
            (stall == Some(0.0)).then_some(())
        });
        assert_eq!(stalls(&host).len(), 1, "told once");
        host.wait_for_closed(1);
        runtime.shutdown_background();
    }
}

#[test]
fn computing_plain_task_is_reported_as_stall() {
    let runtime = runtime(2);
    let host = start_observing(&runtime, ThreadsMode::Full);
    let done = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = channel();
    let stuck = runtime.spawn({
        let done = Arc::clone(&done);
        async move {
            tokio::task::yield_now().await;
            sender.send(tid()).unwrap();
            burn(&done);
        }
    });
    assert_stall_reported(&host, receiver.recv().unwrap(), "agent::unrecorded_stalls::burn");
    done.store(true, Ordering::Relaxed);
    runtime.block_on(stuck).unwrap();
    runtime.shutdown_background();
}

/// Burns 5 ms of its thread's CPU time per poll, so that preemption does not count.
async fn short_polls(stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let start = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let passed = || {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            (now.tv_sec - start.tv_sec) * 1_000_000_000 + (now.tv_nsec - start.tv_nsec)
        };
        while passed() < 5_000_000 {
            std::hint::spin_loop();
        }
        tokio::task::yield_now().await;
    }
}

#[test]
fn work_that_blocks_no_worker_is_not_a_stall() {
    // One task that always gets the worker back, and many that share it.
    for tasks in [1, 12] {
        let runtime = runtime(2);
        let host = start_observing(&runtime, ThreadsMode::Full);
        let stop = Arc::new(AtomicBool::new(false));
        let polls: Vec<_> =
            (0..tasks).map(|_| runtime.spawn(short_polls(Arc::clone(&stop)))).collect();
        // Beside the busy workers: threads of the blocking pool, a task in `block_in_place`, and a
        // current-thread runtime.
        let gate = Arc::new(Barrier::new(4));
        let wait = |gate: &Arc<Barrier>| {
            let gate = Arc::clone(gate);
            move || {
                gate.wait();
            }
        };
        let blocks = runtime.spawn_blocking(wait(&gate));
        let blocking_wait = wait(&gate);
        let in_place = runtime.spawn(async move { tokio::task::block_in_place(blocking_wait) });
        let own = wait(&gate);
        let single = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { tokio::spawn(async move { own() }).await.unwrap() });
        });
        let start = Instant::now();
        // On a loaded machine any poll may take long; only one that blocks its worker may count.
        while start.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let found = stalls(&host);
        gate.wait();
        stop.store(true, Ordering::Relaxed);
        runtime.block_on(async {
            blocks.await.unwrap();
            in_place.await.unwrap();
            for polls in polls {
                polls.await.unwrap();
            }
        });
        single.join().unwrap();
        assert_eq!(found, [], "{tasks} tasks");
        runtime.shutdown_background();
    }
}

#[test]
fn no_unrecorded_stall_is_reported_without_signals() {
    for threads in [ThreadsMode::ProcOnly, ThreadsMode::Off] {
        let runtime = runtime(1);
        let host = start_observing(&runtime, threads);
        let (release, released) = channel();
        let stuck = runtime.spawn(async move { block_worker(&released) });
        let ticks_at_start = ticks(&host);
        // Enough ticks to find the stall many times over.
        wait_for("fifty ticks", || (ticks(&host) > ticks_at_start + 50).then_some(()));
        let status = host.handle().status().wait(WAIT_TIMEOUT).unwrap();
        assert_eq!(status.stalls, []);
        // The lag of the runtime is reported in any case.
        assert!(status.vitals.values["runtime.lag"] > 0.5, "{:?}", status.vitals.values);
        release.send(()).unwrap();
        runtime.block_on(stuck).unwrap();
        runtime.shutdown_background();
    }
}

/// A way of blocking a current-thread runtime.
type BlockRuntime = fn(Receiver<()>) -> Pin<Box<dyn Future<Output = ()>>>;

/// Blocks in the body of `#[tokio::main(flavor = "current_thread")]`.
fn block_in_block_on(released: Receiver<()>) -> Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(async move {
        tokio::task::yield_now().await;
        block_worker(&released);
    })
}

fn block_in_task(released: Receiver<()>) -> Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(async move { tokio::spawn(async move { block_worker(&released) }).await.unwrap() })
}

fn block_in_local_task(released: Receiver<()>) -> Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(async move {
        let local = LocalSet::new();
        let task = local.run_until(async {
            tokio::task::spawn_local(async move { block_worker(&released) }).await.unwrap();
        });
        task.await;
    })
}

fn burn_in_task(released: Receiver<()>) -> Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(async move {
        tokio::spawn(async move { burn_until(&released) }).await.unwrap();
    })
}

#[inline(never)]
fn burn_until(released: &Receiver<()>) {
    while released.try_recv() == Err(TryRecvError::Empty) {
        std::hint::spin_loop();
    }
    std::hint::black_box(());
}

#[test]
fn unrecorded_stall_on_current_thread_runtime_is_reported() {
    let cases: [(BlockRuntime, &str); 4] = [
        (block_in_block_on, "agent::unrecorded_stalls::block_worker"),
        (block_in_task, "agent::unrecorded_stalls::block_worker"),
        (block_in_local_task, "agent::unrecorded_stalls::block_worker"),
        (burn_in_task, "agent::unrecorded_stalls::burn_until"),
    ];
    for (blocking, function) in cases {
        let (sender, receiver) = channel();
        let (release, released) = channel();
        let (start_sender, start_receiver) = oneshot::channel::<()>();
        let (stop_sender, is_over) = oneshot::channel::<()>();
        let driver = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            sender.send((runtime.handle().clone(), tid())).unwrap();
            runtime.block_on(async move {
                start_receiver.await.unwrap();
                blocking(released).await;
                let _ = is_over.await;
            });
        });
        let (handle, tid) = receiver.recv().unwrap();
        let host = start_observing_handle(&handle, ThreadsMode::Full);
        assert_eq!(stalls(&host), [], "it waits");
        start_sender.send(()).unwrap();
        assert_stall_reported(&host, tid, function);
        release.send(()).unwrap();
        host.wait_for_closed(1);
        assert_eq!(stalls(&host).len(), 1, "told once");
        drop(stop_sender);
        driver.join().unwrap();
    }
}

#[test]
fn undriven_current_thread_runtime_has_no_stall() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (release, released) = channel::<()>();
    let (sender, receiver) = channel();
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        runtime.block_on(async move { _ = stopped.await });
        sender.send(()).unwrap();
        // Outside of the runtime the thread first sleeps, then computes.
        let _ = released.recv();
        burn_until(&released);
        runtime
    });
    let host = start_observing_handle(&handle, ThreadsMode::Full);
    stop.send(()).unwrap();
    receiver.recv().unwrap();
    for _ in 0..2 {
        let ticks_at_start = ticks(&host);
        wait_for("fifty ticks", || (ticks(&host) > ticks_at_start + 50).then_some(()));
        assert_eq!(stalls(&host), []);
        release.send(()).unwrap();
    }
    drop(release);
    drop(thread.join().unwrap());
}
