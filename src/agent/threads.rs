//! The bodies of the `marple` and `marple-capture` threads, and their recovery from panics.
//!
//! Neither thread ends by a panic. Each keeps its state (rules and budgets; the store and running
//! captures) outside the fence. A panic costs only the iteration or command in which it occurred.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time;

use super::capture::CaptureWorker;
use super::collect;
use super::event::AgentEvent;
use super::handle::AgentHandle;
use super::run::{self, AgentLoop};
use super::service::Service;
use super::standstill;
use crate::agent::on_demand::worker::{OnDemandWorker, WorkerCommand};
use crate::base::retry::RetryBackoff;
use crate::base::{Clock, log, panics, warnings};
use crate::config::StoreSettings;
use crate::os;

/// Maximum number of threads that read files for the endpoint. They end when idle.
const BLOCKING_THREADS: usize = 2;

/// Topic of the warning raised while the loop has no poller.
const POLLER: &str = "descriptors";

const LOOP: &str = "marple";
const CAPTURE: &str = "marple-capture";

/// Delay after a panic of the loop, doubled with each consecutive panic, so that one that recurs at
/// once costs little.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Runs the `marple` thread: a runtime and the agent loop on it.
///
/// Without the descriptors for a poller the loop runs on timers alone. Vitals, rules and status
/// work; the endpoint and the signal do not until descriptors are available.
pub(super) fn lead(agent: AgentLoop, services: Vec<Box<dyn Service>>, handle: AgentHandle) {
    if panics::fence_and_record(LOOP, || start_and_repeat(agent, services, handle)).is_none() {
        warnings::set("agent", "nothing is watched or served: the agent has ended by a panic");
    }
}

fn start_and_repeat(mut agent: AgentLoop, services: Vec<Box<dyn Service>>, handle: AgentHandle) {
    let mut backoff = RetryBackoff::new();
    let runtime = loop {
        let error = match runtime() {
            Ok(runtime) => break Some(runtime),
            Err(error) => error,
        };
        warnings::set(POLLER, without_poller(&error));
        let pause = backoff.delay();
        match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(timers) => {
                let turns = panics::fence_and_record(LOOP, || {
                    timers.block_on(run::run_without_poller(&mut agent, pause))
                });
                match turns {
                    Some(true) => break None,
                    Some(false) => {}
                    None => thread::sleep(FIRST_PAUSE),
                }
            }
            Err(error) => {
                log::error(format!("no runtime for the agent: {error}"));
                thread::sleep(pause);
            }
        }
    };
    if let Some(runtime) = &runtime {
        warnings::clear(POLLER);
        for service in services {
            serve(runtime, service, handle.clone());
        }
        repeat(runtime, &mut agent);
    }
    // This drops the service's registrations, which runs host code.
    if let Err(panic) = panics::catch(|| drop((agent, runtime, handle))) {
        panics::record(LOOP, &panic);
    }
}

/// Runs the loop until it ends, and restarts it with the same state after a panic.
fn repeat(runtime: &Runtime, agent: &mut AgentLoop) {
    let mut pause = FIRST_PAUSE;
    loop {
        let turns = agent.turns();
        if panics::fence_and_record(LOOP, || runtime.block_on(log::quiet(run::run(agent))))
            .is_some()
        {
            return;
        }
        pause = if agent.turns() > turns + 1 { FIRST_PAUSE } else { LONGEST_PAUSE.min(pause * 2) };
        panics::fence_and_record(LOOP, || runtime.block_on(async { time::sleep(pause).await }));
    }
}

/// Spawns `service` on the agent's runtime. Reports a panic that ends it.
fn serve(runtime: &Runtime, service: Box<dyn Service>, handle: AgentHandle) {
    let served = panics::fence(|| {
        let _context = runtime.enter();
        runtime.spawn(log::quiet(service.serve(handle)))
    });
    match served {
        Ok(served) => drop(runtime.spawn(async move {
            if let Err(error) = served.await
                && error.is_panic()
            {
                service_ended(&error.to_string());
            }
        })),
        Err(panic) => service_ended(&panic),
    }
}

fn service_ended(panic: &str) {
    panics::record(LOOP, panic);
    warnings::set(
        "http",
        format!(
            "the endpoint has ended by a panic ({panic}); restart the service to have it again"
        ),
    );
}

