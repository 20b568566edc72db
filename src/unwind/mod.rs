//! Stacks of running threads, by the tables compilers leave for exceptions.
//!
//! Default builds have no frame pointers, so the way up is `.eh_frame`, read from our own copies of the
//! loaded files' tables; code without tables is passed only where it proves who called it (`walk`).
//! [`unwind_here`] walks the calling thread's own stack in place, in the allocator's
//! path, so once a thread's stack bounds are known it neither locks nor allocates:
//!
//! ```text
//! POOL    -> Modules (immutable)        old ones wait in RETIRED until no walker can be reading them
//!            32 x turn, and a cache     claimed by one walking thread at a time
//! ```
//!
//! A walker claims a slot of the pool, then loads the table. [`refresh`], on the agent's thread, publishes
//! another and frees the old one when no slot that was claimed before is still held (`pool`). A walk
//! costs microseconds, the claim nanoseconds.
//!
//! The first table is built by whichever thread first needs one, by reading files only: it does not ask
//! the loader, whose lock that thread might already be under, and it makes no index: what would take longer
//! waits for [`refresh`]. That takes about a millisecond; threads that come in that moment get [`Unknown::NotReady`] rather than wait. A child of fork keeps the
//! parent's table, and loses the slots that were claimed by threads it does not have.
//!
//! A cache is 32 KiB and is made when its slot is first claimed, so memory follows the number of
//! threads that walk *at once*, where one per thread would follow the number of threads.
//!
//! Not for signal handlers: see `own_stack::bounds`.

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
use crate::os::copied::Registers;
use crate::os::fork;
use crate::os::images::{self, Error};
use crate::os::own_stack::{bounds, read, registers};
use crate::unwind::kept::{Kept, OF_OWN};
use crate::unwind::modules::{Modules, Reading};
use crate::unwind::pool::{Claim, Pool, Turns};
use crate::unwind::tables::Cache;

pub use crate::unwind::copied_stack::{Outermost, Walker};

/// The frames that are recorded of a stack. Async services reach 60 to 90; of a deeper one both ends are kept, and a
/// [`Marker`](crate::model::Marker) stands between them.
pub const MAX_FRAMES: usize = 128;

/// The stack that must be left below the caller for a walk and what the heap profiler does around it. Measured: 4.5 KiB
/// with optimization, of which 2 KiB are for mapping a table's next part; 16 KiB without, for the walk alone.
const HEADROOM: u64 = if cfg!(debug_assertions) { 32 << 10 } else { 8 << 10 };

/// The stack that must be left for the first table and for a slot's cache, which take 45 KiB in a debug build. A thread
/// with less uses those that other threads have made.
const ROOM_TO_BUILD: u64 = 64 << 10;

/// The slots whose caches [`refresh`] makes: 128 KiB.
const PREPARED: usize = 4;

/// More threads than this do not walk at once: a walk takes microseconds.
const SLOTS: usize = 32;

/// While a walker stands still in the middle (stopped by a debugger, starved), tables retired since wait
/// for it. With so many waiting, refreshing pauses.
const MAX_RETIRED: usize = 4;

/// What a walk brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// How many frames were written.
    pub depth: usize,
    /// How many frames were left out between the innermost and the outermost.
    pub omitted: usize,
    /// How the walk ended. If not whole, the outermost frame is a [`Marker`](crate::model::Marker).
    pub end: End,
    /// Whether it did not come to the outer end, and the outermost frames are those of an earlier walk of the
    /// thread, whose return addresses are still in their places.
    pub is_joined: bool,
    /// Whether it passed code without unwind tables, by what that code's calls say.
    pub is_inferred: bool,
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At the thread's first function.
    Whole,
    /// At the end of the copy.
    Truncated,
    /// After as many frames as a walk takes.
    TooDeep,
    /// At a frame without usable unwind information, whose caller is not certain.
    Broken,
    /// At the first frame of a signal handler, where the code it interrupted has its stack elsewhere and
    /// that was not copied.
    Elsewhere,
}

/// Why there is no stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Another thread is reading the loaded files for the first time.
    NotReady,
    /// Too many threads are walking.
    Busy,
    /// The thread runs on a stack that is not its own: a signal stack, a coroutine.
    OtherStack,
    /// The thread is too near to the end of its stack.
    NearEnd,
}

/// Writes the calling thread's stack into `frames`, innermost first, without the `skip` innermost frames
/// (0: begin with the caller's own). Addresses are as [`crate::model::Frame`] wants those of callers:
/// return addresses less one.
#[inline(never)]
pub fn unwind_here(skip: usize, frames: &mut [u64]) -> Result<Walk, Unknown> {
    let registers = registers();
    let stack = own_stack(registers.sp)?;
    let room = registers.sp - stack.start;
    walk(registers, &(registers.sp..stack.end), room, End::Broken, skip, frames)
}

