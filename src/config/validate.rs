//! Checks of settings values, for files and for settings made in code. Each finding lists the keys
//! it depends on, the first being the one to change. A reader of files can thus find the line, and
//! can drop findings that follow from another problem.

mod store;
mod thresholds;
mod warnings;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::problem::{Problem, Problems};
use super::settings::{HttpSettings, Listen, Settings};
use crate::base::{Bytes, Percent};
use crate::model::{MAX_CUSTOM_NAME_LEN, Rule, is_valid_custom_name};

/// Below the minimum, ticks cost the host too much CPU; above the maximum, an incident can end
/// unnoticed.
const INTERVAL_RANGE: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_secs(60 * 60));
/// Two pages of events for each of eight threads. With less, the trace is useless.
const MIN_TRACE_BYTES: Bytes = Bytes::kib(64);
/// Below the minimum, a poll that merely waits for a CPU would be a stall.
const STALL_THRESHOLD_RANGE: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_secs(60));
const TRACE_WINDOW_RANGE: (Duration, Duration) =
    (Duration::from_secs(1), Duration::from_secs(10 * 60));
/// At higher rates the handler's time shows in the profile.
const MAX_FREQUENCY_HZ: u32 = 1000;
/// At higher rates the look-back would cost as much as a capture.
const MAX_LOOKBACK_FREQUENCY_HZ: u32 = 99;
/// Below the minimum there is no useful look-back; older samples are unrelated to the cause.
const LOOKBACK_RANGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10 * 60));
/// Every rule is evaluated at every tick.
const MAX_RULES: usize = 100;
/// Each incident is a line of `state.json`, whose size is limited. One a minute is more than can be
/// read.
const MAX_INCIDENTS_PER_DAY: usize = 1440;
/// About 100 captures per second, beyond any real use. `state.json` holds 100 numbers at any limit.
const MAX_ON_DEMAND_CAPTURES_PER_DAY: usize = 10_000_000;
/// No limit in effect: one request takes longer than a microsecond.
const MAX_REQUESTS_PER_SECOND: u32 = 1_000_000;
/// A longer task dump would block the capture thread for the rest of the incident.
const MAX_TASKS_DEADLINE: Duration = Duration::from_secs(30);
/// Kinds of captures, for messages about an empty list.
const CAPTURE_KINDS: &str = "\"cpu\", \"heap\", \"trace\", \"threads\", \"tasks\"";
/// A file name has at most 255 bytes. It holds service and instance, or the rule, the time and an
/// id.
const MAX_NAME_LEN: usize = 64;
/// `sizeof(sun_path) - 1`, for the trailing NUL.
const MAX_SOCKET_PATH_LEN: usize = 107;

/// A problem with the values of `keys`.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) keys: Vec<String>,
    pub(super) message: String,
}

impl Settings {
    /// Validates the settings as [`load`](super::load) validates a file.
    ///
    /// # Errors
    ///
    /// If a value is not valid. The error lists every problem.
    pub fn validate(&self) -> Result<(), Problems> {
        let problems: Vec<Problem> = findings(self)
            .into_iter()
            .map(|Finding { keys, message }| Problem {
                position: None,
                key: keys.into_iter().next().unwrap_or_default(),
                message,
            })
            .collect();
        if problems.is_empty() { Ok(()) } else { Err(Problems::new(None, problems)) }
    }
}

/// Returns all problems of `settings`.
pub(super) fn findings(settings: &Settings) -> Vec<Finding> {
    let mut check = Validator::default();
    check_general(&mut check, settings);
    if let Some(settings) = &settings.http {
        check.in_section("http.", |check| check_http(check, settings));
    }
    let mut names = BTreeMap::new();
    for (index, settings) in settings.rules.iter().enumerate() {
        check.in_section(&format!("rule[{index}]."), |check| check_rule(check, settings));
        if let Some(first) = names.insert(settings.name.as_str(), index) {
            check.add_finding(
                vec![format!("rule[{index}].name"), format!("rule[{first}].name")],
                format!(
                    "`{}` is also the name of another rule: use a unique name for each rule",
                    settings.name
                ),
            );
        }
    }
    check.findings
}

#[derive(Default)]
struct Validator {
    findings: Vec<Finding>,
    prefix: String,
}

impl Validator {
    /// Runs checks whose keys are below `prefix`.
    fn in_section(&mut self, prefix: &str, checks: impl FnOnce(&mut Self)) {
        let outer = std::mem::replace(&mut self.prefix, prefix.to_owned());
        checks(self);
        self.prefix = outer;
    }

    /// Records `message` about `keys` unless `is_valid` is true.
    fn require(&mut self, is_valid: bool, keys: &[&str], message: impl FnOnce() -> String) {
        if !is_valid {
            let keys = keys.iter().map(|key| format!("{}{key}", self.prefix)).collect();
            self.add_finding(keys, message());
        }
    }

    fn add_finding(&mut self, keys: Vec<String>, message: String) {
        self.findings.push(Finding { keys, message });
    }

