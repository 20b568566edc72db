//! Services that are healthy for days, in virtual time: the default rules capture nothing.
//! `default_rules.rs` lists all healthy services, including those that are real processes.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use marple::config::Settings;
use marple::internals::agent::{ProcessHistory, ReplayOutcome, ReplayTiming, replay_restarts};
use marple::internals::base::{Bytes, Moment};
use marple::internals::model::{Limit, Vitals};

use super::cases::HOUR;

const DAY: f64 = 24.0 * HOUR;
const MINUTE: f64 = 60.0;

/// Resource usage of a service at one time.
#[derive(Clone, Copy, Debug)]
struct Load {
    /// Per cent of the memory limit.
    memory: f64,
    /// Per cent of the CPU limit.
    cpu: f64,
    tasks: f64,
    threads: f64,
    /// Per cent of the limit on descriptors.
    fds: f64,
    /// Milliseconds.
    lag: f64,
}

const IDLE: Load = Load { memory: 30.0, cpu: 5.0, tasks: 200.0, threads: 12.0, fds: 4.0, lag: 1.0 };

/// Returns a number between -`spread` and `spread` derived from `second`.
fn jitter(second: f64, spread: f64) -> f64 {
    let n = (second * 4.0) as u64;
    let mut z = n.wrapping_add(7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    spread * ((z >> 40) as f64 / f64::from(1_u32 << 23) - 1.0)
}

/// Returns 0 at the start and end of each `period`, and 1 in its middle.
fn wave(second: f64, period: f64) -> f64 {
    (second / period * std::f64::consts::TAU).cos().mul_add(-0.5, 0.5)
}

/// Returns the progress from `from` to `to` at `second`: 0 to 1.
fn ramp(second: f64, from: f64, to: f64) -> f64 {
    ((second - from) / (to - from)).clamp(0.0, 1.0)
}

fn vitals(second: f64, load: Load) -> Vitals {
    let limit = |value| Some(Limit { value, source: "healthy".into() });
    let memory = (load.memory + jitter(second, 0.5)).max(0.0) / 100.0;
    Vitals {
        at: Moment::from_nanos((second * 1e9) as u64),
        working_set: Some(Bytes((memory * (1_u64 << 30) as f64) as u64)),
        memory_limit: Some(Limit { value: Bytes(1 << 30), source: "healthy".into() }),
        cpu_cores: Some((load.cpu + jitter(second + 0.25, 3.0)).clamp(0.0, 100.0) / 50.0),
        cpu_limit: limit(2.0),
        cpu_wait: Some(0.0),
        tasks: Some((load.tasks * (1.0 + jitter(second, 0.05))) as u64),
        threads: Some(load.threads as u64),
        fds: Some((load.fds / 100.0 * 4096.0) as u64),
        fd_limit: Some(4096),
        lag: Some(Duration::from_secs_f64(load.lag / 1000.0 * (1.0 + jitter(second, 0.5)))),
        panics: Some(0),
        ..Vitals::default()
    }
}

/// Replays successive processes that each live for `life` seconds, one tick each `interval`
/// seconds. `load` takes the seconds since the start of the first.
fn run(lives: u32, life: f64, interval: f64, load: impl Fn(f64) -> Load) -> Vec<ReplayOutcome> {
    let start: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
    let load = &load;
    let processes = (0..lives).map(|n| {
        let from = f64::from(n) * life;
        let ticks = 0..(life / interval) as u32;
        let vitals = ticks.map(move |tick| {
            let second = from + f64::from(tick) * interval;
            vitals(second, load(second))
        });
        ProcessHistory {
            vitals: Box::new(vitals),
            wall: Box::new(move |now| start + SignedDuration::from_nanos(now.as_nanos() as i64)),
        }
    });
    replay_restarts(&Settings::default(), ReplayTiming::default(), processes)
}

fn assert_nothing_fired(outcomes: &[ReplayOutcome]) {
    let fired: Vec<_> = outcomes.iter().flat_map(|outcome| &outcome.fired).collect();
    assert!(fired.is_empty(), "{fired:#?}");
    assert!(outcomes.iter().all(|outcome| outcome.captures.is_empty()));
}

/// Returns a usual day of a service: little load at night, and a peak at noon.
fn usual_day(second: f64) -> Load {
    let busy = wave(second, DAY);
    Load {
        memory: 30.0 + 40.0 * busy,
        cpu: 5.0 + 80.0 * busy,
        tasks: 200.0 + 20_000.0 * busy,
        threads: 12.0 + 60.0 * busy,
        fds: 4.0 + 66.0 * busy,
        lag: 1.0 + 60.0 * busy,
    }
}

#[test]
fn daily_peak_causes_no_capture() {
    assert_nothing_fired(&run(1, 2.0 * DAY, 2.0, usual_day));
}

#[test]
fn weekly_growth_between_deploys_causes_no_capture() {
    // Memory grows by 4 % a day on top of the daily curve, until the deploy of the next week.
    let week = 7.0 * DAY;
    assert_nothing_fired(&run(2, week, 10.0, |second| {
        let day = usual_day(second);
        Load { memory: 25.0 + 4.0 * (second % week) / DAY + 20.0 * wave(second, DAY), ..day }
    }));
}

#[test]
fn nightly_batch_causes_no_capture() {
    // From two to three at night: eight seconds of all cores in each minute, a third more memory,
    // 64 more threads.
    assert_nothing_fired(&run(1, 2.0 * DAY, 1.0, |second| {
        let (hour, in_minute) = (second % DAY / HOUR, second % MINUTE);
        let day = usual_day(second);
        if !(2.0..3.0).contains(&hour) {
            return day;
        }
        let computes = in_minute < 8.0;
        Load {
            memory: day.memory + 35.0 * ramp(in_minute, 0.0, 20.0)
                - 35.0 * ramp(in_minute, 50.0, 55.0),
            cpu: if computes { 100.0 } else { day.cpu + 20.0 },
            threads: day.threads + 64.0,
            lag: if computes { 300.0 } else { day.lag },
            ..day
        }
    }));
}

#[test]
fn cache_warming_up_to_bound_causes_no_capture() {
    // A cache that fills by three quarters of its remaining space each hour, after a start of four
    // seconds on all cores.
    assert_nothing_fired(&run(1, DAY, 1.0, |second| Load {
        memory: 5.0 + 70.0 * (1.0 - 0.25_f64.powf(second / HOUR)),
        cpu: if second < 4.0 { 100.0 } else { 40.0 },
        ..IDLE
    }));
}

#[test]
fn deploys_cause_no_capture() {
    // A restart each two hours: memory and connections return to their previous level within a
    // minute.
    let life = 2.0 * HOUR;
    assert_nothing_fired(&run(12, life, 0.5, |second| {
        let process_age = second % life;
        let back = ramp(process_age, 2.0, MINUTE);
        let day = usual_day(second);
        Load {
            memory: 5.0 + (day.memory - 5.0) * back,
            cpu: if process_age < 8.0 { 100.0 } else { day.cpu },
            tasks: day.tasks * back,
            fds: 2.0 + (day.fds - 2.0) * back,
            lag: if process_age < 8.0 { 400.0 } else { day.lag },
            ..day
        }
    }));
}
