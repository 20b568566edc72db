//! Custom collectors: closures of the service that write files into incidents.
//!
//! Each run of a closure has a separate thread. Its output goes directly into a draft shared with
//! the capture thread:
//!
//! ```text
//!  StartCollectors ─► draft, thread ──► closure ─► CollectorOutput ─► draft
//!                                          │                           │ taken out
//!                     CaptureResult::Collected ─────────────────► FinishCollectors
//! ```
//!
//! Neither of the agent's threads ever waits for a closure. When it returns or times out, the
//! capture thread takes the draft and commits its contents; further writes of the closure fail. A
//! closure that never returns occupies one thread. Its collector is skipped until it does, and the
//! manifest states since when.
//!
//! A panic fails that run only; the next incident calls the closure again. Output written before a
//! panic, an error or a timeout is kept and marked `cut`. Near a hang, half a list is worth more
//! than none.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::base::failure::{catch_host_panic, error_chain};
use crate::base::sync::Mutex as ForkMutex;
use crate::base::{Bytes, Error, ErrorKind, IncidentId, Moment, TimeAnchor};
use crate::capture::collectors::{self, CaptureFailure};
use crate::capture::messages::{CaptureResult, ResultSender};
use crate::model::{CollectorSelection, FileName};
use crate::os::own_thread;
use crate::store::ArtifactDraft;
use jiff::Timestamp;

/// Maximum number of collectors. A larger number indicates a leak of registrations.
const MAX_COLLECTORS: usize = 32;

/// Limits of a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct CollectorOptions {
    /// Maximum run time. Output written by then is kept. Default: 5 seconds.
    pub timeout: Duration,
    /// Maximum size of the output. Default: 1 MiB.
    pub max_bytes: Bytes,
}

impl Default for CollectorOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), max_bytes: Bytes::mib(1) }
    }
}

/// Result of a custom collector. Any error type is accepted.
pub type CollectorResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// The error of a registration.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot register collector `{name}`: the name is in use, or {max} collectors are registered; \
     register each once, where the agent is started"
)]
struct RejectedCollector {
    name: FileName,
    max: usize,
}

type Closure = Box<dyn FnMut(&mut CollectorOutput) -> CollectorResult + Send>;

/// The writer passed to a collector. Writes fail after the timeout, beyond the size limit, or if
/// the disk write fails.
pub struct CollectorOutput(Arc<SharedCollectorState>);

impl fmt::Debug for CollectorOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CollectorOutput").finish_non_exhaustive()
    }
}

