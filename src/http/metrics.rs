//! Serves `/metrics`: the status in Prometheus' text format, version 0.0.4.
//!
//! Names and units follow Prometheus' rules: base units, `_total` for counters, fractions as
//! ratios. The tests run `promtool check metrics`. An unknown value is omitted, not written as 0.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use super::audit;
use crate::agent::Status;
use crate::model::{CaptureKind, FindingKind, Limits};
use crate::store::StoreUsage;

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Returns the text, about 4 KiB.
pub(super) fn render(status: &Status) -> String {
    let mut page = MetricsPage(String::with_capacity(8 << 10));
    process(&mut page, status);
    vitals(&mut page, status);
    custom_metrics(&mut page, status);
    activity(&mut page, status);
    rules(&mut page, status);
    requests(&mut page);
    page.0
}

fn process(page: &mut MetricsPage, status: &Status) {
    let info = [
        ("version", status.version),
        ("service", status.service.as_str()),
        ("service_instance", status.instance.as_str()),
    ];
    page.family("marple_build_info", "gauge", "Version of marple, and its service.");
    page.sample("marple_build_info", &info, 1.0);
    let started = status.started.as_millisecond() as f64 / 1e3;
    page.gauge(
        "marple_start_time_seconds",
        "Start of the agent, since the Unix epoch.",
        Some(started),
    );
    let rejected = f64::from(u8::from(status.config.rejected.is_some()));
    page.gauge(
        "marple_config_rejected",
        "1 if newer contents of the settings file were rejected, else 0.",
        Some(rejected),
    );
}

fn vitals(page: &mut MetricsPage, status: &Status) {
    let value = |name: &str| status.vitals.values.get(name).copied();
    let ratio = |name: &str| value(name).map(|percent| percent / 100.0);
    for (name, help, value) in [
        (
            "marple_memory_used_ratio",
            "Working set as a fraction of the memory limit.",
            ratio("memory"),
        ),
        ("marple_memory_working_set_bytes", "Working set size.", value("memory.working_set")),
        ("marple_memory_rss_bytes", "Resident set size.", value("memory.rss")),
        ("marple_cpu_used_ratio", "CPU time as a fraction of the CPU limit.", ratio("cpu")),
        ("marple_tasks", "Tasks alive on the observed runtimes.", value("tasks")),
        ("marple_threads", "Threads of the process.", value("threads")),
        ("marple_open_fds", "Open file descriptors.", value("fds")),
        ("marple_runtime_lag_seconds", "Scheduling delay of a probe task.", value("runtime.lag")),
        (
            "marple_runtime_stalled_ratio",
            "Fraction of the last ten seconds in which a runtime ran tasks over 100 ms late.",
            ratio("runtime.stalled"),
        ),
        (
            "marple_memory_time_to_limit_seconds",
            "Predicted time until the working set reaches the limit; +Inf if no limit is in sight.",
            value("memory.time_to_limit"),
        ),
    ] {
        page.gauge(name, help, value);
    }
    let Limits { memory, cpu_cores, .. } = &status.limits;
    let memory = memory.map(|bytes| bytes.get() as f64);
    page.gauge("marple_memory_limit_bytes", "Memory limit in effect.", memory);
    page.gauge("marple_cpu_limit_cores", "CPU limit in effect.", *cpu_cores);
}

/// Writes the metrics that the service registered.
fn custom_metrics(page: &mut MetricsPage, status: &Status) {
    let values = || status.vitals.values.iter().map(|(name, value)| (name.as_str(), *value));
    let gauges = values().filter_map(|(name, value)| Some((name.strip_prefix("gauge.")?, value)));
    let name = "marple_service_value";
    page.labelled_family(name, "gauge", "Gauges of the service.", "name", gauges);
    let counters = values().filter_map(|(name, value)| {
        Some((name.strip_prefix("counter.")?.strip_suffix(".total")?, value))
    });
    let name = "marple_service_total";
    page.labelled_family(name, "counter", "Counters of the service.", "name", counters);
    let name = "marple_service_distribution";
    if !status.histograms.is_empty() {
        page.family(name, "histogram", "Histograms of the service; the sum is accurate to 1.6 %.");
    }
    for histogram in &status.histograms {
        for bucket in &histogram.buckets {
            let le = bucket.upper_bound.to_string();
            let labels = [("name", histogram.name.as_str()), ("le", le.as_str())];
            page.sample(&format!("{name}_bucket"), &labels, bucket.count as f64);
        }
        let labels = [("name", histogram.name.as_str()), ("le", "+Inf")];
        page.sample(&format!("{name}_bucket"), &labels, histogram.count as f64);
        let labels = [("name", histogram.name.as_str())];
        page.sample(&format!("{name}_sum"), &labels, histogram.sum);
        page.sample(&format!("{name}_count"), &labels, histogram.count as f64);
    }
}

