//! Code that depends on `--cfg tokio_unstable`: the hooks around every poll of every task.
//!
//! Only this file uses tokio's unstable interface. In a build without the flag, `absent` replaces
//! it with the same interface and no code.
//!
//! tokio calls the terminate hook for blocking tasks too, which include its workers, but calls none
//! of the other hooks for them. So a trace contains ends of tasks without a spawn.

#[cfg(not(tokio_unstable))]
pub(super) use absent::*;
#[cfg(tokio_unstable)]
pub(super) use present::*;

#[cfg(tokio_unstable)]
mod present {
    use std::hash::{Hash, Hasher};
    use std::sync::Arc;

    use tokio::runtime::{Builder, TaskMeta};

    use super::super::Hooks;
    use crate::base::SpawnSite;
    use crate::model::{RawKind, TaskKey};
    use crate::os::clock::cycle_clock;
    use crate::trace::epoch::is_recording;
    use crate::trace::thread;

    type TaskHook = Arc<dyn Fn(&TaskMeta<'_>) + Send + Sync>;

    /// The service's closures for the task hooks.
    #[derive(Clone, Default)]
    pub(in super::super) struct TaskHooks {
        before_poll: Option<TaskHook>,
        after_poll: Option<TaskHook>,
        spawn: Option<TaskHook>,
        terminate: Option<TaskHook>,
    }

    impl TaskHooks {
        /// Sets all four hooks of `builder`.
        pub(in super::super) fn apply(self, builder: &mut Builder) {
            let Self { before_poll, after_poll, spawn, terminate } = self;
            builder.on_before_task_poll(move |meta| {
                call_hook(before_poll.as_ref(), meta);
                if is_recording() {
                    thread::begin_slice(RawKind::HookedPoll, task_key(meta), cycle_clock::now());
                }
            });
            builder.on_after_task_poll(move |meta| {
                thread::end_slice(RawKind::HookedPoll, || task_key(meta));
                call_hook(after_poll.as_ref(), meta);
            });
            builder.on_task_spawn(move |meta| {
                thread::record_task_event(RawKind::Spawned, task_key(meta));
                call_hook(spawn.as_ref(), meta);
            });
            builder.on_task_terminate(move |meta| {
                thread::record_task_event(RawKind::Ended, task_key(meta));
                call_hook(terminate.as_ref(), meta);
            });
        }
    }

    impl Hooks {
        /// Also calls `hook` before each poll of a task. Its time is not part of the slice.
        pub fn on_before_task_poll(
            mut self,
            hook: impl Fn(&TaskMeta<'_>) + Send + Sync + 'static,
        ) -> Self {
            self.tasks.before_poll = Some(Arc::new(hook));
            self
        }

        /// Also calls `hook` after each poll of a task. Its time is not part of the slice.
        pub fn on_after_task_poll(
            mut self,
            hook: impl Fn(&TaskMeta<'_>) + Send + Sync + 'static,
        ) -> Self {
            self.tasks.after_poll = Some(Arc::new(hook));
            self
        }

        /// Also calls `hook` when a task is spawned.
        pub fn on_task_spawn(
            mut self,
            hook: impl Fn(&TaskMeta<'_>) + Send + Sync + 'static,
        ) -> Self {
            self.tasks.spawn = Some(Arc::new(hook));
            self
        }

        /// Also calls `hook` when a task ends.
        pub fn on_task_terminate(
            mut self,
            hook: impl Fn(&TaskMeta<'_>) + Send + Sync + 'static,
        ) -> Self {
            self.tasks.terminate = Some(Arc::new(hook));
            self
        }
    }

    #[inline]
    fn call_hook(hook: Option<&TaskHook>, meta: &TaskMeta<'_>) {
        if let Some(hook) = hook {
            hook(meta);
        }
    }

    #[inline]
    fn task_key(meta: &TaskMeta<'_>) -> TaskKey {
        if !is_recording() {
            return TaskKey::default();
        }
        let site = SpawnSite { name: None, location: meta.spawned_at() };
        // tokio does not expose the number of an id. Formatting the id costs more than everything
        // else here; hashing it yields the number.
        let mut number = Number(0);
        meta.id().hash(&mut number);
        TaskKey { site: site.intern(), number: number.0 }
    }

    struct Number(u64);

    impl Hasher for Number {
        fn write(&mut self, bytes: &[u8]) {
            for &byte in bytes.iter().rev() {
                self.0 = (self.0 << 8) | u64::from(byte);
            }
        }

        fn write_u64(&mut self, number: u64) {
            self.0 = number;
        }

        fn finish(&self) -> u64 {
            self.0
        }
    }
}

#[cfg(not(tokio_unstable))]
mod absent {
    use tokio::runtime::Builder;

    #[derive(Clone, Default)]
    pub(in super::super) struct TaskHooks;

    impl TaskHooks {
        pub(in super::super) fn apply(self, _: &mut Builder) {}
    }
}
