//! Watches settings files for changes and trigger files for touches.
//!
//! ```text
//! notify's thread --event--> dirty flag --> marple-watch: check each file, debounce, call back
//!                            each second -------^
//! ```
//!
//! Invariants:
//!
//! - The *directory* of each file is watched. A watch on the file itself ends with the first rename
//!   over it. A ConfigMap never touches the file: it swaps a symbolic link next to it.
//! - An event only causes a check. Changes are found by comparison: contents for settings, identity
//!   and modification time for a trigger. A lost event, an event of another file or an unexpected
//!   kind of event does no harm.
//! - A change is reported after its quiet time. Empty settings are valid and mean "no rules".
//!   However, an empty file is usually the first half of a slow write, so its quiet time is longer.
//! - One thread checks all files, at most once in [`PACE`] at any event rate, and every [`POLL`]
//!   without events. This covers directories that were deleted and created again, links into
//!   unwatched directories, and network file systems without events.
//! - The cost does not depend on other activity in these directories. notify wakes its thread for
//!   every write to every file of a directory (version 8 has no event mask). Above the limit of
//!   `event_rate.rs` notify is therefore stopped for a while, and the files are polled every
//!   [`POLL_WITHOUT_EVENTS`]. The same applies if no inotify instance is left.
//!
//! Cost without a change: one wake-up per second, and a `stat` for each file and each directory. It
//! is 75 microseconds in a debug build for settings and a trigger in one directory, by the thread's
//! schedstat over 20 s. Contents are read only if the `stat` differs or an event arrived.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::Error;
use super::event_rate::{EventBudget, EventPauses};
use super::watched::{File, FileChange, FileIdentity, QUIET, WatchedFile};
use crate::base::{Clock, OfProcess, SystemClock, panics};

const THREAD: &str = "marple-watch";

/// Minimum time between two checks.
const PACE: Duration = Duration::from_millis(25);
/// Maximum time between two checks.
const POLL: Duration = Duration::from_secs(1);
/// The same without events. With the quiet time, a change is reported within half a second.
const POLL_WITHOUT_EVENTS: Duration = Duration::from_millis(250);

const TOO_MANY_EVENTS: &str = "too many file system events in the directories of the watched files; keep logs and data elsewhere";

