//! What stands in for the bridge to jemalloc where it is not built in.

use jiff::Timestamp;

use super::{Failure, Started};
use crate::base::Anchor;
use crate::heap;
use crate::model::Profile;

pub(super) fn start(_: Anchor) -> Result<Started, Failure> {
    Err(heap::Error::NotInstalled.into())
}

pub(super) fn snapshot(_: Timestamp) -> Result<Box<Profile>, Failure> {
    Err(heap::Error::NotInstalled.into())
}
