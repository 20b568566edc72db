//! Healthy services. In each of them one metric rises and returns to normal.

use std::fs::{self, File};
use std::io;
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use marple::AgentHandle;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::faults;
use crate::service::SERVICE_ENV;
use crate::support::host::wait_for;
use crate::support::rerun;

const SECOND: Duration = Duration::from_secs(1);

/// The service whose program file is replaced. It runs from a private copy of the program.
pub(crate) const BINARY: &str = "healthy_binary";

/// The service that another one replaces.
pub(crate) const PREDECESSOR: &str = "healthy_predecessor";

/// Services with little CPU use, which run at the same time.
pub(crate) const LIGHT: [&str; 9] = [
    "healthy_tasks",
    "healthy_threads",
    "healthy_descriptors",
    "healthy_connections",
    "healthy_blocking_pool",
    "healthy_lock",
    "healthy_panics",
    "healthy_settings",
    BINARY,
];

/// Services that compute, copy or allocate much.
pub(crate) const BUSY: [&str; 5] =
    ["healthy_start", "healthy_batch", "healthy_copy", "healthy_report", "healthy_deploy"];

/// Rises are measured from 7 s after the start of an agent.
const STARTUP_TIME: Duration = Duration::from_secs(8);

/// Prepares the process for the service called `name`, before its agent starts.
pub(crate) fn prepare(name: &str) {
    let set = |resource, current| {
        setrlimit(resource, Rlimit { current, ..getrlimit(resource) }).unwrap();
    };
    match name {
        "healthy_report" => set(Resource::Data, Some(700 << 20)),
        "healthy_descriptors" => set(Resource::Nofile, getrlimit(Resource::Nofile).maximum),
        _ => {}
    }
}

/// Runs the service called `name` to its end.
pub(crate) async fn run(name: &str, agent: &AgentHandle) {
    drop(tokio::spawn(faults::serve()));
    match name {
        "healthy" => mixed_load().await,
        "healthy_start" => warm_up_caches().await,
        "healthy_batch" => run_batch_job().await,
        "healthy_copy" => {
            for _ in 0..2 {
                copy_files().await.unwrap();
            }
        }
        "healthy_report" => make_reports().await,
        "healthy_deploy" => replace_predecessor(agent).await,
        PREDECESSOR => sleep(6 * SECOND).await,
        "healthy_tasks" => tasks_rise_and_fall().await,
        "healthy_threads" => threads_rise_and_fall().await,
        "healthy_descriptors" => descriptors_rise_and_fall().await,
        "healthy_connections" => serve_short_connections().await,
        "healthy_blocking_pool" => send_bursts_of_blocking_work().await,
        "healthy_lock" => contend_periodically().await,
        "healthy_panics" => panic_periodically().await,
        "healthy_settings" => rewrite_settings().await,
        BINARY => replace_binary().await,
        other => panic!("there is no service `{other}`"),
    }
    // Long enough for a rule with a `for` duration to fire.
    sleep(2 * SECOND).await;
    assert_rules_have_values(agent).await;
}

/// Panics unless the rules have values, without which the test proves nothing.
async fn assert_rules_have_values(agent: &AgentHandle) {
    let rules = agent.status().await.unwrap().rules;
    for name in [
        "memory",
        "cpu",
        "tasks",
        "tasks-rise",
        "threads-rise",
        "fds-rise",
        "fds-utilization",
        "runtime-lag",
        "panics",
    ] {
        let rule = rules.iter().find(|rule| rule.name == name);
        assert!(rule.is_some_and(|rule| rule.value.is_some()), "{name}: {rule:?}");
    }
}

/// Runs a start, a peak of requests, a batch job and a copy of files, one after the other.
async fn mixed_load() {
    // A start: caches are filled on every core, and 2000 clients reconnect within two seconds.
    let fill: Vec<_> = (0..2).map(|_| tokio::spawn(compute(3 * SECOND))).collect();
    for client in 0..2000_u64 {
        drop(tokio::spawn(keep_connection(client)));
        if client % 10 == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    }
    for task in fill {
        task.await.unwrap();
    }
    // A single failed request is not a panic loop.
    let _ = tokio::spawn(async { panic!("a bad request") }).await;
    let batch = tokio::task::spawn_blocking(|| compute_blocking(15 * SECOND));
    // `block_in_place` delays no other task, with or without recorded polls.
    drop(tokio::spawn(async { tokio::task::block_in_place(|| thread::sleep(5 * SECOND)) }));
    drop(marple::task::spawn(async {
        tokio::task::block_in_place(|| thread::sleep(6 * SECOND));
    }));
    peak(20 * SECOND).await;
    copy_files().await.unwrap();
    batch.await.unwrap();
    // Long enough for a rule over a rise to fire.
    sleep(3 * SECOND).await;
}

