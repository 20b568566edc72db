//! From settings to a running agent.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;

use tokio::sync::mpsc;

use super::announce::{self, Announcer, Callback, IncidentEvent};
use super::budget::State;
use super::capture::Worker;
use super::collect;
use super::collectors::{Collected, CollectorOptions, CollectorOutput, Collectors};
use super::core::Begun;
use super::event::{Event, QUEUE, ToggleAction};
use super::guard::{Agent, OnlyOne};
use super::handle::AgentHandle;
use super::service::Service;
use super::threads::{lead, spawn, work};
use crate::base::{Clock, Error, SystemClock};
use crate::config::{Change, Settings, Watched, Watcher};
use crate::model::{Origin, ProcessInfo, Versions};
use crate::os;
use crate::store::{Recovery, Store};
use crate::vitals::{Numbers, Runtimes};

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
    pub(super) fn new(settings: Settings, path: Option<PathBuf>) -> Self {
        Self { settings, path, services: Vec::new(), callbacks: Vec::new(), collectors: Vec::new() }
    }

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
        if store.is_in_memory() {
            tracing::warn!(
                target: "marple",
                "{} is in memory: what is kept there counts against the memory limit, and takes at most half \
                 of what is left below it",
                store.dir().display()
            );
        }
        let (state, stored) = (saved(&store), store.holdings());
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
        collect::heap::read_images();
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
                let collectors = registry;
                let begun = Begun { settings, path, state, collectors, stored };
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
