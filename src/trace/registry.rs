//! The registry of all rings and their owners.
//!
//! Rings are mapped when a thread records for the first time and are never unmapped. Rings of
//! threads that ended are reused, the longest unused first. As long as memory for others is left,
//! rings are reused only after their records have left the window. So a program that starts a
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

use super::thread::{Memory, ThreadRings};
use crate::os::clock::cycle_clock;
use crate::os::mapped_memory::MappedWords;
use crate::os::proc::threads;

/// Minimum number of slices in a ring.
const LEAST: usize = 64;

/// Number of slice records per task record.
const TASKS: usize = 8;

/// Attempts to lock the registry: about 10 us, several times its usual hold time.
const ATTEMPTS: u32 = 256;

/// Returns the memory, in bytes, of rings for `slices` slices.
const fn bytes(slices: usize) -> usize {
    (slices + slices / TASKS) * 16
}

/// The current or last owner of a thread's rings.
#[derive(Clone, Debug)]
pub(crate) struct RingOwner {
    /// Unique number of this ownership.
    pub(crate) id: u64,
    pub(crate) tid: u32,
    pub(crate) thread: Arc<str>,
    /// The first records of this thread.
    pub(crate) first_slice: u64,
    pub(crate) first_task: u64,
    /// End of the thread, in ticks; `None` while it runs.
    pub(crate) ended: Option<u64>,
}

#[derive(Default)]
struct RingRegistry {
    rings: Vec<&'static ThreadRings>,
    /// Memory limit of all rings and memory in use, in bytes.
    most: usize,
    used: usize,
    /// In ticks.
    window: u64,
}

static REGISTRY: Mutex<RingRegistry> =
    Mutex::new(RingRegistry { rings: Vec::new(), most: 0, used: 0, window: 0 });

/// `true` if no memory for more rings is left and no rings were returned since.
static EXHAUSTED: AtomicBool = AtomicBool::new(false);

/// Rings granted to a thread.
enum RingGrant {
    /// Rings that a thread has returned.
    Vacant(&'static ThreadRings),
    /// Memory for this number of slices, already counted as used.
    Slices(usize),
}

/// Sets the memory limit of all rings in bytes and the length of the window in ticks. Existing
/// rings are not changed.
pub(crate) fn limit(bytes: usize, window: u64) {
    cpus();
    let mut registry = lock(&REGISTRY);
    registry.most = bytes;
    registry.window = window;
    EXHAUSTED.store(false, Ordering::SeqCst);
}

/// Returns the number of CPUs, at least 2.
fn cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| thread::available_parallelism().map_or(2, |n| n.get().max(2)))
}

/// Returns all rings that have or had an owner.
pub(crate) fn all() -> Vec<(&'static ThreadRings, RingOwner)> {
    let registry = lock(&REGISTRY);
    let rings = registry.rings.iter();
    rings.filter_map(|rings| Some((*rings, lock(&rings.tenancy).clone()?))).collect()
}

