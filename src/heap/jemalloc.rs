//! jemalloc's own profiler, for programs that keep jemalloc as their allocator and run it with
//! `prof:true`.
//!
//! It samples like [`super::Allocator`] and provides less data; `codec::jemalloc_heap` lists the
//! differences. It requires `prof:true`, because jemalloc decides that at its start. Sampling
//! itself (`prof.active`) can be switched at run time; marple restores its previous value.

use std::ffi::{CString, NulError};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::os::jemalloc::Jemalloc;

/// Regular expression for jemalloc's own functions between the program and its tables, in addition
/// to [`super::DROP_FRAMES`].
pub const DROP_FRAMES: &str = concat!(
    r"_rjem_.*|je_.*|prof_.*|imalloc.*|irallocx.*|do_rallocx.*",
    r"|(malloc|calloc|realloc|aligned_alloc|posix_memalign|mallocx|rallocx)(_.*)?",
);

/// An error that prevents a profile by jemalloc.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program's allocator is neither marple's nor jemalloc.
    #[error(
        "no heap profile: the global allocator is neither marple::Allocator nor jemalloc; add to \
         main.rs: #[global_allocator] static A: marple::Allocator<std::alloc::System> = \
         marple::Allocator::new(std::alloc::System);"
    )]
    NotInstalled,
    /// jemalloc was built without its profiler.
    #[error(
        "jemalloc is built without its profiler; enable the feature `profiling` of \
         tikv-jemallocator in Cargo.toml (for other builds, configure jemalloc with --enable-prof)"
    )]
    BuiltWithoutProfiler,
    /// jemalloc was started without its profiler.
    #[error(
        "jemalloc's profiler is disabled; start the program with prof:true in \
         _RJEM_MALLOC_CONF (in MALLOC_CONF if jemalloc's functions have no prefix)"
    )]
    ProfilingDisabled,
    /// jemalloc returned an error.
    #[error("jemalloc mallctl {what} failed: {error}")]
    Mallctl {
        /// Name of the jemalloc setting.
        what: &'static str,
        /// Cause.
        #[source]
        error: io::Error,
    },
    /// The memory file for a dump cannot be created, or `/proc` is missing.
    #[error("cannot create a memory file for jemalloc's profile: {0}")]
    File(#[source] io::Error),
}

impl From<NulError> for Error {
    fn from(error: NulError) -> Self {
        Self::File(error.into())
    }
}

/// The program's jemalloc, with its profiler available.
#[derive(Clone, Copy)]
pub struct Profiler(Jemalloc);

impl Profiler {
    /// Finds the program's jemalloc.
    ///
    /// # Errors
    ///
    /// The missing setting.
    pub fn find() -> Result<Self, Error> {
        let jemalloc = Jemalloc::detect().ok_or(Error::NotInstalled)?;
        if !jemalloc.read_bool(c"config.prof").map_err(mallctl_error("config.prof"))? {
            return Err(Error::BuiltWithoutProfiler);
        }
        if !jemalloc.read_bool(c"opt.prof").map_err(mallctl_error("opt.prof"))? {
            return Err(Error::ProfilingDisabled);
        }
        Ok(Self(jemalloc))
    }

    /// Returns `true` if jemalloc is sampling.
    pub fn is_active(&self) -> Result<bool, Error> {
        self.0.read_bool(c"prof.active").map_err(mallctl_error("prof.active"))
    }

    /// Returns `true` if jemalloc also keeps cumulative counts.
    pub fn has_cumulative_counts(&self) -> Result<bool, Error> {
        self.0.read_bool(c"opt.prof_accum").map_err(mallctl_error("opt.prof_accum"))
    }

    /// Turns sampling on while the guard lives. Guards nest.
    pub fn activate(&self) -> Result<Activation, Error> {
        let mut state = ACTIVATION_STATE.lock().unwrap_or_else(PoisonError::into_inner);
        if state.guard_count == 0 {
            state.turned_on = !self.is_active()?;
            if state.turned_on {
                self.0.write_bool(c"prof.active", true).map_err(mallctl_error("prof.active"))?;
            }
        }
        state.guard_count += 1;
        Ok(Activation { profiler: *self, turned_on: state.turned_on })
    }

    /// Dumps the current profile as jemalloc's text, into a memory file: some hundred bytes per
    /// stack. Threads whose allocations are sampled wait for jemalloc's own locks during the dump.
    pub fn dump(&self) -> Result<File, Error> {
        let file = memfd_create(c"marple-jemalloc", MemfdFlags::CLOEXEC)
            .map_err(|error| Error::File(error.into()))?;
        // jemalloc takes a path and opens it.
        let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        self.0.dump(&path).map_err(mallctl_error("prof.dump"))?;
        Ok(file.into())
    }
}

fn mallctl_error(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::Mallctl { what, error }
}

static ACTIVATION_STATE: Mutex<ActivationState> =
    Mutex::new(ActivationState { guard_count: 0, turned_on: false });

struct ActivationState {
    guard_count: usize,
    /// `true` if the first guard turned sampling on.
    turned_on: bool,
}

/// A guard that keeps jemalloc sampling. Dropping the last one restores the previous state.
#[must_use = "sampling ends when the guard is dropped"]
pub struct Activation {
    profiler: Profiler,
    turned_on: bool,
}

impl Activation {
    /// Returns `true` if jemalloc was not sampling before.
    pub fn turned_on(&self) -> bool {
        self.turned_on
    }
}

impl Drop for Activation {
    fn drop(&mut self) {
        let mut state = ACTIVATION_STATE.lock().unwrap_or_else(PoisonError::into_inner);
        state.guard_count = state.guard_count.saturating_sub(1);
        if state.guard_count == 0 && state.turned_on {
            // The same call turned it on. If it fails, sampling continues at its usual cost.
            let _ = self.profiler.0.write_bool(c"prof.active", false);
        }
    }
}
