//! Keys and values of early versions, and what to write now.

/// Old key with its section, and the advice that an error about it gives.
const KEYS: &[(&str, &str)] = &[
    ("domain", "renamed to `instance`"),
    ("rules", "replaced: write `include_default_rules = true` or `false`"),
    ("budget.join", "renamed to `join_window`"),
    ("budget.streams_per_day", "renamed to `on_demand_captures_per_day`"),
    ("budget.cpu_ceiling", "renamed to `skip_cpu_profile_above`"),
    ("store.keep_free", "renamed to `min_free_space`"),
    ("store.max_incident_bytes", "renamed to `max_bytes_per_incident`"),
    ("http.hosts", "renamed to `allowed_hosts`"),
    ("cpu.frequency", "renamed to `frequency_hz`"),
    ("cpu.wall_frequency", "renamed to `wall_frequency_hz`"),
    ("cpu.lookback_frequency", "renamed to `lookback_frequency_hz`"),
    ("trace.stall", "renamed to `stall_threshold`"),
    ("rule.again", "renamed: write `refire = \"on-worsening\"` or `\"after-cooldown\"`"),
    ("rule.collect", "renamed to `collectors`"),
];

/// Returns the advice for the old `key` of the section with this prefix, if it was renamed.
pub(super) fn advice(prefix: &str, key: &str) -> Option<&'static str> {
    let section = prefix.trim_end_matches('.').split('[').next().unwrap_or_default();
    let path = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
    KEYS.iter().find(|(old, _)| *old == path).map(|&(_, advice)| advice)
}
