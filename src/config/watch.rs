//! Notices that a configuration was changed or a trigger file touched.
//!
//! ```text
//! notify's thread --event--> dirty flag --> marple-watch: look at each file, settle, call back
//!                            each second -------^
//! ```
//!
//! Invariants:
//! - The *directory* of each file is watched. A watch on the file itself dies with the first rename
//!   over it, and a ConfigMap never touches the file: it swaps a symlink beside it.
//! - An event only says "look". What was changed is decided by comparing, contents for a configuration,
//!   identity and modification time for a trigger, so that no kind of event, lost event or neighbour's
//!   event can be misread.
//! - A change is reported once it was quiet for its quiet time; an emptied configuration, which is valid and
//!   means "no rules", only after a longer one, because it is mostly the first half of a slow
//!   write.
//! - One thread looks, whatever the number of files, at most once in [`PACE`] however many events there
//!   are, and every [`POLL`] without any: that finds directories which were deleted and made again,
//!   links into directories nobody watches, network file systems without events, and machines that are
//!   out of inotify instances.
//!
//! Cost: without a change, one wake-up a second and a `stat` for each file and each directory in it:
//! 75 microseconds in a debug build for a configuration and a trigger in one directory, by the thread's
//! schedstat over 20 s. Contents are read only when the `stat` differs or an event came. Looking from
//! notify's own thread was the alternative; it has no timer, so that the last event of a burst could
//! not be waited out.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::Error;
use super::watched::{Change, File, Identity, QUIET, Watched};
use crate::base::{Clock, SystemClock};

/// The least time between two looks.
const PACE: Duration = Duration::from_millis(25);
/// The most time between two looks.
const POLL: Duration = Duration::from_secs(1);
/// The same without events: with the quiet time a change is still reported within a second.
const POLL_WITHOUT_EVENTS: Duration = Duration::from_millis(500);

/// Watches files until it is dropped.
#[must_use = "dropping it stops the watching"]
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    orders: Mutex<Orders>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Orders {
    dirty: bool,
    stop: bool,
    files: Option<Vec<File>>,
    without_events: Option<String>,
}

impl Watcher {
    /// Watches `files` and calls `on_change` on a thread of its own. What the files are at this moment
    /// is what changes are measured against: watch first and load then, and no change is missed.
    ///
    /// The files and their directories need not exist yet. `on_change` should do little, as nothing is
    /// noticed while it runs, and must not wait for whoever drops the watcher, as that waits for it.
    ///
    /// # Errors
    ///
    /// When there can be no thread. Without file system events (see [`Watcher::without_events`]) the
    /// files are still looked at twice a second.
    pub fn new(
        files: impl IntoIterator<Item = Watched>,
        on_change: impl FnMut(Change) + Send + 'static,
    ) -> Result<Self, Error> {
        let files: Vec<File> = files.into_iter().map(File::new).collect();
        let shared = Arc::new(Shared::default());
        let for_events = Arc::clone(&shared);
        let events = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading is an event too, and must not lead to another look.
            let wrote = AccessKind::Close(AccessMode::Write);
            if event.map_or(true, |event| match event.kind {
                EventKind::Access(kind) => kind == wrote,
                _ => true,
            }) {
                for_events.order(|orders| orders.dirty = true);
            }
        });
        let events = match events {
            Ok(events) => Some(events),
            Err(error) => {
                shared.order(|orders| orders.without_events = Some(error.to_string()));
                None
            }
        };
        let looker = Looker { shared: Arc::clone(&shared), files, events, directories: Vec::new() };
        let mut on_change = on_change;
        let thread = thread::Builder::new()
            .name("marple-watch".to_owned())
            .spawn(move || looker.run(&mut on_change))
            .map_err(Error::NoThread)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Watches `files` instead. What was known of those that were watched before stays known.
    pub fn watch(&self, files: impl IntoIterator<Item = Watched>) {
        let files = files.into_iter().map(File::new).collect();
        self.shared.order(|orders| {
            orders.files = Some(files);
            orders.dirty = true;
        });
    }

    /// Why there are no file system events (for instance, all inotify instances of the user are taken),
    /// so that changes are found by looking twice a second only; none when there are.
    pub fn without_events(&self) -> Option<String> {
        self.shared.lock().without_events.clone()
    }
}

impl Drop for Watcher {
    /// Stops the thread, after the look it may be at, unless it is the one that drops.
    fn drop(&mut self) {
        self.shared.order(|orders| orders.stop = true);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, give: impl FnOnce(&mut Orders)) {
        give(&mut self.lock());
        self.changed.notify_one();
    }

    /// Waits until `latest`, or if something happens, until `earliest`. The orders are gone when it is
    /// time to stop.
    fn wait(&self, earliest: Instant, latest: Instant) -> Option<Orders> {
        let mut orders = self.lock();
        loop {
            if orders.stop {
                return None;
            }
            let until = if orders.dirty { earliest } else { latest };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let files = orders.files.take();
                let dirty = std::mem::take(&mut orders.dirty);
                return Some(Orders { dirty, files, ..Orders::default() });
            }
            let waited = self.changed.wait_timeout(orders, left);
            (orders, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The thread's state.
struct Looker {
    shared: Arc<Shared>,
    files: Vec<File>,
    events: Option<RecommendedWatcher>,
    /// The directories that are watched, and which they were when they were found.
    directories: Vec<(PathBuf, Identity)>,
}

impl Looker {
    fn run(mut self, on_change: &mut dyn FnMut(Change)) {
        let mut read = true;
        loop {
            read |= self.watch_directories();
            for file in &mut self.files {
                if let Some(change) = file.look(SystemClock.now(), read) {
                    on_change(change);
                }
            }
            let looked = Instant::now();
            let pause = if self.files.iter().any(File::is_unsettled) {
                QUIET
            } else if self.events.is_some() {
                POLL
            } else {
                POLL_WITHOUT_EVENTS
            };
            let Some(orders) = self.shared.wait(looked + PACE, looked + pause) else { return };
            read = orders.dirty;
            if let Some(files) = orders.files {
                self.replace(files);
            }
        }
    }

    fn replace(&mut self, files: Vec<File>) {
        let old = std::mem::take(&mut self.files);
        self.files = files;
        for file in old {
            if let Some(same) = self.files.iter_mut().find(|same| same.watched == file.watched) {
                *same = file;
            }
        }
    }

    /// Watches the directories of the files that are not watched yet, or are not the same any more, and
    /// only those. True if one was found: what happened in it before is unknown.
    fn watch_directories(&mut self) -> bool {
        let Some(events) = &mut self.events else { return false };
        let mut found = false;
        let mut directories = Vec::new();
        for file in &self.files {
            let path = file.directory();
            if directories.iter().any(|(known, _)| known == path) {
                continue;
            }
            let Ok(meta) = fs::metadata(path) else { continue };
            let identity = Identity::of(&meta);
            let same = |(known, old): &(PathBuf, Identity)| known == path && *old == identity;
            if !self.directories.iter().any(same) {
                // The kernel has dropped the watch of a deleted directory; notify still knows its path.
                let _ = events.unwatch(path);
                if events.watch(path, RecursiveMode::NonRecursive).is_err() {
                    continue;
                }
                found = true;
            }
            directories.push((path.to_owned(), identity));
        }
        for (gone, _) in &self.directories {
            if !directories.iter().any(|(path, _)| path == gone) {
                let _ = events.unwatch(gone);
            }
        }
        self.directories = directories;
        found
    }
}
