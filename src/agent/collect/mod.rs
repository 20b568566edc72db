//! The collectors behind one face: start it, stop it, get evidence.
//!
//! The collectors themselves know nothing of each other or of this; what differs between them (heap
//! profiles are taken at both ends, traces want the vitals) stands in one small file each. A kind that
//! is not built in has `absent.rs` in its place, of the same shape, so that no other line of the agent
//! asks for a feature.

use std::error::Error;
use std::io;

use jiff::Timestamp;

use crate::base::{Anchor, Bytes, Moment};
use crate::codec::{perfetto, pprof};
use crate::config::Settings;
use crate::model::{CaptureKind, Losses, Profile, Timeline};
use crate::symbols;

#[cfg(not(all(feature = "cpu", feature = "heap", feature = "trace")))]
pub(super) mod absent;
#[cfg(feature = "cpu")]
pub(super) mod cpu;
#[cfg(feature = "heap")]
pub(super) mod heap;
#[cfg(feature = "trace")]
pub(super) mod trace;

#[cfg(not(feature = "cpu"))]
pub(super) use absent as cpu;
#[cfg(not(feature = "heap"))]
pub(super) use absent as heap;
#[cfg(not(feature = "trace"))]
pub(super) use absent as trace;

/// Why a collector did not do what it was asked.
pub(super) type Failure = Box<dyn Error + Send + Sync>;

/// A collector at work.
pub(super) trait Collector {
    /// By what means it captures.
    fn engine(&self) -> &str;

    /// What is there at `now`, of a collector that can tell while it goes on.
    fn peek(&self, _now: Moment) -> Result<Option<Evidence>, Failure> {
        Ok(None)
    }

    /// Ends the capture and hands over what was seen since it began.
    fn stop(self: Box<Self>, now: Moment) -> Result<Evidence, Failure>;
}

/// A collector that has just been started, and what it saw right then.
pub(super) struct Started {
    pub(super) collector: Box<dyn Collector>,
    pub(super) at_start: Option<Evidence>,
}

/// How much memory the collector of `kind` may take besides what it is set to.
pub(super) fn memory(kind: CaptureKind, settings: &Settings) -> Bytes {
    match kind {
        CaptureKind::Cpu => cpu::memory(settings),
        CaptureKind::Heap | CaptureKind::Trace => Bytes(0),
    }
}

/// Starts the collector of `kind`.
pub(super) fn start(
    kind: CaptureKind,
    settings: &Settings,
    anchor: Anchor,
) -> Result<Started, Failure> {
    match kind {
        CaptureKind::Cpu => cpu::start(kind, settings, anchor),
        CaptureKind::Heap => heap::start(kind, settings, anchor),
        CaptureKind::Trace => trace::start(kind, settings, anchor),
    }
}

/// What a collector saw.
#[cfg_attr(
    not(all(feature = "cpu", feature = "heap", feature = "trace")),
    allow(dead_code, reason = "a collector that is not built in makes none")
)]
pub(super) enum Evidence {
    Profile(Box<Profile>),
    Timeline(Box<Timeline>),
    /// Taken while it is written.
    Live(Box<dyn Live>),
}

/// Evidence that is never held in memory: it goes from where it is into the file.
pub(super) trait Live {
    /// When it was asked for, which is as good as when it is taken.
    fn asked(&self) -> Timestamp;

    /// What it lacks.
    fn losses(&self) -> Losses;

    /// Takes and writes it.
    fn write(&self, out: &mut dyn io::Write) -> Result<(), Failure>;
}

impl Evidence {
    /// When it was taken: a snapshot at that moment, a recording from then on.
    pub(super) fn taken(&self) -> Timestamp {
        match self {
            Self::Profile(profile) => profile.started,
            Self::Timeline(timeline) => timeline.started,
            Self::Live(live) => live.asked(),
        }
    }

    /// What it lacks.
    pub(super) fn losses(&self) -> Losses {
        match self {
            Self::Profile(profile) => profile.losses.clone(),
            Self::Timeline(timeline) => timeline.losses.clone(),
            Self::Live(live) => live.losses(),
        }
    }

    /// Gives addresses the names of their functions.
    pub(super) fn symbolize(&mut self) {
        if let Self::Profile(profile) = self {
            symbols::name_functions(profile);
        }
    }

    /// Writes it in the form its readers know.
    pub(super) fn write(&self, mut out: impl io::Write) -> Result<(), Failure> {
        match self {
            Self::Profile(profile) => Ok(pprof::write(profile, out)?),
            Self::Timeline(timeline) => Ok(perfetto::write(timeline, out)?),
            Self::Live(live) => live.write(&mut out),
        }
    }
}
