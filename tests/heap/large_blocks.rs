//! Ten blocks of 20 MiB are 200 MiB in every profile, and 0 after they are freed.

use jiff::Timestamp;
use marple::internals::base::Bytes;
use marple::internals::heap;
use marple::internals::model::{LabelValue, Profile};

const SIZE: usize = 20 << 20;
const ROUNDS: i64 = 1000;

/// Returns objects and bytes in use in blocks of `size` bytes.
fn live_objects_and_bytes(profile: &Profile, size: usize) -> (i64, i64) {
    let is_size = |value| matches!(value, LabelValue::Number(n, _) if n == size as i64);
    profile
        .samples
        .iter()
        .filter(|sample| sample.labels.iter().any(|label| is_size(label.value)))
        .fold((0, 0), |(n, bytes), sample| (n + sample.values[2], bytes + sample.values[3]))
}

fn snapshot() -> Profile {
    heap::snapshot(Timestamp::now()).unwrap()
}

#[test]
fn ten_blocks_of_20_mib_are_exact_and_zero_after_free() {
    assert_eq!(heap::rate(), Bytes::kib(512));
    for round in 0..ROUNDS {
        let blocks: Vec<Vec<u8>> = (0..10).map(|_| Vec::with_capacity(SIZE)).collect();
        let profile = snapshot();
        assert_eq!(live_objects_and_bytes(&profile, SIZE), (10, 200 << 20), "round {round}");
        drop(blocks);
        assert_eq!(live_objects_and_bytes(&snapshot(), SIZE), (0, 0), "after round {round}");
    }
    println!("200 MiB held and 0 after in {ROUNDS} of {ROUNDS}");
    let profile = snapshot();
    assert_eq!(profile.default_sample_type, "inuse_space");
    assert_eq!((profile.period, profile.period_type.name), (512 << 10, "space"));
    let types: Vec<_> = profile.sample_types.iter().map(|t| (t.name, t.unit)).collect();
    assert_eq!(
        types,
        [
            ("alloc_objects", "count"),
            ("alloc_space", "bytes"),
            ("inuse_objects", "count"),
            ("inuse_space", "bytes")
        ]
    );
    assert!(profile.total("alloc_space").unwrap() >= ROUNDS * (200 << 20));
    assert!(profile.comments.iter().any(|line| line.contains("standard error")));
    // The count is of every byte, and the blocks are nearly all that the program allocates.
    let counted = profile.comments.iter().find_map(|line| {
        let rest = line.strip_prefix("heap: counted, not sampled: ")?;
        rest.split(' ').next()?.parse::<i64>().ok()
    });
    let more = counted.unwrap() - ROUNDS * (200 << 20);
    assert!((-(64 << 10)..32 << 20).contains(&more), "{more}");
}
