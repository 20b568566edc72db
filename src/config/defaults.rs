//! Default values of all settings.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::default_rules;
use super::settings::{
    BudgetSettings, CpuSettings, DiskReserve, HeapSettings, HttpSettings, Listen, Settings,
    StacksSettings, StoreSettings, TasksMode, ThreadsMode, ToggleSettings, TraceSettings,
};
use crate::base::{Bytes, Hertz, Percent};
use crate::model::{CaptureSet, CpuEngine, CpuMode, TraceMode};

impl Default for Settings {
    fn default() -> Self {
        Self {
            service: std::env::current_exe()
                .ok()
                .and_then(|exe| file_name_part(&exe.file_name()?.to_string_lossy()))
                .unwrap_or_else(|| "service".to_owned()),
            instance: file_name_part(&rustix::system::uname().nodename().to_string_lossy())
                .unwrap_or_else(|| "host".to_owned()),
            dir: "captures".into(),
            interval: Duration::from_millis(250),
            store: StoreSettings::default(),
            budget: BudgetSettings::default(),
            toggle: ToggleSettings::default(),
            http: None,
            cpu: CpuSettings::default(),
            heap: HeapSettings::default(),
            trace: TraceSettings::default(),
            stacks: StacksSettings::default(),
            rules: default_rules(),
        }
    }
}

/// Converts `name` to a valid part of a file name, so that the default never prevents a start. A
/// deleted executable is `service (deleted)`, a host without a name `(none)`.
fn file_name_part(name: &str) -> Option<String> {
    let letter = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let part: String =
        name.chars().map(letter).skip_while(|c| "-.".contains(*c)).take(64).collect();
    (!part.is_empty()).then_some(part)
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            max_bytes: Bytes::gib(1),
            max_incidents: 100,
            max_age: Duration::from_secs(14 * 24 * 60 * 60),
            min_free_space: DiskReserve::Percent(Percent(5.0)),
            max_bytes_per_incident: Bytes::mib(512),
            group_read: false,
            rules: BTreeMap::new(),
        }
    }
}

impl Default for BudgetSettings {
    fn default() -> Self {
        Self {
            incidents_per_day: 24,
            captures_per_incident: 16,
            min_between_incidents: Duration::from_secs(60),
            join_window: Duration::from_secs(30),
            on_demand_captures_per_day: 100_000,
            skip_cpu_profile_above: None,
        }
    }
}

impl Default for ToggleSettings {
    fn default() -> Self {
        Self {
            // Either signal may already be used by the service, for example to reopen its log.
            signal: None,
            trigger_file: None,
            capture: CaptureSet::all(),
            max_duration: Duration::from_secs(5 * 60),
        }
    }
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            listen: Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 6060))),
            token: None,
            capture_token: None,
            read_token: None,
            allowed_hosts: Vec::new(),
            max_duration: Duration::from_secs(5 * 60),
            max_requests_per_second: 100,
            compat_get_toggle: false,
        }
    }
}

impl Default for CpuSettings {
    fn default() -> Self {
        Self {
            mode: CpuMode::Cpu,
            wall_frequency_hz: Hertz(19),
            frequency_hz: Hertz(99),
            engine: CpuEngine::Auto,
            lookback_frequency_hz: Hertz(19),
            lookback: Duration::from_secs(30),
        }
    }
}

impl Default for HeapSettings {
    fn default() -> Self {
        Self { rate: Bytes::kib(512), rate_during_incident: None }
    }
}

impl Default for TraceSettings {
    fn default() -> Self {
        Self {
            mode: TraceMode::Always,
            max_bytes: Bytes::mib(16),
            window: Duration::from_secs(30),
            stall_threshold: Some(Duration::from_millis(100)),
        }
    }
}

impl Default for StacksSettings {
    fn default() -> Self {
        Self {
            threads: ThreadsMode::Full,
            tasks: TasksMode::Full,
            tasks_deadline: Duration::from_secs(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_name_is_valid_on_any_machine() {
        for (name, part) in [
            ("orders", Some("orders")),
            ("orders (deleted)", Some("orders--deleted-")),
            ("(none)", Some("none-")),
            ("../x", Some("x")),
            ("é", None),
            ("", None),
        ] {
            assert_eq!(file_name_part(name).as_deref(), part, "{name}");
        }
        assert_eq!(file_name_part(&"a".repeat(65)), Some("a".repeat(64)));
    }
}
