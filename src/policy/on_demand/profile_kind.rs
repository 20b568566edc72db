//! Kinds of on-demand captures.

use std::time::Duration;

use crate::base::{Bytes, Hertz};
use crate::model::{CaptureKind, CpuMode};

/// A kind of on-demand capture and its parameters.
#[derive(Clone, Debug)]
pub(crate) enum ProfileKind {
    /// A CPU profile. `mode` and `frequency` default to the settings.
    Cpu { duration: Duration, frequency: Option<Hertz>, mode: Option<CpuMode> },
    /// A runtime trace.
    Trace { duration: Duration },
    /// The heap at this moment.
    Heap { view: HeapView, form: ProfileForm },
    /// The difference of two heap profiles, sampled every `rate` bytes if set.
    HeapDelta { duration: Duration, view: HeapView, rate: Option<Bytes> },
    /// The threads at this moment.
    Threads { view: ThreadView, form: ProfileForm },
    /// The difference of two thread profiles.
    ThreadsDelta { duration: Duration, view: ThreadView },
    /// The functions at these addresses.
    Symbols(Vec<u64>),
}

/// Requests that share a limit. Separate limits keep requests that last minutes from blocking those
/// that are answered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProfileClass {
    /// Recordings, which last as long as requested. One of each kind runs at a time; others are
    /// being encoded.
    Timed,
    Snapshot,
    /// Symbol requests. They do not count against the quota, so their limit is low.
    Symbols,
}

impl ProfileClass {
    pub(super) const fn max_requests(self) -> usize {
        match self {
            Self::Timed => 8,
            Self::Snapshot => 8,
            Self::Symbols => 4,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Timed => "captures",
            Self::Snapshot => "snapshots",
            Self::Symbols => "symbol requests",
        }
    }
}

/// Default sample type of a heap profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeapView {
    InUse,
    Allocated,
}

/// Type of a thread profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ThreadView {
    /// One sample per thread: Go's `goroutine`.
    Now,
    /// One sample in total: Go's `threadcreate`.
    Created,
}

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProfileForm {
    /// The binary format for profilers.
    Binary,
    /// The text format.
    Text,
    /// The text format with every thread and task listed.
    Full,
}

impl ProfileKind {
    /// Returns the exclusive engine it needs.
    pub(super) fn engine(&self) -> Option<CaptureKind> {
        match self {
            Self::Cpu { .. } => Some(CaptureKind::Cpu),
            Self::Trace { .. } => Some(CaptureKind::Trace),
            _ => None,
        }
    }

    /// Returns the duration of a recording, or `None` for a snapshot.
    pub(super) fn duration(&self) -> Option<Duration> {
        match self {
            Self::Cpu { duration, .. }
            | Self::Trace { duration }
            | Self::HeapDelta { duration, .. }
            | Self::ThreadsDelta { duration, .. } => Some(*duration),
            Self::Heap { .. } | Self::Threads { .. } | Self::Symbols(_) => None,
        }
    }

    pub(super) fn class(&self) -> ProfileClass {
        match self {
            Self::Symbols(_) => ProfileClass::Symbols,
            _ if self.duration().is_some() => ProfileClass::Timed,
            _ => ProfileClass::Snapshot,
        }
    }

    /// Returns the name used by clients.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Cpu { .. } => "profile",
            Self::Trace { .. } => "trace",
            Self::Heap { view: HeapView::InUse, .. } => "heap",
            Self::Heap { view: HeapView::Allocated, .. } => "allocs",
            Self::HeapDelta { .. } => "heap delta",
            Self::Threads { view: ThreadView::Now, .. } => "goroutine",
            Self::Threads { view: ThreadView::Created, .. } => "threadcreate",
            Self::ThreadsDelta { .. } => "goroutine delta",
            Self::Symbols(_) => "symbol",
        }
    }

    /// Returns `true` if it counts as a capture. A symbol request does not: it costs little more
    /// than the reply.
    pub(super) fn counts_against_quota(&self) -> bool {
        !matches!(self, Self::Symbols(_))
    }

    /// Returns `true` if `self` and `other` cannot run at the same time. There is at most one
    /// difference of each kind: it keeps a whole snapshot in memory for minutes, and one of the
    /// heap may change the sampling rate.
    pub(super) fn conflicts_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::HeapDelta { .. }, Self::HeapDelta { .. })
            | (Self::ThreadsDelta { .. }, Self::ThreadsDelta { .. }) => true,
            _ => self.engine().is_some() && self.engine() == other.engine(),
        }
    }
}
