//! A thread of its own for work that must not wait behind the work of others.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use tokio::sync::oneshot;

use super::collect;
use crate::base::{panics, warnings};

type Work = Box<dyn FnOnce() + Send>;

/// A thread that runs one closure after the other. It starts with the first and ends when all handles are dropped.
#[derive(Clone)]
pub(super) struct SideThread {
    name: &'static str,
    orders: Arc<Mutex<Option<mpsc::Sender<Work>>>>,
}

impl SideThread {
    /// A thread that will be called `name`, which is the topic of a warning too if there can be none.
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, orders: Arc::default() }
    }

    /// Has `work` run on the thread. The receiver is closed if it panics, or if there can be no thread.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (answer, receiver) = oneshot::channel();
        let name = self.name;
        let work: Work = Box::new(move || {
            if let Some(result) = panics::fence_and_record(name, work) {
                let _ = answer.send(result);
            }
        });
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if orders.is_none() {
            *orders = self.start();
        }
        if let Some(sender) = &*orders
            && sender.send(work).is_err()
        {
            *orders = None;
        }
        receiver
    }

    fn start(&self) -> Option<mpsc::Sender<Work>> {
        let (sender, receiver) = mpsc::channel::<Work>();
        let body = move || {
            collect::heap::exclude_for_good();
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn work_is_done_while_all_threads_for_files_are_taken_and_after_a_panic() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        let side = SideThread::new("side");
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
        let panics = panics::list().into_iter().find(|it| it.thread == "side").unwrap();
        assert!(panics.message.starts_with("a stack that cannot be read (src/"), "{panics:?}");
        drop(side);
        runtime.shutdown_timeout(Duration::from_secs(10));
    }
}
