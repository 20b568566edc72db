//! Files of an incident, opened with the tools their users open them with.

use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use marple::CaptureSet;
use marple::internals::model::CaptureKind;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;

use crate::support::host::{Host, WAIT_TIMEOUT, settings, wait_for};
use crate::support::peers;

static STOP: AtomicBool = AtomicBool::new(false);

/// Allocates blocks so large that each is sampled, so that the profile is exact.
#[inline(never)]
fn leak_blocks(blocks: usize) -> Vec<Vec<u8>> {
    (0..blocks).map(|_| black_box(vec![1; 20 << 20])).collect()
}

#[inline(never)]
fn burn_cpu() {
    let mut sum = 1u64;
    // At least one second of CPU time, so that it dominates the profile however little CPU it gets.
    let burnt = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime).tv_sec >= 1;
    while !STOP.load(Ordering::Relaxed) || !burnt() {
        for n in 0..100_000 {
            sum = black_box(sum.wrapping_mul(n | 1).rotate_left(7));
        }
    }
}

#[test]
fn go_and_perfetto_read_incident_files() {
    tracing_subscriber::registry().with(LevelFilter::INFO).with(marple::trace::layer()).init();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    marple::instrument_runtime(builder.worker_threads(2));
    let runtime = builder.enable_all().build().unwrap();
    let _entered = runtime.enter();
    let host = Host::start(settings());
    let before = leak_blocks(2);

    host.handle().start_capture(CaptureSet::all()).wait(WAIT_TIMEOUT).unwrap();
    wait_for("the captures to run", || {
        let (_, manifest) = host.incidents().pop()?;
        let heap = manifest.artifacts.iter().any(|artifact| artifact.kind == CaptureKind::Heap);
        (manifest.captures.len() == CaptureKind::ALL.len() && heap).then_some(())
    });
    let candle = thread::spawn(burn_cpu);
    let during = leak_blocks(4);
    for order in 0..50 {
        runtime.block_on(async move {
            tokio::spawn(async move {
                let _span = tracing::info_span!("charge_card", order).entered();
                tracing::info!(order, "charged");
            })
            .await
            .unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        });
    }
    STOP.store(true, Ordering::Relaxed);
    candle.join().unwrap();
    host.handle().stop_capture().wait(WAIT_TIMEOUT).unwrap();
    let (dir, manifest) = host.wait_for_closed(1).remove(0);
    let of = |kind: CaptureKind| {
        let of_kind = manifest.artifacts.iter().filter(move |artifact| artifact.kind == kind);
        of_kind.map(|artifact| dir.join(&artifact.file)).collect::<Vec<_>>()
    };

    let [first, second] = &of(CaptureKind::Heap)[..] else { panic!("two heap profiles") };
    let top = go_top(&[second]);
    assert!(line_with(&top, "leak_blocks").contains("120MB"), "{top}");
    let leak = go_top(&["-base".as_ref(), first, second]);
    assert!(line_with(&leak, "leak_blocks").contains("80MB"), "the leak alone: {leak}");
    for kind in ["alloc_space", "alloc_objects", "inuse_objects"] {
        let index = format!("-sample_index={kind}");
        let top = go_top(&["-nodefraction=0".as_ref(), index.as_ref(), second]);
        assert!(top.contains("leak_blocks"), "{kind}: {top}");
    }

    // Earlier CPU profiles are the look-back.
    let [.., cpu] = &of(CaptureKind::Cpu)[..] else { panic!("a CPU profile") };
    let top = go_top(&[cpu]);
    let share = line_with(&top, "burn_cpu").split_whitespace().nth(4).unwrap().to_owned();
    assert!(share.trim_end_matches('%').parse::<f64>().unwrap() > 50.0, "{top}");

    let [trace] = &of(CaptureKind::Trace)[..] else { panic!("one trace") };
    let rows = peers::perfetto_query(
        trace,
        &[
            "select name, value from stats where value > 0 and severity in ('error', 'data_loss')",
            "select count(*) from slice where name = 'charge_card'",
            "select count(*) from slice where name = 'charged'",
            "select count(*) > 10 from slice where name = 'parked'",
            "select count(*) > 10 from counter join counter_track on track_id = counter_track.id \
             where name = 'rss'",
            "select max(value) >= 120 * 1048576 from counter join counter_track on \
             track_id = counter_track.id where name = 'rss'",
            "select count(*) > 0 from thread_track join thread using (utid) where thread.name like \
             'tokio%'",
            "select name from slice where name = 'incident'",
        ],
    );
    let expected = [
        vec![],
        vec!["50"],
        vec!["50"],
        vec!["1"],
        vec!["1"],
        vec!["1"],
        vec!["1"],
        vec!["incident"],
    ];
    for (at, expected) in expected.iter().enumerate() {
        assert_eq!(rows[at].concat(), *expected, "query {at}: {rows:?}");
    }
    drop((before, during));
}

fn go_top(args: &[&Path]) -> String {
    let args: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
    peers::go_pprof(&[&["-top"], &args[..]].concat())
}

fn line_with<'t>(text: &'t str, name: &str) -> &'t str {
    text.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("no {name} in {text}"))
}
