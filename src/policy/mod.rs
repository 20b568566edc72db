//! Decisions without threads, clocks or files: from vitals to incidents and captures.
//!
//! [`decider`] evaluates the rules at a tick and drives the state machines of [`incidents`], within
//! the [`incident_budget`] and the [`daily_quota`] of on-demand captures. [`replay`] runs the same
//! code over recorded vitals in virtual time. [`saved_state`] is what of it survives a restart.

pub(crate) mod daily_quota;
pub(crate) mod decider;
pub(crate) mod incident_budget;
pub(crate) mod incidents;
pub(crate) mod on_demand;
pub(crate) mod replay;
pub(crate) mod saved_state;
