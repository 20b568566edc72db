//! The rules that every service has, unless it turns them off or replaces one by its name.

use std::time::Duration;

use crate::model::{CaptureKind, CaptureSet, Holds, Metric, Rule};

/// Not again within this for what is no worse than it was.
const COOLDOWN: Duration = Duration::from_secs(60 * 60);
/// An incident is over when things were well for so long: what flaps is one incident.
const CLEAR: Duration = Duration::from_secs(60);

/// Returns the default rules: memory near its limit or about to reach it, CPU at its limit, tasks, threads and
/// descriptors that grow without end, a runtime that is late, late most of the time or blocked, a poll that does not end, a blocking pool
/// without a free thread, panics in a loop. `tests/replay.rs` shows what they do on three dozen traces, and
/// `tests/default_rules.rs` on services with faults; `config/marple.toml` has them in full.
///
/// Each has dumps of threads and tasks, some 5 KB each, which name what waits for what.
pub fn default_rules() -> Vec<Rule> {
    let base = |metric| Rule { cooldown: COOLDOWN, clear_hold: CLEAR, ..Rule::on(metric) };
    let stacks: CaptureSet = [CaptureKind::Threads, CaptureKind::Tasks].into();
    let with = |kinds: &[CaptureKind]| stacks.union(kinds.iter().copied().collect());
    let seconds = |seconds| Holds::from(Duration::from_secs(seconds));
    vec![
        Rule {
            min: 75.0,
            abs: Some(80.0),
            forecast: Some(Duration::from_secs(10)),
            clear: Some(70.0),
            critical: Some(90.0),
            ..base(Metric::Memory)
        },
        // Beside busy neighbours a burn may get half of what it would use.
        Rule {
            name: "cpu".to_owned(),
            abs: Some(90.0),
            hold: seconds(10),
            clear: Some(70.0),
            capture: with(&[CaptureKind::Cpu, CaptureKind::Trace]),
            ..base(Metric::CpuDemand)
        },
        Rule {
            abs: Some(100_000.0),
            hold: seconds(10),
            clear: Some(80_000.0),
            capture: with(&[CaptureKind::Trace, CaptureKind::Heap]),
            ..base(Metric::Tasks)
        },
        // A deadlock behind which requests queue up, a consumer that has ended.
        Rule {
            abs: Some(250.0),
            capture: with(&[CaptureKind::Trace, CaptureKind::Heap]),
            ..base(Metric::TaskRise)
        },
        Rule { abs: Some(100.0), capture: with(&[CaptureKind::Heap]), ..base(Metric::ThreadRise) },
        Rule {
            abs: Some(1000.0),
            capture: with(&[CaptureKind::Descriptors, CaptureKind::Heap]),
            ..base(Metric::FdRise)
        },
        // What is left of the limit is for the captures: a CPU profile opens descriptors itself.
        Rule {
            abs: Some(80.0),
            hold: seconds(1),
            clear: Some(60.0),
            critical: Some(95.0),
            capture: with(&[CaptureKind::Descriptors, CaptureKind::Heap]),
            ..base(Metric::FdShare)
        },
        Rule {
            abs: Some(0.5),
            hold: seconds(2),
            clear: Some(0.1),
            capture: with(&[CaptureKind::Cpu, CaptureKind::Trace]),
            ..base(Metric::Lag)
        },
        // The lag of workers that block for less than 2 s at a time falls too often for the rule above.
        Rule {
            abs: Some(50.0),
            hold: seconds(5),
            clear: Some(10.0),
            capture: with(&[CaptureKind::Cpu, CaptureKind::Trace]),
            ..base(Metric::Stalled)
        },
        // Polls that wait for a lock of `std`, a disk or a peer.
        Rule {
            abs: Some(30.0),
            hold: seconds(1),
            clear: Some(15.0),
            capture: with(&[CaptureKind::Cpu, CaptureKind::Trace]),
            ..base(Metric::Blocked)
        },
        // One poll, be it of a runtime with workers to spare. Inside of `tokio::task::block_in_place` it is no stall.
        Rule {
            abs: Some(2.0),
            clear: Some(0.5),
            capture: with(&[CaptureKind::Trace]),
            ..base(Metric::Stall)
        },
        // The threads show which function holds the pool.
        Rule {
            abs: Some(2.0),
            hold: seconds(2),
            clear: Some(0.5),
            capture: stacks,
            ..base(Metric::BlockingLag)
        },
        // In four of five seconds at least one.
        Rule {
            abs: Some(0.0),
            hold: seconds(5),
            capture: with(&[CaptureKind::Panics]),
            ..base(Metric::Panics)
        },
    ]
}
