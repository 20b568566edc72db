//! Tasks that show in a runtime trace, on stable tokio.
//!
//! tokio tells its hooks about every poll only when the whole program is built with
//! `--cfg tokio_unstable`. Without that, a poll shows if its future is wrapped: spawn through this module,
//! or give a future a name with [`Trace::traced`].
//!
//! ```
//! use marple::task::{self, Trace};
//!
//! # async fn accept() {}
//! # async fn flush() {}
//! # async fn service() {
//! task::spawn(accept());                            // named after this line
//! tokio::spawn(flush().traced("flush"));            // named "flush"
//!
//! let mut set = task::JoinSet::new();
//! set.spawn(accept());
//! set.join_next().await;
//! # }
//! ```
//!
//! For a library that spawns through an executor of its own trait (hyper's `rt::Executor`, say) wrap there:
//! `fn execute(&self, future: F) { marple::task::spawn(future); }`.
//!
//! The wrapper's own state lies in the future, behind tokio's one allocation for the task; a poll costs two
//! reads of the clock and a record of 16 bytes while a recording runs, and a relaxed load while none does.
//! In a program built with `tokio_unstable` on a runtime with marple's hooks, the wrapper records no poll a
//! second time; it gives the hooks' poll its name.

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle};

use super::hooks;
use super::recorder;
use super::sites::Site;
use super::thread;
use crate::model::{RawKind, TaskKey};

/// [`tokio::spawn`], and the task's polls show in the runtime trace, by where this was called.
///
/// # Panics
///
/// Outside of a tokio runtime, as tokio's.
#[track_caller]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(Traced::new(future, None))
}

/// [`Handle::spawn`], and the task's polls show in the runtime trace, by where this was called.
#[track_caller]
pub fn spawn_on<F>(future: F, runtime: &Handle) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    runtime.spawn(Traced::new(future, None))
}

/// [`tokio::task::spawn_local`], and the task's polls show in the runtime trace, by where this was called.
///
/// # Panics
///
/// Outside of a `LocalSet` or a local runtime, as tokio's.
#[track_caller]
pub fn spawn_local<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    tokio::task::spawn_local(Traced::new(future, None))
}

/// Names a future in the runtime trace.
pub trait Trace: Future + Sized {
    /// Lets the future's polls show in the runtime trace, as `name`.
    #[track_caller]
    fn traced(self, name: &'static str) -> Traced<Self> {
        Traced::new(self, Some(name))
    }
}

impl<F: Future> Trace for F {}

pin_project! {
    /// A future whose polls show in the runtime trace: see [`Trace::traced`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless they are awaited or spawned"]
    pub struct Traced<F> {
        #[pin]
        future: F,
        node: Node,
    }
}

impl<F> Traced<F> {
    #[track_caller]
    fn new(future: F, name: Option<&'static str>) -> Self {
        Self { future, node: Node::new(Site { name, place: Location::caller() }) }
    }
}

impl<F: Future> Future for Traced<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _slice = this.node.poll();
        this.future.poll(context)
    }
}

/// What a wrapped future is in the trace. Its end is the task's end.
#[derive(Debug)]
struct Node {
    /// Number 0 until it is first seen during a recording.
    task: TaskKey,
}

impl Node {
    #[inline]
    fn new(site: Site) -> Self {
        recorder::tasks_wrapped();
        let task = TaskKey { site: site.number(), number: thread::number() };
        if !hooks::see_tasks() {
            thread::task(RawKind::Spawned, task);
        }
        Self { task }
    }

    #[inline]
    fn poll(&mut self) -> Option<Slice> {
        if hooks::see_tasks() && thread::name(self.task.site) {
            return None;
        }
        if self.task.number == 0 {
            self.task.number = thread::number();
        }
        thread::begin(RawKind::WrappedPoll, self.task);
        Some(Slice { task: self.task })
    }
}

impl Drop for Node {
    #[inline]
    fn drop(&mut self) {
        if !hooks::see_tasks() {
            thread::task(RawKind::Ended, self.task);
        }
    }
}

/// A poll under way. It ends also when the future panics.
struct Slice {
    task: TaskKey,
}

impl Drop for Slice {
    #[inline]
    fn drop(&mut self) {
        thread::end(RawKind::WrappedPoll, self.task);
    }
}

/// tokio's [`JoinSet`](tokio::task::JoinSet) whose tasks show in the runtime trace, by where they were
/// spawned. All else is tokio's.
#[derive(Debug)]
pub struct JoinSet<T> {
    inner: tokio::task::JoinSet<T>,
}

impl<T> Default for JoinSet<T> {
    fn default() -> Self {
        Self { inner: tokio::task::JoinSet::new() }
    }
}

impl<T: 'static> JoinSet<T> {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// tokio's own set, whose tasks stay wrapped.
    pub fn into_inner(self) -> tokio::task::JoinSet<T> {
        self.inner
    }

    /// As tokio's `spawn`.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[track_caller]
    pub fn spawn<F>(&mut self, future: F) -> AbortHandle
    where
        F: Future<Output = T> + Send + 'static,
        T: Send,
    {
        self.inner.spawn(Traced::new(future, None))
    }

    /// As tokio's `spawn_on`.
    #[track_caller]
    pub fn spawn_on<F>(&mut self, future: F, runtime: &Handle) -> AbortHandle
    where
        F: Future<Output = T> + Send + 'static,
        T: Send,
    {
        self.inner.spawn_on(Traced::new(future, None), runtime)
    }

    /// As tokio's `spawn_local`.
    ///
    /// # Panics
    ///
    /// Outside of a `LocalSet` or a local runtime.
    #[track_caller]
    pub fn spawn_local<F>(&mut self, future: F) -> AbortHandle
    where
        F: Future<Output = T> + 'static,
    {
        self.inner.spawn_local(Traced::new(future, None))
    }
}

impl<T> Deref for JoinSet<T> {
    type Target = tokio::task::JoinSet<T>;

    fn deref(&self) -> &Self::Target {
        &self.inner
    }
}

impl<T> DerefMut for JoinSet<T> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.inner
    }
}
