//! Expected texts of reports, their size, and their escaping.
//!
//! `MARPLE_BLESS=1 cargo test --lib --all-features render::` writes the expected texts anew.

mod fixture;

use fixture::{ReportFixture, reason, time};

use super::*;
use crate::base::Bytes;
use crate::model::{
    Artifact, CaptureRecord, Confidence, Finding, FindingEvidence, FindingKind, Origin,
    RemovedArtifact, VitalsRow,
};

/// Compares `text` with a file beside this one, or writes that file.
fn assert_golden(text: &str, file: &str, expected: &str) {
    if std::env::var_os("MARPLE_BLESS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/render/markdown/tests/");
        std::fs::write(format!("{path}{file}"), text).unwrap();
        return;
    }
    assert!(text == expected, "{file} differs; MARPLE_BLESS=1 writes it. The text is:\n{text}");
}

#[test]
fn report_of_full_incident_is_the_expected_text() {
    let fixture = ReportFixture::full();
    let text = report(&fixture.evidence());
    assert_golden(&text, "incident.md", include_str!("tests/incident.md"));
}

#[test]
fn short_report_has_verdict_reasons_and_files() {
    let fixture = ReportFixture::full();
    let text = short_report(&fixture.evidence());
    assert_golden(&text, "short.md", include_str!("tests/short.md"));
}

#[test]
fn report_of_incident_without_evidence_says_so() {
    let fixture = ReportFixture::empty();
    let text = report(&fixture.evidence());
    assert_golden(&text, "empty.md", include_str!("tests/empty.md"));
    let text = short_report(&fixture.evidence());
    assert!(text.contains("No file is written yet."), "{text}");
}

#[test]
fn verdict_names_what_is_missing() {
    let mut fixture = ReportFixture::full();
    fixture.manifest.findings.clear();
    let text = report(&fixture.evidence());
    let verdict = "Nothing stands out in the captured data, but it is incomplete: see custom, \
                   descriptors, trace in\n\"Captures\".";
    assert!(text.contains(verdict), "{text}");
    assert!(!text.contains("## Findings"), "{text}");

    for capture in &mut fixture.manifest.captures {
        capture.outcome = Outcome::Done;
    }
    let text = report(&fixture.evidence());
    assert!(text.contains("\nNothing stands out in the captured data.\n"), "{text}");

    fixture.manifest.state = IncidentState::Open;
    fixture.manifest.captures[3].outcome = Outcome::Running;
    let text = report(&fixture.evidence());
    assert!(text.contains("There is no finding yet. These captures are running: cpu."), "{text}");
}

#[test]
fn report_explains_state_of_unfinished_incident() {
    let mut fixture = ReportFixture::full();
    fixture.manifest.state = IncidentState::Interrupted;
    let text = report(&fixture.evidence());
    assert!(text.contains("ended before the incident closed, as found at 2026-11-23T02:59:38Z."));
    assert!(text.contains("`, interrupted, opened at 2026-11-23T02:57:33Z, found"), "{text}");
    fixture.manifest.state = IncidentState::Open;
    fixture.manifest.closed = None;
    let text = report(&fixture.evidence());
    assert!(text.contains("The incident is open. This report is rewritten after each capture"));
}

