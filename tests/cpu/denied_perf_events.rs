//! A seccomp profile that denies `perf_event_open`, as in most containers. The filter stays for the
//! life of the process, so the test needs a process of its own (nextest).

use std::time::Duration;

use marple::internals::cpu::error::Error;
use marple::internals::model::CpuEngine;

use crate::support::cpu_load::{burn, start, stated_periods, stop};
use crate::support::seccomp::{self, NUMBER_OFFSET, allow, fail, load, require_equal};

/// Makes `perf_event_open` fail with EPERM in every thread of this process.
fn deny_perf_events() {
    let perf_event_open = libc::SYS_perf_event_open as u32;
    seccomp::install(&mut [
        load(NUMBER_OFFSET),
        require_equal(perf_event_open, 1),
        fail(libc::EPERM),
        allow(),
    ]);
}

#[test]
fn denied_perf_events_fall_back_to_timers_with_reason() {
    deny_perf_events();
    let session = start(CpuEngine::Auto, 99).unwrap();
    let engine_text = session.engine().to_owned();
    assert!(engine_text.starts_with("timer: perf_event_open refused (EPERM"), "{engine_text}");
    burn(Duration::from_millis(500));
    let profile = stop(session);
    assert!(profile.comments.iter().any(|comment| comment.contains(&engine_text)));
    assert!(stated_periods(&profile).1 > 30, "{:?}", profile.comments);

    let refused = start(CpuEngine::Perf, 99).map(drop);
    let Err(Error::EngineUnavailable { engine: "perf", why }) = refused else {
        panic!("{refused:?}")
    };
    assert!(why.contains("EPERM"), "{why}");
}
