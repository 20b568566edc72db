//! Tests of the table of frames, full and during a dump.

use super::frames::{END, FrameSlots, MAX_ADDRESSES};
use crate::model::Marker;

#[test]
fn full_table_rejects_new_addresses_and_reuses_released_numbers() {
    let frames = FrameSlots::new();
    let numbers: Vec<_> = (0..MAX_ADDRESSES - 1).map(|n| frames.intern(0x7f00 + n * 5)).collect();
    assert!(numbers.iter().all(Option::is_some));
    assert_eq!(frames.intern(1), None);
    assert_eq!(frames.intern(0x7f00 + 500 * 5), numbers[500]);
    assert_eq!(frames.get(numbers[500].unwrap()), Some(0x7f00 + 500 * 5));
    let in_table = frames.iter().filter(|&(_, address)| Marker::from_address(address).is_none());
    assert_eq!(in_table.count() as u64, MAX_ADDRESSES - 1);
    assert!(frames.iter().all(|(number, _)| (1..END).contains(&number)));
    // The address was interned twice.
    frames.release(numbers[500].unwrap());
    assert_eq!(frames.intern(1), None);
    frames.release(numbers[500].unwrap());
    assert_eq!(frames.intern(1), numbers[500], "the number of the released frame");
    assert_eq!(frames.get(numbers[500].unwrap()), Some(1));
}

#[test]
fn number_is_not_reused_until_last_dump_ends() {
    let frames = FrameSlots::new();
    let number = frames.intern(10).unwrap();
    frames.begin_dump();
    frames.begin_dump();
    frames.release(number);
    let other = frames.intern(20).unwrap();
    assert_ne!(other, number);
    assert_eq!(frames.get(number), Some(10));
    frames.end_dump();
    assert_ne!(frames.intern(30), Some(number));
    frames.end_dump();
    assert_eq!(frames.intern(40), Some(number));
}
