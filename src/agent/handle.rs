//! The handle used by the service's code, the endpoint, the signal and the trigger file.

use crate::capture::own_thread::side_thread;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::Error as AgentError;
use super::event::{AgentEvent, Reply, ToggleAction};
use super::pending::AgentThreads;
use super::pending_profile::PendingProfile;
use super::status::{CaptureStarted, Status, ToggleStatus};
use crate::base::side_thread::{SideThread, SideThreadWaker};
use crate::base::{Error, ErrorKind};
use crate::capture::custom_collectors::{
    CollectorOptions, CollectorOutput, CollectorResult, Collectors,
};
use crate::config::{HttpSettings, Settings};
use crate::metrics::{Counter, Gauge, Histogram, Metrics};
use crate::model::{CaptureSet, Origin};
use crate::os::fork;
use crate::policy::on_demand::{ProfileError, ProfileKind, ProfileRequest};
use crate::store::Location;
use crate::vitals::Runtimes;

/// A handle to a running agent. It is cheap to clone and can be used from any thread, async or not.
///
/// All requests enter one queue and are processed in order. Once the agent has stopped, requests
/// fail with an error that states this.
#[derive(Clone)]
pub struct AgentHandle {
    events: mpsc::Sender<AgentEvent>,
    runtimes: Runtimes,
    metrics: Metrics,
    collectors: Collectors,
    /// Thread that calls the wakers of the service.
    wakers: SideThread,
    /// Settings that cannot change without a restart.
    fixed: Arc<FixedParts>,
}

/// Values that are constant while the agent runs.
#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "only the endpoint uses it"))]
struct FixedParts {
    location: Location,
    http: HttpSettings,
    /// ID of the process in which the agent runs.
    pid: u32,
    threads: Weak<AgentThreads>,
}

impl AgentHandle {
    pub(super) fn new(
        events: mpsc::Sender<AgentEvent>,
        runtimes: Runtimes,
        metrics: Metrics,
        collectors: Collectors,
        settings: &Settings,
        location: Location,
        threads: &Arc<AgentThreads>,
    ) -> Self {
        let http = settings.http.clone().unwrap_or_default();
        Self {
            events,
            runtimes,
            metrics,
            collectors,
            wakers: side_thread("marple-wakers"),
            fixed: Arc::new(FixedParts {
                location,
                http,
                pid: std::process::id(),
                threads: Arc::downgrade(threads),
            }),
        }
    }

    /// Flips the toggle: captures start, or are stopped and written.
    pub fn toggle(&self) -> Response<ToggleStatus> {
        self.toggle_from(Origin::Code, ToggleAction::Flip)
    }

    /// Turns the toggle on with these captures. No effect if it is on.
    pub fn start_capture(&self, kinds: impl Into<CaptureSet>) -> Response<ToggleStatus> {
        self.send_toggle(ToggleAction::Start, Origin::Code, Some(kinds.into()))
    }

    /// Turns the toggle off. Captures claimed by a rule or by [`capture`](Self::capture) continue.
    pub fn stop_capture(&self) -> Response<ToggleStatus> {
        self.toggle_from(Origin::Code, ToggleAction::Stop)
    }

    /// Captures `kinds` for `duration`. The result is available once the incident has a directory.
    ///
    /// If captures of an incident are in progress, these join it. A kind that is already running
    /// continues for at least `duration`.
    pub fn capture(
        &self,
        kinds: impl Into<CaptureSet>,
        duration: Duration,
    ) -> Response<CaptureStarted> {
        let kinds = kinds.into();
        self.request(|reply| AgentEvent::Capture { kinds, duration, reply })
    }

    /// Returns the status of the agent.
    pub fn status(&self) -> Response<Box<Status>> {
        self.request(|reply| AgentEvent::Status { reply })
    }

