//! Warnings about valid settings that are probably mistakes.

use crate::config::Settings;
use crate::model::{Amount, Metric, Rule, Unit};

impl Settings {
    /// Returns a sentence for each valid setting that is probably a mistake. The agent logs them
    /// and lists them in the `warnings` of `/status`.
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        for rule in &self.rules {
            let of_rule =
                |(key, text): (&str, String)| format!("rule `{}`: {key}: {text}", rule.name);
            doubts.extend(of(self, rule).into_iter().map(of_rule));
        }
        doubts
    }
}

fn of(settings: &Settings, rule: &Rule) -> Vec<(&'static str, String)> {
    let mut doubts = Vec::new();
    let unit = rule.metric.unit();
    let is_share = matches!(rule.metric, Metric::Memory | Metric::Cpu | Metric::FdShare);
    for (key, value) in [("abs", rule.abs), ("critical", rule.critical), ("clear", rule.clear)] {
        let is_fraction = |value: &f64| is_share && 0.0 < *value && *value < 1.0;
        if let Some(value) = value.filter(is_fraction) {
            let (shown, meant) = (Amount { value, unit }, value * 100.0);
            doubts
                .push((key, format!("{shown} is less than one per cent; did you mean {meant} %?")));
        }
    }
    if let Some(diff) = rule.diff.filter(|diff| *diff < 1.0) {
        let meant = diff * 100.0;
        doubts.push(("diff", format!("{diff} is less than one per cent; did you mean {meant} %?")));
    }
    let is_full = |abs: &f64| unit == Unit::Percent && *abs >= 100.0;
    if rule.abs.filter(is_full).is_some() && rule.diff.is_none() && rule.forecast.is_none() {
        doubts.push(("abs", format!("{} is hardly ever above 100 %: write less", rule.metric)));
    }
    let (cooldown, interval) = (rule.cooldown, settings.interval);
    if !cooldown.is_zero() && cooldown < interval {
        let text =
            format!("{cooldown:?} is shorter than interval ({interval:?}) and has no effect");
        doubts.push(("cooldown", text));
    }
    // A rise needs at least two values.
    if let Some(within) = rule.forecast.filter(|within| *within < 2 * interval) {
        let text = format!("{within:?} is too short to be seen at an interval of {interval:?}");
        doubts.push(("forecast", text));
    }
    doubts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn doubts(rule: Rule) -> Vec<String> {
        Settings { rules: vec![rule], ..Settings::default() }.doubts()
    }

    #[test]
    fn what_is_most_likely_not_meant_is_said() {
        assert_eq!(Settings::default().doubts(), Vec::<String>::new());
        let memory = |abs| Rule { abs: Some(abs), ..Rule::on(Metric::Memory) };
        let told = doubts(memory(0.8));
        assert_eq!(
            told,
            ["rule `memory`: abs: 0.8 % is less than one per cent; did you mean 80 %?"]
        );
        for (rule, expected) in [
            (memory(100.0), "hardly ever above 100 %"),
            (Rule { cooldown: Duration::from_millis(100), ..memory(80.0) }, "has no effect"),
            (Rule { forecast: Some(Duration::from_millis(100)), ..memory(80.0) }, "too short"),
            (Rule { diff: Some(0.25), ..memory(80.0) }, "did you mean 25 %?"),
        ] {
            let told = doubts(rule);
            assert!(told.len() == 1 && told[0].contains(expected), "{told:?}");
        }
        // Half a per cent of the time is a pressure that can need a rule.
        assert!(doubts(Rule { abs: Some(0.5), ..Rule::on(Metric::MemoryPressure) }).is_empty());
        assert!(doubts(Rule { cooldown: Duration::ZERO, ..memory(80.0) }).is_empty());
    }
}
