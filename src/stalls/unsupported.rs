//! Stub of the stall detector, which needs the `trace` feature.

use std::time::Duration;

use tokio::time::Instant;

use super::standstill::StandstillDetector;
use crate::base::side_thread::SideThread;
use crate::config::Settings;
use crate::model::{Stall, ThreadDump};
use crate::vitals::Runtimes;

/// Stub of a detected stall.
pub(crate) struct DetectedStall {
    pub(crate) stall: Stall,
    pub(crate) dump: Option<Box<ThreadDump>>,
    pub(crate) is_in_place: bool,
}

pub(crate) fn longest_poll_in_progress() -> Option<Duration> {
    None
}

pub(crate) fn threshold(_: &Settings) -> Option<Duration> {
    None
}

/// Stub of the stall detector.
pub(crate) struct Stalls;

impl Stalls {
    pub(crate) fn new(_: Runtimes, _: SideThread) -> Self {
        Self
    }

    pub(crate) fn apply(&mut self, _: &Settings) {}

    pub(crate) fn next_check(&self) -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    pub(crate) async fn next(
        &mut self,
        _: &mut StandstillDetector,
        _: Instant,
    ) -> Vec<DetectedStall> {
        std::future::pending().await
    }
}
