//! When the workers of a tokio runtime have nothing to do.
//!
//! tokio calls `on_thread_park` as a worker runs out of work and `on_thread_unpark` once it looks for work
//! again, on the worker's thread, always in pairs. A builder has one slot for each of its hooks and the last
//! closure set wins, silently; so whoever has closures of his own hands them to [`Hooks`].

use std::sync::Arc;

use tokio::runtime::Builder;

use super::log::{Ended, PARK, Source};
use super::recorder;

/// Shows in the runtime trace when each worker of the runtime is parked, as slices named `parked`.
///
/// Takes the builder's `on_thread_park` and `on_thread_unpark`, of which a builder has one each, the last
/// wins: set yours through [`Hooks`] instead. Costs one relaxed load a park while no session runs.
///
/// ```
/// let mut builder = tokio::runtime::Builder::new_multi_thread();
/// let runtime = marple::instrument(&mut builder).enable_all().build()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn instrument(builder: &mut Builder) -> &mut Builder {
    Hooks::new().apply(builder)
}

/// A closure for one of a runtime's hooks.
type Hook = Arc<dyn Fn() + Send + Sync>;

/// [`instrument`] for a service that has closures of its own for the runtime's hooks.
///
/// ```
/// let mut builder = tokio::runtime::Builder::new_multi_thread();
/// marple::trace::Hooks::new()
///     .on_thread_start(|| println!("a worker more"))
///     .on_thread_park(|| println!("nothing to do"))
///     .apply(&mut builder);
/// let runtime = builder.enable_all().build()?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Default)]
#[must_use = "hooks do nothing until they are applied to a builder"]
pub struct Hooks {
    start: Option<Hook>,
    stop: Option<Hook>,
    park: Option<Hook>,
    unpark: Option<Hook>,
}

impl Hooks {
    /// marple's hooks alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also calls `hook` as a thread of the runtime starts.
    pub fn on_thread_start(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.start = Some(Arc::new(hook));
        self
    }

    /// Also calls `hook` as a thread of the runtime stops.
    pub fn on_thread_stop(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.stop = Some(Arc::new(hook));
        self
    }

    /// Also calls `hook` as a worker parks; its time is not in the slice.
    pub fn on_thread_park(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.park = Some(Arc::new(hook));
        self
    }

    /// Also calls `hook` as a worker has parked; its time is not in the slice.
    pub fn on_thread_unpark(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.unpark = Some(Arc::new(hook));
        self
    }

    /// Sets the hooks of `builder`: park and unpark always, start and stop where a closure was given.
    pub fn apply(self, builder: &mut Builder) -> &mut Builder {
        recorder::hooks_installed();
        let Self { start, stop, park, unpark } = self;
        if let Some(start) = start {
            builder.on_thread_start(move || start());
        }
        if let Some(stop) = stop {
            builder.on_thread_stop(move || stop());
        }
        builder.on_thread_park(move || {
            if let Some(park) = &park {
                park();
            }
            parks();
        });
        builder.on_thread_unpark(move || {
            unparks();
            if let Some(unpark) = &unpark {
                unpark();
            }
        })
    }
}

fn parks() {
    if let Some(session) = recorder::session() {
        recorder::record(session, |pages| pages.begin(PARK, Source::Parked));
    }
}

fn unparks() {
    if let Some(session) = recorder::session() {
        recorder::record(session, |pages| {
            if pages.end(PARK) == Ended::Older {
                pages.end_older(PARK, Source::Parked);
            }
        });
    }
}