fn without_poller(error: &io::Error) -> String {
    let limit = crate::os::proc::process::descriptor_limit();
    let limit = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("a limit of {limit}"));
    format!(
        "no endpoint, no signal and no stalls: a poller needs {} descriptors: {error} (the process has {limit}: \
         raise `ulimit -n`, LimitNOFILE=); vitals and rules go on, and it is tried again every few seconds",
        run::DESCRIPTORS
    )
}

/// Creates a runtime with a poller, timers and signals.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    // tokio panics if it cannot create its socket pair for signals.
    run::check_descriptors()?;
    // This runtime's blocking threads read files for the endpoint, a few at a time. Their
    // allocations are excluded like those of the agent's thread.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    standstill::observe_sleeps(&mut builder)
        .enable_all()
        .thread_name("marple-files")
        .max_blocking_threads(BLOCKING_THREADS)
        .on_thread_start(|| {
            os::own_thread::enter();
            collect::heap::exclude_for_good();
            panics::fence_thread();
        })
        .build()
}

/// Runs the `marple-capture` thread.
pub(super) fn work(
    mut worker: CaptureWorker,
    clock: &dyn Clock,
    settings: &StoreSettings,
    inbox: &Receiver<WorkerCommand>,
    events: &mpsc::Sender<AgentEvent>,
) {
    let mut desk = OnDemandWorker::new(events.clone());
    panics::fence_and_record(CAPTURE, || worker.prepare());
    while let Some(event) = next_event(&mut worker, &mut desk, clock, settings, inbox, events) {
        if events.blocking_send(event).is_err() {
            break;
        }
    }
    if let Err(panic) = panics::catch(|| drop((worker, desk))) {
        panics::record(CAPTURE, &panic);
    }
}

/// Waits for the next command and performs it, or opens the directory when a retry is due. Returns
/// the event for the loop, or `None` once the loop has ended.
fn next_event(
    worker: &mut CaptureWorker,
    desk: &mut OnDemandWorker,
    clock: &dyn Clock,
    settings: &StoreSettings,
    inbox: &Receiver<WorkerCommand>,
    events: &mpsc::Sender<AgentEvent>,
) -> Option<AgentEvent> {
    loop {
        if let Some(opened) = worker.take_opened() {
            return Some(AgentEvent::DirectoryOpened(Box::new(opened)));
        }
        let order = match worker.until_retry() {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(wait) => inbox.recv_timeout(wait),
        };
        match order {
            Ok(WorkerCommand::Incident(task)) => {
                return Some(AgentEvent::Done(perform(worker, *task)));
            }
            Ok(WorkerCommand::Stream(task)) => {
                let saved = task.state.as_ref().map(|state| worker.save(state));
                if let Some(Err(error)) = saved {
                    events.blocking_send(AgentEvent::NotSaved(error)).ok()?;
                }
                return Some(AgentEvent::Streamed(stream(desk, clock, task)));
            }
            Err(RecvTimeoutError::Timeout) => {
                panics::fence_and_record(CAPTURE, || worker.retry(settings));
            }
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// Performs one command. A panic is reported as a failure, and the captures the command was about
/// are abandoned.
fn perform(
    worker: &mut CaptureWorker,
    task: super::capture::CaptureTask,
) -> super::capture::CaptureReport {
    let lost = task.job.lost();
    match panics::fence(|| worker.perform(task)) {
        Ok(report) => report,
        Err(panic) => {
            panics::record(CAPTURE, &panic);
            worker.give_up(lost, &panic)
        }
    }
}

/// Performs one command of an on-demand capture. A panic is reported to the client.
fn stream(
    desk: &mut OnDemandWorker,
    clock: &dyn Clock,
    task: crate::agent::on_demand::worker::OnDemandTask,
) -> crate::agent::on_demand::OnDemandResult {
    let id = task.job.id();
    match panics::fence(|| desk.perform(clock, task)) {
        Ok(done) => done,
        Err(panic) => {
            panics::record(CAPTURE, &panic);
            desk.give_up(id, &panic)
        }
    }
}

#[cfg(test)]
mod tests;
