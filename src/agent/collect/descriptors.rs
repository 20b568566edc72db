//! Dumps of open file descriptors, taken once at the start.

use super::{Evidence, Failure, Snapshot, Started};
use crate::base::{Anchor, Bytes};
use crate::os::proc::descriptors;

/// Memory of a dump: counts of at most 4096 targets, and inodes of at most 100,000 sockets.
pub(super) const MEMORY: Bytes = Bytes::mib(4);

pub(super) fn start(anchor: Anchor) -> Result<Started, Failure> {
    let dump = descriptors::dump(anchor.wall)?;
    Ok(Started {
        collector: Box::new(Snapshot { engine: "/proc/self/fd" }),
        at_start: Some(Evidence::Descriptors(Box::new(dump))),
    })
}
