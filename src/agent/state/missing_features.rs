//! Cargo features that this build lacks, and the settings that need them.

use std::fmt::Write as _;

use crate::base::warnings;
use crate::capture::collectors::missing_feature;
use crate::config::{Settings, default_rules};
use crate::model::{CaptureKind, CaptureSet, CpuEngine, Rule};

const TOPIC: &str = "build";

/// Warns about the parts of `settings` that need a missing feature.
pub(super) fn warn_about_missing_features(settings: &Settings) {
    let text = describe_missing(settings, |kind| missing_feature(kind).map(|feature| feature.name));
    match text.is_empty() {
        true => warnings::clear(TOPIC),
        false => warnings::set(TOPIC, text),
    }
}

pub(super) fn missing_features() -> Vec<&'static str> {
    let capture_features =
        CaptureKind::ALL.into_iter().filter_map(missing_feature).map(|feature| feature.name);
    let http = cfg!(not(feature = "http")).then_some("http");
    capture_features.chain(http).collect()
}

/// Describes the parts of `settings` that need a missing feature. `feature_of` returns the missing
/// feature of a kind.
fn describe_missing(
    settings: &Settings,
    feature_of: impl Fn(CaptureKind) -> Option<&'static str>,
) -> String {
    let mut text = String::new();
    let mut append = |what: &str, feature: &str| {
        let separator = if text.is_empty() { "" } else { "; " };
        let _ = write!(
            text,
            "{separator}{what} has no effect: marple is built without its `{feature}` feature; add \
             it in Cargo.toml"
        );
    };
    let defaults = Settings::default();
    if settings.http.is_some() && cfg!(not(feature = "http")) {
        append("[http]", "http");
    }
    let is_pprof_engine = settings.cpu.engine == CpuEngine::Pprof;
    if is_pprof_engine && cfg!(all(target_os = "linux", feature = "cpu", not(feature = "pprof"))) {
        append("cpu.engine = \"pprof\"", "pprof");
    }
    for (kind, section, is_set) in [
        (CaptureKind::Cpu, "[cpu]", settings.cpu != defaults.cpu),
        (CaptureKind::Heap, "[heap]", settings.heap != defaults.heap),
        (CaptureKind::Trace, "[trace]", settings.trace != defaults.trace),
    ] {
        if let Some(feature) = feature_of(kind).filter(|_| is_set) {
            append(section, feature);
        }
    }
    // A set of all kinds is skipped, because it does not request a particular one.
    let default_rules = default_rules();
    let is_own = |rule: &&Rule| !default_rules.contains(rule);
    let own_rules = settings.rules.iter().filter(is_own);
    let sets = own_rules
        .map(|rule| (format!("rule `{}`: capture", rule.name), rule.capture))
        .chain([("toggle.capture".to_owned(), settings.toggle.capture)]);
    for (subject, set) in sets.filter(|(_, set)| *set != CaptureSet::all()) {
        for kind in set.iter() {
            if let Some(feature) = feature_of(kind) {
                append(&format!("{subject} \"{kind}\""), feature);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TraceSettings;
    use crate::model::{Metric, TraceMode};

    #[test]
    fn missing_features_are_reported_if_settings_request_them() {
        let report = |settings: &Settings| {
            describe_missing(settings, |kind| match kind {
                CaptureKind::Cpu => Some("cpu"),
                CaptureKind::Trace => Some("trace"),
                _ => None,
            })
        };
        assert_eq!(report(&Settings::default()), "", "default rules request no particular kind");
        let mut settings = Settings::default();
        settings.rules.push(Rule { abs: Some(1.0), ..Rule::new(Metric::Fds) });
        assert_eq!(report(&settings), "", "a capture of everything requests no particular kind");
        let rule = Rule {
            abs: Some(1.0),
            capture: [CaptureKind::Cpu, CaptureKind::Heap].into(),
            ..Rule::new(Metric::Fds)
        };
        settings.rules.push(rule);
        settings.trace = TraceSettings { mode: TraceMode::Off, ..settings.trace };
        let text = report(&settings);
        assert!(text.starts_with("[trace] has no effect"), "{text}");
        assert!(text.contains("rule `fds`: capture \"cpu\" has no effect"), "{text}");
        assert!(!text.contains("heap"), "{text}");
    }
}
