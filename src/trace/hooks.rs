//! Hooks of a tokio runtime: parked workers.
//!
//! tokio calls `on_thread_park` when a worker runs out of work and `on_thread_unpark` when it looks
//! for work again, on the worker's thread, always in pairs. A builder has one slot per hook, and
//! the last closure set replaces the earlier ones silently. So a service passes its own closures to
//! [`Hooks`].
//!
//! With `--cfg tokio_unstable` there are also hooks around each poll (`hooks/unstable.rs`).

mod unstable;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime::Builder;

use super::epoch::is_recording;
use super::sources;
use super::thread;
use crate::base::thread_start;
use crate::model::{RawKind, TaskKey};
use crate::os::clock::cycle_clock;
use crate::os::fork;
use unstable::TaskHooks;

/// Number of runtimes with the hooks.
static RUNTIME_COUNT: AtomicU64 = AtomicU64::new(0);

/// Records the activity of each worker of the runtime in the runtime trace. Parked times are slices
/// named `parked`. In a program built with `--cfg tokio_unstable` every poll of every task is
/// recorded, under the place where the task was spawned. Without that flag, only polls of tasks
/// spawned through [`task`](crate::task) are recorded.
///
/// Uses the builder's `on_thread_park` and `on_thread_unpark` and, under `tokio_unstable`, its four
/// task hooks. A builder has one of each, and the last one set wins: set your own through [`Hooks`]
/// instead. A builder that builds several runtimes shows them as one. Costs a relaxed load per hook
/// while nothing records. While recording, a park or poll costs two clock reads and 16 bytes.
///
/// ```
/// let mut builder = tokio::runtime::Builder::new_multi_thread();
/// let runtime = marple::instrument_runtime(&mut builder).enable_all().build()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn instrument_runtime(builder: &mut Builder) -> &mut Builder {
    Hooks::new().apply(builder)
}

/// The name of [`instrument_runtime`] in early versions.
#[doc(hidden)]
pub fn instrument(builder: &mut Builder) -> &mut Builder {
    instrument_runtime(builder)
}

/// A closure for one of a runtime's hooks.
type Hook = Arc<dyn Fn() + Send + Sync>;

/// A variant of [`instrument_runtime`] for a service that sets its own closures for the runtime's
/// hooks.
///
/// ```
/// let mut builder = tokio::runtime::Builder::new_multi_thread();
/// marple::trace::Hooks::new()
///     .on_thread_start(|| println!("a thread starts"))
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
    notify_thread_starts: bool,
    tasks: TaskHooks,
}

impl Hooks {
    /// Creates hooks without closures of the service.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also calls `hook` when a thread of the runtime starts, and notifies CPU profiles of new
    /// threads (see [`notify_thread_starts`](Self::notify_thread_starts)).
    pub fn on_thread_start(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.start = Some(Arc::new(hook));
        self.notify_thread_starts()
    }

    /// Also notifies CPU profiles of each thread that starts. Without it they list threads as often
    /// as they read samples: every 10 ms to 40 ms in a capture, every 0.2 s in the look-back. A
    /// notified profiler lists threads at once. This matters for short-lived threads of
    /// `spawn_blocking`: of threads that live for 35 ms, 90 % are profiled instead of 30 % to 40 %
    /// (`benches/RESULTS.md`).
    ///
    /// Uses the builder's `on_thread_start`. Each start wakes the profiler's thread, at most 200
    /// times a second.
    pub fn notify_thread_starts(mut self) -> Self {
        self.notify_thread_starts = true;
        self
    }

    /// Also calls `hook` when a thread of the runtime stops.
    pub fn on_thread_stop(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.stop = Some(Arc::new(hook));
        self
    }

    /// Also calls `hook` before a worker parks. Its time is not part of the slice.
    pub fn on_thread_park(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.park = Some(Arc::new(hook));
        self
    }

    /// Also calls `hook` after a worker was parked. Its time is not part of the slice.
    pub fn on_thread_unpark(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.unpark = Some(Arc::new(hook));
        self
    }

    /// Sets the hooks of `builder`. Park and unpark are always set. Start and stop are set if a
    /// closure was given; start also if threads are reported to CPU profiles. Task hooks are set if
    /// the build has them.
    pub fn apply(self, builder: &mut Builder) -> &mut Builder {
        sources::mark_hooks_installed();
        let runtime = RUNTIME_COUNT.fetch_add(1, Ordering::Relaxed) + 1;
        let Self { start, stop, park, unpark, notify_thread_starts, tasks } = self;
        if notify_thread_starts {
            builder.on_thread_start(move || {
                thread_start::notify_thread_started();
                fork::warn_if_unwatched();
                if let Some(start) = &start {
                    start();
                }
            });
        }
        if let Some(stop) = stop {
            builder.on_thread_stop(move || stop());
        }
        tasks.apply(builder);
        builder.on_thread_park(move || {
            if let Some(park) = &park {
                park();
            }
            thread::set_runtime(runtime);
            if is_recording() {
                thread::begin_slice(RawKind::Park, TaskKey::default(), cycle_clock::now());
            }
        });
        builder.on_thread_unpark(move || {
            thread::end_slice(RawKind::Park, TaskKey::default);
            if let Some(unpark) = &unpark {
                unpark();
            }
        })
    }
}
