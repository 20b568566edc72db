//! What stands in for a task's part of traces where they are not built in: nothing.

use std::panic::Location;

#[derive(Debug)]
pub(super) struct Node;

/// What a poll under way would be.
pub(super) struct Slice;

impl Node {
    pub(super) fn new(_: Option<&'static str>, _: &'static Location<'static>) -> Self {
        Self
    }

    pub(super) fn poll(&mut self) -> Slice {
        Slice
    }
}
