//! Cost of an agent with default settings to services that are busy or large.
//!
//! Each value is the median of interleaved pairs with the agent and with a control: the same
//! service without an agent, or with the measured part off. The CPU time of the agent's threads is
//! read from the kernel's `schedstat`, which is exact even while the service uses all cores. The
//! cost to the service's threads is in the CPU time of the process per request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use marple::Agent;
use marple::config::{DiskReserve, Settings, StoreSettings, ToggleSettings, TraceSettings};
use marple::internals::base::Bytes;
use marple::internals::os::proc::process::cpu_time;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::layer::SubscriberExt as _;

use super::row;

const THREADS: usize = 10_000;

#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pairs: usize,
    duration: Duration,
    /// Time from the agent's start to the measurement.
    warm_up: Duration,
}

impl Plan {
    pub(crate) fn new(quick: bool) -> Self {
        let (pairs, span) = if quick { (3, 3) } else { (7, 6) };
        Self { pairs, duration: Duration::from_secs(span), warm_up: Duration::from_secs(2) }
    }

    fn median(self, mut measure: impl FnMut() -> f64) -> f64 {
        let mut values: Vec<f64> = (0..self.pairs).map(|_| measure()).collect();
        values.sort_by(f64::total_cmp);
        values[self.pairs / 2]
    }

    /// Returns the CPU time of the agent's threads over the span, in per cent of a core.
    fn agent_cpu_percent(self) -> f64 {
        std::thread::sleep(self.warm_up);
        let (before, started_at) = (agent_cpu_time(), Instant::now());
        std::thread::sleep(self.duration);
        (agent_cpu_time() - before).as_secs_f64() / started_at.elapsed().as_secs_f64() * 100.0
    }
}

/// Returns the CPU time of the agent's threads.
fn agent_cpu_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    let used = tasks.filter_map(|task| {
        let path = task.ok()?.path();
        let name = std::fs::read_to_string(path.join("comm")).ok()?;
        if !name.starts_with("marple") && !name.starts_with("notify") {
            return None;
        }
        let schedstat = std::fs::read_to_string(path.join("schedstat")).ok()?;
        let nanos: u64 = schedstat.split(' ').next()?.parse().ok()?;
        Some(Duration::from_nanos(nanos))
    });
    used.sum()
}

fn start_agent(stall: Option<Duration>) -> (Agent, tempfile::TempDir) {
    let dir = tempfile::TempDir::new().expect("a directory");
    let settings = Settings {
        dir: dir.path().join("captures"),
        // No rule may fire, because a capture is not idle.
        rules: Vec::new(),
        trace: TraceSettings { stall_threshold: stall, ..TraceSettings::default() },
        toggle: ToggleSettings { signal: None, ..ToggleSettings::default() },
        store: StoreSettings {
            min_free_space: DiskReserve::Bytes(Bytes(0)),
            ..StoreSettings::default()
        },
        ..Settings::default()
    };
    (marple::Builder::from_settings(settings).start().expect("an agent"), dir)
}

fn runtime(workers: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(workers).enable_all().build().expect("a runtime")
}

/// Prints the cost of the agent beside unrecorded tasks with polls of 10 ms on all workers.
pub(crate) fn polls(plan: Plan) {
    for workers in [2, 8] {
        let runtime = runtime(workers);
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..4 * workers {
            let stop = Arc::clone(&stop);
            runtime.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let started_at = Instant::now();
                    while started_at.elapsed() < Duration::from_millis(10) {
                        std::hint::spin_loop();
                    }
                    tokio::task::yield_now().await;
                }
            });
        }
        let share = |stall| {
            let (agent, _dir) = start_agent(stall);
            agent.handle().watch_runtime(runtime.handle().clone()).expect("a runtime to observe");
            plan.agent_cpu_percent()
        };
        let mut totals = Vec::new();
        let detection = plan.median(|| {
            let with = share(Some(Duration::from_millis(100)));
            totals.push(with);
            with - share(None)
        });
        totals.sort_by(f64::total_cmp);
        stop.store(true, Ordering::Relaxed);
        runtime.shutdown_background();
        let name = format!("polls of 10 ms, {workers} workers");
        row(&format!("{name}: stall detection"), detection, "% of a core", 0.2);
        row(&format!("{name}: agent in total"), totals[plan.pairs / 2], "% of a core", 0.3);
    }
}

