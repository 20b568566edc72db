//! The workloads, and a server process that runs them on request.
//!
//! Each line on stdin names a workload. The response is the CPU time that all threads of the
//! process used for it, in nanoseconds. `cargo bench --bench heap` alternates between two such
//! programs.

mod dump;

use std::collections::HashMap;
use std::hint::black_box;
use std::io::{self, BufRead};

use rustix::time::{ClockId, clock_gettime};

pub use dump::Counting;

/// Responds to requests until stdin ends. With the arguments `WORKLOAD N` it runs the workload N
/// times and prints nothing, to count instructions; CPU time has no meaning under valgrind. An
/// operation of `alloc and free` is one pair of calls. `dump` takes the allocator's own profile and
/// returns its size.
pub fn serve(prepare: impl FnOnce(), dump: impl Fn() -> usize) {
    prepare();
    let mut arguments = std::env::args().skip(1);
    if let Some(name) = arguments.next() {
        let count = arguments.next().and_then(|n| n.parse().ok()).expect("a workload and a number");
        return match name.as_str() {
            "alloc and free" => alloc_and_free(count),
            name => (0..count).for_each(|_| workload(name)()),
        };
    }
    for line in io::stdin().lock().lines() {
        match line.expect("a line").as_str() {
            "dump" => dump::measure(&dump),
            name => {
                let work = workload(name);
                let start = cpu_nanos();
                work();
                println!("{}", cpu_nanos() - start);
            }
        }
    }
}

fn workload(name: &str) -> fn() {
    match name {
        "alloc and free" => || alloc_and_free(1_000_000),
        "batch" => || batch(40),
        "batch on 2 threads" => batch_on_two_threads,
        "small Vec" => small_vec,
        "json" => json,
        "hash map" => hash_map,
        "spawn and format" => spawn_and_format,
        other => panic!("no workload `{other}`"),
    }
}

fn cpu_nanos() -> i64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

fn alloc_and_free(count: usize) {
    for _ in 0..count {
        drop(black_box(Box::new([0u8; 16])));
    }
}

/// Allocates blocks of 16 to 511 bytes, 2000 at a time, and frees them in random order.
fn batch(rounds: usize) {
    let mut random = 1u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) as usize
    };
    for _ in 0..rounds {
        let mut blocks: Vec<Vec<u8>> =
            (0..2000).map(|_| Vec::with_capacity(16 + next() % 496)).collect();
        while !blocks.is_empty() {
            blocks.swap_remove(next() % blocks.len());
        }
    }
}

fn batch_on_two_threads() {
    std::thread::scope(|scope| {
        scope.spawn(|| batch(25));
        scope.spawn(|| batch(25));
    });
}

/// Grows a `Vec` to 100 elements from empty.
fn small_vec() {
    for _ in 0..40_000 {
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

fn hash_map() {
    for _ in 0..4 {
        let mut map: HashMap<u64, String> = HashMap::new();
        for n in 0..10_000u64 {
            map.insert(n.wrapping_mul(0x9e37_79b9_7f4a_7c15), n.to_string());
            if n > 2000 {
                map.remove(&(n - 2000).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            }
        }
        black_box(map);
    }
}

fn spawn_and_format() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        for _ in 0..200 {
            let spawned = (0..100).map(|n| tokio::spawn(async move { format!("task {n}") }));
            for task in spawned.collect::<Vec<_>>() {
                black_box(task.await.expect("no panic"));
            }
        }
    });
}
