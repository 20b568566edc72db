//! Errors of CPU profiles.

use crate::base::Hertz;
use crate::os;
use std::path::PathBuf;

/// An error that prevents a CPU profile.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another session is running.
    #[error("a CPU profile is already being recorded; stop it or wait until it ends")]
    Busy,
    /// The frequency is outside the supported range.
    #[error("cannot sample at {asked}; choose a frequency from {lowest} to {highest}")]
    Frequency {
        /// Requested frequency.
        asked: Hertz,
        /// Lowest supported frequency.
        lowest: Hertz,
        /// Highest supported frequency.
        highest: Hertz,
    },
    /// The system does not allow this engine.
    #[error("CPU engine `{engine}` is unavailable: {why}")]
    EngineUnavailable {
        /// Name of the engine.
        engine: &'static str,
        /// Reason given by the system.
        why: String,
    },
    /// The threads of the process cannot be listed.
    #[error("cannot list /proc/self/task: {source}; CPU profiles need a mounted /proc")]
    ThreadList {
        /// Cause.
        source: std::io::Error,
    },
    /// The recording thread cannot be started.
    #[error("cannot start the CPU profiler's thread: {source}")]
    SpawnThread {
        /// Cause.
        source: std::io::Error,
    },
    /// The loaded files cannot be read.
    #[error(transparent)]
    Images(#[from] os::images::Error),
    /// The process handles SIGPROF itself.
    #[error(
        "this process already has a SIGPROF handler (another profiler?); a CPU profile would \
         replace the handler and is not taken"
    )]
    SigprofInUse,
    /// Unwinding in a signal handler could deadlock the process.
    #[error(
        "the unwinder of this process takes locks, so a CPU profile could deadlock the process; \
         CPU profiles need glibc 2.35 or later and a dynamically linked libgcc_s"
    )]
    UnsafeUnwinder,
    /// The engine's scratch file cannot be created.
    #[error("cannot create the CPU profiler's scratch file in {path}: {source}; set TMPDIR")]
    ScratchFile {
        /// Directory of the scratch file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The signal handlers or the unwinder of the process cannot be inspected.
    #[error(transparent)]
    Process(#[from] os::sigprof::Error),
    /// The recording belongs to the parent process of this fork.
    #[error(
        "the recording belongs to the parent of this forked process; start another session in \
        this process"
    )]
    Forked,
    /// The engine failed.
    #[error("CPU engine `{engine}` failed: {source}")]
    Engine {
        /// Name of the engine.
        engine: &'static str,
        /// Cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
