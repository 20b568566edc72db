//! The body of the `marple-capture` thread, and its recovery from panics.
//!
//! A panic does not end the thread. Its state (the store and the running captures) is outside the
//! fence, so a panic costs only the command in which it occurred.

use std::sync::mpsc::{Receiver, RecvTimeoutError};

use super::messages::{
    CaptureCommand, CaptureResult, IncidentTask, IncidentTaskResult, OnDemandTask, ResultSender,
};
use super::on_demand::OnDemandWorker;
use super::worker::CaptureWorker;
use crate::base::{Clock, panics};
use crate::config::StoreSettings;
use crate::policy::on_demand::OnDemandResult;

/// Name of the thread.
pub(crate) const NAME: &str = "marple-capture";

/// Performs commands until their sender or the receiver of the results is dropped.
pub(crate) fn run(
    mut worker: CaptureWorker,
    clock: &dyn Clock,
    settings: &StoreSettings,
    commands: &Receiver<CaptureCommand>,
    results: &ResultSender,
) {
    let mut on_demand = OnDemandWorker::new(results.clone());
    panics::catch_and_record_panic(NAME, || worker.prepare());
    while let Some(result) =
        next_result(&mut worker, &mut on_demand, clock, settings, commands, results)
    {
        if !results.send(result) {
            break;
        }
    }
    if let Err(panic) = panics::catch_host_panic(|| drop((worker, on_demand))) {
        panics::record(NAME, &panic);
    }
}

/// Waits for the next command and performs it, or opens the directory when a retry is due. Returns
/// `None` once the loop has ended.
fn next_result(
    worker: &mut CaptureWorker,
    on_demand: &mut OnDemandWorker,
    clock: &dyn Clock,
    settings: &StoreSettings,
    commands: &Receiver<CaptureCommand>,
    results: &ResultSender,
) -> Option<CaptureResult> {
    loop {
        if let Some(opened) = worker.take_opened() {
            return Some(CaptureResult::DirectoryOpened(Box::new(opened)));
        }
        let command = match worker.until_retry() {
            None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(wait) => commands.recv_timeout(wait),
        };
        match command {
            Ok(CaptureCommand::Incident(task)) => {
                return Some(CaptureResult::Incident(perform(worker, *task)));
            }
            Ok(CaptureCommand::OnDemand(task)) => {
                let saved = task.state.as_ref().map(|state| worker.save(state));
                if let Some(Err(error)) = saved
                    && !results.send(CaptureResult::StateNotSaved(error))
                {
                    return None;
                }
                return Some(CaptureResult::OnDemand(perform_on_demand(on_demand, clock, task)));
            }
            Err(RecvTimeoutError::Timeout) => {
                panics::catch_and_record_panic(NAME, || worker.retry_open(settings));
            }
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// Performs one command of an incident. A panic is reported as a failure, and the captures the
/// command was about are abandoned.
fn perform(worker: &mut CaptureWorker, task: IncidentTask) -> IncidentTaskResult {
    let failed = task.command.failure_result();
    match panics::catch_panic(|| worker.perform(task)) {
        Ok(result) => result,
        Err(panic) => {
            panics::record(NAME, &panic);
            worker.abandon_command(failed, &panic)
        }
    }
}

/// Performs one command of an on-demand capture. A panic is reported to the client.
fn perform_on_demand(
    on_demand: &mut OnDemandWorker,
    clock: &dyn Clock,
    task: OnDemandTask,
) -> OnDemandResult {
    let id = task.command.id();
    match panics::catch_panic(|| on_demand.perform(clock, task)) {
        Ok(result) => result,
        Err(panic) => {
            panics::record(NAME, &panic);
            on_demand.abandon_command(id, &panic)
        }
    }
}

#[cfg(test)]
mod tests;
