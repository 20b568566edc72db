//! A common interface to all collectors: start, stop, and the evidence they produce.
//!
//! Collectors depend neither on each other nor on this module. Their differences are handled in one
//! small file each: heap profiles are taken at both ends, traces include the vitals. `absent.rs`
//! replaces a collector that is not built in and has the same interface, so no other module
//! checks the features of collectors.

use std::io;

use jiff::Timestamp;

pub(crate) use crate::base::failure::CaptureFailure;
use crate::base::{Bytes, Moment, TimeAnchor};
use crate::codec::{perfetto, pprof, text};
use crate::config::Settings;
use crate::model::{
    ArtifactFormat, CaptureKind, DescriptorDump, Losses, PanicDump, Profile, TaskDump, ThreadDump,
    Timeline,
};
use crate::symbols;

#[cfg(not(all(feature = "cpu", feature = "heap", feature = "trace")))]
pub(crate) mod absent;
#[cfg(feature = "cpu")]
pub(crate) mod cpu;
mod descriptors;
#[cfg(feature = "heap")]
pub(crate) mod heap;
#[cfg(all(feature = "jemalloc", target_os = "linux"))]
mod jemalloc;
#[cfg(all(feature = "heap", not(all(feature = "jemalloc", target_os = "linux"))))]
#[path = "no_jemalloc.rs"]
mod jemalloc;
mod panics;
pub(crate) mod symbol_files;
pub(crate) mod tasks;
mod threads;
#[cfg(feature = "trace")]
pub(crate) mod trace;

#[cfg(not(feature = "cpu"))]
pub(crate) use absent as cpu;
#[cfg(not(feature = "heap"))]
pub(crate) use absent as heap;
#[cfg(not(feature = "trace"))]
pub(crate) use absent as trace;

/// The reason a kind of evidence is unavailable: disabled by the settings or by the build.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unavailable(pub(crate) String);

/// A running collector.
pub(crate) trait Collector {
    fn engine(&self) -> &str;

    /// Returns a snapshot at `now`, or `None` if the collector cannot take one while it is running.
    fn snapshot(&self, _now: Moment) -> Result<Option<Evidence>, CaptureFailure> {
        Ok(None)
    }

    /// Returns the polls recorded so far and in the look-back window, or `None` if the collector
    /// does not record polls.
    fn recorded_polls(&self) -> Option<Timeline> {
        None
    }

    /// Stops the capture and returns the evidence recorded since its start, or `None` if all
    /// evidence was available at the start.
    fn stop(self: Box<Self>, now: Moment) -> Result<Option<Evidence>, CaptureFailure>;
}

/// A collector that was just started, and the evidence available at its start.
pub(crate) struct StartedCapture {
    pub(crate) collector: Box<dyn Collector>,
    pub(crate) initial_evidence: Option<Evidence>,
}

/// A collector whose evidence is complete at its start.
pub(crate) struct Snapshot {
    engine: &'static str,
}

impl Collector for Snapshot {
    fn engine(&self) -> &str {
        self.engine
    }

    fn stop(self: Box<Self>, _: Moment) -> Result<Option<Evidence>, CaptureFailure> {
        Ok(None)
    }
}

/// A feature missing from this build of marple.
pub(crate) struct MissingFeature {
    pub(crate) name: &'static str,
    /// Description of the missing feature.
    pub(crate) description: &'static str,
}

/// Returns the feature that captures of `kind` need, if this build does not have it.
pub(crate) fn missing_feature(kind: CaptureKind) -> Option<MissingFeature> {
    let missing = |name, why| Some(MissingFeature { name, description: why });
    match kind {
        CaptureKind::Cpu if cfg!(not(feature = "cpu")) => {
            missing("cpu", "marple is built without its `cpu` feature")
        }
        CaptureKind::Heap if cfg!(not(feature = "heap")) => {
            missing("heap", "marple is built without its `heap` feature")
        }
        CaptureKind::Trace if cfg!(not(feature = "trace")) => {
            missing("trace", "marple is built without its `trace` feature")
        }
        _ => None,
    }
}

/// Returns the reason captures of `kind` are disabled, or `None` if they are not.
pub(crate) fn disabled_reason(kind: CaptureKind, settings: &Settings) -> Option<&'static str> {
    if let Some(missing) = missing_feature(kind) {
        return Some(missing.description);
    }
    match kind {
        CaptureKind::Threads => threads::disabled_reason(settings),
        CaptureKind::Tasks => tasks::disabled_reason(settings),
        CaptureKind::Cpu => cpu::disabled_reason(settings),
        CaptureKind::Trace
        | CaptureKind::Descriptors
        | CaptureKind::Panics
        | CaptureKind::Heap
        | CaptureKind::Custom => None,
    }
}

/// Returns the maximum memory of the collector of `kind`, excluding memory that is set in the
/// settings.
pub(crate) fn max_memory(kind: CaptureKind, settings: &Settings) -> Bytes {
    match kind {
        CaptureKind::Cpu => cpu::max_memory(settings),
        CaptureKind::Threads => threads::MEMORY,
        CaptureKind::Descriptors => descriptors::MEMORY,
        CaptureKind::Panics => panics::MEMORY,
        CaptureKind::Tasks => tasks::max_memory(),
        CaptureKind::Heap | CaptureKind::Trace | CaptureKind::Custom => Bytes(0),
    }
}

pub(crate) fn start(
    kind: CaptureKind,
    settings: &Settings,
    anchor: TimeAnchor,
) -> Result<StartedCapture, CaptureFailure> {
    match kind {
        CaptureKind::Cpu => cpu::start(kind, settings, anchor),
        CaptureKind::Heap => heap::start(kind, settings, anchor),
        CaptureKind::Trace => trace::start(kind, settings, anchor),
        CaptureKind::Threads => threads::start(settings, anchor),
        CaptureKind::Tasks => tasks::start(settings, anchor),
        CaptureKind::Descriptors => descriptors::start(anchor),
        CaptureKind::Panics => panics::start(anchor),
        CaptureKind::Custom => Err("a custom collector is not started as a capture".into()),
    }
}

