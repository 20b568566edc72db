//! Reserved file descriptors, so that evidence can be written when the process has none left.
//!
//! A leak of descriptors is an incident during which every `open` and `accept` fails with `EMFILE`.
//! A few descriptors are therefore reserved from the start by opening `/dev/null`.
//! [`open_with_retry`] releases one if an open fails for lack of descriptors, and retries.
//! [`refill`] replaces it once descriptors are free.
//!
//! Open files of loaded code can take the place of descriptors reserved for captures
//! ([`set_code_files`]). They are closed like the others if a capture needs a descriptor.
//!
//! Release and retry are not atomic: a host thread that opens files in a tight loop may take the
//! descriptor in between. Each failed retry therefore releases another one.

use crate::base::sync::Mutex;
use std::fs::File;
use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::sync::{Arc, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// Maximum number of descriptors reserved for captures, which use a directory and up to five files
/// at once.
const MAX_CAPTURE_SPARES: usize = 6;

/// Maximum number of descriptors reserved for connections: one for a connection that waits for its
/// response, and one for a request made in the meantime.
const MAX_CONNECTION_SPARES: usize = 2;

/// Number of descriptors in the limit of the process for which one is reserved.
const DESCRIPTOR_LIMIT_PER_SPARE: u64 = 32;

static POOL: Mutex<SparePool> = Mutex::new(SparePool::new());

/// The reserved descriptors. The arrays are fixed, because allocating under the lock may lead to a
/// nested open by marple.
struct SparePool {
    captures: [Option<File>; MAX_CAPTURE_SPARES],
    connections: [Option<File>; MAX_CONNECTION_SPARES],
    /// Code files whose descriptors are part of those reserved for captures.
    code_files: [Option<Arc<dyn ReleasableFile>>; MAX_CAPTURE_SPARES],
    /// Process that made the reservation, or 0 if there is none.
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
            captures: [const { None }; MAX_CAPTURE_SPARES],
            connections: [const { None }; MAX_CONNECTION_SPARES],
            code_files: [const { None }; MAX_CAPTURE_SPARES],
            pid: 0,
        }
    }

    fn slots_for(&mut self, need: DescriptorNeed) -> &mut [Option<File>] {
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

/// An open file that can take the place of a reserved descriptor.
pub(crate) trait ReleasableFile: Send + Sync {
    /// Returns `true` if the file itself is open.
    fn is_open(&self) -> bool;

    /// Returns the number of open descriptors, including those of files that belong to this one.
    fn open_descriptors(&self) -> u64;

    /// Closes the descriptors.
    fn release(&self);
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
pub(crate) fn release_all() {
    let mut pool = lock();
    pool.pid = 0;
    pool.captures = [const { None }; MAX_CAPTURE_SPARES];
    pool.connections = [const { None }; MAX_CONNECTION_SPARES];
    let code_files = std::mem::take(&mut pool.code_files);
    drop(pool);
    drop(code_files);
}

/// Returns the number of reserved descriptors that code files can replace.
pub(crate) fn code_file_capacity() -> u64 {
    target_count(DescriptorNeed::Capture) as u64
}

/// Replaces the code files that are part of the reserve. The caller passes at most
/// [`code_file_capacity`] files.
pub(crate) fn set_code_files<F>(mut files: impl Iterator<Item = Arc<F>>)
where
    F: ReleasableFile + 'static,
{
    let mut code_files = [const { None }; MAX_CAPTURE_SPARES];
    code_files.fill_with(|| files.next().map(|file| file as Arc<dyn ReleasableFile>));
    let mut pool = lock();
    if pool.pid == std::process::id() {
        std::mem::swap(&mut pool.code_files, &mut code_files);
    }
    drop(pool);
    // Drop outside of the lock: this may drop the last reference and free memory.
    drop(code_files);
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
        let code_descriptors = pool.code_files.iter().flatten().map(|file| file.open_descriptors());
        let target = match need {
            DescriptorNeed::Connection => target_count(need),
            DescriptorNeed::Capture => {
                target_count(need).saturating_sub(code_descriptors.sum::<u64>() as usize)
            }
        };
        for (index, slot) in pool.slots_for(need).iter_mut().enumerate() {
            match slot {
                Some(_) if index >= target => *slot = None,
                None if index < target => *slot = open_placeholder().ok(),
                _ => {}
            }
        }
    }
}

/// Calls `open`, which opens a file of a capture or one read by it. If no descriptor is left,
/// releases a reserved one and calls `open` again, until none is reserved.
///
/// # Errors
///
/// Returns the last error of `open`.
pub(crate) fn open_with_retry<T, E: OpenError>(open: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    open_with_retry_for(DescriptorNeed::Capture, open)
}

/// Does the same as [`open_with_retry`], using the descriptors reserved for `need`.
pub(crate) fn open_with_retry_for<T, E: OpenError>(
    need: DescriptorNeed,
    mut open: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    loop {
        match open() {
            Err(error) if error.is_out_of_descriptors() && release(need) => {}
            result => return result,
        }
    }
}

/// Releases one reserved descriptor. Returns `false` if none is left for `need`.
pub(crate) fn release(need: DescriptorNeed) -> bool {
    let mut pool = lock();
    if pool.slots_for(need).iter_mut().find_map(Option::take).is_some() {
        return true;
    }
    let mut code_files =
        pool.code_files.iter().flatten().filter(|_| need == DescriptorNeed::Capture);
    let file = code_files.find(|file| file.is_open()).map(Arc::clone);
    drop(pool);
    if let Some(file) = &file {
        file.release();
    }
    file.is_some()
}

/// Returns the numbers of the reserved descriptors, excluding those of code files.
#[cfg(target_os = "linux")]
pub(crate) fn reserved_fds() -> Vec<i32> {
    let mut numbers = Vec::with_capacity(MAX_CAPTURE_SPARES + MAX_CONNECTION_SPARES);
    let pool = lock();
    let files = pool.captures.iter().chain(&pool.connections).flatten();
    numbers.extend(files.map(AsRawFd::as_raw_fd));
    numbers
}

/// Opens a file or directory that exists even in an empty root directory.
fn open_placeholder() -> io::Result<File> {
    File::open("/dev/null").or_else(|_| File::open("/"))
}

fn target_count(need: DescriptorNeed) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let max_total = usize::try_from(limit / DESCRIPTOR_LIMIT_PER_SPARE).unwrap_or(usize::MAX);
    let connections = MAX_CONNECTION_SPARES.min(max_total / 2);
    match need {
        DescriptorNeed::Connection => connections,
        DescriptorNeed::Capture => MAX_CAPTURE_SPARES.min(max_total - connections),
    }
}

