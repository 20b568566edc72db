//! The registry of all rings and their owners.
//!
//! Rings are mapped when a thread records for the first time and are never unmapped. Rings of
//! threads that ended are reused, the longest unused first. As long as there is memory for more
//! rings, they are reused only after their records have left the window. So a program that starts a
//! thread a second stays within its limit, and the records of a thread remain readable after its
//! end.
//!
//! A service may start thousands of threads at once, and each of them takes this lock for its first
//! record. So the lock is held for about a microsecond. Memory is mapped outside of it. The number
//! of CPUs, for which the standard library reads cgroup files, is read once per process. Once no
//! memory is left, threads do not take the lock at all.
//!
//! Size of a ring: half of the memory is divided equally among as many threads as there are CPUs.
//! Each further thread gets an eighth of the rest, so some memory is always left.

use crate::base::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread;

use super::thread_rings::{RingMemory, RingOwner, ThreadRings};
use crate::os::clock::cycle_clock;
use crate::os::mapped_memory::MappedWords;
use crate::os::proc::threads;

/// Minimum number of slices in a ring.
const MIN_SLICES: usize = 64;

/// Number of slice records per task record.
const SLICES_PER_TASK_RECORD: usize = 8;

/// Attempts to lock the registry: about 10 us, several times its usual hold time.
const MAX_LOCK_ATTEMPTS: u32 = 256;

/// Returns the memory, in bytes, of rings for `slices` slices.
const fn ring_bytes(slices: usize) -> usize {
    (slices + slices / SLICES_PER_TASK_RECORD) * 16
}

#[derive(Default)]
struct RingRegistry {
    rings: Vec<&'static ThreadRings>,
    /// Memory limit of all rings and memory in use, in bytes.
    max_bytes: usize,
    used_bytes: usize,
    /// In ticks.
    window: u64,
}

static REGISTRY: Mutex<RingRegistry> =
    Mutex::new(RingRegistry { rings: Vec::new(), max_bytes: 0, used_bytes: 0, window: 0 });

/// `true` if no memory for more rings is left and no thread has returned its rings since.
static EXHAUSTED: AtomicBool = AtomicBool::new(false);

enum RingGrant {
    /// Rings that a thread has returned.
    Vacant(&'static ThreadRings),
    /// Memory for rings of this number of slices, already counted as used.
    Slices(usize),
}

/// Sets the memory limit of all rings in bytes and the length of the window in ticks. Existing
/// rings are not changed.
pub(crate) fn set_limits(bytes: usize, window: u64) {
    // Reads the number before a thread that records needs it.
    cpu_count();
    let mut registry = lock(&REGISTRY);
    registry.max_bytes = bytes;
    registry.window = window;
    EXHAUSTED.store(false, Ordering::SeqCst);
}

/// Returns the number of CPUs, at least 2.
fn cpu_count() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| thread::available_parallelism().map_or(2, |n| n.get().max(2)))
}

/// Returns all rings that have or had an owner.
pub(crate) fn all_rings() -> Vec<(&'static ThreadRings, RingOwner)> {
    let registry = lock(&REGISTRY);
    let rings = registry.rings.iter();
    rings.filter_map(|rings| Some((*rings, lock(&rings.owner).clone()?))).collect()
}

/// Returns `true` if the thread of the owner `id` has ended, or its rings have another owner.
pub(crate) fn owner_has_ended(id: u64) -> bool {
    let registry = lock(&REGISTRY);
    !registry.rings.iter().any(|rings| {
        lock(&rings.owner).as_ref().is_some_and(|owner| owner.id == id && owner.ended_at.is_none())
    })
}

/// Returns the number of slices of all threads that were nested too deep.
pub(crate) fn too_deep() -> u64 {
    let registry = lock(&REGISTRY);
    registry.rings.iter().map(|rings| rings.too_deep.load(Ordering::Relaxed)).sum()
}

/// The reason why a thread gets no rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RingDenial {
    /// Another thread holds the lock and may have been preempted.
    Busy,
    /// There is no memory for more rings.
    NoMemory,
}

