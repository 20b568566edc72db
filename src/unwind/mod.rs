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
mod function_search;
mod index;
mod infer;
mod kept;
mod modules;
mod pool;
mod row_storage;
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
use crate::os::own_stack::{current_registers, current_stack_bounds, read_word};
use crate::os::stack_snapshot::Registers;
use crate::unwind::kept::{FrameBuffer, MAX_OUTERMOST_OWN};
use crate::unwind::modules::{LoadedModules, ReadDepth};
use crate::unwind::pool::{SlotClaim, SlotPool, SlotSequences};
use crate::unwind::tables::RuleCache;

pub use crate::unwind::copied_stack::{OutermostFrames, StackWalker};

/// Maximum frames recorded per stack. Async services reach 60 to 90. Of a deeper stack both ends
/// are kept, with a [`Marker`](crate::model::Marker) between them.
pub const MAX_FRAMES: usize = 128;

/// Stack required below the caller, for a walk and the heap profiler's work around it. Measured
/// with optimization: 4.5 KiB, of which 2 KiB map a table's next part. Measured without: 16 KiB for
/// the walk.
const MIN_FREE_STACK: u64 = if cfg!(debug_assertions) { 32 << 10 } else { 8 << 10 };

/// Stack required to build the first table or a slot's cache, which take 45 KiB in a debug build. A
/// thread with less uses those built by other threads.
const MIN_FREE_STACK_TO_BUILD: u64 = 64 << 10;

/// Number of slots whose caches [`refresh`] allocates in advance: 128 KiB.
const PREALLOCATED_CACHES: usize = 4;

/// Maximum concurrent walkers. A walk takes microseconds, so more are not expected.
const MAX_WALKERS: usize = 32;

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

/// Writes the calling thread's stack into `frames`, innermost first, without the `skip` innermost
/// frames (0: start with the caller of this function). Addresses are return addresses minus one, as
/// [`crate::model::Frame`] requires for callers.
#[inline(never)]
pub fn unwind_here(skip: usize, frames: &mut [u64]) -> Result<StackWalk, UnwindError> {
    let registers = current_registers();
    let stack = checked_own_stack(registers.sp)?;
    let room = registers.sp - stack.start;
    walk_own_stack(registers, &(registers.sp..stack.end), room, WalkEnd::NoUnwindInfo, skip, frames)
}

/// Walks like [`unwind_here`], but ends at the function whose frame contains the address `local`,
/// which becomes the last frame. The cost is that of the frames in between only.
#[inline(never)]
pub fn unwind_up_to(local: u64, skip: usize, frames: &mut [u64]) -> Result<StackWalk, UnwindError> {
    let registers = current_registers();
    let stack = checked_own_stack(registers.sp)?;
    if !stack.contains(&local) || registers.sp > local {
        return Err(UnwindError::ForeignStack);
    }
    let room = registers.sp - stack.start;
    // A return address lies above the frame's locals, so the function's own one is out of reach.
    walk_own_stack(registers, &(registers.sp..local), room, WalkEnd::Complete, skip, frames)
}

/// Returns the bounds of the thread's stack if `sp` is within it, at least [`MIN_FREE_STACK`] above
/// its end.
fn checked_own_stack(sp: u64) -> Result<Range<u64>, UnwindError> {
    let stack = current_stack_bounds()
        .filter(|stack| stack.contains(&sp))
        .ok_or(UnwindError::ForeignStack)?;
    if sp - stack.start < MIN_FREE_STACK { Err(UnwindError::NearStackEnd) } else { Ok(stack) }
}

/// Walks through `stack`, with `room` bytes below it. `past_end` is the result if the walk leaves
/// it.
fn walk_own_stack(
    registers: Registers,
    stack: &Range<u64>,
    free_stack: u64,
    past_end: WalkEnd,
    skip: usize,
    frames: &mut [u64],
) -> Result<StackWalk, UnwindError> {
    let may_build = free_stack >= MIN_FREE_STACK_TO_BUILD;
    if POOL.is_empty() {
        if !may_build {
            return Err(UnwindError::NotReady);
        }
        build_first_table()?;
    }
    let slot = POOL.claim().ok_or(UnwindError::Busy)?;
    if !ensure_cache(&slot, may_build) {
        return Err(UnwindError::Busy);
    }
    // A panic must not propagate out of an allocator. No panic is known, and correctness does not
    // depend on this line: builds may use `panic = "abort"`.
    catch_unwind(AssertUnwindSafe(|| {
        walk_with_claim(&slot, registers, stack, past_end, skip, frames)
    }))
    .unwrap_or(Err(UnwindError::Busy))
}

