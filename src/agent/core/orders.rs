//! What the capture thread is to do next.

use std::sync::Arc;
use std::sync::mpsc::TrySendError;
use std::time::Duration;

use super::Core;
use crate::agent::Error;
use crate::agent::budget::State;
use crate::agent::capture::{Report, Tally, Task};
use crate::agent::history::row;
use crate::agent::incidents::Job;
use crate::agent::stream::{self, StreamError, Taken, work};
use crate::base::{Anchor, Bytes, warnings};
use crate::model::{Limits, Vitals};
use crate::os;

/// Time that a task of the capture thread may take before `/status` mentions it.
const LONG_TASK: Duration = Duration::from_secs(30);

impl Core {
    /// Gives the capture thread its next task, if it is free and there is one.
    pub(in crate::agent) fn pump(&mut self) {
        if self.busy {
            return;
        }
        let Some(order) = self.next_order() else { return };
        let job = match &order {
            work::Order::Incident(task) => task.job.words(),
            work::Order::Stream(task) => task.job.words(),
        };
        match self.tasks.try_send(order) {
            Ok(()) => {
                self.busy = true;
                self.current = Some((self.clock.anchor(), job));
            }
            Err(TrySendError::Full(order) | TrySendError::Disconnected(order)) => self.lose(order),
        }
    }

    /// Reports a task that the capture thread has had for very long.
    pub(super) fn watch_capture_thread(&self) {
        let Some((since, words)) = self.current else { return };
        if self.clock.now().since(since.moment) >= LONG_TASK {
            warnings::set(
                "captures",
                format!(
                    "captures wait: the capture thread has been {words} since {}; see the disk of the directory",
                    since.wall
                ),
            );
        }
    }

    /// Notes that the capture thread has done its task.
    pub(super) fn capture_thread_is_free(&mut self) {
        self.busy = false;
        self.current = None;
        warnings::clear("captures");
    }

    /// Returns why an incident's directory is not there yet.
    pub(super) fn why_no_directory(&self) -> String {
        match self.current {
            Some((since, words)) => {
                format!("not there yet: the capture thread has been {words} since {}", since.wall)
            }
            None => "not there yet: the capture thread has not begun with it".to_owned(),
        }
    }

    /// Ends `order` as one that failed: there is no thread to carry it out.
    fn lose(&mut self, order: work::Order) {
        let why = Error::CaptureThreadGone.to_string();
        warnings::set("captures", why.clone());
        match order {
            work::Order::Incident(task) => {
                let mut tally = Tally::default();
                tally.failures.push(("capture thread gone", why));
                self.done(Report { done: task.job.lost(), dir: None, tally });
            }
            work::Order::Stream(task) => {
                self.fail("capture thread gone", why.clone());
                let result = Err(StreamError::Failed(why));
                self.streamed(stream::Done::Finished { id: task.job.id(), result });
            }
        }
    }

    /// A stream that is in an incident's way ends first, all others wait until incidents have theirs.
    fn next_order(&mut self) -> Option<work::Order> {
        let (anchor, taken) = (self.clock.anchor(), self.taken());
        let urgent = self.streams.urgent_job(&taken);
        if urgent.is_none()
            && let Some(job) = self.decider.next_job(anchor.moment)
        {
            return Some(work::Order::Incident(Box::new(self.task(job))));
        }
        let job = urgent.or_else(|| self.streams.next_job(anchor, &taken))?;
        Some(work::Order::Stream(work::Task {
            // Before the job: should that be what ends the process, the budget knows of it.
            state: self
                .streams
                .allowance
                .is_dirty()
                .then(|| self.state(anchor))
                .flatten()
                .map(Box::new),
            job,
            settings: Arc::clone(&self.settings),
            headroom: headroom(&self.vitals),
            vitals: row(&self.vitals, anchor),
        }))
    }

    /// What is to be saved, if it has changed since it was asked for last.
    fn state(&mut self, anchor: Anchor) -> Option<State> {
        if self.streams.allowance.is_dirty() {
            self.decider.state_changed();
        }
        let state = self.decider.take_state(anchor)?;
        Some(State { streams: self.streams.allowance.save(anchor), ..state })
    }

    /// What incidents have of the engines or are about to take.
    pub(super) fn taken(&self) -> Vec<Taken> {
        let taken = self.decider.incidents.iter().map(|incident| Taken {
            kinds: incident.wanted.union(incident.running),
            by: format!("incident {} ({})", incident.id, incident.name),
            until: incident.until,
        });
        taken.filter(|taken| !taken.kinds.is_empty()).collect()
    }

    fn task(&mut self, job: Job) -> Task {
        let (Job::Open { id, .. }
        | Job::Start { id, .. }
        | Job::Collect { id, .. }
        | Job::Gather { id, .. }
        | Job::Stop { id, .. }
        | Job::Again { id, .. }
        | Job::Note { id, .. }
        | Job::Close { id, .. }) = &job;
        let anchor = self.clock.anchor();
        let state = self.state(anchor);
        let recording = self.open.iter().find(|open| open.id == *id).map(|open| &open.recording);
        Task {
            settings: Arc::clone(&self.settings),
            state,
            limits: Limits::from(&self.vitals),
            headroom: headroom(&self.vitals),
            vitals: recording.map_or_else(Vec::new, |recording| recording.rows(anchor)),
            stuck: self.stuck.take_for(&job, *id),
            job,
        }
    }
}

/// The memory that is left below the limit, or the address space where that is less.
fn headroom(vitals: &Vitals) -> Option<Bytes> {
    let left = [vitals.headroom(), os::memory::address_space_left()];
    left.into_iter().flatten().min()
}
