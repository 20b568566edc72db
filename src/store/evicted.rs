//! The report of an evicted incident.

use std::fmt;
use std::time::Duration;

use super::error::StoreLimit;
use crate::base::{Bytes, IncidentId};

/// An evicted incident.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvictedIncident {
    /// Its ID.
    pub id: IncidentId,
    /// Its size.
    pub bytes: Bytes,
    /// The limit that was exceeded.
    pub limit: StoreLimit,
    /// The rule, as written in the directory name.
    pub rule: String,
    /// Its age when it was evicted.
    pub age: Duration,
}

impl fmt::Display for EvictedIncident {
    /// Writes one line for a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, bytes, limit, rule, age } = self;
        let hours = age.as_secs() / 3600;
        write!(f, "incident {id} of `{rule}` removed: {} ({bytes}, ", limit.name())?;
        match hours / 24 {
            0 => write!(f, "{hours} h old)"),
            days => write!(f, "{days} days old)"),
        }
    }
}
