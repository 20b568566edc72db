//! Files of the service's own, written by its closures into incidents.
//!
//! Each run of a closure has a thread of its own, and what it writes goes straight into a draft that it
//! shares with the capture thread:
//!
//! ```text
//!  Job::Collect ─► draft, thread ──► closure ─► Output ─► draft ◄─ taken out ─ Job::Gather
//!                                       └─ returned: Event::Collected ───────────►┘
//! ```
//!
//! Neither of the agent's threads ever waits for a closure. When it returns, or when its time is up, the
//! capture thread takes the draft out and commits what is in it; a closure that goes on writing gets an
//! error from then on. A closure that never returns costs its one thread: until it does, its collector
//! is passed over, and the manifest says since when. A panic is a failure of that run; the next incident
//! calls it again. What was written before a panic, an error or the end of its time is kept and marked
//! `cut`: near a hang, half a list is worth more than none.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc::Sender;

use super::Error as AgentError;
use super::collect::{self, Failure};
use super::event::Event;
use super::fence::{chain, fence_host};
use crate::base::sync::Mutex as ForkMutex;
use crate::base::{Bytes, Error, IncidentId, Moment};
use crate::model::{Collect, FileName};
use crate::os::own_thread;
use crate::store::Draft;

/// More than this is a leak of registrations.
const MAX_COLLECTORS: usize = 32;

/// What bounds a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectorOptions {
    /// How long it may take. What it has written by then is kept. Default: 5 seconds.
    pub timeout: Duration,
    /// How much it may write. Default: 1 MiB.
    pub max_bytes: Bytes,
}

impl Default for CollectorOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), max_bytes: Bytes::mib(1) }
    }
}

/// What a collector of the service's own gives back: any error will do.
pub type Collected = Result<(), Box<dyn std::error::Error + Send + Sync>>;

type Closure = Box<dyn FnMut(&mut CollectorOutput) -> Collected + Send>;

/// Where a collector writes to. A write fails once its time is up, at its limit, or when the disk
/// refuses.
pub struct CollectorOutput(Arc<Shared>);

impl fmt::Debug for CollectorOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CollectorOutput").finish_non_exhaustive()
    }
}

