//! What the allocator costs: CPU time over the system's allocator alone, in one run, interleaved.
//!
//! `cargo bench --bench heap` prints a line for each workload: its name, the median ratio, the goal,
//! pass or short. Both sides pay for the switch between them, one load and a branch. `control` is the system's allocator against itself: what the machine adds by itself.

// The allocator that is switched between rounds cannot be written without it.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use marple::base::Bytes;
use marple::heap;
use rustix::time::{ClockId, clock_gettime};

const ROUNDS: usize = 15;

static OURS: marple::Allocator<System> = marple::Allocator::new(System);
static USE_OURS: AtomicBool = AtomicBool::new(false);

/// The one or the other; both have the same inner allocator, and each pays for the choice.
struct Switch;

// SAFETY: both allocators hand the call on to `System`, so a block of one may be freed by the other.
unsafe impl GlobalAlloc for Switch {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on.
        unsafe { if USE_OURS.load(Relaxed) { OURS.alloc(layout) } else { System.alloc(layout) } }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe {
            if USE_OURS.load(Relaxed) {
                OURS.dealloc(block, layout);
            } else {
                System.dealloc(block, layout);
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: passed on.
        unsafe {
            if USE_OURS.load(Relaxed) {
                OURS.realloc(block, layout, size)
            } else {
                System.realloc(block, layout, size)
            }
        }
    }
}

#[global_allocator]
static ALLOCATOR: Switch = Switch;

fn pairs() {
    for _ in 0..2_000_000 {
        drop(black_box(Box::new([0u8; 16])));
    }
}

fn batch() {
    let mut random = 1u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) as usize
    };
    for _ in 0..60 {
        let mut blocks: Vec<Vec<u8>> =
            (0..2000).map(|_| Vec::with_capacity(16 + next() % 496)).collect();
        while !blocks.is_empty() {
            blocks.swap_remove(next() % blocks.len());
        }
    }
}

fn small_vec() {
    for _ in 0..60_000 {
        let mut grown = Vec::new();
        (0..100u32).for_each(|n| grown.push(black_box(n)));
        black_box(grown);
    }
}

fn json() {
    let line =
        r#"{"id":4711,"name":"a customer","tags":["a","b","c"],"nested":{"x":1.5,"y":[1,2,3]}}"#;
    let text = format!("[{}]", [line; 200].join(","));
    for _ in 0..15 {
        let value: serde_json::Value = serde_json::from_str(&text).expect("valid");
        black_box(value.to_string());
    }
}

/// The CPU seconds `work` takes on this thread.
fn cpu(ours: bool, work: fn()) -> f64 {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    USE_OURS.store(ours, Relaxed);
    let start = now();
    work();
    let spent = now() - start;
    USE_OURS.store(false, Relaxed);
    spent
}

/// The median over rounds of the ratio of the two.
fn ratio(ours: bool, work: fn()) -> f64 {
    let mut ratios: Vec<f64> = (0..ROUNDS)
        .map(|round| {
            if round % 2 == 0 {
                let ours = cpu(ours, work);
                ours / cpu(false, work)
            } else {
                let plain = cpu(false, work);
                cpu(ours, work) / plain
            }
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ROUNDS / 2]
}

fn main() {
    // Each workload: its goals at 512 KiB and with sampling off, where there are any.
    type Workload = (&'static str, fn(), Option<f64>, Option<f64>);
    let workloads: [Workload; 4] = [
        ("16 B pairs", pairs, Some(1.07), None),
        ("batch of 2000", batch, Some(1.20), None),
        ("small Vec", small_vec, None, None),
        ("JSON", json, Some(1.05), Some(1.04)),
    ];
    for (name, work, goal, goal_off) in workloads {
        cpu(true, work);
        println!("{name}, control: {:.3}", ratio(false, work));
        for (rate, goal) in [(Bytes::kib(512), goal), (Bytes(0), goal_off)] {
            heap::set_rate(rate);
            let value = ratio(true, work);
            let verdict = match goal {
                None => "no goal".to_owned(),
                Some(goal) if value <= goal => format!("goal {goal:.2}, pass"),
                Some(goal) => format!("goal {goal:.2}, short"),
            };
            println!("{name}, rate {}: {value:.3}, {verdict}", rate.get());
        }
    }
}
