//! What may be asked for.

use std::time::Duration;

use crate::base::{Bytes, Hertz};
use crate::model::{CaptureKind, CpuMode};

/// What to capture.
#[derive(Clone, Debug)]
pub(crate) enum Take {
    /// A CPU profile; in the settings' mode and at their frequency, if none is given.
    Cpu { duration: Duration, frequency: Option<Hertz>, mode: Option<CpuMode> },
    /// A runtime trace.
    Trace { duration: Duration },
    /// The heap now.
    Heap { view: HeapView, form: Form },
    /// What the heap's profile gained in a time, sampled every `rate` bytes, if one is given.
    HeapDelta { duration: Duration, view: HeapView, rate: Option<Bytes> },
    /// The threads there are.
    Threads { view: ThreadView, form: Form },
    /// What became of the threads in a time.
    ThreadsDelta { duration: Duration, view: ThreadView },
    /// The functions at these addresses.
    Symbols(Vec<u64>),
}

/// Requests that share a limit. Each class has its own, so that requests which last minutes leave room for
/// those that are answered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Captures that last as long as their client asked for. One of each kind runs at a time; the others
    /// are being encoded.
    Timed,
    /// Snapshots.
    Snapshot,
    /// Names of addresses. They cost no capture of the day's budget, so there are few.
    Symbols,
}

impl Class {
    pub(super) const fn most(self) -> usize {
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

/// Which of the heap profile's types is shown first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeapView {
    InUse,
    Allocated,
}

/// What a list of threads is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ThreadView {
    /// One sample a thread: Go's `goroutine`.
    Now,
    /// One sample for all: Go's `threadcreate`.
    Created,
}

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As profilers read it.
    Binary,
    /// As people read it.
    Text,
    /// The same with all there is, one by one.
    Full,
}

impl Take {
    /// The one-of-a-kind engine it needs.
    pub(super) fn engine(&self) -> Option<CaptureKind> {
        match self {
            Self::Cpu { .. } => Some(CaptureKind::Cpu),
            Self::Trace { .. } => Some(CaptureKind::Trace),
            _ => None,
        }
    }

    /// How long it takes; none when it is a look at the present.
    pub(super) fn duration(&self) -> Option<Duration> {
        match self {
            Self::Cpu { duration, .. }
            | Self::Trace { duration }
            | Self::HeapDelta { duration, .. }
            | Self::ThreadsDelta { duration, .. } => Some(*duration),
            Self::Heap { .. } | Self::Threads { .. } | Self::Symbols(_) => None,
        }
    }

    pub(super) fn class(&self) -> Class {
        match self {
            Self::Symbols(_) => Class::Symbols,
            _ if self.duration().is_some() => Class::Timed,
            _ => Class::Snapshot,
        }
    }

    /// Its name among those who ask for it.
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

    /// Whether it is a capture: something that costs the service more than an answer. A look-up of names
    /// is none.
    pub(super) fn is_capture(&self) -> bool {
        !matches!(self, Self::Symbols(_))
    }

    /// Whether `self` and `other` cannot be taken at once. A difference keeps a whole snapshot in memory for
    /// minutes, and one of the heap may change the rate, so there is one of each kind.
    pub(super) fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::HeapDelta { .. }, Self::HeapDelta { .. })
            | (Self::ThreadsDelta { .. }, Self::ThreadsDelta { .. }) => true,
            _ => self.engine().is_some() && self.engine() == other.engine(),
        }
    }
}