/// Prints the cost of the agent beside idle threads.
pub(crate) fn threads(plan: Plan) {
    let (hold, wait) = std::sync::mpsc::channel::<()>();
    let wait = Arc::new(std::sync::Mutex::new(wait));
    let threads: Vec<_> = (0..THREADS)
        .map_while(|_| {
            let wait = Arc::clone(&wait);
            let body = move || drop(wait.lock().map(|wait| wait.recv()));
            std::thread::Builder::new().stack_size(64 << 10).spawn(body).ok()
        })
        .collect();
    let count = threads.len();
    let plan = Plan { warm_up: 2 * plan.warm_up, ..plan };
    let share = |agent: Option<(Agent, tempfile::TempDir)>| {
        std::thread::sleep(plan.warm_up);
        let before = cpu_time();
        std::thread::sleep(plan.duration);
        let used = cpu_time() - before;
        // Closing a thousand perf events is not an idle cost.
        drop(agent);
        used.as_secs_f64() / plan.duration.as_secs_f64() * 100.0
    };
    let mut controls = Vec::new();
    let added = plan.median(|| {
        let control = share(None);
        controls.push(control);
        share(Some(start_agent(Some(Duration::from_millis(100))))) - control
    });
    controls.sort_by(f64::total_cmp);
    let control = format!("{:.4} % of a core", controls[plan.pairs / 2]);
    println!("{:<44} {control:>22}", format!("control: {count} idle threads, no agent"));
    row(&format!("{count} idle threads, added by agent"), added, "% of a core", 0.3);
    drop(hold);
    threads.into_iter().for_each(|thread| drop(thread.join()));
}

/// Prints the duration of the first poll of a wrapped task in each of 3000 threads that start
/// together. A thread preempted in its poll waits for thousands of others. So the control is a loop
/// that computes as long as the median poll. Time beyond the control is time that polls wait for
/// each other.
pub(crate) fn first_polls(plan: Plan) {
    const STARTING_THREADS: usize = 3000;
    let (_agent, _dir) = start_agent(None);
    let times = |spin_time: Option<Duration>| {
        let start = Arc::new(std::sync::Barrier::new(STARTING_THREADS));
        let body = move |start: &std::sync::Barrier| {
            start.wait();
            let started_at = Instant::now();
            match spin_time {
                Some(time) => {
                    while started_at.elapsed() < time {
                        std::hint::spin_loop();
                    }
                }
                None => {
                    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                    let task = std::pin::pin!(marple::task::traced(async {}));
                    assert!(task.poll(&mut context).is_ready());
                }
            }
            started_at.elapsed()
        };
        let threads: Vec<_> = (0..STARTING_THREADS)
            .map(|_| {
                let start = Arc::clone(&start);
                let builder = std::thread::Builder::new().stack_size(64 << 10);
                builder.spawn(move || body(&start)).expect("a thread")
            })
            .collect();
        let mut times: Vec<Duration> =
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        times.sort();
        [times[STARTING_THREADS / 2], times[STARTING_THREADS * 99 / 100]]
    };
    let (mut medians, mut controls) = (Vec::new(), Vec::new());
    let p99 = plan.median(|| {
        let [median, p99] = times(None);
        let [_, control] = times(Some(median));
        medians.push(median.as_secs_f64() * 1e6);
        controls.push(control.as_secs_f64() * 1e3);
        p99.as_secs_f64() * 1e3
    });
    for values in [&mut medians, &mut controls] {
        values.sort_by(f64::total_cmp);
    }
    let control = controls[plan.pairs / 2];
    println!(
        "{:<44} {:>22}",
        "control: first poll of 3000 threads, p99",
        format!("{control:.3} ms")
    );
    row("first poll of 3000 threads, median", medians[plan.pairs / 2], "us", 20.0);
    row("first poll of 3000 threads, p99 - control", (p99 - control).max(0.0), "ms", 10.0);
}

#[derive(Clone, Copy, PartialEq)]
enum Service {
    WithoutAgent,
    WithAgent,
    /// With the agent, the layer, the hooks and the wrapper.
    Instrumented,
}

/// Ratios per pair of the requests part. Each cell is a new runtime; its layout in memory and on
/// the cores matters more than the width of the goal. Many short cells average that out, a few long
/// ones do not.
const REQUEST_PAIRS: usize = 4;

