//! The kernel's list of this process's threads, and the files of each.

use crate::base::spare;
use std::ffi::CStr;
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, SeekFrom, fstat, open, openat, seek, statat};
use rustix::io::Errno;
use rustix::path::DecInt;

/// Directory of the threads.
pub(crate) const TASKS: &str = "/proc/self/task";

/// The open directory `/proc/self/task`.
#[derive(Debug)]
pub struct ThreadList {
    directory: OwnedFd,
}

impl ThreadList {
    /// Opens the directory.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no `/proc`, or if it belongs to another pid namespace: thread
    /// IDs would then refer to other threads.
    pub fn open() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = spare::open_with_retry(|| open(TASKS, flags, Mode::empty()))?;
        // Not the cached ID, which is the parent's in a forked child.
        let own = rustix::thread::gettid().as_raw_nonzero();
        match statat(&directory, DecInt::new(own.get()), AtFlags::empty()) {
            Ok(_) => Ok(Self { directory }),
            Err(Errno::NOENT) => Err(io::Error::other(format!(
                "thread {own} of this process is not listed: /proc belongs to another pid \
                 namespace; mount the /proc of this process's pid namespace"
            ))),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Returns the number of threads. Costs 1 us.
    pub fn count(&self) -> Option<usize> {
        usize::try_from(fstat(&self.directory).ok()?.st_nlink).ok()?.checked_sub(2)
    }

    /// Replaces the content of `tids` by the IDs of all threads, sorted. Costs about 0.5 us per
    /// thread.
    ///
    /// # Errors
    ///
    /// Returns an error if the directory cannot be read; `tids` then holds the IDs read so far.
    pub fn list(&mut self, tids: &mut Vec<u32>) -> io::Result<()> {
        tids.clear();
        seek(&self.directory, SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); 4 << 10];
        let mut entries = RawDir::new(&self.directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_str().ok();
            tids.extend(name.and_then(|name| name.parse::<u32>().ok()));
        }
        tids.sort_unstable();
        Ok(())
    }

    /// Returns the name of the thread `tid`, or `None` if it has exited. Costs about 7 us.
    pub fn name(&self, tid: u32) -> Option<String> {
        // At most 15 bytes and a newline.
        let mut buffer = [0; 64];
        let name = read_thread_file(&self.directory, tid, "comm", &mut buffer)?;
        let name = name.strip_suffix(b"\n").unwrap_or(name);
        Some(String::from_utf8_lossy(name).into_owned())
    }

    /// Returns the run delay of the thread `tid` since its start. Returns `None` if it has exited
    /// or the kernel does not count the delay (`CONFIG_SCHED_INFO`). Costs about 5 us.
    pub fn run_delay(&self, tid: u32) -> Option<Duration> {
        let mut buffer = [0; 128];
        let text = read_thread_file(&self.directory, tid, "schedstat", &mut buffer)?;
        let mut numbers = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
        let mut next = || numbers.next()?.parse::<u64>().ok();
        let [_cpu, run_delay, timeslices] = [next()?, next()?, next()?];
        // Without the accounting all three are 0.
        (timeslices > 0).then(|| Duration::from_nanos(run_delay))
    }
}

/// Reads a file of a thread; longer content is truncated.
pub(crate) fn read_thread_file<'b>(
    tasks: &OwnedFd,
    tid: u32,
    file: &str,
    buffer: &'b mut [u8],
) -> Option<&'b [u8]> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut path = [0; 32];
    write!(&mut path[..], "{tid}/{file}\0").ok()?;
    let path = CStr::from_bytes_until_nul(&path).ok()?;
    let file = spare::open_with_retry(|| openat(tasks, path, flags, Mode::empty())).ok()?;
    let length = rustix::io::read(&file, &mut *buffer).ok()?;
    buffer.get(..length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn thread_is_listed_with_id_and_name() {
        let mut tasks = ThreadList::open().unwrap();
        thread::Builder::new()
            .name("listed".into())
            .spawn(move || {
                let own = rustix::thread::gettid().as_raw_nonzero().get() as u32;
                let mut tids = vec![1, 1, 1];
                tasks.list(&mut tids).unwrap();
                assert!(tids.contains(&own) && tids.is_sorted(), "{tids:?}");
                assert!(tasks.count().unwrap() >= 2);
                assert_eq!(tasks.name(own).unwrap(), "listed");
                assert_eq!(tasks.name(u32::MAX), None);
                assert!(tasks.run_delay(own).is_some() && tasks.run_delay(u32::MAX).is_none());
            })
            .unwrap()
            .join()
            .unwrap();
    }
}
