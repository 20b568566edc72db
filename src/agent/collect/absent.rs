//! Stub for collectors that are not built in: their captures fail with the name of the missing
//! feature, everything else is a no-op.

#![allow(dead_code, reason = "the functions used depend on the missing features")]

use std::time::Duration;

use jiff::Timestamp;

use super::{Absent, CaptureFailure, Evidence, StartedCapture};
use crate::agent::standstill::StandstillDetector;
use crate::base::{Bytes, TimeAnchor};
use crate::config::{HeapSettings, Settings, TraceSettings};
use crate::model::{CaptureKind, Profile, Rule, Stall, ThreadDump, Vitals};
use crate::vitals::Runtimes;

pub(super) fn switched_off(_: &Settings) -> Option<&'static str> {
    None
}

pub(super) fn memory(_: &Settings) -> Bytes {
    Bytes(0)
}

pub(in crate::agent) fn read_images() {}

pub(super) fn start(
    kind: CaptureKind,
    _: &Settings,
    _: TimeAnchor,
) -> Result<StartedCapture, CaptureFailure> {
    Err(missing(kind))
}

fn missing(kind: CaptureKind) -> CaptureFailure {
    Absent(format!("marple is built without its `{kind}` feature: add it in Cargo.toml")).into()
}

/// Stub of a guard.
pub(in crate::agent) struct NoCollector;

pub(in crate::agent) type LookbackState = NoCollector;

impl NoCollector {
    pub(in crate::agent) fn words(&self, _: &Settings) -> String {
        "marple is built without its `cpu` feature".to_owned()
    }
}

pub(in crate::agent) fn launch(_: &Settings) -> NoCollector {
    NoCollector
}

pub(in crate::agent) fn exclude_current_thread() -> NoCollector {
    NoCollector
}

pub(in crate::agent) fn exclude_for_good() {}

pub(in crate::agent) fn tick(_: &mut Vitals) {}

pub(in crate::agent) fn set_rates(_: &HeapSettings) {}

pub(in crate::agent) fn now(_: Timestamp) -> Result<Evidence, CaptureFailure> {
    Err(missing(CaptureKind::Heap))
}

pub(in crate::agent) fn snapshot(_: Timestamp) -> Result<Box<Profile>, CaptureFailure> {
    Err(missing(CaptureKind::Heap))
}

pub(in crate::agent) fn why_absent() -> Option<String> {
    None
}

pub(in crate::agent) fn ask_rate(_: Option<Bytes>) {}

pub(in crate::agent) fn rehearse() {}

pub(in crate::agent) fn watch<'r>(_: &Vitals, _: impl Iterator<Item = &'r Rule>) {}

/// Stub of the heap threshold notifications.
pub(in crate::agent) struct ThresholdEvents;

impl ThresholdEvents {
    pub(in crate::agent) fn listen() -> Self {
        Self
    }

    pub(in crate::agent) async fn next(&self) {
        std::future::pending().await
    }
}

pub(in crate::agent) fn record_vitals(_: &Vitals) {}

pub(in crate::agent) fn record_reason(_: &str) {}

pub(in crate::agent) fn configure(_: &TraceSettings) {}

pub(in crate::agent) fn end(_: &TraceSettings) {}

/// Stub of a detected stall.
pub(in crate::agent) struct FoundStalls {
    pub(in crate::agent) stall: Stall,
    pub(in crate::agent) dump: Option<Box<ThreadDump>>,
    pub(in crate::agent) is_in_place: bool,
}

pub(in crate::agent) fn longest() -> Option<Duration> {
    None
}

pub(in crate::agent) fn threshold(_: &Settings) -> Option<Duration> {
    None
}

/// Stub of the stall detector.
pub(in crate::agent) struct Stalls;

impl Stalls {
    pub(in crate::agent) fn new(_: Runtimes) -> Self {
        Self
    }

    pub(in crate::agent) fn apply(&mut self, _: &Settings) {}

    pub(in crate::agent) fn due(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + Duration::from_secs(3600)
    }

    pub(in crate::agent) async fn next(
        &mut self,
        _: &mut StandstillDetector,
        _: tokio::time::Instant,
    ) -> Vec<FoundStalls> {
        std::future::pending().await
    }
}

pub(in crate::agent) fn record_stall(_: &Stall) {}
