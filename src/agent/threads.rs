//! The bodies of the `marple` and `marple-capture` threads, and their recovery from panics.
//!
//! Neither thread ends by a panic. Each keeps its state (rules and budgets; the store and running
//! captures) outside the fence. A panic costs only the iteration or command in which it occurred.

use std::io;
use std::thread;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::time;

use super::handle::AgentHandle;
use super::run::{self, AgentLoop};
use super::service::Service;
use crate::base::retry::RetryBackoff;
use crate::base::{log, panics, warnings};
use crate::capture::collectors;
use crate::os;
use crate::stalls::standstill;

/// Maximum number of threads that read files for the endpoint. They end when idle.
const BLOCKING_THREADS: usize = 2;

/// Topic of the warning raised while the loop has no poller.
const POLLER: &str = "descriptors";

const LOOP: &str = "marple";

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
            collectors::heap::exclude_for_good();
            panics::fence_thread();
        })
        .build()
}

#[cfg(test)]
mod tests;
