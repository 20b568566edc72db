//! Telling the service what becomes of its incidents.
//!
//! Its callbacks run on a thread of their own, so that one that hangs holds up neither a tick nor a
//! capture. The queue to it has an end: what does not fit is not told, and counted. A callback that
//! panics is not called again. Without a callback there is no thread. The same is told as `tracing`
//! events of the target `marple`.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crate::base::{IncidentId, log, panics};
use crate::model::Artifact;

/// How many events may wait for a callback: an incident's, several times over.
const QUEUE: usize = 256;

/// What became of an incident.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum IncidentEvent {
    /// Its directory is there.
    Opened {
        /// The incident.
        id: IncidentId,
        /// What it is called after: the rule, or who asked.
        name: String,
        /// Its directory.
        dir: PathBuf,
    },
    /// A file of it is whole and under its name.
    Written {
        /// The incident.
        id: IncidentId,
        /// The file.
        path: PathBuf,
        /// What the manifest says of it.
        artifact: Artifact,
    },
    /// It is over: nothing is written into its directory any more.
    Closed {
        /// The incident.
        id: IncidentId,
        /// Its directory.
        dir: PathBuf,
    },
}

/// A callback of the service's.
pub(super) type Callback = Box<dyn FnMut(&IncidentEvent) + Send>;

/// The way to the callbacks, if there are any.
pub(super) struct Announcer(Option<SyncSender<IncidentEvent>>);

impl Announcer {
    /// With what it takes out of the queue, for [`call`]; none without callbacks.
    pub(super) fn new(callbacks: &[Callback]) -> (Self, Option<Receiver<IncidentEvent>>) {
        if callbacks.is_empty() {
            return (Self(None), None);
        }
        let (sender, receiver) = sync_channel(QUEUE);
        (Self(Some(sender)), Some(receiver))
    }

    /// Tells of a directory that was made.
    pub(super) fn opened(&self, id: IncidentId, name: &str, dir: &Path) -> bool {
        let opened = log::Event::new(log::Level::Info, "incident opened");
        opened.incident(id).name(name).dir(dir.display()).send();
        self.send(|| IncidentEvent::Opened { id, name: name.to_owned(), dir: dir.to_owned() })
    }

    /// Tells of a file that was written.
    pub(super) fn written(&self, id: IncidentId, dir: &Path, artifact: &Artifact) -> bool {
        let path = dir.join(&artifact.file);
        let written = log::Event::new(log::Level::Info, "artifact written");
        written.incident(id).path(path.display()).send();
        self.send(|| IncidentEvent::Written { id, path, artifact: artifact.clone() })
    }

    /// Tells that an incident is over.
    pub(super) fn closed(&self, id: IncidentId, dir: &Path) -> bool {
        let closed = log::Event::new(log::Level::Info, "incident closed");
        closed.incident(id).dir(dir.display()).send();
        self.send(|| IncidentEvent::Closed { id, dir: dir.to_owned() })
    }

    /// False when the callbacks are so far behind that they will not hear of it.
    fn send(&self, event: impl FnOnce() -> IncidentEvent) -> bool {
        let Some(sender) = &self.0 else { return true };
        !matches!(sender.try_send(event()), Err(TrySendError::Full(_)))
    }
}

/// Calls each of `callbacks` with each event, until the agent has ended. One that panics is not called again.
pub(super) fn call(events: &Receiver<IncidentEvent>, mut callbacks: Vec<Callback>) {
    for event in events {
        let mut kept = Vec::with_capacity(callbacks.len());
        for mut callback in callbacks {
            match panics::catch(|| callback(&event)) {
                Ok(()) => kept.push(callback),
                Err(panic) => {
                    log::error(format!("a callback panicked and is not called again: {panic}"));
                    drop_caught(callback);
                }
            }
        }
        callbacks = kept;
    }
    callbacks.into_iter().for_each(drop_caught);
}

/// Drops what a callback holds, which is the host's code too.
fn drop_caught(callback: Callback) {
    if let Err(panic) = panics::catch(|| drop(callback)) {
        log::error(format!("a callback panicked when it was dropped: {panic}"));
    }
}