/// As [`unwind_here`], up to the function in whose frame the address `local` lies: that function is the
/// last, and its caller is not looked for. Costs only what lies in between.
#[inline(never)]
pub fn unwind_up_to(local: u64, skip: usize, frames: &mut [u64]) -> Result<Walk, Unknown> {
    let registers = registers();
    let stack = own_stack(registers.sp)?;
    if !stack.contains(&local) || registers.sp > local {
        return Err(Unknown::OtherStack);
    }
    let room = registers.sp - stack.start;
    // Return addresses lie above a frame's locals: the one of the function itself is out of reach.
    walk(registers, &(registers.sp..local), room, End::Whole, skip, frames)
}

/// The stack of the running thread, on which `sp` lies with enough room below.
fn own_stack(sp: u64) -> Result<Range<u64>, Unknown> {
    let stack = bounds().filter(|stack| stack.contains(&sp)).ok_or(Unknown::OtherStack)?;
    if sp - stack.start < HEADROOM { Err(Unknown::NearEnd) } else { Ok(stack) }
}

/// Walks through `stack`, below which there is so much room; `past_end` is what it means that the walk leaves it.
fn walk(
    registers: Registers,
    stack: &Range<u64>,
    room: u64,
    past_end: End,
    skip: usize,
    frames: &mut [u64],
) -> Result<Walk, Unknown> {
    let may_build = room >= ROOM_TO_BUILD;
    if POOL.is_empty() {
        if !may_build {
            return Err(Unknown::NotReady);
        }
        build_first()?;
    }
    let slot = POOL.claim().ok_or(Unknown::Busy)?;
    if !has_cache(&slot, may_build) {
        return Err(Unknown::Busy);
    }
    // A panic must not leave an allocator. None is known, and nothing relies on this: builds may abort.
    catch_unwind(AssertUnwindSafe(|| walk_by(&slot, registers, stack, past_end, skip, frames)))
        .unwrap_or(Err(Unknown::Busy))
}

/// Reads the loaded files again if the set has changed since the last time; says whether it had. For the
/// agent's threads, now and then: costs a microsecond when nothing changed, else about a millisecond.
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
    let modules = Modules::read(unsafe { old.as_ref() }, Reading::Whole)?;
    say_what_is_left_out(modules.left_out);
    publish(modules);
    GENERATION.store(generation, Relaxed);
    Ok(true)
}

/// For `/status`: stacks through these files end there.
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

/// What [`POOL`] points to, once more, for those who may wait and keep it. Nothing is allocated or
/// freed under this lock, since the thread that does may be the allocator's.
static CURRENT: Mutex<Option<Arc<Modules>>> = Mutex::new(None);
static GENERATION: AtomicU64 = AtomicU64::new(0);
static BUILDING: AtomicBool = AtomicBool::new(false);
static RETIRED: Mutex<Vec<Retired>> = Mutex::new(Vec::new());
static POOL: Pool<Modules, SLOTS> = Pool::new();
static CACHES: [Slot; SLOTS] = [const { Slot(UnsafeCell::new(None)) }; SLOTS];

/// The right to build the table. Dropping it gives the right back.
struct Building;

impl Building {
    /// Returns the right, or `None` if another thread has it.
    fn claim() -> Option<Self> {
        // In a forked child the thread that has it is not there.
        fork::reset_in_child(|| BUILDING.store(false, Release));
        (!BUILDING.swap(true, Acquire)).then_some(Self)
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        BUILDING.store(false, Release);
    }
}

/// Sees to it that there is a table.
#[cold]
fn build_first() -> Result<(), Unknown> {
    let Some(_building) = Building::claim() else { return Err(Unknown::NotReady) };
    if POOL.is_empty() {
        // Without /proc there is nothing to read, and trying again at each sample would be dear; the
        // empty table leads no further than the caller, and `refresh` tries again and says why.
        publish(Modules::read(None, Reading::Hasty).unwrap_or_else(|_| Modules::empty()));
    }
    Ok(())
}

/// The table in force, if one was read, to be kept for as long as it is needed.
pub(crate) fn current() -> Option<Arc<Modules>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A table that was replaced, and the turns of the pool just after.
struct Retired {
    modules: *const Modules,
    turns: Turns<SLOTS>,
}

// SAFETY: `Modules` is shared and freed across threads, and the pointer is its only owner.
unsafe impl Send for Retired {}