/// Returns rings for the calling thread. Fails instead of waiting if another thread holds the
/// registry's lock for long. Waits for the lock only to register memory that it has mapped.
pub(crate) fn acquire() -> Result<&'static ThreadRings, RingDenial> {
    if EXHAUSTED.load(Ordering::Relaxed) {
        return Err(RingDenial::NoMemory);
    }
    let tid = threads::current_tid();
    let thread = threads::current_name().into();
    let cpus = cpu_count();
    let mut registry = try_lock(&REGISTRY).ok_or(RingDenial::Busy)?;
    let grant = registry.grant(cpus).ok_or(RingDenial::NoMemory)?;
    drop(registry);
    let mapped = match grant {
        RingGrant::Vacant(rings) => {
            rings.runtime.store(0, Ordering::Relaxed);
            rings.worker.store(0, Ordering::Relaxed);
            return Ok(rings.assign_to(tid, thread));
        }
        RingGrant::Slices(slices) => map_rings(slices).ok_or(slices),
    };
    let mut registry = lock(&REGISTRY);
    match mapped {
        Ok(rings) => {
            registry.rings.push(rings);
            Ok(rings.assign_to(tid, thread))
        }
        Err(slices) => {
            registry.used_bytes -= ring_bytes(slices);
            Err(RingDenial::NoMemory)
        }
    }
}

fn map_rings(slices: usize) -> Option<&'static ThreadRings> {
    let map = |records: usize| -> Option<RingMemory> {
        Box::leak(Box::new(MappedWords::new(2 * records))).get_or_map()
    };
    Some(Box::leak(Box::new(ThreadRings::new(map(slices)?, map(slices / SLICES_PER_TASK_RECORD)?))))
}

/// Marks the rings of a thread that ended as available.
pub(crate) fn release(rings: &ThreadRings) {
    rings.clear_open_slices();
    if let Some(owner) = lock(&rings.owner).as_mut() {
        owner.ended_at = Some(cycle_clock::now());
    }
    EXHAUSTED.store(false, Ordering::SeqCst);
}

impl ThreadRings {
    /// Makes the calling thread the owner.
    fn assign_to(&'static self, tid: u32, thread: Arc<str>) -> &'static Self {
        static OWNER_COUNT: AtomicU64 = AtomicU64::new(0);
        self.clear_open_slices();
        *lock(&self.owner) = Some(RingOwner {
            id: OWNER_COUNT.fetch_add(1, Ordering::Relaxed) + 1,
            tid,
            thread,
            first_slice: self.slices.next(),
            first_task: self.tasks.next(),
            ended_at: None,
        });
        self
    }
}

impl RingRegistry {
    fn grant(&mut self, cpus: usize) -> Option<RingGrant> {
        let window_start = cycle_clock::now().saturating_sub(self.window);
        let vacant = self.oldest_vacant();
        let grant = match vacant {
            Some((ended_at, rings)) if ended_at < window_start => RingGrant::Vacant(rings),
            _ => match (self.reserve(cpus), vacant) {
                (Some(slices), _) => RingGrant::Slices(slices),
                (None, Some((_, rings))) => RingGrant::Vacant(rings),
                (None, None) => {
                    // Set before the second search. Rings returned at this moment are found by it,
                    // or their return clears the flag.
                    EXHAUSTED.store(true, Ordering::SeqCst);
                    let (_, rings) = self.oldest_vacant()?;
                    EXHAUSTED.store(false, Ordering::SeqCst);
                    RingGrant::Vacant(rings)
                }
            },
        };
        if let RingGrant::Vacant(rings) = grant
            && let Some(owner) = lock(&rings.owner).as_mut()
        {
            // Prevents a second grant of the same rings.
            owner.ended_at = None;
        }
        Some(grant)
    }

    /// Returns the rings that have been available for longest, and the time at which their owner
    /// ended.
    fn oldest_vacant(&self) -> Option<(u64, &'static ThreadRings)> {
        let vacant = self
            .rings
            .iter()
            .filter_map(|rings| Some((lock(&rings.owner).as_ref()?.ended_at?, *rings)));
        vacant.min_by_key(|&(ended_at, _)| ended_at)
    }

    /// Reserves memory for a thread's rings and returns the number of slices.
    fn reserve(&mut self, cpus: usize) -> Option<usize> {
        let half = self.max_bytes / 2;
        let remaining = self.max_bytes.saturating_sub(self.used_bytes);
        let share = half / cpus;
        let share = if self.used_bytes + share <= half { share } else { remaining / 8 };
        let fitting = share * SLICES_PER_TASK_RECORD / (SLICES_PER_TASK_RECORD + 1) / 16;
        let slices = if fitting == 0 { 0 } else { 1 << fitting.ilog2() };
        if slices < MIN_SLICES {
            return None;
        }
        self.used_bytes += ring_bytes(slices);
        Some(slices)
    }
}

/// Locks `mutex`. Returns `None` if another thread still holds it after [`MAX_LOCK_ATTEMPTS`]
/// tries, which is longer than a running thread would hold it.
fn try_lock<T: Default>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    for _ in 0..MAX_LOCK_ATTEMPTS {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
        }
    }
    None
}

/// Ignores poisoning: no code that can panic runs under these locks.
fn lock<T: Default>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
