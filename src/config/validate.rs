//! Checks of settings values, for files and for settings made in code. Each finding lists the keys
//! it depends on, the first being the one to change. A reader of files can thus find the line, and
//! can drop findings that follow from another problem.

mod doubts;
mod store;
mod thresholds;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::problem::{Problem, Problems};
use super::settings::{HttpSettings, Listen, Settings};
use crate::base::{Bytes, Percent};
use crate::model::{MAX_OWN_NAME, Rule, is_own_name};

/// Below the minimum, ticks cost the host too much CPU; above the maximum, an incident can end
/// unnoticed.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(60 * 60));
/// Two pages of events for each of eight threads. With less, the trace is useless.
const MIN_TRACE_BYTES: Bytes = Bytes::kib(64);
/// Below the minimum, a poll that merely waits for a CPU would be a stall.
const STALL: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(60));
const TRACE_WINDOW: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10 * 60));
/// At higher rates the handler's time shows in the profile.
const MAX_FREQUENCY: u32 = 1000;
/// At higher rates the look-back would cost as much as a capture.
const MAX_LOOKBACK_FREQUENCY: u32 = 99;
/// Below the minimum there is no useful look-back; older samples are unrelated to the cause.
const LOOKBACK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10 * 60));
/// Every rule is evaluated at every tick.
const MAX_RULES: usize = 100;
/// Each incident is a line of `state.json`, whose size is limited. One a minute is more than can be
/// read.
const MAX_INCIDENTS_PER_DAY: usize = 1440;
/// About 100 captures per second, beyond any real use. `state.json` holds 100 numbers at any limit.
const MAX_STREAMS_PER_DAY: usize = 10_000_000;
/// No limit in effect: one request takes longer than a microsecond.
const MAX_REQUESTS_PER_SECOND: u32 = 1_000_000;
/// A longer task dump would block the capture thread for the rest of the incident.
const MAX_TASKS_DEADLINE: Duration = Duration::from_secs(30);
/// Kinds of captures, for messages about an empty list.
const KINDS: &str = "\"cpu\", \"heap\", \"trace\", \"threads\", \"tasks\"";
/// A file name has at most 255 bytes. It holds service and domain, or the rule, the time and an id.
const MAX_NAME: usize = 64;
/// `sizeof(sun_path) - 1`, for the trailing NUL.
const MAX_SOCKET_PATH: usize = 107;

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
                place: None,
                key: keys.into_iter().next().unwrap_or_default(),
                message,
            })
            .collect();
        if problems.is_empty() { Ok(()) } else { Err(Problems::new(None, problems)) }
    }
}

/// Returns all problems of `settings`.
pub(super) fn findings(settings: &Settings) -> Vec<Finding> {
    let mut check = Check::default();
    general(&mut check, settings);
    if let Some(settings) = &settings.http {
        check.under("http.", |check| http(check, settings));
    }
    let mut names = BTreeMap::new();
    for (index, settings) in settings.rules.iter().enumerate() {
        check.under(&format!("rule[{index}]."), |check| rule(check, settings));
        if let Some(first) = names.insert(settings.name.as_str(), index) {
            check.found(
                vec![format!("rule[{index}].name"), format!("rule[{first}].name")],
                format!("`{}` is the name of another rule too: give each its own", settings.name),
            );
        }
    }
    check.findings
}

#[derive(Default)]
struct Check {
    findings: Vec<Finding>,
    prefix: String,
}

impl Check {
    /// Runs checks whose keys are below `prefix`.
    fn under(&mut self, prefix: &str, checks: impl FnOnce(&mut Self)) {
        let outer = std::mem::replace(&mut self.prefix, prefix.to_owned());
        checks(self);
        self.prefix = outer;
    }

    /// Records `message` about `keys` unless `well` is true.
    fn that(&mut self, well: bool, keys: &[&str], message: impl FnOnce() -> String) {
        if !well {
            let keys = keys.iter().map(|key| format!("{}{key}", self.prefix)).collect();
            self.found(keys, message());
        }
    }

    fn found(&mut self, keys: Vec<String>, message: String) {
        self.findings.push(Finding { keys, message });
    }

    /// Checks a part of a file name: no separators, not hidden, no special characters of a shell.
    fn file_name(&mut self, key: &str, name: &str) {
        let well = (1..=MAX_NAME).contains(&name.len())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !name.starts_with(['.', '-']);
        self.that(well, &[key], || {
            format!(
                "`{name}` cannot be part of a file's name: write 1 to {MAX_NAME} letters, digits, \
                 `-`, `_` or `.`, beginning with a letter, a digit or `_`"
            )
        });
    }

