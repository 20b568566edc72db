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
use super::status::{Captured, Status, Toggled};
use crate::base::Error;
use crate::base::side_thread::{SideThread, WakeAside};
use crate::capture::custom_collectors::{Collected, CollectorOptions, CollectorOutput, Collectors};
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
    numbers: Metrics,
    collectors: Collectors,
    /// Thread that calls the wakers of the service.
    wakers: SideThread,
    /// Settings that cannot change without a restart.
    fixed: Arc<Fixed>,
}

/// Values that are constant while the agent runs.
#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "only the endpoint uses it"))]
struct Fixed {
    location: Location,
    http: HttpSettings,
    /// ID of the process in which the agent runs.
    pid: u32,
    threads: Weak<AgentThreads>,
}

impl AgentHandle {
    pub(super) fn new(
        events: mpsc::Sender<AgentEvent>,
        (runtimes, numbers): (Runtimes, Metrics),
        collectors: Collectors,
        settings: &Settings,
        location: Location,
        threads: &Arc<AgentThreads>,
    ) -> Self {
        let http = settings.http.clone().unwrap_or_default();
        Self {
            events,
            runtimes,
            numbers,
            collectors,
            wakers: side_thread("marple-wakers"),
            fixed: Arc::new(Fixed {
                location,
                http,
                pid: std::process::id(),
                threads: Arc::downgrade(threads),
            }),
        }
    }

    /// Flips the toggle: captures start, or are stopped and written.
    pub fn toggle(&self) -> Pending<Toggled> {
        self.toggle_from(Origin::Code, ToggleAction::Flip)
    }

    /// Turns the toggle on with these captures. No effect if it is on.
    pub fn start(&self, kinds: impl Into<CaptureSet>) -> Pending<Toggled> {
        self.send_toggle(ToggleAction::Start, Origin::Code, Some(kinds.into()))
    }

    /// Turns the toggle off. Captures claimed by a rule or by [`capture`](Self::capture) continue.
    pub fn stop(&self) -> Pending<Toggled> {
        self.toggle_from(Origin::Code, ToggleAction::Stop)
    }

    /// Captures `kinds` for `duration`. The result is available once the incident has a directory.
    ///
    /// If captures of an incident are in progress, these join it. A kind that is already running
    /// continues for at least `duration`.
    pub fn capture(&self, kinds: impl Into<CaptureSet>, duration: Duration) -> Pending<Captured> {
        let kinds = kinds.into();
        self.request(|reply| AgentEvent::Capture { kinds, duration, reply })
    }

    /// Returns the status of the agent.
    pub fn status(&self) -> Pending<Box<Status>> {
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
        self.numbers.gauges.gauge(name).map_err(Error::new)
    }

    /// Returns the custom counter `name`, for rules over `counter.NAME.rate` and
    /// `counter.NAME.total`. A counter only increases. The same name returns the same counter.
    ///
    /// # Errors
    ///
    /// As [`Self::gauge`].
    pub fn counter(&self, name: &str) -> Result<Counter, Error> {
        self.numbers.counters.counter(name).map_err(Error::new)
    }

    /// Returns the custom histogram `name`, such as one of request latencies. Rules use
    /// `histogram.NAME.p50`, `.p99`, `.max` and `.count`, each over the last second. The same name
    /// returns the same histogram.
    ///
    /// # Errors
    ///
    /// As [`Self::gauge`].
    pub fn histogram(&self, name: &str) -> Result<Histogram, Error> {
        self.numbers.histograms.histogram(name).map_err(Error::new)
    }

    /// Registers `collect` as a custom collector that writes the file `name` into incidents.
    ///
    /// It runs in incidents of rules that list it in `collect` (by default all rules do), and in
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
    pub fn collector(
        &self,
        name: &str,
        options: CollectorOptions,
        collect: impl FnMut(&mut CollectorOutput) -> Collected + Send + 'static,
    ) -> Result<(), Error> {
        self.collectors.add(name, options, Box::new(collect))
    }

    /// Observes another tokio runtime: counts its tasks, measures its lag and detects stalled
    /// workers (`trace.stall`). The runtime in which the agent was started is observed
    /// automatically.
    ///
    /// # Errors
    ///
    /// If too many runtimes are observed.
    pub fn observe(&self, runtime: tokio::runtime::Handle) -> Result<(), Error> {
        self.runtimes.observe(runtime).map_err(Error::new)
    }