/// Returns `true` if the thread of the owner `id` has ended, or its rings have another owner.
pub(crate) fn is_over(id: u64) -> bool {
    let registry = lock(&REGISTRY);
    !registry.rings.iter().any(|rings| {
        lock(&rings.tenancy).as_ref().is_some_and(|own| own.id == id && own.ended.is_none())
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

/// Returns rings for the calling thread. Never waits for a thread that is not running.
///
/// # Errors
///
/// The reason why there are no rings.
pub(crate) fn take() -> Result<&'static ThreadRings, RingDenial> {
    if EXHAUSTED.load(Ordering::Relaxed) {
        return Err(RingDenial::NoMemory);
    }
    let (tid, thread) = (threads::current(), threads::current_name().into());
    let cpus = cpus();
    let mut registry = try_lock(&REGISTRY).ok_or(RingDenial::Busy)?;
    let grant = registry.grant(cpus).ok_or(RingDenial::NoMemory)?;
    drop(registry);
    let fresh = match grant {
        RingGrant::Vacant(rings) => {
            rings.runtime.store(0, Ordering::Relaxed);
            rings.worker.store(0, Ordering::Relaxed);
            return Ok(rings.let_to(tid, thread));
        }
        RingGrant::Slices(slices) => map(slices).ok_or(slices),
    };
    let mut registry = lock(&REGISTRY);
    match fresh {
        Ok(rings) => {
            registry.rings.push(rings);
            Ok(rings.let_to(tid, thread))
        }
        Err(slices) => {
            registry.used -= bytes(slices);
            Err(RingDenial::NoMemory)
        }
    }
}

fn map(slices: usize) -> Option<&'static ThreadRings> {
    let map = |records: usize| -> Option<Memory> {
        Box::leak(Box::new(MappedWords::new(2 * records))).get_or_map()
    };
    Some(Box::leak(Box::new(ThreadRings::new(map(slices)?, map(slices / TASKS)?))))
}

/// Marks the rings of a thread that ended as available.
pub(crate) fn give_back(rings: &ThreadRings) {
    rings.close();
    if let Some(tenancy) = lock(&rings.tenancy).as_mut() {
        tenancy.ended = Some(cycle_clock::now());
    }
    EXHAUSTED.store(false, Ordering::SeqCst);
}

impl ThreadRings {
    /// Makes the calling thread the owner.
    fn let_to(&'static self, tid: u32, thread: Arc<str>) -> &'static Self {
        static TENANCIES: AtomicU64 = AtomicU64::new(0);
        self.close();
        *lock(&self.tenancy) = Some(RingOwner {
            id: TENANCIES.fetch_add(1, Ordering::Relaxed) + 1,
            tid,
            thread,
            first_slice: self.slices.next(),
            first_task: self.tasks.next(),
            ended: None,
        });
        self
    }
}

impl RingRegistry {
    fn grant(&mut self, cpus: usize) -> Option<RingGrant> {
        let forgotten = cycle_clock::now().saturating_sub(self.window);
        let vacant = self.vacant();
        let grant = match vacant {
            Some((ended, rings)) if ended < forgotten => RingGrant::Vacant(rings),
            _ => match (self.reserve(cpus), vacant) {
                (Some(slices), _) => RingGrant::Slices(slices),
                (None, Some((_, rings))) => RingGrant::Vacant(rings),
                (None, None) => {
                    // Set before the second search: rings returned at this moment are either found,
                    // or their return clears the flag.
                    EXHAUSTED.store(true, Ordering::SeqCst);
                    let (_, rings) = self.vacant()?;
                    EXHAUSTED.store(false, Ordering::SeqCst);
                    RingGrant::Vacant(rings)
                }
            },
        };
        if let RingGrant::Vacant(rings) = grant
            && let Some(tenancy) = lock(&rings.tenancy).as_mut()
        {
            // Prevents a second grant of the same rings.
            tenancy.ended = None;
        }
        Some(grant)
    }

    /// Returns the available rings that were returned first.
    fn vacant(&self) -> Option<(u64, &'static ThreadRings)> {
        let vacant = self
            .rings
            .iter()
            .filter_map(|rings| Some((lock(&rings.tenancy).as_ref()?.ended?, *rings)));
        vacant.min_by_key(|&(ended, _)| ended)
    }

    /// Reserves memory for a thread's rings and returns the number of slices.
    fn reserve(&mut self, cpus: usize) -> Option<usize> {
        let half = self.most / 2;
        let left = self.most.saturating_sub(self.used);
        let share = half / cpus;
        let share = if self.used + share <= half { share } else { left / 8 };
        let fitting = share * TASKS / (TASKS + 1) / 16;
        let slices = if fitting == 0 { 0 } else { 1 << fitting.ilog2() };
        if slices < LEAST {
            return None;
        }
        self.used += bytes(slices);
        Some(slices)
    }
}

/// Locks `mutex`. Returns `None` if another thread still holds it after [`ATTEMPTS`] tries, which
/// is longer than a running thread would hold it.
fn try_lock<T: Default>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    for _ in 0..ATTEMPTS {
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
