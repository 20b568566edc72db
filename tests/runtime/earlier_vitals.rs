//! Tests of the vitals from before a session. They are kept per process, so the test needs a
//! process of its own (nextest).

use std::time::Duration;

use marple::internals::base::{Bytes, Clock, SystemClock};
use marple::internals::model::{Timeline, Vitals};
use marple::internals::trace::{TraceSession, record_vitals};

use crate::support::timeline::*;

#[test]
fn session_has_two_minutes_of_earlier_vitals_per_second() {
    let now = SystemClock.now();
    for tick in 0..4 * 200 {
        let at = now + Duration::from_millis(250 * tick);
        record_vitals(&Vitals { at, fds: Some(tick), ..Vitals::default() });
    }
    let fds = |timeline: &Timeline| {
        let counters = read_events(timeline).into_iter().filter(|event| event.at >= now);
        let values = counters.filter_map(|event| match event.kind {
            Kind::Counter(value) => Some(value as u64),
            _ => None,
        });
        values.collect::<Vec<_>>()
    };
    let all = fds(&stop(start()));
    assert_eq!(all, (80..200).map(|second| 4 * second).collect::<Vec<_>>());

    // Half the memory of a small session only has space for the last of them.
    let some = fds(&stop(TraceSession::start(Bytes::kib(64), anchor()).unwrap()));
    assert!(!some.is_empty() && some.len() < 60 && all.ends_with(&some), "{some:?}");
}
