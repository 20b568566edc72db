//! The builder of a running agent.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self as std_mpsc, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::Error as AgentError;
use super::deferred::{DeferredParts, FileWatch, FirstOpenResult};
use super::event::EVENT_QUEUE_CAPACITY;
use super::event::results;
use super::handle::AgentHandle;
use super::pending::AgentThreads;
use super::run::AgentLoop;
use super::service::Service;
use super::threads::run_agent_thread;
use crate::agent::singleton::Agent;
use crate::agent::state::{AgentState, InitialState};
use crate::base::{Clock, Error, ErrorKind, SystemClock, log, panics, spare, warnings};
use crate::capture::callbacks::{self, Callback, CallbackSender, IncidentEvent};
use crate::capture::collectors;
use crate::capture::custom_collectors::{
    CollectorOptions, CollectorOutput, CollectorResult, Collectors,
};
use crate::capture::thread as capture_thread;
use crate::capture::worker::CaptureWorker;
use crate::capture::worker::directory::{
    DIRECTORY_WARNING_TOPIC as DIRECTORY, Directory, OpenedStore,
};
use crate::config::{self, Settings, WatchedFile};
use crate::metrics::Metrics;
use crate::model::{ProcessInfo, Versions};
use crate::os;
use crate::os::fork::ProcessClaim;
use crate::store::Location;
use crate::vitals::{Reader, Runtimes};

/// A builder that starts an [`Agent`] from settings.
#[must_use = "the agent does not run until `start` is called"]
pub struct Builder {
    settings: Settings,
    path: Option<PathBuf>,
    services: Vec<Box<dyn Service>>,
    callbacks: Vec<Callback>,
    collectors: Vec<CollectorRegistration>,
    strict: bool,
}

impl Agent {
    /// Creates a builder with the default settings: the default rules and no endpoint. See
    /// [`Builder::from_file`] for settings from a file.
    pub fn builder() -> Builder {
        Builder::from_settings(Settings::default())
    }

    /// The name of [`Builder::from_file`] in early versions.
    #[doc(hidden)]
    pub fn from_file(path: impl AsRef<Path>) -> Result<Builder, Error> {
        Builder::from_file(path)
    }
}

/// A collector to register at the start.
type CollectorRegistration =
    (String, CollectorOptions, Box<dyn FnMut(&mut CollectorOutput) -> CollectorResult + Send>);

impl Builder {
    fn new(settings: Settings, path: Option<PathBuf>) -> Self {
        Self {
            settings,
            path,
            services: Vec::new(),
            callbacks: Vec::new(),
            collectors: Vec::new(),
            strict: false,
        }
    }