    /// Requests the on-demand capture `take`. `who` identifies the client in errors of other
    /// clients while it uses the engine.
    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "only the endpoint uses it"))]
    pub(crate) fn stream(&self, take: ProfileKind, who: String) -> PendingProfile {
        let (reply, answer) = oneshot::channel();
        if let Err(error) =
            self.events.try_send(AgentEvent::Stream(ProfileRequest { take, who, reply }))
        {
            let why = match &error {
                TrySendError::Full(_) => AgentError::Crowded,
                TrySendError::Closed(_) => AgentError::Stopped,
            };
            if let TrySendError::Full(AgentEvent::Stream(ask))
            | TrySendError::Closed(AgentEvent::Stream(ask)) = error
            {
                let _ = ask.reply.send(Err(ProfileError::Failed(why.to_string())));
            }
        }
        PendingProfile::new(answer, self.events.clone())
    }

    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "only the endpoint uses it"))]
    pub(crate) fn location(&self) -> &Location {
        &self.fixed.location
    }

    /// Returns the settings of `[http]`, or the defaults without that section.
    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "only the endpoint uses it"))]
    pub(crate) fn http(&self) -> &HttpSettings {
        &self.fixed.http
    }

    pub(crate) fn toggle_from(&self, origin: Origin, action: ToggleAction) -> Pending<Toggled> {
        self.send_toggle(action, origin, None)
    }

    fn send_toggle(
        &self,
        action: ToggleAction,
        origin: Origin,
        kinds: Option<CaptureSet>,
    ) -> Pending<Toggled> {
        self.request(|reply| AgentEvent::Toggle { action, origin, kinds, reply: Some(reply) })
    }

    /// Returns `true` if this process is a fork of the one in which the agent runs.
    pub(super) fn is_inherited(&self) -> bool {
        std::process::id() != self.fixed.pid
    }

    fn request<T>(&self, event: impl FnOnce(Reply<T>) -> AgentEvent) -> Pending<T> {
        if self.is_inherited() {
            let error = AgentError::Forked { opener: self.fixed.pid };
            fork::notice();
            return Pending(Err(Some(Error::new(error))));
        }
        // The thread may have been unavailable when the agent started.
        if let Some(threads) = self.fixed.threads.upgrade()
            && let Err(error) = threads.agent_loop.start()
        {
            return Pending(Err(Some(error)));
        }
        let (reply, answer) = oneshot::channel();
        if let Err(error) = self.events.try_send(event(reply)) {
            let error = match error {
                TrySendError::Full(_) => AgentError::Crowded,
                TrySendError::Closed(_) => AgentError::Stopped,
            };
            return Pending(Err(Some(Error::new(error))));
        }
        Pending(Ok(Answer { answer, wakers: self.wakers.clone() }))
    }
}

/// The future result of a request. Await it, or call [`Pending::wait`] outside async code. The
/// request is processed even if this is dropped.
#[must_use = "the answer says whether the request was carried out"]
pub struct Pending<T>(Result<Answer<T>, Option<Error>>);

struct Answer<T> {
    answer: oneshot::Receiver<Result<T, Error>>,
    wakers: SideThread,
}

impl<T> Answer<T> {
    /// Polls for the result. `waker` is called on the thread that sends it.
    fn poll(&mut self, waker: &Waker) -> Poll<Result<T, Error>> {
        let answer = Pin::new(&mut self.answer).poll(&mut Context::from_waker(waker));
        answer.map(|answer| answer.unwrap_or_else(|_| Err(Error::new(AgentError::Unanswered))))
    }
}

impl<T> Pending<T> {
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
                Err(error) => Poll::Ready(Err(taken(error))),
            };
            if let Poll::Ready(answer) = polled {
                return answer;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(AgentError::NoAnswer(timeout)));
            }
            thread::park_timeout(left);
        }
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Ok(answer) => {
                // The executor's waker is host code: it may block or panic.
                let waker = context.waker().clone();
                let aside = WakeAside { waker, thread: answer.wakers.clone() };
                answer.poll(&Waker::from(Arc::new(aside)))
            }
            Err(error) => Poll::Ready(Err(taken(error))),
        }
    }
}

/// Takes the error of a request that was not sent. The error can be taken once.
fn taken(error: &mut Option<Error>) -> Error {
    error.take().unwrap_or_else(|| Error::new(AgentError::Stopped))
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
