//! What the service's own code, the endpoint, the signal and the trigger file hold of the agent.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::Error as AgentError;
use super::collectors::{Collected, CollectorOptions, CollectorOutput, Collectors};
use super::event::{Event, Reply, ToggleAction};
use super::pending::Threads;
use super::side_thread::{SideThread, WakeAside};
use super::status::{Captured, Status, Toggled};
use super::stream::{Ask, StreamError, Streaming, Take};
use crate::base::Error;
use crate::config::{HttpSettings, Settings};
use crate::model::{CaptureSet, Origin};
use crate::os::fork;
use crate::store::Location;
use crate::vitals::{Counter, Gauge, Histogram, Numbers, Runtimes};

/// A way to talk to a running agent: cheap to clone, usable from any thread, async or not.
///
/// Every request enters one queue and is answered in order. Once the agent has stopped, requests fail
/// with an error that says so.
#[derive(Clone)]
pub struct AgentHandle {
    events: mpsc::Sender<Event>,
    runtimes: Runtimes,
    numbers: Numbers,
    collectors: Collectors,
    /// The thread on which wakers of the service are called.
    wakers: SideThread,
    /// Of those settings that cannot change without a restart.
    fixed: Arc<Fixed>,
}

/// What stays as it is while the agent runs.
#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "the endpoint is who asks"))]
struct Fixed {
    location: Location,
    http: HttpSettings,
    /// The process in which the agent runs.
    pid: u32,
    threads: Weak<Threads>,
}

impl AgentHandle {
    pub(super) fn new(
        events: mpsc::Sender<Event>,
        (runtimes, numbers): (Runtimes, Numbers),
        collectors: Collectors,
        settings: &Settings,
        location: Location,
        threads: &Arc<Threads>,
    ) -> Self {
        let http = settings.http.clone().unwrap_or_default();
        Self {
            events,
            runtimes,
            numbers,
            collectors,
            wakers: SideThread::new("marple-wakers"),
            fixed: Arc::new(Fixed {
                location,
                http,
                pid: std::process::id(),
                threads: Arc::downgrade(threads),
            }),
        }
    }

    /// Flips the toggle: captures start, or stop and are written.
    pub fn toggle(&self) -> Pending<Toggled> {
        self.toggle_from(Origin::Code, ToggleAction::Flip)
    }

    /// Turns the toggle on with these captures; as it is, if it is on.
    pub fn start(&self, kinds: impl Into<CaptureSet>) -> Pending<Toggled> {
        self.send_toggle(ToggleAction::Start, Origin::Code, Some(kinds.into()))
    }

    /// Turns the toggle off. Captures that a rule or a call wants go on.
    pub fn stop(&self) -> Pending<Toggled> {
        self.toggle_from(Origin::Code, ToggleAction::Stop)
    }

    /// Captures `kinds` for `duration`. The answer comes once the incident's directory is there.
    ///
    /// If an incident is being captured at the moment, the captures join it; a kind that runs already
    /// goes on for at least `duration`.
    pub fn capture(&self, kinds: impl Into<CaptureSet>, duration: Duration) -> Pending<Captured> {
        let kinds = kinds.into();
        self.request(|reply| Event::Capture { kinds, duration, reply })
    }

    /// How things stand.
    pub fn status(&self) -> Pending<Box<Status>> {
        self.request(|reply| Event::Status { reply })
    }

    /// A number of the service's own, for rules over `gauge.NAME`. The same name gives the same gauge.
    ///
    /// # Errors
    ///
    /// If `name` is not of lower-case letters, digits, `_` and `.`, or there are too many gauges.
    pub fn gauge(&self, name: &str) -> Result<Gauge, Error> {
        self.numbers.gauges.gauge(name).map_err(Error::new)
    }

    /// A number of the service's own that only grows, for rules over `counter.NAME.rate` and
    /// `counter.NAME.total`. The same name gives the same counter.
    ///
    /// # Errors
    ///
    /// As [`Self::gauge`].
    pub fn counter(&self, name: &str) -> Result<Counter, Error> {
        self.numbers.counters.counter(name).map_err(Error::new)
    }

    /// A measure of the service's own with many values, such as how long requests take, for rules over
    /// `histogram.NAME.p50`, `.p99`, `.max` and `.count`, each of the last second. The same name gives the
    /// same histogram.
    ///
    /// # Errors
    ///
    /// As [`Self::gauge`].
    pub fn histogram(&self, name: &str) -> Result<Histogram, Error> {
        self.numbers.histograms.histogram(name).map_err(Error::new)
    }