    /// Reads the settings from a TOML file and watches the file from the start. A valid change is
    /// applied within a second. An invalid one is rejected and reported in the log and in `status`.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or is invalid. The error lists every problem with its line.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let settings =
            config::load(path).map_err(|error| Error::with_kind(ErrorKind::Settings, error))?;
        Ok(Self::new(settings, Some(path.to_owned())))
    }

    /// Creates a builder with settings from code.
    pub fn from_settings(settings: Settings) -> Self {
        Self::new(settings, None)
    }

    /// Returns the settings for inspection or changes.
    pub fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// Registers a callback for incident events. Callbacks run on a separate thread. A slow
    /// callback misses events, which are counted in the status. One that panics is not called
    /// again.
    pub fn on_event(mut self, callback: impl FnMut(&IncidentEvent) + Send + 'static) -> Self {
        self.callbacks.push(Box::new(callback));
        self
    }

    /// Registers `collect` as the custom collector `name`, as [`AgentHandle::add_collector`] does.
    /// An invalid name is an error of the start.
    pub fn add_collector(
        self,
        name: impl Into<String>,
        collect: impl FnMut(&mut CollectorOutput) -> CollectorResult + Send + 'static,
    ) -> Self {
        self.add_collector_with(name, CollectorOptions::default(), collect)
    }

    /// Registers a custom collector with other limits.
    pub fn add_collector_with(
        mut self,
        name: impl Into<String>,
        options: CollectorOptions,
        collect: impl FnMut(&mut CollectorOutput) -> CollectorResult + Send + 'static,
    ) -> Self {
        self.collectors.push((name.into(), options, Box::new(collect)));
        self
    }

    /// Adds a service that runs on the agent's runtime.
    #[cfg_attr(
        not(feature = "http"),
        expect(dead_code, reason = "the endpoint is the only service")
    )]
    pub(crate) fn add_service(mut self, service: impl Service + 'static) -> Self {
        self.services.push(Box::new(service));
        self
    }

    /// Sets whether [`start`](Self::start) fails if any resource that the settings require is
    /// unavailable. Default: `false`.
    ///
    /// By default only invalid settings, a collector that cannot be registered and a second agent
    /// in the process are errors. Other resources may be unavailable: a directory that is in use,
    /// read-only or full, an address in use, threads that cannot be created. The agent then starts
    /// without them, lists them in the log and in `status` (`warnings`), and acquires each as soon
    /// as possible. With `true` each of these is an error of the start, for jobs and tests that are
    /// useless without them.
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Starts the threads.
    pub(crate) fn launch(self) -> Result<Agent, Error> {
        let Self { settings, path, mut services, callbacks, collectors, strict } = self;
        settings.validate().map_err(|error| Error::with_kind(ErrorKind::Settings, error))?;
        let claim = ProcessClaim::claim().ok_or_else(|| Error::from(AgentError::AlreadyRunning))?;
        panics::install_hook();
        spare::reserve();
        log::set_on_start(|| {
            crate::os::own_thread::enter();
            collectors::heap::exclude_thread_permanently();
        });
        let (events, queue) = mpsc::channel(EVENT_QUEUE_CAPACITY);
        let registry = Collectors::new(results(events.clone()));
        for (name, options, collect) in collectors {
            registry.add(&name, options, collect)?;
        }
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let runtimes = Runtimes::default();
        let metrics = Metrics::default();
        if let Ok(current) = tokio::runtime::Handle::try_current()
            && let Err(error) = runtimes.observe(current)
        {
            warnings::set("runtime", format!("this runtime is not observed: {error}"));
        }
        let threads = AgentThreads::new();
        let location = Location::new(&settings.dir);
        let handle = AgentHandle::new(
            events.clone(),
            runtimes.clone(),
            metrics.clone(),
            registry.clone(),
            &settings,
            location.clone(),
            &threads,
        );
        let mut files = FileWatch::new(watched_files(&settings, path.clone()), events.clone());
        if let Err(error) = files.start()
            && strict
        {
            return Err(error);
        }

        for service in &mut services {
            if let Err(error) = service.bind(&settings)
                && strict
            {
                return Err(error);
            }
        }
        let endpoints: Vec<String> =
            services.iter().filter_map(|service| service.endpoint()).collect();
        let endpoint = if endpoints.is_empty() { "none".to_owned() } else { endpoints.join(", ") };

        // The channel holds one command: the loop sends the next after the result of the last.
        let (commands, inbox) = std_mpsc::sync_channel(1);
        let (callback_sender, callback_events) = CallbackSender::new(&callbacks);
        if let Some(events) = callback_events {
            // This thread is never joined: it runs host code.
            threads.callbacks.set_body(move || callbacks::run_callbacks(&events, callbacks));
        }
        collectors::symbol_files::open_files();
        collectors::heap::read_images();
        let (first, opening) = std_mpsc::sync_channel(1);
        threads.capture.set_body({
            let clock = Arc::clone(&clock);
            let results = results(events.clone());
            let collectors = registry.clone();
            let path = location.clone();
            let store = settings.store.clone();
            move || {
                let _excluded = collectors::heap::exclude_current_thread();
                let (directory, opened) = Directory::open(path, &store, Arc::clone(&clock));
                // Fails if the start failed and dropped the receiver.
                let _ = first.send(opened);
                let process = process_info(&*clock);
                let versions = versions();
                let worker = CaptureWorker::new(
                    Arc::clone(&clock),
                    directory,
                    process,
                    versions,
                    callback_sender,
                    collectors,
                );
                capture_thread::run(worker, &*clock, &store, &inbox, &results);
            }
        });
        if strict {
            threads.capture.start()?;
            threads.callbacks.start()?;
        } else {
            threads.start_helpers();
        }
        let (directory, opening) = await_directory(opening, &threads, &settings.dir, strict)?;

        // Set on the calling thread rather than the agent's: at rate 1 every block is in the
        // profile from the moment `start` returns.
        collectors::heap::set_rates(&settings.heap);

        let (finished_tx, finished) = std_mpsc::sync_channel(1);
        threads.agent_loop.set_body({
            let handle = handle.clone();
            let deferred = DeferredParts::new(&threads, files, opening);
            move || {
                let _excluded = collectors::heap::exclude_current_thread();
                let initial = InitialState {
                    settings,
                    config_path: path,
                    collectors: registry,
                    location,
                    directory,
                    endpoint,
                };
                let reader = Reader::new(runtimes.clone(), metrics);
                let state = AgentState::new(clock, initial, reader, commands);
                let agent = AgentLoop::new(state, queue, runtimes, deferred);
                run_agent_thread(agent, services, handle);
                // Other senders may exist, so the end is signaled explicitly.
                let _ = finished_tx.send(());
                spare::release_all();
                drop(claim);
            }
        });
        if let Err(error) = threads.agent_loop.start() {
            if strict {
                threads.agent_loop.cancel();
                // The capture thread ends when its inbox is closed, and releases the directory.
                threads.capture.take_handle().into_iter().for_each(|thread| _ = thread.join());
                return Err(error);
            }
            // There is no agent thread to log it.
            log::error(format!(
                "the agent is not running: {error}; retried when the agent's handle is used"
            ));
        }
        Ok(Agent { handle, events, finished, threads, is_stopped: false })
    }
}

