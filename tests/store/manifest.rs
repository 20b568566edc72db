//! Tests of `incident.json` as read by people, other programs and marple.

use std::collections::BTreeMap;

use marple::internals::base::{Bytes, IncidentId};
use marple::internals::model::{
    Artifact, CaptureKind, CaptureRecord, IncidentState, Limits, Losses, Manifest, Metric, Origin,
    Outcome, ProcessInfo, Reason, Versions, VitalsRow,
};
use marple::internals::store::manifest;
use proptest::prelude::*;

use crate::support::peers;

fn sample_manifest(value: f64) -> Manifest {
    let opened = "2026-11-23T02:57:33.123Z".parse().unwrap();
    let mut losses = Losses::default();
    losses.add("samples dropped: ring full", 12);
    Manifest {
        schema: 1,
        id: IncidentId::new(opened),
        service: "orders".to_owned(),
        instance: "eu-1".to_owned(),
        state: IncidentState::Open,
        opened,
        closed: None,
        reasons: vec![Reason {
            origin: Origin::Rule,
            at: opened,
            rule: Some("memory".to_owned()),
            metric: Some(Metric::Memory),
            value: Some(value),
            threshold: Some(80.0),
            text: "memory is at 91.5 %, above 80 %".to_owned(),
        }],
        limits: Limits { memory: Some(Bytes::mib(512)), ..Limits::default() },
        process: ProcessInfo {
            pid: 4242,
            exe: "/srv/orders".to_owned(),
            build_id: "c0ffee".to_owned(),
            agent_started: opened,
        },
        versions: Versions {
            marple: "0.1.0".to_owned(),
            kernel: "6.18".to_owned(),
            arch: "x86_64".to_owned(),
        },
        captures: vec![CaptureRecord {
            kind: CaptureKind::Cpu,
            engine: "pprof".to_owned(),
            started: opened,
            stopped: None,
            outcome: Outcome::Failed,
            error: Some("the disk is full".to_owned()),
            losses,
        }],
        artifacts: vec![Artifact {
            file: "orders_eu-1.001.memory.pprof".to_owned(),
            kind: CaptureKind::Heap,
            bytes: Bytes(1234),
            sha256: "00".repeat(32),
            taken: opened,
            phase: None,
            note: None,
        }],
        removed: Vec::new(),
        findings: Vec::new(),
        vitals: vec![VitalsRow {
            at: opened,
            values: BTreeMap::from([
                ("memory.rss".to_owned(), 536_870_912.0),
                ("gauge.queue".to_owned(), value),
            ]),
        }],
        losses: Losses::default(),
    }
}

fn encode(manifest: &Manifest) -> Vec<u8> {
    let mut bytes = Vec::new();
    manifest::write(manifest, &mut bytes).unwrap();
    bytes
}

#[test]
fn manifest_is_indented_and_ends_in_newline() {
    let text = String::from_utf8(encode(&sample_manifest(91.5))).unwrap();
    assert!(text.starts_with("{\n  \"schema\": 1,\n") && text.ends_with("\n}\n"), "{text}");
}

#[test]
fn manifest_is_read_equally_by_another_parser() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("incident.json");
    std::fs::write(&path, encode(&sample_manifest(91.5))).unwrap();
    let parsed = peers::python("manifest_read.py", &[path.to_str().unwrap()]);
    assert_eq!(
        parsed.lines().collect::<Vec<_>>(),
        [
            "open 2026-11-23T02:57:33.123000+00:00",
            "rule memory 91.5 80.0",
            "cpu failed the disk is full",
            "lost 12 samples dropped: ring full",
            "orders_eu-1.001.memory.pprof heap 1234",
            "gauge.queue 91.5",
            "memory.rss 536870912.0",
        ]
    );
}

#[test]
fn non_json_values_keep_manifest_readable() {
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let read = manifest::read(&encode(&sample_manifest(value))).unwrap();
        assert_eq!(read.vitals[0].values.keys().collect::<Vec<_>>(), ["memory.rss"]);
        assert_eq!(read.reasons[0].value, None);
    }
}

#[test]
fn unknown_fields_are_ignored() {
    let incident = sample_manifest(1.0);
    let text = String::from_utf8(encode(&incident)).unwrap();
    let later = text.replacen('{', "{\n  \"weather\": {\"sun\": true},", 1);
    assert_eq!(manifest::read(later.as_bytes()).unwrap(), incident);
}

#[test]
fn truncated_manifest_is_rejected_with_position() {
    let encoded = encode(&sample_manifest(1.0));
    for length in 0..encoded.len() - 2 {
        let error = manifest::read(&encoded[..length]).unwrap_err();
        assert!(error.to_string().contains("line"), "{error}");
    }
}

proptest! {
    #[test]
    fn written_manifest_reads_back_equal(value in any::<f64>().prop_filter("finite", |v| v.is_finite())) {
        let mut incident = sample_manifest(value);
        incident.state = IncidentState::Closed;
        prop_assert_eq!(manifest::read(&encode(&incident)).unwrap(), incident);
    }

    #[test]
    fn damaged_manifests_are_read_or_rejected(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut damaged = encode(&sample_manifest(1.0));
        for (at, byte) in damage {
            let at = at.index(damaged.len());
            damaged[at] = byte;
        }
        if let Ok(read) = manifest::read(&damaged) {
            prop_assert!(manifest::write(&read, std::io::sink()).is_ok());
        }
    }
}
