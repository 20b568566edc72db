//! Keys and values of early versions, and what to write now.

/// Old key with its section, and the advice that an error about it gives.
const KEYS: &[(&str, &str)] = &[
    ("domain", "it is called `instance` now"),
    ("rules", "write `include_default_rules = true` or `false` now"),
    ("budget.join", "it is called `join_window` now"),
    ("budget.streams_per_day", "it is called `on_demand_captures_per_day` now"),
    ("budget.cpu_ceiling", "it is called `skip_cpu_profile_above` now"),
    ("store.keep_free", "it is called `min_free_space` now"),
    ("store.max_incident_bytes", "it is called `max_bytes_per_incident` now"),
    ("http.hosts", "it is called `allowed_hosts` now"),
    ("cpu.frequency", "it is called `frequency_hz` now"),
    ("cpu.wall_frequency", "it is called `wall_frequency_hz` now"),
    ("cpu.lookback_frequency", "it is called `lookback_frequency_hz` now"),
    ("trace.stall", "it is called `stall_threshold` now"),
    ("rule.again", "write `refire = \"on-worsening\"` or `\"after-cooldown\"` now"),
    ("rule.collect", "it is called `collectors` now"),
];

/// Returns the advice for the old `key` of the section with this prefix, if it was renamed.
pub(super) fn advice(prefix: &str, key: &str) -> Option<&'static str> {
    let section = prefix.trim_end_matches('.').split('[').next().unwrap_or_default();
    let path = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
    KEYS.iter().find(|(old, _)| *old == path).map(|&(_, advice)| advice)
}
