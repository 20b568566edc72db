//! Kinds of captures and the forms of their artifacts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A kind of evidence. The order is that of an incident: the most short-lived evidence comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum CaptureKind {
    /// Runtime activity: spans, parks, counters.
    Trace,
    /// The stack of every thread.
    Threads,
    /// The stack of every wrapped task.
    Tasks,
    /// Open file descriptors, grouped by target.
    Descriptors,
    /// Panics since the start, grouped by source location.
    Panics,
    /// CPU time by stack.
    Cpu,
    /// Live memory by allocation stack.
    Heap,
    /// Files of custom collectors.
    ///
    /// Not a member of a [`CaptureSet`]: the rules of an incident select them by
    /// [`CollectorSelection`](super::CollectorSelection), independently of its other captures.
    Custom,
}

impl CaptureKind {
    /// All built-in kinds, in order.
    pub const ALL: [Self; 7] = [
        Self::Trace,
        Self::Threads,
        Self::Tasks,
        Self::Descriptors,
        Self::Panics,
        Self::Cpu,
        Self::Heap,
    ];

    /// Returns the name used in configuration, manifests and URLs.
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

    /// Returns `true` if the capture costs the service almost nothing, so that it also runs above
    /// `skip_cpu_profile_above`.
    pub const fn has_low_overhead(self) -> bool {
        !matches!(self, Self::Cpu)
    }

    /// Returns `true` if the capture can be taken at an instant, repeatedly while it is running.
    pub const fn is_snapshot(self) -> bool {
        matches!(self, Self::Heap)
    }
}

/// A file format of evidence. Some kinds of capture write several files, each in another form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArtifactFormat {
    /// A Perfetto trace.
    RuntimeTrace,
    /// The threads as text.
    ThreadsText,
    /// The threads as a pprof profile.
    ThreadsPprof,
    /// The tasks as text.
    TasksText,
    /// The tasks as JSON.
    TasksJson,
    /// The tasks as a pprof profile.
    TasksPprof,
    /// The open file descriptors as text.
    DescriptorsText,
    /// The panics as text.
    PanicsText,
    /// A CPU profile in pprof format.
    CpuPprof,
    /// A heap profile in pprof format.
    MemoryPprof,
    /// The file of a custom collector, in any format.
    Custom,
}

impl ArtifactFormat {
    /// All built-in forms, grouped by kind, the main form of each kind first.
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

    /// Returns the forms in which evidence of `kind` is written, the main form first.
    pub fn for_kind(kind: CaptureKind) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |form| form.kind() == kind)
    }

    /// Returns the suffix of the file name. For [`ArtifactFormat::Custom`] it is the prefix of the
    /// collector's own file name.
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

    /// Returns the kind of capture that writes this form.
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

/// Returns the main form of a kind.
impl From<CaptureKind> for ArtifactFormat {
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

/// An error from parsing a [`CaptureKind`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a capture kind: write one of \"cpu\", \"heap\", \"trace\", \"threads\", \"tasks\", \
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
        // Manifests contain `custom`; settings and requests must not.
        let name = String::deserialize(deserializer)?;
        if name == Self::Custom.name() {
            return Ok(Self::Custom);
        }
        name.parse().map_err(serde::de::Error::custom)
    }
}

/// A set of built-in kinds. Iterates in the order of [`CaptureKind`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CaptureSet(u8);

impl CaptureSet {
    /// The empty set.
    pub const EMPTY: Self = Self(0);

    /// Returns the set of all kinds.
    pub fn all() -> Self {
        CaptureKind::ALL.into_iter().collect()
    }

    /// Returns `true` if the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns `true` if the set contains `kind`.
    pub const fn contains(self, kind: CaptureKind) -> bool {
        self.0 & (1 << kind as u8) != 0
    }

    /// Adds `kind`. Ignores [`CaptureKind::Custom`], which cannot be a member.
    pub const fn insert(&mut self, kind: CaptureKind) {
        if !matches!(kind, CaptureKind::Custom) {
            self.0 |= 1 << kind as u8;
        }
    }

    /// Returns the difference `self - other`.
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Returns the intersection of both sets.
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns the union of both sets.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns the kinds in the set, in order.
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

impl From<CaptureKind> for CaptureSet {
    fn from(kind: CaptureKind) -> Self {
        [kind].into()
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
