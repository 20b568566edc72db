//! The two threads: how they begin and what they run.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc;

use super::Error as AgentError;
use super::capture::Worker;
use super::collect;
use super::core::{Begun, Core};
use super::event::Event;
use super::handle::AgentHandle;
use super::run;
use super::service::Service;
use super::stream::work::{Desk, Order};
use crate::base::{Clock, Error};
use crate::vitals::{Numbers, Reader, Runtimes};

/// How many threads may read files for the endpoint at once; they end when they have been idle.
const BLOCKING_THREADS: usize = 2;

/// The thread `marple`: a runtime of its own, and the loop on it.
pub(super) fn lead(
    begun: Begun,
    (clock, runtimes, numbers): (Arc<dyn Clock>, Runtimes, Numbers),
    tasks: SyncSender<Order>,
    queue: mpsc::Receiver<Event>,
    services: Vec<Box<dyn Service>>,
    handle: AgentHandle,
) {
    let _excluded = collect::heap::exclude_current_thread();
    // Files are read for the endpoint on threads of this runtime, a few at a time; what they allocate is
    // no more the service's than what this thread does.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("marple-files")
        .max_blocking_threads(BLOCKING_THREADS)
        .on_thread_start(collect::heap::exclude_for_good)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(target: "marple", "no runtime for the agent: {error}");
            return;
        }
    };
    let signal = begun.settings.toggle.signal;
    let reader = Reader::new(runtimes.clone(), numbers);
    let core = Core::new(clock, begun, reader, tasks);
    runtime.block_on(async {
        for service in services {
            tokio::spawn(service.serve(handle.clone()));
        }
        run::run(core, queue, signal, runtimes).await;
    });
}

/// The thread `marple-capture`.
pub(super) fn work(
    mut worker: Worker,
    clock: &dyn Clock,
    inbox: &Receiver<Order>,
    events: &mpsc::Sender<Event>,
) {
    let _excluded = collect::heap::exclude_current_thread();
    worker.prepare();
    let mut desk = Desk::new(events.clone());
    while let Ok(order) = inbox.recv() {
        let done = match order {
            Order::Incident(task) => Event::Done(worker.perform(*task)),
            Order::Stream(task) => {
                if let Some(error) = task.state.as_ref().and_then(|state| worker.save(state).err())
                    && events.blocking_send(Event::NotSaved(error)).is_err()
                {
                    return;
                }
                Event::Streamed(desk.perform(clock, task))
            }
        };
        if events.blocking_send(done).is_err() {
            return;
        }
    }
}

pub(super) fn spawn(
    name: &'static str,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| Error::new(AgentError::Thread { name, error }))
}
