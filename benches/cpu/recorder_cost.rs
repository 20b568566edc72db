//! CPU time of the recording thread: fixed cost, and cost per sample.
//!
//! It is read from that thread's CPU clock, so it excludes the service's threads, starts and stops.
//! A wake-up costs CPU time even without samples; the cost per sample includes it.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use marple::internals::base::Hertz;
use marple::internals::cpu::Lookback;
use marple::internals::cpu::options::Options;
use marple::internals::model::CpuEngine;
use marple::internals::os::clock::cpu_timer::thread_cpu_time;

use crate::burn::{self, THREAD};
use crate::drive::Engine;

/// Default rate of the look-back.
pub(crate) const LOOKBACK_HZ: u32 = 19;

/// Rate at which the cost per sample is measured.
const SAMPLE_HZ: u32 = 1000;

const BUSY_THREADS: usize = 2;

/// Threads that wait until this value is dropped.
pub(crate) struct IdleThreads {
    senders: Vec<mpsc::Sender<()>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl IdleThreads {
    pub(crate) fn new(threads: usize) -> Self {
        let spawn = |_| {
            let (sender, receiver) = mpsc::channel::<()>();
            (sender, thread::spawn(move || receiver.recv().unwrap_or_default()))
        };
        let (senders, threads) = (0..threads).map(spawn).unzip();
        Self { senders, threads }
    }
}

impl Drop for IdleThreads {
    fn drop(&mut self) {
        self.senders.clear();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Returns CPU seconds of the recording thread. Retries, because the thread has no name before it
/// first runs.
fn recorder_cpu_seconds() -> Result<f64, String> {
    let started_at = Instant::now();
    loop {
        match wait_for_recorder_cpu_seconds() {
            Err(_) if started_at.elapsed() < Duration::from_secs(5) => {
                thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

fn wait_for_recorder_cpu_seconds() -> Result<f64, String> {
    let to_text = |error: std::io::Error| error.to_string();
    for task in std::fs::read_dir("/proc/self/task").map_err(to_text)? {
        let task = task.map_err(to_text)?;
        if std::fs::read_to_string(task.path().join("comm"))
            .is_ok_and(|name| name == "marple-cpu\n")
        {
            let tid = task.file_name().to_str().and_then(|tid| tid.parse().ok());
            return Ok(thread_cpu_time(tid.unwrap_or(0)).map_err(to_text)?.as_secs_f64());
        }
    }
    Err("no thread is named marple-cpu".to_owned())
}

fn cpu_engine(engine: Engine) -> Result<CpuEngine, String> {
    match engine {
        Engine::Perf => Ok(CpuEngine::Perf),
        Engine::Timer => Ok(CpuEngine::Timer),
        _ => Err(format!("{engine} has no recording thread")),
    }
}

/// Prints the CPU time of the look-back over `idle` and `busy` threads, in per cent of each core
/// that the busy threads use.
pub(crate) fn lookback(
    engine: Engine,
    idle: usize,
    busy: usize,
    time: Duration,
) -> Result<(), String> {
    let _idle = IdleThreads::new(idle);
    let start = || {
        let frequency = Hertz(LOOKBACK_HZ);
        let options = Options {
            engine: cpu_engine(engine)?,
            lookback_frequency: frequency,
            ..Options::default()
        };
        let lookback = Lookback::start(&options).map_err(|error| error.to_string())?;
        // Reading the names of the threads found belongs to the start.
        thread::sleep(Duration::from_millis(200));
        Ok::<_, String>((lookback, recorder_cpu_seconds()?, Instant::now()))
    };
    let percent = burn::burn_during(busy, time, start, |started, burned| {
        let (_lookback, before, started_at) = started?;
        let used = recorder_cpu_seconds()? - before;
        let burned: f64 = burned.iter().sum();
        let base = if busy == 0 { started_at.elapsed().as_secs_f64() } else { burned };
        Ok::<_, String>(used / base * 100.0)
    })?;
    println!("percent {percent}");
    Ok(())
}

/// Prints the cost of a sample including its share of wake-ups, and of a second of wake-ups alone.
pub(crate) fn sample(engine: Engine, time: Duration) -> Result<(), String> {
    let session = |busy: usize| {
        let start = || {
            let running = engine.start(SAMPLE_HZ)?;
            Ok::<_, String>((running, recorder_cpu_seconds()?, Instant::now()))
        };
        burn::burn_during(busy, time, start, |started, _| {
            let (running, before, started_at) = started?;
            let (used, seconds) =
                (recorder_cpu_seconds()? - before, started_at.elapsed().as_secs_f64());
            let report = running.stop()?.symbolize(SAMPLE_HZ);
            let busy_stacks = report.stacks.iter().filter(|stack| stack.thread == THREAD);
            let samples: u64 = busy_stacks.map(|stack| stack.samples).sum();
            Ok::<_, String>((used / seconds, samples as f64 / seconds))
        })
    };
    // The first session in a process reads tables that later ones reuse.
    session(BUSY_THREADS)?;
    let (wake_ups, _) = session(0)?;
    let (recorder, samples) = session(BUSY_THREADS)?;
    println!("wake-ups {}", wake_ups * 1e6);
    println!("sample {}", recorder * 1e6 / samples);
    Ok(())
}
