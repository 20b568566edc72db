//! What the runtime did, and when: polls, parked workers, spans, events, and the vitals as counters.
//!
//! There are two recorders, since what they record differs by orders of magnitude in number and in size.
//!
//! ```text
//! tokio's hooks ──┐ 16 bytes at its end
//! wrapped futures ┴─> the thread's own rings ──> flight: window before + what followed ─┐
//!                                                                                        ├─> Timeline
//! tracing layer ──── begin, end, instant ─────> the thread's own log ───────> assemble ──┤
//! agent ── vitals, instants ──────────────────> the ledger ──────────────────────────────┘
//! ```
//!
//! **Polls and parks** go into rings (`thread.rs`, `ring.rs`), by default all the time: an event is two
//! reads of the CPU's counter and a few stores, nothing is locked, allocated or encoded, and the ring
//! forgets by itself. So a capture begins with the seconds before it (`flight.rs`). Sources, by how the
//! program is built: under `--cfg tokio_unstable` tokio's hooks see every poll of every task
//! (`unstable.rs`); else the futures that were wrapped show (`task.rs`); parks come by hooks either way.
//! [`engine`] names what there is, in the manifest and in the trace.
//!
//! The slices that threads are in also tell of polls that do not come to an end (`stalls.rs`).
//!
//! **Spans and events** are recorded while a session runs, and not before: their fields are texts, and to
//! keep those of every span for a capture that may never come is not cheap (`layer.rs`).
//!
//! * **Off** costs one relaxed load per span entered, event, poll or park; no clock is read, nothing is
//!   allocated, no field is formatted.
//! * **On**, a thread writes a span's 40-byte records into chunks of its own (`log.rs`): an uncontended
//!   lock, one clock read, one write. The collector takes a log's lock once, at stop, and the thread never
//!   waits for it: a record that meets it is one that came after the stop.
//! * **Bounded**: rings have their share (`flight.rs`). Everything else is paid for at the price of its
//!   dearest moment, which is the making of the [`Timeline`] and not the recording (`budget.rs`), so that a
//!   capture of a process short of memory does not double at its stop. What cannot be paid for is counted
//!   by cause and goes into the timeline's losses. An eighth is kept for the ledger: a flood of spans does
//!   not wash away the vitals or the trigger. The ledger begins with the vitals of the two minutes before.
//! * **True**: a span's begin pays for its end too, so that every recorded slice that ended is seen to end;
//!   a lost begin takes its end with it. Spans open when the session begins are found at their end and are
//!   shown from the session's start; one that neither begins nor ends during the session is not shown,
//!   since knowing of it would cost every span a write while nothing records. Slices open at the stop have
//!   a begin and no end.
//!
//! Timestamps, strings and tracks are the timeline's business; here are `&'static` metadata, ticks and
//! moments. The obvious alternative, a channel to a collecting thread (tracing-chrome, fastrace), needs
//! that thread to run while the process is in trouble, and copies every text with every event.
//!
//! [`Timeline`]: crate::model::Timeline

mod assemble;
mod budget;
mod fields;
mod flight;
mod hooks;
mod layer;
mod ledger;
mod log;
mod loss;
mod recorder;
mod registry;
mod ring;
mod session;
mod sites;
pub(crate) mod stalls;
mod task;
mod thread;
mod unstable;

pub use flight::configure;
pub use hooks::{Hooks, instrument};
pub use layer::{Layer, layer};
pub use ledger::{record_instant, record_vitals};
pub use recorder::engine;
pub use session::{Error, Session};
pub(crate) use task::Node;
