//! Activity of threads, from the functions on their stacks.

use super::symbol::Symbol;

/// The activity of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ThreadActivity {
    /// A worker, or the thread of a current-thread runtime, that waits for tasks and events.
    IdleWorker,
    /// A thread of tokio's blocking pool that waits for work.
    IdlePoolThread,
    /// Another thread that waits for work: in `Runtime::block_on`, or in rayon's pool.
    Idle,
    /// A worker, or the thread of a current-thread runtime, in a poll.
    Polling,
    /// A thread of tokio's blocking pool that runs a closure.
    RunningClosure,
    /// Anything else, also in `block_in_place`, which blocks no worker. Unknown if the stack was
    /// not read.
    Other,
}

/// The part of a runtime that a function belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameRole {
    /// The loop of a worker.
    WorkerLoop,
    /// The loop of a current-thread runtime.
    DriverLoop,
    /// The loop of a thread of the blocking pool.
    PoolLoop,
    /// A task is polled, or a closure is run.
    Poll,
    /// Waits for work.
    Wait,
    /// The worker was handed to another thread.
    InPlace,
    /// Another function of tokio.
    Runtime,
    /// The standard library, C, and libraries between a runtime and the system.
    System,
    Other,
}

/// The place of a frame between the outermost frame and the innermost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StackPlace {
    OutsideRuntime,
    /// In the loop of a worker or of a current-thread runtime.
    Loop,
    PoolLoop,
    PoolClosure,
}

/// Parts of function names with their roles. The first that matches applies. A name can be followed
/// by those of functions that were folded into the same code, so it need not be at the start.
const ROLES: &[(&str, FrameRole)] = &[
    ("block_in_place", FrameRole::InPlace),
    ("runtime_mt::exit_runtime", FrameRole::InPlace),
    ("tokio::runtime::driver::", FrameRole::Wait),
    ("tokio::runtime::io::driver::", FrameRole::Wait),
    ("tokio::runtime::time::Driver", FrameRole::Wait),
    ("tokio::runtime::signal::Driver", FrameRole::Wait),
    ("tokio::runtime::process::Driver", FrameRole::Wait),
    ("tokio::runtime::park::", FrameRole::Wait),
    ("tokio::runtime::scheduler::multi_thread::park::", FrameRole::Wait),
    ("tokio::runtime::scheduler::current_thread::Context::park", FrameRole::Wait),
    ("rayon_core::sleep::", FrameRole::Wait),
    ("tokio::runtime::task::raw::poll", FrameRole::Poll),
    ("tokio::runtime::task::harness::Harness", FrameRole::Poll),
    ("tokio::runtime::scheduler::multi_thread::worker::", FrameRole::WorkerLoop),
    ("tokio::runtime::scheduler::current_thread::", FrameRole::DriverLoop),
    ("tokio::runtime::blocking::pool::Inner", FrameRole::PoolLoop),
];

/// Starts of names of functions between a runtime and the system.
const SYSTEM_PREFIXES: &[&str] =
    &["std::", "core::", "alloc::", "mio::", "parking_lot::", "parking_lot_core::", "lock_api::"];

/// Returns `true` if a thread with this stack, innermost function first, waits for work: a parked
/// worker, a free thread of a pool, or `block_on`. A thread that waits in a function of the
/// application is not idle. Returns `false` for an empty stack.
pub(crate) fn is_idle(stack: &[Symbol]) -> bool {
    ThreadActivity::of(stack).is_idle()
}

impl ThreadActivity {
    /// Returns the activity of a thread with this stack, innermost function first.
    pub(crate) fn of(stack: &[Symbol]) -> Self {
        let roles: Vec<FrameRole> = stack.iter().map(|name| frame_role(name)).collect();
        if roles.contains(&FrameRole::InPlace) {
            return Self::Other;
        }
        let mut place = StackPlace::OutsideRuntime;
        for role in roles.iter().rev() {
            match (place, role) {
                // The thread of a worker belongs to the blocking pool, which runs the loop.
                (_, FrameRole::WorkerLoop) => place = StackPlace::Loop,
                (StackPlace::OutsideRuntime, FrameRole::DriverLoop) => place = StackPlace::Loop,
                (StackPlace::OutsideRuntime, FrameRole::PoolLoop) => place = StackPlace::PoolLoop,
                // The future of `block_on` is not a task, and no frame marks its poll.
                (StackPlace::Loop, FrameRole::Poll | FrameRole::Other) => return Self::Polling,
                (StackPlace::Loop, FrameRole::Wait) => return Self::IdleWorker,
                (StackPlace::PoolLoop, FrameRole::Poll | FrameRole::Other) => {
                    place = StackPlace::PoolClosure;
                }
                _ => {}
            }
        }
        let innermost = roles.iter().find(|role| **role != FrameRole::System);
        match place {
            StackPlace::Loop => Self::IdleWorker,
            StackPlace::PoolLoop => Self::IdlePoolThread,
            StackPlace::PoolClosure => Self::RunningClosure,
            StackPlace::OutsideRuntime if innermost == Some(&FrameRole::Wait) => Self::Idle,
            StackPlace::OutsideRuntime => Self::Other,
        }
    }