    fn positive(&mut self, key: &str, duration: Duration) {
        self.that(!duration.is_zero(), &[key], || {
            "no time at all: write a duration such as \"10s\"".to_owned()
        });
    }

    fn at_least(&mut self, key: &str, bytes: Bytes, floor: Bytes) {
        self.that(bytes >= floor, &[key], || {
            format!("{bytes} is too little to keep anything: write {floor} or more")
        });
    }
}

fn general(check: &mut Check, settings: &Settings) {
    check.file_name("service", &settings.service);
    check.file_name("domain", &settings.domain);
    check.that(!settings.dir.as_os_str().is_empty(), &["dir"], || {
        "no directory: write where the incidents go, such as \"captures\"".to_owned()
    });
    let (least, most) = INTERVAL;
    check.that((least..=most).contains(&settings.interval), &["interval"], || {
        format!("{:?} is out of bounds: write a duration from 10ms to 1h", settings.interval)
    });

    store::judge(check, settings);
    let budget = &settings.budget;
    let most = MAX_INCIDENTS_PER_DAY;
    let well = (1..=most).contains(&budget.incidents_per_day);
    check.that(well, &["budget.incidents_per_day"], || {
        format!("{} is out of bounds: write 1 to {most}", budget.incidents_per_day)
    });
    check.that(budget.captures_per_incident > 0, &["budget.captures_per_incident"], || {
        "0 would let no rule fire: write 1 or more, or mode = \"dry-run\" in each rule".to_owned()
    });
    let most = MAX_STREAMS_PER_DAY;
    check.that((1..=most).contains(&budget.streams_per_day), &["budget.streams_per_day"], || {
        format!("{} is out of bounds: write 1 to {most}", budget.streams_per_day)
    });
    if let Some(Percent(share)) = budget.cpu_ceiling {
        check.that((0.0..=100.0).contains(&share), &["budget.cpu_ceiling"], || {
            format!("{share} % is no share of the CPU limit: write \"0%\" to \"100%\"")
        });
    }

    let toggle = &settings.toggle;
    check.that(!toggle.capture.is_empty(), &["toggle.capture"], || {
        format!("nothing to capture: name at least one of {KINDS}")
    });
    check.positive("toggle.max_duration", toggle.max_duration);
    if let Some(path) = &toggle.trigger_file {
        check.that(path.file_name().is_some(), &["toggle.trigger_file"], || {
            format!("`{}` is not the path of a file", path.display())
        });
    }

    let (cpu, wall) = (settings.cpu.frequency.get(), settings.cpu.wall_frequency.get());
    for (key, frequency) in [("cpu.frequency", cpu), ("cpu.wall_frequency", wall)] {
        check.that((1..=MAX_FREQUENCY).contains(&frequency), &[key], || {
            format!("{frequency} is out of bounds: write 1 to {MAX_FREQUENCY} samples a second")
        });
    }
    let frequency = settings.cpu.lookback_frequency.get();
    check.that(frequency <= MAX_LOOKBACK_FREQUENCY, &["cpu.lookback_frequency"], || {
        format!(
            "{frequency} is too much for always: write 0 (off) to {MAX_LOOKBACK_FREQUENCY} samples \
             a second"
        )
    });
    let (least, most) = LOOKBACK;
    check.that((least..=most).contains(&settings.cpu.lookback), &["cpu.lookback"], || {
        format!(
            "{:?} is out of bounds: write a duration from 1s to 10m, or `lookback_frequency = 0`",
            settings.cpu.lookback
        )
    });
    if let Some(during) = settings.heap.rate_during_incident {
        let usual = settings.heap.rate;
        let finer = during > Bytes(0) && (usual == Bytes(0) || during <= usual);
        check.that(finer, &["heap.rate_during_incident", "heap.rate"], || {
            format!(
                "{during} would show less of an incident than heap.rate ({usual}) does: write a \
                 smaller size, 1 or more"
            )
        });
    }
    check.at_least("trace.max_bytes", settings.trace.max_bytes, MIN_TRACE_BYTES);
    let deadline = settings.stacks.tasks_deadline;
    let well = !deadline.is_zero() && deadline <= MAX_TASKS_DEADLINE;
    check.that(well, &["stacks.tasks_deadline"], || {
        format!("{deadline:?} is out of bounds: write a duration up to {MAX_TASKS_DEADLINE:?}")
    });
    let (least, most) = TRACE_WINDOW;
    check.that((least..=most).contains(&settings.trace.window), &["trace.window"], || {
        format!("{:?} is out of bounds: write a duration from 1s to 10m", settings.trace.window)
    });
    if let Some(stall) = settings.trace.stall {
        let (least, most) = STALL;
        check.that((least..=most).contains(&stall), &["trace.stall"], || {
            format!("{stall:?} is out of bounds: write a duration from 10ms to 1m, or \"off\"")
        });
    }
    check.that(settings.rules.len() <= MAX_RULES, &["rule"], || {
        format!("{} rules are too many: write at most {MAX_RULES}", settings.rules.len())
    });
}

