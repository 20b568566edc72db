//! Reserved file descriptors, so that evidence can be written when the process has none left.
//!
//! A leak of descriptors is an incident, and just then every `open` and `accept` fails with `EMFILE`. A few descriptors are
//! therefore held from the start (`/dev/null`). [`with`] releases one when an open of ours fails for the lack of one, and
//! tries again; [`refill`] takes them back once something was closed.
//!
//! A reserved descriptor may as well be of use: files of loaded code take the places of captures
//! ([`set_code_files`]), and are closed like the others when a capture needs one.
//!
//! The release and the second attempt are not one step: a thread of the host that opens files in a tight loop may take the
//! descriptor in between. So several attempts are made.

use crate::base::sync::Mutex;
use std::fs::File;
use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::sync::{Arc, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::CodeFile;

/// Maximum number of descriptors that are reserved for captures, which hold a directory and up to five files at once.
const CAPTURES: usize = 6;

/// Maximum number of descriptors that are reserved for connections: one that waits for its answer, and one that asks
/// meanwhile.
const CONNECTIONS: usize = 2;

/// A process may have this many descriptors for each one that is reserved.
const PER_SPARE: u64 = 32;

static POOL: Mutex<Pool> = Mutex::new(Pool::new());

/// No vector: nothing is allocated under the lock, since an allocation may end in an open of ours.
struct Pool {
    captures: [Option<File>; CAPTURES],
    connections: [Option<File>; CONNECTIONS],
    /// Files of code whose descriptors are a part of those for captures.
    code: [Option<Arc<CodeFile>>; CAPTURES],
    /// The process that reserved them, or 0.
    pid: u32,
}

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}

impl Pool {
    const fn new() -> Self {
        Self {
            captures: [const { None }; CAPTURES],
            connections: [const { None }; CONNECTIONS],
            code: [const { None }; CAPTURES],
            pid: 0,
        }
    }

    fn of(&mut self, need: Need) -> &mut [Option<File>] {
        match need {
            Need::Capture => &mut self.captures,
            Need::Connection => &mut self.connections,
        }
    }
}

/// Which part of marple needs a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// A file of a capture, or what one is taken from.
    Capture,
    /// A connection to the endpoint.
    Connection,
}

/// An error that may be the lack of descriptors.
pub(crate) trait OpenError {
    /// Whether the process or the system has no descriptor left.
    fn is_out_of_descriptors(&self) -> bool;
}

impl OpenError for Errno {
    fn is_out_of_descriptors(&self) -> bool {
        matches!(*self, Self::MFILE | Self::NFILE)
    }
}

impl OpenError for io::Error {
    fn is_out_of_descriptors(&self) -> bool {
        Errno::from_io_error(self).is_some_and(|errno| errno.is_out_of_descriptors())
    }
}

/// Reserves descriptors for this process, from the agent's start on: one of 32 that it may have, at most 8.
pub(crate) fn reserve() {
    lock().pid = std::process::id();
    refill();
}

/// Gives back all reserved descriptors.
pub(crate) fn give_back() {
    let mut pool = lock();
    pool.pid = 0;
    pool.captures = [const { None }; CAPTURES];
    pool.connections = [const { None }; CONNECTIONS];
    let code = std::mem::take(&mut pool.code);
    drop(pool);
    drop(code);
}

/// Returns how many descriptors may be of files of code at the cost of those that are reserved.
pub(crate) fn places_for_code() -> u64 {
    wanted(Need::Capture) as u64
}

/// Replaces the files of code that are a part of the reserve; those beyond [`places_for_code`] are not.
pub(crate) fn set_code_files(mut files: impl Iterator<Item = Arc<CodeFile>>) {
    let mut code = [const { None }; CAPTURES];
    code.fill_with(|| files.next());
    let mut pool = lock();
    if pool.pid == std::process::id() {
        std::mem::swap(&mut pool.code, &mut code);
    }
    drop(pool);
    // The last of a file is dropped, and its memory freed, outside of the lock.
    drop(code);
    refill();
}

