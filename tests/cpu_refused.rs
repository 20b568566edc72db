//! A container whose seccomp profile refuses `perf_event_open`, as most do. The filter stays, so this is a
//! process of its own.
#![cfg(all(feature = "cpu", target_os = "linux", target_env = "gnu"))]
#![allow(unsafe_code, reason = "seccomp has no safe face")]

mod cpu_support;

use std::time::Duration;

use cpu_support::{account, burn, start, stop};
use marple::cpu::Error;
use marple::model::CpuEngine;

/// Lets `perf_event_open` fail with EPERM in every thread of this process.
fn refuse_perf_events() {
    let load_number = libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 };
    let is_it = libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: libc::SYS_perf_event_open as u32 };
    let answer = |k| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k };
    let refuse = answer(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    let mut filter = [load_number, is_it, refuse, answer(libc::SECCOMP_RET_ALLOW)];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel reads a program of the length that is said.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
        let failed = libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program);
        assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    }
}

#[test]
fn where_perf_events_are_refused_timers_take_their_place_and_say_why() {
    refuse_perf_events();
    let session = start(CpuEngine::Auto, 99).unwrap();
    let said = session.engine().to_owned();
    assert!(said.starts_with("timer: perf_event_open refused (EPERM"), "{said}");
    burn(Duration::from_millis(500));
    let profile = stop(session);
    assert!(profile.comments.iter().any(|comment| comment.contains(&said)));
    assert!(account(&profile).1 > 30, "{:?}", profile.comments);

    let refused = start(CpuEngine::Perf, 99).map(drop);
    let Err(Error::Refused { engine: "perf", why }) = refused else { panic!("{refused:?}") };
    assert!(why.contains("EPERM"), "{why}");
}
