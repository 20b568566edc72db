//! Lists of the service's panics, taken once at the start.

use super::{Evidence, Failure, Snapshot, Started};
use crate::base::{Anchor, Bytes, panic_log};
use crate::model::PanicDump;

/// Memory of a list: 64 locations with messages of at most 512 bytes, twice.
pub(super) const MEMORY: Bytes = Bytes::kib(256);

pub(super) fn start(anchor: Anchor) -> Result<Started, Failure> {
    let dump = PanicDump::new(anchor.wall, panic_log::list());
    Ok(Started {
        collector: Box::new(Snapshot { engine: "panic hook" }),
        at_start: Some(Evidence::Panics(Box::new(dump))),
    })
}
