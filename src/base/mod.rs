//! What every layer may use and what uses none of them: clocks, units, ids, the public error.

mod clock;
mod error;
mod id;
#[cfg(any(feature = "heap", feature = "trace"))]
pub(crate) mod sync;
mod units;

pub use clock::{Anchor, Clock, ManualClock, Moment, SystemClock};
pub use error::Error;
pub use id::IncidentId;
pub use units::{Bytes, Hertz, ParseBytesError, Percent};