    /// Returns `true` if the thread waits for work.
    pub(crate) const fn is_idle(self) -> bool {
        matches!(self, Self::IdleWorker | Self::IdlePoolThread | Self::Idle)
    }
}

fn frame_role(name: &str) -> FrameRole {
    if let Some((_, role)) = ROLES.iter().find(|(part, _)| name.contains(part)) {
        return *role;
    }
    let path = name.trim_start_matches(['<', '&', '*', '[', '(', ' ']);
    if path.starts_with("tokio::") {
        FrameRole::Runtime
    } else if !path.contains("::") || SYSTEM_PREFIXES.iter().any(|start| path.starts_with(start)) {
        FrameRole::System
    } else {
        FrameRole::Other
    }
}

#[cfg(test)]
mod tests {
    use super::ThreadActivity::*;
    use super::*;

    const POOL: &[&str] = &[
        "tokio::runtime::blocking::pool::Inner::run",
        "std::sys::backtrace::__rust_begin_short_backtrace",
        "start_thread",
    ];
    const POLL: &str = "tokio::runtime::task::raw::poll";
    const LOOP: &str = "tokio::runtime::scheduler::multi_thread::worker::Context::run";
    const BLOCK_ON: &str =
        "tokio::runtime::scheduler::current_thread::CurrentThread::block_on::<main>";
    const PARK: &str = "tokio::runtime::park::CachedParkThread::block_on";
    const DRIVER: &str = "tokio::runtime::io::driver::Driver::turn";

    #[test]
    fn activity_follows_from_the_stack() {
        let in_pool = |inner: &[&'static str]| [inner, POOL].concat();
        for (names, activity) in [
            (in_pool(&["orders::wait", POLL, LOOP, POLL]), Polling),
            (in_pool(&["epoll_wait", "mio::poll::Poll::poll", DRIVER, LOOP, POLL]), IdleWorker),
            (in_pool(&["syscall", "std::sys::futex::wait", LOOP, POLL]), IdleWorker),
            (in_pool(&["syscall", "std::sys::sync::condvar::wait"]), IdlePoolThread),
            (in_pool(&["orders::resize", POLL]), RunningClosure),
            (in_pool(&["read", "std::fs::read", "tokio::fs::asyncify", POLL]), RunningClosure),
            (in_pool(&["syscall", PARK, "orders::wait", POLL]), RunningClosure),
            (in_pool(&["syscall", DRIVER, BLOCK_ON, "orders::wait", POLL]), RunningClosure),
            (in_pool(&["orders::wait", "tokio::task::block_in_place", POLL, LOOP, POLL]), Other),
            (vec!["epoll_wait", DRIVER, BLOCK_ON, "orders::main", "main"], IdleWorker),
            (vec!["clock_nanosleep", "orders::run", BLOCK_ON, "orders::main", "main"], Polling),
            (vec!["syscall", "std::thread::park", PARK, "orders::main", "main"], Idle),
            (vec!["syscall", "orders::wait", PARK, "orders::main", "main"], Other),
            (vec!["syscall", "rayon_core::sleep::Sleep::sleep", "start_thread"], Idle),
            (vec!["clock_nanosleep", "orders::poller", "start_thread"], Other),
            (vec!["epoll_wait"], Other),
            (vec![], Other),
        ] {
            let stack: Vec<Symbol> = names.iter().map(|&name| name.into()).collect();
            assert_eq!(ThreadActivity::of(&stack), activity, "{names:?}");
            assert_eq!(is_idle(&stack), activity.is_idle());
        }
    }
}
