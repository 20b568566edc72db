//! From settings to a running agent, and its end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self as std_mpsc, Receiver, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::mpsc;

use super::Error as AgentError;
use super::announce::{self, Announcer, Callback, IncidentEvent};
use super::budget::State;
use super::capture::Worker;
use super::collect;
use super::collectors::{Collected, CollectorOptions, CollectorOutput, Collectors};
use super::core::Core;
use super::event::{Event, QUEUE, ToggleAction};
use super::handle::AgentHandle;
use super::run::{self, LAST_WORDS};
use super::service::Service;
use super::stream::work::{Desk, Order};
use crate::base::{Clock, Error, SystemClock};
use crate::config::{self, Change, Settings, Watched, Watcher};
use crate::model::{Origin, ProcessInfo, Versions};
use crate::os;
use crate::store::{Recovery, Store};
use crate::vitals::{Numbers, Reader, Runtimes};

/// Whether an agent runs in this process.
static RUNNING: AtomicBool = AtomicBool::new(false);

/// How many threads may read files for the endpoint at once; they end when they have been idle.
const BLOCKING_THREADS: usize = 2;

/// The claim on [`RUNNING`].
struct OnlyOne;

impl OnlyOne {
    fn claim() -> Result<Self, Error> {
        if RUNNING.swap(true, Ordering::AcqRel) {
            return Err(Error::new(AgentError::AlreadyRunning));
        }
        Ok(Self)
    }
}

impl Drop for OnlyOne {
    fn drop(&mut self) {
        RUNNING.store(false, Ordering::Release);
    }
}

/// Settings on their way to a running [`Agent`].
#[must_use = "nothing is watched until `start` is called"]
pub struct Builder {
    settings: Settings,
    path: Option<PathBuf>,
    services: Vec<Box<dyn Service>>,
    callbacks: Vec<Callback>,
    collectors: Vec<Pending>,
}

/// A collector that is to be registered.
type Pending = (String, CollectorOptions, Box<dyn FnMut(&mut CollectorOutput) -> Collected + Send>);

impl Builder {
    /// The settings, to be looked at or changed.
    pub fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// Calls `callback` with what becomes of incidents, on a thread of its own. One that takes long misses
    /// events, which is counted in the status; one that panics is not called again.
    pub fn on_event(mut self, callback: impl FnMut(&IncidentEvent) + Send + 'static) -> Self {
        self.callbacks.push(Box::new(callback));
        self
    }

    /// Has `collect` write the file `name` into incidents, as
    /// [`AgentHandle::collector`] does. A name that cannot be is an error of the start.
    pub fn collector(
        self,
        name: impl Into<String>,
        collect: impl FnMut(&mut CollectorOutput) -> Collected + Send + 'static,
    ) -> Self {
        self.collector_with(name, CollectorOptions::default(), collect)
    }

    /// The same within other bounds.
    pub fn collector_with(
        mut self,
        name: impl Into<String>,
        options: CollectorOptions,
        collect: impl FnMut(&mut CollectorOutput) -> Collected + Send + 'static,
    ) -> Self {
        self.collectors.push((name.into(), options, Box::new(collect)));
        self
    }

