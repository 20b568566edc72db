//! Applying changed settings while the agent runs.

use crate::config::Settings;

/// Returns the merged settings and the names of changed settings that need a restart. Those keep
/// their old value: the directory is locked, the listener is bound, the signal handler is
/// installed, and existing files contain the names.
pub(super) fn merge(old: &Settings, new: Settings) -> (Settings, Vec<&'static str>) {
    let mut needs_restart = Vec::new();
    let mut merged = new;
    keep("service", &old.service, &mut merged.service, &mut needs_restart);
    keep("domain", &old.domain, &mut merged.domain, &mut needs_restart);
    keep("dir", &old.dir, &mut merged.dir, &mut needs_restart);
    keep("http", &old.http, &mut merged.http, &mut needs_restart);
    keep("toggle.signal", &old.toggle.signal, &mut merged.toggle.signal, &mut needs_restart);
    let (file, new_file) = (&old.toggle.trigger_file, &mut merged.toggle.trigger_file);
    keep("toggle.trigger_file", file, new_file, &mut needs_restart);
    // The engine runs from the start, for the look-back.
    keep("cpu.engine", &old.cpu.engine, &mut merged.cpu.engine, &mut needs_restart);
    let (often, new_often) = (&old.cpu.lookback_frequency, &mut merged.cpu.lookback_frequency);
    keep("cpu.lookback_frequency", often, new_often, &mut needs_restart);
    keep("cpu.lookback", &old.cpu.lookback, &mut merged.cpu.lookback, &mut needs_restart);
    (merged, needs_restart)
}

fn keep<T: Clone + PartialEq>(
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
    fn what_is_bound_stays_and_is_named() {
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