impl Write for CollectorOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        let CollectorState { draft, remaining_bytes, limit_reached, write_error, .. } = &mut *state;
        let Some(draft) = draft else {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the collector's timeout has passed",
            ));
        };
        let fits = usize::try_from(*remaining_bytes).unwrap_or(usize::MAX).min(bytes.len());
        if fits == 0 && !bytes.is_empty() {
            *limit_reached = true;
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "the collector's max_bytes is reached",
            ));
        }
        let written = draft.write(bytes.get(..fits).unwrap_or_default()).inspect_err(|error| {
            write_error.get_or_insert_with(|| error_chain(error));
        })?;
        *remaining_bytes = remaining_bytes.saturating_sub(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// State shared by the thread of a run and the capture thread.
struct SharedCollectorState(Mutex<CollectorState>);

impl SharedCollectorState {
    fn lock(&self) -> MutexGuard<'_, CollectorState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct CollectorState {
    /// `None` once the capture thread has taken it.
    draft: Option<ArtifactDraft>,
    remaining_bytes: u64,
    /// True if the closure tried to exceed the size limit.
    limit_reached: bool,
    /// Error of the first failed disk write.
    write_error: Option<String>,
    /// Result of the closure, once it has returned.
    result: Option<Result<(), String>>,
}

#[derive(Clone)]
struct CustomCollector {
    name: FileName,
    options: CollectorOptions,
    closure: Arc<Mutex<Closure>>,
    /// Start time of the current run.
    running_since: Arc<Mutex<Option<Timestamp>>>,
}

/// The registered collectors. Clones share them.
#[derive(Clone)]
pub(crate) struct Collectors {
    registered: Arc<ForkMutex<Vec<CustomCollector>>>,
    results: ResultSender,
}

impl Collectors {
    pub(crate) fn new(results: ResultSender) -> Self {
        Self { registered: Arc::default(), results }
    }

    pub(crate) fn add(
        &self,
        name: &str,
        options: CollectorOptions,
        closure: Closure,
    ) -> Result<(), Error> {
        let name: FileName =
            name.parse().map_err(|error| Error::with_kind(ErrorKind::InvalidInput, error))?;
        let mut all = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        if all.iter().any(|known| known.name == name) || all.len() >= MAX_COLLECTORS {
            let error = RejectedCollector { name, max: MAX_COLLECTORS };
            return Err(Error::with_kind(ErrorKind::InvalidInput, error));
        }
        let closure = Arc::new(Mutex::new(closure));
        all.push(CustomCollector { name, options, closure, running_since: Arc::default() });
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Returns the collectors in `requested`, by name; `None` for a name that is not registered.
    pub(crate) fn select(
        &self,
        requested: &CollectorSelection,
    ) -> Vec<(FileName, Option<RunnableCollector>)> {
        let all = self.registered.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let unknown = requested.names().filter(|name| all.iter().all(|known| known.name != **name));
        let mut found: Vec<_> = unknown.map(|name| (name.clone(), None)).collect();
        found.extend(all.into_iter().filter(|collector| requested.includes(&collector.name)).map(
            |collector| {
                let results = self.results.clone();
                (collector.name.clone(), Some(RunnableCollector { collector, results }))
            },
        ));
        found
    }
}

/// A collector that can be started.
pub(crate) struct RunnableCollector {
    collector: CustomCollector,
    results: ResultSender,
}

impl RunnableCollector {
    /// Returns the reason the collector cannot be started: it is still running, or the memory
    /// `available` is insufficient.
    pub(crate) fn unavailable_reason(&self, available: Option<Bytes>) -> Option<String> {
        let busy = *self.collector.running_since.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = busy {
            return Some(format!("the run started at {since} has not returned"));
        }
        let available = available?;
        let max_bytes = self.collector.options.max_bytes;
        (available < max_bytes).then(|| {
            format!(
                "only {available} left below the memory limit; the collector may write up to {max_bytes}"
            )
        })
    }

    /// Starts a run that writes into `draft`.
    pub(crate) fn start(
        self,
        incident: IncidentId,
        record_index: usize,
        draft: ArtifactDraft,
        anchor: TimeAnchor,
    ) -> Result<CollectorRun, CaptureFailure> {
        let Self { collector: CustomCollector { name, options, closure, running_since }, results } =
            self;
        let state = CollectorState {
            draft: Some(draft),
            remaining_bytes: options.max_bytes.get(),
            limit_reached: false,
            write_error: None,
            result: None,
        };
        let shared = Arc::new(SharedCollectorState(Mutex::new(state)));
        *running_since.lock().unwrap_or_else(PoisonError::into_inner) = Some(anchor.wall);
        let thread = thread::Builder::new().name("marple-collect".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            let running_since = Arc::clone(&running_since);
            move || {
                own_thread::enter();
                let _excluded = collectors::heap::exclude_current_thread();
                let mut output = CollectorOutput(Arc::clone(&shared));
                let result = catch_host_panic(|| {
                    let mut closure = closure.lock().unwrap_or_else(PoisonError::into_inner);
                    closure(&mut output)
                });
                shared.lock().result = Some(result.map_err(|error| error_chain(&*error)));
                *running_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
                // Fails once the agent has ended.
                let _ = results.send(CaptureResult::Collected { id: incident });
            }
        });
        if let Err(error) = thread {
            *running_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return Err(error.into());
        }
        Ok(CollectorRun {
            name,
            incident,
            record_index,
            deadline: anchor.moment + options.timeout,
            options,
            shared,
        })
    }
}

/// A run in progress.
pub(crate) struct CollectorRun {
    pub(crate) name: FileName,
    pub(crate) incident: IncidentId,
    /// Index of its record in the manifest.
    pub(crate) record_index: usize,
    /// Deadline of the run.
    pub(crate) deadline: Moment,
    options: CollectorOptions,
    shared: Arc<SharedCollectorState>,
}

/// Output of a finished run.
pub(crate) struct CollectorOutcome {
    /// The draft to commit, or `None` if it is not worth a file.
    pub(crate) draft: Option<ArtifactDraft>,
    /// Description of an error or a cut, or `None` if the run succeeded.
    pub(crate) error: Option<String>,
}

impl CollectorRun {
    /// Takes the output if the closure has returned, if its deadline has passed at `now`, or if
    /// `force` is set. Returns `None` if the run continues.
    pub(crate) fn try_finish(&self, now: Moment, force: bool) -> Option<CollectorOutcome> {
        let mut state = self.shared.lock();
        if state.result.is_none() && now < self.deadline && !force {
            return None;
        }
        let draft = state.draft.take();
        let CollectorOptions { timeout, max_bytes } = self.options;
        let error = match (&state.write_error, state.limit_reached, &state.result) {
            (Some(error), _, _) => Some(error.clone()),
            (None, true, _) => Some(format!("truncated at max_bytes, {max_bytes}")),
            (None, _, Some(Ok(()))) => None,
            (None, _, Some(Err(error))) => Some(error.clone()),
            (None, _, None) if now < self.deadline => Some("the agent was stopped".to_owned()),
            (None, _, None) => Some(format!("the collector did not return within {timeout:?}")),
        };
        let draft = draft.filter(|draft| error.is_none() || draft.bytes().get() > 0);
        let error = match (error, &draft) {
            (Some(error), Some(draft)) if !state.limit_reached => {
                Some(format!("{error}; truncated at {} bytes", draft.bytes().get()))
            }
            (error, _) => error,
        };
        Some(CollectorOutcome { draft, error })
    }
}
