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
use crate::codec::{perfetto, pprof, text};
use crate::config::Settings;
use crate::model::{
    CaptureKind, DescriptorDump, Form, Losses, PanicDump, Profile, TaskDump, ThreadDump, Timeline,
};
use crate::symbols;

#[cfg(not(all(feature = "cpu", feature = "heap", feature = "trace")))]
pub(super) mod absent;
#[cfg(feature = "cpu")]
pub(super) mod cpu;
mod descriptors;
#[cfg(feature = "heap")]
pub(super) mod heap;
#[cfg(all(feature = "jemalloc", target_os = "linux"))]
mod jemalloc;
#[cfg(all(feature = "heap", not(all(feature = "jemalloc", target_os = "linux"))))]
#[path = "no_jemalloc.rs"]
mod jemalloc;
pub(super) mod names;
mod panics;
#[cfg(feature = "trace")]
pub(super) mod stalls;
#[cfg(feature = "trace")]
mod suspects;
pub(super) mod tasks;
mod threads;
#[cfg(feature = "trace")]
pub(super) mod trace;

#[cfg(not(feature = "cpu"))]
pub(super) use absent as cpu;
#[cfg(not(feature = "heap"))]
pub(super) use absent as heap;
#[cfg(not(feature = "trace"))]
pub(super) use absent as stalls;
#[cfg(not(feature = "trace"))]
pub(super) use absent as trace;

/// Why a collector did not do what it was asked.
pub(super) type Failure = Box<dyn Error + Send + Sync>;

/// Why there is nothing to collect of a kind: the settings or the build leave it out.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Absent(pub(super) String);

/// A collector at work.
pub(super) trait Collector {
    /// By what means it captures.
    fn engine(&self) -> &str;

    /// What is there at `now`, of a collector that can tell while it goes on.
    fn peek(&self, _now: Moment) -> Result<Option<Evidence>, Failure> {
        Ok(None)
    }

    /// Which tasks were polled so far and in the window before, of a collector that records that.
    fn polls(&self) -> Option<Timeline> {
        None
    }

    /// Ends the capture and hands over what was seen since it began; nothing where all was seen then.
    fn stop(self: Box<Self>, now: Moment) -> Result<Option<Evidence>, Failure>;
}

/// A collector that has just been started, and what it saw right then.
pub(super) struct Started {
    pub(super) collector: Box<dyn Collector>,
    pub(super) at_start: Option<Evidence>,
}

/// The collector of what was seen whole when it began.
pub(super) struct Snapshot {
    engine: &'static str,
}

impl Collector for Snapshot {
    fn engine(&self) -> &str {
        self.engine
    }

    fn stop(self: Box<Self>, _: Moment) -> Result<Option<Evidence>, Failure> {
        Ok(None)
    }
}

/// A feature that this build of marple does not have.
pub(super) struct MissingFeature {
    pub(super) name: &'static str,
    /// In words.
    pub(super) why: &'static str,
}

/// Returns the feature that captures of `kind` need, if this build does not have it.
pub(super) fn missing_feature(kind: CaptureKind) -> Option<MissingFeature> {
    let missing = |name, why| Some(MissingFeature { name, why });
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

/// Why the settings want no capture of `kind`, if they do not.
pub(super) fn switched_off(kind: CaptureKind, settings: &Settings) -> Option<&'static str> {
    if let Some(missing) = missing_feature(kind) {
        return Some(missing.why);
    }
    match kind {
        CaptureKind::Threads => threads::switched_off(settings),
        CaptureKind::Tasks => tasks::switched_off(settings),
        CaptureKind::Cpu => cpu::switched_off(settings),
        CaptureKind::Trace
        | CaptureKind::Descriptors
        | CaptureKind::Panics
        | CaptureKind::Heap
        | CaptureKind::Custom => None,
    }
}

