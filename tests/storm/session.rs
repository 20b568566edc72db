//! Main thread of the stress process: starts the workers, runs the sessions and prints the progress
//! of everything.

use std::panic;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::drive::{Engine, Recorded};
use crate::watch::say;
use crate::workers::{self, Counters};

const HERTZ: u32 = 1000;

/// Time between two progress lines.
const BEAT: Duration = Duration::from_millis(100);

/// Number of sessions in a row while other threads run.
const CYCLES: u64 = 100;

/// Runs a stress process. It has three parts of `seconds` each: one session; alternating turns with
/// and without a session; sessions started and stopped in a row.
pub(crate) fn storm(engine: Engine, seconds: u64) {
    // Panics are part of the load; their messages are noise.
    panic::set_hook(Box::new(|_| {}));
    match engine.start(HERTZ) {
        Ok(running) => drop(running),
        Err(why) => return say(&format!("refused {why}")),
    }
    let (over, counters) = (AtomicBool::new(false), Counters::default());
    let part = Duration::from_secs(seconds);
    thread::scope(|scope| {
        for (name, work) in workers::ALL {
            let (over, counters) = (&over, &counters);
            let body = move || work(over, counters);
            thread::Builder::new().name((*name).into()).spawn_scoped(scope, body).unwrap();
        }
        until_all_have_moved(&counters);
        counters.begin_anew();
        let mut sampled = one_session(engine, part, &counters);
        in_turn(engine, part, &counters);
        let (cycles, in_cycles) = many_sessions(engine, part, &counters);
        sampled += in_cycles;
        until_all_have_moved(&counters);
        over.store(true, Relaxed);
        say(&format!("told {cycles} sessions in {seconds} s"));
        say(&format!("count cycles={cycles}"));
        say(&format!("count samples={sampled}"));
    });
    say(&counters.line());
    for (name, count) in counters.held() {
        say(&format!("count {name}={count}"));
    }
    say(&format!("told {} waits cut short", counters.interrupted.load(Relaxed)));
    say("done");
}

/// Waits without a limit, because a machine may have other work; the watching process ends a run
/// that makes no progress.
fn until_all_have_moved(counters: &Counters) {
    while !counters.all_have_moved() {
        thread::sleep(BEAT);
        say(&counters.line());
    }
}

fn one_session(engine: Engine, time: Duration, counters: &Counters) -> u64 {
    let running = engine.start(HERTZ).unwrap_or_else(|why| panic!("{why}"));
    beats(time, counters);
    let recorded = running.stop().unwrap_or_else(|why| panic!("{why}"));
    let taken = samples(&recorded);
    say(&format!("told {taken} samples in one session"));
    for remark in recorded.named(HERTZ).remarks {
        say(&format!("told {}", remark.replace('\n', " ")));
    }
    taken
}

fn beats(time: Duration, counters: &Counters) {
    let start = Instant::now();
    while start.elapsed() < time {
        thread::sleep(BEAT.min(time));
        say(&counters.line());
    }
}

/// Measures the progress of the workers with and without a session, in turns of at most a second.
/// The order is with, without, without, with, so that load from neighbours affects both alike.
fn in_turn(engine: Engine, time: Duration, counters: &Counters) {
    let fours = (time.as_secs() as u32).div_ceil(4).max(1);
    for turn in 0..4 * fours {
        let is_with = matches!(turn % 4, 0 | 3);
        let running = is_with.then(|| engine.start(HERTZ).unwrap_or_else(|why| panic!("{why}")));
        let (before, cpu) = (counters.turns(), cpu_seconds());
        beats(time / (4 * fours), counters);
        let (after, cpu) = (counters.turns(), cpu_seconds() - cpu);
        drop(running);
        let gone = before
            .iter()
            .zip(&after)
            .map(|((name, before), (_, after))| format!(" {name}={}", after - before));
        let kind = if is_with { "with" } else { "without" };
        say(&format!("{kind} {cpu}{}", gone.collect::<String>()));
    }
}

/// Runs sessions of 0 to 8 ms; every other one is dropped instead of stopped.
fn many_sessions(engine: Engine, time: Duration, counters: &Counters) -> (u64, u64) {
    let (start, mut beat) = (Instant::now(), Instant::now());
    let (mut cycles, mut taken) = (0, 0);
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
            taken += samples(&running.stop().unwrap_or_else(|why| panic!("{why}")));
        }
        cycles += 1;
        if beat.elapsed() > BEAT {
            beat = Instant::now();
            say(&counters.line());
        }
    }
    (cycles, taken)
}

fn samples(recorded: &Recorded) -> u64 {
    match recorded {
        Recorded::Nothing => 0,
        Recorded::Marple(profile) => profile.total("samples").unwrap_or(0) as u64,
        Recorded::Peer(report) => report.data.values().map(|&count| count as u64).sum(),
    }
}

/// Runs a stress process of starts and stops. Threads are always running, so that signals are
/// pending when a session ends. `STORM_CYCLES` sets the number of sessions.
pub(crate) fn starts_and_stops(engine: Engine) {
    let cycles = std::env::var("STORM_CYCLES").ok().and_then(|text| text.parse().ok());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let mut taken = 0;
        for cycle in 1..=cycles.unwrap_or(CYCLES) {
            let running = match engine.start(HERTZ) {
                Ok(running) => running,
                Err(why) => {
                    say(&format!("refused {why}"));
                    break;
                }
            };
            thread::sleep(Duration::from_millis(cycle % 12));
            match cycle % 2 {
                0 => drop(running),
                _ => taken += samples(&running.stop().unwrap_or_else(|why| panic!("{why}"))),
            }
            say(&format!("at cycles={cycle}"));
        }
        over.store(true, Relaxed);
        say(&format!("count samples={taken}"));
    });
    say("done");
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
