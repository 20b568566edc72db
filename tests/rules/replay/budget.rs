//! Tests that budgets and cooldowns leave the last captures before the end of the process, no
//! matter what happened before.

use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use marple::config::{BudgetSettings, Settings, load};
use marple::internals::agent::replay;
use marple::internals::agent::{ProcessHistory, ReplayOutcome, ReplayTiming, replay_restarts};
use marple::internals::base::{Bytes, Moment};
use marple::internals::model::{Limit, Metric, Refire, Rule, Vitals};

use super::cases::HOUR;
use super::trace::{Trace, TraceMetric, repeat};

const DAY: f64 = 24.0 * HOUR;

/// Repeats `shape` until `end`, then rises from `floor` to 100 % within `ramp` seconds.
fn then_oom(shape: &[(f64, f64)], end: f64, ramp: f64) -> Trace {
    let mut points = repeat(shape, end);
    points.push((end + ramp, 100.0));
    Trace::new("", TraceMetric::Memory, points)
}

/// Returns a rise from 60 % to `peak` and back within three minutes.
fn wave(peak: f64) -> [(f64, f64); 3] {
    [(0.0, 60.0), (90.0, peak), (180.0, 60.0)]
}

/// Returns the ticks of an agent between two times. Only the last two minutes of the trace have
/// every tick; before them there is one each three seconds, so that a day replays quickly.
fn ticks_between(trace: &Trace, from: f64, to: f64) -> impl Iterator<Item = Vitals> {
    const FINE_INTERVAL: f64 = 0.25;
    const COARSE_FACTOR: u32 = 12;
    let fine = trace.end_seconds() - 120.0;
    let (first, last) =
        ((from / FINE_INTERVAL) as u32, (to.min(trace.end_seconds()) / FINE_INTERVAL) as u32);
    let wanted = move |tick: &u32| {
        tick.is_multiple_of(COARSE_FACTOR) || f64::from(*tick) * FINE_INTERVAL >= fine
    };
    let ticks = (first..last + 1).filter(wanted);
    ticks.map(|tick| trace.tick(Duration::from_secs_f64(f64::from(tick) * FINE_INTERVAL)))
}

pub(crate) fn ticks(trace: &Trace) -> impl Iterator<Item = Vitals> {
    ticks_between(trace, 0.0, f64::INFINITY)
}

fn shipped_settings(file: &str) -> Settings {
    load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(file)).unwrap()
}

fn run(settings: &Settings, trace: &Trace) -> ReplayOutcome {
    replay(settings, ReplayTiming::default(), ticks(trace))
}

/// Returns the value at the last capture that was on disk.
pub(crate) fn last_captured_value(trace: &Trace, outcome: &ReplayOutcome) -> f64 {
    let last_capture = outcome.written_captures().last().expect("a capture");
    trace.value_at(last_capture.at.as_nanos() as f64 / 1e9)
}

#[test]
fn repeated_captures_leave_budget_for_last_before_oom() {
    let memory = || Rule { abs: Some(80.0), ..Rule::new(Metric::Memory) };
    let minute =
        |cooldown| Settings { rules: vec![Rule { cooldown, ..memory() }], ..Settings::default() };
    let rules = [
        ("memory alone", Settings { rules: vec![memory()], ..Settings::default() }),
        ("default rules", Settings::default()),
        ("cooldown 1m", minute(Duration::from_secs(60))),
        ("cooldown 0s", minute(Duration::ZERO)),
    ];
    println!(
        "{:<16} {:>6} {:>8} {:>10} {:>9} {:>8}",
        "rules", "peak", "to OOM", "incidents", "captures", "last"
    );
    let mut short = Vec::new();
    for (name, settings) in &rules {
        for (peak, ramp) in [
            (84.0, 600.0),
            (84.0, 30.0),
            (84.0, 8.0),
            (84.0, 5.0),
            (92.0, 600.0),
            (95.0, 30.0),
            (79.5, 5.0),
        ] {
            let trace = then_oom(&wave(peak), DAY, ramp);
            let outcome = run(settings, &trace);
            let (incidents, captures) = (outcome.incidents.len(), outcome.captures.len());
            let last = last_captured_value(&trace, &outcome);
            println!(
                "{name:<16} {peak:>4} % {ramp:>6} s {incidents:>10} {captures:>9} {last:>6.1} %"
            );
            let min_value = if ramp < 10.0 { 90.0 } else { 97.0 };
            // Without a cooldown only the budget limits the incidents.
            let max_captures = if *name == "cooldown 0s" { 26 } else { 15 };
            if last < min_value || incidents > max_captures {
                short.push((name, peak, ramp, outcome.fired));
            }
        }
    }
    assert!(short.is_empty(), "{short:#?}");
}

