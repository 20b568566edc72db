//! Classification of a thread's poll by the functions on its stack.

use crate::symbols;

/// Role of a frame on a thread's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PollRole {
    /// The loop of a worker.
    Worker,
    /// The loop of a current-thread runtime.
    Driver,
    /// That loop is waiting for events.
    EventWait,
    /// A task is polled here.
    Poll,
    /// The worker was handed to another thread.
    InPlace,
    Other,
}

/// Kind of runtime that a thread works for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavor {
    MultiThread,
    CurrentThread,
}

impl Flavor {
    pub(crate) fn of_thread(tid: u32, drivers: &[u32]) -> Self {
        if drivers.contains(&tid) { Self::CurrentThread } else { Self::MultiThread }
    }

    pub(crate) const fn worker_loop(self) -> PollRole {
        match self {
            Self::MultiThread => PollRole::Worker,
            Self::CurrentThread => PollRole::Driver,
        }
    }
}

/// Returns `true` if a thread with these functions, innermost first, blocks a worker. `is_driver`
/// is true if it drives a current-thread runtime.
pub(crate) fn blocks_worker<'n>(names: impl Iterator<Item = &'n str>, is_driver: bool) -> bool {
    let flavor = if is_driver { Flavor::CurrentThread } else { Flavor::MultiThread };
    let roles: Vec<PollRole> = names.map(function_role).collect();
    let poll = find_poll(|at| roles.get(at).copied(), roles.len(), flavor).flatten();
    poll.is_some() && !roles.contains(&PollRole::InPlace)
}

/// Returns the index of the poll inside a worker's loop among `depth` frames, innermost first.
///
/// A current-thread runtime also polls the future of `block_on`, which is not a task and has no
/// frame to recognize. Any callee of its loop is that poll, unless the loop is waiting for events.
/// The index is then that of the loop.
pub(crate) fn find_poll(
    mut role: impl FnMut(usize) -> Option<PollRole>,
    depth: usize,
    flavor: Flavor,
) -> Option<Option<usize>> {
    let mut worker_loop = None;
    for at in (0..depth).rev() {
        match (role(at), worker_loop) {
            (Some(role), _) if role == flavor.worker_loop() => worker_loop = Some(at),
            (Some(PollRole::Poll), Some(_)) => return Some(Some(at)),
            (Some(PollRole::EventWait), Some(_)) => return Some(None),
            (Some(_), _) => {}
            // The function called by the loop is known and is not waiting.
            (None, Some(inner)) if flavor == Flavor::CurrentThread && at + 1 < inner => break,
            (None, _) => return None,
        }
    }
    Some(worker_loop.filter(|_| flavor == Flavor::CurrentThread))
}

/// Returns the role of a function. If several functions were folded into one, returns the first
/// role found among them.
pub(crate) fn function_role(name: &str) -> PollRole {
    symbols::listed_names(name)
        .map(single_function_role)
        .find(|role| *role != PollRole::Other)
        .unwrap_or(PollRole::Other)
}

/// Returns `true` if a function is `tokio::task::block_in_place` or one that it calls.
pub(crate) fn is_in_place_function(name: &str) -> bool {
    name.contains("block_in_place") || name.contains("runtime_mt::exit_runtime")
}

