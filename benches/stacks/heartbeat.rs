//! A heartbeat during a dump: a task that sleeps for 1 ms in a loop. `benches/peers` uses it, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

/// Number of beats, and the longest gap between two since the last reading, in microseconds.
#[derive(Default)]
pub(crate) struct Heartbeat {
    beats: AtomicU64,
    longest_gap: AtomicU64,
}

impl Heartbeat {
    pub(crate) fn start(runtime: &Runtime) -> Arc<Self> {
        let heartbeat = Arc::new(Self::default());
        let counters = Arc::clone(&heartbeat);
        runtime.spawn(async move {
            let mut last = Instant::now();
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                counters.beats.fetch_add(1, Ordering::Relaxed);
                let gap = last.elapsed().as_micros() as u64;
                counters.longest_gap.fetch_max(gap, Ordering::Relaxed);
                last = Instant::now();
            }
        });
        heartbeat
    }

    /// Returns the longest gap in milliseconds and resets it.
    pub(crate) fn take_longest_gap(&self) -> f64 {
        self.longest_gap.swap(0, Ordering::Relaxed) as f64 / 1000.0
    }

    /// Returns the number of beats so far.
    pub(crate) fn count(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// Returns the number of beats in the next half second.
    pub(crate) fn beats_in_half_second(&self) -> f64 {
        let before = self.count();
        std::thread::sleep(Duration::from_millis(500));
        (self.count() - before) as f64
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
