//! An incident that was removed, as it is reported.

use std::fmt;
use std::time::Duration;

use super::error::Bound;
use crate::base::{Bytes, IncidentId};

/// An incident that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The incident.
    pub id: IncidentId,
    /// Its size.
    pub bytes: Bytes,
    /// The bound that did not hold with it.
    pub bound: Bound,
    /// The rule, as in its directory's name.
    pub rule: String,
    /// How old it was.
    pub age: Duration,
}

impl fmt::Display for Removed {
    /// One line for a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, bytes, bound, rule, age } = self;
        let hours = age.as_secs() / 3600;
        write!(f, "incident {id} of `{rule}` removed: {} ({bytes}, ", bound.name())?;
        match hours / 24 {
            0 => write!(f, "{hours} h old)"),
            days => write!(f, "{days} days old)"),
        }
    }
}