    /// Lets `service` run on the agent's runtime.
    #[cfg_attr(
        not(feature = "http"),
        expect(dead_code, reason = "the endpoint is the one service")
    )]
    pub(crate) fn attach(mut self, service: impl Service + 'static) -> Self {
        self.services.push(Box::new(service));
        self
    }

    /// Starts the two threads.
    pub(crate) fn launch(self) -> Result<Agent, Error> {
        let Self { settings, path, mut services, callbacks, collectors } = self;
        settings.validate().map_err(Error::new)?;
        let only_one = OnlyOne::claim()?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (store, recovery) =
            Store::open(&settings.dir, settings.store.clone(), Arc::clone(&clock))
                .map_err(Error::new)?;
        tell(&recovery);
        let state = saved(&store);
        for service in &mut services {
            service.bind(&settings)?;
        }

        let (runtimes, numbers) = (Runtimes::default(), Numbers::default());
        if let Ok(current) = tokio::runtime::Handle::try_current() {
            runtimes.observe(current).map_err(Error::new)?;
        }
        let (events, queue) = mpsc::channel(QUEUE);
        let registry = Collectors::new(events.clone());
        for (name, options, collect) in collectors {
            registry.add(&name, options, collect)?;
        }
        let measured = (runtimes.clone(), numbers.clone());
        let handle = AgentHandle::new(events.clone(), measured, registry.clone(), &settings);
        let watcher = watch(&settings, path.clone(), &events)?;

        // One task at a time: the loop sends the next when it has heard of the last.
        let (tasks, inbox) = std_mpsc::sync_channel(1);
        let (process, versions) = (process(&*clock), versions());
        let (announcer, announced) = Announcer::new(&callbacks);
        if let Some(announced) = announced {
            // Never waited for: what it runs is not ours.
            spawn("marple-callbacks", move || announce::call(&announced, callbacks))?;
        }
        let capture_thread = spawn("marple-capture", {
            let (clock, events) = (Arc::clone(&clock), events.clone());
            let collectors = registry.clone();
            move || {
                let worker = Worker::new(
                    Arc::clone(&clock),
                    store,
                    process,
                    versions,
                    announcer,
                    collectors,
                );
                work(worker, &*clock, &inbox, &events);
            }
        })?;
        let (finished_tx, finished) = std_mpsc::sync_channel(1);
        let loop_thread = spawn("marple", {
            let handle = handle.clone();
            move || {
                let measures = (clock, runtimes, numbers);
                let begun = (settings, path, state, registry);
                lead(begun, measures, tasks, queue, services, handle);
                // The watcher's callback may hold a sender of its own: the end is said, not inferred.
                let _ = finished_tx.send(());
                drop(only_one);
            }
        })?;
        Ok(Agent {
            handle,
            events,
            finished,
            threads: Some([loop_thread, capture_thread]),
            watcher,
        })
    }
}

/// A running marple. Dropping it stops everything: captures that run are ended and written, open
/// incidents are closed. That takes as long as the writing, 5 seconds at the most.
#[must_use = "dropping the agent stops it: keep it as long as the service runs"]
pub struct Agent {
    handle: AgentHandle,
    events: mpsc::Sender<Event>,
    finished: Receiver<()>,
    threads: Option<[JoinHandle<()>; 2]>,
    /// Held for what it watches.
    watcher: Option<Watcher>,
}

impl Agent {
    /// Reads the settings from a TOML file, which is watched from the start on: a valid change is
    /// applied within a second, an invalid one is refused and said in the log and in `status`.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or with every problem in it, each with its line.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Builder, Error> {
        let path = path.as_ref();
        let settings = config::load(path).map_err(Error::new)?;
        Ok(Builder {
            settings,
            path: Some(path.to_owned()),
            services: Vec::new(),
            callbacks: Vec::new(),
            collectors: Vec::new(),
        })
    }

    /// Takes the settings from code.
    pub fn from_settings(settings: Settings) -> Builder {
        Builder {
            settings,
            path: None,
            services: Vec::new(),
            callbacks: Vec::new(),
            collectors: Vec::new(),
        }
    }

    /// Begins with the default settings: the default rules and no endpoint.
    pub fn builder() -> Builder {
        Self::from_settings(Settings::default())
    }

    /// A way to talk to the agent.
    pub fn handle(&self) -> AgentHandle {
        self.handle.clone()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // A fork has the values and not the threads: there is nobody to ask and nobody to wait for.
        if self.handle.is_inherited() {
            std::mem::forget(self.threads.take());
            std::mem::forget(self.watcher.take());
            return;
        }
        // A full queue drains within the wait below, so the request is repeated until it is in.
        let mut asked = false;
        let step = Duration::from_millis(20);
        let mut left = LAST_WORDS + Duration::from_secs(1);
        loop {
            asked = asked || self.events.try_send(Event::Shutdown).is_ok();
            match self.finished.recv_timeout(step) {
                Err(std_mpsc::RecvTimeoutError::Timeout) if left > step => left -= step,
                Err(std_mpsc::RecvTimeoutError::Timeout) => {
                    tracing::error!(
                        target: "marple",
                        "a capture is still being written; its thread is left to it"
                    );
                    return;
                }
                Ok(()) | Err(std_mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        let [loop_thread, capture_thread] = match self.threads.take() {
            Some(threads) => threads,
            None => return,
        };
        let _ = loop_thread.join();
        // With the loop gone the worker's inbox is closed. It ends after the task it has, if any; a disk
        // that hangs must not hang the host's exit.
        while !capture_thread.is_finished() {
            if left <= step {
                return;
            }
            thread::sleep(step);
            left -= step;
        }
        let _ = capture_thread.join();
    }
}

/// The thread `marple`: a runtime of its own, and the loop on it.
fn lead(
    (settings, path, state, collectors): (Settings, Option<PathBuf>, Option<State>, Collectors),
    (clock, runtimes, numbers): (Arc<dyn Clock>, Runtimes, Numbers),
    tasks: SyncSender<Order>,
    queue: mpsc::Receiver<Event>,
    services: Vec<Box<dyn Service>>,
    handle: AgentHandle,
) {
    let _excluded = collect::heap::exclude_current_thread();
    // Files are read for the endpoint on threads of this runtime, a few at a time; what they allocate is
    // no more the service's than what this thread does.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("marple-files")
        .max_blocking_threads(BLOCKING_THREADS)
        .on_thread_start(collect::heap::exclude_for_good)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(target: "marple", "no runtime for the agent: {error}");
            return;
        }
    };
    let signal = settings.toggle.signal;
    let reader = Reader::new(runtimes, numbers);
    let core = Core::new(clock, settings, path, reader, tasks, state.as_ref(), collectors);
    runtime.block_on(async {
        for service in services {
            tokio::spawn(service.serve(handle.clone()));
        }
        run::run(core, queue, signal).await;
    });
}

