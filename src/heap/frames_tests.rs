//! The table of frames, filled up.

use super::frames::{CAP, Frames};

#[test]
fn an_address_has_one_number_and_a_full_table_keeps_what_it_has() {
    let frames = Frames::new();
    let numbers: Vec<_> = (0..CAP - 1).map(|n| frames.intern(0x7f00 + n * 5)).collect();
    assert!(numbers.iter().all(Option::is_some));
    assert_eq!(frames.intern(1), None);
    assert_eq!(frames.intern(0x7f00 + 500 * 5), numbers[500]);
    assert_eq!(frames.get(numbers[500].unwrap()), Some(0x7f00 + 500 * 5));
    assert_eq!(frames.iter().count() as u64, CAP - 1);
}