/// Simulates a client with a request every 0.7 to 1.3 s.
async fn keep_connection(client: u64) {
    for n in 0..u64::MAX {
        sleep(Duration::from_millis(700 + (client * 37 + n * 101) % 600)).await;
    }
}

/// Computes, and yields its worker about every millisecond.
async fn compute(time: Duration) {
    let started_at = Instant::now();
    while started_at.elapsed() < time {
        std::hint::black_box((0..200_000_u64).fold(0, |sum, n| std::hint::black_box(sum ^ n)));
        tokio::task::yield_now().await;
    }
}

/// Spawns requests at a rate that rises to a peak and falls again.
async fn peak(time: Duration) {
    let started_at = Instant::now();
    while let Some(left) = time.checked_sub(started_at.elapsed()) {
        let share = 1.0 - left.as_secs_f64() / time.as_secs_f64();
        let load = (share * std::f64::consts::TAU).cos().mul_add(-0.5, 0.5);
        let requests = 1 + (load * 20.0) as u64;
        for n in 0..requests {
            drop(tokio::spawn(async move {
                sleep(Duration::from_millis(20 + n * 10)).await;
                std::hint::black_box((0..20_000_u64).sum::<u64>());
            }));
        }
        sleep(Duration::from_millis(10)).await;
    }
}

fn compute_blocking(time: Duration) {
    let started_at = Instant::now();
    while started_at.elapsed() < time {
        std::hint::black_box((0..1_000_000_u64).fold(0, |sum, n| std::hint::black_box(sum ^ n)));
    }
}

/// Writes and reads 256 MiB.
async fn copy_files() -> io::Result<()> {
    let block = vec![b'.'; 1 << 20];
    let mut file = tokio::fs::File::create("original").await?;
    for _ in 0..256 {
        file.write_all(&block).await?;
    }
    file.flush().await?;
    tokio::fs::copy("original", "copy").await?;
    let mut copy = tokio::fs::File::open("copy").await?;
    let mut block = vec![0; 1 << 20];
    while copy.read(&mut block).await? > 0 {}
    tokio::fs::remove_file("original").await?;
    tokio::fs::remove_file("copy").await
}

/// Reads caches from files and computes them on every core, all at once, before the first request.
async fn warm_up_caches() {
    let load = |n: u64| async move {
        let name = format!("cache-{n}");
        tokio::fs::write(&name, vec![b'.'; 1 << 20]).await.unwrap();
        for _ in 0..20 {
            std::hint::black_box(tokio::fs::read(&name).await.unwrap());
        }
    };
    let files: Vec<_> = (0..64).map(|n| tokio::spawn(load(n))).collect();
    let fill: Vec<_> = (0..4).map(|_| tokio::spawn(compute(5 * SECOND))).collect();
    for task in files.into_iter().chain(fill) {
        task.await.unwrap();
    }
    sleep(6 * SECOND).await;
}

/// Runs a job that uses every core for six seconds.
async fn run_batch_job() {
    sleep(2 * SECOND).await;
    let jobs: Vec<_> =
        (0..2).map(|_| tokio::task::spawn_blocking(|| compute_blocking(6 * SECOND))).collect();
    for job in jobs {
        job.await.unwrap();
    }
    sleep(4 * SECOND).await;
}

/// Builds, sends and frees reports of 300 of 700 MiB.
async fn make_reports() {
    for _ in 0..3 {
        let mut report = Vec::new();
        for _ in 0..75 {
            report.push(vec![b'.'; 4 << 20]);
            sleep(Duration::from_millis(20)).await;
        }
        std::hint::black_box(&report);
        drop(report);
        sleep(SECOND).await;
    }
}

/// Starts the process that this one replaces, and waits until it owns the directory.
pub(crate) fn start_predecessor() -> Child {
    let predecessor = rerun::command("service_process")
        .env(SERVICE_ENV, PREDECESSOR)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the predecessor's agent", || fs::metadata("captures/.lock").ok());
    predecessor
}

/// Two processes serve for some seconds, then only this one, which takes over the directory.
async fn replace_predecessor(agent: &AgentHandle) {
    let is_held = || async {
        let warnings = agent.status().await.unwrap().warnings;
        warnings.iter().any(|warning| warning.topic == "dir")
    };
    assert!(is_held().await, "the predecessor has the directory");
    while is_held().await {
        sleep(Duration::from_millis(200)).await;
    }
    sleep(3 * SECOND).await;
}

/// Spawns 5,000 requests within five seconds, each of which takes eight seconds.
async fn tasks_rise_and_fall() {
    sleep(STARTUP_TIME).await;
    for _ in 0..50 {
        (0..100).for_each(|_| drop(tokio::spawn(sleep(8 * SECOND))));
        sleep(Duration::from_millis(100)).await;
    }
    sleep(8 * SECOND).await;
}

