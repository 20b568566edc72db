//! Full tables: space is reclaimed, and blocks without an entry are still in the sums.

#![cfg(feature = "heap")]

mod peers;

use std::alloc::System;
use std::fs::File;
use std::hint::black_box;
use std::ops::Range;
use std::sync::Mutex;

use jiff::Timestamp;
use marple::agent::{HeapWriter, ProcessMemory};
use marple::base::Bytes;
use marple::heap;
use marple::model::Profile;

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

/// The process has one set of tables, so the tests run one at a time.
static TURN: Mutex<()> = Mutex::new(());

/// `2^LEVELS` stacks are more than the tables have sites.
const LEVELS: u32 = 17;

const MIB: usize = 1 << 20;

type Kept = Vec<Box<[u8]>>;

#[inline(never)]
fn buffer(kept: &mut Kept) {
    kept.push(black_box(vec![1; 16].into_boxed_slice()));
}

#[inline(never)]
fn object(shape: u32, depth: u32, kept: &mut Kept) {
    if depth == 0 {
        buffer(kept)
    } else {
        either(shape, depth, kept)
    }
    black_box(shape);
}

#[inline(never)]
fn array(shape: u32, depth: u32, kept: &mut Kept) {
    if depth == 0 {
        buffer(kept)
    } else {
        either(shape, depth, kept)
    }
    black_box(depth);
}

#[inline(always)]
fn either(shape: u32, depth: u32, kept: &mut Kept) {
    if shape & 1 == 0 {
        object(shape >> 1, depth - 1, kept)
    } else {
        array(shape >> 1, depth - 1, kept)
    }
}

#[inline(never)]
fn leaks() -> Vec<Vec<u8>> {
    black_box((0..64).map(|_| Vec::with_capacity(black_box(MIB))).collect())
}

/// Go's view of a profile: the total of a sample type, and the cumulative bytes of each function.
struct Shown {
    text: String,
    total: f64,
}

impl Shown {
    fn of(index: &str, path: &str) -> Self {
        let index = format!("-sample_index={index}");
        let args =
            ["-top", "-cum", "-unit=B", "-nodefraction=0", "-nodecount=100000", &index, path];
        let text = peers::go_pprof(&args);
        let words: Vec<_> = text.split_whitespace().collect();
        let of = words.windows(2).position(|pair| pair[0] == "of" && pair[1].ends_with("B"));
        let total = words[of.unwrap() + 1].trim_end_matches('B').parse().unwrap();
        Self { text, total }
    }

    /// Returns the cumulative bytes of the first function or row whose line contains `name`.
    fn below(&self, name: &str) -> f64 {
        let rows = self.text.lines().skip_while(|line| !line.contains("flat%"));
        let line = rows.skip(1).find(|line| line.contains(name));
        line.map_or(0.0, |line| {
            let cumulative = line.split_whitespace().nth(3).unwrap();
            let bytes = cumulative.trim_end_matches('B').parse();
            bytes.unwrap_or_else(|_| panic!("{name}: {line}"))
        })
    }
}

struct Dumped {
    _dir: tempfile::TempDir,
    in_use: Shown,
    allocated: Shown,
    comments: String,
    /// Bytes allocated, counted and not sampled.
    counted: f64,
}

fn dump() -> Dumped {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("heap.pprof");
    let out = File::create(&path).unwrap();
    HeapWriter::reserve().write(Timestamp::now(), ProcessMemory::default(), out).unwrap();
    let path = path.to_str().unwrap();
    let comments = peers::go_pprof(&["-comments", path]);
    let counted = comments.split("counted, not sampled: ").nth(1).unwrap();
    let counted = counted.split(' ').next().unwrap().parse().unwrap();
    let (in_use, allocated) = (Shown::of("inuse_space", path), Shown::of("alloc_space", path));
    Dumped { _dir: dir, in_use, allocated, comments, counted }
}

