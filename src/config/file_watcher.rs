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
//! - One thread checks all files, at most once in [`MIN_CHECK_INTERVAL`] at any event rate, and
//!   every [`POLL_INTERVAL`] without events. This covers directories that were deleted and created
//!   again, links into unwatched directories, and network file systems without events.
//! - The cost does not depend on other activity in these directories. notify wakes its thread for
//!   every write to every file of a directory (version 8 has no event mask). Above the limit of
//!   `event_rate.rs` notify is therefore stopped for a while, and the files are polled every
//!   [`POLL_INTERVAL_WITHOUT_EVENTS`]. The same applies if no inotify instance is left.
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
use super::watched_file::{FileChange, FileIdentity, QUIET_TIME, WatchedFile, WatchedFileState};
use crate::base::{Clock, ProcessBound, SystemClock, panics};

const THREAD_NAME: &str = "marple-watch";

/// Minimum time between two checks.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(25);
/// Maximum time between two checks.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The same without events. With the quiet time, a change is reported within half a second.
const POLL_INTERVAL_WITHOUT_EVENTS: Duration = Duration::from_millis(250);

const TOO_MANY_EVENTS: &str = "too many file system events in the directories of the watched files; keep logs and data elsewhere";

/// A watcher for settings and trigger files, active until it is dropped.
#[must_use = "dropping the watcher stops it"]
#[derive(Debug)]
pub struct FileWatcher {
    shared: Arc<WatchState>,
    thread: ProcessBound<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct WatchState {
    commands: Mutex<WatchCommands>,
    wakeup: Condvar,
}

#[derive(Debug, Default)]
struct WatchCommands {
    dirty: bool,
    /// `true` if the event rate exceeds its limit.
    too_many_events: bool,
    stop: bool,
    files: Option<Vec<WatchedFileState>>,
    polling_reason: Option<String>,
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
    /// [`FileWatcher::polling_reason`]) the files are polled four times a second.
    pub fn new(
        files: impl IntoIterator<Item = WatchedFile>,
        on_change: impl FnMut(FileChange) + Send + 'static,
    ) -> Result<Self, Error> {
        Self::with_thread_hook(files, || {}, on_change)
    }

    /// Starts like [`FileWatcher::new`], but calls `on_thread_start` first on each thread of the
    /// watcher, including notify's.
    ///
    /// # Errors
    ///
    /// The same as for [`FileWatcher::new`].
    pub fn with_thread_hook(
        files: impl IntoIterator<Item = WatchedFile>,
        on_thread_start: fn(),
        mut on_change: impl FnMut(FileChange) + Send + 'static,
    ) -> Result<Self, Error> {
        let files: Vec<WatchedFileState> = files.into_iter().map(WatchedFileState::new).collect();
        let shared = Arc::new(WatchState::default());
        let mut watch_thread = WatchThread {
            shared: Arc::clone(&shared),
            files,
            on_thread_start,
            events: None,
            directories: Vec::new(),
            pauses: EventPauses::new(),
            resume_at: Instant::now(),
        };
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .spawn(move || {
                on_thread_start();
                watch_thread.watch_directories();
                let _ = ready.send(());
                watch_thread.run(&mut on_change);
            })
            .map_err(Error::ThreadStart)?;
        // `polling_reason` is set from here on. A closed channel means that the thread panicked.
        let _ = started.recv();
        Ok(Self { shared, thread: ProcessBound::new(thread) })
    }

    /// Replaces the watched files. The state of files that were watched before is kept.
    pub fn set_files(&self, files: impl IntoIterator<Item = WatchedFile>) {
        let files = files.into_iter().map(WatchedFileState::new).collect();
        self.shared.send(|commands| {
            commands.files = Some(files);
            commands.dirty = true;
        });
    }

