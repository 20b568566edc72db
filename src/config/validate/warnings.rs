//! Warnings about valid settings that are probably mistakes.

use crate::config::Settings;
use crate::model::{Amount, Metric, Rule, Unit};

impl Settings {
    /// Returns a sentence for each valid setting that is probably a mistake. The agent logs them
    /// and lists them in the `warnings` of `/status`.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for rule in &self.rules {
            let with_rule =
                |(key, text): (&str, String)| format!("rule `{}`: {key}: {text}", rule.name);
            warnings.extend(rule_warnings(self, rule).into_iter().map(with_rule));
        }
        warnings
    }
}

fn rule_warnings(settings: &Settings, rule: &Rule) -> Vec<(&'static str, String)> {
    let mut warnings = Vec::new();
    let unit = rule.metric.unit();
    let is_share = matches!(rule.metric, Metric::Memory | Metric::Cpu | Metric::FdUtilization);
    for (key, value) in [("abs", rule.abs), ("critical", rule.critical), ("clear", rule.clear)] {
        let is_fraction = |value: &f64| is_share && 0.0 < *value && *value < 1.0;
        if let Some(value) = value.filter(is_fraction) {
            let shown = Amount { value, unit };
            let meant = value * 100.0;
            warnings
                .push((key, format!("{shown} is less than one per cent; did you mean {meant} %?")));
        }
    }
    if let Some(diff) = rule.diff.filter(|diff| *diff < 1.0) {
        let meant = diff * 100.0;
        warnings
            .push(("diff", format!("{diff} is less than one per cent; did you mean {meant} %?")));
    }
    let is_full = |abs: &f64| unit == Unit::Percent && *abs >= 100.0;
    if rule.abs.filter(is_full).is_some() && rule.diff.is_none() && rule.forecast.is_none() {
        warnings
            .push(("abs", format!("{} rarely exceeds 100 %: write a lower value", rule.metric)));
    }
    let cooldown = rule.cooldown;
    let interval = settings.interval;
    if !cooldown.is_zero() && cooldown < interval {
        let text =
            format!("{cooldown:?} is shorter than interval ({interval:?}) and has no effect");
        warnings.push(("cooldown", text));
    }
    // A rise needs at least two values.
    if let Some(forecast) = rule.forecast.filter(|within| *within < 2 * interval) {
        let text = format!(
            "{forecast:?} is too short for an interval of {interval:?}: write at least \
             twice the interval"
        );
        warnings.push(("forecast", text));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn warnings_of(rule: Rule) -> Vec<String> {
        Settings { rules: vec![rule], ..Settings::default() }.warnings()
    }

    #[test]
    fn warns_about_probable_mistakes() {
        assert_eq!(Settings::default().warnings(), Vec::<String>::new());
        let memory = |abs| Rule { abs: Some(abs), ..Rule::new(Metric::Memory) };
        let warnings = warnings_of(memory(0.8));
        assert_eq!(
            warnings,
            ["rule `memory`: abs: 0.8 % is less than one per cent; did you mean 80 %?"]
        );
        for (rule, expected) in [
            (memory(100.0), "rarely exceeds 100 %"),
            (Rule { cooldown: Duration::from_millis(100), ..memory(80.0) }, "has no effect"),
            (Rule { forecast: Some(Duration::from_millis(100)), ..memory(80.0) }, "too short"),
            (Rule { diff: Some(0.25), ..memory(80.0) }, "did you mean 25 %?"),
        ] {
            let warnings = warnings_of(rule);
            assert!(warnings.len() == 1 && warnings[0].contains(expected), "{warnings:?}");
        }
        // Half a per cent of the time is a pressure that can need a rule.
        assert!(
            warnings_of(Rule { abs: Some(0.5), ..Rule::new(Metric::MemoryPressure) }).is_empty()
        );
        assert!(warnings_of(Rule { cooldown: Duration::ZERO, ..memory(80.0) }).is_empty());
    }
}