#[test]
fn repeated_captures_become_less_frequent() {
    // Without `clear` each wave is a separate incident.
    let rule = Rule { abs: Some(80.0), ..Rule::new(Metric::Memory) };
    let settings = Settings { rules: vec![rule], ..Settings::default() };
    let outcome = run(&settings, &Trace::new("", TraceMetric::Memory, repeat(&wave(84.0), DAY)));
    let opened: Vec<f64> =
        outcome.fired.iter().map(|(at, ..)| at.as_nanos() as f64 / 3.6e12).collect();
    assert!((4..=6).contains(&opened.len()), "{opened:?}");
    for pair in opened.windows(3) {
        assert!(pair[2] - pair[1] > 1.5 * (pair[1] - pair[0]), "{opened:?}");
    }
}

#[test]
fn oom_loop_is_captured_every_few_hours() {
    // Each process lives for ten minutes.
    let life = Trace::new("", TraceMetric::Memory, vec![(0.0, 40.0), (600.0, 100.0)]);
    let settings = Settings::default();
    let start: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
    let processes = (0..144_u64).map(|n| {
        let offset = Duration::from_secs(600 * n);
        let vitals = ticks(&life).map(move |vitals| Vitals { at: vitals.at + offset, ..vitals });
        ProcessHistory {
            vitals: Box::new(vitals),
            wall: Box::new(move |now| start + SignedDuration::from_nanos(now.as_nanos() as i64)),
        }
    });
    let outcomes = replay_restarts(&settings, ReplayTiming::default(), processes);
    let captured: Vec<usize> = (0..144).filter(|&at| !outcomes[at].incidents.is_empty()).collect();
    assert!((5..=12).contains(&captured.len()), "{captured:?}");
    assert!(captured.windows(2).all(|pair| pair[1] - pair[0] <= 36), "{captured:?}");
    assert!(*captured.last().unwrap() >= 144 - 36, "{captured:?}");
    for at in captured {
        let outcome = &outcomes[at];
        let last_capture = outcome.written_captures().last().unwrap();
        let value = life.value_at((last_capture.at.as_nanos() as f64 / 1e9) - 600.0 * at as f64);
        assert!(value >= 97.0, "process {at}: {value}");
    }
}

/// Returns vitals of memory and of three gauges that are above 10 for three seconds in each minute.
fn with_noisy_gauges(memory: &Trace) -> impl Iterator<Item = Vitals> {
    ticks(memory).map(|vitals| {
        let second = vitals.at.as_nanos() / 1_000_000_000;
        let noise = |offset| if (second + offset) % 60 < 3 { 20.0 } else { 0.0 };
        let gauges = ["a", "b", "c"].into_iter().zip([0, 20, 40]);
        let gauges = gauges.map(|(name, offset)| (name.into(), noise(offset))).collect();
        Vitals { gauges, ..vitals }
    })
}

#[test]
fn noisy_rules_do_not_starve_another_rule() {
    let noisy = |name: &str, again| Rule {
        abs: Some(10.0),
        cooldown: Duration::from_secs(60),
        duration: Duration::from_secs(1),
        refire: again,
        ..Rule::new(Metric::Gauge(name.into()))
    };
    let memory = |critical| Rule {
        abs: Some(80.0),
        clear: Some(70.0),
        critical,
        ..Rule::new(Metric::Memory)
    };
    for (again, ramp, critical) in [
        (Refire::OnWorsening, 600.0, None),
        (Refire::AfterCooldown, 600.0, None),
        (Refire::AfterCooldown, 600.0, Some(90.0)),
        (Refire::AfterCooldown, 8.0, None),
    ] {
        let mut points = vec![(0.0, 60.0), (20.0 * HOUR, 60.0)];
        // The fourth rule has an incident in the morning and another at noon; the process runs out
        // of memory at night.
        points.splice(1..1, [(5.0 * HOUR, 60.0), (5.1 * HOUR, 84.0), (5.2 * HOUR, 60.0)]);
        points.splice(4..4, [(9.0 * HOUR, 60.0), (9.1 * HOUR, 84.0), (9.2 * HOUR, 60.0)]);
        points.push((20.0 * HOUR + ramp, 100.0));
        let trace = Trace::new("", TraceMetric::Memory, points);
        let settings = Settings {
            rules: vec![noisy("a", again), noisy("b", again), noisy("c", again), memory(critical)],
            budget: BudgetSettings { join_window: Duration::ZERO, ..BudgetSettings::default() },
            ..Settings::default()
        };
        let outcome = replay(&settings, ReplayTiming::default(), with_noisy_gauges(&trace));
        let of_memory: Vec<f64> = outcome
            .fired
            .iter()
            .filter(|(_, rule, _)| rule == "memory")
            .map(|(at, ..)| at.as_nanos() as f64 / 3.6e12)
            .collect();
        let hours: Vec<u64> = of_memory.iter().map(|hour| *hour as u64).collect();
        assert!(hours.contains(&5) && hours.contains(&9), "{again:?} {of_memory:?}");
        let last = last_captured_value(&trace, &outcome);
        assert!(last >= if ramp < 10.0 { 90.0 } else { 97.0 }, "{again:?} {ramp}: {last}");
        assert!(outcome.incidents.len() <= 24 + 4, "{:?}", outcome.incidents);
    }
}

