//! Runtime tracing: polls, parked workers, spans, events, and the vitals as counters.
//!
//! There are two recorders, because what they record differs by orders of magnitude in number and
//! size.
//!
//! ```text
//! tokio's hooks ──┐ 16 bytes at its end
//! wrapped futures ┴─> the thread's rings ──> flight: window before + what follows ─┐
//!                                                                                  ├─> Timeline
//! tracing layer ── begin, end, instant ────> the thread's log ──> assemble ────────┤
//! agent ── vitals, instants ───────────────> process events ───────────────────────┘
//! ```
//!
//! **Polls and parks** go into ring buffers (`thread.rs`, `ring.rs`), by default all the time. An
//! event costs two reads of the CPU's counter and a few stores. Nothing is locked, allocated or
//! encoded, and the ring overwrites its oldest records. So a capture includes the seconds before it
//! (`flight.rs`). The source of polls depends on the build. Under `--cfg tokio_unstable`, tokio's
//! hooks report every poll of every task (`hooks/unstable.rs`). Otherwise only wrapped futures are
//! recorded (`task.rs`). Parks come from hooks in both cases. The manifest and the trace name the
//! available sources.
//!
//! The open slices of the threads also show polls that do not return (`open_polls.rs`).
//!
//! **Spans and events** are recorded only while a session runs. Their fields are texts, and keeping
//! those of every span for a capture that may never come is not cheap (`layer.rs`).
//!
//! * **Off**, each span entered, event, poll or park costs one relaxed load. No clock is read,
//!   nothing is allocated, no field is formatted.
//! * **On**, a thread writes 40-byte span records into its own chunks (`span_log.rs`): an
//!   uncontended lock, one clock read, one write. The collector takes the lock of a log once, at
//!   the stop. The thread never waits for it: a record that finds the lock taken came after the
//!   stop.
//! * **Bounded**: rings have a fixed share (`flight.rs`). Everything else is charged at its peak
//!   cost. The peak is in building the `Timeline`, not in recording (`budget.rs`). So memory use
//!   does not double at the stop of a capture, when the process may be short of memory. Data beyond
//!   the budget is counted by cause in the timeline's losses. One eighth is reserved for process
//!   events, so that a flood of spans does not displace the vitals or the trigger. They start with
//!   the vitals of the two minutes before.
//! * **Consistent**: a span's begin record also pays for its end, so every recorded slice that
//!   ended has an end. A lost begin also drops its end. Spans open at the session's start are found
//!   at their end and shown from the session's start. A span that neither begins nor ends during
//!   the session is not shown: tracking it would cost every span a write while nothing records.
//!   Slices open at the stop have a begin and no end.
//!
//! This module stores `&'static` metadata, ticks and moments. Timestamps, strings and tracks belong
//! to the timeline. The obvious alternative, a channel to a collecting thread (tracing-chrome,
//! fastrace), needs that thread to run while the process is in trouble, and copies every text with
//! every event.
//!

mod assemble;
mod budget;
mod epoch;
mod epoch_word;
mod fields;
pub(crate) mod flight;
mod hooks;
mod layer;
mod loss;
pub(crate) mod open_polls;
mod process_events;
pub(crate) mod process_recorder;
mod recorder;
mod registry;
mod ring;
pub(crate) mod session;
mod sites;
pub(crate) mod sources;
mod span_log;
mod task;
mod thread;
mod thread_rings;

pub(crate) use flight::configure;
#[doc(hidden)]
pub use hooks::instrument;
pub use hooks::{Hooks, instrument_runtime};
pub use layer::{Layer, layer};
pub(crate) use process_recorder::{record_instant, record_vitals};
pub(crate) use session::TraceSession;
pub(crate) use sources::recorded_sources;
pub(crate) use task::PollNode;