fn http(check: &mut Check, http: &HttpSettings) {
    match &http.listen {
        Listen::Tcp(addr) => {
            let tokens = [&http.token, &http.capture_token, &http.read_token];
            let well = is_loopback(addr.ip()) || tokens.iter().any(|token| token.is_some());
            let keys = ["listen", "token", "capture_token", "read_token"];
            check.that(well, &keys, || {
                format!(
                    "{addr} can be reached from other machines: set `token` or `token_file`, or \
                     listen on 127.0.0.1 or a Unix socket"
                )
            });
        }
        Listen::Unix(path) => {
            let length = path.as_os_str().len();
            check.that((1..=MAX_SOCKET_PATH).contains(&length), &["listen"], || {
                format!("a socket's path has 1 to {MAX_SOCKET_PATH} bytes, this one {length}")
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
        check.that(token.is_sendable(), &[key], || {
            "cannot be sent in a header: write visible ASCII characters, without spaces".to_owned()
        });
        for (other_key, other) in tokens.into_iter().take(index) {
            check.that(other.as_ref() != Some(token), &[key, other_key], || {
                format!("is the same as `{other_key}`, which may do more: give each its own")
            });
        }
    }
    check.positive("max_duration", http.max_duration);
    let well = (1..=MAX_REQUESTS_PER_SECOND).contains(&http.max_requests_per_second);
    check.that(well, &["max_requests_per_second"], || {
        let rate = http.max_requests_per_second;
        format!("{rate} is out of bounds: write 1 to {MAX_REQUESTS_PER_SECOND}")
    });
    for host in &http.hosts {
        let letter = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let well = !host.is_empty() && host.chars().all(letter);
        check.that(well, &["hosts"], || {
            format!("`{host}` is not the name of a host: write it without a scheme and a port")
        });
    }
}

/// Returns `true` if `ip` is a loopback address, including IPv4 mapped to IPv6.
fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn rule(check: &mut Check, rule: &Rule) {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    let name = &rule.name;
    let well = (1..=MAX_NAME).contains(&name.len()) && name.chars().all(letter);
    check.that(well, &["name"], || {
        format!(
            "`{name}` is no name for a rule: write 1 to {MAX_NAME} lower-case letters, digits, \
             `-` or `_`"
        )
    });
    if let Some(own) = rule.metric.own_name() {
        check.that(is_own_name(own), &["metric"], || {
            format!(
                "no number can be called `{own}`: write 1 to {MAX_OWN_NAME} lower-case letters, digits, \
                 `_` and `.`, as in the code that makes it"
            )
        });
    }
    let rises = rule.abs.is_some() || rule.diff.is_some() || rule.forecast.is_some();
    let scarce = rule.metric.is_scarce();
    check.that(rises || rule.below.is_some(), &["abs", "diff", "forecast", "below"], || {
        let conditions = if scarce { "`below`" } else { "`abs`, `diff`, `forecast` or `below`" };
        format!("the rule can never fire: give it {conditions}")
    });
    let one_way = !(rises && rule.below.is_some());
    check.that(one_way, &["below", "abs", "diff", "forecast"], || {
        "a rule fires on too much or on too little: make `below` a rule of its own".to_owned()
    });
    check.that(!(rises && scarce), &["metric", "abs", "diff", "forecast"], || {
        format!("less of {} is worse: use `below`", rule.metric)
    });
    if rule.forecast.is_some() {
        check.that(rule.metric.has_limit(), &["forecast", "metric"], || {
            format!("{} runs up against no limit: use `abs` or `diff`", rule.metric)
        });
    }
    thresholds::judge(check, rule);
    check.that(!rule.capture.is_empty(), &["capture"], || {
        format!("nothing to capture: name at least one of {KINDS}")
    });
    check.positive("duration", rule.duration);
}
