//! The current unwind tables, shared by all walkers: built, replaced and freed.
//!
//! ```text
//! POOL -> LoadedModules (immutable)   replaced ones stay in RETIRED until no walker can read them
//!         32 slots, a cache for each  claimed by one walking thread at a time
//! ```
//!
//! A walker claims a slot of the pool, then loads the table. [`refresh`] runs on the agent's
//! thread. It publishes a new table, and frees the old one when no slot claimed before the change
//! is still held (module `pool`).
//!
//! The first thread that needs a table builds it, by reading files only. It does not call the
//! loader, because that thread may hold the loader's lock, and it builds no index. Slower work is
//! left to [`refresh`]. The first build takes about a millisecond; other threads get
//! [`UnwindError::NotReady`] meanwhile and do not wait. A forked child keeps the parent's table. It
//! loses the slots claimed by threads that do not exist in the child.
//!
//! A cache takes 32 KiB and is allocated when its slot is first claimed. Memory therefore follows
//! the number of threads that walk *concurrently*, not the number of threads.

#![allow(unsafe_code, reason = "tables and caches shared through raw pointers, freed by hand")]

use crate::base::sync::Mutex;
use std::cell::UnsafeCell;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, PoisonError};

use crate::base::{ForkAwareFlag, warnings};
use crate::os::images::{self, Error};
use crate::unwind::UnwindError;
use crate::unwind::modules::{LoadedModules, ReadDepth};
use crate::unwind::pool::{SlotClaim, SlotPool, SlotSequences};
use crate::unwind::tables::RuleCache;

/// Number of slots whose caches [`refresh`] allocates in advance: 128 KiB.
const PREALLOCATED_CACHES: usize = 4;

/// Maximum concurrent walkers. A walk takes microseconds, so more are not expected.
const MAX_WALKERS: usize = 32;

/// Maximum retired tables. A walker that is suspended (debugger, starvation) keeps all tables
/// retired since from being freed. [`refresh`] pauses at this number.
const MAX_RETIRED: usize = 4;

/// The table [`POOL`] points to, for callers that may wait and keep a reference. Nothing is
/// allocated or freed under this lock, because a thread inside the allocator may take it.
static CURRENT: Mutex<Option<Arc<LoadedModules>>> = Mutex::new(None);
static GENERATION: AtomicU64 = AtomicU64::new(0);
static BUILDING: ForkAwareFlag = ForkAwareFlag::new();
static RETIRED: Mutex<Vec<RetiredModules>> = Mutex::new(Vec::new());
static POOL: SlotPool<LoadedModules, MAX_WALKERS> = SlotPool::new();
static CACHES: [CacheSlot; MAX_WALKERS] = [const { CacheSlot(UnsafeCell::new(None)) }; MAX_WALKERS];

/// Right to read the table and to use the slot's cache, held by one walking thread.
pub(super) type TableClaim = SlotClaim<'static, LoadedModules, MAX_WALKERS>;

/// Claims the table for a walk of the calling thread. The first table, and the cache of a slot, are
/// built only if `may_build`: this takes more stack than a walk.
pub(super) fn claim(may_build: bool) -> Result<TableClaim, UnwindError> {
    if POOL.is_empty() {
        if !may_build {
            return Err(UnwindError::NotReady);
        }
        build_first_table()?;
    }
    let claim = POOL.claim().ok_or(UnwindError::Busy)?;
    if ensure_cache(&claim, may_build) { Ok(claim) } else { Err(UnwindError::Busy) }
}

/// Returns the table and the cache of the claimed slot.
#[inline]
pub(super) fn tables_of(
    claim: &mut TableClaim,
) -> Result<(&LoadedModules, &mut RuleCache), UnwindError> {
    // SAFETY: published tables are complete. A table loaded while a slot is claimed is not freed
    // before the claim is dropped.
    let modules = unsafe { claim.value().as_ref() }.ok_or(UnwindError::NotReady)?;
    let slot = CACHES.get(claim.slot()).ok_or(UnwindError::Busy)?;
    // SAFETY: a slot is claimed by one thread at a time, and the claim is borrowed mutably.
    let cache = unsafe { &mut *slot.0.get() }.as_mut().ok_or(UnwindError::Busy)?;
    Ok((modules, cache))
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
    // SAFETY: a table is freed by `free_retired` only, which runs under the same claim of BUILDING.
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

/// Exclusive right to build the table, released on drop.
struct BuildLock;

impl BuildLock {
    /// Claims the right, or returns `None` if another thread holds it.
    fn claim() -> Option<Self> {
        // Not `then_some`, whose argument would be made and dropped in any case.
        if BUILDING.try_set() { Some(Self) } else { None }
    }
}

impl Drop for BuildLock {
    fn drop(&mut self) {
        BUILDING.clear();
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
pub(super) fn current_modules() -> Option<Arc<LoadedModules>> {
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

// SAFETY: only the thread that has claimed the slot accesses the cache, see `tables_of`.
unsafe impl Sync for CacheSlot {}

/// Returns `true` if the slot has a cache, after allocating one if necessary and if `may_allocate`.
fn ensure_cache(claim: &TableClaim, may_allocate: bool) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::own_stack::tests::recurse;
    use crate::unwind::{MAX_FRAMES, WalkEnd};

    #[test]
    fn replaced_tables_are_freed_after_concurrent_walks() {
        std::thread::scope(|scope| {
            let walkers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..200 {
                            let mut frames = [0; MAX_FRAMES];
                            assert_eq!(recurse(3, 0, &mut frames).end, WalkEnd::Complete);
                        }
                    })
                })
                .collect();
            while walkers.iter().any(|walker| !walker.is_finished()) {
                GENERATION.store(0, Relaxed);
                refresh().unwrap();
            }
        });
        GENERATION.store(0, Relaxed);
        while !refresh().unwrap() {
            std::thread::yield_now();
        }
        assert!(!refresh().unwrap(), "nothing was loaded in between");
        assert!(RETIRED.lock().unwrap().len() <= MAX_RETIRED);
    }

    #[test]
    fn failed_build_claim_does_not_release_the_lock() {
        let building = loop {
            // Another test may be building.
            if let Some(building) = BuildLock::claim() {
                break building;
            }
            std::thread::yield_now();
        };
        assert!(BuildLock::claim().is_none());
        assert!(BuildLock::claim().is_none());
        drop(building);
    }
}
