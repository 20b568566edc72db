//! Locks of an open file description (`F_OFD_SETLK`).
//!
//! They conflict with locks of any other open file description, including ones of the same process.
//! They end with the last descriptor of their description. POSIX locks, in contrast, end as soon as
//! any descriptor of the file is closed.
#![allow(unsafe_code, reason = "`fcntl` with a pointer to the lock")]

use std::fs::File;

use rustix::io::{self, Errno};

/// Locks the whole file exclusively, without waiting.
///
/// # Errors
///
/// Returns [`Errno::AGAIN`] or [`Errno::ACCESS`] if another open file description holds a lock.
pub fn lock(file: &File) -> io::Result<()> {
    set_lock(file, LockKind::Exclusive)
}

/// Releases the lock.
pub fn unlock(file: &File) -> io::Result<()> {
    set_lock(file, LockKind::Unlocked)
}

enum LockKind {
    Exclusive,
    Unlocked,
}

#[cfg(target_os = "linux")]
fn set_lock(file: &File, kind: LockKind) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let kind = match kind {
        LockKind::Exclusive => libc::F_WRLCK,
        LockKind::Unlocked => libc::F_UNLCK,
    };
    // SAFETY: `flock` consists of plain integers, for which all zeroes are valid; `l_pid` must be 0
    // for these locks.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the descriptor is open while `file` is borrowed, and the kernel reads one `flock`
    // from the pointer.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if done == 0 {
        return Ok(());
    }
    let errno = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&errno).unwrap_or(Errno::NOSYS))
}

#[cfg(not(target_os = "linux"))]
fn set_lock(_file: &File, _kind: LockKind) -> io::Result<()> {
    Err(Errno::NOSYS)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn second_open_file_description_cannot_take_the_lock() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let again = || File::options().read(true).write(true).open(temp.path()).unwrap();
        lock(temp.as_file()).unwrap();
        let other = again();
        assert!(matches!(lock(&other), Err(Errno::AGAIN | Errno::ACCESS)));
        // A POSIX lock would end here.
        drop(again());
        assert!(lock(&other).is_err());
        unlock(temp.as_file()).unwrap();
        lock(&other).unwrap();
    }
}
