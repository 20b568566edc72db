//! When the workers of a tokio runtime have nothing to do.
//!
//! tokio calls `on_thread_park` as a worker runs out of work and `on_thread_unpark` once it looks for work
//! again, on the worker's thread, always in pairs. A builder has one slot for each of its hooks and the last
//! closure set wins, silently; so whoever has closures of his own hands them to [`Hooks`].
//!
//! With `--cfg tokio_unstable` there are hooks around each poll as well (`unstable.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::runtime::Builder;

use super::recorder;
use super::thread;
use super::unstable::{self, TaskHooks};
use crate::model::{RawKind, TaskKey};
use crate::os::{births, fork, ticks};

/// How many runtimes have the hooks.
static RUNTIMES: AtomicU64 = AtomicU64::new(0);

/// Whether some runtime's hooks see its tasks.
static SEE_TASKS: AtomicBool = AtomicBool::new(false);

/// Whether some runtime's hooks see its tasks. In a build without them it is no question at all.
#[inline]
pub(super) fn see_tasks() -> bool {
    unstable::PRESENT && SEE_TASKS.load(Ordering::Relaxed)
}

/// Shows in the runtime trace what each worker of the runtime does: when it is parked, as slices named
/// `parked`, and in a program built with `--cfg tokio_unstable` every poll of every task, by the place
/// where the task was spawned. Without that flag, polls are shown of tasks spawned through
/// [`task`](crate::task).
///
/// Takes the builder's `on_thread_park` and `on_thread_unpark` and, under `tokio_unstable`, the four hooks
/// for tasks, of which a builder has one each, the last wins: set yours through [`Hooks`] instead. A
/// builder that builds several runtimes shows them as one. Costs a relaxed load a hook while nothing
/// records, and two reads of the clock and 16 bytes a park or poll while something does.
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
    tells_of_threads: bool,
    pub(super) tasks: TaskHooks,
}

impl Hooks {
    /// marple's hooks alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also calls `hook` as a thread of the runtime starts, and [tells](Self::tell_of_threads) of threads.
    pub fn on_thread_start(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.start = Some(Arc::new(hook));
        self.tell_of_threads()
    }

    /// Also lets CPU profiles know of a thread as it starts. They look for new ones as often as they read samples:
    /// every 10 ms to 40 ms in a capture, every 0.2 s before it. Told, they look at once, which counts for threads of
    /// `spawn_blocking` that are soon over: of those of 35 ms they see 0.9 and not 0.3 to 0.4 (`benches/README.md`). It
    /// takes the builder's `on_thread_start`, and a turn of the profiler's thread for each start, 200 a second at most.
    pub fn tell_of_threads(mut self) -> Self {
        self.tells_of_threads = true;
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

    /// Sets the hooks of `builder`: park and unpark always, start and stop where a closure was given or threads are
    /// told of, and those for tasks where there are any.
    pub fn apply(self, builder: &mut Builder) -> &mut Builder {
        recorder::hooks_installed();
        let runtime = RUNTIMES.fetch_add(1, Ordering::Relaxed) + 1;
        let Self { start, stop, park, unpark, tells_of_threads, tasks } = self;
        if tells_of_threads {
            builder.on_thread_start(move || {
                births::tell();
                fork::notice();
                if let Some(start) = &start {
                    start();
                }
            });
        }
        if let Some(stop) = stop {
            builder.on_thread_stop(move || stop());
        }
        SEE_TASKS.store(unstable::PRESENT, Ordering::Relaxed);
        tasks.apply(builder);
        builder.on_thread_park(move || {
            if let Some(park) = &park {
                park();
            }
            thread::works_for(runtime);
            if thread::is_recorded() {
                thread::begin(RawKind::Park, TaskKey::default(), ticks::now());
            }
        });
        builder.on_thread_unpark(move || {
            thread::end(RawKind::Park, TaskKey::default);
            if let Some(unpark) = &unpark {
                unpark();
            }
        })
    }
}
