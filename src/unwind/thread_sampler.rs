//! Stack samples of other threads, taken by a signal.
//!
//! ```text
//! SIGURG, 64 at a time   the handler in os::signal copies registers and stack, within 100 ms; the
//!                        next signal is sent as one is answered, and its thread id is read then
//! Walker                 unwinds the copies on this thread, by the files' unwind tables
//! ```
//!
//! We use SIGURG: its default action is to ignore, so a signal sent after the host replaced our
//! handler is harmless. A previous handler of the host receives every SIGURG that is not ours. One
//! thread samples at a time, because two readers of the slots would read torn copies. Each run
//! invalidates all pending signals at its end.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod unsupported;

#[cfg(target_os = "linux")]
pub use self::linux::{STACK_BYTES, ThreadSampler};
#[cfg(not(target_os = "linux"))]
pub use self::unsupported::ThreadSampler;

use crate::os::stack_snapshot::StackSnapshot;
use crate::unwind::WalkEnd;

/// Signal used for sampling.
pub const SIGNAL: i32 = libc::SIGURG;

/// Maximum signals in flight. There are twice as many slots, so that a delayed thread does not take
/// another thread's slot.
pub const MAX_IN_FLIGHT: usize = 64;

/// Sampled state of a thread.
pub struct ThreadStack<'a> {
    /// Its registers and stack.
    pub snapshot: &'a StackSnapshot,
    /// Addresses of the frames: the current instruction, then return addresses minus one.
    pub frames: &'a [u64],
    /// Stack pointer of each of these frames.
    pub pointers: &'a [u64],
    /// Reason for the end of the walk.
    pub end: WalkEnd,
}
