//! Use of SIGPROF by the `pprof` crate: checks before its start, its handler, and a safe end.
//!
//! The checks read `/proc`: does the host handle SIGPROF itself, and may a handler of this process
//! walk the stack?

#![allow(unsafe_code, reason = "`sigaction` and `setitimer`")]

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr;

const STATUS: &str = "/proc/self/status";
const MAPS: &str = "/proc/self/maps";

/// Number of SIGPROF; its bit in a mask is `SIGPROF - 1`.
const SIGPROF: u32 = libc::SIGPROF as u32;

/// An error while reading a file of `/proc`.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {source}; CPU profiles need a mounted /proc")]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// Returns `true` if a handler for SIGPROF is installed in this process.
pub fn is_sigprof_handled() -> Result<bool, Error> {
    Ok(caught_signals(&read_file(STATUS.into())?) >> (SIGPROF - 1) & 1 == 1)
}

/// Returns the mask of signals with a handler, from the text of `/proc/self/status`.
fn caught_signals(status: &[u8]) -> u64 {
    status
        .split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(b"SigCgt:"))
        .and_then(|mask| std::str::from_utf8(mask).ok())
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// Returns `true` if a signal handler may walk the stack with the process's unwinder without
/// waiting for a lock that the interrupted code may hold.
///
/// GCC's unwinder queries the loader for the tables of an address. Since glibc 2.35 and GCC 12 it
/// does so through `_dl_find_object`, which is async-signal-safe. Earlier versions, and LLVM's
/// unwinder in musl programs, use `dl_iterate_phdr`, which takes a lock. A library that was linked
/// against `_dl_find_object` cannot be loaded where it does not exist. So the name among the
/// library's strings is the proof.
pub fn is_unwinder_lock_free() -> Result<bool, Error> {
    let maps = read_file(MAPS.into())?;
    let Some(library) = find_library(&maps, b"libgcc_s.so") else { return Ok(false) };
    let bytes = read_file(PathBuf::from(std::ffi::OsStr::from_bytes(library)))?;
    let name = b"\0_dl_find_object\0";
    Ok(bytes.windows(name.len()).any(|window| window == name))
}

/// Returns the path of the mapped file whose name starts with `name`.
fn find_library<'a>(maps: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    maps.split(|&byte| byte == b'\n').find_map(|line| {
        let path = line.get(line.iter().position(|&byte| byte == b'/')?..)?;
        path.rsplit(|&byte| byte == b'/').next()?.starts_with(name).then_some(path)
    })
}

fn read_file(path: PathBuf) -> Result<Vec<u8>, Error> {
    fs::read(&path).map_err(|source| Error { path, source })
}

/// Returns the start address of the current SIGPROF handler, or 0 if there is none.
pub fn handler_address() -> u64 {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the kernel writes the action, for which all-zero is valid; none is set.
    let action = unsafe {
        libc::sigaction(libc::SIGPROF, ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    match action.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => 0,
        address => address as u64,
    }
}

/// Disarms the process's `ITIMER_PROF` and ignores SIGPROF, which discards a pending one.
///
/// After it, an action that is set for SIGPROF meets no signal of that timer.
pub fn silence_itimer() {
    let mut ignore = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the kernel reads a timer value and an action that live across the calls; all-zero is
    // valid for both, and stops the timer.
    unsafe {
        let disarmed = MaybeUninit::<libc::itimerval>::zeroed();
        libc::setitimer(libc::ITIMER_PROF, disarmed.as_ptr(), ptr::null_mut());
        (*ignore.as_mut_ptr()).sa_sigaction = libc::SIG_IGN;
        libc::sigaction(libc::SIGPROF, ignore.as_ptr(), ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caught_signal_mask_is_parsed() {
        let status = b"SigIgn:\t0000000000001000\nSigCgt:\t0000000104000440\nCapInh:\t0\n";
        assert_eq!(caught_signals(status) >> (27 - 1) & 1, 1);
        assert_eq!(caught_signals(b"Name:\tx\n"), 0);
    }

    #[test]
    fn library_is_found_by_file_name() {
        let maps = b"1-2 r-xp 0 fe:01 7   /srv/libgcc_s.so.1/app\n\
            3-4 r-xp 0 00:00 0 \n\
            5-6 r-xp 0 fe:01 8   /usr/my lib/libgcc_s.so.1\n";
        assert_eq!(find_library(maps, b"libgcc_s.so"), Some(&b"/usr/my lib/libgcc_s.so.1"[..]));
        assert_eq!(find_library(maps, b"libunwind.so"), None);
    }
}