/// Reads the loaded files again if they have changed since the last call. Returns `true` if they
/// had. The agent's threads call this periodically. Costs a microsecond if nothing changed,
/// otherwise about a millisecond.
pub fn refresh() -> Result<bool, Error> {
    preallocate_caches();
    let generation = images::generation();
    if generation == GENERATION.load(Relaxed) {
        return Ok(false);
    }
    let Some(_building) = BuildLock::claim() else { return Ok(false) };
    if free_retired() >= MAX_RETIRED {
        return Ok(false);
    }
    let old = POOL.value();
    // SAFETY: a table is freed by `sweep` only, which runs under the same claim of BUILDING.
    let modules = LoadedModules::read(unsafe { old.as_ref() }, ReadDepth::Full)?;
    warn_about_skipped_files(modules.skipped_files);
    publish(modules);
    GENERATION.store(generation, Relaxed);
    Ok(true)
}

/// Warns in `/status` that stacks end at code of these files.
fn warn_about_skipped_files(files: usize) {
    if files == 0 {
        return warnings::clear(TOPIC);
    }
    warnings::set(
        TOPIC,
        format!(
            "stacks end in code of {files} loaded files: their unwind tables are damaged, exceed \
             the limits, or could not be allocated (RLIMIT_AS, RLIMIT_MEMLOCK); strip or shrink \
             these files, or raise the limits"
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
static POOL: SlotPool<LoadedModules, MAX_WALKERS> = SlotPool::new();
static CACHES: [CacheSlot; MAX_WALKERS] = [const { CacheSlot(UnsafeCell::new(None)) }; MAX_WALKERS];

/// Exclusive right to build the table, released on drop.
struct BuildLock;

impl BuildLock {
    /// Claims the right, or returns `None` if another thread holds it.
    fn claim() -> Option<Self> {
        // A forked child does not have the thread that held it.
        fork::register_child_reset(|| BUILDING.store(false, Release));
        // Not `then_some`, whose argument would be made and dropped in any case.
        if BUILDING.swap(true, Acquire) { None } else { Some(Self) }
    }
}

impl Drop for BuildLock {
    fn drop(&mut self) {
        BUILDING.store(false, Release);
    }
}

#[cold]
fn build_first_table() -> Result<(), UnwindError> {
    let Some(_building) = BuildLock::claim() else { return Err(UnwindError::NotReady) };
    if POOL.is_empty() {
        // Without /proc nothing can be read, and a retry at each sample would be expensive. With
        // the empty table a walk ends at the caller; `refresh` retries and reports the error.
        publish(
            LoadedModules::read(None, ReadDepth::Quick).unwrap_or_else(|_| LoadedModules::empty()),
        );
    }
    Ok(())
}

/// Returns the current table, or `None` if none was read. The caller may keep it indefinitely.
pub(crate) fn current_modules() -> Option<Arc<LoadedModules>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A replaced table, with the pool's turns just after the replacement.
struct RetiredModules {
    modules: *const LoadedModules,
    sequences: SlotSequences<MAX_WALKERS>,
}

// SAFETY: `LoadedModules` may be shared and freed across threads, and the pointer is its only
// owner.
unsafe impl Send for RetiredModules {}

/// Publishes `modules` as the current table. Requires a claim of BUILDING.
fn publish(modules: LoadedModules) {
    let fresh = Arc::new(modules);
    let previous =
        CURRENT.lock().unwrap_or_else(PoisonError::into_inner).replace(Arc::clone(&fresh));
    drop(previous);
    let (old, sequences) = POOL.replace(Arc::into_raw(fresh).cast_mut());
    if !old.is_null() {
        let mut retired = RETIRED.lock().unwrap_or_else(PoisonError::into_inner);
        retired.push(RetiredModules { modules: old, sequences });
    }
    free_retired();
}

/// Frees the retired tables that no walker can be reading. Returns the number left. Requires a
/// claim of BUILDING.
fn free_retired() -> usize {
    let mut retired = RETIRED.lock().unwrap_or_else(PoisonError::into_inner);
    retired.retain(|old| {
        let in_use = POOL.is_in_use(&old.sequences);
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

// SAFETY: only the thread that has claimed the slot accesses the cache, see `walk_with_claim`.
unsafe impl Sync for CacheSlot {}

/// Returns `true` if the slot has a cache, after allocating one if necessary and if `may_allocate`.
fn ensure_cache(claim: &SlotClaim<'_, LoadedModules, MAX_WALKERS>, may_allocate: bool) -> bool {
    let Some(slot) = CACHES.get(claim.slot()) else { return false };
    // SAFETY: this thread has claimed the slot, and a slot is claimed by one thread at a time.
    let cache = unsafe { &mut *slot.0.get() };
    if cache.is_none() && may_allocate {
        allocate_cache(cache);
    }
    cache.is_some()
}

/// Separate function: its stack usage must not add to that of a walk.
#[cold]
#[inline(never)]
fn allocate_cache(cache: &mut Option<RuleCache>) {
    *cache = Some(RuleCache::new(CACHE_BITS));
}

/// Allocates the caches of the first slots, for threads without enough stack to do so.
fn preallocate_caches() {
    static PREPARING: AtomicBool = AtomicBool::new(false);
    if PREPARING.swap(true, Acquire) {
        return;
    }
    // All are claimed at once, because a claim returns the first free slot.
    let claims: [_; PREALLOCATED_CACHES] = std::array::from_fn(|_| POOL.claim());
    let allocated = claims.iter().flatten().filter(|claim| ensure_cache(claim, true)).count();
    // A walker held one of the slots, with or without a cache.
    if allocated < PREALLOCATED_CACHES {
        PREPARING.store(false, Release);
    }
}

fn walk_with_claim(
    claim: &SlotClaim<'_, LoadedModules, MAX_WALKERS>,
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
    let is_past_end = Cell::new(false);
    let mut read_stack = |address| {
        is_past_end.set(is_past_end.get() | (address >= stack.end));
        // SAFETY: `stack` starts at the stack pointer of a frame of this thread that outlives the
        // walk, and ends at the end of the thread's stack or below.
        unsafe { read_word(stack, address) }
    };
    let mut kept = FrameBuffer::new(frames, &mut []);
    // The first frame is the one whose registers were read.
    let mut to_skip = skip + 1;
    let take = |frame, pointer| match to_skip {
        0 => kept.push(frame, pointer),
        _ => {
            to_skip -= 1;
            true
        }
    };
    let walk = walk::walk_frames(modules, cache, registers, &mut read_stack, take);
    let mut end = match walk.end {
        None if is_past_end.get() => past_end,
        None => WalkEnd::NoUnwindInfo,
        Some(end) => end,
    };
    let mut is_joined = false;
    OUTERMOST.with(|outermost| match end {
        WalkEnd::Complete if past_end != WalkEnd::Complete => outermost.set(kept.outermost()),
        WalkEnd::TooManyFrames if past_end != WalkEnd::Complete => {
            let known = outermost.get();
            is_joined =
                kept.append_outermost(&known, walk.outermost_sp, &mut read_stack, |replaced| {
                    infer::is_valid_frame(modules, cache, replaced)
                });
            end = if is_joined { WalkEnd::Complete } else { end };
        }
        _ => {}
    });
    let (depth, omitted) = kept.finish(end);
    Ok(StackWalk { depth, omitted, end, is_joined, used_heuristics: walk.used_heuristics })
}

thread_local! {
    /// Outermost frames of this thread's last complete walk.
    static OUTERMOST: Cell<OutermostFrames<MAX_OUTERMOST_OWN>> = const { Cell::new(OutermostFrames::EMPTY) };
}

#[cfg(test)]
mod tests;
