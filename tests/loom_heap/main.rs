//! Loom models of the allocator's tables, over every order in which loads and stores can be
//! observed.
//!
//! The files of the tables are compiled here a second time, with loom's atomics instead of those of
//! std, and with mappings of a few words. The tables are constants, so that here, unlike in
//! `tests/loom`, each atomic is created at first use; hence a binary of its own. The allocator is
//! the system's.
#![allow(unreachable_pub, dead_code, reason = "the files are compiled as a part of the crate, too")]

mod base {
    pub mod sync {
        use std::sync::OnceLock;

        pub use loom::sync::atomic::{Ordering, fence};

        /// Wraps an atomic of loom that is created on first access. Tables are `const`, and loom's
        /// atomics can only be created inside a model.
        ///
        /// The thread that creates a table must call `touch`: loom treats the creation as a store
        /// that other threads must have observed.
        macro_rules! atomic {
            ($name:ident, $number:ty) => {
                pub struct $name($number, OnceLock<loom::sync::atomic::$name>);

                impl $name {
                    pub const fn new(value: $number) -> Self {
                        Self(value, OnceLock::new())
                    }

                    fn get(&self) -> &loom::sync::atomic::$name {
                        self.1.get_or_init(|| loom::sync::atomic::$name::new(self.0))
                    }

                    pub fn keep(self) -> Self {
                        self.get();
                        self
                    }

                    pub fn load(&self, order: Ordering) -> $number {
                        self.get().load(order)
                    }

                    pub fn store(&self, value: $number, order: Ordering) {
                        self.get().store(value, order);
                    }

                    pub fn fetch_add(&self, value: $number, order: Ordering) -> $number {
                        self.get().fetch_add(value, order)
                    }

                    pub fn fetch_sub(&self, value: $number, order: Ordering) -> $number {
                        self.get().fetch_sub(value, order)
                    }

                    pub fn compare_exchange(
                        &self,
                        current: $number,
                        new: $number,
                        success: Ordering,
                        failure: Ordering,
                    ) -> Result<$number, $number> {
                        self.get().compare_exchange(current, new, success, failure)
                    }

                    pub fn fetch_update(
                        &self,
                        set: Ordering,
                        fetch: Ordering,
                        next: impl FnMut($number) -> Option<$number>,
                    ) -> Result<$number, $number> {
                        self.get().fetch_update(set, fetch, next)
                    }
                }
            };
        }

        atomic!(AtomicU8, u8);
        atomic!(AtomicU64, u64);
    }
}

mod os {
    pub mod mapped_memory {
        use std::sync::OnceLock;

        use crate::base::sync::AtomicU64;

        /// Maximum number of words that a model can explore.
        const SITE_WORDS: usize = 32;

        pub struct MappedWords(OnceLock<Vec<AtomicU64>>, usize);

        impl MappedWords {
            pub const fn new(words: usize) -> Self {
                Self(OnceLock::new(), if words < SITE_WORDS { words } else { SITE_WORDS })
            }

            pub fn get(&self) -> Option<&[AtomicU64]> {
                self.0.get().map(Vec::as_slice)
            }

            pub fn get_or_map(&self) -> Option<&[AtomicU64]> {
                Some(self.0.get_or_init(|| (0..self.1).map(|_| AtomicU64::new(0).keep()).collect()))
            }
        }
    }
}

#[path = "../../src/model/marker.rs"]
mod marker;
mod model {
    pub use crate::marker::Marker;
}

mod sampler {
    /// Maps all keys to a few adjacent entries.
    pub const fn mix(bits: u64) -> u64 {
        bits << 32
    }
}

#[path = "../../src/heap/filter.rs"]
mod filter;
#[path = "../../src/heap/frames.rs"]
mod frames;
#[path = "../../src/heap/index.rs"]
mod index;
#[path = "../../src/heap/segment.rs"]
mod segment;
#[path = "../../src/heap/sites.rs"]
mod sites;
#[path = "../../src/heap/slots.rs"]
mod slots;
#[path = "../../src/heap/stacks.rs"]
mod stacks;

use loom::sync::Arc;
use loom::thread;

use base::sync::Ordering::{Acquire, Release};
use base::sync::{AtomicU8, AtomicU64};
use filter::AddressFilter;
use frames::FrameSlots;
use segment::{BlockRecord, KEYS_PER_LINE, RECORD_WORDS, TableSegment};
use sites::{SiteId, SiteTable};
use stacks::StackSlots;

