//! Where code was: mappings, frames and stacks.
//!
//! A stack is a path in a tree that grows from the outermost frame; each node names its parent and the
//! frame it adds, parents before children. Ten thousand samples under one `main` store `main` once.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::profile::FunctionHandle;
use crate::base::CodeFile;

/// A row of a profile's mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MappingHandle(pub u32);

impl MappingHandle {
    /// Its place in the profile's mappings.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A file mapped executable into the process, as a profile shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// Offset in the file that is mapped at `start`.
    pub file_offset: u64,
    /// The file.
    pub path: PathBuf,
    /// Its GNU build id in lower-case hex; empty when the file has none.
    pub build_id: String,
    /// Whether every frame in it has been looked up for a function name. A reader that sees this set
    /// will not symbolize the mapping again.
    pub has_functions: bool,
    /// The file, open since it was first seen mapped; `None` if it could not be opened then, or in a profile of
    /// another process.
    pub file: Option<Arc<CodeFile>>,
}

/// A source position a frame stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The function.
    pub function: FunctionHandle,
    /// The line in its file; 0 when unknown.
    pub line: u32,
}

/// A row of a [`FrameTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameHandle(u32);

impl FrameHandle {
    /// Its place in [`FrameTable::iter`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// An address in code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The address to look up: the instruction itself for the innermost frame, one less than the return
    /// address for its callers, so that it falls inside the call.
    pub address: u64,
    /// The mapping that holds it, if any does.
    pub mapping: Option<MappingHandle>,
    /// What it stands for, innermost inlined function first; empty until symbolized.
    pub lines: Vec<Line>,
}

/// Frames, each address once.
#[derive(Clone, Debug, Default)]
pub struct FrameTable {
    frames: Vec<Frame>,
    by_address: HashMap<u64, FrameHandle>,
}

impl FrameTable {
    /// The handle of the frame at `address`.
    pub fn intern(&mut self, address: u64) -> FrameHandle {
        *self.by_address.entry(address).or_insert_with(|| {
            self.frames.push(Frame { address, mapping: None, lines: Vec::new() });
            FrameHandle(self.frames.len() as u32 - 1)
        })
    }

    /// A frame of this table.
    pub fn get(&self, handle: FrameHandle) -> &Frame {
        &self.frames[handle.index()]
    }

    /// All frames, in handle order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Frame> {
        self.frames.iter()
    }

    /// The handles of all frames, in their order.
    pub fn handles(&self) -> impl ExactSizeIterator<Item = FrameHandle> + use<> {
        (0..self.frames.len()).map(|place| FrameHandle(place as u32))
    }

    /// A frame of this table, to be given lines.
    pub fn get_mut(&mut self, handle: FrameHandle) -> &mut Frame {
        &mut self.frames[handle.index()]
    }

    /// All frames, to be given mappings and lines.
    pub fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = &mut Frame> {
        self.frames.iter_mut()
    }
}

/// A row of a [`StackTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StackHandle(u32);

impl StackHandle {
    /// Its place in its table.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Stacks, each path once.
#[derive(Clone, Debug, Default)]
pub struct StackTable {
    nodes: Vec<(Option<StackHandle>, FrameHandle)>,
    by_node: HashMap<(Option<StackHandle>, FrameHandle), StackHandle>,
}

impl StackTable {
    /// The handle of the stack that is `parent` (none: the outermost frame) with `frame` called from it.
    pub fn intern(&mut self, parent: Option<StackHandle>, frame: FrameHandle) -> StackHandle {
        *self.by_node.entry((parent, frame)).or_insert_with(|| {
            self.nodes.push((parent, frame));
            StackHandle(self.nodes.len() as u32 - 1)
        })
    }

    /// How many stacks there are, those included that others only pass.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The frames of a stack of this table, innermost first.
    pub fn frames(&self, stack: Option<StackHandle>) -> impl Iterator<Item = FrameHandle> + '_ {
        let mut next = stack;
        std::iter::from_fn(move || {
            let (parent, frame) = self.nodes[next?.0 as usize];
            next = parent;
            Some(frame)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_share_their_outer_frames() {
        let (mut frames, mut stacks) = (FrameTable::default(), StackTable::default());
        let (main, left, right) = (frames.intern(1), frames.intern(2), frames.intern(3));
        let root = stacks.intern(None, main);
        let a = stacks.intern(Some(root), left);
        let b = stacks.intern(Some(root), right);
        assert_eq!(stacks.intern(Some(root), left), a);
        assert_eq!(stacks.nodes.len(), 3);
        assert_eq!(stacks.frames(Some(a)).collect::<Vec<_>>(), [left, main]);
        assert_eq!(stacks.frames(Some(b)).collect::<Vec<_>>(), [right, main]);
        assert_eq!(stacks.frames(None).count(), 0);
    }
}