    /// Checks a part of a file name: no separators, not hidden, no special characters of a shell.
    fn require_file_name(&mut self, key: &str, name: &str) {
        let is_valid = (1..=MAX_NAME_LEN).contains(&name.len())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !name.starts_with(['.', '-']);
        self.require(is_valid, &[key], || {
            format!(
                "`{name}` cannot be part of a file name: write 1 to {MAX_NAME_LEN} letters, \
                 digits, `-`, `_` or `.`, starting with a letter, a digit or `_`"
            )
        });
    }

    fn require_positive(&mut self, key: &str, duration: Duration) {
        self.require(!duration.is_zero(), &[key], || {
            "the duration is 0: write a duration such as \"10s\"".to_owned()
        });
    }

    fn require_at_least(&mut self, key: &str, bytes: Bytes, min: Bytes) {
        self.require(bytes >= min, &[key], || {
            format!("{bytes} is below the minimum: write {min} or more")
        });
    }
}

fn check_general(check: &mut Validator, settings: &Settings) {
    check.require_file_name("service", &settings.service);
    check.require_file_name("instance", &settings.instance);
    check.require(!settings.dir.as_os_str().is_empty(), &["dir"], || {
        "the path is empty: write the directory for incidents, such as \"captures\"".to_owned()
    });
    let (min, max) = INTERVAL_RANGE;
    check.require((min..=max).contains(&settings.interval), &["interval"], || {
        format!("{:?} is out of bounds: write a duration from 10ms to 1h", settings.interval)
    });

    store::check_store(check, settings);
    let budget = &settings.budget;
    let max = MAX_INCIDENTS_PER_DAY;
    let is_valid = (1..=max).contains(&budget.incidents_per_day);
    check.require(is_valid, &["budget.incidents_per_day"], || {
        format!("{} is out of bounds: write 1 to {max}", budget.incidents_per_day)
    });
    check.require(budget.captures_per_incident > 0, &["budget.captures_per_incident"], || {
        "0 prevents every rule from firing: write 1 or more, or mode = \"dry-run\" in all rules"
            .to_owned()
    });
    let max = MAX_ON_DEMAND_CAPTURES_PER_DAY;
    check.require(
        (1..=max).contains(&budget.on_demand_captures_per_day),
        &["budget.on_demand_captures_per_day"],
        || format!("{} is out of bounds: write 1 to {max}", budget.on_demand_captures_per_day),
    );
    if let Some(Percent(share)) = budget.skip_cpu_profile_above {
        check.require((0.0..=100.0).contains(&share), &["budget.skip_cpu_profile_above"], || {
            format!("{share} % is not a valid share of the CPU limit: write \"0%\" to \"100%\"")
        });
    }

    let toggle = &settings.toggle;
    check.require(!toggle.capture.is_empty(), &["toggle.capture"], || {
        format!("nothing to capture: name at least one of {CAPTURE_KINDS}")
    });
    check.require_positive("toggle.max_duration", toggle.max_duration);
    if let Some(path) = &toggle.trigger_file {
        check.require(path.file_name().is_some(), &["toggle.trigger_file"], || {
            format!("`{}` is not a file path", path.display())
        });
    }

    let cpu = settings.cpu.frequency_hz.get();
    let wall = settings.cpu.wall_frequency_hz.get();
    for (key, frequency) in [("cpu.frequency_hz", cpu), ("cpu.wall_frequency_hz", wall)] {
        check.require((1..=MAX_FREQUENCY_HZ).contains(&frequency), &[key], || {
            format!(
                "{frequency} is out of bounds: write 1 to {MAX_FREQUENCY_HZ} samples per second"
            )
        });
    }
    let frequency = settings.cpu.lookback_frequency_hz.get();
    check.require(frequency <= MAX_LOOKBACK_FREQUENCY_HZ, &["cpu.lookback_frequency_hz"], || {
        format!(
            "{frequency} is too high for continuous sampling: write 0 (off) to \
             {MAX_LOOKBACK_FREQUENCY_HZ} samples per second"
        )
    });
    let (min, max) = LOOKBACK_RANGE;
    check.require((min..=max).contains(&settings.cpu.lookback), &["cpu.lookback"], || {
        format!(
            "{:?} is out of bounds: write a duration from 1s to 10m, or `lookback_frequency_hz = 0`",
            settings.cpu.lookback
        )
    });
    if let Some(during) = settings.heap.rate_during_incident {
        let usual = settings.heap.rate;
        let is_finer = during > Bytes(0) && (usual == Bytes(0) || during <= usual);
        check.require(is_finer, &["heap.rate_during_incident", "heap.rate"], || {
            format!(
                "{during} samples less often than heap.rate ({usual}): write a smaller size, 1 or \
                 more"
            )
        });
    }
    check.require_at_least("trace.max_bytes", settings.trace.max_bytes, MIN_TRACE_BYTES);
    let deadline = settings.stacks.tasks_deadline;
    let is_valid = !deadline.is_zero() && deadline <= MAX_TASKS_DEADLINE;
    check.require(is_valid, &["stacks.tasks_deadline"], || {
        format!("{deadline:?} is out of bounds: write a duration up to {MAX_TASKS_DEADLINE:?}")
    });
    let (min, max) = TRACE_WINDOW_RANGE;
    check.require((min..=max).contains(&settings.trace.window), &["trace.window"], || {
        format!("{:?} is out of bounds: write a duration from 1s to 10m", settings.trace.window)
    });
    if let Some(stall) = settings.trace.stall_threshold {
        let (min, max) = STALL_THRESHOLD_RANGE;
        check.require((min..=max).contains(&stall), &["trace.stall_threshold"], || {
            format!("{stall:?} is out of bounds: write a duration from 10ms to 1m, or \"off\"")
        });
    }
    check.require(settings.rules.len() <= MAX_RULES, &["rule"], || {
        format!("{} rules are too many: write at most {MAX_RULES}", settings.rules.len())
    });
}

