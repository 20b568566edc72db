//! Fixtures shared by the tests of the store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tempfile::TempDir;

use super::{Recovery, Store};
use crate::base::{Bytes, Clock, IncidentId, ManualClock};
use crate::config::{DiskReserve, StoreSettings};
use crate::model::{
    CaptureKind, CaptureRecord, IncidentState, Limits, Losses, Manifest, Origin, ProcessInfo,
    Reason, Versions, VitalsRow,
};

pub(super) const OPENED_AT: &str = "2026-11-23T02:57:33.123Z";

/// Returns the manifest of an incident that opened at [`OPENED_AT`], with one running capture.
pub(super) fn manifest() -> Manifest {
    manifest_at(OPENED_AT.parse().unwrap())
}

pub(super) fn manifest_at(opened: Timestamp) -> Manifest {
    Manifest {
        schema: 1,
        id: IncidentId::new(opened),
        service: "orders".into(),
        instance: "eu-1".into(),
        state: IncidentState::Open,
        opened,
        closed: None,
        reasons: vec![Reason {
            origin: Origin::Rule,
            at: opened,
            rule: Some("memory".into()),
            metric: Some("memory".parse().unwrap()),
            value: Some(91.5),
            threshold: Some(90.0),
            text: "memory at 91.5 %, above 90 %".into(),
        }],
        limits: Limits { memory: Some(Bytes::gib(1)), ..Limits::default() },
        process: ProcessInfo {
            pid: 7,
            exe: "/bin/orders".into(),
            build_id: "abcd".into(),
            agent_started: opened,
        },
        versions: Versions { marple: "0.1.0".into(), kernel: "6".into(), arch: "x86_64".into() },
        captures: vec![CaptureRecord::running(CaptureKind::Heap, "sampling".into(), opened)],
        artifacts: Vec::new(),
        removed: Vec::new(),
        vitals: vec![VitalsRow { at: opened, values: [("memory".to_owned(), 91.5)].into() }],
        findings: Vec::new(),
        losses: Losses::default(),
    }
}

/// Returns limits that no test reaches.
pub(super) fn generous_settings() -> StoreSettings {
    StoreSettings {
        max_bytes: Bytes::gib(1),
        max_incidents: 100,
        max_age: Duration::from_secs(86_400),
        min_free_space: DiskReserve::Bytes(Bytes(0)),
        ..StoreSettings::default()
    }
}

/// A store in a temporary directory, with a manual clock.
pub(super) struct Fixture {
    pub(super) temp: TempDir,
    pub(super) clock: Arc<ManualClock>,
    pub(super) store: Store,
}

impl Fixture {
    pub(super) fn new(settings: StoreSettings) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(OPENED_AT.parse().unwrap()));
        let (store, _) =
            Store::open(&temp.path().join("captures"), settings, Arc::clone(&clock) as _).unwrap();
        Self { temp, clock, store }
    }

    pub(super) fn dir(&self) -> &Path {
        self.store.dir()
    }

    /// Returns the manifest of an incident that opens at the clock's present time.
    pub(super) fn manifest(&self) -> Manifest {
        manifest_at(self.clock.wall())
    }

    /// Creates, one second later, a closed incident with one artifact of `bytes` bytes.
    pub(super) fn create_closed(&self, bytes: usize) -> IncidentId {
        self.create_closed_for_rule("memory", bytes)
    }

    /// Creates a closed incident like [`Self::create_closed`], of the rule `name`.
    pub(super) fn create_closed_for_rule(&self, name: &str, bytes: usize) -> IncidentId {
        use std::io::Write;
        self.clock.advance(Duration::from_secs(1));
        let mut incident = self.store.create_incident(name, self.manifest()).unwrap();
        let mut draft = incident.draft(CaptureKind::Heap, self.clock.wall()).unwrap();
        draft.write_all(&vec![b'x'; bytes]).unwrap();
        let artifact = draft.commit().unwrap();
        incident
            .update(|manifest| {
                manifest.artifacts.push(artifact);
                manifest.state = IncidentState::Closed;
            })
            .unwrap();
        incident.id()
    }

    /// Returns the incident IDs of the index, latest first.
    pub(super) fn incident_ids(&self) -> Vec<IncidentId> {
        self.store.list_incidents().unwrap().iter().map(|entry| entry.id).collect()
    }

    /// Drops the store, as an ending process does, and opens it again.
    pub(super) fn reopen(self, settings: StoreSettings) -> (Self, Recovery) {
        let Self { temp, clock, store } = self;
        let dir = store.dir().to_owned();
        drop(store);
        let (store, recovery) = Store::open(&dir, settings, Arc::clone(&clock) as _).unwrap();
        (Self { temp, clock, store }, recovery)
    }
}
