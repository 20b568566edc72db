//! Filters on the system calls of this process, like the profile of a container. A filter is
//! permanent: each test needs a separate process.
#![allow(unsafe_code, reason = "seccomp has no safe face")]

use libc::sock_filter;

/// Offset in `seccomp_data` of the number of the call.
pub(crate) const NUMBER_OFFSET: u32 = 0;

/// Offset of the low half of the second argument.
pub(crate) const SECOND_ARG_OFFSET: u32 = 24;

/// Offset of the low half of the third argument.
pub(crate) const THIRD_ARG_OFFSET: u32 = 32;

/// Loads the word at offset `offset`.
pub(crate) fn load(offset: u32) -> sock_filter {
    sock_filter { code: 0x20, jt: 0, jf: 0, k: offset }
}

/// Masks the loaded word with `mask`.
pub(crate) fn and(mask: u32) -> sock_filter {
    sock_filter { code: 0x54, jt: 0, jf: 0, k: mask }
}

/// Continues if the loaded word is `value`, else skips `skip` instructions.
pub(crate) fn require_equal(value: u32, skip: u8) -> sock_filter {
    sock_filter { code: 0x15, jt: 0, jf: skip, k: value }
}

/// Continues if the loaded word is at least `value`, else skips `skip` instructions.
pub(crate) fn require_at_least(value: u32, skip: u8) -> sock_filter {
    sock_filter { code: 0x35, jt: 0, jf: skip, k: value }
}

/// Fails the call with this error.
pub(crate) fn fail(errno: i32) -> sock_filter {
    return_action(libc::SECCOMP_RET_ERRNO | errno as u32)
}

pub(crate) fn allow() -> sock_filter {
    return_action(libc::SECCOMP_RET_ALLOW)
}

pub(crate) fn kill() -> sock_filter {
    return_action(libc::SECCOMP_RET_KILL_PROCESS)
}

/// Sends the thread a SIGSYS, which a handler may catch.
pub(crate) fn trap() -> sock_filter {
    return_action(libc::SECCOMP_RET_TRAP)
}

/// Allows these calls in every thread; all others get `default`.
pub(crate) fn install_list(numbers: impl IntoIterator<Item = i64>, default: sock_filter) {
    let mut filter = vec![load(NUMBER_OFFSET)];
    for number in numbers {
        filter.extend([require_equal(number as u32, 1), allow()]);
    }
    filter.push(default);
    install(&mut filter);
}

fn return_action(k: u32) -> sock_filter {
    sock_filter { code: 0x06, jt: 0, jf: 0, k }
}

/// Installs `filter` in every thread.
pub(crate) fn install(filter: &mut [sock_filter]) {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: `program` describes `filter`, whose length it gives, and the kernel only reads it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
        let failed = libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program);
        assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    }
}
