//! Mappings, frames and stacks.
//!
//! A stack is a path in a tree rooted at the outermost frame. Each node refers to its parent and
//! adds one frame; parents precede children. Ten thousand samples below one `main` store `main`
//! once.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::base::CodeFile;

/// A row of a profile's mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MappingHandle(pub u32);

impl MappingHandle {
    /// Returns the index in the profile's mappings.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// An executable mapping of the process, as shown in a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address after the last one.
    pub end: u64,
    /// File offset mapped at `start`.
    pub file_offset: u64,
    /// Path of the mapped file.
    pub path: PathBuf,
    /// GNU build ID in lower-case hex. Empty if the file has none.
    pub build_id: String,
    /// `true` if function names were looked up for all frames in the mapping. Readers then do not
    /// symbolize it again.
    pub has_functions: bool,
    /// The file, kept open since the mapping was first seen. `None` if it could not be opened then,
    /// or if the profile is of another process.
    pub file: Option<Arc<CodeFile>>,
}

/// A source position of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Function.
    pub function: FunctionHandle,
    /// Line in the function's file. 0 if unknown.
    pub line: u32,
}

/// A row of a [`FrameTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameHandle(u32);

impl FrameHandle {
    /// Returns the index in [`FrameTable::iter`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A frame: an address in code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Address to look up. For the innermost frame it is the instruction pointer; for its callers
    /// it is `return address - 1`, which lies inside the call instruction.
    pub address: u64,
    /// Mapping that contains the address, if any.
    pub mapping: Option<MappingHandle>,
    /// Source positions, innermost inlined function first. Empty until symbolized.
    pub lines: Vec<Line>,
}

/// A table of interned frames, one per address.
#[derive(Clone, Debug, Default)]
pub struct FrameTable {
    frames: Vec<Frame>,
    by_address: HashMap<u64, FrameHandle>,
}

impl FrameTable {
    /// Returns the handle of the frame at `address`, adding it if it is missing.
    pub fn intern(&mut self, address: u64) -> FrameHandle {
        *self.by_address.entry(address).or_insert_with(|| {
            self.frames.push(Frame { address, mapping: None, lines: Vec::new() });
            FrameHandle(self.frames.len() as u32 - 1)
        })
    }

    /// Returns a frame of this table.
    pub fn get(&self, handle: FrameHandle) -> &Frame {
        &self.frames[handle.index()]
    }

    /// Returns all frames, in handle order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Frame> {
        self.frames.iter()
    }

    /// Returns the handles of all frames, in order.
    pub fn handles(&self) -> impl ExactSizeIterator<Item = FrameHandle> + use<> {
        (0..self.frames.len()).map(|index| FrameHandle(index as u32))
    }

    /// Returns a frame of this table for adding lines.
    pub fn get_mut(&mut self, handle: FrameHandle) -> &mut Frame {
        &mut self.frames[handle.index()]
    }

    /// Returns all frames for setting mappings and lines.
    pub fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = &mut Frame> {
        self.frames.iter_mut()
    }
}

/// A row of a [`StackTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StackHandle(u32);

impl StackHandle {
    /// Returns the index in the table.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A table of interned stacks, one node per path.
#[derive(Clone, Debug, Default)]
pub struct StackTable {
    nodes: Vec<(Option<StackHandle>, FrameHandle)>,
    by_node: HashMap<(Option<StackHandle>, FrameHandle), StackHandle>,
}

impl StackTable {
    /// Returns the handle of the stack `parent` extended by its callee `frame`. A `parent` of
    /// `None` makes `frame` the outermost.
    pub fn intern(&mut self, parent: Option<StackHandle>, frame: FrameHandle) -> StackHandle {
        *self.by_node.entry((parent, frame)).or_insert_with(|| {
            self.nodes.push((parent, frame));
            StackHandle(self.nodes.len() as u32 - 1)
        })
    }

    /// Returns the number of nodes, including those that no sample refers to directly.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns `true` if there are no stacks.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns the frames of a stack of this table, innermost first.
    pub fn frames(&self, stack: Option<StackHandle>) -> impl Iterator<Item = FrameHandle> + '_ {
        let mut next = stack;
        std::iter::from_fn(move || {
            let (parent, frame) = self.nodes[next?.0 as usize];
            next = parent;
            Some(frame)
        })
    }
}

/// A row of [`Profile::functions`](super::Profile::functions).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FunctionHandle(pub u32);

impl FunctionHandle {
    /// Returns the index in [`Profile::functions`](super::Profile::functions).
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_share_their_outer_frames() {
        let mut frames = FrameTable::default();
        let mut stacks = StackTable::default();
        let main = frames.intern(1);
        let left = frames.intern(2);
        let right = frames.intern(3);
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
