//! The body of the `marple` thread, and its recovery from panics. `capture::thread` is that of
//! `marple-capture`.
//!
//! The thread does not end by a panic. It keeps its state (rules and budgets) outside the fence. A
//! panic costs only the iteration in which it occurred.

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
const MAX_BLOCKING_THREADS: usize = 2;

/// Topic of the warning raised while the loop has no poller.
const POLLER_WARNING_TOPIC: &str = "descriptors";

const LOOP_THREAD: &str = "marple";

/// Delay after a panic of the loop, doubled with each consecutive panic, so that one that recurs at
/// once costs little.
const MIN_RESTART_DELAY: Duration = Duration::from_millis(10);
const MAX_RESTART_DELAY: Duration = Duration::from_secs(1);

/// Runs the `marple` thread: a runtime and the agent loop on it.
///
/// Without the descriptors for a poller the loop runs on timers alone. Vitals, rules and status
/// work; the endpoint and the signal do not until descriptors are available.
pub(super) fn run_agent_thread(
    agent: AgentLoop,
    services: Vec<Box<dyn Service>>,
    handle: AgentHandle,
) {
    if panics::catch_and_record_panic(LOOP_THREAD, || run_with_retries(agent, services, handle))
        .is_none()
    {
        warnings::set(
            "agent",
            "the agent has stopped after a panic: nothing is watched or served; restart the service",
        );
    }
}

fn run_with_retries(mut agent: AgentLoop, services: Vec<Box<dyn Service>>, handle: AgentHandle) {
    let mut backoff = RetryBackoff::new();
    let runtime = loop {
        let error = match build_runtime() {
            Ok(runtime) => break Some(runtime),
            Err(error) => error,
        };
        warnings::set(POLLER_WARNING_TOPIC, missing_poller_message(&error));
        let pause = backoff.next_delay();
        match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(timers) => {
                let finished = panics::catch_and_record_panic(LOOP_THREAD, || {
                    timers.block_on(run::run_without_poller(&mut agent, pause))
                });
                match finished {
                    Some(true) => break None,
                    Some(false) => {}
                    None => thread::sleep(MIN_RESTART_DELAY),
                }
            }
            Err(error) => {
                log::error(format!("cannot create the agent's runtime: {error}"));
                thread::sleep(pause);
            }
        }
    };
    if let Some(runtime) = &runtime {
        warnings::clear(POLLER_WARNING_TOPIC);
        for service in services {
            serve(runtime, service, handle.clone());
        }
        run_until_shutdown(runtime, &mut agent);
    }
    // This drops the service's registrations, which runs host code.
    if let Err(panic) = panics::catch_host_panic(|| drop((agent, runtime, handle))) {
        panics::record(LOOP_THREAD, &panic);
    }
}

/// Runs the loop until it ends, and restarts it with the same state after a panic.
fn run_until_shutdown(runtime: &Runtime, agent: &mut AgentLoop) {
    let mut pause = MIN_RESTART_DELAY;
    loop {
        let iterations = agent.iterations();
        if panics::catch_and_record_panic(LOOP_THREAD, || {
            runtime.block_on(log::quiet(run::run(agent)))
        })
        .is_some()
        {
            return;
        }
        pause = if agent.iterations() > iterations + 1 {
            MIN_RESTART_DELAY
        } else {
            MAX_RESTART_DELAY.min(pause * 2)
        };
        panics::catch_and_record_panic(LOOP_THREAD, || {
            runtime.block_on(async { time::sleep(pause).await })
        });
    }
}

/// Spawns `service` on the agent's runtime. Reports a panic that ends it.
fn serve(runtime: &Runtime, service: Box<dyn Service>, handle: AgentHandle) {
    let served = panics::catch_panic(|| {
        let _context = runtime.enter();
        runtime.spawn(log::quiet(service.serve(handle)))
    });
    match served {
        Ok(served) => drop(runtime.spawn(async move {
            if let Err(error) = served.await
                && error.is_panic()
            {
                report_service_panic(&error.to_string());
            }
        })),
        Err(panic) => report_service_panic(&panic),
    }
}

fn report_service_panic(panic: &str) {
    panics::record(LOOP_THREAD, panic);
    warnings::set(
        "http",
        format!(
            "the endpoint has stopped after a panic ({panic}); restart the service to restore it"
        ),
    );
}

fn missing_poller_message(error: &io::Error) -> String {
    let limit = crate::os::proc::process::descriptor_limit();
    let limit = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("a limit of {limit}"));
    format!(
        "the endpoint, the toggle signal and stall detection are unavailable: a poller needs {} \
         descriptors: {error} (the process has {limit}: raise `ulimit -n`, LimitNOFILE=); vitals \
         and rules continue, and the poller is retried every few seconds",
        run::POLLER_DESCRIPTORS
    )
}

/// Creates a runtime with a poller, timers and signals.
fn build_runtime() -> io::Result<tokio::runtime::Runtime> {
    // tokio panics if it cannot create its socket pair for signals.
    run::check_descriptors()?;
    // This runtime's blocking threads read files for the endpoint, a few at a time. Their
    // allocations are excluded like those of the agent's thread.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    standstill::observe_sleeps(&mut builder)
        .enable_all()
        .thread_name("marple-files")
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .on_thread_start(|| {
            os::own_thread::enter();
            collectors::heap::exclude_thread_permanently();
            panics::bypass_hook_on_thread();
        })
        .build()
}

#[cfg(test)]
mod tests;
