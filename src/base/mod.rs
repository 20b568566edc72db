//! Shared foundations that depend on no other layer: clocks, units, ids, logging and the public
//! error.

mod clock;
mod code_file;
mod error;
pub(crate) mod failure;
mod fork_mutex;
mod forked;
mod host_panic;
mod id;
pub(crate) mod least_squares;
pub(crate) mod log;
pub(crate) mod panic_log;
#[cfg(test)]
pub(crate) mod panicking_clock;
pub(crate) mod panics;
pub(crate) mod random;
mod reading;
pub(crate) mod retry;
pub(crate) mod side_thread;
mod site;
pub(crate) mod spare;
pub(crate) mod standstill;
pub(crate) mod sync;
pub mod thread_start;
pub(crate) mod token_bucket;
mod units;
pub mod warnings;

pub use clock::{Clock, ManualClock, Moment, SystemClock, TimeAnchor};
pub use code_file::CodeFile;
pub use error::{Error, ErrorKind};
pub(crate) use forked::{ForkAwareFlag, ProcessBound, enter_child};
pub use id::IncidentId;
pub use log::LogStatus;
pub use panic_log::{PanicLocation, RecordedPanics};
pub use panics::ThreadPanics;
pub use reading::{ClockReading, Elapsed, EventTime};
pub use site::{MAX_SITES, SITE_BITS, SpawnSite};
pub use units::{Bytes, Hertz, ParseBytesError, Percent};
pub use warnings::Warning;
