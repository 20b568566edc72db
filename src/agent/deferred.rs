//! Resources that were unavailable when the agent started and are acquired later.
//!
//! The capture thread retries the incident directory, and the endpoint its address. This module
//! handles the rest: threads, the file watch, and the first result of a directory that takes long
//! to open.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Weak};
use std::time::Instant;

use tokio::sync::mpsc;

use super::event::{AgentEvent, ToggleAction};
use super::pending::AgentThreads;
use crate::agent::state::AgentState;
use crate::base::retry::RetryBackoff;
use crate::base::{Error, ErrorKind, log, warnings};
use crate::capture::collectors;
use crate::capture::worker::directory::{DIRECTORY_WARNING_TOPIC as DIRECTORY, OpenedStore};
use crate::config::{FileChange, FileWatcher, WatchedFile};
use crate::model::Origin;
use crate::os::{self, fork};
use crate::store;

/// Topic of the warning raised while the file watch is missing or degraded.
const WATCH_WARNING_TOPIC: &str = "config.watch";

/// Channel for the result of the first attempt to open the incident directory.
pub(super) type FirstOpenResult = Receiver<Result<OpenedStore, store::Error>>;

/// The resources still missing.
pub(super) struct DeferredParts {
    threads: Weak<AgentThreads>,
    files: FileWatch,
    opening: Option<FirstOpenResult>,
    /// True if threads or the watch are missing.
    is_incomplete: bool,
    retry_at: Instant,
    backoff: RetryBackoff,
    children: ChildWatch,
}

impl DeferredParts {
    pub(super) fn new(
        threads: &Arc<AgentThreads>,
        files: FileWatch,
        opening: Option<FirstOpenResult>,
    ) -> Self {
        Self {
            threads: Arc::downgrade(threads),
            files,
            opening,
            is_incomplete: true,
            retry_at: Instant::now(),
            backoff: RetryBackoff::new(),
            children: ChildWatch::default(),
        }
    }

    /// Retries what is due. Must be called at each tick.
    pub(super) fn tick(&mut self, state: &mut AgentState) {
        if let Some(opening) = &self.opening {
            match opening.try_recv() {
                Ok(Ok(opened)) => {
                    // The warning about a slow start may have been raised after the directory was
                    // opened.
                    warnings::clear(DIRECTORY);
                    state.on_directory_opened(opened);
                    self.opening = None;
                }
                // The capture thread retries from here on and has reported the error.
                Ok(Err(_)) | Err(TryRecvError::Disconnected) => self.opening = None,
                Err(TryRecvError::Empty) => {}
            }
        }
        let now = Instant::now();
        if self.is_incomplete && now >= self.retry_at {
            let threads = self.threads.upgrade().is_none_or(|threads| threads.start_helpers());
            let watched = self.files.start().is_ok();
            self.is_incomplete = !(threads && watched);
            self.retry_at = now + self.backoff.next_delay();
        }
        self.children.check(now);
    }
}

/// The watch on the settings file and the trigger file.
pub(super) struct FileWatch {
    files: Vec<WatchedFile>,
    events: mpsc::Sender<AgentEvent>,
    watcher: Option<FileWatcher>,
}

impl FileWatch {
    pub(super) fn new(files: Vec<WatchedFile>, events: mpsc::Sender<AgentEvent>) -> Self {
        Self { files, events, watcher: None }
    }

    /// Starts to watch the files, if there are any and no watch exists. Raises a warning if the
    /// watch fails or is degraded.
    pub(super) fn start(&mut self) -> Result<(), Error> {
        if self.watcher.is_some() || self.files.is_empty() {
            return Ok(());
        }
        let enter = || {
            os::own_thread::enter();
            collectors::heap::exclude_thread_permanently();
        };
        let on_change = on_change(self.events.clone());
        match FileWatcher::with_thread_hook(self.files.clone(), enter, on_change) {
            Ok(watcher) => {
                match watcher.polling_reason() {
                    Some(why) => warnings::set(
                        WATCH_WARNING_TOPIC,
                        format!(
                            "the settings are polled four times a second, as changes cannot be \
                             watched: {why}"
                        ),
                    ),
                    None => warnings::clear(WATCH_WARNING_TOPIC),
                }
                self.watcher = Some(watcher);
                Ok(())
            }
            Err(error) => {
                warnings::set(
                    WATCH_WARNING_TOPIC,
                    format!(
                        "changes of the settings and of the trigger file are not detected: \
                         {error}; retried every few seconds"
                    ),
                );
                Err(Error::new(error))
            }
        }
    }
}

fn on_change(events: mpsc::Sender<AgentEvent>) -> impl FnMut(FileChange) + Send + 'static {
    move |change| {
        let event = match change {
            FileChange::Config { settings, .. } => AgentEvent::SettingsChanged {
                settings: settings.map_err(|error| Error::with_kind(ErrorKind::Settings, error)),
            },
            FileChange::Trigger { .. } => AgentEvent::Toggle {
                action: ToggleAction::Flip,
                origin: Origin::TriggerFile,
                kinds: None,
                reply: None,
            },
        };
        if events.try_send(event).is_err() {
            log::error("a change of a watched file was missed");
        }
    }
}

/// Child processes forked from this one that run without an agent.
#[derive(Default)]
struct ChildWatch {
    seen_forks: u32,
    next_check: Option<Instant>,
}

impl ChildWatch {
    /// Time a child has to call `exec` or to start an agent, and the interval of later checks.
    const GRACE_PERIOD: std::time::Duration = std::time::Duration::from_secs(3);
    const TOPIC: &'static str = "fork";

    /// Checks for such children. Costs one load while nothing was forked.
    fn check(&mut self, now: Instant) {
        let forks = fork::fork_count();
        if forks != self.seen_forks {
            self.seen_forks = forks;
            self.next_check.get_or_insert(now + Self::GRACE_PERIOD);
        }
        if self.next_check.is_none_or(|due| now < due) {
            return;
        }
        let children = fork::unwatched_children();
        if children.is_empty() {
            self.next_check = None;
            warnings::clear(Self::TOPIC);
            return;
        }
        self.next_check = Some(now + Self::GRACE_PERIOD);
        let shown: Vec<String> = children.iter().take(8).map(u32::to_string).collect();
        let more = match children.len().saturating_sub(shown.len()) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        warnings::set(
            Self::TOPIC,
            format!(
                "no agent in process {}{more}, forked from this one: the threads of an agent do \
                 not survive a fork; start the agent after forking, in each process to be watched",
                shown.join(", ")
            ),
        );
    }
}
