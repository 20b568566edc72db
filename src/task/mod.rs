//! Tasks that show in traces and can be asked where they wait, on stable tokio.
//!
//! ```no_run
//! use marple::task::{self, Trace as _};
//!
//! # async fn serve() {}
//! # async fn sweep() {}
//! # async fn start() {
//! task::spawn(serve()); // as tokio::spawn
//! tokio::spawn(sweep().traced("sweeper")); // with a name, on any executor
//! # }
//! ```
//!
//! For a library that spawns through an executor of its own trait (hyper's `rt::Executor`, say) wrap there:
//! `fn execute(&self, future: F) { marple::task::spawn(future); }`.
//!
//! A runtime trace shows each poll under the task's name or the place that spawned it. (tokio tells its own
//! hooks about every poll only when the whole program is built with `--cfg tokio_unstable`.)
//!
//! A dump of tasks (the capture `tasks`) shows for each where it was made, how long it has been idle and the
//! stack of async functions down to the leaf it waits on; see [`crate::stacks`]. tokio's own unstable dump is
//! not used: with one blocked worker it stops the runtime for good.
//!
//! A wrapped future is 40 bytes larger. A poll takes one reading of the CPU's counter more (10 to 20 ns) and some
//! 3 ns, and while a runtime trace is recorded two readings and some 6 ns; making and ending a task takes some
//! 10 ns. Nothing is allocated for each.

#[cfg(not(feature = "trace"))]
mod absent;
mod join_set;

use std::future::Future;
use std::hint::black_box;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::base::Site;
use crate::os::fork;
use crate::stacks::{Ticket, poll_seen};
#[cfg(feature = "trace")]
use crate::trace::Node;
#[cfg(not(feature = "trace"))]
use absent::Node;

pub use join_set::JoinSet;

pin_project! {
    /// A future whose polls show in traces and that is listed in task dumps as long as it exists.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Traced<F> {
        // Before the ticket: what its drop does is still the task's.
        #[pin]
        future: F,
        ticket: Ticket,
        node: Node,
    }
}

impl<F: Future> Future for Traced<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let tick = Node::tick();
        let slice = this.node.poll(tick);
        let turn = this.ticket.enter(tick);
        if turn.is_asked() {
            // Hidden from the optimizer: inlined into a function of marple's, the task's outermost function
            // would have no frame, and so no name.
            let poll = black_box(F::poll as fn(Pin<&mut F>, &mut Context<'_>) -> Poll<F::Output>);
            return poll_seen(&turn, cx, this.future, poll);
        }
        let outcome = this.future.poll(cx);
        match outcome {
            Poll::Pending => {
                this.ticket.keep(cx.waker());
                drop(turn);
                Node::pause(slice);
            }
            Poll::Ready(_) => this.node.end(slice),
        }
        outcome
    }
}

/// Lists `future` in task dumps, under the place of this call.
#[track_caller]
pub fn traced<F: Future>(future: F) -> Traced<F> {
    wrap(None, future, Location::caller())
}

/// Spawns `future` as `tokio::spawn` does, listed in task dumps under the place of this call. For a task
/// with a name write `tokio::spawn(future.traced("name"))`.
///
/// # Panics
///
/// Outside of a tokio runtime, as `tokio::spawn`.
#[track_caller]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(traced(future))
}

/// [`tokio::runtime::Handle::spawn`], wrapped as by [`spawn`].
#[track_caller]
pub fn spawn_on<F>(future: F, runtime: &Handle) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    runtime.spawn(traced(future))
}

/// [`tokio::task::spawn_local`], wrapped as by [`spawn`].
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
    tokio::task::spawn_local(traced(future))
}

/// Gives futures a name in traces and task dumps.
pub trait Trace: Future + Sized {
    /// Lets this future show in traces and task dumps as `name`, under the place of this call.
    ///
    /// Also useful for the futures of a `FuturesUnordered`, which show nothing of themselves otherwise.
    #[track_caller]
    fn traced(self, name: &'static str) -> Traced<Self> {
        wrap(Some(name).filter(|name| !name.is_empty()), self, Location::caller())
    }
}

impl<F: Future> Trace for F {}

#[inline]
fn wrap<F>(name: Option<&'static str>, future: F, place: &'static Location<'static>) -> Traced<F> {
    fork::notice();
    let site = Site { name, place }.number();
    let (ticket, number) = Ticket::new(site);
    Traced { future, ticket, node: Node::new(site, number) }
}
