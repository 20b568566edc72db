//! Threads with known CPU usage: half in one function, three tenths in a second, a fifth in a
//! third.
//!
//! The next function and the time in it are drawn at random, so that no engine's period can align
//! with them. The thread's CPU clock is read at each change (about 0.5 us per 0.4 ms). These
//! readings are the ground truth for the samples.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Names of the functions that use CPU time.
pub(crate) const FUNCTIONS: [&str; 3] = ["burn_half", "burn_three_tenths", "burn_a_fifth"];

/// Name of the threads that use CPU time.
pub(crate) const THREAD: &str = "burner";

/// Number of calls between a thread's start and these functions.
pub(crate) const DEPTH: u32 = 16;

/// Mean time of one visit; a visit takes 0.5 to 1.5 times as long.
const MEAN_VISIT: Duration = Duration::from_micros(400);

/// CPU seconds burned in each of the functions.
pub(crate) type BurnedSeconds = [f64; 3];

pub(crate) fn cpu_seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[inline(always)]
fn spin(seed: u64, iterations: u64) {
    let mut state = seed;
    for _ in 0..iterations {
        state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed));
    }
}

#[inline(never)]
fn burn_half(iterations: u64) {
    spin(5, iterations);
}

#[inline(never)]
fn burn_three_tenths(iterations: u64) {
    spin(3, iterations);
}

#[inline(never)]
fn burn_a_fifth(iterations: u64) {
    spin(2, iterations);
}

/// Returns the number of loop iterations in a microsecond of CPU time.
fn iterations_per_micro() -> f64 {
    let best = (0..5).map(|_| {
        let start = cpu_seconds(ClockId::ThreadCPUTime);
        burn_half(1_000_000);
        cpu_seconds(ClockId::ThreadCPUTime) - start
    });
    1.0 / best.fold(f64::INFINITY, f64::min)
}

/// A random number generator, seeded differently in each thread and identically in each run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Returns a number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Recurses until the stack is as deep as a service's.
#[inline(never)]
fn recurse(depth: u32, work: &mut dyn FnMut()) {
    match depth {
        0 => work(),
        _ => recurse(black_box(depth - 1), work),
    }
    black_box(depth);
}

fn burn(random: &mut Random, iterations_per_micro: f64, stop: &AtomicBool) -> BurnedSeconds {
    let mut burned = [0.0; 3];
    let mut last = cpu_seconds(ClockId::ThreadCPUTime);
    while !stop.load(Relaxed) {
        let factor = 0.5 + random.below(1000) as f64 / 1000.0;
        let iterations = (MEAN_VISIT.as_micros() as f64 * factor * iterations_per_micro) as u64;
        let which = match random.below(10) {
            0..5 => 0,
            5..8 => 1,
            _ => 2,
        };
        match which {
            0 => burn_half(iterations),
            1 => burn_three_tenths(iterations),
            _ => burn_a_fifth(iterations),
        }
        let now = cpu_seconds(ClockId::ThreadCPUTime);
        burned[which] += now - last;
        last = now;
    }
    burned
}

/// Starts `threads` threads, calls `start`, lets them burn for `time` of wall time, and calls
/// `stop` with the time they burned. The threads end only after `stop` returns.
pub(crate) fn burn_during<S, R>(
    threads: usize,
    time: Duration,
    start: impl FnOnce() -> S,
    stop: impl FnOnce(S, BurnedSeconds) -> R,
) -> R {
    let speed = iterations_per_micro();
    let (go, done, end) =
        (Barrier::new(threads + 1), Barrier::new(threads + 1), Barrier::new(threads + 1));
    let stop_flag = AtomicBool::new(false);
    let total = std::sync::Mutex::new([0.0; 3]);
    thread::scope(|scope| {
        for number in 0..threads {
            let (go, done, end, over, total) = (&go, &done, &end, &stop_flag, &total);
            let body = move || {
                let mut random = Random(number as u64 * 7919 + 1);
                go.wait();
                let mut burned = [0.0; 3];
                recurse(DEPTH, &mut || burned = burn(&mut random, speed, over));
                let mut sum = total.lock().unwrap();
                sum.iter_mut().zip(burned).for_each(|(sum, part)| *sum += part);
                drop(sum);
                done.wait();
                end.wait();
            };
            thread::Builder::new().name(THREAD.into()).spawn_scoped(scope, body).unwrap();
        }
        let started = start();
        go.wait();
        thread::sleep(time);
        stop_flag.store(true, Relaxed);
        done.wait();
        let burned = *total.lock().unwrap();
        let result = stop(started, burned);
        end.wait();
        result
    })
}
