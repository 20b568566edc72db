//! Histories, and the number of captures each may have.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use super::trace::{Trace, TraceMetric, repeat};

pub(crate) const HOUR: f64 = 3600.0;

/// A trace, the permitted number of captures, and the lowest permitted value at the last one.
pub(crate) type Case = (Trace, RangeInclusive<usize>, f64);

fn memory(name: &str, points: Vec<(f64, f64)>) -> Trace {
    Trace::new(name, TraceMetric::Memory, points)
}

pub(crate) fn benign_cases() -> Vec<Case> {
    let day = 24.0 * HOUR;
    let cycle = |peak: f64| {
        let wave = |n: usize| (1.0 - (n as f64 / 48.0 * std::f64::consts::TAU).cos()) / 2.0;
        (0..=96).map(|n| (n as f64 * day / 48.0, 30.0 + (peak - 30.0) * wave(n))).collect()
    };
    let steps = |last: f64| {
        let levels = [30.0, 45.0, 60.0, last];
        let step = |(n, level): (usize, &f64)| {
            [(n as f64 * HOUR, *level), ((n + 1) as f64 * HOUR - 0.1, *level)]
        };
        levels.iter().enumerate().flat_map(step).collect()
    };
    vec![
        (memory("idle at 2 %", vec![(0.0, 2.0), (HOUR, 2.0)]).with_noise(1.0), 0..=0, 0.0),
        (
            memory(
                "collector, 45-78 % in 30 s",
                repeat(&[(0.0, 45.0), (29.0, 78.0), (30.0, 45.0)], HOUR),
            ),
            0..=0,
            0.0,
        ),
        (
            memory(
                "collector, 50-79 % in 5 s",
                repeat(&[(0.0, 50.0), (4.5, 79.0), (5.0, 50.0)], HOUR),
            ),
            0..=1,
            0.0,
        ),
        (
            memory("slow start", vec![(0.0, 2.0), (120.0, 70.0), (HOUR, 72.0)]).with_noise(1.0),
            0..=0,
            0.0,
        ),
        (
            memory("quick start", vec![(0.0, 2.0), (5.0, 2.0), (9.0, 74.0), (HOUR, 70.0)])
                .with_noise(0.5),
            0..=0,
            0.0,
        ),
        (memory("days with a peak of 72 %", cycle(72.0)).with_noise(1.5), 0..=0, 0.0),
        (memory("deploys up to 78 %", steps(78.0)).with_noise(0.5), 0..=0, 0.0),
        (
            Trace::new(
                "CPU: 5 s at 100 % a minute",
                TraceMetric::Cpu,
                repeat(
                    &[(0.0, 20.0), (54.5, 20.0), (55.0, 100.0), (59.5, 100.0), (60.0, 20.0)],
                    HOUR,
                ),
            ),
            0..=0,
            0.0,
        ),
        (
            Trace::new(
                "CPU: 7 of 10 s at 100 %",
                TraceMetric::Cpu,
                repeat(
                    &[(0.0, 100.0), (6.9, 100.0), (7.0, 30.0), (9.9, 30.0), (10.0, 100.0)],
                    HOUR,
                ),
            ),
            0..=0,
            0.0,
        ),
        (
            Trace::new("CPU: idle", TraceMetric::Cpu, vec![(0.0, 2.0), (HOUR, 2.0)])
                .with_noise(1.0),
            0..=0,
            0.0,
        ),
        (
            Trace::new(
                "lag: 400 ms now and then",
                TraceMetric::Lag,
                repeat(&[(0.0, 0.0), (9.0, 0.0), (9.5, 0.4), (10.0, 0.0)], HOUR),
            ),
            0..=0,
            0.0,
        ),
    ]
}

