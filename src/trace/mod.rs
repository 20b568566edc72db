//! What the runtime did, and when: spans, events, parked workers, and the vitals as counters.
//!
//! One session records at a time, for the whole process.
//!
//! ```text
//! tracing layer ──┐ begin, end, instant                          ┌ thread tracks
//! park hooks ─────┴─> the thread's own log ──┐                   │
//!                                            ├─ stop: assemble ─> Timeline ─ process track
//! agent ── vitals, instants ─> the ledger ───┘                   │
//!                                                                └ counter tracks
//! ```
//!
//! * **Off** costs one relaxed load per span entered, event or park; no clock is
//!   read, nothing is allocated, no field is formatted.
//! * **On**, a thread writes 40-byte records into chunks of its own (`log.rs`): an uncontended lock, one
//!   clock read, one write. The collector takes a log's lock once, at stop, and the thread never waits for
//!   it: a record that meets it is one that came after the stop.
//! * **Bounded**: everything kept is paid for out of `max_bytes` at the price of its dearest moment, which is
//!   the making of the [`Timeline`] and not the recording (`budget.rs`), so that a capture of a process short
//!   of memory does not double at its stop. What cannot be paid for is counted by cause and goes into the timeline's losses.
//!   An eighth is kept for the ledger: a flood of spans does not wash away the vitals or the trigger.
//! * **True**: a begin pays for its end too, so that every recorded slice that ended is seen to end; a lost
//!   begin takes its end with it. Slices open when the session begins are found at their end and are shown
//!   from the session's start; one that neither begins nor ends during the session is not shown, since
//!   knowing of it would cost every span a write while nothing records. Slices open at the stop have a
//!   begin and no end.
//!
//! Timestamps, strings and tracks are the timeline's business; here are `&'static` metadata and moments.
//! The obvious alternative, a channel to a collecting thread (tracing-chrome, fastrace), needs that thread
//! to run while the process is in trouble, and copies every text with every event.
//!
//! [`Timeline`]: crate::model::Timeline

mod assemble;
mod budget;
mod fields;
mod hooks;
mod layer;
mod ledger;
mod log;
mod loss;
mod recorder;
mod session;

pub use hooks::{Hooks, instrument};
pub use layer::{Layer, layer};
pub use ledger::{record_instant, record_vitals};
pub use recorder::engine;
pub use session::{Error, Session};
