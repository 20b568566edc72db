//! A registry of features that do not work in this process, or work in a degraded way.
//!
//! Each layer reports here the resources that the machine, the kernel or the host's limits deny it.
//! The agent logs each change once and lists all entries in `/status`, so that no feature fails
//! silently.
//!
//! The registry is a process-wide static because its reporters are: engines, the allocator and
//! signal handlers exist once per process. It holds at most `MAX_WARNINGS` entries, one per topic.

use crate::base::sync::Mutex;
use std::collections::BTreeMap;
use std::sync::PoisonError;

use jiff::Timestamp;
use serde::Serialize;

/// Maximum number of topics. There is one per feature, so exceeding it is a bug in a reporter.
const MAX_WARNINGS: usize = 64;

static REGISTRY: Mutex<WarningRegistry> = Mutex::new(WarningRegistry::new());

/// A feature that does not work in this process, or works in a degraded way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Warning {
    /// The feature: a settings key if there is one (`"http.listen"`, `"cpu.engine"`), else a short
    /// name.
    pub topic: &'static str,
    /// Description of the problem, its cause and its remedy.
    pub text: String,
    /// Wall-clock time at which this text was reported.
    pub since: Timestamp,
}

#[derive(Debug, Default)]
struct WarningRegistry {
    entries: BTreeMap<&'static str, Warning>,
    /// Topics whose text changed or that were cleared since the last [`take_changes`].
    changed: Vec<&'static str>,
}

impl WarningRegistry {
    const fn new() -> Self {
        Self { entries: BTreeMap::new(), changed: Vec::new() }
    }

    fn set(&mut self, topic: &'static str, text: String, since: Timestamp) {
        let is_known = self.entries.get(topic).is_some_and(|entry| entry.text == text);
        let is_full = self.entries.len() >= MAX_WARNINGS && !self.entries.contains_key(topic);
        if is_known || is_full {
            return;
        }
        self.entries.insert(topic, Warning { topic, text, since });
        self.mark_changed(topic);
    }

    fn clear(&mut self, topic: &'static str) {
        if self.entries.remove(topic).is_some() {
            self.mark_changed(topic);
        }
    }

    fn mark_changed(&mut self, topic: &'static str) {
        if !self.changed.contains(&topic) {
            self.changed.push(topic);
        }
    }

    fn take_changes(&mut self) -> Vec<WarningChange> {
        let changed = std::mem::take(&mut self.changed);
        let change = |topic| match self.entries.get(topic) {
            Some(warning) => WarningChange::Set(warning.clone()),
            None => WarningChange::Cleared(topic),
        };
        changed.into_iter().map(change).collect()
    }
}

/// A change of the registry that has not been logged yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WarningChange {
    /// A warning was reported or its text changed.
    Set(Warning),
    /// The feature works again.
    Cleared(&'static str),
}

/// Reports that `topic` does not work as expected. Replaces an earlier text for the same topic.
///
/// Takes a lock and allocates: must not be called from signal handlers or the allocator.
pub fn set(topic: &'static str, text: impl Into<String>) {
    with_registry(|registry| registry.set(topic, text.into(), Timestamp::now()));
}

/// Reports that `topic` works again.
pub fn clear(topic: &'static str) {
    with_registry(|registry| registry.clear(topic));
}

/// Returns all warnings in force, ordered by topic.
pub fn list() -> Vec<Warning> {
    with_registry(|registry| registry.entries.values().cloned().collect())
}

/// Returns the changes since the previous call. The agent logs them.
pub fn take_changes() -> Vec<WarningChange> {
    with_registry(WarningRegistry::take_changes)
}

fn with_registry<T>(use_registry: impl FnOnce(&mut WarningRegistry) -> T) -> T {
    use_registry(&mut REGISTRY.lock().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(registry: &mut WarningRegistry) -> Vec<String> {
        let text = |change| match change {
            WarningChange::Set(warning) => format!("{}: {}", warning.topic, warning.text),
            WarningChange::Cleared(topic) => format!("{topic} cleared"),
        };
        registry.take_changes().into_iter().map(text).collect()
    }

    #[test]
    fn reports_each_change_once() {
        let mut registry = WarningRegistry::new();
        let now = Timestamp::UNIX_EPOCH;
        registry.set("http.listen", "port 1 is in use".into(), now);
        registry.set("http.listen", "port 1 is in use".into(), now);
        assert_eq!(texts(&mut registry), ["http.listen: port 1 is in use"]);
        registry.set("http.listen", "port 1 is in use".into(), now);
        assert_eq!(texts(&mut registry), [] as [&str; 0]);
        registry.clear("http.listen");
        registry.clear("http.listen");
        assert_eq!(texts(&mut registry), ["http.listen cleared"]);
    }

    #[test]
    fn number_of_topics_is_bounded() {
        let mut registry = WarningRegistry::new();
        for number in 0..=MAX_WARNINGS {
            registry.set(
                Box::leak(format!("topic {number}").into_boxed_str()),
                "x".into(),
                Timestamp::UNIX_EPOCH,
            );
        }
        assert_eq!(registry.entries.len(), MAX_WARNINGS);
    }
}
