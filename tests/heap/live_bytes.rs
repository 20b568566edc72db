//! The number of live bytes wakes a waiting thread from within the allocation that crosses the
//! threshold, and a rule over it fires.

use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use marple::config::HeapSettings;
use marple::internals::base::Bytes;
use marple::internals::heap;
use marple::internals::model::{Metric, Outcome, Rule};
use marple::{CaptureKind, Settings};

use crate::support::host::{self, Host, WAIT_TIMEOUT, settings};

/// There is one count of live bytes in the process, so the tests run one at a time.
static SERIAL: Mutex<()> = Mutex::new(());

const MIB: u64 = 1 << 20;

/// Returns blocks of 70 to 600 KiB, typical buffer sizes.
fn blocks() -> impl Iterator<Item = Vec<u8>> {
    (0u64..).map(|n| black_box(Vec::with_capacity((70_000 + n * 7919 % 530_000) as usize)))
}

#[test]
fn waiting_thread_is_woken_within_32_mib_of_threshold() {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    // The error of the estimate is about 4 MiB at this rate and size.
    heap::set_rate(Bytes::kib(64));
    for round in 0..5 {
        while heap::take_threshold_event() {}
        let before = heap::in_use().unwrap();
        heap::arm_threshold(Bytes(before.get() + 256 * MIB));
        let (mut kept, mut allocated) = (Vec::with_capacity(10_000), 0);
        for block in blocks() {
            allocated += block.capacity() as u64;
            kept.push(block);
            if heap::take_threshold_event() {
                break;
            }
            assert!(allocated <= 288 * MIB, "round {round}: nobody was woken at {allocated}");
        }
        println!("round {round}: woken at {:.1} MiB", allocated as f64 / MIB as f64);
        assert!(allocated >= 224 * MIB, "round {round}: woken at {allocated}");
    }
    heap::disarm_threshold();
}

#[test]
fn live_bytes_match_allocated_blocks() {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    heap::set_rate(Bytes(1));
    let level = || heap::in_use().unwrap().get();
    let before = level();
    let mut block: Vec<u8> = Vec::with_capacity(100_000_000);
    assert!(level() - before >= 100_000_000);
    block.reserve_exact(200_000_000);
    assert!(level() - before >= 200_000_000 && level() - before < 250_000_000);
    let moved = std::thread::spawn(move || drop(block));
    moved.join().unwrap();
    assert!(level().abs_diff(before) < 1_000_000, "{before} became {}", level());
    heap::set_rate(Bytes(0));
    assert_eq!(heap::in_use(), None, "nothing is sampled, nothing is known");
}

fn heap_rule(abs: u64) -> Rule {
    Rule {
        metric: Metric::Heap,
        abs: Some(abs as f64),
        ..host::gauge_rule("memory-heap", [CaptureKind::Heap], Duration::from_secs(2))
    }
}

#[test]
fn heap_rule_fires_and_incident_uses_finer_sampling() {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let abs = heap::in_use().map_or(0, Bytes::get) + 300 * MIB;
    let heap_settings =
        HeapSettings { rate: Bytes::kib(256), rate_during_incident: Some(Bytes::kib(16)) };
    let host =
        Host::start(Settings { heap: heap_settings, rules: vec![heap_rule(abs)], ..settings() });
    // Rules are evaluated once their window of ten ticks is full.
    host::wait_for("the rule to be asked", || {
        let status = host.handle().status().wait(WAIT_TIMEOUT).unwrap();
        (status.rules[0].decision == "within_limits").then_some(())
    });
    let kept: Vec<Vec<u8>> = blocks().take(2000).collect();
    host::wait_for("the finer rate", || (heap::rate() == Bytes::kib(16)).then_some(()));
    drop(kept);
    let (dir, manifest) = host.wait_for_closed(1).remove(0);
    assert_eq!(heap::rate(), Bytes::kib(256), "the usual rate is back");
    let reason = &manifest.reasons[0];
    assert_eq!((&reason.metric, reason.threshold), (&Some(Metric::Heap), Some(abs as f64)));
    assert!(manifest.captures.iter().all(|capture| capture.outcome == Outcome::Done));
    assert_eq!(manifest.artifacts.len(), 2, "one at each end");
    let file = std::fs::read(dir.join(&manifest.artifacts[0].file)).unwrap();
    let profile = marple::internals::codec::pprof::read(&file).unwrap();
    let comments: Vec<&str> = profile.comment.iter().map(|&text| profile.text(text)).collect();
    assert!(comments.iter().any(|text| text.ends_with("bytes resident")), "{comments:?}");
}

#[test]
fn heap_threshold_crossing_triggers_extra_tick() {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let abs = heap::in_use().map_or(0, Bytes::get) + 300 * MIB;
    let host = Host::start(Settings {
        interval: Duration::from_secs(3600),
        rules: vec![heap_rule(abs)],
        ..settings()
    });
    let ticks = || host.handle().status().wait(WAIT_TIMEOUT).unwrap().counters.ticks;
    host::wait_for("the first tick", || (ticks() == 1).then_some(()));
    let kept: Vec<Vec<u8>> = blocks().take(2000).collect();
    host::wait_for("the tick of the crossing", || (ticks() == 2).then_some(()));
    drop(kept);
}
