//! How CPU profiles are taken.

use std::fmt;
use std::str::FromStr;

/// The means by which CPU time is sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CpuEngine {
    /// The first of the others that the machine allows, in their order.
    #[default]
    Auto,
    /// Events of the kernel, one for each thread; no signal reaches the process.
    Perf,
    /// A timer on the CPU clock of each thread, and SIGPROF.
    Timer,
    /// The `pprof` crate: one timer for the process, and SIGPROF.
    Pprof,
}

impl CpuEngine {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Perf, Self::Timer, Self::Pprof];

    /// Its name in settings and manifests.
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

/// What a CPU profile samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CpuMode {
    /// Threads that run, by their CPU time.
    #[default]
    Cpu,
    /// All threads, by time: where they hang.
    Wall,
}

impl CpuMode {
    /// Every one.
    pub const ALL: [Self; 2] = [Self::Cpu, Self::Wall];

    /// Its name in settings and requests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Wall => "wall",
        }
    }

    /// The mode of this name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// Why a text is not an engine.
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
