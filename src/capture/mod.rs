//! The capture thread: collectors, artifacts and on-demand captures.
//!
//! ```text
//!   CaptureCommand ──► worker ──────► collectors ──► evidence ──► store (artifacts, manifest)
//!                      (incidents)    custom_collectors
//!                 ──► on_demand ───► collectors ──► on_demand_encoder ──► reply to the client
//!   CaptureResult ◄── each
//! ```
//!
//! Only this thread starts and stops collectors and writes files. It performs one command at a
//! time; the next one is computed by `policy` when the previous result has arrived. It has no
//! access to the agent's state: commands contain every value they need.

pub(crate) mod callbacks;
pub(crate) mod collectors;
pub(crate) mod custom_collectors;
#[cfg(feature = "heap")]
pub(crate) mod heap_writer;
#[cfg(feature = "heap")]
pub(crate) mod memory_summary;
pub(crate) mod messages;
pub(crate) mod on_demand;
mod on_demand_encoder;
pub(crate) mod own_thread;
mod profile_response;
pub(crate) mod thread;
pub(crate) mod worker;
