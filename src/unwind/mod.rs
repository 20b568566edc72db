//! Stack unwinding for threads of this process, from the compilers' unwind tables.
//!
//! Default builds have no frame pointers, so frames are found through `.eh_frame`, read from
//! private copies of the loaded files' tables. Code without tables is passed only if it proves its
//! caller (module `infer`). [`unwind_here`] walks the calling thread's own stack in place and runs
//! inside the allocator. Once the thread's stack bounds are known, it neither locks nor allocates:
//!
//! ```text
//! POOL -> Modules (immutable)      replaced tables stay in RETIRED until no walker can read them
//!         32 x turn, and a cache   claimed by one walking thread at a time
//! ```
//!
//! A walker claims a slot of the pool, then loads the table. [`refresh`] runs on the agent's
//! thread. It publishes a new table, and frees the old one when no slot claimed before the change
//! is still held (module `pool`). A walk costs microseconds, the claim nanoseconds.
//!
//! The first thread that needs a table builds it, by reading files only. It does not call the
//! loader, because that thread may hold the loader's lock, and it builds no index. Slower work is
//! left to [`refresh`]. The first build takes about a millisecond; other threads get
//! [`UnwindError::NotReady`] meanwhile and do not wait. A forked child keeps the parent's table. It
//! loses the slots claimed by threads that do not exist in the child.
//!
//! A cache takes 32 KiB and is allocated when its slot is first claimed. Memory therefore follows
//! the number of threads that walk *concurrently*, not the number of threads.
//!
//! Not for use in signal handlers: see `own_stack::bounds`.

#![allow(unsafe_code)]

mod calls;
mod copied_stack;
mod index;
mod infer;
mod kept;
mod modules;
mod pool;
mod rule;
mod tables;
#[cfg(target_os = "linux")]
pub mod thread_sampler;
#[cfg(not(target_os = "linux"))]
#[path = "unsupported.rs"]
pub mod thread_sampler;
mod walk;

use crate::base::sync::Mutex;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, PoisonError};

use crate::base::warnings;
use crate::os::fork;
use crate::os::images::{self, Error};
use crate::os::own_stack::{bounds, read, registers};
use crate::os::stack_snapshot::Registers;
use crate::unwind::kept::{KeptFrames, OF_OWN};
use crate::unwind::modules::{LoadedModules, ReadDepth};
use crate::unwind::pool::{SlotClaim, SlotPool, Turns};
use crate::unwind::tables::RuleCache;

pub use crate::unwind::copied_stack::{OutermostFrames, StackWalker};

/// Maximum frames recorded per stack. Async services reach 60 to 90. Of a deeper stack both ends
/// are kept, with a [`Marker`](crate::model::Marker) between them.
pub const MAX_FRAMES: usize = 128;

/// Stack required below the caller, for a walk and the heap profiler's work around it. Measured
/// with optimization: 4.5 KiB, of which 2 KiB map a table's next part. Measured without: 16 KiB for
/// the walk.
const HEADROOM: u64 = if cfg!(debug_assertions) { 32 << 10 } else { 8 << 10 };

/// Stack required to build the first table or a slot's cache, which take 45 KiB in a debug build. A
/// thread with less uses those built by other threads.
const ROOM_TO_BUILD: u64 = 64 << 10;

/// Number of slots whose caches [`refresh`] allocates in advance: 128 KiB.
const PREPARED: usize = 4;

/// Maximum concurrent walkers. A walk takes microseconds, so more are not expected.
const SLOTS: usize = 32;

/// Maximum retired tables. A walker that is suspended (debugger, starvation) keeps all tables
/// retired since from being freed. [`refresh`] pauses at this number.
const MAX_RETIRED: usize = 4;

/// Result of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackWalk {
    /// Number of frames written.
    pub depth: usize,
    /// Number of frames left out between the innermost and the outermost.
    pub omitted: usize,
    /// Reason for the end of the walk. Unless [`WalkEnd::Whole`], the outermost frame is a
    /// [`Marker`](crate::model::Marker).
    pub end: WalkEnd,
    /// `true` if the walk did not reach the outermost frame and the outermost frames come from an
    /// earlier walk of the thread. Their return addresses were found unchanged in memory.
    pub is_joined: bool,
    /// `true` if the walk passed code without unwind tables, with callers inferred from machine
    /// code.
    pub is_inferred: bool,
}