/// How much memory the collector of `kind` may take besides what it is set to.
pub(super) fn memory(kind: CaptureKind, settings: &Settings) -> Bytes {
    match kind {
        CaptureKind::Cpu => cpu::memory(settings),
        CaptureKind::Threads => threads::MEMORY,
        CaptureKind::Descriptors => descriptors::MEMORY,
        CaptureKind::Panics => panics::MEMORY,
        CaptureKind::Tasks => tasks::memory(),
        CaptureKind::Heap | CaptureKind::Trace | CaptureKind::Custom => Bytes(0),
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
        CaptureKind::Threads => threads::start(settings, anchor),
        CaptureKind::Tasks => tasks::start(settings, anchor),
        CaptureKind::Descriptors => descriptors::start(anchor),
        CaptureKind::Panics => panics::start(anchor),
        CaptureKind::Custom => Err("it is in no set of captures".into()),
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
    Threads(Box<ThreadDump>),
    Tasks(Box<TaskDump>),
    Descriptors(Box<DescriptorDump>),
    Panics(Box<PanicDump>),
    /// Taken while it is written.
    Live(Box<dyn Live>),
}

/// Evidence that is never held in memory: it goes from where it is into the file.
pub(super) trait Live: Send {
    /// When it was asked for, which is as good as when it is taken.
    fn asked(&self) -> Timestamp;

    /// What it lacks.
    fn losses(&self) -> Losses;

    /// A sentence on what it shows, once it was written.
    fn note(&self) -> Option<String>;

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
            Self::Threads(dump) => dump.profile.started,
            Self::Tasks(dump) => dump.taken(),
            Self::Descriptors(dump) => dump.taken,
            Self::Panics(dump) => dump.taken,
        }
    }

    /// Whether it is of the time before the capture, when it was taken at its start: a dump is of that
    /// moment and all there is of its capture.
    pub(super) fn is_from_before(&self) -> bool {
        !matches!(self, Self::Threads(_) | Self::Tasks(_) | Self::Descriptors(_) | Self::Panics(_))
    }

    /// What it lacks.
    pub(super) fn losses(&self) -> Losses {
        match self {
            Self::Profile(profile) => profile.losses.clone(),
            Self::Timeline(timeline) => timeline.losses.clone(),
            Self::Live(live) => live.losses(),
            Self::Threads(dump) => dump.profile.losses.clone(),
            Self::Tasks(dump) => dump.losses().clone(),
            Self::Descriptors(dump) => dump.losses.clone(),
            Self::Panics(dump) => dump.losses.clone(),
        }
    }

    /// A sentence on what the file shows and what it cannot show, once it was written.
    pub(super) fn note(&self) -> Option<String> {
        match self {
            #[cfg(feature = "heap")]
            Self::Profile(profile) => super::memory_summary::MemorySummary::of(profile),
            Self::Live(live) => live.note(),
            _ => None,
        }
    }

    /// Gives addresses the names of their functions.
    pub(super) fn symbolize(&mut self) {
        let profile = match self {
            Self::Profile(profile) => profile,
            Self::Threads(dump) => &mut dump.profile,
            Self::Tasks(dump) => &mut dump.profile,
            Self::Timeline(_) | Self::Live(_) | Self::Descriptors(_) | Self::Panics(_) => {
                return;
            }
        };
        symbols::name_functions(profile);
    }

    /// Writes it in the form that programs read.
    pub(super) fn write_binary(&self, out: impl io::Write) -> Result<(), Failure> {
        let form = match self {
            Self::Profile(_) | Self::Live(_) => Form::MemoryPprof,
            Self::Timeline(_) => Form::RuntimeTrace,
            Self::Threads(_) => Form::ThreadsPprof,
            Self::Tasks(_) => Form::TasksPprof,
            Self::Descriptors(_) => Form::DescriptorsText,
            Self::Panics(_) => Form::PanicsText,
        };
        self.write(form, out)
    }

    /// Writes it in one of the forms its readers know.
    pub(super) fn write(&self, form: Form, out: impl io::Write) -> Result<(), Failure> {
        self.write_with(form, &[], out)
    }

    /// As [`Self::write`]; a trace shows `stacks` on its threads.
    pub(super) fn write_with(
        &self,
        form: Form,
        stacks: &[perfetto::Stacks<'_>],
        mut out: impl io::Write,
    ) -> Result<(), Failure> {
        let written = match (self, form) {
            (Self::Profile(profile), _) => pprof::write(profile, out),
            (Self::Timeline(timeline), _) => perfetto::write_with(timeline, stacks, out),
            (Self::Live(live), _) => return live.write(&mut out),
            (Self::Threads(dump), Form::ThreadsPprof) => pprof::write(&dump.profile, out),
            (Self::Threads(dump), _) => text::threads::write(dump, out),
            (Self::Tasks(dump), Form::TasksPprof) => pprof::write(&dump.profile, out),
            (Self::Tasks(dump), Form::TasksJson) => text::tasks::write_json(dump, out),
            (Self::Tasks(dump), _) => text::tasks::write(dump, out),
            (Self::Descriptors(dump), _) => text::descriptors::write(dump, out),
            (Self::Panics(dump), _) => text::panics::write(dump, out),
        };
        written.map_err(Failure::from)
    }
}
