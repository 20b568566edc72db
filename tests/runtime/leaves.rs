//! Tests that a task dump has the stack down to any leaf future: those of tokio, and of the
//! channels and locks that services use. Each is awaited in a separate async function of this test.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use marple::internals::base::{Clock, SystemClock};
use marple::internals::model::{Profile, StackHandle, TaskDump, TaskRow, TaskState};
use marple::internals::stacks::tasks::{self, DumpOptions};
use marple::internals::symbols;
use marple::task::Trace as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{
    Barrier, Mutex, Notify, OnceCell, RwLock, Semaphore, broadcast, mpsc, oneshot, watch,
};
use tokio::time;

const HOUR: Duration = Duration::from_secs(3600);
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

type Leaf = (&'static str, Pin<Box<dyn Future<Output = ()> + Send>>);

/// Defines an async function for each leaf, which awaits `$wait` forever, and a list of them by
/// name.
macro_rules! leaves {
    ($($name:ident => $wait:block)*) => {
        $(async fn $name() $wait)*

        fn leaves() -> Vec<Leaf> {
            vec![$((stringify!($name), Box::pin($name()))),*]
        }
    };
}

leaves! {
    time_sleep => { time::sleep(HOUR).await }
    time_sleep_pinned => { let mut sleep = Box::pin(time::sleep(HOUR)); (&mut sleep).await }
    time_interval => {
        let mut interval = time::interval_at(time::Instant::now() + HOUR, HOUR);
        interval.tick().await;
    }
    time_timeout => { let _ = time::timeout(HOUR, std::future::pending::<()>()).await; }
    mpsc_recv => { let (_keep, mut queue) = mpsc::channel::<u8>(1); queue.recv().await; }
    mpsc_send => {
        let (sender, _keep) = mpsc::channel(1);
        let _ = sender.send(1).await;
        let _ = sender.send(2).await;
    }
    mpsc_reserve => {
        let (sender, _keep) = mpsc::channel(1);
        sender.send(1).await.unwrap();
        let _ = sender.reserve().await;
    }
    mpsc_closed => { let (sender, _keep) = mpsc::channel::<u8>(1); sender.closed().await }
    mpsc_unbounded_recv => { let (_keep, mut queue) = mpsc::unbounded_channel::<u8>(); queue.recv().await; }
    oneshot_recv => { let (_keep, answer) = oneshot::channel::<u8>(); let _ = answer.await; }
    oneshot_closed => { let (mut answer, _keep) = oneshot::channel::<u8>(); answer.closed().await }
    broadcast_recv => { let (_keep, mut queue) = broadcast::channel::<u8>(4); let _ = queue.recv().await; }
    watch_changed => { let (_keep, mut value) = watch::channel(1); let _ = value.changed().await; }
    sync_mutex => { let mutex = Mutex::new(()); let _held = mutex.lock().await; let _never = mutex.lock().await; }
    sync_rwlock_read => { let lock = RwLock::new(()); let _held = lock.write().await; let _never = lock.read().await; }
    sync_rwlock_write => { let lock = RwLock::new(()); let _held = lock.read().await; let _never = lock.write().await; }
    sync_semaphore => { let none = Semaphore::new(0); let _never = none.acquire().await; }
    sync_notify => { Notify::new().notified().await }
    sync_barrier => { Barrier::new(2).wait().await; }
    sync_once_cell => {
        let cell = OnceCell::new();
        cell.get_or_init(|| async { time::sleep(HOUR).await }).await;
    }
    net_tcp_accept => {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _ = listener.accept().await;
    }
    net_tcp_read => {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await;
        let _ = stream.unwrap().read(&mut [0]).await;
    }
    net_tcp_write => {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await;
        let _ = stream.unwrap().write_all(&vec![0; 64 << 20]).await;
    }
    net_udp_recv => {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let _ = socket.recv(&mut [0]).await;
    }
    net_unix_read => {
        let (mut near, _far) = tokio::net::UnixStream::pair().unwrap();
        let _ = near.read(&mut [0]).await;
    }
    io_duplex_read => { let (mut near, _far) = tokio::io::duplex(8); let _ = near.read(&mut [0]).await; }
    task_join_handle => { let _ = tokio::spawn(time::sleep(HOUR)).await; }
    task_join_set => {
        let mut set = marple::task::JoinSet::new();
        set.spawn(time::sleep(HOUR));
        set.join_next().await;
    }
    task_spawn_blocking => {
        let (keep, wait) = std::sync::mpsc::channel::<()>();
        let blocking = tokio::task::spawn_blocking(move || wait.recv_timeout(HOUR));
        let _ = blocking.await;
        drop(keep);
    }
    macro_select => {
        tokio::select! {
            () = time::sleep(HOUR) => {}
            () = std::future::pending() => {}
        }
    }
    macro_join => { let notify = Notify::new(); tokio::join!(time::sleep(HOUR), notify.notified()); }
    signal_recv => {
        let kind = tokio::signal::unix::SignalKind::user_defined1();
        tokio::signal::unix::signal(kind).unwrap().recv().await;
    }
    process_wait => {
        let mut child = tokio::process::Command::new("sleep").arg("3600").kill_on_drop(true).spawn().unwrap();
        let _ = child.wait().await;
    }
    futures_oneshot => { let (_keep, answer) = futures_channel::oneshot::channel::<u8>(); let _ = answer.await; }
    futures_mpsc => {
        use futures_util::StreamExt as _;
        let (_keep, mut queue) = futures_channel::mpsc::channel::<u8>(1);
        queue.next().await;
    }
    async_channel_recv => { let (_keep, queue) = async_channel::bounded::<u8>(1); let _ = queue.recv().await; }
    async_channel_send => {
        let (sender, _keep) = async_channel::bounded(1);
        sender.send(1).await.unwrap();
        let _ = sender.send(2).await;
    }
    flume_recv => { let (_keep, queue) = flume::bounded::<u8>(1); let _ = queue.recv_async().await; }
    flume_send => {
        let (sender, _keep) = flume::bounded(0);
        let _ = sender.send_async(1).await;
    }
    async_lock_mutex => {
        let mutex = async_lock::Mutex::new(());
        let _held = mutex.lock().await;
        let _never = mutex.lock().await;
    }
    async_lock_semaphore => { let none = async_lock::Semaphore::new(0); let _never = none.acquire().await; }
    two_calls_deep => { inner_call().await }
}

async fn inner_call() {
    Box::pin(innermost_call()).await;
}

async fn innermost_call() {
    time::sleep(HOUR).await;
}

fn dump_tasks() -> TaskDump {
    let plan = DumpOptions { capture_stacks: true, allow_signals: false, timeout: WAIT_TIMEOUT };
    let mut dump = tasks::dump(&SystemClock, SystemClock.anchor(), plan).unwrap();
    symbols::symbolize(&mut dump.profile);
    dump
}

/// Returns the function names of a stack, innermost first.
fn function_names(profile: &Profile, stack: StackHandle) -> Vec<String> {
    let frames = profile.stacks.frames(Some(stack)).map(|frame| profile.frames.get(frame));
    let lines = frames.flat_map(|frame| frame.lines.iter());
    let name =
        |line: &marple::internals::model::Line| profile.functions[line.function.index()].name;
    lines.map(|line| profile.strings.get(name(line)).to_owned()).collect()
}

fn task_row<'a>(dump: &'a TaskDump, name: &str) -> &'a TaskRow {
    dump.tasks.iter().find(|task| task.name == name).unwrap_or_else(|| panic!("no task {name}"))
}

