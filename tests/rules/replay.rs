//! Tests of the default rules with histories of memory, CPU and lag in virtual time: the real
//! rules, budgets and incidents, and a capture thread that takes half a second per file. The
//! decisions of other systems on the same histories are printed for comparison.
//!
//! A new history belongs in: `cases.rs` for one number; `cgroup.rs` for memory as cgroup files;
//! `rises.rs` for tasks, threads or descriptors that rise; `healthy.rs` for a healthy service;
//! `budget.rs` for the effects of budgets and cooldowns.
//!
//! `cargo test --test rules replay:: -- --nocapture` prints the tables. `MARPLE_TRACE=file.csv`
//! replays a file of `seconds,percent` of memory with `MARPLE_RULES=file.toml`, or with the default
//! rules.

use std::env;
use std::path::Path;
use std::time::Duration;

use marple::config::{BudgetSettings, Settings, load};
use marple::internals::agent::replay;
use marple::internals::agent::{ReplayOutcome, ReplayTiming};
use marple::internals::base::{Moment, Percent};
use marple::internals::model::{CaptureKind, Metric, Mode, Rule, Vitals};

mod budget;
mod cases;
#[cfg(target_os = "linux")]
mod cgroup;
mod healthy;
mod peers;
#[cfg(target_os = "linux")]
mod rises;
mod trace;

use cases::{HOUR, benign_cases, faulty_cases, file_cases};
use peers::Policy;
use trace::{Trace, TraceMetric, repeat};

fn run(trace: &Trace) -> ReplayOutcome {
    let settings = Settings::default();
    replay(&settings, ReplayTiming::default(), trace.ticks(settings.interval))
}

/// Returns the number of captures, and the value at the last finished one.
fn summary(trace: &Trace, outcome: &ReplayOutcome) -> (usize, Option<f64>) {
    let last = outcome.written_captures().last();
    (outcome.captures.len(), last.map(|taken| trace.value_at(taken.at.as_nanos() as f64 / 1e9)))
}

fn format_result((captures, last): (usize, Option<f64>)) -> String {
    match last {
        Some(last) => format!("{captures} @ {last:.0} %"),
        None if captures == 0 => "0".to_owned(),
        None => format!("{captures}, none finished"),
    }
}

fn slow_leak() -> Trace {
    Trace::new("slow leak to OOM, 6 h", TraceMetric::Memory, vec![(0.0, 30.0), (6.0 * HOUR, 100.0)])
        .with_noise(0.5)
}

fn fast_leak() -> Trace {
    let points = vec![(0.0, 40.0), (60.0, 40.0), (65.0, 100.0)];
    Trace::new("40 -> 100 % in 5 s", TraceMetric::Memory, points).with_noise(0.2)
}

fn plateau() -> Trace {
    let points = vec![(0.0, 40.0), (600.0, 85.0), (6.0 * HOUR, 85.0)];
    Trace::new("plateau at 85 %, 6 h", TraceMetric::Memory, points).with_noise(1.0)
}

fn flapping() -> Trace {
    let points = repeat(&[(0.0, 65.0), (10.0, 95.0), (20.0, 65.0)], HOUR);
    Trace::new("flapping 65-95 %, 1 h", TraceMetric::Memory, points)
}

fn spikes() -> Trace {
    let shape =
        [(0.0, 40.0), (145.0, 40.0), (145.5, 72.0), (149.0, 72.0), (149.5, 40.0), (150.0, 40.0)];
    Trace::new("benign spikes to 72 %", TraceMetric::Memory, repeat(&shape, HOUR))
}

