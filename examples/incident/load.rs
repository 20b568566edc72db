//! A load generator: requests over real HTTP, from dedicated threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ureq::Agent;

/// Time after which a request counts as failed.
const TIMEOUT: Duration = Duration::from_secs(30);

/// An HTTP client of the service.
pub(crate) struct Client {
    agent: Agent,
    /// The base URL, `http://127.0.0.1:PORT`.
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

/// Threads that request one path in a loop until this value is dropped.
#[must_use = "the load ends when this is dropped"]
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    succeeded: AtomicU64,
    failed: AtomicU64,
}

impl Load {
    /// Starts the threads. Each waits `pause` between two requests.
    pub(crate) fn start(base: &str, path: &'static str, threads: usize, pause: Duration) -> Self {
        let shared = Arc::new(Shared::default());
        let threads = (0..threads)
            .map(|_| {
                let (shared, client) = (Arc::clone(&shared), Client::new(base.to_owned()));
                thread::spawn(move || {
                    while !shared.stop.load(Ordering::Relaxed) {
                        let count = match client.get(path) {
                            Ok(_) => &shared.succeeded,
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

    /// Stops the threads. Returns the number of answered and of failed requests.
    pub(crate) fn finish(mut self) -> (u64, u64) {
        self.join();
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (count(&self.shared.succeeded), count(&self.shared.failed))
    }

    fn join(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panicking thread has reported the panic on stderr; its requests are not counted.
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.join();
    }
}
