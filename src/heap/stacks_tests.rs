//! Tests of the table of stacks, with one thread and with several.

use super::frames;
use super::stacks::{BLOCKS_PER_CHUNK, FRAMES_PER_BLOCK, MAX_BLOCKS, StackSlots};

fn read(stacks: &StackSlots, id: u32) -> Vec<u64> {
    stacks.get(id).unwrap().map(|frame| stacks.frames().get(frame).unwrap()).collect()
}

#[test]
fn equal_stacks_have_one_id_and_read_back() {
    let stacks = StackSlots::new();
    let long = stacks.intern(&[1, 2, 3]).unwrap();
    let short = stacks.intern(&[1, 2]).unwrap();
    let none = stacks.intern(&[]);
    assert_eq!(stacks.intern(&[1, 2, 3]), Some(long));
    assert_ne!(long, short);
    assert_eq!(read(&stacks, long), [1, 2, 3]);
    assert_eq!(read(&stacks, short), [1, 2]);
    assert!(read(&stacks, none.unwrap()).is_empty());
}

#[test]
fn threads_agree_on_ids_across_chunks() {
    let stacks = StackSlots::new();
    let stack = |n: u64| (n..n + 2 + n % 120).collect::<Vec<_>>();
    let ids = || (0..4000).map(|n| stacks.intern(&stack(n)).unwrap()).collect::<Vec<_>>();
    let all: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(ids)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(all.iter().all(|ids| *ids == all[0]));
    for (n, &id) in all[0].iter().enumerate() {
        assert_eq!(read(&stacks, id), stack(n as u64));
    }
    assert!(
        *all[0].iter().max().unwrap() as usize > BLOCKS_PER_CHUNK,
        "all stacks fit into one chunk"
    );
}

#[test]
fn full_table_rejects_new_stacks_and_keeps_existing() {
    let stacks = StackSlots::new();
    let stack = |n: u64| [n; 1000];
    let first = stacks.intern(&stack(0)).unwrap();
    let interned = 1 + (1..).take_while(|&n| stacks.intern(&stack(n)).is_some()).count();
    assert_eq!(interned, (MAX_BLOCKS as usize - 1) / 1000_usize.div_ceil(FRAMES_PER_BLOCK));
    assert_eq!(stacks.intern(&stack(0)), Some(first));
}

/// Inserts and drops stacks of all lengths; kept stacks read back, and neither blocks nor frames
/// run out.
#[test]
fn released_stacks_free_blocks_and_frames() {
    let stacks = StackSlots::new();
    let stack = |n: u64| (n << 8..(n << 8) + n % 129).collect::<Vec<u64>>();
    let mut kept = Vec::new();
    for n in 1..5 * frames::MAX_ADDRESSES / 129 {
        let id = stacks.intern(&stack(n)).unwrap_or_else(|| panic!("no space for {n}"));
        if n % 100 == 0 {
            kept.push((n, id));
        } else {
            stacks.release(id);
        }
    }
    for (n, id) in kept {
        assert_eq!(read(&stacks, id), stack(n));
        assert_eq!(stacks.intern(&stack(n)), Some(id));
    }
}

#[test]
fn concurrent_intern_and_release_leak_no_frames() {
    let stacks = StackSlots::new();
    let stack = |n: u64| (n..n + 2 + n % 50).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        for start in 0..4 {
            let stacks = &stacks;
            let stack = &stack;
            scope.spawn(move || {
                for n in 0..20_000 {
                    let n = (start + n) % 300;
                    let id = stacks.intern(&stack(n)).unwrap();
                    assert_eq!(read(stacks, id), stack(n));
                    stacks.release(id);
                }
            });
        }
    });
    // Nothing is left: all frames can be numbered again.
    assert!(
        (1..frames::MAX_ADDRESSES).all(|address| stacks.frames().intern(address << 20).is_some())
    );
}
