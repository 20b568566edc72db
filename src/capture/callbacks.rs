//! Notifications of incident changes for the service.
//!
//! Callbacks run on a separate thread, so that one that hangs delays neither a tick nor a capture.
//! The queue to this thread is bounded: events that do not fit are dropped and counted. A callback
//! that panics is not called again. No thread is started if there are no callbacks. The same
//! changes are also sent as `tracing` events with the target `marple`.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crate::base::{IncidentId, log, panics};
use crate::model::{Artifact, Finding, FindingKind};

/// Maximum number of events that wait for a callback: those of several incidents.
const QUEUE_CAPACITY: usize = 256;

/// A change of an incident.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum IncidentEvent {
    /// The incident directory was created.
    Opened {
        /// ID of the incident.
        id: IncidentId,
        /// Name of the incident: its rule, or the origin of a manual request.
        name: String,
        /// Incident directory.
        dir: PathBuf,
    },
    /// An artifact is complete and has its final name.
    Written {
        /// ID of the incident.
        id: IncidentId,
        /// Path of the artifact.
        path: PathBuf,
        /// Entry of the artifact in the manifest.
        artifact: Artifact,
    },
    /// The report, `incident.md`, was written. It is written anew after each group of captures.
    Reported {
        /// ID of the incident.
        id: IncidentId,
        /// Path of the report.
        path: PathBuf,
        /// First finding: the best explanation. `None` if there is none yet.
        first_finding: Option<Finding>,
    },
    /// The incident is closed: nothing more is written into its directory.
    Closed {
        /// ID of the incident.
        id: IncidentId,
        /// Incident directory.
        dir: PathBuf,
    },
}

/// A callback registered by the service.
pub(crate) type Callback = Box<dyn FnMut(&IncidentEvent) + Send>;

/// The sending half of the queue to the callbacks, or `None` without callbacks.
pub(crate) struct CallbackSender(Option<SyncSender<IncidentEvent>>);

impl CallbackSender {
    /// Returns the sender and the queue for [`run_callbacks`], which is `None` without
    /// callbacks.
    pub(crate) fn new(callbacks: &[Callback]) -> (Self, Option<Receiver<IncidentEvent>>) {
        if callbacks.is_empty() {
            return (Self(None), None);
        }
        let (sender, receiver) = sync_channel(QUEUE_CAPACITY);
        (Self(Some(sender)), Some(receiver))
    }

    /// Reports that an incident directory was created. Returns `false` if the queue is full.
    pub(crate) fn notify_opened(&self, id: IncidentId, name: &str, dir: &Path) -> bool {
        let opened = log::LogEvent::new(log::LogLevel::Info, "incident opened");
        opened.incident(id).name(name).dir(dir.display()).send();
        self.send(|| IncidentEvent::Opened { id, name: name.to_owned(), dir: dir.to_owned() })
    }

    /// Reports that an artifact was written. Returns `false` if the queue is full.
    pub(crate) fn notify_written(&self, id: IncidentId, dir: &Path, artifact: &Artifact) -> bool {
        let path = dir.join(&artifact.file);
        let written = log::LogEvent::new(log::LogLevel::Info, "artifact written");
        written.incident(id).path(path.display()).send();
        self.send(|| IncidentEvent::Written { id, path, artifact: artifact.clone() })
    }

    /// Reports that the report was written. Logs the first finding if it `is_new`. Returns `false`
    /// if the queue is full.
    pub(crate) fn notify_reported(
        &self,
        id: IncidentId,
        path: PathBuf,
        first_finding: Option<Finding>,
        is_new: bool,
    ) -> bool {
        let is_explained = |finding: &&Finding| finding.kind != FindingKind::Unexplained;
        if let Some(finding) = first_finding.as_ref().filter(is_explained).filter(|_| is_new) {
            let text = format!("incident explained ({}): {}", finding.confidence, finding.text);
            log::LogEvent::new(log::LogLevel::Warn, text).incident(id).path(path.display()).send();
        }
        self.send(|| IncidentEvent::Reported { id, path, first_finding })
    }

    /// Reports that an incident was closed. Returns `false` if the queue is full.
    pub(crate) fn notify_closed(&self, id: IncidentId, dir: &Path) -> bool {
        let closed = log::LogEvent::new(log::LogLevel::Info, "incident closed");
        closed.incident(id).dir(dir.display()).send();
        self.send(|| IncidentEvent::Closed { id, dir: dir.to_owned() })
    }

    /// Returns `false` if the queue is full and the event was dropped.
    fn send(&self, event: impl FnOnce() -> IncidentEvent) -> bool {
        let Some(sender) = &self.0 else { return true };
        !matches!(sender.try_send(event()), Err(TrySendError::Full(_)))
    }
}

/// Calls each of `callbacks` with each event until the agent ends. A callback that panics is not
/// called again.
pub(crate) fn run_callbacks(events: &Receiver<IncidentEvent>, mut callbacks: Vec<Callback>) {
    for event in events {
        let mut remaining = Vec::with_capacity(callbacks.len());
        for mut callback in callbacks {
            match panics::catch_host_panic(|| callback(&event)) {
                Ok(()) => remaining.push(callback),
                Err(panic) => {
                    log::error(format!("a callback panicked and is not called again: {panic}"));
                    drop_caught(callback);
                }
            }
        }
        callbacks = remaining;
    }
    callbacks.into_iter().for_each(drop_caught);
}

/// Drops a callback. The drop runs host code too, which may panic.
fn drop_caught(callback: Callback) {
    if let Err(panic) = panics::catch_host_panic(|| drop(callback)) {
        log::error(format!("a callback panicked when it was dropped: {panic}"));
    }
}
