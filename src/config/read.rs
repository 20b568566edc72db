//! The keys of a settings file: name, value parser and destination of each. `validate` checks the
//! values, so that settings made in code get the same checks.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::DeTable;

use super::Error;
use super::secret::Secret;
use super::section::{ParseContext, Section};
use super::settings::{
    BudgetSettings, CpuSettings, HeapSettings, HttpSettings, Settings, StacksSettings,
    StoreSettings, ToggleSettings, TraceSettings,
};
use super::{list, token_file, value};
use crate::base::{Bytes, log};
use crate::model::{Metric, Rule};

/// Settings read from a text, with the problems found.
pub(super) struct Reading<'t> {
    settings: Settings,
    context: ParseContext<'t>,
    origin: PathBuf,
}

impl Reading<'_> {
    /// Returns the settings if there are no problems.
    pub(super) fn into_result(self) -> Result<Settings, Error> {
        self.context.into_settings(self.origin, self.settings)
    }
}

/// Reads `text`, skipping what cannot be read.
pub(super) fn read<'t>(text: &'t str, origin: &Path) -> Reading<'t> {
    let mut context = ParseContext::new(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    context.add_syntax_errors(&errors);
    let mut settings = Settings::default();
    let mut root = Section::root(&mut context, table.get_ref());
    read_root(&mut root, &mut settings);
    root.finish();
    Reading { settings, context, origin: origin.to_owned() }
}

fn read_root(root: &mut Section<'_, '_>, settings: &mut Settings) {
    root.read("service", value::text, &mut settings.service);
    root.read("instance", value::text, &mut settings.instance);
    root.read("dir", value::path, &mut settings.dir);
    root.read("interval", value::duration, &mut settings.interval);
    root.section("store", |section| read_store(section, &mut settings.store));
    root.section("budget", |section| read_budget(section, &mut settings.budget));
    root.section("toggle", |section| read_toggle(section, &mut settings.toggle));
    root.section("http", |section| {
        read_http(section, settings.http.insert(HttpSettings::default()))
    });
    root.section("cpu", |section| read_cpu(section, &mut settings.cpu));
    root.section("heap", |section| read_heap(section, &mut settings.heap));
    root.section("trace", |section| read_trace(section, &mut settings.trace));
    root.section("stacks", |section| read_stacks(section, &mut settings.stacks));
    let mut include_default_rules = true;
    root.read("include_default_rules", bool::deserialize, &mut include_default_rules);
    // The line states the default, so that a service of an early version starts with it.
    if root.accept_old("rules", "default") {
        log::warn("`rules = \"default\"` is deprecated: write `include_default_rules = true`");
    }
    let default = std::mem::take(&mut settings.rules);
    root.sections("rule", |section| settings.rules.push(read_rule(section)));
    if include_default_rules {
        let own_count = settings.rules.len();
        let is_overridden =
            |rule: &Rule| settings.rules[..own_count].iter().any(|own| own.name == rule.name);
        let added: Vec<Rule> = default.into_iter().filter(|rule| !is_overridden(rule)).collect();
        settings.rules.extend(added);
    }
}

fn read_budget(section: &mut Section<'_, '_>, budget: &mut BudgetSettings) {
    section.read("incidents_per_day", value::count, &mut budget.incidents_per_day);
    section.read("captures_per_incident", value::count, &mut budget.captures_per_incident);
    section.read("min_between_incidents", value::duration, &mut budget.min_between_incidents);
    section.read("join_window", value::duration, &mut budget.join_window);
    section.read(
        "on_demand_captures_per_day",
        value::count,
        &mut budget.on_demand_captures_per_day,
    );
    section.read(
        "skip_cpu_profile_above",
        value::percent_or_off,
        &mut budget.skip_cpu_profile_above,
    );
}

fn read_store(section: &mut Section<'_, '_>, store: &mut StoreSettings) {
    section.read("max_bytes", Bytes::deserialize, &mut store.max_bytes);
    section.read("max_incidents", value::count, &mut store.max_incidents);
    section.read("max_age", value::duration, &mut store.max_age);
    section.read("min_free_space", value::disk_reserve, &mut store.min_free_space);
    section.read("max_bytes_per_incident", Bytes::deserialize, &mut store.max_bytes_per_incident);
    section.read("group_read", bool::deserialize, &mut store.group_read);
    section.named_sections("rule", |name, section| {
        let rule = store.rules.entry(name.to_owned()).or_default();
        section.read("max_bytes", Bytes::deserialize, &mut rule.max_bytes);
        section.read("max_incidents", value::count, &mut rule.max_incidents);
        section.read("max_age", value::duration, &mut rule.max_age);
    });
}

fn read_toggle(section: &mut Section<'_, '_>, toggle: &mut ToggleSettings) {
    section.read("signal", value::signal, &mut toggle.signal);
    section.read("trigger_file", value::path, &mut toggle.trigger_file);
    section.read("capture", list::captures, &mut toggle.capture);
    section.read("max_duration", value::duration, &mut toggle.max_duration);
}

fn read_http(section: &mut Section<'_, '_>, http: &mut HttpSettings) {
    section.read("listen", value::listen, &mut http.listen);
    let mut create = false;
    section.read("token_file_create", bool::deserialize, &mut create);
    read_token(section, "token", "token_file", create, &mut http.token);
    read_token(section, "capture_token", "capture_token_file", false, &mut http.capture_token);
    read_token(section, "read_token", "read_token_file", false, &mut http.read_token);
    section.read("allowed_hosts", list::strings, &mut http.allowed_hosts);
    section.read("max_duration", value::duration, &mut http.max_duration);
    section.read("max_requests_per_second", u32::deserialize, &mut http.max_requests_per_second);
    section.read("compat_get_toggle", bool::deserialize, &mut http.compat_get_toggle);
}

