//! The table against a map, and against threads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;

fn record(n: u64) -> Record {
    Record { site: n as u32, size: n * 3, weight: n as f64 + 0.5 }
}

fn all(live: &Live) -> Vec<Record> {
    let mut all = Vec::new();
    live.for_each(|record| all.push(record));
    all.sort_by_key(|record| (record.site, record.size));
    all
}

proptest! {
    #[test]
    fn the_table_is_a_map(steps in prop::collection::vec((any::<bool>(), 1usize..200), 1..600)) {
        let (live, mut map) = (Live::new(), HashMap::new());
        for (number, (insert, block)) in steps.into_iter().enumerate() {
            let address = 0x7f00_0000_0000 + block * 16;
            if insert && !map.contains_key(&address) {
                prop_assert!(live.insert(address, record(number as u64)));
                map.insert(address, record(number as u64));
            } else {
                prop_assert_eq!(live.take(address), map.remove(&address));
            }
        }
        let mut left: Vec<_> = map.into_values().collect();
        left.sort_by_key(|record| (record.site, record.size));
        prop_assert_eq!(all(&live), left);
    }
}

#[test]
fn it_grows_to_its_cap_and_then_refuses() {
    let live = Live::new();
    let address = |n: usize| 0x5500_0000_0000 + n * 48;
    let held = (0..).take_while(|&n| live.insert(address(n), record(n as u64))).count();
    let keys = FIRST * ((1 << SEGMENTS) - 1);
    assert!(held > keys / 4 * 3 && held <= keys, "{held} of {keys}");
    for n in 0..held {
        assert_eq!(live.take(address(n)), Some(record(n as u64)));
    }
    assert_eq!(all(&live), []);
    assert!(live.insert(address(held), record(1)), "what was taken out makes room");
}

#[test]
fn a_reader_beside_writers_sees_whole_records_only() {
    let live = Live::new();
    let done = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|thread| {
                let live = &live;
                scope.spawn(move || {
                    // Few addresses, each used again and again: the same key with other contents.
                    for n in 0..60_000u64 {
                        let address = 0x1000 * (thread + 1) + (n as usize % 4) * 16;
                        assert!(live.insert(address, record(n)));
                        assert_eq!(live.take(address), Some(record(n)));
                    }
                })
            })
            .collect();
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while !done.load(Ordering::Relaxed) {
                live.for_each(|read| {
                    assert_eq!(read, record(u64::from(read.site)), "half of one, half of another");
                    seen += 1;
                });
            }
            seen
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    println!("the reader saw {seen} records");
    assert_eq!(all(&live), []);
}
