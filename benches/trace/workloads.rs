//! Workloads of the trace bench. `benches/peers` runs the same ones.

use std::future::{Future, poll_fn};
use std::hint::black_box;
use std::pin::pin;

use marple::internals::os::clock::cycle_clock;
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Way of spawning tasks.
#[derive(Clone, Copy)]
pub(crate) enum Spawn {
    /// With tokio's own spawn.
    Plain,
    /// With marple's wrapper.
    #[allow(dead_code, reason = "not used by benches/peers")]
    Wrapped,
    /// With tokio's own spawn, in a future that reads the cycle counter before and after each poll
    /// and discards it.
    #[allow(dead_code, reason = "not used by benches/peers")]
    Clocked,
}

impl Spawn {
    fn spawn<F>(self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match self {
            Self::Plain => tokio::spawn(future),
            Self::Wrapped => wrapped::spawn(future),
            Self::Clocked => tokio::spawn(timed(future)),
        }
    }
}

async fn timed<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        black_box(cycle_clock::now());
        let result = future.as_mut().poll(cx);
        black_box(cycle_clock::now());
        result
    })
    .await
}

mod wrapped {
    pub(super) use marple::task::spawn;
}

pub(crate) struct Workload {
    pub(crate) name: &'static str,
    operations: u32,
    run: fn(&Runtime, Spawn, u32),
}

impl Workload {
    /// Returns nanoseconds of process CPU time per operation.
    pub(crate) fn run(&self, runtime: &Runtime, spawn: Spawn) -> f64 {
        (self.run)(runtime, spawn, self.operations / 10);
        let before = cpu_time();
        (self.run)(runtime, spawn, self.operations);
        (cpu_time() - before) / f64::from(self.operations)
    }
}

impl Workload {
    /// Runs `operations` operations, without a warm-up.
    #[allow(dead_code, reason = "not used by benches/peers")]
    pub(crate) fn run_once(&self, runtime: &Runtime, spawn: Spawn, operations: u32) {
        (self.run)(runtime, spawn, operations);
    }
}

pub(crate) const WORKLOADS: [Workload; 4] = [
    Workload { name: "ping-pong", operations: 300_000, run: ping_pong },
    Workload { name: "spawn many", operations: 300_000, run: spawn_many },
    Workload { name: "TCP echo", operations: 15_000, run: tcp_echo },
    Workload { name: "computing polls", operations: 20_000, run: computing_polls },
];

/// Returns the builder of a runtime with two workers.
pub(crate) fn builder() -> Builder {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).enable_all();
    builder
}

/// Returns the CPU time of the process in nanoseconds.
pub(crate) fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Passes a value back and forth between two tasks; an operation is one transfer.
fn ping_pong(runtime: &Runtime, spawn: Spawn, operations: u32) {
    runtime.block_on(async move {
        let (ping_sender, mut ping_receiver) = mpsc::channel::<u32>(1);
        let (pong_sender, mut pong_receiver) = mpsc::channel::<u32>(1);
        let pong = spawn.spawn(async move {
            while let Some(n) = ping_receiver.recv().await {
                if pong_sender.send(n).await.is_err() {
                    break;
                }
            }
        });
        let ping = spawn.spawn(async move {
            for n in 0..operations / 2 {
                ping_sender.send(n).await.expect("an open channel");
                black_box(pong_receiver.recv().await);
            }
        });
        ping.await.expect("ping");
        pong.await.expect("pong");
    });
}

/// Spawns tasks that complete in their first poll, a hundred at a time, from one task.
fn spawn_many(runtime: &Runtime, spawn: Spawn, operations: u32) {
    runtime.block_on(async move {
        let spawner = spawn.spawn(async move {
            let mut handles = Vec::with_capacity(100);
            for _ in 0..operations / 100 {
                handles.extend((0..100).map(|n| spawn.spawn(async move { black_box(n) })));
                for handle in handles.drain(..) {
                    black_box(handle.await.expect("a task"));
                }
            }
        });
        spawner.await.expect("spawner");
    });
}

/// Sends 64 bytes from a client and waits for the echo.
fn tcp_echo(runtime: &Runtime, spawn: Spawn, operations: u32) {
    runtime.block_on(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = spawn.spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut buffer = [0; 64];
            while stream.read_exact(&mut buffer).await.is_ok() {
                stream.write_all(&buffer).await.expect("an open connection");
            }
        });
        let client = spawn.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("a server");
            stream.set_nodelay(true).expect("nodelay");
            let mut buffer = [7; 64];
            for _ in 0..operations {
                stream.write_all(&buffer).await.expect("an open connection");
                stream.read_exact(&mut buffer).await.expect("a response");
            }
        });
        client.await.expect("client");
        server.await.expect("server");
    });
}

/// Computes for about 6 us. Never inlined: when compiled once per way of spawning, the copies
/// differed by a factor of 0.8 to 1.3.
#[inline(never)]
fn compute() {
    let mut sum = 1_u64;
    for n in 0..4_000_u64 {
        sum = black_box(sum.wrapping_mul(n | 1));
    }
    black_box(sum);
}

/// Runs four tasks that compute in each poll.
fn computing_polls(runtime: &Runtime, spawn: Spawn, operations: u32) {
    runtime.block_on(async move {
        let tasks = (0..4).map(|_| {
            spawn.spawn(async move {
                for _ in 0..operations / 4 {
                    compute();
                    tokio::task::yield_now().await;
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("a task");
        }
    });
}
