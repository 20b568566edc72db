//! The table of stacks, alone and between threads.

use super::stacks::{CHUNK, Stacks};

fn read(stacks: &Stacks, id: u32) -> Vec<u64> {
    stacks.get(id).unwrap().map(|frame| stacks.frames().get(frame).unwrap()).collect()
}

#[test]
fn a_stack_has_one_id_and_reads_back() {
    let stacks = Stacks::new();
    let (long, short, none) =
        (stacks.intern(&[1, 2, 3]).unwrap(), stacks.intern(&[1, 2]).unwrap(), stacks.intern(&[]));
    assert_eq!(stacks.intern(&[1, 2, 3]), Some(long));
    assert_ne!(long, short);
    assert_eq!(read(&stacks, long), [1, 2, 3]);
    assert_eq!(read(&stacks, short), [1, 2]);
    assert!(read(&stacks, none.unwrap()).is_empty());
}

#[test]
fn threads_agree_on_ids_across_chunks() {
    let stacks = Stacks::new();
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
    assert!(*all[0].iter().max().unwrap() as usize > CHUNK, "one chunk held it all");
}

#[test]
fn a_full_table_refuses_and_keeps_what_it_has() {
    let stacks = Stacks::new();
    let stack = |n: u64| [n; 1000];
    let first = stacks.intern(&stack(0)).unwrap();
    let held = (1..).take_while(|&n| stacks.intern(&stack(n)).is_some()).count();
    assert!((3000..3200).contains(&held), "{held}");
    assert_eq!(stacks.intern(&stack(0)), Some(first));
    assert_eq!(stacks.intern(&vec![0; CHUNK]), None, "a stack that fits no chunk");
}
