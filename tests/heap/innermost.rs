//! Go shows the program's own function as innermost, whatever library code it allocates through.
//! This holds in a debug build and, with `--release`, in an optimized one.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, LinkedList, VecDeque};
use std::fs::File;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;

use jiff::Timestamp;
use marple::internals::agent::{HeapWriter, ProcessMemory};
use marple::internals::base::Bytes;
use marple::internals::heap;

use crate::support::peers;

/// Minimum block size of each function. Nothing else in the program allocates as much.
const SIZE: usize = 1 << 18;

type Block = Box<dyn Any>;

/// Defines functions that allocate, and the list of their names as the profile should show them.
macro_rules! functions {
    ($($name:ident: $value:expr;)*) => {
        $(
            #[inline(never)]
            fn $name() -> Block {
                // Makes the bodies differ: an optimizer merges functions with identical code.
                black_box(stringify!($name));
                let value = black_box($value);
                // This box is smaller than [`SIZE`], so the test ignores it.
                Box::new(value)
            }
        )*
        const FUNCTIONS: &[(&str, fn() -> Block)] = &[$((stringify!($name), $name),)*];
    };
}

fn text() -> &'static str {
    static TEXT: [u8; SIZE] = [b'a'; SIZE];
    std::str::from_utf8(black_box(&TEXT)).unwrap()
}

functions! {
    vec_with_capacity: Vec::<u8>::with_capacity(black_box(SIZE));
    vec_of_zeroes: vec![0u8; black_box(SIZE)];
    vec_of_ones: vec![1u8; black_box(SIZE)];
    vec_of_words: vec![7u64; black_box(SIZE / 8)];
    vec_pushed_to: {
        let mut vec = Vec::new();
        for n in 0..(SIZE / 8) as u64 {
            vec.push(n);
        }
        vec
    };
    vec_extended: {
        let mut vec: Vec<u8> = Vec::new();
        vec.extend_from_slice(text().as_bytes());
        vec
    };
    vec_resized: {
        let mut vec: Vec<u8> = Vec::new();
        vec.resize(black_box(SIZE), 1);
        vec
    };
    vec_reserved: {
        let mut vec: Vec<u8> = black_box(Vec::new());
        vec.reserve(black_box(SIZE));
        vec
    };
    vec_of_a_slice: text().as_bytes().to_vec();
    vec_cloned: text().as_bytes().to_owned().clone();
    string_from: String::from(text());
    string_to_string: text().to_string();
    string_pushed_to: {
        let mut string = String::new();
        string.push_str(text());
        string
    };
    string_formatted: format!("{}{}", text(), black_box(1));
    string_cloned: String::from(text()).clone();
    string_joined: [text(), text()].join(",");
    string_concatenated: [text(), text()].concat();
    string_repeated: "ab".repeat(black_box(SIZE));
    boxed_slice: vec![1u8; black_box(SIZE)].into_boxed_slice();
    boxed_str: Box::<str>::from(text());
    boxed_array: Box::new(black_box([1u8; SIZE]));
    arc_array: Arc::new(black_box([1u8; SIZE]));
    arc_str: Arc::<str>::from(text());
    rc_array: Rc::new(black_box([1u8; SIZE]));
    hash_map_with_capacity: HashMap::<u64, u64>::with_capacity(black_box(SIZE / 16));
    vec_deque_with_capacity: VecDeque::<u8>::with_capacity(black_box(SIZE));
    hash_map_inserted_into: {
        let mut map = HashMap::new();
        for n in 0..(SIZE / 8) as u64 {
            map.insert(n, n);
        }
        map
    };
    hash_map_entered: {
        let mut map: HashMap<u64, u64> = HashMap::new();
        for n in 0..(SIZE / 8) as u64 {
            *map.entry(n).or_insert(0) += 1;
        }
        map
    };
    hash_set_inserted_into: {
        let mut set = HashSet::new();
        for n in 0..(SIZE / 8) as u64 {
            set.insert(n);
        }
        set
    };
    btree_map_inserted_into: {
        let mut map = BTreeMap::new();
        for n in 0..(SIZE / 8) as u64 {
            map.insert(n, n);
        }
        map
    };
    btree_set_inserted_into: {
        let mut set = BTreeSet::new();
        for n in 0..(SIZE / 8) as u64 {
            set.insert(n);
        }
        set
    };
    vec_deque_pushed_to: {
        let mut deque = VecDeque::new();
        for n in 0..(SIZE / 8) as u64 {
            deque.push_back(n);
        }
        deque
    };
    linked_list_pushed_to: {
        let mut list = LinkedList::new();
        for n in 0..(SIZE / 16) as u64 {
            list.push_back(n);
        }
        list
    };
    binary_heap_pushed_to: {
        let mut heap = BinaryHeap::new();
        for n in 0..(SIZE / 8) as u64 {
            heap.push(n);
        }
        heap
    };
}

/// Functions that containers call back, and that allocate in the program's own code.
const CALLBACKS: [&str; 3] = ["make_entry", "make_element", "make_default"];

#[inline(never)]
fn make_entry() -> Vec<u8> {
    black_box("entry");
    black_box(Vec::with_capacity(black_box(SIZE)))
}

#[inline(never)]
fn make_element(_: u8) -> Vec<u8> {
    black_box("element");
    black_box(Vec::with_capacity(black_box(SIZE)))
}

#[inline(never)]
fn make_default() -> Vec<u8> {
    black_box("default");
    black_box(Vec::with_capacity(black_box(SIZE)))
}

fn allocate_in_callbacks() -> Block {
    let mut map = HashMap::new();
    map.entry(1).or_insert_with(make_entry);
    let mut tree = BTreeMap::new();
    tree.entry(1).or_insert_with(make_entry);
    let mut vec: Vec<_> = (0..2).map(make_element).collect();
    vec.extend((0..2).map(make_element));
    vec.resize_with(6, make_default);
    Box::new((map, tree, vec))
}

#[test]
fn innermost_frame_is_allocating_program_function() {
    heap::set_rate(Bytes::kib(4));
    let kept: Vec<Block> =
        FUNCTIONS.iter().map(|(_, function)| function()).chain([allocate_in_callbacks()]).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("memory.pprof");
    let mut writer = HeapWriter::reserve();
    writer.write(Timestamp::now(), ProcessMemory::default(), File::create(&path).unwrap()).unwrap();
    drop(kept);
    let path = path.to_str().unwrap();
    let top = peers::go_pprof(&["-top", "-unit=B", "-nodefraction=0", "-nodecount=1000", path]);
    let flat: HashMap<String, f64> = top
        .lines()
        .skip_while(|line| !line.contains("flat%"))
        .skip(1)
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let flat = words[0].trim_end_matches('B').parse().unwrap();
            (words[5..].join(" ").replace(" (inline)", ""), flat)
        })
        .collect();
    let lacking: Vec<&str> = FUNCTIONS
        .iter()
        .map(|(name, _)| *name)
        .chain(CALLBACKS)
        .filter(|name| {
            let flat = flat.get(&format!("heap::innermost::{name}")).copied().unwrap_or(0.0);
            flat < SIZE as f64 * 0.7
        })
        .collect();
    if !lacking.is_empty() {
        for name in &lacking {
            let focus = format!("-focus=heap::innermost::{name}$");
            println!("{name}:\n{}", peers::go_pprof(&["-traces", "-unit=B", &focus, path]));
        }
    }
    assert_eq!(lacking, [""; 0], "{top}");
}