impl Write for CollectorOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        let State { draft, left, limited, refused, .. } = &mut *state;
        let Some(draft) = draft else {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the collector's time is up"));
        };
        let fits = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
        if fits == 0 && !bytes.is_empty() {
            *limited = true;
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the collector's max_bytes"));
        }
        let written = draft.write(bytes.get(..fits).unwrap_or_default()).inspect_err(|error| {
            refused.get_or_insert_with(|| chain(error));
        })?;
        *left = left.saturating_sub(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a run's thread and the capture thread share.
struct Shared(Mutex<State>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct State {
    /// None once it was taken out.
    draft: Option<Draft>,
    left: u64,
    /// Whether it wanted to write more than it may.
    limited: bool,
    /// Why the disk refused.
    refused: Option<String>,
    /// How it returned.
    ended: Option<Result<(), String>>,
}

#[derive(Clone)]
struct Collector {
    name: FileName,
    options: CollectorOptions,
    closure: Arc<Mutex<Closure>>,
    /// Since when it runs.
    busy: Arc<Mutex<Option<Timestamp>>>,
}

/// The collectors there are. Clones share them.
#[derive(Clone)]
pub(super) struct Collectors {
    all: Arc<ForkMutex<Vec<Collector>>>,
    events: Sender<Event>,
}

impl Collectors {
    pub(super) fn new(events: Sender<Event>) -> Self {
        Self { all: Arc::default(), events }
    }

    pub(super) fn add(
        &self,
        name: &str,
        options: CollectorOptions,
        closure: Closure,
    ) -> Result<(), Error> {
        let name: FileName = name.parse().map_err(Error::new)?;
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.iter().any(|it| it.name == name) || all.len() >= MAX_COLLECTORS {
            return Err(Error::new(AgentError::Collector { name, most: MAX_COLLECTORS }));
        }
        let closure = Arc::new(Mutex::new(closure));
        all.push(Collector { name, options, closure, busy: Arc::default() });
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// What `wanted` asks for, each by its name and with the collector, if there is one.
    pub(super) fn wanted(&self, wanted: &Collect) -> Vec<(FileName, Option<Ready>)> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let missing = wanted.names().filter(|name| all.iter().all(|it| it.name != **name));
        let mut found: Vec<_> = missing.map(|name| (name.clone(), None)).collect();
        found.extend(all.into_iter().filter(|it| wanted.includes(&it.name)).map(|collector| {
            let events = self.events.clone();
            (collector.name.clone(), Some(Ready { collector, events }))
        }));
        found
    }
}

/// A collector that can be run.
pub(super) struct Ready {
    collector: Collector,
    events: Sender<Event>,
}

impl Ready {
    /// Why it cannot be run now: it runs, or there is too little memory `left`.
    pub(super) fn unfit(&self, left: Option<Bytes>) -> Option<String> {
        let busy = *self.collector.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = busy {
            return Some(format!("the run that began at {since} has not returned"));
        }
        let (left, most) = (left?, self.collector.options.max_bytes);
        (left < most).then(|| {
            format!("{left} are left below the memory limit and it may write up to {most}")
        })
    }

    /// Runs it into `draft`.
    pub(super) fn start(
        self,
        (incident, record): (IncidentId, usize),
        draft: Draft,
        (now, wall): (Moment, Timestamp),
    ) -> Result<Run, Failure> {
        let Self { collector: Collector { name, options, closure, busy }, events } = self;
        let left = options.max_bytes.get();
        let state = State { draft: Some(draft), left, limited: false, refused: None, ended: None };
        let shared = Arc::new(Shared(Mutex::new(state)));
        *busy.lock().unwrap_or_else(PoisonError::into_inner) = Some(wall);
        let spawned = thread::Builder::new().name("marple-collect".to_owned()).spawn({
            let (shared, busy) = (Arc::clone(&shared), Arc::clone(&busy));
            move || {
                own_thread::enter();
                let _excluded = collect::heap::exclude_current_thread();
                let mut output = CollectorOutput(Arc::clone(&shared));
                let ended = fence_host(|| {
                    let mut closure = closure.lock().unwrap_or_else(PoisonError::into_inner);
                    closure(&mut output)
                });
                shared.lock().ended = Some(ended.map_err(|error| chain(&*error)));
                *busy.lock().unwrap_or_else(PoisonError::into_inner) = None;
                // Without the agent nobody is left to hear of it.
                let _ = events.blocking_send(Event::Collected { id: incident });
            }
        });
        if let Err(error) = spawned {
            *busy.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return Err(error.into());
        }
        Ok(Run { name, incident, record, until: now + options.timeout, options, shared })
    }
}

/// A run under way.
pub(super) struct Run {
    pub(super) name: FileName,
    pub(super) incident: IncidentId,
    /// Its line in the manifest.
    pub(super) record: usize,
    /// When its time is up.
    pub(super) until: Moment,
    options: CollectorOptions,
    shared: Arc<Shared>,
}

/// What came of a run.
pub(super) struct Gathered {
    /// What it wrote; none when that is not worth a file.
    pub(super) draft: Option<Draft>,
    /// What there is to be said of it, if not all is well.
    pub(super) error: Option<String>,
}

impl Run {
    /// Takes what it wrote, if it has returned, its time is up at `now`, or there is no time any more.
    pub(super) fn gather(&self, now: Moment, at_once: bool) -> Option<Gathered> {
        let mut state = self.shared.lock();
        if state.ended.is_none() && now < self.until && !at_once {
            return None;
        }
        let draft = state.draft.take();
        let CollectorOptions { timeout, max_bytes } = self.options;
        let error = match (&state.refused, state.limited, &state.ended) {
            (Some(refused), _, _) => Some(refused.clone()),
            (None, true, _) => Some(format!("cut at {max_bytes}, its max_bytes")),
            (None, _, Some(Ok(()))) => None,
            (None, _, Some(Err(error))) => Some(error.clone()),
            (None, _, None) if now < self.until => Some("the agent was stopped".to_owned()),
            (None, _, None) => Some(format!("it had not returned after {timeout:?}")),
        };
        let draft = draft.filter(|draft| error.is_none() || draft.bytes().get() > 0);
        let error = match (error, &draft) {
            (Some(error), Some(draft)) if !state.limited => {
                Some(format!("{error}; cut at {} bytes", draft.bytes().get()))
            }
            (error, _) => error,
        };
        Some(Gathered { draft, error })
    }
}
