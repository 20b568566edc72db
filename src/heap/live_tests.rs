//! Tests of the table of live blocks: against a map, and with several threads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::heap::segment::KEYS_PER_LINE;
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
    fn insert_and_remove_match_hash_map(steps in prop::collection::vec((any::<bool>(), 1usize..200), 1..600)) {
        let live = LiveBlocks::<FIRST_SEGMENT_KEYS>::new();
        let mut map = HashMap::new();
        for (number, (insert, block)) in steps.into_iter().enumerate() {
            let address = 0x7f00_0000_0000 + block * 16;
            if insert && !map.contains_key(&address) {
                prop_assert!(live.insert(address, record(number as u64)));
                map.insert(address, record(number as u64));
            } else {
                prop_assert_eq!(live.remove(address), map.remove(&address));
            }
        }
        let mut remaining: Vec<_> = map.into_values().collect();
        remaining.sort_by_key(|record| (record.site.number, record.size));
        prop_assert_eq!(all(&live), remaining);
    }
}

#[test]
fn insert_fails_when_all_segments_are_full() {
    /// A sixteenth of the real size, which would take sixteen times longer to fill.
    const KEYS: usize = FIRST_SEGMENT_KEYS / 16;
    let live = LiveBlocks::<KEYS>::new();
    let address = |n: usize| 0x5500_0000_0000 + n * 48;
    let inserted = (0..).take_while(|&n| live.insert(address(n), record(n as u64))).count();
    let keys = KEYS * ((1 << SEGMENTS) - 1);
    assert!(inserted > keys / 20 * 17 && inserted <= keys, "{inserted} of {keys}");
    assert_eq!(live.len(), inserted as u64);
    for n in 0..inserted {
        assert_eq!(live.remove(address(n)), Some(record(n as u64)));
    }
    assert_eq!(all(&live), []);
    assert_eq!(live.len(), 0);
    assert!(live.insert(address(inserted), record(1)), "removed entries free their space");
}

/// One line of keys, so that reader and writers collide. Each address is reused repeatedly: the
/// same key with another record.
#[test]
fn concurrent_reader_never_reads_torn_records() {
    let chunk = MappedWords::new(KEYS_PER_LINE * (1 + RECORD_WORDS));
    let segment = TableSegment::from_words(chunk.get_or_map().unwrap());
    let done = AtomicBool::new(false);
    let (seen, remaining) = std::thread::scope(|scope| {
        let writers: Vec<_> = (1..3)
            .map(|address| {
                let segment = &segment;
                scope.spawn(move || {
                    for n in 0..400_000u64 {
                        let is_inserted = segment
                            .candidate_positions(address * 16)
                            .any(|at| segment.try_insert(at, address as u64 * 16, record(n)));
                        assert!(is_inserted);
                        let removed = segment
                            .candidate_lines(address * 16)
                            .into_iter()
                            .flatten()
                            .find_map(|at| segment.try_take(at, address as u64 * 16));
                        assert_eq!(removed, Some(record(n)));
                    }
                })
            })
            .collect();
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while !done.load(Ordering::Relaxed) {
                for read in (0..KEYS_PER_LINE).filter_map(|at| segment.read(at)) {
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
        (reader.join().unwrap(), (0..KEYS_PER_LINE).filter_map(|at| segment.read(at)).count())
    });
    println!("the reader saw {seen} records");
    assert_eq!(remaining, 0);
}

#[test]
fn record_view_is_invalid_after_removal_or_reuse() {
    let chunk = MappedWords::new(KEYS_PER_LINE * (1 + RECORD_WORDS));
    let segment = TableSegment::from_words(chunk.get_or_map().unwrap());
    assert!(segment.try_insert(3, 64, record(1)));
    let view = segment.read_unvalidated(3).unwrap();
    assert!(segment.is_unchanged(3, &view));
    assert_eq!(segment.try_take(3, 64), Some(record(1)));
    assert!(!segment.is_unchanged(3, &view), "freed");
    assert!(segment.try_insert(3, 64, record(2)));
    assert!(!segment.is_unchanged(3, &view), "freed, and the address was reused");
    assert_eq!(segment.read(3), Some(record(2)));
    segment.record_words(3)[0].fetch_add(1, Ordering::Relaxed);
    assert_eq!(segment.read(3), None, "a partially written record is not returned");
    assert_eq!(segment.try_take(3, 65), None);
}

#[test]
fn rate_is_coarsened_before_table_is_full() {
    let default_rate = 512 << 10;
    for (records, exact, at_usual) in [
        (0, 1, default_rate),
        (TOTAL_KEYS / 8 * 5 - 1, 1, default_rate),
        (TOTAL_KEYS / 8 * 5, 16 << 10, default_rate),
        (TOTAL_KEYS / 4 * 3 - 1, 16 << 10, default_rate),
        (TOTAL_KEYS / 4 * 3, 1 << 20, 1 << 20),
    ] {
        assert_eq!(coarsened_rate(1, records), exact, "{records}");
        assert_eq!(coarsened_rate(default_rate, records), at_usual, "{records}");
        assert_eq!(coarsened_rate(0, records), 0, "rate 0 stays 0");
    }
}
