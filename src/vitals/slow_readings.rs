//! Measurements that are read once a second: pressure, events of the cgroup, panics.

use std::time::Duration;

use super::cgroup::{Cgroup, ResourcePressure};
use super::intervals::take_if_due;
use crate::base::{Moment, Percent, panic_log};
use crate::model::Vitals;

/// Interval at which pressure is read: the kernel updates its averages every two seconds.
const PRESSURE_INTERVAL: Duration = Duration::from_secs(2);

/// Values that are read each second and are valid until the next.
#[derive(Debug, Default)]
pub(super) struct SlowReadings {
    /// Cumulative counters.
    pressure: ResourcePressure,
    panics: Option<u64>,
    pressure_read_at: Option<Moment>,
    /// Growth of the counters in the last second.
    throttled: Option<Percent>,
    memory_high: Option<u64>,
    memory_max: Option<u64>,
    oom_kills: Option<u64>,
    new_panics: Option<u64>,
}

impl SlowReadings {
    /// Reads the counters at `now`; called once a second.
    pub(super) fn read(&mut self, now: Moment, cgroup: &Cgroup) {
        let before = self.pressure;
        let pressure = if take_if_due(&mut self.pressure_read_at, now, PRESSURE_INTERVAL) {
            cgroup.pressure()
        } else {
            let ResourcePressure { memory_pressure, cpu_pressure, io_pressure, .. } = before;
            ResourcePressure {
                memory_pressure,
                cpu_pressure,
                io_pressure,
                ..cgroup.pressure_counters()
            }
        };
        let growth = |now: Option<u64>, before: Option<u64>| Some(now?.saturating_sub(before?));
        let periods = growth(pressure.cpu_periods, before.cpu_periods);
        // Without a period nothing ran, and nothing was throttled.
        self.throttled = growth(pressure.throttled_periods, before.throttled_periods)
            .zip(periods)
            .map(|(n, of)| Percent::of(n as f64, of as f64).unwrap_or(Percent(0.0)));
        // If another cgroup's limit is in force, the events are not comparable.
        let is_same_cgroup = pressure.memory_level == before.memory_level;
        let growth_at = |now, before| if is_same_cgroup { growth(now, before) } else { None };
        self.memory_high = growth_at(pressure.memory_high_events, before.memory_high_events);
        self.memory_max = growth_at(pressure.memory_max_events, before.memory_max_events);
        self.oom_kills = growth(pressure.oom_kills, before.oom_kills);
        let panics = panic_log::count();
        self.new_panics = panics.map(|now| now.saturating_sub(self.panics.unwrap_or(now)));
        self.panics = panics;
        self.pressure = pressure;
    }

    pub(super) fn write(&self, vitals: &mut Vitals) {
        vitals.cpu_throttled = self.throttled;
        vitals.memory_pressure = self.pressure.memory_pressure;
        vitals.cpu_pressure = self.pressure.cpu_pressure;
        vitals.io_pressure = self.pressure.io_pressure;
        vitals.memory_high = self.memory_high;
        vitals.memory_max = self.memory_max;
        vitals.oom_kills = self.oom_kills;
        vitals.panics = self.new_panics;
    }
}
