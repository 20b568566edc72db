use std::time::Duration;

use super::super::fixture::{IncidentFixture, profile_table, summaries, time};
use super::*;

fn incident(metric: &str, value: f64) -> IncidentFixture {
    IncidentFixture::new().reason(metric, value, value / 2.0, &format!("{metric} at {value}"))
}

#[test]
fn level_is_that_of_the_incident() {
    let fixture = incident("cpu.throttled", 70.0)
        .vitals("cpu.throttled", -30, &[100.0; 15])
        .vitals("cpu.throttled", -5, &[0.0, 20.0, 30.0, 20.0, 30.0, 20.0, 0.0]);
    let evidence = fixture.evidence();
    let level = Level::of(&evidence, "cpu.throttled").unwrap();
    assert_eq!(level, Level { highest: 70.0, sustained: 24.0 });
    assert_eq!(Level::of(&evidence, "cpu.pressure"), None);
    let fixture = incident("cpu.pressure", 70.0);
    let level = Level::of(&fixture.evidence(), "cpu.pressure").unwrap();
    assert_eq!(level, Level { highest: 70.0, sustained: 70.0 });
}

#[test]
fn throttling_is_certain_if_it_is_the_reason_or_high() {
    let found = |confidence: &str| vec![format!("throttled {confidence} CPU quota")];
    for (metric, percent, expected) in [
        ("cpu.throttled", 62.0, found("certain")),
        ("runtime.lag", 12.0, found("certain")),
        ("runtime.lag", 9.0, vec![]),
        ("memory", 62.0, found("certain")),
        ("memory", 12.0, found("possible")),
        ("memory", 0.0, vec![]),
    ] {
        let fixture = incident(metric, percent).vitals("cpu.throttled", 0, &[percent; 6]);
        let candidates = find(&fixture.evidence());
        assert_eq!(summaries(&candidates), expected, "{metric} {percent}");
        for candidate in candidates {
            assert_eq!(candidate.explains_reason, metric != "memory", "{metric}");
        }
    }
    assert_eq!(summaries(&find(&incident("cpu", 95.0).evidence())), [""; 0]);
}

#[test]
fn text_of_throttling_has_quota_and_consumer() {
    let mut table = profile_table(
        1e7,
        &[(&["orders::encode"], 8_000_000_000), (&["orders::a"], 2_000_000_000)],
    );
    table.duration = Duration::from_secs(10);
    let mut fixture = incident("cpu.throttled", 62.0).vitals("cpu.throttled", 0, &[62.0; 6]);
    assert_eq!(
        find(&fixture.evidence())[0].text,
        "the CPU quota stopped the process in 62 % of its periods"
    );
    fixture.manifest.limits.cpu_cores = Some(1.0);
    let fixture = fixture.cpu(0, None, table);
    let candidate = &find(&fixture.evidence())[0];
    assert_eq!(
        candidate.text,
        "the CPU quota of 1.00 cores stopped the process in 62 % of its periods; orders::encode \
         uses most CPU time, 0.80 cores (80 %)"
    );
    assert_eq!(candidate.labels["consumer"], "orders::encode");
    assert_eq!(candidate.evidence[0].command, "grep -o '\"cpu.throttled\": [0-9.]*' incident.json");
}

#[test]
fn pressure_without_its_rule_is_possible() {
    let found = |confidence: &str, subject: &str| vec![format!("pressure {confidence} {subject}")];
    for (reason, metric, percent, explains, expected) in [
        ("memory.pressure", "memory.pressure", 34.0, true, found("certain", "memory")),
        ("cpu.pressure", "cpu.pressure", 20.0, true, found("certain", "CPU")),
        ("runtime.lag", "cpu.pressure", 80.0, true, found("possible", "CPU")),
        ("runtime.lag", "cpu.pressure", 49.0, false, vec![]),
        ("runtime.lag", "io.pressure", 40.0, false, found("possible", "I/O")),
        // A large file is read.
        ("memory", "io.pressure", 90.0, false, found("possible", "I/O")),
        ("memory", "memory.pressure", 9.9, false, vec![]),
        ("memory", "memory.pressure", 10.0, false, found("possible", "memory")),
    ] {
        let fixture = incident(reason, percent).vitals(metric, 0, &[percent; 3]);
        let candidates = find(&fixture.evidence());
        assert_eq!(summaries(&candidates), expected, "{reason} {metric} {percent}");
        for candidate in candidates {
            assert_eq!(candidate.explains_reason, explains, "{reason} {metric}");
        }
    }
}

#[test]
fn memory_high_events_are_part_of_memory_pressure() {
    let fixture = incident("memory.high_events", 200.0)
        .vitals("memory.high_events", 0, &[120.0; 5])
        .vitals("memory.pressure", 0, &[34.0; 5]);
    let candidates = find(&fixture.evidence());
    assert_eq!(summaries(&candidates), ["pressure certain memory"]);
    assert_eq!(
        candidates[0].text,
        "some thread waited for memory in up to 34 % of ten seconds, and the cgroup exceeded \
         `memory.high` 120 times per second"
    );
    // Alone, they are page cache that is reclaimed.
    let fixture = incident("cpu", 95.0).vitals("memory.high_events", 0, &[120.0; 5]);
    assert_eq!(summaries(&find(&fixture.evidence())), [""; 0]);
}

#[test]
fn unexplained_lists_missing_captures() {
    let record = |kind, outcome, error: Option<&str>| {
        let mut record = CaptureRecord::running(kind, "engine".into(), time(0));
        record.outcome = outcome;
        record.error = error.map(str::to_owned);
        record
    };
    let mut fixture = incident("runtime.lag", 1.3);
    fixture.manifest.captures = vec![
        record(CaptureKind::Cpu, Outcome::Skipped, Some("no space: 1 MiB left")),
        record(CaptureKind::Heap, Outcome::Failed, None),
    ];
    let candidates = unexplained(&fixture.evidence());
    assert_eq!(summaries(&candidates), ["unexplained possible runtime.lag"]);
    assert_eq!(
        candidates[0].text,
        "the captured data does not show the cause (runtime.lag at 1.3); threads was not captured; \
         cpu was skipped (no space: 1 MiB left)"
    );
    assert!(candidates[0].explains_reason, "it comes before findings that are only possible");

    let done = |kind| record(kind, Outcome::Done, None);
    fixture.manifest.captures.extend([done(CaptureKind::Cpu), done(CaptureKind::Threads)]);
    assert_eq!(
        unexplained(&fixture.evidence())[0].text,
        "the captured data does not show the cause (runtime.lag at 1.3); captured: threads, cpu"
    );
    fixture.manifest.captures.push(record(CaptureKind::Trace, Outcome::Running, None));
    assert_eq!(summaries(&unexplained(&fixture.evidence())), [""; 0]);
    assert_eq!(summaries(&unexplained(&IncidentFixture::new().evidence())), [""; 0]);
}
