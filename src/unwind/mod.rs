//! Stack unwinding for threads of this process, from the compilers' unwind tables.
//!
//! Default builds have no frame pointers, so frames are found through `.eh_frame`, read from
//! private copies of the loaded files' tables. Code without tables is passed only if it proves its
//! caller (module `infer`).
//!
//! | stack | walk |
//! |---|---|
//! | the calling thread's own | [`unwind_here`], in place, inside the allocator (`own_stack`) |
//! | a copy of any thread's | [`StackWalker`] (`copied_stack`) |
//! | another thread's | [`thread_sampler`], which copies and walks it |
//!
//! All read the same tables, which [`refresh`] replaces when files are loaded or unloaded
//! (`shared_modules`).

mod calls;
mod copied_stack;
mod function_search;
mod index;
mod infer;
mod kept;
mod modules;
mod own_stack;
mod pool;
mod row_storage;
mod rule;
mod shared_modules;
mod tables;
pub mod thread_sampler;
mod walk;

pub use copied_stack::{OutermostFrames, StackWalker};
pub use own_stack::{unwind_here, unwind_up_to};
pub use shared_modules::refresh;

/// Maximum frames recorded per stack. Async services reach 60 to 90. Of a deeper stack both ends
/// are kept, with a [`Marker`](crate::model::Marker) between them.
pub const MAX_FRAMES: usize = 128;

/// Result of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackWalk {
    /// Number of frames written.
    pub depth: usize,
    /// Number of frames left out between the innermost and the outermost.
    pub omitted: usize,
    /// Reason for the end of the walk. Unless [`WalkEnd::Complete`], the outermost frame is a
    /// [`Marker`](crate::model::Marker).
    pub end: WalkEnd,
    /// `true` if the walk did not reach the outermost frame and the outermost frames come from an
    /// earlier walk of the thread. Their return addresses were found unchanged in memory.
    pub is_joined: bool,
    /// `true` if the walk passed code without unwind tables, with callers inferred from machine
    /// code.
    pub used_heuristics: bool,
}

/// Reason for the end of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkEnd {
    /// The walk reached the thread's first function.
    Complete,
    /// The walk reached the end of the copied stack.
    CopyTooShort,
    /// The walk reached the maximum number of frames.
    TooManyFrames,
    /// A frame has no usable unwind information, so its caller is not certain.
    NoUnwindInfo,
    /// The frame of a signal handler was reached, and the interrupted code ran on another stack,
    /// which was not copied.
    OtherStack,
}

/// Reason why no stack is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnwindError {
    /// Another thread is building the first table of the loaded files.
    NotReady,
    /// Too many threads are walking.
    Busy,
    /// The thread runs on a stack other than its own: a signal stack or a coroutine.
    ForeignStack,
    /// The thread is too close to the end of its stack.
    NearStackEnd,
}
