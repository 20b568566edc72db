//! Throughput of a service with an engine running and without.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use rustix::time::ClockId;

use crate::burn::cpu_seconds;
use crate::drive::Engine;
use crate::table::{median, quantile};

const HALF_PAIR: Duration = Duration::from_millis(350);

const THREADS: usize = 2;

/// Handles one request: parses, looks up, sorts and prints.
fn request(number: u64) -> usize {
    let line = format!(
        r#"{{"id":{number},"name":"a customer","tags":["a","b","c"],"nested":{{"y":[3,1,2]}}}}"#
    );
    let value: serde_json::Value = serde_json::from_str(&line).expect("valid");
    let mut counts: HashMap<String, u64> = HashMap::new();
    for key in value.as_object().into_iter().flatten().map(|(key, _)| key) {
        *counts.entry(key.clone()).or_default() += number;
    }
    let mut sorted: Vec<_> = counts.into_iter().collect();
    sorted.sort();
    value.to_string().len() + sorted.len()
}

/// Returns requests per second of process CPU time, from the threads that count in `done`.
fn requests_per_cpu_second(done: &AtomicU64) -> f64 {
    let (start, before) = (cpu_seconds(ClockId::ProcessCPUTime), done.load(Relaxed));
    thread::sleep(HALF_PAIR);
    let requests = done.load(Relaxed) - before;
    requests as f64 / (cpu_seconds(ClockId::ProcessCPUTime) - start)
}

pub(crate) fn cell(engine: Engine, pairs: usize) -> Result<(), String> {
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let ratios: Result<Vec<f64>, String> = thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    let number = done.fetch_add(1, Relaxed);
                    std::hint::black_box(request(number));
                }
            });
        }
        let with = || {
            let running = engine.start(99)?;
            let speed = requests_per_cpu_second(&done);
            running.stop().map(|_| speed)
        };
        // The first start in a process costs more than later ones; `start` measures it.
        let first = with();
        let pair = |pair| match pair % 2 {
            0 => {
                let with = with()?;
                Ok(with / requests_per_cpu_second(&done))
            }
            _ => {
                let without = requests_per_cpu_second(&done);
                Ok(with()? / without)
            }
        };
        let ratios = first.and_then(|_| (0..pairs).map(pair).collect());
        stop.store(true, Relaxed);
        ratios
    });
    let ratios = ratios?;
    println!("median {}", median(ratios.iter().copied()));
    println!("low {}", quantile(ratios.iter().copied(), 1, 4));
    Ok(())
}
