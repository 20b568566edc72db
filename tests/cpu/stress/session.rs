//! Main thread of the stress process: starts the workers, runs the sessions and prints the progress
//! of everything.

use std::panic;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use super::watch::print_line;
use super::workers::{self, Counters};
use crate::support::drive::{Engine, Recorded};

const HERTZ: u32 = 1000;

/// Time between two progress lines.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Number of sessions in a row while other threads run.
const CYCLES: u64 = 100;

/// Runs a stress process. It has three parts of `seconds` each: one session; alternating turns with
/// and without a session; sessions started and stopped in a row.
pub(crate) fn run_stress(engine: Engine, seconds: u64) {
    // Panics are part of the load; their messages are noise.
    panic::set_hook(Box::new(|_| {}));
    match engine.start(HERTZ) {
        Ok(running) => drop(running),
        Err(why) => return print_line(&format!("refused {why}")),
    }
    let (stop, counters) = (AtomicBool::new(false), Counters::default());
    let part = Duration::from_secs(seconds);
    thread::scope(|scope| {
        for (name, work) in workers::WORKERS {
            let (stop, counters) = (&stop, &counters);
            let body = move || work(stop, counters);
            thread::Builder::new().name((*name).into()).spawn_scoped(scope, body).unwrap();
        }
        wait_for_progress_of_all(&counters);
        counters.reset();
        let mut sampled = one_session(engine, part, &counters);
        alternate_sessions(engine, part, &counters);
        let (cycles, in_cycles) = cycle_sessions(engine, part, &counters);
        sampled += in_cycles;
        wait_for_progress_of_all(&counters);
        stop.store(true, Relaxed);
        print_line(&format!("told {cycles} sessions in {seconds} s"));
        print_line(&format!("count cycles={cycles}"));
        print_line(&format!("count samples={sampled}"));
    });
    print_line(&counters.progress_line());
    for (name, count) in counters.violations() {
        print_line(&format!("count {name}={count}"));
    }
    print_line(&format!("told {} waits cut short", counters.interrupted.load(Relaxed)));
    print_line("done");
}

/// Waits without a limit, because a machine may have other work; the watching process ends a run
/// that makes no progress.
fn wait_for_progress_of_all(counters: &Counters) {
    while !counters.all_progressed() {
        thread::sleep(PROGRESS_INTERVAL);
        print_line(&counters.progress_line());
    }
}

fn one_session(engine: Engine, time: Duration, counters: &Counters) -> u64 {
    let running = engine.start(HERTZ).unwrap_or_else(|why| panic!("{why}"));
    sleep_with_progress(time, counters);
    let recorded = running.stop().unwrap_or_else(|why| panic!("{why}"));
    let sampled = sample_count(&recorded);
    print_line(&format!("told {sampled} samples in one session"));
    for remark in recorded.symbolize(HERTZ).remarks {
        print_line(&format!("told {}", remark.replace('\n', " ")));
    }
    sampled
}

fn sleep_with_progress(time: Duration, counters: &Counters) {
    let start = Instant::now();
    while start.elapsed() < time {
        thread::sleep(PROGRESS_INTERVAL.min(time));
        print_line(&counters.progress_line());
    }
}

/// Measures the progress of the workers with and without a session, in turns of at most a second.
/// The order is with, without, without, with, so that load from neighbours affects both alike.
fn alternate_sessions(engine: Engine, time: Duration, counters: &Counters) {
    let fours = (time.as_secs() as u32).div_ceil(4).max(1);
    for turn in 0..4 * fours {
        let is_with = matches!(turn % 4, 0 | 3);
        let running = is_with.then(|| engine.start(HERTZ).unwrap_or_else(|why| panic!("{why}")));
        let (before, cpu) = (counters.iterations(), cpu_seconds());
        sleep_with_progress(time / (4 * fours), counters);
        let (after, cpu) = (counters.iterations(), cpu_seconds() - cpu);
        drop(running);
        let progress = before
            .iter()
            .zip(&after)
            .map(|((name, before), (_, after))| format!(" {name}={}", after - before));
        let kind = if is_with { "with" } else { "without" };
        print_line(&format!("{kind} {cpu}{}", progress.collect::<String>()));
    }
}

/// Runs sessions of 0 to 8 ms; every other one is dropped instead of stopped.
fn cycle_sessions(engine: Engine, time: Duration, counters: &Counters) -> (u64, u64) {
    let (start, mut beat) = (Instant::now(), Instant::now());
    let (mut cycles, mut sampled) = (0, 0);
    while start.elapsed() < time {
        let running = engine.start(HERTZ).unwrap_or_else(|why| panic!("{why}"));
        match cycles % 4 {
            0 => {}
            1 => thread::yield_now(),
            2 => thread::sleep(Duration::from_millis(1)),
            _ => thread::sleep(Duration::from_millis(8)),
        }
        if cycles % 2 == 0 {
            drop(running);
        } else {
            sampled += sample_count(&running.stop().unwrap_or_else(|why| panic!("{why}")));
        }
        cycles += 1;
        if beat.elapsed() > PROGRESS_INTERVAL {
            beat = Instant::now();
            print_line(&counters.progress_line());
        }
    }
    (cycles, sampled)
}

fn sample_count(recorded: &Recorded) -> u64 {
    match recorded {
        Recorded::Nothing => 0,
        Recorded::Marple(profile) => profile.total("samples").unwrap_or(0) as u64,
        Recorded::Peer(report) => report.data.values().map(|&count| count as u64).sum(),
    }
}

/// Runs a stress process of starts and stops. Threads are always running, so that signals are
/// pending when a session ends. `STRESS_CYCLES` sets the number of sessions.
pub(crate) fn starts_and_stops(engine: Engine) {
    let cycles = std::env::var("STRESS_CYCLES").ok().and_then(|text| text.parse().ok());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let mut sampled = 0;
        for cycle in 1..=cycles.unwrap_or(CYCLES) {
            let running = match engine.start(HERTZ) {
                Ok(running) => running,
                Err(why) => {
                    print_line(&format!("refused {why}"));
                    break;
                }
            };
            thread::sleep(Duration::from_millis(cycle % 12));
            match cycle % 2 {
                0 => drop(running),
                _ => sampled += sample_count(&running.stop().unwrap_or_else(|why| panic!("{why}"))),
            }
            print_line(&format!("at cycles={cycle}"));
        }
        stop.store(true, Relaxed);
        print_line(&format!("count samples={sampled}"));
    });
    print_line("done");
}

/// Returns the CPU time of this process and of the children it has waited for.
fn cpu_seconds() -> f64 {
    let of = |who| {
        // SAFETY: `getrusage` fills the whole structure it is given.
        let usage = unsafe {
            let mut usage = std::mem::zeroed::<libc::rusage>();
            libc::getrusage(who, &raw mut usage);
            usage
        };
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        seconds(usage.ru_utime) + seconds(usage.ru_stime)
    };
    of(libc::RUSAGE_SELF) + of(libc::RUSAGE_CHILDREN)
}
