//! Rules: the meaning of each setting, properties for all values, and the default rules over
//! recorded and invented histories in virtual time. Settings: the module `config`. No test here
//! starts an agent.
//!
//! Default rules in real services belong to `tests/default_rules`, changes of the settings of a
//! running agent to `tests/agent`. The allocator counts, because evaluating rules must not
//! allocate.

#[path = "../support/mod.rs"]
mod support;

mod allocation;
mod config;
mod properties;
mod replay;
mod semantics;

use crate::support::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
