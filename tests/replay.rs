//! What the default rules do with histories of memory, CPU and lag, in virtual time: the real rules,
//! budgets and incidents, and a capture thread that takes half a second a file. Beside it, what other
//! systems decide on the same.
//!
//! `cargo test --test replay -- --nocapture` prints the tables. `MARPLE_TRACE=file.csv` replays a file
//! of `seconds,percent` of memory with `MARPLE_RULES=file.toml`, or the default rules.

use std::env;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use marple::agent::{Pace, ReplayOutcome, replay};
use marple::base::{Moment, Percent};
use marple::config::{BudgetSettings, Settings, load};
use marple::model::{CaptureKind, Metric, Mode, Rule, Vitals};

#[path = "replay/peers.rs"]
mod peers;
#[path = "replay/trace.rs"]
mod trace;

use peers::Policy;
use trace::{Of, Trace, repeat};

const HOUR: f64 = 3600.0;

fn run(trace: &Trace) -> ReplayOutcome {
    let settings = Settings::default();
    replay(&settings, Pace::default(), trace.ticks(settings.interval))
}

/// How many captures there were, and the value at the last that was finished.
fn summary(trace: &Trace, outcome: &ReplayOutcome) -> (usize, Option<f64>) {
    let last = outcome.written().last();
    (outcome.taken.len(), last.map(|taken| trace.at(taken.at.as_nanos() as f64 / 1e9)))
}

fn shown((captures, last): (usize, Option<f64>)) -> String {
    match last {
        Some(last) => format!("{captures} @ {last:.0} %"),
        None if captures == 0 => "0".to_owned(),
        None => format!("{captures}, none finished"),
    }
}

fn slow_leak() -> Trace {
    Trace::new("slow leak to OOM, 6 h", Of::Memory, vec![(0.0, 30.0), (6.0 * HOUR, 100.0)])
        .noisy(0.5)
}

fn fast_leak() -> Trace {
    let points = vec![(0.0, 40.0), (60.0, 40.0), (65.0, 100.0)];
    Trace::new("40 -> 100 % in 5 s", Of::Memory, points).noisy(0.2)
}

fn plateau() -> Trace {
    let points = vec![(0.0, 40.0), (600.0, 85.0), (6.0 * HOUR, 85.0)];
    Trace::new("plateau at 85 %, 6 h", Of::Memory, points).noisy(1.0)
}

fn flapping() -> Trace {
    let points = repeat(&[(0.0, 65.0), (10.0, 95.0), (20.0, 65.0)], HOUR);
    Trace::new("flapping 65-95 %, 1 h", Of::Memory, points)
}

fn spikes() -> Trace {
    let shape =
        [(0.0, 40.0), (145.0, 40.0), (145.5, 72.0), (149.0, 72.0), (149.5, 40.0), (150.0, 40.0)];
    Trace::new("benign spikes to 72 %", Of::Memory, repeat(&shape, HOUR))
}