/// Makes `modules` the table; only under a claim of BUILDING.
fn publish(modules: Modules) {
    let fresh = Arc::new(modules);
    let kept = CURRENT.lock().unwrap_or_else(PoisonError::into_inner).replace(Arc::clone(&fresh));
    drop(kept);
    let (old, turns) = POOL.replace(Arc::into_raw(fresh).cast_mut());
    if !old.is_null() {
        let mut retired = RETIRED.lock().unwrap_or_else(PoisonError::into_inner);
        retired.push(Retired { modules: old, turns });
    }
    sweep();
}

/// Frees the retired tables that nobody can be reading and says how many are left; only under a claim
/// of BUILDING.
fn sweep() -> usize {
    let mut retired = RETIRED.lock().unwrap_or_else(PoisonError::into_inner);
    retired.retain(|old| {
        let in_use = POOL.is_in_use(&old.turns);
        if !in_use {
            // SAFETY: made by `Arc::into_raw` and unpublished by the swap in `publish`, and no walker
            // that could have loaded it before that is still under way; `retain` forgets it.
            drop(unsafe { Arc::from_raw(old.modules) });
        }
        in_use
    });
    retired.len()
}

/// The rules in a cache: 2 to this.
const CACHE_BITS: u32 = 10;

/// The cache of a slot of [`POOL`], made when the slot is first claimed.
struct Slot(UnsafeCell<Option<Cache>>);

// SAFETY: the cache is touched only by the thread that has claimed the slot, see `walk_by`.
unsafe impl Sync for Slot {}

/// Whether the slot has a cache, made now if it had none.
fn has_cache(claim: &Claim<'_, Modules, SLOTS>, may_make: bool) -> bool {
    let Some(slot) = CACHES.get(claim.slot()) else { return false };
    // SAFETY: the slot is claimed, by us alone, and each is claimed once at a time.
    let cache = unsafe { &mut *slot.0.get() };
    if cache.is_none() && may_make {
        make(cache);
    }
    cache.is_some()
}

/// Apart: the stack that this takes is not taken by a walk.
#[cold]
#[inline(never)]
fn make(cache: &mut Option<Cache>) {
    *cache = Some(Cache::new(CACHE_BITS));
}

/// Makes the caches of the first slots, for threads that have no room for it.
fn prepare() {
    static PREPARING: AtomicBool = AtomicBool::new(false);
    if PREPARING.swap(true, Acquire) {
        return;
    }
    // All at once: a claim takes the first that is free.
    let claims: [_; PREPARED] = std::array::from_fn(|_| POOL.claim());
    let done = claims.iter().flatten().filter(|claim| has_cache(claim, true)).count();
    // A walker had one of them, which it made itself or not.
    if done < PREPARED {
        PREPARING.store(false, Release);
    }
}

fn walk_by(
    claim: &Claim<'_, Modules, SLOTS>,
    registers: Registers,
    stack: &Range<u64>,
    past_end: End,
    skip: usize,
    frames: &mut [u64],
) -> Result<Walk, Unknown> {
    // SAFETY: published tables are whole, and one that is loaded while a slot is claimed is not freed
    // before the claim is dropped.
    let modules = unsafe { claim.value().as_ref() }.ok_or(Unknown::NotReady)?;
    let slot = CACHES.get(claim.slot()).ok_or(Unknown::Busy)?;
    // SAFETY: the slot is claimed, by us alone, and each is claimed once at a time: `walk` has the claim.
    let cache = unsafe { &mut *slot.0.get() }.as_mut().ok_or(Unknown::Busy)?;
    let left = Cell::new(false);
    let mut read_stack = |address| {
        left.set(left.get() | (address >= stack.end));
        // SAFETY: `stack` begins at the stack pointer of a frame of this thread that outlives the
        // walk and ends where the thread's stack does, or before.
        unsafe { read(stack, address) }
    };
    let mut kept = Kept::new(frames, &mut []);
    // The first frame is the one the registers were read in.
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
        None => End::Broken,
        Some(end) => end,
    };
    let mut is_joined = false;
    OUTERMOST.with(|outermost| match end {
        End::Whole if past_end != End::Whole => outermost.set(kept.outermost()),
        End::TooDeep if past_end != End::Whole => {
            let known = outermost.get();
            is_joined = kept.join(&known, walk.reached, &mut read_stack, |replaced| {
                infer::is_frame(modules, cache, replaced)
            });
            end = if is_joined { End::Whole } else { end };
        }
        _ => {}
    });
    let (depth, omitted) = kept.finish(end);
    Ok(Walk { depth, omitted, end, is_joined, is_inferred: walk.is_inferred })
}

thread_local! {
    /// The outermost frames of this thread's last whole walk.
    static OUTERMOST: Cell<Outermost<OF_OWN>> = const { Cell::new(Outermost::NONE) };
}

#[cfg(test)]
mod tests;
