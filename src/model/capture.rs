//! What can be captured.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A kind of evidence. The order is the order of an incident: what vanishes first comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CaptureKind {
    /// What the runtime did: spans, parks, counters.
    Trace,
    /// Where every thread stands.
    Threads,
    /// Where every wrapped task stands.
    Tasks,
    /// Open file descriptors, by what they refer to.
    Descriptors,
    /// Panics since the start, by place.
    Panics,
    /// Where CPU time went.
    Cpu,
    /// What holds memory.
    Heap,
    /// Files of the service's own. No member of a [`CaptureSet`]: an incident has those that its rules
    /// ask for by [`Collect`](super::Collect), whatever else it captures.
    Custom,
}

impl CaptureKind {
    /// Every kind that marple captures itself, in order.
    pub const ALL: [Self; 7] = [
        Self::Trace,
        Self::Threads,
        Self::Tasks,
        Self::Descriptors,
        Self::Panics,
        Self::Cpu,
        Self::Heap,
    ];

    /// Its name in configuration, manifests and URLs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Threads => "threads",
            Self::Tasks => "tasks",
            Self::Descriptors => "descriptors",
            Self::Panics => "panics",
            Self::Cpu => "cpu",
            Self::Heap => "heap",
            Self::Custom => "custom",
        }
    }

    /// Whether taking it costs the service next to nothing, so that it runs above `cpu_ceiling` too.
    pub const fn is_cheap(self) -> bool {
        !matches!(self, Self::Cpu)
    }

    /// Whether it can be taken at a moment, again and again while it runs.
    pub const fn is_snapshot(self) -> bool {
        matches!(self, Self::Heap)
    }
}

/// A form in which evidence is written; some kinds of capture leave several files, each in its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// A Perfetto trace.
    RuntimeTrace,
    /// The threads, to be read.
    ThreadsText,
    /// The threads, for pprof's readers.
    ThreadsPprof,
    /// The tasks, to be read.
    TasksText,
    /// The tasks, for scripts.
    TasksJson,
    /// The tasks, for pprof's readers.
    TasksPprof,
    /// The open file descriptors, to be read.
    DescriptorsText,
    /// The panics, to be read.
    PanicsText,
    /// A CPU profile.
    CpuPprof,
    /// A heap profile.
    MemoryPprof,
    /// Whatever a collector of the service's own writes.
    Custom,
}

impl Form {
    /// Every form that marple writes itself, those of one kind together, its main one first.
    pub const ALL: [Self; 10] = [
        Self::RuntimeTrace,
        Self::ThreadsText,
        Self::ThreadsPprof,
        Self::TasksText,
        Self::TasksJson,
        Self::TasksPprof,
        Self::DescriptorsText,
        Self::PanicsText,
        Self::CpuPprof,
        Self::MemoryPprof,
    ];

    /// The forms that evidence of `kind` is written in, the main one first.
    pub fn of(kind: CaptureKind) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |form| form.kind() == kind)
    }

    /// The last part of a file's name; of a file of the service's own what its name begins with.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::RuntimeTrace => "runtime.trace",
            Self::ThreadsText => "threads.txt",
            Self::ThreadsPprof => "threads.pprof",
            Self::TasksText => "tasks.txt",
            Self::TasksJson => "tasks.json",
            Self::TasksPprof => "tasks.pprof",
            Self::DescriptorsText => "descriptors.txt",
            Self::PanicsText => "panics.txt",
            Self::CpuPprof => "cpu.pprof",
            Self::MemoryPprof => "memory.pprof",
            Self::Custom => "custom",
        }
    }

    /// The kind of capture that leaves it.
    pub const fn kind(self) -> CaptureKind {
        match self {
            Self::RuntimeTrace => CaptureKind::Trace,
            Self::ThreadsText | Self::ThreadsPprof => CaptureKind::Threads,
            Self::TasksText | Self::TasksJson | Self::TasksPprof => CaptureKind::Tasks,
            Self::DescriptorsText => CaptureKind::Descriptors,
            Self::PanicsText => CaptureKind::Panics,
            Self::CpuPprof => CaptureKind::Cpu,
            Self::MemoryPprof => CaptureKind::Heap,
            Self::Custom => CaptureKind::Custom,
        }
    }
}

/// A kind's main form.
impl From<CaptureKind> for Form {
    fn from(kind: CaptureKind) -> Self {
        match kind {
            CaptureKind::Trace => Self::RuntimeTrace,
            CaptureKind::Threads => Self::ThreadsText,
            CaptureKind::Tasks => Self::TasksText,
            CaptureKind::Descriptors => Self::DescriptorsText,
            CaptureKind::Panics => Self::PanicsText,
            CaptureKind::Cpu => Self::CpuPprof,
            CaptureKind::Heap => Self::MemoryPprof,
            CaptureKind::Custom => Self::Custom,
        }
    }
}

impl fmt::Display for CaptureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why a text is not a kind of capture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a capture: write one of \"cpu\", \"heap\", \"trace\", \"threads\", \"tasks\", \
     \"descriptors\", \"panics\""
)]
pub struct ParseCaptureKindError(String);

impl FromStr for CaptureKind {
    type Err = ParseCaptureKindError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| ParseCaptureKindError(text.to_owned()))
    }
}

impl Serialize for CaptureKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for CaptureKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Manifests name it, settings and requests cannot.
        let name = String::deserialize(deserializer)?;
        if name == Self::Custom.name() {
            return Ok(Self::Custom);
        }
        name.parse().map_err(serde::de::Error::custom)
    }
}

/// A set of the kinds that marple captures itself; iterates in the order of [`CaptureKind`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CaptureSet(u8);

impl CaptureSet {
    /// The set of no kind.
    pub const EMPTY: Self = Self(0);

    /// The set of every kind.
    pub fn all() -> Self {
        CaptureKind::ALL.into_iter().collect()
    }

    /// Whether no kind is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `kind` is in it.
    pub const fn contains(self, kind: CaptureKind) -> bool {
        self.0 & (1 << kind as u8) != 0
    }

    /// Adds `kind`, if it is one that can be a member.
    pub const fn insert(&mut self, kind: CaptureKind) {
        if !matches!(kind, CaptureKind::Custom) {
            self.0 |= 1 << kind as u8;
        }
    }

    /// What is in this set and not in `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// What is in both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in either.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The kinds in it.
    pub fn iter(self) -> impl Iterator<Item = CaptureKind> {
        CaptureKind::ALL.into_iter().filter(move |&kind| self.contains(kind))
    }
}

impl FromIterator<CaptureKind> for CaptureSet {
    fn from_iter<I: IntoIterator<Item = CaptureKind>>(kinds: I) -> Self {
        kinds.into_iter().fold(Self::EMPTY, |mut set, kind| {
            set.insert(kind);
            set
        })
    }
}

impl<const N: usize> From<[CaptureKind; N]> for CaptureSet {
    fn from(kinds: [CaptureKind; N]) -> Self {
        kinds.into_iter().collect()
    }
}

impl Serialize for CaptureSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for CaptureSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<CaptureKind>::deserialize(deserializer)?.into_iter().collect())
    }
}
