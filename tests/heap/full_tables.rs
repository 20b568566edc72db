//! Full tables: space is reclaimed, and blocks without an entry are still in the sums.

use std::fs::File;
use std::hint::black_box;
use std::ops::Range;
use std::sync::Mutex;

use jiff::Timestamp;
use marple::internals::agent::{HeapWriter, ProcessMemory};
use marple::internals::base::Bytes;
use marple::internals::heap;
use marple::internals::model::Profile;

use crate::support::peers;

/// The process has one set of tables, so the tests run one at a time.
static SERIAL: Mutex<()> = Mutex::new(());

/// `2^LEVELS` stacks are more than the tables have sites.
const LEVELS: u32 = 17;

const MIB: usize = 1 << 20;

type Blocks = Vec<Box<[u8]>>;

#[inline(never)]
fn allocate_buffer(kept: &mut Blocks) {
    kept.push(black_box(vec![1; 16].into_boxed_slice()));
}

#[inline(never)]
fn allocate_object(shape: u32, depth: u32, kept: &mut Blocks) {
    if depth == 0 {
        allocate_buffer(kept)
    } else {
        descend(shape, depth, kept)
    }
    black_box(shape);
}

#[inline(never)]
fn allocate_array(shape: u32, depth: u32, kept: &mut Blocks) {
    if depth == 0 {
        allocate_buffer(kept)
    } else {
        descend(shape, depth, kept)
    }
    black_box(depth);
}

#[inline(always)]
fn descend(shape: u32, depth: u32, kept: &mut Blocks) {
    if shape & 1 == 0 {
        allocate_object(shape >> 1, depth - 1, kept)
    } else {
        allocate_array(shape >> 1, depth - 1, kept)
    }
}

#[inline(never)]
fn leak_blocks() -> Vec<Vec<u8>> {
    black_box((0..64).map(|_| Vec::with_capacity(black_box(MIB))).collect())
}

/// Go's view of a profile: the total of a sample type, and the cumulative bytes of each function.
struct GoProfile {
    text: String,
    total: f64,
}

impl GoProfile {
    fn read(index: &str, path: &str) -> Self {
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
    fn cumulative_bytes(&self, name: &str) -> f64 {
        let rows = self.text.lines().skip_while(|line| !line.contains("flat%"));
        let line = rows.skip(1).find(|line| line.contains(name));
        line.map_or(0.0, |line| {
            let cumulative = line.split_whitespace().nth(3).unwrap();
            let bytes = cumulative.trim_end_matches('B').parse();
            bytes.unwrap_or_else(|_| panic!("{name}: {line}"))
        })
    }
}

struct DumpedProfile {
    _dir: tempfile::TempDir,
    in_use: GoProfile,
    allocated: GoProfile,
    comments: String,
    /// Bytes allocated, counted and not sampled.
    unsampled_bytes: f64,
}

fn dump_profiles() -> DumpedProfile {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("heap.pprof");
    let out = File::create(&path).unwrap();
    HeapWriter::reserve().write(Timestamp::now(), ProcessMemory::default(), out).unwrap();
    let path = path.to_str().unwrap();
    let comments = peers::go_pprof(&["-comments", path]);
    let counted = comments.split("counted, not sampled: ").nth(1).unwrap();
    let counted = counted.split(' ').next().unwrap().parse().unwrap();
    let (in_use, allocated) =
        (GoProfile::read("inuse_space", path), GoProfile::read("alloc_space", path));
    DumpedProfile { _dir: dir, in_use, allocated, comments, unsampled_bytes: counted }
}

#[test]
fn leak_after_stack_table_overflow_is_at_its_function() {
    let _serial = SERIAL.lock().unwrap();
    heap::set_rate(Bytes(1));
    // The harness has started all its threads by the time the first dump is read.
    drop(dump_profiles());
    let before = dump_profiles();
    let mut kept = Vec::new();
    for shape in 0..1 << LEVELS {
        allocate_object(shape, LEVELS, &mut kept);
        kept.clear();
    }
    let leaked = leak_blocks();
    let after = dump_profiles();
    let rows = after
        .comments
        .lines()
        .filter(|line| line.contains("without live blocks evicted: the tables are full"));
    assert_eq!(rows.count(), 1, "{}", after.comments);
    let at_function = after.in_use.cumulative_bytes("heap::full_tables::leak_blocks");
    let expected = (64 * MIB) as f64;
    assert!((expected..expected + 4096.0).contains(&at_function), "{at_function}");
    assert_eq!(after.in_use.cumulative_bytes("[no stack: heap tables full]"), 0.0);
    assert!(after.allocated.cumulative_bytes("[freed: stack evicted]") > 0.0);
    let [shown, counted] = [
        after.allocated.total - before.allocated.total,
        after.unsampled_bytes - before.unsampled_bytes,
    ];
    assert_eq!(shown, counted, "what was allocated");
    drop(leaked);
}

#[test]
fn blocks_without_table_entry_are_in_totals_and_space_is_reclaimed() {
    let _serial = SERIAL.lock().unwrap();
    heap::set_rate(Bytes(1));
    // The harness has started all its threads by the time the first dump is read.
    drop(dump_profiles());
    let before = dump_profiles();
    let mut kept = Blocks::with_capacity(1 << LEVELS);
    (0..1 << LEVELS).for_each(|shape| allocate_object(shape, LEVELS, &mut kept));
    let leaked = leak_blocks();
    let full = dump_profiles();
    assert!(full.comments.contains("the tables are full of stacks with live blocks"));
    assert!(
        full.comments
            .contains("of the bytes in use are attributed to [no stack: heap tables full]")
    );
    // The vector of pointers, and the blocks they point to.
    let blocks = (64 * MIB + ((16 + 16) << LEVELS)) as f64;
    let grown = full.in_use.total - before.in_use.total;
    assert!((blocks..blocks + 262_144.0).contains(&grown), "{grown} of {blocks}");
    let somewhere = full.in_use.cumulative_bytes("[no stack: heap tables full]")
        + full.in_use.cumulative_bytes("::leak_blocks");
    assert!(somewhere >= (64 * MIB) as f64, "{}", full.in_use.text);
    assert_eq!(
        full.allocated.total - before.allocated.total,
        full.unsampled_bytes - before.unsampled_bytes,
        "what was allocated"
    );
    // `full` is dropped, too: the blocks of its output have no entries either.
    drop((kept, leaked, full));
    let leaked = leak_blocks();
    let after = dump_profiles();
    assert!(after.in_use.cumulative_bytes("heap::full_tables::leak_blocks") >= (64 * MIB) as f64);
    let unattributed = after.in_use.cumulative_bytes("[no stack: heap tables full]");
    assert!(unattributed < 4096.0, "{unattributed}: what the process has kept since");
    drop(leaked);
}

#[test]
fn difference_across_evicted_stacks_has_no_negative_rows() {
    let _serial = SERIAL.lock().unwrap();
    heap::set_rate(Bytes(1));
    let mut kept = Vec::new();
    let mut allocate = |shapes: Range<u32>| {
        for shape in shapes {
            allocate_object(shape, LEVELS, &mut kept);
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
        losses
            .filter(|loss| loss.cause.contains("evicted: the tables are full"))
            .map(|it| it.count)
            .sum::<u64>()
    };
    assert!(evicted(&difference) > evicted(&first) + 1000, "{:?}", difference.losses);
    difference.subtract(&first);
    for sample in &difference.samples {
        assert!(sample.values[0] >= 0 && sample.values[1] >= 0, "{:?}", sample.values);
    }
    assert_eq!(allocated(&difference), gained);
}
