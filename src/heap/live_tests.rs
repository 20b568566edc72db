//! Tests of the table of live blocks: against a map, and with several threads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::heap::segment::LINE;
use crate::heap::sites::SiteId;

fn record(n: u64) -> BlockRecord {
    BlockRecord {
        site: SiteId { number: n as u32, generation: 1 },
        size: n * 3,
        weight: n as f64 + 0.5,
    }
}

fn all<const KEYS: usize>(live: &LiveBlocks<KEYS>) -> Vec<BlockRecord> {
    let mut all = Vec::new();
    live.for_each(|record| all.push(record));
    all.sort_by_key(|record| (record.site.number, record.size));
    all
}

proptest! {
    #[test]
    fn the_table_is_a_map(steps in prop::collection::vec((any::<bool>(), 1usize..200), 1..600)) {
        let (live, mut map) = (LiveBlocks::<FIRST>::new(), HashMap::new());
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
        left.sort_by_key(|record| (record.site.number, record.size));
        prop_assert_eq!(all(&live), left);
    }
}

#[test]
fn it_grows_to_its_cap_and_then_refuses() {
    /// A sixteenth of the real size, which would take sixteen times longer to fill.
    const KEYS: usize = FIRST / 16;
    let live = LiveBlocks::<KEYS>::new();
    let address = |n: usize| 0x5500_0000_0000 + n * 48;
    let held = (0..).take_while(|&n| live.insert(address(n), record(n as u64))).count();
    let keys = KEYS * ((1 << SEGMENTS) - 1);
    assert!(held > keys / 20 * 17 && held <= keys, "{held} of {keys}");
    assert_eq!(live.len(), held as u64);
    for n in 0..held {
        assert_eq!(live.take(address(n)), Some(record(n as u64)));
    }
    assert_eq!(all(&live), []);
    assert_eq!(live.len(), 0);
    assert!(live.insert(address(held), record(1)), "what was taken out makes room");
}

/// One line of keys, so that reader and writers collide. Each address is reused repeatedly: the
/// same key with another record.
#[test]
fn a_reader_beside_writers_sees_whole_records_only() {
    let chunk = MappedWords::new(LINE * (1 + RECORD_WORDS));
    let segment = TableSegment::of(chunk.get_or_map().unwrap());
    let done = AtomicBool::new(false);
    let (seen, left) = std::thread::scope(|scope| {
        let writers: Vec<_> = (1..3)
            .map(|address| {
                let segment = &segment;
                scope.spawn(move || {
                    for n in 0..400_000u64 {
                        let put = segment
                            .places(address * 16)
                            .any(|at| segment.try_insert(at, address as u64 * 16, record(n)));
                        assert!(put);
                        let took = segment
                            .lines(address * 16)
                            .into_iter()
                            .flatten()
                            .find_map(|at| segment.try_take(at, address as u64 * 16));
                        assert_eq!(took, Some(record(n)));
                    }
                })
            })
            .collect();
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while !done.load(Ordering::Relaxed) {
                for read in (0..LINE).filter_map(|at| segment.read(at)) {
                    assert_eq!(
                        read,
                        record(u64::from(read.site.number)),
                        "half of one, half of another"
                    );
                    seen += 1;
                }
            }
            seen
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
        (reader.join().unwrap(), (0..LINE).filter_map(|at| segment.read(at)).count())
    });
    println!("the reader saw {seen} records");
    assert_eq!(left, 0);
}

#[test]
fn a_glance_does_not_outlive_its_record() {
    let chunk = MappedWords::new(LINE * (1 + RECORD_WORDS));
    let segment = TableSegment::of(chunk.get_or_map().unwrap());
    assert!(segment.try_insert(3, 64, record(1)));
    let glance = segment.glance(3).unwrap();
    assert!(segment.still_holds(3, &glance));
    assert_eq!(segment.try_take(3, 64), Some(record(1)));
    assert!(!segment.still_holds(3, &glance), "freed");
    assert!(segment.try_insert(3, 64, record(2)));
    assert!(!segment.still_holds(3, &glance), "freed, and the address given out again");
    assert_eq!(segment.read(3), Some(record(2)));
    segment.record(3)[0].fetch_add(1, Ordering::Relaxed);
    assert_eq!(segment.read(3), None, "in the middle of being written");
    assert_eq!(segment.try_take(3, 65), None);
}

#[test]
fn samples_become_fewer_before_the_table_is_full() {
    let usual = 512 << 10;
    for (records, exact, at_usual) in [
        (0, 1, usual),
        (CAP / 8 * 5 - 1, 1, usual),
        (CAP / 8 * 5, 16 << 10, usual),
        (CAP / 4 * 3 - 1, 16 << 10, usual),
        (CAP / 4 * 3, 1 << 20, 1 << 20),
    ] {
        assert_eq!(coarsened(1, records), exact, "{records}");
        assert_eq!(coarsened(usual, records), at_usual, "{records}");
        assert_eq!(coarsened(0, records), 0, "off stays off");
    }
}