    /// Has `collect` write a file of the service's own into incidents from here on: those of rules that ask
    /// for it by `collect` (all do unless they say otherwise), and all that are asked for by hand or from
    /// code. It is called at the incident's opening and each time a rule fires in it again.
    ///
    /// It runs on a thread of its own. What it has not written when its time is up is missing; what goes
    /// beyond its bounds is cut, and the manifest says so. A panic or an error costs that file only.
    /// While it has not returned it is not called again.
    ///
    /// # Errors
    ///
    /// If `name` is no plain file name, or is taken, or there are 32 already.
    pub fn collector(
        &self,
        name: &str,
        options: CollectorOptions,
        collect: impl FnMut(&mut CollectorOutput) -> Collected + Send + 'static,
    ) -> Result<(), Error> {
        self.collectors.add(name, options, Box::new(collect))
    }

    /// Watches one more tokio runtime: its tasks are counted, its lag is measured, and a worker of it that
    /// stands still is looked into (`trace.stall`). The runtime in which the agent was started is watched
    /// already.
    ///
    /// # Errors
    ///
    /// If too many runtimes are watched.
    pub fn observe(&self, runtime: tokio::runtime::Handle) -> Result<(), Error> {
        self.runtimes.observe(runtime).map_err(Error::new)
    }

    /// Captures `take` for `who` (as others are told while he has the engine) and hands it over.
    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "the endpoint is who asks"))]
    pub(crate) fn stream(&self, take: Take, who: String) -> Streaming {
        let (reply, answer) = oneshot::channel();
        if let Err(error) = self.events.try_send(Event::Stream(Ask { take, who, reply })) {
            let why = match &error {
                TrySendError::Full(_) => AgentError::Crowded,
                TrySendError::Closed(_) => AgentError::Stopped,
            };
            if let TrySendError::Full(Event::Stream(ask))
            | TrySendError::Closed(Event::Stream(ask)) = error
            {
                let _ = ask.reply.send(Err(StreamError::Failed(why.to_string())));
            }
        }
        Streaming::new(answer, self.events.clone())
    }

    /// Where incidents are written.
    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "the endpoint is who asks"))]
    pub(crate) fn location(&self) -> &Location {
        &self.fixed.location
    }

    /// What `[http]` says, or the defaults without it.
    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "the endpoint is who asks"))]
    pub(crate) fn http(&self) -> &HttpSettings {
        &self.fixed.http
    }

    /// Changes the toggle on behalf of `origin`.
    pub(crate) fn toggle_from(&self, origin: Origin, action: ToggleAction) -> Pending<Toggled> {
        self.send_toggle(action, origin, None)
    }

    fn send_toggle(
        &self,
        action: ToggleAction,
        origin: Origin,
        kinds: Option<CaptureSet>,
    ) -> Pending<Toggled> {
        self.request(|reply| Event::Toggle { action, origin, kinds, reply: Some(reply) })
    }

    /// Whether this process is a fork of the one in which the agent runs.
    pub(super) fn is_inherited(&self) -> bool {
        std::process::id() != self.fixed.pid
    }

    fn request<T>(&self, event: impl FnOnce(Reply<T>) -> Event) -> Pending<T> {
        if self.is_inherited() {
            let error = AgentError::Forked { opener: self.fixed.pid };
            fork::notice();
            return Pending(Err(Some(Error::new(error))));
        }
        // A thread that could not be had at the start.
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

/// An answer that is on its way. Await it, or [`Pending::wait`] for it where nothing can be awaited. The
/// request is carried out either way.
#[must_use = "the answer says whether the request was carried out"]
pub struct Pending<T>(Result<Answer<T>, Option<Error>>);

struct Answer<T> {
    answer: oneshot::Receiver<Result<T, Error>>,
    wakers: SideThread,
}

impl<T> Answer<T> {
    /// Polls for the answer; `waker` is called on the thread that sends it.
    fn poll(&mut self, waker: &Waker) -> Poll<Result<T, Error>> {
        let answer = Pin::new(&mut self.answer).poll(&mut Context::from_waker(waker));
        answer.map(|answer| answer.unwrap_or_else(|_| Err(Error::new(AgentError::Unanswered))))
    }
}

impl<T> Pending<T> {
    /// Blocks this thread until the answer is there, for `timeout` at the most.
    ///
    /// # Errors
    ///
    /// What the agent answers, or that it did not answer in time.
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
                // The executor's waker is the service's code: it may block or panic.
                let waker = context.waker().clone();
                let aside = WakeAside { waker, thread: answer.wakers.clone() };
                answer.poll(&Waker::from(Arc::new(aside)))
            }
            Err(error) => Poll::Ready(Err(taken(error))),
        }
    }
}

/// Takes the error of a request that was not sent; it is there once.
fn taken(error: &mut Option<Error>) -> Error {
    error.take().unwrap_or_else(|| Error::new(AgentError::Stopped))
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
