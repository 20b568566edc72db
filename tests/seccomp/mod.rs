//! A filter on the system calls of this process, as a container's profile has one. It is for good:
//! a process of its own for each.
#![allow(dead_code, reason = "each test uses some of it")]
#![allow(unsafe_code, reason = "seccomp has no safe face")]

use libc::sock_filter;

/// Where in what the kernel shows a filter (`seccomp_data`) the call's number is.
pub(crate) const NUMBER: u32 = 0;

/// Where the low half of the second argument is.
pub(crate) const SECOND: u32 = 24;

/// Where the low half of the third argument is.
pub(crate) const THIRD: u32 = 32;

/// Loads what is at `place`.
pub(crate) fn load(place: u32) -> sock_filter {
    sock_filter { code: 0x20, jt: 0, jf: 0, k: place }
}

/// Keeps the bits of `mask` of what was loaded.
pub(crate) fn and(mask: u32) -> sock_filter {
    sock_filter { code: 0x54, jt: 0, jf: 0, k: mask }
}

/// Goes on if what was loaded is `value`, else skips `other` lines.
pub(crate) fn is(value: u32, other: u8) -> sock_filter {
    sock_filter { code: 0x15, jt: 0, jf: other, k: value }
}

/// Goes on if what was loaded is `value` or more, else skips `other` lines.
pub(crate) fn at_least(value: u32, other: u8) -> sock_filter {
    sock_filter { code: 0x35, jt: 0, jf: other, k: value }
}

/// The call fails with this error.
pub(crate) fn fail(errno: i32) -> sock_filter {
    answer(libc::SECCOMP_RET_ERRNO | errno as u32)
}

/// The call is made.
pub(crate) fn allow() -> sock_filter {
    answer(libc::SECCOMP_RET_ALLOW)
}

/// The call ends the process.
pub(crate) fn kill() -> sock_filter {
    answer(libc::SECCOMP_RET_KILL_PROCESS)
}

/// The call sends the thread a SIGSYS, which a handler may catch.
pub(crate) fn trap() -> sock_filter {
    answer(libc::SECCOMP_RET_TRAP)
}

/// Every thread's calls are these, or meet `other`.
pub(crate) fn install_list(numbers: impl IntoIterator<Item = i64>, other: sock_filter) {
    let mut filter = vec![load(NUMBER)];
    for number in numbers {
        filter.extend([is(number as u32, 1), allow()]);
    }
    filter.push(other);
    install(&mut filter);
}

fn answer(k: u32) -> sock_filter {
    sock_filter { code: 0x06, jt: 0, jf: 0, k }
}

/// Every thread's calls go through `filter` from here on.
pub(crate) fn install(filter: &mut [sock_filter]) {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel reads a program of the length that is said.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
        let failed = libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program);
        assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    }
}