struct Words([AtomicU64; KEYS_PER_LINE * (1 + RECORD_WORDS)]);

impl Words {
    fn new() -> Arc<Self> {
        Arc::new(Self(std::array::from_fn(|_| AtomicU64::new(0).keep())))
    }

    fn segment(&self) -> TableSegment<'_> {
        TableSegment::from_words(&self.0)
    }
}

fn id(number: u32) -> SiteId {
    SiteId { number, generation: 0 }
}

fn record_words(n: u32) -> BlockRecord {
    BlockRecord { site: id(n), size: u64::from(n) << 8, weight: f64::from(n) }
}

/// Results observed in any run of a model.
///
/// If a thread loads twice and then stores, loom treats both loads as independent of earlier loads
/// of other threads, and may try only one order. So each test lists the results that must occur.
#[derive(Default)]
struct ObservedResults(std::sync::Mutex<Vec<Option<u32>>>);

impl ObservedResults {
    fn add(&self, result: Option<u32>) {
        let mut met = self.0.lock().unwrap();
        if !met.contains(&result) {
            met.push(result);
        }
    }

    #[track_caller]
    fn assert_observed(&self, expected: &[Option<u32>]) {
        let mut met = self.0.lock().unwrap().clone();
        met.sort();
        assert_eq!(met, expected);
    }
}

/// Checks all orders with at most one preemption plus the switches at the end of each thread.
/// With more it takes minutes. The stale values a load may return are explored in full.
fn check_bounded(run: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(1);
    model.check(run);
}

#[test]
fn dump_reads_record_completely_or_not_at_all() {
    let met = std::sync::Arc::new(ObservedResults::default());
    let all = std::sync::Arc::clone(&met);
    check_bounded(move || {
        let words = Words::new();
        assert!(words.segment().try_insert(0, 64, record_words(1)));
        let reader = {
            let words = Arc::clone(&words);
            thread::spawn(move || words.segment().read(0))
        };
        let segment = words.segment();
        assert_eq!(segment.try_take(0, 64), Some(record_words(1)));
        // The address is allocated again as another block.
        assert!(segment.try_insert(0, 64, record_words(2)));
        let read = reader.join().unwrap();
        if let Some(read) = read {
            assert_eq!(read, record_words(read.site.number));
        }
        met.add(read.map(|read| read.site.number));
        assert_eq!(segment.read(0), Some(record_words(2)));
    });
    all.assert_observed(&[None, Some(1), Some(2)]);
}

#[test]
fn concurrent_inserts_claim_slot_once_and_remove_own_key() {
    let met = std::sync::Arc::new(ObservedResults::default());
    let all = std::sync::Arc::clone(&met);
    loom::model(move || {
        let words = Words::new();
        let insert_and_remove = |own: u64| {
            let words = Arc::clone(&words);
            move || {
                let segment = words.segment();
                let put = segment.try_insert(0, own << 6, record_words(own as u32));
                let removed = segment.try_take(0, own << 6);
                assert_eq!(removed, put.then(|| record_words(own as u32)));
                put
            }
        };
        let other = thread::spawn(insert_and_remove(2));
        let (one, two) = (insert_and_remove(1)(), other.join().unwrap());
        assert!(one || two, "a key that is free refuses both");
        met.add(Some(u32::from(one) + 2 * u32::from(two)));
        assert_eq!(words.segment().read(0), None);
    });
    // Only the first, only the second, or both in turn.
    all.assert_observed(&[Some(1), Some(2), Some(3)]);
}

#[test]
fn block_freed_by_another_thread_is_found() {
    loom::model(|| {
        let words = Words::new();
        let handed_over = Arc::new(AtomicU64::new(0).keep());
        let freeing = {
            let (words, handed_over) = (Arc::clone(&words), Arc::clone(&handed_over));
            thread::spawn(move || {
                // A real program hands blocks over with stronger ordering than this.
                if handed_over.load(Acquire) != 0 {
                    assert_eq!(words.segment().try_take(0, 64), Some(record_words(1)));
                    return true;
                }
                false
            })
        };
        assert!(words.segment().try_insert(0, 64, record_words(1)));
        handed_over.store(1, Release);
        let freed = freeing.join().unwrap();
        assert_eq!(words.segment().read(0), (!freed).then(|| record_words(1)));
    });
}