/// Starts 150 threads within five seconds, each of which runs for eight seconds.
async fn threads_rise_and_fall() {
    sleep(STARTUP_TIME).await;
    let mut threads = Vec::new();
    for _ in 0..50 {
        threads.extend((0..3).map(|_| thread::spawn(|| thread::sleep(8 * SECOND))));
        sleep(Duration::from_millis(100)).await;
    }
    sleep(8 * SECOND).await;
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Opens 1,500 files within five seconds, and closes them gradually.
async fn descriptors_rise_and_fall() {
    fs::write("shard", "").unwrap();
    sleep(STARTUP_TIME).await;
    let mut files = Vec::new();
    for _ in 0..50 {
        files.extend((0..30).map(|_| File::open("shard").unwrap()));
        sleep(Duration::from_millis(100)).await;
    }
    sleep(2 * SECOND).await;
    while !files.is_empty() {
        files.truncate(files.len().saturating_sub(50));
        sleep(Duration::from_millis(100)).await;
    }
}

/// Runs ten clients, each of which repeatedly connects, sends a request and disconnects.
async fn serve_short_connections() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            drop(tokio::spawn(async move {
                let mut request = [0; 4];
                stream.read_exact(&mut request).await.unwrap();
                stream.write_all(&request).await.unwrap();
            }));
        }
    }));
    let client = move || async move {
        let started_at = Instant::now();
        while started_at.elapsed() < 12 * SECOND {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"ping").await.unwrap();
            let mut response = [0; 4];
            stream.read_exact(&mut response).await.unwrap();
            sleep(Duration::from_millis(20)).await;
        }
    };
    let clients: Vec<_> = (0..10).map(|_| tokio::spawn(client())).collect();
    for client in clients {
        client.await.unwrap();
    }
}

/// Sends four bursts of work to the blocking pool. The last has more items than the pool has
/// threads.
async fn send_bursts_of_blocking_work() {
    for count in [200, 300, 400, 700] {
        let work = || thread::sleep(Duration::from_millis(200));
        let burst: Vec<_> = (0..count).map(|_| tokio::task::spawn_blocking(work)).collect();
        for work in burst {
            work.await.unwrap();
        }
        sleep(3 * SECOND).await;
    }
}

/// For one second in five, eight tasks contend for a `std` lock that each holds for 5 ms.
async fn contend_periodically() {
    static CACHE: Mutex<u64> = Mutex::new(0);
    let renew = || async {
        let started_at = Instant::now();
        while started_at.elapsed() < SECOND {
            {
                let mut guard = CACHE.lock().unwrap();
                let locked = Instant::now();
                while locked.elapsed() < Duration::from_millis(5) {
                    *guard = guard.wrapping_add(1);
                }
            }
            tokio::task::yield_now().await;
        }
    };
    for _ in 0..3 {
        sleep(4 * SECOND).await;
        let tasks: Vec<_> = (0..8).map(|_| tokio::spawn(renew())).collect();
        for task in tasks {
            task.await.unwrap();
        }
    }
}

/// Panics in a request every three seconds.
async fn panic_periodically() {
    for order in 0..5 {
        assert!(tokio::spawn(async move { panic!("order {order} is damaged") }).await.is_err());
        sleep(3 * SECOND).await;
    }
}

/// Rewrites the settings: in place, by a rename, half at first, and with a changed value.
async fn rewrite_settings() {
    let settings = fs::read_to_string("minimal.toml").unwrap();
    let renamed = |text: &str| {
        fs::write("minimal.toml.new", text).unwrap();
        fs::rename("minimal.toml.new", "minimal.toml").unwrap();
    };
    let half = &settings[..settings.len() / 2];
    let changed = format!("interval = \"200ms\"\n{settings}");
    for _ in 0..2 {
        fs::write("minimal.toml", &settings).unwrap();
        sleep(SECOND).await;
        renamed(&changed);
        sleep(2 * SECOND).await;
        fs::write("minimal.toml", half).unwrap();
        sleep(2 * SECOND).await;
        renamed(&settings);
        sleep(2 * SECOND).await;
    }
}

/// Replaces the program file while it runs, as an upgrade does.
async fn replace_binary() {
    sleep(2 * SECOND).await;
    fs::write("program.new", "another version\n").unwrap();
    let program = std::env::current_exe().unwrap();
    fs::rename("program.new", &program).unwrap();
    let program = std::env::current_exe().unwrap();
    assert!(program.to_string_lossy().ends_with("(deleted)"), "{program:?}");
    for _ in 0..4 {
        compute(SECOND).await;
        sleep(SECOND).await;
    }
}
