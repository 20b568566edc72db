use std::time::Duration;

use super::super::fixture::{IncidentFixture, profile_table, summaries, with_label};
use super::*;

const FRAMES: [&str; 2] = ["orders::encode", "orders::parse"];

/// A profile of `seconds` at `hertz`, with the CPU seconds of `orders::encode`, `orders::parse` and
/// of 20 other functions together.
fn profile(seconds: u64, hertz: f64, cpu_seconds: [f64; 3]) -> ProfileTable {
    let nanos = |seconds: f64| (seconds * 1e9) as i64;
    let [encode, parse, other] = cpu_seconds;
    let names: Vec<String> = (0..20).map(|number| format!("orders::other{number:02}")).collect();
    let others: Vec<[&str; 2]> = names.iter().map(|name| [&**name, "main"]).collect();
    let own = [encode, parse].into_iter().zip(FRAMES).filter(|(seconds, _)| *seconds > 0.0);
    let own: Vec<([&str; 2], f64)> = own.map(|(seconds, name)| ([name, "main"], seconds)).collect();
    let mut rows: Vec<(&[&str], i64)> =
        own.iter().map(|(stack, seconds)| (&stack[..], nanos(*seconds))).collect();
    rows.extend(others.iter().map(|stack| (&stack[..], nanos(other / 20.0))));
    let mut table = profile_table(1e9 / hertz, &rows);
    table.duration = Duration::from_secs(seconds);
    table
}

fn incident(metric: Option<&str>) -> IncidentFixture {
    let fixture = IncidentFixture::new();
    match metric {
        Some(metric) => fixture.reason(metric, 95.0, 90.0, "too high"),
        None => fixture,
    }
}

#[test]
fn hot_function_is_found_with_a_confidence_from_its_lead() {
    let hot = |confidence: &str| vec![format!("cpu-hot {confidence} orders::encode")];
    for (metric, cpu_seconds, expected) in [
        // 80 % and 40 % of the time.
        (Some("cpu.demand"), [16.0, 1.0, 3.0], hot("certain")),
        (Some("cpu.demand"), [8.0, 4.0, 8.0], hot("likely")),
        // As large as the second within the error.
        (Some("cpu.demand"), [8.0, 7.8, 4.2], hot("possible")),
        (Some("runtime.lag"), [9.0, 0.1, 0.3], hot("certain")),
        // No worker is kept busy by a twentieth of a core.
        (Some("runtime.lag"), [0.5, 0.01, 0.01], vec![]),
        // Nothing stands out.
        (Some("cpu.demand"), [3.0, 2.0, 15.0], vec![]),
        // A healthy service.
        (Some("memory"), [9.0, 0.1, 0.3], hot("possible")),
        (None, [9.0, 0.1, 0.3], hot("possible")),
        (Some("cpu.demand"), [0.0, 0.0, 0.0], vec![]),
    ] {
        let fixture = incident(metric).cpu(0, None, profile(10, 99.0, cpu_seconds));
        let candidates = find(&fixture.evidence());
        assert_eq!(summaries(&candidates), expected, "{metric:?} {cpu_seconds:?}");
        for candidate in candidates {
            let explains = metric.is_some_and(|metric| metric != "memory");
            assert_eq!(candidate.explains_reason, explains, "{metric:?}");
        }
    }
    assert_eq!(summaries(&find(&incident(Some("cpu")).evidence())), [""; 0]);
}

#[test]
fn text_of_hot_function_has_cores_share_error_and_place() {
    let table = profile(10, 99.0, [16.0, 1.0, 3.0]);
    let table = with_label(table, "thread", "tokio-rt-worker", 15_000_000_000);
    // At most 9 s of the 16 s must be in this task, and 7 s can be in others.
    let table = with_label(table, "task", "encoder", 11_000_000_000);
    let fixture = incident(Some("cpu")).cpu(0, None, table);
    let candidate = &find(&fixture.evidence())[0];
    assert_eq!(
        candidate.text,
        "orders::encode uses 1.60 cores (80 % of the CPU time of the process), +- 0.04 cores, \
         mostly in the thread tokio-rt-worker"
    );
    assert_eq!(candidate.labels.keys().collect::<Vec<_>>(), ["thread"]);
    assert_eq!(candidate.numbers["seconds"], 16.0);
    assert_eq!(candidate.numbers["share"], 0.8);
    assert_eq!(
        candidate.evidence[0].command,
        "go tool pprof -top -sample_index=cpu orders_eu-1.001.cpu.pprof"
    );
}

#[test]
fn busy_cpu_without_a_rule_allows_more_than_possible() {
    for (percent, confidence) in [(79.0, Confidence::Possible), (80.0, Confidence::Certain)] {
        let fixture = incident(Some("memory"))
            .vitals("cpu", -20, &[5.0; 20])
            .vitals("cpu", 0, &[percent; 11])
            .cpu(0, None, profile(10, 99.0, [16.0, 1.0, 3.0]));
        assert_eq!(find(&fixture.evidence())[0].confidence, confidence, "{percent}");
    }
}

