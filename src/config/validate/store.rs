//! Checks of the store's limits.

use std::time::Duration;

use super::Validator;
use crate::base::{Bytes, Percent};
use crate::config::{DiskReserve, Settings};

/// Minimum size of one incident with one artifact of each kind.
const MIN_STORE_BYTES: Bytes = Bytes::mib(1);

/// Names of incidents that were not opened by a rule.
const MANUAL_INCIDENT_NAMES: [&str; 2] = ["toggle", "call"];

pub(super) fn check_store(check: &mut Validator, settings: &Settings) {
    let store = &settings.store;
    check.in_section("store.", |check| {
        check_limits(check, Some(store.max_bytes), Some(store.max_incidents), Some(store.max_age));
        check.require_at_least(
            "max_bytes_per_incident",
            store.max_bytes_per_incident,
            MIN_STORE_BYTES,
        );
        if let DiskReserve::Percent(Percent(share)) = store.min_free_space {
            check.require((0.0..100.0).contains(&share), &["min_free_space"], || {
                format!("{share} % is not a valid share of the disk: write \"0%\" to \"99%\"")
            });
        }
    });
    for (name, rule) in &store.rules {
        let is_known = MANUAL_INCIDENT_NAMES.contains(&name.as_str())
            || settings.rules.iter().any(|rule| rule.name == *name);
        check.require(is_known, &[&format!("store.rule.{name}")], || {
            format!("no rule has the name `{name}`: write the name of a rule, `toggle` or `call`")
        });
        check.in_section(&format!("store.rule.{name}."), |check| {
            check_limits(check, rule.max_bytes, rule.max_incidents, rule.max_age);
        });
    }
}

fn check_limits(
    check: &mut Validator,
    bytes: Option<Bytes>,
    incidents: Option<usize>,
    age: Option<Duration>,
) {
    if let Some(bytes) = bytes {
        check.require_at_least("max_bytes", bytes, MIN_STORE_BYTES);
    }
    check.require(incidents != Some(0), &["max_incidents"], || {
        "0 keeps no incidents: write 1 or more".to_owned()
    });
    if let Some(age) = age {
        check.require_positive("max_age", age);
    }
}