/// Prints the CPU time of a TCP request of 16 us with an agent, divided by that without.
pub(crate) fn requests(plan: Plan) {
    let (mut agent_ratios, mut instrumented_ratios, mut plains) =
        (Vec::new(), Vec::new(), Vec::new());
    for round in 0..plan.pairs * REQUEST_PAIRS {
        let mut cells =
            [(Service::WithoutAgent, 0.0), (Service::WithAgent, 0.0), (Service::Instrumented, 0.0)];
        // Each service runs equally often first, second and last, so that the after-effects of a
        // cell are shared evenly.
        for n in 0..3 {
            let (service, seconds) = &mut cells[(n + round) % 3];
            *seconds = cpu_seconds_per_request(*service, plan);
        }
        let [plain, agent, instrumented] = cells.map(|(_, seconds)| seconds);
        plains.push(plain * 1e6);
        agent_ratios.push(agent / plain);
        instrumented_ratios.push(instrumented / plain);
    }
    let quartiles = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
    };
    let [_, plain, _] = quartiles(&mut plains);
    println!("{:<44} {:>22}", "control: request, no agent", format!("{plain:.2} us"));
    for (name, values) in [("agent", agent_ratios), ("layer, hooks, wrapper", instrumented_ratios)]
    {
        let mut values = values;
        let [low, median, high] = quartiles(&mut values);
        println!(
            "{:<44} {:>22}",
            format!("request, {name}: quartiles"),
            format!("{low:.3} {high:.3}")
        );
        row(&format!("request, {name}"), median, "x", 1.02);
    }
}

/// Returns CPU seconds of the process per request.
fn cpu_seconds_per_request(service: Service, plan: Plan) -> f64 {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).enable_all();
    if service == Service::Instrumented {
        marple::instrument_runtime(&mut builder);
    }
    let runtime = builder.build().expect("a runtime");
    let agent =
        (service != Service::WithoutAgent).then(|| start_agent(Some(Duration::from_millis(100))));
    if let Some((agent, _)) = &agent {
        agent.handle().watch_runtime(runtime.handle().clone()).expect("a runtime to observe");
    }
    let registry = tracing_subscriber::registry();
    let _subscriber = match service {
        Service::Instrumented => {
            tracing::dispatcher::set_default(&registry.with(marple::trace::layer()).into())
        }
        _ => tracing::dispatcher::set_default(&registry.into()),
    };
    let served = Arc::new(AtomicU64::new(0));
    let address = runtime.block_on(serve(service, Arc::clone(&served)));
    let stop = Arc::new(AtomicBool::new(false));
    for _ in 0..8 {
        let stop = Arc::clone(&stop);
        runtime.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            let mut buffer = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                if stream.write_all(&[1; 64]).await.is_err() {
                    break;
                }
                if stream.read_exact(&mut buffer).await.is_err() {
                    break;
                }
            }
        });
    }
    // By then the agent has finished its start-up reads.
    std::thread::sleep(plan.warm_up * 3 / 4);
    let (cpu, before) = (cpu_time(), served.load(Ordering::Relaxed));
    std::thread::sleep(plan.duration / 8);
    let used = cpu_time() - cpu;
    let served = served.load(Ordering::Relaxed) - before;
    stop.store(true, Ordering::Relaxed);
    runtime.shutdown_timeout(Duration::from_secs(1));
    used.as_secs_f64() / served.max(1) as f64
}

/// A service with 5 us of work per request; TCP raises the total to 16 us.
async fn serve(service: Service, served: Arc<AtomicU64>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let served = Arc::clone(&served);
            let connection = async move {
                let mut buffer = [0; 64];
                while stream.read_exact(&mut buffer).await.is_ok() {
                    let _span = tracing::info_span!("request", size = 64).entered();
                    let response: Vec<u8> = (0..4000u32).fold(vec![0; 64], |mut sum, n| {
                        sum[n as usize % 64] = sum[n as usize % 64].wrapping_add(n as u8);
                        std::hint::black_box(sum)
                    });
                    drop(_span);
                    served.fetch_add(1, Ordering::Relaxed);
                    if stream.write_all(&response).await.is_err() {
                        return;
                    }
                }
            };
            if service == Service::Instrumented {
                marple::task::spawn(connection);
            } else {
                tokio::spawn(connection);
            }
        }
    });
    address
}
