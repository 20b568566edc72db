//! The thread `marple-encode`: makes bytes of what streams have seen, at low priority.
//!
//! Naming functions and packing takes a millisecond for a profile of a second, tens of them for a heap of 50,000
//! stacks or a full trace, and on a machine whose cores are taken each would be a wait for some request of
//! the service. Nobody's evidence is at stake here: a client waits a little longer. An incident's files are written by `marple-capture` at ordinary priority,
//! since on such a machine they would come after the process is gone. It is a thread of its own because
//! Linux lets nobody without privilege raise a priority again. It begins with the first that is to be
//! encoded.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc;

use super::super::collect::{self, Evidence};
use super::super::event::Event;
use super::super::fence::{fence, panicked};
use super::work::{encode, failed};
use super::{Done, HeapView, MOST, StreamError, Streamed};
use crate::base::{panics, warnings};
use crate::os;

/// What a stream saw.
pub(super) struct Seen {
    pub(super) evidence: Evidence,
    pub(super) view: Option<HeapView>,
    pub(super) cut_short: Option<String>,
}

impl Seen {
    fn encode(self) -> Result<Streamed, StreamError> {
        let Self { evidence, view, cut_short } = self;
        let result = fence(|| Ok(Streamed { bytes: encode(evidence, view)?, cut_short }));
        result.map_err(failed)
    }
}

/// The stream's id, and what is to be encoded for it.
type Order = (u64, Seen);

/// The thread, once there is one.
pub(super) struct Encoder {
    events: mpsc::Sender<Event>,
    thread: Option<Thread>,
}

struct Thread {
    orders: SyncSender<Order>,
    handle: JoinHandle<()>,
}

impl Encoder {
    pub(super) fn new(events: mpsc::Sender<Event>) -> Self {
        Self { events, thread: None }
    }

    /// Has `seen` encoded; by this thread, where no other can be had.
    pub(super) fn encode(&mut self, id: u64, seen: Seen) -> Done {
        if self.thread.is_none() {
            self.thread = begin(self.events.clone());
        }
        let order = match &self.thread {
            // There are no more streams than the channel holds.
            Some(thread) => thread.orders.try_send((id, seen)).map_err(|error| match error {
                TrySendError::Full(order) | TrySendError::Disconnected(order) => order,
            }),
            None => Err((id, seen)),
        };
        match order {
            Ok(()) => Done::Encoding { id },
            Err((id, seen)) => Done::Finished { id, result: seen.encode() },
        }
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        if let Some(Thread { orders, handle }) = self.thread.take() {
            drop(orders);
            let _ = handle.join();
        }
    }
}

/// The topic of the warning that there is no such thread.
const TOPIC: &str = "marple-encode";

fn begin(events: mpsc::Sender<Event>) -> Option<Thread> {
    let (orders, inbox) = sync_channel(MOST);
    let handle =
        thread::Builder::new().name("marple-encode".to_owned()).spawn(move || run(&inbox, &events));
    match handle {
        Ok(handle) => {
            warnings::clear(TOPIC);
            Some(Thread { orders, handle })
        }
        Err(error) => {
            warnings::set(
                TOPIC,
                format!(
                    "profiles for HTTP are packed by the thread `marple-capture`, as `marple-encode` cannot be \
                     started: {error}; raise RLIMIT_NPROC or the cgroup's pids.max"
                ),
            );
            None
        }
    }
}

fn run(inbox: &Receiver<Order>, events: &mpsc::Sender<Event>) {
    os::own_thread::enter();
    let _excluded = collect::heap::exclude_current_thread();
    os::process::lower_priority();
    while let Ok((id, seen)) = inbox.recv() {
        // `encode` is fenced, but for what it drops.
        let result = panics::fence(|| seen.encode()).unwrap_or_else(|panic| {
            panics::record("marple-encode", &panic);
            Err(StreamError::Failed(panicked(&panic)))
        });
        let done = Done::Finished { id, result };
        if events.blocking_send(Event::Encoded(done)).is_err() {
            return;
        }
    }
}