pub(crate) fn faulty_cases() -> Vec<Case> {
    let day = 24.0 * HOUR;
    let cycle = |peak: f64| {
        let wave = |n: usize| (1.0 - (n as f64 / 48.0 * std::f64::consts::TAU).cos()) / 2.0;
        (0..=96).map(|n| (n as f64 * day / 48.0, 30.0 + (peak - 30.0) * wave(n))).collect()
    };
    let stairs: Vec<(f64, f64)> = (0..=35)
        .flat_map(|n| {
            let (start, level) = (f64::from(n) * 600.0, 30.0 + 2.0 * f64::from(n));
            [(start, level), (start + 599.0, level)]
        })
        .collect();
    let breathing = {
        let tooth = |n: u32| {
            let (start, floor) = (f64::from(n) * 60.0, 30.0 + 0.25 * f64::from(n));
            [(start, floor), (start + 59.0, floor + 10.0)]
        };
        (0..=240).flat_map(tooth).take_while(|point| point.1 <= 100.0).collect()
    };
    vec![
        (
            memory("5 MiB/s in 256 MiB", vec![(0.0, 40.0), (60.0, 40.0), (90.7, 100.0)])
                .with_noise(0.2),
            3..=10,
            95.0,
        ),
        (
            memory("40 MiB/s in 256 MiB", vec![(0.0, 40.0), (60.0, 40.0), (63.84, 100.0)])
                .with_noise(0.2),
            2..=6,
            80.0,
        ),
        (
            memory("up to 97 % and back", vec![(0.0, 40.0), (HOUR, 97.0), (2.0 * HOUR, 40.0)]),
            4..=6,
            96.0,
        ),
        (memory("stairs to OOM, 2 % each 10 min", stairs).with_noise(0.3), 4..=10, 95.0),
        (memory("collector over a leak to OOM", breathing).with_noise(0.3), 3..=14, 95.0),
        (
            // A slow leak all the time, and after an hour and a half a second one ten times as
            // fast.
            memory(
                "two leaks at once to OOM",
                vec![(0.0, 30.0), (1.5 * HOUR, 52.0), (2.0 * HOUR, 100.0)],
            )
            .with_noise(0.5),
            3..=10,
            95.0,
        ),
        (
            memory(
                "collector, 50-83 % in 5 min, 2 h",
                repeat(&[(0.0, 50.0), (295.0, 83.0), (300.0, 50.0)], 2.0 * HOUR),
            ),
            1..=3,
            80.0,
        ),
        (
            memory(
                "limit halved while it runs",
                vec![(0.0, 44.0), (HOUR, 44.0), (HOUR + 0.2, 88.0), (2.0 * HOUR, 88.0)],
            )
            .with_noise(0.5),
            1..=1,
            86.0,
        ),
        (memory("two days with a peak of 85 %", cycle(85.0)).with_noise(1.0), 2..=3, 79.0),
        (
            memory(
                "2 s at 95 % each 10 min, 2 h",
                repeat(
                    &[
                        (0.0, 40.0),
                        (595.0, 40.0),
                        (596.0, 95.0),
                        (598.0, 95.0),
                        (599.0, 40.0),
                        (600.0, 40.0),
                    ],
                    2.0 * HOUR,
                ),
            ),
            1..=6,
            80.0,
        ),
        (
            memory(
                "flapping 65-95 % in 4 min, 1 h",
                repeat(&[(0.0, 65.0), (120.0, 95.0), (240.0, 65.0)], HOUR),
            ),
            1..=4,
            90.0,
        ),
        (
            Trace::new(
                "CPU: plateau at 97 %, 1 h",
                TraceMetric::Cpu,
                vec![(0.0, 30.0), (60.0, 97.0), (HOUR, 97.0)],
            )
            .with_noise(1.0),
            1..=2,
            90.0,
        ),
        (
            Trace::new(
                "CPU: 97 %, one tick in ten at 80 %",
                TraceMetric::Cpu,
                repeat(
                    &[
                        (0.0, 97.0),
                        (2.2, 97.0),
                        (2.24, 80.0),
                        (2.26, 80.0),
                        (2.3, 97.0),
                        (2.5, 97.0),
                    ],
                    HOUR,
                ),
            ),
            1..=2,
            90.0,
        ),
        (
            Trace::new(
                "CPU: 20 s at 100, 20 s at 60 %",
                TraceMetric::Cpu,
                repeat(
                    &[(0.0, 60.0), (19.5, 60.0), (20.0, 100.0), (39.5, 100.0), (40.0, 60.0)],
                    HOUR,
                ),
            ),
            1..=2,
            90.0,
        ),
        (
            Trace::new(
                "lag: stuck for 10 s",
                TraceMetric::Lag,
                vec![(0.0, 0.0), (60.0, 0.0), (70.0, 10.0), (70.1, 0.0), (HOUR, 0.0)],
            ),
            1..=4,
            2.0,
        ),
    ]
}

/// Reads the traces in `tests/rules/replay/traces`. The first line of each gives its expectation:
/// `# of memory; captures 1 to 4; last 90`.
pub(crate) fn file_cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rules/replay/traces");
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 3);
    let case = |path: &std::path::PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let words: Vec<&str> = text.lines().next().unwrap().split([' ', ';']).collect();
        let after = |key: &str| {
            let at = words.iter().position(|word| *word == key).expect(key);
            words[at + 1].parse::<f64>().unwrap()
        };
        let captures = after("captures") as usize..=after("to") as usize;
        (Trace::read(path), captures, after("last"))
    };
    paths.iter().map(case).collect()
}