/// Reads a token from one of its two keys.
fn read_token(
    section: &mut Section<'_, '_>,
    key: &'static str,
    file_key: &'static str,
    create: bool,
    slot: &mut Option<Secret>,
) {
    let has_both = section.has(key) && section.has(file_key);
    let mut from_file: Option<Secret> = None;
    section.read(key, value::token_sha256, slot);
    let was_read = match create {
        true => section.read(file_key, token_file::read_or_create, &mut from_file),
        false => section.read(file_key, value::token_file, &mut from_file),
    };
    if was_read {
        *slot = from_file;
    } else if section.has(file_key) {
        section.ignore(key);
    }
    if has_both {
        section.reject(file_key, format!("`{key}` is also set: keep only one of them"));
    }
}

fn read_cpu(section: &mut Section<'_, '_>, cpu: &mut CpuSettings) {
    section.read("mode", value::cpu_mode, &mut cpu.mode);
    section.read("frequency_hz", value::hertz, &mut cpu.frequency_hz);
    section.read("wall_frequency_hz", value::hertz, &mut cpu.wall_frequency_hz);
    section.read("engine", value::engine, &mut cpu.engine);
    section.read("lookback_frequency_hz", value::hertz, &mut cpu.lookback_frequency_hz);
    section.read("lookback", value::duration, &mut cpu.lookback);
}

fn read_heap(section: &mut Section<'_, '_>, heap: &mut HeapSettings) {
    section.read("rate", Bytes::deserialize, &mut heap.rate);
    section.read("rate_during_incident", Bytes::deserialize, &mut heap.rate_during_incident);
}

fn read_trace(section: &mut Section<'_, '_>, trace: &mut TraceSettings) {
    section.read("mode", value::trace_mode, &mut trace.mode);
    section.read("max_bytes", Bytes::deserialize, &mut trace.max_bytes);
    section.read("window", value::duration, &mut trace.window);
    section.read("stall_threshold", value::duration_or_off, &mut trace.stall_threshold);
}

fn read_stacks(section: &mut Section<'_, '_>, stacks: &mut StacksSettings) {
    section.read("threads", value::threads_mode, &mut stacks.threads);
    section.read("tasks", value::tasks_mode, &mut stacks.tasks);
    section.read("tasks_deadline", value::duration, &mut stacks.tasks_deadline);
}

fn read_rule(section: &mut Section<'_, '_>) -> Rule {
    let mut metric = Metric::Memory;
    let is_metric_valid = section.read("metric", Metric::deserialize, &mut metric);
    if !section.has("metric") {
        let message = "missing key: write `metric = \"memory\"` or another metric".to_owned();
        section.reject("metric", message);
    }
    let mut rule = Rule::new(metric);
    if !section.read("name", value::text, &mut rule.name)
        && (!is_metric_valid || section.has("name"))
    {
        rule.name.clear();
        section.ignore("name");
    }
    section.read("diff", value::percent, &mut rule.diff);
    let unit = rule.metric.unit();
    let slots = [
        ("abs", &mut rule.abs),
        ("below", &mut rule.below),
        ("max", &mut rule.max),
        ("clear", &mut rule.clear),
        ("critical", &mut rule.critical),
    ];
    let mut min = Some(rule.min);
    for (key, slot) in slots.into_iter().chain([("min", &mut min)]) {
        if is_metric_valid {
            section.read(key, |value| value::threshold(unit, value), slot);
        } else {
            // Without a valid metric the unit is unknown, so any value is accepted.
            section.read(key, |_| Ok(0.0), slot);
            section.ignore(key);
        }
    }
    rule.min = min.unwrap_or(rule.min);
    section.read("forecast", value::duration, &mut rule.forecast);
    section.read("for", value::hold_durations, &mut rule.hold);
    section.read("clear_for", value::duration, &mut rule.clear_for);
    section.read("cooldown", value::duration, &mut rule.cooldown);
    section.read("refire", value::refire, &mut rule.refire);
    section.read("mode", value::mode, &mut rule.mode);
    section.read("capture", list::captures, &mut rule.capture);
    section.read("collectors", list::collectors, &mut rule.collectors);
    section.read("duration", value::duration, &mut rule.duration);
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns `config/marple.toml` with its commented-out keys enabled.
    fn uncommented() -> String {
        let text = include_str!("../../config/marple.toml");
        let line = |line: &str| {
            let key = line
                .strip_prefix('#')
                .filter(|rest| rest.starts_with(|c: char| !c.is_whitespace()));
            format!("{}\n", key.unwrap_or(line))
        };
        text.lines().map(line).collect()
    }

    #[test]
    fn marple_toml_shows_every_key() {
        let text = uncommented();
        let reading = read(&text, Path::new("marple.toml"));
        let of_example = |key: &&String| key.starts_with("rule[1].");
        let unset: Vec<_> =
            reading.context.missing_keys.iter().filter(|key| !of_example(key)).collect();
        assert!(unset.is_empty(), "{unset:?}");
        let error = reading.into_result().expect_err("a token and its file exclude each other");
        let message = error.to_string();
        for pair in ["http.token_file", "http.capture_token_file", "http.read_token_file"] {
            assert_eq!(message.matches(pair).count(), 1, "{message}");
        }
        // Likewise `below` and the other three conditions.
        assert_eq!(message.matches("rule[0].below").count(), 2, "{message}");
        assert_eq!(message.matches("marple.toml:").count(), 5, "{message}");
    }
}