/// Reason for the end of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkEnd {
    /// The walk reached the thread's first function.
    Whole,
    /// The walk reached the end of the copied stack.
    Truncated,
    /// The walk reached the maximum number of frames.
    TooDeep,
    /// A frame has no usable unwind information, so its caller is not certain.
    Broken,
    /// The frame of a signal handler was reached, and the interrupted code ran on another stack,
    /// which was not copied.
    Elsewhere,
}

/// Reason why no stack is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnwindError {
    /// Another thread is building the first table of the loaded files.
    NotReady,
    /// Too many threads are walking.
    Busy,
    /// The thread runs on a stack other than its own: a signal stack or a coroutine.
    OtherStack,
    /// The thread is too close to the end of its stack.
    NearEnd,
}

/// Writes the calling thread's stack into `frames`, innermost first, without the `skip` innermost
/// frames (0: start with the caller of this function). Addresses are return addresses minus one, as
/// [`crate::model::Frame`] requires for callers.
#[inline(never)]
pub fn unwind_here(skip: usize, frames: &mut [u64]) -> Result<StackWalk, UnwindError> {
    let registers = registers();
    let stack = own_stack(registers.sp)?;
    let room = registers.sp - stack.start;
    walk(registers, &(registers.sp..stack.end), room, WalkEnd::Broken, skip, frames)
}

/// Walks like [`unwind_here`], but ends at the function whose frame contains the address `local`,
/// which becomes the last frame. The cost is that of the frames in between only.
#[inline(never)]
pub fn unwind_up_to(local: u64, skip: usize, frames: &mut [u64]) -> Result<StackWalk, UnwindError> {
    let registers = registers();
    let stack = own_stack(registers.sp)?;
    if !stack.contains(&local) || registers.sp > local {
        return Err(UnwindError::OtherStack);
    }
    let room = registers.sp - stack.start;
    // A return address lies above the frame's locals, so the function's own one is out of reach.
    walk(registers, &(registers.sp..local), room, WalkEnd::Whole, skip, frames)
}

/// Returns the bounds of the thread's stack if `sp` is within it, at least [`HEADROOM`] above its
/// end.
fn own_stack(sp: u64) -> Result<Range<u64>, UnwindError> {
    let stack = bounds().filter(|stack| stack.contains(&sp)).ok_or(UnwindError::OtherStack)?;
    if sp - stack.start < HEADROOM { Err(UnwindError::NearEnd) } else { Ok(stack) }
}

/// Walks through `stack`, with `room` bytes below it. `past_end` is the result if the walk leaves
/// it.
fn walk(
    registers: Registers,
    stack: &Range<u64>,
    room: u64,
    past_end: WalkEnd,
    skip: usize,
    frames: &mut [u64],
) -> Result<StackWalk, UnwindError> {
    let may_build = room >= ROOM_TO_BUILD;
    if POOL.is_empty() {
        if !may_build {
            return Err(UnwindError::NotReady);
        }
        build_first()?;
    }
    let slot = POOL.claim().ok_or(UnwindError::Busy)?;
    if !has_cache(&slot, may_build) {
        return Err(UnwindError::Busy);
    }
    // A panic must not propagate out of an allocator. No panic is known, and correctness does not
    // depend on this line: builds may use `panic = "abort"`.
    catch_unwind(AssertUnwindSafe(|| walk_by(&slot, registers, stack, past_end, skip, frames)))
        .unwrap_or(Err(UnwindError::Busy))
}

/// Reads the loaded files again if they have changed since the last call. Returns `true` if they
/// had. The agent's threads call this periodically. Costs a microsecond if nothing changed,
/// otherwise about a millisecond.
pub fn refresh() -> Result<bool, Error> {
    prepare();
    let generation = images::generation();
    if generation == GENERATION.load(Relaxed) {
        return Ok(false);
    }
    let Some(_building) = Building::claim() else { return Ok(false) };
    if sweep() >= MAX_RETIRED {
        return Ok(false);
    }
    let old = POOL.value();
    // SAFETY: a table is freed by `sweep` only, which runs under the same claim of BUILDING.
    let modules = LoadedModules::read(unsafe { old.as_ref() }, ReadDepth::Whole)?;
    say_what_is_left_out(modules.left_out);
    publish(modules);
    GENERATION.store(generation, Relaxed);
    Ok(true)
}