fn single_function_role(name: &str) -> PollRole {
    const WORKER: &str = "tokio::runtime::scheduler::multi_thread::worker::";
    // In optimized builds the first jumps to the second.
    const POLLS: [&str; 2] =
        ["tokio::runtime::task::raw::poll", "tokio::runtime::task::harness::Harness"];
    const DRIVER: &str = "tokio::runtime::scheduler::current_thread::";
    const WAITS: [&str; 7] = [
        "tokio::runtime::scheduler::current_thread::Context::park",
        "tokio::runtime::driver::",
        "tokio::runtime::io::driver::",
        "tokio::runtime::time::Driver::",
        "tokio::runtime::signal::Driver::",
        "tokio::runtime::process::Driver::",
        "tokio::runtime::park::",
    ];
    if is_in_place_function(name) {
        PollRole::InPlace
    } else if WAITS.iter().any(|waits| name.starts_with(waits)) {
        PollRole::EventWait
    } else if POLLS.iter().any(|poll| name.starts_with(poll)) {
        PollRole::Poll
    } else if name.contains(WORKER) {
        PollRole::Worker
    } else if name.contains(DRIVER) {
        PollRole::Driver
    } else {
        PollRole::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MULTI: Flavor = Flavor::MultiThread;
    const CURRENT: Flavor = Flavor::CurrentThread;

    #[test]
    fn worker_blocked_inside_task_poll_is_recognized() {
        const POLL: &str = "tokio::runtime::task::raw::poll";
        const LOOP: &str = "tokio::runtime::scheduler::multi_thread::worker::Context::run";
        let blocking = ["tokio::runtime::blocking::pool::Inner::run", "start_thread"];
        for (inner, blocks) in [
            (&["orders::wait", POLL, LOOP, POLL][..], true),
            (&["orders::wait", "tokio::runtime::task::raw::poll::<T, S>", LOOP, POLL], true),
            (
                &[
                    "orders::wait",
                    "tokio::runtime::task::core::Core<T,S>::poll",
                    "tokio::runtime::task::harness::Harness<T,S>::poll",
                    "tokio::runtime::scheduler::multi_thread::worker::Context::run_task",
                ],
                true,
            ),
            (&["orders::wait", POLL], false),
            (&["epoll_wait", LOOP, POLL], false),
            (&["orders::wait", "tokio::task::blocking::block_in_place", POLL, LOOP, POLL], false),
            (
                &[
                    "orders::wait",
                    POLL,
                    "tokio::runtime::scheduler::current_thread::Context::run_task",
                    "main",
                ],
                false,
            ),
        ] {
            let names = inner.iter().chain(&blocking).copied();
            assert_eq!(blocks_worker(names, false), blocks, "{inner:?}");
        }
    }

    #[test]
    fn current_thread_driver_polls_unless_it_waits_for_events() {
        const BLOCK_ON: &str =
            "tokio::runtime::scheduler::current_thread::CurrentThread::block_on::<main>";
        const ENTER: &str = "tokio::runtime::scheduler::current_thread::Context::enter";
        const POLL: &str = "tokio::runtime::task::raw::poll";
        for (names, blocks) in [
            (
                &["clock_nanosleep", "orders::wait", "orders::main", ENTER, BLOCK_ON, "main"][..],
                true,
            ),
            (&["orders::wait", POLL, ENTER, BLOCK_ON, "main"], true),
            (&["epoll_wait", "tokio::runtime::io::driver::Driver::turn", ENTER, BLOCK_ON], false),
            (
                &["futex", "tokio::runtime::scheduler::current_thread::Context::park", BLOCK_ON],
                false,
            ),
            (&["orders::wait", "main"], false),
        ] {
            assert_eq!(blocks_worker(names.iter().copied(), true), blocks, "{names:?}");
            assert!(!blocks_worker(names.iter().copied(), false), "{names:?}");
        }
    }

    #[test]
    fn task_poll_is_the_one_inside_the_worker_loop() {
        use PollRole::{Other, Poll, Worker};
        let index_of = |roles: &[Option<PollRole>]| find_poll(|at| roles[at], roles.len(), MULTI);
        let some =
            |roles: &[PollRole]| index_of(&roles.iter().copied().map(Some).collect::<Vec<_>>());
        assert_eq!(some(&[Other, Poll, Other, Worker, Worker, Other, Poll, Other]), Some(Some(1)));
        assert_eq!(some(&[Other, Worker, Poll]), Some(None));
        // Frames further in are irrelevant.
        assert_eq!(index_of(&[None, Some(Poll), Some(Worker)]), Some(Some(1)));
        assert_eq!(index_of(&[None, Some(Worker)]), None);
        // A current-thread runtime in the blocking pool is not a worker.
        assert_eq!(some(&[Other, PollRole::Driver, Poll, Other]), Some(None));
    }

    #[test]
    fn current_thread_runtime_polls_tasks_and_block_on_future() {
        use PollRole::{Driver, EventWait, Other, Poll};
        let index_of = |roles: &[Option<PollRole>]| find_poll(|at| roles[at], roles.len(), CURRENT);
        let some =
            |roles: &[PollRole]| index_of(&roles.iter().copied().map(Some).collect::<Vec<_>>());
        assert_eq!(some(&[Other, Poll, Other, Driver, Other, Driver, Other]), Some(Some(1)));
        assert_eq!(some(&[Other, Other, Driver, Other, Driver, Other]), Some(Some(2)), "block_on");
        assert_eq!(some(&[Other, EventWait, Driver, Other, Driver, Other]), Some(None));
        // Parked inside a task: a mutex of another library, or the driver of another runtime.
        assert_eq!(some(&[EventWait, Other, Poll, Driver, Other]), Some(Some(2)));
        assert_eq!(some(&[Other, Other]), Some(None), "nothing drives it");
        assert_eq!(index_of(&[None, Some(Driver), Some(Other)]), None);
        assert_eq!(index_of(&[None, Some(Other), Some(Driver)]), Some(Some(2)));
    }
}
