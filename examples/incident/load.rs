//! Requests over real HTTP, from threads of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ureq::Agent;

/// A request that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Somebody who asks the service for things.
pub(crate) struct Client {
    agent: Agent,
    /// `http://127.0.0.1:PORT`
    base: String,
}

impl Client {
    pub(crate) fn new(base: String) -> Self {
        let config = Agent::config_builder().timeout_global(Some(TIMEOUT)).build();
        Self { agent: config.new_agent(), base }
    }

    pub(crate) fn get(&self, path: &str) -> Result<String, ureq::Error> {
        self.agent.get(self.base.clone() + path).call()?.body_mut().read_to_string()
    }

    pub(crate) fn post(&self, path: &str) -> Result<String, ureq::Error> {
        self.agent.post(self.base.clone() + path).send_empty()?.body_mut().read_to_string()
    }
}

/// Threads that ask for one path again and again until this is dropped.
#[must_use = "the load ends when this is dropped"]
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Load {
    /// Each thread waits `pause` between its requests.
    pub(crate) fn start(base: &str, path: &'static str, threads: usize, pause: Duration) -> Self {
        let shared = Arc::new(Shared::default());
        let threads = (0..threads)
            .map(|_| {
                let (shared, client) = (Arc::clone(&shared), Client::new(base.to_owned()));
                thread::spawn(move || {
                    while !shared.stop.load(Ordering::Relaxed) {
                        let count = match client.get(path) {
                            Ok(_) => &shared.answered,
                            Err(_) => &shared.failed,
                        };
                        count.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(pause);
                    }
                })
            })
            .collect();
        Self { shared, threads }
    }

    /// Ends it; how many requests were answered, and how many failed.
    pub(crate) fn finish(mut self) -> (u64, u64) {
        self.join();
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (count(&self.shared.answered), count(&self.shared.failed))
    }

    fn join(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so on stderr, and its requests are not counted.
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.join();
    }
}