#[test]
fn captures_of_other_rules_do_not_exhaust_incident_limit() {
    // Another rule fires every second and shares the incident.
    let noisy = Rule {
        abs: Some(10.0),
        cooldown: Duration::from_secs(1),
        duration: Duration::from_secs(1),
        refire: Refire::AfterCooldown,
        ..Rule::new(Metric::Gauge("a".into()))
    };
    let memory = Rule { abs: Some(80.0), ..Rule::new(Metric::Memory) };
    let settings = Settings { rules: vec![noisy, memory], ..Settings::default() };
    let trace =
        Trace::new("", TraceMetric::Memory, vec![(0.0, 60.0), (600.0, 60.0), (1200.0, 100.0)]);
    let noise = trace
        .ticks(settings.interval)
        .map(|vitals| Vitals { gauges: vec![("a".into(), 20.0)], ..vitals });
    let outcome = replay(&settings, ReplayTiming::default(), noise);
    let mut of_memory = outcome.fired.iter().filter(|(_, rule, _)| rule == "memory");
    let at = of_memory.next_back().expect("it fired").0;
    assert!(trace.value_at(at.as_nanos() as f64 / 1e9) >= 97.0, "{at:?}");
}

#[test]
fn memory_growth_is_captured_up_to_soft_limit() {
    // The limit is `memory.high`: the kernel throttles the process there and does not kill it.
    let trace = Trace::new(
        "",
        TraceMetric::Memory,
        vec![(0.0, 40.0), (HOUR, 99.5), (2.0 * HOUR, 99.5), (2.5 * HOUR, 60.0), (DAY, 60.0)],
    );
    let vitals = ticks(&trace).map(|vitals| Vitals {
        memory_limit: Some(Limit { value: Bytes(1 << 30), source: "memory.high".into() }),
        memory_high: Some(u64::from(vitals.at > Moment::from_nanos(3_500_000_000_000))),
        ..vitals
    });
    let outcome = replay(&Settings::default(), ReplayTiming::default(), vitals);
    assert_eq!(outcome.incidents.len(), 1, "{:?}", outcome.fired);
    assert!(outcome.captures.len() <= 10, "{:?}", outcome.fired);
    assert!(last_captured_value(&trace, &outcome) >= 97.0);
}

#[test]
fn page_cache_filling_limit_opens_no_memory_incident() {
    // The cgroup's charge includes page cache that the kernel reclaims; the working set does not.
    let trace =
        Trace::new("", TraceMetric::Memory, vec![(0.0, 45.0), (2.0 * HOUR, 50.0)]).with_noise(1.0);
    let vitals = ticks(&trace).map(|vitals| Vitals {
        rss: vitals.working_set,
        memory_max: Some(3),
        ..vitals
    });
    let outcome = replay(&Settings::default(), ReplayTiming::default(), vitals);
    assert_eq!((outcome.incidents.len(), outcome.captures.len()), (0, 0), "{:?}", outcome.fired);
}

/// Returns a wall clock with steps. Each row is an hour and the offset in hours from then on.
fn stepping_clock(steps: &'static [(u64, i64)]) -> Box<dyn Fn(Moment) -> Timestamp> {
    let start: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
    Box::new(move |now| {
        let hours = now.as_nanos() / 3_600_000_000_000;
        let step = steps.iter().rfind(|(from, _)| *from <= hours).map_or(0, |(_, step)| *step);
        start + SignedDuration::from_hours(step) + SignedDuration::from_nanos(now.as_nanos() as i64)
    })
}

#[test]
fn wall_clock_steps_change_no_decision() {
    // 84 % every three minutes for 20 hours with a restart every two hours, and then out of memory.
    let settings = shipped_settings("minimal.toml");
    let trace = then_oom(&wave(84.0), 20.0 * HOUR, 600.0);
    let run = |steps: &'static [(u64, i64)]| {
        let processes = (0..10_u64).map(|n| {
            let from = n as f64 * 7200.0;
            let to = if n == 9 { f64::INFINITY } else { from + 7199.0 };
            let lives = ticks_between(&trace, from, to);
            ProcessHistory { vitals: Box::new(lives), wall: stepping_clock(steps) }
        });
        let outcomes = replay_restarts(&settings, ReplayTiming::default(), processes);
        let fired =
            |outcome: &ReplayOutcome| outcome.fired.iter().map(|fire| fire.0).collect::<Vec<_>>();
        let fired: Vec<Moment> = outcomes.iter().flat_map(fired).collect();
        (fired, last_captured_value(&trace, outcomes.last().unwrap()))
    };
    let (unchanged, value) = run(&[]);
    assert!(value >= 97.0, "{value}");
    assert!(unchanged.len() <= 20, "{unchanged:?}");
    for steps in [
        &[(3, 24 * 365)][..],
        &[(3, -24 * 365)],
        // Steps at a restart.
        &[(4, 48)],
        &[(4, -48)],
        &[(2, 24 * 400), (5, -24 * 400), (8, 30), (9, 0), (13, -5), (16, 5)],
    ] {
        assert_eq!(run(steps), (unchanged.clone(), value), "{steps:?}");
    }
}