/// Warns in `/status` that stacks end at code of these files.
fn say_what_is_left_out(files: usize) {
    if files == 0 {
        return warnings::clear(TOPIC);
    }
    warnings::set(
        TOPIC,
        format!(
            "stacks end at code of {files} loaded files: their unwind tables are damaged, are larger than \
             the limits, or found no memory (RLIMIT_AS, RLIMIT_MEMLOCK); strip or shrink these files, or raise \
             the limits"
        ),
    );
}

const TOPIC: &str = "stacks.unwind_tables";

/// The table [`POOL`] points to, for callers that may wait and keep a reference. Nothing is
/// allocated or freed under this lock, because a thread inside the allocator may take it.
static CURRENT: Mutex<Option<Arc<LoadedModules>>> = Mutex::new(None);
static GENERATION: AtomicU64 = AtomicU64::new(0);
static BUILDING: AtomicBool = AtomicBool::new(false);
static RETIRED: Mutex<Vec<RetiredModules>> = Mutex::new(Vec::new());
static POOL: SlotPool<LoadedModules, SLOTS> = SlotPool::new();
static CACHES: [CacheSlot; SLOTS] = [const { CacheSlot(UnsafeCell::new(None)) }; SLOTS];

/// Exclusive right to build the table, released on drop.
struct Building;

impl Building {
    /// Claims the right, or returns `None` if another thread holds it.
    fn claim() -> Option<Self> {
        // A forked child does not have the thread that held it.
        fork::reset_in_child(|| BUILDING.store(false, Release));
        // Not `then_some`, whose argument would be made and dropped in any case.
        if BUILDING.swap(true, Acquire) { None } else { Some(Self) }
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        BUILDING.store(false, Release);
    }
}

#[cold]
fn build_first() -> Result<(), UnwindError> {
    let Some(_building) = Building::claim() else { return Err(UnwindError::NotReady) };
    if POOL.is_empty() {
        // Without /proc nothing can be read, and a retry at each sample would be expensive. With
        // the empty table a walk ends at the caller; `refresh` retries and reports the error.
        publish(
            LoadedModules::read(None, ReadDepth::Hasty).unwrap_or_else(|_| LoadedModules::empty()),
        );
    }
    Ok(())
}

/// Returns the current table, or `None` if none was read. The caller may keep it indefinitely.
pub(crate) fn current() -> Option<Arc<LoadedModules>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A replaced table, with the pool's turns just after the replacement.
struct RetiredModules {
    modules: *const LoadedModules,
    turns: Turns<SLOTS>,
}

// SAFETY: `LoadedModules` may be shared and freed across threads, and the pointer is its only
// owner.
unsafe impl Send for RetiredModules {}

/// Publishes `modules` as the current table. Requires a claim of BUILDING.
fn publish(modules: LoadedModules) {
    let fresh = Arc::new(modules);
    let kept = CURRENT.lock().unwrap_or_else(PoisonError::into_inner).replace(Arc::clone(&fresh));
    drop(kept);
    let (old, turns) = POOL.replace(Arc::into_raw(fresh).cast_mut());
    if !old.is_null() {
        let mut retired = RETIRED.lock().unwrap_or_else(PoisonError::into_inner);
        retired.push(RetiredModules { modules: old, turns });
    }
    sweep();
}

/// Frees the retired tables that no walker can be reading. Returns the number left. Requires a
/// claim of BUILDING.
fn sweep() -> usize {
    let mut retired = RETIRED.lock().unwrap_or_else(PoisonError::into_inner);
    retired.retain(|old| {
        let in_use = POOL.is_in_use(&old.turns);
        if !in_use {
            // SAFETY: the pointer comes from `Arc::into_raw` and was unpublished by the swap in
            // `publish`. No walker that could have loaded it before the swap is still running, and
            // `retain` drops the entry.
            drop(unsafe { Arc::from_raw(old.modules) });
        }
        in_use
    });
    retired.len()
}

/// Binary logarithm of the number of rules in a cache.
const CACHE_BITS: u32 = 10;