#[test]
fn the_table_of_the_goals_is_met() {
    println!(
        "{:<24} {:>16} {:>16} {:>16} {:>16} {:>16}  goal",
        "trace", "holmes", "RisingWave", "TiDB", "autopprof", "marple"
    );
    type Goal = (&'static str, fn(usize, Option<f64>) -> bool);
    let rows: [(Trace, Goal); 5] = [
        (
            slow_leak(),
            ("<= 10, last >= 98 %", |n, last| n <= 10 && last.is_some_and(|it| it >= 98.0)),
        ),
        (
            fast_leak(),
            (">= 2, last >= 80 %", |n, last| n >= 2 && last.is_some_and(|it| it >= 80.0)),
        ),
        (plateau(), ("1", |n, _| n == 1)),
        (flapping(), ("<= 4", |n, _| (1..=4).contains(&n))),
        (spikes(), ("0", |n, _| n == 0)),
    ];
    let mut short = Vec::new();
    for (trace, (goal, met)) in rows {
        let others: [&mut dyn Policy; 4] = [
            &mut peers::Holmes::default(),
            &mut peers::RisingWave::default(),
            &mut peers::TiDb::default(),
            &mut peers::Autopprof::default(),
        ];
        let others = others.map(|policy| shown(peers::run(policy, &trace)));
        let (captures, last) = summary(&trace, &run(&trace));
        let met = met(captures, last);
        let [holmes, rising_wave, tidb, autopprof] = others;
        println!(
            "{:<24} {holmes:>16} {rising_wave:>16} {tidb:>16} {autopprof:>16} {:>16}  {goal}: {}",
            trace.name,
            shown((captures, last)),
            if met { "pass" } else { "short" }
        );
        if !met {
            short.push(trace.name);
        }
    }
    assert!(short.is_empty(), "{short:?}");
}

/// A trace, how many captures it may have, and the least the last must be at.
type Case = (Trace, RangeInclusive<usize>, f64);

fn memory(name: &str, points: Vec<(f64, f64)>) -> Trace {
    Trace::new(name, Of::Memory, points)
}

fn benign() -> Vec<Case> {
    let day = 24.0 * HOUR;
    let cycle = |peak: f64| {
        let wave = |n: usize| (1.0 - (n as f64 / 48.0 * std::f64::consts::TAU).cos()) / 2.0;
        (0..=96).map(|n| (n as f64 * day / 48.0, 30.0 + (peak - 30.0) * wave(n))).collect()
    };
    let steps = |last: f64| {
        let levels = [30.0, 45.0, 60.0, last];
        let step = |(n, level): (usize, &f64)| {
            [(n as f64 * HOUR, *level), ((n + 1) as f64 * HOUR - 0.1, *level)]
        };
        levels.iter().enumerate().flat_map(step).collect()
    };
    vec![
        (memory("idle at 2 %", vec![(0.0, 2.0), (HOUR, 2.0)]).noisy(1.0), 0..=0, 0.0),
        (
            memory(
                "collector, 45-78 % in 30 s",
                repeat(&[(0.0, 45.0), (29.0, 78.0), (30.0, 45.0)], HOUR),
            ),
            0..=0,
            0.0,
        ),
        (
            memory(
                "collector, 50-79 % in 5 s",
                repeat(&[(0.0, 50.0), (4.5, 79.0), (5.0, 50.0)], HOUR),
            ),
            0..=1,
            0.0,
        ),
        (
            memory("slow start", vec![(0.0, 2.0), (120.0, 70.0), (HOUR, 72.0)]).noisy(1.0),
            0..=0,
            0.0,
        ),
        (
            memory("quick start", vec![(0.0, 2.0), (5.0, 2.0), (9.0, 74.0), (HOUR, 70.0)])
                .noisy(0.5),
            0..=0,
            0.0,
        ),
        (memory("days with a peak of 72 %", cycle(72.0)).noisy(1.5), 0..=0, 0.0),
        (memory("deploys up to 78 %", steps(78.0)).noisy(0.5), 0..=0, 0.0),
        (
            Trace::new(
                "CPU: 5 s at 100 % a minute",
                Of::Cpu,
                repeat(
                    &[(0.0, 20.0), (54.5, 20.0), (55.0, 100.0), (59.5, 100.0), (60.0, 20.0)],
                    HOUR,
                ),
            ),
            0..=0,
            0.0,
        ),
        (Trace::new("CPU: idle", Of::Cpu, vec![(0.0, 2.0), (HOUR, 2.0)]).noisy(1.0), 0..=0, 0.0),
        (
            Trace::new(
                "lag: 400 ms now and then",
                Of::Lag,
                repeat(&[(0.0, 0.0), (9.0, 0.0), (9.5, 0.4), (10.0, 0.0)], HOUR),
            ),
            0..=0,
            0.0,
        ),
    ]
}

fn troubled() -> Vec<Case> {
    let day = 24.0 * HOUR;
    let cycle = |peak: f64| {
        let wave = |n: usize| (1.0 - (n as f64 / 48.0 * std::f64::consts::TAU).cos()) / 2.0;
        (0..=96).map(|n| (n as f64 * day / 48.0, 30.0 + (peak - 30.0) * wave(n))).collect()
    };
    let stairs: Vec<(f64, f64)> = (0..=35)
        .flat_map(|n| {
            let (start, level) = (f64::from(n) * 600.0, 30.0 + 2.0 * f64::from(n));
            [(start, level), (start + 599.0, level)]
        })
        .collect();
    let breathing = {
        let tooth = |n: u32| {
            let (start, floor) = (f64::from(n) * 60.0, 30.0 + 0.25 * f64::from(n));
            [(start, floor), (start + 59.0, floor + 10.0)]
        };
        (0..=240).flat_map(tooth).take_while(|point| point.1 <= 100.0).collect()
    };
    vec![
        (
            memory("5 MiB/s in 256 MiB", vec![(0.0, 40.0), (60.0, 40.0), (90.7, 100.0)]).noisy(0.2),
            3..=10,
            95.0,
        ),
        (
            memory("40 MiB/s in 256 MiB", vec![(0.0, 40.0), (60.0, 40.0), (63.84, 100.0)])
                .noisy(0.2),
            2..=6,
            80.0,
        ),
        (
            memory("up to 97 % and back", vec![(0.0, 40.0), (HOUR, 97.0), (2.0 * HOUR, 40.0)]),
            4..=6,
            96.0,
        ),
        (memory("stairs to OOM, 2 % each 10 min", stairs).noisy(0.3), 4..=10, 95.0),
        (memory("collector over a leak to OOM", breathing).noisy(0.3), 3..=14, 95.0),
        (
            // A slow one all the time, and after an hour and a half one of ten times its pace.
            memory(
                "two leaks at once to OOM",
                vec![(0.0, 30.0), (1.5 * HOUR, 52.0), (2.0 * HOUR, 100.0)],
            )
            .noisy(0.5),
            3..=10,
            95.0,
        ),
        (
            memory(
                "collector, 50-83 % in 5 min, 2 h",
                repeat(&[(0.0, 50.0), (295.0, 83.0), (300.0, 50.0)], 2.0 * HOUR),
            ),
            1..=3,
            80.0,
        ),
        (
            memory(
                "limit halved while it runs",
                vec![(0.0, 44.0), (HOUR, 44.0), (HOUR + 0.2, 88.0), (2.0 * HOUR, 88.0)],
            )
            .noisy(0.5),
            1..=1,
            86.0,
        ),
        (memory("two days with a peak of 85 %", cycle(85.0)).noisy(1.0), 2..=3, 79.0),
        (
            memory(
                "2 s at 95 % each 10 min, 2 h",
                repeat(
                    &[
                        (0.0, 40.0),
                        (595.0, 40.0),
                        (596.0, 95.0),
                        (598.0, 95.0),
                        (599.0, 40.0),
                        (600.0, 40.0),
                    ],
                    2.0 * HOUR,
                ),
            ),
            1..=6,
            80.0,
        ),
        (
            memory(
                "flapping 65-95 % in 4 min, 1 h",
                repeat(&[(0.0, 65.0), (120.0, 95.0), (240.0, 65.0)], HOUR),
            ),
            1..=4,
            90.0,
        ),
        (
            Trace::new(
                "CPU: plateau at 97 %, 1 h",
                Of::Cpu,
                vec![(0.0, 30.0), (60.0, 97.0), (HOUR, 97.0)],
            )
            .noisy(1.0),
            1..=2,
            90.0,
        ),
        (
            Trace::new(
                "CPU: 20 s at 100, 20 s at 60 %",
                Of::Cpu,
                repeat(
                    &[(0.0, 60.0), (19.5, 60.0), (20.0, 100.0), (39.5, 100.0), (40.0, 60.0)],
                    HOUR,
                ),
            ),
            1..=2,
            90.0,
        ),
        (
            Trace::new(
                "lag: stuck for 10 s",
                Of::Lag,
                vec![(0.0, 0.0), (60.0, 0.0), (70.0, 10.0), (70.1, 0.0), (HOUR, 0.0)],
            ),
            1..=4,
            2.0,
        ),
    ]
}

/// The traces in `tests/replay/traces`; the first line of each says what is expected of it:
/// `# of memory; captures 1 to 4; last 90`.
fn files() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay/traces");
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 3);
    let case = |path: &std::path::PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let words: Vec<&str> = text.lines().next().unwrap().split([' ', ';']).collect();
        let after = |key: &str| {
            let at = words.iter().position(|word| *word == key).expect(key);
            words[at + 1].parse::<f64>().unwrap()
        };
        let captures = after("captures") as usize..=after("to") as usize;
        (Trace::read(path), captures, after("last"))
    };
    paths.iter().map(case).collect()
}

