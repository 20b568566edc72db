//! The rules of a service that has set none.

use std::time::Duration;

use crate::model::{CaptureKind, CaptureSet, Holds, Metric, Rule};

/// Not again within this for what is no worse than it was.
const COOLDOWN: Duration = Duration::from_secs(60 * 60);
/// An incident is over when things were well for so long: what flaps is one incident.
const CLEAR: Duration = Duration::from_secs(60);

/// Memory near its limit or about to reach it, CPU at its limit, very many tasks, a runtime that is
/// late or late for most of the time, a blocking pool without a free thread. `tests/replay.rs` shows what they do on two dozen traces; `config/marple.toml` has them in full.
///
/// None is over `runtime.stall`: a poll inside of `tokio::task::block_in_place` lasts and holds up nobody, the
/// recorder cannot tell it from one that does, and a rule nobody wrote may not be wrong about it.
pub fn default_rules() -> Vec<Rule> {
    let base = |metric| Rule { cooldown: COOLDOWN, clear_hold: CLEAR, ..Rule::on(metric) };
    let cpu_and_trace: CaptureSet = [CaptureKind::Cpu, CaptureKind::Trace].into();
    vec![
        Rule {
            min: 75.0,
            abs: Some(80.0),
            forecast: Some(Duration::from_secs(10)),
            clear: Some(70.0),
            critical: Some(90.0),
            ..base(Metric::Memory)
        },
        Rule {
            abs: Some(90.0),
            hold: Holds::from(Duration::from_secs(10)),
            clear: Some(70.0),
            capture: cpu_and_trace,
            ..base(Metric::Cpu)
        },
        Rule {
            abs: Some(100_000.0),
            hold: Holds::from(Duration::from_secs(10)),
            clear: Some(80_000.0),
            capture: [CaptureKind::Trace, CaptureKind::Heap].into(),
            ..base(Metric::Tasks)
        },
        Rule {
            abs: Some(0.5),
            hold: Holds::from(Duration::from_secs(2)),
            clear: Some(0.1),
            capture: cpu_and_trace,
            ..base(Metric::Lag)
        },
        // The lag of workers that block for less than 2 s at a time falls too often for the rule above.
        Rule {
            abs: Some(50.0),
            hold: Holds::from(Duration::from_secs(5)),
            clear: Some(10.0),
            capture: [
                CaptureKind::Threads,
                CaptureKind::Tasks,
                CaptureKind::Cpu,
                CaptureKind::Trace,
            ]
            .into(),
            ..base(Metric::Stalled)
        },
        // The threads show which function holds the pool.
        Rule {
            abs: Some(2.0),
            hold: Holds::from(Duration::from_secs(2)),
            clear: Some(0.5),
            capture: [CaptureKind::Threads, CaptureKind::Tasks].into(),
            ..base(Metric::BlockingLag)
        },
    ]
}
