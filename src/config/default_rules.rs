//! The rules that every service has, unless it turns them off or replaces one by its name.

use std::time::Duration;

use crate::model::{CaptureKind, CaptureSet, HoldDurations, Metric, Rule};

/// Delay before a capture that is no worse than earlier ones.
const DEFAULT_COOLDOWN: Duration = Duration::from_secs(60 * 60);
/// Time without a crossing that ends an incident, so that a flapping metric stays one incident.
const DEFAULT_CLEAR_HOLD: Duration = Duration::from_secs(60);

/// Returns the default rules.
///
/// They cover memory near its limit or about to reach it, CPU at its limit, and tasks, threads and
/// descriptors that grow without bound. Others cover a runtime that is late, late most of the time
/// or blocked, and a poll that does not end. The last ones cover a blocking pool without a free
/// thread and repeated panics. `tests/rules/replay.rs` replays three dozen traces with them,
/// `tests/default_rules` runs services with faults, and `config/marple.toml` lists them in full.
///
/// Each rule captures dumps of threads and tasks, about 5 KB each, which show what every thread and
/// task is waiting for.
pub fn default_rules() -> Vec<Rule> {
    let base = |metric| Rule {
        cooldown: DEFAULT_COOLDOWN,
        clear_for: DEFAULT_CLEAR_HOLD,
        ..Rule::new(metric)
    };
    let stacks: CaptureSet = [CaptureKind::Threads, CaptureKind::Tasks].into();
    let with = |kinds: &[CaptureKind]| stacks.union(kinds.iter().copied().collect());
    let seconds = |seconds| HoldDurations::from(Duration::from_secs(seconds));
    vec![
        Rule {
            min: 75.0,
            abs: Some(80.0),
            forecast: Some(Duration::from_secs(10)),
            clear: Some(70.0),
            critical: Some(90.0),
            ..base(Metric::Memory)
        },
        // Next to busy neighbours a busy loop may get half of the CPU time that it would use, so
        // the rule measures demand.
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
        // Finds a deadlock with requests queueing up behind it, or a consumer that has ended.
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
        // The remaining descriptors are reserved for the captures: a CPU profile opens some itself.
        Rule {
            abs: Some(80.0),
            hold: seconds(1),
            clear: Some(60.0),
            critical: Some(95.0),
            capture: with(&[CaptureKind::Descriptors, CaptureKind::Heap]),
            ..base(Metric::FdUtilization)
        },
        Rule {
            abs: Some(0.5),
            hold: seconds(2),
            clear: Some(0.1),
            capture: with(&[CaptureKind::Cpu, CaptureKind::Trace]),
            ..base(Metric::Lag)
        },
        // If workers block for less than 2 s at a time, the lag falls too often for the rule above.
        Rule {
            abs: Some(50.0),
            hold: seconds(5),
            clear: Some(10.0),
            capture: with(&[CaptureKind::Cpu, CaptureKind::Trace]),
            ..base(Metric::Stalled)
        },
        // Finds polls that wait for a lock of `std`, a disk or a peer.
        Rule {
            abs: Some(30.0),
            hold: seconds(1),
            clear: Some(15.0),
            capture: with(&[CaptureKind::Cpu, CaptureKind::Trace]),
            ..base(Metric::Blocked)
        },
        // Finds a single long poll, even on a runtime with idle workers. A poll inside
        // `tokio::task::block_in_place` is not a stall.
        Rule {
            abs: Some(2.0),
            clear: Some(0.5),
            capture: with(&[CaptureKind::Trace]),
            ..base(Metric::Stall)
        },
        // The thread dump shows which function occupies the pool.
        Rule {
            abs: Some(2.0),
            hold: seconds(2),
            clear: Some(0.5),
            capture: stacks,
            ..base(Metric::BlockingLag)
        },
        // Fires if four of five seconds have at least one panic.
        Rule {
            abs: Some(0.0),
            hold: seconds(5),
            capture: with(&[CaptureKind::Panics]),
            ..base(Metric::Panics)
        },
    ]
}
