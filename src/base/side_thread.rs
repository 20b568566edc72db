//! A separate thread for work that must not queue behind other work.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::{Wake, Waker};
use std::thread;

use tokio::sync::oneshot;

use super::{log, panics, warnings};

type Work = Box<dyn FnOnce() + Send>;

/// A thread that runs closures one after the other. It starts with the first closure and ends when
/// all handles are dropped.
#[derive(Clone)]
pub(crate) struct SideThread {
    name: &'static str,
    on_start: fn(),
    sender: Arc<Mutex<Option<mpsc::Sender<Work>>>>,
}

impl SideThread {
    /// Creates a handle to a thread called `name`. `name` is also the topic of the warning raised
    /// if the thread cannot be started. `on_start` runs first on the thread.
    pub(crate) fn new(name: &'static str, on_start: fn()) -> Self {
        Self { name, on_start, sender: Arc::default() }
    }

    /// Runs `work`, which is marple's code, on the thread. The receiver is closed if `work` panics
    /// or if the thread cannot be started.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (reply, receiver) = oneshot::channel();
        let name = self.name;
        let work: Work = Box::new(move || {
            if let Some(result) = panics::catch_and_record_panic(name, work) {
                let _ = reply.send(result);
            }
        });
        // Without a thread this drops the closure and, with it, the sender.
        drop(self.send(work));
        receiver
    }

    /// Wakes `waker`, which is the host's code, on the thread, or on the calling thread if it
    /// cannot be started.
    pub(crate) fn wake(&self, waker: Waker) {
        let wake = || {
            if let Err(panic) = panics::catch_host_panic(|| waker.wake()) {
                log::error(format!("a waker of the service panicked: {panic}"));
            }
        };
        if let Err(wake) = self.send(Box::new(wake)) {
            wake();
        }
    }

    /// Sends `work` to the thread. Returns it in `Err` if the thread cannot be started.
    fn send(&self, work: Work) -> Result<(), Work> {
        let mut slot = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = self.start();
        }
        let Some(sender) = &*slot else { return Err(work) };
        sender.send(work).map_err(|mpsc::SendError(work)| {
            *slot = None;
            work
        })
    }

    fn start(&self) -> Option<mpsc::Sender<Work>> {
        let (sender, receiver) = mpsc::channel::<Work>();
        let on_start = self.on_start;
        let body = move || {
            on_start();
            receiver.into_iter().for_each(|work| work());
        };
        match thread::Builder::new().name(self.name.to_owned()).spawn(body) {
            Ok(_) => {
                warnings::clear(self.name);
                Some(sender)
            }
            Err(error) => {
                let name = self.name;
                warnings::set(name, format!("cannot start the thread `{name}`: {error}"));
                None
            }
        }
    }
}

/// A waker that calls another waker, the host's, on a [`SideThread`].
pub(crate) struct SideThreadWaker {
    pub(crate) waker: Waker,
    pub(crate) thread: SideThread,
}

impl Wake for SideThreadWaker {
    fn wake(self: Arc<Self>) {
        self.thread.wake(self.waker.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn side_thread_runs_work_while_blocking_pool_is_busy_and_after_panic() {
        panics::install_hook();
        let runtime =
            tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        let side = SideThread::new("side", || {});
        let (release, released) = mpsc::channel::<()>();
        runtime.block_on(async {
            let reader = tokio::task::spawn_blocking(move || released.recv());
            let name = || thread::current().name().map(str::to_owned);
            assert_eq!(side.run(name).await.unwrap().as_deref(), Some("side"));
            side.run(|| panic!("a stack that cannot be read")).await.unwrap_err();
            assert_eq!(side.run(|| 7).await.unwrap(), 7);
            assert!(!reader.is_finished());
            release.send(()).unwrap();
            reader.await.unwrap().unwrap();
        });
        let panics = panics::list().into_iter().find(|panics| panics.thread == "side").unwrap();
        assert!(panics.message.starts_with("a stack that cannot be read (src/"), "{panics:?}");
        drop(side);
        runtime.shutdown_timeout(Duration::from_secs(10));
    }
}