#[test]
fn benign_load_has_no_captures_and_trouble_has_few() {
    println!("{:<36} {:>16}  captures", "trace", "marple");
    let mut short = Vec::new();
    for (trace, captures, least) in benign().into_iter().chain(troubled()).chain(files()) {
        let outcome = run(&trace);
        let (taken, last) = summary(&trace, &outcome);
        let met = captures.contains(&taken) && (taken == 0 || last.is_some_and(|it| it >= least));
        let verdict = if met { "pass" } else { "short" };
        println!(
            "{:<36} {:>16}  {captures:?}, last >= {least}: {verdict}",
            trace.name,
            shown((taken, last))
        );
        if !met {
            short.push((trace.name, outcome.fired));
        }
    }
    assert!(short.is_empty(), "{short:#?}");
}

#[test]
fn a_file_of_ones_own_is_replayed() {
    let Some(path) = env::var_os("MARPLE_TRACE") else {
        println!("MARPLE_TRACE=file.csv replays a file of `seconds,percent`");
        return;
    };
    let trace = Trace::read(Path::new(&path));
    let settings = env::var_os("MARPLE_RULES")
        .map_or_else(Settings::default, |rules| load(Path::new(&rules)).unwrap());
    let outcome = replay(&settings, Pace::default(), trace.ticks(settings.interval));
    println!("{}: {}", trace.name, shown(summary(&trace, &outcome)));
    for (at, rule, why) in &outcome.fired {
        println!("{:>10.2} s  {rule}: {why}", at.as_nanos() as f64 / 1e9);
    }
    for taken in &outcome.taken {
        let written = taken
            .written
            .map_or("never".to_owned(), |at| format!("at {:.2} s", at.as_nanos() as f64 / 1e9));
        let at = taken.at.as_nanos() as f64 / 1e9;
        println!("{at:>10.2} s  incident {}: {:?}, written {written}", taken.incident, taken.kinds);
    }
}