fn lock() -> MutexGuard<'static, SparePool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::CodeFile;

    #[test]
    fn open_is_retried_once_per_reserved_descriptor() {
        reserve();
        assert_eq!(reserved_fds().len(), MAX_CAPTURE_SPARES + MAX_CONNECTION_SPARES);
        for (need, reserved) in [
            (DescriptorNeed::Connection, MAX_CONNECTION_SPARES),
            (DescriptorNeed::Capture, MAX_CAPTURE_SPARES),
        ] {
            let mut attempts = 0;
            let failed = open_with_retry_for(need, || {
                attempts += 1;
                Err::<(), _>(Errno::MFILE)
            });
            assert_eq!((failed, attempts), (Err(Errno::MFILE), reserved + 1));
        }
        assert!(reserved_fds().is_empty());
        refill();
        let mut attempts = 0;
        let opened = open_with_retry(|| {
            attempts += 1;
            if attempts < 3 { Err(Errno::NFILE) } else { Ok(attempts) }
        });
        assert_eq!(
            (opened, reserved_fds().len()),
            (Ok(3), MAX_CAPTURE_SPARES + MAX_CONNECTION_SPARES - 2)
        );
        assert_eq!(open_with_retry(|| Err::<(), _>(Errno::NOENT)), Err(Errno::NOENT));
        refill();
        assert_eq!(reserved_fds().len(), MAX_CAPTURE_SPARES + MAX_CONNECTION_SPARES);
        // A code file counts as reserved and is closed after the others.
        let file = Arc::new(CodeFile::open(&std::env::current_exe().unwrap()).unwrap());
        set_code_files([Arc::clone(&file)].into_iter());
        assert_eq!(reserved_fds().len(), MAX_CAPTURE_SPARES + MAX_CONNECTION_SPARES - 1);
        for _ in 1..MAX_CAPTURE_SPARES {
            assert!(release(DescriptorNeed::Capture) && file.is_open());
        }
        assert!(
            release(DescriptorNeed::Capture)
                && !file.is_open()
                && !release(DescriptorNeed::Capture)
        );
        assert!(release(DescriptorNeed::Connection));
        set_code_files(std::iter::empty::<Arc<CodeFile>>());
        assert_eq!(
            (reserved_fds().len(), Arc::strong_count(&file)),
            (MAX_CAPTURE_SPARES + MAX_CONNECTION_SPARES, 1)
        );
        release_all();
        refill();
        assert!(reserved_fds().is_empty());
    }
}