fn activity(page: &mut MetricsPage, status: &Status) {
    let counters = &status.counters;
    for (name, help, count) in [
        ("marple_ticks_total", "Readings of the vitals.", counters.ticks),
        ("marple_rules_fired_total", "Number of times a rule fired.", counters.fired),
        ("marple_incidents_total", "Incidents opened.", counters.incidents),
        ("marple_incidents_closed_total", "Incidents closed.", counters.incidents_closed),
        ("marple_captures_total", "Captures that succeeded.", counters.captures),
        (
            "marple_captures_failed_total",
            "Captures that failed to start or to complete.",
            counters.captures_failed,
        ),
        ("marple_artifacts_total", "Artifacts written.", counters.artifacts),
        (
            "marple_artifact_bytes_total",
            "Bytes of the artifacts written.",
            counters.artifact_bytes.get(),
        ),
        (
            "marple_incidents_removed_total",
            "Incidents evicted to enforce a limit of the store.",
            status.store.incidents_removed,
        ),
        (
            "marple_artifacts_removed_total",
            "Files removed from remaining incidents to enforce a limit of the store.",
            status.store.artifacts_removed,
        ),
        (
            "marple_on_demand_captures_total",
            "On-demand captures returned to clients.",
            counters.on_demand_captures,
        ),
        (
            "marple_on_demand_bytes_total",
            "Bytes of on-demand captures.",
            counters.on_demand_bytes.get(),
        ),
    ] {
        page.family(name, "counter", help);
        page.sample(name, &[], count as f64);
    }
    let failures = status.failures.iter().map(|loss| (&*loss.cause, loss.count as f64));
    let help = "Failures by cause.";
    page.labelled_family("marple_failures_total", "counter", help, "cause", failures);

    let StoreUsage { bytes, max_bytes, free, memory_left, .. } = status.store;
    for (name, help, value) in [
        ("marple_store_bytes", "Bytes of stored incidents.", Some(bytes)),
        ("marple_store_limit_bytes", "Maximum bytes of stored incidents.", Some(max_bytes)),
        ("marple_store_free_bytes", "Free bytes of the file system beyond min_free_space.", free),
        ("marple_store_memory_left_bytes", "Bytes left for a directory in memory.", memory_left),
    ] {
        page.gauge(name, help, value.map(|bytes| bytes.get() as f64));
    }

    let toggle = f64::from(u8::from(status.toggle.on));
    page.gauge("marple_toggle_on", "1 if the toggle is on, else 0.", Some(toggle));
    let open = status.incidents.len() as f64;
    page.gauge("marple_incidents_open", "Open incidents.", Some(open));
    findings(page, status);
    page.gauge(
        "marple_on_demand_captures_open",
        "On-demand captures in progress.",
        Some(status.on_demand_captures.len() as f64),
    );
    let budget = &status.budget;
    page.gauge(
        "marple_on_demand_captures_left",
        "On-demand captures left in the 24-hour quota.",
        Some(budget.on_demand_captures_per_day.saturating_sub(budget.on_demand_captures_24h) as f64),
    );
    let running = |kind: CaptureKind| {
        let runs = status.incidents.iter().any(|incident| incident.running.contains(kind));
        (kind.name(), f64::from(u8::from(runs)))
    };
    let running = CaptureKind::ALL.into_iter().map(running);
    let help = "1 if an open incident is capturing this kind, else 0.";
    page.labelled_family("marple_capture_running", "gauge", help, "kind", running);
}

/// Writes the first finding of each open incident. There are few, so the subjects are bounded.
fn findings(page: &mut MetricsPage, status: &Status) {
    let mut incidents: BTreeMap<(FindingKind, &str), u64> = BTreeMap::new();
    for finding in status.incidents.iter().filter_map(|incident| incident.first_finding.as_ref()) {
        *incidents.entry((finding.kind, &finding.subject)).or_default() += 1;
    }
    if !incidents.is_empty() {
        let help = "Open incidents whose first finding this is.";
        page.family("marple_finding", "gauge", help);
    }
    for ((kind, subject), count) in incidents {
        let labels = [("kind", kind.name()), ("subject", subject)];
        page.sample("marple_finding", &labels, count as f64);
    }
}

fn rules(page: &mut MetricsPage, status: &Status) {
    let values = status.rules.iter().filter_map(|rule| Some((rule.name.as_str(), rule.value?)));
    let help = "Last value of a rule's metric, in the unit of the metric.";
    page.labelled_family("marple_rule_value", "gauge", help, "rule", values);
    if !status.rules.is_empty() {
        page.family(
            "marple_rule_decision",
            "gauge",
            "Last decision of a rule, as a label with value 1.",
        );
    }
    for rule in &status.rules {
        let labels = [("rule", rule.name.as_str()), ("decision", rule.decision)];
        page.sample("marple_rule_decision", &labels, 1.0);
    }
}

fn requests(page: &mut MetricsPage) {
    let mut counts = audit::request_counts().peekable();
    if counts.peek().is_some() {
        let help = "Requests served; 499 if the client disconnected before the response.";
        page.family("marple_http_requests_total", "counter", help);
    }
    for (route, code, count) in counts {
        let code = code.to_string();
        let labels = [("route", route), ("code", code.as_str())];
        page.sample("marple_http_requests_total", &labels, count as f64);
    }
}

struct MetricsPage(String);

// Writing into a `String` cannot fail.
impl MetricsPage {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let separator = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{separator}{label}=\"{}\"", EscapedLabel(text));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = match value {
            f64::INFINITY => writeln!(self.0, "{close} +Inf"),
            _ => writeln!(self.0, "{close} {value}"),
        };
    }

    fn gauge(&mut self, name: &str, help: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.family(name, "gauge", help);
            self.sample(name, &[], value);
        }
    }

    fn labelled_family<'a>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        label: &str,
        rows: impl Iterator<Item = (&'a str, f64)>,
    ) {
        let mut rows = rows.peekable();
        if rows.peek().is_some() {
            self.family(name, kind, help);
        }
        for (text, value) in rows {
            self.sample(name, &[(label, text)], value);
        }
    }
}

/// A label value.
struct EscapedLabel<'a>(&'a str);

impl fmt::Display for EscapedLabel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            c => f.write_char(c),
        })
    }
}
