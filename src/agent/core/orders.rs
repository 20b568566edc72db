//! Dispatch of commands to the capture thread.

use std::sync::Arc;
use std::sync::mpsc::TrySendError;
use std::time::Duration;

use super::Core;
use crate::agent::Error;
use crate::agent::capture::{Report, Tally, Task};
use crate::agent::history::row;
use crate::agent::stream::{self, StreamError, Taken, work};
use crate::base::{Anchor, Bytes, warnings};
use crate::model::{Limits, Vitals};
use crate::os;
use crate::policy::incident_budget::State;
use crate::policy::incidents::Job;

/// Duration of a command above which `/status` reports it.
const LONG_TASK: Duration = Duration::from_secs(30);

impl Core {
    /// Sends the next command to the capture thread if the thread is free and there is one.
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

    /// Warns about a command that takes longer than [`LONG_TASK`].
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

    /// Records that the capture thread finished its command.
    pub(super) fn capture_thread_is_free(&mut self) {
        self.busy = false;
        self.current = None;
        warnings::clear("captures");
    }

    /// Returns the reason an incident has no directory yet.
    pub(super) fn why_no_directory(&self) -> String {
        match self.current {
            Some((since, words)) => {
                format!("not there yet: the capture thread has been {words} since {}", since.wall)
            }
            None => "not there yet: the capture thread has not begun with it".to_owned(),
        }
    }

    /// Completes `order` as failed, since there is no capture thread.
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

    /// Returns the next command. An on-demand capture that blocks an incident is stopped first; all
    /// other on-demand captures wait for the incidents.
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
            // Saved before the command, so that a command that kills the process counts against the
            // budget.
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

    /// Returns the state to save, or `None` if it has not changed since the last call.
    fn state(&mut self, anchor: Anchor) -> Option<State> {
        if self.streams.allowance.is_dirty() {
            self.decider.state_changed();
        }
        let state = self.decider.take_state(anchor)?;
        Some(State { streams: self.streams.allowance.save(anchor), ..state })
    }

    /// Returns the engines that incidents use or are about to use.
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

/// Returns the memory left below the limit, or the address space left if that is smaller.
fn headroom(vitals: &Vitals) -> Option<Bytes> {
    let left = [vitals.headroom(), os::mapped_memory::address_space_left()];
    left.into_iter().flatten().min()
}
