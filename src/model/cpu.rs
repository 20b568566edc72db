//! Engines and modes of CPU profiles.

use std::fmt;
use std::str::FromStr;

/// An engine that samples CPU time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum CpuEngine {
    /// The first of the following engines that works on this machine.
    #[default]
    Auto,
    /// One `perf_event_open` event per thread. The process receives no signal.
    Perf,
    /// One timer per thread on its CPU clock, delivering SIGPROF.
    Timer,
    /// The `pprof` crate: one timer for the process, delivering SIGPROF.
    Pprof,
}

impl CpuEngine {
    /// All engines.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Perf, Self::Timer, Self::Pprof];

    /// Returns the name used in settings and manifests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Perf => "perf",
            Self::Timer => "timer",
            Self::Pprof => "pprof",
        }
    }
}

impl fmt::Display for CpuEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The time base of a CPU profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum CpuMode {
    /// CPU time: samples running threads only.
    #[default]
    Cpu,
    /// Wall-clock time: samples all threads and shows where they block.
    Wall,
}

impl CpuMode {
    /// All modes.
    pub const ALL: [Self; 2] = [Self::Cpu, Self::Wall];

    /// Returns the name used in settings and requests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Wall => "wall",
        }
    }

    /// Returns the mode called `name`, or `None` if there is no such mode.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// An error from parsing a [`CpuEngine`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a CPU engine: write \"auto\", \"perf\", \"timer\" or \"pprof\"")]
pub struct ParseCpuEngineError(String);

impl FromStr for CpuEngine {
    type Err = ParseCpuEngineError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|engine| engine.name() == text)
            .ok_or_else(|| ParseCpuEngineError(text.to_owned()))
    }
}
