use super::filter::*;

#[test]
fn an_address_is_held_from_its_add_to_its_remove() {
    let filter = AddressFilter::<ALL>::new();
    assert!(!filter.may_hold(0x7f00_1230));
    filter.add(0x7f00_1230);
    filter.add(0x7f00_1230);
    filter.remove(0x7f00_1230);
    assert!(filter.may_hold(0x7f00_1230));
    filter.remove(0x7f00_1230);
    assert!(!filter.may_hold(0x7f00_1230));
}

#[test]
fn neighbours_share_a_counter_and_far_ones_hardly_ever() {
    let filter = AddressFilter::<ALL>::new();
    filter.add(0x7f00_1230);
    let near = (0x7f00_0000..0x7f00_2000).step_by(16);
    let held: Vec<_> = near.filter(|&address| filter.may_hold(address)).collect();
    let (first, last) = (held[0], held[held.len() - 1]);
    assert!((first..=last).contains(&0x7f00_1230), "{held:x?}");
    assert_eq!(held.len(), (last - first) / 16 + 1, "one run: {held:x?}");
    assert!([15, 16].contains(&held.len()), "a piece holds as many blocks of 16: {held:x?}");
    for step in [4096, 1 << 20, 16 << 20, 20 << 20, 64 << 20, 1 << 30] {
        let held = (1..1000).filter(|n| filter.may_hold(0x7f00_1230 + n * step)).count();
        assert!(held <= 2, "{held} of 1000 blocks {step} bytes apart");
    }
}

#[test]
fn a_counter_that_ran_full_never_says_no() {
    let filter = AddressFilter::<ALL>::new();
    (0..300).for_each(|_| filter.add(64));
    (0..300).for_each(|_| filter.remove(64));
    assert!(filter.may_hold(64));
}
