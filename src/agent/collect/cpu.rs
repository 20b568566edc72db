//! CPU profiles: one, over the whole capture.

use super::{Collector, Evidence, Failure, Started};
use crate::base::{Anchor, Bytes, Moment};
use crate::config::Settings;
use crate::cpu::Session;
use crate::model::CaptureKind;

/// What an engine may take.
pub(super) const MEMORY: Bytes = Session::MEMORY;

pub(super) fn start(
    _: CaptureKind,
    settings: &Settings,
    anchor: Anchor,
) -> Result<Started, Failure> {
    let session = Session::start(settings.cpu.frequency, anchor)?;
    Ok(Started { collector: Box::new(session), at_start: None })
}

impl Collector for Session {
    fn engine(&self) -> &'static str {
        Self::engine(self)
    }

    fn stop(self: Box<Self>, now: Moment) -> Result<Option<Evidence>, Failure> {
        Ok(Some(Evidence::Profile(Box::new(Self::stop(*self, now)?))))
    }
}
