//! A seccomp profile that denies `perf_event_open`, as in most containers. The filter stays for the
//! life of the process, so the test is a binary by itself.
#![cfg(all(feature = "cpu", target_os = "linux", target_env = "gnu"))]

mod cpu_support;
mod seccomp;

use std::time::Duration;

use cpu_support::{account, burn, start, stop};
use marple::cpu::Error;
use marple::model::CpuEngine;
use seccomp::{NUMBER, allow, fail, is, load};

/// Makes `perf_event_open` fail with EPERM in every thread of this process.
fn refuse_perf_events() {
    let perf_event_open = libc::SYS_perf_event_open as u32;
    seccomp::install(&mut [load(NUMBER), is(perf_event_open, 1), fail(libc::EPERM), allow()]);
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
