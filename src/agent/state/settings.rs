//! Application of settings, at the start and when their file changes.

use std::sync::Arc;

use super::AgentState;
use super::missing_features::warn_about_missing_features;
use crate::agent::reload;
use crate::base::failure::error_chain;
use crate::base::{Error, log, warnings};
use crate::capture::collectors;
use crate::config::Settings;
use crate::model::{CaptureKind, CaptureSet};

impl AgentState {
    /// Applies the settings of a changed file, or keeps the current ones if it is not valid.
    pub(super) fn reload(&mut self, settings: Result<Box<Settings>, Error>) {
        let settings = match settings {
            Ok(settings) => *settings,
            Err(error) => {
                let why = error_chain(&error);
                log::error(format!(
                    "configuration reload failed, keeping the current settings: {why}"
                ));
                self.config.rejected = Some(why);
                return;
            }
        };
        let (settings, needs_restart) = reload::merge(&self.settings, settings);
        self.decider.replace(settings.rules.clone(), settings.budget.clone());
        self.dead_rules.report_again();
        self.on_demand.quota.set_limit(settings.budget.on_demand_captures_per_day);
        configure(&settings);
        let applied = log::LogEvent::new(log::LogLevel::Info, "new settings applied");
        applied.needs_restart(format_args!("{needs_restart:?}")).send();
        self.settings = Arc::new(settings);
        self.config.applied = Some(self.clock.wall());
        self.config.rejected = None;
        self.config.needs_restart = needs_restart;
    }
}

/// Configures the collectors, and warns about settings that have no effect or are most likely
/// unintended.
pub(super) fn configure(settings: &Settings) {
    warn_about_settings(settings);
    warn_about_missing_features(settings);
    warn_if_no_heap_profiles(settings);
    collectors::heap::set_rates(&settings.heap);
    collectors::trace::configure(&settings.trace);
}

/// Warns about valid `settings` that are most likely unintended.
fn warn_about_settings(settings: &Settings) {
    match settings.warnings().as_slice() {
        [] => warnings::clear("rule"),
        texts => warnings::set("rule", texts.join("; ")),
    }
}

/// Warns if `settings` request heap profiles and this program has none.
fn warn_if_no_heap_profiles(settings: &Settings) {
    let wanted = settings.rules.iter().fold(CaptureSet::EMPTY, |all, rule| all.union(rule.capture));
    match collectors::heap::unavailable_reason().filter(|_| wanted.contains(CaptureKind::Heap)) {
        Some(why) => warnings::set("heap", format!("heap profiles are unavailable: {why}")),
        None => warnings::clear("heap"),
    }
}
