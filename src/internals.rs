//! The door through which the tests and benches of this crate reach its inner modules: the feature
//! `internals`. Not covered by semantic versioning.

#![allow(missing_docs, reason = "each module is documented where it is defined")]

pub mod agent {
    pub use crate::agent::*;
}
pub mod base {
    pub use crate::base::*;
}
pub mod codec {
    pub use crate::codec::*;
}
pub mod config {
    pub use crate::config::file_watcher::FileWatcher;
    pub use crate::config::watched_file::{FileChange, WatchedFile};
}
#[cfg(feature = "cpu")]
pub mod cpu {
    pub use crate::cpu::*;
}
#[cfg(feature = "heap")]
pub mod heap {
    pub use crate::heap::*;
}
pub mod metrics {
    pub use crate::metrics::counters::Counters;
    pub use crate::metrics::gauges::Gauges;
    pub use crate::metrics::histograms::{Bucket, Distribution, Histograms};
    pub use crate::metrics::reader::Metrics;
}
pub mod model {
    pub use crate::model::*;
}
pub mod os {
    pub use crate::os::*;
}
pub mod rules {
    pub use crate::rules::*;
}
pub mod stacks {
    pub use crate::stacks::*;
}
pub mod store {
    pub use crate::store::*;
}
pub mod symbols {
    pub use crate::symbols::*;
}
#[cfg(feature = "trace")]
pub mod trace {
    pub use crate::trace::flight::configure;
    pub use crate::trace::process_recorder::{record_instant, record_vitals};
    pub use crate::trace::session::{Error, TraceSession};
    pub use crate::trace::sources::recorded_sources;
}
pub mod unwind {
    pub use crate::unwind::*;
}
pub mod vitals {
    pub use crate::vitals::*;
}