#[test]
fn histories_meet_capture_goals() {
    println!(
        "{:<24} {:>16} {:>16} {:>16} {:>16} {:>16}  goal",
        "trace", "holmes", "RisingWave", "TiDB", "autopprof", "marple"
    );
    type Goal = (&'static str, fn(usize, Option<f64>) -> bool);
    let rows: [(Trace, Goal); 5] = [
        (
            slow_leak(),
            ("<= 10, last >= 98 %", |n, last| n <= 10 && last.is_some_and(|value| value >= 98.0)),
        ),
        (
            fast_leak(),
            (">= 2, last >= 80 %", |n, last| n >= 2 && last.is_some_and(|value| value >= 80.0)),
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
        let others = others.map(|policy| format_result(peers::run(policy, &trace)));
        let (captures, last) = summary(&trace, &run(&trace));
        let met = met(captures, last);
        let [holmes, rising_wave, tidb, autopprof] = others;
        println!(
            "{:<24} {holmes:>16} {rising_wave:>16} {tidb:>16} {autopprof:>16} {:>16}  {goal}: {}",
            trace.name,
            format_result((captures, last)),
            if met { "pass" } else { "short" }
        );
        if !met {
            short.push(trace.name);
        }
    }
    assert!(short.is_empty(), "{short:?}");
}

#[test]
fn benign_load_has_no_captures_and_faults_have_few() {
    println!("{:<36} {:>16}  captures", "trace", "marple");
    let mut short = Vec::new();
    for (trace, captures, least) in
        benign_cases().into_iter().chain(faulty_cases()).chain(file_cases())
    {
        let outcome = run(&trace);
        let (capture_count, last) = summary(&trace, &outcome);
        let met = captures.contains(&capture_count)
            && (capture_count == 0 || last.is_some_and(|value| value >= least));
        let verdict = if met { "pass" } else { "short" };
        println!(
            "{:<36} {:>16}  {captures:?}, last >= {least}: {verdict}",
            trace.name,
            format_result((capture_count, last))
        );
        if !met {
            short.push((trace.name, outcome.fired));
        }
    }
    assert!(short.is_empty(), "{short:#?}");
}

#[test]
fn csv_file_from_environment_is_replayed() {
    let Some(path) = env::var_os("MARPLE_TRACE") else {
        println!("MARPLE_TRACE=file.csv replays a file of `seconds,percent`");
        return;
    };
    let trace = Trace::read(Path::new(&path));
    let settings = env::var_os("MARPLE_RULES")
        .map_or_else(Settings::default, |rules| load(Path::new(&rules)).unwrap());
    let outcome = replay(&settings, ReplayTiming::default(), trace.ticks(settings.interval));
    println!("{}: {}", trace.name, format_result(summary(&trace, &outcome)));
    for (at, rule, why) in &outcome.fired {
        println!("{:>10.2} s  {rule}: {why}", at.as_nanos() as f64 / 1e9);
    }
    for capture in &outcome.captures {
        let written = capture
            .written_at
            .map_or("never".to_owned(), |at| format!("at {:.2} s", at.as_nanos() as f64 / 1e9));
        let at = capture.at.as_nanos() as f64 / 1e9;
        println!(
            "{at:>10.2} s  incident {}: {:?}, written {written}",
            capture.incident, capture.kinds
        );
    }
}

/// Returns a rule over the gauge `name` that fires above 10.
fn gauge(name: &str) -> Rule {
    Rule { abs: Some(10.0), ..Rule::new(Metric::Gauge(name.into())) }
}

/// Replays gauges under `settings`; each is a name and a function from second to value.
fn run_gauges(
    settings: &Settings,
    seconds: u32,
    gauges: &[(&str, &dyn Fn(u32) -> f64)],
) -> ReplayOutcome {
    let tick = |second: u32| Vitals {
        at: Moment::from_nanos(u64::from(second) * 1_000_000_000),
        gauges: gauges.iter().map(|(name, value)| ((*name).into(), value(second))).collect(),
        cpu_cores: Some(f64::from(second >= 500)),
        cpu_limit: Some(marple::internals::model::Limit { value: 1.0, source: "test".into() }),
        ..Vitals::default()
    };
    replay(settings, ReplayTiming::default(), (0..seconds).map(tick))
}

fn above_from(start: u32) -> impl Fn(u32) -> f64 {
    move |second| if second >= start { 20.0 } else { 0.0 }
}

/// Returns a gauge that is 20 for one second in each `period`, and else 0.
fn above_once_per(period: u32) -> impl Fn(u32) -> f64 {
    move |second| if second % period == period - 1 { 20.0 } else { 0.0 }
}

fn settings(rules: Vec<Rule>, budget: BudgetSettings) -> Settings {
    Settings { rules, budget, ..Settings::default() }
}

#[test]
fn concurrent_leaks_share_incident() {
    let rules = || vec![gauge("a"), gauge("b")];
    let budget =
        BudgetSettings { join_window: Duration::from_secs(30), ..BudgetSettings::default() };
    for (second, incidents) in [(100, 1), (129, 1), (200, 2)] {
        let outcome = run_gauges(
            &settings(rules(), budget.clone()),
            400,
            &[("a", &above_from(100)), ("b", &above_from(second))],
        );
        assert_eq!(outcome.incidents.len(), incidents, "{second}: {outcome:?}");
        assert_eq!(outcome.fired.len(), 2, "{second}");
    }
}

#[test]
fn dry_run_rule_reports_fires_without_captures() {
    let rule = Rule { mode: Mode::DryRun, ..gauge("a") };
    let outcome = run_gauges(
        &settings(vec![rule], BudgetSettings::default()),
        1000,
        &[("a", &above_from(100))],
    );
    assert_eq!((outcome.fired.len(), outcome.incidents.len(), outcome.captures.len()), (1, 0, 0));
}

#[test]
fn incidents_are_spaced_unless_critical() {
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
            &[("a", &above_once_per(100))],
        );
        let critical_held = outcome.incidents.len();
        assert_eq!(critical_held, incidents, "{critical:?}: {:?}", outcome.fired);
    }
}

#[test]
fn incidents_per_day_and_captures_per_incident_are_limited() {
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
    let outcome =
        run_gauges(&settings(vec![quick], budget.clone()), 5000, &[("a", &above_once_per(100))]);
    assert_eq!(outcome.incidents.len(), 5);

    let growing = |second: u32| if second > 50 { 1.2_f64.powi(second as i32 / 10) } else { 0.0 };
    let outcome = run_gauges(&settings(vec![gauge("a")], budget), 900, &[("a", &growing)]);
    assert_eq!((outcome.incidents.len(), outcome.fired.len()), (1, 3));
}

#[test]
fn cpu_profile_is_skipped_while_cpu_is_busy() {
    let budget =
        BudgetSettings { skip_cpu_profile_above: Some(Percent(90.0)), ..BudgetSettings::default() };
    for (second, cpu) in [(100, true), (600, false)] {
        let settings = settings(vec![gauge("a")], budget.clone());
        let outcome = run_gauges(&settings, 700, &[("a", &above_from(second))]);
        let kinds = outcome.captures[0].kinds;
        assert!(kinds.contains(CaptureKind::Heap) && kinds.contains(CaptureKind::Trace));
        assert_eq!(kinds.contains(CaptureKind::Cpu), cpu, "{second}");
        let fire_text = &outcome.fired[0].2;
        assert_eq!(
            fire_text.contains("cpu skipped: cpu 100.0 % is above skip_cpu_profile_above 90.0 %"),
            !cpu,
            "{fire_text}"
        );
    }
}