#[test]
fn a_leak_after_more_stacks_than_fit_is_at_its_function_and_the_sums_are_whole() {
    let _turn = TURN.lock().unwrap();
    heap::set_rate(Bytes(1));
    // The harness has started all its threads by the time the first dump is read.
    drop(dump());
    let before = dump();
    let mut kept = Vec::new();
    for shape in 0..1 << LEVELS {
        object(shape, LEVELS, &mut kept);
        kept.clear();
    }
    let leaked = leaks();
    let after = dump();
    let rows = after.comments.lines().filter(|line| line.contains("made room for others"));
    assert_eq!(rows.count(), 1, "{}", after.comments);
    let at_function = after.in_use.below("heap_tables::leaks");
    let expected = (64 * MIB) as f64;
    assert!((expected..expected + 4096.0).contains(&at_function), "{at_function}");
    assert_eq!(after.in_use.below("[no room for its stack]"), 0.0);
    assert!(after.allocated.below("[freed: stack no longer kept]") > 0.0);
    let [shown, counted] =
        [after.allocated.total - before.allocated.total, after.counted - before.counted];
    assert_eq!(shown, counted, "what was allocated");
    drop(leaked);
}

#[test]
fn blocks_that_find_no_room_are_in_the_totals_and_room_comes_back() {
    let _turn = TURN.lock().unwrap();
    heap::set_rate(Bytes(1));
    // The harness has started all its threads by the time the first dump is read.
    drop(dump());
    let before = dump();
    let mut kept = Kept::with_capacity(1 << LEVELS);
    (0..1 << LEVELS).for_each(|shape| object(shape, LEVELS, &mut kept));
    let leaked = leaks();
    let full = dump();
    assert!(full.comments.contains("the tables are full of stacks with live blocks"));
    assert!(full.comments.contains("bytes of them are at [no room for its stack]"));
    // The vector of pointers, and the blocks they point to.
    let blocks = (64 * MIB + ((16 + 16) << LEVELS)) as f64;
    let grown = full.in_use.total - before.in_use.total;
    assert!((blocks..blocks + 262_144.0).contains(&grown), "{grown} of {blocks}");
    let somewhere = full.in_use.below("[no room for its stack]") + full.in_use.below("::leaks");
    assert!(somewhere >= (64 * MIB) as f64, "{}", full.in_use.text);
    assert_eq!(
        full.allocated.total - before.allocated.total,
        full.counted - before.counted,
        "what was allocated"
    );
    // `full` is dropped, too: the blocks of its output have no entries either.
    drop((kept, leaked, full));
    let leaked = leaks();
    let after = dump();
    assert!(after.in_use.below("heap_tables::leaks") >= (64 * MIB) as f64);
    let left = after.in_use.below("[no room for its stack]");
    assert!(left < 4096.0, "{left}: what the process has kept since");
    drop(leaked);
}

#[test]
fn a_difference_across_stacks_that_made_room_has_no_row_below_zero_and_the_same_sums() {
    let _turn = TURN.lock().unwrap();
    heap::set_rate(Bytes(1));
    let mut kept = Vec::new();
    let mut allocate = |shapes: Range<u32>| {
        for shape in shapes {
            object(shape, LEVELS, &mut kept);
            kept.clear();
        }
    };
    allocate(0..1000);
    let first = heap::snapshot(Timestamp::now()).unwrap();
    allocate(1000..1 << LEVELS);
    // A stack of the first profile returns.
    allocate(7..8);
    let mut difference = heap::snapshot(Timestamp::now()).unwrap();
    let allocated = |profile: &Profile| profile.total("alloc_space").unwrap();
    let gained = allocated(&difference) - allocated(&first);
    let evicted = |profile: &Profile| {
        let losses = profile.losses.iter();
        losses.filter(|it| it.cause.contains("made room")).map(|it| it.count).sum::<u64>()
    };
    assert!(evicted(&difference) > evicted(&first) + 1000, "{:?}", difference.losses);
    difference.subtract(&first);
    for sample in &difference.samples {
        assert!(sample.values[0] >= 0 && sample.values[1] >= 0, "{:?}", sample.values);
    }
    assert_eq!(allocated(&difference), gained);
}