/// A rule over a gauge called `name` that fires above 10.
fn gauge(name: &str) -> Rule {
    Rule { abs: Some(10.0), ..Rule::on(Metric::Gauge(name.into())) }
}

/// What `settings` make of gauges, each a name and its value at a second.
fn run_gauges(
    settings: &Settings,
    seconds: u32,
    gauges: &[(&str, &dyn Fn(u32) -> f64)],
) -> ReplayOutcome {
    let tick = |second: u32| Vitals {
        at: Moment::from_nanos(u64::from(second) * 1_000_000_000),
        gauges: gauges.iter().map(|(name, value)| ((*name).into(), value(second))).collect(),
        cpu_cores: Some(f64::from(second >= 500)),
        cpu_limit: Some(marple::model::Limit { value: 1.0, source: "test".into() }),
        ..Vitals::default()
    };
    replay(settings, Pace::default(), (0..seconds).map(tick))
}

fn after(start: u32) -> impl Fn(u32) -> f64 {
    move |second| if second >= start { 20.0 } else { 0.0 }
}

/// 20 for a second in each `period` seconds.
fn each(period: u32) -> impl Fn(u32) -> f64 {
    move |second| if second % period == period - 1 { 20.0 } else { 0.0 }
}

fn settings(rules: Vec<Rule>, budget: BudgetSettings) -> Settings {
    Settings { rules, budget, ..Settings::default() }
}