fn check_http(check: &mut Validator, http: &HttpSettings) {
    match &http.listen {
        Listen::Tcp(addr) => {
            let tokens = [&http.token, &http.capture_token, &http.read_token];
            let is_valid = is_loopback(addr.ip()) || tokens.iter().any(|token| token.is_some());
            let keys = ["listen", "token", "capture_token", "read_token"];
            check.require(is_valid, &keys, || {
                format!(
                    "{addr} can be reached from other machines: set `token` or `token_file`, or \
                     listen on 127.0.0.1 or a Unix socket"
                )
            });
        }
        Listen::Unix(path) => {
            let length = path.as_os_str().len();
            check.require((1..=MAX_SOCKET_PATH_LEN).contains(&length), &["listen"], || {
                format!(
                    "the socket path has {length} bytes: write 1 to {MAX_SOCKET_PATH_LEN} bytes"
                )
            });
        }
    }
    let tokens = [
        ("token", &http.token),
        ("capture_token", &http.capture_token),
        ("read_token", &http.read_token),
    ];
    for (index, (key, token)) in tokens.into_iter().enumerate() {
        let Some(token) = token else { continue };
        check.require(token.is_sendable(), &[key], || {
            "the token cannot be sent in a header: write visible ASCII characters without spaces"
                .to_owned()
        });
        for (other_key, other) in tokens.into_iter().take(index) {
            check.require(other.as_ref() != Some(token), &[key, other_key], || {
                format!("the token equals `{other_key}`, which grants more: use separate tokens")
            });
        }
    }
    check.require_positive("max_duration", http.max_duration);
    let is_valid = (1..=MAX_REQUESTS_PER_SECOND).contains(&http.max_requests_per_second);
    check.require(is_valid, &["max_requests_per_second"], || {
        let rate = http.max_requests_per_second;
        format!("{rate} is out of bounds: write 1 to {MAX_REQUESTS_PER_SECOND}")
    });
    for host in &http.allowed_hosts {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_valid = !host.is_empty() && host.chars().all(is_allowed);
        check.require(is_valid, &["allowed_hosts"], || {
            format!("`{host}` is not a host name: write it without scheme and port")
        });
    }
}

/// Returns `true` if `ip` is a loopback address, including IPv4 mapped to IPv6.
fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn check_rule(check: &mut Validator, rule: &Rule) {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    let name = &rule.name;
    let is_valid = (1..=MAX_NAME_LEN).contains(&name.len()) && name.chars().all(is_allowed);
    check.require(is_valid, &["name"], || {
        format!(
            "`{name}` is not a valid rule name: write 1 to {MAX_NAME_LEN} lower-case letters, \
             digits, `-` or `_`"
        )
    });
    if let Some(custom_name) = rule.metric.custom_name() {
        check.require(is_valid_custom_name(custom_name), &["metric"], || {
            format!(
                "`{custom_name}` is not a valid metric name: write 1 to {MAX_CUSTOM_NAME_LEN} \
                 lower-case letters, digits, `_` and `.`, as in the code that registers the metric"
            )
        });
    }
    let fires_above = rule.abs.is_some() || rule.diff.is_some() || rule.forecast.is_some();
    let is_scarce = rule.metric.lower_is_worse();
    check.require(
        fires_above || rule.below.is_some(),
        &["abs", "diff", "forecast", "below"],
        || {
            let conditions =
                if is_scarce { "`below`" } else { "`abs`, `diff`, `forecast` or `below`" };
            format!("the rule can never fire: set {conditions}")
        },
    );
    let has_one_direction = !(fires_above && rule.below.is_some());
    check.require(has_one_direction, &["below", "abs", "diff", "forecast"], || {
        "`below` cannot be combined with `abs`, `diff` or `forecast`: use a separate rule"
            .to_owned()
    });
    check.require(!(fires_above && is_scarce), &["metric", "abs", "diff", "forecast"], || {
        format!("lower values of {} are worse: use `below`", rule.metric)
    });
    if rule.forecast.is_some() {
        check.require(rule.metric.has_limit(), &["forecast", "metric"], || {
            format!("{} has no limit to forecast: use `abs` or `diff`", rule.metric)
        });
    }
    thresholds::check_thresholds(check, rule);
    check.require(!rule.capture.is_empty(), &["capture"], || {
        format!("nothing to capture: name at least one of {CAPTURE_KINDS}")
    });
    check.require_positive("duration", rule.duration);
}