#[test]
fn cpu_time_of_parked_workers_is_no_finding() {
    let parked = [
        "epoll_wait",
        "tokio::runtime::io::driver::Driver::turn",
        "tokio::runtime::scheduler::multi_thread::worker::Context::run",
    ];
    let mut table = profile_table(1e7, &[(&parked, 9_000_000_000)]);
    table.duration = Duration::from_secs(10);
    let fixture = incident(Some("cpu")).cpu(0, None, table);
    assert_eq!(summaries(&find(&fixture.evidence())), [""; 0]);
    assert!(top_consumer(&fixture.evidence()).is_none());
}

#[test]
fn hot_function_of_a_small_quota_is_measured_by_the_quota() {
    let mut fixture = incident(Some("cpu")).cpu(0, None, profile(10, 99.0, [2.0, 0.1, 0.2]));
    assert_eq!(summaries(&find(&fixture.evidence())), [""; 0]);
    fixture.manifest.limits.cpu_cores = Some(0.25);
    assert_eq!(summaries(&find(&fixture.evidence())), ["cpu-hot certain orders::encode"]);
}

/// Returns the changes between a look-back of 30 s at 19 Hz, with these CPU seconds, and a capture
/// of 10 s.
fn changes(metric: &str, before: [f64; 3], now: [f64; 3]) -> Vec<Candidate> {
    let fixture = incident(Some(metric)).cpu(-30, Some("lookback"), profile(30, 19.0, before)).cpu(
        0,
        None,
        profile(10, 99.0, now),
    );
    let mut candidates = find(&fixture.evidence());
    candidates.retain(|candidate| candidate.kind == FindingKind::CpuChanged);
    candidates
}

#[test]
fn change_is_the_difference_of_rates() {
    let encode = |confidence: &str| vec![format!("cpu-changed {confidence} orders::encode")];
    for (metric, before, now, expected) in [
        // From 0.1 to 1.6 cores.
        ("cpu", [3.0, 3.0, 12.0], [16.0, 1.0, 4.0], encode("certain")),
        // The same rate in a third of the time.
        ("cpu", [30.0, 3.0, 12.0], [10.0, 1.0, 4.0], vec![]),
        // 1.4 times as much, and 0.19 cores more.
        ("cpu", [30.0, 3.0, 12.0], [14.0, 1.0, 4.0], vec![]),
        ("cpu", [0.3, 3.0, 12.0], [2.0, 1.0, 4.0], vec![]),
        // Not in the look-back at all.
        ("cpu", [0.0, 3.0, 12.0], [16.0, 1.0, 4.0], encode("certain")),
        ("memory", [3.0, 3.0, 12.0], [16.0, 1.0, 4.0], encode("possible")),
    ] {
        let candidates = changes(metric, before, now);
        assert_eq!(summaries(&candidates), expected, "{metric} {before:?} {now:?}");
    }
}

#[test]
fn change_of_a_few_standard_errors_is_likely() {
    // From 0.10 to 0.17 cores of 0.25, with an error of 0.019.
    let mut fixture = incident(Some("cpu"))
        .cpu(-30, Some("lookback"), profile(30, 19.0, [3.0, 0.3, 1.2]))
        .cpu(0, None, profile(10, 99.0, [1.7, 0.1, 0.4]));
    fixture.manifest.limits.cpu_cores = Some(0.25);
    let candidates = find(&fixture.evidence());
    let expected = ["cpu-hot certain orders::encode", "cpu-changed likely orders::encode"];
    assert_eq!(summaries(&candidates), expected);
}

#[test]
fn text_of_change_has_both_rates_and_the_error() {
    let candidate = &changes("cpu", [3.0, 3.0, 12.0], [16.0, 1.0, 4.0])[0];
    assert_eq!(
        candidate.text,
        "orders::encode uses 1.60 cores, and used 0.10 in the 30 s before the profile (16.0 times \
         as much); the difference is 1.50 +- 0.04 cores"
    );
    assert_eq!(candidate.share, 1.0, "the total grew by 1.5 cores");
    assert!(candidate.explains_reason);
    assert_eq!(candidate.evidence.len(), 2);
    let candidate = &changes("cpu", [0.0, 3.0, 12.0], [16.0, 1.0, 4.0])[0];
    assert!(!candidate.text.contains("times"), "{}", candidate.text);
    assert!(!candidate.numbers.contains_key("factor"));
}

#[test]
fn change_needs_a_look_back_of_some_seconds() {
    for (seconds, count) in [(4, 0), (5, 1)] {
        let lookback = profile(seconds, 19.0, [0.3, 0.3, 1.2]);
        let fixture = incident(Some("cpu")).cpu(-5, Some("lookback"), lookback).cpu(
            0,
            None,
            profile(10, 99.0, [16.0, 1.0, 4.0]),
        );
        let candidates = find(&fixture.evidence());
        assert_eq!(candidates.len(), 1 + count, "{seconds} s");
    }
}

#[test]
fn error_of_no_sample_is_that_of_one() {
    // One sample of 19 Hz in 5 s is 0.0105 cores.
    let lookback = profile(5, 19.0, [0.0, 1.0, 1.0]);
    let capture = profile(10, 99.0, [4.0, 1.0, 1.0]);
    let now = active_subjects(&capture).remove(0);
    let change = SubjectChange::new(&capture, now, &lookback, None);
    assert!((change.before.variance.sqrt() - 1.0 / 19.0 / 5.0).abs() < 1e-6);
}
