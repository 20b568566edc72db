//! All rings there are, and whose they are.
//!
//! Rings are mapped when a thread first records, never unmapped, and pass from a thread that ended to one
//! that began: of those given back the one longest at rest, and not before its records have left the
//! window as long as there is memory for others. So a program that makes a thread a second keeps to its
//! bound, and what a thread did stays readable after its end.
//!
//! A service may start thousands of threads at once, and each of them comes here with its first record. So the lock is
//! held for a microsecond: memory is mapped outside of it, the number of CPUs, for which the standard library reads
//! cgroup files, is read once a process, and while there is nothing to be had, threads do not take the lock at all.
//!
//! How much a ring gets: half of the memory is for as many threads as there are CPUs, in equal parts; any
//! further thread gets an eighth of what is left, so that there is always some left.

use crate::base::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread;

use super::thread::{Memory, Rings};
use crate::os::memory::Chunk;
use crate::os::{threads, ticks};

/// The fewest slices a ring is made for.
const LEAST: usize = 64;

/// Of so many slices one is a task's.
const TASKS: usize = 8;

/// Attempts to lock the registry, some 10 us: several times what it is held for.
const ATTEMPTS: u32 = 256;

/// What the rings for so many slices take.
const fn bytes(slices: usize) -> usize {
    (slices + slices / TASKS) * 16
}

/// Whose rings they are.
#[derive(Clone, Debug)]
pub(super) struct Tenancy {
    /// Tells this tenancy from all others.
    pub(super) id: u64,
    pub(super) tid: u32,
    pub(super) thread: Arc<str>,
    /// The first records of this thread.
    pub(super) first_slice: u64,
    pub(super) first_task: u64,
    /// When the thread ended, in ticks.
    pub(super) ended: Option<u64>,
}

#[derive(Default)]
struct Registry {
    rings: Vec<&'static Rings>,
    /// What all rings may take and what they do.
    most: usize,
    used: usize,
    /// In ticks.
    window: u64,
}

static REGISTRY: Mutex<Registry> =
    Mutex::new(Registry { rings: Vec::new(), most: 0, used: 0, window: 0 });

/// Whether there is no memory for more rings and none were given back.
static EXHAUSTED: AtomicBool = AtomicBool::new(false);

/// What a thread gets.
enum Grant {
    /// Rings that a thread has given back.
    Vacant(&'static Rings),
    /// Memory for so many slices, which counts as used.
    Slices(usize),
}

/// Sets how much memory rings may take, and for how long what is in them is wanted, in ticks. Rings that
/// exist stay as they are.
pub(super) fn limit(bytes: usize, window: u64) {
    cpus();
    let mut registry = lock(&REGISTRY);
    registry.most = bytes;
    registry.window = window;
    EXHAUSTED.store(false, Ordering::SeqCst);
}

/// The number of CPUs, two at least.
fn cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| thread::available_parallelism().map_or(2, |n| n.get().max(2)))
}

/// All rings that have or had a thread.
pub(super) fn all() -> Vec<(&'static Rings, Tenancy)> {
    let registry = lock(&REGISTRY);
    let rings = registry.rings.iter();
    rings.filter_map(|rings| Some((*rings, lock(&rings.tenancy).clone()?))).collect()
}

/// Whether the thread of the tenancy `id` has ended, or its rings have passed on.
pub(super) fn is_over(id: u64) -> bool {
    let registry = lock(&REGISTRY);
    !registry.rings.iter().any(|rings| {
        lock(&rings.tenancy).as_ref().is_some_and(|own| own.id == id && own.ended.is_none())
    })
}

/// How many slices of all threads were too deep.
pub(super) fn too_deep() -> u64 {
    let registry = lock(&REGISTRY);
    registry.rings.iter().map(|rings| rings.too_deep.load(Ordering::Relaxed)).sum()
}

