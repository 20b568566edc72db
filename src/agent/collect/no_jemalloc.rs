//! Stub: the jemalloc bridge is not built in.

use jiff::Timestamp;

use super::{Absent, Failure, Started};
use crate::base::Anchor;
use crate::heap;
use crate::model::Profile;

pub(super) fn start(_: Anchor) -> Result<Started, Failure> {
    Err(missing())
}

pub(super) fn snapshot(_: Timestamp) -> Result<Box<Profile>, Failure> {
    Err(missing())
}

pub(super) fn why_absent() -> Option<String> {
    Some(heap::Error::NotInstalled.to_string())
}

fn missing() -> Failure {
    Absent(heap::Error::NotInstalled.to_string()).into()
}
