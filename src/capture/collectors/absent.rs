//! Stub for collectors that are not built in: their captures fail with the name of the missing
//! feature, everything else is a no-op.

#![allow(dead_code, reason = "the functions used depend on the missing features")]

use jiff::Timestamp;

use crate::base::{Bytes, TimeAnchor};
use crate::capture::collectors::{CaptureFailure, Evidence, StartedCapture, Unavailable};
use crate::config::{HeapSettings, Settings, TraceSettings};
use crate::model::{CaptureKind, Profile, Rule, Stall, Vitals};

pub(super) fn disabled_reason(_: &Settings) -> Option<&'static str> {
    None
}

pub(super) fn max_memory(_: &Settings) -> Bytes {
    Bytes(0)
}

pub(crate) fn read_images() {}

pub(super) fn start(
    kind: CaptureKind,
    _: &Settings,
    _: TimeAnchor,
) -> Result<StartedCapture, CaptureFailure> {
    Err(missing_feature_error(kind))
}

fn missing_feature_error(kind: CaptureKind) -> CaptureFailure {
    Unavailable(format!("marple is built without its `{kind}` feature; add it in Cargo.toml"))
        .into()
}

/// Stub of a guard.
pub(crate) struct NoCollector;

pub(crate) type LookbackState = NoCollector;

impl NoCollector {
    pub(crate) fn description(&self, _: &Settings) -> String {
        "marple is built without its `cpu` feature".to_owned()
    }
}

pub(crate) fn start_lookback(_: &Settings) -> NoCollector {
    NoCollector
}

pub(crate) fn exclude_current_thread() -> NoCollector {
    NoCollector
}

pub(crate) fn exclude_thread_permanently() {}

pub(crate) fn tick(_: &mut Vitals) {}

pub(crate) fn set_rates(_: &HeapSettings) {}

pub(crate) fn streamed_profile(_: Timestamp) -> Result<Evidence, CaptureFailure> {
    Err(missing_feature_error(CaptureKind::Heap))
}

pub(crate) fn snapshot(_: Timestamp) -> Result<Box<Profile>, CaptureFailure> {
    Err(missing_feature_error(CaptureKind::Heap))
}

pub(crate) fn unavailable_reason() -> Option<String> {
    None
}

pub(crate) fn override_rate(_: Option<Bytes>) {}

pub(crate) fn warm_up_dump() {}

pub(crate) fn arm_threshold<'r>(_: &Vitals, _: impl Iterator<Item = &'r Rule>) {}

/// Stub of the heap threshold notifications.
pub(crate) struct ThresholdEvents;

impl ThresholdEvents {
    pub(crate) fn subscribe() -> Self {
        Self
    }

    pub(crate) async fn next(&self) {
        std::future::pending().await
    }
}

pub(crate) fn record_vitals(_: &Vitals) {}

pub(crate) fn record_reason(_: &str) {}

pub(crate) fn configure(_: &TraceSettings) {}

pub(crate) fn stop_recording(_: &TraceSettings) {}

pub(crate) fn record_stall(_: &Stall) {}