    /// Returns the custom gauge `name`, for rules over `gauge.NAME`. The same name returns the same
    /// gauge.
    ///
    /// # Errors
    ///
    /// If `name` contains characters other than lower-case letters, digits, `_` and `.`, or there
    /// are too many gauges.
    pub fn gauge(&self, name: &str) -> Result<Gauge, Error> {
        self.metrics
            .gauges
            .gauge(name)
            .map_err(|error| Error::with_kind(ErrorKind::InvalidInput, error))
    }

    /// Returns the custom counter `name`, for rules over `counter.NAME.rate` and
    /// `counter.NAME.total`. A counter only increases. The same name returns the same counter.
    ///
    /// # Errors
    ///
    /// As [`Self::gauge`].
    pub fn counter(&self, name: &str) -> Result<Counter, Error> {
        self.metrics
            .counters
            .counter(name)
            .map_err(|error| Error::with_kind(ErrorKind::InvalidInput, error))
    }

    /// Returns the custom histogram `name`, such as one of request latencies. Rules use
    /// `histogram.NAME.p50`, `.p99`, `.max` and `.count`, each over the last second. The same name
    /// returns the same histogram.
    ///
    /// # Errors
    ///
    /// As [`Self::gauge`].
    pub fn histogram(&self, name: &str) -> Result<Histogram, Error> {
        self.metrics
            .histograms
            .histogram(name)
            .map_err(|error| Error::with_kind(ErrorKind::InvalidInput, error))
    }

    /// Registers `collect` as a custom collector that writes the file `name` into incidents.
    ///
    /// It runs in incidents of rules that list it in `collectors` (by default all rules do), and in
    /// all incidents requested manually or from code. It is called when the incident opens and each
    /// time a rule fires in it again.
    ///
    /// Each run has a separate thread. Output not written before the timeout is missing, output
    /// beyond the size limit is cut, and the manifest records both. A panic or an error affects
    /// that file only. The collector is not called again until it has returned.
    ///
    /// # Errors
    ///
    /// If `name` is not a plain file name or is already registered, or if there are 32 collectors.
    pub fn add_collector(
        &self,
        name: &str,
        options: CollectorOptions,
        collect: impl FnMut(&mut CollectorOutput) -> CollectorResult + Send + 'static,
    ) -> Result<(), Error> {
        self.collectors.add(name, options, Box::new(collect))
    }

    /// Observes another tokio runtime: counts its tasks, measures its lag and detects stalled
    /// workers (`trace.stall_threshold`). The runtime in which the agent was started is observed
    /// automatically.
    ///
    /// # Errors
    ///
    /// If too many runtimes are observed.
    pub fn watch_runtime(&self, runtime: tokio::runtime::Handle) -> Result<(), Error> {
        self.runtimes
            .observe(runtime)
            .map_err(|error| Error::with_kind(ErrorKind::InvalidInput, error))
    }