/// The output of a collector.
#[cfg_attr(
    not(all(feature = "cpu", feature = "heap", feature = "trace")),
    allow(dead_code, reason = "only built-in collectors create it")
)]
pub(crate) enum Evidence {
    Profile(Box<Profile>),
    Timeline(Box<Timeline>),
    Threads(Box<ThreadDump>),
    Tasks(Box<TaskDump>),
    Descriptors(Box<DescriptorDump>),
    Panics(Box<PanicDump>),
    /// Taken while it is being written.
    Streamed(Box<dyn StreamedEvidence>),
}

/// Evidence that is never held in memory: it is streamed from its source to the file.
pub(crate) trait StreamedEvidence: Send {
    /// Returns the time of the request, which is close to the time it is taken.
    fn requested_at(&self) -> Timestamp;

    fn losses(&self) -> Losses;

    /// Returns a sentence about the written evidence.
    fn note(&self) -> Option<String>;

    /// Takes the evidence and writes it.
    fn write(&self, out: &mut dyn io::Write) -> Result<(), CaptureFailure>;
}

impl Evidence {
    /// Returns the time of a snapshot, or the start time of a recording.
    pub(crate) fn taken_at(&self) -> Timestamp {
        match self {
            Self::Profile(profile) => profile.started,
            Self::Timeline(timeline) => timeline.started,
            Self::Streamed(live) => live.requested_at(),
            Self::Threads(dump) => dump.profile.started,
            Self::Tasks(dump) => dump.taken_at(),
            Self::Descriptors(dump) => dump.taken_at,
            Self::Panics(dump) => dump.taken_at,
        }
    }

    /// Returns `true` if evidence taken at the start of a capture describes the time before it. A
    /// dump describes the moment of the start and is the only evidence of its capture.
    pub(crate) fn is_lookback(&self) -> bool {
        !matches!(self, Self::Threads(_) | Self::Tasks(_) | Self::Descriptors(_) | Self::Panics(_))
    }

    pub(crate) fn losses(&self) -> Losses {
        match self {
            Self::Profile(profile) => profile.losses.clone(),
            Self::Timeline(timeline) => timeline.losses.clone(),
            Self::Streamed(live) => live.losses(),
            Self::Threads(dump) => dump.profile.losses.clone(),
            Self::Tasks(dump) => dump.losses().clone(),
            Self::Descriptors(dump) => dump.losses.clone(),
            Self::Panics(dump) => dump.losses.clone(),
        }
    }

    /// Returns a sentence about what the written artifact shows and cannot show.
    pub(crate) fn note(&self) -> Option<String> {
        match self {
            #[cfg(feature = "heap")]
            Self::Profile(profile) => {
                crate::capture::memory_summary::MemorySummary::from_comments(profile)
            }
            Self::Streamed(live) => live.note(),
            _ => None,
        }
    }

    pub(crate) fn symbolize(&mut self) {
        let profile = match self {
            Self::Profile(profile) => profile,
            Self::Threads(dump) => &mut dump.profile,
            Self::Tasks(dump) => &mut dump.profile,
            Self::Timeline(_) | Self::Streamed(_) | Self::Descriptors(_) | Self::Panics(_) => {
                return;
            }
        };
        symbols::symbolize(profile);
    }

    /// Writes the evidence in its binary format.
    pub(crate) fn write_binary(&self, out: impl io::Write) -> Result<(), CaptureFailure> {
        let form = match self {
            Self::Profile(_) | Self::Streamed(_) => ArtifactFormat::MemoryPprof,
            Self::Timeline(_) => ArtifactFormat::RuntimeTrace,
            Self::Threads(_) => ArtifactFormat::ThreadsPprof,
            Self::Tasks(_) => ArtifactFormat::TasksPprof,
            Self::Descriptors(_) => ArtifactFormat::DescriptorsText,
            Self::Panics(_) => ArtifactFormat::PanicsText,
        };
        self.write(form, out)
    }

    /// Writes the evidence in one of its formats.
    pub(crate) fn write(
        &self,
        form: ArtifactFormat,
        out: impl io::Write,
    ) -> Result<(), CaptureFailure> {
        self.write_with(form, &[], out)
    }

    /// Writes the evidence in one of its formats. A trace shows `stacks` on its threads.
    pub(crate) fn write_with(
        &self,
        form: ArtifactFormat,
        stacks: &[perfetto::Stacks<'_>],
        mut out: impl io::Write,
    ) -> Result<(), CaptureFailure> {
        let written = match (self, form) {
            (Self::Profile(profile), _) => pprof::write(profile, out),
            (Self::Timeline(timeline), _) => perfetto::write_with_stacks(timeline, stacks, out),
            (Self::Streamed(live), _) => return live.write(&mut out),
            (Self::Threads(dump), ArtifactFormat::ThreadsPprof) => pprof::write(&dump.profile, out),
            (Self::Threads(dump), _) => text::threads::write(dump, out),
            (Self::Tasks(dump), ArtifactFormat::TasksPprof) => pprof::write(&dump.profile, out),
            (Self::Tasks(dump), ArtifactFormat::TasksJson) => text::tasks::write_json(dump, out),
            (Self::Tasks(dump), _) => text::tasks::write(dump, out),
            (Self::Descriptors(dump), _) => text::descriptors::write(dump, out),
            (Self::Panics(dump), _) => text::panics::write(dump, out),
        };
        written.map_err(CaptureFailure::from)
    }
}
