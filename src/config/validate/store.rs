//! Checks of the store's limits.

use std::time::Duration;

use super::Check;
use crate::base::{Bytes, Percent};
use crate::config::{DiskReserve, Settings};

/// Minimum size of one incident with one artifact of each kind.
const MIN_BYTES: Bytes = Bytes::mib(1);

/// Names of incidents that were not opened by a rule.
const ASKED_FOR: [&str; 2] = ["toggle", "call"];

pub(super) fn judge(check: &mut Check, settings: &Settings) {
    let store = &settings.store;
    check.under("store.", |check| {
        bounds(check, Some(store.max_bytes), Some(store.max_incidents), Some(store.max_age));
        check.at_least("max_incident_bytes", store.max_incident_bytes, MIN_BYTES);
        if let DiskReserve::Percent(Percent(share)) = store.keep_free {
            check.that((0.0..100.0).contains(&share), &["keep_free"], || {
                format!("{share} % is no share that leaves room: write \"0%\" to \"99%\"")
            });
        }
    });
    for (name, rule) in &store.rules {
        let known = ASKED_FOR.contains(&name.as_str())
            || settings.rules.iter().any(|rule| rule.name == *name);
        check.that(known, &[&format!("store.rule.{name}")], || {
            format!("no rule is called `{name}`: write a rule's name, `toggle` or `call`")
        });
        check.under(&format!("store.rule.{name}."), |check| {
            bounds(check, rule.max_bytes, rule.max_incidents, rule.max_age);
        });
    }
}

fn bounds(
    check: &mut Check,
    bytes: Option<Bytes>,
    incidents: Option<usize>,
    age: Option<Duration>,
) {
    if let Some(bytes) = bytes {
        check.at_least("max_bytes", bytes, MIN_BYTES);
    }
    check.that(incidents != Some(0), &["max_incidents"], || {
        "0 would keep no incident: write 1 or more".to_owned()
    });
    if let Some(age) = age {
        check.positive("max_age", age);
    }
}