    /// Requests the on-demand capture `kind`. `client` is named in the errors that other clients
    /// get while it uses the engine.
    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "only the endpoint uses it"))]
    pub(crate) fn request_profile(&self, kind: ProfileKind, client: String) -> PendingProfile {
        let (reply, receiver) = oneshot::channel();
        if let Err(error) = self.events.try_send(AgentEvent::OnDemandRequested(ProfileRequest {
            kind,
            client,
            reply,
        })) {
            let why = match &error {
                TrySendError::Full(_) => AgentError::QueueFull,
                TrySendError::Closed(_) => AgentError::Stopped,
            };
            if let TrySendError::Full(AgentEvent::OnDemandRequested(request))
            | TrySendError::Closed(AgentEvent::OnDemandRequested(request)) = error
            {
                let _ = request.reply.send(Err(ProfileError::Failed(why.to_string())));
            }
        }
        PendingProfile::new(receiver, self.events.clone())
    }

    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "only the endpoint uses it"))]
    pub(crate) fn location(&self) -> &Location {
        &self.fixed.location
    }

    /// Returns the settings of `[http]`, or the defaults without that section.
    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "only the endpoint uses it"))]
    pub(crate) fn http_settings(&self) -> &HttpSettings {
        &self.fixed.http
    }

    pub(crate) fn toggle_from(
        &self,
        origin: Origin,
        action: ToggleAction,
    ) -> Response<ToggleStatus> {
        self.send_toggle(action, origin, None)
    }

    fn send_toggle(
        &self,
        action: ToggleAction,
        origin: Origin,
        kinds: Option<CaptureSet>,
    ) -> Response<ToggleStatus> {
        self.request(|reply| AgentEvent::Toggle { action, origin, kinds, reply: Some(reply) })
    }

    /// Returns `true` if this process is a fork of the one in which the agent runs.
    pub(super) fn is_forked(&self) -> bool {
        std::process::id() != self.fixed.pid
    }

    fn request<T>(&self, event: impl FnOnce(Reply<T>) -> AgentEvent) -> Response<T> {
        if self.is_forked() {
            let error = AgentError::Forked { opener: self.fixed.pid };
            fork::warn_if_unwatched();
            return Response(Err(Some(Error::from(error))));
        }
        // The thread may have been unavailable when the agent started.
        if let Some(threads) = self.fixed.threads.upgrade()
            && let Err(error) = threads.agent_loop.start()
        {
            return Response(Err(Some(error)));
        }
        let (reply, receiver) = oneshot::channel();
        if let Err(error) = self.events.try_send(event(reply)) {
            let error = match error {
                TrySendError::Full(_) => AgentError::QueueFull,
                TrySendError::Closed(_) => AgentError::Stopped,
            };
            return Response(Err(Some(Error::from(error))));
        }
        Response(Ok(ReplyReceiver { receiver, wakers: self.wakers.clone() }))
    }
}

/// The future result of a request. Await it, or call [`Response::wait`] outside async code. The
/// request is processed even if this is dropped.
#[must_use = "the response reports the result of the request"]
pub struct Response<T>(Result<ReplyReceiver<T>, Option<Error>>);

struct ReplyReceiver<T> {
    receiver: oneshot::Receiver<Result<T, Error>>,
    wakers: SideThread,
}

impl<T> ReplyReceiver<T> {
    /// Polls for the result. `waker` is called on the thread that sends it.
    fn poll(&mut self, waker: &Waker) -> Poll<Result<T, Error>> {
        let reply = Pin::new(&mut self.receiver).poll(&mut Context::from_waker(waker));
        reply.map(|answer| answer.unwrap_or_else(|_| Err(Error::from(AgentError::ReplyDropped))))
    }
}

impl<T> Response<T> {
    /// Blocks this thread until the result is available, for at most `timeout`.
    ///
    /// # Errors
    ///
    /// If the request failed, or there was no result within `timeout`.
    pub fn wait(mut self, timeout: Duration) -> Result<T, Error> {
        let deadline = Instant::now() + timeout;
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            let polled = match &mut self.0 {
                Ok(answer) => answer.poll(&waker),
                Err(error) => Poll::Ready(Err(take_error(error))),
            };
            if let Poll::Ready(answer) = polled {
                return answer;
            }
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                return Err(Error::from(AgentError::ReplyTimeout(timeout)));
            }
            thread::park_timeout(remaining);
        }
    }
}

impl<T> Future for Response<T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Ok(answer) => {
                // The executor's waker is host code: it may block or panic.
                let waker = context.waker().clone();
                let side_waker = SideThreadWaker { waker, thread: answer.wakers.clone() };
                answer.poll(&Waker::from(Arc::new(side_waker)))
            }
            Err(error) => Poll::Ready(Err(take_error(error))),
        }
    }
}

/// Takes the error of a request that was not sent. The error can be taken once.
fn take_error(error: &mut Option<Error>) -> Error {
    error.take().unwrap_or_else(|| Error::from(AgentError::Stopped))
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
