//! Applying changed settings while the agent runs.

use crate::config::Settings;

/// Returns the merged settings and the names of changed settings that need a restart. Those keep
/// their old value: the directory is locked, the listener is bound, the signal handler is
/// installed, and existing files contain the names.
pub(super) fn merge(old: &Settings, new: Settings) -> (Settings, Vec<&'static str>) {
    let mut needs_restart = Vec::new();
    let mut merged = new;
    keep_old_value("service", &old.service, &mut merged.service, &mut needs_restart);
    keep_old_value("instance", &old.instance, &mut merged.instance, &mut needs_restart);
    keep_old_value("dir", &old.dir, &mut merged.dir, &mut needs_restart);
    keep_old_value("http", &old.http, &mut merged.http, &mut needs_restart);
    keep_old_value(
        "toggle.signal",
        &old.toggle.signal,
        &mut merged.toggle.signal,
        &mut needs_restart,
    );
    let file = &old.toggle.trigger_file;
    let new_file = &mut merged.toggle.trigger_file;
    keep_old_value("toggle.trigger_file", file, new_file, &mut needs_restart);
    // The engine runs from the start, for the look-back.
    keep_old_value("cpu.engine", &old.cpu.engine, &mut merged.cpu.engine, &mut needs_restart);
    let frequency = &old.cpu.lookback_frequency_hz;
    let new_frequency = &mut merged.cpu.lookback_frequency_hz;
    keep_old_value("cpu.lookback_frequency_hz", frequency, new_frequency, &mut needs_restart);
    keep_old_value("cpu.lookback", &old.cpu.lookback, &mut merged.cpu.lookback, &mut needs_restart);
    (merged, needs_restart)
}

fn keep_old_value<T: Clone + PartialEq>(
    name: &'static str,
    old: &T,
    new: &mut T,
    needs_restart: &mut Vec<&'static str>,
) {
    if old != new {
        new.clone_from(old);
        needs_restart.push(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn settings_that_need_a_restart_are_kept_and_listed() {
        let old = Settings::default();
        let new = Settings {
            dir: "elsewhere".into(),
            interval: Duration::from_secs(1),
            ..Settings::default()
        };
        let (merged, needs_restart) = merge(&old, new);
        assert_eq!(needs_restart, ["dir"]);
        assert_eq!((merged.dir, merged.interval), (old.dir, Duration::from_secs(1)));
    }
}
