//! A `JoinSet` of tokio whose tasks are listed in task dumps.

use std::future::Future;
use std::ops::{Deref, DerefMut};

use tokio::runtime::Handle;
use tokio::task::{self, AbortHandle, LocalSet};

use super::traced;

/// A [`tokio::task::JoinSet`] whose tasks are listed in task dumps under their spawn location. All
/// other methods are tokio's, through `Deref`.
#[derive(Debug)]
pub struct JoinSet<T>(task::JoinSet<T>);

impl<T> Default for JoinSet<T> {
    fn default() -> Self {
        Self(task::JoinSet::default())
    }
}

impl<T> JoinSet<T> {
    /// Creates an empty set.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<T: 'static> JoinSet<T> {
    /// Spawns a task as [`tokio::task::JoinSet::spawn`] does.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime.
    #[track_caller]
    pub fn spawn<F>(&mut self, future: F) -> AbortHandle
    where
        F: Future<Output = T> + Send + 'static,
        T: Send,
    {
        self.0.spawn(traced(future))
    }

    /// Spawns a task as [`tokio::task::JoinSet::spawn_on`] does.
    #[track_caller]
    pub fn spawn_on<F>(&mut self, future: F, handle: &Handle) -> AbortHandle
    where
        F: Future<Output = T> + Send + 'static,
        T: Send,
    {
        self.0.spawn_on(traced(future), handle)
    }

    /// Spawns a task as [`tokio::task::JoinSet::spawn_local`] does.
    ///
    /// # Panics
    ///
    /// Panics outside of a `LocalSet`.
    #[track_caller]
    pub fn spawn_local<F>(&mut self, future: F) -> AbortHandle
    where
        F: Future<Output = T> + 'static,
    {
        self.0.spawn_local(traced(future))
    }

    /// Spawns a task as [`tokio::task::JoinSet::spawn_local_on`] does.
    #[track_caller]
    pub fn spawn_local_on<F>(&mut self, future: F, local: &LocalSet) -> AbortHandle
    where
        F: Future<Output = T> + 'static,
    {
        self.0.spawn_local_on(traced(future), local)
    }

    /// Returns tokio's set. Its tasks remain listed.
    pub fn into_inner(self) -> task::JoinSet<T> {
        self.0
    }
}

impl<T> Deref for JoinSet<T> {
    type Target = task::JoinSet<T>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<T> DerefMut for JoinSet<T> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}