/// Maximum time a start waits for the incident directory. A directory on a disk is open within
/// milliseconds; one on a network volume whose server does not respond may never be.
const DIRECTORY_OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// Wraps the error of a resource that the system does not provide.
fn unavailable(error: crate::store::Error) -> Error {
    Error::with_kind(ErrorKind::Unavailable, error)
}

/// Waits for the capture thread's first attempt to open the incident directory. If the attempt
/// takes longer, returns the channel of its result.
fn await_directory(
    opening: FirstOpenResult,
    threads: &AgentThreads,
    dir: &Path,
    strict: bool,
) -> Result<(Option<OpenedStore>, Option<FirstOpenResult>), Error> {
    if strict {
        // The thread ended without a result: it panicked.
        let thread_ended = |_| Error::from(AgentError::CaptureThreadEnded);
        let opened = opening.recv().map_err(thread_ended)?.map_err(unavailable)?;
        return Ok((Some(opened), None));
    }
    if !threads.capture.is_started() {
        return Ok((None, Some(opening)));
    }
    match opening.recv_timeout(DIRECTORY_OPEN_TIMEOUT) {
        Ok(Ok(opened)) => Ok((Some(opened), None)),
        // Reported by the capture thread, which retries.
        Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => Ok((None, None)),
        Err(RecvTimeoutError::Timeout) => {
            warnings::set(
                DIRECTORY,
                format!(
                    "incidents are not stored yet: opening {} takes more than \
                     {DIRECTORY_OPEN_TIMEOUT:?}; the file system does not respond, or an earlier \
                     process left many files",
                    dir.display()
                ),
            );
            Ok((None, Some(opening)))
        }
    }
}

/// Returns the settings file and the trigger file, if present.
fn watched_files(settings: &Settings, path: Option<PathBuf>) -> Vec<WatchedFile> {
    let trigger = settings.toggle.trigger_file.clone().map(WatchedFile::Trigger);
    path.map(WatchedFile::Config).into_iter().chain(trigger).collect()
}

fn process_info(clock: &dyn Clock) -> ProcessInfo {
    ProcessInfo {
        pid: os::proc::process::pid(),
        exe: os::proc::process::executable_path()
            .map(|exe| exe.display().to_string())
            .unwrap_or_default(),
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
        kernel: os::proc::process::kernel_release(),
        arch: os::proc::process::arch(),
    }
}