/// The reason why a thread has no rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// Other threads are here, and the one that holds the lock may have lost its core.
    Busy,
    /// There is no memory for more rings.
    NoMemory,
}

/// Returns rings for the calling thread.
///
/// # Errors
///
/// The reason why there are none. Never waits for a thread that does not run.
pub(super) fn take() -> Result<&'static Rings, Denial> {
    if EXHAUSTED.load(Ordering::Relaxed) {
        return Err(Denial::NoMemory);
    }
    let (tid, thread) = (threads::current(), threads::current_name().into());
    let cpus = cpus();
    let mut registry = try_lock(&REGISTRY).ok_or(Denial::Busy)?;
    let grant = registry.grant(cpus).ok_or(Denial::NoMemory)?;
    drop(registry);
    let fresh = match grant {
        Grant::Vacant(rings) => {
            rings.runtime.store(0, Ordering::Relaxed);
            rings.worker.store(0, Ordering::Relaxed);
            return Ok(rings.let_to(tid, thread));
        }
        Grant::Slices(slices) => map(slices).ok_or(slices),
    };
    let mut registry = lock(&REGISTRY);
    match fresh {
        Ok(rings) => {
            registry.rings.push(rings);
            Ok(rings.let_to(tid, thread))
        }
        Err(slices) => {
            registry.used -= bytes(slices);
            Err(Denial::NoMemory)
        }
    }
}

fn map(slices: usize) -> Option<&'static Rings> {
    let map = |records: usize| -> Option<Memory> {
        Box::leak(Box::new(Chunk::new(2 * records))).get_or_map()
    };
    Some(Box::leak(Box::new(Rings::new(map(slices)?, map(slices / TASKS)?))))
}

/// The thread that had them has ended.
pub(super) fn give_back(rings: &Rings) {
    rings.close();
    if let Some(tenancy) = lock(&rings.tenancy).as_mut() {
        tenancy.ended = Some(ticks::now());
    }
    EXHAUSTED.store(false, Ordering::SeqCst);
}

impl Rings {
    /// Makes the calling thread their owner.
    fn let_to(&'static self, tid: u32, thread: Arc<str>) -> &'static Self {
        static TENANCIES: AtomicU64 = AtomicU64::new(0);
        self.close();
        *lock(&self.tenancy) = Some(Tenancy {
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

impl Registry {
    fn grant(&mut self, cpus: usize) -> Option<Grant> {
        let forgotten = ticks::now().saturating_sub(self.window);
        let vacant = self.vacant();
        let grant = match vacant {
            Some((ended, rings)) if ended < forgotten => Grant::Vacant(rings),
            _ => match (self.reserve(cpus), vacant) {
                (Some(slices), _) => Grant::Slices(slices),
                (None, Some((_, rings))) => Grant::Vacant(rings),
                (None, None) => {
                    // Set before the second look, so that rings that are given back now are either seen or take
                    // this back.
                    EXHAUSTED.store(true, Ordering::SeqCst);
                    let (_, rings) = self.vacant()?;
                    EXHAUSTED.store(false, Ordering::SeqCst);
                    Grant::Vacant(rings)
                }
            },
        };
        if let Grant::Vacant(rings) = grant
            && let Some(tenancy) = lock(&rings.tenancy).as_mut()
        {
            // Nobody else gets them.
            tenancy.ended = None;
        }
        Some(grant)
    }

    /// The rings that were given back the longest time ago.
    fn vacant(&self) -> Option<(u64, &'static Rings)> {
        let vacant = self
            .rings
            .iter()
            .filter_map(|rings| Some((lock(&rings.tenancy).as_ref()?.ended?, *rings)));
        vacant.min_by_key(|&(ended, _)| ended)
    }

    /// Takes memory for a thread's slices.
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

/// Locks `mutex`, or returns `None` if another thread holds it for longer than it would run there.
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

/// No code that can panic runs under these locks.
fn lock<T: Default>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
