//! Tests of task dumps with tasks in every state, and that a dump leaves no state behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use marple::internals::base::{Clock, SystemClock};
use marple::internals::codec::text;
use marple::internals::model::{TaskDump, TaskRow, TaskState};
use marple::internals::stacks::tasks::{self, DumpOptions};
use marple::internals::symbols;
use marple::task::{self, Trace as _};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Serializes the tests: the task list is per process.
fn serial_guard() -> MutexGuard<'static, ()> {
    static SERIAL: Mutex<()> = Mutex::new(());
    SERIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

fn runtime(workers: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap()
}

fn dump_tasks(plan: DumpOptions) -> TaskDump {
    let mut dump = tasks::dump(&SystemClock, SystemClock.anchor(), plan).unwrap();
    symbols::symbolize(&mut dump.profile);
    dump
}

const DEFAULT_OPTIONS: DumpOptions =
    DumpOptions { capture_stacks: true, allow_signals: true, timeout: WAIT_TIMEOUT };

fn wait_until(condition_name: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < WAIT_TIMEOUT, "waited in vain until {condition_name}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn tasks_named<'a>(dump: &'a TaskDump, name: &str) -> Vec<&'a TaskRow> {
    dump.tasks.iter().filter(|task| task.name == name).collect()
}

fn dump_text(dump: &TaskDump) -> String {
    let mut text = Vec::new();
    text::tasks::write(dump, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

/// State of a task that blocks a worker until released, in a function with a recognizable name.
struct BlockingTask {
    entered: AtomicBool,
    released: AtomicBool,
}

#[inline(never)]
fn block_until_released(stuck: &BlockingTask) {
    stuck.entered.store(true, Ordering::Release);
    while !stuck.released.load(Ordering::Acquire) {
        std::hint::spin_loop();
    }
}

/// Blocks a worker with the returned task. Retries if the beat task is in that worker's LIFO slot,
/// from which no other worker steals: the beat would wait for the blocked worker.
fn block_a_worker(runtime: &Runtime, beats: &AtomicUsize) -> (Arc<BlockingTask>, JoinHandle<()>) {
    for _ in 0..10 {
        let stuck = Arc::new(BlockingTask {
            entered: AtomicBool::new(false),
            released: AtomicBool::new(false),
        });
        let task_handle = Arc::clone(&stuck);
        let handle =
            runtime.spawn(async move { block_until_released(&task_handle) }.traced("stuck"));
        wait_until("a worker is stuck", || stuck.entered.load(Ordering::Acquire));
        let (start, before) = (Instant::now(), beats.load(Ordering::Relaxed));
        while start.elapsed() < Duration::from_secs(3) {
            if beats.load(Ordering::Relaxed) > before + 5 {
                return (stuck, handle);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        println!("the beat was beside the task that blocks: once more");
        stuck.released.store(true, Ordering::Release);
        runtime.block_on(handle).unwrap();
    }
    panic!("the beat stops with each worker that is blocked");
}

#[test]
fn dump_with_blocked_worker_has_all_other_tasks() {
    let _serial = serial_guard();
    let runtime = runtime(2);
    let beats = Arc::new(AtomicUsize::new(0));
    let beat = Arc::clone(&beats);
    drop(runtime.spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            beat.fetch_add(1, Ordering::Relaxed);
        }
    }));
    let never = Arc::new(Notify::new());
    for _ in 0..500 {
        let never = Arc::clone(&never);
        drop(runtime.spawn(async move { never.notified().await }.traced("waits")));
    }
    let all_wait = || {
        tasks_named(&dump_tasks(DEFAULT_OPTIONS), "waits")
            .iter()
            .all(|t| t.state == TaskState::Waiting)
    };
    wait_until("all 500 wait", all_wait);

    let (stuck, handle) = block_a_worker(&runtime, &beats);
    for _ in 0..3 {
        let dump = dump_tasks(DEFAULT_OPTIONS);
        let text = dump_text(&dump);
        let waits = tasks_named(&dump, "waits");
        assert_eq!(waits.len(), 500);
        assert!(waits.iter().all(|task| task.state == TaskState::Waiting), "{text}");
        let [stuck] = tasks_named(&dump, "stuck")[..] else { panic!("{text}") };
        assert!(matches!(stuck.state, TaskState::Running { .. }), "{text}");
        assert!(
            text.contains("running on thread") && text.contains("block_until_released"),
            "{text}"
        );
        assert_eq!(text.matches("\n500 tasks \"waits\"").count(), 1, "{text}");
    }
    let before = beats.load(Ordering::Relaxed);
    wait_until("the beat goes on", || beats.load(Ordering::Relaxed) > before + 20);
    stuck.released.store(true, Ordering::Release);
    runtime.block_on(handle).unwrap();
    assert!(tasks_named(&dump_tasks(DEFAULT_OPTIONS), "stuck").is_empty());
    runtime.shutdown_background();
}

#[test]
fn unpolled_tasks_are_fresh_or_scheduled() {
    let _serial = serial_guard();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let waits = runtime.spawn(std::future::pending::<()>().traced("nobody drives"));
    let fresh = tasks_named(&dump_tasks(DEFAULT_OPTIONS), "nobody drives")[0].state;
    assert_eq!(fresh, TaskState::NeverPolled);
    runtime.block_on(async { tokio::task::yield_now().await });
    let dump = dump_tasks(DumpOptions { timeout: Duration::from_millis(200), ..DEFAULT_OPTIONS });
    let [task] = tasks_named(&dump, "nobody drives")[..] else { panic!("{dump:?}") };
    assert_eq!(task.state, TaskState::Scheduled);
    assert_eq!(task.id.map(|id| id.to_string()), Some(waits.id().to_string()));
    assert_eq!(task.location.file, file!());
    let listed = dump_tasks(DumpOptions { capture_stacks: false, ..DEFAULT_OPTIONS });
    assert_eq!(tasks_named(&listed, "nobody drives")[0].state, TaskState::NotDumped);
    // An unanswered request is withdrawn: the next poll is a normal one.
    runtime.block_on(async { tokio::task::yield_now().await });
    drop(runtime);
    assert!(tasks_named(&dump_tasks(DEFAULT_OPTIONS), "nobody drives").is_empty());
}

#[test]
fn dump_does_not_reset_idle_task_age() {
    let _serial = serial_guard();
    let runtime = runtime(1);
    drop(runtime.spawn(Arc::new(Notify::new()).notified_owned().traced("idle")));
    wait_until("it waits", || {
        tasks_named(&dump_tasks(DEFAULT_OPTIONS), "idle")[0].state == TaskState::Waiting
    });
    let age = || tasks_named(&dump_tasks(DEFAULT_OPTIONS), "idle")[0].time_since_poll.unwrap();
    let first = age();
    wait_until("it is 50 ms older", || age() > first + Duration::from_millis(50));
    assert!(age() > first + Duration::from_millis(50));
}

#[test]
fn every_spawn_method_has_its_own_spawn_location() {
    let _serial = serial_guard();
    let runtime = runtime(2);
    let forever = std::future::pending::<()>;
    let lines = runtime.block_on(async {
        let first = line!() + 1;
        drop(task::spawn(forever()));
        drop(tokio::spawn(task::traced(forever())));
        let mut set = task::JoinSet::new();
        set.spawn(forever());
        set.spawn_on(forever(), runtime.handle());
        set.detach_all();
        let local = tokio::task::LocalSet::new();
        set.spawn_local_on(forever(), &local);
        let dump = dump_tasks(DumpOptions { capture_stacks: false, ..DEFAULT_OPTIONS });
        let mut lines: Vec<u32> =
            dump.tasks.iter().map(|task| task.location.line - first).collect();
        lines.sort_unstable();
        lines
    });
    assert_eq!(lines, [0, 1, 3, 4, 7]);
}

#[test]
fn task_churn_leaves_nothing_behind() {
    let _serial = serial_guard();
    let runtime = runtime(2);
    let stop = Arc::new(AtomicBool::new(false));
    let dumps = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::Relaxed) {
                dump_tasks(DEFAULT_OPTIONS);
            }
        }
    });
    // The content of a task is dropped once: a leaked waker would keep it alive.
    let marker = Arc::new(());
    runtime.block_on(async {
        for round in 0..40 {
            let handles: Vec<_> = (0..500)
                .map(|at| {
                    let marker = Arc::clone(&marker);
                    task::spawn(async move {
                        match (at + round) % 4 {
                            0 => tokio::task::yield_now().await,
                            1 => tokio::time::sleep(Duration::from_millis(1)).await,
                            2 => std::future::pending().await,
                            _ => std::panic::resume_unwind(Box::new("as tasks do")),
                        }
                        drop(marker);
                    })
                })
                .collect();
            for (at, handle) in handles.into_iter().enumerate() {
                if (at + round) % 4 == 2 {
                    handle.abort();
                }
                let _ = handle.await;
            }
        }
    });
    stop.store(true, Ordering::Relaxed);
    dumps.join().unwrap();
    wait_until("all tasks are off the list", || tasks::alive_count() == 0);
    assert_eq!(Arc::strong_count(&marker), 1);
}
