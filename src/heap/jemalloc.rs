//! jemalloc's own profiler, for programs that run jemalloc with `prof:true` and keep their allocator.
//!
//! It samples as [`super::Allocator`] does and knows less: `codec::jeheap` lists what. It is never
//! turned on where the program did not ask for `prof:true`, because jemalloc decides that at its start;
//! what may change at run time is whether it samples (`prof.active`), and that is put back.

use std::ffi::{CString, NulError};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::os::jemalloc::Jemalloc;

/// What stands between the program and jemalloc's tables besides [`super::DROP_FRAMES`]: its own functions.
pub const DROP_FRAMES: &str = concat!(
    r"_rjem_.*|je_.*|prof_.*|imalloc.*|irallocx.*|do_rallocx.*",
    r"|(malloc|calloc|realloc|aligned_alloc|posix_memalign|mallocx|rallocx)(_.*)?",
);

/// Why jemalloc gives no profile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program's allocator is neither marple's nor jemalloc.
    #[error(
        "the program's allocator is neither marple's nor jemalloc, so there is nothing to show; add to \
         main.rs: #[global_allocator] static A: marple::Allocator<std::alloc::System> = \
         marple::Allocator::new(std::alloc::System);"
    )]
    NotInstalled,
    /// jemalloc was built without its profiler.
    #[error(
        "jemalloc is built without its profiler: add the feature `profiling` to tikv-jemallocator in \
         Cargo.toml (elsewhere: configure jemalloc with --enable-prof)"
    )]
    NotBuilt,
    /// It was started without it.
    #[error(
        "jemalloc's profiler was not asked for: start the program with prof:true in \
         _RJEM_MALLOC_CONF (in MALLOC_CONF where jemalloc's functions have no prefix)"
    )]
    NotAsked,
    /// jemalloc refused.
    #[error("jemalloc refuses {what}: {error}")]
    Refused {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// There is no memory for a dump, or no `/proc`.
    #[error("no memory file for jemalloc's profile: {0}")]
    File(#[source] io::Error),
}

impl From<NulError> for Error {
    fn from(error: NulError) -> Self {
        Self::File(error.into())
    }
}

/// The program's jemalloc, with a profiler that can be turned on.
#[derive(Clone, Copy)]
pub struct Profiler(Jemalloc);

impl Profiler {
    /// Looks for it.
    ///
    /// # Errors
    ///
    /// The setting that is missing.
    pub fn find() -> Result<Self, Error> {
        let jemalloc = Jemalloc::of_program().ok_or(Error::NotInstalled)?;
        if !jemalloc.is_on(c"config.prof").map_err(refused("config.prof"))? {
            return Err(Error::NotBuilt);
        }
        if !jemalloc.is_on(c"opt.prof").map_err(refused("opt.prof"))? {
            return Err(Error::NotAsked);
        }
        Ok(Self(jemalloc))
    }

    /// Whether it samples.
    pub fn is_active(&self) -> Result<bool, Error> {
        self.0.is_on(c"prof.active").map_err(refused("prof.active"))
    }

    /// Whether it counts what was ever allocated, too.
    pub fn accumulates(&self) -> Result<bool, Error> {
        self.0.is_on(c"opt.prof_accum").map_err(refused("opt.prof_accum"))
    }

    /// Has it sample while the guard lives. Guards nest.
    pub fn activate(&self) -> Result<Activation, Error> {
        let mut turned = TURNED.lock().unwrap_or_else(PoisonError::into_inner);
        if turned.guards == 0 {
            turned.on = !self.is_active()?;
            if turned.on {
                self.0.turn(c"prof.active", true).map_err(refused("prof.active"))?;
            }
        }
        turned.guards += 1;
        Ok(Activation { profiler: *self, turned_on: turned.on })
    }

    /// Its profile of this moment, as the text it writes: in memory, some hundred bytes a stack. Threads
    /// that allocate what is sampled wait for it meanwhile, by jemalloc's own locks.
    pub fn dump(&self) -> Result<File, Error> {
        let file = memfd_create(c"marple-jemalloc", MemfdFlags::CLOEXEC)
            .map_err(|error| Error::File(error.into()))?;
        // jemalloc takes a name and opens it.
        let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        self.0.dump(&path).map_err(refused("prof.dump"))?;
        Ok(file.into())
    }
}

fn refused(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::Refused { what, error }
}

static TURNED: Mutex<Turned> = Mutex::new(Turned { guards: 0, on: false });

struct Turned {
    guards: usize,
    /// Whether the first of them turned it on.
    on: bool,
}

/// While one lives, jemalloc samples; the last puts back what it found.
#[must_use = "sampling ends when the guard is dropped"]
pub struct Activation {
    profiler: Profiler,
    turned_on: bool,
}

impl Activation {
    /// Whether it did not sample before.
    pub fn turned_on(&self) -> bool {
        self.turned_on
    }
}

impl Drop for Activation {
    fn drop(&mut self) {
        let mut turned = TURNED.lock().unwrap_or_else(PoisonError::into_inner);
        turned.guards = turned.guards.saturating_sub(1);
        if turned.guards == 0 && turned.on {
            // It was turned on by the same call; that it stays on costs what it costs.
            let _ = self.profiler.0.turn(c"prof.active", false);
        }
    }
}