#[test]
fn threads_agree_on_stack_id_and_read_complete_stack() {
    check_bounded(|| {
        let stacks = Arc::new(StackSlots::new());
        // Maps the memory first, which this model does not cover.
        stacks.intern(&[0x20]).unwrap();
        let interned = {
            let stacks = Arc::clone(&stacks);
            thread::spawn(move || stacks.intern(&[0x10]).unwrap())
        };
        let own = stacks.intern(&[0x10]).unwrap();
        let read = stacks.get(own).unwrap().map(|frame| stacks.frames().get(frame));
        assert_eq!(read.collect::<Vec<_>>(), [Some(0x10)]);
        assert_eq!(interned.join().unwrap(), own);
    });
}

/// Two blocks share a counter: one is added and stays, the other is added and removed meanwhile.
#[test]
fn filter_never_misses_recorded_block() {
    const BLOCK: usize = 0x1000;
    const NEIGHBOUR: usize = 0x1010;
    let met = std::sync::Arc::new(ObservedResults::default());
    let all = std::sync::Arc::clone(&met);
    check_bounded(move || {
        let filter = Arc::new(AddressFilter::<1>::new());
        assert!(!filter.may_contain(BLOCK));
        let handed_over = Arc::new(AtomicU8::new(0).keep());
        let neighbour = {
            let filter = Arc::clone(&filter);
            thread::spawn(move || {
                filter.add(NEIGHBOUR);
                assert!(filter.may_contain(NEIGHBOUR));
                filter.remove(NEIGHBOUR);
            })
        };
        let freeing = {
            let (filter, handed_over) = (Arc::clone(&filter), Arc::clone(&handed_over));
            thread::spawn(move || {
                let is_mine = handed_over.load(Acquire) != 0;
                if is_mine {
                    assert!(filter.may_contain(BLOCK), "a free that would leave its record behind");
                    filter.remove(BLOCK);
                }
                is_mine
            })
        };
        filter.add(BLOCK);
        handed_over.store(1, Release);
        neighbour.join().unwrap();
        let freed = freeing.join().unwrap();
        assert_eq!(filter.may_contain(BLOCK), !freed, "what is counted is what is there");
        met.add(Some(freed.into()));
    });
    all.assert_observed(&[Some(0), Some(1)]);
}

#[test]
fn threads_agree_on_site_id_and_count_every_block() {
    check_bounded(|| {
        let sites = Arc::new(SiteTable::new());
        // Maps the memory first, which this model does not cover.
        sites.intern(2, 32).unwrap();
        let one = || {
            let sites = Arc::clone(&sites);
            move || {
                let (site, _) = sites.intern(1, 64).unwrap();
                sites.count(site, BlockRecord { site, size: 64, weight: 2.0 }.amount());
                site
            }
        };
        let other = thread::spawn(one());
        let own = one()();
        assert_eq!(other.join().unwrap(), own);
        let counted: Vec<_> = (1..sites.end()).filter_map(|number| sites.hold(number)).collect();
        assert_eq!(counted.len(), 1, "{counted:?}");
        let site = counted[0];
        assert_eq!((site.id, site.stack, site.size), (own, 1, 64));
        assert_eq!((site.allocated.objects(), site.allocated.bytes()), (4, 256));
    });
}

/// The order is that of the recorder: it counts the allocation, then inserts the live block.
#[test]
fn dump_never_shows_more_live_than_allocated() {
    let met = std::sync::Arc::new(ObservedResults::default());
    let all = std::sync::Arc::clone(&met);
    check_bounded(move || {
        let sites = Arc::new(SiteTable::new());
        sites.intern(2, 32).unwrap();
        let words = Words::new();
        let dumping = {
            let (sites, words) = (Arc::clone(&sites), Arc::clone(&words));
            thread::spawn(move || {
                // A dump fixes the range of sites, then reads live records, then the sites.
                let numbers = 1..sites.end();
                let in_use = words.segment().read(0);
                let shown: Vec<_> = numbers.clone().filter_map(|it| sites.hold(it)).collect();
                for site in &shown {
                    assert_eq!((site.stack, site.size), (1, 64), "half a site");
                    assert_eq!(site.allocated.objects(), 1);
                }
                if in_use.is_some_and(|record| numbers.contains(&record.site.number)) {
                    let allocated: Vec<_> = shown.iter().map(|it| it.allocated.bytes()).collect();
                    assert_eq!(allocated, [64], "in use and never allocated");
                }
                (in_use.is_some(), !shown.is_empty())
            })
        };
        let (site, _) = sites.intern(1, 64).unwrap();
        let record = BlockRecord { site, size: 64, weight: 1.0 };
        sites.count(site, record.amount());
        assert!(words.segment().try_insert(0, 64, record));
        let (in_use, shown) = dumping.join().unwrap();
        met.add(Some(u32::from(in_use) + 2 * u32::from(shown)));
    });
    // In this order: neither; in use at a site created after the range was read; allocated and not
    // yet in use; both.
    all.assert_observed(&[Some(0), Some(1), Some(2), Some(3)]);
}