/// Cache of a slot of [`POOL`], allocated when the slot is first claimed.
struct CacheSlot(UnsafeCell<Option<RuleCache>>);

// SAFETY: only the thread that has claimed the slot accesses the cache, see `walk_by`.
unsafe impl Sync for CacheSlot {}

/// Returns `true` if the slot has a cache, after allocating one if necessary and if `may_make`.
fn has_cache(claim: &SlotClaim<'_, LoadedModules, SLOTS>, may_make: bool) -> bool {
    let Some(slot) = CACHES.get(claim.slot()) else { return false };
    // SAFETY: this thread has claimed the slot, and a slot is claimed by one thread at a time.
    let cache = unsafe { &mut *slot.0.get() };
    if cache.is_none() && may_make {
        make(cache);
    }
    cache.is_some()
}

/// Separate function: its stack usage must not add to that of a walk.
#[cold]
#[inline(never)]
fn make(cache: &mut Option<RuleCache>) {
    *cache = Some(RuleCache::new(CACHE_BITS));
}

/// Allocates the caches of the first slots, for threads without enough stack to do so.
fn prepare() {
    static PREPARING: AtomicBool = AtomicBool::new(false);
    if PREPARING.swap(true, Acquire) {
        return;
    }
    // All are claimed at once, because a claim returns the first free slot.
    let claims: [_; PREPARED] = std::array::from_fn(|_| POOL.claim());
    let done = claims.iter().flatten().filter(|claim| has_cache(claim, true)).count();
    // A walker held one of the slots, with or without a cache.
    if done < PREPARED {
        PREPARING.store(false, Release);
    }
}

fn walk_by(
    claim: &SlotClaim<'_, LoadedModules, SLOTS>,
    registers: Registers,
    stack: &Range<u64>,
    past_end: WalkEnd,
    skip: usize,
    frames: &mut [u64],
) -> Result<StackWalk, UnwindError> {
    // SAFETY: published tables are complete. A table loaded while a slot is claimed is not freed
    // before the claim is dropped.
    let modules = unsafe { claim.value().as_ref() }.ok_or(UnwindError::NotReady)?;
    let slot = CACHES.get(claim.slot()).ok_or(UnwindError::Busy)?;
    // SAFETY: `walk` holds the claim of this slot, and a slot is claimed by one thread at a time.
    let cache = unsafe { &mut *slot.0.get() }.as_mut().ok_or(UnwindError::Busy)?;
    let left = Cell::new(false);
    let mut read_stack = |address| {
        left.set(left.get() | (address >= stack.end));
        // SAFETY: `stack` starts at the stack pointer of a frame of this thread that outlives the
        // walk, and ends at the end of the thread's stack or below.
        unsafe { read(stack, address) }
    };
    let mut kept = KeptFrames::new(frames, &mut []);
    // The first frame is the one whose registers were read.
    let mut to_skip = skip + 1;
    let take = |frame, pointer| match to_skip {
        0 => kept.push(frame, pointer),
        _ => {
            to_skip -= 1;
            true
        }
    };
    let walk = walk::walk(modules, cache, registers, &mut read_stack, take);
    let mut end = match walk.end {
        None if left.get() => past_end,
        None => WalkEnd::Broken,
        Some(end) => end,
    };
    let mut is_joined = false;
    OUTERMOST.with(|outermost| match end {
        WalkEnd::Whole if past_end != WalkEnd::Whole => outermost.set(kept.outermost()),
        WalkEnd::TooDeep if past_end != WalkEnd::Whole => {
            let known = outermost.get();
            is_joined = kept.join(&known, walk.reached, &mut read_stack, |replaced| {
                infer::is_frame(modules, cache, replaced)
            });
            end = if is_joined { WalkEnd::Whole } else { end };
        }
        _ => {}
    });
    let (depth, omitted) = kept.finish(end);
    Ok(StackWalk { depth, omitted, end, is_joined, is_inferred: walk.is_inferred })
}

thread_local! {
    /// Outermost frames of this thread's last complete walk.
    static OUTERMOST: Cell<OutermostFrames<OF_OWN>> = const { Cell::new(OutermostFrames::NONE) };
}

#[cfg(test)]
mod tests;