#[test]
fn two_leaks_at_once_share_an_incident() {
    let rules = || vec![gauge("a"), gauge("b")];
    let budget = BudgetSettings { join: Duration::from_secs(30), ..BudgetSettings::default() };
    for (second, incidents) in [(100, 1), (129, 1), (200, 2)] {
        let outcome = run_gauges(
            &settings(rules(), budget.clone()),
            400,
            &[("a", &after(100)), ("b", &after(second))],
        );
        assert_eq!(outcome.incidents.len(), incidents, "{second}: {outcome:?}");
        assert_eq!(outcome.fired.len(), 2, "{second}");
    }
}

#[test]
fn a_rule_in_dry_run_says_and_does_nothing() {
    let rule = Rule { mode: Mode::DryRun, ..gauge("a") };
    let outcome =
        run_gauges(&settings(vec![rule], BudgetSettings::default()), 1000, &[("a", &after(100))]);
    assert_eq!((outcome.fired.len(), outcome.incidents.len(), outcome.taken.len()), (1, 0, 0));
}

#[test]
fn incidents_keep_their_distance_unless_it_is_critical() {
    let budget = BudgetSettings {
        min_between_incidents: Duration::from_secs(300),
        ..BudgetSettings::default()
    };
    let quick = |critical| Rule {
        cooldown: Duration::ZERO,
        duration: Duration::from_secs(1),
        critical,
        ..gauge("a")
    };
    for (critical, incidents) in [(None, 4), (Some(20.0), 4), (Some(19.0), 10)] {
        let outcome = run_gauges(
            &settings(vec![quick(critical)], budget.clone()),
            1000,
            &[("a", &each(100))],
        );
        let critical_held = outcome.incidents.len();
        assert_eq!(critical_held, incidents, "{critical:?}: {:?}", outcome.fired);
    }
}

#[test]
fn a_day_has_so_many_incidents_and_an_incident_so_many_captures() {
    let budget = BudgetSettings {
        incidents_per_day: 5,
        captures_per_incident: 3,
        min_between_incidents: Duration::ZERO,
        ..BudgetSettings::default()
    };
    let quick = Rule {
        cooldown: Duration::ZERO,
        duration: Duration::from_secs(1),
        critical: Some(0.0),
        ..gauge("a")
    };
    let outcome = run_gauges(&settings(vec![quick], budget.clone()), 5000, &[("a", &each(100))]);
    assert_eq!(outcome.incidents.len(), 5);

    let growing = |second: u32| if second > 50 { 1.2_f64.powi(second as i32 / 10) } else { 0.0 };
    let outcome = run_gauges(&settings(vec![gauge("a")], budget), 900, &[("a", &growing)]);
    assert_eq!((outcome.incidents.len(), outcome.fired.len()), (1, 3));
}

#[test]
fn what_is_dear_is_left_out_while_the_cpu_is_busy() {
    let budget = BudgetSettings { cpu_ceiling: Some(Percent(90.0)), ..BudgetSettings::default() };
    for (second, cpu) in [(100, true), (600, false)] {
        let settings = settings(vec![gauge("a")], budget.clone());
        let outcome = run_gauges(&settings, 700, &[("a", &after(second))]);
        let taken = outcome.taken[0].kinds;
        assert!(taken.contains(CaptureKind::Heap) && taken.contains(CaptureKind::Trace));
        assert_eq!(taken.contains(CaptureKind::Cpu), cpu, "{second}");
        let told = &outcome.fired[0].2;
        assert_eq!(
            told.contains("no cpu, as cpu 100.0 % is above cpu_ceiling 90.0 %"),
            !cpu,
            "{told}"
        );
    }
}
