//! What stands in for a collector that is not built in: the captures it would make fail by name, all
//! else does nothing.

#![allow(dead_code, reason = "what is called depends on which features are missing")]

use super::{Failure, Started};
use crate::base::{Anchor, Bytes};
use crate::config::Settings;
use crate::model::{CaptureKind, Vitals};

pub(super) const MEMORY: Bytes = Bytes(0);

pub(super) fn start(kind: CaptureKind, _: &Settings, _: Anchor) -> Result<Started, Failure> {
    Err(format!("marple is built without its `{kind}` feature: add it in Cargo.toml").into())
}

/// What a guard would be.
pub(in crate::agent) struct Nothing;

pub(in crate::agent) fn exclude_current_thread() -> Nothing {
    Nothing
}

pub(in crate::agent) fn exclude_for_good() {}

pub(in crate::agent) fn tick() {}

pub(in crate::agent) fn set_rate(_: Bytes) {}

pub(in crate::agent) fn record_vitals(_: &Vitals) {}

pub(in crate::agent) fn record_reason(_: &str) {}