/// A site without live blocks is evicted while another thread looks it up. Afterwards its counts
/// are in exactly one place.
#[test]
fn evicted_site_is_not_found_and_keeps_its_counts() {
    let met = std::sync::Arc::new(ObservedResults::default());
    let all = std::sync::Arc::clone(&met);
    check_bounded(move || {
        let sites = Arc::new(SiteTable::new());
        let count = |site| {
            sites.count(site, BlockRecord { site, size: 64, weight: 1.0 }.amount());
        };
        let (first, _) = sites.intern(1, 64).unwrap();
        count(first);
        sites.release(first);
        let evicting = {
            let sites = Arc::clone(&sites);
            thread::spawn(move || sites.evict())
        };
        let (second, is_new) = sites.intern(1, 64).unwrap();
        count(second);
        let evicted_amount = evicting.join().unwrap();
        // Held by this thread, so not evicted.
        assert_eq!(sites.hold(second.number).map(|site| site.id), Some(second));
        assert_eq!(is_new, evicted_amount.is_some());
        assert_eq!(evicted_amount.unwrap_or(1), 1, "the stack of another site");
        let kept = (1..sites.end()).filter_map(|number| sites.hold(number));
        let mut sum = sites.evicted_amount();
        kept.for_each(|site| sum.add(site.allocated));
        assert_eq!((sum.objects(), sum.bytes()), (2, 128));
        met.add(Some(u32::from(is_new)));
    });
    all.assert_observed(&[Some(0), Some(1)]);
}

/// The frame numbers of an evicted stack are reused, but not during a dump.
#[test]
fn frame_number_is_not_reused_during_dump() {
    let met = std::sync::Arc::new(ObservedResults::default());
    let all = std::sync::Arc::clone(&met);
    check_bounded(move || {
        let frames = Arc::new(FrameSlots::new());
        let first = frames.intern(0x10).unwrap();
        let reusing = {
            let frames = Arc::clone(&frames);
            thread::spawn(move || {
                frames.release(first);
                frames.intern(0x20).unwrap()
            })
        };
        frames.begin_dump();
        let before = frames.get(first);
        let after = frames.get(first);
        if before == Some(0x10) {
            // For all this dump knows, it wrote a sample with this number.
            met.add(Some(u32::from(after == before)));
        }
        frames.end_dump();
        let second = reusing.join().unwrap();
        assert_eq!(frames.get(second), Some(0x20));
    });
    all.assert_observed(&[Some(1)]);
}

#[test]
fn slot_is_claimed_once_during_concurrent_returns() {
    check_bounded(|| {
        let slots = Arc::new(slots::BlockSlots::<1, 8, 1>::new());
        let (one, two) = (slots.claim_fresh(8).unwrap(), slots.claim_fresh(8).unwrap());
        slots.put_back(one);
        slots.put_back(two);
        let claim_and_return = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || {
                let first = slots.claim_free();
                let second = slots.claim_free();
                first.into_iter().for_each(|number| slots.put_back(number));
                second
            })
        };
        let own = slots.claim_free();
        let others = claim_and_return.join().unwrap();
        assert!(own.is_some() || others.is_some());
        if own.is_some() {
            assert_ne!(own, others);
        }
        let free_slots = std::iter::from_fn(|| slots.claim_free()).collect::<Vec<_>>();
        let all = own.into_iter().chain(others).chain(free_slots);
        let mut all: Vec<_> = all.collect();
        all.sort_unstable();
        assert_eq!(all, [one, two], "each once");
    });
}