#[test]
fn lines_of_report_have_at_most_100_columns() {
    let text = report(&ReportFixture::full().evidence());
    let long: Vec<&str> = text.lines().filter(|line| line.chars().count() > 100).collect();
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn report_has_no_directories_of_the_executable() {
    let fixture = ReportFixture::full();
    for text in [report(&fixture.evidence()), short_report(&fixture.evidence())] {
        assert!(!text.contains("customer-17"), "{text}");
    }
}

/// Returns an incident with `count` entries of each list and texts of `repeat` times `text`.
fn hostile(count: usize, text: &str, repeat: usize) -> ReportFixture {
    let text = text.repeat(repeat);
    let mut fixture = ReportFixture::full();
    let manifest = &mut fixture.manifest;
    manifest.service = text.clone();
    manifest.instance = text.clone();
    manifest.process.exe = text.clone();
    manifest.process.build_id = text.clone();
    manifest.versions.kernel = text.clone();
    manifest.limits.memory_source = Some(text.clone());
    let metric = format!("gauge.{text}");
    for number in 0..count {
        let mut reason = reason(0, "memory", 1e300, -1e300, &text);
        reason.rule = Some(text.clone());
        reason.metric = metric.parse().ok();
        reason.origin = if number % 2 == 0 { Origin::Rule } else { Origin::Http };
        manifest.reasons.insert(0, reason);
        manifest.losses.add(format!("{number}{text}"), u64::MAX);
        manifest.vitals.push(VitalsRow { at: time(1), values: [(metric.clone(), 1e300)].into() });
        let mut capture =
            CaptureRecord::running(CaptureKind::Custom, text.clone(), time(number as i64));
        capture.error = Some(text.clone());
        capture.outcome = Outcome::Skipped;
        capture.losses = manifest.losses.clone();
        manifest.captures.push(capture);
        let artifact = Artifact {
            file: format!("{number}{text}.memory.pprof"),
            kind: CaptureKind::Heap,
            bytes: Bytes(u64::MAX),
            sha256: text.clone(),
            taken: time(0),
            phase: Some(text.clone()),
            note: Some(text.clone()),
        };
        let removed = RemovedArtifact { artifact, removed: time(0), why: text.clone() };
        manifest.artifacts.push(removed.artifact.clone());
        manifest.removed.push(removed);
        manifest.findings.push(Finding {
            rank: number as u32 + 1,
            kind: FindingKind::CpuHot,
            confidence: Confidence::Possible,
            subject: text.clone(),
            text: text.clone(),
            numbers: [(text.clone(), f64::MAX)].into(),
            labels: [(text.clone(), text.clone())].into(),
            stack: vec![text.clone(); 30],
            evidence: vec![FindingEvidence { file: text.clone(), command: text.clone() }; 9],
        });
    }
    fixture
}

#[test]
fn reports_stay_within_their_limit() {
    for text in ["x", "é", "\u{1b}", "`", "\n", "<", "a ", "``` ", "線"] {
        for (count, repeat) in [(0, 100_000), (1, 1), (3, 300), (40, 1000), (200, 100)] {
            let fixture = hostile(count, text, repeat);
            let full = report(&fixture.evidence());
            assert!(full.len() <= MAX_REPORT_BYTES, "{text:?} {count} {repeat}: {}", full.len());
            let short = short_report(&fixture.evidence());
            let length = short.len();
            assert!(length <= MAX_SHORT_REPORT_BYTES, "{text:?} {count} {repeat}: {length}");
            for report in [full, short] {
                let fences = report.lines().filter(|line| line.starts_with("```")).count();
                assert!(fences % 2 == 0, "{report}");
                assert!(!report.contains(|c: char| c.is_control() && c != '\n'), "{report:?}");
            }
        }
    }
}

#[test]
fn long_lists_are_cut_and_counted() {
    let mut fixture = ReportFixture::full();
    for second in 0..5000 {
        let reason = reason(second, "memory", 90.0, 80.0, "memory 90.0 % is above abs 80.0 %");
        fixture.manifest.reasons.push(reason);
        fixture.manifest.losses.add(format!("cause {second}"), 2);
    }
    let text = report(&fixture.evidence());
    assert_eq!(text.matches("- Reason: ").count(), 8, "{text}");
    assert!(text.contains("\n4994 reasons more: see `incident.json`.\n"), "{text}");
    assert!(text.contains("- incident: losses (9990): 4995 further causes\n"), "{text}");
    assert!(text.contains("memory 81.5 % is above abs 80.0 %"), "the first reason is kept");
}

#[test]
fn least_valuable_sections_are_left_out_first() {
    let fixture = hostile(30, "word ", 100);
    let text = report(&fixture.evidence());
    assert!(text.contains("Left out, because this report is limited to 16 KiB: "), "{text}");
    let (_, left_out) = text.rsplit_once("Left out").unwrap();
    assert!(left_out.contains("Removed files"), "{left_out}");
    for section in ["## Facts", "## Vitals", "## Findings\n\n### 1. heap-growth"] {
        assert!(text.contains(section), "{section} in {text}");
    }
}

#[test]
fn names_cannot_break_markdown() {
    let mut fixture = ReportFixture::full();
    let name = "a`b|c\n\n# d\n```\n- <b>*e*";
    fixture.manifest.service = name.into();
    fixture.manifest.reasons[0].text = name.into();
    fixture.manifest.reasons[0].rule = Some(name.into());
    fixture.manifest.findings[0].subject = name.into();
    fixture.manifest.findings[0].text = name.into();
    fixture.manifest.findings[0].stack = vec![name.into()];
    fixture.manifest.findings[0].labels = [(name.into(), name.into())].into();
    fixture.manifest.captures[2].error = Some(name.into());
    fixture.tables.heap[1].table.rows[0].stack = vec![name.into()];
    let text = report(&fixture.evidence());
    assert!(text.starts_with(r"# Incident of a\`b\|c # d \`\`\` - \<b>\*e\*"), "{text}");
    let plain = report(&ReportFixture::full().evidence());
    let headings = |text: &str| text.lines().filter(|line| line.starts_with('#')).count();
    assert_eq!(headings(&text), headings(&plain), "{text}");
    for line in text.lines().filter(|line| line.contains("```")) {
        assert!(matches!(line, "```" | "```sh" | "```text") || line.contains(r"\`\`\`"), "{line}");
    }
}
