//! Sampling of short-lived threads, with and without thread-start notifications.

use std::time::{Duration, Instant};
use std::{hint, thread};

use marple::trace::Hooks;
use tokio::runtime::{Builder, Runtime};

use crate::drive::{Engine, Recorded};

const HERTZ: u32 = 99;

/// Threads of each kind; the kinds alternate.
const ROUNDS: u64 = 30;

/// CPU time of each thread.
const THREAD_CPU_TIME: Duration = Duration::from_millis(35);

pub(crate) fn cell(engine: Engine) -> Result<(), String> {
    let (mut with_notifications, mut without_notifications) = (0.0, 0.0);
    for round in 0..ROUNDS {
        with_notifications += samples(engine, Hooks::new().notify_thread_starts(), round)?;
        without_notifications += samples(engine, Hooks::new(), round)?;
    }
    let expected = ROUNDS as f64 * THREAD_CPU_TIME.as_secs_f64() * f64::from(HERTZ);
    println!("notified {}", with_notifications / expected);
    println!("not-notified {}", without_notifications / expected);
    Ok(())
}

/// Returns the samples of one blocking thread that starts some time after a wake-up of the
/// recorder.
fn samples(engine: Engine, hooks: Hooks, round: u64) -> Result<f64, String> {
    let runtime = runtime(hooks).map_err(|error| error.to_string())?;
    let running = engine.start(HERTZ)?;
    thread::sleep(Duration::from_millis(100 + round * 7 % 40));
    let joined = runtime.block_on(runtime.spawn_blocking(|| {
        let start = Instant::now();
        while start.elapsed() < THREAD_CPU_TIME {
            hint::spin_loop();
        }
    }));
    joined.map_err(|error| error.to_string())?;
    match running.stop()? {
        Recorded::Marple(profile) => Ok(profile.total("samples").unwrap_or(0) as f64),
        Recorded::Nothing | Recorded::Peer(_) => {
            Err(format!("{engine} is not an engine of marple"))
        }
    }
}

fn runtime(hooks: Hooks) -> std::io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    hooks.apply(&mut builder);
    builder.worker_threads(1).build()
}