/// The thread `marple-capture`.
fn work(
    mut worker: Worker,
    clock: &dyn Clock,
    inbox: &Receiver<Order>,
    events: &mpsc::Sender<Event>,
) {
    let _excluded = collect::heap::exclude_current_thread();
    worker.prepare();
    let mut desk = Desk::new(events.clone());
    while let Ok(order) = inbox.recv() {
        let done = match order {
            Order::Incident(task) => Event::Done(worker.perform(*task)),
            Order::Stream(task) => {
                if let Some(error) = task.state.as_ref().and_then(|state| worker.save(state).err())
                    && events.blocking_send(Event::NotSaved(error)).is_err()
                {
                    return;
                }
                Event::Streamed(desk.perform(clock, task))
            }
        };
        if events.blocking_send(done).is_err() {
            return;
        }
    }
}

fn spawn(name: &'static str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| Error::new(AgentError::Thread { name, error }))
}

/// Watches the settings file and the trigger file, whichever there is.
fn watch(
    settings: &Settings,
    path: Option<PathBuf>,
    events: &mpsc::Sender<Event>,
) -> Result<Option<Watcher>, Error> {
    let trigger = settings.toggle.trigger_file.clone().map(Watched::Trigger);
    let files: Vec<Watched> = path.map(Watched::Config).into_iter().chain(trigger).collect();
    if files.is_empty() {
        return Ok(None);
    }
    let events = events.clone();
    let watcher = Watcher::new(files, move |change| {
        let event = match change {
            Change::Config { settings, .. } => {
                Event::Reloaded { settings: settings.map_err(Error::new) }
            }
            Change::Trigger { .. } => Event::Toggle {
                action: ToggleAction::Flip,
                origin: Origin::TriggerFile,
                kinds: None,
                reply: None,
            },
        };
        if events.try_send(event).is_err() {
            tracing::error!(target: "marple", "a change of a watched file was missed");
        }
    });
    watcher.map(Some).map_err(Error::new)
}

/// What an earlier process had used up. When that cannot be read, the budgets begin anew.
fn saved(store: &Store) -> Option<State> {
    let state = store.load_state::<State>();
    let known = |state: &State| state.schema == State::SCHEMA;
    state.map(|state| state.filter(known)).unwrap_or_else(|error| {
        tracing::error!(target: "marple", "budgets begin anew: {error}");
        None
    })
}

/// Says what an earlier process left behind, if it did.
fn tell(recovery: &Recovery) {
    for id in &recovery.interrupted {
        tracing::warn!(target: "marple", "the process ended during incident {id}; its files are kept");
    }
    for error in &recovery.failed {
        tracing::error!(target: "marple", "an earlier incident stays as it was found: {error}");
    }
    if !recovery.swept.is_empty() {
        tracing::info!(target: "marple", "unfinished files swept: {}", recovery.swept.join(", "));
    }
}

fn process(clock: &dyn Clock) -> ProcessInfo {
    ProcessInfo {
        pid: os::process::pid(),
        exe: os::process::exe().map(|exe| exe.display().to_string()).unwrap_or_default(),
        build_id: os::images::loaded()
            .ok()
            .and_then(|images| images.into_iter().next())
            .map(|own| own.build_id)
            .unwrap_or_default(),
        agent_started: clock.wall(),
    }
}

fn versions() -> Versions {
    Versions {
        marple: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: os::process::kernel(),
        arch: os::process::arch(),
    }
}
