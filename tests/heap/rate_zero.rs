//! At rate 0 nothing is recorded, blocks recorded earlier are still in the profile, and later
//! profiles state the bytes without samples.

use jiff::Timestamp;
use marple::internals::base::Bytes;
use marple::internals::heap;

fn total(name: &str) -> i64 {
    heap::snapshot(Timestamp::now()).unwrap().total(name).unwrap()
}

fn allocate() -> Vec<Vec<u8>> {
    (0..1000).map(|n| Vec::with_capacity(1 << (n % 20))).collect()
}

#[test]
fn rate_zero_records_nothing() {
    heap::set_rate(Bytes(1));
    let recorded: Vec<u8> = Vec::with_capacity(1 << 30);
    assert!(total("inuse_space") >= 1 << 30);
    heap::set_rate(Bytes(0));
    let before = total("alloc_space");
    let own_blocks = allocate();
    let theirs = std::thread::spawn(allocate).join().unwrap();
    assert_eq!(total("alloc_space"), before);
    drop((own_blocks, theirs, recorded));
    assert!(total("inuse_space") < 1 << 30);
    assert_eq!(total("alloc_space"), before);
    heap::set_rate(Bytes(1));
    let comments = heap::snapshot(Timestamp::now()).unwrap().comments;
    let unsampled = "of the counted bytes were allocated while sampling was off";
    assert!(comments.iter().any(|comment| comment.contains(unsampled)), "{comments:?}");
}
