//! All rings there are, and whose they are.
//!
//! Rings are mapped when a thread first records, never unmapped, and pass from a thread that ended to one
//! that began: of those given back the one longest at rest, and not before its records have left the
//! window as long as there is memory for others. So a program that makes a thread a second keeps to its
//! bound, and what a thread did stays readable after its end.
//!
//! How much a ring gets: half of the memory is for as many threads as there are CPUs, in equal parts; any
//! further thread gets an eighth of what is left, so that there is always some left.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use super::thread::{Memory, Rings};
use crate::os::memory::Chunk;
use crate::os::{threads, ticks};

/// The fewest slices a ring is made for.
const LEAST: usize = 64;

/// Of so many slices one is a task's.
const TASKS: usize = 8;

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
    pub(super) thread: String,
    /// The first records of this thread.
    pub(super) first_slice: u64,
    pub(super) first_task: u64,
    /// When the thread ended, in ticks.
    pub(super) ended: Option<u64>,
}

struct Registry {
    rings: Vec<&'static Rings>,
    /// What all rings may take and what they do.
    most: usize,
    used: usize,
    /// In ticks.
    window: u64,
    tenancies: u64,
}

static REGISTRY: Mutex<Registry> =
    Mutex::new(Registry { rings: Vec::new(), most: 0, used: 0, window: 0, tenancies: 0 });

/// Sets how much memory rings may take, and for how long what is in them is wanted, in ticks. Rings that
/// exist stay as they are.
pub(super) fn limit(bytes: usize, window: u64) {
    let mut registry = lock(&REGISTRY);
    registry.most = bytes;
    registry.window = window;
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

/// Rings for the calling thread; none when there is no memory for them.
pub(super) fn take() -> Option<&'static Rings> {
    let (tid, thread) = (threads::current(), threads::current_name());
    let mut registry = lock(&REGISTRY);
    let vacant = registry
        .rings
        .iter()
        .filter_map(|rings| Some((lock(&rings.tenancy).as_ref()?.ended?, *rings)));
    let vacant = vacant.min_by_key(|&(ended, _)| ended);
    let forgotten = ticks::now().saturating_sub(registry.window);
    let rings = match vacant {
        Some((ended, rings)) if ended < forgotten => rings,
        _ => registry.make().or(vacant.map(|(_, rings)| rings))?,
    };
    registry.tenancies += 1;
    rings.close();
    rings.runtime.store(0, Ordering::Relaxed);
    rings.worker.store(0, Ordering::Relaxed);
    *lock(&rings.tenancy) = Some(Tenancy {
        id: registry.tenancies,
        tid,
        thread,
        first_slice: rings.slices.next(),
        first_task: rings.tasks.next(),
        ended: None,
    });
    Some(rings)
}

/// The thread that had them has ended.
pub(super) fn give_back(rings: &Rings) {
    rings.close();
    if let Some(tenancy) = lock(&rings.tenancy).as_mut() {
        tenancy.ended = Some(ticks::now());
    }
}

impl Registry {
    fn make(&mut self) -> Option<&'static Rings> {
        let cpus = thread::available_parallelism().map_or(2, |n| n.get().max(2));
        let half = self.most / 2;
        let left = self.most.saturating_sub(self.used);
        let share = half / cpus;
        let share = if self.used + share <= half { share } else { left / 8 };
        let fitting = share * TASKS / (TASKS + 1) / 16;
        let slices = if fitting == 0 { 0 } else { 1 << fitting.ilog2() };
        if slices < LEAST {
            return None;
        }
        let map = |records: usize| -> Option<Memory> {
            Box::leak(Box::new(Chunk::new(2 * records))).get_or_map()
        };
        let rings: &Rings = Box::leak(Box::new(Rings::new(map(slices)?, map(slices / TASKS)?)));
        self.used += bytes(slices);
        self.rings.push(rings);
        Some(rings)
    }
}

/// No code that can panic runs under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