/// A watcher for settings and trigger files, active until it is dropped.
#[must_use = "dropping it stops the watching"]
#[derive(Debug)]
pub struct FileWatcher {
    shared: Arc<WatchState>,
    thread: OfProcess<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct WatchState {
    orders: Mutex<WatchCommands>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct WatchCommands {
    dirty: bool,
    /// `true` if the event rate exceeds its limit.
    storm: bool,
    stop: bool,
    files: Option<Vec<File>>,
    without_events: Option<String>,
}

impl FileWatcher {
    /// Watches `files` and calls `on_change` on a separate thread. Changes are relative to the
    /// state of the files at this call: watch first and load afterwards, and no change is missed.
    ///
    /// The files and their directories need not exist yet. `on_change` should return quickly,
    /// because no file is checked while it runs. It must not wait for the thread that drops the
    /// watcher, because that thread waits for `on_change`.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started. Without file system events (see
    /// [`FileWatcher::without_events`]) the files are polled four times a second.
    pub fn new(
        files: impl IntoIterator<Item = WatchedFile>,
        on_change: impl FnMut(FileChange) + Send + 'static,
    ) -> Result<Self, Error> {
        Self::with_thread_hook(files, || {}, on_change)
    }

    /// Starts like [`FileWatcher::new`], but calls `on_thread` first on each thread of the watcher,
    /// including notify's.
    ///
    /// # Errors
    ///
    /// The same as for [`FileWatcher::new`].
    pub fn with_thread_hook(
        files: impl IntoIterator<Item = WatchedFile>,
        on_thread: fn(),
        mut on_change: impl FnMut(FileChange) + Send + 'static,
    ) -> Result<Self, Error> {
        let files: Vec<File> = files.into_iter().map(File::new).collect();
        let shared = Arc::new(WatchState::default());
        let mut looker = WatchThread {
            shared: Arc::clone(&shared),
            files,
            on_thread,
            events: None,
            directories: Vec::new(),
            pauses: EventPauses::new(),
            resume: Instant::now(),
        };
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name(THREAD.to_owned())
            .spawn(move || {
                on_thread();
                looker.watch_directories();
                let _ = ready.send(());
                looker.run(&mut on_change);
            })
            .map_err(Error::NoThread)?;
        // `without_events` is set from here on. A closed channel means that the thread panicked.
        let _ = started.recv();
        Ok(Self { shared, thread: OfProcess::new(thread) })
    }

    /// Replaces the watched files. The state of files that were watched before is kept.
    pub fn watch(&self, files: impl IntoIterator<Item = WatchedFile>) {
        let files = files.into_iter().map(File::new).collect();
        self.shared.order(|orders| {
            orders.files = Some(files);
            orders.dirty = true;
        });
    }

    /// Returns the reason why the files are polled four times a second instead of watched, or
    /// `None` if events work. Either no inotify instance is left, or other files in the directories
    /// cause too many events.
    pub fn without_events(&self) -> Option<String> {
        self.shared.lock().without_events.clone()
    }
}

impl Drop for FileWatcher {
    /// Stops the thread and waits for the current check, unless called on that thread.
    fn drop(&mut self) {
        if self.thread.is_inherited() {
            return;
        }
        self.shared.order(|orders| orders.stop = true);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl WatchState {
    fn lock(&self) -> std::sync::MutexGuard<'_, WatchCommands> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, give: impl FnOnce(&mut WatchCommands)) {
        give(&mut self.lock());
        self.changed.notify_one();
    }

    /// Records an event. Only the first event since the last check wakes the thread.
    fn mark_dirty(&self) {
        if !std::mem::replace(&mut self.lock().dirty, true) {
            self.changed.notify_one();
        }
    }

    /// Waits until `latest`, or until `earliest` after an event. Returns `None` if the watcher is
    /// stopped.
    fn wait(&self, earliest: Instant, latest: Instant) -> Option<WatchCommands> {
        let mut orders = self.lock();
        loop {
            if orders.stop {
                return None;
            }
            let until = if orders.storm {
                Instant::now()
            } else if orders.dirty {
                earliest
            } else {
                latest
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let files = orders.files.take();
                let dirty = std::mem::take(&mut orders.dirty);
                let storm = std::mem::take(&mut orders.storm);
                return Some(WatchCommands { dirty, storm, files, ..WatchCommands::default() });
            }
            let waited = self.changed.wait_timeout(orders, left);
            (orders, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// State of the watching thread.
struct WatchThread {
    shared: Arc<WatchState>,
    files: Vec<File>,
    on_thread: fn(),
    events: Option<Events>,
    /// The watched directories, with their identity when the watch was added.
    directories: Vec<(PathBuf, FileIdentity)>,
    pauses: EventPauses,
    /// Time of the next attempt to receive events.
    resume: Instant,
}

/// A running notify watcher.
struct Events {
    watcher: RecommendedWatcher,
    since: Instant,
}

impl Events {
    fn new(shared: &Arc<WatchState>, on_thread: fn()) -> notify::Result<Self> {
        let since = Instant::now();
        let shared = Arc::clone(shared);
        let (mut budget, mut is_first, mut is_over) = (EventBudget::new(since), true, false);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if std::mem::take(&mut is_first) {
                on_thread();
            }
            if is_over {
                return;
            }
            if !budget.take(Instant::now()) {
                is_over = true;
                shared.order(|orders| orders.storm = true);
                return;
            }
            // Reading a file is an event too, and must not cause another check.
            let wrote = AccessKind::Close(AccessMode::Write);
            if event.map_or(true, |event| match event.kind {
                EventKind::Access(kind) => kind == wrote,
                _ => true,
            }) {
                shared.mark_dirty();
            }
        })?;
        Ok(Self { watcher, since })
    }
}

impl WatchThread {
    fn run(mut self, on_change: &mut dyn FnMut(FileChange)) {
        let mut read = true;
        loop {
            let is_new = panics::fence_and_record(THREAD, || self.watch_directories());
            read |= is_new.unwrap_or(true);
            for file in &mut self.files {
                panics::fence_and_record(THREAD, || {
                    if let Some(change) = file.look(SystemClock.now(), read) {
                        on_change(change);
                    }
                });
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
            if orders.storm
                && let Some(events) = self.events.take()
            {
                self.pause(events.since.elapsed(), TOO_MANY_EVENTS.to_owned());
                read = true;
            }
            if let Some(files) = orders.files {
                self.replace(files);
            }
        }
    }

    /// Stops events for a while, after they were received for `received`.
    fn pause(&mut self, received: Duration, why: String) {
        self.directories.clear();
        self.resume = Instant::now() + self.pauses.begin(received);
        self.shared.lock().without_events = Some(why);
    }

    /// Starts events if the pause is over.
    fn resume(&mut self) {
        if self.events.is_some() || Instant::now() < self.resume {
            return;
        }
        match Events::new(&self.shared, self.on_thread) {
            Ok(events) => {
                self.events = Some(events);
                let mut orders = self.shared.lock();
                (orders.storm, orders.without_events) = (false, None);
            }
            Err(error) => self.pause(Duration::ZERO, error.to_string()),
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

    /// Watches exactly the directories of the files, including those that were replaced. Returns
    /// `true` if a watch was added: earlier changes in that directory are unknown.
    fn watch_directories(&mut self) -> bool {
        self.resume();
        let Some(Events { watcher: events, .. }) = &mut self.events else { return false };
        let mut found = false;
        let mut directories = Vec::new();
        for file in &self.files {
            let path = file.directory();
            if directories.iter().any(|(known, _)| known == path) {
                continue;
            }
            let Ok(meta) = fs::metadata(path) else { continue };
            let identity = FileIdentity::of(&meta);
            let same = |(known, old): &(PathBuf, FileIdentity)| known == path && *old == identity;
            if !self.directories.iter().any(same) {
                // The kernel has removed the watch of a deleted directory, but notify still has its
                // path.
                let _ = events.unwatch(path);
                if events.watch(path, RecursiveMode::NonRecursive).is_err() {
                    continue;
                }
                // Causes an event, so that notify's thread calls `on_thread` first.
                let _ = fs::File::open(path);
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
