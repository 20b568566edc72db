//! Settings that this build of marple does not support.

use std::fmt::Write as _;

use crate::base::warnings;
use crate::capture::collectors::missing_feature;
use crate::config::{Settings, default_rules};
use crate::model::{CaptureKind, CaptureSet, Rule};

const TOPIC: &str = "build";

/// Warns about the sections and captures in `settings` that this build does not support.
pub(super) fn report_missing(settings: &Settings) {
    let text = missing(settings, |kind| missing_feature(kind).map(|it| it.name));
    match text.is_empty() {
        true => warnings::clear(TOPIC),
        false => warnings::set(TOPIC, text),
    }
}

pub(super) fn missing_features() -> Vec<&'static str> {
    let of_kinds = CaptureKind::ALL.into_iter().filter_map(missing_feature).map(|it| it.name);
    let http = cfg!(not(feature = "http")).then_some("http");
    of_kinds.chain(http).collect()
}

/// Describes the parts of `settings` that need a missing feature. `feature_of` returns the missing
/// feature of a kind.
fn missing(
    settings: &Settings,
    feature_of: impl Fn(CaptureKind) -> Option<&'static str>,
) -> String {
    let mut text = String::new();
    let mut say = |what: &str, feature: &str| {
        let separator = if text.is_empty() { "" } else { "; " };
        let _ = write!(
            text,
            "{separator}{what} has no effect, as marple is built without its `{feature}` feature: add it in Cargo.toml"
        );
    };
    let defaults = Settings::default();
    if settings.http.is_some() && cfg!(not(feature = "http")) {
        say("[http]", "http");
    }
    for (kind, section, is_set) in [
        (CaptureKind::Cpu, "[cpu]", settings.cpu != defaults.cpu),
        (CaptureKind::Heap, "[heap]", settings.heap != defaults.heap),
        (CaptureKind::Trace, "[trace]", settings.trace != defaults.trace),
    ] {
        if let Some(feature) = feature_of(kind).filter(|_| is_set) {
            say(section, feature);
        }
    }
    // Sets of all captures are skipped: they do not request a particular kind.
    let default_rules = default_rules();
    let is_own = |rule: &&Rule| !default_rules.contains(rule);
    let of_rules = settings.rules.iter().filter(is_own);
    let sets = of_rules
        .map(|rule| (format!("rule `{}`: capture", rule.name), rule.capture))
        .chain([("toggle.capture".to_owned(), settings.toggle.capture)]);
    for (what, set) in sets.filter(|(_, set)| *set != CaptureSet::all()) {
        for kind in set.iter() {
            if let Some(feature) = feature_of(kind) {
                say(&format!("{what} \"{kind}\""), feature);
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
    fn what_the_build_lacks_is_said_where_it_is_asked_for() {
        let without = |settings: &Settings| {
            missing(settings, |kind| match kind {
                CaptureKind::Cpu => Some("cpu"),
                CaptureKind::Trace => Some("trace"),
                _ => None,
            })
        };
        assert_eq!(without(&Settings::default()), "", "the default rules capture what there is");
        let mut settings = Settings::default();
        settings.rules.push(Rule { abs: Some(1.0), ..Rule::on(Metric::Fds) });
        assert_eq!(without(&settings), "", "everything is what there is");
        let rule = Rule {
            abs: Some(1.0),
            capture: [CaptureKind::Cpu, CaptureKind::Heap].into(),
            ..Rule::on(Metric::Fds)
        };
        settings.rules.push(rule);
        settings.trace = TraceSettings { mode: TraceMode::Off, ..settings.trace };
        let text = without(&settings);
        assert!(text.starts_with("[trace] has no effect"), "{text}");
        assert!(text.contains("rule `fds`: capture \"cpu\" has no effect"), "{text}");
        assert!(!text.contains("heap"), "{text}");
    }
}
