//! Reserved file descriptors, so that evidence can be written when the process has none left.
//!
//! A leak of descriptors is an incident during which every `open` and `accept` fails with `EMFILE`.
//! A few descriptors are therefore reserved from the start by opening `/dev/null`. [`with`]
//! releases one if an open fails for lack of descriptors, and retries. [`refill`] replaces it once
//! descriptors are free.
//!
//! Reserved descriptors need not be idle: files of loaded code may take the place of those
//! for captures ([`set_code_files`]). They are closed like the others if a capture needs one.
//!
//! Release and retry are not atomic: a host thread that opens files in a tight loop may take the
//! descriptor in between. Several attempts are therefore made.

use crate::base::sync::Mutex;
use std::fs::File;
use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::sync::{Arc, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::CodeFile;

/// Maximum number of descriptors reserved for captures, which use a directory and up to five files
/// at once.
const CAPTURES: usize = 6;

/// Maximum number of descriptors reserved for connections: one waiting for its response, and one
/// for a request in the meantime.
const CONNECTIONS: usize = 2;

/// Descriptor limit of the process per reserved descriptor.
const PER_SPARE: u64 = 32;

static POOL: Mutex<SparePool> = Mutex::new(SparePool::new());

/// The reserved descriptors. The arrays are fixed, because allocating under the lock may lead to a
/// nested open by marple.
struct SparePool {
    captures: [Option<File>; CAPTURES],
    connections: [Option<File>; CONNECTIONS],
    /// Code files whose descriptors are part of those reserved for captures.
    code: [Option<Arc<CodeFile>>; CAPTURES],
    /// Process that made the reservation, or 0.
    pid: u32,
}

impl Default for SparePool {
    fn default() -> Self {
        Self::new()
    }
}

impl SparePool {
    const fn new() -> Self {
        Self {
            captures: [const { None }; CAPTURES],
            connections: [const { None }; CONNECTIONS],
            code: [const { None }; CAPTURES],
            pid: 0,
        }
    }

    fn of(&mut self, need: DescriptorNeed) -> &mut [Option<File>] {
        match need {
            DescriptorNeed::Capture => &mut self.captures,
            DescriptorNeed::Connection => &mut self.connections,
        }
    }
}

/// The purpose of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DescriptorNeed {
    /// A file of a capture, or a file read by one.
    Capture,
    /// A connection to the HTTP endpoint.
    Connection,
}

/// An error that can be caused by a lack of descriptors.
pub(crate) trait OpenError {
    /// Returns `true` if the process or the system has no descriptor left.
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

/// Reserves descriptors for this process when the agent starts: 1/32 of the descriptor limit, at
/// most 8.
pub(crate) fn reserve() {
    lock().pid = std::process::id();
    refill();
}

/// Releases all reserved descriptors.
pub(crate) fn give_back() {
    let mut pool = lock();
    pool.pid = 0;
    pool.captures = [const { None }; CAPTURES];
    pool.connections = [const { None }; CONNECTIONS];
    let code = std::mem::take(&mut pool.code);
    drop(pool);
    drop(code);
}

/// Returns the number of reserved descriptors that code files can take.
pub(crate) fn places_for_code() -> u64 {
    wanted(DescriptorNeed::Capture) as u64
}

/// Replaces the code files that are part of the reserve, up to [`places_for_code`].
pub(crate) fn set_code_files(mut files: impl Iterator<Item = Arc<CodeFile>>) {
    let mut code = [const { None }; CAPTURES];
    code.fill_with(|| files.next());
    let mut pool = lock();
    if pool.pid == std::process::id() {
        std::mem::swap(&mut pool.code, &mut code);
    }
    drop(pool);
    // Drop outside of the lock: this may drop the last reference and free memory.
    drop(code);
    refill();
}

/// Reserves the missing descriptors, as far as any are available.
pub(crate) fn refill() {
    let mut pool = lock();
    if pool.pid != std::process::id() {
        return;
    }
    // Connections first: a status request must get a response.
    for need in [DescriptorNeed::Connection, DescriptorNeed::Capture] {
        let held = pool.code.iter().flatten().map(|file| file.descriptors());
        let wanted = match need {
            DescriptorNeed::Connection => wanted(need),
            DescriptorNeed::Capture => wanted(need).saturating_sub(held.sum::<u64>() as usize),
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

/// Opens a file of a capture, or one read by it. Calls `open`, and again after releasing a reserved
/// descriptor if none is left.
///
/// # Errors
///
/// Returns the last error of `open`.
pub(crate) fn with<T, E: OpenError>(open: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    with_for(DescriptorNeed::Capture, open)
}

/// Does the same as [`with`], using the descriptors reserved for `need`.
pub(crate) fn with_for<T, E: OpenError>(
    need: DescriptorNeed,
    mut open: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    loop {
        match open() {
            Err(error) if error.is_out_of_descriptors() && release(need) => {}
            done => return done,
        }
    }
}

/// Releases one reserved descriptor. Returns `false` if none is left for `need`.
pub(crate) fn release(need: DescriptorNeed) -> bool {
    let mut pool = lock();
    if pool.of(need).iter_mut().find_map(Option::take).is_some() {
        return true;
    }
    let mut code = pool.code.iter().flatten().filter(|_| need == DescriptorNeed::Capture);
    let file = code.find(|file| file.is_held()).map(Arc::clone);
    drop(pool);
    if let Some(file) = &file {
        file.release();
    }
    file.is_some()
}

/// Returns the numbers of the reserved descriptors, excluding those of code files.
#[cfg(target_os = "linux")]
pub(crate) fn numbers() -> Vec<i32> {
    let mut numbers = Vec::with_capacity(CAPTURES + CONNECTIONS);
    let pool = lock();
    let held = pool.captures.iter().chain(&pool.connections).flatten();
    numbers.extend(held.map(AsRawFd::as_raw_fd));
    numbers
}

/// Opens a file that exists in any root directory.
fn open_something() -> io::Result<File> {
    File::open("/dev/null").or_else(|_| File::open("/"))
}

fn wanted(need: DescriptorNeed) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let share = usize::try_from(limit / PER_SPARE).unwrap_or(usize::MAX);
    let connections = CONNECTIONS.min(share / 2);
    match need {
        DescriptorNeed::Connection => connections,
        DescriptorNeed::Capture => CAPTURES.min(share - connections),
    }
}

fn lock() -> MutexGuard<'static, SparePool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_without_descriptors_is_tried_as_often_as_there_are_reserved_ones() {
        reserve();
        assert_eq!(numbers().len(), CAPTURES + CONNECTIONS);
        for (need, reserved) in
            [(DescriptorNeed::Connection, CONNECTIONS), (DescriptorNeed::Capture, CAPTURES)]
        {
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
        // A code file counts as reserved and is closed after the others.
        let file = Arc::new(CodeFile::open(&std::env::current_exe().unwrap()).unwrap());
        set_code_files([Arc::clone(&file)].into_iter());
        assert_eq!(numbers().len(), CAPTURES + CONNECTIONS - 1);
        for _ in 1..CAPTURES {
            assert!(release(DescriptorNeed::Capture) && file.is_held());
        }
        assert!(
            release(DescriptorNeed::Capture)
                && !file.is_held()
                && !release(DescriptorNeed::Capture)
        );
        assert!(release(DescriptorNeed::Connection));
        set_code_files([].into_iter());
        assert_eq!((numbers().len(), Arc::strong_count(&file)), (CAPTURES + CONNECTIONS, 1));
        give_back();
        refill();
        assert!(numbers().is_empty());
    }
}