    /// Returns the reason why the files are polled four times a second instead of watched, or
    /// `None` if events work. Either no inotify instance is left, or other files in the directories
    /// cause too many events.
    pub fn polling_reason(&self) -> Option<String> {
        self.shared.lock().polling_reason.clone()
    }
}

impl Drop for FileWatcher {
    /// Stops the thread and waits for the current check, unless called on that thread.
    fn drop(&mut self) {
        if self.thread.is_inherited() {
            return;
        }
        self.shared.send(|commands| commands.stop = true);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl WatchState {
    fn lock(&self) -> std::sync::MutexGuard<'_, WatchCommands> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, change: impl FnOnce(&mut WatchCommands)) {
        change(&mut self.lock());
        self.wakeup.notify_one();
    }

    /// Records an event. Only the first event since the last check wakes the thread.
    fn mark_dirty(&self) {
        if !std::mem::replace(&mut self.lock().dirty, true) {
            self.wakeup.notify_one();
        }
    }

    /// Waits until `latest`, or until `earliest` after an event. Returns `None` if the watcher is
    /// stopped.
    fn wait(&self, earliest: Instant, latest: Instant) -> Option<WatchCommands> {
        let mut commands = self.lock();
        loop {
            if commands.stop {
                return None;
            }
            let deadline = if commands.too_many_events {
                Instant::now()
            } else if commands.dirty {
                earliest
            } else {
                latest
            };
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                let files = commands.files.take();
                let dirty = std::mem::take(&mut commands.dirty);
                let too_many_events = std::mem::take(&mut commands.too_many_events);
                return Some(WatchCommands {
                    dirty,
                    too_many_events,
                    files,
                    ..WatchCommands::default()
                });
            }
            let waited = self.wakeup.wait_timeout(commands, remaining);
            (commands, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// State of the watching thread.
struct WatchThread {
    shared: Arc<WatchState>,
    files: Vec<WatchedFileState>,
    on_thread_start: fn(),
    events: Option<Events>,
    /// The watched directories, with their identity when the watch was added.
    directories: Vec<(PathBuf, FileIdentity)>,
    pauses: EventPauses,
    /// Time of the next attempt to receive events.
    resume_at: Instant,
}

/// A running notify watcher.
struct Events {
    watcher: RecommendedWatcher,
    started_at: Instant,
}

impl Events {
    fn new(shared: &Arc<WatchState>, on_thread_start: fn()) -> notify::Result<Self> {
        let started_at = Instant::now();
        let shared = Arc::clone(shared);
        let mut budget = EventBudget::new(started_at);
        let mut is_first = true;
        let mut is_exhausted = false;
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if std::mem::take(&mut is_first) {
                on_thread_start();
            }
            if is_exhausted {
                return;
            }
            if !budget.try_consume(Instant::now()) {
                is_exhausted = true;
                shared.send(|commands| commands.too_many_events = true);
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
        Ok(Self { watcher, started_at })
    }
}

impl WatchThread {
    fn run(mut self, on_change: &mut dyn FnMut(FileChange)) {
        let mut force_read = true;
        loop {
            let was_added =
                panics::catch_and_record_panic(THREAD_NAME, || self.watch_directories());
            force_read |= was_added.unwrap_or(true);
            for file in &mut self.files {
                panics::catch_and_record_panic(THREAD_NAME, || {
                    if let Some(change) = file.check(SystemClock.now(), force_read) {
                        on_change(change);
                    }
                });
            }
            let checked_at = Instant::now();
            let pause = if self.files.iter().any(WatchedFileState::is_pending) {
                QUIET_TIME
            } else if self.events.is_some() {
                POLL_INTERVAL
            } else {
                POLL_INTERVAL_WITHOUT_EVENTS
            };
            let Some(commands) =
                self.shared.wait(checked_at + MIN_CHECK_INTERVAL, checked_at + pause)
            else {
                return;
            };
            force_read = commands.dirty;
            if commands.too_many_events
                && let Some(events) = self.events.take()
            {
                self.pause_events(events.started_at.elapsed(), TOO_MANY_EVENTS.to_owned());
                force_read = true;
            }
            if let Some(files) = commands.files {
                self.replace_files(files);
            }
        }
    }

    /// Stops events for a while, after they were received for `active_time`.
    fn pause_events(&mut self, active_time: Duration, reason: String) {
        self.directories.clear();
        self.resume_at = Instant::now() + self.pauses.next_pause(active_time);
        self.shared.lock().polling_reason = Some(reason);
    }

    /// Starts events if the pause is over.
    fn resume_events(&mut self) {
        if self.events.is_some() || Instant::now() < self.resume_at {
            return;
        }
        match Events::new(&self.shared, self.on_thread_start) {
            Ok(events) => {
                self.events = Some(events);
                let mut commands = self.shared.lock();
                commands.too_many_events = false;
                commands.polling_reason = None;
            }
            Err(error) => self.pause_events(Duration::ZERO, error.to_string()),
        }
    }

    fn replace_files(&mut self, files: Vec<WatchedFileState>) {
        let old = std::mem::take(&mut self.files);
        self.files = files;
        for file in old {
            if let Some(same) = self.files.iter_mut().find(|same| same.file == file.file) {
                *same = file;
            }
        }
    }

    /// Watches exactly the directories of the files, including those that were replaced. Returns
    /// `true` if a watch was added: earlier changes in that directory are unknown.
    fn watch_directories(&mut self) -> bool {
        self.resume_events();
        let Some(Events { watcher: events, .. }) = &mut self.events else { return false };
        let mut added = false;
        let mut directories = Vec::new();
        for file in &self.files {
            let path = file.directory();
            if directories.iter().any(|(known, _)| known == path) {
                continue;
            }
            let Ok(meta) = fs::metadata(path) else { continue };
            let identity = FileIdentity::from_metadata(&meta);
            let same = |(known, old): &(PathBuf, FileIdentity)| known == path && *old == identity;
            if !self.directories.iter().any(same) {
                // The kernel has removed the watch of a deleted directory, but notify still has its
                // path.
                let _ = events.unwatch(path);
                if events.watch(path, RecursiveMode::NonRecursive).is_err() {
                    continue;
                }
                // Causes an event, so that notify's thread calls `on_thread_start`
                // first.
                let _ = fs::File::open(path);
                added = true;
            }
            directories.push((path.to_owned(), identity));
        }
        for (old_path, _) in &self.directories {
            if !directories.iter().any(|(path, _)| path == old_path) {
                let _ = events.unwatch(old_path);
            }
        }
        self.directories = directories;
        added
    }
}