/// Reserves as many as are missing, if there are that many.
pub(crate) fn refill() {
    let mut pool = lock();
    if pool.pid != std::process::id() {
        return;
    }
    // The endpoint first: who asks how the service is must have an answer.
    for need in [Need::Connection, Need::Capture] {
        let held = pool.code.iter().flatten().map(|file| file.descriptors());
        let wanted = match need {
            Need::Connection => wanted(need),
            Need::Capture => wanted(need).saturating_sub(held.sum::<u64>() as usize),
        };
        for (at, slot) in pool.of(need).iter_mut().enumerate() {
            match slot {
                Some(_) if at >= wanted => *slot = None,
                None if at < wanted => *slot = open_something().ok(),
                _ => {}
            }
        }
    }
}

/// Opens a file of a capture, or what one is taken from: calls `open`, and again with a reserved descriptor released if
/// none is left.
///
/// # Errors
///
/// The last error of `open`.
pub(crate) fn with<T, E: OpenError>(open: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    with_for(Need::Capture, open)
}

/// As [`with`], for `need`.
pub(crate) fn with_for<T, E: OpenError>(
    need: Need,
    mut open: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    loop {
        match open() {
            Err(error) if error.is_out_of_descriptors() && release(need) => {}
            done => return done,
        }
    }
}

/// Releases one reserved descriptor. `false` if none is left for `need`.
pub(crate) fn release(need: Need) -> bool {
    let mut pool = lock();
    if pool.of(need).iter_mut().find_map(Option::take).is_some() {
        return true;
    }
    let mut code = pool.code.iter().flatten().filter(|_| need == Need::Capture);
    let file = code.find(|file| file.is_held()).map(Arc::clone);
    drop(pool);
    if let Some(file) = &file {
        file.release();
    }
    file.is_some()
}

/// Returns the numbers of the reserved descriptors.
#[cfg(target_os = "linux")]
pub(crate) fn numbers() -> Vec<i32> {
    let mut numbers = Vec::with_capacity(CAPTURES + CONNECTIONS);
    let pool = lock();
    let held = pool.captures.iter().chain(&pool.connections).flatten();
    numbers.extend(held.map(AsRawFd::as_raw_fd));
    numbers
}

/// Opens a file that is there in any root directory.
fn open_something() -> io::Result<File> {
    File::open("/dev/null").or_else(|_| File::open("/"))
}

fn wanted(need: Need) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let share = usize::try_from(limit / PER_SPARE).unwrap_or(usize::MAX);
    let connections = CONNECTIONS.min(share / 2);
    match need {
        Need::Connection => connections,
        Need::Capture => CAPTURES.min(share - connections),
    }
}

fn lock() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_without_descriptors_is_tried_as_often_as_there_are_reserved_ones() {
        reserve();
        assert_eq!(numbers().len(), CAPTURES + CONNECTIONS);
        for (need, reserved) in [(Need::Connection, CONNECTIONS), (Need::Capture, CAPTURES)] {
            let mut attempts = 0;
            let failed = with_for(need, || {
                attempts += 1;
                Err::<(), _>(Errno::MFILE)
            });
            assert_eq!((failed, attempts), (Err(Errno::MFILE), reserved + 1));
        }
        assert!(numbers().is_empty());
        refill();
        let mut attempts = 0;
        let opened = with(|| {
            attempts += 1;
            if attempts < 3 { Err(Errno::NFILE) } else { Ok(attempts) }
        });
        assert_eq!((opened, numbers().len()), (Ok(3), CAPTURES + CONNECTIONS - 2));
        assert_eq!(with(|| Err::<(), _>(Errno::NOENT)), Err(Errno::NOENT));
        refill();
        assert_eq!(numbers().len(), CAPTURES + CONNECTIONS);
        // A file of code is one of the reserved, and closed after the others.
        let file = Arc::new(CodeFile::open(&std::env::current_exe().unwrap()).unwrap());
        set_code_files([Arc::clone(&file)].into_iter());
        assert_eq!(numbers().len(), CAPTURES + CONNECTIONS - 1);
        for _ in 1..CAPTURES {
            assert!(release(Need::Capture) && file.is_held());
        }
        assert!(release(Need::Capture) && !file.is_held() && !release(Need::Capture));
        assert!(release(Need::Connection));
        set_code_files([].into_iter());
        assert_eq!((numbers().len(), Arc::strong_count(&file)), (CAPTURES + CONNECTIONS, 1));
        give_back();
        refill();
        assert!(numbers().is_empty());
    }
}