/// Returns the leaves whose stack does not reach this test's function, or does not end there.
fn unreached_leaves(dump: &TaskDump) -> Vec<String> {
    let mut missed = Vec::new();
    for (name, _) in leaves() {
        let row = task_row(dump, name);
        let own = format!("runtime::leaves::{name}::{{{{closure}}}}");
        let stacks: Vec<_> =
            row.stacks.iter().map(|stack| function_names(&dump.profile, *stack)).collect();
        // The outermost function is that of the enclosing box.
        let ends = |stack: &Vec<String>| stack.iter().nth_back(1) == Some(&own);
        let reached = !stacks.is_empty() && stacks.iter().all(ends);
        if !reached {
            missed.push(format!("{name}: {:?} {stacks:#?}", row.state));
        }
    }
    missed
}

/// Dumps until every named task is waiting.
fn dump_when_waiting(names: &[&str]) -> TaskDump {
    let start = Instant::now();
    loop {
        let dump = dump_tasks();
        let is_waiting = |name: &&str| {
            matches!(
                task_row(&dump, name).state,
                TaskState::Waiting | TaskState::WaitingWithoutWaker
            )
        };
        if names.iter().all(is_waiting) || start.elapsed() > WAIT_TIMEOUT {
            return dump;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn task_stack_reaches_awaiting_function() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut all = Vec::new();
    for (name, leaf) in leaves() {
        all.push(name);
        drop(runtime.spawn(leaf.traced(name)));
    }
    // A task that cannot be woken for a dump, because it keeps no waker.
    drop(runtime.spawn(std::future::pending::<()>().traced("pending")));
    all.push("pending");
    // Connecting and filling a socket take several polls.
    let start = Instant::now();
    let dump = loop {
        let dump = dump_when_waiting(&all);
        let missed = unreached_leaves(&dump);
        if missed.is_empty() {
            break dump;
        }
        assert!(start.elapsed() < WAIT_TIMEOUT, "{}", missed.join("\n"));
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(dump.losses().is_empty(), "{:?}", dump.losses());
    assert_eq!(task_row(&dump, "pending").state, TaskState::WaitingWithoutWaker);

    let join = &task_row(&dump, "macro_join").stacks;
    assert_eq!(join.len(), 2, "one stack for each that is waited on");
    let chain = function_names(&dump.profile, task_row(&dump, "two_calls_deep").stacks[0]);
    let places: Vec<_> = ["innermost_call", "inner_call", "two_calls_deep"]
        .map(|function| chain.iter().position(|frame| frame.contains(&format!("::{function}::"))))
        .to_vec();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{chain:#?}");
    runtime.shutdown_background();
}

/// A wake-up after a dump must behave as without a dump: the dump leaves no state in a leaf.
#[test]
fn dumped_tasks_continue_normally() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let go = Arc::new(Notify::new());
    let handles: Vec<_> = (0..100)
        .map(|at: u64| {
            let go = Arc::clone(&go);
            runtime.spawn(
                async move {
                    go.notified().await;
                    time::sleep(Duration::from_millis(at % 7)).await;
                    at
                }
                .traced("goes on"),
            )
        })
        .collect();
    dump_when_waiting(&["goes on"]);
    for _ in 0..3 {
        dump_tasks();
    }
    go.notify_waiters();
    let sum = runtime.block_on(async {
        let mut sum = 0;
        for handle in handles {
            sum += handle.await.unwrap();
        }
        sum
    });
    assert_eq!(sum, 4950);
    assert!(dump_tasks().tasks.iter().all(|task| task.name != "goes on"));
}
