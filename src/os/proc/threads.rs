//! The threads of the process, as listed in `/proc/self/task`.
//!
//! Each thread takes one or two reads of small files, which do not interrupt the thread. A thread
//! that exits meanwhile is omitted.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

pub use super::thread::Thread;
use super::thread_list::{TASKS, ThreadList, read_thread_file};
use crate::base::Moment;
use crate::os::kernel_file::{parse_number, split_words};

/// An error while listing threads.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {TASKS}: {0}; thread dumps need a mounted /proc")]
pub struct Error(#[source] std::io::Error);

impl Error {
    /// Creates the error for a list of threads of which no file can be read.
    pub fn no_readable_thread() -> Self {
        Self(std::io::Error::other("threads are listed, but none of their files can be read"))
    }
}

/// A selection of threads.
#[derive(Debug)]
pub struct Threads {
    tasks: ThreadList,
    /// Thread IDs; sorted if created by [`Threads::all`].
    pub tids: Vec<u32>,
}

impl Threads {
    /// Lists all threads. Costs about 0.5 us per thread.
    ///
    /// # Errors
    ///
    /// Returns an error if `/proc` cannot be read.
    pub fn all() -> Result<Self, Error> {
        let mut threads = Self::with_tids(Vec::new())?;
        threads.tasks.list(&mut threads.tids).map_err(Error)?;
        Ok(threads)
    }

    /// Selects the threads with these IDs.
    ///
    /// # Errors
    ///
    /// Returns an error if `/proc` cannot be read.
    pub fn with_tids(tids: Vec<u32>) -> Result<Self, Error> {
        Ok(Self { tasks: ThreadList::open().map_err(Error)?, tids })
    }

    /// Returns the state of the thread `tid`, or `None` if it has exited. Costs about 8 us.
    pub fn thread_state(&self, tid: u32) -> Option<Thread> {
        read_thread(self.tasks.directory(), tid)
    }
}

/// Returns the state of all threads, by ID.
///
/// # Errors
///
/// Returns an error if `/proc` cannot be read.
pub fn list() -> Result<Vec<Thread>, Error> {
    let threads = Threads::all()?;
    Ok(threads.tids.iter().filter_map(|&tid| threads.thread_state(tid)).collect())
}

/// Returns the state of the thread `tid`, or `None` if it has exited.
pub(crate) fn read_thread(tasks: &OwnedFd, tid: u32) -> Option<Thread> {
    let mut buffer = [0; 1024];
    let (mut thread, is_waiting) = parse(read_thread_file(tasks, tid, "stat", &mut buffer)?, tid)?;
    if is_waiting && let Some(function) = read_thread_file(tasks, tid, "wchan", &mut buffer) {
        // The kernel writes 0 if the caller lacks the permission.
        let function = function.strip_prefix(b"0").unwrap_or(function);
        thread.wait_channel = String::from_utf8_lossy(function).into_owned();
    }
    Some(thread)
}

/// Parses `123 (name) S 1 …`, in which the name may contain any character, including brackets and
/// spaces. Returns `true` with the thread if it waits in the kernel.
fn parse(stat: &[u8], tid: u32) -> Option<(Thread, bool)> {
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let name = String::from_utf8_lossy(stat.get(open + 1..close)?).into_owned();
    // Field numbers are those of proc(5).
    let mut at = 2;
    let mut fields = split_words(stat.get(close + 1..)?);
    let mut field = |number: usize| {
        let skipped = number.checked_sub(at + 1)?;
        at = number;
        fields.nth(skipped)
    };
    let state = char::from(*field(3)?.first()?);
    let user = parse_number(field(14)?)?;
    let system = parse_number(field(15)?)?;
    let blocked = field(32).and_then(parse_number).unwrap_or(0);
    let is_waiting = field(35).and_then(parse_number).is_some_and(|channel| channel != 0);
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let thread = Thread {
        tid,
        name,
        state,
        wait_channel: String::new(),
        cpu_time: Duration::from_millis(
            user.saturating_add(system).saturating_mul(1000) / per_second,
        ),
        blocked,
    };
    Some((thread, is_waiting))
}

/// Returns the ID of the calling thread: one system call per thread, then 1 ns.
#[inline]
pub fn current_tid() -> u32 {
    thread_local! {
        static TID: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    }
    // A terminating thread has no thread-locals; code that still runs in it makes the system call.
    TID.try_with(|tid| {
        if tid.get() == 0 {
            tid.set(gettid());
        }
        tid.get()
    })
    .unwrap_or_else(|_| gettid())
}

#[cold]
fn gettid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

/// Returns the kernel's name of the calling thread, or an empty string if it is not available.
pub fn current_name() -> String {
    rustix::thread::name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Returns the CPU time of the calling thread.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Returns the time of the kernel's last tick, at most 4 ms ago (10 ms at 100 Hz). Costs a few
/// nanoseconds with any clock source: the time is read from memory.
pub fn coarse_now() -> Moment {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    Moment::from_nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_brackets_in_name_is_parsed() {
        let stat = b"17 (a) R (b)) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 4 0 9 8 7 6 5 4 3 2 1 0 4194304 \
            0 0 1 0 0 17 0";
        let (thread, waits) = parse(stat, 17).unwrap();
        assert_eq!((waits, thread.blocked), (true, 1 << 22));
        assert_eq!((thread.name.as_str(), thread.state), ("a) R (b)", 'S'));
        let per_second = rustix::param::clock_ticks_per_second();
        assert_eq!(thread.cpu_time, Duration::from_millis(200_000 / per_second));
        assert_eq!(parse(b"17 (a) S 1 2", 17), None);
    }

    #[test]
    fn calling_thread_is_listed_as_running() {
        let name = "list-me";
        let (own, threads) = std::thread::Builder::new()
            .name(name.into())
            .spawn(|| (current_tid(), list().unwrap()))
            .unwrap()
            .join()
            .unwrap();
        let found = threads.iter().find(|thread| thread.tid == own).unwrap();
        assert_eq!((found.name.as_str(), found.state, found.blocked), (name, 'R', 0));
        assert!(threads.is_sorted_by_key(|thread| thread.tid));
        assert_ne!(own, current_tid());
    }

    #[test]
    fn coarse_now_is_at_most_one_second_old() {
        let before = crate::base::Clock::now(&crate::base::SystemClock);
        assert!(before.since(coarse_now()) < Duration::from_secs(1));
    }
}
